//! `measure`: how large a new image will be.

use std::sync::Arc;

use diskette::drivers::{Drivers, MeasureContext, Measurement};
use diskette::{Node, block_on};
use serde_json::{Map, json};

use crate::args::{MeasureArgs, Output};
use crate::commands::convert::snapshot_choice;
use crate::commands::create::{check_options, merge_options, print_options, wants_help};
use crate::commands::info::pretty;
use crate::number::{self, MAX_OFFSET};
use crate::open::{Wish, explain, open, open_plainly};
use crate::output::{line, print};
use crate::{Failure, Outcome};

pub(crate) fn run(args: &MeasureArgs) -> Outcome {
    let size = args.size.as_deref().map(|text| number::parse(text, "image size", 0..=MAX_OFFSET)).transpose()?;
    if args.files.len() > 1 {
        return Err(Failure::new("At most one filename argument is allowed."));
    }
    let file = args.files.first();
    if file.is_none() && (args.image_opts || args.format.is_some() || args.snapshot.is_some()) {
        return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
    }
    let help = wants_help(&args.options)?;
    if !help && file.is_none() && size.is_none() {
        return Err(Failure::new("Either --size N or one filename must be specified."));
    }
    if file.is_some() && size.is_some() {
        return Err(Failure::new("--size N cannot be used together with a filename."));
    }
    let source = match file {
        Some(name) => Some(open_source(args, name)?),
        None => None,
    };
    let driver = Drivers::all()
        .by_name(&args.target_format)
        .ok_or_else(|| Failure::new(format!("Unknown file format '{}'", args.target_format)))?;
    if help {
        print_options(driver, false);
        return Ok(0);
    }
    let measure = driver
        .measure
        .ok_or_else(|| Failure::new(format!("Block driver '{}' does not support size measurement", driver.name)))?;
    let mut options = merge_options(&args.options)?;
    check_options(driver, &options).map_err(|failure| {
        Failure::new(format!(
            "{}\n{}: Invalid options for file format '{}'",
            failure.message,
            crate::program::name(),
            driver.name
        ))
    })?;
    options.remove("size");
    let size = size.or(source.as_ref().map(|node| node.info().length)).unwrap_or(0);
    let context = MeasureContext { size, source: source.as_ref(), options: &options };
    let measured = block_on(measure(context)).map_err(|error| Failure::new(explain(&error, "")))?;
    match args.output {
        Output::Human => print(&text(&measured)),
        Output::Json => line(&value(&measured)),
    }
    Ok(0)
}

fn open_source(args: &MeasureArgs, name: &str) -> Result<Arc<dyn Node>, Failure> {
    let wish = Wish {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..Wish::default()
    };
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and --format are mutually exclusive"));
    }
    match &args.snapshot {
        None => Ok(open(name, &wish)?.node()),
        Some(text) => {
            open(name, &wish)?;
            let wish = Wish { snapshot: Some(snapshot_choice(text)?), ..wish };
            let failed = |failure: Failure| failure.within("Failed to load snapshot");
            Ok(open_plainly(name, &wish).map_err(failed)?.node())
        }
    }
}

fn text(measured: &Measurement) -> String {
    let mut text =
        format!("required size: {}\nfully allocated size: {}\n", measured.required, measured.fully_allocated);
    if let Some(bitmaps) = measured.bitmaps {
        text.push_str(&format!("bitmaps size: {bitmaps}\n"));
    }
    text
}

fn value(measured: &Measurement) -> String {
    let mut map = Map::new();
    if let Some(bitmaps) = measured.bitmaps {
        map.insert("bitmaps".into(), json!(bitmaps));
    }
    map.insert("required".into(), json!(measured.required));
    map.insert("fully-allocated".into(), json!(measured.fully_allocated));
    pretty(&map.into())
}
