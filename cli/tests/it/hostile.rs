//! Images that lie, under every command and within limits of memory and time: none crashes, hangs, or shows what it has no
//! business with. Each image stands for a hole that a peer once had.

use std::fs;

use super::{Scratch, text};

/// Patches of bytes at offsets, after which an image lies.
type Patches = Vec<(usize, Vec<u8>)>;

/// Every command that looks at `bad`, and those that change a copy of it.
const COMMANDS: &[&str] = &[
    "info bad",
    "info --output=json bad",
    "inspect bad",
    "check bad",
    "map --output=json bad",
    "compare bad bad",
    "convert -O raw bad out",
    "convert -c -O qcow2 bad out",
    "measure -O qcow2 bad",
    "snapshot -l bad",
    "snapshot -c new bad",
    "snapshot -a one bad",
    "snapshot -d one bad",
    "bitmap --add bad new",
    "bitmap --remove bad bits",
    "resize -q bad +1M",
    "resize -q --shrink bad 64k",
    "amend -o compat=0.10 bad",
    "amend -o refcount_bits=64 bad",
    "rebase -b  bad",
    "check -r leaks bad",
    "check -r all bad",
];

/// Runs a command with a gigabyte of memory and ten seconds of processor, as a cloud does. It ends by itself.
fn limited(scratch: &Scratch, args: &[&str], place: &str) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_diskette");
    let limits = "ulimit -v 1048576; ulimit -t 10; exec \"$0\" \"$@\"";
    let output = scratch.run("bash", &[&["-c", limits, program], args].concat());
    let code = output.status.code();
    assert!(matches!(code, Some(0..=4 | 63)), "{place} {args:?}: {code:?} {}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{place} {args:?}: {}", text(&output.stderr));
    output
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// An image with data, compressed data, a snapshot and a bitmap, and what makes it lie.
fn lies(whole: &[u8]) -> Vec<(&'static str, Patches)> {
    let l1 = word(whole, 40);
    let refcounts = word(whole, 48);
    let block = word(whole, refcounts);
    let snapshots = word(whole, 64);
    let l2 = word(whole, l1) & 0x00ff_ffff_ffff_fe00;
    let extension = whole.windows(4).position(|kind| kind == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = word(whole, extension + 24);
    let bitmap_table = word(whole, directory);
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let be64 = |value: u64| value.to_be_bytes().to_vec();
    let copied = |target: usize| be64(target as u64 | 1 << 63);
    vec![
        // CVE-2014-0142, -0143, -0144: sizes that overflow, and division by them.
        ("cluster_bits 0", vec![(20, be32(0))]),
        ("cluster_bits 63", vec![(20, be32(63))]),
        ("cluster_bits 9 with tables made for 16", vec![(20, be32(9))]),
        ("cluster_bits 21 with tables made for 16", vec![(20, be32(21))]),
        ("a size of 2^63", vec![(24, be64(1 << 63))]),
        ("a size of an exbibyte", vec![(24, be64(1 << 60))]),
        ("an L1 table of 32 MiB", vec![(36, be32(4 << 20))]),
        ("an L1 table over 32 MiB", vec![(36, be32((4 << 20) + 1))]),
        ("an L1 table that wraps around", vec![(36, be32(0x2000_0001))]),
        ("an L1 table at the end of all offsets", vec![(40, be64(u64::MAX << 16))]),
        ("a refcount table of 8 MiB", vec![(56, be32(128))]),
        ("a refcount table of 2^32 clusters", vec![(56, be32(u32::MAX))]),
        ("no refcount table", vec![(48, be64(0))]),
        ("refcounts of 2^63 bits", vec![(96, be32(63))]),
        // CVE-2014-0145, -0146, -0147: snapshots that lie, and refcounts.
        ("65536 snapshots", vec![(60, be32(65536))]),
        ("2^32 snapshots", vec![(60, be32(u32::MAX))]),
        ("snapshots nowhere", vec![(64, be64(u64::MAX << 16))]),
        ("a snapshot with an L1 table of 16 GiB", vec![(snapshots + 8, be32(u32::MAX >> 1))]),
        ("a snapshot with an L1 table of nothing", vec![(snapshots + 8, be32(0))]),
        ("a snapshot with its L1 table nowhere", vec![(snapshots, be64(1 << 60))]),
        ("a snapshot with the header for an L1 table", vec![(snapshots, be64(0))]),
        ("a snapshot with 4 GiB of extra data", vec![(snapshots + 36, be32(u32::MAX))]),
        ("a snapshot of a disk of 2^64 bytes", vec![(snapshots + 48, be64(u64::MAX))]),
        // Tables that lead to each other.
        ("an L2 table that is the L1 table", vec![(l1, copied(l1))]),
        ("an L2 table that is the refcount table", vec![(l1, copied(refcounts))]),
        ("an L2 table of itself", vec![(l2, copied(l2)), (l2 + 8, copied(l2))]),
        ("a refcount block of itself", vec![(block, be64(u64::MAX))]),
        ("the refcount table as its own block", vec![(refcounts, be64(refcounts as u64))]),
        ("refcount blocks that are all the same", vec![(refcounts, be64(block as u64).repeat(512))]),
        ("refcounts that are all 65535", vec![(block, vec![0xff; 4096])]),
        ("L2 entries with every bit", vec![(l2, vec![0xff; 4096])]),
        ("L2 entries compressed to the end of all offsets", vec![(l2, be64(0x7fff_ffff_ffff_ffff).repeat(64))]),
        ("the snapshot table as the L1 table", vec![(40, be64(snapshots as u64))]),
        // Bitmaps that lie.
        ("2^32 bitmaps", vec![(extension + 8, be32(u32::MAX))]),
        ("a directory of bitmaps of 2^63 bytes", vec![(extension + 16, be64(1 << 63))]),
        ("a directory of bitmaps nowhere", vec![(extension + 24, be64(u64::MAX << 16))]),
        ("a bitmap with a table of 2^32 entries", vec![(directory + 8, be32(u32::MAX))]),
        ("a bitmap with bits for 2^255 bytes", vec![(directory + 17, vec![255])]),
        ("a bitmap with its table nowhere", vec![(directory, be64(1 << 60))]),
        ("a bitmap with its bits nowhere", vec![(bitmap_table, be64(1 << 60))]),
        // Header extensions (osv-scalibr 1997), and names.
        ("a header extension of 4 GiB", vec![(100, be32(104)), (104, [be32(0x1234_5678), be32(u32::MAX)].concat())]),
        ("a header of 4 GiB", vec![(100, be32(u32::MAX))]),
        ("a backing file name of 4 GiB", vec![(8, [be64(512), be32(u32::MAX)].concat())]),
        ("a backing file name behind the cluster", vec![(8, [be64(u64::MAX - 4), be32(9)].concat())]),
        ("features from the future", vec![(72, be64(1 << 63))]),
        ("a compression nobody knows", vec![(72, be64(8)), (104, vec![7])]),
        ("extended entries that are not", vec![(72, be64(16))]),
        ("an external data file without a name", vec![(72, be64(4))]),
        ("an encryption without a header", vec![(32, be32(2))]),
        ("a dirty and corrupt image", vec![(72, be64(3))]),
    ]
}

fn sample() -> (Scratch, Vec<u8>) {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "whole", "2M"]);
    scratch.make("qemu-io", &["-c", "write -P 1 0 200k", "-c", "write -c -P 2 1M 64k", "whole"]);
    scratch.make("qemu-img", &["snapshot", "-c", "one", "whole"]);
    scratch.make("qemu-img", &["bitmap", "--add", "whole", "bits"]);
    scratch.make("qemu-io", &["-c", "write -P 3 64k 100k", "whole"]);
    let whole = fs::read(scratch.path().join("whole")).unwrap();
    (scratch, whole)
}

