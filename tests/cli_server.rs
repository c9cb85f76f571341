//! A running server: block devices over NBD, commands through its socket.

use crate::harness::{DDSNAP, Dir, has_program, noise, skip, volume};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in the folder of a test, killed with it.
pub struct Server(Child);

impl Server {
    pub fn start(dir: &Dir) -> Self {
        Self::start_saying(dir, "", Stdio::inherit())
    }

    /// A server with more `options`, which are split at blanks; what it says goes to the file `log`.
    pub fn start_logging(dir: &Dir, options: &str) -> Self {
        Self::start_saying(dir, options, File::create(dir.path("log")).unwrap().into())
    }

    fn start_saying(dir: &Dir, options: &str, stderr: Stdio) -> Self {
        let child = Command::new(DDSNAP)
            .args(["server", "data.snap", "--socket", "sock", "--nbd", "unix:nbd"])
            .args(options.split_whitespace())
            .current_dir(dir.path(""))
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let server = Self(child);
        let begun = Instant::now();
        while UnixStream::connect(dir.path("nbd")).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn wait(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The simplest client of NBD there is.
pub struct Nbd {
    stream: UnixStream,
    pub size: u64,
}

impl Nbd {
    pub fn open(dir: &Dir, export: &str) -> Self {
        let mut stream = UnixStream::connect(dir.path("nbd")).unwrap();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        let length = u32::try_from(export.len()).unwrap();
        let parts = [
            &3u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &1u32.to_be_bytes(),
            &length.to_be_bytes(),
            export.as_bytes(),
        ];
        stream.write_all(&parts.concat()).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        Self { stream, size: u64::from_be_bytes(answer[..8].try_into().unwrap()) }
    }

    /// Asks for one thing; returns the error number.
    pub fn ask(&mut self, command: u16, offset: u64, length: usize, data: &[u8]) -> u32 {
        self.try_ask(command, offset, length, data).unwrap()
    }

    /// As [`Nbd::ask`], of a server that may be gone.
    pub fn try_ask(&mut self, command: u16, offset: u64, length: usize, data: &[u8]) -> std::io::Result<u32> {
        self.send(command, offset, length, data)?;
        self.hear()
    }

    /// Sends a request and waits for nothing.
    pub fn send(&mut self, command: u16, offset: u64, length: usize, data: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(length).unwrap();
        let parts = [
            &0x2560_9513u32.to_be_bytes()[..],
            &0u16.to_be_bytes(),
            &command.to_be_bytes(),
            &7u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ];
        self.stream.write_all(&parts.concat())
    }

    /// The error number of the next reply.
    pub fn hear(&mut self) -> std::io::Result<u32> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        Ok(u32::from_be_bytes(reply[4..8].try_into().unwrap()))
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        assert_eq!(self.ask(0, offset, length, &[]), 0);
        self.hear_data(length)
    }

    /// What follows the reply to a read.
    pub fn hear_data(&mut self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.ask(1, offset, data.len(), data), 0);
    }

    pub fn flush(&mut self) {
        assert_eq!(self.ask(3, 0, 0, &[]), 0);
    }
}

#[test]
fn a_served_volume_is_written_while_snapshots_keep_what_was() {
    let dir = volume();
    let before = dir.read("data.img");
    let server = Server::start(&dir);
    let mut origin = Nbd::open(&dir, "origin");
    assert_eq!(origin.size, before.len() as u64);
    dir.ok("create sock 10 --name online");
    origin.write(5000, &noise(1, 100_000));
    dir.ok("create sock 11");
    origin.write(0, &noise(2, 30_000));
    assert_eq!(origin.ask(6, 40_000, 20_000, &[]), 0, "zeroes");
    origin.flush();
    let mut after = before.clone();
    after[5000..105_000].copy_from_slice(&noise(1, 100_000));
    let middle = after.clone();
    after[..30_000].copy_from_slice(&noise(2, 30_000));
    after[40_000..60_000].fill(0);
    for (name, expected) in [("origin", &after), ("snap/10", &before), ("snap/11", &middle)] {
        assert!(Nbd::open(&dir, name).read(0, expected.len()) == *expected, "{name}");
    }
    for (name, expected) in [("origin", &after), ("10", &before), ("@0", &middle), ("online", &before)] {
        assert!(dir.ok(&format!("read sock {name}")).stdout == *expected, "{name}");
    }
    // What is not there, and what is not allowed.
    assert_eq!(origin.ask(0, after.len() as u64 - 10, 20, &[]), 22);
    assert_eq!(origin.ask(9, 0, 0, &[]), 22);
    assert_eq!(Nbd::open(&dir, "snap/10").ask(1, 0, 4, b"nono"), 1);
    assert_eq!(dir.ok("list data.snap").stdout, dir.ok("list sock").stdout);
    dir.run("fsck -n data.snap").expect(8).says("ddsnap stop");
    dir.run("dump sock").expect(4).says("ddsnap stop");
    drop(origin);
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
    assert!(!dir.path("sock").exists() && !dir.path("nbd").exists());
    dir.ok("fsck -n --data data.snap").says_out("clean");
    assert!(dir.read("data.img") == after);
    assert!(dir.ok("read data.snap 11").stdout == middle);
    dir.run("list sock").expect(1);
}

#[test]
fn commands_do_the_same_through_a_server() {
    let dir = volume();
    dir.ok("create data.snap 10");
    dir.ok_with("write data.snap --offset 70000", &noise(3, 50_000));
    let commands = [
        "list data.snap --json",
        "list data.snap",
        "status data.snap 1",
        "status --size data.snap",
        "status --state data.snap 99",
        "map data.snap 1 2",
        "read data.snap 2 --offset 100 --length 5000",
        "usecount data.snap 1",
        "policy data.snap",
    ];
    let ask = |vol: &str| -> Vec<_> {
        let run = |command: &&str| {
            let run = dir.run(&command.replace("data.snap", vol));
            (run.code, run.stdout)
        };
        commands.iter().map(run).collect()
    };
    let files = |vol: &str| {
        dir.ok(&format!("changelist {vol} list 1 10"));
        dir.ok(&format!("create-delta {vol} 1 10 -o delta"));
        dir.ok(&format!("export {vol} 10 image"));
        ["list", "image"].map(|name| {
            let bytes = dir.read(name);
            std::fs::remove_file(dir.path(name)).unwrap();
            bytes
        })
    };
    let offline = (ask("data.snap"), files("data.snap"));
    dir.ok("export data.snap 1 base");
    std::fs::remove_file(dir.path("delta")).unwrap();
    let server = Server::start(&dir);
    for (command, (online, offline)) in commands.iter().zip(ask("sock").iter().zip(&offline.0)) {
        assert_eq!(online.0, offline.0, "{command}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("data.snap", "sock");
        assert!(text(&online.1) == text(&offline.1), "{command}: {}", text(&online.1));
    }
    assert!(files("sock") == offline.1);
    dir.ok("apply-delta --undo undo delta base");
    assert!(dir.read("base") == offline.1[1]);
    // Changes come out the same too.
    dir.ok("usecount sock 10 2");
    dir.run("delete sock 10").expect(4).says("use count is 2");
    dir.ok("usecount sock 10 -2");
    dir.ok("hold sock 10 offsite");
    dir.run("delete sock 10").expect(4).says("offsite");
    dir.ok("release sock 10 offsite");
    dir.ok("priority sock 10 -5");
    dir.ok("policy sock squash");
    dir.run("create sock 10").expect(1).says("exists already");
    dir.run("create sock 12 --origin data.img").expect(2).says("leave out --origin");
    dir.run("read sock 1 --meta data.img").expect(2).says("leave out --origin");
    let open = Nbd::open(&dir, "snap/10");
    dir.run("delete sock 10").expect(4).says("is open");
    drop(open);
    let begun = Instant::now();
    while dir.run("delete sock 10").code != Some(0) {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    dir.run("export sock 1 data.snap").expect(2).says("would overwrite its own input");
    dir.run("export sock 1 data.img").expect(2).says("would overwrite its own input");
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
    assert_eq!(dir.ok("policy data.snap").text(), "squash\n");
    dir.run("read data.snap 10").expect(1);
}

#[test]
fn a_killed_server_loses_nothing_that_was_flushed() {
    let dir = volume();
    let mut image = dir.read("data.img");
    for round in 0..4u64 {
        let server = Server::start(&dir);
        let tag = 20 + round;
        dir.ok(&format!("create sock {tag}"));
        let expected = image.clone();
        let mut origin = Nbd::open(&dir, "origin");
        for number in 0..20 {
            let offset = (round * 7919 + number * 10_007) % (image.len() as u64 - 5000);
            let bytes = noise(round * 100 + number, 5000);
            origin.write(offset, &bytes);
            let at = usize::try_from(offset).unwrap();
            image[at..at + 5000].copy_from_slice(&bytes);
        }
        origin.flush();
        drop(server);
        // A socket that a dead server left is taken over by the next.
        assert!(dir.path("sock").exists());
        dir.ok("fsck -n --data data.snap");
        assert!(dir.read("data.img") == image, "round {round}");
        assert!(dir.ok(&format!("read data.snap {tag}")).stdout == expected, "round {round}");
    }
}

#[test]
fn no_result_overwrites_an_origin_that_is_elsewhere() {
    let dir = volume();
    std::fs::rename(dir.path("data.img"), dir.path("moved.img")).unwrap();
    dir.write("data.img", b"something else");
    let line = "ddsnap server data.snap --origin moved.img --socket sock & \
                until ddsnap list sock > /dev/null 2>&1; do sleep 0.02; done; \
                ddsnap export sock 1 moved.img; echo $? >&2; ddsnap stop sock && wait $!";
    dir.shell(line).expect(0).says("would overwrite its own input");
}

#[test]
fn clients_that_make_no_sense_do_no_harm() {
    let dir = volume();
    let server = Server::start(&dir);
    for (socket, bytes) in [
        ("nbd", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("nbd", &[0xff; 4096]),
        ("sock", &[0xff; 4096]),
        ("sock", b"\0\0\0\x04null"),
        ("sock", b"\0\0\0\x0c{\"Read\":[1]}"),
    ] {
        let mut stream = UnixStream::connect(dir.path(socket)).unwrap();
        // It may hang up at any byte.
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let before = descriptors();
    let idle: Vec<_> = (0..200).map(|_| UnixStream::connect(dir.path("nbd")).unwrap()).collect();
    assert_eq!(Nbd::open(&dir, "snap/1").read(0, 100).len(), 100);
    dir.ok("list sock");
    drop(idle);
    // Nobody needs to come for that.
    let begun = Instant::now();
    while descriptors() > before {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{} descriptors of clients that went",
            descriptors()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn tools_of_others_read_and_write_it() {
    if !has_program("nbdcopy") || !has_program("qemu-io") {
        return skip("nbdcopy or qemu-io is not installed");
    }
    let dir = volume();
    let before = dir.read("data.img");
    dir.ok("create data.snap 30");
    let server = Server::start(&dir);
    let pattern = "qemu-io -f raw -c 'write -P 7 16k 64k' -c 'write -z 128k 32k' -c flush \
                   'nbd+unix:///origin?socket=nbd' >&2";
    dir.shell(pattern).expect(0);
    dir.shell("nbdcopy 'nbd+unix:///snap/30?socket=nbd' out").expect(0);
    assert!(dir.read("out") == before);
    let listed = dir.shell("nbdinfo --list 'nbd+unix:///?socket=nbd'").expect(0).text();
    assert!(listed.contains("export=\"snap/30\"") && listed.contains("export=\"origin\""), "{listed}");
    dir.ok("stop sock");
    assert_eq!(server.wait(), Some(0));
    let after = dir.read("data.img");
    assert!(after[16 << 10..80 << 10].iter().all(|byte| *byte == 7));
    assert!(after[128 << 10..160 << 10].iter().all(|byte| *byte == 0));
}

#[test]
fn a_kernel_without_ublk_is_told() {
    let dir = volume();
    let loads =
        dir.shell("test -e /dev/ublk-control || modprobe -n -q ublk_drv || /sbin/modprobe -n -q ublk_drv");
    if loads.code == Some(0) {
        return skip("this kernel has ublk: cargo xtask vmtest tries it");
    }
    let run = dir.run("server data.snap --socket sock --ublk").expect(1);
    run.says("this kernel has no ublk devices").says("modprobe ublk_drv");
    dir.run("server data.snap --socket sock --ublk --beneath /dev/mapper/x").expect(2);
    dir.ok("create data.snap 90");
}
