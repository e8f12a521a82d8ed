//! The anti-forensic splitter (LUKS On-Disk Format Specification 1.2.3, section 2.4): a key is spread over many stripes, of
//! which losing any one loses all.

use crate::crypto::hash::digest;
use crate::crypto::spec::Hash;
use crate::error::Result;
use crate::secret::{Keyring, Secret};

/// Spreads `key` over `stripes`.
///
/// # Errors
/// The host has no random numbers.
pub(super) fn split(hash: Hash, key: &[u8], stripes: u32, keyring: &Keyring) -> Result<Secret> {
    let mut material = Secret::zeroed(key.len() * stripes as usize);
    let last = material.bytes().len() - key.len();
    let (random, end) = material.bytes_mut().split_at_mut(last);
    keyring.random(random)?;
    let mut mixed = mix(hash, random, key.len());
    xor(mixed.bytes_mut(), key);
    end.copy_from_slice(mixed.bytes());
    Ok(material)
}

/// The key that was spread.
pub(super) fn merge(hash: Hash, material: &[u8], key_bytes: usize) -> Secret {
    let last = material.len().saturating_sub(key_bytes);
    let (before, end) = material.split_at(last);
    let mut key = mix(hash, before, key_bytes);
    xor(key.bytes_mut(), end);
    key
}

/// Takes up stripe after stripe, diffusing in between.
fn mix(hash: Hash, stripes: &[u8], key_bytes: usize) -> Secret {
    let mut state = Secret::zeroed(key_bytes);
    for stripe in stripes.chunks_exact(key_bytes.max(1)) {
        xor(state.bytes_mut(), stripe);
        diffuse(hash, state.bytes_mut());
    }
    state
}

/// Replaces each piece as long as the hash by the hash of its number and itself.
fn diffuse(hash: Hash, state: &mut [u8]) {
    for (number, piece) in (0u32..).zip(state.chunks_mut(hash.digest_bytes())) {
        let digest = Secret::new(digest(hash, &[&number.to_be_bytes(), piece]));
        piece.iter_mut().zip(digest.bytes()).for_each(|(byte, new)| *byte = *new);
    }
}

fn xor(into: &mut [u8], other: &[u8]) {
    into.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use super::*;
    use crate::secret::SecretSource;

    struct Counting;

    impl SecretSource for Counting {
        fn secret(&self, _: &str) -> Result<Option<Secret>> {
            Ok(None)
        }

        fn random(&self, into: &mut [u8]) -> Result<()> {
            into.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index * 7) as u8);
            Ok(())
        }
    }

    #[test]
    fn what_is_split_comes_back_and_needs_every_byte() {
        let keyring = Keyring::new(Arc::new(Counting));
        for (hash, len) in [(Hash::Sha256, 64), (Hash::Sha1, 32), (Hash::Md5, 24), (Hash::Sha512, 16)] {
            let key: alloc::vec::Vec<u8> = (0..len).collect();
            let mut material = split(hash, &key, 40, &keyring).unwrap();
            assert_eq!(merge(hash, material.bytes(), key.len()).bytes(), key);
            material.bytes_mut()[100] ^= 1;
            assert_ne!(merge(hash, material.bytes(), key.len()).bytes(), key);
        }
    }
}
