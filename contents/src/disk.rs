//! The disk as its readers see it: bytes that are there at once, or missing.
//!
//! The readers are synchronous, the host may not be. So a read of bytes that are not here fails, and what is missing is
//! noted; the call ends, the host supplies the bytes, and the call is made anew. Nothing is forgotten before a call has
//! ended with an answer, so every attempt comes further than the one before it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use crate::error::{Error, Need, Result, Stop};

/// Bounds of memory and work.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The disk is asked for in blocks of this many bytes, a power of two.
    pub block: u64,
    /// Bytes of blocks kept when a call has ended.
    pub kept: u64,
    /// Bytes of blocks held while one call is being answered.
    pub held: u64,
    /// At most this many bytes are asked for beyond what is missing, where reads follow each other.
    pub ahead: u64,
    /// Reads that one attempt at a call may make.
    pub reads: u64,
    /// Bytes that one attempt at a call may read.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { block: 64 << 10, kept: 32 << 20, held: 128 << 20, ahead: 4 << 20, reads: 16 << 20, bytes: 1 << 30 }
    }
}

/// No need is longer, so that a host can fetch several at once.
const LONGEST_NEED: u64 = 1 << 20;

/// How many sequences of reads are told apart.
const STREAMS: usize = 4;

/// The disk, shared by those who read it.
#[derive(Clone)]
pub(crate) struct Disk(Rc<RefCell<Cache>>);

struct Cache {
    size: u64,
    limits: Limits,
    blocks: BTreeMap<u64, Block>,
    /// Counts reads of blocks, so that the one not read for longest is known.
    clock: u64,
    /// Numbers of the blocks that this attempt lacked.
    missing: BTreeSet<u64>,
    /// Where reads may go on that follow earlier ones, the latest last.
    streams: Vec<Stream>,
    reads: u64,
    bytes: u64,
    exhausted: bool,
}

struct Block {
    bytes: Box<[u8]>,
    used: u64,
}

/// A sequence of reads: the block that would come next, and how many were asked for ahead.
struct Stream {
    next: u64,
    ahead: u64,
}

/// Why bytes cannot be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Missing,
    Exhausted,
    BeyondEnd { offset: u64, length: u64, size: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("bytes of the disk are not here yet"),
            Fault::Exhausted => f.write_str("this takes more reads than are allowed"),
            Fault::BeyondEnd { offset, length, size } => {
                write!(f, "{length} bytes at {offset:#x} are beyond the end of the disk at {size:#x}")
            }
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing | Fault::Exhausted => Error::over_budget(fault.to_string()),
            Fault::BeyondEnd { offset, .. } => Error::corrupt(fault.to_string()).at(offset),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::BeyondEnd { .. } => io::ErrorKind::UnexpectedEof,
            Fault::Missing | Fault::Exhausted => io::ErrorKind::Other,
        };
        io::Error::new(kind, fault)
    }
}

impl Disk {
    pub(crate) fn new(size: u64, limits: Limits) -> Self {
        Disk(Rc::new(RefCell::new(Cache {
            size,
            limits,
            blocks: BTreeMap::new(),
            clock: 0,
            missing: BTreeSet::new(),
            streams: Vec::new(),
            reads: 0,
            bytes: 0,
            exhausted: false,
        })))
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.borrow().size
    }

    /// Takes bytes from the host: whole blocks, or up to the end of the disk.
    pub(crate) fn give(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut cache = self.0.borrow_mut();
        let block = cache.limits.block;
        let length = bytes.len() as u64;
        let end = offset.checked_add(length).filter(|end| *end <= cache.size);
        let whole = offset.is_multiple_of(block)
            && end.is_some_and(|end| end.is_multiple_of(block) || end == cache.size)
            && length > 0;
        if !whole {
            return Err(Error::invalid(format!(
                "{length} bytes at {offset:#x} were given, which are not whole blocks of {block} bytes within a disk of {}",
                cache.size
            )));
        }
        let clock = cache.clock;
        for (number, part) in (offset / block..).zip(bytes.chunks(block as usize)) {
            cache.blocks.insert(number, Block { bytes: part.into(), used: clock });
        }
        Ok(())
    }

    /// Starts an attempt at a call.
    pub(crate) fn begin(&self) {
        let mut cache = self.0.borrow_mut();
        cache.missing.clear();
        cache.reads = 0;
        cache.bytes = 0;
        cache.exhausted = false;
    }

    /// Ends an attempt. Whatever came of it does not count if bytes were missing.
    pub(crate) fn end<T>(&self, outcome: Result<T>) -> Result<T, Stop> {
        let mut cache = self.0.borrow_mut();
        let cache = &mut *cache;
        if !cache.missing.is_empty() && !cache.exhausted {
            let held = (cache.blocks.len() + cache.missing.len()) as u64;
            if held.saturating_mul(cache.limits.block) <= cache.limits.held {
                return Err(Stop::Need(cache.needs()));
            }
        }
        let outcome = if cache.exhausted || !cache.missing.is_empty() {
            Err(Error::over_budget("this takes more reads of the disk than are allowed; it may be damaged"))
        } else {
            outcome
        };
        cache.trim();
        outcome.map_err(Stop::Failed)
    }

