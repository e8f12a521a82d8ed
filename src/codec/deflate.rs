//! Raw deflate streams (RFC 1951).

use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};

/// Compresses with a window of 4 KiB (12 bits), the largest that readers of qcow2 accept. `None` if the result is not
/// smaller than `limit` bytes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] without the `fast-codecs` feature.
#[cfg(feature = "fast-codecs")]
pub fn deflate(from: &[u8], limit: usize) -> Result<Option<Vec<u8>>> {
    const WINDOW_BITS: u8 = 12;
    let mut encoder = flate2::Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
    let mut into = alloc::vec![0; limit.saturating_sub(1)];
    let status = encoder
        .compress(from, &mut into, flate2::FlushCompress::Finish)
        .map_err(|error| Error::new(ErrorKind::Io, alloc::format!("deflate failed: {error}")))?;
    into.truncate(encoder.total_out() as usize);
    Ok((status == flate2::Status::StreamEnd).then_some(into))
}

/// Refuses: the encoder is part of the `fast-codecs` feature.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
#[cfg(not(feature = "fast-codecs"))]
pub fn deflate(_from: &[u8], _limit: usize) -> Result<Option<Vec<u8>>> {
    Err(Error::new(ErrorKind::Unsupported, "writing zlib compression is not part of this build"))
}

/// Expands a raw deflate stream until `into` is full. Bytes of `from` after that are ignored.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the stream is damaged or ends early; [`ErrorKind::Unsupported`] without the `deflate` feature.
#[cfg(feature = "fast-codecs")]
pub fn inflate(from: &[u8], into: &mut [u8]) -> Result<()> {
    let mut decoder = flate2::Decompress::new(false);
    let finished = decoder.decompress(from, into, flate2::FlushDecompress::Finish);
    match finished {
        Ok(_) if decoder.total_out() == into.len() as u64 => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::Corrupt,
            alloc::format!("compressed data expands to {} bytes, not {}", decoder.total_out(), into.len()),
        )),
        Err(error) => Err(Error::new(ErrorKind::Corrupt, alloc::format!("damaged deflate data: {error}"))),
    }
}

/// Expands a raw deflate stream until `into` is full. Bytes of `from` after that are ignored.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the stream is damaged or ends early; [`ErrorKind::Unsupported`] without the `deflate` feature.
#[cfg(all(feature = "deflate", not(feature = "fast-codecs")))]
pub fn inflate(from: &[u8], into: &mut [u8]) -> Result<()> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

    let mut decoder = alloc::boxed::Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut decoder, from, into, 0, flags);
    match status {
        TINFLStatus::Done | TINFLStatus::HasMoreOutput if written == into.len() => Ok(()),
        TINFLStatus::Done => Err(Error::new(
            ErrorKind::Corrupt,
            alloc::format!("compressed data expands to {written} bytes, not {}", into.len()),
        )),
        status => Err(Error::new(ErrorKind::Corrupt, alloc::format!("damaged deflate data ({status:?})"))),
    }
}

/// Refuses: the `deflate` feature is not compiled in.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
#[cfg(not(feature = "deflate"))]
pub fn inflate(_from: &[u8], _into: &mut [u8]) -> Result<()> {
    Err(Error::new(ErrorKind::Unsupported, "zlib compression is not part of this build"))
}
