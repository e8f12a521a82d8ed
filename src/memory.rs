//! Leaf nodes without an operating system: [`Memory`] and [`Callbacks`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::node::{
    Extent, Host, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags, check_bounds,
};
use crate::op::Op;
use crate::sync::Mutex;

/// A file in memory. Writing beyond the end grows it, up to a limit.
#[derive(Debug)]
pub struct Memory {
    bytes: Mutex<Vec<u8>>,
    name: String,
    limit: usize,
    read_only: bool,
}

impl Memory {
    /// A file with these contents, which may grow to 1 GiB.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Arc<Self> {
        Arc::new(Memory { bytes: Mutex::new(bytes.into()), name: String::new(), limit: 1 << 30, read_only: false })
    }

    /// A file that cannot be written.
    pub fn read_only(bytes: impl Into<Vec<u8>>, name: impl Into<String>) -> Arc<Self> {
        Arc::new(Memory { bytes: Mutex::new(bytes.into()), name: name.into(), limit: 0, read_only: true })
    }

    /// A copy of the contents.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    fn edit(&self, at: u64, len: u64, edit: impl FnOnce(&mut [u8])) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "this memory is read-only").at_offset(at));
        }
        let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok()).filter(|end| *end <= self.limit);
        let (Some(end), Ok(start)) = (end, usize::try_from(at)) else {
            return Err(Error::new(ErrorKind::NoSpace, "the memory file would exceed its limit").at_offset(at));
        };
        let mut bytes = self.bytes.lock();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        if let Some(part) = bytes.get_mut(start..end) {
            edit(part);
        }
        Ok(())
    }
}

impl Node for Memory {
    fn info(&self) -> NodeInfo {
        let length = self.bytes.lock().len() as u64;
        NodeInfo { read_only: self.read_only, zero_init: true, ..NodeInfo::plain(length) }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        Op::ok(Extent { len: range.len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        let bytes = self.bytes.lock();
        Op::Ready(check_bounds(at, into.len() as u64, bytes.len() as u64).map(|()| {
            let start = at as usize;
            if let Some(part) = bytes.get(start..start + into.len()) {
                into.copy_from_slice(part);
            }
        }))
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], _flags: WriteFlags) -> Op<'a, ()> {
        Op::Ready(self.edit(at, from.len() as u64, |part| part.copy_from_slice(from)))
    }

    fn write_zeroes<'a>(&'a self, range: Range, _flags: WriteFlags) -> Op<'a, ()> {
        Op::Ready(self.edit(range.start, range.len, |part| part.fill(0)))
    }

    fn resize<'a>(&'a self, length: u64, _preallocation: Preallocation) -> Op<'a, ()> {
        Op::Ready(match usize::try_from(length) {
            Ok(length) if !self.read_only && length <= self.limit => {
                self.bytes.lock().resize(length, 0);
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::NoSpace, "the memory file would exceed its limit")),
        })
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// A function that fills a buffer from an offset.
pub type ReadCallback = Box<dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync>;
/// A function that writes a buffer at an offset.
pub type WriteCallback = Box<dyn Fn(u64, &[u8]) -> Result<()> + Send + Sync>;
/// A function that is told a range, or a length.
pub type RangeCallback = Box<dyn Fn(Range) -> Result<()> + Send + Sync>;
/// A function without arguments.
pub type FlushCallback = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// A leaf made of functions that the caller supplies. Only `read` is required.
///
/// ```
/// use diskette::{Callbacks, Node, ReadFlags, block_on};
///
/// let disk = Callbacks::new(4096, |at, into| {
///     into.fill((at / 512) as u8);
///     Ok(())
/// });
/// let mut sector = [0; 512];
/// block_on(disk.read(1024, &mut sector, ReadFlags::default()))?;
/// assert_eq!(sector[0], 2);
/// # Ok::<(), diskette::Error>(())
/// ```
pub struct Callbacks {
    name: String,
    length: Mutex<u64>,
    request_alignment: u32,
    read: ReadCallback,
    write: Option<WriteCallback>,
    flush: Option<FlushCallback>,
    zero: Option<RangeCallback>,
    discard: Option<RangeCallback>,
    resize: Option<RangeCallback>,
}

