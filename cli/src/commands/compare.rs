//! `compare`: whether two disks have the same contents.

use std::ops::ControlFlow;

use diskette::engine::status::Chain;
use diskette::native::compare::{CompareError, Difference, compare};
use diskette::{Node, Range, ReadFlags, Want, block_on};

use crate::args::CompareArgs;
use crate::open::{Opened, Wish, cache_mode, explain, open};
use crate::progress::Progress;
use crate::{Failure, Outcome};

/// The images differ.
const DIFFERENT: u8 = 1;
/// An image could not be opened, and other failures.
const TROUBLE: u8 = 2;
/// It could not be told what is allocated.
const NO_STATUS: u8 = 3;
/// Something could not be read.
const UNREADABLE: u8 = 4;

pub(crate) fn run(args: &CompareArgs) -> Outcome {
    let trouble = |failure: Failure| failure.with_code(TROUBLE);
    let (first, second) = open_both(args).map_err(trouble)?;
    let sides = [&first, &second];
    let (one, other) = (first.image.info().length, second.image.info().length);
    let progress = Progress::new(args.progress && !args.quiet, one.min(other));
    let say = |text: &str| {
        if !args.quiet {
            progress.line(text);
        }
    };
    if one != other && args.strict {
        say("Strict mode: Image size mismatch!");
        return Ok(DIFFERENT);
    }
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().min(8));
    let show = |done| {
        progress.update(done);
        ControlFlow::Continue(())
    };
    let mut found =
        compare(&first.node(), &second.node(), workers, args.strict, &show).map_err(|error| failure(&error, &sides))?;
    if found.is_none() && one != other {
        say("Warning: Image size mismatch!");
        let longer = usize::from(other > one);
        let rest = Range::new(one.min(other), one.abs_diff(other));
        found = first_data(sides[longer], longer, rest).map_err(|error| failure(&error, &sides))?;
    }
    match found {
        Some(Difference::Content(at)) => say(&format!("Content mismatch at offset {at}!")),
        Some(Difference::Allocation(at)) => say(&format!("Strict mode: Offset {at} block status mismatch!")),
        None => {
            progress.complete();
            say("Images are identical.");
            return Ok(0);
        }
    }
    Ok(DIFFERENT)
}

fn open_both(args: &CompareArgs) -> Result<(Opened, Opened), Failure> {
    if args.image_opts && (args.first_format.is_some() || args.second_format.is_some()) {
        return Err(Failure::new("--image-opts and --format are mutually exclusive"));
    }
    let cache = args.cache.as_deref().map(|cache| cache_mode(cache, "source ")).transpose()?.unwrap_or_default();
    let wish = |format: &Option<String>| Wish {
        format: format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        cache,
        ..Wish::default()
    };
    Ok((open(&args.first, &wish(&args.first_format))?, open(&args.second, &wish(&args.second_format))?))
}

fn failure(error: &CompareError, sides: &[&Opened; 2]) -> Failure {
    let Some((side, at)) = error.reading else { return Failure::new(explain(&error.error, "")).with_code(NO_STATUS) };
    let name = sides.get(side).map_or("", |opened| opened.name.as_str());
    let text = explain(&error.error, name);
    Failure::new(format!("Error while reading offset {at} of {name}: {text}")).with_code(UNREADABLE)
}

/// Where a range first reads as something other than zero.
fn first_data(opened: &Opened, side: usize, range: Range) -> Result<Option<Difference>, CompareError> {
    let chain = Chain::of(opened.node());
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end() {
        let status = block_on(chain.status(Range::new(at, range.end() - at), Want::Precise))?;
        let len = if status.zero { status.len } else { status.len.min(buffer.len() as u64) };
        if !status.zero {
            let bytes = &mut buffer[..len as usize];
            block_on(opened.image.read(at, bytes, ReadFlags::default()))
                .map_err(|error| CompareError { reading: Some((side, at)), error })?;
            if let Some(position) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(Difference::Content(at + position as u64)));
            }
        }
        at += len;
    }
    Ok(None)
}
