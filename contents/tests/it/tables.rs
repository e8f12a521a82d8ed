//! Partition tables, against sfdisk and parted.

use std::fs;
use std::path::Path;

use diskette_contents::{Layout, Limits, Table, Volume};
use serde_json::Value;

use crate::host::{Host, Source, blank, feed, smallest, text, tool};

/// What sfdisk says of a partition.
#[derive(Debug, PartialEq)]
struct Said {
    start: u64,
    size: u64,
    kind: String,
    name: Option<String>,
    guid: Option<String>,
    active: bool,
}

fn sfdisk(path: &Path, sector: u64) -> (String, Vec<Said>) {
    let device = Device::of(path, sector);
    let json = tool("sfdisk", &["--json", device.path()]);
    let json: Value = serde_json::from_str(&json).expect("sfdisk prints JSON");
    let table = &json["partitiontable"];
    let text_of = |value: &Value| value.as_str().map(str::to_owned);
    let partitions = table["partitions"].as_array().cloned().unwrap_or_default();
    let partitions = partitions.iter().map(|part| Said {
        start: part["start"].as_u64().expect("a start") * sector,
        size: part["size"].as_u64().expect("a size") * sector,
        kind: part["type"].as_str().expect("a type").to_lowercase(),
        name: text_of(&part["name"]),
        guid: text_of(&part["uuid"]).map(|guid| guid.to_lowercase()),
        active: part["bootable"].as_bool().unwrap_or(false),
    });
    (table["id"].as_str().unwrap_or_default().to_lowercase(), partitions.collect())
}

fn said(volume: &Volume) -> Said {
    Said {
        start: volume.start,
        size: volume.length,
        kind: match volume.table {
            // sfdisk leaves leading zeroes out.
            Table::Mbr => volume.type_id.trim_start_matches('0').to_owned(),
            _ => volume.type_id.clone(),
        },
        name: volume.label.clone(),
        guid: volume.guid.clone(),
        active: volume.flags.contains(&"active"),
    }
}

fn layout(path: &Path, sector: u64) -> Layout {
    let read = |limits| {
        let file = fs::File::open(path).expect("the image can be opened");
        let size = file.metadata().expect("a size").len();
        Host::with_sectors(Source::File(file, size), limits, sector).layout()
    };
    let layout = read(Limits::default());
    assert_eq!(layout, read(smallest()), "the size of the cache makes no difference");
    layout
}

/// The table is as sfdisk sees it; gives the layout.
fn agrees(path: &Path, sector: u64) -> Layout {
    let layout = layout(path, sector);
    let (id, partitions) = sfdisk(path, sector);
    let ours: Vec<Said> = layout.volumes.iter().filter(|volume| volume.number > 0).map(said).collect();
    assert_eq!(ours, partitions);
    assert_eq!(layout.disk_id.as_deref().unwrap_or_default(), id.trim_start_matches("0x"));
    assert_eq!(layout.sector_size, sector);
    layout
}

fn with_table(script: &str, size: u64, sector: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    blank(&path, size);
    feed("sfdisk", &["--quiet", Device::of(&path, sector).path()], script);
    (folder, path)
}

/// A file, or a device with large sectors that is one.
enum Device<'a> {
    File(&'a str),
    Loop(String),
}

impl<'a> Device<'a> {
    fn of(path: &'a Path, sector: u64) -> Self {
        if sector == 512 {
            return Device::File(text(path));
        }
        let sector = sector.to_string();
        Device::Loop(tool("losetup", &["--sector-size", &sector, "--find", "--show", text(path)]).trim().to_owned())
    }

    fn path(&self) -> &str {
        match self {
            Device::File(path) => path,
            Device::Loop(path) => path,
        }
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if let Device::Loop(path) = self {
            tool("losetup", &["--detach", path]);
        }
    }
}

/// Whether this machine lets us make devices, which is up to its kernel and to who we are.
fn has_devices() -> bool {
    let has = fs::metadata("/dev/loop-control").is_ok() && tool("id", &["-u"]).trim() == "0";
    if !has {
        eprintln!("left out what needs loop devices, of which there are none");
    }
    has
}

const GPT: &str = "label: gpt
label-id: 11223344-5566-7788-99AA-BBCCDDEEFF00
first-lba: 34
size=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI größe 日本\"
size=2MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=\"thirty-six letters are the longest..\"
start=12MiB, size=1MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, attrs=\"RequiredPartition LegacyBIOSBootable GUID:60,63\"
size=512KiB, type=12345678-1234-1234-1234-123456789ABC
";

