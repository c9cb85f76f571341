//! Writers and the lander, with an origin in memory.

use super::*;
use std::sync::Mutex;
use std::time::Duration;

const BYTES: usize = 64 << 10;

/// A lander that has an origin of bytes, and fails when it is told to.
fn land(turns: &Turns, origin: &Mutex<Vec<u8>>, fails: &Mutex<bool>) {
    while let Some(chunks) = turns.next_batch() {
        if *fails.lock().unwrap() {
            turns.landed(chunks.len(), Err(Error::new(Kind::Io, "told to")), 1000);
            continue;
        }
        for group in chunks.chunks(3) {
            let mut data = Vec::new();
            let mut at = 0;
            for (offset, length) in turns.lift(group, &mut data) {
                let start = usize::try_from(offset).unwrap();
                origin.lock().unwrap()[start..start + length].copy_from_slice(&data[at..at + length]);
                at += length;
            }
            turns.release(group);
        }
        turns.landed(chunks.len(), Ok(()), 1000);
    }
    turns.ended();
}

fn write(turns: &Turns, origin: &Mutex<Vec<u8>>, offset: usize, data: &[u8]) -> Result<()> {
    let (first, end) = (offset >> 8, ((offset + data.len() - 1) >> 8) + 1);
    let claim = turns.claim(first as u64, end as u64);
    if claim.is_direct() && data[0].is_multiple_of(4) {
        origin.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        return Ok(());
    }
    claim.hold(offset as u64, data, &|| Some(1000))
}

#[test]
fn many_writers_share_little_memory_and_each_byte_is_the_last_written() {
    let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
    let fails = Mutex::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| land(&turns, &origin, &fails));
        let writers: Vec<_> = (0..8)
            .map(|writer: usize| {
                let (turns, origin) = (&turns, &origin);
                scope.spawn(move || {
                    // Each has every eighth stretch of 64 bytes: four writers share a chunk.
                    let mut model = vec![0; BYTES];
                    for round in 1..2000 {
                        let stretch = (round * 7919 % (BYTES / 512)) * 512 + writer * 64;
                        let data = [u8::try_from(round % 255 + 1).unwrap(); 64];
                        write(turns, origin, stretch, &data).unwrap();
                        model[stretch..stretch + 64].copy_from_slice(&data);
                        let mut back = [0; 64];
                        for rest in turns.fill(stretch as u64, &mut back) {
                            let from = stretch + rest.start;
                            let bytes = origin.lock().unwrap()[from..from + rest.len()].to_vec();
                            back[rest].copy_from_slice(&bytes);
                        }
                        assert!(back == data);
                    }
                    model
                })
            })
            .collect();
        for _ in 0..50 {
            let stopped = turns.stop().unwrap();
            let before = origin.lock().unwrap().clone();
            std::thread::sleep(Duration::from_micros(300));
            assert!(*origin.lock().unwrap() == before, "somebody writes who was stopped");
            drop(stopped);
        }
        let models: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        turns.settle().unwrap();
        let origin = origin.lock().unwrap().clone();
        for (at, byte) in origin.iter().enumerate() {
            assert_eq!(*byte, models[at % 512 / 64][at], "byte {at}");
        }
        turns.end();
    });
    turns.ensure_empty().unwrap();
}

#[test]
fn whoever_waits_for_what_cannot_land_is_told() {
    let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
    let fails = Mutex::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| land(&turns, &origin, &fails));
        write(&turns, &origin, 0, &[1; 100]).unwrap();
        assert!(turns.settle().is_err() && turns.settle().is_err() && turns.stop().is_err());
        assert!(write(&turns, &origin, 5, &[2; 10]).is_err());
        *fails.lock().unwrap() = false;
        write(&turns, &origin, 50, &[3; 10]).unwrap();
        turns.settle().unwrap();
        assert_eq!(origin.lock().unwrap()[45..65], [[1; 5], [3; 5], [3; 5], [1; 5]].concat());
        *fails.lock().unwrap() = true;
        write(&turns, &origin, 600, &[5; 10]).unwrap();
        turns.end();
    });
    assert!(turns.ensure_empty().is_err() && turns.settle().is_err() && turns.stop().is_err());
    assert!(write(&turns, &origin, 600, &[5; 10]).is_err());
}

#[test]
fn what_a_batch_took_of_the_log_is_no_room_for_the_next() {
    let turns = Turns::new(Held::new(8, 64 << 8));
    let write =
        |chunk: u64, room: u64| turns.claim(chunk, chunk + 1).hold(chunk << 8, &[1; 9], &|| Some(room));
    (0..4).for_each(|chunk| write(chunk, 4).unwrap());
    let batch = turns.next_batch().unwrap();
    // It is in the log, which is full by that; the origin has it, and the lander has said nothing yet.
    turns.release(&batch);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| write(9, 0));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(turns.fill(9 << 8, &mut [0; 9]).len(), 0, "it is held");
        turns.landed(batch.len(), Ok(()), 0);
        let alone = turns.next_batch().unwrap();
        turns.landed(alone.len(), Err(Error::new(Kind::NoSpace, "full")), 0);
        assert_eq!(
            waits.join().unwrap().unwrap_err().kind(),
            Kind::NoSpace,
            "it was not told that it is written"
        );
    });
    turns.ensure_empty().unwrap();
}

#[test]
fn without_room_a_write_lands_alone_and_its_failure_is_its_own() {
    let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
    let fails = Mutex::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| land(&turns, &origin, &fails));
        let write = |offset: u64, data: &[u8]| {
            turns.claim(offset >> 8, (offset >> 8) + 1).hold(offset, data, &|| None)
        };
        // Nobody has said yet that the log has any room.
        assert_eq!(write(0, &[1; 100]).unwrap_err().kind(), Kind::Io);
        turns.settle().unwrap();
        *fails.lock().unwrap() = false;
        assert_eq!(turns.fill(0, &mut [0; 100]).first(), Some(&(0..100)));
        write(0, &[2; 100]).unwrap();
        turns.end();
    });
    turns.ensure_empty().unwrap();
    assert_eq!(origin.lock().unwrap()[99], 2);
}
