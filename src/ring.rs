//! The sans-IO host interface: requests queue up in a [`Ring`], the host answers them, a [`Stepper`] runs the tasks.
//!
//! ```
//! use diskette::ring::{Answer, Ask, Stepper};
//! use diskette::{Node, ReadFlags};
//!
//! let stepper = Stepper::new();
//! let file = stepper.file("disk.raw", 4096);
//! let task = stepper.start(async move {
//!     let mut sector = vec![0; 512];
//!     file.read(512, &mut sector, ReadFlags::default()).await?;
//!     Ok::<_, diskette::Error>(sector)
//! });
//! stepper.poll();
//! while let Some(request) = stepper.next_request() {
//!     let Ask::Read { at, len, .. } = request.ask else { unreachable!() };
//!     assert_eq!(at, 512);
//!     stepper.complete(request.id, Ok(Answer::Bytes(vec![7; len])));
//! }
//! stepper.poll();
//! assert_eq!(task.take().unwrap()?[0], 7);
//! # Ok::<(), diskette::Error>(())
//! ```

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::node::{
    Extent, Host, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags, check_bounds,
};
use crate::op::{BoxFuture, Op, if_writing};
use crate::policy::{Gate, Opener, Reference};
use crate::sync::Mutex;

/// Names a request until it is completed.
pub type RequestId = u64;
/// Names a file of the host.
pub type FileId = u32;

/// Something the core needs from the host.
#[derive(Debug)]
pub struct Request {
    /// To be passed to [`Stepper::complete`].
    pub id: RequestId,
    /// What is needed.
    pub ask: Ask,
}

/// What is needed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ask {
    /// Read exactly `len` bytes; answered by [`Answer::Bytes`].
    Read {
        /// The file.
        file: FileId,
        /// Byte offset.
        at: u64,
        /// Number of bytes.
        len: usize,
    },
    /// Write the bytes; answered by [`Answer::Done`].
    Write {
        /// The file.
        file: FileId,
        /// Byte offset.
        at: u64,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// Make a range read as zeroes; answered by [`Answer::Done`].
    Zero {
        /// The file.
        file: FileId,
        /// The range.
        range: Range,
    },
    /// A range is not needed any more; answered by [`Answer::Done`].
    Discard {
        /// The file.
        file: FileId,
        /// The range.
        range: Range,
    },
    /// Put everything written before on stable storage; answered by [`Answer::Done`].
    Flush {
        /// The file.
        file: FileId,
    },
    /// Change the length; answered by [`Answer::Done`].
    Resize {
        /// The file.
        file: FileId,
        /// New length in bytes.
        length: u64,
    },
    /// Open a file that an image names; answered by [`Answer::Opened`]. The host may refuse.
    Open {
        /// Which, for what, and named by whom.
        reference: Reference,
    },
    /// Wait until the host's clock shows at least this many milliseconds; answered by [`Answer::Done`].
    Sleep {
        /// The time to wait for.
        until: u64,
    },
}

/// The host's answer to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answer {
    /// It is done.
    Done,
    /// The bytes that were asked for.
    Bytes(Vec<u8>),
    /// A file was opened.
    Opened {
        /// The host's number for it; the host chooses.
        file: FileId,
        /// Its name, for messages.
        name: String,
        /// Its length in bytes.
        length: u64,
    },
}

#[derive(Default)]
struct Queue {
    next_id: RequestId,
    next_file: FileId,
    asked: VecDeque<Request>,
    waiting: BTreeMap<RequestId, Slot>,
}

#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    answer: Option<Result<Answer>>,
    abandoned: bool,
}

/// The queue of requests between nodes and the host.
#[derive(Clone, Default)]
pub struct Ring {
    queue: Arc<Mutex<Queue>>,
}

impl core::fmt::Debug for Ring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ring").field("waiting", &self.queue.lock().waiting.len()).finish()
    }
}

impl Ring {
    /// Asks the host; the future ends with its answer. The request is queued at once.
    pub fn ask(&self, ask: Ask) -> Pending {
        let mut queue = self.queue.lock();
        let id = queue.next_id;
        queue.next_id += 1;
        queue.asked.push_back(Request { id, ask });
        queue.waiting.insert(id, Slot::default());
        Pending { ring: self.clone(), id }
    }
}

