//! Who uses which cluster of the file: finding free clusters, taking and giving back (QEMU docs/interop/qcow2,
//! "Host cluster management").

use alloc::vec;
use alloc::vec::Vec;

use crate::cache::Level;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, announce};
use crate::formats::qcow2::header::{MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES};
use crate::formats::qcow2::health::{hex, impossible, prevented};
use crate::formats::qcow2::table::{refcount, refcount_place, set_refcount, word};
use crate::formats::qcow2::{L2_TABLE, PIECE_BYTES, Qcow2, REFCOUNT_BLOCK, REFCOUNT_TABLE};
use crate::node::{Range, ReadFlags, WriteFlags};
use crate::sync::LockGuard;

/// What clusters are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An L2 table.
    L2Table,
    /// Compressed data.
    Compressed,
    /// Guest data, or another table.
    Data,
}

impl Purpose {
    /// What an allocation at the place of the header is called, if that is noticed before anything is written.
    fn name(self) -> Option<&'static str> {
        match self {
            Purpose::L2Table => Some("L2 table"),
            Purpose::Compressed => Some("compressed cluster"),
            Purpose::Data => None,
        }
    }
}

/// A cluster that lost a reference.
#[derive(Clone, Copy, Debug)]
struct Freed {
    host: u64,
    is_guest: bool,
}

/// Place of the refcount table, where to look for free clusters, and what waits to be given back.
#[derive(Debug)]
pub(super) struct Refcounts {
    table_offset: u64,
    table_clusters: u64,
    /// No cluster before this index is free.
    first_free: u64,
    /// Where the next compressed cluster goes: behind the one before, in a host cluster that they share. 0 if nowhere.
    compressed_end: u64,
    /// Clusters that nothing refers to any more, once the tables that say so are on disk.
    unreferenced: Vec<Freed>,
    /// Whether free clusters are given back to the host, if that is not as usual.
    pass_discards: Option<bool>,
}

impl Refcounts {
    pub(super) fn new(table_offset: u64, table_clusters: u64) -> Self {
        Refcounts {
            table_offset,
            table_clusters,
            first_free: 0,
            compressed_end: 0,
            unreferenced: Vec::new(),
            pass_discards: None,
        }
    }

    /// Says whether clusters that become free from now on are given back to the host; `None` for as usual.
    pub(super) fn pass_discards(&mut self, pass: Option<bool>) {
        self.pass_discards = pass;
    }

    /// Notes that the refcount structure is another one now.
    pub(super) fn replace(&mut self, table_offset: u64, table_clusters: u64) {
        *self = Refcounts::new(table_offset, table_clusters);
    }

    /// Looks for free clusters from the start again.
    pub(super) fn look_again(&mut self) {
        self.first_free = 0;
        self.compressed_end = 0;
    }

    /// Offset and clusters of the refcount table.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.table_offset, self.table_clusters)
    }

    /// Notes that the cluster at `host`, which holds a table, lost a reference.
    pub(super) fn release(&mut self, host: u64) {
        self.unreferenced.push(Freed { host, is_guest: false });
    }

    /// Notes that the cluster at `host`, which holds guest data, lost a reference.
    pub(super) fn release_data(&mut self, host: u64) {
        self.unreferenced.push(Freed { host, is_guest: true });
    }

    /// How many clusters wait to be given back.
    pub(super) fn count_unreferenced(&self) -> u64 {
        self.unreferenced.len() as u64
    }

    pub(super) fn has_unreferenced(&self) -> bool {
        !self.unreferenced.is_empty()
    }
}

impl Qcow2 {
    /// Refcounts in a refcount block.
    pub(super) fn refcounts_per_block(&self) -> u64 {
        (self.header.cluster.size() * 8) >> self.refcount_order()
    }

    /// Offset of the refcount block with that index; 0 if there is none. Loads what it needs.
    pub(super) async fn block_offset(&self, refcounts: &Refcounts, index: u64) -> Result<u64> {
        let entries = (refcounts.table_clusters << self.header.cluster.bits()) / 8;
        if index >= entries {
            return Ok(0);
        }
        let (at, within) = self.load_table_piece(refcounts, index).await?;
        let entry = self.cache.peek(at, |table| word(table, within)).flatten().unwrap_or(0);
        if self.header.cluster.is_aligned(entry) && entry < MAX_HOST_OFFSET {
            return Ok(entry);
        }
        let what = alloc::format!("Refblock offset {} unaligned (reftable index: {})", hex(entry), hex(index));
        Err(impossible(what, entry, "a multiple of the cluster size", refcounts.table_offset + index * 8))
    }

