//! A host that has a disk image in a file, and what the tests share.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use diskette_contents::{Contents, Entry, Error, Layout, Limits, Page, Stop};

/// Where the bytes of the disk are.
pub enum Source {
    File(File, u64),
    Bytes(Vec<u8>),
}

impl Source {
    fn size(&self) -> u64 {
        match self {
            Source::File(_, size) => *size,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        match self {
            Source::File(file, _) => {
                let mut bytes = vec![0; length as usize];
                file.read_exact_at(&mut bytes, offset).expect("the image can be read");
                bytes
            }
            Source::Bytes(bytes) => bytes[offset as usize..(offset + length) as usize].to_vec(),
        }
    }
}

/// A host that supplies what is needed and makes the call again.
pub struct Host {
    pub contents: Contents,
    source: Source,
    /// How often bytes were asked for.
    pub rounds: u64,
    /// How many bytes were asked for.
    pub given: u64,
    /// A part of the disk, and how many bytes were asked for that are in it.
    pub watched: Range<u64>,
    pub given_of_watched: u64,
}

/// Nothing is kept and nothing is read ahead: every place where a call can stop is one where it does.
pub fn smallest() -> Limits {
    Limits { block: 512, kept: 0, ahead: 0, ..Limits::default() }
}

impl Host {
    pub fn of_file(path: &Path, limits: Limits) -> Self {
        let file = File::open(path).expect("the image can be opened");
        let size = file.metadata().expect("the image has a size").len();
        Self::new(Source::File(file, size), limits)
    }

    pub fn of_bytes(bytes: Vec<u8>, limits: Limits) -> Self {
        Self::new(Source::Bytes(bytes), limits)
    }

    pub fn new(source: Source, limits: Limits) -> Self {
        Self::with_sectors(source, limits, 512)
    }

    pub fn with_sectors(source: Source, limits: Limits, sector_size: u64) -> Self {
        let contents = Contents::with_limits(source.size(), sector_size, limits).expect("the limits are valid");
        Host { contents, source, rounds: 0, given: 0, watched: 0..0, given_of_watched: 0 }
    }

    /// Answers a call. What was given during it must not be asked for again.
    fn answer<T>(&mut self, mut call: impl FnMut(&mut Contents) -> Result<T, Stop>) -> Result<T, Error> {
        let mut asked = HashSet::new();
        loop {
            match call(&mut self.contents) {
                Ok(value) => return Ok(value),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Need(needs)) => {
                    assert!(!needs.is_empty(), "a call stopped without saying what it needs");
                    self.rounds += 1;
                    for need in needs {
                        assert!(asked.insert(need.offset), "{need:?} was asked for twice within one call");
                        self.given += need.length;
                        let (from, to) =
                            (need.offset.max(self.watched.start), self.watched.end.min(need.offset + need.length));
                        self.given_of_watched += to.saturating_sub(from);
                        let bytes = self.source.read(need.offset, need.length);
                        self.contents.give(need.offset, &bytes).expect("what was needed can be given");
                    }
                }
            }
        }
    }

    pub fn layout(&mut self) -> Layout {
        self.try_layout().expect("the layout can be read")
    }

    pub fn try_layout(&mut self) -> Result<Layout, Error> {
        self.answer(Contents::layout)
    }

    pub fn list(&mut self, volume: usize, path: &[u8], from: usize, count: usize) -> Result<Page, Error> {
        self.answer(|contents| contents.list(volume, path, from, count))
    }

    pub fn stat(&mut self, volume: usize, path: &[u8]) -> Result<Entry, Error> {
        self.answer(|contents| contents.stat(volume, path))
    }

    pub fn read(&mut self, volume: usize, path: &[u8], offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.answer(|contents| contents.read(volume, path, offset, length))
    }

    /// All entries of a directory, page by page.
    pub fn list_all(&mut self, volume: usize, path: &[u8], count: usize) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        loop {
            let page = self.list(volume, path, entries.len(), count)?;
            assert!(page.entries.len() <= count);
            entries.extend(page.entries);
            if !page.more {
                return Ok(entries);
            }
        }
    }
}

/// Runs a tool that must succeed, and gives what it prints.
pub fn tool(program: &str, args: &[&str]) -> String {
    feed(program, args, "")
}

/// The same with something on its standard input.
pub fn feed(program: &str, args: &[&str], input: &str) -> String {
    let output = run(program, args, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn run(program: &str, args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", path)
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test installs what is needed"));
    // A tool that does not read its input closes it.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// An empty file of this size.
pub fn blank(path: &Path, size: u64) {
    File::create(path).and_then(|file| file.set_len(size)).expect("a file can be made");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// A small deterministic random source (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
