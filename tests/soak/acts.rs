//! Everything that changes something: a command line, made up at random, and what it promises.

use super::volume::{Promise, Snap, VOL, Volume};
use crate::harness::{Dir, Rng};
use ddsnap::format::superblock::OFFSETS;
use std::sync::Arc;

/// One command to be killed.
pub struct Act {
    /// Words of the command line, separated by blanks.
    pub line: String,
    /// The file that is its standard input.
    pub stdin: Option<&'static str>,
    pub promise: Promise,
    /// Files that it makes: absent, as they were, or whole.
    pub outputs: Vec<Output>,
    /// A plain file that it changes in place.
    pub plain: Option<Plain>,
    /// Started once more, it makes the same of the volume or refuses.
    pub repeats: bool,
    /// How fsck brings the volume back.
    pub mend: &'static str,
    /// Statuses with which it may end unharmed, done or not.
    pub codes: &'static [i32],
}

/// A file that is made, and how to tell that it is whole.
pub struct Output {
    pub name: &'static str,
    pub whole: Whole,
}

pub enum Whole {
    /// It holds these bytes.
    Bytes(Arc<Vec<u8>>),
    /// A delta that makes the second of the first. Its bytes may differ from time to time: what is a hole in a file
    /// now may be zeroes later.
    Delta(Arc<Vec<u8>>, Arc<Vec<u8>>),
    /// What the same command makes elsewhere.
    Same,
}

/// A plain file under a delta.
pub struct Plain {
    pub name: &'static str,
    pub old: Arc<Vec<u8>>,
    pub new: Arc<Vec<u8>>,
    /// The delta that takes it back, once that is there.
    pub undo: Option<&'static str>,
}

impl Act {
    fn new(line: impl Into<String>, promise: Promise) -> Self {
        Self {
            line: line.into(),
            stdin: None,
            promise,
            outputs: Vec::new(),
            plain: None,
            repeats: true,
            mend: "-p",
            codes: &[0],
        }
    }
}

/// What acts are made up from.
pub struct Scene<'a> {
    pub dir: &'a Dir,
    pub rng: &'a mut Rng,
    pub volume: &'a Volume,
    pub next_tag: &'a mut u64,
}

type Make = fn(&mut Scene) -> Option<Act>;

/// Every sort of command, by name. Those that need what is not there are passed over.
pub const ACTS: [(&str, Make); 28] = [
    ("initialize", initialize),
    ("create", create),
    ("create --name", create_named),
    ("delete", delete),
    ("priority", priority),
    ("usecount", usecount),
    ("hold", hold),
    ("release", release),
    ("policy", policy),
    ("write origin", write_origin),
    ("write much", write_much),
    ("write snapshot", write_snapshot),
    ("revert", revert),
    ("apply-delta VOL", apply_to_volume),
    ("resize -o", resize_origin),
    ("resize -s", resize_store),
    ("resize -o -s", resize_both),
    ("fsck -y", fsck_yes),
    ("fsck --rebuild", fsck_rebuild),
    ("fsck of superblocks", fsck_superblocks),
    ("fsck of the index", fsck_index),
    ("apply-delta FILE", apply_to_file),
    ("apply-delta --undo", apply_with_undo),
    ("apply-delta -", apply_stream),
    ("create-delta", create_delta),
    ("delta merge", delta_merge),
    ("delta invert", delta_invert),
    ("export", export),
];

