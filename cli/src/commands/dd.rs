//! `dd`: copy an image, or a part of it, in blocks.

use std::collections::BTreeMap;

use diskette::native::{Buffer, CacheMode};
use diskette::{Node, ReadFlags, WriteFlags, block_on};

use crate::args::DdArgs;
use crate::commands::create::{driver_for, make};
use crate::number;
use crate::open::{Wish, explain, open};
use crate::{Failure, Outcome, program};

const MAX_NUMBER: u64 = i32::MAX as u64;
const MAX_BLOCKS: u64 = i64::MAX as u64;
/// Several blocks are copied at once, up to about so many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// The operands, as `dd` knows them.
#[derive(Debug)]
struct Operands {
    input: String,
    output: String,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        let (mut input, mut output) = (None, None);
        let (mut block, mut count, mut skip) = (512, None, 0);
        for word in words {
            let unknown = |name: &str| Failure::new(format!("unrecognized operand {name}"));
            let (name, value) = word.split_once('=').ok_or_else(|| unknown(word))?;
            match name {
                "if" => input = Some(value.to_string()),
                "of" => output = Some(value.to_string()),
                "bs" => block = number::parse(value, "bs", 1..=MAX_NUMBER)?,
                "count" => count = Some(number::parse(value, "count", 0..=MAX_BLOCKS)?),
                "skip" => skip = number::parse(value, "skip", 0..=MAX_BLOCKS)?,
                _ => return Err(unknown(name)),
            }
        }
        match (input, output) {
            (Some(input), Some(output)) => Ok(Operands { input, output, block, count, skip }),
            _ => Err(Failure::new("Must specify both input and output files")),
        }
    }
}

pub(crate) fn run(args: &DdArgs) -> Outcome {
    let operands = Operands::parse(&args.operands)?;
    if args.image_opts && args.format.is_some() {
        return Err(Failure::new("--image-opts and --format are mutually exclusive"));
    }
    let wish = Wish {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..Wish::default()
    };
    let source = open(&operands.input, &wish)?;
    let driver = driver_for(&args.output_format)?;
    let length = source.image.info().length;
    // The count is of the blocks from the start of the input on, those that are skipped among them.
    let end = match operands.count.and_then(|count| count.checked_mul(operands.block)) {
        Some(bytes) => bytes.min(length),
        None => length,
    };
    let start = operands.skip.checked_mul(operands.block).filter(|start| *start <= end);
    let size = start.map_or(0, |start| end - start);
    make(&operands.output, driver, size, &BTreeMap::new(), CacheMode::Writeback)
        .map_err(|failure| failure.within(&format!("{}: error while creating output image", operands.output)))?;
    let target = Wish { format: Some(driver.name.to_string()), writable: true, ..Wish::default() };
    let target = open(&operands.output, &target)?;
    let Some(start) = start else {
        eprintln!("{}: {}: cannot skip to specified offset", program::name(), operands.input);
        target.close()?;
        return Ok(0);
    };
    let piece = (PIECE_BYTES / operands.block).max(1) * operands.block;
    let mut buffer = Buffer::default();
    let mut at = start;
    while at < end {
        let len = (end - at).min(piece);
        let bytes = buffer.first(len as usize);
        block_on(source.image.read(at, bytes, ReadFlags::default())).map_err(|error| {
            Failure::new(format!("error while reading from input image file: {}", explain(&error, "")))
        })?;
        block_on(target.image.write(at - start, bytes, WriteFlags::default())).map_err(|error| {
            Failure::new(format!("error while writing to output image file: {}", explain(&error, "")))
        })?;
        at += len;
    }
    target.close()?;
    Ok(0)
}
