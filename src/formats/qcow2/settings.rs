//! Options of an image that is opened (QEMU's names), checked as QEMU checks them.

use alloc::collections::BTreeMap;
use alloc::string::String;

use crate::error::{Error, Result};
use crate::formats::qcow2::header::Header;
use crate::formats::qcow2::metadata::{Checks, Kind};
use crate::wire::parse_size;

/// The names.
pub(super) const OPTIONS: &[&str] = &[
    "cache-clean-interval",
    "cache-size",
    "data-file",
    "data-file.filename",
    "discard-no-unref",
    "encrypt.format",
    "encrypt.key-secret",
    "l2-cache-entry-size",
    "l2-cache-size",
    "lazy-refcounts",
    "overlap-check",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.bitmap-directory",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.main-header",
    "overlap-check.refcount-block",
    "overlap-check.refcount-table",
    "overlap-check.snapshot-table",
    "overlap-check.template",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "refcount-cache-size",
];

/// Most entries of a cache.
const MAX_CACHE_ENTRIES: u64 = i32::MAX as u64;
/// Fewest refcount blocks that are kept in memory.
const MIN_REFCOUNT_BLOCKS: u64 = 4;
/// Fewest pieces of L2 tables that are kept in memory.
const MIN_L2_PIECES: u64 = 2;

/// What the options say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Whether refcounts are written late, whatever the header says.
    pub(super) lazy_refcounts: Option<bool>,
    /// What is looked out for before a write.
    pub(super) overlaps: Checks,
    /// Whether clusters that a guest discards are given back to the host.
    pub(super) pass_discard_request: bool,
    /// Whether clusters of a deleted snapshot are.
    pub(super) pass_discard_snapshot: bool,
    /// Whether other clusters that become free are.
    pub(super) pass_discard_other: bool,
    /// Whether discarded clusters stay in use, so that the file does not get fragmented.
    pub(super) discard_no_unref: bool,
    /// Bytes of tables that are kept in memory, if the options say.
    pub(super) cache_bytes: Option<u64>,
}

impl Settings {
    /// Checks the options for an image with that header. `discard` says whether discards are passed on by default.
    pub(super) fn new(options: &BTreeMap<String, String>, header: &Header, discard: bool) -> Result<Self> {
        let flag = |name: &str| match options.get(name).map(String::as_str) {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(_) => Err(Error::invalid(alloc::format!("Parameter '{name}' expects 'on' or 'off'"))),
        };
        let cache_bytes = cache_bytes(options, header)?;
        if let Some(text) = options.get("cache-clean-interval") {
            let expected = || Error::invalid("Parameter 'cache-clean-interval' expects a number");
            // A negative number is one that is too large.
            let seconds = text.parse::<u64>().or_else(|_| text.parse::<i64>().map(|number| number as u64));
            if seconds.map_err(|_| expected())? > u64::from(u32::MAX) {
                return Err(Error::invalid("Cache clean interval too big"));
            }
        }
        let lazy_refcounts = flag("lazy-refcounts")?;
        let overlaps = overlaps(options, &flag)?;
        if lazy_refcounts == Some(true) && header.raw.version < 3 {
            return Err(Error::invalid(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
            ));
        }
        let discard_no_unref = flag("discard-no-unref")?.unwrap_or(false);
        if discard_no_unref && header.raw.version < 3 {
            return Err(Error::invalid("discard-no-unref is only supported since qcow2 version 3"));
        }
        Ok(Settings {
            lazy_refcounts,
            overlaps,
            pass_discard_request: flag("pass-discard-request")?.unwrap_or(discard),
            pass_discard_snapshot: flag("pass-discard-snapshot")?.unwrap_or(discard),
            pass_discard_other: flag("pass-discard-other")?.unwrap_or(discard),
            discard_no_unref,
            cache_bytes,
        })
    }
}

