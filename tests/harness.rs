//! A folder to work in, a way to run the program there, and golden files.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// No command of these tests needs more than seconds; one that hangs shall fail, not hang the suite.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The program under test.
pub const DDSNAP: &str = env!("CARGO_BIN_EXE_ddsnap");

/// Tools of file systems and devices lie there, and users without root rarely search it.
const SBIN: &str = "PATH=$PATH:/usr/sbin:/sbin;";

/// A temporary folder, and commands run inside it.
pub struct Dir {
    temp: TempDir,
}

/// Tells threads that go on until then that a test ends, however it does: a panic waits for all of its scope.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a command did.
pub struct Run {
    pub args: Vec<String>,
    pub cwd: PathBuf,
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Dir {
    pub fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    /// Leaves the folder where it is, for whoever looks into it; says where.
    pub fn keep(&mut self) -> PathBuf {
        self.temp.disable_cleanup(true);
        self.temp.path().to_path_buf()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).unwrap();
    }

    /// Changes bytes of a file in place.
    pub fn patch(&self, name: &str, offset: usize, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.read(name);
        change(&mut bytes[offset..]);
        self.write(name, &bytes);
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.temp.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every regular file here and the hash of its bytes.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        let is_file = |name: &String| std::fs::metadata(self.path(name)).is_ok_and(|meta| meta.is_file());
        self.names()
            .into_iter()
            .filter(is_file)
            .map(|name| {
                let hash = blake3::hash(&self.read(&name)).to_hex().to_string();
                (name, hash)
            })
            .collect()
    }

    /// Runs `ddsnap` with `args` split at blanks.
    pub fn run(&self, args: &str) -> Run {
        self.run_with(args, &[])
    }

    /// Runs `ddsnap` with standard input from memory.
    pub fn run_with(&self, args: &str, stdin: &[u8]) -> Run {
        let args: Vec<&str> = args.split(' ').filter(|arg| !arg.is_empty()).collect();
        self.run_args(&args, stdin)
    }

