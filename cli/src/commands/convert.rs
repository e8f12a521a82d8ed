//! `convert`: copy one or more disks into a new image.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use diskette::drivers::Driver;
use diskette::engine::status::Chain;
use diskette::native::parallel::{CopyOptions, copy};
use diskette::native::{CacheMode, resolve};
use diskette::wire::parse_size;
use diskette::{Node, block_on};

use crate::args::ConvertArgs;
use crate::commands::create::{
    add_backing, check_backing, check_options, driver_for, make, merge_options, print_options, wants_help,
};
use crate::number;
use crate::open::{Opened, Wish, cache_mode, explain, open};
use crate::progress::Progress;
use crate::{Failure, Outcome};

/// Zeroes shorter than this are stored like data, unless `-S` says otherwise.
const DEFAULT_SPARSE_BYTES: u64 = 4096;
/// As QEMU limits it.
const MAX_SPARSE_BYTES: u64 = 16 << 20;

pub(crate) fn run(args: &ConvertArgs) -> Outcome {
    let driver = driver_for(&args.target_format)?;
    let (target_name, source_names) = match args.files.split_last() {
        Some((target, sources)) if !sources.is_empty() => (target.as_str(), sources),
        last => {
            if wants_help(&args.options) {
                print_options(driver, last.is_some());
                return Ok(0);
            }
            return Err(Failure::new("Must specify image file name"));
        }
    };
    if wants_help(&args.options) {
        print_options(driver, true);
        return Ok(0);
    }
    let settings = Settings::new(args, driver)?;
    let sources = source_names.iter().map(|name| open(name, &settings.source)).collect::<Result<Vec<_>, _>>()?;
    let size = sources.iter().map(|source| source.image.info().length).sum();
    let options = target_options(args, driver, sources.len())?;
    if args.no_create {
        let ignored = !args.options.is_empty();
        if ignored {
            return Err(Failure::new("-o has no effect when skipping image creation"));
        }
    } else {
        if let Some(backing) = options.get("backing_file") {
            check_backing(target_name, backing, options.get("backing_fmt")).map_err(|failure| {
                failure.within(&format!("Could not open '{target_name}': Could not open backing file"))
            })?;
        }
        make(target_name, driver, size, &options, settings.target_cache)
            .map_err(|failure| failure.within(&format!("{target_name}: error while converting {}", driver.name)))?;
    }
    let target = open(target_name, &settings.target)?;
    if target.image.info().length < size {
        return Err(Failure::new("output file is smaller than input file"));
    }
    copy_all(args, &settings, &sources, &target, &options)?;
    Ok(0)
}

/// What the command line says about how to copy.
struct Settings {
    source: Wish,
    target: Wish,
    target_cache: CacheMode,
    sparse_bytes: u64,
    workers: usize,
}

impl Settings {
    fn new(args: &ConvertArgs, driver: &Driver) -> Result<Self, Failure> {
        if args.image_opts && args.format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        if args.copy_range_offloading && args.compress {
            return Err(Failure::new("Cannot enable copy offloading when -c is used"));
        }
        if args.copy_range_offloading && args.sparse_size.is_some() {
            return Err(Failure::new("Cannot enable copy offloading when -S is used"));
        }
        if args.target_is_zero && !args.no_create {
            return Err(Failure::new("--target-is-zero requires use of -n flag"));
        }
        if args.target_is_zero && args.backing.is_some() {
            return Err(Failure::new("Cannot use --target-is-zero when the destination image has a backing file"));
        }
        if args.compress {
            return Err(Failure::new(if driver.name == "raw" {
                "Compression not supported for this file format"
            } else {
                "writing compressed images (-c) is not supported"
            }));
        }
        let target_cache = cache_mode(&args.target_cache, "")?;
        Ok(Settings {
            source: Wish {
                format: args.format.clone(),
                image_opts: args.image_opts,
                force_share: args.force_share,
                cache: cache_mode(&args.source_cache, "source ")?,
                contents: true,
                ..Wish::default()
            },
            target: Wish {
                format: Some(args.target_format.clone()),
                cache: target_cache,
                writable: true,
                ..Wish::default()
            },
            target_cache,
            sparse_bytes: sparse_bytes(args.sparse_size.as_deref())?,
            workers: match &args.workers {
                Some(text) => number::parse(text, "number of coroutines", 1..=16)? as usize,
                None => std::thread::available_parallelism().map_or(2, |count| count.get().min(8)),
            },
        })
    }
}

fn sparse_bytes(text: Option<&str>) -> Result<u64, Failure> {
    let Some(text) = text else { return Ok(DEFAULT_SPARSE_BYTES) };
    let what = "Invalid buffer size for sparse output specified";
    let bytes = parse_size(text).ok_or_else(|| Failure::new(format!("{what}: '{text}'.")))?;
    if bytes % 512 != 0 || bytes > MAX_SPARSE_BYTES {
        return Err(Failure::new(format!(
            "{what}. Valid sizes are multiples of 512 up to {MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(bytes)
}

/// The options that the target is made with.
fn target_options(args: &ConvertArgs, driver: &Driver, sources: usize) -> Result<BTreeMap<String, String>, Failure> {
    let mut options = merge_options(&args.options)?;
    check_options(driver, &mut options)?;
    // The size is that of the sources.
    options.remove("size");
    add_backing(driver, &mut options, args.backing.as_ref(), args.backing_format.as_ref())?;
    if options.contains_key("backing_file") {
        if sources > 1 {
            return Err(Failure::new(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        if !options.contains_key("backing_fmt") {
            return Err(Failure::new("Use of backing file requires explicit backing format"));
        }
    }
    Ok(options)
}

fn copy_all(
    args: &ConvertArgs,
    settings: &Settings,
    sources: &[Opened],
    target: &Opened,
    options: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let base = options.get("backing_file").map(|name| resolve(name, &target.path)).transpose()?;
    let preallocated = options.get("preallocation").is_some_and(|mode| mode != "off");
    let fresh = !args.no_create && (base.is_none() || preallocated) && target.image.info().zero_init;
    let target_node: Arc<dyn Node> = target.image.clone();
    let size = sources.iter().map(|source| source.image.info().length).sum();
    let progress = Progress::new(args.progress && !args.quiet, size);
    let mut start = 0;
    for source in sources {
        // What the source has from the target's own backing image need not be copied. If the backing image is not in
        // the source's chain, everything is.
        let chain = Chain::of(source.node());
        let shared = base.as_ref().and_then(|base| chain.layers().iter().position(|layer| layer.name() == *base));
        let copy_options = CopyOptions {
            workers: settings.workers,
            sparse_bytes: settings.sparse_bytes,
            target_is_zero: args.target_is_zero || fresh,
            skip_unallocated: shared.is_some(),
            own_layers: shared.map_or(u32::MAX, |layers| layers as u32),
            target_start: start,
            offload: args.copy_range_offloading,
        };
        let show = |done| {
            progress.update(start + done);
            ControlFlow::Continue(())
        };
        copy(&source.node(), &target_node, copy_options, &show)
            .map_err(|error| Failure::new(format!("error while converting: {}", explain(&error, ""))))?;
        start += source.image.info().length;
    }
    block_on(target.image.close())
        .map_err(|error| Failure::new(format!("error while converting: {}", explain(&error, ""))))?;
    progress.complete();
    Ok(())
}
