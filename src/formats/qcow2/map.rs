//! From guest ranges to extents: the L1 and L2 walk, and expanding compressed clusters.

use alloc::sync::Arc;
use alloc::vec;

use byteorder::{BE, ByteOrder};

use crate::codec;
use crate::engine::InPlace;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::header::{ClusterBits, Compression, Encryption, MAX_HOST_OFFSET, Problem};
use crate::formats::qcow2::health::{hex, impossible};
use crate::formats::qcow2::table::{COPIED, L2Entry, Mapping, OFFSET_MASK, SUBCLUSTERS, word};
use crate::formats::qcow2::{Geometry, L1_TABLE, L2_TABLE, PIECE_BYTES, Qcow2};
use crate::node::{Extent, Host, Range, ReadFlags, State};

/// A step of a walk that needs a table which is not in memory.
pub(super) enum Missing {
    /// Piece of the L1 table: offset and length.
    L1 { at: u64, len: usize },
    /// L2 table at this offset.
    L2 { at: u64 },
}

/// The answer, a table to load first, or what is wrong.
pub(super) type Walk<T> = core::result::Result<T, Missing>;

impl Qcow2 {
    /// The piece of the L1 table that holds entry `index`: its offset and length, and the index within it.
    pub(super) fn l1_piece(geometry: Geometry, index: u64) -> (u64, usize, usize) {
        let per_piece = PIECE_BYTES / 8;
        let piece = index / per_piece;
        let at = geometry.l1_offset + piece * PIECE_BYTES;
        let len = (geometry.l1_entries - piece * per_piece).min(per_piece) * 8;
        (at, len as usize, (index % per_piece) as usize)
    }

    /// Loads what a walk was missing.
    pub(super) async fn load_missing(&self, missing: Missing) -> Result<()> {
        let (at, len, level) = match missing {
            Missing::L1 { at, len } => (at, len, L1_TABLE),
            Missing::L2 { at } => (at, self.header.cluster.size() as usize, L2_TABLE),
        };
        self.cache.load(&*self.file, at, len, level).await
    }

    /// The L1 entry at `index`, checked.
    pub(super) fn l1_entry(&self, index: u64) -> Walk<Result<u64>> {
        let geometry = self.geometry();
        if index >= geometry.l1_entries {
            return Ok(Ok(0));
        }
        let (at, len, within) = Self::l1_piece(geometry, index);
        let entry = self.cache.peek(at, |table| word(table, within)).ok_or(Missing::L1 { at, len })?;
        Ok(self.check_l1_entry(index, entry.unwrap_or(0), geometry))
    }

