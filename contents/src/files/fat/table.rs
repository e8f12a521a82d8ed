//! Where a volume has its clusters, and what its table says of them (Microsoft's specification of FAT32, sections 3 and 4).

use fatfs::FatType;

use crate::bytes::{le16, le32};
use crate::disk::View;
use crate::error::{Error, Result};

/// The first two entries of a table are no clusters.
const FIRST_CLUSTER: u32 = 2;

/// The boot sector, as far as it is looked at.
const BOOT_BYTES: usize = 64;

/// The table of a volume, and the place of what it speaks of.
pub(super) struct Table {
    view: View,
    kind: FatType,
    /// Byte offset in the volume of the table that counts.
    start: u64,
    /// Byte offset in the volume of the first cluster.
    data: u64,
    cluster_bytes: u64,
    /// The number after that of the last cluster.
    end: u32,
}

impl Table {
    pub(super) fn open(view: View, kind: FatType) -> Result<Self> {
        let mut boot = [0; BOOT_BYTES];
        view.read_at(0, &mut boot)?;
        let corrupt = |what: String| Error::corrupt(what).at(view.start());
        let short = || corrupt("the boot sector is cut short".into());
        let byte = |at: usize| boot.get(at).copied().map(u64::from).ok_or_else(short);
        let word = |at: usize| le16(&boot, at).map(u64::from).ok_or_else(short);
        let double = |at: usize| le32(&boot, at).map(u64::from).ok_or_else(short);
        let either = |short: u64, long: u64| if short == 0 { long } else { short };

        let sector_bytes = word(11)?;
        let cluster_sectors = byte(13)?;
        let reserved_sectors = word(14)?;
        let tables = byte(16)?;
        let root_bytes = word(17)? * 32;
        let sectors = either(word(19)?, double(32)?);
        let table_sectors = match kind {
            FatType::Fat32 => double(36)?,
            FatType::Fat12 | FatType::Fat16 => word(22)?,
        };
        if sector_bytes == 0 || cluster_sectors == 0 {
            let what = format!("a cluster has {cluster_sectors} sectors of {sector_bytes} bytes, which cannot be");
            return Err(corrupt(what));
        }
        // Tables that are not kept alike have one that counts.
        let flags = if kind == FatType::Fat32 { word(40)? } else { 0 };
        let active = if flags & 0x80 == 0 { 0 } else { flags & 0xf };
        if active >= tables {
            return Err(corrupt(format!("table {active} is said to count, and there are {tables}")));
        }
        let data_sector = reserved_sectors + tables * table_sectors + root_bytes.div_ceil(sector_bytes);
        let clusters = sectors.saturating_sub(data_sector) / cluster_sectors;
        let bits = match kind {
            FatType::Fat12 => 12,
            FatType::Fat16 => 16,
            FatType::Fat32 => 32,
        };
        let entries = table_sectors * sector_bytes * 8 / bits;
        let end = entries.min(clusters.saturating_add(u64::from(FIRST_CLUSTER)));
        Ok(Table {
            kind,
            start: (reserved_sectors + active * table_sectors) * sector_bytes,
            data: data_sector * sector_bytes,
            cluster_bytes: cluster_sectors * sector_bytes,
            end: u32::try_from(end).unwrap_or(u32::MAX),
            view,
        })
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        self.cluster_bytes
    }

    /// Fails unless there is a cluster of that number; `at` is where it was named, as an offset on the disk.
    pub(super) fn check(&self, cluster: u32, at: u64) -> Result<()> {
        if (FIRST_CLUSTER..self.end).contains(&cluster) {
            return Ok(());
        }
        let end = self.end;
        Err(Error::corrupt(format!(
            "cluster {cluster} is named, where clusters are from {FIRST_CLUSTER} to below {end}"
        ))
        .at(at))
    }

    /// The cluster after this one, if it is not the last of its file.
    pub(super) fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = self.entry_offset(cluster);
        let place = self.place(cluster);
        let (entry, mask) = match self.kind {
            FatType::Fat12 => {
                let pair = u32::from(u16::from_le_bytes(self.bytes(at)?));
                (if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }, 0xfff)
            }
            FatType::Fat16 => (u32::from(u16::from_le_bytes(self.bytes(at)?)), 0xffff),
            // The upper bits belong to nobody.
            FatType::Fat32 => (u32::from_le_bytes(self.bytes(at)?) & 0x0fff_ffff, 0x0fff_ffff),
        };
        let wrong = |what: &str| Err(Error::corrupt(format!("cluster {cluster} of a file {what}")).at(place));
        match entry {
            0 => wrong("is marked as free"),
            bad if bad == mask - 8 => wrong("is marked as bad"),
            end if end >= mask - 7 => Ok(None),
            next => self.check(next, place).map(|()| Some(next)),
        }
    }

    /// Byte offset on the disk of the entry of a cluster.
    pub(super) fn place(&self, cluster: u32) -> u64 {
        self.view.start().saturating_add(self.entry_offset(cluster))
    }

    /// Byte offset in the volume of a cluster that was [checked](Table::check).
    pub(super) fn data(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster.saturating_sub(FIRST_CLUSTER)) * self.cluster_bytes
    }

    fn entry_offset(&self, cluster: u32) -> u64 {
        let cluster = u64::from(cluster);
        self.start
            + match self.kind {
                FatType::Fat12 => cluster + cluster / 2,
                FatType::Fat16 => cluster * 2,
                FatType::Fat32 => cluster * 4,
            }
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.view.read_at(at, &mut bytes)?;
        Ok(bytes)
    }
}
