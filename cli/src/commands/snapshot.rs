//! `snapshot`: list, make, apply and delete the internal snapshots of an image.

use std::time::{SystemTime, UNIX_EPOCH};

use diskette::block_on;
use diskette::engine::SnapshotChange;

use crate::args::SnapshotArgs;
use crate::open::{Wish, open};
use crate::output::print;
use crate::{Failure, Outcome, human, program};

pub(crate) fn run(args: &SnapshotArgs) -> Outcome {
    let asked = [args.list, args.apply.is_some(), args.create.is_some(), args.delete.is_some()];
    if asked.iter().filter(|asked| **asked).count() > 1 {
        return Err(Failure::new(format!(
            "Cannot mix '-l', '-a', '-c', '-d'\nTry '{} snapshot --help' for more info",
            program::name()
        )));
    }
    let change = match (&args.create, &args.apply, &args.delete) {
        (Some(name), _, _) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let date_sec = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
            SnapshotChange::Create { name: name.clone(), date_sec, date_nsec: now.subsec_nanos() }
        }
        (_, Some(name), _) => SnapshotChange::Apply(name.clone()),
        (_, _, Some(name)) => SnapshotChange::Delete(name.clone()),
        _ => return list(args),
    };
    let wish = Wish { writable: true, discard: true, ..Wish::try_from(&args.image)? };
    let opened = open(&args.file, &wish)?;
    let changed = block_on(opened.image.snapshot(&change));
    // Closing writes back what is left even where the change failed.
    let closed = block_on(opened.image.close());
    let snapshots = opened.image.format_name() == "qcow2";
    changed.and(closed).map_err(|error| {
        let problem = error.problem().to_string();
        let (what, name, text) = match &change {
            SnapshotChange::Create { name, .. } => {
                let reason = std::io::Error::from_raw_os_error(error.kind().errno()).to_string();
                ("create", name, reason.split(" (os error").next().unwrap_or_default().to_string())
            }
            SnapshotChange::Apply(name) if !snapshots => {
                ("apply", name, "Block driver does not support snapshots".to_string())
            }
            SnapshotChange::Apply(name) => ("apply", name, problem),
            SnapshotChange::Delete(name) if !snapshots => ("delete", name, "snapshot not found".to_string()),
            SnapshotChange::Delete(name) => ("delete", name, problem),
        };
        Failure::new(format!("Could not {what} snapshot '{name}': {text}"))
    })?;
    Ok(0)
}

fn list(args: &SnapshotArgs) -> Outcome {
    let wish = Wish { structure_only: true, ..Wish::try_from(&args.image)? };
    let snapshots = open(&args.file, &wish)?.image.describe()?.snapshots;
    if !snapshots.is_empty() {
        print(&format!("Snapshot list:\n{}", human::snapshots(&snapshots)));
    }
    Ok(0)
}
