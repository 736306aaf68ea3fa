//! Exports flow records (`--export`): reads all flows at intervals, hears of connections that end, and sends what `core/export` finds due.
//! Asks nothing of the loop that lets it work; without the flag there is none of it.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fastpath_common::FlowCounters;
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

mod collector;

use collector::{Collector, Ready};

use crate::{
    config::Config,
    core::{
        export::{
            accounts::{Accounts, Ended, Now, Reading},
            ipfix::{Record, Writer},
            journal::{self, Place},
            target::{Target, Transport},
        },
        flow::{Flow, Node, path::Metered},
    },
    daemon::metrics::Exported,
    kernel::{
        bpf::Pinned,
        clock::monotonic_ns,
        conntrack_ends::{End, Ends, Heard},
        export_file::{self, ExportFile},
        flows, memory,
        nft::Nft,
    },
};

/// Least time from one look at connections that ended to the next: under load they come in batches.
const GAP: Duration = Duration::from_millis(100);
/// Messages at a time, and the pause after them: collectors have small buffers, and others want their turn.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(2);
/// First and longest wait until a collector that can't be reached is tried again.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Records that wait for a collector that can't be reached, with those that waited when that began. Of more the oldest are lost.
const MOST_WAITING: usize = 65_536;
/// Bytes that are appended to the file before all flows are read again, after which it begins anew.
const MOST_APPENDED: u64 = 16 << 20;
/// Flows in one reading after which memory is given back.
const MANY: u64 = 10_000;

/// What the metrics say of it.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records that were sent.
    sent: AtomicU64,
    /// Records that are known to be lost.
    lost: AtomicU64,
    /// Whether the collector took the last one, as far as that can be told.
    up: AtomicBool,
}

impl Counts {
    /// At this moment.
    pub fn shown(&self) -> Exported {
        Exported {
            records: self.sent.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            up: self.up.load(Ordering::Relaxed),
        }
    }
}

/// The export at work.
pub type Exporting = Pin<Box<dyn Future<Output = ()>>>;

/// Lets it work, if there is one. Cancelling it loses nothing.
pub async fn go_on(exporting: &mut Option<Exporting>) {
    if let Some(work) = exporting {
        work.await;
        *exporting = None;
    }
    std::future::pending().await
}

/// The export.
pub struct Export {
    target: Target,
    pin_path: PathBuf,
    interval: Duration,
    collector: Collector,
    writer: Writer,
    accounts: Accounts,
    ends: Ends,
    /// What flows were judged by at the last reading.
    node: Node,
    file: Option<ExportFile>,
    place: Place,
    waiting: VecDeque<Record>,
    /// How many may wait while the collector can't be reached.
    most_waiting: usize,
    /// What happened since the file was written last.
    notes: Vec<u8>,
    counts: Arc<Counts>,
    /// How long to wait after the next failure; `None` while the collector takes what it is sent.
    backoff: Option<Duration>,
    /// When the next message may be sent.
    send_at: Instant,
    /// Records in the datagram that was sent last.
    in_last: u64,
}

