//! The NBD client against servers that lie. A server may make a request fail; it may not make the client panic, hang or
//! take memory by its word.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diskette::native::Nbd;
use diskette::protocols::nbd::{Address, Settings};
use diskette::{ErrorKind, Node, Range, ReadFlags, Result, State, Want, WriteFlags, block_on};

use crate::support::Scratch;

/// Size of the disk of every server here.
const SIZE: u64 = 8192;
/// Long enough for a loaded machine to answer, short enough to wait for often.
const PATIENCE: Duration = Duration::from_millis(150);

/// What becomes of the messages of a server: told how many it sent before, and the bytes. `false` ends the connection.
type Tamper<'a> = dyn Fn(usize, &mut Vec<u8>) -> bool + Send + Sync + 'a;

/// One side of a connection that is honest but for its tamperer.
struct Speaker<'a> {
    stream: UnixStream,
    sent: usize,
    tamper: &'a Tamper<'a>,
}

impl Speaker<'_> {
    fn say(&mut self, parts: &[&[u8]]) -> Option<()> {
        let mut bytes = parts.concat();
        let goes_on = (self.tamper)(self.sent, &mut bytes);
        self.sent += 1;
        self.stream.write_all(&bytes).ok().filter(|()| goes_on)
    }

    fn hear(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.hear(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Option<()> {
        let len = (data.len() as u32).to_be_bytes();
        let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
        self.say(&[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &len, data])
    }

    fn chunk(&mut self, cookie: &[u8], flags: u16, kind: u16, data: &[u8]) -> Option<()> {
        let len = (data.len() as u32).to_be_bytes();
        let magic = 0x668e_33efu32.to_be_bytes();
        self.say(&[&magic, &flags.to_be_bytes(), &kind.to_be_bytes(), cookie, &len, data])
    }

    /// Flags, trim, zeroes, fast zeroes, flush, force unit access.
    const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 2048;

    fn serve(&mut self) -> Option<()> {
        self.say(&[b"NBDMAGICIHAVEOPT", &3u16.to_be_bytes()])?;
        self.hear(4)?;
        loop {
            self.hear(8)?;
            let (option, len) = (self.number()?, self.number()?);
            self.hear(len as usize)?;
            match option {
                8 => self.reply(option, 1, &[])?,
                10 => {
                    self.reply(option, 4, b"\0\0\0\x05base:allocation")?;
                    self.reply(option, 1, &[])?;
                }
                7 => {
                    let export = [&[0, 0], &SIZE.to_be_bytes()[..], &Self::FLAGS.to_be_bytes()].concat();
                    self.reply(option, 3, &export)?;
                    let blocks = [&[0, 3], &1u32.to_be_bytes()[..], &[0, 0, 16, 0], &[2, 0, 0, 0]].concat();
                    self.reply(option, 3, &blocks)?;
                    self.reply(option, 1, &[])?;
                    break;
                }
                _ => self.reply(option, 0x8000_0001, b"what?")?,
            }
        }
        loop {
            let request = self.hear(28)?;
            let (cookie, offset, len) = (&request[8..16], &request[16..24], &request[24..28]);
            match request[7] {
                0 => {
                    let len = u32::from_be_bytes(len.try_into().unwrap()) as usize;
                    let half = len / 2;
                    self.chunk(cookie, 0, 1, &[offset, &vec![7; half]].concat())?;
                    let second = u64::from_be_bytes(offset.try_into().unwrap()) + half as u64;
                    let hole = [&second.to_be_bytes()[..], &((len - half) as u32).to_be_bytes()].concat();
                    self.chunk(cookie, 1, 2, &hole)?;
                }
                1 => {
                    self.hear(u32::from_be_bytes(len.try_into().unwrap()) as usize)?;
                    self.say(&[&0x6744_6698u32.to_be_bytes(), &[0; 4], cookie])?;
                }
                2 => return None,
                7 => self.chunk(cookie, 1, 5, &[&[0, 0, 0, 5], &2048u32.to_be_bytes()[..], &[0, 0, 0, 3]].concat())?,
                _ => self.chunk(cookie, 1, 0, &[])?,
            }
        }
    }
}

/// A server in a thread of this process, for any number of connections one after the other.
struct Server {
    scratch: Scratch,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(handle: impl Fn(usize, UnixStream) + Send + 'static) -> Self {
        let scratch = Scratch::new("nbd");
        let listener = UnixListener::bind(socket(&scratch)).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                handle(count.fetch_add(1, Ordering::SeqCst), stream.unwrap());
            }
        });
        Server { scratch, connections }
    }

    /// One that is honest but for what `tamper` does to the messages of a connection.
    fn tampering(tamper: impl Fn(usize, usize, &mut Vec<u8>) -> bool + Send + Sync + 'static) -> Self {
        Self::start(move |connection, stream| {
            let tamper = |sent, bytes: &mut Vec<u8>| tamper(connection, sent, bytes);
            Speaker { stream, sent: 0, tamper: &tamper }.serve();
        })
    }

    fn settings(&self) -> Settings {
        let path = socket(&self.scratch).to_str().unwrap().to_string();
        Settings::new(Address::Unix { path }, "exp")
    }

    fn open(&self) -> Result<Arc<Nbd>> {
        Nbd::open_patiently(&self.settings(), false, PATIENCE)
    }
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path("nbd.sock").into()
}

