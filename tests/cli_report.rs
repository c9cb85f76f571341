//! `report`: the page, its truth, and what becomes of hostile names and damaged stores.

use crate::cli_errors::seed;
use crate::cli_map::elements;
use crate::harness::{Dir, Rng, Run, golden, noise, volume};
use ddsnap::block::WriteAt;
use ddsnap::block::memory::Memory;
use ddsnap::format::superblock::OFFSETS;
use ddsnap::store::{InitOptions, Writer};
use ddsnap::units::Tag;
use std::path::PathBuf;
use std::sync::Arc;

const DAY: i64 = 86_400;
const START: i64 = 1_790_000_000;
const SIZE: usize = 4 << 20;

/// A store with a snapshot a day for `days` days, and the same history every time.
pub fn aged(dir: &Dir, days: u32, name: impl Fn(u32) -> Option<String>) {
    let origin: Arc<dyn WriteAt> = Arc::new(Memory::from_bytes(&noise(7, SIZE)));
    let device = Arc::new(Memory::new(32 << 20));
    let shared: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
    let options = InitOptions {
        chunk_size: 4096,
        block_size: 4096,
        origin_path: PathBuf::from("/nowhere/data.img"),
        origin_size: SIZE as u64,
        now_secs: START,
    };
    Writer::initialize(&shared, &options).unwrap();
    let mut rng = Rng(9);
    for day in 0..days {
        let now = START + DAY * i64::from(day);
        let store = Arc::clone(&shared);
        let mut writer = Writer::open(store, Some(Arc::clone(&origin)), now).unwrap();
        writer.create_snapshot(Tag(day + 1), name(day).as_deref()).unwrap();
        // A region that is always busy, one that moves on, and anywhere.
        for place in
            [SIZE / 4, SIZE / 100 * day as usize % (SIZE / 2), rng.below(SIZE as u64 - 40_000) as usize]
        {
            let bytes = rng.bytes(4000 + 1000 * day as usize % 30_000);
            writer.write_origin(place as u64, &bytes).unwrap();
        }
        writer.close().unwrap();
    }
    dir.write("aged.snap", &device.to_vec().unwrap());
}

/// Makes a report as of the end of the history of [`aged`].
pub fn report(dir: &Dir, store: &str) -> Run {
    let line = format!("SOURCE_DATE_EPOCH={} ddsnap report {store} -o -", START + 40 * DAY);
    dir.untouched(|dir| dir.shell(&line))
}

/// The page as a golden file holds it, which must be well formed.
fn page(run: &Run) -> String {
    let text = run.text();
    let names = elements(&text.replacen("<!DOCTYPE html>", "", 1));
    for name in ["svg", "title", "desc", "figcaption", "table", "caption", "style"] {
        assert!(names.contains(name), "no {name} in {}", run.describe());
    }
    for name in ["script", "link", "img", "iframe", "object", "a", "form"] {
        assert!(!names.contains(name), "{name} in {}", run.describe());
    }
    for word in ["href", "src=", "url(", "@import", "onload"] {
        assert!(!text.contains(word), "{word} in {}", run.describe());
    }
    text
}

#[test]
fn the_page_of_a_month() {
    let dir = Dir::new();
    aged(&dir, 30, |day| day.is_multiple_of(7).then(|| format!("week-{}", day / 7)));
    let run = report(&dir, "aged.snap").expect(0);
    assert!(run.stderr.is_empty(), "{}", run.describe());
    golden("report.html", &dir.mask(&page(&run)));
    assert_eq!(report(&dir, "aged.snap").stdout, run.stdout, "made twice, it is the same");
    // A bar, a row, a bar of shares each.
    for (figure, count) in [("churn", 30), ("map", 31), ("sharing", 30), ("largest", 10)] {
        let (_, rest) = run
            .text()
            .split_once(&format!("id=\"{figure}-title\""))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let groups = rest.split("</svg>").next().unwrap().matches("<g>").count();
        assert_eq!(groups, count, "{figure}");
    }
}

#[test]
fn numbers_of_the_report_are_those_of_status_and_map() {
    let dir = Dir::new();
    aged(&dir, 12, |_| None);
    let text = page(&report(&dir, "aged.snap").expect(0));
    let status = dir.ok("status --json aged.snap").json();
    let cells = |size: u64| format!("<td class=\"number\">{}</td>", ddsnap::ui::size::human(size));
    for snapshot in status["snapshots"].as_array().unwrap() {
        let bytes = |field: &str| cells(snapshot[field].as_u64().unwrap() * 4096);
        let row = format!("{}{}", bytes("chunks"), bytes("unshared"));
        assert!(text.contains(&row), "{row} of {snapshot}");
    }
    for row in dir.ok("map --json aged.snap").json()["rows"].as_array().unwrap() {
        assert!(text.contains(&cells(row["changed_bytes"].as_u64().unwrap())), "{row}");
    }
}

