//! Lists of changes that other tools make, in place of a changelist.

use crate::cli_sources::listed;
use crate::harness::{Dir, golden, has_program, noise, skip};

const BLOCK: usize = 64 << 10;

fn file(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/import");
    std::fs::read(folder.join(name)).unwrap()
}

/// Two images that differ in exactly these blocks, and every list that says so.
fn with_lists() -> Dir {
    let dir = Dir::new();
    let old = noise(1, 64 * BLOCK);
    let mut new = old.clone();
    for block in [10, 11, 12, 25] {
        new[block * BLOCK + 5] ^= 1;
    }
    dir.write("old.img", &old);
    dir.write("new.img", &new);
    let thin = |inside: &str| {
        format!(
            "<superblock data_block_size=\"128\">\n<diff left=\"1\" right=\"2\">{inside}</diff></superblock>\n"
        )
    };
    let plain = "<same begin=\"0\" length=\"10\"/><different begin=\"10\" length=\"3\"/>\
                 <left_only begin=\"25\" length=\"1\"/>";
    dir.write("thin.xml", thin(plain).as_bytes());
    dir.write("era.xml", b"<blocks><range begin=\"10\" end = \"13\"/><block block=\"25\"/></blocks>");
    let extent = |start: usize, end: usize, kind: usize, word: &str| {
        let (offset, length) = (start * BLOCK, (end - start) * BLOCK);
        format!("{{\"offset\":{offset},\"length\":{length},\"type\":{kind},\"description\":\"{word}\"}}")
    };
    let map = [
        extent(0, 10, 0, "clean"),
        extent(10, 13, 1, "dirty"),
        extent(13, 25, 0, "clean"),
        extent(25, 26, 1, "dirty"),
        extent(26, 64, 0, "clean"),
    ];
    dir.write("map.json", format!("[{}]\n", map.join(",\n")).as_bytes());
    dir
}

#[test]
fn every_list_makes_the_same_delta_as_comparing() {
    let dir = with_lists();
    for (list, options) in [("thin.xml", ""), ("era.xml", "--block-size 64k"), ("map.json", "")] {
        dir.ok(&format!("create-delta {options} {list} x.delta old.img new.img"));
        dir.copy("old.img", "target");
        dir.ok("apply-delta x.delta target");
        assert!(dir.read("target") == dir.read("new.img"), "{list}");
        // The same through a changelist file, from a file and from standard input.
        dir.ok(&format!("changelist --import {list} {options} list"));
        dir.ok("create-delta list y.delta old.img new.img");
        assert!(dir.read("y.delta") == dir.read("x.delta"), "{list}");
        let again = dir.ok_with(&format!("changelist --import - {options} -"), &dir.read(list));
        assert_eq!(again.stdout, dir.read("list"), "{list}");
    }
    // By the numbers of the thin devices.
    dir.copy("old.img", "dev(1)");
    dir.copy("new.img", "dev(2)");
    dir.ok("create-delta thin.xml z.delta dev");
}

/// Name of the golden file, command, exit status.
pub const CASES: [(&str, &str, i32); 14] = [
    ("era-without-block-size", "create-delta era.xml out old.img new.img", 2),
    ("thin-other-block-size", "changelist --import thin.xml --block-size 4k out", 3),
    ("changelist-block-size", "create-delta --block-size 4k list out old.img new.img", 2),
    ("thin-cut", "create-delta cut.xml out old.img new.img", 3),
    ("map-cut", "changelist --import cut.json out", 3),
    ("thin-unordered", "create-delta back.xml out old.img new.img", 3),
    ("thin-huge", "changelist --import huge.xml out", 3),
    ("thin-dump", "create-delta dump.xml out old.img new.img", 3),
    ("allocation", "changelist --import allocation.json out", 3),
    ("no-list", "changelist --import text out", 3),
    ("map-too-short", "create-delta map.json out old.img larger.img", 3),
    ("missing", "changelist --import nowhere out", 1),
    ("onto-itself", "changelist --import thin.xml thin.xml", 2),
    ("block-size-alone", "changelist --block-size 4k --compare old.img new.img out", 2),
];

#[test]
fn bad_lists_are_refused_and_nothing_is_made() {
    let dir = with_lists();
    let thin = String::from_utf8(dir.read("thin.xml")).unwrap();
    let map = String::from_utf8(dir.read("map.json")).unwrap();
    dir.write("cut.xml", &thin.as_bytes()[..thin.len() - 20]);
    dir.write("cut.json", &map.as_bytes()[..map.len() - 20]);
    dir.write("back.xml", thin.replace("begin=\"25\"", "begin=\"12\"").as_bytes());
    dir.write("huge.xml", thin.replace("begin=\"25\"", "begin=\"1844674407370955161\"").as_bytes());
    dir.write("dump.xml", b"<superblock data_block_size=\"128\"><device dev_id=\"1\"/></superblock>");
    dir.write("allocation.json", &file("nbdinfo-allocation.json"));
    dir.write("text", b"10\n11\n");
    dir.ok("changelist --import thin.xml list");
    let half: Vec<u8> = dir.read("new.img");
    dir.write("larger.img", &[half, vec![1; BLOCK]].concat());
    for (name, args, code) in CASES {
        let run = dir.untouched(|dir| dir.run(args)).expect(code);
        golden(&format!("errors/import-{name}.txt"), &dir.mask(&run.transcript()));
    }
}

