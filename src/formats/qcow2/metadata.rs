//! Where the metadata is: what guest data and new tables must not overwrite.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::snapshot::Directory;
use crate::formats::qcow2::table::{OFFSET_MASK, word};
use crate::formats::qcow2::{PIECE_BYTES, Qcow2};
use crate::node::{Range, ReadFlags};
use crate::sync::Mutex;

/// The places of an image that hold metadata, besides the header, the active L1 table and the refcount table.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Snapshots and bitmaps: in order, none touching another.
    fixed: Mutex<Vec<Range>>,
    /// L2 tables of the active L1 table and refcount blocks, once they were looked for.
    tables: Mutex<Option<BTreeSet<u64>>>,
}

impl Metadata {
    pub(super) fn new(directory: &Directory, bitmaps: &[Range]) -> Self {
        let metadata = Metadata { fixed: Mutex::default(), tables: Mutex::new(None) };
        metadata.note_directories(directory, bitmaps);
        metadata
    }

    /// Notes where the tables of snapshots and bitmaps are now.
    pub(super) fn note_directories(&self, directory: &Directory, bitmaps: &[Range]) {
        let snapshots = directory.snapshots.iter();
        let mut places: Vec<Range> =
            snapshots.map(|snapshot| Range::new(snapshot.l1_offset, snapshot.l1_entries * 8)).collect();
        places.push(directory.range());
        places.extend_from_slice(bitmaps);
        places.retain(|place| place.len > 0);
        places.sort_unstable_by_key(|place| place.start);
        let mut fixed: Vec<Range> = Vec::new();
        for place in places {
            match fixed.last_mut() {
                Some(last) if place.start <= last.end() => last.len = last.end().max(place.end()) - last.start,
                _ => fixed.push(place),
            }
        }
        *self.fixed.lock() = fixed;
    }

    fn overlaps_fixed(&self, range: Range) -> bool {
        let fixed = self.fixed.lock();
        let before = fixed.partition_point(|place| place.start < range.end());
        fixed.get(..before).and_then(<[Range]>::last).is_some_and(|place| place.overlaps(range))
    }

    /// Whether a table of `cluster` bytes shares a byte with `range`.
    pub(super) fn overlaps_table(&self, range: Range, cluster: u64) -> bool {
        let tables = self.tables.lock();
        let before = tables.as_ref().and_then(|tables| tables.range(..range.end()).next_back());
        before.is_some_and(|at| Range::new(*at, cluster).overlaps(range))
    }

    /// Notes that other tables are the active ones now.
    pub(super) fn forget_tables(&self) {
        *self.tables.lock() = None;
    }

    /// Notes a new table.
    pub(super) fn add(&self, at: u64) {
        if let Some(tables) = &mut *self.tables.lock() {
            tables.insert(at);
        }
    }

    /// Notes that nothing uses the cluster any more.
    pub(super) fn remove(&self, at: u64) {
        if let Some(tables) = &mut *self.tables.lock() {
            tables.remove(&at);
        }
    }
}

impl Qcow2 {
    /// Looks for every L2 table and refcount block, so that none is overwritten.
    pub(super) async fn find_tables(&self) -> Result<()> {
        if self.metadata.tables.lock().is_some() {
            return Ok(());
        }
        let geometry = self.geometry();
        let mut found = BTreeSet::new();
        for place in [Range::new(geometry.l1_offset, geometry.l1_entries * 8), geometry.refcount_table] {
            let end = place.end().min(self.file.info().length);
            let mut at = place.start;
            let mut piece = vec![0; place.len.min(PIECE_BYTES) as usize];
            while at < end {
                let len = (end - at).min(PIECE_BYTES) as usize;
                let part = piece.get_mut(..len).unwrap_or_default();
                self.file.read(at, part, ReadFlags::default()).await?;
                let entries = (0..len / 8).filter_map(|index| word(part, index));
                found.extend(entries.map(|entry| entry & OFFSET_MASK).filter(|table| *table != 0));
                at += len as u64;
            }
        }
        *self.metadata.tables.lock() = Some(found);
        Ok(())
    }

    /// Fails if a range that is about to be written as guest data holds metadata.
    pub(super) fn check_guest_overlap(&self, range: Range) -> Result<()> {
        if self.data.is_some() { Ok(()) } else { self.check_overlap(range) }
    }

    /// Fails if a range of the file that is about to be taken for something new holds metadata. An image whose refcounts
    /// or entries lie could otherwise be destroyed by writing to it.
    pub(super) fn check_overlap(&self, range: Range) -> Result<()> {
        self.check_fixed_overlap(range)?;
        if self.metadata.overlaps_table(range, self.header.cluster.size()) {
            return Err(refusal(range, "an L2 table or a refcount block"));
        }
        Ok(())
    }

    /// Fails if a range, which may be a table, holds metadata of another kind.
    pub(super) fn check_fixed_overlap(&self, range: Range) -> Result<()> {
        let geometry = self.geometry();
        let places = [
            ("the header", Range::new(0, self.header.cluster.size())),
            ("the active L1 table", Range::new(geometry.l1_offset, geometry.l1_entries * 8)),
            ("the refcount table", geometry.refcount_table),
        ];
        match places.iter().find(|(_, place)| place.overlaps(range)) {
            Some((what, _)) => Err(refusal(range, what)),
            None if self.metadata.overlaps_fixed(range) => Err(refusal(range, "a table of snapshots or bitmaps")),
            None => Ok(()),
        }
    }
}

fn refusal(range: Range, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        alloc::format!(
            "Preventing invalid write on metadata: {} bytes would overwrite {what}; the image is corrupt",
            range.len
        ),
    )
    .at_offset(range.start)
}
