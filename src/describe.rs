//! What can be said about an image: [`Details`], and the [`Value`] tree of what only its format has.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{Field, field_number, field_text};

/// A value of a format-specific property. Names are those of QEMU's interface (`refcount-bits`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Several values.
    List(Vec<Value>),
    /// Named values, in the order to show them.
    Object(Vec<(&'static str, Value)>),
}

/// A file that an image names but that describing it does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// As the image spells it.
    pub name: String,
    /// The format that the image says it has.
    pub format: Option<String>,
}

/// An internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Identifier, usually a number.
    pub id: String,
    /// Name.
    pub name: String,
    /// Size of the saved machine state in bytes.
    pub vm_state_size: u64,
    /// When it was made: seconds since 1970.
    pub date_sec: u32,
    /// When it was made: nanoseconds of the second.
    pub date_nsec: u32,
    /// Run time of the machine in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instruction count of the machine, if it was recorded.
    pub icount: Option<u64>,
    /// Size of the disk in bytes when it was made.
    pub disk_size: u64,
}

/// Which internal snapshot is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChoice {
    /// The one with this identifier, or else the one with this name.
    IdOrName(String),
    /// The one with this identifier and this name, of which one may be left open.
    Exactly {
        /// Identifier.
        id: Option<String>,
        /// Name.
        name: Option<String>,
    },
}

impl SnapshotChoice {
    /// The index of the snapshot that is meant.
    pub fn find<'a>(&self, snapshots: impl IntoIterator<Item = &'a Snapshot> + Clone) -> Option<usize> {
        let find = |wanted: &dyn Fn(&Snapshot) -> bool| snapshots.clone().into_iter().position(wanted);
        match self {
            SnapshotChoice::IdOrName(text) => {
                find(&|snapshot| snapshot.id == *text).or_else(|| find(&|snapshot| snapshot.name == *text))
            }
            SnapshotChoice::Exactly { id: None, name: None } => None,
            SnapshotChoice::Exactly { id, name } => find(&|snapshot| {
                id.as_ref().is_none_or(|id| *id == snapshot.id)
                    && name.as_ref().is_none_or(|name| *name == snapshot.name)
            }),
        }
    }
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Name.
    pub name: String,
    /// Bytes per bit.
    pub granularity: u64,
    /// Whether it was not written back by its last user.
    pub in_use: bool,
    /// Whether it is enabled when the image is opened.
    pub auto: bool,
}

/// A field of a header with its place and value, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderField {
    /// The specification's name.
    pub name: &'static str,
    /// Byte offset in the file.
    pub offset: u64,
    /// Size in bytes.
    pub len: u64,
    /// The value as a number, if it is one.
    pub number: Option<u64>,
    /// The value for a person.
    pub text: String,
    /// What the field means.
    pub doc: &'static str,
}

impl HeaderField {
    /// A declared field, with its value in the bytes of the header.
    pub(crate) fn of(field: &Field, bytes: &[u8]) -> Self {
        HeaderField {
            name: field.name,
            offset: field.offset as u64,
            len: field.len as u64,
            number: field_number(field, bytes),
            text: field_text(field, bytes),
            doc: field.doc,
        }
    }
}

/// A feature bit that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// `incompatible`, `compatible` or `autoclear`.
    pub kind: &'static str,
    /// Bit number.
    pub bit: u32,
    /// Its name, from the specification or from the image's own table.
    pub name: String,
    /// Whether this program knows it.
    pub known: bool,
}

/// What can be said about an image without reading guest data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Allocation unit in bytes.
    pub cluster_size: Option<u64>,
    /// Encryption method, if encrypted.
    pub encryption: Option<&'static str>,
    /// Whether the image says it was not closed cleanly.
    pub dirty: bool,
    /// Whether the image says it is corrupt.
    pub corrupt: bool,
    /// The image that unallocated ranges are read from.
    pub backing: Option<NamedFile>,
    /// The file that holds the guest data.
    pub data_file: Option<NamedFile>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Persistent bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// Whether there were bitmaps until somebody wrote to the image who does not know them.
    pub stale_bitmaps: bool,
    /// Feature bits that are set.
    pub features: Vec<Feature>,
    /// What only this format has, under QEMU's names and in its order.
    pub specific: Vec<(&'static str, Value)>,
    /// The header, field by field.
    pub header: Vec<HeaderField>,
}
