//! At every write of a history, with any subset of unflushed sectors lost, the image opens, what was flushed is there,
//! and the check finds leaks at most. Failing writes do no more harm.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use diskette::drivers::OpenOptions;
use diskette::engine::{FindingKind, SnapshotChange};
use diskette::{ErrorKind, Image, Memory, Node, WriteFlags, block_on};

use crate::support::{Pending, Random, TestNode, create, open, read, readable, with_files, writable, write};

const GEOMETRIES: &[&[(&str, &str)]] = &[
    &[("cluster_size", "512")],
    &[("cluster_size", "1k"), ("refcount_bits", "64")],
    &[("cluster_size", "4k")],
    &[("cluster_size", "2k"), ("compat", "0.10")],
    &[("cluster_size", "16k"), ("extended_l2", "on")],
    &[("cluster_size", "1k"), ("lazy_refcounts", "on")],
    &[("cluster_size", "4k"), ("encrypt.format", "aes"), ("encrypt.key-secret", "s")],
];

const SIZE: u64 = 200 << 10;

/// What each byte may be after a power cut: what was flushed, or what was written after it.
struct Possible {
    flushed: Vec<u8>,
    /// Bytes touched since the flush.
    touched: Vec<bool>,
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        for seed in 0..3 {
            cut_history(seed + 50 * index as u64, options);
        }
    }
}

fn cut_history(seed: u64, options: &[(&str, &str)]) {
    let mut random = Random::new(seed);
    let backing: Vec<u8> = (0..SIZE / 2).map(|_| random.next() as u8 | 1).collect();
    let base: Arc<dyn Node> = Memory::read_only(backing.clone(), "base");
    let mut all = options.to_vec();
    all.extend([("backing_file", "base"), ("backing_fmt", "raw")]);
    let node = TestNode::new(create(SIZE, &all));
    let options = with_files(writable(), &[("base", base)]);
    node.record();
    let image = open(node.clone(), &options).unwrap();
    let mut model = vec![0; SIZE as usize];
    model[..backing.len()].copy_from_slice(&backing);
    // For every moment: what is certain.
    let mut states: Vec<Possible> = vec![Possible { flushed: model.clone(), touched: vec![false; SIZE as usize] }];
    let mut state_of_moment: Vec<usize> = Vec::new();
    let mut touched = vec![false; SIZE as usize];
    for _ in 0..22 {
        let range = random.range(SIZE, 9000, 1024);
        let part = range.start as usize..range.end() as usize;
        touched[part.clone()].fill(true);
        // The bytes of a request in flight are uncertain while it runs.
        let last = states.last().unwrap();
        states.push(Possible { flushed: last.flushed.clone(), touched: touched.clone() });
        match random.below(7) {
            0..=3 => {
                let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
                write(&*image, range.start, &bytes).unwrap();
                model[part].copy_from_slice(&bytes);
            }
            4 => {
                block_on(image.write_zeroes(range, WriteFlags { may_unmap: true, ..WriteFlags::default() })).unwrap();
                model[part].fill(0);
            }
            5 => {
                block_on(image.discard(range)).unwrap();
                model[part.clone()].copy_from_slice(&read(&*image, range.start, range.len as usize).unwrap());
            }
            _ => {
                block_on(image.flush()).unwrap();
                state_of_moment.resize(node.history_len(), states.len() - 1);
                touched.fill(false);
                states.push(Possible { flushed: model.clone(), touched: touched.clone() });
            }
        }
        state_of_moment.resize(node.history_len(), states.len() - 1);
    }
    block_on(image.close()).unwrap();
    state_of_moment.resize(node.history_len(), states.len() - 1);
    for (moment, snapshot) in node.history().iter().enumerate() {
        for keep_of_8 in [0, 4, 4, 7, 8] {
            let file = Memory::new(snapshot.survive(&mut random, keep_of_8));
            let possible = &states[state_of_moment[moment]];
            let image = open(file, &OpenOptions { read_only: true, ..options.clone() })
                .unwrap_or_else(|error| panic!("seed {seed} moment {moment}: {error}"));
            let report = block_on(image.check()).unwrap();
            let lazy = image.describe().unwrap().dirty;
            assert!(
                lazy || (report.corruptions, report.check_errors) == (0, 0),
                "seed {seed} moment {moment}: {:?}",
                report.findings
            );
            let contents = read(&*image, 0, SIZE as usize).unwrap();
            for (at, byte) in contents.iter().enumerate() {
                assert!(
                    possible.touched[at] || *byte == possible.flushed[at],
                    "seed {seed} moment {moment} keep {keep_of_8}: byte {at:#x} is {byte:#x}, flushed was {:#x}",
                    possible.flushed[at]
                );
            }
        }
    }
}

