//! NTFS, by `ntfs`.

use std::io::SeekFrom;

use ntfs::indexes::NtfsFileNameIndex;
use ntfs::structured_values::{NtfsFileAttributeFlags, NtfsFileName, NtfsFileNamespace};
use ntfs::{
    KnownNtfsFileRecordNumber, NtfsAttribute, NtfsAttributeFlags, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek,
};

use crate::bytes::{has, le16, le32, le64};
use crate::disk::View;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root, time};

/// Records below this number are the file system's own.
const FIRST_USER_RECORD: u64 = 16;

/// What a link says of itself is never longer.
const MAX_REPARSE_BYTES: u64 = 16 << 10;

/// Tags of reparse points, as Windows and its subsystem for Linux know them.
const MOUNT_POINT: u32 = 0xa000_0003;
const SYMBOLIC_LINK: u32 = 0xa000_000c;
const LINUX_LINK: u32 = 0xa000_001d;
const COMPRESSED_BY_FILTER: u32 = 0x8000_0017;
const DEDUPLICATED: u32 = 0x8000_0013;

pub(super) struct Ntfs {
    files: ntfs::Ntfs,
    view: View,
    /// Whether names can be looked up by the order of directories.
    sorted: bool,
}

/// What leads to a file.
struct Hit {
    record: u64,
    entry: Entry,
    is_reparse_point: bool,
    /// Unix programs on Windows mark their special files so, and ntfs-3g does as they do.
    is_system: bool,
}

impl Ntfs {
    pub(super) fn open(mut view: View) -> Result<Self> {
        let mut files = ntfs::Ntfs::new(&mut view).map_err(|error| failed(&error, b"the file system"))?;
        let sorted = files.read_upcase_table(&mut view).is_ok();
        if view.disk().has_failed() {
            return Err(Error::over_budget("the table of letters is not here yet"));
        }
        Ok(Ntfs { files, view, sorted })
    }

    fn find(&self, path: &Path<'_>) -> Result<Hit> {
        let record = KnownNtfsFileRecordNumber::RootDirectory as u64;
        let mut hit = Hit { record, entry: root(), is_reparse_point: false, is_system: false };
        for part in &path.parts {
            if hit.entry.kind != Kind::Directory {
                return Err(Error::not_a_directory(&hit.entry.name));
            }
            hit = self.find_in(hit.record, part)?;
        }
        Ok(hit)
    }

    fn find_in(&self, directory: u64, name: &[u8]) -> Result<Hit> {
        let mut view = self.view.clone();
        let failed = |error: NtfsError| failed(&error, name);
        let directory = self.files.file(&mut view, directory).map_err(failed)?;
        let index = directory.directory_index(&mut view).map_err(failed)?;
        if let (true, Ok(text)) = (self.sorted, std::str::from_utf8(name)) {
            let mut finder = index.finder();
            if let Some(Ok(found)) = NtfsFileNameIndex::find(&mut finder, &self.files, &mut view, text)
                && let Some(key) = found.key()
            {
                let hit = hit(found.file_reference().file_record_number(), &key.map_err(failed)?);
                // The order ignores case; a directory may have names that differ by nothing else.
                if hit.entry.name == name {
                    return Ok(hit);
                }
            }
        }
        let mut entries = index.entries();
        while let Some(entry) = entries.next(&mut view) {
            let entry = entry.map_err(failed)?;
            let Some(key) = entry.key() else { continue };
            let hit = hit(entry.file_reference().file_record_number(), &key.map_err(failed)?);
            if hit.entry.name == name {
                return Ok(hit);
            }
        }
        Err(Error::no_file(name))
    }

    /// The entry of something found, with what only its own record says.
    fn complete(&self, hit: Hit) -> Result<Entry> {
        if hit.is_system && hit.entry.kind == Kind::File && hit.entry.size <= MAX_REPARSE_BYTES {
            return self.special(hit);
        }
        if !hit.is_reparse_point {
            return Ok(hit.entry);
        }
        let mut view = self.view.clone();
        let file = self.files.file(&mut view, hit.record).map_err(|error| failed(&error, &hit.entry.name))?;
        let entry = hit.entry;
        Ok(match reparse_point(&file, &mut view, &entry.name)? {
            Some((MOUNT_POINT | SYMBOLIC_LINK | LINUX_LINK, target)) => {
                Entry { kind: Kind::Link, size: 0, target, ..entry }
            }
            _ => entry,
        })
    }

    /// The entry of a system file, which may stand for something that Windows has no kind for.
    fn special(&self, hit: Hit) -> Result<Entry> {
        let entry = hit.entry;
        let bytes = match self.read_record(hit.record, &entry.name, 0, MAX_REPARSE_BYTES as usize) {
            // What cannot be decoded is none of these.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(entry),
            other => other?,
        };
        Ok(match bytes.split_at_checked(8) {
            Some((b"IntxLNK\x01", target)) => {
                Entry { kind: Kind::Link, size: 0, target: Some(name_bytes(target)), ..entry }
            }
            Some((b"IntxCHR\0" | b"IntxBLK\0", _)) => Entry { kind: Kind::Other, size: 0, ..entry },
            _ => entry,
        })
    }

