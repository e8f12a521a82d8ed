//! [`DirtyBitmap`]: which parts of a disk were written to, one bit for each `granularity` bytes.
//!
//! Kept in pages, of which only those take memory that have bits of both kinds: a large disk with few changes costs
//! little.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;

use crate::error::{Error, ErrorKind, Result};
use crate::node::Range;

/// Smallest granularity in bytes.
pub const MIN_GRANULARITY: u64 = 512;
/// Largest granularity in bytes.
pub const MAX_GRANULARITY: u64 = 1 << 31;
/// Most bits of a bitmap: those in 512 MiB, which is also the most that QEMU stores.
pub const MAX_BITS: u64 = 1 << 32;

const WORD_BITS: u64 = 64;
/// Bits of a page: 4 KiB of them.
const PAGE_BITS: u64 = 32768;
const PAGE_WORDS: usize = (PAGE_BITS / WORD_BITS) as usize;

/// Granularity in bytes of a bitmap for which none was asked, over an image with clusters of that size.
pub fn default_granularity(cluster_size: Option<u64>) -> u64 {
    cluster_size.map_or(64 << 10, |size| size.clamp(4 << 10, 64 << 10))
}

/// A page with at least one bit set.
#[derive(Clone, Debug)]
struct Page {
    ones: u64,
    /// `None` if all are set.
    words: Option<Box<[u64; PAGE_WORDS]>>,
}

impl Page {
    fn word(&self, index: usize) -> u64 {
        self.words.as_ref().map_or(u64::MAX, |words| words.get(index).copied().unwrap_or(0))
    }

    /// Lets `edit` change every word that has bits of `first..end`, given the word and which bits of it.
    fn edit(&mut self, first: u64, end: u64, edit: impl Fn(u64, u64) -> u64) {
        let words = self.words.get_or_insert_with(|| Box::new([u64::MAX; PAGE_WORDS]));
        let mut at = first;
        while at < end {
            let stop = (at / WORD_BITS + 1) * WORD_BITS;
            let mask = mask(at % WORD_BITS, end.min(stop) - (stop - WORD_BITS));
            if let Some(word) = words.get_mut((at / WORD_BITS) as usize) {
                let new = edit(*word, mask);
                self.ones = self.ones - u64::from(word.count_ones()) + u64::from(new.count_ones());
                *word = new;
            }
            at = stop;
        }
        if self.ones == PAGE_BITS {
            self.words = None;
        }
    }
}

/// Bits `first..end` of a word.
fn mask(first: u64, end: u64) -> u64 {
    let below = |bit: u64| if bit >= WORD_BITS { u64::MAX } else { (1 << bit) - 1 };
    below(end) & !below(first)
}

/// Which parts of a disk were written to.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    length: u64,
    granularity_bits: u32,
    pages: BTreeMap<u64, Page>,
}

impl PartialEq for DirtyBitmap {
    fn eq(&self, other: &Self) -> bool {
        (self.length, self.granularity_bits) == (other.length, other.granularity_bits)
            && self.ranges().eq(other.ranges())
    }
}

