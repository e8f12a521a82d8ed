//! `convert`: copy one or more disks into a new image.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use diskette::describe::{Bitmap, SnapshotChoice};
use diskette::drivers::Driver;
use diskette::engine::status::Chain;
use diskette::filters::Concat;
use diskette::native::copy::{CopyError, CopyOptions, Step, bytes_to_copy, copy};
use diskette::native::{File, FileOptions, Locking, resolve};
use diskette::{Error, Node, Range, Role, Want, block_on};

use crate::args::ConvertArgs;
use crate::commands::create::{
    add_backing, check_backing, check_options, driver_for, make, merge_options, print_options, wants_help,
};
use crate::image_opts::split_options;
use crate::io::reason;
use crate::number::{self, MAX_OFFSET};
use crate::open::{Opened, Wish, cache_mode, explain, open, open_plainly};
use crate::progress::Progress;
use crate::{Failure, Outcome, program};

/// Zeroes shorter than this are stored like data, unless `-S` says otherwise.
const DEFAULT_SPARSE_BYTES: u64 = 4096;
/// Progress is told after so many bytes at most, as QEMU does.
const PROGRESS_BYTES: usize = 2 << 20;
/// What is given up when it cannot be read.
const SECTOR_BYTES: u64 = 512;
/// As QEMU limits it.
const MAX_SPARSE_BYTES: u64 = 16 << 20;

pub(crate) fn run(args: &ConvertArgs) -> Outcome {
    let driver = driver_for(args.target_format.as_deref().unwrap_or("raw"))?;
    let (target_name, source_names) = match args.files.split_last() {
        Some((target, sources)) if !sources.is_empty() => (target.as_str(), sources),
        last => {
            if wants_help(&args.options)? {
                print_options(driver, last.is_some());
                return Ok(0);
            }
            return Err(Failure::new("Must specify image file name"));
        }
    };
    if wants_help(&args.options)? {
        print_options(driver, true);
        return Ok(0);
    }
    let settings = Settings::new(args, driver)?;
    let sources = open_sources(args, &settings, source_names)?;
    let bitmaps = if args.bitmaps { bitmaps_to_copy(args, &sources)? } else { Vec::new() };
    let size = sources.iter().map(|source| source.image.info().length).sum();
    let options = if args.no_create {
        if !args.options.is_empty() {
            return Err(Failure::new("-o has no effect when skipping image creation"));
        }
        args.backing.iter().map(|name| ("backing_file".into(), name.clone())).collect()
    } else {
        let options = target_options(args, driver, sources.len())?;
        if let Some(backing) = options.get("backing_file") {
            check_backing(target_name, backing, options.get("backing_fmt")).map_err(|failure| {
                failure.within(&format!("Could not open '{target_name}': Could not open backing file"))
            })?;
        }
        make(target_name, driver, size, &options, settings.target.cache)
            .map_err(|failure| failure.within(&format!("{target_name}: error while converting {}", driver.name)))?;
        options
    };
    let keys = options.iter().filter(|(name, _)| name.ends_with("key-secret"));
    let mut target_wish = settings.target.clone();
    keys.for_each(|(name, secret)| target_wish.options.set(name, secret));
    let target = open(target_name, &target_wish)?;
    if target.image.info().length < size {
        return Err(Failure::new("output file is smaller than input file"));
    }
    if args.bitmaps && !target.image.stores_bitmaps() {
        return Err(Failure::new(format!("Format driver '{}' does not support bitmaps", target.image.format_name())));
    }
    copy_all(args, &settings, &sources, &target, &options)?;
    copy_bitmaps(&bitmaps, &sources, &target)?;
    target.close()?;
    Ok(0)
}

fn open_sources(args: &ConvertArgs, settings: &Settings, names: &[String]) -> Result<Vec<Opened>, Failure> {
    let sources = names.iter().map(|name| open(name, &settings.source)).collect::<Result<Vec<_>, _>>()?;
    let Some(text) = &args.snapshot else { return Ok(sources) };
    if sources.len() > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    let wish = Wish { snapshot: Some(snapshot_choice(text)?), ..settings.source.clone() };
    let failed = |failure: Failure| failure.within("Failed to load snapshot");
    names.iter().map(|name| open_plainly(name, &wish).map_err(failed)).collect()
}

/// The snapshot that `-l` means.
pub(crate) fn snapshot_choice(text: &str) -> Result<SnapshotChoice, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotChoice::IdOrName(text.into()));
    }
    let mut options = split_options(text)?;
    let (id, name) = (options.remove("snapshot.id"), options.remove("snapshot.name"));
    match options.keys().next() {
        Some(unknown) => Err(Failure::new(format!(
            "Invalid parameter '{unknown}'\n{}: Failed in parsing snapshot param '{text}'",
            program::name()
        ))),
        None => Ok(SnapshotChoice::Exactly { id, name }),
    }
}

