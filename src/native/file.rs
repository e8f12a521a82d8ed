//! [`File`]: a file or block device as a leaf node.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

use nix::fcntl::FallocateFlags;
use nix::libc;
use nix::unistd::Whence;

use crate::error::{Error, ErrorKind, Result};
use crate::native::Buffer;
use crate::native::direct::Alignment;
use crate::native::lock::{self, Permissions};
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags};
use crate::op::Op;
use crate::sync::Mutex;

/// Which caches of the operating system are used, by QEMU's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Page cache; data is safe after a flush.
    #[default]
    Writeback,
    /// No page cache; data is safe after a flush.
    None,
    /// Page cache; every write is flushed.
    Writethrough,
    /// No page cache; every write is flushed.
    Directsync,
    /// Page cache; flushes do nothing.
    Unsafe,
}

impl CacheMode {
    /// The mode of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => CacheMode::Writeback,
            "none" | "off" => CacheMode::None,
            "writethrough" => CacheMode::Writethrough,
            "directsync" => CacheMode::Directsync,
            "unsafe" => CacheMode::Unsafe,
            _ => return None,
        })
    }

    pub(super) fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }
}

/// Whether image locks are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Take them; go on without where the file system has none.
    #[default]
    Auto,
    /// Take them; fail where the file system has none.
    On,
    /// Do not.
    Off,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Caching.
    pub cache: CacheMode,
    /// Locking.
    pub locking: Locking,
    /// Read even if another process writes.
    pub force_share: bool,
    /// Make the file, or empty it.
    pub create: bool,
    /// A character device will do, too.
    pub character_device: bool,
}

/// Zeroes are written, where nothing better works, in pieces of this many bytes.
const ZERO_PIECE: usize = 1 << 20;

/// Bytes at the start of a file that grows from nothing that are stored, be they zero or not.
const FIRST_BLOCK: usize = 4096;

/// Largest range that the kernel is asked to copy at once, so that a signal is answered in time.
const COPY_PIECE: usize = 1 << 30;

/// A file or block device of this machine.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: String,
    options: FileOptions,
    alignment: Alignment,
    is_device: bool,
    length: AtomicU64,
    /// Whether the file system can zero a range, punch a hole, copy a range.
    can_zero: AtomicBool,
    can_punch: AtomicBool,
    can_copy: AtomicBool,
    found: Mutex<Found>,
}

/// The stretch of data or hole found last.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    range: Range,
    is_data: bool,
    /// Counts changes of the file, so that what was found before one is not remembered after it.
    generation: u64,
}

/// What tells a file from every other while it exists: [`Node::identity`] of a [`File`].
pub fn identity(metadata: &std::fs::Metadata) -> String {
    if is_device(metadata) {
        return std::format!("device {}", metadata.rdev());
    }
    std::format!("{}:{}", metadata.dev(), metadata.ino())
}

fn is_device(metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_block_device() || metadata.file_type().is_char_device()
}

