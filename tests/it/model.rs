//! Random operations on random geometries behave like a `Vec<u8>`, through every kind of host.

use std::sync::{Arc, Mutex};

use diskette::drivers::OpenOptions;
use diskette::ring::{Answer, Ask, Stepper};
use diskette::{Callbacks, CheckReport, Image, Memory, Node, Range, ReadFlags, WriteFlags, block_on};

use crate::support::{Random, create, create_in, open, read, readable, with_files, writable, write};

/// Options of images whose write paths differ.
const GEOMETRIES: &[&[(&str, &str)]] = &[
    &[],
    &[("cluster_size", "512")],
    &[("cluster_size", "4k"), ("refcount_bits", "1")],
    &[("cluster_size", "1k"), ("refcount_bits", "64")],
    &[("cluster_size", "2k"), ("compat", "0.10")],
    &[("cluster_size", "16k"), ("extended_l2", "on")],
    &[("cluster_size", "8k"), ("lazy_refcounts", "on"), ("refcount_bits", "8")],
    &[("cluster_size", "4k"), ("preallocation", "metadata")],
    &[("cluster_size", "4k"), ("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "1")],
    &[("cluster_size", "512"), ("encrypt.format", "aes"), ("encrypt.key-secret", "s")],
    &[
        ("cluster_size", "16k"),
        ("extended_l2", "on"),
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", "s"),
        ("encrypt.iter-time", "1"),
        ("encrypt.cipher-mode", "cbc"),
    ],
];

fn size_for(options: &[(&str, &str)]) -> u64 {
    if options.is_empty() { 3 << 20 } else { 700 << 10 }
}

fn assert_sound(report: &CheckReport) {
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.findings);
}

/// One random operation on the image and on the model.
fn step(random: &mut Random, image: &Image, model: &mut [u8], backed: bool, version: u32) -> diskette::Result<()> {
    let size = model.len() as u64;
    let range = random.range(size, 100_000, 4096);
    let part = range.start as usize..range.end() as usize;
    match random.below(10) {
        0..=4 => {
            let value = random.below(256) as u8;
            let bytes: Vec<u8> = (0..range.len).map(|index| value.wrapping_add(index as u8)).collect();
            write(image, range.start, &bytes)?;
            model[part].copy_from_slice(&bytes);
        }
        5 | 6 => {
            let may_unmap = random.below(2) == 0;
            block_on(image.write_zeroes(range, WriteFlags { may_unmap, ..WriteFlags::default() }))?;
            model[part].fill(0);
        }
        7 => {
            // What a discarded range reads as is up to the format: zeroes, or what was there before.
            block_on(image.discard(range))?;
            let after = read(image, range.start, range.len as usize)?;
            for (byte, old) in after.iter().zip(&model[part.clone()]) {
                assert!(*byte == 0 || byte == old, "discard neither kept nor zeroed");
            }
            assert!(
                !(backed && version < 3) || after == model[part.clone()],
                "version 2 has no way to hide the backing file"
            );
            model[part].copy_from_slice(&after);
        }
        8 => block_on(image.flush())?,
        _ => assert!(read(image, range.start, range.len as usize)? == model[part], "range {range:?}"),
    }
    Ok(())
}

fn history(seed: u64, options: &[(&str, &str)], steps: usize, leaf: &dyn Fn(Arc<Memory>) -> Arc<dyn Node>) {
    let mut random = Random::new(seed);
    let size = size_for(options);
    let backed = random.below(2) == 0 && !options.iter().any(|(name, _)| *name == "preallocation");
    let version = if options.contains(&("compat", "0.10")) { 2 } else { 3 };
    let backing: Vec<u8> = (0..size / 2 + 777).map(|_| random.next() as u8).collect();
    let mut all: Vec<(&str, &str)> = options.to_vec();
    let mut model = vec![0; size as usize];
    if backed {
        all.extend([("backing_file", "base"), ("backing_fmt", "raw")]);
        model[..backing.len()].copy_from_slice(&backing);
    }
    let base: Arc<dyn Node> = Memory::read_only(backing, "base");
    let file = Memory::new(create(size, &all));
    let options = with_files(writable(), &[("base", base)]);
    for _round in 0..3 {
        let image = open(leaf(file.clone()), &options).expect("the image opens");
        for _ in 0..steps {
            step(&mut random, &image, &mut model, backed, version).expect("no operation fails");
        }
        assert!(read(&*image, 0, size as usize).unwrap() == model, "seed {seed}: contents before closing");
        block_on(image.close()).unwrap();
        let report = block_on(image.check()).unwrap();
        assert!(report.is_clean(), "seed {seed} {all:?}: {:?}", report.findings);
    }
    let reopened = open(file, &OpenOptions { read_only: true, ..options }).unwrap();
    assert!(read(&*reopened, 0, size as usize).unwrap() == model, "seed {seed}: contents after closing");
}

#[test]
fn histories_behave_like_a_vector() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        for seed in 0..4 {
            history(seed * 100 + index as u64, options, 60, &|memory| memory);
        }
    }
}

