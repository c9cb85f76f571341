//! Bodies that log records and checkpoints share: snapshots, the volume, operations, fingerprints.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use crate::error::{Error, Result};
use crate::units::Uuid;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest snapshot name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest name of a hold in bytes.
pub const HOLD_MAX: usize = 64;
/// Most holds of a snapshot.
pub const HOLDS_MAX: usize = 100;
/// Longest path, label or reason in bytes.
pub const TEXT_MAX: usize = 4096;

raw_struct! {
    /// A snapshot. Followed by its name and its holds.
    pub struct RawSnapshot, "Snapshot", 64 {
        id: U64, "u64", "internal id: the epoch its creation began; never reused";
        tag: U32, "u32", "the user's tag";
        use_count: U32, "u32", "users that need it";
        size: U64, "u64 bytes", "size of the origin when it was made";
        created: I64, "i64 seconds", "time of creation since 1970 UTC";
        generation: U64, "u64", "content generation";
        created_at: U64, "u64 bytes", "address of the record that made it; 0 if unknown";
        created_sequence: U64, "u64", "sequence of that record";
        flags: U32, "u32 bits", "1 squashed, 2 tainted, 4 hidden";
        priority: i8, "i8", "-128 to 127; higher survives longer";
        name_length: u8, "u8 bytes", "length of the name that follows";
        holds: u8, "u8", "number of holds that follow the name: each a length (u8), then so many bytes";
        reserved: u8, "u8", "zero";
    }
}

raw_struct! {
    /// What is known of the volume. Followed by the origin's path.
    pub struct RawVolume, "Volume", 80 {
        volume: [u8; 16], "uuid", "identifies the volume";
        origin_size: U64, "u64 bytes", "size of the origin";
        policy: U64, "u64", "when full: 0 fail the write, 1 squash";
        generation: U64, "u64", "content generation of the origin";
        equals_volume: [u8; 16], "uuid", "the origin equals this point: its volume";
        equals_id: U64, "u64", "its id";
        equals_generation: U64, "u64", "its content generation";
        flags: U32, "u32 bits", "1: the three fields before mean something, 2: others write past the store";
        path_length: U32, "u32 bytes", "length of the path that follows, up to 4096";
    }
}

raw_struct! {
    /// A long operation. Followed by its label.
    pub struct RawOperation, "Long operation", 56 {
        before: U64, "u64", "id of the hidden snapshot that keeps the state before it";
        pinned: U64, "u64", "id of a snapshot it needs; 0 for none";
        token: [u8; 32], "bytes", "names the delta or the plan, so that a resume is recognised";
        label_length: U32, "u32 bytes", "length of the label that follows, up to 4096";
        flags: U32, "u32 bits", "1: forced onto a base that nothing proved";
    }
}

raw_struct! {
    /// What the origin looked like at a clean close.
    pub struct RawFingerprint, "Fingerprint", 64 {
        content: [u8; 32], "blake3", "hash of places that a file system always touches";
        device: U64, "u64", "device number of the origin, or of the file system that holds it";
        inode: U64, "u64", "its inode mixed with its time of birth; a device: the boot and its number in it";
        modified: I64, "i64 ns", "time of modification since 1970; a device: sectors written and discarded";
        flags: U64, "u64 bits", "1: there is a fingerprint";
    }
}

raw_struct! {
    /// Body of an open record. Followed by what is known of the volume.
    pub struct RawOpen, "Open body", 16 {
        incarnation: U64, "u64", "the incarnation before";
        end: U64, "u64", "its last sequence; what it wrote beyond is ignored";
    }
}

raw_struct! {
    /// Body of a delete record. Followed by the reason.
    pub struct RawDelete, "Delete body", 16 {
        id: U64, "u64", "the snapshot";
        flags: U32, "u32 bits", "1: deleted automatically, 2: squashed instead";
        reason_length: U32, "u32 bytes", "length of the reason that follows, up to 4096";
    }
}

raw_struct! {
    /// Body of a taint record.
    pub struct RawTaint, "Taint body", 16 {
        up_to: U64, "u64", "snapshots with ids up to this are concerned";
        set: U64, "u64", "1: tainted, 0: accepted";
    }
}

/// A snapshot table entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Internal id.
    pub id: u64,
    /// The user's tag.
    pub tag: u32,
    /// The user's name; empty for none.
    pub name: String,
    /// Users that need it.
    pub use_count: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Creation time, seconds since 1970 UTC.
    pub created_secs: i64,
    /// Content generation.
    pub generation: u64,
    /// Address of the record that made it; 0 if unknown.
    pub created_at: u64,
    /// Sequence of that record.
    pub created_sequence: u64,
    /// Priority.
    pub priority: i8,
    /// Given up: dead for liveness.
    pub squashed: bool,
    /// The origin changed behind the store's back.
    pub tainted: bool,
    /// Made by a long operation, not by a user.
    pub hidden: bool,
    /// Who needs it, by name, ascending.
    pub holds: Vec<String>,
}

