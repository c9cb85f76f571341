//! Progress: a bar on a terminal, plain lines at least once a second with `--progress`, else nothing.

use super::size;
use super::terminal;
use crate::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Not at all.
    Off,
    /// A bar that redraws itself.
    Bar,
    /// A line a second.
    Lines,
}

/// Listens to an engine, shows what it hears, and passes on the user's wish to stop.
pub struct Meter {
    style: Style,
    stop_wanted: Arc<AtomicBool>,
    current: Mutex<Option<Stage>>,
    done: Arc<AtomicU64>,
}

enum Stage {
    Bar(ProgressBar),
    Lines { stop: Arc<AtomicBool>, thread: JoinHandle<()> },
}

impl Meter {
    /// A meter that shows progress as `style`; `stop_wanted` is set by a signal.
    #[must_use]
    pub fn new(style: Style, stop_wanted: Arc<AtomicBool>) -> Self {
        Self { style, stop_wanted, current: Mutex::new(None), done: Arc::new(AtomicU64::new(0)) }
    }

    /// Ends the stage that is shown, if any, so that other text can follow.
    pub fn finish(&self) {
        let stage = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        match stage {
            Some(Stage::Bar(bar)) => bar.finish_and_clear(),
            Some(Stage::Lines { stop, thread }) => {
                stop.store(true, Ordering::Relaxed);
                thread.thread().unpark();
                // The thread only prints; if it panicked there is nothing to report.
                let _ = thread.join();
            }
            None => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Meter {
    fn stage(&self, name: &str, total_bytes: Option<u64>) {
        self.finish();
        self.done.store(0, Ordering::Relaxed);
        let stage = match self.style {
            Style::Off => return,
            Style::Bar => Stage::Bar(bar(name, total_bytes)),
            Style::Lines => lines(name.to_owned(), total_bytes, Arc::clone(&self.done)),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(stage);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.style == Style::Bar
            && let Some(Stage::Bar(bar)) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner)
        {
            bar.inc(bytes);
        }
    }

    fn interrupted(&self) -> bool {
        self.stop_wanted.load(Ordering::Relaxed)
    }
}

fn bar(name: &str, total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
            "{msg} {bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        ),
        None => (
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Starts a thread that says every second how far the stage is, so that a stalled one is seen to stall.
fn lines(name: String, total_bytes: Option<u64>, done: Arc<AtomicU64>) -> Stage {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let started = Instant::now();
    let thread = std::thread::spawn(move || {
        loop {
            let last = stopped.load(Ordering::Relaxed);
            terminal::stderr_line(&plain_line(
                &name,
                done.load(Ordering::Relaxed),
                total_bytes,
                started.elapsed(),
            ));
            if last {
                return;
            }
            std::thread::park_timeout(Duration::from_secs(1));
        }
    });
    Stage::Lines { stop, thread }
}

fn plain_line(name: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let rate = size::human(rate);
    match total {
        Some(total) if total > 0 => {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total);
            format!("progress: {name} {done}/{total} bytes, {percent}%, {rate}/s")
        }
        _ => format!("progress: {name} {done} bytes, {rate}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_bytes_percent_and_rate() {
        assert_eq!(
            plain_line("reading", 512, Some(1024), Duration::from_secs(1)),
            "progress: reading 512/1024 bytes, 50%, 512 bytes/s"
        );
        assert_eq!(plain_line("reading", 0, None, Duration::ZERO), "progress: reading 0 bytes, 0 bytes/s");
    }

    #[test]
    fn a_meter_passes_on_the_wish_to_stop() {
        let flag = Arc::new(AtomicBool::new(false));
        let meter = Meter::new(Style::Off, Arc::clone(&flag));
        assert!(meter.check().is_ok());
        flag.store(true, Ordering::Relaxed);
        assert!(meter.check().is_err());
    }
}
