//! qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2).
//!
//! Bytes: [`header`], [`extension`], [`table`], `snapshot`, `bitmap`. Verbs: `open`, `map`, `refcount` (who uses which cluster),
//! `metadata` (what must not be overwritten), `change` (everything that alters the mapping), `bitmaps` (with `bitmap_store` and
//! `bitmap_extension`), `compress`, `check`, `create`, `describe`, `encryption`, `resize`, `rewrite`, `snapshots`.

mod bitmap;
mod bitmap_extension;
mod bitmap_store;
mod bitmaps;
mod change;
mod check;
mod compress;
mod create;
mod describe;
mod encryption;
pub mod extension;
pub mod header;
mod map;
mod measure;
mod metadata;
mod open;
mod refcount;
mod resize;
mod rewrite;
mod snapshot;
mod snapshots;
pub mod table;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::bitmap::DirtyBitmap;
use crate::cache::{Cache, Level, LevelEvents};
use crate::describe::{Details, SnapshotChoice, Value};
use crate::drivers::{Driver, Evidence, Probe};
use crate::engine::{Allocation, BitmapChange, CheckReport, Format, InPlace, SnapshotChange};
use crate::error::Result;
use crate::event::Event;
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, Role, Want, WriteFlags};
use crate::op::{Op, if_writing};
use crate::sync::{Lock, Mutex};

use bitmap::Bitmaps;
use extension::Extensions;
use header::Header;
use metadata::Metadata;
use refcount::Refcounts;
use snapshot::Directory;

/// The driver.
pub static DRIVER: Driver = Driver {
    name: "qcow2",
    probe,
    open: open::open,
    create: if cfg!(feature = "write") { Some(create::create) } else { None },
    create_options: create::OPTIONS,
    measure: Some(measure::measure),
    open_options: open::OPTIONS,
};

/// The order in which tables reach the disk.
const REFCOUNT_BLOCK: Level = 0;
const REFCOUNT_TABLE: Level = 1;
const L2_TABLE: Level = 2;
const L1_TABLE: Level = 3;

/// What is announced before such tables are read and written.
const TABLE_EVENTS: &[LevelEvents] = &[
    LevelEvents { load: Event::RefblockLoad, write: Event::RefblockUpdatePart },
    LevelEvents { load: Event::ReftableLoad, write: Event::RefblockAllocHookup },
    LevelEvents { load: Event::L2Load, write: Event::L2Update },
    LevelEvents { load: Event::None, write: Event::L1Update },
];

/// The L1 and the refcount table are kept in memory in pieces of at most this many bytes.
const PIECE_BYTES: u64 = 64 << 10;

fn probe(probe: &Probe<'_>) -> Option<Evidence> {
    let version = u32::from_be_bytes(probe.head.get(4..8)?.try_into().ok()?);
    // Later versions too: opening refuses them, where as raw they would show metadata as guest data. 1 is another format.
    (probe.head.starts_with(b"QFI\xfb") && version >= 2).then(|| Evidence {
        score: 100,
        text: alloc::format!("magic 'QFI\\xfb' at offset 0 and version {version} at offset 4"),
    })
}

/// Where the active L1 table and the refcount table are, and the size of the disk.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    l1_offset: u64,
    l1_entries: u64,
    refcount_table: Range,
    size: u64,
}

