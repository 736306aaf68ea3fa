//! `why`: one flow's story, for people or for programs.

use std::{fmt::Write, process::ExitCode};

use serde::Serialize;

use super::running::running_config;
use crate::{
    cli::{Output, WhyArgs},
    commands::{print, runtime},
    core::{
        flow::connection::Tuple,
        why::{Accelerated, Explanation, FlowSpec, StepMark, explain},
    },
    kernel::why::{Flags, WhyError, gather},
};

/// Runs `why`; fails quietly if the flow is unknown.
pub(super) fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let flow = FlowSpec::parse(&args.protocol, &args.source, &args.destination)?;
    let (text, found) = runtime()?.block_on(show(args, &flow))?;
    print(&text)?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `why -o json` prints. Fields are only ever added.
#[derive(Serialize)]
struct Record<'a> {
    /// As it was asked for.
    asked: Tuple,
    /// As packets of the original and the reply direction come in; null for a flow that conntrack doesn't know.
    original: Option<Tuple>,
    reply: Option<Tuple>,
    /// Packets that came while watching, and those of them that took the normal path.
    moved: u64,
    slow: u64,
    /// Packets that have bypassed the forward path so far, at least; null while the flow isn't in a flowtable.
    bypassed: Option<u64>,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

/// A flow's story, and whether the flow was found.
pub async fn show(args: &WhyArgs, spec: &FlowSpec) -> Result<(String, bool), WhyError> {
    let agent = running_config();
    let flags = agent.as_ref().map(|config| Flags {
        selection: &config.rules.selection,
        exclusions: &config.rules.exclusions,
        ignored: &config.rules.ignored,
    });
    let facts = gather(spec, &args.pin_path, flags).await?;
    let explanation = explain(&facts);
    let found = explanation.verdict.accelerated != Accelerated::NotFound;
    let text = match args.output {
        Output::Text => text(&facts.asked, &explanation),
        Output::Json => {
            let record = Record {
                asked: facts.asked,
                original: facts.entry.as_ref().map(|entry| entry.original),
                reply: facts.entry.as_ref().map(|entry| entry.reply),
                moved: facts.moved(),
                slow: facts.slow_moved(),
                bypassed: facts.offloaded().then(|| facts.bypassed()),
                explanation: &explanation,
            };
            serde_json::to_string_pretty(&record).unwrap_or_default() + "\n"
        }
    };
    Ok((text, found))
}

fn text(asked: &Tuple, explanation: &Explanation) -> String {
    let mut text = format!("{asked}\n\n");
    for step in &explanation.steps {
        let mark = match step.ok {
            StepMark::Ok => "ok",
            StepMark::NotOk => "NOT OK",
            StepMark::Unknown => "?",
        };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{mark:>6}  {:<9}  {}", step.step.name(), step.text);
    }
    let _ = writeln!(text, "\n{}", explanation.verdict.text);
    if let Some(remedy) = &explanation.verdict.remedy {
        let _ = writeln!(text, "remedy: {remedy}");
    }
    text
}
