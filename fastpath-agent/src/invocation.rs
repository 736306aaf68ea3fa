//! The command line, with the environment and the configuration file behind it, made into flags. The file's keys are
//! the flags' names, and clap's own definition says which there are and what they take: there is no second list.
//! Values go to clap as defaults, so that a flag wins over the environment, and both over the file. Checks each value by
//! itself, and leaves what values mean together to `config`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use toml::de::{DeTable, DeValue};

use crate::{
    cli::{Cli, Command as Subcommand},
    config::BadValue,
};

/// The flag that names the file; it can't be set in the file.
const CONFIG: &str = "config";

/// What the agent was started with.
#[derive(Debug)]
pub struct Invocation {
    /// The flags, wherever they come from.
    pub cli: Cli,
    /// Where the file says those that come from it, by their names.
    from_file: BTreeMap<String, Place>,
}

/// A line of the configuration file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
}

/// Why a command line can't be made into flags.
#[derive(Debug, thiserror::Error)]
pub enum InvocationError {
    /// The command line is wrong, or asks for help; clap says it on several lines.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The configuration file can't be read, or isn't right.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with the configuration file, in one line.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{place}: {what}")]
    Line {
        /// Which.
        place: Place,
        /// What is wrong, with the remedy.
        what: String,
    },
}

/// What the file says about one flag.
#[derive(Debug)]
struct Setting {
    place: Place,
    values: Vec<String>,
}

impl Invocation {
    /// Reads `arguments` (the program's name first), this process's environment for what they don't say, and the
    /// configuration file, if either names one, for the rest.
    pub fn parse<I>(arguments: I) -> Result<Self, InvocationError>
    where
        I: IntoIterator<Item: Into<OsString>>,
    {
        Self::of(Cli::command(), arguments.into_iter().map(Into::into).collect(), None)
    }

    /// The same of another process: its environment isn't this one's, and `seen` says where this process sees a path of its. The
    /// files of exclusions and mode are named so too.
    pub fn of_another(
        arguments: &[String],
        environment: &[String],
        seen: &dyn Fn(&Path) -> PathBuf,
    ) -> Result<Self, InvocationError> {
        let command = Cli::command();
        let arguments = with_environment(&command, arguments, environment);
        let arguments = arguments.into_iter().map(Into::into).collect();
        let mut invocation = Self::of(without_environment(command), arguments, Some(seen))?;
        if let Subcommand::Run(run) = &mut invocation.cli.command {
            for file in [&mut run.rules.exclude_file, &mut run.mode_file] {
                *file = file.take().map(|path| seen(&path));
            }
        }
        Ok(invocation)
    }

    fn of(
        mut command: Command,
        arguments: Vec<OsString>,
        seen: Option<&dyn Fn(&Path) -> PathBuf>,
    ) -> Result<Self, InvocationError> {
        let matches = command.clone().try_get_matches_from(&arguments);
        let mut matches = matches.map_err(|error| with_run_suggested(error, &command))?;
        let path = matches.get_one::<OsString>(CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut from_file = BTreeMap::new();
        if let Some(mut path) = path {
            if let Some(seen) = seen {
                path = seen(&path);
            }
            let settings = read(&command, &path)?;
            matches = with_defaults(command.clone(), &settings).try_get_matches_from(&arguments)?;
            let used = used(&command, &matches);
            from_file = settings
                .into_iter()
                .filter(|(flag, _)| used.iter().any(|used| used == flag))
                .map(|(flag, setting)| (flag, setting.place))
                .collect();
        }
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok(Self { cli, from_file })
    }

    /// Where the file says the value that is wrong, if it comes from there.
    pub fn place(&self, bad: &BadValue) -> Option<&Place> {
        self.from_file.get(bad.flag())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// For flags of the agent without `run` before them.
fn with_run_suggested(mut error: clap::Error, command: &Command) -> clap::Error {
    let flag = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => {
            flag.trim_start_matches('-').to_owned()
        }
        _ => return error,
    };
    if error.get(ContextKind::InvalidSubcommand).is_none()
        && settable(command).any(|(known, _)| known == flag)
    {
        let tip = format!("`fastpath-agent run --{flag}` starts the agent with it");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// The subcommand that starts the agent. A configuration file's keys are its flags.
const RUN: &str = "run";

/// Flags of the agent that a file can set, by their names. `command` is the program's.
pub fn settable(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.find_subcommand(RUN).into_iter().flat_map(settable_of)
}

fn settable_of(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg))).filter(|(flag, _)| *flag != CONFIG)
}

/// Appends to the command line what the environment says and the command line doesn't.
fn with_environment(command: &Command, arguments: &[String], environment: &[String]) -> Vec<String> {
    let mut arguments = arguments.to_vec();
    // Variables that are for the agent aren't flags of other subcommands.
    let Some(sub) = arguments.iter().skip(1).find_map(|word| command.find_subcommand(word)) else {
        return arguments;
    };
    for argument in command.get_arguments().chain(sub.get_arguments()) {
        let (Some(variable), Some(long)) = (argument.get_env(), argument.get_long()) else { continue };
        let flag = format!("--{long}");
        let given = arguments.iter().any(|word| {
            word.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        });
        let variable = format!("{}=", variable.to_string_lossy());
        let Some(value) = environment.iter().find_map(|entry| entry.strip_prefix(&variable)) else {
            continue;
        };
        match argument.get_action() {
            _ if given => {}
            // Switches take no value on the command line; what clap's boolish parser takes for no isn't given.
            ArgAction::SetTrue => {
                let no = ["", "n", "no", "f", "false", "off", "0"];
                if !no.iter().any(|no| value.eq_ignore_ascii_case(no)) {
                    arguments.push(flag);
                }
            }
            _ => arguments.push(format!("{flag}={value}")),
        }
    }
    arguments
}

fn without_environment(command: Command) -> Command {
    let reset = |argument: Arg| argument.env(Resettable::Reset);
    command.mut_args(reset).mut_subcommands(|below| below.mut_args(reset))
}

/// The flags of the subcommand that neither the command line nor the environment says.
fn used(command: &Command, matches: &ArgMatches) -> Vec<String> {
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let Some(command) = command.find_subcommand(name) else { return Vec::new() };
    settable_of(command)
        .filter(|(_, arg)| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::DefaultValue))
        .map(|(flag, _)| flag.to_owned())
        .collect()
}

