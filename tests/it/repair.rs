//! Repairs put right what is wrong, harm nothing else, and a power cut in the middle of one leaves nothing worse. Metadata
//! that would be overwritten stops writing. Shrinking and changes of properties survive power cuts, too.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use diskette::drivers::OpenOptions;
use diskette::engine::{AmendRequest, CheckReport, FindingKind, Repair, SnapshotChange};
use diskette::{ErrorKind, Image, Memory, Node, Preallocation, Range, WriteFlags, block_on};

use crate::support::{Random, Scratch, TestNode, create, open, oracle, read, tool, with_files, writable, write};

const SIZE: u64 = 300 << 10;

/// How an image is opened to be repaired.
fn for_repair() -> OpenOptions {
    OpenOptions { read_only: false, structure_only: true, for_check: true, ..OpenOptions::default() }
}

fn repair(file: Arc<dyn Node>, what: Repair) -> CheckReport {
    let image = open(file, &for_repair()).unwrap();
    let report = block_on(image.repair(what)).unwrap();
    block_on(image.close()).unwrap();
    report
}

fn check(file: Arc<dyn Node>) -> CheckReport {
    let options = OpenOptions { structure_only: true, ..OpenOptions::default() };
    block_on(open(file, &options).unwrap().check()).unwrap()
}

fn contents(file: Arc<dyn Node>) -> Vec<u8> {
    let image = open(file, &OpenOptions::default()).unwrap();
    read(&*image, 0, image.info().length as usize).unwrap()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// An image with data, zeroes and a snapshot, whose clusters have 4 KiB and refcounts 16 bits.
fn sample(lazy: bool) -> Vec<u8> {
    let mut options = vec![("cluster_size", "4k")];
    if lazy {
        options.push(("lazy_refcounts", "on"));
    }
    let file = Memory::new(create(SIZE, &options));
    let image = open(file.clone(), &writable()).unwrap();
    let mut random = Random::new(5);
    let mut fill = |image: &Image, count: u64| {
        for _ in 0..count {
            let range = random.range(SIZE, 20_000, 4096);
            let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
            write(image, range.start, &bytes).unwrap();
        }
    };
    fill(&image, 8);
    block_on(image.snapshot(&SnapshotChange::Create { name: "one".into(), date_sec: 1, date_nsec: 0 })).unwrap();
    fill(&image, 8);
    block_on(image.write_zeroes(Range::new(40_960, 8192), WriteFlags::default())).unwrap();
    block_on(image.close()).unwrap();
    file.to_vec()
}

/// Ways to damage the sample that cost no data, and whether only a new refcount structure helps.
fn damages() -> Vec<(&'static str, Vec<u8>)> {
    let whole = sample(false);
    let table = number(&whole, 48) as usize;
    let block = number(&whole, table) as usize;
    let l1 = number(&whole, 40) as usize;
    let l2 = (number(&whole, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let clusters = whole.len() / 4096;
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    vec![
        ("a leak", damage(&|bytes| bytes[block + 2 * clusters + 7] = 1)),
        ("a refcount that is too large", damage(&|bytes| bytes[block + 1] = 3)),
        (
            "refcounts that are too small",
            damage(&|bytes| {
                for entry in 4..clusters {
                    let at = block + 2 * entry + 1;
                    bytes[at] = bytes[at].min(1);
                }
            }),
        ),
        ("clusters in use that are called free", damage(&|bytes| bytes[block + 8..block + 24].fill(0))),
        ("no refcount block", damage(&|bytes| bytes[table..table + 8].fill(0))),
        ("a refcount block nowhere", damage(&|bytes| bytes[table + 3] = 9)),
        ("an unaligned refcount block", damage(&|bytes| bytes[table + 6] |= 2)),
        (
            "flags that are wrong",
            damage(&|bytes| {
                bytes[l1] ^= 0x80;
                for entry in 0..20 {
                    let at = l2 + 8 * entry;
                    if number(bytes, at) & 0x00ff_ffff_ffff_fe00 != 0 {
                        bytes[at] ^= 0x80;
                    }
                }
            }),
        ),
        ("the bits of a dirty and corrupt image", damage(&|bytes| bytes[79] |= 3)),
    ]
}

#[test]
fn every_damage_that_costs_no_data_is_put_right_and_qemu_agrees() {
    let scratch = Scratch::new("repair");
    let expected = contents(Memory::new(sample(false)));
    for (what, bytes) in damages() {
        let path = scratch.path("ours.qcow2");
        let theirs = scratch.path("theirs.qcow2");
        for file in [&path, &theirs] {
            std::fs::write(file, &bytes).unwrap();
        }
        let file = Memory::new(bytes);
        let report = repair(file.clone(), Repair::All);
        assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 0), "{what}: {:?}", report.findings);
        assert!(check(file.clone()).is_clean(), "{what}");
        assert!(contents(file.clone()) == expected, "{what}");
        std::fs::write(&path, file.to_vec()).unwrap();
        oracle("qemu-img", &["check", &path]);
        // It also finds as much to repair.
        if what != "a refcount block nowhere" && what != "an unaligned refcount block" {
            let output = tool("qemu-img", &["check", "-r", "all", &theirs]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let fixed =
                format!("    {} leaked clusters\n    {} corruptions\n", report.leaks_fixed, report.corruptions_fixed);
            let nothing = report.leaks_fixed + report.corruptions_fixed == 0;
            assert!(nothing || text.contains(&fixed), "{what}: {fixed}{text}");
        }
    }
}

#[test]
fn a_power_cut_in_the_middle_of_a_repair_leaves_nothing_worse() {
    let expected = contents(Memory::new(sample(false)));
    for (index, (what, bytes)) in damages().into_iter().enumerate() {
        let node = TestNode::new(bytes);
        node.record();
        repair(node.clone(), Repair::All);
        let mut random = Random::new(70 + index as u64);
        for (moment, snapshot) in node.history().iter().enumerate() {
            for keep_of_8 in [0, 4, 8] {
                let file = Memory::new(snapshot.survive(&mut random, keep_of_8));
                let place = format!("{what} moment {moment} keep {keep_of_8}");
                assert!(contents(file.clone()) == expected, "{place}");
                let report = repair(file.clone(), Repair::All);
                assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 0), "{place}");
                assert!(check(file.clone()).is_clean(), "{place}");
                assert!(contents(file) == expected, "{place}");
            }
        }
    }
}

