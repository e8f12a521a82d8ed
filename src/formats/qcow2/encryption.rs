//! How an image is encrypted: what the LUKS header in it says (LUKS On-Disk Format Specification, version 1.2.3).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::describe::Value;
use crate::error::{Error, Result};
use crate::formats::qcow2::extension::Extensions;
use crate::formats::qcow2::header::{Encryption, Header};
use crate::node::{Node, ReadFlags};
use crate::wire::on_disk;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const SLOTS: usize = 8;
/// `active` of a key slot in use.
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
/// Offsets are counted in these.
const SECTOR_BYTES: u64 = 512;

on_disk! {
    /// The header in front of the key slots.
    struct RawLuks: 208 bytes {
        magic: [6] = 0, "'LUKS' 0xba 0xbe.";
        version: u16 = 6, "1.";
        cipher_name: [32] = 8, "Such as 'aes'.";
        cipher_mode: [32] = 40, "Mode and generator of initialisation vectors, such as 'xts-plain64'.";
        hash_spec: [32] = 72, "Hash of the key derivation.";
        payload_offset: u32 = 104, "First sector of the data.";
        key_bytes: u32 = 108, "Length of the master key.";
        mk_digest: [20] = 112, "Checksum of the master key.";
        mk_digest_salt: [32] = 132, "Salt of that checksum.";
        mk_digest_iter: u32 = 164, "Iterations of that checksum.";
        uuid: [40] = 168, "Identifier.";
    }
}

on_disk! {
    /// A key slot.
    struct RawSlot: 48 bytes {
        active: u32 = 0, "0x00ac71f3 if in use.";
        iterations: u32 = 4, "Iterations of the key derivation.";
        salt: [32] = 8, "Salt of the key derivation.";
        key_material_offset: u32 = 40, "First sector of the key material.";
        stripes: u32 = 44, "Stripes of the anti-forensic splitter.";
    }
}

/// Properties of the encryption under QEMU's names, in the order in which it shows them; none without encryption.
pub(super) async fn read(
    file: &dyn Node,
    header: &Header,
    extensions: &Extensions,
) -> Result<Vec<(&'static str, Value)>> {
    match (header.encryption, extensions.encryption) {
        (Encryption::None, _) => Ok(Vec::new()),
        (Encryption::Aes, _) => Ok(vec![("format", Value::Text("aes".into()))]),
        (Encryption::Luks, None) => {
            Err(Error::invalid("the image is encrypted with LUKS but has no encryption header"))
        }
        (Encryption::Luks, Some((at, len))) => {
            let mut bytes = [0; RawLuks::SIZE + SLOTS * RawSlot::SIZE];
            let length = file.info().length;
            if len < bytes.len() as u64 || at.checked_add(len).is_none_or(|end| end > length) {
                return Err(Error::invalid(format!(
                    "the encryption header has {len} bytes, expected at least {} within the file, which has {length}",
                    bytes.len()
                ))
                .at_offset(at));
            }
            file.read(at, &mut bytes, ReadFlags::default()).await?;
            luks(&bytes).map_err(|error| error.at_offset(at))
        }
    }
}

fn luks(bytes: &[u8]) -> Result<Vec<(&'static str, Value)>> {
    let raw = RawLuks::parse(bytes).ok_or_else(|| Error::invalid("the LUKS header is too short"))?;
    if raw.magic != MAGIC || raw.version != VERSION {
        return Err(Error::invalid(format!(
            "the LUKS header begins with {:02x?} and version {}, expected {MAGIC:02x?} and {VERSION}",
            raw.magic, raw.version
        )));
    }
    let mode = text(&raw.cipher_mode);
    let (mode, generator) = mode.split_once('-').unwrap_or((&mode, ""));
    let (generator, generator_hash) = generator.split_once(':').unwrap_or((generator, ""));
    // In this mode the key is two keys.
    let key_bits = u64::from(raw.key_bytes) * if mode == "xts" { 4 } else { 8 };
    let slots = bytes.get(RawLuks::SIZE..).unwrap_or_default().chunks(RawSlot::SIZE).filter_map(RawSlot::parse);
    let mut values = vec![
        ("ivgen-alg", Value::Text(generator.into())),
        ("detached-header", Value::Bool(false)),
        ("hash-alg", Value::Text(text(&raw.hash_spec))),
        ("cipher-alg", Value::Text(format!("{}-{key_bits}", text(&raw.cipher_name)))),
        ("uuid", Value::Text(text(&raw.uuid))),
    ];
    if !generator_hash.is_empty() {
        values.push(("ivgen-hash-alg", Value::Text(generator_hash.into())));
    }
    values.extend([
        ("format", Value::Text("luks".into())),
        ("cipher-mode", Value::Text(mode.into())),
        ("slots", Value::List(slots.map(|slot| slot_value(&slot)).collect())),
        ("payload-offset", Value::Number(u64::from(raw.payload_offset) * SECTOR_BYTES)),
        ("master-key-iters", Value::Number(raw.mk_digest_iter.into())),
    ]);
    Ok(values)
}

fn slot_value(slot: &RawSlot) -> Value {
    let active = slot.active == SLOT_ACTIVE;
    let offset = ("key-offset", Value::Number(u64::from(slot.key_material_offset) * SECTOR_BYTES));
    let mut values = vec![("active", Value::Bool(active))];
    if active {
        values.push(("iters", Value::Number(slot.iterations.into())));
    }
    values.push(offset);
    if active {
        values.push(("stripes", Value::Number(slot.stripes.into())));
    }
    Value::Object(values)
}

/// The text in a field that is filled up with zeroes.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).to_string()
}
