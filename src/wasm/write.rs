//! Changing images from JavaScript.
//!
//! A change runs to its end whatever becomes of its job: a handle that is dropped detaches. The host asks for a close as
//! the last job, and lets go of files after it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;

use js_sys::Uint8Array;
use wasm_bindgen::prelude::*;

use super::{FIRST_FILE, Job, JobTask, Session, number, opened, value};
use crate::Image;
use crate::describe::SnapshotChoice;
use crate::drivers::{CreateContext, Drivers, OpenOptions};
use crate::engine::{ImageOptions, Repair, SnapshotChange};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Preallocation, Range, WriteFlags};
use crate::policy::{Gate, Policy};
use crate::ring::{Answer, Ask, File, RingOpener};
use crate::secret::{Keyring, Secret, SecretSource};
use crate::wasm::cancel::Switch;

/// What the caller's passphrase is called.
const PASSPHRASE: &str = "passphrase";

/// More dirty ranges of a bitmap are not listed.
const MAX_DIRTY_RANGES: usize = 4_000_000;

/// `getRandomValues` fills no more at a time.
const RANDOM_BYTES: usize = 65_536;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_namespace = crypto, js_name = getRandomValues)]
    fn get_random_values(into: &Uint8Array) -> core::result::Result<JsValue, JsValue>;
}

/// The host's clock and random numbers, and one passphrase.
struct Host(Option<Secret>);

impl SecretSource for Host {
    fn secret(&self, id: &str) -> Result<Option<Secret>> {
        Ok(self.0.clone().filter(|_| id == PASSPHRASE))
    }

    fn random(&self, into: &mut [u8]) -> Result<()> {
        for part in into.chunks_mut(RANDOM_BYTES) {
            let bytes = Uint8Array::new_with_length(part.len() as u32);
            get_random_values(&bytes).map_err(|_| Error::unsupported("the host offers no random numbers"))?;
            bytes.copy_to(part);
        }
        Ok(())
    }

    fn nanoseconds(&self) -> Option<u64> {
        Some(js_sys::Date::now() as u64 * 1_000_000)
    }
}

fn keyring(passphrase: Option<String>) -> Keyring {
    Keyring::new(Arc::new(Host(passphrase.map(|text| Secret::new(text.into_bytes())))))
}

#[wasm_bindgen]
impl Session {
    /// As [`Session::open`], with more to choose: whether the image can be changed, whether what it names may be asked
    /// for, or at least its backing image is not, and the passphrase of an encrypted one.
    #[wasm_bindgen(js_name = openAs)]
    #[allow(clippy::too_many_arguments, reason = "JavaScript passes plain values")]
    pub fn open_as(
        &mut self,
        name: String,
        length: f64,
        format: Option<String>,
        structure_only: bool,
        may_ask: bool,
        writable: bool,
        passphrase: Option<String>,
        snapshot: Option<String>,
        no_backing: bool,
    ) -> Result<u32, JsValue> {
        let ring = self.stepper.ring();
        let file = File::new(ring.clone(), FIRST_FILE, name, number(length)?, !writable);
        let policy = if may_ask { Policy::Allow } else { Policy::Deny };
        let key = passphrase.is_some();
        let mut options = OpenOptions {
            format,
            gate: Gate::new(policy, Arc::new(RingOpener(ring))),
            structure_only,
            for_check: structure_only,
            no_backing,
            read_only: !writable,
            snapshot: snapshot.map(SnapshotChoice::IdOrName),
            budgets: self.budgets,
            image: ImageOptions { discard: true, ..ImageOptions::default() },
            keyring: keyring(passphrase),
            ..OpenOptions::default()
        };
        let open = async move {
            let found = options.drivers.probe(&*file).await?;
            let format = options.format.as_deref().or(found.first().map(|(driver, _)| driver.name));
            let option = match format {
                Some("luks") => "key-secret",
                _ => "encrypt.key-secret",
            };
            if key && matches!(format, Some("luks" | "qcow2")) {
                options.driver_options.insert(option.into(), PASSPHRASE.into());
            }
            opened(file, found, &options).await
        };
        // Opening an image for writing may change it.
        Ok(if writable { self.start_change(open, JobTask::Open) } else { self.start(open, JobTask::Open) })
    }

    /// Starts making an image in file 1, which is `length` bytes long. `options` are names and values in turn.
    pub fn create(
        &mut self,
        name: String,
        length: f64,
        format: &str,
        size: f64,
        options: Vec<String>,
        passphrase: Option<String>,
    ) -> Result<u32, JsValue> {
        let unknown = || value::error(Error::unsupported(format!("images of the format '{format}' cannot be made")));
        let driver = Drivers::all().by_name(format).ok_or_else(unknown)?;
        let create = driver.create.ok_or_else(unknown)?;
        let mut chosen = BTreeMap::new();
        let mut options = options.into_iter();
        while let (Some(name), Some(value)) = (options.next(), options.next()) {
            chosen.insert(name, value);
        }
        if let Some(file) = chosen.get("data_file") {
            let text = format!("an external data file ('{file}') cannot be made here");
            return Err(value::error(Error::unsupported(text)));
        }
        if passphrase.is_some() {
            let option = if format == "luks" { "key-secret" } else { "encrypt.key-secret" };
            chosen.insert(option.into(), PASSPHRASE.into());
        }
        let size = number(size)?;
        let file = File::new(self.stepper.ring(), FIRST_FILE, name, number(length)?, false);
        let change = async move {
            let keyring = keyring(passphrase);
            let context = CreateContext { file, data_file: None, size, options: &chosen, keyring: &keyring };
            create(context).await
        };
        Ok(self.start_change(change, JobTask::Change))
    }

