//! Comparing the stored refcounts with the references that were counted, and making them true: one by one, or by a new
//! refcount structure in place of one that cannot be trusted.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::engine::{FindingKind, Repair, RepairAdvice};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::check::{Check, PAGE};
use crate::formats::qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::formats::qcow2::table::{refcount, refcount_place, set_refcount};
use crate::node::{Range, WriteFlags};

/// Bits of a refcount table entry that are an offset.
const REFCOUNT_BLOCK_MASK: u64 = !0x1ff;

impl Check<'_> {
    /// Compares the stored refcounts with what was counted, and puts right what `repair` says.
    pub(super) async fn compare(&mut self, repair: Repair) -> Result<()> {
        let (_, table) = self.refcount_table().await?;
        let image = self.image;
        let (cluster, order) = (image.header.cluster, image.refcount_order());
        let per_block = image.refcounts_per_block();
        let mut bytes = vec![0; cluster.size() as usize];
        let mut highest = 0;
        let mut written = false;
        self.differing.clear();
        let blocks = self.references.clusters.div_ceil(per_block);
        for index in 0..blocks {
            let block = table.get(index as usize).copied().unwrap_or(0) & REFCOUNT_BLOCK_MASK;
            let first = index * per_block;
            let end = (first + per_block).min(self.references.clusters);
            if block >= 1 << 63 {
                for at in first..end {
                    self.report.add(FindingKind::CheckError, alloc::format!("Can't get refcount for cluster {at}"));
                }
                continue;
            }
            let usable = block != 0 && cluster.is_aligned(block) && self.read_table(block, &mut bytes).await?;
            let stored_anything = usable && !crate::engine::is_zero(&bytes);
            let mut changed = false;
            let mut at = first;
            while at < end {
                if !stored_anything && self.references.is_page_empty(at) {
                    at = (at / PAGE + 1) * PAGE;
                    continue;
                }
                let stored = if usable { refcount(&bytes, at - first, order).unwrap_or(0) } else { 0 };
                let counted = self.references.get(at);
                if stored != 0 || counted != 0 {
                    highest = at;
                }
                if stored != counted && self.differs(at, stored, counted, repair)? {
                    let (start, len) = refcount_place(at - first, order);
                    if let Some(place) = bytes.get_mut(start..start + len) {
                        set_refcount(place, at - first, order, counted);
                    }
                    changed = true;
                }
                at += 1;
            }
            if changed {
                let len = self.file_length.saturating_sub(block).min(cluster.size()) as usize;
                image.file.write(block, bytes.get(..len).unwrap_or_default(), WriteFlags::default()).await?;
                written = true;
            }
        }
        if written {
            image.file.flush().await?;
            image.cache.clear();
        }
        self.report.image_end_offset = (highest + 1) << cluster.bits();
        if !self.report.is_clean() {
            self.report.advice = RepairAdvice::Repair;
        }
        Ok(())
    }

    /// Says that a refcount is wrong. Returns whether it is to be put right.
    fn differs(&mut self, cluster: u64, stored: u64, counted: u64, repair: Repair) -> Result<bool> {
        let text = |verb: &str| alloc::format!("{verb} cluster {cluster} refcount={stored} reference={counted}");
        if stored == 0 {
            // What is in use was taken for free, so anything may have been written over anything.
            self.rebuild = true;
        } else if stored > counted && repair.leaks() {
            self.report.add(FindingKind::Repaired, text("Repairing"));
            self.report.leaks_fixed += 1;
            return Ok(true);
        } else if stored < counted && repair.errors() {
            self.report.add(FindingKind::Repaired, text("Repairing"));
            self.report.corruptions_fixed += 1;
            return Ok(true);
        }
        self.references.charge(64)?;
        self.differing.insert(cluster, stored);
        if stored > counted {
            self.report.add(FindingKind::Leak, text("Leaked"));
        } else {
            self.corruption(text("ERROR"));
        }
        Ok(false)
    }

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
