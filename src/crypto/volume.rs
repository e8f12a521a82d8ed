//! An open LUKS header, with the key of its data or without, for the formats that have one.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::crypto::header::{HEADER_BYTES, Header, Place};
use crate::crypto::{Parameters, SectorCipher, amend, create_volume, unlock};
use crate::describe::Value;
use crate::error::{Error, Result};
use crate::node::{Node, ReadFlags};
use crate::secret::{Keyring, Secret};
use crate::sync::{Lock, Mutex};

/// A header in its file, and what may be spent on it.
#[cfg_attr(not(feature = "crypto"), expect(dead_code, reason = "nothing is unlocked"))]
#[derive(Clone, Copy)]
pub(crate) struct Located<'a> {
    pub(crate) file: &'a dyn Node,
    /// Where the header begins in the file.
    pub(crate) at: u64,
    /// Bytes from there on that are the volume's to write.
    pub(crate) available: u64,
    pub(crate) header: &'a Header,
    /// Most iterations of a key derivation.
    pub(crate) iterations: u32,
}

/// A volume that is to be made.
#[cfg_attr(not(feature = "crypto"), expect(dead_code, reason = "nothing is made"))]
#[derive(Clone, Copy)]
pub(crate) struct NewVolume<'a> {
    pub(crate) file: &'a dyn Node,
    /// Where the header goes in the file.
    pub(crate) at: u64,
    pub(crate) parameters: &'a Parameters,
    /// Whether the data goes to another file.
    pub(crate) detached: bool,
    pub(crate) passphrase: &'a Secret,
    pub(crate) keyring: &'a Keyring,
}

impl NewVolume<'_> {
    /// Writes header and first key slot. The space for them reads as zeroes; the header comes last.
    ///
    /// # Errors
    /// The host has no random numbers, or cannot write.
    pub(crate) async fn create(self) -> Result<()> {
        create_volume(self).await
    }
}

/// How a volume gets its key.
#[derive(Clone)]
pub(crate) struct Unlocking {
    pub(crate) keyring: Keyring,
    /// Name of the secret. Without it, the volume stays locked.
    pub(crate) secret: Option<String>,
    /// Most iterations of a key derivation.
    pub(crate) iterations: u32,
}

/// An open LUKS header.
pub(crate) struct Volume {
    file: Arc<dyn Node>,
    place: Place,
    header: Mutex<Header>,
    cipher: Option<SectorCipher>,
    unlocking: Unlocking,
    /// Held while key slots change.
    changing: Lock<()>,
}

impl Volume {
    /// Reads the header, and finds the key if a secret is named.
    ///
    /// # Errors
    /// The header contradicts itself or needs what is not known; no secret of that name; a wrong passphrase.
    pub(crate) async fn open(file: Arc<dyn Node>, place: Place, unlocking: Unlocking) -> Result<Self> {
        let mut bytes = vec![0; place.available.min(HEADER_BYTES as u64) as usize];
        file.read(place.at, &mut bytes, ReadFlags::default()).await?;
        let header = Header::parse(&bytes, place)?;
        let cipher = match &unlocking.secret {
            None => None,
            Some(id) => {
                // What cannot be decrypted is said before any work is done for a passphrase.
                let spec = header.sector_spec()?;
                let passphrase = unlocking.keyring.passphrase(id)?;
                let located = located(&*file, place, &header, &unlocking);
                let key = unlock(located, &passphrase).await?;
                Some(SectorCipher::new(&spec, key.bytes())?)
            }
        };
        Ok(Volume { file, place, header: Mutex::new(header), cipher, unlocking, changing: Lock::new(()) })
    }

    /// Whether there is no key.
    pub(crate) fn is_locked(&self) -> bool {
        self.cipher.is_none()
    }

    /// The cipher of the data.
    ///
    /// # Errors
    /// There is no key.
    pub(crate) fn cipher(&self) -> Result<&SectorCipher> {
        self.cipher.as_ref().ok_or_else(locked)
    }

    /// A copy of the header.
    pub(crate) fn header(&self) -> Header {
        self.header.lock().clone()
    }

    /// Properties under QEMU's names. Within qcow2, the format is one of them.
    pub(crate) fn describe(&self, within: bool) -> Vec<(&'static str, Value)> {
        self.header.lock().describe(within)
    }

    /// Activates or erases key slots, as `options` say, each behind `prefix`.
    ///
    /// # Errors
    /// The options do not go together, a secret is wrong, or, without `force`, the last key or a used slot would be lost.
    pub(crate) async fn amend(&self, options: &BTreeMap<String, String>, prefix: &str, force: bool) -> Result<()> {
        let _alone = self.changing.lock().await;
        let header = self.header();
        let located = located(&*self.file, self.place, &header, &self.unlocking);
        let secret = self.unlocking.secret.as_deref();
        let (now, done) = amend(located, options, prefix, force, &self.unlocking.keyring, secret).await;
        *self.header.lock() = now;
        done
    }
}

fn located<'a>(file: &'a dyn Node, place: Place, header: &'a Header, unlocking: &Unlocking) -> Located<'a> {
    Located { file, at: place.at, available: place.available, header, iterations: unlocking.iterations }
}

/// Said about data without a key.
pub(crate) fn locked() -> Error {
    Error::new(
        crate::error::ErrorKind::Denied,
        "the data is encrypted and no key was given; only the structure of the image can be looked at".to_string(),
    )
}