/// A leaf of plain callbacks over memory.
fn through_callbacks(memory: Arc<Memory>, alignment: u32) -> Arc<dyn Node> {
    let (reader, writer, resizer) = (memory.clone(), memory.clone(), memory.clone());
    let length = memory.info().length.next_multiple_of(u64::from(alignment));
    block_on(memory.resize(length, diskette::Preallocation::Off)).unwrap();
    Arc::new(
        Callbacks::new(length, move |at, into| {
            assert!(at.is_multiple_of(alignment.into()) && (into.len() as u64).is_multiple_of(alignment.into()));
            block_on(reader.read(at, into, ReadFlags::default()))
        })
        .with_write(move |at, from| {
            assert!(at.is_multiple_of(alignment.into()) && (from.len() as u64).is_multiple_of(alignment.into()));
            block_on(writer.write(at, from, WriteFlags::default()))
        })
        .with_resize(move |range| block_on(resizer.resize(range.len, diskette::Preallocation::Off)))
        .with_alignment(alignment),
    )
}

#[test]
fn histories_behave_like_a_vector_through_callbacks() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        history(7000 + index as u64, options, 40, &|memory| through_callbacks(memory, 1));
    }
}

#[test]
fn a_leaf_that_insists_on_blocks_gets_blocks() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        for alignment in [512, 4096] {
            history(8000 + index as u64, options, 30, &|memory| through_callbacks(memory, alignment));
        }
    }
}

/// A leaf that moves one byte at a time.
struct OneByte(Arc<Memory>);