#[test]
fn images_that_lie_neither_crash_nor_hang_any_command() {
    let (scratch, whole) = sample();
    for (number, (what, patches)) in lies(&whole).into_iter().enumerate() {
        let mut bad = whole.clone();
        for (at, patch) in &patches {
            bad[*at..at + patch.len()].copy_from_slice(patch);
        }
        fs::write(scratch.path().join("bad"), &bad).unwrap();
        let opens = limited(&scratch, &["info", "bad"], what).status.success();
        for (turn, command) in COMMANDS.iter().enumerate() {
            // What cannot be opened can still be looked at and repaired; of changes, every other one has its turn.
            let looks = ["inspect", "check"].iter().any(|name| command.starts_with(name));
            if !looks && (!opens || (number + turn) % 4 < 2 && turn > 8) {
                continue;
            }
            fs::write(scratch.path().join("bad"), &bad).unwrap();
            let mut args: Vec<&str> = command.split(' ').collect();
            if (number + turn) % 2 == 0 {
                args.insert(0, "--untrusted");
            }
            limited(&scratch, &args, what);
        }
    }
}

#[test]
fn what_an_image_names_stays_closed_for_who_does_not_trust_it() {
    let scratch = Scratch::new();
    let secret = scratch.path().join("secret");
    fs::write(&secret, "classified ".repeat(50)).unwrap();
    let path = secret.to_str().unwrap();
    let json = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{path}"}}}}"#);
    let nested = format!(
        r#"json:{{"driver":"quorum","vote-threshold":1,"children":[{{"driver":"file","filename":"{path}"}}]}}"#
    );
    let debug = format!("blkdebug::{path}");
    let mut images = Vec::new();
    // CVE-2022-47951 and its kind: a backing file, by path, description, protocol.
    for (number, name) in
        [path, "secret", "../secret", &json, &nested, &debug, "nbd://127.0.0.1:1/x", "nbd+unix:///x?socket=/run/x"]
            .iter()
            .enumerate()
    {
        let image = format!("backed{number}");
        scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, &image, "64k"]);
        images.push(image);
    }
    // CVE-2024-32498, CVE-2024-4467: an external data file, and one that is a description.
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "split", "64k"]);
    let split = fs::read(scratch.path().join("split")).unwrap();
    let at = split.windows(12).position(|part| part == b"DATA\0\0\0\x04data").unwrap();
    for (number, name) in [path, "secret", &json].iter().enumerate() {
        let mut bytes = split.clone();
        bytes[at..at + 8 + name.len()]
            .copy_from_slice(&[b"DATA", &(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat());
        bytes[at + 8 + name.len()..0x200].fill(0);
        let image = format!("split{number}");
        fs::write(scratch.path().join(&image), bytes).unwrap();
        images.push(image);
    }
    // CVE-2026-24708: a guest makes its raw disk look like an image that names a file.
    let mut disk = fs::read(scratch.path().join("backed0")).unwrap();
    disk.resize(1 << 20, 0);
    fs::write(scratch.path().join("guest"), &disk).unwrap();
    images.push("guest".into());
    // What is backed by one of these is no better.
    scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "backed0", "above", "64k"]);
    images.push("above".into());
    for image in &images {
        for command in COMMANDS.iter().chain(&["convert -n -O raw bad out", "info --backing-chain bad"]) {
            fs::copy(scratch.path().join(image), scratch.path().join("bad")).unwrap();
            let _ = fs::remove_file(scratch.path().join("out"));
            let args: Vec<&str> = ["--untrusted"].into_iter().chain(command.split(' ')).collect();
            let output = limited(&scratch, &args, image);
            for said in [&output.stdout, &output.stderr] {
                assert!(!text(said).contains("classified"), "{image} {args:?}");
            }
            let out = fs::read(scratch.path().join("out")).unwrap_or_default();
            assert!(!text(&out).contains("classified"), "{image} {args:?}");
            let kept = fs::read(&secret).unwrap();
            assert!(kept.len() == 550, "{image} {args:?}: the file has {} bytes", kept.len());
        }
        let refused = scratch.ours(&["--untrusted", "convert", "-O", "raw", image, "out"]);
        assert!(text(&refused.stderr).contains("does not allow"), "{image}: {}", text(&refused.stderr));
        assert!(scratch.ours(&["info", "--untrusted", image]).status.success(), "{image}");
        let verdict = scratch.ours(&["inspect", image]);
        assert_eq!(verdict.status.code(), Some(3), "{image}: {}", text(&verdict.stdout));
    }
    // Who says that it is raw gets it as it is, and nothing is looked at.
    let length = disk.len().to_string();
    assert!(scratch.ours(&["resize", "-q", "-f", "raw", "guest", &length]).status.success());
    assert!(fs::read(scratch.path().join("guest")).unwrap() == disk);
    // A data file that is a description is a strange file name, also for who trusts it, as for QEMU.
    for program in [env!("CARGO_BIN_EXE_diskette"), "qemu-img"] {
        let output = scratch.run(program, &["convert", "-O", "raw", "split2", "out"]);
        assert!(text(&output.stderr).contains("No such file or directory"), "{program}: {}", text(&output.stderr));
    }
}

