//! Whatever changes an image may be cut off at any write, or have any write fail: the image opens, shows what it was or
//! what it became, and a check finds leaks at most. One table of changes, one harness.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use diskette::bitmap::DirtyBitmap;
use diskette::describe::SnapshotChoice;
use diskette::drivers::OpenOptions;
use diskette::engine::{AmendRequest, FindingKind, Repair, SnapshotChange};
use diskette::native::copy::{CopyOptions, copy};
use diskette::native::rebase::{RebaseOptions, rebase};
use diskette::{ErrorKind, Image, Memory, Node, Preallocation, Range, Result, Role, WriteFlags, block_on};

use crate::support::{
    Random, TestNode, create, create_as, create_in, keyring, open, read, with_files, writable, write,
};

const SIZE: u64 = 96 << 10;

/// Compressed clusters are made by the faster codecs only.
const CAN_COMPRESS: bool = cfg!(feature = "fast-codecs");

/// What is done to the files of a case.
type Act = Box<dyn Fn(&Rig) -> Result<()>>;
type MakeChange = fn() -> SnapshotChange;
type ChangeImage = fn(&Arc<Image>) -> Result<()>;
type Files = Vec<(&'static str, Vec<u8>)>;

/// What the disk may be once a change was cut off.
#[derive(Clone, Copy, PartialEq)]
enum Disk {
    /// What it was, or what it became.
    Whole,
    /// Every byte is what it was or what it became.
    Mixed,
    /// There need not be an image yet. If there is one, it is empty or becomes what it should.
    Made,
    /// What it was, but only a repair makes it clean, as before.
    Damaged,
}

/// One change of an image, which comes first among the files.
struct Case {
    name: String,
    format: &'static str,
    files: Files,
    disk: Disk,
    /// Whether flags of entries may meanwhile say less than they could, or are about to be cleared.
    flags: bool,
    act: Act,
}

/// The files of one run.
struct Rig {
    format: &'static str,
    files: Vec<(&'static str, Arc<TestNode>)>,
}

impl Rig {
    fn new(case: &Case) -> Self {
        let mut files: Vec<(&'static str, Arc<TestNode>)> = Vec::new();
        for (name, bytes) in &case.files {
            let bytes = bytes.clone();
            let node =
                files.first().map_or_else(|| TestNode::new(bytes.clone()), |first| first.1.beside(bytes.clone()));
            files.push((name, node));
        }
        Rig { format: case.format, files }
    }

    fn each(&self, change: impl Fn(&TestNode)) {
        self.files.iter().for_each(|(_, node)| change(node));
    }

    fn node(&self, name: &str) -> Arc<dyn Node> {
        self.files.iter().find(|file| file.0 == name).expect("the case has the file").1.clone()
    }

    fn open(&self) -> Result<Arc<Image>> {
        let nodes = self.files.iter().map(|(name, node)| (*name, node.clone() as Arc<dyn Node>));
        open_first(self.format, &nodes.collect::<Vec<_>>(), writable())
    }

    /// Opens the image, changes and closes it. As on the command line, it is closed even if the change fails.
    fn with(&self, change: impl FnOnce(&Arc<Image>) -> Result<()>) -> Result<()> {
        let image = self.open()?;
        let changed = change(&image);
        changed.and(block_on(image.close()))
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|(_, node)| node.bytes()).collect()
    }
}

fn open_first(format: &str, nodes: &[(&str, Arc<dyn Node>)], base: OpenOptions) -> Result<Arc<Image>> {
    let key = if format == "luks" { "key-secret" } else { "encrypt.key-secret" };
    let driver_options = [(key.to_string(), "s".to_string())].into();
    let driver_options = if format == "raw" { BTreeMap::new() } else { driver_options };
    let options = OpenOptions { format: Some(format.into()), driver_options, keyring: keyring(), ..base };
    open(nodes[0].1.clone(), &with_files(options, &nodes[1..]))
}

type Bits = Vec<(u64, u64)>;

/// Everything that an image shows.
#[derive(PartialEq)]
struct State {
    disk: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    /// Bitmaps, and whether they record changes; those that are inconsistent have no bits.
    bitmaps: BTreeMap<String, Option<(bool, Bits)>>,
}

impl State {
    fn of(case: &Case, files: &[Vec<u8>]) -> Result<(State, Arc<Image>)> {
        let nodes: Vec<(&str, Arc<dyn Node>)> =
            case.files.iter().zip(files).map(|(file, bytes)| (file.0, Memory::new(bytes.clone()) as _)).collect();
        let image = open_first(case.format, &nodes, OpenOptions::default())?;
        let whole = |image: &Image| read(image, 0, image.info().length as usize);
        let details = image.describe()?;
        let mut snapshots = BTreeMap::new();
        for snapshot in details.snapshots {
            let choice = Some(SnapshotChoice::IdOrName(snapshot.id));
            let old = open_first(case.format, &nodes, OpenOptions { snapshot: choice, ..OpenOptions::default() })?;
            snapshots.insert(snapshot.name, whole(&old)?);
        }
        let mut bitmaps = BTreeMap::new();
        for bitmap in image.bitmaps().unwrap_or_default() {
            let bits = || -> Result<Bits> {
                let bits = block_on(image.read_bitmap(&bitmap.name))?;
                Ok(bits.ranges().map(|range| (range.start, range.len)).collect())
            };
            let known = if bitmap.in_use { None } else { Some((bitmap.auto, bits()?)) };
            bitmaps.insert(bitmap.name.clone(), known);
        }
        Ok((State { disk: whole(&image)?, snapshots, bitmaps }, image))
    }
}

/// Judges what a fault left: `old` is what the image was, `new` what it would have become.
fn judge(case: &Case, files: &[Vec<u8>], old: Option<&State>, new: &State, go_on: bool, place: &str) {
    let (found, image) = match State::of(case, files) {
        Ok(found) => found,
        Err(_) if case.disk == Disk::Made && !looks_made(case.format, &files[0]) => return,
        Err(error) => panic!("{place}: {error}"),
    };
    // The disk.
    let (before, after) = (old.map_or(&[][..], |old| &old.disk), &new.disk[..]);
    let whole = found.disk == before || found.disk == after;
    let mixed = |before: &dyn Fn(usize) -> u8| {
        let mut bytes = found.disk.iter().enumerate();
        // What is behind a new end may be gone already.
        bytes.all(|(at, byte)| after.get(at).unwrap_or(&0) == byte || before(at) == *byte)
    };
    let fits = match case.disk {
        Disk::Whole | Disk::Damaged => whole,
        Disk::Mixed => whole || found.disk.len() == before.len() && mixed(&|at| before[at]),
        // What was never written to a volume is whatever decrypting zeroes gives.
        Disk::Made if case.format == "luks" => found.disk.len() == after.len(),
        Disk::Made => found.disk.len() == after.len() && mixed(&|_| 0),
    };
    let first = found.disk.iter().zip(before).position(|(one, other)| one != other);
    assert!(fits, "{place}: the disk of {} bytes differs at {first:x?}", found.disk.len());
    // Snapshots and bitmaps.
    let nothing = State { disk: Vec::new(), snapshots: BTreeMap::new(), bitmaps: BTreeMap::new() };
    let old = old.unwrap_or(&nothing);
    for (name, disk) in &found.snapshots {
        let known = [old, new].iter().any(|state| state.snapshots.get(name) == Some(disk));
        assert!(known, "{place}: snapshot {name} is neither old nor new");
    }
    for name in old.snapshots.keys().filter(|name| new.snapshots.contains_key(*name)) {
        assert!(found.snapshots.contains_key(name), "{place}: snapshot {name} is lost");
    }
    for (name, bits) in &found.bitmaps {
        assert!(old.bitmaps.contains_key(name) || new.bitmaps.contains_key(name), "{place}: {name}");
        let Some(bits) = bits else { continue };
        let is = |state: &State| state.bitmaps.get(name).is_some_and(|known| known.as_ref() == Some(bits));
        let records = bits.0 && old.bitmaps.get(name).is_some_and(|old| old.as_ref().is_some_and(|old| old.0));
        assert!(records || is(old) || is(new), "{place}: bitmap {name} is {bits:?}");
        if records && !is(new) {
            let covered = |at: u64| bits.1.iter().any(|(start, len)| *start <= at && at < start + len);
            let changed = found.disk.iter().zip(&old.disk).map(|(one, other)| one != other);
            let missed = changed.zip(0u64..).find(|(changed, at)| *changed && !covered(*at));
            assert!(missed.is_none(), "{place}: bitmap {name} lacks a change: {bits:?}, {missed:?}");
        }
    }
    for name in old.bitmaps.keys().filter(|name| new.bitmaps.contains_key(*name)) {
        assert!(found.bitmaps.contains_key(name), "{place}: bitmap {name} is lost");
    }
    if case.format == "qcow2" {
        assert_leaks_at_most(case, &image, place);
    }
    if !go_on || is_slow(case) {
        return;
    }
    // The image goes on: it is written to, and its snapshots stay.
    let nodes: Vec<(&str, Arc<dyn Node>)> =
        case.files.iter().zip(files).map(|(file, bytes)| (file.0, Memory::new(bytes.clone()) as _)).collect();
    let image = open_first(case.format, &nodes, writable()).unwrap_or_else(|error| panic!("{place}: {error}"));
    if case.disk == Disk::Damaged {
        let report = block_on(image.repair(Repair::All)).unwrap();
        assert!(report.is_clean(), "{place}: {:?}", report.findings);
    }
    for (at, byte) in (0..(found.disk.len() as u64).saturating_sub(700)).step_by(9000).zip(1u8..) {
        write(&*image, at, &[byte; 700]).unwrap_or_else(|error| panic!("{place}: {error}"));
    }
    block_on(image.close()).unwrap();
    drop(image);
    let image = open_first(case.format, &nodes, OpenOptions::default()).unwrap();
    if case.format == "qcow2" {
        assert_leaks_at_most(&Case { flags: case.flags, disk: Disk::Whole, ..empty_case() }, &image, place);
    }
    for (name, disk) in &found.snapshots {
        let choice = Some(SnapshotChoice::IdOrName(name.clone()));
        let old = open_first(case.format, &nodes, OpenOptions { snapshot: choice, ..OpenOptions::default() }).unwrap();
        assert!(read(&*old, 0, disk.len()).unwrap() == *disk, "{place}: snapshot {name} changed later");
    }
}

fn empty_case() -> Case {
    case("", "qcow2", Vec::new(), Disk::Whole, |_| Ok(()))
}

fn assert_leaks_at_most(case: &Case, image: &Image, place: &str) {
    if image.describe().unwrap().dirty || case.disk == Disk::Damaged {
        return;
    }
    let report = block_on(image.check()).unwrap();
    let harmless = |finding: &diskette::engine::Finding| {
        matches!(finding.kind, FindingKind::Leak | FindingKind::Note)
            || case.flags && finding.text.contains("OFLAG_COPIED")
    };
    let worse = report.findings.iter().find(|finding| !harmless(finding));
    assert!(worse.is_none() && report.check_errors == 0, "{place}: {worse:?}");
}

fn looks_made(format: &str, bytes: &[u8]) -> bool {
    match format {
        "luks" => bytes.starts_with(b"LUKS"),
        "qcow2" => bytes.starts_with(b"QFI"),
        _ => false,
    }
}

/// Whether keys are derived whenever the image is opened, which takes its time.
fn is_slow(case: &Case) -> bool {
    case.format == "luks" || case.name.contains("key") || case.name.contains("LUKS")
}

/// How many moments of a case are looked at.
fn most(case: &Case) -> usize {
    if is_slow(case) { 12 } else { 120 }
}

/// At most this many of `count` moments, the first and the last ones among them.
fn moments(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let step = count.div_ceil(most).max(1);
    (0..count).filter(move |moment| moment % step == 0 || moment + 4 > count)
}

/// What a case is before, and what it becomes if nothing goes wrong.
fn ends(case: &Case) -> (Option<State>, State, Rig) {
    let old = (case.disk != Disk::Made).then(|| State::of(case, &Rig::new(case).bytes()).unwrap().0);
    let rig = Rig::new(case);
    rig.each(TestNode::record);
    (case.act)(&rig).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let (new, image) = State::of(case, &rig.bytes()).unwrap();
    if case.format == "qcow2" {
        let report = block_on(image.check()).unwrap();
        assert!(report.is_clean(), "{}: {:?}", case.name, report.findings);
    }
    (old, new, rig)
}

/// Outcomes that were judged before.
#[derive(Default)]
struct Judged(HashSet<Vec<Vec<u8>>>);

impl Judged {
    /// Whether such files have not been seen yet.
    fn is_new(&mut self, files: &[Vec<u8>]) -> bool {
        self.0.insert(files.to_vec())
    }
}

fn cut(case: &Case, judged: &mut Judged) {
    let (old, new, rig) = ends(case);
    let histories: Vec<_> = rig.files.iter().map(|(_, node)| node.history()).collect();
    let mut numbers: Vec<usize> = histories.iter().flatten().map(|snapshot| snapshot.number).collect();
    numbers.sort_unstable();
    assert!(numbers.len() > 1, "{}: nothing is written", case.name);
    let mut random = Random::new(case.name.len() as u64);
    for moment in moments(numbers.len(), most(case)) {
        for keep_of_8 in [0, 4, 8] {
            let files: Vec<Vec<u8>> = histories
                .iter()
                .zip(&case.files)
                .map(|(history, (_, first))| {
                    let last = history.iter().rev().find(|snapshot| snapshot.number <= numbers[moment]);
                    last.map_or_else(|| first.clone(), |snapshot| snapshot.survive(&mut random, keep_of_8))
                })
                .collect();
            let place = format!("{} cut at {moment} of {} keep {keep_of_8}", case.name, numbers.len());
            if judged.is_new(&files) {
                judge(case, &files, old.as_ref(), &new, moment % 5 == 0, &place);
            }
        }
    }
}

fn fail(case: &Case, judged: &mut Judged) {
    let (old, new, rig) = ends(case);
    let count: usize = rig.files.iter().map(|(_, node)| node.history_len()).sum();
    // A file that cannot be written any more is like a cut that loses nothing.
    let ways = if is_slow(case) { &[true][..] } else { &[true, false] };
    for &once in ways {
        for limit in moments(count, most(case)) {
            let rig = Rig::new(case);
            rig.each(|node| {
                node.fail_at.store(limit, Ordering::Relaxed);
                node.failures.store(if once { 1 } else { usize::MAX }, Ordering::Relaxed);
                // A write that fails may have been done in part.
                node.fail_half_way.store(once, Ordering::Relaxed);
            });
            let result = (case.act)(&rig);
            let failed: Vec<_> = rig.files.iter().flat_map(|(_, node)| node.failed.lock().unwrap().clone()).collect();
            let place = format!("{} failing {} {limit} of {count}", case.name, if once { "at" } else { "from" });
            assert!(!failed.is_empty(), "{place}: nothing failed");
            match result {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{place}: {error}");
                    assert!(error.to_string().to_lowercase().contains("no space left"), "{place}: {error}");
                }
                // A file that did not get shorter is no harm.
                Ok(()) => assert!(failed.iter().all(|kind| *kind == "resize"), "{place}: {failed:?} went unnoticed"),
            }
            let files = rig.bytes();
            if judged.is_new(&files) {
                judge(case, &files, old.as_ref(), &new, limit % 3 == 0, &place);
            }
        }
    }
}

fn case(
    name: impl Into<String>,
    format: &'static str,
    files: Files,
    disk: Disk,
    act: impl Fn(&Rig) -> Result<()> + 'static,
) -> Case {
    Case { name: name.into(), format, files, disk, flags: false, act: Box::new(act) }
}

/// A case over one qcow2 image.
fn on(
    name: impl Into<String>,
    image: &[u8],
    disk: Disk,
    act: impl Fn(&Arc<Image>) -> Result<()> + Copy + 'static,
) -> Case {
    case(name, "qcow2", vec![("image", image.to_vec())], disk, move |rig| rig.with(act))
}

fn text(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

/// An image that `change` was done to.
fn made(options: &[(&str, &str)], change: impl FnOnce(&Arc<Image>) -> Result<()>) -> Vec<u8> {
    changed(create(SIZE, options), change)
}

fn changed(image: Vec<u8>, change: impl FnOnce(&Arc<Image>) -> Result<()>) -> Vec<u8> {
    let file = Memory::new(image);
    let image = open_first("qcow2", &[("image", file.clone())], writable()).unwrap();
    change(&image).unwrap();
    block_on(image.close()).unwrap();
    file.to_vec()
}

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8 | 1).collect()
}

