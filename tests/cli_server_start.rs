//! What a server looks at before it serves: what it refuses, and what it tells.

use crate::cli_delta::replica;
use crate::cli_server::{Nbd, Server};
use crate::harness::{Dir, noise, volume};

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
    dir.ok("create replica.snap 2");
    for offset in ["1M", "38M"] {
        dir.ok_with(&format!("write replica.snap --offset {offset}"), &noise(9, 70_000));
    }
    let newest = dir.read("replica.img");
    cut("revert replica.snap 2");
    std::fs::rename(dir.path("replica.img"), dir.path("moved.img")).unwrap();
    let [finish, back] = ways_out(&dir, "--origin moved.img").try_into().unwrap();
    assert_eq!(finish, "revert --origin moved.img replica.snap 2");
    dir.ok(&back);
    assert!(dir.read("moved.img") == newest);
    std::fs::rename(dir.path("moved.img"), dir.path("replica.img")).unwrap();
    cut("revert replica.snap 2");
    dir.ok(&ways_out(&dir, "")[0]);
    assert!(dir.read("replica.img") == new);
}

#[test]
fn messages_go_neither_to_the_store_nor_to_the_origin() {
    let dir = volume();
    std::os::unix::fs::symlink("data.img", dir.path("link")).unwrap();
    let refused_because = |options: &str, why: &str| {
        let run = dir.untouched(|dir| dir.run(&format!("server data.snap --socket sock {options}")));
        run.expect(2).says(why);
        assert!(!dir.path("sock").exists());
    };
    let refused = |options: &str| refused_because(options, "would overwrite its own input");
    for output in ["data.snap", "data.img", "link"] {
        refused(&format!("--logfile {output}"));
        refused(&format!("--pidfile {output}"));
        refused(&format!("--daemonize --logfile {output}"));
    }
    // Not where the store remembers it.
    dir.copy("data.img", "moved.img");
    refused("--origin moved.img --pidfile moved.img");
    dir.write("log", b"");
    std::fs::hard_link(dir.path("log"), dir.path("same")).unwrap();
    refused("--logfile log --pidfile same");
    for options in
        ["--logfile log --pidfile log", "--pidfile sock", "--nbd unix:sock", "--nbd unix:n --metrics unix:n"]
    {
        refused_because(options, "it is given for two things");
    }
    dir.ok("create data.snap 3");
}

#[test]
fn files_are_shown_in_an_empty_folder_only() {
    let dir = volume();
    std::fs::create_dir(dir.path("full")).unwrap();
    dir.write("full/file", b"not to be hidden");
    for (folder, says) in [("full", "not empty"), ("block.bin", "no folder"), ("none", "none")] {
        let code = if folder == "none" { 1 } else { 2 };
        let serve = format!("server data.snap --socket sock --fuse {folder}");
        dir.untouched(|dir| dir.run(&serve)).expect(code).says(says);
        dir.untouched(|dir| dir.run(&format!("mount data.snap 1 {folder}"))).expect(code).says(says);
    }
    assert_eq!(dir.read("full/file"), b"not to be hidden");
}

#[test]
fn wrong_addresses_are_wrong_usage() {
    let dir = volume();
    let long = "x".repeat(120);
    for options in [
        "--nbd tcp:localhost:99999",
        "--nbd tcp:localhost:http",
        "--nbd tcp::10809",
        "--nbd tcp:localhost",
        "--nbd unix:",
        "--metrics localhost:99999",
        "--metrics 0.0.0.0:0",
        &format!("--nbd unix:{long}"),
        &format!("--metrics unix:{long}"),
    ] {
        dir.run(&format!("server data.snap --socket sock {options}")).expect(2);
    }
    dir.run(&format!("server data.snap --socket {long}")).expect(2).says(&long);
    dir.run(&format!("stop {long}")).expect(2);
    dir.run("stop none").expect(1);
}

#[test]
fn an_origin_that_is_served_is_written_by_nobody_else() {
    let dir = volume();
    dir.copy("data.snap", "second.snap");
    dir.ok("create-delta --compare data.img new.img -o x.delta");
    let server = Server::start(&dir);
    let _client = Nbd::open(&dir, "origin");
    let before = dir.read("data.img");
    let command = |args: &str| dir.run_with(args, b"something else").expect(4);
    for args in [
        // Past the server, and through it while it has a client.
        "write second.snap",
        "write data.snap",
        "write sock",
        "apply-delta x.delta data.img",
        "apply-delta x.delta second.snap",
        "apply-delta x.delta data.snap",
        "revert second.snap 1 --accept-taint",
        "initialize -y data.img new.img",
        "initialize -y data.snap new.img",
        "server second.snap --socket other",
        "server data.snap --socket other",
    ] {
        command(args);
        assert!(dir.read("data.img") == before, "{args}");
    }
    dir.run("server second.snap --socket other --pidfile data.img").expect(4);
    assert!(dir.read("data.img") == before);
    drop(server);
    dir.ok("fsck -n data.snap");
}
