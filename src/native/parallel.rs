//! Copying and comparing disks on several threads.
//!
//! Workers take parts of the disk in order, each looks up what its part holds, skips what reads as zeroes, and moves the
//! rest. A copy reads in parallel and, unless told otherwise, writes in the order of the disk, so that the target is laid
//! out alike every time. The first error ends all workers.

use alloc::sync::Arc;
use core::num::NonZeroU64;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Condvar, Mutex as StdMutex};
use std::time::Instant;
use std::vec::Vec;

use crate::engine::status::{Chain, Status};
use crate::engine::{Image, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Range, ReadFlags, Want, WriteFlags};
use crate::op::block_on;
use crate::sync::Mutex;

/// Bytes of the disk that a worker takes at a time.
const SEGMENT: u64 = 4 << 20;
/// Largest single read or write.
const BUFFER: usize = 1 << 19;
/// Most bytes that a file system is asked to copy at once.
const OFFLOAD_BYTES: u64 = 64 << 20;
/// What is given up when it cannot be read.
const SECTOR: u64 = 512;

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
    /// Whether data is handed to [`Node::copy_from`] where that works, instead of being read and looked through.
    pub offload: bool,
    /// Whether workers write as soon as they can, rather than in the order of the disk. Targets that do not allocate are
    /// laid out alike in any order, so it makes no difference there.
    pub out_of_order: bool,
    /// Whether whole clusters are stored compressed, where that saves space.
    pub compress: bool,
    /// Most data that a worker moves at once, in bytes.
    pub piece_bytes: usize,
    /// Progress counts what has to be moved, of which [`bytes_to_copy`] says how much there is, rather than the disk.
    pub count_moved: bool,
    /// Most bytes that are written in a second; 0 for no limit.
    pub bytes_per_second: u64,
    /// Is told of every sector that cannot be read, which is then taken for zeroes. Without it, the copy ends there.
    pub salvage: Option<fn(&CopyError)>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions {
            workers: 2,
            sparse_bytes: 4096,
            target_is_zero: true,
            skip_unallocated: false,
            own_layers: u32::MAX,
            offload: false,
            out_of_order: false,
            compress: false,
            piece_bytes: BUFFER,
            count_moved: false,
            bytes_per_second: 0,
            salvage: None,
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

/// A step of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looking up what the source holds.
    Status,
    /// Reading the source.
    Read,
    /// Writing the target.
    Write,
}

/// Why a copy could not be ended.
#[derive(Debug)]
pub struct CopyError {
    /// What was being done, and at which offset of the target. `None` if the copy was cancelled.
    pub doing: Option<(Step, u64)>,
    /// What went wrong.
    pub error: Error,
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
) -> Result<(), CopyError> {
    let job = Copy::new(source, target, options)?;
    std::thread::scope(|scope| {
        for _ in 1..options.workers.max(1) {
            scope.spawn(|| job.work(progress));
        }
        job.work(progress);
    });
    let error = job.error.lock().take();
    error.map_or(Ok(()), Err)
}

/// How many bytes a copy has to move, as its progress counts them.
///
/// # Errors
/// What the source holds cannot be looked up.
pub fn bytes_to_copy(source: &Arc<dyn Node>, target: &Arc<dyn Node>, options: CopyOptions) -> Result<u64, CopyError> {
    let job = Copy::new(source, target, CopyOptions { salvage: options.salvage.map(|_| IGNORE), ..options })?;
    let (mut at, mut bytes) = (0, 0);
    while at < job.length {
        let (len, kind) = job.look_up(Range::new(at, job.length - at))?;
        bytes += if kind.is_some() { len } else { 0 };
        at += len.max(1);
    }
    Ok(bytes)
}

/// Reports nothing.
const IGNORE: fn(&CopyError) = |_| {};

struct Copy<'a> {
    chain: Chain,
    source: &'a dyn Node,
    target: &'a dyn Node,
    /// The target, if clusters are compressed.
    compressing: Option<&'a Image>,
    /// Cluster size of the target, or 1.
    cluster: u64,
    options: CopyOptions,
    length: u64,
    /// Most data of a batch.
    batch_bytes: u64,
    queue: Mutex<Queue>,
    /// Number of the batch that is written next, or [`STOPPED`].
    turn: StdMutex<u64>,
    turn_changed: Condvar,
    started: Instant,
    written: AtomicU64,
    done: AtomicU64,
    error: Mutex<Option<CopyError>>,
}

/// What is left to do.
#[derive(Default)]
struct Queue {
    at: u64,
    batch: u64,
}

/// Part of the disk that a worker copies at a time: reads first, then writes when it is its turn.
#[derive(Default)]
struct Batch {
    number: u64,
    range: Range,
    pieces: Vec<(Range, Kind)>,
    buffer: Vec<u8>,
}

