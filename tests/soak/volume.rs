//! A volume as it ought to be, as it is found, and what may lie between the two when a command was killed.

use crate::harness::Dir;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How every command names the volume. A copy of the folder is a volume of its own.
pub const VOL: &str = "data.snap --origin data.img";

/// A snapshot as it ought to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Snap {
    pub tag: u64,
    pub name: Option<String>,
    pub bytes: Arc<Vec<u8>>,
    pub priority: i64,
    pub use_count: u64,
    pub holds: BTreeSet<String>,
}

impl Snap {
    fn is_in_use(&self) -> bool {
        self.use_count > 0 || !self.holds.is_empty()
    }
}

/// A volume as it ought to be.
#[derive(Clone)]
pub struct Volume {
    pub origin: Arc<Vec<u8>>,
    /// Oldest first.
    pub snaps: Vec<Snap>,
    pub policy: String,
    /// An operation on the origin was begun and not ended.
    pub pending: bool,
    /// The store may run full: it may give up snapshots, and commands may fail.
    pub tight: bool,
}

/// Reads everything that there is to know of the volume in `dir`, through the program.
pub fn observe(dir: &Dir, tight: bool) -> Volume {
    let status = dir.ok("status --json data.snap").json();
    let pending = !status["pending"].is_null();
    let snaps = status["snapshots"].as_array().unwrap().iter().map(|row| {
        let tag = row["tag"].as_u64().unwrap();
        assert_eq!((&row["tainted"], &row["state"]), (&false.into(), &"normal".into()), "snapshot {tag}");
        let bytes = dir.ok(&format!("read {VOL} {tag}")).stdout;
        assert_eq!(bytes.len() as u64, row["size_bytes"].as_u64().unwrap(), "snapshot {tag}");
        Snap {
            tag,
            name: row["name"].as_str().map(ToString::to_string),
            bytes: Arc::new(bytes),
            priority: row["priority"].as_i64().unwrap(),
            use_count: row["use_count"].as_u64().unwrap(),
            holds: row["holds"].as_array().unwrap().iter().map(|h| h.as_str().unwrap().to_owned()).collect(),
        }
    });
    let snaps = snaps.collect();
    if pending {
        dir.run(&format!("read {VOL} origin --length 1")).expect(5);
    }
    let insist = if pending { "--accept-incomplete" } else { "" };
    let origin = dir.ok(&format!("read {VOL} origin {insist}")).stdout;
    assert_eq!(origin.len() as u64, status["origin"]["size_bytes"].as_u64().unwrap());
    assert!(dir.read("data.img").starts_with(&origin), "the origin is not what its file holds");
    let policy = status["store"]["full_policy"].as_str().unwrap().to_owned();
    Volume { origin: Arc::new(origin), snaps, policy, pending, tight }
}

/// What a command may leave of the volume that was `before` it, however far it came.
pub enum Promise {
    /// One of these, whole.
    OneOf(Vec<Volume>),
    /// Bytes of the origin, or of the snapshot with this tag, up to some place.
    Written { tag: Option<u64>, offset: usize, data: Vec<u8> },
    /// The origin as it was, or these bytes; while it is pending, any of both.
    Operation(Arc<Vec<u8>>),
    /// The old store, the remains of it, or a new one without snapshots.
    NewStore,
}

impl Promise {
    /// Nothing of the volume changes.
    pub fn nothing(before: &Volume) -> Self {
        Self::OneOf(vec![before.clone()])
    }

    /// The volume before, or this.
    pub fn change(before: &Volume, after: Volume) -> Self {
        Self::OneOf(vec![before.clone(), after])
    }

    /// The volume when the command has come to its end.
    pub fn end(&self, before: &Volume) -> Volume {
        let mut end = before.clone();
        match self {
            Self::OneOf(states) => end = states.last().unwrap().clone(),
            Self::Written { tag, offset, data } => {
                let bytes = match tag {
                    None => &mut end.origin,
                    Some(tag) => &mut end.snaps.iter_mut().find(|snap| snap.tag == *tag).unwrap().bytes,
                };
                Arc::make_mut(bytes)[*offset..*offset + data.len()].copy_from_slice(data);
            }
            Self::Operation(after) => {
                end.origin = Arc::clone(after);
                end.pending = false;
            }
            Self::NewStore => {
                end.snaps.clear();
                end.policy = "fail".to_owned();
            }
        }
        end
    }

