//! Initialisation vectors from sector numbers, as dm-crypt makes them.

use alloc::boxed::Box;

use crate::crypto::cipher::{Blocks, keyed};
use crate::crypto::hash::digest;
use crate::crypto::spec::{Generator, Mode, SectorSpec};
use crate::error::{Error, Result};
use crate::secret::Secret;

/// Makes initialisation vectors.
pub(super) enum Vectors {
    /// There are none.
    None,
    /// The lower 32 bits of the sector number.
    Plain,
    /// The sector number.
    Plain64,
    /// The sector number, encrypted.
    Essiv(Box<dyn Blocks>),
}

impl Vectors {
    /// The generator for a key.
    ///
    /// # Errors
    /// The hash does not go with the cipher.
    pub(super) fn new(spec: &SectorSpec, key: &[u8]) -> Result<Self> {
        match spec.generator {
            _ if spec.mode == Mode::Ecb => Ok(Vectors::None),
            Generator::Plain => Ok(Vectors::Plain),
            Generator::Plain64 => Ok(Vectors::Plain64),
            Generator::Essiv => {
                let hash =
                    spec.generator_hash.ok_or_else(|| Error::invalid("Missing IV generator hash specification"))?;
                let cipher = spec.cipher.for_essiv(hash)?;
                let salt = Secret::new(digest(hash, &[key]));
                Ok(Vectors::Essiv(keyed(cipher, salt.bytes())?))
            }
        }
    }

    /// Fills `vectors` with those of consecutive sectors, each of `len` bytes.
    pub(super) fn fill(&self, first_sector: u64, vectors: &mut [u8], len: usize) {
        vectors.fill(0);
        for (sector, vector) in (first_sector..).zip(vectors.chunks_exact_mut(len)) {
            let number = match self {
                Vectors::None => 0,
                Vectors::Plain => sector & 0xffff_ffff,
                Vectors::Plain64 | Vectors::Essiv(_) => sector,
            };
            vector.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
        }
        if let Vectors::Essiv(cipher) = self {
            cipher.encrypt(vectors);
        }
    }
}
