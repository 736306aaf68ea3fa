//! Commands in documents: finds them in a page of Markdown, apart from what they print. It reads text that it is given,
//! and runs nothing.
//!
//! This file is part of the harness, and of the tests of `fastpath-agent` and `xtask`, which take it in by its path.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A command as written in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documented {
    /// Line of the page that it begins in, the first is 1.
    pub line: usize,
    /// The command; of several lines, with the line breaks.
    pub text: String,
    /// Lines that the document shows as its output.
    pub output: Vec<String>,
    /// Whether it is run: it is behind `$ ` in a block of language `console`.
    pub runs: bool,
}

impl Documented {
    /// The first word.
    pub fn program(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// The exit code that its comment promises (`# exit code 1`), 0 without one.
    pub fn exit_code(&self) -> i32 {
        let behind = self.text.split_once("exit code ").map_or("", |(_, behind)| behind);
        let digits: String = behind.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    }

    /// Calls of `program`, each as its words, without the program's own name: also behind pipes, `sudo`, settings of
    /// variables, and in what is run by way of another program (`kubectl exec … -- PROGRAM …`).
    pub fn calls(&self, program: &str) -> Vec<Vec<String>> {
        let words: Vec<String> = shlex::Shlex::new(&self.text.replace("\\\n", " ")).collect();
        let parts = words.split(|word| matches!(word.as_str(), "|" | "||" | "&&" | ";" | "&" | "!"));
        parts.filter_map(|part| call(part, program)).collect()
    }
}

fn call(words: &[String], program: &str) -> Option<Vec<String>> {
    let name: Vec<&str> = program.split(' ').collect();
    let is = |at: usize| {
        words.get(at..at + name.len()).is_some_and(|found| {
            let plain = |word: &str| word.strip_prefix("/usr/bin/").unwrap_or(word).to_owned();
            found.iter().map(|word| plain(word)).eq(name.iter().copied())
        })
    };
    let may_stand_before = |word: &str| word == "sudo" || (word.contains('=') && !word.starts_with('-'));
    let at = (0..words.len()).find(|&at| {
        is(at)
            && (words[..at].iter().all(|word| may_stand_before(word))
                || words[at - 1] == "--"
                || words[at - 1] == "then")
    })?;
    let rest = &words[at + name.len()..];
    // What is redirected is the shell's.
    let redirected = |word: &String| word.starts_with(['>', '<']) || word.starts_with("2>");
    Some(rest.iter().take_while(|word| !redirected(word)).cloned().collect())
}

/// All commands of a page: those in fenced blocks, and spans of code within the text that are commands of `programs`.
pub fn commands(page: &str, programs: &[&str]) -> Vec<Documented> {
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for (event, range) in Parser::new_ext(page, Options::ENABLE_TABLES).into_offset_iter() {
        let line = page[..range.start].matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                block = Some(language.to_string());
            }
            Event::End(TagEnd::CodeBlock) => block = None,
            Event::Text(text) => {
                if let Some(language) = &block {
                    found.extend(in_block(&text, language, line, programs));
                }
            }
            Event::Code(text) => {
                let starts = |program: &&str| text.strip_prefix(*program).is_some_and(|r| r.starts_with(' '));
                if programs.iter().any(starts) {
                    found.push(Documented { line, text: text.to_string(), output: Vec::new(), runs: false });
                }
            }
            _ => {}
        }
    }
    found
}

fn in_block(text: &str, language: &str, first: usize, programs: &[&str]) -> Vec<Documented> {
    let mut found: Vec<Documented> = Vec::new();
    let mut continued = false;
    for (number, line) in text.lines().enumerate() {
        if continued {
            let last = found.last_mut().expect("a line that is continued");
            last.text.push('\n');
            last.text.push_str(line.strip_prefix("> ").unwrap_or(line));
            continued = line.ends_with(['\\', '|']);
            continue;
        }
        let is_script = matches!(language, "sh" | "bash");
        let bare = programs.iter().any(|program| {
            line.trim_start()
                .strip_prefix(program)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        let prompted = line.strip_prefix("$ ");
        let command = match prompted {
            Some(command) => command,
            None if is_script || bare => line.trim_start(),
            None => {
                if let Some(last) = found.last_mut() {
                    last.output.push(line.to_owned());
                }
                continue;
            }
        };
        if command.is_empty() || command.starts_with('#') {
            continue;
        }
        found.push(Documented {
            line: first + number,
            text: command.to_owned(),
            output: Vec::new(),
            runs: prompted.is_some() && language == "console",
        });
        continued = command.ends_with(['\\', '|']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "Text with `agent flows --limit=3` and `agent`.\n\n```console\n$ agent flows \\\n    --sort=bytes   # the largest\n\
                        one\n  two\n\n$ agent why tcp a b   # not found: exit code 1\n```\n\n```sh\nsudo A=b agent status -o json | jq .x\n\
                        kubectl -n x rollout status ds/agent\nkubectl exec ds/agent -- agent top\n```\n\n```text\nsaid\nagent render\n```\n";

    #[test]
    fn commands_are_found_with_their_output() {
        let found = commands(PAGE, &["agent"]);
        let texts: Vec<&str> = found.iter().map(|command| command.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "agent flows --limit=3",
                "agent flows \\\n    --sort=bytes   # the largest",
                "agent why tcp a b   # not found: exit code 1",
                "sudo A=b agent status -o json | jq .x",
                "kubectl -n x rollout status ds/agent",
                "kubectl exec ds/agent -- agent top",
                "agent render",
            ]
        );
        assert_eq!((found[1].program(), found[3].program()), ("agent", "sudo"));
        assert_eq!(found[1].output, ["one", "  two", ""]);
        assert_eq!(found.iter().map(|command| command.runs).filter(|runs| *runs).count(), 2);
        assert_eq!((found[1].line, found[2].line), (4, 9));
        assert_eq!((found[1].exit_code(), found[2].exit_code()), (0, 1));
        let calls: Vec<Vec<String>> = found.iter().flat_map(|command| command.calls("agent")).collect();
        let calls: Vec<String> = calls.iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            calls,
            ["flows --limit=3", "flows --sort=bytes", "why tcp a b", "status -o json", "top", "render"]
        );
    }
}
