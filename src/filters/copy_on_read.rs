//! `copy-on-read`: what is read from a backing image is stored in the image.

use alloc::sync::Arc;

use crate::engine::Image;
use crate::error::{Error, Result};
use crate::filters::hand_on;
use crate::node::{Node, NodeInfo, Range, ReadFlags};
use crate::op::Op;

/// A node over an image with a backing image.
pub struct CopyOnRead {
    image: Arc<dyn Node>,
}

impl core::fmt::Debug for CopyOnRead {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CopyOnRead").finish_non_exhaustive()
    }
}

impl CopyOnRead {
    /// A node over `image`.
    ///
    /// # Errors
    /// It is not an image, or cannot be written.
    pub fn new(image: Arc<dyn Node>) -> Result<Self> {
        if as_image(&image).is_none() {
            return Err(Error::unsupported("copy-on-read needs an image to store in"));
        }
        if image.info().read_only {
            let text = "copy-on-read needs an image that can be written";
            return Err(Error::new(crate::ErrorKind::ReadOnly, text).with_headline("Block node is read-only"));
        }
        Ok(CopyOnRead { image })
    }
}

fn as_image(node: &Arc<dyn Node>) -> Option<&Image> {
    node.as_any().and_then(|any| any.downcast_ref())
}

impl Node for CopyOnRead {
    fn info(&self) -> NodeInfo {
        self.image.info()
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        let range = Range::new(at, into.len() as u64);
        Op::future(async move {
            if let Some(image) = as_image(&self.image) {
                image.pull(range).await?;
            }
            self.image.read(at, into, flags).await
        })
    }

    hand_on!(image: map write write_zeroes discard flush resize close event names);
}