/// Fills about half of the image.
fn fill(image: &Arc<Image>) -> Result<()> {
    write(&**image, 1000, &noise(30_000, 1))?;
    write(&**image, 60_000, &noise(9000, 2))
}

fn compressed(image: &Arc<Image>) -> Result<()> {
    let flags = WriteFlags { compressed: true, ..WriteFlags::default() };
    let disk: Vec<u8> = (0..SIZE).map(|at| (at / 100) as u8 | 1).collect();
    block_on(image.write(0, &disk, flags))
}

fn snapshot(name: &str) -> SnapshotChange {
    SnapshotChange::Create { name: name.into(), date_sec: 1, date_nsec: 0 }
}

fn with_snapshot(image: &Arc<Image>) -> Result<()> {
    fill(image)?;
    block_on(image.snapshot(&snapshot("one")))?;
    write(&**image, 20_000, &noise(20_000, 3))
}

fn with_bitmaps(image: &Arc<Image>) -> Result<()> {
    fill(image)?;
    block_on(image.add_bitmap("records", Some(512), true))?;
    block_on(image.add_bitmap("rests", Some(4096), false))?;
    write(&**image, 5000, &[7; 3000])
}

/// Writes of every kind, none of which overlap: over what is there and what is not, zeroes, and what is given back.
fn scribble(image: &Arc<Image>) -> Result<()> {
    write(&**image, 3000, &noise(7000, 8))?;
    write(&**image, 50_000, &noise(17_000, 9))?;
    let may_unmap = WriteFlags { may_unmap: true, ..WriteFlags::default() };
    block_on(image.write_zeroes(Range::new(11_000, 9000), may_unmap))?;
    block_on(image.flush())?;
    block_on(image.discard(Range::new(32 << 10, 16 << 10)))?;
    write(&**image, 21_000, &noise(2000, 10))
}

