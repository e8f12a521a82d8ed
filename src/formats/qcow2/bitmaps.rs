//! Adding, removing and changing bitmaps.
//!
//! A bitmap that is about to change, or to record changes of the disk, is marked as in use on disk first. It is written
//! back, and the mark taken away, when the image is closed. A directory with other entries goes to a new place, and the
//! header points to it once all of it is on disk.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::bitmap::{DirtyBitmap, MAX_BITS, MAX_GRANULARITY, MIN_GRANULARITY, default_granularity};
use crate::engine::BitmapChange;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::bitmap::{
    AUTO, Bitmaps, IN_USE, MAX_BITMAPS, MAX_DIRECTORY_BYTES, MAX_NAME_BYTES, Session, StoredBitmap, directory,
    directory_bytes, table_entries,
};
use crate::formats::qcow2::bitmap_store::Marked;
use crate::formats::qcow2::refcount::Refcounts;
use crate::formats::qcow2::table::OFFSET_MASK;
use crate::node::{Range, WriteFlags};

impl Qcow2 {
    /// Marks every bitmap as in use.
    pub(super) async fn claim_bitmaps(&self) -> Result<()> {
        if self.bitmaps.lock().list.is_empty() {
            return Ok(());
        }
        let _refcounts = self.lock_refcounts().await;
        self.begin_metadata().await?;
        self.mark_bitmaps(Marked::All).await
    }

    pub(super) async fn change_bitmaps(&self, change: &BitmapChange<'_>) -> Result<()> {
        match change {
            BitmapChange::Add { name, granularity, enabled } => self.add_bitmap(name, *granularity, *enabled).await,
            BitmapChange::Remove(name) => self.remove_bitmap(name).await,
            BitmapChange::Enable(name) => self.set_auto(name, true).await,
            BitmapChange::Disable(name) => self.set_auto(name, false).await,
            BitmapChange::Clear(name) => {
                self.edit_bitmap(name, |session| {
                    session.changes.clear_all();
                    session.replaced = true;
                })
                .await
            }
            BitmapChange::Merge(name, from) => {
                self.usable_bitmap(name)?;
                let length = self.geometry().size;
                if from.length() != length {
                    return Err(Error::invalid(alloc::format!(
                        "Bitmaps are of different sizes (destination size is {length}, source size is {}) and can't be merged",
                        from.length()
                    )));
                }
                self.edit_bitmap(name, |session| session.changes.merge(from)).await
            }
        }
    }

    /// The position of a bitmap that can be used.
    pub(super) fn usable_bitmap(&self, name: &str) -> Result<usize> {
        let bitmaps = self.bitmaps.lock();
        let index = bitmaps.position(name).ok_or_else(|| not_found(name))?;
        bitmaps.list.get(index).map_or(Ok(()), StoredBitmap::check_usable)?;
        Ok(index)
    }

    /// What a new bitmap would be, if there can be one.
    fn new_bitmap(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<StoredBitmap> {
        let bitmaps = self.bitmaps.lock();
        let granularity = granularity.unwrap_or_else(|| default_granularity(Some(self.header.cluster.size())));
        if !granularity.is_power_of_two() || !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity) {
            return Err(Error::invalid("Granularity must be power of 2 and at least 512"));
        }
        if name.is_empty() {
            return Err(Error::invalid("Bitmap name cannot be empty"));
        }
        if bitmaps.position(name).is_some() {
            return Err(Error::new(ErrorKind::Exists, alloc::format!("Bitmap already exists: {name}")));
        }
        let refuse = |text: &str| Err(Error::invalid(alloc::format!("Can't make bitmap '{name}' persistent: {text}")));
        if self.version() < 3 {
            return refuse("Cannot store dirty bitmaps in qcow2 v2 files");
        }
        if name.len() > MAX_NAME_BYTES {
            return refuse(&alloc::format!("Name length exceeds maximum ({MAX_NAME_BYTES} characters)"));
        }
        if bitmaps.list.len() >= MAX_BITMAPS as usize {
            return refuse("Maximum number of persistent bitmaps is already reached");
        }
        if self.geometry().size.div_ceil(granularity) > MAX_BITS {
            return refuse("Too much space will be occupied by the bitmap. Use larger granularity");
        }
        let bitmap = StoredBitmap::new(name, granularity, enabled);
        if directory_bytes(&bitmaps.list) + directory_bytes(core::slice::from_ref(&bitmap)) > MAX_DIRECTORY_BYTES {
            return refuse("Not enough space in the bitmap directory");
        }
        Ok(bitmap)
    }

    async fn add_bitmap(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        let mut bitmap = self.new_bitmap(name, granularity, enabled)?;
        let mut records = false;
        let cluster = self.header.cluster;
        let mut refcounts = self.lock_refcounts().await;
        self.begin_metadata().await?;
        let size = self.geometry().size;
        if enabled && self.changing.load(Ordering::Acquire) {
            bitmap.session = Some(Session::new(size, bitmap.granularity())?);
            bitmap.raw.flags |= IN_USE;
            records = true;
        }
        let entries = table_entries(&self.header, size, bitmap.granularity());
        let clusters = cluster.count(entries * 8);
        let at = self.take_contiguous(&mut refcounts, clusters).await?;
        bitmap.raw.bitmap_table_offset = at;
        bitmap.raw.bitmap_table_size = entries as u32;
        let stored = async {
            self.file.write(at, &vec![0; (clusters << cluster.bits()) as usize], WriteFlags::default()).await?;
            let mut list = self.bitmaps.lock().list.clone();
            list.push(bitmap);
            self.put_bitmaps(&mut refcounts, list).await
        };
        let stored = stored.await;
        // A step may have failed after the one that counts.
        if self.usable_bitmap(name).is_err() {
            self.release_places(&mut refcounts, Range::new(at, clusters << cluster.bits()));
        } else if records {
            self.recording.store(true, Ordering::Release);
        }
        stored
    }