/// Everything that a client can do.
fn session(server: &Server) -> Result<()> {
    let node = server.open()?;
    let info = node.info();
    let mut buffer = vec![0; 1024];
    block_on(node.read(512, &mut buffer, ReadFlags::default()))?;
    let extent = block_on(node.map(Range::new(0, info.length), Want::Precise))?;
    assert!(extent.len > 0 && extent.len <= info.length);
    block_on(node.write(0, &buffer, WriteFlags { force_unit_access: true, ..WriteFlags::default() }))?;
    block_on(node.write_zeroes(Range::new(0, 512), WriteFlags { no_fallback: true, ..WriteFlags::default() }))?;
    block_on(node.discard(Range::new(0, 512)))?;
    block_on(node.flush())
}

#[test]
fn an_honest_server_is_understood() {
    let server = Server::tampering(|_, _, _| true);
    session(&server).unwrap();
    let node = server.open().unwrap();
    assert_eq!((node.info().length, node.info().request_alignment, node.info().read_only), (SIZE, 1, false));
    let mut buffer = [1; 8];
    block_on(node.read(0, &mut buffer, ReadFlags::default())).unwrap();
    assert_eq!(buffer, [7, 7, 7, 7, 0, 0, 0, 0]);
    let extent = block_on(node.map(Range::new(0, SIZE), Want::Precise)).unwrap();
    assert_eq!((extent.len, extent.state, extent.host), (2048, State::Zero, None));
    let beyond = block_on(node.write(SIZE, &[0], WriteFlags::default())).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::NoSpace);
    assert!(block_on(node.read(SIZE - 1, &mut buffer, ReadFlags::default())).is_err());
    assert!(block_on(node.resize(SIZE + 1, diskette::Preallocation::Off)).is_err());
}

/// How many messages an honest server sends in a session, and how long each is.
fn messages() -> Vec<usize> {
    let lengths = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = lengths.clone();
    session(&Server::tampering(move |_, _, bytes| {
        seen.lock().unwrap().push(bytes.len());
        true
    }))
    .unwrap();
    let lengths = lengths.lock().unwrap();
    assert!(lengths.len() > 12, "{lengths:?}");
    lengths.clone()
}

#[test]
fn a_connection_that_ends_anywhere_is_an_error() {
    let lengths = messages();
    for (step, len) in lengths.into_iter().enumerate() {
        for keep in (0..len).step_by(1 + len / 24) {
            let server = Server::tampering(move |_, sent, bytes| {
                bytes.truncate(if sent == step { keep } else { bytes.len() });
                sent != step
            });
            let error = session(&server).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "message {step} cut at {keep}: {error}");
        }
    }
}