    /// The refcount that is stored for the cluster at `host`.
    pub(super) async fn stored_refcount(&self, host: u64) -> Result<u64> {
        let refcounts = self.lock_refcounts().await;
        let cluster = host >> self.header.cluster.bits();
        let block = self.block_offset(&refcounts, cluster / self.refcounts_per_block()).await?;
        if block == 0 {
            return Ok(0);
        }
        self.load_block(block).await?;
        let (index, order) = (cluster % self.refcounts_per_block(), self.refcount_order());
        Ok(self.cache.peek(block, |bytes| refcount(bytes, index, order)).flatten().unwrap_or(0))
    }

    /// How many clusters of the file are referred to, counted until there are `enough`.
    pub(super) async fn count_referenced(&self, enough: u64) -> Result<u64> {
        let refcounts = self.lock_refcounts().await;
        let (per_block, order) = (self.refcounts_per_block(), self.refcount_order());
        let clusters = self.header.cluster.count(self.file.info().length);
        let mut found = 0;
        for index in 0..clusters.div_ceil(per_block) {
            let block = self.block_offset(&refcounts, index).await?;
            if block != 0 {
                self.load_block(block).await?;
                let entries = (clusters - index * per_block).min(per_block);
                let used =
                    |bytes: &[u8]| (0..entries).filter(|entry| refcount(bytes, *entry, order) != Some(0)).count();
                found += self.cache.peek(block, used).unwrap_or(0) as u64;
            }
            if found >= enough {
                break;
            }
            // All of them at once may be more than the cache is meant to keep.
            self.cache.release();
        }
        Ok(found)
    }

    async fn load_table_piece(&self, refcounts: &Refcounts, index: u64) -> Result<(u64, usize)> {
        let bytes = refcounts.table_clusters << self.header.cluster.bits();
        let piece = index * 8 / PIECE_BYTES * PIECE_BYTES;
        let at = refcounts.table_offset + piece;
        let len = (bytes - piece).min(PIECE_BYTES) as usize;
        self.cache.hold(&*self.file, at, len, REFCOUNT_TABLE).await?;
        Ok((at, ((index * 8 - piece) / 8) as usize))
    }

    pub(super) async fn load_block(&self, at: u64) -> Result<()> {
        self.cache.hold(&*self.file, at, self.header.cluster.size() as usize, REFCOUNT_BLOCK).await
    }

    /// The block for the refcounts of block `index`, made if there is none.
    async fn ensure_block(&self, refcounts: &mut Refcounts, index: u64) -> Result<u64> {
        let at = self.block_offset(refcounts, index).await?;
        if at != 0 {
            self.load_block(at).await?;
            return Ok(at);
        }
        let entries = (refcounts.table_clusters << self.header.cluster.bits()) / 8;
        if index >= entries {
            self.grow_table(refcounts, index).await?;
            let at = self.block_offset(refcounts, index).await?;
            if at != 0 {
                self.load_block(at).await?;
                return Ok(at);
            }
        }
        // Without a block every cluster it would describe is free: the block takes the first of them.
        let at = (index * self.refcounts_per_block()) << self.header.cluster.bits();
        if at == 0 {
            return Err(prevented("Preventing invalid allocation of refcount block at offset 0".into(), at));
        }
        self.check_overlap(Range::new(at, self.header.cluster.size()))?;
        self.add_block(refcounts, index, at, self.block_with_used(1)).await?;
        Ok(at)
    }

    /// Links a new block at `at` for the refcounts of block `index`.
    async fn add_block(&self, refcounts: &Refcounts, index: u64, at: u64, block: Vec<u8>) -> Result<()> {
        let (piece, within) = self.load_table_piece(refcounts, index).await?;
        self.cache.insert(at, block.into_boxed_slice(), REFCOUNT_BLOCK);
        self.metadata.add_block(at);
        self.cache.modify(piece, within * 8, 8, |place| place.copy_from_slice(&at.to_be_bytes()));
        Ok(())
    }

