//! qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2).
//!
//! Bytes: [`header`], [`extension`], [`table`], `snapshot`, `bitmap`. Verbs: `open`, `map`, `refcount` (who uses which cluster),
//! `metadata` (what must not be overwritten), `change` (everything that alters the mapping), `bitmaps` (with `bitmap_store` and
//! `bitmap_extension`), `compress`, `check` (with `compare`; for repairs `repair`, `rebuild`, `snapshots_repair`), `create`,
//! `describe`, `encryption`, `resize`, `rewrite`, `snapshots`; `structure` and `regions` show what is in the file.

mod amend;
mod bitmap;
mod bitmap_extension;
mod bitmap_store;
mod bitmaps;
mod change;
mod check;
mod compare;
mod compress;
mod create;
mod describe;
mod encryption;
pub mod extension;
pub mod header;
mod health;
mod map;
mod measure;
mod metadata;
mod open;
#[cfg(feature = "write")]
mod rebuild;
mod refcount;
#[cfg(feature = "structure")]
mod regions;
#[cfg(feature = "write")]
mod repair;
mod resize;
mod rewrite;
mod settings;
mod snapshot;
mod snapshots;
mod snapshots_check;
#[cfg(feature = "write")]
mod snapshots_repair;
#[cfg(feature = "structure")]
mod structure;
pub mod table;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::bitmap::DirtyBitmap;
use crate::cache::{Cache, Level, LevelEvents};
use crate::describe::{Details, SnapshotChoice};
use crate::drivers::{Driver, Evidence, Probe};
use crate::engine::{Allocation, AmendRequest, BitmapChange, CheckReport, Format, InPlace, Repair, SnapshotChange};
use crate::error::Result;
use crate::event::Event;
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, Role, Want, WriteFlags};
use crate::op::{Op, if_writing};
#[cfg(feature = "structure")]
use crate::structure::{Parts, Regions, StructureContext};
use crate::sync::{Lock, Mutex};

use bitmap::Bitmaps;
use encryption::Crypt;
use extension::Extensions;
use header::Header;
use health::Health;
use metadata::Metadata;
use refcount::Refcounts;
use settings::Settings;
use snapshot::Directory;

/// The driver.
pub static DRIVER: Driver = Driver {
    name: "qcow2",
    probe,
    open: open::open,
    create: if cfg!(feature = "write") { Some(create::create) } else { None },
    create_options: create::OPTIONS,
    measure: if cfg!(feature = "write") { Some(measure::measure) } else { None },
    open_options: settings::OPTIONS,
    amend_options: amend::OPTIONS,
    #[cfg(feature = "structure")]
    structure: Some(structure::structure),
    #[cfg(not(feature = "structure"))]
    structure: None,
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

/// What the header says and may come to say otherwise: where the active L1 table and the refcount table are, the size of
/// the disk, and feature bits.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    l1_offset: u64,
    l1_entries: u64,
    refcount_table: Range,
    size: u64,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
}

impl Geometry {
    /// Where the L1 table is.
    fn l1(&self) -> Range {
        Range::new(self.l1_offset, self.l1_entries * 8)
    }
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
    crypt: Crypt,
    geometry: Mutex<Geometry>,
    version: AtomicU32,
    refcount_order: AtomicU32,
    settings: Settings,
    /// Whether the image is open for writing.
    writable: bool,
    /// Whether it was opened only to be checked, whatever is wrong with it.
    #[cfg(feature = "write")]
    for_check: bool,
    health: Health,
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
    expanded_bytes: usize,
    check_bytes: u64,
    /// Recently expanded compressed cluster: host offset and contents.
    expanded: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Qcow2 {
    fn geometry(&self) -> Geometry {
        *self.geometry.lock()
    }

    /// What the header says, also if the disk is shown as it was at a snapshot.
    fn stored_geometry(&self) -> Geometry {
        let now = self.geometry();
        if !self.at_snapshot {
            return now;
        }
        let raw = &self.header.raw;
        Geometry { l1_offset: raw.l1_table_offset, l1_entries: raw.l1_size.into(), size: raw.size, ..now }
    }

    /// The node with guest data.
    fn storage(&self) -> &dyn Node {
        self.data.as_deref().unwrap_or(&*self.file)
    }

    fn role(&self) -> Role {
        if self.header.has_data_file() { Role::DataFile } else { Role::File }
    }

    fn is_lazy(&self) -> bool {
        let by_header = || self.geometry().compatible & header::COMPATIBLE_LAZY_REFCOUNTS != 0;
        self.version() >= 3 && self.settings.lazy_refcounts.unwrap_or_else(by_header)
    }

    fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    fn refcount_order(&self) -> u32 {
        self.refcount_order.load(Ordering::Acquire)
    }

    /// Whether there is an external data file that is a raw image of the disk.
    fn is_data_file_raw(&self) -> bool {
        self.header.has_data_file() && self.geometry().autoclear & header::AUTOCLEAR_DATA_FILE_RAW != 0
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
            fast_zeroes: self.version() >= 3 || !self.has_backing(),
            zero_init: !self.has_backing(),
            ..NodeInfo::plain(0)
        }
    }

