//! The report: what there is to say of a volume and its snapshots, as one page.
//!
//! Takes plain facts, so whatever keeps snapshots can have a report; what could not be found out is left out, and
//! said.

use super::chart::{self, About, Bar, Moment, Parts};
use super::page::{Column, Page};
use super::{heat, offset, percent, tag, title, when};
use crate::map::Map;
use crate::point::Point;
use crate::ui::{size, time};
use crate::units::Tag;

/// Intervals that have a row in the heat map, snapshots that have a bar.
const ROWS: usize = 50;
/// Snapshots in the figure of what deleting them would free.
const LARGEST: usize = 10;
/// Rows of the table of regions.
const REGIONS: usize = 16;

/// What a report tells.
pub struct Report {
    /// Name of the store, for people.
    pub store: String,
    /// When the report is made, seconds since 1970.
    pub made_secs: i64,
    /// What must be known first: what could not be read, what is incomplete.
    pub notices: Vec<String>,
    /// What was found wrong or worth knowing.
    pub findings: Vec<Finding>,
    /// How much was looked at for it.
    pub looked_at: String,
    /// Where the bytes of the store are.
    pub space: Option<Space>,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Where the volume changed, every interval.
    pub map: Option<Map>,
    /// What the store did by itself, oldest first: seconds since 1970 and words. `None` if that is not known.
    pub events: Option<Vec<(i64, String)>>,
    /// Everything else, by name.
    pub facts: Vec<(String, String)>,
    /// True if something that belongs here could not be read.
    pub is_unreadable: bool,
}

impl Report {
    /// True if something is wrong with the store.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.is_unreadable || self.findings.iter().any(|finding| finding.is_bad)
    }
}

/// One thing found.
pub struct Finding {
    /// How bad it is, in a word.
    pub severity: &'static str,
    /// True if something is wrong.
    pub is_bad: bool,
    /// Its stable name.
    pub code: &'static str,
    /// What was found beside what was expected.
    pub words: String,
    /// What it means for the data.
    pub meaning: &'static str,
    /// What mends it.
    pub repair: &'static str,
    /// The snapshots concerned.
    pub snapshots: String,
}

/// Where the bytes of a store are.
pub struct Space {
    /// All.
    pub total_bytes: u64,
    /// Preserved data.
    pub data_bytes: u64,
    /// Index and checkpoints.
    pub metadata_bytes: u64,
    /// Free.
    pub free_bytes: u64,
}

/// One snapshot.
pub struct Snapshot {
    /// The user's number.
    pub tag: String,
    /// The user's name, or nothing.
    pub name: String,
    /// Seconds since 1970.
    pub created_secs: i64,
    /// Bytes of the volume it shows.
    pub size_bytes: u64,
    /// What keeps it, or whether it can be trusted, in words.
    pub state: String,
    /// Element k: bytes that exactly k + 1 snapshots need, this one among them. `None` if that is not known.
    pub shared_by: Option<Vec<u64>>,
}

impl Snapshot {
    fn needs(&self) -> u64 {
        self.shared_by.iter().flatten().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What deleting it would free.
    fn own(&self) -> u64 {
        self.shared_by.iter().flatten().next().copied().unwrap_or(0)
    }

    fn title(&self) -> String {
        if self.name.is_empty() { self.tag.clone() } else { format!("{} ({})", self.tag, self.name) }
    }
}

/// The report as a page of HTML.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = Page::new(&report.store);
    page.header("Snapshot store report", &format!("as of {}", time::utc(report.made_secs)));
    for notice in &report.notices {
        page.notice(notice);
    }
    tiles(&mut page, report);
    health(&mut page, report);
    if let Some(space) = &report.space {
        self::space(&mut page, space);
    }
    if let Some(map) = &report.map {
        changes(&mut page, map, report.made_secs);
        regions(&mut page, map);
    }
    snapshots(&mut page, &report.snapshots);
    if let Some(events) = &report.events {
        self::events(&mut page, events);
    }
    page.section("Facts", "What the store says of itself.", |page| {
        let rows: Vec<Vec<String>> =
            report.facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
        page.table("Facts of the store", &[("Fact", false), ("Value", false)], &rows);
    });
    page.finish(concat!(
        "Made by ddsnap ",
        env!("CARGO_PKG_VERSION"),
        ". All times are UTC; 1 KiB is 1024 bytes."
    ))
}

