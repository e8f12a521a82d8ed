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

    fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }
}

/// Whether image locks are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Take them; go on without where the file system has none.
    #[default]
    Auto,
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
}

/// Block size that direct I/O falls back to when the file system does not say.
const DIRECT_ALIGNMENT: u32 = 4096;

/// Zeroes are written, where nothing better works, in pieces of this many bytes.
const ZERO_PIECE: usize = 1 << 20;

/// A file or block device of this machine.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: String,
    options: FileOptions,
    alignment: u32,
    is_device: bool,
    length: AtomicU64,
    /// Whether the file system can zero a range, punch a hole, copy a range.
    can_zero: AtomicBool,
    can_punch: AtomicBool,
    can_copy: AtomicBool,
    /// The extent found last, and whether it is data rather than a hole.
    last_found: Mutex<(Range, bool)>,
}

impl File {
    /// Opens a file and takes its image locks.
    ///
    /// # Errors
    /// The file does not exist, is not a regular file or block device, may not be accessed, or is in use.
    pub fn open(path: &str, options: FileOptions) -> Result<Arc<Self>> {
        let failed = |error: io::Error| {
            Error::new(Error::from(io::Error::from(error.kind())).kind(), describe("Could not open", path, &error))
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
            check_type(&metadata, path)?;
        }
        if options.create {
            open.create(true);
        }
        let file = open.open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        check_type(&metadata, path)?;
        let is_device = metadata.file_type().is_block_device();
        if options.locking == Locking::Auto {
            let permissions =
                if options.read_only { Permissions::reader(options.force_share) } else { Permissions::writer() };
            lock::take(&file, path, permissions)?;
        }
        let length = if is_device {
            let end = nix::unistd::lseek(&file, 0, Whence::SeekEnd).map_err(|error| failed(error.into()))?;
            u64::try_from(end).unwrap_or(0)
        } else {
            metadata.len()
        };
        let alignment = if options.cache.is_direct() { direct_alignment(&metadata) } else { 1 };
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
            last_found: Mutex::new((Range::default(), true)),
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

    fn failed(&self, error: io::Error, operation: &'static str, at: u64) -> Error {
        Error::from(error).at_path(&self.path).at_offset(at).during(operation)
    }

    fn errno(&self, errno: nix::errno::Errno, operation: &'static str, at: u64) -> Error {
        self.failed(io::Error::from(errno), operation, at)
    }

    /// A buffer that direct I/O accepts: `len` bytes from an aligned address on.
    fn bounce<R>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
        let alignment = self.alignment as usize;
        let mut buffer = std::vec![0u8; len + alignment];
        let start = buffer.as_ptr().align_offset(alignment).min(alignment);
        work(buffer.get_mut(start..start + len).unwrap_or_default())
    }

    fn is_aligned(&self, bytes: &[u8]) -> bool {
        self.alignment <= 1 || (bytes.as_ptr() as usize).is_multiple_of(self.alignment as usize)
    }

    fn read_exact(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + done as u64) {
                Ok(0) => {
                    // Direct I/O reads the last block in whole; what lies beyond the end is zero.
                    if self.alignment > 1 && at + done as u64 >= self.length.load(Ordering::Acquire) {
                        rest.fill(0);
                        return Ok(());
                    }
                    return Err(Error::new(
                        ErrorKind::Io,
                        std::format!(
                            "the file ends at {} where {} more bytes were expected; was it truncated?",
                            at + done as u64,
                            rest.len()
                        ),
                    )
                    .at_path(&self.path)
                    .at_offset(at)
                    .during("read"));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error, "read", at + done as u64)),
            }
        }
        Ok(())
    }

    fn write_all(&self, at: u64, from: &[u8]) -> Result<()> {
        self.file.write_all_at(from, at).map_err(|error| self.failed(error, "write", at))?;
        self.length.fetch_max(at + from.len() as u64, Ordering::AcqRel);
        Ok(())
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
        self.file.sync_data().map_err(|error| self.failed(error, "flush", 0))
    }

    /// `fallocate`, with `false` where the file system cannot.
    fn allocate(&self, mode: FallocateFlags, range: Range, operation: &'static str) -> Result<bool> {
        use nix::errno::Errno;
        let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.len)) else { return Ok(false) };
        loop {
            return match nix::fcntl::fallocate(&self.file, mode, start, len) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV | Errno::ENOTTY) => Ok(false),
                Err(error) => Err(self.errno(error, operation, range.start)),
            };
        }
    }

    fn zero(&self, range: Range, may_unmap: bool) -> Result<()> {
        self.writable("zero")?;
        let length = self.length.load(Ordering::Acquire);
        if !self.is_device && range.end() > length {
            // Growing adds zeroes; only what was there has to be zeroed.
            self.file.set_len(range.end()).map_err(|error| self.failed(error, "zero", range.start))?;
            self.length.fetch_max(range.end(), Ordering::AcqRel);
            let inside = length.saturating_sub(range.start);
            if inside == 0 {
                return Ok(());
            }
            return self.zero(Range::new(range.start, inside), may_unmap);
        }
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if may_unmap && self.can_punch.load(Ordering::Relaxed) {
            if self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, range, "zero")? {
                return Ok(());
            }
            self.can_punch.store(false, Ordering::Relaxed);
        }
        if self.can_zero.load(Ordering::Relaxed) {
            if self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, range, "zero")? {
                return Ok(());
            }
            self.can_zero.store(false, Ordering::Relaxed);
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
            match preallocation {
                Preallocation::Falloc if length > old => {
                    let added = Range::new(old, length - old);
                    if !self.allocate(FallocateFlags::empty(), added, "preallocate")? {
                        return Err(Error::unsupported("the file system cannot preallocate").at_path(&self.path));
                    }
                    Ok(())
                }
                Preallocation::Full if length > old => {
                    let zeroes = std::vec![0; ZERO_PIECE];
                    let mut at = old;
                    while at < length {
                        let len = (length - at).min(ZERO_PIECE as u64) as usize;
                        self.write_all(at, zeroes.get(..len).unwrap_or_default())?;
                        at += len as u64;
                    }
                    self.sync()
                }
                _ => self.file.set_len(length).map_err(|error| self.failed(error, "resize", length)),
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

    /// What is known of data and holes may not hold any more.
    fn forget_extent(&self) {
        self.last_found.lock().0 = Range::default();
    }

    /// Data or hole at the start of `range`.
    fn find_extent(&self, range: Range) -> Extent {
        let (known, is_data) = *self.last_found.lock();
        let (known, is_data) = if known.start <= range.start && range.start < known.end() {
            (known, is_data)
        } else {
            let found = self.seek_extent(range.start);
            *self.last_found.lock() = found;
            found
        };
        let len = known.end().saturating_sub(range.start).min(range.len).max(1);
        if is_data {
            Extent { len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) }
        } else {
            Extent { len, state: State::Zero, host: None }
        }
    }

    /// The stretch of data or hole that begins at or before `at`, and whether it is data. What the file system does not
    /// tell counts as data.
    fn seek_extent(&self, at: u64) -> (Range, bool) {
        let to_end = Range::new(at, u64::MAX - at);
        let Ok(start) = i64::try_from(at) else { return (to_end, true) };
        let seek = |whence| nix::unistd::lseek(self.file.as_fd(), start, whence).map(|place| place as u64);
        match seek(Whence::SeekData) {
            Ok(data) if data > at => (Range::new(at, data - at), false),
            Ok(_) => match seek(Whence::SeekHole) {
                Ok(hole) if hole > at => (Range::new(at, hole - at), true),
                _ => (to_end, true),
            },
            // No data up to the end of the file.
            Err(nix::errno::Errno::ENXIO) => {
                (Range::new(at, self.length.load(Ordering::Acquire).saturating_sub(at)), false)
            }
            Err(_) => (to_end, true),
        }
    }
}

