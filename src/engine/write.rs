//! Writing: in place where that is allowed, else prepare, fill, commit.
//!
//! A request that has to allocate is serialising at the format's cluster size: nobody else looks at, fills or frees the
//! same clusters meanwhile, and data is never reachable before it is written.

use alloc::vec;
use alloc::vec::Vec;

use crate::drivers::{Drivers, PROBE_BYTES, Probe};
use crate::engine::format::{Allocation, InPlace};
use crate::engine::image::{DetectZeroes, Image};
use crate::engine::requests::{RequestKind, Tracked};
use crate::engine::status::Chain;
use crate::engine::zero::is_zero;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::node::{Extent, Host, Node, Range, State, Want, WriteFlags, check_bounds};
use crate::op::Op;

/// Zeroes are written, where the format has no better way, in pieces of this many bytes.
const ZERO_PIECE_BYTES: usize = 1 << 20;

/// What is read from a backing image is stored in pieces of about so many bytes.
const PULL_BYTES: u64 = 1 << 20;

/// Head, data and tail of an allocation up to this many bytes go out as one write.
const MERGE_BYTES: u64 = 1 << 20;

impl Image {
    /// A write on behalf of a host.
    pub(crate) fn write_tracked<'a>(&'a self, at: u64, from: &'a [u8], mut flags: WriteFlags) -> Op<'a, ()> {
        flags.force_unit_access |= self.options.write_through;
        let range = Range::new(at, from.len() as u64);
        if let Err(error) = self.check_write(range) {
            return Op::err(error);
        }
        if from.is_empty() {
            return Op::ok(());
        }
        if flags.compressed {
            return Op::future(async move {
                let write = async {
                    self.write_compressed(at, from).await?;
                    if flags.force_unit_access { self.format.flush().await } else { Ok(()) }
                };
                write.await.map_err(|error| self.explain(error))
            });
        }
        if self.options.detect_zeroes != DetectZeroes::Off && is_zero(from) {
            let may_unmap = self.options.detect_zeroes == DetectZeroes::Unmap;
            return self.write_zeroes(range, WriteFlags { may_unmap, ..flags });
        }
        if let Some(drivers) = self.guard().filter(|_| at < PROBE_BYTES as u64) {
            return Op::future(async move {
                let write = async {
                    let request = self.requests.begin(RequestKind::Write, range);
                    request.mark_serialising(PROBE_BYTES as u64);
                    request.wait().await;
                    self.check_guard(drivers, at, from).await?;
                    let _recorded = self.recording(range);
                    self.write_mapped(&request, at, from).await?;
                    if flags.force_unit_access { self.format.flush().await } else { Ok(()) }
                };
                write.await.map_err(|error| self.explain(error))
            });
        }
        let request = self.requests.begin(RequestKind::Write, range);
        let in_sectors = self.is_in_sectors(range);
        let plain = !self.format.is_encrypted() && !flags.serialising && !flags.force_unit_access;
        if request.undisturbed() && plain && !self.is_listened() {
            // One piece that is allocated already: hand it to the leaf.
            match self.format.in_place(range) {
                Op::Ready(Ok(InPlace { len, host: Some(host) })) if len == range.len => {
                    self.format.record(range);
                    return match self.storage(host.role).map(|node| node.write(host.at, from, WriteFlags::default())) {
                        Ok(Op::Ready(result)) => Op::Ready(result.map_err(|error| self.explain(error))),
                        Ok(Op::Pending(future)) => Op::future(async move {
                            let result = future.await;
                            drop(request);
                            result.map_err(|error| self.explain(error))
                        }),
                        Err(error) => Op::err(self.explain(error)),
                    };
                }
                _ => {}
            }
        }
        Op::future(async move {
            let write = async {
                if flags.serialising || !in_sectors {
                    request.mark_serialising(self.granularity());
                }
                request.wait().await;
                let recorded = self.recording(range);
                self.write_mapped(&request, at, from).await?;
                drop(recorded);
                if flags.force_unit_access { self.format.flush().await } else { Ok(()) }
            };
            write.await.map_err(|error| self.explain(error))
        })
    }

