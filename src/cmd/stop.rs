//! `stop`: the end of a server.

use crate::error::Result;
use crate::serve::control::Client;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  ddsnap stop data.sock";

/// End a server
///
/// Requests under way are done, then the store is closed; the command returns when that has happened, and fails if the
/// store could not be closed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The socket of the server, or the store that it has open
    #[arg(value_name = "SOCK")]
    socket: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound` if no server listens there; what the server says; `Kind::Io`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let socket = args.socket.display();
    let server = Client::connect(&args.socket)
        .map_err(|error| error.doing(format!("cannot end the server at {socket}")))?;
    server.stop().map_err(|error| error.doing(format!("the server at {socket} has not ended well")))?;
    ui.explain("the server has ended");
    Ok(Exit::Done)
}
