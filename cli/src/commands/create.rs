//! `create`: make a new image.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskette::drivers::{CreateContext, Driver, Drivers};
use diskette::native::{CacheMode, File, FileOptions, resolve};
use diskette::wire::parse_size;
use diskette::{Node, block_on};

use crate::args::CreateArgs;
use crate::open::{Wish, open, split_options, without_path};
use crate::{Failure, Outcome};

pub(crate) fn run(args: &CreateArgs) -> Outcome {
    let driver = driver_for(&args.format, args.file.as_deref())?;
    if wants_help(&args.options) {
        print_options(driver);
        return Ok(0);
    }
    let file = args.file.as_deref().ok_or_else(|| Failure::new("Expecting image file name"))?;
    let mut options = merge_options(&args.options)?;
    if let Some(backing) = &args.backing {
        options.insert("backing_file".into(), backing.clone());
    }
    if let Some(format) = &args.backing_format {
        options.insert("backing_fmt".into(), format.clone());
    }
    let size = match args.size.clone().or_else(|| options.remove("size")) {
        Some(text) => Some(size_argument(&text)?),
        None => None,
    };
    options.remove("size");
    let size = resolve_backing(file, &mut options, size, args.backing_unsafe)?;
    if !args.quiet {
        println!("{}", formatting_line(file, driver.name, size, &options));
    }
    make(file, driver, size, &options, CacheMode::Writeback)?;
    Ok(0)
}

fn size_argument(text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| {
        Failure::new(format!(
            "Invalid image size specified: '{text}'. You may use k, M, G, T, P or E suffixes for kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        ))
    })
}

/// The driver of that name, if it can make images.
pub(crate) fn driver_for(format: &str, file: Option<&str>) -> Result<&'static Driver, Failure> {
    let prefix = file.map(|file| format!("{file}: ")).unwrap_or_default();
    let driver = Drivers::all()
        .by_name(format)
        .ok_or_else(|| Failure::new(format!("{prefix}Unknown file format '{format}'")))?;
    match driver.create {
        Some(_) => Ok(driver),
        None => Err(Failure::new(format!("{prefix}Format driver '{format}' does not support image creation"))),
    }
}

pub(crate) fn wants_help(options: &[String]) -> bool {
    options.iter().any(|text| text.split(',').any(|part| part == "help" || part == "?"))
}

pub(crate) fn print_options(driver: &Driver) {
    println!("Supported {} options:", driver.name);
    for option in driver.create_options {
        println!("  {:<22} - {}", format!("{}=<{}>", option.name, option.kind), option.help);
    }
    println!("  {:<22} - Virtual disk size", "size=<size>");
}

pub(crate) fn merge_options(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut options = BTreeMap::new();
    for text in texts {
        options.extend(split_options(text)?);
    }
    Ok(options)
}

/// Opens the backing image, unless that is not wanted, and takes the size from it if none was given.
pub(crate) fn resolve_backing(
    file: &str,
    options: &mut BTreeMap<String, String>,
    size: Option<u64>,
    unsafe_backing: bool,
) -> Result<u64, Failure> {
    let Some(backing) = options.get("backing_file").filter(|name| !name.is_empty()).cloned() else {
        return size.ok_or_else(|| Failure::new(format!("{file}: Image creation needs a size parameter")));
    };
    let format = options.get("backing_fmt").cloned();
    if let (true, Some(size)) = (unsafe_backing, size) {
        return Ok(size);
    }
    let path = resolve(&backing, file)?;
    if path == file {
        return Err(Failure::new(format!(
            "{file}: Error: Trying to create an image with the same filename as the backing file"
        )));
    }
    let wish = Wish { format: format.clone(), structure_only: true, ..Wish::default() };
    let opened = open(&path, &wish)
        .map_err(|failure| Failure::new(format!("{file}: {}\nCould not open backing image.", failure.message)))?;
    if format.is_none() {
        return Err(Failure::new(format!(
            "{file}: Backing file specified without backing format\nDetected format of {}.",
            opened.image.format_name()
        )));
    }
    Ok(size.unwrap_or(opened.image.info().length))
}

/// The line that tells what is about to be made.
fn formatting_line(file: &str, format: &str, size: u64, options: &BTreeMap<String, String>) -> String {
    let size = size.to_string();
    let cluster = options.get("cluster_size").and_then(|text| parse_size(text)).unwrap_or(65536).to_string();
    // QEMU's order: what it always shows has a default here, the rest only if it was given.
    let shown: &[(&str, Option<&str>)] = if format == "qcow2" {
        &[
            ("cluster_size", Some(&cluster)),
            ("extended_l2", Some("off")),
            ("preallocation", None),
            ("compression_type", Some("zlib")),
            ("size", Some(&size)),
            ("compat", None),
            ("data_file", None),
            ("data_file_raw", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("lazy_refcounts", Some("off")),
            ("refcount_bits", Some("16")),
        ]
    } else {
        &[("size", Some(&size)), ("preallocation", None)]
    };
    let mut line = format!("Formatting '{file}', fmt={format}");
    for (name, default) in shown {
        let given = options.get(*name).map(String::as_str).filter(|_| *name != "cluster_size");
        if let Some(value) = given.or(*default) {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line
}

/// Makes the image and the data file it may need.
pub(crate) fn make(
    file: &str,
    driver: &Driver,
    size: u64,
    options: &BTreeMap<String, String>,
    cache: CacheMode,
) -> Result<(), Failure> {
    let failed = |error: diskette::Error| Failure::new(format!("{file}: {}", without_path(&error, file)));
    let create = driver.create.ok_or_else(|| Failure::new(format!("{file}: this format cannot be made")))?;
    let native = FileOptions { cache, ..FileOptions::default() };
    let path = resolve(file, "").map_err(failed)?;
    let node: Arc<dyn Node> = File::create(&path, native).map_err(failed)?;
    let data_file = match options.get("data_file") {
        Some(name) => {
            let path = resolve(name, &path).map_err(failed)?;
            Some(File::create(&path, native).map_err(failed)? as Arc<dyn Node>)
        }
        None => None,
    };
    block_on(create(CreateContext { file: node, data_file, size, options })).map_err(failed)
}
