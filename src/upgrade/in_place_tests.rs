//! Stores of 2008 upgraded where they are, with a crash at every moment, on the way there and on the way back.

use super::tests::{OPTIONS, assert_changes, assert_images, assert_table, images, sample, shape, shapes};
use super::{CopyOptions, Outcome, Site, fit, in_place, open, plan, store_options};
use crate::block::memory::Memory;
use crate::block::record::{DeviceId, Log, Recorder, Replay};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Kind, Result};
use crate::format::legacy::superblock::Release;
use crate::format::switch::Phase;
use crate::legacy::tests::build::{Built, Shape};
use crate::legacy::tests::model::{Model, Random};
use crate::legacy::{Devices, Store};
use crate::point::PointId;
use crate::point::finding::Finding;
use crate::point::volume::SnapshotInfo;
use crate::progress::Silent;
use crate::store::fsck::{CheckOptions, RebuildOptions, check, rebuild};
use crate::store::{View, Writer, switch};
use crate::units::{Tag, index};
use std::ops::Range;
use std::sync::Arc;

/// A store of 2008 on a device with room behind it, and all that must be as before when an upgrade is taken back.
struct Before {
    built: Built,
    device: Memory,
    used: Vec<Range<u64>>,
    found: String,
    expected: Vec<(PointId, Vec<u8>)>,
}

impl Before {
    fn new(built: Built, model: &Model, spare: u64) -> Self {
        let store = if built.shape.separate { &built.data } else { &built.metadata };
        let device = Memory::from_bytes(store);
        device.set_size(device.size() + spare).unwrap();
        // What was never used is not zero.
        device.write_at(&vec![0x3c; index(spare)], store.len() as u64).unwrap();
        let mut before = Self {
            expected: images(model, built.shape.chunk_bits),
            built,
            used: Vec::new(),
            found: String::new(),
            device,
        };
        let (old, found) = before.open(&Arc::new(before.device.snapshot())).unwrap();
        let mut used = Vec::new();
        old.each_used(&Silent, &mut |range| used.push(range)).unwrap();
        (before.used, before.found) = (used, format!("{found:?}"));
        before
    }

    fn devices(&self, device: &Arc<dyn ReadAt>) -> Devices {
        let metadata = self.built.shape.separate.then(|| Memory::from_bytes(&self.built.metadata));
        Devices {
            store: Arc::clone(device),
            metadata: metadata.map(|device| Arc::new(device) as Arc<dyn ReadAt>),
            origin: Some(Arc::new(Memory::from_bytes(&self.built.origin))),
        }
    }