    fn check_l1_entry(&self, index: u64, entry: u64, geometry: Geometry) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        if self.header.cluster.is_aligned(offset) && entry & !(OFFSET_MASK | COPIED) == 0 {
            return Ok(entry);
        }
        if !self.header.cluster.is_aligned(offset) {
            let what = alloc::format!("L2 table offset {} unaligned (L1 index: {})", hex(offset), hex(index));
            return Err(impossible(what, entry, "a multiple of the cluster size", geometry.l1_offset + index * 8));
        }
        Err(Problem::Entry { table: "L1", index, found: entry, expected: "a multiple of the cluster size" }
            .corrupt_at(geometry.l1_offset + index * 8))
    }

    /// How many bytes from `start` on have no L2 table, looking no further than the loaded piece of the L1 table.
    fn unmapped_run(&self, start: u64, max: u64) -> u64 {
        let geometry = self.geometry();
        let coverage = self.header.l2_coverage();
        let index = start / coverage;
        let mut end = (index + 1) * coverage;
        if index < geometry.l1_entries {
            let (at, _, within) = Self::l1_piece(geometry, index);
            let more = self.cache.peek(at, |table| {
                (within + 1..table.len() / 8).take_while(|next| word(table, *next) == Some(0)).count()
            });
            end = end.saturating_add(more.unwrap_or(0) as u64 * coverage);
        }
        (end - start).min(max)
    }

    pub(super) async fn map_loading(&self, range: Range) -> Result<Extent> {
        loop {
            match self.walk_extent(range) {
                Ok(result) => return result,
                Err(missing) => self.load_missing(missing).await?,
            }
        }
    }

    pub(super) fn map_cached(&self, range: Range) -> Option<Result<Extent>> {
        self.walk_extent(range).ok()
    }

    fn walk_extent(&self, range: Range) -> Walk<Result<Extent>> {
        let coverage = self.header.l2_coverage();
        let l1 = match self.l1_entry(range.start / coverage)? {
            Ok(l1) => l1,
            Err(error) => return Ok(Err(error)),
        };
        let l2_at = l1 & OFFSET_MASK;
        if l2_at == 0 {
            let len = self.unmapped_run(range.start, range.len);
            return Ok(Ok(Extent { len, state: State::Unallocated, host: None }));
        }
        let walked = self.cache.peek(l2_at, |table| self.extent_in(table, l2_at, range));
        walked.ok_or(Missing::L2 { at: l2_at })
    }

    /// The extent at the start of `range`, within the L2 table at `l2_at`.
    fn extent_in(&self, table: &[u8], l2_at: u64, range: Range) -> Result<Extent> {
        let units = Units::of(self);
        let mut run = Run::default();
        let mut unit = range.start % self.header.l2_coverage() / units.size;
        let mut at = range.start;
        while unit < units.per_table && at < range.end() {
            let within_cluster = self.header.cluster.within(at);
            let mapping = match units.mapping(table, unit, at - within_cluster) {
                Ok(mapping) => mapping,
                // What is in front of a wrong entry can be used.
                Err(_) if run.len > 0 => break,
                Err(wrong) => {
                    let index = unit / units.per_cluster;
                    let guest = at - within_cluster;
                    return Err(wrong.error(l2_at, index, guest, self.header.l2_entry_size()));
                }
            };
            if within_cluster == 0 && matches!(run.state, State::Compressed { .. }) {
                // Two compressed clusters are never one extent, not even in the same place.
                break;
            }
            let unit_end = (at / units.size + 1) * units.size;
            let len = unit_end.min(range.end()) - at;
            if !run.extend(self.piece(mapping, within_cluster), len) {
                break;
            }
            let more = units.alike(table, unit, (range.end() - at - len) / units.size);
            run.len += more * units.size;
            at += len + more * units.size;
            unit += 1 + more;
        }
        Ok(Extent { len: run.len, state: run.state, host: run.host })
    }

    fn piece(&self, mapping: Mapping, within_cluster: u64) -> (State, Option<Host>) {
        let place = |host: u64| Some(Host { role: self.role(), at: host + within_cluster });
        match mapping {
            Mapping::Unallocated { host } => (State::Unallocated, host.and_then(place)),
            Mapping::Zero { host } => (State::Zero, host.and_then(place)),
            Mapping::Data { host } if self.header.encryption == Encryption::None => (State::Data, place(host)),
            Mapping::Data { host } => (State::Encrypted, place(host)),
            Mapping::Compressed { host, stored } => {
                (State::Compressed { stored }, Some(Host { role: crate::node::Role::File, at: host }))
            }
        }
    }

    pub(super) async fn in_place_loading(&self, range: Range) -> Result<InPlace> {
        loop {
            match self.walk_in_place(range) {
                Ok(result) => return result,
                Err(missing) => self.load_missing(missing).await?,
            }
        }
    }

    pub(super) fn in_place_cached(&self, range: Range) -> Option<Result<InPlace>> {
        self.walk_in_place(range).ok()
    }

    /// Like a walk for reading, but only data that nobody else refers to counts as data.
    fn walk_in_place(&self, range: Range) -> Walk<Result<InPlace>> {
        let coverage = self.header.l2_coverage();
        let l1 = match self.l1_entry(range.start / coverage)? {
            Ok(l1) => l1,
            Err(error) => return Ok(Err(error)),
        };
        let l2_at = l1 & OFFSET_MASK;
        let in_table = (coverage - range.start % coverage).min(range.len);
        if l2_at == 0 || l1 & COPIED == 0 {
            return Ok(Ok(InPlace { len: in_table, host: None }));
        }
        let range = Range::new(range.start, in_table);
        let units = Units::of(self);
        let walked = self.cache.peek(l2_at, |table| -> Result<InPlace> {
            let extent = self.extent_in(table, l2_at, range)?;
            let first = range.start % coverage / self.header.cluster.size();
            let last = (range.start % coverage + extent.len - 1) / self.header.cluster.size();
            let copied = |index: u64| L2Entry::read(table, index, units.extended).is_some_and(L2Entry::is_copied);
            match (extent.state, extent.host) {
                (State::Data | State::Encrypted, Some(host)) => {
                    let owned = (first..=last).take_while(|index| copied(*index)).count() as u64;
                    if owned == 0 {
                        return Ok(InPlace { len: extent.len, host: None });
                    }
                    let end = (range.start / self.header.cluster.size() + owned) * self.header.cluster.size();
                    Ok(InPlace { len: extent.len.min(end - range.start), host: Some(host) })
                }
                _ => Ok(InPlace { len: extent.len, host: None }),
            }
        });
        let place = match walked {
            Some(place) => place,
            None => return Err(Missing::L2 { at: l2_at }),
        };
        Ok(place.and_then(|place| match place.host {
            Some(host) => self.check_guest_overlap(Range::new(host.at, place.len)).map(|()| place),
            None => Ok(place),
        }))
    }

    /// Expands a compressed cluster and copies part of it. The last one is kept for the next reader.
    pub(super) async fn expand_cluster(&self, host: u64, stored: u32, skip: usize, into: &mut [u8]) -> Result<()> {
        let known = self.expanded.lock().as_ref().filter(|(at, _)| *at == host).map(|(_, bytes)| bytes.clone());
        let bytes = match known {
            Some(bytes) => bytes,
            None => {
                let size = self.header.cluster.size() as usize;
                let whole = skip == 0 && into.len() == size;
                if whole {
                    return self.expand_into(host, stored, into).await;
                }
                let mut bytes = vec![0; size];
                self.expand_into(host, stored, &mut bytes).await?;
                let bytes: Arc<[u8]> = bytes.into();
                *self.expanded.lock() = Some((host, bytes.clone()));
                bytes
            }
        };
        match bytes.get(skip..skip + into.len()) {
            Some(part) => {
                into.copy_from_slice(part);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Corrupt, "a compressed extent is longer than a cluster").at_offset(host)),
        }
    }

    async fn expand_into(&self, host: u64, stored: u32, into: &mut [u8]) -> Result<()> {
        if self.crypt.is_locked() {
            // It is stored as it is, but who has no key is not shown parts of the disk.
            return Err(crate::crypto::locked().at_offset(host));
        }
        if into.len() > self.expanded_bytes {
            return Err(Error::new(
                ErrorKind::OverBudget,
                alloc::format!(
                    "a compressed cluster expands to {} bytes; the budget is {}",
                    into.len(),
                    self.expanded_bytes
                ),
            )
            .at_offset(host));
        }
        let available = self.file.info().length.saturating_sub(host).min(stored.into());
        if available == 0 {
            return Err(Problem::Truncated {
                what: "a compressed cluster",
                found: self.file.info().length,
                expected: host + 1,
            }
            .corrupt_at(host));
        }
        let mut compressed = vec![0; available as usize];
        self.file.read(host, &mut compressed, ReadFlags::default()).await?;
        match self.header.compression {
            Compression::Deflate => codec::inflate(&compressed, into),
            Compression::Zstd => codec::unzstd(&compressed, into),
        }
        .map_err(|error| error.at_offset(host))
    }
}

