//! What the tests share: a random source, a leaf that fails and forgets, qemu-img, small helpers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use diskette::drivers::{CreateContext, Drivers, OpenOptions};
use diskette::{
    Error, ErrorKind, Gate, Image, ImageOptions, Keyring, Memory, Node, NodeInfo, Op, Opener, Policy, Preallocation,
    Range, ReadFlags, Reference, Result, Secret, SecretSource, WriteFlags, block_on,
};

/// A small deterministic random source (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// One of the choices.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// A range within `size` bytes, mostly short, at times aligned to `align`.
    pub fn range(&mut self, size: u64, longest: u64, align: u64) -> Range {
        let mut start = self.below(size);
        let mut len = 1 + self.below(longest);
        if self.below(2) == 0 {
            start &= !(align - 1);
            len = len.next_multiple_of(align);
        }
        Range::new(start, len.min(size - start))
    }
}

/// A leaf that keeps what was not flushed apart: after a power cut any subset of it may be lost.
pub struct TestNode {
    state: Mutex<TestState>,
    /// Fails the request with this number, counting mutations from 0.
    pub fail_at: AtomicUsize,
    /// How many requests from there on fail.
    pub failures: AtomicUsize,
    /// Whether a write that fails has written its first half, in whole sectors.
    pub fail_half_way: AtomicBool,
    pub refuses_discards: AtomicBool,
    pub fail_with: ErrorKind,
    /// Mutations of this file and of those beside it.
    mutations: Arc<AtomicUsize>,
    /// Which requests failed.
    pub failed: Mutex<Vec<&'static str>>,
    pub reads: AtomicU64,
}

#[derive(Clone, Default)]
struct TestState {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Sector writes since the last flush, in order: offset and bytes, or a new length.
    pending: Vec<Pending>,
    /// State of the disk before each mutation, if recorded.
    history: Option<Vec<Snapshot>>,
}

impl TestState {
    fn write(&mut self, at: u64, from: &[u8]) {
        let end = at as usize + from.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[at as usize..end].copy_from_slice(from);
        // A disk loses sectors, not requests.
        let mut done = 0;
        while done < from.len() {
            let position = at as usize + done;
            let len = (512 - position % 512).min(from.len() - done);
            self.pending.push(Pending::Write(position as u64, from[done..done + len].to_vec()));
            done += len;
        }
    }
}

#[derive(Clone)]
pub enum Pending {
    Write(u64, Vec<u8>),
    Length(usize),
}

/// What a power cut at one moment can leave behind.
#[derive(Clone)]
pub struct Snapshot {
    /// How many mutations there were until then, of this file and of those beside it.
    pub number: usize,
    pub durable: Vec<u8>,
    pub pending: Vec<Pending>,
}

impl Snapshot {
    /// The file after a power cut that loses each pending write with even odds.
    pub fn survive(&self, random: &mut Random, keep_of_8: u64) -> Vec<u8> {
        let mut file = self.durable.clone();
        for pending in &self.pending {
            if random.below(8) >= keep_of_8 {
                continue;
            }
            match pending {
                Pending::Write(at, bytes) => {
                    let end = *at as usize + bytes.len();
                    if file.len() < end {
                        file.resize(end, 0);
                    }
                    file[*at as usize..end].copy_from_slice(bytes);
                }
                Pending::Length(length) => file.resize(*length, 0),
            }
        }
        file
    }
}

