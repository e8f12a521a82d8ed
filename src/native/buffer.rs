//! [`Buffer`]: memory that starts on a page.

use std::vec::Vec;

/// What the address of a buffer is a multiple of. No device asks direct I/O for more, and kernels copy fastest to and
/// from it.
const PAGE: usize = 4096;

/// Bytes whose address is a multiple of 4096.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// The first `len` bytes, which are made if there are fewer. What was there is kept; what is new is zero.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        if len > self.len {
            let mut bytes = std::vec![0; len + PAGE];
            let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
            if let (Some(new), Some(old)) = (bytes.get_mut(start..start + self.len), self.get()) {
                new.copy_from_slice(old);
            }
            *self = Buffer { bytes, start, len };
        }
        self.bytes.get_mut(self.start..self.start + len).unwrap_or_default()
    }

    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(self.start..self.start + self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::Buffer;

    #[test]
    fn a_buffer_starts_on_a_page_and_keeps_its_bytes_when_it_grows() {
        let mut buffer = Buffer::default();
        buffer.first(3).copy_from_slice(b"abc");
        for len in [1, 3, 5000, 1 << 20] {
            let bytes = buffer.first(len);
            assert_eq!((bytes.len(), bytes.as_ptr() as usize % 4096), (len, 0));
        }
        assert_eq!(buffer.first(5), b"abc\0\0");
    }
}
