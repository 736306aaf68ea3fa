//! The page: what a browser gets at the HTTP port. One read-only document with its style and its script, which fetch nothing
//! from elsewhere, and what they show as JSON. Who may see it is decided here; what it says is `data`'s.

mod data;
mod live;
mod names;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Response, StatusCode, Uri,
    body::Bytes,
    header::{self, HeaderName, HeaderValue},
};
use tokio::sync::{Mutex, Semaphore};

use self::{data::Snapshot, names::Runtimes};
use super::{
    measure::Seen,
    question::{Question, Questions},
};
use crate::{
    cli::PageFor,
    core::{
        flow::{Flow, Node},
        names::NamesFrom,
        why::{FlowSpec, explain},
    },
    kernel::why::{Flags, gather},
};

/// What an answer carries.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The document.
pub const HTML: &str = include_str!("page.html");
/// Its style.
pub const CSS: &str = include_str!("page.css");
/// Its script.
pub const JS: &str = include_str!("page.js");

/// `Content-Security-Policy`: nothing from elsewhere, nothing inline, in no frame.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Clients that get live numbers at a time: a few of the port's connections.
const MOST_LIVE: usize = 4;
/// An answer may be as old as this.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes of a request's query that are read.
const MOST_QUERY: usize = 1024;

/// The page, for all its clients.
#[derive(Clone)]
pub struct Page {
    questions: Questions,
    wanted: PageFor,
    runtimes: Arc<Runtimes>,
    /// What was read last. Held while more is read: readings come one after the other.
    last: Arc<Mutex<Option<Arc<Snapshot>>>>,
    live: Arc<Semaphore>,
    /// One explanation at a time: it takes a second.
    why: Arc<Mutex<()>>,
}

/// What of a request matters here.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What it wants.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Whether it wants the headers of the answer only.
    pub head: bool,
    /// Who sent it.
    pub from: IpAddr,
}

impl Page {
    /// For clients that `wanted` names; `names` says where those of addresses are from.
    pub fn new(questions: Questions, wanted: PageFor, names: NamesFrom) -> Self {
        Self {
            questions,
            wanted,
            runtimes: Arc::new(Runtimes::new(names)),
            last: Arc::default(),
            live: Arc::new(Semaphore::new(MOST_LIVE)),
            why: Arc::default(),
        }
    }

    /// The answer, if it is something of the page that is asked for.
    pub async fn answer(&self, asked: Asked<'_>) -> Option<Response<Body>> {
        let path = asked.uri.path();
        let shown = match path {
            "/" => Some(("text/html; charset=utf-8", HTML)),
            "/page.css" => Some(("text/css; charset=utf-8", CSS)),
            "/page.js" => Some(("text/javascript; charset=utf-8", JS)),
            "/api/history" | "/api/flows" | "/api/why" | "/events" => None,
            _ => return None,
        };
        let answer = match (self.refusal(asked), shown) {
            // What the port has besides.
            (Some(_), _) if path == "/" && self.wanted == PageFor::Off => return None,
            (Some((status, reason)), _) if path == "/" => {
                text(status, &format!("/metrics\n/healthz\n/readyz\n\n{reason}"))
            }
            (Some((status, reason)), _) => text(status, reason),
            (None, Some((kind, content))) => respond(StatusCode::OK, kind, content),
            (None, None) if asked.head => respond(StatusCode::OK, JSON, ""),
            (None, None) => self.data(path, asked.uri.query().unwrap_or_default(), asked.headers).await,
        };
        Some(secured(answer))
    }

    /// Why this client gets nothing.
    fn refusal(&self, asked: Asked<'_>) -> Option<(StatusCode, &'static str)> {
        match self.wanted {
            PageFor::Off => {
                return Some((StatusCode::NOT_FOUND, "the page is switched off (--page=off)\n"));
            }
            PageFor::Loopback if !asked.from.to_canonical().is_loopback() => {
                let reason = "the page is for clients on this node: use ssh -L or kubectl port-forward, or start the agent \
                              with --page=all\n";
                return Some((StatusCode::FORBIDDEN, reason));
            }
            _ => {}
        }
        // A name may be made to lead here by a page from elsewhere.
        if !asked.headers.get(header::HOST).is_some_and(is_address) {
            return Some((StatusCode::FORBIDDEN, "ask by an IP address, or as localhost\n"));
        }
        let site = asked.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let elsewhere = !matches!(site, None | Some(b"none" | b"same-origin"));
        // A link may lead to the page; what it shows is for itself.
        (elsewhere && asked.uri.path() != "/")
            .then_some((StatusCode::FORBIDDEN, "pages from elsewhere get nothing here\n"))
    }

