//! Copying and comparing disks on several threads.
//!
//! Workers take segments in order from a counter. Each looks up what its segment holds, skips what reads as zeroes, and
//! moves the rest. The first error ends all of them.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec;
use std::vec::Vec;

use crate::engine::is_zero;
use crate::engine::status::{Chain, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Range, ReadFlags, Want, WriteFlags};
use crate::op::block_on;
use crate::sync::Mutex;

/// Bytes of the disk that a worker takes at a time.
const SEGMENT: u64 = 4 << 20;
/// Largest single read or write.
const BUFFER: usize = 1 << 20;

/// How a disk is copied.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Runs of zeroes at least this long are not stored; 0 stores everything.
    pub sparse_bytes: u64,
    /// Whether the target reads as zeroes where nothing is written.
    pub target_is_zero: bool,
    /// Whether ranges that the source's own layers say nothing about are left to the target's backing image.
    pub skip_unallocated: bool,
    /// Layers of the source that are its own when `skip_unallocated`; the rest is the target's backing chain, too.
    pub own_layers: u32,
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions {
            workers: 2,
            sparse_bytes: 4096,
            target_is_zero: true,
            skip_unallocated: false,
            own_layers: u32::MAX,
        }
    }
}

/// Shared state of a run: the next segment, bytes done, the first error.
struct Run<'a> {
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
    length: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Run<'a> {
    fn new(length: u64, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        Run {
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
            length,
            progress,
        }
    }

    /// Runs `work` over all segments on `workers` threads.
    fn over_segments(self, workers: usize, work: impl Fn(Range) -> Result<()> + Sync) -> Result<()> {
        let turn = || {
            loop {
                let start = self.next.fetch_add(SEGMENT, Ordering::Relaxed);
                if start >= self.length || self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let range = Range::new(start, SEGMENT.min(self.length - start));
                if let Err(error) = work(range) {
                    self.stop.store(true, Ordering::Relaxed);
                    self.error.lock().get_or_insert(error);
                    return;
                }
                let done = self.done.fetch_add(range.len, Ordering::Relaxed) + range.len;
                (self.progress)(done);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers.max(1) {
                scope.spawn(turn);
            }
            turn();
        });
        let error = self.error.lock().take();
        error.map_or(Ok(()), Err)
    }
}

/// Copies a disk. `progress` is told how many bytes of the disk are done.
///
/// # Errors
/// The first failure of either side.
pub fn copy(
    source: &Arc<dyn Node>,
    target: &Arc<dyn Node>,
    options: CopyOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let length = source.info().length;
    let chain = Chain::of(source.clone());
    Run::new(length, progress)
        .over_segments(options.workers, |range| copy_range(&chain, &**source, &**target, options, range))
}

fn copy_range(chain: &Chain, source: &dyn Node, target: &dyn Node, options: CopyOptions, range: Range) -> Result<()> {
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end() {
        let status = block_on(chain.status(Range::new(at, range.end() - at), Want::Precise))?;
        let piece = Range::new(at, status.len);
        at += status.len;
        if options.skip_unallocated && (!status.present || status.depth >= options.own_layers) {
            continue;
        }
        // Without sparse detection everything is stored, zeroes too.
        if status.zero && options.sparse_bytes > 0 {
            if !options.target_is_zero || options.skip_unallocated {
                zero(target, piece)?;
            }
            continue;
        }
        copy_data(source, target, options, piece, &mut buffer)?;
    }
    Ok(())
}

fn copy_data(
    source: &dyn Node,
    target: &dyn Node,
    options: CopyOptions,
    piece: Range,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    if buffer.is_empty() {
        *buffer = vec![0; BUFFER];
    }
    let mut at = piece.start;
    while at < piece.end() {
        let len = (piece.end() - at).min(BUFFER as u64) as usize;
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        block_on(source.read(at, bytes, ReadFlags::default()))?;
        write_sparse(target, options, at, bytes)?;
        at += len as u64;
    }
    Ok(())
}

