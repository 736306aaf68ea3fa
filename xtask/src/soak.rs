//! `cargo xtask test --tier=soak`: one guest lives for minutes, and what the agent took meanwhile is written down and drawn. What
//! happens there and what must hold is in `tests/src/soak`.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde_json::json;

use crate::{
    build::Binaries,
    draw::{SERIES, svg},
    guest::{
        assemble,
        initramfs::Archive,
        kernels::{self, Wanted},
        new_log, own_directory,
        qemu::{Machine, Processor},
        verdict::End,
    },
    workspace,
};

/// Where the samples are, below `target`.
const DIRECTORY: &str = "soak";
/// The drawing of the last saved run.
const DRAWING: &str = "docs/soak.svg";
/// What the last things may take after the time is over.
const GRACE: Duration = Duration::from_secs(120);

/// The options of this tier that other tiers have too.
pub(crate) struct Asked {
    pub(crate) minutes: u64,
    pub(crate) seed: Option<u64>,
    /// Whether to draw it for the documents.
    pub(crate) save: bool,
}

/// A line of the table.
struct Sample {
    minute: f64,
    agent: u32,
    resident_mib: f64,
    descriptors: f64,
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',');
        let mut next = || fields.next()?.parse::<f64>().ok();
        let (second, agent, memory_kib, descriptors) = (next()?, next()?, next()?, next()?);
        Some(Self {
            minute: second / 60.0,
            agent: agent as u32,
            resident_mib: memory_kib / 1024.0,
            descriptors,
        })
    }
}

pub(crate) fn run(asked: &Asked, wanted: &Wanted, binaries: &Binaries) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let seed = asked.seed.unwrap_or(now);
    let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
    let own = own_directory(&kernel)?;
    let initramfs = assemble(&kernel, &own.0, binaries, Archive::default())?;
    let log = new_log(&format!("{}-soak.log", kernel.name))?;
    // Its clock stops while it has no processor of this machine's, so nothing is late because this one is busy.
    let machine = Machine::new(&kernel, &initramfs, log, Processor::Counted { seed: 1 });
    println!("soak: {} minutes of the guest's, Linux {}, seed {seed}", asked.minutes, kernel.name);
    let lasts = Duration::from_secs(asked.minutes * 60);
    let words = format!("/usr/bin/soak {seed} {}", lasts.as_secs());
    let mut lines: Vec<String> = Vec::new();
    let end = machine.boot()?.run(&words, lasts + GRACE, |line| lines.push(line.to_owned()));
    let table: Vec<&String> = lines.iter().filter(|line| line.contains(',') && !line.contains(' ')).collect();
    let path = workspace::target().join(DIRECTORY).join(format!("{}.csv", kernel.name));
    fs::create_dir_all(workspace::target().join(DIRECTORY)).context("cannot make a directory")?;
    let text: String = table.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, text)?;
    println!("samples: {}", path.display());
    // A kernel that warns ends the guest.
    match end {
        Ok((End::Exit(0), _)) => {}
        other => {
            lines.iter().filter(|line| line.contains(' ')).for_each(|line| println!("    {line}"));
            let reason = other.map_or_else(|broken| broken, |(end, _)| end.to_string());
            bail!("FAILED  {} soak, seed {seed}: {reason}", kernel.name);
        }
    }
    println!("ok      {} soak: {}", kernel.name, lines.last().map_or("", String::as_str));
    if asked.save {
        let samples: Vec<Sample> = table.iter().filter_map(|line| Sample::parse(line)).collect();
        let title = format!("{} minutes, Linux {}, seed {seed}", asked.minutes, kernel.name);
        draw(&samples, &title, &workspace::root().join(DRAWING))?;
        println!("drawn: {DRAWING}");
    }
    Ok(())
}

/// Memory and descriptors over time, a curve for each agent.
fn draw(samples: &[Sample], title: &str, path: &Path) -> Result<()> {
    let last = samples.last().context("there are no samples")?.agent;
    let values: Vec<_> = samples
        .iter()
        .map(|sample| {
            json!({
                "minute": sample.minute,
                "agent": sample.agent,
                "stays": sample.agent == last,
                "memory": sample.resident_mib,
                "descriptors": sample.descriptors,
            })
        })
        .collect();
    let panels = [("memory", "memory of its own (RssAnon), MiB"), ("descriptors", "its descriptors")];
    let panels = panels.map(|(field, name)| {
        json!({
            "title": { "text": name, "fontSize": 14 },
            "width": 800,
            "height": 160,
            "mark": "line",
            "encoding": {
                "x": { "field": "minute", "type": "quantitative", "axis": { "title": null, "grid": false } },
                "y": { "field": field, "type": "quantitative", "axis": { "title": null, "tickCount": 4 } },
                "detail": { "field": "agent" },
                "color": {
                    "field": "stays",
                    "scale": { "domain": [true, false], "range": [SERIES[0], SERIES[2]] },
                    "legend": null,
                },
            },
        })
    });
    let title = json!({
        "text": "What the agent takes while pods, connections and rules come and go",
        "subtitle": format!("{title}; by minutes, grey where agents were restarted"),
        "offset": 16,
    });
    svg(json!({ "title": title, "data": { "values": values }, "vconcat": panels }), path)
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn samples_are_told_from_the_heading() {
        let sample = Sample::parse("90.0,2,10240,31,500").expect("a sample");
        assert_eq!(
            (sample.minute, sample.agent, sample.resident_mib, sample.descriptors),
            (1.5, 2, 10.0, 31.0)
        );
        assert!(Sample::parse("second,agent,memory_kib,descriptors,connections").is_none());
    }
}