#[test]
fn stores_of_every_size_have_a_page() {
    for days in [0, 1, 2, 60] {
        let dir = Dir::new();
        aged(&dir, days, |_| None);
        let run = report(&dir, "aged.snap").expect(0);
        elements(&run.text().replacen("<!DOCTYPE html>", "", 1));
        assert_eq!(run.text().contains("10 oldest"), days == 60);
    }
}

#[test]
fn hostile_names_are_only_text() {
    let dir = Dir::new();
    let hostile = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>]]>--&amp;\u{1b}[2J\u{202e}";
    aged(&dir, 3, |day| Some(format!("{day}{hostile}")));
    let text = report(&dir, "aged.snap").expect(0).text();
    let names = elements(&text.replacen("<!DOCTYPE html>", "", 1));
    assert!(!names.contains("script") && !names.contains("img"), "{text}");
    assert!(text.contains("0&lt;script&gt;alert(&#39;x&#39;)"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
    let svg = dir.ok("map --svg - aged.snap").text();
    assert!(svg.contains("&lt;script&gt;") && !elements(&svg).contains("script"), "{svg}");
    dir.copy("aged.snap", "<b>&.snap");
    assert!(report(&dir, "'<b>&.snap'").expect(0).text().contains("<h1>&lt;b&gt;&amp;.snap</h1>"));
}

#[test]
fn a_store_that_cannot_be_opened_has_a_page_of_what_is_left() {
    let dir = volume();
    let size = dir.read("data.snap").len();
    // Everything but the superblocks is gone.
    dir.patch("data.snap", 1 << 20, |bytes| bytes[..size - (1 << 20)].fill(0x5a));
    let run = report(&dir, "data.snap").expect(3).says("something is wrong with data.snap");
    let text = run.text();
    assert!(text.contains("The store cannot be opened") && text.contains("publication"), "{text}");
    assert!(text.contains("<td>loss</td>"), "{text}");
    elements(&text.replacen("<!DOCTYPE html>", "", 1));
}

#[test]
fn a_store_with_one_superblock_has_the_whole_page_and_the_finding() {
    let dir = volume();
    dir.patch("data.snap", usize::try_from(OFFSETS[0]).unwrap(), |bytes| bytes[..4096].fill(0xff));
    let text = page(&report(&dir, "data.snap").expect(3));
    assert!(text.contains("superblock-copy") && text.contains("Changes by interval"), "{text}");
}

#[test]
fn flipped_bytes_never_crash_a_report_and_never_break_its_page() {
    let dir = volume();
    let sound = dir.read("data.snap");
    let seed = seed();
    let mut rng = Rng(seed);
    let mut pages = 0;
    for _ in 0..60 {
        let mut bytes = sound.clone();
        let used = bytes.len().min(6 << 20);
        for _ in 0..=rng.below(3) {
            // Half of it where everything begins.
            let end = if rng.below(2) == 0 { used } else { (1 << 20) + (64 << 10) };
            let at = rng.below(end as u64) as usize;
            let length = rng.below(64) as usize + 1;
            bytes[at..at + length].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        dir.write("bad.snap", &bytes);
        for args in ["report bad.snap -o -", "map bad.snap", "map --svg - bad.snap 1 origin"] {
            let run = dir.run(args);
            assert!(matches!(run.code, Some(0 | 1 | 3)), "seed {seed}{}", run.describe());
            assert!(!run.stderr.contains("panicked"), "seed {seed}{}", run.describe());
            if args.starts_with("report") && !run.stdout.is_empty() {
                elements(&run.text().replacen("<!DOCTYPE html>", "", 1));
                pages += 1;
            }
        }
    }
    assert!(pages > 30, "only {pages} pages");
}

#[test]
fn what_is_no_store_has_no_report() {
    let dir = volume();
    for (args, code) in [
        ("report data.img -o x.html", 3),
        ("report nowhere -o x.html", 1),
        ("report data.snap -o data.snap", 2),
        ("report data.snap -o data.img", 2),
        ("report data.snap", 2),
        ("report data.snap -o no/where.html", 1),
    ] {
        let run = dir.untouched(|dir| dir.run(args)).expect(code);
        assert!(run.stdout.is_empty(), "{}", run.describe());
    }
    dir.shell("SOURCE_DATE_EPOCH=soon ddsnap report data.snap -o x.html")
        .expect(2)
        .says("SOURCE_DATE_EPOCH is 'soon'");
}
