//! Files and block devices of this machine, image locks, exports of NBD servers, and copying on several threads.

mod buffer;
pub mod compare;
pub mod copy;
mod direct;
mod file;
mod host;
mod keyring;
mod lock;
pub mod nbd;
mod opener;
pub mod rebase;
mod segments;

pub use buffer::Buffer;
pub use file::{CacheMode, File, FileOptions, Locking, identity};
pub use host::{Machine, MachineClock};
pub use keyring::Secrets;
pub use nbd::Nbd;
pub use opener::{FileOpener, beside, resolve};
pub use segments::{Progress, on_workers};
