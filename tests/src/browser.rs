//! A real Chromium in a namespace, driven by the DevTools protocol over two pipes (`--remote-debugging-pipe`: messages are JSON,
//! each ended by a zero byte).

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::netns::Netns;

/// How long an answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A page in a running browser. Both are ended when dropped.
pub struct Browser {
    child: Child,
    orders: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    last: u64,
    /// What it asked the network for: URLs.
    pub requests: Vec<String>,
    /// What went wrong: exceptions of scripts, and what the browser refuses or complains of.
    pub errors: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it with an empty page: the program in `FASTPATH_CHROMIUM`.
    #[track_caller]
    pub fn start(node: &Netns) -> Self {
        let program = std::env::var("FASTPATH_CHROMIUM").expect("FASTPATH_CHROMIUM, the browser's program");
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sh");
        // The browser reads orders from descriptor 3 and answers at 4.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh", &program]);
        command.args([
            "--headless",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]);
        command.args([
            "--hide-scrollbars",
            "--font-render-hinting=none",
            "--force-color-profile=srgb",
            "--lang=en",
        ]);
        command.args([
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--no-proxy-server",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = node.spawn(&mut command);
        let orders = child.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            orders,
            messages,
            session: None,
            last: 0,
            requests: Vec::new(),
            errors: Vec::new(),
            _profile: profile,
        };
        let target = browser.order("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.order("Target.attachToTarget", &target);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.order(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Sends an order and gives its answer.
    #[track_caller]
    pub fn order(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut order = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            order["sessionId"] = session.as_str().into();
        }
        self.orders.write_all(format!("{order}\0").as_bytes()).expect("the browser listens");
        let deadline = Instant::now() + LIMIT;
        loop {
            let message =
                self.next(deadline).unwrap_or_else(|| panic!("no answer to {method} within {LIMIT:?}"));
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Option<Value> {
        let message = match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended: {:?}", self.child.wait()),
        };
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.extend(parameters["request"]["url"].as_str().map(str::to_owned));
            }
            Some("Runtime.exceptionThrown") => self.errors.push(parameters["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if parameters["entry"]["level"] != "verbose" => {
                self.errors.push(parameters["entry"].to_string());
            }
            Some("Runtime.consoleAPICalled") => self.errors.push(parameters["args"].to_string()),
            _ => {}
        }
        Some(message)
    }

    /// What the expression is worth in the page.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.order("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Text of the element with this id, as it is shown.
    #[track_caller]
    pub fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').innerText"));
        text.as_str().unwrap_or_else(|| panic!("no element {id}")).to_owned()
    }

    /// Waits until the expression is true.
    #[track_caller]
    pub fn wait_until(&mut self, expression: &str) {
        let deadline = Instant::now() + LIMIT;
        while self.value(expression) != true {
            if Instant::now() > deadline {
                let shown = self.value("document.body.innerText");
                panic!(
                    "{expression} is still false after {LIMIT:?}: {:?}\n{}",
                    self.errors,
                    shown.as_str().unwrap_or_default()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Opens an address in a window of this width, in light or dark colours.
    #[track_caller]
    pub fn open(&mut self, url: &str, width: u32, height: u32, colours: &str) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.order("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": colours}]});
        self.order("Emulation.setEmulatedMedia", &scheme);
        let opened = self.order("Page.navigate", &json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        self.wait_until(&format!("location.href.startsWith('{url}') && document.readyState === 'complete'"));
    }

    /// Types text where the focus is.
    #[track_caller]
    pub fn type_text(&mut self, text: &str) {
        self.order("Input.insertText", &json!({"text": text}));
    }

    /// Presses a key (`Tab`, `Enter`, `Escape`) and releases it.
    #[track_caller]
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            _ => 27,
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if key == "Enter" && kind == "keyDown" {
                event["text"] = "\r".into();
            }
            self.order("Input.dispatchKeyEvent", &event);
        }
    }

    /// The window's content as PNG.
    #[track_caller]
    pub fn screenshot(&mut self) -> Vec<u8> {
        let shot = self.order("Page.captureScreenshot", &json!({"format": "png"}));
        decode(shot["data"].as_str().expect("base64"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Base64 (RFC 4648) without line breaks.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0u32, |bits, byte| bits << 6 | u32::from(digit(*byte)));
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}
