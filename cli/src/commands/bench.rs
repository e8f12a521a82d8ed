//! `bench`: time requests to an image.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use diskette::native::{Buffer, on_workers};
use diskette::{Error, Node, ReadFlags, WriteFlags, block_on};

use crate::args::BenchArgs;
use crate::io::reason;
use crate::number::{self, MAX_OFFSET};
use crate::open::{Wish, cache_mode, open};
use crate::output::print;
use crate::{Failure, Outcome};

const MAX_NUMBER: u64 = i32::MAX as u64;

/// What to send.
struct Plan {
    count: u64,
    depth: u64,
    size: u64,
    step: u64,
    offset: u64,
    /// The byte to write; reads without.
    pattern: Option<u8>,
    /// Requests between two flushes; 0: none.
    flush_interval: u64,
}

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    let plan = Plan::new(args)?;
    let mut wish = Wish { writable: args.write, ..Wish::try_from(&args.image)? };
    if let Some(cache) = &args.cache {
        wish.cache = cache_mode(cache, "")?;
    }
    let opened = open(&args.file, &wish)?;
    let length = opened.image.info().length;
    if !args.quiet {
        print(&format!(
            "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})\n",
            plan.count,
            if args.write { "write" } else { "read" },
            plan.size,
            plan.depth,
            plan.offset,
            plan.step
        ));
        if plan.flush_interval > 0 {
            let which = if args.no_drain { "in-flight " } else { "" };
            print(&format!("Sending flush every {} {which}requests\n", plan.flush_interval));
        }
    }
    let begun = Instant::now();
    plan.send(&*opened.image, length).map_err(|error| Failure::new(format!("Failed request: {}", reason(&error))))?;
    let took = begun.elapsed();
    if !args.quiet {
        print(&format!("Run completed in {:.3} seconds.\n", took.as_secs_f64()));
    }
    opened.close()?;
    Ok(0)
}

impl Plan {
    fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let number = |text: &Option<String>, what: &str, least: u64, most: u64, default: u64| match text {
            Some(text) => number::parse(text, what, least..=most),
            None => Ok(default),
        };
        let count = number(&args.count, "request count", 1, MAX_NUMBER, 75_000)?;
        let depth = number(&args.depth, "queue depth", 1, MAX_NUMBER, 64)?;
        let offset = number(&args.offset, "offset", 0, MAX_OFFSET, 0)?;
        let size = number(&args.buffer_size, "buffer size", 1, MAX_NUMBER, 4096)?;
        let step = number(&args.step_size, "step size", 0, MAX_NUMBER, size)?;
        let pattern = number(&args.pattern, "pattern byte", 0, 255, 0)?;
        let flush_interval = number(&args.flush_interval, "flush interval", 0, MAX_NUMBER, 0)?;
        if let Some(mode) = args.aio.as_deref().filter(|mode| !["threads", "native", "io_uring"].contains(mode)) {
            return Err(Failure::new(format!("Invalid aio option: {mode}")));
        }
        if !args.write && flush_interval > 0 {
            return Err(Failure::new("--flush-interval is only available in write tests"));
        }
        if flush_interval > 0 && flush_interval < depth {
            return Err(Failure::new("Flush interval can't be smaller than depth"));
        }
        Ok(Plan { count, depth, size, step, offset, pattern: args.write.then_some(pattern as u8), flush_interval })
    }

    /// Where a request begins. Those beyond the end start over.
    fn place(&self, index: u64, length: u64) -> u64 {
        match (self.offset as u128 + u128::from(index) * u128::from(self.step)).checked_rem(length.into()) {
            Some(place) if index > 0 => place as u64,
            _ => self.offset,
        }
    }

    fn send(&self, image: &dyn Node, length: u64) -> Result<(), Error> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from) as u64;
        let next = AtomicU64::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        on_workers(self.depth.min(cores) as usize, || {
            let mut buffer = Buffer::default();
            let bytes = buffer.first(self.size as usize);
            bytes.fill(self.pattern.unwrap_or(0));
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.count {
                    break;
                }
                if let Err(error) = self.request(image, index, length, bytes) {
                    next.store(self.count, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    break;
                }
            }
        });
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn request(&self, image: &dyn Node, index: u64, length: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let at = self.place(index, length);
        match self.pattern {
            None => block_on(image.read(at, buffer, ReadFlags::default()))?,
            Some(_) => block_on(image.write(at, buffer, WriteFlags::default()))?,
        }
        if self.flush_interval > 0 && (index + 1).is_multiple_of(self.flush_interval) {
            block_on(image.flush())?;
        }
        Ok(())
    }
}