impl TestNode {
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Self::counted(bytes, Arc::default())
    }

    /// A file on the same disk: the mutations of both are counted together.
    pub fn beside(&self, bytes: Vec<u8>) -> Arc<Self> {
        Self::counted(bytes, self.mutations.clone())
    }

    fn counted(bytes: Vec<u8>, mutations: Arc<AtomicUsize>) -> Arc<Self> {
        let state = TestState { durable: bytes.clone(), current: bytes, ..TestState::default() };
        Arc::new(TestNode {
            state: Mutex::new(state),
            fail_at: AtomicUsize::new(usize::MAX),
            failures: AtomicUsize::new(usize::MAX),
            fail_half_way: AtomicBool::new(false),
            refuses_discards: AtomicBool::new(false),
            fail_with: ErrorKind::NoSpace,
            mutations,
            failed: Mutex::default(),
            reads: AtomicU64::new(0),
        })
    }

    pub fn record(&self) {
        self.state.lock().unwrap().history = Some(Vec::new());
    }

    pub fn history(&self) -> Vec<Snapshot> {
        self.state.lock().unwrap().history.clone().unwrap_or_default()
    }

    /// How many moments were recorded.
    pub fn history_len(&self) -> usize {
        self.state.lock().unwrap().history.as_ref().map_or(0, Vec::len)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().current.clone()
    }

    /// As [`TestNode::new`], where the request with that number is the only one that fails, half way.
    pub fn failing_once(bytes: Vec<u8>, at: usize) -> Arc<Self> {
        let node = TestNode::new(bytes);
        node.fail_at.store(at, Ordering::Relaxed);
        node.failures.store(1, Ordering::Relaxed);
        node.fail_half_way.store(true, Ordering::Relaxed);
        node
    }

    fn is_next_to_fail(&self) -> bool {
        self.mutations.load(Ordering::Relaxed) == self.fail_at.load(Ordering::Relaxed)
    }

    /// The number of the next mutation, and whether it fails.
    fn count(&self) -> (usize, bool) {
        let number = self.mutations.fetch_add(1, Ordering::Relaxed);
        let failed = number.checked_sub(self.fail_at.load(Ordering::Relaxed));
        (number, failed.is_some_and(|number| number < self.failures.load(Ordering::Relaxed)))
    }

    fn mutate(&self, kind: &'static str, change: impl FnOnce(&mut TestState)) -> Result<()> {
        let (number, fails) = self.count();
        if fails {
            self.failed.lock().unwrap().push(kind);
            return Err(Error::new(self.fail_with, "no space left, says the test"));
        }
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        if state.history.is_some() {
            let snapshot =
                Snapshot { number: number + 1, durable: state.durable.clone(), pending: state.pending.clone() };
            state.history.get_or_insert_default().push(snapshot);
        }
        Ok(())
    }
}

impl Node for TestNode {
    fn info(&self) -> NodeInfo {
        NodeInfo { zero_init: true, ..NodeInfo::plain(self.state.lock().unwrap().current.len() as u64) }
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let Some(part) = state.current.get(at as usize..at as usize + into.len()) else {
            return Op::err(Error::new(ErrorKind::Io, "read beyond the end of the test file").at_offset(at));
        };
        into.copy_from_slice(part);
        Op::ok(())
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], _flags: WriteFlags) -> Op<'a, ()> {
        if self.fail_half_way.load(Ordering::Relaxed) && self.is_next_to_fail() {
            let half = (at as usize + from.len() / 2) / 512 * 512;
            self.state.lock().unwrap().write(at, &from[..half.saturating_sub(at as usize)]);
        }
        Op::Ready(self.mutate("write", |state| state.write(at, from)))
    }

    fn discard<'a>(&'a self, _range: Range) -> Op<'a, ()> {
        match self.refuses_discards.load(Ordering::Relaxed) {
            true => Op::err(Error::new(ErrorKind::Io, "no discards, says the test")),
            false => Op::ok(()),
        }
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::Ready(self.mutate("flush", |state| {
            state.durable = state.current.clone();
            state.pending.clear();
        }))
    }

    fn resize<'a>(&'a self, length: u64, _preallocation: Preallocation) -> Op<'a, ()> {
        Op::Ready(self.mutate("resize", |state| {
            state.current.resize(length as usize, 0);
            state.pending.push(Pending::Length(length as usize));
        }))
    }
}

/// Makes a qcow2 image in memory.
pub fn create(size: u64, options: &[(&str, &str)]) -> Vec<u8> {
    let file = Memory::new(Vec::new());
    create_in(file.clone(), size, options, None).expect("the options are valid");
    file.to_vec()
}

