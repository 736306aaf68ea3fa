//! Precedence of flags, environment and file, and the errors for a wrong file.

use std::{io::Write, path::Path};

use clap::CommandFactory;
use tempfile::NamedTempFile;

use super::*;
use crate::{
    cli::{Command as Subcommand, EbpfMode, HwOffload},
    config::Config,
};

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// An agent with these flags, this environment and this file.
fn agent(text: &str, flags: &[&str], environment: &[&str]) -> Result<Invocation, InvocationError> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut arguments = owned(&["fastpath-agent", "run"]);
    arguments.extend(owned(flags));
    arguments.push(format!("--config={}", file.path().display()));
    Invocation::of_another(&arguments, &owned(environment), &Path::to_owned)
}

fn complaint(text: &str) -> String {
    let error = parse_file(&Cli::command(), Path::new("agent.toml"), text).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let text = "fastpath-threshold = 5\nhw-offload = 'auto'\nebpf = 'xdp'\ninterfaces = ['a*', 'b*']\ntakeover = true\n";
    let run = agent(text, &["--fastpath-threshold=7"], &["FASTPATH_THRESHOLD=6", "FASTPATH_EBPF=off"]);
    let cli = run.unwrap().cli;
    let run = cli.agent().unwrap();
    assert_eq!(run.rules.fastpath_threshold, "7");
    assert_eq!(run.ebpf, EbpfMode::Off);
    assert_eq!(run.rules.hw_offload, HwOffload::Auto);
    assert_eq!(run.rules.interfaces, ["a*", "b*"]);
    assert!(run.takeover);
    assert_eq!(run.rules.chain_priority, "300"); // the default
    let cli = agent(text, &["--interfaces=c*"], &["FASTPATH_THRESHOLD=6"]).unwrap().cli;
    let rules = &cli.agent().unwrap().rules;
    assert_eq!(
        (rules.fastpath_threshold.as_str(), rules.interfaces.as_slice()),
        ("6", &["c*".to_owned()][..])
    );
}

#[test]
fn the_file_can_be_named_by_the_environment_and_holds_for_subcommands() {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "fastpath-threshold = 0x10\npin-path = \"/sys/fs/bpf/other\"\nassist = 'off'").unwrap();
    let variable = format!("FASTPATH_CONFIG={}", file.path().display());
    let run = Invocation::of_another(
        &owned(&["fastpath-agent", "run"]),
        std::slice::from_ref(&variable),
        &Path::to_owned,
    );
    assert_eq!(run.unwrap().cli.agent().unwrap().rules.fastpath_threshold, "16");
    let flag = format!("--config={}", file.path().display());
    for words in [["fastpath-agent", "render", &flag], ["fastpath-agent", "cleanup", &flag]] {
        match Invocation::of_another(&owned(&words), &[], &Path::to_owned).unwrap().cli.command {
            Subcommand::Render(args) => assert_eq!(args.fastpath_threshold, "16"),
            Subcommand::Cleanup(args) => assert_eq!(args.pin_path, Path::new("/sys/fs/bpf/other")),
            other => panic!("{other:?}"),
        }
    }
    // No file.
    let run = Invocation::of_another(
        &owned(&["fastpath-agent", "run"]),
        &["FASTPATH_CONFIG=".to_owned()],
        &Path::to_owned,
    )
    .unwrap();
    assert_eq!(run.cli.agent().unwrap().rules.fastpath_threshold, "20");
}

#[test]
fn another_processs_files_are_looked_for_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let below = |root: &Path, path: &Path| root.join(path.strip_prefix("/").unwrap());
    fs::write(root.path().join("agent.toml"), "v = 3\nexclude-file = '/etc/exclude'").unwrap();
    let words = owned(&["fastpath-agent", "run", "--config", "/agent.toml"]);
    let cli = Invocation::of_another(&words, &[], &|path| below(root.path(), path)).unwrap().cli;
    let run = cli.agent().unwrap();
    assert_eq!((run.v.as_str(), &run.rules.exclude_file), ("3", &Some(root.path().join("etc/exclude"))));
    let nowhere = |path: &Path| below(Path::new("/no/such"), path);
    let error = Invocation::of_another(&words, &[], &nowhere).unwrap_err().to_string();
    assert!(error.contains("/no/such/agent.toml") && error.contains("No such file"), "{error}");
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_place() {
    for (text, line, words) in [
        ("\nthreshold = 5", 2, &["no key 'threshold'", "--help"][..]),
        ("fastpath-treshold = 5", 1, &["'fastpath-treshold'", "is 'fastpath-threshold' meant?"]),
        ("config = 'x'", 1, &["no key 'config'"]),
        ("help = true", 1, &["no key 'help'"]),
        ("v = 1\n\nhw-offload = 'always'", 3, &["'always'", "--hw-offload", "off, auto"]),
        ("hw-offload = true", 1, &["'hw-offload' takes one text in quotes"]),
        ("takeover = 'yes'", 1, &["'takeover' takes true or false"]),
        ("v = 1.5", 1, &["'v' takes one text"]),
        ("v = [1]", 1, &["'v' takes one text"]),
        ("exclude = [1.5]", 1, &["'exclude' takes a list"]),
        ("[agent]\nv = 1", 1, &["no key 'agent'"]),
        ("v = 1\nv = 2", 2, &["duplicate key"]),
        ("v = 1\nnot toml", 2, &["="]),
    ] {
        let said = complaint(text);
        assert!(said.starts_with(&format!("agent.toml:{line}: ")), "{text:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{text:?}: no {word:?} in {said}");
        }
    }
}