impl File {
    /// Opens a file and takes its image locks.
    ///
    /// # Errors
    /// The file does not exist, is not a regular file or block device, may not be accessed, or is in use.
    pub fn open(path: &str, options: FileOptions) -> Result<Arc<Self>> {
        let failed = |error: io::Error| {
            let text = std::format!(
                "Could not {} '{path}': {}",
                if options.create { "create" } else { "open" },
                reason(&error)
            );
            Error::new(Error::from(error).kind(), text)
        };
        let mut open = fs::OpenOptions::new();
        open.read(true).write(!options.read_only);
        // O_NONBLOCK: opening a FIFO must not wait for its other end.
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if options.cache.is_direct() {
            flags |= libc::O_DIRECT;
        }
        open.custom_flags(flags);
        if let Ok(metadata) = fs::metadata(path) {
            if !options.read_only && metadata.is_dir() {
                return Err(failed(io::Error::from_raw_os_error(libc::EISDIR)));
            }
            check_type(&metadata, path, options.character_device)?;
        }
        if options.create {
            open.create(true);
        }
        let file = open.open(path).map_err(|error| {
            let refused = options.cache.is_direct() && error.raw_os_error() == Some(libc::EINVAL);
            failed(if refused { io::Error::other("filesystem does not support O_DIRECT") } else { error })
        })?;
        let metadata = file.metadata().map_err(failed)?;
        check_type(&metadata, path, options.character_device)?;
        let is_device = is_device(&metadata);
        // Linux opens it for writing all the same, and lets the first write fail.
        if is_device && !options.read_only && device_is_read_only(&metadata) {
            return Err(Error::new(ErrorKind::PermissionDenied, "The device is not writable: Permission denied"));
        }
        if options.locking != Locking::Off {
            let permissions =
                if options.read_only { Permissions::reader(options.force_share) } else { Permissions::writer() };
            lock::take(&file, path, permissions, options.locking == Locking::On)?;
        }
        let length = if is_device {
            let end = nix::unistd::lseek(&file, 0, Whence::SeekEnd).map_err(|error| failed(error.into()))?;
            u64::try_from(end).unwrap_or(0)
        } else {
            // Asked again: the length may have changed before the locks were taken.
            file.metadata().map_err(failed)?.len()
        };
        let alignment =
            if options.cache.is_direct() { Alignment::probe(&file, length).map_err(failed)? } else { Alignment::NONE };
        Ok(Arc::new(File {
            file,
            path: path.to_string(),
            options,
            alignment,
            is_device,
            length: AtomicU64::new(length),
            can_zero: AtomicBool::new(true),
            can_punch: AtomicBool::new(true),
            can_copy: AtomicBool::new(true),
            found: Mutex::new(Found::default()),
        }))
    }

    /// Makes a new, empty file, or empties an existing one.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn create(path: &str, options: FileOptions) -> Result<Arc<Self>> {
        let file = Self::open(path, FileOptions { create: true, read_only: false, ..options })?;
        if !file.is_device {
            file.file.set_len(0).map_err(|error| file.failed(error, "truncate", 0))?;
            file.length.store(0, Ordering::Release);
        }
        Ok(file)
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    fn failed(&self, error: io::Error, operation: &'static str, at: u64) -> Error {
        Error::from(error).at_path(&self.path).at_offset(at).during(operation)
    }

    fn errno(&self, errno: nix::errno::Errno, operation: &'static str, at: u64) -> Error {
        self.failed(io::Error::from(errno), operation, at)
    }