/// The file's values are the defaults of `run`, and of other subcommands where they have the same flags.
fn with_defaults(command: Command, settings: &BTreeMap<String, Setting>) -> Command {
    let with_default = |arg: Arg| match arg.get_long().and_then(|flag| settings.get(flag)) {
        Some(setting) => arg.default_values(setting.values.clone()),
        None => arg,
    };
    command.mut_subcommands(|below| below.mut_args(with_default))
}

fn read(command: &Command, path: &Path) -> Result<BTreeMap<String, Setting>, FileError> {
    let text =
        fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse_file(command, path, &text)
}

/// Reads the file's text: keys are flags of `command`, and each value is one that its flag takes.
fn parse_file(command: &Command, path: &Path, text: &str) -> Result<BTreeMap<String, Setting>, FileError> {
    let place = |span: Range<usize>| {
        let before = &text.as_bytes()[..span.start.min(text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place { file: path.to_owned(), line }
    };
    let fail = |span, what| Err(FileError::Line { place: place(span), what });
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => return fail(error.span().unwrap_or_default(), one_line(error.message())),
    };
    let checker = without_environment(command.clone());
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start); // the first mistake is the one to tell
    let mut settings = BTreeMap::new();
    for (key, value) in entries {
        let (at, flag) = (key.span(), key.into_inner());
        let Some((_, arg)) = settable(command).find(|(known, _)| *known == flag) else {
            return fail(at, unknown(&checker, &flag));
        };
        let value_at = value.span();
        let values = match values(arg, value.get_ref()) {
            Ok(values) => values,
            Err(takes) => return fail(value_at, format!("'{flag}' takes {takes}")),
        };
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            for value in &values {
                if let Err(what) = check(&checker, &flag, value) {
                    return fail(value_at, what);
                }
            }
        }
        settings.insert(flag.into_owned(), Setting { place: place(at), values });
    }
    Ok(settings)
}

/// The value as words of a command line, or what the flag takes instead.
fn values(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    let word = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            number.ok().map(|number| number.to_string())
        }
        _ => None,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(switch)) => Ok(vec![switch.to_string()]),
        (ArgAction::SetTrue, _) => Err("true or false, without quotes"),
        (ArgAction::Append, DeValue::Array(entries)) => {
            let words: Option<_> = entries.iter().map(|entry| word(entry.get_ref())).collect();
            words.ok_or("a list of texts, each in quotes, as [\"a\", \"b\"]")
        }
        (ArgAction::Append, value) => {
            word(value).map(|word| vec![word]).ok_or("a text in quotes, or a list of them, as [\"a\", \"b\"]")
        }
        (_, value) => word(value).map(|word| vec![word]).ok_or("one text in quotes, or one whole number"),
    }
}

/// Has clap judge one value.
fn check(checker: &Command, flag: &str, value: &str) -> Result<(), String> {
    let words = [checker.get_name().to_owned(), RUN.to_owned(), format!("--{flag}={value}")];
    match checker.clone().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) => {
            // "error: …", details below it, and then an empty line and general advice.
            let text = error.render().to_string();
            let own = text.split("\n\n").next().unwrap_or(&text);
            Err(one_line(own.strip_prefix("error: ").unwrap_or(own)))
        }
    }
}

/// What to say about a key that no flag has.
fn unknown(checker: &Command, key: &str) -> String {
    let words = [checker.get_name().to_owned(), RUN.to_owned(), format!("--{key}=")];
    let similar = checker.clone().try_get_matches_from(words).err().and_then(|error| {
        match (error.kind(), error.get(ContextKind::SuggestedArg)?) {
            (ErrorKind::UnknownArgument, ContextValue::String(flag)) => {
                Some(format!(" (is '{}' meant?)", flag.trim_start_matches('-')))
            }
            _ => None,
        }
    });
    let similar = similar.unwrap_or_default();
    format!(
        "there is no key '{key}'{similar}; keys are the flags of `fastpath-agent run --help`, without the dashes"
    )
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "invocation_tests.rs"]
mod tests;