/// How many bytes of tables the options let an image keep in memory, if they say.
fn cache_bytes(options: &BTreeMap<String, String>, header: &Header) -> Result<Option<u64>> {
    let size = |name: &str| {
        let parse = |text: &String| {
            parse_size(text).ok_or_else(|| {
                Error::invalid(alloc::format!("Parameter '{name}' expects a non-negative number below 2^64"))
            })
        };
        options.get(name).map(parse).transpose()
    };
    let cluster = header.cluster.size();
    let all = size("cache-size")?;
    let (l2, refcounts) = (size("l2-cache-size")?, size("refcount-cache-size")?);
    let piece = size("l2-cache-entry-size")?.unwrap_or(cluster);
    // More than all L2 tables of the disk are of no use.
    let most_l2 = header.l1_entries_for(header.raw.size).saturating_mul(cluster);
    let least_refcounts = MIN_REFCOUNT_BLOCKS * cluster;
    let (l2_bytes, refcount_bytes) = match (all, l2, refcounts) {
        (Some(_), Some(_), Some(_)) => {
            return Err(Error::invalid(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
            ));
        }
        (Some(all), Some(l2), _) if l2 > all => return Err(Error::invalid("l2-cache-size may not exceed cache-size")),
        (Some(all), _, Some(refcounts)) if refcounts > all => {
            return Err(Error::invalid("refcount-cache-size may not exceed cache-size"));
        }
        (Some(all), Some(l2), None) => (l2, all - l2),
        (Some(all), None, Some(refcounts)) => (all - refcounts, refcounts),
        (Some(all), None, None) => {
            let l2 = most_l2.min(all.saturating_sub(least_refcounts));
            (l2, all - l2)
        }
        (None, l2, refcounts) => (l2.unwrap_or(0).min(most_l2), refcounts.unwrap_or(0)),
    };
    if !piece.is_power_of_two() || piece < 512 || piece > cluster {
        return Err(Error::invalid(alloc::format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
        )));
    }
    let pieces = (l2_bytes / piece).max(MIN_L2_PIECES);
    if pieces > MAX_CACHE_ENTRIES {
        return Err(Error::invalid("L2 cache size too big"));
    }
    let blocks = (refcount_bytes / cluster).max(MIN_REFCOUNT_BLOCKS);
    if blocks > MAX_CACHE_ENTRIES {
        return Err(Error::invalid("Refcount cache size too big"));
    }
    let given = all.is_some() || l2.is_some() || refcounts.is_some();
    Ok(given.then(|| (pieces * piece).saturating_add(blocks * cluster)))
}

/// Which places the options want looked out for.
fn overlaps(options: &BTreeMap<String, String>, flag: &dyn Fn(&str) -> Result<Option<bool>>) -> Result<Checks> {
    let (plain, template) = (options.get("overlap-check"), options.get("overlap-check.template"));
    if let (Some(plain), Some(template)) = (plain, template)
        && plain != template
    {
        return Err(Error::invalid(alloc::format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{plain}') and 'overlap-check.template' ('{template}')"
        )));
    }
    let name = plain.or(template).map_or("cached", String::as_str);
    let mut checks = Checks::by_name(name).ok_or_else(|| {
        Error::invalid(alloc::format!(
            "Unsupported value '{name}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, \
             cached, all"
        ))
    })?;
    for kind in Kind::ALL {
        if let Some(on) = flag(&alloc::format!("overlap-check.{}", kind.option()))? {
            checks.set(kind, on);
        }
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_change_what_a_template_says() {
        let options =
            [("overlap-check", "constant"), ("overlap-check.active-l2", "on"), ("overlap-check.main-header", "off")];
        let options: BTreeMap<_, _> = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let flag = |name: &str| Ok(options.get(name).map(|value: &String| value == "on"));
        let checks = overlaps(&options, &flag).unwrap();
        assert!(checks.has(Kind::ActiveL2) && checks.has(Kind::RefcountTable));
        assert!(!checks.has(Kind::Header) && !checks.has(Kind::InactiveL2));
    }
}
