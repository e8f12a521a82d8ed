//! Copying a disk on several threads.
//!
//! Workers take parts of the disk in order, each looks up what its part holds, skips what reads as zeroes, and moves the
//! rest. A copy reads in parallel and, unless told otherwise, writes in the order of the disk, so that the target is laid
//! out alike every time. The first error ends all workers.

use alloc::sync::Arc;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Condvar, Mutex as StdMutex};
use std::time::Instant;
use std::vec::Vec;

use crate::engine::status::Chain;
use crate::engine::{Image, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::native::Buffer;
use crate::native::segments::{PIECE, Progress, SEGMENT, on_workers};
use crate::node::{Node, Range, ReadFlags, Want, WriteFlags};
use crate::op::block_on;
use crate::sync::Mutex;

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
            piece_bytes: PIECE,
            count_moved: false,
            bytes_per_second: 0,
            salvage: None,
        }
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
    on_workers(options.workers, || job.work(progress));
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
    buffer: Buffer,
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
                self.read(range.start, buffer.first(end).get_mut(filled..).unwrap_or_default())?;
                filled = end;
            }
        }
        if !self.options.out_of_order && !self.wait_for_turn(*number) {
            return Ok(false);
        }
        let mut rest = buffer.first(filled);
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
        let mut filled = 0;
        for (piece, _) in pieces.iter().filter(|(_, kind)| *kind == Kind::Data) {
            // Clusters are those of the target.
            let mut at = piece.start - piece.start % cluster;
            while at < piece.end() {
                let range = Range::new(at, cluster.min(self.length - at));
                at += cluster;
                if clusters.last().is_some_and(|(known, _)| *known == range) {
                    continue;
                }
                let end = filled + range.len as usize;
                let bytes = buffer.first(end).get_mut(filled..).unwrap_or_default();
                self.read(range.start, bytes)?;
                if self.options.sparse_bytes > 0 && self.options.target_is_zero && is_zero(bytes) {
                    continue;
                }
                let compressed = image.compress(bytes).map_err(|error| self.unwritable(range.start, error))?;
                clusters.push((range, compressed));
                filled = end;
            }
        }
        if !self.options.out_of_order && !self.wait_for_turn(*number) {
            return Ok(false);
        }
        for (piece, _) in pieces.iter().filter(|(_, kind)| *kind == Kind::Zero) {
            self.zero(*piece)?;
        }
        let mut rest: &[u8] = buffer.first(filled);
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
        let mut buffer = Buffer::default();
        let mut at = range.start;
        while at < range.end() {
            let bytes = buffer.first((range.end() - at).min(PIECE as u64) as usize);
            self.read(at, bytes)?;
            self.write_sparse(at, bytes, None)?;
            at += bytes.len() as u64;
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
