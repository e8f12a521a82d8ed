//! A qcow2 file taken apart (QEMU docs/interop/qcow2), straight from its bytes: an image that cannot be opened has a
//! structure, too.
//!
//! The header and what belongs to it is in `header`, the mapping in `mapping`, refcounts in `refcounts`, snapshots and
//! bitmaps in `directories`. What is listed is in the file; a table that reaches beyond its end has only the entries that
//! are there, and says so.

mod directories;
mod header;
mod mapping;
mod refcounts;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::crypto::structure as luks;
use crate::error::Result;
use crate::formats::qcow2::bitmap::RawBitmap;
use crate::formats::qcow2::header::{ClusterBits, Header, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, RawHeader};
use crate::formats::qcow2::snapshot::RawSnapshot;
use crate::formats::qcow2::table::L2Entry;
use crate::node::{Node, Range, Role};
use crate::op::BoxFuture;
use crate::structure::tree::{Child, Listing, Page, Tree, read, stored, walk};
use crate::structure::{Part, PartKind, Parts, Place, StructureContext};
use crate::sync::Mutex;

use header::Found;

pub(super) fn structure(context: StructureContext<'_>) -> BoxFuture<'_, Result<Parts>> {
    Box::pin(async move {
        let tables = Tables::read(context).await?;
        let page = Page { from: context.from, count: context.count };
        walk(&tables, Branch::Image, context.path, page).await
    })
}

/// What leads to the parts of a part.
enum Branch {
    Image,
    Header,
    /// The bits of a field: 0 incompatible, 1 compatible, 2 autoclear.
    Features(u8),
    Extensions,
    Extension(Found),
    FeatureName(u64),
    RefcountTable,
    RefcountEntry(u64),
    RefcountBlock {
        index: u64,
        at: u64,
    },
    L1(L1),
    L1Entry {
        l1: L1,
        index: u64,
    },
    L2 {
        at: u64,
        guest: Option<u64>,
    },
    L2Entry {
        at: u64,
        guest: Option<u64>,
        entry: L2Entry,
    },
    Subclusters {
        at: u64,
        guest: Option<u64>,
        entry: L2Entry,
    },
    Snapshots,
    Snapshot {
        at: u64,
        raw: RawSnapshot,
    },
    SnapshotExtra {
        at: u64,
        len: u64,
    },
    Bitmaps(Range),
    Bitmap {
        at: u64,
        raw: RawBitmap,
    },
    BitmapFlags {
        at: u64,
        flags: u32,
    },
    BitmapTable(RawBitmap),
    BitmapEntry {
        at: u64,
        word: u64,
    },
    Luks {
        place: Range,
        branch: luks::Branch,
    },
}

/// A part of the image as a whole.
enum Section {
    Header,
    Extensions,
    BackingName,
    RefcountTable,
    L1Table,
    Snapshots,
    /// With the offset of the data of its extension.
    Bitmaps(u64),
    /// With the offset of the data of its extension.
    Encryption(u64),
}

/// An L1 table.
#[derive(Clone, Copy)]
struct L1 {
    at: u64,
    entries: u64,
    /// Size of the disk that it maps.
    size: u64,
}

/// A file that is taken for a qcow2 image.
struct Tables<'a> {
    file: &'a dyn Node,
    data_file: Option<&'a dyn Node>,
    length: u64,
    /// The start of the file: what is there of the longest header.
    head: Vec<u8>,
    raw: RawHeader,
    /// The header, or what is wrong with it.
    header: Result<Header>,
    /// The smallest size if that of the header makes no sense.
    cluster: ClusterBits,
    extended: bool,
    /// Whether guest data is in another file.
    external: bool,
    /// What was read of the space for extensions.
    extensions: Mutex<Option<Arc<[u8]>>>,
}

impl<'a> Tables<'a> {
    async fn read(context: StructureContext<'a>) -> Result<Self> {
        let file = context.file;
        let head = read(file, 0, RawHeader::SIZE as u64).await?;
        let raw = RawHeader::read(&head);
        let length = file.info().length;
        Ok(Tables {
            file,
            data_file: context.data_file,
            length,
            header: Header::parse(&head, length),
            head,
            raw,
            cluster: ClusterBits::new(raw.cluster_bits).unwrap_or(ClusterBits::SMALLEST),
            extended: raw.incompatible_features & INCOMPATIBLE_EXTENDED_L2 != 0,
            external: raw.incompatible_features & INCOMPATIBLE_DATA_FILE != 0,
            extensions: Mutex::new(None),
        })
    }

