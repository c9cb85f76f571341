//! Parts of a point, read by many threads and handed over in order.

use super::spans::Spans;
use crate::delta::{ordered, workers};
use crate::error::Result;
use crate::point::{PointId, PointSource};
use crate::progress::Progress;

/// Hands every span's offset and bytes to `each`, in order. Every thread waits for the medium most of the time.
pub(super) fn each_span(
    source: &dyn PointSource,
    point: PointId,
    mut spans: Spans<'_>,
    progress: &dyn Progress,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut done = 0;
    ordered(
        workers(0),
        || spans.next_span(),
        || Ok(()),
        |(), span| {
            let mut bytes = vec![0; usize::try_from(span.end.saturating_sub(span.start)).unwrap_or(0)];
            source.read(point, span.start, &mut bytes)?;
            Ok((span.start, bytes))
        },
        |(offset, bytes)| {
            progress.check()?;
            each(offset, &bytes)?;
            let end = offset.saturating_add(bytes.len() as u64);
            progress.advance(end.saturating_sub(done));
            done = end;
            Ok(())
        },
    )
}
