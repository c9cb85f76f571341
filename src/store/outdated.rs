//! Noticing that the tables of a store are old ones: the log went on where only newer ones let it.
//!
//! A record goes to a segment that a checkpoint promised, and that checkpoint's superblocks were durable before. So no
//! crash leaves a record that counts in a segment which the tables take for free. What a crash does leave there, a
//! tail that was never durable, claims nothing that the log does not have, and does not hold its checksums.

use super::chain::Chain;
use super::recover::{REBUILD_HINT, data_holds, read_record};
use super::state::State;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Role;
use crate::format::record::Record;
use crate::format::superblock::Superblock;

/// Free segments that opening a store looks at: the log goes on in the lowest, but for a few that the index took.
const FEW: usize = 16;
/// Free segments in a row without any record from which on no one lies further up: the log takes the lowest first.
const QUIET: usize = 1024;

/// Refuses tables that are known to be old ones: going on would take what is missing for never written, and a writer
/// would overwrite the newer records. Looks at the first block of a few segments, or of all that are free if the log
/// has used up all that was promised to it: that is rare, and just what the last of lost tables would look like.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Io`.
pub fn ensure_newest(device: &dyn ReadAt, state: &State) -> Result<()> {
    let most = if state.chain.next_place(&state.sb).is_none() { usize::MAX } else { FEW };
    refuse_later(device, state, most)
}

/// As [`ensure_newest`], and looks at every segment that can tell.
///
/// # Errors
/// As [`ensure_newest`].
pub fn ensure_newest_of_all(device: &dyn ReadAt, state: &State) -> Result<()> {
    refuse_later(device, state, usize::MAX)
}

fn refuse_later(device: &dyn ReadAt, state: &State, most: usize) -> Result<()> {
    let Some(record) = later_record(device, state, most)? else { return Ok(()) };
    let text = format!(
        "checkpoint {} is an old one: the log that it knows ends after record {}, and record {} lies where it \
         promises no log",
        state.sb.checkpoint, state.chain.position.sequence, record.sequence
    );
    Err(Error::damaged(text).at_offset(record.address).hint(REBUILD_HINT))
}

/// A record that came after the end of the log and lies at the begin of a segment that is free by the tables; `most`
/// of those are looked at, the lowest first.
fn later_record(device: &dyn ReadAt, state: &State, most: usize) -> Result<Option<Record>> {
    let is_free = |number: &u32| state.segments.get(number).is_none_or(|it| it.role == Role::Emptied);
    let mut quiet = 0;
    for number in (0..state.sb.segments).filter(is_free).take(most) {
        match read_record(device, &state.sb, state.sb.segment_address(number)) {
            Ok(record) if is_later(device, &state.sb, &state.chain, &record)? => return Ok(Some(record)),
            Ok(_) => quiet = 0,
            // What the medium does not give back of a free segment tells nothing, and is no reason to stop.
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Io) => quiet += 1,
            Err(error) => return Err(error),
        }
        if quiet == QUIET {
            break;
        }
    }
    Ok(None)
}

/// True if `record` counts, and came after the last one that `chain` knows.
fn is_later(device: &dyn ReadAt, sb: &Superblock, chain: &Chain, record: &Record) -> Result<bool> {
    Ok(record.durable > chain.position.sequence
        || chain.is_followed_by(record) && data_holds(device, sb, record)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::WriteAt;
    use crate::block::memory::Memory;
    use crate::store::recover::load_and_replay;
    use crate::store::{InitOptions, Writer};
    use crate::units::Tag;
    use std::path::PathBuf;
    use std::sync::Arc;

    /// A store whose last record but one ends a segment, and what its tables would be if only that much were
    /// promised; the address of the data of the last record.
    fn on_the_border() -> (Arc<Memory>, State, u64) {
        let (store, origin) = (Arc::new(Memory::new(16 << 20)), Arc::new(Memory::new(8 << 20)));
        let device: Arc<dyn WriteAt> = store.clone();
        origin.write_at(&vec![7; 8 << 20], 0).unwrap();
        let options = InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: PathBuf::from("/origin"),
            origin_size: 8 << 20,
            now_secs: 1,
        };
        Writer::initialize(&device, &options).unwrap();
        let mut writer = Writer::open(device, Some(origin), 2).unwrap();
        writer.create_snapshot(Tag(1), None).unwrap();
        for chunk in 0.. {
            let mut before = writer.view.state.clone();
            writer.write_origin(chunk * 4096, &[1; 4096]).unwrap();
            let here = writer.view.state.chain.clone();
            if here.at == before.chain.at {
                continue;
            }
            let gone = here.promised.get(here.at..).unwrap().to_vec();
            gone.iter().for_each(|segment| assert!(before.segments.remove(segment).is_some()));
            before.chain.promised.retain(|segment| !gone.contains(segment));
            // A record that ends the segment early may be the last but one.
            let end = before.sb.segment_address(*here.promised.get(here.at).unwrap());
            let last = read_record(store.as_ref(), &before.sb, end).unwrap();
            while !before.chain.is_followed_by(&last) {
                let at = before.chain.position.address;
                let skip = read_record(store.as_ref(), &before.sb, at).unwrap();
                before.apply(before.chain.at, &skip).unwrap();
            }
            return (store, before, end + u64::from(last.header_length));
        }
        unreachable!()
    }

    #[test]
    fn a_record_that_follows_where_no_log_is_promised_tells_of_newer_tables() {
        let (store, state, data) = on_the_border();
        assert!(ensure_newest(store.as_ref(), &load_and_replay(store.as_ref()).unwrap()).is_ok());
        assert!(ensure_newest(store.as_ref(), &state).is_err());
        assert!(ensure_newest_of_all(store.as_ref(), &state).is_err());
        // Torn, and claiming nothing that the log does not have: what a crash may leave.
        store.write_at(&[2; 4096], data).unwrap();
        assert!(ensure_newest_of_all(store.as_ref(), &state).is_ok());
        // Torn, but it knew of more.
        let mut older = state;
        older.chain.position.sequence -= 2;
        assert!(ensure_newest_of_all(store.as_ref(), &older).is_err());
    }
}
