//! Nodes opened by description: a name, or [`Options`] that say which driver sits on which.
//!
//! A host supplies the leaves (files, sockets) through [`Host`]; formats come from [`crate::drivers`], filters from
//! [`crate::filters`]. What an image names is opened here, too, if the host's [`crate::Opener`] hands it on.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::drivers::{BackingChoice, Drivers, OpenOptions, open};
use crate::engine::{DetectZeroes, Image, byte_granular};
use crate::error::{Error, ErrorKind, Result};
use crate::filters::{
    Blkdebug, Blkverify, Clock, Compress, CopyOnRead, Null, Preallocate, Quorum, QuorumOptions, Report, Throttle,
    ThrottleGroup, parse_config,
};
use crate::node::Node;
use crate::op::{BoxFuture, Op};
use crate::options::Options;

/// How a leaf is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafMode {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether others may write at the same time.
    pub force_share: bool,
    /// Whether the host's cache is bypassed, if the description says so.
    pub direct: Option<bool>,
    /// Whether flushes are left out, if the description says so.
    pub no_flush: Option<bool>,
}

/// What a host supplies.
pub trait Host: Send + Sync {
    /// Whether there is a leaf driver of that name, such as `file`.
    fn has_leaf(&self, driver: &str) -> bool;

    /// Opens a leaf. What it understands it takes out of the options; what is left is an error.
    fn leaf<'a>(&'a self, driver: &'a str, options: &'a mut Options, mode: LeafMode) -> Op<'a, Arc<dyn Node>>;

    /// The options that a name with a protocol (`nbd://…`) stands for, if it is one of the host's.
    fn parse_name(&self, name: &str) -> Option<Result<Options>> {
        let _ = name;
        None
    }

    /// The contents of a small text file, such as a configuration of `blkdebug`.
    fn read_text(&self, name: &str) -> Result<String> {
        Err(Error::unsupported(alloc::format!("'{name}': this host reads no configuration files")))
    }

    /// The clock, if there is one.
    fn clock(&self) -> Option<Arc<dyn Clock>> {
        None
    }

    /// The group of throttled nodes of that name.
    fn throttle_group(&self, name: &str) -> Option<Arc<ThrottleGroup>> {
        let _ = name;
        None
    }

    /// Where nodes report what they do, in words.
    fn report(&self) -> Option<Report> {
        None
    }
}

/// Opens nodes by description.
pub struct Graph<'a> {
    /// The host.
    pub host: &'a dyn Host,
    /// How images are opened, unless their options say otherwise.
    pub defaults: OpenOptions,
    /// How leaves are opened, unless their options say otherwise.
    pub mode: LeafMode,
}

/// Filters, and leaves that need no host.
const FILTERS: [&str; 9] =
    ["blkdebug", "blkverify", "compress", "copy-on-read", "null-aio", "null-co", "preallocate", "quorum", "throttle"];

/// Leaves that are called by where they are, whatever their other options.
const NAMED_BY_PLACE: [&str; 1] = ["nbd"];

/// Nesting of descriptions; each level costs stack.
const MAX_NESTING: u32 = 32;

