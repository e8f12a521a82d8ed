//! The list of formats, probing, and opening an image with its chain.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::describe::SnapshotChoice;
use crate::engine::{Format, Image, ImageOptions, byte_granular};
use crate::error::{Error, ErrorKind, Result};
use crate::filters::Report;
use crate::node::{Node, ReadFlags};
use crate::op::BoxFuture;
use crate::options::Options;
use crate::policy::{Budgets, Gate, Reference};
use crate::secret::Keyring;
use crate::structure::Structure;

/// Formats and protocols that an image may say its backing image has: the names that QEMU knows, whether or not this program
/// can open them.
pub const KNOWN_NAMES: &[&str] = &[
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "raw",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "nbd",
    "nfs",
    "nvme",
    "rbd",
    "ssh",
];

/// Bytes at the start of a file that probes look at.
pub const PROBE_BYTES: usize = 2048;

/// What a probe may look at.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The first bytes of the file, at most [`PROBE_BYTES`].
    pub head: &'a [u8],
    /// Length of the file in bytes.
    pub length: u64,
}

/// Why a driver thinks that a file is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// 0 to 100; the highest wins.
    pub score: u8,
    /// What was seen, with its offset.
    pub text: String,
}

/// What a driver gets to open an image.
pub struct OpenContext<'a> {
    /// The file.
    pub file: Arc<dyn Node>,
    /// Its own name, which names in the image are relative to.
    pub name: &'a str,
    /// How the image is opened.
    pub options: &'a OpenOptions,
}

/// What a driver makes of a file.
pub struct OpenedFormat {
    /// The format over its files.
    pub format: Box<dyn Format>,
    /// The backing image it names, if any.
    pub backing: Option<Reference>,
}

/// What a driver gets to make a new image.
pub struct CreateContext<'a> {
    /// The file, empty and writable.
    pub file: Arc<dyn Node>,
    /// The external data file, if `data_file` is among the options: opened or made by the host, writable.
    pub data_file: Option<Arc<dyn Node>>,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Options by QEMU's names (`cluster_size`), with values as people write them.
    pub options: &'a BTreeMap<String, String>,
    /// Secrets that the options name, and random numbers for keys.
    pub keyring: &'a Keyring,
}

/// An option of [`Driver::create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOption {
    /// QEMU's name.
    pub name: &'static str,
    /// `size`, `str`, `bool (on/off)` or `num`, as QEMU lists it.
    pub kind: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// What a driver gets to tell how large a new image will be.
pub struct MeasureContext<'a> {
    /// Size of the disk in bytes.
    pub size: u64,
    /// What will be copied into it; without, it stays empty.
    pub source: Option<&'a Arc<dyn Node>>,
    /// Options of the new image, as for [`CreateContext`].
    pub options: &'a BTreeMap<String, String>,
}

/// How large a new image will be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// With what will be copied into it.
    pub required: u64,
    /// Once all of the disk is allocated.
    pub fully_allocated: u64,
    /// What the bitmaps of the source add to either, if it can have any.
    pub bitmaps: Option<u64>,
}

/// A function that tells how large a new image will be.
pub type Measure = for<'a> fn(MeasureContext<'a>) -> BoxFuture<'a, Result<Measurement>>;

/// A function that makes a new image in an empty file.
pub type Create = for<'a> fn(CreateContext<'a>) -> BoxFuture<'a, Result<()>>;

/// A format: how to recognise it, how to open it, how to make one.
pub struct Driver {
    /// Name, such as `qcow2`.
    pub name: &'static str,
    /// Looks at the start of a file.
    pub probe: fn(&Probe<'_>) -> Option<Evidence>,
    /// Opens a file as this format.
    pub open: for<'a> fn(OpenContext<'a>) -> BoxFuture<'a, Result<OpenedFormat>>,
    /// Makes a new image, if the format can be made.
    pub create: Option<Create>,
    /// The options of `create`, besides `size`.
    pub create_options: &'static [CreateOption],
    /// Tells how large a new image will be, if the format knows.
    pub measure: Option<Measure>,
    /// The names of the options of `open` ([`OpenOptions::driver_options`]); one that ends with a dot stands for all that
    /// begin with it.
    pub open_options: &'static [&'static str],
    /// The options of [`Image::amend`].
    pub amend_options: &'static [CreateOption],
    /// Takes an image of the format apart, if that was compiled in.
    pub structure: Option<Structure>,
}

