//! Files in volumes, whoever reads them.

mod ext;
mod fat;
mod iso;
mod ntfs;
mod time;

use crate::disk::View;
use crate::error::{Error, Result};

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file with bytes.
    File,
    /// A directory.
    Directory,
    /// A link to another path.
    Link,
    /// A device, a pipe, a socket or something else without bytes of its own.
    Other,
}

impl Kind {
    /// The name that programs see.
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Link => "link",
            Kind::Other => "other",
        }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as it has to be given in a path: UTF-8 where the file system keeps Unicode, else whatever there is.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes; 0 for what has none.
    pub size: u64,
    /// When it was last changed, in seconds since 1970. FAT keeps local time, which is given as if it were UTC.
    pub modified: Option<i64>,
    /// Permissions as on Unix.
    pub mode: Option<u16>,
    /// Where a link leads to.
    pub target: Option<Vec<u8>>,
}

/// Part of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries, without the directory itself and the one above it.
    pub entries: Vec<Entry>,
    /// Whether there are more.
    pub more: bool,
}

/// A file system as it is read.
pub(crate) trait FileSystem {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page>;
    fn stat(&mut self, path: &Path<'_>) -> Result<Entry>;
    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>>;
}

/// Who reads the file system of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Ext,
    Fat,
    Iso,
    Ntfs,
}

pub(crate) fn open(reader: Reader, view: View) -> Result<Box<dyn FileSystem>> {
    Ok(match reader {
        Reader::Ext => Box::new(ext::Ext::open(view)?),
        Reader::Fat => Box::new(fat::Fat::open(view)?),
        Reader::Iso => Box::new(iso::Iso::open(view)?),
        Reader::Ntfs => Box::new(ntfs::Ntfs::open(view)?),
    })
}

/// The names on the way from the root of a file system.
pub(crate) struct Path<'a> {
    parts: Vec<&'a [u8]>,
}

impl<'a> Path<'a> {
    /// A longer path leads nowhere in any of the file systems.
    const MAX_BYTES: usize = 64 << 10;

    /// More levels are not gone down.
    const MAX_PARTS: usize = 1024;

    pub(crate) fn new(path: &'a [u8]) -> Result<Self> {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        if path.len() > Self::MAX_BYTES || parts.len() > Self::MAX_PARTS {
            return Err(Error::over_budget(format!(
                "the path has {} bytes and {} parts, more than {} and {}",
                path.len(),
                parts.len(),
                Self::MAX_BYTES,
                Self::MAX_PARTS
            )));
        }
        if parts.iter().any(|part| matches!(*part, b"." | b"..")) {
            return Err(Error::invalid("a path names what is on the way from the root, without '.' and '..'"));
        }
        Ok(Path { parts })
    }

    fn last(&self) -> &'a [u8] {
        self.parts.last().copied().unwrap_or(b"/")
    }
}

/// The entry of a root directory, which has none on the disk.
fn root() -> Entry {
    Entry { name: b"/".to_vec(), kind: Kind::Directory, size: 0, modified: None, mode: None, target: None }
}

/// Makes a page of entries that come one by one.
struct Pager {
    skip: usize,
    count: usize,
    page: Page,
}

impl Pager {
    fn new(from: usize, count: usize) -> Self {
        Pager { skip: from, count, page: Page { entries: Vec::new(), more: false } }
    }

    /// Takes the next entry, which is made only if the page has a place for it. Says whether to go on.
    fn add(&mut self, make: impl FnOnce() -> Result<Entry>) -> Result<bool> {
        if self.skip > 0 {
            self.skip -= 1;
        } else if self.page.entries.len() < self.count {
            self.page.entries.push(make()?);
        } else {
            self.page.more = true;
        }
        Ok(!self.page.more)
    }

    fn finish(self) -> Page {
        self.page
    }
}

/// A buffer for part of a file of this size.
fn buffer(size: u64, offset: u64, length: usize) -> Vec<u8> {
    vec![0; size.saturating_sub(offset).min(length as u64) as usize]
}
