//! The table of internal snapshots (QEMU docs/interop/qcow2, "Snapshots").

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::describe::{Snapshot, SnapshotChoice};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::Header;
use crate::formats::qcow2::{Geometry, Qcow2};
use crate::node::{Node, Range, ReadFlags};
use crate::wire::on_disk;

/// Largest snapshot table in bytes.
pub(super) const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Most extra data per snapshot in bytes.
pub(super) const MAX_EXTRA_BYTES: u32 = 1024;
/// Extra data of a new snapshot: VM state size, disk size and instruction count, 8 bytes each.
const EXTRA_BYTES: u32 = 24;

on_disk! {
    /// The fixed part of a snapshot's entry.
    pub(super) struct RawSnapshot: 40 bytes {
        l1_table_offset: u64 = 0, "Offset of the snapshot's L1 table; cluster aligned.";
        l1_size: u32 = 8, "Entries in that table.";
        id_str_size: u16 = 12, "Length of the identifier.";
        name_size: u16 = 14, "Length of the name.";
        date_sec: u32 = 16, "When it was made, seconds since 1970.";
        date_nsec: u32 = 20, "Nanoseconds of the second.";
        vm_clock_nsec: u64 = 24, "Run time of the machine in nanoseconds.";
        vm_state_size: u32 = 32, "Size of the machine state in bytes.";
        extra_data_size: u32 = 36, "Length of the extra data.";
    }
}

impl RawSnapshot {
    /// The size of the disk, from the field of the extra data that says so. Without it the disk is as large as `now`, as
    /// far as there are entries for it, each of which covers so many bytes.
    pub(super) fn disk_size(&self, field: Option<u64>, now: u64, l2_coverage: u64) -> u64 {
        field.unwrap_or_else(|| now.min(u64::from(self.l1_size).saturating_mul(l2_coverage)))
    }
}

/// A snapshot with the place of its tables.
#[derive(Clone, Debug)]
pub(super) struct StoredSnapshot {
    pub(super) about: Snapshot,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    /// The whole entry, so that what is not understood stays as it is.
    pub(super) entry: Vec<u8>,
}

/// Every snapshot, and where the table of them is.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) snapshots: Vec<StoredSnapshot>,
    pub(super) offset: u64,
    /// Length of the table.
    pub(super) bytes: u64,
}

impl Directory {
    /// Where the table is.
    pub(super) fn range(&self) -> Range {
        Range::new(self.offset, self.bytes)
    }

    /// The snapshot with that identifier, or else the first with that name.
    pub(super) fn find(&self, wanted: &str) -> Option<&StoredSnapshot> {
        let by = |field: fn(&Snapshot) -> &str| self.snapshots.iter().find(|one| field(&one.about) == wanted);
        by(|about| &about.id).or_else(|| by(|about| &about.name))
    }

    /// The position of the first snapshot with that name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.snapshots.iter().position(|one| one.about.name == name)
    }

    /// An identifier that no snapshot has: one more than the largest number.
    pub(super) fn new_id(&self) -> String {
        let largest = self.snapshots.iter().filter_map(|one| one.about.id.parse::<u64>().ok()).max();
        (largest.unwrap_or(0) + 1).to_string()
    }

    /// The bytes of a table of these snapshots.
    pub(super) fn table(snapshots: &[StoredSnapshot]) -> Vec<u8> {
        snapshots.iter().flat_map(|one| one.entry.iter().copied()).collect()
    }
}

impl StoredSnapshot {
    /// Where its L1 table is.
    pub(super) fn l1(&self) -> Range {
        Range::new(self.l1_offset, self.l1_entries * 8)
    }

    /// Length of the entry in a table.
    #[cfg(feature = "write")]
    pub(super) fn len(&self) -> u64 {
        self.entry.len() as u64
    }

    /// Whether the entry has the fields that version 3 wants.
    pub(super) fn is_complete(&self) -> bool {
        self.extra().len() >= 16
    }

    /// The extra data of the entry.
    fn extra(&self) -> &[u8] {
        let size = self.entry.get(36..40).map_or(0, BE::read_u32) as usize;
        self.entry.get(RawSnapshot::SIZE..RawSnapshot::SIZE + size).unwrap_or_default()
    }