impl Scene<'_> {
    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words[self.rng.pick(words.len())]
    }

    fn any_snap(&mut self) -> Option<Snap> {
        let snaps = &self.volume.snaps;
        (!snaps.is_empty()).then(|| snaps[self.rng.pick(snaps.len())].clone())
    }

    /// The volume with the snapshot `tag` changed.
    fn with(&self, tag: u64, change: impl FnOnce(&mut Snap)) -> Promise {
        let mut after = self.volume.clone();
        change(after.snaps.iter_mut().find(|snap| snap.tag == tag).unwrap());
        Promise::change(self.volume, after)
    }

    /// `bytes` with a few places overwritten.
    fn changed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.rng.below(12) {
            let at = self.rng.pick(bytes.len());
            let len = (1 + self.rng.pick(80_000)).min(bytes.len() - at);
            let data = if self.rng.below(4) == 0 { vec![0; len] } else { self.rng.bytes(len) };
            bytes[at..at + len].copy_from_slice(&data);
        }
        bytes
    }

    /// Bytes for a place in something of `size` bytes, put into `in.bin`.
    fn input(&mut self, size: usize, most: usize) -> (usize, Vec<u8>) {
        let offset = match self.rng.below(3) {
            0 => 0,
            1 => self.rng.pick(size) & !0xffff,
            _ => self.rng.pick(size),
        };
        let len = (1 + self.rng.pick(most)).min(size - offset);
        let data = self.rng.bytes(len);
        self.dir.write("in.bin", &data);
        (offset, data)
    }

    /// Two files and a delta between them: `a.img`, `b.img`, `1.delta`; what both hold.
    fn delta_pair(&mut self) -> (Arc<Vec<u8>>, Arc<Vec<u8>>) {
        let old = self.any_snap().map_or_else(|| Arc::clone(&self.volume.origin), |snap| snap.bytes);
        let mut new = self.changed(&old);
        if self.rng.below(3) == 0 {
            new.resize(old.len() / 2 + self.rng.pick(old.len()) + 1, 7);
        }
        self.dir.write("a.img", &old);
        self.dir.write("b.img", &new);
        let way = self.one_of(&["-r", "-g1", "-g9"]);
        self.dir.ok(&format!("create-delta {way} --compare a.img b.img -o 1.delta"));
        (old, Arc::new(new))
    }
}

fn initialize(scene: &mut Scene) -> Option<Act> {
    let chunk = scene.one_of(&["4k", "16k", "64k"]);
    let chunk = if scene.volume.tight { "4k" } else { chunk };
    Some(Act::new(format!("initialize -y -c {chunk} data.snap data.img"), Promise::NewStore))
}

fn made(scene: &mut Scene, name: Option<String>) -> Option<Act> {
    let tag = *scene.next_tag;
    *scene.next_tag += 1 + scene.rng.below(3);
    let mut after = scene.volume.clone();
    after.snaps.push(Snap {
        tag,
        name: name.clone(),
        bytes: Arc::clone(&scene.volume.origin),
        priority: 0,
        use_count: 0,
        holds: Default::default(),
    });
    let name = name.map_or_else(String::new, |name| format!("--name {name}"));
    let mut act = Act::new(format!("create {VOL} {tag} {name}"), Promise::change(scene.volume, after));
    // The second time it exists.
    act.codes = &[0, 1];
    Some(act)
}

fn create(scene: &mut Scene) -> Option<Act> {
    made(scene, None)
}

fn create_named(scene: &mut Scene) -> Option<Act> {
    let name = format!("n{}", scene.rng.next());
    made(scene, Some(name))
}

/// One to three snapshots, in the order given. Of one in use, first all that holds it goes.
fn delete(scene: &mut Scene) -> Option<Act> {
    let mut states = vec![scene.volume.clone()];
    let mut line = "delete --force data.snap".to_owned();
    for _ in 0..1 + scene.rng.below(3) {
        let mut next = states.last()?.clone();
        if next.snaps.len() <= 1 {
            break;
        }
        let at = scene.rng.pick(next.snaps.len());
        line += &format!(" {}", next.snaps[at].tag);
        while next.snaps[at].holds.pop_first().is_some() {
            states.push(next.clone());
        }
        next.snaps[at].use_count = 0;
        states.push(next.clone());
        next.snaps.remove(at);
        states.push(next);
    }
    let mut act = Act::new(line, Promise::OneOf(states));
    act.codes = &[0, 1];
    (scene.volume.snaps.len() > 1).then_some(act)
}

