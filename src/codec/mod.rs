//! Compression, one file per algorithm, each over a well-kept crate.

mod deflate;
mod zstd;

pub use deflate::{deflate, inflate};
pub use zstd::{unzstd, zstd};
