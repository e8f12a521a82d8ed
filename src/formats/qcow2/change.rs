//! Everything that alters the mapping: allocate, link, zero, discard, flush.
//!
//! All of it holds the lock of [`Refcounts`], so that a write-back never sees half a change. The engine holds off other
//! requests for the same clusters.

use alloc::boxed::Box;
use alloc::vec;
use core::sync::atomic::Ordering;

use crate::engine::Allocation;
use crate::error::{Error, Result};
use crate::formats::qcow2::bitmap_store::Marked;
use crate::formats::qcow2::header::{AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, INCOMPATIBLE_DIRTY};
use crate::formats::qcow2::health::hex;
use crate::formats::qcow2::refcount::{Purpose, Refcounts};
use crate::formats::qcow2::table::{COPIED, L2Entry, OFFSET_MASK, SUBCLUSTERS, ZERO, compressed};
use crate::formats::qcow2::{L1_TABLE, L2_TABLE, Qcow2, REFCOUNT_BLOCK};
use crate::node::{Host, Range, WriteFlags};

/// So much space at most waits to be given back while the file grows.
const MOST_UNREFERENCED_BYTES: u64 = 16 << 20;

/// All 32 subclusters read as zeroes and none is allocated.
const ALL_ZERO_SUBCLUSTERS: u64 = 0xffff_ffff << 32;

/// How a cluster can be written that cannot be written in place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// It needs a cluster of its own.
    Fresh {
        /// Only the subclusters that are written have to be filled.
        partial: bool,
    },
    /// It has space already, which only has to be filled and linked.
    Reuse { host: u64 },
}

