//! NBD encrypted, as other people's clients speak it.

use crate::harness::{DDSNAP, Dir, has_program, skip, volume};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A server that listens at a port of this machine, killed with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(dir: &Dir, more: &[&str]) -> Self {
        let mut command = Command::new(DDSNAP);
        command
            .args(["-v", "server", "data.snap", "--socket", "sock", "--nbd", "tcp:127.0.0.1:0"])
            .args(more);
        let mut child =
            command.current_dir(dir.path("")).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self { child, port: 0 };
        let mut line = String::new();
        while !line.contains("serving ") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "ended before it was up");
            if let Some((_, port)) = line.trim().split_once("tcp:127.0.0.1:") {
                server.port = port.parse().unwrap();
            }
        }
        // Somebody must read what it says.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Certificates: `certs` for the server and for clients, `others` of an authority that nobody knows.
fn certificates(dir: &Dir) -> bool {
    if !has_program("openssl") {
        skip("openssl is not installed");
        return false;
    }
    let line = r#"
        make() {
            key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
            mkdir "$1" && cd "$1" || return
            openssl req -x509 $key -subj "/CN=$1" -days 2 -keyout ca-key.pem -out ca-cert.pem || return
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > extra
            for who in server client; do
                openssl req $key -subj "/CN=$who" -keyout $who-key.pem -out $who.csr || return
                openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
                    -extfile extra -out $who-cert.pem || return
            done
            cd ..
        }
        make certs && make others && mkdir strangers && cp certs/ca-cert.pem strangers/ &&
        cp others/client-*.pem strangers/ && mkdir nobody && cp certs/ca-cert.pem nobody/"#;
    dir.shell(line).expect(0);
    true
}

#[test]
fn clients_with_tls_are_served_and_others_are_not() {
    let dir = volume();
    if !certificates(&dir) {
        return;
    }
    if !has_program("nbdcopy") || !has_program("nbdinfo") {
        return skip("nbdcopy or nbdinfo is not installed");
    }
    let expected = dir.read("monday.img");
    let server = Server::start(&dir, &["--tls", "certs", "--nbd", "unix:nbd"]);
    let port = server.port;
    let url = |certs: &str| format!("nbds://127.0.0.1:{port}/snap/1?tls-certificates={certs}");
    dir.shell(&format!("nbdcopy '{}' out", url("certs"))).expect(0);
    assert!(dir.read("out") == expected);
    let listed =
        dir.shell(&format!("nbdinfo --list 'nbds://127.0.0.1:{port}/?tls-certificates=nobody'")).expect(0);
    assert!(listed.text().contains("export=\"snap/2\""), "{}", listed.describe());
    assert!(listed.text().contains("with TLS"), "{}", listed.describe());
    // Without encryption nothing is told, and a client that trusts somebody else stays away.
    for line in [
        format!("nbdinfo 'nbd://127.0.0.1:{port}/snap/1'"),
        format!("nbdinfo --list 'nbd://127.0.0.1:{port}/'"),
        format!("nbdinfo '{}'", url("others")),
    ] {
        assert_ne!(dir.shell(&line).code, Some(0), "{line}");
    }
    // On this machine it may be had, and need not.
    dir.shell("nbdinfo 'nbd+unix:///snap/1?socket=nbd'").expect(0);
    if has_program("qemu-io") {
        let writes = "-c 'aio_write -P 7 0 300k' -c 'aio_write -P 7 300k 500k' -c 'aio_write -P 7 800k 224k'";
        dir.shell(&format!(
            "qemu-io --object tls-creds-x509,id=tls0,dir=certs,endpoint=client {writes} -c aio_flush -c flush \
             --image-opts driver=nbd,host=localhost,port={port},export=origin,tls-creds=tls0 >&2"
        ))
        .expect(0);
        dir.ok("stop sock");
        assert!(dir.read("data.img").iter().all(|byte| *byte == 7));
        assert!(dir.ok("read data.snap 1").stdout == expected);
        dir.ok("fsck -n --data data.snap").says_out("clean");
    } else {
        skip("qemu-io is not installed");
    }
}

/// Begins an encrypted connection that trusts the authority of `certs`.
fn encrypted(dir: &Dir, port: u16) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat()).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.path("certs/ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(client, stream)
}

#[test]
fn an_encrypted_connection_ends_with_words() {
    let dir = volume();
    if !certificates(&dir) {
        return;
    }
    let server = Server::start(&dir, &["--tls", "certs"]);
    for leave_early in [false, true] {
        let mut stream = encrypted(&dir, server.port);
        stream.write_all(&[&b"IHAVEOPT"[..], &2u32.to_be_bytes(), &0u32.to_be_bytes()].concat()).unwrap();
        if leave_early {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
        // An end without them is an error here.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 20, "{answer:?}");
    }
}

#[test]
fn clients_can_need_a_certificate() {
    let dir = volume();
    if !certificates(&dir) {
        return;
    }
    if !has_program("nbdinfo") {
        return skip("nbdinfo is not installed");
    }
    let server = Server::start(&dir, &["--tls", "certs", "--tls-verify-peer"]);
    let ask = |certs: &str| {
        dir.shell(&format!(
            "nbdinfo --size 'nbds://127.0.0.1:{}/origin?tls-certificates={certs}'",
            server.port
        ))
    };
    assert_eq!(ask("certs").expect(0).text().trim(), "1048576");
    assert_ne!(ask("strangers").code, Some(0));
    assert_ne!(ask("nobody").code, Some(0));
    // Bytes that are no TLS end one connection, at whatever byte.
    for length in [0, 1, 100, 40_000] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream
            .write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat())
            .unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        let _ = stream.write_all(&vec![0x16; length]);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(ask("certs").expect(0).text().trim(), "1048576");
}

#[test]
fn what_is_no_certificate_is_refused_before_anything_listens() {
    let dir = volume();
    if !certificates(&dir) {
        return;
    }
    let serve =
        |more: &str| dir.run(&format!("server data.snap --socket sock --nbd unix:nbd --tls certs {more}"));
    dir.shell("cp certs/server-key.pem key && cp others/server-key.pem certs/").expect(0);
    serve("").expect(3).says("server-cert.pem");
    dir.shell("echo nothing > certs/server-key.pem").expect(0);
    serve("").expect(3).says("server-key.pem");
    dir.shell("cp key certs/server-key.pem && : > certs/ca-cert.pem").expect(0);
    serve("--tls-verify-peer").expect(3).says("ca-cert.pem");
    dir.shell("rm certs/server-cert.pem").expect(0);
    serve("").expect(1).says("server-cert.pem");
    dir.run("server data.snap --socket sock --tls-verify-peer").expect(2);
    assert!(!dir.path("sock").exists() && !dir.path("nbd").exists());
}
