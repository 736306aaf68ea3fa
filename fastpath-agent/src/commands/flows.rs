//! `flows`: reads, filters, sorts and writes; once or again and again.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::Duration,
};

use crate::{
    cli::FlowsArgs,
    commands::{
        flow_writer::{ShowError, Writer, filter},
        names, running, runtime,
    },
    core::flow::{
        Flow,
        best::Best,
        rates::{MAX_REMEMBERED, Rates, Row},
    },
    kernel::flows::{self},
};

/// Runs `flows`.
pub(super) fn run(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let runtime = runtime()?;
    let shown = if args.follow {
        super::follow::follow(args, runtime, &mut out)
    } else {
        runtime.block_on(show(args, &mut out))
    };
    match shown {
        // An error of the user's, not of the program's.
        Err(ShowError::Wanted(bad)) => Err(bad.into()),
        Err(ShowError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        shown => Ok(shown.map(|()| ExitCode::SUCCESS)?),
    }
}

/// Back to the top left corner of a terminal, and clear what is below (ECMA-48 CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// A hundred flows as JSON are 50 KB.
const BUFFER_BYTES: usize = 64 * 1024;

/// Shows flows as `args` ask for.
pub async fn show(args: &FlowsArgs, out: &mut dyn Write) -> Result<(), ShowError> {
    let mut rates = Rates::new(MAX_REMEMBERED);
    let Some(seconds) = args.watch else { return show_once(args, &mut rates, out, "").await };
    let before = if args.output.is_for_people() { CLEAR } else { "" };
    loop {
        show_once(args, &mut rates, out, before).await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn show_once(
    args: &FlowsArgs,
    rates: &mut Rates,
    out: &mut dyn Write,
    before: &str,
) -> Result<(), ShowError> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    // Written with the first flows, so that the screen isn't empty while they are read.
    write!(out, "{before}")?;
    let node = running::node(&args.pin_path).await?;
    let names = names::read(args.names, &node).await;
    let filter = filter(args, &names)?;
    let mut writer = Writer::new(args.output, &args.columns, args.raw, args.watch.is_some(), names);
    writer.begin(&mut out)?;
    // Nothing is remembered for a second reading that doesn't come.
    let mut reading = args.watch.is_some().then(|| rates.begin(node.now_ns));
    let mut rate = |flow: &Flow| reading.as_mut().and_then(|reading| reading.rate(flow));
    let limit = args.limit.unwrap_or(usize::MAX);
    match args.sort {
        None => {
            let (mut written, mut shown) = (Ok(()), 0);
            flows::for_each(&args.pin_path, &node, |flow| {
                let rate = rate(&flow);
                if written.is_ok() && shown < limit && filter.matches(&flow, &node) {
                    shown += 1;
                    written = writer.flow(&mut out, &flow, &node, rate);
                }
            })?;
            written?;
        }
        Some(sort) => {
            let mut found = Best::new(limit, |a: &Row, b: &Row| sort.compare(a, b));
            flows::for_each(&args.pin_path, &node, |flow| {
                let rate = rate(&flow);
                if filter.matches(&flow, &node) {
                    found.push(Row { flow, rate });
                }
            })?;
            for Row { flow, rate } in found.into_sorted() {
                writer.flow(&mut out, &flow, &node, rate)?;
            }
        }
    }
    if let Some(reading) = reading {
        reading.end();
    }
    writer.end(&mut out)?;
    Ok(out.flush()?)
}