#[test]
fn no_change_of_any_byte_makes_the_client_hang_or_panic() {
    let lengths = messages();
    let began = Instant::now();
    let mut workers = Vec::new();
    for (step, len) in lengths.into_iter().enumerate() {
        workers.push(thread::spawn(move || {
            for at in 0..len.min(48) {
                for change in [|byte: u8| !byte, |_| 0xff, |_| 0, |byte: u8| byte ^ 1] {
                    let server = Server::tampering(move |_, sent, bytes| {
                        if let Some(byte) = bytes.get_mut(at).filter(|_| sent == step) {
                            *byte = change(*byte);
                        }
                        true
                    });
                    // Some changes are of no consequence.
                    let _ = session(&server);
                }
            }
        }));
    }
    for worker in workers {
        worker.join().unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

#[test]
fn lengths_of_a_server_are_not_believed() {
    // The last four bytes of the head of each message are a length, or part of one.
    for (step, at, problem) in [
        (1, 16, "too long"),
        (2, 16, "too long"),
        (4, 16, "too long"),
        (7, 16, "bytes of offset"),
        (8, 16, "not 12"),
        (9, 16, "cannot be"),
    ] {
        let server = Server::tampering(move |_, sent, bytes| {
            if let Some(length) = bytes.get_mut(at..at + 4).filter(|_| sent == step) {
                length.fill(0xff);
            }
            true
        });
        let text = session(&server).unwrap_err().to_string();
        assert!(text.contains(problem), "message {step}: {text}");
    }
}

/// A server that speaks an honest handshake and then says one thing to every request, for ever.
fn babbling(answer: impl Fn(&[u8], u64) -> Vec<u8> + Send + Sync + 'static) -> Server {
    Server::start(move |_, stream| {
        let mut copy = stream.try_clone().unwrap();
        let enough = |sent, _: &mut Vec<u8>| sent < 6;
        Speaker { stream, sent: 0, tamper: &enough }.serve();
        let mut request = [0; 28];
        if copy.read_exact(&mut request).is_ok() {
            let mut count = 0;
            while copy.write_all(&answer(&request[8..16], count)).is_ok() {
                count += 1;
            }
        }
    })
}

fn chunk(cookie: &[u8], flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [&0x668e_33efu32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), cookie, &len, data].concat()
}

#[test]
fn answers_without_an_end_are_cut_off() {
    let hole = |at: u64, len: u32| [&at.to_be_bytes()[..], &len.to_be_bytes()].concat();
    let servers = [
        babbling(|cookie, _| chunk(cookie, 0, 0x8001, b"\0\0\0\x05\0\0")),
        babbling(|cookie, _| chunk(cookie, 0, 0, b"")),
        babbling(move |cookie, count| chunk(cookie, 0, 2, &hole(count * 2 % SIZE, 1))),
        babbling(move |cookie, _| chunk(cookie, 0, 2, &hole(0, 0))),
        babbling(|cookie, _| chunk(cookie, 0, 5, b"\0\0\0\x05\0\0\x01\0\0\0\0\0")),
        babbling(|_, _| vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
        babbling(|_, _| vec![0; 64]),
    ];
    for (index, server) in servers.iter().enumerate() {
        let node = server.open().unwrap();
        let error = block_on(node.read(0, &mut [0; SIZE as usize], ReadFlags::default())).unwrap_err();
        assert!(error.to_string().contains("Protocol error"), "{index}: {error}");
    }
}

#[test]
fn a_handshake_without_an_end_is_cut_off() {
    let reply = |kind: u32, option: u32, data: &[u8]| {
        let len = (data.len() as u32).to_be_bytes();
        [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat()
    };
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &3u16.to_be_bytes()].concat();
    let refusals = [reply(0x8000_0001, 8, b""), reply(3, 7, b"\0\x01name")];
    let endless = Server::start(move |_, mut stream| {
        let mut parts = vec![greeting.clone(), refusals[0].clone()];
        while parts.iter().all(|part| stream.write_all(part).is_ok()) {
            parts = vec![refusals[1].clone()];
        }
    });
    let silent = Server::start(|_, mut stream| {
        let _ = stream.read(&mut [0]);
    });
    let dripping = Server::start(|_, mut stream| {
        for byte in b"NBDMAGICIHAVEOPT".iter().cycle() {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(40));
        }
    });
    for server in [endless, silent, dripping] {
        let began = Instant::now();
        assert!(server.open().is_err());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn a_server_that_takes_nobody_does_not_keep_a_client_for_ever() {
    let scratch = Scratch::new("nbd");
    let path = socket(&scratch);
    // It listens, and leaves everybody waiting until no more fit in.
    let listener = UnixListener::bind(&path).unwrap();
    let waiting = thread::spawn({
        let path = path.clone();
        move || while UnixStream::connect(&path).is_ok_and(|stream| Box::leak(Box::new(stream)).peer_addr().is_ok()) {}
    });
    thread::sleep(Duration::from_secs(1));
    assert!(!waiting.is_finished());
    let settings = Settings::new(Address::Unix { path: path.to_str().unwrap().into() }, "exp");
    let began = Instant::now();
    let error = Nbd::open_patiently(&settings, false, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("Connection timed out"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(listener);
}

#[test]
fn a_lost_connection_is_made_again_if_there_is_time_for_that() {
    // The first connection ends when the first request has been answered in part.
    let server = Server::tampering(|connection, sent, bytes| {
        let ends = connection == 0 && sent == 7;
        bytes.truncate(if ends { 10 } else { bytes.len() });
        !ends
    });
    let settings = Settings { reconnect_delay: 20, ..server.settings() };
    let node = Nbd::open(&settings, false).unwrap();
    let mut buffer = [1; 8];
    block_on(node.read(0, &mut buffer, ReadFlags::default())).unwrap();
    assert_eq!(buffer, [7, 7, 7, 7, 0, 0, 0, 0]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn a_lost_connection_fails_the_request_and_not_the_next_one() {
    let server = Server::tampering(|connection, sent, _| connection != 0 || sent < 7);
    let node = server.open().unwrap();
    let mut buffer = [1; 8];
    assert!(block_on(node.read(0, &mut buffer, ReadFlags::default())).is_err());
    block_on(node.read(0, &mut buffer, ReadFlags::default())).unwrap();
}

#[test]
fn an_export_that_has_changed_is_not_taken_for_the_same() {
    let server = Server::tampering(|connection, sent, bytes| {
        if connection > 0 && sent == 4 {
            bytes[28] ^= 0x10;
        }
        connection != 0 || sent < 7
    });
    let node = server.open().unwrap();
    let mut buffer = [1; 8];
    assert!(block_on(node.read(0, &mut buffer, ReadFlags::default())).is_err());
    let error = block_on(node.read(0, &mut buffer, ReadFlags::default())).unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
}

#[test]
fn opening_waits_for_a_server_as_long_as_it_is_told() {
    let scratch = Scratch::new("nbd");
    let path = socket(&scratch);
    let address = Address::Unix { path: path.to_str().unwrap().into() };
    let settings = Settings { open_timeout: 1, ..Settings::new(address, "") };
    let began = Instant::now();
    assert!(Nbd::open(&settings, true).is_err());
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(3));
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let (stream, _) = UnixListener::bind(path).unwrap().accept().unwrap();
        Speaker { stream, sent: 0, tamper: &|_, _| true }.serve();
    });
    let settings = Settings { open_timeout: 20, ..settings };
    drop(Nbd::open(&settings, true).unwrap());
    late.join().unwrap();
}
