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

/// A frame may ask the decoder to set aside a window of 2 to the power of this, at most: 8 MiB, which every decoder
/// should support (RFC 8878, section 3.1.1.1.2).
#[cfg(feature = "zstd")]
const MAX_WINDOW_LOG: u8 = 23;

/// Expands zstd frames until `into` is full. Bytes of `from` after that are ignored.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the stream is damaged or ends early; [`ErrorKind::Unsupported`] without the `zstd` feature.
#[cfg(feature = "fast-codecs")]
pub fn unzstd(from: &[u8], into: &mut [u8]) -> Result<()> {
    use zstd_c::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

    let damaged = |error: std::io::Error| Error::new(ErrorKind::Corrupt, alloc::format!("damaged zstd data: {error}"));
    let wanted = into.len();
    let mut decoder = Decoder::new().map_err(damaged)?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG.into())).map_err(damaged)?;
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
        if window(source).is_some_and(|bytes| bytes > 1 << MAX_WINDOW_LOG) {
            return Err(damaged(&"the window is too large"));
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

/// The window that a frame asks for, in bytes (RFC 8878, section 3.1.1.1). A single segment is its own window.
#[cfg(all(feature = "zstd", not(feature = "fast-codecs")))]
fn window(frame: &[u8]) -> Option<u64> {
    let flags = *frame.get(4)?;
    if flags & 0x20 == 0 {
        return Some(1 << (10 + (*frame.get(5)? >> 3)));
    }
    let start = 5 + [0, 1, 2, 4][usize::from(flags & 3)];
    let size = frame.get(start..start + (1 << (flags >> 6)))?;
    Some(size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)))
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