    /// Fails if the disk would be taken for another format after the write.
    async fn check_guard(&self, drivers: &Drivers, at: u64, from: &[u8]) -> Result<()> {
        let length = self.format.info().length;
        let mut head = vec![0; length.min(PROBE_BYTES as u64) as usize];
        self.read_mapped(0, &mut head).await?;
        for (old, new) in head.iter_mut().skip(at as usize).zip(from) {
            *old = *new;
        }
        match drivers.recognise(&Probe { head: &head, length }).first() {
            Some((driver, _)) if driver.name != self.format.name() => Err(Error::new(
                ErrorKind::Denied,
                alloc::format!(
                    "the format was guessed to be {}, so nothing is written that would make it {}; give the format to allow it",
                    self.format.name(),
                    driver.name
                ),
            )
            .at_offset(at)),
            _ => Ok(()),
        }
    }

    /// Writes whole clusters, compressed where that saves space. The last cluster of the disk may be a part.
    async fn write_compressed(&self, at: u64, from: &[u8]) -> Result<()> {
        let cluster = self.granularity();
        let length = self.format.info().length;
        let ends_well = |end: u64| end.is_multiple_of(cluster) || end == length;
        if !at.is_multiple_of(cluster) || !ends_well(at + from.len() as u64) {
            return Err(Error::invalid(alloc::format!(
                "compressed data comes in clusters of {cluster} bytes, not {} bytes at offset {at}",
                from.len()
            )));
        }
        let request = self.requests.begin(RequestKind::Write, Range::new(at, from.len() as u64));
        request.mark_serialising(cluster);
        request.wait().await;
        let _recorded = self.recording(Range::new(at, from.len() as u64));
        for (index, part) in (0u64..).zip(from.chunks(cluster as usize)) {
            let start = at + index * cluster;
            match self.compress(part)? {
                Some(compressed) => self.format.store_compressed(start, &compressed).await?,
                None => self.write_mapped(&request, start, part).await?,
            }
        }
        Ok(())
    }

