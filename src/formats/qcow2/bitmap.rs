//! The directory and the tables of bitmaps: bytes (QEMU docs/interop/qcow2, "Bitmaps").

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::bitmap::{DirtyBitmap, MAX_BITS};
use crate::describe::Bitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::extension::{BitmapsExtension, Extensions};
use crate::formats::qcow2::header::{AUTOCLEAR_BITMAPS, Header, MAX_HOST_OFFSET, Problem};
use crate::formats::qcow2::table::OFFSET_MASK;
use crate::node::{Node, Range, ReadFlags};
use crate::wire::on_disk;

/// Most bitmaps of an image, as QEMU limits it.
pub(super) const MAX_BITMAPS: u32 = 65535;
/// Largest directory in bytes, as QEMU limits it.
pub(super) const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Longest name in bytes, as QEMU limits it.
pub(super) const MAX_NAME_BYTES: usize = 1023;

/// Flag of an entry: what is stored may be out of date.
pub(super) const IN_USE: u32 = 1 << 0;
/// Flag of an entry: every change of the disk is to be recorded.
pub(super) const AUTO: u32 = 1 << 1;
/// Flag of an entry: the bitmap may be used by those who do not understand its extra data.
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
/// The type of a dirty tracking bitmap.
const DIRTY_TRACKING: u8 = 1;

/// Table entry: all bits of the cluster are set. Only without an offset.
pub(super) const ALL_ONES: u64 = 1;

on_disk! {
    /// The fixed part of a bitmap's entry in the directory.
    pub(super) struct RawBitmap: 24 bytes {
        bitmap_table_offset: u64 = 0, "Offset of the bitmap's table; cluster aligned.";
        bitmap_table_size: u32 = 8, "Entries in that table.";
        flags: u32 = 12, "Bit 0: in use, 1: auto, 2: extra data is compatible.";
        kind: u8 = 16, "1: dirty tracking bitmap.";
        granularity_bits: u8 = 17, "A bit stands for 2 to the power of this bytes; 9 to 31.";
        name_size: u16 = 18, "Length of the name; 1 to 1023.";
        extra_data_size: u32 = 20, "Length of the extra data.";
    }
}

/// A bitmap that is stored, and what is known of it beyond that.
#[derive(Clone, Debug)]
pub(super) struct StoredBitmap {
    pub(super) raw: RawBitmap,
    pub(super) extra: Vec<u8>,
    pub(super) name: Vec<u8>,
    /// Offset of its entry in the file.
    pub(super) at: u64,
    /// Whether it was not written back by its last user: it can only be removed.
    pub(super) inconsistent: bool,
    /// What was done to it since it was marked as in use. `None` if it was not.
    pub(super) session: Option<Session>,
}

/// Changes of a bitmap that are not stored yet.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// What became dirty.
    pub(super) changes: DirtyBitmap,
    /// Whether nothing that is stored counts any more.
    pub(super) replaced: bool,
    /// The smallest size of the disk in the meantime: what is stored beyond it does not count.
    pub(super) smallest: u64,
    /// Whether everything is stored, and the mark on disk may be gone, though that could not be seen through.
    pub(super) unmarked: bool,
}

impl StoredBitmap {
    pub(super) fn new(name: &str, granularity: u64, enabled: bool) -> Self {
        StoredBitmap {
            raw: RawBitmap {
                bitmap_table_offset: 0,
                bitmap_table_size: 0,
                flags: if enabled { AUTO } else { 0 },
                kind: DIRTY_TRACKING,
                granularity_bits: granularity.trailing_zeros() as u8,
                name_size: name.len() as u16,
                extra_data_size: 0,
            },
            extra: Vec::new(),
            name: name.as_bytes().to_vec(),
            at: 0,
            inconsistent: false,
            session: None,
        }
    }

    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    pub(super) fn granularity(&self) -> u64 {
        1 << self.raw.granularity_bits
    }

    /// Whether it has extra data that has to be understood to use it.
    pub(super) fn is_foreign(&self) -> bool {
        !self.extra.is_empty() && self.raw.flags & EXTRA_DATA_COMPATIBLE == 0
    }

    pub(super) fn is_auto(&self) -> bool {
        self.raw.flags & AUTO != 0
    }

    /// Where the table is.
    pub(super) fn table(&self) -> Range {
        Range::new(self.raw.bitmap_table_offset, u64::from(self.raw.bitmap_table_size) * 8)
    }

