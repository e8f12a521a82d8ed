//! The superblock, groups and inodes, with their checksums.

use crate::bytes::{le16, le32, part};
use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::Kind;
use crate::files::ext::journal::Journal;

const SUPER: u64 = 1024;

/// Linux knows blocks of up to 64 KiB.
const MAX_BLOCK_SHIFT: u32 = 6;

/// What a file system may have that cannot be read without knowing it.
mod incompatible {
    pub(super) const TYPES_IN_DIRECTORIES: u32 = 0x2;
    pub(super) const RECOVERY: u32 = 0x4;
    pub(super) const BITS_64: u32 = 0x80;
    pub(super) const CHECKSUM_SEED: u32 = 0x2000;
    const EXTENTS: u32 = 0x40;
    /// A block that tells which machine has mounted it.
    const MOUNT_PROTECTION: u32 = 0x100;
    const FLEXIBLE_GROUPS: u32 = 0x200;
    /// Values of extended attributes in inodes.
    const LARGE_ATTRIBUTES: u32 = 0x400;
    pub(super) const LARGE_DIRECTORIES: u32 = 0x4000;
    const ENCRYPTION: u32 = 0x1_0000;
    pub(super) const KNOWN: u32 = TYPES_IN_DIRECTORIES
        | RECOVERY
        | EXTENTS
        | BITS_64
        | MOUNT_PROTECTION
        | FLEXIBLE_GROUPS
        | LARGE_ATTRIBUTES
        | CHECKSUM_SEED
        | LARGE_DIRECTORIES
        | ENCRYPTION;
}

/// Checksums in everything but file contents.
const METADATA_CHECKSUMS: u32 = 0x400;

/// An inode without what nobody asks for.
pub(super) struct Inode {
    pub(super) number: u32,
    /// Byte offset on the disk.
    pub(super) place: u64,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) modified: i64,
    flags: u32,
    /// Where its blocks are, or the target of a short link.
    pub(super) map: [u8; 60],
    /// What the checksums of its blocks begin with.
    pub(super) seed: u32,
}

impl Inode {
    pub(super) fn kind(&self) -> Kind {
        match self.mode >> 12 {
            0o10 => Kind::File,
            0o4 => Kind::Directory,
            0o12 => Kind::Link,
            _ => Kind::Other,
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & 0x800 != 0
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & 0x8_0000 != 0
    }
}

/// A file system as its superblock describes it.
pub(super) struct Volume {
    view: View,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_in_group: u32,
    inode_size: u64,
    descriptor_size: u64,
    first_descriptor: u64,
    incompatible: u32,
    /// What checksums begin with, if there are any.
    seed: Option<u32>,
    journal: Journal,
}

impl Volume {
    pub(super) fn open(view: View) -> Result<Self> {
        let mut bytes = [0; 1024];
        view.read_at(SUPER, &mut bytes)?;
        let corrupt = |what: String| Error::corrupt(what).at(view.start().saturating_add(SUPER));
        let word = |at: usize| le32(&bytes, at).ok_or_else(|| corrupt("the superblock is cut short".into()));
        let half = |at: usize| le16(&bytes, at).ok_or_else(|| corrupt("the superblock is cut short".into()));
        let (compatible, incompatible, read_only) = (word(0x5c)?, word(0x60)?, word(0x64)?);
        let unknown = incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let text = format!("the file system has features that are not supported: {unknown:#x}");
            return Err(Error::unsupported(text));
        }
        let shift = word(0x18)?;
        if shift > MAX_BLOCK_SHIFT {
            return Err(corrupt(format!("blocks of 2^({shift} + 10) bytes, more than 64 KiB")));
        }
        let block_size = 1024 << shift;
        let is_64_bit = incompatible & incompatible::BITS_64 != 0;
        let high = if is_64_bit { word(0x150)? } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(word(4)?);
        // The first version has inodes of one size.
        let inode_size = if word(0x4c)? == 0 { 128 } else { u64::from(half(0x58)?) };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return Err(corrupt(format!("inodes of {inode_size} bytes in blocks of {block_size}")));
        }
        let descriptor_size = if is_64_bit { u64::from(half(0xfe)?) } else { 32 };
        if !descriptor_size.is_power_of_two() || !(32..=block_size).contains(&descriptor_size) {
            return Err(corrupt(format!("descriptors of {descriptor_size} bytes in blocks of {block_size}")));
        }
        let inodes_in_group = word(0x28)?;
        if inodes_in_group == 0 {
            return Err(corrupt("a group has no inodes".into()));
        }
        let has_checksums = read_only & METADATA_CHECKSUMS != 0;
        if has_checksums {
            let (stored, found) = (word(0x3fc)?, crc32c(!0, &bytes[..0x3fc]));
            if stored != found {
                return Err(corrupt(format!(
                    "the checksum of the superblock is {stored:#010x}, expected {found:#010x}"
                )));
            }
        }
        let seed = match incompatible & incompatible::CHECKSUM_SEED != 0 {
            true => word(0x270)?,
            false => crc32c(!0, &bytes[0x68..0x78]),
        };
        let mut volume = Volume {
            block_size,
            blocks,
            inodes: word(0)?,
            inodes_in_group,
            inode_size,
            descriptor_size,
            first_descriptor: u64::from(word(0x14)?).saturating_add(1),
            incompatible,
            seed: has_checksums.then_some(seed),
            journal: Journal::default(),
            view: view.clone(),
        };
        const HAS_JOURNAL: u32 = 0x4;
        if compatible & HAS_JOURNAL != 0 && incompatible & incompatible::RECOVERY != 0 {
            let number = word(0xe0)?;
            if number == 0 {
                return Err(Error::unsupported("what was written last is in a journal on another device"));
            }
            volume.journal = Journal::load(&volume, &volume.inode(number)?)?;
        }
        Ok(volume)
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    pub(super) fn has_types_in_directories(&self) -> bool {
        self.incompatible & incompatible::TYPES_IN_DIRECTORIES != 0
    }

