//! Repairs, whole and cut short, of stores that crashed and of stores that are damaged.

use super::{Repaired, repair};
use crate::block::memory::Memory;
use crate::block::record::{DeviceId, Log, Recorder, Replay};
use crate::block::{ReadAt, WriteAt};
use crate::legacy::check::{check, tests::Sample, tests::damages};
use crate::legacy::tests::build::{Built, Shape, Transaction, leaf_block, node_block};
use crate::legacy::tests::{sample, shapes};
use crate::legacy::{Devices, Store};
use crate::point::finding::{Code, Finding, Leave};
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What each chunk of each snapshot reads as, by tag; nothing where reading is an error.
type Images = BTreeMap<u32, Vec<Option<Vec<u8>>>>;

/// A store with a device that can be repaired.
struct Patient {
    store: Option<Vec<u8>>,
    origin: Vec<u8>,
    metadata: Memory,
}

impl Patient {
    fn of(built: &Built) -> Self {
        Self {
            store: built.shape.separate.then(|| built.data.clone()),
            origin: built.origin.clone(),
            metadata: Memory::from_bytes(&built.metadata),
        }
    }

    fn sample(sample: &Sample) -> Self {
        Self { store: None, origin: Sample::origin(), metadata: Memory::from_bytes(sample.bytes()) }
    }

    fn devices(&self, metadata: Arc<dyn ReadAt>) -> Devices {
        let origin: Option<Arc<dyn ReadAt>> = Some(Arc::new(Memory::from_bytes(&self.origin)));
        match &self.store {
            Some(store) => {
                Devices { store: Arc::new(Memory::from_bytes(store)), metadata: Some(metadata), origin }
            }
            None => Devices { store: metadata, metadata: None, origin },
        }
    }

    fn images(&self, metadata: &Memory) -> Images {
        let mut images = Images::new();
        let Ok(store) = Store::open(self.devices(Arc::new(metadata.snapshot())), None, &Silent) else {
            return images;
        };
        let chunk = 1usize << store.chunk_bits();
        for point in store.points().iter().filter(|point| point.id != PointId::Origin) {
            let read = |at: u64| {
                let mut bytes = vec![0; chunk];
                store.read(point.id, at * chunk as u64, &mut bytes).ok().map(|()| bytes)
            };
            images.insert(point.tag.0, (0..point.size_bytes / chunk as u64).map(read).collect());
        }
        images
    }

    fn findings(&self, metadata: &Memory) -> Vec<Finding> {
        check(&self.devices(Arc::new(metadata.snapshot())), None, &Silent).unwrap().findings
    }

    fn codes(&self, metadata: &Memory) -> Vec<Code> {
        self.findings(metadata).iter().map(|finding| finding.code).collect()
    }

    /// Repairs a copy.
    fn repair(&self, metadata: &Memory, leave: Leave) -> (Memory, Repaired) {
        let device = Arc::new(metadata.snapshot());
        let repaired = self.repair_on(&device, leave);
        (device.snapshot(), repaired)
    }

    fn repair_on<D: WriteAt + 'static>(&self, device: &Arc<D>, leave: Leave) -> Repaired {
        let devices = self.devices(Arc::<D>::clone(device));
        repair(&devices, device.as_ref(), None, leave, &Silent).unwrap()
    }
}