fn amend(image: &Image, options: &[(&str, &str)], force: bool) -> Result<()> {
    block_on(image.amend(&AmendRequest { options: text(options), force, ..AmendRequest::default() }))
}

const SMALL: &[(&str, &str)] = &[("cluster_size", "4k")];
const TINY: &[(&str, &str)] = &[("cluster_size", "512"), ("refcount_bits", "64")];
const ENCRYPTED: &[(&str, &str)] = &[
    ("cluster_size", "4k"),
    ("encrypt.format", "luks"),
    ("encrypt.key-secret", "s"),
    ("encrypt.iter-time", "1"),
    ("encrypt.cipher-alg", "aes-128"),
    ("encrypt.hash-alg", "sha1"),
];
/// Encrypted, and opened at once.
const OLD_ENCRYPTED: &[(&str, &str)] =
    &[("cluster_size", "4k"), ("encrypt.format", "aes"), ("encrypt.key-secret", "s")];
const VOLUME: &[(&str, &str)] =
    &[("key-secret", "s"), ("iter-time", "1"), ("cipher-alg", "aes-128"), ("hash-alg", "sha1")];

fn volume() -> Vec<u8> {
    let file = Memory::new(Vec::new());
    create_as("luks", file.clone(), SIZE, &text(VOLUME), None).unwrap();
    file.to_vec()
}

