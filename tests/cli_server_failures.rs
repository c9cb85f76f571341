//! A server whose devices fail, or whose clients do not do their part.

use crate::cli_server::{Nbd, Server};
use crate::harness::{Dir, ORIGIN_BYTES, noise, volume};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// An origin of no bytes: whatever is read of it is an error.
fn lose(dir: &Dir) {
    File::options().write(true).open(dir.path("data.img")).unwrap().set_len(0).unwrap();
}

fn bring_back(dir: &Dir, image: &[u8]) {
    dir.write("data.img", image);
}

/// How many lines of the log hold `text`.
fn told(dir: &Dir, text: &str) -> usize {
    String::from_utf8(dir.read("log")).unwrap().lines().filter(|line| line.contains(text)).count()
}

/// What NBD says of a device that fails.
const IO: u32 = 5;
/// The exit status for a file that has become too short.
const DAMAGED: i32 = 3;

#[test]
fn a_device_that_fails_is_told_in_the_log_until_it_works_again() {
    let dir = volume();
    let image = dir.read("data.img");
    let server = Server::start_logging(&dir, "");
    let mut origin = Nbd::open(&dir, "origin");
    lose(&dir);
    // It is held, and cannot land without what it replaces.
    origin.write(0, &noise(1, 4096));
    for _ in 0..3 {
        assert_eq!(origin.ask(3, 0, 0, &[]), IO, "a flush");
        assert_eq!(origin.ask(0, 500_000, 4096, &[]), IO, "a read");
    }
    assert_eq!((told(&dir, "origin: flushes fail: "), told(&dir, "origin: reads fail: ")), (1, 1));
    assert_eq!(told(&dir, "/data.img"), 2, "the device is named");
    bring_back(&dir, &image);
    origin.flush();
    origin.read(500_000, 4096);
    assert_eq!((told(&dir, "origin: flushes work again"), told(&dir, "origin: reads work again")), (1, 1));
    assert_eq!(told(&dir, ""), 4);
    drop(origin);
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_store_that_cannot_be_closed_is_told_who_ends_the_server() {
    let dir = volume();
    let image = dir.read("data.img");
    let server = Server::start_logging(&dir, "");
    let mut origin = Nbd::open(&dir, "origin");
    lose(&dir);
    origin.write(0, &noise(1, 4096));
    drop(origin);
    dir.run("stop sock").expect(DAMAGED).says("the server at sock has not ended well: /").says("/data.img");
    assert_eq!(server.wait(), Some(DAMAGED));
    assert!(told(&dir, "/data.img") > 0);
    dir.run("stop sock").expect(1);
    bring_back(&dir, &image);
    // Whoever asks hears it; one may come while the server is being ended, or when nobody listens any more.
    let server = Server::start_logging(&dir, "");
    let mut origin = Nbd::open(&dir, "origin");
    lose(&dir);
    origin.write(0, &noise(1, 4096));
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..3).map(|_| scope.spawn(|| dir.run("stop sock"))).collect();
        let codes: Vec<_> = askers.into_iter().map(|thread| thread.join().unwrap().code.unwrap()).collect();
        assert!(
            codes.contains(&DAMAGED) && codes.iter().all(|code| [1, 4, DAMAGED].contains(code)),
            "{codes:?}"
        );
    });
    assert_eq!(server.wait(), Some(DAMAGED));
}

#[test]
fn clients_for_whom_there_is_no_thread_cost_the_others_nothing() {
    let dir = volume();
    let server = Server::start_logging(&dir, "");
    let mut origin = Nbd::open(&dir, "origin");
    origin.write(0, &noise(1, 4096));
    // Room for the stacks of a few threads.
    let bytes = Some((memory(server.pid(), "VmSize:") + 24) << 20);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    prlimit(pid, Resource::As, Rlimit { current: bytes, maximum: bytes }).unwrap();
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(dir.path("nbd")).unwrap()).collect();
    let begun = Instant::now();
    while told(&dir, "cannot accept a connection: Resource temporarily unavailable") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "they are all served");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(origin.read(0, 4096), noise(1, 4096));
    origin.write(4096, &noise(2, 4096));
    origin.flush();
    // It ends in good order without a thread for that, too.
    kill_process(pid.unwrap(), Signal::TERM).unwrap();
    assert_eq!(server.wait(), Some(0));
    drop(idle);
    dir.ok("fsck -n --data data.snap");
    assert_eq!(dir.read("data.img")[4096..8192], noise(2, 4096));
}

/// Memory of a process, in MiB: what its status calls `what`.
fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn clients_that_take_no_replies_have_a_bounded_part_of_the_memory() {
    const CLIENTS: usize = 20;
    const REQUESTS: usize = 64;
    let dir = volume();
    let image = dir.read("data.img");
    let server = Server::start(&dir);
    let mut greedy: Vec<Nbd> = (0..CLIENTS).map(|_| Nbd::open(&dir, "origin")).collect();
    for client in &mut greedy {
        for _ in 0..REQUESTS {
            client.send(0, 0, ORIGIN_BYTES, &[]).unwrap();
        }
    }
    // They have taken what they get when there is nothing more to take.
    let (mut last, mut still) = (0, 0);
    while still < 10 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = memory(server.pid(), "VmHWM:");
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    let mut other = Nbd::open(&dir, "snap/1");
    assert!(other.read(0, ORIGIN_BYTES) == dir.read("monday.img"));
    let mut other = Nbd::open(&dir, "origin");
    other.write(0, &image);
    other.flush();
    // Who comes to its senses gets everything.
    for client in &mut greedy {
        for _ in 0..REQUESTS {
            assert_eq!(client.hear().unwrap(), 0);
            assert!(client.hear_data(ORIGIN_BYTES) == image);
        }
    }
    let peak = memory(server.pid(), "VmHWM:");
    eprintln!("peak {peak} MiB");
    assert!(peak < 600, "{peak} MiB");
    drop((greedy, other));
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
}
