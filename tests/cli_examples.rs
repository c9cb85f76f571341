//! The examples of every `--help` run as they stand there, and do what they say without an error.

use crate::cli_mount::has_fuse;
use crate::cli_usage::command_words;
use crate::harness::{Dir, volume};

/// What the examples need besides the volume.
fn prepare() -> Dir {
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o 1-2.delta");
    dir.ok("create-delta data.snap 2 origin -o 2-now.delta");
    dir.ok("changelist data.snap 1-2.changes 1 2");
    let different = "<different begin=\"1\" length=\"2\"/>";
    dir.write(
        "thin.xml",
        format!("<superblock data_block_size=\"128\"><diff>{different}</diff></superblock>").as_bytes(),
    );
    // A store of 2008: its metadata device from the superblock on, after a byte that says how it is opened.
    let seed = include_bytes!("../testdata/corpus/legacy/seed-0");
    dir.write("old.snap", &[&[0; 4096], &seed[1..]].concat());
    dir.write("old.img", &[7; 40 * 512]);
    dir.shell("truncate -s 8M old.snap");
    dir
}

/// An example with what a person does in another window.
fn complete(words: &str, line: &str) -> String {
    let begun = "until ddsnap list data.sock > /dev/null 2>&1; do sleep 0.02; done";
    match words {
        "server" => format!("{line} & {begun}; ddsnap stop data.sock && wait $!"),
        "attach" => {
            format!(
                "ddsnap create data.snap 3; ddsnap server data.snap --socket data.sock & {begun}; {line} && \
                 ddsnap detach data.sock && ddsnap stop data.sock && wait $!"
            )
        }
        "detach" => {
            format!(
                "ddsnap create data.snap 3; ddsnap server data.snap --socket data.sock & {begun}; \
                 ddsnap attach data.sock --snap 3 && {line} && \
                 {{ ddsnap detach data.sock; ddsnap stop data.sock && wait $!; }}"
            )
        }
        "dmsetup" => {
            format!(
                "ddsnap create data.snap 3; ddsnap server data.snap --socket data.sock & {begun}; {line} && \
                 {{ ddsnap detach data.sock; ddsnap stop data.sock && wait $!; }}"
            )
        }
        "stop" => format!("ddsnap server data.snap --socket data.sock & {begun}; {line} && wait $!"),
        "mount" => format!("mkdir point && {line} && ls point/volume && umount point"),
        _ => line.to_owned(),
    }
}

/// Commands that need devices of a kernel.
const DEVICES: [&str; 3] = ["attach", "detach", "dmsetup"];

#[test]
fn examples_of_the_help_run() {
    run_examples(command_words().into_iter().filter(|words| !DEVICES.contains(&words.as_str())).collect());
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_examples_of_the_help_run() {
    run_examples(DEVICES.map(str::to_owned).to_vec());
}

fn run_examples(commands: Vec<String>) {
    let mut count = 0;
    for words in &commands {
        if words == "mount" && !has_fuse() {
            continue;
        }
        let help = Dir::new().ok(&format!("{words} --help")).text();
        let examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
        for line in examples.take_while(|line| !line.is_empty()) {
            let dir = prepare();
            let run = dir.shell(&complete(words, line));
            assert_eq!(run.code, Some(0), "an example of '{words}':{}", run.describe());
            count += 1;
        }
    }
    assert!(count >= 2 * commands.len(), "only {count} examples");
}
