//! Clients of a server, which may say anything.

use super::store::sample;
use ddsnap::block::memory::Memory;
use ddsnap::point::PointId;
use ddsnap::point::PointSource as _;
use ddsnap::point::volume::SnapshotState;
use ddsnap::serve::control::Control;
use ddsnap::serve::export::Volume as Exported;
use ddsnap::serve::figures::Collector;
use ddsnap::serve::front::Service as _;
use ddsnap::serve::listen::{Stream, Wire};
use ddsnap::serve::nbd as protocol;
use ddsnap::serve::watched::Watch;
use ddsnap::store::{Live, View, Writer};
use std::io::{Cursor, Read, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A client of a server, which says everything before it listens; one connection, however often it is cloned.
#[derive(Clone)]
struct Client {
    says: Arc<Mutex<Cursor<Vec<u8>>>>,
    hears: Arc<Mutex<Vec<u8>>>,
}

impl Client {
    fn new(says: &[u8]) -> Self {
        Self { says: Arc::new(Mutex::new(Cursor::new(says.to_vec()))), hears: Arc::default() }
    }

    /// What it heard since it was last asked.
    fn take_heard(&self) -> Vec<u8> {
        std::mem::take(&mut *self.hears.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner).read(buf)
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.hears.lock().unwrap_or_else(PoisonError::into_inner).write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Wire for Client {
    fn end(&self) {}

    fn takes_more(&self) -> bool {
        true
    }
}

impl Stream for Client {
    fn again(&self) -> std::io::Result<Self> {
        Ok(self.clone())
    }

    fn set_limit(&self, _limit: Option<Duration>) -> std::io::Result<()> {
        Ok(())
    }

    fn ensure_own_user(&self) -> ddsnap::error::Result<()> {
        Ok(())
    }
}

/// Lets `client` talk to a server of the sample store. Whatever it says, snapshots that are left read as before.
fn serve(client: impl FnOnce(&Arc<Live>)) {
    let sample = sample();
    let (store, origin) = (Arc::new(sample.store.snapshot()), Arc::new(sample.origin.snapshot()));
    let view = || View::open(Arc::<Memory>::clone(&store), Some(Arc::<Memory>::clone(&origin)));
    let before = view().map(|view| view.snapshots()).unwrap_or_default();
    assert_eq!(before.len(), sample.images.len());
    let writer = Writer::open(Arc::<Memory>::clone(&store), Some(Arc::<Memory>::clone(&origin)), 6);
    let Ok(live) = writer.and_then(|writer| Live::start(writer, || 7)) else { panic!("no server begins") };
    let live = Arc::new(live);
    client(&live);
    let Some(live) = Arc::into_inner(live) else { panic!("a connection outlives its end") };
    if let Err(error) = live.close() {
        panic!("the server does not close its store: {error}");
    }
    let view = match view() {
        Ok(view) => view,
        Err(error) => panic!("the store cannot be opened any more: {error}"),
    };
    for snapshot in view.snapshots().iter().filter(|snapshot| snapshot.state == SnapshotState::Normal) {
        let Some(image) =
            before.iter().find(|old| old.id == snapshot.id).and_then(|old| sample.images.get(&old.tag.0))
        else {
            continue;
        };
        let mut bytes = vec![0; image.len()];
        let read = view.read(PointId::Snapshot(snapshot.id), 0, &mut bytes);
        assert!(read.is_ok() && bytes == *image, "snapshot {} reads otherwise", snapshot.tag);
    }
}

/// An NBD client from its flags on. Replies that say their own length follow one another to the end.
pub fn nbd(data: &[u8]) {
    serve(|live| {
        let mut client = Client::new(data);
        let exports = Exported(Arc::clone(live));
        let plain = protocol::Encryption::Settled;
        let Ok(protocol::Agreed::On(session)) = protocol::negotiate(&mut client, &exports, plain) else {
            return;
        };
        let _ = client.take_heard();
        let memory = protocol::Memory::default();
        let _ = protocol::serve(&session, &memory, (client.clone(), client.clone()), &client);
        let heard = client.take_heard();
        let mut rest = heard.as_slice();
        while session.structured && !rest.is_empty() {
            let Some((head, after)) = rest.split_first_chunk::<20>() else { panic!("a reply is cut short") };
            assert_eq!(head[..4], [0x66, 0x8e, 0x33, 0xef]);
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            let Some(after) = after.get(length as usize..) else { panic!("a reply is cut short") };
            rest = after;
        }
    });
}

/// A client of the control socket: documents, each after its length. Each is answered by a document, until bytes come.
pub fn control(data: &[u8]) {
    serve(|live| {
        let client = Client::new(data);
        let figures = Arc::new(Collector::new(live, &Arc::default(), &Arc::default()));
        let watch = Arc::new(Watch::new(|_| {}));
        let control = Control::new(live, figures, Arc::new(AtomicBool::new(false)), watch);
        // Who asks for the end would wait for it.
        control.ending().is_over(&Ok(()));
        let _ = control.serve(client.clone());
        let heard = client.take_heard();
        let mut rest = heard.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let document = after.split_at_checked(u32::from_be_bytes(*length) as usize);
            let Some((document, after)) = document else { panic!("an answer is cut short") };
            assert!(matches!(document, [b'{', .., b'}'] | [b'"', .., b'"']));
            // How many bytes were asked for stands in the request.
            let bytes_follow = [&b"\"Data\""[..], b"{\"Attached\"", b"{\"Device\""]
                .iter()
                .any(|begin| document.starts_with(begin));
            rest = if bytes_follow { &[] } else { after };
        }
        assert!(rest.is_empty(), "an answer is cut short");
    });
}
