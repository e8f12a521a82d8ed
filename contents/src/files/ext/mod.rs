//! ext2, ext3 and ext4 (Linux, Documentation/filesystems/ext4).

mod journal;
mod map;
mod volume;

use crate::bytes::{le16, le32};
use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root};
use volume::{Inode, Volume};

const ROOT_INODE: u32 = 2;

/// Linux follows no more links on one way.
const MAX_LINKS: usize = 40;

/// Nor does it know longer paths, so that no link is longer.
const MAX_TARGET_BYTES: u64 = 4096;

/// Targets up to this length are within the inode.
const MAX_INLINE_TARGET_BYTES: u64 = 59;

pub(super) struct Ext {
    volume: Volume,
}

/// A name in a directory.
struct Name<'a> {
    inode: u32,
    bytes: &'a [u8],
}

impl Ext {
    pub(super) fn open(view: View) -> Result<Self> {
        Ok(Ext { volume: Volume::open(view)? })
    }

    /// Goes to a path; a link at its end is followed if that is wanted.
    fn resolve(&self, path: &Path<'_>, follow: bool) -> Result<Inode> {
        let mut way = vec![self.volume.inode(ROOT_INODE)?];
        let mut ahead: Vec<Vec<u8>> = path.parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            let [.., directory] = way.as_slice() else { return Err(Error::no_file(&part)) };
            if directory.kind() != Kind::Directory {
                return Err(Error::not_a_directory(&part));
            }
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.truncate((way.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let inode = self.volume.inode(self.look_up(directory, &part)?)?;
            if inode.kind() != Kind::Link || (ahead.is_empty() && !follow) {
                way.push(inode);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::corrupt(format!("more than {MAX_LINKS} links lead from one to the next")));
            }
            let target = self.target(&inode, &part)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        way.pop().ok_or_else(|| Error::no_file(path.last()))
    }

    fn look_up(&self, directory: &Inode, name: &[u8]) -> Result<u32> {
        let mut found = None;
        self.names(directory, |entry| {
            if entry.bytes == name {
                found = Some(entry.inode);
            }
            Ok(found.is_none())
        })?;
        found.ok_or_else(|| Error::no_file(name))
    }

    /// Goes through the names in a directory while `each` says so. Trees of hashes look like blocks without names.
    fn names(&self, directory: &Inode, mut each: impl FnMut(Name<'_>) -> Result<bool>) -> Result<()> {
        if directory.is_encrypted() {
            return Err(Error::unsupported("the directory is encrypted"));
        }
        let block_size = self.volume.block_size();
        let blocks = directory.size / block_size;
        let mut bytes = vec![0; usize::try_from(block_size).unwrap_or_default()];
        let mut at = 0;
        while at < blocks {
            let run = self.volume.run(directory, at)?;
            for number in 0..run.count.min(blocks - at) {
                let Some(start) = run.start else { break };
                self.volume.read(start + number, 0, &mut bytes)?;
                let damaged = |what: &str| {
                    let place = self.volume.place(start + number);
                    Error::corrupt(format!("directory {}: {what}", directory.number)).at(place)
                };
                self.volume.check_directory_block(directory, &bytes).map_err(|what| damaged(&what))?;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (name, after) = self.name(rest).ok_or_else(|| damaged("an entry is not within its block"))?;
                    rest = after;
                    if name.inode == 0 {
                        continue;
                    }
                    if name.bytes.is_empty() || name.bytes.iter().any(|byte| matches!(byte, 0 | b'/')) {
                        return Err(damaged("an entry has a name that no file can have"));
                    }
                    if !each(name)? {
                        return Ok(());
                    }
                }
            }
            at += run.count;
        }
        Ok(())
    }

    /// The first entry in part of a block of a directory, and what follows it.
    fn name<'a>(&self, bytes: &'a [u8]) -> Option<(Name<'a>, &'a [u8])> {
        const HEADER: usize = 8;
        // Blocks of 64 KiB have entries whose length does not fit.
        let length = match le16(bytes, 4)? {
            0 | 0xffff => 0x1_0000,
            length => usize::from(length),
        };
        let (entry, rest) = bytes.split_at_checked(length)?;
        let name_length = if self.volume.has_types_in_directories() {
            usize::from(*entry.get(6)?)
        } else {
            usize::from(le16(entry, 6)?)
        };
        let name = Name { inode: le32(entry, 0)?, bytes: entry.get(HEADER..HEADER + name_length)? };
        Some((name, rest))
    }

