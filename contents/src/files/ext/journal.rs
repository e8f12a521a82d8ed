//! What was committed to the journal and has not reached its place yet (jbd2).

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::bytes::{be16, be32, has, part};
use crate::error::{Error, Result};
use crate::files::ext::map::Run;
use crate::files::ext::volume::{Inode, Volume, crc32c};

/// More blocks are in no journal that a Linux makes.
const MAX_BLOCKS: usize = 1 << 20;

/// The kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;

const HEADER_BYTES: usize = 12;

/// Features, of which nobody may miss one.
const REVOKES: u32 = 0x1;
const BITS_64: u32 = 0x2;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;

/// What stands in the place of blocks.
#[derive(Default)]
pub(super) struct Journal {
    blocks: BTreeMap<u64, Copy>,
}

/// A later version of a block.
struct Copy {
    /// Where it is: first a block of the journal, in the end one of the file system.
    place: u64,
    sequence: u32,
    /// Its first bytes were taken out, since they are those of a journal.
    escaped: bool,
}

struct Reader<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    /// Where the journal was found last, from which of its blocks on.
    run: Option<(u64, Run)>,
    first: u64,
    end: u64,
    features: u32,
    /// What checksums begin with, if there are any.
    seed: Option<u32>,
}

impl Journal {
    /// The bytes by which blocks of a journal are known.
    pub(super) const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

    /// Where a block is, whether its first bytes are to be put back, and for how many blocks the same is true.
    pub(super) fn find(&self, block: u64) -> (u64, bool, u64) {
        if let Some(copy) = self.blocks.get(&block) {
            return (copy.place, copy.escaped, 1);
        }
        let next = self.blocks.range((Bound::Excluded(block), Bound::Unbounded)).next();
        (block, false, next.map_or(u64::MAX, |(next, _)| next - block))
    }

    pub(super) fn load(volume: &Volume, inode: &Inode) -> Result<Self> {
        let mut reader = Reader {
            volume,
            inode,
            run: None,
            first: 0,
            end: inode.size / volume.block_size(),
            features: 0,
            seed: None,
        };
        let damaged = |what: String| Error::corrupt(format!("the journal: {what}")).at(inode.place);
        let start = reader.block(0)?;
        let word = |at: usize| be32(&start, at).ok_or_else(|| damaged("its superblock is cut short".into()));
        if !has(&start, 0, &Self::MAGIC) || !SUPERBLOCKS.contains(&word(4)?) {
            return Err(damaged("it has no superblock".into()));
        }
        if u64::from(word(0xc)?) != volume.block_size() {
            return Err(damaged(format!("its blocks have {} bytes, not {}", word(0xc)?, volume.block_size())));
        }
        // The first version has no features.
        reader.features = if word(4)? == SUPERBLOCKS[1] { word(0x28)? } else { 0 };
        let unknown = reader.features & !(REVOKES | BITS_64 | CHECKSUMS_2 | CHECKSUMS_3);
        if unknown != 0 {
            let text = format!("the journal has features that are not supported: {unknown:#x}");
            return Err(Error::unsupported(text));
        }
        if reader.features & (CHECKSUMS_2 | CHECKSUMS_3) != 0 {
            reader.seed = Some(crc32c(!0, start.get(0x30..0x40).unwrap_or_default()));
        }
        reader.end = reader.end.min(u64::from(word(0x10)?));
        reader.first = u64::from(word(0x14)?);
        let (sequence, begin) = (word(0x18)?, u64::from(word(0x1c)?));
        if begin == 0 {
            return Ok(Journal::default());
        }
        if !(1..reader.end).contains(&reader.first) || !(reader.first..reader.end).contains(&begin) {
            return Err(damaged(format!("it begins at {begin} of {} to {}", reader.first, reader.end)));
        }
        reader.replay(begin, sequence)
    }
}

