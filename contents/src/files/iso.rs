//! ISO 9660 with the names of Rock Ridge or Joliet, by `hadris-iso`.

use std::io::{self, Seek as _};

use hadris_iso::file::EntryType;
use hadris_iso::sync::directory::DirectoryRef;
use hadris_iso::sync::read::{DirEntry, RripDateTime};
use hadris_iso::sync::{Error as IsoError, ErrorKind as IsoErrorKind, IoResult, IsoImage, Read, Seek, SeekFrom};

use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root, time};

/// The reader knows no other.
const BLOCK: u64 = 2048;

pub(super) struct Iso {
    image: IsoImage<Source>,
    view: View,
    root: DirectoryRef,
    names: Names,
}

/// Which names of the several that a disc may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Plain,
    RockRidge,
    Joliet,
}

impl Iso {
    pub(super) fn open(view: View) -> Result<Self> {
        let image = IsoImage::open(Source(view.clone())).map_err(|error| failed(&error, b"the file system"))?;
        let roots = image.root_dirs();
        let joliet = roots.iter().find(|root| matches!(root.entry_type(), EntryType::Joliet { .. }));
        let (root, names) = match (image.supports_rrip(), joliet, roots.iter().next()) {
            // Rock Ridge keeps what Unix knows of a file, Joliet only its name.
            (true, _, Some(root)) => (root, Names::RockRidge),
            (_, Some(root), _) => (root, Names::Joliet),
            (_, None, Some(root)) => (root, Names::Plain),
            (_, None, None) => return Err(Error::corrupt("the disc has no root directory").at(view.start())),
        };
        let root = root.dir_ref();
        Ok(Iso { image, view, root, names })
    }

    fn name(&self, entry: &DirEntry) -> Vec<u8> {
        let raw = entry.name();
        match self.names {
            Names::RockRidge => match entry.rrip.as_ref().and_then(|rrip| rrip.alternate_name.as_ref()) {
                Some(name) => name.as_bytes().to_vec(),
                None => without_version(raw).to_ascii_lowercase(),
            },
            Names::Joliet => {
                let units = raw.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair));
                let name: String =
                    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                without_version(name.as_bytes()).to_vec()
            }
            Names::Plain => without_version(raw).to_vec(),
        }
    }

    fn entry(&self, name: Vec<u8>, entry: &DirEntry) -> Entry {
        let rrip = entry.rrip.as_ref();
        let posix = rrip.and_then(|rrip| rrip.posix_attributes).map(|posix| posix.file_mode.read());
        let target = rrip.and_then(|rrip| rrip.symlink_target.as_ref()).map(|target| target.as_bytes().to_vec());
        let kind = match posix.map(|mode| mode >> 12) {
            _ if entry.is_directory() => Kind::Directory,
            Some(0o12) => Kind::Link,
            Some(0o10) | None => Kind::File,
            Some(_) => Kind::Other,
        };
        let stamp = rrip.and_then(|rrip| rrip.timestamps.as_ref()).and_then(|stamps| stamps.modify.or(stamps.creation));
        let stamp = stamp.or_else(|| recorded(entry));
        Entry {
            size: if kind == Kind::File { entry.total_size() } else { 0 },
            modified: stamp.and_then(seconds),
            mode: posix.and_then(|mode| u16::try_from(mode & 0o7777).ok()),
            target: target.filter(|_| kind == Kind::Link),
            kind,
            name,
        }
    }

    fn find(&self, path: &Path<'_>) -> Result<Option<DirEntry>> {
        let mut directory = self.root;
        let mut found: Option<DirEntry> = None;
        for part in &path.parts {
            if let Some(entry) = &found {
                directory = self.directory(entry, part)?;
            }
            let mut next = None;
            for entry in self.image.open_dir(directory).entries() {
                let entry = entry.map_err(|error| failed(&error, part))?;
                if !entry.is_special() && self.name(&entry) == *part {
                    next = Some(entry);
                    break;
                }
            }
            found = Some(next.ok_or_else(|| Error::no_file(part))?);
        }
        Ok(found)
    }

    fn directory(&self, entry: &DirEntry, name: &[u8]) -> Result<DirectoryRef> {
        if !entry.is_directory() {
            return Err(Error::not_a_directory(&self.name(entry)));
        }
        entry.as_dir_ref(&self.image).map_err(|error| failed(&error, name))
    }
}

