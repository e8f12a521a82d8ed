//! The consistency check: count every reference, compare with the refcounts, look at every entry; and put right what is
//! wrong with an entry. `repair` puts right what is wrong with the rest.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
#[cfg(feature = "write")]
use core::sync::atomic::Ordering;

use crate::engine::{CheckReport, FindingKind, Repair};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::MAX_L1_BYTES;
use crate::formats::qcow2::table::{COPIED, L2Entry, OFFSET_MASK, ZERO, compressed, used_entries, word};
use crate::formats::qcow2::{PIECE_BYTES, Qcow2};
use crate::node::{Range, ReadFlags, WriteFlags};
#[cfg(feature = "structure")]
use crate::structure::Kinds;
use crate::structure::RegionKind;

/// Bits of an L2 entry, other than of a compressed cluster, that mean nothing.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// Counters of a page of the reference table.
pub(super) const PAGE: u64 = 8192;

impl Qcow2 {
    pub(super) async fn check_all(&self, repair: Repair) -> Result<CheckReport> {
        if self.at_snapshot {
            return Err(Error::unsupported("an image is checked as a whole, not at one of its snapshots"));
        }
        self.settle().await?;
        #[cfg(feature = "write")]
        if repair != Repair::Nothing {
            // A repair takes the dirty bit away, and whoever changes something after it has to set it again.
            self.changing.store(false, Ordering::Release);
            self.begun.store(false, Ordering::Release);
            return self.repair_all(repair).await;
        }
        let mut check = Check::new(self, Repair::Nothing)?;
        if self.check_directory(&mut check.report, repair).await?.is_some() {
            check.run().await?;
        }
        Ok(check.report)
    }

    /// Lets the file say what was changed so far, for that is what is looked at.
    pub(super) async fn settle(&self) -> Result<()> {
        #[cfg(feature = "write")]
        if self.begun.load(Ordering::Acquire) {
            self.write_back_all(&mut *self.lock_refcounts().await).await?;
        }
        Ok(())
    }
}

/// How often every cluster of the file is referred to.
pub(super) struct References {
    pages: Vec<Option<Box<[u32]>>>,
    pub(super) clusters: u64,
    budget: u64,
    /// The most that a stored refcount can tell.
    most: u32,
}

impl References {
    fn new(clusters: u64, budget: u64, most: u32) -> Result<Self> {
        let pages = clusters.div_ceil(PAGE);
        let budget = budget.checked_sub(pages.saturating_mul(16)).ok_or_else(|| over_budget(clusters))?;
        let pages = usize::try_from(pages).map_err(|_| over_budget(clusters))?;
        Ok(References { pages: vec![None; pages], clusters, budget, most })
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = self.pages.get((cluster / PAGE) as usize).and_then(Option::as_ref);
        page.and_then(|page| page.get((cluster % PAGE) as usize)).copied().unwrap_or(0).into()
    }

    /// Makes room for a cluster at the end.
    pub(super) fn cover(&mut self, cluster: u64) {
        self.clusters = self.clusters.max(cluster + 1);
        let pages = self.clusters.div_ceil(PAGE) as usize;
        if self.pages.len() < pages {
            self.pages.resize(pages, None);
        }
    }

    /// Counts references. Returns how many are more than a stored refcount can tell; they are left out.
    pub(super) fn add(&mut self, cluster: u64, times: u32) -> Result<u32> {
        if self.is_page_empty(cluster) {
            self.charge(PAGE * 4)?;
        }
        let Some(page) = self.pages.get_mut((cluster / PAGE) as usize) else { return Ok(0) };
        let page = page.get_or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
        let Some(count) = page.get_mut((cluster % PAGE) as usize) else { return Ok(0) };
        let fit = times.min(self.most - *count);
        *count += fit;
        Ok(times - fit)
    }

