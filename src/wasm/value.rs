//! Values of the core as JavaScript objects.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use js_sys::{Array, Object, Reflect};
use wasm_bindgen::JsValue;

use crate::describe::{Details, NamedFile, Value};
use crate::drivers::Evidence;
use crate::engine::FindingKind;
use crate::error::{Error, ErrorKind, Result};
use crate::node::Node;
use crate::{CheckReport, Image};

/// Largest number that JavaScript counts exactly.
pub(super) const MAX_SAFE: u64 = (1 << 53) - 1;

/// An object with these properties.
pub(super) fn object(properties: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (name, value) in properties {
        // Setting a property of a fresh plain object cannot fail.
        let _ = Reflect::set(&object, &(*name).into(), value);
    }
    object.into()
}

fn array(values: impl IntoIterator<Item = JsValue>) -> JsValue {
    values.into_iter().collect::<Array>().into()
}

fn array_of(values: impl IntoIterator<Item = Result<JsValue>>) -> Result<JsValue> {
    Ok(values.into_iter().collect::<Result<Array>>()?.into())
}

/// Fails if JavaScript cannot count to `value` exactly.
pub(super) fn check_safe(what: &str, value: u64) -> Result<()> {
    if value <= MAX_SAFE {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("{what} is {value}, which is beyond 2^53 - 1, the largest exact number of JavaScript"),
    ))
}

fn number(what: &str, value: u64) -> Result<JsValue> {
    check_safe(what, value)?;
    Ok((value as f64).into())
}

fn optional(value: Option<JsValue>) -> JsValue {
    value.unwrap_or(JsValue::NULL)
}

/// `{ kind, message, path, offset, operation }`.
pub(super) fn error(error: Error) -> JsValue {
    let context = error.context();
    object(&[
        ("kind", error.kind().name().into()),
        ("message", error.to_string().into()),
        ("path", optional(context.path.as_deref().map(JsValue::from))),
        ("offset", optional(context.offset.filter(|offset| *offset <= MAX_SAFE).map(|offset| (offset as f64).into()))),
        ("operation", optional(context.operation.map(JsValue::from))),
    ])
}

fn property(name: &str, value: &Value) -> Result<JsValue> {
    Ok(match value {
        Value::Bool(flag) => (*flag).into(),
        Value::Number(value) => number(name, *value)?,
        Value::Text(text) => text.as_str().into(),
        Value::List(values) => array_of(values.iter().map(|value| property(name, value)))?,
        Value::Object(values) => properties(values)?,
    })
}

