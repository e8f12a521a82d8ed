//! The GUID partition table (UEFI specification, section 5.3).

use std::ops::Range;

use crate::bytes::{guid, has, le32, le64, part, utf16};
use crate::disk::{Disk, Fault};
use crate::table::types::gpt_name;
use crate::table::{Parsed, SECTOR_SIZES, Table, Volume};

const SIGNATURE: &[u8] = b"EFI PART";

/// The specification asks for room for 128 entries; no known tool makes more than a few thousand.
const MAX_ENTRIES: u32 = 16_384;

/// An entry is 128 bytes, unless a later specification makes it longer.
const ENTRY_SIZES: Range<u32> = 128..4097;

/// The fields of a header whose checksum is right.
struct Header {
    sector: u64,
    alternate: u64,
    first_usable: u64,
    last_usable: u64,
    disk_guid: [u8; 16],
    entries: u64,
    count: u32,
    entry_size: u32,
    entries_crc: u32,
}

/// The table from its first copy, or from its second one if that is damaged.
pub(super) fn parse(
    disk: &Disk,
    announced: bool,
    preferred: u64,
    notes: &mut Vec<String>,
) -> Result<Option<Parsed>, Fault> {
    let mut sizes = SECTOR_SIZES;
    if preferred == sizes[1] {
        sizes.reverse();
    }
    let mut problems = Vec::new();
    let mut headers = Vec::new();
    for sector in sizes {
        let place = sector;
        match header(disk, place, sector)? {
            Ok(header) => headers.push(header),
            Err(problem) => problems.extend(problem.map(|problem| (place, problem))),
        }
    }
    for header in &headers {
        match entries(disk, header)? {
            Ok(volumes) => {
                check(disk, header, &volumes, notes);
                if !backup_is_good(disk, header)? {
                    notes.push(format!(
                        "the second copy of the GPT, at {:#x}, is damaged or missing",
                        header.alternate.saturating_mul(header.sector)
                    ));
                }
                return Ok(Some(parsed(header, volumes)));
            }
            Err(problem) => problems.push((header.sector, problem)),
        }
    }
    // The last sector is where the copy belongs; the header says where it is if the disk has grown since.
    let mut places: Vec<(u64, u64)> =
        headers.iter().map(|header| (header.alternate.saturating_mul(header.sector), header.sector)).collect();
    places.extend(sizes.map(|sector| ((disk.size() / sector).saturating_sub(1).saturating_mul(sector), sector)));
    for (place, sector) in places {
        if place < sector {
            continue;
        }
        let header = match header(disk, place, sector)? {
            Ok(header) => header,
            Err(problem) => {
                problems.extend(problem.map(|problem| (place, problem)));
                continue;
            }
        };
        match entries(disk, &header)? {
            Ok(volumes) => {
                let why = match problems.first() {
                    Some((place, problem)) => format!("is damaged (at {place:#x}: {problem})"),
                    None => "is missing".into(),
                };
                notes.push(format!("the first copy of the GPT {why}; this is the second one, from {place:#x}"));
                check(disk, &header, &volumes, notes);
                return Ok(Some(parsed(&header, volumes)));
            }
            Err(problem) => problems.push((place, problem)),
        }
    }
    if announced {
        notes.extend(problems.into_iter().map(|(place, problem)| format!("GPT at {place:#x}: {problem}")));
    }
    Ok(None)
}

fn parsed(header: &Header, volumes: Vec<Volume>) -> Parsed {
    Parsed { table: Table::Gpt, sector_size: header.sector, disk_id: Some(guid(header.disk_guid)), volumes }
}

/// The header at `place`, what is wrong with it, or nothing if there is none.
fn header(disk: &Disk, place: u64, sector: u64) -> Result<Result<Header, Option<String>>, Fault> {
    let bytes = disk.bytes(place, sector)?;
    if bytes.len() as u64 != sector || !has(&bytes, 0, SIGNATURE) {
        return Ok(Err(None));
    }
    Ok(fields(&bytes, place, sector).map_err(Some))
}

fn fields(bytes: &[u8], place: u64, sector: u64) -> Result<Header, String> {
    let short = || "the header is cut short".to_owned();
    let size = le32(bytes, 12).ok_or_else(short)?;
    if !(92..=sector).contains(&u64::from(size)) {
        return Err(format!("its header is {size} bytes long, not 92 to {sector}"));
    }
    let mut checked = bytes.get(..size as usize).ok_or_else(short)?.to_vec();
    let stored = le32(&checked, 16).ok_or_else(short)?;
    checked[16..20].fill(0);
    let crc = crc32fast::hash(&checked);
    if crc != stored {
        return Err(format!("the checksum of its header is {stored:#010x}, expected {crc:#010x}"));
    }
    let own = le64(bytes, 24).ok_or_else(short)?;
    if own.checked_mul(sector) != Some(place) {
        return Err(format!("its header says that it is in sector {own}"));
    }
    let header = Header {
        sector,
        alternate: le64(bytes, 32).ok_or_else(short)?,
        first_usable: le64(bytes, 40).ok_or_else(short)?,
        last_usable: le64(bytes, 48).ok_or_else(short)?,
        disk_guid: part(bytes, 56).ok_or_else(short)?,
        entries: le64(bytes, 72).ok_or_else(short)?,
        count: le32(bytes, 80).ok_or_else(short)?,
        entry_size: le32(bytes, 84).ok_or_else(short)?,
        entries_crc: le32(bytes, 88).ok_or_else(short)?,
    };
    if !ENTRY_SIZES.contains(&header.entry_size) || !header.entry_size.is_multiple_of(8) {
        return Err(format!("its entries are {} bytes each, not 128 or a multiple of it", header.entry_size));
    }
    if header.count > MAX_ENTRIES {
        return Err(format!("it has {} entries, more than {MAX_ENTRIES}", header.count));
    }
    Ok(header)
}

