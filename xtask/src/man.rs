//! Manual pages and completions, from the same definition that parses the command line. What a definition cannot
//! say (DESCRIPTION in depth, FILES, …) is prose in `man/parts/`.

mod prose;

use crate::report::write_or_check;
use crate::shell::root;
use anyhow::{Context, Result, bail};
use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use ddsnap::ui::exit::Exit;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes or checks every page and completion; a page that belongs to no command is stale too.
pub fn run(check: bool) -> Result<()> {
    let mut tree = ddsnap::cmd::tree();
    tree.build();
    let mut pages = Vec::new();
    collect(&tree, &mut pages);
    if pages.len() < 2 {
        bail!("the command tree has no commands");
    }
    let mut made = BTreeSet::new();
    for command in &pages {
        let name = page_name(command);
        let text = page(command, &pages).with_context(|| format!("cannot make the page of {name}"))?;
        let path = format!("man/{name}.8");
        write_or_check(&path, &text, check, "man")?;
        made.insert(path);
    }
    for shell in SHELLS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut ddsnap::cmd::tree(), "ddsnap", &mut text);
        let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        write_or_check(&format!("completions/{name}"), &String::from_utf8(text)?, check, "man")?;
    }
    for entry in fs::read_dir(root().join("man")).context("cannot list man/")?.flatten() {
        let path = format!("man/{}", entry.file_name().to_string_lossy());
        if path.ends_with(".8") && !made.contains(&path) {
            if check {
                bail!("{path} belongs to no command; run `cargo xtask man`");
            }
            fs::remove_file(entry.path()).with_context(|| format!("cannot remove {path}"))?;
            println!("removed {path}");
        }
    }
    Ok(())
}

/// A command and all below it that a user should know of.
fn collect<'a>(command: &'a Command, pages: &mut Vec<&'a Command>) {
    pages.push(command);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        collect(sub, pages);
    }
}

/// "ddsnap", "ddsnap-create", "ddsnap-delta-info".
fn page_name(command: &Command) -> String {
    let name = command.get_bin_name().or(command.get_display_name()).unwrap_or(command.get_name());
    name.replace(' ', "-")
}

/// One page. It bears no date, so that it is the same on every day.
fn page(command: &Command, pages: &[&Command]) -> Result<String> {
    let name = page_name(command);
    let is_root = !name.contains('-');
    let version = format!("ddsnap {}", env!("CARGO_PKG_VERSION"));
    // Our own SEE ALSO and COMMANDS take the place of the list of subcommands.
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        .date("")
        .source(version)
        .manual("System administration");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    let prose = prose::read(&name)?;
    write!(out, "{}", prose.description)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut out)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        let (heading, body) = split_heading(&text.to_string(), if is_root { "Commands" } else { "Notes" });
        write!(out, ".SH {}\n.nf\n{}\n.fi\n", heading.to_uppercase(), prose::escape_lines(&body))?;
    }
    write!(out, "{}", prose.sections)?;
    let is_dry = command.get_arguments().any(|argument| argument.get_long() == Some("dry-run"));
    exit_status(&name, is_dry, &mut out)?;
    let others = pages.iter().map(|page| page_name(page)).filter(|other| {
        *other != name && if is_root { other.matches('-').count() == 1 } else { other == "ddsnap" }
    });
    let others: Vec<String> = others.map(|other| format!("\\fB{}\\fR(8)", prose::escape(&other))).collect();
    if !others.is_empty() {
        write!(out, ".SH \"SEE ALSO\"\n{}\n", others.join(", "))?;
    }
    let text = String::from_utf8(out)?;
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// "Examples:\n  …" is a heading and a body; anything else stands under `otherwise`.
fn split_heading(text: &str, otherwise: &str) -> (String, String) {
    let first = text.lines().next().unwrap_or_default();
    match first.strip_suffix(':') {
        Some("Examples") => {
            ("Examples".into(), text.split_once('\n').map(|(_, body)| body).unwrap_or_default().into())
        }
        _ => (otherwise.into(), text.into()),
    }
}

fn exit_status(name: &str, is_dry: bool, out: &mut Vec<u8>) -> Result<()> {
    let command = name.strip_prefix("ddsnap-").unwrap_or_default().replace('-', " ");
    writeln!(out, ".SH \"EXIT STATUS\"")?;
    for (code, _, meaning) in Exit::of_command(&command) {
        write!(out, ".TP\n\\fB{code}\\fR\n{}\n", prose::escape(&sentence(meaning)))?;
    }
    if is_dry {
        writeln!(out, ".PP\n{}", prose::escape(Exit::of_dry_run(&command)))?;
    }
    Ok(())
}

/// Meanings are written to stand in the middle of a sentence.
pub fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_page<T>(name: &str, look: impl FnOnce(&Command, String) -> T) -> T {
        let mut tree = ddsnap::cmd::tree();
        tree.build();
        let mut pages = Vec::new();
        collect(&tree, &mut pages);
        let command =
            pages.iter().find(|command| page_name(command) == name).expect("a command of that name");
        look(command, page(command, &pages).unwrap())
    }

    #[test]
    fn every_option_is_in_the_page() {
        with_page("ddsnap-create", |command, text| {
            let options: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
            assert!(options.contains(&"name"), "{options:?}");
            for option in options {
                let escaped = format!("\\-\\-{}", prose::escape(option));
                assert!(text.contains(&escaped), "{option} is missing:\n{text}");
            }
        });
    }

    #[test]
    fn a_page_names_the_whole_command_its_statuses_and_the_main_page() {
        with_page("ddsnap-list", |_, text| {
            assert!(text.contains("\\fBddsnap list\\fR"), "{text}");
            assert!(text.contains(".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nDone.\n"), "{text}");
            assert!(text.contains("\\fBddsnap\\fR(8)"), "{text}");
        });
        with_page("ddsnap", |_, text| assert!(text.contains("\\fBddsnap\\-list\\fR(8)"), "{text}"));
    }

    #[test]
    fn examples_are_a_section() {
        let split = |text| split_heading(text, "Notes");
        assert_eq!(split("Examples:\n  a\n  b"), ("Examples".into(), "  a\n  b".into()));
        assert_eq!(split("Words:\nx"), ("Notes".into(), "Words:\nx".into()));
    }
}