    /// A block in which the first clusters have one user each, at most as many as it describes.
    fn block_with_used(&self, used: u64) -> Vec<u8> {
        let order = self.refcount_order();
        let mut block = vec![0; self.header.cluster.size() as usize];
        for entry in 0..used.min(self.refcounts_per_block()) {
            let (start, len) = refcount_place(entry, order);
            if let Some(place) = block.get_mut(start..start + len) {
                set_refcount(place, entry, order, 1);
            }
        }
        block
    }

    /// How many new blocks it takes to describe themselves and `count` clusters after them.
    fn blocks_for(&self, count: u64) -> u64 {
        let per_block = self.refcounts_per_block();
        let mut blocks = 1;
        while blocks * per_block < blocks + count {
            blocks += 1;
        }
        blocks
    }

    /// Makes the refcount table large enough for block `index`: a new table, described by blocks of its own, in space
    /// that no block described before; then the header points to it.
    async fn grow_table(&self, refcounts: &mut Refcounts, index: u64) -> Result<()> {
        let cluster = self.header.cluster;
        let per_block = self.refcounts_per_block();
        let old_bytes = refcounts.table_clusters << cluster.bits();
        let first_block = old_bytes / 8;
        let needed = index + 2;
        let wanted = (first_block + first_block / 2).max(needed);
        let table_clusters = cluster.count(wanted * 8);
        // The new clusters hold `blocks` refcount blocks and then the table; the blocks describe all of them.
        let blocks = self.blocks_for(table_clusters);
        let table_bytes = table_clusters << cluster.bits();
        let start = (first_block * per_block) << cluster.bits();
        let end = start + ((blocks + table_clusters) << cluster.bits());
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES || end > MAX_HOST_OFFSET || first_block + blocks > table_bytes / 8 {
            return Err(Error::new(ErrorKind::TooLarge, "the refcount table cannot grow beyond 8 MiB"));
        }
        self.check_overlap(Range::new(start, end - start))?;
        announce(&*self.file, Event::ReftableGrow).await?;
        // The new table is made from the old one on disk, so late refcounts have to be there too.
        self.write_back_from(refcounts, REFCOUNT_BLOCK).await?;
        let mut table = vec![0; table_bytes as usize];
        if let Some(old) = table.get_mut(..old_bytes as usize) {
            self.file.read(refcounts.table_offset, old, ReadFlags::default()).await?;
        }
        for block in 0..blocks {
            let at = start + (block << cluster.bits());
            let entry = (first_block + block) as usize * 8;
            if let Some(place) = table.get_mut(entry..entry + 8) {
                place.copy_from_slice(&at.to_be_bytes());
            }
            let bytes = self.block_with_used((blocks + table_clusters).saturating_sub(block * per_block));
            announce(&*self.file, Event::RefblockAllocWriteBlocks).await?;
            self.file.write(at, &bytes, WriteFlags::default()).await?;
        }
        let table_offset = start + (blocks << cluster.bits());
        announce(&*self.file, Event::RefblockAllocWriteTable).await?;
        self.file.write(table_offset, &table, WriteFlags::default()).await?;
        self.file.flush().await?;
        let mut pointer = [0; 12];
        pointer[..8].copy_from_slice(&table_offset.to_be_bytes());
        pointer[8..].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        announce(&*self.file, Event::RefblockAllocSwitchTable).await?;
        self.file.write(48, &pointer, WriteFlags::default()).await?;
        // From here on the new table counts, even if the flush fails: nothing may go to the old one any more.
        for block in 0..blocks {
            self.metadata.add_block(start + (block << cluster.bits()));
        }
        for piece in (0..old_bytes).step_by(PIECE_BYTES as usize) {
            self.cache.forget(refcounts.table_offset + piece);
        }
        for old in 0..refcounts.table_clusters {
            refcounts.release(refcounts.table_offset + (old << cluster.bits()));
        }
        refcounts.table_offset = table_offset;
        refcounts.table_clusters = table_clusters;
        self.geometry.lock().refcount_table = Range::new(table_offset, table_bytes);
        self.file.flush().await
    }

