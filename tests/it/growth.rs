//! Tables that outgrow their place: the refcount table, the L1 table, and disks that become larger.

use std::sync::Arc;

use diskette::drivers::OpenOptions;
use diskette::{Memory, Node, Preallocation, block_on};

use crate::support::{create, open, read, with_files, writable, write};

#[test]
fn the_refcount_table_grows_with_late_refcounts_too() {
    for lazy in ["off", "on"] {
        let options = [("cluster_size", "512"), ("refcount_bits", "64"), ("lazy_refcounts", lazy)];
        let file = Memory::new(create(16 << 20, &options));
        let image = open(file.clone(), &writable()).unwrap();
        // One refcount table of one cluster describes 2 MiB.
        for piece in 0..12u64 {
            write(&*image, piece << 20, &vec![piece as u8 + 1; 700_000]).unwrap();
        }
        block_on(image.close()).unwrap();
        let reopened = open(file, &OpenOptions::default()).unwrap();
        for piece in 0..12u64 {
            assert!(read(&*reopened, piece << 20, 700_000).unwrap() == vec![piece as u8 + 1; 700_000], "{piece}");
        }
        let report = block_on(reopened.check()).unwrap();
        assert!(report.is_clean(), "lazy_refcounts={lazy}: {:?}", &report.findings[..report.findings.len().min(5)]);
    }
}

#[test]
fn the_l1_table_grows_beyond_what_one_refcount_block_describes() {
    let file = Memory::new(create(64 << 10, &[("cluster_size", "512"), ("refcount_bits", "64")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 1000, &[7; 5000]).unwrap();
    // 32 KiB of guest data for each L1 entry, 32 KiB of file for each refcount block.
    block_on(image.resize(2 << 30, Preallocation::Off)).unwrap();
    write(&*image, (2 << 30) - 600, &[9; 600]).unwrap();
    block_on(image.close()).unwrap();
    let reopened = open(file, &OpenOptions::default()).unwrap();
    assert_eq!(read(&*reopened, 999, 5002).unwrap(), [&[0][..], &[7; 5000], &[0]].concat());
    assert_eq!(read(&*reopened, (2 << 30) - 601, 601).unwrap(), [&[0][..], &[9; 600]].concat());
    let report = block_on(reopened.check()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn growing_a_disk_does_not_uncover_its_backing_image() {
    let base: Arc<dyn Node> = Memory::read_only(vec![0xbb; 1 << 20], "base");
    for compat in ["0.10", "1.1"] {
        let options = [("backing_file", "base"), ("backing_fmt", "raw"), ("compat", compat)];
        let file = Memory::new(create(100 << 10, &options));
        let image = open(file, &with_files(writable(), &[("base", base.clone())])).unwrap();
        block_on(image.resize(2 << 20, Preallocation::Off)).unwrap();
        assert!(read(&*image, 0, 100 << 10).unwrap() == vec![0xbb; 100 << 10], "what was seen before stays");
        assert!(read(&*image, 100 << 10, 1 << 20).unwrap() == vec![0; 1 << 20], "compat={compat}");
    }
}

#[test]
fn space_set_aside_in_an_overlay_does_not_hide_its_backing_image() {
    let base: Arc<dyn Node> = Memory::read_only(vec![0xbb; 1 << 20], "base");
    let options =
        [("backing_file", "base"), ("backing_fmt", "raw"), ("extended_l2", "on"), ("preallocation", "metadata")];
    let file = Memory::new(create(1 << 20, &options));
    let image = open(file, &with_files(writable(), &[("base", base)])).unwrap();
    assert!(read(&*image, 0, 1 << 20).unwrap() == vec![0xbb; 1 << 20]);
    write(&*image, 70_000, &[1; 10]).unwrap();
    assert_eq!(read(&*image, 69_999, 12).unwrap(), [&[0xbb][..], &[1; 10], &[0xbb]].concat());
    assert!(block_on(image.check()).unwrap().is_clean());
}

#[test]
fn a_last_cluster_that_was_not_written_to_its_end_reads_as_zeroes_there() {
    let file = Memory::new(create(256 << 10, &[("cluster_size", "64k")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 64 << 10]).unwrap();
    write(&*image, 64 << 10, &[2; 64 << 10]).unwrap();
    block_on(image.close()).unwrap();
    let bytes = file.to_vec();
    let image = open(Memory::new(&bytes[..bytes.len() - 60_000]), &writable()).unwrap();
    let expected = [vec![1; 64 << 10], vec![2; (64 << 10) - 60_000], vec![0; 60_000]].concat();
    assert!(read(&*image, 0, 128 << 10).unwrap() == expected);
    assert_eq!(read(&*image, (128 << 10) - 10, 10).unwrap(), [0; 10]);
    // A cluster that is missing as a whole is not made up.
    let image = open(Memory::new(&bytes[..bytes.len() - (64 << 10)]), &OpenOptions::default()).unwrap();
    assert_eq!(read(&*image, 0, 64 << 10).unwrap(), vec![1; 64 << 10]);
    assert!(read(&*image, 64 << 10, 512).is_err());
}

#[test]
fn a_check_of_an_image_that_is_being_changed_sees_all_of_it() {
    for lazy in ["off", "on"] {
        let file = Memory::new(create(1 << 20, &[("cluster_size", "4k"), ("lazy_refcounts", lazy)]));
        let image = open(file, &writable()).unwrap();
        write(&*image, 0, &[1; 100_000]).unwrap();
        block_on(image.discard(diskette::Range::new(0, 8192))).unwrap();
        let report = block_on(image.check()).unwrap();
        assert!(report.is_clean(), "lazy_refcounts={lazy}: {:?}", report.findings.first());
    }
}
