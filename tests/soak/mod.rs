//! Kill -9 of the real program at any moment of every command that changes something.
//!
//! A round: a command is made up and first run to its end in a copy of the folder, which says how long it takes.
//! Then it is started for real and killed after a random part of that time. `fsck -p` must then find nothing that it
//! cannot repair, every snapshot must read exactly as it should, the origin as before or after, and what the command
//! was to make is there whole, or not under its name. Sometimes the next command is killed too, or fsck itself.
//!
//! `DDSNAP_SOAK` is the number of rounds, `DDSNAP_SEED` where chance begins. A failure keeps the folder.

mod acts;
mod live;
mod volume;

use crate::harness::{DDSNAP, Dir, Rng, Run};
use acts::{ACTS, Act, Output, Plain, Scene, Whole};
use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use volume::{Promise, VOL, Volume, assert_is, observe};

/// Rounds of a normal test run.
const ROUNDS: u64 = 20;
/// Rounds with one volume, before the next one of another shape.
const ROUNDS_A_VOLUME: u64 = 20;

/// A number that was asked for, or that of a normal test run.
fn asked(variable: &str, normal: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(normal)
}

#[test]
fn killed_at_any_moment_nothing_is_lost() {
    let (seed, rounds) = (asked("DDSNAP_SEED", 1), asked("DDSNAP_SOAK", ROUNDS));
    let mut tally = Tally::default();
    let mut bag = Vec::new();
    for start in (0..rounds).step_by(usize::try_from(ROUNDS_A_VOLUME).unwrap()) {
        let mut lab = Lab::new(seed.wrapping_add(start), &mut tally, &mut bag);
        for _ in start..rounds.min(start + ROUNDS_A_VOLUME) {
            lab.round();
        }
    }
    eprintln!("seed {seed}: {tally}");
    assert!(tally.killed * 2 > rounds, "only {} commands were met while they ran", tally.killed);
}

/// What came of it all.
#[derive(Default)]
struct Tally {
    rounds: u64,
    killed: u64,
    /// Of these, how many had changed some file already.
    touched: u64,
    ended: u64,
    fsck_killed: u64,
    repaired: u64,
    resumed: u64,
    rolled_back: u64,
    stores_lost_and_made_again: u64,
    /// By tenths of a command's time, how many kills met it there.
    moments: [u64; 10],
    acts: BTreeMap<&'static str, (u64, u64)>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} rounds, {} commands killed ({} of them had begun to write), {} ended before, {} checks killed, \
             {} stores repaired, \
             {} operations resumed, {} rolled back, {} new stores cut short",
            self.rounds,
            self.killed,
            self.touched,
            self.ended,
            self.fsck_killed,
            self.repaired,
            self.resumed,
            self.rolled_back,
            self.stores_lost_and_made_again
        )?;
        writeln!(f, "kills by tenth of the command's time: {:?}", self.moments)?;
        for (name, (killed, ended)) in &self.acts {
            writeln!(f, "  {name:<22} killed {killed:>4}, ended {ended:>4}")?;
        }
        Ok(())
    }
}

/// A volume under test.
struct Lab<'a> {
    dir: Dir,
    rng: Rng,
    seed: u64,
    volume: Volume,
    next_tag: u64,
    /// Every command that was started, for the one who has to find out.
    log: Vec<String>,
    tally: &'a mut Tally,
    /// Sorts of command still to come before any comes again.
    bag: &'a mut Vec<usize>,
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = self.dir.keep();
            self.dir.write("soak.log", self.log.join("\n").as_bytes());
            let from = self.log.len().saturating_sub(12);
            eprintln!(
                "FAILED with DDSNAP_SEED={}; folder and soak.log kept: {}\nthe last commands:\n  {}",
                self.seed,
                folder.display(),
                self.log[from..].join("\n  ")
            );
        }
    }
}

/// How long a child runs before it is killed, and what it said if it was too late.
enum Fate {
    Killed,
    Ended(Run),
}