/// How an image is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// The formats that may be recognised.
    pub drivers: Drivers,
    /// The format, if it is not to be probed.
    pub format: Option<String>,
    /// Whether writes are refused. Backing images are opened read-only, too, but for the one of `writable_below`.
    pub read_only: bool,
    /// How many images down is one that can be written to, so that this one can be committed to it; 0 for none.
    pub writable_below: u32,
    /// Passed by every file that an image names.
    pub gate: Gate,
    /// How much the image may cost.
    pub budgets: Budgets,
    /// Zero detection and discard.
    pub image: ImageOptions,
    /// Do not open the backing image; ranges that need it cannot be read.
    pub no_backing: bool,
    /// Do not open any referenced file and read no guest data: enough to describe, map, check and repair.
    pub structure_only: bool,
    /// Open the image even if it is so broken that it can only be checked and repaired. Only with `structure_only`.
    pub for_check: bool,
    /// Told in words, one line each, what is found and repaired while an image is opened, and when an image is found to be
    /// corrupt while it is used.
    pub report: Option<Report>,
    /// Show the disk as it was at this internal snapshot. Only for images that are opened read-only.
    pub snapshot: Option<SnapshotChoice>,
    /// Options of the format by QEMU's names, such as `offset` and `size` of raw.
    pub driver_options: BTreeMap<String, String>,
    /// Nodes that are open already and take the place of those that the image names, by QEMU's names for their roles
    /// (`data-file`).
    pub children: Vec<(&'static str, Arc<dyn Node>)>,
    /// What to read unallocated ranges from.
    pub backing: BackingChoice,
    /// What the image is called, unless like its file.
    pub name: Option<String>,
    /// What the format is called, unless by its own name.
    pub format_name: Option<&'static str>,
    /// The secrets that options name, such as `key-secret`.
    pub keyring: Keyring,
}

/// What an image reads unallocated ranges from.
#[derive(Clone, Default)]
pub enum BackingChoice {
    /// The backing image that it names, if any.
    #[default]
    Named,
    /// The one that it names, opened with further options.
    With(Options),
    /// Nothing: they are zeroes.
    Nothing,
    /// This disk.
    Node(Arc<Image>),
}

impl core::fmt::Debug for BackingChoice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BackingChoice::Named => f.write_str("Named"),
            BackingChoice::With(options) => f.debug_tuple("With").field(options).finish(),
            BackingChoice::Nothing => f.write_str("Nothing"),
            BackingChoice::Node(node) => f.debug_tuple("Node").field(node).finish(),
        }
    }
}

impl core::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("format", &self.format)
            .field("read_only", &self.read_only)
            .field("backing", &self.backing)
            .field("driver_options", &self.driver_options)
            .finish_non_exhaustive()
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            drivers: Drivers::all(),
            format: None,
            read_only: true,
            writable_below: 0,
            gate: Gate::closed(),
            budgets: Budgets::default(),
            image: ImageOptions::default(),
            no_backing: false,
            structure_only: false,
            for_check: false,
            report: None,
            snapshot: None,
            driver_options: BTreeMap::new(),
            children: Vec::new(),
            backing: BackingChoice::Named,
            name: None,
            format_name: None,
            keyring: Keyring::default(),
        }
    }
}

impl OpenOptions {
    /// The node that is to be used in that role.
    pub fn child(&self, role: &str) -> Option<&Arc<dyn Node>> {
        self.children.iter().find(|(name, _)| *name == role).map(|(_, node)| node)
    }

    /// The options for an image `depth` behind this one, with what the caller said about it in particular.
    fn lower(&self, depth: u32, particular: &Options) -> Self {
        let mut particular = particular.clone();
        let backing = particular.take_child("backing");
        particular.take("driver");
        OpenOptions {
            read_only: depth != self.writable_below,
            snapshot: None,
            driver_options: particular.into_map(),
            children: Vec::new(),
            backing: if backing.is_empty() { BackingChoice::Named } else { BackingChoice::With(backing) },
            name: None,
            format_name: None,
            ..self.clone()
        }
    }
}

