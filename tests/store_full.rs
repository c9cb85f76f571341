//! A full store: what is refused beforehand, what is never given up, and that the way back stays open.

use ddsnap::block::WriteAt;
use ddsnap::block::memory::Memory;
use ddsnap::error::Kind;
use ddsnap::point::{PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::{InitOptions, Writer};
use ddsnap::units::Tag;
use std::path::PathBuf;
use std::sync::Arc;

const ORIGIN: usize = 4 << 20;

/// An origin of noise and a store that holds less than half of it.
fn small() -> (Writer, Arc<Memory>, Vec<u8>) {
    let image = crate::harness::noise(3, ORIGIN);
    let origin = Arc::new(Memory::from_bytes(&image));
    let device: Arc<dyn WriteAt> = Arc::new(Memory::new(3 << 20));
    let options = InitOptions {
        chunk_size: 4096,
        block_size: 4096,
        origin_path: PathBuf::from("/origin"),
        origin_size: ORIGIN as u64,
        now_secs: 1,
    };
    Writer::initialize(&device, &options).unwrap();
    let shared: Arc<dyn WriteAt> = Arc::<Memory>::clone(&origin);
    (Writer::open(device, Some(shared), 2).unwrap(), origin, image)
}

#[test]
fn room_is_refused_beforehand_and_costs_no_snapshot() {
    let (mut writer, origin, image) = small();
    writer.create_snapshot(Tag(1), None).unwrap();
    writer.ensure_room_for(200_000).unwrap();
    let error = writer.ensure_room_for(ORIGIN as u64).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_eq!(writer.view().snapshots().len(), 1);
    assert!(origin.to_vec().unwrap() == image);
}

#[test]
fn a_snapshot_being_written_is_never_given_up_for_itself() {
    let (mut writer, _, image) = small();
    let made = writer.create_snapshot(Tag(1), None).unwrap();
    let error = writer.write_snapshot(made.id, 0, &crate::harness::noise(4, ORIGIN)).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    let mut tail = vec![0; 4096];
    writer.view().read(PointId::Snapshot(made.id), ORIGIN as u64 - 4096, &mut tail).unwrap();
    assert!(tail == image[ORIGIN - 4096..]);
}

#[test]
fn an_operation_that_fills_the_store_can_always_be_rolled_back() {
    let (mut writer, origin, image) = small();
    writer.begin_operation("too much", [1; 32], false, None).unwrap();
    let new = crate::harness::noise(5, ORIGIN);
    let mut refused = 0;
    for (number, piece) in new.chunks(64 << 10).enumerate() {
        match writer.write_origin(number as u64 * (64 << 10), piece) {
            Ok(()) => assert_eq!(refused, 0, "a write succeeded after one was refused"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the store held all of it");
    assert!(origin.to_vec().unwrap() != image);
    writer.roll_back(&Silent).unwrap();
    assert!(origin.to_vec().unwrap() == image);
}