    /// Whether this attempt lacked bytes, or has read too much.
    pub(crate) fn has_failed(&self) -> bool {
        let cache = self.0.borrow();
        cache.exhausted || !cache.missing.is_empty()
    }

    /// Fails unless these ranges are here, and notes all that is missing of them. What is beyond the end is left out.
    pub(crate) fn want(&self, ranges: impl IntoIterator<Item = (u64, u64)>) -> Result<(), Fault> {
        let mut cache = self.0.borrow_mut();
        for (offset, length) in ranges {
            let end = offset.saturating_add(length).min(cache.size);
            if offset < end {
                let block = cache.limits.block;
                for number in offset / block..=(end - 1) / block {
                    if !cache.blocks.contains_key(&number) {
                        cache.missing.insert(number);
                    }
                }
            }
        }
        if cache.missing.is_empty() { Ok(()) } else { Err(Fault::Missing) }
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.0.borrow_mut().read(offset, into)
    }

    /// As many bytes as there are, at most `length`.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, Fault> {
        let there = self.size().saturating_sub(offset).min(length);
        if there == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; there as usize];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl Cache {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        let length = into.len() as u64;
        let Some(end) = offset.checked_add(length).filter(|end| *end <= self.size) else {
            return Err(Fault::BeyondEnd { offset, length, size: self.size });
        };
        if length == 0 {
            return Ok(());
        }
        self.reads += 1;
        self.bytes += length;
        if self.exhausted || self.reads > self.limits.reads || self.bytes > self.limits.bytes {
            self.exhausted = true;
            return Err(Fault::Exhausted);
        }
        let block = self.limits.block;
        let (first, last) = (offset / block, (end - 1) / block);
        self.clock += 1;
        let mut complete = true;
        for number in first..=last {
            match self.blocks.get_mut(&number) {
                Some(found) => {
                    found.used = self.clock;
                    let start = number * block;
                    let from = offset.max(start);
                    let to = end.min(start + block);
                    let part = &found.bytes[(from - start) as usize..(to - start) as usize];
                    into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
                }
                None => complete = false,
            }
        }
        if complete {
            return Ok(());
        }
        self.miss(first, last);
        Err(Fault::Missing)
    }

    /// Notes what is missing, and what will be if the reads go on as they began.
    fn miss(&mut self, first: u64, last: u64) {
        let block = self.limits.block;
        let known = self.streams.iter().position(|stream| (first..=last).contains(&stream.next));
        let ahead = match known.map(|at| self.streams.remove(at)) {
            Some(stream) => (stream.ahead * 2).max(1).min(self.limits.ahead / block),
            None => 0,
        };
        let last = last.saturating_add(ahead).min((self.size - 1) / block);
        if self.streams.len() >= STREAMS {
            self.streams.remove(0);
        }
        self.streams.push(Stream { next: last + 1, ahead });
        for number in first..=last {
            if !self.blocks.contains_key(&number) {
                self.missing.insert(number);
            }
        }
    }

    fn needs(&self) -> Vec<Need> {
        let block = self.limits.block;
        let mut needs: Vec<Need> = Vec::new();
        for number in &self.missing {
            let offset = number * block;
            let length = block.min(self.size - offset);
            match needs.last_mut() {
                Some(need) if need.offset + need.length == offset && need.length + length <= LONGEST_NEED => {
                    need.length += length;
                }
                _ => needs.push(Need { offset, length }),
            }
        }
        needs
    }

    /// Forgets the blocks that were not read for longest.
    fn trim(&mut self) {
        let keep = (self.limits.kept / self.limits.block) as usize;
        if self.blocks.len() <= keep {
            return;
        }
        let mut ages: Vec<(u64, u64)> = self.blocks.iter().map(|(number, block)| (block.used, *number)).collect();
        ages.sort_unstable();
        for (_, number) in &ages[..ages.len() - keep] {
            self.blocks.remove(number);
        }
    }
}

/// A part of the disk with a position, as the readers of file systems want it.
#[derive(Clone)]
pub(crate) struct View {
    disk: Disk,
    start: u64,
    length: u64,
    position: u64,
}

impl View {
    /// The part of the disk from `start` on. What of it is beyond the end of the disk cannot be read.
    pub(crate) fn new(disk: &Disk, start: u64, length: u64) -> Self {
        View { disk: disk.clone(), start, length, position: 0 }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        let length = into.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            let offset = self.start.saturating_add(offset);
            return Err(Fault::BeyondEnd { offset, length, size: self.start.saturating_add(self.length) });
        }
        self.disk.read(self.start.saturating_add(offset), into)
    }
}

impl Read for View {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let length = left.min(into.len() as u64) as usize;
        self.read_at(self.position, &mut into[..length])?;
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for View {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
