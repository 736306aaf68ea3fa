//! `cargo xtask test --tier=field`: the agent beside real software, on a Debian system with systemd and Debian's full kernels. What a
//! trial does is in tests/src/field; here is how the guest comes about, and which trials it runs.

use std::{io, process::Command, thread, time::Duration};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::{
    arch::Arch,
    build::Binaries,
    guest::{
        cards, debian, directory,
        initramfs::Archive,
        kernels::{self, Wanted},
        new_log,
        qemu::{Guest, Machine, Processor},
        systemd::{self, Files},
        verdict::{self, End, Verdict},
    },
    image, package, process,
    tally::Counts,
};

/// For one trial, which starts its software three times.
const LIMIT: Duration = Duration::from_secs(1200);

/// Docker, Suricata and libvirt in one system, one after the other.
const MEMORY_MIB: u32 = 3072;

/// The trial of the image for two processors.
const IMAGE: &str = "image";

/// What makes the disk the system's root. The kernel's modules stay where the kernel unpacked them.
const INIT: &str = "#!/bin/bash
set -e
export PATH=/usr/sbin:/usr/bin
mkdir -p /proc /sys /dev /system
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
modprobe -a virtio_pci virtio_blk ext4
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o noatime,noinit_itable /dev/vda /system
cp -a /over/. /system/
mkdir -p /system/job /system/usr/lib/modules
mount --bind /job /system/job
mount --bind /usr/lib/modules /system/usr/lib/modules
for name in dev sys proc; do mount -n --move /$name /system/$name; done
cd /system
mount -n --move . /
exec chroot . /";

/// What a guest has beyond the usual.
#[derive(Clone, Copy, PartialEq)]
struct Boot {
    cards: bool,
    cpus: u32,
}

/// The trial that is run on few processors and on many.
const PROCESSORS: (&str, [u32; 2]) = ("processors", [2, 64]);
/// How many times of what it measures on few it may measure on many.
const MOST_GROWTH: f64 = 2.0;

/// The guests in which a trial is run. While the clock counts instructions Linux 6.1 doesn't boot with several processors, and on
/// 6.12 an idle one may not be woken for seconds, so that nothing that waits for RCU gets on.
fn boots(trial: &str, kernel: &str) -> Vec<Boot> {
    let has_several = !kernel.starts_with("6.1-");
    let cards = cards::are_tried_by(trial);
    let cpus = match trial {
        _ if trial == PROCESSORS.0 && has_several => &PROCESSORS.1[..],
        _ if trial == PROCESSORS.0 => &[],
        _ => &[1],
    };
    cpus.iter().map(|cpus| Boot { cards, cpus: *cpus }).collect()
}

/// What a trial has measured: `measured NAME NUMBER`.
fn measured(line: &str) -> Option<(String, f64)> {
    let (name, number) = line.strip_prefix("measured ")?.split_once(' ')?;
    Some((name.to_owned(), number.parse().ok()?))
}

/// What grew too much from one guest to the next.
fn growth(before: &[(String, f64)], after: &[(String, f64)]) -> Option<String> {
    let pairs = before.iter().zip(after).map(|((name, before), (_, after))| (name, before, after));
    let grown = pairs.filter(|(_, before, after)| **after > **before * MOST_GROWTH);
    let grown: Vec<_> =
        grown.map(|(name, before, after)| format!("{name}: {before}, then {after}")).collect();
    (!grown.is_empty()).then(|| grown.join("; "))
}

/// Which trials are run.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    /// What fits in four minutes, on one kernel: what runs if no tier is named.
    Usual,
    /// Those that have this in their names, on all kernels that are wanted.
    Named(&'a str),
}

/// The usual trials, and their kernel.
const USUAL: ([&str; 2], &str) = (["docker", "cni"], "6.12");

impl Part<'_> {
    /// The kernels of these names with all their drivers: `6.12-full` for `6.12`.
    pub(crate) fn kernels(self, wanted: &[Wanted]) -> Result<Vec<Wanted>> {
        let full =
            |name: &str| if name.ends_with("-full") { name.to_owned() } else { format!("{name}-full") };
        let names = wanted.iter().map(|kernel| full(&kernel.name));
        let is_in = |name: &String| matches!(self, Self::Named(_)) || *name == full(USUAL.1);
        match names.filter(is_in).collect::<Vec<_>>() {
            none if none.is_empty() => Ok(Vec::new()),
            names => kernels::wanted(&names),
        }
    }

    fn has(self, trial: &str) -> bool {
        match self {
            Self::Usual => USUAL.0.contains(&trial),
            Self::Named(filter) => filter.split(',').any(|part| trial.contains(part)),
        }
    }
}

