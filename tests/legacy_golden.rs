//! Stores that the original program of 2008 made, read as it should have read them.
//!
//! A few are in `testdata/legacy`. The whole collection is too large for the repository: it is looked for in
//! `$DDSNAP_GOLDEN`, then in `../shared/golden` beside the repository.

use crate::harness::{Dir, skip};
use crate::random::{Random, seeds};
use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::dump::{Options, dump_legacy};
use ddsnap::error::Kind;
use ddsnap::legacy::Devices;
use ddsnap::progress::Silent;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of the collection.
fn collection() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let named = std::env::var_os("DDSNAP_GOLDEN").map(PathBuf::from);
    named.into_iter().chain([beside]).find(|path| path.is_dir())
}

/// A store of the collection, unpacked.
struct Case {
    name: String,
    path: PathBuf,
    facts: Value,
    dir: Dir,
}

impl Case {
    fn open(path: &Path) -> Option<Self> {
        let facts: Value = serde_json::from_slice(&std::fs::read(path.join("case.json")).ok()?).unwrap();
        if !matches!(facts["kind"].as_str(), Some("clean" | "crashed" | "damaged")) {
            return None;
        }
        let dir = Dir::new();
        for file in std::fs::read_dir(path).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "zst") {
                let image = zstd::decode_all(std::fs::File::open(&file).unwrap()).unwrap();
                dir.write(file.file_stem().unwrap().to_str().unwrap(), &image);
            }
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        Some(Self { name, path: path.to_path_buf(), facts, dir })
    }

    /// The options that name the devices beside the store.
    fn devices(&self) -> &'static str {
        if self.dir.path("meta.img").exists() { "--meta meta.img" } else { "" }
    }

    /// What the file `name` of the case holds, if it is there.
    fn expected(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path.join(name)).ok()
    }

    fn check(&self) {
        let before = self.dir.hashes();
        let devices = self.devices();
        if self.facts["open_must_fail"] == true {
            let run = self.dir.run("list store.img").expect(3);
            assert!(run.stderr.contains("superblock"), "{}: {}", self.name, run.stderr);
            let run = self.dir.run("fsck -n store.img").expect(4);
            assert!(run.text().contains("superblock-lost"), "{}: {}", self.name, run.text());
            assert_eq!(self.dir.hashes(), before, "{}", self.name);
            return;
        }
        self.check_images("store.img");
        self.check_upgrade("store.img");
        self.check_in_place("store.img");
        if self.dir.path("store-0.4.img").exists() {
            self.check_images("store-0.4.img");
            self.check_upgrade("store-0.4.img");
            self.check_in_place("store-0.4.img");
        }
        self.check_fsck();
        self.check_changelists();
        for (file, command) in
            [("status.txt", "status"), ("status-v.txt", "status -v"), ("list.txt", "list --legacy")]
        {
            let Some(expected) = self.expected(file) else { continue };
            // It counted the exceptions that it could not find any more, and those that hid them.
            if self.name == "overfull-chunk-512" && command != "list --legacy" {
                continue;
            }
            let run = self.dir.ok(&format!("{command} store.img {devices}"));
            assert_eq!(run.text(), String::from_utf8(expected).unwrap(), "{}: {file}", self.name);
        }
        self.dir.run(&format!("map --json store.img {devices}")).expect(0);
        self.check_inputs_are_kept();
        self.check_root_said_to_be_free();
        self.check_dump();
        std::fs::remove_file(self.dir.path("list")).ok();
        assert_eq!(self.dir.hashes(), before, "{}: something was written", self.name);
        self.check_repair();
    }

    /// Every snapshot reads after a repair as it read before, and nothing is left to repair.
    fn check_repair(&self) {
        let (devices, tags) = (self.devices(), self.facts["snapshot_images"].as_object().unwrap());
        let images = || -> Vec<Vec<u8>> {
            let read = |tag: &String| {
                self.dir.run(&format!("read store.img {tag} --origin origin.img {devices}")).stdout
            };
            tags.keys().map(read).collect()
        };
        let (before, hashes) = (images(), self.dir.hashes());
        let (code, left): (i32, &[&str]) = match (self.name.as_str(), self.facts["kind"].as_str()) {
            ("overfull-chunk-512", _) => (4, &["legacy-overfull"]),
            ("shrink-nonmult8", _) | (_, Some("crashed")) => (1, &[]),
            _ => (0, &[]),
        };
        let planned = self.dir.run(&format!("fsck -p --dry-run --json store.img {devices}")).json();
        assert_eq!(self.dir.hashes(), hashes, "{}: --dry-run wrote", self.name);
        let done = self.dir.run(&format!("fsck -p --json store.img {devices}")).expect(code).json();
        let places = |document: &Value| -> Vec<u64> {
            let writes = document["repair"]["writes"].as_array().unwrap();
            writes.iter().map(|write| write["offset"].as_u64().unwrap()).collect()
        };
        assert_eq!(places(&done), places(&planned), "{}", self.name);
        assert_eq!(places(&done).is_empty(), code != 1, "{}", self.name);
        let found = self.dir.run(&format!("fsck -n --json store.img {devices}")).json()["findings"].clone();
        let codes: Vec<&str> =
            found.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
        assert_eq!(codes, left, "{}: {found:#}", self.name);
        assert!(images() == before, "{}: a snapshot reads otherwise after the repair", self.name);
        self.check_images("store.img");
        let again = self.dir.run(&format!("fsck -y --json store.img {devices}")).json();
        assert!(places(&again).is_empty(), "{}: {again:#}", self.name);
    }

    fn check_images(&self, store: &str) {
        let images = self.facts["snapshot_images"].as_object().unwrap();
        for (tag, image) in images {
            let Some(expected) = image["correct"].as_str() else { continue };
            let devices = self.devices();
            let run = self.dir.ok(&format!("read {store} {tag} --origin origin.img {devices}"));
            let found = hex::encode(Sha256::digest(&run.stdout));
            assert_eq!(found, expected, "{}: snapshot {tag} of {store}", self.name);
        }
        for (tag, _) in images.iter().filter(|(_, image)| !image["squashed"].is_null()) {
            let run = self.dir.run(&format!("read {store} {tag} --origin origin.img"));
            assert_eq!(run.code, Some(5), "{}: {}", self.name, run.stderr);
        }
    }

    /// A bitmap that takes the root for free, of a store that was shut down, costs a repair nothing.
    fn check_root_said_to_be_free(&self) {
        if self.facts["kind"] != "clean" || self.dir.path("meta.img").exists() {
            return;
        }
        let mut bytes = self.dir.read("store.img");
        let word = |at: usize| u64::from_le_bytes(bytes[4096 + at..4104 + at].try_into().unwrap());
        let (root, bitmap, bits) = (word(16), word(1616), word(1656) & 0xff);
        let block = (root * 512) >> bits;
        bytes[usize::try_from(bitmap * 512 + block / 8).unwrap()] &= !(1u8 << (block % 8));
        self.dir.write("free-root.img", &bytes);
        self.dir.run("fsck -y free-root.img");
        self.check_images("free-root.img");
        std::fs::remove_file(self.dir.path("free-root.img")).unwrap();
    }

    /// No command that only reads a store takes a device of it for its result.
    fn check_inputs_are_kept(&self) {
        let (devices, tags) = (self.devices(), self.facts["snapshot_images"].as_object().unwrap());
        let Some(tag) = tags.iter().find(|(_, image)| image["squashed"].is_null()).map(|(tag, _)| tag) else {
            return;
        };
        for device in ["store.img", "meta.img", "origin.img"] {
            if !self.dir.path(device).exists() {
                continue;
            }
            for args in [
                format!("export store.img {tag} {device}"),
                format!("create-delta store.img {tag} origin -o {device}"),
                format!("changelist store.img {device} {tag} origin"),
            ] {
                let run = self.dir.run(&format!("{args} --origin origin.img {devices}"));
                let is_kept = run.code == Some(2) && run.stderr.contains("would overwrite its own input");
                assert!(is_kept, "{}: {args}: {}", self.name, run.stderr);
            }
        }
    }

    /// A store is found as sound as it is: after a crash only recovery is told of.
    fn check_fsck(&self) {
        let wanted: &[&str] = match (self.name.as_str(), self.facts["kind"].as_str()) {
            ("overfull-chunk-512", _) => &["legacy-overfull"],
            ("shrink-nonmult8", _) => &["legacy-end", "legacy-free-count"],
            (_, Some("crashed")) => &["legacy-recovery"],
            _ => &[],
        };
        let code = if wanted.is_empty() || wanted == ["legacy-recovery"] { 0 } else { 4 };
        let devices = self.devices();
        let run =
            self.dir.run(&format!("fsck -n --json store.img --origin origin.img {devices}")).expect(code);
        let findings = run.json()["findings"].clone();
        let codes: Vec<&str> =
            findings.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
        assert_eq!(codes, wanted, "{}: {findings:#}", self.name);
        if let Some(root) = self.facts["root_repair"]["true_root_sector"].as_u64() {
            let text = findings[0]["text"].as_str().unwrap();
            let moved = format!("begins the tree at sector {root} with");
            assert!(text.contains(&moved), "{}: {text}", self.name);
        }
        if self.name == "overfull-chunk-512" {
            let snapshots = findings[0]["snapshots"].as_array().unwrap();
            assert!(snapshots.iter().all(|one| one["ranges"] == serde_json::json!([[1536, 2048]])));
            assert_eq!(snapshots.len(), 29);
        }
    }

    /// The exceptions of a dump are those that the original printed, leaf by leaf.
    fn check_dump(&self) {
        let devices = self.devices();
        let dump = self.dir.run(&format!("dump --format json store.img {devices}")).expect(0).json();
        assert_eq!(dump["schema"], "ddsnap.dump-2008/1");
        let parts = dump["parts"].as_array().unwrap();
        let mut found = String::new();
        for part in parts.iter().filter(|part| part["part"] == "exceptions") {
            let rows = part["exceptions"].as_array().unwrap();
            for chunk in rows.chunk_by(|a, b| a["chunk"] == b["chunk"]) {
                let places = chunk.iter().map(|row| {
                    let share = u64::from_str_radix(row["share"].as_str().unwrap(), 16).unwrap();
                    format!("{:x}/{share:08x}, ", row["lies_in_chunk"].as_u64().unwrap())
                });
                found += &format!("Addr {}: {}\n", chunk[0]["chunk"], places.collect::<String>());
            }
        }
        if let Some(expected) = self.expected("dump.txt") {
            assert_eq!(found, String::from_utf8(expected).unwrap(), "{}: dump", self.name);
        }
        let page = self.dir.run(&format!("report store.img -o - {devices}"));
        assert!(matches!(page.code, Some(0 | 3)) && page.text().ends_with("</html>\n"), "{}", self.name);
    }

    /// Upgrades `store` and compares the new one with what the collection says, and with the old one.
    fn check_upgrade(&self, store: &str) {
        let devices = self.devices();
        let run = self.dir.ok(&format!("upgrade {store} new.img --size 24M --origin origin.img {devices}"));
        assert!(run.text().contains("found whole"), "{}: {}", self.name, run.text());
        let (old, new) = (self.json(&format!("list {store} {devices}")), self.json("list new.img"));
        let rows = |list: &Value| list["snapshots"].as_array().unwrap().clone();
        assert_eq!(rows(&old).len(), rows(&new).len(), "{}", self.name);
        for (old, new) in rows(&old).iter().zip(rows(&new)) {
            for field in
                ["id", "tag", "created_secs", "size_bytes", "priority", "use_count", "state", "tainted"]
            {
                assert!(!old[field].is_null() && old[field] == new[field], "{}: {field}", self.name);
            }
        }
        let (old, new) = (self.json(&format!("status {store} {devices}")), self.json("status new.img"));
        let facts = |status: &Value| {
            let store = &status["store"];
            [&store["created_secs"], &store["full_policy"], &status["origin"]["size_bytes"]]
                .map(Value::to_string)
        };
        assert_eq!(facts(&old), facts(&new), "{}", self.name);
        for (tag, image) in self.facts["snapshot_images"].as_object().unwrap() {
            if let Some(expected) = image["correct"].as_str() {
                let run = self.dir.ok(&format!("read new.img {tag}"));
                let found = hex::encode(Sha256::digest(&run.stdout));
                assert_eq!(found, expected, "{}: snapshot {tag} of {store}, upgraded", self.name);
            }
        }
        self.compare_changelists(store, &rows(&self.json("list new.img")));
        self.dir.run("fsck -n --data new.img").expect(0);
        std::fs::remove_file(self.dir.path("new.img")).unwrap();
    }

    /// Upgraded where it is every snapshot reads as before; taken back, the store is what it was; committed, it is one
    /// as any other.
    fn check_in_place(&self, store: &str) {
        let (dir, devices) = (&self.dir, self.devices());
        dir.copy(store, "place.img");
        dir.copy("origin.img", "ground.img");
        dir.shell("truncate -s +24M place.img");
        let before = dir.read("place.img");
        let tags: Vec<&String> = self.facts["snapshot_images"].as_object().unwrap().keys().collect();
        let told = || {
            let commands =
                ["list", "status", "fsck -n"].map(|command| format!("{command} place.img {devices}"));
            let reads = tags.iter().map(|tag| {
                let run = dir.run(&format!("read --origin ground.img place.img {devices} {tag}"));
                (run.code, run.stdout)
            });
            let told = commands.iter().map(|command| dir.run(command)).map(|run| (run.code, run.stdout));
            reads.chain(told).collect::<Vec<_>>()
        };
        let was = told();
        let upgrade = format!("upgrade --in-place --origin ground.img place.img {devices}");
        let run = dir.ok(&upgrade);
        assert!(run.text().contains("found whole"), "{}: {}", self.name, run.text());
        self.compare_images(store);
        dir.run("create place.img 4000000001").expect(5).says("--rollback");
        dir.run("fsck -n --data place.img").expect(0);
        dir.ok("upgrade --rollback place.img");
        assert!(told() == was, "{}: {store} taken back is another", self.name);
        let after = dir.read("place.img");
        assert!(before[..1 << 20] == after[..1 << 20], "{}: {store}", self.name);
        dir.ok(&upgrade);
        dir.ok("upgrade --commit place.img");
        dir.ok("create place.img 4000000001");
        let origin = dir.ok("read place.img 4000000001").stdout;
        dir.ok_with("write place.img --offset 0", &vec![0x77; origin.len()]);
        assert!(dir.ok("read place.img 4000000001").stdout == origin, "{}", self.name);
        self.compare_images(store);
        dir.ok("delete place.img 4000000001");
        dir.run("fsck -n --data place.img").expect(0);
        for name in ["place.img", "ground.img"] {
            std::fs::remove_file(dir.path(name)).unwrap();
        }
    }

    /// Every snapshot of the upgraded store has the sum that it must have.
    fn compare_images(&self, store: &str) {
        for (tag, image) in self.facts["snapshot_images"].as_object().unwrap() {
            if let Some(expected) = image["correct"].as_str() {
                let run = self.dir.ok(&format!("read place.img {tag}"));
                let found = hex::encode(Sha256::digest(&run.stdout));
                assert_eq!(found, expected, "{}: snapshot {tag} of {store}, in place", self.name);
            }
        }
    }

    fn json(&self, command: &str) -> Value {
        self.dir.ok(&format!("{command} --json")).json()
    }

    /// What differs between neighbours, and between the oldest and the origin, is what it was.
    fn compare_changelists(&self, store: &str, rows: &[Value]) {
        let usable = rows.iter().filter(|row| row["state"] == "normal" && row["tainted"] == false);
        let mut tags: Vec<String> = usable.map(|row| row["tag"].to_string()).collect();
        tags.push("origin".to_owned());
        let origin = self.json("status new.img")["origin"]["size_bytes"].as_u64().unwrap();
        let size = |tag: &String| {
            let row = rows.iter().find(|row| row["tag"].as_u64() == tag.parse().ok());
            row.map_or(origin, |row| row["size_bytes"].as_u64().unwrap())
        };
        let neighbours = tags.windows(2).map(|pair| (&pair[0], &pair[1]));
        for (from, to) in
            neighbours.chain([(&tags[0], &tags[tags.len() - 1])]).filter(|pair| pair.0 != pair.1)
        {
            let list = |vol: &str| {
                self.dir.ok(&format!("changelist {vol} list {from} {to}"));
                let list = self.dir.read("list");
                std::fs::remove_file(self.dir.path("list")).unwrap();
                list
            };
            let (old, new) = (list(&format!("{store} {}", self.devices())), list("new.img"));
            // Several chunks of 2008 may have become one, and it never listed what only the larger of two points has.
            let (small, large) = (1u64 << bits(&old), 1u64 << bits(&new));
            let both = size(from).min(size(to));
            let mut wanted: Vec<u64> = chunks(&old).iter().map(|chunk| chunk * small / large).collect();
            wanted.dedup();
            let mut found = chunks(&new);
            assert!(wanted.iter().all(|chunk| found.contains(chunk)), "{}: {from} {to}", self.name);
            // A deletion that was cut short left what no copy-out and no write would.
            if matches!(self.name.as_str(), "crash-after-squash-4k" | "crash-dropped-root-512") {
                continue;
            }
            found.retain(|chunk| (chunk + 1) * large <= both);
            wanted.retain(|chunk| (chunk + 1) * large <= both);
            assert!(found == wanted, "{}: changelist {from} {to}: {found:?}, not {wanted:?}", self.name);
        }
    }

    fn check_changelists(&self) {
        for file in std::fs::read_dir(&self.path).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let Some(points) = name.strip_prefix("changelist-") else { continue };
            let (from, to) = points.split_once('-').unwrap();
            self.dir.ok(&format!("changelist store.img list {from} {to} {}", self.devices()));
            let expected = self.expected(&name).unwrap();
            // The original forgot what all 64 snapshots share.
            if self.name.starts_with("table-64") && from == "origin" {
                let found = chunks(&self.dir.read("list"));
                let forgotten: &[u64] = if self.name.ends_with("allshared") { &[3, 4, 6, 7, 8] } else { &[] };
                let wanted = chunks(&expected);
                assert!(
                    wanted.iter().chain(forgotten).all(|chunk| found.contains(chunk)),
                    "{}: {name}",
                    self.name
                );
                continue;
            }
            assert_eq!(chunks(&self.dir.read("list")), chunks(&expected), "{}: {name}", self.name);
            assert_eq!(self.dir.read("list"), expected, "{}: {name}", self.name);
        }
    }
}

