//! ext2, ext3 and ext4, by `ext4-view`.

use ext4_view::{DirEntry, Ext4, Ext4Error, File, FileType, Metadata, PathBuf};

use crate::bytes::{le16, le32};
use crate::disk::View;
use crate::error::{Error, Result};
use crate::files::{Entry, FileSystem, Kind, Page, Pager, Path, buffer, root};

/// A file is gone through block by block to get to a place in it, so that there has to be an end to it.
const MAX_BLOCKS: u64 = 1 << 28;

/// Linux knows blocks of up to 64 KiB.
const MAX_BLOCK_SHIFT: u32 = 6;

pub(super) struct Ext {
    files: Ext4,
    view: View,
    block: u64,
    /// The file that was read last and stands where its next part would be read from.
    open: Option<(Vec<u8>, File)>,
}

impl Ext {
    pub(super) fn open(view: View) -> Result<Self> {
        let block = check(&view)?;
        let files = Ext4::load(Box::new(view.clone())).map_err(|error| failed(error, b"the file system"))?;
        Ok(Ext { files, view, block, open: None })
    }

    fn entry(&self, entry: &DirEntry) -> Result<Entry> {
        let name = entry.file_name().as_ref().to_vec();
        let metadata = entry.metadata().map_err(|error| failed(error, &name))?;
        let path = entry.path();
        self.describe(name, &metadata, &path)
    }

    fn describe(&self, name: Vec<u8>, metadata: &Metadata, path: &PathBuf) -> Result<Entry> {
        let kind = match metadata.file_type() {
            FileType::Regular => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        let target = match kind {
            Kind::Link => Some(self.files.read_link(path).map_err(|error| failed(error, &name))?.as_ref().to_vec()),
            _ => None,
        };
        let size = if kind == Kind::File { metadata.len() } else { 0 };
        Ok(Entry {
            size,
            modified: Some(metadata.modified().seconds()),
            mode: Some(metadata.mode()),
            kind,
            target,
            name,
        })
    }

    /// The file at a path, at that place. It is known to be where `open` has it, or gone to from its beginning.
    fn at(&mut self, path: &[u8], offset: u64) -> Result<File> {
        if let Some((open, file)) = self.open.take()
            && open == path
            && file.position() == offset
        {
            return Ok(file);
        }
        let mut file = self.files.open(path).map_err(|error| failed(error, path))?;
        let blocks = offset.min(file.metadata().len()) / self.block;
        if blocks > MAX_BLOCKS {
            return Err(Error::unsupported(format!("a file is not read beyond its first {MAX_BLOCKS} blocks")));
        }
        file.seek_to(offset).map_err(|error| failed(error, path))?;
        // It goes on without what was missing on the way, but it must not.
        if self.view.disk().has_failed() {
            return Err(Error::over_budget("bytes on the way to a place in the file are not here yet"));
        }
        Ok(file)
    }
}

impl FileSystem for Ext {
    fn list(&mut self, path: &Path<'_>, from: usize, count: usize) -> Result<Page> {
        let mut pager = Pager::new(from, count);
        let full = absolute(path);
        for entry in self.files.read_dir(full.as_slice()).map_err(|error| failed(error, path.last()))? {
            let entry = entry.map_err(|error| failed(error, path.last()))?;
            let name = entry.file_name();
            if name != "." && name != ".." && !pager.add(|| self.entry(&entry))? {
                break;
            }
        }
        Ok(pager.finish())
    }

    fn stat(&mut self, path: &Path<'_>) -> Result<Entry> {
        if path.parts.is_empty() {
            return Ok(root());
        }
        let full = absolute(path);
        let metadata = self.files.symlink_metadata(full.as_slice()).map_err(|error| failed(error, path.last()))?;
        let full = PathBuf::try_from(full).map_err(|_| Error::no_file(path.last()))?;
        self.describe(path.last().to_vec(), &metadata, &full)
    }

    fn read(&mut self, path: &Path<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let full = absolute(path);
        let mut file = self.at(&full, offset)?;
        let mut bytes = buffer(file.metadata().len(), offset, length);
        let mut done = 0;
        while done < bytes.len() {
            match file.read_bytes(&mut bytes[done..]).map_err(|error| failed(error, path.last()))? {
                0 => return Err(Error::corrupt(format!("the file ends after {} bytes", offset + done as u64))),
                read => done += read,
            }
        }
        self.open = Some((full, file));
        Ok(bytes)
    }
}

fn absolute(path: &Path<'_>) -> Vec<u8> {
    let mut full = b"/".to_vec();
    full.extend(path.parts.join(&b'/'));
    full
}

/// Checks what memory is set aside by before anything else is looked at. Gives the size of a block.
fn check(view: &View) -> Result<u64> {
    const SUPER: u64 = 1024;
    let mut bytes = [0; 1024];
    view.read_at(SUPER, &mut bytes)?;
    let corrupt = |what: String| Error::corrupt(what).at(view.start().saturating_add(SUPER));
    let short = || corrupt("the superblock is cut short".into());
    let shift = le32(&bytes, 0x18).ok_or_else(short)?;
    if shift > MAX_BLOCK_SHIFT {
        return Err(corrupt(format!("blocks of 2^({shift} + 10) bytes, more than 64 KiB")));
    }
    let block = 1024 << shift;
    let is_64_bit = le32(&bytes, 0x60).ok_or_else(short)? & 0x80 != 0;
    let high = if is_64_bit { le32(&bytes, 0x150).ok_or_else(short)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(le32(&bytes, 4).ok_or_else(short)?);
    let in_group = u64::from(le32(&bytes, 0x20).ok_or_else(short)?);
    if in_group == 0 {
        return Err(corrupt("a group has no blocks".into()));
    }
    let descriptor = if is_64_bit { le16(&bytes, 0xfe).ok_or_else(short)?.max(32) } else { 32 };
    let table = blocks.div_ceil(in_group).saturating_mul(u64::from(descriptor));
    if table > view.length() {
        return Err(corrupt(format!("a table of {table} bytes for groups, in a volume of {}", view.length())));
    }
    Ok(block)
}

fn failed(error: Ext4Error, name: &[u8]) -> Error {
    match error {
        Ext4Error::NotFound | Ext4Error::MalformedPath | Ext4Error::PathTooLong => Error::no_file(name),
        Ext4Error::NotADirectory => Error::not_a_directory(name),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => Error::not_a_file(name),
        Ext4Error::Encrypted => Error::unsupported(format!("'{}' is encrypted", String::from_utf8_lossy(name))),
        Ext4Error::Incompatible(what) => {
            Error::unsupported(format!("the file system has a feature that is not supported: {what}"))
        }
        other => {
            let (text, name) = (other.to_string(), String::from_utf8_lossy(name));
            // A place of an old block map that is empty stands for a hole, which the reader takes for a block.
            if text.contains("from block 0 (originally 0)") {
                return Error::unsupported(format!("'{name}' has holes as only ext2 and ext3 keep them"));
            }
            Error::corrupt(format!("'{name}': {text}"))
        }
    }
}
