//! [`Image`]: a format with its children, as a node.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use crate::describe::Details;
use crate::drivers::Drivers;
use crate::engine::format::{AmendRequest, CheckReport, Format, Repair, SnapshotChange};
use crate::engine::requests::{RequestKind, Requests, Tracked};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::node::{
    Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags, check_bounds,
};
use crate::op::{Op, if_writing};
use crate::structure::{Parts, Regions};
use crate::wire::parse_size;

/// What a write of nothing but zeroes turns into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// A write like any other.
    #[default]
    Off,
    /// A zero write that keeps its space.
    On,
    /// A zero write that may give its space back.
    Unmap,
}

/// How an image behaves once it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// What a write of nothing but zeroes turns into.
    pub detect_zeroes: DetectZeroes,
    /// Whether discards are passed on. They are ignored otherwise.
    pub discard: bool,
    /// Whether every write is on stable storage when it is done.
    pub write_through: bool,
    /// Whether what is read from the backing image is stored in this one.
    pub copy_on_read: bool,
}

/// An open image: a format, its files and its backing image, behaving as one disk.
pub struct Image {
    pub(crate) format: Box<dyn Format>,
    pub(crate) backing: Option<Arc<dyn Node>>,
    pub(crate) requests: Requests,
    pub(crate) options: ImageOptions,
    /// Whether the file wants to know what happens.
    listened: bool,
    name: String,
    format_name: Option<&'static str>,
    probed: bool,
    /// The formats that the contents must not come to look like: those of a raw disk that was recognised by them.
    guard: Option<Drivers>,
    /// The backing image that the format names but that was not opened.
    missing_backing: Option<String>,
    /// Whether the image can only be looked at and repaired.
    only_structure: bool,
}

impl core::fmt::Debug for Image {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Image").field("name", &self.name).field("format", &self.format.name()).finish_non_exhaustive()
    }
}

impl Image {
    /// Puts an image together. [`crate::drivers`] opens one from a file.
    pub fn new(
        format: Box<dyn Format>,
        backing: Option<Arc<dyn Node>>,
        name: impl Into<String>,
        options: ImageOptions,
    ) -> Self {
        let listened = format.child(Role::File).is_some_and(|file| file.listens());
        Image {
            listened,
            format,
            backing,
            requests: Requests::new(),
            options,
            name: name.into(),
            format_name: None,
            probed: false,
            guard: None,
            missing_backing: None,
            only_structure: false,
        }
    }

    /// Notes whether the format was guessed from the contents, and among which formats.
    #[must_use]
    pub(crate) fn with_probed(mut self, probed: bool, drivers: &Drivers) -> Self {
        self.probed = probed;
        // A guest that may write a header could name any file of the host as its backing file.
        let guarded = probed && !self.options.read_only && self.format.name() == crate::formats::raw::DRIVER.name;
        self.guard = guarded.then(|| drivers.clone());
        self
    }

    /// Calls the format by another name than its own.
    #[must_use]
    pub(crate) fn with_format_name(mut self, name: Option<&'static str>) -> Self {
        self.format_name = name;
        self
    }

    /// Notes that the format names a backing image that was not opened: what is in it cannot be read.
    #[must_use]
    pub(crate) fn with_missing_backing(mut self, name: Option<String>) -> Self {
        self.missing_backing = name;
        self
    }

    /// Notes that only the structure of the image was opened.
    #[must_use]
    pub(crate) fn with_only_structure(mut self, only: bool) -> Self {
        self.only_structure = only;
        self
    }

    /// The formats that a write to the start of the disk must not make it look like.
    pub(crate) fn guard(&self) -> Option<&Drivers> {
        self.guard.as_ref()
    }

    /// The backing image that the format names but that was not opened.
    pub fn missing_backing(&self) -> Option<&str> {
        self.missing_backing.as_deref()
    }

    /// Whether the format was guessed from the contents rather than given.
    pub fn was_probed(&self) -> bool {
        self.probed
    }

