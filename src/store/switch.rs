//! From a store of 2008 to the one that was made beside it on the same device, and back.
//!
//! Only the superblocks lie where the old store may have data. So what is there is saved first, in a segment that both
//! stores take for free, and a record in the first sector says so from then on until there is no way back:
//!
//! | step | then | a crash before the next step |
//! |---|---|---|
//! | old blocks and new superblock saved | | leaves the old store |
//! | record: switching | | is between both: [`finish`] or [`rollback`] |
//! | old superblock zeroed, new ones written | | the same |
//! | record: switched | the new store, which only reads | [`commit`] or [`rollback`] |
//! | record: being taken back | old blocks written | [`rollback`] again |
//! | the old first sector | the old store as it was | |
//! | record: being committed | superblocks without their mark, the rest zeroed | [`commit`] again |
//! | the first sector zeroed | a store as any other | |
//!
//! Each line is durable before the next, and each may be done again.

use super::publish;
use super::recover::{self, Superblocks};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::legacy::superblock as legacy;
use crate::format::superblock::{FIRST_SEGMENT, OFFSETS, Superblock};
use crate::format::switch::{Phase, SIZE, Switch};
use crate::units::index;

/// The record on `device`, if there is one.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Unsupported`, `Kind::Io`.
pub fn look(device: &dyn ReadAt) -> Result<Option<Switch>> {
    let mut bytes = vec![0; SIZE];
    if device.size() < FIRST_SEGMENT {
        return Ok(None);
    }
    device.read_at(&mut bytes, 0)?;
    Switch::decode(&bytes, device.size()).map_err(|error| error.at_path(device.path()).at_offset(0))
}

/// Refuses a device that is between an old store and a new one.
///
/// # Errors
/// `Kind::Refused`, naming the way on; as [`look`].
pub fn ensure_whole(device: &dyn ReadAt) -> Result<()> {
    let store = device.path().display();
    let (what, hint) = match look(device)?.map(|found| found.phase) {
        None | Some(Phase::Switched) => return Ok(()),
        Some(Phase::Switching) => (
            "upgrade in place was interrupted while it switched",
            format!(
                "run 'ddsnap upgrade --in-place {store}' again (finishes) or 'ddsnap upgrade --rollback {store}'"
            ),
        ),
        Some(Phase::TakingBack) => (
            "upgrade in place was interrupted while it was taken back",
            format!("run 'ddsnap upgrade --rollback {store}' again (finishes)"),
        ),
        Some(Phase::Committing) => (
            "upgrade in place was interrupted while it was committed",
            format!("run 'ddsnap upgrade --commit {store}' again (finishes)"),
        ),
    };
    Err(Error::new(Kind::Refused, what).at_path(device.path()).hint(hint))
}

/// Refuses a device whose store may still be taken back: nothing may be written.
///
/// # Errors
/// `Kind::Refused`, naming the way on; as [`look`].
pub fn ensure_settled(device: &dyn ReadAt) -> Result<()> {
    ensure_whole(device)?;
    // Superblocks can be lost, and the record too.
    let marked = Superblocks::read(device)
        .newest_first()
        .is_ok_and(|found| found.first().is_some_and(|sb| sb.uncommitted));
    if !marked && look(device)?.is_none() {
        return Ok(());
    }
    let store = device.path().display();
    let what = "it was upgraded in place and not committed: it can only be read";
    Err(Error::new(Kind::Refused, what).at_path(device.path()).hint(format!(
        "'ddsnap upgrade --commit {store}' makes it a store as any other, 'ddsnap upgrade --rollback {store}' makes it \
         the old one again"
    )))
}

/// Bytes that [`begin`] saves for a store with blocks of `block_size` bytes; a segment always has room for them.
#[must_use]
pub fn saved_bytes(block_size: u32) -> u64 {
    record(block_size.trailing_zeros()).saved_bytes()
}

fn record(block_bits: u32) -> Switch {
    let uuid = crate::units::Uuid([0; 16]);
    Switch { phase: Phase::Switching, uuid, saved: 0, block_bits, old_crc: 0, new_crc: 0 }
}

/// Makes `sb` the store that is on `device`, until it is committed or taken back. All of it is durable there; what the
/// switch overwrites is saved at byte `saved`.
///
/// # Errors
/// `Kind::Io`; `Kind::Damaged` if what is saved does not read back.
pub fn begin(device: &dyn WriteAt, sb: &Superblock, saved: u64) -> Result<()> {
    let mut switch = Switch { uuid: sb.uuid, saved, ..record(sb.block_bits) };
    let mut bytes = old(device, &switch)?;
    let new = publish::padded_bytes(&Superblock { uncommitted: true, ..sb.clone() });
    (switch.old_crc, switch.new_crc) = (crc32fast::hash(&bytes), crc32fast::hash(&new));
    bytes.extend_from_slice(&new);
    device.write_at(&bytes, saved)?;
    device.flush()?;
    saved_old(device, &switch)?;
    put(device, switch, Phase::Switching)?;
    finish(device)
}

/// What lies where the switch writes, one after the other.
fn old(device: &dyn ReadAt, switch: &Switch) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for place in switch.places() {
        let start = bytes.len();
        bytes.resize(start + index(place.end - place.start), 0);
        device.read_at(bytes.get_mut(start..).unwrap_or(&mut []), place.start)?;
    }
    Ok(bytes)
}

/// What is saved of the old store.
fn saved_old(device: &dyn ReadAt, switch: &Switch) -> Result<Vec<u8>> {
    saved(device, (switch.saved, switch.old_bytes(), switch.old_crc), "what is saved of the old store")
}

