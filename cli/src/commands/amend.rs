//! `amend`: change properties of an image.

use std::sync::Arc;

use diskette::block_on;
use diskette::drivers::{Driver, Drivers};
use diskette::engine::AmendRequest;

use crate::args::AmendArgs;
use crate::commands::create::{READ_ONLY_FORMATS, merge_options, wants_help};
use crate::open::{Wish, cache_mode, explain, open};
use crate::output::print;
use crate::progress::Progress;
use crate::{Failure, Outcome, program};

/// Parts of which progress is told.
const PARTS: u64 = 10_000;

pub(crate) fn run(args: &AmendArgs) -> Outcome {
    if args.options.is_empty() {
        return Err(Failure::new(format!(
            "Must specify options (-o)\nTry '{} amend --help' for more info",
            program::name()
        )));
    }
    if let (true, Some(format)) = (wants_help(&args.options)?, args.image.format.as_deref()) {
        let driver = driver_for(format)?;
        print_options(driver);
        return Ok(0);
    }
    let file = args.file.as_deref().ok_or_else(|| Failure::new("Expecting one image file name"))?;
    let wish = Wish {
        writable: true,
        cache: args.cache.as_deref().map(|cache| cache_mode(cache, "")).transpose()?.unwrap_or_default(),
        ..Wish::try_from(&args.image)?
    };
    let opened = open(file, &wish)?;
    let driver = driver_for(opened.image.format_name())?;
    if wants_help(&args.options)? {
        print_options(driver);
        return Ok(0);
    }
    let options = merge_options(&args.options)?;
    if let Some(unknown) = options.keys().find(|name| !driver.amend_options.iter().any(|known| known.name == **name)) {
        let can_be_made = driver.create_options.iter().any(|known| known.name == unknown);
        let hint = if can_be_made { "\nThis option is only supported for image creation" } else { "" };
        return Err(Failure::new(format!("Invalid parameter '{unknown}'{hint}")));
    }
    let progress = Arc::new(Progress::new(args.progress && !args.quiet, PARTS));
    let shown = progress.clone();
    let tell = move |done: u64, total: u64| {
        let parts = (u128::from(done) * u128::from(PARTS) + u128::from(total) / 2) / u128::from(total.max(1));
        shown.update(parts as u64);
    };
    let request = AmendRequest { options, force: args.force, progress: Some(Arc::new(tell)) };
    let amended = block_on(opened.image.amend(&request));
    let closed = block_on(opened.image.close());
    if amended.is_ok() {
        progress.complete();
    }
    drop((progress, request));
    amended.and(closed).map_err(|error| Failure::new(explain(&error, &opened.path)))?;
    Ok(0)
}

/// The driver of that name, if images of it can be changed.
fn driver_for(format: &str) -> Result<&'static Driver, Failure> {
    let driver = Drivers::all().by_name(format).ok_or_else(|| {
        Failure::new(if READ_ONLY_FORMATS.contains(&format) {
            format!("Format driver '{format}' does not support option amendment")
        } else {
            format!("Unknown file format '{format}'")
        })
    })?;
    if driver.amend_options.is_empty() {
        return Err(Failure::new(format!("Format driver '{format}' does not support option amendment")));
    }
    Ok(driver)
}

fn print_options(driver: &Driver) {
    let mut text = format!("Amend options for '{}':\n", driver.name);
    for option in driver.amend_options {
        text.push_str(&format!("  {:<22} - {}\n", format!("{}=<{}>", option.name, option.kind), option.help));
    }
    print(&text);
}