    async fn data(&self, path: &str, query: &str, headers: &HeaderMap) -> Response<Body> {
        if query.len() > MOST_QUERY {
            return text(StatusCode::URI_TOO_LONG, "this query is too long\n");
        }
        let value = |key: &str| {
            form_urlencoded::parse(query.as_bytes()).find_map(|(k, v)| (k == key).then(|| v.into_owned()))
        };
        match path {
            "/api/history" => match self.snapshot(FRESH).await {
                Ok(snapshot) => json(snapshot.since(None)),
                Err(reason) => unavailable(&reason),
            },
            "/api/flows" => match self.flows(&value("search").unwrap_or_default(), value("group")).await {
                Ok(flows) => json(flows),
                Err(reason) => unavailable(&reason),
            },
            "/api/why" => self.explain(&value("flow").unwrap_or_default()).await,
            _ => self.live(headers),
        }
    }

    /// What there is to show, not older than this.
    async fn snapshot(&self, age: Duration) -> Result<Arc<Snapshot>, String> {
        let mut last = self.last.lock().await;
        if let Some(snapshot) = last.as_ref().filter(|snapshot| snapshot.taken.elapsed() < age) {
            return Ok(Arc::clone(snapshot));
        }
        let (snapshot, _) = read(self.seen().await?, (), |(), _, _| {}).await?;
        Ok(Arc::clone(last.insert(Arc::new(snapshot))))
    }

    /// The heaviest flows that match.
    async fn flows(&self, search: &str, group: Option<String>) -> Result<String, String> {
        let mut last = self.last.lock().await;
        let seen = self.seen().await?;
        let known = self.runtimes.names(seen.addresses()).await;
        let list = data::List::new(search, group.as_deref(), known);
        let (snapshot, list) = read(seen, list, data::List::add).await?;
        let snapshot = last.insert(Arc::new(snapshot));
        Ok(list.written(snapshot))
    }

    /// What the loop knows.
    async fn seen(&self) -> Result<Box<Seen>, String> {
        Ok(self.questions.put(Question::Page).await.flatten().ok_or(STUCK)?)
    }

    async fn explain(&self, flow: &str) -> Response<Body> {
        let words: Vec<&str> = flow.split_whitespace().filter(|word| *word != ">").collect();
        let &[protocol, source, destination] = &words[..] else {
            return text(StatusCode::BAD_REQUEST, "use flow=tcp 10.0.1.2:40000 10.0.2.2:443\n");
        };
        let spec = match FlowSpec::parse(protocol, source, destination) {
            Ok(spec) => spec,
            Err(error) => return text(StatusCode::BAD_REQUEST, &format!("{error}\n")),
        };
        let _one = self.why.lock().await;
        let Some(config) = self.questions.put(Question::Flags).await else { return unavailable(STUCK) };
        let runtime = tokio::runtime::Handle::current();
        let gathered = tokio::task::spawn_blocking(move || {
            let flags = Flags {
                selection: &config.rules.selection,
                exclusions: &config.rules.exclusions,
                ignored: &config.rules.ignored,
                confined: true,
            };
            runtime.block_on(gather(&spec, &config.pin_path, Some(flags)))
        });
        match gathered.await {
            Ok(Ok(facts)) => json(data::explained(&facts.asked, &explain(&facts))),
            Ok(Err(error)) => unavailable(&error.to_string()),
            Err(error) => unavailable(&error.to_string()),
        }
    }

    /// Numbers as they change, as long as there is room for one more client.
    fn live(&self, headers: &HeaderMap) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.live).try_acquire_owned() else {
            return unavailable("as many pages are open as get live numbers: reload this one later");
        };
        let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
        let events = live::events(self.clone(), place, seen);
        let mut response = Response::new(StreamBody::new(events).boxed_unsync());
        set(&mut response, header::CONTENT_TYPE, "text/event-stream");
        response
    }
}

/// Reads beside the loop, which has other things to do; each flow is handed to `to`.
async fn read<T: Send + 'static>(
    seen: Box<Seen>,
    mut to: T,
    each: fn(&mut T, Flow, &Node),
) -> Result<(Snapshot, T), String> {
    let read = tokio::task::spawn_blocking(move || {
        Snapshot::read(*seen, |flow, node| each(&mut to, flow, node)).map(|snapshot| (snapshot, to))
    });
    read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

const JSON: &str = "application/json";
const STUCK: &str = "the agent's loop doesn't answer, or has not started yet";

/// Whether it is an IP address or localhost, with a port or without.
fn is_address(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let in_brackets = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match in_brackets {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

fn respond(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(content.into()).boxed_unsync());
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, kind);
    response
}

fn json(content: String) -> Response<Body> {
    respond(StatusCode::OK, JSON, content)
}

fn text(status: StatusCode, content: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", content.to_owned())
}

fn unavailable(reason: &str) -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n"))
}

fn secured(mut response: Response<Body>) -> Response<Body> {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        set(&mut response, name, value);
    }
    response
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

/// The time from one live number to the next: readings take at most a twentieth of a processor.
fn pace(took: Duration) -> Duration {
    (took * 20).max(Duration::from_secs(2))
}

/// Milliseconds since 1970, UTC.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
