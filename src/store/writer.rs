//! Owning a store: opening, appending records, committing, closing.

use super::copied::Copied;
use super::fingerprint;
use super::index::BlockReader;
use super::pins::Pins;
use super::publish::{self, Plan};
use super::recover::{self, OPEN_JUMP, Superblocks};
use super::room::PLAIN;
use super::state::State;
use super::switch;
use super::users::Users;
use super::view::{View, fingerprint_differs, origin_changed};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::record::{Entry, Record, RecordKind};
use crate::format::table::{Fingerprint, RawOpen, RawTaint, Volume, encode_fingerprint, put};
use crate::point::volume::FullPolicy;
use crate::units::index;
use std::collections::HashSet;
use std::sync::Arc;
use zerocopy::little_endian::U64;

/// Blocks of promised log that ordinary commits leave for deletes, attributes and marks.
pub(super) const LOG_RESERVE_BLOCKS: u64 = 16;
/// Records since the checkpoint from which on a session makes another one when it closes.
const CLOSE_RECORDS: u64 = 128;
/// A store opened for writing, exclusively. Dropping it without [`Writer::close`] is a crash: safe, but
/// the next open replays the log.
pub struct Writer {
    pub(super) view: View,
    pub(super) device: Arc<dyn WriteAt>,
    pub(super) origin: Option<Arc<dyn WriteAt>>,
    pub(super) now_secs: i64,
    incarnation: u64,
    /// The open record of this incarnation is in the log.
    started: bool,
    /// A checkpoint was made: it stands for the mark of the last close, and says nothing of the origin.
    pub(super) published: bool,
    /// The origin may have been written since its last flush, by this session or one that was not closed.
    pub(super) origin_dirty: bool,
    /// The volume record that names the origin's new generation is in the log.
    pub(super) origin_touched: bool,
    /// The sequence of that record.
    pub(super) touched_at: u64,
    /// Why the tables are in doubt, after a write that failed: nothing more is written.
    failure: Option<String>,
    /// The last fingerprint, kept for a session that never sees the origin.
    pub(super) last_fingerprint: Option<Fingerprint>,
    /// Chunks that need no copy-out, as far as they were asked for.
    pub(super) copied: Copied,
    /// The snapshot being written, which making room for it must not give up.
    pub(super) writing: Option<u64>,
    /// Snapshots that got a new content generation in this session.
    pub(super) touched_snapshots: HashSet<u64>,
    /// Snapshots that are open.
    pub(super) users: Users,
    /// A full store fails what is being done rather than give up any snapshot.
    pub(super) keeps_snapshots: bool,
    /// Whoever reads tables as they were: what they name is not used for anything else.
    pub(super) pins: Pins,
    /// Checkpoints and sweeps that are merely due are made by somebody else.
    pub(super) attended: bool,
    /// A checkpoint is being made apart from these tables: what was entered since, with its promised segment.
    pub(super) since: Option<Vec<(usize, Record)>>,
}

/// Whether a record may use the space kept for deletes and repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Leaves the reserve alone.
    Ordinary,
    /// May use it.
    Reserve,
}

/// A record to be appended.
pub(super) struct Draft {
    pub kind: RecordKind,
    pub epoch: u64,
    pub entries: Vec<Entry>,
    pub body: Vec<u8>,
    /// The entries' data, each padded to the block size.
    pub data: Vec<u8>,
}

impl Draft {
    /// A record without chunks.
    pub fn plain(kind: RecordKind, epoch: u64, body: Vec<u8>) -> Self {
        Self { kind, epoch, entries: Vec::new(), body, data: Vec::new() }
    }

    /// Bytes that its record takes in the log.
    pub fn length(&self, block_bits: u32) -> u64 {
        Record::header_length(self.entries.len(), self.body.len(), block_bits) + self.data.len() as u64
    }
}

/// A record that was made for the end of the log, and its bytes.
pub(super) struct Composed {
    at: usize,
    record: Record,
    bytes: Vec<u8>,
}

impl Composed {
    /// Writes it where it belongs.
    pub fn write(&self, device: &dyn WriteAt) -> Result<()> {
        device.write_at(&self.bytes, self.record.address)
    }
}

pub(super) fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::io("cannot get random bytes", error.into()))?;
    Ok(u64::from_le_bytes(bytes))
}

