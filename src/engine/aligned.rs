//! [`Aligned`]: byte granularity over a node that insists on blocks.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;

use crate::engine::requests::{RequestKind, Requests};
use crate::error::Result;
use crate::event::{Event, announce};
use crate::node::{Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, Want, WriteFlags, check_bounds};
use crate::op::{Op, if_writing};

/// Reads and writes of any offset and length over a node with a `request_alignment` above 1.
///
/// An unaligned write reads the blocks at its ends, merges, and writes whole blocks; it is serialising at the block
/// size. The node below must answer reads up to its length rounded up to a block, with zeroes beyond its length.
pub struct Aligned {
    inner: Arc<dyn Node>,
    block: u64,
    requests: Requests,
}

/// Wraps the node in [`Aligned`] if it needs that.
pub fn byte_granular(node: Arc<dyn Node>) -> Arc<dyn Node> {
    let block = u64::from(node.info().request_alignment);
    if block <= 1 { node } else { Arc::new(Aligned { inner: node, block, requests: Requests::new() }) }
}

impl Aligned {
    fn is_aligned(&self, range: Range) -> bool {
        range.start.is_multiple_of(self.block) && range.len.is_multiple_of(self.block)
    }

    /// The whole blocks of a range, if it has any.
    fn aligned_part(&self, range: Range) -> Option<Range> {
        let start = range.start.checked_next_multiple_of(self.block)?;
        let end = range.end() - range.end() % self.block;
        (start < end).then(|| Range::new(start, end - start))
    }

    async fn read_unaligned(&self, range: Range, into: &mut [u8]) -> Result<()> {
        let wide = range.widen(self.block);
        let mut blocks = vec![0; wide.len as usize];
        self.inner.read(wide.start, &mut blocks, ReadFlags::default()).await?;
        let skip = (range.start - wide.start) as usize;
        if let Some(part) = blocks.get(skip..skip + into.len()) {
            into.copy_from_slice(part);
        }
        Ok(())
    }

    async fn write_unaligned(&self, range: Range, from: &[u8], flags: WriteFlags) -> Result<()> {
        let request = self.requests.begin(RequestKind::Write, range);
        request.mark_serialising(self.block);
        request.wait().await;
        let wide = range.widen(self.block);
        let mut blocks = vec![0; wide.len as usize];
        let skip = (range.start - wide.start) as usize;
        let readable = self.inner.info().length.next_multiple_of(self.block);
        let block = self.block as usize;
        // Only the blocks at the ends keep old bytes.
        if let (true, Some(first)) = (skip > 0 && wide.start < readable, blocks.get_mut(..block)) {
            announce(&*self.inner, Event::PwritevRmwHead).await?;
            self.inner.read(wide.start, first, ReadFlags::default()).await?;
            announce(&*self.inner, Event::PwritevRmwAfterHead).await?;
        }
        let last = wide.end() - self.block;
        let have_last = range.end() == wide.end() || last >= readable || (skip > 0 && last == wide.start);
        if let (false, Some(tail)) = (have_last, blocks.get_mut((last - wide.start) as usize..)) {
            announce(&*self.inner, Event::PwritevRmwTail).await?;
            self.inner.read(last, tail, ReadFlags::default()).await?;
            announce(&*self.inner, Event::PwritevRmwAfterTail).await?;
        }
        if let Some(part) = blocks.get_mut(skip..skip + from.len()) {
            part.copy_from_slice(from);
        }
        announce(&*self.inner, Event::Pwritev).await?;
        self.inner.write(wide.start, &blocks, flags).await?;
        announce(&*self.inner, Event::PwritevDone).await
    }
}

impl Node for Aligned {
    fn info(&self) -> NodeInfo {
        NodeInfo { request_alignment: 1, ..self.inner.info() }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        self.inner.map(range, want)
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        let range = Range::new(at, into.len() as u64);
        if self.is_aligned(range) {
            return self.inner.read(at, into, flags);
        }
        match check_bounds(at, range.len, self.inner.info().length) {
            Ok(()) => Op::future(self.read_unaligned(range, into)),
            Err(error) => Op::err(error),
        }
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        let range = Range::new(at, from.len() as u64);
        if !self.is_aligned(range) {
            return if_writing(|| Op::future(self.write_unaligned(range, from, flags)));
        }
        let request = self.requests.begin(RequestKind::Write, range);
        if request.undisturbed() {
            return match self.inner.write(at, from, flags) {
                Op::Ready(result) => Op::Ready(result),
                Op::Pending(future) => Op::future(async move {
                    let result = future.await;
                    drop(request);
                    result
                }),
            };
        }
        Op::future(async move {
            request.wait().await;
            self.inner.write(at, from, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        if !self.is_aligned(range) {
            let Some(middle) = self.aligned_part(range) else {
                return Op::err(crate::Error::unsupported("zeroing parts of blocks is a write"));
            };
            return if_writing(|| {
                Op::future(async move {
                    let whole = self.requests.begin(RequestKind::Write, middle);
                    whole.wait().await;
                    self.inner.write_zeroes(middle, flags).await?;
                    drop(whole);
                    let head = Range::new(range.start, middle.start - range.start);
                    let tail = Range::new(middle.end(), range.end() - middle.end());
                    for part in [head, tail].into_iter().filter(|part| part.len > 0) {
                        self.write_unaligned(part, &vec![0; part.len as usize], flags).await?;
                    }
                    Ok(())
                })
            });
        }
        Op::future(async move {
            let request = self.requests.begin(RequestKind::Write, range);
            request.wait().await;
            self.inner.write_zeroes(range, flags).await
        })
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        match self.aligned_part(range) {
            Some(middle) => self.inner.discard(middle),
            None => Op::ok(()),
        }
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        self.inner.flush()
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        self.inner.resize(length, preallocation)
    }

    fn copy_from<'a>(&'a self, at: u64, source: &'a dyn Node, source_at: u64, len: u64) -> Op<'a, ()> {
        self.inner.copy_from(at, source, source_at, len)
    }

    fn event<'a>(&'a self, event: Event) -> Op<'a, ()> {
        self.inner.event(event)
    }

    fn listens(&self) -> bool {
        self.inner.listens()
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        self.inner.close()
    }

    fn is_disk(&self) -> bool {
        self.inner.is_disk()
    }

    fn filtered(&self) -> Option<Arc<dyn Node>> {
        self.inner.is_disk().then(|| self.inner.clone())
    }

    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        self.inner.child(role)
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn allocated(&self) -> Option<u64> {
        self.inner.allocated()
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        self.inner.as_any()
    }
}
