//! Secrets of a program on this machine, with its random numbers and its clock.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Keyring, Secret, SecretSource};

/// Secrets by name.
pub struct Secrets {
    known: BTreeMap<String, Secret>,
    start: Instant,
}

impl Secrets {
    /// A keyring of these secrets.
    pub fn keyring(known: BTreeMap<String, Secret>) -> Keyring {
        Keyring::new(Arc::new(Secrets { known, start: Instant::now() }))
    }
}

impl core::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl SecretSource for Secrets {
    fn secret(&self, id: &str) -> Result<Option<Secret>> {
        Ok(self.known.get(id).cloned())
    }

    fn random(&self, into: &mut [u8]) -> Result<()> {
        getrandom::fill(into)
            .map_err(|error| Error::new(ErrorKind::Io, alloc::format!("Cannot get random bytes: {error}")))
    }

    fn nanoseconds(&self) -> Option<u64> {
        u64::try_from(self.start.elapsed().as_nanos()).ok()
    }
}
