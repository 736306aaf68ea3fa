//! Commands of this program in the documents are commands that it has.

use clap::{Parser, error::ErrorKind};

use crate::{Cli, links, workspace};

#[expect(unreachable_pub, reason = "the harness of the tests is its other user")]
#[path = "../../tests/src/document.rs"]
mod document;

const PROGRAM: &str = "cargo xtask";

#[test]
fn every_documented_command_exists() {
    let mut count = 0;
    for (path, text) in links::documents(&workspace::root()).expect("the documents") {
        for command in document::commands(&text, &[PROGRAM]) {
            for words in command.calls(PROGRAM) {
                count += 1;
                if let Err(error) = parsed(&words) {
                    panic!("{path}:{}: {}\n{error}", command.line, command.text);
                }
            }
        }
    }
    assert!(count > 20, "only {count} commands found");
    assert!(parsed(&["test".to_owned(), "--no-such-flag".to_owned()]).is_err());
}

fn parsed(words: &[String]) -> Result<(), clap::Error> {
    match Cli::try_parse_from([PROGRAM].into_iter().chain(words.iter().map(String::as_str))) {
        Err(error) if error.kind() != ErrorKind::DisplayHelp => Err(error),
        _ => Ok(()),
    }
}
