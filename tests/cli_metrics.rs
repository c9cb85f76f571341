//! Figures of a running server: `status`, and the text that monitoring reads.

use crate::harness::{DDSNAP, Dir, has_program, noise, skip, volume};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in the folder of a test, killed with it.
struct Server(Child);

impl Server {
    fn start(dir: &Dir) -> Self {
        let args = ["data.snap", "--socket", "sock", "--nbd", "unix:nbd", "--metrics", "unix:metrics"];
        let mut command = Command::new(DDSNAP);
        command.arg("server").args(args).current_dir(dir.path("")).stdin(Stdio::null());
        let server = Self(command.spawn().unwrap());
        let begun = Instant::now();
        while UnixStream::connect(dir.path("metrics")).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an HTTP client gets for these bytes.
fn ask(dir: &Dir, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(dir.path("metrics")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // It may hang up at any byte.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// The figures, by name and labels, if the text is what the format's description wants.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut figures, mut families) = (BTreeMap::new(), BTreeMap::new());
    let mut family = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.len() > 5 && families.insert(name.to_owned(), ()).is_none(), "{line}");
            family = (name.to_owned(), String::new());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(name == family.0 && family.1.is_empty(), "{line}");
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family.1 = kind.to_owned();
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (bare, labels) = name.split_once('{').map_or((name, ""), |(bare, rest)| (bare, rest));
            assert!(bare == family.0 && !family.1.is_empty(), "{line}");
            assert!(bare.starts_with("ddsnap_"));
            assert!(bare.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            for label in labels.strip_suffix('}').into_iter().flat_map(|labels| labels.split(',')) {
                let (key, value) = label.split_once('=').unwrap();
                assert!(key.bytes().all(|byte| byte.is_ascii_lowercase()), "{line}");
                assert!(value.len() > 2 && value.starts_with('"') && value.ends_with('"'), "{line}");
            }
            assert!(figures.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    figures
}

fn figures(dir: &Dir) -> BTreeMap<String, f64> {
    let answer = ask(dir, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    parse(body)
}

/// Writes the origin through NBD.
fn write(dir: &Dir, offset: u64, data: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(dir.path("nbd")).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 0]].concat()).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let head = [&0x2560_9513u32.to_be_bytes()[..], &[0, 1, 0, 1], &[0; 8], &offset.to_be_bytes(), &length];
    stream.write_all(&[&head.concat(), data].concat()).unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);
    stream
}

#[test]
fn a_server_tells_what_it_has_done() {
    let dir = volume();
    let _server = Server::start(&dir);
    let before = figures(&dir);
    assert_eq!(before["ddsnap_snapshots"], 2.0);
    assert_eq!(before["ddsnap_origin_size_bytes"], f64::from(1 << 20));
    dir.ok("create sock 3");
    // Three chunks, the outer ones in part.
    let open = write(&dir, 16384 * 9 + 100, &noise(1, 16384 * 2));
    let after = figures(&dir);
    let grown = |name: &str| after[name] - before[name];
    assert_eq!(grown("ddsnap_snapshots"), 1.0);
    assert_eq!(grown("ddsnap_operations_total{operation=\"write\",point=\"origin\"}"), 1.0);
    assert_eq!(grown("ddsnap_operation_bytes_total{operation=\"write\",point=\"origin\"}"), 32768.0);
    assert_eq!(grown("ddsnap_copied_chunks_total"), 3.0);
    assert_eq!(grown("ddsnap_commits_total"), 1.0);
    assert_eq!(grown("ddsnap_changes_total"), 1.0);
    assert_eq!(grown("ddsnap_device_written_bytes_total{device=\"origin\"}"), 32768.0);
    assert!(grown("ddsnap_device_written_bytes_total{device=\"store\"}") >= 3.0 * 16384.0);
    assert!(grown("ddsnap_log_records") >= 2.0);
    assert_eq!((grown("ddsnap_exports_open"), after["ddsnap_operations_running"]), (1.0, 0.0));
    drop(open);
    let begun = Instant::now();
    while figures(&dir)["ddsnap_connections"] > 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "a client that went away is still counted");
    }
    let status = dir.ok("status sock --json").json();
    assert_eq!(status["server"]["volume"]["copied_chunks"], 3);
    assert_eq!(status["server"]["connections_total"], 1);
    let text = dir.ok("status sock").text();
    assert!(text.contains("\nCopied out: 3 chunks in 1 commits, 0 writers waiting\n"), "{text}");
    dir.ok("stop sock");
    assert!(dir.ok("status data.snap --json").json()["server"].is_null());
}

#[test]
fn a_status_can_be_watched() {
    let dir = volume();
    let _server = Server::start(&dir);
    let watched = dir.shell("ddsnap status sock --watch=1 --json | head -n 2");
    let lines: Vec<serde_json::Value> =
        watched.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1]["server"]["uptime_secs"].as_u64() >= lines[0]["server"]["uptime_secs"].as_u64());
    let text = dir.shell("ddsnap status sock --watch=1 | head -n 28").text();
    assert!(text.matches("Server: up").count() >= 2 && text.contains("/s)"), "{text}");
    dir.run("status sock --watch=0").expect(2);
    dir.run("status sock --watch --list").expect(2);
}

#[test]
fn http_that_makes_no_sense_does_no_harm() {
    let dir = volume();
    let _server = Server::start(&dir);
    let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &[b'a'; 20_000], b"\r\n\r\n"].concat();
    for (bytes, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "),
        (b"HEAD /metrics HTTP/1.0\n\n", "HTTP/1.1 200 "),
        (b"GET /metrics HTTP/9\r\n\r\n", "HTTP/1.1 400 "),
        (b"\xff\xfe\r\n\r\n", "HTTP/1.1 400 "),
        (b"GET /metrics HTTP/1.1\r\n", ""),
        (b"", ""),
    ] {
        let answer = ask(&dir, bytes);
        assert!(answer.starts_with(status) && answer.is_empty() == status.is_empty(), "{answer}");
    }
    assert!(ask(&dir, b"HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"), "a head has no body");
    let refused = ask(&dir, &long);
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431 "), "{refused}");
    // Many who say nothing keep nobody else waiting for longer than it takes to hang up on them.
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(dir.path("metrics")).unwrap()).collect();
    let begun = Instant::now();
    dir.ok("list sock");
    while !ask(&dir, b"GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 ") {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(idle);
    dir.run("server data.snap --socket x --metrics 0.0.0.0:9999").expect(4);
    dir.ok("stop sock");
    dir.run("server data.snap --socket x --metrics 0.0.0.0:9999").expect(2).says("other machines");
    dir.run("server data.snap --socket x --metrics 9999").expect(2).says("HOST:PORT");
    dir.run("server data.snap --socket x --nbd tcp:0.0.0.0:0").expect(5).says("--insecure");
}

#[test]
fn the_checker_of_prometheus_has_no_objection() {
    if !has_program("promtool") {
        return skip("promtool is not installed");
    }
    let dir = volume();
    let _server = Server::start(&dir);
    let line = "curl -sf --unix-socket metrics http://localhost/metrics | promtool check metrics";
    dir.shell(line).expect(0);
}