    async fn remove_bitmap(&self, name: &str) -> Result<()> {
        let Some(index) = self.bitmaps.lock().position(name) else { return Err(not_found(name)) };
        let mut refcounts = self.lock_refcounts().await;
        self.begin_metadata().await?;
        let mut list = self.bitmaps.lock().list.clone();
        let bitmap = list.remove(index);
        // What cannot be told is at most a leak.
        let words = self.read_words(&bitmap).await.unwrap_or_default();
        self.put_bitmaps(&mut refcounts, list).await?;
        self.release_places(&mut refcounts, bitmap.table());
        for host in words.into_iter().map(|word| word & OFFSET_MASK).filter(|host| *host != 0) {
            self.release_guest(&mut refcounts, host);
        }
        self.write_back(&mut refcounts).await
    }

    async fn set_auto(&self, name: &str, auto: bool) -> Result<()> {
        let index = self.usable_bitmap(name)?;
        let _refcounts = self.lock_refcounts().await;
        self.begin_metadata().await?;
        if auto && self.changing.load(Ordering::Acquire) {
            self.mark_bitmaps(Marked::One(index)).await?;
        }
        let flags = {
            let bitmaps = self.bitmaps.lock();
            bitmaps.list.get(index).map_or(0, |bitmap| bitmap.raw.flags)
        };
        let flags = if auto { flags | AUTO } else { flags & !AUTO };
        self.put_flags(index, flags).await?;
        self.file.flush().await
    }

    /// Marks a bitmap as in use and changes it in memory.
    async fn edit_bitmap(&self, name: &str, edit: impl FnOnce(&mut Session)) -> Result<()> {
        let index = self.usable_bitmap(name)?;
        let _refcounts = self.lock_refcounts().await;
        self.begin_metadata().await?;
        self.mark_bitmaps(Marked::One(index)).await?;
        let mut bitmaps = self.bitmaps.lock();
        if let Some(session) = bitmaps.list.get_mut(index).and_then(|bitmap| bitmap.session.as_mut()) {
            edit(session);
        }
        Ok(())
    }

    /// What a bitmap says now.
    pub(super) async fn read_bitmap(&self, name: &str) -> Result<DirtyBitmap> {
        let index = self.usable_bitmap(name)?;
        let _refcounts = self.lock_refcounts().await;
        let Some(bitmap) = self.bitmaps.lock().list.get(index).cloned() else { return Err(not_found(name)) };
        let size = self.geometry().size;
        let (mut bits, stored) = match &bitmap.session {
            Some(session) => (session.changes.clone(), if session.replaced { 0 } else { session.smallest }),
            None => (DirtyBitmap::new(size, bitmap.granularity())?, size),
        };
        if stored > 0 {
            let mut old = DirtyBitmap::new(stored, bitmap.granularity())?;
            self.add_stored(&bitmap, &mut old).await?;
            bits.merge(&old);
        }
        Ok(bits)
    }

    /// Writes a new directory, lets the header point to it, and gives the old one back.
    pub(super) async fn put_bitmaps(&self, refcounts: &mut Refcounts, mut list: Vec<StoredBitmap>) -> Result<()> {
        let cluster = self.header.cluster;
        let old = self.bitmaps.lock().directory;
        let bytes = directory_bytes(&list);
        let clusters = cluster.count(bytes);
        let mut place = Range::default();
        let pointed;
        if clusters > 0 {
            place = Range::new(self.take_contiguous(refcounts, clusters).await?, bytes);
            let written = async {
                let mut raw = directory(&mut list, place.start);
                raw.resize((clusters << cluster.bits()) as usize, 0);
                self.file.write(place.start, &raw, WriteFlags::default()).await?;
                self.write_back(&mut *refcounts).await
            };
            if let Err(error) = written.await {
                self.release_places(refcounts, place);
                return Err(error);
            }
            pointed = self.point_to_directory(list.len(), place, old.len > 0).await;
        } else {
            self.write_back(refcounts).await?;
            pointed = self.remove_extension().await;
        }
        // A step may have failed after the one that counts.
        if pointed.is_err() && self.directory_in_header().await != Some(place) {
            return pointed;
        }
        let new = Bitmaps { list, directory: place };
        self.metadata.note_directories(&self.extensions, &self.directory.lock(), &new.places());
        *self.bitmaps.lock() = new;
        pointed?;
        self.release_places(refcounts, old);
        self.write_back(refcounts).await
    }

    /// Gives back the clusters of something that nothing refers to any more.
    pub(super) fn release_places(&self, refcounts: &mut Refcounts, place: Range) {
        let clusters = self.header.cluster.count(place.len);
        for index in 0..clusters {
            self.release_guest(refcounts, place.start + (index << self.header.cluster.bits()));
        }
    }
}

impl Session {
    pub(super) fn new(size: u64, granularity: u64) -> Result<Self> {
        Ok(Session { changes: DirtyBitmap::new(size, granularity)?, replaced: false, smallest: size, unmarked: false })
    }
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, alloc::format!("Dirty bitmap '{name}' not found"))
}
