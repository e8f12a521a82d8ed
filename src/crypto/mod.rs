//! Disk encryption: what LUKS 1 and encrypted qcow2 images are made of, over the RustCrypto crates.
//!
//! `spec` names the algorithms, `header` has the bytes of a LUKS header, and `volume` is an open one, with or without its
//! key: they are there without the feature `crypto`, so that an encrypted image can be described. The rest is one file per
//! concern: `hash` and `kdf`, `split` (the anti-forensic splitter), `cipher` (single blocks), `generator` (initialisation
//! vectors), `sector` (whole sectors in a mode), `slots` (key slots), `create` and `amend`.
#![cfg_attr(
    not(any(feature = "luks", feature = "qcow2")),
    allow(dead_code, unused_imports, reason = "no format is encrypted")
)]

#[cfg(not(feature = "crypto"))]
mod absent;
#[cfg(feature = "crypto")]
mod amend;
#[cfg(feature = "crypto")]
mod cipher;
#[cfg(feature = "crypto")]
mod create;
#[cfg(feature = "crypto")]
mod generator;
#[cfg(feature = "crypto")]
mod hash;
pub mod header;
#[cfg(feature = "crypto")]
mod kdf;
mod options;
#[cfg(feature = "crypto")]
mod sector;
#[cfg(feature = "crypto")]
mod slots;
pub mod spec;
#[cfg(feature = "crypto")]
mod split;
#[cfg(feature = "structure")]
pub(crate) mod structure;
mod volume;

#[cfg(not(feature = "crypto"))]
pub use absent::SectorCipher;
#[cfg(not(feature = "crypto"))]
use absent::{amend, create as create_volume, unlock};
#[cfg(feature = "crypto")]
use amend::amend;
#[cfg(feature = "crypto")]
use create::create as create_volume;
pub use options::Parameters;
#[cfg(feature = "crypto")]
pub use sector::SectorCipher;
#[cfg(feature = "crypto")]
use slots::unlock;

pub(crate) use volume::{NewVolume, Unlocking, Volume, locked};

/// What is encrypted on its own, with an initialisation vector made from its number.
pub const SECTOR_BYTES: u64 = 512;