/// A disk of Virtual PC that a fuzzer made (its tables lie), built from what is not zero.
fn fuzzed_vpc() -> Vec<u8> {
    let mut bytes = vec![0; 1028];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, b"conectix\0\0\0\x02\0\x01\0\0\0\0\0\0\0\0\x02\0");
    put(24, &[0x1c, 0xd3, 0x80, 0xa5, b'q', b'e', b'm', b'u', 0, 5, 0, 3, b'W', b'i', b'2', b'k']);
    put(46, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0x88, 0, 0, 1, 4, 0x11, 0, 0, 0, 3, 0xff, 0xff, 0xee, 0xc5]);
    put(
        512,
        b"cxsparse\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\x06\0\0\x01\0\0\x40\0\0\x01\0\0\x02\0\xff\xff\xf4\x76",
    );
    put(640, &[0xff; 128]);
    bytes
}

/// A disk of VMware with a header that lies and a descriptor that names another file.
fn fuzzed_vmdk() -> Vec<u8> {
    let mut bytes = vec![0; 196_608];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, b"KDMV\x01\0\0\0\x03\0\0\0\x01\0\0\x1b\xfc\xff\xff\x1e\x80\0\0\0\0\0\0\0\x01\0\0\x0f\0\0\0\0\x14");
    put(44, b"\xfa\x01\0\0\x47\0\0\0\0\0\0\0\0\0\0\x28");
    put(512, b"# Disk DescriptorFile\nversion=1\nCID=52db3b7\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\nRW 2097152 SPARSE \"fix.vmdk\"\n");
    bytes
}

#[test]
fn samples_of_a_fuzzer_neither_crash_nor_hang_any_command() {
    let scratch = Scratch::new();
    for (name, bytes) in [("vpc", fuzzed_vpc()), ("vmdk", fuzzed_vmdk())] {
        for command in COMMANDS {
            fs::write(scratch.path().join("bad"), &bytes).unwrap();
            for trust in [&[][..], &["--untrusted"]] {
                limited(&scratch, &[trust, &command.split(' ').collect::<Vec<_>>()].concat(), name);
            }
        }
    }
}
