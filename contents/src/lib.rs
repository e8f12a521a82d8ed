//! What is on a disk: its partitions, and the files in the file systems that are known.
//!
//! The disk is seen as bytes; nothing here knows disk-image formats, and nothing here does I/O. A call that needs bytes
//! which it does not have says which ones ([`Stop::Need`]); the host [gives](Contents::give) them and makes the call again:
//!
//! ```
//! use diskette_contents::{Contents, Stop};
//!
//! # fn main() -> Result<(), diskette_contents::Error> {
//! # let disk = vec![0_u8; 1 << 20];
//! let mut contents = Contents::new(disk.len() as u64, 512)?;
//! let layout = loop {
//!     match contents.layout() {
//!         Ok(layout) => break layout,
//!         Err(Stop::Failed(error)) => return Err(error),
//!         Err(Stop::Need(needs)) => {
//!             for need in needs {
//!                 let from = need.offset as usize;
//!                 contents.give(need.offset, &disk[from..from + need.length as usize])?;
//!             }
//!         }
//!     }
//! };
//! assert_eq!(layout.volumes[0].length, 1 << 20);
//! # Ok(())
//! # }
//! ```
//!
//! Disks are not trusted. Every call is bounded in memory and reads; what makes no sense is an error that says where.
#![cfg_attr(not(feature = "wasm"), forbid(unsafe_code))]
#![cfg_attr(feature = "wasm", deny(unsafe_code))]

mod bytes;
mod contents;
mod disk;
mod error;
mod files;
mod probe;
mod table;
#[cfg(feature = "wasm")]
mod wasm;

pub use contents::Contents;
pub use disk::Limits;
pub use error::{Error, ErrorKind, Need, Stop};
pub use files::{Entry, Kind, Page};
pub use probe::Found;
pub use table::{Layout, Table, Volume};