pub fn create_in(
    file: Arc<dyn Node>,
    size: u64,
    options: &[(&str, &str)],
    data_file: Option<Arc<dyn Node>>,
) -> Result<()> {
    let options: BTreeMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
    create_as("qcow2", file, size, &options, data_file)
}

/// Makes an image of any format.
pub fn create_as(
    format: &str,
    file: Arc<dyn Node>,
    size: u64,
    options: &BTreeMap<String, String>,
    data_file: Option<Arc<dyn Node>>,
) -> Result<()> {
    let create = Drivers::all().by_name(format).and_then(|driver| driver.create).expect("the format can be made");
    block_on(create(CreateContext { file, data_file, size, options, keyring: &keyring() }))
}

/// Secrets of the tests: `s`, and two more. Keys are the same every time, and as there is no clock none takes long.
pub fn keyring() -> Keyring {
    Keyring::new(Arc::new(Host(Mutex::new(Random::new(1)))))
}

struct Host(Mutex<Random>);

impl SecretSource for Host {
    fn secret(&self, id: &str) -> Result<Option<Secret>> {
        let known = [("s", "open sesame"), ("other", "hunter2"), ("third", "swordfish")];
        Ok(known.iter().find(|(name, _)| *name == id).map(|(_, text)| Secret::new(text.as_bytes())))
    }

    fn random(&self, into: &mut [u8]) -> Result<()> {
        let mut random = self.0.lock().unwrap();
        into.iter_mut().for_each(|byte| *byte = random.next() as u8);
        Ok(())
    }

    fn nanoseconds(&self) -> Option<u64> {
        None
    }
}

/// Options that open any qcow2 image of the tests, encrypted ones too.
pub fn readable() -> OpenOptions {
    let driver_options = [("encrypt.key-secret".to_string(), "s".to_string())];
    OpenOptions { driver_options: driver_options.into(), keyring: keyring(), ..OpenOptions::default() }
}

/// Answers references from a table.
#[derive(Default)]
pub struct Table(pub BTreeMap<String, Arc<dyn Node>>);

impl Opener for Table {
    fn open<'a>(&'a self, reference: &'a Reference, _gate: &'a Gate) -> Op<'a, Arc<dyn Node>> {
        Op::Ready(
            self.0
                .get(&reference.name)
                .cloned()
                .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no file '{}' in the test", reference.name))),
        )
    }
}

pub fn writable() -> OpenOptions {
    OpenOptions { read_only: false, image: ImageOptions { discard: true, ..ImageOptions::default() }, ..readable() }
}

pub fn with_files(options: OpenOptions, files: &[(&str, Arc<dyn Node>)]) -> OpenOptions {
    let table = files.iter().map(|(name, node)| ((*name).to_string(), node.clone())).collect();
    OpenOptions { gate: Gate::new(Policy::Allow, Arc::new(Table(table))), ..options }
}

pub fn open(file: Arc<dyn Node>, options: &OpenOptions) -> Result<Arc<Image>> {
    block_on(diskette::open(file, options))
}

pub fn read(node: &dyn Node, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    block_on(node.read(at, &mut bytes, ReadFlags::default()))?;
    Ok(bytes)
}

pub fn write(node: &dyn Node, at: u64, bytes: &[u8]) -> Result<()> {
    block_on(node.write(at, bytes, WriteFlags::default()))
}

/// A directory that is removed afterwards.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let unique = format!("diskette-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).expect("a scratch directory can be made");
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a scratch path is UTF-8").to_string()
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs one of QEMU's tools. They are the oracle: without them these tests fail.
pub fn tool(name: &str, args: &[&str]) -> Output {
    Command::new(name)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{name} (Debian: qemu-utils) is needed: {error}"))
}

/// Runs one of QEMU's tools, which must succeed, and gives its output.
pub fn oracle(name: &str, args: &[&str]) -> String {
    let output = tool(name, args);
    assert!(
        output.status.success(),
        "{name} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
