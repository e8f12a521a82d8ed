//! Operation lists on a fresh qcow2 image behave like a vector, and the check stays clean.
#![no_main]

use std::collections::BTreeMap;

use diskette::drivers::{CreateContext, Drivers, OpenOptions};
use diskette::{ImageOptions, Memory, Node, Range, ReadFlags, WriteFlags, block_on};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 256 << 10;

fuzz_target!(|bytes: &[u8]| {
    let [geometry, operations @ ..] = bytes else { return };
    let clusters = ["512", "1k", "4k", "16k", "64k"];
    let refcounts = ["1", "2", "4", "8", "16", "32", "64"];
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    let cluster = clusters[usize::from(geometry & 7) % clusters.len()];
    options.insert("cluster_size".into(), cluster.into());
    options.insert("refcount_bits".into(), refcounts[usize::from(geometry >> 3 & 7) % refcounts.len()].into());
    if geometry & 0x40 != 0 && matches!(cluster, "16k" | "64k") {
        options.insert("extended_l2".into(), "on".into());
    }
    if geometry & 0x80 != 0 {
        options.insert("lazy_refcounts".into(), "on".into());
    }
    let file = Memory::new(Vec::new());
    let create = Drivers::all().by_name("qcow2").and_then(|driver| driver.create).expect("qcow2 can be made");
    block_on(create(CreateContext { file: file.clone(), data_file: None, size: SIZE, options: &options, keyring: &diskette::Keyring::default() }))
        .expect("valid options");
    let open = OpenOptions {
        read_only: false,
        image: ImageOptions { discard: true, ..ImageOptions::default() },
        ..OpenOptions::default()
    };
    let mut image = block_on(diskette::open(file.clone(), &open)).expect("a fresh image opens");
    let mut model = vec![0u8; SIZE as usize];
    for operation in operations.chunks_exact(6).take(64) {
        let start = u64::from(u16::from_le_bytes([operation[1], operation[2]])) * 4 % SIZE;
        let len = u64::from(u16::from_le_bytes([operation[3], operation[4]])).min(SIZE - start);
        let range = Range::new(start, len);
        let part = start as usize..(start + len) as usize;
        match operation[0] % 6 {
            0 | 1 => {
                let data = vec![operation[5]; len as usize];
                block_on(image.write(start, &data, WriteFlags::default())).expect("memory has room");
                model[part].fill(operation[5]);
            }
            2 => {
                let flags = WriteFlags { may_unmap: operation[5] & 1 == 1, ..WriteFlags::default() };
                block_on(image.write_zeroes(range, flags)).expect("zeroing works");
                model[part].fill(0);
            }
            3 => {
                block_on(image.discard(range)).expect("discarding works");
                let mut now = vec![0; len as usize];
                block_on(image.read(start, &mut now, ReadFlags::default())).expect("reading works");
                model[part].copy_from_slice(&now);
            }
            4 => block_on(image.flush()).expect("flushing works"),
            _ => {
                block_on(image.close()).expect("closing works");
                image = block_on(diskette::open(file.clone(), &open)).expect("the image opens again");
            }
        }
    }
    let mut contents = vec![0; SIZE as usize];
    block_on(image.read(0, &mut contents, ReadFlags::default())).expect("reading works");
    assert!(contents == model);
    block_on(image.close()).expect("closing works");
    assert!(block_on(image.check()).expect("checking works").is_clean());
});