    /// The part of the image file that is at `at`, if it is there.
    fn place(&self, at: u64, len: u64) -> Option<Place> {
        let range = Range::new(at, len.min(self.length.saturating_sub(at)));
        (at != 0 && range.len > 0).then_some(Place { role: Role::File, range })
    }

    /// What is wrong with an offset of a whole cluster; 0 stands for none.
    fn cluster_problem(&self, at: u64) -> Option<String> {
        if at == 0 {
            return None;
        }
        if !self.cluster.is_aligned(at) {
            return Some(format!("{at:#x} is not a multiple of the cluster size, {:#x}", self.cluster.size()));
        }
        let end = at.saturating_add(self.cluster.size());
        if at >= self.length {
            return Some(format!("{at:#x} is beyond the end of the file at {:#x}", self.length));
        }
        (end > self.length)
            .then(|| format!("the cluster ends at {end:#x}, beyond the end of the file at {:#x}", self.length))
    }

    /// Said of what should begin a cluster and does not.
    fn crooked(&self, at: u64) -> Option<String> {
        (!self.cluster.is_aligned(at))
            .then(|| format!("it lies at {at:#x}, which is not a multiple of the cluster size"))
    }

    /// Said of what should be in the file and is not all there.
    fn beyond(&self, end: u64) -> Option<String> {
        (end > self.length).then(|| format!("it ends at {end:#x}, beyond the end of the file at {:#x}", self.length))
    }

    /// A table of `entries` that take `width` bytes each.
    fn table(&self, name: &str, place: (u64, u64, u64), doc: &'static str, branch: Branch) -> Child<Branch> {
        let (at, entries, width) = place;
        let (there, beyond) = stored(at, entries, width, self.length);
        let none = (at == 0 && entries > 0).then(|| "it lies where the header is".to_string());
        Part::new(PartKind::Table, name, Range::new(at, entries.saturating_mul(width)), doc)
            .value(counted(entries, "entry", "entries"))
            .problem(none)
            .problem(self.crooked(at))
            .problem(beyond)
            .with(there, branch)
    }

    /// Shows `part` the entries that are wanted of a table, as far as they are in the file: index, offset, bytes.
    async fn entries(
        &self,
        place: (u64, u64, u64),
        page: Page,
        part: impl Fn(u64, u64, &[u8]) -> Child<Branch> + Send,
    ) -> Result<Listing<Branch>> {
        let (at, entries, width) = place;
        let (total, _) = stored(at, entries, width, self.length);
        let wanted = page.of(total);
        let first = at.saturating_add(wanted.start * width);
        let bytes = read(self.file, first, (wanted.end - wanted.start) * width).await?;
        let found = wanted.zip(bytes.chunks_exact(width as usize));
        let children = found.map(|(index, entry)| part(index, at + index * width, entry)).collect();
        Ok(Listing { total, children })
    }

    async fn image(&self, page: Page) -> Result<Listing<Branch>> {
        let mut sections = alloc::vec![Section::Header];
        // Without a size of clusters that makes sense nothing else can be found.
        if ClusterBits::new(self.raw.cluster_bits).is_some() {
            sections.push(Section::Extensions);
            if self.raw.backing_file_offset != 0 {
                sections.push(Section::BackingName);
            }
            sections.extend([Section::RefcountTable, Section::L1Table]);
            if self.raw.nb_snapshots > 0 {
                sections.push(Section::Snapshots);
            }
            let (extensions, _) = self.extensions().await?;
            sections.extend(extensions.iter().filter_map(|found| found.bitmaps()).map(Section::Bitmaps));
            sections.extend(extensions.iter().filter_map(|found| found.encryption()).map(Section::Encryption));
        }
        let total = sections.len() as u64;
        let mut children = Vec::new();
        for index in page.of(total) {
            if let Some(section) = sections.get(index as usize) {
                children.push(self.section(section).await?);
            }
        }
        Ok(Listing { total, children })
    }

