//! The HTTP port: `/healthz`, `/readyz`, `/metrics` and the page. Knows nothing itself: every answer is asked of the loop that
//! reconciles, so that an answer proves that the loop is alive. A slow client delays no other.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full};
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
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle, JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    page::{self, Body, Page},
    question::{ANSWER_LIMIT, Question, Questions},
};
use crate::{
    cli::PageFor,
    core::names::NamesFrom,
    daemon::metrics::{self, Format},
};

/// Connections at a time. When one more comes, one that takes long goes.
const MOST_CONNECTIONS: usize = 16;
/// How long a connection may take, from its first byte to the last of the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// Time that a client has for its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a connection's request may take; by itself hyper would hold 400 KB for each.
const MOST_BYTES: usize = 16 * 1024;
/// Wait after a connection that couldn't be accepted (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
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

/// Whom a connection asks.
#[derive(Clone)]
struct Asker {
    questions: Questions,
    page: Page,
    /// The page of metrics that is being made, if one is. Requests meanwhile get the same: a page takes a few milliseconds, and many requests
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
    /// Opens the port, with a page for those that `page` names. Must be called inside a tokio runtime.
    pub async fn open(address: SocketAddr, page: PageFor, names: NamesFrom) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError { address, source })?;
        let (asker, questions) = Asker::new(page, names);
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
            Ok((stream, client)) => {
                connections.make_room().await;
                connections.add(stream, client.ip(), asker.clone());
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
    fn add(&mut self, stream: TcpStream, client: IpAddr, asker: Asker) {
        let stage = Arc::new(Stage { answered: Arc::clone(&self.answered), ..Stage::default() });
        let task = self.tasks.spawn(serve(stream, client, asker, Arc::clone(&stage)));
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
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, client: IpAddr, asker: Asker, stage: Arc<Stage>) {
    let answer = service_fn(|request| {
        let (asker, stage) = (asker.clone(), Arc::clone(&stage));
        async move {
            stage.set(Stage::WAITING);
            let answer = answer(&request, client, &asker).await;
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

async fn answer(request: &Request<Incoming>, client: IpAddr, asker: &Asker) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let asked = page::Asked {
        uri: request.uri(),
        headers: request.headers(),
        head: *request.method() == Method::HEAD,
        from: client,
    };
    if let Some(answer) = asker.page.answer(asked).await {
        return answer;
    }
    let accept = request.headers().get_all(ACCEPT);
    let format = Format::accepted(accept.iter().filter_map(|value| value.to_str().ok()));
    answer_at(request.uri().path(), format, asker).await
}

async fn answer_at(path: &str, format: Format, asker: &Asker) -> Response<Body> {
    match path {
        "/healthz" => match asker.questions.put(Question::Alive).await {
            Some(()) => text(StatusCode::OK, "ok\n".to_owned()),
            None => stuck(),
        },
        "/readyz" => match asker.questions.put(Question::Ready).await {
            Some(Ok(())) => text(StatusCode::OK, "ok\n".to_owned()),
            Some(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            None => stuck(),
        },
        "/metrics" => match asker.metrics(format).await {
            Some(page) => {
                let mut response = Response::new(Full::new(page).boxed_unsync());
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
    fn new(page: PageFor, names: NamesFrom) -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = Questions::new();
        let page = Page::new(questions.clone(), page, names);
        (Self { questions, page, making: Arc::default() }, receiver)
    }

    /// The page of metrics; `None` if it can't be had.
    async fn metrics(&self, format: Format) -> Option<Bytes> {
        if let Some(mut made) = self.being_made(format)
            && let Ok(page) = made.wait_for(Option::is_some).await
        {
            return page.clone();
        }
        // If this fails, the sender is dropped, which tells the waiting clients.
        let (made, receiver) = watch::channel(None);
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = Some((format, receiver));
        let asked = self.questions.put(Question::Metrics).await.flatten()?;
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

fn stuck() -> Response<Body> {
    let limit = ANSWER_LIMIT.as_secs();
    text(StatusCode::SERVICE_UNAVAILABLE, format!("the agent's loop has not answered for {limit} s\n"))
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
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
        let client = IpAddr::from([127, 0, 0, 1]);
        let (mut sender, server) = tokio::io::duplex(ROOM);
        let (asker, mut questions) = Asker::new(PageFor::Loopback, NamesFrom::Off);
        tokio::spawn(serve(server, client, asker, Arc::default()));
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Alive(answer) => drop(answer.send(())),
                    Question::Ready(answer) => drop(answer.send(Ok(()))),
                    Question::Metrics(answer) => drop(answer.send(None)),
                    Question::Page(answer) => drop(answer.send(None)),
                    Question::Flags(_) => {}
                }
            }
        });
        // The server may be gone before it has read all of it. It answers before it hears that no more comes.
        let _ = sender.write_all(&request[..request.len().min(ROOM)]).await;
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        let _ = sender.shutdown().await;
        let mut answer = Vec::new();
        let _ = sender.read_to_end(&mut answer).await;
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
        let (asker, questions) = Asker::new(PageFor::Loopback, NamesFrom::Off);
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = answer_at(path, Format::accepted([]), &asker).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        assert_eq!(questions.len(), 3, "each was asked");
    }
}