impl Qcow2 {
    /// Makes the image ready for changes of the disk: what [`Qcow2::begin_metadata`] does, and bitmaps that record changes
    /// are marked.
    pub(super) async fn begin_changing(&self) -> Result<()> {
        if self.changing.load(Ordering::Acquire) {
            return Ok(());
        }
        let _refcounts = self.lock_refcounts().await;
        if self.changing.load(Ordering::Acquire) {
            return Ok(());
        }
        self.begin_metadata().await?;
        self.mark_bitmaps(Marked::Enabled).await?;
        self.changing.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the header say what it must before metadata is changed: no autoclear bit that we do not maintain, and the
    /// dirty bit if refcounts are written late. The caller holds the lock of [`Refcounts`].
    pub(super) async fn begin_metadata(&self) -> Result<()> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.find_tables().await?;
        if self.version() >= 3 {
            let bitmaps = self.bitmaps.lock().directory.len > 0;
            self.keep_autoclear(AUTOCLEAR_DATA_FILE_RAW | if bitmaps { AUTOCLEAR_BITMAPS } else { 0 }).await?;
            if self.has_stale_bitmaps() && !bitmaps {
                self.remove_extension().await?;
            }
            if self.is_lazy() {
                self.set_incompatible(self.geometry().incompatible | INCOMPATIBLE_DIRTY).await?;
            }
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes everything back, bitmaps too, and takes the dirty bit away.
    pub(super) async fn end_changing(&self) -> Result<()> {
        let recording = self.recording.load(Ordering::Acquire);
        if !recording && !self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut refcounts = self.lock_refcounts().await;
        // Again, if bitmaps could not be written back the last time.
        self.begin_metadata().await?;
        self.pad_file().await?;
        let stored = self.store_bitmaps(&mut refcounts).await;
        // Whatever fails from here on: bitmaps have to be marked again before the next change.
        self.changing.store(false, Ordering::Release);
        self.write_back_all(&mut refcounts).await?;
        if self.is_lazy() {
            self.set_incompatible(self.geometry().incompatible & !INCOMPATIBLE_DIRTY).await?;
        }
        self.begun.store(false, Ordering::Release);
        stored
    }

    /// Clears the autoclear features but those of `keep`: nobody maintains what they promise.
    pub(super) async fn keep_autoclear(&self, keep: u64) -> Result<()> {
        let now = self.geometry().autoclear;
        if now & keep == now || self.version() < 3 {
            return Ok(());
        }
        self.file.write(88, &(now & keep).to_be_bytes(), WriteFlags::default()).await?;
        self.geometry.lock().autoclear = now & keep;
        self.file.flush().await
    }

    /// Changes the incompatible features, between two flushes.
    pub(super) async fn set_incompatible(&self, features: u64) -> Result<()> {
        if self.geometry().incompatible == features || self.version() < 3 {
            return Ok(());
        }
        self.file.write(72, &features.to_be_bytes(), WriteFlags::default()).await?;
        self.geometry.lock().incompatible = features;
        self.file.flush().await
    }

    pub(super) async fn flush_all(&self) -> Result<()> {
        let mut refcounts = self.lock_refcounts().await;
        self.write_back(&mut refcounts).await
    }

    /// Makes room in the cache for more changes.
    pub(super) async fn make_room(&self, refcounts: &mut Refcounts) -> Result<()> {
        if refcounts.count_unreferenced() << self.header.cluster.bits() >= MOST_UNREFERENCED_BYTES {
            self.write_back(refcounts).await?;
        }
        self.make_cache_room(refcounts).await
    }

    /// Makes room in the cache where the file does not grow.
    pub(super) async fn make_cache_room(&self, refcounts: &mut Refcounts) -> Result<()> {
        self.cache.release();
        if self.cache.is_full() {
            self.write_back(refcounts).await?;
            if self.cache.is_full() {
                // With late refcounts their blocks alone can fill the cache. They are only hints until the image is
                // closed, so they may go out at any time.
                self.cache.write_back(&*self.file, self.data.as_deref(), REFCOUNT_BLOCK).await?;
            }
        }
        Ok(())
    }

    /// The L2 table for guest offset `start`, in memory and ours alone; made or copied if need be.
    pub(super) async fn own_l2_table(&self, refcounts: &mut Refcounts, start: u64) -> Result<u64> {
        let index = start / self.header.l2_coverage();
        let entry = loop {
            match self.l1_entry(index) {
                Ok(entry) => break entry?,
                Err(missing) => self.load_missing(missing).await?,
            }
        };
        let old = entry & OFFSET_MASK;
        let size = self.header.cluster.size() as usize;
        if old != 0 && entry & COPIED != 0 {
            self.check_l2_overlap(Range::new(old, size as u64))?;
            self.cache.hold(&*self.file, old, size, L2_TABLE).await?;
            return Ok(old);
        }
        let contents: Box<[u8]> = if old == 0 {
            vec![0; size].into_boxed_slice()
        } else {
            self.check_shared_l2_overlap(Range::new(old, size as u64))?;
            self.cache.hold(&*self.file, old, size, L2_TABLE).await?;
            self.cache.peek(old, |bytes| Box::from(bytes)).unwrap_or_else(|| vec![0; size].into_boxed_slice())
        };
        let (at, _) = self.take_clusters(refcounts, 1, Purpose::L2Table).await?;
        if self.is_lazy() {
            // The refcounts of tables are never late.
            self.cache.write_back(&*self.file, self.data.as_deref(), REFCOUNT_BLOCK).await?;
        }
        let (piece, len, within) = Self::l1_piece(self.geometry(), index);
        self.cache.hold(&*self.file, piece, len, L1_TABLE).await?;
        self.cache.insert(at, contents, L2_TABLE);
        self.metadata.add(at);
        self.cache.modify(piece, within * 8, 8, |place| place.copy_from_slice(&(at | COPIED).to_be_bytes()));
        if old != 0 {
            refcounts.release(old);
        }
        Ok(at)
    }

    pub(super) fn entry(&self, table: u64, index: u64) -> L2Entry {
        let extended = self.header.is_extended();
        self.cache.peek(table, |bytes| L2Entry::read(bytes, index, extended)).flatten().unwrap_or_default()
    }

    pub(super) fn set_entry(&self, table: u64, index: u64, entry: L2Entry) {
        let size = self.header.l2_entry_size() as usize;
        self.cache.modify(table, index as usize * size, size, |place| entry.write(place));
    }

    fn placement(&self, entry: L2Entry) -> Placement {
        let external = self.header.has_data_file();
        if entry.is_compressed() {
            return Placement::Fresh { partial: false };
        }
        match entry.host(external) {
            Some(host) if entry.is_copied() => Placement::Reuse { host },
            // Data that a snapshot shares moves as a whole.
            Some(_) => Placement::Fresh { partial: false },
            None => Placement::Fresh { partial: self.header.is_extended() },
        }
    }

    pub(super) async fn prepare_write(&self, range: Range) -> Result<Allocation> {
        self.begin_changing().await?;
        let mut refcounts = self.lock_refcounts().await;
        self.make_room(&mut refcounts).await?;
        let cluster = self.header.cluster;
        let table = self.own_l2_table(&mut refcounts, range.start).await?;
        let first = range.start % self.header.l2_coverage() / cluster.size();
        let last = (range.start % self.header.l2_coverage() + range.len - 1) / cluster.size();
        let last = last.min(self.header.l2_entries() - 1);
        let guest_first = range.start - cluster.within(range.start);
        let placement = self.placement(self.entry(table, first));
        // Neighbours that can be placed the same way go together.
        let mut count = 1;
        while first + count <= last {
            let next = self.placement(self.entry(table, first + count));
            let alike = match (placement, next) {
                (Placement::Fresh { partial }, Placement::Fresh { partial: other }) => partial == other,
                (Placement::Reuse { host }, Placement::Reuse { host: other }) => {
                    host + (count << cluster.bits()) == other
                }
                _ => false,
            };
            if !alike {
                break;
            }
            count += 1;
        }
        let (host, fresh) = match placement {
            Placement::Reuse { host } => {
                self.check_guest_overlap(Range::new(host, count << cluster.bits()))?;
                (host, false)
            }
            Placement::Fresh { .. } if self.header.has_data_file() => (guest_first, false),
            Placement::Fresh { .. } => {
                let (host, got) = self.take_clusters(&mut refcounts, count, Purpose::Data).await?;
                count = got;
                (host, true)
            }
        };
        let mut guest = Range::new(guest_first, count << cluster.bits());
        let fill_partly = match placement {
            Placement::Fresh { partial } => partial,
            Placement::Reuse { .. } => self.header.is_extended(),
        };
        if fill_partly {
            let unit = cluster.size() / SUBCLUSTERS;
            let start = range.start & !(unit - 1);
            let end = range.end().next_multiple_of(unit).min(guest.end());
            guest = Range::new(start, end - start);
        }
        let at = host + (guest.start - guest_first);
        Ok(Allocation { guest, host: Host { role: self.role(), at }, fresh })
    }

    pub(super) async fn commit_write(&self, allocation: &Allocation) -> Result<()> {
        self.link(allocation, true).await
    }

    /// Makes entries refer to the space. Unless it was `filled`, subclusters stay what they were.
    pub(super) async fn link(&self, allocation: &Allocation, filled: bool) -> Result<()> {
        let mut refcounts = self.lock_refcounts().await;
        let cluster = self.header.cluster;
        let Range { start, .. } = allocation.guest;
        let table = self.own_l2_table(&mut refcounts, start).await?;
        let mut at = start;
        while at < allocation.guest.end() {
            let within = cluster.within(at);
            let end = (at - within + cluster.size()).min(allocation.guest.end());
            let index = at % self.header.l2_coverage() / cluster.size();
            let old = self.entry(table, index);
            let host = allocation.host.at + (at - start) - within;
            let mut new = L2Entry { word: host | COPIED, bitmap: 0 };
            if !filled && !self.crypt.is_none() && self.version() >= 3 && !self.header.is_extended() {
                // What is stored as zeroes is nothing of the kind when it is decrypted.
                new.word |= ZERO;
            }
            if self.header.is_extended() {
                let unit = cluster.size() / SUBCLUSTERS;
                let written = if filled { bits(within / unit, (within + (end - at)).div_ceil(unit)) } else { 0 };
                let kept = if old.is_compressed() { 0 } else { old.bitmap };
                new.bitmap = kept & !(written << 32) | written;
            }
            self.set_entry(table, index, new);
            if old.is_compressed() || old.host(self.header.has_data_file()) != Some(host) {
                self.release_entry(&mut refcounts, old);
            }
            at = end;
        }
        Ok(())
    }

    pub(super) async fn abandon_write(&self, allocation: &Allocation) -> Result<()> {
        if !allocation.fresh {
            return Ok(());
        }
        let mut refcounts = self.lock_refcounts().await;
        let cluster = self.header.cluster;
        let first = allocation.host.at - cluster.within(allocation.host.at);
        let end = allocation.host.at + allocation.guest.len;
        for host in (first..end).step_by(cluster.size() as usize) {
            self.drop_reference(&mut refcounts, host).await?;
        }
        Ok(())
    }

    /// Notes that an entry does not refer to its clusters any more.
    pub(super) fn release_entry(&self, refcounts: &mut Refcounts, old: L2Entry) {
        let cluster = self.header.cluster;
        if old.is_compressed() {
            let (at, stored) = compressed(old.word, cluster);
            let first = (at & !511) - cluster.within(at & !511);
            for host in (first..at + u64::from(stored)).step_by(cluster.size() as usize) {
                self.release_guest(refcounts, host);
            }
        } else if let (Some(host), false) = (old.host(false), self.header.has_data_file()) {
            self.release_guest(refcounts, host);
        }
    }

    /// Notes that a cluster of guest data lost a reference. One that holds metadata, because an entry lies, stays in use.
    pub(super) fn release_guest(&self, refcounts: &mut Refcounts, host: u64) {
        let cluster = self.header.cluster;
        let place = Range::new(host - cluster.within(host), cluster.size());
        if !cluster.is_aligned(host) {
            self.health.mention(&alloc::format!("Cannot free unaligned cluster {}", hex(host)));
        } else if !self.is_metadata(place) {
            refcounts.release_data(host);
        }
    }

    pub(super) async fn zero_range(&self, range: Range, flags: WriteFlags) -> Result<()> {
        if self.version() < 3 {
            if self.has_backing() {
                return Err(Error::unsupported("qcow2 version 2 cannot mark zeroes over a backing file"));
            }
            return self.discard_range(range).await;
        }
        self.begin_changing().await?;
        if self.is_data_file_raw() {
            // The data file must read like the disk on its own.
            self.storage().write_zeroes(range, flags).await?;
        }
        let keep_space = !flags.may_unmap || self.is_data_file_raw() || self.settings.discard_no_unref;
        self.change_entries(range, |image, refcounts, old, covered| {
            let external = image.header.has_data_file();
            if image.header.is_extended() {
                let whole = covered == u64::from(u32::MAX);
                if old.is_compressed() && !whole {
                    return Err(Error::unsupported("part of a compressed cluster cannot be marked as zeroes"));
                }
                let keep = old.host(external).is_some() && (!whole || keep_space);
                if whole && !keep {
                    image.release_entry(refcounts, old);
                    return Ok(L2Entry { word: 0, bitmap: ALL_ZERO_SUBCLUSTERS });
                }
                let bitmap = (old.bitmap | covered << 32) & !covered;
                return Ok(L2Entry { word: old.word, bitmap });
            }
            if old.host(external).is_some() && keep_space {
                return Ok(L2Entry { word: old.word | ZERO, bitmap: 0 });
            }
            image.release_entry(refcounts, old);
            Ok(L2Entry { word: ZERO, bitmap: 0 })
        })
        .await
    }

    pub(super) async fn discard_range(&self, range: Range) -> Result<()> {
        let (version, backing) = (self.version(), self.has_backing());
        if (version < 3 && backing) || self.is_data_file_raw() {
            // Without a zero flag the old contents of the backing file would come back; a raw data file is the disk.
            return Ok(());
        }
        self.begin_changing().await?;
        self.change_entries(range, |image, refcounts, old, covered| {
            let external = image.header.has_data_file();
            let used = old.is_compressed() || old.host(external).is_some();
            let whole = !image.header.is_extended() || covered == u64::from(u32::MAX);
            if !whole {
                if old.is_compressed() {
                    return Ok(old);
                }
                let bitmap = (old.bitmap | covered << 32) & !covered;
                return Ok(L2Entry { word: old.word, bitmap });
            }
            if !used && !backing {
                return Ok(old);
            }
            if image.settings.discard_no_unref && old.host(external).is_some() {
                let zero = if image.header.is_extended() { 0 } else { ZERO };
                let bitmap = if image.header.is_extended() { ALL_ZERO_SUBCLUSTERS } else { 0 };
                return Ok(L2Entry { word: old.word | zero, bitmap });
            }
            image.release_entry(refcounts, old);
            Ok(match (version >= 3, image.header.is_extended()) {
                (true, true) => L2Entry { word: 0, bitmap: ALL_ZERO_SUBCLUSTERS },
                (true, false) => L2Entry { word: ZERO, bitmap: 0 },
                (false, _) => L2Entry::default(),
            })
        })
        .await
    }

    /// Lets `change` say what becomes of every entry of the range. It gets the entry and the subclusters that are
    /// covered, one bit each. The range is aligned, except that it may end with the disk.
    pub(super) async fn change_entries(
        &self,
        range: Range,
        change: impl Fn(&Self, &mut Refcounts, L2Entry, u64) -> Result<L2Entry>,
    ) -> Result<()> {
        let cluster = self.header.cluster;
        let mut at = range.start;
        let mut refcounts = self.lock_refcounts().await;
        while at < range.end() {
            self.make_room(&mut refcounts).await?;
            let table_end = (at / self.header.l2_coverage() + 1) * self.header.l2_coverage();
            let table = self.own_l2_table(&mut refcounts, at).await?;
            while at < range.end().min(table_end) {
                let within = cluster.within(at);
                let end = (at - within + cluster.size()).min(range.end());
                let covered = if self.header.is_extended() {
                    let unit = cluster.size() / SUBCLUSTERS;
                    bits(within / unit, (within + (end - at)).div_ceil(unit))
                } else {
                    u64::from(u32::MAX)
                };
                // Beyond the end of the disk nothing can be seen, so its last cluster counts as whole.
                let ends_disk = end == self.geometry().size;
                let covered = if ends_disk && within == 0 { u64::from(u32::MAX) } else { covered };
                let index = at % self.header.l2_coverage() / cluster.size();
                let old = self.entry(table, index);
                let new = change(self, &mut refcounts, old, covered)?;
                if new != old {
                    self.set_entry(table, index, new);
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// Bits `start..end`, at most 32.
fn bits(start: u64, end: u64) -> u64 {
    let below = |bit: u64| if bit >= 32 { u64::from(u32::MAX) } else { (1u64 << bit) - 1 };
    below(end) & !below(start)
}