fn tiles(page: &mut Page, report: &Report) {
    let bad = report.findings.iter().filter(|finding| finding.is_bad).count();
    let (health, class) = match (bad, report.findings.len()) {
        (0, 0) if report.notices.is_empty() => ("sound".to_owned(), "good"),
        (0, 0) => ("see above".to_owned(), "note"),
        (0, count) => (format!("sound, {count} noted"), "note"),
        (1, _) => ("1 finding".to_owned(), "bad"),
        (count, _) => (format!("{count} findings"), "bad"),
    };
    let mut tiles = vec![("Health", health, class)];
    if let Some(space) = &report.space {
        let used = space.total_bytes.saturating_sub(space.free_bytes);
        tiles.push(("Store in use", percent(used, u128::from(space.total_bytes)), ""));
        tiles.push(("Preserved data", size::human(space.data_bytes), ""));
    }
    if !report.snapshots.is_empty() || report.map.is_some() {
        tiles.push(("Snapshots", report.snapshots.len().to_string(), ""));
    }
    if let Some(map) = &report.map {
        tiles.push(("Volume", size::human(map.scale.size_bytes()), ""));
        if let Some(row) = map.rows.last() {
            tiles.push(("Changed since the newest", size::human(row.changed_bytes()), ""));
        }
    }
    page.tiles(&tiles);
}

fn health(page: &mut Page, report: &Report) {
    let words = match report.findings.len() {
        0 => format!("The check of the metadata found nothing wrong. It looked at {}.", report.looked_at),
        _ => format!("The check of the metadata looked at {}, and found:", report.looked_at),
    };
    page.section("Health", &words, |page| {
        if report.findings.is_empty() {
            return;
        }
        let row = |finding: &Finding| {
            let Finding { severity, code, words, meaning, repair, snapshots, .. } = finding;
            let texts = [*severity, code, words, snapshots, meaning, repair];
            texts.map(str::to_owned).to_vec()
        };
        const COLUMNS: [Column; 6] = [
            ("Severity", false),
            ("Code", false),
            ("What", false),
            ("Snapshots", false),
            ("What it means", false),
            ("What mends it", false),
        ];
        page.table("Findings", &COLUMNS, &report.findings.iter().map(row).collect::<Vec<_>>());
    });
}

fn space(page: &mut Page, space: &Space) {
    let Space { total_bytes: total, data_bytes: data, metadata_bytes: metadata, free_bytes: free } = *space;
    // Segments are given back whole.
    let rest = total.saturating_sub(free).saturating_sub(data).saturating_sub(metadata);
    let parts = [
        ("s2", "preserved data", data),
        ("own", "index and checkpoints", metadata),
        ("s4", "rest of the segments in use: room, headers, dead data", rest),
        ("l0", "free", free),
    ];
    let share = |bytes| percent(bytes, u128::from(total));
    page.section("Space", "Where the bytes of the store are.", |page| {
        let words = parts.map(|(_, words, bytes)| format!("{words}: {}", size::human(bytes))).join("; ");
        let row = Parts {
            label: String::new(),
            words: words.clone(),
            parts: parts.map(|(class, _, bytes)| (class, bytes)).to_vec(),
            behind: size::human(total),
        };
        let about = About { id: "space", title: "Where the bytes of the store are", description: &words };
        let legend = parts.map(|(class, words, _)| (class, words));
        page.figure("The store by what is in it", &chart::parts(about, &[row], &legend));
        let rows = parts.map(|(_, words, bytes)| vec![words.to_owned(), size::human(bytes), share(bytes)]);
        page.table("The store by what is in it", &[("Part", false), ("Size", true), ("Share", true)], &rows);
    });
}

