//! Commands that change a served volume as a whole, killed at any moment, or their server under them: the same command
//! again, or a rollback, leads to the right bytes, and snapshots keep theirs.

use crate::cli_errors::seed;
use crate::cli_online::{larger, until_ok};
use crate::cli_server::{Nbd, Server};
use crate::harness::{DDSNAP, Dir, Rng, noise};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Commands, and what they make of the origin.
struct Site {
    dir: Dir,
    before: Vec<u8>,
    after: Vec<u8>,
    cases: Vec<(&'static str, Vec<u8>)>,
}

impl Site {
    /// Snapshot 1 is what the origin holds, snapshot 2 is all different.
    fn new() -> Self {
        let (dir, before) = larger();
        let after = noise(9, before.len());
        dir.write("after", &after);
        dir.ok_with("write data.snap", &after);
        dir.ok("create data.snap 2");
        dir.ok("create-delta data.snap 1 2 -o delta");
        dir.ok("revert data.snap 1");
        let cases = vec![
            ("write data.snap", after.clone()),
            ("apply-delta delta data.snap", after.clone()),
            ("revert data.snap 2", after.clone()),
            ("resize -y data.snap -o 3M", before[..3 << 20].to_vec()),
            ("resize data.snap -o 9M", [&before[..], &[0; 1 << 20]].concat()),
        ];
        Self { dir, before, after, cases }
    }

    fn start(&self, args: &str) -> Child {
        let mut command = Command::new(DDSNAP);
        command.args(args.split(' ')).current_dir(self.dir.path(""));
        let input = std::fs::File::open(self.dir.path("after")).unwrap();
        command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// How long a command takes that nobody disturbs.
    fn time(&self, args: &str) -> Duration {
        let begun = Instant::now();
        assert!(self.start(args).wait().unwrap().success(), "{args}");
        begun.elapsed()
    }

    fn is_pending(&self) -> bool {
        !self.dir.ok("status --json data.snap").json()["pending"].is_null()
    }

    /// True if the volume holds `image`. One that was cut while it grew may leave its file longer, with zeroes.
    fn has(&self, image: &[u8]) -> bool {
        let file = self.dir.read("data.img");
        let size = self.dir.ok("status --json data.snap").json()["origin"]["size_bytes"].as_u64();
        size == Some(image.len() as u64)
            && file.strip_prefix(image).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
    }

    fn ensure_snapshots(&self, what: &str) {
        assert!(self.dir.ok("read data.snap 1").stdout == self.before, "{what}: snapshot 1");
        assert!(self.dir.ok("read data.snap 2").stdout == self.after, "{what}: snapshot 2");
    }

    /// Finishes what was cut, or goes back.
    fn mend(&self, args: &str, result: &[u8], forward: bool, what: &str) {
        self.ensure_snapshots(what);
        if forward {
            let begun = Instant::now();
            while !self.start(args).wait().unwrap().success() {
                assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not finished");
            }
            assert!(self.has(result), "{what}: finished");
        } else if self.is_pending() {
            until_ok(&self.dir, "revert --rollback data.snap");
            assert!(self.has(&self.before), "{what}: rolled back");
        }
        assert!(!self.is_pending(), "{what}");
        self.ensure_snapshots(what);
        until_ok(&self.dir, "revert data.snap 1");
        assert!(self.has(&self.before), "{what}: reverted");
    }
}

/// A moment of a command that takes `time`, and a little after it.
fn moment(rng: &mut Rng, time: Duration) -> Duration {
    let thousandths = u32::try_from(rng.below(1100)).unwrap();
    time * thousandths / 1000
}

#[test]
fn a_command_that_is_killed_is_finished_or_undone_through_the_server() {
    let (site, seed) = (Site::new(), seed());
    let mut rng = Rng(seed);
    let server = Server::start(&site.dir);
    let mut pending = 0;
    for (args, result) in &site.cases {
        let time = site.time(args);
        until_ok(&site.dir, "revert data.snap 1");
        for round in 0..6 {
            let pause = moment(&mut rng, time);
            let what = format!("{args}, killed after {pause:?} of {time:?}, round {round}, seed {seed}");
            let mut child = site.start(args);
            std::thread::sleep(pause);
            let _ = child.kill();
            child.wait().unwrap();
            pending += u32::from(site.is_pending());
            site.mend(args, result, round % 2 == 0, &what);
        }
    }
    assert!(pending > 0, "no operation was ever cut, seed {seed}");
    site.dir.ok("stop data.snap");
    assert_eq!(server.wait(), Some(0));
    site.dir.ok("fsck -n --data data.snap").says_out("clean");
    site.ensure_snapshots("in the end");
}

#[test]
fn a_server_that_is_killed_under_a_command_leaves_what_can_be_finished_or_undone() {
    let (site, seed) = (Site::new(), seed());
    let mut rng = Rng(seed);
    let mut server = Server::start(&site.dir);
    let mut pending = 0;
    for (args, result) in &site.cases {
        let time = site.time(args);
        until_ok(&site.dir, "revert data.snap 1");
        for round in 0..5 {
            let pause = moment(&mut rng, time);
            let what = format!("{args}, killed after {pause:?} of {time:?}, round {round}, seed {seed}");
            let mut child = site.start(args);
            std::thread::sleep(pause);
            drop(server);
            // Whether it had ended by then or not: it must end.
            child.wait().unwrap();
            let is_pending = site.is_pending();
            pending += u32::from(is_pending);
            if is_pending {
                site.dir.run("server data.snap --socket sock").expect(5).says("was begun and not ended");
            }
            // By itself, or through the next server.
            let next = (!is_pending && round % 2 == 0).then(|| Server::start(&site.dir));
            site.mend(args, result, round % 3 != 1, &what);
            server = next.unwrap_or_else(|| Server::start(&site.dir));
        }
    }
    assert!(pending > 0, "no operation was ever cut, seed {seed}");
    site.dir.ok("stop data.snap");
    assert_eq!(server.wait(), Some(0));
    site.dir.ok("fsck -n --data data.snap").says_out("clean");
    site.ensure_snapshots("in the end");
}

const CHUNK: usize = 16 << 10;
/// Chunks that one writer writes.
const PART_CHUNKS: u64 = 16;

/// Numbers that a writer writes: the last one that was flushed, and the last of all, which may be there or not.
#[derive(Clone, Copy)]
struct Numbers {
    flushed: u64,
    written: u64,
}

impl Numbers {
    /// Writes the next number into every chunk of its own part, again and again, until the server is gone.
    fn write_until_killed(mut self, dir: &Dir, part: u64) -> Self {
        let mut nbd = Nbd::open(dir, "origin");
        let mut is_done = |command, offset, data: &[u8]| match nbd.try_ask(command, offset, data.len(), data)
        {
            Ok(error) => {
                assert_eq!(error, 0);
                true
            }
            Err(_) => false,
        };
        loop {
            self.written += 1;
            let bytes = self.written.to_le_bytes().repeat(CHUNK / 8);
            let places = (0..PART_CHUNKS).map(|chunk| (part * PART_CHUNKS + chunk) * CHUNK as u64);
            if !places.into_iter().all(|offset| is_done(1, offset, &bytes)) || !is_done(3, 0, &[]) {
                return self;
            }
            self.flushed = self.written;
        }
    }

