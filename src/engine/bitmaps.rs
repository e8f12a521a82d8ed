//! The bitmaps of an image, which say what was written to since they were cleared.

use alloc::vec::Vec;

use crate::bitmap::DirtyBitmap;
use crate::describe::Bitmap;
use crate::engine::format::BitmapChange;
use crate::engine::image::Image;
use crate::error::{Error, Result};
use crate::node::Range;

/// Notes that a range was written to when it goes, however the request ended.
pub(crate) struct Recorded<'a> {
    image: &'a Image,
    range: Range,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.image.format.record(self.range);
    }
}

impl Image {
    /// What is to be recorded of a request, which must still be tracked when the result goes.
    pub(crate) fn recording(&self, range: Range) -> Recorded<'_> {
        Recorded { image: self, range }
    }

    /// Whether bitmaps can be stored in the image.
    pub fn stores_bitmaps(&self) -> bool {
        self.format.stores_bitmaps()
    }

    /// The bitmaps that are stored in the image, in the order in which they are.
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        Ok(self.describe()?.bitmaps)
    }

    /// Fails unless there is a bitmap of that name that can be used.
    ///
    /// # Errors
    /// There is none, or it is inconsistent or has something that is not understood.
    pub fn check_bitmap(&self, name: &str) -> Result<()> {
        self.format.check_bitmap(name).map_err(|error| self.explain(error))
    }

    /// What a bitmap says.
    ///
    /// # Errors
    /// There is no such bitmap, it cannot be used, or what reading it gives.
    pub async fn read_bitmap(&self, name: &str) -> Result<DirtyBitmap> {
        let _all = self.alone().await;
        self.format.read_bitmap(name).await.map_err(|error| self.explain(error))
    }

    /// Adds a bitmap with nothing dirty. `granularity` is in bytes, a power of two from 512 to 2 GiB.
    ///
    /// # Errors
    /// There is a bitmap of that name, the granularity is not allowed, or the image cannot store it.
    pub async fn add_bitmap(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.change_bitmap(BitmapChange::Add { name, granularity, enabled }).await
    }

    /// Removes a bitmap, whatever state it is in.
    ///
    /// # Errors
    /// There is no such bitmap, or what writing gives.
    pub async fn remove_bitmap(&self, name: &str) -> Result<()> {
        self.change_bitmap(BitmapChange::Remove(name)).await
    }

    /// Makes a bitmap say that nothing is dirty. Written back when the image is closed.
    ///
    /// # Errors
    /// There is no such bitmap, it cannot be used, or what writing gives.
    pub async fn clear_bitmap(&self, name: &str) -> Result<()> {
        self.change_bitmap(BitmapChange::Clear(name)).await
    }

    /// Lets a bitmap record changes of the disk from now on.
    ///
    /// # Errors
    /// There is no such bitmap, it cannot be used, or what writing gives.
    pub async fn enable_bitmap(&self, name: &str) -> Result<()> {
        self.change_bitmap(BitmapChange::Enable(name)).await
    }

    /// Lets a bitmap record no more changes.
    ///
    /// # Errors
    /// There is no such bitmap, it cannot be used, or what writing gives.
    pub async fn disable_bitmap(&self, name: &str) -> Result<()> {
        self.change_bitmap(BitmapChange::Disable(name)).await
    }

    /// Adds to a bitmap what another one says, of this or another image of the same size and whatever granularity. Written
    /// back when the image is closed.
    ///
    /// # Errors
    /// There is no such bitmap, it cannot be used, the sizes differ, or what writing gives.
    pub async fn merge_bitmap(&self, name: &str, from: &DirtyBitmap) -> Result<()> {
        self.change_bitmap(BitmapChange::Merge(name, from)).await
    }

    /// Marks all bitmaps as in use on disk until the image is closed, as QEMU does with every image that it opens for
    /// writing. Otherwise they are marked when something changes.
    ///
    /// # Errors
    /// The image is read-only, or what writing gives.
    pub async fn claim_bitmaps(&self) -> Result<()> {
        self.check_write(Range::default())?;
        let _all = self.alone().await;
        self.format.claim().await.map_err(|error| self.explain(error))
    }

    async fn change_bitmap(&self, change: BitmapChange<'_>) -> Result<()> {
        self.check_write(Range::default())?;
        let _all = self.alone().await;
        let changed: Result<(), Error> = self.format.change_bitmaps(&change).await;
        changed.map_err(|error| self.explain(error))
    }
}
