//! The header of a LUKS volume (LUKS On-Disk Format Specification, version 1.2.3): bytes, checked values, description.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::crypto::SECTOR_BYTES;
use crate::crypto::spec::{Cipher, Generator, Hash, Mode, SectorSpec};
use crate::describe::{HeaderField, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::on_disk;

/// What a LUKS header begins with, of any version.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// The version that is supported.
pub const VERSION: u16 = 1;
/// Key slots of a volume.
pub const SLOTS: usize = 8;
/// Stripes that the key is spread over.
pub const STRIPES: u32 = 4000;
/// Length of salts in bytes.
pub const SALT_BYTES: usize = 32;
/// Length of the checksum of the volume key.
pub const DIGEST_BYTES: usize = 20;
/// Bytes of the header with its slots.
pub const HEADER_BYTES: usize = RawHeader::SIZE + SLOTS * RawSlot::SIZE;
/// The first key material begins after this many bytes; further material, and the data, at multiples of it.
pub const ALIGNMENT_BYTES: u64 = 4096;

/// `active` of a key slot in use.
const ACTIVE: u32 = 0x00ac_71f3;
/// `active` of a key slot that is free.
const INACTIVE: u32 = 0x0000_dead;

on_disk! {
    /// The header in front of the key slots.
    pub struct RawHeader: 208 bytes {
        magic: [6] = 0, "'LUKS' 0xba 0xbe.";
        version: u16 = 6, "1.";
        cipher_name: [32] = 8, "Such as 'aes'.";
        cipher_mode: [32] = 40, "Mode and generator of initialisation vectors, such as 'xts-plain64'.";
        hash_spec: [32] = 72, "Hash of the key derivation.";
        payload_offset: u32 = 104, "First sector of the data.";
        key_bytes: u32 = 108, "Length of the volume key.";
        mk_digest: [20] = 112, "Checksum of the volume key.";
        mk_digest_salt: [32] = 132, "Salt of that checksum.";
        mk_digest_iter: u32 = 164, "Iterations of that checksum.";
        uuid: [40] = 168, "Identifier.";
    }
}

on_disk! {
    /// A key slot.
    pub struct RawSlot: 48 bytes {
        active: u32 = 0, "0x00ac71f3 if in use, 0x0000dead if not.";
        iterations: u32 = 4, "Iterations of the key derivation.";
        salt: [32] = 8, "Salt of the key derivation.";
        key_material_offset: u32 = 40, "First sector of the key material.";
        stripes: u32 = 44, "Stripes of the anti-forensic splitter.";
    }
}

impl RawSlot {
    /// Whether the slot is in use.
    pub fn is_active(&self) -> bool {
        self.active == ACTIVE
    }

    /// Marks the slot as used or free.
    pub fn set_active(&mut self, active: bool) {
        self.active = if active { ACTIVE } else { INACTIVE };
    }

    /// Where the key material begins, in bytes.
    pub fn material_offset(&self) -> u64 {
        u64::from(self.key_material_offset) * SECTOR_BYTES
    }
}

/// Where a header was found.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its first byte in the file; errors count from there.
    pub at: u64,
    /// Bytes from there on that it may reach to: the end of the file, or of the space set aside for it.
    pub available: u64,
    /// Whether the data is in another file.
    pub detached: bool,
}

/// A header that is well formed. What it names need not be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The fields.
    pub raw: RawHeader,
    /// The key slots.
    pub slots: [RawSlot; SLOTS],
}

/// Whether the bytes are the start of a LUKS header, and of which version.
pub fn version(bytes: &[u8]) -> Option<u16> {
    let version = bytes.get(6..8)?.try_into().ok()?;
    bytes.starts_with(&MAGIC).then(|| u16::from_be_bytes(version))
}

/// Bytes that the key material of a slot takes up, for volume keys of that length.
pub fn slot_bytes(key_bytes: u64) -> u64 {
    (key_bytes * u64::from(STRIPES)).div_ceil(SECTOR_BYTES).next_multiple_of(ALIGNMENT_BYTES / SECTOR_BYTES)
        * SECTOR_BYTES
}

/// Bytes in front of the data, for volume keys of that length.
pub fn header_bytes(key_bytes: u64) -> u64 {
    ALIGNMENT_BYTES + slot_bytes(key_bytes) * SLOTS as u64
}

