//! The structure of an image is what its bytes say, read here at the places of the specification, and what qemu-img says; and
//! every byte of a file is in one region.

use std::collections::BTreeMap;
use std::sync::Arc;

use diskette::drivers::{Drivers, OpenOptions};
use diskette::structure::{MAX_PARTS, Part, PartKind, Parts, Region, RegionKind, StructureContext, look};
use diskette::{Budgets, ErrorKind, Memory, Node, NodeInfo, Op, Range, ReadFlags, Role, block_on};
use serde_json::Value;

use crate::regions::by_kind;
use crate::support::{
    Random, Scratch, create, create_as, create_in, keyring, open, oracle, with_files, writable, write,
};

pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

pub fn be(bytes: &[u8], at: u64, len: u64) -> u64 {
    bytes[at as usize..(at + len) as usize].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A file of bytes that are somebody else's.
struct File<'a>(&'a [u8]);

impl Node for File<'_> {
    fn info(&self) -> NodeInfo {
        NodeInfo::plain(self.0.len() as u64)
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        into.copy_from_slice(&self.0[at as usize..at as usize + into.len()]);
        Op::ok(())
    }
}

fn parts_of(bytes: &[u8], format: &str, path: &[u64], from: u64, count: usize) -> diskette::Result<Parts> {
    let context = StructureContext { file: &File(bytes), data_file: None, header: None, path, from, count };
    let driver = Drivers::all().by_name(format).unwrap();
    block_on(look(driver, context))
}

/// All parts at a path.
fn all(bytes: &[u8], path: &[u64]) -> Vec<Part> {
    let mut parts = Vec::new();
    loop {
        let page = parts_of(bytes, "qcow2", path, parts.len() as u64, 1000).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        parts.extend(page.parts);
        if parts.len() as u64 >= page.total {
            return parts;
        }
    }
}

/// The path of the part at the end of a chain of names.
fn path_to(bytes: &[u8], names: &[&str]) -> Vec<u64> {
    let mut path = Vec::new();
    for name in names {
        let parts = all(bytes, &path);
        let index = parts.iter().position(|part| part.name == *name);
        let known: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        path.push(index.unwrap_or_else(|| panic!("no '{name}' at {path:?}, but {known:?}")) as u64);
    }
    path
}

/// Goes through the whole tree, or of long tables through the first and last parts, and gives every part with its path.
fn walk(bytes: &[u8], format: &str, limit: u64) -> Vec<(Vec<u64>, Part)> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let first = parts_of(bytes, format, &path, 0, limit as usize).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let tail = first.total.saturating_sub(2).max(first.parts.len() as u64);
        let last = parts_of(bytes, format, &path, tail, 2).unwrap();
        assert_eq!((first.total, last.parts.len() as u64), (last.total, first.total - tail), "{path:?}");
        for (index, part) in (0u64..).zip(first.parts).chain((tail..).zip(last.parts)) {
            let mut path = path.clone();
            path.push(index);
            assert!(!part.doc.is_empty() && !part.name.is_empty(), "{path:?}: {part:?}");
            if part.children > 0 {
                let inside = parts_of(bytes, format, &path, 0, 1).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                assert_eq!(inside.total, part.children, "{path:?}: {part:?}");
                open.push(path.clone());
            } else {
                let error = parts_of(bytes, format, &path, 0, 1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{path:?}: {error}");
            }
            found.push((path, part));
        }
    }
    found
}

/// Options under which images are made, with 8 MiB of disk.
pub const KINDS: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=1k,refcount_bits=64",
    "cluster_size=2M,lazy_refcounts=on",
    "cluster_size=16k,extended_l2=on",
    "compat=0.10,cluster_size=4k",
    "cluster_size=4k,compression_type=zstd",
];
pub const SIZE: u64 = 8 << 20;

