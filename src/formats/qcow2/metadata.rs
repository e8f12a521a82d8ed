//! Where the metadata is: what guest data and new tables must not overwrite.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::Result;
use crate::formats::qcow2::extension::Extensions;
use crate::formats::qcow2::health::prevented;
use crate::formats::qcow2::snapshot::{Directory, StoredSnapshot};
use crate::formats::qcow2::table::{OFFSET_MASK, word};
use crate::formats::qcow2::{PIECE_BYTES, Qcow2};
use crate::node::{Range, ReadFlags};
use crate::sync::Mutex;

/// A kind of metadata. The order is that in which QEMU looks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountBlock,
    RefcountTable,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
}

impl Kind {
    pub(super) const ALL: [Kind; 9] = [
        Kind::Header,
        Kind::ActiveL1,
        Kind::ActiveL2,
        Kind::RefcountBlock,
        Kind::RefcountTable,
        Kind::SnapshotTable,
        Kind::InactiveL1,
        Kind::InactiveL2,
        Kind::BitmapDirectory,
    ];

    /// What messages call it.
    fn name(self) -> &'static str {
        match self {
            Kind::Header => "qcow2_header",
            Kind::ActiveL1 => "active L1 table",
            Kind::ActiveL2 => "active L2 table",
            Kind::RefcountBlock => "refcount block",
            Kind::RefcountTable => "refcount table",
            Kind::SnapshotTable => "snapshot table",
            Kind::InactiveL1 => "inactive L1 table",
            Kind::InactiveL2 => "inactive L2 table",
            Kind::BitmapDirectory => "bitmap directory",
        }
    }

    /// The option that switches its check.
    pub(super) fn option(self) -> &'static str {
        match self {
            Kind::Header => "main-header",
            Kind::ActiveL1 => "active-l1",
            Kind::ActiveL2 => "active-l2",
            Kind::RefcountBlock => "refcount-block",
            Kind::RefcountTable => "refcount-table",
            Kind::SnapshotTable => "snapshot-table",
            Kind::InactiveL1 => "inactive-l1",
            Kind::InactiveL2 => "inactive-l2",
            Kind::BitmapDirectory => "bitmap-directory",
        }
    }
}

/// The kinds of metadata that are looked out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checks(u16);

impl Checks {
    /// Every kind.
    const ALL: Checks = Checks((1 << Kind::ALL.len()) - 1);

    /// What a template of that name looks out for.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let without = |kinds: &[Kind]| kinds.iter().fold(Checks::ALL, |checks, kind| checks.without(*kind));
        Some(match name {
            "none" => Checks(0),
            "constant" => without(&[Kind::ActiveL2, Kind::RefcountBlock, Kind::InactiveL1, Kind::InactiveL2]),
            "cached" => without(&[Kind::InactiveL2]),
            "all" => Checks::ALL,
            _ => return None,
        })
    }

    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u16 & 1 == 1
    }

    pub(super) fn set(&mut self, kind: Kind, on: bool) {
        self.0 = self.0 & !(1 << kind as u16) | u16::from(on) << kind as u16;
    }

    fn without(mut self, kind: Kind) -> Self {
        self.set(kind, false);
        self
    }
}

/// The places of an image that hold metadata, besides the header, the active L1 table and the refcount table.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Snapshots and bitmaps: of each kind in order, none touching another.
    fixed: Mutex<Vec<(Kind, Vec<Range>)>>,
    /// Tables that come and go, once they were looked for.
    tables: Mutex<Option<Tables>>,
}

/// Offsets of tables of one cluster each.
#[derive(Debug, Default)]
struct Tables {
    /// L2 tables of the active L1 table.
    active: BTreeSet<u64>,
    blocks: BTreeSet<u64>,
    /// L2 tables of snapshots, if they are looked out for.
    inactive: BTreeSet<u64>,
}

impl Metadata {
    pub(super) fn new(extensions: &Extensions, directory: &Directory, bitmaps: &[Range]) -> Self {
        let metadata = Metadata { fixed: Mutex::default(), tables: Mutex::new(None) };
        metadata.note_directories(extensions, directory, bitmaps);
        metadata
    }

    /// Notes where the tables of snapshots and bitmaps are now.
    pub(super) fn note_directories(&self, extensions: &Extensions, directory: &Directory, bitmaps: &[Range]) {
        let snapshots = directory.snapshots.iter();
        let tables = snapshots.map(StoredSnapshot::l1).collect();
        *self.fixed.lock() = vec![
            (Kind::SnapshotTable, merged(vec![directory.range()])),
            (Kind::InactiveL1, merged(tables)),
            (Kind::BitmapDirectory, merged(bitmaps.to_vec())),
            // The header of the encryption is as good as a part of the header.
            (Kind::Header, merged(extensions.encryption.map(|(at, len)| Range::new(at, len)).into_iter().collect())),
        ];
    }

    /// What shares a byte with `range`, of the kinds that `checks` has.
    fn overlapping(&self, range: Range, cluster: u64, checks: Checks, kind: Kind) -> bool {
        if !checks.has(kind) {
            return false;
        }
        if let Some((_, places)) = self.fixed.lock().iter().find(|(fixed, _)| *fixed == kind) {
            let before = places.partition_point(|place| place.start < range.end());
            return places.get(..before).and_then(<[Range]>::last).is_some_and(|place| place.overlaps(range));
        }
        let tables = self.tables.lock();
        let Some(tables) = &*tables else { return false };
        let tables = match kind {
            Kind::ActiveL2 => &tables.active,
            Kind::RefcountBlock => &tables.blocks,
            Kind::InactiveL2 => &tables.inactive,
            _ => return false,
        };
        let before = tables.range(..range.end()).next_back();
        before.is_some_and(|at| Range::new(*at, cluster).overlaps(range))
    }

