//! Several disks, one behind the other, as one that is only read.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::error::Result;
use crate::filters::contents;
use crate::node::{Extent, Node, NodeInfo, Range, ReadFlags, Want, check_bounds};
use crate::op::Op;

/// A node over disks that follow each other.
pub struct Concat {
    /// Each with where it begins.
    parts: Vec<(u64, Arc<dyn Node>)>,
    length: u64,
}

impl core::fmt::Debug for Concat {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Concat").field("parts", &self.parts.len()).field("length", &self.length).finish()
    }
}

impl Concat {
    /// A node over `disks` in this order.
    pub fn new(disks: impl IntoIterator<Item = Arc<dyn Node>>) -> Self {
        let mut length = 0u64;
        let mut parts = Vec::new();
        for disk in disks {
            let start = length;
            length = length.saturating_add(disk.info().length);
            parts.push((start, disk));
        }
        Concat { parts, length }
    }

    /// The disk that has the byte at `at`, where it begins, and how many bytes follow there.
    fn part(&self, at: u64) -> Option<(u64, &Arc<dyn Node>, u64)> {
        let index = self.parts.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, disk) = self.parts.get(index)?;
        let end = self.parts.get(index + 1).map_or(self.length, |(next, _)| *next);
        Some((*start, disk, end.saturating_sub(at)))
    }

    async fn read_parts(&self, mut at: u64, mut into: &mut [u8], flags: ReadFlags) -> Result<()> {
        check_bounds(at, into.len() as u64, self.length)?;
        while !into.is_empty() {
            let Some((start, disk, left)) = self.part(at) else { break };
            let len = left.min(into.len() as u64) as usize;
            let (part, rest) = into.split_at_mut(len);
            disk.read(at - start, part, flags).await?;
            into = rest;
            at += len as u64;
        }
        Ok(())
    }

    async fn status(&self, range: Range, want: Want) -> Result<Extent> {
        check_bounds(range.start, range.len, self.length)?;
        let Some((start, disk, left)) = self.part(range.start) else {
            return Ok(Extent { len: range.len, state: crate::State::Zero, host: None });
        };
        let found = contents(disk, Range::new(range.start - start, range.len.min(left)), want).await?;
        // It has no place in a child of its own.
        Ok(Extent { host: None, ..found })
    }
}

impl Node for Concat {
    fn info(&self) -> NodeInfo {
        NodeInfo { read_only: true, ..NodeInfo::plain(self.length) }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        Op::future(self.status(range, want))
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        Op::future(self.read_parts(at, into, flags))
    }

    fn is_disk(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::op::block_on;

    #[test]
    fn reads_cross_from_one_disk_to_the_next() {
        let disks = [1u8, 2, 3].map(|byte| Memory::new(alloc::vec![byte; 100]) as Arc<dyn Node>);
        let node = Concat::new(disks);
        assert_eq!(node.info().length, 300);
        let mut buffer = [0; 150];
        block_on(node.read(75, &mut buffer, ReadFlags::default())).unwrap();
        assert_eq!(buffer[..25], [1; 25]);
        assert_eq!(buffer[25..125], [2; 100]);
        assert_eq!(buffer[125..], [3; 25]);
        assert!(block_on(node.read(200, &mut buffer, ReadFlags::default())).is_err());
        assert_eq!(block_on(node.map(Range::new(150, 150), Want::Allocation)).unwrap().len, 50);
    }
}
