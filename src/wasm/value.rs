//! Values of the core as JavaScript objects.

use alloc::string::ToString;
use alloc::vec::Vec;

use js_sys::{Array, Object, Reflect};
use wasm_bindgen::JsValue;

use crate::describe::{Details, NamedFile, Value};
use crate::drivers::Evidence;
use crate::engine::FindingKind;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::{CheckReport, Image};

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

fn number(value: u64) -> JsValue {
    (value as f64).into()
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
        ("offset", optional(context.offset.map(number))),
        ("operation", optional(context.operation.map(JsValue::from))),
    ])
}

fn property(value: &Value) -> JsValue {
    match value {
        Value::Bool(flag) => (*flag).into(),
        Value::Number(value) => number(*value),
        Value::Text(text) => text.as_str().into(),
        Value::List(values) => array(values.iter().map(property)),
        Value::Object(values) => properties(values),
    }
}

fn properties(values: &[(&'static str, Value)]) -> JsValue {
    let values: Vec<(&str, JsValue)> = values.iter().map(|(name, value)| (*name, property(value))).collect();
    object(&values)
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
        ("virtualSize", number(details.virtual_size)),
        ("clusterSize", optional(details.cluster_size.map(number))),
        ("encryption", optional(details.encryption.map(JsValue::from))),
        ("dirty", details.dirty.into()),
        ("corrupt", details.corrupt.into()),
        ("backingFile", named(&details.backing)),
        ("backingOpened", (details.backing.is_some() && image.missing_backing().is_none()).into()),
        ("dataFile", named(&details.data_file)),
        ("properties", properties(&details.specific)),
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
            array(snapshots.iter().map(|snapshot| {
                object(&[
                    ("id", snapshot.id.as_str().into()),
                    ("name", snapshot.name.as_str().into()),
                    ("vmStateSize", number(snapshot.vm_state_size)),
                    ("diskSize", number(snapshot.disk_size)),
                    ("dateSeconds", snapshot.date_sec.into()),
                    ("vmClockSeconds", (snapshot.vm_clock_nsec as f64 / 1e9).into()),
                ])
            })),
        ),
        (
            "bitmaps",
            array(bitmaps.iter().map(|bitmap| {
                object(&[
                    ("name", bitmap.name.as_str().into()),
                    ("granularity", number(bitmap.granularity)),
                    ("inUse", bitmap.in_use.into()),
                    ("auto", bitmap.auto.into()),
                ])
            })),
        ),
        (
            "header",
            array(header.iter().map(|field| {
                object(&[
                    ("name", field.name.into()),
                    ("offset", number(field.offset)),
                    ("length", number(field.len)),
                    ("text", field.text.as_str().into()),
                    ("doc", field.doc.into()),
                ])
            })),
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
pub(super) fn report(report: &CheckReport) -> JsValue {
    object(&[
        ("leaks", number(report.leaks)),
        ("corruptions", number(report.corruptions)),
        ("checkErrors", number(report.check_errors)),
        ("imageEndOffset", number(report.image_end_offset)),
        ("totalClusters", number(report.total_clusters)),
        ("allocatedClusters", number(report.allocated_clusters)),
        ("fragmentedClusters", number(report.fragmented_clusters)),
        ("compressedClusters", number(report.compressed_clusters)),
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
                        }
                        .into(),
                    ),
                    ("text", finding.text.as_str().into()),
                ])
            })),
        ),
    ])
}
