//! Whatever comes from a socket is an answer or an error.

use super::{Client, Control, REQUEST_MAX, Request, receive};
use crate::block::WriteAt;
use crate::block::file::FileWriter;
use crate::error::{Kind, Result};
use crate::point::volume::{Begin, Rewrite, Volume};
use crate::point::{ChunkRange, PointId, PointSource};
use crate::progress::Silent;
use crate::serve::export;
use crate::serve::figures::Collector;
use crate::serve::front::Service;
use crate::serve::watched::Watch;
use crate::store::{InitOptions, Live, Writer};
use crate::units::{Tag, index};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

#[test]
fn what_is_no_request_is_an_error() {
    let receive = |bytes: &[u8]| receive::<Request>(&mut &bytes[..], REQUEST_MAX);
    assert!(receive(b"").unwrap().is_none());
    assert!(receive(b"\0\0").unwrap().is_none());
    let document = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
    assert!(matches!(receive(&document(b"\"Describe\"")).unwrap(), Some(Request::Describe)));
    for text in [&b""[..], b"\"Destroy\"", b"{\"Read\":{}}", b"\xff\xff", &[b'['; 10_000]] {
        assert_eq!(receive(&document(text)).unwrap_err().kind(), Kind::Damaged);
    }
    assert_eq!(receive(&document(b"\"Describe\"")[..9]).unwrap_err().kind(), Kind::Io, "it was cut short");
    // A length that is never met takes no room.
    assert!(receive(&REQUEST_MAX.to_be_bytes()).is_err());
    assert!(receive(&(REQUEST_MAX + 1).to_be_bytes()).is_err());
    assert!(receive(&[0xff; 8]).is_err());
}

/// A volume of 64 chunks in `folder`, served for one client.
fn served(folder: &Path) -> (Arc<Live>, Client, JoinHandle<Result<()>>) {
    let (store, origin) = (folder.join("store"), folder.join("origin"));
    std::fs::write(&origin, vec![1; 64 << 14]).unwrap();
    let options = InitOptions {
        chunk_size: 16384,
        block_size: 4096,
        origin_path: origin.clone(),
        origin_size: 64 << 14,
        now_secs: 1,
    };
    let device: Arc<dyn WriteAt> = Arc::new(FileWriter::create(&store, 16 << 20).unwrap());
    Writer::initialize(&device, &options).unwrap();
    let origin: Arc<dyn WriteAt> = Arc::new(FileWriter::open(&origin).unwrap());
    let live = Arc::new(Live::start(Writer::open(device, Some(origin), 1).unwrap(), || 1).unwrap());
    let figures = Arc::new(Collector::new(&live, &Arc::default(), &Arc::default()));
    let control = Control::new(&live, figures, Arc::default(), Arc::new(Watch::new(|_| {})));
    let listener = UnixListener::bind(folder.join("sock")).unwrap();
    let thread = std::thread::spawn(move || control.serve(listener.accept().unwrap().0));
    let client = Client::connect(&folder.join("sock")).unwrap();
    (live, client, thread)
}