    /// The driver's name, such as `qcow2`.
    pub fn format_name(&self) -> &'static str {
        self.format_name.unwrap_or_else(|| self.format.name())
    }

    /// Whether compressed clusters can be stored.
    pub fn stores_compressed(&self) -> bool {
        self.format.stores_compressed()
    }

    /// What can be said about the image without reading guest data.
    pub fn describe(&self) -> Result<Details> {
        self.format.describe()
    }

    /// The name of the option that the key would have come from, if guest data is encrypted and there is no key: it can be
    /// described, mapped and checked, but not read.
    pub fn missing_key(&self) -> Option<&'static str> {
        self.format.missing_key()
    }

    /// Looks through all metadata for contradictions.
    pub fn check(&self) -> Op<'_, CheckReport> {
        self.format.check(Repair::Nothing).then(|result| result.map_err(|error| error.at_path(&self.name)))
    }

    /// Looks through all metadata for contradictions and puts right what `repair` says. What the report counts as leaks
    /// and corruptions is what is left.
    ///
    /// # Errors
    /// The image is read-only, or its format cannot be checked; or what reading and writing it gives.
    pub async fn repair(&self, repair: Repair) -> Result<CheckReport> {
        if self.options.read_only {
            return Err(self.explain(Error::new(ErrorKind::ReadOnly, "the image was opened read-only")));
        }
        let _all = self.alone().await;
        self.format.check(repair).await.map_err(|error| error.at_path(&self.name))
    }

    /// The parts of a part of the metadata: `path` is the index of a part of the image, of a part of that, and so on. At
    /// most [`crate::structure::MAX_PARTS`] of them, from `from` on. They are as they are on disk, so what is not flushed
    /// is not seen. Needs the feature `structure`.
    ///
    /// # Errors
    /// There is nothing at the path, the format cannot be taken apart, or what reading gives.
    pub async fn structure(&self, path: &[u64], from: u64, count: usize) -> Result<Parts> {
        self.format.structure(path, from, count).await.map_err(|error| self.explain(error))
    }

    /// What is where in the image's file. Needs the feature `structure`.
    ///
    /// # Errors
    /// The format cannot be taken apart, this takes more memory than a check may, or what reading gives.
    pub async fn regions(&self) -> Result<Regions> {
        let _all = self.alone().await;
        self.format.regions().await.map_err(|error| self.explain(error))
    }

    /// How many clusters of the file are in use, counted no further than `enough`.
    pub(crate) fn clusters_in_use(&self, enough: u64) -> Op<'_, u64> {
        self.format.clusters_in_use(enough)
    }

    /// Writes everything back and leaves the image as if nobody had it open.
    ///
    /// Dropping an image without closing it loses nothing that was flushed.
    pub fn close(&self) -> Op<'_, ()> {
        if self.options.read_only {
            return Op::ok(());
        }
        Op::future(async move {
            let closed = self.format.close().await.map_err(|error| self.explain(error));
            for role in [Role::DataFile, Role::Header, Role::File] {
                if let Some(child) = self.format.child(role) {
                    child.close().await?;
                }
            }
            closed
        })
    }

    /// Names another backing file with its format, or none. What the image stores stays; what it reads from there is
    /// up to the caller. Takes effect when the image is opened again.
    ///
    /// # Errors
    /// The image is read-only, its format cannot, or there is no room for the name.
    pub async fn set_backing(&self, backing: Option<(&str, Option<&str>)>) -> Result<()> {
        self.check_write(Range::default())?;
        let _all = self.alone().await;
        self.format.set_backing(backing).await.map_err(|error| self.explain(error))
    }

    /// Forgets everything that this layer stores: all of it reads from the backing image again.
    ///
    /// # Errors
    /// The image is read-only, or its format cannot.
    pub async fn make_empty(&self) -> Result<()> {
        self.check_write(Range::default())?;
        let _all = self.alone().await;
        self.format.make_empty().await.map_err(|error| self.explain(error))
    }

    /// Changes properties of the image, such as its version, its size, or the key slots of an encrypted one.
    ///
    /// # Errors
    /// The image is read-only, its format cannot, or the options do not go together. What was changed before that stays
    /// changed.
    pub async fn amend(&self, request: &AmendRequest) -> Result<()> {
        self.check_write(Range::default())?;
        {
            let _all = self.alone().await;
            self.format.amend(request).await.map_err(|error| self.explain(error))?;
        }
        if let Some(size) = request.options.get("size") {
            let size = parse_size(size)
                .ok_or_else(|| Error::invalid("Parameter 'size' expects a non-negative number below 2^64"))?;
            self.resize(size, Preallocation::Off).await?;
        }
        let _all = self.alone().await;
        self.format.finish_amend(request).await.map_err(|error| self.explain(error))
    }

    /// Waits for every request, and holds off others while the result lives.
    pub(crate) async fn alone(&self) -> Tracked<'_> {
        let all = self.requests.begin(RequestKind::Resize, Range::new(0, u64::MAX));
        all.mark_serialising(1);
        all.wait().await;
        all
    }

    /// Makes, applies or deletes an internal snapshot.
    ///
    /// # Errors
    /// The image is read-only, has no such snapshot or cannot have snapshots; or what reading and writing it gives.
    pub async fn snapshot(&self, change: &SnapshotChange) -> Result<()> {
        self.check_write(Range::default())?;
        let _all = self.alone().await;
        self.format.snapshot(change).await.map_err(|error| self.explain(error))
    }

    /// Waits until no request is in flight that began before this call.
    pub async fn drain(&self) {
        let all = self.requests.begin(RequestKind::Resize, Range::new(0, u64::MAX));
        all.mark_serialising(1);
        all.wait().await;
    }

    /// Waits for everything behind the new or the old end, whichever comes first, and for other changes of the size.
    /// Gives the size that the disk has then.
    async fn begin_resize(&self, length: u64) -> (u64, Tracked<'_>) {
        loop {
            let old = self.format.info().length;
            let start = old.min(length);
            // To the end of all offsets, so that two changes of the size always exclude each other.
            let request = self.requests.begin(RequestKind::Resize, Range::new(start, u64::MAX - start));
            request.mark_serialising(self.granularity());
            request.wait().await;
            if self.format.info().length == old {
                return (old, request);
            }
        }
    }

    async fn resize_tracked(&self, length: u64, preallocation: Preallocation) -> Result<()> {
        let (old, request) = self.begin_resize(length).await;
        // What a longer backing image has there was never part of this disk.
        let covered = match (&self.backing, &self.missing_backing) {
            (Some(backing), _) => backing.info().length.min(length),
            (None, Some(_)) => length,
            (None, None) => 0,
        };
        // Nor was what the last cluster holds behind the end, from a time when the disk was larger.
        let tail = Range::new(old, old.next_multiple_of(self.granularity()).min(length).saturating_sub(old));
        let holds_more = tail.len > 0 && {
            let extent = self.format.map(tail, Want::Allocation).await?;
            !matches!(extent.state, State::Zero | State::Unallocated)
        };
        let covered = if holds_more { covered.max(tail.end()) } else { covered };
        if let Some(len @ 1..) = covered.checked_sub(old) {
            // The zeroes are on disk before the size is, or a power cut would show the backing image.
            self.format.reserve(length).await?;
            let zero = async {
                self.zero_mapped(&request, Range::new(old, len), WriteFlags::default()).await?;
                self.format.flush().await
            };
            if let Err(error) = zero.await {
                self.format.reserve(old).await?;
                return Err(error);
            }
        }
        self.format.resize(length, preallocation).await
    }

    /// Whether the file wants to know what happens. What only reads does not inject faults.
    pub(crate) fn is_listened(&self) -> bool {
        cfg!(feature = "write") && self.listened
    }

    /// Tells the file what is about to happen to it.
    pub(crate) async fn announce(&self, event: Event) -> Result<()> {
        match self.format.child(Role::File) {
            Some(file) if self.is_listened() => file.event(event).await,
            _ => Ok(()),
        }
    }

    /// Adds the image's name and format to an error.
    pub(crate) fn explain(&self, error: Error) -> Error {
        error.at_path(&self.name).in_node(self.format.name())
    }

    /// Fails unless the image may be written and the range lies within it.
    pub(crate) fn check_write(&self, range: Range) -> Result<()> {
        if self.options.read_only {
            return Err(self.explain(Error::new(ErrorKind::ReadOnly, "the image was opened read-only")));
        }
        if self.only_structure {
            return Err(self.explain(Error::new(ErrorKind::Denied, "the image was opened only to be checked")));
        }
        check_bounds(range.start, range.len, self.format.info().length).map_err(|error| self.explain(error))
    }

    /// The child that holds guest data in `role`.
    pub(crate) fn storage(&self, role: Role) -> Result<&dyn Node> {
        self.format
            .child(role)
            .map(|node| &**node)
            .ok_or_else(|| Error::new(ErrorKind::Closed, alloc::format!("the image has no {} child", role.name())))
    }
}