/// Clusters, or subclusters with extended L2 entries: the unit whose state can differ.
struct Units {
    size: u64,
    per_cluster: u64,
    per_table: u64,
    extended: bool,
    external: bool,
    version: u32,
    cluster: ClusterBits,
}

impl Units {
    fn of(image: &Qcow2) -> Self {
        let header = &image.header;
        let extended = header.is_extended();
        let per_cluster = if extended { SUBCLUSTERS } else { 1 };
        Units {
            size: header.cluster.size() / per_cluster,
            per_cluster,
            per_table: header.l2_entries() * per_cluster,
            extended,
            external: header.has_data_file(),
            version: image.version(),
            cluster: header.cluster,
        }
    }

    /// How many entries after that of `unit`, at most `max`, go on as it does: the same bits, and where it has a host
    /// offset the clusters that follow. Subclusters and compressed clusters are not looked at.
    fn alike(&self, table: &[u8], unit: u64, max: u64) -> u64 {
        let Some(entry) = L2Entry::read(table, unit, false).filter(|_| !self.extended) else { return 0 };
        let (step, max) = match entry.host(self.external) {
            _ if entry.is_compressed() => return 0,
            Some(host) => (self.cluster.size(), max.min((OFFSET_MASK - host) / self.cluster.size())),
            None => (0, max),
        };
        let mut expected = entry.word;
        let rest = table.get((unit as usize + 1) * 8..).unwrap_or_default();
        let alike = rest.chunks_exact(8).take(max as usize).take_while(|next| {
            expected = expected.wrapping_add(step);
            BE::read_u64(next) == expected
        });
        alike.count() as u64
    }

