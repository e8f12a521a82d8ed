//! What is where in a file: every byte of it is in one region, and the regions are what qemu-img counts.

use std::collections::BTreeMap;

use diskette::describe::SnapshotChoice;
use diskette::drivers::OpenOptions;
use diskette::engine::SnapshotChange;
use diskette::structure::RegionKind;
use diskette::{Budgets, ErrorKind, Image, Memory, Node, Range, WriteFlags, block_on};
use serde_json::Value;

use crate::structure::{KINDS, OFFSET, be, can_share, json, made};
use crate::support::{Scratch, create, open, oracle, tool, writable, write};

/// How many bytes there are of each kind. Every byte of the file must be in one region.
pub fn by_kind(image: &Image, length: u64) -> BTreeMap<&'static str, u64> {
    let regions = block_on(image.regions()).unwrap();
    let mut sums = BTreeMap::new();
    let mut at = 0;
    let mut last = None;
    for region in regions.runs(0) {
        assert_eq!(region.range.start, at);
        assert!(region.range.len > 0 && last != Some(region.kind), "{region:?}");
        at = region.range.end();
        last = Some(region.kind);
        *sums.entry(region.kind.name()).or_default() += region.range.len;
    }
    assert_eq!(at, length);
    // A page begins anywhere.
    for from in [0, 1, at / 2, at / 3 + 5, at.saturating_sub(1)] {
        let whole = regions.runs(0).find(|region| region.range.end() > from).unwrap();
        let part = regions.runs(from).next().unwrap();
        assert_eq!((part.range.start, part.range.end(), part.kind), (from, whole.range.end(), whole.kind));
    }
    sums
}

#[test]
fn regions_are_what_a_check_counts() {
    for options in KINDS {
        let scratch = Scratch::new("regions");
        let (path, mut bytes) = made(&scratch, options);
        let cluster = 1u64 << be(&bytes, 20, 4);
        let clusters = |bytes: u64| bytes.div_ceil(cluster);
        let look = OpenOptions { structure_only: true, ..OpenOptions::default() };
        let image = open(Memory::new(bytes.clone()), &look).unwrap();
        let sums = by_kind(&image, bytes.len() as u64);
        let count = |name: &str| clusters(sums.get(name).copied().unwrap_or(0));
        let report = json(&["check", "--output=json", &path]);
        let number = |name: &str| report[name].as_u64().unwrap_or(0);
        let plain = number("allocated-clusters") - number("compressed-clusters");
        assert_eq!(count("data"), plain, "{options}: {sums:?} {report}");
        assert_eq!(count("compressed") > 0, number("compressed-clusters") > 0, "{options}: {sums:?}");
        for none in ["leaked", "contested"] {
            assert_eq!(count(none), 0, "{options}: {sums:?}");
        }
        let used = |kind: &str| sums.contains_key(kind);
        let tables = ["header", "l1-table", "l2-table", "refcount-table", "refcount-block"];
        assert!(tables.into_iter().all(used), "{options}: {sums:?}");
        assert_eq!(used("snapshot-table") && used("snapshot-data"), can_share(options), "{options}: {sums:?}");
        assert_eq!(used("bitmap-directory") && used("bitmap-table"), !options.contains("0.10"), "{options}: {sums:?}");
        assert_eq!(count("header"), 1, "{options}");
        // A cluster is used exactly if its refcount is not 0.
        let end = number("image-end-offset");
        let last = block_on(image.regions()).unwrap();
        assert_eq!(
            last.runs(end.min(bytes.len() as u64)).filter(|run| run.kind != RegionKind::Free).count(),
            0,
            "{options}"
        );
        if can_share(options) {
            // The same at a snapshot, for the file is the same.
            let choice = Some(SnapshotChoice::IdOrName("first".into()));
            let there = open(Memory::new(bytes.clone()), &OpenOptions { snapshot: choice, ..look.clone() }).unwrap();
            assert_eq!(by_kind(&there, bytes.len() as u64), sums, "{options}");
        }
        // Without an L2 entry, its cluster is lost; with two that share one, a cluster of a table is contested.
        let l1 = be(&bytes, 40, 8);
        let l2 = (0..).map(|index| be(&bytes, l1 + index * 8, 8) & OFFSET).find(|table| *table != 0).unwrap();
        let width = if options.contains("extended") { 16 } else { 8 };
        let lost = (0..).map(|index| l2 + index * width).find(|at| be(&bytes, *at, 8) & OFFSET != 0).unwrap();
        bytes[lost as usize..(lost + width) as usize].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let text = String::from_utf8(tool("qemu-img", &["check", "--output=json", &path]).stdout).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        let image = open(Memory::new(bytes.clone()), &look).unwrap();
        let sums = by_kind(&image, bytes.len() as u64);
        // What a snapshot still refers to is no leak of a whole cluster.
        let leaked = clusters(sums.get("leaked").copied().unwrap_or(0));
        assert!(leaked <= report["leaks"].as_u64().unwrap_or(0), "{options}: {sums:?} {report}");
        bytes[lost as usize..lost as usize + 8].copy_from_slice(&(l2 | 1 << 63).to_be_bytes());
        if width == 16 {
            bytes[lost as usize + 8..lost as usize + 16].copy_from_slice(&1u64.to_be_bytes());
        }
        let image = open(Memory::new(bytes.clone()), &look).unwrap();
        assert_eq!(by_kind(&image, bytes.len() as u64).get("contested"), Some(&cluster), "{options}");
    }
}