impl Snapshot {
    /// True if somebody needs it: it is neither deleted unasked nor given up before all others.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.use_count > 0 || !self.holds.is_empty()
    }
}

/// What is known of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Identifies it.
    pub volume: Uuid,
    /// Size of the origin in bytes.
    pub origin_size: u64,
    /// True: squash when full; false: fail the write.
    pub squash_when_full: bool,
    /// Content generation of the origin.
    pub generation: u64,
    /// The point the origin is known to equal: volume, id, generation.
    pub equals: Option<(Uuid, u64, u64)>,
    /// Others write the origin past the store where no server is inserted beneath them.
    pub unwatched: bool,
    /// The origin's path.
    pub path: Vec<u8>,
}

/// A long operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The hidden snapshot.
    pub before: u64,
    /// A snapshot it needs; 0 for none.
    pub pinned: u64,
    /// Names the plan.
    pub token: [u8; 32],
    /// Forced onto a base that nothing proved: its result equals nothing that has a name.
    pub forced: bool,
    /// For people.
    pub label: String,
}

/// What the origin looked like at a clean close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of sampled content.
    pub content: [u8; 32],
    /// Device, inode and modification time (ns) of a regular file.
    pub file: Option<(u64, u64, i64)>,
}

/// Appends a raw structure.
pub fn put<T: IntoBytes + Immutable>(out: &mut Vec<u8>, raw: &T) {
    out.extend_from_slice(raw.as_bytes());
}

/// Takes a raw structure from the front of `bytes`.
///
/// # Errors
/// `Kind::Damaged` if too few bytes are left.
pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &mut &[u8]) -> Result<T> {
    let (raw, rest) = T::read_from_prefix(bytes).map_err(|_| Error::damaged("structure is cut short"))?;
    *bytes = rest;
    Ok(raw)
}

/// Takes `length` bytes, at most `max`, from the front of `bytes`.
///
/// # Errors
/// `Kind::Damaged` if too few bytes are left or `length` is over `max`.
pub fn take_bytes<'a>(bytes: &mut &'a [u8], length: usize, max: usize) -> Result<&'a [u8]> {
    let (head, rest) = bytes
        .split_at_checked(length)
        .filter(|_| length <= max)
        .ok_or_else(|| Error::damaged(format!("text of {length} bytes, at most {max} expected")))?;
    *bytes = rest;
    Ok(head)
}