    /// Takes up to `wanted` free clusters in a row and gives their offset and number.
    pub(super) async fn take_clusters(
        &self,
        refcounts: &mut Refcounts,
        wanted: u64,
        purpose: Purpose,
    ) -> Result<(u64, u64)> {
        announce(&*self.file, Event::ClusterAlloc).await?;
        let per_block = self.refcounts_per_block();
        let order = self.refcount_order();
        let cluster = self.header.cluster;
        loop {
            let index = refcounts.first_free;
            if index >= MAX_HOST_OFFSET >> cluster.bits() {
                return Err(Error::new(ErrorKind::TooLarge, "no host cluster below 2^56 is free"));
            }
            let block = self.ensure_block(refcounts, index / per_block).await?;
            if refcounts.first_free < index {
                // Growing the table gave clusters back.
                continue;
            }
            let first = index % per_block;
            let run = self.cache.peek(block, |bytes| {
                let is_free = |entry: &u64| refcount(bytes, *entry, order) == Some(0);
                let start = (first..per_block).find(|entry| is_free(entry))?;
                let end = (start + 1..per_block.min(start + wanted)).take_while(is_free).last().unwrap_or(start);
                Some((start, end - start + 1))
            });
            let Some((start, count)) = run.flatten() else {
                refcounts.first_free = (index / per_block + 1) * per_block;
                continue;
            };
            let taken = index - first + start;
            let host = taken << cluster.bits();
            if let (0, Some(what)) = (host, purpose.name()) {
                let text = alloc::format!("Preventing invalid allocation of {what} at offset 0");
                return Err(prevented(text, host));
            }
            self.check_overlap(Range::new(host, count << cluster.bits()))?;
            self.set_in_block(block, start, count, 1);
            refcounts.first_free = taken + count;
            return Ok((host, count));
        }
    }

    /// Takes exactly `count` free clusters in a row. None is at offset 0.
    pub(super) async fn take_contiguous(&self, refcounts: &mut Refcounts, count: u64) -> Result<u64> {
        if count == 0 {
            return Ok(0);
        }
        if count >= self.refcounts_per_block() {
            // A new block takes the first cluster of those it describes, so no run gets that long by itself.
            return self.take_beyond(refcounts, count).await;
        }
        let mut rejected = Vec::new();
        let mut start = None;
        let mut have = 0;
        let outcome = loop {
            let (host, got) = match self.take_clusters(refcounts, count - have, Purpose::Data).await {
                Ok(taken) => taken,
                Err(error) => break Err(error),
            };
            match start {
                Some(first) if first + (have << self.header.cluster.bits()) == host => have += got,
                _ => {
                    if let Some(first) = start {
                        rejected.push((first, have));
                    }
                    start = Some(host);
                    have = got;
                }
            }
            if have == count {
                break Ok(start.unwrap_or(host));
            }
        };
        for (host, count) in rejected {
            for cluster in 0..count {
                self.drop_reference(refcounts, host + (cluster << self.header.cluster.bits())).await?;
            }
        }
        outcome
    }

    /// Takes `len` bytes, less than a cluster, for compressed data. They share host clusters with those taken before,
    /// and each host cluster they touch is referred to once more.
    pub(super) async fn take_bytes(&self, refcounts: &mut Refcounts, len: u64) -> Result<u64> {
        announce(&*self.file, Event::ClusterAllocBytes).await?;
        let cluster = self.header.cluster;
        let shared = refcounts.compressed_end;
        let room = if shared == 0 { 0 } else { cluster.size() - cluster.within(shared) };
        let can_share = room > 0 && self.can_be_more(self.reference_count(refcounts, shared).await?);
        let at = if can_share && len <= room {
            self.add_reference(refcounts, shared).await?;
            shared
        } else {
            let (fresh, _) = self.take_clusters(refcounts, 1, Purpose::Compressed).await?;
            if can_share && fresh == shared + room {
                self.add_reference(refcounts, shared).await?;
                shared
            } else {
                fresh
            }
        };
        let end = at + len;
        refcounts.compressed_end = if cluster.is_aligned(end) { 0 } else { end };
        Ok(at)
    }

    /// Whether a cluster in use that is referred to so often can be referred to once more.
    fn can_be_more(&self, count: u64) -> bool {
        let bits = 1u32 << self.refcount_order();
        let largest = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        (1..largest).contains(&count)
    }

