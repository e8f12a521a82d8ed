//! Zstandard frames (RFC 8878).

use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};

/// Compresses to one frame. `None` if the result is not smaller than `limit` bytes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] without the `fast-codecs` feature.
#[cfg(feature = "fast-codecs")]
pub fn zstd(from: &[u8], limit: usize) -> Result<Option<Vec<u8>>> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Io, alloc::format!("zstd failed: {error}"));
    let mut encoder = zstd_c::bulk::Compressor::new(zstd_c::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
    let mut into = Vec::with_capacity(zstd_c::zstd_safe::compress_bound(from.len()));
    encoder.compress_to_buffer(from, &mut into).map_err(failed)?;
    Ok((into.len() < limit).then_some(into))
}

/// Refuses: the encoder is part of the `fast-codecs` feature.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
#[cfg(not(feature = "fast-codecs"))]
pub fn zstd(_from: &[u8], _limit: usize) -> Result<Option<Vec<u8>>> {
    Err(Error::new(ErrorKind::Unsupported, "writing zstd compression is not part of this build"))
}

/// Expands zstd frames until `into` is full. Bytes of `from` after that are ignored.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the stream is damaged or ends early; [`ErrorKind::Unsupported`] without the `zstd` feature.
#[cfg(feature = "fast-codecs")]
pub fn unzstd(from: &[u8], into: &mut [u8]) -> Result<()> {
    use zstd_c::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

    let damaged = |error: std::io::Error| Error::new(ErrorKind::Corrupt, alloc::format!("damaged zstd data: {error}"));
    let wanted = into.len();
    let mut decoder = Decoder::new().map_err(damaged)?;
    let mut source = InBuffer::around(from);
    let mut target = OutBuffer::around(into);
    while target.pos() < wanted {
        let before = (source.pos(), target.pos());
        decoder.run(&mut source, &mut target).map_err(damaged)?;
        if (source.pos(), target.pos()) == before {
            return Err(short(target.pos(), wanted));
        }
    }
    Ok(())
}

/// Expands zstd frames until `into` is full. Bytes of `from` after that are ignored.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the stream is damaged or ends early; [`ErrorKind::Unsupported`] without the `zstd` feature.
#[cfg(all(feature = "zstd", not(feature = "fast-codecs")))]
pub fn unzstd(from: &[u8], into: &mut [u8]) -> Result<()> {
    use ruzstd::io::Read;

    let damaged =
        |what: &dyn core::fmt::Display| Error::new(ErrorKind::Corrupt, alloc::format!("damaged zstd data: {what}"));
    let wanted = into.len();
    let mut filled = 0;
    let mut source = from;
    while filled < wanted {
        if source.is_empty() {
            return Err(short(filled, wanted));
        }
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut source).map_err(|error| damaged(&error))?;
        let before = filled;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = decoder.read(rest).map_err(|error| damaged(&error))?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        if filled == before {
            return Err(short(filled, wanted));
        }
    }
    Ok(())
}

#[cfg(feature = "zstd")]
fn short(found: usize, wanted: usize) -> Error {
    Error::new(ErrorKind::Corrupt, alloc::format!("compressed data expands to {found} bytes, not {wanted}"))
}

/// Refuses: the `zstd` feature is not compiled in.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
#[cfg(not(feature = "zstd"))]
pub fn unzstd(_from: &[u8], _into: &mut [u8]) -> Result<()> {
    Err(Error::new(ErrorKind::Unsupported, "zstd compression is not part of this build"))
}
