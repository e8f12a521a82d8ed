//! The structure of an image for JavaScript: pages of parts, and what is where in the file.

use alloc::string::String;
use alloc::vec::Vec;

use js_sys::{Array, Float64Array};
use wasm_bindgen::prelude::*;

use super::{FIRST_FILE, JobTask, Session, not_open, number, value};
use crate::error::{Error, Result};
use crate::node::Range;
use crate::ring::File;
use crate::structure::{Part, Parts, Place, RegionKind, StructureContext, look};

#[wasm_bindgen]
impl Session {
    /// Starts looking for the parts at a path: `count` of them, from `from` on.
    pub fn structure(&mut self, path: Vec<f64>, from: f64, count: u32) -> Result<u32, JsValue> {
        let (path, from) = (indices(&path)?, number(from)?);
        let image = self.image()?;
        Ok(self.start(async move { image.structure(&path, from, count as usize).await }, JobTask::Parts))
    }

    /// As [`Session::structure`] for file 1, whether or not it can be opened.
    #[wasm_bindgen(js_name = structureOf)]
    #[allow(clippy::too_many_arguments, reason = "JavaScript passes plain values")]
    pub fn structure_of(
        &mut self,
        name: String,
        length: f64,
        format: Option<String>,
        path: Vec<f64>,
        from: f64,
        count: u32,
    ) -> Result<u32, JsValue> {
        let (path, from) = (indices(&path)?, number(from)?);
        let file = File::new(self.stepper.ring(), FIRST_FILE, name, number(length)?, true);
        let parts = async move {
            let drivers = crate::Drivers::all();
            let driver = match &format {
                Some(format) => drivers.by_name(format),
                None => drivers.probe(&*file).await?.first().map(|(driver, _)| *driver),
            };
            let driver = driver.ok_or_else(|| Error::unsupported("no known format matches this file"))?;
            let count = count as usize;
            look(driver, StructureContext { file: &*file, data_file: None, header: None, path: &path, from, count })
                .await
        };
        Ok(self.start(parts, JobTask::Parts))
    }

    /// Starts looking for what is where in the file. The result is `true`; `regionRuns` shows it then.
    pub fn regions(&mut self) -> Result<u32, JsValue> {
        let image = self.image()?;
        Ok(self.start(async move { image.regions().await }, JobTask::Regions))
    }

    /// Three numbers for each of up to `count` regions from offset `from` on: start, length, index in `regionKinds`.
    #[wasm_bindgen(js_name = regionRuns)]
    pub fn region_runs(&self, from: f64, count: u32) -> Result<Float64Array, JsValue> {
        let regions = self.regions.as_ref().ok_or_else(not_open)?;
        let mut columns: Vec<f64> = Vec::new();
        for region in regions.runs(number(from)?).take(count as usize) {
            columns.extend([region.range.start as f64, region.range.len as f64, f64::from(region.kind as u8)]);
        }
        Ok(Float64Array::from(&*columns))
    }

    /// The names of the kinds of regions.
    #[wasm_bindgen(js_name = regionKinds)]
    pub fn region_kinds() -> Array {
        RegionKind::ALL.into_iter().map(|kind| JsValue::from(kind.name())).collect()
    }
}

fn indices(path: &[f64]) -> Result<Vec<u64>, JsValue> {
    path.iter().map(|index| number(*index)).collect()
}

/// `{ total, parts }`. Numbers that JavaScript cannot count exactly, which only a damaged image has, are cut or left out.
pub(super) fn parts(parts: &Parts) -> JsValue {
    let list: Array = parts.parts.iter().map(part).collect();
    value::object(&[("total", exact(parts.total)), ("parts", list.into())])
}

fn exact(number: u64) -> JsValue {
    (number.min(value::MAX_SAFE) as f64).into()
}

fn optional<T>(of: Option<T>, object: impl FnOnce(T) -> JsValue) -> JsValue {
    of.map_or(JsValue::NULL, object)
}

fn place(place: Place) -> JsValue {
    let Range { start, len } = place.range;
    value::object(&[("file", place.role.name().into()), ("offset", exact(start)), ("length", exact(len))])
}

fn part(part: &Part) -> JsValue {
    let Range { start, len } = part.place.range;
    let guest = part.guest.filter(|guest| guest.end() <= value::MAX_SAFE);
    value::object(&[
        ("name", part.name.as_str().into()),
        ("kind", part.kind.name().into()),
        ("file", part.place.role.name().into()),
        ("offset", exact(start)),
        ("length", exact(len)),
        ("bits", optional(part.bits, |bits| value::object(&[("low", bits.low.into()), ("count", bits.count.into())]))),
        ("value", optional(part.value.as_deref(), JsValue::from)),
        ("doc", part.doc.into()),
        ("problem", optional(part.problem.as_deref(), JsValue::from)),
        ("children", exact(part.children)),
        ("target", optional(part.target, place)),
        (
            "guest",
            optional(guest, |guest| value::object(&[("start", exact(guest.start)), ("length", exact(guest.len))])),
        ),
    ])
}