    /// The refcount of the cluster that holds `host`, and where it is: the offset of its block, which is then in memory,
    /// or 0, and the index in it.
    async fn find_refcount(&self, refcounts: &Refcounts, host: u64) -> Result<(u64, u64, u64)> {
        let index = host >> self.header.cluster.bits();
        let entry = index % self.refcounts_per_block();
        let block = self.block_offset(refcounts, index / self.refcounts_per_block()).await?;
        if block == 0 {
            return Ok((0, 0, entry));
        }
        self.load_block(block).await?;
        let order = self.refcount_order();
        let count = self.cache.peek(block, |bytes| refcount(bytes, entry, order)).flatten();
        Ok((count.unwrap_or(0), block, entry))
    }

    /// The refcount of the cluster that holds `host`.
    pub(super) async fn reference_count(&self, refcounts: &Refcounts, host: u64) -> Result<u64> {
        Ok(self.find_refcount(refcounts, host).await?.0)
    }

    /// Adds a reference to the cluster that holds `host`, which is in use already, and gives how many there are then.
    pub(super) async fn add_reference(&self, refcounts: &mut Refcounts, host: u64) -> Result<u64> {
        let (count, block, entry) = self.find_refcount(refcounts, host).await?;
        if !self.can_be_more(count) {
            return Err(Error::new(
                ErrorKind::Invalid,
                alloc::format!("a cluster with refcount {count} cannot be referred to once more"),
            )
            .at_offset(host));
        }
        self.set_in_block(block, entry, 1, count + 1);
        Ok(count + 1)
    }

    /// Takes `count` clusters in a row beyond everything that is described, behind the blocks that describe them.
    async fn take_beyond(&self, refcounts: &mut Refcounts, count: u64) -> Result<u64> {
        let cluster = self.header.cluster;
        let per_block = self.refcounts_per_block();
        let blocks = self.blocks_for(count);
        let first = loop {
            let entries = (refcounts.table_clusters << cluster.bits()) / 8;
            let mut first = entries;
            while first > 0 && self.block_offset(refcounts, first - 1).await? == 0 {
                first -= 1;
            }
            if first + blocks <= entries {
                break first;
            }
            self.grow_table(refcounts, entries.max(first + blocks)).await?;
        };
        let start = (first * per_block) << cluster.bits();
        let len = (blocks + count) << cluster.bits();
        if start + len > MAX_HOST_OFFSET {
            return Err(Error::new(ErrorKind::TooLarge, "no host cluster below 2^56 is free"));
        }
        self.check_overlap(Range::new(start, len))?;
        for block in 0..blocks {
            let used = self.block_with_used((blocks + count).saturating_sub(block * per_block));
            self.add_block(refcounts, first + block, start + (block << cluster.bits()), used).await?;
        }
        Ok(start + (blocks << cluster.bits()))
    }

    /// Unlinks refcount blocks that count nothing but themselves. Returns whether there were any.
    pub(super) async fn drop_refcount_blocks(&self, refcounts: &mut Refcounts) -> Result<bool> {
        let (per_block, order) = (self.refcounts_per_block(), self.refcount_order());
        let entries = (refcounts.table_clusters << self.header.cluster.bits()) / 8;
        let mut any = false;
        for index in (0..entries).rev() {
            let block = self.block_offset(refcounts, index).await?;
            if block == 0 {
                continue;
            }
            self.load_block(block).await?;
            let own =
                (block >> self.header.cluster.bits()).checked_sub(index * per_block).filter(|own| *own < per_block);
            let others = |bytes: &[u8]| {
                (0..per_block).any(|entry| Some(entry) != own && refcount(bytes, entry, order) != Some(0))
            };
            if self.cache.peek(block, others).unwrap_or(true) {
                self.cache.release();
                continue;
            }
            let (piece, within) = self.load_table_piece(refcounts, index).await?;
            self.cache.modify(piece, within * 8, 8, |place| place.fill(0));
            self.cache.forget(block);
            self.metadata.remove(block);
            if own.is_none() {
                refcounts.release(block);
            }
            refcounts.look_again();
            any = true;
        }
        Ok(any)
    }

