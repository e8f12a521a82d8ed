//! Making a LUKS volume, and filling a key slot.

use alloc::format;

use crate::crypto::SECTOR_BYTES;
use crate::crypto::header::{
    ALIGNMENT_BYTES, DIGEST_BYTES, Header, MAGIC, RawHeader, RawSlot, SALT_BYTES, SLOTS, STRIPES, VERSION, slot_bytes,
};
use crate::crypto::kdf::{derive, iterations};
use crate::crypto::sector::SectorCipher;
use crate::crypto::slots::checksum;
use crate::crypto::split::split;
use crate::crypto::volume::NewVolume;
use crate::error::{Error, ErrorKind, Result};
use crate::node::{WriteFlags, write_first_sector_last};
use crate::secret::{Keyring, Secret};

/// Fewest iterations of the checksum of a key, and of a slot.
const MIN_ITERATIONS: u64 = 1000;

/// Writes header and first key slot. The space for them reads as zeroes; nothing but the key material is there before it
/// is on disk.
///
/// # Errors
/// The host has no random numbers, or cannot write.
pub(crate) async fn create(volume: NewVolume<'_>) -> Result<()> {
    let NewVolume { file, at, parameters, keyring, .. } = volume;
    let mut key = Secret::zeroed(parameters.spec.key_bytes());
    keyring.random(key.bytes_mut())?;
    let mut header = new_header(&volume, &key)?;
    let material = fill_slot(&mut header, 0, parameters.iter_time, &key, volume.passphrase, keyring)?;
    if let Some(slot) = header.slots.first() {
        file.write(at + slot.material_offset(), material.bytes(), WriteFlags::default()).await?;
    }
    file.flush().await?;
    write_first_sector_last(file, at, &header.emit()).await
}

fn new_header(volume: &NewVolume<'_>, key: &Secret) -> Result<Header> {
    let NewVolume { parameters, keyring, detached, .. } = *volume;
    let key_bytes = parameters.spec.key_bytes();
    let mut salt = [0; SALT_BYTES];
    keyring.random(&mut salt)?;
    // As cryptsetup does: the checksum is tried once for every slot.
    let count = iterations(parameters.hash, DIGEST_BYTES, parameters.iter_time, keyring)? / 8;
    let slot_sectors = slot_bytes(key_bytes as u64) / SECTOR_BYTES;
    let first = ALIGNMENT_BYTES / SECTOR_BYTES;
    let sector = |index: u64| (first + index * slot_sectors) as u32;
    let slot = |index: u64| RawSlot {
        active: 0,
        iterations: 0,
        salt: [0; SALT_BYTES],
        key_material_offset: sector(index),
        stripes: STRIPES,
    };
    let mut header = Header {
        raw: RawHeader {
            magic: MAGIC,
            version: VERSION,
            cipher_name: field(parameters.spec.cipher.stem())?,
            cipher_mode: field(&parameters.spec.mode_text())?,
            hash_spec: field(parameters.hash.name())?,
            payload_offset: if detached { 0 } else { sector(SLOTS as u64) },
            key_bytes: key_bytes as u32,
            mk_digest: [0; DIGEST_BYTES],
            mk_digest_salt: salt,
            mk_digest_iter: checked(count)?,
            uuid: uuid(keyring)?,
        },
        slots: core::array::from_fn(|index| slot(index as u64)),
    };
    header.slots.iter_mut().for_each(|slot| slot.set_active(false));
    header.raw.mk_digest = checksum(&header, key)?;
    Ok(header)
}

/// Puts the volume key under a passphrase into a slot of the header, and gives the key material to write.
///
/// # Errors
/// The host has no random numbers.
pub(super) fn fill_slot(
    header: &mut Header,
    index: usize,
    iter_time: u64,
    key: &Secret,
    passphrase: &Secret,
    keyring: &Keyring,
) -> Result<Secret> {
    let (spec, hash) = (header.sector_spec()?, header.hash()?);
    let count = checked(iterations(hash, spec.key_bytes(), iter_time, keyring)?)?;
    let mut material = split(hash, key.bytes(), STRIPES, keyring)?;
    let Some(slot) = header.slots.get_mut(index) else {
        return Err(Error::invalid(format!("there is no keyslot {index}")));
    };
    keyring.random(&mut slot.salt)?;
    slot.iterations = count;
    let mut slot_key = Secret::zeroed(spec.key_bytes());
    derive(hash, passphrase.bytes(), &slot.salt, count, slot_key.bytes_mut());
    SectorCipher::new(&spec, slot_key.bytes())?.encrypt(0, material.bytes_mut());
    slot.set_active(true);
    Ok(material)
}

/// A number of iterations as a header has it.
fn checked(count: u64) -> Result<u32> {
    u32::try_from(count.max(MIN_ITERATIONS))
        .map_err(|_| Error::new(ErrorKind::TooLarge, format!("PBKDF iterations {count} larger than {}", u32::MAX)))
}

/// A text, filled up with zeroes of which there must be one.
fn field(text: &str) -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    match bytes.get_mut(..text.len()) {
        Some(place) if text.len() < 32 => place.copy_from_slice(text.as_bytes()),
        _ => return Err(Error::invalid(format!("'{text}' is too long for LUKS header"))),
    }
    Ok(bytes)
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid(keyring: &Keyring) -> Result<[u8; 40]> {
    let mut bytes = [0; 16];
    keyring.random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = alloc::string::String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    let mut field = [0; 40];
    field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    Ok(field)
}
