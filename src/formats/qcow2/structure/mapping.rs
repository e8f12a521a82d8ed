//! L1 and L2 tables (QEMU docs/interop/qcow2, "Cluster mapping").

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::Result;
use crate::formats::qcow2::structure::{Branch, L1, Tables};
use crate::formats::qcow2::table::{COPIED, L2Entry, Mapping, OFFSET_MASK, SUBCLUSTERS, ZERO, compressed, word};
use crate::node::{Range, Role};
use crate::structure::tree::{Bits, Child, Listing, Page, read};
use crate::structure::{Part, PartKind, Place};

const COPIED_BIT: Bits =
    Bits::new("copied", 63, 1, "Set if the refcount is exactly one, so that it may be written in place.");
const L1_HIGH: Bits = Bits::new("reserved", 56, 7, "Reserved; zero.");
const L1_OFFSET: Bits = Bits::new("offset", 9, 47, "Offset of the L2 table; 0: nothing of this range is allocated.");
const L1_LOW: Bits = Bits::new("reserved", 0, 9, "Reserved; zero.");
const COMPRESSED_BIT: Bits = Bits::new("compressed", 62, 1, "Set if the cluster is stored compressed.");
const L2_HIGH: Bits = Bits::new("reserved", 56, 6, "Reserved; zero.");
const L2_OFFSET: Bits =
    Bits::new("offset", 9, 47, "Offset of the cluster; 0: it has none (but see 'copied' with an external data file).");
const L2_LOW: Bits = Bits::new("reserved", 1, 8, "Reserved; zero.");
const ZERO_BIT: Bits = Bits::new("zero", 0, 1, "Set if the cluster reads as zeroes, whether or not it has space.");
const EXTENDED_LOW: Bits = Bits::new("reserved", 0, 9, "Reserved; zero.");
const ALLOCATED: Bits = Bits::new("allocated", 0, 32, "A bit for each subcluster: set if its data is in the cluster.");
const ZEROES: Bits = Bits::new("zeroes", 32, 32, "A bit for each subcluster: set if it reads as zeroes.");

/// What an entry means.
struct Meaning {
    value: String,
    problem: Option<String>,
    target: Option<Place>,
}

