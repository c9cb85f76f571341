//! `restore`: in place or elsewhere, and never over what somebody may want to keep.

use crate::harness::{Dir, golden, noise, volume};
use ddsnap::format::superblock::OFFSETS;
use std::path::Path;

/// A volume and its dump.
fn dumped() -> Dir {
    let dir = volume();
    dir.ok("hold data.snap 1 offsite");
    let dump = dir.ok("dump --format yaml data.snap").stdout;
    dir.write("data.yaml", &dump);
    dir
}

fn assert_reads(dir: &Dir, store: &str) {
    for (tag, image) in [("1", "monday.img"), ("2", "second.img")] {
        assert!(
            dir.ok(&format!("read {store} {tag}")).stdout == dir.read(image),
            "snapshot {tag} of {store}"
        );
    }
}

/// Overwrites every block that begins with one of these.
fn wipe(dir: &Dir, magics: &[&[u8]]) {
    let mut bytes = dir.read("data.snap");
    for block in bytes.chunks_mut(4096).filter(|block| magics.iter().any(|magic| block.starts_with(magic))) {
        block.fill(0x77);
    }
    dir.write("data.snap", &bytes);
}

#[test]
fn what_was_wiped_comes_back_in_place() {
    let dir = dumped();
    let before = dir.ok("list data.snap").text();
    wipe(&dir, &[b"ddsnapSB", b"ddsnapCK", b"ddIX"]);
    dir.run("list data.snap").expect(3);
    let told = dir.untouched(|dir| dir.ok("restore --dry-run data.yaml data.snap")).text();
    assert!(told.starts_with("would write data.snap: store ") && told.contains("2 snapshots"), "{told}");
    let run = dir.ok("restore data.yaml data.snap");
    assert_eq!((run.text().as_str(), run.stderr.as_str()), ("", ""));
    dir.ok("fsck -n --data data.snap");
    assert_eq!(dir.ok("list data.snap").text(), before);
    assert_reads(&dir, "data.snap");
    // Once more: nothing happened since.
    for _ in 0..2 {
        let run = dir.ok("restore data.yaml data.snap");
        assert_eq!((run.text().as_str(), run.stderr.as_str()), ("", ""));
    }
    dir.ok("fsck -n --data data.snap");
    assert_eq!(dir.ok("list data.snap").text(), before);
    // And it goes on from there.
    dir.ok_with("write data.snap --offset 10k", &noise(7, 5000));
    dir.ok("create data.snap 3");
    assert_reads(&dir, "data.snap");
    dir.ok("fsck -n --data data.snap");
}

#[test]
fn elsewhere_all_but_the_data_is_there() {
    let dir = dumped();
    let told = dir.untouched(|dir| dir.ok("restore --dry-run data.yaml copy.snap")).text();
    assert!(told.starts_with("would make copy.snap: "), "{told}");
    dir.ok_with("restore - copy.snap", &dir.read("data.yaml"));
    for command in ["list", "list --json", "fsck -n", "changelist --json"] {
        let (name, options) = command.split_once(' ').unwrap_or((command, ""));
        let more = if name == "changelist" { " - 1 2" } else { "" };
        let [a, b] = ["data", "copy"].map(|store| {
            let run = dir.ok(&format!("{name} {options} {store}.snap{more}"));
            run.text().replace("copy.snap", "data.snap")
        });
        // How many records were replayed is another matter.
        assert!(name == "fsck" || a == b, "{command}: {a}{b}");
    }
    assert_eq!(std::fs::metadata(dir.path("copy.snap")).unwrap().len(), dir.read("data.snap").len() as u64);
    dir.untouched(|dir| dir.run("read copy.snap 1")).expect(3).says("preserved chunk has checksum");
    assert_eq!(dir.ok("read copy.snap 2 --length 64k").stdout, dir.read("second.img")[..64 << 10]);
}

#[test]
fn what_somebody_may_want_to_keep_must_be_insisted_on() {
    let dir = dumped();
    let big = vec![0; dir.read("data.snap").len()];
    let other = volume();
    let mut text = String::new();
    let mut check = |args: &str, code: i32| {
        let run = dir.untouched(|dir| dir.run(args)).expect(code);
        text.push_str(&dir.mask_digests(&run.transcript()));
        text.push('\n');
    };
    dir.write("other.snap", &other.read("data.snap"));
    check("restore data.yaml other.snap", 5);
    check("restore --dry-run data.yaml other.snap", 0);
    dir.write("xfs.img", &big);
    dir.patch("xfs.img", 0, |bytes| bytes[..4].copy_from_slice(b"XFSB"));
    check("restore data.yaml xfs.img", 5);
    dir.write("anonymous.yaml", &dir.ok("dump --anonymous --format yaml data.snap").stdout);
    check("restore anonymous.yaml data.snap", 5);
    dir.write("small.img", &big[..1 << 20]);
    check("restore data.yaml small.img", 3);
    check("restore data.yaml data.yaml", 2);
    check("restore nowhere.yaml data.snap", 1);
    check("restore data.img data.snap", 3);
    dir.write("part.yaml", &dir.ok("dump --format yaml --snapshots data.snap").stdout);
    check("restore part.yaml data.snap", 3);
    let whole = dir.read("data.yaml");
    dir.write("cut.yaml", &whole[..whole.len() / 2]);
    check("restore cut.yaml data.snap", 3);
    dir.write("changed.yaml", &String::from_utf8(whole).unwrap().replace("monday", "friday").into_bytes());
    check("restore changed.yaml data.snap", 3);
    let store = std::fs::File::open(dir.path("data.snap")).unwrap();
    store.lock().unwrap();
    dir.run("restore data.yaml data.snap").expect(4);
    drop(store);
    for target in ["other.snap", "xfs.img"] {
        dir.ok(&format!("restore -y data.yaml {target}"));
        dir.ok(&format!("fsck -n {target}"));
        dir.run(&format!("restore cut.yaml new-{target}")).expect(3);
    }
    assert!(dir.names().iter().all(|name| !name.starts_with("new-")));
    golden("restore-refused.txt", &text);
}