/// What is done about a piece of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Data,
}

/// No batch has this number.
const STOPPED: u64 = u64::MAX;

impl<'a> Copy<'a> {
    fn new(source: &'a Arc<dyn Node>, target: &'a Arc<dyn Node>, options: CopyOptions) -> Result<Self, CopyError> {
        let cluster = target.info().cluster_size;
        let image = target.as_any().and_then(|any| any.downcast_ref::<Image>());
        let compressing = image.filter(|image| image.stores_compressed() && options.compress);
        if options.compress && compressing.is_none() {
            let error = Error::unsupported("Compression not supported for this file format");
            return Err(CopyError { doing: None, error });
        }
        let options = CopyOptions { out_of_order: options.out_of_order || cluster.is_none(), ..options };
        let cluster = cluster.unwrap_or(1);
        Ok(Copy {
            chain: Chain::of(source.clone()),
            source: &**source,
            target: &**target,
            compressing,
            cluster: cluster.into(),
            options,
            length: source.info().length,
            batch_bytes: u64::from(cluster).max(if options.offload {
                OFFLOAD_BYTES
            } else {
                options.piece_bytes as u64
            }),
            queue: Mutex::default(),
            turn: StdMutex::default(),
            turn_changed: Condvar::new(),
            started: Instant::now(),
            written: AtomicU64::new(0),
            done: AtomicU64::new(0),
            error: Mutex::new(None),
        })
    }