fn changes(page: &mut Page, map: &Map, now_secs: i64) {
    if map.rows.is_empty() {
        let words = "There is no snapshot, so nothing is preserved and no change is recorded.";
        return page.section("Changes", words, |_| {});
    }
    let secs = |point: &Point| if point.tag == Tag::ORIGIN { now_secs } else { point.created_secs };
    let words = "An interval is the time between two neighbouring snapshots. What changes in it is preserved once, \
                 however many snapshots need it.";
    let mut sum = 0u64;
    let mut moments = Vec::new();
    let (mut bars, mut rows) = (Vec::new(), Vec::new());
    for row in &map.rows {
        if moments.is_empty() {
            let words = format!("snapshot {}: nothing yet", title(&row.from));
            moments.push(Moment { secs: secs(&row.from), words, value: 0 });
        }
        let changed = row.changed_bytes();
        sum = sum.saturating_add(changed);
        let words = format!("{} to {}: {}", title(&row.from), title(&row.to), size::human(changed));
        bars.push(Bar { label: tag(&row.from), words: words.clone(), value: changed });
        let words = format!("{words}, {} in all", size::human(sum));
        moments.push(Moment { secs: secs(&row.to), words, value: sum });
        rows.push(vec![
            title(&row.from),
            title(&row.to),
            when(&row.to),
            size::human(changed),
            percent(changed, u128::from(map.scale.size_bytes())),
            size::human(sum),
        ]);
    }
    page.section("Changes", words, |page| {
        let title = "Changed bytes of all intervals so far, by the time of the snapshots";
        let words =
            format!("A curve that rises from 0 to {} over {} intervals.", size::human(sum), map.rows.len());
        page.figure(title, &chart::curve(About { id: "sum", title, description: &words }, &moments));
        let title = "Changed bytes of each interval, by the snapshot that begins it";
        let most = bars.iter().map(|bar| bar.value).max().unwrap_or(0);
        let words =
            format!("{} upright bars, oldest first; the highest is {}.", bars.len(), size::human(most));
        page.figure(title, &chart::bars(About { id: "churn", title, description: &words }, &bars));
        let (svg, height) = heat::history(&map.clone().newest(ROWS), "");
        page.figure("Where in the volume, from its first byte (left) to its last", &svg.element(height));
        const COLUMNS: [Column; 6] = [
            ("From", false),
            ("To", false),
            ("Until", false),
            ("Changed", true),
            ("Of the volume", true),
            ("In all", true),
        ];
        page.table("Changes by interval", &COLUMNS, &rows);
    });
}

fn regions(page: &mut Page, map: &Map) {
    if map.rows.is_empty() {
        return;
    }
    let words = "The same by region: where backups and snapshots find most of their work.";
    page.section("Regions", words, |page| {
        let cells = map.churn.len().div_ceil(REGIONS).max(1);
        let start =
            |cell: usize| map.scale.cell_bytes().saturating_mul(cell as u64).min(map.scale.size_bytes());
        let all = map.churn.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell));
        let rows: Vec<Vec<String>> = map
            .churn
            .chunks(cells)
            .enumerate()
            .map(|(number, churn)| {
                let (first, end) = (start(number * cells), start((number + 1) * cells));
                let changed = churn.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell));
                let possible = u128::from(end - first) * u128::from(map.intervals());
                let touched = |row: &&crate::map::Row| {
                    row.cells.iter().skip(number * cells).take(cells).any(|cell| *cell > 0)
                };
                vec![
                    offset(first),
                    offset(end),
                    size::human(changed),
                    percent(changed, u128::from(all)),
                    percent(changed, possible),
                    format!("{} of {}", map.rows.iter().filter(touched).count(), map.rows.len()),
                ]
            })
            .collect();
        const COLUMNS: [Column; 6] = [
            ("From byte", true),
            ("To byte", true),
            ("Changed in all", true),
            ("Of all changes", true),
            ("Of the region, on average", true),
            ("Intervals that touch it", true),
        ];
        page.table("Changes by region", &COLUMNS, &rows);
    });
}

