//! What documents, manifests and units say of this program's flags and subcommands is so. Nothing is run here.
//!
//! `FASTPATH_UPDATE_DOCS=1 cargo test -p fastpath-agent --test documents` writes the parts that follow from the code.
#![expect(clippy::unwrap_used, reason = "a test that can't read the repository fails")]

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use clap::{Arg, Command, CommandFactory, Parser, error::ErrorKind};
use fastpath_agent::{cli::Cli, core::why_not::WhyNot};
use strum::{EnumMessage, IntoEnumIterator};

#[expect(unreachable_pub, reason = "the harness of the tests is its other user")]
#[path = "../../tests/src/document.rs"]
mod document;

const PROGRAM: &str = "fastpath-agent";

/// Flags of other programs that the pages speak of by themselves, without the program's name.
const FLAGS_OF_OTHERS: [&str; 12] = [
    "--compare",
    "--filter",
    "--firewall-backend",
    "--guest",
    "--host",
    "--kernel",
    "--profile",
    "--quick",
    "--render",
    "--save",
    "--seed",
    "--tier",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below a directory that end so, as paths in the repository.
fn files(directory: &str, endings: &[&str], found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root().join(directory)) else { return };
    for entry in entries.map(Result::unwrap) {
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            files(&path, endings, found);
        } else if endings.iter().any(|ending| path.ends_with(ending)) {
            found.push(path);
        }
    }
}

fn documents() -> Vec<(String, String)> {
    let mut paths =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned).to_vec();
    files("docs", &[".md"], &mut paths);
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// Whether these words are one of the agent's commands; placeholders (`…`, `FLOW`) may be anything.
fn check(words: &[String]) -> Result<(), String> {
    let capitals = |part: &str| part.len() > 2 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let open = |word: &String| word.contains('…') || word.split(['=', '-']).any(capitals);
    if words.iter().any(open) {
        let command = Cli::command();
        let sub = words.iter().find_map(|word| command.find_subcommand(word));
        let named = words.first().is_some_and(|word| !word.starts_with('-') && !open(word));
        if named && sub.is_none() {
            return Err(format!("no subcommand {}", words[0]));
        }
        let has = flags_of(sub.unwrap_or(&command));
        let unknown = words.iter().filter_map(|word| flag(word)).find(|flag| !has.contains(*flag));
        return unknown.map_or(Ok(()), |flag| Err(format!("no flag {flag}")));
    }
    match Cli::try_parse_from([PROGRAM].into_iter().chain(words.iter().map(String::as_str))) {
        // Text that speaks of a subcommand.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument && words.len() == 1 => Ok(()),
        Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Err(error.to_string())
        }
        _ => Ok(()),
    }
}

/// `--name` of `--name=value`.
fn flag(word: &str) -> Option<&str> {
    let name = word.split('=').next().unwrap_or_default();
    let letters = name.strip_prefix("--")?;
    letters.starts_with(|c: char| c.is_ascii_lowercase()).then_some(name)
}

fn flags_of(command: &Command) -> BTreeSet<String> {
    let names = command.get_arguments().filter_map(Arg::get_long).map(|name| format!("--{name}"));
    names.chain(["--help".to_owned(), "--version".to_owned()]).collect()
}

#[test]
fn every_documented_command_exists() {
    let mut count = 0;
    for (path, text) in documents() {
        for command in document::commands(&text, &[PROGRAM]) {
            for words in command.calls(PROGRAM) {
                count += 1;
                let said = |error| panic!("{path}:{}: {}\n{error}", command.line, command.text);
                check(&words).unwrap_or_else(said);
            }
        }
    }
    assert!(count > 60, "only {count} commands found");
    for wrong in [
        "--no-such-flag",
        "no-such-command",
        "flows --port=x",
        "flows --port=… --nothing",
        "nothing --port=…",
    ] {
        let words: Vec<String> = wrong.split(' ').map(str::to_owned).collect();
        assert!(check(&words).is_err(), "{wrong}");
    }
}

/// Commands in `console` blocks are run by a test for each page (tests/it/docs.rs), so that page has to be named there.
#[test]
fn every_page_with_commands_to_run_has_a_test() {
    let tests = fs::read_to_string(root().join("tests/it/docs.rs")).unwrap();
    let (_, list) = tests.split_once("const PROGRAMS").unwrap();
    let programs = list.split('"').skip(1).step_by(2);
    let programs: Vec<&str> = programs.take_while(|word| !word.contains("..")).collect();
    assert!(programs.contains(&"nft"), "{programs:?}");
    for (path, text) in documents() {
        let commands = document::commands(&text, &[PROGRAM]);
        let runs = commands.iter().any(|command| command.runs && programs.contains(&command.program()));
        let named = tests.contains(&format!("\"{path}\""));
        assert_eq!(runs, named, "{path}: has commands to run, or is in tests/it/docs.rs, but not both");
    }
}

#[test]
fn every_flag_that_the_pages_name_exists() {
    let command = Cli::command();
    let mut known: BTreeSet<String> =
        command.get_subcommands().chain([&command]).flat_map(flags_of).collect();
    known.extend(FLAGS_OF_OTHERS.map(str::to_owned));
    for (path, text) in documents().into_iter().filter(|(path, _)| path != "CONTRIBUTING.md") {
        for (number, line) in text.lines().enumerate() {
            for span in line.split('`').skip(1).step_by(2) {
                if let Some(flag) = flag(span.split(' ').next().unwrap_or_default()) {
                    assert!(known.contains(flag), "{path}:{}: nothing has the flag {flag}", number + 1);
                }
            }
        }
    }
}