impl Writer {
    /// Opens a store for writing: recovers, and starts a new incarnation with its first record. `origin` is
    /// needed by operations that touch it. `now_secs` stamps records and events.
    ///
    /// # Errors
    /// As [`View::open`]; `Kind::Refused` if an upgrade in place made it and nobody has committed it.
    pub fn open(store: Arc<dyn WriteAt>, origin: Option<Arc<dyn WriteAt>>, now_secs: i64) -> Result<Self> {
        switch::ensure_settled(store.as_ref())?;
        let superblocks = Superblocks::read(store.as_ref());
        let agree = superblocks.agree();
        let state = recover::load(store.as_ref())?;
        if !agree {
            // Until both copies say the same, space freed by the newer one must not be used.
            store.flush()?;
            publish::write_superblocks(store.as_ref(), &state.sb)?;
        }
        let mut writer = Self::adopt(store, state, now_secs)?;
        writer.remove_leftovers()?;
        match origin {
            Some(origin) => writer.with_origin(origin),
            None => Ok(writer),
        }
    }

    /// A writer of a store whose tables are known.
    pub(super) fn adopt(store: Arc<dyn WriteAt>, state: State, now_secs: i64) -> Result<Self> {
        let last_fingerprint = state.fingerprint.clone();
        let unclean = last_fingerprint.is_none();
        let reader = Arc::new(BlockReader::new(as_reader(&store)));
        Ok(Self {
            view: View { device: as_reader(&store), origin: None, state, reader },
            device: store,
            origin: None,
            now_secs,
            incarnation: random_u64()?,
            started: false,
            published: false,
            // A session that was not closed may have left writes that nobody flushed, even if this one adds none.
            origin_dirty: unclean,
            origin_touched: false,
            touched_at: 0,
            failure: None,
            last_fingerprint,
            copied: Copied::default(),
            writing: None,
            touched_snapshots: HashSet::new(),
            users: Users::default(),
            keeps_snapshots: false,
            pins: Pins::default(),
            attended: false,
            since: None,
        })
    }

    /// The same store with its origin, which can be looked for once the store has said where it is.
    ///
    /// # Errors
    /// As [`View::with_origin`]; `Kind::Io`.
    pub fn with_origin(self, origin: Arc<dyn WriteAt>) -> Result<Self> {
        let is_changed = origin_changed(&self.view.state, origin.as_ref())?;
        self.with_known_origin(origin, is_changed, false)
    }

    /// As [`Writer::with_origin`], for an origin that others write past the store where no server is inserted beneath
    /// them. `is_inserted`: one has been since the store was last open.
    ///
    /// # Errors
    /// As [`Writer::with_origin`].
    pub fn with_origin_beneath(self, origin: Arc<dyn WriteAt>, is_inserted: bool) -> Result<Self> {
        let is_changed = fingerprint_differs(&self.view.state, origin.as_ref())? || !is_inserted;
        self.with_known_origin(origin, is_changed, true)
    }

    fn with_known_origin(
        mut self,
        origin: Arc<dyn WriteAt>,
        is_changed: bool,
        unwatched: bool,
    ) -> Result<Self> {
        self.view.origin = Some(as_reader(&origin));
        self.origin = Some(origin);
        let state = &self.view.state;
        if is_changed && (!state.snapshots.is_empty() || state.volume.equals.is_some()) {
            self.taint(true)?;
        }
        // Only then: a snapshot that is not tainted is one that was made since, or seen all the time.
        if self.view.state.volume.unwatched != unwatched {
            let volume = Volume { unwatched, ..self.view.state.volume.clone() };
            self.log_volume(&volume)?;
        }
        Ok(self)
    }

