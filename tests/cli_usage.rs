//! What can be checked without a store: wrong usage, help, versions.

use crate::harness::{DDSNAP, Dir, golden, has_program, skip};

#[test]
fn wrong_usage_exits_2_and_touches_nothing() {
    let dir = Dir::new();
    dir.write("v", &[0; 8192]);
    let cases = [
        "",
        "bogus",
        "delta",
        "delta bogus",
        "list",
        "list v extra",
        "list --json --legacy v",
        "create v",
        "create v -1",
        "create v 12x",
        "create v 4294967295",
        "create v 4294967296",
        "create v origin",
        "create v 1 --name 5",
        "create v 1 --name origin",
        "create v 1 --name @1",
        "create v 1 --name a/b",
        "delete v",
        "delete v 12x",
        "delete v -2",
        "delete v @",
        "status",
        "status --size --list v",
        "priority v 1",
        "priority v 1 128",
        "priority v 1 -129",
        "priority v x! 1",
        "usecount v 1 x",
        "usecount v 1 99999999999",
        "initialize v",
        "initialize -c 1q v w",
        "initialize -c -1 v w",
        "initialize --size 16777216T v w",
        "initialize v w x y",
        "read v",
        "read v 1 --offset x",
        "read v 1 --length -1",
        "read v 1 --rate-limit 0",
        "write v 1 2",
        "export v 1",
        "changelist",
        "changelist v cl 1",
        "changelist v cl 1 2 3",
        "create-delta",
        "create-delta -x -r v 1 2",
        "create-delta -g 99 v 1 2",
        "create-delta --compare v",
        "apply-delta",
        "apply-delta d",
        "delta info",
        "delta verify a b c",
        "create-delta --resume v 1 2",
        "create-delta --resume-token x v 1 2",
        "create-delta --resume --resume-token 0:00 v 1 2",
        "apply-delta --resume d v",
        "apply-delta --spool d - v",
        "apply-delta --resume-token d v",
        "apply-delta --resume --dry-run - v",
        "map",
        "map v 1",
        "map --width 39 v",
        "map --all v 1 2",
        "map --json --svg x v",
        "report v",
        "report -o x",
        "delta merge a",
        "delta invert a",
    ];
    for args in cases {
        let run = dir.untouched(|dir| dir.run(args)).expect(2);
        assert!(run.stdout.is_empty(), "{}", run.describe());
        assert!(!run.stderr.is_empty(), "{}", run.describe());
    }
}

#[test]
fn status_has_its_own_exit_for_wrong_usage() {
    let dir = Dir::new();
    // 2 would say "squashed".
    dir.write("v", &[0; 8192]);
    dir.run("status --state").expect(9);
    dir.run("status -S v 12x").expect(9);
}

#[test]
fn words_that_are_refused_before_anything_is_opened() {
    let dir = Dir::new();
    let mut text = String::new();
    for args in [
        "list v --bogus",
        "create v 12x",
        "create v -1",
        "create v 5 --name @5",
        "delete v 4294967296",
        "priority v 5 128",
        "initialize -c 1q v w",
        "read v 1 --rate-limit 0",
        "bogus",
    ] {
        text.push_str(&dir.run(args).transcript());
        text.push('\n');
    }
    golden("usage.txt", &text);
}

#[test]
fn help_and_version_are_results() {
    let dir = Dir::new();
    for args in ["--help", "help", "help list", "list --help", "delta --help", "help delta info", "--version"]
    {
        let run = dir.ok(args);
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{}", run.describe());
    }
    assert_eq!(dir.ok("--version").text(), concat!("ddsnap ", env!("CARGO_PKG_VERSION"), "\n"));
    golden("help.txt", &dir.ok("--help").text());
}

#[test]
fn every_command_shows_examples_in_its_help() {
    for words in command_words() {
        let help = Dir::new().ok(&format!("{words} --help")).text();
        let count = help.lines().filter(|line| line.starts_with("  ddsnap ")).count();
        assert!((1..=5).contains(&count), "{words}: {count} examples in\n{help}");
    }
}

/// Every command that does something, as it is typed.
pub fn command_words() -> Vec<String> {
    let mut words = Vec::new();
    for command in ddsnap::cmd::tree().get_subcommands() {
        if command.has_subcommands() {
            words.extend(
                command.get_subcommands().map(|sub| format!("{} {}", command.get_name(), sub.get_name())),
            );
        } else {
            words.push(command.get_name().to_owned());
        }
    }
    words
}

#[test]
fn a_link_runs_the_command_it_names() {
    let dir = Dir::new();
    std::os::unix::fs::symlink(DDSNAP, dir.path("ddsnap-list")).unwrap();
    let run = dir.shell("./ddsnap-list nope").expect(1);
    assert!(run.stderr.contains("cannot list snapshots of nope"), "{}", run.describe());
}

#[test]
fn binary_data_never_meets_a_terminal() {
    if !has_program("script") {
        return skip("no 'script' to make a terminal");
    }
    let dir = crate::harness::volume();
    let run = dir.untouched(|dir| {
        dir.shell(&format!("script -qec '{DDSNAP} read data.snap 1' /dev/null < /dev/null"))
    });
    let run = run.expect(2);
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(text.contains("refusing to write binary data to a terminal"), "{}", run.describe());
    let run = dir.untouched(|dir| {
        dir.shell(&format!("script -qec '{DDSNAP} create-delta data.snap 1 2' /dev/null < /dev/null"))
    });
    run.expect(2);
    let run = dir
        .untouched(|dir| dir.shell(&format!("script -qec '{DDSNAP} write data.snap' /dev/null < /dev/null")));
    let run = run.expect(2);
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(text.contains("refusing to read binary data from a terminal"), "{}", run.describe());
}
