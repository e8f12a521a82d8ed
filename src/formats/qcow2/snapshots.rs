//! Making, applying and deleting internal snapshots.
//!
//! A snapshot is a copy of the L1 table: every cluster that it reaches is referred to once more. The order keeps a power
//! cut harmless: references are counted before anything refers, and given back after nothing does any more. The L1 table
//! of a snapshot that is applied goes to a new place, and one write of the header makes it the active one.

use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::describe::Snapshot;
use crate::engine::SnapshotChange;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, announce};
use crate::formats::qcow2::header::{MAX_HOST_OFFSET, MAX_L1_BYTES, MAX_SNAPSHOTS, Problem};
use crate::formats::qcow2::metadata::Kind;
use crate::formats::qcow2::refcount::Refcounts;
use crate::formats::qcow2::snapshot::{Directory, MAX_TABLE_BYTES, StoredSnapshot};
use crate::formats::qcow2::table::{COPIED, L2Entry, OFFSET_MASK, compressed};
use crate::formats::qcow2::{Geometry, L2_TABLE, PIECE_BYTES, Qcow2};
use crate::node::{ReadFlags, WriteFlags};

/// So many clusters at most wait to be given back during a walk.
const MOST_UNREFERENCED: u64 = 1 << 16;

/// What happens to the references that tables make.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    /// One more.
    More,
    /// One less.
    Fewer,
    /// They stay, but the flags that say which are the only ones are made true.
    Same,
}

/// How far a walk over tables has come: an L1 index, and an entry of its L2 table.
type Position = (usize, u64);

impl Qcow2 {
    pub(super) async fn change_snapshots(&self, change: &SnapshotChange) -> Result<()> {
        if self.header.has_data_file() {
            return Err(Error::unsupported("Operation not supported"));
        }
        self.refuse_before_changing(change)?;
        self.begin_changing().await?;
        let mut refcounts = self.lock_refcounts().await;
        self.write_back(&mut refcounts).await?;
        match change {
            SnapshotChange::Create { name, date_sec, date_nsec } => {
                let about = Snapshot {
                    name: name.clone(),
                    date_sec: *date_sec,
                    date_nsec: *date_nsec,
                    icount: Some(0),
                    ..Snapshot::default()
                };
                self.create_snapshot(&mut refcounts, about).await?;
            }
            SnapshotChange::Apply(wanted) => self.apply_snapshot(&mut refcounts, wanted).await?,
            SnapshotChange::Delete(name) => self.delete_snapshot(&mut refcounts, name).await?,
        }
        self.write_back(&mut refcounts).await
    }

    /// Fails where the image need not be touched to know that it will.
    fn refuse_before_changing(&self, change: &SnapshotChange) -> Result<()> {
        let directory = self.directory.lock();
        let missing = |text: &'static str| Err(Error::new(ErrorKind::NotFound, text));
        match change {
            SnapshotChange::Create { .. } if directory.snapshots.len() >= MAX_SNAPSHOTS as usize => {
                Err(Error::new(ErrorKind::TooLarge, "the image has 65536 snapshots, which is the most it can have"))
            }
            SnapshotChange::Apply(wanted) if directory.find(wanted).is_none() => {
                missing("Failed to load snapshot: No such file or directory")
            }
            SnapshotChange::Apply(_) if !self.bitmaps.lock().list.is_empty() => {
                Err(Error::unsupported("Device has active dirty bitmaps"))
            }
            SnapshotChange::Delete(name) if directory.position(name).is_none() => missing("snapshot not found"),
            _ => Ok(()),
        }
    }

    async fn create_snapshot(&self, refcounts: &mut Refcounts, about: Snapshot) -> Result<()> {
        let mut snapshots = self.directory.lock().snapshots.clone();
        let Geometry { l1_offset, l1_entries, size, .. } = self.geometry();
        let about = Snapshot { id: self.directory.lock().new_id(), disk_size: size, ..about };
        let mut table = self.read_l1(l1_offset, l1_entries).await?;
        let at = self.take_contiguous(refcounts, self.l1_clusters(l1_entries)).await?;
        snapshots.push(StoredSnapshot::new(about, at, l1_entries)?);
        let counted = match self.recount(refcounts, &mut table, Count::More, None).await {
            Ok(()) => self.put_l1(&table, at).await,
            Err((position, error)) => {
                // The first failure is the one to report; what cannot be undone is at most a leak.
                let _ = self.recount(refcounts, &mut table, Count::Fewer, Some(position)).await;
                Err(error)
            }
        };
        if let Err(error) = counted {
            self.release_run(refcounts, at, self.l1_clusters(l1_entries));
            if self.write_back(refcounts).await.is_ok() {
                let _ = self.refresh_flags(refcounts).await;
            }
            return Err(error);
        }
        // Nothing of the active tables may be written in place any more, and that must be on disk first.
        self.write_back(refcounts).await?;
        self.put_active_l1(&table).await?;
        self.put_directory(refcounts, snapshots).await?;
        self.forget_vm_state(refcounts).await
    }

