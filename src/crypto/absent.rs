//! What stands in for encryption in a build without the feature `crypto`: volumes stay locked.

use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::crypto::header::Header;
use crate::crypto::spec::SectorSpec;
use crate::crypto::volume::{Located, NewVolume};
use crate::error::{Error, Result};
use crate::secret::{Keyring, Secret};

/// There is none.
#[derive(Debug)]
pub enum SectorCipher {}

fn absent() -> Error {
    Error::unsupported("this program was built without encryption (feature 'crypto')")
}

impl SectorCipher {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: &SectorSpec, _: &[u8]) -> Result<Self> {
        Err(absent())
    }

    /// Cannot be called.
    pub fn encrypt(&self, _: u64, _: &mut [u8]) {
        match *self {}
    }

    /// Cannot be called.
    pub fn decrypt(&self, _: u64, _: &mut [u8]) {
        match *self {}
    }
}

pub(super) async fn unlock(_: Located<'_>, _: &Secret) -> Result<Secret> {
    Err(absent())
}

pub(super) async fn create(_: NewVolume<'_>) -> Result<()> {
    Err(absent())
}

pub(super) async fn amend(
    located: Located<'_>,
    _: &BTreeMap<String, String>,
    _: &str,
    _: bool,
    _: &Keyring,
    _: Option<&str>,
) -> (Header, Result<()>) {
    (located.header.clone(), Err(absent()))
}
