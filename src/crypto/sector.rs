//! Sectors in a mode: [`SectorCipher`].

use alloc::boxed::Box;

use crate::crypto::SECTOR_BYTES;
use crate::crypto::cipher::{Blocks, keyed};
use crate::crypto::generator::Vectors;
use crate::crypto::spec::{Mode, SectorSpec};
use crate::error::Result;

/// Longest block of a cipher in bytes.
const MAX_BLOCK: usize = 16;
/// Sectors whose vectors are made together.
const BATCH: usize = 16;
const SECTOR: usize = SECTOR_BYTES as usize;

/// Encrypts and decrypts sectors by their number.
pub struct SectorCipher {
    mode: Mode,
    block: usize,
    data: Box<dyn Blocks>,
    /// The second key of XTS.
    tweak: Option<Box<dyn Blocks>>,
    vectors: Vectors,
}

impl core::fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SectorCipher").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl SectorCipher {
    /// A cipher with the key of a volume.
    ///
    /// # Errors
    /// The key has another length than the specification needs, or its parts do not go together.
    pub fn new(spec: &SectorSpec, key: &[u8]) -> Result<Self> {
        spec.check()?;
        let vectors = Vectors::new(spec, key)?;
        let (data, tweak) = match spec.mode {
            Mode::Xts => {
                let (first, second) = key.split_at(key.len() / 2);
                (keyed(spec.cipher, first)?, Some(keyed(spec.cipher, second)?))
            }
            _ => (keyed(spec.cipher, key)?, None),
        };
        Ok(SectorCipher { mode: spec.mode, block: spec.cipher.block_bytes(), data, tweak, vectors })
    }

    /// Encrypts consecutive sectors. The last one may be a part of whole blocks.
    pub fn encrypt(&self, first_sector: u64, bytes: &mut [u8]) {
        self.each(first_sector, bytes, true);
    }

    /// Decrypts consecutive sectors. The last one may be a part of whole blocks.
    pub fn decrypt(&self, first_sector: u64, bytes: &mut [u8]) {
        self.each(first_sector, bytes, false);
    }

    fn each(&self, first_sector: u64, bytes: &mut [u8], encrypt: bool) {
        let mut vectors = [0; BATCH * MAX_BLOCK];
        let mut number = first_sector;
        for batch in bytes.chunks_mut(BATCH * SECTOR) {
            let count = batch.len().div_ceil(SECTOR);
            let Some(vectors) = vectors.get_mut(..count * self.block) else { continue };
            self.vectors.fill(number, vectors, self.block);
            if let Some(tweak) = &self.tweak {
                tweak.encrypt(vectors);
            }
            for (sector, vector) in batch.chunks_mut(SECTOR).zip(vectors.chunks_exact(self.block)) {
                match (self.mode, encrypt) {
                    (Mode::Ecb, true) => self.data.encrypt(sector),
                    (Mode::Ecb, false) => self.data.decrypt(sector),
                    (Mode::Xts, _) => self.xts(vector, sector, encrypt),
                    (Mode::Cbc, true) => self.cbc_encrypt(vector, sector),
                    (Mode::Cbc, false) => self.cbc_decrypt(vector, sector),
                    (Mode::Ctr, _) => self.ctr(vector, sector),
                }
            }
            number = number.wrapping_add(count as u64);
        }
    }

    /// IEEE 1619: the block numbered `j` is masked with the tweak times alpha to the power of `j`, before and after.
    fn xts(&self, tweak: &[u8], sector: &mut [u8], encrypt: bool) {
        let mut masks = [0u128; SECTOR / MAX_BLOCK];
        let mut mask = tweak.try_into().map_or(0, u128::from_le_bytes);
        for place in &mut masks {
            *place = mask;
            mask = mask << 1 ^ if mask >> 127 == 1 { 0x87 } else { 0 };
        }
        let cover = |sector: &mut [u8]| {
            for (block, mask) in sector.chunks_exact_mut(MAX_BLOCK).zip(masks) {
                xor(block, &mask.to_le_bytes());
            }
        };
        cover(sector);
        if encrypt {
            self.data.encrypt(sector)
        } else {
            self.data.decrypt(sector)
        }
        cover(sector);
    }

    fn cbc_encrypt(&self, vector: &[u8], sector: &mut [u8]) {
        let mut last = [0; MAX_BLOCK];
        let Some(last) = last.get_mut(..self.block) else { return };
        last.copy_from_slice(vector);
        for block in sector.chunks_exact_mut(self.block) {
            xor(block, last);
            self.data.encrypt(block);
            last.copy_from_slice(block);
        }
    }

    fn cbc_decrypt(&self, vector: &[u8], sector: &mut [u8]) {
        let mut before = [0; SECTOR];
        let Some(before) = before.get_mut(..sector.len()) else { return };
        before.copy_from_slice(sector);
        self.data.decrypt(sector);
        let chain = core::iter::once(vector).chain(before.chunks_exact(self.block));
        for (block, last) in sector.chunks_exact_mut(self.block).zip(chain) {
            xor(block, last);
        }
    }

    /// The counter is the vector as one big-endian number.
    fn ctr(&self, vector: &[u8], sector: &mut [u8]) {
        let mut stream = [0; SECTOR];
        let Some(stream) = stream.get_mut(..sector.len()) else { return };
        let mut start = [0; MAX_BLOCK];
        if let Some(end) = start.get_mut(MAX_BLOCK - vector.len()..) {
            end.copy_from_slice(vector);
        }
        let start = u128::from_be_bytes(start);
        for (number, block) in (0u128..).zip(stream.chunks_exact_mut(self.block)) {
            let counter = start.wrapping_add(number).to_be_bytes();
            block.copy_from_slice(counter.get(MAX_BLOCK - self.block..).unwrap_or_default());
        }
        self.data.encrypt(stream);
        xor(sector, stream);
    }
}

