//! Man pages and shell completions, from the flags themselves. Writes below the directory that it is given, and nowhere
//! else.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// The section of manuals that programs of administrators are in.
const SECTION: &str = "8";

/// Writes `man/fastpath-agent.8`, one such page for each subcommand, and `completions/fastpath-agent.{bash,fish,zsh}`.
/// Hidden subcommands get none.
pub fn write(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        fs::write(completions.join(format!("fastpath-agent.{shell}")), completion(shell))?;
    }
    let mut command = shown();
    command.build();
    page(command.clone(), &man)?;
    for below in command.get_subcommands() {
        page(below.clone(), &man)?;
    }
    Ok(())
}

/// The script that completes flags and subcommands in this shell.
pub fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(), "fastpath-agent", &mut script);
    script
}

fn page(command: Command, directory: &Path) -> io::Result<()> {
    clap_mangen::Man::new(command).section(SECTION).manual("Fastpath").generate_to(directory).map(drop)
}

/// The command as a user knows it.
fn shown() -> Command {
    let command = Cli::command();
    let kept: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    let arguments: Vec<_> = command.get_arguments().cloned().collect();
    let mut shown = Command::new("fastpath-agent").args(arguments).subcommands(kept);
    if let Some(text) = command.get_version() {
        shown = shown.version(text.to_owned());
    }
    if let Some(text) = command.get_about() {
        shown = shown.about(text.clone());
    }
    if let Some(text) = command.get_after_help() {
        shown = shown.after_help(text.clone());
    }
    shown.subcommand_required(true).disable_help_subcommand(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_shows_has_pages_and_what_it_hides_has_none() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let command = Cli::command();
        let mut expected = vec!["fastpath-agent.8".to_owned()];
        let mut hidden = Vec::new();
        for below in command.get_subcommands() {
            let name = below.get_name().to_owned();
            if below.is_hide_set() {
                hidden.push(name);
            } else {
                expected.push(format!("fastpath-agent-{name}.8"));
            }
        }
        let mut found: Vec<_> = fs::read_dir(directory.path().join("man"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert!(!hidden.is_empty());
        let page = fs::read_to_string(directory.path().join("man/fastpath-agent.8")).unwrap();
        for arg in command.get_arguments() {
            let flag = arg.get_long().unwrap().replace('-', "\\-");
            assert!(page.contains(&flag), "the page lacks {flag}");
        }
        for name in ["bash", "fish", "zsh"] {
            let path = directory.path().join(format!("completions/fastpath-agent.{name}"));
            let script = fs::read_to_string(path).unwrap();
            assert!(script.contains("exclude-interfaces") && script.contains("doctor"), "{name}");
            for hidden in &hidden {
                // As a subcommand, in the words of the three shells.
                for shown in [format!("__{hidden}"), format!("-a \"{hidden}\""), format!("'{hidden}:")] {
                    assert!(!script.contains(&shown), "{name}: {shown}");
                }
            }
        }
    }
}