    /// The same snapshot with an entry as version 3 wants it. What is not understood of its extra data stays.
    pub(super) fn completed(&self) -> Result<Self> {
        let unknown = self.extra().get(EXTRA_BYTES as usize..).unwrap_or_default();
        let mut whole = StoredSnapshot::new(self.about.clone(), self.l1_offset, self.l1_entries)?;
        if !unknown.is_empty() {
            let at = RawSnapshot::SIZE + EXTRA_BYTES as usize;
            let texts = whole.entry.split_off(at);
            whole.entry.extend_from_slice(unknown);
            let used = self.about.id.len() + self.about.name.len();
            whole.entry.extend_from_slice(texts.get(..used).unwrap_or_default());
            whole.entry.resize(whole.entry.len().next_multiple_of(8), 0);
            let size = EXTRA_BYTES + unknown.len() as u32;
            whole.entry.get_mut(36..40).unwrap_or_default().copy_from_slice(&size.to_be_bytes());
        }
        Ok(whole)
    }

    /// The entry for a new snapshot.
    pub(super) fn new(about: Snapshot, l1_offset: u64, l1_entries: u64) -> Result<Self> {
        let size = |text: &str| u16::try_from(text.len()).map_err(|_| Error::invalid("a snapshot's name is too long"));
        let raw = RawSnapshot {
            l1_table_offset: l1_offset,
            l1_size: l1_entries as u32,
            id_str_size: size(&about.id)?,
            name_size: size(&about.name)?,
            date_sec: about.date_sec,
            date_nsec: about.date_nsec,
            vm_clock_nsec: about.vm_clock_nsec,
            vm_state_size: u32::try_from(about.vm_state_size).unwrap_or(u32::MAX),
            extra_data_size: EXTRA_BYTES,
        };
        let mut entry = raw.emit().to_vec();
        for number in [about.vm_state_size, about.disk_size, about.icount.unwrap_or(u64::MAX)] {
            entry.extend_from_slice(&number.to_be_bytes());
        }
        entry.extend_from_slice(about.id.as_bytes());
        entry.extend_from_slice(about.name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        Ok(StoredSnapshot { about, l1_offset, l1_entries, entry })
    }
}

/// The table that the header points to.
pub(super) async fn read_table(file: &dyn Node, header: &Header) -> Result<Directory> {
    let mut snapshots = Vec::new();
    let mut at = header.raw.snapshots_offset;
    for index in 0..header.raw.nb_snapshots {
        if at - header.raw.snapshots_offset > MAX_TABLE_BYTES {
            return Err(Error::invalid("the snapshot table is larger than 64 MiB")
                .at_offset(at)
                .with_headline("Snapshot table too large"));
        }
        let (snapshot, len) = read_entry(file, header, at).await.map_err(|error| {
            Error::new(error.kind(), alloc::format!("snapshot table entry {index}: {error}")).at_offset(at)
        })?;
        snapshots.push(snapshot);
        at = at.checked_add(len).ok_or_else(|| Error::invalid("the snapshot table reaches beyond 2^64"))?;
    }
    let offset = header.raw.snapshots_offset;
    Ok(Directory { snapshots, offset, bytes: at - offset })
}

impl Qcow2 {
    /// Makes the L1 table and the size of a snapshot those of the image.
    pub(super) fn select(&mut self, choice: &SnapshotChoice) -> Result<()> {
        let directory = self.directory.lock();
        let snapshots = &directory.snapshots;
        let snapshot = choice
            .find(snapshots.iter().map(|snapshot| &snapshot.about))
            .and_then(|index| snapshots.get(index))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "Can't find snapshot"))?;
        self.check_snapshot_l1(snapshot)?;
        let (at, entries) = (snapshot.l1_offset, snapshot.l1_entries);
        let end = at.checked_add(entries * 8);
        let length = self.file.info().length;
        if !self.header.cluster.is_aligned(at) || end.is_none_or(|end| end > length) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "snapshot '{}' has its L1 table of {entries} entries at {at:#x}, expected a multiple of the cluster \
                     size within the file, which has {length} bytes",
                    snapshot.about.id
                ),
            ));
        }
        let size = snapshot.about.disk_size;
        if entries < self.header.l1_entries_for(size) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "snapshot '{}' has {entries} L1 entries, expected {} for its disk of {size} bytes",
                    snapshot.about.id,
                    self.header.l1_entries_for(size)
                ),
            ));
        }
        drop(directory);
        let mut geometry = self.geometry.lock();
        *geometry = Geometry { l1_offset: at, l1_entries: entries, size, ..*geometry };
        drop(geometry);
        self.at_snapshot = true;
        Ok(())
    }
}