    /// Where the last cluster ends that is in use.
    pub(super) async fn end_of_use(&self, refcounts: &Refcounts) -> Result<u64> {
        let (per_block, order) = (self.refcounts_per_block(), self.refcount_order());
        let entries = (refcounts.table_clusters << self.header.cluster.bits()) / 8;
        for index in (0..entries).rev() {
            let block = self.block_offset(refcounts, index).await?;
            if block == 0 {
                continue;
            }
            self.load_block(block).await?;
            let last = self
                .cache
                .peek(block, |bytes| (0..per_block).rev().find(|entry| refcount(bytes, *entry, order) != Some(0)));
            self.cache.release();
            if let Some(last) = last.flatten() {
                return Ok((index * per_block + last + 1) << self.header.cluster.bits());
            }
        }
        Ok(0)
    }

    fn set_in_block(&self, block: u64, first: u64, count: u64, value: u64) {
        let order = self.refcount_order();
        let (start, _) = refcount_place(first, order);
        let (last, len) = refcount_place(first + count - 1, order);
        self.cache.modify(block, start, last + len - start, |places| {
            for entry in first..first + count {
                let (place, len) = refcount_place(entry, order);
                if let Some(place) = places.get_mut(place - start..place - start + len) {
                    set_refcount(place, entry, order, value);
                }
            }
        });
    }

    /// Takes one reference from the cluster at `host`, at once: nothing on disk may refer to it any more. Returns whether
    /// it was the last.
    pub(super) async fn drop_reference(&self, refcounts: &mut Refcounts, host: u64) -> Result<bool> {
        announce(&*self.file, Event::ClusterFree).await?;
        let index = host >> self.header.cluster.bits();
        let (count, block, entry) = self.find_refcount(refcounts, host).await?;
        if count == 0 {
            return Err(
                Error::new(ErrorKind::Corrupt, "a cluster in use has refcount 0, expected at least 1").at_offset(host)
            );
        }
        self.set_in_block(block, entry, 1, count - 1);
        if count == 1 {
            refcounts.first_free = refcounts.first_free.min(index);
            if refcounts.compressed_end >> self.header.cluster.bits() == index {
                refcounts.compressed_end = 0;
            }
            self.cache.forget(host);
            self.metadata.remove(host);
        }
        Ok(count == 1)
    }

    /// Waits until nobody else changes the mapping.
    pub(super) async fn lock_refcounts(&self) -> LockGuard<'_, Refcounts> {
        let refcounts = self.refcounts.lock().await;
        self.cache.release();
        refcounts
    }

    /// Writes back all metadata in order, then gives back what nothing refers to any more.
    pub(super) async fn write_back(&self, refcounts: &mut Refcounts) -> Result<()> {
        let from = if self.is_lazy() { L2_TABLE } else { REFCOUNT_BLOCK };
        self.write_back_from(refcounts, from).await
    }

    /// Writes back all metadata, late refcounts too, until the file says all there is to say.
    pub(super) async fn write_back_all(&self, refcounts: &mut Refcounts) -> Result<()> {
        loop {
            self.write_back_from(refcounts, REFCOUNT_BLOCK).await?;
            if !refcounts.has_unreferenced() && !self.cache.is_dirty() {
                return Ok(());
            }
        }
    }

    async fn write_back_from(&self, refcounts: &mut Refcounts, from: Level) -> Result<()> {
        self.cache.write_back(&*self.file, self.data.as_deref(), from).await?;
        let mut free: Vec<u64> = Vec::new();
        while let Some(Freed { host, is_guest }) = refcounts.unreferenced.last().copied() {
            let dropped = self.drop_reference(refcounts, host).await;
            refcounts.unreferenced.pop();
            let usual = if is_guest { self.settings.pass_discard_request } else { self.settings.pass_discard_other };
            if dropped? && refcounts.pass_discards.unwrap_or(usual) {
                free.push(host);
            }
        }
        self.discard_clusters(free).await;
        Ok(())
    }

    /// Gives the host file's space of free clusters back, neighbours together. Where that fails, nothing is lost.
    async fn discard_clusters(&self, mut free: Vec<u64>) {
        free.sort_unstable();
        let size = self.header.cluster.size();
        let mut run = Range::default();
        for host in free {
            if run.len > 0 && run.end() == host {
                run.len += size;
                continue;
            }
            if run.len > 0 {
                let _ = self.file.discard(run).await;
            }
            run = Range::new(host, size);
        }
        if run.len > 0 {
            let _ = self.file.discard(run).await;
        }
    }
}