/// log2 of the chunk size of a changelist.
fn bits(list: &[u8]) -> u32 {
    u32::from_le_bytes(list[8..12].try_into().unwrap())
}

fn chunks(list: &[u8]) -> Vec<u64> {
    let numbers = list[20..].chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
    // The last one only marks the end.
    numbers.filter(|chunk| *chunk != u64::MAX).collect()
}

fn check_all(folder: &Path) -> usize {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut failed = Vec::new();
    let mut count = 0;
    for path in paths {
        let Some(case) = Case::open(&path) else { continue };
        count += 1;
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.check())).is_err() {
            failed.push(case.name.clone());
        }
    }
    assert!(failed.is_empty(), "{} of {count} cases failed: {failed:?}", failed.len());
    count
}

#[test]
fn the_stores_in_the_repository_read_as_they_should() {
    assert_eq!(check_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy")), 9);
}

#[test]
fn every_store_of_the_collection_reads_as_it_should() {
    match collection() {
        Some(folder) => assert!(check_all(&folder) >= 50),
        None => skip("the collection of stores of 2008 is not there"),
    }
}

impl Case {
    /// A store in the repository.
    fn own(name: &str) -> Self {
        Self::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy").join(name)).unwrap()
    }

    /// Writes `bytes` at byte `at` of a device.
    fn spoil(&self, device: &str, at: usize, bytes: &[u8]) {
        let mut whole = self.dir.read(device);
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        self.dir.write(device, &whole);
    }

    /// As `spoil`, in a store of 4 KiB blocks and in each copy of the block as well, as the journal has one.
    fn spoil_copies(&self, at: usize, bytes: &[u8]) {
        let mut whole = self.dir.read("store.img");
        let (block, inside) = (at / 4096 * 4096, at % 4096);
        let old = whole[block..block + 4096].to_vec();
        for copy in whole.chunks_mut(4096).filter(|copy| **copy == *old) {
            copy[inside..inside + bytes.len()].copy_from_slice(bytes);
        }
        self.dir.write("store.img", &whole);
    }

    /// The codes that a check finds; it reads only.
    fn codes(&self) -> Vec<String> {
        let run = self.dir.run(&format!("fsck -n --json store.img {}", self.devices())).json();
        let found = run["findings"].as_array().unwrap();
        found.iter().map(|one| one["code"].as_str().unwrap().to_owned()).collect()
    }
}

/// The damage shows wherever the store is read, and an upgrade carries over nothing that is wrong.
fn assert_told(case: &Case, tag: &str, other: &str) {
    let devices = case.devices();
    let run = case.dir.run(&format!("read store.img {tag} --origin origin.img {devices}")).expect(3);
    assert!(run.stderr.contains("warning: this store of 2008 is damaged"), "{}", run.stderr);
    assert!(run.stderr.contains("ddsnap fsck -n"), "{}", run.stderr);
    for command in [
        format!("changelist store.img list {tag} {other}"),
        format!("create-delta store.img {tag} {other} -o delta --origin origin.img"),
        format!("export store.img {tag} image --origin origin.img"),
        "status store.img".to_owned(),
    ] {
        let run = case.dir.run(&format!("{command} {devices}")).expect(3);
        assert!(run.stderr.contains("warning: this store of 2008 is damaged"), "{command}: {}", run.stderr);
    }
    case.dir.run(&format!("list store.img {devices}")).expect(0);
    let upgrade = format!("upgrade store.img new.img --size 24M --origin origin.img {devices}");
    case.dir.run(&upgrade).expect(5);
    case.dir.run(&format!("{upgrade} --accept-lost")).expect(0);
    case.dir.run(&format!("read new.img {tag}")).expect(3);
    case.dir.run("fsck -n --data new.img").expect(0);
}

#[test]
fn a_leaf_that_dropped_out_of_the_tree_is_told_and_put_back() {
    let case = Case::own("squash-4k");
    // One child less than the root has.
    case.spoil_copies(528_384, &2u32.to_le_bytes());
    assert_eq!(case.codes(), ["legacy-orphan"]);
    let before = case.dir.read("store.img");
    assert_told(&case, "1", "2");
    case.dir.run("fsck -p store.img").expect(4);
    assert!(case.dir.read("store.img") == before, "-p gave the leaf up");
    case.dir.run("fsck -y store.img").expect(1);
    assert!(case.codes().is_empty());
    case.check_images("store.img");
}

#[test]
fn a_preserved_chunk_of_nobody_may_be_anybodys() {
    let case = Case::own("snapwrite-4k");
    case.spoil_copies(527_872, &[0; 512]);
    assert!(case.codes().contains(&"legacy-share-none".to_owned()));
    assert_told(&case, "0", "1");
    let before = case.dir.read("store.img");
    for leave in ["-p", "-y"] {
        case.dir.run(&format!("fsck {leave} store.img")).expect(4);
        assert!(case.dir.read("store.img") == before, "{leave}");
    }
}

/// The journal has the block as it was: it is read, and put home.
#[test]
fn a_damaged_block_that_the_journal_has_costs_nothing() {
    for (name, at, bytes) in [("squash-4k", 528_384, &[2, 0, 0, 0][..]), ("snapwrite-4k", 527_872, &[0; 512])]
    {
        let case = Case::own(name);
        let whole = case.dir.read("store.img");
        case.spoil("store.img", at, bytes);
        assert_eq!(case.codes(), ["legacy-home"], "{name}");
        case.check_images("store.img");
        case.dir.run("fsck -p store.img").expect(1);
        assert!(case.dir.read("store.img") == whole, "{name}");
    }
}

/// Leaves where the superblock has nodes are leaves all the same, unless the bitmap contradicts them.
#[test]
fn one_level_too_many_costs_nothing() {
    let case = Case::own("separate-chunk0");
    case.spoil("meta.img", 4096 + 1596, &2u32.to_le_bytes());
    let whole = case.dir.read("meta.img");
    case.dir.run("fsck -y store.img --meta meta.img").expect(1);
    assert!(case.codes().is_empty());
    case.check_images("store.img");
    case.dir.write("meta.img", &whole);
    let base = u64::from_le_bytes(whole[4096 + 1664..4096 + 1672].try_into().unwrap());
    case.spoil("meta.img", usize::try_from(base * 512).unwrap(), &[0; 512]);
    let before = case.dir.read("meta.img");
    case.dir.run("fsck -y store.img --meta meta.img").expect(4);
    assert!(case.dir.read("meta.img") == before);
}

#[test]
fn what_may_be_the_origin_is_not_replaced() {
    let case = Case::own("squash-4k");
    let before = case.dir.hashes();
    for command in ["report store.img -o origin.img", "map store.img --svg origin.img"] {
        let run = case.dir.run(command).expect(5);
        assert!(run.stderr.contains("does not tell whether it is its origin"), "{}", run.stderr);
        assert_eq!(case.dir.hashes(), before);
    }
    // Their own results are replaced.
    for command in ["report store.img -o page.html", "map store.img --svg map.svg"] {
        case.dir.run(command).expect(0);
        case.dir.run(command).expect(0);
    }
}

#[test]
fn what_a_device_without_a_superblock_may_be_is_told() {
    let case = Case::own("separate-chunk0");
    let run = case.dir.run("fsck -n store.img").expect(4);
    assert!(run.stderr.contains("with --meta"), "{}", run.stderr);
}

/// A device of the stores in the repository.
fn device(case: &str, file: &str) -> Option<Memory> {
    let path = format!("{}/testdata/legacy/{case}/{file}.zst", env!("CARGO_MANIFEST_DIR"));
    Some(Memory::from_bytes(&zstd::decode_all(std::fs::File::open(path).ok()?).unwrap()))
}

/// A node whose children all lead to one block: what was shown is named, not shown again.
#[test]
fn a_dump_shows_a_block_once() {
    let mut store = device("snapwrite-4k", "store.img").unwrap().to_vec().unwrap();
    let (at, capacity) = (store.len() / 2 / 4096 * 4096, (4096 - 8) / 16);
    let place = |at: usize| (at as u64 / 512).to_le_bytes();
    store[at..at + 8].copy_from_slice(&(capacity as u64).to_le_bytes());
    for child in 0..capacity {
        let entry = at + 8 + 16 * child;
        store[entry..entry + 8].copy_from_slice(&(child as u64).to_le_bytes());
        store[entry + 8..entry + 16].copy_from_slice(&place(at + 4096));
    }
    store[4096 + 16..4096 + 24].copy_from_slice(&place(at));
    store[4096 + 1596..4096 + 1600].copy_from_slice(&1u32.to_le_bytes());
    let dir = Dir::new();
    dir.write("store", &store);
    for format in ["text", "json", "yaml"] {
        let run = dir.run(&format!("dump --format {format} store"));
        let text = run.text();
        assert_eq!(text.matches("leads to this block twice").count(), capacity - 1, "{format}");
        assert!(run.stdout.len() < 1 << 18, "{format}: {}", run.stdout.len());
    }
}

#[test]
fn a_dump_of_any_damage_ends() {
    let options = Options {
        superblock: false,
        checkpoint: false,
        snapshots: false,
        log: None,
        index: false,
        space: false,
        chunk: None,
        record: None,
        hex: false,
        anonymous: false,
    };
    for seed in seeds(2) {
        let mut random = Random(seed);
        let (mut told, mut refused) = (0, 0);
        for case in ["separate-chunk0", "crash-dropped-root-512", "overfull-chunk-512"] {
            let (store, metadata) = (device(case, "store.img").unwrap(), device(case, "meta.img"));
            let damaged = metadata.as_ref().unwrap_or(&store);
            let used: Vec<u64> = (0..damaged.size() / 8)
                .filter(|word| {
                    let mut bytes = [0; 8];
                    damaged.read_at(&mut bytes, word * 8).unwrap();
                    bytes != [0; 8]
                })
                .collect();
            for _ in 0..150 {
                let (copy, word) = (damaged.snapshot(), used[random.pick(used.len())]);
                let value = [0, u64::MAX, random.below(1 << 16), random.next()][random.pick(4)];
                copy.write_at(&value.to_le_bytes(), word * 8).unwrap();
                let devices = match &metadata {
                    Some(_) => Devices {
                        store: Arc::new(store.snapshot()),
                        metadata: Some(Arc::new(copy)),
                        origin: None,
                    },
                    None => Devices { store: Arc::new(copy), metadata: None, origin: None },
                };
                match dump_legacy(&devices, None, &options, &mut |_, _| Ok(()), &Silent) {
                    Ok(0) => {}
                    Ok(_) => told += 1,
                    Err(error) => {
                        assert!(matches!(error.kind(), Kind::Damaged | Kind::Mismatch), "{error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(told > 0 && refused < 100, "seed {seed}: {told} told, {refused} refused");
    }
}
