//! `compare`: whether two disks have the same contents.

use std::sync::Arc;

use diskette::native::parallel::{Difference, compare};
use diskette::{Node, Range, ReadFlags, Want, block_on, engine};

use crate::args::CompareArgs;
use crate::open::{Opened, Wish, cache_mode, open};
use crate::progress::Progress;
use crate::{Failure, Outcome};

/// The images differ.
const DIFFERENT: u8 = 1;
/// An image could not be opened, and other failures.
const TROUBLE: u8 = 2;

pub(crate) fn run(args: &CompareArgs) -> Outcome {
    let wish = |format: &Option<String>| -> Result<Wish, Failure> {
        Ok(Wish {
            format: format.clone(),
            image_opts: args.image_opts,
            force_share: args.force_share,
            cache: args.cache.as_deref().map(|cache| cache_mode(cache, "source ")).transpose()?.unwrap_or_default(),
            ..Wish::default()
        })
    };
    let trouble = |failure: Failure| failure.with_code(TROUBLE);
    let first = open(&args.first, &wish(&args.first_format)?).map_err(trouble)?;
    let second = open(&args.second, &wish(&args.second_format)?).map_err(trouble)?;
    let (one, other) = (first.image.info().length, second.image.info().length);
    let say = |text: String| {
        if !args.quiet {
            println!("{text}");
        }
    };
    if one != other && args.strict {
        say("Strict mode: Image size mismatch!".to_string());
        return Ok(DIFFERENT);
    }
    let progress = Progress::new(args.progress && !args.quiet, one.min(other));
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().min(8));
    let found = compare(&first.node(), &second.node(), workers, args.strict, &|done| progress.update(done))
        .map_err(|error| Failure::from(error).with_code(TROUBLE))?;
    progress.finish();
    match found {
        Some(Difference::Content(at)) => {
            say(format!("Content mismatch at offset {at}!"));
            return Ok(DIFFERENT);
        }
        Some(Difference::Allocation(at)) => {
            say(format!("Strict mode: Offset {at} block status mismatch!"));
            return Ok(DIFFERENT);
        }
        None => {}
    }
    if one != other {
        say("Warning: Image size mismatch!".to_string());
        let longer = if one > other { &first } else { &second };
        let rest = Range::new(one.min(other), one.abs_diff(other));
        let found = first_data(longer, rest).map_err(|error| Failure::from(error).with_code(TROUBLE))?;
        if let Some(at) = found {
            say(format!("Content mismatch at offset {at}!"));
            return Ok(DIFFERENT);
        }
    }
    say("Images are identical.".to_string());
    Ok(0)
}

/// Where a range first reads as something other than zero.
fn first_data(opened: &Opened, range: Range) -> diskette::Result<Option<u64>> {
    let node: Arc<dyn Node> = opened.node();
    let chain = engine::status::Chain::of(node.clone());
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end() {
        let status = block_on(chain.status(Range::new(at, range.end() - at), Want::Precise))?;
        let len = if status.zero { status.len } else { status.len.min(buffer.len() as u64) };
        if !status.zero {
            let bytes = &mut buffer[..len as usize];
            block_on(node.read(at, bytes, ReadFlags::default()))?;
            if let Some(position) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + position as u64));
            }
        }
        at += len;
    }
    Ok(None)
}