fn entry_bytes(disk: &Disk, header: &Header) -> Result<Result<Vec<u8>, String>, Fault> {
    let length = u64::from(header.count) * u64::from(header.entry_size);
    let place = header.entries.saturating_mul(header.sector);
    if place.checked_add(length).is_none_or(|end| end > disk.size()) {
        return Ok(Err(format!("its {length} bytes of entries at {place:#x} are beyond the end of the disk")));
    }
    let bytes = disk.bytes(place, length)?;
    let crc = crc32fast::hash(&bytes);
    if crc != header.entries_crc {
        let stored = header.entries_crc;
        return Ok(Err(format!("the checksum of its entries at {place:#x} is {stored:#010x}, expected {crc:#010x}")));
    }
    Ok(Ok(bytes))
}

fn entries(disk: &Disk, header: &Header) -> Result<Result<Vec<Volume>, String>, Fault> {
    let bytes = match entry_bytes(disk, header)? {
        Ok(bytes) => bytes,
        Err(problem) => return Ok(Err(problem)),
    };
    let entries = bytes.chunks_exact(header.entry_size as usize);
    Ok(Ok((1..).zip(entries).filter_map(|(number, entry)| volume(header.sector, number, entry)).collect()))
}

fn volume(sector: u64, number: u32, entry: &[u8]) -> Option<Volume> {
    let kind: [u8; 16] = part(entry, 0)?;
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_sub(first).map_or(0, |span| span.saturating_add(1));
    let type_id = guid(kind);
    let attributes = le64(entry, 48)?;
    let mut flags = Vec::new();
    for (bit, name) in [(0, "required by the platform"), (1, "hidden from UEFI"), (2, "bootable")] {
        if attributes >> bit & 1 == 1 {
            flags.push(name);
        }
    }
    // Microsoft gives meanings to the upper bits of its own type, and others follow.
    for (bit, name) in [(60, "read-only"), (62, "hidden"), (63, "not mounted by itself")] {
        if attributes >> bit & 1 == 1 {
            flags.push(name);
        }
    }
    if sectors == 0 {
        flags.push("ends before it begins");
    }
    Some(Volume {
        number,
        start: first.saturating_mul(sector),
        length: sectors.saturating_mul(sector),
        table: Table::Gpt,
        type_name: gpt_name(&type_id),
        type_id,
        label: utf16(entry.get(56..128)?, false),
        guid: Some(guid(part(entry, 16)?)),
        flags,
        found: None,
    })
}

fn backup_is_good(disk: &Disk, first: &Header) -> Result<bool, Fault> {
    let place = first.alternate.saturating_mul(first.sector);
    let Ok(second) = header(disk, place, first.sector)? else { return Ok(false) };
    Ok(second.disk_guid == first.disk_guid && entry_bytes(disk, &second)?.is_ok())
}

/// Says what contradicts itself in a table whose checksums are right.
fn check(disk: &Disk, header: &Header, volumes: &[Volume], notes: &mut Vec<String>) {
    let last = (disk.size() / header.sector).saturating_sub(1);
    let end = header.alternate.max(header.entries).max(header.last_usable);
    if end > last {
        notes.push(format!(
            "the GPT was made for a disk of {} sectors, this one has {}",
            end.saturating_add(1),
            last + 1
        ));
    } else if header.alternate > 1 && header.alternate < last {
        notes.push(format!("the disk has {} sectors beyond the end of its GPT", last - header.alternate));
    }
    let mut by_start: Vec<&Volume> = volumes.iter().filter(|volume| volume.length > 0).collect();
    by_start.sort_by_key(|volume| volume.start);
    for pair in by_start.windows(2) {
        if pair[0].start.saturating_add(pair[0].length) > pair[1].start {
            notes.push(format!("the partitions {} and {} overlap", pair[0].number, pair[1].number));
        }
    }
    let usable = header.first_usable.saturating_mul(header.sector)
        ..header.last_usable.saturating_add(1).saturating_mul(header.sector);
    for volume in by_start {
        if volume.start < usable.start || volume.start.saturating_add(volume.length) > usable.end {
            notes.push(format!("partition {} is not within the usable part of the disk", volume.number));
        }
    }
}
