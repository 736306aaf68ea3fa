//! `why`: one flow's story, for people or for programs.

use std::{fmt::Write, path::Path, process::ExitCode};

use serde::Serialize;

use super::{
    flow_writer::Writer,
    running::{self, running_config},
};
use crate::{
    cli::{FlowsOutput, Output, WhyArgs},
    commands::{names, print, runtime},
    core::{
        flow::{Flow, best::Best, connection::Tuple, expression::Expression, group::Group},
        why::{Accelerated, BadFlow, Explanation, FlowFacts, FlowSpec, StepMark, explain},
    },
    kernel::{
        flows::{self, FlowsError},
        why::gather,
    },
};

/// Runs `why`; fails quietly if the flow is unknown.
pub(super) fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let flow = if args.top {
        runtime.block_on(choose(args))?
    } else {
        match exact(&args.words)? {
            Some(flow) => Some(flow),
            None => runtime.block_on(choose(args))?,
        }
    };
    let Some(flow) = flow else { return Ok(ExitCode::FAILURE) };
    let (text, found) = runtime.block_on(show(args, &flow))?;
    print(&text)?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Flows that are listed if several match.
const LISTED: usize = 20;

/// One of a flow's tuples in full.
fn exact(words: &[String]) -> Result<Option<FlowSpec>, BadFlow> {
    let [protocol, source, destination] = words else { return Ok(None) };
    match FlowSpec::parse(protocol, source, destination) {
        Err(error @ BadFlow::Families(..)) => Err(error),
        other => Ok(other.ok()),
    }
}

fn could_be_fast(flow: &Flow) -> bool {
    flow.group() == Group::CouldBeFast
}

/// As counted at ingress, or as conntrack counts them where nothing watches.
fn packets(flow: &Flow) -> u64 {
    let counters = flow.entry.as_ref().and_then(|entry| entry.counters);
    let counted = counters.map_or(0, |counters| counters.iter().map(|counter| counter.packets).sum());
    flow.packets().max(counted)
}

/// The one connection that is meant. Otherwise it has listed those that may be, or said that there is none.
async fn choose(args: &WhyArgs) -> anyhow::Result<Option<FlowSpec>> {
    let node = running::node(&args.pin_path).await?;
    let names = names::read(args.names, &node).await;
    let pod = args.pod.iter().flat_map(|pod| ["pod", pod]).map(str::to_owned);
    let expression = Expression::parse(&args.words.iter().cloned().chain(pod).collect::<Vec<_>>(), &names)?;
    let is_meant =
        |flow: &Flow| if args.top { could_be_fast(flow) } else { expression.holds(&flow.subject(&node)) };
    let mut matching = 0;
    let mut best = Best::new(LISTED, |a: &Flow, b: &Flow| packets(b).cmp(&packets(a)));
    flows::for_each(&args.pin_path, &node, |flow| {
        if flow.entry.is_some() && is_meant(&flow) {
            matching += 1;
            best.push(flow);
        }
    })?;
    let best = best.into_sorted();
    if let [flow, ..] = best.as_slice()
        && (matching == 1 || args.top)
    {
        return Ok(Some(FlowSpec { tuple: flow.original }));
    }
    if best.is_empty() {
        let none = if args.top { "no flow is slow that could be fast" } else { "no connection matches" };
        eprintln!("{none}; `fastpath-agent flows` lists all");
        return Ok(None);
    }
    let output = if args.output == Output::Json { FlowsOutput::Json } else { FlowsOutput::Text };
    let mut writer = Writer::new(output, &[], false, false, names);
    let mut listed = Vec::new();
    writer.begin(&mut listed)?;
    for flow in &best {
        writer.flow(&mut listed, flow, &node, None)?;
    }
    writer.end(&mut listed)?;
    print(&String::from_utf8_lossy(&listed))?;
    let shown = if matching > best.len() { format!(", {} of them shown", best.len()) } else { String::new() };
    eprintln!("{matching} flows match{shown}: name one by more of its ends");
    Ok(None)
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

/// A flow's story as text, or why it can't be told.
pub(super) async fn story(pin_path: &Path, flow: FlowSpec) -> String {
    match look(pin_path, &flow).await {
        Ok((facts, explanation)) => text(&facts.asked, &explanation),
        Err(error) => error.to_string(),
    }
}

async fn look(pin_path: &Path, flow: &FlowSpec) -> Result<(FlowFacts, Explanation), FlowsError> {
    let agent = running_config();
    let facts = gather(flow, pin_path, agent.as_ref().map(running::told)).await?;
    let explanation = explain(&facts);
    Ok((facts, explanation))
}

/// A flow's story, and whether the flow was found.
pub async fn show(args: &WhyArgs, spec: &FlowSpec) -> Result<(String, bool), FlowsError> {
    let (facts, explanation) = look(&args.pin_path, spec).await?;
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