    fn target(&self, link: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        if link.is_encrypted() {
            return Err(encrypted(name));
        }
        if link.size == 0 || link.size > MAX_TARGET_BYTES {
            let text = format!("'{}': a link of {} bytes", String::from_utf8_lossy(name), link.size);
            return Err(Error::corrupt(text).at(link.place));
        }
        let mut target = buffer(link.size, 0, MAX_TARGET_BYTES as usize);
        if link.size <= MAX_INLINE_TARGET_BYTES {
            let inline = link.map.get(..target.len()).unwrap_or_default();
            target.copy_from_slice(inline);
        } else {
            self.fill(link, 0, &mut target)?;
        }
        Ok(target)
    }

    fn entry(&self, name: Vec<u8>, inode: &Inode) -> Result<Entry> {
        let kind = inode.kind();
        let target = match kind {
            // The name of an encrypted link is all that can be told.
            Kind::Link if inode.is_encrypted() => None,
            Kind::Link => Some(self.target(inode, &name)?),
            _ => None,
        };
        let size = if kind == Kind::File { inode.size } else { 0 };
        Ok(Entry { name, kind, size, modified: Some(inode.modified), mode: Some(inode.mode & 0o7777), target })
    }

    /// Reads bytes of a file. What has no block, or one that was never written, is zero.
    fn fill(&self, file: &Inode, offset: u64, into: &mut [u8]) -> Result<()> {
        let block_size = self.volume.block_size();
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let within = at % block_size;
            let run = self.volume.run(file, at / block_size)?;
            let there = run.count.saturating_mul(block_size) - within;
            let length = usize::try_from(there).map_or(rest.len(), |there| there.min(rest.len()));
            let (part, after) = rest.split_at_mut(length);
            match run.start {
                Some(start) => match self.volume.read(start, within, part) {
                    // What is missing of the next runs is noted as well, so that all of it is fetched at once.
                    Err(_) if self.volume.lacks_bytes() => {}
                    read => read?,
                },
                None => part.fill(0),
            }
            rest = after;
            at += length as u64;
        }
        Ok(())
    }
}

impl FileSystem for Ext {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page> {
        let directory = self.resolve(path, true)?;
        if directory.kind() != Kind::Directory {
            return Err(Error::not_a_directory(path.last()));
        }
        let mut pager = Pager::new(from, count);
        self.names(&directory, |name| {
            if matches!(name.bytes, b"." | b"..") {
                return Ok(true);
            }
            pager.add(|| {
                let bytes = name.bytes.to_vec();
                let made = self.volume.inode(name.inode).and_then(|inode| self.entry(bytes.clone(), &inode));
                match made {
                    // What is missing for the next ones is noted as well, so that all of it is fetched at once.
                    Err(_) if self.volume.lacks_bytes() => Ok(Entry { name: bytes, ..root() }),
                    made => made,
                }
            })
        })?;
        Ok(pager.finish())
    }

    fn stat(&mut self, path: &Path<'_>) -> Result<Entry> {
        if path.parts.is_empty() {
            return Ok(root());
        }
        let inode = self.resolve(path, false)?;
        self.entry(path.last().to_vec(), &inode)
    }

    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let file = self.resolve(path, true)?;
        if file.kind() != Kind::File {
            return Err(Error::not_a_file(path.last()));
        }
        if file.is_encrypted() {
            return Err(encrypted(path.last()));
        }
        let mut bytes = buffer(file.size, offset, length);
        self.fill(&file, offset, &mut bytes)?;
        Ok(bytes)
    }
}

fn encrypted(name: &[u8]) -> Error {
    Error::unsupported(format!("'{}' is encrypted", String::from_utf8_lossy(name)))
}