/// Writes `bytes`, leaving out runs of zeroes of at least `sparse_bytes`, in units of that size.
fn write_sparse(target: &dyn Node, options: CopyOptions, at: u64, bytes: &[u8]) -> Result<()> {
    let write = |start: usize, end: usize| -> Result<()> {
        let part = bytes.get(start..end).unwrap_or_default();
        if part.is_empty() { Ok(()) } else { block_on(target.write(at + start as u64, part, WriteFlags::default())) }
    };
    if options.sparse_bytes == 0 {
        return write(0, bytes.len());
    }
    let unit = usize::try_from(options.sparse_bytes).unwrap_or(bytes.len()).max(512);
    let (mut data_start, mut zero_start) = (None, None);
    let mut position = 0;
    while position < bytes.len() {
        // Units are counted from the start of the disk, so that they match blocks and clusters.
        let to_boundary = unit - (at as usize).wrapping_add(position) % unit;
        let end = (position + to_boundary).min(bytes.len());
        let is_zero_unit = is_zero(bytes.get(position..end).unwrap_or_default());
        match (is_zero_unit, data_start, zero_start) {
            (true, Some(start), _) => {
                write(start, position)?;
                (data_start, zero_start) = (None, Some(position));
            }
            (true, None, None) => zero_start = Some(position),
            (false, None, start) => {
                if let (Some(start), false) = (start, options.target_is_zero && !options.skip_unallocated) {
                    zero(target, Range::new(at + start as u64, (position - start) as u64))?;
                }
                (data_start, zero_start) = (Some(position), None);
            }
            _ => {}
        }
        position = end;
    }
    if let Some(start) = data_start {
        write(start, bytes.len())?;
    }
    match zero_start {
        Some(start) if !options.target_is_zero || options.skip_unallocated => {
            zero(target, Range::new(at + start as u64, (bytes.len() - start) as u64))
        }
        _ => Ok(()),
    }
}

fn zero(target: &dyn Node, range: Range) -> Result<()> {
    block_on(target.write_zeroes(range, WriteFlags { may_unmap: true, ..WriteFlags::default() }))
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Different contents from this offset on.
    Content(u64),
    /// Different allocation from this offset on; only with `strict`.
    Allocation(u64),
}

/// Compares the common length of two disks and gives the first difference.
///
/// # Errors
/// The first failure of either side.
pub fn compare(
    first: &Arc<dyn Node>,
    second: &Arc<dyn Node>,
    workers: usize,
    strict: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Option<Difference>> {
    let length = first.info().length.min(second.info().length);
    let chains = (Chain::of(first.clone()), Chain::of(second.clone()));
    let found: Mutex<Option<Difference>> = Mutex::new(None);
    let found_at = AtomicU64::new(u64::MAX);
    let result = Run::new(length, progress).over_segments(workers, |range| {
        // Segments are taken in order: nothing behind a difference matters.
        if range.start > found_at.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "a difference was found"));
        }
        if let Some((at, difference)) = compare_range(&chains, (&**first, &**second), strict, range)? {
            let mut first = found.lock();
            if found_at.fetch_min(at, Ordering::Relaxed) > at {
                *first = Some(difference);
            }
        }
        Ok(())
    });
    let found = found.lock().take();
    match (result, found) {
        (_, Some(difference)) => Ok(Some(difference)),
        (result, None) => result.map(|()| None),
    }
}

fn compare_range(
    chains: &(Chain, Chain),
    nodes: (&dyn Node, &dyn Node),
    strict: bool,
    range: Range,
) -> Result<Option<(u64, Difference)>> {
    let mut buffers = (Vec::new(), Vec::new());
    let mut at = range.start;
    while at < range.end() {
        let rest = Range::new(at, range.end() - at);
        let one = block_on(chains.0.status(rest, Want::Precise))?;
        let other = block_on(chains.1.status(rest, Want::Precise))?;
        let len = one.len.min(other.len).min(BUFFER as u64);
        let allocated = |status: &Status| status.present && (status.data || !status.zero);
        if strict && allocated(&one) != allocated(&other) {
            return Ok(Some((at, Difference::Allocation(at))));
        }
        let different = match (one.zero, other.zero) {
            (true, true) => None,
            (true, false) => non_zero(nodes.1, at, len, &mut buffers.1)?,
            (false, true) => non_zero(nodes.0, at, len, &mut buffers.0)?,
            (false, false) => {
                let one = fetch(nodes.0, at, len, &mut buffers.0)?;
                let other = fetch(nodes.1, at, len, &mut buffers.1)?;
                if one == other { None } else { one.iter().zip(other).position(|(a, b)| a != b) }
            }
        };
        if let Some(position) = different {
            let place = at + position as u64;
            return Ok(Some((place, Difference::Content(place))));
        }
        at += len;
    }
    Ok(None)
}

fn fetch<'a>(node: &dyn Node, at: u64, len: u64, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    buffer.resize(BUFFER, 0);
    let bytes = buffer.get_mut(..len as usize).unwrap_or_default();
    block_on(node.read(at, bytes, ReadFlags::default()))?;
    Ok(bytes)
}

fn non_zero(node: &dyn Node, at: u64, len: u64, buffer: &mut Vec<u8>) -> Result<Option<usize>> {
    let bytes = fetch(node, at, len, buffer)?;
    Ok(if is_zero(bytes) { None } else { bytes.iter().position(|byte| *byte != 0) })
}
