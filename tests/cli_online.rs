//! Commands on a volume that a server has open, while clients of NBD use it.

use crate::cli_server::{Nbd, Server};
use crate::harness::{DDSNAP, Dir, Ends, noise, volume};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);

/// Runs `args` until it ends with status 0.
pub fn until_ok(dir: &Dir, args: &str) {
    let begun = Instant::now();
    while dir.run(args).code != Some(0) {
        assert!(begun.elapsed() < WAIT, "{args}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the server, and has every byte of what it leaves checked.
fn stop(dir: &Dir, server: Server) {
    dir.ok("stop data.snap");
    assert_eq!(server.wait(), Some(0));
    dir.ok("fsck -n --data data.snap").says_out("clean");
    assert!(!dir.ok("dump data.snap").text().contains("hidden: true"));
}

/// A volume of 8 MiB with snapshot 1.
pub fn larger() -> (Dir, Vec<u8>) {
    let dir = Dir::new();
    let bytes = noise(77, 8 << 20);
    dir.write("data.img", &bytes);
    // Room for each of the snapshots to be rewritten whole: a store that runs full gives one up.
    dir.ok("initialize data.snap data.img --size 256M");
    dir.ok("create data.snap 1");
    (dir, bytes)
}

/// Writes numbers at two places, one after the other, until `ended`, and noise elsewhere.
fn count(dir: &Dir, ended: &AtomicBool) {
    let mut origin = Nbd::open(dir, "origin");
    let mut number = 0u64;
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        for place in [0, 5 << 20] {
            origin.write(place, &number.to_le_bytes());
            let offset = (number * 7919 * 4096 + place) % ((8 << 20) - 70_000);
            origin.write(offset / 4096 * 4096 + 4096, &noise(number, 20_000));
        }
    }
}

fn number(image: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(image[place..place + 8].try_into().unwrap())
}

#[test]
fn results_are_whole_while_the_volume_is_written() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ended, dir) = (&ended, &dir);
        scope.spawn(move || count(dir, ended));
        let _ends = Ends(ended);
        for round in 0..6 {
            dir.ok(&format!("create-delta -r sock 1 origin -o {round}.delta"));
            dir.write("copy", &before);
            dir.ok(&format!("apply-delta {round}.delta copy --undo {round}.undo"));
            let copy = dir.read("copy");
            let (first, second) = (number(&copy, 0), number(&copy, 5 << 20));
            // The noise of a round lies between the two.
            assert!(first == second || first == second + 1 || round == 0, "round {round}: {first} {second}");
            // What is exported of a snapshot is what it was.
            dir.ok("export sock 1 image");
            assert!(dir.read("image") == before, "round {round}");
            assert!(dir.ok("read data.snap 1").stdout == before, "round {round}");
            dir.ok(&format!("create sock {}", 10 + round));
            let tag = 10 + round;
            dir.ok(&format!("create-delta data.snap 1 {tag} -o {tag}.delta"));
            let held = dir.ok(&format!("read sock {tag}")).stdout;
            dir.write("copy", &before);
            dir.ok(&format!("apply-delta {tag}.delta copy --undo {tag}.undo"));
            assert!(dir.read("copy") == held, "round {round}");
        }
    });
    stop(&dir, server);
}

