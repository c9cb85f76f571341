//! What exports tell of themselves, as other programs read it: holes, and what has changed since a snapshot.

use crate::harness::{Dir, has_program, noise, skip, volume};
use crate::vm_attach::{Server, sh};
use serde_json::Value;

const CHUNK: usize = 16 << 10;

/// A served volume, its origin, and what that was at snapshot 10.
fn served() -> (Dir, Server, Vec<u8>, Vec<u8>) {
    let dir = volume();
    let before = dir.read("data.img");
    dir.ok("create data.snap 10");
    dir.ok_with("write data.snap --offset 70000", &noise(3, 50_000));
    dir.ok_with("write data.snap --offset 500k", &[1; 10]);
    dir.ok("create data.snap 11");
    dir.ok_with("write data.snap --offset 0", &noise(4, 1));
    let server = Server::start(&dir, "data.snap --nbd unix:nbd");
    let after = dir.read("data.img");
    (dir, server, before, after)
}

/// Offset, length and type of what a map of nbdinfo holds.
fn extents(map: &Value) -> Vec<(usize, usize, u64)> {
    let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    let extents = map.as_array().unwrap().iter();
    extents.map(|e| (number(e, "offset") as usize, number(e, "length") as usize, number(e, "type"))).collect()
}

#[test]
fn changed_blocks_are_told_exactly() {
    if !has_program("nbdinfo") {
        return skip("no nbdinfo (libnbd-bin)");
    }
    let (dir, server, before, after) = served();
    let middle = dir.ok("read vol.sock 11").stdout;
    for (export, base, was, is) in [
        ("origin", 10, &before, &after),
        ("origin", 11, &middle, &after),
        ("snap/11", 10, &before, &middle),
        ("snap/11", 11, &middle, &middle),
    ] {
        let line = format!("nbdinfo --json --map=qemu:dirty-bitmap:{base} 'nbd+unix:///{export}?socket=nbd'");
        let map: Value = serde_json::from_str(&sh(&dir, &line)).unwrap();
        let mut end = 0;
        for (offset, length, kind) in extents(&map) {
            assert_eq!(offset, end, "{line}");
            end += length;
            for at in (offset..offset + length).step_by(CHUNK) {
                let range = at..(at + CHUNK).min(is.len());
                assert_eq!(was[range.clone()] != is[range.clone()], kind == 1, "{line}: {range:?}");
            }
        }
        assert_eq!(end, is.len(), "{line}");
    }
    let list = sh(&dir, "nbdinfo --json 'nbd+unix:///origin?socket=nbd'");
    let list: Value = serde_json::from_str(&list).unwrap();
    let expected = ["base:allocation", "1", "2", "10", "11"]
        .map(|name| if name.contains(':') { name.to_owned() } else { format!("qemu:dirty-bitmap:{name}") });
    assert_eq!(list["exports"][0]["contexts"], serde_json::json!(expected));
    drop(server);
}

#[test]
fn holes_are_told_and_need_not_be_read() {
    if !has_program("nbdinfo") || !has_program("nbdcopy") {
        return skip("no nbdinfo, nbdcopy (libnbd-bin)");
    }
    let (dir, server, _, _) = served();
    // The image of the harness has half a MiB of zeroes that were written, so a hole is made of them.
    drop(server);
    sh(&dir, "fallocate -d data.img");
    let server = Server::start(&dir, "data.snap --nbd unix:nbd");
    let after = dir.read("data.img");
    let middle = dir.ok("read vol.sock 11").stdout;
    for (export, is) in [("origin", &after), ("snap/11", &middle)] {
        let line = format!("nbdinfo --json --map 'nbd+unix:///{export}?socket=nbd'");
        let map = extents(&serde_json::from_str(&sh(&dir, &line)).unwrap());
        let holes = map.iter().filter(|(_, _, kind)| *kind == 3);
        let mut zeroes = 0;
        for (offset, length, _) in holes {
            assert!(is[*offset..offset + length].iter().all(|byte| *byte == 0), "{line}");
            zeroes += length;
        }
        assert!(zeroes >= 256 << 10, "{line}: {map:?}");
        sh(&dir, &format!("rm -f copy.img; nbdcopy 'nbd+unix:///{export}?socket=nbd' copy.img"));
        assert!(dir.read("copy.img") == *is, "{export}");
    }
    drop(server);
}

#[test]
fn qemu_reads_the_same_map() {
    if !has_program("qemu-img") {
        return skip("no qemu-img (qemu-utils)");
    }
    let (dir, server, before, after) = served();
    let options =
        "driver=nbd,server.type=unix,server.path=nbd,export=origin,x-dirty-bitmap=qemu:dirty-bitmap:10";
    let map: Value =
        serde_json::from_str(&sh(&dir, &format!("qemu-img map --output=json --image-opts {options}")))
            .unwrap();
    let mut end = 0;
    for extent in map.as_array().unwrap() {
        let [offset, length] = ["start", "length"].map(|name| extent[name].as_u64().unwrap() as usize);
        assert_eq!(offset, end);
        end += length;
        // qemu shows what is dirty as no data.
        let is_dirty = extent["data"] == false;
        let differs = before[offset..end] != after[offset..end];
        assert_eq!(is_dirty, differs, "{extent}");
    }
    assert_eq!(end, after.len());
    drop(server);
}