/// An image of QEMU's with data, zeroes, compressed clusters, snapshots and bitmaps, as far as it can have them.
pub fn made(scratch: &Scratch, options: &str) -> (String, Vec<u8>) {
    let path = scratch.path("image.qcow2");
    let base = scratch.path("the base.raw");
    std::fs::write(&base, vec![5; 1 << 20]).unwrap();
    let size = SIZE.to_string();
    oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "-b", &base, "-F", "raw", &path, &size]);
    let io = |command: &str| drop(oracle("qemu-io", &["-f", "qcow2", "-c", command, &path]));
    io("write -P 1 0 300k");
    io("write -c -P 2 2M 2M");
    if can_share(options) {
        oracle("qemu-img", &["snapshot", "-c", "first", &path]);
    }
    io("write -P 3 100k 200k");
    if !options.contains("0.10") {
        io("write -z 5M 1M");
        oracle("qemu-img", &["bitmap", "--add", "--enable", "-g", "64k", &path, "changes"]);
        io("write -P 4 7M 100k");
        oracle("qemu-img", &["bitmap", "--add", "--disable", &path, "off"]);
    }
    if can_share(options) {
        oracle("qemu-img", &["snapshot", "-c", "the second", &path]);
    }
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

/// Whether a cluster can be referred to more than once.
pub fn can_share(options: &str) -> bool {
    !options.contains("refcount_bits=1")
}

pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&oracle("qemu-img", args)).unwrap()
}

/// The header as the specification has it: name, place, length.
const HEADER: &[(&str, u64, u64)] = &[
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
];

/// The first number in a text.
fn shown(part: &Part) -> u64 {
    let text = part.value.as_deref().unwrap_or_default();
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{part:?}"))
}

fn check_header(bytes: &[u8]) {
    let version = be(bytes, 4, 4);
    let parts = all(bytes, &path_to(bytes, &["header"]));
    let expected: Vec<_> = HEADER.iter().filter(|(_, at, _)| version == 3 || *at < 72).collect();
    for (part, (name, at, len)) in parts.iter().zip(&expected) {
        assert_eq!((part.name.as_str(), part.place.range), (*name, Range::new(*at, *len)));
        assert_eq!(shown(part), be(bytes, *at, *len), "{name}");
        assert_eq!(part.problem, None, "{name}");
    }
    assert!(parts.len() >= expected.len());
}

/// What L2 entries say that the guest sees: offset in the disk, what is there, offset in the file.
type Mapped = BTreeMap<u64, (char, u64)>;

/// Reads the tables at the places of the specification.
fn mapped_by_bytes(bytes: &[u8], l1: u64, entries: u64) -> Mapped {
    let (version, cluster) = (be(bytes, 4, 4), 1 << be(bytes, 20, 4));
    let incompatible = if version == 3 { be(bytes, 72, 8) } else { 0 };
    let width = if incompatible & 16 != 0 { 16 } else { 8 };
    let mut mapped = Mapped::new();
    for index in 0..entries {
        let table = be(bytes, l1 + index * 8, 8) & OFFSET;
        if table == 0 {
            continue;
        }
        for entry in 0..cluster / width {
            let word = be(bytes, table + entry * width, 8);
            let guest = (index * (cluster / width) + entry) * cluster;
            if word >> 62 & 1 == 1 {
                let bits = 62 - (be(bytes, 20, 4) - 8);
                mapped.insert(guest, ('c', word & ((1 << bits) - 1)));
            } else if width == 16 {
                let bitmap = be(bytes, table + entry * 16 + 8, 8);
                for sub in 0..32 {
                    let place = guest + sub * cluster / 32;
                    if bitmap >> sub & 1 == 1 {
                        mapped.insert(place, ('d', (word & OFFSET) + sub * cluster / 32));
                    } else if bitmap >> (32 + sub) & 1 == 1 {
                        mapped.insert(place, ('z', 0));
                    }
                }
            } else if word & 1 == 1 {
                mapped.insert(guest, ('z', 0));
            } else if word & OFFSET != 0 {
                mapped.insert(guest, ('d', word & OFFSET));
            }
        }
    }
    mapped
}