fn take_text(bytes: &mut &[u8], length: u32, max: usize) -> Result<String> {
    let text = take_bytes(bytes, usize::try_from(length).unwrap_or(usize::MAX), max)?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The longest beginning of `text` that has at most `max` bytes.
#[must_use]
pub fn clip(text: &str, max: usize) -> &[u8] {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.as_bytes().get(..end).unwrap_or(&[])
}

fn length_of(bytes: &[u8]) -> U32 {
    U32::new(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

impl Snapshot {
    /// Appends the bytes on disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = u32::from(self.squashed) | u32::from(self.tainted) << 1 | u32::from(self.hidden) << 2;
        let name = clip(&self.name, NAME_MAX);
        put(
            out,
            &RawSnapshot {
                id: U64::new(self.id),
                tag: U32::new(self.tag),
                use_count: U32::new(self.use_count),
                size: U64::new(self.size_bytes),
                created: I64::new(self.created_secs),
                generation: U64::new(self.generation),
                created_at: U64::new(self.created_at),
                created_sequence: U64::new(self.created_sequence),
                flags: U32::new(flags),
                priority: self.priority,
                name_length: u8::try_from(name.len()).unwrap_or(u8::MAX),
                holds: u8::try_from(self.holds.len()).unwrap_or(u8::MAX),
                reserved: 0,
            },
        );
        out.extend_from_slice(name);
        for hold in self.holds.iter().take(usize::from(u8::MAX)) {
            let hold = clip(hold, HOLD_MAX);
            out.push(u8::try_from(hold.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(hold);
        }
    }

    /// Takes one from the front of `bytes`.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is cut short.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let raw: RawSnapshot = take(bytes)?;
        let name = take_text(bytes, u32::from(raw.name_length), NAME_MAX)?;
        let mut holds = Vec::with_capacity(usize::from(raw.holds));
        for _ in 0..raw.holds {
            let length: u8 = take(bytes)?;
            holds.push(take_text(bytes, u32::from(length), HOLD_MAX)?);
        }
        let flags = raw.flags.get();
        Ok(Self {
            holds,
            id: raw.id.get(),
            tag: raw.tag.get(),
            name,
            use_count: raw.use_count.get(),
            size_bytes: raw.size.get(),
            created_secs: raw.created.get(),
            generation: raw.generation.get(),
            created_at: raw.created_at.get(),
            created_sequence: raw.created_sequence.get(),
            priority: raw.priority,
            squashed: flags & 1 != 0,
            tainted: flags & 2 != 0,
            hidden: flags & 4 != 0,
        })
    }
}

impl Volume {
    /// Appends the bytes on disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut raw = RawVolume::new_zeroed();
        raw.volume = self.volume.0;
        raw.origin_size = U64::new(self.origin_size);
        raw.policy = U64::new(u64::from(self.squash_when_full));
        raw.generation = U64::new(self.generation);
        if let Some((volume, id, generation)) = self.equals {
            raw.equals_volume = volume.0;
            raw.equals_id = U64::new(id);
            raw.equals_generation = U64::new(generation);
        }
        raw.flags = U32::new(u32::from(self.equals.is_some()) | u32::from(self.unwatched) << 1);
        raw.path_length = length_of(&self.path);
        put(out, &raw);
        out.extend_from_slice(&self.path);
    }

    /// Takes one from the front of `bytes`.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is cut short.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let raw: RawVolume = take(bytes)?;
        let length = usize::try_from(raw.path_length.get()).unwrap_or(usize::MAX);
        let path = take_bytes(bytes, length, TEXT_MAX)?.to_vec();
        let equals = (Uuid(raw.equals_volume), raw.equals_id.get(), raw.equals_generation.get());
        Ok(Self {
            volume: Uuid(raw.volume),
            origin_size: raw.origin_size.get(),
            squash_when_full: raw.policy.get() == 1,
            generation: raw.generation.get(),
            equals: (raw.flags.get() & 1 != 0).then_some(equals),
            unwatched: raw.flags.get() & 2 != 0,
            path,
        })
    }
}

impl Operation {
    /// Appends the bytes on disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let label = clip(&self.label, TEXT_MAX);
        put(
            out,
            &RawOperation {
                before: U64::new(self.before),
                pinned: U64::new(self.pinned),
                token: self.token,
                label_length: length_of(label),
                flags: U32::new(u32::from(self.forced)),
            },
        );
        out.extend_from_slice(label);
    }

    /// Takes one from the front of `bytes`.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is cut short.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let raw: RawOperation = take(bytes)?;
        let label = take_text(bytes, raw.label_length.get(), TEXT_MAX)?;
        Ok(Self {
            before: raw.before.get(),
            pinned: raw.pinned.get(),
            token: raw.token,
            forced: raw.flags.get() & 1 != 0,
            label,
        })
    }
}

/// Appends an idle record's body.
pub fn encode_fingerprint(fingerprint: Option<&Fingerprint>, out: &mut Vec<u8>) {
    let mut raw = RawFingerprint::new_zeroed();
    if let Some(fingerprint) = fingerprint {
        raw.content = fingerprint.content;
        let (device, inode, modified) = fingerprint.file.unwrap_or((0, 0, 0));
        raw.device = U64::new(device);
        raw.inode = U64::new(inode);
        raw.modified = I64::new(modified);
        raw.flags = U64::new(1);
    }
    put(out, &raw);
}

/// Takes an idle record's body.
///
/// # Errors
/// `Kind::Damaged` if it is cut short.
pub fn decode_fingerprint(mut bytes: &[u8]) -> Result<Option<Fingerprint>> {
    let raw: RawFingerprint = take(&mut bytes)?;
    let file = (raw.inode.get() != 0).then(|| (raw.device.get(), raw.inode.get(), raw.modified.get()));
    Ok((raw.flags.get() & 1 != 0).then_some(Fingerprint { content: raw.content, file }))
}

/// What a delete record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The snapshot.
    pub id: u64,
    /// Not asked for by a user.
    pub automatic: bool,
    /// Kept in the table, but given up.
    pub squashed: bool,
    /// Why, for people.
    pub reason: String,
}

impl Deletion {
    /// Appends the bytes on disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let reason = clip(&self.reason, TEXT_MAX);
        put(
            out,
            &RawDelete {
                id: U64::new(self.id),
                flags: U32::new(u32::from(self.automatic) | u32::from(self.squashed) << 1),
                reason_length: length_of(reason),
            },
        );
        out.extend_from_slice(reason);
    }

    /// Takes one from the front of `bytes`.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is cut short.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let raw: RawDelete = take(bytes)?;
        let reason = take_text(bytes, raw.reason_length.get(), TEXT_MAX)?;
        let flags = raw.flags.get();
        Ok(Self { id: raw.id.get(), automatic: flags & 1 != 0, squashed: flags & 2 != 0, reason })
    }
}
