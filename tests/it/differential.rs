//! Against qemu-img and qemu-io: the same contents, whoever writes and whoever reads.

use std::sync::Arc;

use diskette::drivers::OpenOptions;
use diskette::engine::status::Chain;
use diskette::native::{File, FileOpener, FileOptions};
use diskette::{Gate, Image, ImageOptions, Node, Policy, Range, Want, WriteFlags, block_on};

use crate::support::{Random, Scratch, open, oracle, read, tool, write};

/// Create options, one entry each for `-o`.
const OPTIONS: &[&str] = &[
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=1k,refcount_bits=1",
    "cluster_size=2k,refcount_bits=2",
    "cluster_size=4k,refcount_bits=4",
    "cluster_size=8k,refcount_bits=8",
    "cluster_size=16k,refcount_bits=32",
    "cluster_size=32k,refcount_bits=64",
    "cluster_size=1M",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "data_file=data.raw",
    "data_file=data.raw,data_file_raw=on",
];

const SIZE: u64 = 5 << 20;

/// QEMU makes a data file in the current directory; an absolute name puts it beside the image.
fn in_scratch(options: &str, scratch: &Scratch) -> String {
    options.replace("data.raw", &scratch.path("data.raw"))
}

fn open_path(path: &str, write: bool) -> Arc<Image> {
    let file = File::open(path, FileOptions { read_only: !write, ..FileOptions::default() }).unwrap();
    let options = OpenOptions {
        read_only: !write,
        gate: Gate::new(Policy::Allow, Arc::new(FileOpener::default())),
        image: ImageOptions { discard: true, ..ImageOptions::default() },
        ..OpenOptions::default()
    };
    open(file, &options).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn contents(path: &str, scratch: &Scratch) -> Vec<u8> {
    let raw = scratch.path("oracle.raw");
    oracle("qemu-img", &["convert", "-O", "raw", path, &raw]);
    std::fs::read(raw).unwrap()
}

fn assert_clean(path: &str) {
    let output = tool("qemu-img", &["check", path]);
    assert!(
        output.status.success(),
        "{path}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The map in the words of `qemu-img map --output=json`.
fn our_map(image: &Arc<Image>) -> Vec<(u64, u64, u32, bool, bool, Option<u64>)> {
    let mut extents = Vec::new();
    let chain = Chain::of(image.clone());
    let walk = chain.walk(Range::new(0, image.info().length), Want::Allocation, |status| {
        extents.push((status.start, status.len, status.depth, status.zero, status.compressed, status.offset));
    });
    block_on(walk).unwrap();
    extents
}

fn their_map(path: &str) -> Vec<(u64, u64, u32, bool, bool, Option<u64>)> {
    let text = oracle("qemu-img", &["map", "--output=json", path]);
    text.lines()
        .map(|line| {
            let field = |name: &str| {
                let start = line.find(&format!("\"{name}\": "))? + name.len() + 4;
                Some(line[start..].split([',', '}']).next().unwrap().trim().to_string())
            };
            let number = |name: &str| field(name).and_then(|text| text.parse().ok());
            (
                number("start").unwrap(),
                number("length").unwrap(),
                number("depth").unwrap() as u32,
                field("zero").unwrap() == "true",
                field("compressed").unwrap() == "true",
                number("offset"),
            )
        })
        .collect()
}

/// Compares maps and shows the first difference.
fn assert_same_map(image: &Arc<Image>, path: &str, what: &str) {
    let (ours, theirs) = (our_map(image), their_map(path));
    let first = ours.iter().zip(&theirs).position(|(one, other)| one != other);
    if let Some(at) = first {
        panic!(
            "{what}: extent {at} is {:?}, QEMU says {:?}",
            &ours[at..ours.len().min(at + 3)],
            &theirs[at..theirs.len().min(at + 3)]
        );
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

#[test]
fn what_we_write_qemu_reads_and_finds_clean() {
    for (index, options) in OPTIONS.iter().enumerate() {
        let scratch = Scratch::new("ours");
        let path = scratch.path("image.qcow2");
        let base = scratch.path("base.raw");
        let options = in_scratch(options, &scratch);
        let backed = index % 2 == 0 && !options.contains("prealloc") && !options.contains("raw=on");
        let mut random = Random::new(index as u64);
        let mut model = vec![0; SIZE as usize];
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options.as_str()];
        if backed {
            let bytes: Vec<u8> = (0..SIZE / 2).map(|_| random.next() as u8).collect();
            std::fs::write(&base, &bytes).unwrap();
            model[..bytes.len()].copy_from_slice(&bytes);
            args.extend(["-b", &base, "-F", "raw"]);
        }
        let size = SIZE.to_string();
        args.extend([path.as_str(), size.as_str()]);
        oracle("qemu-img", &args);
        for _round in 0..3 {
            let image = open_path(&path, true);
            for _ in 0..40 {
                let range = random.range(SIZE, 200_000, 65536);
                let part = range.start as usize..range.end() as usize;
                match random.below(6) {
                    0..=3 => {
                        let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
                        write(&*image, range.start, &bytes).unwrap();
                        model[part].copy_from_slice(&bytes);
                    }
                    4 => {
                        let may_unmap = random.below(2) == 0;
                        block_on(image.write_zeroes(range, WriteFlags { may_unmap, ..WriteFlags::default() })).unwrap();
                        model[part].fill(0);
                    }
                    _ => {
                        block_on(image.discard(range)).unwrap();
                        model[part.clone()].copy_from_slice(&read(&*image, range.start, range.len as usize).unwrap());
                    }
                }
            }
            block_on(image.close()).unwrap();
            drop(image);
            assert_clean(&path);
            assert!(contents(&path, &scratch) == model, "{options}: QEMU reads something else");
        }
        if options.contains("raw=on") {
            assert!(std::fs::read(scratch.path("data.raw")).unwrap() == model, "the raw data file is the disk");
        }
        if !options.contains("data_file") && !options.contains("prealloc") {
            assert_same_map(&open_path(&path, false), &path, &options);
        }
    }
}

#[test]
fn what_qemu_writes_we_read_alike() {
    for (index, options) in OPTIONS.iter().enumerate() {
        let scratch = Scratch::new("theirs");
        let options = in_scratch(options, &scratch);
        let path = scratch.path("image.qcow2");
        oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &path, &SIZE.to_string()]);
        let mut random = Random::new(1000 + index as u64);
        let mut commands: Vec<String> = Vec::new();
        for _ in 0..30 {
            let range = random.range(SIZE, 300_000, 65536);
            let Range { start, len } = range;
            commands.push(match random.below(5) {
                0..=2 => format!("write -P {} {start} {len}", random.below(256)),
                3 => format!("write -z {} {start} {len}", if random.below(2) == 0 { "-u" } else { "" }),
                _ => format!("discard {start} {len}"),
            });
        }
        if !["data_file", "extended_l2", "prealloc"].iter().any(|name| options.contains(name)) {
            // A whole cluster can be written compressed where nothing is.
            commands.insert(0, "write -c -P 77 2M 2M".to_string());
        }
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        for command in &commands {
            args.extend(["-c", command.as_str()]);
        }
        args.push(&path);
        oracle("qemu-io", &args);
        let image = open_path(&path, false);
        assert!(read(&*image, 0, SIZE as usize).unwrap() == contents(&path, &scratch), "{options}: contents");
        if !options.contains("data_file") && !options.contains("prealloc") {
            assert_same_map(&image, &path, &options);
        }
        let report = block_on(image.check()).unwrap();
        assert!(report.is_clean(), "{options}: {:?}", report.findings);
        let theirs = oracle("qemu-img", &["check", "--output=json", &path]);
        for (name, ours) in [
            ("image-end-offset", report.image_end_offset),
            ("total-clusters", report.total_clusters),
            ("allocated-clusters", report.allocated_clusters),
            ("fragmented-clusters", report.fragmented_clusters),
            ("compressed-clusters", report.compressed_clusters),
        ] {
            let found = theirs.lines().find(|line| line.contains(&format!("\"{name}\"")));
            let found = found.and_then(|line| line.split(':').nth(1)).map(|text| text.trim().trim_end_matches(','));
            assert_eq!(found.unwrap_or("0"), ours.to_string(), "{options}: {name}");
        }
    }
}

#[test]
fn compressed_images_read_like_their_source() {
    for kind in ["zlib", "zstd"] {
        for cluster in ["512", "4k", "64k", "2M"] {
            let scratch = Scratch::new("compressed");
            let (raw, path) = (scratch.path("source.raw"), scratch.path("image.qcow2"));
            let mut random = Random::new(5);
            let bytes: Vec<u8> = (0..6_000_000u64)
                .map(|at| if at % 300_000 < 150_000 { (at / 1000) as u8 } else { random.next() as u8 & 0x3f })
                .collect();
            std::fs::write(&raw, &bytes).unwrap();
            let options = format!("compression_type={kind},cluster_size={cluster}");
            oracle("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &options, &raw, &path]);
            let image = open_path(&path, false);
            assert!(read(&*image, 0, bytes.len()).unwrap() == bytes, "{options}");
            for _ in 0..200 {
                let range = random.range(bytes.len() as u64, 5000, 512);
                let expected = &bytes[range.start as usize..range.end() as usize];
                assert!(read(&*image, range.start, range.len as usize).unwrap() == expected, "{options} {range:?}");
            }
            drop(image);
            // Writing over compressed clusters moves them out and keeps the image clean.
            let image = open_path(&path, true);
            let mut model = bytes.clone();
            for _ in 0..40 {
                let range = random.range(bytes.len() as u64, 100_000, 4096);
                write(&*image, range.start, &vec![9; range.len as usize]).unwrap();
                model[range.start as usize..range.end() as usize].fill(9);
            }
            block_on(image.close()).unwrap();
            drop(image);
            assert_clean(&path);
            assert!(contents(&path, &scratch)[..model.len()] == model, "{options}: after overwriting");
        }
    }
}

#[test]
fn a_chain_of_mixed_formats_and_sizes_reads_alike() {
    let scratch = Scratch::new("chain");
    let base = scratch.path("base.raw");
    let middle = scratch.path("middle.qcow2");
    let top = scratch.path("top.qcow2");
    let bytes: Vec<u8> = (0..3_000_320u64).map(|at| (at / 777) as u8 | 1).collect();
    std::fs::write(&base, &bytes).unwrap();
    // The middle is longer than the base, the top longer than the middle and then shorter than the base.
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", &middle, "4M"]);
    oracle("qemu-io", &["-c", "write -P 5 3500k 100k", "-c", "write -P 6 100k 10k", &middle]);
    for size in ["8M", "1M"] {
        let _ = std::fs::remove_file(&top);
        oracle(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "middle.qcow2", "-F", "qcow2", &top, size],
        );
        oracle("qemu-io", &["-c", "write -P 9 64k 3k", &top]);
        let image = open_path(&top, false);
        let length = image.info().length as usize;
        assert!(read(&*image, 0, length).unwrap() == contents(&top, &scratch), "{size}");
        assert_same_map(&image, &top, size);
    }
}

#[test]
fn an_image_with_snapshots_and_bitmaps_is_written_without_harming_them() {
    let scratch = Scratch::new("snapshots");
    let path = scratch.path("image.qcow2");
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", &path, "4M"]);
    oracle("qemu-io", &["-c", "write -P 1 0 1M", &path]);
    oracle("qemu-img", &["snapshot", "-c", "before", &path]);
    let image = open_path(&path, true);
    assert_eq!(image.describe().unwrap().snapshots[0].name, "before");
    write(&*image, 1000, &[2; 300_000]).unwrap();
    block_on(image.write_zeroes(Range::new(400_000, 200_000), WriteFlags { may_unmap: true, ..WriteFlags::default() }))
        .unwrap();
    block_on(image.close()).unwrap();
    drop(image);
    assert_clean(&path);
    let now = contents(&path, &scratch);
    assert!(now[..1000].iter().all(|byte| *byte == 1) && now[1000..301_000].iter().all(|byte| *byte == 2));
    assert!(now[400_000..600_000].iter().all(|byte| *byte == 0));
    let old = scratch.path("old.raw");
    oracle("qemu-img", &["convert", "-l", "snapshot.name=before", "-O", "raw", &path, &old]);
    assert!(std::fs::read(old).unwrap()[..1 << 20].iter().all(|byte| *byte == 1), "the snapshot is untouched");

    oracle("qemu-img", &["bitmap", "--add", &path, "dirty"]);
    assert_eq!(open_path(&path, false).describe().unwrap().bitmaps[0].name, "dirty");
    let image = open_path(&path, true);
    write(&*image, 0, &[3; 512]).unwrap();
    block_on(image.close()).unwrap();
    drop(image);
    let info = oracle("qemu-img", &["info", &path]);
    assert!(info.contains("name: dirty") && !info.contains("in-use"), "{info}");
}

#[test]
fn qemu_and_we_respect_each_others_locks() {
    let scratch = Scratch::new("locks");
    let path = scratch.path("image.qcow2");
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
    let image = open_path(&path, true);
    let theirs = tool("qemu-io", &["-c", "write 0 512", &path]);
    assert!(String::from_utf8_lossy(&theirs.stderr).contains("lock"), "QEMU writes while we do");
    let theirs = tool("qemu-img", &["info", &path]);
    assert!(String::from_utf8_lossy(&theirs.stderr).contains("lock"), "QEMU reads while we write");
    let error = File::open(&path, FileOptions { read_only: true, ..FileOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("Failed to get"), "{error}");
    File::open(&path, FileOptions { read_only: true, force_share: true, ..FileOptions::default() })
        .expect("unless forced");
    block_on(image.close()).unwrap();
    drop(image);
    oracle("qemu-io", &["-c", "write 0 512", &path]);

    let mut server = std::process::Command::new("qemu-nbd")
        .args(["-f", "qcow2", "-k", &scratch.path("socket"), &path])
        .spawn()
        .expect("qemu-nbd (Debian: qemu-utils) is needed");
    let mut refused = None;
    for _ in 0..200 {
        match File::open(&path, FileOptions::default()) {
            Err(error) => {
                refused = Some(error);
                break;
            }
            Ok(file) => drop(file),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = server.kill();
    let _ = server.wait();
    let refused = refused.expect("a running server holds the image");
    assert!(refused.to_string().contains("lock"), "{refused}");
    assert_eq!(refused.kind(), diskette::ErrorKind::Busy);
    assert!(scratch.dir().exists());
}

#[test]
fn damaged_compressed_data_is_an_error_that_says_where() {
    for kind in ["zlib", "zstd"] {
        let scratch = Scratch::new("damaged");
        let (raw, path) = (scratch.path("source.raw"), scratch.path("image.qcow2"));
        let bytes: Vec<u8> = (0..65536u64).map(|at| (at / 16) as u8).collect();
        std::fs::write(&raw, &bytes).unwrap();
        oracle("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &format!("compression_type={kind}"), &raw, &path]);
        let mut image = std::fs::read(&path).unwrap();
        // The compressed cluster is the last thing in the file.
        let start = image.len() / 65536 * 65536;
        let start = if start == image.len() { start - 65536 } else { start };
        image[start..].fill(0xff);
        std::fs::write(&path, image).unwrap();
        let error = read(&*open_path(&path, false), 0, 65536).expect_err(kind);
        assert_eq!(error.kind(), diskette::ErrorKind::Corrupt, "{error}");
        assert_eq!(error.context().offset, Some(start as u64), "{error}");
        assert!(error.to_string().contains(&path), "{error}");
    }
}

#[test]
fn zero_detection_turns_writes_of_zeroes_into_zero_clusters() {
    for (detect, allocated) in [
        (diskette::DetectZeroes::Off, true),
        (diskette::DetectZeroes::On, false),
        (diskette::DetectZeroes::Unmap, false),
    ] {
        let scratch = Scratch::new("detect");
        let path = scratch.path("image.qcow2");
        oracle("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
        let file = File::open(&path, FileOptions::default()).unwrap();
        let options = OpenOptions {
            read_only: false,
            image: ImageOptions { detect_zeroes: detect, ..ImageOptions::default() },
            ..OpenOptions::default()
        };
        let image = open(file, &options).unwrap();
        write(&*image, 0, &[0; 128 << 10]).unwrap();
        write(&*image, 512 << 10, &[1; 512]).unwrap();
        block_on(image.close()).unwrap();
        drop(image);
        assert_clean(&path);
        let map = their_map(&path);
        assert_eq!(
            (map[0].1, !map[0].3),
            (if allocated { 128 << 10 } else { map[0].1 }, allocated),
            "{detect:?}: {map:?}"
        );
    }
}

#[test]
fn discarding_gives_the_host_its_space_back() {
    let scratch = Scratch::new("punch");
    let path = scratch.path("image.qcow2");
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", &path, "16M"]);
    let image = open_path(&path, true);
    write(&*image, 0, &vec![5; 16 << 20]).unwrap();
    block_on(image.flush()).unwrap();
    let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
    let full = used();
    assert!(full >= 16 << 20);
    block_on(image.discard(Range::new(1 << 20, 14 << 20))).unwrap();
    block_on(image.close()).unwrap();
    drop(image);
    assert!(used() + (13 << 20) < full, "{} of {full} bytes are still in use", used());
    assert_clean(&path);
}

/// A number of `qemu-img check --output=json`; it leaves out what is 0.
fn reported(json: &str, name: &str) -> u64 {
    let line = json.lines().find(|line| line.contains(&format!("\"{name}\"")));
    let text = line.and_then(|line| line.split(':').nth(1)).map(|text| text.trim().trim_end_matches(','));
    text.map_or(0, |text| text.parse().unwrap())
}

#[test]
fn damaged_tables_are_counted_alike() {
    for (number, options) in ["cluster_size=4k", "cluster_size=16k,extended_l2=on"].iter().enumerate() {
        let scratch = Scratch::new("counts");
        let path = scratch.path("image.qcow2");
        oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &path, "1M"]);
        oracle("qemu-io", &["-c", "write -P 1 0 200k", "-c", "write -z 64k 32k", "-c", "write -P 2 600k 70k", &path]);
        oracle("qemu-img", &["snapshot", "-c", "one", &path]);
        oracle("qemu-io", &["-c", "write -P 9 10k 30k", &path]);
        let sound = std::fs::read(&path).unwrap();
        let word = |at: u64| u64::from_be_bytes(sound[at as usize..at as usize + 8].try_into().unwrap());
        let (l1, blocks) = (word(40), word(48));
        let (l2, block) = (word(l1) & 0x00ff_ffff_ffff_fe00, word(blocks));
        let mut random = Random::new(number as u64);
        for case in 0..25 {
            let mut bytes = sound.clone();
            for _ in 0..1 + random.below(2) {
                let (table, entries) = *random.pick(&[(l1, 1), (l2, 200), (l2, 200), (block, 20)]);
                let at = table + 8 * random.below(entries);
                let cluster = random.below(sound.len() as u64 / 4096) * 4096;
                let old = word(at);
                let new = [old ^ 1 << random.below(64), old ^ 1 << 63, old ^ 1, 0, cluster, cluster | 1 << 63];
                bytes[at as usize..at as usize + 8].copy_from_slice(&random.pick(&new).to_be_bytes());
            }
            std::fs::write(&path, &bytes).unwrap();
            let json = String::from_utf8(tool("qemu-img", &["check", "--output=json", &path]).stdout).unwrap();
            let ours = block_on(open_path(&path, false).check()).unwrap();
            let counts =
                [("leaks", ours.leaks), ("corruptions", ours.corruptions), ("check-errors", ours.check_errors)];
            for (name, count) in counts {
                assert_eq!(count, reported(&json, name), "{options} case {case} {name}: {:?}", ours.findings.first());
            }
            assert_eq!(ours.image_end_offset, reported(&json, "image-end-offset"), "{options} case {case}");
            assert_eq!(ours.allocated_clusters, reported(&json, "allocated-clusters"), "{options} case {case}");
        }
    }
}

#[test]
fn writes_that_would_hit_metadata_are_refused_alike() {
    let scratch = Scratch::new("overlap");
    let path = scratch.path("image.qcow2");
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", &path, "8M"]);
    // Two L2 tables, of which the second is in nobody's memory.
    oracle("qemu-io", &["-c", "write -P 1 0 64k", "-c", "write -P 2 4M 64k", &path]);
    oracle("qemu-img", &["snapshot", "-c", "one", &path]);
    oracle("qemu-img", &["bitmap", "--add", &path, "bits"]);
    oracle("qemu-io", &["-c", "write -P 3 0 64k", "-c", "write -P 4 4M 64k", &path]);
    let sound = std::fs::read(&path).unwrap();
    let word = |at: u64| u64::from_be_bytes(sound[at as usize..at as usize + 8].try_into().unwrap());
    let (l1, refcounts, snapshots) = (word(40), word(48), word(64));
    let table = |entry: u64| word(entry) & 0x00ff_ffff_ffff_fe00;
    let bitmaps = sound.windows(4).position(|kind| kind == [0x23, 0x85, 0x28, 0x75]).unwrap() as u64;
    for (what, target) in [
        ("the L1 table", l1),
        ("the refcount table", refcounts),
        ("a refcount block", word(refcounts)),
        ("the snapshot table", snapshots),
        ("a snapshot's L1 table", word(snapshots)),
        ("the bitmap directory", word(bitmaps + 24)),
        ("its own L2 table", table(l1)),
        ("another L2 table", table(l1 + 16)),
    ] {
        let mut bytes = sound.clone();
        let entry = table(l1) as usize;
        bytes[entry..entry + 8].copy_from_slice(&(target | 1 << 63).to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let image = open_path(&path, true);
        let error = write(&*image, 0, &[9; 512]).expect_err(what);
        assert!(error.to_string().contains("Preventing invalid write on metadata"), "{what}: {error}");
        let _ = block_on(image.close());
        drop(image);
        let mut found = std::fs::read(&path).unwrap()[target as usize..][..32].to_vec();
        if what == "the bitmap directory" {
            // The bitmap is marked as in use before anything else is written.
            assert_eq!(found[15], bytes[target as usize + 15] | 1, "{what}");
            found[15] = bytes[target as usize + 15];
        }
        assert_eq!(found, bytes[target as usize..][..32], "{what}");
        std::fs::write(&path, &bytes).unwrap();
        let theirs = tool("qemu-io", &["-c", "write 0 512", &path]);
        assert!(String::from_utf8_lossy(&theirs.stderr).contains("Preventing invalid write"), "{what}: {theirs:?}");
    }
}

/// Options of one image, at random, of those that can go together.
fn any_options(random: &mut Random) -> (Vec<String>, bool) {
    let old = random.below(6) == 0;
    let extended = !old && random.below(3) == 0;
    let data_file = !old && random.below(4) == 0;
    let bits = if extended { 14 + random.below(8) } else { 9 + random.below(13) };
    let mut options = vec![format!("cluster_size={}", 1u64 << bits)];
    if old {
        options.push("compat=0.10".into());
        return (options, true);
    }
    options.push(format!("refcount_bits={}", 1 << random.below(7)));
    options.push(format!("extended_l2={}", if extended { "on" } else { "off" }));
    options.push(format!("lazy_refcounts={}", if random.below(3) == 0 { "on" } else { "off" }));
    let raw = data_file && random.below(2) == 0;
    if data_file {
        options.push(format!("data_file=data.raw,data_file_raw={}", if raw { "on" } else { "off" }));
    }
    (options, !raw)
}

#[test]
fn any_history_on_any_image_reads_alike_and_is_clean() {
    for seed in 0..5 {
        any_history(seed);
    }
}

fn any_history(seed: u64) {
    let mut random = Random::new(seed);
    let scratch = Scratch::new("any");
    let (path, base) = (scratch.path("image.qcow2"), scratch.path("base.raw"));
    let (options, may_be_backed) = any_options(&mut random);
    let options = in_scratch(&options.join(","), &scratch);
    let size = 512 * (1 + random.below(6000));
    let mut model = vec![0; size as usize];
    let text = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options.as_str()];
    let backed = may_be_backed && random.below(2) == 0;
    if backed {
        let bytes: Vec<u8> = (0..1 + random.below(2 * size)).map(|_| random.next() as u8 | 1).collect();
        std::fs::write(&base, &bytes).unwrap();
        let seen = bytes.len().min(model.len());
        model[..seen].copy_from_slice(&bytes[..seen]);
        args.extend(["-b", &base, "-F", "raw"]);
    }
    args.extend([path.as_str(), text.as_str()]);
    oracle("qemu-img", &args);
    let what = format!("seed {seed}: {options} size {size} backed {backed}");
    // Compressed clusters share a place, and with a snapshot twice as many do.
    let narrow = ["bits=1,", "bits=2,", "bits=4,", "bits=8,"].iter().any(|bits| options.contains(bits));
    let shared = !narrow && !options.contains("data_file");
    if shared && !options.contains("extended_l2=on") {
        oracle("qemu-io", &["-c", &format!("write -c -P 77 0 {}", size.min(2 << 20)), &path]);
        model[..size.min(2 << 20) as usize].fill(77);
    }
    let mut snapshot = None;
    for round in 0..2 {
        if shared && round == 1 {
            oracle("qemu-img", &["snapshot", "-c", "before", &path]);
            snapshot = Some(model.clone());
        }
        let image = open_path(&path, true);
        for _ in 0..25 {
            let size = model.len() as u64;
            let align = 512 << random.below(8);
            let range = random.range(size, size / 8 + 1, align);
            let part = range.start as usize..range.end() as usize;
            match random.below(8) {
                0..=3 => {
                    let bytes: Vec<u8> = (0..range.len).map(|_| random.next() as u8).collect();
                    write(&*image, range.start, &bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
                    model[part].copy_from_slice(&bytes);
                }
                4 => {
                    let may_unmap = random.below(2) == 0;
                    block_on(image.write_zeroes(range, WriteFlags { may_unmap, ..WriteFlags::default() })).unwrap();
                    model[part].fill(0);
                }
                5 => {
                    block_on(image.discard(range)).unwrap();
                    let after = read(&*image, range.start, range.len as usize).unwrap();
                    assert!(after.iter().zip(&model[part.clone()]).all(|(new, old)| *new == 0 || new == old), "{what}");
                    model[part].copy_from_slice(&after);
                }
                6 => block_on(image.flush()).unwrap(),
                _ if snapshot.is_some() && options.contains("compat") => {}
                _ => {
                    let grown = size + 512 * random.below(200);
                    block_on(image.resize(grown, diskette::Preallocation::Off)).unwrap();
                    model.resize(grown as usize, 0);
                }
            }
        }
        assert!(read(&*image, 0, model.len()).unwrap() == model, "{what}: we read something else");
        block_on(image.close()).unwrap();
        drop(image);
        assert_clean(&path);
        let theirs = contents(&path, &scratch);
        let differs = theirs.iter().zip(&model).position(|(one, other)| one != other);
        assert!(theirs.len() == model.len() && differs.is_none(), "{what}: QEMU reads something else at {differs:?}");
        if options.contains("data_file_raw=on") {
            assert!(std::fs::read(scratch.path("data.raw")).unwrap()[..model.len()] == model, "{what}: the data file");
        }
    }
    if let Some(before) = snapshot {
        let old = scratch.path("old.raw");
        oracle("qemu-img", &["convert", "-l", "snapshot.name=before", "-O", "raw", &path, &old]);
        assert!(std::fs::read(old).unwrap()[..before.len()] == before, "{what}: the snapshot has changed");
    }
}