/// Every state that a crash leaves and recovery makes whole.
fn crashes() -> Vec<(String, Built)> {
    let mut all = Vec::new();
    for shape in shapes() {
        let mut built = Built::new(shape, &sample());
        let sectors: Vec<u64> = built.metadata_sectors().into_iter().rev().take(5).collect();
        let transaction = built.lose(&sectors);
        built.journal(3, 20, &[Transaction::default(), transaction]);
        built.crash();
        all.push((format!("newest commit of {shape:?}"), built));
    }
    let mut built = Built::new(Shape { leaf_max: 1, node_max: 4, journal: 40, ..Shape::COMBINED }, &sample());
    let chunk = *built.places.values().next().unwrap();
    let leaves = built.levels[0].clone();
    let mut oldest = built.lose(&[leaves[0], leaves[2]]);
    built.mark(chunk, false);
    oldest.deferred = (chunk, 1);
    oldest.blocks.push((leaves[3], leaf_block(9, &[])));
    let (middle, newest) = (built.lose(&[leaves[3], built.levels[1][0]]), built.lose(&[built.root()]));
    built.journal(38, 9, &[oldest, middle, newest]);
    built.crash();
    all.push(("deferred".into(), built));
    let mut built = Built::new(Shape { leaf_max: 1, node_max: 2, ..Shape::COMBINED }, &sample());
    let top = built.levels.len() - 1;
    built.sb.root.set(built.levels[top - 2][0]);
    built.sb.levels.set(u32::try_from(top - 2).unwrap());
    built.crash();
    all.push(("root above".into(), built));
    let mut built = Built::new(Shape { leaf_max: 3, ..Shape::COMBINED }, &sample());
    let (root, dropped) = (built.root(), built.spare[0]);
    built.put(dropped, &node_block(9, &[(0, root), (20, built.levels[0][0])]));
    built.sb.root.set(dropped);
    built.sb.levels.set(2);
    built.crash();
    all.push(("root below".into(), built));
    // A block that was freed and holds data now must not be overwritten by what the journal has of it.
    let mut built = Built::new(Shape::COMBINED, &sample());
    let data = built.places.values().next().unwrap() * built.sectors();
    let mut newest = built.lose(&[built.root()]);
    newest.blocks.push((data, leaf_block(9, &[])));
    built.journal(0, 50, &[newest]);
    built.crash();
    all.push(("freed block".into(), built));
    all
}

/// Nodes and roots that are lost, with all leaves whole.
fn broken() -> Vec<(String, Built)> {
    let mut all = Vec::new();
    for mut shape in shapes() {
        (shape.node_max, shape.leaf_max) = (shape.node_max.min(4), shape.leaf_max.min(2));
        let whole = Built::new(shape, &sample());
        let nodes: Vec<u64> = whole.levels[1..].iter().flatten().copied().collect();
        for node in nodes {
            let mut built = whole.clone();
            let size = 1 << shape.block_bits;
            built.put(node, &vec![0xff; size]);
            all.push((format!("node at {node} of {shape:?}"), built));
        }
    }
    all
}

#[test]
fn a_recovery_that_is_written_down_reads_as_before_and_leaves_nothing() {
    for (name, built) in crashes() {
        let patient = Patient::of(&built);
        let before = patient.images(&patient.metadata);
        assert!(before.len() == 3 && before.values().flatten().all(Option::is_some), "{name}");
        let (after, repaired) = patient.repair(&patient.metadata, Leave::Safe);
        assert!(repaired.lost.is_empty() && repaired.refused.is_empty(), "{name}: {repaired:?}");
        assert!(!repaired.writes.is_empty(), "{name}");
        assert!(patient.images(&after) == before, "{name}");
        assert!(patient.findings(&after).is_empty(), "{name}: {:?}", patient.findings(&after));
        for leave in [Leave::Safe, Leave::Everything] {
            let (again, repaired) = patient.repair(&after, leave);
            assert!(repaired.writes.is_empty() && again.same_content(&after), "{name}");
        }
    }
}

#[test]
fn a_tree_that_lost_its_nodes_is_made_anew_of_its_leaves() {
    for (name, built) in broken() {
        let patient = Patient::of(&built);
        let mut whole = Built::new(built.shape, &sample());
        whole.finish();
        let expected = patient.images(&Memory::from_bytes(&whole.metadata));
        let (same, repaired) = patient.repair(&patient.metadata, Leave::Safe);
        assert!(repaired.writes.is_empty() && same.same_content(&patient.metadata), "{name}");
        let (after, repaired) = patient.repair(&patient.metadata, Leave::Everything);
        assert!(repaired.refused.is_empty() && repaired.lost.is_empty(), "{name}: {:?}", repaired.refused);
        assert!(patient.images(&after) == expected, "{name}");
        assert!(patient.findings(&after).is_empty(), "{name}: {:?}", patient.findings(&after));
    }
}

