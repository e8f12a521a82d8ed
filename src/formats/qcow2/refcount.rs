//! Who uses which cluster of the file: finding free clusters, taking and giving back (QEMU docs/interop/qcow2,
//! "Host cluster management").

use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::{MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, Problem};
use crate::formats::qcow2::table::{refcount, refcount_place, set_refcount, word};
use crate::formats::qcow2::{L2_TABLE, PIECE_BYTES, Qcow2, REFCOUNT_BLOCK, REFCOUNT_TABLE};
use crate::node::{Range, ReadFlags, WriteFlags};

/// Place of the refcount table, where to look for free clusters, and what waits to be given back.
#[derive(Debug)]
pub(super) struct Refcounts {
    table_offset: u64,
    table_clusters: u64,
    /// No cluster before this index is free.
    first_free: u64,
    /// Clusters that nothing refers to any more, once the tables that say so are on disk.
    unreferenced: Vec<u64>,
}

impl Refcounts {
    pub(super) fn new(table_offset: u64, table_clusters: u64) -> Self {
        Refcounts { table_offset, table_clusters, first_free: 0, unreferenced: Vec::new() }
    }

    /// Offset and clusters of the refcount table.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.table_offset, self.table_clusters)
    }

    /// Notes that the cluster at `host` lost a reference.
    pub(super) fn release(&mut self, host: u64) {
        self.unreferenced.push(host);
    }

    /// Takes everything that waits to be given back.
    pub(super) fn take_unreferenced(&mut self) -> Vec<u64> {
        core::mem::take(&mut self.unreferenced)
    }

    /// Puts back what could not be given back.
    pub(super) fn restore_unreferenced(&mut self, clusters: Vec<u64>) {
        self.unreferenced.extend(clusters);
    }

    pub(super) fn has_unreferenced(&self) -> bool {
        !self.unreferenced.is_empty()
    }
}

impl Qcow2 {
    /// Fails if a range that is about to be written as guest data holds metadata.
    pub(super) fn check_guest_overlap(&self, range: Range) -> Result<()> {
        if self.data.is_some() { Ok(()) } else { self.check_overlap(range) }
    }