#[test]
fn a_dump_that_is_older_than_the_store_taints_every_snapshot() {
    let dir = dumped();
    dir.ok_with("write data.snap --offset 700k", &noise(6, 50_000));
    dir.untouched(|dir| dir.run("restore data.yaml data.snap")).expect(5).says("after the dump was made");
    for wiped in [&[][..], &[&b"ddsnapSB"[..], b"ddsnapCK", b"ddIX"]] {
        wipe(&dir, wiped);
        dir.untouched(|dir| dir.run("restore data.yaml data.snap")).expect(5).says("after the dump was made");
    }
    dir.ok("restore -y data.yaml data.snap").says("every snapshot is marked as tainted");
    dir.untouched(|dir| dir.run("read data.snap 2")).expect(5).says("--accept-taint");
    // What is in doubt since does not become certain by doing it again.
    dir.untouched(|dir| dir.run("restore data.yaml data.snap")).expect(5).says("after the dump was made");
    dir.ok("fsck -n data.snap");
}

#[test]
fn a_dump_of_a_damaged_store_restores_what_is_left_of_it() {
    let dir = volume();
    dir.run("fsck --rebuild data.snap").expect(1);
    let sound = dir.read("data.snap");
    // One superblock is as good as two.
    dir.patch("data.snap", usize::try_from(OFFSETS[0]).unwrap(), |bytes| bytes[..4096].fill(1));
    dir.write("one.yaml", &dir.run("dump --format yaml data.snap").expect(3).stdout);
    dir.ok("restore one.yaml data.snap");
    dir.ok("fsck -n --data data.snap");
    assert_reads(&dir, "data.snap");
    // Without its index nothing can be proven.
    dir.write("data.snap", &sound);
    let index: Vec<usize> =
        (0..sound.len()).step_by(4096).filter(|at| sound[*at..].starts_with(b"ddIX")).collect();
    for at in index {
        dir.patch("data.snap", at + 50, |bytes| bytes[0] ^= 0xff);
    }
    dir.write("broken.yaml", &dir.run("dump --format yaml data.snap").expect(3).stdout);
    dir.run("restore broken.yaml blank.snap").expect(5).says("the dump is of a damaged store");
    assert!(!dir.path("blank.snap").exists());
    dir.ok("restore -y broken.yaml blank.snap").says("tainted");
    dir.untouched(|dir| dir.run("read blank.snap 1")).expect(5);
}

#[test]
fn an_anonymous_dump_tells_no_name_and_no_checksum() {
    let dir = dumped();
    let plain = dir.ok("dump --format json data.snap").json();
    let pack = dir.untouched(|dir| dir.ok("dump --anonymous --format yaml data.snap")).text();
    let mut secrets =
        vec!["monday".to_owned(), "offsite".to_owned(), "data.img".to_owned(), "data.snap".to_owned()];
    for part in plain["parts"].as_array().unwrap() {
        secrets.extend(
            [&part["uuid"], &part["salt"], &part["volume"]["uuid"]]
                .iter()
                .filter_map(|v| v.as_str())
                .map(str::to_owned),
        );
        for row in part["exceptions"].as_array().into_iter().flatten().filter(|row| row["encoding"] == "raw")
        {
            secrets.push(row["crc"].as_str().unwrap().to_owned());
        }
    }
    assert!(secrets.len() > 12);
    for secret in secrets {
        assert!(!pack.contains(&secret), "{secret} is in an anonymous dump");
    }
    dir.write("pack.yaml", pack.as_bytes());
    dir.ok("restore pack.yaml pack.snap");
    let rows = |store: &str| -> Vec<_> {
        let json = dir.ok(&format!("list --json {store}")).json();
        let rows = json["snapshots"].as_array().unwrap().clone();
        rows.into_iter()
            .map(|row| {
                (
                    row["id"].clone(),
                    row["tag"].clone(),
                    row["created"].clone(),
                    row["holds"].as_array().unwrap().len(),
                )
            })
            .collect()
    };
    assert_eq!(rows("data.snap"), rows("pack.snap"));
    for command in ["changelist --json STORE - 1 2", "map --json STORE", "fsck -n STORE"] {
        let [a, b] =
            ["data.snap", "pack.snap"].map(|store| dir.run(&command.replace("STORE", store)).expect(0));
        if command.starts_with("changelist") {
            assert_eq!(a.json(), b.json());
        }
    }
}

/// What a report of a user may look like: a small store, with a snapshot that was written and one that was deleted.
#[test]
fn a_pack_from_elsewhere_can_be_looked_at() {
    let dir = Dir::new();
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/dump/report.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let volume = dumped();
        volume.ok_with("write data.snap 2 --offset 32k", &noise(8, 30_000));
        volume.ok("create data.snap 3 --name friday");
        volume.ok_with("write data.snap --offset 500k", &noise(9, 30_000));
        volume.ok("delete data.snap 2");
        std::fs::create_dir_all(pack.parent().unwrap()).unwrap();
        std::fs::write(&pack, volume.ok("dump --anonymous --format yaml data.snap").stdout).unwrap();
    }
    dir.ok(&format!("restore {} report.snap", pack.display()));
    let text =
        ["list report.snap", "fsck -n report.snap", "changelist --json report.snap - 1 3"].map(|args| {
            let run = dir.ok(args);
            dir.mask(&run.transcript())
        });
    golden("restore-report.txt", &text.concat());
}