/// Runs these trials, on each kernel one after the other in one boot.
pub(crate) fn run(wanted: &[Wanted], binaries: &Binaries, part: Part<'_>, kvm: bool) -> Result<Counts> {
    let list = process::output(Command::new(&binaries["field"]).arg("--list"))?;
    let trials: Vec<_> = list.lines().filter(|name| part.has(name)).collect();
    if matches!(part, Part::Usual) && trials.len() != USUAL.0.len() {
        bail!("of the trials {} there are only {}", USUAL.0.join(", "), trials.join(", "));
    }
    let agent = &binaries["fastpath-agent"];
    let package = package::build(agent, Arch::default(), "guest", 1, &package::directory().join("guest"))?;
    package::check(std::slice::from_ref(&package))?;
    let mut files = vec![("field", binaries["field"].clone()), ("fastpath-agent.deb", package)];
    if trials.contains(&IMAGE) {
        files.push(("image.tar", image::for_two(agent)?));
    }
    let results: Vec<_> = thread::scope(|scope| {
        let run = |kernel| {
            let (files, trials) = (&files, &trials);
            scope.spawn(move || run_on(kernel, files, trials, kvm))
        };
        let guests: Vec<_> = wanted.iter().map(run).collect();
        guests.into_iter().map(|guest| guest.join()).collect()
    });
    let mut counts = Counts::default();
    for result in results {
        counts.add(&result.unwrap_or_else(|payload| std::panic::resume_unwind(payload))?);
    }
    Ok(counts)
}

fn run_on(wanted: &Wanted, files: &Files, trials: &[&str], kvm: bool) -> Result<Counts> {
    let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
    let mut extra = Archive::default();
    extra.text("init", format!("{INIT}{}\n", systemd::INIT));
    // Laid over the disk's files.
    extra.text("over/etc/modprobe.d/cards.conf", cards::NOT_BY_THEMSELVES);
    systemd::add(&mut extra, "over/");
    let initramfs = systemd::file_system(&kernel, "field", None, extra, files)?;
    let disk = debian::FIELD.cached()?.context("set-up has made the system")?;
    // The guest's clock goes on, by minutes, while it waits for this machine's disk: what it reads has to be in memory.
    let mut whole = fs::File::open(&disk)?;
    io::copy(&mut whole, &mut io::sink())?;
    let log = new_log(&format!("{}-field.log", kernel.name))?;
    let monitor = directory().join(format!("{}-field.monitor", kernel.name));
    let machine = |boot: Boot| Machine {
        cpus: boot.cpus,
        memory_mib: MEMORY_MIB,
        disk: Some(&disk),
        cards: boot.cards,
        monitor: boot.cards.then(|| monitor.clone()),
        // Its clock stops while it has no processor of this machine's: no trial fails because this one is busy.
        ..Machine::new(
            &kernel,
            &initramfs,
            log.clone(),
            if kvm { Processor::Kvm } else { Processor::Counted { seed: 1 } },
        )
    };
    let mut counts = Counts::default();
    let mut idle: Option<(Boot, Guest)> = None;
    let mut before: Vec<(String, f64)> = Vec::new();
    for (trial, boot) in
        trials.iter().flat_map(|trial| boots(trial, &kernel.name).into_iter().map(move |boot| (trial, boot)))
    {
        let mut guest = match idle.take() {
            Some((same, guest)) if same == boot => guest,
            _ => {
                let guest = machine(boot).boot()?;
                println!(
                    "field {}: systemd is up after {:.1} s",
                    kernel.name,
                    guest.booted_in().as_secs_f64()
                );
                guest
            }
        };
        let mut after = Vec::new();
        let began = std::time::Instant::now();
        let end = guest.run(&format!("/job/field {trial}"), LIMIT, |line| {
            println!("  {} {trial}: {line}", kernel.name);
            after.extend(measured(line));
        });
        let grown = growth(&before, &after);
        before = after;
        let verdict = match end {
            Ok((End::Exit(0), _)) => grown.map_or(Verdict::Passed, Verdict::Failed),
            Ok((end, _)) => Verdict::Failed(end.to_string()),
            Err(broken) => Verdict::Failed(broken),
        };
        counts.count(&verdict);
        let none = std::iter::empty(); // it was printed as it came
        print!(
            "{}",
            verdict::shown(&verdict, &kernel.name, &format!("field {trial}"), began.elapsed(), none)
        );
        match verdict {
            Verdict::Passed => idle = Some((boot, guest)),
            // What a failed trial leaves behind is no other trial's matter.
            _ => println!("  guest's log: {}", log.display()),
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_part_has_one_kernel_or_none() {
        let names = |part: Part<'_>, wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
            let kernels = part.kernels(&kernels::wanted(&wanted).expect("kernels")).expect("kernels");
            kernels.into_iter().map(|kernel| kernel.name).collect::<Vec<_>>()
        };
        assert_eq!(names(Part::Usual, &[]), ["6.12-full"]);
        assert!(names(Part::Usual, &["6.1"]).is_empty());
        assert_eq!(names(Part::Named("docker"), &[]), ["6.1-full", "6.12-full"]);
        assert!(Part::Usual.has("cni") && !Part::Usual.has("podman"));
    }

    #[test]
    fn what_grows_too_much_is_named() {
        let on =
            |number: u32| vec![measured(&format!("measured kib-of-VmRSS {number}")).expect("a measurement")];
        assert_eq!(growth(&on(5000), &on(10_000)), None);
        assert_eq!(growth(&on(5000), &on(10_001)).as_deref(), Some("kib-of-VmRSS: 5000, then 10001"));
        assert_eq!(growth(&[], &on(5000)), None);
        assert_eq!(measured("measured nothing"), None);
    }
}
