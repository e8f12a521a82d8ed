//! Changing the size of the disk.

use alloc::vec;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, announce};
use crate::formats::qcow2::header::MAX_L1_BYTES;
use crate::formats::qcow2::refcount::Refcounts;
use crate::formats::qcow2::table::{L2Entry, OFFSET_MASK};
use crate::formats::qcow2::{Geometry, PIECE_BYTES, Qcow2};
use crate::node::{Preallocation, Range, ReadFlags, WriteFlags};

/// Zeroes are written, where the file has no better way, in pieces of this many bytes.
const ZERO_PIECE_BYTES: usize = 1 << 16;

impl Qcow2 {
    pub(super) async fn resize_disk(&self, length: u64, preallocation: Preallocation) -> Result<()> {
        // The size in memory may be the new one already.
        let before = self.stored_size().await?;
        if length < before {
            if preallocation != Preallocation::Off {
                return Err(Error::invalid("Preallocation can't be used for shrinking an image"));
            }
            return self.shrink_disk(length).await;
        }
        let grow = async {
            self.reserve_disk(length).await?;
            self.grow_disk(before, length, preallocation).await
        };
        let written = grow.await;
        if written.is_err() {
            // The size may have been written, and only the flush after it failed.
            let now = self.stored_size().await.unwrap_or(before);
            self.geometry.lock().size = now;
            self.resize_bitmaps(now);
        }
        written
    }

    async fn stored_size(&self) -> Result<u64> {
        let mut size = [0; 8];
        self.file.read(24, &mut size, ReadFlags::default()).await?;
        Ok(u64::from_be_bytes(size))
    }

    async fn grow_disk(&self, before: u64, length: u64, preallocation: Preallocation) -> Result<()> {
        let metadata_only = match preallocation {
            // The tables of a raw data file say at all times that the file is the disk.
            Preallocation::Off if self.is_data_file_raw() => true,
            Preallocation::Off => false,
            _ => true,
        };
        if self.header.has_data_file() {
            let mode = if preallocation == Preallocation::Metadata { Preallocation::Off } else { preallocation };
            self.storage().resize(length, mode).await?;
        }
        if metadata_only {
            let start = before.next_multiple_of(self.header.cluster.size());
            self.preallocate(Range::new(start.min(length), length.saturating_sub(start)), preallocation).await?;
        }
        self.put_size(length).await
    }

    async fn put_size(&self, length: u64) -> Result<()> {
        self.file.write(24, &length.to_be_bytes(), WriteFlags::default()).await?;
        self.geometry.lock().size = length;
        self.file.flush().await
    }

    /// Sets space aside for a part of the disk that was never written. It reads as zeroes.
    async fn preallocate(&self, range: Range, preallocation: Preallocation) -> Result<()> {
        let mode = match preallocation {
            Preallocation::Metadata => Preallocation::Off,
            mode => mode,
        };
        let cluster = self.header.cluster;
        let mut at = range.start;
        while at < range.end() {
            let allocation = self.prepare_write(Range::new(at, range.end() - at)).await?;
            if !self.header.has_data_file() {
                let end = allocation.host.at + allocation.guest.len.next_multiple_of(cluster.size());
                let length = self.file.info().length;
                if allocation.host.at < length {
                    // What a cluster held before must not be seen.
                    let old = Range::new(allocation.host.at, end.min(length) - allocation.host.at);
                    self.zero_host(old).await?;
                }
                if end > length {
                    self.file.resize(end, mode).await?;
                }
            }
            // With subclusters, space alone does not say that they are zero; without, it does.
            self.link(&allocation, self.is_data_file_raw()).await?;
            at = allocation.guest.end();
        }
        if !self.crypt.is_none() && range.len > 0 {
            // What is stored as zeroes is nothing of the kind when it is decrypted.
            self.zero_range(range, WriteFlags::default()).await?;
        }
        self.flush_all().await
    }

