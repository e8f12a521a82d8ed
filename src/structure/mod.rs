//! An image taken apart for people: every table down to single fields and bits ([`Parts`]), and what is where in its file
//! ([`Regions`]).
//!
//! [`look`] reads the file itself, so it shows what is on disk, and works on files that are too broken to be opened. What
//! lies beyond the end of the file, or contradicts itself, is a part that says so. Nothing is read but what the page that
//! is asked for needs.

mod regions;
#[cfg(feature = "structure")]
#[cfg_attr(not(feature = "qcow2"), allow(dead_code, reason = "other formats have less to take apart"))]
pub(crate) mod tree;

use alloc::string::String;
use alloc::vec::Vec;

#[cfg(all(feature = "structure", feature = "qcow2"))]
pub(crate) use regions::Kinds;
pub use regions::{Region, RegionKind, Regions};

use crate::drivers::Driver;
use crate::error::{Error, Result};
use crate::node::{Node, Range, Role};
use crate::op::BoxFuture;

/// At most this many parts are given at once.
pub const MAX_PARTS: usize = 4096;

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartKind {
    /// A structure or a table.
    Table,
    /// An entry of a table.
    Entry,
    /// A field of a structure.
    Field,
    /// Some bits of a number.
    Bits,
    /// A text.
    Text,
    /// Bytes that have no structure here.
    Data,
}

impl PartKind {
    /// A stable name for programs, such as `table`.
    pub const fn name(self) -> &'static str {
        match self {
            PartKind::Table => "table",
            PartKind::Entry => "entry",
            PartKind::Field => "field",
            PartKind::Bits => "bits",
            PartKind::Text => "text",
            PartKind::Data => "data",
        }
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the image's files.
    pub role: Role,
    /// Where in it.
    pub range: Range,
}

/// Bits of a number, counted from its least significant one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// The lowest bit.
    pub low: u32,
    /// How many.
    pub count: u32,
}

/// A part of an image's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The specification's name where it has one.
    pub name: String,
    /// What it is.
    pub kind: PartKind,
    /// Where it is stored: for bits, the bytes that have them.
    pub place: Place,
    /// Which bits of their number, for bits.
    pub bits: Option<BitRange>,
    /// What stands there, for a person.
    pub value: Option<String>,
    /// What it means.
    pub doc: &'static str,
    /// What is plainly wrong with it.
    pub problem: Option<String>,
    /// How many parts it has.
    pub children: u64,
    /// What it points to, if that is there.
    pub target: Option<Place>,
    /// The range of the disk that it is about. It may lie beyond the end, where the state of a machine is stored.
    pub guest: Option<Range>,
}

/// A page of the parts of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// How many parts there are.
    pub total: u64,
    /// Those that were asked for, as far as there are any.
    pub parts: Vec<Part>,
}

/// What a driver gets to take an image apart.
#[derive(Clone, Copy)]
pub struct StructureContext<'a> {
    /// The file.
    pub file: &'a dyn Node,
    /// The external data file, if there is one and it is open.
    pub data_file: Option<&'a dyn Node>,
    /// The file with the header, if that is another one.
    pub header: Option<&'a dyn Node>,
    /// The part whose parts are wanted: the index of a part of the image, of a part of that, and so on.
    pub path: &'a [u64],
    /// The first part that is wanted.
    pub from: u64,
    /// How many are wanted; no more than [`MAX_PARTS`] are given.
    pub count: usize,
}

/// A function that takes an image apart.
pub type Structure = for<'a> fn(StructureContext<'a>) -> BoxFuture<'a, Result<Parts>>;

/// The parts of an image in a format, whether or not it can be opened. Needs the feature `structure`.
///
/// # Errors
/// There is nothing at the path, the format cannot be taken apart, or what reading gives.
pub async fn look(driver: &Driver, context: StructureContext<'_>) -> Result<Parts> {
    match driver.structure {
        Some(structure) => structure(context).await,
        None => Err(no_structure(driver.name)),
    }
}

/// Said of a format that cannot be taken apart.
pub(crate) fn no_structure(format: &str) -> Error {
    Error::unsupported(alloc::format!("the structure of the format '{format}' cannot be shown"))
}