fn writes() -> Vec<Case> {
    let zstd: &[(&str, &str)] = &[("cluster_size", "4k"), ("compression_type", "zstd")];
    let extended: &[(&str, &str)] = &[("cluster_size", "16k"), ("extended_l2", "on")];
    let lazy: &[(&str, &str)] = &[("cluster_size", "4k"), ("lazy_refcounts", "on")];
    let mut cases = vec![
        on("write beside a snapshot", &made(SMALL, with_snapshot), Disk::Mixed, scribble),
        on("write subclusters beside a snapshot", &made(extended, with_snapshot), Disk::Mixed, scribble),
        on("write with late refcounts", &made(lazy, fill), Disk::Mixed, scribble),
        on("write with bitmaps", &made(SMALL, with_bitmaps), Disk::Mixed, scribble),
        on("write bitmaps back", &made(TINY, with_bitmaps), Disk::Mixed, |image| write(&**image, 80_000, &[9; 512])),
        on("write encrypted clusters", &made(OLD_ENCRYPTED, with_snapshot), Disk::Mixed, scribble),
    ];
    if CAN_COMPRESS {
        cases.push(on("write over compressed clusters", &made(SMALL, compressed), Disk::Mixed, scribble));
        cases.push(on("write compressed clusters", &made(zstd, fill), Disk::Mixed, compressed));
    }
    for (format, bytes) in [("luks", volume()), ("raw", noise(SIZE, 5))] {
        let files = vec![("image", bytes)];
        cases.push(case(format!("write {format}"), format, files, Disk::Mixed, |rig| rig.with(scribble)));
    }
    cases
}

