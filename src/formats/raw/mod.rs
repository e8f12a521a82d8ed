//! raw: the disk as it is, or a window of a file.

#[cfg(feature = "structure")]
mod structure;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;

use crate::describe::Details;
use crate::drivers::{
    CreateContext, CreateOption, Driver, Evidence, MeasureContext, Measurement, OpenContext, OpenedFormat, Probe,
};
use crate::engine::{Format, InPlace};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, Role, State, Want, WriteFlags};
use crate::op::{BoxFuture, Op};
#[cfg(feature = "structure")]
use crate::structure::{Parts, Region, RegionKind, Regions, StructureContext};

/// The driver. It takes any file, so it must be probed last.
pub static DRIVER: Driver = Driver {
    name: "raw",
    probe,
    open,
    create: if cfg!(feature = "write") { Some(create) } else { None },
    create_options: &[CreateOption {
        name: "preallocation",
        kind: "str",
        help: "Preallocation mode (allowed values: off, falloc, full)",
    }],
    open_options: &["offset", "size"],
    measure: if cfg!(feature = "write") { Some(measure) } else { None },
    amend_options: &[],
    #[cfg(feature = "structure")]
    structure: Some(structure::structure),
    #[cfg(not(feature = "structure"))]
    structure: None,
};

fn probe(_: &Probe<'_>) -> Option<Evidence> {
    Some(Evidence { score: 1, text: "every file is a raw image".into() })
}

fn open(context: OpenContext<'_>) -> BoxFuture<'_, Result<OpenedFormat>> {
    Box::pin(async move {
        let window = Window::from_options(&context.options.driver_options, context.file.info().length)?;
        Ok(OpenedFormat { format: Box::new(Raw { file: context.file, window }), backing: None })
    })
}

fn create(context: CreateContext<'_>) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        let preallocation = match context.options.get("preallocation").map(String::as_str) {
            None | Some("off") => Preallocation::Off,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            Some("metadata") => return Err(Error::invalid("Unsupported preallocation mode: metadata")),
            Some(other) => return Err(Error::invalid(alloc::format!("invalid parameter value: {other}"))),
        };
        let size = context.size.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(context.size);
        context.file.resize(size, preallocation).await?;
        let held = context.file.info();
        if !held.zero_init {
            // What was there before must not be taken for a format.
            let head = [0; SECTOR_BYTES as usize];
            let len = head.len().min(usize::try_from(held.length).unwrap_or(head.len()));
            context.file.write(0, head.get(..len).unwrap_or_default(), WriteFlags::default()).await?;
        }
        context.file.flush().await
    })
}

fn measure(context: MeasureContext<'_>) -> BoxFuture<'_, Result<Measurement>> {
    Box::pin(async move {
        let size = context.size.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(context.size);
        Ok(Measurement { required: size, fully_allocated: size, bitmaps: None })
    })
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    offset: u64,
    /// `None`: to the end of the file.
    size: Option<u64>,
}

impl Window {
    fn from_options(options: &BTreeMap<String, String>, length: u64) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            options
                .get(name)
                .map(|text| {
                    crate::wire::parse_size(text).ok_or_else(|| {
                        Error::invalid(alloc::format!(
                            "Parameter '{name}' expects a non-negative number below 2^64, not '{text}'"
                        ))
                    })
                })
                .transpose()
        };
        let offset = number("offset")?.unwrap_or(0);
        let size = number("size")?;
        if offset > length {
            return Err(Error::invalid(alloc::format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({length})"
            )));
        }
        if let Some(size) = size {
            if size > length - offset {
                return Err(Error::invalid(alloc::format!(
                    "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the actual size of the \
                     containing file ({length})."
                )));
            }
            if !size.is_multiple_of(512) {
                return Err(Error::invalid("Specified size is not multiple of 512"));
            }
        }
        Ok(Window { offset, size })
    }
}

/// A disk has whole sectors. Where the file ends within one, the rest of it reads as zeroes.
const SECTOR_BYTES: u64 = 512;

struct Raw {
    file: Arc<dyn Node>,
    window: Window,
}

impl Raw {
    /// Bytes of the window that are in the file.
    fn stored(&self) -> u64 {
        let stored = self.file.info().length.saturating_sub(self.window.offset);
        self.window.size.map_or(stored, |size| size.min(stored))
    }

    fn length(&self) -> u64 {
        self.window.size.unwrap_or_else(|| {
            let stored = self.stored();
            stored.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(stored)
        })
    }

    fn shift(&self, range: Range) -> Range {
        Range::new(range.start + self.window.offset, range.len)
    }

    fn host(&self, range: Range) -> Host {
        Host { role: Role::File, at: range.start + self.window.offset }
    }
}

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo { length: self.length(), ..self.file.info() }
    }

    fn passes_through(&self) -> bool {
        self.window == Window { offset: 0, size: None }
    }

    fn child(&self, role: Role) -> Option<&Arc<dyn Node>> {
        (role == Role::File).then_some(&self.file)
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        let stored = self.stored();
        let (len, state) = match stored.checked_sub(range.start) {
            Some(left @ 1..) => (left.min(range.len), State::Data),
            // A file that has shrunk since it was opened is an error, and the file reports it.
            _ if self.window.size.is_some() => (range.len, State::Data),
            _ => (range.len, State::Zero),
        };
        Op::ok(Extent { len, state, host: Some(self.host(range)) })
    }

    fn in_place<'a>(&'a self, range: Range) -> Op<'a, InPlace> {
        Op::ok(InPlace { len: range.len, host: Some(self.host(range)) })
    }

    fn zero<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        self.file.write_zeroes(self.shift(range), flags)
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        self.file.discard(self.shift(range))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        self.file.flush()
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        if self.window.size.is_some() {
            return Op::err(Error::unsupported("Cannot resize fixed-size raw disks"));
        }
        match length.checked_add(self.window.offset) {
            Some(length) => self.file.resize(length, preallocation),
            None => Op::err(Error::new(ErrorKind::TooLarge, "Disk size too large for the chosen offset")),
        }
    }

    fn describe(&self) -> Result<Details> {
        Ok(Details { virtual_size: self.length(), ..Details::default() })
    }

    #[cfg(feature = "structure")]
    fn structure<'a>(&'a self, path: &'a [u64], from: u64, count: usize) -> Op<'a, Parts> {
        let window = Range::new(self.window.offset, self.stored());
        let context = StructureContext { file: &*self.file, data_file: None, header: None, path, from, count };
        Op::future(structure::parts(window, context))
    }

    #[cfg(feature = "structure")]
    fn regions<'a>(&'a self) -> Op<'a, Regions> {
        let (before, len) = (self.window.offset, self.stored());
        let behind = self.file.info().length.saturating_sub(before + len);
        Op::ok(Regions::new([
            Region { range: Range::new(0, before), kind: RegionKind::Free },
            Region { range: Range::new(before, len), kind: RegionKind::Data },
            Region { range: Range::new(before + len, behind), kind: RegionKind::Free },
        ]))
    }
}