impl Graph<'_> {
    /// Opens the disk that a name stands for: a path, `json:{…}`, or a protocol with its own form. `format` is the format
    /// of what is there; without it is guessed. Options add to what the name says.
    ///
    /// # Errors
    /// The description makes no sense, or what it names cannot be opened.
    pub async fn open(&self, name: Option<&str>, format: Option<&str>, options: Options) -> Result<Arc<Image>> {
        let mut options = options;
        let mut plain = None;
        if let Some(format) = format {
            if options.value("driver").is_some() {
                return Err(Error::invalid("Driver specified twice"));
            }
            options.set("driver", format);
        }
        if let Some(name) = name {
            if let Some(text) = name.strip_prefix("json:") {
                // What is said beside the name counts more than what the name says.
                let mut described = parse_json(text)?;
                described.extend(options);
                options = described;
            } else {
                plain = Some(name);
            }
        }
        if let Some(name) = plain {
            self.add_name(name, &mut options)?;
        }
        self.disk(options, self.mode, plain.map(plain_name), MAX_NESTING).await
    }

    /// Opens the file that a name stands for, without looking for a format in it.
    ///
    /// # Errors
    /// As for [`Graph::open`].
    pub async fn open_file(&self, name: &str) -> Result<Arc<dyn Node>> {
        let mut options = match name.strip_prefix("json:") {
            Some(text) => parse_json(text)?,
            None => Options::new(),
        };
        if options.is_empty() {
            options.set("filename", name);
        }
        Ok(self.file(&mut options, self.mode, MAX_NESTING).await?.node)
    }

    /// Adds what a name says about the file below the format.
    fn add_name(&self, name: &str, options: &mut Options) -> Result<()> {
        let driver = options.value("driver").map(ToString::to_string);
        let is_leaf = driver.as_deref().is_some_and(|driver| self.is_protocol(driver));
        let takes_image = driver.as_deref().is_some_and(|driver| ["blkdebug", "blkverify"].contains(&driver));
        let mut file = match self.protocol_of(name) {
            Some(file) => file?,
            None if takes_image => {
                let mut file = Options::new();
                file.set("x-image", name);
                file
            }
            None => {
                let mut file = Options::new();
                file.set("filename", &plain_name(name));
                file
            }
        };
        if is_leaf || takes_image {
            // The driver itself has the name.
            file.take("driver");
            for (name, value) in file.iter() {
                options.set_default(name, value);
            }
            return Ok(());
        }
        if driver.as_deref() == Some("quorum") {
            return Err(Error::invalid("The 'quorum' block driver does not take a file name"));
        }
        if options.value("file").is_some() {
            return Err(Error::invalid("Cannot specify both 'file' and a file name"));
        }
        for (part, value) in file.iter() {
            let full = alloc::format!("file.{part}");
            if part == "filename" && options.value(&full).is_some() {
                return Err(Error::invalid("Cannot specify both 'file.filename' and a file name"));
            }
            options.set_default(&full, value);
        }
        Ok(())
    }

    /// What a name with a protocol of ours or the host's means.
    fn protocol_of(&self, name: &str) -> Option<Result<Options>> {
        let mut options = Options::new();
        if let Some(rest) = name.strip_prefix("blkdebug:") {
            options.set("driver", "blkdebug");
            return Some(match rest.split_once(':') {
                None => Err(Error::invalid("blkdebug requires both config file and image path")),
                Some((config, image)) => {
                    if !config.is_empty() {
                        options.set("config", config);
                    }
                    options.set("x-image", image);
                    Ok(options)
                }
            });
        }
        if let Some(rest) = name.strip_prefix("blkverify:") {
            options.set("driver", "blkverify");
            return Some(match rest.split_once(':') {
                None => Err(Error::invalid("blkverify requires raw copy and original image path")),
                Some((raw, image)) => {
                    options.set("x-raw", raw);
                    options.set("x-image", image);
                    Ok(options)
                }
            });
        }
        for driver in ["null-co", "null-aio"] {
            if name.strip_prefix(driver) == Some("://") {
                options.set("driver", driver);
                return Some(Ok(options));
            }
        }
        if let Some(parsed) = self.host.parse_name(name) {
            return Some(parsed);
        }
        unknown_protocol(name).map(|protocol| Err(Error::unsupported(alloc::format!("Unknown protocol '{protocol}'"))))
    }

    fn is_protocol(&self, driver: &str) -> bool {
        self.host.has_leaf(driver) || ["null-co", "null-aio"].contains(&driver)
    }

    /// Opens a disk.
    fn disk(
        &self,
        mut options: Options,
        mode: LeafMode,
        name: Option<String>,
        nesting: u32,
    ) -> BoxFuture<'_, Result<Arc<Image>>> {
        Box::pin(async move {
            let nesting = nesting.checked_sub(1).ok_or_else(|| {
                Error::new(ErrorKind::OverBudget, alloc::format!("descriptions are nested deeper than {MAX_NESTING}"))
            })?;
            // Images within a description are images of the chain, too.
            let mut gate = self.defaults.gate.clone();
            gate.depth = gate.depth.saturating_add(MAX_NESTING - 1 - nesting);
            let mut all = options.clone();
            if options.value("file.filename").is_some() && !FILTERS.contains(&options.value("driver").unwrap_or("")) {
                all.set_default("file.driver", "file");
            }
            let is_leaf = options.value("driver").is_some_and(|driver| self.is_protocol(driver));
            // A file's name stands for what is in it only where a child is described.
            let is_child = nesting + 1 < MAX_NESTING;
            if let Some(name) = options.value("filename").filter(|_| !is_leaf && is_child).map(ToString::to_string) {
                options.take("filename");
                self.add_name(&name, &mut options)?;
            }
            let driver = options.take("driver");
            let known = |driver: &str| {
                self.defaults.drivers.by_name(driver).is_some()
                    || FILTERS.contains(&driver)
                    || self.host.has_leaf(driver)
            };
            if let Some(unknown) = driver.as_deref().filter(|driver| !known(driver)) {
                return Err(Error::invalid(alloc::format!("Unknown driver '{unknown}'")));
            }
            let mut settings = Settings::take(&mut options, mode, &self.defaults)?;
            let format = driver.as_deref().filter(|driver| self.defaults.drivers.by_name(driver).is_some());
            if let (Some(driver), None) = (&driver, format) {
                // A leaf or a filter on its own: what it shows is the disk.
                let node = self.node(driver, &mut options, settings.mode, nesting).await?;
                let is_plain =
                    self.host.has_leaf(driver) && all.iter().all(|(name, _)| ["driver", "filename"].contains(&name));
                let shown = match name {
                    _ if NAMED_BY_PLACE.contains(&driver.as_str()) => Some(node.name()),
                    Some(name) => Some(name),
                    None => (!is_plain).then(|| json_name(&all)),
                };
                let whole = OpenOptions {
                    format: Some("raw".into()),
                    drivers: Drivers::none().with(&crate::formats::raw::DRIVER),
                    name: shown,
                    format_name: driver_name(driver),
                    read_only: settings.mode.read_only,
                    image: settings.image,
                    backing: BackingChoice::Nothing,
                    gate,
                    ..self.defaults.clone()
                };
                return open(node, &whole).await;
            }
            let file = self.child(&mut options, "file", settings.mode, nesting).await?;
            let Some(file) = file else {
                return Err(Error::invalid(match format {
                    Some(_) => "A block device must be specified for \"file\"",
                    None => "Must specify either driver or file",
                }));
            };
            // Options that say how the image is used, not which it is, are no part of its name.
            let names_another = |name: &str| {
                let known = self.defaults.drivers.iter().any(|driver| driver.open_options.contains(&name));
                !known || ["offset", "size"].contains(&name) || name.starts_with("encrypt")
            };
            let is_plain = !file.shown.starts_with("json:") && !options.iter().any(|(name, _)| names_another(name));
            let described = match name {
                // The host's names have several forms.
                Some(name) if self.host.parse_name(&name).is_none() => name,
                Some(_) if is_plain => file.shown.clone(),
                Some(name) => name,
                None if is_plain => file.shown.clone(),
                None => json_name(&all),
            };
            let below = self.defaults.writable_below;
            let backing_mode = LeafMode { read_only: below != 1, ..settings.mode };
            if let Some(reference) = options.take("backing") {
                if !reference.is_empty() {
                    return Err(no_such_node(&reference));
                }
                settings.backing = BackingChoice::Nothing;
            }
            let mut backing = options.take_child("backing");
            if !backing.is_empty() {
                let is_whole = backing.iter().any(|(name, _)| name == "file" || name.starts_with("file."))
                    || backing
                        .value("driver")
                        .is_some_and(|driver| self.is_protocol(driver) || FILTERS.contains(&driver));
                settings.backing = if is_whole {
                    let failed =
                        |error: Error| Error::new(error.kind(), alloc::format!("Could not open backing file: {error}"));
                    let defaults = OpenOptions { writable_below: below.saturating_sub(1), ..self.defaults.clone() };
                    let lower = Graph { host: self.host, defaults, mode: backing_mode };
                    BackingChoice::Node(lower.disk(backing, backing_mode, None, nesting).await.map_err(failed)?)
                } else {
                    backing.take("node-name");
                    BackingChoice::With(backing)
                };
            }
            let mut open_options = OpenOptions {
                format: format.map(ToString::to_string),
                name: Some(described),
                read_only: settings.mode.read_only,
                image: settings.image,
                backing: settings.backing,
                gate,
                ..self.defaults.clone()
            };
            for role in ["data-file", "header"] {
                if let Some(child) = self.child(&mut options, role, settings.mode, nesting).await? {
                    open_options.children.push((role, byte_granular(child.node)));
                }
            }
            open_options.driver_options = options.into_map();
            open(file.node, &open_options).await
        })
    }

    /// Opens the child that the options describe, if they do.
    async fn child(&self, options: &mut Options, role: &str, mode: LeafMode, nesting: u32) -> Result<Option<Child>> {
        if let Some(reference) = options.take(role) {
            return Err(no_such_node(&reference));
        }
        let mut below = options.take_child(role);
        if below.is_empty() {
            return Ok(None);
        }
        self.file(&mut below, mode, nesting).await.map(Some)
    }

    /// Opens a node that serves as a file: a leaf unless the options say otherwise.
    fn file<'b>(&'b self, options: &'b mut Options, mode: LeafMode, nesting: u32) -> BoxFuture<'b, Result<Child>> {
        Box::pin(async move {
            let nesting = nesting.checked_sub(1).ok_or_else(|| {
                Error::new(ErrorKind::OverBudget, alloc::format!("descriptions are nested deeper than {MAX_NESTING}"))
            })?;
            if let Some(name) = options.value("filename").map(ToString::to_string)
                && options.value("driver").is_none()
            {
                // A name may have a protocol here, too.
                if let Some(described) = self.protocol_of(&name) {
                    options.take("filename");
                    for (name, value) in described?.iter() {
                        options.set_default(name, value);
                    }
                }
            }
            let driver = options.value("driver").unwrap_or("file").to_string();
            if self.defaults.drivers.by_name(&driver).is_some() {
                let image = self.disk(core::mem::take(options), mode, None, nesting).await?;
                return Ok(Child { shown: image.name(), node: image });
            }
            options.take("driver");
            if !self.is_protocol(&driver) && !FILTERS.contains(&driver.as_str()) {
                return Err(Error::invalid(alloc::format!("Unknown driver '{driver}'")));
            }
            let mut all = options.clone();
            all.set("driver", &driver);
            let settings = Settings::take(options, mode, &self.defaults)?;
            let config = options.value("config").map(ToString::to_string).unwrap_or_default();
            let only = |names: &[&str]| options.iter().all(|(name, _)| names.contains(&name));
            let is_debug = driver == "blkdebug" && only(&["config", "x-image", "image.driver", "image.filename"]);
            let is_plain = !FILTERS.contains(&driver.as_str()) || driver.starts_with("null-") && options.is_empty();
            let node = self.node(&driver, options, settings.mode, nesting).await?;
            let shown = match (is_debug, is_plain) {
                (true, _) => alloc::format!("blkdebug:{config}:{}", node.name()),
                (_, true) => node.name(),
                _ => json_name(&all),
            };
            Ok(Child { shown, node })
        })
    }

    /// Opens a leaf or a filter. All options must be understood.
    async fn node(&self, driver: &str, options: &mut Options, mode: LeafMode, nesting: u32) -> Result<Arc<dyn Node>> {
        let node: Arc<dyn Node> = match driver {
            "null-co" | "null-aio" => {
                let name = if driver == "null-co" { "null-co" } else { "null-aio" };
                Arc::new(Null::new(name, options, self.host.clock())?)
            }
            "blkdebug" => {
                let rules = match options.take("config") {
                    None => Vec::new(),
                    Some(name) => parse_config(&self.host.read_text(&name)?, &name)?,
                };
                let image = self.named_child(options, "image", mode, nesting).await?;
                Arc::new(Blkdebug::new(image, &rules, options, self.host.report())?)
            }
            "blkverify" => {
                let raw = self.named_child(options, "raw", mode, nesting).await?;
                let test = match options.take("x-image") {
                    // The image under test has a format of its own, which is guessed.
                    Some(name) => {
                        let mut described = Options::new();
                        self.add_name(&name, &mut described)?;
                        self.disk(described, mode, Some(name), nesting).await? as Arc<dyn Node>
                    }
                    None => {
                        let below = options.take_child("test");
                        if below.is_empty() {
                            return Err(Error::invalid("A block device must be specified for \"test\""));
                        }
                        self.disk(below, mode, None, nesting).await? as Arc<dyn Node>
                    }
                };
                Arc::new(Blkverify::new(raw, test))
            }
            "quorum" => {
                let described = options.take_list("children");
                let settings = QuorumOptions::take(options, described.len())?;
                let mut children: Vec<Arc<dyn Node>> = Vec::new();
                for child in described {
                    if let Some(reference) = child.value("") {
                        return Err(no_such_node(reference));
                    }
                    children.push(self.disk(child, mode, None, nesting).await?);
                }
                Arc::new(Quorum::new(children, settings)?)
            }
            "compress" | "copy-on-read" | "preallocate" | "throttle" => {
                if let Some(reference) = options.take("file") {
                    return Err(no_such_node(&reference));
                }
                let mut below = options.take_child("file");
                if below.is_empty() {
                    return Err(Error::invalid("A block device must be specified for \"file\""));
                }
                if driver == "preallocate" {
                    let child = self.file(&mut below, mode, nesting).await?;
                    Arc::new(Preallocate::new(child.node, options)?)
                } else {
                    let image = self.disk(below, mode, None, nesting).await?;
                    match driver {
                        "compress" => Arc::new(Compress::new(image)?),
                        "copy-on-read" => Arc::new(CopyOnRead::new(image)?),
                        _ => Arc::new(Throttle::new(image, self.throttle_group(options)?)),
                    }
                }
            }
            leaf => {
                let node = self.host.leaf(leaf, options, mode).await?;
                if let Some((name, _)) = options.iter().next() {
                    return Err(Error::invalid(alloc::format!(
                        "Block protocol '{leaf}' doesn't support the option '{name}'"
                    )));
                }
                return Ok(node);
            }
        };
        match options.iter().next() {
            Some((name, _)) if ["blkdebug", "blkverify", "null-aio", "null-co"].contains(&driver) => {
                Err(Error::invalid(alloc::format!("Block protocol '{driver}' doesn't support the option '{name}'")))
            }
            _ => options.finish(driver).map(|()| node),
        }
    }

    fn throttle_group(&self, options: &mut Options) -> Result<Arc<ThrottleGroup>> {
        let name =
            options.take("throttle-group").ok_or_else(|| Error::invalid("Parameter 'throttle-group' is missing"))?;
        self.host
            .throttle_group(&name)
            .ok_or_else(|| Error::invalid(alloc::format!("Throttle group '{name}' does not exist")))
    }

    /// A child of a filter, either by name (`x-ROLE`) or by options.
    async fn named_child(
        &self,
        options: &mut Options,
        role: &str,
        mode: LeafMode,
        nesting: u32,
    ) -> Result<Arc<dyn Node>> {
        if let Some(reference) = options.take(role) {
            return Err(no_such_node(&reference));
        }
        let mut below = options.take_child(role);
        if let Some(name) = options.take(&alloc::format!("x-{role}")) {
            below.set("filename", &name);
        }
        if below.is_empty() {
            return Err(Error::invalid(alloc::format!("A block device must be specified for \"{role}\"")));
        }
        Ok(self.file(&mut below, mode, nesting).await?.node)
    }
}

