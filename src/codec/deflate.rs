//! Raw deflate streams (RFC 1951).

use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};

/// Compresses with a window of 4 KiB (12 bits), the largest that readers of qcow2 accept. `None` if the result is not
/// smaller than `limit` bytes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] without the features `deflate` and `write`.
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

/// Compresses with matches of at most 4 KiB back, the most that readers of qcow2 accept. `None` if the result is not
/// smaller than `limit` bytes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] without the features `deflate` and `write`.
#[cfg(all(feature = "deflate", feature = "write", not(feature = "fast-codecs")))]
pub fn deflate(from: &[u8], limit: usize) -> Result<Option<Vec<u8>>> {
    use miniz_oxide::deflate::core::{
        CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
    };

    const LEVEL: i32 = 6;
    const RAW: i32 = -15;
    /// This encoder has one window, which is larger; so it forgets what it saw after that many bytes.
    const REACH_BYTES: usize = 4096;
    let mut encoder = CompressorOxide::new(create_comp_flags_from_zip_params(LEVEL, RAW, 0));
    let mut into = alloc::vec![0; limit.saturating_sub(1)];
    let mut written = 0;
    let mut parts = from.chunks(REACH_BYTES).peekable();
    while let Some(part) = parts.next() {
        let flush = if parts.peek().is_some() { TDEFLFlush::Full } else { TDEFLFlush::Finish };
        let Some(room) = into.get_mut(written..).filter(|room| !room.is_empty()) else { return Ok(None) };
        let (status, _, count) = compress(&mut encoder, part, room, flush);
        written += count;
        match status {
            TDEFLStatus::Done => {
                into.truncate(written);
                return Ok(Some(into));
            }
            TDEFLStatus::Okay => {}
            failed => return Err(Error::new(ErrorKind::Io, alloc::format!("deflate failed: {failed:?}"))),
        }
    }
    Ok(None)
}

/// Refuses: an encoder is part of the features `deflate` and `write`.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
#[cfg(not(any(feature = "fast-codecs", all(feature = "deflate", feature = "write"))))]
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

#[cfg(all(test, feature = "deflate", feature = "write"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_expands_to_the_same_bytes() {
        for len in [1, 511, 4096, 4097, 65_536, 2 << 20] {
            let bytes: Vec<u8> = (0..len).map(|at: u32| (at / 7 % 97) as u8).collect();
            let packed = deflate(&bytes, bytes.len() + 64).unwrap().unwrap();
            let mut expanded = alloc::vec![0; bytes.len()];
            inflate(&packed, &mut expanded).unwrap();
            assert_eq!(expanded, bytes);
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_left() {
        let mut state = 1_u32;
        let noise: Vec<u8> = core::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(65_536)
        .collect();
        assert_eq!(deflate(&noise, noise.len()).unwrap(), None);
        assert_eq!(deflate(&[0; 4096], 2).unwrap(), None);
    }
}
