//! `cargo xtask test --tier=soak`: one guest lives for minutes, and what the agent took meanwhile is written down and drawn. What
//! happens there and what must hold is in `tests/src/soak`.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use plotters::{prelude::*, style::text_anchor::HPos};

use crate::{
    build::Binaries,
    draw::{FAINT, SERIES, step, svg, write},
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
    fn resident_mib(&self) -> f64 {
        self.resident_mib
    }

    fn descriptors(&self) -> f64 {
        self.descriptors
    }

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

const WIDTH: i32 = 900;
const LEFT: i32 = 60;
const RIGHT: i32 = 20;
const PANEL: i32 = 160;
const TOP: i32 = 84;

/// Memory and descriptors over time, a colour for each agent.
fn draw(samples: &[Sample], title: &str, path: &Path) -> Result<()> {
    let last = samples.last().context("there are no samples")?.minute;
    let height = TOP + 2 * (PANEL + 50);
    let x = |minute: f64| LEFT + (minute / last * f64::from(WIDTH - LEFT - RIGHT)) as i32;
    let panels = [
        ("memory of its own (RssAnon), MiB", Sample::resident_mib as fn(&Sample) -> f64),
        ("its descriptors", Sample::descriptors),
    ];
    svg(path, (WIDTH, height), |root| {
        let heading = "What the agent takes while pods, connections and rules come and go";
        write(root, heading, (20, 16), 20, HPos::Left)?;
        let title = format!("{title}; by minutes, grey where agents were restarted");
        write(root, &title, (20, 46), 14, HPos::Left)?;
        for (place, (name, value)) in panels.into_iter().enumerate() {
            let bottom = TOP + 20 + PANEL + place as i32 * (PANEL + 50);
            let most = samples.iter().map(value).fold(0.0, f64::max) * 1.1;
            let y = |value: f64| bottom - (value / most * f64::from(PANEL)) as i32;
            write(root, name, (LEFT, bottom - PANEL - 20), 14, HPos::Left)?;
            let mut mark = 0.0;
            while mark <= most {
                root.draw(&PathElement::new([(LEFT, y(mark)), (WIDTH - RIGHT, y(mark))], FAINT))?;
                write(root, &format!("{mark}"), (LEFT - 8, y(mark) - 7), 12, HPos::Right)?;
                mark += step(most, 4);
            }
            let mut mark = 0.0;
            while mark <= last {
                write(root, &format!("{mark}"), (x(mark), bottom + 6), 12, HPos::Center)?;
                mark += step(last, 10);
            }
            for agent in samples.chunk_by(|one, next| one.agent == next.agent) {
                let stays = agent.last().map(|sample| sample.minute) == Some(last);
                let colour = if stays { SERIES[0] } else { SERIES[2] };
                let points: Vec<_> =
                    agent.iter().map(|sample| (x(sample.minute), y(value(sample)))).collect();
                root.draw(&PathElement::new(points, colour.stroke_width(2)))?;
            }
        }
        Ok(())
    })
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
