//! `flows --follow`: prints the running agent's records of flows that cross the threshold, as they come.

use std::{
    io::{self, BufRead, BufReader, BufWriter, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::runtime::Runtime;

use crate::{
    cli::{FlowsArgs, FlowsOutput},
    commands::flow_writer::{ShowError, filter},
    core::{
        flow::record::{Event, FlowRecord},
        names::{Names, NamesFrom},
    },
    kernel::{event_socket, links::Links, names},
};

/// Pods come and go, and addresses get other owners: names are no older than this.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// Names, as they are known now.
struct Known {
    from: NamesFrom,
    runtime: Runtime,
    at: Instant,
    names: Names,
}

impl Known {
    /// Asks, and says in a line each which of the runtimes couldn't be asked.
    fn new(from: NamesFrom, runtime: Runtime) -> Self {
        let (names, errors) = runtime.block_on(ask(from));
        for error in errors {
            eprintln!("{error}");
        }
        Self { from, runtime, at: Instant::now(), names }
    }

    /// Adds the names of both ends; says whether there are any.
    fn name(&mut self, flow: &mut FlowRecord) -> bool {
        let (client, server) =
            (flow.original.source, flow.reply.map_or(flow.original.destination, |reply| reply.source));
        if self.at.elapsed() > ASKED_AGAIN {
            self.names = self.runtime.block_on(ask(self.from)).0;
            self.at = Instant::now();
        }
        let name = |address| self.names.of(address).map(str::to_owned);
        (flow.client, flow.server) = (name(client), name(server));
        flow.client.is_some() || flow.server.is_some()
    }
}

async fn ask(from: NamesFrom) -> (Names, Vec<names::NamesError>) {
    let (names, errors) = names::read(from).await;
    let node = Links::open().and_then(|mut links| links.addresses());
    (names.without(&node.unwrap_or_default()), errors)
}

/// Follows until the agent ends, or `--limit` is reached.
pub fn follow(args: &FlowsArgs, runtime: Runtime, out: &mut dyn Write) -> Result<(), ShowError> {
    let mut out = BufWriter::new(out);
    let mut lines = BufReader::new(event_socket::connect(&args.run_dir)?);
    let mut known = Known::new(args.names, runtime);
    let filter = filter(args, &known.names)?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    if args.output.is_for_people() {
        write_line(&mut out, HEAD)?;
        out.flush()?;
    }
    let mut line = String::new();
    while left > 0 {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            eprintln!("the agent has ended");
            return Ok(());
        }
        // A record of a later version that this one doesn't know.
        let Ok(mut event) = serde_json::from_str::<Event>(&line) else { continue };
        let mut named = false;
        if let Event::Crossed { flow, .. } = &mut event {
            if !filter.matches_record(flow) {
                continue;
            }
            named = known.name(flow);
            left -= 1;
        }
        match (args.output, event) {
            (FlowsOutput::Json | FlowsOutput::Ndjson, event) if named => {
                serde_json::to_writer(&mut out, &event).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
            (FlowsOutput::Json | FlowsOutput::Ndjson, _) => out.write_all(line.as_bytes())?,
            (_, Event::Crossed { time_ms, flow }) => write_flow(&mut out, time_ms, &flow, &known.names)?,
            (_, Event::Lost { records }) => {
                eprintln!("{records} flows are missing here: they came too fast to show");
            }
        }
        // All that came together is shown together.
        if lines.buffer().is_empty() {
            out.flush()?;
        }
    }
    Ok(out.flush()?)
}

const HEAD: [&str; 7] = ["TIME", "STATE", "PROTO", "SOURCE > DESTINATION", "PACKETS", "IN", "WHY"];

fn write_flow(out: &mut dyn Write, time_ms: u64, flow: &FlowRecord, names: &Names) -> io::Result<()> {
    let (ends, _) = names.ends(&flow.original, flow.reply.as_ref());
    let ends = ends.split_once(' ').map_or(ends.as_str(), |(_, ends)| ends);
    let packets: u64 = flow.ingress.iter().flatten().map(|counted| counted.packets).sum();
    let why = flow.state.cause().map(ToString::to_string).unwrap_or_default();
    let time = clock(UNIX_EPOCH + Duration::from_millis(time_ms));
    let (packets, interfaces) = (packets.to_string(), flow.interfaces.join(","));
    write_line(out, [&time, flow.state.name(), &flow.protocol, ends, &packets, &interfaces, &why])
}

fn write_line(out: &mut dyn Write, columns: [&str; 7]) -> io::Result<()> {
    let [time, state, protocol, ends, packets, interfaces, why] = columns;
    let line =
        format!("{time:<12}  {state:<15}  {protocol:<5}  {ends:<47}  {packets:>8}  {interfaces:<15}  {why}");
    writeln!(out, "{}", line.trim_end())
}

/// Time of day, UTC.
fn clock(time: SystemTime) -> String {
    let ms = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() % 86_400_000;
    let (seconds, ms) = (ms / 1000, ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        flow::{
            connection::{Tuple, UDP},
            path::Path,
        },
        why_not::WhyNot,
    };

    fn flow() -> FlowRecord {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.2.0.2".parse().unwrap(),
            protocol: UDP,
            source_port: 40000,
            destination_port: 443,
        };
        FlowRecord {
            protocol: "udp".to_owned(),
            original: tuple,
            reply: None,
            state: crate::core::flow::State::not(WhyNot::OneWay),
            client: None,
            server: None,
            group: None,
            todo: None,
            interfaces: vec!["c0".to_owned()],
            ingress: [None; 2],
            conntrack: None,
            path: Path::default(),
            rate: None,
        }
    }

    #[test]
    fn an_address_loses_the_name_of_a_pod_that_has_gone() {
        let mut flow = flow();
        let mut names = Names::default();
        names.add(flow.original.source, "shop/web-0");
        names.add(flow.original.destination, "shop/db-0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut known = Known { from: NamesFrom::Off, runtime, at: Instant::now(), names };
        assert!(known.name(&mut flow), "just asked");
        assert_eq!(flow.client.as_deref(), Some("shop/web-0"));
        known.at -= ASKED_AGAIN * 2;
        assert!(!known.name(&mut flow), "asked again: it has no owner now");
        assert_eq!(flow.client, None);
    }

    #[test]
    fn a_flow_is_a_line() {
        let flow = flow();
        let mut names = Names::default();
        names.add(flow.original.source, "shop/web-0");
        let mut out = Vec::new();
        write_flow(&mut out, 86_400_000 + 3_723_004, &flow, &names).unwrap();
        let line = String::from_utf8(out).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let expected =
            ["01:02:03.004", "stalled", "udp", "shop/web-0:40000", ">", "10.2.0.2:443", "0", "c0", "one"];
        assert_eq!(words[..expected.len()], expected, "{line}");
    }
}
