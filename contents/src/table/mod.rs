//! How a disk is divided: GPT, MBR, Apple's partition map, or not at all.

mod apm;
mod gpt;
mod mbr;
mod types;

use crate::disk::{Disk, Fault};
use crate::error::Result;
use crate::probe::{self, Found};

/// The kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// There is none.
    None,
    /// The GUID partition table of UEFI.
    Gpt,
    /// The table of the PC's master boot record.
    Mbr,
    /// Apple's partition map.
    Apm,
}

impl Table {
    /// The name that programs see.
    pub fn name(self) -> &'static str {
        match self {
            Table::None => "none",
            Table::Gpt => "gpt",
            Table::Mbr => "mbr",
            Table::Apm => "apm",
        }
    }
}

/// A partition, or a disk that is not divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Number in the table, from 1 on; 0 for the whole disk.
    pub number: u32,
    /// Byte offset on the disk.
    pub start: u64,
    /// Size in bytes, as the table says.
    pub length: u64,
    /// The table that it is from.
    pub table: Table,
    /// What the table says is in it: a GUID, a number of two digits, or a word.
    pub type_id: String,
    /// The same in words, if it is known.
    pub type_name: Option<&'static str>,
    /// The name that the table gives it.
    pub label: Option<String>,
    /// The GUID that the table gives it.
    pub guid: Option<String>,
    /// What else the table says of it.
    pub flags: Vec<&'static str>,
    /// What was recognised in it.
    pub found: Option<Found>,
}

impl Volume {
    /// Whether its files can be looked at.
    pub fn is_readable(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.reader.is_some())
    }
}

/// How a disk is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The table that counts.
    pub table: Table,
    /// The sector size that the table was made for, in bytes.
    pub sector_size: u64,
    /// The identity of the disk in its table.
    pub disk_id: Option<String>,
    /// What is wrong or remarkable about the table, for a person.
    pub notes: Vec<String>,
    /// The whole disk if it is not divided or has a file system as well, then the partitions in the order of the table.
    pub volumes: Vec<Volume>,
}

/// What a table says, before the file systems are looked for.
struct Parsed {
    table: Table,
    sector_size: u64,
    disk_id: Option<String>,
    volumes: Vec<Volume>,
}

/// The sector sizes of disks.
const SECTOR_SIZES: [u64; 2] = [512, 4096];

/// At the beginning of so many partitions something is looked for, and elsewhere in so many of which nothing is known by
/// then. What this reads stays below [`Limits::held`](crate::Limits) as it is by default.
const MAX_HEADS: usize = 512;
const MAX_RESTS: usize = 64;

/// Finds the table and what is in its partitions.
pub(crate) fn layout(disk: &Disk, sector_size: u64) -> Result<Layout> {
    let size = disk.size();
    // The tables, their copies, and the places by which a file system on the whole disk is recognised.
    let tail = size.saturating_sub(64 << 10);
    disk.want([(0, probe::HEAD), (tail, size - tail)])?;
    let whole = probe::head(disk, 0, size)?;
    let mut notes = Vec::new();
    let parsed = match parse(disk, sector_size, whole.as_ref(), &mut notes)? {
        Some(parsed) => parsed,
        None => Parsed { table: Table::None, sector_size, disk_id: None, volumes: Vec::new() },
    };
    let Parsed { table, sector_size, disk_id, mut volumes } = parsed;
    for volume in volumes.iter_mut().filter(|volume| volume.start.saturating_add(volume.length) > size) {
        volume.flags.push("beyond the end of the disk");
    }
    if volumes.len() > MAX_HEADS {
        notes.push(format!("only the first {MAX_HEADS} of {} partitions were looked into", volumes.len()));
    }
    disk.want(volumes.iter().take(MAX_HEADS).map(|volume| (volume.start, probe::HEAD.min(volume.length))))?;
    for volume in volumes.iter_mut().take(MAX_HEADS) {
        if !volume.flags.contains(&EXTENDED) {
            volume.found = probe::head(disk, volume.start, volume.length)?;
        }
    }
    // Only where nothing was recognised yet is it worth looking at more.
    let unknown = (0..volumes.len()).take(MAX_HEADS).filter(|at| is_unknown(&volumes[*at]));
    let unknown: Vec<usize> = unknown.take(MAX_RESTS).collect();
    disk.want(unknown.iter().flat_map(|at| probe::places(volumes[*at].start, volumes[*at].length)))?;
    for at in unknown {
        volumes[at].found = probe::rest(disk, volumes[at].start, volumes[at].length)?;
    }
    let is_both = whole.as_ref().is_some_and(|found| found.is_beside_a_table());
    if volumes.is_empty() || is_both {
        let found = if table == Table::None && whole.is_none() {
            disk.want(probe::places(0, size))?;
            probe::rest(disk, 0, size)?
        } else {
            whole.filter(|_| table == Table::None || is_both)
        };
        volumes.insert(0, whole_disk(size, found));
    }
    Ok(Layout { table, sector_size, disk_id, notes, volumes })
}

/// What is set for a partition that has no contents but other partitions.
const EXTENDED: &str = "holds the logical partitions";

fn is_unknown(volume: &Volume) -> bool {
    volume.found.is_none() && !volume.flags.contains(&EXTENDED)
}

fn whole_disk(size: u64, found: Option<Found>) -> Volume {
    Volume {
        number: 0,
        start: 0,
        length: size,
        table: Table::None,
        type_id: String::new(),
        type_name: None,
        label: None,
        guid: None,
        flags: Vec::new(),
        found,
    }
}

fn parse(
    disk: &Disk,
    sector_size: u64,
    whole: Option<&Found>,
    notes: &mut Vec<String>,
) -> Result<Option<Parsed>, Fault> {
    let boot = disk.bytes(0, 512)?;
    let mbr = mbr::table(&boot).filter(|table| mbr::is_plausible(table, whole));
    let protective = mbr.as_ref().is_some_and(mbr::is_protective);
    // Without a protective record the table may be what is left from another use of the disk.
    if protective || mbr.is_none() {
        if let Some(parsed) = gpt::parse(disk, protective, sector_size, notes)? {
            if !protective {
                notes.push("there is no protective master boot record before the GPT".into());
            }
            return Ok(Some(parsed));
        }
        if protective {
            notes.push("the master boot record announces a GPT, of which there is no usable copy".into());
        }
    }
    if let Some(parsed) = apm::parse(disk)? {
        return Ok(Some(parsed));
    }
    match mbr {
        Some(table) => mbr::parse(disk, &table, sector_size, notes).map(Some),
        None => Ok(None),
    }
}
