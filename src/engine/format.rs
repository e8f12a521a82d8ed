//! [`Format`]: what a format driver tells the engine.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::bitmap::DirtyBitmap;
use crate::describe::{Details, SnapshotChoice};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, Role, Want, WriteFlags};
use crate::op::Op;
use crate::structure::{Parts, Regions, no_structure};

/// Whether the start of a range can be overwritten where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Length in bytes for which the answer holds, never 0 for a non-empty question.
    pub len: u64,
    /// Where to write, or `None` if space has to be allocated first.
    pub host: Option<Host>,
}

/// Space set aside for guest data that is not linked yet.
///
/// Between [`Format::prepare`] and [`Format::commit`] the engine writes every byte of `guest`, taking what the request
/// does not cover from the old contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The guest range, aligned as the format needs it. It may be shorter than asked for, but starts at or before it.
    pub guest: Range,
    /// Where its first byte goes.
    pub host: Host,
    /// Whether the space was newly taken and must be given back if the allocation is abandoned.
    pub fresh: bool,
}

/// One irregularity found by a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub kind: FindingKind,
    /// A sentence with position, found and expected.
    pub text: String,
}

/// How much a check puts right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: it only looks.
    #[default]
    Nothing,
    /// Space that is lost.
    Leaks,
    /// Everything that can be.
    All,
}

impl Repair {
    /// Whether space that is lost is given back.
    pub fn leaks(self) -> bool {
        cfg!(feature = "write") && self != Repair::Nothing
    }

    /// Whether what is wrong is put right.
    pub fn errors(self) -> bool {
        cfg!(feature = "write") && self == Repair::All
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// Space is lost, data is not.
    Leak,
    /// Data is or may become wrong.
    Corruption,
    /// The check itself could not look.
    CheckError,
    /// It has been put right.
    Repaired,
    /// Says what is being done; nothing is wrong by itself.
    Note,
}

/// Why a check ended before it had seen everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The class of the failure.
    pub kind: ErrorKind,
    /// What failed, unless a finding says so.
    pub text: Option<String>,
}

/// What to do about the findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RepairAdvice {
    /// Nothing.
    #[default]
    None,
    /// A repair is possible.
    Repair,
}

/// The outcome of a consistency check. Counts are in the unit QEMU uses: clusters, or table entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Clusters that are marked used but are not.
    pub leaks: u64,
    /// Entries that are wrong.
    pub corruptions: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Where the image ends in its file, in bytes.
    pub image_end_offset: u64,
    /// Clusters that the guest has.
    pub total_clusters: u64,
    /// Of these, allocated.
    pub allocated_clusters: u64,
    /// Of these, not next to their predecessor.
    pub fragmented_clusters: u64,
    /// Of these, compressed.
    pub compressed_clusters: u64,
    /// The first findings, in the order they were met; the counts cover all.
    pub findings: Vec<Finding>,
    /// What to do.
    pub advice: RepairAdvice,
    /// Lost clusters that were given back.
    pub leaks_fixed: u64,
    /// Wrong entries that were put right.
    pub corruptions_fixed: u64,
    /// The check ended early.
    pub aborted: Option<Abort>,
}

impl CheckReport {
    /// At most this many findings are kept; the counts cover all.
    pub const MAX_FINDINGS: usize = 100_000;

    /// Counts a finding once and keeps it while there is room.
    pub fn add(&mut self, kind: FindingKind, text: String) {
        match kind {
            FindingKind::Leak => self.leaks += 1,
            FindingKind::Corruption => self.corruptions += 1,
            FindingKind::CheckError => self.check_errors += 1,
            FindingKind::Repaired | FindingKind::Note => {}
        }
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(Finding { kind, text });
        }
    }

    /// Whether nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.leaks == 0 && self.corruptions == 0 && self.check_errors == 0
    }
}

/// What is to become of the internal snapshots of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Keep the disk as it is now under a name.
    Create {
        /// The name; several snapshots may have the same.
        name: String,
        /// Seconds since 1970.
        date_sec: u32,
        /// Nanoseconds of the second.
        date_nsec: u32,
    },
    /// Make the disk what it was: the snapshot with this identifier, or else with this name.
    Apply(String),
    /// Forget the first snapshot with this name.
    Delete(String),
}

/// What is to become of an image besides its contents: options of its driver's list, by QEMU's names.
#[derive(Clone, Default)]
pub struct AmendRequest {
    /// The options with their values.
    pub options: BTreeMap<String, String>,
    /// Do what may lose the last key of an encrypted image, too.
    pub force: bool,
    /// Told how much is done, and of how much.
    pub progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
}

impl AmendRequest {
    /// Says how much is done, and of how much.
    pub fn tell(&self, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            progress(done, total);
        }
    }
}

impl core::fmt::Debug for AmendRequest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AmendRequest")
            .field("options", &self.options)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}

