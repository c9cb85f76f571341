use super::{Import, ImportOptions, Tool, recognise};
use crate::error::{Error, Kind, Result};
use crate::units::Tag;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// File, block size that must be said, runs of chunks.
type Case = (&'static str, Option<u64>, &'static [(u64, u64)]);

/// What the real tools printed; see testdata/README.md.
const FILES: [Case; 4] = [
    ("thin_delta.xml", None, &[(10, 13), (25, 26), (100, 103)]),
    ("thin_delta-verbose.xml", None, &[(10, 13), (25, 26), (100, 103)]),
    ("era_invalidate.xml", Some(65536), &[(10, 20), (55, 56), (700, 701)]),
    ("nbdinfo.json", None, &[(4, 8), (64, 80), (192, 196)]),
];

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/import").join(name)).unwrap()
}

fn import(bytes: &[u8], block_size: Option<u64>) -> Result<Vec<(u64, u64)>> {
    let input = Box::new(Cursor::new(bytes.to_vec()));
    let import = Import::open(input, ImportOptions { block_size, chunk_bits: 14 })?;
    let mut runs = Vec::new();
    for run in import {
        let run = run?;
        let last = runs.last().map_or(0, |run: &(u64, u64)| run.1 + 1);
        assert!(run.start >= last || runs.is_empty(), "runs touch or go back");
        assert!(run.start < run.end);
        runs.push((run.start, run.end));
    }
    Ok(runs)
}

fn refused(text: &str, block_size: Option<u64>) -> Error {
    import(text.as_bytes(), block_size).expect_err(text)
}

#[test]
fn what_the_tools_print_is_understood() {
    for (name, block_size, expected) in FILES {
        let bytes = file(name);
        assert_eq!(import(&bytes, block_size).unwrap(), expected, "{name}");
        assert_eq!(import(&[b"\xef\xbb\xbf\n ", &bytes[..]].concat(), block_size).unwrap(), expected);
        assert!(recognise(&bytes).is_some());
    }
    let thin = Box::new(Cursor::new(file("thin_delta.xml")));
    let thin = Import::open(thin, ImportOptions { block_size: Some(65536), chunk_bits: 14 }).unwrap();
    assert_eq!((thin.tags(), thin.chunk_bits()), ((Tag(1), Tag(2)), 16));
    assert_eq!(recognise(b"<?xml version=\"1.0\"?>\n<blocks>"), Some(Tool::EraInvalidate));
    for other in [&b"rln\0"[..], b"", b"<", b"<blocksx>", b"<superblocks>", b"<?xml", b"{", b"\x7fELF"] {
        assert_eq!(recognise(other), None);
    }
}

#[test]
fn one_cut_short_is_never_taken_for_a_shorter_one() {
    for (name, block_size, _) in FILES {
        let bytes = file(name);
        for len in 0..bytes.trim_ascii_end().len() {
            assert!(import(&bytes[..len], block_size).is_err(), "{name}: {len} bytes");
        }
    }
}

#[test]
fn flipped_bits_never_panic_and_never_go_back() {
    for (name, block_size, _) in FILES {
        let bytes = file(name);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = import(&flipped, block_size);
            }
        }
    }
}

fn thin(inside: &str) -> String {
    format!("<superblock data_block_size=\"128\"><diff left=\"1\" right=\"2\">{inside}</diff></superblock>")
}