#[test]
fn gpt_is_read_as_sfdisk_reads_it() {
    let (_folder, path) = with_table(GPT, 32 << 20, 512);
    let layout = agrees(&path, 512);
    assert_eq!((layout.table, layout.notes), (Table::Gpt, vec![]));
    let names: Vec<_> = layout.volumes.iter().map(|volume| volume.type_name).collect();
    assert_eq!(names, [Some("EFI system"), Some("Linux file system"), Some("Linux swap"), None]);
    assert_eq!(layout.volumes[2].flags, ["required by the platform", "bootable", "read-only", "not mounted by itself"]);
}

#[test]
fn gpt_of_large_sectors_is_found_whatever_the_host_believes() {
    if !has_devices() {
        return;
    }
    let (_folder, path) = with_table(&GPT.replace("first-lba: 34", "first-lba: 64"), 32 << 20, 4096);
    assert_eq!(agrees(&path, 4096).table, Table::Gpt);
    assert_eq!(layout(&path, 512).volumes, layout(&path, 4096).volumes);
}

#[test]
fn gpt_may_have_many_partitions() {
    let mut script = "label: gpt\ntable-length: 300\n".to_owned();
    for number in 0..290 {
        script.push_str(&format!("size=64KiB, name=\"part {number}\"\n"));
    }
    let (_folder, path) = with_table(&script, 512 << 20, 512);
    assert_eq!(agrees(&path, 512).volumes.len(), 290);
}

#[test]
fn partitions_are_listed_even_if_they_are_too_many_to_look_into() {
    let script = format!("label: gpt\ntable-length: 1000\n{}", "size=1MiB\n".repeat(1000));
    let (_folder, path) = with_table(&script, 1002 << 20, 512);
    let layout = agrees(&path, 512);
    assert_eq!(layout.volumes.len(), 1000);
    assert!(layout.notes[0].ends_with("first 512 of 1000 partitions were looked into"), "{:?}", layout.notes);
}

#[test]
fn the_second_gpt_takes_the_place_of_a_damaged_first_one() {
    let (_folder, path) = with_table(GPT, 32 << 20, 512);
    let whole = fs::read(&path).expect("the image");
    let before = layout(&path, 512);
    // The signature, the header, its checksum, the first entry, the last byte of the entries.
    for (place, why) in [
        (512, "is missing"),
        (512 + 40, "the checksum of its header"),
        (512 + 16, "the checksum of its header"),
        (1024 + 3, "the checksum of its entries"),
        (1024 + 128 * 128 - 1, "the checksum of its entries"),
    ] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0xff;
        fs::write(&path, &bytes).expect("the image can be written");
        let after = agrees(&path, 512);
        assert_eq!((after.table, &after.volumes), (Table::Gpt, &before.volumes));
        assert!(after.notes[0].contains(why), "{:?}", after.notes);
    }
    // And the other way round.
    let mut bytes = whole.clone();
    let last = bytes.len() - 512;
    bytes[last + 60] ^= 1;
    fs::write(&path, &bytes).expect("the image can be written");
    let after = agrees(&path, 512);
    assert_eq!(after.volumes, before.volumes);
    assert!(after.notes[0].starts_with("the second copy of the GPT"), "{:?}", after.notes);
}

#[test]
fn a_gpt_without_a_good_copy_is_said_to_be_damaged() {
    let (_folder, path) = with_table(GPT, 32 << 20, 512);
    let mut bytes = fs::read(&path).expect("the image");
    let last = bytes.len() - 512;
    bytes[512 + 60] ^= 1;
    bytes[last + 60] ^= 1;
    let layout = Host::of_bytes(bytes, Limits::default()).layout();
    assert_eq!(layout.table, Table::Mbr);
    assert_eq!(layout.volumes[0].type_name, Some("GPT protective"));
    assert_eq!(layout.notes.len(), 3, "{:?}", layout.notes);
}

#[test]
fn a_disk_that_was_cut_or_grew_keeps_its_gpt() {
    let (_folder, path) = with_table(GPT, 32 << 20, 512);
    let bytes = fs::read(&path).expect("the image");
    let before = layout(&path, 512);
    let cut = Host::of_bytes(bytes[..13 << 20].to_vec(), Limits::default()).layout();
    let places = |layout: &Layout| layout.volumes.iter().map(|v| (v.start, v.length)).collect::<Vec<_>>();
    assert_eq!(places(&cut), places(&before));
    assert!(cut.notes.iter().any(|note| note.contains("made for a disk of 65536 sectors")), "{:?}", cut.notes);
    let mut grown = bytes;
    grown.resize(48 << 20, 0);
    let grown = Host::of_bytes(grown, Limits::default()).layout();
    assert_eq!(grown.volumes, before.volumes);
    assert!(grown.notes.iter().any(|note| note.contains("beyond the end of its GPT")), "{:?}", grown.notes);
}

