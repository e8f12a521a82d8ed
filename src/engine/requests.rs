//! Requests in flight and who waits for whom.
//!
//! Every request is tracked with its range. A *serialising* one widens its range to an alignment and excludes every
//! overlapping request. A request waits on each overlapping one if either is serialising, except on one that waits
//! itself (which breaks cycles); after each wait it looks again.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use crate::node::Range;
use crate::sync::Mutex;

/// What a tracked request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Reads guest data.
    Read,
    /// Writes guest data.
    Write,
    /// Zeroes or discards a range.
    Discard,
    /// Changes the length.
    Resize,
}

/// The requests of one node.
#[derive(Debug, Default)]
pub struct Requests {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    serialising: usize,
}

#[derive(Debug)]
struct Entry {
    kind: RequestKind,
    range: Range,
    serialising: bool,
    waiting: bool,
    wakers: Vec<Waker>,
}

impl Requests {
    /// No requests.
    pub const fn new() -> Self {
        Requests { state: Mutex::new(State { entries: Vec::new(), free: Vec::new(), serialising: 0 }) }
    }

    /// Puts a request on the list. It must then [`Tracked::wait`].
    pub fn begin(&self, kind: RequestKind, range: Range) -> Tracked<'_> {
        let mut state = self.state.lock();
        let entry = Entry { kind, range, serialising: false, waiting: false, wakers: Vec::new() };
        let index = match state.free.pop() {
            Some(index) => {
                state.entries[index] = Some(entry);
                index
            }
            None => {
                state.entries.push(Some(entry));
                state.entries.len() - 1
            }
        };
        let undisturbed = state.serialising == 0;
        Tracked { requests: self, index, undisturbed }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        let state = self.state.lock();
        state.entries.len() - state.free.len()
    }
}

impl State {
    fn entry(&mut self, index: usize) -> &mut Entry {
        self.entries[index].as_mut().expect("a tracked request is on the list until it is dropped")
    }

    /// The first request that `index` has to wait for.
    fn conflict(&self, index: usize) -> Option<usize> {
        if self.serialising == 0 {
            return None;
        }
        let this = self.entries[index].as_ref()?;
        self.entries.iter().enumerate().position(|(other_index, other)| {
            other.as_ref().is_some_and(|other| {
                other_index != index
                    && (this.serialising || other.serialising)
                    && !other.waiting
                    && this.range.overlaps(other.range)
            })
        })
    }
}

/// A request on the list; dropping it ends the request and wakes those that wait for it.
#[derive(Debug)]
pub struct Tracked<'a> {
    requests: &'a Requests,
    index: usize,
    undisturbed: bool,
}

impl Tracked<'_> {
    /// Whether there was no serialising request when this one began, so that it need not wait.
    pub fn undisturbed(&self) -> bool {
        self.undisturbed
    }

    /// Makes the request serialising with its range widened to `align`, a power of two. The caller must wait after it.
    pub fn mark_serialising(&self, align: u64) {
        let mut state = self.requests.state.lock();
        let entry = state.entry(self.index);
        let widened = entry.range.widen(align);
        let end = entry.range.end().max(widened.end());
        let start = entry.range.start.min(widened.start);
        entry.range = Range::new(start, end - start);
        if !entry.serialising {
            entry.serialising = true;
            state.serialising += 1;
        }
    }

    /// Whether the request is serialising.
    pub fn is_serialising(&self) -> bool {
        self.requests.state.lock().entry(self.index).serialising
    }

    /// What the request does.
    pub fn kind(&self) -> RequestKind {
        self.requests.state.lock().entry(self.index).kind
    }

    /// Waits for every conflicting request. Returns whether there was one.
    pub async fn wait(&self) -> bool {
        let mut waited = false;
        poll_fn(|cx| self.poll_wait(cx, &mut waited)).await;
        waited
    }

    fn poll_wait(&self, cx: &mut Context<'_>, waited: &mut bool) -> Poll<()> {
        let mut state = self.requests.state.lock();
        match state.conflict(self.index) {
            Some(other) => {
                let wakers = &mut state.entry(other).wakers;
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                state.entry(self.index).waiting = true;
                *waited = true;
                Poll::Pending
            }
            None => {
                state.entry(self.index).waiting = false;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        let wakers = {
            let mut state = self.requests.state.lock();
            let Some(entry) = state.entries[self.index].take() else { return };
            state.free.push(self.index);
            if entry.serialising {
                state.serialising -= 1;
            }
            entry.wakers
        };
        for waker in wakers {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::Future;
    use core::pin::pin;

    fn is_ready(future: impl Future) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn plain_requests_do_not_wait_for_each_other() {
        let requests = Requests::new();
        let _read = requests.begin(RequestKind::Read, Range::new(0, 10));
        let write = requests.begin(RequestKind::Write, Range::new(5, 10));
        assert!(is_ready(write.wait()));
    }

    #[test]
    fn a_serialising_request_waits_and_holds_off() {
        let requests = Requests::new();
        let read = requests.begin(RequestKind::Read, Range::new(100, 10));
        let write = requests.begin(RequestKind::Write, Range::new(0, 10));
        write.mark_serialising(128);
        assert!(!is_ready(write.wait()), "the widened range overlaps the read");
        let late = requests.begin(RequestKind::Read, Range::new(64, 4));
        assert!(is_ready(late.wait()), "a waiting request holds nobody off");
        drop(read);
        assert!(!is_ready(write.wait()), "after a wait it looks again");
        drop(late);
        assert!(is_ready(write.wait()));
        let later = requests.begin(RequestKind::Read, Range::new(64, 4));
        assert!(!is_ready(later.wait()));
        drop(write);
        assert!(is_ready(later.wait()));
    }

    #[test]
    fn two_serialising_requests_do_not_deadlock() {
        let requests = Requests::new();
        let first = requests.begin(RequestKind::Write, Range::new(0, 10));
        let second = requests.begin(RequestKind::Write, Range::new(0, 10));
        first.mark_serialising(16);
        second.mark_serialising(16);
        assert!(!is_ready(first.wait()));
        assert!(is_ready(second.wait()), "the first waits already");
        drop(second);
        assert!(is_ready(first.wait()));
    }
}
