//! The formats, one folder each: `header.rs` and `table.rs` are bytes, the other files are verbs.

#[cfg(feature = "luks")]
pub mod luks;
#[cfg(feature = "qcow2")]
pub mod qcow2;
pub mod raw;