fn resizes() -> Vec<Case> {
    let grow = |image: &Arc<Image>| block_on(image.resize(900 << 10, Preallocation::Off));
    let grow_full = |image: &Arc<Image>| block_on(image.resize(200 << 10, Preallocation::Full));
    let grow_tables = |image: &Arc<Image>| block_on(image.resize(200 << 10, Preallocation::Metadata));
    let shrink = |image: &Arc<Image>| block_on(image.resize(20_480, Preallocation::Off));
    let mut cases = vec![
        on("grow", &made(TINY, fill), Disk::Whole, grow),
        on("grow and set tables aside", &made(SMALL, fill), Disk::Whole, grow_tables),
        on("grow and fill", &made(SMALL, fill), Disk::Whole, grow_full),
        on("grow beside a snapshot", &made(TINY, with_snapshot), Disk::Whole, grow),
        on("grow with bitmaps", &made(SMALL, with_bitmaps), Disk::Whole, grow),
        on("grow encrypted", &made(OLD_ENCRYPTED, fill), Disk::Whole, grow),
        on("shrink", &made(TINY, fill), Disk::Mixed, shrink),
        on("shrink beside a snapshot", &made(SMALL, with_snapshot), Disk::Mixed, shrink),
        on("shrink with bitmaps", &made(SMALL, with_bitmaps), Disk::Mixed, shrink),
    ];
    for (format, bytes) in [("luks", volume()), ("raw", noise(SIZE, 5))] {
        for (what, length) in [("grow", 200 << 10), ("shrink", 20_480)] {
            let files = vec![("image", bytes.clone())];
            cases.push(case(format!("{what} {format}"), format, files, Disk::Whole, move |rig| {
                rig.with(|image| {
                    block_on(image.flush())?;
                    block_on(image.resize(length, Preallocation::Off))
                })
            }));
        }
    }
    cases
}

