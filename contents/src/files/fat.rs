//! FAT12, FAT16 and FAT32, by `fatfs`.

use std::io::{self, Read, Seek, SeekFrom};

use fatfs::{DateTime, Dir, DirEntry, FileSystem as Volume, FsOptions, OemCpConverter};

use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root, time};

/// Windows allows no more entries in a directory; a longer one turns in a circle.
const MAX_ENTRIES: usize = 65_536;

pub(super) struct Fat {
    volume: Volume<View>,
}

impl Fat {
    pub(super) fn open(view: View) -> Result<Self> {
        let options = FsOptions::new().oem_cp_converter(&CodePage).update_accessed_date(false);
        Ok(Fat { volume: Volume::new(view, options).map_err(|error| failed(&error, b"the file system"))? })
    }

    fn find(&self, path: &Path<'_>) -> Result<DirEntry<'_, View>> {
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
        let mut file = entry.to_file();
        let at = file.seek(SeekFrom::Start(offset)).map_err(|error| failed(&error, path.last()))?;
        if at != offset {
            return Err(Error::corrupt(format!("the clusters of the file end after {at} bytes of {}", entry.len())));
        }
        let mut done = 0;
        while done < bytes.len() {
            match file.read(&mut bytes[done..]).map_err(|error| failed(&error, path.last()))? {
                0 => {
                    let end = offset + done as u64;
                    return Err(Error::corrupt(format!(
                        "the clusters of the file end after {end} bytes of {}",
                        entry.len()
                    )));
                }
                read => done += read,
            }
        }
        Ok(bytes)
    }
}

fn entries<'a>(dir: &Dir<'a, View>) -> impl Iterator<Item = io::Result<DirEntry<'a, View>>> {
    let others = dir.iter().enumerate().map(|(number, item)| match number {
        MAX_ENTRIES.. => Err(io::Error::other(format!("the directory has more than {MAX_ENTRIES} entries"))),
        _ => item,
    });
    others.filter(|item| !matches!(item, Ok(entry) if matches!(entry.short_file_name_as_bytes(), b"." | b"..")))
}

fn find<'a>(dir: &Dir<'a, View>, name: &[u8]) -> Result<DirEntry<'a, View>> {
    for item in entries(dir) {
        let item = item.map_err(|error| failed(&error, name))?;
        if item.file_name().as_bytes() == name {
            return Ok(item);
        }
    }
    Err(Error::no_file(name))
}

fn entry(item: &DirEntry<'_, View>) -> Entry {
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
