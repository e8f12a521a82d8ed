//! Comparing the stored refcounts with the references that were counted, and making them true one by one.

use alloc::vec;

use crate::engine::{FindingKind, Repair, RepairAdvice};
use crate::error::Result;
use crate::formats::qcow2::check::{Check, PAGE};
use crate::formats::qcow2::table::{refcount, refcount_place, set_refcount};
use crate::node::WriteFlags;

/// Bits of a refcount table entry that are an offset.
pub(super) const REFCOUNT_BLOCK_MASK: u64 = !0x1ff;

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
}