    /// Fails if a range of the file that is about to be taken for something new holds metadata. An image whose refcounts
    /// or entries lie could otherwise be destroyed by writing to it.
    fn check_overlap(&self, range: Range) -> Result<()> {
        let header = &self.header.raw;
        let geometry = self.geometry();
        let fixed = [
            ("the header", Range::new(0, self.header.cluster.size())),
            ("the active L1 table", Range::new(geometry.l1_offset, geometry.l1_entries * 8)),
            ("the snapshot table", Range::new(header.snapshots_offset, self.snapshot_table_bytes)),
        ];
        let hit = fixed.iter().find(|(_, place)| place.overlaps(range)).map(|(what, _)| *what);
        let hit = hit.or_else(|| self.cache.overlaps(range).then_some("a metadata table"));
        match hit {
            None => Ok(()),
            Some(what) => Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "Preventing invalid write on metadata: {} bytes would overwrite {what}; the image is corrupt",
                    range.len
                ),
            )
            .at_offset(range.start)),
        }
    }

    fn refcounts_per_block(&self) -> u64 {
        self.header.refcounts_per_block()
    }

    /// Offset of the refcount block with that index; 0 if there is none. Loads what it needs.
    async fn block_offset(&self, refcounts: &Refcounts, index: u64) -> Result<u64> {
        let entries = (refcounts.table_clusters << self.header.cluster.bits()) / 8;
        if index >= entries {
            return Ok(0);
        }
        let (at, within) = self.load_table_piece(refcounts, index).await?;
        let entry = self.cache.peek(at, |table| word(table, within)).flatten().unwrap_or(0);
        if self.header.cluster.is_aligned(entry) && entry < MAX_HOST_OFFSET {
            return Ok(entry);
        }
        Err(Problem::Entry { table: "refcount table", index, found: entry, expected: "a multiple of the cluster size" }
            .corrupt_at(refcounts.table_offset + index * 8))
    }

    /// The refcount that is stored for the cluster at `host`.
    pub(super) async fn stored_refcount(&self, host: u64) -> Result<u64> {
        let refcounts = self.refcounts.lock().await;
        let cluster = host >> self.header.cluster.bits();
        let block = self.block_offset(&refcounts, cluster / self.refcounts_per_block()).await?;
        if block == 0 {
            return Ok(0);
        }
        self.load_block(block).await?;
        let (index, order) = (cluster % self.refcounts_per_block(), self.header.raw.refcount_order);
        Ok(self.cache.peek(block, |bytes| refcount(bytes, index, order)).flatten().unwrap_or(0))
    }

    /// How many clusters of the file are referred to, counted until there are `enough`.
    pub(super) async fn count_referenced(&self, enough: u64) -> Result<u64> {
        let refcounts = self.refcounts.lock().await;
        let (per_block, order) = (self.refcounts_per_block(), self.header.raw.refcount_order);
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
        }
        Ok(found)
    }

    async fn load_table_piece(&self, refcounts: &Refcounts, index: u64) -> Result<(u64, usize)> {
        let bytes = refcounts.table_clusters << self.header.cluster.bits();
        let piece = index * 8 / PIECE_BYTES * PIECE_BYTES;
        let at = refcounts.table_offset + piece;
        let len = (bytes - piece).min(PIECE_BYTES) as usize;
        self.cache.load(&*self.file, at, len, REFCOUNT_TABLE).await?;
        Ok((at, ((index * 8 - piece) / 8) as usize))
    }

    async fn load_block(&self, at: u64) -> Result<()> {
        self.cache.load(&*self.file, at, self.header.cluster.size() as usize, REFCOUNT_BLOCK).await
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
        self.check_overlap(Range::new(at, self.header.cluster.size()))?;
        let mut block = vec![0; self.header.cluster.size() as usize];
        let order = self.header.raw.refcount_order;
        let (start, len) = refcount_place(0, order);
        if let Some(place) = block.get_mut(start..start + len) {
            set_refcount(place, 0, order, 1);
        }
        self.cache.insert(at, block.into_boxed_slice(), REFCOUNT_BLOCK);
        let (piece, within) = self.load_table_piece(refcounts, index).await?;
        self.cache.modify(piece, within * 8, 8, |place| place.copy_from_slice(&at.to_be_bytes()));
        Ok(at)
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
        let mut blocks = 1;
        while blocks * per_block < blocks + table_clusters {
            blocks += 1;
        }
        let table_bytes = table_clusters << cluster.bits();
        let start = (first_block * per_block) << cluster.bits();
        let end = start + ((blocks + table_clusters) << cluster.bits());
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES || end > MAX_HOST_OFFSET || first_block + blocks > table_bytes / 8 {
            return Err(Error::new(ErrorKind::TooLarge, "the refcount table cannot grow beyond 8 MiB"));
        }
        self.check_overlap(Range::new(start, end - start))?;
        self.write_back(refcounts).await?;
        let mut table = vec![0; table_bytes as usize];
        if let Some(old) = table.get_mut(..old_bytes as usize) {
            self.file.read(refcounts.table_offset, old, ReadFlags::default()).await?;
        }
        let order = self.header.raw.refcount_order;
        for block in 0..blocks {
            let at = start + (block << cluster.bits());
            let entry = (first_block + block) as usize * 8;
            if let Some(place) = table.get_mut(entry..entry + 8) {
                place.copy_from_slice(&at.to_be_bytes());
            }
            let mut bytes = vec![0; cluster.size() as usize];
            let used = (blocks + table_clusters).saturating_sub(block * per_block).min(per_block);
            for entry in 0..used {
                let (start, len) = refcount_place(entry, order);
                if let Some(place) = bytes.get_mut(start..start + len) {
                    set_refcount(place, entry, order, 1);
                }
            }
            self.file.write(at, &bytes, WriteFlags::default()).await?;
        }
        let table_offset = start + (blocks << cluster.bits());
        self.file.write(table_offset, &table, WriteFlags::default()).await?;
        self.file.flush().await?;
        let mut pointer = [0; 12];
        pointer[..8].copy_from_slice(&table_offset.to_be_bytes());
        pointer[8..].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        self.file.write(48, &pointer, WriteFlags::default()).await?;
        self.file.flush().await?;
        for piece in (0..old_bytes).step_by(PIECE_BYTES as usize) {
            self.cache.forget(refcounts.table_offset + piece);
        }
        for old in 0..refcounts.table_clusters {
            refcounts.release(refcounts.table_offset + (old << cluster.bits()));
        }
        refcounts.table_offset = table_offset;
        refcounts.table_clusters = table_clusters;
        Ok(())
    }

    /// Takes up to `wanted` free clusters in a row and gives their offset and number.
    pub(super) async fn take_clusters(&self, refcounts: &mut Refcounts, wanted: u64) -> Result<(u64, u64)> {
        let per_block = self.refcounts_per_block();
        let order = self.header.raw.refcount_order;
        let cluster = self.header.cluster;
        let mut index = refcounts.first_free;
        loop {
            if index >= MAX_HOST_OFFSET >> cluster.bits() {
                return Err(Error::new(ErrorKind::TooLarge, "no host cluster below 2^56 is free"));
            }
            let block = self.ensure_block(refcounts, index / per_block).await?;
            let first = index % per_block;
            let run = self.cache.peek(block, |bytes| {
                let is_free = |entry: &u64| refcount(bytes, *entry, order) == Some(0);
                let start = (first..per_block).find(|entry| is_free(entry))?;
                let end = (start + 1..per_block.min(start + wanted)).take_while(is_free).last().unwrap_or(start);
                Some((start, end - start + 1))
            });
            let Some((start, count)) = run.flatten() else {
                index = (index / per_block + 1) * per_block;
                refcounts.first_free = index;
                continue;
            };
            let taken = index - first + start;
            let host = taken << cluster.bits();
            self.check_overlap(Range::new(host, count << cluster.bits()))?;
            self.set_in_block(block, start, count, 1);
            refcounts.first_free = taken + count;
            return Ok((host, count));
        }
    }

    /// Takes exactly `count` free clusters in a row.
    pub(super) async fn take_contiguous(&self, refcounts: &mut Refcounts, count: u64) -> Result<u64> {
        let mut rejected = Vec::new();
        let mut start = None;
        let mut have = 0;
        let outcome = loop {
            let (host, got) = match self.take_clusters(refcounts, count - have).await {
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

    fn set_in_block(&self, block: u64, first: u64, count: u64, value: u64) {
        let order = self.header.raw.refcount_order;
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
        let per_block = self.refcounts_per_block();
        let order = self.header.raw.refcount_order;
        let index = host >> self.header.cluster.bits();
        let block = self.block_offset(refcounts, index / per_block).await?;
        let entry = index % per_block;
        let count = match block {
            0 => 0,
            at => {
                self.load_block(at).await?;
                self.cache.peek(at, |bytes| refcount(bytes, entry, order)).flatten().unwrap_or(0)
            }
        };
        if count == 0 {
            return Err(
                Error::new(ErrorKind::Corrupt, "a cluster in use has refcount 0, expected at least 1").at_offset(host)
            );
        }
        self.set_in_block(block, entry, 1, count - 1);
        if count == 1 {
            refcounts.first_free = refcounts.first_free.min(index);
            self.cache.forget(host);
        }
        Ok(count == 1)
    }

    /// Writes back all metadata in order, then gives back what nothing refers to any more.
    pub(super) async fn write_back(&self, refcounts: &mut Refcounts) -> Result<()> {
        let unreferenced = refcounts.take_unreferenced();
        let from = if self.is_lazy() { L2_TABLE } else { REFCOUNT_BLOCK };
        if let Err(error) = self.cache.write_back(&*self.file, self.data.as_deref(), from).await {
            refcounts.restore_unreferenced(unreferenced);
            return Err(error);
        }
        let mut free: Vec<u64> = Vec::new();
        for host in unreferenced {
            if self.drop_reference(refcounts, host).await? && self.pass_discard {
                free.push(host);
            }
        }
        self.discard_clusters(free).await
    }

    /// Gives the host file's space of free clusters back, neighbours together.
    async fn discard_clusters(&self, mut free: Vec<u64>) -> Result<()> {
        free.sort_unstable();
        let size = self.header.cluster.size();
        let mut run = Range::default();
        for host in free {
            if run.len > 0 && run.end() == host {
                run.len += size;
                continue;
            }
            if run.len > 0 {
                self.file.discard(run).await?;
            }
            run = Range::new(host, size);
        }
        if run.len > 0 { self.file.discard(run).await } else { Ok(()) }
    }
}
