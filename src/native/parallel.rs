//! Copying and comparing disks on several threads.
//!
//! Workers take segments in order from a counter. Each looks up what its segment holds, skips what reads as zeroes, and
//! moves the rest. The first error ends all of them.

use alloc::sync::Arc;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
const BUFFER: usize = 1 << 19;

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
    /// Where in the target the first byte of the source goes.
    pub target_start: u64,
    /// Whether data is handed to [`Node::copy_from`] where that works, instead of being read and looked through.
    pub offload: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions {
            workers: 2,
            sparse_bytes: 4096,
            target_is_zero: true,
            skip_unallocated: false,
            own_layers: u32::MAX,
            target_start: 0,
            offload: false,
        }
    }
}

/// Is told how many bytes are done, and says whether to go on.
pub type Progress<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;

/// Shared state of a run: the next segment, bytes done, the first error.
pub(super) struct Run<'a, E> {
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<E>>,
    length: u64,
    progress: &'a Progress<'a>,
}

impl<'a, E: From<Error> + Send> Run<'a, E> {
    pub(super) fn new(length: u64, progress: &'a Progress<'a>) -> Self {
        Run {
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
            length,
            progress,
        }
    }

    /// Leaves out segments in front of `end`, and gives how many bytes they have.
    fn skip_to(&self, end: u64) -> u64 {
        let end = if end >= self.length { self.length } else { end - end % SEGMENT };
        end.saturating_sub(self.next.fetch_max(end, Ordering::Relaxed))
    }

    fn end(&self, error: E) {
        self.stop.store(true, Ordering::Relaxed);
        self.error.lock().get_or_insert(error);
    }

