use super::tests::{make, options, volume};
use super::*;
use crate::block::WriteAt;
use crate::block::faulty::{Faulty, Operation};
use crate::block::memory::Memory;
use crate::error::{Kind, Result};
use crate::format::delta::Encoding;
use crate::point::{Identity, PointId, PointSource};
use crate::progress::Silent;
use crate::store::{InitOptions, View, Writer};
use crate::units::{Epoch, Tag};
use std::sync::Arc;

const SIZE: usize = 100 * 4096 + 1000;
const CHUNK: usize = 4096;

/// A store and its origin, on devices that can fail.
struct Side {
    store: Arc<Faulty<Memory>>,
    origin: Arc<Faulty<Memory>>,
}

impl Side {
    fn new(origin: &[u8]) -> Self {
        let side = Self::over(&Memory::new(16 << 20), &Memory::from_bytes(origin));
        let store: Arc<dyn WriteAt> = Arc::clone(&side.store) as _;
        let options = InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: "/dev/volume".into(),
            origin_size: origin.len() as u64,
            now_secs: 1,
        };
        Writer::initialize(&store, &options).unwrap();
        side.reopened()
    }

    fn over(store: &Memory, origin: &Memory) -> Self {
        Self {
            store: Arc::new(Faulty::new(store.snapshot())),
            origin: Arc::new(Faulty::new(origin.snapshot())),
        }
    }

    /// The same media without the faults: what a reboot finds.
    fn reopened(&self) -> Self {
        Self::over(self.store.inner(), self.origin.inner())
    }

    fn writer(&self) -> Result<Writer> {
        Writer::open(Arc::clone(&self.store) as _, Some(Arc::clone(&self.origin) as _), 2)
    }

    fn view(&self) -> View {
        View::open(Arc::clone(&self.store) as _, Some(Arc::clone(&self.origin) as _)).unwrap()
    }

    fn apply(&self, delta: &[u8], force: bool) -> Result<ApplySummary> {
        let mut writer = self.writer()?;
        let mut input = Input::from_reader(Box::new(std::io::Cursor::new(delta.to_vec())));
        let options = ApplyOptions { force, undo: None, dry_run: false, threads: 2 };
        let summary = apply_to_store(&mut writer, &mut input, &options, &Silent)?;
        writer.close()?;
        Ok(summary)
    }

    fn snapshot(&self, tag: u32) -> Identity {
        let mut writer = self.writer().unwrap();
        let id = writer.create_snapshot(Tag(tag), None).unwrap().id;
        let identity = identity_of(writer.view(), id);
        writer.close().unwrap();
        identity
    }

    fn origin_bytes(&self) -> Vec<u8> {
        self.origin.inner().to_vec().unwrap()
    }

    fn same_media(&self, other: &Self) -> bool {
        self.store.inner().same_content(other.store.inner())
            && self.origin.inner().same_content(other.origin.inner())
    }
}

fn identity_of(view: &View, id: Epoch) -> Identity {
    view.points().into_iter().find(|point| point.id == PointId::Snapshot(id)).unwrap().identity
}

fn bytes_of(view: &View, id: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    view.read(PointId::Snapshot(Epoch(id)), 0, &mut bytes).unwrap();
    bytes
}

fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).position(|(a, b)| a != b).unwrap()
}

fn delta_of(
    view: &View,
    from: Option<Identity>,
    to: Identity,
    encoding: Encoding,
    base_crc: bool,
) -> Vec<u8> {
    let point = |identity: Identity| PointId::Snapshot(Epoch(identity.id));
    let options = CreateOptions { base_crc, ..options(encoding, 2) };
    let mut out = Vec::new();
    create(view, from.map(point), point(to), None, &options, &mut out, &Silent).unwrap();
    out
}

/// A volume with three points 0, 1, 2, made by writes of many sizes.
struct Past {
    side: Side,
    ids: [Identity; 3],
    states: [Vec<u8>; 3],
}

