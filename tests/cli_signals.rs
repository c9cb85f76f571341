//! Ctrl-C: status 130, no half-made output, snapshots whole, and a second signal that kills.

use crate::harness::{DDSNAP, Dir, volume};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

fn start(dir: &Dir, args: &[&str]) -> Child {
    Command::new(DDSNAP)
        .args(args)
        .current_dir(dir.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the command reports progress, so that it is known to be at work.
fn wait_for_progress(child: &mut Child) -> BufReader<std::process::ChildStderr> {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("progress: ") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "ended before it was at work");
    }
    stderr
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn finish(mut child: Child, mut stderr: BufReader<std::process::ChildStderr>) -> (Option<i32>, String) {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let dir = volume();
    let (names, before) = (dir.names(), dir.hashes());
    for which in [Signal::INT, Signal::TERM] {
        let args = ["export", "data.snap", "1", "out.img", "--rate-limit", "1k", "--progress"];
        let mut child = start(&dir, &args);
        let stderr = wait_for_progress(&mut child);
        signal(&child, which);
        let (code, text) = finish(child, stderr);
        assert_eq!(code, Some(130), "{text}");
        assert_eq!(dir.names(), names);
    }
    assert_eq!(dir.hashes(), before);
}

#[test]
fn an_interrupted_read_exits_130() {
    let dir = volume();
    let before = dir.hashes();
    let mut child = start(&dir, &["read", "data.snap", "1", "--rate-limit", "200k", "--progress"]);
    let stderr = wait_for_progress(&mut child);
    signal(&child, Signal::INT);
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let (code, text) = finish(child, stderr);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert!(output.len() < 1 << 20);
    assert_eq!(dir.hashes(), before);
}

#[test]
fn an_interrupted_delta_leaves_nothing() {
    let dir = volume();
    let (names, before) = (dir.names(), dir.hashes());
    let args = ["create-delta", "data.snap", "2", "-o", "out.delta", "--rate-limit", "200k", "--progress"];
    let mut child = start(&dir, &args);
    let stderr = wait_for_progress(&mut child);
    signal(&child, Signal::INT);
    let (code, text) = finish(child, stderr);
    assert_eq!(code, Some(130), "{text}");
    assert_eq!(dir.names(), names);
    assert_eq!(dir.hashes(), before);
}

#[test]
fn an_interrupted_write_keeps_every_snapshot() {
    let dir = volume();
    let origin = dir.read("data.img");
    let mut child = start(&dir, &["write", "data.snap", "--progress"]);
    let stderr = wait_for_progress(&mut child);
    // It waits for input that never comes, and must hear the signal all the same.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&[9; 5000]).unwrap();
    signal(&child, Signal::INT);
    let (code, text) = finish(child, stderr);
    drop(stdin);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("0 bytes from byte 0 on were written"), "{text}");
    assert_eq!(dir.read("data.img"), origin);
    assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
    dir.ok("fsck -n --data data.snap");
}

#[test]
fn a_killed_write_keeps_every_snapshot() {
    let dir = volume();
    for round in 0..5 {
        let mut child = start(&dir, &["write", "data.snap"]);
        let mut stdin = child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            // The pipe breaks when the command is killed.
            let _ = stdin.write_all(&[round + 1; 1 << 20]);
        });
        std::thread::sleep(std::time::Duration::from_millis(10 * u64::from(round)));
        child.kill().unwrap();
        child.wait().unwrap();
        feeder.join().unwrap();
        assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
        assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
        dir.ok("fsck -n --data data.snap");
    }
}
