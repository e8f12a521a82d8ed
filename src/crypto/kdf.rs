//! Keys from passphrases: PBKDF2 (RFC 8018), and how many iterations of it take a certain time.

use digest::Digest;
use digest::block_api::EagerHash;

use crate::crypto::hash::with_hash;
use crate::crypto::spec::Hash;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Keyring, Secret};

/// A trial is long enough to count on after this many nanoseconds.
const TRIAL_NANOSECONDS: u64 = 20_000_000;
/// Iterations of the first trial.
const FIRST_TRIAL: u32 = 1 << 12;
/// Most iterations of a trial, in case the clock stands still.
const LAST_TRIAL: u32 = 1 << 26;
/// Iterations in a second without a clock.
const ASSUMED_PER_SECOND: u64 = 300_000;

/// Fills `key` from a passphrase and a salt.
pub(super) fn derive(hash: Hash, passphrase: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
    fn pbkdf2<D: EagerHash + Digest>(passphrase: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        pbkdf2::pbkdf2_hmac::<D>(passphrase, salt, iterations, key);
    }
    with_hash!(hash, pbkdf2(passphrase, salt, iterations, key));
}

/// How many iterations take `milliseconds` for a key of that length.
///
/// # Errors
/// More than a header can say.
pub(super) fn iterations(hash: Hash, key_bytes: usize, milliseconds: u64, keyring: &Keyring) -> Result<u64> {
    if milliseconds == 0 {
        return Err(Error::invalid("Parameter 'iter-time' expects a number of milliseconds of at least 1"));
    }
    let per_second = per_second(hash, key_bytes, keyring);
    per_second.checked_mul(milliseconds).map(|count| count / 1000).ok_or_else(|| {
        Error::new(ErrorKind::TooLarge, alloc::format!("PBKDF iterations {per_second} too large to scale"))
    })
}

fn per_second(hash: Hash, key_bytes: usize, keyring: &Keyring) -> u64 {
    let mut key = Secret::zeroed(key_bytes);
    let mut trial = FIRST_TRIAL;
    loop {
        let Some(begun) = keyring.nanoseconds() else { return ASSUMED_PER_SECOND };
        derive(hash, b"how long does it take", &[0; 32], trial, key.bytes_mut());
        let taken = keyring.nanoseconds().unwrap_or(begun).saturating_sub(begun).max(1);
        if taken >= TRIAL_NANOSECONDS || trial >= LAST_TRIAL {
            return (u64::from(trial) * 1_000_000_000 / taken).max(1);
        }
        trial *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_the_keys_of_rfc_6070() {
        let mut key = [0; 20];
        derive(Hash::Sha1, b"password", b"salt", 4096, &mut key);
        assert_eq!(&key[..8], &[0x4b, 0x00, 0x79, 0x01, 0xb7, 0x65, 0x48, 0x9a]);
    }

    #[test]
    fn without_a_clock_the_count_is_fixed() {
        assert_eq!(iterations(Hash::Sha256, 64, 10, &Keyring::default()).unwrap(), 3000);
        assert!(iterations(Hash::Sha256, 64, 0, &Keyring::default()).is_err());
        assert!(iterations(Hash::Sha256, 64, u64::MAX, &Keyring::default()).is_err());
    }
}
