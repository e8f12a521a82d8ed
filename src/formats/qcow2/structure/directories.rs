//! Snapshots and bitmaps (QEMU docs/interop/qcow2, "Snapshots", "Bitmaps"): tables whose entries differ in length, so that
//! the way to one leads past those before it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::Result;
use crate::formats::qcow2::bitmap::{
    self, ALL_ONES, MAX_BITMAPS, MAX_DIRECTORY_BYTES, RawBitmap, StoredBitmap, check_word,
};
use crate::formats::qcow2::header::{AUTOCLEAR_BITMAPS, MAX_SNAPSHOTS};
use crate::formats::qcow2::snapshot::{MAX_EXTRA_BYTES, MAX_TABLE_BYTES, RawSnapshot, entry_len};
use crate::formats::qcow2::structure::header::text;
use crate::formats::qcow2::structure::{Branch, L1, Tables, counted};
use crate::formats::qcow2::table::{OFFSET_MASK, word};
use crate::node::{Node, Range};
use crate::structure::tree::{Bits, Child, Listing, Page, blame, fields, read};
use crate::structure::{Part, PartKind};
use crate::wire::on_disk;

/// Tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;
/// Names are shown up to this many bytes.
const MAX_NAME: u64 = 1024;
/// Of longer entries it is not said what is wrong with them.
const MAX_CHECKED: u64 = 64 << 10;

on_disk! {
    /// Extra data of a snapshot that is known.
    struct RawExtra: 24 bytes {
        vm_state_size: u64 = 0, "Size of the machine state in bytes; counts instead of the shorter field.";
        disk_size: u64 = 8, "Size of the disk in bytes when it was made.";
        icount: u64 = 16, "Instructions that the machine had run, or all bits set if they were not counted.";
    }
}

const IN_USE: Bits =
    Bits::new("in_use", 0, 1, "Set while a program records changes: what is stored is out of date then.");
const AUTO: Bits = Bits::new("auto", 1, 1, "Set if changes of the disk are to be recorded.");
const COMPATIBLE: Bits =
    Bits::new("extra_data_compatible", 2, 1, "Set if the bitmap may be used without understanding its extra data.");
const FLAGS_RESERVED: Bits = Bits::new("reserved", 3, 29, "Reserved; zero.");

const WORD_HIGH: Bits = Bits::new("reserved", 56, 8, "Reserved; zero.");
const WORD_OFFSET: Bits = Bits::new("offset", 9, 47, "Offset of the cluster with the bits; 0: they are all alike.");
const WORD_LOW: Bits = Bits::new("reserved", 1, 8, "Reserved; zero.");
const WORD_ONES: Bits = Bits::new("all ones", 0, 1, "Without an offset: set if all bits are set.");

/// Parts of an entry of a bitmap's table.
const BITMAP_ENTRY_PARTS: u64 = 4;

/// Reads a table from its start on.
struct Window<'a> {
    file: &'a dyn Node,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Bytes at `at`, all of them or `None`.
    async fn get(&mut self, at: u64, len: u64) -> Result<Option<&[u8]>> {
        let within = |window: &Self| {
            let start = at.checked_sub(window.at)?;
            let end = start.checked_add(len)?;
            (end <= window.bytes.len() as u64).then_some((start as usize, end as usize))
        };
        if within(self).is_none() {
            self.bytes = read(self.file, at, PIECE.max(len)).await?;
            self.at = at;
        }
        Ok(within(self).and_then(|(start, end)| self.bytes.get(start..end)))
    }
}

/// What stands where an entry is cut off.
fn cut_off(index: u64, at: u64, what: &'static str, why: String) -> Child<Branch> {
    Part::new(PartKind::Entry, format!("{what} {index}"), Range::new(at, 0), "It is not all there.")
        .problem(Some(why))
        .into()
}

