//! Repairing the table of snapshots.

use crate::engine::{CheckReport, FindingKind, Repair};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::header::{MAX_HOST_OFFSET, MAX_SNAPSHOTS};
use crate::formats::qcow2::snapshot::{Directory, MAX_EXTRA_BYTES, MAX_TABLE_BYTES, read_fixed, read_rest};
use crate::formats::qcow2::snapshots_check::Outdated;
use crate::node::{ReadFlags, WriteFlags};

/// Why the table cannot be read.
pub(super) struct Unreadable {
    pub(super) kind: ErrorKind,
    pub(super) text: alloc::string::String,
    pub(super) hint: Option<alloc::string::String>,
}

impl Qcow2 {
    /// Writes the table anew if that puts anything right.
    pub(super) async fn renew_directory(
        &self,
        report: &mut CheckReport,
        outdated: Outdated,
        repair: Repair,
    ) -> Result<()> {
        if outdated.entries == 0 || !repair.errors() {
            return Ok(());
        }
        self.find_tables().await?;
        let mut refcounts = self.lock_refcounts().await;
        self.put_complete_directory(&mut refcounts).await?;
        self.write_back_all(&mut refcounts).await?;
        report.corruptions -= outdated.entries;
        report.corruptions_fixed += outdated.entries;
        Ok(())
    }

    /// Reads the table as far as it can be read. With a repair, what is too much is left out, on disk too.
    pub(super) async fn read_directory(
        &self,
        report: &mut CheckReport,
        repair: Repair,
        outdated: &mut Outdated,
    ) -> Result<core::result::Result<Directory, Unreadable>> {
        let mut pointer = [0; 12];
        self.file.read(60, &mut pointer, ReadFlags::default()).await?;
        let (count, offset) = pointer.split_at(4);
        let mut count = count.try_into().map_or(0, u32::from_be_bytes);
        let offset = offset.try_into().map_or(0, u64::from_be_bytes);
        let stored = count;
        if count > MAX_SNAPSHOTS {
            let beyond = count - MAX_SNAPSHOTS;
            if !repair.errors() {
                return Ok(Err(Unreadable {
                    kind: ErrorKind::TooLarge,
                    text: "snapshot table too large".into(),
                    hint: Some(alloc::format!(
                        "You can force-remove all {beyond} overhanging snapshots with qemu-img check -r all"
                    )),
                }));
            }
            report.add(FindingKind::Note, alloc::format!("Discarding {beyond} overhanging snapshots"));
            count = MAX_SNAPSHOTS;
        }
        if !self.header.cluster.is_aligned(offset) || offset > MAX_HOST_OFFSET {
            return Ok(Err(Unreadable {
                kind: ErrorKind::Invalid,
                text: "snapshot table offset invalid".into(),
                hint: None,
            }));
        }
        let failed = |text: alloc::string::String, hint| Unreadable {
            kind: ErrorKind::TooLarge,
            text: alloc::format!("failed to read the snapshot table: {text}"),
            hint: Some(hint),
        };
        let mut directory = Directory { offset, ..Directory::default() };
        let mut at = offset;
        // Length of the table once what is too much has been left out.
        let mut bytes = 0;
        for index in 0..count {
            let cannot = |error: Error| Unreadable {
                kind: error.kind(),
                text: alloc::format!("failed to read the snapshot table: Failed to read snapshot table: {error}"),
                hint: None,
            };
            let raw = match read_fixed(&*self.file, at).await {
                Ok(raw) => raw,
                Err(error) => return Ok(Err(cannot(error))),
            };
            let extra = raw.extra_data_size;
            if extra > MAX_EXTRA_BYTES {
                if !repair.errors() {
                    return Ok(Err(failed(
                        alloc::format!("Too much extra metadata in snapshot table entry {index}"),
                        "You can force-remove this extra metadata with qemu-img check -r all".into(),
                    )));
                }
                report.add(
                    FindingKind::Note,
                    alloc::format!(
                        "Discarding too much extra metadata in snapshot table entry {index} ({extra} > {MAX_EXTRA_BYTES})"
                    ),
                );
            }
            let (snapshot, len) = match read_rest(&*self.file, &self.header, at, raw).await {
                Ok(entry) => entry,
                Err(error) => return Ok(Err(cannot(error))),
            };
            if extra > MAX_EXTRA_BYTES {
                outdated.entries += 1;
            }
            bytes += snapshot.len();
            if bytes > MAX_TABLE_BYTES || at + len - offset > i32::MAX as u64 {
                let beyond = count - index;
                if !repair.errors() {
                    return Ok(Err(failed(
                        "Snapshot table is too big".into(),
                        alloc::format!(
                            "You can force-remove all {beyond} overhanging snapshots with qemu-img check -r all"
                        ),
                    )));
                }
                report.add(
                    FindingKind::Note,
                    alloc::format!("Discarding {beyond} overhanging snapshots (snapshot table is too big)"),
                );
                count = index;
                break;
            }
            directory.snapshots.push(snapshot);
            at += len;
        }
        directory.bytes = at - offset;
        if count != stored {
            // The rest of the table, and what its snapshots refer to, is lost space from here on.
            self.file.write(60, &count.to_be_bytes(), WriteFlags::default()).await?;
            self.file.flush().await?;
            report.corruptions_fixed += u64::from(stored - count);
        }
        Ok(Ok(directory))
    }
}