#[test]
fn what_becomes_a_hole_of_the_origin_is_still_listed_and_read_of_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let (live, client, thread) = served(folder.path());
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    let point = PointId::Snapshot(id);
    // From here on the client has tables, which do not know what comes.
    let mut bytes = vec![0; 64 << 14];
    client.read(point, 0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
    let list = || -> Vec<_> { client.changed(None, point).unwrap().map(Result::unwrap).collect() };
    let everything = [ChunkRange { start: 0, end: 64 }];
    assert_eq!(list(), everything);
    // Half of it is cut off and comes back as a hole; once it is listed while the file is short.
    live.resize_origin(1, (32 << 14, false), &Silent).unwrap();
    assert_eq!(list(), everything);
    client.read(point, 0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
    live.resize_origin(1, (64 << 14, false), &Silent).unwrap();
    assert_eq!(list(), everything);
    client.read(point, 0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
    // The origin itself has a hole there, and so has what is made of it from now on.
    let later = live.create_snapshot(Tag(2), None).unwrap().id;
    let picture = live.picture().unwrap();
    let half: Vec<_> =
        picture.view.changed(None, PointId::Snapshot(later)).unwrap().map(Result::unwrap).collect();
    assert_eq!(half, [ChunkRange { start: 0, end: 32 }]);
    drop(picture);
    drop(client);
    thread.join().unwrap().unwrap();
}

#[test]
fn tables_that_the_server_keeps_no_more_are_not_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (live, client, thread) = served(folder.path());
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    live.write_origin(0, &[2; 16384]).unwrap();
    // From then on the tables are read from the store.
    live.resize_store(17 << 20, &Silent).unwrap();
    let look = || {
        let changed =
            client.changed(Some(PointId::Snapshot(id)), PointId::Origin)?.collect::<Result<Vec<_>>>();
        changed.and(client.sharing().map(|_| ()))
    };
    let store = File::options().write(true).open(folder.path().join("store")).unwrap();
    store.write_all_at(&vec![0xdb; 12 << 20], 1 << 20).unwrap();
    assert_eq!(look().unwrap_err().kind(), Kind::Damaged, "it is");
    // From here on others write where the tables were.
    drop(live);
    let outdated = look().unwrap_err();
    assert_eq!((outdated.kind(), outdated.what()), (Kind::Busy, "the server is being ended"));
    drop(client);
    thread.join().unwrap().unwrap();
}

#[test]
fn what_a_device_of_the_kernel_has_written_does_not_go_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (live, client, thread) = served(folder.path());
    live.create_snapshot(Tag(1), None).unwrap();
    let export = export::open_outlived(&live, PointId::Origin).unwrap();
    for chunk in 0..64 {
        export.write(chunk << 14, &[9; 16384]).unwrap();
        let found = std::fs::read(folder.path().join("origin")).unwrap();
        assert!(found[index(chunk << 14)..index((chunk + 1) << 14)].iter().all(|byte| *byte == 9));
    }
    drop((export, client));
    thread.join().unwrap().unwrap();
}

#[test]
fn what_is_to_change_nothing_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (live, client, thread) = served(folder.path());
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    let mut client = client.kept_dry(true);
    let begin = Begin { label: "revert".into(), token: [0; 32], forced: false, pinned: None };
    let refused = [
        client.rewrite(PointId::Origin, &[(0, b"other")]),
        client.rewrite(PointId::Snapshot(id), &[(0, b"other")]),
        client.begin(&begin),
        client.set_origin_size(16384, &Silent),
        client.end(None),
    ];
    for outcome in refused {
        assert_eq!(outcome.unwrap_err().kind(), Kind::Refused);
    }
    let info = client.now().unwrap();
    assert_eq!((info.pending.is_none(), info.origin_size), (true, 64 << 14));
    for point in [PointId::Origin, PointId::Snapshot(id)] {
        let mut bytes = [0; 5];
        client.read_now(point, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 5]);
    }
    drop(client);
    thread.join().unwrap().unwrap();
}

#[test]
fn a_device_of_ublk_that_is_not_there_is_an_error_and_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (live, client, thread) = served(folder.path());
    drop(client);
    thread.join().unwrap().unwrap();
    let figures = Arc::new(Collector::new(&live, &Arc::default(), &Arc::default()));
    let control = Control::new(&live, figures, Arc::default(), Arc::new(Watch::new(|_| {})));
    let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || control.serve(far));
    super::send(&mut near, &Request::Ublk { point: PointId::Origin, number: u32::MAX, depth: 8 }).unwrap();
    match receive(&mut near, super::ANSWER_MAX).unwrap().unwrap() {
        super::Reply::Failed { kind, what, .. } => {
            assert_eq!(kind, Kind::NotFound, "{what}");
            assert!(what.contains("/dev/ublkc4294967295"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    thread.join().unwrap().unwrap();
    Arc::try_unwrap(live).ok().unwrap().close().unwrap();
}
