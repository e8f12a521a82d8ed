//! `check`: look through the metadata.

use diskette::engine::Repair;
use diskette::{CheckReport, Error, ErrorKind, Image, block_on};
use serde_json::{Map, json};

use crate::args::{CheckArgs, Output};
use crate::commands::info::pretty;
use crate::io::reason;
use crate::open::{Wish, cache_mode, open};
use crate::output::{line, print};
use crate::{Failure, Outcome, program};

/// The format has no check.
const UNSUPPORTED: u8 = 63;

pub(crate) fn run(args: &CheckArgs) -> Outcome {
    let repair = match args.repair.as_deref() {
        None => Repair::Nothing,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Failure::new(format!(
                "--repair (-r) expects 'leaks' or 'all' not '{other}'\nTry '{} check --help' for more info",
                crate::program::name()
            )));
        }
    };
    let writable = repair != Repair::Nothing;
    let mut wish = Wish { structure_only: true, for_check: true, writable, ..Wish::try_from(&args.image)? };
    if let Some(cache) = &args.cache {
        wish.cache = cache_mode(cache, "source ")?;
    }
    let opened = open(&args.file, &wish)?;
    let mut report = look(&opened.image, repair)?;
    let (leaks_fixed, corruptions_fixed) = (report.leaks_fixed, report.corruptions_fixed);
    if leaks_fixed > 0 || corruptions_fixed > 0 {
        if args.output == Output::Human && !args.quiet {
            print(&format!(
                "The following inconsistencies were found and repaired:\n\n    {leaks_fixed} leaked clusters\n    \
                 {corruptions_fixed} corruptions\n\nDouble checking the fixed image now...\n"
            ));
        }
        report = CheckReport { leaks_fixed, corruptions_fixed, ..look(&opened.image, Repair::Nothing)? };
    }
    block_on(opened.image.close())?;
    if let Some(abort) = &report.aborted {
        let reason = reason(&Error::new(abort.kind, String::new()));
        return Err(Failure::new(format!("Check failed: {reason}")));
    }
    if !args.quiet {
        match args.output {
            Output::Human => print(&text(&report)),
            Output::Json => line(&value(&report, &args.file, opened.image.format_name())),
        }
    }
    match (report.check_errors, report.corruptions, report.leaks) {
        (1.., _, _) => Err(Failure::new("Check failed")),
        (0, 1.., _) => Ok(2),
        (0, 0, 1..) => Ok(3),
        _ => Ok(0),
    }
}

/// Checks and repairs, and prints what is found.
fn look(image: &Image, repair: Repair) -> Result<CheckReport, Failure> {
    let outcome = if repair == Repair::Nothing { block_on(image.check()) } else { block_on(image.repair(repair)) };
    let report = outcome.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => Failure::new("This image format does not support checks").with_code(UNSUPPORTED),
        _ => Failure::from(error).within("Check failed"),
    })?;
    for finding in &report.findings {
        eprintln!("{}", finding.text);
    }
    if let Some(text) = report.aborted.as_ref().and_then(|abort| abort.text.as_ref()) {
        eprintln!("{}: ERROR {text}", program::name());
    }
    Ok(report)
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
        ("corruptions-fixed", number(report.corruptions_fixed)),
        ("corruptions", number(report.corruptions)),
        ("check-errors", Some(json!(report.check_errors))),
        ("leaks", number(report.leaks)),
        ("leaks-fixed", number(report.leaks_fixed)),
        ("allocated-clusters", number(report.allocated_clusters)),
        ("filename", Some(json!(name))),
        ("format", Some(json!(format))),
        ("fragmented-clusters", number(report.fragmented_clusters)),
    ];
    let map: Map<_, _> =
        entries.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_string(), value))).collect();
    pretty(&map.into())
}
