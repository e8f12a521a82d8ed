//! What a new LUKS volume is to be like: QEMU's options, read and checked.

use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::crypto::header::header_bytes;
use crate::crypto::spec::{Cipher, Generator, Hash, Mode, SectorSpec};
use crate::error::{Error, Result};

/// Milliseconds that trying a passphrase takes, unless said otherwise.
pub(crate) const DEFAULT_ITER_TIME: u64 = 2000;

/// What a new LUKS volume is to be like, but the passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How sectors are encrypted.
    pub spec: SectorSpec,
    /// The hash of the key derivation.
    pub hash: Hash,
    /// Milliseconds that trying a passphrase takes.
    pub iter_time: u64,
}

impl Parameters {
    /// Reads `cipher-alg`, `cipher-mode`, `ivgen-alg`, `ivgen-hash-alg`, `hash-alg` and `iter-time`, each behind `prefix`.
    ///
    /// # Errors
    /// A value is not known, or the values do not go together.
    pub fn read(options: &BTreeMap<String, String>, prefix: &str) -> Result<Self> {
        let find = |name: &str| options.get(&alloc::format!("{prefix}{name}")).map(String::as_str);
        let refuse = |name: &str, value: &str| {
            Error::invalid(alloc::format!("Parameter '{name}' does not accept value '{value}'"))
        };
        let hash = |name: &str| match find(name) {
            Some(value) => Hash::by_name(value).map(Some).ok_or_else(|| refuse(name, value)),
            None => Ok(None),
        };
        let generator = match find("ivgen-alg") {
            Some(value) => Generator::by_name(value).ok_or_else(|| refuse("ivgen-alg", value))?,
            None => Generator::Plain64,
        };
        let generator_hash = match hash("ivgen-hash-alg")? {
            None if generator == Generator::Essiv => Some(Hash::Sha256),
            given => given,
        };
        let spec = SectorSpec {
            cipher: find("cipher-alg").map_or(Ok(Cipher::AES_256), Cipher::by_name)?,
            mode: match find("cipher-mode") {
                Some(value) => Mode::by_name(value).ok_or_else(|| refuse("cipher-mode", value))?,
                None => Mode::Xts,
            },
            generator,
            generator_hash,
        };
        let parameters = Parameters {
            spec,
            hash: hash("hash-alg")?.unwrap_or(Hash::Sha256),
            iter_time: iter_time(find("iter-time"))?.unwrap_or(DEFAULT_ITER_TIME),
        };
        spec.check()?;
        Ok(parameters)
    }

    /// Bytes that the header with all key slots takes up, in front of the data.
    pub fn header_bytes(&self) -> u64 {
        header_bytes(self.spec.key_bytes() as u64)
    }
}

/// Reads a number of milliseconds.
pub(crate) fn iter_time(text: Option<&str>) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(time @ 1..) => Ok(Some(time)),
        _ => Err(Error::invalid("Parameter 'iter-time' expects a number of milliseconds of at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn read(text: &str) -> Result<Parameters> {
        let pairs = text.split(',').filter_map(|part| part.split_once('='));
        Parameters::read(&pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect(), "")
    }

    #[test]
    fn the_defaults_are_those_of_qemu() {
        let parameters = read("").unwrap();
        assert_eq!(parameters.spec.cipher.name(), "aes-256");
        assert_eq!(parameters.spec.mode_text(), "xts-plain64");
        assert_eq!((parameters.hash, parameters.iter_time), (Hash::Sha256, 2000));
        assert_eq!(parameters.header_bytes(), 2_068_480);
        assert_eq!(read("ivgen-alg=essiv,cipher-mode=cbc").unwrap().spec.mode_text(), "cbc-essiv:sha256");
    }

    #[test]
    fn what_does_not_exist_is_named() {
        for (text, message) in [
            ("cipher-alg=rot13", "Parameter 'cipher-alg' does not accept value 'rot13'"),
            ("hash-alg=crc32", "Parameter 'hash-alg' does not accept value 'crc32'"),
            ("cipher-alg=cast5-128", "Unsupported cipher mode xts"),
            ("cipher-alg=3des", "Algorithm '3des' not supported"),
            ("ivgen-alg=essiv,ivgen-hash-alg=sha1", "No AES cipher with key size 20 available"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), message);
        }
        assert!(read("iter-time=0").is_err());
    }
}
