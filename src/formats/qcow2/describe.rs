//! What can be said about a qcow2 image without reading guest data.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::describe::{Bitmap, Details, Feature, HeaderField, NamedFile, Value};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::bitmap::StoredBitmap;
use crate::formats::qcow2::header::{
    COMPATIBLE_LAZY_REFCOUNTS, Compression, Encryption, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, KNOWN_FEATURES,
    RawHeader,
};

impl Qcow2 {
    pub(super) fn details(&self) -> Details {
        let now = self.geometry();
        Details {
            virtual_size: self.geometry().size,
            cluster_size: Some(self.header.cluster.size()),
            encryption: match self.header.encryption {
                Encryption::None => None,
                Encryption::Aes => Some("aes"),
                Encryption::Luks => Some("luks"),
            },
            dirty: now.incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: now.incompatible & INCOMPATIBLE_CORRUPT != 0,
            backing: self
                .backing_name
                .as_ref()
                .map(|name| NamedFile { name: name.clone(), format: self.extensions.backing_format.clone() }),
            data_file: self.header.has_data_file().then(|| NamedFile {
                name: self.extensions.data_file.clone().unwrap_or_default(),
                format: Some("raw".to_string()),
            }),
            snapshots: self.directory.lock().snapshots.iter().map(|snapshot| snapshot.about.clone()).collect(),
            bitmaps: self.bitmap_list(),
            stale_bitmaps: self.has_stale_bitmaps(),
            features: self.features(),
            specific: self.specific(),
            header: self.fields(),
        }
    }

    fn bitmap_list(&self) -> Vec<Bitmap> {
        self.bitmaps.lock().list.iter().map(StoredBitmap::describe).collect()
    }

    /// Properties under QEMU's names, in the order in which it shows them.
    fn specific(&self) -> Vec<(&'static str, Value)> {
        let (now, version) = (self.geometry(), self.version());
        let compat = if version == 2 { "0.10" } else { "1.1" };
        let compression = match self.header.compression {
            Compression::Deflate => "zlib",
            Compression::Zstd => "zstd",
        };
        let mut values =
            vec![("compat", Value::Text(compat.into())), ("compression-type", Value::Text(compression.into()))];
        if version >= 3 {
            values.push(("lazy-refcounts", Value::Bool(now.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0)));
        }
        let bitmaps = self.bitmap_list();
        if !bitmaps.is_empty() {
            values.push(("bitmaps", Value::List(bitmaps.iter().map(bitmap_value).collect())));
        }
        values.push(("refcount-bits", Value::Number(1 << self.refcount_order())));
        if self.header.has_data_file() {
            if let Some(name) = &self.extensions.data_file {
                values.push(("data-file", Value::Text(name.clone())));
            }
            values.push(("data-file-raw", Value::Bool(self.is_data_file_raw())));
        }
        if !self.crypt.is_none() {
            values.push(("encrypt", Value::Object(self.crypt.describe())));
        }
        if version >= 3 {
            values.push(("corrupt", Value::Bool(now.incompatible & INCOMPATIBLE_CORRUPT != 0)));
            values.push(("extended-l2", Value::Bool(self.header.is_extended())));
        }
        values
    }

    fn features(&self) -> Vec<Feature> {
        let now = self.geometry();
        let kinds = [("incompatible", now.incompatible), ("compatible", now.compatible), ("autoclear", now.autoclear)];
        let mut features = Vec::new();
        for (number, (kind, bits)) in (0u8..).zip(kinds) {
            for bit in (0..64u8).filter(|bit| bits >> bit & 1 == 1) {
                let known = KNOWN_FEATURES.iter().find(|(kind, other, _)| (*kind, *other) == (number, bit));
                let named = self.extensions.feature_names.iter().find(|name| (name.kind, name.bit) == (number, bit));
                let name: String = match (known, named) {
                    (Some((_, _, name)), _) => (*name).into(),
                    (None, Some(name)) => name.name.clone(),
                    (None, None) => "unknown".into(),
                };
                features.push(Feature { kind, bit: bit.into(), name, known: known.is_some() });
            }
        }
        features
    }

    fn fields(&self) -> Vec<HeaderField> {
        let bytes = self.header.raw.emit();
        let stored = self.header.raw.stored_bytes();
        RawHeader::FIELDS
            .iter()
            .filter(|field| field.offset + field.len <= stored)
            .map(|field| HeaderField::of(field, &bytes))
            .collect()
    }
}

fn bitmap_value(bitmap: &Bitmap) -> Value {
    let mut flags = Vec::new();
    if bitmap.in_use {
        flags.push(Value::Text("in-use".into()));
    }
    if bitmap.auto {
        flags.push(Value::Text("auto".into()));
    }
    Value::Object(vec![
        ("flags", Value::List(flags)),
        ("name", Value::Text(bitmap.name.clone())),
        ("granularity", Value::Number(bitmap.granularity)),
    ])
}