    /// Makes a part of the file read as zeroes, without giving its space back.
    pub(super) async fn zero_host(&self, range: Range) -> Result<()> {
        match self.file.write_zeroes(range, WriteFlags::default()).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            done => return done,
        }
        let zeroes = vec![0; ZERO_PIECE_BYTES];
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end() - at).min(ZERO_PIECE_BYTES as u64) as usize;
            self.file.write(at, zeroes.get(..len).unwrap_or_default(), WriteFlags::default()).await?;
            at += len as u64;
        }
        Ok(())
    }

    /// Takes the end of the disk away: first what it refers to, so that it never comes back, then the size.
    async fn shrink_disk(&self, length: u64) -> Result<()> {
        self.check_size(length)?;
        self.begin_changing().await?;
        self.prepare_bitmaps_for(length).await?;
        let before = self.geometry();
        let failed = |what: &str, error: Error| Error::new(error.kind(), alloc::format!("{what}: {error}"));
        self.lock_refcounts().await.pass_discards(Some(true));
        let shrunk = async {
            self.drop_entries(length.next_multiple_of(self.header.cluster.size()), before.size)
                .await
                .map_err(|error| failed("Failed to discard cropped clusters", error))?;
            let mut refcounts = self.lock_refcounts().await;
            self.write_back(&mut refcounts).await?;
            self.drop_l2_tables(&mut refcounts, self.header.l1_entries_for(length) as usize)
                .await
                .map_err(|error| failed("Failed to reduce the number of L2 tables", error))?;
            self.write_back_all(&mut refcounts).await?;
            while self.drop_refcount_blocks(&mut refcounts).await? {
                self.write_back_all(&mut refcounts).await?;
            }
            Ok(())
        };
        let shrunk: Result<()> = shrunk.await;
        self.lock_refcounts().await.pass_discards(None);
        shrunk?;
        if self.header.has_data_file() {
            self.storage().resize(length, Preallocation::Off).await?;
        }
        let put = self.put_size(length).await;
        self.resize_bitmaps(self.geometry().size);
        put?;
        let refcounts = self.lock_refcounts().await;
        let end = self.end_of_use(&refcounts).await?;
        if end > 0 && end < self.file.info().length {
            // A device cannot be made shorter, and need not be.
            if let Err(error) = self.file.resize(end, Preallocation::Off).await {
                self.health.say(&alloc::format!("warning: Failed to truncate the tail of the image: {error}"));
            }
        }
        Ok(())
    }

    /// Empties the entries of one L2 table from a guest offset on.
    async fn drop_entries(&self, start: u64, end: u64) -> Result<()> {
        let coverage = self.header.l2_coverage();
        let index = start / coverage;
        let end = end.min((index + 1) * coverage);
        if start >= end || start.is_multiple_of(coverage) {
            // The table goes as a whole.
            return Ok(());
        }
        let entry = loop {
            match self.l1_entry(index) {
                Ok(entry) => break entry?,
                Err(missing) => self.load_missing(missing).await?,
            }
        };
        if entry & OFFSET_MASK == 0 {
            return Ok(());
        }
        self.change_entries(Range::new(start, end - start), |image, refcounts, old, _| {
            image.release_entry(refcounts, old);
            Ok(L2Entry::default())
        })
        .await
    }

    /// Makes room for a disk of that size, and counts on it in memory.
    pub(super) async fn reserve_disk(&self, length: u64) -> Result<()> {
        self.check_size(length)?;
        let needed = self.header.l1_entries_for(length);
        if needed * 8 > MAX_L1_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "the L1 table would be larger than 32 MiB"));
        }
        self.begin_changing().await?;
        self.prepare_bitmaps_for(length).await?;
        if needed > self.geometry().l1_entries {
            self.grow_l1_table(needed).await?;
        }
        self.geometry.lock().size = length;
        self.resize_bitmaps(length);
        Ok(())
    }

    fn check_size(&self, length: u64) -> Result<()> {
        if !length.is_multiple_of(512) {
            return Err(Error::invalid("The new size must be a multiple of 512"));
        }
        if self.version() < 3 && !self.directory.lock().snapshots.is_empty() {
            return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
        }
        Ok(())
    }

    /// Makes sure that the L1 table reaches to guest offset `end`.
    pub(super) async fn reserve_l1(&self, end: u64) -> Result<()> {
        let needed = self.header.l1_entries_for(end);
        if needed <= self.geometry().l1_entries {
            return Ok(());
        }
        if needed > MAX_L1_BYTES / 8 {
            return Err(Error::new(ErrorKind::TooLarge, "the L1 table would be larger than 32 MiB"));
        }
        self.begin_changing().await?;
        self.grow_l1_table(needed).await
    }

    /// Moves the L1 table to a larger place. The header points to the new one once all of it is on disk.
    async fn grow_l1_table(&self, entries: u64) -> Result<()> {
        let mut refcounts = self.lock_refcounts().await;
        let cluster = self.header.cluster;
        let old = self.geometry();
        if entries <= old.l1_entries {
            return Ok(());
        }
        let entries = entries.max(old.l1_entries + old.l1_entries / 2).min(MAX_L1_BYTES / 8);
        announce(&*self.file, Event::L1GrowAllocTable).await?;
        let place = Range::new(
            self.take_contiguous(&mut refcounts, cluster.count(entries * 8)).await?,
            cluster.count(entries * 8) << cluster.bits(),
        );
        if let Err(error) = self.write_l1_table(&mut refcounts, old, place).await {
            self.release_places(&mut refcounts, place);
            return Err(error);
        }
        let at = place.start;
        let mut pointer = [0; 12];
        pointer[..4].copy_from_slice(&(entries as u32).to_be_bytes());
        pointer[4..].copy_from_slice(&at.to_be_bytes());
        self.file.write(36, &pointer, WriteFlags::default()).await?;
        // From here on the new table counts, even if the flush fails: nothing may go to the old one any more.
        for piece in (0..old.l1_entries * 8).step_by(PIECE_BYTES as usize) {
            self.cache.forget(old.l1_offset + piece);
        }
        for place in 0..cluster.count(old.l1_entries * 8) {
            refcounts.release(old.l1_offset + (place << cluster.bits()));
        }
        {
            let mut geometry = self.geometry.lock();
            geometry.l1_offset = at;
            geometry.l1_entries = entries;
        }
        self.file.flush().await
    }

    /// Writes a copy of the L1 table, with room for more, to a place of its own.
    async fn write_l1_table(&self, refcounts: &mut Refcounts, old: Geometry, place: Range) -> Result<()> {
        self.write_back(refcounts).await?;
        let mut table = vec![0; place.len as usize];
        if let Some(kept) = table.get_mut(..(old.l1_entries * 8) as usize) {
            self.file.read(old.l1_offset, kept, ReadFlags::default()).await?;
        }
        announce(&*self.file, Event::L1GrowWriteTable).await?;
        self.file.write(place.start, &table, WriteFlags::default()).await?;
        self.file.flush().await?;
        announce(&*self.file, Event::L1GrowActivateTable).await
    }
}
