//! Files and block devices of this machine, image locks, and copying on several threads.

mod direct;
mod file;
mod host;
mod keyring;
mod lock;
mod opener;
pub mod parallel;
pub mod rebase;

pub use file::{CacheMode, File, FileOptions, Locking};
pub use host::{Machine, MachineClock};
pub use keyring::Secrets;
pub use opener::{FileOpener, resolve};