impl<'a> Lab<'a> {
    fn new(seed: u64, tally: &'a mut Tally, bag: &'a mut Vec<usize>) -> Self {
        let mut rng = Rng(seed);
        let dir = Dir::new();
        let tight = rng.below(4) == 0;
        let size = if tight { 1_500_000 } else { 200_000 + rng.pick(3 << 20) };
        let mut image = rng.bytes(size);
        image[size / 4..size / 3].fill(0);
        dir.write("data.img", &image);
        let chunk = ["4k", "16k", "64k"][if tight { 0 } else { rng.pick(3) }];
        let store = if tight { (4 << 20) + rng.pick(2 << 20) } else { (24 << 20) + rng.pick(24 << 20) };
        dir.ok(&format!("initialize -c {chunk} --size {store} data.snap data.img"));
        let volume = observe(&dir, tight);
        let mut lab = Self { dir, rng, seed, volume, next_tag: 1, log: Vec::new(), tally, bag };
        lab.log.push(format!("initialize -c {chunk} --size {store} data.snap data.img"));
        lab.populate();
        lab
    }

    /// A few snapshots with changes between them.
    fn populate(&mut self) {
        for _ in 0..3 {
            self.dir.ok(&format!("create {VOL} {}", self.next_tag));
            self.next_tag += 1;
            for _ in 0..2 {
                let at = self.rng.pick(self.volume.origin.len());
                let len = (1 + self.rng.pick(150_000)).min(self.volume.origin.len() - at);
                self.dir.ok_with(&format!("write {VOL} --offset {at}"), &self.rng.bytes(len));
            }
        }
        self.volume = observe(&self.dir, self.volume.tight);
    }

    /// One command, killed, and everything compared.
    fn round(&mut self) {
        let (name, act) = self.choose();
        self.log.push(format!("--- {name}"));
        let before = self.dir.hashes();
        let (twin, length) = self.measure(&act);
        let fate = self.kill(&act.line, act.stdin, length);
        let counts = self.tally.acts.entry(name).or_default();
        self.tally.rounds += 1;
        match &fate {
            Fate::Killed => {
                counts.0 += 1;
                self.tally.touched += u64::from(self.dir.hashes() != before);
            }
            Fate::Ended(run) => {
                counts.1 += 1;
                assert!(run.code.is_some_and(|code| act.codes.contains(&code)), "{}", run.describe());
            }
        }
        if act.repeats && self.rng.below(4) == 0 {
            // What it says the second time depends on how far it came the first time.
            self.kill(&act.line, act.stdin, length);
        }
        self.check_outputs(&act, &twin, &before);
        self.settle(&act, length);
        if let Some(plain) = &act.plain {
            self.settle_plain(&act, plain, length);
        }
        self.clean();
        if self.volume.snaps.len() < 2 {
            self.populate();
        }
    }

    fn choose(&mut self) -> (&'static str, Act) {
        loop {
            if self.bag.is_empty() {
                self.bag.extend(0..ACTS.len());
            }
            let (name, make) = ACTS[self.bag.swap_remove(self.rng.pick(self.bag.len()))];
            // Too many snapshots only make it slow.
            if name.starts_with("create --") && self.volume.snaps.len() > 6 {
                continue;
            }
            let Self { dir, rng, volume, next_tag, .. } = self;
            if let Some(act) = make(&mut Scene { dir, rng, volume, next_tag }) {
                return (name, act);
            }
        }
    }

    /// Runs the command to its end in a copy of the folder.
    fn measure(&mut self, act: &Act) -> (Dir, Duration) {
        let twin = Dir::new();
        let copied = twin.shell(&format!("cp '{}'/* . && sync -d *", self.dir.path("").display()));
        copied.expect(0);
        let start = Instant::now();
        let run = wait(start_in(&twin, &act.line, act.stdin));
        let length = start.elapsed();
        let run = describe(&twin, &act.line, run);
        assert!(run.code.is_some_and(|code| act.codes.contains(&code)), "{}", run.describe());
        (twin, length)
    }

    /// Starts a command that takes about `length`, and kills it: anywhere, but more often
    /// towards the end, for the beginning is only the program being loaded.
    fn kill(&mut self, line: &str, stdin: Option<&'static str>, length: Duration) -> Fate {
        let part = match self.rng.below(10) {
            0..=1 => self.rng.below(300),
            2..=4 => 550 + self.rng.below(300),
            _ => 300 + self.rng.below(700),
        };
        let moment = length.mul_f64(part as f64 / 1000.0);
        self.log.push(format!("{line} # killed after {moment:?} of {length:?}"));
        let start = Instant::now();
        let mut child = start_in(&self.dir, line, stdin);
        std::thread::sleep(moment.saturating_sub(start.elapsed()));
        child.kill().unwrap();
        let run = describe(&self.dir, line, wait(child));
        if run.code.is_some() {
            self.tally.ended += 1;
            self.log.push(format!("  ended with {:?} before: {}", run.code, run.stderr.trim()));
            return Fate::Ended(run);
        }
        self.tally.killed += 1;
        self.tally.moments[usize::try_from(part / 100).unwrap()] += 1;
        Fate::Killed
    }

