//! The HTTP port: `/healthz`, `/readyz` and `/metrics`. Knows nothing itself: every answer is asked of the loop that
//! reconciles, so that an answer proves that the loop is alive. A slow client delays no other.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinHandle, JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{measure::Asked, ready::NotReady};
use crate::daemon::metrics::{self, Format};

/// Connections at a time. When one more comes, one that takes long goes.
const MOST_CONNECTIONS: usize = 16;
/// How long a connection may take, from its first byte to the last of the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// Time that a client has for its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a connection's request may take; by itself hyper would hold 400 KB for each.
const MOST_BYTES: usize = 16 * 1024;
/// How long the loop may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Wait after a connection that couldn't be accepted (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// Questions that may wait.
const MOST_QUESTIONS: usize = 16;

/// The port can't be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen at {address} for /metrics, /healthz and /readyz: {source}; flows are still accelerated. Choose \
     another address with --metrics-bind-address, or an empty one for no server"
)]
pub struct ServeError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A client's question to the loop.
pub enum Question {
    /// Whether it is alive: any answer says so.
    Alive(oneshot::Sender<()>),
    /// Whether the node is as it should be.
    Ready(oneshot::Sender<Result<(), NotReady>>),
    /// What it has counted; `None` if no metrics are served.
    Metrics(oneshot::Sender<Option<Box<Asked>>>),
}

/// Whom a connection asks.
#[derive(Clone)]
struct Asker {
    questions: mpsc::Sender<Question>,
    /// The page that is being made, if one is. Requests meanwhile get the same: a page takes a few milliseconds, and many requests
    /// at once would keep the others waiting.
    making: Arc<Mutex<Option<(Format, BeingMade)>>>,
}

/// Has the page once it is made; closed if that fails.
type BeingMade = watch::Receiver<Option<Bytes>>;

/// The port, and what is asked there. Closed when dropped.
pub struct Server {
    questions: mpsc::Receiver<Question>,
    task: JoinHandle<()>,
}

impl Server {
    /// Opens the port. Must be called inside a tokio runtime.
    pub async fn open(address: SocketAddr) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError { address, source })?;
        let (asker, questions) = Asker::new();
        Ok(Self { questions, task: tokio::spawn(accept(listener, asker)) })
    }

    /// The next question; never where there is no port. Safe to cancel.
    pub async fn next(server: &mut Option<Self>) -> Question {
        if let Some(server) = server
            && let Some(question) = server.questions.recv().await
        {
            return question;
        }
        std::future::pending().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, asker: Asker) {
    // Connections go with this task.
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.make_room().await;
                connections.add(stream, asker.clone());
                // It gets to read what has come already, before the next one may want its place.
                yield_now().await;
            }
            Err(error) => {
                warn!(%error, "the metrics can't be read for now");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// How far a connection is.
#[derive(Default)]
struct Stage {
    /// 0 until it has said what it wants.
    now: AtomicU8,
    /// Told when it has an answer.
    answered: Arc<Notify>,
}

impl Stage {
    /// It is being answered.
    const WAITING: u8 = 1;
    /// It has an answer to read.
    const READING: u8 = 2;

    fn set(&self, stage: u8) {
        self.now.store(stage, Ordering::Relaxed);
        if stage == Self::READING {
            self.answered.notify_one();
        }
    }

    fn is(&self, stage: u8) -> bool {
        self.now.load(Ordering::Relaxed) == stage
    }
}

/// Those that are open, the oldest one first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: VecDeque<(AbortHandle, Arc<Stage>)>,
    answered: Arc<Notify>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, asker: Asker) {
        let stage = Arc::new(Stage { answered: Arc::clone(&self.answered), ..Stage::default() });
        let task = self.tasks.spawn(serve(stream, asker, Arc::clone(&stage)));
        self.open.push_back((task, stage));
    }

    /// Makes room for one more. The client that has taken longest to ask, or to read, makes room; those that are being
    /// answered are waited for.
    async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        while self.open.len() >= MOST_CONNECTIONS {
            let slow = self.open.iter().position(|(_, stage)| !stage.is(Stage::WAITING));
            if let Some((task, _)) = slow.and_then(|slow| self.open.remove(slow)) {
                debug!("a client of the metrics is dropped for a new one");
                task.abort();
            } else {
                tokio::select! {
                    _ = self.tasks.join_next() => {}
                    () = self.answered.notified() => {}
                }
                self.open.retain(|(task, _)| !task.is_finished());
            }
        }
    }
}

