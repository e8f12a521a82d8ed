//! Marking bitmaps as in use before they change, and writing them back.
//!
//! A bitmap that is marked is not believed after a crash, so its table and data may be overwritten where they are. Only
//! clusters with changes are touched.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::bitmap::{DirtyBitmap, MAX_BITS};
use crate::engine::{BitmapsLost, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::bitmap::{ALL_ONES, IN_USE, Session, StoredBitmap, check_word, table_entries};
use crate::formats::qcow2::refcount::{Purpose, Refcounts};
use crate::formats::qcow2::snapshot::StoredSnapshot;
use crate::formats::qcow2::table::{OFFSET_MASK, word};
use crate::node::{Range, ReadFlags, WriteFlags};

/// Which bitmaps are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// Those that record changes.
    Enabled,
    /// Every one that can be used.
    All,
    /// The one at this position.
    One(usize),
}

/// What was written back.
struct Stored {
    table: Range,
    /// Clusters that nothing refers to once the directory says where the table is.
    released: Vec<u64>,
}

impl Qcow2 {
    /// Marks bitmaps as in use on disk, and from then on keeps their changes in memory.
    pub(super) async fn mark_bitmaps(&self, which: Marked) -> Result<()> {
        let wanted: Vec<(usize, StoredBitmap)> = {
            let bitmaps = self.bitmaps.lock();
            let is_wanted = |index: usize, bitmap: &StoredBitmap| match which {
                Marked::Enabled => bitmap.is_auto(),
                Marked::All => true,
                Marked::One(one) => one == index,
            };
            let unmarked = |bitmap: &StoredBitmap| {
                !bitmap.inconsistent && bitmap.session.as_ref().is_none_or(|session| session.unmarked)
            };
            let list = bitmaps.list.iter().enumerate();
            list.filter(|(index, bitmap)| unmarked(bitmap) && is_wanted(*index, bitmap))
                .map(|(index, bitmap)| (index, bitmap.clone()))
                .collect()
        };
        if wanted.is_empty() {
            return Ok(());
        }
        self.check_bitmap_places()?;
        let size = self.geometry().size;
        let mut sessions = Vec::new();
        for (index, bitmap) in &wanted {
            if bitmap.is_foreign() {
                // What cannot be used cannot be kept up to date.
                sessions.push((*index, None));
                continue;
            }
            let explain = |error: Error| {
                let text = alloc::format!("bitmap '{}' cannot be kept up to date: {}", bitmap.name(), error.problem());
                Error::new(error.kind(), text)
                    .at_offset(error.context().offset.unwrap_or(bitmap.raw.bitmap_table_offset))
            };
            if bitmap.session.is_none() {
                self.read_words(bitmap).await.map_err(explain)?;
                sessions.push((*index, Some(Session::new(size, bitmap.granularity())?)));
            }
        }
        if let Err(error) = self.put_marks(&wanted).await {
            // Nothing has changed yet. A mark that stays all the same means a bitmap that is not believed.
            for (index, bitmap) in &wanted {
                let _ = self.put_flags(*index, bitmap.raw.flags).await;
            }
            return Err(error);
        }
        let mut bitmaps = self.bitmaps.lock();
        for (index, _) in &wanted {
            if let Some(session) = bitmaps.list.get_mut(*index).and_then(|bitmap| bitmap.session.as_mut()) {
                session.unmarked = false;
            }
        }
        for (index, session) in sessions {
            if let Some(bitmap) = bitmaps.list.get_mut(index) {
                bitmap.inconsistent = session.is_none();
                bitmap.session = session;
            }
        }
        self.recording.store(true, Ordering::Release);
        Ok(())
    }

    async fn put_marks(&self, wanted: &[(usize, StoredBitmap)]) -> Result<()> {
        for (index, bitmap) in wanted {
            self.put_flags(*index, bitmap.raw.flags | IN_USE).await?;
        }
        self.file.flush().await
    }

    /// Writes the flags of a bitmap where they are.
    pub(super) async fn put_flags(&self, index: usize, flags: u32) -> Result<()> {
        let Some(at) = self.bitmaps.lock().list.get(index).map(|bitmap| bitmap.at) else { return Ok(()) };
        self.file.write(at + 12, &flags.to_be_bytes(), WriteFlags::default()).await?;
        if let Some(bitmap) = self.bitmaps.lock().list.get_mut(index) {
            bitmap.raw.flags = flags;
        }
        Ok(())
    }

