//! `map`: pictures of where a volume changed.

use crate::harness::{DDSNAP, Dir, golden, has_program, skip, volume};
use std::collections::BTreeSet;

#[test]
fn maps_as_text() {
    let dir = volume();
    let mut text = String::new();
    for args in [
        "map data.snap",
        "map --width 120 data.snap",
        "map data.snap monday origin",
        "map --width 40 data.snap 2 1",
        "map data.snap 1 1",
    ] {
        let run = dir.untouched(|dir| dir.ok(args));
        text.push_str(&dir.mask(&run.transcript()));
        text.push('\n');
    }
    golden("map.txt", &text);
}

#[test]
fn lines_are_as_wide_as_asked_for() {
    let dir = volume();
    for width in [80, 100, 200, 1000] {
        for points in ["", "1 2"] {
            let text = dir.ok(&format!("map --width {width} data.snap {points}")).text();
            let is_cells = |line: &&str| line.contains("··") || line.contains("a cell");
            let widest = text.lines().filter(is_cells).map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width && widest > 20, "{width}: {text}");
        }
    }
}

#[test]
fn numbers_of_a_map_are_those_of_the_changelist() {
    let dir = volume();
    let document = dir.ok("map --json --width 64 data.snap").json();
    assert_eq!(document["schema"], "ddsnap.map/1");
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, points) in rows.iter().zip(["1 2", "2 origin"]) {
        let list = dir.ok(&format!("changelist --json data.snap {points}")).json();
        let listed: u64 = list["block_metadata"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| block["size_bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(row["changed_bytes"], listed);
        let cells: u64 = row["cells"].as_array().unwrap().iter().map(|cell| cell.as_u64().unwrap()).sum();
        assert_eq!(cells, listed);
    }
    let whole = dir.ok("map --json data.snap 1 origin").json();
    assert_eq!((&whole["kind"], &whole["rows"][0]["to"]), (&"difference".into(), &"origin".into()));
    golden("map.json", &dir.mask(&dir.ok("map --json --width 40 data.snap").pretty()));
}

#[test]
fn a_map_without_snapshots_and_one_of_many() {
    let dir = Dir::new();
    dir.write("data.img", &[7; 100_000]);
    dir.ok("initialize --size 32M -c 4k data.snap data.img");
    let text = dir.ok("map data.snap").text();
    assert!(text.contains("no snapshot, so no interval to draw"), "{text}");
    for tag in 0..60 {
        dir.ok(&format!("create data.snap {tag}"));
        dir.ok_with(&format!("write data.snap --offset {}", tag * 1000), b"x");
    }
    let count = |args: &str| {
        let text = dir.ok(args).text();
        text.lines().filter(|line| line.contains('→')).count()
    };
    assert_eq!((count("map data.snap"), count("map --all data.snap")), (50, 60));
    assert!(dir.ok("map data.snap").text().contains("(10 older intervals, not shown)"));
    assert_eq!(dir.ok("map --json data.snap").json()["older_intervals"], 10);
    assert!(dir.ok("map --svg - data.snap").text().contains("10 older intervals are not shown"));
}

#[test]
fn the_picture_as_svg_is_sound_and_tells_what_it_shows() {
    let dir = volume();
    for args in ["map --svg - data.snap", "map --svg - data.snap 1 2", "map --svg - --width 1000 data.snap"] {
        let text = dir.untouched(|dir| dir.ok(args)).text();
        let names = elements(&text);
        for name in ["svg", "title", "desc", "rect", "text"] {
            assert!(names.contains(name), "{args}: no {name}");
        }
        assert!(!text.contains("href") && !text.contains("url("), "{text}");
    }
    dir.ok("map --svg map.svg data.snap");
    assert_eq!(dir.read("map.svg"), dir.ok("map --svg - data.snap").stdout);
    dir.untouched(|dir| dir.run("map --svg data.snap data.snap")).expect(2);
    dir.untouched(|dir| dir.run("map --svg data.img data.snap")).expect(2);
}

/// The names of all elements of an XML document, which must be well formed.
pub fn elements(text: &str) -> BTreeSet<String> {
    let mut reader = quick_xml::Reader::from_str(text);
    let mut names = BTreeSet::new();
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error}\n{text}")) {
            quick_xml::events::Event::Start(start) | quick_xml::events::Event::Empty(start) => {
                start.attributes().for_each(|attribute| {
                    attribute.unwrap();
                });
                names.insert(start.name().as_ref().to_owned());
            }
            quick_xml::events::Event::Eof => return names,
            _ => {}
        }
    }
}

#[test]
fn points_that_are_not_there_are_named() {
    let dir = volume();
    dir.untouched(|dir| dir.run("map data.snap 1 77")).expect(1).says("there is no snapshot 77");
    for args in [
        "map data.snap 1",
        "map --width 39 data.snap",
        "map --all data.snap 1 2",
        "map --json --svg x data.snap",
    ] {
        dir.untouched(|dir| dir.run(args)).expect(2);
    }
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    assert!(!volume().ok("map data.snap").text().contains('\x1b'));
    if !has_program("script") {
        return skip("no 'script' to make a terminal");
    }
    let dir = volume();
    let on_terminal = |environment: &str| {
        let line = format!("script -qec 'env {environment} {DDSNAP} map data.snap' /dev/null < /dev/null");
        dir.shell(&line).expect(0).text()
    };
    assert!(on_terminal("-u NO_COLOR TERM=xterm").contains("\x1b[38;5;"));
    for plain in ["NO_COLOR=1 TERM=xterm", "-u NO_COLOR TERM=dumb"] {
        assert!(!on_terminal(plain).contains('\x1b'));
    }
}
