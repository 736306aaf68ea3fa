//! The page in a real Chromium: a real agent behind it, on a phone, a tablet and a desk, in light and in dark, by keyboard; and
//! the picture in the README.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
};

use fastpath_agent::daemon::page;
use fastpath_tests::{
    agent::{self, Agent},
    browser::Browser,
    http::{ADDRESS, SERVE, bring_loopback_up},
    netns::Netns,
    topology::{Family, Topology},
    traffic::Proto,
};

use crate::host::ebpf::setup::Bpffs;

const URL: &str = "http://127.0.0.1:19080/";

/// The browser found nothing wrong, and asked nobody else.
#[track_caller]
fn assert_clean(browser: &Browser) {
    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    assert!(!browser.requests.is_empty());
    let elsewhere: Vec<_> =
        browser.requests.iter().filter(|url| !url.starts_with(URL) && *url != "data:,").collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// Keeps a picture to look at.
fn keep(name: &str, picture: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/page");
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join(name), picture).expect("the tree can be written");
}

#[test]
fn a_browser_shows_a_running_agent() {
    let topology = Topology::routed();
    let node = &topology.node;
    bring_loopback_up(node);
    let bpffs = Bpffs::mount();
    let pin_path = format!("--pin-path={}", bpffs.pin_path().display());
    let flags = [SERVE, &pin_path, "--fastpath-threshold=0", "--hostname-override=router"];
    let agent = Agent::spawn(node, &mut agent::command(&flags));
    agent::wait_for_programs_at(node, &["c0", "s0"], &bpffs.pin_path());
    // Names are for whoever makes an interface to choose.
    node.ip("link add <b>x type veth peer name e0\n");
    let mut quiet = topology.open(Proto::Tcp, Family::V4, 7002);
    assert_eq!(quiet.rounds(50), 50);
    let busy = topology.open(Proto::Udp, Family::V4, 7001).in_background();

    let mut browser = Browser::start(node);
    for (width, height, colours) in [(390, 844, "light"), (800, 1100, "dark"), (1280, 900, "light")] {
        browser.open(URL, width, height, colours);
        browser.wait_until("document.querySelectorAll('#list tr').length >= 2");
        // Live: it takes two numbers to make a rate.
        browser.wait_until("/[1-9].*bit\\/s/.test(document.getElementById('rate').textContent)");
        assert!(browser.text("standing").starts_with("Ready: "), "{}", browser.text("standing"));
        assert_eq!(browser.text("node"), "router");
        assert_eq!(browser.text("share"), "0 %", "nothing offloads here");
        browser.wait_until("document.querySelector('#chart .slow').getAttribute('d').length > 20");
        assert!(browser.text("told").contains("took the fast path"), "{}", browser.text("told"));
        let events = browser.text("events");
        assert!(events.contains("interface came: ") && events.contains("<b>x"), "{events}");
        assert_eq!(browser.value("document.querySelectorAll('#events b').length"), 0);
        let wide = browser.value("document.documentElement.scrollWidth").as_u64().expect("a number");
        assert!(wide <= u64::from(width), "{wide} of {width} points wide");
        let background = browser.value("getComputedStyle(document.body).backgroundColor");
        assert_eq!(background == "rgb(255, 255, 255)", colours == "light", "{background}");

        keep(&format!("{width}.png"), &browser.screenshot());

        // By keyboard: search, go to the flow, ask why, and back.
        browser.value("document.getElementById('search').focus()");
        browser.type_text("7002 tcp");
        browser.wait_until("document.getElementById('found').textContent === '1 flow matches.'");
        let mut tabs = 0;
        while browser.value("document.activeElement.dataset.flow || ''") == "" {
            tabs += 1;
            assert!(tabs < 10, "no flow after {tabs} tabs");
            browser.press("Tab");
        }
        let flow = browser.value("document.activeElement.dataset.flow");
        let flow = flow.as_str().expect("its name").to_owned();
        assert!(flow.starts_with("tcp ") && flow.ends_with(":7002"), "{flow}");
        browser.press("Enter");
        browser.wait_until("document.querySelectorAll('#steps li').length === 7");
        assert_eq!(browser.text("why-flow"), flow);
        assert!(browser.text("verdict").contains("no rule"), "{}", browser.text("verdict"));
        assert_eq!(browser.text("command"), format!("fastpath-agent why {}", flow.replace(" > ", " ")));
        browser.press("Escape");
        browser.wait_until("!document.getElementById('why').open");
        assert_eq!(
            browser.value("document.activeElement.dataset.flow || ''"),
            flow.as_str(),
            "focus is back"
        );
    }
    assert_clean(&browser);
    busy.stop();
    agent.stop();
    browser.wait_until("document.getElementById('standing').textContent.startsWith('No news')");
}

/// What a node of the test guest answered after an hour: see `page::an_hour_with_everything_on_it`.
fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("it/here/page").join(name)
}

/// Gives out the page's own files, and what was recorded.
fn serve_recording(node: &Netns) {
    let listener = node.run(|| TcpListener::bind(ADDRESS)).expect("a free port");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
}

fn answer(mut stream: TcpStream) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    reader.read_line(&mut line).expect("a request");
    let read = |name: &str| fs::read_to_string(recorded(name)).expect("a recording");
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (kind, body) = match path.split('?').next().unwrap_or_default() {
        "/" => ("text/html; charset=utf-8", page::HTML.to_owned()),
        "/page.css" => ("text/css", page::CSS.to_owned()),
        "/page.js" => ("text/javascript", page::JS.to_owned()),
        "/api/flows" => ("application/json", read("flows.json")),
        "/events" => {
            let data =
                format!("data: {}\n\ndata: {}\n\n", read("before.json").trim(), read("after.json").trim());
            ("text/event-stream", format!("retry: 3600000\n{data}"))
        }
        other => panic!("{other}"),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nContent-Security-Policy: {}\r\nConnection: close\r\n",
        body.len(),
        page::POLICY
    );
    // The browser may have gone.
    let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
    let _ = std::io::copy(&mut reader, &mut std::io::sink());
}

/// It is taken anew by each run. With `FASTPATH_UPDATE_DOCS` it takes the place of the one in the README; otherwise that one
/// must have the same size.
#[test]
fn the_picture_in_the_readme_is_what_a_browser_shows() {
    let node = Netns::new("page");
    bring_loopback_up(&node);
    serve_recording(&node);
    let mut browser = Browser::start(&node);
    browser.order("Emulation.setTimezoneOverride", &serde_json::json!({"timezoneId": "UTC"}));
    browser.open(URL, 1280, 960, "light");
    browser.wait_until("document.querySelectorAll('#list tr').length > 5");
    browser.wait_until("/bit\\/s/.test(document.getElementById('rate').textContent)");
    browser.wait_until("document.querySelector('#chart .fast').getAttribute('d').length > 1000");
    let share = browser.text("share");
    assert!(share.trim_end_matches(" %").parse::<u64>().is_ok_and(|share| share > 50), "{share}");
    let picture = browser.screenshot();
    assert_clean(&browser);
    assert!(picture.len() < 150_000, "{} bytes", picture.len());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/page.png");
    if std::env::var_os("FASTPATH_UPDATE_DOCS").is_some() {
        fs::write(&path, &picture).expect("the tree can be written");
    }
    let kept = fs::read(&path).expect("docs/page.png");
    // Width and height, in the header (PNG, 11.2.1).
    let size = |png: &[u8]| png[16..24].to_vec();
    assert_eq!(size(&picture), size(&kept), "take it again: FASTPATH_UPDATE_DOCS=1");
}
