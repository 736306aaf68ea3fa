//! A terminal of the test's own: a pseudo terminal with a program on it, and what that has drawn, cell by cell.

use std::{
    io::{Read, Write},
    num::NonZeroU16,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use pty_process::{
    Size,
    blocking::{Command, Pty},
};
use vt100::{Color, Parser};

use crate::netns::Netns;

/// A terminal with a program on it, which is killed when this is dropped.
pub struct Terminal {
    pty: Arc<Pty>,
    child: Child,
    parser: Arc<Mutex<Parser>>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Runs a program in a namespace, on a fresh terminal of so many lines and columns.
    #[track_caller]
    pub fn run(ns: &Netns, program: &[&str], lines: u16, columns: u16) -> Self {
        let (pty, pts) = pty_process::blocking::open().expect("a pseudo terminal");
        pty.resize(Size::new(lines, columns)).expect("a size");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let command = Command::new(program[0]).args(&program[1..]).env_clear();
        let command = command.env("PATH", path).env("TERM", "xterm-256color");
        let child = ns.run(|| command.spawn(pts)).unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let parser = Arc::new(Mutex::new(Parser::new(size(lines), size(columns), 0)));
        let pty = Arc::new(pty);
        let written = Arc::new(Mutex::new(Vec::new()));
        let (reader, drawn, sink) = (Arc::clone(&pty), Arc::clone(&parser), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error once no process has the terminal open.
            while let Ok(read @ 1..) = (&*reader).read(&mut bytes) {
                sink.lock().expect("bytes").extend(&bytes[..read]);
                drawn.lock().expect("screen").process(&bytes[..read]);
            }
        });
        Self { pty, child, parser, written }
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Gives it another size.
    #[track_caller]
    pub fn resize(&self, lines: u16, columns: u16) {
        // First, so that nothing is drawn for a size that isn't there yet.
        self.parser.lock().expect("screen").screen_mut().set_size(size(lines), size(columns));
        self.pty.resize(Size::new(lines, columns)).expect("a size");
    }

    /// What is on the screen, line by line without what is blank at their ends.
    pub fn lines(&self) -> Vec<String> {
        let parser = self.parser.lock().expect("screen");
        let columns = parser.screen().size().1;
        parser.screen().rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect()
    }

    /// All bytes that the terminal got so far.
    pub fn written(&self) -> Vec<u8> {
        self.written.lock().expect("bytes").clone()
    }

    /// Colour of the character in a cell.
    #[track_caller]
    pub fn colour(&self, line: usize, column: usize) -> Color {
        let parser = self.parser.lock().expect("screen");
        parser.screen().cell(line as u16, column as u16).expect("a cell of the screen").fgcolor()
    }

    /// Whether a program has the whole screen, and whether the cursor is hidden.
    pub fn taken(&self) -> (bool, bool) {
        let parser = self.parser.lock().expect("screen");
        (parser.screen().alternate_screen(), parser.screen().hide_cursor())
    }

    /// Waits until the screen is as asked for, and gives its lines.
    #[track_caller]
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&[String]) -> bool,
    ) -> Vec<String> {
        let start = Instant::now();
        loop {
            let lines = self.lines();
            if condition(&lines) {
                return lines;
            }
            assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process id of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the program") {
                return status;
            }
            assert!(start.elapsed() < limit, "still there after {limit:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the terminal\n{}", self.lines().join("\n"));
        }
    }
}

fn size(cells: u16) -> NonZeroU16 {
    NonZeroU16::new(cells).expect("a screen has cells")
}
