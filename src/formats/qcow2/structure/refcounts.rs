//! The refcount table and its blocks (QEMU docs/interop/qcow2, "Host cluster management").

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::error::Result;
use crate::formats::qcow2::structure::{Branch, Tables, counted};
use crate::formats::qcow2::table::{refcount, refcount_place, word};
use crate::node::{Range, Role};
use crate::structure::tree::{Bits, Child, Listing, Page, read};
use crate::structure::{BitRange, Part, PartKind, Place};

const OFFSET: Bits =
    Bits::new("offset", 9, 55, "Offset of the refcount block; 0: no cluster that it would describe is in use.");
const RESERVED: Bits = Bits::new("reserved", 0, 9, "Reserved; zero.");
/// The largest that the header allows.
const MAX_ORDER: u32 = 6;

impl Tables<'_> {
    fn refcount_entries(&self) -> u64 {
        (u64::from(self.raw.refcount_table_clusters) << self.cluster.bits()) / 8
    }

    /// Refcounts of a block; none if their width makes no sense.
    fn refcounts_per_block(&self) -> u64 {
        if self.raw.refcount_order > MAX_ORDER { 0 } else { (self.cluster.size() * 8) >> self.raw.refcount_order }
    }

    pub(super) fn refcount_table_part(&self) -> Child<Branch> {
        let place = (self.raw.refcount_table_offset, self.refcount_entries(), 8);
        let doc = "Where the blocks are that count the references to every cluster of the file.";
        let mut child = self.table("refcount table", place, doc, Branch::RefcountTable);
        child.part = child.part.problem((self.raw.refcount_table_clusters == 0).then(|| "there is none".to_string()));
        child
    }

    pub(super) async fn refcount_table(&self, page: Page) -> Result<Listing<Branch>> {
        let covered = self.refcounts_per_block() << self.cluster.bits();
        let part = |index, at, entry: &[u8]| {
            let entry = word(entry, 0).unwrap_or(0);
            let block = entry & OFFSET.mask();
            let value = match block {
                0 => "no block".to_string(),
                _ => {
                    format!("block at {block:#x}, for clusters from {:#x} on", u128::from(index) * u128::from(covered))
                }
            };
            let reserved = (entry & RESERVED.mask() != 0).then(|| "reserved bits are set".to_string());
            let doc = "Where a refcount block is.";
            Part::new(PartKind::Entry, format!("entry {index}"), Range::new(at, 8), doc)
                .value(value)
                .problem(reserved)
                .problem(self.cluster_problem(block))
                .target(self.place(block, self.cluster.size()))
                .with(2 + u64::from(block != 0), Branch::RefcountEntry(index))
        };
        self.entries((self.raw.refcount_table_offset, self.refcount_entries(), 8), page, part).await
    }

    pub(super) async fn refcount_entry(&self, index: u64) -> Result<Vec<Child<Branch>>> {
        let at = self.raw.refcount_table_offset.saturating_add(index * 8);
        let bytes = read(self.file, at, 8).await?;
        let entry = word(&bytes, 0).unwrap_or(0);
        let block = entry & OFFSET.mask();
        let offset = OFFSET.part(entry, 8, at).value(format!("{block:#x}"));
        let mut children: Vec<Child<Branch>> = Vec::from([
            offset.target(self.place(block, self.cluster.size())).into(),
            RESERVED.reserved(entry, 8, at).into(),
        ]);
        if block != 0 {
            let doc = "How often each of a run of clusters is referred to; 0: the cluster is free.";
            let part = Part::new(PartKind::Table, "refcount block", Range::new(block, self.cluster.size()), doc)
                .value(counted(self.refcounts_per_block(), "entry", "entries"))
                .problem(self.cluster_problem(block));
            children.push(part.with(self.refcounts_at(block), Branch::RefcountBlock { index, at: block }));
        }
        Ok(children)
    }

    /// Refcounts that are in the file of the block at `at`.
    fn refcounts_at(&self, at: u64) -> u64 {
        let there = self.length.saturating_sub(at).min(self.cluster.size());
        if self.raw.refcount_order > MAX_ORDER { 0 } else { (there * 8) >> self.raw.refcount_order }
    }

    pub(super) async fn refcount_block(&self, index: u64, at: u64, page: Page) -> Result<Listing<Branch>> {
        let order = self.raw.refcount_order;
        let total = self.refcounts_at(at);
        let wanted = page.of(total);
        let mut children = Vec::new();
        if !wanted.is_empty() {
            // Refcounts can be parts of bytes.
            let skipped = refcount_place(wanted.start, order).0 as u64;
            let (last, len) = refcount_place(wanted.end - 1, order);
            let bytes = read(self.file, at + skipped, last as u64 + len as u64 - skipped).await?;
            let first = (skipped * 8) >> order;
            for entry in wanted {
                let Some(count) = refcount(&bytes, entry - first, order) else { break };
                children.push(self.refcount_part(index, at, entry, count).into());
            }
        }
        Ok(Listing { total, children })
    }

    fn refcount_part(&self, index: u64, at: u64, entry: u64, count: u64) -> Part {
        let order = self.raw.refcount_order;
        let (start, len) = refcount_place(entry, order);
        let cluster = index.saturating_mul(self.refcounts_per_block()).saturating_add(entry);
        let host = cluster.checked_mul(self.cluster.size());
        let value = match count {
            0 => "0, free".to_string(),
            1 => "1".to_string(),
            more => format!("{more} references"),
        };
        let range = Range::new(at.saturating_add(start as u64), len as u64);
        let doc = "How often the cluster is referred to.";
        let part = Part::new(PartKind::Entry, format!("cluster {cluster}"), range, doc).value(value);
        let header = Place { role: Role::File, range: Range::new(0, self.cluster.size().min(self.length)) };
        let mut part = part.target(match host {
            Some(0) => Some(header),
            host => host.and_then(|host| self.place(host, self.cluster.size())),
        });
        if order < 3 {
            let bits = 1 << order;
            part.bits = Some(BitRange { low: (entry as u32 % (8 >> order)) << order, count: bits });
        }
        part
    }
}
