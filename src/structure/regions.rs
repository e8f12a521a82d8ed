//! What is where in a file.

use alloc::vec::Vec;

use crate::node::Range;

#[cfg(all(feature = "structure", feature = "qcow2"))]
pub(crate) use kinds::Kinds;

/// What a stretch of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum RegionKind {
    /// Nothing refers to it, and it is marked as free.
    Free,
    /// Nothing refers to it, but it is marked as used.
    Leaked,
    /// It is marked as used, and what may refer to it cannot be read.
    Unknown,
    /// Things of different kinds refer to it: at least one of them is wrong.
    Contested,
    /// The header of the image.
    Header,
    /// An L1 table, of the disk or of a snapshot.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The table of snapshots.
    SnapshotTable,
    /// The directory of bitmaps.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
    /// Bits of a bitmap.
    BitmapData,
    /// The header and the keys of the encryption.
    Encryption,
    /// Guest data.
    Data,
    /// Guest data, compressed.
    Compressed,
    /// Guest data that only snapshots have.
    SnapshotData,
}

impl RegionKind {
    /// Every kind; the position of each is its number.
    pub const ALL: [RegionKind; 17] = [
        RegionKind::Free,
        RegionKind::Leaked,
        RegionKind::Unknown,
        RegionKind::Contested,
        RegionKind::Header,
        RegionKind::L1Table,
        RegionKind::L2Table,
        RegionKind::RefcountTable,
        RegionKind::RefcountBlock,
        RegionKind::SnapshotTable,
        RegionKind::BitmapDirectory,
        RegionKind::BitmapTable,
        RegionKind::BitmapData,
        RegionKind::Encryption,
        RegionKind::Data,
        RegionKind::Compressed,
        RegionKind::SnapshotData,
    ];

    /// A stable name for programs, such as `l2-table`.
    pub const fn name(self) -> &'static str {
        match self {
            RegionKind::Free => "free",
            RegionKind::Leaked => "leaked",
            RegionKind::Unknown => "unknown",
            RegionKind::Contested => "contested",
            RegionKind::Header => "header",
            RegionKind::L1Table => "l1-table",
            RegionKind::L2Table => "l2-table",
            RegionKind::RefcountTable => "refcount-table",
            RegionKind::RefcountBlock => "refcount-block",
            RegionKind::SnapshotTable => "snapshot-table",
            RegionKind::BitmapDirectory => "bitmap-directory",
            RegionKind::BitmapTable => "bitmap-table",
            RegionKind::BitmapData => "bitmap-data",
            RegionKind::Encryption => "encryption",
            RegionKind::Data => "data",
            RegionKind::Compressed => "compressed",
            RegionKind::SnapshotData => "snapshot-data",
        }
    }
}

/// A stretch of a file that holds things of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: RegionKind,
}

/// What a file holds: every byte of it is in one region.
#[derive(Debug)]
pub struct Regions(Source);

#[derive(Debug)]
enum Source {
    Few(Vec<Region>),
    #[cfg(all(feature = "structure", feature = "qcow2"))]
    Clusters(Kinds),
}

impl Regions {
    /// These regions, in order and without gaps. Empty ones are left out.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Self {
        Regions(Source::Few(regions.into_iter().filter(|region| region.range.len > 0).collect()))
    }

    /// The regions from offset `from` of the file on, in order; of the first one only what is behind it.
    pub fn runs(&self, from: u64) -> impl Iterator<Item = Region> + '_ {
        let mut at = from;
        core::iter::from_fn(move || {
            let region = match &self.0 {
                Source::Few(regions) => regions.iter().find(|region| region.range.end() > at).map(|region| {
                    let start = region.range.start.max(at);
                    Region { range: Range::new(start, region.range.end() - start), ..*region }
                }),
                #[cfg(all(feature = "structure", feature = "qcow2"))]
                Source::Clusters(kinds) => kinds.run(at),
            };
            at = region?.range.end();
            region
        })
    }
}

#[cfg(all(feature = "structure", feature = "qcow2"))]
mod kinds {
    use alloc::boxed::Box;
    use alloc::vec;
    use alloc::vec::Vec;

    use super::{Region, RegionKind, Regions, Source};
    use crate::error::{Error, ErrorKind, Result};
    use crate::node::Range;

    /// Clusters of a page. Pages of which nothing is known take no memory.
    const PAGE: u64 = 8192;

    /// The kind of every cluster of a file, a byte for each.
    pub(crate) struct Kinds {
        pages: Vec<Option<Box<[RegionKind]>>>,
        cluster_bits: u32,
        length: u64,
        budget: u64,
    }

