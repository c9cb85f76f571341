//! TLS for NBD: certificates as nbdkit and qemu lay them out, and a connection whose two directions are used at a time.

use super::listen::{Stream, Wire};
use crate::error::{Error, Kind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The authority whose certificates clients must have.
const AUTHORITY: &str = "ca-cert.pem";
/// What the server shows, with what it takes to check it.
const CERTIFICATE: &str = "server-cert.pem";
/// What proves that it is the server's.
const KEY: &str = "server-key.pem";

/// How long the other side may take to end a connection that has ended here.
const PARTING: Duration = Duration::from_secs(1);

/// Bytes that are read from the network at a time: a record of TLS and what comes with it.
const PIECE: usize = 17 << 10;

/// Who this server is, and whom it takes.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads `server-cert.pem` and `server-key.pem` in `folder`. With `verify`, clients must have a certificate of
    /// `ca-cert.pem`.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::Io`; `Kind::Damaged` for what is no certificate or no key, or do not belong together.
    pub fn of_folder(folder: &Path, verify: bool) -> Result<Self> {
        let wrong = |name: &str, what: &dyn std::fmt::Display| {
            Error::damaged(format!("no use for TLS: {what}")).at_path(&folder.join(name))
        };
        let chain = certificates(folder, CERTIFICATE)?;
        let key = read(folder, KEY)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(KEY, &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let versions = versions.map_err(|error| wrong(CERTIFICATE, &error))?;
        let config = match verify {
            false => versions.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(folder, AUTHORITY)? {
                    roots.add(certificate).map_err(|error| wrong(AUTHORITY, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                versions.with_client_cert_verifier(verifier.map_err(|error| wrong(AUTHORITY, &error))?)
            }
        };
        let config = config.with_single_cert(chain, key).map_err(|error| wrong(CERTIFICATE, &error))?;
        Ok(Self(Arc::new(config)))
    }

    /// Does the handshake on `stream`.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Refused` for a client that is not taken, or speaks no TLS.
    pub fn accept<S: Stream>(&self, stream: S) -> Result<Secure<S>> {
        let failed = |error: &dyn std::fmt::Display| Error::new(Kind::Refused, format!("TLS: {error}"));
        let mut session = ServerConnection::new(Arc::clone(&self.0)).map_err(|error| failed(&error))?;
        let gone = |error| Error::io("the client went away", error);
        let (mut reader, mut writer) = (stream.again().map_err(gone)?, stream.again().map_err(gone)?);
        while session.is_handshaking() {
            while session.wants_write() {
                session.write_tls(&mut writer).map_err(gone)?;
            }
            if !session.is_handshaking() {
                break;
            }
            if session.read_tls(&mut reader).map_err(gone)? == 0 {
                return Err(gone(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Err(error) = session.process_new_packets() {
                // The client shall hear why.
                let _ = session.write_tls(&mut writer);
                return Err(failed(&error));
            }
        }
        while session.wants_write() {
            session.write_tls(&mut writer).map_err(gone)?;
        }
        let (session, sending, pending) = (Mutex::new(session), Mutex::new(()), Mutex::new(Vec::new()));
        Ok(Secure { shared: Arc::new(Shared { session, sending, pending }), stream })
    }
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    /// More than any chain of certificates.
    const LENGTH_MAX: u64 = 1 << 20;
    let path = folder.join(name);
    let failed = |error: io::Error| Error::io(format!("cannot read it: {error}"), error).at_path(&path);
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(LENGTH_MAX).read_to_end(&mut bytes))
        .map_err(failed)?;
    Ok(bytes)
}

fn certificates(folder: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |what: &dyn std::fmt::Display| {
        Error::damaged(format!("no certificate: {what}")).at_path(&folder.join(name))
    };
    let bytes = read(folder, name)?;
    let list: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let list = list.map_err(|error| wrong(&error))?;
    match list.is_empty() {
        true => Err(wrong(&"there is none in it")),
        false => Ok(list),
    }
}

/// An encrypted connection.
///
/// One state serves both directions, so it is locked for moments only: never while the network is read. Whoever sends
/// holds `sending` from the encryption until the bytes are out, for records must come in their order.
pub struct Secure<S> {
    shared: Arc<Shared>,
    stream: S,
}

struct Shared {
    session: Mutex<ServerConnection>,
    /// Locked before `session`.
    sending: Mutex<()>,
    /// What was read and could not be taken in yet. Locked before all others, by the one who reads.
    pending: Mutex<Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Stream> Secure<S> {
    /// Says that nothing more comes, and waits a moment for the other side to say so: it takes an end without a word
    /// for an attack, and what it has not read yet is lost if it writes to a connection that is gone.
    pub fn part(mut self) {
        lock(&self.shared.session).send_close_notify();
        let parting = self.send_out().and_then(|()| self.stream.set_limit(Some(PARTING)));
        // Who has gone before, or does not go, has had what there was.
        let _ = parting.and_then(|()| io::copy(&mut (&mut self.stream).take(PIECE as u64), &mut io::sink()));
    }

    /// Sends what the session has to send.
    fn send_out(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let _order = lock(&shared.sending);
        let mut records = Vec::new();
        {
            let mut session = lock(&shared.session);
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
        }
        self.stream.write_all(&records)
    }

    /// Takes in what was read; true if there is something for the client of this.
    fn take_in(&mut self, pending: &mut Vec<u8>) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut session = lock(&shared.session);
        let mut rest = pending.as_slice();
        while !rest.is_empty() && session.wants_read() {
            session.read_tls(&mut rest)?;
            session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        let taken = pending.len() - rest.len();
        pending.drain(..taken);
        Ok(())
    }
}

impl<S: Stream> Read for Secure<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = Arc::clone(&self.shared);
        let mut pending = lock(&shared.pending);
        let mut piece = [0; PIECE];
        loop {
            let outcome = lock(&shared.session).reader().read(buf);
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            if pending.is_empty() {
                let length = self.stream.read(&mut piece)?;
                if length == 0 {
                    // Nobody said that this is the end.
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                pending.extend_from_slice(piece.get(..length).unwrap_or_default());
            }
            let taken_in = self.take_in(&mut pending);
            // New keys, an alert: the other side waits for it.
            if lock(&shared.session).wants_write() {
                self.send_out()?;
            }
            taken_in?;
        }
    }
}

impl<S: Stream> Write for Secure<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // Encrypted in memory: as much of it at a time as that may take.
        const SLICE: usize = 256 << 10;
        let slice = buf.get(..SLICE).unwrap_or(buf);
        let shared = Arc::clone(&self.shared);
        let _order = lock(&shared.sending);
        let mut records = Vec::with_capacity(slice.len() + 4096);
        let mut at = 0;
        while at < slice.len() {
            let mut session = lock(&shared.session);
            at += session.writer().write(slice.get(at..).unwrap_or_default())?;
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
        }
        self.stream.write_all(&records)?;
        Ok(slice.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Stream> Wire for Secure<S> {
    fn end(&self) {
        self.stream.end();
    }

    fn takes_more(&self) -> bool {
        self.stream.takes_more()
    }
}

impl<S: Stream> Stream for Secure<S> {
    fn again(&self) -> io::Result<Self> {
        Ok(Self { shared: Arc::clone(&self.shared), stream: self.stream.again()? })
    }

    fn set_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_limit(limit)
    }

    fn ensure_own_user(&self) -> Result<()> {
        self.stream.ensure_own_user()
    }
}
