//! What every format needs to take its tables apart: pages of children, fields and bits as parts.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Range, ReadFlags, Role};
use crate::structure::{BitRange, MAX_PARTS, Part, PartKind, Parts, Place};
use crate::wire::{Field, FieldKind, field_text};

/// A part, and how to get at its parts.
pub(crate) struct Child<B> {
    pub(crate) part: Part,
    /// `None` if it has no parts.
    pub(crate) branch: Option<B>,
}

impl<B> From<Part> for Child<B> {
    fn from(part: Part) -> Self {
        Child { part, branch: None }
    }
}

impl Part {
    /// Something in the image's file.
    pub(crate) fn new(kind: PartKind, name: impl Into<String>, range: Range, doc: &'static str) -> Self {
        Part {
            name: name.into(),
            kind,
            place: Place { role: Role::File, range },
            bits: None,
            value: None,
            doc,
            problem: None,
            children: 0,
            target: None,
            guest: None,
        }
    }

    pub(crate) fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Says what is wrong, unless something is wrong already.
    pub(crate) fn problem(mut self, problem: Option<String>) -> Self {
        self.problem = self.problem.or(problem);
        self
    }

    pub(crate) fn target(mut self, target: Option<Place>) -> Self {
        self.target = target;
        self
    }

    pub(crate) fn guest(mut self, guest: Option<Range>) -> Self {
        self.guest = guest;
        self
    }

    /// Makes it a part that has parts.
    pub(crate) fn with<B>(mut self, children: u64, branch: B) -> Child<B> {
        self.children = children;
        Child { part: self, branch: (children > 0).then_some(branch) }
    }
}

/// A page of children.
pub(crate) struct Listing<B> {
    pub(crate) total: u64,
    pub(crate) children: Vec<Child<B>>,
}

impl<B> Listing<B> {
    /// A page of children that are all known.
    pub(crate) fn page(all: Vec<Child<B>>, page: Page) -> Self {
        let total = all.len() as u64;
        let skip = usize::try_from(page.from).unwrap_or(usize::MAX);
        Listing { total, children: all.into_iter().skip(skip).take(page.count).collect() }
    }
}

/// Which children are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) from: u64,
    pub(crate) count: usize,
}

impl Page {
    /// The indices of those that are wanted, of `total`.
    pub(crate) fn of(self, total: u64) -> core::ops::Range<u64> {
        let from = self.from.min(total);
        from..from.saturating_add(self.count as u64).min(total)
    }
}

/// Something with parts that have parts.
pub(crate) trait Tree: Sync {
    /// What leads to the parts of a part.
    type Branch: Send + Sync;

    /// Those parts of `branch`, with what leads on.
    fn list(&self, branch: &Self::Branch, page: Page) -> impl Future<Output = Result<Listing<Self::Branch>>> + Send;
}

/// The parts at the end of a path.
pub(crate) async fn walk<T: Tree>(tree: &T, root: T::Branch, path: &[u64], page: Page) -> Result<Parts> {
    let mut branch = root;
    for (depth, index) in path.iter().enumerate() {
        let mut found = tree.list(&branch, Page { from: *index, count: 1 }).await?;
        branch = found.children.pop().and_then(|child| child.branch).ok_or_else(|| {
            let path = path.get(..=depth).unwrap_or_default();
            Error::new(ErrorKind::NotFound, format!("there are no parts at {path:?}"))
        })?;
    }
    let page = Page { count: page.count.min(MAX_PARTS), ..page };
    let Listing { total, children } = tree.list(&branch, page).await?;
    Ok(Parts { total, parts: children.into_iter().map(|child| child.part).collect() })
}

