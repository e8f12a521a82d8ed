//! What is in a volume, by what stands at known places.

use crate::bytes::{be16, has, le16, le32, le64, text, utf16, uuid};
use crate::disk::{Disk, Fault};
use crate::files::Reader;

/// What was recognised in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is called, `ext4` for instance.
    pub name: &'static str,
    /// The name that was given to it.
    pub label: Option<String>,
    /// Its UUID, or the serial number that takes the place of one.
    pub uuid: Option<String>,
    /// Who can read the files in it. Without one there is nothing more to see.
    pub(crate) reader: Option<Reader>,
}

impl Found {
    fn new(name: &'static str) -> Self {
        Found { name, label: None, uuid: None, reader: None }
    }

    /// Whether its first sector is one to start a PC from, and ends like a master boot record.
    pub(crate) fn has_boot_sector(&self) -> bool {
        matches!(self.name, "FAT12" | "FAT16" | "FAT32" | "exFAT" | "NTFS" | "ReFS" | "BitLocker")
    }

    /// Whether it leaves the first sectors to a partition table, which discs that start from a stick have as well.
    pub(crate) fn is_beside_a_table(&self) -> bool {
        matches!(self.name, "ISO 9660" | "UDF")
    }
}

/// Nearly everything is recognised by this many bytes at the beginning.
pub(crate) const HEAD: u64 = 72 << 10;

/// ZFS keeps a ring of roots here, of which the first ones may not be used yet.
const ZFS_RING: (u64, u64) = (128 << 10, 64 << 10);

/// RAID of Linux keeps its superblock at the end in two of its versions.
const RAID_TAIL: u64 = 128 << 10;

/// What is recognised by bytes at one place, and has no more to tell.
const SIMPLE: &[(usize, &[u8], &str)] = &[
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"COWD", "VMDK extent"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0, b"\x45\x3d\xcd\x28", "cramfs"),
    (0, b"-rom1fs-", "romfs"),
    (1024 + 6, b"\x34\x34", "NILFS2"),
    (1024 + 16, b"\x7f\x13", "Minix"),
    (1024 + 16, b"\x8f\x13", "Minix"),
    (1024 + 16, b"\x68\x24", "Minix"),
    (1024 + 16, b"\x78\x24", "Minix"),
    (32768, b"JFS1", "JFS"),
    (65536 + 52, b"ReIsEr2Fs", "ReiserFS"),
    (65536 + 52, b"ReIsEr3Fs", "ReiserFS"),
    (65536 + 52, b"ReIsErFs", "ReiserFS"),
    (65536, b"ReIsEr4", "Reiser4"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"),
    (8192 + 0x55c, b"\x54\x19\x01\x00", "UFS"),
    (65536 + 0x55c, b"\x19\x01\x54\x19", "UFS2"),
    (512 + 32, b"BFS1", "BFS"),
    (512 + 32, b"1SFB", "BFS"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"HX\0\x05", "HFSX"),
    (1024, b"BD", "HFS"),
];

/// What is recognised at the beginning of a volume.
pub(crate) fn head(disk: &Disk, start: u64, length: u64) -> Result<Option<Found>, Fault> {
    let bytes = disk.bytes(start, HEAD.min(length))?;
    let found =
        stacked(&bytes).or_else(|| boot_sector(&bytes, length)).or_else(|| unix(&bytes)).or_else(|| disc(&bytes));
    Ok(found.or_else(|| apple(&bytes)).or_else(|| simple(&bytes)).or_else(|| swap(&bytes)))
}

/// Where else to look if nothing was recognised.
pub(crate) fn places(start: u64, length: u64) -> [(u64, u64); 2] {
    let tail = RAID_TAIL.min(length);
    let (ring, size) = ZFS_RING;
    [(start.saturating_add(ring), size.min(length.saturating_sub(ring))), (start.saturating_add(length - tail), tail)]
}

