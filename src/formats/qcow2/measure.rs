//! How large an image will be.

use alloc::sync::Arc;

use crate::describe::Bitmap;
use crate::drivers::{MeasureContext, Measurement};
use crate::engine::Image;
use crate::engine::status::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::create::Plan;
use crate::node::{Node, Preallocation, Range, Want};
use crate::op::BoxFuture;

pub(super) fn measure(context: MeasureContext<'_>) -> BoxFuture<'_, Result<Measurement>> {
    alloc::boxed::Box::pin(async move {
        let plan = Plan::new(context.size, context.options).map_err(|error| match error.kind() {
            ErrorKind::TooLarge => {
                Error::new(ErrorKind::TooLarge, "The image size is too large (try using a larger cluster size)")
            }
            _ => error,
        })?;
        let cluster = plan.cluster().size();
        let size = context.size.next_multiple_of(cluster);
        let fully_allocated = plan.metadata_bytes(size) + plan.encryption_bytes() + size;
        let data = match context.source {
            None => 0,
            // How much of it the backing file has already is not looked into.
            Some(_) if plan.has_backing() => size,
            Some(source) => data_bytes(source, cluster).await?,
        };
        let required = if plan.preallocation() == Preallocation::Off || context.source.is_none() && !plan.is_filled() {
            fully_allocated - size + data
        } else {
            fully_allocated
        };
        let bitmaps = match context.source {
            Some(source) if plan.is_version_3() => bitmap_bytes(source, cluster)?,
            _ => None,
        };
        Ok(Measurement { required, fully_allocated, bitmaps })
    })
}

/// Bytes in clusters of the new image that are not all zero.
async fn data_bytes(source: &Arc<dyn Node>, cluster: u64) -> Result<u64> {
    let length = source.info().length;
    let chain = Chain::of(source.clone());
    let (mut at, mut counted_to, mut bytes) = (0, 0, 0);
    while at < length {
        let status = chain.status(Range::new(at, length - at), Want::Precise).await?;
        let end = at + status.len.max(1);
        if status.data {
            // A cluster that two stretches share counts once.
            let start = (at - at % cluster).max(counted_to);
            counted_to = end.next_multiple_of(cluster).max(start);
            bytes += counted_to - start;
        }
        at = end;
    }
    Ok(bytes)
}

/// What the bitmaps of the source will take, if it can have any.
fn bitmap_bytes(source: &Arc<dyn Node>, cluster: u64) -> Result<Option<u64>> {
    let image = source.as_any().and_then(|any| any.downcast_ref::<Image>());
    let Some(image) = image.filter(|image| image.format_name() == "qcow2") else { return Ok(None) };
    let details = image.describe()?;
    let is_version_2 = details.header.iter().any(|field| field.name == "version" && field.number == Some(2));
    if is_version_2 {
        return Ok(None);
    }
    let length = source.info().length;
    let (mut total, mut directory) = (0, 0u64);
    for Bitmap { name, granularity, in_use, .. } in details.bitmaps {
        if in_use {
            continue;
        }
        let bytes = length.div_ceil(granularity.max(1)).div_ceil(8);
        let clusters = bytes.div_ceil(cluster);
        total += (clusters + (clusters * 8).div_ceil(cluster)) * cluster;
        // Fixed part and name, in steps of eight bytes.
        directory += (24 + name.len() as u64).next_multiple_of(8);
    }
    Ok(Some(total + directory.next_multiple_of(cluster)))
}
