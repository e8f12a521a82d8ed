//! The images of tests/corpus.json, which every host must read alike: what the table expects is what qemu-img says, and
//! what this program says.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Scratch, text};

/// Set to write what qemu-img says into the table.
const UPDATE: &str = "DISKETTE_UPDATE_CORPUS";

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus.json")
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// What one of the two programs finds in an image: the parts that do not depend on when and where it was made.
fn findings(image: &Value, run: impl Fn(&[&str]) -> std::process::Output, folder: &Path) -> Map<String, Value> {
    let name = image["open"].as_str().unwrap();
    let ask = |command: &[&str]| -> Value {
        let output = run(&[command, &["--output=json", name]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    };
    let pick = |value: &Value, keys: &[&str]| -> Value {
        keys.iter().filter_map(|key| Some(((*key).to_string(), value.get(key)?.clone()))).collect::<Map<_, _>>().into()
    };
    let mut info = ask(&["info"]);
    let mut found = Map::new();
    if image.get("refused").is_some() {
        found.insert("info".into(), pick(&info, &["format", "virtual-size", "cluster-size", "encrypted"]));
        return found;
    }
    let data = info["format-specific"]["data"].take();
    let mut facts = pick(&info, &["format", "virtual-size", "cluster-size", "backing-filename"]);
    facts["properties"] = if data.is_null() { json!({}) } else { data };
    // QEMU's order of the keys is that of a hash table.
    facts["properties"].as_object_mut().unwrap().sort_keys();
    facts["snapshots"] =
        info["snapshots"].as_array().into_iter().flatten().map(|snapshot| snapshot["name"].clone()).collect();
    found.insert("info".into(), facts);
    let rows = ask(&["map"]);
    let columns = ["start", "length", "depth", "present", "zero", "data", "compressed", "offset"];
    let row = |row: &Value| Value::Array(columns.iter().map(|column| row[column].clone()).collect());
    found.insert("map".into(), rows.as_array().unwrap().iter().map(row).collect());
    let check = ask(&["check"]);
    let counts = [
        "check-errors",
        "corruptions",
        "leaks",
        "image-end-offset",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
    ];
    found.insert("check".into(), pick(&check, &counts));
    let output = run(&["convert", "-O", "raw", name, "contents"]);
    assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    found.insert("sha256".into(), digest(image, &folder.join("contents")).into());
    found
}

/// The hash of a disk, or of the ranges of it that the table names.
fn digest(image: &Value, disk: &Path) -> String {
    let disk = File::open(disk).unwrap();
    let whole = json!([[0, disk.metadata().unwrap().len()]]);
    let mut hash = Sha256::new();
    for range in image.get("content").unwrap_or(&whole).as_array().unwrap() {
        let mut bytes = vec![0; range[1].as_u64().unwrap() as usize];
        disk.read_exact_at(&mut bytes, range[0].as_u64().unwrap()).unwrap();
        hash.update(&bytes);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn every_image_of_the_table_is_what_it_should_be() {
    let mut images: Vec<Value> = serde_json::from_slice(&std::fs::read(table()).unwrap()).unwrap();
    let update = std::env::var_os(UPDATE).is_some();
    for image in &mut images {
        let scratch = Scratch::new();
        for step in image["make"].as_array().unwrap() {
            let words = strings(step);
            scratch.make(words[0], &words[1..]);
        }
        let name = image["name"].clone();
        let theirs = findings(image, |args| scratch.theirs(args), scratch.path());
        if update {
            image.as_object_mut().unwrap().extend(theirs.clone());
        }
        for (key, value) in theirs {
            assert_eq!(image[&key], value, "{name}: {key} of qemu-img");
        }
        for (key, value) in findings(image, |args| scratch.ours(args), scratch.path()) {
            assert_eq!(value, image[&key], "{name}: {key} of ours");
        }
        if image.get("refused").is_some() {
            let output = scratch.ours(&["convert", "-O", "raw", image["open"].as_str().unwrap(), "contents"]);
            assert!(
                !output.status.success() && text(&output.stderr).contains("is required for cipher"),
                "{name}: {output:?}"
            );
        }
    }
    if update {
        std::fs::write(table(), written(&images)).unwrap();
    }
}

/// The table with a line for each key, and for each step that makes an image.
fn written(images: &[Value]) -> String {
    let entry = |image: &Value| {
        let lines = image.as_object().unwrap().iter().map(|(key, value)| match key.as_str() {
            "make" => {
                let steps: Vec<String> = value.as_array().unwrap().iter().map(|step| format!("    {step}")).collect();
                format!("  \"make\": [\n{}\n  ]", steps.join(",\n"))
            }
            _ => format!("  \"{key}\": {value}"),
        });
        format!("{{\n{}\n}}", lines.collect::<Vec<_>>().join(",\n"))
    };
    format!("[\n{}\n]\n", images.iter().map(entry).collect::<Vec<_>>().join(",\n"))
}
