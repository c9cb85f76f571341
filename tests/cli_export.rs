//! Exports: what is written is what the point held, and other programs read it so.

use crate::harness::{Dir, Rng, has_program, noise, skip, volume};
use std::os::unix::fs::MetadataExt;

/// Runs a command line of another program and fails unless it succeeds.
fn oracle(dir: &Dir, line: &str) -> String {
    dir.shell(line).expect(0).text()
}

/// True unless QEMU's tools are missing, which is said.
fn has_qemu() -> bool {
    let found = has_program("qemu-img");
    if !found {
        skip("no 'qemu-img' to check images with");
    }
    found
}

#[test]
fn a_raw_image_is_sparse_or_nothing() {
    let dir = volume();
    for options in ["", "--format raw", "--bmap map"] {
        dir.ok(&format!("export data.snap 1 out.img {options}"));
        assert_eq!(dir.read("out.img"), dir.read("monday.img"));
        let meta = std::fs::metadata(dir.path("out.img")).unwrap();
        assert!(meta.blocks() * 512 <= meta.len() * 6 / 10, "{} blocks", meta.blocks());
    }
    assert_eq!(dir.ok("export data.snap 2 - --bmap map").stdout, dir.read("second.img"));
}

/// Makes a volume of `size` bytes with five snapshots, some chunks of which become zero.
fn history(dir: &Dir, size: u64, chunk: &str, seed: u64) {
    let mut rng = Rng(seed);
    let mut image = noise(seed, usize::try_from(size).unwrap());
    let len = image.len();
    image[len / 3..len / 2].fill(0);
    dir.write("data.img", &image);
    dir.ok(&format!("initialize --size 64M -c {chunk} data.snap data.img"));
    for tag in 1..=5 {
        dir.ok(&format!("create data.snap {tag}"));
        for _ in 0..6 {
            let len = 1 + rng.below(size.min(100_000));
            let at = rng.below(size - len + 1);
            let bytes = if rng.below(3) == 0 { vec![0; len as usize] } else { rng.bytes(len as usize) };
            dir.ok_with(&format!("write data.snap --offset {at}"), &bytes);
        }
    }
}

#[test]
fn qemu_reads_what_was_exported() {
    if !has_qemu() {
        return;
    }
    let cases = [
        (3_000_064, "4k", ""),
        (3_000_320, "16k", "--cluster-size 4k"),
        (3_000_321, "256k", ""),
        (700, "4k", ""),
    ];
    for (seed, (size, chunk, options)) in (1..).zip(cases) {
        let dir = Dir::new();
        history(&dir, size, chunk, seed);
        let mut below = String::new();
        for snap in ["1", "2", "4", "5", "origin"] {
            dir.ok(&format!("export data.snap {snap} {snap}.img"));
            dir.ok(&format!("export data.snap {snap} {snap}.qcow2 --format qcow2 {options}"));
            let mut images = vec![format!("{snap}.qcow2")];
            if !below.is_empty() {
                // Over the raw export, over the whole QCOW2 one, and over the chain of overlays.
                for (name, backing) in [
                    ("raw", format!("{below}.img")),
                    ("whole", format!("{below}.qcow2")),
                    ("chain", chain(&below)),
                ] {
                    let image = format!("{name}-{snap}.qcow2");
                    dir.ok(&format!(
                        "export data.snap {snap} {image} --format qcow2 --from {below} --backing {backing} {options}"
                    ));
                    images.push(image);
                }
            }
            for image in images {
                oracle(&dir, &format!("qemu-img check -q {image}"));
                // QEMU pads a raw file to whole sectors, as the export does.
                oracle(&dir, &format!("qemu-img compare -q {image} {snap}.img"));
            }
            below = snap.to_owned();
        }
    }
}

fn chain(snap: &str) -> String {
    if snap == "1" { "1.qcow2".to_owned() } else { format!("chain-{snap}.qcow2") }
}

#[test]
fn a_backing_image_is_found_from_elsewhere() {
    if !has_qemu() {
        return;
    }
    let dir = volume();
    for folder in ["base", "over", "over/deep"] {
        std::fs::create_dir(dir.path(folder)).unwrap();
    }
    std::os::unix::fs::symlink("over/deep", dir.path("link")).unwrap();
    dir.ok("export data.snap 1 base/a:b.img");
    dir.ok("export data.snap 1 a:b.img");
    let absolute = dir.path("base/a:b.img").display().to_string();
    for (output, backing) in [
        ("over/x.qcow2", "base/a:b.img"),
        ("over/deep/x.qcow2", "base/a:b.img"),
        ("link/x.qcow2", "base/a:b.img"),
        ("x.qcow2", "a:b.img"),
        ("over/y.qcow2", &absolute),
    ] {
        dir.ok(&format!("export data.snap 2 {output} --format qcow2 --from monday --backing {backing}"));
        oracle(&dir, &format!("qemu-img compare -q {output} second.img"));
        let info = oracle(&dir, &format!("qemu-img info --output=json {output}"));
        assert!(info.contains("\"backing-filename-format\": \"raw\""), "{info}");
    }
}