    fn read_exact(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let position = at + done as u64;
            // Direct I/O asks for the last block in whole; what lies beyond the end is zero.
            if self.alignment.request > 1 && position >= self.length.load(Ordering::Acquire) {
                rest.fill(0);
                return Ok(());
            }
            match self.file.read_at(rest, position) {
                Ok(0) => {
                    let end = self.file.metadata().map_or(position, |metadata| metadata.len().min(position));
                    let text = std::format!(
                        "the file ends at {end}, expected at least {} bytes; was it truncated?",
                        position.saturating_add(rest.len() as u64)
                    );
                    return Err(Error::new(ErrorKind::Io, text).at_path(&self.path).at_offset(at).during("read"));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error, "read", position)),
            }
        }
        Ok(())
    }

    fn write_all(&self, at: u64, from: &[u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let position = at + done as u64;
            match self.file.write_at(rest, position) {
                Ok(0) => return Err(self.failed(io::ErrorKind::WriteZero.into(), "write", position)),
                Ok(count) => {
                    done += count;
                    self.length.fetch_max(position + count as u64, Ordering::AcqRel);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error, "write", position)),
            }
        }
        Ok(())
    }

    fn write_bounced(&self, at: u64, from: &[u8]) -> Result<()> {
        if self.alignment.accepts(from) {
            return self.write_all(at, from);
        }
        let mut buffer = Buffer::default();
        let buffer = buffer.first(from.len());
        buffer.copy_from_slice(from);
        self.write_all(at, buffer)
    }

    /// Forgets what a change made stale and, where the cache mode or the caller asks for it, flushes.
    fn changed(&self, result: Result<()>, force_unit_access: bool) -> Result<()> {
        self.forget_extent();
        result?;
        let through = matches!(self.options.cache, CacheMode::Writethrough | CacheMode::Directsync);
        if force_unit_access || through { self.sync() } else { Ok(()) }
    }

    fn writable(&self, operation: &'static str) -> Result<()> {
        if self.options.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the file was opened read-only")
                .at_path(&self.path)
                .during(operation));
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        if self.options.cache == CacheMode::Unsafe {
            return Ok(());
        }
        match self.file.sync_data() {
            // Some devices have nothing to store.
            Err(error) if self.is_device && error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            synced => synced.map_err(|error| self.failed(error, "flush", 0)),
        }
    }

    /// `fallocate`, with `false` where it does not work. `can` remembers whether it ever will.
    fn allocate(
        &self,
        mode: FallocateFlags,
        range: Range,
        operation: &'static str,
        can: Option<&AtomicBool>,
    ) -> Result<bool> {
        use nix::errno::Errno;
        if can.is_some_and(|can| !can.load(Ordering::Relaxed)) {
            return Ok(false);
        }
        let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.len)) else { return Ok(false) };
        loop {
            return match nix::fcntl::fallocate(&self.file, mode, start, len) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                // Of these arguments, or of this range.
                Err(Errno::EINVAL) => Ok(false),
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::ENOTTY) => {
                    if let Some(can) = can {
                        can.store(false, Ordering::Relaxed);
                    }
                    Ok(false)
                }
                Err(error) => Err(self.errno(error, operation, range.start)),
            };
        }
    }

    fn zero(&self, range: Range, may_unmap: bool) -> Result<()> {
        self.writable("zero")?;
        let length = self.length.load(Ordering::Acquire);
        if !self.is_device && range.end() > length {
            // Writing the end of the range makes the file longer, and never shorter where another writer made it longer
            // still. The rest of what is added is zero by itself.
            let block = u64::from(self.alignment.request);
            let end = range.end() - block.min(range.len);
            self.write_all(end, Buffer::default().first(block as usize))?;
            let inside = length.saturating_sub(range.start).min(range.len);
            return if inside == 0 { Ok(()) } else { self.zero(Range::new(range.start, inside), may_unmap) };
        }
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (punch, zero) = (FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep);
        if may_unmap && self.allocate(punch, range, "zero", Some(&self.can_punch))?
            || self.allocate(zero, range, "zero", Some(&self.can_zero))?
        {
            return Ok(());
        }
        Err(Error::unsupported("the file system cannot zero a range"))
    }

    fn set_length(&self, length: u64, preallocation: Preallocation) -> Result<()> {
        self.writable("resize")?;
        let old = self.length.load(Ordering::Acquire);
        if self.is_device {
            if length > old {
                return Err(Error::invalid("Cannot grow device files").at_path(&self.path));
            }
            return Ok(());
        }
        if length < old && preallocation != Preallocation::Off {
            return Err(Error::unsupported("Preallocation can't be used for shrinking files").at_path(&self.path));
        }
        let resize = || -> Result<()> {
            if length <= old {
                return self.file.set_len(length).map_err(|error| self.failed(error, "resize", length));
            }
            let added = Range::new(old, length - old);
            match preallocation {
                Preallocation::Falloc => {
                    let allocated = self
                        .allocate(FallocateFlags::empty(), added, "preallocate", None)
                        .map_err(|error| prefixed("Could not preallocate new data", &error))?;
                    if allocated { Ok(()) } else { self.fill(added) }
                }
                Preallocation::Full => self.fill(added),
                Preallocation::Off | Preallocation::Metadata => {
                    self.file.set_len(length).map_err(|error| self.failed(error, "resize", length))
                }
            }
        };
        let result = resize();
        let now = if result.is_ok() { length } else { old };
        if result.is_err() {
            // The first error is the one to report.
            let _ = self.file.set_len(old);
        }
        self.length.store(now, Ordering::Release);
        result
    }

    /// `copy_file_range`, in as many steps as it takes.
    fn copy_range(&self, at: u64, source: &File, source_at: u64, len: u64) -> Result<()> {
        use nix::errno::Errno;
        let offset = |at: u64| libc::loff_t::try_from(at).map_err(|_| Error::invalid("offset out of range"));
        let (mut from, mut to) = (offset(source_at)?, offset(at)?);
        let mut done = 0;
        while done < len {
            let count = usize::try_from(len - done).unwrap_or(usize::MAX).min(COPY_PIECE);
            match nix::fcntl::copy_file_range(&source.file, Some(&mut from), &self.file, Some(&mut to), count) {
                Ok(0) => {
                    let text = std::format!("the file ends at {from} where {} more bytes were expected", len - done);
                    let error = Error::new(ErrorKind::Io, text).at_path(&source.path);
                    return Err(error.at_offset(source_at).during("copy"));
                }
                Ok(copied) => {
                    done += copied as u64;
                    self.length.fetch_max(at + done, Ordering::AcqRel);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) if done == 0 => {
                    self.can_copy.store(false, Ordering::Relaxed);
                    return Err(Error::unsupported("the file system cannot copy a range"));
                }
                Err(error) => return Err(self.errno(error, "copy", at + done)),
            }
        }
        Ok(())
    }

    /// Writes zeroes, so that the space is certainly there.
    fn fill(&self, range: Range) -> Result<()> {
        let mut at = range.start.next_multiple_of(self.alignment.request.into());
        let mut zeroes = Buffer::default();
        while at < range.end() {
            let len = (range.end() - at).min(ZERO_PIECE as u64).next_multiple_of(self.alignment.request.into());
            self.write_all(at, zeroes.first(len as usize))
                .map_err(|error| prefixed("Could not write zeros for preallocation", &error))?;
            at += len;
        }
        // Direct I/O ends with a whole block.
        if self.alignment.request > 1 {
            self.file.set_len(range.end()).map_err(|error| self.failed(error, "resize", range.end()))?;
        }
        self.sync()
    }

    /// What is known of data and holes may not hold any more. Called after the file has changed.
    fn forget_extent(&self) {
        let mut found = self.found.lock();
        *found = Found { generation: found.generation + 1, ..Found::default() };
    }

    /// Data or hole at the start of `range`.
    fn find_extent(&self, range: Range) -> Extent {
        let known = *self.found.lock();
        // A hole that others may fill must be looked for each time; taking a hole for data only costs a read.
        let is_lasting = known.is_data || (self.options.locking != Locking::Off && !self.options.force_share);
        let (stretch, is_data) = if is_lasting && known.range.start <= range.start && range.start < known.range.end() {
            (known.range, known.is_data)
        } else {
            let is_behind_hole = !known.is_data && known.range.len > 0 && known.range.end() == range.start;
            let (stretch, is_data) = self.seek_extent(range.start, is_behind_hole);
            let mut found = self.found.lock();
            if found.generation == known.generation {
                *found = Found { range: stretch, is_data, ..known };
            }
            (stretch, is_data)
        };
        let len = stretch.end().saturating_sub(range.start).min(range.len).max(1);
        if is_data {
            Extent { len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) }
        } else {
            Extent { len, state: State::Zero, host: None }
        }
    }

    /// The stretch of data or hole that begins at or before `at`, and whether it is data. What the file system does not
    /// tell counts as data. Behind a hole there is data, unless others have punched another one.
    fn seek_extent(&self, at: u64, is_behind_hole: bool) -> (Range, bool) {
        let to_end = Range::new(at, u64::MAX - at);
        let Ok(start) = i64::try_from(at) else { return (to_end, true) };
        let seek = |whence| nix::unistd::lseek(self.file.as_fd(), start, whence).map(|place| place as u64);
        let data = || {
            let hole = seek(Whence::SeekHole).ok().filter(|hole| *hole > at)?;
            Some((Range::new(at, hole - at), true))
        };
        if is_behind_hole && let Some(found) = data() {
            return found;
        }
        match seek(Whence::SeekData) {
            Ok(place) if place > at => (Range::new(at, place - at), false),
            Ok(_) => data().unwrap_or((to_end, true)),
            // No data up to the end of the file.
            Err(nix::errno::Errno::ENXIO) => {
                (Range::new(at, self.length.load(Ordering::Acquire).saturating_sub(at)), false)
            }
            Err(_) => (to_end, true),
        }
    }
}