/// What the command line says about how to copy.
struct Settings {
    source: Wish,
    target: Wish,
    sparse_bytes: u64,
    bytes_per_second: u64,
    workers: usize,
}

impl Settings {
    fn new(args: &ConvertArgs, driver: &Driver) -> Result<Self, Failure> {
        refuse_contradictions(args)?;
        if args.compress && driver.name == "raw" {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        let source_cache = cache_mode(&args.source_cache, "source ")?;
        let target_cache = cache_mode(&args.target_cache, "")?;
        Ok(Settings {
            source: Wish {
                format: args.format.clone(),
                image_opts: args.image_opts,
                force_share: args.force_share,
                cache: source_cache,
                ..Wish::default()
            },
            target: Wish {
                format: (!args.target_image_opts).then(|| driver.name.to_string()),
                image_opts: args.target_image_opts,
                cache: target_cache,
                writable: true,
                ..Wish::default()
            },
            sparse_bytes: sparse_bytes(args.sparse_size.as_deref())?,
            bytes_per_second: match &args.rate {
                Some(text) => number::parse(text, "rate limit", 0..=MAX_OFFSET)?,
                None => 0,
            },
            workers: match &args.workers {
                Some(text) => number::parse(text, "number of coroutines", 1..=16)? as usize,
                // Warnings come in the order of the disk.
                None if args.salvage => 1,
                None => std::thread::available_parallelism().map_or(2, |count| count.get().min(8)),
            },
        })
    }
}

/// Fails if two options of the command line exclude each other.
fn refuse_contradictions(args: &ConvertArgs) -> Result<(), Failure> {
    let contradictions = [
        (args.target_image_opts && !args.no_create, "--target-image-opts requires use of -n flag"),
        (
            args.image_opts && args.format.is_some() || args.target_image_opts && args.target_format.is_some(),
            "--image-opts and --format are mutually exclusive",
        ),
        (args.skip_broken_bitmaps && !args.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
        (args.copy_range_offloading && args.compress, "Cannot enable copy offloading when -c is used"),
        (args.copy_range_offloading && args.sparse_size.is_some(), "Cannot enable copy offloading when -S is used"),
        (args.copy_range_offloading && args.salvage, "Cannot use copy offloading in salvaging mode"),
        (args.target_is_zero && !args.no_create, "--target-is-zero requires use of -n flag"),
        (
            args.target_is_zero && args.backing.is_some(),
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
    ];
    match contradictions.iter().find(|(found, _)| *found) {
        Some((_, text)) => Err(Failure::new(*text)),
        None => Ok(()),
    }
}

fn sparse_bytes(text: Option<&str>) -> Result<u64, Failure> {
    let Some(text) = text else { return Ok(DEFAULT_SPARSE_BYTES) };
    let what = "Invalid buffer size for sparse output specified";
    let bytes = number::parse(text, "buffer size for sparse output", 0..=MAX_OFFSET)?;
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
    check_options(driver, &options)?;
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
    let base_file = base.as_deref().and_then(identity);
    let preallocated = options.get("preallocation").is_some_and(|mode| mode != "off");
    // Clusters that were set aside hold what their file held before.
    let is_encrypted = target.image.describe()?.encryption.is_some();
    let file_is_zero = !preallocated || (target.file.info().zero_init && !is_encrypted);
    let fresh = !args.no_create && base.is_none() && file_is_zero && target.image.info().zero_init;
    let target_node: Arc<dyn Node> = target.image.clone();
    let source: Arc<dyn Node> = match sources {
        [source] => source.node(),
        several => Arc::new(Concat::new(several.iter().map(Opened::node))),
    };
    // What the source has from the target's own backing image need not be copied. If the backing image is not in the
    // source's chain, everything is.
    let chain = Chain::of(source.clone());
    let is_base = |layer: &Arc<dyn Node>| layer.child(Role::File).map(|file| file.identity()) == base_file;
    let shared = base_file
        .as_ref()
        .and_then(|_| chain.layers().iter().position(is_base))
        // At a snapshot the source is not what its file shows as a backing image.
        .filter(|layers| *layers > 0 || args.snapshot.is_none());
    if args.salvage && !args.quiet && program::is_tool() {
        // QEMU looks through the source once before it copies, and reports what it cannot look at.
        survey(&chain, source.info().length);
    }
    let shown = args.progress && !args.quiet;
    let copy_options = CopyOptions {
        piece_bytes: if shown { PROGRESS_BYTES } else { CopyOptions::default().piece_bytes },
        count_moved: shown,
        workers: settings.workers,
        sparse_bytes: settings.sparse_bytes,
        target_is_zero: args.target_is_zero || fresh,
        skip_unallocated: shared.is_some(),
        own_layers: shared.map_or(u32::MAX, |layers| layers as u32),
        offload: args.copy_range_offloading,
        out_of_order: args.out_of_order,
        compress: args.compress,
        bytes_per_second: settings.bytes_per_second,
        salvage: match (args.salvage, args.quiet) {
            (false, _) => None,
            (true, false) => Some(warn),
            (true, true) => Some(|_| {}),
        },
    };
    let total = if shown {
        bytes_to_copy(&source, &target_node, copy_options).map_err(|error| Failure::new(what_failed(&error)))?
    } else {
        source.info().length
    };
    let progress = Progress::new(shown, total);
    let show = |done| {
        progress.update(done);
        ControlFlow::Continue(())
    };
    copy(&source, &target_node, copy_options, &show).map_err(|error| Failure::new(what_failed(&error)))?;
    progress.complete();
    Ok(())
}

/// The bitmaps of the source that are copied.
fn bitmaps_to_copy(args: &ConvertArgs, sources: &[Opened]) -> Result<Vec<Bitmap>, Failure> {
    let [source] = sources else { return Err(Failure::new("Copying bitmaps only possible with single source")) };
    if !source.image.stores_bitmaps() {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    let (broken, sound): (Vec<_>, Vec<_>) = source.image.bitmaps()?.into_iter().partition(|bitmap| bitmap.in_use);
    // QEMU comes to the last one first.
    for bitmap in broken.iter().rev() {
        if !args.skip_broken_bitmaps {
            return Err(Failure::new(format!(
                "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use '{} bitmap --remove' to delete it",
                bitmap.name,
                program::name()
            )));
        }
        eprintln!("{}: warning: Skipping inconsistent bitmap '{}'", program::name(), bitmap.name);
    }
    Ok(sound)
}

fn copy_bitmaps(bitmaps: &[Bitmap], sources: &[Opened], target: &Opened) -> Result<(), Failure> {
    let Some(source) = sources.first() else { return Ok(()) };
    let there = target.image.bitmaps()?;
    if let Some(Bitmap { name, .. }) =
        bitmaps.iter().rev().find(|bitmap| there.iter().any(|other| other.name == bitmap.name))
    {
        return Err(Failure::new(format!("Failed to create bitmap {name}: Bitmap already exists: {name}")));
    }
    for Bitmap { name, granularity, auto, .. } in bitmaps {
        let failed = |what: &'static str| {
            move |error: Error| Failure::new(format!("Failed to {what} bitmap {name}: {}", error.problem()))
        };
        block_on(target.image.add_bitmap(name, Some(*granularity), false)).map_err(failed("create"))?;
        let bits = block_on(source.image.read_bitmap(name)).map_err(failed("populate"))?;
        block_on(target.image.merge_bitmap(name, &bits)).map_err(failed("populate"))?;
        if *auto {
            block_on(target.image.enable_bitmap(name)).map_err(failed("enable"))?;
        }
    }
    Ok(())
}

/// Which file the path leads to, by whatever name.
fn identity(path: &str) -> Option<String> {
    let options = FileOptions { read_only: true, locking: Locking::Off, ..FileOptions::default() };
    File::open(path, options).ok().map(|file| file.identity())
}

/// Looks through the whole source, and reports every sector of which it cannot be told what it holds.
fn survey(chain: &Chain, length: u64) {
    let mut at = 0;
    while at < length {
        let status = |len: u64| block_on(chain.status(Range::new(at, len), Want::Precise));
        let len = match status(length - at).or_else(|_| status(SECTOR_BYTES.min(length - at))) {
            Ok(status) => status.len.max(1),
            Err(error) => {
                warn(&CopyError { doing: Some((Step::Status, at)), error });
                SECTOR_BYTES
            }
        };
        at += len;
    }
}

/// Which step failed where, and why.
fn what_failed(error: &CopyError) -> String {
    let reason = if program::is_tool() { reason(&error.error) } else { explain(&error.error, "") };
    match error.doing {
        Some((Step::Status, at)) => format!("error while reading block status at offset {at}: {reason}"),
        Some((Step::Read, at)) => format!("error while reading at byte {at}: {reason}"),
        Some((Step::Write, at)) => format!("error while writing at byte {at}: {reason}"),
        None => format!("error while converting: {reason}"),
    }
}

/// Tells about a sector that is given up.
fn warn(error: &CopyError) {
    eprintln!("{}: warning: {}", program::name(), what_failed(error).replacen("at byte", "offset", 1));
}
