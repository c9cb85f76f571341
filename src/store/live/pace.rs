//! How fast writers are told that they have written, while much is held.
//!
//! Without it they would fill the memory at once and then wait, all of them, each time until a whole batch has landed.
//! So from an eighth of the memory on they come through one by one, at half of the time that a chunk takes to land,
//! growing to twice that time when the memory is full: they settle at about two fifths, and the rest is for what comes
//! while nothing can land.

use std::time::{Duration, Instant};

/// How late writers may come and still not wait: clocks that wake them are not exact.
const SLACK: Duration = Duration::from_millis(2);

/// How fast chunks land.
pub struct Pace {
    /// Chunks that there is memory for.
    capacity: usize,
    per_chunk: Duration,
    /// When the next one may come.
    next: Instant,
}

impl Pace {
    /// For memory of `capacity` chunks; nobody waits before the first batch has landed.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, per_chunk: Duration::ZERO, next: Instant::now() }
    }

    /// The most chunks of a batch: it should not take long until the first memory is free again.
    pub fn batch(&self) -> usize {
        (self.capacity / 8).max(1)
    }

    /// A batch of `chunks` took so long. A small one says nothing: most of its time went to the flush.
    pub fn learn(&mut self, chunks: usize, took: Duration) {
        let Ok(count) = u32::try_from(chunks) else { return };
        if count == 0 || chunks < self.batch() / 2 {
            return;
        }
        let found = took / count;
        self.per_chunk = if self.per_chunk.is_zero() { found } else { (self.per_chunk * 3 + found) / 4 };
    }

    /// How long whoever comes at `now` waits while `held` chunks are held.
    pub fn wait(&self, now: Instant, held: usize) -> Option<Duration> {
        let wait = self.next.saturating_duration_since(now);
        (held > self.batch() && wait > SLACK).then_some(wait)
    }

    /// Somebody has come who brings `held` chunks to so many and more by `cost`.
    pub fn come(&mut self, now: Instant, held: usize, cost: usize) {
        let (above, range) = (held.saturating_sub(self.batch()), (self.capacity - self.batch()).max(1));
        let parts = u32::try_from(cost * (range + 3 * above)).unwrap_or(u32::MAX);
        let share = self.per_chunk.saturating_mul(parts) / u32::try_from(2 * range).unwrap_or(u32::MAX);
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        self.next = self.next.max(earliest) + share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_waits_the_longer_the_more_is_held() {
        let mut pace = Pace::new(800);
        let now = Instant::now();
        pace.come(now, 700, 10);
        assert_eq!(pace.wait(now, 790), None, "nothing is known yet");
        pace.learn(10, Duration::from_secs(9));
        pace.learn(100, Duration::from_millis(100));
        let wait_after = |held| {
            let mut pace = Pace { next: now, ..Pace::new(800) };
            pace.learn(100, Duration::from_millis(100));
            pace.come(now, held, 10);
            pace.wait(now, 101).unwrap_or_default()
        };
        assert_eq!(wait_after(100), Duration::from_millis(5));
        assert_eq!(wait_after(800), Duration::from_millis(20));
        assert_eq!(pace.wait(now, 100), None, "little is held");
        pace.learn(100, Duration::from_millis(500));
        assert_eq!(pace.per_chunk, Duration::from_millis(2));
        // Whoever comes late does not save up.
        let later = now + Duration::from_secs(5);
        pace.come(later, 800, 10);
        assert_eq!(pace.wait(later, 800), Some(Duration::from_millis(40) - SLACK));
    }
}
