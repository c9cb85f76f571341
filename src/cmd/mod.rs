//! The commands: one file a subcommand, each turning arguments into an engine call and its report.
//!
//! [`Command`] is the one table of them: dispatch, help, manual pages and completions all come from it.

mod apply_delta;
mod attach;
mod changed_blocks;
mod changelist;
mod common;
mod create;
mod create_delta;
mod daemon;
mod delete;
mod delta;
mod delta_invert;
mod delta_merge;
mod detach;
mod dmsetup;
mod documents;
mod dump;
mod export;
mod fsck;
mod fsck_old;
mod fsck_report;
mod hold;
mod initialize;
mod list;
mod map;
mod mount;
mod open;
mod open_old;
mod overlap;
mod policy;
mod priority;
mod read;
mod report;

mod resize;
mod restore;
mod revert;
mod server;
mod source;
mod status;
mod stop;
mod transfer;
mod upgrade;
mod upgrade_in_place;
mod usecount;
mod write;

use crate::error::{Kind, Result};
use crate::ui::exit::Exit;
use crate::ui::{Ui, Wishes, signals, terminal};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Block-level snapshots and replication for any Linux block device or image file.
#[derive(Debug, Parser)]
#[command(name = "ddsnap", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    wishes: WishArgs,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, clap::Args)]
struct WishArgs {
    /// Say nothing but the result and errors
    #[arg(short, long, global = true, help_heading = "Output")]
    quiet: bool,
    /// Explain what is being done
    #[arg(short, long, global = true, help_heading = "Output")]
    verbose: bool,
    /// Report progress at least once a second, even where standard error is no terminal
    #[arg(long, global = true, help_heading = "Output")]
    progress: bool,
}

/// The one table of commands.
#[derive(Debug, Subcommand)]
enum Command {
    Initialize(initialize::Args),
    #[command(alias = "create-snap")]
    Create(create::Args),
    Delete(delete::Args),
    List(list::Args),
    Status(status::Args),
    Map(map::Args),
    Report(report::Args),
    Priority(priority::Args),
    Usecount(usecount::Args),
    Hold(hold::Args),
    Release(hold::ReleaseArgs),
    Revert(revert::Args),
    Resize(resize::Args),
    Read(read::Args),
    Write(write::Args),
    Export(export::Args),
    #[command(alias = "create-cl")]
    Changelist(changelist::Args),
    CreateDelta(create_delta::Args),
    ApplyDelta(apply_delta::Args),
    Delta(delta::Args),
    Policy(policy::Args),
    Fsck(fsck::Args),
    Dump(dump::Args),
    Restore(restore::Args),
    Upgrade(upgrade::Args),
    Server(server::Args),
    Attach(attach::Args),
    Detach(detach::Args),
    Stop(stop::Args),
    Mount(mount::Args),
    Dmsetup(dmsetup::Args),
    Agent(dmsetup::AgentArgs),
}

/// The groups of `ddsnap --help`, in its order. A test sees to it that none is forgotten.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Snapshot stores",
        &["initialize", "status", "map", "report", "resize", "policy", "fsck", "dump", "restore", "upgrade"],
    ),
    ("Snapshots", &["create", "delete", "list", "revert", "hold", "release", "priority", "usecount"]),
    ("Data", &["read", "write", "export"]),
    ("Replication", &["changelist", "create-delta", "apply-delta", "delta"]),
    ("Online", &["server", "attach", "detach", "stop", "mount", "dmsetup", "agent"]),
];

impl Command {
    fn run(&self, ui: &Ui) -> Result<Exit> {
        match self {
            Self::Initialize(args) => initialize::run(args, ui),
            Self::Create(args) => create::run(args, ui),
            Self::Delete(args) => delete::run(args, ui),
            Self::List(args) => list::run(args, ui),
            Self::Status(args) => status::run(args, ui),
            Self::Map(args) => map::run(args, ui),
            Self::Report(args) => report::run(args, ui),
            Self::Priority(args) => priority::run(args, ui),
            Self::Usecount(args) => usecount::run(args, ui),
            Self::Hold(args) => hold::run(args, ui),
            Self::Release(args) => hold::release(args, ui),
            Self::Revert(args) => revert::run(args, ui),
            Self::Resize(args) => resize::run(args, ui),
            Self::Read(args) => read::run(args, ui),
            Self::Write(args) => write::run(args, ui),
            Self::Export(args) => export::run(args, ui),
            Self::Changelist(args) => changelist::run(args, ui),
            Self::CreateDelta(args) => create_delta::run(args, ui),
            Self::ApplyDelta(args) => apply_delta::run(args, ui),
            Self::Delta(args) => delta::run(args, ui),
            Self::Policy(args) => policy::run(args, ui),
            Self::Fsck(args) => fsck::run(args, ui),
            Self::Dump(args) => dump::run(args, ui),
            Self::Restore(args) => restore::run(args, ui),
            Self::Upgrade(args) => upgrade::run(args, ui),
            Self::Server(args) => server::run(args, ui),
            Self::Attach(args) => attach::run(args, ui),
            Self::Detach(args) => detach::run(args, ui),
            Self::Stop(args) => stop::run(args, ui),
            Self::Mount(args) => mount::run(args, ui),
            Self::Dmsetup(args) => dmsetup::run(args, ui),
            Self::Agent(args) => dmsetup::agent(args, ui),
        }
    }

