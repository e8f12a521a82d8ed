//! `on_disk!`: a fixed structure declared once gives parse, emit, a compile-time check of its layout, and its fields.

use alloc::format;
use alloc::string::String;

/// How the bytes of a field are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// An unsigned big-endian number of the field's size.
    BigEndian,
    /// Bytes without a number.
    Bytes,
}

/// A field of a fixed structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The specification's name.
    pub name: &'static str,
    /// Byte offset in the structure.
    pub offset: usize,
    /// Size in bytes.
    pub len: usize,
    /// How the bytes are read.
    pub kind: FieldKind,
    /// What it means.
    pub doc: &'static str,
}

/// The value of a numeric field within the bytes of its structure.
pub fn field_number(field: &Field, bytes: &[u8]) -> Option<u64> {
    let part = bytes.get(field.offset..field.offset + field.len)?;
    match field.kind {
        FieldKind::BigEndian => Some(part.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))),
        FieldKind::Bytes => None,
    }
}

/// The value of a field for a person.
pub fn field_text(field: &Field, bytes: &[u8]) -> String {
    match (field_number(field, bytes), bytes.get(field.offset..field.offset + field.len)) {
        (Some(number), _) if number < 10 => format!("{number}"),
        (Some(number), _) => format!("{number} ({number:#x})"),
        (None, Some(part)) => part.iter().map(|byte| format!("{byte:02x}")).collect(),
        (None, None) => String::from("beyond the end of the file"),
    }
}

/// Declares a fixed big-endian structure: `name: type = offset, "doc"`, in order and without gaps.
///
/// Types are `u8`, `u16`, `u32`, `u64` and `[u8; N]`. The result has `SIZE`, `FIELDS`, `parse` and `emit`; `emit` is the
/// exact inverse of `parse`.
macro_rules! on_disk {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident: $size:literal bytes {
            $( $field:ident: $type:tt = $offset:literal, $doc:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(unreachable_pub)]
        $vis struct $name {
            $( #[doc = $doc] pub $field: $crate::wire::on_disk!(@type $type), )*
        }

        #[allow(unreachable_pub, dead_code)]
        impl $name {
            /// Size in bytes.
            pub const SIZE: usize = $size;

            /// Every field in order, with its place.
            pub const FIELDS: &'static [$crate::wire::Field] = &[
                $( $crate::wire::Field {
                    name: stringify!($field),
                    offset: $offset,
                    len: core::mem::size_of::<$crate::wire::on_disk!(@type $type)>(),
                    kind: $crate::wire::on_disk!(@kind $type),
                    doc: $doc,
                }, )*
            ];

            const LAYOUT: () = {
                let mut end = 0;
                let mut index = 0;
                while index < Self::FIELDS.len() {
                    assert!(Self::FIELDS[index].offset == end, "gap or overlap between on-disk fields");
                    end += Self::FIELDS[index].len;
                    index += 1;
                }
                assert!(end == $size, "on-disk fields do not add up to the declared size");
            };

            /// Reads the structure from the start of `bytes`; `None` if they are too few.
            pub fn parse(bytes: &[u8]) -> Option<Self> {
                Some(Self::of(bytes.get(..$size)?.try_into().ok()?))
            }

            /// Reads the structure.
            pub fn of(bytes: &[u8; $size]) -> Self {
                let () = Self::LAYOUT;
                $name { $( $field: $crate::wire::on_disk!(@get $type, bytes, $offset), )* }
            }

            /// Writes the structure.
            pub fn emit(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $( $crate::wire::on_disk!(@put $type, bytes, $offset, self.$field); )*
                bytes
            }
        }
    };
    (@type [$n:literal]) => { [u8; $n] };
    (@type $t:ident) => { $t };
    (@kind [$n:literal]) => { $crate::wire::FieldKind::Bytes };
    (@kind $t:ident) => { $crate::wire::FieldKind::BigEndian };
    (@get u8, $b:ident, $o:literal) => { $b[$o] };
    (@get u16, $b:ident, $o:literal) => { <byteorder::BE as byteorder::ByteOrder>::read_u16(&$b[$o..]) };
    (@get u32, $b:ident, $o:literal) => { <byteorder::BE as byteorder::ByteOrder>::read_u32(&$b[$o..]) };
    (@get u64, $b:ident, $o:literal) => { <byteorder::BE as byteorder::ByteOrder>::read_u64(&$b[$o..]) };
    (@get [$n:literal], $b:ident, $o:literal) => {{
        let mut part = [0u8; $n];
        part.copy_from_slice(&$b[$o..$o + $n]);
        part
    }};
    (@put u8, $b:ident, $o:literal, $v:expr) => { $b[$o] = $v };
    (@put u16, $b:ident, $o:literal, $v:expr) => { <byteorder::BE as byteorder::ByteOrder>::write_u16(&mut $b[$o..], $v) };
    (@put u32, $b:ident, $o:literal, $v:expr) => { <byteorder::BE as byteorder::ByteOrder>::write_u32(&mut $b[$o..], $v) };
    (@put u64, $b:ident, $o:literal, $v:expr) => { <byteorder::BE as byteorder::ByteOrder>::write_u64(&mut $b[$o..], $v) };
    (@put [$n:literal], $b:ident, $o:literal, $v:expr) => { $b[$o..$o + $n].copy_from_slice(&$v) };
}

pub(crate) use on_disk;