fn priority(scene: &mut Scene) -> Option<Act> {
    let tag = scene.any_snap()?.tag;
    let priority = scene.rng.below(256) as i64 - 128;
    let promise = scene.with(tag, |snap| snap.priority = priority);
    Some(Act::new(format!("priority {VOL} {tag} {priority}"), promise))
}

fn usecount(scene: &mut Scene) -> Option<Act> {
    let snap = scene.any_snap()?;
    let promise = scene.with(snap.tag, |snap| snap.use_count = 1 - snap.use_count);
    let diff = if snap.use_count > 0 { "-1" } else { "1" };
    let mut act = Act::new(format!("usecount {VOL} {} {diff}", snap.tag), promise);
    act.repeats = false;
    Some(act)
}

fn hold(scene: &mut Scene) -> Option<Act> {
    let tag = scene.any_snap()?.tag;
    let name = scene.one_of(&["usb", "offsite", "tape"]);
    let promise = scene.with(tag, |snap| {
        snap.holds.insert(name.to_owned());
    });
    Some(Act::new(format!("hold {VOL} {tag} {name}"), promise))
}

fn release(scene: &mut Scene) -> Option<Act> {
    let held = scene.volume.snaps.iter().find(|snap| !snap.holds.is_empty());
    let Some(snap) = held.cloned() else { return hold(scene) };
    let name = snap.holds.first()?.clone();
    let promise = scene.with(snap.tag, |snap| {
        snap.holds.remove(&name);
    });
    let mut act = Act::new(format!("release {VOL} {} {name}", snap.tag), promise);
    act.codes = &[0, 1];
    Some(act)
}

fn policy(scene: &mut Scene) -> Option<Act> {
    let mut after = scene.volume.clone();
    let fails = after.policy == "fail" && !after.tight;
    after.policy = if fails { "squash" } else { "fail" }.to_owned();
    let line = format!("policy {VOL} {}", after.policy);
    Some(Act::new(line, Promise::change(scene.volume, after)))
}

fn written(scene: &mut Scene, snap: Option<Snap>, most: usize) -> Option<Act> {
    let size = snap.as_ref().map_or(scene.volume.origin.len(), |snap| snap.bytes.len());
    let (offset, data) = scene.input(size, most);
    let tag = snap.map(|snap| snap.tag);
    let words = tag.map_or_else(String::new, |tag| tag.to_string());
    let promise = Promise::Written { tag, offset, data };
    let mut act = Act::new(format!("write {VOL} {words} --offset {offset}"), promise);
    act.stdin = Some("in.bin");
    if scene.volume.tight {
        act.codes = &[0, 1];
    }
    Some(act)
}

fn write_origin(scene: &mut Scene) -> Option<Act> {
    written(scene, None, 200_000)
}

fn write_much(scene: &mut Scene) -> Option<Act> {
    written(scene, None, 16 << 20)
}

fn write_snapshot(scene: &mut Scene) -> Option<Act> {
    let snap = scene.any_snap()?;
    written(scene, Some(snap), 1 << 20)
}

fn revert(scene: &mut Scene) -> Option<Act> {
    let snap = scene.any_snap()?;
    let mut act = Act::new(format!("revert {VOL} {}", snap.tag), Promise::Operation(snap.bytes));
    if scene.volume.tight {
        act.codes = &[0, 1];
    }
    Some(act)
}

fn apply_to_volume(scene: &mut Scene) -> Option<Act> {
    let old = Arc::clone(&scene.volume.origin);
    let new = scene.changed(&old);
    scene.dir.write("a.img", &old);
    scene.dir.write("b.img", &new);
    let way = scene.one_of(&["-r", "-b", "-g1"]);
    scene.dir.ok(&format!("create-delta {way} --compare a.img b.img -o 1.delta"));
    let line = "apply-delta --force --origin data.img 1.delta data.snap";
    let mut act = Act::new(line, Promise::Operation(Arc::new(new)));
    if scene.volume.tight {
        act.codes = &[0, 1];
    }
    Some(act)
}

