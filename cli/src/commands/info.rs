//! `info`: format, sizes and properties.

use std::collections::BTreeSet;

use diskette::describe::{Details, Snapshot};
use diskette::drivers::Drivers;
use diskette::native::{File, Nbd, resolve};
use serde_json::{Map, Value as Json, json};

use crate::args::{InfoArgs, Output};
use crate::open::{Opened, Wish, explain, open};
use crate::output::{line, print};
use crate::{Failure, Outcome, human};

pub(crate) fn run(args: &InfoArgs) -> Outcome {
    let mut wish = Wish { structure_only: true, ..Wish::try_from(&args.image)? };
    let mut name = args.file.clone();
    let mut seen = BTreeSet::new();
    let mut texts = Vec::new();
    let mut values = Vec::new();
    loop {
        let opened = open(&name, &wish)?;
        if !seen.insert(opened.file.identity()) {
            return Err(Failure::new(format!("Backing file '{name}' creates an infinite loop.")));
        }
        let details = opened.image.describe()?;
        match args.output {
            Output::Human => texts.push(text(&opened, &details)),
            Output::Json => values.push(value(&opened, &details)),
        }
        let Some(backing) = details.backing.filter(|_| args.backing_chain) else { break };
        name = match resolve(&backing.name, &opened.path) {
            Ok(path) => path,
            Err(error) => {
                return Err(Failure::new(format!(
                    "Could not open '{}': {}",
                    backing.name,
                    explain(&error, &backing.name)
                )));
            }
        };
        wish.image_opts = false;
        wish.format = backing.format;
    }
    match args.output {
        Output::Human => print(&texts.join("\n")),
        Output::Json => {
            let value = if args.backing_chain { Some(Json::Array(values)) } else { values.pop() };
            line(&pretty(&value.unwrap_or(Json::Null)));
        }
    }
    Ok(0)
}

/// JSON with the indentation that QEMU uses.
pub(crate) fn pretty(value: &Json) -> String {
    use serde_json::ser::{PrettyFormatter, Serializer};
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"    "));
    if serde::Serialize::serialize(value, &mut serializer).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&out).into_owned();
    // QEMU breaks the line inside empty containers.
    let mut lines = String::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        for (empty, open, close) in [("[]", "[", "]"), ("{}", "{", "}")] {
            if let Some(position) = line.find(empty).filter(|_| line.trim_end_matches(',').ends_with(empty)) {
                lines.push_str(&line[..position]);
                lines.push_str(&format!("{open}\n{}{close}{}\n", " ".repeat(indent), &line[position + 2..]));
            }
        }
        if !line.trim_end_matches(',').ends_with("[]") && !line.trim_end_matches(',').ends_with("{}") {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines.trim_end().to_string()
}

fn text(opened: &Opened, details: &Details) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let allocated = opened.file.allocated();
    let disk_size = allocated.map_or_else(|| "unavailable".to_string(), human::size);
    line(format!("image: {}", opened.name));
    line(format!("file format: {}", opened.image.format_name()));
    line(format!("virtual size: {} ({} bytes)", human::size(details.virtual_size), details.virtual_size));
    line(format!("disk size: {disk_size}"));
    if details.encryption.is_some() {
        line("encrypted: yes".to_string());
    }
    if let Some(size) = details.cluster_size {
        line(format!("cluster_size: {size}"));
    }
    if details.dirty {
        line("cleanly shut down: no".to_string());
    }
    if let Some(backing) = &details.backing {
        let full = resolve(&backing.name, &opened.path).unwrap_or_else(|_| backing.name.clone());
        // Beside what a description is, nobody can tell.
        let unknown = opened.path.is_empty() && opened.name.starts_with("json:");
        if unknown {
            line(format!("backing file: {} (cannot determine actual path)", backing.name));
        } else if full == backing.name {
            line(format!("backing file: {full}"));
        } else {
            line(format!("backing file: {} (actual path: {full})", backing.name));
        }
        if let Some(format) = &backing.format {
            line(format!("backing file format: {format}"));
        }
    }
    if !details.snapshots.is_empty() {
        line("Snapshot list:".to_string());
        out.push_str(&human::snapshots(&details.snapshots));
    }
    if !details.specific.is_empty() {
        out.push_str("Format specific information:\n");
        human::properties(&details.specific, 1, &mut out);
    }
    if !has_format(opened) {
        return out;
    }
    let length = file_length(opened);
    out.push_str(&format!(
        "Child node '/file':\n    filename: {}\n    protocol type: {}\n    file length: {} ({length} bytes)\n    disk size: {disk_size}\n",
        opened.path,
        protocol(opened),
        human::size(length),
    ));
    out
}

