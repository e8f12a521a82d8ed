//! `create`: make a new image.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use diskette::drivers::{CreateContext, CreateOption, Driver, Drivers, OpenOptions};
use diskette::engine::byte_granular;
use diskette::graph::{Graph, LeafMode, unknown_protocol};
use diskette::native::{CacheMode, File, FileOptions, resolve};
use diskette::wire::parse_size;
use diskette::{Error, Node, block_on};

use crate::args::CreateArgs;
use crate::image_opts::split_options;
use crate::number::{self, MAX_OFFSET};
use crate::open::{Opened, Wish, explain, machine, open_plainly};
use crate::output::{self, line, print};
use crate::{Failure, Outcome, program};

pub(crate) fn run(args: &CreateArgs) -> Outcome {
    if wants_help(&args.options)? {
        print_options(driver_for(&args.format)?, args.file.is_some());
        return Ok(0);
    }
    let file = args.file.as_deref().ok_or_else(|| {
        Failure::new(format!("Expecting image file name\nTry '{} create --help' for more info", program::name()))
    })?;
    let size = args.size.as_deref().map(|text| number::parse(text, "image size", 0..=MAX_OFFSET)).transpose()?;
    let in_file = |failure: Failure| failure.within(file);
    let driver = driver_for(&args.format).map_err(in_file)?;
    resolve(file, "").map_err(|error| in_file(Failure::new(explain(&error, file))))?;
    let (options, size) = plan(args, driver, file, size).map_err(in_file)?;
    if !args.quiet {
        line(&formatting_line(file, driver.name, size, &options));
        // Before anything that goes wrong is told.
        output::flush();
    }
    make(file, driver, size, &options, CacheMode::Writeback).map_err(in_file)?;
    Ok(0)
}

/// The options and the size of the new image.
fn plan(
    args: &CreateArgs,
    driver: &Driver,
    file: &str,
    size: Option<u64>,
) -> Result<(BTreeMap<String, String>, u64), Failure> {
    let mut options = merge_options(&args.options)?;
    check_options(driver, &options)?;
    add_backing(driver, &mut options, args.backing.as_ref(), args.backing_format.as_ref())?;
    let size = match (size, options.remove("size")) {
        (Some(_), Some(_)) => return Err(Failure::new("The image size must be specified only once")),
        (size, None) => size,
        (None, Some(text)) => parse_size(&text),
    };
    if options.get("backing_file").is_some_and(String::is_empty) {
        return Err(Failure::new("Expected backing file name, got empty string"));
    }
    let no_size = || Failure::new("Image creation needs a size parameter");
    let Some(backing) = options.get("backing_file") else {
        // Of a header on its own, the size is that of the file beside it.
        let is_header = options.get("detached-header").is_some_and(|value| value == "on");
        let size = size.or(is_header.then_some(0)).ok_or_else(no_size)?;
        return Ok((options, size));
    };
    let format = options.get("backing_fmt");
    let without_format = "Backing file specified without backing format";
    if resolve(backing, file).is_ok_and(|path| path == file) {
        return Err(Failure::new("Error: Trying to create an image with the same filename as the backing file"));
    }
    let size = if args.backing_unsafe {
        if format.is_none() {
            return Err(Failure::new(without_format));
        }
        size.ok_or_else(no_size)?
    } else {
        let opened = check_backing(file, backing, format)
            .map_err(|failure| Failure::new(format!("{}\nCould not open backing image.", failure.message)))?;
        if format.is_none() {
            let detected = opened.image.format_name();
            return Err(Failure::new(format!("{without_format}\nDetected format of {detected}.")));
        }
        size.unwrap_or(opened.image.info().length)
    };
    Ok((options, size))
}

/// Formats of which nobody makes images.
pub(crate) const READ_ONLY_FORMATS: &[&str] = &["bochs", "cloop", "dmg", "vvfat"];

/// The driver of that name, if it can make images.
pub(crate) fn driver_for(format: &str) -> Result<&'static Driver, Failure> {
    let cannot = || Failure::new(format!("Format driver '{format}' does not support image creation"));
    match Drivers::all().by_name(format) {
        Some(driver) if driver.create.is_some() => Ok(driver),
        Some(_) => Err(cannot()),
        None if READ_ONLY_FORMATS.contains(&format) => Err(cannot()),
        None => Err(Failure::new(format!("Unknown file format '{format}'"))),
    }
}

/// Options of a new file, whatever is in it. They are hints, but for the space that raw images set aside.
const FILE_OPTIONS: &[CreateOption] = &[
    CreateOption { name: "extent_size_hint", kind: "size", help: "Extent size hint for the image file, 0 to disable" },
    CreateOption { name: "nocow", kind: "bool (on/off)", help: "Turn off copy-on-write (valid only on btrfs)" },
    CreateOption { name: "preallocation", kind: "str", help: "Preallocation mode (allowed values: off, falloc, full)" },
];

