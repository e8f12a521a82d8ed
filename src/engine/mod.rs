//! The engine moves data; formats only say where it is.
//!
//! [`Image`] is a format with its children: it checks bounds, tracks requests, reads across chains, copies on write.
//! [`Aligned`] gives a leaf that insists on blocks the byte granularity everything else expects. [`status`] answers
//! what a range holds across a whole chain.

mod aligned;
mod bitmaps;
mod encrypted;
mod format;
mod image;
mod read;
mod requests;
pub mod status;
mod write;
mod zero;

pub use aligned::{Aligned, byte_granular};
pub use format::{
    Abort, Allocation, AmendRequest, BitmapChange, BitmapsLost, CheckReport, Finding, FindingKind, Format, InPlace,
    Repair, RepairAdvice, SnapshotChange,
};
pub use image::{DetectZeroes, Image, ImageOptions};
pub use requests::{RequestKind, Requests, Tracked};
pub use zero::is_zero;
