//! From file names and options to open images.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diskette::describe::SnapshotChoice;
use diskette::drivers::{BackingChoice, CreateContext, OpenOptions};
use diskette::engine::BitmapsLost;
use diskette::engine::status::Chain;
use diskette::graph::{Graph, LeafMode};
use diskette::native::{CacheMode, File, FileOpener, FileOptions, Locking, Machine};
use diskette::options::Options;
use diskette::{Budgets, Error, Gate, Image, ImageOptions, Node, Policy, Role, block_on};

use crate::args::ImageArgs;
use crate::image_opts::image_options;
use crate::{Failure, output, program, secrets};

/// Said about a file without a name.
pub(crate) const NO_FILE_NAME: &str = "The 'file' block driver requires a file name";

/// What a command wants of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) format: Option<String>,
    pub(crate) image_opts: bool,
    pub(crate) force_share: bool,
    pub(crate) cache: CacheMode,
    pub(crate) writable: bool,
    /// How many images down is another one that is written to; 0 for none.
    pub(crate) writable_below: u32,
    /// The backing image is not opened.
    pub(crate) no_backing: bool,
    /// Discards reach the image.
    pub(crate) discard: bool,
    /// Only metadata of this one image.
    pub(crate) structure_only: bool,
    /// An encrypted image will do without its key.
    pub(crate) locked: bool,
    /// The image is checked or repaired, whatever is wrong with it.
    pub(crate) for_check: bool,
    /// The disk as it was at this internal snapshot.
    pub(crate) snapshot: Option<SnapshotChoice>,
    /// What is written goes to a temporary image and is lost in the end.
    pub(crate) temporary: bool,
    /// What is read from the backing image is stored.
    pub(crate) copy_on_read: bool,
    /// Further options, for an image that is given by its name.
    pub(crate) options: Options,
}

impl TryFrom<&ImageArgs> for Wish {
    type Error = Failure;

    fn try_from(args: &ImageArgs) -> Result<Self, Failure> {
        if args.image_opts && args.format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        Ok(Wish {
            format: args.format.clone(),
            image_opts: args.image_opts,
            force_share: args.force_share,
            ..Wish::default()
        })
    }
}

/// An open image and the file it was opened from.
pub(crate) struct Opened {
    pub(crate) image: Arc<Image>,
    pub(crate) file: Arc<dyn Node>,
    /// What the image is called in messages: the file name, or the options in JSON.
    pub(crate) name: String,
    /// The file name.
    pub(crate) path: String,
}

/// The cache mode of that name.
pub(crate) fn cache_mode(name: &str, what: &str) -> Result<CacheMode, Failure> {
    CacheMode::by_name(name).ok_or_else(|| Failure::new(format!("Invalid {what}cache option: {name}")))
}

/// Opens an image and, unless only its structure is wanted, its backing chain.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Opened, Failure> {
    open_plainly(name, wish).map_err(|failure| failure.within(&format!("Could not open '{name}'")))
}

/// As [`open`], with a message that does not begin with what could not be opened.
pub(crate) fn open_plainly(name: &str, wish: &Wish) -> Result<Opened, Failure> {
    if !wish.image_opts && name.is_empty() {
        return Err(Failure::new(NO_FILE_NAME));
    }
    let options = if wish.image_opts { image_options(name)? } else { wish.options.clone() };
    let name = (!wish.image_opts).then_some(name);
    // What was given, by its name or by options, is known.
    let called = name.or(options.value("file.filename")).unwrap_or_default().to_string();
    let failed = |error: Error| Failure::new(explain(&error, &called));
    if wish.writable && options.value("read-only").is_some_and(|value| ["on", "yes", "true", "y"].contains(&value)) {
        return Err(Failure::new("Block node is read-only"));
    }
    if wish.copy_on_read && !wish.writable {
        return Err(Failure::new("Can't use copy-on-read on read-only device"));
    }
    if wish.writable && wish.force_share {
        return Err(Failure::new("force-share=on can only be used with read-only images"));
    }
    // What is written to a temporary image is not written to this one.
    let read_only = !wish.writable || wish.temporary;
    let files = FileOptions { read_only, cache: wish.cache, force_share: wish.force_share, ..FileOptions::default() };
    let machine = machine(files);
    let images = OpenOptions { budgets: budgets(), keyring: crate::secrets::keyring(), ..OpenOptions::default() };
    let opener = FileOpener { options: files, machine: machine.clone(), images: images.clone() };
    let graph = Graph {
        host: &machine,
        defaults: OpenOptions {
            read_only,
            writable_below: wish.writable_below,
            gate: Gate::new(policy(), Arc::new(opener)),
            no_backing: wish.no_backing,
            image: ImageOptions {
                discard: wish.discard,
                copy_on_read: wish.copy_on_read,
                write_through: matches!(wish.cache, CacheMode::Writethrough | CacheMode::Directsync),
                ..ImageOptions::default()
            },
            structure_only: wish.structure_only,
            for_check: wish.for_check,
            report: Some(Arc::new(|text: &str| eprintln!("{text}"))),
            snapshot: wish.snapshot.clone(),
            ..images.clone()
        },
        mode: LeafMode { read_only, force_share: wish.force_share, ..LeafMode::default() },
    };
    let mut image = block_on(graph.open(name, wish.format.as_deref(), options)).map_err(failed)?;
    if !wish.structure_only && !wish.locked {
        refuse_locked(&image)?;
    }
    if wish.temporary {
        image = overlay(image, &graph.defaults)?;
    }
    if image.describe().is_ok_and(|details| details.stale_bitmaps) {
        eprintln!(
            "{}: warning: a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent\n\
             Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
            program::name()
        );
    }
    let file = image.child(Role::File).ok_or_else(|| Failure::new("the image has no file"))?;
    let path = file.name();
    let shown = image.name();
    if wish.writable && image.was_probed() && image.format_name() == "raw" {
        eprintln!(
            "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions.",
            path
        );
    }
    Ok(Opened { image, file, name: shown, path })
}