/// What the parts below an L1 table say.
fn mapped_by_parts(bytes: &[u8], l1: &[u64]) -> Mapped {
    let mut mapped = Mapped::new();
    let mut note = |part: &Part| {
        let (guest, value) = (part.guest.expect("it is about a range").start, part.value.as_deref().unwrap());
        let host = part.target.map_or(0, |target| target.range.start);
        let kind = match value {
            value if value.starts_with("compressed") => 'c',
            value if value.starts_with("data") => 'd',
            value if value.starts_with("zeroes") => 'z',
            _ => return,
        };
        mapped.insert(guest, (kind, if kind == 'z' { 0 } else { host }));
    };
    for (index, entry) in (0u64..).zip(all(bytes, l1)) {
        assert_eq!(entry.problem, None, "{entry:?}");
        let mut path = [l1, &[index]].concat();
        let inside = all(bytes, &path);
        let Some(table) = inside.iter().position(|part| part.name == "L2 table") else { continue };
        path.push(table as u64);
        for (index, entry) in (0u64..).zip(all(bytes, &path)) {
            assert_eq!(entry.problem, None, "{entry:?}");
            let value = entry.value.as_deref().unwrap();
            if !value.contains("subclusters") {
                note(&entry);
                continue;
            }
            let mut path = [&path[..], &[index]].concat();
            let position = all(bytes, &path).iter().position(|part| part.name == "subclusters").unwrap();
            path.push(position as u64);
            all(bytes, &path).iter().for_each(&mut note);
        }
    }
    mapped
}

/// What `qemu-img map` says is stored as it is: disk offset, file offset and length.
fn theirs(path: &str) -> Vec<(u64, u64, u64)> {
    let map = json(&["map", "--output=json", path]);
    let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    let extents = map.as_array().unwrap().iter();
    let stored = extents.filter(|extent| extent["depth"] == 0 && extent["data"] == true && extent["offset"].is_u64());
    stored.map(|extent| (number(extent, "start"), number(extent, "offset"), number(extent, "length"))).collect()
}

