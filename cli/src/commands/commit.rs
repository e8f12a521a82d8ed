//! `commit`: write what an image stores into one that it is backed by.

use std::ops::ControlFlow;

use diskette::native::copy::{CopyOptions, copy};
use diskette::native::resolve;
use diskette::{Node, Preallocation, Role, block_on};

use crate::args::CommitArgs;
use crate::io::reason;
use crate::number::{self, MAX_OFFSET};
use crate::open::{Wish, cache_mode, close, explain, open};
use crate::progress::Progress;
use crate::{Failure, Outcome, output};

pub(crate) fn run(args: &CommitArgs) -> Outcome {
    let wish = Wish {
        writable: true,
        discard: true,
        cache: args.cache.as_deref().map(|cache| cache_mode(cache, "")).transpose()?.unwrap_or_default(),
        ..Wish::try_from(&args.image)?
    };
    let bytes_per_second = args.rate.as_deref().map(|text| number::parse(text, "rate limit", 0..=MAX_OFFSET));
    let bytes_per_second = bytes_per_second.transpose()?.unwrap_or(0);
    let layers = match &args.base {
        Some(wanted) => layers_to(wanted, args)?,
        None => 1,
    };
    let top = open(&args.file, &Wish { writable_below: layers, ..wish })?;
    let base = (0..layers).try_fold(top.node(), |node, _| node.child(Role::Backing));
    let base = base.ok_or_else(|| Failure::new("Image does not have a backing file"))?;
    let failed = |error: diskette::Error| Failure::new(explain(&error, &base.name()));
    let length = top.image.info().length;
    if base.info().length < length {
        block_on(base.resize(length, Preallocation::Off)).map_err(failed)?;
    }
    let progress = Progress::new(args.progress && !args.quiet, length);
    let copied = copy(
        &top.node(),
        &base,
        CopyOptions {
            skip_unallocated: true,
            own_layers: layers,
            target_is_zero: false,
            bytes_per_second,
            ..CopyOptions::default()
        },
        &|done| {
            progress.update(done);
            ControlFlow::Continue(())
        },
    );
    let closed = close(&*base);
    copied.map_err(|stopped| Failure::new(format!("Block job failed: {}", reason(&stopped.error))))?;
    closed?;
    progress.complete();
    // The images between are not what they were; with the target next to it, nothing needs this one's contents.
    if args.base.is_none() && !args.keep {
        match block_on(top.image.make_empty()) {
            Err(error) if error.kind() == diskette::ErrorKind::Unsupported => {}
            result => {
                result.map_err(|error| Failure::new(format!("Failed to empty {}: {}", args.file, reason(&error))))?
            }
        }
    }
    top.close()?;
    if !args.quiet {
        output::line("Image committed.");
    }
    Ok(0)
}

/// How many images are above the one of that name.
fn layers_to(wanted: &str, args: &CommitArgs) -> Result<u32, Failure> {
    let opened = open(&args.file, &Wish::try_from(&args.image)?)?;
    let mut layers = 0;
    let mut node = opened.node();
    loop {
        let details = node.as_any().and_then(|any| any.downcast_ref::<diskette::Image>()).map(|image| image.describe());
        let missing = || Failure::new(format!("Did not find '{wanted}' in the backing chain of '{}'", args.file));
        let backing = details.transpose()?.and_then(|details| details.backing).ok_or_else(missing)?;
        layers += 1;
        let path = resolve(&backing.name, &node.name()).unwrap_or_else(|_| backing.name.clone());
        let place = std::fs::canonicalize(&path).ok();
        // A relative name is relative to the image, as the image's own is.
        let wanted_place = resolve(wanted, &node.name()).ok().and_then(|path| std::fs::canonicalize(path).ok());
        if wanted == backing.name || (place.is_some() && wanted_place == place) {
            return Ok(layers);
        }
        let next = node.child(Role::Backing);
        node = next.ok_or_else(|| Failure::new("Image does not have a backing file"))?;
    }
}
