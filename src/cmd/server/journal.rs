//! What a server holds outlives it where devices of the kernel do: a file in /run, which the next server takes up.

use crate::block::file::FileWriter;
use crate::dm::{self, device};
use crate::error::{Error, Kind, Result};
use crate::store::Live;
use crate::ui::log::Log;
use std::path::{Path, PathBuf};

/// What holds the journal of the volume of `live`, and the identity of its device.
fn place(live: &Live) -> (PathBuf, String) {
    let uuid = live.look(|view| view.info().uuid);
    let identity = device::identity(&uuid.to_string(), device::ORIGIN);
    (device::journal(&identity), identity)
}

/// Lands what a server that was killed held. Without a device that waits for it, its users are gone too: nobody is told
/// then that he has it, and the origin may have been used since.
///
/// # Errors
/// `Kind::Io`, `Kind::NoSpace`; `Kind::Damaged`.
pub fn take_up(live: &Live, log: &Log) -> Result<()> {
    let (path, identity) = place(live);
    let journal = match FileWriter::open(&path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        journal => journal?,
    };
    if device::is_attached(&identity)? {
        let bytes = live
            .take_up(&journal)
            .map_err(|error| error.doing("cannot land what the last server held".to_owned()))?;
        log.note(&format!("{bytes} bytes that the last server held have landed"));
    } else {
        log.line("what the last server held is dropped: the devices it was written to are gone");
    }
    std::fs::remove_file(&path)
        .map_err(|error| Error::io(format!("cannot remove it: {error}"), error).at_path(&path))
}

/// Has what is held outlive this server. Where it cannot, devices are told of a write when it has landed, which takes
/// longer.
pub fn begin(live: &Live, log: &Log) {
    let (path, _) = place(live);
    let made = std::fs::create_dir_all(dm::RUN)
        .map_err(|error| Error::io(format!("cannot make it: {error}"), error).at_path(Path::new(dm::RUN)));
    if let Err(error) = made.and_then(|()| live.journal_at(&path)) {
        log.line(&format!("writes through devices wait until they have landed: {error}"));
    }
}