fn xor(into: &mut [u8], other: &[u8]) {
    into.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::crypto::spec::{Cipher, Family, Generator, Hash};

    fn spec(cipher: Cipher, mode: Mode, generator: Generator) -> SectorSpec {
        let generator_hash = (generator == Generator::Essiv).then_some(Hash::Sha256);
        SectorSpec { cipher, mode, generator, generator_hash }
    }

    #[test]
    fn encrypts_the_first_vector_of_ieee_1619_with_a_sector_number() {
        // IEEE 1619-2007, annex B, vector 4: data unit 0, keys and text of 512 bytes.
        let mut key = vec![];
        key.extend([0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26]);
        key.extend([0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95]);
        let cipher = SectorCipher::new(&spec(Cipher::AES_128, Mode::Xts, Generator::Plain64), &key).unwrap();
        let text: Vec<u8> = (0..=255).chain(0..=255).collect();
        let mut bytes = text.clone();
        cipher.encrypt(0, &mut bytes);
        assert_eq!(&bytes[..8], &[0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76]);
        cipher.decrypt(0, &mut bytes);
        assert_eq!(bytes, text);
    }

    #[test]
    fn every_cipher_and_mode_gives_back_what_it_got_and_depends_on_the_place() {
        let families =
            [(Family::Aes, 24), (Family::Cast5, 16), (Family::Serpent, 32), (Family::Twofish, 16), (Family::Sm4, 16)];
        for (family, key_bytes) in families {
            let cipher = Cipher { family, key_bytes };
            for mode in [Mode::Ecb, Mode::Cbc, Mode::Xts, Mode::Ctr] {
                for generator in [Generator::Plain, Generator::Plain64, Generator::Essiv] {
                    let spec = spec(cipher, mode, generator);
                    if spec.check().is_err() {
                        continue;
                    }
                    let key: Vec<u8> = (0..spec.key_bytes() as u8).collect();
                    let cipher = SectorCipher::new(&spec, &key).unwrap();
                    let text: Vec<u8> = (0..40 * 512u32).map(|at| (at / 3) as u8).collect();
                    let mut whole = text.clone();
                    cipher.encrypt(7, &mut whole);
                    assert_ne!(whole, text, "{spec:?}");
                    // Piece by piece it is the same.
                    let mut pieces = text.clone();
                    for (number, piece) in (7..).zip(pieces.chunks_mut(512)) {
                        cipher.encrypt(number, piece);
                    }
                    assert_eq!(pieces, whole, "{spec:?}");
                    cipher.decrypt(7, &mut whole);
                    assert_eq!(whole, text, "{spec:?}");
                    let mut elsewhere = text.clone();
                    cipher.encrypt(8, &mut elsewhere);
                    assert_eq!(elsewhere == pieces, mode == Mode::Ecb, "{spec:?}");
                }
            }
        }
    }

    #[test]
    fn xts_needs_blocks_of_sixteen_bytes_and_two_keys() {
        let cast5 = Cipher { family: Family::Cast5, key_bytes: 16 };
        assert!(SectorCipher::new(&spec(cast5, Mode::Xts, Generator::Plain64), &[1; 32]).is_err());
        assert!(SectorCipher::new(&spec(Cipher::AES_128, Mode::Xts, Generator::Plain64), &[1; 16]).is_err());
        assert!(SectorCipher::new(&spec(Cipher::AES_128, Mode::Cbc, Generator::Plain64), &[1; 32]).is_err());
    }
}
