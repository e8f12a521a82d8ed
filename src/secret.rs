//! Passphrases and what else encryption needs of the host: [`Secret`], [`SecretSource`] and [`Keyring`].

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;

/// Bytes that are overwritten when they are dropped, and never printed nor compared.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Secret(Zeroizing::new(bytes.into()))
    }

    /// `len` zeroes, to be filled.
    pub fn zeroed(len: usize) -> Self {
        Secret(Zeroizing::new(alloc::vec![0; len]))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a host does for encryption: it knows secrets by name, and has random numbers and a clock.
pub trait SecretSource: Send + Sync {
    /// The secret of that name, if there is one.
    ///
    /// # Errors
    /// The secret is there but cannot be had.
    fn secret(&self, id: &str) -> Result<Option<Secret>>;

    /// Fills the buffer with random bytes that nobody can foretell. Needed to make keys, not to use them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the host has none.
    fn random(&self, into: &mut [u8]) -> Result<()> {
        let _ = into;
        Err(Error::unsupported("the host offers no random numbers, which a new key needs"))
    }

    /// Nanoseconds since some moment, to tell how long a key derivation takes. Without a clock it gets a fixed number of
    /// iterations.
    fn nanoseconds(&self) -> Option<u64> {
        None
    }
}

/// The secrets that images may be opened and made with. Empty unless a host fills it.
#[derive(Clone, Default)]
pub struct Keyring(Option<Arc<dyn SecretSource>>);

impl Keyring {
    /// Secrets of a host.
    pub fn new(source: Arc<dyn SecretSource>) -> Self {
        Keyring(Some(source))
    }

    /// Secrets that are known in advance, without random numbers: enough to open images.
    pub fn of<'a>(secrets: impl IntoIterator<Item = (&'a str, Secret)>) -> Self {
        let known = secrets.into_iter().map(|(id, secret)| (id.to_string(), secret)).collect();
        Keyring::new(Arc::new(Known(Mutex::new(known))))
    }

    /// The secret of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn secret(&self, id: &str) -> Result<Secret> {
        let found = match &self.0 {
            Some(source) => source.secret(id)?,
            None => None,
        };
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, alloc::format!("No secret with id '{id}'")))
    }

    /// The secret of that name, which must be a text.
    ///
    /// # Errors
    /// There is none, or it is not valid UTF-8.
    pub fn passphrase(&self, id: &str) -> Result<Secret> {
        let secret = self.secret(id)?;
        match core::str::from_utf8(secret.bytes()) {
            // Where texts end with a zero byte, there is none in them.
            Ok(text) if !text.contains('\0') => Ok(secret),
            _ => Err(Error::invalid(alloc::format!("Data from secret {id} is not valid UTF-8"))),
        }
    }

    /// Fills the buffer with random bytes.
    ///
    /// # Errors
    /// The host has none.
    pub fn random(&self, into: &mut [u8]) -> Result<()> {
        match &self.0 {
            Some(source) => source.random(into),
            None => Err(Error::unsupported("no keyring was given, so there are no random numbers for a new key")),
        }
    }

    /// Nanoseconds since some moment, if there is a clock.
    pub fn nanoseconds(&self) -> Option<u64> {
        self.0.as_ref().and_then(|source| source.nanoseconds())
    }
}

impl core::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Keyring(..)")
    }
}

/// Secrets by name, without anything else.
struct Known(Mutex<BTreeMap<String, Secret>>);

impl SecretSource for Known {
    fn secret(&self, id: &str) -> Result<Option<Secret>> {
        Ok(self.0.lock().get(id).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed() {
        let secret = Secret::new(*b"hunter2");
        let keyring = Keyring::of([("s", secret.clone())]);
        assert_eq!(alloc::format!("{secret:?} {keyring:?}"), "Secret(..) Keyring(..)");
    }

    #[test]
    fn an_unknown_secret_is_named() {
        let error = Keyring::default().secret("x").unwrap_err();
        assert_eq!(error.to_string(), "No secret with id 'x'");
        for bytes in [&[0xff][..], b"a\0b"] {
            let error = Keyring::of([("x", Secret::new(bytes))]).passphrase("x").unwrap_err();
            assert_eq!(error.to_string(), "Data from secret x is not valid UTF-8");
        }
    }
}
