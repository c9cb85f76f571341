//! Devices of a real kernel. These tests run in a machine of their own: `cargo xtask vmtest`.

use crate::cli_pages::played;
use crate::harness::{DDSNAP, Dir, Run};
use rustix::net::sockopt::socket_peercred;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in the folder of a test, killed with it; what it says is in [`Server::SAYS`] there.
pub struct Server {
    child: Child,
    says: PathBuf,
}

impl Server {
    pub const SAYS: &str = "server.err";

    pub fn start(dir: &Dir, words: &str) -> Self {
        let mut command = Command::new(DDSNAP);
        command.arg("server").args(words.split(' ')).args(["--socket", "vol.sock"]);
        let says = File::options().append(true).create(true).open(dir.path(Self::SAYS)).unwrap();
        let child = command.current_dir(dir.path("")).stdin(Stdio::null()).stderr(says).spawn().unwrap();
        let server = Self { child, says: dir.path(Self::SAYS) };
        let begun = Instant::now();
        while !server.listens(&dir.path("vol.sock")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// This one, and not what is left of one that was killed.
    fn listens(&self, socket: &Path) -> bool {
        let peer = UnixStream::connect(socket).and_then(|stream| Ok(socket_peercred(stream)?));
        peer.is_ok_and(|peer| peer.pid.as_raw_nonzero().get().unsigned_abs() == self.child.id())
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let says = std::fs::read_to_string(&self.says).unwrap_or_default();
            eprintln!("the server, {:?}, has said:\n{says}", self.child.try_wait());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a shell command, which must succeed; returns what it prints.
pub fn sh(dir: &Dir, line: &str) -> String {
    let run: Run = dir.shell(line);
    if run.code != Some(0) {
        panic!("{}", run.describe());
    }
    run.text().trim().to_owned()
}

/// An origin on the first disk and a store on the second.
pub fn volume() -> Dir {
    let dir = Dir::new();
    sh(&dir, "ddsnap initialize -y /dev/vmdisk2 /dev/vmdisk1");
    dir
}

/// Load that knows what it has written.
pub const FIO: &str = "fio --name=v --rw=randrw --bs=4k-64k --size=32M --direct=1 --ioengine=psync \
    --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --output-format=terse --output=/dev/null";

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_file_system_lives_on_an_attached_volume() {
    let dir = volume();
    let server = Server::start(&dir, "/dev/vmdisk2");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock"), "origin /dev/mapper/vol");
    assert_eq!(
        sh(&dir, "blockdev --getsize64 /dev/mapper/vol"),
        sh(&dir, "blockdev --getsize64 /dev/vmdisk1")
    );
    sh(&dir, "mkfs.ext4 -q /dev/mapper/vol && mkdir m s && mount /dev/mapper/vol m && echo one >m/file");
    sh(&dir, "fsfreeze -f m; ddsnap create vol.sock 1; fsfreeze -u m");
    sh(&dir, "echo two >m/file && sync && cp -r /usr/share/perl5 m/ && sync");
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --snap 1"), "origin /dev/mapper/vol\n1 /dev/mapper/vol(1)");
    sh(&dir, "mount -o ro,noload '/dev/mapper/vol(1)' s");
    assert_eq!(sh(&dir, "cat s/file m/file; ls s"), "one\ntwo\nfile\nlost+found");
    // What is in use stays, all of it; a snapshot that is attached is not deleted.
    dir.run("detach vol").expect(4).says("mounted on");
    dir.run("delete vol.sock 1").expect(4);
    sh(&dir, "umount m");
    dir.run("detach vol.sock").expect(4).says("vol(1)");
    sh(&dir, "dmsetup info 'vol(1)'; umount s; test -e /dev/mapper/vol");
    // Mapped devices of others are left alone.
    sh(&dir, "dmsetup create other --table '0 8 error'");
    dir.run("detach other").expect(5);
    dir.run("detach nothing").expect(1);
    dir.run("attach vol.sock --name other").expect(1).says("already");
    sh(&dir, "ddsnap detach 'vol(1)' && ! test -e '/dev/mapper/vol(1)' && test -e /dev/mapper/vol");
    dir.run("attach vol.sock --snap 2").expect(1);
    sh(&dir, "ddsnap detach vol && ! test -e /dev/mapper/vol && ddsnap delete vol.sock 1");
    dir.run("attach vol.sock --name other").expect(1).says("another device has this name");
    sh(&dir, "dmsetup remove other; test $(cat /sys/block/nbd0/size) = 0");
    sh(&dir, "e2fsck -fn /dev/vmdisk1 2>&1; ddsnap stop vol.sock && ddsnap fsck -n --data /dev/vmdisk2");
    drop(server);
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_server_that_is_killed_and_started_again_is_no_error() {
    let dir = volume();
    let server = Server::start(&dir, "/dev/vmdisk2");
    // Who says how long is given NBD.
    sh(&dir, "ddsnap create vol.sock 1; ddsnap attach vol.sock --name data --snap 1 --wait 600");
    let load = Command::new("bash")
        .args(["-c", &format!("exec {FIO} --filename=/dev/mapper/data --runtime=12")])
        .current_dir(dir.path(""))
        .spawn();
    let mut load = load.unwrap();
    std::thread::sleep(Duration::from_secs(2));
    server.kill();
    std::thread::sleep(Duration::from_secs(2));
    assert!(load.try_wait().unwrap().is_none(), "it waits");
    let server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap attach vol.sock");
    // Again is the same.
    assert_eq!(sh(&dir, "ddsnap attach vol.sock"), "origin /dev/mapper/data\n1 /dev/mapper/data(1)");
    std::thread::sleep(Duration::from_secs(2));
    // Ended in peace, too.
    sh(&dir, "ddsnap stop vol.sock");
    drop(server);
    let server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap create vol.sock 2; ddsnap attach vol.sock");
    assert!(load.wait().unwrap().success(), "fio has met an error");
    assert!(sh(&dir, "cat /sys/block/nbd0/stat").split_whitespace().nth(4).unwrap() != "0");
    sh(&dir, "cmp <(dd if='/dev/mapper/data(1)' bs=1M status=none) <(ddsnap read vol.sock 1)");
    // A server that does not come back: nobody changes the origin beneath the devices, which can still be taken away.
    server.kill();
    dir.run("write /dev/vmdisk2").expect(4).says("it is attached");
    sh(&dir, "ddsnap detach data && ! ls /dev/mapper/data* && printf x | ddsnap write /dev/vmdisk2");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_what_a_killed_server_told_a_device_is_taken_up() {
    const ROUNDS: u32 = 3;
    let dir = volume();
    let words = "/dev/vmdisk2 --verbose";
    let mut server = Server::start(&dir, words);
    sh(&dir, "ddsnap attach vol.sock --name data --wait 600; head -c 24M /dev/urandom >data");
    let journal = sh(&dir, "ls -t /run/ddsnap/*.journal | head -n 1");
    for round in 0..ROUNDS {
        // All that is written must be copied out first, so it is held for a while, and nobody asks for a flush.
        sh(&dir, &format!("ddsnap create vol.sock {round}"));
        let line = "for part in $(seq 0 96 1440); do dd if=data of=/dev/mapper/data bs=16k oflag=direct \
            conv=notrunc status=none skip=$part seek=$part count=96 & done; \
            for dd in $(jobs -p); do wait $dd || exit 1; done";
        let mut writes = Command::new("bash").args(["-c", line]).current_dir(dir.path("")).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(round + 1) * 300));
        server.kill();
        server = Server::start(&dir, words);
        sh(&dir, "ddsnap attach vol.sock");
        assert!(writes.wait().unwrap().success(), "dd has met an error");
        sh(&dir, "cmp -n 25165824 data /dev/mapper/data && head -c 24M /dev/urandom >data");
    }
    let landed =
        sh(&dir, "grep -c '[1-9][0-9]* bytes that the last server held have landed' server.err || true");
    assert_ne!(landed, "0", "nothing was held when it was killed");
    sh(&dir, "ddsnap detach vol.sock; ddsnap stop vol.sock");
    assert!(!Path::new(&journal).exists(), "all has landed");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
    // Whose device is gone gets nothing of it.
    drop(server);
    let server = Server::start(&dir, words);
    sh(&dir, "ddsnap attach vol.sock --name data && ddsnap create vol.sock 90");
    sh(&dir, "dd if=data of=/dev/mapper/data bs=16k count=50 oflag=direct conv=notrunc status=none");
    server.kill();
    sh(&dir, &format!("cp {journal} kept && ddsnap detach data && ! ls {journal} && mv kept {journal}"));
    let _server = Server::start(&dir, words);
    sh(&dir, &format!("grep 'is dropped' server.err && ! ls {journal}"));
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_the_page_on_scripts_of_2008_is_true() {
    let dir = Dir::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scripts-of-2008.md");
    let page = std::fs::read_to_string(path).unwrap();
    let found = dir.mask(&played(&page, |command| dir.shell(command)));
    if let Some(folder) =
        std::env::var_os("DDSNAP_VM_OUT").filter(|_| std::env::var_os("UPDATE_GOLDEN").is_some())
    {
        std::fs::create_dir_all(Path::new(&folder).join("docs")).unwrap();
        std::fs::write(Path::new(&folder).join("docs/scripts-of-2008.md"), &found).unwrap();
        return;
    }
    assert_eq!(found, page);
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_the_six_commands_of_the_readme_work() {
    let dir = Dir::new();
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, after) = readme.split_once("Online, six commands").unwrap();
    let here = |line: &str| {
        let names = [("/dev/vg/vol.snap", "/dev/vmdisk2"), ("/dev/vg/vol", "/dev/vmdisk1"), ("/mnt", "m")];
        names.iter().fold(line.trim().to_owned(), |line, (there, here)| line.replace(there, here))
    };
    let lines = after.lines().skip(2).take_while(|line| !line.is_empty());
    let commands: Vec<_> = lines.map(here).collect();
    let [initialize, server, attach, mkfs, mount, create] = commands.as_slice() else {
        panic!("these are not six: {commands:?}")
    };
    // New disks hold nothing that a command would ask about.
    sh(&dir, "blkdiscard -fz /dev/vmdisk1 && blkdiscard -fz /dev/vmdisk2 && mkdir m s");
    // What a hand does between: a moment passes before the server is asked, and a file is written.
    let wait = "for moment in $(seq 600); do test -S vol.sock && break; sleep 0.1; done";
    let [before, after] = ["before", "after"].map(|word| format!("echo {word} >m/file; sync"));
    let begin = format!("({server}) >server.err 2>&1\n{wait}");
    sh(&dir, &["set -e", initialize, &begin, attach, mkfs, mount, &before, create, &after].join("\n"));
    sh(&dir, "ddsnap attach vol.sock --snap 0 && mount -o ro,noload '/dev/mapper/vol(0)' s");
    assert_eq!(sh(&dir, "cat m/file s/file"), "after\nbefore");
    sh(&dir, "umount m s && ddsnap detach vol.sock && ddsnap stop vol.sock");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

/// A mounted device of device-mapper on the first disk, as a logical volume would be, under load for so many seconds.
fn busy_volume(dir: &Dir, seconds: u32) -> Child {
    sh(dir, "dmsetup create lv --table \"0 $(blockdev --getsz /dev/vmdisk1) linear /dev/vmdisk1 0\"");
    sh(dir, "ddsnap initialize -y /dev/vmdisk2 /dev/mapper/lv");
    sh(
        dir,
        "mkfs.ext4 -q /dev/mapper/lv && mkdir m s && mount /dev/mapper/lv m && echo before >m/file && sync",
    );
    let line = format!("exec {FIO} --filename=m/load --runtime={seconds} --fsync=32");
    let load = Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    load
}

/// Runs a command that must end within a minute.
fn bounded(dir: &Dir, command: &str) {
    let wait = "& for moment in $(seq 600); do kill -0 $! || break; sleep 0.1; done; ! kill -0 $! && wait $!";
    sh(dir, &format!("{command} {wait}"));
}

/// A dmsetup in the folder `bin` that first does what `script` says.
fn before_dmsetup(dir: &Dir, script: &str) {
    let real = sh(dir, "mkdir -p bin && command -v dmsetup");
    dir.write("bin/dmsetup", format!("#!/bin/bash\n{script}\nexec {real} \"$@\"\n").as_bytes());
    sh(dir, "chmod +x bin/dmsetup");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_server_is_slipped_under_a_busy_volume_and_taken_out_again() {
    let dir = Dir::new();
    let mut load = busy_volume(&dir, 25);
    let table = sh(&dir, "dmsetup table lv");
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    // Writes go past the server still.
    dir.run("create vol.sock 1").expect(5).says("not inserted");
    dir.run("attach vol.sock").expect(2).says("--insert /dev/mapper/lv");
    dir.run("detach vol.sock").expect(1);
    assert_eq!(sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv"), "origin /dev/mapper/lv");
    sh(&dir, "fsfreeze -f m; ddsnap create vol.sock 1; fsfreeze -u m; echo after >m/file; sync");
    // A server that is killed: who writes waits, who reads does not.
    server.kill();
    sh(&dir, "timeout 5 dd if=/dev/mapper/lv of=/dev/null bs=4k count=16 iflag=direct status=none");
    std::thread::sleep(Duration::from_secs(1));
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    sh(&dir, "ddsnap attach vol.sock --snap 1");
    sh(&dir, "mount -o ro,noload '/dev/mapper/lv(1)' s");
    assert_eq!(sh(&dir, "cat s/file m/file"), "before\nafter");
    // With a snapshot in use it stays.
    dir.run("detach vol.sock").expect(4);
    sh(&dir, "umount s");
    // Not without its server, which runs.
    dir.run("detach lv").expect(4).says("detach SOCK");
    assert!(load.try_wait().unwrap().is_none(), "the load has ended too early");
    sh(&dir, "ddsnap detach vol.sock");
    assert_eq!(sh(&dir, "dmsetup table lv; dmsetup ls | cut -f1"), format!("{table}\nlv"));
    drop(server);
    assert!(sh(&dir, "ddsnap list /dev/vmdisk2").contains("normal"));
    // What is written now, no server sees: a new one knows that.
    sh(&dir, "echo unseen >m/file; sync");
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    assert!(sh(&dir, "ddsnap list vol.sock").contains("tainted"));
    sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv; ddsnap create vol.sock 2");
    // The server dies and does not come back: the volume goes on without it.
    assert!(load.wait().unwrap().success(), "fio has met an error");
    sh(&dir, "sync");
    server.kill();
    sh(&dir, "ddsnap detach lv && echo alone >m/file && umount m && e2fsck -fn /dev/mapper/lv 2>&1");
    assert_eq!(sh(&dir, "dmsetup table lv; dmsetup ls | cut -f1"), format!("{table}\nlv"));
    sh(&dir, "dmsetup remove lv; ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_dead_server_is_taken_out_at_once_and_no_snapshot_is_trusted_then() {
    let dir = Dir::new();
    sh(&dir, "dmsetup create lv --table \"0 16384 linear /dev/vmdisk1 0\"");
    sh(&dir, "ddsnap initialize -y /dev/vmdisk2 /dev/mapper/lv");
    let write = "dd if=/dev/urandom of=/dev/mapper/lv oflag=direct conv=notrunc status=none";
    let refused = |vol: &str| dir.run(&format!("read {vol} 0")).expect(5).says("tainted");
    for way in ["killed", "ended", "with its server", "with the next one"] {
        let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
        sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv && ddsnap create vol.sock 0");
        sh(&dir, "rm -f stop && dd if=/dev/mapper/lv of=before bs=1M status=none");
        // Writes are under way whenever the server goes.
        let line = format!("while [ ! -e stop ]; do {write} bs=4k count=64 seek=300 || exit 1; done");
        let mut writer = Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        match way {
            "killed" => server.kill(),
            "ended" => {
                sh(&dir, "ddsnap stop vol.sock");
                drop(server);
            }
            "with its server" => {
                sh(&dir, "cmp before <(ddsnap read vol.sock 0) && ddsnap detach vol.sock");
                drop(server);
            }
            _ => {
                // What waits for the one that was killed goes to the next, though nobody gave attach again.
                server.kill();
                let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
                bounded(&dir, "ddsnap detach vol.sock");
                drop(server);
            }
        }
        if ["killed", "ended"].contains(&way) {
            std::thread::sleep(Duration::from_secs(1));
            assert!(writer.try_wait().unwrap().is_none(), "{way}: it waits");
            bounded(&dir, "ddsnap detach lv");
        }
        sh(&dir, &format!("{write} bs=64k count=9 seek=64 && touch stop"));
        assert!(writer.wait().unwrap().success(), "{way}: a write failed");
        assert_eq!(sh(&dir, "dmsetup ls | cut -f1; dmsetup table lv | cut -d' ' -f3"), "lv\nlinear", "{way}");
        // Nobody saw what was written since, and everybody who looks knows that.
        refused("/dev/vmdisk2");
        assert!(sh(&dir, "ddsnap fsck -n /dev/vmdisk2 || true").contains("is not what it was"), "{way}");
        let server = Server::start(&dir, "/dev/vmdisk2");
        refused("vol.sock");
        sh(&dir, "ddsnap delete vol.sock 0 && ddsnap stop vol.sock");
        drop(server);
    }
    sh(&dir, "dmsetup remove lv && ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_killed_between_any_two_steps_the_volume_goes_on() {
    let dir = Dir::new();
    let mut load = busy_volume(&dir, 25);
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    // A dmsetup that dies before the step whose number it is told, and every one after it: a kill -9 between steps.
    before_dmsetup(
        &dir,
        "case $1 in load|suspend|resume|clear|remove|create)\n\
            n=$(($(cat steps 2>/dev/null || echo 0) + 1)); echo $n >steps\n\
            [ $n -lt $(cat die) ] || { kill -9 $PPID; exit 9; };;\nesac",
    );
    for step in 1..=3 {
        // Killed before this step, then given again.
        sh(
            &dir,
            &format!(
                "rm -f steps; echo {step} >die; ! PATH=$PWD/bin:$PATH ddsnap attach vol.sock --insert /dev/mapper/lv"
            ),
        );
        assert_eq!(sh(&dir, "cat steps"), step.to_string());
        sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv && timeout 20 sync");
        sh(&dir, &format!("ddsnap create vol.sock {step}"));
        if step < 3 {
            // Out and in again, by hand, without ending the server.
            sh(
                &dir,
                "dmsetup load lv --table \"$(dmsetup table lv-ddsnap)\"; dmsetup suspend lv; dmsetup resume lv",
            );
        }
    }
    for step in 1..=4 {
        sh(&dir, &format!("rm -f steps; echo {step} >die; ! PATH=$PWD/bin:$PATH ddsnap detach vol.sock"));
        assert_eq!(sh(&dir, "cat steps"), step.to_string());
        let is_running = UnixStream::connect(dir.path("vol.sock")).is_ok();
        // Ended in the third step, while all wait.
        assert_eq!(is_running, step <= 2, "after {step} steps");
        if step >= 3 {
            break;
        }
    }
    sh(&dir, "ddsnap detach lv && timeout 20 sync && echo on >m/file");
    drop(server);
    // Killed before the last step, which is the rest.
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv");
    sh(
        &dir,
        "rm -f steps; echo 4 >die; ! PATH=$PWD/bin:$PATH ddsnap detach vol.sock; test -e /dev/mapper/lv-ddsnap",
    );
    sh(&dir, "ddsnap detach lv && ! test -e /dev/mapper/lv-ddsnap && ! ddsnap detach lv");
    assert!(load.wait().unwrap().success(), "fio has met an error");
    drop(server);
    sh(&dir, "umount m && e2fsck -fn /dev/mapper/lv 2>&1; test $(dmsetup ls | wc -l) = 1; dmsetup remove lv");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_two_commands_do_not_lead_one_volume_to_different_places() {
    let dir = Dir::new();
    sh(&dir, "dmsetup create lv --table \"0 16384 linear /dev/vmdisk1 0\"");
    sh(&dir, "ddsnap initialize -y /dev/vmdisk2 /dev/mapper/lv");
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv");
    // One that waits in the middle of its steps until it is told to go on.
    before_dmsetup(&dir, "[ $1 != suspend ] || { touch reached; while [ ! -e go ]; do sleep 0.1; done; }");
    let line = format!("PATH=$PWD/bin:$PATH exec {DDSNAP} detach vol.sock");
    let mut detach = Command::new("bash").args(["-c", &line]).current_dir(dir.path("")).spawn().unwrap();
    sh(&dir, "for moment in $(seq 600); do test -e reached && break; sleep 0.1; done; test -e reached");
    dir.run("attach vol.sock").expect(4).says("holds it");
    dir.run("detach vol.sock").expect(4).says("holds it");
    dir.run("detach lv").expect(4).says("holds it");
    sh(&dir, "touch go");
    assert!(detach.wait().unwrap().success());
    sh(&dir, "dd if=/dev/zero of=/dev/mapper/lv oflag=direct bs=64k count=9 status=none");
    drop(server);
    assert_eq!(sh(&dir, "dmsetup ls | cut -f1; dmsetup table lv | cut -d' ' -f3"), "lv\nlinear");
    sh(&dir, "dmsetup remove lv && ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_server_may_die_while_it_is_taken_out() {
    let dir = Dir::new();
    let mut load = busy_volume(&dir, 40);
    // Dead before all that is written has landed, or after it.
    before_dmsetup(
        &dir,
        "[ $1 != suspend ] || [ $(cat when) != before ] || kill -9 $(cat pid)\n\
        [ $1 != suspend ] || [ $(cat when) != after ] || {\n\
            PATH=${PATH#*:} dmsetup \"$@\" && kill -9 $(cat pid); exit; }",
    );
    for (number, when) in ["before", "after"].into_iter().enumerate() {
        let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
        sh(
            &dir,
            &format!("ddsnap attach vol.sock --insert /dev/mapper/lv && ddsnap create vol.sock {number}"),
        );
        dir.write("pid", server.child.id().to_string().as_bytes());
        dir.write("when", when.as_bytes());
        assert!(load.try_wait().unwrap().is_none(), "the load has ended too early");
        bounded(&dir, &format!("PATH=$PWD/bin:$PATH {DDSNAP} detach vol.sock 2>detach.err"));
        assert!(sh(&dir, "cat detach.err").contains("has not ended in good order"), "{when}");
        assert_eq!(sh(&dir, "dmsetup ls | cut -f1; dmsetup table lv | cut -d' ' -f3"), "lv\nlinear");
        drop(server);
        sh(&dir, "timeout 20 sync && echo on >m/file && sync");
        dir.run(&format!("read /dev/vmdisk2 {number}")).expect(5).says("tainted");
    }
    assert!(load.wait().unwrap().success(), "fio has met an error");
    sh(&dir, "umount m && e2fsck -fn /dev/mapper/lv 2>&1 && dmsetup remove lv");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_a_dmsetup_may_outlive_its_command_and_its_server() {
    let dir = Dir::new();
    let mut load = busy_volume(&dir, 40);
    // If it has to wait, it goes on once another server answers.
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    sh(&dir, "ddsnap attach vol.sock --insert /dev/mapper/lv");
    before_dmsetup(&dir, &format!("[ $1 != suspend ] || kill -9 $PPID {}", server.child.id()));
    assert!(load.try_wait().unwrap().is_none(), "the load has ended too early");
    sh(&dir, &format!("! PATH=$PWD/bin:$PATH {DDSNAP} detach vol.sock"));
    drop(server);
    let server = Server::start(&dir, "/dev/vmdisk2 --beneath /dev/mapper/lv");
    bounded(&dir, "ddsnap attach vol.sock");
    sh(&dir, "! pgrep dmsetup && timeout 20 sync && echo on >m/file && sync");
    // The same, and no other server comes.
    before_dmsetup(&dir, &format!("[ $1 != suspend ] || kill -9 $PPID {}", server.child.id()));
    assert!(load.try_wait().unwrap().is_none(), "the load has ended too early");
    sh(&dir, &format!("! PATH=$PWD/bin:$PATH {DDSNAP} detach vol.sock"));
    bounded(&dir, "ddsnap detach lv");
    sh(&dir, "! pgrep dmsetup && timeout 20 sync && test $(dmsetup ls | wc -l) = 1");
    drop(server);
    assert!(load.wait().unwrap().success(), "fio has met an error");
    sh(&dir, "umount m && e2fsck -fn /dev/mapper/lv 2>&1 && dmsetup remove lv");
    sh(&dir, "ddsnap fsck -n --data /dev/vmdisk2");
}
