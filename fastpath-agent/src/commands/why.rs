//! `why`: one flow's story, for people or for programs.

use std::{fmt::Write, process::ExitCode};

use serde::Serialize;

use super::{
    flow_writer::{Json, Table, Writer},
    running::running_config,
};
use crate::{
    cli::{Output, WhyArgs},
    commands::{print, runtime},
    core::{
        flow::{Flow, best::Best, connection::Tuple},
        why::{Accelerated, Explanation, FlowQuery, FlowSpec, StepMark, explain},
    },
    kernel::{
        flows,
        why::{Flags, WhyError, gather},
    },
};

/// Runs `why`; fails quietly if the flow is unknown.
pub(super) fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let flow = if args.top {
        runtime.block_on(choose(args, could_be_fast))?
    } else {
        match FlowQuery::parse(&args.words)? {
            FlowQuery::Exact(flow) => Some(flow),
            FlowQuery::Partial(partial) => runtime.block_on(choose(args, |flow| partial.admits(flow)))?,
        }
    };
    let Some(flow) = flow else { return Ok(ExitCode::FAILURE) };
    let (text, found) = runtime.block_on(show(args, &flow))?;
    print(&text)?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Flows that are listed if several match.
const LISTED: usize = 20;

fn could_be_fast(flow: &Flow) -> bool {
    flow.slow() || flow.state.why_not().is_some_and(|why| !why.is_for_good())
}

/// As counted at ingress, or as conntrack counts them where nothing watches.
fn packets(flow: &Flow) -> u64 {
    let counters = flow.entry.as_ref().and_then(|entry| entry.counters);
    let counted = counters.map_or(0, |counters| counters.iter().map(|counter| counter.packets).sum());
    flow.packets().max(counted)
}

/// The one connection that is meant. Otherwise it has listed those that may be, or said that there is none.
async fn choose(args: &WhyArgs, is_meant: impl Fn(&Flow) -> bool) -> anyhow::Result<Option<FlowSpec>> {
    let node = flows::node(&args.pin_path).await?;
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
    let mut writer: Box<dyn Writer> = match args.output {
        Output::Text => Box::new(Table::default()),
        Output::Json => Box::new(Json::default()),
    };
    let mut listed = Vec::new();
    writer.begin(&mut listed)?;
    for flow in &best {
        writer.flow(&mut listed, flow, &node)?;
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

/// A flow's story, and whether the flow was found.
pub async fn show(args: &WhyArgs, spec: &FlowSpec) -> Result<(String, bool), WhyError> {
    let agent = running_config();
    let flags = agent.as_ref().map(|config| Flags {
        selection: &config.rules.selection,
        exclusions: &config.rules.exclusions,
        ignored: &config.rules.ignored,
        confined: false,
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
