//! What is no image, or only part of one.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::{Scratch, assert_same, gallery, text};

/// Every command that opens `{}`, and one that would write to it.
const COMMANDS: &[&str] = &[
    "info {}",
    "info -f raw {}",
    "info -f qcow2 {}",
    "info --backing-chain --output=json {}",
    "map {}",
    "check {}",
    "compare {} a.raw",
    "compare a.raw {}",
    "convert {} x",
    "convert -n a.raw {}",
    "create -q -f qcow2 -b {} -F raw x",
    "inspect {}",
    "info --image-opts driver=raw,file.filename={}",
];

#[test]
fn nothing_waits_for_the_other_end_of_a_fifo() {
    let scratch = gallery();
    assert!(Command::new("mkfifo").arg(scratch.path().join("fifo")).status().unwrap().success());
    std::fs::create_dir(scratch.path().join("directory")).unwrap();
    for (name, what) in [("fifo", "a FIFO"), ("directory", "a directory"), ("/dev/null", "a character device")] {
        for command in COMMANDS.iter().chain(&["create -q {} 1M", "convert a.raw {}"]) {
            let line = command.replace("{}", name);
            let output = scratch.ours(&line.split(' ').collect::<Vec<_>>());
            let message = text(&output.stderr);
            assert!(!output.status.success(), "{line}");
            let named = message.contains(name) && (message.contains(what) || message.contains("Is a directory"));
            assert!(named, "{line}: {message}");
        }
    }
}

#[test]
fn an_empty_file_is_an_empty_disk_and_no_qcow2() {
    let scratch = gallery();
    std::fs::write(scratch.path().join("empty"), b"").unwrap();
    for command in [
        "info empty",
        "info --output=json empty",
        "map empty",
        "map --output=json empty",
        "check empty",
        "compare empty empty",
        "compare empty a.raw",
        "convert -O raw empty x",
    ] {
        assert_same(&scratch, &command.split(' ').collect::<Vec<_>>());
    }
    assert_same(&scratch, &["info", ""]);
    let message = text(&scratch.ours(&["info", "-f", "qcow2", "empty"]).stderr);
    assert!(message.contains("'empty'") && message.contains("0 bytes, expected at least 72"), "{message}");
}

#[test]
fn a_truncated_image_is_refused_with_file_offset_found_and_expected() {
    let scratch = gallery();
    let whole = std::fs::read(scratch.path().join("a.qcow2")).unwrap();
    for (length, says) in [
        (100, "the file ends within the header: 100 bytes, expected at least 104"),
        (70_000, "l1_table_offset is 196608, expected a table within the file"),
    ] {
        std::fs::write(scratch.path().join("cut"), &whole[..length]).unwrap();
        for command in ["info cut", "map cut", "check cut", "convert -O raw cut x", "compare cut a.raw"] {
            let output = scratch.ours(&command.split(' ').collect::<Vec<_>>());
            let message = text(&output.stderr);
            assert!(!output.status.success(), "{command}");
            let complete = message.starts_with("diskette: Could not open 'cut': ") && message.contains(says);
            assert!(complete && message.contains("(at offset 0x"), "{command}: {message}");
        }
    }
    // Metadata is all there, data is not.
    std::fs::write(scratch.path().join("cut"), &whole[..(whole.len() - 70_000) / 65536 * 65536]).unwrap();
    for command in ["info cut", "map --output=json cut", "check cut"] {
        assert_same(&scratch, &command.split(' ').collect::<Vec<_>>());
    }
    let output = scratch.ours(&["convert", "-O", "raw", "cut", "x"]);
    let message = text(&output.stderr);
    assert!(message.starts_with("diskette: error while reading at byte "), "{message}");
    assert!(message.contains("cut: the file ends at") && message.contains("read at offset 0x"), "{message}");
    assert_eq!(scratch.ours(&["compare", "cut", "a.qcow2"]).status.code(), Some(4));
}