    pub(super) fn has_checksums(&self) -> bool {
        self.seed.is_some()
    }

    /// Whether this attempt cannot succeed any more for want of bytes.
    pub(super) fn lacks_bytes(&self) -> bool {
        self.view.disk().has_failed()
    }

    /// Byte offset of a block on the disk.
    pub(super) fn place(&self, block: u64) -> u64 {
        self.view.start().saturating_add(block.saturating_mul(self.block_size))
    }

    /// Whether these blocks are within the file system.
    pub(super) fn has(&self, start: u64, count: u64) -> bool {
        start > 0 && start.checked_add(count).is_some_and(|end| end <= self.blocks)
    }

    /// Reads from consecutive blocks, or what the journal has instead of them.
    pub(super) fn read(&self, block: u64, within: u64, into: &mut [u8]) -> Result<()> {
        let (mut block, mut within) = (block.saturating_add(within / self.block_size), within % self.block_size);
        let mut rest = into;
        while !rest.is_empty() {
            let (place, escaped, blocks) = self.journal.find(block);
            let there = blocks.saturating_mul(self.block_size) - within;
            let length = usize::try_from(there).map_or(rest.len(), |there| there.min(rest.len()));
            let (part, after) = rest.split_at_mut(length);
            let offset = place.checked_mul(self.block_size).and_then(|start| start.checked_add(within));
            let offset = offset.ok_or_else(|| Error::corrupt(format!("block {place} is beyond every disk")))?;
            self.view.read_at(offset, part)?;
            if escaped {
                // Journals must not have their own mark where others may stand.
                for (at, byte) in (0..).zip(Journal::MAGIC).filter(|(at, _)| *at >= within) {
                    if let Some(place) = usize::try_from(at - within).ok().and_then(|at| part.get_mut(at)) {
                        *place = byte;
                    }
                }
            }
            rest = after;
            block = block.saturating_add(blocks);
            within = 0;
        }
        Ok(())
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode> {
        let index = number.checked_sub(1).filter(|_| number <= self.inodes);
        let index = index.ok_or_else(|| Error::corrupt(format!("there is no inode {number}, only {}", self.inodes)))?;
        let table = self.inode_table(index / self.inodes_in_group)?;
        let offset = u64::from(index % self.inodes_in_group) * self.inode_size;
        let mut bytes = vec![0; usize::try_from(self.inode_size).unwrap_or_default()];
        self.read(table, offset, &mut bytes)?;
        let place = self.place(table).saturating_add(offset);
        let corrupt = |what: String| Error::corrupt(format!("inode {number}: {what}")).at(place);
        self.parse(number, place, &mut bytes)
            .ok_or_else(|| corrupt("it is cut short".into()))?
            .map_err(|(stored, found)| corrupt(format!("its checksum is {stored:#010x}, expected {found:#010x}")))
    }

    /// The block in which the inodes of a group begin.
    fn inode_table(&self, group: u32) -> Result<u64> {
        let mut bytes = vec![0; usize::try_from(self.descriptor_size).unwrap_or_default()];
        let offset = u64::from(group) * self.descriptor_size;
        self.read(self.first_descriptor, offset, &mut bytes)?;
        let place = self.place(self.first_descriptor).saturating_add(offset);
        let corrupt = |what: String| Error::corrupt(format!("group {group}: {what}")).at(place);
        let short = || corrupt("its descriptor is cut short".into());
        let low = le32(&bytes, 8).ok_or_else(short)?;
        let high = if self.descriptor_size >= 64 { le32(&bytes, 0x28).ok_or_else(short)? } else { 0 };
        let table = u64::from(high) << 32 | u64::from(low);
        if let Some(seed) = self.seed {
            let stored = le16(&bytes, 0x1e).ok_or_else(short)?;
            bytes[0x1e..0x20].fill(0);
            let found = crc32c(crc32c(seed, &group.to_le_bytes()), &bytes) & 0xffff;
            if u32::from(stored) != found {
                return Err(corrupt(format!("its checksum is {stored:#06x}, expected {found:#06x}")));
            }
        }
        if !self.has(table, 1) {
            return Err(corrupt(format!("its inodes are said to be in block {table}")));
        }
        Ok(table)
    }

    /// The fields of an inode, or the checksum that it has and the one that it should have.
    fn parse(&self, number: u32, place: u64, bytes: &mut [u8]) -> Option<Result<Inode, (u32, u32)>> {
        const CHECKSUM_LOW: usize = 0x7c;
        const CHECKSUM_HIGH: usize = 0x82;
        let extra = if bytes.len() > 128 { usize::from(le16(bytes, 0x80)?) } else { 0 };
        let seconds = i64::from(le32(bytes, 0x10)? as i32);
        // Two more bits count on after 2038.
        let epochs = if extra >= 12 { i64::from(le32(bytes, 0x88)? & 3) } else { 0 };
        let mut inode = Inode {
            number,
            place,
            mode: le16(bytes, 0)?,
            size: u64::from(le32(bytes, 4)?),
            modified: seconds + (epochs << 32),
            flags: le32(bytes, 0x20)?,
            map: part(bytes, 0x28)?,
            seed: 0,
        };
        // Others than files had something else there in the first versions.
        if inode.kind() == Kind::File || self.incompatible & incompatible::LARGE_DIRECTORIES != 0 {
            inode.size |= u64::from(le32(bytes, 0x6c)?) << 32;
        }
        let Some(seed) = self.seed else { return Some(Ok(inode)) };
        inode.seed = crc32c(crc32c(seed, &number.to_le_bytes()), &part::<4>(bytes, 0x64)?);
        let mut stored = u32::from(le16(bytes, CHECKSUM_LOW)?);
        bytes.get_mut(CHECKSUM_LOW..CHECKSUM_LOW + 2)?.fill(0);
        let is_whole = extra >= 4;
        if is_whole {
            stored |= u32::from(le16(bytes, CHECKSUM_HIGH)?) << 16;
            bytes.get_mut(CHECKSUM_HIGH..CHECKSUM_HIGH + 2)?.fill(0);
        }
        let found = crc32c(inode.seed, bytes) & if is_whole { !0 } else { 0xffff };
        Some(if stored == found { Ok(inode) } else { Err((stored, found)) })
    }

    /// Says what is wrong with the checksum in a block of a directory.
    pub(super) fn check_directory_block(&self, directory: &Inode, bytes: &[u8]) -> Result<(), String> {
        // It stands behind an entry that has no name and a type that does not exist; trees of hashes have another one.
        const MARK: [u8; 8] = [0, 0, 0, 0, 12, 0, 0, 0xde];
        let Some((rest, tail)) = bytes.split_last_chunk::<12>() else { return Ok(()) };
        if !self.has_checksums() || !tail.starts_with(&MARK) {
            return Ok(());
        }
        let (stored, found) = (le32(tail, 8).unwrap_or_default(), crc32c(directory.seed, rest));
        if stored == found {
            return Ok(());
        }
        Err(format!("the checksum of a block is {stored:#010x}, expected {found:#010x}"))
    }
}

/// CRC-32C as ext4 has it: it goes on from `seed`, and its bits are not turned around in the end.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