impl Reader<'_> {
    fn replay(&mut self, begin: u64, sequence: u32) -> Result<Journal> {
        let mut blocks = BTreeMap::new();
        let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
        // Of the transaction that has not been committed yet.
        let (mut pending, mut revokes) = (Vec::new(), Vec::new());
        let (mut at, mut sequence) = (begin, sequence);
        let mut left = self.end - self.first;
        while left > 0 {
            let bytes = self.block(at)?;
            // What comes after the last transaction is from an earlier round.
            if !has(&bytes, 0, &Journal::MAGIC) || be32(&bytes, 8) != Some(sequence) {
                break;
            }
            let mut length = 1;
            match be32(&bytes, 4) {
                Some(DESCRIPTOR) if self.has_good_tail(&bytes) => {
                    let Some(tags) = self.tags(&bytes) else { break };
                    for (block, escaped) in tags {
                        pending.push((block, Copy { place: self.after(at, length), sequence, escaped }));
                        length += 1;
                    }
                }
                Some(REVOKE) if self.has_good_tail(&bytes) => {
                    let Some(more) = self.revokes(&bytes) else { break };
                    revokes.extend(more);
                }
                Some(COMMIT) if self.is_good(&bytes, 16) => {
                    blocks.extend(pending.drain(..));
                    revoked.extend(revokes.drain(..).map(|block| (block, sequence)));
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            if blocks.len() + pending.len() + revoked.len() + revokes.len() > MAX_BLOCKS {
                return Err(Error::over_budget(format!("the journal has more than {MAX_BLOCKS} blocks")));
            }
            at = self.after(at, length);
            left = left.saturating_sub(length);
        }
        // Sequences are counted in a circle.
        let is_later = |copy: &Copy, revoke: u32| (copy.sequence.wrapping_sub(revoke) as i32) > 0;
        blocks.retain(|block, copy: &mut Copy| revoked.get(block).is_none_or(|revoke| is_later(copy, *revoke)));
        for copy in blocks.values_mut() {
            copy.place = self.place(copy.place)?;
        }
        Ok(Journal { blocks })
    }

    /// The block of the journal that is so many blocks further.
    fn after(&self, at: u64, count: u64) -> u64 {
        self.first + (at - self.first + count) % (self.end - self.first)
    }

    fn place(&mut self, at: u64) -> Result<u64> {
        let (from, run) = match self.run {
            Some((from, run)) if (from..from.saturating_add(run.count)).contains(&at) => (from, run),
            _ => (at, self.volume.run(self.inode, at)?),
        };
        self.run = Some((from, run));
        let start = run.start.ok_or_else(|| Error::corrupt("the journal has a hole").at(self.inode.place))?;
        Ok(start + (at - from))
    }

    fn block(&mut self, at: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.volume.block_size()).unwrap_or_default()];
        let place = self.place(at)?;
        self.volume.read(place, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The blocks whose later versions follow, and whether their first bytes were taken out.
    fn tags(&self, bytes: &[u8]) -> Option<Vec<(u64, bool)>> {
        const ESCAPED: u32 = 1;
        const SAME_UUID: u32 = 2;
        const LAST: u32 = 8;
        let is_64_bit = self.features & BITS_64 != 0;
        let length = match (self.features & CHECKSUMS_3 != 0, self.features & CHECKSUMS_2 != 0) {
            (true, _) => 16,
            (_, true) => 10 + if is_64_bit { 4 } else { 0 },
            _ => 8 + if is_64_bit { 4 } else { 0 },
        };
        let mut tags = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let flags =
                if self.features & CHECKSUMS_3 != 0 { be32(bytes, at + 4)? } else { u32::from(be16(bytes, at + 6)?) };
            let high = if is_64_bit { be32(bytes, at + 8)? } else { 0 };
            tags.push((u64::from(high) << 32 | u64::from(be32(bytes, at)?), flags & ESCAPED != 0));
            at += length + if flags & SAME_UUID != 0 { 0 } else { 16 };
            if flags & LAST != 0 {
                return Some(tags);
            }
        }
    }

    /// The blocks of which no earlier version counts.
    fn revokes(&self, bytes: &[u8]) -> Option<Vec<u64>> {
        let used = bytes.get(16..usize::try_from(be32(bytes, 12)?).ok()?)?;
        Some(if self.features & BITS_64 != 0 {
            used.as_chunks().0.iter().map(|block| u64::from_be_bytes(*block)).collect()
        } else {
            used.as_chunks().0.iter().map(|block| u64::from(u32::from_be_bytes(*block))).collect()
        })
    }

    fn has_good_tail(&self, bytes: &[u8]) -> bool {
        self.is_good(bytes, bytes.len().saturating_sub(4))
    }

    /// Whether the checksum at `at` is right, if there is one.
    fn is_good(&self, bytes: &[u8], at: usize) -> bool {
        let Some(seed) = self.seed else { return true };
        let (Some(stored), Some(before)) = (part::<4>(bytes, at), bytes.get(..at)) else { return false };
        let after = bytes.get(at + 4..).unwrap_or_default();
        crc32c(crc32c(crc32c(seed, before), &[0; 4]), after) == u32::from_be_bytes(stored)
    }
}