#[test]
fn a_full_disk_at_any_write_leaves_leaks_at_most() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        let image_bytes = create(SIZE, options);
        let mut limit = 0;
        loop {
            let mut random = Random::new(900 + index as u64);
            let node = TestNode::new(image_bytes.clone());
            node.fail_at.store(limit, Ordering::Relaxed);
            let image = open(node.clone(), &writable()).unwrap();
            let mut certain: Vec<Option<u8>> = vec![Some(0); SIZE as usize];
            let mut failed = false;
            for _ in 0..14 {
                let range = random.range(SIZE, 5000, 512);
                let bytes = vec![random.next() as u8 | 1; range.len as usize];
                match write(&*image, range.start, &bytes) {
                    Ok(()) => certain[range.start as usize..range.end() as usize].fill(Some(bytes[0])),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                        certain[range.start as usize..range.end() as usize].fill(None);
                        failed = true;
                    }
                }
                failed |= block_on(image.flush()).is_err();
            }
            // Space is there again: everything that was acknowledged is readable and can be written back.
            node.fail_at.store(usize::MAX, Ordering::Relaxed);
            let contents = read(&*image, 0, SIZE as usize).unwrap();
            for (at, byte) in contents.iter().enumerate() {
                assert!(certain[at].is_none_or(|value| value == *byte), "geometry {index} limit {limit} byte {at}");
            }
            block_on(image.close()).unwrap();
            let reopened = open(Memory::new(node.bytes()), &readable()).unwrap();
            let report = block_on(reopened.check()).unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "limit {limit}: {:?}", report.findings);
            assert!(read(&*reopened, 0, SIZE as usize).unwrap() == contents, "geometry {index} limit {limit}");
            if !failed {
                break;
            }
            limit += 1;
        }
        assert!(limit > 10, "the history has writes to fail");
    }
}

/// What a power cut in the middle of a change of snapshots must leave: a disk as it was before or after, and every
/// snapshot that is listed as it was made, whatever is written then.
#[test]
fn a_power_cut_while_snapshots_change_leaves_the_old_or_the_new() {
    for (index, options) in
        GEOMETRIES.iter().enumerate().filter(|(_, options)| options[1..] != [("lazy_refcounts", "on")])
    {
        let mut random = Random::new(4000 + index as u64);
        let node = TestNode::new(create(SIZE, options));
        let image = open(node.clone(), &writable()).unwrap();
        let mut fill = |image: &Image| {
            for _ in 0..6 {
                let range = random.range(SIZE, 40_000, 1024);
                let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
                write(image, range.start, &bytes).unwrap();
            }
            block_on(image.flush()).unwrap();
            read(image, 0, SIZE as usize).unwrap()
        };
        let create = |name: &str| SnapshotChange::Create { name: name.into(), date_sec: 1, date_nsec: 0 };
        let one = fill(&image);
        block_on(image.snapshot(&create("one"))).unwrap();
        let two = fill(&image);
        block_on(image.snapshot(&create("two"))).unwrap();
        let now = fill(&image);
        let made: &[(&str, &[u8])] = &[("one", &one), ("two", &two), ("three", &now)];
        // Each change, and what the disk may be then.
        for (change, possible) in [
            (create("three"), [&now, &now]),
            (SnapshotChange::Apply("one".into()), [&now, &one]),
            (SnapshotChange::Delete("two".into()), [&one, &one]),
            (SnapshotChange::Apply("three".into()), [&one, &now]),
            (SnapshotChange::Delete("one".into()), [&now, &now]),
            (SnapshotChange::Delete("three".into()), [&now, &now]),
        ] {
            let place = format!("geometry {index} {change:?}");
            node.record();
            block_on(image.snapshot(&change)).unwrap();
            assert!(read(&*image, 0, SIZE as usize).unwrap() == *possible[1], "{place}");
            let mut cuts = Random::new(index as u64);
            for (moment, snapshot) in node.history().iter().enumerate() {
                let bytes = snapshot.survive(&mut cuts, [0, 3, 5, 8][moment % 4]);
                let image = open(Memory::new(bytes.clone()), &writable()).unwrap();
                let report = block_on(image.check()).unwrap();
                // Flags that say less than they could, or are about to be cleared, are no harm.
                let worse = report
                    .findings
                    .iter()
                    .any(|finding| finding.kind != FindingKind::Leak && !finding.text.contains("OFLAG_COPIED"));
                assert!(!worse && report.check_errors == 0, "{place} moment {moment}: {:?}", report.findings);
                let disk = read(&*image, 0, SIZE as usize).unwrap();
                assert!(possible.iter().any(|possible| **possible == disk), "{place} moment {moment}");
                // Whatever is written next, the snapshots stay.
                for (at, byte) in (0..SIZE).step_by(3000).zip(0u8..) {
                    write(&*image, at, &[byte; 700]).unwrap();
                }
                block_on(image.flush()).unwrap();
                for about in image.describe().unwrap().snapshots {
                    block_on(image.snapshot(&SnapshotChange::Apply(about.name.clone()))).unwrap();
                    let expected = made.iter().find(|(name, _)| *name == about.name).unwrap().1;
                    let found = read(&*image, 0, SIZE as usize).unwrap();
                    assert!(found == expected, "{place} moment {moment}: snapshot {}", about.name);
                }
            }
        }
        block_on(image.close()).unwrap();
        let report = block_on(open(Memory::new(node.bytes()), &readable()).unwrap().check()).unwrap();
        assert!(report.is_clean(), "geometry {index}: {:?}", report.findings);
    }
}