impl Tables<'_> {
    fn l2_entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Guest bytes of an L2 table.
    pub(super) fn l2_coverage(&self) -> u64 {
        self.cluster.size() / self.l2_entry_bytes() * self.cluster.size()
    }

    pub(super) fn l1_part(&self, name: &str, l1: L1) -> Child<Branch> {
        let doc = "Where the L2 tables are, each of which maps a large range of the disk.";
        let mut child = self.table(name, (l1.at, l1.entries, 8), doc, Branch::L1(l1));
        child.part.guest = Some(Range::new(0, l1.size));
        child
    }

    /// The guest range of an L1 entry: that of the disk, or behind it that of the state of a machine.
    fn l1_guest(&self, l1: L1, index: u64) -> Option<Range> {
        let start = index.checked_mul(self.l2_coverage())?;
        let left = l1.size.checked_sub(start).filter(|left| *left > 0);
        Some(Range::new(start, left.unwrap_or(u64::MAX).min(self.l2_coverage())))
    }

    pub(super) async fn l1_table(&self, l1: L1, page: Page) -> Result<Listing<Branch>> {
        let part = |index, at, entry: &[u8]| {
            let entry = word(entry, 0).unwrap_or(0);
            let table = entry & OFFSET_MASK;
            let value = match table {
                0 => "nothing allocated".to_string(),
                _ => format!("L2 table at {table:#x}"),
            };
            let reserved = (entry & !(OFFSET_MASK | COPIED) != 0).then(|| "reserved bits are set".to_string());
            let flagged = (entry == COPIED).then(|| "the copied bit is set, but there is no table".to_string());
            let doc = "Where an L2 table is.";
            Part::new(PartKind::Entry, format!("entry {index}"), Range::new(at, 8), doc)
                .value(value)
                .problem(reserved)
                .problem(flagged)
                .problem(self.cluster_problem(table))
                .target(self.place(table, self.cluster.size()))
                .guest(self.l1_guest(l1, index))
                .with(4 + u64::from(table != 0), Branch::L1Entry { l1, index })
        };
        self.entries((l1.at, l1.entries, 8), page, part).await
    }

    pub(super) async fn l1_entry(&self, l1: L1, index: u64) -> Result<Vec<Child<Branch>>> {
        let at = l1.at.saturating_add(index * 8);
        let entry = word(&read(self.file, at, 8).await?, 0).unwrap_or(0);
        let table = entry & OFFSET_MASK;
        let offset = L1_OFFSET.part(entry, 8, at).value(format!("{table:#x}"));
        let mut children: Vec<Child<Branch>> = Vec::from([
            COPIED_BIT.part(entry, 8, at).into(),
            L1_HIGH.reserved(entry, 8, at).into(),
            offset.target(self.place(table, self.cluster.size())).into(),
            L1_LOW.reserved(entry, 8, at).into(),
        ]);
        if table != 0 {
            let guest = self.l1_guest(l1, index);
            let branch = Branch::L2 { at: table, guest: guest.map(|guest| guest.start) };
            let doc = "What is where in a range of the disk, cluster by cluster.";
            let entries = self.cluster.size() / self.l2_entry_bytes();
            let mut child = self.table("L2 table", (table, entries, self.l2_entry_bytes()), doc, branch);
            child.part.guest = guest;
            children.push(child);
        }
        Ok(children)
    }

    pub(super) async fn l2_table(&self, at: u64, guest: Option<u64>, page: Page) -> Result<Listing<Branch>> {
        let width = self.l2_entry_bytes();
        let part = |index: u64, at, entry: &[u8]| {
            let entry = L2Entry::read(entry, 0, self.extended).unwrap_or_default();
            let start = guest.and_then(|guest| guest.checked_add(index << self.cluster.bits()));
            let Meaning { value, problem, target } = self.meaning(entry);
            let doc = "Where a cluster of the disk is.";
            Part::new(PartKind::Entry, format!("entry {index}"), Range::new(at, width), doc)
                .value(value)
                .problem(problem)
                .target(target)
                .guest(start.map(|start| Range::new(start, self.cluster.size())))
                .with(self.l2_entry_parts(entry), Branch::L2Entry { at, guest: start, entry })
        };
        self.entries((at, self.cluster.size() / width, width), page, part).await
    }

    /// A range of the file with guest data, if it is there.
    fn data_place(&self, at: u64, len: u64) -> Option<Place> {
        if !self.external {
            return self.place(at, len);
        }
        let length = self.data_file.map_or(u64::MAX, |file| file.info().length);
        let range = Range::new(at, len.min(length.saturating_sub(at)));
        (range.len > 0).then_some(Place { role: Role::DataFile, range })
    }

    fn data_problem(&self, at: u64) -> Option<String> {
        if !self.cluster.is_aligned(at) {
            return Some(format!("{at:#x} is not a multiple of the cluster size, {:#x}", self.cluster.size()));
        }
        let length = match (self.external, self.data_file) {
            (false, _) => self.length,
            (true, Some(file)) => file.info().length,
            (true, None) => return None,
        };
        (at >= length).then(|| format!("{at:#x} is beyond the end of the file at {length:#x}"))
    }

    fn meaning(&self, entry: L2Entry) -> Meaning {
        let size = self.cluster.size();
        if entry.is_compressed() {
            let (at, stored) = compressed(entry.word, self.cluster);
            let wrong = if self.external {
                Some("compressed clusters cannot be in an external data file")
            } else if entry.is_copied() {
                Some("the copied bit must not be set for a compressed cluster")
            } else if entry.bitmap != 0 {
                Some("a compressed cluster has no subclusters")
            } else {
                None
            };
            let beyond = (at.saturating_add(1) > self.length)
                .then(|| format!("{at:#x} is beyond the end of the file at {:#x}", self.length));
            return Meaning {
                value: format!("compressed, at most {stored} bytes at {at:#x}"),
                problem: wrong.map(ToString::to_string).or(beyond),
                target: self.place(at, stored.into()),
            };
        }
        let host = entry.host(self.external);
        let reserved = if self.extended { EXTENDED_LOW.mask() } else { L2_LOW.mask() } | L2_HIGH.mask();
        let mut problem = (entry.word & reserved != 0).then(|| "reserved bits are set".to_string());
        let mut value = match entry.mapping(self.cluster, self.external) {
            Mapping::Zero { host: None } => "zeroes".to_string(),
            Mapping::Zero { host: Some(at) } => format!("zeroes, with space at {at:#x}"),
            Mapping::Data { host } => format!("data at {host:#x}"),
            _ => "not allocated".to_string(),
        };
        if self.extended {
            let count = |state: &dyn Fn(Option<Mapping>) -> bool| {
                (0..SUBCLUSTERS as u32)
                    .filter(|index| state(entry.sub_mapping(*index, self.cluster, self.external)))
                    .count()
            };
            let data = count(&|state| matches!(state, Some(Mapping::Data { .. })));
            let zeroes = count(&|state| matches!(state, Some(Mapping::Zero { .. })));
            if count(&|state| state.is_none()) > 0 {
                problem = problem.or_else(|| Some("the subcluster bits contradict each other".into()));
            }
            value = match host {
                Some(host) => format!("cluster at {host:#x}: {data} of 32 subclusters with data, {zeroes} with zeroes"),
                None if zeroes > 0 => format!("{zeroes} of 32 subclusters with zeroes"),
                None => "not allocated".to_string(),
            };
        } else if entry.word & ZERO != 0 && self.raw.version < 3 {
            problem = problem.or_else(|| Some("version 2 has no zero clusters".into()));
        }
        let problem = problem.or_else(|| host.and_then(|host| self.data_problem(host)));
        Meaning { value, problem, target: host.and_then(|host| self.data_place(host, size)) }
    }

    /// How many parts an entry has.
    fn l2_entry_parts(&self, entry: L2Entry) -> u64 {
        match (entry.is_compressed(), self.extended) {
            (true, false) => 4,
            (true, true) => 7,
            (false, false) => 6,
            (false, true) => 8,
        }
    }

    pub(super) fn l2_entry(&self, at: u64, guest: Option<u64>, entry: L2Entry) -> Vec<Child<Branch>> {
        let number = entry.word;
        let mut children: Vec<Child<Branch>> =
            Vec::from([COPIED_BIT.part(number, 8, at).into(), COMPRESSED_BIT.part(number, 8, at).into()]);
        if entry.is_compressed() {
            let low = 62 - (self.cluster.bits() - 8);
            let sectors = Bits::new(
                "sectors",
                low,
                62 - low,
                "How many sectors of 512 bytes it reaches into, besides the first.",
            );
            let offset = Bits::new("offset", 0, low, "Offset of the compressed data; not aligned.");
            let (host, stored) = compressed(number, self.cluster);
            let place = offset.part(number, 8, at).value(format!("{host:#x}")).target(self.place(host, stored.into()));
            children.extend([sectors.part(number, 8, at).into(), place.into()]);
        } else {
            let place = L2_OFFSET.part(number, 8, at).value(format!("{:#x}", number & OFFSET_MASK));
            let target = entry.host(self.external).and_then(|host| self.data_place(host, self.cluster.size()));
            children.extend([L2_HIGH.reserved(number, 8, at).into(), place.target(target).into()]);
            if self.extended {
                children.push(EXTENDED_LOW.reserved(number, 8, at).into());
            } else {
                children.extend([L2_LOW.reserved(number, 8, at).into(), ZERO_BIT.part(number, 8, at).into()]);
            }
        }
        if self.extended {
            let at = at.saturating_add(8);
            let doc = "The subclusters of the cluster, one by one.";
            let bits = [ZEROES, ALLOCATED].map(|bits| bits.part(entry.bitmap, 8, at));
            children.extend(bits.into_iter().map(Child::from));
            let part = Part::new(PartKind::Table, "subclusters", Range::new(at, 8), doc);
            children.push(part.with(SUBCLUSTERS, Branch::Subclusters { at, guest, entry }));
        }
        children
    }

    pub(super) fn subclusters(&self, at: u64, guest: Option<u64>, entry: L2Entry) -> Vec<Child<Branch>> {
        let size = self.cluster.size() / SUBCLUSTERS;
        let one = |index: u32| {
            let start = u64::from(index) * size;
            let mapping = entry.sub_mapping(index, self.cluster, self.external);
            let (value, host) = match mapping {
                None => ("contradictory", None),
                Some(Mapping::Data { host }) => ("data", Some(host)),
                Some(Mapping::Zero { .. }) => ("zeroes", None),
                Some(Mapping::Unallocated { .. }) => ("not allocated", None),
                Some(Mapping::Compressed { .. }) => ("part of a compressed cluster", None),
            };
            let doc = "A 32nd of the cluster.";
            Part::new(PartKind::Entry, format!("subcluster {index}"), Range::new(at, 8), doc)
                .value(value)
                .problem(
                    mapping.is_none().then(|| "its two bits contradict each other, or it has no cluster".to_string()),
                )
                .target(host.and_then(|host| self.data_place(host.saturating_add(start), size)))
                .guest(guest.and_then(|guest| guest.checked_add(start)).map(|start| Range::new(start, size)))
                .into()
        };
        (0..SUBCLUSTERS as u32).map(one).collect()
    }
}