    /// Bytes that the entry takes.
    fn len(&self) -> usize {
        entry_len(&self.raw) as usize
    }

    pub(super) fn describe(&self) -> Bitmap {
        Bitmap { name: self.name(), granularity: self.granularity(), in_use: self.inconsistent, auto: self.is_auto() }
    }

    /// Fails unless the bitmap can be used.
    pub(super) fn check_usable(&self) -> Result<()> {
        let name = self.name();
        if self.inconsistent {
            return Err(Error::invalid(alloc::format!(
                "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
            )));
        }
        if self.is_foreign() {
            return Err(Error::unsupported(alloc::format!(
                "Bitmap '{name}' has {} bytes of extra data that are not understood and cannot be used",
                self.extra.len()
            ))
            .at_offset(self.at));
        }
        Ok(())
    }

    pub(super) fn parse(bytes: &[u8], at: u64) -> Option<Self> {
        let raw = RawBitmap::parse(bytes)?;
        let extra_end = RawBitmap::SIZE.checked_add(usize::try_from(raw.extra_data_size).ok()?)?;
        let extra = bytes.get(RawBitmap::SIZE..extra_end)?.to_vec();
        let name = bytes.get(extra_end..extra_end.checked_add(raw.name_size.into())?)?.to_vec();
        // The flag says what becomes of it, in memory and on disk.
        let inconsistent = raw.flags & IN_USE != 0;
        Some(StoredBitmap { raw, extra, name, at, inconsistent, session: None })
    }

    /// Fails if the entry says something impossible in a file of `length` bytes.
    pub(super) fn check(&self, header: &Header, length: u64) -> Result<()> {
        let raw = &self.raw;
        let name = self.name();
        let wrong = |field, offset: u64, found: u64, expected: &str| {
            let expected = alloc::format!("{expected} (bitmap '{name}')");
            Err(Problem::Field { field, found, expected }.invalid_at(self.at + offset))
        };
        let cluster = header.cluster;
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES {
            return wrong("name_size", 18, raw.name_size.into(), "1 to 1023");
        }
        if raw.kind != DIRTY_TRACKING {
            return wrong("type", 16, raw.kind.into(), "1, a dirty tracking bitmap");
        }
        if !(9..=31).contains(&raw.granularity_bits) {
            return wrong("granularity_bits", 17, raw.granularity_bits.into(), "9 to 31");
        }
        if raw.flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
            return wrong("bitmap flags", 12, raw.flags.into(), "no bits but 0 to 2");
        }
        let table = self.table();
        if table.start == 0 || !cluster.is_aligned(table.start) || table.start >= MAX_HOST_OFFSET {
            return wrong("bitmap_table_offset", 0, table.start, "a multiple of the cluster size within the file");
        }
        let bits = cluster.size() * 8;
        let entries = u64::from(raw.bitmap_table_size);
        if entries == 0 || entries * bits > MAX_BITS.max(bits) {
            return wrong("bitmap_table_size", 8, entries, "1 or more, for a bitmap of at most 512 MiB");
        }
        if table.end() > length {
            return wrong("bitmap_table_offset", 0, table.start, "a table within the file");
        }
        let needed = table_entries(header, header.raw.size, self.granularity());
        if !self.inconsistent && entries < needed {
            return wrong(
                "bitmap_table_size",
                8,
                entries,
                &alloc::format!("at least {needed} for the size of the disk"),
            );
        }
        Ok(())
    }
}

/// Length of an entry of the directory.
pub(super) fn entry_len(raw: &RawBitmap) -> u64 {
    (RawBitmap::SIZE as u64 + u64::from(raw.extra_data_size) + u64::from(raw.name_size)).next_multiple_of(8)
}

/// Entries of the table of a bitmap for a disk of `size` bytes.
pub(super) fn table_entries(header: &Header, size: u64, granularity: u64) -> u64 {
    size.div_ceil(granularity).div_ceil(header.cluster.size() * 8).max(1)
}

/// The bitmaps of an image, and where their directory is.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    pub(super) list: Vec<StoredBitmap>,
    pub(super) directory: Range,
}