    /// Whether a sector may begin with `found`.
    fn allow(self, found: u64) -> bool {
        // Before the first flush it may be what was there before.
        self.flushed == 0 || (self.flushed..=self.written).contains(&found)
    }
}

#[test]
fn a_server_that_is_killed_under_writers_loses_nothing_that_was_flushed() {
    const WRITERS: u64 = 4;
    let (dir, _) = larger();
    let mut rng = Rng(seed());
    let mut numbers = vec![Numbers { flushed: 0, written: 0 }; WRITERS as usize];
    let mut pasts: Vec<(u64, Vec<u8>)> = Vec::new();
    for round in 0..8 {
        let server = Server::start(&dir);
        numbers = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .zip(&numbers)
                .map(|(part, numbers)| {
                    let dir = &dir;
                    scope.spawn(move || numbers.write_until_killed(dir, part))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(20 + rng.below(150)));
            dir.ok(&format!("create data.snap {}", 100 + round));
            let image = dir.ok(&format!("read data.snap {}", 100 + round)).stdout;
            pasts.push((100 + round, image));
            std::thread::sleep(Duration::from_millis(rng.below(200)));
            drop(server);
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        dir.ok("fsck -p data.snap");
        let origin = dir.ok("read data.snap origin").stdout;
        for (part, numbers) in origin.chunks(PART_CHUNKS as usize * CHUNK).zip(&numbers) {
            for sector in part.chunks(512) {
                let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
                let Numbers { flushed, written } = numbers;
                assert!(numbers.allow(found), "round {round}: {found}, not from {flushed} to {written}");
            }
        }
        for (tag, image) in &pasts {
            assert!(
                dir.ok(&format!("read data.snap {tag}")).stdout == *image,
                "round {round}: snapshot {tag}"
            );
        }
    }
    assert!(numbers.iter().all(|numbers| numbers.flushed > 0), "nothing was ever flushed");
    dir.ok("fsck -n --data data.snap").says_out("clean");
}
