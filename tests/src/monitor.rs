//! `nft monitor`: what was changed in a namespace's ruleset, and by whom.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::{netns::Netns, wait_until};

/// A running `nft monitor`.
pub struct Monitor {
    node: Netns,
    child: Child,
    /// With the moment at which each was printed.
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    marks: usize,
}

impl Monitor {
    /// Starts it; from here on nothing is missed.
    #[track_caller]
    pub fn start(node: &Netns) -> Self {
        let mut command = Command::new("nft");
        command.arg("monitor").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = node.spawn(&mut command);
        let stdout = child.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sink.lock().expect("lines").push((Instant::now(), line));
            }
        });
        let mut monitor = Self { node: node.clone(), child, lines, marks: 0 };
        monitor.mark();
        monitor
    }

    /// Changes something that concerns no flow and waits until the monitor shows it: all that came before is then seen.
    #[track_caller]
    fn mark(&mut self) {
        self.marks += 1;
        let mut attempt = 0;
        let prefix = format!("monitor-mark-{}-", self.marks);
        wait_until("nft monitor", Duration::from_secs(10), || {
            attempt += 1;
            self.node.nft(&format!("table inet {prefix}{attempt} {{}}\ndelete table inet {prefix}{attempt}"));
            thread::sleep(Duration::from_millis(100));
            self.lines.lock().expect("lines").iter().any(|(_, line)| line.contains(&prefix))
        });
    }

    /// Transactions that the agent has committed so far.
    #[track_caller]
    pub fn commits_of_agent(&mut self) -> usize {
        self.mark();
        self.lines
            .lock()
            .expect("lines")
            .iter()
            .filter(|(_, line)| line.starts_with("# new generation") && line.contains("fastpath-agent"))
            .count()
    }

    /// Waits for a line that `wanted` accepts, and says when it was printed.
    #[track_caller]
    pub fn wait_for_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Instant {
        let start = Instant::now();
        let mut looked_at = 0;
        loop {
            {
                let lines = self.lines.lock().expect("lines");
                if let Some((printed, _)) = lines[looked_at..].iter().find(|(_, line)| wanted(line)) {
                    return *printed;
                }
                looked_at = lines.len();
            }
            assert!(start.elapsed() < limit, "not seen by nft monitor within {limit:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// All that it has printed.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("lines").iter().map(|(_, line)| line.clone()).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