    /// What SIGHUP means to it.
    fn hangup(&self) -> signals::Hangup {
        match self {
            Self::Server(args) => args.hangup(),
            _ => signals::Hangup::Stops,
        }
    }

    /// The status for an error of `kind`; two commands have their own.
    fn exit_of(&self, kind: Kind) -> Exit {
        match (self, Exit::of_kind(kind)) {
            (_, Exit::Interrupted) => Exit::Interrupted,
            (Self::Fsck(_), Exit::Usage) => Exit::FsckUsage,
            (Self::Fsck(_), _) => Exit::FsckError,
            (Self::Status(args), _) if args.asks_state() => Exit::StateUnknown,
            (_, exit) => exit,
        }
    }
}

/// The whole command line as clap knows it, for parsing, manual pages and completions.
#[must_use]
pub fn tree() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        groups.push_str(title);
        groups.push_str(":\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            groups.push_str(&format!("  {name:<13} {about}\n"));
        }
        groups.push('\n');
    }
    groups.push_str("'ddsnap help COMMAND' and 'ddsnap COMMAND --help' tell more.");
    Cli::command()
        .help_template("{about}\n\n{usage-heading} {usage}{after-help}\n\nOptions:\n{options}")
        .after_help(groups)
}

/// Runs the command line `args` (program name first) and returns the process's exit status.
#[must_use]
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run(&expand_program_name(args.collect())).code())
}

fn run(args: &[OsString]) -> Exit {
    let cli = match tree().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, args),
    };
    let stop_wanted = match signals::install(cli.command.hangup()) {
        Ok(flag) => flag,
        Err(error) => {
            terminal::stderr_line(&format!("ddsnap: cannot listen to signals: {error}"));
            return Exit::Failed;
        }
    };
    let wishes =
        Wishes { quiet: cli.wishes.quiet, verbose: cli.wishes.verbose, progress: cli.wishes.progress };
    let ui = Ui::new(wishes, Arc::clone(&stop_wanted));
    let result = cli.command.run(&ui);
    ui.end_progress();
    match result {
        Ok(exit) => exit,
        Err(error) => {
            ui.error(&error);
            // A reader or writer that was cut off by the signal reports it as its own failure. A server is meant to end
            // so, and what it fails at is not that.
            match ui.interrupted() && !matches!(cli.command, Command::Server(_)) {
                true => Exit::Interrupted,
                false => cli.command.exit_of(error.kind()),
            }
        }
    }
}

/// Prints what clap has to say: help and versions are results, the rest is wrong usage.
fn tell_usage(error: &clap::Error, args: &[OsString]) -> Exit {
    if !error.use_stderr() {
        return if error.print().is_ok() { Exit::Done } else { Exit::Failed };
    }
    let text = error.render().to_string();
    terminal::stderr_line(text.replacen("error: ", "ddsnap: ", 1).trim_end());
    let mut words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    match words.clone().find(|word| !word.starts_with('-')) {
        Some("fsck") => Exit::FsckUsage,
        // Here 2 would say "squashed".
        Some("status") if words.any(is_state_option) => Exit::StateUnknown,
        _ => Exit::Usage,
    }
}

fn is_state_option(word: &str) -> bool {
    word == "--state" || (word.starts_with('-') && !word.starts_with("--") && word.contains('S'))
}

/// `ddsnap-list VOL` and `fsck.ddsnap STORE` are links to `ddsnap` and mean `ddsnap list VOL` and
/// `ddsnap fsck STORE`.
fn expand_program_name(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    let applet = match name {
        Some("fsck.ddsnap") => Some("fsck".to_owned()),
        Some(name) => name.strip_prefix("ddsnap-").map(str::to_owned),
        None => None,
    };
    let known = |name: &String| GROUPS.iter().any(|group| group.1.contains(&name.as_str()));
    if let Some(applet) = applet.filter(known) {
        args.splice(0..1, ["ddsnap".into(), applet.into()]);
    } else if args.is_empty() {
        args.push("ddsnap".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|group| group.1).copied().collect();
        let tree = tree();
        let mut known: Vec<&str> = tree.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    #[test]
    fn links_name_the_command() {
        let expand = |args: &[&str]| expand_program_name(args.iter().map(Into::into).collect());
        assert_eq!(expand(&["/usr/bin/ddsnap-list", "v"]), ["ddsnap", "list", "v"]);
        assert_eq!(expand(&["fsck.ddsnap", "-n"]), ["ddsnap", "fsck", "-n"]);
        assert_eq!(expand(&["ddsnap-2", "list"]), ["ddsnap-2", "list"]);
        assert_eq!(expand(&[]), ["ddsnap"]);
    }
}