/// What is recognised at those places.
pub(crate) fn rest(disk: &Disk, start: u64, length: u64) -> Result<Option<Found>, Fault> {
    let [(ring, size), (tail, tail_size)] = places(start, length);
    if let Some(found) = zfs(&disk.bytes(ring, size)?) {
        return Ok(Some(found));
    }
    let bytes = disk.bytes(tail, tail_size)?;
    // Version 0.90 is in the last whole 64 KiB but one, 1.0 at least 8 KiB before the end; both on rounded places.
    let old = (length & !0xffff).checked_sub(0x1_0000).map(|at| start.saturating_add(at));
    let new = length.checked_sub(8 << 10).map(|at| start.saturating_add(at & !0xfff));
    for place in [new, old].into_iter().flatten() {
        let at = place.checked_sub(tail).and_then(|at| usize::try_from(at).ok());
        if let Some(found) = at.and_then(|at| raid(&bytes, at)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn simple(bytes: &[u8]) -> Option<Found> {
    let (_, _, name) = SIMPLE.iter().find(|(at, magic, _)| has(bytes, *at, magic))?;
    Some(Found::new(name))
}

/// What holds other volumes.
fn stacked(bytes: &[u8]) -> Option<Found> {
    if has(bytes, 0, b"LUKS\xba\xbe") {
        let (name, label) = match be16(bytes, 6)? {
            1 => ("LUKS 1", None),
            2 => ("LUKS 2", text(bytes, 24, 48)),
            _ => ("LUKS", None),
        };
        return Some(Found { label, uuid: text(bytes, 168, 40), ..Found::new(name) });
    }
    for sector in 0..4 {
        let at = sector * 512;
        if has(bytes, at, b"LABELONE") && has(bytes, at + 24, b"LVM2 001") {
            return Some(Found { uuid: text(bytes, at + 32, 32).map(lvm_id), ..Found::new("LVM2 physical volume") });
        }
    }
    raid(bytes, 0).or_else(|| raid(bytes, 4096))
}

/// LVM writes its identities in groups.
fn lvm_id(id: String) -> String {
    let mut grouped = String::new();
    for (at, letter) in id.chars().enumerate() {
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            grouped.push('-');
        }
        grouped.push(letter);
    }
    grouped
}

fn raid(bytes: &[u8], at: usize) -> Option<Found> {
    if le32(bytes, at)? != 0xa92b_4efc {
        return None;
    }
    let found = Found::new("Linux RAID member");
    match le32(bytes, at + 4)? {
        1 => Some(Found { uuid: uuid(bytes, at + 16), label: text(bytes, at + 32, 32), ..found }),
        0 => Some(found),
        _ => None,
    }
}

fn zfs(bytes: &[u8]) -> Option<Found> {
    // One match may be chance; a pool writes a new root every few seconds.
    let roots = bytes.chunks(1024).filter(|root| le64(root, 0) == Some(0x00ba_b10c)).count();
    (roots >= 2).then(|| Found::new("ZFS member"))
}

/// What begins with a boot sector of the PC.
fn boot_sector(bytes: &[u8], length: u64) -> Option<Found> {
    if has(bytes, 3, b"NTFS    ") {
        let serial = le64(bytes, 0x48)?;
        return Some(Found { uuid: Some(format!("{serial:016X}")), reader: Some(Reader::Ntfs), ..Found::new("NTFS") });
    }
    if has(bytes, 3, b"EXFAT   ") {
        return Some(Found { uuid: Some(serial(le32(bytes, 0x64)?)), ..Found::new("exFAT") });
    }
    fat(bytes, length)
}

fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

/// FAT has no number by which it is known, only a boot sector that makes sense.
fn fat(bytes: &[u8], length: u64) -> Option<Found> {
    let jumps = matches!(bytes.first()?, 0xe9 | 0xeb);
    let sector = u64::from(le16(bytes, 11)?);
    let cluster = u64::from(*bytes.get(13)?);
    let reserved = u64::from(le16(bytes, 14)?);
    let tables = u64::from(*bytes.get(16)?);
    let root_entries = u64::from(le16(bytes, 17)?);
    let media = *bytes.get(21)?;
    let is_sane = jumps
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&tables)
        && (media >= 0xf8 || media == 0xf0);
    if !is_sane {
        return None;
    }
    let short = u64::from(le16(bytes, 22)?);
    let table = if short != 0 { short } else { u64::from(le32(bytes, 36)?) };
    let sectors = match le16(bytes, 19)? {
        0 => u64::from(le32(bytes, 32)?),
        sectors => u64::from(sectors),
    };
    let root = (root_entries * 32).div_ceil(sector);
    let data = sectors.checked_sub(reserved + tables * table + root)?;
    if table == 0 || sectors == 0 || sector > length {
        return None;
    }
    // The type follows from the number of clusters alone, but only FAT32 has no short size of its table.
    let clusters = data / cluster;
    let name = match clusters {
        _ if short == 0 => "FAT32",
        0..4085 => "FAT12",
        _ => "FAT16",
    };
    let extended = if short == 0 { 64 } else { 36 };
    // 0x28 says that a serial number follows, 0x29 that a label does as well.
    let kind = bytes.get(extended + 2).copied();
    let uuid = match kind {
        Some(0x28 | 0x29) => Some(serial(le32(bytes, extended + 3)?)),
        _ => None,
    };
    let label = text(bytes, extended + 7, 11).filter(|label| kind == Some(0x29) && label != "NO NAME");
    Some(Found { label, uuid, reader: Some(Reader::Fat), ..Found::new(name) })
}

/// File systems of Linux.
fn unix(bytes: &[u8]) -> Option<Found> {
    const SUPER: usize = 1024;
    if le16(bytes, SUPER + 0x38) == Some(0xef53) {
        return ext(bytes.get(SUPER..SUPER + 1024)?);
    }
    if has(bytes, 0, b"XFSB") {
        return Some(Found { label: text(bytes, 108, 12), uuid: uuid(bytes, 32), ..Found::new("XFS") });
    }
    if has(bytes, 65536 + 64, b"_BHRfS_M") {
        let (label, uuid) = (text(bytes, 65536 + 0x12b, 256), uuid(bytes, 65536 + 32));
        return Some(Found { label, uuid, ..Found::new("btrfs") });
    }
    if has(bytes, 0, b"hsqs") || has(bytes, 0, b"sqsh") {
        return Some(Found::new("SquashFS"));
    }
    if le32(bytes, SUPER) == Some(0xf2f5_2010) {
        let label = bytes.get(SUPER + 0x7c..SUPER + 0x7c + 512 * 2).and_then(|bytes| utf16(bytes, false));
        return Some(Found { label, uuid: uuid(bytes, SUPER + 0x6c), ..Found::new("F2FS") });
    }
    None
}

fn ext(superblock: &[u8]) -> Option<Found> {
    const HAS_JOURNAL: u32 = 0x4;
    const IS_A_JOURNAL: u32 = 0x8;
    /// File types in directories, recovery, and groups that share descriptors: ext3 has no others.
    const OLD_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    /// Sparse superblocks, large files and directories in trees.
    const OLD_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    let (compatible, incompatible) = (le32(superblock, 0x5c)?, le32(superblock, 0x60)?);
    let read_only = le32(superblock, 0x64)?;
    let is_old = incompatible & !OLD_INCOMPATIBLE == 0 && read_only & !OLD_READ_ONLY == 0;
    let (name, reader) = match compatible & HAS_JOURNAL != 0 {
        _ if incompatible & IS_A_JOURNAL != 0 => ("ext journal", None),
        _ if !is_old => ("ext4", Some(Reader::Ext)),
        true => ("ext3", Some(Reader::Ext)),
        false => ("ext2", Some(Reader::Ext)),
    };
    Some(Found { label: text(superblock, 0x78, 16), uuid: uuid(superblock, 0x68), name, reader })
}

/// File systems of discs.
fn disc(bytes: &[u8]) -> Option<Found> {
    const FIRST: usize = 16 * 2048;
    let descriptors = || (0..16).map(|number| FIRST + number * 2048);
    if has(bytes, FIRST + 1, b"CD001") {
        let label = text(bytes, FIRST + 40, 32).map(|label| label.trim_start().to_owned());
        let uuid = iso_date(bytes.get(FIRST + 813..FIRST + 829)?);
        return Some(Found { label, uuid, reader: Some(Reader::Iso), ..Found::new("ISO 9660") });
    }
    if has(bytes, FIRST + 1, b"BEA01") && descriptors().any(|at| has(bytes, at + 1, b"NSR0")) {
        return Some(Found::new("UDF"));
    }
    None
}

/// When a disc was made is all that tells it from others.
fn iso_date(digits: &[u8]) -> Option<String> {
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    if digits.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let mut date = digits.get(0..4)?.to_owned();
    for at in (4..16).step_by(2) {
        date.push('-');
        date.push_str(digits.get(at..at + 2)?);
    }
    Some(date)
}

fn apple(bytes: &[u8]) -> Option<Found> {
    has(bytes, 32, b"NXSB").then(|| Found { uuid: uuid(bytes, 72), ..Found::new("APFS") })
}

/// Swap space has its mark at the end of the first page, whose size differs by machine.
fn swap(bytes: &[u8]) -> Option<Found> {
    for page in [4096, 8192, 16384, 32768, 65536] {
        if has(bytes, page - 10, b"SWAPSPACE2") {
            let (label, uuid) = (text(bytes, 1024 + 28, 16), uuid(bytes, 1024 + 12));
            return Some(Found { label, uuid, ..Found::new("Linux swap") });
        }
        if has(bytes, page - 10, b"SWAP-SPACE") {
            return Some(Found::new("Linux swap"));
        }
        if has(bytes, page - 10, b"S1SUSPEND\0") {
            return Some(Found::new("Linux hibernation"));
        }
    }
    None
}