/// A list of formats, in the order in which they are probed. Data, so that a small program links only what it lists.
#[derive(Clone)]
pub struct Drivers(Vec<&'static Driver>);

impl core::fmt::Debug for Drivers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|driver| driver.name)).finish()
    }
}

impl Drivers {
    /// No formats.
    pub const fn none() -> Self {
        Drivers(Vec::new())
    }

    /// Every format that was compiled in, raw last.
    pub fn all() -> Self {
        Drivers(vec![
            #[cfg(feature = "qcow2")]
            &crate::formats::qcow2::DRIVER,
            #[cfg(feature = "luks")]
            &crate::formats::luks::DRIVER,
            &crate::formats::raw::DRIVER,
        ])
    }

    /// Adds a format.
    #[must_use]
    pub fn with(mut self, driver: &'static Driver) -> Self {
        self.0.push(driver);
        self
    }

    /// The drivers.
    pub fn iter(&self) -> impl Iterator<Item = &'static Driver> + '_ {
        self.0.iter().copied()
    }

    /// The driver of that name.
    pub fn by_name(&self, name: &str) -> Option<&'static Driver> {
        self.iter().find(|driver| driver.name == name)
    }

    /// Every format that recognises the start of a file, best evidence first.
    pub(crate) fn recognise(&self, probe: &Probe<'_>) -> Vec<(&'static Driver, Evidence)> {
        let mut found: Vec<_> =
            self.iter().filter_map(|driver| (driver.probe)(probe).map(|evidence| (driver, evidence))).collect();
        found.sort_by_key(|(_, evidence)| core::cmp::Reverse(evidence.score));
        found
    }

    /// Every format that claims the file, best first.
    pub async fn probe(&self, file: &dyn Node) -> Result<Vec<(&'static Driver, Evidence)>> {
        let length = file.info().length;
        let mut head = vec![0; length.min(PROBE_BYTES as u64) as usize];
        if !head.is_empty() {
            file.read(0, &mut head, ReadFlags::default()).await?;
        }
        Ok(self.recognise(&Probe { head: &head, length }))
    }
}

struct Layer {
    format: Box<dyn Format>,
    name: String,
    probed: bool,
    missing_backing: Option<String>,
    format_name: Option<&'static str>,
}

/// Opens an image and, as far as the policy allows, the chain behind it.
///
/// # Errors
/// The file is not of the format, contradicts itself, needs something that is not understood, or names a file that may
/// not or cannot be opened.
pub async fn open(file: Arc<dyn Node>, options: &OpenOptions) -> Result<Arc<Image>> {
    if !cfg!(feature = "write") && !options.read_only {
        return Err(crate::op::only_reads());
    }
    if options.structure_only && !options.read_only && !options.for_check {
        return Err(Error::invalid("an image of which only the structure is opened cannot be written"));
    }
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = Some((file, options.format.clone(), None::<Reference>));
    let mut seen: Vec<String> = Vec::new();
    let mut below: Option<Arc<dyn Node>> = None;
    while let Some((file, format, reference)) = next.take() {
        let lower_options;
        let layer_options = if let Some(reference) = &reference {
            lower_options = options.lower(layers.len() as u32, &reference.options);
            &lower_options
        } else {
            options
        };
        let name = layer_options.name.clone().unwrap_or_else(|| file.name());
        options.budgets.check_depth(options.gate.depth + layers.len() as u32 + 1, &name)?;
        let identity = file.identity();
        if !identity.is_empty() && seen.contains(&identity) {
            return Err(Error::invalid("the backing chain leads back to this image").at_path(&name));
        }
        seen.push(identity);
        let opened = open_layer(file, format, &name, layer_options).await;
        let (opened, probed) = opened.map_err(|error| below_failed(error, layers.len()))?;
        let (reference, missing_backing) = match (&layer_options.backing, opened.backing) {
            (BackingChoice::Node(node), _) => {
                below = Some(node.clone());
                (None, None)
            }
            (BackingChoice::Nothing, _) | (_, None) => (None, None),
            (_, Some(reference)) if options.no_backing || options.structure_only => (None, Some(reference.name)),
            (BackingChoice::With(more), Some(reference)) => {
                let format = more.value("driver").map(ToString::to_string).or(reference.format);
                (Some(Reference { options: more.clone(), format, ..reference }), None)
            }
            (BackingChoice::Named, Some(reference)) => (Some(reference), None),
        };
        let format_name = layer_options.format_name;
        layers.push(Layer { format: opened.format, name, probed, missing_backing, format_name });
        if let Some(mut reference) = reference {
            reference.writable = layers.len() as u32 == options.writable_below;
            let failed = |error: Error| below_failed(error, layers.len()).at_path(&reference.from);
            if let Some(format) = reference.format.as_deref().filter(|name| options.drivers.by_name(name).is_none()) {
                return Err(failed(
                    Error::unsupported(alloc::format!("Unknown driver '{format}'")).at_path(&reference.name),
                ));
            }
            let node = options.gate.open_below(&reference, layers.len() as u32).await.map_err(failed)?;
            if node.is_disk() {
                below = Some(node);
            } else {
                next = Some((node, reference.format.clone(), Some(reference)));
            }
        }
    }
    while let Some(layer) = layers.pop() {
        let top = layers.is_empty();
        let image_options = if top {
            ImageOptions { read_only: options.read_only, ..options.image }
        } else {
            let read_only = layers.len() as u32 != options.writable_below;
            ImageOptions { read_only, discard: options.image.discard, ..ImageOptions::default() }
        };
        let image = Image::new(layer.format, below.take(), layer.name, image_options)
            .with_probed(layer.probed, &options.drivers)
            .with_format_name(layer.format_name)
            .with_missing_backing(layer.missing_backing)
            .with_only_structure(options.structure_only);
        let image = Arc::new(image);
        if top {
            return Ok(image);
        }
        below = Some(image);
    }
    Err(Error::new(ErrorKind::Closed, "nothing was opened"))
}