/// A temporary image over another one. Its file has no name any more.
fn overlay(image: Arc<Image>, defaults: &OpenOptions) -> Result<Arc<Image>, Failure> {
    let failed = |error: Error| Failure::new(format!("Could not create temporary overlay: {}", explain(&error, "")));
    let folder = std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".to_string());
    let path = format!("{folder}/diskette-{}-{:x}", std::process::id(), Arc::as_ptr(&image) as usize);
    let options = FileOptions { locking: Locking::Off, cache: CacheMode::Unsafe, ..FileOptions::default() };
    let file = File::create(&path, options).map_err(failed)?;
    // What cannot be removed stays behind, but does no harm.
    let _ = std::fs::remove_file(&path);
    let driver = defaults.drivers.by_name("qcow2").ok_or_else(|| Failure::new("Unknown driver 'qcow2'"))?;
    let size = image.info().length;
    let made = block_on(async {
        if let Some(create) = driver.create {
            let (options, keyring) = (BTreeMap::new(), &defaults.keyring);
            let context = CreateContext { file: file.clone(), data_file: None, size, options: &options, keyring };
            create(context).await?;
        }
        let options = OpenOptions {
            format: Some("qcow2".into()),
            name: Some(image.name()),
            backing: BackingChoice::Node(image),
            read_only: false,
            ..defaults.clone()
        };
        diskette::open(file, &options).await
    });
    made.map_err(failed)
}

static UNTRUSTED: AtomicBool = AtomicBool::new(false);

/// From now on nothing is opened that an image names, and images may cost no more than those that nobody trusts.
pub(crate) fn trust_nobody() {
    UNTRUSTED.store(true, Ordering::Relaxed);
}

/// Whether nothing is opened that an image names.
pub(crate) fn trusts_nobody() -> bool {
    UNTRUSTED.load(Ordering::Relaxed)
}

fn policy() -> Policy {
    if trusts_nobody() { Policy::Deny } else { Policy::Allow }
}

fn budgets() -> Budgets {
    if trusts_nobody() {
        Budgets::default()
    } else {
        // As much as QEMU's tools would take.
        Budgets { check_bytes: 8 << 30, chain_depth: 1000, ..Budgets::default() }
    }
}

/// What descriptions of images can refer to.
pub(crate) fn machine(files: FileOptions) -> Machine {
    Machine {
        files,
        report: Some(Arc::new(|text: &str| output::line(text))),
        throttle_groups: secrets::throttle_groups(),
    }
}

/// Fails if an image of the chain is encrypted and has no key: part of its contents cannot be read.
fn refuse_locked(image: &Arc<Image>) -> Result<(), Failure> {
    for (depth, layer) in Chain::of(image.clone()).layers().iter().enumerate() {
        let Some(image) = layer.as_any().and_then(|any| any.downcast_ref::<Image>()) else { continue };
        if let Some(option) = image.missing_key() {
            let below = "Could not open backing file: ".repeat(depth);
            return Err(Failure::new(format!("{below}Parameter '{option}' is required for cipher")));
        }
    }
    Ok(())
}

/// The error's text without the name of the file in `name` and of the format, which the reader knows.
pub(crate) fn explain(error: &Error, name: &str) -> String {
    if program::is_tool() {
        return error.brief();
    }
    let context = error.context();
    let mut text = match context.path.as_deref() {
        // A description says more than is needed here.
        Some(path) if path != name && !path.starts_with("json:") => format!("{path}: "),
        _ => String::new(),
    };
    text.push_str(&error.problem().to_string());
    match (context.operation, context.offset) {
        (Some(operation), Some(offset)) => text.push_str(&format!(" ({operation} at offset {offset:#x})")),
        (None, Some(offset)) => text.push_str(&format!(" (at offset {offset:#x})")),
        _ => {}
    }
    text
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Where something failed, what was changed until then is still written back. That failure is the one to report.
        let _ = block_on(self.image.close());
    }
}

/// Closes an image that was written to.
pub(crate) fn close(image: &dyn Node) -> Result<(), Failure> {
    block_on(image.close()).map_err(|error| {
        let Some(lost) = error.problem().downcast_ref::<BitmapsLost>() else {
            return Failure::new(explain(&error, &image.name()));
        };
        // QEMU numbers its nodes.
        let (node, cause) = if program::is_tool() {
            ("#block1".to_string(), crate::io::reason(&error))
        } else {
            (image.name(), lost.cause.clone())
        };
        Failure::new(format!(
            "Lost persistent bitmaps during inactivation of node '{node}': Failed to write bitmap '{}' to file: {}\n\
             {}: Error while closing the image: Invalid argument",
            lost.name,
            cause,
            program::name()
        ))
    })
}

impl Opened {
    /// Writes everything back.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        close(&*self.image)
    }

    /// The image as a node.
    pub(crate) fn node(&self) -> Arc<dyn Node> {
        self.image.clone()
    }
}