#[test]
fn lists_of_xml_that_make_no_sense() {
    let cases = [
        (
            thin("<different begin=\"5\" length=\"2\"/><different begin=\"6\" length=\"1\"/>"),
            "block 6 comes after block 6",
        ),
        (
            thin("<different begin=\"5\" length=\"2\"/><same begin=\"1\" length=\"1\"/>"),
            "block 1 comes after block 6",
        ),
        (thin("<different begin=\"5\" length=\"0\"/>"), "0 blocks from block 5"),
        (thin("<different begin=\"18446744073709551615\" length=\"2\"/>"), "2 blocks from block"),
        (thin("<different begin=\"1\" length=\"140737488355328\"/>"), "end past 9223372036854775807"),
        (thin("<different begin=\"99999999999999999999\" length=\"2\"/>"), "expected a number"),
        (thin("<different begin=\"-1\" length=\"2\"/>"), "begin is '-1', expected a number"),
        (thin("<different begin=\"\" length=\"2\"/>"), "begin is '', expected a number"),
        (thin("<different begin=\"1\"/>"), "<different> has no length"),
        (thin("<differs begin=\"1\" length=\"1\"/>"), "<differs> is not expected here"),
        (thin("<different><block begin=\"1\" length=\"1\"/></different>"), "<block> is not expected here"),
        (thin("5"), "something other than tags"),
        (thin("&bomb;"), "something other than tags"),
        (thin("</diff>"), "no XML"),
        (thin("") + "<superblock/>", "follows the end"),
        ("<!DOCTYPE x [<!ENTITY a \"b\">]>".to_owned() + &thin(""), "not a list of changes"),
        ("<superblock data_block_size=\"128\"></superblock>".into(), "no list of differences"),
        (
            "<superblock data_block_size=\"128\"><device dev_id=\"1\"/></superblock>".into(),
            "as thin_dump does",
        ),
        ("<superblock data_block_size=\"0\"><diff></diff></superblock>".into(), "blocks of 0 bytes"),
        ("<superblock data_block_size=\"36028797018963968\"><diff></diff></superblock>".into(), "sectors"),
        ("<superblock><diff></diff></superblock>".into(), "has no data_block_size"),
    ];
    for (text, expected) in cases {
        let error = refused(&text, None);
        assert_eq!(error.kind(), Kind::Damaged, "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    assert_eq!(import(thin("").as_bytes(), None).unwrap(), []);
    assert_eq!(import(b"<superblock data_block_size=\"8\"><diff/></superblock>", None).unwrap(), []);
    let text = "<blocks><range begin=\"7\" end=\"3\"/></blocks>";
    assert!(refused(text, Some(4096)).to_string().contains("blocks 7 to 3"));
}

#[test]
fn block_sizes_are_said_once() {
    let era = "<blocks><block block=\"3\"/></blocks>";
    let error = refused(era, None);
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--block-size")));
    for bad in [0, 1, 511, 513] {
        assert_eq!(refused(era, Some(bad)).kind(), Kind::Usage, "{bad}");
    }
    assert_eq!(refused(&thin(""), Some(4096)).kind(), Kind::Mismatch);
    assert_eq!(refused("[]", Some(4096)).kind(), Kind::Usage);
    assert_eq!(import(b"<blocks/>", Some(512)).unwrap(), []);
    // Blocks that are no power of two, and blocks above the largest chunk, in smaller chunks.
    assert_eq!(import(era.as_bytes(), Some(192 << 10)).unwrap(), [(9, 12)]);
    assert_eq!(import(era.as_bytes(), Some(4 << 20)).unwrap(), [(12, 16)]);
}

fn extent(offset: u64, length: u64, dirty: bool) -> String {
    let (kind, word) = if dirty { (1, "dirty") } else { (0, "clean") };
    format!("{{\"offset\":{offset},\"length\":{length},\"type\":{kind},\"description\":\"{word}\"}}")
}

#[test]
fn maps_that_make_no_sense() {
    let (a, b) = (extent(0, 512, true), extent(512, 512, false));
    let cases = [
        (format!("[{a}{b}]"), Kind::Damaged, "expected an extent"),
        (format!("[{a},]"), Kind::Damaged, "expected an extent"),
        (format!("[,{a}]"), Kind::Damaged, "expected an extent"),
        (format!("[{a},{b}] x"), Kind::Damaged, "something follows"),
        (format!("[{b}]"), Kind::Damaged, "begins at 512, expected 0"),
        (format!("[{a},{}]", extent(1024, 512, true)), Kind::Damaged, "begins at 1024, expected 512"),
        (format!("[{a},{}]", extent(256, 512, true)), Kind::Damaged, "begins at 256, expected 512"),
        (format!("[{}]", extent(0, 0, true)), Kind::Damaged, "has 0 bytes"),
        (format!("[{}]", extent(0, u64::MAX, true)), Kind::Damaged, "bytes"),
        (format!("[{a}, {{\"offset\":-1}}]"), Kind::Damaged, "no extent of a map"),
        (format!("[{a}, {{{}", "x".repeat(5000)), Kind::Damaged, "more than 4096 bytes"),
        ("[[]]".into(), Kind::Damaged, "expected an extent"),
        (a.replace("dirty", "clean").replace('{', "[{") + "]", Kind::Mismatch, "none of a dirty bitmap"),
        (
            a.replace(",\"description\":\"dirty\"", "").replace('{', "[{") + "]",
            Kind::Mismatch,
            "not described",
        ),
    ];
    for (text, kind, expected) in cases {
        let error = refused(&text, None);
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    assert_eq!(import(b"[]", None).unwrap(), []);
    // An odd word may hold what looks like an end.
    let odd = a.replace("\"offset\"", "\"x\":\"}\\\"}\",\"offset\"");
    assert_eq!(import(format!("[{odd}]").as_bytes(), None).unwrap(), [(0, 1)]);
}

#[test]
fn a_map_of_allocation_is_no_bitmap() {
    let error = import(&file("nbdinfo-allocation.json"), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(error.to_string().contains("type 3 (hole,zero)"), "{error}");
    let data = "[{ \"offset\": 0, \"length\": 512, \"type\": 0, \"description\": \"data\"}]";
    assert_eq!(refused(data, None).kind(), Kind::Mismatch);
}

#[test]
fn a_map_must_tell_of_everything() {
    let bytes = file("nbdinfo.json");
    let open = |covering| {
        let import = Import::open(
            Box::new(Cursor::new(bytes.clone())),
            ImportOptions { block_size: None, chunk_bits: 14 },
        );
        import.unwrap().covering(covering).collect::<Result<Vec<_>>>()
    };
    assert_eq!(open(4 << 20).unwrap().len(), 3);
    assert_eq!(open((4 << 20) + 1).unwrap_err().kind(), Kind::Mismatch);
}

/// Begins as a list and never ends.
struct Endless {
    head: Cursor<Vec<u8>>,
    tail: &'static [u8],
    at: usize,
    read: Arc<AtomicU64>,
}

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.head.read(buf)?;
        if count > 0 {
            return Ok(count);
        }
        for byte in buf.iter_mut() {
            *byte = self.tail[self.at % self.tail.len()];
            self.at += 1;
        }
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(buf.len())
    }
}

#[test]
fn what_never_ends_is_given_up() {
    for (head, tail) in [
        ("<superblock data_block_size=\"128\"><diff><same begin=\"", &b"1"[..]),
        ("<superblock data_block_size=\"128\"><diff>", b" "),
        ("<superblock data_block_size=\"128\"><diff><!--", b"-x"),
        ("<superblock data_block_size=\"128\" ", b"a=\"b\" "),
        ("<blocks", b"s"),
        ("<blocks><block block=\"1\"/>", b"<block block=\"1\"/>"),
        ("[{", b"a"),
        ("[{\"offset\":\"", b"\\\""),
    ] {
        let read = Arc::new(AtomicU64::new(0));
        let head = Cursor::new(head.as_bytes().to_vec());
        let endless = Endless { head, tail, at: 0, read: Arc::clone(&read) };
        let options = ImportOptions { block_size: None, chunk_bits: 14 };
        let result = Import::open(Box::new(endless), options)
            .and_then(|mut import| import.try_for_each(|run| run.map(drop)));
        let result = result.map_err(|error| error.kind());
        assert!(matches!(result, Err(Kind::Damaged | Kind::Usage)), "{result:?}");
        assert!(read.load(Ordering::Relaxed) <= 256 << 10, "read on and on");
    }
}