    fn open<D: ReadAt + 'static>(&self, device: &Arc<D>) -> Result<(Store, Vec<Finding>)> {
        let device: Arc<dyn ReadAt> = Arc::<D>::clone(device);
        open(&self.devices(&device), None, &Silent)
    }

    fn upgrade<D: WriteAt + 'static>(&self, device: &Arc<D>, options: CopyOptions) -> Result<Outcome> {
        let (old, found) = self.open(device)?;
        let plan = plan(&old, &Silent)?;
        let init = store_options(&old, 4096, "/origin".into());
        let fit = fit(&old, device.size(), &init, &plan, &Silent)?;
        assert_eq!(fit.grow_bytes, 0);
        assert!(fit.needed_bytes <= fit.free_bytes, "{fit:?}");
        let reading: Arc<dyn ReadAt> = Arc::<D>::clone(device);
        let site = Site {
            devices: self.devices(&reading),
            release: None,
            device: Arc::<D>::clone(device),
            found,
            ground: fit.ground,
        };
        in_place(&old, &site, (&init, plan.bytes), options, &Silent)
    }

    /// A device that is upgraded and not committed.
    fn upgraded(&self) -> Arc<Memory> {
        let device = Arc::new(self.device.snapshot());
        assert!(self.upgrade(&device, OPTIONS).unwrap().finished);
        device
    }

    /// Every byte that the old store uses is as before, and it reads and checks as before.
    fn assert_old(&self, device: &Arc<Memory>, what: &str) {
        let (was, is) = (self.device.to_vec().unwrap(), device.to_vec().unwrap());
        for range in &self.used {
            let range = index(range.start)..index(range.end).min(was.len());
            assert!(was[range.clone()] == is[range.clone()], "{what}: {range:?}");
        }
        // Nor is anything else changed before the first segment.
        let head = was.len().min(1 << 20);
        assert!(was[..head] == is[..head], "{what}");
        let (old, found) = self.open(device).unwrap();
        assert_eq!(format!("{found:?}"), self.found, "{what}");
        assert_images(&old, &self.expected, what);
    }

    fn view(&self, device: &Arc<Memory>) -> Result<View> {
        View::open(Arc::<Memory>::clone(device), Some(Arc::new(Memory::from_bytes(&self.built.origin))))
    }

    /// The new store reads as the old one did, and whether it is committed is told.
    fn assert_new(&self, device: &Arc<Memory>, uncommitted: bool, what: &str) {
        let view = self.view(device).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(view.info().uncommitted, uncommitted, "{what}");
        assert_images(&view, &self.expected, what);
        let reading: Arc<dyn ReadAt> = Arc::<Memory>::clone(device);
        let report = check(&reading, None, CheckOptions { data: true }, &Silent).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    }

    /// Whatever a crash left is one whole store, or says that it is between two, and then becomes either.
    fn assert_whole(&self, device: Memory, what: &str) -> Option<Phase> {
        let device = Arc::new(device);
        let phase = switch::look(device.as_ref()).unwrap().map(|found| found.phase);
        let copy = || Arc::new(device.snapshot());
        let taken_back = |insist: bool| {
            let device = copy();
            switch::rollback(device.as_ref(), insist).unwrap();
            self.assert_old(&device, &format!("{what}, taken back"));
        };
        let committed = |device: Arc<Memory>| {
            assert!(switch::commit(device.as_ref()).unwrap());
            self.assert_new(&device, false, &format!("{what}, committed"));
            assert_settled(&device, what);
        };
        let refused = |result: Result<()>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{what}: {error}");
            assert!(error.hint_text().unwrap_or_default().contains("ddsnap upgrade --"), "{what}: {error}");
        };
        if phase.is_some() {
            let writing: Arc<dyn WriteAt> = copy();
            refused(Writer::open(Arc::clone(&writing), None, 1).map(|_| ()));
            refused(rebuild(&writing, &RebuildOptions::default(), &Silent).map(|_| ()));
        }
        if phase.is_some_and(|phase| phase != Phase::Switched) {
            refused(self.view(&device).map(|_| ()));
        }
        match phase {
            // Nothing tells that a new store is being made, or is committed and as any other.
            None if self.is_old(&device) => self.assert_old(&device, what),
            None => self.assert_new(&device, false, what),
            Some(Phase::Switching) => {
                refused(switch::commit(copy().as_ref()).map(|_| ()));
                taken_back(false);
                let device = copy();
                switch::finish(device.as_ref()).unwrap();
                self.assert_new(&device, true, &format!("{what}, finished"));
                committed(device);
            }
            Some(Phase::Switched) => {
                self.assert_new(&device, true, what);
                taken_back(false);
                committed(copy());
            }
            Some(Phase::TakingBack) => {
                refused(switch::commit(copy().as_ref()).map(|_| ()));
                refused(switch::finish(copy().as_ref()));
                taken_back(false);
            }
            Some(Phase::Committing) => {
                refused(switch::finish(copy().as_ref()));
                refused(switch::rollback(copy().as_ref(), true));
                committed(copy());
            }
        }
        phase
    }

    fn is_old(&self, device: &Arc<Memory>) -> bool {
        match self.built.shape.separate {
            // Only its metadata tell, which nobody touches.
            true => self.view(device).is_err(),
            false => crate::legacy::is_store(device.as_ref()).unwrap(),
        }
    }
}