fn amendments() -> Vec<Case> {
    let mut cases = Vec::new();
    for options in [
        &[("compat", "0.10")][..],
        &[("refcount_bits", "64")],
        &[("refcount_bits", "4")],
        &[("lazy_refcounts", "on")],
        &[("size", "200k"), ("refcount_bits", "32")],
    ] {
        let act = move |image: &Arc<Image>| amend(image, options, false);
        cases.push(on(format!("amend {options:?}"), &made(SMALL, with_snapshot), Disk::Whole, act));
    }
    let old = made(&[("cluster_size", "4k"), ("compat", "0.10")], with_snapshot);
    cases.push(on("amend to version 3", &old, Disk::Whole, |image| {
        amend(image, &[("compat", "1.1"), ("lazy_refcounts", "on")], false)
    }));
    let lazy = made(&[("cluster_size", "4k"), ("lazy_refcounts", "on")], fill);
    cases.push(on("amend lazy_refcounts off", &lazy, Disk::Whole, |image| {
        write(&**image, 1000, &noise(30_000, 1))?;
        amend(image, &[("lazy_refcounts", "off")], false)
    }));
    let (file, data) = (Memory::new(Vec::new()), Memory::new(Vec::new()));
    let options = [("data_file", "data"), ("data_file_raw", "on"), ("cluster_size", "4k")];
    create_in(file.clone(), SIZE, &options, Some(data.clone())).unwrap();
    let files = vec![("image", file.to_vec()), ("data", data.to_vec())];
    cases.push(case("amend data_file_raw", "qcow2", files, Disk::Whole, |rig| {
        rig.with(|image| amend(image, &[("data_file_raw", "off")], false))
    }));
    let (twice, volume_twice) = (keys("encrypt.", create(SIZE, ENCRYPTED)), keys("", volume()));
    for (format, prefix, one, two) in
        [("qcow2", "encrypt.", create(SIZE, ENCRYPTED), twice), ("luks", "", volume(), volume_twice)]
    {
        for (what, image, options) in [
            ("add", &one, [("state", "active"), ("new-secret", "other"), ("iter-time", "1")]),
            ("replace", &two, [("state", "active"), ("new-secret", "third"), ("keyslot", "1")]),
            ("erase", &two, [("state", "inactive"), ("keyslot", "1"), ("", "")]),
        ] {
            let files = vec![("image", image.clone())];
            cases.push(case(format!("{what} a key of {format}"), format, files, Disk::Whole, move |rig| {
                let options: Vec<_> = options.iter().filter(|(name, _)| !name.is_empty()).collect();
                let mut options: Vec<(String, &str)> =
                    options.iter().map(|(name, value)| (format!("{prefix}{name}"), *value)).collect();
                if options.iter().any(|(_, value)| *value == "third") {
                    options.push((format!("{prefix}iter-time"), "1"));
                }
                let options: Vec<(&str, &str)> = options.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                rig.with(|image| amend(image, &options, true))
            }));
        }
    }
    cases
}

/// The same image with a second key.
fn keys(prefix: &str, bytes: Vec<u8>) -> Vec<u8> {
    let file = Memory::new(bytes);
    let format = if prefix.is_empty() { "luks" } else { "qcow2" };
    let image = open_first(format, &[("image", file.clone())], writable()).unwrap();
    let names = ["state", "new-secret", "iter-time", "keyslot"].map(|name| format!("{prefix}{name}"));
    let values = ["active", "other", "1", "1"];
    let options: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(values).collect();
    amend(&image, &options, false).unwrap();
    block_on(image.close()).unwrap();
    file.to_vec()
}

fn snapshots() -> Vec<Case> {
    let mut cases = Vec::new();
    let extended: &[(&str, &str)] = &[("cluster_size", "16k"), ("extended_l2", "on")];
    for (what, options) in [("512", TINY), ("encrypted", OLD_ENCRYPTED), ("subclusters", extended)] {
        let image = made(options, with_snapshot);
        let changes: [(&str, MakeChange); 3] = [
            ("create", || snapshot("two")),
            ("apply", || SnapshotChange::Apply("one".into())),
            ("delete", || SnapshotChange::Delete("one".into())),
        ];
        for (verb, change) in changes {
            let act = move |image: &Arc<Image>| block_on(image.snapshot(&change()));
            cases.push(Case { flags: true, ..on(format!("snapshot {verb} {what}"), &image, Disk::Whole, act) });
        }
    }
    if CAN_COMPRESS {
        let image = changed(made(SMALL, compressed), with_snapshot);
        let act = |image: &Arc<Image>| block_on(image.snapshot(&snapshot("two")));
        cases.push(Case { flags: true, ..on("snapshot of compressed clusters", &image, Disk::Whole, act) });
    }
    cases
}