#[test]
fn only_leaks_are_given_back_if_that_is_asked_for() {
    for (what, bytes) in damages() {
        let file = Memory::new(bytes.clone());
        let before = check(file.clone());
        let report = repair(file.clone(), Repair::Leaks);
        if before.corruptions == 0 {
            assert!(check(file).is_clean(), "{what}");
        } else if report.aborted.is_some() {
            // Without a refcount structure that can be trusted nothing may be given back.
            assert!(file.to_vec() == bytes, "{what}");
        }
    }
}

#[test]
fn damage_at_random_is_repaired_or_refused_and_never_panics() {
    let whole = sample(false);
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(12) {
            // Mostly in the tables, which come first.
            let at = if random.below(3) == 0 { random.below(bytes.len() as u64) } else { 32 + random.below(28_000) };
            bytes[at as usize] = random.next() as u8;
        }
        let file = Memory::new(bytes);
        let Ok(image) = open(file.clone(), &for_repair()) else { continue };
        let Ok(report) = block_on(image.repair(Repair::All)) else { continue };
        if report.check_errors == 0 && report.aborted.is_none() && report.corruptions == 0 {
            let again = repair(file, Repair::All);
            assert_eq!((again.corruptions_fixed, again.corruptions), (0, 0), "seed {seed}: {:?}", again.findings);
        }
    }
}