#[test]
fn every_table_is_what_the_bytes_say() {
    for options in KINDS {
        let scratch = Scratch::new("structure");
        let (path, bytes) = made(&scratch, options);
        check_header(&bytes);
        let found = walk(&bytes, "qcow2", 40);
        for (path, part) in &found {
            assert_eq!(part.problem, None, "{options} {path:?}: {part:?}");
            assert_eq!(part.place.role, Role::File);
            assert!(part.place.range.end() <= bytes.len() as u64, "{options} {path:?}: {part:?}");
        }
        // The mapping: by the bytes, by the parts, by QEMU.
        let l1 = path_to(&bytes, &["L1 table"]);
        let parts = mapped_by_parts(&bytes, &l1);
        assert_eq!(parts, mapped_by_bytes(&bytes, be(&bytes, 40, 8), be(&bytes, 36, 4)), "{options}");
        let unit = if options.contains("extended") { 512 } else { 1 << be(&bytes, 20, 4) };
        let mut stored = 0;
        for (start, offset, length) in theirs(&path) {
            for at in (0..length).step_by(unit as usize) {
                assert_eq!(parts.get(&(start + at)), Some(&('d', offset + at)), "{options} at {:#x}", start + at);
                stored += 1;
            }
        }
        assert_eq!(parts.values().filter(|(kind, _)| *kind == 'd').count(), stored, "{options}");
        // Snapshots, each with a table of its own.
        let info = json(&["info", "--output=json", &path]);
        let snapshots = info["snapshots"].as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(snapshots.len(), if can_share(options) { 2 } else { 0 }, "{options}");
        let table = if snapshots.is_empty() { Vec::new() } else { path_to(&bytes, &["snapshot table"]) };
        let entries = if snapshots.is_empty() { Vec::new() } else { all(&bytes, &table) };
        assert_eq!(entries.len(), snapshots.len(), "{options}");
        let mut at = be(&bytes, 64, 8);
        for (index, (entry, theirs)) in entries.iter().zip(snapshots).enumerate() {
            let (id, name) = (theirs["id"].as_str().unwrap(), theirs["name"].as_str().unwrap());
            assert_eq!(entry.value.as_deref(), Some(&*format!("'{name}', identifier {id}")), "{options}");
            assert_eq!(entry.place.range.start, at, "{options}");
            at = entry.place.range.end();
            let inside = all(&bytes, &[&table[..], &[index as u64]].concat());
            let value = |name: &str| shown(inside.iter().find(|part| part.name == name).unwrap());
            assert_eq!(value("date_sec"), theirs["date-sec"].as_u64().unwrap(), "{options}");
            let own = entry.place.range.start;
            let (place, entries) = (be(&bytes, own, 8), be(&bytes, own + 8, 4));
            let l1 = path_to(&bytes, &["snapshot table", &entry.name, "L1 table"]);
            assert_eq!(mapped_by_parts(&bytes, &l1), mapped_by_bytes(&bytes, place, entries), "{options} {name}");
        }
        // Bitmaps.
        if let Some(bitmaps) = info["format-specific"]["data"]["bitmaps"].as_array() {
            let directory = all(&bytes, &path_to(&bytes, &["bitmap directory"]));
            let names: Vec<String> =
                bitmaps.iter().map(|bitmap| format!("'{}'", bitmap["name"].as_str().unwrap())).collect();
            let ours: Vec<String> = directory.iter().map(|entry| entry.value.clone().unwrap()).collect();
            assert_eq!(ours, names, "{options}");
        } else {
            assert!(options.contains("0.10"), "{options}: {info}");
        }
        // The name of the backing file and its format.
        let name = info["backing-filename"].as_str().unwrap();
        let root = all(&bytes, &[]);
        let part = root.iter().find(|part| part.name == "backing file name").unwrap();
        assert_eq!(part.value.as_deref(), Some(name), "{options}");
        let Range { start, len } = part.place.range;
        assert_eq!(&bytes[start as usize..(start + len) as usize], name.as_bytes(), "{options}");
        let format = all(&bytes, &path_to(&bytes, &["header extensions", "backing format"]));
        assert!(format.iter().any(|part| part.value.as_deref() == Some("raw")), "{options}: {format:?}");
    }
}

#[test]
fn refcounts_are_what_the_bytes_say() {
    for options in KINDS {
        let scratch = Scratch::new("refcounts");
        let (_, bytes) = made(&scratch, options);
        let cluster = 1u64 << be(&bytes, 20, 4);
        let bits = 1u64 << if be(&bytes, 4, 4) == 3 { be(&bytes, 96, 4) } else { 4 };
        let per_block = cluster * 8 / bits;
        let table = path_to(&bytes, &["refcount table"]);
        let entries = all(&bytes, &table);
        assert_eq!(entries.len() as u64, (be(&bytes, 56, 4) * cluster) / 8, "{options}");
        let mut seen = 0;
        for (index, entry) in (0u64..).zip(&entries) {
            let block = be(&bytes, be(&bytes, 48, 8) + index * 8, 8);
            assert_eq!(entry.target.map(|target| target.range.start), (block != 0).then_some(block), "{options}");
            if block == 0 {
                continue;
            }
            let path = path_to(&bytes, &["refcount table", &entry.name, "refcount block"]);
            let counts = all(&bytes, &path);
            assert_eq!(counts.len() as u64, per_block, "{options}");
            for (within, part) in (0u64..).zip(&counts) {
                let number = index * per_block + within;
                let expected = if bits < 8 {
                    be(&bytes, block + within * bits / 8, 1) >> (within * bits % 8) & ((1 << bits) - 1)
                } else {
                    be(&bytes, block + within * bits / 8, bits / 8)
                };
                assert_eq!((part.name.clone(), shown(part)), (format!("cluster {number}"), expected), "{options}");
                seen += u64::from(expected > 0);
                if expected > 0 {
                    assert_eq!(part.target.unwrap().range.start, number * cluster, "{options}");
                }
            }
        }
        assert!(seen > 5, "{options}");
        // A page begins anywhere.
        let path = path_to(&bytes, &["refcount table", "entry 0", "refcount block"]);
        for from in [1, 7, 9, per_block - 1, per_block, u64::MAX] {
            let page = parts_of(&bytes, "qcow2", &path, from, 3).unwrap();
            let names: Vec<String> = page.parts.into_iter().map(|part| part.name).collect();
            let expected: Vec<String> =
                (from..from.saturating_add(3)).filter(|at| *at < per_block).map(|at| format!("cluster {at}")).collect();
            assert_eq!(names, expected, "{options} from {from}");
        }
    }
}