    /// Takes bytes from the memory budget.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<()> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| over_budget(self.clusters))?;
        Ok(())
    }

    /// Whether nothing refers to any cluster of the page that holds `cluster`.
    pub(super) fn is_page_empty(&self, cluster: u64) -> bool {
        self.pages.get((cluster / PAGE) as usize).is_none_or(Option::is_none)
    }
}

fn over_budget(clusters: u64) -> Error {
    Error::new(
        ErrorKind::OverBudget,
        alloc::format!("counting references to {clusters} clusters exceeds the memory budget"),
    )
}

/// An L2 table: how many L1 entries of the active table, and of snapshots, refer to it.
#[derive(Clone, Copy, Default)]
struct TableUse {
    active: u32,
    snapshots: u32,
}

pub(super) struct Check<'a> {
    pub(super) image: &'a Qcow2,
    pub(super) report: CheckReport,
    pub(super) repair: Repair,
    pub(super) references: References,
    /// Stored refcounts that differ from what was counted.
    pub(super) differing: BTreeMap<u64, u64>,
    pub(super) file_length: u64,
    /// The refcount structure cannot be trusted, so that only a new one helps.
    pub(super) rebuild: bool,
    /// Not everything could be read, so what was not counted may be in use.
    pub(super) incomplete: bool,
    /// What to do about more references than can be counted was said.
    has_overflown: bool,
    /// Notes what is in which cluster, instead of counting references.
    #[cfg(feature = "structure")]
    pub(super) kinds: Option<Kinds>,
}

impl<'a> Check<'a> {
    pub(super) fn new(image: &'a Qcow2, repair: Repair) -> Result<Self> {
        let cluster = image.header.cluster;
        let file_length = image.file.info().length;
        let report = CheckReport { total_clusters: cluster.count(image.geometry().size), ..CheckReport::default() };
        let references = Self::no_references(image, file_length)?;
        Ok(Check {
            image,
            report,
            repair,
            references,
            differing: BTreeMap::new(),
            file_length,
            rebuild: false,
            incomplete: false,
            has_overflown: false,
            #[cfg(feature = "structure")]
            kinds: None,
        })
    }

    pub(super) fn no_references(image: &Qcow2, file_length: u64) -> Result<References> {
        let most = u32::try_from((1u128 << (1u32 << image.refcount_order())) - 1).unwrap_or(u32::MAX);
        References::new(image.header.cluster.count(file_length), image.check_bytes, most)
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        self.count_everything().await?;
        #[cfg(feature = "write")]
        let before = (self.report.leaks, self.report.corruptions);
        self.compare(Repair::Nothing).await?;
        #[cfg(feature = "write")]
        if self.repair.leaks() {
            self.put_refcounts_right(before).await?;
        }
        if self.report.aborted.is_none() {
            self.check_copied_flags().await?;
        }
        Ok(())
    }

    pub(super) async fn count_everything(&mut self) -> Result<()> {
        self.count_fixed_places();
        self.count_chain_of_tables().await?;
        self.count_bitmaps().await?;
        self.count_refcount_structure().await
    }

    pub(super) fn corruption(&mut self, text: alloc::string::String) {
        self.report.add(FindingKind::Corruption, text);
    }

    /// A corruption that is met as many times as there are references to the table it is in.
    fn repeated_corruption(&mut self, times: u32, text: alloc::string::String) {
        self.corruption(text);
        self.report.corruptions += u64::from(times.saturating_sub(1));
    }