#[test]
fn a_dirty_image_is_repaired_when_it_is_opened_for_writing() {
    let file = Memory::new(create(SIZE, &[("cluster_size", "4k"), ("lazy_refcounts", "on")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[7; 20_000]).unwrap();
    block_on(image.flush()).unwrap();
    // Nobody closes it.
    let left = Memory::new(file.to_vec());
    assert!(open(left.clone(), &OpenOptions::default()).unwrap().describe().unwrap().dirty);
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let hear = said.clone();
    let options =
        OpenOptions { report: Some(Arc::new(move |text: &str| hear.lock().unwrap().push(text.into()))), ..writable() };
    let image = open(left.clone(), &options).unwrap();
    let said = said.lock().unwrap();
    assert!(said.iter().any(|line| line == "Rebuilding refcount structure"), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("ERROR cluster 5 refcount=0 reference=1")), "{said:?}");
    assert!(read(&*image, 0, 20_000).unwrap() == [7; 20_000]);
    block_on(image.close()).unwrap();
    assert!(check(left).is_clean());
}

/// An image with one cluster, opened with an option, and what it says.
fn told(bytes: Vec<u8>, options: &[(&str, &str)]) -> (Arc<Memory>, Arc<Image>, Arc<Mutex<Vec<String>>>) {
    let file = Memory::new(bytes);
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let hear = said.clone();
    let options = OpenOptions {
        report: Some(Arc::new(move |text: &str| hear.lock().unwrap().push(text.into()))),
        driver_options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..writable()
    };
    let image = open(file.clone(), &options).unwrap();
    (file, image, said)
}

#[test]
fn a_write_that_would_hit_metadata_marks_the_image_corrupt_and_ends_writing() {
    let whole = sample(false);
    let l1 = number(&whole, 40) as usize;
    let mut bytes = whole.clone();
    // The first L2 table is the L1 table itself.
    let entry = (l1 as u64 | 1 << 63).to_be_bytes();
    bytes[l1..l1 + 8].copy_from_slice(&entry);
    let (file, image, said) = told(bytes, &[]);
    let error = write(&*image, 0, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let expected = "qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps with active L1 table); \
                    further corruption events will be suppressed";
    assert_eq!(*said.lock().unwrap(), [expected]);
    assert_eq!(file.to_vec()[79] & 2, 2);
    let after = file.to_vec();
    assert_eq!(write(&*image, SIZE / 2, &[1; 512]).unwrap_err().kind(), ErrorKind::Closed);
    block_on(image.close()).unwrap();
    assert!(file.to_vec() == after && said.lock().unwrap().len() == 1);
    assert!(open(file.clone(), &writable()).is_err(), "it can only be read");
    open(file, &OpenOptions::default()).unwrap();
}

#[test]
fn overlap_checks_can_be_chosen() {
    // The refcounts call the L2 table free, and it is the first free cluster.
    let options = [("cluster_size", "4k")];
    let file = Memory::new(create(SIZE, &options));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 4096]).unwrap();
    block_on(image.close()).unwrap();
    let mut bytes = file.to_vec();
    let block = number(&bytes, number(&bytes, 48) as usize) as usize;
    bytes[block + 8..block + 10].fill(0);
    for (options, refused) in [
        (&[][..], true),
        (&[("overlap-check", "all")], true),
        (&[("overlap-check", "constant")], false),
        (&[("overlap-check", "none")], false),
        (&[("overlap-check.template", "none"), ("overlap-check.active-l2", "on")], true),
        (&[("overlap-check.active-l2", "off")], false),
    ] {
        let (_, image, said) = told(bytes.clone(), options);
        assert_eq!(write(&*image, 8192, &[2; 4096]).is_err(), refused, "{options:?}");
        assert_eq!(said.lock().unwrap().len(), usize::from(refused), "{options:?}");
    }
    let options = OpenOptions {
        driver_options: BTreeMap::from([("overlap-check".to_string(), "blubb".to_string())]),
        ..writable()
    };
    let error = open(Memory::new(bytes), &options).unwrap_err();
    assert!(error.to_string().contains("Unsupported value 'blubb' for qcow2 option 'overlap-check'"), "{error}");
}

