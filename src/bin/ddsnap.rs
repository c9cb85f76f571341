//! The `ddsnap` command: hands the process's arguments to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ddsnap::cmd::main(std::env::args_os())
}