/// Nothing of the upgrade is left before the first segment.
fn assert_settled(device: &Arc<Memory>, what: &str) {
    let mut head = vec![0; 1 << 20];
    device.read_at(&mut head, 0).unwrap();
    for at in [64 << 10, 512 << 10] {
        head[at..at + 4096].fill(0);
    }
    assert!(head.iter().all(|byte| *byte == 0), "{what}");
}

#[test]
fn every_layout_is_upgraded_where_it_is_and_taken_back() {
    for shape in shapes() {
        for model in [sample(), Model::new(24)] {
            let before = Before::new(Built::new(shape, &model), &model, 6 << 20);
            let what = format!("{shape:?}");
            let device = before.upgraded();
            before.assert_whole(device.snapshot(), &what);
            let view = before.view(&device).unwrap();
            assert_table(&view, &before.built);
            assert_changes(&before.built, &view, &model, &what);
        }
    }
}

/// Histories of all kinds in stores that lie anywhere on a device, small ones in large ones and the reverse.
#[test]
fn random_histories_are_upgraded_where_they_are() {
    let shapes = shapes();
    for seed in 0..60u64 {
        let mut random = Random(seed);
        let shape = Shape { seed, ..shapes[random.below(shapes.len())] };
        let mut model = random.model(24, 20 + index(seed) * 2);
        if shape.release == Release::R04 {
            let chunks = model.origin.len() as u64;
            model.snapshots.iter_mut().for_each(|snapshot| snapshot.chunks = chunks);
        }
        let mut built = Built::new(shape, &model);
        if seed % 3 == 0 {
            let sectors = built.metadata_sectors();
            let lost: Vec<u64> = sectors.into_iter().filter(|_| random.below(3) == 0).take(9).collect();
            let transaction = built.lose(&lost);
            let mut below = |limit| u32::try_from(random.below(limit)).unwrap();
            built.journal(below(20), 90 + below(1 << 20), &[transaction]);
            built.crash();
        }
        let before = Before::new(built, &model, (4 << 20) + random.below(4 << 20) as u64);
        before.assert_whole(before.upgraded().snapshot(), &format!("seed {seed}, {shape:?}"));
    }
}

/// Plays what was done again, and lets every moment of it be the last.
fn crash_everywhere(before: &Before, initial: &Memory, log: &Log, random_count: usize) -> Vec<Option<Phase>> {
    let mut replay = Replay::new(initial, DeviceId(0));
    let mut phases = Vec::new();
    for (number, event) in log.events().iter().enumerate() {
        replay.step(event);
        for crash in replay.images(number as u64, random_count) {
            let what = format!("after event {number}, {}", crash.label);
            phases.push(before.assert_whole(crash.content, &what));
        }
    }
    phases
}

fn count(phases: &[Option<Phase>], phase: Phase) -> usize {
    phases.iter().filter(|found| **found == Some(phase)).count()
}

#[test]
fn a_crash_leaves_one_store_or_the_other_or_says_that_it_is_between() {
    for shape in [shape(12), Shape { chunk_bits: 12, ..Shape::SEPARATE }, shape(9)] {
        let model = sample();
        let before = Before::new(Built::new(shape, &model), &model, 4 << 20);
        let log = Log::new();
        let device = Arc::new(Recorder::new(before.device.snapshot(), &log, DeviceId(0)));
        before.upgrade(&device, OPTIONS).unwrap();
        let middle = device.inner().snapshot();
        let phases = crash_everywhere(&before, &before.device, &log, 3);
        assert!(phases.iter().filter(|phase| phase.is_none()).count() > 40);
        assert!(count(&phases, Phase::Switching) > 10 && count(&phases, Phase::Switched) > 0);

        let log = Log::new();
        switch::commit(&Recorder::new(middle.snapshot(), &log, DeviceId(0))).unwrap();
        let phases = crash_everywhere(&before, &middle, &log, 8);
        assert!(count(&phases, Phase::Committing) > 20 && phases.last() == Some(&None));

        let log = Log::new();
        switch::rollback(&Recorder::new(middle.snapshot(), &log, DeviceId(0)), false).unwrap();
        let phases = crash_everywhere(&before, &middle, &log, 8);
        assert!(count(&phases, Phase::TakingBack) > 20 && phases.last() == Some(&None));
    }
}

