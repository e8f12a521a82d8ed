//! Changing the size of the disk.

use alloc::vec;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, announce};
use crate::formats::qcow2::header::MAX_L1_BYTES;
use crate::formats::qcow2::{PIECE_BYTES, Qcow2};
use crate::node::{Preallocation, ReadFlags, WriteFlags};

impl Qcow2 {
    pub(super) async fn resize_disk(&self, length: u64, preallocation: Preallocation) -> Result<()> {
        let geometry = self.geometry();
        if length < geometry.size {
            return Err(Error::unsupported("shrinking a qcow2 image is not supported"));
        }
        if preallocation != Preallocation::Off {
            return Err(Error::unsupported("resizing a qcow2 image with preallocation is not supported"));
        }
        self.reserve_disk(length).await?;
        if self.header.is_data_file_raw() {
            self.storage().resize(length, Preallocation::Off).await?;
        }
        let written = match self.file.write(24, &length.to_be_bytes(), WriteFlags::default()).await {
            Ok(()) => self.file.flush().await,
            error => error,
        };
        if written.is_err() {
            self.geometry.lock().size = geometry.size;
            self.resize_bitmaps(geometry.size);
        }
        written
    }

    /// Makes room for a disk of that size, and counts on it in memory.
    pub(super) async fn reserve_disk(&self, length: u64) -> Result<()> {
        if !length.is_multiple_of(512) {
            return Err(Error::invalid("The new size must be a multiple of 512"));
        }
        if self.header.raw.version < 3 && !self.directory.lock().snapshots.is_empty() {
            return Err(Error::unsupported("Can't resize a version 2 image which has snapshots"));
        }
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
        let at = self.take_contiguous(&mut refcounts, cluster.count(entries * 8)).await?;
        self.write_back(&mut refcounts).await?;
        let mut table = vec![0; (cluster.count(entries * 8) << cluster.bits()) as usize];
        if let Some(kept) = table.get_mut(..(old.l1_entries * 8) as usize) {
            self.file.read(old.l1_offset, kept, ReadFlags::default()).await?;
        }
        announce(&*self.file, Event::L1GrowWriteTable).await?;
        self.file.write(at, &table, WriteFlags::default()).await?;
        self.file.flush().await?;
        announce(&*self.file, Event::L1GrowActivateTable).await?;
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
}
