//! The only lines of the program that write to standard output and standard error.

use std::io::{IsTerminal, Write};

/// Writes one line to standard error. Nobody can be told if that fails.
pub fn stderr_line(text: &str) {
    let mut stream = std::io::stderr().lock();
    let _ = writeln!(stream, "{text}");
}

/// Writes `text` to standard error without ending the line, for prompts.
pub fn stderr_text(text: &str) {
    let mut stream = std::io::stderr().lock();
    let _ = write!(stream, "{text}").and_then(|()| stream.flush());
}

/// Writes all of `text` to standard output.
///
/// # Errors
/// What the system says: a closed pipe, a full disk.
pub fn stdout_text(text: &str) -> std::io::Result<()> {
    let mut stream = std::io::stdout().lock();
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// True if standard input and standard error are both a terminal, so that a question can be asked.
#[must_use]
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// True if standard output is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns of the terminal that standard output is, if it is one and says so.
#[must_use]
pub fn stdout_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// True if standard output is a terminal that shows colours, and the user has nothing against them.
#[must_use]
pub fn stdout_takes_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stdout_is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// True if standard error is a terminal.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// True if standard input is a terminal.
#[must_use]
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// One line from standard input, for prompts.
///
/// # Errors
/// What the system says.
pub fn stdin_line() -> std::io::Result<String> {
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer)
}