    async fn apply_snapshot(&self, refcounts: &mut Refcounts, wanted: &str) -> Result<()> {
        let Some(snapshot) = self.directory.lock().find(wanted).cloned() else { return Ok(()) };
        let old = self.geometry();
        let size = snapshot.about.disk_size;
        let entries = snapshot.l1_entries.max(self.header.l1_entries_for(size)).max(old.l1_entries);
        if entries * 8 > MAX_L1_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "the L1 table would be larger than 32 MiB"));
        }
        self.check_snapshot_l1(&snapshot)?;
        let mut table = self.read_l1(snapshot.l1_offset, snapshot.l1_entries).await?;
        let at = self.take_contiguous(refcounts, self.l1_clusters(entries)).await?;
        if let Err((position, error)) = self.recount(refcounts, &mut table, Count::More, None).await {
            let _ = self.recount(refcounts, &mut table, Count::Fewer, Some(position)).await;
            self.release_run(refcounts, at, self.l1_clusters(entries));
            return Err(error);
        }
        table.resize(entries as usize, 0);
        self.put_l1(&table, at).await?;
        self.write_back(refcounts).await?;
        let mut before = self.read_l1(old.l1_offset, old.l1_entries).await?;
        // Size, encryption method, and length and place of the L1 table lie next to each other in one sector.
        let mut fields = [0; 24];
        BE::write_u64(&mut fields[..8], size);
        BE::write_u32(&mut fields[8..12], self.header.raw.crypt_method);
        BE::write_u32(&mut fields[12..16], entries as u32);
        BE::write_u64(&mut fields[16..], at);
        self.file.write(24, &fields, WriteFlags::default()).await?;
        self.file.flush().await?;
        *self.geometry.lock() = Geometry { l1_offset: at, l1_entries: entries, size, ..old };
        self.metadata.forget_tables();
        self.find_tables().await?;
        self.forget_l1(old);
        self.release_run(refcounts, old.l1_offset, self.l1_clusters(old.l1_entries));
        self.recount(refcounts, &mut before, Count::Fewer, None).await.map_err(|(_, error)| error)?;
        self.refresh_flags(refcounts).await
    }

    async fn delete_snapshot(&self, refcounts: &mut Refcounts, name: &str) -> Result<()> {
        let mut snapshots = self.directory.lock().snapshots.clone();
        let Some(position) = self.directory.lock().position(name) else { return Ok(()) };
        let snapshot = snapshots.remove(position);
        self.check_snapshot_l1(&snapshot)?;
        let mut table = self.read_l1(snapshot.l1_offset, snapshot.l1_entries).await?;
        self.put_directory(refcounts, snapshots).await?;
        refcounts.pass_discards(Some(self.settings.pass_discard_snapshot));
        let freed = async {
            self.recount(refcounts, &mut table, Count::Fewer, None).await.map_err(|(_, error)| error)?;
            self.release_run(refcounts, snapshot.l1_offset, self.l1_clusters(snapshot.l1_entries));
            self.write_back(refcounts).await?;
            refcounts.pass_discards(None);
            self.refresh_flags(refcounts).await
        };
        let freed: Result<()> = freed.await;
        refcounts.pass_discards(None);
        freed.map_err(|error| {
            if error.problem().is::<Problem>() {
                return error;
            }
            self.health.say(&alloc::format!("qcow2_free_clusters failed: {}", error.kind().reason()));
            let text = alloc::format!("Failed to free the cluster and L1 table: {}", error.kind().reason());
            Error::new(error.kind(), text)
        })
    }

    /// Leaves the active table without an entry, and gives back what it referred to.
    pub(super) async fn drop_everything(&self) -> Result<()> {
        announce(&*self.file, Event::EmptyImagePrepare).await?;
        self.begin_changing().await?;
        let mut refcounts = self.lock_refcounts().await;
        self.write_back(&mut refcounts).await?;
        let Geometry { l1_offset, l1_entries, .. } = self.geometry();
        let mut before = self.read_l1(l1_offset, l1_entries).await?;
        self.put_active_l1(&vec![0; before.len()]).await?;
        self.recount(&mut refcounts, &mut before, Count::Fewer, None).await.map_err(|(_, error)| error)?;
        self.write_back(&mut refcounts).await
    }

    /// Makes the flags of the active tables true.
    async fn refresh_flags(&self, refcounts: &mut Refcounts) -> Result<()> {
        let Geometry { l1_offset, l1_entries, .. } = self.geometry();
        let mut table = self.read_l1(l1_offset, l1_entries).await?;
        self.recount(refcounts, &mut table, Count::Same, None).await.map_err(|(_, error)| error)?;
        self.write_back(refcounts).await?;
        self.put_active_l1(&table).await
    }

    /// The machine state that a snapshot has kept is not needed in the active table.
    async fn forget_vm_state(&self, refcounts: &mut Refcounts) -> Result<()> {
        let first = self.header.l1_entries_for(self.geometry().size) as usize;
        self.drop_l2_tables(refcounts, first).await
    }

    /// Empties the active L1 table from an entry on.
    pub(super) async fn drop_l2_tables(&self, refcounts: &mut Refcounts, first: usize) -> Result<()> {
        let Geometry { l1_offset, l1_entries, .. } = self.geometry();
        let mut table = self.read_l1(l1_offset, l1_entries).await?;
        let Some(state) = table.get_mut(first..).filter(|state| state.iter().any(|entry| *entry != 0)) else {
            return Ok(());
        };
        let mut dropped = state.to_vec();
        state.fill(0);
        self.put_active_l1(&table).await?;
        self.recount(refcounts, &mut dropped, Count::Fewer, None).await.map_err(|(_, error)| error)
    }

    /// Walks all tables that an L1 table refers to, up to a position, and changes how often everything is referred to.
    /// Unless there are fewer references, the flags in the tables are made true on the way; those of `l1` only in memory.
    async fn recount(
        &self,
        refcounts: &mut Refcounts,
        l1: &mut [u64],
        count: Count,
        until: Option<Position>,
    ) -> Result<(), (Position, Error)> {
        for (index, entry) in l1.iter_mut().enumerate() {
            let end = match until {
                Some((last, within)) if last == index => Some(within),
                Some((last, _)) if last < index => return Ok(()),
                _ => None,
            };
            let table = *entry & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            self.recount_table(refcounts, table, count, end).await.map_err(|(at, error)| ((index, at), error))?;
            if end.is_some() {
                return Ok(());
            }
            let refers = self.recount_cluster(refcounts, table, count).await;
            let times = refers.map_err(|error| ((index, self.header.l2_entries()), error))?;
            *entry = table | if times == 1 { COPIED } else { 0 };
        }
        Ok(())
    }

    async fn recount_table(
        &self,
        refcounts: &mut Refcounts,
        table: u64,
        count: Count,
        end: Option<u64>,
    ) -> Result<(), (u64, Error)> {
        if self.header.has_data_file() {
            // The clusters of an external data file are not counted.
            return Ok(());
        }
        let cluster = self.header.cluster;
        let end = end.unwrap_or(self.header.l2_entries());
        let mut next = 0;
        while next < end {
            let index = next;
            if refcounts.count_unreferenced() >= MOST_UNREFERENCED {
                self.write_back(refcounts).await.map_err(|error| (index, error))?;
            }
            self.make_cache_room(refcounts).await.map_err(|error| (index, error))?;
            self.cache
                .hold(&*self.file, table, cluster.size() as usize, L2_TABLE)
                .await
                .map_err(|error| (index, error))?;
            let Some((index, old)) = self.next_placed(table, index..end) else { break };
            next = index + 1;
            if old.is_compressed() {
                if count == Count::Same {
                    continue;
                }
                let (at, stored) = compressed(old.word, cluster);
                let first = (at & !511) - cluster.within(at & !511);
                for host in (first..at + u64::from(stored)).step_by(cluster.size() as usize) {
                    self.recount_guest(refcounts, host, count).await.map_err(|error| (index, error))?;
                }
            } else if let Some(host) = old.host(false) {
                let times = self.recount_guest(refcounts, host, count).await.map_err(|error| (index, error))?;
                let flag = if times == 1 { COPIED } else { 0 };
                let new = L2Entry { word: old.word & !COPIED | flag, ..old };
                // Tables that lose their references may be about to go.
                if new != old && count != Count::Fewer {
                    self.set_entry(table, index, new);
                }
            }
        }
        Ok(())
    }

    /// The first entry of a range of a table in memory that refers to a place in the file.
    fn next_placed(&self, table: u64, range: core::ops::Range<u64>) -> Option<(u64, L2Entry)> {
        let extended = self.header.is_extended();
        self.cache.peek(table, |bytes| {
            let is_placed = |entry: &L2Entry| entry.is_compressed() || entry.host(false).is_some();
            range
                .filter_map(|index| Some((index, L2Entry::read(bytes, index, extended)?)))
                .find(|(_, entry)| is_placed(entry))
        })?
    }

    /// Like [`Qcow2::recount_cluster`] for a cluster of guest data.
    async fn recount_guest(&self, refcounts: &mut Refcounts, host: u64, count: Count) -> Result<u64> {
        if count != Count::Fewer {
            return self.recount_cluster(refcounts, host, count).await;
        }
        let times = self.reference_count(refcounts, host).await?;
        self.release_guest(refcounts, host);
        Ok(times.saturating_sub(1))
    }

    /// Changes one refcount and gives what it is then.
    async fn recount_cluster(&self, refcounts: &mut Refcounts, host: u64, count: Count) -> Result<u64> {
        match count {
            Count::More => self.add_reference(refcounts, host).await,
            Count::Fewer => {
                let times = self.reference_count(refcounts, host).await?;
                refcounts.release(host);
                Ok(times.saturating_sub(1))
            }
            Count::Same => self.reference_count(refcounts, host).await,
        }
    }

    /// Fails if the L1 table of a snapshot cannot be where its entry says.
    pub(super) fn check_snapshot_l1(&self, snapshot: &StoredSnapshot) -> Result<()> {
        let (at, entries) = (snapshot.l1_offset, snapshot.l1_entries);
        if entries * 8 > MAX_L1_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "Snapshot L1 table too large").at_offset(at));
        }
        if !self.header.cluster.is_aligned(at) || at.checked_add(entries * 8).is_none_or(|end| end > MAX_HOST_OFFSET) {
            return Err(Error::invalid("Snapshot L1 table offset invalid").at_offset(at));
        }
        Ok(())
    }

    fn l1_clusters(&self, entries: u64) -> u64 {
        self.header.cluster.count(entries * 8)
    }

    pub(super) async fn read_l1(&self, at: u64, entries: u64) -> Result<Vec<u64>> {
        let length = self.file.info().length;
        let bytes = entries * 8;
        if bytes > MAX_L1_BYTES || at.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "an L1 table of {bytes} bytes lies beyond the end of the file, which has {length} bytes"
                ),
            )
            .at_offset(at));
        }
        let mut raw = vec![0; bytes as usize];
        self.file.read(at, &mut raw, ReadFlags::default()).await?;
        Ok(raw.chunks_exact(8).map(BE::read_u64).collect())
    }

    /// Writes an L1 table that belongs to a snapshot, or is not active yet: nothing in it may be written in place.
    async fn put_l1(&self, table: &[u64], at: u64) -> Result<()> {
        let mut raw: Vec<u8> = table.iter().flat_map(|entry| (entry & !COPIED).to_be_bytes()).collect();
        raw.resize((self.l1_clusters(table.len() as u64) << self.header.cluster.bits()) as usize, 0);
        self.file.write(at, &raw, WriteFlags::default()).await
    }

    /// Writes the active L1 table in place.
    pub(super) async fn put_active_l1(&self, table: &[u64]) -> Result<()> {
        let geometry = self.geometry();
        let raw: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write(geometry.l1_offset, &raw, WriteFlags::default()).await?;
        self.file.flush().await?;
        self.forget_l1(geometry);
        Ok(())
    }

    /// What is known of an L1 table does not hold any more. None of it is changed in memory when this is called.
    fn forget_l1(&self, geometry: Geometry) {
        for piece in (0..geometry.l1_entries * 8).step_by(PIECE_BYTES as usize) {
            self.cache.forget(geometry.l1_offset + piece);
        }
    }

    fn release_run(&self, refcounts: &mut Refcounts, at: u64, clusters: u64) {
        for index in 0..clusters {
            refcounts.release(at + (index << self.header.cluster.bits()));
        }
    }

    /// Writes a new table of snapshots and lets the header point to it.
    pub(super) async fn put_directory(&self, refcounts: &mut Refcounts, snapshots: Vec<StoredSnapshot>) -> Result<()> {
        let cluster = self.header.cluster;
        let mut raw = Directory::table(&snapshots);
        let bytes = raw.len() as u64;
        if bytes > MAX_TABLE_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "the snapshot table would be larger than 64 MiB"));
        }
        let at = match cluster.count(bytes) {
            0 => 0,
            clusters => self.take_contiguous(refcounts, clusters).await?,
        };
        if bytes > 0 {
            raw.resize((cluster.count(bytes) << cluster.bits()) as usize, 0);
            self.file.write(at, &raw, WriteFlags::default()).await?;
        }
        self.write_back(refcounts).await?;
        let mut pointer = [0; 12];
        BE::write_u32(&mut pointer[..4], snapshots.len() as u32);
        BE::write_u64(&mut pointer[4..], at);
        self.file.write(60, &pointer, WriteFlags::default()).await?;
        self.file.flush().await?;
        let new = Directory { snapshots, offset: at, bytes };
        self.metadata.note_directories(&self.extensions, &new, &self.bitmaps.lock().places());
        let old = core::mem::replace(&mut *self.directory.lock(), new);
        self.release_run(refcounts, old.offset, cluster.count(old.bytes));
        if self.settings.overlaps.has(Kind::InactiveL2) {
            // The active tables may be those of a snapshot, too, from now on.
            self.metadata.forget_tables();
            self.find_tables().await?;
        }
        Ok(())
    }
}
