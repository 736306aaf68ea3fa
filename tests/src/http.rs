//! What the agent says at its HTTP port, asked from inside the node's namespace.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::netns::Netns;

/// Where agents of tests serve: each node has a loopback of its own.
pub const ADDRESS: &str = "127.0.0.1:19080";
/// The flag that has them do so; `agent::command` switches it off otherwise.
pub const SERVE: &str = "--metrics-bind-address=127.0.0.1:19080";

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200, 503 …
    pub status: u16,
    /// Status line and headers as they came.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// Brings the node's loopback up: a fresh namespace has it down.
pub fn bring_loopback_up(node: &Netns) {
    node.ip("link set lo up\n");
}

/// GETs `path`, with more header lines (each ended by `\r\n`).
pub fn try_get(node: &Netns, path: &str, headers: &str) -> io::Result<Answer> {
    request(node, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n{headers}\r\n"))
}

/// GETs `path`, which must be answered, however.
#[track_caller]
pub fn get(node: &Netns, path: &str) -> Answer {
    try_get(node, path, "").unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

/// Sends these bytes and reads the answer to its end.
pub fn request(node: &Netns, bytes: &str) -> io::Result<Answer> {
    request_at(node, ADDRESS, bytes)
}

/// The same of another server.
pub fn request_at(node: &Netns, address: &str, bytes: &str) -> io::Result<Answer> {
    let answer = node.run(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(bytes.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, io::Error>(answer)
    })?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