/// Length of an entry.
pub(super) fn entry_len(raw: &RawSnapshot) -> u64 {
    let variable = u64::from(raw.extra_data_size) + u64::from(raw.id_str_size) + u64::from(raw.name_size);
    (RawSnapshot::SIZE as u64 + variable).next_multiple_of(8)
}

pub(super) async fn read_fixed(file: &dyn Node, at: u64) -> Result<RawSnapshot> {
    let mut fixed = [0; RawSnapshot::SIZE];
    read_exact(file, at, &mut fixed).await?;
    RawSnapshot::parse(&fixed).ok_or_else(|| Error::new(ErrorKind::Corrupt, "a snapshot entry is too short"))
}

async fn read_exact(file: &dyn Node, at: u64, into: &mut [u8]) -> Result<()> {
    let length = file.info().length;
    if at.checked_add(into.len() as u64).is_none_or(|end| end > length) {
        return Err(Error::new(
            ErrorKind::Invalid,
            alloc::format!("{} bytes lie beyond the end of the file, which has {length} bytes", into.len()),
        )
        .at_offset(at));
    }
    file.read(at, into, ReadFlags::default()).await
}

async fn read_entry(file: &dyn Node, header: &Header, at: u64) -> Result<(StoredSnapshot, u64)> {
    let raw = read_fixed(file, at).await?;
    if raw.extra_data_size > MAX_EXTRA_BYTES {
        return Err(Error::invalid(alloc::format!(
            "extra_data_size is {}, expected at most {MAX_EXTRA_BYTES}",
            raw.extra_data_size
        )));
    }
    read_rest(file, header, at, raw).await
}

/// Reads what follows the fixed part of an entry.
pub(super) async fn read_rest(
    file: &dyn Node,
    header: &Header,
    at: u64,
    mut raw: RawSnapshot,
) -> Result<(StoredSnapshot, u64)> {
    let len = entry_len(&raw);
    if raw.extra_data_size > MAX_EXTRA_BYTES {
        // What is too much is left out, as if it were not there.
        let dropped = raw.extra_data_size - MAX_EXTRA_BYTES;
        raw.extra_data_size = MAX_EXTRA_BYTES;
        let mut extra = vec![0; MAX_EXTRA_BYTES as usize];
        read_exact(file, at + RawSnapshot::SIZE as u64, &mut extra).await?;
        let texts = usize::from(raw.id_str_size) + usize::from(raw.name_size);
        let mut rest = extra;
        let start = rest.len();
        rest.resize(start + texts, 0);
        let texts_at = at + RawSnapshot::SIZE as u64 + u64::from(MAX_EXTRA_BYTES) + u64::from(dropped);
        read_exact(file, texts_at, rest.get_mut(start..).unwrap_or_default()).await?;
        return Ok((stored(header, &raw, rest), len));
    }
    let mut rest = vec![0; len as usize - RawSnapshot::SIZE];
    let used = raw.extra_data_size as usize + usize::from(raw.id_str_size) + usize::from(raw.name_size);
    read_exact(file, at + RawSnapshot::SIZE as u64, rest.get_mut(..used).unwrap_or_default()).await?;
    Ok((stored(header, &raw, rest), len))
}

/// The snapshot that an entry describes. `rest` is what follows the fixed part.
fn stored(header: &Header, raw: &RawSnapshot, mut rest: Vec<u8>) -> StoredSnapshot {
    rest.resize((RawSnapshot::SIZE + rest.len()).next_multiple_of(8) - RawSnapshot::SIZE, 0);
    let (extra, texts) = rest.split_at((raw.extra_data_size as usize).min(rest.len()));
    let (id, texts) = texts.split_at(usize::from(raw.id_str_size).min(texts.len()));
    let name = texts.get(..raw.name_size.into()).unwrap_or_default();
    let number = |start: usize| extra.get(start..start + 8).map(BE::read_u64);
    let text = |bytes: &[u8]| -> String { String::from_utf8_lossy(bytes).to_string() };
    let about = Snapshot {
        id: text(id),
        name: text(name),
        vm_state_size: number(0).unwrap_or(raw.vm_state_size.into()),
        date_sec: raw.date_sec,
        date_nsec: raw.date_nsec,
        vm_clock_nsec: raw.vm_clock_nsec,
        icount: number(16).filter(|count| *count != u64::MAX),
        disk_size: raw.disk_size(number(8), header.raw.size, header.l2_coverage()),
    };
    let entry = [&raw.emit()[..], &rest].concat();
    StoredSnapshot { about, l1_offset: raw.l1_table_offset, l1_entries: raw.l1_size.into(), entry }
}