impl Header {
    /// Parses and checks.
    ///
    /// # Errors
    /// The header is cut off, of another version, or its parts lie over each other or outside.
    pub fn parse(bytes: &[u8], place: Place) -> Result<Self> {
        let invalid = |text: String, offset: usize| Err(Error::invalid(text).at_offset(place.at + offset as u64));
        let (Some(raw), true) = (RawHeader::parse(bytes), bytes.len() >= HEADER_BYTES) else {
            return invalid(
                format!(
                    "Could not read encryption header: it is cut off after {} bytes, expected {HEADER_BYTES}",
                    bytes.len()
                ),
                0,
            );
        };
        if raw.magic != MAGIC {
            return invalid(
                format!("Volume is not in LUKS format: it begins with {:02x?}, expected {MAGIC:02x?}", raw.magic),
                0,
            );
        }
        if raw.version != VERSION {
            return Err(Error::unsupported(format!(
                "LUKS version {} is not supported, only version {VERSION} is",
                raw.version
            ))
            .at_offset(place.at + 6));
        }
        for (what, field, offset) in [
            ("cipher name", &raw.cipher_name, 8),
            ("cipher mode", &raw.cipher_mode, 40),
            ("hash spec", &raw.hash_spec, 72),
        ] {
            if !field.contains(&0) {
                return invalid(format!("LUKS header {what} is not NUL terminated"), offset);
            }
        }
        let mut slots = Vec::new();
        for bytes in bytes.get(RawHeader::SIZE..HEADER_BYTES).unwrap_or_default().chunks_exact(RawSlot::SIZE) {
            slots.extend(RawSlot::parse(bytes));
        }
        let Ok(slots) = slots.try_into() else { return invalid("the key slots are cut off".into(), RawHeader::SIZE) };
        let header = Header { raw, slots };
        header.check(place)?;
        Ok(header)
    }

    fn check(&self, place: Place) -> Result<()> {
        let raw = &self.raw;
        let invalid = |text: String, offset: u64| Err(Error::invalid(text).at_offset(place.at + offset));
        let payload = self.payload_offset();
        if !place.detached && payload < ALIGNMENT_BYTES {
            return invalid(
                format!(
                    "LUKS payload is overlapping with the header: it begins at byte {payload}, expected at least {ALIGNMENT_BYTES}"
                ),
                104,
            );
        }
        if raw.mk_digest_iter == 0 {
            return invalid("LUKS key iteration count is zero".into(), 164);
        }
        // The longest key that any cipher takes, twice for XTS.
        if !(1..=64).contains(&raw.key_bytes) {
            return invalid(format!("the volume key has {} bytes, expected 1 to 64", raw.key_bytes), 108);
        }
        let len = slot_bytes(raw.key_bytes.into());
        for (index, slot) in self.slots.iter().enumerate() {
            let at = (RawHeader::SIZE + index * RawSlot::SIZE) as u64;
            if slot.stripes != STRIPES {
                return invalid(
                    format!("Keyslot {index} is corrupted (stripes {} != {STRIPES})", slot.stripes),
                    at + 44,
                );
            }
            if slot.active != ACTIVE && slot.active != INACTIVE {
                return invalid(
                    format!(
                        "Keyslot {index} state (active/disable) is corrupted: {:#010x}, expected {ACTIVE:#010x} or {INACTIVE:#010x}",
                        slot.active
                    ),
                    at,
                );
            }
            if slot.is_active() && slot.iterations == 0 {
                return invalid(format!("Keyslot {index} iteration count is zero"), at + 4);
            }
            let start = slot.material_offset();
            if start < ALIGNMENT_BYTES {
                return invalid(
                    format!(
                        "Keyslot {index} is overlapping with the LUKS header: it begins at byte {start}, expected at least {ALIGNMENT_BYTES}"
                    ),
                    at + 40,
                );
            }
            if !place.detached && start + len > payload {
                return invalid(
                    format!(
                        "Keyslot {index} is overlapping with the encrypted payload: it ends at byte {}, expected at most {payload}",
                        start + len
                    ),
                    at + 40,
                );
            }
            if slot.is_active() && start + self.material_bytes() as u64 > place.available {
                return invalid(
                    format!(
                        "Keyslot {index} lies outside: it ends at byte {}, and there are {}",
                        start + self.material_bytes() as u64,
                        place.available
                    ),
                    at + 40,
                );
            }
            for (other, next) in self.slots.iter().enumerate().skip(index + 1) {
                if start < next.material_offset() + len && next.material_offset() < start + len {
                    return invalid(
                        format!(
                            "Keyslots {index} and {other} are overlapping in the header: they begin at bytes {start} and {}, {len} each",
                            next.material_offset()
                        ),
                        at + 40,
                    );
                }
            }
        }
        Ok(())
    }