fn start(dir: &Dir, args: &str) -> Child {
    let mut command = Command::new(DDSNAP);
    command.args(args.split(' ')).current_dir(dir.path("")).stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn what_a_command_needs_stays_until_it_ends_however_it_does() {
    let (dir, _) = larger();
    let server = Server::start(&dir);
    dir.ok_with("write sock --offset 4096", &noise(5, 6 << 20));
    for args in ["create-delta -r sock 1 origin -", "export sock 1 -"] {
        // It waits for somebody to take what it makes.
        let mut child = start(&dir, args);
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 100]).unwrap();
        dir.run("delete sock 1").expect(4).says("is open");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    until_ok(&dir, "delete sock 1");
    // A connection that asks for the same and is cut.
    dir.ok("create sock 2");
    let mut stream = UnixStream::connect(dir.path("sock")).unwrap();
    for text in ["\"Freeze\"", "\"Attach\""] {
        stream.write_all(&u32::try_from(text.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        // The rest of the answer is what the next one begins with; the server does not mind.
    }
    drop(stream);
    until_ok(&dir, "delete sock 2");
    stop(&dir, server);
}

#[test]
fn a_volume_is_rewritten_through_a_server() {
    let dir = volume();
    let first = dir.read("data.img");
    dir.ok("create data.snap 50");
    let server = Server::start(&dir);
    dir.ok_with("write sock --offset 70000", &noise(3, 50_000));
    let mut written = first.clone();
    written[70_000..120_000].copy_from_slice(&noise(3, 50_000));
    assert!(dir.ok("read sock origin").stdout == written);
    dir.ok_with("write sock 50 --offset 100", b"on a snapshot");
    let mut snapshot = first.clone();
    snapshot[100..113].copy_from_slice(b"on a snapshot");
    assert!(dir.ok("read sock 50").stdout == snapshot);
    dir.ok("create sock 51");
    // A dry run changes nothing, whether the server can tell what would happen or not.
    let told = dir.ok("list sock").stdout;
    dir.run_with("write --dry-run sock", b"never").expect(4).says("--dry-run needs the store itself");
    dir.run_with("write --dry-run sock 50", b"never").expect(4).says("--dry-run needs the store itself");
    dir.run("resize --dry-run sock -o 4M").expect(4).says("makes no plans").says("'ddsnap stop sock'");
    dir.ok("revert --dry-run sock 50");
    assert!(dir.ok("read sock origin").stdout == written && dir.ok("read sock 50").stdout == snapshot);
    assert!(dir.ok("list sock").stdout == told);
    // Back, and what is refused while the origin is open.
    dir.ok("revert --dry-run sock 50").says_out("would change");
    let open = Nbd::open(&dir, "origin");
    dir.run("revert sock 50").expect(4).says("the origin is open");
    dir.run_with("write sock", b"x").expect(4).says("the origin is open");
    drop(open);
    until_ok(&dir, "revert sock 50");
    assert!(dir.read("data.img") == snapshot);
    assert!(dir.ok("read sock 51").stdout == written);
    // A delta onto the live origin, and the same again, which is there already.
    dir.ok("create-delta sock 50 51 -o delta");
    dir.ok("apply-delta --dry-run delta sock").says_out("would write");
    dir.ok("apply-delta delta sock");
    dir.ok("apply-delta delta sock");
    assert!(dir.read("data.img") == written);
    dir.run("apply-delta --undo undo delta sock").expect(2);
    dir.run("apply-delta --rollback sock").expect(1).says("no operation is incomplete");
    stop(&dir, server);
    assert!(dir.ok("read data.snap 51").stdout == written);
    assert!(dir.ok("read data.snap 50").stdout == snapshot);
}

#[test]
fn sizes_change_while_a_volume_is_served() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    dir.run("resize --dry-run sock -s 1G").expect(4).says("makes no plans");
    dir.ok("resize sock -s 128M -o 9M");
    assert_eq!(dir.ok("status --size sock").text(), dir.ok("status --size data.snap").text());
    let mut origin = Nbd::open(&dir, "origin");
    assert_eq!(origin.size, 9 << 20);
    origin.write(8 << 20, &noise(1, 5000));
    dir.run("resize -y sock -o 4M").expect(4).says("the origin is open");
    dir.run("resize sock -s 64M").expect(4).says("in use");
    drop(origin);
    until_ok(&dir, "resize -y sock -o 4M");
    assert_eq!(dir.read("data.img").len(), 4 << 20);
    assert!(dir.ok("read sock 1").stdout == before);
    dir.ok("resize sock -s 100M");
    assert_eq!(Nbd::open(&dir, "origin").size, 4 << 20);
    dir.ok("create sock 2");
    until_ok(&dir, "revert sock 1");
    assert!(dir.read("data.img") == before);
    stop(&dir, server);
    assert!(dir.read("data.img") == before);
}

#[test]
fn an_apply_that_was_killed_is_rolled_back_through_the_server() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    dir.ok_with("write sock", &noise(9, 8 << 20));
    dir.ok("create sock 2");
    dir.ok("create-delta -r sock 1 2 -o delta");
    dir.ok("revert sock 1");
    // Cut at different moments; none may leave anything but the state before, the one after, or a way back.
    for pause in [20, 60, 120, 250] {
        let mut child = start(&dir, "apply-delta delta sock");
        std::thread::sleep(Duration::from_millis(pause));
        let _ = child.kill();
        child.wait().unwrap();
        // What it asked for last may still be done.
        std::thread::sleep(Duration::from_millis(300));
        let pending = dir.ok("status --json sock").text().contains("apply-delta 1 to 2");
        if pending {
            dir.run("create sock 3").expect(5).says("between two states");
            dir.ok("revert --rollback --dry-run sock").says_out("would put back");
            until_ok(&dir, "apply-delta --rollback sock");
        } else {
            until_ok(&dir, "revert sock 1");
        }
        assert!(dir.read("data.img") == before, "{pause}");
    }
    stop(&dir, server);
}

