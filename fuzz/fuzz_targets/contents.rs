//! Any bytes as a disk: partitions are found, directories listed and files read without a panic, a hang or runaway memory.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use diskette_contents::{Contents, Kind, Limits, Stop};
use libfuzzer_sys::fuzz_target;

/// How large every disk is. Most of it is zeroes, which an input need not have: it is the numbers of sectors, up to one that
/// no sector has, and then these sectors.
const SIZE: u64 = 4 << 20;
const SECTOR: usize = 512;

/// No more than this is looked at.
const MAX_VOLUMES: usize = 8;
const MAX_ENTRIES: usize = 100;

fuzz_target!(init: forgive_other_readers(), |bytes: &[u8]| {
    let mut host = Host::new(bytes);
    let Some(layout) = host.answer(Contents::layout) else { return };
    for volume in 0..layout.volumes.len().min(MAX_VOLUMES) {
        let mut waiting = vec![Vec::new()];
        let mut seen = 0;
        while let Some(path) = waiting.pop().filter(|_| seen < MAX_ENTRIES) {
            let first = host.answer(|contents| contents.list(volume, &path, 0, 50));
            let second = host.answer(|contents| contents.list(volume, &path, 50, 5));
            for entry in first.into_iter().chain(second).flat_map(|page| page.entries) {
                seen += 1;
                let path = [&path[..], b"/", &entry.name].concat();
                host.answer(|contents| contents.stat(volume, &path));
                match entry.kind {
                    Kind::Directory if path.len() < 500 => waiting.push(path),
                    Kind::File => {
                        for offset in [0, entry.size / 2, entry.size.saturating_sub(5)] {
                            let read = host.answer(|contents| contents.read(volume, &path, offset, 5000));
                            assert!(read.is_none_or(|bytes| bytes.len() <= 5000));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
});

/// The readers of others may panic where a file system is damaged, which is an answer like another. Who else panics ends the
/// process.
fn forgive_other_readers() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/registry/src/")) {
            abort(panic);
        }
    }));
}

/// Who has the disk.
struct Host<'a> {
    contents: Contents,
    sectors: BTreeMap<u64, &'a [u8]>,
}

impl<'a> Host<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let number = |pair: &[u8; 2]| u64::from(u16::from_le_bytes(*pair));
        let places = bytes.as_chunks().0.iter().map(number).take_while(|number| *number < SIZE / SECTOR as u64);
        let places: Vec<u64> = places.collect();
        let rest = bytes.get(places.len() * 2 + 2..).unwrap_or_default();
        let limits =
            Limits { block: 4096, reads: 20_000, bytes: 8 << 20, held: 4 << 20, kept: 64 << 10, ..Limits::default() };
        let contents = Contents::with_limits(SIZE, SECTOR as u64, limits).expect("the limits are valid");
        Host { contents, sectors: places.into_iter().zip(rest.chunks(SECTOR)).collect() }
    }

    /// Answers a call. Nothing may be asked for twice.
    fn answer<T>(&mut self, mut call: impl FnMut(&mut Contents) -> Result<T, Stop>) -> Option<T> {
        let mut asked = BTreeSet::new();
        loop {
            let needs = match call(&mut self.contents) {
                Ok(value) => return Some(value),
                Err(Stop::Failed(error)) => {
                    assert!(!error.to_string().is_empty());
                    return None;
                }
                Err(Stop::Need(needs)) => needs,
            };
            assert!(!needs.is_empty());
            for need in needs {
                assert!(asked.insert(need.offset), "{need:?} is asked for twice");
                let mut bytes = vec![0; need.length as usize];
                for (number, place) in (need.offset / SECTOR as u64..).zip(bytes.chunks_mut(SECTOR)) {
                    if let Some(sector) = self.sectors.get(&number) {
                        place[..sector.len()].copy_from_slice(sector);
                    }
                }
                self.contents.give(need.offset, &bytes).expect("it is what was asked for");
            }
        }
    }
}
