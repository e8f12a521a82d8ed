//! The fuzz targets, each with what it begins with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, command, run as run_process};
use crate::provision;

const TARGETS: [&str; 3] = ["open_any", "qcow2_ops", "contents"];
/// Seconds per target.
const SECONDS: u32 = 15;

/// The disks of the target `contents` have this size.
const DISK_BYTES: u64 = 4 << 20;
const SECTOR: usize = 512;
/// What ends the numbers of the sectors that an input has.
const NO_SECTOR: u16 = u16::MAX;

/// How the disks are made on which fuzzing of `contents` begins; `$disk` is the file, empty, and `$tree` a small tree.
const DISKS: [(&str, &str); 11] = [
    ("ext2", "mke2fs -q -F -t ext2 -b 1024 -N 64 -d $tree $disk 256k"),
    ("ext4", "mke2fs -q -F -t ext4 -b 1024 -N 64 -O ^has_journal,metadata_csum -d $tree $disk 512k"),
    ("ext4-plain", "mke2fs -q -F -t ext4 -b 2048 -N 64 -O ^has_journal,^metadata_csum,^64bit -d $tree $disk 512k"),
    // With something in the journal: the blocks of a file.
    (
        "ext3",
        "mke2fs -q -F -t ext3 -b 1024 -N 64 -J size=1 -d $tree $disk && \
         printf 'jo\\njw -b 1500,1501 %s\\njw -r 1501\\njc\\n' $tree/file | debugfs -w -f - $disk",
    ),
    ("fat12", "mkfs.vfat -F 12 -s 4 -f 1 -r 64 $disk && mcopy -s -i $disk $tree/file $tree/folder ::"),
    ("fat16", "mkfs.vfat -F 16 -s 1 -f 1 -r 64 $disk && mcopy -s -i $disk $tree/file $tree/folder ::"),
    ("iso", "genisoimage -quiet -R -J -o $disk $tree"),
    ("ntfs", "mkntfs -q -F -Q -s 512 $disk && ntfscp -q -f $disk $tree/file file"),
    ("mbr", "printf 'label: dos\\nsize=64KiB\\nsize=1MiB,type=5\\nsize=64KiB\\n' | sfdisk --quiet $disk"),
    (
        "gpt",
        "printf 'label: gpt\\nfirst-lba: 34\\nstart=128,size=256KiB,name=one\\nsize=64KiB\\n' | sfdisk --quiet $disk && \
         mke2fs -q -F -t ext2 -b 1024 -N 64 -d $tree -E offset=65536 $disk 256k",
    ),
    ("apm", "parted -s $disk mklabel mac mkpart one ext2 64KiB 128KiB"),
];

pub(crate) fn run() -> Result<()> {
    provision::cargo_tool("cargo-fuzz")?;
    seed_contents()?;
    for target in TARGETS {
        // The code is safe Rust, so no sanitizer is needed; without one the stable compiler will do.
        let limits = [&format!("-max_total_time={SECONDS}"), "-rss_limit_mb=2048", "-timeout=30", "-verbosity=0"];
        let mut fuzz = cargo(&[&["fuzz", "run", "--sanitizer", "none", target, "--"][..], &limits].concat());
        run_process(fuzz.env("RUSTC_BOOTSTRAP", "1"))?;
    }
    Ok(())
}

/// Makes the disks that `contents` begins with, without their empty sectors.
fn seed_contents() -> Result<()> {
    for (program, package) in provision::FILE_SYSTEM_TOOLS {
        provision::program(program, package)?;
    }
    let corpus = Path::new("fuzz/corpus/contents");
    let folder = Path::new("fuzz/corpus/disks");
    let tree = folder.join("tree");
    for folder in [corpus, &tree.join("folder/deep")] {
        fs::create_dir_all(folder)?;
    }
    fs::write(tree.join("file"), [b'x'; 2048])?;
    fs::write(tree.join("folder/deep/text"), "a text\n")?;
    for number in 0..20 {
        fs::write(tree.join(format!("folder/a file with number {number}")), "text\n".repeat(number))?;
    }
    let link = tree.join("link");
    if fs::symlink_metadata(&link).is_err() {
        std::os::unix::fs::symlink("folder/deep/text", link)?;
    }
    for (name, script) in DISKS {
        let disk = folder.join(name);
        fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        let mut make = command("sh");
        make.args(["-ec", script]).env("disk", &disk).env("tree", &tree);
        // The tools have much to say about disks as small as this.
        let output = make.output().context("sh")?;
        if !output.status.success() {
            bail!("the disk '{name}' cannot be made: {}", String::from_utf8_lossy(&output.stderr));
        }
        fs::write(corpus.join(name), packed(&fs::read(&disk)?))?;
    }
    Ok(())
}

/// A disk as the target takes it: the numbers of the sectors that have anything, a mark, these sectors. Ones throughout are
/// as good as nothing: so are journals filled that nobody reads.
fn packed(disk: &[u8]) -> Vec<u8> {
    let is_filled = |sector: &[u8]| [0, 0xff].iter().any(|filler| sector.iter().all(|byte| byte == filler));
    let used = || (0u16..).zip(disk.chunks(SECTOR)).filter(|(_, sector)| !is_filled(sector));
    let numbers = used().map(|(number, _)| number).chain([NO_SECTOR]).flat_map(u16::to_le_bytes);
    numbers.chain(used().flat_map(|(_, sector)| sector.iter().copied())).collect()
}
