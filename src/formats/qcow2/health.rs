//! What happens when metadata turns out to be impossible: the image is marked as corrupt, so that nobody writes to it
//! any more, and whoever opened it is told.

use core::future::Future;
use core::sync::atomic::{AtomicBool, Ordering};

use alloc::string::String;

use crate::error::{Error, ErrorKind, Result};
use crate::filters::Report;
use crate::formats::qcow2::Qcow2;
#[cfg(feature = "write")]
use crate::formats::qcow2::header::INCOMPATIBLE_CORRUPT;
use crate::formats::qcow2::header::Problem;

/// Whether the image can still be used, and who is told when it cannot.
pub(super) struct Health {
    /// No more writes: the image was found to be corrupt.
    broken: AtomicBool,
    /// One corruption that is no reason to stop was told.
    told: AtomicBool,
    report: Option<Report>,
}

impl Health {
    pub(super) fn new(report: Option<Report>) -> Self {
        Health { broken: AtomicBool::new(false), told: AtomicBool::new(false), report }
    }

    /// Says a line to whoever opened the image.
    pub(super) fn say(&self, text: &str) {
        if let Some(report) = &self.report {
            report(text);
        }
    }

    /// Says, once, what is wrong but no reason to stop.
    pub(super) fn mention(&self, what: &str) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.say(&alloc::format!(
                "qcow2: Image is corrupt: {what}; further non-fatal corruption events will be suppressed"
            ));
        }
    }
}

impl Qcow2 {
    /// Does work that may change the image, unless it was found to be corrupt, and looks whether it is found now.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.health.broken.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Closed,
                "the image was found to be corrupt; nothing more is written to it",
            ));
        }
        self.watch_reading(work).await
    }

    /// As [`Qcow2::watch`] for work that changes nothing.
    pub(super) async fn watch_reading<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = work.await;
        if let Err(error) = &result
            && let Some(what) = corruption(error)
        {
            self.mark_corrupt(&what).await;
        }
        result
    }

    /// As [`Qcow2::watch`] for closing, which has nothing left to do once the image was found to be corrupt.
    pub(super) async fn watch_closing(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        if self.health.broken.load(Ordering::Acquire) { Ok(()) } else { self.watch_reading(work).await }
    }

    async fn mark_corrupt(&self, what: &str) {
        if !cfg!(feature = "write") || !self.writable {
            self.health.mention(what);
            return;
        }
        if self.health.broken.swap(true, Ordering::AcqRel) {
            return;
        }
        // Whoever asks whether the image may be changed takes the long way from now on.
        self.changing.store(false, Ordering::Release);
        self.health.say(&alloc::format!(
            "qcow2: Marking image as corrupt: {what}; further corruption events will be suppressed"
        ));
        // The failure that showed it is the one to report.
        #[cfg(feature = "write")]
        let _ = self.set_incompatible(self.geometry().incompatible | INCOMPATIBLE_CORRUPT).await;
    }
}

/// What is impossible about the metadata, if that is what the error says.
fn corruption(error: &Error) -> Option<String> {
    match error.problem().downcast_ref::<Problem>() {
        Some(Problem::Impossible { what, .. }) => Some(what.clone()),
        _ => None,
    }
}

/// A number as QEMU's messages have it.
pub(super) fn hex(number: u64) -> String {
    if number == 0 { "0".into() } else { alloc::format!("{number:#x}") }
}

/// An error that says what is impossible, and what was found and expected.
pub(super) fn impossible(what: String, found: u64, expected: &'static str, offset: u64) -> Error {
    Problem::Impossible { what, found, expected }.corrupt_at(offset)
}

/// A write that would destroy metadata.
pub(super) fn prevented(what: String, offset: u64) -> Error {
    Problem::Impossible { what, found: offset, expected: "a place without metadata" }.corrupt_at(offset)
}