    impl core::fmt::Debug for Kinds {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.debug_struct("Kinds").field("length", &self.length).finish_non_exhaustive()
        }
    }

    impl Kinds {
        /// All clusters of a file of `length` bytes, free.
        ///
        /// # Errors
        /// They would take more than `budget` bytes.
        pub(crate) fn new(length: u64, cluster_bits: u32, budget: u64) -> Result<Self> {
            let pages = (length.div_ceil(1 << cluster_bits)).div_ceil(PAGE);
            let mut kinds = Kinds { pages: Vec::new(), cluster_bits, length, budget };
            kinds.charge(pages.saturating_mul(16))?;
            let pages = usize::try_from(pages).map_err(|_| kinds.over_budget())?;
            kinds.pages = vec![None; pages];
            Ok(kinds)
        }

        fn over_budget(&self) -> Error {
            Error::new(
                ErrorKind::OverBudget,
                alloc::format!("what is where in {} bytes exceeds the memory budget", self.length),
            )
        }

        fn charge(&mut self, bytes: u64) -> Result<()> {
            self.budget = self.budget.checked_sub(bytes).ok_or_else(|| self.over_budget())?;
            Ok(())
        }

        /// Clusters of the file.
        pub(crate) fn clusters(&self) -> u64 {
            self.length.div_ceil(1 << self.cluster_bits)
        }

        /// What a cluster was found to be.
        pub(crate) fn get(&self, cluster: u64) -> RegionKind {
            let page = self.pages.get((cluster / PAGE) as usize).and_then(Option::as_ref);
            page.and_then(|page| page.get((cluster % PAGE) as usize)).copied().unwrap_or(RegionKind::Free)
        }

        /// Notes that something of that kind is in the cluster.
        pub(crate) fn mark(&mut self, cluster: u64, kind: RegionKind) -> Result<()> {
            if cluster >= self.clusters() {
                return Ok(());
            }
            let index = (cluster / PAGE) as usize;
            if self.pages.get(index).is_some_and(Option::is_none) {
                self.charge(PAGE)?;
            }
            let Some(page) = self.pages.get_mut(index) else { return Ok(()) };
            let page = page.get_or_insert_with(|| vec![RegionKind::Free; PAGE as usize].into_boxed_slice());
            if let Some(known) = page.get_mut((cluster % PAGE) as usize) {
                *known = both(*known, kind);
            }
            Ok(())
        }

        /// The rest of the region that the byte at `at` is in; `None` behind the end.
        pub(super) fn run(&self, at: u64) -> Option<Region> {
            if at >= self.length {
                return None;
            }
            let first = at >> self.cluster_bits;
            let kind = self.get(first);
            let mut end = first + 1;
            while end < self.clusters() {
                let page = self.pages.get((end / PAGE) as usize).and_then(Option::as_ref);
                let stop = ((end / PAGE + 1) * PAGE).min(self.clusters());
                let same = match page {
                    Some(page) => {
                        let rest = page.get((end % PAGE) as usize..).unwrap_or_default();
                        rest.iter().take((stop - end) as usize).take_while(|known| **known == kind).count() as u64
                    }
                    None if kind == RegionKind::Free => stop - end,
                    None => 0,
                };
                end += same;
                if end < stop {
                    break;
                }
            }
            let end = (end << self.cluster_bits).min(self.length);
            Some(Region { range: Range::new(at, end - at), kind })
        }

        /// What was found.
        pub(crate) fn finish(self) -> Regions {
            Regions(Source::Clusters(self))
        }
    }

    /// The kind of a cluster in which two things are.
    fn both(one: RegionKind, other: RegionKind) -> RegionKind {
        use RegionKind::{Contested, Data, Free, SnapshotData};
        match (one, other) {
            (Free, kind) | (kind, Free) => kind,
            _ if one == other => one,
            (Data, SnapshotData) | (SnapshotData, Data) => Data,
            _ => Contested,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn runs_cover_every_byte_once() {
            let length = (PAGE * 3) * 512 + 100;
            let mut kinds = Kinds::new(length, 9, 1 << 20).unwrap();
            for cluster in [0, 1, 2, PAGE - 1, PAGE, PAGE * 3, PAGE * 3 + 1] {
                kinds.mark(cluster, RegionKind::Data).unwrap();
            }
            kinds.mark(1, RegionKind::L2Table).unwrap();
            let regions = kinds.finish();
            let runs: Vec<_> = regions.runs(0).map(|run| (run.range.start, run.range.len, run.kind)).collect();
            let (data, free) = (RegionKind::Data, RegionKind::Free);
            assert_eq!(
                runs,
                [
                    (0, 512, data),
                    (512, 512, RegionKind::Contested),
                    (1024, 512, data),
                    (1536, (PAGE - 4) * 512, free),
                    ((PAGE - 1) * 512, 1024, data),
                    ((PAGE + 1) * 512, (PAGE * 2 - 1) * 512, free),
                    (PAGE * 3 * 512, 100, data),
                ]
            );
            assert_eq!(regions.runs(513).next().unwrap().range, Range::new(513, 511));
            assert!(regions.runs(length).next().is_none());
        }

        #[test]
        fn memory_is_bounded() {
            let error = Kinds::new(1 << 50, 9, 1 << 20).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OverBudget);
            let mut kinds = Kinds::new(1 << 30, 9, (1 << 12) + PAGE).unwrap();
            kinds.mark(5, RegionKind::Data).unwrap();
            assert_eq!(kinds.mark(PAGE, RegionKind::Data).unwrap_err().kind(), ErrorKind::OverBudget);
        }
    }
}