impl Node for OneByte {
    fn info(&self) -> diskette::NodeInfo {
        self.0.info()
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> diskette::Op<'a, ()> {
        diskette::Op::future(async move {
            for (index, byte) in into.chunks_mut(1).enumerate() {
                self.0.read(at + index as u64, byte, flags).await?;
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> diskette::Op<'a, ()> {
        diskette::Op::future(async move {
            for (index, byte) in from.chunks(1).enumerate() {
                self.0.write(at + index as u64, byte, flags).await?;
            }
            Ok(())
        })
    }

    fn resize<'a>(&'a self, length: u64, preallocation: diskette::Preallocation) -> diskette::Op<'a, ()> {
        self.0.resize(length, preallocation)
    }
}

#[test]
fn one_byte_at_a_time_is_enough() {
    for (index, options) in GEOMETRIES.iter().enumerate().skip(1) {
        history(9000 + index as u64, options, 8, &|memory| Arc::new(OneByte(memory)));
    }
}

/// Answers the stepper's requests in random order until every task has ended.
fn pump(stepper: &Stepper, files: &Mutex<Vec<Vec<u8>>>, random: &mut Random) {
    let mut asked = Vec::new();
    while stepper.poll() > 0 {
        while let Some(request) = stepper.next_request() {
            asked.push(request);
        }
        assert!(!asked.is_empty(), "tasks wait, but nothing was asked for");
        let request = asked.swap_remove(random.below(asked.len() as u64) as usize);
        let mut files = files.lock().unwrap();
        let mut grow = |file: u32, end: u64| {
            let bytes = &mut files[file as usize - 1];
            let end = end as usize;
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
        };
        let answer = match request.ask {
            Ask::Read { file, at, len } => {
                Answer::Bytes(files[file as usize - 1][at as usize..at as usize + len].to_vec())
            }
            Ask::Write { file, at, bytes } => {
                grow(file, at + bytes.len() as u64);
                files[file as usize - 1][at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                Answer::Done
            }
            Ask::Zero { file, range } => {
                grow(file, range.end());
                files[file as usize - 1][range.start as usize..range.end() as usize].fill(0);
                Answer::Done
            }
            Ask::Resize { file, length } => {
                files[file as usize - 1].resize(length as usize, 0);
                Answer::Done
            }
            _ => Answer::Done,
        };
        stepper.complete(request.id, Ok(answer));
    }
}

#[test]
fn tasks_that_overlap_in_a_stepper_keep_their_own_ranges() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        let mut random = Random::new(400 + index as u64);
        let size = size_for(options);
        let bytes = create(size, options);
        let stepper = Stepper::new();
        let file = stepper.file("image", bytes.len() as u64);
        let files = Mutex::new(vec![bytes]);
        let options = writable();
        let opening = stepper.start(async move { diskette::open(file, &options).await });
        pump(&stepper, &files, &mut random);
        let image = opening.take().expect("the task has ended").expect("the image opens");
        // Eight tasks, each with stripes of 3000 bytes of its own, so that many share a cluster.
        const TASKS: u64 = 8;
        const STRIPE: u64 = 3000;
        let results: Vec<_> = (0..TASKS)
            .map(|number| {
                let image = image.clone();
                let mut random = Random::new(number + 31 * index as u64);
                stepper.start(async move {
                    let mut stripes = std::collections::BTreeMap::new();
                    for _ in 0..25 {
                        let stripe = random.below(size / STRIPE / TASKS) * TASKS + number;
                        let bytes: Vec<u8> = (0..STRIPE).map(|_| random.next() as u8).collect();
                        if random.below(5) == 0 {
                            image.write_zeroes(Range::new(stripe * STRIPE, STRIPE), WriteFlags::default()).await?;
                            stripes.insert(stripe, vec![0; STRIPE as usize]);
                        } else {
                            image.write(stripe * STRIPE, &bytes, WriteFlags::default()).await?;
                            stripes.insert(stripe, bytes);
                        }
                        if random.below(6) == 0 {
                            image.flush().await?;
                        }
                        let mut seen = vec![0; STRIPE as usize];
                        image.read(stripe * STRIPE, &mut seen, ReadFlags::default()).await?;
                        assert!(seen == stripes[&stripe], "a task reads what it wrote");
                    }
                    Ok::<_, diskette::Error>(stripes)
                })
            })
            .collect();
        pump(&stepper, &files, &mut random);
        let closing = {
            let image = image.clone();
            stepper.start(async move { image.close().await })
        };
        pump(&stepper, &files, &mut random);
        closing.take().unwrap().unwrap();
        let memory = Memory::new(files.into_inner().unwrap().remove(0));
        let reopened = open(memory, &readable()).unwrap();
        for result in results {
            for (stripe, bytes) in result.take().unwrap().unwrap() {
                assert!(read(&*reopened, stripe * STRIPE, STRIPE as usize).unwrap() == bytes, "stripe {stripe}");
            }
        }
        assert!(block_on(reopened.check()).unwrap().is_clean());
    }
}

