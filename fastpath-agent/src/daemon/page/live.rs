//! Live numbers as server-sent events (HTML, "Server-sent events"). A stream ends by itself before the port would end it, and
//! the browser asks again for what came since. Nothing runs while no client is there.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::{Stream, stream::unfold};
use hyper::body::{Bytes, Frame};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::{Page, data::Snapshot, pace};

/// The port ends a connection after 60 s.
const LONGEST: Duration = Duration::from_secs(50);
/// How long the browser waits before it asks again, in ms.
const AGAIN_MS: u64 = 1000;

struct Client {
    page: Page,
    /// Its place; free again with this.
    _place: OwnedSemaphorePermit,
    /// The newest step that it has.
    seen: Option<u64>,
    /// When it gets the next numbers.
    wait: Duration,
    ends: Instant,
}

/// What a client gets that has all up to step `seen`.
pub(super) fn events(
    page: Page,
    place: OwnedSemaphorePermit,
    seen: Option<u64>,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let client = Client { page, _place: place, seen, wait: Duration::ZERO, ends: Instant::now() + LONGEST };
    unfold(client, |mut client| async move {
        if Instant::now() + client.wait >= client.ends {
            return None;
        }
        sleep(client.wait).await;
        // All clients are told from the same reading.
        let told = match client.page.snapshot(client.wait.max(super::FRESH) / 2).await {
            Ok(snapshot) => client.told(&snapshot),
            Err(reason) => {
                client.wait = pace(Duration::ZERO);
                format!("event: failed\ndata: {}\n\n", reason.replace(['\n', '\r'], " "))
            }
        };
        Some((Ok(Frame::data(Bytes::from(told))), client))
    })
}

impl Client {
    fn told(&mut self, snapshot: &Arc<Snapshot>) -> String {
        let data = snapshot.since(self.seen);
        self.seen = Some(snapshot.newest());
        self.wait = pace(snapshot.took());
        format!("retry: {AGAIN_MS}\nid: {}\ndata: {data}\n\n", snapshot.newest())
    }
}
