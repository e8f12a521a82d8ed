//! The JavaScript binding: a [`Stepper`] and values that JavaScript understands. No format code, no I/O.
//!
//! The host (pkg/) calls [`Session::next`] until nothing is left, answers the requests in any order, calls
//! [`Session::poll`], and takes results. Numbers are `f64`: sizes beyond 2^53 - 1 are refused.
#![allow(unsafe_code, missing_docs)]

mod cancel;
#[cfg(feature = "structure")]
mod structure;
mod value;
#[cfg(feature = "write")]
mod write;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;

use js_sys::{Array, Float64Array, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::describe::SnapshotChoice;
use crate::drivers::{Driver, Drivers, Evidence, OpenOptions};
use crate::engine::status::{Chain, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Range, ReadFlags, Want, check_bounds};
use crate::policy::{Budgets, Gate, Policy};
use crate::ring::{Answer, Ask, File, RingOpener, Stepper, Task};
#[cfg(feature = "structure")]
use crate::structure::{Parts, Regions};
use crate::wasm::cancel::Switch;
use crate::{CheckReport, Image};

/// The file that [`Session::open`] reads; others get their numbers from the host.
const FIRST_FILE: u32 = 1;

/// A map is made in slices of this many lookups, so that the host stays responsive and can stop it.
const LOOKUPS_PER_SLICE: usize = 16_384;

struct Job {
    switch: Switch,
    task: JobTask,
}

enum JobTask {
    Open(Task<Result<Opened>>),
    Read(Task<Result<Vec<u8>>>),
    Map(Task<Result<Slice>>),
    Check(Task<Result<CheckReport>>),
    #[cfg(feature = "write")]
    Change(Task<Result<()>>),
    #[cfg(feature = "write")]
    Bitmap(Task<Result<Vec<f64>>>),
    #[cfg(feature = "structure")]
    Parts(Task<Result<Parts>>),
    #[cfg(feature = "structure")]
    Regions(Task<Result<Regions>>),
}

/// Part of a map, and where the next part begins.
struct Slice {
    extents: Vec<Status>,
    end: u64,
}

struct Opened {
    image: Arc<Image>,
    formats: Vec<(&'static str, Evidence)>,
}

/// An image being opened or open, and the requests it makes of the host.
#[wasm_bindgen]
pub struct Session {
    stepper: Stepper,
    jobs: BTreeMap<u32, Job>,
    next_job: u32,
    opened: Option<Opened>,
    budgets: Budgets,
    /// What was found last to be where in the file.
    #[cfg(feature = "structure")]
    regions: Option<Regions>,
}

#[wasm_bindgen]
impl Session {
    #[wasm_bindgen(constructor)]
    pub fn new() -> Session {
        Session {
            stepper: Stepper::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            opened: None,
            budgets: Budgets::default(),
            #[cfg(feature = "structure")]
            regions: None,
        }
    }

    /// Bounds what images that are opened from now on may cost. A negative number leaves a bound as it is.
    #[wasm_bindgen(js_name = setBudgets)]
    pub fn set_budgets(&mut self, metadata_bytes: f64, chain_depth: f64, expanded_bytes: f64, check_bytes: f64) {
        if metadata_bytes >= 0.0 {
            self.budgets.metadata_bytes = metadata_bytes as usize;
        }
        if chain_depth >= 0.0 {
            self.budgets.chain_depth = chain_depth as u32;
        }
        if expanded_bytes >= 0.0 {
            self.budgets.expanded_bytes = expanded_bytes as usize;
        }
        if check_bytes >= 0.0 {
            self.budgets.check_bytes = check_bytes as u64;
        }
    }

    /// Whether images of this format can be opened.
    pub fn knows(&self, format: &str) -> bool {
        Drivers::all().by_name(format).is_some()
    }

    /// Starts opening file 1. Files that the image names are asked for, unless `structure_only`. The disk is shown as it was
    /// at `snapshot`: an identifier, or else a name.
    pub fn open(
        &mut self,
        name: String,
        length: f64,
        format: Option<String>,
        structure_only: bool,
        snapshot: Option<String>,
    ) -> Result<u32, JsValue> {
        let length = number(length)?;
        let file = File::new(self.stepper.ring(), FIRST_FILE, name, length, true);
        let gate = Gate::new(Policy::Allow, Arc::new(RingOpener(self.stepper.ring())));
        let snapshot = snapshot.map(SnapshotChoice::IdOrName);
        let budgets = self.budgets;
        let options = OpenOptions { format, gate, structure_only, snapshot, budgets, ..OpenOptions::default() };
        let open = async move {
            let found = options.drivers.probe(&*file).await?;
            opened(file, found, &options).await
        };
        Ok(self.start(open, JobTask::Open))
    }

    /// Size of the disk in bytes.
    pub fn length(&self) -> Result<f64, JsValue> {
        Ok(self.image()?.info().length as f64)
    }

    /// Starts reading guest bytes.
    pub fn read(&mut self, at: f64, len: f64) -> Result<u32, JsValue> {
        let (at, len) = (number(at)?, number(len)?);
        let image = self.image()?;
        // A request beyond the end must not cost its length in memory first.
        check_bounds(at, len, image.info().length).map_err(|error| value::error(error.during("read")))?;
        let read = async move {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(len as usize).map_err(|_| {
                Error::new(ErrorKind::OverBudget, format!("there is no room for {len} bytes; read fewer at a time"))
            })?;
            bytes.resize(len as usize, 0);
            image.read(at, &mut bytes, ReadFlags::default()).await?;
            Ok(bytes)
        };
        Ok(self.start(read, JobTask::Read))
    }

    /// Starts mapping a range. The result covers the start of it; the rest has to be asked for again.
    pub fn map(&mut self, at: f64, len: f64) -> Result<u32, JsValue> {
        let range = Range::new(number(at)?, number(len)?);
        let image = self.image()?;
        check_bounds(range.start, range.len, image.info().length).map_err(|error| value::error(error.during("map")))?;
        let map = async move {
            let chain = Chain::of(image);
            let mut slice = Slice { extents: Vec::new(), end: range.start };
            for _ in 0..LOOKUPS_PER_SLICE {
                if slice.end >= range.end() {
                    break;
                }
                let next = chain.status(Range::new(slice.end, range.end() - slice.end), Want::Allocation).await?;
                slice.end += next.len.max(1);
                match slice.extents.last_mut() {
                    Some(last) if last.continues(&next) => last.len += next.len,
                    _ => slice.extents.push(next),
                }
            }
            Ok(slice)
        };
        Ok(self.start(map, JobTask::Map))
    }

    /// Starts a check of the metadata.
    pub fn check(&mut self) -> Result<u32, JsValue> {
        let image = self.image()?;
        Ok(self.start(async move { image.check().await }, JobTask::Check))
    }

    /// Stops a job and forgets it. Requests of it that were not shown to the host are withdrawn.
    pub fn cancel(&mut self, job: u32) {
        if let Some(job) = self.jobs.remove(&job) {
            job.switch.stop();
        }
    }

    /// What can be said about the image, and about every image behind it.
    pub fn info(&self) -> Result<JsValue, JsValue> {
        let opened = self.opened.as_ref().ok_or_else(not_open)?;
        let mut chain = Vec::new();
        for layer in Chain::of(opened.image.clone()).layers() {
            if let Some(image) = layer.as_any().and_then(|any| any.downcast_ref::<Image>()) {
                chain.push(value::image(image).map_err(value::error)?);
            }
        }
        value::info(&opened.formats, &chain)
    }

    /// The next request: `{ id, kind: "read", file, at, length }` or `{ id, kind: "open", name, format, role, from }`.
    pub fn next(&self) -> JsValue {
        loop {
            let Some(request) = self.stepper.next_request() else { return JsValue::UNDEFINED };
            let id = request.id as f64;
            match request.ask {
                Ask::Read { file, at, len } => {
                    return value::object(&[
                        ("id", id.into()),
                        ("kind", "read".into()),
                        ("file", file.into()),
                        ("at", (at as f64).into()),
                        ("length", (len as f64).into()),
                    ]);
                }
                Ask::Open { reference } => {
                    return value::object(&[
                        ("id", id.into()),
                        ("kind", "open".into()),
                        ("name", reference.name.into()),
                        ("format", reference.format.map_or(JsValue::NULL, Into::into)),
                        ("role", reference.role.name().into()),
                        ("from", reference.from.into()),
                        #[cfg(feature = "write")]
                        ("writable", reference.writable.into()),
                    ]);
                }
                #[cfg(feature = "write")]
                ask => match write::request(id, ask) {
                    Some(request) => return request,
                    None => self.stepper.complete(request.id, Err(Error::unsupported("the host has no clock"))),
                },
                #[cfg(not(feature = "write"))]
                _ => self.stepper.complete(request.id, Err(crate::op::only_reads())),
            }
        }
    }

    /// Answers a read.
    #[wasm_bindgen(js_name = completeRead)]
    pub fn complete_read(&self, id: f64, bytes: &Uint8Array) {
        self.stepper.complete(id as u64, Ok(Answer::Bytes(bytes.to_vec())));
    }

    /// Answers an open: the host chose `file`, which is `length` bytes long.
    #[wasm_bindgen(js_name = completeOpen)]
    pub fn complete_open(&self, id: f64, file: u32, name: String, length: f64) {
        let answer = number(length).map(|length| Answer::Opened { file, name, length });
        let answer = answer.map_err(|_| Error::new(ErrorKind::TooLarge, "the file is too large"));
        self.stepper.complete(id as u64, answer);
    }

    /// Answers any request with a failure.
    pub fn fail(&self, id: f64, kind: &str, message: String) {
        let kind = match kind {
            "denied" => ErrorKind::Denied,
            "not-found" => ErrorKind::NotFound,
            "cancelled" => ErrorKind::Cancelled,
            "permission-denied" => ErrorKind::PermissionDenied,
            "unsupported" => ErrorKind::Unsupported,
            "too-large" => ErrorKind::TooLarge,
            #[cfg(feature = "write")]
            "no-space" => ErrorKind::NoSpace,
            #[cfg(feature = "write")]
            "read-only" => ErrorKind::ReadOnly,
            #[cfg(feature = "write")]
            "busy" => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        self.stepper.complete(id as u64, Err(Error::new(kind, message)));
    }

    /// Runs every job that can go on.
    pub fn poll(&self) {
        self.stepper.poll();
    }

    /// The result of a job; `undefined` while it runs. An open gives `true`, a read its bytes, a map
    /// `{ columns, files, end }` (see [`slice_value`]), a check a report, a bitmap start and length of each dirty range in turn.
    pub fn take(&mut self, job: u32) -> Result<JsValue, JsValue> {
        let Some(running) = self.jobs.get(&job) else { return Err(not_open()) };
        let outcome = match &running.task {
            JobTask::Open(task) => task.take().map(|result| {
                result.map(|opened| {
                    self.opened = Some(opened);
                    JsValue::TRUE
                })
            }),
            JobTask::Read(task) => task.take().map(|result| result.map(|bytes| Uint8Array::from(&*bytes).into())),
            JobTask::Map(task) => task.take().map(|result| result.map(|slice| slice_value(&slice))),
            JobTask::Check(task) => task.take().map(|result| result.and_then(|report| value::report(&report))),
            #[cfg(feature = "write")]
            JobTask::Change(task) => task.take().map(|result| result.map(|()| JsValue::TRUE)),
            #[cfg(feature = "write")]
            JobTask::Bitmap(task) => task.take().map(|result| result.map(|ranges| Float64Array::from(&*ranges).into())),
            #[cfg(feature = "structure")]
            JobTask::Parts(task) => task.take().map(|result| result.map(|parts| structure::parts(&parts))),
            #[cfg(feature = "structure")]
            JobTask::Regions(task) => task.take().map(|result| {
                result.map(|regions| {
                    self.regions = Some(regions);
                    JsValue::TRUE
                })
            }),
        };
        match outcome {
            None => Ok(JsValue::UNDEFINED),
            Some(result) => {
                self.jobs.remove(&job);
                result.map_err(value::error)
            }
        }
    }

    /// As [`Session::take`] for a read, into the caller's array; `true` when done.
    #[wasm_bindgen(js_name = takeInto)]
    pub fn take_into(&mut self, job: u32, into: &Uint8Array) -> Result<bool, JsValue> {
        let Some(Job { task: JobTask::Read(task), .. }) = self.jobs.get(&job) else { return Err(not_open()) };
        let Some(result) = task.take() else { return Ok(false) };
        self.jobs.remove(&job);
        let bytes = result.map_err(value::error)?;
        if into.length() as usize != bytes.len() {
            return Err(value::error(Error::invalid("the array changed its length while it was read into")));
        }
        into.copy_from(&bytes);
        Ok(true)
    }

    fn start<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = Result<T>> + Send + 'static,
        kind: fn(Task<Result<T>>) -> JobTask,
    ) -> u32 {
        let switch = Switch::default();
        let task = kind(self.stepper.start(switch.wrap(future)));
        self.keep(Job { switch, task })
    }

    fn keep(&mut self, job: Job) -> u32 {
        self.next_job = self.next_job.wrapping_add(1);
        self.jobs.insert(self.next_job, job);
        self.next_job
    }

    fn image(&self) -> Result<Arc<Image>, JsValue> {
        self.opened.as_ref().map(|opened| opened.image.clone()).ok_or_else(not_open)
    }
}

impl Default for Session {
    fn default() -> Self {
        Session::new()
    }
}

/// Opens the image that `file` holds.
async fn opened(file: Arc<File>, found: Vec<(&'static Driver, Evidence)>, options: &OpenOptions) -> Result<Opened> {
    let formats = found.into_iter().map(|(driver, evidence)| (driver.name, evidence)).collect();
    let image = crate::open(file, options).await?;
    value::check_safe("the size of the disk", image.info().length)?;
    Ok(Opened { image, formats })
}

fn not_open() -> JsValue {
    value::error(Error::new(ErrorKind::Closed, "the image is not open"))
}

fn number(number: f64) -> Result<u64, JsValue> {
    if number >= 0.0 && number <= value::MAX_SAFE as f64 && number as u64 as f64 == number {
        return Ok(number as u64);
    }
    let text = format!("{number} is not a whole number from 0 to 2^53 - 1");
    Err(value::error(Error::new(ErrorKind::TooLarge, text)))
}

/// `{ columns, files, end }`: six numbers for each extent (start, length, depth, flags, offset or -1, index of the file or
/// -1), the names of the files, and the guest offset up to which the extents reach. Flags are 1 present, 2 zero, 4 data,
/// 8 compressed. Offsets lie within files, whose lengths are exact numbers; larger ones in a damaged image are left out.
fn slice_value(slice: &Slice) -> JsValue {
    let mut files: Vec<&str> = Vec::new();
    let mut columns: Vec<f64> = Vec::with_capacity(slice.extents.len() * 6);
    for status in &slice.extents {
        let flags = u32::from(status.present)
            | u32::from(status.zero) << 1
            | u32::from(status.data) << 2
            | u32::from(status.compressed) << 3;
        let offset = status.offset.filter(|offset| *offset <= value::MAX_SAFE).map_or(-1.0, |offset| offset as f64);
        let file = status.file.as_deref().map_or(-1.0, |name| {
            let known = files.iter().position(|other| *other == name);
            known.unwrap_or_else(|| {
                files.push(name);
                files.len() - 1
            }) as f64
        });
        columns.extend([
            status.start as f64,
            status.len as f64,
            f64::from(status.depth),
            f64::from(flags),
            offset,
            file,
        ]);
    }
    value::object(&[
        ("columns", Float64Array::from(&*columns).into()),
        ("files", files.into_iter().map(JsValue::from).collect::<Array>().into()),
        ("end", (slice.end as f64).into()),
    ])
}