/// Another size for the origin. What it gains is what its file has there.
fn new_origin(scene: &mut Scene) -> Arc<Vec<u8>> {
    let file = scene.dir.read("data.img");
    let size = 200_000 + scene.rng.pick(3 << 20);
    let size = if scene.rng.below(2) == 0 { size } else { size & !0xffff };
    let mut bytes = Vec::clone(&scene.volume.origin);
    if size > bytes.len() {
        bytes.extend_from_slice(&file[bytes.len()..file.len().min(size)]);
    }
    bytes.resize(size, 0);
    Arc::new(bytes)
}

fn resize_origin(scene: &mut Scene) -> Option<Act> {
    let origin = new_origin(scene);
    let line = format!("resize -y {VOL} -o {}", origin.len());
    let mut act = Act::new(line, Promise::change(scene.volume, Volume { origin, ..scene.volume.clone() }));
    act.codes = &[0, 1];
    Some(act)
}

fn store_size(scene: &mut Scene) -> u64 {
    let size = std::fs::metadata(scene.dir.path("data.snap")).unwrap().len();
    if scene.volume.tight {
        return size - 300_000 + scene.rng.below(600_000);
    }
    [size / 2 + scene.rng.below(size), 12 << 20, 40 << 20][scene.rng.pick(3)]
}

fn resize_store(scene: &mut Scene) -> Option<Act> {
    let size = store_size(scene);
    let mut act = Act::new(format!("resize {VOL} -s {size}"), Promise::nothing(scene.volume));
    act.codes = &[0, 1];
    Some(act)
}

fn resize_both(scene: &mut Scene) -> Option<Act> {
    let mut act = resize_origin(scene)?;
    act.line += &format!(" -s {}", store_size(scene));
    Some(act)
}

fn fsck_yes(scene: &mut Scene) -> Option<Act> {
    Some(Act::new("fsck -y data.snap", Promise::nothing(scene.volume)))
}

fn fsck_rebuild(scene: &mut Scene) -> Option<Act> {
    let mut act = Act::new("fsck -y --rebuild data.snap", Promise::nothing(scene.volume));
    act.codes = &[1];
    Some(act)
}

/// Damage that a rebuild undoes without a doubt; killed in the middle, the next one does.
fn fsck_superblocks(scene: &mut Scene) -> Option<Act> {
    // Without them only the mark of a close shows that no record followed it, and a kill may have left none.
    scene.dir.run("fsck --accept-taint --origin data.img data.snap").expect(0);
    for offset in OFFSETS {
        scene.dir.patch("data.snap", ddsnap::units::index(offset), |bytes| bytes[..4096].fill(0xff));
    }
    mended(scene)
}

fn fsck_index(scene: &mut Scene) -> Option<Act> {
    let bytes = scene.dir.read("data.snap");
    let blocks = bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(b"ddIX"));
    let blocks: Vec<usize> = blocks.map(|(number, _)| number).collect();
    for number in blocks.iter().filter(|_| scene.rng.below(2) == 0) {
        scene.dir.patch("data.snap", number * 4096, |bytes| bytes[..4096].fill(0));
    }
    mended(scene)
}

fn mended(scene: &mut Scene) -> Option<Act> {
    let mut act = Act::new("fsck -y data.snap", Promise::nothing(scene.volume));
    act.mend = "-y";
    act.codes = &[0, 1];
    Some(act)
}

fn applied(scene: &mut Scene, line: &str, undo: Option<&'static str>) -> Option<Act> {
    let (old, new) = scene.delta_pair();
    scene.dir.write("copy.img", &old);
    let mut act = Act::new(line, Promise::nothing(scene.volume));
    act.plain = Some(Plain { name: "copy.img", old, new, undo });
    Some(act)
}

fn apply_to_file(scene: &mut Scene) -> Option<Act> {
    applied(scene, "apply-delta 1.delta copy.img", None)
}

