//! Standard error and the journal's socket, written without ever waiting for a reader: what doesn't fit is lost, and
//! counted. Knows nothing of what a line looks like.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{MsgFlags, SockType, getsockopt, send, sockopt},
        stat::{SFlag, fstat},
    },
};

/// What the kernel is asked to keep of a pipe that isn't read, in bytes: some thousand lines. It takes the memory only while
/// they wait.
const PIPE_SIZE: i32 = 1 << 20;
/// What a pipe that can be written takes at once (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;

/// How standard error is written without waiting.
enum Way {
    /// A file: it needs no reader.
    File,
    /// A pipe or terminal, opened once more: whether a write waits is a matter of the open file, which others may share.
    Opened(File),
    /// A socket, asked not to wait by each call.
    Socket,
    /// A pipe or terminal that can't be opened again (another user's): asked first whether it takes something.
    Asked,
}

/// Standard error. Writing to it never waits and never fails.
pub struct LogOutput {
    way: Way,
    /// The end of a line whose beginning is written.
    rest: Vec<u8>,
    lost: u64,
    /// The line that says how many were lost.
    lost_line: fn(u64) -> String,
}

impl LogOutput {
    /// Standard error as it is now.
    pub fn stderr(lost_line: fn(u64) -> String) -> Self {
        let kind = fstat(io::stderr()).map_or(SFlag::empty(), |file| SFlag::from_bits_truncate(file.st_mode));
        let way = match kind & SFlag::S_IFMT {
            SFlag::S_IFSOCK => Way::Socket,
            SFlag::S_IFIFO | SFlag::S_IFCHR => open_again().map_or(Way::Asked, Way::Opened),
            _ => Way::File,
        };
        if kind & SFlag::S_IFMT == SFlag::S_IFIFO {
            // Where it can't be larger it is as large as it is.
            let _ = fcntl(io::stderr(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        }
        Self { way, rest: Vec::new(), lost: 0, lost_line }
    }

    /// Writes what there is room for; how much that was.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::File => io::stderr().write(bytes),
            Way::Opened(file) => file.write(bytes),
            Way::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(io::stderr().as_raw_fd(), bytes, flags)?)
            }
            Way::Asked => {
                let stderr = io::stderr();
                let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut asked, PollTimeout::ZERO)? == 0 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                io::stderr().write(&bytes[..bytes.len().min(AT_ONCE)])
            }
        }
    }

    /// Writes `line`, or the beginning of it and keeps the rest; whether any of it was written.
    fn begin(&mut self, line: &[u8]) -> bool {
        let mut written = 0;
        while written < line.len() {
            match self.put(&line[written..]) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if written > 0 {
            self.rest = line[written..].to_vec();
        }
        written > 0
    }

    /// Writes the end of a line that was begun; whether there is nothing left of it.
    fn complete(&mut self) -> bool {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() && !self.begin(&rest) {
            self.rest = rest;
        }
        self.rest.is_empty()
    }

    fn line(&mut self, line: &[u8]) {
        let whole = match self.lost {
            0 => Cow::Borrowed(line),
            lost => Cow::Owned([(self.lost_line)(lost).as_bytes(), line].concat()),
        };
        if self.complete() && self.begin(&whole) {
            self.lost = 0;
        } else {
            self.lost += 1;
        }
    }
}

impl Write for LogOutput {
    /// Takes a whole line each time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_again() -> io::Result<File> {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    OpenOptions::new().append(true).custom_flags(flags).open("/proc/self/fd/2")
}

/// Makes a socket for datagrams by `make`, which keeps it to itself, and has it never wait. Only for a process that has one thread
/// yet.
pub fn unwaiting<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // The kernel gives the lowest number that is free.
    let number = File::open("/dev/null")?.as_raw_fd();
    let made = make()?;
    never_wait(number)?;
    Ok(made)
}

#[expect(unsafe_code, reason = "the library doesn't show its socket")]
fn never_wait(number: RawFd) -> io::Result<()> {
    // SAFETY: used in this function only, which closes no descriptors; one that isn't open is an error.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    if getsockopt(&socket, sockopt::SockType)? == SockType::Datagram {
        let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
        fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixDatagram};

    use super::*;

    /// A pipe that is written as standard error would be.
    fn output() -> (io::PipeReader, LogOutput) {
        let (reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let way = Way::Opened(File::from(std::os::fd::OwnedFd::from(writer)));
        let lost_line = |lost: u64| format!("{lost} lost\n");
        (reader, LogOutput { way, rest: Vec::new(), lost: 0, lost_line })
    }

    #[test]
    fn what_does_not_fit_is_counted_and_lines_stay_whole() {
        let (mut reader, mut output) = output();
        for number in 0..100 {
            output.write_all(format!("{number:0>99}\n").as_bytes()).unwrap();
        }
        // Longer than what a pipe takes whole or not at all: its end comes when there is room.
        let mut read = vec![0; 4096];
        let length = reader.read(&mut read).unwrap();
        read.truncate(length);
        let long = "x".repeat(5000);
        output.write_all(format!("{long}\n").as_bytes()).unwrap();
        let mut begun = [0; 4096];
        let length = reader.read(&mut begun).unwrap();
        read.extend(&begun[..length]);
        output.write_all(b"again\n").unwrap();
        drop(output);
        let mut end = String::new();
        reader.read_to_string(&mut end).unwrap();
        let text = String::from_utf8(read).unwrap() + &end;
        let lines: Vec<_> = text.lines().collect();
        let whole = lines.iter().filter(|line| line.len() == 99).count();
        assert_eq!(whole, 40);
        assert!(lines[whole..] == ["60 lost", &long, "again"], "{} lines", lines.len());
    }

    #[test]
    fn a_socket_that_its_owner_hides_does_not_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _reader = UnixDatagram::bind(&path).unwrap();
        // Other tests' threads may take the number; it is found in the end.
        let full = (0..100).any(|_| {
            let socket = unwaiting(UnixDatagram::unbound).unwrap();
            let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL).unwrap());
            flags.contains(OFlag::O_NONBLOCK)
                && (0..1000).any(|_| {
                    socket.send_to(b"x", &path).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                })
        });
        assert!(full);
    }
}