#[test]
fn a_page_is_as_long_as_asked_for_and_bounded() {
    let bytes = create(1 << 33, &[("cluster_size", "512")]);
    let path = path_to(&bytes, &["L1 table"]);
    let page = parts_of(&bytes, "qcow2", &path, 5, usize::MAX).unwrap();
    assert!(page.total > MAX_PARTS as u64);
    assert_eq!((page.parts.len(), page.parts[0].name.as_str()), (MAX_PARTS, "entry 5"));
    assert_eq!(parts_of(&bytes, "qcow2", &path, 0, 0).unwrap().parts, []);
    for wrong in [&[99][..], &[0, 0, 0], &[u64::MAX, u64::MAX]] {
        assert_eq!(parts_of(&bytes, "qcow2", wrong, 0, 1).unwrap_err().kind(), ErrorKind::NotFound, "{wrong:?}");
    }
}

#[test]
fn an_open_image_gives_the_same_parts() {
    let data: Arc<dyn Node> = Memory::new(vec![0; 1 << 20]);
    let file = Memory::new(Vec::new());
    create_in(file.clone(), 1 << 20, &[("data_file", "data"), ("cluster_size", "4k")], Some(data.clone())).unwrap();
    let image = open(file.clone(), &with_files(writable(), &[("data", data)])).unwrap();
    write(&*image, 8192, &[7; 4096]).unwrap();
    block_on(image.close()).unwrap();
    let bytes = file.to_vec();
    let path = path_to(&bytes, &["L1 table", "entry 0", "L2 table"]);
    let page = block_on(image.structure(&path, 2, 1)).unwrap();
    let target = page.parts[0].target.unwrap();
    assert_eq!((target.role, page.parts[0].guest), (Role::DataFile, Some(Range::new(8192, 4096))));
    assert_eq!(page, parts_of(&bytes, "qcow2", &path, 2, 1).unwrap());
}

