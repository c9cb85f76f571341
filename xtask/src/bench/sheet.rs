//! The table: goals, verdicts, and docs/benchmarks.md.

use super::lab::Lab;
use crate::report::{table, write_or_check};
use anyhow::Result;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// One row: what is measured, how, and what its limit is.
pub struct Row {
    pub number: u8,
    pub what: &'static str,
    /// Scratch space it needs, in quarters of the volume.
    pub volumes: u64,
    /// What makes the row, for readers who want to try it.
    pub commands: &'static str,
    /// What bounds it, and how near to that we are.
    pub limit: &'static str,
    pub measure: fn(&Lab) -> Result<Vec<Line>>,
}

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Told for comparison.
    Told,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Line {
    row: u8,
    what: String,
    ours: String,
    against: String,
    theirs: String,
    goal: Goal,
    /// What the goal speaks of, with its unit.
    value: f64,
    unit: &'static str,
}

impl Line {
    /// A line with the figures of both sides; the goal is set by [`Line::at_least`] and its like.
    pub fn new(what: impl Into<String>, ours: String, against: impl Into<String>, theirs: String) -> Self {
        let (what, against) = (what.into(), against.into());
        Self { row: 0, what, ours, against, theirs, goal: Goal::Told, value: f64::NAN, unit: "" }
    }

    /// What the goal speaks of, and the goal.
    pub fn judged(self, value: f64, unit: &'static str, goal: Goal) -> Self {
        Self { value, unit, goal, ..self }
    }

    /// A row that could not be measured here.
    pub fn not_measured(row: u8, why: String) -> Self {
        Self::new(why, String::new(), "", String::new()).of(row)
    }

    pub fn of(self, row: u8) -> Self {
        Self { row, ..self }
    }

    fn measured(&self) -> String {
        if self.value.is_nan() { "not measured".into() } else { figure(self.value, self.unit) }
    }

    fn wanted(&self) -> String {
        match self.goal {
            Goal::AtLeast(least) => format!("≥ {}", figure(least, self.unit)),
            Goal::AtMost(most) => format!("≤ {}", figure(most, self.unit)),
            Goal::Told => "—".into(),
        }
    }

    fn verdict(&self) -> &'static str {
        let met = match self.goal {
            _ if self.value.is_nan() => return "not measured",
            Goal::Told => return "told",
            Goal::AtLeast(least) => self.value >= least,
            Goal::AtMost(most) => self.value <= most,
        };
        if met { "met" } else { "MISSED" }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.row.to_string(),
            self.what.clone(),
            self.ours.clone(),
            self.against.clone(),
            self.theirs.clone(),
            self.wanted(),
            self.measured(),
            self.verdict().into(),
        ]
    }
}

/// A number with three digits that count.
pub fn figure(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.digits$}{unit}")
}

/// Throughput, for people.
pub fn rate(bytes: u64, seconds: f64) -> String {
    figure(bytes as f64 / seconds / f64::from(1 << 20), " MiB/s")
}

/// A time, for people.
pub fn time(seconds: f64) -> String {
    if seconds < 1.0 { figure(seconds * 1000.0, " ms") } else { figure(seconds, " s") }
}

/// A size, for people.
pub fn mib(bytes: u64) -> String {
    figure(bytes as f64 / f64::from(1 << 20), " MiB")
}

/// The table for a terminal.
pub fn console(lines: &[Line]) -> String {
    let cells: Vec<_> = lines.iter().map(Line::cells).collect();
    table(&[" row", "what", " ddsnap", "against", " that", " goal", " measured", "verdict"], &cells)
        .to_string()
}

const HEAD: &str = "# Benchmarks

Written by `cargo xtask bench`, never by hand. Each row was measured side by side with what a user would run instead,
in one run, in turns; the medians count. Ratios travel from one machine to another better than seconds do. Every row
also compared the bytes that it made. The numbers tell of these versions on this machine and of nothing else:

";

/// Writes docs/benchmarks.md.
pub fn write(rows: &[Row], lines: &[Line], machine: &str) -> Result<()> {
    write_page("docs/benchmarks.md", HEAD, rows, lines, machine)
}

/// Writes a page of measurements, which begins with `head`.
pub fn write_page(path: &str, head: &str, rows: &[Row], lines: &[Line], machine: &str) -> Result<()> {
    let mut text = String::from(head);
    writeln!(text, "{machine}")?;
    writeln!(text, "| row | what | ddsnap | against | that | goal | measured | verdict |")?;
    writeln!(text, "|--:|---|--:|---|--:|--:|--:|---|")?;
    for line in lines {
        writeln!(text, "| {} |", line.cells().join(" | "))?;
    }
    writeln!(text, "\n## What the rows are, and what bounds them")?;
    for row in rows {
        writeln!(text, "\n### {}. {}\n\n{}\n\n```\n{}\n```", row.number, row.what, row.limit, row.commands)?;
    }
    write_or_check(path, &text, false, "bench")
}

/// Facts of this machine that matter, without its name.
pub fn machine(folder: &Path, size_mib: u64, runs: u16) -> String {
    let full = super::FULL_SIZE;
    let rest = vec![
        "  where a line says \"in memory\", on tmpfs".into(),
        format!("- volume: {size_mib} MiB, the goals are meant for {full}; {runs} repetitions of each side;"),
        "  everything that is read is in the page cache, but where a line says \"evicted\"".into(),
        load(),
        "  a run by itself makes 1 to 2; above that a pipeline of threads waits at every hand-over and a single".into(),
        "  process does not, so rows 1 to 4 read too low\n".into(),
    ];
    [host(folder), rest].concat().join("\n")
}

/// The machine and the place of the scratch files.
pub fn host(folder: &Path) -> Vec<String> {
    let field = |path: &str, name: &str| -> String {
        let text = fs::read_to_string(path).unwrap_or_default();
        let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(':').nth(1));
        value.unwrap_or("unknown").trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = field("/proc/meminfo", "MemTotal");
    let memory = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
    let processor = field("/proc/cpuinfo", "model name");
    let (memory, place) = (memory / f64::from(1 << 20), file_system(folder));
    vec![
        format!("- processor: {processor}, {cores} cores; memory: {memory:.0} GiB; Linux {kernel}"),
        format!("- scratch files on {place};"),
    ]
}

/// How busy the machine was.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').nth(2).unwrap_or("unknown").to_owned();
    format!("- load average of the last 15 minutes: {load}; others worked, too, where that is more than 2;")
}

/// The type of the file system that holds `folder`.
fn file_system(folder: &Path) -> String {
    let output = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output();
    output
        .map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: f64, goal: Goal) -> Line {
        Line::new("a", String::new(), "b", String::new()).judged(value, "x", goal)
    }

    #[test]
    fn verdicts_follow_the_goal() {
        assert_eq!(line(0.7, Goal::AtLeast(0.7)).verdict(), "met");
        assert_eq!(line(0.69, Goal::AtLeast(0.7)).verdict(), "MISSED");
        assert_eq!(line(1.2, Goal::AtMost(1.1)).verdict(), "MISSED");
        assert_eq!(line(1.0, Goal::AtMost(1.1)).verdict(), "met");
        assert_eq!(line(1.0, Goal::Told).verdict(), "told");
        assert_eq!(line(f64::NAN, Goal::AtLeast(0.7)).verdict(), "not measured");
    }

    #[test]
    fn figures_keep_what_counts() {
        assert_eq!(figure(1234.5, "x"), "1234x");
        assert_eq!(figure(12.345, ""), "12.3");
        assert_eq!(figure(0.056, ""), "0.0560");
    }
}