/// Says of an error that it happened that many images down.
fn below_failed(error: Error, depth: usize) -> Error {
    if depth == 0 {
        return error;
    }
    let prefix = "Could not open backing file: ".repeat(depth);
    let brief = alloc::format!("{prefix}{}", error.brief());
    Error::new(error.kind(), alloc::format!("{prefix}{error}")).with_headline(brief)
}

async fn open_layer(
    file: Arc<dyn Node>,
    format: Option<String>,
    name: &str,
    options: &OpenOptions,
) -> Result<(OpenedFormat, bool)> {
    let file = byte_granular(file);
    let probed = format.is_none();
    let driver = match format {
        Some(format) => options
            .drivers
            .by_name(&format)
            .ok_or_else(|| Error::invalid(alloc::format!("Unknown driver '{format}'")).at_path(name))?,
        None => {
            let found = options.drivers.probe(&*file).await.map_err(|error| error.at_path(name))?;
            found
                .first()
                .map(|(driver, _)| *driver)
                .ok_or_else(|| Error::unsupported("no known format matches this file").at_path(name))?
        }
    };
    let is_known = |name: &str| {
        driver.open_options.iter().any(|known| *known == name || (known.ends_with('.') && name.starts_with(known)))
    };
    if let Some(unknown) = options.driver_options.keys().find(|name| !is_known(name)) {
        return Err(Error::invalid(alloc::format!(
            "Block format '{}' does not support the option '{unknown}'",
            driver.name
        ))
        .at_path(name));
    }
    let file_name = file.name();
    let context = OpenContext { file, name: &file_name, options };
    let explain = |error: Error| error.at_path(name).in_node(driver.name);
    let mut opened = (driver.open)(context).await.map_err(explain)?;
    if let Some(choice) = &options.snapshot {
        if !options.read_only {
            return Err(explain(Error::new(ErrorKind::Denied, "a snapshot can only be opened read-only")));
        }
        opened.format.select_snapshot(choice).map_err(explain)?;
    }
    Ok((opened, probed))
}

/// A reference that `from` makes to a backing image.
#[cfg(feature = "qcow2")]
pub(crate) fn backing_reference(name: &str, format: Option<&str>, from: &str) -> Reference {
    Reference {
        name: name.to_string(),
        format: format.map(ToString::to_string),
        role: crate::node::Role::Backing,
        from: from.to_string(),
        writable: false,
        options: Options::new(),
    }
}