/// What is to become of the bitmaps of an image.
#[derive(Clone, Copy, Debug)]
pub enum BitmapChange<'a> {
    /// A new one, with nothing dirty.
    Add {
        /// Its name.
        name: &'a str,
        /// Bytes for each bit; as the format likes it without.
        granularity: Option<u64>,
        /// Whether changes of the disk are recorded.
        enabled: bool,
    },
    /// Forget it.
    Remove(&'a str),
    /// Nothing is dirty any more.
    Clear(&'a str),
    /// Changes of the disk are recorded from now on.
    Enable(&'a str),
    /// No more changes are recorded.
    Disable(&'a str),
    /// What is dirty in the other one becomes dirty.
    Merge(&'a str, &'a DirtyBitmap),
}

/// A bitmap could not be written back: it is marked as in use, and can only be removed when the image is opened again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Lost persistent bitmaps: Failed to write bitmap '{name}' to file: {cause}")]
pub struct BitmapsLost {
    /// The first that could not be written.
    pub name: String,
    /// Why.
    pub cause: String,
}

/// An image format over its children: it maps and allocates, and moves no data.
///
/// Only the engine calls it. Ranges lie within the image; a mutating call is never made on a read-only image, and the
/// engine holds off every overlapping request while it prepares, zeroes or discards.
pub trait Format: Send + Sync {
    /// The driver's name, such as `qcow2`.
    fn name(&self) -> &'static str;

    /// Size, allocation unit and capabilities as the guest sees them.
    fn info(&self) -> NodeInfo;

    /// A child that the format owns. Never [`Role::Backing`].
    fn child(&self, role: Role) -> Option<&Arc<dyn Node>>;

    /// What the range holds in this layer.
    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent>;

    /// Fills `into` from the compressed extent at `host`, of at most `stored` bytes, skipping the first `skip` bytes of
    /// what it expands to.
    fn expand<'a>(&'a self, host: Host, stored: u32, skip: usize, into: &'a mut [u8]) -> Op<'a, ()> {
        let _ = (host, stored, skip, into);
        Op::err(Error::unsupported("this format has no compressed extents"))
    }

    /// Whether the start of the range can be overwritten in place.
    fn in_place<'a>(&'a self, range: Range) -> Op<'a, InPlace>;

    /// Sets space aside for the start of the range.
    fn prepare<'a>(&'a self, range: Range) -> Op<'a, Allocation> {
        let _ = range;
        Op::err(Error::unsupported("this format cannot allocate"))
    }

    /// Links space whose data has been written.
    fn commit<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        let _ = allocation;
        Op::ok(())
    }

    /// Gives space back whose data could not be written.
    fn abandon<'a>(&'a self, allocation: &'a Allocation) -> Op<'a, ()> {
        let _ = allocation;
        Op::ok(())
    }

    /// Compresses the contents of one cluster. `None` if that saves nothing.
    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let _ = cluster;
        Err(Error::unsupported("this format has no compressed extents"))
    }

    /// Whether compressed clusters can be stored.
    fn stores_compressed(&self) -> bool {
        false
    }

    /// Stores what [`Format::compress`] gave for the cluster at guest offset `at`, and links it.
    fn store_compressed<'a>(&'a self, at: u64, compressed: &'a [u8]) -> Op<'a, ()> {
        let _ = (at, compressed);
        Op::err(Error::unsupported("this format has no compressed extents"))
    }

    /// Where the state of a virtual machine is stored, as a guest offset beyond the end of the disk.
    fn vm_state_offset(&self) -> Option<u64> {
        None
    }

    /// Makes sure that VM state up to the guest offset `end` can be mapped.
    fn reserve_vm_state<'a>(&'a self, end: u64) -> Op<'a, ()> {
        let _ = end;
        Op::err(Error::unsupported("this format cannot store the state of a virtual machine"))
    }

    /// Whether the disk is nothing but what the file shows.
    fn passes_through(&self) -> bool {
        false
    }

    /// Whether guest data is stored encrypted, in sectors of [`crate::crypto::SECTOR_BYTES`]. Mappings then begin and end
    /// with sectors on both sides, wherever the question did not ask for a part of one.
    fn is_encrypted(&self) -> bool {
        false
    }

    /// The name of the option that the key would have come from, if guest data is encrypted and there is no key.
    fn missing_key(&self) -> Option<&'static str> {
        None
    }

    /// Encrypts whole sectors that go to `host` and begin at guest offset `guest`.
    ///
    /// # Errors
    /// There is no key.
    fn encrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        let _ = (host, guest, bytes);
        Err(Error::unsupported("this format does not encrypt"))
    }

    /// Decrypts whole sectors that come from `host` and begin at guest offset `guest`.
    ///
    /// # Errors
    /// There is no key.
    fn decrypt(&self, host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        let _ = (host, guest, bytes);
        Err(Error::unsupported("this format does not encrypt"))
    }

    /// The granularity of [`Format::zero`] and [`Format::discard`] in bytes, a power of two.
    fn zero_granularity(&self) -> u64 {
        1
    }

    /// Makes a range (aligned to the granularity, except at the end of the image) read as zeroes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] asks the engine to write zeroes instead.
    fn zero<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()>;

    /// Gives back a range, aligned as for [`Format::zero`].
    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()>;

    /// Metadata that has changed is on stable storage when this is done, and all data before it.
    fn flush<'a>(&'a self) -> Op<'a, ()>;

    /// Leaves the image as if nobody had it open. Called once, after the last request.
    fn close<'a>(&'a self) -> Op<'a, ()> {
        self.flush()
    }

    /// Changes the size that the guest sees.
    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        let _ = (length, preallocation);
        Op::err(Error::unsupported(alloc::format!("the {} driver does not support resize yet", self.name())))
    }

    /// Lets the engine change ranges up to `length` already, or no longer, before [`Format::resize`] changes the size for
    /// good.
    fn reserve<'a>(&'a self, length: u64) -> Op<'a, ()> {
        let _ = length;
        Op::err(Error::unsupported("this format cannot grow over a longer backing image"))
    }

    /// Names another backing file with its format, or none. The contents stay as they are stored.
    fn set_backing<'a>(&'a self, backing: Option<(&'a str, Option<&'a str>)>) -> Op<'a, ()> {
        let _ = backing;
        Op::err(Error::unsupported("this format does not support changing the backing file"))
    }

    /// Forgets everything that this layer stores: all of it reads from the backing image again.
    fn make_empty<'a>(&'a self) -> Op<'a, ()> {
        Op::err(Error::unsupported("this format cannot be emptied"))
    }

    /// Changes what the request says. No other request runs meanwhile. The size is changed by the engine, between this and
    /// [`Format::finish_amend`].
    fn amend<'a>(&'a self, request: &'a AmendRequest) -> Op<'a, ()> {
        let _ = request;
        Op::err(Error::unsupported(alloc::format!("Format driver '{}' does not support option amendment", self.name())))
    }

    /// Changes what can only be changed last.
    fn finish_amend<'a>(&'a self, request: &'a AmendRequest) -> Op<'a, ()> {
        let _ = request;
        Op::ok(())
    }

    /// Makes, applies or deletes an internal snapshot. No other request runs meanwhile.
    fn snapshot<'a>(&'a self, change: &'a SnapshotChange) -> Op<'a, ()> {
        let _ = change;
        Op::err(Error::unsupported("Operation not supported"))
    }

    /// From now on the disk is what it was at an internal snapshot. The image is read-only.
    ///
    /// # Errors
    /// There is no such snapshot, or the format has none.
    fn select_snapshot(&mut self, choice: &SnapshotChoice) -> Result<()> {
        let _ = choice;
        Err(Error::unsupported(alloc::format!(
            "Block format '{}' used by device '' does not support temporarily loading internal snapshots",
            self.name()
        )))
    }

    /// Notes that a range of the disk was written to, or may have been.
    fn record(&self, range: Range) {
        let _ = range;
    }

    /// Says on disk that the image is in use, if it has bitmaps.
    fn claim<'a>(&'a self) -> Op<'a, ()> {
        Op::ok(())
    }

    /// Whether bitmaps can be stored.
    fn stores_bitmaps(&self) -> bool {
        false
    }

    /// Adds, removes or changes a bitmap. No other request runs meanwhile.
    fn change_bitmaps<'a>(&'a self, change: &'a BitmapChange<'a>) -> Op<'a, ()> {
        Op::err(match change {
            BitmapChange::Add { .. } => Error::unsupported("Can't store persistent bitmaps: Operation not supported"),
            BitmapChange::Remove(name)
            | BitmapChange::Clear(name)
            | BitmapChange::Enable(name)
            | BitmapChange::Disable(name)
            | BitmapChange::Merge(name, _) => no_bitmap(name),
        })
    }

    /// Fails unless there is a bitmap of that name that can be used.
    fn check_bitmap(&self, name: &str) -> Result<()> {
        Err(no_bitmap(name))
    }

    /// What a bitmap says.
    fn read_bitmap<'a>(&'a self, name: &'a str) -> Op<'a, DirtyBitmap> {
        Op::err(no_bitmap(name))
    }

    /// How many clusters of the file are in use, counted no further than `enough`. A format that does not keep count
    /// uses its whole file.
    fn clusters_in_use<'a>(&'a self, enough: u64) -> Op<'a, u64> {
        Op::ok(enough)
    }

    /// What can be said about the image without reading guest data.
    fn describe(&self) -> Result<Details>;

    /// Looks through all metadata for contradictions and puts right what it may. No other request runs meanwhile if that
    /// is more than nothing.
    fn check<'a>(&'a self, repair: Repair) -> Op<'a, CheckReport> {
        let _ = repair;
        Op::err(Error::unsupported("This image format does not support checks"))
    }

    /// The parts of a part of the metadata, as they are on disk (see [`crate::structure`]).
    fn structure<'a>(&'a self, path: &'a [u64], from: u64, count: usize) -> Op<'a, Parts> {
        let _ = (path, from, count);
        Op::err(no_structure(self.name()))
    }

    /// What is where in the file. No other request changes the image meanwhile.
    fn regions<'a>(&'a self) -> Op<'a, Regions> {
        Op::err(no_structure(self.name()))
    }
}

fn no_bitmap(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, alloc::format!("Dirty bitmap '{name}' not found"))
}