    fn read_record(&self, record: u64, name: &[u8], offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut view = self.view.clone();
        let failed = |error: NtfsError| failed(&error, name);
        let file = self.files.file(&mut view, record).map_err(failed)?;
        match reparse_point(&file, &mut view, name)? {
            Some((COMPRESSED_BY_FILTER, _)) => {
                return Err(Error::unsupported("the file is compressed by Windows (WOF)"));
            }
            Some((DEDUPLICATED, _)) => return Err(Error::unsupported("the contents of the file are deduplicated")),
            Some((MOUNT_POINT | SYMBOLIC_LINK | LINUX_LINK, _)) => return Err(Error::not_a_file(name)),
            Some((tag, _)) => {
                return Err(Error::unsupported(format!(
                    "the contents of the file are kept elsewhere (tag {tag:#010x})"
                )));
            }
            None => {}
        }
        let Some(item) = file.data(&mut view, "") else {
            return Err(Error::not_a_file(name));
        };
        let item = item.map_err(failed)?;
        let attribute = item.to_attribute().map_err(failed)?;
        let flags = attribute.flags();
        if flags.contains(NtfsAttributeFlags::ENCRYPTED) {
            return Err(Error::unsupported("the file is encrypted"));
        }
        if flags.contains(NtfsAttributeFlags::COMPRESSED) && !attribute.is_resident() {
            return Err(Error::unsupported("the file is compressed, which is not supported"));
        }
        let size = attribute.value_length();
        let mut bytes = buffer(size, offset, length);
        // What was never written is not what happens to be on the disk there.
        let written = initialized(&attribute, &view)?.unwrap_or(size).saturating_sub(offset);
        let written = written.min(bytes.len() as u64) as usize;
        if written > 0 {
            let mut value = attribute.value(&mut view).map_err(failed)?;
            value.seek(&mut view, SeekFrom::Start(offset)).map_err(failed)?;
            value.read_exact(&mut view, &mut bytes[..written]).map_err(failed)?;
        }
        Ok(bytes)
    }
}

impl FileSystem for Ntfs {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page> {
        let hit = self.find(path)?;
        if hit.entry.kind != Kind::Directory {
            return Err(Error::not_a_directory(path.last()));
        }
        let mut view = self.view.clone();
        let failed = |error: NtfsError| failed(&error, path.last());
        let directory = self.files.file(&mut view, hit.record).map_err(failed)?;
        let index = directory.directory_index(&mut view).map_err(failed)?;
        let mut pager = Pager::new(from, count);
        let mut entries = index.entries();
        while let Some(entry) = entries.next(&mut view) {
            let entry = entry.map_err(failed)?;
            let record = entry.file_reference().file_record_number();
            let Some(key) = entry.key() else { continue };
            let key = key.map_err(failed)?;
            // A short name for DOS stands beside the one that people gave.
            if record < FIRST_USER_RECORD || key.namespace() == NtfsFileNamespace::Dos {
                continue;
            }
            if !pager.add(|| self.complete(self::hit(record, &key)))? {
                break;
            }
        }
        Ok(pager.finish())
    }

    fn stat(&mut self, path: &Path<'_>) -> Result<Entry> {
        let hit = self.find(path)?;
        let record = hit.record;
        let mut entry = self.complete(hit)?;
        if entry.kind == Kind::File {
            // Directories may be behind with the sizes that they keep.
            let mut view = self.view.clone();
            let failed = |error: NtfsError| failed(&error, path.last());
            let file = self.files.file(&mut view, record).map_err(failed)?;
            if let Some(item) = file.data(&mut view, "") {
                entry.size = item.and_then(|item| Ok(item.to_attribute()?.value_length())).map_err(failed)?;
            }
        }
        Ok(entry)
    }

    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let hit = self.find(path)?;
        if hit.entry.kind == Kind::Directory {
            return Err(Error::not_a_file(path.last()));
        }
        self.read_record(hit.record, path.last(), offset, length)
    }
}

fn hit(record: u64, key: &NtfsFileName) -> Hit {
    let attributes = key.file_attributes();
    let (kind, size) = if attributes.contains(NtfsFileAttributeFlags::IS_DIRECTORY) {
        (Kind::Directory, 0)
    } else {
        (Kind::File, key.data_size())
    };
    let name = name_bytes(key.name().0);
    let modified = time::nt(key.modification_time().nt_timestamp());
    let is_reparse_point = attributes.contains(NtfsFileAttributeFlags::REPARSE_POINT);
    let is_system = attributes.contains(NtfsFileAttributeFlags::SYSTEM);
    Hit { record, entry: Entry { name, kind, size, modified, mode: None, target: None }, is_reparse_point, is_system }
}

