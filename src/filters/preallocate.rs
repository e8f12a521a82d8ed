//! `preallocate`: a file that grows is made longer in large steps, and cut to what was used when it is closed.

use alloc::sync::Arc;

use crate::error::{Error, Result};
use crate::filters::hand_on;
use crate::node::{Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, State, Want, WriteFlags};
use crate::op::Op;
use crate::options::Options;
use crate::sync::Lock;

/// The file's end is moved to a multiple of this many bytes.
const DEFAULT_ALIGN: u64 = 1 << 20;
/// So many bytes are set aside beyond what is needed.
const DEFAULT_BYTES: u64 = 128 << 20;

/// A node over a file.
pub struct Preallocate {
    file: Arc<dyn Node>,
    align: u64,
    bytes: u64,
    /// Where the data ends, once something was set aside beyond it.
    end: Lock<Option<u64>>,
    known_end: crate::sync::Mutex<Option<u64>>,
}

impl core::fmt::Debug for Preallocate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Preallocate").field("align", &self.align).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Preallocate {
    /// A node over `file` with the `prealloc-align` and `prealloc-size` of `options`, taken out of them.
    ///
    /// # Errors
    /// An option has a value that is not allowed.
    pub fn new(file: Arc<dyn Node>, options: &mut Options) -> Result<Self> {
        let align = options.take_size("prealloc-align")?.unwrap_or(DEFAULT_ALIGN);
        let bytes = options.take_size("prealloc-size")?.unwrap_or(DEFAULT_BYTES);
        if align == 0 || !align.is_multiple_of(512) {
            return Err(Error::invalid(alloc::format!(
                "prealloc-align parameter of preallocate filter is not aligned to 512: {align}"
            )));
        }
        if bytes == 0 || i64::try_from(bytes).is_err() {
            return Err(Error::invalid(alloc::format!("prealloc-size is {bytes}, expected a positive size")));
        }
        Ok(Preallocate { file, align, bytes, end: Lock::new(None), known_end: crate::sync::Mutex::new(None) })
    }

    /// Where the data ends.
    fn length(&self) -> u64 {
        self.known_end.lock().unwrap_or_else(|| self.file.info().length)
    }

    /// Makes room for a request that ends at `end`.
    async fn make_room(&self, end: u64) -> Result<()> {
        if end <= self.length() {
            return Ok(());
        }
        let mut known = self.end.lock().await;
        let reserved = self.file.info().length;
        // Known before the file gets longer, so that others wait rather than take what is set aside for data.
        let before = known.unwrap_or(reserved);
        *known = Some(before);
        *self.known_end.lock() = Some(before);
        if end > reserved {
            let wanted = end.saturating_add(self.bytes).div_ceil(self.align).saturating_mul(self.align);
            let range = Range::new(reserved, wanted - reserved);
            let flags = WriteFlags { no_fallback: true, ..WriteFlags::default() };
            // It only saves time: where it cannot be done, the write itself makes the file longer.
            if self.file.write_zeroes(range, flags).await.is_err() {
                let _ = self.file.resize(end, Preallocation::Off).await;
            }
        }
        let new = before.max(end);
        *known = Some(new);
        *self.known_end.lock() = Some(new);
        Ok(())
    }
}

impl Node for Preallocate {
    fn info(&self) -> NodeInfo {
        NodeInfo { length: self.length(), ..self.file.info() }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        let inside = self.length().saturating_sub(range.start).min(range.len);
        if inside == 0 {
            return Op::ok(Extent { len: range.len, state: State::Zero, host: None });
        }
        self.file.map(Range::new(range.start, inside), want)
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        self.file.read(at, into, flags)
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.make_room(at.saturating_add(from.len() as u64)).await?;
            self.file.write(at, from, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.make_room(range.end()).await?;
            self.file.write_zeroes(range, flags).await
        })
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        Op::future(async move {
            let mut known = self.end.lock().await;
            self.file.resize(length, preallocation).await?;
            *known = None;
            *self.known_end.lock() = None;
            Ok(())
        })
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        Op::future(async move {
            let mut known = self.end.lock().await;
            if let Some(end) = known.take()
                && end < self.file.info().length
            {
                self.file.resize(end, Preallocation::Off).await?;
            }
            *self.known_end.lock() = None;
            self.file.close().await
        })
    }

    hand_on!(file: discard flush event names);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::op::block_on;

    #[test]
    fn what_was_set_aside_is_cut_off_in_the_end() {
        let file = Memory::new(alloc::vec![1; 1000]);
        let mut options = Options::parse("prealloc-align=512,prealloc-size=4k").unwrap();
        let node = Preallocate::new(file.clone(), &mut options).unwrap();
        block_on(node.write(1000, &[2; 24], WriteFlags::default())).unwrap();
        assert_eq!(node.info().length, 1024);
        assert_eq!(file.info().length, 5120);
        block_on(node.write(1024, &[3; 1], WriteFlags::default())).unwrap();
        block_on(node.close()).unwrap();
        assert_eq!(file.info().length, 1025);
        assert_eq!(file.to_vec()[1000..], [&[2; 24][..], &[3]].concat());
    }
}
