//! FAT12, FAT16 and FAT32: directories by `fatfs`, and the bytes of files by where the table says that they are.

mod chain;
mod table;

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use fatfs::{DateTime, Dir, DirEntry, FatType, FileSystem as Volume, FsOptions, OemCpConverter};

use crate::bytes::{le16, le32};
use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root, time};
use chain::Chain;
use table::Table;

/// Windows allows no more entries in a directory; a longer one turns in a circle.
const MAX_ENTRIES: usize = 65_536;

/// An entry of a directory on the disk.
const ENTRY_BYTES: usize = 32;

/// The chains of so many files are remembered: of one that is saved, and of one that is looked at meanwhile.
const MAX_CHAINS: usize = 2;

pub(super) struct Fat {
    volume: Volume<Watched>,
    view: View,
    table: Table,
    /// Where the reader of directories has come to, as an offset in the volume.
    reached: Rc<Cell<u64>>,
    /// The one that was used last is last.
    chains: Vec<Chain>,
}

impl Fat {
    pub(super) fn open(view: View) -> Result<Self> {
        let options = FsOptions::new().oem_cp_converter(&CodePage).update_accessed_date(false);
        let reached = Rc::new(Cell::new(0));
        let watched = Watched { view: view.clone(), reached: reached.clone() };
        let volume = Volume::new(watched, options).map_err(|error| failed(&error, b"the file system"))?;
        let table = Table::open(view.clone(), volume.fat_type())?;
        Ok(Fat { volume, view, table, reached, chains: Vec::new() })
    }

    /// Makes the chain of a file, which is not empty, the last of those that are remembered. The entry of the file is the
    /// one that the reader of directories has come to.
    fn remember(&mut self, size: u64) -> Result<()> {
        let place = self.reached.get().saturating_sub(ENTRY_BYTES as u64);
        let at = self.view.start().saturating_add(place);
        let mut entry = [0; ENTRY_BYTES];
        self.view.read_at(place, &mut entry)?;
        let upper = match self.volume.fat_type() {
            FatType::Fat32 => le16(&entry, 20),
            FatType::Fat12 | FatType::Fat16 => Some(0),
        };
        let first = upper.zip(le16(&entry, 26)).map(|(upper, lower)| u32::from(upper) << 16 | u32::from(lower));
        let Some(first) = first.filter(|_| le32(&entry, 28).map(u64::from) == Some(size)) else {
            return Err(Error::corrupt("the entry of the file is not where it was found").at(at));
        };
        let chain = match self.chains.iter().position(|chain| chain.is_of(first, size)) {
            Some(known) => self.chains.remove(known),
            None => Chain::new(&self.table, first, size, at)?,
        };
        if self.chains.len() >= MAX_CHAINS {
            self.chains.remove(0);
        }
        self.chains.push(chain);
        Ok(())
    }

    /// Reads bytes of the file whose chain is the last, which has them.
    fn fill(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some(chain) = self.chains.last_mut() else { return Ok(()) };
        let cluster_bytes = self.table.cluster_bytes();
        let (from, mut within) = (offset / cluster_bytes, offset % cluster_bytes);
        let count = (within + into.len() as u64).div_ceil(cluster_bytes);
        let number = |number: u64| {
            u32::try_from(number).map_err(|_| Error::corrupt(format!("cluster number {number} of a file")))
        };
        let mut rest = into;
        for run in chain.runs(&self.table, number(from)?, number(count)?)? {
            let there = u64::from(run.count) * cluster_bytes - within;
            let length = usize::try_from(there).map_or(rest.len(), |there| there.min(rest.len()));
            let (part, after) = rest.split_at_mut(length);
            match self.view.read_at(self.table.data(run.first) + within, part) {
                // What is missing of the next runs is noted as well, so that all of it is fetched at once.
                Err(_) if self.view.disk().has_failed() => {}
                read => read?,
            }
            rest = after;
            within = 0;
        }
        Ok(())
    }

    fn find(&self, path: &Path<'_>) -> Result<DirEntry<'_, Watched>> {
        let mut dir = self.volume.root_dir();
        let Some((last, parents)) = path.parts.split_last() else {
            return Err(Error::not_a_file(b"/"));
        };
        for part in parents {
            let entry = find(&dir, part)?;
            if !entry.is_dir() {
                return Err(Error::not_a_directory(part));
            }
            dir = entry.to_dir();
        }
        find(&dir, last)
    }
}

impl FileSystem for Fat {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page> {
        let dir = if path.parts.is_empty() {
            self.volume.root_dir()
        } else {
            let entry = self.find(path)?;
            if !entry.is_dir() {
                return Err(Error::not_a_directory(path.last()));
            }
            entry.to_dir()
        };
        let mut pager = Pager::new(from, count);
        for item in entries(&dir) {
            let item = item.map_err(|error| failed(&error, path.last()))?;
            if !pager.add(|| Ok(entry(&item)))? {
                break;
            }
        }
        Ok(pager.finish())
    }

