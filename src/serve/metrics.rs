//! Figures for monitoring: the text format of Prometheus, over the least of HTTP.
//!
//! A client gets one answer and is hung up on. It must have asked within seconds, in a few kilobytes, and only a few
//! are served at a time, so that nobody who is slow or hostile costs more than that.

use super::figures::{Collector, ServerFigures};
use super::front::Service;
use super::listen::Stream;
use crate::block::counted::Counted;
use crate::error::{Error, Kind, Result};
use crate::format::http::{self, Method, Request};
use crate::point::volume::{SnapshotInfo, SnapshotState, StoreInfo};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are served at a time; others are hung up on.
const CLIENTS_MAX: usize = 16;

/// Answers `GET /metrics`.
pub struct Metrics {
    collector: Arc<Collector>,
    clients: AtomicUsize,
}

impl Metrics {
    /// Tells the figures of `collector`.
    #[must_use]
    pub fn new(collector: &Arc<Collector>) -> Self {
        Self { collector: Arc::clone(collector), clients: AtomicUsize::new(0) }
    }

    fn answer(&self, head: &[u8]) -> Vec<u8> {
        let Ok(request) = Request::decode(head) else {
            return response("400 Bad Request", "no HTTP/1\n", true);
        };
        let with_body = request.method != Method::Head;
        match (request.method, request.path) {
            (Method::Other, _) => response("405 Method Not Allowed\r\nAllow: GET, HEAD", "only GET\n", true),
            (_, "/metrics") => match self.text() {
                Ok(text) => response("200 OK", &text, with_body),
                Err(error) => response("503 Service Unavailable", &format!("{error}\n"), with_body),
            },
            _ => response("404 Not Found", "only /metrics is here\n", with_body),
        }
    }

    fn text(&self) -> Result<String> {
        let figures = self.collector.collect()?;
        let (info, snapshots) = self.collector.live()?.look(|view| (view.info(), view.snapshots()));
        Ok(text(&figures, &info, &snapshots))
    }
}

impl Service for Metrics {
    fn serve<S: Stream>(&self, mut stream: S) -> Result<()> {
        let _one = One::of(&self.clients);
        if self.clients.load(Ordering::Relaxed) > CLIENTS_MAX {
            return Ok(());
        }
        stream.set_limit(Some(PATIENCE)).map_err(|error| Error::io("cannot set a limit", error))?;
        let Ok(head) = head(&mut stream) else { return Ok(()) };
        let answer = match head {
            Some(head) => self.answer(&head),
            None => response("431 Request Header Fields Too Large", "too much was asked\n", true),
        };
        // Who asks and does not listen needs no word.
        let _ = stream.write_all(&answer).and_then(|()| stream.flush());
        Ok(())
    }
}

/// One of those that are served.
struct One<'a>(&'a AtomicUsize);