impl Export {
    /// Opens what can't be opened once privileges are given up; `None` if it isn't wanted or fails (which is logged). Must be called
    /// inside a tokio runtime.
    pub async fn open(config: &Config) -> Option<Self> {
        let export = config.export.as_ref()?;
        let target = &export.target;
        let collector = Collector::open(target)
            .await
            .inspect_err(|error| {
                warn!("no flow records are exported: {target}: {error}. Is its name right? An address always is found");
            })
            .ok()?;
        let ends = Ends::open()
            .inspect_err(|error| warn!("no flow records are exported: cannot listen to conntrack: {error}"))
            .ok()?;
        let place = export_file::place().unwrap_or_default();
        let (file, left) = match ExportFile::open(&config.run_dir) {
            Ok((file, left)) => (Some(file), left),
            Err(error) => {
                let directory = config.run_dir.display();
                warn!("a restart will lose flow records: cannot keep them in {directory}: {error}");
                (None, Vec::new())
            }
        };
        let (accounts, waiting, sequence) = match journal::read(&left, &place, export.timeouts) {
            Some(left) => (left.accounts, left.unsent.into(), left.sequence),
            None => (Accounts::new(export.timeouts), VecDeque::new(), 0),
        };
        let writer = match target.transport {
            Transport::Udp => Writer::of_datagrams(export.enterprise, sequence),
            Transport::Tcp => Writer::of_stream(export.enterprise, sequence),
        };
        Some(Self {
            target: target.clone(),
            pin_path: config.pin_path.clone(),
            interval: Duration::from_nanos(export.timeouts.interval_ns()),
            collector,
            writer,
            accounts,
            ends,
            node: Node::default(),
            file,
            place,
            waiting,
            most_waiting: MOST_WAITING,
            notes: Vec::new(),
            counts: Arc::default(),
            backoff: None,
            send_at: Instant::now(),
            in_last: 0,
        })
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Exports until it is dropped, which may be at any time: what isn't sent then is in the file.
    pub fn run(self) -> Exporting {
        Box::pin(self.work())
    }

    async fn work(mut self) {
        info!(collector = %self.target, address = %self.collector.address, "flow records are exported");
        let mut read_at = Instant::now();
        let mut look_at = read_at;
        loop {
            let probe = self.backoff.is_some().then(|| self.writer.nothing(unix_seconds()));
            let sends = !self.waiting.is_empty() || self.collector.has_rest() || self.backoff.is_some();
            tokio::select! {
                biased;
                () = sleep_until(read_at) => {
                    if let Err(error) = self.read().await {
                        debug!(%error, "flows can't be read for the export");
                    }
                    read_at = Instant::now() + self.interval;
                }
                heard = async { sleep_until(look_at).await; self.ends.next().await } => {
                    look_at = Instant::now() + GAP;
                    match heard {
                        Ok(heard) => {
                            let over = self.heard(&heard);
                            self.notes.extend(over);
                            self.take_due();
                        }
                        Err(error) => return warn!(%error, "no flow records are exported any more"),
                    }
                }
                ready = async { sleep_until(self.send_at).await; self.collector.ready(probe.as_deref()).await }, if sends => {
                    match ready {
                        Ok(ready) => self.send(ready),
                        Err(error) => self.failed(&error),
                    }
                }
            }
            self.note();
            if self.file.as_ref().is_some_and(|file| file.appended() > MOST_APPENDED) {
                read_at = Instant::now();
            }
        }
    }

    /// Reads all flows, and takes what is due.
    async fn read(&mut self) -> Result<(), flows::FlowsError> {
        // Nothing is known of any while they are away; a reader that panics leaves it so.
        let timeouts = self.accounts.timeouts();
        let mut accounts = std::mem::replace(&mut self.accounts, Accounts::new(timeouts));
        // A collector that is slow has its time: what isn't asked for yet waits in the kernel's counters.
        let living = self.backoff.is_none() && self.waiting.len() < MOST_WAITING;
        let pin_path = self.pin_path.clone();
        let runtime = Handle::current();
        let reading = spawn_blocking(move || {
            let node = runtime
                .block_on(flows::node(&pin_path, None))
                .map(|node| Node { now_ns: monotonic_ns(), ..node });
            let result = node.and_then(|node| read(&pin_path, &mut accounts, &node, living).map(|()| node));
            (accounts, result)
        });
        let Ok((accounts, result)) = reading.await else { return Ok(()) };
        self.accounts = accounts;
        let result = result.map(|node| self.node = node);
        // Ends that were announced until now are no silent ones.
        let mut over = Vec::new();
        while let Ok(Some(heard)) = self.ends.heard() {
            over.extend(self.heard(&heard));
        }
        self.accounts.settle(&self.node, now());
        self.take_due();
        self.write_anew(&over);
        result
    }

    /// Connections ended. What the file should have of it comes back.
    fn heard(&mut self, heard: &Heard) -> Vec<u8> {
        if heard.lost {
            debug!(
                "connections ended faster than they could be read: some records come with the next reading"
            );
        }
        // Each is opened for what needs it only.
        let pinned = Pinned::open(&self.pin_path).ok();
        let (mut nft, mut over) = (None, Vec::new());
        for End { entry, times_ns } in &heard.ends {
            let seen =
                [entry.original, entry.reply].map(|tuple| pinned.as_ref()?.flow(&tuple.flow_key()?).ok()?);
            let went_over =
                seen.iter().flatten().any(|seen: &FlowCounters| seen.flags & FlowCounters::WENT_OVER != 0);
            let metered = match went_over && self.node.metered {
                true => metered(&mut nft, entry.id),
                false => Metered::Unknown,
            };
            let ended = Ended { entry, times_ns: *times_ns, seen, metered };
            let key = self.accounts.ended(&ended, &self.node, now());
            journal::over(&mut over, key, entry.reply);
        }
        over
    }

    fn take_due(&mut self) {
        let due = self.accounts.take_due();
        due.iter().for_each(|record| journal::unsent(&mut self.notes, record));
        self.waiting.extend(due);
        let over = self.waiting.len().saturating_sub(self.most_waiting);
        if over > 0 && self.backoff.is_some() {
            self.waiting.drain(..over);
            self.counts.lost.fetch_add(over as u64, Ordering::Relaxed);
            // The collector sees by the number that they are missing.
            self.writer.sequence = self.writer.sequence.wrapping_add(over as u32);
            journal::sent(&mut self.notes, over);
        }
    }

    /// Sends as many as may be sent at once.
    fn send(&mut self, ready: Ready) {
        if ready == Ready::Anew {
            self.writer.connected();
        }
        if self.backoff.take().is_some() {
            info!(collector = %self.target, waiting = self.waiting.len(), "the collector can be reached again");
        }
        self.counts.up.store(true, Ordering::Relaxed);
        for _ in 0..BURST {
            match self.send_one() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return self.failed(&error),
            }
        }
        self.send_at = Instant::now() + PAUSE;
    }