/// The new superblock, as it is saved.
fn saved_new(device: &dyn ReadAt, switch: &Switch) -> Result<Vec<u8>> {
    let place = (switch.saved + switch.old_bytes(), switch.block(), switch.new_crc);
    saved(device, place, "the superblock that is saved")
}

fn saved(device: &dyn ReadAt, (at, length, crc): (u64, u64, u32), name: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; index(length)];
    device.read_at(&mut bytes, at)?;
    if crc32fast::hash(&bytes) == crc {
        return Ok(bytes);
    }
    Err(Error::damaged(format!("{name} does not hold its checksum")).at_path(device.path()).at_offset(at))
}

/// Makes it durable how far it is: one sector, which a device writes whole or not at all.
fn put(device: &dyn WriteAt, switch: Switch, phase: Phase) -> Result<()> {
    device.write_at(&Switch { phase, ..switch }.encode(), 0)?;
    device.flush()
}

/// Ends a switch that was begun, and maybe cut short.
///
/// # Errors
/// `Kind::Refused` if it is none, or is being taken back or committed; `Kind::Damaged` if what is saved is lost;
/// `Kind::Io`.
pub fn finish(device: &dyn WriteAt) -> Result<()> {
    let Some(switch) = look(device)?.filter(|found| found.phase == Phase::Switching) else {
        ensure_whole(device)?;
        return Err(
            Error::new(Kind::Refused, "no upgrade in place was interrupted here").at_path(device.path())
        );
    };
    let new = saved_new(device, &switch)?;
    // For a program that knows nothing of the record there is no store now, rather than one with wrong blocks.
    device.write_at(&vec![0; legacy::SIZE], legacy::OFFSET)?;
    device.flush()?;
    for offset in OFFSETS {
        device.write_at(&new, offset)?;
        device.flush()?;
    }
    put(device, switch, Phase::Switched)
}

/// Makes the old store what is on `device` again, every byte as it was. `insist` if both superblocks of the new one
/// are lost: somebody may have overwritten them on purpose.
///
/// # Errors
/// `Kind::Refused` if there is nothing to be taken back, or no way back any more; `Kind::Damaged` if what is saved
/// is lost; `Kind::Io`.
pub fn rollback(device: &dyn WriteAt, insist: bool) -> Result<()> {
    let refused = |what: &str| Err(Error::new(Kind::Refused, what).at_path(device.path()));
    let Some(switch) = look(device)? else {
        return refused("no upgrade in place is here that could be taken back");
    };
    let old = saved_old(device, &switch)?;
    match switch.phase {
        Phase::Committing => return ensure_whole(device),
        Phase::Switched if !insist && !is_marked(device, &switch) => {
            return refused(
                "neither superblock of the new store is there: something else may have been made of it",
            )
            .map_err(|error: Error| error.hint("-y takes it back all the same"));
        }
        _ => {}
    }
    put(device, switch, Phase::TakingBack)?;
    // A rescue that one day finds no superblock here must not take these for what it looks for.
    if let Ok(sb) = saved_new(device, &switch).and_then(|new| Superblock::decode(&new)) {
        publish::forget(device, &[sb])?;
    }
    let mut at = old.len();
    for place in switch.places().into_iter().rev() {
        at -= index(place.end - place.start);
        let bytes = old.get(at..at + index(place.end - place.start)).unwrap_or(&[]);
        // The first sector comes last.
        let skip = if place.start == 0 { SIZE } else { 0 };
        device.write_at(bytes.get(skip..).unwrap_or(&[]), place.start + skip as u64)?;
    }
    device.flush()?;
    device.write_at(old.get(..SIZE).unwrap_or(&[]), 0)?;
    device.flush()
}

/// True if a superblock of the switch is there and says that it was not committed.
fn is_marked(device: &dyn ReadAt, switch: &Switch) -> bool {
    let found = Superblocks::read(device).copies;
    found.into_iter().flatten().any(|sb| sb.uncommitted && sb.uuid == switch.uuid)
}

/// Makes the new store one as any other: there is no way back any more. False if it is that already.
///
/// # Errors
/// `Kind::Refused` while the switch or the way back is not finished; `Kind::Damaged` if the new store cannot be
/// opened; `Kind::Io`.
pub fn commit(device: &dyn WriteAt) -> Result<bool> {
    let switch = look(device)?;
    if switch.is_none_or(|switch| switch.phase != Phase::Committing) {
        // Whoever gives up the old store must be able to read the new one.
        let sb = recover::load(device)?.sb;
        if !sb.uncommitted && switch.is_none() {
            return Ok(false);
        }
    }
    if let Some(switch) = switch {
        put(device, switch, Phase::Committing)?;
    }
    let found = Superblocks::read(device).newest_first();
    let mut sb = match (found, switch) {
        (Ok(list), _) if !list.is_empty() => list.into_iter().next(),
        // Nothing has been written since.
        (_, Some(switch)) => Some(Superblock::decode(&saved_new(device, &switch)?)?),
        (found, None) => found?.into_iter().next(),
    }
    .ok_or_else(|| Error::damaged("no superblock").at_path(device.path()))?;
    if sb.uncommitted {
        sb.uncommitted = false;
        sb.generation = sb.generation.saturating_add(1);
    }
    publish::write_superblocks(device, &sb)?;
    let block = u64::from(sb.block_size());
    let [a, b] = OFFSETS;
    for (from, to) in [(SIZE as u64, a), (a + block, b), (b + block, FIRST_SEGMENT)] {
        device.write_at(&vec![0; index(to - from)], from)?;
    }
    device.flush()?;
    device.write_at(&[0; SIZE], 0)?;
    device.flush()?;
    Ok(true)
}