/// One request and its answer: a client that comes every 15 s needs no connection in between.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, asker: Asker, stage: Arc<Stage>) {
    let answer = service_fn(|request| {
        let (asker, stage) = (asker.clone(), Arc::clone(&stage));
        async move {
            stage.set(Stage::WAITING);
            let answer = answer(&request, &asker).await;
            stage.set(Stage::READING);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(MOST_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client of the metrics is gone"),
        Err(_) => debug!("a client of the metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, asker: &Asker) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accept = request.headers().get_all(ACCEPT);
    let format = Format::accepted(accept.iter().filter_map(|value| value.to_str().ok()));
    answer_at(request.uri().path(), format, asker).await
}

async fn answer_at(path: &str, format: Format, asker: &Asker) -> Response<Full<Bytes>> {
    match path {
        "/healthz" => match asker.put(Question::Alive).await {
            Some(()) => text(StatusCode::OK, "ok\n".to_owned()),
            None => stuck(),
        },
        "/readyz" => match asker.put(Question::Ready).await {
            Some(Ok(())) => text(StatusCode::OK, "ok\n".to_owned()),
            Some(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            None => stuck(),
        },
        "/metrics" => match asker.page(format).await {
            Some(page) => {
                let mut response = Response::new(Full::new(page));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
                response
            }
            None => stuck(),
        },
        "/" => text(StatusCode::OK, "/metrics\n/healthz\n/readyz\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
    }
}

impl Asker {
    /// With the end at which the questions arrive.
    fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(MOST_QUESTIONS);
        (Self { questions, making: Arc::default() }, receiver)
    }

    /// Asks the loop; `None` if it doesn't answer in time.
    async fn put<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(question(answer)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_LIMIT, asked).await.ok().flatten()
    }

    /// The page of metrics; `None` if it can't be had.
    async fn page(&self, format: Format) -> Option<Bytes> {
        if let Some(mut made) = self.being_made(format)
            && let Ok(page) = made.wait_for(Option::is_some).await
        {
            return page.clone();
        }
        // If this fails, the sender is dropped, which tells the waiting clients.
        let (made, receiver) = watch::channel(None);
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = Some((format, receiver));
        let asked = self.put(Question::Metrics).await.flatten()?;
        // Reads the kernel beside the loop, which has other things to do.
        let page = tokio::task::spawn_blocking(move || metrics::render(&asked.read(), format)).await.ok()?;
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let page = Bytes::from(page);
        made.send_replace(Some(page.clone()));
        Some(page)
    }

    fn being_made(&self, format: Format) -> Option<BeingMade> {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.as_ref().filter(|(of, _)| *of == format).map(|(_, made)| made.clone())
    }
}

fn stuck() -> Response<Full<Bytes>> {
    let limit = ANSWER_LIMIT.as_secs();
    text(StatusCode::SERVICE_UNAVAILABLE, format!("the agent's loop has not answered for {limit} s\n"))
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// For fuzzing: what a connection that sends these bytes gets back. The loop behind it answers at once, and has no metrics.
#[cfg(any(fuzzing, test))]
pub fn exchange(request: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const ROOM: usize = 64 * 1024;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(ROOM);
        let (asker, mut questions) = Asker::new();
        tokio::spawn(serve(server, asker, Arc::default()));
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Alive(answer) => drop(answer.send(())),
                    Question::Ready(answer) => drop(answer.send(Ok(()))),
                    Question::Metrics(answer) => drop(answer.send(None)),
                }
            }
        });
        // The server may be gone before it has read all of it. It answers before it hears that no more comes.
        let _ = client.write_all(&request[..request.len().min(ROOM)]).await;
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_bytes_is_answered_in_bytes() {
        let ask = |request: &[u8]| String::from_utf8(exchange(request)).expect("text");
        assert!(ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(ask(b"PUT /metrics HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert_eq!(ask(b"GET /hea"), "");
        let long = [b"GET /healthz HTTP/1.1\r\nX: ", &[b'x'; 2 * MOST_BYTES][..], b"\r\n\r\n"].concat();
        assert!(ask(&long).starts_with("HTTP/1.1 431 "), "{}", ask(&long));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_answer_is_neither_alive_nor_ready() {
        let (asker, questions) = Asker::new();
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = answer_at(path, Format::accepted([]), &asker).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        assert_eq!(questions.len(), 3, "each was asked");
    }
}