/// Cuts a repair short after every change, in every way that the recorder knows; what is there then reads as before or
/// as after, and is repaired to what reads as after.
fn cut_short(name: &str, patient: &Patient, leave: Leave) -> usize {
    let log = Log::new();
    let device = Arc::new(Recorder::new(patient.metadata.snapshot(), &log, DeviceId(0)));
    patient.repair_on(&device, leave);
    let after = device.inner().snapshot();
    let (old, new) = (patient.images(&patient.metadata), patient.images(&after));
    let left = patient.codes(&after);
    let mut replay = Replay::new(&patient.metadata, DeviceId(0));
    let events = log.events();
    let (mut cuts, mut decided) = (0, 0);
    for n in 0..=events.len() {
        for image in replay.images(n as u64, 4) {
            let found = patient.images(&image.content);
            assert!(found == old || found == new, "{name}, {n} of {}: {}", events.len(), image.label);
            let codes = patient.codes(&image.content);
            decided += usize::from(codes.contains(&Code::LegacyRepair));
            let (again, repaired) = patient.repair(&image.content, leave);
            let label = &image.label;
            assert!(repaired.refused.is_empty(), "{name}, {n}, {label}: {:?}", repaired.refused);
            assert!(patient.images(&again) == new, "{name}, {n} of {}: {label}", events.len());
            assert_eq!(patient.codes(&again), left, "{name}, {n} of {}: {label}", events.len());
            cuts += 1;
        }
        if let Some(event) = events.get(n) {
            replay.step(event);
        }
    }
    assert!(decided > 0, "{name}: no cut was between the decision and the superblock");
    cuts
}

#[test]
fn a_recovery_cut_short_anywhere_is_written_down_again() {
    let cuts: usize =
        crashes().iter().map(|(name, built)| cut_short(name, &Patient::of(built), Leave::Safe)).sum();
    assert!(cuts > 1000, "{cuts}");
}

#[test]
fn a_new_tree_cut_short_anywhere_is_made_again() {
    let cuts: usize =
        broken().iter().map(|(name, built)| cut_short(name, &Patient::of(built), Leave::Everything)).sum();
    assert!(cuts > 1000, "{cuts}");
}

/// The chunks that `lost` says are lost, by tag.
fn told(lost: &[Finding]) -> BTreeMap<u32, Vec<u64>> {
    let mut told: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for affected in lost.iter().flat_map(|finding| &finding.affected) {
        let chunks = affected.ranges.iter().flat_map(|range| range.start / 512..range.end.div_ceil(512));
        told.entry(affected.tag.unwrap().0).or_default().extend(chunks);
    }
    told
}

fn names(codes: &[Code]) -> String {
    let names: Vec<&str> = codes.iter().map(|code| code.name().trim_start_matches("legacy-")).collect();
    if names.is_empty() { "-".into() } else { names.join(" ") }
}

/// Repairs one kind of damage both ways, and asserts that nothing reads as something that it never was. Returns what is
/// found after each repair.
fn outcome(name: &str, damage: fn(&mut Sample), whole: &Images) -> String {
    let mut sample = Sample::new();
    damage(&mut sample);
    let patient = Patient::sample(&sample);
    let before = patient.images(&patient.metadata);
    let mut line = format!("{name} | {}", names(&patient.codes(&patient.metadata)));
    for leave in [Leave::Safe, Leave::Everything] {
        let (after, repaired) = patient.repair(&patient.metadata, leave);
        let found = patient.images(&after);
        let lost = told(&repaired.lost);
        for (tag, chunks) in &before {
            // A deletion that is ended takes its snapshot along.
            let Some(now) = found.get(tag) else {
                assert!(repaired.lost.iter().any(|one| one.code == Code::LegacyDeletion), "{name}");
                continue;
            };
            for (at, (old, new)) in chunks.iter().zip(now).enumerate() {
                // The chunk that only the true root leads to read as newer data.
                if name == "stale root" && leave == Leave::Everything && at == 50 {
                    assert_eq!(new.as_deref(), Some(&[0; 512][..]));
                    continue;
                }
                let is_told = lost.get(tag).is_some_and(|chunks| chunks.contains(&(at as u64)));
                match (old, new) {
                    (_, None) if is_told => {}
                    (Some(old), new) => assert!(new.as_ref() == Some(old), "{name} {leave:?} {tag} {at}"),
                    (None, Some(new)) => {
                        assert!(whole[tag][at].as_ref() == Some(new), "{name} {leave:?} {tag} {at}");
                    }
                    (None, None) => {}
                }
                assert!(!is_told || new.is_none(), "{name} {leave:?}: {tag} {at} is said to be lost");
            }
        }
        assert!(leave == Leave::Everything || lost.is_empty(), "{name}");
        let refused = if repaired.refused.is_empty() { "" } else { "refused " };
        let given_up = if repaired.lost.is_empty() { "" } else { "lost " };
        line += &format!(" | {refused}{given_up}{}", names(&patient.codes(&after)));
        // What was left is left, and nothing else is done.
        let (again, repaired) = patient.repair(&after, leave);
        assert!(repaired.writes.is_empty() && again.same_content(&after), "{name} {leave:?}: {repaired:?}");
    }
    line
}

