//! Bitmaps: against qemu-img, qemu-io and qemu-nbd, through power cuts, and in images that lie.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diskette::bitmap::DirtyBitmap;
use diskette::drivers::OpenOptions;
use diskette::engine::{BitmapsLost, SnapshotChange};
use diskette::native::{File, FileOpener, FileOptions};
use diskette::{
    ErrorKind, Gate, Image, ImageOptions, Memory, Node, Policy, Preallocation, Range, WriteFlags, block_on,
};

use crate::support::{Random, Scratch, TestNode, create, open, oracle, read, tool, with_files, writable, write};

const SIZE: u64 = 3 << 20;

type Ranges = Vec<(u64, u64)>;

fn open_path(path: &str, write: bool) -> Arc<Image> {
    let file = File::open(path, FileOptions { read_only: !write, ..FileOptions::default() }).unwrap();
    let options = OpenOptions {
        read_only: !write,
        gate: Gate::new(Policy::Allow, Arc::new(FileOpener::default())),
        image: ImageOptions { discard: true, ..ImageOptions::default() },
        ..OpenOptions::default()
    };
    open(file, &options).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn ranges(bitmap: &DirtyBitmap) -> Ranges {
    bitmap.ranges().map(|range| (range.start, range.len)).collect()
}

fn ours(image: &Image, name: &str) -> Ranges {
    ranges(&block_on(image.read_bitmap(name)).unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// What bitmaps say, as QEMU exports them.
fn theirs(path: &str, names: &[&str], scratch: &Scratch) -> Vec<Ranges> {
    let socket = scratch.path("socket");
    let mut args = vec!["-r", "-f", "qcow2", "-k", &socket, "-e", "8", "-t"];
    names.iter().for_each(|name| args.extend(["-B", name]));
    args.push(path);
    let mut server = Command::new("qemu-nbd").args(&args).spawn().expect("qemu-nbd (Debian: qemu-utils) is needed");
    for _ in 0..500 {
        // The socket is there before anybody listens.
        if UnixStream::connect(&socket).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let read = |name: &&str| {
        let options =
            format!("driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}");
        let text = oracle("qemu-img", &["map", "--output=json", "--image-opts", &options]);
        let mut found: Ranges = Vec::new();
        // What is dirty is shown as if it were not data.
        for line in text.lines().filter(|line| line.contains("\"data\": false")) {
            let number = |name: &str| -> u64 {
                let start = line.find(name).unwrap() + name.len() + 3;
                line[start..].split([',', '}']).next().unwrap().trim().parse().unwrap()
            };
            let (start, len) = (number("\"start"), number("\"length"));
            match found.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => found.push((start, len)),
            }
        }
        found
    };
    let found = names.iter().map(read).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    let _ = std::fs::remove_file(&socket);
    found
}

fn assert_clean(path: &str, place: &str) {
    let output = tool("qemu-img", &["check", path]);
    assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
    let report = block_on(open_path(path, false).check()).unwrap();
    assert!(report.is_clean(), "{place}: {:?}", report.findings);
}

/// A bitmap as it should be.
#[derive(Clone, Debug)]
struct Expected {
    enabled: bool,
    bits: DirtyBitmap,
}

/// One step of a history.
enum Step {
    Write(Range),
    Zero(Range),
    Discard(Range),
    Add(String, u64, bool),
    Remove(String),
    Clear(String),
    Enable(String),
    Disable(String),
    Merge(String, String),
    Resize(u64),
}

fn any_step(random: &mut Random, model: &BTreeMap<String, Expected>, size: u64, can_resize: bool) -> Step {
    let any = |random: &mut Random| model.keys().nth(random.below(model.len() as u64) as usize).unwrap().clone();
    let range = random.range(size, 200_000, 4096);
    match random.below(18) {
        0..=4 => Step::Write(range),
        5 => Step::Zero(range),
        6 => Step::Discard(range),
        7 if can_resize => Step::Resize(size + 512 * (1 + random.below(2000))),
        8 if can_resize && size > 2 << 20 => Step::Resize(size - 512 * (1 + random.below(1000))),
        9 | 10 if model.len() < 5 => {
            let name = format!("b{}", random.below(1_000_000));
            Step::Add(name, 512 << random.below(9), random.below(3) > 0)
        }
        11 if model.len() > 2 => Step::Remove(any(random)),
        12 if !model.is_empty() => Step::Clear(any(random)),
        13 if !model.is_empty() => Step::Enable(any(random)),
        14 if !model.is_empty() => Step::Disable(any(random)),
        15..=17 if !model.is_empty() => Step::Merge(any(random), any(random)),
        _ => Step::Write(range),
    }
}

fn expect(model: &mut BTreeMap<String, Expected>, size: &mut u64, step: &Step) {
    let change = |model: &mut BTreeMap<String, Expected>, name: &str, edit: &dyn Fn(&mut Expected)| {
        edit(model.get_mut(name).unwrap());
    };
    match step {
        Step::Write(range) | Step::Zero(range) | Step::Discard(range) => {
            for bitmap in model.values_mut().filter(|bitmap| bitmap.enabled) {
                bitmap.bits.set(*range);
            }
        }
        Step::Add(name, granularity, enabled) => {
            let bits = DirtyBitmap::new(*size, *granularity).unwrap();
            model.insert(name.clone(), Expected { enabled: *enabled, bits });
        }
        Step::Remove(name) => drop(model.remove(name)),
        Step::Clear(name) => change(model, name, &|bitmap| bitmap.bits.clear_all()),
        Step::Enable(name) => change(model, name, &|bitmap| bitmap.enabled = true),
        Step::Disable(name) => change(model, name, &|bitmap| bitmap.enabled = false),
        Step::Merge(name, from) => {
            let from = model[from].bits.clone();
            change(model, name, &|bitmap| bitmap.bits.merge(&from));
        }
        Step::Resize(length) => {
            *size = *length;
            model.values_mut().for_each(|bitmap| bitmap.bits.resize(*length).unwrap());
        }
    }
}

fn do_ours(image: &Image, step: &Step) -> diskette::Result<()> {
    block_on(async {
        match step {
            Step::Write(range) => image.write(range.start, &vec![7; range.len as usize], WriteFlags::default()).await,
            Step::Zero(range) => image.write_zeroes(*range, WriteFlags::default()).await,
            Step::Discard(range) => image.discard(*range).await,
            Step::Add(name, granularity, enabled) => image.add_bitmap(name, Some(*granularity), *enabled).await,
            Step::Remove(name) => image.remove_bitmap(name).await,
            Step::Clear(name) => image.clear_bitmap(name).await,
            Step::Enable(name) => image.enable_bitmap(name).await,
            Step::Disable(name) => image.disable_bitmap(name).await,
            Step::Merge(name, from) => image.merge_bitmap(name, &image.read_bitmap(from).await?).await,
            Step::Resize(length) => image.resize(*length, Preallocation::Off).await,
        }
    })
}

fn do_theirs(path: &str, step: &Step) {
    let io = |command: String| {
        oracle("qemu-io", &["-f", "qcow2", "-d", "unmap", "-c", &command, path]);
    };
    let bitmap = |args: &[&str], name: &str| {
        let all: Vec<&str> = ["bitmap"].iter().chain(args).copied().chain([path, name]).collect();
        oracle("qemu-img", &all);
    };
    match step {
        Step::Write(range) => io(format!("write -P 7 {} {}", range.start, range.len)),
        Step::Zero(range) => io(format!("write -z {} {}", range.start, range.len)),
        Step::Discard(range) => io(format!("discard {} {}", range.start, range.len)),
        Step::Add(name, granularity, enabled) => {
            let granularity = granularity.to_string();
            let mut args = vec!["--add", "-g", &granularity];
            if !enabled {
                args.push("--disable");
            }
            bitmap(&args, name);
        }
        Step::Remove(name) => bitmap(&["--remove"], name),
        Step::Clear(name) => bitmap(&["--clear"], name),
        Step::Enable(name) => bitmap(&["--enable"], name),
        Step::Disable(name) => bitmap(&["--disable"], name),
        Step::Merge(name, from) => bitmap(&["--merge", from], name),
        Step::Resize(length) => drop(oracle("qemu-img", &["resize", "-q", "--shrink", path, &length.to_string()])),
    }
}

#[test]
fn whoever_writes_bitmaps_say_the_same() {
    for (index, options) in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=4k,lazy_refcounts=on",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "data_file=data.raw",
    ]
    .iter()
    .enumerate()
    {
        let scratch = Scratch::new("bitmaps");
        let path = scratch.path("image.qcow2");
        let options = options.replace("data.raw", &scratch.path("data.raw"));
        oracle("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &path, &SIZE.to_string()]);
        let mut random = Random::new(77 + index as u64);
        let mut model = BTreeMap::new();
        let mut size = SIZE;
        for round in 0..8 {
            let place = format!("{options} round {round}");
            if round % 3 < 2 {
                let image = open_path(&path, true);
                for _ in 0..12 {
                    let step = any_step(&mut random, &model, size, true);
                    do_ours(&image, &step).unwrap_or_else(|error| panic!("{place}: {error}"));
                    expect(&mut model, &mut size, &step);
                }
                // What is in memory counts, too.
                for (name, bitmap) in &model {
                    assert_eq!(ours(&image, name), ranges(&bitmap.bits), "{place}: {name} before closing");
                }
                block_on(image.close()).unwrap();
            } else {
                for _ in 0..6 {
                    let step = any_step(&mut random, &model, size, true);
                    do_theirs(&path, &step);
                    expect(&mut model, &mut size, &step);
                }
            }
            assert_clean(&path, &place);
            let image = open_path(&path, false);
            let listed = image.bitmaps().unwrap();
            assert_eq!(listed.len(), model.len(), "{place}");
            for bitmap in &listed {
                let expected = &model[&bitmap.name];
                assert_eq!(
                    (bitmap.in_use, bitmap.auto, bitmap.granularity),
                    (false, expected.enabled, expected.bits.granularity()),
                    "{place}: {}",
                    bitmap.name
                );
                assert_eq!(ours(&image, &bitmap.name), ranges(&expected.bits), "{place}: {}", bitmap.name);
            }
            drop(image);
            let names: Vec<&str> = model.keys().map(String::as_str).collect();
            if !names.is_empty() {
                for (name, found) in names.iter().zip(theirs(&path, &names, &scratch)) {
                    assert_eq!(found, ranges(&model[*name].bits), "{place}: QEMU's {name}");
                }
            }
        }
    }
}

/// What is known of a bitmap at some time.
type State = BTreeMap<String, (bool, Ranges)>;

fn state(image: &Image) -> State {
    let listed = image.bitmaps().unwrap();
    let sound = listed.iter().filter(|bitmap| !bitmap.in_use);
    sound.map(|bitmap| (bitmap.name.clone(), (bitmap.auto, ours(image, &bitmap.name)))).collect()
}

type Change = Box<dyn Fn(&Image) -> diskette::Result<()>>;

#[test]
fn a_power_cut_leaves_bitmaps_right_or_inconsistent() {
    for (index, options) in [
        &[("cluster_size", "64k")] as &[(&str, &str)],
        &[("cluster_size", "512")],
        &[("cluster_size", "1k"), ("lazy_refcounts", "on")],
        &[("cluster_size", "4k"), ("backing_file", "some-name"), ("backing_fmt", "raw")],
    ]
    .iter()
    .enumerate()
    {
        let size = 600 << 10;
        let base: Arc<dyn Node> = Memory::read_only(vec![0xbb; 300 << 10], "base");
        let open_options = with_files(writable(), &[("some-name", base)]);
        let read_only = OpenOptions { read_only: true, ..open_options.clone() };
        let mut bytes = create(size, options);
        let mut random = Random::new(index as u64);
        let mut other = DirtyBitmap::new(size, 4096).unwrap();
        other.set(Range::new(100_000, 50_000));
        let steps: Vec<(&str, Change)> = vec![
            ("add a", Box::new(|image| block_on(image.add_bitmap("a", Some(512), true)))),
            ("write", Box::new(|image| write(image, 3000, &[1; 70_000]))),
            ("add b", Box::new(|image| block_on(image.add_bitmap("b", Some(4096), false)))),
            ("merge", Box::new(move |image| block_on(image.merge_bitmap("b", &other)))),
            (
                "write and add",
                Box::new(|image| {
                    write(image, 300_000, &[2; 9000])?;
                    block_on(image.add_bitmap(&"long name ".repeat(60), Some(1 << 20), true))?;
                    write(image, 400_000, &[3; 600])
                }),
            ),
            ("enable b", Box::new(|image| block_on(image.enable_bitmap("b")))),
            ("write all", Box::new(move |image| write(image, 0, &vec![4; size as usize]))),
            ("disable a", Box::new(|image| block_on(image.disable_bitmap("a")))),
            ("resize", Box::new(move |image| block_on(image.resize(size * 9, Preallocation::Off)))),
            ("clear b", Box::new(|image| block_on(image.clear_bitmap("b")))),
            ("discard", Box::new(|image| block_on(image.discard(Range::new(64 << 10, 128 << 10))))),
            ("remove b", Box::new(|image| block_on(image.remove_bitmap("b")))),
            ("remove a", Box::new(|image| block_on(image.remove_bitmap("a")))),
            ("remove the last", Box::new(|image| block_on(image.remove_bitmap(&"long name ".repeat(60))))),
        ];
        for (what, step) in steps {
            let place = format!("{options:?} {what}");
            let before = open(Memory::new(bytes.clone()), &read_only).unwrap();
            let old = state(&before);
            let node = TestNode::new(bytes.clone());
            node.record();
            let image = open(node.clone(), &open_options).unwrap();
            step(&image).unwrap_or_else(|error| panic!("{place}: {error}"));
            block_on(image.close()).unwrap();
            bytes = node.bytes();
            let after = open(Memory::new(bytes.clone()), &read_only).unwrap();
            let new = state(&after);
            assert!(after.bitmaps().unwrap().iter().all(|bitmap| !bitmap.in_use), "{place}: closed properly");
            assert!(block_on(after.check()).unwrap().is_clean(), "{place}");
            let disk = |image: &Image| read(image, 0, size as usize).ok();
            for (moment, snapshot) in node.history().iter().enumerate() {
                let place = format!("{place} moment {moment}");
                let cut = snapshot.survive(&mut random, [0, 4, 6, 8][moment % 4]);
                let image = open(Memory::new(cut.clone()), &read_only).unwrap_or_else(|e| panic!("{place}: {e}"));
                let report = block_on(image.check()).unwrap();
                let lazy = image.describe().unwrap().dirty;
                assert!(lazy || (report.corruptions, report.check_errors) == (0, 0), "{place}: {:?}", report.findings);
                for bitmap in image.bitmaps().unwrap() {
                    let name = &bitmap.name;
                    assert!(old.contains_key(name) || new.contains_key(name), "{place}: {name}");
                    if bitmap.in_use {
                        continue;
                    }
                    let found = ours(&image, name);
                    let is = |state: &State| state.get(name).is_some_and(|(_, bits)| *bits == found);
                    assert!(is(&old) || is(&new), "{place}: {name} is {found:?}");
                    // One that records changes has recorded what is different.
                    if bitmap.auto && !is(&new) {
                        assert!(disk(&image) == disk(&before), "{place}: {name} lacks a change");
                    }
                }
                for name in old.keys().filter(|name| new.contains_key(*name)) {
                    assert!(image.bitmaps().unwrap().iter().any(|bitmap| bitmap.name == *name), "{place}: {name}");
                }
                // The image goes on: what is inconsistent can be removed, and everything is clean then.
                if lazy || moment % 3 != 0 {
                    continue;
                }
                let file = Memory::new(cut);
                let image = open(file.clone(), &open_options).unwrap();
                write(&*image, 0, &[9; 512]).unwrap();
                for bitmap in image.bitmaps().unwrap() {
                    block_on(image.remove_bitmap(&bitmap.name)).unwrap();
                }
                block_on(image.close()).unwrap();
                let report = block_on(open(file, &read_only).unwrap().check()).unwrap();
                assert_eq!((report.corruptions, report.check_errors), (0, 0), "{place}: {:?}", report.findings);
            }
        }
    }
}

#[test]
fn a_bitmap_that_cannot_be_written_back_is_lost_and_says_so() {
    let file = Memory::new(create(1 << 30, &[]));
    let image = open(file.clone(), &writable()).unwrap();
    block_on(image.add_bitmap("good", None, true)).unwrap();
    block_on(image.close()).unwrap();
    let node = TestNode::new(file.to_vec());
    let image = open(node.clone(), &writable()).unwrap();
    write(&*image, 0, &[1; 4096]).unwrap();
    block_on(image.flush()).unwrap();
    node.fail_at.store(0, Ordering::Relaxed);
    let error = block_on(image.close()).unwrap_err();
    // Nothing at all can be written here, so padding fails before the bitmap would.
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    node.fail_at.store(usize::MAX, Ordering::Relaxed);
    let cut = open(Memory::new(node.bytes()), &OpenOptions::default()).unwrap();
    assert!(cut.bitmaps().unwrap()[0].in_use, "it must not be believed");
    let error = block_on(cut.read_bitmap("good")).unwrap_err();
    assert!(error.to_string().contains("Bitmap 'good' is inconsistent and cannot be used"), "{error}");
    // Trying again succeeds once there is space.
    block_on(image.close()).unwrap();
    let again = open(Memory::new(node.bytes()), &OpenOptions::default()).unwrap();
    assert_eq!(ours(&again, "good"), [(0, 65536)]);
    let lost = BitmapsLost { name: "good".into(), cause: "No space left on device".into() };
    assert!(lost.to_string().contains("Failed to write bitmap 'good' to file: No space left on device"));
}

#[test]
fn failing_writes_never_leave_a_bitmap_that_is_wrong() {
    let file = Memory::new(create(1 << 20, &[("cluster_size", "4k")]));
    let image = open(file.clone(), &writable()).unwrap();
    block_on(image.add_bitmap("a", Some(512), true)).unwrap();
    block_on(image.close()).unwrap();
    for limit in 0.. {
        let node = TestNode::new(file.to_vec());
        node.fail_at.store(limit, Ordering::Relaxed);
        let image = open(node.clone(), &writable()).unwrap();
        let mut failed = write(&*image, 5000, &[1; 9000]).is_err();
        failed |= block_on(image.add_bitmap("b", Some(512), true)).is_err();
        failed |= write(&*image, 100_000, &[2; 100]).is_err();
        failed |= block_on(image.remove_bitmap("b")).is_err();
        failed |= block_on(image.close()).is_err();
        let found = open(Memory::new(node.bytes()), &OpenOptions::default()).unwrap();
        let report = block_on(found.check()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "limit {limit}: {:?}", report.findings);
        let disk = read(&*found, 0, 1 << 20).unwrap();
        for bitmap in found.bitmaps().unwrap().iter().filter(|bitmap| !bitmap.in_use && bitmap.name == "a") {
            let bits = block_on(found.read_bitmap(&bitmap.name)).unwrap();
            let wrong = (0..1 << 20).find(|at| disk[*at as usize] != 0 && !bits.contains(*at));
            assert_eq!(wrong, None, "limit {limit}");
        }
        if !failed {
            assert!(limit > 15, "{limit}");
            return;
        }
    }
}

#[test]
fn a_single_failure_harms_neither_bitmaps_nor_data() {
    let file = Memory::new(create(1 << 31, &[("cluster_size", "4k")]));
    let image = open(file.clone(), &writable()).unwrap();
    block_on(image.add_bitmap("a", Some(512), true)).unwrap();
    write(&*image, 0, &[1; 100]).unwrap();
    block_on(image.close()).unwrap();
    for limit in 0.. {
        let node = TestNode::failing_once(file.to_vec(), limit);
        let image = open(node.clone(), &writable()).unwrap();
        let mut failed = false;
        let mut written = Vec::new();
        for at in [5000, 17 << 20] {
            match write(&*image, at, &[2; 9000]) {
                Ok(()) => written.push(at),
                Err(_) => failed = true,
            }
        }
        failed |= block_on(image.add_bitmap("b", Some(4096), true)).is_err();
        let is_there = image.bitmaps().unwrap().iter().any(|bitmap| bitmap.name == "b");
        failed |= write(&*image, 40 << 20, &[3; 100]).map(|()| written.push(40 << 20)).is_err();
        failed |= block_on(image.close()).is_err();
        // What is free now is used at once.
        node.fail_at.store(usize::MAX, Ordering::Relaxed);
        write(&*image, 60 << 20, &[4; 20_000]).unwrap();
        block_on(image.close()).unwrap();
        let found = open(Memory::new(node.bytes()), &OpenOptions::default()).unwrap();
        let report = block_on(found.check()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "limit {limit}: {:?}", report.findings);
        assert_eq!(read(&*found, 60 << 20, 20_000).unwrap(), [4; 20_000], "limit {limit}");
        for bitmap in found.bitmaps().unwrap().iter().filter(|bitmap| !bitmap.in_use) {
            let bits = block_on(found.read_bitmap(&bitmap.name)).unwrap();
            for at in &written {
                let counts = bitmap.name == "a" || (is_there && *at == 40 << 20);
                assert!(!counts || bits.contains(*at), "limit {limit}: bitmap {} lacks {at}", bitmap.name);
            }
            assert!(bits.contains(60 << 20), "limit {limit}: bitmap {}", bitmap.name);
        }
        if !failed {
            assert!(limit > 15, "{limit}");
            return;
        }
    }
}

#[test]
fn a_failure_while_the_size_changes_leaves_an_image_that_opens() {
    for (before, after) in [(16 << 20, 64 << 20), (64 << 20, 16 << 20)] {
        let file = Memory::new(create(before, &[("cluster_size", "4k")]));
        let image = open(file.clone(), &writable()).unwrap();
        block_on(image.add_bitmap("a", Some(512), true)).unwrap();
        block_on(image.close()).unwrap();
        for limit in 0.. {
            let node = TestNode::failing_once(file.to_vec(), limit);
            let image = open(node.clone(), &writable()).unwrap();
            let resized = block_on(image.resize(after, Preallocation::Off));
            let failed = block_on(image.close()).is_err() || resized.is_err();
            block_on(image.close()).unwrap();
            let found = open(Memory::new(node.bytes()), &OpenOptions::default())
                .unwrap_or_else(|error| panic!("{before} to {after}, limit {limit}: {error}"));
            let length = found.info().length;
            assert!(length == after || (resized.is_err() && length == before), "limit {limit}: {length}");
            assert!(block_on(found.read_bitmap("a")).is_ok_and(|bits| bits.length() == length), "limit {limit}");
            if !failed {
                break;
            }
        }
    }
}

/// A closed image with two bitmaps and some bits, and where its directory is.
fn with_bitmaps() -> (Vec<u8>, usize) {
    let file = Memory::new(create(1 << 30, &[("cluster_size", "4k")]));
    let image = open(file.clone(), &writable()).unwrap();
    for name in ["one", "two"] {
        block_on(image.add_bitmap(name, Some(512), true)).unwrap();
    }
    write(&*image, 0, &[1; 5000]).unwrap();
    write(&*image, 500 << 20, &[1; 5000]).unwrap();
    block_on(image.close()).unwrap();
    let bytes = file.to_vec();
    let extension = bytes.windows(4).position(|kind| kind == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = u64::from_be_bytes(bytes[extension + 24..extension + 32].try_into().unwrap());
    (bytes, directory as usize)
}

#[test]
fn a_directory_that_lies_is_refused_with_what_it_says() {
    let (sound, directory) = with_bitmaps();
    let extension = sound.windows(4).position(|kind| kind == [0x23, 0x85, 0x28, 0x75]).unwrap() + 8;
    let cases: &[(&str, usize, &[u8])] = &[
        ("nb_bitmaps", extension, &0u32.to_be_bytes()),
        ("nb_bitmaps", extension, &65536u32.to_be_bytes()),
        ("bitmap_directory_size", extension, &3u32.to_be_bytes()),
        ("bitmap_directory_size", extension + 8, &(65u64 << 20).to_be_bytes()),
        ("bitmap_directory_size", extension + 8, &72u64.to_be_bytes()),
        ("bitmap_directory_offset", extension + 16, &4097u64.to_be_bytes()),
        ("the bitmap directory", extension + 16, &(1u64 << 40).to_be_bytes()),
        ("bitmap_table_offset", directory, &1u64.to_be_bytes()),
        ("bitmap_table_offset", directory, &0u64.to_be_bytes()),
        ("bitmap_table_offset", directory, &(1u64 << 40).to_be_bytes()),
        ("bitmap_table_size", directory + 8, &0u32.to_be_bytes()),
        ("bitmap_table_size", directory + 8, &1u32.to_be_bytes()),
        ("bitmap_table_size", directory + 8, &u32::MAX.to_be_bytes()),
        ("bitmap flags", directory + 12, &8u32.to_be_bytes()),
        ("type", directory + 16, &[2]),
        ("granularity_bits", directory + 17, &[8]),
        ("granularity_bits", directory + 17, &[32]),
        ("name_size", directory + 18, &0u16.to_be_bytes()),
        ("bitmap_directory_size", directory + 18, &1023u16.to_be_bytes()),
        ("bitmap_directory_size", directory + 20, &u32::MAX.to_be_bytes()),
        ("two bitmaps are called 'two'", directory + 24, b"two"),
    ];
    for (what, at, value) in cases {
        let mut bytes = sound.clone();
        bytes[*at..at + value.len()].copy_from_slice(value);
        for options in [OpenOptions::default(), writable()] {
            let error = open(Memory::new(bytes.clone()), &options).expect_err(what);
            let text = error.to_string();
            assert!(text.contains(what) && text.contains("expected"), "{what}: {text}");
            assert!(error.context().offset.is_some(), "{what}: {text}");
        }
    }
}

#[test]
fn a_table_that_lies_keeps_its_bitmap_from_use_and_the_image_from_harm() {
    let (sound, directory) = with_bitmaps();
    let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let table = word(directory) as usize;
    let second = word(directory + 32) as usize;
    let used = (0..64).map(|index| word(table + index * 8)).find(|entry| *entry > 1).unwrap();
    let cases: &[(&str, usize, u64)] = &[
        ("bits but 0 and 9 to 55", table, 2),
        ("bits but 0 and 9 to 55", table, 1 << 60),
        ("bit 0 clear", table, used | 1),
        ("multiple of the cluster size", table, used + 512),
        ("within the file", table, 1 << 40),
        ("no other has", table + 8, used),
        ("overlaps the header", directory, 0),
        ("overlaps the active L1 table", directory, word(40)),
        ("overlaps the refcount table", directory, word(48)),
        ("overlaps an L2 table or a refcount block", directory, word(word(48) as usize)),
        ("overlaps another one", directory, second as u64),
        ("overlaps another one", directory, directory as u64),
    ];
    for (what, at, value) in cases {
        let mut bytes = sound.clone();
        if (*what, *at) == ("overlaps the header", directory) {
            // That is refused earlier.
            continue;
        }
        bytes[*at..at + 8].copy_from_slice(&value.to_be_bytes());
        let file = Memory::new(bytes.clone());
        let image = open(file.clone(), &writable()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let error = write(&*image, 0, &[2; 512]).expect_err(what);
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert!(error.context().offset.is_some(), "{what}: {error}");
        if what.contains("overlaps") {
            let _ = block_on(image.close());
            continue;
        }
        let error = block_on(image.read_bitmap("one")).expect_err(what);
        assert!(error.to_string().contains(what), "{what}: {error}");
        // Without it the image can be written.
        block_on(image.remove_bitmap("one")).unwrap();
        write(&*image, 1 << 20, &[2; 512]).unwrap();
        block_on(image.close()).unwrap();
        let image = open(file, &OpenOptions::default()).unwrap();
        assert!(ours(&image, "two").contains(&(1 << 20, 512)), "{what}");
        assert_eq!(block_on(image.check()).unwrap().corruptions, 0, "{what}");
    }
}

#[test]
fn extra_data_that_is_not_understood_keeps_a_bitmap_from_use_unless_it_says_otherwise() {
    let (sound, directory) = with_bitmaps();
    for (flags, usable) in [(2u32, false), (6, true)] {
        let mut bytes = sound.clone();
        // One bitmap whose entry has eight bytes of extra data, and then the name; the other one is gone.
        bytes[directory + 12..directory + 16].copy_from_slice(&flags.to_be_bytes());
        bytes[directory + 20..directory + 24].copy_from_slice(&8u32.to_be_bytes());
        bytes[directory + 24..directory + 64].copy_from_slice(&{
            let mut rest = [0; 40];
            rest[..11].copy_from_slice(b"whatever123");
            rest
        });
        bytes[directory + 18..directory + 20].copy_from_slice(&3u16.to_be_bytes());
        let extension = bytes.windows(4).position(|kind| kind == [0x23, 0x85, 0x28, 0x75]).unwrap() + 8;
        bytes[extension..extension + 4].copy_from_slice(&1u32.to_be_bytes());
        bytes[extension + 8..extension + 16].copy_from_slice(&40u64.to_be_bytes());
        let file = Memory::new(bytes);
        let image = open(file.clone(), &writable()).unwrap();
        assert_eq!(block_on(image.read_bitmap("123")).is_ok(), usable);
        write(&*image, 1 << 20, &[1; 512]).unwrap();
        block_on(image.add_bitmap("new", None, false)).unwrap();
        block_on(image.close()).unwrap();
        let image = open(file.clone(), &OpenOptions::default()).unwrap();
        // One that could not be kept up to date is not believed by those who could use it either.
        assert_eq!(image.bitmaps().unwrap()[0].in_use, !usable);
        assert!(file.to_vec().windows(11).any(|part| part == b"whatever123"), "extra data stays");
    }
}

#[test]
fn a_writer_that_does_not_know_bitmaps_makes_them_disappear() {
    let (mut bytes, _) = with_bitmaps();
    bytes[88..96].fill(0);
    let file = Memory::new(bytes);
    let image = open(file.clone(), &writable()).unwrap();
    assert!(image.bitmaps().unwrap().is_empty() && image.describe().unwrap().stale_bitmaps);
    block_on(image.add_bitmap("new", None, true)).unwrap();
    write(&*image, 0, &[1; 512]).unwrap();
    block_on(image.close()).unwrap();
    let image = open(file, &OpenOptions::default()).unwrap();
    assert_eq!(image.bitmaps().unwrap().len(), 1);
    assert_eq!(ours(&image, "new"), [(0, 4096)]);
    assert!(!image.describe().unwrap().stale_bitmaps);
}

#[test]
fn snapshots_come_and_go_beside_bitmaps_but_are_not_applied() {
    let (bytes, _) = with_bitmaps();
    let file = Memory::new(bytes);
    let image = open(file.clone(), &writable()).unwrap();
    let create = SnapshotChange::Create { name: "s".into(), date_sec: 1, date_nsec: 0 };
    block_on(image.snapshot(&create)).unwrap();
    let error = block_on(image.snapshot(&SnapshotChange::Apply("s".into()))).unwrap_err();
    assert!(error.to_string().contains("Device has active dirty bitmaps"), "{error}");
    block_on(image.snapshot(&SnapshotChange::Delete("s".into()))).unwrap();
    block_on(image.close()).unwrap();
    let image = open(file, &OpenOptions::default()).unwrap();
    assert_eq!(ours(&image, "one"), [(0, 5120), (500 << 20, 5120)]);
    assert!(block_on(image.check()).unwrap().is_clean());
}

#[test]
fn limits_are_told() {
    let image = open(Memory::new(create(64 << 40, &[("cluster_size", "2M")])), &writable()).unwrap();
    let refused = |name: &str, granularity, says: &str| {
        let error = block_on(image.add_bitmap(name, granularity, true)).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    };
    refused("a", Some(513), "Granularity must be power of 2 and at least 512");
    refused("a", Some(256), "Granularity must be power of 2 and at least 512");
    refused("a", Some(1 << 32), "Granularity must be power of 2 and at least 512");
    refused("a", Some(8192), "Too much space will be occupied by the bitmap");
    refused("", None, "Bitmap name cannot be empty");
    refused(&"x".repeat(1024), None, "Name length");
    block_on(image.add_bitmap(&"x".repeat(1023), Some(16384), true)).unwrap();
    refused(&"x".repeat(1023), None, "Bitmap already exists");
    block_on(image.close()).unwrap();
    let old = open(Memory::new(create(1 << 20, &[("compat", "0.10")])), &writable()).unwrap();
    let error = block_on(old.add_bitmap("a", None, true)).unwrap_err();
    assert!(error.to_string().contains("Cannot store dirty bitmaps in qcow2 v2 files"), "{error}");
}