fn bitmaps() -> Vec<Case> {
    let changes: [(&str, ChangeImage); 6] = [
        ("add", |image| block_on(image.add_bitmap("new", Some(512), true))),
        ("remove", |image| block_on(image.remove_bitmap("records"))),
        ("clear", |image| block_on(image.clear_bitmap("records"))),
        ("enable", |image| block_on(image.enable_bitmap("rests"))),
        ("disable", |image| block_on(image.disable_bitmap("records"))),
        ("merge", |image| {
            let mut other = DirtyBitmap::new(SIZE, 4096)?;
            other.set(Range::new(50_000, 9000));
            block_on(image.merge_bitmap("rests", &other))
        }),
    ];
    let images = [("4k", made(SMALL, with_bitmaps)), ("512", made(TINY, with_bitmaps))];
    let each = images.iter().flat_map(|image| changes.iter().map(move |change| (image, change)));
    each.map(|((size, image), (what, act))| on(format!("bitmap {what} {size}"), image, Disk::Whole, *act)).collect()
}

/// A chain: the image, what it is backed by, and what that is backed by, besides one to move to.
fn chain(options: &[(&str, &str)]) -> Files {
    let overlay = |backing: &str, seed: u64| {
        let all = [options, &[("backing_file", backing), ("backing_fmt", "qcow2")]].concat();
        // Whole clusters need nothing of the backing image.
        let file = Memory::new(create(SIZE, &all));
        let image = open(file.clone(), &OpenOptions { no_backing: true, ..writable() }).unwrap();
        write(&*image, seed * 16_384, &noise(16_384, seed)).unwrap();
        block_on(image.close()).unwrap();
        file.to_vec()
    };
    vec![
        ("image", overlay("middle", 1)),
        ("middle", overlay("base", 2)),
        ("base", made(SMALL, fill)),
        ("other", made(SMALL, |image| write(&**image, 2000, &noise(30_000, 4)))),
    ]
}

fn moves() -> Vec<Case> {
    let mut cases = Vec::new();
    for (options, compress, to) in [
        (SMALL, false, Some("other")),
        (TINY, false, Some("base")),
        (SMALL, CAN_COMPRESS, Some("other")),
        (SMALL, false, None),
        (&[("cluster_size", "16k"), ("extended_l2", "on")], false, None),
    ] {
        let name = format!("rebase to {to:?} with {options:?} compressed {compress}");
        cases.push(case(name, "qcow2", chain(options), Disk::Whole, move |rig| {
            rig.with(|image| {
                let nodes = |name: &'static str| {
                    let from = rig.files.iter().position(|file| file.0 == name).unwrap_or(0);
                    rig.files[from..].iter().map(|(name, node)| (*name, node.clone() as Arc<dyn Node>))
                };
                let disk = |name| open_first("qcow2", &nodes(name).collect::<Vec<_>>(), OpenOptions::default());
                let new = to.map(disk).transpose()?.map(|image| image as Arc<dyn Node>);
                let options = RebaseOptions { workers: 1, compress };
                let go_on = |_| ControlFlow::Continue(());
                rebase(image, image.child(Role::Backing), new, options, &go_on)?;
                block_on(image.flush())?;
                block_on(image.set_backing(to.map(|name| (name, Some("qcow2")))))
            })
        }));
    }
    for (options, empty) in [(SMALL, true), (TINY, true), (SMALL, false)] {
        let files = chain(options);
        cases.push(case(format!("commit {options:?} empty {empty}"), "qcow2", files, Disk::Whole, move |rig| {
            let middle = OpenOptions { format: Some("qcow2".into()), ..writable() };
            let middle = open(rig.node("middle"), &with_files(middle, &[("base", rig.node("base"))]))?;
            let image = open_first(
                "qcow2",
                &[("image", rig.node("image")), ("middle", middle.clone() as Arc<dyn Node>)],
                writable(),
            )?;
            let options = CopyOptions {
                workers: 1,
                skip_unallocated: true,
                own_layers: 1,
                target_is_zero: false,
                ..CopyOptions::default()
            };
            let target = middle.clone() as Arc<dyn Node>;
            let copied = copy(&(image.clone() as Arc<dyn Node>), &target, options, &|_| ControlFlow::Continue(()));
            let closed = block_on(middle.close());
            copied.map_err(|stopped| stopped.error)?;
            closed?;
            if empty {
                block_on(image.make_empty())?;
            }
            block_on(image.close())
        }));
    }
    cases.push(on("change the backing file by name only", &made(SMALL, fill), Disk::Whole, |image| {
        block_on(image.set_backing(None))
    }));
    cases
}

