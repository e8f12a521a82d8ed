//! Direct I/O: which alignment it needs, and buffers that have it.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;

/// Alignments that devices ask for, smallest first.
const CANDIDATES: [u32; 4] = [512, 1024, 2048, 4096];

/// The largest alignment that is tried, and the one that is taken where nothing can be tried.
pub(super) const LARGEST: u32 = 4096;

/// What reads and writes that pass the page cache by have to be multiples of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Offsets and lengths.
    pub(super) request: u32,
    /// Addresses of buffers.
    pub(super) memory: u32,
}

impl Alignment {
    /// Of a file that is read and written through the page cache.
    pub(super) const NONE: Alignment = Alignment { request: 1, memory: 1 };

    /// Finds the alignment by reading the start of the file. An empty file says nothing, and gets the largest.
    ///
    /// # Errors
    /// No alignment works.
    pub(super) fn probe(file: &File, length: u64) -> Result<Self, Error> {
        if length == 0 {
            return Ok(Alignment { request: LARGEST, memory: LARGEST });
        }
        let largest = LARGEST as usize;
        let works = |len: u32, shift: u32| {
            with_buffer(largest + shift as usize, LARGEST, |buffer| {
                let (from, to) = (shift as usize, (shift + len) as usize);
                let Some(part) = buffer.get_mut(from..to) else { return false };
                loop {
                    match file.read_at(part, 0) {
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        // Only a refusal of the arguments speaks against an alignment.
                        result => return !matches!(result, Err(error) if error.kind() == ErrorKind::InvalidInput),
                    }
                }
            })
        };
        let request = CANDIDATES.into_iter().find(|&len| works(len, 0));
        let memory = CANDIDATES.into_iter().find(|&shift| works(LARGEST, shift % LARGEST));
        match (request, memory) {
            (Some(request), Some(memory)) => Ok(Alignment { request, memory }),
            _ => Err(Error::new(ErrorKind::InvalidInput, "Could not find working O_DIRECT alignment")),
        }
    }

    /// Whether direct I/O takes this buffer.
    pub(super) fn accepts(self, bytes: &[u8]) -> bool {
        self.memory <= 1 || (bytes.as_ptr() as usize).is_multiple_of(self.memory as usize)
    }
}

/// Runs `work` on `len` zero bytes whose address is a multiple of `alignment`.
pub(super) fn with_buffer<R>(len: usize, alignment: u32, work: impl FnOnce(&mut [u8]) -> R) -> R {
    let alignment = alignment as usize;
    let mut buffer = std::vec![0u8; len + alignment];
    let start = buffer.as_ptr().align_offset(alignment).min(alignment);
    work(buffer.get_mut(start..start + len).unwrap_or_default())
}