/// The message of an operating system error without Rust's "(os error N)".
fn describe(what: &str, path: &str, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    std::format!("{what} '{path}': {text}")
}

fn check_type(metadata: &fs::Metadata, path: &str) -> Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        return Ok(());
    };
    Err(Error::invalid(std::format!(
        "Could not open '{path}': it is {what}, expected a regular file or a block device"
    )))
}

fn direct_alignment(metadata: &fs::Metadata) -> u32 {
    u32::try_from(metadata.blksize())
        .ok()
        .filter(|size| size.is_power_of_two() && *size >= 512)
        .unwrap_or(DIRECT_ALIGNMENT)
        .min(DIRECT_ALIGNMENT)
}

impl Node for File {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            request_alignment: self.alignment,
            memory_alignment: self.alignment,
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
        Op::Ready(if self.is_aligned(into) {
            self.read_exact(at, into)
        } else {
            self.bounce(into.len(), |buffer| self.read_exact(at, buffer).map(|()| into.copy_from_slice(buffer)))
        })
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        let write = || -> Result<()> {
            self.writable("write")?;
            if self.is_aligned(from) {
                self.write_all(at, from)?;
            } else {
                self.bounce(from.len(), |buffer| {
                    buffer.copy_from_slice(from);
                    self.write_all(at, buffer)
                })?;
            }
            self.forget_extent();
            let through = matches!(self.options.cache, CacheMode::Writethrough | CacheMode::Directsync);
            if flags.force_unit_access || through { self.sync() } else { Ok(()) }
        };
        Op::Ready(write())
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        self.forget_extent();
        Op::Ready(self.zero(range, flags.may_unmap))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        let discard = || -> Result<()> {
            self.writable("discard")?;
            self.forget_extent();
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if self.can_punch.load(Ordering::Relaxed) && !self.allocate(punch, range, "discard")? {
                self.can_punch.store(false, Ordering::Relaxed);
            }
            Ok(())
        };
        Op::Ready(discard())
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::Ready(if self.options.read_only { Ok(()) } else { self.sync() })
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        self.forget_extent();
        Op::Ready(self.set_length(length, preallocation))
    }

    fn copy_from<'a>(&'a self, at: u64, source: &'a dyn Node, source_at: u64, len: u64) -> Op<'a, ()> {
        let copy = || -> Result<()> {
            let refuse = || Error::unsupported("no copy offload between these files");
            let source = source.as_any().and_then(|any| any.downcast_ref::<File>()).ok_or_else(refuse)?;
            if !self.can_copy.load(Ordering::Relaxed) || self.alignment > 1 || source.alignment > 1 {
                return Err(refuse());
            }
            let (mut from, mut to) = (source_at as i64, at as i64);
            let mut left = len;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
                match nix::fcntl::copy_file_range(&source.file, Some(&mut from), &self.file, Some(&mut to), count) {
                    Ok(0) => return Err(refuse()),
                    Ok(copied) => left -= copied as u64,
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(nix::errno::Errno::ENOSPC) => {
                        return Err(self.errno(nix::errno::Errno::ENOSPC, "copy", to as u64));
                    }
                    Err(_) => {
                        self.can_copy.store(false, Ordering::Relaxed);
                        return Err(refuse());
                    }
                }
            }
            self.length.fetch_max(at + len, Ordering::AcqRel);
            Ok(())
        };
        Op::Ready(copy())
    }

    fn name(&self) -> String {
        self.path.clone()
    }

    fn allocated(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.blocks() * 512)
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}