impl Callbacks {
    /// A read-only leaf of `length` bytes.
    pub fn new(length: u64, read: impl Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static) -> Self {
        Callbacks {
            name: String::new(),
            length: Mutex::new(length),
            request_alignment: 1,
            read: Box::new(read),
            write: None,
            flush: None,
            zero: None,
            discard: None,
            resize: None,
        }
    }

    /// Adds writing. A write beyond the length grows the leaf, so `write` must allow it.
    #[must_use]
    pub fn with_write(mut self, write: impl Fn(u64, &[u8]) -> Result<()> + Send + Sync + 'static) -> Self {
        self.write = Some(Box::new(write));
        self
    }

    /// Adds flushing.
    #[must_use]
    pub fn with_flush(mut self, flush: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        self.flush = Some(Box::new(flush));
        self
    }

    /// Adds zeroing of a range.
    #[must_use]
    pub fn with_zero(mut self, zero: impl Fn(Range) -> Result<()> + Send + Sync + 'static) -> Self {
        self.zero = Some(Box::new(zero));
        self
    }

    /// Adds discarding of a range.
    #[must_use]
    pub fn with_discard(mut self, discard: impl Fn(Range) -> Result<()> + Send + Sync + 'static) -> Self {
        self.discard = Some(Box::new(discard));
        self
    }

    /// Adds changing the length; the range passed is `0..length`.
    #[must_use]
    pub fn with_resize(mut self, resize: impl Fn(Range) -> Result<()> + Send + Sync + 'static) -> Self {
        self.resize = Some(Box::new(resize));
        self
    }

    /// Sets the block size that offsets and lengths must respect, a power of two.
    #[must_use]
    pub fn with_alignment(mut self, request_alignment: u32) -> Self {
        self.request_alignment = request_alignment;
        self
    }

    /// Sets the name used in messages.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    fn grow_to(&self, end: u64) {
        let mut length = self.length.lock();
        *length = (*length).max(end);
    }
}

impl core::fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Callbacks").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node for Callbacks {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            request_alignment: self.request_alignment,
            read_only: self.write.is_none(),
            fast_zeroes: self.zero.is_some(),
            ..NodeInfo::plain(*self.length.lock())
        }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        Op::ok(Extent { len: range.len, state: State::Data, host: Some(Host { role: Role::File, at: range.start }) })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        Op::Ready(check_bounds(at, into.len() as u64, *self.length.lock()).and_then(|()| (self.read)(at, into)))
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], _flags: WriteFlags) -> Op<'a, ()> {
        let Some(write) = &self.write else {
            return Op::err(Error::new(ErrorKind::ReadOnly, "no write callback was given").at_offset(at));
        };
        Op::Ready(write(at, from).map(|()| self.grow_to(at.saturating_add(from.len() as u64))))
    }

    fn write_zeroes<'a>(&'a self, range: Range, _flags: WriteFlags) -> Op<'a, ()> {
        let Some(zero) = &self.zero else {
            return Op::err(Error::unsupported("no zero callback was given"));
        };
        Op::Ready(zero(range).map(|()| self.grow_to(range.end())))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        Op::Ready(self.discard.as_ref().map_or(Ok(()), |discard| discard(range)))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::Ready(self.flush.as_ref().map_or(Ok(()), |flush| flush()))
    }

    fn resize<'a>(&'a self, length: u64, _preallocation: Preallocation) -> Op<'a, ()> {
        let Some(resize) = &self.resize else {
            return Op::err(Error::unsupported("no resize callback was given"));
        };
        Op::Ready(resize(Range::new(0, length)).map(|()| *self.length.lock() = length))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
