//! `commit`: write what an image stores into one that it is backed by.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use diskette::native::copy::{CopyOptions, copy};
use diskette::native::{FileOpener, FileOptions, resolve};
use diskette::{Gate, Image, Node, Op, Opener, Preallocation, Reference, block_on};

use crate::args::CommitArgs;
use crate::io::reason;
use crate::open::{Wish, cache_mode, close, explain, machine, open, open_through};
use crate::progress::Progress;
use crate::{Failure, Outcome, output};

/// Opens the files of a chain, and the image to write to as a disk of its own.
struct ChainOpener {
    files: FileOpener,
    /// How many images are above the one that is written.
    layers: u32,
    met: AtomicU32,
    target: Mutex<Option<Arc<Image>>>,
}

impl ChainOpener {
    async fn open_target(&self, reference: &Reference, gate: &Gate) -> Result<Arc<dyn Node>, diskette::Error> {
        let reference = Reference { writable: true, ..reference.clone() };
        let image = self.files.open_disk(&reference, gate).await?;
        if let Ok(mut target) = self.target.lock() {
            *target = Some(image.clone());
        }
        Ok(image)
    }
}

impl Opener for ChainOpener {
    fn open<'a>(&'a self, reference: &'a Reference, gate: &'a Gate) -> Op<'a, Arc<dyn Node>> {
        let is_backing = reference.role == diskette::Role::Backing;
        if is_backing && self.met.fetch_add(1, Ordering::Relaxed) + 1 == self.layers {
            return Op::future(self.open_target(reference, gate));
        }
        self.files.open(reference, gate)
    }
}

pub(crate) fn run(args: &CommitArgs) -> Outcome {
    let wish = Wish {
        writable: true,
        discard: true,
        cache: args.cache.as_deref().map(|cache| cache_mode(cache, "")).transpose()?.unwrap_or_default(),
        ..Wish::try_from(&args.image)?
    };
    let layers = target(args)?;
    let options = FileOptions { read_only: true, cache: wish.cache, ..FileOptions::default() };
    let mut files = FileOpener { machine: machine(options), ..FileOpener::new(options) };
    files.images.image.discard = true;
    files.images.keyring = crate::secrets::keyring();
    let opener = Arc::new(ChainOpener { files, layers, met: AtomicU32::new(0), target: Mutex::new(None) });
    let top = open_through(&args.file, &wish, opener.clone())?;
    let base = opener.target.lock().ok().and_then(|mut target| target.take());
    let Some(base) = base else { return Err(Failure::new("Image does not have a backing file")) };
    let failed = |error: diskette::Error| Failure::new(explain(&error, &base.name()));
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
    let closed = close(&base);
    copied.map_err(|stopped| Failure::new(format!("Block job failed: {}", reason(&stopped.error))))?;
    closed?;
    progress.complete();
    // The images between are not what they were; with the target next to it, nothing needs this one's contents.
    if args.base.is_none() && !args.keep {
        match block_on(top.image.make_empty()) {
            Err(error) if error.kind() == diskette::ErrorKind::Unsupported => {}
            result => {
                result.map_err(|error| Failure::new(format!("Failed to empty {}: {}", args.file, reason(&error))))?
            }
        }
    }
    top.close()?;
    if !args.quiet {
        output::line("Image committed.");
    }
    Ok(0)
}

/// How many images are above the one that is written to.
fn target(args: &CommitArgs) -> Result<u32, Failure> {
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
        let path = resolve(&backing.name, &node.name()).unwrap_or_else(|_| backing.name.clone());
        // A relative name is relative to the image, as the image's own is.
        let wanted_place =
            |name: &str| resolve(name, &node.name()).ok().and_then(|path| std::fs::canonicalize(path).ok());
        let place = std::fs::canonicalize(&path).ok();
        match &args.base {
            Some(wanted) if *wanted != backing.name && (place.is_none() || wanted_place(wanted) != place) => {}
            _ => return Ok(layers),
        }
        match node.child(diskette::Role::Backing) {
            Some(next) => node = next,
            None => return Err(Failure::new("Image does not have a backing file")),
        }
    }
}
