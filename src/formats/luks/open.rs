//! Opening a volume: its header, from the same file or another, and its key.

use alloc::boxed::Box;
use alloc::sync::Arc;

use crate::crypto::header::Place;
use crate::crypto::{Unlocking, Volume};
use crate::drivers::{OpenContext, OpenedFormat};
use crate::engine::byte_granular;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::luks::{Luks, text};
use crate::node::Node;
use crate::op::BoxFuture;

pub(super) fn open(context: OpenContext<'_>) -> BoxFuture<'_, Result<OpenedFormat>> {
    Box::pin(async move {
        let format = open_volume(context).await?;
        Ok(OpenedFormat { format: Box::new(format), backing: None })
    })
}

async fn open_volume(context: OpenContext<'_>) -> Result<Luks> {
    let OpenContext { file, options, .. } = context;
    let secret = text(&options.driver_options, "key-secret");
    let unlocking = Unlocking {
        keyring: options.keyring.clone(),
        secret: secret.filter(|_| !options.structure_only),
        iterations: options.budgets.key_iterations,
    };
    if !options.read_only && unlocking.secret.is_none() {
        return Err(Error::invalid("Parameter 'key-secret' is required for cipher"));
    }
    let header_file = options.child("header").map(|node| byte_granular(node.clone()));
    let holder: Arc<dyn Node> = header_file.as_ref().unwrap_or(&file).clone();
    let place = Place { at: 0, available: holder.info().length, detached: header_file.is_some() };
    let volume = Volume::open(holder, place, unlocking).await?;
    let payload = volume.header().payload_offset();
    let length = file.info().length;
    if payload > length {
        return Err(Error::new(
            ErrorKind::Io,
            alloc::format!("the data begins at byte {payload}, beyond the end of the file, which has {length} bytes"),
        )
        .at_offset(104));
    }
    Ok(Luks { file, header_file, volume, payload })
}
