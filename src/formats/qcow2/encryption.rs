//! Encrypted guest data (QEMU docs/interop/qcow2, "Data encryption"): LUKS with its header in the image, or AES in CBC mode
//! with the passphrase itself as key. Compressed clusters and metadata are stored as they are.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::crypto::header::{HEADER_BYTES, Place};
use crate::crypto::spec::{Cipher, Generator, Mode, SectorSpec};
use crate::crypto::{SECTOR_BYTES, SectorCipher, Unlocking, Volume};
use crate::describe::Value;
use crate::drivers::OpenOptions;
use crate::engine::AmendRequest;
use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::extension::Extensions;
use crate::formats::qcow2::header::{Encryption, Header};
use crate::node::{Host, Node};
use crate::secret::Secret;

/// The option that names the secret.
pub(super) const KEY_SECRET: &str = "encrypt.key-secret";

/// The legacy encryption: the vectors of AES count guest sectors.
const AES: SectorSpec =
    SectorSpec { cipher: Cipher::AES_128, mode: Mode::Cbc, generator: Generator::Plain64, generator_hash: None };

/// How guest data is encrypted, and with what.
pub(super) enum Crypt {
    /// Not at all.
    None,
    /// AES, with the cipher if a key was given.
    Aes(Option<SectorCipher>),
    /// LUKS; the vectors count sectors of the file with the data.
    Luks(Box<Volume>),
}

impl Crypt {
    /// Reads what the image says, and finds the key if a secret is named.
    pub(super) async fn open(
        file: &Arc<dyn Node>,
        header: &Header,
        extensions: &Extensions,
        options: &OpenOptions,
    ) -> Result<Self> {
        check_format(header.encryption, options.driver_options.get("encrypt.format"))?;
        let named = options.driver_options.get(KEY_SECRET).filter(|name| !name.is_empty());
        let secret = named.filter(|_| !options.structure_only).cloned();
        // What looks at the structure only, or repairs it, needs no key.
        let needs_key = !options.read_only && !options.structure_only && header.encryption != Encryption::None;
        if needs_key && secret.is_none() {
            return Err(Error::invalid(format!("Parameter '{KEY_SECRET}' is required for cipher")));
        }
        match (header.encryption, extensions.encryption) {
            // What is stored would be taken for something that it is not.
            (Encryption::None | Encryption::Aes, Some((at, _))) => {
                Err(Error::invalid("CRYPTO header extension only expected with LUKS encryption method").at_offset(at))
            }
            (Encryption::None, _) => Ok(Crypt::None),
            (Encryption::Aes, _) => Ok(Crypt::Aes(match secret {
                Some(id) => Some(legacy_cipher(&options.keyring.passphrase(&id)?)?),
                None => None,
            })),
            (Encryption::Luks, None) => Err(Error::invalid("Missing CRYPTO header for crypt method 2")),
            (Encryption::Luks, Some((at, len))) => {
                let length = file.info().length;
                if !header.cluster.is_aligned(at) {
                    return Err(Error::invalid(format!(
                        "Encryption header offset '{at}' is not a multiple of cluster size '{}'",
                        header.cluster.size()
                    ))
                    .at_offset(at));
                }
                if len < HEADER_BYTES as u64 || at.checked_add(len).is_none_or(|end| end > length) {
                    return Err(Error::invalid(format!(
                        "the encryption header has {len} bytes, expected at least {HEADER_BYTES} within the file, which has {length}"
                    ))
                    .at_offset(at));
                }
                let unlocking =
                    Unlocking { keyring: options.keyring.clone(), secret, iterations: options.budgets.key_iterations };
                let place = Place { at, available: len, detached: false };
                Ok(Crypt::Luks(Box::new(Volume::open(file.clone(), place, unlocking).await?)))
            }
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Crypt::None)
    }

    /// Whether there is a key missing.
    pub(super) fn is_locked(&self) -> bool {
        match self {
            Crypt::None => false,
            Crypt::Aes(cipher) => cipher.is_none(),
            Crypt::Luks(volume) => volume.is_locked(),
        }
    }

