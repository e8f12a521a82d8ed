//! Images that lie. Each gives an error that says where and what; none panics, hangs or takes memory by its own word.

use std::sync::Arc;

use diskette::drivers::OpenOptions;
use diskette::native::{File, FileOptions};
use diskette::{Budgets, ErrorKind, Gate, Memory, Node, Policy, Range, Want, block_on};

use crate::support::{Random, Scratch, create, create_in, open, oracle, read, tool, with_files, writable, write};

fn patched(options: &[(&str, &str)], patches: &[(usize, &[u8])]) -> Arc<Memory> {
    let mut bytes = create(1 << 20, options);
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    Memory::new(bytes)
}

fn refusal(patches: &[(usize, &[u8])]) -> diskette::Error {
    let options = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
    open(patched(&[], patches), &options).expect_err("the image must be refused")
}

#[test]
fn refuses_header_fields_out_of_range_by_name_and_offset() {
    let cases: &[(&str, usize, &[u8])] = &[
        ("cluster_bits", 20, &8u32.to_be_bytes()),
        ("cluster_bits", 20, &22u32.to_be_bytes()),
        ("cluster_bits", 20, &u32::MAX.to_be_bytes()),
        ("crypt_method", 32, &3u32.to_be_bytes()),
        ("version", 4, &1u32.to_be_bytes()),
        ("version", 4, &4u32.to_be_bytes()),
        // More than 32 MiB of table, and more than its length in 32 bits can say.
        ("l1_size", 36, &0x0040_0001u32.to_be_bytes()),
        ("l1_size", 36, &0x0100_0000u32.to_be_bytes()),
        ("l1_size", 36, &0x2000_0001u32.to_be_bytes()),
        ("l1_size", 36, &0u32.to_be_bytes()),
        ("l1_table_offset", 40, &1u64.to_be_bytes()),
        ("l1_table_offset", 40, &(1u64 << 40).to_be_bytes()),
        ("l1_table_offset", 40, &(u64::MAX << 16).to_be_bytes()),
        ("refcount_table_offset", 48, &7u64.to_be_bytes()),
        ("refcount_table_clusters", 56, &0u32.to_be_bytes()),
        // More than 8 MiB of table.
        ("refcount_table_clusters", 56, &129u32.to_be_bytes()),
        ("refcount_table_clusters", 56, &u32::MAX.to_be_bytes()),
        ("nb_snapshots", 60, &65537u32.to_be_bytes()),
        ("refcount_order", 96, &7u32.to_be_bytes()),
        ("header_length", 100, &103u32.to_be_bytes()),
        ("header_length", 100, &u32::MAX.to_be_bytes()),
        ("compression_type", 104, &[2]),
        ("size", 24, &u64::MAX.to_be_bytes()),
        ("size", 24, &(1u64 << 63).to_be_bytes()),
        ("backing_file_size", 8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0]),
        ("backing_file_size", 8, &[0, 0, 0, 0, 0, 0, 2, 0, 0xff, 0xff, 0xff, 0xff]),
        ("backing_file_offset", 8, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 9]),
        ("backing_file_offset", 8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9]),
    ];
    for (field, offset, value) in cases {
        let error = refusal(&[(*offset, value)]);
        let text = error.to_string();
        assert!(text.contains(field), "{field}: {text}");
        assert!(text.contains("expected"), "{field}: {text}");
        assert!(error.context().offset.is_some(), "{field}: {text}");
    }
}

