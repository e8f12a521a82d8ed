//! `inspect`: look at an image that nobody trusts. Nothing it names is opened, and nothing in it is believed.

use diskette::describe::{Details, HeaderField};
use diskette::drivers::{Drivers, OpenOptions};
use diskette::native::{File, FileOptions};
use diskette::{Image, Node, block_on};
use serde_json::{Value as Json, json};
use std::sync::Arc;

use crate::args::{InspectArgs, Output};
use crate::commands::info::pretty;
use crate::{Failure, Outcome, human, output};

/// Nothing speaks against the image.
const FINE: u8 = 0;
/// There are risks.
const RISKY: u8 = 3;
/// It cannot be opened as what it claims to be.
const BROKEN: u8 = 2;

struct Report {
    name: String,
    length: u64,
    formats: Vec<(String, u8, String)>,
    image: Option<(Arc<Image>, Details)>,
    error: Option<String>,
    risks: Vec<String>,
    findings: Vec<String>,
}

pub(crate) fn run(args: &InspectArgs) -> Outcome {
    let options = FileOptions { read_only: true, force_share: true, ..FileOptions::default() };
    let file = File::open(&args.file, options).map_err(Failure::from)?;
    let mut report = examine(&file, &args.file)?;
    if args.check {
        run_check(&mut report);
    }
    match args.output {
        Output::Human => output::print(&text(&report)),
        Output::Json => output::line(&pretty(&value(&report))),
    }
    Ok(match verdict(&report) {
        "fine" => FINE,
        "risky" => RISKY,
        _ => BROKEN,
    })
}

fn examine(file: &Arc<File>, name: &str) -> Result<Report, Failure> {
    let found = block_on(Drivers::all().probe(&**file)).map_err(Failure::from)?;
    let formats: Vec<_> = found
        .iter()
        .map(|(driver, evidence)| (driver.name.to_string(), evidence.score, evidence.text.clone()))
        .collect();
    let options = OpenOptions { structure_only: true, ..OpenOptions::default() };
    let mut report = Report {
        name: name.to_string(),
        length: file.info().length,
        formats,
        image: None,
        error: None,
        risks: Vec::new(),
        findings: Vec::new(),
    };
    match block_on(diskette::open(file.clone(), &options))
        .and_then(|image| image.describe().map(|details| (image, details)))
    {
        Ok((image, details)) => {
            report.risks = risks(&report, &details, image.format_name());
            report.image = Some((image, details));
        }
        Err(error) => report.error = Some(error.to_string()),
    }
    Ok(report)
}

fn run_check(report: &mut Report) {
    let Some((image, _)) = &report.image else { return };
    match block_on(image.check()) {
        Ok(check) => {
            report.findings = check.findings.iter().map(|finding| finding.text.clone()).collect();
            if check.corruptions > 0 {
                report.risks.push(format!("the check finds {} errors in its metadata", check.corruptions));
            }
        }
        Err(error) => report.findings.push(error.to_string()),
    }
}

fn risks(report: &Report, details: &Details, format: &str) -> Vec<String> {
    let mut risks = Vec::new();
    let claims = report.formats.iter().filter(|(_, score, _)| *score > 1).count();
    if claims > 1 {
        risks.push("several formats claim the file: programs may disagree about what it is".to_string());
    }
    if format == "raw" {
        risks.push("no signature: whoever can write to the disk can make it look like another format; open it with an explicit format".to_string());
    }
    if let Some(backing) = &details.backing {
        risks.push(format!("it names a backing file, which a trusting program would open: '{}'", backing.name));
        if backing.format.is_none() {
            risks.push("the format of the backing file would be guessed from contents the guest controls".to_string());
        }
        if backing.name.starts_with("json:") || backing.name.split('/').next().is_some_and(|part| part.contains(':')) {
            risks.push("the backing file name is a description or a protocol address, not a file name".to_string());
        }
    }
    if let Some(data) = &details.data_file {
        risks.push(format!("it names an external data file, which a trusting program would open: '{}'", data.name));
    }
    for name in details.backing.iter().chain(&details.data_file).map(|file| &file.name) {
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            risks.push(format!("the name '{name}' leads out of the image's directory"));
        }
    }
    if details.corrupt {
        risks.push("the image says that it is corrupt".to_string());
    }
    if details.dirty {
        risks.push("the image was not closed cleanly".to_string());
    }
    for feature in details.features.iter().filter(|feature| !feature.known) {
        risks.push(format!("unknown {} feature bit {}: {}", feature.kind, feature.bit, feature.name));
    }
    let growth = details.virtual_size / report.length.max(1);
    if growth > 1000 && details.virtual_size > 1 << 30 {
        risks.push(format!(
            "the disk is {growth} times larger than the file: converting it fully would take {}",
            human::size(details.virtual_size)
        ));
    }
    risks
}

