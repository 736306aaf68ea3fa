//! Running other programs, with errors that name the command.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A command with its first words as one would type them, none of which has a space in it.
pub(crate) fn command(words: &str) -> Command {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// The command as one would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs `command` with this terminal; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed; an exit status other than 0 is an error that shows its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, stderr.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", shown(command)))
}

/// What git says of this repository, without the end of the line.
pub(crate) fn git(arguments: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    let said = output(git.args(arguments).env("TZ", "UTC").current_dir(workspace::root()))?;
    Ok(said.trim_end().to_owned())
}

/// Before a program: with `unshare` all processes of its namespace are killed. Its first process isn't the program, since the first one is
/// deaf to signals.
pub(crate) const ISOLATED: [&str; 9] =
    ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", "\"$@\"; exit $?", "sh"];

/// Whether `command` exits with 0; its output is thrown away. A program that isn't there counts as no.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command that runs as root, or nothing where this user can't become root without a password.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Option<Command>> {
    if output(&mut command("id -u"))?.trim() == "0" {
        return Ok(Some(Command::new(program)));
    }
    if !succeeds(&mut command("sudo -n true")) {
        return Ok(None);
    }
    let mut command = command("sudo -n");
    command.arg(program);
    Ok(Some(command))
}