/// A child, and what it is called.
struct Child {
    node: Arc<dyn Node>,
    shown: String,
}

/// The options that every node has.
struct Settings {
    mode: LeafMode,
    image: crate::engine::ImageOptions,
    backing: BackingChoice,
}

impl Settings {
    fn take(options: &mut Options, mut mode: LeafMode, defaults: &OpenOptions) -> Result<Self> {
        let mut image = defaults.image;
        let direct = options.take_switch("cache.direct")?;
        let no_flush = options.take_switch("cache.no-flush")?;
        mode.direct = direct.or(mode.direct);
        mode.no_flush = no_flush.or(mode.no_flush);
        mode.read_only |= options.take_switch("read-only")? == Some(true);
        if let Some(force_share) = options.take_switch("force-share")? {
            mode.force_share |= force_share;
        }
        if mode.force_share && !mode.read_only {
            return Err(Error::invalid("force-share=on can only be used with read-only images"));
        }
        // Fallbacks and names that nothing here needs.
        options.take_switch("auto-read-only")?;
        options.take("node-name");
        match options.take("discard").as_deref() {
            None => {}
            Some("ignore" | "off") => image.discard = false,
            Some("unmap" | "on") => image.discard = true,
            Some(_) => return Err(Error::invalid("Invalid discard option")),
        }
        match options.take("detect-zeroes").as_deref() {
            None => {}
            Some("off") => image.detect_zeroes = DetectZeroes::Off,
            Some("on") => image.detect_zeroes = DetectZeroes::On,
            Some("unmap") if image.discard => image.detect_zeroes = DetectZeroes::Unmap,
            Some("unmap") => {
                return Err(Error::invalid(
                    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
                ));
            }
            Some(other) => return Err(Error::invalid(alloc::format!("invalid parameter value: {other}"))),
        }
        Ok(Settings { mode, image, backing: defaults.backing.clone() })
    }
}