#[test]
fn mbr_is_read_as_sfdisk_reads_it() {
    let mut script = "label: dos\nlabel-id: 0xdeadbeef\n".to_owned();
    script.push_str("size=1MiB, type=c, bootable\nsize=2MiB, type=83\nsize=40MiB, type=f\nsize=1MiB, type=7\n");
    for number in 0..11 {
        script.push_str(&format!(
            "size={}KiB, type={}\n",
            512 + number * 64,
            if number % 2 == 0 { "83" } else { "82" }
        ));
    }
    let (_folder, path) = with_table(&script, 64 << 20, 512);
    let layout = agrees(&path, 512);
    assert_eq!((layout.table, layout.notes), (Table::Mbr, vec![]));
    assert_eq!(layout.volumes.len(), 15);
    assert_eq!(layout.volumes.iter().map(|volume| volume.number).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
    assert_eq!(layout.volumes[2].flags, ["holds the logical partitions"]);
}

#[test]
fn every_mbr_type_is_told() {
    for kinds in (1..=255_u8).collect::<Vec<_>>().chunks(3) {
        let mut script = "label: dos\n".to_owned();
        // Extended partitions and the protective one are tested elsewhere.
        for kind in kinds.iter().filter(|kind| !matches!(kind, 0x05 | 0x0f | 0x85 | 0xee)) {
            script.push_str(&format!("size=64KiB, type={kind:x}\n"));
        }
        let (_folder, path) = with_table(&script, 8 << 20, 512);
        agrees(&path, 512);
    }
}

#[test]
fn empty_tables_are_tables() {
    for (script, table) in [("label: gpt\n", Table::Gpt), ("label: dos\n", Table::Mbr)] {
        let (_folder, path) = with_table(script, 8 << 20, 512);
        let layout = agrees(&path, 512);
        assert_eq!((layout.table, layout.volumes.len()), (table, 1));
        assert_eq!((layout.volumes[0].number, layout.volumes[0].table), (0, Table::None));
    }
}

#[test]
fn a_chain_of_logical_partitions_that_turns_in_a_circle_ends() {
    let script = "label: dos\nsize=20MiB, type=5\nsize=1MiB, type=83\nsize=1MiB, type=83\n";
    let (_folder, path) = with_table(script, 32 << 20, 512);
    let before = layout(&path, 512);
    let mut bytes = fs::read(&path).expect("the image");
    // The second table of the chain names the first one as the next.
    let second = 2048 * 512 + u32::from_le_bytes(bytes[2048 * 512 + 470..][..4].try_into().unwrap()) as usize * 512;
    bytes[second + 462..second + 478].copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
    let after = Host::of_bytes(bytes, Limits::default()).layout();
    assert_eq!(after.volumes, before.volumes);
    assert!(after.notes[0].contains("does not end"), "{:?}", after.notes);
}

#[test]
fn apm_is_read_as_parted_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    blank(&path, 32 << 20);
    let script = ["-s", text(&path), "mklabel", "mac"];
    let parts = ["mkpart", "first", "hfs", "1MiB", "5MiB", "mkpart", "second", "ext2", "6MiB", "20MiB"];
    tool("parted", &[&script[..], &parts].concat());
    let printed = tool("parted", &["-sm", text(&path), "unit", "B", "print"]);
    let number = |field: &str| field.trim_end_matches('B').parse::<u64>().expect("a number");
    let said: Vec<(u64, u64, u64, String)> = printed
        .lines()
        .skip(2)
        .map(|line| line.split(':').collect::<Vec<_>>())
        .map(|fields| (number(fields[0]), number(fields[1]), number(fields[3]), fields[5].to_owned()))
        .filter(|(.., name)| name != "Apple")
        .collect();
    let layout = layout(&path, 512);
    let ours: Vec<(u64, u64, u64, String)> = layout
        .volumes
        .iter()
        .map(|v| (v.number.into(), v.start, v.length, v.label.clone().unwrap_or_default()))
        .collect();
    assert_eq!(layout.table, Table::Apm);
    assert_eq!(ours, said);
    assert_eq!(layout.volumes[0].type_name, Some("Apple HFS or HFS+"));
}

#[test]
fn an_empty_disk_is_one_volume() {
    for size in [0, 1, 511, 512, 4096, 1 << 20] {
        let layout = Host::of_bytes(vec![0; size], Limits::default()).layout();
        assert_eq!((layout.table, layout.volumes.len()), (Table::None, 1));
        assert_eq!((layout.volumes[0].length, layout.volumes[0].is_readable()), (size as u64, false));
    }
}
