//! Deltas that are cut and go on: killed at any moment on either side, and never stuck.

use crate::cli_errors::seed;
use crate::harness::{DDSNAP, Dir, Rng, noise, volume};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn spawn(dir: &Dir, args: &str, stdin: Stdio, stdout: Stdio) -> Child {
    Command::new(DDSNAP)
        .args(args.split(' '))
        .current_dir(dir.path(""))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A volume with a delta of a few hundred KiB in many extents.
fn sparse_changes() -> Dir {
    let dir = volume();
    for (at, seed) in (0..20).map(|n| ((n * 48) << 10, n as u64)) {
        dir.ok_with(&format!("write data.snap --offset {at}"), &noise(seed + 10, 12 << 10));
    }
    dir.ok("create data.snap 3");
    dir
}

#[test]
fn a_file_that_was_killed_on_the_way_goes_on() {
    let dir = sparse_changes();
    let mut rng = Rng(seed());
    for options in ["", "-r", "-b"] {
        dir.ok(&format!("create-delta {options} data.snap 1 3 -o whole.delta"));
        let whole = dir.read("whole.delta");
        let (mut kills, mut grew, mut last) = (0, 0, 0);
        let args = format!("create-delta --resume --rate-limit 1M {options} data.snap 1 3 -o x.delta");
        loop {
            let mut child =
                spawn(&dir, args.trim().replace("  ", " ").as_str(), Stdio::null(), Stdio::null());
            std::thread::sleep(Duration::from_millis(20 + rng.below(150)));
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            kills += 1;
            let kept = std::fs::metadata(dir.path("x.delta.part")).map_or(0, |meta| meta.len());
            grew += u32::from(kept > last);
            last = kept;
            if kills > 60 {
                dir.ok(&args.replace("--rate-limit 1M ", "").replace("  ", " "));
                break;
            }
        }
        assert!(kills > 0 && grew > 0, "{options}: {kills} kills, {grew} times more than before");
        assert!(dir.read("x.delta") == whole, "{options}: not the same bytes, seed {}", seed());
        assert!(!dir.path("x.delta.part").exists());
        std::fs::remove_file(dir.path("x.delta")).unwrap();
    }
}

#[test]
fn a_part_of_something_else_is_made_afresh_with_a_note() {
    let dir = sparse_changes();
    dir.ok("create-delta data.snap 1 3 -o whole.delta");
    let (whole, len) = (dir.read("whole.delta"), dir.read("whole.delta").len());
    dir.ok("create-delta -r data.snap 1 3 -o raw.delta");
    for (part, note) in [
        (whole[..len / 2].to_vec(), None),
        (whole.clone(), None),
        (dir.read("raw.delta")[..5000].to_vec(), Some("another delta")),
        ([&whole[..8], &noise(1, 1000)].concat(), Some("does not begin as a delta")),
        (vec![0; 1000], Some("does not begin as a delta")),
    ] {
        dir.write("x.delta.part", &part);
        let run = dir.ok("create-delta --resume data.snap 1 3 -o x.delta");
        assert!(dir.read("x.delta") == whole);
        match note {
            Some(note) => drop(run.says(note)),
            None => assert_eq!(run.stderr, ""),
        }
    }
    // The origin and plain files may have changed since.
    for args in ["data.snap 1 origin", "--compare monday.img data.img"] {
        dir.ok(&format!("create-delta {args} -o now.delta"));
        let now = dir.read("now.delta");
        dir.write("x.delta.part", &now[..now.len() / 2]);
        dir.ok(&format!("create-delta --resume {args} -o x.delta")).says("only what is made from snapshots");
        assert!(dir.read("x.delta") == now);
    }
    // Two at a time would write over each other.
    let lock = std::fs::File::create(dir.path("x.delta.part")).unwrap();
    lock.lock().unwrap();
    dir.run("create-delta --resume data.snap 1 3 -o x.delta").expect(4);
    drop(lock);
    // Without --resume nothing is kept or used.
    dir.write("x.delta.part", b"mine");
    dir.ok("create-delta data.snap 1 3 -o x.delta");
    assert_eq!(dir.read("x.delta.part"), b"mine");
}

/// Sends and receives once; kills one side, or the other, or none, after a while.
fn transfer(dir: &Dir, target: &str, rng: &mut Rng, rate: &str) -> bool {
    let token = dir.ok(&format!("apply-delta --resume-token {target}")).text();
    let send = format!("create-delta {rate}data.snap 1 3 --resume-token {} -o -", token.trim());
    let mut sender = spawn(dir, &send, Stdio::null(), Stdio::piped());
    let pipe = sender.stdout.take().unwrap();
    let receive = format!("apply-delta --resume - {target}");
    let mut receiver = spawn(dir, &receive, Stdio::from(pipe), Stdio::null());
    if !rate.is_empty() {
        std::thread::sleep(Duration::from_millis(rng.below(250)));
        match rng.below(8) {
            0..4 => sender.kill().unwrap(),
            4..7 => receiver.kill().unwrap(),
            _ => {}
        }
    }
    sender.wait().unwrap();
    receiver.wait().unwrap().success()
}

#[test]
fn a_pipe_that_was_killed_on_either_side_goes_on() {
    let mut rng = Rng(seed());
    for onto_store in [false, true] {
        let dir = sparse_changes();
        let third = dir.ok("read data.snap 3").stdout;
        if onto_store {
            dir.ok("initialize --size 32M copy.snap copy.img");
        }
        let target = if onto_store { "copy.snap" } else { "copy.img" };
        // Often killed, then left alone: the try that nobody kills must do it.
        let killed = (0..12).any(|_| transfer(&dir, target, &mut rng, "--rate-limit 1M "));
        assert!(killed || transfer(&dir, target, &mut rng, ""), "stuck, seed {}", seed());
        assert!(dir.read("copy.img") == third, "seed {}", seed());
        let left: Vec<_> = dir.names().into_iter().filter(|name| name.contains("part")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_receiver_says_where_it_keeps_what_and_forgets_it_when_done() {
    let dir = sparse_changes();
    std::fs::create_dir(dir.path("spool")).unwrap();
    dir.ok("create-delta data.snap 1 3 -o x.delta");
    let delta = dir.read("x.delta");
    let half = &delta[..delta.len() / 2];
    let run = dir.run_with("apply-delta --resume --spool spool - copy.img", half).expect(3);
    assert!(run.stderr.contains("is kept in spool/copy.img."), "{}", run.describe());
    let token = dir.untouched(|dir| dir.ok("apply-delta --resume-token --spool spool copy.img")).text();
    let send = format!("create-delta data.snap 1 3 --resume-token {} -o -", token.trim());
    let rest = dir.ok(&send).stdout;
    assert!(rest.len() < delta.len() * 2 / 3, "{} of {}", rest.len(), delta.len());
    dir.ok_with("apply-delta --resume --spool spool - copy.img", &rest);
    assert_eq!(dir.read("copy.img"), dir.ok("read data.snap 3").stdout);
    assert_eq!(std::fs::read_dir(dir.path("spool")).unwrap().count(), 0);
    // The rest alone, where the beginning is not.
    let run = dir.run_with("apply-delta --resume --spool spool - copy.img", &rest).expect(3);
    assert!(run.stderr.contains("not what is kept"), "{}", run.describe());
    assert_eq!(std::fs::read_dir(dir.path("spool")).unwrap().count(), 0);
    // Of another delta: all of it is sent.
    let run = dir.ok(&send.replace("1 3", "2 3")).says("sending all of this one");
    dir.ok("create-delta data.snap 2 3 -o y.delta");
    assert_eq!(run.stdout, dir.read("y.delta"));
    // A wrong base is told apart, and what arrived stays for the right one.
    dir.run_with("apply-delta --resume --spool spool - new.img", &delta).expect(3);
    assert_eq!(std::fs::read_dir(dir.path("spool")).unwrap().count(), 1);
}

#[test]
fn a_token_of_another_delta_that_was_cut_in_its_first_extent_starts_afresh() {
    let dir = sparse_changes();
    dir.ok("create-delta data.snap 1 2 -o a.delta");
    let delta = dir.read("a.delta");
    dir.run_with("apply-delta --resume - copy.img", &delta[..delta.len().min(3000)]).expect(3);
    let run = dir.shell(
        "ddsnap create-delta data.snap 1 3 -o - --resume-token $(ddsnap apply-delta --resume-token copy.img) \\
         | ddsnap apply-delta --resume - copy.img",
    );
    assert_eq!(run.code, Some(0), "{}", run.describe());
    assert!(dir.read("copy.img") == dir.ok("read data.snap 3").stdout);
}
