//! Names of ciphers, modes, generators and hashes, as QEMU and LUKS headers write them.

use alloc::format;
use alloc::string::String;

use crate::error::{Error, Result};

/// A family of block ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AES (FIPS 197).
    Aes,
    /// CAST-128 (RFC 2144).
    Cast5,
    /// Serpent.
    Serpent,
    /// Twofish.
    Twofish,
    /// SM4 (GB/T 32907).
    Sm4,
}

/// A block cipher with the length of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cipher {
    /// The family.
    pub family: Family,
    /// Length of the key in bytes. The mode XTS takes two keys.
    pub key_bytes: usize,
}

/// Every family with its name in a LUKS header and the key lengths it has there.
const FAMILIES: [(Family, &str, &[usize]); 5] = [
    (Family::Aes, "aes", &[16, 24, 32]),
    (Family::Cast5, "cast5", &[16]),
    (Family::Serpent, "serpent", &[16, 24, 32]),
    (Family::Twofish, "twofish", &[16, 24, 32]),
    (Family::Sm4, "sm4", &[16]),
];

impl Cipher {
    /// AES with a key of 128 bits.
    pub const AES_128: Cipher = Cipher { family: Family::Aes, key_bytes: 16 };
    /// AES with a key of 256 bits.
    pub const AES_256: Cipher = Cipher { family: Family::Aes, key_bytes: 32 };

    /// The cipher of QEMU's name, such as `aes-256`.
    ///
    /// # Errors
    /// There is none.
    pub fn by_name(name: &str) -> Result<Self> {
        for (family, stem, lengths) in FAMILIES {
            for key_bytes in lengths.iter().copied() {
                let cipher = Cipher { family, key_bytes };
                if name.starts_with(stem) && cipher.name() == name {
                    return Ok(cipher);
                }
            }
        }
        // What QEMU knows but LUKS has no name for.
        if matches!(name, "des" | "3des") {
            return Err(Error::unsupported(format!("Algorithm '{name}' not supported")));
        }
        Err(Error::invalid(format!("Parameter 'cipher-alg' does not accept value '{name}'")))
    }

    /// The cipher that a LUKS header names, with a volume key of that many bytes.
    ///
    /// # Errors
    /// There is none.
    pub fn in_header(name: &str, mode: Mode, volume_key_bytes: usize) -> Result<Self> {
        let key_bytes = if mode == Mode::Xts { volume_key_bytes / 2 } else { volume_key_bytes };
        FAMILIES
            .iter()
            .find(|(_, stem, lengths)| *stem == name && lengths.contains(&key_bytes))
            .map(|(family, ..)| Cipher { family: *family, key_bytes })
            .filter(|cipher| cipher.volume_key_bytes(mode) == volume_key_bytes)
            .ok_or_else(|| {
                Error::unsupported(format!("Algorithm '{name}' with key size {key_bytes} bytes not supported"))
            })
    }

    /// The name in a LUKS header.
    pub fn stem(self) -> &'static str {
        FAMILIES.iter().find(|(family, ..)| *family == self.family).map_or("", |(_, stem, _)| stem)
    }

    /// QEMU's name, such as `aes-256`.
    pub fn name(self) -> String {
        match self.family {
            Family::Sm4 => self.stem().into(),
            _ => format!("{}-{}", self.stem(), self.key_bytes * 8),
        }
    }

    /// Length of a block in bytes.
    pub fn block_bytes(self) -> usize {
        if self.family == Family::Cast5 { 8 } else { 16 }
    }

    /// Length of the key of a volume in bytes.
    pub fn volume_key_bytes(self, mode: Mode) -> usize {
        if mode == Mode::Xts { self.key_bytes * 2 } else { self.key_bytes }
    }

    /// The cipher of the same family with that length of the key.
    fn with_key(self, key_bytes: usize) -> Option<Self> {
        let (.., lengths) = FAMILIES.iter().find(|(family, ..)| *family == self.family)?;
        lengths.contains(&key_bytes).then_some(Cipher { key_bytes, ..self })
    }

    /// The cipher that makes initialisation vectors with a key of the hash's length, as dm-crypt chooses it.
    ///
    /// # Errors
    /// The family has no key of that length.
    pub fn for_essiv(self, hash: Hash) -> Result<Self> {
        let length = hash.digest_bytes();
        if length == self.key_bytes {
            return Ok(self);
        }
        let family = match self.family {
            Family::Aes => "AES",
            Family::Serpent => "Serpent",
            Family::Twofish => "Twofish",
            Family::Cast5 | Family::Sm4 => {
                return Err(Error::unsupported(format!("Cipher {} not supported with essiv", self.name())));
            }
        };
        self.with_key(length)
            .ok_or_else(|| Error::unsupported(format!("No {family} cipher with key size {length} available")))
    }
}