    /// Counts references to all clusters that `range` of the file, which holds something of that kind, touches.
    fn count(&mut self, kind: RegionKind, range: Range, times: u32) -> Result<()> {
        let cluster = self.image.header.cluster;
        if range.len == 0 {
            return Ok(());
        }
        // The last cluster need not be all there.
        if range.end().saturating_sub(self.file_length) >= cluster.size() {
            self.repeated_corruption(times, alloc::format!(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset {:#x} size {:#x}",
                range.start, range.len
            ));
            return Ok(());
        }
        let first = range.start >> cluster.bits();
        let last = (range.end() - 1) >> cluster.bits();
        #[cfg(feature = "structure")]
        if let Some(kinds) = &mut self.kinds {
            return (first..=last).try_for_each(|index| kinds.mark(index, kind));
        }
        #[cfg(not(feature = "structure"))]
        let _ = kind;
        self.references.cover(last);
        for index in first..=last {
            let lost = self.references.add(index, times)?;
            if lost > 0 {
                let mut text = alloc::format!("ERROR: overflow cluster offset={:#x}", index << cluster.bits());
                if !core::mem::replace(&mut self.has_overflown, true) {
                    text.push_str(
                        "\nUse qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean \
                         copy if the image cannot be opened for writing",
                    );
                }
                self.repeated_corruption(lost, text);
            }
        }
        Ok(())
    }

    fn count_fixed_places(&mut self) {
        let image = self.image;
        let geometry = image.stored_geometry();
        let mut places = vec![
            (RegionKind::Header, Range::new(0, image.header.cluster.size())),
            (RegionKind::L1Table, geometry.l1()),
            (RegionKind::SnapshotTable, image.directory.lock().range()),
        ];
        places.extend(
            image
                .directory
                .lock()
                .snapshots
                .iter()
                .filter(|snapshot| image.check_snapshot_l1(snapshot).is_ok())
                .map(|snapshot| (RegionKind::L1Table, snapshot.l1())),
        );
        places.extend(image.extensions.encryption.map(|(at, len)| (RegionKind::Encryption, Range::new(at, len))));
        for (kind, place) in places {
            if let Err(error) = self.count(kind, place, 1) {
                self.report.add(FindingKind::CheckError, alloc::format!("{error}"));
            }
        }
    }

    /// Reads a table of `entries` words piece by piece.
    pub(super) async fn words(&mut self, at: u64, entries: u64, what: &str) -> Result<Vec<u64>> {
        let bytes = entries * 8;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        if at.checked_add(bytes).is_none_or(|end| end > self.file_length) {
            self.report.add(
                FindingKind::CheckError,
                alloc::format!("ERROR: {what} at {at:#x} reaches beyond the end of the file ({:#x})", self.file_length),
            );
            self.incomplete = true;
            return Ok(Vec::new());
        }
        let mut words = Vec::with_capacity(entries as usize);
        let mut done = 0;
        let mut piece = vec![0; bytes.min(PIECE_BYTES) as usize];
        while done < bytes {
            let len = (bytes - done).min(PIECE_BYTES) as usize;
            let part = piece.get_mut(..len).unwrap_or_default();
            self.image.file.read(at + done, part, ReadFlags::default()).await?;
            words.extend((0..len / 8).filter_map(|index| word(part, index)));
            done += len as u64;
        }
        Ok(words)
    }

    async fn count_chain_of_tables(&mut self) -> Result<()> {
        let image = self.image;
        let geometry = image.stored_geometry();
        let mut tables: BTreeMap<u64, TableUse> = BTreeMap::new();
        let active = self.words(geometry.l1_offset, geometry.l1_entries, "the L1 table").await?;
        for (index, entry) in (0u64..).zip(&active) {
            if let Some(at) = self.l2_table(*entry, index, "L1")? {
                tables.entry(at).or_default().active += 1;
            }
        }
        let snapshots = image.directory.lock().snapshots.clone();
        if image.header.has_data_file() && !snapshots.is_empty() {
            self.corruption(alloc::format!("ERROR {} snapshots in image with data file", snapshots.len()));
        }
        // Snapshots may share one large table of a small file, and each is gone through.
        let bytes = snapshots.iter().map(|snapshot| snapshot.l1_entries * 8).filter(|bytes| *bytes <= MAX_L1_BYTES);
        let snapshot_bytes: u64 = bytes.sum();
        if snapshot_bytes > image.check_bytes {
            return Err(Error::new(
                ErrorKind::OverBudget,
                alloc::format!(
                    "the L1 tables of the snapshots take {snapshot_bytes} bytes; the budget is {}",
                    image.check_bytes
                ),
            ));
        }
        for snapshot in &snapshots {
            if !image.header.cluster.is_aligned(snapshot.l1_offset) {
                self.corruption(alloc::format!(
                    "ERROR snapshot {} ({}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot table entry corrupted",
                    snapshot.about.id,
                    snapshot.about.name,
                    snapshot.l1_offset
                ));
                continue;
            }
            if snapshot.l1_entries * 8 > MAX_L1_BYTES {
                self.corruption(alloc::format!(
                    "ERROR snapshot {} ({}) l1_size={:#x}: L1 table is too large; snapshot table entry corrupted",
                    snapshot.about.id,
                    snapshot.about.name,
                    snapshot.l1_entries
                ));
                continue;
            }
            for (index, entry) in
                (0u64..).zip(self.words(snapshot.l1_offset, snapshot.l1_entries, "a snapshot's L1 table").await?)
            {
                if let Some(at) = self.l2_table(entry, index, "snapshot L1")? {
                    tables.entry(at).or_default().snapshots += 1;
                }
            }
        }
        let size = image.header.cluster.size();
        let mut table = vec![0; size as usize];
        for (at, uses) in tables {
            if self.read_table(at, &mut table).await? {
                let zeroed = self.count_l2_table(at, &table, uses)?;
                self.zero_entries(at, &mut table, zeroed, uses).await?;
            }
        }
        Ok(())
    }

    /// Reads the part of a table that is in the file; the rest is zero. `false` if there is none.
    pub(super) async fn read_table(&self, at: u64, table: &mut [u8]) -> Result<bool> {
        let stored = self.file_length.saturating_sub(at).min(table.len() as u64) as usize;
        let (part, rest) = table.split_at_mut(stored);
        rest.fill(0);
        if stored > 0 {
            self.image.file.read(at, part, ReadFlags::default()).await?;
        }
        Ok(stored > 0)
    }

    /// Checks an L1 entry and counts the reference to its table. Gives the table's offset if it can be looked at.
    fn l2_table(&mut self, entry: u64, index: u64, what: &str) -> Result<Option<u64>> {
        let at = entry & OFFSET_MASK;
        if entry & !(OFFSET_MASK | COPIED) != 0 {
            self.corruption(alloc::format!(
                "ERROR found L1 entry with reserved bits set: {entry:x} ({what} entry {index})"
            ));
        }
        if entry == 0 {
            return Ok(None);
        }
        self.count(RegionKind::L2Table, Range::new(at, self.image.header.cluster.size()), 1)?;
        if !self.image.header.cluster.is_aligned(at) {
            self.corruption(alloc::format!(
                "ERROR l2_offset={at:x}: Table is not cluster aligned; L1 entry corrupted ({what} entry {index})"
            ));
        }
        Ok(Some(at))
    }

    /// Counts what a table refers to. Gives the entries that are better made plain zeroes, if that is to be done.
    fn count_l2_table(&mut self, at: u64, table: &[u8], uses: TableUse) -> Result<Vec<u64>> {
        let header = &self.image.header;
        let (cluster, extended, external) = (header.cluster, header.is_extended(), header.has_data_file());
        let times = uses.active.saturating_add(uses.snapshots);
        let mut next_offset = None;
        let mut zeroed = Vec::new();
        for index in used_entries(table, header.l2_entry_size() as usize) {
            let entry = L2Entry::read(table, index, extended).unwrap_or_default();
            if !entry.is_compressed() && entry.word & RESERVED != 0 {
                self.repeated_corruption(
                    times,
                    alloc::format!("ERROR found l2 entry with reserved bits set: {:x}", entry.word),
                );
            }
            if entry.is_compressed() {
                if external {
                    self.repeated_corruption(
                        times,
                        alloc::format!("ERROR compressed cluster {index} with data file, entry={:#x}", entry.word),
                    );
                    continue;
                }
                let (host, stored) = compressed(entry.word, cluster);
                if entry.is_copied() {
                    self.repeated_corruption(
                        times,
                        alloc::format!(
                            "ERROR: coffset={host:#x}: copied flag must never be set for compressed clusters"
                        ),
                    );
                }
                if entry.bitmap != 0 {
                    self.repeated_corruption(
                        times,
                        alloc::format!(
                            "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={:#x}",
                            entry.word
                        ),
                    );
                }
                self.count(RegionKind::Compressed, Range::new(host & !511, u64::from(stored) + (host & 511)), times)?;
                let active = u64::from(uses.active);
                self.report.compressed_clusters += active;
                self.report.allocated_clusters += active;
                // Compressed clusters are never where the next one would be expected.
                self.report.fragmented_clusters += active;
                continue;
            }
            let place = L2Place { at, index };
            if self.count_standard(place, entry, uses, &mut next_offset)? {
                zeroed.push(index);
            }
        }
        Ok(zeroed)
    }

    /// Makes entries of an L2 table read as zeroes without a cluster of their own.
    async fn zero_entries(&mut self, at: u64, table: &mut [u8], entries: Vec<u64>, uses: TableUse) -> Result<()> {
        let header = &self.image.header;
        if entries.is_empty() {
            return Ok(());
        }
        self.image.find_tables().await?;
        if self.image.check_shared_l2_overlap(Range::new(at, header.cluster.size())).is_err() {
            self.report.add(FindingKind::CheckError, "ERROR: Overlap check failed".into());
            self.incomplete = true;
            return Ok(());
        }
        let size = header.l2_entry_size();
        for index in entries {
            let new = match L2Entry::read(table, index, header.is_extended()) {
                // What was data reads as zeroes now.
                Some(old) if header.is_extended() => {
                    L2Entry { word: 0, bitmap: (old.bitmap | old.bitmap << 32) & !u64::from(u32::MAX) }
                }
                _ => L2Entry { word: ZERO, bitmap: 0 },
            };
            let start = (index * size) as usize;
            let Some(place) = table.get_mut(start..start + size as usize) else { continue };
            new.write(place);
            self.image.file.write(at + index * size, place, WriteFlags::default()).await?;
            let times = u64::from(uses.active.saturating_add(uses.snapshots));
            self.report.corruptions -= times.min(self.report.corruptions);
            self.report.corruptions_fixed += times;
        }
        self.image.file.flush().await
    }

    fn count_standard(
        &mut self,
        place: L2Place,
        entry: L2Entry,
        uses: TableUse,
        next_offset: &mut Option<u64>,
    ) -> Result<bool> {
        let header = &self.image.header;
        let (cluster, extended, external) = (header.cluster, header.is_extended(), header.has_data_file());
        let host = entry.word & OFFSET_MASK;
        let times = uses.active.saturating_add(uses.snapshots);
        if extended {
            let both = entry.bitmap & 0xffff_ffff & entry.bitmap >> 32;
            if both != 0 {
                self.repeated_corruption(
                    times,
                    alloc::format!(
                        "ERROR offset={host:x}: Allocated cluster has corrupted subcluster allocation bitmap (L2 table {:#x} \
                         index {})",
                        place.at,
                        place.index
                    ),
                );
            }
            if entry.host(external).is_none() && entry.bitmap & 0xffff_ffff != 0 {
                self.repeated_corruption(
                    times,
                    "ERROR: Unallocated cluster has non-zero subcluster allocation map".into(),
                );
            }
        } else if entry.word & ZERO != 0 && self.image.version() < 3 {
            self.repeated_corruption(
                times,
                alloc::format!(
                    "ERROR: zero cluster entry in a version 2 image: L2 table {:#x} index {}",
                    place.at,
                    place.index
                ),
            );
        }
        if entry.host(external).is_none() {
            return Ok(false);
        }
        if !cluster.is_aligned(host) {
            let has_data = if extended { entry.bitmap & 0xffff_ffff != 0 } else { entry.word & ZERO == 0 };
            let what = if has_data { "Data" } else { "Preallocated" };
            let text = |verb: &str| {
                alloc::format!("{verb} offset={host:x}: {what} cluster is not properly aligned; L2 entry corrupted.")
            };
            if !has_data && self.repair.errors() {
                self.report.add(FindingKind::Repaired, text("Repairing"));
                self.report.corruptions += u64::from(times);
                return Ok(true);
            }
            self.repeated_corruption(times, text("ERROR"));
        }
        if uses.active > 0 {
            self.report.allocated_clusters += u64::from(uses.active);
            if next_offset.is_some_and(|next| next != host) {
                self.report.fragmented_clusters += u64::from(uses.active);
            }
            *next_offset = Some(host + cluster.size());
        }
        if !external {
            let kind = if uses.active > 0 { RegionKind::Data } else { RegionKind::SnapshotData };
            self.count(kind, Range::new(host, cluster.size()), times)?;
        }
        Ok(false)
    }

    async fn count_bitmaps(&mut self) -> Result<()> {
        let image = self.image;
        let (directory, bitmaps) = {
            let bitmaps = image.bitmaps.lock();
            let tables = bitmaps.list.iter().map(|bitmap| (bitmap.name(), bitmap.table()));
            (bitmaps.directory, tables.collect::<Vec<_>>())
        };
        self.count(RegionKind::BitmapDirectory, directory, 1)?;
        for (name, table) in bitmaps {
            self.count(RegionKind::BitmapTable, table, 1)?;
            for (index, word) in self.words(table.start, table.len / 8, "a bitmap table").await?.iter().enumerate() {
                let at = word & OFFSET_MASK;
                if !image.header.cluster.is_aligned(at) || (at != 0 && word & 1 != 0) {
                    self.corruption(alloc::format!("ERROR: bitmap '{}' table entry {index} is {word:#x}", name));
                } else if at != 0 {
                    self.count(RegionKind::BitmapData, Range::new(at, image.header.cluster.size()), 1)?;
                }
            }
        }
        Ok(())
    }

    /// The refcount table as it is on disk.
    pub(super) async fn refcount_table(&mut self) -> Result<(u64, Vec<u64>)> {
        let (at, clusters) = self.image.refcounts.lock().await.place();
        let entries = (clusters << self.image.header.cluster.bits()) / 8;
        Ok((at, self.words(at, entries, "the refcount table").await?))
    }

    async fn count_refcount_structure(&mut self) -> Result<()> {
        let (at, table) = self.refcount_table().await?;
        let size = self.image.header.cluster.size();
        self.count(RegionKind::RefcountTable, Range::new(at, table.len() as u64 * 8), 1)?;
        for (index, block) in table.iter().enumerate() {
            if *block == 0 {
                continue;
            }
            if !self.image.header.cluster.is_aligned(*block) {
                self.corruption(alloc::format!(
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                ));
                self.rebuild = true;
            } else if *block >= self.file_length {
                self.corruption(alloc::format!("ERROR refcount block {index} is outside image"));
                self.rebuild = true;
            } else {
                self.count(RegionKind::RefcountBlock, Range::new(*block, size), 1)?;
                let count = self.references.get(*block >> self.image.header.cluster.bits());
                if count != 1 {
                    self.corruption(alloc::format!("ERROR refcount block {index} refcount={count}"));
                    self.rebuild = true;
                }
            }
        }
        Ok(())
    }

    /// The refcount that is stored for the cluster at `host`.
    async fn stored(&self, host: u64) -> u64 {
        let cluster = host >> self.image.header.cluster.bits();
        if cluster >= self.references.clusters {
            // Beyond the end of the file nothing was counted. A block that cannot be read was reported already.
            return self.image.stored_refcount(host).await.unwrap_or(0);
        }
        self.differing.get(&cluster).copied().unwrap_or_else(|| self.references.get(cluster))
    }

    /// An entry's COPIED bit must say whether the stored refcount is exactly one.
    async fn check_copied_flags(&mut self) -> Result<()> {
        // Flags are put right even if only space is to be given back, for that may have changed them; but only if the
        // refcounts can be relied on.
        let report = &self.report;
        let is_sound = report.check_errors == 0 && report.corruptions == 0 && report.leaks == 0;
        let repair = self.repair.errors() || self.repair.leaks() && is_sound;
        if repair {
            self.image.find_tables().await?;
        }
        let image = self.image;
        let geometry = image.geometry();
        let (cluster, external) = (image.header.cluster, image.header.has_data_file());
        let active = self.words(geometry.l1_offset, geometry.l1_entries, "the L1 table").await?;
        let mut table = vec![0; cluster.size() as usize];
        let mut used = Vec::new();
        for (l1_index, entry) in active.into_iter().enumerate() {
            let at = entry & OFFSET_MASK;
            if at == 0 {
                continue;
            }
            let count = self.stored(at).await;
            if (count == 1) != (entry & COPIED != 0) {
                let what = alloc::format!("L2 cluster: l1_index={l1_index} l1_entry={entry:x} refcount={count}");
                self.flag_finding(repair, &what);
                if repair {
                    let word = (entry ^ COPIED).to_be_bytes();
                    let place = geometry.l1_offset + l1_index as u64 * 8;
                    image.file.write(place, &word, WriteFlags::default()).await?;
                }
            }
            if !self.read_table(at, &mut table).await? {
                continue;
            }
            let mut changed = 0;
            used.clear();
            used.extend(used_entries(&table, image.header.l2_entry_size() as usize));
            for index in used.iter().copied() {
                let entry = L2Entry::read(&table, index, image.header.is_extended()).unwrap_or_default();
                let Some(host) = entry.host(external) else { continue };
                let count = if external { 1 } else { self.stored(host).await };
                if (count == 1) != entry.is_copied() {
                    self.flag_finding(
                        repair,
                        &alloc::format!("data cluster: l2_entry={:x} refcount={count}", entry.word),
                    );
                    if repair {
                        let size = image.header.l2_entry_size() as usize;
                        let start = index as usize * size;
                        let new = L2Entry { word: entry.word ^ COPIED, ..entry };
                        new.write(table.get_mut(start..start + size).unwrap_or_default());
                        changed += 1;
                    }
                }
            }
            if changed > 0 && image.check_shared_l2_overlap(Range::new(at, cluster.size())).is_err() {
                self.report.corruptions_fixed -= changed;
                self.report.corruptions += changed;
                self.report.add(
                    FindingKind::CheckError,
                    "ERROR: Could not write L2 table; metadata overlap check failed: Input/output error".into(),
                );
            } else if changed > 0 {
                let stored = self.file_length.saturating_sub(at).min(cluster.size()) as usize;
                image.file.write(at, table.get(..stored).unwrap_or_default(), WriteFlags::default()).await?;
            }
        }
        if repair { image.file.flush().await } else { Ok(()) }
    }

    /// Says of a COPIED flag that it is wrong, or that it is put right.
    fn flag_finding(&mut self, repair: bool, what: &str) {
        if repair {
            self.report.add(FindingKind::Repaired, alloc::format!("Repairing OFLAG_COPIED {what}"));
            self.report.corruptions_fixed += 1;
        } else {
            self.corruption(alloc::format!("ERROR OFLAG_COPIED {what}"));
        }
    }
}

#[derive(Clone, Copy)]
struct L2Place {
    at: u64,
    index: u64,
}