#[test]
fn entries_that_point_nowhere_are_reported_as_qemu_img_reports_them() {
    let scratch = gallery();
    let read = |at: u64| {
        let mut word = [0; 8];
        let file = std::fs::File::open(scratch.path().join("a.qcow2")).unwrap();
        file.read_exact_at(&mut word, at).unwrap();
        u64::from_be_bytes(word)
    };
    let l2 = read(read(40)) & 0x00ff_ffff_ffff_fe00;
    let entry = read(l2 + 8);
    for value in [
        entry | 0x200,
        entry & !(1 << 63),
        entry + (1 << 30),
        entry + 0x10_0000,
        entry | 1 << 58,
        1 << 58,
        entry | 0x40,
    ] {
        std::fs::copy(scratch.path().join("a.qcow2"), scratch.path().join("bad")).unwrap();
        let file = OpenOptions::new().write(true).open(scratch.path().join("bad")).unwrap();
        file.write_all_at(&value.to_be_bytes(), l2 + 8).unwrap();
        assert_same(&scratch, &["check", "bad"]);
        assert_same(&scratch, &["check", "--output=json", "bad"]);
    }
    // What lies in front of a wrong entry can be read.
    let file = OpenOptions::new().write(true).open(scratch.path().join("bad")).unwrap();
    file.write_all_at(&(entry | 0x200).to_be_bytes(), l2 + 8).unwrap();
    let message = text(&scratch.ours(&["convert", "-O", "raw", "bad", "x"]).stderr);
    assert!(
        message.contains("error while reading block status at offset 65536: bad: Cluster allocation offset 0x"),
        "{message}"
    );
    assert!(scratch.ours(&["convert", "-q", "--salvage", "-O", "raw", "bad", "x"]).status.success());
    let (copy, disk) = (scratch.path().join("x"), scratch.path().join("a.raw"));
    let (copy, disk) = (std::fs::read(copy).unwrap(), std::fs::read(disk).unwrap());
    assert!(copy[..65536] == disk[..65536] && copy[131_072..] == disk[131_072..]);
    assert!(copy[65536..131_072].iter().all(|byte| *byte == 0));
}