    /// Fails if the directory or a table shares a cluster with other metadata or with another table.
    fn check_bitmap_places(&self) -> Result<()> {
        let cluster = self.header.cluster.size();
        let geometry = self.geometry();
        let mut others = vec![
            ("the header", Range::new(0, cluster)),
            ("the active L1 table", geometry.l1()),
            ("the refcount table", geometry.refcount_table),
        ];
        {
            let directory = self.directory.lock();
            others.push(("the snapshot table", directory.range()));
            let tables = directory.snapshots.iter().map(StoredSnapshot::l1);
            others.extend(tables.map(|table| ("the L1 table of a snapshot", table)));
        }
        let places = self.bitmaps.lock().places();
        let bitmaps = places.iter().map(|place| (None, *place));
        let mut all: Vec<_> = others.into_iter().map(|(what, place)| (Some(what), place)).chain(bitmaps).collect();
        all.retain(|(_, place)| place.len > 0);
        all.sort_unstable_by_key(|(_, place)| place.start);
        let refuse = |place: Range, what: &str| {
            Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "the bitmap directory or a bitmap table of {} bytes overlaps {what}, expected a place of its own",
                    place.len
                ),
            )
            .at_offset(place.start))
        };
        // Of both kinds, the one that reaches furthest so far.
        let mut other = ("", Range::default());
        let mut bitmap = Range::default();
        for (what, place) in all {
            let whole = place.widen(cluster);
            match what {
                Some(_) if bitmap.end() > whole.start => return refuse(bitmap, what.unwrap_or_default()),
                Some(what) if whole.end() > other.1.end() => other = (what, whole),
                Some(_) => {}
                None if other.1.end() > whole.start => return refuse(place, other.0),
                None if bitmap.end() > whole.start => return refuse(place, "another one"),
                None if self.metadata.overlaps_table(whole, cluster) => {
                    return refuse(place, "an L2 table or a refcount block");
                }
                None => bitmap = whole,
            }
        }
        Ok(())
    }

    /// The entries of a bitmap's table. None has a cluster that another has.
    pub(super) async fn read_words(&self, bitmap: &StoredBitmap) -> Result<Vec<u64>> {
        let table = bitmap.table();
        let length = self.file.info().length;
        if table.end() > length {
            return Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!(
                    "the bitmap table of {} bytes lies beyond the end of the file, which has {length} bytes",
                    table.len
                ),
            )
            .at_offset(table.start));
        }
        let mut raw = vec![0; table.len as usize];
        self.file.read(table.start, &mut raw, ReadFlags::default()).await?;
        let words: Vec<u64> = (0..raw.len() / 8).filter_map(|index| word(&raw, index)).collect();
        let mut hosts = BTreeSet::new();
        for (index, word) in (0u64..).zip(&words) {
            check_word(&self.header, table, index, *word, length)?;
            let host = word & OFFSET_MASK;
            if host != 0 && !hosts.insert(host) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    alloc::format!("bitmap table entry {index} is {word:#018x}, expected a cluster that no other has"),
                )
                .at_offset(table.start + index * 8));
            }
        }
        Ok(words)
    }

    /// Adds the bits that are stored, as far as `bits` reaches.
    pub(super) async fn add_stored(&self, bitmap: &StoredBitmap, bits: &mut DirtyBitmap) -> Result<()> {
        let cluster = self.header.cluster.size();
        let mut bytes = vec![0; cluster as usize];
        let clusters = (0..bits.bits()).step_by(cluster as usize * 8);
        for (first, word) in clusters.zip(self.read_words(bitmap).await?) {
            match word & OFFSET_MASK {
                0 if word == ALL_ONES => bits.set_bits(first, (first + cluster * 8).min(bits.bits())),
                0 => {}
                host => {
                    self.file.read(host, &mut bytes, ReadFlags::default()).await?;
                    bits.add_bytes(first, &bytes);
                }
            }
        }
        Ok(())
    }

    /// Writes back every bitmap that is marked, and takes the mark away from those that could be.
    pub(super) async fn store_bitmaps(&self, refcounts: &mut Refcounts) -> Result<()> {
        let count = self.bitmaps.lock().list.len();
        let mut lost: Option<Error> = None;
        let mut stored = Vec::new();
        let mut released = Vec::new();
        let mut moved = false;
        for index in 0..count {
            let taken = {
                let mut bitmaps = self.bitmaps.lock();
                bitmaps.list.get_mut(index).and_then(|bitmap| Some((bitmap.session.take()?, bitmap.clone())))
            };
            let Some((session, bitmap)) = taken else { continue };
            let outcome = self.store_bitmap(refcounts, &bitmap, &session).await;
            match outcome {
                Ok(new) => {
                    moved |= new.table != bitmap.table();
                    released.extend(new.released);
                    stored.push((index, session, new.table));
                }
                Err(error) => {
                    if let Some(bitmap) = self.bitmaps.lock().list.get_mut(index) {
                        bitmap.session = Some(session);
                    }
                    lost.get_or_insert_with(|| lost_bitmap(bitmap.name(), &error));
                }
            }
        }
        if !stored.is_empty() {
            if let Err(error) = self.unmark_bitmaps(refcounts, &stored, moved).await {
                let mut bitmaps = self.bitmaps.lock();
                for (index, session, _) in stored {
                    if let Some(bitmap) = bitmaps.list.get_mut(index) {
                        bitmap.session = Some(Session { unmarked: true, ..session });
                        bitmap.raw.flags |= IN_USE;
                        lost.get_or_insert_with(|| lost_bitmap(bitmap.name(), &error));
                    }
                }
            } else {
                for host in released {
                    self.release_guest(refcounts, host);
                }
            }
        }
        let marked = self.bitmaps.lock().list.iter().any(|bitmap| bitmap.session.is_some());
        self.recording.store(marked, Ordering::Release);
        lost.map_or(Ok(()), Err)
    }

    /// Takes the mark away from bitmaps that were written back.
    async fn unmark_bitmaps(
        &self,
        refcounts: &mut Refcounts,
        stored: &[(usize, Session, Range)],
        moved: bool,
    ) -> Result<()> {
        // What they say is on disk before it is believed.
        self.write_back(refcounts).await?;
        if moved {
            let mut list = self.bitmaps.lock().list.clone();
            for (index, _, table) in stored {
                if let Some(bitmap) = list.get_mut(*index) {
                    bitmap.raw.flags &= !IN_USE;
                    bitmap.raw.bitmap_table_offset = table.start;
                    bitmap.raw.bitmap_table_size = (table.len / 8) as u32;
                }
            }
            return self.put_bitmaps(refcounts, list).await;
        }
        for (index, ..) in stored {
            let flags = self.bitmaps.lock().list.get(*index).map_or(0, |bitmap| bitmap.raw.flags);
            self.put_flags(*index, flags & !IN_USE).await?;
        }
        self.file.flush().await
    }

    async fn store_bitmap(
        &self,
        refcounts: &mut Refcounts,
        bitmap: &StoredBitmap,
        session: &Session,
    ) -> Result<Stored> {
        let mut fresh = Vec::new();
        let stored = self.store_words(refcounts, bitmap, session, &mut fresh).await;
        if stored.is_err() {
            for host in fresh {
                // The first failure is the one to report; what is not given back is at most a leak.
                let _ = self.drop_reference(refcounts, host).await;
            }
        }
        stored
    }

    /// Writes data and table. New clusters go to `fresh` until something may refer to them.
    async fn store_words(
        &self,
        refcounts: &mut Refcounts,
        bitmap: &StoredBitmap,
        session: &Session,
        fresh: &mut Vec<u64>,
    ) -> Result<Stored> {
        let cluster = self.header.cluster;
        let size = self.geometry().size;
        let bits = cluster.size() * 8;
        let total = size.div_ceil(bitmap.granularity());
        // Of the bits that are stored, so many count.
        let counted = if session.replaced { 0 } else { session.smallest.div_ceil(bitmap.granularity()) };
        let old = self.read_words(bitmap).await?;
        let needed = table_entries(&self.header, size, bitmap.granularity());
        let mut new = Vec::new();
        let mut released = Vec::new();
        let mut bytes = vec![0; cluster.size() as usize];
        let mut changed = vec![0; cluster.size() as usize];
        for index in 0..needed.max(old.len() as u64) {
            let word = old.get(index as usize).copied().unwrap_or(0);
            let host = word & OFFSET_MASK;
            let first = index * bits;
            let end = (first + bits).min(total);
            if index >= needed {
                if host != 0 {
                    released.push(host);
                }
                continue;
            }
            if !session.changes.any_bit(first, end) && (word == 0 || end <= counted) {
                new.push(word);
                continue;
            }
            bytes.fill(0);
            if first < counted {
                match host {
                    0 if word == ALL_ONES => bytes.fill(0xff),
                    0 => {}
                    host => self.file.read(host, &mut bytes, ReadFlags::default()).await?,
                }
                keep_bits(&mut bytes, counted - first);
            }
            session.changes.copy_bytes(first, &mut changed);
            for (byte, more) in bytes.iter_mut().zip(&changed) {
                *byte |= more;
            }
            let new_word = if is_zero(&bytes) {
                0
            } else if bytes.iter().all(|byte| *byte == 0xff) {
                ALL_ONES
            } else {
                let in_place = host != 0 && self.reference_count(refcounts, host).await? == 1;
                let at = if in_place {
                    self.check_overlap(Range::new(host, cluster.size()))?;
                    host
                } else {
                    let at = self.take_clusters(refcounts, 1, Purpose::Data).await?.0;
                    fresh.push(at);
                    at
                };
                self.file.write(at, &bytes, WriteFlags::default()).await?;
                at
            };
            if host != 0 && new_word & OFFSET_MASK != host {
                released.push(host);
            }
            new.push(new_word);
        }
        let table = bitmap.table();
        let (clusters, old_clusters) = (cluster.count(needed * 8), cluster.count(table.len));
        let start = if clusters == old_clusters {
            table.start
        } else {
            released.extend((0..old_clusters).map(|index| table.start + (index << cluster.bits())));
            let at = self.take_contiguous(refcounts, clusters).await?;
            fresh.extend((0..clusters).map(|index| at + (index << cluster.bits())));
            at
        };
        let stored = Stored { table: Range::new(start, needed * 8), released };
        if new == old {
            return Ok(stored);
        }
        // A refcount is on disk before something refers to its cluster.
        if !fresh.is_empty() {
            self.write_back_all(refcounts).await?;
        }
        let mut raw: Vec<u8> = new.iter().flat_map(|word| word.to_be_bytes()).collect();
        raw.resize((clusters << cluster.bits()) as usize, 0);
        if start == table.start {
            // A write that fails may have got half way, so the table may refer to them from here on.
            fresh.clear();
        }
        self.file.write(start, &raw, WriteFlags::default()).await?;
        fresh.clear();
        Ok(stored)
    }

    /// Makes sure that bitmaps can follow the disk to that size, and marks them.
    pub(super) async fn prepare_bitmaps_for(&self, length: u64) -> Result<()> {
        let too_large = {
            let bitmaps = self.bitmaps.lock();
            let usable = bitmaps.list.iter().filter(|bitmap| bitmap.check_usable().is_ok());
            let mut large = usable.filter(|bitmap| length.div_ceil(bitmap.granularity()) > MAX_BITS);
            large.next().map(StoredBitmap::name)
        };
        if let Some(name) = too_large {
            return Err(Error::new(
                ErrorKind::TooLarge,
                alloc::format!("bitmap '{name}' would be larger than 512 MiB for a disk of {length} bytes"),
            ));
        }
        let _refcounts = self.lock_refcounts().await;
        self.mark_bitmaps(Marked::All).await
    }

    /// Lets bitmaps follow the disk to its new size.
    pub(super) fn resize_bitmaps(&self, length: u64) {
        for bitmap in &mut self.bitmaps.lock().list {
            if let Some(session) = &mut bitmap.session {
                // That it fits was checked before.
                let _ = session.changes.resize(length);
                session.smallest = session.smallest.min(length);
            }
        }
    }
}

fn lost_bitmap(name: String, error: &Error) -> Error {
    Error::new(error.kind(), BitmapsLost { name, cause: alloc::format!("{}", error.problem()) })
}

/// Clears all bits but the first `count`.
fn keep_bits(bytes: &mut [u8], count: u64) {
    let whole = (count / 8).min(bytes.len() as u64) as usize;
    if let Some((first, rest)) = bytes.get_mut(whole..).and_then(<[u8]>::split_first_mut) {
        *first &= (1 << (count % 8)) - 1;
        rest.fill(0);
    }
}
