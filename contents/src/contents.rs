//! The calls of the host.

use crate::disk::{Disk, Limits, View};
use crate::error::{Error, ErrorKind, Result, Stop};
use crate::files::{self, Entry, FileSystem, Page, Path};
use crate::table::{self, Layout, Volume};

/// The longest list of entries that one call makes.
const MAX_COUNT: usize = 10_000;

/// The longest piece of a file that one call reads.
const MAX_READ: usize = 16 << 20;

/// A disk, and what was found on it.
pub struct Contents {
    disk: Disk,
    sector_size: u64,
    layout: Option<Layout>,
    /// The file system that was looked at last, by the index of its volume.
    open: Option<(usize, Box<dyn FileSystem>)>,
}

impl Contents {
    /// A disk of `size` bytes whose sectors have `sector_size` bytes. Nothing is read yet.
    ///
    /// # Errors
    ///
    /// If the sector size is not a power of two from 512 to 4096.
    pub fn new(size: u64, sector_size: u64) -> Result<Self> {
        Self::with_limits(size, sector_size, Limits::default())
    }

    /// The same with other bounds of memory and work.
    ///
    /// # Errors
    ///
    /// If the sector size is not a power of two from 512 to 4096, or the block size not one of at least 512.
    pub fn with_limits(size: u64, sector_size: u64, limits: Limits) -> Result<Self> {
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(Error::invalid(format!(
                "the sector size is {sector_size}, not a power of two from 512 to 4096"
            )));
        }
        if !limits.block.is_power_of_two() || !(512..=16 << 20).contains(&limits.block) {
            return Err(Error::invalid(format!(
                "the block size is {}, not a power of two from 512 to 16 MiB",
                limits.block
            )));
        }
        Ok(Contents { disk: Disk::new(size, limits), sector_size, layout: None, open: None })
    }

    /// Takes bytes that were [needed](Stop::Need).
    ///
    /// # Errors
    ///
    /// If they are not whole blocks within the disk, as every need is.
    pub fn give(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.disk.give(offset, bytes)
    }

    /// How the disk is divided.
    ///
    /// # Errors
    ///
    /// If bytes are needed first. What is wrong with the tables is in the notes of the answer.
    pub fn layout(&mut self) -> Result<Layout, Stop> {
        let disk = self.disk.clone();
        attempt(&disk, || Ok(self.read_layout()?.clone()))
    }

    /// Part of the entries of a directory: at most `count`, from the one with the number `from` on, in the order of the
    /// file system. `volume` is an index of [`Layout::volumes`]; the parts of `path` are divided by slashes.
    ///
    /// # Errors
    ///
    /// If bytes are needed first, or there is no such directory, or it cannot be read.
    pub fn list(&mut self, volume: usize, path: &[u8], from: usize, count: usize) -> Result<Page, Stop> {
        self.call(volume, path, |files, path| files.list(path, from, count.min(MAX_COUNT)))
    }

    /// What is at a path. Links are not followed in its last part.
    ///
    /// # Errors
    ///
    /// If bytes are needed first, or there is nothing, or it cannot be read.
    pub fn stat(&mut self, volume: usize, path: &[u8]) -> Result<Entry, Stop> {
        self.call(volume, path, |files, path| files.stat(path))
    }

    /// Part of a file: at most `length` bytes and at most 16 MiB, fewer only at its end.
    ///
    /// # Errors
    ///
    /// If bytes are needed first, or there is no such file, or it cannot be read.
    pub fn read(&mut self, volume: usize, path: &[u8], offset: u64, length: usize) -> Result<Vec<u8>, Stop> {
        self.call(volume, path, |files, path| files.read(path, offset, length.min(MAX_READ)))
    }

    fn read_layout(&mut self) -> Result<&Layout> {
        Ok(match self.layout {
            Some(ref layout) => layout,
            None => self.layout.insert(table::layout(&self.disk, self.sector_size)?),
        })
    }

    fn call<T>(
        &mut self,
        volume: usize,
        path: &[u8],
        work: impl FnOnce(&mut dyn FileSystem, &Path<'_>) -> Result<T>,
    ) -> Result<T, Stop> {
        let disk = self.disk.clone();
        let outcome = attempt(&disk, || {
            let path = Path::new(path)?;
            if self.open.as_ref().is_none_or(|(open, _)| *open != volume) {
                self.open = None;
                let found = self.read_layout()?.volumes.get(volume);
                let found =
                    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no volume {volume}")))?;
                let files = open(&disk, found)?;
                self.open = Some((volume, files));
            }
            match &mut self.open {
                Some((_, files)) => work(files.as_mut(), &path),
                None => Err(Error::invalid("the file system is not open")),
            }
        });
        // A reader that met with something unexpected may have been left halfway.
        if matches!(&outcome, Err(Stop::Failed(error)) if error.kind() == ErrorKind::Corrupt) {
            self.open = None;
        }
        outcome
    }
}

fn open(disk: &Disk, volume: &Volume) -> Result<Box<dyn FileSystem>> {
    let Some(found) = &volume.found else {
        return Err(Error::unsupported("nothing that is known was recognised in this volume"));
    };
    let Some(reader) = found.reader else {
        return Err(Error::unsupported(format!(
            "{} is recognised, but its contents cannot be looked into",
            found.name
        )));
    };
    files::open(reader, View::new(disk, volume.start, volume.length))
}

/// One attempt at a call. The readers of file systems are made for the bytes of a file system; where damaged ones make
/// one panic, that is an answer, too. In WebAssembly it is not: there the host sees a trap.
fn attempt<T>(disk: &Disk, work: impl FnOnce() -> Result<T>) -> Result<T, Stop> {
    disk.begin();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::corrupt("this is damaged in a way that its reader cannot cope with")));
    disk.end(outcome)
}