#[test]
fn a_table_of_snapshots_has_a_limit_in_bytes_and_lies_about_none() {
    // Entries with names and identifiers as long as they can be; 64 MiB are reached long before 65536 of them.
    let table = 1 << 20;
    let mut bytes = create(1 << 20, &[]);
    bytes.resize(table, 0);
    bytes[60..64].copy_from_slice(&600u32.to_be_bytes());
    bytes[64..72].copy_from_slice(&(table as u64).to_be_bytes());
    let mut entry = vec![b'x'; 40 + 1024 + 2 * 65535];
    entry[..40].fill(0);
    entry[12..14].copy_from_slice(&65535u16.to_be_bytes());
    entry[14..16].copy_from_slice(&65535u16.to_be_bytes());
    entry[36..40].copy_from_slice(&1024u32.to_be_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
    for _ in 0..600 {
        bytes.extend_from_slice(&entry);
    }
    let begun = std::time::Instant::now();
    let error = open(Memory::new(bytes.clone()), &OpenOptions::default()).unwrap_err();
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert!(error.to_string().contains("napshot"), "{error}");
    // What an entry has too much of, and where a table is not.
    for (what, at, patch) in [
        ("extra data", table + 36, &1025u32.to_be_bytes()[..]),
        ("extra data", table + 36, &u32::MAX.to_be_bytes()),
        ("an unaligned table", 64, &(table as u64 + 4).to_be_bytes()),
        ("a table behind the end", 64, &(1u64 << 50).to_be_bytes()),
        ("a table that wraps around", 64, &(u64::MAX << 16).to_be_bytes()),
    ] {
        let mut bytes = bytes[..table + 2 * entry.len()].to_vec();
        bytes[60..64].copy_from_slice(&2u32.to_be_bytes());
        bytes[at..at + patch.len()].copy_from_slice(patch);
        let error = open(Memory::new(bytes), &OpenOptions::default()).expect_err(what);
        assert!(error.context().offset.is_some(), "{what}: {error}");
        assert!(error.to_string().contains("expected") || error.to_string().contains("beyond"), "{what}: {error}");
    }
}

#[test]
fn refuses_unknown_incompatible_bits_by_number_and_name() {
    let error = refusal(&[(72, &(1u64 << 5).to_be_bytes())]);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("incompatible bit 5"), "{error}");
    // The image's own table has a name for bit 0; make it one for bit 40.
    let mut bytes = create(1 << 20, &[]);
    bytes[72..80].copy_from_slice(&(1u64 << 40).to_be_bytes());
    let table = bytes.windows(9).position(|window| window == b"dirty bit").unwrap();
    bytes[table - 1] = 40;
    let error = open(Memory::new(bytes), &OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains("dirty bit (incompatible bit 40)"), "{error}");
}

#[test]
fn a_corrupt_or_dirty_image_opens_read_only() {
    let with_bit = |bit: u64| patched(&[], &[(72, &(1u64 << bit).to_be_bytes())]);
    let dirty = || open(with_bit(0), &OpenOptions::default()).expect("read-only is fine");
    assert!(dirty().describe().unwrap().dirty);
    let corrupt = with_bit(1);
    open(corrupt.clone(), &OpenOptions::default()).expect("read-only is fine");
    let error = open(corrupt, &writable()).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    // A dirty image is repaired before it is written to.
    let file = with_bit(0);
    open(file.clone(), &writable()).expect("nothing is wrong with it but the bit");
    assert!(!open(file, &OpenOptions::default()).unwrap().describe().unwrap().dirty);
}

#[test]
fn an_encrypted_image_shows_its_structure_but_no_data() {
    let mut bytes = create(1 << 20, &[("preallocation", "metadata")]);
    bytes[32..36].copy_from_slice(&1u32.to_be_bytes());
    let file = Memory::new(bytes);
    let image = open(file.clone(), &OpenOptions::default()).unwrap();
    assert_eq!(image.describe().unwrap().encryption, Some("aes"));
    assert!(block_on(image.check()).unwrap().is_clean());
    let error = read(&*image, 0, 512).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
    let without_key = OpenOptions { driver_options: Default::default(), ..writable() };
    assert!(open(file, &without_key).is_err());
}

