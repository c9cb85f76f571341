//! Several threads over a list of independent pieces of work.

use crate::error::Result;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Threads, at most: beyond, the device is the bound.
const THREADS_MAX: usize = 8;

/// Fewer items than this are sorted before a thread has begun.
const SORT_MIN: usize = if cfg!(test) { 8 } else { 4 << 10 };

/// Threads that are worth starting for `items` pieces of work.
fn threads(items: usize) -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX).min(items)
}

/// Sorts `items` by `key`; those with the same key keep their order.
pub fn sort_by_key<T: Send, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K + Sync) {
    let threads = threads(items.len() / SORT_MIN);
    if threads > 1 {
        std::thread::scope(|scope| {
            for part in items.chunks_mut(items.len().div_ceil(threads)) {
                scope.spawn(|| part.sort_by_key(&key));
            }
        });
    }
    // Of parts in order it makes a whole in one go.
    items.sort_by_key(&key);
}

/// What `work` makes of every item, in order. The first error ends it.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    map_with(items, |(), item| work(item))
}

/// As [`map`], with something that each thread keeps from one item to the next.
pub fn map_with<S: Default, T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let threads = threads(items.len());
    if threads <= 1 {
        let mut kept = S::default();
        return items.iter().map(|item| work(&mut kept, item)).collect();
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<R>)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut kept = S::default();
                while !failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { break };
                    let outcome = work(&mut kept, item);
                    failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn sorting_in_parts_is_stable() {
        let mut items: Vec<(u64, usize)> = (0..1000).map(|at| (at as u64 * 7919 % 101, at)).collect();
        let mut expected = items.clone();
        expected.sort();
        sort_by_key(&mut items, |item| item.0);
        assert_eq!(items, expected);
    }

    #[test]
    fn results_keep_their_order_and_an_error_is_told() {
        let items: Vec<u32> = (0..1000).collect();
        let doubled = map(&items, |item| Ok(item * 2)).unwrap();
        assert!(doubled.iter().zip(&items).all(|(found, item)| *found == item * 2));
        let failing = map(&items, |item| if *item == 77 { Err(Error::damaged("77")) } else { Ok(()) });
        assert!(failing.is_err());
        assert_eq!(map(&[0u8; 0], |_| Ok(())).unwrap(), []);
    }
}
