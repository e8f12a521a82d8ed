//! From file names and options to open images.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskette::drivers::OpenOptions;
use diskette::native::{CacheMode, File, FileOpener, FileOptions, resolve};
use diskette::{Budgets, Gate, Image, ImageOptions, Node, Policy, block_on};

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
    /// Only metadata of this one image.
    pub(crate) structure_only: bool,
}

impl From<&ImageArgs> for Wish {
    fn from(args: &ImageArgs) -> Self {
        Wish {
            format: args.format.clone(),
            image_opts: args.image_opts,
            force_share: args.force_share,
            ..Wish::default()
        }
    }
}

/// An open image and the file it was opened from.
pub(crate) struct Opened {
    pub(crate) image: Arc<Image>,
    pub(crate) file: Arc<File>,
    pub(crate) name: String,
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

/// Opens an image and, unless only its structure is wanted, its backing chain.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Opened, Failure> {
    let mut file_name = name.to_string();
    let mut format = wish.format.clone();
    let mut driver_options = BTreeMap::new();
    if wish.image_opts {
        driver_options = split_options(name)?;
        format = driver_options.remove("driver").or(format);
        let file = driver_options.remove("file.filename").or_else(|| driver_options.remove("filename"));
        driver_options.retain(|name, _| !name.starts_with("file."));
        file_name = file.ok_or_else(|| Failure::new("--image-opts needs 'file.filename'"))?;
    }
    let path = resolve(&file_name, "")?;
    let options = FileOptions {
        read_only: !wish.writable,
        cache: wish.cache,
        force_share: wish.force_share,
        ..FileOptions::default()
    };
    let could_not_open = |error: diskette::Error| {
        Failure::new(format!("Could not open '{file_name}': {}", without_path(&error, &file_name)))
    };
    let file = File::open(&path, options).map_err(could_not_open)?;
    let opener = FileOpener { options: FileOptions { read_only: true, ..options } };
    let open_options = OpenOptions {
        format: format.clone(),
        read_only: !wish.writable,
        gate: Gate::new(Policy::Allow, Arc::new(opener)),
        budgets: Budgets { check_bytes: 8 << 30, ..Budgets::default() },
        image: ImageOptions::default(),
        structure_only: wish.structure_only,
        driver_options,
        ..OpenOptions::default()
    };
    if let Some(format) = format.as_deref().filter(|name| open_options.drivers.by_name(name).is_none()) {
        return Err(Failure::new(format!("Could not open '{file_name}': Unknown driver '{format}'")));
    }
    let image = block_on(diskette::open(file.clone(), &open_options)).map_err(could_not_open)?;
    Ok(Opened { image, file, name: file_name })
}

/// The error's text without repeating the name of the file.
pub(crate) fn without_path(error: &diskette::Error, name: &str) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{name}: ")).unwrap_or(&text).to_string()
}

impl Opened {
    /// The image as a node.
    pub(crate) fn node(&self) -> Arc<dyn Node> {
        self.image.clone()
    }
}
