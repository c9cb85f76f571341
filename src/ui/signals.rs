//! Signals that end a command: the first asks it to finish or undo its step, the second kills.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a hangup of the terminal, SIGHUP, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// The end, as SIGINT and SIGTERM are.
    Stops,
    /// Something else: see [`hangups`].
    IsHeard,
}

/// A flag that the first signal sets. Once it is set, a second signal has its default effect.
///
/// # Errors
/// The system refused a handler.
pub fn install(hangup: Hangup) -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let signals: &[_] = match hangup {
        Hangup::Stops => &[SIGINT, SIGTERM, SIGHUP],
        Hangup::IsHeard => &[SIGINT, SIGTERM],
    };
    for signal in signals {
        // Order matters: the first signal must find the flag still clear here, and set it afterwards.
        signal_hook::flag::register_conditional_default(*signal, Arc::clone(&flag))?;
        signal_hook::flag::register(*signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// A flag that each SIGHUP sets.
///
/// # Errors
/// The system refused a handler.
pub fn hangups() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, Arc::clone(&flag))?;
    Ok(flag)
}