#[test]
fn what_is_behind_a_new_end_never_comes_back() {
    let backing = vec![0xbb; SIZE as usize];
    let base: Arc<dyn Node> = Memory::read_only(backing, "base");
    for plain in [true, false] {
        let mut all = vec![("cluster_size", "4k")];
        if !plain {
            all.extend([("backing_file", "base"), ("backing_fmt", "raw")]);
        }
        let options = with_files(writable(), &[("base", base.clone())]);
        let file = Memory::new(create(SIZE, &all));
        let image = open(file.clone(), &options).unwrap();
        write(&*image, 0, &vec![7; SIZE as usize]).unwrap();
        let long = file.to_vec().len();
        block_on(image.resize(10 << 10, Preallocation::Off)).unwrap();
        assert_eq!(image.info().length, 10 << 10);
        assert!(file.to_vec().len() < long / 2, "the file gets shorter, too");
        for mode in [Preallocation::Off, Preallocation::Metadata, Preallocation::Full] {
            let from = image.info().length;
            block_on(image.resize(from + 50_176, mode)).unwrap();
            let disk = read(&*image, 0, image.info().length as usize).unwrap();
            assert!(disk[..10 << 10].iter().all(|byte| *byte == 7), "{mode:?}");
            assert!(disk[10 << 10..].iter().all(|byte| *byte == 0), "{mode:?}");
        }
        block_on(image.close()).unwrap();
        let report = check(file);
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

#[test]
fn a_power_cut_while_a_disk_shrinks_leaves_leaks_at_most() {
    let kept = 20 << 10;
    let node = TestNode::new(sample(false));
    let expected = contents(Memory::new(node.bytes()));
    let image = open(node.clone(), &writable()).unwrap();
    node.record();
    block_on(image.resize(kept as u64, Preallocation::Off)).unwrap();
    block_on(image.close()).unwrap();
    let mut random = Random::new(3);
    for (moment, snapshot) in node.history().iter().enumerate() {
        for keep_of_8 in [0, 4, 8] {
            let file = Memory::new(snapshot.survive(&mut random, keep_of_8));
            let report = check(file.clone());
            let worse = report.findings.iter().any(|finding| finding.kind != FindingKind::Leak);
            assert!(!worse, "moment {moment} keep {keep_of_8}: {:?}", report.findings);
            let image = open(file, &writable()).unwrap();
            let disk = read(&*image, 0, image.info().length as usize).unwrap();
            assert!(disk[..kept] == expected[..kept], "moment {moment}");
            // The snapshot is as it was.
            block_on(image.snapshot(&SnapshotChange::Apply("one".into()))).unwrap();
            assert_eq!(image.info().length, SIZE);
        }
    }
    assert!(check(Memory::new(node.bytes())).is_clean());
}

fn amend(image: &Image, options: &[(&str, &str)]) -> diskette::Result<()> {
    let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    block_on(image.amend(&AmendRequest { options, ..AmendRequest::default() }))
}

#[test]
fn a_power_cut_while_properties_change_loses_nothing() {
    let expected = contents(Memory::new(sample(false)));
    let mut bytes = sample(false);
    for options in [
        &[("refcount_bits", "64")][..],
        &[("refcount_bits", "2")],
        &[("refcount_bits", "16")],
        &[("compat", "0.10")],
        &[("compat", "1.1"), ("lazy_refcounts", "on")],
        &[("lazy_refcounts", "off")],
    ] {
        let node = TestNode::new(bytes);
        let image = open(node.clone(), &writable()).unwrap();
        node.record();
        amend(&image, options).unwrap();
        assert!(read(&*image, 0, SIZE as usize).unwrap() == expected, "{options:?}");
        block_on(image.close()).unwrap();
        let mut random = Random::new(11);
        let history = node.history();
        for (moment, snapshot) in
            history.iter().enumerate().filter(|(moment, _)| history.len() < 100 || moment % 5 == 0)
        {
            let file = Memory::new(snapshot.survive(&mut random, [0, 4, 8][moment % 3]));
            let report = check(file.clone());
            let worse = report.findings.iter().any(|finding| finding.kind != FindingKind::Leak);
            let dirty = open(file.clone(), &OpenOptions::default()).unwrap().describe().unwrap().dirty;
            assert!(!worse || dirty, "{options:?} moment {moment}: {:?}", report.findings);
            assert!(contents(file) == expected, "{options:?} moment {moment}");
        }
        bytes = node.bytes();
        assert!(check(Memory::new(bytes.clone())).is_clean(), "{options:?}");
    }
    let image = open(Memory::new(bytes), &writable()).unwrap();
    let error = amend(&image, &[("refcount_bits", "1")]).unwrap_err();
    assert!(error.to_string().contains("Cannot decrease refcount entry width to 1 bits: Cluster at offset"), "{error}");
    assert!(amend(&image, &[("compat", "0.42")]).unwrap_err().to_string().contains("Unknown compatibility level 0.42"));
}

#[test]
fn what_may_be_in_use_is_not_given_back() {
    let whole = sample(false);
    // The L1 table of the snapshot is where the file has ended.
    let place = number(&whole, 64) as usize;
    let beyond = (whole.len() as u64).next_multiple_of(4096) + (1 << 20);
    let mut lying = whole.clone();
    lying[place..place + 8].copy_from_slice(&beyond.to_be_bytes());
    for what in [Repair::Leaks, Repair::All] {
        let file = Memory::new(lying.clone());
        let report = repair(file.clone(), what);
        assert!(report.aborted.is_some() && report.leaks_fixed == 0, "{what:?}: {report:?}");
        let mut found = file.to_vec();
        found[place..place + 8].copy_from_slice(&whole[place..place + 8]);
        let report = check(Memory::new(found.clone()));
        assert!(report.is_clean(), "{what:?}: {:?}", report.findings);
        assert!(contents(Memory::new(found)) == contents(Memory::new(whole.clone())));
    }
}

#[test]
fn what_is_written_after_a_repair_is_as_safe_as_before() {
    let node = TestNode::new(sample(true));
    let image = open(node.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 9000]).unwrap();
    block_on(image.repair(Repair::All)).unwrap();
    write(&*image, 100_000, &[2; 50_000]).unwrap();
    block_on(image.flush()).unwrap();
    let cut = Memory::new(node.bytes());
    let dirty = open(cut.clone(), &OpenOptions::default()).unwrap().describe().unwrap().dirty;
    let findings = check(cut).findings;
    assert!(dirty || findings.iter().all(|finding| finding.kind == FindingKind::Leak), "{findings:?}");
    block_on(image.close()).unwrap();
    assert!(check(Memory::new(node.bytes())).is_clean());
}

#[test]
fn what_a_failed_change_set_aside_is_given_back() {
    type Change = fn(&Image) -> diskette::Result<()>;
    let changes: [(&str, Change); 2] = [
        ("refcount_bits", |image| amend(image, &[("refcount_bits", "64")])),
        ("L1 table", |image| block_on(image.resize(1 << 31, Preallocation::Off))),
    ];
    for (name, change) in changes {
        let mut leaking = Vec::new();
        for limit in 0.. {
            let node = TestNode::failing_once(sample(false), limit);
            let image = open(node.clone(), &writable()).unwrap();
            let failed = change(&image).is_err();
            node.fail_at.store(usize::MAX, Ordering::Relaxed);
            block_on(image.close()).unwrap();
            let report = check(Memory::new(node.bytes()));
            assert!(report.corruptions + report.check_errors == 0, "{name}, limit {limit}: {:?}", report.findings);
            if report.leaks > 0 {
                leaking.push(limit);
            }
            if !failed {
                break;
            }
        }
        // Once the header was to be written, and until it is certain to be on disk, both the old and the new place are kept.
        assert!(leaking.len() <= 2, "{name}: limits {leaking:?}");
    }
}