    fn child(&self, role: Role) -> Option<&Arc<dyn Node>> {
        match role {
            Role::File => Some(&self.file),
            Role::DataFile => self.data.as_ref(),
            _ => None,
        }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        match self.map_cached(range) {
            Some(Ok(extent)) => Op::ok(extent),
            _ => Op::future(self.watch_reading(self.map_loading(range))),
        }
    }

    fn expand<'a>(&'a self, host: Host, stored: u32, skip: usize, into: &'a mut [u8]) -> Op<'a, ()> {
        Op::future(self.expand_cluster(host.at, stored, skip, into))
    }

    fn in_place<'a>(&'a self, range: Range) -> Op<'a, InPlace> {
        if_writing(|| {
            let known = self.changing.load(Ordering::Acquire).then(|| self.in_place_cached(range)).flatten();
            if let Some(Ok(place)) = known {
                return Op::ok(place);
            }
            Op::future(self.watch(async move {
                self.begin_changing().await?;
                self.in_place_loading(range).await
            }))
        })
    }

    fn prepare<'a>(&'a self, range: Range) -> Op<'a, Allocation> {
        if_writing(|| Op::future(self.watch(self.prepare_write(range))))
    }

    fn commit<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.commit_write(allocation))))
    }

    fn abandon<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.abandon_write(allocation))))
    }

    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        if cfg!(feature = "write") { self.compress_cluster(cluster) } else { Ok(None) }
    }

    fn store_compressed<'a>(&'a self, at: u64, compressed: &'a [u8]) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.store_cluster(at, compressed))))
    }

    fn stores_compressed(&self) -> bool {
        !self.header.has_data_file()
    }

    fn vm_state_offset(&self) -> Option<u64> {
        let coverage = self.header.l2_coverage();
        Some(self.geometry().size.div_ceil(coverage) * coverage)
    }

    fn reserve_vm_state<'a>(&'a self, end: u64) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.reserve_l1(end))))
    }

    fn is_encrypted(&self) -> bool {
        !self.crypt.is_none()
    }

    fn missing_key(&self) -> Option<&'static str> {
        self.crypt.is_locked().then_some(encryption::KEY_SECRET)
    }

    fn encrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        self.crypt.encrypt(host, guest, bytes)
    }

    fn decrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        self.crypt.decrypt(host, guest, bytes)
    }

    fn zero_granularity(&self) -> u64 {
        self.header.cluster.size() / if self.header.is_extended() { table::SUBCLUSTERS } else { 1 }
    }

    fn zero<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.zero_range(range, flags))))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.discard_range(range))))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.flush_all())))
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch_closing(self.end_changing())))
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.resize_disk(length, preallocation))))
    }

    fn reserve<'a>(&'a self, length: u64) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.reserve_disk(length))))
    }

    fn amend<'a>(&'a self, request: &'a AmendRequest) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.change_properties(request))))
    }

    fn finish_amend<'a>(&'a self, request: &'a AmendRequest) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.finish_changing_properties(request))))
    }

    fn set_backing<'a>(&'a self, backing: Option<(&'a str, Option<&'a str>)>) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.rewrite_backing(backing))))
    }

    fn make_empty<'a>(&'a self) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.drop_everything())))
    }

    fn snapshot<'a>(&'a self, change: &'a SnapshotChange) -> Op<'a, ()> {
        if_writing(|| Op::future(self.watch(self.change_snapshots(change))))
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
        self.version() >= 3
    }

    fn change_bitmaps<'a>(&'a self, change: &'a BitmapChange<'a>) -> Op<'a, ()> {
        if_writing(|| Op::future(self.change_bitmaps(change)))
    }

    fn check_bitmap(&self, name: &str) -> Result<()> {
        self.usable_bitmap(name).map(|_| ())
    }

    fn read_bitmap<'a>(&'a self, name: &'a str) -> Op<'a, DirtyBitmap> {
        if_writing(|| Op::future(self.read_bitmap(name)))
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

    fn check<'a>(&'a self, repair: Repair) -> Op<'a, CheckReport> {
        Op::future(self.watch(self.check_all(repair)))
    }

    #[cfg(feature = "structure")]
    fn structure<'a>(&'a self, path: &'a [u64], from: u64, count: usize) -> Op<'a, Parts> {
        let data_file = self.data.as_deref();
        Op::future(structure::structure(StructureContext {
            file: &*self.file,
            data_file,
            header: None,
            path,
            from,
            count,
        }))
    }

    #[cfg(feature = "structure")]
    fn regions<'a>(&'a self) -> Op<'a, Regions> {
        Op::future(self.watch(self.find_regions()))
    }
}
