//! Changing properties of an image: its version, how wide refcounts are and when they are written, its data file.
//!
//! The order is that of QEMU: what version 3 allows comes after an upgrade, what version 2 does not allow before a
//! downgrade. Until the header says otherwise, in one small write, the image is what it was.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::drivers::CreateOption;
use crate::engine::AmendRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::{
    AUTOCLEAR_DATA_FILE_RAW, COMPATIBLE_LAZY_REFCOUNTS, Compression, Encryption, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_DIRTY, MAX_REFCOUNT_TABLE_BYTES,
};
use crate::formats::qcow2::health::{hex, impossible};
use crate::formats::qcow2::refcount::{Purpose, Refcounts};
use crate::formats::qcow2::rewrite::HeaderChange;
use crate::formats::qcow2::table::{COPIED, L2Entry, OFFSET_MASK, ZERO, refcount, refcount_place, set_refcount};
use crate::formats::qcow2::{L2_TABLE, Qcow2};
use crate::node::{Range, ReadFlags, WriteFlags};

const fn option(name: &'static str, kind: &'static str, help: &'static str) -> CreateOption {
    CreateOption { name, kind, help }
}

/// What can be changed, as QEMU lists it.
pub(super) const OPTIONS: &[CreateOption] = &[
    option("backing_file", "str", "File name of a base image"),
    option("backing_fmt", "str", "Image format of the base image"),
    option("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("data_file", "str", "File name of an external data file"),
    option("data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"),
    option("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    option("encrypt.keyslot", "num", "Select a single keyslot to modify explicitly"),
    option("encrypt.new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    option("encrypt.old-secret", "str", "Select all keyslots that match this password"),
    option("encrypt.state", "str", "Select new state of affected keyslots (active/inactive)"),
    option("lazy_refcounts", "bool (on/off)", "Postpone refcount updates"),
    option("refcount_bits", "num", "Width of a reference count entry in bits"),
    option("size", "size", "Virtual disk size"),
];

/// What a request wants, checked.
struct Wanted {
    version: u32,
    refcount_order: u32,
    lazy_refcounts: bool,
    data_file_raw: bool,
    data_file: Option<String>,
    backing: Option<(Option<String>, Option<String>)>,
}

/// How far all steps have come. How much the later ones will cost is taken from those before.
struct Steps<'a> {
    request: &'a AmendRequest,
    all: u64,
    done: u64,
    cost: u64,
    last: u64,
}

impl<'a> Steps<'a> {
    fn next(&mut self) {
        self.cost += self.last;
        self.done += u64::from(self.last > 0);
    }

    fn tell(&mut self, done: u64, total: u64) {
        self.last = total;
        let known = self.cost + total;
        let coming = known * self.all.saturating_sub(self.done + 1) / (self.done + 1);
        self.request.tell(self.cost + done, known + coming);
    }
}

impl Qcow2 {
    fn wanted(&self, request: &AmendRequest) -> Result<Wanted> {
        let options = &request.options;
        let flag = |name: &str, now: bool| match options.get(name).map(String::as_str) {
            None => Ok(now),
            Some("on" | "yes" | "true" | "y") => Ok(true),
            Some("off" | "no" | "false" | "n") => Ok(false),
            Some(_) => Err(Error::invalid(alloc::format!("Parameter '{name}' expects 'on' or 'off'"))),
        };
        if options.keys().any(|name| name.starts_with("encrypt.")) && self.header.encryption == Encryption::None {
            return Err(Error::invalid("Can't amend encryption options - encryption not present"));
        }
        let version = match options.get("compat").map(String::as_str) {
            None => self.version(),
            Some("0.10" | "v2") => 2,
            Some("1.1" | "v3") => 3,
            Some(other) => return Err(Error::invalid(alloc::format!("Unknown compatibility level {other}"))),
        };
        let refcount_order = match options.get("refcount_bits") {
            None => self.refcount_order(),
            Some(text) => {
                let bits: i64 =
                    text.parse().map_err(|_| Error::invalid("Parameter 'refcount_bits' expects a number"))?;
                if !(1..=64).contains(&bits) || bits.count_ones() != 1 {
                    return Err(Error::invalid("Refcount width must be a power of two and may not exceed 64 bits"));
                }
                bits.trailing_zeros()
            }
        };
        let data_file = options.get("data_file").cloned();
        if data_file.is_some() && !self.header.has_data_file() {
            return Err(Error::invalid("data-file can only be set for images that use an external data file"));
        }
        let data_file_raw = flag("data_file_raw", self.is_data_file_raw())?;
        if data_file_raw && !self.is_data_file_raw() {
            return Err(Error::invalid("data-file-raw cannot be set on existing images"));
        }
        let backing = ["backing_file", "backing_fmt"].iter().any(|name| options.contains_key(*name));
        let backing = backing.then(|| (options.get("backing_file").cloned(), options.get("backing_fmt").cloned()));
        let lazy_now = self.geometry().compatible & COMPATIBLE_LAZY_REFCOUNTS != 0;
        let lazy_refcounts = flag("lazy_refcounts", lazy_now)?;
        Ok(Wanted { version, refcount_order, lazy_refcounts, data_file_raw, data_file, backing })
    }

    fn steps<'a>(&self, request: &'a AmendRequest, wanted: &Wanted) -> Steps<'a> {
        let downgrade = wanted.version < self.version();
        let order = wanted.refcount_order != self.refcount_order();
        let all = u64::from(wanted.version > self.version()) + u64::from(downgrade) + u64::from(order);
        Steps { request, all: all.max(1), done: 0, cost: 0, last: 0 }
    }

    /// Changes everything but the size, and but the version if it is to be an older one.
    pub(super) async fn change_properties(&self, request: &AmendRequest) -> Result<()> {
        let wanted = self.wanted(request)?;
        let mut steps = self.steps(request, &wanted);
        self.begin_changing().await?;
        self.write_back_all(&mut *self.lock_refcounts().await).await?;
        if wanted.version > self.version() {
            steps.tell(0, 2);
            self.upgrade().await?;
            steps.tell(2, 2);
        }
        if request.options.keys().any(|name| name.starts_with("encrypt.")) {
            self.amend_encryption(request).await?;
        }
        if wanted.refcount_order != self.refcount_order() {
            if wanted.version < 3 && wanted.refcount_order != 4 {
                return Err(Error::invalid(
                    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
                ));
            }
            steps.next();
            self.change_refcount_order(wanted.refcount_order, &mut steps).await?;
        }
        if wanted.data_file_raw != self.is_data_file_raw() {
            self.keep_autoclear(!AUTOCLEAR_DATA_FILE_RAW).await?;
        }
        if let Some(name) = &wanted.data_file {
            let change = HeaderChange { data_file: Some(name), ..HeaderChange::default() };
            self.rewrite_header(&change).await?;
        }
        let now = (self.backing_name.clone(), self.extensions.backing_format.clone());
        if wanted.backing.as_ref().is_some_and(|backing| *backing != now) {
            return Err(Error::invalid("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead."));
        }
        self.change_laziness(&wanted).await
    }

    /// Makes the version an older one, if that is asked for.
    pub(super) async fn finish_changing_properties(&self, request: &AmendRequest) -> Result<()> {
        let wanted = self.wanted(request)?;
        if wanted.version >= self.version() {
            return Ok(());
        }
        let mut steps = self.steps(request, &wanted);
        self.downgrade(&mut steps).await
    }

    async fn change_laziness(&self, wanted: &Wanted) -> Result<()> {
        let compatible = self.geometry().compatible;
        if wanted.lazy_refcounts == (compatible & COMPATIBLE_LAZY_REFCOUNTS != 0) {
            return Ok(());
        }
        if wanted.lazy_refcounts && wanted.version < 3 {
            return Err(Error::invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        // Whatever is late is written first.
        self.write_back_all(&mut *self.lock_refcounts().await).await?;
        self.set_incompatible(self.geometry().incompatible & !INCOMPATIBLE_DIRTY).await?;
        let new = compatible ^ COMPATIBLE_LAZY_REFCOUNTS;
        self.file.write(80, &new.to_be_bytes(), WriteFlags::default()).await?;
        self.geometry.lock().compatible = new;
        self.file.flush().await?;
        if wanted.lazy_refcounts && self.is_lazy() {
            // From now on refcounts may be late again.
            self.set_incompatible(self.geometry().incompatible | INCOMPATIBLE_DIRTY).await?;
        }
        Ok(())
    }

    async fn upgrade(&self) -> Result<()> {
        let incomplete = self.directory.lock().snapshots.iter().any(|snapshot| !snapshot.is_complete());
        if incomplete {
            let mut refcounts = self.lock_refcounts().await;
            self.put_complete_directory(&mut refcounts).await?;
            self.write_back_all(&mut refcounts).await?;
        }
        self.rewrite_header(&HeaderChange { version: Some(3), ..HeaderChange::default() }).await?;
        self.version.store(3, Ordering::Release);
        Ok(())
    }

    async fn downgrade(&self, steps: &mut Steps<'_>) -> Result<()> {
        if self.refcount_order() != 4 {
            return Err(Error::unsupported("compat=0.10 requires refcount_bits=16"));
        }
        if self.header.has_data_file() {
            return Err(Error::unsupported("Cannot downgrade an image with a data file"));
        }
        let size = self.geometry().size;
        let differs = self
            .directory
            .lock()
            .snapshots
            .iter()
            .any(|snapshot| snapshot.about.vm_state_size > u32::MAX.into() || snapshot.about.disk_size != size);
        if differs {
            return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
        }
        let features = self.geometry().incompatible & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION);
        if features != 0 {
            return Err(Error::unsupported(alloc::format!(
                "Cannot downgrade an image with incompatible features {features:#x} set"
            )));
        }
        // QEMU goes on, and the bitmaps are lost.
        if !self.bitmaps.lock().list.is_empty() {
            return Err(Error::unsupported("Cannot downgrade an image with persistent bitmaps"));
        }
        let zstd = self.header.compression != Compression::Deflate;
        steps.next();
        let expanded = self.expand_zeroes(steps, zstd).await;
        let compressed = expanded.map_err(|error| match error.problem().downcast_ref() {
            // What makes the image corrupt is told as such.
            Some(crate::formats::qcow2::header::Problem::Impossible { .. }) => {
                error.with_headline("Failed to turn zero into data clusters: Input/output error")
            }
            _ => Error::new(error.kind(), alloc::format!("Failed to turn zero into data clusters: {error}")),
        })?;
        if zstd && compressed {
            return Err(Error::unsupported(
                "Cannot downgrade an image with zstd compression type and existing compressed clusters",
            ));
        }
        self.write_back_all(&mut *self.lock_refcounts().await).await?;
        self.rewrite_header(&HeaderChange { version: Some(2), ..HeaderChange::default() }).await?;
        self.version.store(2, Ordering::Release);
        let mut geometry = self.geometry.lock();
        (geometry.incompatible, geometry.compatible, geometry.autoclear) = (0, 0, 0);
        Ok(())
    }

    /// Gives every cluster that is marked as zeroes a place where zeroes are, or, where nothing is behind it, none. With
    /// `look`, returns whether there are compressed clusters.
    async fn expand_zeroes(&self, steps: &mut Steps<'_>, look: bool) -> Result<bool> {
        let geometry = self.geometry();
        let mut tables = vec![(geometry.l1_offset, geometry.l1_entries)];
        for snapshot in self.directory.lock().snapshots.iter() {
            self.check_snapshot_l1(snapshot)?;
            tables.push((snapshot.l1_offset, snapshot.l1_entries));
        }
        let all = tables.iter().map(|(_, entries)| entries).sum();
        let mut done = 0;
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut compressed = false;
        for (at, entries) in tables {
            for (index, entry) in (0u64..).zip(self.read_l1(at, entries).await?) {
                let table = entry & OFFSET_MASK;
                if table != 0 && !self.header.cluster.is_aligned(table) {
                    let what = alloc::format!("L2 table offset {} unaligned (L1 index: {})", hex(table), hex(index));
                    return Err(impossible(what, entry, "a multiple of the cluster size", at + index * 8));
                }
                if table != 0 && seen.insert(table) {
                    compressed |= self.expand_table(table, look).await?;
                }
                done += 1;
                steps.tell(done, all);
            }
        }
        Ok(compressed)
    }

    /// Expands the zeroes of one L2 table. Returns whether it has compressed clusters.
    async fn expand_table(&self, table: u64, look: bool) -> Result<bool> {
        let cluster = self.header.cluster;
        let mut compressed = false;
        let mut refcounts = self.lock_refcounts().await;
        self.check_shared_l2_overlap(Range::new(table, cluster.size()))?;
        let times = self.reference_count(&refcounts, table).await?;
        for index in 0..self.header.l2_entries() {
            self.make_room(&mut refcounts).await?;
            self.cache.hold(&*self.file, table, cluster.size() as usize, L2_TABLE).await?;
            let old = self.entry(table, index);
            compressed |= look && old.is_compressed();
            if old.is_compressed() || old.word & ZERO == 0 {
                continue;
            }
            let host = old.host(false);
            if host.is_none() && !self.has_backing() {
                self.set_entry(table, index, L2Entry::default());
                continue;
            }
            if !self.crypt.is_none() {
                return Err(Error::unsupported("clusters of zeroes in an encrypted image need version 3"));
            }
            // A place that others have data in stays theirs.
            let shared = match host {
                Some(host) if cluster.is_aligned(host) => self.reference_count(&refcounts, host).await? > times,
                _ => false,
            };
            if let Some(host) = host.filter(|_| shared) {
                for _ in 0..times {
                    refcounts.release(host);
                }
            }
            let (host, flag) = match host.filter(|_| !shared) {
                Some(host) if !cluster.is_aligned(host) => {
                    let what = alloc::format!(
                        "Cluster allocation offset {} unaligned (L2 offset: {}, L2 index: {})",
                        hex(host),
                        hex(table),
                        hex(index)
                    );
                    return Err(impossible(what, old.word, "a multiple of the cluster size", table + index * 8));
                }
                Some(host) => {
                    self.check_overlap(Range::new(host, cluster.size()))?;
                    (host, old.word & COPIED)
                }
                None => {
                    let (host, _) = self.take_clusters(&mut refcounts, 1, Purpose::Data).await?;
                    // Every table that leads here is a user.
                    for _ in 1..times {
                        self.add_reference(&mut refcounts, host).await?;
                    }
                    (host, if times <= 1 { COPIED } else { 0 })
                }
            };
            self.zero_host(Range::new(host, cluster.size())).await?;
            self.set_entry(table, index, L2Entry { word: host | flag, bitmap: 0 });
        }
        Ok(compressed)
    }

    /// Writes a new refcount structure with refcounts of another width, then lets the header point to it.
    async fn change_refcount_order(&self, order: u32, steps: &mut Steps<'_>) -> Result<()> {
        let mut refcounts = self.lock_refcounts().await;
        self.pad_file().await?;
        self.write_back_all(&mut refcounts).await?;
        let cluster = self.header.cluster;
        let mut placed = Placed::default();
        let written = async {
            self.place_structure(&mut refcounts, order, steps, &mut placed).await?;
            self.write_structure(&mut refcounts, order, steps, &placed).await
        };
        let (old_blocks, (old_at, old_clusters)) = match written.await {
            Ok(old_blocks) => (old_blocks, refcounts.place()),
            Err(error) => {
                placed.blocks.values().for_each(|block| refcounts.release(*block));
                (0..placed.table_clusters)
                    .for_each(|index| refcounts.release(placed.table + (index << cluster.bits())));
                // The first failure is the one to report; what is not given back now is when the image is closed.
                let _ = self.write_back_all(&mut refcounts).await;
                return Err(error);
            }
        };
        let Placed { table, table_clusters, .. } = placed;
        // Place and size of the table, the snapshots, features and the width lie within one sector.
        let mut fields = [0; 52];
        self.file.read(48, &mut fields, ReadFlags::default()).await?;
        fields[..8].copy_from_slice(&table.to_be_bytes());
        fields[8..12].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        fields[48..].copy_from_slice(&order.to_be_bytes());
        self.file.write(48, &fields, WriteFlags::default()).await?;
        self.refcount_order.store(order, Ordering::Release);
        self.geometry.lock().refcount_table = Range::new(table, table_clusters << cluster.bits());
        refcounts.replace(table, table_clusters);
        self.cache.clear();
        self.metadata.forget_tables();
        self.file.flush().await?;
        self.find_tables().await?;
        for block in old_blocks.into_iter().filter(|block| *block != 0) {
            refcounts.release(block);
        }
        for index in 0..old_clusters {
            refcounts.release(old_at + (index << cluster.bits()));
        }
        self.write_back_all(&mut refcounts).await
    }

    /// Writes a refcount structure of another width to its place. Gives the blocks of the old one.
    async fn write_structure(
        &self,
        refcounts: &mut Refcounts,
        order: u32,
        steps: &mut Steps<'_>,
        placed: &Placed,
    ) -> Result<Vec<u64>> {
        let Placed { blocks, table, table_clusters, walks } = placed;
        // All that the old structure says goes into the new one, which is part of it already.
        self.write_back_all(refcounts).await?;
        let cluster = self.header.cluster;
        let per_new = (cluster.size() * 8) >> order;
        let mut entries = vec![0; (table_clusters << cluster.bits()) as usize];
        for (done, (index, at)) in (0u64..).zip(blocks) {
            let bytes = self.converted_block(refcounts, index * per_new, per_new, order).await?;
            self.file.write(*at, &bytes, WriteFlags::default()).await?;
            let start = *index as usize * 8;
            if let Some(place) = entries.get_mut(start..start + 8) {
                place.copy_from_slice(&at.to_be_bytes());
            }
            steps.tell(walks * blocks.len() as u64 + done, (walks + 1) * blocks.len() as u64);
        }
        self.file.write(*table, &entries, WriteFlags::default()).await?;
        self.file.flush().await?;
        let mut old_blocks = Vec::new();
        for index in 0..(refcounts.place().1 << cluster.bits()) / 8 {
            old_blocks.push(self.block_offset(refcounts, index).await?);
        }
        Ok(old_blocks)
    }

    /// Takes clusters for a refcount structure of another width, until it has room for all that is in use, itself too.
    async fn place_structure(
        &self,
        refcounts: &mut Refcounts,
        order: u32,
        steps: &mut Steps<'_>,
        placed: &mut Placed,
    ) -> Result<()> {
        let cluster = self.header.cluster;
        let per_new = (cluster.size() * 8) >> order;
        let largest = if order == 6 { u64::MAX } else { (1 << (1u32 << order)) - 1 };
        loop {
            let walks = (placed.walks + 2).max(3);
            let (_, table_clusters) = refcounts.place();
            let entries = (table_clusters << cluster.bits()) / 8;
            let mut needed = BTreeSet::new();
            for index in 0..entries {
                steps.tell(placed.walks * entries + index, walks * entries);
                self.look_for_blocks(refcounts, index, per_new, largest, order, &mut needed).await?;
            }
            steps.tell((placed.walks + 1) * entries, walks * entries);
            let missing: Vec<u64> = needed.iter().filter(|index| !placed.blocks.contains_key(index)).copied().collect();
            placed.walks += 1;
            if missing.is_empty() && placed.table_clusters > 0 {
                return Ok(());
            }
            for index in missing {
                let (at, _) = self.take_clusters(refcounts, 1, Purpose::Data).await?;
                placed.blocks.insert(index, at);
            }
            let wanted = placed.blocks.keys().next_back().map_or(1, |last| last + 1);
            let clusters = cluster.count(wanted * 8);
            if clusters << cluster.bits() > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    "This operation would make the refcount table grow beyond the maximum size supported by QEMU, aborting",
                ));
            }
            if clusters > placed.table_clusters {
                for index in 0..placed.table_clusters {
                    self.drop_reference(refcounts, placed.table + (index << cluster.bits())).await?;
                }
                placed.table_clusters = 0;
                placed.table = self.take_contiguous(refcounts, clusters).await?;
                placed.table_clusters = clusters;
            }
        }
    }

    /// Notes which new blocks it takes to describe what an old one describes.
    async fn look_for_blocks(
        &self,
        refcounts: &Refcounts,
        index: u64,
        per_new: u64,
        largest: u64,
        new_order: u32,
        needed: &mut BTreeSet<u64>,
    ) -> Result<()> {
        let block = self.block_offset(refcounts, index).await?;
        if block == 0 {
            return Ok(());
        }
        self.load_block(block).await?;
        let (per_block, order) = (self.refcounts_per_block(), self.refcount_order());
        let first = index * per_block;
        let too_large = self.cache.peek(block, |bytes| {
            for entry in 0..per_block {
                let times = refcount(bytes, entry, order).unwrap_or(0);
                if times > largest {
                    return Some((first + entry, times));
                }
                if times > 0 {
                    needed.insert((first + entry) / per_new);
                }
            }
            None
        });
        match too_large.flatten() {
            None => Ok(()),
            Some((cluster, times)) => Err(Error::invalid(alloc::format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {times}",
                1u32 << new_order,
                cluster << self.header.cluster.bits()
            ))),
        }
    }

    /// A block of `count` refcounts of another width, from cluster `first` on.
    async fn converted_block(&self, refcounts: &mut Refcounts, first: u64, count: u64, order: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.header.cluster.size() as usize];
        let (per_block, old_order) = (self.refcounts_per_block(), self.refcount_order());
        let mut at = first;
        while at < first + count {
            let end = ((at / per_block + 1) * per_block).min(first + count);
            let block = self.block_offset(refcounts, at / per_block).await?;
            if block != 0 {
                self.load_block(block).await?;
                self.cache.peek(block, |old| {
                    for cluster in at..end {
                        let times = refcount(old, cluster % per_block, old_order).unwrap_or(0);
                        let (start, len) = refcount_place(cluster - first, order);
                        if let Some(place) = bytes.get_mut(start..start + len).filter(|_| times > 0) {
                            set_refcount(place, cluster - first, order, times);
                        }
                    }
                });
                self.cache.release();
            }
            at = end;
        }
        Ok(bytes)
    }
}

/// Where a new refcount structure goes: its blocks by their index, and its table.
#[derive(Default)]
struct Placed {
    blocks: BTreeMap<u64, u64>,
    table: u64,
    table_clusters: u64,
    /// How often everything was gone through.
    walks: u64,
}