    /// What can be read of it now.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn block(&self) -> u64 {
        u64::from(self.view.state.sb.block_size())
    }

    pub(super) fn ensure_sound(&self) -> Result<()> {
        match &self.failure {
            Some(why) => {
                let what = format!("an earlier write failed ({why}); open the store again to recover it");
                Err(Error::new(Kind::Io, what).at_path(self.device.path()))
            }
            None => Ok(()),
        }
    }

    /// What became of a write: a failed one is remembered, the first for good.
    pub(super) fn remember<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.failure.get_or_insert_with(|| error.what().to_owned());
        }
        outcome
    }

    /// True if a record of `length` bytes fits into the promised log, with the reserve kept if `need` says so.
    pub(super) fn fits(&self, length: u64, need: Need) -> bool {
        let state = &self.view.state;
        let keep = match need {
            Need::Ordinary => LOG_RESERVE_BLOCKS * self.block(),
            Need::Reserve => 0,
        };
        let open = if self.started { 0 } else { self.block() };
        let here = state.chain.left_here(&state.sb).saturating_sub(open);
        let ahead = state.chain.segments_ahead().len() as u64 * u64::from(state.sb.segment_size());
        let left = if here >= length { here + ahead } else { ahead };
        left >= length + keep
    }

    /// Appends a record without making it durable. The caller has made sure that it fits.
    pub(super) fn append(&mut self, draft: Draft) -> Result<()> {
        self.ensure_sound()?;
        let outcome = self.start().and_then(|()| self.append_started(draft));
        self.remember(outcome)
    }

    /// Makes it durable that the store is open: whatever happens to the origin from now on, happens under its eyes.
    pub(super) fn begin_session(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        self.ensure_space(self.block(), Need::Reserve)?;
        let outcome = self.start();
        self.remember(outcome)?;
        self.commit()
    }

    /// Writes this incarnation's open record if it is not there yet.
    fn start(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        // What recovery found may still be in the device's cache: the open record builds on it.
        self.device.flush()?;
        self.wipe_remains()?;
        self.started = true;
        let last = self.view.state.chain.position;
        self.view.state.durable = last.sequence;
        let mut body = Vec::new();
        put(&mut body, &RawOpen { incarnation: U64::new(last.incarnation), end: U64::new(last.sequence) });
        // Nobody who replays the log needs it again; who has lost every checkpoint does.
        let mut volume = Vec::new();
        self.view.state.volume.encode(&mut volume);
        if index(Record::header_length(0, body.len() + volume.len(), 0)) <= index(self.block()) {
            body.append(&mut volume);
        }
        let epoch = self.view.state.epoch;
        self.append_started(Draft::plain(RecordKind::Open, epoch, body))
    }

    /// Makes what a crash left half written at the log's end unrecognisable: the next record, torn in its turn,
    /// must not complete it.
    fn wipe_remains(&self) -> Result<()> {
        let state = &self.view.state;
        let Some((_, address)) = state.chain.next_place(&state.sb) else { return Ok(()) };
        let mut block = vec![0; state.sb.block_size() as usize];
        self.device.read_at(&mut block, address)?;
        if Record::peek(&block, address, state.sb.uuid).is_none() {
            return Ok(());
        }
        block.fill(0xff);
        self.device.write_at(&block, address)?;
        self.device.flush()
    }

    fn append_started(&mut self, draft: Draft) -> Result<()> {
        if let Some(skip) = self.skip_before(&draft) {
            self.write_record(skip)?;
        }
        self.write_record(draft)
    }

    /// What must end the segment first if `draft` does not fit what is left of it.
    pub(super) fn skip_before(&self, draft: &Draft) -> Option<Draft> {
        let sb = &self.view.state.sb;
        let left = self.view.state.chain.left_here(sb);
        let skips = draft.length(sb.block_bits) > left && left >= self.block();
        skips.then(|| Draft::plain(RecordKind::Skip, draft.epoch, Vec::new()))
    }

    fn write_record(&mut self, draft: Draft) -> Result<()> {
        let composed = self.compose(draft)?;
        composed.write(self.device.as_ref())?;
        self.enter(composed)
    }

    /// Makes a record of `draft` that belongs at the end of the log.
    pub(super) fn compose(&self, draft: Draft) -> Result<Composed> {
        let state = &self.view.state;
        let (at, address) = state
            .chain
            .next_place(&state.sb)
            .ok_or_else(|| Error::new(Kind::NoSpace, "the log has no segment left"))?;
        let jump = if draft.kind == RecordKind::Open { OPEN_JUMP } else { 1 };
        let mut record = Record {
            address,
            sequence: state.chain.position.sequence + jump,
            incarnation: self.incarnation,
            durable: state.durable,
            epoch: draft.epoch,
            time_secs: self.now_secs,
            previous_crc: state.chain.position.crc,
            kind: draft.kind,
            entries: draft.entries,
            body: draft.body,
            header_length: 0,
            data_length: 0,
            crc: 0,
        };
        for entry in record.entries.iter_mut().filter(|entry| entry.sequence == 0) {
            entry.sequence = record.sequence;
        }
        let mut bytes = record.encode(&state.sb);
        let end = super::chain::segment_end(&state.sb, state.chain.promised.get(at).copied().unwrap_or(0));
        if draft.data.len() as u64 != u64::from(record.data_length) || address + record.length() > end {
            return Err(Error::new(Kind::NoSpace, "the record does not fit its segment"));
        }
        bytes.extend_from_slice(&draft.data);
        Ok(Composed { at, record, bytes })
    }

    /// Brings the tables up to date with a record that was written.
    pub(super) fn enter(&mut self, composed: Composed) -> Result<()> {
        self.view.state.apply(composed.at, &composed.record)?;
        if let Some(since) = &mut self.since {
            since.push((composed.at, composed.record));
        }
        Ok(())
    }

    /// Makes every appended record durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.ensure_sound()?;
        let outcome = self.device.flush();
        self.remember(outcome)?;
        self.view.state.durable = self.view.state.chain.position.sequence;
        Ok(())
    }

    /// Makes a checkpoint.
    pub(super) fn checkpoint(&mut self, plan: Plan) -> Result<()> {
        self.checkpoint_with(plan, |_| {})
    }

    /// Makes a checkpoint of tables that `change` has changed.
    pub(super) fn checkpoint_with(&mut self, plan: Plan, change: impl FnOnce(&mut State)) -> Result<()> {
        self.ensure_sound()?;
        if self.since.is_some() {
            return Err(Error::new(Kind::Busy, "a checkpoint is being made already"));
        }
        let keep = self.pins.oldest();
        let View { state, reader, .. } = &mut self.view;
        // Made on a copy: half of a failed checkpoint would let the view take what is preserved for absent and
        // read the origin's newer bytes instead.
        let mut next = state.clone();
        next.keep = keep;
        change(&mut next);
        let outcome = publish::publish(self.device.as_ref(), reader, &mut next, plan);
        if outcome.is_ok() {
            *state = next;
            self.published = true;
        }
        self.remember(outcome)
    }

    /// Appends a record without chunks that may use the reserve, and makes it durable.
    pub(super) fn log(&mut self, kind: RecordKind, body: Vec<u8>) -> Result<()> {
        let length = Record::header_length(0, body.len(), self.view.state.sb.block_bits);
        self.ensure_space(length, Need::Reserve)?;
        let epoch = self.view.state.epoch;
        self.append(Draft::plain(kind, epoch, body))?;
        self.commit()
    }

    /// Sets what happens when the store is full.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn set_full_policy(&mut self, policy: FullPolicy) -> Result<()> {
        let mut volume = self.view.state.volume.clone();
        volume.squash_when_full = policy == FullPolicy::Squash;
        self.log_volume(&volume)
    }

    /// Appends and commits what is now known of the volume.
    pub(super) fn log_volume(&mut self, volume: &Volume) -> Result<()> {
        let mut body = Vec::new();
        volume.encode(&mut body);
        self.log(RecordKind::Volume, body)
    }

    /// Runs `work`, in which a full store fails rather than give up a snapshot.
    pub(super) fn sparing<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.keeps_snapshots = true;
        let outcome = work(self);
        self.keeps_snapshots = false;
        outcome
    }

    /// Accepts that the origin was changed behind the store's back: clears every taint.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn accept_taint(&mut self) -> Result<()> {
        self.taint(false)
    }

    fn taint(&mut self, set: bool) -> Result<()> {
        let mut body = Vec::new();
        put(&mut body, &RawTaint { up_to: U64::new(self.view.state.epoch), set: U64::new(u64::from(set)) });
        self.log(RecordKind::Taint, body)
    }

    /// Flushes the origin if it was written.
    pub(super) fn flush_origin(&mut self) -> Result<()> {
        if let Some(origin) = self.origin.as_ref().filter(|_| self.origin_dirty) {
            origin.flush()?;
            self.origin_dirty = false;
        }
        Ok(())
    }

    /// Flushes everything, marks the store cleanly closed.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn close(mut self) -> Result<()> {
        self.flush_origin()?;
        // After a session that was not closed even one that changed nothing leaves a mark: until a later record
        // claims the last one durable, damage to it would pass for a torn tail.
        if !self.started && !self.published && self.last_fingerprint.is_some() {
            return self.ensure_sound();
        }
        // The next session replays what is left here before it does anything.
        if self.view.state.log_records >= CLOSE_RECORDS {
            self.checkpoint_if_possible(PLAIN)?;
        }
        let fingerprint = match &self.origin {
            Some(origin) => Some(fingerprint::take(origin.as_ref(), self.view.state.volume.origin_size)?),
            None => self.last_fingerprint.clone(),
        };
        let mut body = Vec::new();
        encode_fingerprint(fingerprint.as_ref(), &mut body);
        match self.ensure_space(self.block(), Need::Reserve) {
            // A mark that does not fit costs the comparison at the next open.
            Err(error) if error.kind() == Kind::NoSpace => {}
            other => {
                other?;
                let epoch = self.view.state.epoch;
                self.append(Draft::plain(RecordKind::Idle, epoch, body))?;
                publish::mark_end(self.device.as_ref(), &self.view.state)?;
            }
        }
        // Nothing in the log claims its last records durable; without this their loss would pass for a torn tail.
        let state = &mut self.view.state;
        if state.sb.durable < state.durable {
            state.sb.durable = state.durable;
            publish::note_durable(self.device.as_ref(), &state.sb)?;
        }
        Ok(())
    }
}

/// The same device, for reading.
pub(super) fn as_reader(device: &Arc<dyn WriteAt>) -> Arc<dyn ReadAt> {
    Arc::<dyn WriteAt>::clone(device)
}
