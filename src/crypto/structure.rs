//! A LUKS header taken apart (LUKS On-Disk Format Specification 1.2.3, "PHDR layout" and "key slots").

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::crypto::header::{Header, Place, RawHeader, RawSlot, SLOTS, STRIPES};
use crate::error::Error;
use crate::node::{Range, Role};
use crate::structure::tree::{Child, blame, fields};
use crate::structure::{Part, PartKind};

/// What leads to parts of a header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Branch {
    /// Header, key slots.
    Volume,
    Header,
    Slots,
    Slot(usize),
}

/// A header as it is stored.
pub(crate) struct Volume<'a> {
    /// What is there of it.
    pub(crate) bytes: &'a [u8],
    pub(crate) place: Place,
    /// The file that it is in.
    pub(crate) role: Role,
}

impl Volume<'_> {
    /// The fixed fields, if they are all there.
    pub(crate) fn raw(&self) -> Option<RawHeader> {
        RawHeader::parse(self.bytes)
    }

    /// What a parser says of the header.
    pub(crate) fn error(&self) -> Option<Error> {
        Header::parse(self.bytes, self.place).err()
    }

    /// The parts of a part.
    pub(crate) fn list(&self, branch: Branch) -> Vec<Child<Branch>> {
        let mut children = match branch {
            Branch::Volume => self.volume(),
            Branch::Header => self.parts(RawHeader::FIELDS, 0).into_iter().map(Child::from).collect(),
            Branch::Slots => (0..SLOTS).filter_map(|index| self.slot(index)).collect(),
            Branch::Slot(index) => self.slot_parts(index),
        };
        for child in &mut children {
            child.part.place.role = self.role;
        }
        children
    }

    fn parts(&self, all: &'static [crate::wire::Field], start: usize) -> Vec<Part> {
        let bytes = self.bytes.get(start..).unwrap_or_default();
        let mut parts: Vec<Part> = fields(all, bytes, self.place.at.saturating_add(start as u64)).collect();
        blame(&mut parts, self.error().as_ref());
        parts
    }

    fn volume(&self) -> Vec<Child<Branch>> {
        let at = self.place.at;
        let header = Part::new(
            PartKind::Table,
            "LUKS header",
            Range::new(at, RawHeader::SIZE as u64),
            "How the data is encrypted, and how to tell a right key.",
        )
        .problem(self.error().map(|error| error.problem().to_string()));
        let slots = Part::new(
            PartKind::Table,
            "key slots",
            Range::new(at.saturating_add(RawHeader::SIZE as u64), (SLOTS * RawSlot::SIZE) as u64),
            "Each slot in use has the key of the volume, encrypted with a key made of one passphrase.",
        );
        let stored = self.bytes.len().saturating_sub(RawHeader::SIZE) / RawSlot::SIZE;
        Vec::from([
            header.with(RawHeader::FIELDS.len() as u64, Branch::Header),
            slots.with(stored.min(SLOTS) as u64, Branch::Slots),
        ])
    }

    fn slot_start(index: usize) -> usize {
        RawHeader::SIZE + index * RawSlot::SIZE
    }

    fn raw_slot(&self, index: usize) -> Option<RawSlot> {
        RawSlot::parse(self.bytes.get(Self::slot_start(index)..)?)
    }

    fn slot(&self, index: usize) -> Option<Child<Branch>> {
        let raw = self.raw_slot(index)?;
        let start = Self::slot_start(index) as u64;
        let range = Range::new(self.place.at.saturating_add(start), RawSlot::SIZE as u64);
        let wrong =
            self.error().filter(|error| error.context().offset.is_some_and(|at| range.start <= at && at < range.end()));
        let part = Part::new(PartKind::Entry, format!("key slot {index}"), range, "One way to get at the key.")
            .value(if raw.is_active() { "in use" } else { "free" })
            .problem(wrong.map(|error| error.problem().to_string()));
        Some(part.with(RawSlot::FIELDS.len() as u64 + 1, Branch::Slot(index)))
    }

    fn slot_parts(&self, index: usize) -> Vec<Child<Branch>> {
        let mut children: Vec<Child<Branch>> =
            self.parts(RawSlot::FIELDS, Self::slot_start(index)).into_iter().map(Child::from).collect();
        if let (Some(slot), Some(header)) = (self.raw_slot(index), self.raw()) {
            let len = u64::from(header.key_bytes) * u64::from(STRIPES);
            let end = slot.material_offset().saturating_add(len);
            let material = Part::new(
                PartKind::Data,
                "key material",
                Range::new(self.place.at.saturating_add(slot.material_offset()), len),
                "The key of the volume, spread over stripes of which every bit is needed, and encrypted.",
            )
            .value(if slot.is_active() { "encrypted" } else { "of no use" })
            .problem((slot.is_active() && end > self.place.available).then(|| {
                format!("it ends {end} bytes behind the start of the header, where only {} are", self.place.available)
            }));
            children.push(material.into());
        }
        children
    }
}