impl DirtyBitmap {
    /// A bitmap for a disk of `length` bytes, with nothing dirty.
    ///
    /// # Errors
    /// The granularity is not a power of two from 512 bytes to 2 GiB, or there would be more than 2^32 bits.
    pub fn new(length: u64, granularity: u64) -> Result<Self> {
        if !granularity.is_power_of_two() || !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity) {
            return Err(Error::invalid(alloc::format!(
                "a bitmap's granularity is {granularity} bytes, expected a power of two from 512 to 2147483648"
            )));
        }
        let bitmap = DirtyBitmap { length, granularity_bits: granularity.trailing_zeros(), pages: BTreeMap::new() };
        if bitmap.bits() > MAX_BITS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                alloc::format!("a bitmap of {} bits is too large, expected at most {MAX_BITS}", bitmap.bits()),
            ));
        }
        Ok(bitmap)
    }

    /// Marks every bit that the range touches.
    pub fn set(&mut self, range: Range) {
        let end = range.end().min(self.length);
        if range.start < end {
            self.set_bits(range.start >> self.granularity_bits, end.div_ceil(self.granularity()));
        }
    }

    /// Unmarks every bit that lies in the range as a whole. The last one of the disk may be a part.
    pub fn clear(&mut self, range: Range) {
        let first = range.start.div_ceil(self.granularity());
        let end = if range.end() >= self.length { self.bits() } else { range.end() >> self.granularity_bits };
        self.clear_bits(first, end);
    }

    /// Unmarks everything.
    pub fn clear_all(&mut self) {
        self.pages.clear();
    }

    /// Marks what is marked in the other one, whatever its granularity.
    pub fn merge(&mut self, other: &DirtyBitmap) {
        for range in other.ranges() {
            self.set(range);
        }
    }

    /// Changes the length of the disk. What is added is not dirty.
    ///
    /// # Errors
    /// There would be more than 2^32 bits.
    pub fn resize(&mut self, length: u64) -> Result<()> {
        let bits = DirtyBitmap::new(length, self.granularity())?.bits();
        if bits < self.bits() {
            self.clear_bits(bits, self.bits());
        }
        self.length = length;
        Ok(())
    }

    /// Length of the disk in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes for each bit.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Number of bits.
    pub fn bits(&self) -> u64 {
        self.length.div_ceil(self.granularity())
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether the byte at `at` is dirty.
    pub fn contains(&self, at: u64) -> bool {
        let bit = at >> self.granularity_bits;
        at < self.length && self.next(bit, true) == Some(bit)
    }

    /// The first dirty range that ends after `at`, from there on.
    pub fn next_dirty(&self, at: u64) -> Option<Range> {
        let first = self.next(at >> self.granularity_bits, true)?;
        let end = self.next(first, false).unwrap_or_else(|| self.bits());
        let start = (first << self.granularity_bits).max(at);
        let end = (end << self.granularity_bits).min(self.length);
        (start < end).then(|| Range::new(start, end - start))
    }

    /// All dirty ranges in order, none touching another.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let range = self.next_dirty(at)?;
            at = range.end();
            Some(range)
        })
    }

    /// How many bytes are dirty.
    pub fn count(&self) -> u64 {
        self.ranges().map(|range| range.len).sum()
    }

    /// Whether a bit of `first..end` is set.
    #[cfg(feature = "qcow2")]
    pub(crate) fn any_bit(&self, first: u64, end: u64) -> bool {
        self.next(first, true).is_some_and(|bit| bit < end)
    }

    /// Sets bits by their numbers.
    pub(crate) fn set_bits(&mut self, first: u64, end: u64) {
        for_each_page(first, end, |index, first, end| {
            let full = Page { ones: PAGE_BITS, words: None };
            if first == 0 && end == PAGE_BITS {
                self.pages.insert(index, full);
                return;
            }
            let empty = || Page { ones: 0, words: Some(Box::new([0; PAGE_WORDS])) };
            let page = self.pages.entry(index).or_insert_with(empty);
            if page.words.is_some() {
                page.edit(first, end, |word, mask| word | mask);
            }
        });
    }

    fn clear_bits(&mut self, first: u64, end: u64) {
        for_each_page(first, end, |index, first, end| {
            let Entry::Occupied(mut page) = self.pages.entry(index) else { return };
            if first > 0 || end < PAGE_BITS {
                page.get_mut().edit(first, end, |word, mask| word & !mask);
                if page.get().ones > 0 {
                    return;
                }
            }
            page.remove();
        });
    }

    /// Sets the bits that are set in `bytes`, of which the first has bit `first`, a multiple of 64, and those after it. Each
    /// byte has its first bit lowest. Bits beyond the end of the disk are ignored.
    pub fn add_bytes(&mut self, first: u64, bytes: &[u8]) {
        for (at, bytes) in (first..self.bits()).step_by(WORD_BITS as usize).zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            let mut word = u64::from_le_bytes(padded) & mask(0, self.bits() - at);
            while word != 0 {
                let start = u64::from(word.trailing_zeros());
                let len = u64::from((!(word >> start)).trailing_zeros());
                self.set_bits(at + start, at + start + len);
                word &= !mask(start, start + len);
            }
        }
    }

    /// Fills `bytes` with bit `first`, a multiple of 64, and those after it, as [`DirtyBitmap::add_bytes`] takes them.
    pub fn copy_bytes(&self, first: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        for (at, bytes) in (first..self.bits()).step_by(WORD_BITS as usize).zip(bytes.chunks_mut(8)) {
            let Some(page) = self.pages.get(&(at / PAGE_BITS)) else { continue };
            let word = page.word((at % PAGE_BITS / WORD_BITS) as usize) & mask(0, self.bits() - at);
            if let Some(word) = word.to_le_bytes().get(..bytes.len()) {
                bytes.copy_from_slice(word);
            }
        }
    }

    /// The first bit from `from` on that is set, or not set.
    fn next(&self, from: u64, set: bool) -> Option<u64> {
        let end = self.bits();
        let mut at = from;
        while at < end {
            let index = at / PAGE_BITS;
            let page_end = (index + 1) * PAGE_BITS;
            match self.pages.get(&index) {
                Some(page) => {
                    while at < page_end {
                        let word = page.word((at % PAGE_BITS / WORD_BITS) as usize);
                        let wanted = if set { word } else { !word } & !mask(0, at % WORD_BITS);
                        let start = at / WORD_BITS * WORD_BITS;
                        if wanted != 0 {
                            return Some(start + u64::from(wanted.trailing_zeros())).filter(|bit| *bit < end);
                        }
                        at = if page.words.is_none() && !set { page_end } else { start + WORD_BITS };
                    }
                }
                None if !set => return Some(at),
                None => at = self.pages.range(index..).next()?.0 * PAGE_BITS,
            }
        }
        None
    }
}

