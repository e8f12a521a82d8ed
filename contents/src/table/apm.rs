//! Apple's partition map (Inside Macintosh: Devices, chapter 3).

use crate::bytes::{be16, be32, has, text};
use crate::disk::{Disk, Fault};
use crate::table::types::apm_name;
use crate::table::{Parsed, Table, Volume};

/// The map itself counts as a partition, too.
const MAP: &str = "Apple_partition_map";

/// Room that is known not to be used.
const FREE: &str = "Apple_Free";

/// No map is longer than this many blocks.
const MAX_ENTRIES: u32 = 1024;

pub(super) fn parse(disk: &Disk) -> Result<Option<Parsed>, Fault> {
    let first = disk.bytes(0, 512)?;
    if !has(&first, 0, b"ER") {
        return Ok(None);
    }
    // Discs have blocks of 2048 bytes and a map in blocks of 512 all the same, so the map itself is looked for.
    let stated = be16(&first, 2).map_or(512, u64::from);
    for block in [stated, 512, 1024, 2048, 4096] {
        if !matches!(block, 512 | 1024 | 2048 | 4096) || !has(&disk.bytes(block, 2)?, 0, b"PM") {
            continue;
        }
        return Ok(Some(Parsed { table: Table::Apm, sector_size: block, disk_id: None, volumes: map(disk, block)? }));
    }
    Ok(None)
}

fn map(disk: &Disk, block: u64) -> Result<Vec<Volume>, Fault> {
    let count = be32(&disk.bytes(block, 512)?, 4).unwrap_or(0).min(MAX_ENTRIES);
    let mut volumes = Vec::new();
    for number in 1..=count {
        let entry = disk.bytes(u64::from(number) * block, 512)?;
        volumes.extend(volume(&entry, number, block));
    }
    Ok(volumes)
}

fn volume(entry: &[u8], number: u32, block: u64) -> Option<Volume> {
    if !has(entry, 0, b"PM") {
        return None;
    }
    let type_id = text(entry, 48, 32).unwrap_or_default();
    if type_id == FREE || type_id == MAP {
        return None;
    }
    Some(Volume {
        number,
        start: u64::from(be32(entry, 8)?) * block,
        length: u64::from(be32(entry, 12)?) * block,
        table: Table::Apm,
        type_name: apm_name(&type_id),
        type_id,
        label: text(entry, 16, 32),
        guid: None,
        flags: Vec::new(),
        found: None,
    })
}