/// Whether the options are to be listed.
///
/// # Errors
/// They are no list.
pub(crate) fn wants_help(options: &[String]) -> Result<bool, Failure> {
    let options = merge_options(options)?;
    Ok(["help", "?"].iter().any(|name| options.get(*name).is_some_and(|value| value == "on")))
}

/// Lists the options of a format. Those of the file itself are known only once there is a file name.
pub(crate) fn print_options(driver: &Driver, with_file: bool) {
    let size = CreateOption { name: "size", kind: "size", help: "Virtual disk size" };
    let mut options: Vec<_> = driver.create_options.iter().chain([&size]).collect();
    if with_file {
        let own = |name: &str| driver.create_options.iter().any(|option| option.name == name);
        options.extend(FILE_OPTIONS.iter().filter(|option| !own(option.name)));
    }
    options.sort_by_key(|option| option.name);
    let mut text =
        if with_file { "Supported options:\n".into() } else { format!("Supported {} options:\n", driver.name) };
    for option in options {
        // Space is set aside by the file.
        if with_file || driver.name == "qcow2" || option.name != "preallocation" {
            text.push_str(&format!("  {:<22} - {}\n", format!("{}=<{}>", option.name, option.kind), option.help));
        }
    }
    if !with_file {
        text.push_str(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n",
        );
    }
    print(&text);
}

pub(crate) fn merge_options(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut options = BTreeMap::new();
    for text in texts {
        // A comma at the end would swallow the next option, were they joined.
        let commas = text.bytes().rev().take_while(|byte| *byte == b',').count();
        if text.starts_with(',') || commas % 2 == 1 {
            return Err(Failure::new(format!("Invalid option list: {text}")));
        }
        options.extend(split_options(text)?);
    }
    Ok(options)
}