/// Splits bits `first..end` into pages: the index of each, and which of its bits.
fn for_each_page(first: u64, end: u64, mut each: impl FnMut(u64, u64, u64)) {
    let mut at = first;
    while at < end {
        let index = at / PAGE_BITS;
        let start = index * PAGE_BITS;
        let stop = end.min(start + PAGE_BITS);
        each(index, at - start, stop - start);
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    fn ranges(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
        bitmap.ranges().map(|range| (range.start, range.len)).collect()
    }

    #[test]
    fn says_what_was_marked_in_whole_granules() {
        let mut bitmap = DirtyBitmap::new(1_000_000, 4096).unwrap();
        bitmap.set(Range::new(5000, 1));
        bitmap.set(Range::new(999_999, 500));
        assert_eq!(ranges(&bitmap), [(4096, 4096), (999_424, 576)]);
        assert!(bitmap.contains(4096) && !bitmap.contains(8192) && !bitmap.contains(1_000_000));
        bitmap.clear(Range::new(4096, 4095));
        bitmap.clear(Range::new(999_000, 1000));
        assert_eq!(ranges(&bitmap), [(4096, 4096)]);
        bitmap.clear(Range::new(0, 8192));
        assert!(bitmap.is_empty());
    }

    #[test]
    fn agrees_with_a_list_of_bits() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let bits = 200_000;
        let mut bitmap = DirtyBitmap::new(bits * 512, 512).unwrap();
        let mut model = vec![false; bits as usize];
        for round in 0..300 {
            let first = random(bits);
            let end = (first + 1 + random(if round % 3 == 0 { 90_000 } else { 300 })).min(bits);
            let set = random(3) > 0;
            let range = Range::new(first * 512, (end - first) * 512);
            if set {
                bitmap.set(range)
            } else {
                bitmap.clear(range)
            }
            model[first as usize..end as usize].fill(set);
        }
        let mut expected = Vec::new();
        let mut at = 0;
        while let Some(first) = (at..model.len()).find(|bit| model[*bit]) {
            at = (first..model.len()).find(|bit| !model[*bit]).unwrap_or(model.len());
            expected.push((first as u64 * 512, (at - first) as u64 * 512));
        }
        assert_eq!(ranges(&bitmap), expected);
        let mut bytes = vec![0; 25_000];
        bitmap.copy_bytes(0, &mut bytes);
        assert!(model.iter().enumerate().all(|(bit, set)| (bytes[bit / 8] >> (bit % 8) & 1 == 1) == *set));
        let mut copy = DirtyBitmap::new(bits * 512, 512).unwrap();
        for (first, part) in (0..bits).step_by(4096).zip(bytes.chunks(512)) {
            copy.add_bytes(first, part);
        }
        assert_eq!(copy, bitmap);
    }

    #[test]
    fn a_large_disk_with_few_changes_costs_little() {
        let mut bitmap = DirtyBitmap::new(1 << 41, 512).unwrap();
        for part in 0..100 {
            bitmap.set(Range::new(part << 34, 1));
        }
        bitmap.set(Range::new(1 << 40, 1 << 39));
        let pages = bitmap.pages.values().filter(|page| page.words.is_some()).count();
        assert!(pages <= 100, "{pages}");
        assert_eq!(bitmap.count(), (1 << 39) + 512 * 64 + 512 * 4);
        assert!(DirtyBitmap::new(1 << 42, 512).is_err());
    }

    #[test]
    fn merges_across_granularities() {
        let mut fine = DirtyBitmap::new(1 << 20, 512).unwrap();
        fine.set(Range::new(1000, 100));
        fine.set(Range::new(600_000, 1));
        let mut coarse = DirtyBitmap::new(1 << 20, 65536).unwrap();
        coarse.merge(&fine);
        assert_eq!(ranges(&coarse), [(0, 65536), (589_824, 65536)]);
        fine.merge(&coarse);
        assert_eq!(ranges(&fine), ranges(&coarse));
    }

    #[test]
    fn what_a_disk_gains_is_clean_and_what_it_loses_is_forgotten() {
        let mut bitmap = DirtyBitmap::new(100_000, 4096).unwrap();
        bitmap.set(Range::new(0, 100_000));
        bitmap.resize(50_000).unwrap();
        assert_eq!(ranges(&bitmap), [(0, 50_000)]);
        bitmap.resize(200_000).unwrap();
        assert_eq!(ranges(&bitmap), [(0, 53_248)]);
    }
}
