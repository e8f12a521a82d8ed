//! Checking the table of snapshots, and writing it anew.

use alloc::vec::Vec;

#[cfg(feature = "write")]
use crate::engine::Abort;
use crate::engine::{CheckReport, FindingKind, Repair};
use crate::error::Result;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::refcount::Refcounts;

/// What is wrong with the table that only writing it anew puts right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outdated {
    pub(super) entries: u64,
}

impl Qcow2 {
    /// Looks for entries that say too little, or too much. `None` if the table cannot be read, which the report says.
    pub(super) async fn check_directory(&self, report: &mut CheckReport, repair: Repair) -> Result<Option<Outdated>> {
        let mut outdated = Outdated::default();
        // An image is opened with a wrong table only to be repaired.
        #[cfg(feature = "write")]
        if self.for_check {
            match self.read_directory(report, repair, &mut outdated).await? {
                Ok(directory) => {
                    self.metadata.note_directories(&self.extensions, &directory, &self.bitmaps.lock().places());
                    *self.directory.lock() = directory;
                }
                Err(why) => {
                    report.check_errors += 1;
                    let mut text = why.text;
                    if let Some(hint) = why.hint {
                        text.push('\n');
                        text.push_str(&hint);
                    }
                    report.aborted = Some(Abort { kind: why.kind, text: Some(text) });
                    return Ok(None);
                }
            }
        }
        if self.version() >= 3 {
            let directory = self.directory.lock();
            for (index, snapshot) in directory.snapshots.iter().enumerate() {
                if snapshot.is_complete() {
                    continue;
                }
                let text = |verb: &str| alloc::format!("{verb} snapshot table entry {index} is incomplete");
                outdated.entries += 1;
                if repair.errors() {
                    report.add(FindingKind::Repaired, text("Repairing"));
                } else {
                    report.add(FindingKind::Note, text("ERROR"));
                }
            }
        }
        report.corruptions += outdated.entries;
        Ok(Some(outdated))
    }

    /// Writes the table anew with entries as version 3 wants them.
    pub(super) async fn put_complete_directory(&self, refcounts: &mut Refcounts) -> Result<()> {
        let snapshots = self.directory.lock().snapshots.clone();
        let whole: Result<Vec<_>> = snapshots.iter().map(|snapshot| snapshot.completed()).collect();
        self.put_directory(refcounts, whole?).await
    }
}
