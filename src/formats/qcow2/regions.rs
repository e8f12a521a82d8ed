//! What is where in the file: the walk of the check, which notes kinds instead of counting.

use alloc::vec;

use crate::engine::Repair;
use crate::error::Result;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::compare::REFCOUNT_BLOCK_MASK;
use crate::formats::qcow2::table::refcount;
use crate::structure::{Kinds, RegionKind, Regions};

impl Qcow2 {
    pub(super) async fn find_regions(&self) -> Result<Regions> {
        self.settle().await?;
        let mut check = Check::new(self, Repair::Nothing)?;
        check.kinds = Some(Kinds::new(check.file_length, self.header.cluster.bits(), self.check_bytes)?);
        // What is wrong is for a check to say; as much as can be found is shown.
        let directory = self.check_directory(&mut check.report, Repair::Nothing).await?;
        check.count_everything().await?;
        // What cannot be read may refer to whatever nothing else refers to.
        let snapshots_are_read =
            self.directory.lock().snapshots.iter().all(|snapshot| self.check_snapshot_l1(snapshot).is_ok());
        let all_is_read = directory.is_some() && snapshots_are_read && !check.incomplete;
        check.mark_unreferenced(if all_is_read { RegionKind::Leaked } else { RegionKind::Unknown }).await
    }
}

impl Check<'_> {
    /// Looks for clusters that are marked as used without a reference that was found.
    async fn mark_unreferenced(mut self, kind: RegionKind) -> Result<Regions> {
        let (_, table) = self.refcount_table().await?;
        let (cluster, order) = (self.image.header.cluster, self.image.refcount_order());
        let per_block = self.image.refcounts_per_block();
        let Some(mut kinds) = self.kinds.take() else { return Ok(Regions::new([])) };
        let mut bytes = vec![0; cluster.size() as usize];
        for (first, entry) in (0..kinds.clusters()).step_by(per_block as usize).zip(table) {
            let block = entry & REFCOUNT_BLOCK_MASK;
            let usable = block != 0 && cluster.is_aligned(block) && self.read_table(block, &mut bytes).await?;
            if !usable || crate::engine::is_zero(&bytes) {
                continue;
            }
            for at in first..(first + per_block).min(kinds.clusters()) {
                let counted = refcount(&bytes, at - first, order).unwrap_or(0);
                if counted != 0 && kinds.get(at) == RegionKind::Free {
                    kinds.mark(at, kind)?;
                }
            }
        }
        Ok(kinds.finish())
    }
}