/// The message of an operating system error without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_string()
}

/// The same error, saying first what failed.
fn prefixed(what: &str, error: &Error) -> Error {
    let context = error.context();
    let mut outer = Error::new(error.kind(), std::format!("{what}: {}", error.problem()));
    if let Some(path) = &context.path {
        outer = outer.at_path(path);
    }
    outer.at_offset(context.offset.unwrap_or(0))
}

/// Whether the kernel says that a block device cannot be written.
fn device_is_read_only(metadata: &fs::Metadata) -> bool {
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    fs::read_to_string(std::format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

fn check_type(metadata: &fs::Metadata, path: &str, character_device: bool) -> Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() && !character_device {
        "a character device"
    } else {
        return Ok(());
    };
    let wanted = std::format!("'file' driver requires '{path}' to be a regular file");
    Err(Error::invalid(std::format!("{wanted}; it is {what}")).with_headline(wanted))
}

impl Node for File {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            request_alignment: self.alignment.request,
            memory_alignment: self.alignment.memory,
            read_only: self.options.read_only,
            fast_zeroes: self.can_zero.load(Ordering::Relaxed),
            zero_init: !self.is_device,
            ..NodeInfo::plain(self.length.load(Ordering::Acquire))
        }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        if want == Want::Precise && !self.is_device {
            return Op::ok(self.find_extent(range));
        }
        Op::ok(Extent { len: range.len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        Op::Ready(if self.alignment.accepts(into) {
            self.read_exact(at, into)
        } else {
            let mut buffer = Buffer::default();
            let buffer = buffer.first(into.len());
            self.read_exact(at, buffer).map(|()| into.copy_from_slice(buffer))
        })
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        let result = self.writable("write").and_then(|()| self.write_bounced(at, from));
        Op::Ready(self.changed(result, flags.force_unit_access))
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        Op::Ready(self.changed(self.zero(range, flags.may_unmap), flags.force_unit_access))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        let discard = || -> Result<()> {
            self.writable("discard")?;
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Advice that cannot be followed is no failure.
            self.allocate(punch, range, "discard", Some(&self.can_punch)).map(|_| ())
        };
        Op::Ready(self.changed(discard(), false))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::Ready(if self.options.read_only { Ok(()) } else { self.sync() })
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        let was_empty = self.length.load(Ordering::Acquire) == 0;
        let mut result = self.set_length(length, preallocation);
        let whole = length.min(FIRST_BLOCK as u64).is_multiple_of(self.alignment.request.into());
        if result.is_ok() && was_empty && length > 0 && !self.is_device && whole {
            // As QEMU does, so that the block size for direct I/O can be found out from the file.
            let block = [0; FIRST_BLOCK];
            result = self.write_bounced(0, block.get(..length.min(FIRST_BLOCK as u64) as usize).unwrap_or(&block));
        }
        self.forget_extent();
        Op::Ready(result)
    }

    fn copy_from<'a>(&'a self, at: u64, source: &'a dyn Node, source_at: u64, len: u64) -> Op<'a, ()> {
        let refused = || Error::unsupported("no copy offload between these files");
        let Some(source) = source.as_any().and_then(|any| any.downcast_ref::<File>()) else {
            return Op::err(refused());
        };
        let unaligned = self.alignment.request > 1 || source.alignment.request > 1;
        if unaligned || !self.can_copy.load(Ordering::Relaxed) {
            return Op::err(refused());
        }
        let result = self.writable("copy").and_then(|()| self.copy_range(at, source, source_at, len));
        Op::Ready(self.changed(result, false))
    }

    fn name(&self) -> String {
        self.path.clone()
    }

    fn identity(&self) -> String {
        match self.file.metadata() {
            Ok(metadata) => identity(&metadata),
            Err(_) => self.path.clone(),
        }
    }

    fn allocated(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.blocks() * 512)
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}
