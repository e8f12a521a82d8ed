//! Key slots: from a passphrase to the volume key, and back into a slot.

use subtle::ConstantTimeEq;

use crate::crypto::header::{DIGEST_BYTES, Header, SLOTS};
use crate::crypto::kdf::derive;
use crate::crypto::sector::SectorCipher;
use crate::crypto::split::merge;
use crate::crypto::volume::Located;
use crate::error::{Error, ErrorKind, Result};
use crate::node::ReadFlags;
use crate::secret::Secret;

/// The volume key, from the first slot that the passphrase opens.
///
/// # Errors
/// No slot has this passphrase, or a header asks for more iterations than the budget has.
pub(crate) async fn unlock(volume: Located<'_>, passphrase: &Secret) -> Result<Secret> {
    for index in 0..SLOTS {
        if let Some(key) = open_slot(volume, index, passphrase).await? {
            return Ok(key);
        }
    }
    Err(Error::new(ErrorKind::Denied, "Invalid password, cannot unlock any keyslot"))
}

/// The volume key, if the slot is in use and has this passphrase.
pub(super) async fn open_slot(volume: Located<'_>, index: usize, passphrase: &Secret) -> Result<Option<Secret>> {
    let Located { file, at, header, iterations: budget, .. } = volume;
    let Some(slot) = header.slots.get(index).filter(|slot| slot.is_active()) else { return Ok(None) };
    for (what, count) in
        [("Keyslot", slot.iterations), ("the checksum of the key, tried for keyslot", header.raw.mk_digest_iter)]
    {
        if count > budget {
            return Err(Error::new(
                ErrorKind::OverBudget,
                alloc::format!(
                    "{what} {index} asks for {count} iterations of the key derivation; the budget is {budget}"
                ),
            )
            .at_offset(at));
        }
    }
    let (spec, hash) = (header.sector_spec()?, header.hash()?);
    let mut slot_key = Secret::zeroed(spec.key_bytes());
    derive(hash, passphrase.bytes(), &slot.salt, slot.iterations, slot_key.bytes_mut());
    let mut material = Secret::zeroed(header.material_bytes());
    file.read(at + slot.material_offset(), material.bytes_mut(), ReadFlags::default()).await?;
    SectorCipher::new(&spec, slot_key.bytes())?.decrypt(0, material.bytes_mut());
    let key = merge(hash, material.bytes(), spec.key_bytes());
    let same = checksum(header, &key)?.ct_eq(&header.raw.mk_digest);
    Ok(bool::from(same).then_some(key))
}

/// What the header says of its key, for this key.
pub(super) fn checksum(header: &Header, key: &Secret) -> Result<[u8; DIGEST_BYTES]> {
    let mut digest = [0; DIGEST_BYTES];
    derive(header.hash()?, key.bytes(), &header.raw.mk_digest_salt, header.raw.mk_digest_iter, &mut digest);
    Ok(digest)
}