impl<'a> One<'a> {
    fn of(clients: &'a AtomicUsize) -> Self {
        clients.fetch_add(1, Ordering::Relaxed);
        Self(clients)
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads the head of a request; `None` if it is too long.
fn head(stream: &mut impl Stream) -> Result<Option<Vec<u8>>> {
    let begun = Instant::now();
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !http::is_whole(&head) {
        if head.len() >= http::HEAD_MAX {
            return Ok(None);
        }
        let failed = |error| Error::io("cannot read a request", error);
        let length = match stream.read(&mut piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.map_err(failed)?,
        };
        // A byte now and then would else keep it for hours.
        if length == 0 || begun.elapsed() > PATIENCE {
            return Err(Error::new(Kind::Io, "a request did not come to an end"));
        }
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
    }
    Ok(Some(head))
}

fn response(status: &str, body: &str, with_body: bool) -> Vec<u8> {
    let kind = match status.starts_with("200") {
        true => "text/plain; version=0.0.4; charset=utf-8",
        false => "text/plain; charset=utf-8",
    };
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if with_body {
        text.push_str(body);
    }
    text.into_bytes()
}

/// Families of figures, as text.
#[derive(Default)]
struct Text(String);

impl Text {
    /// A family: what it is, and each of its figures with its labels.
    fn family(&mut self, name: &str, kind: &str, help: &str, values: &[(&str, u64)]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP ddsnap_{name} {help}\n# TYPE ddsnap_{name} {kind}");
        for (labels, value) in values {
            let _ = match labels.is_empty() {
                true => writeln!(self.0, "ddsnap_{name} {value}"),
                false => writeln!(self.0, "ddsnap_{name}{{{labels}}} {value}"),
            };
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help, &[("", value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help, &[("", value)]);
    }

    fn devices(&mut self, name: &str, help: &str, of: impl Fn(&Counted) -> u64, figures: &ServerFigures) {
        let values = [("device=\"store\"", of(&figures.store)), ("device=\"origin\"", of(&figures.origin))];
        self.family(name, "counter", help, &values);
    }
}

/// All figures. Names are a promise: none changes its meaning.
fn text(figures: &ServerFigures, info: &StoreInfo, snapshots: &[SnapshotInfo]) -> String {
    let mut text = Text::default();
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    text.family("build_info", "gauge", "The program; always 1.", &[(version, 1)]);
    text.gauge("uptime_seconds", "Time since the server was started.", figures.uptime_secs);
    text.gauge("connections", "Clients of NBD.", figures.connections);
    text.counter("connections_total", "Clients of NBD that there ever were.", figures.connections_total);
    text.gauge("exports_open", "Connections that have chosen an export.", figures.exports_open);
    let volume = &figures.volume;
    text.gauge("operations_running", "Operations under way.", volume.running);
    let operations = [
        ("operation=\"read\",point=\"origin\"", volume.origin_reads),
        ("operation=\"write\",point=\"origin\"", volume.origin_writes),
        ("operation=\"read\",point=\"snapshot\"", volume.snapshot_reads),
        ("operation=\"flush\",point=\"origin\"", volume.flushes),
    ];
    text.family("operations_total", "counter", "Operations that clients asked for.", &operations);
    let bytes = [
        ("operation=\"read\",point=\"origin\"", volume.origin_read_bytes),
        ("operation=\"write\",point=\"origin\"", volume.origin_written_bytes),
        ("operation=\"read\",point=\"snapshot\"", volume.snapshot_read_bytes),
    ];
    text.family("operation_bytes_total", "counter", "Bytes of these operations.", &bytes);
    text.counter(
        "changes_total",
        "Operations that stopped all writers, as creating a snapshot.",
        volume.changes,
    );
    text.counter("copied_chunks_total", "Chunks that were copied out.", volume.copied_chunks);
    text.counter("commits_total", "Commits of copied chunks, one flush each.", volume.commits);
    text.gauge("commit_queue", "Writers that wait for memory, or for room in the log.", volume.queued);
    text.gauge("log_records", "Records since the last checkpoint.", figures.log_records);
    text.gauge("log_bytes", "Bytes of log since the last checkpoint.", figures.log_bytes);
    text.devices("device_reads_total", "Reads of a device.", |now| now.reads, figures);
    text.devices("device_read_bytes_total", "Bytes read from a device.", |now| now.read_bytes, figures);
    text.devices("device_writes_total", "Writes of a device.", |now| now.writes, figures);
    text.devices(
        "device_written_bytes_total",
        "Bytes written to a device.",
        |now| now.written_bytes,
        figures,
    );
    text.devices("device_flushes_total", "Flushes of a device.", |now| now.flushes, figures);
    text.devices("device_errors_total", "Operations of a device that failed.", |now| now.errors, figures);
    volume_text(&mut text, info, snapshots);
    text.0
}

/// What does not depend on a server.
fn volume_text(text: &mut Text, info: &StoreInfo, snapshots: &[SnapshotInfo]) {
    text.gauge("origin_size_bytes", "Size of the origin.", info.origin_size);
    text.gauge("store_size_bytes", "Size of the snapshot store.", info.store_size);
    text.gauge("store_free_bytes", "Room in the store that nothing uses.", info.free_bytes);
    text.gauge("store_data_bytes", "Preserved data in the store.", info.data_bytes);
    text.gauge("store_metadata_bytes", "Index and checkpoints in the store.", info.metadata_bytes);
    let count = |wanted: fn(&SnapshotInfo) -> bool| {
        snapshots.iter().filter(|snapshot| wanted(snapshot)).count() as u64
    };
    text.gauge("snapshots", "Snapshots, squashed ones too.", snapshots.len() as u64);
    let squashed = count(|snapshot| snapshot.state == SnapshotState::Squashed);
    text.gauge("snapshots_squashed", "Snapshots given up when the store was full.", squashed);
    let tainted = count(|snapshot| snapshot.tainted);
    text.gauge("snapshots_tainted", "Snapshots that may not be what they were.", tainted);
    let newest = snapshots.iter().map(|snapshot| snapshot.created_secs).max().unwrap_or(0);
    let newest = u64::try_from(newest).unwrap_or(0);
    text.gauge("newest_snapshot_timestamp_seconds", "When the newest snapshot was made; 0 if none.", newest);
}
