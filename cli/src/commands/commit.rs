//! `commit`: write what an image stores into one that it is backed by.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use diskette::drivers::OpenOptions;
use diskette::native::parallel::{CopyOptions, copy};
use diskette::native::{File, FileOpener, FileOptions, resolve};
use diskette::{Budgets, Gate, Node, Op, Opener, Policy, Preallocation, Reference, block_on};

use crate::args::CommitArgs;
use crate::open::{Opened, Wish, cache_mode, explain, open, open_through};
use crate::progress::Progress;
use crate::{Failure, Outcome, output};

/// Opens the files of a chain, one of them for writing.
#[derive(Debug)]
struct ChainOpener {
    files: FileOpener,
    /// Path of the file that is written.
    writable: String,
    opened: Mutex<Option<Arc<File>>>,
}

impl Opener for ChainOpener {
    fn open<'a>(&'a self, reference: &'a Reference) -> Op<'a, Arc<dyn Node>> {
        match resolve(&reference.name, &reference.from) {
            Ok(path) if path == self.writable => {}
            _ => return self.files.open(reference),
        }
        Op::Ready(File::open(&self.writable, FileOptions { read_only: false, ..self.files.options }).map(|file| {
            if let Ok(mut opened) = self.opened.lock() {
                *opened = Some(file.clone());
            }
            file as Arc<dyn Node>
        }))
    }
}

pub(crate) fn run(args: &CommitArgs) -> Outcome {
    let wish = Wish {
        writable: true,
        discard: true,
        cache: args.cache.as_deref().map(|cache| cache_mode(cache, "")).transpose()?.unwrap_or_default(),
        ..Wish::try_from(&args.image)?
    };
    let (path, layers) = target(args)?;
    let options = FileOptions { cache: wish.cache, ..FileOptions::default() };
    let files = FileOpener { options: FileOptions { read_only: true, ..options } };
    let opener = Arc::new(ChainOpener { files: files.clone(), writable: path.clone(), opened: Mutex::new(None) });
    let top = open_through(&args.file, &wish, opener.clone())?;
    let file = opener.opened.lock().ok().and_then(|mut opened| opened.take());
    let Some(file) = file else { return Err(Failure::new("Image does not have a backing file")) };
    let base_format = chain_format(&top, layers);
    let base_options = OpenOptions {
        format: base_format,
        read_only: false,
        gate: Gate::new(Policy::Allow, Arc::new(files)),
        budgets: Budgets::default(),
        ..OpenOptions::default()
    };
    let failed = |error: diskette::Error| Failure::new(explain(&error, &path));
    let base = block_on(diskette::open(file, &base_options)).map_err(failed)?;
    let length = top.image.info().length;
    if base.info().length < length {
        block_on(base.resize(length, Preallocation::Off)).map_err(failed)?;
    }
    let progress = Progress::new(args.progress && !args.quiet, length);
    let copied = copy(
        &top.node(),
        &(base.clone() as Arc<dyn Node>),
        CopyOptions { skip_unallocated: true, own_layers: layers, target_is_zero: false, ..CopyOptions::default() },
        &|done| {
            progress.update(done);
            ControlFlow::Continue(())
        },
    );
    copied.map_err(|stopped| stopped.error).and_then(|()| block_on(base.close())).map_err(failed)?;
    progress.complete();
    // The images between are not what they were; with the target next to it, nothing needs this one's contents.
    if args.base.is_none() && !args.keep {
        match block_on(top.image.make_empty()) {
            Err(error) if error.kind() == diskette::ErrorKind::Unsupported => {}
            result => {
                result.map_err(|error| Failure::new(format!("Could not empty {}: {}", args.file, error.problem())))?
            }
        }
    }
    block_on(top.image.close())?;
    if !args.quiet {
        output::line("Image committed.");
    }
    Ok(0)
}

/// The file that is written to, and how many images are above it.
fn target(args: &CommitArgs) -> Result<(String, u32), Failure> {
    let opened = open(&args.file, &Wish::try_from(&args.image)?)?;
    let mut layers = 0;
    let mut node = opened.node();
    loop {
        let details = node.as_any().and_then(|any| any.downcast_ref::<diskette::Image>()).map(|image| image.describe());
        let Some(backing) = details.transpose()?.and_then(|details| details.backing) else {
            return Err(match &args.base {
                Some(wanted) => {
                    Failure::new(format!("Did not find '{wanted}' in the backing chain of '{}'", args.file))
                }
                None => Failure::new("Image does not have a backing file"),
            });
        };
        layers += 1;
        let path = resolve(&backing.name, &node.name()).map_err(|error| Failure::new(explain(&error, "")))?;
        match &args.base {
            Some(wanted) if *wanted != backing.name && *wanted != path => {}
            _ => return Ok((path, layers)),
        }
        match node.child(diskette::Role::Backing) {
            Some(next) => node = next,
            None => return Err(Failure::new("Image does not have a backing file")),
        }
    }
}

/// The format of the image that many layers down.
fn chain_format(top: &Opened, layers: u32) -> Option<String> {
    let mut node = top.node();
    for _ in 0..layers {
        node = node.child(diskette::Role::Backing)?;
    }
    node.as_any()?.downcast_ref::<diskette::Image>().map(|image| image.format_name().to_string())
}