fn properties(values: &[(&'static str, Value)]) -> Result<JsValue> {
    let values: Result<Vec<(&str, JsValue)>> =
        values.iter().map(|(name, value)| Ok((*name, property(name, value)?))).collect();
    Ok(object(&values?))
}

fn named(file: &Option<NamedFile>) -> JsValue {
    optional(file.as_ref().map(|file| {
        object(&[("name", file.name.as_str().into()), ("format", optional(file.format.as_deref().map(JsValue::from)))])
    }))
}

/// One image of a chain.
pub(super) fn image(image: &Image) -> Result<JsValue> {
    let details = image.describe()?;
    let Details { header, features, snapshots, bitmaps, .. } = &details;
    Ok(object(&[
        ("filename", image.name().into()),
        ("format", image.format_name().into()),
        ("probed", image.was_probed().into()),
        ("virtualSize", number("the size of the disk", details.virtual_size)?),
        ("clusterSize", optional(details.cluster_size.map(|size| number("the cluster size", size)).transpose()?)),
        ("encryption", optional(details.encryption.map(JsValue::from))),
        ("dirty", details.dirty.into()),
        ("corrupt", details.corrupt.into()),
        ("backingFile", named(&details.backing)),
        ("backingOpened", (details.backing.is_some() && image.missing_backing().is_none()).into()),
        ("dataFile", named(&details.data_file)),
        ("properties", properties(&details.specific)?),
        (
            "features",
            array(features.iter().map(|feature| {
                object(&[
                    ("kind", feature.kind.into()),
                    ("bit", feature.bit.into()),
                    ("name", feature.name.as_str().into()),
                    ("known", feature.known.into()),
                ])
            })),
        ),
        (
            "snapshots",
            array_of(snapshots.iter().map(|snapshot| {
                Ok(object(&[
                    ("id", snapshot.id.as_str().into()),
                    ("name", snapshot.name.as_str().into()),
                    ("vmStateSize", number("the size of a snapshot's machine state", snapshot.vm_state_size)?),
                    ("diskSize", number("the size of a snapshot's disk", snapshot.disk_size)?),
                    ("dateSeconds", snapshot.date_sec.into()),
                    ("vmClockSeconds", (snapshot.vm_clock_nsec as f64 / 1e9).into()),
                ]))
            }))?,
        ),
        (
            "bitmaps",
            array_of(bitmaps.iter().map(|bitmap| {
                Ok(object(&[
                    ("name", bitmap.name.as_str().into()),
                    ("granularity", number("a bitmap's granularity", bitmap.granularity)?),
                    ("inUse", bitmap.in_use.into()),
                    ("auto", bitmap.auto.into()),
                ]))
            }))?,
        ),
        (
            "header",
            array_of(header.iter().map(|field| {
                Ok(object(&[
                    ("name", field.name.into()),
                    ("offset", number(field.name, field.offset)?),
                    ("length", number(field.name, field.len)?),
                    ("text", field.text.as_str().into()),
                    ("doc", field.doc.into()),
                ]))
            }))?,
        ),
    ]))
}

/// Everything about a chain, top first.
pub(super) fn info(formats: &[(&'static str, Evidence)], chain: &[JsValue]) -> core::result::Result<JsValue, JsValue> {
    let top: Object = chain.first().cloned().unwrap_or_else(|| object(&[])).into();
    let formats = array(formats.iter().map(|(name, evidence)| {
        object(&[
            ("format", (*name).into()),
            ("score", evidence.score.into()),
            ("evidence", evidence.text.as_str().into()),
        ])
    }));
    let info = Object::assign(&Object::new(), &top);
    Reflect::set(&info, &"formats".into(), &formats)?;
    Reflect::set(&info, &"chain".into(), &array(chain.iter().cloned()))?;
    Ok(info.into())
}

/// The outcome of a check.
pub(super) fn report(report: &CheckReport) -> Result<JsValue> {
    Ok(object(&[
        ("leaks", number("leaks", report.leaks)?),
        ("corruptions", number("corruptions", report.corruptions)?),
        ("checkErrors", number("check_errors", report.check_errors)?),
        ("imageEndOffset", number("image_end_offset", report.image_end_offset)?),
        ("totalClusters", number("total_clusters", report.total_clusters)?),
        ("allocatedClusters", number("allocated_clusters", report.allocated_clusters)?),
        ("fragmentedClusters", number("fragmented_clusters", report.fragmented_clusters)?),
        ("compressedClusters", number("compressed_clusters", report.compressed_clusters)?),
        #[cfg(feature = "write")]
        ("leaksFixed", number("leaks_fixed", report.leaks_fixed)?),
        #[cfg(feature = "write")]
        ("corruptionsFixed", number("corruptions_fixed", report.corruptions_fixed)?),
        (
            "findings",
            array(report.findings.iter().take(1000).map(|finding| {
                object(&[
                    (
                        "kind",
                        match finding.kind {
                            FindingKind::Leak => "leak",
                            FindingKind::Corruption => "corruption",
                            FindingKind::CheckError => "check-error",
                            FindingKind::Repaired => "repaired",
                            FindingKind::Note => "note",
                        }
                        .into(),
                    ),
                    ("text", finding.text.as_str().into()),
                ])
            })),
        ),
    ]))
}