    pub fn run_args(&self, args: &[&str], stdin: &[u8]) -> Run {
        let mut command = assert_cmd::Command::new(DDSNAP);
        command.args(args).current_dir(self.temp.path()).envs(env()).timeout(TIMEOUT);
        let output = command.write_stdin(stdin).output().unwrap();
        Run {
            args: args.iter().map(ToString::to_string).collect(),
            cwd: self.temp.path().to_path_buf(),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a shell command line in which `ddsnap` is the program under test.
    pub fn shell(&self, line: &str) -> Run {
        let function = format!("{SBIN} set -o pipefail; ddsnap() {{ '{DDSNAP}' \"$@\"; }}; ");
        let output = Command::new("bash")
            .args(["-c", &(function + line)])
            .current_dir(self.temp.path())
            .envs(env())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Run {
            args: vec!["bash:".to_owned(), line.to_owned()],
            cwd: self.temp.path().to_path_buf(),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `ddsnap`, which must succeed.
    pub fn ok(&self, args: &str) -> Run {
        self.run(args).expect(0)
    }

    /// Runs `ddsnap` with standard input, which must succeed.
    pub fn ok_with(&self, args: &str, stdin: &[u8]) -> Run {
        self.run_with(args, stdin).expect(0)
    }

    /// Runs a command that must leave every file here as it was.
    pub fn untouched(&self, run: impl FnOnce(&Self) -> Run) -> Run {
        let before = self.hashes();
        let run = run(self);
        let after = self.hashes();
        if before != after {
            panic!("{}files changed:\nbefore {before:#?}\nafter {after:#?}", run.describe());
        }
        run
    }

    /// Replaces digests too, for documents that hold one.
    pub fn mask_digests(&self, text: &str) -> String {
        let mut out = String::new();
        for word in text.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
            let digits = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
            out.push_str(if digits.len() == 64 { "DIGEST" } else { digits });
            out.push_str(&word[digits.len()..]);
        }
        self.mask(&out)
    }

    /// Replaces this folder's path, times and random identifiers, so that texts can be compared.
    pub fn mask(&self, text: &str) -> String {
        mask(&text.replace(&self.temp.path().display().to_string(), "DIR"))
    }
}

fn env() -> [(&'static str, &'static str); 4] {
    [("LC_ALL", "C.UTF-8"), ("TZ", "UTC"), ("NO_COLOR", "1"), ("RUST_BACKTRACE", "0")]
}

impl Run {
    /// Stops the test unless the command ended with `code`.
    pub fn expect(self, code: i32) -> Self {
        if self.code != Some(code) {
            panic!("{}expected exit status {code}", self.describe());
        }
        self
    }

    /// Stops the test unless standard error holds `text`.
    pub fn says(self, text: &str) -> Self {
        if !self.stderr.contains(text) {
            panic!("{}expected on standard error: {text}", self.describe());
        }
        self
    }

    pub fn says_out(self, text: &str) -> Self {
        if !String::from_utf8_lossy(&self.stdout).contains(text) {
            panic!("{}expected on standard output: {text}", self.describe());
        }
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// The one JSON document, indented.
    pub fn pretty(&self) -> String {
        serde_json::to_string_pretty(&self.json()).unwrap() + "\n"
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{}{error}", self.describe()))
    }

    /// All there is to know when it went wrong.
    pub fn describe(&self) -> String {
        let stdout = if self.stdout.len() > 4096 || std::str::from_utf8(&self.stdout).is_err() {
            format!("({} bytes)", self.stdout.len())
        } else {
            String::from_utf8_lossy(&self.stdout).into_owned()
        };
        let listing: String = std::fs::read_dir(&self.cwd).map_or_else(
            |error| error.to_string(),
            |entries| entries.flatten().map(|e| format!("{} ", e.file_name().display())).collect(),
        );
        format!(
            "\ncommand: ddsnap {}\nfolder: {}: {listing}\nexit: {:?}\nstdout: {stdout}\nstderr: {}\n",
            self.args.join(" "),
            self.cwd.display(),
            self.code,
            self.stderr
        )
    }

    /// Command, status and both streams as a golden file shows them.
    pub fn transcript(&self) -> String {
        let code = self.code.map_or_else(|| "signal".to_owned(), |code| code.to_string());
        format!(
            "$ ddsnap {}\nexit {code}\n--- stdout\n{}--- stderr\n{}",
            self.args.join(" "),
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        )
    }
}

/// Compares `text` with the golden file `name`; `UPDATE_GOLDEN=1` rewrites it.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/cli").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1 writes it\n{text}", path.display()));
    if expected != text {
        panic!("{} differs\n--- expected\n{expected}\n--- found\n{text}", path.display());
    }
}

/// `d` is a digit, `h` a hex digit, `A` and `a` letters, `_` a blank or digit; the rest stands for itself.
const MASKS: [(&str, &str); 4] = [
    ("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "UUIDUUID-UUID-UUID-UUID-UUIDUUIDUUID"),
    ("dddd-dd-ddTdd:dd:ddZ", "YYYY-MM-DDTHH:MM:SSZ"),
    ("dddd-dd-dd dd:dd:dd", "YYYY-MM-DD HH:MM:SS"),
    ("Aaa Aaa _d dd:dd:dd dddd", "Day Mon DD HH:MM:SS YYYY"),
];

fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    'scan: while at < bytes.len() {
        for (pattern, replacement) in MASKS {
            if matches_at(&bytes[at..], pattern.as_bytes()) {
                out.push_str(replacement);
                at += pattern.len();
                continue 'scan;
            }
        }
        let rest = &text[at..];
        if let Some(tail) = rest.strip_prefix("secs\": ") {
            let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
            out.push_str("secs\": 0");
            at += "secs\": ".len() + digits;
            continue;
        }
        let c = rest.chars().next().unwrap();
        out.push(c);
        at += c.len_utf8();
    }
    out
}

fn matches_at(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.len() >= pattern.len()
        && pattern.iter().zip(bytes).all(|(class, byte)| match class {
            b'd' => byte.is_ascii_digit(),
            b'h' => byte.is_ascii_hexdigit(),
            b'A' => byte.is_ascii_uppercase(),
            b'a' => byte.is_ascii_lowercase(),
            b'_' => *byte == b' ' || byte.is_ascii_digit(),
            literal => byte == literal,
        })
}

pub use crate::random::Random as Rng;

/// Bytes that no compression makes smaller, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    Rng(seed).bytes(len)
}

/// Says that a case did not run. The line is what a log can be searched for; `cargo xtask test` counts them.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
    let Some(list) = std::env::var_os("DDSNAP_SKIPPED") else { return };
    let mut list = OpenOptions::new().append(true).create(true).open(list).unwrap();
    // One write, so that lines of tests that run at the same time do not mix.
    list.write_all(format!("{reason}\n").as_bytes()).unwrap();
}

/// True if `program` can be run.
pub fn has_program(program: &str) -> bool {
    let found = Command::new("bash").args(["-c", &format!("{SBIN} command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

pub const ORIGIN_BYTES: usize = 1 << 20;
pub const STORE_BYTES: u64 = 32 << 20;

/// A folder with what the examples speak of:
///
/// * `data.img`, an origin of 1 MiB, and `data.snap`, its store, with snapshots 1 (`monday`) and 2;
/// * `monday.img`, `second.img` and `data.img` hold what snapshot 1, snapshot 2 and the origin hold;
/// * `copy.img`, a replica that equals snapshot 1; `block.bin`, 64 KiB to write; `new.img`, 1 MiB to write.
pub fn volume() -> Dir {
    let dir = Dir::new();
    let mut image = noise(1, ORIGIN_BYTES);
    image[256 << 10..768 << 10].fill(0);
    dir.write("data.img", &image);
    dir.write("monday.img", &image);
    dir.write("copy.img", &image);
    dir.write("block.bin", &noise(2, 64 << 10));
    dir.write("new.img", &noise(3, ORIGIN_BYTES));
    dir.ok(&format!("initialize --size {STORE_BYTES} data.snap data.img"));
    dir.ok("create data.snap 1 --name monday");
    dir.ok_with("write data.snap --offset 100000", &noise(4, 50_000));
    dir.ok_with("write data.snap --offset 300000", &[0x5a; 5000]);
    dir.copy("data.img", "second.img");
    dir.ok("create data.snap 2");
    dir.ok_with("write data.snap --offset 900k", &noise(5, 100_000));
    dir
}
