//! An origin that others write past the store where no server is inserted beneath them.

use crate::harness::noise;
use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::point::PointId;
use ddsnap::point::PointSource;
use ddsnap::store::{InitOptions, View, Writer};
use ddsnap::units::Tag;
use std::path::PathBuf;
use std::sync::Arc;

const ORIGIN: usize = 1 << 20;

/// A store of `origin`, whose ends are never written: they are what a store looks at.
fn store(origin: &Memory) -> Arc<Memory> {
    let device = Arc::new(Memory::new(4 << 20));
    let options = InitOptions {
        chunk_size: 4096,
        block_size: 4096,
        origin_path: PathBuf::from("/origin"),
        origin_size: origin.size(),
        now_secs: 1,
    };
    let shared: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
    Writer::initialize(&shared, &options).unwrap();
    device
}

fn beneath(store: &Arc<Memory>, origin: &Arc<Memory>, is_inserted: bool) -> Writer {
    let writer = Writer::open(Arc::<Memory>::clone(store), None, 2).unwrap();
    writer.with_origin_beneath(Arc::<Memory>::clone(origin), is_inserted).unwrap()
}

/// Which snapshots somebody who reads the store with its origin trusts, of all there are.
fn trusted(store: &Memory, origin: &Arc<Memory>) -> Vec<bool> {
    let view = View::open(Arc::new(store.snapshot()), Some(Arc::<Memory>::clone(origin) as _)).unwrap();
    view.snapshots().iter().map(|snapshot| !snapshot.tainted).collect()
}

#[test]
fn snapshots_are_trusted_only_by_a_server_that_was_inserted_all_the_time() {
    let origin = Arc::new(Memory::from_bytes(&noise(1, ORIGIN)));
    let store = store(&origin);
    let mut writer = beneath(&store, &origin, false);
    let first = writer.create_snapshot(Tag(1), None).unwrap();
    let mut bytes = vec![0; ORIGIN];
    writer.write_origin(70_000, &noise(2, 9000)).unwrap();
    writer.view().read(PointId::Snapshot(first.id), 0, &mut bytes).unwrap();
    assert!(bytes == noise(1, ORIGIN) && !writer.view().snapshots()[0].tainted);
    // Cut off, and closed: nobody knows what is written from now on.
    assert_eq!(trusted(&store, &origin), [false]);
    writer.close().unwrap();
    assert_eq!(trusted(&store, &origin), [false]);
    // Still inserted when the next one comes.
    let mut writer = beneath(&store, &origin, true);
    writer.create_snapshot(Tag(2), None).unwrap();
    assert!(writer.view().snapshots().iter().all(|snapshot| !snapshot.tainted));
    writer.close().unwrap();
    // Taken out, and inserted again: what was there is not trusted for good, what is made now is.
    let mut writer = beneath(&store, &origin, false);
    writer.create_snapshot(Tag(3), None).unwrap();
    writer.close().unwrap();
    let writer = beneath(&store, &origin, true);
    let tainted: Vec<_> = writer.view().snapshots().iter().map(|snapshot| snapshot.tainted).collect();
    assert_eq!(tainted, [true, true, false]);
    drop(writer);
    // One that has the origin to itself trusts none, until somebody accepts them.
    let shared: Arc<dyn WriteAt> = Arc::<Memory>::clone(&origin);
    let mut writer = Writer::open(Arc::<Memory>::clone(&store), Some(shared), 3).unwrap();
    assert!(writer.view().snapshots().iter().all(|snapshot| snapshot.tainted));
    writer.accept_taint().unwrap();
    writer.close().unwrap();
    assert_eq!(trusted(&store, &origin), [true; 3]);
}
