//! Repairs of a whole image: what is found by the check is put right in an order that never makes it worse.

use crate::engine::{Abort, CheckReport, FindingKind, Repair};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY,
};

impl Qcow2 {
    /// Repairs an image that was not closed cleanly, and says what is found.
    pub(super) async fn repair_dirty(&self) -> Result<()> {
        let report = self.check_all(Repair::All).await;
        for finding in report.iter().flat_map(|report| &report.findings) {
            self.health.say(&finding.text);
        }
        let failed = |kind, text: &str| Error::new(kind, alloc::format!("Could not repair dirty image: {text}"));
        match report {
            Ok(report) if report.check_errors == 0 && report.aborted.is_none() => Ok(()),
            Ok(report) => Err(failed(report.aborted.map_or(ErrorKind::Io, |abort| abort.kind), "Input/output error")),
            Err(error) => Err(failed(error.kind(), &alloc::format!("{error}"))),
        }
    }

    /// Nothing in memory counts any more: the file was changed behind it.
    async fn forget_tables(&self) {
        self.lock_refcounts().await.look_again();
        self.cache.clear();
        self.metadata.forget_tables();
    }

    pub(super) async fn repair_all(&self, repair: Repair) -> Result<CheckReport> {
        self.keep_autoclear(AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_FILE_RAW).await?;
        // Everything is read from the file, and most of it written there.
        self.forget_tables().await;
        let mut check = Check::new(self, repair)?;
        let Some(outdated) = self.check_directory(&mut check.report, repair).await? else { return Ok(check.report) };
        // What is wrong with the table of snapshots is put right last, and counted apart.
        let (corruptions, fixed) = (check.report.corruptions, check.report.corruptions_fixed);
        (check.report.corruptions, check.report.corruptions_fixed) = (0, 0);
        check.run().await?;
        let mut report = check.report;
        report.corruptions += corruptions;
        report.corruptions_fixed += fixed;
        self.forget_tables().await;
        if report.aborted.is_some() {
            return Ok(report);
        }
        self.renew_directory(&mut report, outdated, repair).await?;
        if report.check_errors == 0 && report.corruptions == 0 {
            let bits = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;
            self.file.flush().await?;
            self.set_incompatible(self.geometry().incompatible & !bits).await?;
        }
        Ok(report)
    }
}

impl Check<'_> {
    /// Counts anew, after the file was changed.
    async fn count_again(&mut self) -> Result<()> {
        self.file_length = self.image.file.info().length;
        self.references = Self::no_references(self.image, self.file_length)?;
        self.rebuild = false;
        self.incomplete = false;
        let report = &mut self.report;
        (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) = (0, 0, 0);
        // What can be put right was, the first time.
        let repair = core::mem::take(&mut self.repair);
        let counted = self.count_everything().await;
        self.repair = repair;
        counted
    }

    pub(super) async fn put_refcounts_right(&mut self, before: (u64, u64)) -> Result<()> {
        if self.rebuild && self.repair.errors() {
            if self.incomplete {
                self.report.aborted = Some(Abort { kind: ErrorKind::Io, text: None });
                return Ok(());
            }
            let found = (self.report.leaks, self.report.corruptions);
            self.report.add(FindingKind::Note, "Rebuilding refcount structure".into());
            self.rebuild_structure().await?;
            (self.report.leaks, self.report.corruptions) = (0, 0);
            self.count_again().await?;
            let left = (self.report.leaks, self.report.corruptions);
            let fixed = (self.report.leaks_fixed, self.report.corruptions_fixed);
            // The old structure is lost space now, and no finding about the image.
            self.compare(Repair::Leaks).await?;
            let fresh = self.report.leaks.saturating_sub(left.0);
            if self.rebuild {
                let text = "ERROR rebuilt refcount structure is still broken".into();
                self.report.add(FindingKind::CheckError, text);
            }
            self.report.corruptions = left.1;
            self.report.corruptions_fixed = fixed.1 + found.1.saturating_sub(left.1);
            self.report.leaks_fixed = fixed.0 + found.0.saturating_sub(left.0);
            self.report.leaks = left.0 + fresh;
        } else if self.rebuild {
            let text = "ERROR need to rebuild refcount structures".into();
            self.report.add(FindingKind::CheckError, text);
            self.report.aborted = Some(Abort { kind: ErrorKind::Io, text: None });
        } else if self.incomplete && self.report.leaks > 0 {
            // What seems to be lost space may be what the part that cannot be read refers to.
            self.report.aborted = Some(Abort { kind: ErrorKind::Io, text: None });
        } else if self.report.leaks > 0 || self.report.corruptions > 0 {
            (self.report.leaks, self.report.corruptions) = before;
            self.compare(self.repair).await?;
        }
        Ok(())
    }
}
