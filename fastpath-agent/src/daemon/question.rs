//! What clients of the HTTP port ask the loop. Its answer proves that it is alive.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    measure::{Asked, Seen},
    ready::NotReady,
};
use crate::config::Config;

/// How long the loop may take to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Questions that may wait.
const MOST_QUESTIONS: usize = 16;

/// A client's question to the loop.
pub enum Question {
    /// Whether it is alive: any answer says so.
    Alive(oneshot::Sender<()>),
    /// Whether the node is as it should be.
    Ready(oneshot::Sender<Result<(), NotReady>>),
    /// What it has counted; `None` if no metrics are served.
    Metrics(oneshot::Sender<Option<Box<Asked>>>),
    /// What the page shows; `None` likewise.
    Page(oneshot::Sender<Option<Box<Seen>>>),
    /// The flags that the agent runs with.
    Flags(oneshot::Sender<Box<Config>>),
}

/// Asks the loop.
#[derive(Clone)]
pub struct Questions(mpsc::Sender<Question>);

impl Questions {
    /// With the end at which they arrive.
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(MOST_QUESTIONS);
        (Self(questions), receiver)
    }

    /// The loop's answer; `None` if it doesn't answer in time.
    pub async fn put<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.0.send(question(answer)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_LIMIT, asked).await.ok().flatten()
    }
}