#[test]
fn every_truncation_is_an_error_or_a_smaller_truth() {
    let file = Memory::new(create(1 << 20, &[("cluster_size", "512")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 5000, &[3; 2000]).unwrap();
    block_on(image.close()).unwrap();
    let bytes = file.to_vec();
    let options = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
    for length in (0..120).chain((120..bytes.len()).step_by(97)) {
        match open(Memory::new(&bytes[..length]), &options) {
            Err(error) => {
                assert!(error.to_string().contains("expected") || error.context().offset.is_some(), "{length}: {error}")
            }
            Ok(image) => {
                assert!(length >= 104);
                if let Ok(contents) = read(&*image, 0, 1 << 20) {
                    // Only of the last cluster in the file, the end may be missing.
                    let missing = bytes.len() - length;
                    assert!(missing < 512, "length {length}: silent wrong data");
                    assert!(contents[5000..7000 - missing].iter().all(|byte| *byte == 3), "length {length}");
                }
                let _ = block_on(image.check());
            }
        }
    }
}

/// The offset of the first L2 table of an image with one allocated cluster at guest offset 0.
fn with_one_cluster() -> (Vec<u8>, usize, usize) {
    let file = Memory::new(create(1 << 20, &[]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 0, &[5; 65536]).unwrap();
    block_on(image.close()).unwrap();
    let bytes = file.to_vec();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let l1 = number(40);
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    (bytes.clone(), l1, l2)
}

#[test]
fn entries_that_point_nowhere_or_at_metadata_are_errors() {
    let (bytes, l1, l2) = with_one_cluster();
    let copied = 1u64 << 63;
    let cases: &[(&str, usize, u64)] = &[
        ("an L1 entry beyond the file", l1, copied | 1 << 40),
        ("an unaligned L1 entry", l1, copied | 0x200),
        ("an L1 entry with reserved bits", l1, copied | 0x50000 | 3 << 57),
        ("an L2 entry beyond the file", l2, copied | 1 << 40),
        ("an unaligned L2 entry", l2, copied | 0x50200),
        ("a compressed entry beyond the file", l2, 1 << 62 | 1 << 40),
    ];
    for (what, at, entry) in cases {
        let mut bytes = bytes.clone();
        bytes[*at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let image = open(Memory::new(bytes), &OpenOptions::default()).unwrap();
        let error = read(&*image, 0, 4096).expect_err(what);
        assert!(error.context().offset.is_some(), "{what}: {error}");
        assert!(block_on(image.check()).unwrap().corruptions > 0, "{what}");
    }
    // Writing through entries that lead to metadata would destroy the image.
    for (what, target) in [("the header", 0u64), ("the L1 table", l1 as u64), ("itself", l2 as u64)] {
        if target == 0 {
            continue;
        }
        let mut bytes = bytes.clone();
        bytes[l2..l2 + 8].copy_from_slice(&(copied | target).to_be_bytes());
        let image = open(Memory::new(bytes), &writable()).unwrap();
        let error = write(&*image, 0, &[1; 512]).expect_err(what);
        assert!(error.to_string().contains("Preventing invalid write on metadata"), "{what}: {error}");
    }
}

#[test]
fn refcounts_that_call_metadata_free_do_not_get_it_overwritten() {
    let (mut bytes, _, _) = with_one_cluster();
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let table = number(&bytes, 48);
    let block = number(&bytes, table);
    bytes[block..block + 65536].fill(0);
    let image = open(Memory::new(bytes), &writable()).unwrap();
    let error = write(&*image, 512 << 10, &[1; 512]).unwrap_err();
    assert!(error.to_string().contains("Preventing invalid write on metadata"), "{error}");
}

#[test]
fn giving_back_a_cluster_that_is_metadata_does_not_free_the_metadata() {
    let (bytes, l1, l2) = with_one_cluster();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = number(48);
    let block = number(table as usize);
    let scratch = Scratch::new("lies");
    for (what, target) in
        [("the L1 table", l1 as u64), ("itself", l2 as u64), ("the refcount table", table), ("a refcount block", block)]
    {
        let mut bytes = bytes.clone();
        bytes[l2..l2 + 8].copy_from_slice(&(1 << 63 | target).to_be_bytes());
        let file = Memory::new(bytes);
        let image = open(file.clone(), &writable()).unwrap();
        block_on(image.discard(Range::new(0, 65536))).unwrap();
        block_on(image.flush()).unwrap();
        write(&*image, 512 << 10, &vec![7; 128 << 10]).unwrap();
        block_on(image.close()).unwrap();
        let path = scratch.path("image");
        std::fs::write(&path, file.to_vec()).unwrap();
        let check = tool("qemu-img", &["check", "-f", "qcow2", &path]);
        // The cluster that the entry should have led to is a leak.
        assert_eq!(check.status.code(), Some(3), "{what}: {}", String::from_utf8_lossy(&check.stderr));
        let disk = read(&*open(file, &OpenOptions::default()).unwrap(), 0, 1 << 20).unwrap();
        assert!(disk[..512 << 10] == vec![0; 512 << 10] && disk[512 << 10..640 << 10] == vec![7; 128 << 10], "{what}");
    }
}

#[test]
fn a_small_file_that_claims_gigabytes_costs_nothing() {
    let mut bytes = create(1 << 20, &[]);
    bytes.truncate(120);
    bytes[104..112].fill(0);
    bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
    // A header extension of 4 GiB - 1.
    bytes[104..108].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    bytes[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
    let options = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
    let error = open(Memory::new(bytes), &options).unwrap_err();
    assert!(error.to_string().contains("expected") || error.to_string().contains("too large"), "{error}");
}

#[test]
fn a_backing_loop_and_an_endless_chain_end() {
    let looped: Arc<dyn Node> =
        Memory::read_only(create(1 << 20, &[("backing_file", "loop"), ("backing_fmt", "qcow2")]), "loop");
    let options = with_files(OpenOptions::default(), &[("loop", looped.clone())]);
    let error = open(looped, &options).unwrap_err();
    assert!(error.to_string().contains("leads back"), "{error}");

    let files: Vec<(String, Arc<dyn Node>)> = (0..10_000)
        .map(|number| {
            let next = format!("image{}", number + 1);
            let bytes = create(1 << 20, &[("cluster_size", "512"), ("backing_file", &next), ("backing_fmt", "qcow2")]);
            (format!("image{number}"), Memory::read_only(bytes, format!("image{number}")) as Arc<dyn Node>)
        })
        .collect();
    let named: Vec<(&str, Arc<dyn Node>)> = files.iter().map(|(name, node)| (name.as_str(), node.clone())).collect();
    let options = with_files(OpenOptions::default(), &named);
    let error = open(files[0].1.clone(), &options).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OverBudget | ErrorKind::Invalid), "{error}");
}

#[test]
fn nothing_is_opened_unless_the_policy_allows_it() {
    let base: Arc<dyn Node> = Memory::read_only(vec![1; 4096], "base");
    let top = |name: &str| Memory::new(create(4096, &[("backing_file", name), ("backing_fmt", "raw")]));
    let error = open(top("base"), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("'base'"), "{error}");
    for (name, allowed) in
        [("base", true), ("../base", false), ("/base", false), ("nbd://x", false), ("json:{}", false)]
    {
        let mut options = with_files(OpenOptions::default(), &[(name, base.clone())]);
        let table = crate::support::Table([(name.to_string(), base.clone())].into());
        options.gate = Gate::new(Policy::SameDirectory, Arc::new(table));
        assert_eq!(open(top(name), &options).is_ok(), allowed, "{name}");
    }
}

#[test]
fn random_damage_never_panics() {
    let (bytes, _, _) = with_one_cluster();
    let mut random = Random::new(77);
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(6) {
            let region = *random.pick(&[0u64, 0x10000, 0x20000, 0x30000, 0x40000]);
            let at = (region + random.below(112)) as usize % damaged.len();
            damaged[at] = random.next() as u8;
        }
        let file = Memory::new(damaged);
        if let Ok(image) = open(file.clone(), &OpenOptions::default()) {
            let _ = read(&*image, 0, 100_000.min(image.info().length as usize));
            let _ = block_on(image.check());
        }
        if let Ok(image) = open(file, &writable()) {
            let _ = write(
                &*image,
                70_000.min(image.info().length),
                &[1; 600][..600.min(image.info().length.saturating_sub(70_000) as usize)],
            );
            let _ = block_on(image.close());
        }
    }
}

#[test]
fn what_a_missing_backing_image_holds_is_never_made_up() {
    let bytes = create(1 << 20, &[("backing_file", "base"), ("backing_fmt", "raw")]);
    for options in
        [OpenOptions { no_backing: true, ..writable() }, OpenOptions { structure_only: true, ..OpenOptions::default() }]
    {
        let image = open(Memory::new(bytes.clone()), &options).unwrap();
        let error = read(&*image, 0, 512).unwrap_err();
        assert!(error.to_string().contains("'base'"), "{error}");
        let chain = diskette::engine::status::Chain::of(image.clone());
        let status = block_on(chain.status(diskette::Range::new(0, 1 << 20), diskette::Want::Precise)).unwrap();
        assert!(!status.present && !status.zero && !status.data, "{status:?}");
        if !image.info().read_only {
            assert!(write(&*image, 100, &[1; 10]).is_err(), "the rest of the cluster is not known");
            write(&*image, 0, &[1; 65536]).expect("a whole cluster needs nothing");
        }
    }
}

/// An image with one compressed cluster, and where its data is.
fn compressed_image(kind: &str) -> (Scratch, String, u64) {
    let scratch = Scratch::new("bomb");
    let (raw, path) = (scratch.path("source.raw"), scratch.path("image.qcow2"));
    std::fs::write(&raw, (0..65536u64).map(|at| (at / 3) as u8).collect::<Vec<u8>>()).unwrap();
    oracle("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &format!("compression_type={kind}"), &raw, &path]);
    let image = open(Memory::new(std::fs::read(&path).unwrap()), &OpenOptions::default()).unwrap();
    let extent = block_on(image.map(Range::new(0, 65536), Want::Allocation)).unwrap();
    (scratch, path, extent.host.unwrap().at)
}

#[test]
fn a_compressed_cluster_expands_to_a_cluster_and_no_more() {
    // Runs of one byte: 200 bytes of deflate data for 64 KiB, and of zstd data for gigabytes.
    let blocks = |count: usize| -> Vec<u8> {
        // Frame with a window of 1 MiB and `count` blocks, each 128 KiB of one byte; the last one says so.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];
        for index in 0..count {
            let header = (128u32 << 10) << 3 | 1 << 1 | u32::from(index + 1 == count);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(b'x');
        }
        frame
    };
    let huge_window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8][..], &[0x03, 0x00, 0x10, b'x'][..]].concat();
    for (kind, stream, reads) in
        [("zstd", blocks(400), Some(b'x')), ("zstd", huge_window, None), ("zlib", deflate_run(1 << 20), Some(b'x'))]
    {
        let (_scratch, path, at) = compressed_image(kind);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at as usize;
        bytes.resize(bytes.len().max(at + stream.len()), 0);
        bytes[at..at + stream.len()].copy_from_slice(&stream);
        // The entry names enough sectors.
        let image = open(Memory::new(bytes.clone()), &OpenOptions::default()).unwrap();
        let begun = std::time::Instant::now();
        let result = read(&*image, 0, 65536);
        assert!(begun.elapsed().as_secs() < 5, "{kind}");
        match reads {
            Some(byte) => assert!(result.unwrap().iter().all(|found| *found == byte), "{kind}"),
            None => assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt, "{kind}"),
        }
        // The budget is asked before anything is expanded.
        let budgets = Budgets { expanded_bytes: 65535, ..Budgets::default() };
        let image = open(Memory::new(bytes), &OpenOptions { budgets, ..OpenOptions::default() }).unwrap();
        assert_eq!(read(&*image, 0, 512).unwrap_err().kind(), ErrorKind::OverBudget, "{kind}");
    }
}