/// A guest that wrote the header of an image onto its disk must not make anyone open what that names.
#[test]
fn a_disk_that_looks_like_an_image_is_a_raw_one() {
    let dir = volume();
    dir.ok("export data.snap 1 trap.qcow2 --format qcow2");
    let size = dir.read("data.img").len();
    dir.ok_with("write data.snap", &dir.read("trap.qcow2")[..size / 2]);
    dir.ok("create data.snap 3");
    dir.ok_with("write data.snap --offset 600k", b"changed");
    dir.ok("export data.snap 3 below.img");
    dir.ok("export data.snap origin over.qcow2 --format qcow2 --from 3 --backing below.img");
    let head = dir.read("over.qcow2");
    assert_eq!(head[112..115], *b"raw");
    dir.ok("export data.snap 3 below.qcow2 --format qcow2");
    dir.ok("export data.snap origin over.qcow2 --format qcow2 --from 3 --backing below.qcow2");
    assert_eq!(dir.read("over.qcow2")[112..117], *b"qcow2");
}

#[test]
fn a_disk_of_odd_size_is_said_to_be_rounded() {
    let dir = Dir::new();
    dir.write("data.img", &noise(1, 123_457));
    dir.ok("initialize --size 32M data.snap data.img");
    dir.ok("create data.snap 1");
    dir.ok("export data.snap 1 out.qcow2 --format qcow2")
        .says("has 123904 bytes, 447 zeros more than the volume");
    assert_eq!(dir.read("out.qcow2")[24..32], 123_904u64.to_be_bytes());
}

#[test]
fn exports_that_make_no_sense_are_refused_and_touch_nothing() {
    let dir = volume();
    dir.ok("export data.snap 1 one.qcow2 --format qcow2");
    dir.write("short.img", &[0; 4096]);
    dir.write("broken.qcow2", &dir.read("one.qcow2")[..50]);
    let mut newer = dir.read("one.qcow2");
    newer[7] = 9;
    dir.write("newer.qcow2", &newer);
    for (args, code, word) in [
        ("export data.snap 1 - --format qcow2", 2, "cannot be streamed"),
        ("export data.snap 1 /dev/null --format qcow2", 2, "needs a regular file"),
        ("export data.snap 1 x --from 1 --backing one.qcow2", 2, "need --format qcow2"),
        ("export data.snap 1 x --cluster-size 64k", 2, "needs --format qcow2"),
        ("export data.snap 1 x --format qcow2 --bmap y", 2, "raw images only"),
        ("export data.snap 1 x --bmap x", 2, "are the same"),
        ("export data.snap 1 x --bmap data.img", 2, "would overwrite its own input"),
        ("export data.snap 2 x --format qcow2 --from 1", 2, "--backing"),
        ("export data.snap 2 x --format qcow2 --backing one.qcow2", 2, "--from"),
        ("export data.snap 2 x --format qcow2 --cluster-size 3k", 2, "power of two"),
        ("export data.snap 2 x --format vmdk", 2, "possible values: raw, qcow2"),
        ("export data.snap 2 one.qcow2 --format qcow2 --from 1 --backing one.qcow2", 2, "its own input"),
        ("export data.snap 2 x --format qcow2 --from 7 --backing one.qcow2", 1, "there is no snapshot 7"),
        ("export data.snap 2 x --format qcow2 --from 1 --backing none", 1, "cannot read the backing image"),
        ("export data.snap 2 x --format qcow2 --from 1 --backing .", 2, "no regular file"),
        (
            "export data.snap 2 x --format qcow2 --from 1 --backing short.img",
            3,
            "has 4096 bytes, the snapshot",
        ),
        ("export data.snap 2 x --format qcow2 --from 1 --backing broken.qcow2", 3, "has only 50 bytes"),
        ("export data.snap 2 x --format qcow2 --from 1 --backing newer.qcow2", 3, "is of version 9"),
    ] {
        dir.untouched(|dir| dir.run(args)).expect(code).says(word);
    }
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let dir = volume();
    let names = dir.names();
    for format in ["--format qcow2", "--bmap map"] {
        let line = format!("ulimit -f 16; trap '' XFSZ; ddsnap export data.snap 1 out.img {format}");
        dir.shell(&line).expect(1).says("File too large");
        assert_eq!(dir.names(), names);
    }
}

#[test]
fn bmaptool_copies_by_the_map() {
    if !has_program("bmaptool") {
        return skip("no 'bmaptool' to copy by a block map");
    }
    for size in [3_000_064, 3_000_321, 4096, 700] {
        let dir = Dir::new();
        history(&dir, size, "4k", size);
        dir.ok("export data.snap 3 out.img --bmap out.bmap");
        oracle(&dir, "bmaptool -q copy --bmap out.bmap out.img copy.img");
        assert_eq!(dir.read("copy.img"), dir.ok("read data.snap 3").stdout);
        // Its checksums are checked: a changed byte is seen.
        dir.patch("out.img", 10, |bytes| bytes[0] ^= 1);
        assert_ne!(dir.shell("bmaptool -q copy --bmap out.bmap out.img copy.img").code, Some(0));
    }
}
