//! `resize`: change the size of a disk.

use diskette::wire::parse_size;
use diskette::{Node, Preallocation, block_on};

use crate::args::ResizeArgs;
use crate::number::MAX_OFFSET;
use crate::open::{Wish, explain, open};
use crate::output::line;
use crate::{Failure, Outcome, program};

pub(crate) fn run(args: &ResizeArgs) -> Outcome {
    let preallocation = match args.preallocation.as_deref() {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(Failure::new(format!("Invalid preallocation mode '{other}'"))),
    };
    let [file, size] = args.words.as_slice() else {
        return Err(Failure::new(format!(
            "Expecting image file name and size\nTry '{} resize --help' for more info",
            program::name()
        )));
    };
    let (sign, digits) = match size.split_at_checked(1) {
        Some((sign @ ("+" | "-"), digits)) => (Some(sign), digits),
        _ => (None, size.as_str()),
    };
    let amount = parse_size(digits).ok_or_else(|| {
        Failure::new(
            "Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, \
             mega-, giga-, tera-, peta-\nand exabytes, respectively.",
        )
    })?;
    let opened = open(file, &Wish { writable: true, ..Wish::try_from(&args.image)? })?;
    let now = opened.image.info().length;
    let wanted = match sign {
        Some("+") => now.checked_add(amount),
        Some("-") => now.checked_sub(amount),
        _ => Some(amount),
    };
    let wanted = wanted
        .filter(|wanted| (1..=MAX_OFFSET).contains(wanted))
        .ok_or_else(|| Failure::new("New image size must be positive"))?;
    if wanted <= now && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if wanted < now && !args.shrink {
        return Err(Failure::new(format!(
            "Use the --shrink option to perform a shrink operation.\n{}: warning: Shrinking an image will delete all data \
             beyond the shrunken image's end. Before performing such an operation, make sure there is no important data \
             there.",
            program::name()
        )));
    }
    let resized = block_on(opened.image.resize(wanted, preallocation));
    let closed = block_on(opened.image.close());
    resized.and(closed).map_err(|error| Failure::new(explain(&error, &opened.path)))?;
    if !args.quiet {
        line("Image resized.");
    }
    Ok(0)
}