    /// The bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = self.raw.emit().to_vec();
        for slot in &self.slots {
            bytes.extend_from_slice(&slot.emit());
        }
        bytes
    }

    /// Where the data begins, in bytes.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.raw.payload_offset) * SECTOR_BYTES
    }

    /// Bytes of the key material of a slot.
    pub fn material_bytes(&self) -> usize {
        self.raw.key_bytes as usize * STRIPES as usize
    }

    /// How sectors are encrypted.
    ///
    /// # Errors
    /// Something that the header names is not known.
    pub fn sector_spec(&self) -> Result<SectorSpec> {
        let text = text(&self.raw.cipher_mode);
        let Some((mode, generator)) = text.split_once('-') else {
            return Err(Error::invalid(format!("Unexpected cipher mode string format '{text}'")));
        };
        let (generator, hash) = match generator.split_once(':') {
            Some((generator, hash)) => (generator, Some(hash)),
            None => (generator, None),
        };
        let unknown = |what: &str, name: &str| Error::unsupported(format!("{what} '{name}' not supported"));
        let generator_hash = match hash {
            Some(name) => Some(Hash::by_name(name).ok_or_else(|| unknown("Hash algorithm", name))?),
            None => None,
        };
        let mode = Mode::by_name(mode).ok_or_else(|| unknown("Cipher mode", mode))?;
        let cipher = Cipher::in_header(&self::text(&self.raw.cipher_name), mode, self.raw.key_bytes as usize)?;
        let generator = Generator::by_name(generator).ok_or_else(|| unknown("IV generator", generator))?;
        let spec = SectorSpec { cipher, mode, generator, generator_hash };
        spec.check()?;
        Ok(spec)
    }

    /// The hash of the key derivation.
    ///
    /// # Errors
    /// It is not known.
    pub fn hash(&self) -> Result<Hash> {
        let name = text(&self.raw.hash_spec);
        Hash::by_name(&name)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("Hash algorithm '{name}' not supported")))
    }

    /// Properties under QEMU's names, in the order in which it shows them. Within qcow2, the format is one of them.
    pub fn describe(&self, within: bool) -> Vec<(&'static str, Value)> {
        let mode = text(&self.raw.cipher_mode);
        let (mode, generator) = mode.split_once('-').unwrap_or((&mode, ""));
        let (generator, generator_hash) = generator.split_once(':').unwrap_or((generator, ""));
        // In this mode the key is two keys.
        let key_bits = u64::from(self.raw.key_bytes) * if mode == "xts" { 4 } else { 8 };
        let cipher = match text(&self.raw.cipher_name).as_str() {
            "sm4" => "sm4".to_string(),
            name => format!("{name}-{key_bits}"),
        };
        let mut values = vec![
            ("ivgen-alg", Value::Text(generator.into())),
            ("detached-header", Value::Bool(self.raw.payload_offset == 0)),
            ("hash-alg", Value::Text(text(&self.raw.hash_spec))),
            ("cipher-alg", Value::Text(cipher)),
            ("uuid", Value::Text(text(&self.raw.uuid))),
        ];
        if generator == Generator::Essiv.name() && !generator_hash.is_empty() {
            values.push(("ivgen-hash-alg", Value::Text(generator_hash.into())));
        }
        if within {
            values.push(("format", Value::Text("luks".into())));
        }
        values.extend([
            ("cipher-mode", Value::Text(mode.into())),
            ("slots", Value::List(self.slots.iter().map(slot_value).collect())),
            ("payload-offset", Value::Number(self.payload_offset())),
            ("master-key-iters", Value::Number(self.raw.mk_digest_iter.into())),
        ]);
        values
    }

    /// Every field with its place in a file where the header begins at offset 0.
    pub fn fields(&self) -> Vec<HeaderField> {
        let bytes = self.raw.emit();
        RawHeader::FIELDS.iter().map(|field| HeaderField::of(field, &bytes)).collect()
    }
}

fn slot_value(slot: &RawSlot) -> Value {
    let offset = ("key-offset", Value::Number(slot.material_offset()));
    let mut values = vec![("active", Value::Bool(slot.is_active()))];
    if slot.is_active() {
        values.push(("iters", Value::Number(slot.iterations.into())));
    }
    values.push(offset);
    if slot.is_active() {
        values.push(("stripes", Value::Number(slot.stripes.into())));
    }
    Value::Object(values)
}

/// The text in a field that is filled up with zeroes.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).to_string()
}