/// An answer that is waited for.
#[derive(Debug)]
pub struct Pending {
    ring: Ring,
    id: RequestId,
}

impl Future for Pending {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        let mut queue = self.ring.queue.lock();
        let Some(slot) = queue.waiting.get_mut(&self.id) else {
            return Poll::Ready(Err(Error::new(ErrorKind::Cancelled, "the request was answered already")));
        };
        match slot.answer.take() {
            Some(answer) => {
                queue.waiting.remove(&self.id);
                Poll::Ready(answer)
            }
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut queue = self.ring.queue.lock();
        match queue.waiting.get_mut(&self.id) {
            Some(slot) if slot.answer.is_none() => slot.abandoned = true,
            _ => {
                queue.waiting.remove(&self.id);
            }
        }
    }
}

/// A file of the host, reached through a [`Ring`].
#[derive(Debug)]
pub struct File {
    ring: Ring,
    file: FileId,
    name: String,
    length: Mutex<u64>,
    read_only: bool,
}

impl File {
    /// A file that the host knows as `file`.
    pub fn new(ring: Ring, file: FileId, name: impl Into<String>, length: u64, read_only: bool) -> Arc<Self> {
        Arc::new(File { ring, file, name: name.into(), length: Mutex::new(length), read_only })
    }

    /// The host's number of the file.
    pub fn id(&self) -> FileId {
        self.file
    }

    fn writable(&self) -> Result<()> {
        if self.read_only {
            Err(Error::new(ErrorKind::ReadOnly, "the file is read-only").at_path(&self.name))
        } else {
            Ok(())
        }
    }

    fn done<'a>(&'a self, ask: Ask, grow_to: Option<u64>) -> Op<'a, ()> {
        let answer = self.ring.ask(ask);
        Op::future(async move {
            answer.await.map_err(|error| error.at_path(&self.name))?;
            if let Some(end) = grow_to {
                let mut length = self.length.lock();
                *length = (*length).max(end);
            }
            Ok(())
        })
    }
}

impl Node for File {
    fn info(&self) -> NodeInfo {
        NodeInfo { read_only: self.read_only, ..NodeInfo::plain(*self.length.lock()) }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        Op::ok(Extent { len: range.len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        if let Err(error) = check_bounds(at, into.len() as u64, *self.length.lock()) {
            return Op::err(error.at_path(&self.name));
        }
        let answer = self.ring.ask(Ask::Read { file: self.file, at, len: into.len() });
        Op::future(async move {
            let answer = answer.await.map_err(|error| error.at_path(&self.name).at_offset(at).during("read"))?;
            match answer {
                Answer::Bytes(bytes) if bytes.len() == into.len() => {
                    into.copy_from_slice(&bytes);
                    Ok(())
                }
                Answer::Bytes(bytes) => Err(Error::new(
                    ErrorKind::Io,
                    alloc::format!("the host returned {} bytes where {} were asked for", bytes.len(), into.len()),
                )
                .at_path(&self.name)
                .at_offset(at)),
                _ => Err(Error::new(ErrorKind::Io, "the host answered a read without bytes").at_path(&self.name)),
            }
        })
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| {
            if let Err(error) = self.writable() {
                return Op::err(error);
            }
            let ask = Ask::Write { file: self.file, at, bytes: from.to_vec() };
            let write = self.done(ask, Some(at.saturating_add(from.len() as u64)));
            if !flags.force_unit_access {
                return write;
            }
            Op::future(async move {
                write.await?;
                self.flush().await
            })
        })
    }

    fn write_zeroes<'a>(&'a self, range: Range, _flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| match self.writable() {
            Ok(()) => self.done(Ask::Zero { file: self.file, range }, Some(range.end())),
            Err(error) => Op::err(error),
        })
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        if_writing(|| match self.writable() {
            Ok(()) => self.done(Ask::Discard { file: self.file, range }, None),
            Err(error) => Op::err(error),
        })
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        if self.read_only || !cfg!(feature = "write") {
            return Op::ok(());
        }
        self.done(Ask::Flush { file: self.file }, None)
    }

    fn resize<'a>(&'a self, length: u64, _preallocation: Preallocation) -> Op<'a, ()> {
        if_writing(|| {
            if let Err(error) = self.writable() {
                return Op::err(error);
            }
            let answer = self.ring.ask(Ask::Resize { file: self.file, length });
            Op::future(async move {
                answer.await.map_err(|error| error.at_path(&self.name))?;
                *self.length.lock() = length;
                Ok(())
            })
        })
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// An [`Opener`] that asks the host.
#[derive(Clone, Debug)]
pub struct RingOpener(pub Ring);