/// UTF-16 as UTF-8; half of a pair, which NTFS allows in names, gets the three bytes that UTF-8 would have for it.
fn name_bytes(utf16: &[u8]) -> Vec<u8> {
    let units = utf16.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair));
    let mut bytes = Vec::with_capacity(utf16.len());
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(letter) => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let half = half.unpaired_surrogate();
                bytes.extend([0xe0 | half >> 12, 0x80 | half >> 6 & 0x3f, 0x80 | half & 0x3f].map(|byte| byte as u8));
            }
        }
    }
    bytes
}

/// The tag of a file that is a reparse point, and where it leads to.
fn reparse_point(file: &NtfsFile<'_>, view: &mut View, name: &[u8]) -> Result<Option<(u32, Option<Vec<u8>>)>> {
    let mut attributes = file.attributes();
    while let Some(item) = attributes.next(view) {
        let attribute = item.and_then(|item| {
            let attribute = item.to_attribute()?;
            if attribute.ty()? != NtfsAttributeType::ReparsePoint {
                return Ok(None);
            }
            let mut bytes = vec![0; attribute.value_length().min(MAX_REPARSE_BYTES) as usize];
            attribute.value(view)?.read_exact(view, &mut bytes)?;
            Ok(Some(bytes))
        });
        if let Some(bytes) = attribute.map_err(|error| failed(&error, name))? {
            let tag = le32(&bytes, 0).ok_or_else(|| Error::corrupt("a reparse point is cut short"))?;
            return Ok(Some((tag, target(tag, &bytes))));
        }
    }
    Ok(None)
}

fn target(tag: u32, bytes: &[u8]) -> Option<Vec<u8>> {
    // Names follow their places; the printed one is meant for people.
    let names = match tag {
        SYMBOLIC_LINK => 20,
        MOUNT_POINT => 16,
        LINUX_LINK => return bytes.get(12..8 + usize::from(le16(bytes, 4)?)).map(<[u8]>::to_vec),
        _ => return None,
    };
    let text = |place: usize| {
        let start = names + usize::from(le16(bytes, place)?);
        bytes.get(start..start + usize::from(le16(bytes, place + 2)?))
    };
    let printed = text(12).filter(|text| !text.is_empty()).or_else(|| text(8))?;
    Some(name_bytes(printed))
}

/// How many bytes of a value were ever written, if it is not within its record.
fn initialized(attribute: &NtfsAttribute<'_, '_>, view: &View) -> Result<Option<u64>> {
    const FIELD: u64 = 56;
    const SECTOR: u64 = 512;
    if attribute.is_resident() {
        return Ok(None);
    }
    let Some(position) = attribute.position().value() else { return Ok(None) };
    let place = position.get().saturating_add(FIELD);
    let mut field = [0; 8];
    view.read_at(place, &mut field)?;
    // The last two bytes of each sector of a record are kept at its beginning.
    let from_end = SECTOR - place % SECTOR;
    if from_end < 10 {
        let (start, header) = record_of(position.get(), view)?;
        let sector = usize::try_from((place - start) / SECTOR).unwrap_or(usize::MAX);
        let kept =
            le16(&header, 4).map(|at| usize::from(at).saturating_add(sector.saturating_add(1).saturating_mul(2)));
        let kept = kept.and_then(|at| header.get(at..)?.first_chunk::<2>().copied());
        let kept =
            kept.ok_or_else(|| Error::corrupt("the record of the file is cut short").at(view.start() + start))?;
        for (at, byte) in (from_end - 2..from_end).zip(kept) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| field.get_mut(at)) {
                *place = byte;
            }
        }
    }
    Ok(le64(&field, 0))
}

/// The place and the beginning of the record that has something at `position`.
fn record_of(position: u64, view: &View) -> Result<(u64, Vec<u8>)> {
    const SECTOR: u64 = 512;
    const SECTORS: u64 = 16;
    let last = position / SECTOR;
    for sector in (last.saturating_sub(SECTORS)..=last).rev() {
        let mut header = vec![0; SECTOR as usize];
        view.read_at(sector * SECTOR, &mut header)?;
        if has(&header, 0, b"FILE") {
            return Ok((sector * SECTOR, header));
        }
    }
    Err(Error::corrupt("an attribute is not within a record").at(view.start().saturating_add(position)))
}

fn failed(error: &NtfsError, name: &[u8]) -> Error {
    match error {
        NtfsError::NotADirectory { .. } => Error::not_a_directory(name),
        error => Error::corrupt(format!("'{}': {error}", String::from_utf8_lossy(name))),
    }
}