    /// Runs a command that must come to its end with one of `codes`.
    fn run(&mut self, line: &str, codes: &[i32]) -> Run {
        self.log.push(line.to_owned());
        let run = self.dir.run(line);
        assert!(run.code.is_some_and(|code| codes.contains(&code)), "{}", run.describe());
        run
    }

    /// Repairs, compares, and ends what is pending.
    fn settle(&mut self, act: &Act, length: Duration) {
        if matches!(act.promise, Promise::NewStore) && self.is_no_store() {
            return self.make_store_again(act);
        }
        self.repair(act.mend);
        let found = observe(&self.dir, self.volume.tight);
        act.promise.check(&self.volume, &found);
        let mut pending = found.pending;
        for _ in 0..3 {
            if !pending {
                break;
            }
            let (line, stdin, end) = match self.rng.below(2) {
                0 => (act.line.clone(), act.stdin, act.promise.end(&self.volume)),
                _ => (
                    format!("revert --rollback {VOL}"),
                    None,
                    Volume { pending: false, ..self.volume.clone() },
                ),
            };
            if self.rng.below(3) == 0 {
                self.kill(&line, stdin, length);
                self.repair("-p");
                let found = observe(&self.dir, self.volume.tight);
                act.promise.check(&self.volume, &found);
                pending = found.pending;
            } else {
                pending = self.end_operation(&line, &end, act);
            }
        }
        if pending {
            let before = Volume { pending: false, ..self.volume.clone() };
            self.end_operation(&format!("revert --rollback {VOL}"), &before, act);
        }
        self.volume = observe(&self.dir, self.volume.tight);
        assert!(!self.volume.pending);
    }

    /// Resumes or rolls back; true if it is still pending, for want of room.
    fn end_operation(&mut self, line: &str, end: &Volume, act: &Act) -> bool {
        let rolls_back = line.contains("--rollback");
        let run = self.run(line, if rolls_back { &[0] } else { act.codes });
        if run.code == Some(1) {
            return true;
        }
        assert_is(end, &observe(&self.dir, self.volume.tight));
        if rolls_back {
            self.tally.rolled_back += 1
        } else {
            self.tally.resumed += 1
        }
        false
    }

    /// What `fsck` must be able to repair; sometimes it is killed at it first.
    fn repair(&mut self, mend: &str) {
        let line = format!("fsck {mend} data.snap");
        while self.rng.below(4) == 0 {
            if let Fate::Killed = self.kill(&line, None, Duration::from_millis(8)) {
                self.tally.fsck_killed += 1;
            }
        }
        if self.run(&line, &[0, 1]).code == Some(1) {
            self.tally.repaired += 1;
        }
        self.run("fsck -n --data data.snap", &[0]);
    }

    fn is_no_store(&mut self) -> bool {
        self.run("list data.snap", &[0, 3]).code == Some(3)
    }

    /// A new store was cut short: nothing of the old one may come back as something it was not, and the same command
    /// makes it.
    fn make_store_again(&mut self, act: &Act) {
        self.tally.stores_lost_and_made_again += 1;
        if self.rng.below(2) == 0 {
            self.run("fsck -y --rebuild data.snap", &[1, 4, 8]);
            if !self.is_no_store() {
                self.check_revived();
            }
        }
        self.run(&act.line, &[0]);
        self.volume = observe(&self.dir, self.volume.tight);
        assert!(self.volume.snaps.is_empty());
        self.run("fsck -n --data data.snap", &[0]);
    }

