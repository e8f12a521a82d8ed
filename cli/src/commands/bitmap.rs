//! `bitmap`: add, remove and change the bitmaps that an image stores.

use diskette::{Error, block_on};

use crate::args::{BitmapAction, BitmapArgs};
use crate::number;
use crate::open::{Opened, Wish, open};
use crate::{Failure, Outcome};

pub(crate) fn run(args: &BitmapArgs) -> Outcome {
    let [file, name] = args.files.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name"));
    };
    let granularity = match &args.granularity {
        Some(text) => Some(number::parse(text, "granularity", 1..=number::MAX_OFFSET)?),
        None => None,
    };
    let actions = &args.actions.0;
    let contradictions = [
        (actions.is_empty(), "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"),
        (granularity.is_some() && !actions.contains(&BitmapAction::Add), "granularity only supported with --add"),
        (args.source_format.is_some() && args.source.is_none(), "-F only supported with -b"),
        (
            args.source.is_some() && !actions.iter().any(|action| matches!(action, BitmapAction::Merge(_))),
            "Merge bitmap source file only supported with --merge",
        ),
        (args.image_opts && args.format.is_some(), "--image-opts and --format are mutually exclusive"),
    ];
    if let Some((_, text)) = contradictions.iter().find(|(found, _)| *found) {
        return Err(Failure::new(*text));
    }
    let wish = Wish {
        format: args.format.clone(),
        image_opts: args.image_opts,
        writable: true,
        no_backing: true,
        discard: true,
        ..Wish::default()
    };
    let opened = open(file, &wish)?;
    let source = match &args.source {
        Some(name) => {
            Some(open(name, &Wish { format: args.source_format.clone(), no_backing: true, ..Wish::default() })?)
        }
        None => None,
    };
    for action in actions {
        act(&opened, source.as_ref(), name, action, granularity).map_err(|error| {
            Failure::new(format!("Operation {} on bitmap {name} failed: {}", action.name(), error.problem()))
        })?;
    }
    opened.close()?;
    Ok(0)
}

fn act(
    opened: &Opened,
    source: Option<&Opened>,
    name: &str,
    action: &BitmapAction,
    granularity: Option<u64>,
) -> Result<(), Error> {
    let image = &opened.image;
    block_on(async {
        match action {
            BitmapAction::Add => image.add_bitmap(name, granularity, true).await,
            BitmapAction::Remove => image.remove_bitmap(name).await,
            BitmapAction::Clear => image.clear_bitmap(name).await,
            BitmapAction::Enable => image.enable_bitmap(name).await,
            BitmapAction::Disable => image.disable_bitmap(name).await,
            BitmapAction::Merge(from) => {
                image.check_bitmap(name)?;
                let bits = source.map_or(image, |source| &source.image).read_bitmap(from).await?;
                image.merge_bitmap(name, &bits).await
            }
        }
    })
}
