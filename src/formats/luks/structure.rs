//! A volume taken apart: its header, and its data.

use crate::crypto::SECTOR_BYTES;
use crate::crypto::header::{HEADER_BYTES, Place};
use crate::crypto::structure::{Branch, Volume};
use crate::error::Result;
use crate::node::{Range, Role};
use crate::op::BoxFuture;
use crate::structure::tree::{Child, Listing, Page, Tree, read, walk};
use crate::structure::{Part, PartKind, Parts, StructureContext};

pub(super) fn structure(context: StructureContext<'_>) -> BoxFuture<'_, Result<Parts>> {
    alloc::boxed::Box::pin(async move {
        let holder = context.header.unwrap_or(context.file);
        let bytes = read(holder, 0, HEADER_BYTES as u64).await?;
        let detached = context.header.is_some();
        let place = Place { at: 0, available: holder.info().length, detached };
        let role = if detached { Role::Header } else { Role::File };
        let volume = Volume { bytes: &bytes, place, role };
        let disk = Disk { volume, length: context.file.info().length };
        walk(&disk, Branch::Volume, context.path, Page { from: context.from, count: context.count }).await
    })
}

struct Disk<'a> {
    volume: Volume<'a>,
    /// Length of the file with the data.
    length: u64,
}

impl Tree for Disk<'_> {
    type Branch = Branch;

    async fn list(&self, branch: &Branch, page: Page) -> Result<Listing<Branch>> {
        let mut children = self.volume.list(*branch);
        if let (Branch::Volume, Some(raw)) = (branch, self.volume.raw()) {
            children.push(self.data(u64::from(raw.payload_offset) * SECTOR_BYTES));
        }
        Ok(Listing::page(children, page))
    }
}

impl Disk<'_> {
    fn data(&self, start: u64) -> Child<Branch> {
        let len = self.length.saturating_sub(start);
        let beyond = (start > self.length)
            .then(|| alloc::format!("it begins at {start:#x}, beyond the end of the file at {:#x}", self.length));
        Part::new(PartKind::Data, "data", Range::new(start, len), "The disk, encrypted sector by sector.")
            .value("encrypted")
            .problem(beyond)
            .guest(Some(Range::new(0, len)))
            .into()
    }
}