    /// What a rebuild brings back of an old store is what it was, or marked.
    fn check_revived(&mut self) {
        let status = self.run("list --json data.snap", &[0]).json();
        for row in status["snapshots"].as_array().unwrap().iter().filter(|row| row["tainted"] == false) {
            let snap = self
                .volume
                .snaps
                .iter()
                .find(|snap| row["tag"] == snap.tag)
                .expect("a snapshot from nowhere");
            let run = self.dir.run(&format!("read {VOL} {}", snap.tag));
            assert!(
                run.code != Some(0) || run.stdout == *snap.bytes,
                "snapshot {} came back as another",
                snap.tag
            );
        }
    }

    /// A plain file under a delta: each byte is old or new, the same command makes it whole, an undo takes it back.
    fn settle_plain(&mut self, act: &Act, plain: &Plain, length: Duration) {
        let found = self.dir.read(plain.name);
        let sizes = [plain.old.len(), plain.new.len()];
        assert!(sizes.contains(&found.len()), "{}: {} bytes, never {sizes:?}", plain.name, found.len());
        for (at, byte) in found.iter().enumerate() {
            let known = [plain.old.get(at), plain.new.get(at)].contains(&Some(byte));
            let gained = at >= sizes[0] && *byte == 0;
            assert!(known || gained, "byte {at} of {} is neither old nor new", plain.name);
        }
        let undo = plain.undo.filter(|name| self.dir.path(name).exists());
        if let Some(undo) = undo.filter(|_| self.rng.below(2) == 0) {
            self.run(&format!("apply-delta {undo} {}", plain.name), &[0]);
            return assert!(self.dir.read(plain.name) == *plain.old, "undone, and not what it was");
        }
        if self.rng.below(3) == 0 {
            self.kill(&act.line, act.stdin, length);
        }
        self.log.push(act.line.clone());
        let run = describe(&self.dir, &act.line, wait(start_in(&self.dir, &act.line, act.stdin))).expect(0);
        assert!(self.dir.read(plain.name) == *plain.new, "{}not what the delta makes", run.describe());
    }

    /// What was to be made is as it was, or whole; everything else that is new says that it is partial.
    fn check_outputs(&mut self, act: &Act, twin: &Dir, before: &BTreeMap<String, String>) {
        for (name, hash) in &self.dir.hashes() {
            if before.get(name) == Some(hash) || name.starts_with("data.") {
                continue;
            }
            let changes = |plain: &Plain| plain.name == name || plain.undo == Some(name.as_str());
            match act.outputs.iter().find(|output| output.name == name) {
                Some(output) => self.check_whole(output, twin),
                None => assert!(
                    name.ends_with(".part")
                        || name.ends_with("-part")
                        || act.plain.as_ref().is_some_and(changes),
                    "what is {name}?"
                ),
            }
        }
        if !act.outputs.is_empty() && self.rng.below(2) == 0 {
            self.run(&act.line, act.codes);
            act.outputs.iter().for_each(|output| self.check_whole(output, twin));
        }
    }

    fn check_whole(&self, output: &Output, twin: &Dir) {
        let name = output.name;
        match &output.whole {
            Whole::Bytes(bytes) => assert!(self.dir.read(name) == **bytes, "{name} is there, and not whole"),
            Whole::Same => assert!(self.dir.read(name) == twin.read(name), "{name} is there, and not whole"),
            Whole::Delta(base, result) => {
                self.dir.write("check.img", base);
                self.dir.ok(&format!("apply-delta --force {name} check.img"));
                assert!(self.dir.read("check.img") == **result, "{name} makes something else");
                std::fs::remove_file(self.dir.path("check.img")).unwrap();
            }
        }
    }

    /// Removes everything but the volume.
    fn clean(&self) {
        for name in self.dir.names().iter().filter(|name| !["data.img", "data.snap"].contains(&name.as_str()))
        {
            std::fs::remove_file(self.dir.path(name)).unwrap();
        }
    }
}

fn start_in(dir: &Dir, line: &str, stdin: Option<&str>) -> std::process::Child {
    let input = stdin.map_or_else(Stdio::null, |name| File::open(dir.path(name)).unwrap().into());
    let words = line.split(' ').filter(|word| !word.is_empty());
    let mut command = Command::new(DDSNAP);
    command.args(words).current_dir(dir.path("")).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn wait(child: std::process::Child) -> std::process::Output {
    child.wait_with_output().unwrap()
}

fn describe(dir: &Dir, line: &str, output: std::process::Output) -> Run {
    Run {
        args: line.split(' ').map(ToString::to_string).collect(),
        cwd: dir.path(""),
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