/// How the blocks of a sector depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each block on its own.
    Ecb,
    /// Each block depends on the one before.
    Cbc,
    /// XOR with the encrypted vector and place, with a second key (IEEE 1619).
    Xts,
    /// XOR with an encrypted counter.
    Ctr,
}

const MODES: [(Mode, &str); 4] = [(Mode::Ecb, "ecb"), (Mode::Cbc, "cbc"), (Mode::Xts, "xts"), (Mode::Ctr, "ctr")];

impl Mode {
    /// The mode of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        MODES.iter().find(|(_, known)| *known == name).map(|(mode, _)| *mode)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        MODES.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }
}

/// How the initialisation vector of a sector is made from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generator {
    /// The lower 32 bits of the number.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with a hash of the key.
    Essiv,
}

const GENERATORS: [(Generator, &str); 3] =
    [(Generator::Plain, "plain"), (Generator::Plain64, "plain64"), (Generator::Essiv, "essiv")];

impl Generator {
    /// The generator of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        GENERATORS.iter().find(|(_, known)| *known == name).map(|(generator, _)| *generator)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        GENERATORS.iter().find(|(generator, _)| *generator == self).map_or("", |(_, name)| name)
    }
}

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// MD5: broken, there for images that have it.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
    /// SM3 (GB/T 32905).
    Sm3,
}

const HASHES: [(Hash, &str, usize); 8] = [
    (Hash::Md5, "md5", 16),
    (Hash::Sha1, "sha1", 20),
    (Hash::Sha224, "sha224", 28),
    (Hash::Sha256, "sha256", 32),
    (Hash::Sha384, "sha384", 48),
    (Hash::Sha512, "sha512", 64),
    (Hash::Ripemd160, "ripemd160", 20),
    (Hash::Sm3, "sm3", 32),
];

impl Hash {
    /// The hash of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        HASHES.iter().find(|(_, known, _)| *known == name).map(|(hash, ..)| *hash)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        HASHES.iter().find(|(hash, ..)| *hash == self).map_or("", |(_, name, _)| name)
    }

    /// Length of its result in bytes.
    pub fn digest_bytes(self) -> usize {
        HASHES.iter().find(|(hash, ..)| *hash == self).map_or(0, |(.., len)| *len)
    }
}

/// Everything that says how sectors are encrypted, but the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSpec {
    /// The cipher.
    pub cipher: Cipher,
    /// The mode.
    pub mode: Mode,
    /// The generator of initialisation vectors.
    pub generator: Generator,
    /// Its hash, which only [`Generator::Essiv`] needs.
    pub generator_hash: Option<Hash>,
}

impl SectorSpec {
    /// What a LUKS header writes about the mode, such as `cbc-essiv:sha256`.
    pub fn mode_text(&self) -> String {
        let text = format!("{}-{}", self.mode.name(), self.generator.name());
        match self.generator_hash {
            Some(hash) => format!("{text}:{}", hash.name()),
            None => text,
        }
    }

    /// Length of the key in bytes.
    pub fn key_bytes(&self) -> usize {
        self.cipher.volume_key_bytes(self.mode)
    }

    /// Fails for combinations that do not exist.
    ///
    /// # Errors
    /// The mode needs longer blocks, or the generator a key of another length.
    pub fn check(&self) -> Result<()> {
        if self.mode == Mode::Xts && self.cipher.block_bytes() != 16 {
            return Err(Error::unsupported("Unsupported cipher mode xts"));
        }
        if self.generator == Generator::Essiv {
            let Some(hash) = self.generator_hash else {
                return Err(Error::invalid("Missing IV generator hash specification"));
            };
            self.cipher.for_essiv(hash)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn names_lead_back_to_what_they_name() {
        for (family, _, lengths) in FAMILIES {
            for key_bytes in lengths.iter().copied() {
                let cipher = Cipher { family, key_bytes };
                assert_eq!(Cipher::by_name(&cipher.name()).unwrap(), cipher);
                assert_eq!(Cipher::in_header(cipher.stem(), Mode::Cbc, key_bytes).unwrap(), cipher);
                assert_eq!(Cipher::in_header(cipher.stem(), Mode::Xts, key_bytes * 2).unwrap(), cipher);
            }
        }
        for (hash, name, _) in HASHES {
            assert_eq!((Hash::by_name(name), hash.name()), (Some(hash), name));
        }
    }

    #[test]
    fn essiv_takes_a_key_as_long_as_the_hash() {
        let cipher = Cipher::AES_128.for_essiv(Hash::Sha256).unwrap();
        assert_eq!(cipher, Cipher::AES_256);
        let error = Cipher::AES_128.for_essiv(Hash::Sha1).unwrap_err();
        assert_eq!(error.to_string(), "No AES cipher with key size 20 available");
    }
}