impl Tables<'_> {
    fn window(&self) -> Window<'_> {
        Window { file: self.file, at: 0, bytes: Vec::new() }
    }

    pub(super) async fn snapshots_part(&self) -> Result<Child<Branch>> {
        let at = self.raw.snapshots_offset;
        let (seen, whole, end) = self.each_snapshot(|_, _, _| {}).await?;
        let count = self.raw.nb_snapshots;
        let cut = (!whole).then(|| format!("not all of its {count} entries are in the file"));
        let doc = "The internal snapshots: disks as they were, of which the clusters are kept.";
        // The padding of the last entry may be missing.
        let place = Range::new(at, end.min(self.length).saturating_sub(at));
        let part = Part::new(PartKind::Table, "snapshot table", place, doc)
            .value(counted(count, "snapshot", "snapshots"))
            .problem(self.crooked(at))
            .problem(cut);
        Ok(part.with(seen + u64::from(!whole), Branch::Snapshots))
    }

    /// Shows `each` every entry: index, place, fixed fields. Gives how many there are, whether they are all in the file, and
    /// the end of the last one.
    async fn each_snapshot(&self, mut each: impl FnMut(u64, u64, RawSnapshot)) -> Result<(u64, bool, u64)> {
        let start = self.raw.snapshots_offset;
        let mut window = self.window();
        let mut at = start;
        let count = u64::from(self.raw.nb_snapshots.min(MAX_SNAPSHOTS));
        for index in 0..count {
            let fixed = window.get(at, RawSnapshot::SIZE as u64).await?.and_then(RawSnapshot::parse);
            let Some(raw) = fixed else { return Ok((index, false, at)) };
            let end = at.checked_add(entry_len(&raw)).filter(|end| end - start <= MAX_TABLE_BYTES);
            let Some(end) = end else { return Ok((index, false, at)) };
            each(index, at, raw);
            at = end;
        }
        Ok((count, self.raw.nb_snapshots <= MAX_SNAPSHOTS, at))
    }

    pub(super) async fn snapshots(&self, page: Page) -> Result<Listing<Branch>> {
        let mut wanted = Vec::new();
        let (seen, whole, end) = self
            .each_snapshot(|index, at, raw| {
                if index >= page.from && wanted.len() < page.count {
                    wanted.push((index, at, raw));
                }
            })
            .await?;
        let mut children = Vec::new();
        for (index, at, raw) in wanted {
            children.push(self.snapshot_part(index, at, raw).await?);
        }
        if !whole && seen >= page.from && children.len() < page.count {
            let why = format!("the entry does not fit into the file, which ends at {:#x}, or is too long", self.length);
            children.push(cut_off(seen, end, "snapshot", why));
        }
        Ok(Listing { total: seen + u64::from(!whole), children })
    }

    async fn snapshot_part(&self, index: u64, at: u64, raw: RawSnapshot) -> Result<Child<Branch>> {
        let names = at.saturating_add(RawSnapshot::SIZE as u64).saturating_add(raw.extra_data_size.into());
        let id_len = u64::from(raw.id_str_size);
        let id = read(self.file, names, id_len.min(MAX_NAME)).await?;
        let name = read(self.file, names.saturating_add(id_len), u64::from(raw.name_size).min(MAX_NAME)).await?;
        let value = format!("'{}', identifier {}", String::from_utf8_lossy(&name), String::from_utf8_lossy(&id));
        let extra = (raw.extra_data_size > MAX_EXTRA_BYTES)
            .then(|| format!("it has {} bytes of extra data, expected at most {MAX_EXTRA_BYTES}", raw.extra_data_size));
        let end = names.saturating_add(id_len).saturating_add(raw.name_size.into());
        let range = Range::new(at, self.snapshot_end(at, &raw).saturating_sub(at));
        let short = (self.raw.version >= 3 && raw.extra_data_size < 16)
            .then(|| "version 3 wants at least 16 bytes of extra data".to_string());
        let l1 = self.l1_part("L1 table", self.snapshot_l1(at, &raw).await?);
        let doc = "A disk as it was.";
        let part = Part::new(PartKind::Entry, format!("snapshot {index}"), range, doc)
            .value(value)
            .problem(extra)
            .problem(self.beyond(end))
            .problem(short)
            .problem(l1.part.problem.map(|problem| format!("its L1 table: {problem}")));
        // Its fields, identifier, name and L1 table, and what not every snapshot has.
        let usual = RawSnapshot::FIELDS.len() as u64 + 3;
        let padded = padding(end, self.snapshot_end(at, &raw)).is_some();
        let total = usual + u64::from(raw.extra_data_size > 0) + u64::from(padded);
        Ok(part.with(total, Branch::Snapshot { at, raw }))
    }

    /// Where an entry ends, of which the padding may be missing.
    fn snapshot_end(&self, at: u64, raw: &RawSnapshot) -> u64 {
        at.saturating_add(entry_len(raw)).min(self.length)
    }

    async fn snapshot_l1(&self, at: u64, raw: &RawSnapshot) -> Result<L1> {
        let extra =
            read(self.file, at.saturating_add(RawSnapshot::SIZE as u64), raw.extra_data_size.min(24).into()).await?;
        Ok(L1 {
            at: raw.l1_table_offset,
            entries: raw.l1_size.into(),
            size: raw.disk_size(word(&extra, 1), self.raw.size, self.l2_coverage()),
        })
    }

    pub(super) async fn snapshot(&self, at: u64, raw: &RawSnapshot) -> Result<Vec<Child<Branch>>> {
        let bytes = read(self.file, at, RawSnapshot::SIZE as u64).await?;
        let l1 = self.snapshot_l1(at, raw).await?;
        let mut children: Vec<Child<Branch>> = fields(RawSnapshot::FIELDS, &bytes, at)
            .map(|part| match part.name.as_str() {
                "l1_table_offset" => part.target(self.place(l1.at, l1.entries * 8)).into(),
                _ => part.into(),
            })
            .collect();
        let mut next = at.saturating_add(RawSnapshot::SIZE as u64);
        let extra = u64::from(raw.extra_data_size);
        if extra > 0 {
            let doc = "Fields that were added to the format later.";
            let total = self.snapshot_extra(next, extra).await?.len() as u64;
            let part = Part::new(PartKind::Table, "extra data", Range::new(next, extra), doc);
            children.push(part.with(total, Branch::SnapshotExtra { at: next, len: extra }));
        }
        next = next.saturating_add(extra);
        for (name, len, doc) in
            [("id_str", raw.id_str_size, "The identifier, usually a number."), ("name", raw.name_size, "The name.")]
        {
            let range = Range::new(next, len.into());
            let bytes = read(self.file, next, range.len.min(MAX_NAME)).await?;
            children.push(text(name, range, &bytes, doc).into());
            next = range.end();
        }
        children.extend(padding(next, self.snapshot_end(at, raw)));
        children.push(self.l1_part("L1 table", l1));
        Ok(children)
    }

    pub(super) async fn snapshot_extra(&self, at: u64, len: u64) -> Result<Vec<Child<Branch>>> {
        let bytes = read(self.file, at, len.min(RawExtra::SIZE as u64)).await?;
        let known = RawExtra::FIELDS.iter().take_while(|field| (field.offset + field.len) as u64 <= len).count();
        let all = RawExtra::FIELDS.get(..known).unwrap_or_default();
        let mut children: Vec<Child<Branch>> = fields(all, &bytes, at).map(Child::from).collect();
        let rest = len - known as u64 * 8;
        if rest > 0 {
            let range = Range::new(at.saturating_add(known as u64 * 8), rest);
            children.push(
                Part::new(PartKind::Data, "further fields", range, "Not known here; they stay as they are.").into(),
            );
        }
        Ok(children)
    }

    /// The directory of bitmaps that the extension with its data at `at` points to.
    pub(super) async fn bitmaps_part(&self, at: u64) -> Result<Child<Branch>> {
        let raw = self.bitmaps_extension(at).await?;
        let at = raw.bitmap_directory_offset;
        let directory = Range::new(at, raw.bitmap_directory_size);
        let (seen, whole) = self.each_bitmap(directory, |_, _, _| {}).await?;
        let stale = (self.raw.autoclear_features & AUTOCLEAR_BITMAPS == 0)
            .then(|| "the autoclear feature 'bitmaps' is not set: it is out of date and not looked at".to_string());
        let other = (whole && seen != u64::from(raw.nb_bitmaps))
            .then(|| format!("it has {seen} entries, but the extension says {}", raw.nb_bitmaps));
        let doc = "The persistent bitmaps: which parts of the disk were written to since some moment.";
        let part = Part::new(PartKind::Table, "bitmap directory", directory, doc)
            .value(counted(raw.nb_bitmaps, "bitmap", "bitmaps"))
            .problem(stale)
            .problem(self.crooked(at))
            .problem(self.beyond(directory.end()))
            .problem(other);
        Ok(part.with(seen + u64::from(!whole), Branch::Bitmaps(directory)))
    }

    /// Shows `each` every entry of a directory: index, place, fixed fields. Gives how many there are, and whether the
    /// directory ends with the last one.
    async fn each_bitmap(&self, directory: Range, mut each: impl FnMut(u64, u64, RawBitmap)) -> Result<(u64, bool)> {
        let end = directory.start.saturating_add(directory.len.min(MAX_DIRECTORY_BYTES)).min(self.length);
        let mut window = self.window();
        let mut at = directory.start;
        let mut index = 0;
        while at < end && index < u64::from(MAX_BITMAPS) {
            let fixed = window.get(at, RawBitmap::SIZE as u64).await?.and_then(RawBitmap::parse);
            let Some(raw) = fixed else { return Ok((index, false)) };
            let next = at.saturating_add(bitmap::entry_len(&raw));
            if next > end {
                return Ok((index, false));
            }
            each(index, at, raw);
            (at, index) = (next, index + 1);
        }
        Ok((index, at == directory.end()))
    }

    pub(super) async fn bitmaps(&self, directory: Range, page: Page) -> Result<Listing<Branch>> {
        let mut wanted = Vec::new();
        let mut end = directory.start;
        let (seen, whole) = self
            .each_bitmap(directory, |index, at, raw| {
                if index >= page.from && wanted.len() < page.count {
                    wanted.push((index, at, raw));
                }
                end = at.saturating_add(bitmap::entry_len(&raw));
            })
            .await?;
        let mut children = Vec::new();
        for (index, at, raw) in wanted {
            children.push(self.bitmap_part(index, at, raw).await?);
        }
        if !whole && seen >= page.from && children.len() < page.count {
            let why = format!("the entry does not fit into the directory, which ends at {:#x}", directory.end());
            children.push(cut_off(seen, end, "bitmap", why));
        }
        Ok(Listing { total: seen + u64::from(!whole), children })
    }

    /// What is wrong with an entry, with the place of the field.
    async fn bitmap_error(&self, at: u64, raw: &RawBitmap) -> Result<Option<crate::Error>> {
        let len = bitmap::entry_len(raw);
        let Some(header) = self.header.as_ref().ok().filter(|_| len <= MAX_CHECKED) else { return Ok(None) };
        let bytes = read(self.file, at, len).await?;
        Ok(StoredBitmap::parse(&bytes, at).and_then(|bitmap| bitmap.check(header, self.length).err()))
    }

    async fn bitmap_part(&self, index: u64, at: u64, raw: RawBitmap) -> Result<Child<Branch>> {
        let start = at.saturating_add(RawBitmap::SIZE as u64).saturating_add(raw.extra_data_size.into());
        let name = read(self.file, start, u64::from(raw.name_size).min(MAX_NAME)).await?;
        let error = self.bitmap_error(at, &raw).await?;
        let doc = "Which parts of the disk were written to.";
        let part = Part::new(PartKind::Entry, format!("bitmap {index}"), Range::new(at, bitmap::entry_len(&raw)), doc)
            .value(format!("'{}'", String::from_utf8_lossy(&name)))
            .problem(error.map(|error| error.problem().to_string()));
        // Its fields, name and table, and what not every bitmap has.
        let usual = RawBitmap::FIELDS.len() as u64 + 2;
        let filled = start.saturating_add(raw.name_size.into());
        let padded = padding(filled, at.saturating_add(bitmap::entry_len(&raw))).is_some();
        let total = usual + u64::from(raw.extra_data_size > 0) + u64::from(padded);
        Ok(part.with(total, Branch::Bitmap { at, raw }))
    }

    pub(super) async fn bitmap(&self, at: u64, raw: &RawBitmap) -> Result<Vec<Child<Branch>>> {
        let bytes = read(self.file, at, RawBitmap::SIZE as u64).await?;
        let mut parts: Vec<Part> = fields(RawBitmap::FIELDS, &bytes, at).collect();
        blame(&mut parts, self.bitmap_error(at, raw).await?.as_ref());
        let table = (raw.bitmap_table_offset, u64::from(raw.bitmap_table_size), 8);
        let mut children: Vec<Child<Branch>> = parts
            .into_iter()
            .map(|part| match part.name.as_str() {
                "bitmap_table_offset" => part.target(self.place(table.0, table.1 * 8)).into(),
                "flags" => {
                    let flags = Branch::BitmapFlags { at: part.place.range.start, flags: raw.flags };
                    part.with(self.bitmap_flags(0, raw.flags).len() as u64, flags)
                }
                _ => part.into(),
            })
            .collect();
        let mut next = at.saturating_add(RawBitmap::SIZE as u64);
        if raw.extra_data_size > 0 {
            let range = Range::new(next, raw.extra_data_size.into());
            children.push(Part::new(PartKind::Data, "extra data", range, "Not known here; it stays as it is.").into());
            next = range.end();
        }
        let range = Range::new(next, raw.name_size.into());
        let bytes = read(self.file, next, range.len.min(MAX_NAME)).await?;
        children.push(text("name", range, &bytes, "The name.").into());
        children.extend(padding(range.end(), at.saturating_add(bitmap::entry_len(raw))));
        let doc = "Where the bits are, a cluster of them for each entry.";
        children.push(self.table("bitmap table", table, doc, Branch::BitmapTable(*raw)));
        Ok(children)
    }

    pub(super) fn bitmap_flags(&self, at: u64, flags: u32) -> Vec<Child<Branch>> {
        let word = u64::from(flags);
        let known = [COMPATIBLE, AUTO, IN_USE].map(|bits| bits.part(word, 4, at));
        [FLAGS_RESERVED.reserved(word, 4, at)].into_iter().chain(known).map(Child::from).collect()
    }

    pub(super) async fn bitmap_table(&self, raw: &RawBitmap, page: Page) -> Result<Listing<Branch>> {
        let (start, entries) = (raw.bitmap_table_offset, u64::from(raw.bitmap_table_size));
        let table = Range::new(start, entries.saturating_mul(8));
        // A bit for so many bytes, and a cluster full of bits for each entry.
        let covered =
            1u64.checked_shl(raw.granularity_bits.into()).and_then(|bytes| bytes.checked_mul(self.cluster.size() * 8));
        let part = |index: u64, at, entry: &[u8]| {
            let entry = word(entry, 0).unwrap_or(0);
            let host = entry & OFFSET_MASK;
            let value = match (host, entry & ALL_ONES) {
                (0, 0) => "all bits clear".to_string(),
                (0, _) => "all bits set".to_string(),
                (host, _) => format!("bits at {host:#x}"),
            };
            let header = self.header.as_ref().ok();
            let error = header.and_then(|header| check_word(header, table, index, entry, self.length).err());
            let guest = covered.and_then(|covered| Some(Range::new(index.checked_mul(covered)?, covered)));
            Part::new(PartKind::Entry, format!("entry {index}"), Range::new(at, 8), "Where some of the bits are.")
                .value(value)
                .problem(error.map(|error| error.problem().to_string()))
                .target(self.place(host, self.cluster.size()))
                .guest(guest)
                .with(BITMAP_ENTRY_PARTS, Branch::BitmapEntry { at, word: entry })
        };
        self.entries((start, entries, 8), page, part).await
    }

    pub(super) fn bitmap_entry(&self, at: u64, word: u64) -> Vec<Child<Branch>> {
        let host = word & OFFSET_MASK;
        let offset = WORD_OFFSET.part(word, 8, at).value(format!("{host:#x}"));
        Vec::from([
            WORD_HIGH.reserved(word, 8, at).into(),
            offset.target(self.place(host, self.cluster.size())).into(),
            WORD_LOW.reserved(word, 8, at).into(),
            WORD_ONES.part(word, 8, at).into(),
        ])
    }
}

/// What fills up an entry to a multiple of 8 bytes.
fn padding(from: u64, to: u64) -> Option<Child<Branch>> {
    let len = to.checked_sub(from).filter(|len| *len > 0)?;
    Some(Part::new(PartKind::Data, "padding", Range::new(from, len), "Fills up to a multiple of 8 bytes.").into())
}
