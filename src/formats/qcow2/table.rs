//! L1 and L2 entries: bytes and their meaning (QEMU docs/interop/qcow2, "Cluster mapping").

use byteorder::{BE, ByteOrder};

use crate::formats::qcow2::header::ClusterBits;

/// Bits 9 to 55: a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one, so the cluster may be written in place.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry: reads as zeroes.
pub const ZERO: u64 = 1;
/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u64 = 32;

/// Reads the number at `index` of a table of big-endian 64-bit numbers.
pub fn word(table: &[u8], index: usize) -> Option<u64> {
    Some(BE::read_u64(table.get(index.checked_mul(8)?..)?.get(..8)?))
}

/// Indices of the entries of an L2 table that say anything. Most of a sparse disk's say nothing, and are passed over many
/// at a time.
pub fn used_entries(table: &[u8], entry_bytes: usize) -> impl Iterator<Item = u64> + '_ {
    const EMPTY: [u8; 256] = [0; 256];
    let per_chunk = (EMPTY.len() / entry_bytes) as u64;
    (0u64..).zip(table.chunks(EMPTY.len())).filter(|(_, chunk)| !EMPTY.starts_with(chunk)).flat_map(
        move |(number, chunk)| {
            let entries = (number * per_chunk..).zip(chunk.chunks_exact(entry_bytes));
            entries.filter(|(_, entry)| !EMPTY.starts_with(entry)).map(|(index, _)| index)
        },
    )
}

/// Where a compressed cluster is and how many bytes it has at most.
pub fn compressed(entry: u64, cluster: ClusterBits) -> (u64, u32) {
    let offset_bits = 62 - (cluster.bits() - 8);
    let at = entry & ((1 << offset_bits) - 1);
    let more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    let stored = (more_sectors + 1) * 512 - (at & 511);
    (at, stored as u32)
}

/// The entry for compressed data of `len` bytes at `at`.
pub fn compressed_word(at: u64, len: u64, cluster: ClusterBits) -> u64 {
    let offset_bits = 62 - (cluster.bits() - 8);
    let more_sectors = ((at + len - 1) >> 9) - (at >> 9);
    COMPRESSED | more_sectors << offset_bits | at
}

/// What an L2 entry says about a cluster or a subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing; there may be space set aside for it.
    Unallocated {
        /// Space for the cluster.
        host: Option<u64>,
    },
    /// Zeroes; there may be space set aside for it.
    Zero {
        /// Space for the cluster.
        host: Option<u64>,
    },
    /// Stored as it is.
    Data {
        /// Offset of the cluster.
        host: u64,
    },
    /// Stored compressed.
    Compressed {
        /// Offset of the compressed data.
        host: u64,
        /// Its size in bytes at most.
        stored: u32,
    },
}

/// An L2 entry with its subcluster bitmap (0 without extended entries).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The first word.
    pub word: u64,
    /// The second word of an extended entry.
    pub bitmap: u64,
}

impl L2Entry {
    /// Reads the entry at `index`.
    pub fn read(table: &[u8], index: u64, extended: bool) -> Option<Self> {
        let index = usize::try_from(index).ok()?;
        if extended {
            Some(L2Entry { word: word(table, index * 2)?, bitmap: word(table, index * 2 + 1)? })
        } else {
            Some(L2Entry { word: word(table, index)?, bitmap: 0 })
        }
    }

    /// Writes the entry to the bytes of its place.
    pub fn write(self, place: &mut [u8]) {
        if let Some(first) = place.get_mut(..8) {
            BE::write_u64(first, self.word);
        }
        if let Some(second) = place.get_mut(8..16) {
            BE::write_u64(second, self.bitmap);
        }
    }

    /// Whether it may be written in place.
    pub fn is_copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// Whether it is compressed.
    pub fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// The cluster's host offset, if it has one. With an external data file offset 0 is a place like any other, and an
    /// entry has one exactly if its COPIED bit is set.
    pub fn host(self, external: bool) -> Option<u64> {
        let offset = self.word & OFFSET_MASK;
        (!self.is_compressed() && (offset != 0 || (external && self.is_copied()))).then_some(offset)
    }

    /// What it says about a whole cluster; not for extended entries.
    pub fn mapping(self, cluster: ClusterBits, external: bool) -> Mapping {
        if self.is_compressed() {
            let (host, stored) = compressed(self.word, cluster);
            return Mapping::Compressed { host, stored };
        }
        match (self.word & ZERO != 0, self.host(external)) {
            (true, host) => Mapping::Zero { host },
            (false, Some(host)) => Mapping::Data { host },
            (false, None) => Mapping::Unallocated { host: None },
        }
    }

    /// What an extended entry says about subcluster `index`, 0 to 31. `None` if its bits contradict each other.
    pub fn sub_mapping(self, index: u32, cluster: ClusterBits, external: bool) -> Option<Mapping> {
        if self.is_compressed() {
            let (host, stored) = compressed(self.word, cluster);
            return Some(Mapping::Compressed { host, stored });
        }
        let host = self.host(external);
        let allocated = self.bitmap >> index & 1 == 1;
        let zero = self.bitmap >> (32 + index) & 1 == 1;
        match (allocated, zero, host) {
            (true, true, _) | (true, false, None) => None,
            (true, false, Some(host)) => Some(Mapping::Data { host }),
            (false, true, host) => Some(Mapping::Zero { host }),
            (false, false, host) => Some(Mapping::Unallocated { host }),
        }
    }
}

/// Reads refcount `index` of a block of refcounts of `1 << order` bits.
pub fn refcount(block: &[u8], index: u64, order: u32) -> Option<u64> {
    let index = usize::try_from(index).ok()?;
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let byte = *block.get(index / per_byte)?;
            let shift = (index % per_byte) << order;
            Some(u64::from(byte >> shift) & ((1 << (1u32 << order)) - 1))
        }
        3 => block.get(index).map(|byte| u64::from(*byte)),
        4 => Some(BE::read_u16(block.get(index * 2..)?.get(..2)?).into()),
        5 => Some(BE::read_u32(block.get(index * 4..)?.get(..4)?).into()),
        _ => word(block, index),
    }
}

/// Bytes of a block that hold refcount `index`: start and length.
pub fn refcount_place(index: u64, order: u32) -> (usize, usize) {
    let bit = index << order;
    ((bit / 8) as usize, ((1usize << order) / 8).max(1))
}

/// Writes refcount `index` to the bytes of [`refcount_place`].
pub fn set_refcount(place: &mut [u8], index: u64, order: u32, value: u64) {
    match (order, place) {
        (0..=2, [byte]) => {
            let per_byte = 8u64 >> order;
            let shift = ((index % per_byte) << order) as u32;
            let mask = ((1u16 << (1u32 << order)) - 1) as u8;
            *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
        }
        (_, place) => {
            let bytes = value.to_be_bytes();
            let len = place.len().min(8);
            place[..len].copy_from_slice(&bytes[8 - len..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_survive_a_round_trip() {
        for order in 0..=6 {
            let mut block = [0u8; 64];
            let entries = (64 * 8) >> order;
            let largest = if order == 6 { u64::MAX } else { (1u64 << (1u32 << order)) - 1 };
            for index in 0..entries {
                let (start, len) = refcount_place(index, order);
                set_refcount(&mut block[start..start + len], index, order, index.min(largest) | 1);
            }
            for index in 0..entries {
                assert_eq!(refcount(&block, index, order), Some(index.min(largest) | 1), "order {order} index {index}");
            }
        }
    }
}
