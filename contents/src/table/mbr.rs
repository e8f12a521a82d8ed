//! The partition table of the master boot record, with the chain of tables for logical partitions.

use std::collections::BTreeSet;

use crate::bytes::{has, le32};
use crate::disk::{Disk, Fault};
use crate::probe::Found;
use crate::table::types::mbr_name;
use crate::table::{EXTENDED, Parsed, Table, Volume};

const ENTRIES: usize = 446;
const DISK_ID: usize = 440;

/// Types of partitions that hold others.
const EXTENDED_TYPES: [u8; 3] = [0x05, 0x0f, 0x85];

/// The type by which a GPT is protected from those who do not know it.
const PROTECTIVE: u8 = 0xee;

/// Linux counts to less; a longer chain is more likely a damaged one.
const MAX_LOGICAL: usize = 256;

#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn is_extended(self) -> bool {
        EXTENDED_TYPES.contains(&self.kind)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
}

/// The four entries of a boot record.
pub(super) struct Record {
    entries: [Entry; 4],
    disk_id: u32,
}

/// The table in the bytes of a boot record, if it has the signature of one.
pub(super) fn table(bytes: &[u8]) -> Option<Record> {
    if !has(bytes, 510, &[0x55, 0xaa]) {
        return None;
    }
    let entry = |number: usize| {
        let bytes = bytes.get(ENTRIES + number * 16..ENTRIES + (number + 1) * 16)?;
        Some(Entry { status: bytes[0], kind: bytes[4], start: le32(bytes, 8)?, sectors: le32(bytes, 12)? })
    };
    Some(Record { entries: [entry(0)?, entry(1)?, entry(2)?, entry(3)?], disk_id: le32(bytes, DISK_ID)? })
}

/// Whether this is a table, and not the code of a file system's boot sector, which ends with the same signature.
pub(super) fn is_plausible(record: &Record, whole: Option<&Found>) -> bool {
    let sane = |entry: &Entry| entry.status & 0x7f == 0 && (entry.kind == 0 || entry.sectors > 0);
    let used = record.entries.iter().any(|entry| entry.is_used());
    record.entries.iter().all(sane) && whole.is_none_or(|found| used && !found.has_boot_sector())
}

pub(super) fn is_protective(record: &Record) -> bool {
    record.entries.iter().any(|entry| entry.kind == PROTECTIVE)
}

/// All partitions of the table, logical ones from number 5 on.
pub(super) fn parse(disk: &Disk, record: &Record, sector: u64, notes: &mut Vec<String>) -> Result<Parsed, Fault> {
    let mut volumes = Vec::new();
    let mut logical = Vec::new();
    for (number, entry) in (1..).zip(record.entries) {
        if !entry.is_used() {
            continue;
        }
        let mut made = volume(number, u64::from(entry.start), entry, sector);
        if entry.is_extended() {
            made.flags.push(EXTENDED);
            let first = logical.len() as u32 + 5;
            logical.extend(chain(disk, entry, first, sector, notes)?);
        }
        volumes.push(made);
    }
    volumes.extend(logical);
    let disk_id = (record.disk_id != 0).then(|| format!("{:08x}", record.disk_id));
    Ok(Parsed { table: Table::Mbr, sector_size: sector, disk_id, volumes })
}

fn volume(number: u32, start: u64, entry: Entry, sector: u64) -> Volume {
    Volume {
        number,
        start: start.saturating_mul(sector),
        length: u64::from(entry.sectors).saturating_mul(sector),
        table: Table::Mbr,
        type_id: format!("{:02x}", entry.kind),
        type_name: mbr_name(entry.kind),
        label: None,
        guid: None,
        flags: if entry.status & 0x80 != 0 { vec!["active"] } else { Vec::new() },
        found: None,
    }
}

/// Follows the tables within an extended partition, each of which has a partition and the place of the next table.
fn chain(disk: &Disk, extended: Entry, first: u32, sector: u64, notes: &mut Vec<String>) -> Result<Vec<Volume>, Fault> {
    let base = u64::from(extended.start);
    let mut volumes = Vec::new();
    let mut seen = BTreeSet::new();
    let mut place = base;
    loop {
        let offset = place.saturating_mul(sector);
        if !seen.insert(place) || seen.len() > MAX_LOGICAL {
            notes.push(format!("the chain of logical partitions does not end; it is left at {offset:#x}"));
            break;
        }
        let bytes = disk.bytes(offset, 512)?;
        let Some(record) = table(&bytes) else {
            // An extended partition that was just made may have no table yet.
            if seen.len() > 1 || bytes.iter().any(|byte| *byte != 0) {
                notes.push(format!("there is no table of logical partitions at {offset:#x}, where one is expected"));
            }
            break;
        };
        let mut next = None;
        for entry in record.entries.into_iter().filter(|entry| entry.is_used()) {
            if entry.is_extended() {
                next = next.or(Some(base.saturating_add(u64::from(entry.start))));
            } else {
                let number = first.saturating_add(volumes.len() as u32);
                volumes.push(volume(number, place.saturating_add(u64::from(entry.start)), entry, sector));
            }
        }
        match next {
            Some(next) => place = next,
            None => break,
        }
    }
    Ok(volumes)
}