impl FileSystem for Iso {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page> {
        let directory = match self.find(path)? {
            Some(entry) => self.directory(&entry, path.last())?,
            None => self.root,
        };
        let mut pager = Pager::new(from, count);
        for entry in self.image.open_dir(directory).entries() {
            let entry = entry.map_err(|error| failed(&error, path.last()))?;
            if !entry.is_special() && !pager.add(|| Ok(self.entry(self.name(&entry), &entry)))? {
                break;
            }
        }
        Ok(pager.finish())
    }

    fn stat(&mut self, path: &Path<'_>) -> Result<Entry> {
        Ok(match self.find(path)? {
            Some(entry) => self.entry(path.last().to_vec(), &entry),
            None => root(),
        })
    }

    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let found = self.find(path)?.map(|entry| (self.entry(path.last().to_vec(), &entry), entry));
        let Some((Entry { kind: Kind::File, size, .. }, entry)) = found else {
            return Err(Error::not_a_file(path.last()));
        };
        let header = entry.header();
        if header.file_unit_size != 0 || header.interleave_gap_size != 0 {
            return Err(Error::unsupported("the file is interleaved with others"));
        }
        let mut bytes = buffer(size, offset, length);
        // A file of more than 4 GiB is in several pieces.
        let (mut start, end) = (0_u64, offset + bytes.len() as u64);
        for extent in entry.extents() {
            let (piece, next) = (start, start + u64::from(extent.length));
            start = next;
            let (from, to) = (offset.max(piece), end.min(next));
            if from < to {
                let place = (extent.sector.0 as u64 * BLOCK).saturating_add(from - piece);
                self.view.read_at(place, &mut bytes[(from - offset) as usize..(to - offset) as usize])?;
            }
        }
        Ok(bytes)
    }
}

/// Names end with the number of a version that nobody uses, and with a dot if they have no extension.
fn without_version(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| *byte == b';').unwrap_or(name.len());
    let digits = name.get(end + 1..).unwrap_or_default();
    let name = if digits.iter().all(u8::is_ascii_digit) { &name[..end] } else { name };
    name.strip_suffix(b".").unwrap_or(name)
}

/// When the directory says that a file was recorded.
fn recorded(entry: &DirEntry) -> Option<RripDateTime> {
    let [year, month, day, hour, minute, second, offset] = bytemuck::cast(entry.header().date_time);
    Some(RripDateTime { year: 1900 + u16::from(year), month, day, hour, minute, second, gmt_offset: offset as i8 })
}

fn seconds(at: RripDateTime) -> Option<i64> {
    let [month, day, hour, minute, second] = [at.month, at.day, at.hour, at.minute, at.second].map(u32::from);
    let local = time::civil(i64::from(at.year), month, day, hour, minute, second)?;
    Some(local - i64::from(at.gmt_offset) * 15 * 60)
}

fn failed(error: &IsoError, name: &[u8]) -> Error {
    let text = format!("'{}': {error}", String::from_utf8_lossy(name));
    if error.kind() == IsoErrorKind::Unsupported { Error::unsupported(text) } else { Error::corrupt(text) }
}

/// The view with the traits that the reader asks for.
struct Source(View);

impl Read for Source {
    type Error = IsoErrorKind;

    fn read(&mut self, into: &mut [u8]) -> IoResult<usize> {
        io::Read::read(&mut self.0, into).map_err(|_| IsoError::from_kind(IsoErrorKind::Other))
    }
}

impl Seek for Source {
    type Error = IsoErrorKind;

    fn seek(&mut self, to: SeekFrom) -> IoResult<u64> {
        let to = match to {
            SeekFrom::Start(offset) => io::SeekFrom::Start(offset),
            SeekFrom::End(offset) => io::SeekFrom::End(offset),
            SeekFrom::Current(offset) => io::SeekFrom::Current(offset),
        };
        self.0.seek(to).map_err(|_| IsoError::from_kind(IsoErrorKind::InvalidInput))
    }
}