/// An open qcow2 image.
struct Qcow2 {
    file: Arc<dyn Node>,
    data: Option<Arc<dyn Node>>,
    header: Header,
    extensions: Extensions,
    backing_name: Option<String>,
    directory: Mutex<Directory>,
    bitmaps: Mutex<Bitmaps>,
    /// How the image is encrypted, for people.
    encryption: Vec<(&'static str, Value)>,
    geometry: Mutex<Geometry>,
    metadata: Metadata,
    cache: Cache,
    refcounts: Lock<Refcounts>,
    /// Whether the header says what it must while metadata is being changed, and all tables were found.
    begun: AtomicBool,
    /// Whether the image may be changed: that, and bitmaps are marked.
    changing: AtomicBool,
    /// Whether a bitmap keeps changes in memory.
    recording: AtomicBool,
    /// Whether `geometry` is that of a snapshot.
    at_snapshot: bool,
    /// Whether free clusters are given back to the host.
    pass_discard: bool,
    expanded_bytes: usize,
    check_bytes: u64,
    /// Recently expanded compressed cluster: host offset and contents.
    expanded: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Qcow2 {
    fn geometry(&self) -> Geometry {
        *self.geometry.lock()
    }

    /// The node with guest data.
    fn storage(&self) -> &dyn Node {
        self.data.as_deref().unwrap_or(&*self.file)
    }

    fn role(&self) -> Role {
        if self.header.has_data_file() { Role::DataFile } else { Role::File }
    }

    fn is_lazy(&self) -> bool {
        self.header.raw.compatible_features & header::COMPATIBLE_LAZY_REFCOUNTS != 0
    }

    fn has_backing(&self) -> bool {
        self.backing_name.is_some()
    }
}

impl Format for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            length: self.geometry().size,
            cluster_size: Some(self.header.cluster.size() as u32),
            read_only: self.file.info().read_only,
            fast_zeroes: self.header.raw.version >= 3 || !self.has_backing(),
            zero_init: !self.has_backing(),
            ..NodeInfo::plain(0)
        }
    }

    fn child(&self, role: Role) -> Option<&Arc<dyn Node>> {
        match role {
            Role::File => Some(&self.file),
            Role::DataFile => self.data.as_ref(),
            Role::Backing => None,
        }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        match self.map_cached(range) {
            Some(result) => Op::Ready(result),
            None => Op::future(self.map_loading(range)),
        }
    }

    fn expand<'a>(&'a self, host: Host, stored: u32, skip: usize, into: &'a mut [u8]) -> Op<'a, ()> {
        Op::future(self.expand_cluster(host.at, stored, skip, into))
    }

    fn in_place<'a>(&'a self, range: Range) -> Op<'a, InPlace> {
        if_writing(|| {
            let known = self.changing.load(Ordering::Acquire).then(|| self.in_place_cached(range)).flatten();
            if let Some(result) = known {
                return Op::Ready(result);
            }
            Op::future(async move {
                self.begin_changing().await?;
                self.in_place_loading(range).await
            })
        })
    }

    fn prepare<'a>(&'a self, range: Range) -> Op<'a, Allocation> {
        if_writing(|| Op::future(self.prepare_write(range)))
    }

    fn commit<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.commit_write(allocation)))
    }

    fn abandon<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.abandon_write(allocation)))
    }

    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        if cfg!(feature = "write") { self.compress_cluster(cluster) } else { Ok(None) }
    }

    fn store_compressed<'a>(&'a self, at: u64, compressed: &'a [u8]) -> Op<'a, ()> {
        if_writing(|| Op::future(self.store_cluster(at, compressed)))
    }

    fn stores_compressed(&self) -> bool {
        !self.header.has_data_file()
    }

    fn vm_state_offset(&self) -> Option<u64> {
        let coverage = self.header.l2_coverage();
        Some(self.geometry().size.div_ceil(coverage) * coverage)
    }

    fn reserve_vm_state<'a>(&'a self, end: u64) -> Op<'a, ()> {
        if_writing(|| Op::future(self.reserve_l1(end)))
    }

    fn zero_granularity(&self) -> u64 {
        self.header.cluster.size() / if self.header.is_extended() { table::SUBCLUSTERS } else { 1 }
    }

    fn zero<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| Op::future(self.zero_range(range, flags)))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        if_writing(|| Op::future(self.discard_range(range)))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.flush_all()))
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.end_changing()))
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.resize_disk(length, preallocation)))
    }

    fn reserve<'a>(&'a self, length: u64) -> Op<'a, ()> {
        if_writing(|| Op::future(self.reserve_disk(length)))
    }

    fn set_backing<'a>(&'a self, backing: Option<(&'a str, Option<&'a str>)>) -> Op<'a, ()> {
        if_writing(|| Op::future(self.rewrite_backing(backing)))
    }

    fn make_empty<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.drop_everything()))
    }

    fn snapshot<'a>(&'a self, change: &'a SnapshotChange) -> Op<'a, ()> {
        if_writing(|| Op::future(self.change_snapshots(change)))
    }

    fn record(&self, range: Range) {
        if self.recording.load(Ordering::Acquire) {
            self.bitmaps.lock().record(range);
        }
    }

    fn claim<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.claim_bitmaps()))
    }

    fn stores_bitmaps(&self) -> bool {
        self.header.raw.version >= 3
    }

    fn change_bitmaps<'a>(&'a self, change: &'a BitmapChange<'a>) -> Op<'a, ()> {
        if_writing(|| Op::future(self.change_bitmaps(change)))
    }

    fn check_bitmap(&self, name: &str) -> Result<()> {
        self.usable_bitmap(name).map(|_| ())
    }

    fn read_bitmap<'a>(&'a self, name: &'a str) -> Op<'a, DirtyBitmap> {
        Op::future(self.read_bitmap(name))
    }

    fn clusters_in_use<'a>(&'a self, enough: u64) -> Op<'a, u64> {
        Op::future(self.count_referenced(enough))
    }

    fn select_snapshot(&mut self, choice: &SnapshotChoice) -> Result<()> {
        self.select(choice)
    }

    fn describe(&self) -> Result<Details> {
        Ok(self.details())
    }

    fn check<'a>(&'a self) -> Op<'a, CheckReport> {
        Op::future(self.check_all())
    }
}