    /// Sends a message; false if there is nothing to send, or no room for it.
    fn send_one(&mut self) -> io::Result<bool> {
        if !self.collector.send_rest()? || self.waiting.is_empty() {
            return Ok(false);
        }
        let before = self.writer.clone();
        let (message, records) = self.writer.message(&self.waiting, unix_seconds());
        let sent = self.collector.send(&message);
        if !matches!(sent, Ok(true)) {
            self.writer = before;
            return sent;
        }
        self.in_last = records as u64;
        self.counts.sent.fetch_add(records as u64, Ordering::Relaxed);
        self.waiting.drain(..records);
        journal::sent(&mut self.notes, records);
        self.note();
        Ok(true)
    }

    fn failed(&mut self, error: &io::Error) {
        let in_last = std::mem::take(&mut self.in_last);
        if self.collector.lost_last(error) {
            self.counts.lost.fetch_add(in_last, Ordering::Relaxed);
        }
        let wait = match self.backoff {
            Some(wait) => (2 * wait).min(LONGEST_RETRY),
            None => {
                self.most_waiting = MOST_WAITING.max(self.waiting.len());
                warn!(
                    "flow records wait: {}: {error}. Does the collector run, and may this host send to it (a service's unit needs \
                     IPAddressAllow= for it)?",
                    self.target
                );
                RETRY
            }
        };
        self.backoff = Some(wait);
        self.send_at = Instant::now() + wait;
        self.counts.up.store(false, Ordering::Relaxed);
        self.collector.give_up();
    }

    /// Writes what happened into the file.
    fn note(&mut self) {
        if self.notes.is_empty() {
            return;
        }
        let notes = std::mem::take(&mut self.notes);
        let written = self.file.as_mut().map_or(Ok(()), |file| file.append(&notes));
        self.keep_file(written);
    }

    /// `over`: ends since the reading began.
    fn write_anew(&mut self, over: &[u8]) {
        self.notes.clear();
        let Some(file) = &mut self.file else { return };
        let mut content =
            journal::snapshot(&self.place, &self.accounts, self.waiting.iter(), self.writer.sequence);
        content.extend_from_slice(over);
        let written = file.replace(&content);
        self.keep_file(written);
    }

    fn keep_file(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            warn!("a restart will lose flow records: cannot keep them in the run directory: {error}");
            self.file = None;
        }
    }
}

fn metered(nft: &mut Option<Nft>, id: u32) -> Metered {
    if nft.is_none() {
        *nft = Nft::open().ok();
    }
    match nft.as_mut().map(|nft| nft.slow_path_of(id)) {
        Some(Ok(Some(slow))) => Metered::Packets { packets: slow.counter.packets, from_ns: 0, to_ns: 0 },
        Some(Ok(None)) => Metered::Nothing,
        Some(Err(_)) | None => Metered::Unknown,
    }
}

/// Takes as long as `fastpath-agent flows` does.
fn read(
    pin_path: &Path,
    accounts: &mut Accounts,
    node: &Node,
    living: bool,
) -> Result<(), flows::FlowsError> {
    let watched = Pinned::open(pin_path).is_ok();
    let mut reading = accounts.begin(node, now(), living, watched);
    let mut read = 0;
    flows::for_each_metered(pin_path, node, Reading::wants_metered, |flow: Flow, metered| {
        read += 1;
        reading.add(&flow, metered.as_ref());
    })?;
    reading.end();
    if read > MANY {
        memory::give_back();
    }
    Ok(())
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { ns: monotonic_ns(), unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}

fn unix_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as u32
}