    fn stat(&mut self, path: &Path<'_>) -> Result<Entry> {
        if path.parts.is_empty() { Ok(root()) } else { Ok(entry(&self.find(path)?)) }
    }

    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let entry = self.find(path)?;
        if entry.is_dir() {
            return Err(Error::not_a_file(path.last()));
        }
        let mut bytes = buffer(entry.len(), offset, length);
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let size = entry.len();
        drop(entry);
        let outcome = self.remember(size).and_then(|()| self.fill(offset, &mut bytes));
        outcome.map_err(|error| error.within(path.last()))?;
        Ok(bytes)
    }
}

/// The view of a volume for the reader of directories, which keeps to itself where it finds their entries.
struct Watched {
    view: View,
    /// The end of what was read last.
    reached: Rc<Cell<u64>>,
}

impl Read for Watched {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.view.read(into)?;
        self.reached.set(self.view.stream_position()?);
        Ok(read)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.view.seek(to)
    }
}

/// The reader can write as well, and wants something that could be written to.
impl Write for Watched {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn entries<'a>(dir: &Dir<'a, Watched>) -> impl Iterator<Item = io::Result<DirEntry<'a, Watched>>> {
    let others = dir.iter().enumerate().map(|(number, item)| match number {
        MAX_ENTRIES.. => Err(io::Error::other(format!("the directory has more than {MAX_ENTRIES} entries"))),
        _ => item,
    });
    others.filter(|item| !matches!(item, Ok(entry) if matches!(entry.short_file_name_as_bytes(), b"." | b"..")))
}

fn find<'a>(dir: &Dir<'a, Watched>, name: &[u8]) -> Result<DirEntry<'a, Watched>> {
    for item in entries(dir) {
        let item = item.map_err(|error| failed(&error, name))?;
        if item.file_name().as_bytes() == name {
            return Ok(item);
        }
    }
    Err(Error::no_file(name))
}

fn entry(item: &DirEntry<'_, Watched>) -> Entry {
    let (kind, size) = if item.is_dir() { (Kind::Directory, 0) } else { (Kind::File, item.len()) };
    let name = item.file_name().into_bytes();
    Entry { name, kind, size, modified: seconds(item.modified()), mode: None, target: None }
}

fn seconds(at: DateTime) -> Option<i64> {
    let (date, time) = (at.date, at.time);
    let [month, day, hour, min, sec] = [date.month, date.day, time.hour, time.min, time.sec].map(u32::from);
    time::civil(i64::from(date.year), month, day, hour, min, sec)
}

fn failed(error: &io::Error, name: &[u8]) -> Error {
    Error::corrupt(format!("'{}': {error}", String::from_utf8_lossy(name)))
}

/// Names without a long form are in the code page of whoever made them. It is not noted anywhere; 437 is that of DOS.
#[derive(Debug)]
struct CodePage;

const UPPER_HALF: [char; 128] = [
    'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å', 'É', 'æ', 'Æ', 'ô', 'ö', 'ò', 'û',
    'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ', 'á', 'í', 'ó', 'ú', 'ñ', 'Ñ', 'ª', 'º', '¿', '⌐', '¬', '½', '¼', '¡',
    '«', '»', '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕', '╣', '║', '╗', '╝', '╜', '╛', '┐', '└', '┴', '┬', '├', '─',
    '┼', '╞', '╟', '╚', '╔', '╩', '╦', '╠', '═', '╬', '╧', '╨', '╤', '╥', '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌', '█',
    '▄', '▌', '▐', '▀', 'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ', 'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩', '≡', '±', '≥',
    '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ', '²', '■', '\u{a0}',
];

impl OemCpConverter for CodePage {
    fn decode(&self, byte: u8) -> char {
        match byte.checked_sub(128) {
            Some(upper) => UPPER_HALF[usize::from(upper)],
            None => char::from(byte),
        }
    }

    fn encode(&self, letter: char) -> Option<u8> {
        match UPPER_HALF.iter().position(|known| *known == letter) {
            Some(upper) => u8::try_from(upper + 128).ok(),
            None => letter.is_ascii().then_some(letter as u8),
        }
    }
}