    async fn section(&self, section: &Section) -> Result<Child<Branch>> {
        match section {
            Section::Header => Ok(self.header_part()),
            Section::Extensions => self.extensions_part().await,
            Section::BackingName => Ok(self.backing_name().await?.into()),
            Section::RefcountTable => Ok(self.refcount_table_part()),
            Section::L1Table => {
                let (at, entries) = (self.raw.l1_table_offset, self.raw.l1_size.into());
                Ok(self.l1_part("L1 table", L1 { at, entries, size: self.raw.size }))
            }
            Section::Snapshots => self.snapshots_part().await,
            Section::Bitmaps(at) => self.bitmaps_part(*at).await,
            Section::Encryption(at) => self.luks_part(*at).await,
        }
    }

    /// The header of the encryption that the pointer at `at` points to.
    async fn luks_part(&self, at: u64) -> Result<Child<Branch>> {
        let place = self.encryption_place(at).await?;
        let doc = "The header of the encryption (LUKS) with its keys. The data is in the clusters of the image.";
        let part = Part::new(PartKind::Table, "encryption header", place, doc)
            .problem(self.crooked(place.start))
            .problem(self.beyond(place.end()));
        let total = self.luks(place, luks::Branch::Volume).await?.len() as u64;
        Ok(part.with(total, Branch::Luks { place, branch: luks::Branch::Volume }))
    }

    async fn luks(&self, place: Range, branch: luks::Branch) -> Result<Vec<Child<Branch>>> {
        use crate::crypto::header::{HEADER_BYTES, Place};
        let bytes = read(self.file, place.start, (HEADER_BYTES as u64).min(place.len)).await?;
        let available = place.len.min(self.length.saturating_sub(place.start));
        let header = Place { at: place.start, available, detached: false };
        let volume = luks::Volume { bytes: &bytes, place: header, role: Role::File };
        let lead = |branch| Branch::Luks { place, branch };
        let children = volume.list(branch).into_iter();
        Ok(children.map(|child| Child { part: child.part, branch: child.branch.map(lead) }).collect())
    }
}

/// A number of things.
fn counted(count: impl Into<u64>, one: &str, more: &str) -> String {
    let count = count.into();
    format!("{count} {}", if count == 1 { one } else { more })
}

impl Tree for Tables<'_> {
    type Branch = Branch;

    async fn list(&self, branch: &Branch, page: Page) -> Result<Listing<Branch>> {
        Ok(match branch {
            Branch::Image => return self.image(page).await,
            Branch::Header => Listing::page(self.header_fields().await?, page),
            Branch::Features(kind) => Listing::page(self.features(*kind, &self.feature_names().await?), page),
            Branch::Extensions => Listing::page(self.extension_parts().await?, page),
            Branch::Extension(found) => Listing::page(self.extension(found).await?, page),
            Branch::FeatureName(at) => Listing::page(self.feature_name(*at).await?, page),
            Branch::RefcountTable => return self.refcount_table(page).await,
            Branch::RefcountEntry(index) => Listing::page(self.refcount_entry(*index).await?, page),
            Branch::RefcountBlock { index, at } => return self.refcount_block(*index, *at, page).await,
            Branch::L1(l1) => return self.l1_table(*l1, page).await,
            Branch::L1Entry { l1, index } => Listing::page(self.l1_entry(*l1, *index).await?, page),
            Branch::L2 { at, guest } => return self.l2_table(*at, *guest, page).await,
            Branch::L2Entry { at, guest, entry } => Listing::page(self.l2_entry(*at, *guest, *entry), page),
            Branch::Subclusters { at, guest, entry } => Listing::page(self.subclusters(*at, *guest, *entry), page),
            Branch::Snapshots => return self.snapshots(page).await,
            Branch::Snapshot { at, raw } => Listing::page(self.snapshot(*at, raw).await?, page),
            Branch::SnapshotExtra { at, len } => Listing::page(self.snapshot_extra(*at, *len).await?, page),
            Branch::Bitmaps(directory) => return self.bitmaps(*directory, page).await,
            Branch::Bitmap { at, raw } => Listing::page(self.bitmap(*at, raw).await?, page),
            Branch::BitmapFlags { at, flags } => Listing::page(self.bitmap_flags(*at, *flags), page),
            Branch::BitmapTable(raw) => return self.bitmap_table(raw, page).await,
            Branch::BitmapEntry { at, word } => Listing::page(self.bitmap_entry(*at, *word), page),
            Branch::Luks { place, branch } => Listing::page(self.luks(*place, *branch).await?, page),
        })
    }
}
