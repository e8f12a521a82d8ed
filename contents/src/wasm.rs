//! The JavaScript binding: the same calls, with values that JavaScript understands.
//!
//! A call answers with `{ value }`, or with `{ needs: [{ offset, length }] }` if it is to be made again when these bytes
//! were given. It throws `{ kind, message, offset }`. Numbers are `f64`.
#![allow(unsafe_code, missing_docs)]

use js_sys::{Array, Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::error::{Error, Need, Result, Stop};
use crate::files::{Entry, Page};
use crate::table::{Layout, Volume};

/// Largest number that JavaScript counts exactly.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

/// A disk, and what was found on it.
#[wasm_bindgen]
pub struct Contents {
    contents: crate::Contents,
}

#[wasm_bindgen]
impl Contents {
    #[wasm_bindgen(constructor)]
    pub fn new(size: f64, sector_size: f64) -> Result<Contents, JsValue> {
        let made = whole(size).and_then(|size| crate::Contents::new(size, whole(sector_size)?));
        Ok(Contents { contents: made.map_err(thrown)? })
    }

    pub fn give(&mut self, offset: f64, bytes: &[u8]) -> Result<(), JsValue> {
        whole(offset).and_then(|offset| self.contents.give(offset, bytes)).map_err(thrown)
    }

    pub fn layout(&mut self) -> Result<JsValue, JsValue> {
        answer(self.contents.layout(), layout)
    }

    pub fn list(&mut self, volume: u32, path: &[u8], from: u32, count: u32) -> Result<JsValue, JsValue> {
        answer(self.contents.list(volume as usize, path, from as usize, count as usize), page)
    }

    pub fn read(&mut self, volume: u32, path: &[u8], offset: f64, length: u32) -> Result<JsValue, JsValue> {
        let offset = whole(offset).map_err(thrown)?;
        let read = self.contents.read(volume as usize, path, offset, length as usize);
        answer(read, |bytes| Uint8Array::from(&bytes[..]).into())
    }
}

fn whole(number: f64) -> Result<u64> {
    if (0.0..=MAX_SAFE).contains(&number) && number.trunc() == number {
        return Ok(number as u64);
    }
    Err(Error::invalid(format!("{number} is not a whole number from 0 to 2^53 - 1")))
}

fn answer<T>(outcome: Result<T, Stop>, value: impl FnOnce(T) -> JsValue) -> Result<JsValue, JsValue> {
    match outcome {
        Ok(found) => Ok(object(&[("value", value(found))])),
        Err(Stop::Need(needs)) => Ok(object(&[("needs", array(needs.into_iter().map(need)))])),
        Err(Stop::Failed(error)) => Err(thrown(error)),
    }
}

fn thrown(error: Error) -> JsValue {
    object(&[
        ("kind", error.kind().name().into()),
        ("message", error.to_string().into()),
        ("offset", error.offset().map_or(JsValue::NULL, number)),
    ])
}

fn object(properties: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in properties {
        // Setting a property of a fresh plain object cannot fail.
        let _ = Reflect::set(&object, &(*name).into(), value);
    }
    object.into()
}

fn array(values: impl Iterator<Item = JsValue>) -> JsValue {
    values.collect::<Array>().into()
}

/// Sizes beyond what JavaScript counts exactly are only ever claimed, never there.
fn number(value: u64) -> JsValue {
    (value as f64).into()
}

fn text(value: Option<impl AsRef<str>>) -> JsValue {
    value.map_or(JsValue::NULL, |text| text.as_ref().into())
}

fn need(need: Need) -> JsValue {
    object(&[("offset", number(need.offset)), ("length", number(need.length))])
}

fn layout(layout: Layout) -> JsValue {
    object(&[
        ("table", layout.table.name().into()),
        ("sectorSize", number(layout.sector_size)),
        ("diskId", text(layout.disk_id)),
        ("notes", array(layout.notes.iter().map(|note| note.as_str().into()))),
        ("volumes", array(layout.volumes.iter().map(volume))),
    ])
}

fn volume(volume: &Volume) -> JsValue {
    let found = volume.found.as_ref().map_or(JsValue::NULL, |found| {
        object(&[
            ("name", found.name.into()),
            ("label", text(found.label.as_deref())),
            ("uuid", text(found.uuid.as_deref())),
        ])
    });
    object(&[
        ("number", volume.number.into()),
        ("start", number(volume.start)),
        ("length", number(volume.length)),
        ("table", volume.table.name().into()),
        ("typeId", volume.type_id.as_str().into()),
        ("typeName", text(volume.type_name)),
        ("label", text(volume.label.as_deref())),
        ("guid", text(volume.guid.as_deref())),
        ("flags", array(volume.flags.iter().map(|flag| (*flag).into()))),
        ("found", found),
        ("readable", volume.is_readable().into()),
    ])
}

fn page(page: Page) -> JsValue {
    object(&[("entries", array(page.entries.iter().map(entry))), ("more", page.more.into())])
}

fn entry(entry: &Entry) -> JsValue {
    object(&[
        ("name", String::from_utf8_lossy(&entry.name).as_ref().into()),
        ("bytes", Uint8Array::from(&entry.name[..]).into()),
        ("kind", entry.kind.name().into()),
        ("size", number(entry.size)),
        ("modified", entry.modified.map_or(JsValue::NULL, |seconds| (seconds as f64).into())),
        ("mode", entry.mode.map_or(JsValue::NULL, JsValue::from)),
        ("target", text(entry.target.as_deref().map(String::from_utf8_lossy))),
    ])
}
