//! [`Node`]: anything that behaves like a disk. The trait to read first.

use alloc::string::String;
use alloc::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::op::Op;

/// A range of bytes: `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Range {
    /// `start..start + len`.
    pub const fn new(start: u64, len: u64) -> Self {
        Range { start, len }
    }

    /// The first byte after the range, at most `u64::MAX`.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether the two share a byte.
    pub const fn overlaps(self, other: Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The smallest range with both ends at multiples of `align` (a power of two) that holds this one.
    pub const fn widen(self, align: u64) -> Range {
        let mask = align - 1;
        let start = self.start & !mask;
        let end = self.end().saturating_add(mask) & !mask;
        Range { start, len: end - start }
    }
}

/// What a node can do and how it wants to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Size in bytes.
    pub length: u64,
    /// Offsets and lengths of reads and writes must be multiples of this power of two. 1 for most nodes.
    pub request_alignment: u32,
    /// Buffers passed in should start at a multiple of this power of two. 1 for most nodes.
    pub memory_alignment: u32,
    /// Allocation unit of an image format in bytes, if it has one.
    pub cluster_size: Option<u32>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether [`Node::write_zeroes`] costs less than writing zeroes.
    pub fast_zeroes: bool,
    /// Whether bytes never written, and bytes added by growing, read as zeroes.
    pub zero_init: bool,
}

impl NodeInfo {
    /// A plain, writable node of `length` bytes with no alignment needs.
    pub const fn plain(length: u64) -> Self {
        NodeInfo {
            length,
            request_alignment: 1,
            memory_alignment: 1,
            cluster_size: None,
            read_only: false,
            fast_zeroes: false,
            zero_init: false,
        }
    }
}

/// How much effort [`Node::map`] should spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Whatever is cheap: data need not be told from holes of the host file.
    Allocation,
    /// What the image records, as QEMU tells it: holes of the host file are reported as zero only if nothing but the
    /// host file could know, as for raw images and for images whose clusters were all set aside in advance.
    Recorded,
    /// The exact answer, with holes of the host file reported as zero.
    Precise,
}

/// Which of its children a node means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The file that holds the metadata, and mostly the data too.
    File,
    /// A separate file for guest data.
    DataFile,
    /// The image that unallocated ranges are read from.
    Backing,
    /// A separate file for the header of an encrypted volume.
    Header,
}

impl Role {
    /// `file`, `data-file`, `backing` or `header`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::File => "file",
            Role::DataFile => "data-file",
            Role::Backing => "backing",
            Role::Header => "header",
        }
    }
}

/// What a range of a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Bytes that are stored as they are.
    Data,
    /// Reads as zeroes, as the node itself records.
    Zero,
    /// The node says nothing: reads come from the backing node, or are zeroes without one.
    Unallocated,
    /// Stored compressed in `stored` bytes (an upper bound) at the host offset of the extent.
    Compressed {
        /// Compressed size in bytes, an upper bound.
        stored: u32,
    },
    /// Stored encrypted, at the host offset of the extent. Reading it needs the key.
    Encrypted,
}

/// A place in one of a node's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which child.
    pub role: Role,
    /// Byte offset in the child.
    pub at: u64,
}

/// A stretch of a node that is alike throughout. It begins where the question began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never 0 for a non-empty question.
    pub len: u64,
    /// What it holds.
    pub state: State,
    /// Where it is stored, if it is.
    pub host: Option<Host>,
}

/// Modifiers of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadFlags {
    /// Do not wait for serialising requests: for a job that reads what its own writes hold off.
    pub no_wait: bool,
}

/// Modifiers of a write, a zero write or a discard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// The data must be on stable storage when the call returns.
    pub force_unit_access: bool,
    /// A zero write may give its space back.
    pub may_unmap: bool,
    /// Hold off, and wait for, every overlapping request, at cluster granularity.
    pub serialising: bool,
    /// Fail with [`ErrorKind::Unsupported`] rather than write zero bytes one by one.
    pub no_fallback: bool,
    /// Store whole clusters compressed, where that saves space.
    pub compressed: bool,
}

/// How space added by growing, or of a new image, is set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preallocation {
    /// Not at all.
    #[default]
    Off,
    /// Metadata only.
    Metadata,
    /// Metadata, and space reserved on the host.
    Falloc,
    /// Metadata, and zeroes written.
    Full,
}