#[test]
fn a_power_cut_while_tables_grow_leaves_leaks_at_most() {
    let file = Memory::new(create(4 << 20, &[("cluster_size", "512"), ("refcount_bits", "64")]));
    let image = open(file.clone(), &writable()).unwrap();
    // Nearly all that the first refcount table can describe.
    let filled = 1_980_000;
    write(&*image, 0, &vec![7; filled]).unwrap();
    block_on(image.close()).unwrap();
    let node = TestNode::new(file.to_vec());
    let image = open(node.clone(), &writable()).unwrap();
    node.record();
    write(&*image, 3 << 20, &[8; 100_000]).unwrap();
    block_on(image.resize(512 << 20, diskette::Preallocation::Off)).unwrap();
    write(&*image, 100 << 20, &[9; 512]).unwrap();
    block_on(image.close()).unwrap();
    let mut random = Random::new(1);
    let history = node.history();
    // A moment differs from the one before it by a write; every seventh will do, and all of those about the header.
    for (moment, snapshot) in history.iter().enumerate() {
        let header = snapshot.pending.iter().any(|pending| matches!(pending, Pending::Write(0, _)));
        if moment % 7 != 0 && !header {
            continue;
        }
        let image = open(Memory::new(snapshot.survive(&mut random, 4)), &OpenOptions::default()).unwrap();
        let report = block_on(image.check()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{moment}: {:?}", report.findings.first());
        assert!(read(&*image, 0, filled).unwrap() == vec![7; filled], "moment {moment}");
    }
    assert!(image.info().length == 512 << 20 && history.len() > 50, "{}", history.len());
}

#[test]
fn a_full_disk_while_tables_grow_leaves_leaks_at_most() {
    let options = [("cluster_size", "512"), ("refcount_bits", "64")];
    let file = Memory::new(create(4 << 20, &options));
    let image = open(file.clone(), &writable()).unwrap();
    let filled = 1_970_000;
    write(&*image, 0, &vec![7; filled]).unwrap();
    block_on(image.close()).unwrap();
    for limit in 0.. {
        let node = TestNode::new(file.to_vec());
        node.fail_at.store(limit, Ordering::Relaxed);
        let image = open(node.clone(), &writable()).unwrap();
        let mut failed = write(&*image, 3 << 20, &[8; 40_000]).is_err();
        failed |= block_on(image.resize(256 << 20, diskette::Preallocation::Off)).is_err();
        node.fail_at.store(usize::MAX, Ordering::Relaxed);
        write(&*image, 2 << 20, &[9; 30_000]).unwrap();
        block_on(image.close()).unwrap();
        let reopened = open(Memory::new(node.bytes()), &readable()).unwrap();
        let report = block_on(reopened.check()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "limit {limit}: {:?}", report.findings.first());
        assert!(read(&*reopened, 2 << 20, 30_000).unwrap() == [9; 30_000], "limit {limit}");
        assert!(read(&*reopened, 0, 5000).unwrap() == [7; 5000], "limit {limit}");
        if !failed {
            assert!(limit > 20, "{limit}");
            break;
        }
    }
}

#[test]
fn a_power_cut_while_a_disk_grows_never_shows_what_the_backing_image_has_there() {
    for version in ["0.10", "1.1"] {
        let base: Arc<dyn Node> = Memory::read_only(vec![0xbb; 300 << 10], "base");
        let options = [("cluster_size", "4k"), ("compat", version), ("backing_file", "base"), ("backing_fmt", "raw")];
        let node = TestNode::new(create(99 << 10, &options));
        let options = with_files(writable(), &[("base", base)]);
        let image = open(node.clone(), &options).unwrap();
        node.record();
        block_on(image.resize(400 << 10, diskette::Preallocation::Off)).unwrap();
        block_on(image.close()).unwrap();
        let mut random = Random::new(7);
        let history = node.history();
        assert!(history.len() > 3);
        for (moment, snapshot) in history.iter().enumerate() {
            for keep_of_8 in [0, 4, 8] {
                let file = Memory::new(snapshot.survive(&mut random, keep_of_8));
                let image = open(file, &OpenOptions { read_only: true, ..options.clone() }).unwrap();
                let report = block_on(image.check()).unwrap();
                assert_eq!((report.corruptions, report.check_errors), (0, 0), "moment {moment}: {:?}", report.findings);
                let length = image.info().length as usize;
                assert!([99 << 10, 400 << 10].contains(&length));
                let disk = read(&*image, 0, length).unwrap();
                assert!(disk[..99 << 10].iter().all(|byte| *byte == 0xbb), "version {version} moment {moment}");
                assert!(disk[99 << 10..].iter().all(|byte| *byte == 0), "version {version} moment {moment}");
            }
        }
    }
}

#[test]
fn what_a_grown_encrypted_disk_gains_is_zero_even_after_a_failure() {
    let options = [("cluster_size", "512"), ("encrypt.format", "aes"), ("encrypt.key-secret", "s")];
    let bytes = create(16 << 10, &options);
    for limit in 0.. {
        let node = TestNode::failing_once(bytes.clone(), limit);
        let image = open(node.clone(), &writable()).unwrap();
        let failed = block_on(image.resize(200 << 10, diskette::Preallocation::Metadata)).is_err();
        node.fail_at.store(usize::MAX, Ordering::Relaxed);
        block_on(image.close()).unwrap();
        let image = open(Memory::new(node.bytes()), &writable()).unwrap();
        block_on(image.resize(200 << 10, diskette::Preallocation::Off)).unwrap();
        for at in [16 << 10, 40 << 10, 190 << 10] {
            assert!(read(&*image, at, 8192).unwrap() == [0; 8192], "limit {limit}, offset {at}");
        }
        assert_eq!(block_on(image.check()).unwrap().corruptions, 0, "limit {limit}");
        if !failed {
            assert!(limit > 5, "{limit}");
            break;
        }
    }
}

#[test]
fn space_that_the_host_does_not_take_back_is_no_failure() {
    let node = TestNode::new(create(SIZE, &[("cluster_size", "4k")]));
    let image = open(node.clone(), &writable()).unwrap();
    write(&*image, 0, &[7; 50_000]).unwrap();
    node.refuses_discards.store(true, Ordering::Relaxed);
    block_on(image.discard(diskette::Range::new(0, 40_960))).unwrap();
    block_on(image.flush()).unwrap();
    block_on(image.close()).unwrap();
    let image = open(Memory::new(node.bytes()), &readable()).unwrap();
    assert_eq!(read(&*image, 0, 40_960).unwrap(), [0; 40_960]);
    assert!(block_on(image.check()).unwrap().is_clean());
}
