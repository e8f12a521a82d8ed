//! Futures that can be told to stop.
//!
//! Only reading happens behind this binding, so a future may be dropped at any point: requests that the host has not
//! seen yet are never shown to it, and answers to the others are thrown away.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::task::{Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::op::BoxFuture;
use crate::sync::Mutex;

#[derive(Default)]
struct State {
    stopped: bool,
    waker: Option<Waker>,
}

/// Stops the future it was made with.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<Mutex<State>>);

impl Switch {
    /// Ends the future with [`ErrorKind::Cancelled`] the next time tasks are polled.
    pub(super) fn stop(&self) {
        let waker = {
            let mut state = self.0.lock();
            state.stopped = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A future that ends when `future` does, or when it is stopped.
    pub(super) fn wrap<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send + 'static {
        let state = self.0.clone();
        let mut future: Option<BoxFuture<'static, Result<T>>> = Some(Box::pin(future));
        poll_fn(move |cx| {
            let stopped = {
                let mut state = state.lock();
                state.waker = Some(cx.waker().clone());
                state.stopped
            };
            match &mut future {
                Some(running) if !stopped => running.as_mut().poll(cx),
                _ => {
                    future = None;
                    Poll::Ready(Err(Error::new(ErrorKind::Cancelled, "the request was cancelled")))
                }
            }
        })
    }
}