/// Raw deflate data (RFC 1951) that expands to `len` times `x`: one block with fixed codes.
fn deflate_run(len: usize) -> Vec<u8> {
    let (mut bytes, mut used) = (Vec::new(), 0);
    let mut put = |value: u32, bits: u32, reversed: bool| {
        for bit in 0..bits {
            let bit = if reversed { value >> (bits - 1 - bit) } else { value >> bit } & 1;
            if used % 8 == 0 {
                bytes.push(0u8);
            }
            *bytes.last_mut().unwrap() |= (bit as u8) << (used % 8);
            used += 1;
        }
    };
    put(1, 1, false);
    put(1, 2, false);
    put(0x30 + u32::from(b'x'), 8, true);
    for _ in 0..(len - 1) / 258 {
        // Length 258 is code 285, without extra bits; distance 1 is code 0.
        put(0b1100_0101, 8, true);
        put(0, 5, true);
    }
    put(0, 7, true);
    bytes
}

/// An image of one compressed cluster of 4 KiB whose compressed bytes are `stream`.
fn with_compressed(stream: &[u8], kind: &str) -> Arc<Memory> {
    let file = Memory::new(create(1 << 20, &[("cluster_size", "4k"), ("compression_type", kind)]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 4096, &[5; 4096]).unwrap();
    block_on(image.close()).unwrap();
    let mut bytes = file.to_vec();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let l2 = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    let at = bytes.len();
    let sectors = stream.len().div_ceil(512) as u64;
    let entry = 1 << 62 | (sectors - 1) << (62 - 4) | at as u64;
    bytes[l2..l2 + 8].copy_from_slice(&entry.to_be_bytes());
    bytes.extend_from_slice(stream);
    Memory::new(bytes)
}

#[test]
fn a_compressed_cluster_never_expands_beyond_a_cluster() {
    // One stored byte, then 258 more of it per two bits: 1032 times as much as there is to read.
    let mut bomb = vec![0u8; 3000];
    bomb[..15].copy_from_slice(&[0xed, 0xc1, 1, 1, 0, 0, 0, 0x82, 0x20, 0xff, 0xaf, 0x6e, 0x48, 0x40, 1]);
    let image = open(with_compressed(&bomb, "zlib"), &OpenOptions::default()).unwrap();
    assert_eq!(read(&*image, 0, 4096).unwrap(), vec![0; 4096]);

    // zstd blocks that repeat a byte 8192 times each, with windows of 8 KiB, 8 MiB and 2 GiB.
    let run = |last: u32| [&(8192u32 << 3 | 1 << 1 | last).to_le_bytes()[..3], &[7]].concat();
    for (window, fits) in [(3u8 << 3, true), (13 << 3, true), (21 << 3, false)] {
        let stream = [&[0x28, 0xb5, 0x2f, 0xfd, 0, window][..], &run(0).repeat(300), &run(1)].concat();
        let image = open(with_compressed(&stream, "zstd"), &OpenOptions::default()).unwrap();
        match read(&*image, 0, 4096) {
            Ok(bytes) => assert!(fits && bytes == vec![7; 4096], "window {window:#x}"),
            Err(error) => assert!(!fits && error.kind() == ErrorKind::Corrupt, "window {window:#x}: {error}"),
        }
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_that_says_so() {
    let scratch = Scratch::new("shrinks");
    let path = scratch.path("image");
    let bytes = with_one_cluster().0;
    for (format, contents) in [("raw", vec![1; 1 << 20]), ("qcow2", bytes)] {
        std::fs::write(&path, &contents).unwrap();
        let file = File::open(&path, FileOptions { read_only: true, ..FileOptions::default() }).unwrap();
        let options = OpenOptions { format: Some(format.into()), ..OpenOptions::default() };
        let image = open(file, &options).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(contents.len() as u64 - 30_000).unwrap();
        let error = read(&*image, 0, image.info().length as usize).unwrap_err();
        assert!(error.to_string().contains("truncated") && error.to_string().contains(&path), "{format}: {error}");
        assert!(error.context().offset.is_some(), "{format}: {error}");
    }
}

#[test]
fn what_is_no_disk_is_named() {
    let scratch = Scratch::new("kinds");
    let options = FileOptions { read_only: true, ..FileOptions::default() };
    let fifo = scratch.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::write(scratch.path("empty"), "").unwrap();
    for (path, says) in [
        (scratch.path(""), "a directory"),
        (fifo, "a FIFO"),
        ("/dev/null".into(), "a character device"),
        (scratch.path("none"), "No such file"),
    ] {
        let error = File::open(&path, options).unwrap_err();
        assert!(error.to_string().contains(says) && error.to_string().contains(&path), "{error}");
    }
    let empty = File::open(&scratch.path("empty"), options).unwrap();
    assert_eq!(open(empty.clone(), &OpenOptions::default()).unwrap().info().length, 0);
    let error = open(empty, &OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("ends within the header"), "{error}");
}

#[test]
fn an_external_data_file_has_every_cluster_where_the_guest_has_it() {
    let data: Arc<dyn Node> = Memory::new((0..1u32 << 20).map(|at| (at >> 12) as u8).collect::<Vec<u8>>());
    let file = Memory::new(Vec::new());
    let options = [("data_file", "data"), ("data_file_raw", "on"), ("cluster_size", "4k")];
    create_in(file.clone(), 1 << 20, &options, Some(data.clone())).unwrap();
    let mut bytes = file.to_vec();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let l2 = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    let entry: [u8; 8] = bytes[l2 + 16..l2 + 24].try_into().unwrap();
    bytes[l2 + 8..l2 + 16].copy_from_slice(&entry);
    let options = with_files(writable(), &[("data", data)]);
    // What shows that an image is corrupt ends its use, so each is tried on an image of its own.
    let image = || open(Memory::new(bytes.clone()), &options).unwrap();
    assert_eq!(read(&*image(), 8192, 4096).unwrap(), vec![2; 4096]);
    for error in [read(&*image(), 4096, 4096).unwrap_err(), write(&*image(), 5000, &[9]).unwrap_err()] {
        assert!(error.to_string().contains("the guest offset") && error.context().offset.is_some(), "{error}");
    }
}
