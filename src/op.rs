//! The whole asynchronous vocabulary: [`Op`], [`block_on`] and [`join_all`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::{Future, IntoFuture};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use crate::error::{Error, Result};

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Outcome of a node call: already known, or a future for it.
///
/// An `Op` may already have had its effect when it is returned; dropping it never undoes anything.
#[must_use = "an operation may still be pending; await it or pass it to block_on"]
pub enum Op<'a, T> {
    /// The call has finished.
    Ready(Result<T>),
    /// The call finishes when this future does.
    Pending(BoxFuture<'a, Result<T>>),
}

impl<'a, T> Op<'a, T> {
    /// A finished, successful call.
    pub fn ok(value: T) -> Self {
        Op::Ready(Ok(value))
    }

    /// A finished, failed call.
    pub fn err(error: Error) -> Self {
        Op::Ready(Err(error))
    }

    /// A call that finishes when `future` does. This is the one allocation of a slow path.
    pub fn future(future: impl Future<Output = Result<T>> + Send + 'a) -> Self {
        Op::Pending(Box::pin(future))
    }
}

impl<'a, T: Send + 'a> Op<'a, T> {
    /// Applies `f` to the outcome, now or when it is known.
    pub fn then<U>(self, f: impl FnOnce(Result<T>) -> Result<U> + Send + 'a) -> Op<'a, U> {
        match self {
            Op::Ready(result) => Op::Ready(f(result)),
            Op::Pending(future) => Op::future(async move { f(future.await) }),
        }
    }
}

impl<'a, T: Unpin> IntoFuture for Op<'a, T> {
    type Output = Result<T>;
    type IntoFuture = OpFuture<'a, T>;

    fn into_future(self) -> OpFuture<'a, T> {
        OpFuture(Some(self))
    }
}

/// The future an [`Op`] turns into when it is awaited.
pub struct OpFuture<'a, T>(Option<Op<'a, T>>);

impl<T: Unpin> Future for OpFuture<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match self.0.take() {
            Some(Op::Ready(result)) => Poll::Ready(result),
            Some(Op::Pending(mut future)) => match future.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => {
                    self.0 = Some(Op::Pending(future));
                    Poll::Pending
                }
            },
            None => Poll::Pending,
        }
    }
}

/// Runs a future to its end on this thread.
///
/// With the `std` feature the thread parks while the future waits; without it the future is polled in a loop, which is
/// right when every node answers at once.
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let signal = Arc::new(Signal::new());
    let waker = Waker::from(signal.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        signal.wait();
    }
}

#[cfg(feature = "std")]
struct Signal {
    thread: std::thread::Thread,
    woken: core::sync::atomic::AtomicBool,
}

#[cfg(feature = "std")]
impl Signal {
    fn new() -> Self {
        Signal { thread: std::thread::current(), woken: core::sync::atomic::AtomicBool::new(false) }
    }

    fn wait(&self) {
        while !self.woken.swap(false, core::sync::atomic::Ordering::Acquire) {
            std::thread::park();
        }
    }
}

#[cfg(feature = "std")]
impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, core::sync::atomic::Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(not(feature = "std"))]
struct Signal;

#[cfg(not(feature = "std"))]
impl Signal {
    fn new() -> Self {
        Signal
    }

    fn wait(&self) {
        core::hint::spin_loop();
    }
}

#[cfg(not(feature = "std"))]
impl Wake for Signal {
    fn wake(self: Arc<Self>) {}
}

/// Runs several futures side by side and returns their outputs in the order given.
///
/// All of them are started before any is waited for, so requests they make can overlap.
pub fn join_all<'a, T: Send + Unpin + 'a>(futures: Vec<BoxFuture<'a, T>>) -> JoinAll<'a, T> {
    JoinAll { slots: futures.into_iter().map(Slot::Running).collect() }
}

/// The future made by [`join_all`].
pub struct JoinAll<'a, T> {
    slots: Vec<Slot<'a, T>>,
}

enum Slot<'a, T> {
    Running(BoxFuture<'a, T>),
    Done(T),
}

impl<T: Unpin> Future for JoinAll<'_, T> {
    type Output = Vec<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<T>> {
        let mut waiting = false;
        for slot in &mut self.slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *slot = Slot::Done(output),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            return Poll::Pending;
        }
        let slots = core::mem::take(&mut self.slots);
        Poll::Ready(
            slots
                .into_iter()
                .filter_map(|slot| match slot {
                    Slot::Done(output) => Some(output),
                    Slot::Running(_) => None,
                })
                .collect(),
        )
    }
}

/// A change of an image, or a refusal where this build only reads.
pub(crate) fn if_writing<'a, T>(change: impl FnOnce() -> Op<'a, T>) -> Op<'a, T> {
    if cfg!(feature = "write") { change() } else { Op::err(only_reads()) }
}

pub(crate) fn only_reads() -> Error {
    Error::unsupported("this build only reads: the feature 'write' is not part of it")
}