#[test]
fn a_thousand_connections_that_do_harm_if_they_can_do_none() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ended, dir) = (&ended, &dir);
        let writer = scope.spawn(move || count(dir, ended));
        // Slow readers: what they asked for waits for them, and for nobody else.
        let slow: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = UnixStream::connect(dir.path("sock")).unwrap();
                let text = "{\"Read\":{\"point\":\"Origin\",\"offset\":0,\"length\":4194304}}";
                stream.write_all(&u32::try_from(text.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
                stream
            })
            .collect();
        let idle: Vec<_> = (0..1000)
            .map(|number| {
                let name = if number % 2 == 0 { "sock" } else { "nbd" };
                UnixStream::connect(dir.path(name)).unwrap()
            })
            .collect();
        for (number, bytes) in [
            &[0xff; 40][..],
            b"\0\0\0\x04null",
            b"\0\0\0\x20{\"Write\":{\"point\":\"Origin\",\"piece",
            b"\0\0\0\x3b{\"Write\":{\"point\":\"Origin\",\"pieces\":[[0,18446744073709]]}}",
            b"\0\0\0\x35{\"Preserved\":{\"id\":1,\"ranges\":[[0,18446744073709]]}}",
            b"\0\0\0\x3a{\"Read\":{\"point\":\"Origin\",\"offset\":0,\"length\":999999999}}",
        ]
        .iter()
        .cycle()
        .take(60)
        .enumerate()
        {
            let mut stream = UnixStream::connect(dir.path("sock")).unwrap();
            // It may hang up at any byte.
            let _ = stream.write_all(bytes);
            if number % 3 != 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        dir.ok("list sock");
        dir.ok("create sock 2");
        assert!(dir.ok("read sock 1").stdout == before);
        drop((slow, idle));
        ended.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    stop(&dir, server);
}

#[test]
fn a_snapshot_is_exported_whole_while_the_origin_loses_its_end_and_gets_it_back_empty() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    for sizes in [&["4M"][..], &["4M", "8M"]] {
        for args in ["export data.snap 1 -", "read data.snap 1"] {
            let mut child = start(&dir, args);
            let mut found = vec![0; 100];
            let out = child.stdout.as_mut().unwrap();
            out.read_exact(&mut found).unwrap();
            for size in sizes {
                dir.ok(&format!("resize -y data.snap -o {size}"));
            }
            out.read_to_end(&mut found).unwrap();
            assert!(child.wait().unwrap().success(), "{args}");
            assert!(found == before, "{args}");
            until_ok(&dir, "revert data.snap 1");
        }
    }
    stop(&dir, server);
}

#[test]
fn two_commands_do_not_change_the_origin_at_once() {
    let (dir, before) = larger();
    let server = Server::start(&dir);
    let after = noise(4, 8 << 20);
    dir.ok_with("write data.snap", &after);
    dir.ok("create data.snap 2");
    // Somebody writes slowly, and has written something.
    let mut command = Command::new(DDSNAP);
    command.args(["write", "sock"]).current_dir(dir.path("")).stdin(Stdio::piped());
    let mut slow = command.spawn().unwrap();
    let mut input = slow.stdin.take().unwrap();
    input.write_all(&before[..4 << 20]).unwrap();
    let begun = Instant::now();
    while dir.read("data.img")[..4096] != before[..4096] {
        assert!(begun.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(20));
    }
    dir.run("revert data.snap 1").expect(4).says("another command is changing the origin");
    dir.run_with("write data.snap", b"x").expect(4).says("another command is changing the origin");
    assert!(dir.ok("read data.snap 2").stdout == after);
    input.write_all(&before[4 << 20..]).unwrap();
    drop(input);
    assert!(slow.wait().unwrap().success());
    assert!(dir.read("data.img") == before);
    dir.ok("revert data.snap 2");
    assert!(dir.read("data.img") == after);
    stop(&dir, server);
}