/// Anything that behaves like a disk: a file, an image format over a file, a filter over an image.
///
/// Requests may overlap in time. Offsets and lengths are in bytes. An implementation checks bounds: a request beyond
/// [`NodeInfo::length`] fails, except that a write to a *file* may grow it.
pub trait Node: Send + Sync {
    /// What the node can do. Cheap; the length may change when the node is resized.
    fn info(&self) -> NodeInfo;

    /// What the range holds, from its start on: one extent, at most `range.len` long. Metadata only.
    ///
    /// Of a file, zeroes that have a place take up space there, and what is unallocated may read as anything.
    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        let _ = want;
        Op::ok(Extent { len: range.len, state: State::Data, host: None })
    }

    /// Fills `into` from offset `at`.
    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()>;

    /// Writes all of `from` at offset `at`.
    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        let _ = (at, from, flags);
        Op::err(Error::new(ErrorKind::ReadOnly, "this node cannot be written"))
    }

    /// Makes the range read as zeroes. [`ErrorKind::Unsupported`] asks the caller to write zeroes instead.
    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        let _ = (range, flags);
        Op::err(Error::unsupported("this node has no efficient way to write zeroes"))
    }

    /// Says that the range is not needed any more. Advisory.
    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        let _ = range;
        Op::ok(())
    }

    /// Everything written before is on stable storage when this is done.
    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::ok(())
    }

    /// Changes the length.
    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        let _ = (length, preallocation);
        Op::err(Error::unsupported("this node cannot be resized"))
    }

    /// Copies `len` bytes from `source` to this node without passing them through the caller, if both can.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the pair cannot; nothing has been written then.
    fn copy_from<'a>(&'a self, at: u64, source: &'a dyn Node, source_at: u64, len: u64) -> Op<'a, ()> {
        let _ = (at, source, source_at, len);
        Op::err(Error::unsupported("no copy offload between these nodes"))
    }

    /// Tells the node what its user is about to do. Whoever injects faults waits for it, holds the request up, or arms
    /// an error for what follows.
    fn event<'a>(&'a self, event: Event) -> Op<'a, ()> {
        let _ = event;
        Op::ok(())
    }

    /// Whether [`Node::event`] does anything, so that nobody need call it otherwise.
    fn listens(&self) -> bool {
        false
    }

    /// Leaves the node as if nobody had it open. Called once, after the last request.
    fn close<'a>(&'a self) -> Op<'a, ()> {
        Op::ok(())
    }

    /// Whether the node is a disk, rather than a file that may hold an image of one.
    fn is_disk(&self) -> bool {
        false
    }

    /// The disk that the node shows as it is, if it is a filter over one.
    fn filtered(&self) -> Option<Arc<dyn Node>> {
        None
    }

    /// A child, if there is one in that role.
    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        let _ = role;
        None
    }

    /// The node's own name: a file name, a URL.
    fn name(&self) -> String {
        String::new()
    }

    /// Equal for two nodes over the same storage, however it is named: what shows that a chain leads back to itself.
    fn identity(&self) -> String {
        self.name()
    }

    /// Bytes the node takes up where it is stored, if known.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// Lets callers reach the concrete type, for fast paths between nodes of one kind.
    fn as_any(&self) -> Option<&dyn core::any::Any> {
        None
    }
}

/// The most that a disk writes at once.
#[cfg(any(feature = "crypto", feature = "qcow2"))]
pub(crate) const SECTOR_BYTES: usize = 512;

/// Writes what counts from when its first sector is there, and flushes: a power cut leaves all of it or nothing.
#[cfg(any(feature = "crypto", feature = "qcow2"))]
pub(crate) async fn write_first_sector_last(file: &dyn Node, at: u64, bytes: &[u8]) -> Result<()> {
    let (first, rest) = bytes.split_at(bytes.len().min(SECTOR_BYTES));
    if !rest.is_empty() {
        file.write(at + SECTOR_BYTES as u64, rest, WriteFlags::default()).await?;
        file.flush().await?;
    }
    file.write(at, first, WriteFlags::default()).await?;
    file.flush().await
}

/// Fails unless `at..at + len` lies within `length`.
pub fn check_bounds(at: u64, len: u64, length: u64) -> Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= length => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Io,
            alloc::format!("request for {len} bytes reaches beyond the end: the size is {length} bytes"),
        )
        .at_offset(at)),
    }
}
