//! `rebase`: move an image to another backing file.

use std::ops::ControlFlow;

use diskette::drivers::KNOWN_NAMES;
use diskette::native::rebase::{RebaseOptions, rebase};
use diskette::native::resolve;
use diskette::{Node, Role, block_on};

use crate::args::RebaseArgs;
use crate::open::{Opened, Wish, cache_mode, explain, open};
use crate::progress::Progress;
use crate::{Failure, Outcome, program};

pub(crate) fn run(args: &RebaseArgs) -> Outcome {
    let Some(wanted) = args.backing.as_deref().or(args.unsafe_mode.then_some("")) else {
        return Err(Failure::new(format!(
            "Must specify backing file (-b) or use unsafe mode (-u)\nTry '{} rebase --help' for more info",
            program::name()
        )));
    };
    if let Some(format) = args.backing_format.as_deref().filter(|name| !KNOWN_NAMES.contains(name)) {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    if args.compress && args.unsafe_mode {
        return Err(Failure::new("Cannot use compression in unsafe mode"));
    }
    let cache = |name: &Option<String>, what: &str| name.as_deref().map(|name| cache_mode(name, what)).transpose();
    let source_cache = cache(&args.source_cache, "source ")?.unwrap_or_default();
    let wish = Wish {
        writable: true,
        no_backing: args.unsafe_mode,
        cache: cache(&args.cache, "")?.unwrap_or_default(),
        ..Wish::try_from(&args.image)?
    };
    let top = open(&args.file, &wish)?;
    if args.compress && !top.image.stores_compressed() {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    let progress = Progress::new(args.progress && !args.quiet, top.image.info().length);
    if !args.unsafe_mode {
        let new = match wanted {
            "" => None,
            name => {
                let path = resolve(name, &top.path).map_err(|error| Failure::new(explain(&error, name)))?;
                let wish = Wish { format: args.backing_format.clone(), cache: source_cache, ..Wish::default() };
                Some(open_new(&path, name, &wish)?)
            }
        };
        let options = RebaseOptions { workers: 2, compress: args.compress };
        rebase(&top.image, top.image.child(Role::Backing), new.map(|new| new.node()), options, &|done| {
            progress.update(done);
            ControlFlow::Continue(())
        })
        .map_err(|error| Failure::new(format!("error while rebasing: {}", explain(&error, &top.path))))?;
        block_on(top.image.flush())?;
    }
    let backing = (!wanted.is_empty()).then_some((wanted, args.backing_format.as_deref()));
    let reason = match backing {
        Some((name, None)) => {
            return Err(Failure::new(format!(
                "Could not change the backing file to '{name}': backing format must be specified"
            )));
        }
        _ => block_on(top.image.set_backing(backing)),
    };
    reason.map_err(|error| {
        Failure::new(format!("Could not change the backing file to '{wanted}': {}", error.problem()))
    })?;
    top.close()?;
    progress.complete();
    Ok(0)
}

fn open_new(path: &str, name: &str, wish: &Wish) -> Result<Opened, Failure> {
    crate::open::open_plainly(path, wish)
        .map_err(|failure| failure.within(&format!("Could not open new backing file '{name}'")))
}
