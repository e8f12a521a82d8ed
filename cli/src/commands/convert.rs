//! `convert`: copy a disk into a new image.

use std::sync::Arc;

use diskette::engine::status::Chain;
use diskette::native::parallel::{CopyOptions, copy};
use diskette::native::resolve;
use diskette::wire::parse_size;
use diskette::{Node, block_on};

use crate::args::ConvertArgs;
use crate::commands::create::{driver_for, make, merge_options, print_options, resolve_backing, wants_help};
use crate::open::{Wish, cache_mode, open};
use crate::progress::Progress;
use crate::{Failure, Outcome};

pub(crate) fn run(args: &ConvertArgs) -> Outcome {
    let driver = driver_for(&args.target_format, None)?;
    if wants_help(&args.options) {
        print_options(driver);
        return Ok(0);
    }
    let (source_name, target_name) = match args.files.as_slice() {
        [source, target] => (source, target),
        [_] | [] => return Err(Failure::new("Must specify image file name")),
        _ => return Err(Failure::new("joining several source images is not supported")),
    };
    if args.compress {
        return Err(Failure::new("writing compressed images (-c) is not supported"));
    }
    let sparse_bytes = parse_size(&args.sparse_size)
        .filter(|size| size.is_multiple_of(512) && *size <= 1 << 30)
        .ok_or_else(|| Failure::new("Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 1073741824. Select 0 to disable sparse detection (fully allocates output)."))?;
    let workers = match args.workers {
        Some(workers @ 1..=16) => workers,
        Some(_) => {
            return Err(Failure::new("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"));
        }
        None => std::thread::available_parallelism().map_or(2, |count| count.get().min(8)),
    };
    let wish = Wish { cache: cache_mode(&args.source_cache, "source ")?, ..Wish::from(&args.image) };
    let target_cache = cache_mode(&args.target_cache, "")?;
    let source = open(source_name, &wish)?;
    let size = source.image.info().length;
    let mut options = merge_options(&args.options)?;
    options.remove("size");
    if let Some(backing) = &args.backing {
        options.insert("backing_file".into(), backing.clone());
    }
    if let Some(format) = &args.backing_format {
        options.insert("backing_fmt".into(), format.clone());
    }
    let backing = options.get("backing_file").is_some_and(|name| !name.is_empty());
    if !args.no_create {
        if backing {
            resolve_backing(target_name, &mut options, Some(size), false)?;
        }
        make(target_name, driver, size, &options, target_cache)?;
    }
    let wish =
        Wish { format: Some(args.target_format.clone()), cache: target_cache, writable: true, ..Wish::default() };
    let target = open(target_name, &wish)?;
    if target.image.info().length < size {
        return Err(Failure::new(format!(
            "Output file is smaller than input file: {} bytes, needed {size}",
            target.image.info().length
        )));
    }
    let preallocated = options.get("preallocation").is_some_and(|mode| mode != "off");
    let target_is_zero =
        args.target_is_zero || (!args.no_create && (!backing || preallocated) && target.image.info().zero_init);
    // What the source has from the target's own backing image need not be copied. If the backing image is not in the
    // source's chain, everything is.
    let shared = options
        .get("backing_file")
        .map(|name| resolve(name, target_name))
        .transpose()?
        .and_then(|base| Chain::of(source.node()).layers().iter().position(|layer| layer.name() == base));
    let copy_options = CopyOptions {
        workers,
        sparse_bytes,
        target_is_zero,
        skip_unallocated: shared.is_some(),
        own_layers: shared.map_or(u32::MAX, |layers| layers as u32),
    };
    let progress = Progress::new(args.progress && !args.quiet, size);
    let result =
        copy(&source.node(), &(target.image.clone() as Arc<dyn Node>), copy_options, &|done| progress.update(done));
    let result = result.and_then(|()| block_on(target.image.close()));
    result.map_err(|error| Failure::new(format!("error while converting: {error}")))?;
    progress.finish();
    Ok(0)
}