fn past() -> Past {
    let side = Side::new(&volume(SIZE, 5));
    let (mut states, mut ids) = (Vec::new(), Vec::new());
    for round in 0..3u32 {
        let mut writer = side.writer().unwrap();
        for n in 0..u64::from(round.min(1)) * 20 {
            let at = (n * 20_000 + u64::from(round) * 777) % (SIZE as u64 - 9000);
            let data =
                [&[0xaa; 10][..], &[0xbb; 5000], &[0xcc; 3], &[0; 8192]][usize::try_from(n % 4).unwrap()];
            writer.write_origin(at, data).unwrap();
        }
        writer.close().unwrap();
        ids.push(side.snapshot(round));
        states.push(side.origin_bytes());
    }
    Past { side, ids: ids.try_into().unwrap(), states: states.try_into().unwrap() }
}

impl Past {
    fn delta(&self, from: usize, to: usize, encoding: Encoding) -> Vec<u8> {
        delta_of(&self.side.view(), Some(self.ids[from]), self.ids[to], encoding, true)
    }
}

#[test]
fn a_chain_of_deltas_takes_a_store_along() {
    let past = past();
    for encoding in super::tests::ENCODINGS {
        let (first, second) = (past.delta(0, 1, encoding), past.delta(1, 2, encoding));
        let replica = Side::new(&past.states[0]);
        let old = replica.snapshot(70);
        replica.apply(&first, false).unwrap();
        assert!(replica.origin_bytes() == past.states[1], "{encoding:?}");
        let info = replica.view().info();
        assert_eq!(info.origin_equals, Some(past.ids[1]));
        assert!(info.pending.is_none());
        // Who applied it may not know that it was done: once more is no error, and changes nothing.
        assert_eq!(replica.apply(&first, false).unwrap().written_bytes, 0);
        assert_eq!(replica.view().info().origin_equals, Some(past.ids[1]));
        let middle = replica.snapshot(71);
        replica.apply(&second, false).unwrap();
        let view = replica.view();
        assert_eq!(view.info().origin_equals, Some(past.ids[2]));
        assert!(bytes_of(&view, old.id) == past.states[0]);
        assert!(bytes_of(&view, middle.id) == past.states[1]);
        assert!(replica.origin_bytes() == past.states[2]);
        assert_eq!(replica.apply(&first, false).unwrap_err().kind(), Kind::Mismatch);
    }
}

#[test]
fn what_was_forced_has_no_name() {
    let past = past();
    let (first, second) = (past.delta(0, 1, Encoding::Zstd), past.delta(1, 2, Encoding::Zstd));
    let replica = Side::new(&past.states[0]);
    // Nothing says yet what the origin equals, so only its data speak, and force does not listen to them.
    replica.apply(&first, true).unwrap();
    assert_eq!(replica.view().info().origin_equals, None);
    // The data still proves to be the base.
    replica.apply(&second, false).unwrap();
    assert_eq!(replica.view().info().origin_equals, Some(past.ids[2]));
    assert!(replica.origin_bytes() == past.states[2]);
}

