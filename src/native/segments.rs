//! Work over a whole disk on several threads, in segments.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::node::Range;
use crate::sync::Mutex;

/// Bytes of the disk that a worker takes at a time.
pub(super) const SEGMENT: u64 = 4 << 20;
/// Largest single read or write.
pub(super) const PIECE: usize = 1 << 19;

/// Stack of a worker. A read through a chain takes some of it for every image.
const STACK_BYTES: usize = 8 << 20;

/// Runs `work` on this thread and `workers` - 1 others, or as many as there can be.
pub fn on_workers(workers: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..workers {
            let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
            if worker.spawn_scoped(scope, &work).is_err() {
                break;
            }
        }
        work();
    });
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
        on_workers(workers, turn);
        let error = self.error.lock().take();
        error.map_or(Ok(()), Err)
    }
}