    /// Starts writing guest bytes, compressed if `compressed`.
    pub fn write(&mut self, at: f64, bytes: &Uint8Array, compressed: bool) -> Result<u32, JsValue> {
        let at = number(at)?;
        let bytes = bytes.to_vec();
        let flags = WriteFlags { compressed, ..WriteFlags::default() };
        self.change(move |image| async move { image.write(at, &bytes, flags).await })
    }

    /// Starts making a range read as zeroes; with `unmap` its space may be given back.
    #[wasm_bindgen(js_name = writeZeroes)]
    pub fn write_zeroes(&mut self, at: f64, len: f64, unmap: bool) -> Result<u32, JsValue> {
        let range = Range::new(number(at)?, number(len)?);
        let flags = WriteFlags { may_unmap: unmap, ..WriteFlags::default() };
        self.change(move |image| async move { image.write_zeroes(range, flags).await })
    }

    /// Starts giving back a range.
    pub fn discard(&mut self, at: f64, len: f64) -> Result<u32, JsValue> {
        let range = Range::new(number(at)?, number(len)?);
        self.change(move |image| async move { image.discard(range).await })
    }

    /// Starts putting everything written before on stable storage.
    pub fn flush(&mut self) -> Result<u32, JsValue> {
        self.change(|image| async move { image.flush().await })
    }

    /// Starts changing the size of the disk.
    pub fn resize(&mut self, length: f64) -> Result<u32, JsValue> {
        let length = number(length)?;
        self.change(move |image| async move { image.resize(length, Preallocation::Off).await })
    }

    /// Starts a check that puts right what it may: leaks, or with `all` everything.
    pub fn repair(&mut self, all: bool) -> Result<u32, JsValue> {
        let image = self.image()?;
        let repair = if all { Repair::All } else { Repair::Leaks };
        Ok(self.start_change(async move { image.repair(repair).await }, JobTask::Check))
    }

    /// Starts making (`create`), applying (`apply`) or deleting (`delete`) an internal snapshot. A new one is of `date`, in
    /// seconds since 1970.
    pub fn snapshot(&mut self, verb: &str, name: String, date: f64) -> Result<u32, JsValue> {
        let change = match verb {
            "create" => SnapshotChange::Create {
                name,
                date_sec: date as u32,
                date_nsec: ((date - f64::from(date as u32)) * 1e9) as u32,
            },
            "apply" => SnapshotChange::Apply(name),
            _ => SnapshotChange::Delete(name),
        };
        self.change(move |image| async move { image.snapshot(&change).await })
    }

    /// Starts naming another backing file with its format, or none. What the image stores stays.
    #[wasm_bindgen(js_name = setBacking)]
    pub fn set_backing(&mut self, name: Option<String>, format: Option<String>) -> Result<u32, JsValue> {
        self.change(move |image| async move {
            image.set_backing(name.as_deref().map(|name| (name, format.as_deref()))).await
        })
    }

    /// Starts reading what a bitmap says.
    #[wasm_bindgen(js_name = readBitmap)]
    pub fn read_bitmap(&mut self, name: String) -> Result<u32, JsValue> {
        let image = self.image()?;
        let read = async move {
            let bitmap = image.read_bitmap(&name).await?;
            let mut ranges = Vec::new();
            for range in bitmap.ranges() {
                if ranges.len() >= 2 * MAX_DIRTY_RANGES {
                    return Err(Error::new(
                        ErrorKind::OverBudget,
                        format!("the bitmap '{name}' has more than {MAX_DIRTY_RANGES} dirty ranges"),
                    ));
                }
                ranges.extend([range.start as f64, range.len as f64]);
            }
            Ok(ranges)
        };
        Ok(self.start(read, JobTask::Bitmap))
    }

    /// Starts writing everything back, so that the image is as if nobody had it open. The last job.
    #[wasm_bindgen(js_name = closeImage)]
    pub fn close_image(&mut self) -> Result<u32, JsValue> {
        self.change(|image| async move { image.close().await })
    }

    /// Answers a request that has no answer but that it is done.
    #[wasm_bindgen(js_name = completeDone)]
    pub fn complete_done(&self, id: f64) {
        self.stepper.complete(id as u64, Ok(Answer::Done));
    }

    fn change<F: Future<Output = Result<()>> + Send + 'static>(
        &mut self,
        change: impl FnOnce(Arc<Image>) -> F,
    ) -> Result<u32, JsValue> {
        let image = self.image()?;
        Ok(self.start_change(change(image), JobTask::Change))
    }

    /// Starts what is not stopped when its job is.
    fn start_change<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = Result<T>> + Send + 'static,
        kind: fn(crate::ring::Task<Result<T>>) -> JobTask,
    ) -> u32 {
        let task = kind(self.stepper.start(future));
        self.keep(Job { switch: Switch::default(), task })
    }
}

/// `{ id, kind, file, … }` for what changes a file; nothing for other requests.
pub(super) fn request(id: f64, ask: Ask) -> Option<JsValue> {
    let (kind, file, more) = match ask {
        Ask::Write { file, at, bytes } => {
            ("write", file, [("at", (at as f64).into()), ("bytes", Uint8Array::from(&*bytes).into())])
        }
        Ask::Zero { file, range } => ("zero", file, extent(range)),
        Ask::Discard { file, range } => ("discard", file, extent(range)),
        Ask::Flush { file } => ("flush", file, extent(Range::default())),
        Ask::Resize { file, length } => ("resize", file, extent(Range::new(0, length))),
        _ => return None,
    };
    let [first, second] = more;
    Some(value::object(&[("id", id.into()), ("kind", kind.into()), ("file", file.into()), first, second]))
}

fn extent(range: Range) -> [(&'static str, JsValue); 2] {
    [("at", (range.start as f64).into()), ("length", (range.len as f64).into())]
}