/// After the commit all of the device is the store's, and using it costs no snapshot a byte.
#[test]
fn a_committed_store_uses_what_the_old_one_had() {
    for shape in [shape(12), Shape::SEPARATE] {
        let model = sample();
        let before = Before::new(Built::new(shape, &model), &model, 4 << 20);
        let device = before.upgraded();
        let free = before.view(&device).unwrap().info().free_bytes;
        assert!(switch::commit(device.as_ref()).unwrap() && !switch::commit(device.as_ref()).unwrap());
        let origin: Arc<Memory> = Arc::new(Memory::from_bytes(&before.built.origin));
        let mut expected = before.expected.clone();
        let mut random = Random(11);
        for round in 0..200u32 {
            let store: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
            let opened = Writer::open(store, Some(Arc::<Memory>::clone(&origin) as _), 1_700_000_001);
            let mut writer = opened.unwrap();
            let mut whole = vec![0; before.built.origin.len()];
            origin.read_at(&mut whole, 0).unwrap();
            writer.create_snapshot(Tag(1000 + round), None).unwrap();
            let newest = writer.view().snapshots().last().map(|found: &SnapshotInfo| found.id).unwrap();
            expected.push((PointId::Snapshot(newest), whole));
            for _ in 0..4 {
                let length = before.built.origin.len() / 4;
                let at = random.below(before.built.origin.len() - length);
                writer.write_origin(at as u64, &vec![round.to_le_bytes()[0]; length]).unwrap();
            }
            if expected.len() > 8 {
                let (PointId::Snapshot(id), _) = expected.remove(3) else { unreachable!() };
                writer.delete_snapshot(id).unwrap();
            }
            assert_images(writer.view(), &expected, &format!("round {round}"));
            writer.close().unwrap();
        }
        let view = before.view(&device).unwrap();
        assert!(view.info().free_bytes <= free);
    }
}

#[test]
fn damage_is_carried_over_and_taken_back_as_it_was() {
    let mut lost = 0;
    for seed in 0..60u64 {
        let mut random = Random(seed);
        let shape = Shape { seed, leaf_max: 3, node_max: 3, ..shape(12) };
        let model = random.model(30, 60);
        let mut built = Built::new(shape, &model);
        let sectors: Vec<u64> = built.levels.iter().flatten().copied().collect();
        let sector = sectors[random.below(sectors.len())];
        built.metadata[index(sector) * 512 + random.below(64)] ^= 1 << random.below(8);
        if built.open().is_err() {
            continue;
        }
        let mut before = Before::new(built, &model, 4 << 20);
        before.expected.clear();
        let device = Arc::new(before.device.snapshot());
        let refused = before.upgrade(&device, OPTIONS).unwrap();
        if !refused.finished {
            lost += 1;
            before.assert_old(&device, &format!("seed {seed}"));
            let accepted = CopyOptions { accept_lost: true, ..OPTIONS };
            assert!(before.upgrade(&device, accepted).unwrap().finished);
        }
        before.view(&device).unwrap();
        switch::rollback(device.as_ref(), false).unwrap();
        before.assert_old(&device, &format!("seed {seed}, taken back"));
    }
    assert!(lost > 10, "{lost}");
}