/// QEMU's name for the driver of the file.
fn protocol(opened: &Opened) -> &'static str {
    let Some(file) = opened.file.as_any() else { return "file" };
    match file.downcast_ref::<File>() {
        Some(file) if file.is_device() => "host_device",
        _ if file.is::<Nbd>() => "nbd",
        _ => "file",
    }
}

/// Whether there is a format over the file, rather than the file alone.
fn has_format(opened: &Opened) -> bool {
    Drivers::all().by_name(opened.image.format_name()).is_some()
}

fn value(opened: &Opened, details: &Details) -> Json {
    let actual = opened.file.allocated();
    // What a server does not tell is left out.
    let is_local = protocol(opened) != "nbd";
    let has_format = has_format(opened);
    let mut file = json!({
        "children": [],
        "virtual-size": file_length(opened),
        "filename": opened.path,
        "format": protocol(opened),
    });
    if let (true, Json::Object(file)) = (is_local, &mut file) {
        file.insert("actual-size".into(), json!(actual));
        file.insert("format-specific".into(), json!({ "type": "file", "data": {} }));
        file.insert("dirty-flag".into(), json!(false));
    }
    let mut map = Map::new();
    let mut put = |name: &str, value: Json| map.insert(name.to_string(), value);
    put("children", if has_format { json!([{ "name": "file", "info": file }]) } else { json!([]) });
    if let Some(format) = details.backing.as_ref().and_then(|backing| backing.format.clone()) {
        put("backing-filename-format", json!(format));
    }
    if !details.snapshots.is_empty() {
        put("snapshots", Json::Array(details.snapshots.iter().map(snapshot).collect()));
    }
    put("virtual-size", json!(details.virtual_size));
    put("filename", json!(opened.name));
    if let Some(size) = details.cluster_size {
        put("cluster-size", json!(size));
    }
    put("format", json!(opened.image.format_name()));
    if let Some(actual) = actual {
        put("actual-size", json!(actual));
    }
    if !details.specific.is_empty() {
        put("format-specific", json!({ "type": opened.image.format_name(), "data": human::object(&details.specific) }));
    }
    if let Some(backing) = &details.backing {
        let full = resolve(&backing.name, &opened.path).unwrap_or_else(|_| backing.name.clone());
        if !opened.path.is_empty() {
            put("full-backing-filename", json!(full));
        }
        put("backing-filename", json!(backing.name));
    }
    if details.encryption.is_some() {
        put("encrypted", json!(true));
    }
    if is_local || details.cluster_size.is_some() {
        put("dirty-flag", json!(details.dirty));
    }
    Json::Object(map)
}

fn snapshot(snapshot: &Snapshot) -> Json {
    let mut map = Map::new();
    let mut put = |name: &str, value: Json| map.insert(name.to_string(), value);
    if let Some(icount) = snapshot.icount {
        put("icount", json!(icount));
    }
    put("vm-clock-nsec", json!(snapshot.vm_clock_nsec % 1_000_000_000));
    put("name", json!(snapshot.name));
    put("date-sec", json!(snapshot.date_sec));
    put("date-nsec", json!(snapshot.date_nsec));
    put("vm-clock-sec", json!(snapshot.vm_clock_nsec / 1_000_000_000));
    put("id", json!(snapshot.id));
    put("vm-state-size", json!(snapshot.vm_state_size));
    Json::Object(map)
}

/// Length of the file in whole sectors of 512 bytes, as QEMU counts it.
fn file_length(opened: &Opened) -> u64 {
    opened.file.info().length.next_multiple_of(512)
}
