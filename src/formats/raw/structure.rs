//! A raw image has no structure: all of it is data.

use crate::error::Result;
use crate::node::Range;
use crate::op::BoxFuture;
use crate::structure::tree::{Listing, Page, Tree, walk};
use crate::structure::{Part, PartKind, Parts, StructureContext};

pub(super) fn structure(context: StructureContext<'_>) -> BoxFuture<'_, Result<Parts>> {
    let whole = Range::new(0, context.file.info().length);
    alloc::boxed::Box::pin(async move { parts(whole, context).await })
}

/// The one part of a disk that is a window of the file.
pub(super) async fn parts(window: Range, context: StructureContext<'_>) -> Result<Parts> {
    walk(&Disk { window }, (), context.path, Page { from: context.from, count: context.count }).await
}

struct Disk {
    window: Range,
}

impl Tree for Disk {
    type Branch = ();

    async fn list(&self, _: &(), page: Page) -> Result<Listing<()>> {
        let data =
            Part::new(PartKind::Data, "data", self.window, "The disk as it is: byte for byte what a guest sees.")
                .guest(Some(Range::new(0, self.window.len)));
        Ok(Listing::page(alloc::vec![data.into()], page))
    }
}
