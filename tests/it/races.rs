//! What happens between two steps of a change: other tasks, a small cache, a caller who gives up.

use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use diskette::drivers::OpenOptions;
use diskette::native::{File, FileOptions};
use diskette::{Budgets, Memory, Node, NodeInfo, Op, Preallocation, Range, ReadFlags, Result, WriteFlags, block_on};

use crate::support::{Random, Scratch, create, open, read, with_files, writable, write};

/// A leaf whose changes wait while it is shut, before they have any effect.
struct Sluice {
    inner: Arc<Memory>,
    shut: AtomicBool,
    /// How many changes get through all the same.
    pass: AtomicUsize,
}

impl Sluice {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Sluice { inner: Memory::new(bytes), shut: AtomicBool::new(false), pass: AtomicUsize::new(0) })
    }

    fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
    }

    async fn passage(&self) {
        std::future::poll_fn(|_| {
            let open = !self.shut.load(Ordering::Relaxed) || self.pass.swap(0, Ordering::Relaxed) > 0;
            if open { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Node for Sluice {
    fn info(&self) -> NodeInfo {
        self.inner.info()
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        self.inner.read(at, into, flags)
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.passage().await;
            self.inner.write(at, from, flags).await
        })
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        self.inner.resize(length, preallocation)
    }
}

const SIZE: u64 = 4 << 20;

/// Clusters of 512 bytes and a cache for eight tables; each L2 table covers 32 KiB.
fn with_small_cache() -> OpenOptions {
    OpenOptions { budgets: Budgets { metadata_bytes: 0, ..Budgets::default() }, ..writable() }
}

fn image_with_many_tables() -> Vec<u8> {
    let file = Memory::new(create(SIZE, &[("cluster_size", "512")]));
    let image = open(file.clone(), &writable()).unwrap();
    for at in (0..SIZE).step_by(32 << 10) {
        write(&*image, at, &[1; 512]).unwrap();
    }
    block_on(image.close()).unwrap();
    file.to_vec()
}

fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[test]
fn a_table_on_its_way_to_the_disk_is_not_read_back_from_it() {
    let leaf = Sluice::new(image_with_many_tables());
    let image = open(leaf.clone(), &with_small_cache()).unwrap();
    write(&*image, 512, &[2; 512]).unwrap();
    leaf.shut(true);
    let mut flush = pin!(image.flush().into_future());
    assert!(flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    // Reading elsewhere fills the cache several times over.
    for at in (0..SIZE).rev().step_by(32 << 10) {
        read(&*image, at / 512 * 512, 512).unwrap();
    }
    assert!(read(&*image, 512, 512).unwrap() == [2; 512]);
    leaf.shut(false);
    block_on(flush).unwrap();
    assert!(read(&*image, 512, 512).unwrap() == [2; 512]);
    write(&*image, 1024, &[3; 512]).unwrap();
    block_on(image.close()).unwrap();
    let reopened = open(leaf.inner.clone(), &OpenOptions::default()).unwrap();
    assert!(read(&*reopened, 0, 1536).unwrap() == [[1; 512], [2; 512], [3; 512]].concat());
    assert!(block_on(reopened.check()).unwrap().is_clean());
}

#[test]
fn a_flush_that_is_given_up_loses_nothing() {
    let leaf = Sluice::new(image_with_many_tables());
    let image = open(leaf.clone(), &writable()).unwrap();
    write(&*image, 512, &[2; 512]).unwrap();
    block_on(image.discard(Range::new(0, 512))).unwrap();
    leaf.shut(true);
    assert_eq!(poll_once(image.flush().into_future()).map(|result: Result<()>| result.is_ok()), None);
    leaf.shut(false);
    block_on(image.close()).unwrap();
    let reopened = open(leaf.inner.clone(), &OpenOptions::default()).unwrap();
    assert!(read(&*reopened, 0, 1024).unwrap() == [[0; 512], [2; 512]].concat());
    assert!(block_on(reopened.check()).unwrap().is_clean());
}

#[test]
fn readers_that_fill_a_small_cache_do_not_disturb_writers() {
    let file = Memory::new(image_with_many_tables());
    let image = open(file.clone(), &with_small_cache()).unwrap();
    let expected: Vec<(u64, u8)> = std::thread::scope(|scope| {
        for number in 0..2 {
            let image = &image;
            scope.spawn(move || {
                let mut random = Random::new(number);
                for _ in 0..20_000 {
                    read(&**image, random.below(SIZE / 512) * 512, 512).unwrap();
                }
            });
        }
        let mut random = Random::new(99);
        (0..3000u64)
            .map(|_| {
                let (cluster, value) = (random.below(SIZE / 512), random.next() as u8);
                write(&*image, cluster * 512, &[value; 512]).unwrap();
                if random.below(8) == 0 {
                    block_on(image.flush()).unwrap();
                }
                (cluster, value)
            })
            .collect()
    });
    block_on(image.close()).unwrap();
    let reopened = open(file, &OpenOptions::default()).unwrap();
    let report = block_on(reopened.check()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings.first());
    let last: std::collections::BTreeMap<u64, u8> = expected.into_iter().collect();
    for (cluster, value) in last {
        assert!(read(&*reopened, cluster * 512, 512).unwrap() == [value; 512], "cluster {cluster}");
    }
}

#[test]
fn zeroes_beyond_the_end_of_a_file_do_not_cut_off_a_write_behind_them() {
    let scratch = Scratch::new("grow");
    for round in 0..300 {
        let path = scratch.path("file");
        let file = File::create(&path, FileOptions::default()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| write(&*file, 9000, &[7; 1000]).unwrap());
            scope.spawn(|| block_on(file.write_zeroes(Range::new(100, 5000), WriteFlags::default())).unwrap());
        });
        assert_eq!(std::fs::read(&path).unwrap(), [vec![0; 9000], vec![7; 1000]].concat(), "round {round}");
        assert_eq!(file.info().length, 10_000);
    }
}

#[test]
fn a_write_that_is_given_up_leaves_leaks_at_most() {
    for patience in 0..12 {
        let leaf = Sluice::new(image_with_many_tables());
        let image = open(leaf.clone(), &with_small_cache()).unwrap();
        leaf.shut(true);
        {
            let bytes = [2; 40_000];
            let mut write = pin!(image.write(700, &bytes, WriteFlags::default()).into_future());
            for _ in 0..patience {
                // One change of the file at a time gets through.
                let _ = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                leaf.pass.store(1, Ordering::Relaxed);
            }
        }
        leaf.shut(false);
        write(&*image, 800, &[3; 30_000]).unwrap();
        block_on(image.close()).unwrap();
        let reopened = open(leaf.inner.clone(), &OpenOptions::default()).unwrap();
        assert!(read(&*reopened, 800, 30_000).unwrap() == [3; 30_000], "patience {patience}");
        let report = block_on(reopened.check()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{patience}: {:?}", report.findings.first());
    }
}

#[test]
fn disks_that_are_resized_twice_at_once_keep_what_is_written_between() {
    const KIB: u64 = 1 << 10;
    let base: Arc<dyn Node> = Memory::read_only(vec![0xbb; 1 << 20], "base");
    let options = [("backing_file", "base"), ("backing_fmt", "raw")];
    // The first new size is, and is not, a multiple of the cluster size.
    for middle in [384 * KIB, 400 * KIB] {
        let leaf = Sluice::new(create(100 * KIB, &options));
        let image = open(leaf.clone(), &with_files(writable(), &[("base", base.clone())])).unwrap();
        leaf.shut(true);
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(image.resize(middle, Preallocation::Off).into_future());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let mut second = pin!(image.resize(800 * KIB, Preallocation::Off).into_future());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        leaf.shut(false);
        block_on(first).unwrap();
        assert_eq!(image.info().length, middle);
        write(&*image, 300 * KIB, &[7; 512]).unwrap();
        block_on(second).unwrap();
        assert_eq!(image.info().length, 800 * KIB);
        assert!(read(&*image, 300 * KIB, 512).unwrap() == [7; 512]);
        assert!(read(&*image, 301 * KIB, 499 << 10).unwrap() == vec![0; 499 << 10]);
        block_on(image.close()).unwrap();
        let reopened =
            open(leaf.inner.clone(), &with_files(OpenOptions::default(), &[("base", base.clone())])).unwrap();
        assert_eq!(reopened.info().length, 800 * KIB);
        assert!(read(&*reopened, 300 * KIB, 512).unwrap() == [7; 512]);
    }
}
