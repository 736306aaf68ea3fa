//! `flows`: reads, filters, sorts and writes; once or again and again.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::Duration,
};

use super::flow_writer::{Json, Table, Writer};
use crate::{
    cli::{FlowsArgs, Output},
    commands::{
        flow_writer::{ShowError, filter},
        running, runtime,
    },
    core::flow::{
        Flow, Node,
        best::Best,
        filter::{Filter, Sort},
    },
    kernel::flows::{self},
};

/// Runs `flows`.
pub(super) fn run(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let shown = if args.follow {
        super::follow::follow(args, &mut out)
    } else {
        runtime()?.block_on(show(args, &mut out))
    };
    match shown {
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
    let Some(seconds) = args.watch else { return show_once(args, out, "").await };
    let before = if args.output == Output::Text { CLEAR } else { "" };
    loop {
        show_once(args, out, before).await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn show_once(args: &FlowsArgs, out: &mut dyn Write, before: &str) -> Result<(), ShowError> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    // Written with the first flows, so that the screen isn't empty while they are read.
    write!(out, "{before}")?;
    let mut writer: Box<dyn Writer> = match args.output {
        Output::Text => Box::new(Table::default()),
        Output::Json => Box::new(Json::default()),
    };
    let node = running::node(&args.pin_path).await?;
    writer.begin(&mut out)?;
    let mut shown =
        Shown { node: &node, filter: filter(args), limit: args.limit.unwrap_or(usize::MAX), count: 0 };
    match args.sort {
        None => shown.stream(args, &mut *writer, &mut out)?,
        Some(sort) => shown.sorted(args, sort, &mut *writer, &mut out)?,
    }
    writer.end(&mut out)?;
    out.flush()?;
    Ok(())
}

struct Shown<'a> {
    node: &'a Node,
    filter: Filter,
    limit: usize,
    count: usize,
}

impl Shown<'_> {
    fn stream(
        &mut self,
        args: &FlowsArgs,
        writer: &mut dyn Writer,
        out: &mut dyn Write,
    ) -> Result<(), ShowError> {
        let mut failed = Ok(());
        flows::for_each(&args.pin_path, self.node, |flow| {
            if failed.is_ok() && self.count < self.limit && self.filter.matches(&flow, self.node) {
                self.count += 1;
                failed = writer.flow(out, &flow, self.node);
            }
        })?;
        Ok(failed?)
    }

    fn sorted(
        &mut self,
        args: &FlowsArgs,
        sort: Sort,
        writer: &mut dyn Writer,
        out: &mut dyn Write,
    ) -> Result<(), ShowError> {
        let mut found = Best::new(self.limit, |a: &Flow, b: &Flow| sort.compare(a, b));
        flows::for_each(&args.pin_path, self.node, |flow| {
            if self.filter.matches(&flow, self.node) {
                found.push(flow);
            }
        })?;
        for flow in found.into_sorted() {
            writer.flow(out, &flow, self.node)?;
        }
        Ok(())
    }
}