    /// Asserts that a killed command may leave what was found.
    pub fn check(&self, before: &Volume, found: &Volume) {
        let end = self.end(before);
        match self {
            Self::OneOf(states) => {
                let reasons: Vec<String> = states.iter().filter_map(|state| differs(state, found)).collect();
                assert!(reasons.len() < states.len(), "neither old nor new: {reasons:#?}");
            }
            Self::Written { tag, .. } => {
                assert!(!found.pending, "a write is no operation");
                check_same_table(before, &end, found, *tag);
                if tag.is_none() {
                    check_cut(&before.origin, &end.origin, &found.origin, "the origin");
                }
            }
            Self::Operation(_) if found.pending => {
                check_same_table(before, &end, found, None);
                let sizes = [before.origin.len(), end.origin.len()];
                assert!(sizes.contains(&found.origin.len()), "{} bytes, never {sizes:?}", found.origin.len());
                for (at, byte) in found.origin.iter().enumerate().take(*sizes.iter().min().unwrap()) {
                    let known = [before.origin[at], end.origin[at]].contains(byte);
                    assert!(known, "byte {at} of the origin is neither old nor new");
                }
            }
            Self::Operation(_) => {
                let was = Volume { pending: false, ..before.clone() };
                let reasons = [differs(&was, found), differs(&end, found)];
                assert!(reasons.iter().any(Option::is_none), "neither old nor new: {reasons:#?}");
            }
            Self::NewStore => {
                let reasons = [differs(before, found), differs(&end, found)];
                assert!(reasons.iter().any(Option::is_none), "neither old nor new: {reasons:#?}");
            }
        }
    }
}

/// Asserts that a complete command has left what it should.
pub fn assert_is(expected: &Volume, found: &Volume) {
    if let Some(reason) = differs(expected, found) {
        panic!("{reason}");
    }
}

/// Why `found` is not `expected`, but for what a full store may have given up.
fn differs(expected: &Volume, found: &Volume) -> Option<String> {
    if expected.pending != found.pending || expected.policy != found.policy {
        return Some(format!("pending: {}, policy: {}", found.pending, found.policy));
    }
    if let Some(reason) = table_differs(expected, found) {
        return Some(reason);
    }
    let bytes = found.snaps.iter().map(|snap| (format!("snapshot {}", snap.tag), &snap.bytes));
    for (name, bytes) in bytes.chain([("the origin".to_owned(), &found.origin)]) {
        let snap = expected.snaps.iter().find(|snap| name == format!("snapshot {}", snap.tag));
        let wanted = snap.map_or(&expected.origin, |snap| &snap.bytes);
        if wanted != bytes {
            return Some(format!("{name} is another: {}", first_difference(wanted, bytes)));
        }
    }
    None
}

fn table_differs(expected: &Volume, found: &Volume) -> Option<String> {
    let row = |snap: &Snap| Snap { bytes: Arc::default(), ..snap.clone() };
    let rows: Vec<Snap> = found.snaps.iter().map(row).collect();
    let kept = |snap: &&Snap| rows.iter().any(|row| row.tag == snap.tag);
    let lost = expected.snaps.iter().filter(|snap| !kept(snap));
    let allowed = |snap: &Snap| expected.tight && !snap.is_in_use();
    if let Some(snap) = lost.clone().find(|snap| !allowed(snap)) {
        return Some(format!("snapshot {} is lost", snap.tag));
    }
    let wanted: Vec<Snap> = expected.snaps.iter().filter(kept).map(row).collect();
    (wanted != rows).then(|| "the table of snapshots is another".to_owned())
}

/// Asserts that nothing but the bytes of one point is another; the snapshot `tag` may be cut between both.
fn check_same_table(before: &Volume, end: &Volume, found: &Volume, tag: Option<u64>) {
    let reason = table_differs(before, found);
    assert!(reason.is_none(), "{reason:?}");
    for snap in &found.snaps {
        let bytes = |volume: &Volume| {
            let snap = volume.snaps.iter().find(|other| other.tag == snap.tag);
            Arc::clone(&snap.unwrap().bytes)
        };
        let (old, new) = (bytes(before), bytes(end));
        let what = format!("snapshot {}", snap.tag);
        if Some(snap.tag) == tag {
            check_cut(&old, &new, &snap.bytes, &what);
        } else {
            assert!(snap.bytes == old, "{what}: {}", first_difference(&old, &snap.bytes));
        }
    }
    if tag.is_some() {
        assert!(
            before.origin == found.origin,
            "the origin: {}",
            first_difference(&before.origin, &found.origin)
        );
    }
}

/// Asserts that `found` is `new` up to some place, and `old` from there on.
fn check_cut(old: &[u8], new: &[u8], found: &[u8], what: &str) {
    assert_eq!(found.len(), old.len(), "{what}");
    let cut = found.iter().zip(new).take_while(|(a, b)| a == b).count();
    assert!(
        found[cut..] == old[cut..],
        "{what}, new up to byte {cut}: {}",
        first_difference(&old[cut..], &found[cut..])
    );
}

fn first_difference(wanted: &[u8], found: &[u8]) -> String {
    let at = wanted.iter().zip(found).position(|(a, b)| a != b);
    let count = wanted.iter().zip(found).filter(|(a, b)| a != b).count();
    format!("{} bytes against {}, {count} differ, first at {at:?}", found.len(), wanted.len())
}