#[test]
fn a_volume_of_cryptsetup_is_what_qemu_img_says() {
    let scratch = Scratch::new("luks");
    let path = scratch.path("volume");
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    std::fs::write(scratch.path("key"), "open sesame").unwrap();
    let args = ["luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", &path, &scratch.path("key")];
    oracle("cryptsetup", &args);
    let bytes = std::fs::read(&path).unwrap();
    let found = walk(&bytes, "luks", 100);
    for (path, part) in &found {
        assert_eq!(part.problem, None, "{path:?}: {part:?}");
        assert!(part.place.range.end() <= bytes.len() as u64, "{part:?}");
    }
    let part = |name: &str| found.iter().map(|(_, part)| part).find(|part| part.name == name).unwrap();
    let info = json(&["info", "--output=json", "--image-opts", &format!("driver=luks,file.filename={path}")]);
    let theirs = &info["format-specific"]["data"];
    let value = |name: &str| part(name).value.clone().unwrap();
    assert_eq!(value("uuid"), format!("'{}'", theirs["uuid"].as_str().unwrap()));
    assert_eq!(
        value("cipher_mode"),
        format!("'{}-{}'", theirs["cipher-mode"].as_str().unwrap(), theirs["ivgen-alg"].as_str().unwrap())
    );
    let payload = theirs["payload-offset"].as_u64().unwrap();
    assert_eq!(part("data").place.range, Range::new(payload, bytes.len() as u64 - payload));
    for (index, slot) in theirs["slots"].as_array().unwrap().iter().enumerate() {
        let own = found.iter().find(|(_, part)| part.name == format!("key slot {index}")).unwrap();
        let state = if slot["active"] == true { "in use" } else { "free" };
        assert_eq!(own.1.value.as_deref(), Some(state), "slot {index}");
        let material =
            found.iter().find(|(path, part)| path.starts_with(&own.0) && part.kind == PartKind::Data).unwrap();
        assert_eq!(material.1.place.range.start, slot["key-offset"].as_u64().unwrap(), "slot {index}");
    }
    let image =
        open(Memory::new(bytes.clone()), &OpenOptions { structure_only: true, ..OpenOptions::default() }).unwrap();
    let regions: Vec<Region> = block_on(image.regions()).unwrap().runs(0).collect();
    let expected = [(0, payload, RegionKind::Encryption), (payload, bytes.len() as u64 - payload, RegionKind::Data)];
    assert_eq!(regions, expected.map(|(at, len, kind)| Region { range: Range::new(at, len), kind }));
}

