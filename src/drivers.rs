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
use crate::node::{Node, ReadFlags, Role};
use crate::op::BoxFuture;
use crate::policy::{Budgets, Gate, Reference};

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
    /// Its name.
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
}

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The formats that may be recognised.
    pub drivers: Drivers,
    /// The format, if it is not to be probed.
    pub format: Option<String>,
    /// Whether writes are refused. Backing images are always opened read-only.
    pub read_only: bool,
    /// Passed by every file that an image names.
    pub gate: Gate,
    /// How much the image may cost.
    pub budgets: Budgets,
    /// Zero detection and discard.
    pub image: ImageOptions,
    /// Do not open the backing image; ranges that need it cannot be read.
    pub no_backing: bool,
    /// Do not open any referenced file and read no guest data: enough to describe, map and check. Only with
    /// `read_only`.
    pub structure_only: bool,
    /// Show the disk as it was at this internal snapshot. Only for images that are opened read-only.
    pub snapshot: Option<SnapshotChoice>,
    /// Options of the format by QEMU's names, such as `offset` and `size` of raw.
    pub driver_options: BTreeMap<String, String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            drivers: Drivers::all(),
            format: None,
            read_only: true,
            gate: Gate::closed(),
            budgets: Budgets::default(),
            image: ImageOptions::default(),
            no_backing: false,
            structure_only: false,
            snapshot: None,
            driver_options: BTreeMap::new(),
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
    if options.structure_only && !options.read_only {
        return Err(Error::invalid("an image of which only the structure is opened cannot be written"));
    }
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = Some((file, options.format.clone(), None::<Reference>));
    let mut seen: Vec<String> = Vec::new();
    while let Some((file, format, reference)) = next.take() {
        let name = file.name();
        options.budgets.check_depth(layers.len() as u32 + 1, &name)?;
        let identity = file.identity();
        if !identity.is_empty() && seen.contains(&identity) {
            return Err(Error::invalid("the backing chain leads back to this image").at_path(&name));
        }
        seen.push(identity);
        let lower = reference.is_some();
        let lower_options;
        let layer_options = if lower {
            lower_options =
                OpenOptions { read_only: true, snapshot: None, driver_options: BTreeMap::new(), ..options.clone() };
            &lower_options
        } else {
            options
        };
        let (opened, probed) = open_layer(file, format, &name, layer_options).await?;
        let follow = !options.no_backing && !options.structure_only;
        let missing_backing = opened.backing.as_ref().filter(|_| !follow).map(|reference| reference.name.clone());
        layers.push(Layer { format: opened.format, name, probed, missing_backing });
        if let Some(reference) = opened.backing.filter(|_| follow) {
            let node = options.gate.open(&reference).await.map_err(|error| {
                Error::new(error.kind(), alloc::format!("Could not open backing file: {error}"))
                    .at_path(&reference.from)
            })?;
            next = Some((node, reference.format.clone(), Some(reference)));
        }
    }
    let mut backing: Option<Arc<Image>> = None;
    while let Some(layer) = layers.pop() {
        let top = layers.is_empty();
        let image_options = if top {
            ImageOptions { read_only: options.read_only, ..options.image }
        } else {
            ImageOptions { read_only: true, ..ImageOptions::default() }
        };
        let below = backing.take().map(|image| image as Arc<dyn Node>);
        let image = Image::new(layer.format, below, layer.name, image_options)
            .with_probed(layer.probed, &options.drivers)
            .with_missing_backing(layer.missing_backing);
        backing = Some(Arc::new(image));
    }
    backing.ok_or_else(|| Error::new(ErrorKind::Closed, "nothing was opened"))
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
    let context = OpenContext { file, name, options };
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
pub(crate) fn backing_reference(name: &str, format: Option<&str>, from: &str) -> Reference {
    Reference {
        name: name.to_string(),
        format: format.map(ToString::to_string),
        role: Role::Backing,
        from: from.to_string(),
        writable: false,
    }
}