/// Kind of damage | what is found | what is left after -p | what is left after -y.
const OUTCOMES: &str = "
S1 magic | superblock | superblock | superblock
S2 block size | superblock | superblock | superblock
S3 snapshots | superblock | superblock | superblock
S3 levels | superblock | superblock | superblock
S4 tags | snapshots | snapshots | snapshots
S4 bits | snapshots | snapshots | snapshots
S5 flags | field | - | -
S6 origin offset | field | - | -
S7 bitmap length | superblock | superblock | superblock
S8 overlap | superblock | superblock | superblock
S8 device cut short | superblock | superblock | superblock
S9 root | superblock | superblock | superblock
device grown | grown | grown | grown
B3 free count | free-count journal | - | -
J1 two gaps | journal | - | -
J2 sequence | journal | - | -
J2 position | journal | - | -
J3 free count | journal | - | -
crash | recovery | - | -
crash J1 | recovery unrecovered | refused recovery unrecovered | refused recovery unrecovered
crash no journal | recovery unrecovered leak | refused recovery unrecovered leak | refused recovery unrecovered leak
T1 in the journal | tree-place | tree-place | -
T1 outside | tree-place | tree-place | -
T1 twice | tree-place | tree-place | -
T1 itself | tree-place | tree-place | -
T1 free | tree-free | - | -
T2 count | node | node | -
T2 capacity | node | node | -
T3 magic | leaf | leaf | lost lost
T3 version | leaf | leaf | lost lost
T3 base chunk | leaf | leaf | lost lost
T3 end | leaf | leaf | lost lost
T3 offset | leaf | leaf | lost lost
T3 under a key too high | leaf | leaf | lost lost
T3 before a key too low | leaf | leaf | lost lost
T4 order | leaf | leaf | lost lost
T4 range | order | order | order
T4 two leaves | order | order | order
T4 beyond the end | order | order | order
T4 leaf swapped | order | order | order
T4 leaf not in the tree | orphan | orphan | -
T4 overfull | overfull | overfull | overfull
T4 overfull, end | overfull end | overfull end | refused overfull end
T5 empty | share-none | share-none | share-none
T5 not live | share-stale | share-stale | share-stale
T5 not live, end | share-stale end | refused share-stale end | refused share-stale end
T5 bit of another | share-none share-stale | share-none share-stale | share-none share-stale
T5 twice | share-twice | share-twice | share-twice
T6 outside | chunk-place leak | chunk-place leak | refused chunk-place leak
T6 in the bitmap | chunk-place leak | chunk-place leak | refused chunk-place leak
T6 two chunks | chunk-twice leak | chunk-twice leak | refused chunk-twice leak
T6 the tree's | chunk-twice leak | chunk-twice leak | refused chunk-twice leak
T6 free | chunk-free | - | -
T6 elsewhere | contrary leak | contrary leak | refused contrary leak
B1 leak | leak | leak | lost -
B1 leak, count | leak free-count journal | leak free-count journal | lost -
B1 leaf of before | leak | leak | lost -
B1 area | area-free | - | -
B2 end | end | - | -
deletion | recovery deletion | recovery deletion | lost -
stale root | root orphan leak | root orphan leak | -
";

#[test]
fn every_kind_of_damage_is_mended_refused_or_told_exactly() {
    let sound = Patient::sample(&Sample::new());
    let whole = sound.images(&sound.metadata);
    let found: Vec<String> =
        damages().into_iter().map(|(name, damage, ..)| outcome(name, damage, &whole)).collect();
    let expected: Vec<&str> = OUTCOMES.trim().lines().collect();
    assert_eq!(found, expected, "\n{}", found.join("\n"));
}
