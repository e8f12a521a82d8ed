//! What is recognised, against blkid.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diskette_contents::{ErrorKind, Found, Limits};

use crate::host::{Host, blank, feed, smallest, text, tool};

/// What blkid says, by the names that udev has for it.
fn blkid(path: &Path) -> BTreeMap<String, String> {
    let printed = tool("blkid", &["--probe", "--output", "udev", text(path)]);
    printed.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), unescaped(value))).collect()
}

/// Bytes that are no plain letters are written as `\x20`.
fn unescaped(value: &str) -> String {
    let mut parts = value.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).expect("labels of tests are text")
}

fn found(path: &Path) -> Found {
    let layout = Host::of_file(path, Limits::default()).layout();
    assert_eq!(layout, Host::of_file(path, smallest()).layout());
    assert_eq!(layout.volumes.len(), 1, "{layout:?}");
    layout.volumes[0].found.clone().unwrap_or_else(|| panic!("nothing was recognised in {}", path.display()))
}

/// What is made on a blank file is recognised by name, and has the label and the UUID that blkid sees.
fn agrees(path: &Path, name: &str, kind: &str) {
    let said = blkid(path);
    assert_eq!(said.get("ID_FS_TYPE").map(String::as_str), Some(kind), "{said:?}");
    let found = found(path);
    assert_eq!(found.name, name);
    assert_eq!(found.label.as_ref(), said.get("ID_FS_LABEL_ENC"), "{said:?}");
    assert_eq!(found.uuid.as_ref(), said.get("ID_FS_UUID"), "{said:?}");
}

fn made(folder: &Path, size: u64, program: &str, args: &[&str]) -> PathBuf {
    let path = folder.join("volume");
    blank(&path, size);
    tool(program, &[args, &[text(&path)]].concat());
    path
}

#[test]
fn file_systems_are_told_by_name_label_and_uuid() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mib = 1 << 20;
    agrees(&made(folder, 8 * mib, "mkfs.ext2", &["-q", "-L", "old label"]), "ext2", "ext2");
    agrees(&made(folder, 16 * mib, "mkfs.ext3", &["-q", "-L", "größe"]), "ext3", "ext3");
    agrees(&made(folder, 16 * mib, "mkfs.ext4", &["-q", "-L", "sixteen letters!"]), "ext4", "ext4");
    agrees(&made(folder, 2 * mib, "mkfs.vfat", &["-F", "12", "-n", "TWELVE"]), "FAT12", "vfat");
    agrees(&made(folder, 16 * mib, "mkfs.vfat", &["-F", "16"]), "FAT16", "vfat");
    agrees(&made(folder, 48 * mib, "mkfs.vfat", &["-F", "32", "-n", "THIRTYTWO"]), "FAT32", "vfat");
    agrees(&made(folder, 8 * mib, "mkswap", &["-q", "-L", "swap label"]), "Linux swap", "swap");
    agrees(&made(folder, 320 * mib, "mkfs.xfs", &["-q", "-L", "xfs label"]), "XFS", "xfs");
    agrees(&made(folder, 128 * mib, "mkfs.btrfs", &["-q", "-L", "btrfs label"]), "btrfs", "btrfs");
    let ntfs = made(folder, 8 * mib, "mkntfs", &["-q", "-F", "-s", "512", "-L", "ntfs label"]);
    assert_eq!(found(&ntfs).uuid.as_ref(), blkid(&ntfs).get("ID_FS_UUID"));
    let exfat = made(folder, 8 * mib, "mkfs.exfat", &[]);
    agrees(&exfat, "exFAT", "exfat");
}

#[test]
fn what_holds_other_volumes_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (kind, name) in [("luks1", "LUKS 1"), ("luks2", "LUKS 2")] {
        let path = folder.join(kind);
        blank(&path, 32 << 20);
        let fast = ["--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-"];
        feed("cryptsetup", &[&["luksFormat", "--type", kind][..], &fast, &[text(&path)]].concat(), "secret");
        agrees(&path, name, "crypto_LUKS");
    }
    // A superblock of RAID in the version that leaves the first 4 KiB free.
    let mut raid = vec![0; 1 << 20];
    raid[4096..4104].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
    raid[4096 + 16..4096 + 32].copy_from_slice(&[7; 16]);
    raid[4096 + 32..4096 + 41].copy_from_slice(b"host:name");
    raid[4096 + 144] = 8;
    let found = Host::of_bytes(raid.clone(), Limits::default()).layout().volumes[0].found.clone().expect("RAID");
    assert_eq!((found.name, found.label.as_deref()), ("Linux RAID member", Some("host:name")));
    // The same at the end, where it is only looked for if nothing else is there.
    let superblock = raid[4096..8192].to_vec();
    raid[4096..8192].fill(0);
    raid[(1 << 20) - 8192..(1 << 20) - 4096].copy_from_slice(&superblock);
    let found = Host::of_bytes(raid, smallest()).layout().volumes[0].found.clone().expect("RAID");
    assert_eq!(found.label.as_deref(), Some("host:name"));
}

#[test]
fn what_cannot_be_looked_into_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("squash");
    fs::create_dir(folder.path().join("tree")).expect("a directory");
    fs::write(folder.path().join("tree/file"), "text").expect("a file");
    tool("mksquashfs", &[text(&folder.path().join("tree")), text(&path), "-quiet", "-no-progress"]);
    assert_eq!(blkid(&path).get("ID_FS_TYPE").map(String::as_str), Some("squashfs"));
    assert_eq!(found(&path).name, "SquashFS");
    let mut host = Host::of_file(&path, Limits::default());
    let error = host.list(0, b"/", 0, 10).expect_err("SquashFS is not read");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("SquashFS"), "{error}");
    assert_eq!(host.list(7, b"/", 0, 10).expect_err("there is no such volume").kind(), ErrorKind::NotFound);
}

#[test]
fn the_first_hfs_is_told_by_its_signature() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("volume");
    blank(&path, 1 << 20);
    let mut bytes = fs::read(&path).expect("a volume");
    // The master directory block: signature, and allocation blocks of 512 bytes.
    bytes[1024..1026].copy_from_slice(b"BD");
    bytes[1024 + 20..1024 + 24].copy_from_slice(&512u32.to_be_bytes());
    fs::write(&path, bytes).expect("a volume");
    assert_eq!(blkid(&path).get("ID_FS_TYPE").map(String::as_str), Some("hfs"));
    assert_eq!(found(&path).name, "HFS");
}