    /// Whether an L2 table or a refcount block of `cluster` bytes shares a byte with `range`.
    pub(super) fn overlaps_table(&self, range: Range, cluster: u64) -> bool {
        let tables = self.tables.lock();
        let Some(tables) = &*tables else { return false };
        [&tables.active, &tables.blocks, &tables.inactive].into_iter().any(|places| {
            let before = places.range(..range.end()).next_back();
            before.is_some_and(|at| Range::new(*at, cluster).overlaps(range))
        })
    }

    /// Notes that other tables are the active ones now.
    pub(super) fn forget_tables(&self) {
        *self.tables.lock() = None;
    }

    /// Notes a new L2 table.
    pub(super) fn add(&self, at: u64) {
        if let Some(tables) = &mut *self.tables.lock() {
            tables.active.insert(at);
        }
    }

    /// Notes a new refcount block.
    pub(super) fn add_block(&self, at: u64) {
        if let Some(tables) = &mut *self.tables.lock() {
            tables.blocks.insert(at);
        }
    }

    /// Notes that nothing uses the cluster any more.
    pub(super) fn remove(&self, at: u64) {
        if let Some(tables) = &mut *self.tables.lock() {
            tables.active.remove(&at);
            tables.blocks.remove(&at);
            tables.inactive.remove(&at);
        }
    }
}

/// The same places in order, with those that touch joined.
fn merged(mut places: Vec<Range>) -> Vec<Range> {
    places.retain(|place| place.len > 0);
    places.sort_unstable_by_key(|place| place.start);
    let mut joined: Vec<Range> = Vec::new();
    for place in places {
        match joined.last_mut() {
            Some(last) if place.start <= last.end() => last.len = last.end().max(place.end()) - last.start,
            _ => joined.push(place),
        }
    }
    joined
}

impl Qcow2 {
    /// Looks for every L2 table and refcount block, so that none is overwritten.
    pub(super) async fn find_tables(&self) -> Result<()> {
        if self.metadata.tables.lock().is_some() {
            return Ok(());
        }
        let geometry = self.geometry();
        let active = self.entries_of(geometry.l1()).await?;
        let blocks = self.entries_of(geometry.refcount_table).await?;
        let mut inactive = BTreeSet::new();
        if self.settings.overlaps.has(Kind::InactiveL2) {
            let snapshots = self.directory.lock().snapshots.clone();
            for snapshot in snapshots {
                self.check_snapshot_l1(&snapshot)?;
                inactive.append(&mut self.entries_of(snapshot.l1()).await?);
            }
        }
        *self.metadata.tables.lock() = Some(Tables { active, blocks, inactive });
        Ok(())
    }

    /// The offsets in a table of offsets, as far as it is in the file.
    async fn entries_of(&self, place: Range) -> Result<BTreeSet<u64>> {
        let mut found = BTreeSet::new();
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
        Ok(found)
    }

    /// Fails if a range that is about to be written as guest data holds metadata.
    pub(super) fn check_guest_overlap(&self, range: Range) -> Result<()> {
        if self.data.is_some() { Ok(()) } else { self.check_overlap(range) }
    }

    /// Fails if a range of the file that is about to be taken for something new holds metadata. An image whose refcounts
    /// or entries lie could otherwise be destroyed by writing to it.
    pub(super) fn check_overlap(&self, range: Range) -> Result<()> {
        self.check_kinds(range, self.settings.overlaps)
    }

    /// Fails if a range, which is an active L2 table, holds metadata of another kind.
    pub(super) fn check_l2_overlap(&self, range: Range) -> Result<()> {
        self.check_kinds(range, self.settings.overlaps.without(Kind::ActiveL2))
    }

    /// As [`Qcow2::check_l2_overlap`] for a table that is only read, because a snapshot uses it, too.
    pub(super) fn check_shared_l2_overlap(&self, range: Range) -> Result<()> {
        self.check_kinds(range, self.settings.overlaps.without(Kind::ActiveL2).without(Kind::InactiveL2))
    }

    /// Whether a range of the file holds metadata, looked out for or not.
    pub(super) fn is_metadata(&self, range: Range) -> bool {
        self.overlapping_kind(range, Checks::ALL).is_some()
    }

    fn check_kinds(&self, range: Range, checks: Checks) -> Result<()> {
        match self.overlapping_kind(range, checks) {
            None => Ok(()),
            Some(kind) => Err(prevented(
                alloc::format!("Preventing invalid write on metadata (overlaps with {})", kind.name()),
                range.start,
            )),
        }
    }

    fn overlapping_kind(&self, range: Range, checks: Checks) -> Option<Kind> {
        let geometry = self.geometry();
        let cluster = self.header.cluster.size();
        Kind::ALL.into_iter().find(|kind| match kind {
            Kind::Header => {
                checks.has(*kind) && range.start < cluster
                    || self.metadata.overlapping(range, cluster, checks, Kind::Header)
            }
            Kind::ActiveL1 => checks.has(*kind) && geometry.l1().overlaps(range),
            Kind::RefcountTable => checks.has(*kind) && geometry.refcount_table.overlaps(range),
            kind => self.metadata.overlapping(range, cluster, checks, *kind),
        })
    }
}
