//! `check`: look through the metadata.

use diskette::{CheckReport, ErrorKind, block_on};
use serde_json::{Map, json};

use crate::args::{CheckArgs, Output};
use crate::commands::info::pretty;
use crate::open::{Wish, cache_mode, open};
use crate::output::{line, print};
use crate::{Failure, Outcome};

/// The format has no check.
const UNSUPPORTED: u8 = 63;

pub(crate) fn run(args: &CheckArgs) -> Outcome {
    match args.repair.as_deref() {
        None => {}
        Some("leaks" | "all") => return Err(Failure::new("repairing images (-r) is not supported")),
        Some(other) => {
            return Err(Failure::new(format!(
                "--repair (-r) expects 'leaks' or 'all' not '{other}'\nTry '{} check --help' for more info",
                crate::program::name()
            )));
        }
    }
    let mut wish = Wish { structure_only: true, ..Wish::try_from(&args.image)? };
    if let Some(cache) = &args.cache {
        wish.cache = cache_mode(cache, "source ")?;
    }
    let opened = open(&args.file, &wish)?;
    let report = match block_on(opened.image.check()) {
        Ok(report) => report,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Err(Failure::new("This image format does not support checks").with_code(UNSUPPORTED));
        }
        Err(error) => return Err(Failure::from(error)),
    };
    for finding in &report.findings {
        eprintln!("{}", finding.text);
    }
    if !args.quiet {
        match args.output {
            Output::Human => print(&text(&report)),
            Output::Json => line(&value(&report, &args.file, opened.image.format_name())),
        }
    }
    Ok(match (report.check_errors, report.corruptions, report.leaks) {
        (1.., _, _) => 1,
        (0, 1.., _) => 2,
        (0, 0, 1..) => 3,
        _ => 0,
    })
}

fn text(report: &CheckReport) -> String {
    let mut out = String::new();
    if report.is_clean() {
        out.push_str("No errors were found on the image.\n");
    }
    if report.corruptions > 0 {
        out.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        ));
    }
    if report.leaks > 0 {
        out.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            report.leaks
        ));
    }
    if report.check_errors > 0 {
        out.push_str(&format!("\n{} internal errors have occurred during the check.\n", report.check_errors));
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        out.push_str(&format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters),
        ));
    }
    if report.image_end_offset > 0 {
        out.push_str(&format!("Image end offset: {}\n", report.image_end_offset));
    }
    out
}

fn value(report: &CheckReport, name: &str, format: &str) -> String {
    // QEMU's order. What is zero is left out, except for the number of internal errors.
    let number = |number: u64| (number > 0).then(|| json!(number));
    let entries = [
        ("image-end-offset", number(report.image_end_offset)),
        ("compressed-clusters", number(report.compressed_clusters)),
        ("total-clusters", number(report.total_clusters)),
        ("corruptions", number(report.corruptions)),
        ("check-errors", Some(json!(report.check_errors))),
        ("leaks", number(report.leaks)),
        ("allocated-clusters", number(report.allocated_clusters)),
        ("filename", Some(json!(name))),
        ("format", Some(json!(format))),
        ("fragmented-clusters", number(report.fragmented_clusters)),
    ];
    let map: Map<_, _> =
        entries.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_string(), value))).collect();
    pretty(&map.into())
}