/// The fields of a structure at `at` of which `bytes` are there.
pub(crate) fn fields<'a>(fields: &'static [Field], bytes: &'a [u8], at: u64) -> impl Iterator<Item = Part> + use<'a> {
    fields.iter().map(move |field| {
        let range = Range::new(at.saturating_add(field.offset as u64), field.len as u64);
        let text = match (field.kind, bytes.get(field.offset..field.offset + field.len)) {
            (FieldKind::Bytes, Some(bytes)) => bytes_text(bytes),
            _ => field_text(field, bytes),
        };
        let beyond = bytes.len() < field.offset + field.len;
        Part::new(PartKind::Field, field.name, range, field.doc)
            .value(text)
            .problem(beyond.then(|| "it lies beyond the end of the file".to_string()))
    })
}

/// Bytes for a person: as the text that they are, filled up with zeroes, or in hexadecimal.
pub(crate) fn bytes_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (text, rest) = bytes.split_at(end);
    if !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte)) && rest.iter().all(|byte| *byte == 0) {
        return format!("'{}'", String::from_utf8_lossy(text));
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says of a part in a list what a parser found wrong with it: the error names its place.
pub(crate) fn blame(parts: &mut [Part], error: Option<&Error>) {
    let Some((error, at)) = error.and_then(|error| Some((error, error.context().offset?))) else { return };
    if let Some(part) = parts.iter_mut().find(|part| part.place.range.start == at) {
        part.problem = Some(error.problem().to_string());
    }
}

/// Some bits of a number of 64 bits, from the lowest on.
#[derive(Clone, Copy)]
pub(crate) struct Bits {
    pub(crate) name: &'static str,
    pub(crate) low: u32,
    pub(crate) count: u32,
    pub(crate) doc: &'static str,
}

impl Bits {
    pub(crate) const fn new(name: &'static str, low: u32, count: u32, doc: &'static str) -> Self {
        Bits { name, low, count, doc }
    }

    /// The bits in their number.
    pub(crate) fn mask(self) -> u64 {
        let ones = if self.count >= 64 { u64::MAX } else { (1 << self.count) - 1 };
        ones << self.low
    }

    /// As a part of the big-endian number `word` of `width` bytes at `at`.
    pub(crate) fn part(self, word: u64, width: u64, at: u64) -> Part {
        let value = (word & self.mask()) >> self.low;
        let first = width - 1 - u64::from((self.low + self.count - 1) / 8);
        let last = width - 1 - u64::from(self.low / 8);
        let range = Range::new(at.saturating_add(first), last - first + 1);
        let text = match (self.count, value) {
            (1, 0) => "not set".to_string(),
            (1, _) => "set".to_string(),
            (_, 0..10) => format!("{value}"),
            _ => format!("{value:#x}"),
        };
        let mut part = Part::new(PartKind::Bits, self.name, range, self.doc).value(text);
        part.bits = Some(BitRange { low: self.low, count: self.count });
        part
    }

    /// As [`Bits::part`], for bits that must be zero.
    pub(crate) fn reserved(self, word: u64, width: u64, at: u64) -> Part {
        let wrong = word & self.mask() != 0;
        self.part(word, width, at).problem(wrong.then(|| "these bits are reserved and should be zero".to_string()))
    }
}

/// What can be told about a table of `entries` times `width` bytes at `at`: how many entries are in a file of `length`
/// bytes, and what is wrong with its place.
pub(crate) fn stored(at: u64, entries: u64, width: u64, length: u64) -> (u64, Option<String>) {
    let there = length.saturating_sub(at) / width.max(1);
    if entries > 0 && at >= length {
        return (0, Some(format!("it lies at {at:#x}, beyond the end of the file at {length:#x}")));
    }
    if entries > there {
        return (
            there,
            Some(format!("of its {entries} entries only {there} are in the file, which ends at {length:#x}")),
        );
    }
    (entries, None)
}

/// Reads what is in the file of a range, which is short.
pub(crate) async fn read(file: &dyn Node, at: u64, len: u64) -> Result<Vec<u8>> {
    let there = file.info().length.saturating_sub(at).min(len);
    let mut bytes = alloc::vec![0; usize::try_from(there).unwrap_or(0)];
    if !bytes.is_empty() {
        file.read(at, &mut bytes, ReadFlags::default()).await?;
    }
    Ok(bytes)
}
