//! A server as a service: in the background, under a service manager, as in 2008.

use crate::harness::{DDSNAP, Dir, has_program, noise, skip, volume};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server in the background, killed when the test ends before it does.
struct Daemon(Pid);

impl Daemon {
    fn of(dir: &Dir, pidfile: &str) -> Self {
        let text = String::from_utf8(dir.read(pidfile)).unwrap();
        Self(Pid::from_raw(text.trim().parse().unwrap()).unwrap())
    }

    fn is_there(&self) -> bool {
        // One that has ended and that nobody has asked for yet is not.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_nonzero()));
        test_kill_process(self.0).is_ok() && stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}

fn log(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.path(name)).unwrap_or_default()
}

/// The session process `pid` is of, as `/proc` tells it: 0 where its leader is outside the container, which
/// `getsid` of rustix takes for impossible.
fn session(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    after_name.split(' ').nth(3).unwrap().parse().unwrap()
}

#[test]
fn a_server_in_the_background_tells_whether_it_is_up() {
    let dir = volume();
    let line = "server data.snap --socket sock --nbd unix:nbd --daemonize -p pid -l log";
    dir.ok(line);
    let daemon = Daemon::of(&dir, "pid");
    dir.ok("create sock 7");
    assert!(log(&dir, "log").contains("serving data.snap") || log(&dir, "log").contains("/data.snap"));
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", daemon.0.as_raw_nonzero())).unwrap();
    assert_eq!(cwd.to_str(), Some("/"), "it keeps no file system busy");
    // It leads no session, so it never gets a terminal.
    let pid = daemon.0.as_raw_nonzero().get();
    assert!(![pid, session(std::process::id().cast_signed())].contains(&session(pid)));
    dir.run("server data.snap --socket other --daemonize").expect(4).says("cannot serve data.snap");
    dir.run("server none.snap --socket other --daemonize").expect(1).says("none.snap");
    dir.run("server data.snap --socket no/sock --daemonize -p pid2").expect(4);
    std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
    kill_process(daemon.0, Signal::HUP).unwrap();
    until("the log is not opened anew", || log(&dir, "log").contains("opened anew"));
    assert!(!log(&dir, "log.1").contains("opened anew"));
    kill_process(daemon.0, Signal::TERM).unwrap();
    until("it does not end", || !daemon.is_there());
    assert!(log(&dir, "log").ends_with("ended\n"), "{}", log(&dir, "log"));
    assert_eq!(
        dir.names().iter().filter(|name| ["pid", "pid2", "sock", "nbd"].contains(&name.as_str())).count(),
        0
    );
    dir.ok("fsck -n --data data.snap").says_out("clean");
}

