//! `compress`: whatever is written is stored compressed.

use alloc::sync::Arc;

use crate::engine::Image;
use crate::error::{Error, Result};
use crate::filters::{hand_on, within};
use crate::node::{Node, NodeInfo, WriteFlags};
use crate::op::Op;

/// A node over an image that can store compressed clusters. Requests come in whole clusters.
pub struct Compress {
    image: Arc<dyn Node>,
    cluster: u32,
}

impl core::fmt::Debug for Compress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Compress").finish_non_exhaustive()
    }
}

impl Compress {
    /// A node over `image`.
    ///
    /// # Errors
    /// The image has no clusters to compress.
    pub fn new(image: Arc<dyn Node>) -> Result<Self> {
        let as_image = image.as_any().and_then(|any| any.downcast_ref::<Image>());
        match image.info().cluster_size {
            Some(cluster) if as_image.is_some_and(Image::stores_compressed) => Ok(Compress { image, cluster }),
            _ => Err(Error::unsupported("Compression is not supported for this drive")),
        }
    }
}

impl Node for Compress {
    fn info(&self) -> NodeInfo {
        let info = self.image.info();
        NodeInfo { request_alignment: info.request_alignment.max(self.cluster), ..info }
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        // The last cluster of the disk may be a part.
        let end = self.image.info().length;
        let inside = end.saturating_sub(at).min(from.len() as u64) as usize;
        self.image.write(at, from.get(..inside).unwrap_or(from), WriteFlags { compressed: true, ..flags })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: crate::ReadFlags) -> Op<'a, ()> {
        self.image.read(at, within(&*self.image, at, into), flags)
    }

    hand_on!(image: map write_zeroes discard flush resize close event names);
}
