//! Changes as JSON, in the words of the changed-block API of Kubernetes.

use super::common::parse_size;
use crate::error::{Error, Result};
use crate::point::{Changes, Point};
use crate::ui::Ui;
use crate::ui::output::Output;
use crate::units::Tag;
use serde_json::{Value, json};
use std::io::{BufWriter, Write};

/// Which part of the listing is wanted.
#[derive(Debug, clap::Args)]
pub struct PageArgs {
    /// With --json: begin at this byte, as 'next_starting_offset' of the listing before says
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "json")]
    starting_offset: Option<u64>,
    /// With --json: list at most so many ranges
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), requires = "json")]
    max_results: Option<u64>,
}

/// Writes one document as the ranges are found: nothing is held in memory but one of them. Returns how many bytes
/// it lists.
///
/// # Errors
/// What `changes` say; what writing says; `Kind::Interrupted`.
pub fn write(
    (base, target): (Option<&Point>, &Point),
    chunk_bits: u32,
    changes: Changes<'_>,
    page: &PageArgs,
    output: &mut Output,
    ui: &Ui,
) -> Result<u64> {
    let fail = |error| Error::io("cannot write the list", error);
    let mut output = BufWriter::new(output);
    let head = json!({
        "schema": "ddsnap.changelist/1",
        "base": base.map(name),
        "target": name(target),
        "chunk_size": 1u64 << chunk_bits,
        "volume_capacity_bytes": target.size_bytes,
        "block_metadata_type": "VARIABLE_LENGTH",
    })
    .to_string();
    let head = head.strip_suffix('}').unwrap_or(&head);
    write!(output, "{head},\"block_metadata\":[").map_err(fail)?;
    let (mut count, mut bytes, mut next) = (0, 0, None);
    for range in changes {
        ui.progress().check()?;
        let range = range?;
        let byte = |chunk: u64| chunk.saturating_mul(1 << chunk_bits).min(target.size_bytes);
        let (start, end) = (byte(range.start).max(page.starting_offset.unwrap_or(0)), byte(range.end));
        if start >= end {
            continue;
        }
        if page.max_results == Some(count) {
            next = Some(start);
            break;
        }
        let comma = if count == 0 { "" } else { "," };
        let block = json!({ "byte_offset": start, "size_bytes": end - start });
        write!(output, "{comma}{block}").map_err(fail)?;
        count += 1;
        bytes += end - start;
    }
    writeln!(output, "],\"next_starting_offset\":{}}}", json!(next))
        .and_then(|()| output.flush())
        .map_err(fail)?;
    Ok(bytes)
}

fn name(point: &Point) -> Value {
    if point.tag == Tag::ORIGIN { json!("origin") } else { json!(point.tag.0) }
}
