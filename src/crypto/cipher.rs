//! Block ciphers by name, many blocks at a time.

use alloc::boxed::Box;

use cipher::array::Array;
use cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use crate::crypto::spec::{Cipher, Family};
use crate::error::{Error, Result};

/// A block cipher with its key. The crates overwrite the key when it is dropped.
pub(super) trait Blocks: Send + Sync {
    /// Encrypts each whole block on its own.
    fn encrypt(&self, bytes: &mut [u8]);
    /// Decrypts each whole block on its own.
    fn decrypt(&self, bytes: &mut [u8]);
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Blocks for C {
    fn encrypt(&self, bytes: &mut [u8]) {
        let (blocks, _): (&mut [Block<C>], _) = Array::slice_as_chunks_mut(bytes);
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, bytes: &mut [u8]) {
        let (blocks, _): (&mut [Block<C>], _) = Array::slice_as_chunks_mut(bytes);
        self.decrypt_blocks(blocks);
    }
}

/// The cipher with a key of its length.
///
/// # Errors
/// The key has another length.
pub(super) fn keyed(cipher: Cipher, key: &[u8]) -> Result<Box<dyn Blocks>> {
    fn of<C: KeyInit + Blocks + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
        C::new_from_slice(key).ok().map(|cipher| Box::new(cipher) as Box<dyn Blocks>)
    }
    let made = match (cipher.family, key.len()) {
        (_, len) if len != cipher.key_bytes => None,
        (Family::Aes, 16) => of::<aes::Aes128>(key),
        (Family::Aes, 24) => of::<aes::Aes192>(key),
        (Family::Aes, _) => of::<aes::Aes256>(key),
        (Family::Cast5, _) => of::<cast5::Cast5>(key),
        (Family::Serpent, _) => of::<serpent::Serpent>(key),
        (Family::Twofish, _) => of::<twofish::Twofish>(key),
        (Family::Sm4, _) => of::<sm4::Sm4>(key),
    };
    made.ok_or_else(|| {
        Error::invalid(alloc::format!("the cipher {} cannot have a key of {} bytes", cipher.name(), key.len()))
    })
}