/// Fails unless the driver knows every option and its value is of the right kind.
pub(crate) fn check_options(driver: &Driver, options: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (name, value) in options {
        let mut all = driver.create_options.iter().chain(FILE_OPTIONS);
        let known = all.find(|option| option.name == name).map(|option| option.kind);
        let kind = known.or((name == "size").then_some("size"));
        match kind.ok_or_else(|| Failure::new(format!("Invalid parameter '{name}'")))? {
            "size" if parse_size(value).is_none() => {
                return Err(Failure::new(format!(
                    "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
                )));
            }
            "num" if value.parse::<i128>().is_ok_and(|number| number > u64::MAX.into()) => {
                return Err(Failure::new(format!("Value '{value}' is too large for parameter '{name}'")));
            }
            "num" if value.parse::<i64>().is_err() && value.parse::<u64>().is_err() => {
                return Err(Failure::new(format!("Parameter '{name}' expects a number")));
            }
            kind if kind.starts_with("bool") && switch(value).is_none() => {
                return Err(Failure::new(format!("Parameter '{name}' expects 'on' or 'off'")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `on` or `off`, whichever way it is spelled.
fn switch(value: &str) -> Option<&'static str> {
    match value {
        "on" | "yes" | "true" | "y" => Some("on"),
        "off" | "no" | "false" | "n" => Some("off"),
        _ => None,
    }
}

/// Adds the backing image of the command line to the options.
pub(crate) fn add_backing(
    driver: &Driver,
    options: &mut BTreeMap<String, String>,
    backing: Option<&String>,
    format: Option<&String>,
) -> Result<(), Failure> {
    for (name, what, value) in [("backing_file", "file", backing), ("backing_fmt", "file format", format)] {
        let Some(value) = value else { continue };
        if !driver.create_options.iter().any(|option| option.name == name) {
            return Err(Failure::new(format!("Backing {what} not supported for file format '{}'", driver.name)));
        }
        options.insert(name.into(), value.clone());
    }
    Ok(())
}

/// Opens what is to be the backing image of `file`, to see that it is there.
pub(crate) fn check_backing(file: &str, backing: &str, format: Option<&String>) -> Result<Opened, Failure> {
    let described = backing.starts_with("json:") || unknown_protocol(backing).is_some();
    let path = if described {
        backing.to_string()
    } else {
        resolve(backing, file).map_err(|error| Failure::new(explain(&error, backing)))?
    };
    // Its size is all that matters, so it needs no key.
    open_plainly(&path, &Wish { format: format.cloned(), structure_only: true, ..Wish::default() })
}

/// The line that tells what is about to be made.
fn formatting_line(file: &str, format: &str, size: u64, options: &BTreeMap<String, String>) -> String {
    let size = size.to_string();
    let cluster = options.get("cluster_size").and_then(|text| parse_size(text)).unwrap_or(65536).to_string();
    // QEMU's order: what it always shows has a default here, the rest only if it was given.
    let shown: &[(&str, Option<&str>)] = if format == "qcow2" {
        &[
            ("encryption", None),
            ("encrypt.format", None),
            ("encrypt.key-secret", None),
            ("encrypt.cipher-alg", None),
            ("encrypt.cipher-mode", None),
            ("encrypt.ivgen-alg", None),
            ("encrypt.ivgen-hash-alg", None),
            ("encrypt.hash-alg", None),
            ("encrypt.iter-time", None),
            ("cluster_size", Some(&cluster)),
            ("extended_l2", Some("off")),
            ("preallocation", None),
            ("compression_type", Some("zlib")),
            ("size", Some(&size)),
            ("compat", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("data_file", None),
            ("data_file_raw", None),
            ("lazy_refcounts", Some("off")),
            ("refcount_bits", Some("16")),
            ("nocow", None),
            ("extent_size_hint", None),
        ]
    } else {
        &[
            ("size", Some(&size)),
            ("key-secret", None),
            ("cipher-alg", None),
            ("cipher-mode", None),
            ("ivgen-alg", None),
            ("ivgen-hash-alg", None),
            ("hash-alg", None),
            ("iter-time", None),
            ("detached-header", None),
            ("nocow", None),
            ("preallocation", None),
            ("extent_size_hint", None),
        ]
    };
    let mut line = format!("Formatting '{file}', fmt={format}");
    for (name, default) in shown {
        let given = options.get(*name).map(String::as_str).filter(|_| *name != "cluster_size");
        if let Some(value) = given.or(*default) {
            line.push_str(&format!(" {name}={}", value.replace(',', ",,")));
        }
    }
    line
}

/// Makes the image and the data file it may need. What was made, or emptied, for nothing is removed.
pub(crate) fn make(
    file: &str,
    driver: &Driver,
    size: u64,
    options: &BTreeMap<String, String>,
    cache: CacheMode,
) -> Result<(), Failure> {
    let path = resolve(file, "").map_err(|error| Failure::new(explain(&error, file)))?;
    let data_path = options.get("data_file").map(|name| resolve(name, &path)).transpose()?;
    let paths = [Some(path.as_str()), data_path.as_deref()];
    let existed = |path: &str| unknown_protocol(path).is_some() || Path::new(path).exists();
    let paths: Vec<(&str, bool)> = paths.into_iter().flatten().map(|path| (path, existed(path))).collect();
    fill(driver, &path, data_path.as_deref(), size, options, cache).map_err(|error| {
        let emptied = |path: &str| std::fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() == 0);
        for (path, _) in paths.into_iter().filter(|(path, existed)| !existed || emptied(path)) {
            // The failure that is reported matters more.
            let _ = std::fs::remove_file(path);
        }
        Failure::new(explain(&error, &path))
    })
}

fn fill(
    driver: &Driver,
    path: &str,
    data_path: Option<&str>,
    size: u64,
    options: &BTreeMap<String, String>,
    cache: CacheMode,
) -> Result<(), Error> {
    let create = driver.create.ok_or_else(|| Error::unsupported("this format cannot be made"))?;
    let mut options = options.clone();
    options.retain(|name, _| driver.create_options.iter().any(|option| option.name == name) || name == "size");
    for option in driver.create_options.iter().filter(|option| option.kind.starts_with("bool")) {
        if let Some(value) = options.get_mut(option.name) {
            *value = switch(value).unwrap_or(value).to_string();
        }
    }
    let native = FileOptions { cache, ..FileOptions::default() };
    let file = target(path, native)?;
    let data_file = data_path.map(|path| target(path, native)).transpose()?;
    let keyring = crate::secrets::keyring();
    block_on(async {
        let (image, data) = (file.clone(), data_file.clone());
        create(CreateContext { file: image, data_file: data, size, options: &options, keyring: &keyring }).await?;
        for file in [Some(file), data_file].into_iter().flatten() {
            file.close().await?;
        }
        Ok(())
    })
}

/// A new file, or what a server has under that name: nothing can be made there.
fn target(path: &str, options: FileOptions) -> Result<Arc<dyn Node>, Error> {
    let Some(protocol) = unknown_protocol(path) else { return Ok(File::create(path, options)?) };
    let machine = machine(options);
    let graph = Graph { host: &machine, defaults: OpenOptions::default(), mode: LeafMode::default() };
    let file = block_on(graph.open_file(path)).map_err(|error| {
        let text = format!(
            "Protocol driver '{protocol}' does not support creating new images, so an existing image must be selected as \
             the target; however, opening the given target as an existing image failed: {}",
            error.brief()
        );
        Error::new(error.kind(), text)
    })?;
    Ok(byte_granular(file))
}
