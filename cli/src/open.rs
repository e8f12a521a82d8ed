//! From file names and options to open images.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskette::drivers::{Drivers, OpenOptions};
use diskette::engine::status::Chain;
use diskette::native::{CacheMode, File, FileOpener, FileOptions, Locking, resolve};
use diskette::{Budgets, Error, Gate, Image, ImageOptions, Node, Opener, Policy, block_on};

use crate::Failure;
use crate::args::ImageArgs;

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

/// Splits `name=value,name=value`; a doubled comma stands for one.
pub(crate) fn split_options(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut options = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut piece = String::new();
        loop {
            match rest.split_once(',') {
                Some((before, after)) if after.starts_with(',') => {
                    piece.push_str(before);
                    piece.push(',');
                    rest = &after[1..];
                }
                Some((before, after)) => {
                    piece.push_str(before);
                    rest = after;
                    break;
                }
                None => {
                    piece.push_str(rest);
                    rest = "";
                    break;
                }
            }
        }
        match piece.split_once('=') {
            Some((name, value)) => options.insert(name.to_string(), value.to_string()),
            None => match piece.strip_prefix("no") {
                Some(name) if !name.is_empty() => options.insert(name.to_string(), "off".to_string()),
                _ => options.insert(piece, "on".to_string()),
            },
        };
    }
    Ok(options)
}

/// What a name, or a list of options, says about the image to open.
struct Described {
    path: String,
    format: Option<String>,
    locking: Locking,
    driver_options: BTreeMap<String, String>,
}

impl Described {
    fn by_name(name: &str, wish: &Wish) -> Result<Self, Failure> {
        let format = wish.format.clone();
        let path = resolve(name, "").map_err(|error| Failure::new(explain(&error, name)))?;
        Ok(Described { path, format, locking: Locking::Auto, driver_options: BTreeMap::new() })
    }

    fn by_options(text: &str) -> Result<Self, Failure> {
        if !text.contains('=') {
            return Err(Failure::new(format!("Cannot find device='{text}' nor node-name='{text}'")));
        }
        let mut options = split_options(text)?;
        let format = options.remove("driver");
        let path = options.remove("file.filename");
        if let Some(protocol) = options.remove("file.driver").filter(|driver| driver != "file") {
            return Err(Failure::new(format!("Unknown driver '{protocol}'")));
        }
        let locking = match options.remove("file.locking").as_deref() {
            None | Some("auto") => Locking::Auto,
            Some("on") => Locking::On,
            Some("off") => Locking::Off,
            Some(other) => {
                return Err(Failure::new(format!("Parameter 'locking' does not accept value '{other}'")));
            }
        };
        let path = path.ok_or_else(|| Failure::new("A block device must be specified for \"file\""))?;
        // What is not understood must not be passed over: it might be a window, a key, a snapshot.
        let known: &[&str] = if format.as_deref() == Some("raw") { &["offset", "size"] } else { &[] };
        if let Some(unknown) = options.keys().find(|name| !known.contains(&name.as_str())) {
            let format = format.as_deref().unwrap_or("raw");
            return Err(Failure::new(format!("Block format '{format}' does not support the option '{unknown}'")));
        }
        Ok(Described { path, format, locking, driver_options: options })
    }

    /// What QEMU calls the image.
    fn name(&self) -> String {
        if self.driver_options.is_empty() {
            return self.path.clone();
        }
        let option = |name: &str| self.driver_options.get(name).map(|value| format!("\"{name}\": \"{value}\", "));
        format!(
            "json:{{{}\"driver\": \"{}\", {}\"file\": {{\"driver\": \"file\", \"filename\": {}}}}}",
            option("offset").unwrap_or_default(),
            self.format.as_deref().unwrap_or_default(),
            option("size").unwrap_or_default(),
            serde_json::Value::from(self.path.as_str()),
        )
    }
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
    let described = if wish.image_opts { Described::by_options(name)? } else { Described::by_name(name, wish)? };
    let failed = |error: Error| Failure::new(explain(&error, &described.path));
    if let Some(format) = described.format.as_deref().filter(|name| Drivers::all().by_name(name).is_none()) {
        return Err(Failure::new(format!("Unknown driver '{format}'")));
    }
    let options = FileOptions {
        read_only: !wish.writable,
        cache: wish.cache,
        locking: described.locking,
        force_share: wish.force_share,
        ..FileOptions::default()
    };
    let file = File::open(&described.path, options).map_err(failed)?;
    let own = || Arc::new(FileOpener { options: FileOptions { read_only: true, ..options } }) as Arc<dyn Opener>;
    let open_options = OpenOptions {
        format: described.format.clone(),
        read_only: !wish.writable,
        image: ImageOptions { discard: wish.discard, ..ImageOptions::default() },
        gate: Gate::new(Policy::Allow, opener.unwrap_or_else(own)),
        no_backing: wish.no_backing,
        budgets: Budgets { check_bytes: 8 << 30, ..Budgets::default() },
        structure_only: wish.structure_only,
        driver_options: described.driver_options.clone(),
        ..OpenOptions::default()
    };
    let image = block_on(diskette::open(file.clone(), &open_options)).map_err(failed)?;
    if wish.contents {
        refuse_encrypted(&image)?;
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
