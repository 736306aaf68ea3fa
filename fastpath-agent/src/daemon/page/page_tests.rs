//! Who gets the page, with what around it; live numbers; what is left out.

use std::collections::HashMap;

use fastpath_common::{FlowCounters, Tally};
use hyper::Request;

use super::{names::Known, *};
use crate::{
    core::{
        flow::{State, connection::Tuple, path::Path, traffic::Passed},
        history::{Event, Kind, STEP_NS, Step},
        model::{IfIndex, IfName},
        why_not::{Cause, WhyNot},
    },
    daemon::{measure::Status, metrics::scrape::Hour},
};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

/// What a client gets: `headers` are names and values.
async fn ask(page: &Page, path: &str, from: IpAddr, headers: &[(&str, &str)], head: bool) -> Option<Answer> {
    let request = headers
        .iter()
        .fold(Request::builder().uri(path), |request, (name, value)| request.header(*name, *value));
    let request = request.body(()).unwrap();
    let response = page.answer(Asked { uri: request.uri(), headers: request.headers(), head, from }).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let live = headers[header::CONTENT_TYPE] == "text/event-stream";
    let body = if live { Bytes::new() } else { response.into_body().collect().await.unwrap().to_bytes() };
    Some(Answer { status, headers, body: String::from_utf8(body.to_vec()).unwrap() })
}

/// A page whose loop has nothing to tell.
fn page(wanted: PageFor) -> Page {
    let (questions, mut asked) = Questions::new();
    tokio::spawn(async move {
        while let Some(question) = asked.recv().await {
            if let Question::Page(answer) = question {
                drop(answer.send(None));
            }
        }
    });
    Page::new(questions, wanted, NamesFrom::Off)
}

const PARTS: [&str; 3] = ["/", "/page.css", "/page.js"];
const DATA: [&str; 4] = ["/api/history", "/api/flows", "/api/why?flow=x", "/events"];

#[tokio::test]
async fn clients_of_this_node_get_it_and_others_only_if_the_operator_says_so() {
    let from = |text: &str| -> IpAddr { text.parse().unwrap() };
    for (wanted, client, status) in [
        (PageFor::Loopback, "127.0.0.1", 200),
        (PageFor::Loopback, "::1", 200),
        (PageFor::Loopback, "::ffff:127.0.0.1", 200),
        (PageFor::Loopback, "192.0.2.1", 403),
        (PageFor::Loopback, "fe80::1", 403),
        (PageFor::All, "192.0.2.1", 200),
    ] {
        let page = page(wanted);
        for path in PARTS {
            let answer = ask(&page, path, from(client), &[("host", "127.0.0.1:19080")], false).await.unwrap();
            assert_eq!(answer.status, status, "{wanted:?} {client} {path}");
        }
        for path in DATA {
            let answer = ask(&page, path, from(client), &[("host", "127.0.0.1:19080")], false).await.unwrap();
            assert_eq!(answer.status == 403, status == 403, "{wanted:?} {client} {path}: {}", answer.status);
        }
    }
    let off = page(PageFor::Off);
    assert!(ask(&off, "/", HOME, &[("host", "127.0.0.1")], false).await.is_none(), "what there was before");
    for path in DATA {
        assert_eq!(ask(&off, path, HOME, &[("host", "127.0.0.1")], false).await.unwrap().status, 404);
    }
    let home = page(PageFor::Loopback);
    for path in ["/metrics", "/healthz", "/page", "/api"] {
        assert!(ask(&home, path, HOME, &[("host", "127.0.0.1")], false).await.is_none(), "{path}");
    }
}