impl Opener for RingOpener {
    fn open<'a>(&'a self, reference: &'a Reference, _gate: &'a Gate) -> Op<'a, Arc<dyn Node>> {
        let answer = self.0.ask(Ask::Open { reference: reference.clone() });
        Op::future(async move {
            match answer.await? {
                Answer::Opened { file, name, length } => {
                    Ok(File::new(self.0.clone(), file, name, length, !reference.writable) as Arc<dyn Node>)
                }
                _ => Err(Error::new(ErrorKind::NotFound, "the host did not open the file").at_path(&reference.name)),
            }
        })
    }
}

/// Runs tasks for a host that does all input and output itself.
#[derive(Default)]
pub struct Stepper {
    ring: Ring,
    tasks: Mutex<Vec<TaskEntry>>,
}

struct TaskEntry {
    flag: Arc<Flag>,
    future: BoxFuture<'static, ()>,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl core::fmt::Debug for Stepper {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stepper").field("ring", &self.ring).finish_non_exhaustive()
    }
}

/// The result of a task, once there is one.
#[derive(Debug)]
pub struct Task<T>(Arc<Mutex<Option<T>>>);

impl<T> Task<T> {
    /// Takes the result, if the task has ended.
    pub fn take(&self) -> Option<T> {
        self.0.lock().take()
    }
}

impl Stepper {
    /// A stepper without tasks.
    pub fn new() -> Self {
        Stepper::default()
    }

    /// The queue of requests.
    pub fn ring(&self) -> Ring {
        self.ring.clone()
    }

    /// A writable file of the host, `length` bytes long, with the next free number.
    pub fn file(&self, name: &str, length: u64) -> Arc<File> {
        let id = {
            let mut queue = self.ring.queue.lock();
            queue.next_file += 1;
            queue.next_file
        };
        File::new(self.ring(), id, name.to_string(), length, false)
    }

    /// Starts a task; [`Stepper::poll`] runs it.
    pub fn start<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Task<T> {
        let slot = Arc::new(Mutex::new(None));
        let output = slot.clone();
        let entry = TaskEntry {
            flag: Arc::new(Flag(AtomicBool::new(true))),
            future: alloc::boxed::Box::pin(async move {
                let value = future.await;
                *output.lock() = Some(value);
            }),
        };
        self.tasks.lock().push(entry);
        Task(slot)
    }

    /// The next request that the host has not seen yet. Take all there are before answering any, so that they overlap.
    pub fn next_request(&self) -> Option<Request> {
        let mut queue = self.ring.queue.lock();
        while let Some(request) = queue.asked.pop_front() {
            // A read nobody waits for any more is not worth doing; anything else runs to completion.
            let abandoned = queue.waiting.get(&request.id).is_none_or(|slot| slot.abandoned);
            if abandoned && matches!(request.ask, Ask::Read { .. } | Ask::Sleep { .. }) {
                queue.waiting.remove(&request.id);
                continue;
            }
            return Some(request);
        }
        None
    }

    /// Answers a request.
    pub fn complete(&self, id: RequestId, answer: Result<Answer>) {
        let waker = {
            let mut queue = self.ring.queue.lock();
            match queue.waiting.get_mut(&id) {
                Some(slot) if slot.abandoned => {
                    queue.waiting.remove(&id);
                    None
                }
                Some(slot) => {
                    slot.answer = Some(answer);
                    slot.waker.take()
                }
                None => None,
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Runs every task that can go on, until none can. Returns how many tasks have not ended.
    pub fn poll(&self) -> usize {
        loop {
            let ready = {
                let mut tasks = self.tasks.lock();
                let position = tasks.iter().position(|task| task.flag.0.swap(false, Ordering::AcqRel));
                position.map(|position| tasks.swap_remove(position))
            };
            let Some(mut task) = ready else {
                return self.tasks.lock().len();
            };
            let waker = Waker::from(task.flag.clone());
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                self.tasks.lock().push(task);
            }
        }
    }
}
