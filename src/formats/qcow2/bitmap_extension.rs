//! The bitmaps extension of the header: it says where the directory of bitmaps is.
//!
//! Each step is one write within a sector, between two flushes, so that a power cut leaves the old or the new.

use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::extension::{BITMAPS, RawBitmaps, RawExtension};
use crate::formats::qcow2::header::AUTOCLEAR_BITMAPS;
use crate::node::{Range, ReadFlags, WriteFlags};

/// The smallest that a disk writes at once.
const SECTOR: u64 = 512;
/// Length of the extension's data.
const DATA_BYTES: u64 = RawBitmaps::SIZE as u64;
/// Length of type and length before the data of an extension, and of the mark behind the last one.
const MARK_BYTES: u64 = RawExtension::SIZE as u64;

/// Where the extensions of the header are.
struct Layout {
    /// Offset of the data of the bitmaps extension.
    bitmaps: Option<u64>,
    /// Offset of the mark behind the last extension.
    end: u64,
    /// Where the space for extensions ends.
    limit: u64,
}

impl Layout {
    /// Looks at a first cluster that was parsed before.
    fn of(cluster: &[u8], start: u64) -> Layout {
        let room = cluster.len() as u64;
        let limit = match cluster.get(8..16).map_or(0, BE::read_u64) {
            0 => room,
            name => name.min(room),
        };
        let mut layout = Layout { bitmaps: None, end: start, limit };
        while layout.end + MARK_BYTES <= limit {
            let mark = cluster.get(layout.end as usize..).and_then(RawExtension::parse);
            let Some(RawExtension { kind: kind @ 1.., len }) = mark else { break };
            let data = layout.end + MARK_BYTES;
            if kind == BITMAPS && u64::from(len) == DATA_BYTES {
                layout.bitmaps = Some(data);
            }
            layout.end = data + u64::from(len).next_multiple_of(8);
        }
        layout
    }
}

/// Whether a write of the range is one sector.
fn is_atomic(at: u64, len: u64) -> bool {
    at / SECTOR == (at + len - 1) / SECTOR
}

impl Qcow2 {
    /// Whether the image had a bitmaps extension when it was opened that is not to be believed.
    pub(super) fn has_stale_bitmaps(&self) -> bool {
        let raw = &self.header.raw;
        let believed = raw.autoclear_features & AUTOCLEAR_BITMAPS != 0;
        raw.version >= 3 && self.extensions.bitmaps.is_some() && !believed
    }

    async fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write(at, bytes, WriteFlags::default()).await?;
        self.file.flush().await
    }

    async fn believe_extension(&self, believe: bool) -> Result<()> {
        let others = self.geometry().autoclear & !AUTOCLEAR_BITMAPS;
        let features = others | if believe { AUTOCLEAR_BITMAPS } else { 0 };
        self.file.write(88, &features.to_be_bytes(), WriteFlags::default()).await?;
        self.geometry.lock().autoclear = features;
        self.file.flush().await
    }

    /// Lets the header point to a directory of `count` bitmaps. `believed` says whether it points to one now.
    pub(super) async fn point_to_directory(&self, count: usize, directory: Range, believed: bool) -> Result<()> {
        let data = RawBitmaps {
            nb_bitmaps: count as u32,
            reserved: 0,
            bitmap_directory_size: directory.len,
            bitmap_directory_offset: directory.start,
        }
        .emit();
        let layout = self.read_layout().await?.1;
        let Some(at) = layout.bitmaps else {
            self.append_extension(&layout, &data).await?;
            return self.believe_extension(true).await;
        };
        if believed && is_atomic(at, DATA_BYTES) {
            return self.put(at, &data).await;
        }
        // The fields lie in two sectors, or mean nothing now: nobody looks at them until they are all there.
        if believed {
            self.believe_extension(false).await?;
        }
        self.put(at, &data).await?;
        self.believe_extension(true).await
    }

    /// Lets the header say that there are no bitmaps.
    pub(super) async fn remove_extension(&self) -> Result<()> {
        self.believe_extension(false).await?;
        let (cluster, layout) = self.read_layout().await?;
        let Some(data) = layout.bitmaps else { return Ok(()) };
        let (from, to) = (data + DATA_BYTES, layout.end);
        let start = data - MARK_BYTES;
        if from == to {
            return self.put(start, &[0; MARK_BYTES as usize]).await;
        }
        // Others follow. Without a sector to move them in at once, the extension stays and says nothing.
        let len = layout.limit.min(to + MARK_BYTES) - start;
        if is_atomic(start, len) {
            let mut moved = cluster.get(from as usize..to as usize).unwrap_or_default().to_vec();
            moved.resize(len as usize, 0);
            self.put(start, &moved).await?;
        }
        Ok(())
    }

    /// The directory that the header points to, empty if to none. `None` if that cannot be told.
    pub(super) async fn directory_in_header(&self) -> Option<Range> {
        let (cluster, layout) = self.read_layout().await.ok()?;
        let believed = cluster.get(88..96).map(BE::read_u64)? & AUTOCLEAR_BITMAPS != 0;
        let Some(at) = layout.bitmaps.filter(|_| believed) else { return Some(Range::default()) };
        let raw = RawBitmaps::parse(cluster.get(at as usize..)?)?;
        Some(Range::new(raw.bitmap_directory_offset, raw.bitmap_directory_size))
    }

    async fn read_layout(&self) -> Result<(Vec<u8>, Layout)> {
        let len = self.header.cluster.size().min(self.file.info().length);
        let mut cluster = vec![0; len as usize];
        self.file.read(0, &mut cluster, ReadFlags::default()).await?;
        // The rest of the cluster is there as soon as it is written.
        cluster.resize(self.header.cluster.size() as usize, 0);
        let layout = Layout::of(&cluster, self.header.raw.header_length.into());
        Ok((cluster, layout))
    }

    /// Adds the extension behind the others. If the name of the backing file is in the way, it moves.
    async fn append_extension(&self, layout: &Layout, data: &[u8]) -> Result<()> {
        let size = self.header.cluster.size();
        let needed = layout.end + MARK_BYTES + DATA_BYTES + MARK_BYTES;
        let full = |end: u64| {
            Error::new(
                ErrorKind::NoSpace,
                alloc::format!(
                    "the header with a bitmaps extension takes {end} bytes, expected at most one cluster of {size}"
                ),
            )
            .at_offset(layout.end)
        };
        if layout.end + MARK_BYTES > layout.limit || needed > size {
            return Err(full(needed));
        }
        if needed > layout.limit {
            let cluster = self.read_layout().await?.0;
            let len = cluster.get(16..20).map_or(0, BE::read_u32) as usize;
            let name = cluster.get(layout.limit as usize..).and_then(|rest| rest.get(..len)).unwrap_or_default();
            let to = needed.max((layout.limit + len as u64).next_multiple_of(8));
            if to + len as u64 > size {
                return Err(full(to + len as u64));
            }
            self.put(to, name).await?;
            self.put(8, &to.to_be_bytes()).await?;
        }
        // Behind the mark nothing is looked at; at last the mark itself becomes the extension.
        let mut rest = data.to_vec();
        rest.resize((DATA_BYTES + MARK_BYTES) as usize, 0);
        self.put(layout.end + MARK_BYTES, &rest).await?;
        let mark = RawExtension { kind: BITMAPS, len: RawBitmaps::SIZE as u32 };
        self.put(layout.end, &mark.emit()).await
    }
}