#[test]
fn a_snapshot_that_lies_is_refused() {
    let scratch = gallery();
    let image = std::fs::read(scratch.path().join("snap.qcow2")).unwrap();
    let table = u64::from_be_bytes(image[64..72].try_into().unwrap()) as usize;
    // Offset and number of the L1 entries, size of the disk.
    for (at, value, says) in [
        (0, &0x7fff_ffff_ffff_0000u64.to_be_bytes()[..], "Snapshot L1 table offset invalid"),
        (0, &512u64.to_be_bytes(), "Snapshot L1 table offset invalid"),
        (8, &0x3f_ffffu32.to_be_bytes(), "within the file"),
        (8, &0u32.to_be_bytes(), "has 0 L1 entries, expected 1"),
        (48, &u64::MAX.to_be_bytes(), "has 1 L1 entries, expected"),
    ] {
        let mut bad = image.clone();
        bad[table + at..table + at + value.len()].copy_from_slice(value);
        std::fs::write(scratch.path().join("bad"), bad).unwrap();
        let output = scratch.ours(&["convert", "-l", "first", "-O", "raw", "bad", "x"]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(message.starts_with("diskette: Failed to load snapshot: ") && message.contains(says), "{message}");
        assert!(!scratch.path().join("x").exists());
    }
}

/// A loop device, if this user may set one up.
struct Loop(String);

impl Loop {
    fn over(scratch: &Scratch, name: &str) -> Option<Self> {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(scratch.path().join(name)).output().ok()?;
        let device = output.status.success().then(|| Loop(text(&output.stdout).trim().to_string()))?;
        // A device that somebody left read-only stays so.
        let _ = Command::new("blockdev").args(["--setrw", &device.0]).status();
        Some(device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn block_devices_are_images_too() {
    let scratch = gallery();
    std::fs::write(scratch.path().join("device"), vec![0xff; 12 << 20]).unwrap();
    let Some(device) = Loop::over(&scratch, "device") else { return };
    for command in ["info", "info --output=json", "map --output=json", "check"] {
        let mut args: Vec<&str> = command.split(' ').collect();
        args.push(&device.0);
        assert_same(&scratch, &args);
    }
    for options in ["-O raw", "-n -O raw", "-O qcow2", "-O qcow2 -o preallocation=metadata,cluster_size=4k"] {
        let mut args = vec!["convert"];
        args.extend(options.split(' '));
        args.extend(["a.qcow2", &device.0]);
        let output = scratch.ours(&args);
        assert!(output.status.success(), "{options}: {}", text(&output.stderr));
        let format = if options.contains("qcow2") { "qcow2" } else { "raw" };
        // A raw disk is as large as the device: what is behind the copy stays.
        let said = text(&scratch.theirs(&["compare", "-F", format, "a.raw", &device.0]).stdout);
        let same = if format == "raw" { "Content mismatch at offset 10485760!" } else { "Images are identical." };
        assert!(said.contains(same), "{options}: {said}");
    }
    assert_same(&scratch, &["create", "-q", "-f", "raw", &device.0, "50M"]);
}

#[test]
fn refcount_blocks_in_the_holes_of_a_file_take_no_memory() {
    const CLUSTER: u64 = 1 << 16;
    // 4096 blocks of 64-bit refcounts, each a cluster, all zero and none stored.
    const BLOCKS: u64 = 4096;
    let scratch = crate::Scratch::new();
    let mut header = [0; 104];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 30).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &CLUSTER.to_be_bytes());
    put(48, &(2 * CLUSTER).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &6u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    let file = std::fs::File::create(scratch.path().join("image")).unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&((3 * CLUSTER) | (1 << 63)).to_be_bytes(), CLUSTER).unwrap();
    file.write_all_at(&((4 * CLUSTER) | (1 << 63)).to_be_bytes(), 3 * CLUSTER).unwrap();
    let table: Vec<u8> = (0..BLOCKS).flat_map(|block| ((10 + block) * CLUSTER).to_be_bytes()).collect();
    file.write_all_at(&table, 2 * CLUSTER).unwrap();
    if file.set_len(BLOCKS * 8192 * CLUSTER).is_err() {
        eprintln!("skipped: this file system has no files of 2 TiB");
        return;
    }
    assert_same(&scratch, &["map", "--output=json", "image"]);
    let program = env!("CARGO_BIN_EXE_diskette");
    let limited = format!("ulimit -v 200000 && exec '{program}' map --output=json image");
    let output = scratch.run("sh", &["-c", &limited]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn entries_that_are_not_aligned_are_counted_as_qemu_img_counts_them() {
    let scratch = crate::Scratch::new();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    for options in ["cluster_size=16k,extended_l2=on", "cluster_size=64k,refcount_bits=1", "cluster_size=4k"] {
        scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "whole", "1M"]);
        scratch.make("qemu-io", &["-c", "write -q -P 3 0 200k", "whole"]);
        let whole = std::fs::read(scratch.path().join("whole")).unwrap();
        let l2 = (word(&whole, word(&whole, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
        let end = whole.len() as u64;
        for host in [0x200, end - 512, end, end + 512] {
            for copied in [0, 1 << 63] {
                let mut image = whole.clone();
                image[l2..l2 + 8].copy_from_slice(&(host | copied).to_be_bytes());
                std::fs::write(scratch.path().join("image"), image).unwrap();
                let counts = |program: &str| {
                    let output = scratch.run(program, &["check", "--output=json", "image"]);
                    let mut lines: Vec<String> =
                        text(&output.stdout).lines().map(|line| line.trim_end_matches(',').to_string()).collect();
                    lines.sort();
                    (lines, output.status.code())
                };
                let (ours, theirs) = (counts(env!("CARGO_BIN_EXE_diskette")), counts("qemu-img"));
                assert_eq!(ours, theirs, "{options}: {host:#x} {copied:#x}");
            }
        }
    }
    let file = OpenOptions::new().write(true).open(scratch.path().join("whole")).unwrap();
    file.write_all_at(&2u64.to_be_bytes(), 64).unwrap();
    for program in [env!("CARGO_BIN_EXE_diskette"), "qemu-img"] {
        assert_eq!(scratch.run(program, &["info", "whole"]).status.code(), Some(1));
    }
}