    /// Runs `work` over all segments on `workers` threads, each with buffers of its own. A segment that was begun is
    /// always ended: of what `work` finds, nothing is missed in front of where the run stops. `work` says how far it
    /// has come, which may be beyond the segment: what is between was not begun by anybody else, or is done twice.
    pub(super) fn over_segments<B: Default>(
        self,
        workers: usize,
        work: impl Fn(Range, &mut B) -> Result<ControlFlow<(), u64>, E> + Sync,
    ) -> Result<(), E> {
        let turn = || {
            let mut buffers = B::default();
            while !self.stop.load(Ordering::Relaxed) {
                let start = self.next.fetch_add(SEGMENT, Ordering::Relaxed);
                if start >= self.length {
                    return;
                }
                let range = Range::new(start, SEGMENT.min(self.length - start));
                let mut done = range.len;
                match work(range, &mut buffers) {
                    Ok(ControlFlow::Continue(end)) => done += self.skip_to(end),
                    Ok(ControlFlow::Break(())) => self.stop.store(true, Ordering::Relaxed),
                    Err(error) => return self.end(error),
                }
                let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
                if (self.progress)(done).is_break() {
                    return self.end(Error::new(ErrorKind::Cancelled, "cancelled").into());
                }
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

/// Copies a disk. `progress` is told how many bytes of it are done.
///
/// # Errors
/// The first failure of either side, or [`ErrorKind::Cancelled`].
pub fn copy(
    source: &Arc<dyn Node>,
    target: &Arc<dyn Node>,
    options: CopyOptions,
    progress: &Progress<'_>,
) -> Result<()> {
    let chain = Chain::of(source.clone());
    let job = Copy { chain, source: &**source, target: &**target, options };
    Run::new(source.info().length, progress)
        .over_segments(options.workers, |range, buffer| job.segment(range, buffer).map(ControlFlow::Continue))
}

struct Copy<'a> {
    chain: Chain,
    source: &'a dyn Node,
    target: &'a dyn Node,
    options: CopyOptions,
}

impl Copy<'_> {
    /// Copies a segment, and says how far there is nothing more to do.
    fn segment(&self, range: Range, buffer: &mut Vec<u8>) -> Result<u64> {
        let mut at = range.start;
        while at < range.end() {
            let status = block_on(self.chain.status(Range::new(at, range.end() - at), Want::Precise))?;
            let piece = Range::new(at, status.len);
            at += status.len;
            if self.has_nothing_to_do(&status) {
                if at == range.end() {
                    let rest = Range::new(piece.start, self.source.info().length - piece.start);
                    let beyond = block_on(self.chain.status(rest, Want::Precise))?;
                    return Ok(at.max(piece.start + if self.has_nothing_to_do(&beyond) { beyond.len } else { 0 }));
                }
            } else if self.is_zero(&status) {
                self.zero(piece)?;
            } else {
                self.data(piece, buffer)?;
            }
        }
        Ok(at)
    }

    fn has_nothing_to_do(&self, status: &Status) -> bool {
        let CopyOptions { skip_unallocated, own_layers, target_is_zero, .. } = self.options;
        if skip_unallocated {
            return !status.present || status.depth >= own_layers;
        }
        target_is_zero && self.is_zero(status)
    }

    /// Without sparse detection everything is stored, zeroes too.
    fn is_zero(&self, status: &Status) -> bool {
        status.zero && self.options.sparse_bytes > 0
    }

    fn data(&self, piece: Range, buffer: &mut Vec<u8>) -> Result<()> {
        if self.options.offload {
            let target_at = self.options.target_start + piece.start;
            match block_on(self.target.copy_from(target_at, self.source, piece.start, piece.len)) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        let mut at = piece.start;
        while at < piece.end() {
            let bytes = fetch(self.source, at, (piece.end() - at).min(BUFFER as u64), buffer)?;
            self.write_sparse(at, bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes `bytes`, leaving out runs of zeroes of at least `sparse_bytes`, in units of that size.
    fn write_sparse(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.options.sparse_bytes == 0 {
            return self.write(at, bytes);
        }
        let unit = self.options.sparse_bytes.max(512);
        let (mut run_start, mut run_is_zero) = (0, None);
        let mut position = 0;
        while position < bytes.len() {
            // Units are counted from the start of the disk, so that they match blocks and clusters.
            let to_boundary = unit - (at + position as u64) % unit;
            let end = usize::try_from(to_boundary).map_or(bytes.len(), |len| (position + len).min(bytes.len()));
            let zero = is_zero(bytes.get(position..end).unwrap_or_default());
            if run_is_zero.is_some_and(|run| run != zero) {
                self.write_run(at, bytes, run_start..position, !zero)?;
                run_start = position;
            }
            run_is_zero = Some(zero);
            position = end;
        }
        self.write_run(at, bytes, run_start..bytes.len(), run_is_zero.unwrap_or(false))
    }

    fn write_run(&self, at: u64, bytes: &[u8], run: core::ops::Range<usize>, is_zero: bool) -> Result<()> {
        let start = at + run.start as u64;
        if is_zero {
            self.zero(Range::new(start, run.len() as u64))
        } else {
            self.write(start, bytes.get(run).unwrap_or_default())
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        block_on(self.target.write(self.options.target_start + at, bytes, WriteFlags::default()))
    }

    /// Makes a range read as zeroes, unless it does already.
    fn zero(&self, range: Range) -> Result<()> {
        if self.options.target_is_zero && !self.options.skip_unallocated {
            return Ok(());
        }
        let range = Range::new(self.options.target_start + range.start, range.len);
        block_on(self.target.write_zeroes(range, WriteFlags { may_unmap: true, ..WriteFlags::default() }))
    }
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Different contents from this offset on.
    Content(u64),
    /// Different allocation from this offset on; only with `strict`.
    Allocation(u64),
}

/// Why a comparison could not be ended.
#[derive(Debug)]
pub struct CompareError {
    /// The side, 0 or 1, and the offset that could not be read. `None` if it could not be told what is stored at all.
    pub reading: Option<(usize, u64)>,
    /// What went wrong.
    pub error: Error,
}

impl From<Error> for CompareError {
    fn from(error: Error) -> Self {
        CompareError { reading: None, error }
    }
}

/// Compares the common length of two disks and gives the first difference.
///
/// # Errors
/// A failure of either side where no difference was found in front of it, or [`ErrorKind::Cancelled`].
pub fn compare(
    first: &Arc<dyn Node>,
    second: &Arc<dyn Node>,
    workers: usize,
    strict: bool,
    progress: &Progress<'_>,
) -> Result<Option<Difference>, CompareError> {
    let sides = [first, second].map(|node| Side { chain: Chain::of(node.clone()), node: &**node });
    let length = first.info().length.min(second.info().length);
    let job = Compare { sides, length, strict };
    let found: Mutex<Option<(u64, Difference)>> = Mutex::new(None);
    let result = Run::new(length, progress).over_segments(workers, |range, buffers| {
        let (at, difference) = match job.segment(range, buffers)? {
            Found::Nothing { until } => return Ok(ControlFlow::Continue(until)),
            Found::Difference { at, difference } => (at, difference),
        };
        let mut found = found.lock();
        if found.is_none_or(|(before, _)| at < before) {
            *found = Some((at, difference));
        }
        // Segments are begun in order: nothing behind a difference matters.
        Ok(ControlFlow::Break(()))
    });
    let found = found.lock().take();
    match (result, found) {
        (_, Some((_, difference))) => Ok(Some(difference)),
        (result, None) => result.map(|()| None),
    }
}

struct Side<'a> {
    chain: Chain,
    node: &'a dyn Node,
}

/// What a worker found from the start of its segment on.
enum Found {
    Nothing { until: u64 },
    Difference { at: u64, difference: Difference },
}

struct Compare<'a> {
    sides: [Side<'a>; 2],
    length: u64,
    strict: bool,
}

impl Compare<'_> {
    fn segment(&self, range: Range, buffers: &mut [Vec<u8>; 2]) -> Result<Found, CompareError> {
        let mut at = range.start;
        while at < range.end() {
            let [one, other] = self.status(Range::new(at, range.end() - at))?;
            let len = one.len.min(other.len);
            if self.strict && recorded(&one) != recorded(&other) {
                return Ok(Found::Difference { at, difference: Difference::Allocation(at) });
            }
            if one.zero && other.zero {
                if at + len == range.end() {
                    let [beyond, other_beyond] = self.status(Range::new(at, self.length - at))?;
                    let alike = beyond.zero
                        && other_beyond.zero
                        && (!self.strict || recorded(&beyond) == recorded(&other_beyond));
                    let len = if alike { beyond.len.min(other_beyond.len) } else { 0 };
                    return Ok(Found::Nothing { until: range.end().max(at + len) });
                }
            } else if let Some(place) = self.contents(Range::new(at, len), [one.zero, other.zero], buffers)? {
                return Ok(Found::Difference { at: place, difference: Difference::Content(place) });
            }
            at += len;
        }
        Ok(Found::Nothing { until: at })
    }

    /// What both sides hold at the start of a range.
    fn status(&self, range: Range) -> Result<[Status; 2]> {
        let want = if self.strict { Want::Recorded } else { Want::Precise };
        let [first, second] = &self.sides;
        Ok([block_on(first.chain.status(range, want))?, block_on(second.chain.status(range, want))?])
    }

    /// Where the contents of a range first differ. A side that is known to read as zeroes is not read.
    fn contents(
        &self,
        range: Range,
        zero: [bool; 2],
        [buffer, other_buffer]: &mut [Vec<u8>; 2],
    ) -> Result<Option<u64>, CompareError> {
        let [first, second] = &self.sides;
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end() - at).min(BUFFER as u64);
            let reading = |side| move |error| CompareError { reading: Some((side, at)), error };
            let different = match zero {
                [true, _] => non_zero(fetch(second.node, at, len, other_buffer).map_err(reading(1))?),
                [_, true] => non_zero(fetch(first.node, at, len, buffer).map_err(reading(0))?),
                [false, false] => {
                    let one = fetch(first.node, at, len, buffer).map_err(reading(0))?;
                    let other = fetch(second.node, at, len, other_buffer).map_err(reading(1))?;
                    if one == other { None } else { one.iter().zip(other).position(|(a, b)| a != b) }
                }
            };
            if let Some(position) = different {
                return Ok(Some(at + position as u64));
            }
            at += len;
        }
        Ok(None)
    }
}

/// What a strict comparison compares.
fn recorded(status: &Status) -> (bool, bool, bool, bool) {
    (status.present, status.data, status.zero, status.compressed)
}

fn fetch<'a>(node: &dyn Node, at: u64, len: u64, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    buffer.resize(BUFFER, 0);
    let bytes = buffer.get_mut(..len as usize).unwrap_or_default();
    block_on(node.read(at, bytes, ReadFlags::default()))?;
    Ok(bytes)
}

fn non_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) { None } else { bytes.iter().position(|byte| *byte != 0) }
}