#[test]
fn a_change_behind_the_store_ends_what_the_origin_equals() {
    let past = past();
    let replica = Side::new(&past.states[0]);
    replica.apply(&past.delta(0, 1, Encoding::Zstd), false).unwrap();
    let delta = past.delta(1, 2, Encoding::Zstd);
    let at = first_difference(&past.states[1], &past.states[2]);
    replica.origin.inner().write_at(&[past.states[1][at] ^ 1], at as u64).unwrap();
    assert_eq!(replica.view().info().origin_equals, None);
    assert_eq!(replica.apply(&delta, false).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn nothing_is_begun_for_a_bad_delta_or_a_wrong_base() {
    let past = past();
    let delta = past.delta(0, 1, Encoding::Best);
    let replica = Side::new(&past.states[0]);
    replica.snapshot(70);
    let refused = |delta: &[u8], side: &Side, kind: Kind, what: &str| {
        let before = side.reopened();
        assert_eq!(side.apply(delta, false).unwrap_err().kind(), kind, "{what}");
        assert!(side.same_media(&before), "{what}");
    };
    for at in (0..delta.len()).step_by(delta.len() / 60) {
        refused(&delta[..at], &replica, Kind::Damaged, "cut short");
        let mut flipped = delta.clone();
        flipped[at] ^= 0x10;
        refused(&flipped, &replica, Kind::Damaged, "flipped");
    }
    let mut other = past.states[0].clone();
    other[first_difference(&past.states[0], &past.states[1])] ^= 0x55;
    refused(&delta, &Side::new(&other), Kind::Mismatch, "wrong base");
    refused(&delta, &Side::new(&other[..SIZE - 4096]), Kind::Mismatch, "wrong size");
    let bare = delta_of(&past.side.view(), Some(past.ids[0]), past.ids[1], Encoding::Zstd, false);
    refused(&bare, &replica, Kind::Refused, "a base that cannot be proven");
}

/// Cuts an apply after every write and flush of one of the two devices, then resumes or goes back.
fn cut_everywhere(past: &Past, encoding: Encoding, cut_store: bool) {
    let delta = past.delta(0, 1, encoding);
    let base = Side::new(&past.states[0]);
    let old = base.snapshot(70);
    let mut cuts = 0;
    for after in 0.. {
        let side = base.reopened();
        let device = if cut_store { &side.store } else { &side.origin };
        device.freeze_after(after);
        if side.apply(&delta, false).is_ok() {
            break;
        }
        cuts += 1;
        let what = format!("{encoding:?}, store {cut_store}, after {after}");
        let resumed = side.reopened();
        // The cut may have come after the end was recorded: then the delta is done, and refused as such.
        if let Err(error) = resumed.apply(&delta, false) {
            assert_eq!(error.kind(), Kind::Mismatch, "{what}: {error}");
        }
        assert!(resumed.origin_bytes() == past.states[1], "resumed: {what}");
        let view = resumed.view();
        assert_eq!(view.info().origin_equals, Some(past.ids[1]), "{what}");
        assert!(bytes_of(&view, old.id) == past.states[0], "resumed: {what}");
        let back = side.reopened();
        let mut writer = back.writer().unwrap();
        let ended = writer.view().info().origin_equals == Some(past.ids[1]);
        if writer.view().info().pending.is_some() {
            writer.roll_back(&Silent).unwrap();
        }
        writer.close().unwrap();
        let wanted = if ended { &past.states[1] } else { &past.states[0] };
        assert!(&back.origin_bytes() == wanted, "rolled back: {what}");
        let view = back.view();
        assert!(view.info().pending.is_none(), "{what}");
        assert!(bytes_of(&view, old.id) == past.states[0], "rolled back: {what}");
    }
    assert!(cuts > 3, "{cuts}");
}

#[test]
fn an_apply_cut_at_every_write_is_resumed_or_rolled_back() {
    let past = past();
    for encoding in [Encoding::Zstd, Encoding::Best] {
        cut_everywhere(&past, encoding, true);
        cut_everywhere(&past, encoding, false);
    }
}

/// A replica on which an apply stopped after its first writes of the origin.
fn half_applied(past: &Past, delta: &[u8], force: bool, base: &[u8]) -> Side {
    let replica = Side::new(base);
    replica.snapshot(70);
    let replica = replica.reopened();
    // The first flush is that of the operation's beginning.
    replica.origin.freeze_after(5);
    assert_eq!(replica.apply(delta, force).unwrap_err().kind(), Kind::Io);
    let replica = replica.reopened();
    assert!(replica.view().info().pending.is_some());
    assert!(replica.origin_bytes() != base && replica.origin_bytes() != past.states[1]);
    replica
}

#[test]
fn only_the_same_delta_resumes() {
    let past = past();
    let delta = past.delta(0, 1, Encoding::Zstd);
    let replica = half_applied(&past, &delta, false, &past.states[0]);
    for other in [past.delta(1, 2, Encoding::Zstd), past.delta(0, 1, Encoding::Raw)] {
        for force in [false, true] {
            let before = replica.reopened();
            assert_eq!(replica.apply(&other, force).unwrap_err().kind(), Kind::Busy);
            assert!(replica.same_media(&before));
        }
    }
    let busy = replica.writer().unwrap().create_snapshot(Tag(9), None).unwrap_err();
    assert_eq!(busy.kind(), Kind::Busy);
    assert!(replica.apply(&delta, false).unwrap().resumed);
    assert!(replica.origin_bytes() == past.states[1]);
}

#[test]
fn a_known_base_needs_no_checksums_even_to_resume() {
    let past = past();
    let bare = delta_of(&past.side.view(), Some(past.ids[1]), past.ids[2], Encoding::Zstd, false);
    let replica = Side::new(&past.states[0]);
    replica.apply(&past.delta(0, 1, Encoding::Zstd), false).unwrap();
    let replica = replica.reopened();
    replica.origin.freeze_after(5);
    replica.apply(&bare, false).unwrap_err();
    let replica = replica.reopened();
    assert!(replica.view().info().pending.is_some());
    replica.apply(&bare, false).unwrap();
    assert!(replica.origin_bytes() == past.states[2]);
    assert_eq!(replica.view().info().origin_equals, Some(past.ids[2]));
}

#[test]
fn a_forced_apply_stays_forced_across_a_resume() {
    let past = past();
    let mut other = past.states[0].clone();
    other[first_difference(&past.states[0], &past.states[1])] ^= 0x55;
    let delta = past.delta(0, 1, Encoding::Zstd);
    let replica = half_applied(&past, &delta, true, &other);
    replica.apply(&delta, false).unwrap();
    assert_eq!(replica.view().info().origin_equals, None);
}

#[test]
fn a_full_volume_delta_goes_into_any_store_of_its_size() {
    let past = past();
    let full = delta_of(&past.side.view(), None, past.ids[2], Encoding::Zstd, true);
    let before = volume(SIZE, 1234);
    let replica = Side::new(&before);
    let old = replica.snapshot(1);
    replica.apply(&full, false).unwrap();
    assert!(replica.origin_bytes() == past.states[2]);
    let view = replica.view();
    assert_eq!(view.info().origin_equals, Some(past.ids[2]));
    assert!(bytes_of(&view, old.id) == before);
    let small = Side::new(&vec![0; SIZE - 1]);
    assert_eq!(small.apply(&full, false).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn written_snapshots_are_points_like_others() {
    let past = past();
    let mut writer = past.side.writer().unwrap();
    for (n, identity) in (0u64..).zip(&past.ids) {
        writer.write_snapshot(Epoch(identity.id), 5000 + n * 40_000, &[0xee; 9000]).unwrap();
    }
    writer.close().unwrap();
    let view = past.side.view();
    let ids = past.ids.map(|identity| identity_of(&view, Epoch(identity.id)));
    assert!(ids.iter().zip(&past.ids).all(|(new, old)| new.generation > old.generation));
    let states = ids.map(|identity| bytes_of(&view, identity.id));
    let replica = Side::new(&states[0]);
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1)] {
        let delta = delta_of(&view, Some(ids[from]), ids[to], Encoding::Best, true);
        replica.apply(&delta, false).unwrap();
        assert!(replica.origin_bytes() == states[to], "{from} to {to}");
        assert_eq!(replica.view().info().origin_equals, Some(ids[to]));
    }
    // Made before the snapshots were written: the same ids, other generations.
    let stale = delta_of(&view, Some(ids[0]), ids[2], Encoding::Zstd, true);
    assert_eq!(replica.apply(&stale, false).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn scattered_changes_share_their_flushes() {
    let old = volume(2000 * CHUNK, 8);
    let mut new = old.clone();
    for chunk in (0..2000).step_by(2) {
        new[chunk * CHUNK + 17] ^= 1;
    }
    let replica = Side::new(&old);
    replica.snapshot(1);
    let replica = replica.reopened();
    let delta = make(Some(&old), &new, 12, &options(Encoding::Zstd, 2));
    replica.apply(&delta, false).unwrap();
    assert!(replica.origin_bytes() == new);
    let flushes = replica.store.count(Operation::Flush);
    assert!(flushes < 20, "1000 changed chunks took {flushes} flushes");
}
