//! Moving an image to another backing image without changing what it reads as.

use alloc::sync::Arc;
use core::ops::ControlFlow;

use crate::engine::status::Chain;
use crate::engine::{Image, is_zero};
use crate::error::Result;
use crate::native::Buffer;
use crate::native::segments::{Progress, Run};
use crate::node::{Node, Range, ReadFlags, Want, WriteFlags};
use crate::op::block_on;

/// Largest single read.
const BUFFER: u64 = 1 << 19;

/// How an image is rebased.
#[derive(Clone, Copy, Debug, Default)]
pub struct RebaseOptions {
    /// Worker threads, at least one.
    pub workers: usize,
    /// Whether what is stored is compressed.
    pub compress: bool,
}

/// Stores in `top` whatever it does not store itself and where its old backing image differs from `new`. After that
/// [`Image::set_backing`] changes nothing of what is read.
///
/// # Errors
/// The first failure of any of them, or [`crate::ErrorKind::Cancelled`].
pub fn rebase(
    top: &Arc<Image>,
    old: Option<Arc<dyn Node>>,
    new: Option<Arc<dyn Node>>,
    options: RebaseOptions,
    progress: &Progress<'_>,
) -> Result<()> {
    let info = top.info();
    let job = Rebase {
        top,
        own: Chain::of(top.clone()),
        length: info.length,
        cluster: u64::from(info.cluster_size.unwrap_or(1 << 16)),
        sides: [Side::of(old), Side::of(new)],
        compress: options.compress,
    };
    Run::new(info.length, progress).over_segments(options.workers, |range, buffers| {
        job.segment(range, buffers)?;
        Ok(ControlFlow::Continue(range.end()))
    })
}

struct Rebase<'a> {
    top: &'a Arc<Image>,
    own: Chain,
    length: u64,
    cluster: u64,
    sides: [Side; 2],
    compress: bool,
}

impl Rebase<'_> {
    fn segment(&self, range: Range, buffers: &mut [Buffer; 2]) -> Result<()> {
        // Whole clusters, each by the worker in whose segment it begins.
        let mut at = range.start.next_multiple_of(self.cluster);
        let end = range.end().next_multiple_of(self.cluster).min(self.length);
        while at < end {
            let rest = Range::new(at, end - at);
            let own = block_on(self.own.status(rest, Want::Allocation))?;
            let stored = own.depth == 0 && own.present;
            let known = if stored { own.len } else { own.len.min(self.zeroes(rest)?) };
            let (skipped, compared) = (self.whole(rest, known), self.whole(rest, own.len.min(BUFFER)));
            at += if skipped > 0 {
                skipped
            } else if !stored && compared > 0 {
                self.compare(Range::new(at, compared), buffers)?;
                compared
            } else {
                self.mixed(Range::new(at, self.cluster.min(rest.len)), buffers)?
            };
        }
        Ok(())
    }

    /// How much of `len` bytes from the start of a range is whole clusters; the end of the range counts as one.
    fn whole(&self, range: Range, len: u64) -> u64 {
        if len >= range.len { range.len } else { len / self.cluster * self.cluster }
    }

    /// How many bytes from the start of a range on are zeroes in both backing images.
    fn zeroes(&self, range: Range) -> Result<u64> {
        let [old, new] = &self.sides;
        Ok(old.zeroes(range)?.min(new.zeroes(range)?))
    }

    /// A cluster of which the image stores a part.
    fn mixed(&self, cluster: Range, buffers: &mut [Buffer; 2]) -> Result<u64> {
        let mut at = cluster.start;
        while at < cluster.end() {
            let own = block_on(self.own.status(Range::new(at, cluster.end() - at), Want::Allocation))?;
            if !(own.depth == 0 && own.present) {
                self.compare(Range::new(at, own.len), buffers)?;
            }
            at += own.len;
        }
        Ok(cluster.len)
    }

    /// Stores the clusters of a range in which both sides differ.
    fn compare(&self, range: Range, [old, new]: &mut [Buffer; 2]) -> Result<()> {
        let [before, after] = &self.sides;
        let (old, new): (&[u8], &[u8]) = (before.read(range, old)?, after.read(range, new)?);
        let unit = usize::try_from(self.cluster).unwrap_or(usize::MAX);
        for (index, (old, new)) in (0u64..).zip(old.chunks(unit).zip(new.chunks(unit))) {
            if old == new {
                continue;
            }
            let at = range.start + index * self.cluster;
            if is_zero(old) {
                let flags = WriteFlags { may_unmap: true, ..WriteFlags::default() };
                block_on(self.top.write_zeroes(Range::new(at, old.len() as u64), flags))?;
            } else {
                let whole = old.len() == unit || at + old.len() as u64 == self.length;
                let whole = whole && at.is_multiple_of(self.cluster);
                let flags = WriteFlags { compressed: self.compress && whole, ..WriteFlags::default() };
                block_on(self.top.write(at, old, flags))?;
            }
        }
        Ok(())
    }
}

/// A backing image, or none.
struct Side {
    chain: Option<Chain>,
    length: u64,
}

impl Side {
    fn of(node: Option<Arc<dyn Node>>) -> Self {
        let length = node.as_ref().map_or(0, |node| node.info().length);
        Side { chain: node.map(Chain::of), length }
    }

    /// How many bytes from the start of the range on are known to be zeroes.
    fn zeroes(&self, range: Range) -> Result<u64> {
        let available = self.length.saturating_sub(range.start).min(range.len);
        let Some(chain) = self.chain.as_ref().filter(|_| available > 0) else { return Ok(range.len) };
        let status = block_on(chain.status(Range::new(range.start, available), Want::Precise))?;
        Ok(match status.zero {
            false => 0,
            true if status.len == available => range.len,
            true => status.len,
        })
    }

    /// Reads a range, with zeroes beyond the end.
    fn read<'a>(&self, range: Range, buffer: &'a mut Buffer) -> Result<&'a [u8]> {
        let bytes = buffer.first(range.len as usize);
        let top = self.chain.as_ref().and_then(|chain| chain.layers().first());
        let available = top.map_or(0, |_| self.length.saturating_sub(range.start).min(range.len));
        let (part, beyond) = bytes.split_at_mut(available as usize);
        beyond.fill(0);
        if let Some(node) = top.filter(|_| available > 0) {
            block_on(node.read(range.start, part, ReadFlags::default()))?;
        }
        Ok(bytes)
    }
}