impl Bitmaps {
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|bitmap| bitmap.name == name.as_bytes())
    }

    /// Where the directory and the tables are.
    pub(super) fn places(&self) -> Vec<Range> {
        let mut places: Vec<Range> = self.list.iter().map(StoredBitmap::table).collect();
        places.push(self.directory);
        places
    }

    /// Notes that a part of the disk has been written to.
    pub(super) fn record(&mut self, range: Range) {
        for bitmap in self.list.iter_mut().filter(|bitmap| bitmap.is_auto()) {
            if let Some(session) = &mut bitmap.session {
                session.changes.set(range);
            }
        }
    }
}

/// The bytes of a directory of these bitmaps that is to be stored at `start`, and notes where the entry of each is.
pub(super) fn directory(list: &mut [StoredBitmap], start: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bitmap in list {
        bitmap.at = start + bytes.len() as u64;
        let end = bytes.len() + bitmap.len();
        bytes.extend_from_slice(&bitmap.raw.emit());
        bytes.extend_from_slice(&bitmap.extra);
        bytes.extend_from_slice(&bitmap.name);
        bytes.resize(end, 0);
    }
    bytes
}

/// Bytes that a directory of these bitmaps takes.
pub(super) fn directory_bytes(list: &[StoredBitmap]) -> u64 {
    list.iter().map(|bitmap| bitmap.len() as u64).sum()
}

/// Reads the directory, unless the image says that it is out of date.
pub(super) async fn read_directory(file: &dyn Node, header: &Header, extensions: &Extensions) -> Result<Bitmaps> {
    let Some(extension) = extensions.bitmaps else { return Ok(Bitmaps::default()) };
    if header.raw.autoclear_features & AUTOCLEAR_BITMAPS == 0 {
        return Ok(Bitmaps::default());
    }
    let length = file.info().length;
    let BitmapsExtension { count, directory_size, directory_offset } = extension;
    let wrong = |field, found, expected: &str| {
        Problem::Field { field, found, expected: expected.to_string() }.invalid_at(directory_offset)
    };
    if count == 0 || count > MAX_BITMAPS {
        return Err(wrong("nb_bitmaps", count.into(), "1 to 65535"));
    }
    if directory_size > MAX_DIRECTORY_BYTES {
        return Err(wrong("bitmap_directory_size", directory_size, "at most 64 MiB"));
    }
    if directory_offset == 0 || !header.cluster.is_aligned(directory_offset) {
        return Err(wrong("bitmap_directory_offset", directory_offset, "a multiple of the cluster size"));
    }
    let place = Range::new(directory_offset, directory_size);
    if place.end() > length {
        return Err(Problem::Truncated { what: "the bitmap directory", found: length, expected: place.end() }
            .invalid_at(directory_offset));
    }
    let mut bytes = vec![0; directory_size as usize];
    file.read(directory_offset, &mut bytes, ReadFlags::default()).await?;
    let mut list = Vec::new();
    let mut names = BTreeSet::new();
    let mut used = 0;
    for _ in 0..count {
        let at = directory_offset + used as u64;
        let Some(bitmap) = bytes.get(used..).and_then(|rest| StoredBitmap::parse(rest, at)) else {
            return Err(wrong("bitmap_directory_size", directory_size, "room for every bitmap"));
        };
        bitmap.check(header, length)?;
        if !names.insert(bitmap.name.clone()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                alloc::format!("two bitmaps are called '{}', expected one", bitmap.name()),
            )
            .at_offset(at));
        }
        used += bitmap.len();
        list.push(bitmap);
    }
    if used as u64 != directory_size {
        return Err(wrong("bitmap_directory_size", directory_size, &alloc::format!("{used}, the size of all entries")));
    }
    Ok(Bitmaps { list, directory: place })
}

/// Fails unless an entry of a table refers to a cluster within a file of `length` bytes, or to none.
pub(super) fn check_word(header: &Header, table: Range, index: u64, word: u64, length: u64) -> Result<()> {
    let host = word & OFFSET_MASK;
    let expected = if word & !(OFFSET_MASK | ALL_ONES) != 0 {
        "no bits but 0 and 9 to 55"
    } else if host != 0 && word & ALL_ONES != 0 {
        "bit 0 clear, as there is an offset"
    } else if !header.cluster.is_aligned(host) {
        "a multiple of the cluster size"
    } else if host != 0 && host.saturating_add(header.cluster.size()) > length {
        "a cluster within the file"
    } else {
        return Ok(());
    };
    Err(Problem::Entry { table: "bitmap table", index, found: word, expected }.corrupt_at(table.start + index * 8))
}
