//! Locks: a short-lived mutex and a lock that tasks wait for.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::{Deref, DerefMut};
use core::task::{Poll, Waker};

/// A mutual-exclusion lock for a few instructions at a time; never held across `.await`.
///
/// With the `std` feature it is the system's mutex, otherwise a spin lock.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    #[cfg(feature = "std")]
    inner: std::sync::Mutex<T>,
    #[cfg(not(feature = "std"))]
    inner: spin::Mutex<T>,
}

impl<T> Mutex<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        #[cfg(feature = "std")]
        return Mutex { inner: std::sync::Mutex::new(value) };
        #[cfg(not(feature = "std"))]
        return Mutex { inner: spin::Mutex::new(value) };
    }

    /// Takes the lock. A panic elsewhere while it was held does not poison it.
    pub fn lock(&self) -> impl DerefMut<Target = T> + '_ {
        #[cfg(feature = "std")]
        return self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        #[cfg(not(feature = "std"))]
        return self.inner.lock();
    }
}

/// A lock that is waited for by `.await` and may be held across it, in order of arrival of wake-ups.
#[derive(Debug, Default)]
pub struct Lock<T> {
    state: Mutex<LockState>,
    value: Mutex<Option<T>>,
}

#[derive(Debug, Default)]
struct LockState {
    held: bool,
    waiters: Vec<Waker>,
}

impl<T> Lock<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Lock { state: Mutex::new(LockState { held: false, waiters: Vec::new() }), value: Mutex::new(Some(value)) }
    }

    /// Waits until nobody holds the lock, then takes it.
    pub async fn lock(&self) -> LockGuard<'_, T> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.held {
                if !state.waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.waiters.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            state.held = true;
            Poll::Ready(())
        })
        .await;
        LockGuard { lock: self, value: self.value.lock().take() }
    }
}

/// Access to what a [`Lock`] protects; dropping it lets the next task in.
#[derive(Debug)]
pub struct LockGuard<'a, T> {
    lock: &'a Lock<T>,
    value: Option<T>,
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("a held lock has its value")
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("a held lock has its value")
    }
}

impl<T> Drop for LockGuard<'_, T> {
    fn drop(&mut self) {
        *self.lock.value.lock() = self.value.take();
        let waiters = {
            let mut state = self.lock.state.lock();
            state.held = false;
            core::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            waiter.wake();
        }
    }
}
