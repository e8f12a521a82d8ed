//! Direct I/O: which alignment it needs.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;

use crate::native::Buffer;

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
        let works = |len: u32, shift: u32| {
            let mut buffer = Buffer::default();
            let part = buffer.first((shift + len) as usize).get_mut(shift as usize..).unwrap_or_default();
            loop {
                match file.read_at(part, 0) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Only a refusal of the arguments speaks against an alignment.
                    result => return !matches!(result, Err(error) if error.kind() == ErrorKind::InvalidInput),
                }
            }
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