impl Node for Image {
    fn info(&self) -> NodeInfo {
        let info = self.format.info();
        NodeInfo { read_only: self.options.read_only, ..info }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        if let Err(error) = check_bounds(range.start, range.len, self.format.info().length) {
            return Op::err(self.explain(error));
        }
        self.format.map(range, want).then(|result| result.map_err(|error| self.explain(error)))
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        self.read_tracked(at, into, flags)
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| self.write_tracked(at, from, flags))
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        if_writing(|| {
            Op::future(
                async move { self.write_zeroes_tracked(range, flags).await.map_err(|error| self.explain(error)) },
            )
        })
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        if_writing(|| Op::future(async move { self.discard_tracked(range).await.map_err(|error| self.explain(error)) }))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        if self.options.read_only {
            return Op::ok(());
        }
        if self.is_listened() {
            return Op::future(async move {
                self.announce(Event::FlushToOs).await?;
                self.announce(Event::FlushToDisk).await?;
                self.format.flush().await.map_err(|error| self.explain(error))
            });
        }
        self.format.flush().then(|result| result.map_err(|error| self.explain(error)))
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        if_writing(|| {
            if let Err(error) = self.check_write(Range::new(0, 0)) {
                return Op::err(error);
            }
            Op::future(
                async move { self.resize_tracked(length, preallocation).await.map_err(|error| self.explain(error)) },
            )
        })
    }

    fn copy_from<'a>(&'a self, at: u64, source: &'a dyn Node, source_at: u64, len: u64) -> Op<'a, ()> {
        if_writing(|| match source.as_any().and_then(|any| any.downcast_ref::<Image>()) {
            Some(source) => Op::future(self.copy_tracked(at, source, source_at, len)),
            None => Op::err(Error::unsupported("no copy offload from what is not an image")),
        })
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        Image::close(self)
    }

    fn is_disk(&self) -> bool {
        true
    }

    fn filtered(&self) -> Option<Arc<dyn Node>> {
        let file = self.format.child(Role::File).filter(|file| file.is_disk())?;
        self.format.passes_through().then(|| file.clone())
    }

    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        match role {
            Role::Backing => self.backing.clone(),
            _ => self.format.child(role).cloned(),
        }
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn allocated(&self) -> Option<u64> {
        self.format.child(Role::File).and_then(|file| file.allocated())
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}
