//! From file names and options to open images.

use std::sync::Arc;

use diskette::describe::SnapshotChoice;
use diskette::drivers::{Drivers, OpenOptions};
use diskette::engine::status::Chain;
use diskette::native::{CacheMode, File, FileOpener, FileOptions, resolve};
use diskette::{Budgets, Error, Gate, Image, ImageOptions, Node, Opener, Policy, block_on};

use crate::Failure;
use crate::args::ImageArgs;
use crate::image_opts::{Described, NO_FILE_NAME};

/// What a command wants of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) format: Option<String>,
    pub(crate) image_opts: bool,
    pub(crate) force_share: bool,
    pub(crate) cache: CacheMode,
    pub(crate) writable: bool,
    /// The backing image is not opened.
    pub(crate) no_backing: bool,
    /// Discards reach the image.
    pub(crate) discard: bool,
    /// Only metadata of this one image.
    pub(crate) structure_only: bool,
    /// The contents are read: an image that is encrypted is refused.
    pub(crate) contents: bool,
    /// The disk as it was at this internal snapshot.
    pub(crate) snapshot: Option<SnapshotChoice>,
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
    pub(crate) file: Arc<File>,
    /// What the image is called in messages: the file name, or the options in JSON.
    pub(crate) name: String,
    /// The file name.
    pub(crate) path: String,
}

/// The cache mode of that name.
pub(crate) fn cache_mode(name: &str, what: &str) -> Result<CacheMode, Failure> {
    CacheMode::by_name(name).ok_or_else(|| Failure::new(format!("Invalid {what}cache option: {name}")))
}

/// What a file name says about the image to open.
fn by_name(name: &str, wish: &Wish) -> Result<Described, Failure> {
    if name.is_empty() {
        return Err(Failure::new(NO_FILE_NAME));
    }
    let path = resolve(name, "").map_err(|error| Failure::new(explain(&error, name)))?;
    Ok(Described { path, format: wish.format.clone(), ..Described::default() })
}

/// Opens an image and, unless only its structure is wanted, its backing chain.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Opened, Failure> {
    open_plainly(name, wish).map_err(|failure| failure.within(&format!("Could not open '{name}'")))
}

/// As [`open`], with the files that images name opened by `opener`.
pub(crate) fn open_through(name: &str, wish: &Wish, opener: Arc<dyn Opener>) -> Result<Opened, Failure> {
    open_with(name, wish, Some(opener)).map_err(|failure| failure.within(&format!("Could not open '{name}'")))
}

/// As [`open`], with a message that does not begin with what could not be opened.
pub(crate) fn open_plainly(name: &str, wish: &Wish) -> Result<Opened, Failure> {
    open_with(name, wish, None)
}

fn open_with(name: &str, wish: &Wish, opener: Option<Arc<dyn Opener>>) -> Result<Opened, Failure> {
    let described = if wish.image_opts { Described::by_options(name)? } else { by_name(name, wish)? };
    let failed = |error: Error| Failure::new(explain(&error, &described.path));
    if let Some(format) = described.format.as_deref().filter(|name| Drivers::all().by_name(name).is_none()) {
        return Err(Failure::new(format!("Unknown driver '{format}'")));
    }
    let force_share = wish.force_share || described.force_share;
    if wish.writable && described.read_only {
        return Err(Failure::new("Block node is read-only"));
    }
    if wish.writable && force_share {
        return Err(Failure::new("force-share=on can only be used with read-only images"));
    }
    let options = FileOptions {
        read_only: !wish.writable,
        cache: described.cache.unwrap_or(wish.cache),
        locking: described.locking,
        force_share,
        ..FileOptions::default()
    };
    let file = File::open(&described.path, options).map_err(failed)?;
    let own = || Arc::new(FileOpener { options: FileOptions { read_only: true, ..options } }) as Arc<dyn Opener>;
    let image_options = ImageOptions {
        discard: wish.discard || described.discard,
        detect_zeroes: described.detect_zeroes,
        ..ImageOptions::default()
    };
    let open_options = OpenOptions {
        format: described.format.clone(),
        read_only: !wish.writable,
        gate: Gate::new(Policy::Allow, opener.unwrap_or_else(own)),
        no_backing: wish.no_backing,
        budgets: Budgets { check_bytes: 8 << 30, ..Budgets::default() },
        image: image_options,
        structure_only: wish.structure_only,
        snapshot: wish.snapshot.clone(),
        driver_options: described.driver_options.clone(),
        ..OpenOptions::default()
    };
    let image = block_on(diskette::open(file.clone(), &open_options)).map_err(failed)?;
    if wish.contents {
        refuse_encrypted(&image)?;
    }
    if wish.writable && image.was_probed() && image.format_name() == "raw" {
        eprintln!(
            "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions.",
            described.path
        );
    }
    Ok(Opened { image, file, name: described.name(), path: described.path })
}

/// Fails if an image of the chain is encrypted: part of its contents cannot be read.
fn refuse_encrypted(image: &Arc<Image>) -> Result<(), Failure> {
    for layer in Chain::of(image.clone()).layers() {
        let Some(image) = layer.as_any().and_then(|any| any.downcast_ref::<Image>()) else { continue };
        if let Some(method) = image.describe()?.encryption {
            return Err(Failure::new(format!(
                "Parameter 'encrypt.key-secret' is required for cipher: '{}' is encrypted ({method})",
                image.name()
            )));
        }
    }
    Ok(())
}

/// The error's text without the name of the file in `name` and of the format, which the reader knows.
pub(crate) fn explain(error: &Error, name: &str) -> String {
    let context = error.context();
    let mut text = match context.path.as_deref() {
        Some(path) if path != name => format!("{path}: "),
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

impl Opened {
    /// The image as a node.
    pub(crate) fn node(&self) -> Arc<dyn Node> {
        self.image.clone()
    }
}
