//! Where the blocks of a file are: in extents, or in the maps of ext2 and ext3.

use crate::bytes::{le16, le32};
use crate::error::{Error, Result};
use crate::files::ext::volume::{Inode, Volume, crc32c};

const EXTENT_MAGIC: u16 = 0xf30a;

/// The header of a node and each of its entries have this many bytes.
const EXTENT_BYTES: usize = 12;

/// Trees of Linux are not deeper.
const MAX_DEPTH: u16 = 5;

/// An extent that is longer has room that was set aside and never written.
const MAX_WRITTEN_BLOCKS: u16 = 0x8000;

/// Files have fewer blocks than this.
const MAX_FILE_BLOCKS: u64 = 1 << 32;

/// The first pointers of a map lead to blocks of the file.
const DIRECT: u64 = 12;

/// Blocks of a file that follow each other on the disk as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The first block, or nothing for what is zero.
    pub(super) start: Option<u64>,
    /// How many blocks, never none.
    pub(super) count: u64,
}

impl Volume {
    /// Where the blocks of a file are from number `block` on.
    pub(super) fn run(&self, file: &Inode, block: u64) -> Result<Run> {
        if block >= MAX_FILE_BLOCKS {
            return Err(damaged(file, format!("it has no block {block}")));
        }
        let run = if file.has_extents() { self.extent(file, block)? } else { self.mapped(file, block)? };
        match run.start {
            Some(start) if !self.has(start, run.count) => {
                Err(damaged(file, format!("it has {} blocks at {start}, beyond the end", run.count)))
            }
            _ => Ok(run),
        }
    }

    fn extent(&self, file: &Inode, block: u64) -> Result<Run> {
        let mut node = file.map.to_vec();
        let mut expected = None;
        let mut end = MAX_FILE_BLOCKS;
        loop {
            let (depth, entries) =
                self.node(&node).ok_or_else(|| damaged(file, "a node of its tree is none".into()))?;
            if expected.is_some_and(|expected| expected != depth) || depth > MAX_DEPTH {
                return Err(damaged(file, format!("a node of its tree has the depth {depth}")));
            }
            let first = |entry: &[u8]| le32(entry, 0).map_or(0, u64::from);
            let after = entries.chunks_exact(EXTENT_BYTES).map(first).filter(|first| *first > block).min();
            end = end.min(after.unwrap_or(end));
            let entry = entries.chunks_exact(EXTENT_BYTES).rfind(|entry| first(entry) <= block);
            let hole = Run { start: None, count: end - block };
            let Some(entry) = entry else { return Ok(hole) };
            let short = || damaged(file, "a node of its tree is cut short".into());
            if depth > 0 {
                let child =
                    u64::from(le16(entry, 8).ok_or_else(short)?) << 32 | u64::from(le32(entry, 4).ok_or_else(short)?);
                node = self.table(file, child)?;
                self.check_node(file, &node)?;
                expected = Some(depth - 1);
                continue;
            }
            let length = le16(entry, 4).ok_or_else(short)?;
            let start =
                u64::from(le16(entry, 6).ok_or_else(short)?) << 32 | u64::from(le32(entry, 8).ok_or_else(short)?);
            let is_written = length <= MAX_WRITTEN_BLOCKS;
            let length = u64::from(if is_written { length } else { length - MAX_WRITTEN_BLOCKS });
            let skipped = block - first(entry);
            if skipped >= length {
                return Ok(hole);
            }
            let count = (length - skipped).min(hole.count);
            return Ok(Run { start: is_written.then(|| start.saturating_add(skipped)), count });
        }
    }

    /// The depth of a node and the bytes of its entries.
    fn node<'a>(&self, bytes: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let count = usize::from(le16(bytes, 2)?);
        let is_node = le16(bytes, 0)? == EXTENT_MAGIC && count <= usize::from(le16(bytes, 4)?);
        let entries = bytes.get(EXTENT_BYTES..EXTENT_BYTES + count * EXTENT_BYTES)?;
        is_node.then_some((le16(bytes, 6)?, entries))
    }

    fn check_node(&self, file: &Inode, bytes: &[u8]) -> Result<()> {
        if !self.has_checksums() {
            return Ok(());
        }
        let end = EXTENT_BYTES + usize::from(le16(bytes, 4).unwrap_or_default()) * EXTENT_BYTES;
        let sums = bytes.get(..end).zip(le32(bytes, end)).map(|(bytes, stored)| (stored, crc32c(file.seed, bytes)));
        match sums {
            Some((stored, found)) if stored == found => Ok(()),
            Some((stored, found)) => {
                Err(damaged(file, format!("the checksum of a node is {stored:#010x}, expected {found:#010x}")))
            }
            None => Err(damaged(file, "a node of its tree is longer than a block".into())),
        }
    }

    fn mapped(&self, file: &Inode, block: u64) -> Result<Run> {
        if block < DIRECT {
            return Ok(self.pointers(file.map.get(..48).unwrap_or_default(), block));
        }
        let pointers = self.block_size() / 4;
        let mut rest = block - DIRECT;
        // Three pointers lead to tables, to tables of tables, and once more.
        for depth in 1..=3 {
            let mut span = pointers.pow(depth);
            if rest >= span {
                rest -= span;
                continue;
            }
            let mut place = 44 + 4 * depth as usize;
            let mut table = file.map.to_vec();
            for _ in 0..depth {
                let pointer = le32(&table, place).map_or(0, u64::from);
                if pointer == 0 {
                    return Ok(Run { start: None, count: span - rest });
                }
                table = self.table(file, pointer)?;
                span /= pointers;
                place = usize::try_from(rest / span * 4).unwrap_or(usize::MAX);
                if span > 1 {
                    rest %= span;
                }
            }
            return Ok(self.pointers(&table, rest));
        }
        Err(damaged(file, format!("its map has no place for block {block}")))
    }

    /// What follows each other from the pointer with this number on.
    fn pointers(&self, table: &[u8], from: u64) -> Run {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let mut pointers = table.as_chunks().0.iter().skip(from).map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
        let first = pointers.next().unwrap_or_default();
        let step = u64::from(first != 0);
        let more = (1..).zip(pointers).take_while(|(number, pointer)| *pointer == first + number * step).count();
        Run { start: (first != 0).then_some(first), count: 1 + more as u64 }
    }

    /// A block that says where others are.
    fn table(&self, file: &Inode, block: u64) -> Result<Vec<u8>> {
        if !self.has(block, 1) {
            return Err(damaged(file, format!("a table of its blocks is said to be in block {block}")));
        }
        let mut bytes = vec![0; usize::try_from(self.block_size()).unwrap_or_default()];
        self.read(block, 0, &mut bytes)?;
        Ok(bytes)
    }
}

fn damaged(file: &Inode, what: String) -> Error {
    Error::corrupt(format!("inode {}: {what}", file.number)).at(file.place)
}