#[test]
fn threads_that_share_clusters_keep_their_own_ranges() {
    for (index, options) in GEOMETRIES.iter().enumerate() {
        let size = size_for(options);
        let file = Memory::new(create(size, options));
        let image = open(file.clone(), &writable()).unwrap();
        const THREADS: u64 = 4;
        const STRIPE: u64 = 1500;
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|number| {
                    let image = &image;
                    scope.spawn(move || {
                        let mut random = Random::new(number * 977 + index as u64);
                        let mut stripes = std::collections::BTreeMap::new();
                        for _ in 0..120 {
                            let stripe = random.below(size / STRIPE / THREADS) * THREADS + number;
                            let bytes: Vec<u8> = (0..STRIPE).map(|_| random.next() as u8).collect();
                            write(&**image, stripe * STRIPE, &bytes).unwrap();
                            assert!(read(&**image, stripe * STRIPE, STRIPE as usize).unwrap() == bytes);
                            if random.below(9) == 0 {
                                block_on(image.flush()).unwrap();
                            }
                            stripes.insert(stripe, bytes);
                        }
                        stripes
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        block_on(image.close()).unwrap();
        assert_sound(&block_on(image.check()).unwrap());
        let reopened = open(file, &readable()).unwrap();
        for (stripe, bytes) in all {
            assert!(read(&*reopened, stripe * STRIPE, STRIPE as usize).unwrap() == bytes, "stripe {stripe}");
        }
    }
}

#[test]
fn growing_a_disk_keeps_its_contents_and_adds_zeroes() {
    let file = Memory::new(create(64 << 10, &[("cluster_size", "512")]));
    let image = open(file.clone(), &writable()).unwrap();
    write(&*image, 1000, &[7; 5000]).unwrap();
    block_on(image.resize(40 << 20, diskette::Preallocation::Off)).unwrap();
    write(&*image, (40 << 20) - 600, &[9; 600]).unwrap();
    block_on(image.close()).unwrap();
    let reopened = open(file, &OpenOptions::default()).unwrap();
    assert_eq!(reopened.info().length, 40 << 20);
    assert_eq!(read(&*reopened, 999, 5002).unwrap(), [&[0][..], &[7; 5000], &[0]].concat());
    assert_eq!(read(&*reopened, (40 << 20) - 601, 601).unwrap(), [&[0][..], &[9; 600]].concat());
    assert!(block_on(reopened.check()).unwrap().is_clean());
}

#[test]
fn a_chain_as_deep_as_the_budget_allows_can_be_read() {
    let depth = diskette::Budgets::default().chain_depth as usize;
    let files: Vec<(String, Arc<dyn Node>)> = (0..depth)
        .map(|number| {
            let next = format!("image{}", number + 1);
            let mut options = vec![("cluster_size", "512")];
            if number + 1 < depth {
                options.extend([("backing_file", next.as_str()), ("backing_fmt", "qcow2")]);
            }
            let file = Memory::new(create(64 << 10, &options));
            if number + 1 == depth {
                let image = open(file.clone(), &writable()).unwrap();
                write(&*image, 0, &[7; 64 << 10]).unwrap();
                block_on(image.close()).unwrap();
            }
            let name = format!("image{number}");
            (name.clone(), Memory::read_only(file.to_vec(), name) as Arc<dyn Node>)
        })
        .collect();
    let named: Vec<(&str, Arc<dyn Node>)> = files.iter().map(|(name, node)| (name.as_str(), node.clone())).collect();
    let image = open(files[0].1.clone(), &with_files(OpenOptions::default(), &named)).unwrap();
    assert_eq!(read(&*image, 0, 64 << 10).unwrap(), vec![7; 64 << 10]);
}

#[test]
fn what_a_device_held_before_does_not_show_in_a_new_image() {
    for preallocation in ["off", "metadata", "full"] {
        // A device: full of old data, of a fixed size, unable to zero.
        let device = Arc::new(Mutex::new(vec![0xa5; 4 << 20]));
        let (reader, writer) = (device.clone(), device.clone());
        let node: Arc<dyn Node> = Arc::new(
            Callbacks::new(4 << 20, move |at, into| {
                into.copy_from_slice(&reader.lock().unwrap()[at as usize..at as usize + into.len()]);
                Ok(())
            })
            .with_write(move |at, from| {
                let mut device = writer.lock().unwrap();
                match device.get_mut(at as usize..at as usize + from.len()) {
                    Some(place) => place.copy_from_slice(from),
                    None => return Err(diskette::Error::new(diskette::ErrorKind::NoSpace, "the device ends here")),
                }
                Ok(())
            })
            .with_flush(|| Ok(())),
        );
        create_in(node.clone(), 1 << 20, &[("cluster_size", "4096"), ("preallocation", preallocation)], None).unwrap();
        let image = open(node, &writable()).unwrap();
        write(&*image, 10_000, &[7; 100]).unwrap();
        let bytes = read(&*image, 0, 1 << 20).unwrap();
        assert!(bytes[..10_000].iter().chain(&bytes[10_100..]).all(|byte| *byte == 0), "{preallocation}");
        assert_sound(&block_on(image.check()).unwrap());
    }
}