fn apply_with_undo(scene: &mut Scene) -> Option<Act> {
    applied(scene, "apply-delta --undo back.delta 1.delta copy.img", Some("back.delta"))
}

fn apply_stream(scene: &mut Scene) -> Option<Act> {
    let mut act = applied(scene, "apply-delta --resume - copy.img", None)?;
    act.stdin = Some("1.delta");
    Some(act)
}

/// A file of data out of the volume; with a hold, the store changes too.
fn create_delta(scene: &mut Scene) -> Option<Act> {
    let (from, to) = (scene.any_snap()?, scene.any_snap()?);
    let format = scene.one_of(&["-r", "-g1", "--resume", "--format rbd", "--hold usb"]);
    let whole = from.tag == to.tag;
    let points = if whole { to.tag.to_string() } else { format!("{} {}", from.tag, to.tag) };
    let mut after = scene.volume.clone();
    if format == "--hold usb" {
        for snap in &mut after.snaps {
            let older = !whole && snap.tag < from.tag.min(to.tag);
            if snap.tag == to.tag || snap.tag == from.tag {
                snap.holds.insert("usb".to_owned());
            } else if older {
                snap.holds.remove("usb");
            }
        }
    }
    let line = format!("create-delta {format} --origin data.img data.snap {points} -o out.bin");
    let mut act = Act::new(line, held(scene, &after, (from.tag, to.tag)));
    let base = if whole { Arc::default() } else { from.bytes };
    act.outputs = vec![Output { name: "out.bin", whole: Whole::Delta(base, to.bytes) }];
    Some(act)
}

/// Holds move one by one: first both ends, then older ones let go.
fn held(scene: &Scene, after: &Volume, ends: (u64, u64)) -> Promise {
    let mut states = vec![scene.volume.clone()];
    let others = after.snaps.iter().map(|snap| snap.tag).filter(|tag| *tag != ends.0 && *tag != ends.1);
    for tag in [ends.0, ends.1].into_iter().chain(others) {
        let mut next = states[states.len() - 1].clone();
        let holds = after.snaps.iter().find(|snap| snap.tag == tag).unwrap().holds.clone();
        next.snaps.iter_mut().find(|snap| snap.tag == tag).unwrap().holds = holds;
        states.push(next);
    }
    Promise::OneOf(states)
}

fn delta_merge(scene: &mut Scene) -> Option<Act> {
    let (first, middle) = scene.delta_pair();
    let last = Arc::new(scene.changed(&middle));
    scene.dir.write("c.img", &last);
    scene.dir.ok("create-delta --compare b.img c.img -o 2.delta");
    let mut act = Act::new("delta merge 1.delta 2.delta -o out.bin", Promise::nothing(scene.volume));
    act.outputs = vec![Output { name: "out.bin", whole: Whole::Delta(first, last) }];
    Some(act)
}

fn delta_invert(scene: &mut Scene) -> Option<Act> {
    let (old, new) = scene.delta_pair();
    let mut act = Act::new("delta invert 1.delta a.img -o out.bin", Promise::nothing(scene.volume));
    act.outputs = vec![Output { name: "out.bin", whole: Whole::Delta(new, old) }];
    Some(act)
}

fn export(scene: &mut Scene) -> Option<Act> {
    let snap = scene.any_snap()?;
    let format = scene.one_of(&["", "--bmap out.bmap", "--format qcow2"]);
    // Something is there already: it stays until the new one is whole.
    if scene.rng.below(2) == 0 {
        scene.dir.write("out.bin", b"what was there before");
    }
    let line = format!("export {VOL} {} out.bin {format}", snap.tag);
    let mut act = Act::new(line, Promise::nothing(scene.volume));
    let whole = if format.contains("qcow2") { Whole::Same } else { Whole::Bytes(snap.bytes) };
    let mut outputs = vec![Output { name: "out.bin", whole }];
    if format.contains("bmap") {
        outputs.push(Output { name: "out.bmap", whole: Whole::Same });
    }
    act.outputs = outputs;
    Some(act)
}
