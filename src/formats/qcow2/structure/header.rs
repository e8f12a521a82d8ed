//! The header, its extensions, and the name of the backing file (QEMU docs/interop/qcow2, "Header", "Header extensions").

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::error::Result;
use crate::formats::qcow2::extension::{
    BACKING_FORMAT, BITMAPS, DATA_FILE, ENCRYPTION, Extensions, FEATURE_NAMES, RawBitmaps, RawEncryption, RawExtension,
};
use crate::formats::qcow2::header::{FeatureName, KNOWN_FEATURES, MAX_BACKING_NAME, RawHeader};
use crate::formats::qcow2::structure::{Branch, Tables};
use crate::node::Range;
use crate::structure::tree::{Bits, Child, blame, bytes_text, fields, read};
use crate::structure::{Part, PartKind, Place};
use crate::wire::{Field, on_disk};

/// Bytes of the name of a feature, with its kind and bit.
const FEATURE_BYTES: u64 = RawFeature::SIZE as u64;
/// Texts are shown up to this many bytes.
const MAX_TEXT: u64 = 4096;

on_disk! {
    /// An entry of the table of feature names.
    struct RawFeature: 48 bytes {
        kind: u8 = 0, "0: incompatible, 1: compatible, 2: autoclear.";
        bit: u8 = 1, "Bit number, from 0.";
        name: [46] = 2, "What to call the feature where it is not known.";
    }
}

/// An extension, as far as it is within the space for extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) kind: u32,
    /// As it is stored.
    len: u32,
    /// Bytes of data that are there.
    there: u64,
}

impl Found {
    fn data(self) -> u64 {
        self.at + RawExtension::SIZE as u64
    }

    /// Where the data is of a bitmaps extension.
    pub(super) fn bitmaps(self) -> Option<u64> {
        (self.kind == BITMAPS && self.there >= RawBitmaps::SIZE as u64).then_some(self.data())
    }

    /// Where the data is of a pointer to an encryption header.
    pub(super) fn encryption(self) -> Option<u64> {
        (self.kind == ENCRYPTION && self.there >= RawEncryption::SIZE as u64).then_some(self.data())
    }

    fn name(self) -> String {
        match self.kind {
            0 => "end of the extensions".into(),
            BACKING_FORMAT => "backing format".into(),
            FEATURE_NAMES => "feature name table".into(),
            BITMAPS => "bitmaps".into(),
            ENCRYPTION => "encryption header pointer".into(),
            DATA_FILE => "external data file name".into(),
            other => format!("unknown extension {other:#010x}"),
        }
    }

    fn doc(self) -> &'static str {
        match self.kind {
            0 => "Nothing is looked at behind it.",
            BACKING_FORMAT => "Which format the backing file has, so that it need not be guessed.",
            FEATURE_NAMES => "What to call features in messages of programs that do not know them.",
            BITMAPS => "Where the directory of bitmaps is. Believed only if the autoclear feature 'bitmaps' is set.",
            ENCRYPTION => "Where the header of the encryption is.",
            DATA_FILE => "The file that holds the guest data.",
            _ => "It may be ignored, and stays as it is.",
        }
    }
}

/// What a feature bit means (QEMU docs/interop/qcow2, "Header", bytes 72 to 95).
fn feature_doc(kind: u8, bit: u8) -> &'static str {
    match (kind, bit) {
        (0, 0) => {
            "The image was not closed properly: refcounts may be wrong and have to be counted again before writing."
        }
        (0, 1) => "Metadata was found to be wrong. The image is not to be written to before a repair.",
        (0, 2) => {
            "Guest data is in another file, and clusters of it are at the same places there or where L2 entries say."
        }
        (0, 3) => "Compressed clusters are compressed as compression_type says.",
        (0, 4) => "L2 entries have 16 bytes: each cluster has 32 subclusters that are allocated one by one.",
        (1, 0) => "Refcounts may be written late: the dirty bit says while they are wrong.",
        (2, 0) => {
            "The bitmaps extension is up to date. Programs that do not know bitmaps clear this bit when they write."
        }
        (2, 1) => "The external data file can be used by itself, as a raw disk.",
        (0, _) => "Not known here. Who does not know it must not open the image.",
        (1, _) => "Not known here. It may be ignored.",
        _ => "Not known here. Who does not know it clears the bit when writing.",
    }
}

