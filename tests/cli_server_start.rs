//! What a server looks at before it serves: what it refuses, and what it tells.

use crate::cli_server::Server;
use crate::harness::{Dir, volume};

fn log(dir: &Dir) -> String {
    String::from_utf8(dir.read("log")).unwrap()
}

#[test]
fn an_origin_that_was_changed_behind_its_back_is_told_at_the_start() {
    let dir = volume();
    let server = Server::start_logging(&dir, "");
    dir.ok("stop sock");
    assert_eq!((server.wait(), log(&dir).as_str()), (Some(0), ""));
    dir.patch("data.img", 0, |bytes| bytes[..4096].fill(0x77));
    // What was found is still so at the next start.
    for _ in 0..2 {
        let server = Server::start_logging(&dir, "");
        let read = dir.run("read sock 1").expect(5).says("'ddsnap stop sock', then 'ddsnap fsck --accept-taint /");
        assert!(read.stderr.contains("/data.snap' accepts it for good"), "{}", read.describe());
        let told = log(&dir);
        assert_eq!(told.lines().count(), 1, "{told}");
        for part in [
            "snapshot 2 is tainted: the origin was changed behind the store's back",
            "(1 older ones are, too)",
            "'ddsnap stop sock', then 'ddsnap fsck --accept-taint data.snap' accepts that for good",
        ] {
            assert!(told.contains(part), "{told}");
        }
        dir.run("fsck --accept-taint sock").expect(8).says("'ddsnap stop sock'").says("/data.snap itself");
        dir.ok("stop sock");
        assert_eq!(server.wait(), Some(0));
    }
    dir.run("fsck --accept-taint data.snap").expect(1);
    let server = Server::start_logging(&dir, "");
    dir.ok("read sock 1");
    dir.ok("stop sock");
    assert_eq!((server.wait(), log(&dir).as_str()), (Some(0), ""));
}