#[tokio::test]
async fn a_name_that_leads_here_and_pages_from_elsewhere_get_nothing() {
    let page = page(PageFor::Loopback);
    for host in
        ["127.0.0.1", "127.0.0.1:19080", "localhost:8080", "LOCALHOST", "[::1]:19080", "[::1]", "192.0.2.1:1"]
    {
        let answer = ask(&page, "/page.js", HOME, &[("host", host)], false).await.unwrap();
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in [
        "",
        "attacker.example",
        "attacker.example:19080",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
        "::1",
        "127.0.0.1:",
        "[127.0.0.1]",
        "a[::1]",
    ] {
        for path in PARTS.into_iter().chain(DATA) {
            let answer = ask(&page, path, HOME, &[("host", host)], false).await.unwrap();
            assert_eq!(answer.status, 403, "{host} {path}");
        }
    }
    assert_eq!(ask(&page, "/", HOME, &[], false).await.unwrap().status, 403, "no Host");
    for (site, path, status) in [
        ("none", "/", 200),
        ("cross-site", "/", 200),
        ("same-origin", "/page.js", 200),
        ("same-site", "/api/flows", 403),
        ("cross-site", "/events", 403),
        ("cross-site", "/page.js", 403),
    ] {
        let headers = [("host", "127.0.0.1"), ("sec-fetch-site", site)];
        assert_eq!(ask(&page, path, HOME, &headers, false).await.unwrap().status, status, "{site} {path}");
    }
}

#[tokio::test]
async fn every_answer_forbids_what_the_page_does_not_need() {
    let page = page(PageFor::Loopback);
    for path in PARTS.into_iter().chain(DATA) {
        for host in ["127.0.0.1", "attacker.example"] {
            let answer = ask(&page, path, HOME, &[("host", host)], false).await.unwrap();
            let policy = answer.headers["content-security-policy"].to_str().unwrap();
            let harmless = |source: &str| ["'none'", "'self'", "data:"].contains(&source);
            let narrow = policy.split("; ").all(|part| part.split_whitespace().skip(1).all(harmless));
            assert!(policy.starts_with("default-src 'none';") && narrow, "{path}: {policy}");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers["cross-origin-resource-policy"], "same-origin");
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
}

#[tokio::test]
async fn what_is_asked_wrongly_is_said_and_headers_alone_cost_nothing() {
    let page = page(PageFor::Loopback);
    let host = [("host", "127.0.0.1")];
    for (path, status, words) in [
        ("/api/history", 503, "loop"),
        ("/api/flows?search=443", 503, "loop"),
        ("/api/why", 400, "use flow="),
        ("/api/why?flow=tcp+a+b", 400, "10.0.1.2:40000"),
        ("/api/why?flow=tcp+10.0.0.1:1+%5Bfd00::2%5D:2", 400, "families"),
        ("/api/why?flow=tcp+10.0.0.1:1+%3E+10.0.0.2:2", 503, "loop"),
        (&format!("/api/flows?search={}", "x".repeat(MOST_QUERY)), 414, "long"),
    ] {
        let answer = ask(&page, path, HOME, &host, false).await.unwrap();
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.contains(words), "{path}: {}", answer.body);
    }
    for path in DATA {
        let answer = ask(&page, path, HOME, &host, true).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(page.live.available_permits(), MOST_LIVE);
}

#[tokio::test(start_paused = true)]
async fn live_numbers_go_to_a_few_end_by_themselves_and_leave_nothing() {
    let page = page(PageFor::Loopback);
    let request = Request::builder().uri("/events").header("host", "127.0.0.1").body(()).unwrap();
    let asked = Asked { uri: request.uri(), headers: request.headers(), head: false, from: HOME };
    let mut open = Vec::new();
    for _ in 0..MOST_LIVE {
        let answer = page.answer(asked).await.unwrap();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        open.push(answer);
    }
    assert_eq!(page.answer(asked).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE, "one too many");
    // A client that goes leaves its place to the next.
    drop(open.pop());
    let last = page.answer(asked).await.unwrap();
    assert_eq!(last.status(), StatusCode::OK);
    // Nobody reads: nothing is asked. A reader is told until the stream ends, before the port's limit of 60 s.
    let begun = tokio::time::Instant::now();
    let body = last.into_body().collect().await.unwrap().to_bytes();
    let told = String::from_utf8(body.to_vec()).unwrap();
    assert!(told.matches("event: failed\n").count() > 10, "{told}");
    assert!(begun.elapsed() < Duration::from_secs(60) && begun.elapsed() > Duration::from_secs(40));
    drop(open);
    assert_eq!(page.live.available_permits(), MOST_LIVE);
}

fn snapshot() -> Snapshot {
    let passed = |packets: u64| Passed {
        all: Tally { packets, bytes: 100 * packets },
        fast: Tally { packets: packets / 2, bytes: 50 * packets },
    };
    let steps = (5..9).map(|number| (number, Step { covered_ns: STEP_NS, passed: passed(number) })).collect();
    let hour = Hour { steps, total: passed(26), now_ns: 8 * STEP_NS + 1, took: Duration::from_millis(3) };
    let event =
        Event { at_ns: 6 * STEP_NS, kind: Kind::InterfaceCame, about: "</script>\"\n".to_owned(), times: 2 };
    let status = Status { node: "node".to_owned(), ready: true, threshold: 20, ..Status::default() };
    data::Snapshot::of(status, vec![event], hour)
}

#[tokio::test]
async fn a_client_gets_what_it_has_not_got() {
    let snapshot = snapshot();
    let all: serde_json::Value = serde_json::from_str(&snapshot.since(None)).unwrap();
    assert_eq!(all["steps"].as_array().unwrap().len(), 4);
    assert_eq!(all["steps"][0], serde_json::json!([5, 10_000, [5, 500, 2, 250]]));
    assert_eq!(all["total"], serde_json::json!([26, 2600, 13, 1300]));
    assert_eq!(
        (&all["now_ms"], &all["step_ms"], &all["keeps"]),
        (&80_000.into(), &10_000.into(), &360.into())
    );
    let event =
        serde_json::json!({"at_ms": 60_000, "kind": "interface-came", "about": "</script>\"\n", "times": 2});
    assert_eq!(all["events"], serde_json::json!([event]));
    let rest: serde_json::Value = serde_json::from_str(&snapshot.since(Some(8))).unwrap();
    assert_eq!(rest["steps"], serde_json::json!([[8, 10_000, [8, 800, 4, 400]]]));
    assert!(!snapshot.since(None).contains('\n'), "an event is a line");
}

fn flow(port: u16, packets: u64, state: State) -> Flow {
    let tuple = Tuple {
        source: "10.1.0.2".parse().unwrap(),
        destination: "10.96.0.1".parse().unwrap(),
        protocol: 6,
        source_port: port,
        destination_port: 443,
    };
    let seen = FlowCounters { packets, bytes: packets * 100, ifindex: 2, ..FlowCounters::default() };
    let reply = Tuple { source: "10.2.0.2".parse().unwrap(), ..tuple.reversed() };
    Flow { state, reply: Some(reply), ..Flow::gone(tuple, seen) }
}

#[tokio::test]
async fn flows_are_grouped_by_what_may_become_of_them() {
    let slow = Path { accelerated: Some(false), ..Path::default() };
    for (state, path, group) in [
        (State::Offloaded, Path::default(), "fast"),
        (State::HwOffloaded, Path::default(), "fast"),
        (State::Offloaded, slow, "could-be-fast"),
        (State::not(WhyNot::OneWay), Path::default(), "could-be-fast"),
        (State::Idle, Path::default(), "could-be-fast"),
        (State::not(WhyNot::Local), Path::default(), "never"),
        (State::because(Cause::about(WhyNot::Excluded, "port/443")), Path::default(), "never"),
        (State::BelowThreshold, Path::default(), "could-be-fast"),
        (State::Closing, Path::default(), "never"),
    ] {
        let mut list = data::List::new("", Some(group), Known::of("192.0.2.1", "nobody"));
        list.add(Flow { path, ..flow(1, 1, state.clone()) }, &Node::default());
        let written: serde_json::Value = serde_json::from_str(&list.written(&snapshot())).unwrap();
        assert_eq!(written["matching"], 1, "{state:?} is {group}");
        assert_eq!(written["flows"][0]["group"], group);
    }
}

#[tokio::test]
async fn only_the_heaviest_flows_are_sent_however_many_match() {
    let node = Node {
        names: HashMap::from([(IfIndex(2), IfName::new("eth0").unwrap())]).into_iter().collect(),
        ..Node::default()
    };
    let mut list = data::List::new("443 eth web-0", None, Known::of("10.1.0.2", "shop/web-0"));
    for port in 1..=50_000 {
        list.add(flow(port, u64::from(port), State::Offloaded), &node);
    }
    list.add(flow(1, u64::MAX / 200, State::Offloaded), &Node::default());
    let written = list.written(&snapshot());
    assert!(written.len() < 64 * 1024, "{} bytes", written.len());
    let written: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["matching"], 50_000);
    let flows = written["flows"].as_array().unwrap();
    assert_eq!(flows.len(), 200);
    assert_eq!(flows[0]["flow"], "tcp 10.1.0.2:50000 > 10.96.0.1:443");
    assert_eq!(flows[0]["named"], "tcp shop/web-0:50000 > 10.96.0.1:443");
    assert_eq!(flows[0]["server"], "10.2.0.2:443");
    assert_eq!((&flows[0]["bytes"], &flows[199]["packets"]), (&5_000_000.into(), &49_801.into()));
}

/// The parts have nothing from elsewhere, nothing inline, and no way to make markup of text.
#[test]
fn the_page_is_small_and_whole() {
    assert!(HTML.len() + CSS.len() + JS.len() < 24 * 1024);
    for (part, name) in [(HTML, "html"), (CSS, "css"), (JS, "js")] {
        let text = part.replace("http://www.w3.org/2000/svg", "");
        for bad in [
            "http:",
            "https:",
            "//cdn",
            "@import",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=",
            "onclick",
        ] {
            assert!(!text.contains(bad), "{bad} in {name}");
        }
    }
}