fn verdict(report: &Report) -> &'static str {
    match (&report.error, report.risks.is_empty()) {
        (Some(_), _) => "unusable",
        (None, true) => "fine",
        (None, false) => "risky",
    }
}

fn text(report: &Report) -> String {
    let mut out = format!("{}\n  file length: {} ({} bytes)\n", report.name, human::size(report.length), report.length);
    for (name, score, evidence) in &report.formats {
        out.push_str(&format!("  matches {name} ({score}%): {evidence}\n"));
    }
    if let Some((image, details)) = &report.image {
        out.push_str(&format!("\nFormat {}\n", image.format_name()));
        out.push_str(&format!(
            "  virtual size: {} ({} bytes)\n",
            human::size(details.virtual_size),
            details.virtual_size
        ));
        if let Some(size) = details.cluster_size {
            out.push_str(&format!("  cluster size: {}\n", human::size(size)));
        }
        if let Some(method) = details.encryption {
            out.push_str(&format!("  encrypted: {method}\n"));
        }
        human::properties(&details.specific, 1, &mut out);
        for feature in &details.features {
            out.push_str(&format!("  {} feature {}: {}\n", feature.kind, feature.bit, feature.name));
        }
        for (what, named) in [("backing file", &details.backing), ("data file", &details.data_file)] {
            if let Some(named) = named {
                out.push_str(&format!("  {what} (not opened): {}\n", named.name));
            }
        }
        if !details.snapshots.is_empty() {
            out.push_str("\nSnapshots\n");
            out.push_str(&human::snapshots(&details.snapshots));
        }
        if !details.header.is_empty() {
            out.push_str("\nHeader\n");
            for HeaderField { name, offset, len, text, .. } in &details.header {
                out.push_str(&format!("  {:>6} {:>3}  {name:<24} {text}\n", format!("{offset:#x}"), len));
            }
        }
    }
    if !report.findings.is_empty() {
        out.push_str("\nCheck\n");
        report.findings.iter().for_each(|finding| out.push_str(&format!("  {finding}\n")));
    }
    if !report.risks.is_empty() {
        out.push_str("\nRisks\n");
        report.risks.iter().for_each(|risk| out.push_str(&format!("  - {risk}\n")));
    }
    if let Some(error) = &report.error {
        out.push_str(&format!("\nCannot be opened\n  {error}\n"));
    }
    out.push_str(&format!("\nVerdict: {}\n", verdict(report)));
    out
}

fn value(report: &Report) -> Json {
    let formats: Vec<Json> = report
        .formats
        .iter()
        .map(|(name, score, evidence)| json!({ "format": name, "score": score, "evidence": evidence }))
        .collect();
    let image = report.image.as_ref().map(|(image, details)| {
        let named = |file: &Option<diskette::describe::NamedFile>| {
            file.as_ref().map(|file| json!({ "name": file.name, "format": file.format, "opened": false }))
        };
        json!({
            "format": image.format_name(),
            "virtual-size": details.virtual_size,
            "cluster-size": details.cluster_size,
            "encryption": details.encryption,
            "dirty": details.dirty,
            "corrupt": details.corrupt,
            "properties": human::object(&details.specific),
            "features": details.features.iter().map(|feature| json!({
                "kind": feature.kind, "bit": feature.bit, "name": feature.name, "known": feature.known,
            })).collect::<Vec<_>>(),
            "backing-file": named(&details.backing),
            "data-file": named(&details.data_file),
            "snapshots": details.snapshots.iter().map(|snapshot| json!({
                "id": snapshot.id, "name": snapshot.name, "disk-size": snapshot.disk_size,
            })).collect::<Vec<_>>(),
            "header": details.header.iter().map(|field| json!({
                "name": field.name, "offset": field.offset, "length": field.len, "value": field.text,
            })).collect::<Vec<_>>(),
        })
    });
    json!({
        "filename": report.name,
        "file-length": report.length,
        "formats": formats,
        "image": image,
        "findings": report.findings,
        "risks": report.risks,
        "error": report.error,
        "verdict": verdict(report),
    })
}
