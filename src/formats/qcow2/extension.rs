//! Header extensions (QEMU docs/interop/qcow2, "Header extensions"): a grammar of type, length, data, padding.

use alloc::string::String;
use alloc::vec::Vec;

use nom::Parser;
use nom::bytes::complete::take;
use nom::combinator::map_opt;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::FeatureName;
use crate::wire::on_disk;

/// Type of the backing format extension.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Type of the feature name table.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Type of the bitmaps extension.
pub const BITMAPS: u32 = 0x2385_2875;
/// Type of the full disk encryption header pointer.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// Type of the external data file name.
pub const DATA_FILE: u32 = 0x4441_5441;

on_disk! {
    /// What every extension begins with.
    pub(super) struct RawExtension: 8 bytes {
        kind: u32 = 0, "Which extension it is; 0 ends the list.";
        len: u32 = 4, "Length of its data, without the padding to a multiple of 8.";
    }
}

on_disk! {
    /// The data of the bitmaps extension.
    pub(super) struct RawBitmaps: 24 bytes {
        nb_bitmaps: u32 = 0, "Number of bitmaps.";
        reserved: u32 = 4, "Reserved; zero.";
        bitmap_directory_size: u64 = 8, "Length of the directory in bytes.";
        bitmap_directory_offset: u64 = 16, "Offset of the directory; cluster aligned.";
    }
}

on_disk! {
    /// The data of the encryption header pointer.
    pub(super) struct RawEncryption: 16 bytes {
        offset: u64 = 0, "Offset of the encryption header; cluster aligned.";
        length: u64 = 8, "Length of the encryption header in bytes.";
    }
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Size of the directory in bytes.
    pub directory_size: u64,
    /// Offset of the directory.
    pub directory_offset: u64,
}

/// An extension that is not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownExtension {
    /// Its type.
    pub kind: u32,
    /// Offset of its data in the file.
    pub offset: u64,
    /// Length of its data.
    pub len: u32,
}

/// What the extensions say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// Names of feature bits.
    pub feature_names: Vec<FeatureName>,
    /// Persistent bitmaps.
    pub bitmaps: Option<BitmapsExtension>,
    /// Offset and length of the encryption header.
    pub encryption: Option<(u64, u64)>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// The others; they stay in the file as they are.
    pub unknown: Vec<UnknownExtension>,
}

impl Extensions {
    /// Parses the bytes between the header and the backing file name (or the end of the first cluster).
    ///
    /// # Errors
    /// An extension reaches beyond the space for extensions, or its contents have an impossible length.
    pub fn parse(bytes: &[u8], start: u64) -> Result<Self> {
        let mut extensions = Extensions::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = start + (bytes.len() - rest.len()) as u64;
            let (after, RawExtension { kind, len }) = head(rest).map_err(|_| too_large(at, 0))?;
            if kind == 0 {
                break;
            }
            let (after, data) = body(after, len).map_err(|_| too_large(at, len))?;
            extensions.add(kind, data, at + RawExtension::SIZE as u64)?;
            let padding = after.len().min(len.next_multiple_of(8) as usize - len as usize);
            rest = after.get(padding..).unwrap_or_default();
        }
        Ok(extensions)
    }

    fn add(&mut self, kind: u32, data: &[u8], at: u64) -> Result<()> {
        let text = || String::from_utf8_lossy(data).into_owned();
        match kind {
            BACKING_FORMAT => self.backing_format = Some(text()),
            DATA_FILE => self.data_file = Some(text()),
            FEATURE_NAMES => {
                self.feature_names = data
                    .chunks(48)
                    .filter_map(|entry| {
                        let (kind, bit, name) = (*entry.first()?, *entry.get(1)?, entry.get(2..)?);
                        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                        let name = String::from_utf8_lossy(name.get(..end)?).into_owned();
                        Some(FeatureName { kind, bit, name })
                    })
                    .collect();
            }
            BITMAPS => {
                let raw =
                    RawBitmaps::parse(data).ok_or_else(|| wrong_size("bitmaps", at, data.len(), RawBitmaps::SIZE))?;
                self.bitmaps = Some(BitmapsExtension {
                    count: raw.nb_bitmaps,
                    directory_size: raw.bitmap_directory_size,
                    directory_offset: raw.bitmap_directory_offset,
                });
            }
            ENCRYPTION => {
                let raw = RawEncryption::parse(data)
                    .ok_or_else(|| wrong_size("encryption", at, data.len(), RawEncryption::SIZE))?;
                self.encryption = Some((raw.offset, raw.length));
            }
            _ => self.unknown.push(UnknownExtension { kind, offset: at, len: data.len() as u32 }),
        }
        Ok(())
    }
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T>;

fn head(bytes: &[u8]) -> Parsed<'_, RawExtension> {
    map_opt(take(RawExtension::SIZE), RawExtension::parse).parse(bytes)
}

fn body(bytes: &[u8], len: u32) -> Parsed<'_, &[u8]> {
    take(len).parse(bytes)
}

fn too_large(at: u64, len: u32) -> Error {
    Error::new(
        ErrorKind::Invalid,
        alloc::format!("Header extension too large: {len} bytes reach beyond the space for extensions"),
    )
    .at_offset(at)
    .with_headline("Header extension too large")
}

fn wrong_size(what: &str, at: u64, found: usize, expected: usize) -> Error {
    Error::new(ErrorKind::Invalid, alloc::format!("the {what} extension has {found} bytes, expected {expected}"))
        .at_offset(at)
}