/// Units (`ExecStart=/usr/bin/fastpath-agent …`) and lists of arguments in manifests.
#[test]
fn every_flag_in_units_and_manifests_exists() {
    let mut paths = Vec::new();
    files("deploy", &[".yaml", ".service"], &mut paths);
    let known = flags_of(Cli::command().find_subcommand("run").unwrap());
    for path in paths {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
            if let Some(("ExecStart" | "ExecStartPre" | "ExecStop" | "ExecStopPost", call)) =
                line.split_once('=')
                && call.contains(PROGRAM)
            {
                let words: Vec<String> = shlex::split(call).unwrap().into_iter().skip(1).collect();
                check(&words).unwrap_or_else(|error| panic!("{path}:{number}: {line}\n{error}"));
            }
            let item = line.strip_prefix("- ").map(|item| item.trim_matches(['"', '\'']));
            if let Some(flag) = item.and_then(flag) {
                assert!(known.contains(flag), "{path}:{number}: the agent has no flag {flag}");
            }
        }
    }
}

/// The part of a page between two comments is this text.
fn assert_written(page: &str, part: &str, text: &str) {
    let path = root().join("docs").join(page);
    let written = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {part} -->\n"), format!("<!-- end of {part} -->"));
    let (before, rest) = written.split_once(&begin).expect("where it begins");
    let (_, after) = rest.split_once(&end).expect("where it ends");
    let wanted = format!("{before}{begin}\n{}\n\n{end}{after}", text.trim_end());
    if std::env::var_os("FASTPATH_UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
    } else {
        assert!(
            written == wanted,
            "docs/{page} isn't up to date: FASTPATH_UPDATE_DOCS=1 cargo test -p fastpath-agent --test documents"
        );
    }
}

#[test]
fn flags_of_subcommands_are_what_help_says() {
    let mut command = Cli::command();
    command.build();
    let mut text = String::new();
    // The flags of `run` are the keys of the file, in a table of their own.
    let has_table = |sub: &Command| ["help", "run"].contains(&sub.get_name());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && !has_table(sub)) {
        section(&mut text, sub);
    }
    assert_written("configuration.md", "subcommands", &text);
}

#[test]
fn every_reason_is_in_the_tables() {
    let mut rows = "| `reason` | Means | Further fields |\n| --- | --- | --- |\n".to_owned();
    for why in WhyNot::iter().filter(|why| *why != WhyNot::NotWatched) {
        let means = why.get_message().unwrap();
        // Without a detailed message strum gives the message.
        let fields = why.get_detailed_message().filter(|fields| *fields != means).unwrap_or_default();
        writeln!(rows, "| `{}` | {means} | {fields} |", why.name()).unwrap();
    }
    assert_written("why.md", "reasons", &rows);
    let mut rows = "| `cause` | Means | What makes it fast |\n| --- | --- | --- |\n".to_owned();
    for why in WhyNot::of_flows() {
        let name = why.name();
        let cause = if why.is_about_something() { format!("{{\"{name}\": …}}") } else { name.to_owned() };
        let todo = prose(why.todo().unwrap_or("never"));
        writeln!(rows, "| `{cause}` | {} | {todo} |", why.get_message().unwrap()).unwrap();
    }
    assert_written("flows.md", "causes", &rows);
}

fn section(page: &mut String, command: &Command) {
    let name = command.get_bin_name().unwrap_or(PROGRAM);
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    writeln!(page, "### `{name}`\n\n{}.\n", prose(about.trim_end_matches('.'))).unwrap();
    for argument in command.get_positionals() {
        writeln!(page, "- `{}`: {}", value_name(argument), help(argument)).unwrap();
    }
    for flag in command.get_arguments().filter(|argument| shown(argument)) {
        let takes_value = flag.get_action().takes_values();
        let value = if takes_value { format!("={}", value_name(flag)) } else { String::new() };
        let short = flag.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
        let defaults: Vec<_> = flag.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        let default = Some(defaults.join(",")).filter(|default| takes_value && !default.is_empty());
        let default = default.map(|default| format!("default `{default}`"));
        let environment = flag.get_env().map(|name| format!("environment `{}`", name.to_string_lossy()));
        let notes: Vec<String> = default.into_iter().chain(environment).collect();
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        let long = flag.get_long().unwrap();
        writeln!(page, "- {short}`--{long}{value}`{notes}: {}", help(flag)).unwrap();
    }
    page.push('\n');
}

fn shown(argument: &Arg) -> bool {
    argument.get_long().is_some_and(|long| long != "help" && long != "version") && !argument.is_hide_set()
}

fn value_name(argument: &Arg) -> String {
    let name = argument.get_value_names().and_then(|names| names.first());
    name.map_or_else(|| argument.get_id().to_string(), ToString::to_string)
}

/// The help, and what the values mean.
fn help(argument: &Arg) -> String {
    let text = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut help = prose(&text);
    let values =
        if argument.get_action().takes_values() { argument.get_possible_values() } else { Vec::new() };
    let values: Vec<String> = values
        .iter()
        .map(|value| match value.get_help() {
            Some(meaning) => format!("`{}` ({})", value.get_name(), prose(&meaning.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        write!(help, ". One of {}", values.join(", ")).unwrap();
    }
    help
}

/// Plain text as Markdown: flags as code, nothing taken for a mark.
fn prose(text: &str) -> String {
    let word = |word: &str| {
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(word.len());
        if word.starts_with("--") && end > 2 {
            return format!("`{}`{}", &word[..end], &word[end..]);
        }
        word.replace('*', "\\*").replace('_', "\\_").replace('|', "\\|").replace('<', "&lt;")
    };
    let mut code = false;
    let mut parts = Vec::new();
    for part in text.split('`') {
        parts.push(if code {
            part.to_owned()
        } else {
            part.split(' ').map(word).collect::<Vec<_>>().join(" ")
        });
        code = !code;
    }
    parts.join("`").replace('\n', " ")
}