fn no_such_node(name: &str) -> Error {
    Error::invalid(alloc::format!("Cannot find device='{name}' nor node-name='{name}'"))
}

/// What a node is called that has no name but its description.
fn json_name(options: &Options) -> String {
    #[cfg(feature = "json")]
    return options.to_json_name();
    #[cfg(not(feature = "json"))]
    options.value("file.filename").or(options.value("filename")).unwrap_or_default().to_string()
}

fn parse_json(text: &str) -> Result<Options> {
    #[cfg(feature = "json")]
    return Options::parse_json(text);
    #[cfg(not(feature = "json"))]
    {
        let _ = text;
        Err(Error::unsupported("descriptions in JSON are not supported by this build"))
    }
}

/// A name without `file:` in front. A path that looks like a protocol is told from one by its directory.
pub(crate) fn plain_name(name: &str) -> String {
    match name.strip_prefix("file:") {
        Some(path) if unknown_protocol(path).is_some() => alloc::format!("./{path}"),
        Some(path) => path.to_string(),
        None => name.to_string(),
    }
}

/// The protocol of a name that has one other than `file`: as in QEMU, what stands before a colon that comes before the
/// first slash.
pub fn unknown_protocol(name: &str) -> Option<&str> {
    let before_slash = name.split('/').next().unwrap_or(name);
    match before_slash.split_once(':') {
        Some(("file", _)) | None => None,
        Some((protocol, _)) => Some(protocol),
    }
}

/// A filter's or leaf's name as one that lasts.
fn driver_name(driver: &str) -> Option<&'static str> {
    const LEAVES: [&str; 4] = ["file", "host_cdrom", "host_device", "nbd"];
    FILTERS.iter().chain(&LEAVES).copied().find(|known| *known == driver)
}