impl Tables<'_> {
    pub(super) fn header_part(&self) -> Child<Branch> {
        let stored = self.raw.stored_bytes();
        let error = self.header.as_ref().err();
        let doc = "What kind of image it is, how large, and where its tables are.";
        let total = self.known_fields().len() as u64 + u64::from(stored > RawHeader::SIZE);
        Part::new(PartKind::Table, "header", Range::new(0, stored as u64), doc)
            .value(format!("version {}", self.raw.version))
            .problem(error.map(|error| error.problem().to_string()))
            .with(total, Branch::Header)
    }

    /// The fields that are known and that the header has.
    fn known_fields(&self) -> &'static [Field] {
        let stored = self.raw.stored_bytes();
        let known = RawHeader::FIELDS.iter().take_while(|field| field.offset + field.len <= stored).count();
        RawHeader::FIELDS.get(..known).unwrap_or_default()
    }

    pub(super) async fn header_fields(&self) -> Result<Vec<Child<Branch>>> {
        let stored = self.raw.stored_bytes();
        let mut parts: Vec<Part> = fields(self.known_fields(), &self.head, 0).collect();
        blame(&mut parts, self.header.as_ref().err());
        let names = self.feature_names().await?;
        if let Ok(header) = &self.header {
            blame(&mut parts, header.check_features(&names).err().as_ref());
        }
        let mut children: Vec<Child<Branch>> = Vec::new();
        for part in parts {
            let kind = match part.name.as_str() {
                "incompatible_features" => 0,
                "compatible_features" => 1,
                "autoclear_features" => 2,
                _ => {
                    let target = self.header_target(&part.name);
                    children.push(part.target(target).into());
                    continue;
                }
            };
            let total = self.features(kind, &names).len() as u64;
            children.push(part.with(total, Branch::Features(kind)));
        }
        if stored > RawHeader::SIZE {
            let rest = Range::new(RawHeader::SIZE as u64, (stored - RawHeader::SIZE) as u64);
            let doc = "Fields that are not known here. They may be ignored.";
            children.push(Part::new(PartKind::Data, "further fields", rest, doc).into());
        }
        Ok(children)
    }

    /// What a field of the header points to.
    fn header_target(&self, field: &str) -> Option<Place> {
        let raw = &self.raw;
        let (at, len) = match field {
            "backing_file_offset" => (raw.backing_file_offset, raw.backing_file_size.into()),
            "l1_table_offset" => (raw.l1_table_offset, u64::from(raw.l1_size) * 8),
            "refcount_table_offset" => {
                (raw.refcount_table_offset, u64::from(raw.refcount_table_clusters) << self.cluster.bits())
            }
            "snapshots_offset" if raw.nb_snapshots > 0 => (raw.snapshots_offset, self.cluster.size()),
            _ => return None,
        };
        self.place(at, len)
    }

    /// The bits of a field of features: those that are known, and those that are set.
    pub(super) fn features(&self, kind: u8, names: &[FeatureName]) -> Vec<Child<Branch>> {
        let (at, word) = match kind {
            0 => (72, self.raw.incompatible_features),
            1 => (80, self.raw.compatible_features),
            _ => (88, self.raw.autoclear_features),
        };
        let mut children = Vec::new();
        for bit in (0..64u8).rev() {
            let known = KNOWN_FEATURES.iter().find(|(other, number, _)| (*other, *number) == (kind, bit));
            let set = word >> bit & 1 == 1;
            if known.is_none() && !set {
                continue;
            }
            let name = known.map_or("", |(.., name)| name);
            let mut part = Bits::new(name, bit.into(), 1, feature_doc(kind, bit)).part(word, 8, at);
            if known.is_none() {
                let named = names.iter().find(|feature| (feature.kind, feature.bit) == (kind, bit));
                part.name = named.map_or_else(|| format!("bit {bit}"), |feature| feature.name.clone());
                let wrong = kind == 0;
                part = part.problem(wrong.then(|| "it has to be understood to open the image, and is not".to_string()));
            }
            children.push(part.into());
        }
        children
    }

    pub(super) async fn feature_names(&self) -> Result<Vec<FeatureName>> {
        let (start, _) = self.extension_space();
        let bytes = self.extension_bytes().await?;
        Ok(Extensions::parse(&bytes, start).map(|extensions| extensions.feature_names).unwrap_or_default())
    }

    /// Where extensions may be: between the header and the name of the backing file, in the first cluster.
    fn extension_space(&self) -> (u64, u64) {
        let start = self.raw.stored_bytes() as u64;
        let first = self.cluster.size().min(self.length);
        let end = match self.raw.backing_file_offset {
            0 => first,
            name => name.min(first),
        };
        (start, end)
    }

    async fn extension_bytes(&self) -> Result<Arc<[u8]>> {
        if let Some(known) = &*self.extensions.lock() {
            return Ok(known.clone());
        }
        let (start, end) = self.extension_space();
        let bytes: Arc<[u8]> = read(self.file, start, end.saturating_sub(start)).await?.into();
        *self.extensions.lock() = Some(bytes.clone());
        Ok(bytes)
    }

    /// The extensions up to the last one, and the end of what they take up.
    pub(super) async fn extensions(&self) -> Result<(Vec<Found>, u64)> {
        let (start, end) = self.extension_space();
        let bytes = self.extension_bytes().await?;
        let mut found = Vec::new();
        let mut at = start;
        while let Some(raw) = bytes.get((at - start) as usize..).and_then(RawExtension::parse) {
            let there = end.saturating_sub(at + RawExtension::SIZE as u64).min(raw.len.into());
            // What a list ends with has no data, whatever it says.
            let there = if raw.kind == 0 { 0 } else { there };
            found.push(Found { at, kind: raw.kind, len: raw.len, there });
            at += RawExtension::SIZE as u64 + there.next_multiple_of(8);
            if raw.kind == 0 || there < u64::from(raw.len) {
                break;
            }
        }
        Ok((found, at.min(end).max(start)))
    }

    pub(super) async fn extensions_part(&self) -> Result<Child<Branch>> {
        let (found, end) = self.extensions().await?;
        let (start, limit) = self.extension_space();
        let doc = "More about the image: each has a type and a length, and those of an unknown type may be ignored.";
        let wrong = found.iter().find_map(|one| self.extension_problem(*one));
        let none = (start > limit).then(|| "there is no space for them behind the header".to_string());
        let part = Part::new(PartKind::Table, "header extensions", Range::new(start, end.saturating_sub(start)), doc)
            .value(format!("{}", found.iter().filter(|one| one.kind != 0).count()))
            .problem(none)
            .problem(wrong);
        Ok(part.with(found.len() as u64, Branch::Extensions))
    }

    fn extension_problem(&self, found: Found) -> Option<String> {
        let expected: u64 = match found.kind {
            0 => return None,
            BITMAPS => RawBitmaps::SIZE as u64,
            ENCRYPTION => RawEncryption::SIZE as u64,
            _ => found.len.into(),
        };
        if found.there < u64::from(found.len) {
            return Some(format!("its data of {} bytes reaches beyond the space for extensions", found.len));
        }
        (expected != u64::from(found.len)).then(|| format!("its data has {} bytes, expected {expected}", found.len))
    }

    pub(super) async fn extension_parts(&self) -> Result<Vec<Child<Branch>>> {
        let mut children = Vec::new();
        for found in self.extensions().await?.0 {
            let len = RawExtension::SIZE as u64 + found.there.next_multiple_of(8);
            let total = self.extension(&found).await?.len() as u64;
            let part = Part::new(PartKind::Entry, found.name(), Range::new(found.at, len), found.doc());
            children.push(part.problem(self.extension_problem(found)).with(total, Branch::Extension(found)));
        }
        Ok(children)
    }

    pub(super) async fn extension(&self, found: &Found) -> Result<Vec<Child<Branch>>> {
        let data = Range::new(found.data(), found.there);
        let bytes = read(self.file, found.at, RawExtension::SIZE as u64 + found.there).await?;
        let mut children: Vec<Child<Branch>> =
            fields(RawExtension::FIELDS, &bytes, found.at).map(Child::from).collect();
        let bytes = bytes.get(RawExtension::SIZE..).unwrap_or_default();
        match found.kind {
            BACKING_FORMAT | DATA_FILE => children.push(text("name", data, bytes, found.doc()).into()),
            FEATURE_NAMES => {
                for (index, entry) in (0u64..).zip(bytes.chunks_exact(RawFeature::SIZE)) {
                    let at = data.start + index * FEATURE_BYTES;
                    children.push(feature(index, at, entry));
                }
            }
            BITMAPS => children.extend(self.pointer(RawBitmaps::FIELDS, bytes, data.start)),
            ENCRYPTION => children.extend(self.pointer(RawEncryption::FIELDS, bytes, data.start)),
            _ if data.len > 0 => children.push(Part::new(PartKind::Data, "data", data, found.doc()).into()),
            _ => {}
        }
        let padding = found.there.next_multiple_of(8) - found.there;
        if padding > 0 {
            let range = Range::new(data.end(), padding);
            children.push(Part::new(PartKind::Data, "padding", range, "Fills up to a multiple of 8 bytes.").into());
        }
        Ok(children)
    }

    /// The fields of an extension that says where something is.
    fn pointer(&self, all: &'static [Field], bytes: &[u8], at: u64) -> Vec<Child<Branch>> {
        let number = |start: usize| bytes.get(start..start + 8).map(BE::read_u64).unwrap_or(0);
        let parts = fields(all, bytes, at).map(|part| match part.name.as_str() {
            "bitmap_directory_offset" => part.target(self.place(number(16), number(8))),
            "offset" => part.target(self.place(number(0), number(8))),
            "reserved" => {
                let wrong = part.value.as_deref() != Some("0");
                part.problem(wrong.then(|| "it is reserved and should be zero".to_string()))
            }
            _ => part,
        });
        parts.map(Child::from).collect()
    }

    pub(super) async fn feature_name(&self, at: u64) -> Result<Vec<Child<Branch>>> {
        let bytes = read(self.file, at, FEATURE_BYTES).await?;
        Ok(fields(RawFeature::FIELDS, &bytes, at).map(Child::from).collect())
    }

    /// Says where the directory of bitmaps is, and how many there are.
    pub(super) async fn bitmaps_extension(&self, at: u64) -> Result<RawBitmaps> {
        let bytes = read(self.file, at, RawBitmaps::SIZE as u64).await?;
        Ok(RawBitmaps::parse(&bytes).unwrap_or_else(|| RawBitmaps::of(&[0; RawBitmaps::SIZE])))
    }

    /// Where the header of the encryption is.
    pub(super) async fn encryption_place(&self, at: u64) -> Result<Range> {
        let bytes = read(self.file, at, RawEncryption::SIZE as u64).await?;
        Ok(RawEncryption::parse(&bytes).map_or(Range::default(), |raw| Range::new(raw.offset, raw.length)))
    }

    pub(super) async fn backing_name(&self) -> Result<Part> {
        let at = self.raw.backing_file_offset;
        let len = u64::from(self.raw.backing_file_size);
        let bytes = read(self.file, at, len.min(MAX_TEXT)).await?;
        let limit = self.cluster.size().min(self.length);
        let long =
            (len > MAX_BACKING_NAME.into()).then(|| format!("it has {len} bytes, expected at most {MAX_BACKING_NAME}"));
        let beyond = (at.saturating_add(len) > limit)
            .then(|| format!("it ends at {:#x}, expected at most {limit:#x}", at.saturating_add(len)));
        let doc = "The image that shows where this one has nothing.";
        let part = text("backing file name", Range::new(at, len), &bytes, doc);
        Ok(part.problem(long).problem(beyond))
    }
}

fn feature(index: u64, at: u64, bytes: &[u8]) -> Child<Branch> {
    let name = bytes_text(bytes.get(2..).unwrap_or_default());
    let doc = "The name of a feature bit.";
    Part::new(PartKind::Entry, format!("name {index}"), Range::new(at, FEATURE_BYTES), doc)
        .value(name)
        .with(RawFeature::FIELDS.len() as u64, Branch::FeatureName(at))
}

/// A text of which `bytes` were read.
pub(super) fn text(name: &str, range: Range, bytes: &[u8], doc: &'static str) -> Part {
    let cut = (range.len as usize).min(MAX_TEXT as usize).min(bytes.len());
    let shown = bytes.get(..cut).unwrap_or_default();
    Part::new(PartKind::Text, name, range, doc).value(String::from_utf8_lossy(shown).into_owned())
}