fn creations() -> Vec<Case> {
    let mut cases = Vec::new();
    let create = |name: String, format: &'static str, options: Vec<(&'static str, &'static str)>, copied: u8| {
        let mut files = vec![("image", Vec::new())];
        if options.iter().any(|(name, _)| *name == "data_file") {
            files.push(("data", Vec::new()));
        }
        case(name, format, files, Disk::Made, move |rig| {
            let data = rig.files.get(1).map(|file| file.1.clone() as Arc<dyn Node>);
            create_as(format, rig.files[0].1.clone(), SIZE, &text(&options), data)?;
            if copied == 0 {
                return Ok(());
            }
            rig.with(|image| {
                let disk: Vec<u8> = (0..SIZE).map(|at| if at % 20_000 < 9000 { (at / 64) as u8 } else { 0 }).collect();
                let source: Arc<dyn Node> = Memory::read_only(disk, "source");
                let source: Arc<dyn Node> =
                    open(source, &OpenOptions { format: Some("raw".into()), ..OpenOptions::default() })?;
                let options = CopyOptions { workers: 1, compress: copied == 2, ..CopyOptions::default() };
                copy(&source, &(image.clone() as Arc<dyn Node>), options, &|_| ControlFlow::Continue(()))
                    .map_err(|stopped| stopped.error)
            })
        })
    };
    let with = |base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]| [base, more].concat();
    for (what, options) in [
        ("plain", with(SMALL, &[])),
        ("old", with(TINY, &[]).into_iter().take(1).chain([("compat", "0.10")]).collect()),
        ("tables", with(SMALL, &[("preallocation", "metadata")])),
        ("full", with(SMALL, &[("preallocation", "full"), ("extended_l2", "off")])),
        ("with LUKS", with(ENCRYPTED, &[])),
        ("split", with(SMALL, &[("data_file", "data"), ("data_file_raw", "on")])),
    ] {
        cases.push(create(format!("create {what}"), "qcow2", options, 0));
    }
    cases.push(create("create luks".into(), "luks", VOLUME.to_vec(), 0));
    for (what, options, copied) in [
        ("plain", with(SMALL, &[]), 1),
        ("LUKS", with(ENCRYPTED, &[]), 1),
        ("zlib", with(SMALL, &[]), 2),
        ("zstd", with(SMALL, &[("compression_type", "zstd")]), 2),
    ] {
        let copied = if CAN_COMPRESS { copied } else { 1 };
        cases.push(create(format!("convert to {what}"), "qcow2", options, copied));
    }
    cases.push(create("convert to luks".into(), "luks", VOLUME.to_vec(), 1));
    cases
}

fn repairs() -> Vec<Case> {
    let sound = made(SMALL, with_snapshot);
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
    let table = number(48);
    let block = number(table);
    let clusters = sound.len() / 4096;
    let mut cases = Vec::new();
    let mut damage = |what: &str, change: &dyn Fn(&mut Vec<u8>), repair: Repair| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        cases.push(on(format!("repair {what}"), &bytes, Disk::Damaged, move |image| {
            let report = block_on(image.repair(repair))?;
            assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 0), "{:?}", report.findings);
            Ok(())
        }));
    };
    let leaks = |bytes: &mut Vec<u8>| (1..9).for_each(|index| bytes[block + 2 * (clusters + index) + 1] = 1);
    damage("leaks", &leaks, Repair::Leaks);
    damage("leaks and all", &leaks, Repair::All);
    damage("refcounts too small", &|bytes| (8..24).for_each(|at| bytes[block + at] = 0), Repair::All);
    damage("no refcount block", &|bytes| bytes[table..table + 8].fill(0), Repair::All);
    cases
}

/// Every case of a family, cut off and failing.
fn every(cases: Vec<Case>) {
    for case in &cases {
        let begun = std::time::Instant::now();
        let mut judged = Judged::default();
        cut(case, &mut judged);
        let cuts = begun.elapsed();
        fail(case, &mut judged);
        println!("{}: cut {cuts:?}, failing {:?}", case.name, begun.elapsed() - cuts);
    }
}

#[test]
fn writes_that_are_cut_off_or_fail_lose_nothing() {
    every(writes());
}

#[test]
fn changes_of_size_that_are_cut_off_or_fail_lose_nothing() {
    every(resizes());
}

#[test]
fn amendments_that_are_cut_off_or_fail_lose_nothing() {
    every(amendments());
}

#[test]
fn changes_of_snapshots_that_are_cut_off_or_fail_lose_nothing() {
    every(snapshots());
}

#[test]
fn changes_of_bitmaps_that_are_cut_off_or_fail_lose_nothing() {
    every(bitmaps());
}

#[test]
fn rebases_and_commits_that_are_cut_off_or_fail_lose_nothing() {
    every(moves());
}

#[test]
fn images_whose_making_is_cut_off_or_fails_are_none_or_whole() {
    every(creations());
}

#[test]
fn repairs_that_are_cut_off_or_fail_leave_nothing_worse() {
    every(repairs());
}
