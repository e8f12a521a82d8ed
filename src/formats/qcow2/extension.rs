//! Header extensions (QEMU docs/interop/qcow2, "Header extensions"): a grammar of type, length, data, padding.

use alloc::string::String;
use alloc::vec::Vec;

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u32, be_u64};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::FeatureName;

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
            let (after, (kind, len)) = header(rest).map_err(|_| too_large(at, 0))?;
            if kind == 0 {
                break;
            }
            let (after, data) = body(after, len).map_err(|_| too_large(at, len))?;
            extensions.add(kind, data, at + 8)?;
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
            BITMAPS => self.bitmaps = Some(bitmaps(data).map_err(|_| wrong_size("bitmaps", at, data.len(), 24))?.1),
            ENCRYPTION => {
                self.encryption = Some(pointer(data).map_err(|_| wrong_size("encryption", at, data.len(), 16))?.1);
            }
            _ => self.unknown.push(UnknownExtension { kind, offset: at, len: data.len() as u32 }),
        }
        Ok(())
    }
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T>;

fn header(bytes: &[u8]) -> Parsed<'_, (u32, u32)> {
    (be_u32, be_u32).parse(bytes)
}

fn body(bytes: &[u8], len: u32) -> Parsed<'_, &[u8]> {
    take(len).parse(bytes)
}

fn bitmaps(data: &[u8]) -> Parsed<'_, BitmapsExtension> {
    let (rest, (count, _reserved, directory_size, directory_offset)) = (be_u32, be_u32, be_u64, be_u64).parse(data)?;
    Ok((rest, BitmapsExtension { count, directory_size, directory_offset }))
}

fn pointer(data: &[u8]) -> Parsed<'_, (u64, u64)> {
    (be_u64, be_u64).parse(data)
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
