//! The JavaScript binding: a [`Stepper`] and values that JavaScript understands. No format code, no I/O.
//!
//! The host (pkg/) calls [`Session::next`] until nothing is left, answers the requests in any order, calls
//! [`Session::poll`], and takes results. Numbers are `f64`: sizes beyond 2^53 - 1 are refused.
#![allow(unsafe_code, missing_docs)]

mod value;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use js_sys::{Float64Array, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::drivers::{Evidence, OpenOptions};
use crate::engine::status::{Chain, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Range, ReadFlags, Want};
use crate::policy::{Gate, Policy};
use crate::ring::{Answer, Ask, File, RingOpener, Stepper, Task};
use crate::{CheckReport, Image};

/// Largest number that JavaScript counts exactly.
const MAX_SAFE: u64 = (1 << 53) - 1;

/// The file that [`Session::open`] reads; others get their numbers from the host.
const FIRST_FILE: u32 = 1;

enum Job {
    Open(Task<Result<Opened>>),
    Read(Task<Result<Vec<u8>>>),
    Map(Task<Result<Vec<Status>>>),
    Check(Task<Result<CheckReport>>),
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
}

#[wasm_bindgen]
impl Session {
    #[wasm_bindgen(constructor)]
    pub fn new() -> Session {
        Session { stepper: Stepper::new(), jobs: BTreeMap::new(), next_job: 0, opened: None }
    }

    /// Starts opening file 1. Files that the image names are asked for, unless `structure_only`.
    pub fn open(
        &mut self,
        name: String,
        length: f64,
        format: Option<String>,
        structure_only: bool,
    ) -> Result<u32, JsValue> {
        let length = number(length)?;
        let file = File::new(self.stepper.ring(), FIRST_FILE, name, length, true);
        let gate = Gate::new(Policy::Allow, Arc::new(RingOpener(self.stepper.ring())));
        let options = OpenOptions { format, gate, structure_only, ..OpenOptions::default() };
        let task = self.stepper.start(async move {
            let found = options.drivers.probe(&*file).await?;
            let formats = found.into_iter().map(|(driver, evidence)| (driver.name, evidence)).collect();
            let image = crate::open(file, &options).await?;
            Ok(Opened { image, formats })
        });
        Ok(self.add(Job::Open(task)))
    }

    /// Starts reading guest bytes.
    pub fn read(&mut self, at: f64, len: f64) -> Result<u32, JsValue> {
        let (at, len) = (number(at)?, number(len)?);
        let image = self.image()?;
        // A request beyond the end must not cost its length in memory first.
        crate::node::check_bounds(at, len, image.info().length).map_err(value::error)?;
        let task = self.stepper.start(async move {
            let mut bytes = vec![0; len as usize];
            image.read(at, &mut bytes, ReadFlags::default()).await?;
            Ok(bytes)
        });
        Ok(self.add(Job::Read(task)))
    }

    /// Starts mapping a range.
    pub fn map(&mut self, at: f64, len: f64) -> Result<u32, JsValue> {
        let range = Range::new(number(at)?, number(len)?);
        let image = self.image()?;
        crate::node::check_bounds(range.start, range.len, image.info().length).map_err(value::error)?;
        let task = self.stepper.start(async move {
            let mut extents = Vec::new();
            Chain::of(image).walk(range, Want::Allocation, |status| extents.push(status)).await?;
            Ok(extents)
        });
        Ok(self.add(Job::Map(task)))
    }

    /// Starts a check of the metadata.
    pub fn check(&mut self) -> Result<u32, JsValue> {
        let image = self.image()?;
        let task = self.stepper.start(async move { image.check().await });
        Ok(self.add(Job::Check(task)))
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
                    ]);
                }
                other => {
                    let refusal = Error::unsupported(format!("the JavaScript host reads only ({other:?})"));
                    self.stepper.complete(request.id, Err(refusal));
                }
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
            _ => ErrorKind::Io,
        };
        self.stepper.complete(id as u64, Err(Error::new(kind, message)));
    }

    /// Runs every job that can go on.
    pub fn poll(&self) {
        self.stepper.poll();
    }

    /// The result of a job; `undefined` while it runs. An open gives `true`, a read its bytes, a map a `Float64Array`
    /// of start, length, depth, flags (1 present, 2 zero, 4 data, 8 compressed) and offset (or -1), a check a report.
    pub fn take(&mut self, job: u32) -> Result<JsValue, JsValue> {
        let outcome = match self.jobs.get(&job) {
            Some(Job::Open(task)) => task.take().map(|result| {
                result.map(|opened| {
                    self.opened = Some(opened);
                    JsValue::TRUE
                })
            }),
            Some(Job::Read(task)) => task.take().map(|result| result.map(|bytes| Uint8Array::from(&*bytes).into())),
            Some(Job::Map(task)) => task.take().map(|result| result.map(|extents| extents_array(&extents).into())),
            Some(Job::Check(task)) => task.take().map(|result| result.map(|report| value::report(&report))),
            None => return Err(not_open()),
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
        let Some(Job::Read(task)) = self.jobs.get(&job) else { return Err(not_open()) };
        let Some(result) = task.take() else { return Ok(false) };
        self.jobs.remove(&job);
        into.copy_from(&result.map_err(value::error)?);
        Ok(true)
    }

    fn add(&mut self, job: Job) -> u32 {
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

fn not_open() -> JsValue {
    value::error(Error::new(ErrorKind::Closed, "the image is not open"))
}

fn number(number: f64) -> Result<u64, JsValue> {
    if number >= 0.0 && number <= MAX_SAFE as f64 && number as u64 as f64 == number {
        return Ok(number as u64);
    }
    Err(value::error(Error::invalid(format!("{number} is not a whole number from 0 to 2^53 - 1"))))
}

fn extents_array(extents: &[Status]) -> Float64Array {
    let mut numbers: Vec<f64> = Vec::with_capacity(extents.len() * 5);
    for status in extents {
        let flags = u32::from(status.present)
            | u32::from(status.zero) << 1
            | u32::from(status.data) << 2
            | u32::from(status.compressed) << 3;
        let offset = status.offset.map_or(-1.0, |offset| offset as f64);
        numbers.extend([status.start as f64, status.len as f64, f64::from(status.depth), f64::from(flags), offset]);
    }
    Float64Array::from(&*numbers)
}