fn snapshots(page: &mut Page, snapshots: &[Snapshot]) {
    if snapshots.is_empty() {
        return;
    }
    let words = "A chunk that several snapshots need is kept once. What only one needs is what deleting that snapshot \
                 frees, at most: chunks of zeros take no space.";
    page.section("Snapshots", words, |page| {
        let known: Vec<&Snapshot> =
            snapshots.iter().filter(|snapshot| snapshot.shared_by.is_some()).collect();
        if !known.is_empty() {
            sharing(page, &known);
            largest(page, &known);
        }
        let row = |snapshot: &Snapshot| {
            let bytes = |bytes: u64| {
                snapshot.shared_by.as_ref().map_or_else(|| "?".to_owned(), |_| size::human(bytes))
            };
            vec![
                snapshot.tag.clone(),
                snapshot.name.clone(),
                time::utc(snapshot.created_secs),
                size::human(snapshot.size_bytes),
                bytes(snapshot.needs()),
                bytes(snapshot.own()),
                snapshot.state.clone(),
            ]
        };
        const COLUMNS: [Column; 7] = [
            ("Tag", true),
            ("Name", false),
            ("Created", false),
            ("Size", true),
            ("Needs", true),
            ("Needs alone", true),
            ("State", false),
        ];
        page.table("Snapshots, oldest first", &COLUMNS, &snapshots.iter().map(row).collect::<Vec<_>>());
    });
}

/// The classes and words of what is needed by one, two, three or four, and more snapshots.
const SHARERS: [(&str, &str); 4] =
    [("own", "needed by it alone"), ("s2", "by 2"), ("s3", "by 3 or 4"), ("s4", "by more")];

fn sharing(page: &mut Page, snapshots: &[&Snapshot]) {
    let newest = snapshots.get(snapshots.len().saturating_sub(ROWS)..).unwrap_or_default();
    let rows: Vec<Parts> = newest
        .iter()
        .map(|snapshot| {
            let mut parts = SHARERS.map(|(class, _)| (class, 0u64));
            for (bytes, sharers) in snapshot.shared_by.iter().flatten().zip(1u64..) {
                let slot = match sharers {
                    1 => 0,
                    2 => 1,
                    3 | 4 => 2,
                    _ => 3,
                };
                parts[slot].1 = parts[slot].1.saturating_add(*bytes);
            }
            let said = parts
                .iter()
                .zip(SHARERS)
                .map(|(part, (_, words))| format!("{} {words}", size::human(part.1)));
            let words = format!("snapshot {}: {}", snapshot.title(), said.collect::<Vec<_>>().join(", "));
            let (label, behind) = (snapshot.title(), size::human(snapshot.needs()));
            Parts { label, words, parts: parts.to_vec(), behind }
        })
        .collect();
    let title = match snapshots.len() - newest.len() {
        0 => "What each snapshot needs of the store".to_owned(),
        older => format!("What each snapshot needs of the store (without the {older} oldest)"),
    };
    let words = "A bar for each snapshot, oldest first, of what it needs alone and what it shares.";
    page.figure(
        &title,
        &chart::parts(About { id: "sharing", title: &title, description: words }, &rows, &SHARERS),
    );
}

fn largest(page: &mut Page, snapshots: &[&Snapshot]) {
    let mut largest: Vec<&&Snapshot> = snapshots.iter().filter(|snapshot| snapshot.own() > 0).collect();
    // By size, then oldest first.
    largest.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.own()));
    largest.truncate(LARGEST);
    if largest.is_empty() {
        return;
    }
    let row = |snapshot: &&&Snapshot| {
        let (label, behind) = (snapshot.title(), size::human(snapshot.own()));
        let words = format!("snapshot {label}: {behind}");
        Parts { label, words, parts: vec![("own", snapshot.own())], behind }
    };
    let rows: Vec<Parts> = largest.iter().map(row).collect();
    let title = "What deleting a snapshot would free, the largest first";
    let words =
        format!("{} bars; the longest is {}.", rows.len(), rows.first().map_or("", |row| &row.behind));
    page.figure(title, &chart::parts(About { id: "largest", title, description: &words }, &rows, &[]));
}

fn events(page: &mut Page, events: &[(i64, String)]) {
    let words = match events.len() {
        0 => "The store never had to delete or give up a snapshot by itself.",
        _ => "What the store did by itself because it was full.",
    };
    page.section("Events", words, |page| {
        if !events.is_empty() {
            let rows: Vec<Vec<String>> =
                events.iter().map(|(secs, text)| vec![time::utc(*secs), text.clone()]).collect();
            page.table("Events, oldest first", &[("When", false), ("What", false)], &rows);
        }
    });
}
