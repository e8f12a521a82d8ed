//! Hashes by name, each over its crate.

use alloc::vec::Vec;

use digest::Digest;

use crate::crypto::spec::Hash;

/// Calls `$what::<D>($args)` with the type of the hash.
macro_rules! with_hash {
    ($hash:expr, $what:ident ( $($arg:expr),* )) => {
        match $hash {
            $crate::crypto::spec::Hash::Md5 => $what::<md5::Md5>($($arg),*),
            $crate::crypto::spec::Hash::Sha1 => $what::<sha1::Sha1>($($arg),*),
            $crate::crypto::spec::Hash::Sha224 => $what::<sha2::Sha224>($($arg),*),
            $crate::crypto::spec::Hash::Sha256 => $what::<sha2::Sha256>($($arg),*),
            $crate::crypto::spec::Hash::Sha384 => $what::<sha2::Sha384>($($arg),*),
            $crate::crypto::spec::Hash::Sha512 => $what::<sha2::Sha512>($($arg),*),
            $crate::crypto::spec::Hash::Ripemd160 => $what::<ripemd::Ripemd160>($($arg),*),
            $crate::crypto::spec::Hash::Sm3 => $what::<sm3::Sm3>($($arg),*),
        }
    };
}

pub(super) use with_hash;

/// The hash of several pieces, one after the other.
pub(super) fn digest(hash: Hash, parts: &[&[u8]]) -> Vec<u8> {
    fn of<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
        let mut state = D::new();
        for part in parts {
            state.update(part);
        }
        state.finalize().to_vec()
    }
    with_hash!(hash, of(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_text_has_its_well_known_hashes() {
        for (hash, start) in [
            (Hash::Md5, [0xd4, 0x1d, 0x8c, 0xd9]),
            (Hash::Sha1, [0xda, 0x39, 0xa3, 0xee]),
            (Hash::Sha224, [0xd1, 0x4a, 0x02, 0x8c]),
            (Hash::Sha256, [0xe3, 0xb0, 0xc4, 0x42]),
            (Hash::Sha384, [0x38, 0xb0, 0x60, 0xa7]),
            (Hash::Sha512, [0xcf, 0x83, 0xe1, 0x35]),
            (Hash::Ripemd160, [0x9c, 0x11, 0x85, 0xa5]),
            (Hash::Sm3, [0x1a, 0xb2, 0x1d, 0x83]),
        ] {
            let digest = digest(hash, &[b"", b""]);
            assert_eq!((digest.len(), &digest[..4]), (hash.digest_bytes(), &start[..]), "{}", hash.name());
        }
    }
}