/// The metadata that `testdata/import/thin_delta.xml` was made from.
const THIN: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1000">
<device dev_id="1" mapped_blocks="30" transaction="0" creation_time="0" snap_time="2">
<range_mapping origin_begin="0" data_begin="0" length="20" time="0"/>
<single_mapping origin_block="25" data_block="50" time="1"/>
<range_mapping origin_begin="30" data_begin="60" length="9" time="2"/></device>
<device dev_id="2" mapped_blocks="32" transaction="1" creation_time="1" snap_time="2">
<range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
<range_mapping origin_begin="10" data_begin="100" length="3" time="1"/>
<range_mapping origin_begin="13" data_begin="13" length="7" time="0"/>
<range_mapping origin_begin="30" data_begin="60" length="9" time="2"/>
<range_mapping origin_begin="100" data_begin="200" length="3" time="2"/></device>
</superblock>"#;

#[test]
fn the_real_tools_of_device_mapper() {
    for program in ["thin_restore", "thin_delta", "era_restore", "era_invalidate"] {
        if !has_program(program) {
            return skip(&format!("no '{program}'"));
        }
    }
    let dir = Dir::new();
    dir.write("meta.xml", THIN.as_bytes());
    dir.shell("truncate -s 16M meta && thin_restore -i meta.xml -o meta").expect(0);
    for options in ["", "--verbose"] {
        dir.shell(&format!("thin_delta {options} --snap1 1 --snap2 2 meta > list")).expect(0);
        dir.ok("changelist --import list out");
        assert_eq!(listed(&dir.read("out")), [10, 11, 12, 25, 100, 101, 102], "{options}");
    }
    let mut eras = String::from(
        "<superblock uuid=\"\" block_size=\"128\" nr_blocks=\"1000\" current_era=\"5\">\n\
         <writeset era=\"3\" nr_bits=\"1000\"><bit block=\"700\" value=\"true\"/></writeset>\n<era_array>\n",
    );
    for block in 0..1000 {
        let era = if (10..20).contains(&block) {
            2
        } else if block == 55 {
            4
        } else {
            0
        };
        eras += &format!("<era block=\"{block}\" era=\"{era}\"/>\n");
    }
    dir.write("era.xml", (eras + "</era_array></superblock>").as_bytes());
    dir.shell("truncate -s 4M era && era_restore -i era.xml -o era").expect(0);
    dir.shell("era_invalidate --written-since 2 era > list").expect(0);
    dir.ok("changelist --import list --block-size 64k out");
    let expected: Vec<u64> = (10..20).chain([55, 700]).collect();
    assert_eq!(listed(&dir.read("out")), expected);
    dir.shell("era_invalidate --written-since 100 era > list").expect(0);
    dir.ok("changelist --import list --block-size 64k out");
    assert!(listed(&dir.read("out")).is_empty());
}

#[test]
fn a_real_dirty_bitmap() {
    for program in ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"] {
        if !has_program(program) {
            return skip(&format!("no '{program}'"));
        }
    }
    let dir = Dir::new();
    let script = "qemu-img create -q -f qcow2 disk 4M && qemu-io -c 'write -P 1 0 4M' disk &&
        qemu-img convert -O raw disk old.img && qemu-img bitmap --add -g 64k disk monday &&
        qemu-io -c 'write -P 2 65536 4096' -c 'write -P 3 1M 200k' -c 'write -z 3M 64k' disk &&
        qemu-img convert -O raw disk new.img";
    dir.shell(&format!("({script}) >&2")).expect(0);
    let serve = "qemu-nbd -t -r -f qcow2 -B monday --fork -k \"$PWD/sock\" --pid-file pid disk >&2 &&
        nbdinfo --json --map=qemu:dirty-bitmap:monday \"nbd+unix:///?socket=$PWD/sock\" > map;
        status=$?; nbdinfo --json --map \"nbd+unix:///?socket=$PWD/sock\" > allocation; kill $(cat pid); exit $status";
    dir.shell(serve).expect(0);
    dir.ok("changelist --import map out");
    let expected: Vec<u64> = (4..8).chain(64..80).chain(192..196).collect();
    assert_eq!(listed(&dir.read("out")), expected);
    dir.ok("create-delta map x.delta old.img new.img");
    dir.copy("old.img", "target");
    dir.ok("apply-delta x.delta target");
    assert!(dir.read("target") == dir.read("new.img"));
    dir.run("changelist --import allocation out").expect(3).says("none of a dirty bitmap");
}