    /// What the table says about a unit of the cluster at `guest`, or the entry and what was expected of it.
    fn mapping(&self, table: &[u8], unit: u64, guest: u64) -> core::result::Result<Mapping, Wrong> {
        let wrong = |why, found| Err(Wrong { why, found });
        let entry = L2Entry::read(table, unit / self.per_cluster, self.extended).unwrap_or_default();
        let mapping = if self.extended {
            let sub = (unit % self.per_cluster) as u32;
            entry.sub_mapping(sub, self.cluster, self.external).ok_or(Wrong { why: Why::Bits, found: entry.bitmap })?
        } else {
            entry.mapping(self.cluster, self.external)
        };
        match mapping {
            Mapping::Data { host } | Mapping::Zero { host: Some(host) } | Mapping::Unallocated { host: Some(host) }
                if self.external && host != guest =>
            {
                wrong(Why::Elsewhere, entry.word)
            }
            Mapping::Data { host } | Mapping::Zero { host: Some(host) } | Mapping::Unallocated { host: Some(host) }
                if !self.cluster.is_aligned(host) =>
            {
                wrong(Why::Unaligned, entry.word)
            }
            Mapping::Compressed { .. } if self.external => wrong(Why::Compressed, entry.word),
            Mapping::Zero { .. } if self.version < 3 => wrong(Why::ZeroBeforeVersion3, entry.word),
            Mapping::Compressed { host, stored } if host + u64::from(stored) > MAX_HOST_OFFSET => {
                wrong(Why::Beyond, entry.word)
            }
            mapping => Ok(mapping),
        }
    }
}

/// An L2 entry that cannot be, and why.
struct Wrong {
    why: Why,
    found: u64,
}

#[derive(Clone, Copy)]
enum Why {
    Bits,
    Elsewhere,
    Unaligned,
    Compressed,
    ZeroBeforeVersion3,
    Beyond,
}

impl Wrong {
    /// The error for the entry at `index` of the table at `table`, which maps guest offset `guest`.
    fn error(&self, table: u64, index: u64, guest: u64, entry_size: u64) -> Error {
        let place = alloc::format!("(L2 offset: {}, L2 index: {})", hex(table), hex(index));
        let host = self.found & OFFSET_MASK;
        let (what, expected) = match self.why {
            Why::Bits => (alloc::format!("Invalid cluster entry found {place}"), "consistent subcluster bits"),
            Why::Elsewhere => (
                alloc::format!(
                    "External data file host cluster offset {} does not match guest cluster offset: {}, L2 index: {})",
                    hex(host),
                    hex(guest),
                    hex(index)
                ),
                "the guest offset, where an external data file has it",
            ),
            Why::Unaligned => (
                alloc::format!("Cluster allocation offset {} unaligned {place}", hex(host)),
                "a multiple of the cluster size",
            ),
            Why::Compressed => (
                alloc::format!("Compressed cluster entry found in image with external data file {place}"),
                "no compressed cluster with an external data file",
            ),
            Why::ZeroBeforeVersion3 => {
                (alloc::format!("Zero cluster entry found in pre-v3 image {place}"), "no zero flag before version 3")
            }
            Why::Beyond => {
                let entry =
                    Problem::Entry { table: "L2", index, found: self.found, expected: "a host offset below 2^56" };
                return entry.corrupt_at(table + index * entry_size);
            }
        };
        impossible(what, self.found, expected, table + index * entry_size)
    }
}

/// Units that continue each other.
struct Run {
    len: u64,
    state: State,
    host: Option<Host>,
}

impl Default for Run {
    fn default() -> Self {
        Run { len: 0, state: State::Unallocated, host: None }
    }
}

impl Run {
    /// Adds `len` bytes if they continue the run.
    fn extend(&mut self, (state, host): (State, Option<Host>), len: u64) -> bool {
        if self.len == 0 {
            *self = Run { len, state, host };
            return true;
        }
        let continues = state == self.state
            && match (self.state, self.host, host) {
                // Subclusters of one compressed cluster go together, two compressed clusters never do.
                (State::Compressed { .. }, Some(first), Some(next)) => first == next,
                (_, Some(first), Some(next)) => first.at + self.len == next.at,
                (_, None, None) => true,
                _ => false,
            };
        if continues {
            self.len += len;
        }
        continues
    }
}
