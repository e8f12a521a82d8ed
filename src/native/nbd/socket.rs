//! Sockets that a server is spoken to through.

use alloc::string::{String, ToString};
use std::format;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::error::{Error, ErrorKind, Result};
use crate::protocols::nbd::{Address, Channel};

/// Said when the other side is gone.
const ENDED: &str = "Unexpected end-of-file before all data were read";

/// Time between two looks whether a server has room for a connection.
const ROOM_TIME: Duration = Duration::from_millis(10);

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    /// When everything must be over. Without, each read and write may take [`Socket::patience`].
    deadline: Option<Instant>,
    patience: Duration,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a server, until `deadline`.
    pub(super) fn connect(address: &Address, deadline: Instant, patience: Duration) -> Result<Self> {
        let failed = |error: &io::Error| {
            let text = format!("Failed to connect to '{address}': {}", reason(error));
            Error::new(ErrorKind::Io, text)
        };
        let stream = match address {
            Address::Unix { path } => Stream::Unix(connect_unix(path, deadline).map_err(|error| failed(&error))?),
            Address::Inet { host, port } => {
                let unresolved =
                    |why: &str| Error::invalid(format!("address resolution failed for {host}:{port}: {why}"));
                let number: u16 = port.parse().map_err(|_| unresolved("Servname not supported for ai_socktype"))?;
                let found = (host.as_str(), number).to_socket_addrs().map_err(|error| {
                    let text = reason(&error);
                    unresolved(text.rsplit(": ").next().unwrap_or(&text))
                })?;
                let mut last = None;
                let mut connected = None;
                for place in found {
                    match TcpStream::connect_timeout(&place, remaining(deadline)) {
                        Ok(stream) => {
                            connected = Some(stream);
                            break;
                        }
                        Err(error) => last = Some(error),
                    }
                }
                let stream = connected
                    .ok_or_else(|| failed(&last.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))))?;
                stream.set_nodelay(true).map_err(|error| failed(&error))?;
                Stream::Tcp(stream)
            }
        };
        Ok(Socket { stream, deadline: Some(deadline), patience })
    }

    /// From now on there is no time by which all must be over.
    pub(super) fn settle(&mut self) {
        self.deadline = None;
    }

    fn limit(&self) -> io::Result<()> {
        let time = self.deadline.map_or(self.patience, remaining);
        match &self.stream {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
        }
    }

    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }
}

impl Channel for Socket {
    fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        let failed =
            |error: &io::Error| Error::new(ErrorKind::Io, format!("Unable to read from socket: {}", reason(error)));
        let mut done = 0;
        // Once before the first read, and for each further one while a deadline comes nearer.
        let mut limited = false;
        while done < into.len() {
            if !limited || self.deadline.is_some() {
                self.limit().map_err(|error| failed(&error))?;
                limited = true;
            }
            match self.read_some(into.get_mut(done..).unwrap_or_default()) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, ENDED)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let failed =
            |error: &io::Error| Error::new(ErrorKind::Io, format!("Unable to write to socket: {}", reason(error)));
        self.limit().map_err(|error| failed(&error))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.write_some(rest) {
                Ok(0) => return Err(failed(&io::Error::from(io::ErrorKind::WriteZero))),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }
}

/// Connects to a socket in the file system. Where a server has not taken those that came before, there may be no room for
/// another connection until `deadline`.
fn connect_unix(path: &str, deadline: Instant) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                thread::sleep(ROOM_TIME.min(remaining(deadline)));
            }
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Time up to a deadline, never none at all: that would mean for ever.
fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// The message of an operating system error without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        return "Connection timed out".to_string();
    }
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}