    /// Compresses the contents of one cluster, of which the last of the disk may be a part. `None` if that saves nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the image cannot store compressed clusters.
    pub fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let size = self.granularity() as usize;
        if cluster.len() == size {
            return self.format.compress(cluster);
        }
        let mut padded = cluster.to_vec();
        padded.resize(size, 0);
        self.format.compress(&padded)
    }

    /// Stores the cluster at guest offset `at` as [`Image::compress`] gave it, or as it is. So the work of compressing can
    /// be done elsewhere, and what is stored comes in the order of these calls.
    ///
    /// # Errors
    /// As for a write; [`ErrorKind::Invalid`] unless `cluster` is one whole cluster, or what is left of the disk.
    pub async fn write_cluster(&self, at: u64, cluster: &[u8], compressed: Option<&[u8]>) -> Result<()> {
        let range = Range::new(at, cluster.len() as u64);
        self.check_write(range)?;
        let unit = self.granularity();
        if !at.is_multiple_of(unit)
            || range.len > unit
            || (range.len < unit && range.end() != self.format.info().length)
        {
            return Err(self.explain(Error::invalid("compressed data comes in whole clusters")));
        }
        let request = self.requests.begin(RequestKind::Write, range);
        request.mark_serialising(unit);
        request.wait().await;
        let _recorded = self.recording(range);
        let stored = match compressed {
            Some(bytes) => self.format.store_compressed(at, bytes).await,
            None => self.write_mapped(&request, at, cluster).await,
        };
        stored.map_err(|error| self.explain(error))?;
        self.write_through().await
    }

    /// Flushes if every write is to be on stable storage when it is done.
    async fn write_through(&self) -> Result<()> {
        if !self.options.write_through {
            return Ok(());
        }
        self.format.flush().await.map_err(|error| self.explain(error))
    }

    /// Reads VM state, `at` bytes from where it begins. What was never written reads as zeroes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the format cannot store it.
    pub async fn read_vm_state(&self, at: u64, mut into: &mut [u8]) -> Result<()> {
        let mut at = self.vm_state_place(at, into.len())?;
        while !into.is_empty() {
            let extent = self.format.map(Range::new(at, into.len() as u64), Want::Allocation).await?;
            let len = extent.len.min(into.len() as u64);
            let (part, rest) = into.split_at_mut(len as usize);
            match extent.state {
                // The backing image has nothing to say here, even where it is longer than this disk.
                State::Unallocated => part.fill(0),
                _ => self.read_mapped(at, part).await.map_err(|error| self.explain(error))?,
            }
            into = rest;
            at += len;
        }
        Ok(())
    }

    /// Writes VM state, `at` bytes from where it begins.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the format cannot store it; as for a write otherwise.
    pub async fn write_vm_state(&self, at: u64, from: &[u8]) -> Result<()> {
        self.check_write(Range::default())?;
        let start = self.vm_state_place(at, from.len())?;
        let range = Range::new(start, from.len() as u64);
        let request = self.requests.begin(RequestKind::Write, range);
        request.mark_serialising(self.granularity());
        request.wait().await;
        let write = async {
            self.format.reserve_vm_state(range.end()).await?;
            self.write_mapped(&request, start, from).await
        };
        write.await.map_err(|error| self.explain(error))
    }

    /// Where VM state begins, as a guest offset, if the format can store it.
    pub fn vm_state_offset(&self) -> Option<u64> {
        self.format.vm_state_offset()
    }

    fn vm_state_place(&self, at: u64, len: usize) -> Result<u64> {
        let start = self.format.vm_state_offset().ok_or_else(|| {
            self.explain(Error::unsupported("this format cannot store the state of a virtual machine"))
        })?;
        match start.checked_add(at).filter(|start| start.checked_add(len as u64).is_some()) {
            Some(start) => Ok(start),
            None => Err(self.explain(Error::invalid("VM state offset out of range"))),
        }
    }

    /// Like a write, and calls `placed` as soon as space is allocated for all of it, before the data is written: whoever
    /// wants space in a certain order need not wait for more.
    ///
    /// # Errors
    /// As for a write. `placed` may not have been called then.
    pub async fn write_in_turn(&self, at: u64, from: &[u8], placed: &(dyn Fn() + Sync)) -> Result<()> {
        if self.options.detect_zeroes != DetectZeroes::Off || self.guard().is_some() {
            let written = self.write_tracked(at, from, WriteFlags::default()).await;
            placed();
            return written;
        }
        let range = Range::new(at, from.len() as u64);
        self.check_write(range)?;
        let request = self.requests.begin(RequestKind::Write, range);
        request.mark_serialising(self.granularity());
        request.wait().await;
        let _recorded = self.recording(range);
        self.write_placed(&request, at, from, placed).await.map_err(|error| self.explain(error))?;
        self.write_through().await
    }

    /// Stores what the range reads as from the backing image, in whole clusters, and leaves the rest alone. What is zero
    /// there is stored as zeroes.
    ///
    /// # Errors
    /// As for a read and a write.
    pub async fn pull(&self, range: Range) -> Result<()> {
        check_bounds(range.start, range.len, self.format.info().length).map_err(|error| self.explain(error))?;
        // Subclusters where there are any.
        let unit = match self.format.zero_granularity() {
            0 | 1 => self.granularity(),
            unit => unit,
        };
        let length = self.format.info().length;
        let mut at = range.start - range.start % unit;
        let end = range.end().next_multiple_of(unit).min(length);
        while at < end {
            let len = (end - at).min(PULL_BYTES.max(unit));
            let piece = Range::new(at, len);
            at += len;
            if self.reads_from_here(piece).await? {
                continue;
            }
            let request = self.requests.begin(RequestKind::Write, piece);
            request.mark_serialising(self.granularity());
            request.wait().await;
            let pulled = self.pull_piece(&request, piece).await;
            pulled.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Whether nothing in the range comes from the backing image.
    async fn reads_from_here(&self, range: Range) -> Result<bool> {
        let mut at = range.start;
        while at < range.end() {
            let extent = self.format.map(Range::new(at, range.end() - at), Want::Allocation).await?;
            if extent.state == State::Unallocated {
                return Ok(false);
            }
            at += extent.len.max(1);
        }
        Ok(true)
    }

    async fn pull_piece(&self, request: &Tracked<'_>, range: Range) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let extent = self.format.map(Range::new(at, range.end() - at), Want::Allocation).await?;
            let piece = Range::new(at, extent.len.min(range.end() - at));
            at += piece.len.max(1);
            if extent.state != State::Unallocated {
                continue;
            }
            let mut bytes = vec![0; piece.len as usize];
            self.read_mapped(piece.start, &mut bytes).await?;
            self.announce(Event::CorWrite).await?;
            if is_zero(&bytes) {
                self.zero_mapped(request, piece, WriteFlags::default()).await?;
            } else {
                self.write_mapped(request, piece.start, &bytes).await?;
            }
        }
        Ok(())
    }

    /// The unit in which requests exclude each other when they change the mapping.
    pub(crate) fn granularity(&self) -> u64 {
        u64::from(self.format.info().cluster_size.unwrap_or(1)).max(self.format.zero_granularity()).max(self.sector())
    }

    async fn write_mapped(&self, request: &Tracked<'_>, at: u64, from: &[u8]) -> Result<()> {
        self.write_placed(request, at, from, &|| {}).await
    }

    /// Writes, and calls `placed` as soon as it is settled where all of it goes.
    async fn write_placed(
        &self,
        request: &Tracked<'_>,
        mut at: u64,
        mut from: &[u8],
        placed: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let sectors;
        if !self.is_in_sectors(Range::new(at, from.len() as u64)) {
            (at, sectors) = self.fill_up_sectors(at, from).await?;
            from = &sectors;
        }
        while !from.is_empty() {
            let range = Range::new(at, from.len() as u64);
            let place = self.format.in_place(range).await?;
            let written = match place.host {
                Some(host) => {
                    let part = from.get(..place.len.min(range.len) as usize).unwrap_or(from);
                    if part.len() == from.len() {
                        placed();
                    }
                    self.announce(Event::WriteAio).await?;
                    self.store(host, at, part).await?;
                    part.len()
                }
                None if !request.is_serialising() => {
                    request.mark_serialising(self.granularity());
                    request.wait().await;
                    continue;
                }
                None => self.write_allocating(Range::new(at, place.len.min(range.len)), from, placed).await?,
            };
            at += written as u64;
            from = from.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Allocates for the start of `range`, fills the space and links it. Returns how much of `from` was written.
    async fn write_allocating(&self, range: Range, from: &[u8], placed: &(dyn Fn() + Sync)) -> Result<usize> {
        let allocation = self.format.prepare(range).await?;
        if range.len == from.len() as u64 && allocation.guest.end() >= range.end() {
            placed();
        }
        match self.fill(&allocation, range, from).await {
            Ok(written) => {
                self.format.commit(&allocation).await?;
                Ok(written)
            }
            Err(error) => {
                // The first failure is the one to report; an unlinked allocation is at most a leak.
                let _ = self.format.abandon(&allocation).await;
                Err(error)
            }
        }
    }

    async fn fill(&self, allocation: &Allocation, range: Range, from: &[u8]) -> Result<usize> {
        let Range { start: at, .. } = range;
        let guest = allocation.guest;
        let written = guest.end().saturating_sub(at).min(range.len).min(from.len() as u64);
        if guest.start > at || written == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "an allocation does not cover the request"));
        }
        let from = from.get(..written as usize).unwrap_or(from);
        let head = at - guest.start;
        let tail = guest.end() - (at + written);
        let host = |skip: u64| Host { at: allocation.host.at + skip, ..allocation.host };
        if head > 0 || tail > 0 {
            self.announce(Event::CowRead).await?;
        }
        if head == 0 && tail == 0 {
            self.announce(Event::WriteAio).await?;
            self.store(host(0), guest.start, from).await?;
        } else if guest.len <= MERGE_BYTES {
            let mut merged = vec![0; guest.len as usize];
            let (before, rest) = merged.split_at_mut(head as usize);
            let (data, after) = rest.split_at_mut(written as usize);
            self.read_old(guest.start, before).await?;
            data.copy_from_slice(from);
            self.read_old(at + written, after).await?;
            self.announce(Event::WriteAio).await?;
            self.announce(Event::CowWrite).await?;
            self.store_own(host(0), guest.start, &mut merged).await?;
        } else {
            if head > 0 {
                let mut before = self.old_contents(guest.start, head).await?;
                self.announce(Event::CowWrite).await?;
                self.store_own(host(0), guest.start, &mut before).await?;
            }
            self.announce(Event::WriteAio).await?;
            self.store(host(head), at, from).await?;
            if tail > 0 {
                let mut after = self.old_contents(at + written, tail).await?;
                self.announce(Event::CowWrite).await?;
                self.store_own(host(head + written), at + written, &mut after).await?;
            }
        }
        Ok(written as usize)
    }

    async fn old_contents(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.read_old(at, &mut bytes).await?;
        Ok(bytes)
    }

    /// What the guest sees now, with zeroes beyond the end of the image, or the VM state behind it.
    pub(super) async fn read_old(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if let Some(state) = self.format.vm_state_offset().filter(|state| *state <= at) {
            return self.read_vm_state(at - state, into).await;
        }
        let available = self.format.info().length.saturating_sub(at).min(into.len() as u64) as usize;
        let (part, rest) = into.split_at_mut(available);
        rest.fill(0);
        if part.is_empty() { Ok(()) } else { self.read_mapped(at, part).await }
    }

    /// Copies from another image without reading the data, where it lies in one piece on both sides.
    pub(crate) async fn copy_tracked(&self, at: u64, source: &Image, source_at: u64, len: u64) -> Result<()> {
        let (to, from) = (Range::new(at, len), Range::new(source_at, len));
        self.check_write(to)?;
        if self.format.is_encrypted() || source.format.is_encrypted() {
            return Err(Error::unsupported("encrypted data is stored differently everywhere"));
        }
        check_bounds(source_at, len, source.format.info().length).map_err(|error| source.explain(error))?;
        if len == 0 {
            return Ok(());
        }
        if self.guard().is_some() && at < PROBE_BYTES as u64 {
            return Err(Error::unsupported("what is copied to the start of this disk has to be looked at"));
        }
        let request = self.requests.begin(RequestKind::Write, to);
        let reading = source.requests.begin(RequestKind::Read, from);
        request.wait().await;
        reading.wait().await;
        let place = self.format.in_place(to).await?;
        let extent = source.format.map(from, Want::Allocation).await?;
        match (place.host, extent.host, extent.state) {
            (Some(host), Some(data), State::Data) if place.len >= len && extent.len >= len => {
                let (target, data_file) = (self.storage(host.role)?, source.storage(data.role)?);
                if data.at.saturating_add(len) > data_file.info().length {
                    return Err(Error::unsupported("the data lies beyond the end of its file"));
                }
                let _recorded = self.recording(to);
                target.copy_from(host.at, data_file, data.at, len).await
            }
            _ => Err(Error::unsupported("the data does not lie in one piece")),
        }
    }

    /// A zero write on behalf of a host.
    pub(crate) async fn write_zeroes_tracked(&self, range: Range, mut flags: WriteFlags) -> Result<()> {
        self.check_write(range)?;
        if range.len == 0 {
            return Ok(());
        }
        flags.force_unit_access |= self.options.write_through;
        flags.may_unmap &= self.options.discard || self.options.detect_zeroes == DetectZeroes::Unmap;
        let request = self.requests.begin(RequestKind::Write, range);
        request.mark_serialising(self.granularity());
        request.wait().await;
        let _recorded = self.recording(range);
        self.zero_mapped(&request, range, flags).await?;
        if flags.force_unit_access { self.format.flush().await } else { Ok(()) }
    }

    /// Makes the range read as zeroes on behalf of a serialising request that covers it.
    pub(crate) async fn zero_mapped(&self, request: &Tracked<'_>, range: Range, flags: WriteFlags) -> Result<()> {
        let (head, middle, tail) = self.split_aligned(range);
        self.zero_partial(request, head).await?;
        if middle.len > 0 {
            match self.format.zero(middle, flags).await {
                Err(error) if error.kind() == ErrorKind::Unsupported && !flags.no_fallback => {
                    self.zero_by_writing(request, middle).await?;
                }
                other => other?,
            }
        }
        self.zero_partial(request, tail).await
    }

    /// A discard on behalf of a host: advisory, whole granules only.
    pub(crate) async fn discard_tracked(&self, range: Range) -> Result<()> {
        self.check_write(range)?;
        if !self.options.discard {
            return Ok(());
        }
        let (_, middle, _) = self.split_aligned(range);
        // What lies in whole granules only in part is kept, but whoever discards it does not need it any more.
        let request = self.requests.begin(RequestKind::Discard, range);
        request.mark_serialising(self.granularity());
        request.wait().await;
        let _recorded = self.recording(range);
        if middle.len == 0 {
            return Ok(());
        }
        match self.format.discard(middle).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    /// Splits into an unaligned head, whole granules, and an unaligned tail. The end of the image counts as aligned.
    fn split_aligned(&self, range: Range) -> (Range, Range, Range) {
        let granule = self.format.zero_granularity().max(1);
        let end_of_image = self.format.info().length;
        let start = range.start.next_multiple_of(granule).min(range.end());
        let end = if range.end() == end_of_image { end_of_image } else { range.end() & !(granule - 1) };
        if end <= start {
            return (range, Range::new(range.end(), 0), Range::new(range.end(), 0));
        }
        (
            Range::new(range.start, start - range.start),
            Range::new(start, end - start),
            Range::new(end, range.end() - end),
        )
    }

    /// Zeroes parts of granules. A granule whose other bytes read as zeroes, too, becomes zero as a whole.
    async fn zero_partial(&self, request: &Tracked<'_>, range: Range) -> Result<()> {
        let granule = self.format.zero_granularity().max(1);
        let length = self.format.info().length;
        let mut at = range.start;
        while at < range.end() {
            let start = at - at % granule;
            let whole = Range::new(start, granule.min(length - start));
            let part = Range::new(at, range.end().min(whole.end()) - at);
            at = part.end();
            let before = Range::new(start, part.start - start);
            let after = Range::new(part.end(), whole.end() - part.end());
            let stored = |extent: Extent| matches!(extent.state, State::Unallocated | State::Zero);
            let first = self.format.map(whole, Want::Allocation).await?;
            let is_zero = granule > 1
                && first.len >= whole.len
                && stored(first)
                && self.reads_as_zero(before).await?
                && self.reads_as_zero(after).await?;
            let zeroed = if is_zero {
                self.format.zero(whole, WriteFlags::default()).await
            } else {
                Err(Error::unsupported("the other bytes are not zero"))
            };
            match zeroed {
                Err(error) if error.kind() == ErrorKind::Unsupported => self.zero_by_writing(request, part).await?,
                zeroed => zeroed?,
            }
        }
        Ok(())
    }

    /// Whether the range is known to read as zeroes, here or in the backing image.
    async fn reads_as_zero(&self, range: Range) -> Result<bool> {
        if range.len == 0 {
            return Ok(true);
        }
        let extent = self.format.map(range, Want::Allocation).await?;
        if extent.len < range.len {
            return Ok(false);
        }
        match (extent.state, &self.backing) {
            (State::Zero, _) => Ok(true),
            (State::Unallocated, None) => Ok(self.missing_backing().is_none()),
            (State::Unallocated, Some(node)) => {
                let inside = node.info().length.saturating_sub(range.start).min(range.len);
                if inside == 0 {
                    return Ok(true);
                }
                let below = Chain::of(node.clone()).status(Range::new(range.start, inside), Want::Precise).await?;
                Ok(below.zero && below.len >= inside)
            }
            _ => Ok(false),
        }
    }

    async fn zero_by_writing(&self, request: &Tracked<'_>, range: Range) -> Result<()> {
        let zeroes = vec![0; range.len.min(ZERO_PIECE_BYTES as u64) as usize];
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end() - at).min(zeroes.len() as u64) as usize;
            self.write_mapped(request, at, zeroes.get(..len).unwrap_or(&zeroes)).await?;
            at += len as u64;
        }
        Ok(())
    }
}
