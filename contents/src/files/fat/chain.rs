//! The clusters of a file, each of which is known only to the entry of the one before it.
//!
//! What was gone through once is remembered between reads: every cluster of a file that has few, and of one that has many
//! one in so many. So a read goes through few entries to where it begins, wherever that is.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::files::fat::table::Table;

/// As many clusters of a file are remembered, a power of two.
const MAX_MARKS: usize = 1 << 16;

/// Clusters that follow each other in the file and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    /// How many, never none.
    pub(super) count: u32,
}

/// The clusters of a file, as far as its chain was followed.
pub(super) struct Chain {
    first: u32,
    size: u64,
    /// How many clusters a file of that size has.
    count: u32,
    /// The clusters whose numbers in the file are multiples of `1 << spacing`.
    marks: Vec<u32>,
    spacing: u32,
    /// The last one that is known, and its number in the file.
    last: u32,
    last_number: u32,
    /// All that are known, for as long as there are more.
    seen: Clusters,
    is_whole: bool,
}

impl Chain {
    /// The chain of a file that is not empty; `at` is where its first cluster is named, as an offset on the disk.
    pub(super) fn new(table: &Table, first: u32, size: u64, at: u64) -> Result<Self> {
        table.check(first, at)?;
        let count = size.div_ceil(table.cluster_bytes());
        let count = u32::try_from(count).map_err(|_| Error::corrupt(format!("a file of {size} bytes")).at(at))?;
        let mut seen = Clusters::default();
        seen.insert(first);
        let (marks, spacing) = (vec![first], 0);
        Ok(Chain { first, size, count, marks, spacing, last: first, last_number: 0, seen, is_whole: false })
    }

    pub(super) fn is_of(&self, first: u32, size: u64) -> bool {
        (self.first, self.size) == (first, size)
    }

    /// Where `count` clusters are, at least one, from the one with the number `from` in the file on.
    ///
    /// What was found stays found if bytes of the table are missing on the way.
    pub(super) fn runs(&mut self, table: &Table, from: u32, count: u32) -> Result<Vec<Run>> {
        let (mut number, mut cluster) = if from < self.last_number {
            let mark = from >> self.spacing;
            let cluster = usize::try_from(mark).ok().and_then(|mark| self.marks.get(mark).copied());
            (mark << self.spacing, cluster.unwrap_or(self.first))
        } else {
            (self.last_number, self.last)
        };
        while number < from {
            cluster = self.after(table, number, cluster)?;
            number += 1;
        }
        let mut run = Run { first: cluster, count: 1 };
        let mut runs = Vec::new();
        for number in from..from.saturating_add(count.saturating_sub(1)) {
            let next = self.after(table, number, cluster)?;
            if cluster.checked_add(1) == Some(next) {
                run.count += 1;
            } else {
                runs.push(std::mem::replace(&mut run, Run { first: next, count: 1 }));
            }
            cluster = next;
        }
        runs.push(run);
        if from.saturating_add(count) >= self.count {
            self.end(table)?;
        }
        Ok(runs)
    }

    /// The cluster after the one with this number in the file.
    fn after(&mut self, table: &Table, number: u32, cluster: u32) -> Result<u32> {
        let next = table.next(cluster)?.ok_or_else(|| {
            let there = u64::from(number.saturating_add(1)).saturating_mul(table.cluster_bytes());
            let text = format!("the clusters of the file end after {there} bytes of {}", self.size);
            Error::corrupt(text).at(table.place(cluster))
        })?;
        if number < self.last_number {
            return Ok(next);
        }
        if !self.seen.insert(next) {
            return Err(leads_back(table, cluster, next));
        }
        self.last = next;
        self.last_number = number.saturating_add(1);
        if self.last_number.is_multiple_of(1 << self.spacing) {
            if self.marks.len() >= MAX_MARKS {
                let mut is_kept = false;
                self.marks.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
                self.spacing += 1;
            }
            self.marks.push(next);
        }
        Ok(next)
    }

    /// Looks at what follows the last cluster that the file has by its size. More may have been set aside for it.
    fn end(&mut self, table: &Table) -> Result<()> {
        if self.is_whole {
            return Ok(());
        }
        match table.next(self.last)? {
            Some(next) if self.seen.contains(next) => return Err(leads_back(table, self.last, next)),
            Some(_) | None => {}
        }
        self.is_whole = true;
        self.seen = Clusters::default();
        Ok(())
    }
}

fn leads_back(table: &Table, cluster: u32, next: u32) -> Error {
    let text = format!("the clusters of the file turn in a circle: {cluster} leads back to {next}");
    Error::corrupt(text).at(table.place(cluster))
}

/// A set of clusters. Pages take memory only where one is: all together 32 MiB on the largest of volumes.
#[derive(Default)]
struct Clusters(BTreeMap<u32, Box<[u64; Clusters::WORDS]>>);

impl Clusters {
    const WORDS: usize = 64;

    /// The page, the word in it, and the bit of that.
    fn split(cluster: u32) -> (u32, usize, u64) {
        let (page, within) = (cluster / 4096, cluster % 4096);
        (page, (within / 64) as usize, 1 << (within % 64))
    }

    /// Says whether it is new.
    fn insert(&mut self, cluster: u32) -> bool {
        let (page, word, bit) = Self::split(cluster);
        let page = self.0.entry(page).or_insert_with(|| Box::new([0; Self::WORDS]));
        let is_new = page[word] & bit == 0;
        page[word] |= bit;
        is_new
    }

    fn contains(&self, cluster: u32) -> bool {
        let (page, word, bit) = Self::split(cluster);
        self.0.get(&page).is_some_and(|page| page[word] & bit != 0)
    }
}
