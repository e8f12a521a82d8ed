//! What is where in the file: the walk of the check, which notes kinds instead of counting.

use alloc::vec;

use crate::engine::{CheckReport, Repair};
use crate::error::Result;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::compare::REFCOUNT_BLOCK_MASK;
use crate::formats::qcow2::table::refcount;
use crate::structure::{Kinds, RegionKind, Regions};

impl Qcow2 {
    pub(super) async fn find_regions(&self) -> Result<Regions> {
        #[cfg(feature = "write")]
        if self.begun.load(core::sync::atomic::Ordering::Acquire) {
            self.write_back_all(&mut *self.lock_refcounts().await).await?;
        }
        let mut check = Check::new(self, Repair::Nothing)?;
        check.kinds = Some(Kinds::new(check.file_length, self.header.cluster.bits(), self.check_bytes)?);
        // What is wrong is for a check to say; as much as can be found is shown.
        check.count_everything().await?;
        check.report = CheckReport::default();
        check.find_leaks().await
    }
}

impl Check<'_> {
    /// Looks for clusters that nothing refers to although they are marked as used.
    async fn find_leaks(mut self) -> Result<Regions> {
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
                    kinds.mark(at, RegionKind::Leaked)?;
                }
            }
        }
        Ok(kinds.finish())
    }
}