#[test]
fn a_value_that_only_the_configuration_refuses_has_its_place_too() {
    let text = "# comment\nfastpath-threshold = 'many'\npin-path = 'here'\n";
    let bad =
        |invocation: &Invocation| Config::new(invocation.cli.agent().unwrap(), String::new()).unwrap_err();
    let invocation = agent(text, &[], &[]).unwrap();
    let error = bad(&invocation);
    assert_eq!((error.flag(), invocation.place(&error).map(|place| place.line)), ("pin-path", Some(3)));
    // The same flag from elsewhere is none of the file's mistakes.
    let invocation = agent(text, &["--pin-path=there"], &[]).unwrap();
    assert_eq!(invocation.place(&bad(&invocation)), None);
}

#[test]
fn flags_of_a_process_are_its_command_line_and_then_its_environment() {
    let flags = |arguments: &[&str], environment: &[&str]| {
        Invocation::of_another(&owned(arguments), &owned(environment), &Path::to_owned).map(|found| found.cli)
    };
    let environment = [
        "PATH=/bin",
        "FASTPATH_THRESHOLD=9",
        "FASTPATH_EBPF=off",
        "FASTPATH_INTERFACES=a*,b*",
        "FASTPATH_TAKEOVER=true",
    ];
    let cli = flags(&["fastpath-agent", "run", "--fastpath-threshold=6"], &environment).expect("valid");
    assert_eq!(cli.agent().unwrap().rules.fastpath_threshold, "6");
    assert_eq!(cli.agent().unwrap().rules.interfaces, ["a*", "b*"]);
    assert_eq!(cli.agent().unwrap().ebpf, EbpfMode::Off);
    assert!(cli.agent().unwrap().takeover);
    assert!(
        !flags(&["fastpath-agent", "run"], &["FASTPATH_TAKEOVER=No"])
            .expect("valid")
            .agent()
            .unwrap()
            .takeover
    );
    let cli = flags(&["fastpath-agent", "run", "--fastpath-threshold", "7"], &environment).expect("valid");
    assert_eq!(cli.agent().unwrap().rules.fastpath_threshold, "7");
    assert!(flags(&["fastpath-agent", "status"], &environment).expect("valid").agent().is_none());
    assert!(flags(&["fastpath-agent", "run", "--no-such-flag"], &[]).is_err());
}

#[test]
fn flags_without_run_are_told_where_they_belong() {
    let said = |words: &[&str]| Invocation::parse(words.iter().copied()).unwrap_err().to_string();
    let error = said(&["fastpath-agent", "--fastpath-threshold=6"]);
    assert!(error.contains("`fastpath-agent run --fastpath-threshold`"), "{error}");
    assert!(!said(&["fastpath-agent", "--no-such-flag"]).contains("fastpath-agent run"));
    assert!(said(&["fastpath-agent"]).contains("Usage: fastpath-agent"));
}

/// The table in docs/configuration.md is what clap has; `FASTPATH_UPDATE_DOCS=1` makes it so.
#[test]
fn every_key_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- keys -->\n", "<!-- end of keys -->\n");
    let (before, rest) = page.split_once(begin).expect("the mark before the table");
    let (table, after) = rest.split_once(end).expect("the mark after the table");
    let mut expected =
        "| Key and flag | Value | Environment | Default | |\n| --- | --- | --- | --- | --- |\n".to_owned();
    let cell = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    for (key, arg) in settable(&Cli::command()) {
        let choices: Vec<_> =
            arg.get_possible_values().iter().map(|value| format!("`\"{}\"`", value.get_name())).collect();
        let value = match arg.get_action() {
            ArgAction::SetTrue => "`true` or `false`".to_owned(),
            ArgAction::Append => "text, or a list of texts".to_owned(),
            _ if !choices.is_empty() => choices.join(", "),
            _ => {
                let names: Vec<_> =
                    arg.get_value_names().unwrap_or_default().iter().map(|name| name.as_str()).collect();
                names.join(" ")
            }
        };
        let variable = arg.get_env().expect("every flag has a variable").to_str().unwrap();
        let default: Vec<_> =
            arg.get_default_values().iter().map(|v| format!("`{}`", v.to_str().unwrap())).collect();
        let default = if matches!(arg.get_action(), ArgAction::SetTrue) {
            "`false`".to_owned()
        } else {
            default.join(" ")
        };
        let help = cell(&arg.get_help().expect("every flag has help").to_string());
        expected += &format!("| `{key}` | {value} | `{variable}` | {default} | {help} |\n");
    }
    if table != expected {
        assert!(
            std::env::var_os("FASTPATH_UPDATE_DOCS").is_some(),
            "docs/configuration.md lacks or has other keys than the agent; `FASTPATH_UPDATE_DOCS=1 cargo test -p fastpath-agent --lib \
             every_key` writes the table:\n{expected}"
        );
        fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
    }
}

/// The file that the package installs: all of its lines are examples, and those are right.
#[test]
fn the_examples_in_the_packages_file_are_right() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/agent.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(parse_file(&Cli::command(), &path, &text).unwrap().len(), 0);
    let examples: String = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(char::is_alphabetic))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(parse_file(&Cli::command(), &path, &examples).unwrap().len() >= 5, "{examples}");
}
