//! The snapshot table: create, delete, attributes.

use super::state::encode_deletion;
use super::view::describe;
use super::writer::{Draft, Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::record::{Record, RecordKind};
use crate::format::table::{Deletion, HOLD_MAX, HOLDS_MAX, NAME_MAX, Snapshot};
use crate::point::volume::{Administer, Change, Changed, SnapshotInfo, StoreInfo};
use crate::point::{Identity, Point, PointId};
use crate::units::{Epoch, Tag};

impl Writer {
    /// Makes a snapshot of the origin as it is now; durable when this returns.
    ///
    /// # Errors
    /// `Kind::Exists` if the tag or name is taken, `Kind::Busy` while a long operation is pending,
    /// `Kind::NoSpace`.
    pub fn create_snapshot(&mut self, tag: Tag, name: Option<&str>) -> Result<SnapshotInfo> {
        if tag == Tag::ORIGIN {
            return Err(Error::new(Kind::Usage, format!("tag {tag} stands for the origin")));
        }
        let name = name.unwrap_or("");
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::Usage, format!("name has {} bytes, at most 255 fit", name.len())));
        }
        self.ensure_idle()?;
        for snapshot in self.view.state.snapshots.values().filter(|snapshot| !snapshot.hidden) {
            if snapshot.tag == tag.0 {
                return Err(Error::new(Kind::Exists, format!("snapshot {tag} exists already")));
            }
            if !name.is_empty() && snapshot.name == name {
                return Err(Error::new(Kind::Exists, format!("a snapshot named {name} exists already")));
            }
        }
        let snapshot = self.new_snapshot(tag.0, name, false);
        let mut body = Vec::new();
        snapshot.encode(&mut body);
        let length = Record::header_length(0, body.len(), self.view.state.sb.block_bits);
        self.ensure_space(length, Need::Ordinary)?;
        self.begin_epoch(RecordKind::Create, snapshot.id, body)?;
        let made = self.view.state.snapshots.get(&snapshot.id).unwrap_or(&snapshot);
        Ok(describe(made))
    }

    pub(super) fn new_snapshot(&self, tag: u32, name: &str, hidden: bool) -> Snapshot {
        Snapshot {
            id: self.view.state.epoch + 1,
            tag,
            name: name.to_string(),
            use_count: 0,
            size_bytes: self.view.state.volume.origin_size,
            created_secs: self.now_secs,
            generation: 0,
            created_at: 0,
            created_sequence: 0,
            priority: 0,
            squashed: false,
            tainted: false,
            hidden,
            holds: Vec::new(),
        }
    }

    /// Appends and commits a record that begins epoch `epoch`: what was written before is durable first.
    pub(super) fn begin_epoch(&mut self, kind: RecordKind, epoch: u64, body: Vec<u8>) -> Result<()> {
        if let Some(origin) = &self.origin {
            origin.flush()?;
            self.origin_dirty = false;
        }
        self.append(Draft::plain(kind, epoch, body))?;
        self.commit()?;
        self.copied.clear();
        Ok(())
    }

    /// Makes a hidden snapshot of the origin as it is now, and names what it holds as the origin.
    pub(super) fn freeze(&mut self) -> Result<Point> {
        self.ensure_idle()?;
        let hidden = self.new_snapshot(u32::MAX, "", true);
        let mut body = Vec::new();
        hidden.encode(&mut body);
        self.ensure_space(
            Record::header_length(0, body.len(), self.view.state.sb.block_bits),
            Need::Ordinary,
        )?;
        self.begin_epoch(RecordKind::Create, hidden.id, body)?;
        // The next write makes the origin something else than what is frozen.
        self.origin_touched = false;
        let volume = &self.view.state.volume;
        Ok(Point {
            id: PointId::Snapshot(Epoch(hidden.id)),
            tag: Tag::ORIGIN,
            name: None,
            size_bytes: hidden.size_bytes,
            created_secs: 0,
            identity: Identity { volume: volume.volume, id: u64::MAX, generation: volume.generation },
        })
    }

    /// Removes a hidden snapshot, whose deletion makes `dead` index entries dead, if it is still there.
    pub(super) fn thaw(&mut self, id: Epoch, dead: u64) -> Result<()> {
        if !self.frozen().contains(&id.0) {
            return Ok(());
        }
        let deletion = Deletion { id: id.0, automatic: false, squashed: false, reason: String::new() };
        self.log_counted(&deletion, dead)
    }

    /// Hidden snapshots but that of a long operation.
    pub(super) fn frozen(&self) -> Vec<u64> {
        let state = &self.view.state;
        let before = state.operation.as_ref().map(|operation| operation.before);
        let hidden = state.snapshots.values().filter(|snapshot| snapshot.hidden && !snapshot.squashed);
        hidden.map(|snapshot| snapshot.id).filter(|id| Some(*id) != before).collect()
    }

    /// Removes what whoever froze the origin left behind.
    pub(super) fn remove_leftovers(&mut self) -> Result<()> {
        for id in self.frozen() {
            let dead = self.view.count_dead(id)?;
            self.thaw(Epoch(id), dead)?;
        }
        Ok(())
    }

    /// Deletes a snapshot; durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Busy` if its use count is not zero, it is held or pinned.
    pub fn delete_snapshot(&mut self, id: Epoch) -> Result<()> {
        self.ensure_deletable(id)?;
        self.log_deletion(id, false, false, String::new())?;
        self.sweep_if_due()
    }

    /// Refuses to delete a snapshot that somebody needs.
    pub(super) fn ensure_deletable(&self, id: Epoch) -> Result<()> {
        let snapshot = self.table_entry(id)?;
        let tag = snapshot.tag;
        if snapshot.use_count > 0 {
            return Err(Error::new(
                Kind::Busy,
                format!("snapshot {tag} has use count {}", snapshot.use_count),
            )
            .hint("lower it with `ddsnap usecount` first"));
        }
        if let Some(name) = snapshot.holds.first() {
            return Err(Error::new(Kind::Busy, format!("snapshot {tag} is held for '{name}'"))
                .hint("let go of it with `ddsnap release` first"));
        }
        if self.users.uses(id.0) {
            return Err(Error::new(Kind::Busy, format!("snapshot {tag} is open"))
                .hint("end the clients that use it first"));
        }
        if self.view.state.operation.as_ref().is_some_and(|operation| operation.pinned == id.0) {
            return Err(Error::new(
                Kind::Busy,
                format!("snapshot {tag} is needed by an incomplete operation"),
            ));
        }
        Ok(())
    }

    /// Appends and commits the deletion (or squash) of `id`.
    pub(super) fn log_deletion(
        &mut self,
        id: Epoch,
        automatic: bool,
        squashed: bool,
        reason: String,
    ) -> Result<()> {
        let dead = self.view.count_dead(id.0)?;
        self.log_counted(&Deletion { id: id.0, automatic, squashed, reason }, dead)
    }

    /// Appends and commits a deletion that makes `dead` index entries dead, more or less: that only says when a sweep
    /// is due.
    pub(super) fn log_counted(&mut self, deletion: &Deletion, dead: u64) -> Result<()> {
        let mut body = Vec::new();
        encode_deletion(deletion, dead, &mut body);
        self.log(RecordKind::Delete, body)?;
        self.copied.clear();
        Ok(())
    }

    fn table_entry(&self, id: Epoch) -> Result<&Snapshot> {
        let found = self.view.state.snapshots.get(&id.0).filter(|snapshot| !snapshot.hidden);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no snapshot with id {id}")))
    }

    pub(super) fn log_attributes(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut body = Vec::new();
        snapshot.encode(&mut body);
        self.log(RecordKind::Attributes, body)
    }

    /// Sets a priority. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn set_priority(&mut self, id: Epoch, priority: i8) -> Result<()> {
        let snapshot = Snapshot { priority, ..self.table_entry(id)?.clone() };
        self.log_attributes(&snapshot)
    }

    /// Adds `diff` to a use count and returns the new one. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Usage` if it would leave 0..=65535.
    pub fn add_use_count(&mut self, id: Epoch, diff: i32) -> Result<u32> {
        let snapshot = self.table_entry(id)?.clone();
        let count = i64::from(snapshot.use_count) + i64::from(diff);
        let use_count = u16::try_from(count).map(u32::from).map_err(|_| {
            Error::new(Kind::Usage, format!("use count would be {count}, expected 0 to 65535"))
        })?;
        if diff != 0 {
            self.log_attributes(&Snapshot { use_count, ..snapshot })?;
        }
        Ok(use_count)
    }

    /// Holds a snapshot for `name`: it is not deleted while somebody holds it. Durable when this returns; false if
    /// it was held for that name already.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Usage` if the name is empty or longer than 64 bytes, or there are 100 holds.
    pub fn hold(&mut self, id: Epoch, name: &str) -> Result<bool> {
        let mut snapshot = self.table_entry(id)?.clone();
        if name.is_empty() || name.len() > HOLD_MAX {
            let what = format!("the name of a hold has {} bytes, expected 1 to {HOLD_MAX}", name.len());
            return Err(Error::new(Kind::Usage, what));
        }
        let Err(at) = snapshot.holds.binary_search_by(|hold| hold.as_str().cmp(name)) else {
            return Ok(false);
        };
        if snapshot.holds.len() >= HOLDS_MAX {
            return Err(Error::new(Kind::Usage, format!("snapshot {} has {HOLDS_MAX} holds", snapshot.tag)));
        }
        snapshot.holds.insert(at, name.to_owned());
        self.log_attributes(&snapshot).map(|()| true)
    }

    /// Lets go of a snapshot that is held for `name`. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound` if there is no such snapshot or hold.
    pub fn release(&mut self, id: Epoch, name: &str) -> Result<()> {
        let mut snapshot = self.table_entry(id)?.clone();
        let before = snapshot.holds.len();
        snapshot.holds.retain(|hold| hold != name);
        if snapshot.holds.len() == before {
            let what = format!("snapshot {} is not held for '{name}'", snapshot.tag);
            return Err(Error::new(Kind::NotFound, what));
        }
        self.log_attributes(&snapshot)
    }

    /// Holds what the target `name` needs while it goes from `from` (`None`: from nothing) to `to`: both are held,
    /// and what is older than `from` is let go of, for a target that takes a delta from there has come so far.
    ///
    /// # Errors
    /// As [`Writer::hold`].
    pub fn move_hold(&mut self, name: &str, from: Option<Epoch>, to: Epoch) -> Result<()> {
        for id in from.into_iter().chain([to]) {
            self.hold(id, name)?;
        }
        let Some(from) = from else { return Ok(()) };
        let older = self.view.state.snapshots.range(..from.0.min(to.0));
        let held = older.filter(|(_, snapshot)| snapshot.holds.iter().any(|hold| hold == name));
        let held: Vec<u64> = held.map(|(id, _)| *id).collect();
        held.into_iter().try_for_each(|id| self.release(Epoch(id), name))
    }
}

impl Administer for Writer {
    fn info(&self) -> Result<StoreInfo> {
        Ok(self.view.info())
    }

    fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.view.snapshots())
    }

    fn change(&mut self, change: &Change) -> Result<Changed> {
        let done = |()| Changed::Done;
        match change {
            Change::Create { tag, name } => {
                self.create_snapshot(*tag, name.as_deref()).map(Changed::Snapshot)
            }
            Change::Delete(id) => self.delete_snapshot(*id).map(done),
            Change::Priority(id, priority) => self.set_priority(*id, *priority).map(done),
            Change::UseCount(id, diff) => self.add_use_count(*id, *diff).map(Changed::UseCount),
            Change::Hold(id, name) => self.hold(*id, name).map(Changed::New),
            Change::Release(id, name) => self.release(*id, name).map(done),
            Change::MoveHold { name, from, to } => self.move_hold(name, *from, *to).map(done),
            Change::FullPolicy(policy) => self.set_full_policy(*policy).map(done),
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        Self::close(*self)
    }
}
