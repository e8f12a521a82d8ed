//! Virtual-disk images opened, inspected, changed and converted by one memory-safe core that performs no I/O itself.
//!
//! The core asks everything it needs of a [`Node`] that the caller supplies: a file of this machine
//! ([`native::File`]), memory ([`Memory`]), functions ([`Callbacks`]), or a queue that a host answers ([`ring`]).
//!
//! ```
//! use diskette::{Memory, Node, OpenOptions, ReadFlags, block_on, open};
//!
//! let file = Memory::new(vec![0xab; 4096]);
//! let image = block_on(open(file, &OpenOptions { format: Some("raw".into()), ..OpenOptions::default() }))?;
//! let mut sector = [0; 512];
//! block_on(image.read(0, &mut sector, ReadFlags::default()))?;
//! assert_eq!(sector[0], 0xab);
//! # Ok::<(), diskette::Error>(())
//! ```
//!
//! Where to read on: [`node`] (the trait), `engine/read.rs` (how a read finds its bytes), `formats/raw` (the smallest
//! format), [`ring`] (the host interface), `formats/qcow2`.
#![no_std]
#![cfg_attr(not(feature = "wasm"), forbid(unsafe_code))]
#![cfg_attr(feature = "wasm", deny(unsafe_code))]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod bitmap;
pub mod cache;
pub mod codec;
pub mod crypto;
pub mod describe;
pub mod drivers;
pub mod engine;
pub mod error;
pub mod event;
pub mod filters;
pub mod formats;
pub mod graph;
pub mod memory;
#[cfg(all(feature = "native", unix))]
pub mod native;
pub mod node;
pub mod op;
pub mod options;
pub mod policy;
pub mod protocols;
pub mod ring;
pub mod secret;
pub mod structure;
pub mod sync;
#[cfg(feature = "wasm")]
mod wasm;
pub mod wire;

pub use drivers::{Driver, Drivers, OpenOptions, open};
pub use engine::{CheckReport, DetectZeroes, Image, ImageOptions};
pub use error::{Error, ErrorKind, Result};
pub use memory::{Callbacks, Memory};
pub use node::{Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags};
pub use op::{Op, block_on, join_all};
pub use policy::{Budgets, Gate, Opener, Policy, Reference};
pub use secret::{Keyring, Secret, SecretSource};
