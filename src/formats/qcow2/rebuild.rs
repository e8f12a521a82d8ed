//! A new refcount structure in place of one that cannot be trusted.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::check::{Check, PAGE};
use crate::formats::qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::formats::qcow2::table::{refcount_place, set_refcount};
use crate::node::{Range, WriteFlags};

impl Check<'_> {
    /// Writes a new refcount structure, for what was counted and itself, into clusters that nothing refers to; then the
    /// header points to it. Nothing that was in use is touched before.
    pub(super) async fn rebuild_structure(&mut self) -> Result<()> {
        let image = self.image;
        let cluster = image.header.cluster;
        let per_block = image.refcounts_per_block();
        let order = image.refcount_order();
        let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
        let mut free = 0;
        let (table_at, table_clusters) = loop {
            self.place_blocks(&mut blocks, &mut free)?;
            let entries = blocks.keys().next_back().map_or(1, |last| last + 1);
            let clusters = cluster.count(entries * 8);
            if clusters << cluster.bits() > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::new(ErrorKind::TooLarge, "the refcount table would be larger than 8 MiB"));
            }
            let at = self.free_run(clusters, &mut free);
            for index in at..at + clusters {
                self.references.cover(index);
                self.references.add(index, 1)?;
            }
            self.place_blocks(&mut blocks, &mut free)?;
            let entries = blocks.keys().next_back().map_or(1, |last| last + 1);
            if cluster.count(entries * 8) == clusters {
                break (at << cluster.bits(), clusters);
            }
            // The table does not fit into its place any more. That becomes lost space, which is given back later.
        };
        let mut table = vec![0; (table_clusters << cluster.bits()) as usize];
        for (index, at) in &blocks {
            let start = *index as usize * 8;
            if let Some(entry) = table.get_mut(start..start + 8) {
                entry.copy_from_slice(&at.to_be_bytes());
            }
            let mut bytes: Vec<u8> = vec![0; cluster.size() as usize];
            let first = index * per_block;
            for entry in 0..per_block.min(self.references.clusters.saturating_sub(first)) {
                let counted = self.references.get(first + entry);
                let (start, len) = refcount_place(entry, order);
                if let Some(place) = bytes.get_mut(start..start + len).filter(|_| counted > 0) {
                    set_refcount(place, entry, order, counted);
                }
            }
            image.file.write(*at, &bytes, WriteFlags::default()).await?;
        }
        image.file.write(table_at, &table, WriteFlags::default()).await?;
        image.file.flush().await?;
        image.point_to_refcount_table(table_at, table_clusters).await
    }

    /// Finds a place for every block that is needed and has none, those for the blocks themselves too.
    fn place_blocks(&mut self, blocks: &mut BTreeMap<u64, u64>, free: &mut u64) -> Result<()> {
        let per_block = self.image.refcounts_per_block();
        let mut first = 0;
        while first < self.references.clusters.div_ceil(per_block) {
            let mut index = first;
            // The block for a new one may be one of those before it.
            while !blocks.contains_key(&index) && self.is_used(index * per_block, per_block) {
                let place = self.free_run(1, free);
                self.references.cover(place);
                self.references.add(place, 1)?;
                blocks.insert(index, place << self.image.header.cluster.bits());
                index = place / per_block;
            }
            first += 1;
        }
        Ok(())
    }

    /// Whether anything refers to any of `count` clusters.
    fn is_used(&self, first: u64, count: u64) -> bool {
        let end = (first + count).min(self.references.clusters);
        let mut at = first;
        while at < end {
            if self.references.is_page_empty(at) {
                at = (at / PAGE + 1) * PAGE;
            } else if self.references.get(at) > 0 {
                return true;
            } else {
                at += 1;
            }
        }
        false
    }

    /// The first of that many clusters in a row that nothing refers to, from `free` on, which moves to the first gap.
    fn free_run(&self, count: u64, free: &mut u64) -> u64 {
        while self.references.get(*free) > 0 {
            *free += 1;
        }
        let mut start = *free;
        let mut at = start;
        while at - start < count {
            if self.references.get(at) > 0 {
                start = at + 1;
            }
            at += 1;
        }
        start
    }
}

impl crate::formats::qcow2::Qcow2 {
    /// Lets the header point to another refcount table, all of which is on disk.
    pub(super) async fn point_to_refcount_table(&self, at: u64, clusters: u64) -> Result<()> {
        let mut pointer = [0; 12];
        pointer[..8].copy_from_slice(&at.to_be_bytes());
        pointer[8..].copy_from_slice(&(clusters as u32).to_be_bytes());
        self.file.write(48, &pointer, WriteFlags::default()).await?;
        self.lock_refcounts().await.replace(at, clusters);
        self.geometry.lock().refcount_table = Range::new(at, clusters << self.header.cluster.bits());
        self.cache.clear();
        self.metadata.forget_tables();
        self.file.flush().await
    }
}
