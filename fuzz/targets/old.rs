//! Stores and deltas of 2008.

use ddsnap::block::ReadAt;
use ddsnap::block::WriteAt as _;
use ddsnap::block::memory::Memory;
use ddsnap::delta::{ApplyOptions, BasedTarget, FileTarget, Input, Verdict, apply, info, verify};
use ddsnap::legacy;
use ddsnap::point::PointSource as _;
use ddsnap::point::volume::Volume as _;
use ddsnap::point::{Point, PointId};
use ddsnap::progress::Silent;
use ddsnap::store::fsck::Leave;
use ddsnap::units;
use std::io::Cursor;
use std::sync::Arc;

/// A delta of 2008, without and with a base; then onto a copy of that, which is changed as a whole or not at all.
pub fn legacy_delta(data: &[u8]) {
    let _ = info(&mut &*data, &Silent);
    let base = Memory::from_bytes(&LEGACY_BASE);
    let sound = matches!(verify(&mut &*data, Some(&base), 1, &Silent), Ok(Verdict::Sound { .. }));
    let target = Memory::from_bytes(&LEGACY_BASE);
    let options = ApplyOptions { force: false, undo: None, dry_run: false, threads: 1 };
    let mut input = Input::from_reader(Box::new(Cursor::new(data.to_vec())));
    let plain = FileTarget::new(&target);
    let applied = apply(&mut input, &BasedTarget::new(&plain, &base), &options, &Silent).is_ok();
    let is_legacy = ddsnap::format::legacy_delta::is_delta(data);
    assert!(!is_legacy || applied == sound, "what is sound is applied, and nothing else");
    assert!(
        applied || target.to_vec().is_ok_and(|now| now == LEGACY_BASE),
        "refused, but something was written"
    );
}

/// What deltas of 2008 are tried on: 40 chunks of 512 bytes and a half.
pub static LEGACY_BASE: [u8; 20736] = {
    let mut bytes = [0; 20736];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = ((at * at) >> 7) as u8;
        at += 1;
    }
    bytes
};

/// A store of 2008: how to open it (bit 0: with a metadata device; bits 1 and 2: the layout), then the device with its
/// metadata, from the superblock on.
pub fn legacy(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    let metadata = Arc::new(Memory::new(4096 + rest.len() as u64));
    if metadata.write_at(rest, 4096).is_err() {
        return;
    }
    let release = match way >> 1 & 3 {
        1 => Some(legacy::Release::R04),
        2 => Some(legacy::Release::R10),
        _ => None,
    };
    legacy_repair(*way, &metadata, release);
    let Ok(store) = legacy::Store::open(legacy_devices(*way, &metadata), release, &Silent) else { return };
    let _ = (store.info(), store.snapshots(), store.sharing());
    let points = store.points();
    for point in points.iter().take(4) {
        let mut bytes = vec![0; units::index(point.size_bytes.min(1 << 15))];
        let _ = store.read(point.id, 0, &mut bytes);
        for from in [None, points.first().map(|first| first.id), Some(PointId::Origin)] {
            let Ok(changes) = store.changed(from, point.id) else { continue };
            let mut last = 0;
            for range in changes {
                let Ok(range) = range else { break };
                assert!(range.start >= last && range.end > range.start);
                last = range.end;
            }
        }
    }
}

fn legacy_devices(way: u8, metadata: &Arc<Memory>) -> legacy::Devices {
    let metadata: Arc<dyn ReadAt> = Arc::<Memory>::clone(metadata);
    let origin: Option<Arc<dyn ReadAt>> = Some(Arc::new(Memory::from_bytes(&[1; 1 << 15])));
    if way & 1 == 1 {
        let store = Arc::new(Memory::from_bytes(&[2; 1 << 15]));
        return legacy::Devices { store, metadata: Some(metadata), origin };
    }
    legacy::Devices { store: metadata, metadata: None, origin }
}

/// Repairs a store of 2008 both ways. What a repair that gives nothing up leaves reads as before, and needs no other.
fn legacy_repair(way: u8, metadata: &Arc<Memory>, release: Option<legacy::Release>) {
    let read = |metadata: &Arc<Memory>| {
        let store = legacy::Store::open(legacy_devices(way, metadata), release, &Silent).ok()?;
        let sectors = |point: &Point| (0..point.size_bytes.min(1 << 14) / 512).map(|at| at * 512).collect();
        let read = |point: &Point| {
            let sectors: Vec<u64> = sectors(point);
            sectors
                .into_iter()
                .map(|at| {
                    let mut bytes = [0; 512];
                    store.read(point.id, at, &mut bytes).ok().map(|()| bytes)
                })
                .collect::<Vec<_>>()
        };
        Some(store.points().iter().take(4).map(read).collect::<Vec<_>>())
    };
    let Some(before) = read(metadata) else { return };
    let _ = legacy::check(&legacy_devices(way, metadata), release, &Silent);
    for leave in [Leave::Safe, Leave::Everything] {
        let device = Arc::new(metadata.snapshot());
        let repair =
            || legacy::repair(&legacy_devices(way, &device), device.as_ref(), release, leave, &Silent);
        let Ok(repaired) = repair() else { continue };
        assert!(leave == Leave::Everything || repaired.lost.is_empty());
        let after = read(&device).unwrap_or_default();
        if leave == Leave::Safe {
            for (old, new) in before.iter().flatten().zip(after.iter().flatten()) {
                assert!(old.is_none() || old == new, "a snapshot reads otherwise after a repair");
            }
            let again = repair().unwrap_or_default();
            assert!(again.writes.is_empty(), "a repair left something: {:?}", again.writes);
        }
    }
}