    /// The cipher, and the number of the sector that is at this place of the file and of the disk.
    fn at(&self, host: Host, guest: u64) -> Result<(&SectorCipher, u64)> {
        match self {
            Crypt::Luks(volume) => Ok((volume.cipher()?, host.at / SECTOR_BYTES)),
            Crypt::Aes(Some(cipher)) => Ok((cipher, guest / SECTOR_BYTES)),
            Crypt::Aes(None) => Err(Error::invalid(format!("Parameter '{KEY_SECRET}' is required for cipher"))),
            Crypt::None => Err(Error::invalid("the image is not encrypted")),
        }
    }

    pub(super) fn encrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        let (cipher, sector) = self.at(host, guest)?;
        cipher.encrypt(sector, bytes);
        Ok(())
    }

    pub(super) fn decrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        let (cipher, sector) = self.at(host, guest)?;
        cipher.decrypt(sector, bytes);
        Ok(())
    }

    /// Properties under QEMU's names, in the order in which it shows them; none without encryption.
    pub(super) fn describe(&self) -> Vec<(&'static str, Value)> {
        match self {
            Crypt::None => Vec::new(),
            Crypt::Aes(_) => vec![("format", Value::Text("aes".into()))],
            Crypt::Luks(volume) => volume.describe(true),
        }
    }
}

/// Fails if the caller says that the image is encrypted another way than it is.
fn check_format(found: Encryption, expected: Option<&String>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let name = match found {
        Encryption::None => {
            return Err(Error::invalid(format!(
                "No encryption in image header, but options specified format '{expected}'"
            )));
        }
        Encryption::Aes => "aes",
        Encryption::Luks => "luks",
    };
    if expected == name {
        return Ok(());
    }
    Err(Error::invalid(format!("Header reported '{name}' encryption format but options specify '{expected}'")))
}

/// The legacy cipher: the key is the passphrase, cut off or filled up with zeroes.
pub(super) fn legacy_cipher(passphrase: &Secret) -> Result<SectorCipher> {
    let mut key = Secret::zeroed(AES.key_bytes());
    key.bytes_mut().iter_mut().zip(passphrase.bytes()).for_each(|(place, byte)| *place = *byte);
    SectorCipher::new(&AES, key.bytes())
}

impl Qcow2 {
    /// Changes key slots, by the options that begin with `encrypt.`.
    pub(super) async fn amend_encryption(&self, request: &AmendRequest) -> Result<()> {
        match &self.crypt {
            Crypt::None => Err(Error::invalid("Can't amend encryption options - encryption not present")),
            Crypt::Aes(_) => Err(Error::invalid("Only LUKS encryption options can be amended")),
            Crypt::Luks(volume) => volume.amend(&request.options, "encrypt.", request.force).await,
        }
    }
}

/// How a new image is to be encrypted: `luks`, `aes` or not at all.
pub(super) fn wanted(options: &BTreeMap<String, String>) -> Result<Option<Encryption>> {
    let legacy = match options.get("encryption").map(String::as_str) {
        None | Some("off" | "no" | "n" | "false") => false,
        Some("on" | "yes" | "y" | "true") => true,
        Some(_) => return Err(Error::invalid("Parameter 'encryption' expects 'on' or 'off'")),
    };
    let format = options.get("encrypt.format").map(String::as_str);
    if legacy && format.is_some() {
        return Err(Error::invalid("'encryption' and its alias 'encrypt.format' can't be used at the same time"));
    }
    match format {
        Some("luks") => Ok(Some(Encryption::Luks)),
        Some("aes") => Ok(Some(Encryption::Aes)),
        Some(other) => Err(Error::invalid(format!("Parameter 'encrypt.format' does not accept value '{other}'"))),
        None if legacy => Ok(Some(Encryption::Aes)),
        None => match options.keys().find(|name| name.starts_with("encrypt.")) {
            Some(_) => Err(Error::invalid("Parameter 'encrypt.format' is missing")),
            None => Ok(None),
        },
    }
}