#[test]
fn an_encrypted_image_shows_its_key_slots() {
    let file = Memory::new(Vec::new());
    let options = [("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "1")];
    create_in(file.clone(), 1 << 20, &options, None).unwrap();
    let bytes = file.to_vec();
    let slots = all(&bytes, &path_to(&bytes, &["encryption header", "key slots"]));
    let states: Vec<&str> = slots.iter().filter_map(|slot| slot.value.as_deref()).collect();
    assert_eq!(states, ["in use", "free", "free", "free", "free", "free", "free", "free"]);
    let header = all(&bytes, &path_to(&bytes, &["encryption header", "LUKS header"]));
    let at = header[0].place.range.start as usize;
    assert_eq!(&bytes[at..at + 6], b"LUKS\xba\xbe");
    for (path, part) in walk(&bytes, "qcow2", 20) {
        assert_eq!(part.problem, None, "{path:?}: {part:?}");
    }
}

#[test]
fn a_raw_disk_is_one_part() {
    let parts = parts_of(&[7; 1000], "raw", &[], 0, 10).unwrap();
    assert_eq!((parts.total, parts.parts[0].place.range), (1, Range::new(0, 1000)));
    let driver_options = [("offset".to_string(), "512".to_string()), ("size".to_string(), "512".to_string())].into();
    let options = OpenOptions { format: Some("raw".into()), driver_options, ..OpenOptions::default() };
    let image = open(Memory::new(vec![7; 4096]), &options).unwrap();
    let parts = block_on(image.structure(&[], 0, 10)).unwrap();
    assert_eq!(parts.parts[0].place.range, Range::new(512, 512));
    let kinds: Vec<(u64, RegionKind)> =
        block_on(image.regions()).unwrap().runs(0).map(|region| (region.range.len, region.kind)).collect();
    assert_eq!(kinds, [(512, RegionKind::Free), (512, RegionKind::Data), (3072, RegionKind::Free)]);
}

/// Damages that keep an image from being opened, the part that says so, and what it says.
#[test]
fn what_cannot_be_opened_has_a_structure() {
    let scratch = Scratch::new("broken");
    let (_, whole) = made(&scratch, "cluster_size=4k");
    let length = whole.len() as u64;
    let far = (length * 2).next_multiple_of(4096);
    let cases: &[(u64, &[u8], &[&str], &str)] = &[
        (40, &far.to_be_bytes(), &["L1 table"], "beyond the end of the file"),
        (40, &1234u64.to_be_bytes(), &["L1 table"], "not a multiple of the cluster size"),
        (36, &u32::MAX.to_be_bytes(), &["L1 table"], "are in the file"),
        (48, &far.to_be_bytes(), &["refcount table"], "beyond the end of the file"),
        (56, &0u32.to_be_bytes(), &["refcount table"], "there is none"),
        (64, &far.to_be_bytes(), &["snapshot table"], "are in the file"),
        (60, &u32::MAX.to_be_bytes(), &["snapshot table"], "are in the file"),
        (20, &40u32.to_be_bytes(), &["header", "cluster_bits"], "expected 9 to 21"),
        (4, &9u32.to_be_bytes(), &["header", "version"], "expected 2 or 3"),
        (72, &(1u64 << 40).to_be_bytes(), &["header", "incompatible_features"], "bit 40"),
        (72, &(1u64 << 40).to_be_bytes(), &["header", "incompatible_features", "bit 40"], "has to be understood"),
        (96, &7u32.to_be_bytes(), &["header", "refcount_order"], "0 to 6"),
        (8, &(1u64 << 60).to_be_bytes(), &["backing file name"], "expected at most"),
        (100, &u32::MAX.to_be_bytes(), &["header", "header_length"], "at most one cluster"),
    ];
    for (at, patch, names, says) in cases {
        let mut bytes = whole.clone();
        bytes[*at as usize..*at as usize + patch.len()].copy_from_slice(patch);
        let place = format!("{names:?} with {patch:02x?} at {at}");
        if *at != 56 && *at != 48 {
            let opened = open(Memory::new(bytes.clone()), &OpenOptions { no_backing: true, ..OpenOptions::default() });
            assert!(opened.is_err(), "{place}");
        }
        let path = path_to(&bytes, names);
        let (last, above) = path.split_last().unwrap();
        let part = parts_of(&bytes, "qcow2", above, *last, 1).unwrap().parts.remove(0);
        assert!(part.problem.as_deref().unwrap_or_default().contains(says), "{place}: {part:?}");
        walk(&bytes, "qcow2", 20);
    }
    // Of a file that is cut off anywhere, what is there can be seen.
    for len in [0, 3, 20, 71, 100, 104, 113, 600, 4095, 4096, 5000, 20_000] {
        walk(&whole[..len], "qcow2", 20);
    }
}

#[test]
fn entries_that_lie_say_so() {
    let scratch = Scratch::new("lies");
    let (_, whole) = made(&scratch, "cluster_size=4k");
    let l1 = be(&whole, 40, 8);
    let index = (0..).find(|index| be(&whole, l1 + index * 8, 8) & OFFSET != 0).unwrap();
    let l2 = be(&whole, l1 + index * 8, 8) & OFFSET;
    let entry = format!("entry {index}");
    let table = ["L1 table", &entry];
    let within = ["L1 table", &entry, "L2 table", "entry 0"];
    let cases: &[(u64, u64, &[&str], &str)] = &[
        (l1 + index * 8, l2 | 1 << 60, &table, "reserved"),
        (l1 + index * 8, l2 | 1 << 9, &table, "not a multiple"),
        (l1 + index * 8, 1 << 50, &table, "beyond the end"),
        (l2, 1 << 50, &within, "beyond the end"),
        (l2, (8192 + 512) | 1 << 63, &within, "not a multiple"),
        (l2, 8192 | 1 << 58, &within, "reserved"),
        (l2, 8192 | 3 << 62, &within, "copied bit"),
        (l2, 1 << 62 | 1 << 40, &within, "beyond the end"),
        (be(&whole, 48, 8), 1 << 40, &["refcount table", "entry 0"], "beyond the end"),
        (be(&whole, 48, 8), 4097, &["refcount table", "entry 0"], "reserved"),
    ];
    for (at, word, names, says) in cases {
        let mut bytes = whole.clone();
        bytes[*at as usize..*at as usize + 8].copy_from_slice(&word.to_be_bytes());
        let path = path_to(&bytes, names);
        let (last, above) = path.split_last().unwrap();
        let part = parts_of(&bytes, "qcow2", above, *last, 1).unwrap().parts.remove(0);
        assert!(part.problem.as_deref().unwrap_or_default().contains(says), "{names:?} {word:#x}: {part:?}");
        walk(&bytes, "qcow2", 10);
    }
}

#[test]
fn whatever_the_bytes_are_nothing_panics_or_takes_long() {
    let scratch = Scratch::new("mutated");
    let mut random = Random::new(99);
    let mut seeds: Vec<(&str, Vec<u8>)> = [
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=32",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=1k",
    ]
    .iter()
    .map(|options| ("qcow2", made(&scratch, options).1))
    .collect();
    let file = Memory::new(Vec::new());
    let luks: BTreeMap<String, String> =
        [("key-secret", "s"), ("iter-time", "1")].map(|(name, value)| (name.to_string(), value.to_string())).into();
    create_as("luks", file.clone(), 64 << 10, &luks, None).unwrap();
    seeds.push(("luks", file.to_vec()));
    let file = Memory::new(Vec::new());
    let options =
        [("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "1"), ("cluster_size", "4k")];
    create_in(file.clone(), 1 << 20, &options, None).unwrap();
    seeds.push(("qcow2", file.to_vec()));
    let mut opened = 0;
    for round in 0..240 {
        let (format, seed) = &seeds[round % seeds.len()];
        let mut bytes = seed.clone();
        let tables =
            [0, be(&bytes, 40, 8), be(&bytes, 48, 8), be(&bytes, 64, 8)].map(|at| at.min(seed.len() as u64 - 64));
        for _ in 0..1 + random.below(6) {
            let start = *random.pick(&tables);
            let at = (start + random.below(if start == 0 { 640 } else { 200 })).min(bytes.len() as u64 - 8) as usize;
            let value = *random.pick(&[0, 1, u64::MAX, 1 << 63, 0x0000_ffff_ffff_0000, 1 << 40, 512, 0xff]);
            let value = if random.below(3) == 0 { random.next() } else { value };
            let len = 1 + random.below(8) as usize;
            bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        walk(&bytes, format, 8);
        let options = OpenOptions {
            structure_only: true,
            for_check: true,
            keyring: keyring(),
            budgets: Budgets { check_bytes: 64 << 20, ..Budgets::default() },
            ..OpenOptions::default()
        };
        if let Ok(image) = open(Memory::new(bytes.clone()), &options) {
            match block_on(image.regions()) {
                Ok(_) => drop(by_kind(&image, bytes.len() as u64)),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            opened += 1;
        }
    }
    assert!(opened > 30, "{opened}");
}

#[test]
fn a_snapshot_without_the_size_of_its_disk_maps_what_its_entries_cover() {
    for (cluster, entries, size) in [("512", 1u32, 32 << 10), ("512", 100, 1 << 20), ("2M", u32::MAX, 1 << 20)] {
        let mut bytes = create(1 << 20, &[("compat", "0.10"), ("cluster_size", cluster)]);
        let at = bytes.len().next_multiple_of(1 << be(&bytes, 20, 4));
        bytes.resize(at + 40, 0);
        bytes[60..64].copy_from_slice(&1u32.to_be_bytes());
        bytes[64..72].copy_from_slice(&(at as u64).to_be_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&entries.to_be_bytes());
        let snapshot = path_to(&bytes, &["snapshot table", "snapshot 0"]);
        let table = all(&bytes, &snapshot).pop().unwrap();
        assert_eq!(table.guest, Some(Range::new(0, size)), "{cluster}");
        let image = open(Memory::new(bytes), &OpenOptions::default()).unwrap();
        assert_eq!(image.describe().unwrap().snapshots[0].disk_size, size, "{cluster}");
    }
}