#[test]
fn leaks_are_where_qemu_img_finds_them() {
    let scratch = Scratch::new("leaks");
    let path = scratch.path("image");
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", &path, "4M"]);
    oracle("qemu-io", &["-f", "qcow2", "-c", "write 0 400k", &path]);
    let mut bytes = std::fs::read(&path).unwrap();
    let l2 = (be(&bytes, be(&bytes, 40, 8), 8) & OFFSET) as usize;
    let mut places = Vec::new();
    for index in [3, 4, 5, 90] {
        places.push(be(&bytes, (l2 + index * 8) as u64, 8) & OFFSET);
        bytes[l2 + index * 8..l2 + index * 8 + 8].fill(0);
    }
    std::fs::write(&path, &bytes).unwrap();
    let report: Value = serde_json::from_slice(&tool("qemu-img", &["check", "--output=json", &path]).stdout).unwrap();
    assert_eq!(report["leaks"], 4);
    let image = open(Memory::new(bytes), &OpenOptions::default()).unwrap();
    let regions = block_on(image.regions()).unwrap();
    let leaked: Vec<u64> = regions
        .runs(0)
        .filter(|region| region.kind == RegionKind::Leaked)
        .flat_map(|region| (region.range.start..region.range.end()).step_by(4096))
        .collect();
    places.sort_unstable();
    assert_eq!(leaked, places);
}

#[test]
fn regions_take_no_more_memory_than_a_check_may() {
    let mut bytes = create(1 << 20, &[("cluster_size", "512")]);
    bytes.resize(64 << 20, 0);
    let budgets = Budgets { check_bytes: 5_000, ..Budgets::default() };
    let image = open(Memory::new(bytes.clone()), &OpenOptions { budgets, ..OpenOptions::default() }).unwrap();
    assert_eq!(block_on(image.regions()).unwrap_err().kind(), ErrorKind::OverBudget);
    let image = open(Memory::new(bytes), &OpenOptions::default()).unwrap();
    assert!(by_kind(&image, 64 << 20)["free"] > 63 << 20);
}

#[test]
fn changes_are_seen_when_they_are_flushed() {
    let file = Memory::new(create(1 << 20, &[("cluster_size", "4k")]));
    let image = open(file.clone(), &writable()).unwrap();
    let before = by_kind(&image, file.to_vec().len() as u64);
    assert!(!before.contains_key("data"));
    write(&*image, 0, &[1; 20_000]).unwrap();
    block_on(image.snapshot(&SnapshotChange::Create { name: "one".into(), date_sec: 1, date_nsec: 0 })).unwrap();
    write(&*image, 0, &[2; 8192]).unwrap();
    block_on(image.write_zeroes(Range::new(8192, 4096), WriteFlags { may_unmap: true, ..WriteFlags::default() }))
        .unwrap();
    block_on(image.flush()).unwrap();
    let after = by_kind(&image, file.to_vec().len() as u64);
    assert_eq!((after["data"], after["snapshot-data"]), (4 * 4096, 3 * 4096), "{after:?}");
    block_on(image.close()).unwrap();
}

#[test]
fn nothing_is_leaked_that_an_unreadable_snapshot_may_refer_to() {
    let cluster = 4096;
    let file = Memory::new(create(1 << 20, &[("cluster_size", "4k")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 20_000]).unwrap();
    block_on(image.snapshot(&SnapshotChange::Create { name: "one".into(), date_sec: 1, date_nsec: 0 })).unwrap();
    write(&*image, 0, &[2; 8192]).unwrap();
    block_on(image.close()).unwrap();
    let mut bytes = file.to_vec();
    let for_check = OpenOptions { structure_only: true, for_check: true, ..OpenOptions::default() };
    let whole = by_kind(&open(file, &for_check).unwrap(), bytes.len() as u64);
    let snapshots = be(&bytes, 64, 8) as usize;
    // An L1 table of the snapshot that is askew, and two that are nowhere.
    for offset in [1, 1 << 40, u64::MAX] {
        let mut bytes = bytes.clone();
        bytes[snapshots..snapshots + 8].copy_from_slice(&u64::to_be_bytes(offset));
        let image = open(Memory::new(bytes.clone()), &for_check).unwrap();
        let sums = by_kind(&image, bytes.len() as u64);
        assert!(!sums.contains_key("leaked") && !sums.contains_key("snapshot-data"), "{sums:?}");
        assert_eq!(sums["unknown"], 2 * cluster + whole["snapshot-data"], "{sums:?}");
    }
    // Too much extra data, and a table that is nowhere.
    for (at, value) in [(snapshots + 36, [0xff; 4]), (64, [0xff; 4])] {
        bytes[at..at + 4].copy_from_slice(&value);
        let image = open(Memory::new(bytes.clone()), &for_check).unwrap();
        let report = block_on(image.check()).unwrap();
        assert!(report.aborted.is_some() && report.leaks == 0, "{report:?}");
        let sums = by_kind(&image, bytes.len() as u64);
        assert!(!sums.contains_key("leaked") && !sums.contains_key("snapshot-data"), "{sums:?}");
        // The table itself, the L1 table and the L2 table of the snapshot, and what it alone refers to.
        assert_eq!(sums["unknown"], whole["snapshot-table"] + 2 * cluster + whole["snapshot-data"], "{sums:?}");
    }
}

#[test]
fn an_image_that_was_found_to_be_corrupt_is_not_written_to() {
    let mut bytes = create(8 << 20, &[("cluster_size", "4k")]);
    let entry = be(&bytes, 40, 8) as usize + 3 * 8;
    bytes[entry..entry + 8].copy_from_slice(&(1u64 << 63 | 0x200).to_be_bytes());
    let file = Memory::new(bytes);
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 4096]).unwrap();
    assert_eq!(write(&*image, 7 << 20, &[1; 4096]).unwrap_err().kind(), ErrorKind::Corrupt);
    let before = file.to_vec();
    assert_eq!(block_on(image.regions()).unwrap_err().kind(), ErrorKind::Closed);
    assert!(file.to_vec() == before);
}