#[test]
fn the_command_line_of_2008_is_taken() {
    let dir = volume();
    dir.ok("server -D -X -k 16M -l log -p pid data.snap data.img agent sock").says("ignored");
    let daemon = Daemon::of(&dir, "pid");
    assert_eq!(dir.ok("list sock").text(), {
        let through = dir.ok("list sock").text();
        dir.ok("stop sock");
        until("it does not end", || !daemon.is_there());
        assert_eq!(through, dir.ok("list data.snap").text());
        through
    });
    dir.run("server -f data.snap data.img meta agent sock").expect(2).says("leave META out");
    dir.run("server data.snap data.img sock").expect(2).says("operands are missing");
    dir.run("server data.snap data.img agent sock --socket sock").expect(2).says("given twice");
    dir.run("server data.snap").expect(2).says("--socket");
    let mut child = server(&dir, &["-f", "data.snap", "data.img", "agent", "sock"], &[]);
    until("it does not listen", || UnixStream::connect(dir.path("sock")).is_ok());
    dir.ok("stop sock");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn server(dir: &Dir, args: &[&str], env: &[(&str, &str)]) -> Child {
    let mut command = Command::new(DDSNAP);
    command.arg("server").args(args).envs(env.iter().copied());
    command.current_dir(dir.path("")).stdin(Stdio::null()).spawn().unwrap()
}

/// A service manager that listens.
struct Manager(UnixDatagram);

impl Manager {
    fn new(dir: &Dir) -> Self {
        let socket = UnixDatagram::bind(dir.path("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// What comes until something begins with `word`, that included.
    fn hear(&self, word: &str) -> Vec<String> {
        let mut all = Vec::new();
        while all.last().is_none_or(|last: &String| !last.starts_with(word)) {
            let mut bytes = [0; 1000];
            let length = self.0.recv(&mut bytes).unwrap_or_else(|error| panic!("{word}: {error}: {all:?}"));
            all.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
        }
        all
    }
}

#[test]
fn a_service_manager_hears_how_it_goes() {
    let dir = volume();
    let manager = Manager::new(&dir);
    let address = dir.path("notify");
    let env = [("NOTIFY_SOCKET", address.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let mut child = server(&dir, &["data.snap", "--socket", "sock", "--nbd", "unix:nbd"], &env);
    let first = manager.hear("READY=1").remove(0);
    assert!(first.contains(&format!("MAINPID={}", child.id())), "{first}");
    // Ready means ready.
    UnixStream::connect(dir.path("nbd")).unwrap();
    dir.ok("list sock");
    (0..3).for_each(|_| drop(manager.hear("WATCHDOG=1")));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    let reloading = manager.hear("RELOADING=1");
    assert!(reloading.last().unwrap().contains("MONOTONIC_USEC="), "{reloading:?}");
    manager.hear("READY=1");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    manager.hear("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    dir.ok("fsck -n --data data.snap").says_out("clean");
}

#[test]
fn a_watchdog_for_another_process_is_left_alone() {
    let dir = volume();
    let manager = Manager::new(&dir);
    let address = dir.path("notify");
    let env =
        [("NOTIFY_SOCKET", address.to_str().unwrap()), ("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    let mut child = server(&dir, &["data.snap", "--socket", "sock"], &env);
    manager.hear("READY=1");
    std::thread::sleep(Duration::from_millis(100));
    dir.ok("stop sock");
    let rest = manager.hear("STOPPING=1");
    assert!(rest.iter().all(|state| !state.contains("WATCHDOG")), "{rest:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn sockets_of_a_service_manager_are_used_and_left() {
    if !has_program("systemd-socket-activate") {
        return skip("systemd-socket-activate is not installed");
    }
    let dir = volume();
    let before = dir.read("data.img");
    let start = || {
        let mut command = Command::new("systemd-socket-activate");
        let sockets = [dir.path("nbd"), dir.path("control")];
        command.arg("-l").arg(&sockets[0]).arg("-l").arg(&sockets[1]).args(["--fdname=nbd:control", DDSNAP]);
        command.args(["server", "data.snap"]).current_dir(dir.path("")).stdin(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    let mut child = start();
    until("nobody listens", || dir.path("control").exists() && dir.path("nbd").exists());
    assert!(dir.ok("read control 1").stdout == dir.read("monday.img"));
    let mut client = UnixStream::connect(dir.path("nbd")).unwrap();
    let mut hello = [0; 16];
    std::io::Read::read_exact(&mut client, &mut hello).unwrap();
    assert_eq!(&hello, b"NBDMAGICIHAVEOPT");
    dir.ok("stop control");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // The files belong to who made them.
    assert!(dir.path("nbd").exists() && dir.path("control").exists());
    assert!(dir.read("data.img") == before);
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(dir.path("strange")).args(["--fdname=strange", DDSNAP, "server", "data.snap"]);
    let mut child = command.current_dir(dir.path("")).stderr(Stdio::null()).spawn().unwrap();
    until("nobody listens", || UnixStream::connect(dir.path("strange")).is_ok());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn the_units_are_sound() {
    if !has_program("systemd-analyze") {
        return skip("systemd-analyze is not installed");
    }
    let dir = Dir::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd");
    for name in ["ddsnap@.service", "ddsnap@.socket"] {
        let text = std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
        // It must be there to be found sound.
        assert!(
            name.ends_with("socket") || text.contains("ExecStart=/usr/bin/ddsnap server ${STORE} --socket ")
        );
        dir.write(name, text.replace("/usr/bin/ddsnap", DDSNAP).as_bytes());
    }
    let checked =
        dir.shell("systemd-analyze verify --man=no ./ddsnap@data.service ./ddsnap@data.socket").expect(0);
    assert_eq!(checked.stderr.trim(), "", "{}", checked.describe());
    dir.write("ddsnap@.service", b"[Service]\nType=notify\nExecStart=/nowhere/ddsnap\n");
    let broken = dir.shell("systemd-analyze verify --man=no ./ddsnap@data.service");
    assert!(broken.code != Some(0), "a check that finds nothing proves nothing");
}

#[test]
fn what_the_disk_of_the_log_refuses_is_told_before_anything_begins() {
    let dir = volume();
    dir.run("server data.snap --socket sock --logfile no/log").expect(1).says("no/log");
    dir.run("server data.snap --socket sock --daemonize --pidfile no/pid").expect(1).says("no/pid");
    assert!(!dir.path("sock").exists());
    dir.ok_with("write data.snap --offset 0", &noise(9, 100));
}
