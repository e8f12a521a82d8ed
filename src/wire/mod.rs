//! Bytes on disk: header declarations with field reflection, and numbers in texts.

mod declare;
mod size;

pub use declare::{Field, FieldKind, field_number, field_text};
pub use size::parse_size;

pub(crate) use declare::on_disk;