    fn work(&self, progress: &Progress<'_>) {
        let guard = StopOnPanic(self);
        let mut batch = Batch::default();
        loop {
            match self.copy_batch(&mut batch) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return self.stop(Some(error)),
            }
            let moved = || batch.pieces.iter().map(|(piece, _)| piece.len).sum::<u64>();
            let part = if self.options.count_moved { moved() } else { batch.range.len };
            let done = self.done.fetch_add(part, Ordering::Relaxed) + part;
            if progress(done).is_break() {
                let error = Error::new(ErrorKind::Cancelled, "cancelled");
                return self.stop(Some(CopyError { doing: None, error }));
            }
        }
        drop(guard);
    }

    /// Ends all workers. The first error counts.
    fn stop(&self, error: Option<CopyError>) {
        if let Some(error) = error {
            self.error.lock().get_or_insert(error);
        }
        self.queue.lock().at = u64::MAX;
        *self.turn() = STOPPED;
        self.turn_changed.notify_all();
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, u64> {
        self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Copies the next batch. `false` if there is none.
    fn copy_batch(&self, batch: &mut Batch) -> Result<bool, CopyError> {
        if !self.take(batch)? {
            return Ok(false);
        }
        if let Some(image) = self.compressing {
            return self.compress_batch(batch, image);
        }
        let Batch { number, pieces, buffer, .. } = batch;
        let mut filled = 0;
        for (range, kind) in &*pieces {
            if *kind == Kind::Data && !self.options.offload {
                let end = filled + range.len as usize;
                buffer.resize(buffer.len().max(end), 0);
                self.read(range.start, buffer.get_mut(filled..end).unwrap_or_default())?;
                filled = end;
            }
        }
        if !self.options.out_of_order && !self.wait_for_turn(*number) {
            return Ok(false);
        }
        let mut rest = buffer.as_mut_slice();
        let ordered = (!self.options.out_of_order).then_some(*number);
        for (index, (range, kind)) in (1..).zip(&*pieces) {
            match kind {
                Kind::Zero => self.zero(*range)?,
                Kind::Data if self.options.offload => self.offload(*range)?,
                Kind::Data => {
                    let (bytes, after) = rest.split_at_mut(range.len as usize);
                    self.write_sparse(range.start, bytes, ordered.filter(|_| index == pieces.len()))?;
                    rest = after;
                }
            }
        }
        if let Some(number) = ordered {
            self.end_turn(number);
        }
        Ok(true)
    }

    /// Reads and compresses the clusters of a batch that have data, and stores them when it is their turn.
    fn compress_batch(&self, batch: &mut Batch, image: &Image) -> Result<bool, CopyError> {
        let Batch { number, pieces, buffer, .. } = batch;
        let cluster = self.cluster;
        let mut clusters: Vec<(Range, Option<Vec<u8>>)> = Vec::new();
        buffer.clear();
        for (piece, _) in pieces.iter().filter(|(_, kind)| *kind == Kind::Data) {
            // Clusters are those of the target.
            let mut at = piece.start - piece.start % cluster;
            while at < piece.end() {
                let range = Range::new(at, cluster.min(self.length - at));
                at += cluster;
                if clusters.last().is_some_and(|(known, _)| *known == range) {
                    continue;
                }
                let filled = buffer.len();
                buffer.resize(filled + range.len as usize, 0);
                let bytes = buffer.get_mut(filled..).unwrap_or_default();
                self.read(range.start, bytes)?;
                if self.options.sparse_bytes > 0 && self.options.target_is_zero && is_zero(bytes) {
                    buffer.truncate(filled);
                    continue;
                }
                let compressed = image.compress(bytes).map_err(|error| self.unwritable(range.start, error))?;
                clusters.push((range, compressed));
            }
        }
        if !self.options.out_of_order && !self.wait_for_turn(*number) {
            return Ok(false);
        }
        for (piece, _) in pieces.iter().filter(|(_, kind)| *kind == Kind::Zero) {
            self.zero(*piece)?;
        }
        let mut rest = buffer.as_slice();
        for (range, compressed) in &clusters {
            let (bytes, after) = rest.split_at(range.len as usize);
            rest = after;
            self.limit_rate(range.len);
            // The target may be longer than the source, and then the last cluster has more than that.
            let whole = range.len == cluster || range.end() == self.target.info().length;
            let written = if whole {
                block_on(image.write_cluster(range.start, bytes, compressed.as_deref()))
            } else {
                block_on(self.target.write(range.start, bytes, WriteFlags::default()))
            };
            written.map_err(|error| self.unwritable(range.start, error))?;
        }
        if !self.options.out_of_order {
            self.end_turn(*number);
        }
        Ok(true)
    }

    /// Lets the next batch be written, unless that happened before or all were told to stop.
    fn end_turn(&self, number: u64) {
        let mut turn = self.turn();
        if *turn == number {
            *turn += 1;
            drop(turn);
            self.turn_changed.notify_all();
        }
    }

    fn wait_for_turn(&self, number: u64) -> bool {
        let mut turn = self.turn();
        while *turn != number && *turn != STOPPED {
            turn = self.turn_changed.wait(turn).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *turn == number
    }

    /// Takes the next batch from the queue and looks up what it holds.
    fn take(&self, batch: &mut Batch) -> Result<bool, CopyError> {
        batch.pieces.clear();
        let mut queue = self.queue.lock();
        if queue.at >= self.length {
            return Ok(false);
        }
        let start = queue.at;
        let mut end = (start / SEGMENT).saturating_add(1).saturating_mul(SEGMENT).min(self.length);
        let mut at = start;
        while at < end {
            let (len, kind) = self.look_up(Range::new(at, end - at))?;
            if kind == Some(Kind::Data) {
                // Batches end at round offsets, so that no cluster of the target belongs to two of them.
                end = end.min((at / self.batch_bytes).saturating_add(1).saturating_mul(self.batch_bytes));
            }
            let piece = Range::new(at, len.min(end - at));
            batch.pieces.extend(kind.map(|kind| (piece, kind)));
            at += piece.len;
        }
        if batch.pieces.is_empty() && end < self.length {
            // Nothing here: nor, often, for a long way.
            if let (len, None) = self.look_up(Range::new(end, self.length - end))? {
                end += len;
                if self.compressing.is_some() && end < self.length {
                    // Batches of whole clusters.
                    end -= end % self.cluster;
                }
            }
        }
        batch.range = Range::new(start, end - start);
        batch.number = queue.batch;
        *queue = Queue { at: end, batch: queue.batch + 1 };
        Ok(true)
    }

    /// How much of the start of `range` is alike, and what is to be done about it.
    fn look_up(&self, range: Range) -> Result<(u64, Option<Kind>), CopyError> {
        let options = self.options;
        let ask = |range| block_on(self.chain.status(range, Want::Precise));
        let sector = Range::new(range.start, SECTOR.min(range.len));
        let status = match ask(range) {
            Err(_) if self.options.salvage.is_some() => ask(sector),
            status => status,
        };
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.unreadable(Step::Status, range.start, error)?;
                return Ok((sector.len, Some(Kind::Data)));
            }
        };
        // A layer of its own that ends before this place hides what the base has there.
        let next = status.depth.saturating_add(1);
        let hidden = !status.present && next < options.own_layers && (next as usize) < self.chain.layers().len();
        let kind = if options.skip_unallocated && !hidden && (!status.present || status.depth >= options.own_layers) {
            None
        } else if status.zero && options.sparse_bytes > 0 {
            (!options.target_is_zero || options.skip_unallocated).then_some(Kind::Zero)
        } else {
            // Without sparse detection everything is stored, zeroes too.
            Some(Kind::Data)
        };
        Ok((status.len, kind))
    }

    /// Passes the error on, or reports it when the copy is to save what can be read.
    fn unreadable(&self, step: Step, at: u64, error: Error) -> Result<(), CopyError> {
        let error = CopyError { doing: Some((step, at)), error };
        match self.options.salvage {
            Some(report) => {
                report(&error);
                Ok(())
            }
            None => Err(error),
        }
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), CopyError> {
        let read = |at, into: &mut [u8]| block_on(self.source.read(at, into, ReadFlags::default()));
        match read(at, into) {
            Err(error) if self.options.salvage.is_none() => self.unreadable(Step::Read, at, error),
            Err(_) => {
                let mut at = at;
                for sector in into.chunks_mut(SECTOR as usize) {
                    if let Err(error) = read(at, sector) {
                        sector.fill(0);
                        self.unreadable(Step::Read, at, error)?;
                    }
                    at += SECTOR;
                }
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Hands a range to the file system to copy, or copies it if that does not work.
    fn offload(&self, range: Range) -> Result<(), CopyError> {
        self.limit_rate(range.len);
        match block_on(self.target.copy_from(range.start, self.source, range.start, range.len)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            result => return result.map_err(|error| self.unwritable(range.start, error)),
        }
        let mut buffer = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            buffer.resize((range.end() - at).min(BUFFER as u64) as usize, 0);
            self.read(at, &mut buffer)?;
            self.write_sparse(at, &buffer, None)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    /// Writes `bytes`, leaving out runs of zeroes of at least `sparse_bytes`, in units of that size. With the end of them
    /// the turn of batch `last` ends.
    fn write_sparse(&self, at: u64, bytes: &[u8], last: Option<u64>) -> Result<(), CopyError> {
        if self.options.sparse_bytes == 0 {
            return self.write(at, bytes, last);
        }
        let unit = self.options.sparse_bytes.max(SECTOR);
        let (mut run_start, mut run_is_zero) = (0, None);
        let mut position = 0;
        while position < bytes.len() {
            // Units are counted from the start of the disk, so that they match blocks and clusters.
            let to_boundary = unit - (at + position as u64) % unit;
            let end = usize::try_from(to_boundary).map_or(bytes.len(), |len| (position + len).min(bytes.len()));
            let zero = is_zero(bytes.get(position..end).unwrap_or_default());
            if run_is_zero.is_some_and(|run| run != zero) {
                self.write_run(at, bytes, run_start..position, !zero, None)?;
                run_start = position;
            }
            run_is_zero = Some(zero);
            position = end;
        }
        self.write_run(at, bytes, run_start..bytes.len(), run_is_zero.unwrap_or(false), last)
    }

    fn write_run(
        &self,
        at: u64,
        bytes: &[u8],
        run: core::ops::Range<usize>,
        is_zero: bool,
        last: Option<u64>,
    ) -> Result<(), CopyError> {
        let start = at + run.start as u64;
        if is_zero {
            self.zero(Range::new(start, run.len() as u64))
        } else {
            self.write(start, bytes.get(run).unwrap_or_default(), last)
        }
    }

    fn write(&self, at: u64, bytes: &[u8], last: Option<u64>) -> Result<(), CopyError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.limit_rate(bytes.len() as u64);
        // Space is taken in turn; the data itself need not be.
        let image = self.target.as_any().and_then(|any| any.downcast_ref::<Image>());
        let written = match (last, image) {
            (Some(number), Some(image)) => block_on(image.write_in_turn(at, bytes, &|| self.end_turn(number))),
            _ => block_on(self.target.write(at, bytes, WriteFlags::default())),
        };
        written.map_err(|error| self.unwritable(at, error))
    }

    /// Makes a range read as zeroes, unless it does already.
    fn zero(&self, range: Range) -> Result<(), CopyError> {
        if self.options.target_is_zero && !self.options.skip_unallocated {
            return Ok(());
        }
        let place = Range::new(range.start, range.len);
        block_on(self.target.write_zeroes(place, WriteFlags { may_unmap: true, ..WriteFlags::default() }))
            .map_err(|error| self.unwritable(range.start, error))
    }

    fn unwritable(&self, at: u64, error: Error) -> CopyError {
        CopyError { doing: Some((Step::Write, at)), error }
    }

    /// Waits until `bytes` more may be written.
    fn limit_rate(&self, bytes: u64) {
        let Some(rate) = NonZeroU64::new(self.options.bytes_per_second) else { return };
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let due = Duration::from_secs_f64(before as f64 / rate.get() as f64);
        while let Some(left) = due.checked_sub(self.started.elapsed()).filter(|left| !left.is_zero()) {
            if *self.turn() == STOPPED {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// A worker that panics does not leave the others waiting for it.
struct StopOnPanic<'a>(&'a Copy<'a>);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(None);
        }
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