/// What is saved is proven before anything is put back or given up.
#[test]
fn what_is_saved_must_be_whole() {
    let model = sample();
    let before = Before::new(Built::new(shape(12), &model), &model, 4 << 20);
    let device = before.upgraded();
    let record = switch::look(device.as_ref()).unwrap().unwrap();
    for at in [record.saved, record.saved + record.old_bytes() - 1] {
        let copy = Arc::new(device.snapshot());
        let mut byte = [0];
        copy.read_at(&mut byte, at).unwrap();
        copy.write_at(&[byte[0] ^ 1], at).unwrap();
        let damaged = copy.to_vec().unwrap();
        assert_eq!(switch::rollback(copy.as_ref(), true).unwrap_err().kind(), Kind::Damaged);
        assert!(copy.to_vec().unwrap() == damaged, "nothing is written");
        before.assert_new(&copy, true, "the new store needs none of it");
        assert!(switch::commit(copy.as_ref()).unwrap());
    }
    // Neither superblock: somebody may have made something else of the device.
    let copy = Arc::new(device.snapshot());
    for at in [64 << 10, 512 << 10] {
        copy.write_at(&[0; 4096], at).unwrap();
    }
    assert_eq!(switch::rollback(copy.as_ref(), false).unwrap_err().kind(), Kind::Refused);
    assert_eq!(switch::commit(copy.as_ref()).unwrap_err().kind(), Kind::Damaged);
    switch::rollback(copy.as_ref(), true).unwrap();
    before.assert_old(&copy, "insisted on");
    // One of them is enough for everything.
    let copy = Arc::new(device.snapshot());
    copy.write_at(&[0; 4096], 64 << 10).unwrap();
    before.assert_images_of(&copy);
    assert!(switch::commit(copy.as_ref()).unwrap());
    before.assert_new(&copy, false, "the copy is made anew");
    // Without the record there is no way back, and the mark in the superblocks still counts.
    let copy = Arc::new(device.snapshot());
    copy.write_at(&[0; 512], 0).unwrap();
    before.assert_new(&copy, true, "without the record");
    assert_eq!(Writer::open(Arc::<Memory>::clone(&copy) as _, None, 1).err().unwrap().kind(), Kind::Refused);
    assert_eq!(switch::rollback(copy.as_ref(), true).unwrap_err().kind(), Kind::Refused);
    assert!(switch::commit(copy.as_ref()).unwrap());
    assert_settled(&copy, "without the record");
    // A record that is damaged stops everything that relies on it.
    device.write_at(&[1], 500).unwrap();
    assert_eq!(before.view(&device).err().unwrap().kind(), Kind::Damaged);
    assert_eq!(switch::rollback(device.as_ref(), true).unwrap_err().kind(), Kind::Damaged);
}

impl Before {
    fn assert_images_of(&self, device: &Arc<Memory>) {
        assert_images(&self.view(device).unwrap(), &self.expected, "one superblock");
    }
}

#[test]
fn a_device_with_too_little_room_is_told_what_it_needs() {
    let model = sample();
    let built = Built::new(shape(12), &model);
    let device: Arc<dyn ReadAt> = Arc::new(Memory::from_bytes(&built.metadata));
    let before = Before::new(built, &model, 0);
    let (old, _) = open(&before.devices(&device), None, &Silent).unwrap();
    let (plan, init) = (plan(&old, &Silent).unwrap(), store_options(&old, 4096, "/origin".into()));
    let fit = super::fit(&old, device.size(), &init, &plan, &Silent).unwrap();
    assert!(fit.grow_bytes > 0 && fit.needed_bytes > fit.free_bytes, "{fit:?}");
    let grown = Arc::new(before.device.snapshot());
    grown.set_size(grown.size() + fit.grow_bytes).unwrap();
    assert!(before.upgrade(&grown, OPTIONS).unwrap().finished);
    before.assert_new(&grown, true, "grown by just that");
}
