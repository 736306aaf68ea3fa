//! The end of sd_notify(3) that systemd has: a socket at which the agent says what is so.

use std::{
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The socket, and what came so far.
pub struct ServiceManager {
    socket: UnixDatagram,
    directory: TempDir,
    /// Lines of all messages, in order.
    pub said: Vec<String>,
}

impl ServiceManager {
    /// Listens.
    #[expect(clippy::new_without_default, reason = "it makes a socket")]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        Self { socket, directory, said: Vec::new() }
    }

    /// What `NOTIFY_SOCKET` has to be.
    pub fn address(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    /// Waits for a line that begins with `text`, and takes what came up to it out of `said`; gives the line.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.said.iter().position(|line| line.starts_with(text)) {
                return self.said.drain(..=at).next_back().unwrap_or_default();
            }
            assert!(Instant::now() < deadline, "no {text:?} within {limit:?}, but {:?}", self.said);
            self.listen(Duration::from_millis(50));
        }
    }

    /// Hears what comes within this time.
    pub fn listen(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.socket.set_read_timeout(Some(left)).expect("a time limit");
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.said.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
            }
        }
    }
}
