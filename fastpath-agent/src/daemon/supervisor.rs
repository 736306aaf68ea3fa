//! Tells systemd what is so (sd_notify(3)): ready, a line of status, reloading, stopping, alive. Without `NOTIFY_SOCKET`
//! in the environment it does nothing. Decides nothing: whether the agent is ready it is told.

use std::{env, time::Duration};

use sd_notify::NotifyState;
use tracing::debug;

/// The service manager that started this agent, if one did.
pub struct Supervisor {
    listens: bool,
    /// How long after a sign of life the next one has to come, in ms: half of what systemd waits.
    sign_every_ms: Option<u64>,
    last_sign_ms: u64,
    announced: bool,
    /// Whether a reload was announced and has to be ended.
    reloading: bool,
    status: String,
}

/// Whether this process is a service that has to notify systemd.
pub(super) fn by_systemd() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

impl Supervisor {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let listens = by_systemd();
        Self::new(listens, sd_notify::watchdog_enabled().filter(|_| listens))
    }

    fn new(listens: bool, watchdog: Option<Duration>) -> Self {
        let half = |limit: Duration| u64::try_from(limit.as_millis() / 2).unwrap_or(u64::MAX).max(1);
        Self {
            listens,
            sign_every_ms: watchdog.map(half),
            last_sign_ms: 0,
            announced: false,
            reloading: false,
            status: String::new(),
        }
    }

    /// When the next sign of life is due, in ms since the start of the agent. Each reconcile is one, and the safety net
    /// has one made every minute: with a limit above two minutes this timer never ends a sleep.
    pub fn due(&self) -> Option<u64> {
        self.sign_every_ms.map(|every| self.last_sign_ms.saturating_add(every))
    }

    /// Tells systemd that the agent lives, and its status if that has changed. Started is said once: a node that gets worse later is
    /// still a service that runs. It ends a reload, whatever came of it.
    pub fn report(&mut self, started: bool, status: String, now_ms: u64) {
        send(self.listens, &self.messages(started, status, now_ms));
    }

    /// A sign of life, and nothing else.
    pub fn alive(&mut self, now_ms: u64) {
        self.last_sign_ms = now_ms;
        send(self.listens, &[Message::Alive]);
    }

    /// Says that files are being read again; the next report ends that.
    pub fn reloading(&mut self) {
        self.reloading = true;
        self.status = "reading the exclusions again".to_owned();
        send(self.listens, &[Message::Reloading, Message::Status(self.status.clone())]);
    }

    /// Says that the agent is about to end.
    pub fn stopping(&mut self) {
        send(self.listens, &[Message::Stopping]);
    }

    fn messages(&mut self, started: bool, status: String, now_ms: u64) -> Vec<Message> {
        let mut messages = Vec::new();
        if std::mem::take(&mut self.reloading) || (started && !self.announced) {
            self.announced = true;
            messages.push(Message::Ready);
        }
        if self.status != status {
            self.status.clone_from(&status);
            messages.push(Message::Status(status));
        }
        if self.sign_every_ms.is_some() {
            self.last_sign_ms = now_ms;
            messages.push(Message::Alive);
        }
        messages
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Ready,
    Reloading,
    Stopping,
    Status(String),
    Alive,
}

/// Sends them in one datagram. A manager that doesn't take it is no reason to stop forwarding.
fn send(listens: bool, messages: &[Message]) {
    if !listens || messages.is_empty() {
        return;
    }
    let mut states: Vec<_> = messages
        .iter()
        .map(|message| match message {
            Message::Ready => NotifyState::Ready,
            Message::Reloading => NotifyState::Reloading,
            Message::Stopping => NotifyState::Stopping,
            Message::Status(status) => NotifyState::Status(status),
            Message::Alive => NotifyState::Watchdog,
        })
        .collect();
    // Since systemd 253 a service that says that it reloads also says when.
    if messages.contains(&Message::Reloading)
        && let Ok(now) = NotifyState::monotonic_usec_now()
    {
        states.push(now);
    }
    if let Err(error) = sd_notify::notify(&states) {
        debug!(%error, "the service manager can't be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Message {
        Message::Status(text.to_owned())
    }

    #[test]
    fn ready_is_said_once_and_status_when_it_changes() {
        let mut supervisor = Supervisor::new(true, None);
        let mut report = |ready, text: &str| supervisor.messages(ready, text.to_owned(), 0);
        assert_eq!(report(false, "starting"), [status("starting")]);
        assert_eq!(report(true, "offloading"), [Message::Ready, status("offloading")]);
        assert_eq!(report(true, "offloading"), []);
        assert_eq!(report(false, "refused"), [status("refused")]);
        assert_eq!(report(true, "offloading"), [status("offloading")]);
        supervisor.reloading();
        let text = "refused".to_owned();
        assert_eq!(supervisor.messages(false, text, 0), [Message::Ready, status("refused")], "a reload ends");
    }

    #[test]
    fn signs_of_life_come_at_half_of_the_limit_counted_from_the_last() {
        let mut supervisor = Supervisor::new(true, Some(Duration::from_secs(180)));
        assert_eq!(supervisor.due(), Some(90_000));
        assert_eq!(supervisor.messages(false, String::new(), 60_000), [Message::Alive]);
        assert_eq!(supervisor.due(), Some(150_000));
        assert_eq!(Supervisor::new(true, None).due(), None);
    }
}
