//! What a server looks at before it serves: what it refuses, and what it tells.

use crate::cli_delta::replica;
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
        let read =
            dir.run("read sock 1").expect(5).says("'ddsnap stop sock', then 'ddsnap fsck --accept-taint /");
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

/// The commands that the hint of a refused server names between quotes.
fn ways_out(dir: &Dir, options: &str) -> Vec<String> {
    let run = dir.run(&format!("server replica.snap --socket sock {options}"));
    let run = run.expect(5).says("was begun and not ended");
    let (_, hint) = run.stderr.split_once("hint: ").unwrap();
    let quoted = hint.split('\'').skip(1).step_by(2);
    quoted.map(|command| command.strip_prefix("ddsnap ").unwrap().to_owned()).collect()
}

#[test]
fn an_operation_that_a_crash_cut_is_ended_by_the_commands_that_the_refusal_names() {
    let (dir, old, new) = replica();
    let cut = |command: &str| {
        let limit = 30 << 10;
        dir.shell(&format!("ulimit -f {limit}; trap '' XFSZ; ddsnap {command}")).expect(1);
    };
    cut("apply-delta x.delta replica.snap");
    let [finish, back] = ways_out(&dir, "").try_into().unwrap();
    assert_eq!(finish, "apply-delta DELTA replica.snap");
    dir.ok(&back);
    assert!(dir.read("replica.img") == old);
    cut("apply-delta x.delta replica.snap");
    dir.ok(&finish.replace("DELTA", "x.delta"));
    assert!(dir.read("replica.img") == new);
    cut("revert replica.snap 1");
    std::fs::rename(dir.path("replica.img"), dir.path("moved.img")).unwrap();
    let [finish, back] = ways_out(&dir, "--origin moved.img").try_into().unwrap();
    assert_eq!(finish, "revert --origin moved.img replica.snap 1");
    dir.ok(&back);
    assert!(dir.read("moved.img") == new);
    std::fs::rename(dir.path("moved.img"), dir.path("replica.img")).unwrap();
    cut("revert replica.snap 1");
    dir.ok(&ways_out(&dir, "")[0]);
    assert!(dir.read("replica.img") == old);
}
