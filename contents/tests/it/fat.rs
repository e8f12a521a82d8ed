//! The clusters of files on FAT: where they are, how often the table is asked, and tables that lie.

use std::fs;
use std::ops::Range;
use std::path::Path;

use diskette_contents::{Error, ErrorKind, Limits};

use crate::host::{Host, Random, blank, run, smallest, text, tool};

/// An image of a FAT volume with one file in its root directory, taken apart as the specification says.
#[derive(Clone)]
struct Image {
    bytes: Vec<u8>,
    contents: Vec<u8>,
    bits: usize,
    tables: Vec<usize>,
    table_bytes: usize,
    cluster_bytes: usize,
    data: usize,
    clusters: usize,
    /// Where the entry of the file is.
    entry: usize,
}

impl Image {
    /// Made by `mkfs.vfat` and `mcopy`, with clusters of `sectors` sectors.
    fn new(bits: usize, kib: u64, sectors: &str, length: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, file) = (folder.path().join("image"), folder.path().join("file"));
        let mut random = Random(length as u64);
        let contents: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(length).collect();
        fs::write(&file, &contents).expect("a file");
        blank(&path, kib << 10);
        tool("mkfs.vfat", &["-F", &bits.to_string(), "-s", sectors, text(&path)]);
        tool("mcopy", &["-i", text(&path), text(&file), "::FILE.BIN"]);
        let bytes = fs::read(&path).expect("the image");
        let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let double = |at: usize| word(at) | word(at + 2) << 16;
        let either = |short: usize, long: usize| if short == 0 { long } else { short };
        let (sector, reserved, tables) = (word(11), word(14), usize::from(bytes[16]));
        let table_bytes = either(word(22), double(36)) * sector;
        let cluster_bytes = usize::from(bytes[13]) * sector;
        let root = reserved * sector + tables * table_bytes;
        let data = root + (word(17) * 32).next_multiple_of(sector);
        let clusters = (either(word(19), double(32)) * sector - data) / cluster_bytes;
        let entry = bytes[root..].windows(11).position(|name| name == b"FILE    BIN").expect("the entry") + root;
        let tables = (0..tables).map(|number| reserved * sector + number * table_bytes).collect();
        Image { bits, tables, table_bytes, cluster_bytes, data, clusters, entry, contents, bytes }
    }

    /// Where the entry of a cluster is in the first table.
    fn place(&self, cluster: usize) -> usize {
        self.tables[0] + cluster * self.bits / 8
    }

    fn mask(&self) -> u32 {
        if self.bits == 32 { 0x0fff_ffff } else { (1 << self.bits) - 1 }
    }

    fn entry(&self, cluster: usize) -> usize {
        let at = self.place(cluster);
        let low = u32::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        let entry = match self.bits {
            12 => low >> (cluster % 2 * 4),
            16 => low,
            _ => low | u32::from(u16::from_le_bytes([self.bytes[at + 2], self.bytes[at + 3]])) << 16,
        };
        (entry & self.mask()) as usize
    }

    fn set(&mut self, cluster: usize, entry: usize) {
        let within = self.place(cluster) - self.tables[0];
        for table in self.tables.clone() {
            let at = table + within;
            match self.bits {
                12 if cluster.is_multiple_of(2) => {
                    self.bytes[at] = entry as u8;
                    self.bytes[at + 1] = self.bytes[at + 1] & 0xf0 | (entry >> 8) as u8 & 0xf;
                }
                12 => {
                    self.bytes[at] = self.bytes[at] & 0xf | (entry << 4) as u8;
                    self.bytes[at + 1] = (entry >> 4) as u8;
                }
                16 => self.bytes[at..at + 2].copy_from_slice(&(entry as u16).to_le_bytes()),
                _ => self.bytes[at..at + 4].copy_from_slice(&(entry as u32).to_le_bytes()),
            }
        }
    }

    fn first(&self) -> usize {
        let word = |at: usize| usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        word(self.entry + 26) | if self.bits == 32 { word(self.entry + 20) << 16 } else { 0 }
    }

    fn chain(&self) -> Vec<usize> {
        let next = |cluster: &usize| Some(self.entry(*cluster)).filter(|next| *next < self.mask() as usize - 7);
        std::iter::successors(Some(self.first()), next).collect()
    }

    /// Brings the clusters of the file into an order without any order.
    fn scatter(&mut self) {
        let mut clusters = self.chain();
        let mut random = Random(5);
        for at in (1..clusters.len()).rev() {
            clusters.swap(at, random.below(at as u64 + 1) as usize);
        }
        self.arrange(&clusters);
    }

    /// Puts the file into these clusters.
    fn arrange(&mut self, clusters: &[usize]) {
        let end = self.mask() as usize;
        for (number, cluster) in clusters.iter().enumerate() {
            self.set(*cluster, clusters.get(number + 1).copied().unwrap_or(end));
            let from = number * self.cluster_bytes;
            let part = &self.contents[from..self.contents.len().min(from + self.cluster_bytes)];
            let to = self.data + (cluster - 2) * self.cluster_bytes;
            self.bytes[to..to + part.len()].copy_from_slice(part);
        }
        let first = clusters[0] as u32;
        self.bytes[self.entry + 26..self.entry + 28].copy_from_slice(&(first as u16).to_le_bytes());
        if self.bits == 32 {
            self.bytes[self.entry + 20..self.entry + 22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
        }
    }

    /// What `mcopy` makes of it, once `fsck.vfat` finds nothing wrong.
    fn copied(&self, folder: &Path) -> Vec<u8> {
        let (path, copy) = (folder.join("image"), folder.join("copy"));
        fs::write(&path, &self.bytes).expect("the image");
        let checked = run("fsck.vfat", &["-n", text(&path)], "");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        tool("mcopy", &["-n", "-i", text(&path), "::FILE.BIN", text(&copy)]);
        fs::read(&copy).expect("the copy")
    }

    fn host(&self, limits: Limits) -> Host {
        let mut host = Host::of_bytes(self.bytes.clone(), limits);
        host.watched = self.tables[0] as u64..(self.tables[0] + self.table_bytes) as u64;
        host
    }

    /// Reads a part of the file, which must be right.
    fn check(&self, host: &mut Host, range: Range<usize>) {
        let bytes =
            host.read(0, b"FILE.BIN", range.start as u64, range.len()).unwrap_or_else(|error| panic!("{error}"));
        assert!(bytes == self.contents[range.start..range.end.min(self.contents.len())], "{range:?}");
    }

    /// Reads the whole file in pieces.
    fn check_all(&self, host: &mut Host, piece: usize) {
        for from in (0..self.contents.len()).step_by(piece) {
            self.check(host, from..from + piece);
        }
    }

    /// Why the file cannot be read to its end.
    fn error(&self) -> Error {
        let mut host = self.host(Limits::default());
        host.read(0, b"FILE.BIN", 0, self.contents.len()).expect_err("what the table says makes no sense")
    }
}

/// Images of all widths of entries, each with one file.
fn all(clusters: usize) -> impl Iterator<Item = Image> {
    [(12, 1440), (16, 8192), (32, 40_000)]
        .into_iter()
        .map(move |(bits, kib)| Image::new(bits, kib, "1", clusters * 512 - 100))
}

#[test]
fn a_scattered_file_is_what_mcopy_copies() {
    let folder = tempfile::tempdir().expect("a folder");
    for mut image in all(700) {
        for _ in 0..2 {
            assert!(image.copied(folder.path()) == image.contents, "FAT{}", image.bits);
            for (limits, piece) in [(Limits::default(), 7777), (Limits::default(), 1 << 20), (smallest(), 9000)] {
                let mut host = image.host(limits);
                image.check_all(&mut host, piece);
            }
            // Anywhere, in any order, with and without what was found before.
            let mut host = image.host(smallest());
            let mut random = Random(3);
            for _ in 0..50 {
                let from = random.below(image.contents.len() as u64) as usize;
                image.check(&mut host, from..from + 1 + random.below(5000) as usize);
            }
            image.scatter();
        }
    }
}

#[test]
fn the_table_is_gone_through_once_while_a_file_is_read_in_pieces() {
    for (bits, kib, clusters) in [(12, 1440, 2700), (16, 12_000, 15_000), (32, 40_000, 40_000)] {
        let mut image = Image::new(bits, kib, "1", clusters * 512);
        // Fragments of three clusters, from the end of the volume to its beginning.
        let order: Vec<usize> = image.chain().chunks(3).rev().flatten().copied().collect();
        image.arrange(&order);
        // Nothing is kept from call to call, and none may look at many entries.
        let mut host = image.host(Limits { reads: 200, ..smallest() });
        image.check_all(&mut host, 8 << 10);
        // The 17 entries that a piece needs are in one block, or sometimes in two.
        let (given, most) = (host.given_of_watched, clusters as u64 / 16 * (512 + 256));
        assert!(given < most, "FAT{bits}: {given} bytes of the table, more than {most}");
        assert!(given > clusters as u64 / 16 * 512, "FAT{bits}: {given} bytes of the table are too few");
    }
}

#[test]
fn a_file_of_more_clusters_than_are_remembered_is_read_in_pieces() {
    let image = Image::new(32, 64 << 10, "1", 45 << 20);
    let limits = Limits { block: 4096, kept: 64 << 10, ahead: 0, ..Limits::default() };
    let mut host = image.host(limits);
    image.check_all(&mut host, 64 << 10);
    let pieces = (45 << 20) / (64 << 10);
    let most = (pieces + image.table_bytes as u64 / 4096) * 2 * 4096;
    let given = host.given_of_watched;
    assert!(given < most, "{given} bytes of the table, more than {most}");
    let mut random = Random(9);
    for _ in 0..200 {
        let from = random.below(image.contents.len() as u64) as usize;
        image.check(&mut host, from..from + 1500);
    }
    let more = host.given_of_watched - given;
    assert!(more < 200 * 2 * 4096, "{more} bytes of the table for 200 pieces");
}

#[test]
fn clusters_that_turn_in_a_circle_are_told() {
    for image in all(100) {
        let chain = image.chain();
        // Back to the beginning, to itself, into the middle, and from the last cluster to the first.
        for (from, to) in [(50, 0), (60, 60), (80, 40), (99, 0), (99, 99), (1, 0)] {
            let mut image = image.clone();
            image.set(chain[from], chain[to]);
            let error = image.error();
            let place = image.place(chain[from]) as u64;
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(place)), "{error}");
            let what = format!(
                "'FILE.BIN': the clusters of the file turn in a circle: {} leads back to {}",
                chain[from], chain[to]
            );
            assert!(error.to_string().starts_with(&what), "{error}");
            // What comes before is there, and nothing that comes again.
            let mut host = image.host(Limits::default());
            image.check(&mut host, 0..512 * from);
            for at in [(from + 1).min(99), 99] {
                assert!(host.read(0, b"FILE.BIN", at as u64 * 512, 10).is_err(), "{from} to {to}: {at}");
            }
        }
    }
}

#[test]
fn clusters_that_end_too_soon_or_lead_nowhere_are_told() {
    for image in all(100) {
        let chain = image.chain();
        let (mask, end) = (image.mask() as usize, image.clusters + 2);
        for (entry, what) in [
            (mask, "the clusters of the file end after 25600 bytes of 51100".to_string()),
            (mask - 7, "the clusters of the file end after 25600 bytes of 51100".to_string()),
            (0, format!("cluster {} of a file is marked as free", chain[49])),
            (mask - 8, format!("cluster {} of a file is marked as bad", chain[49])),
            (1, format!("cluster 1 is named, where clusters are from 2 to below {end}")),
            (end, format!("cluster {end} is named, where clusters are from 2 to below {end}")),
            (mask - 9, format!("cluster {} is named, where clusters are from 2 to below {end}", mask - 9)),
        ] {
            let mut image = image.clone();
            image.set(chain[49], entry);
            let error = image.error();
            let place = image.place(chain[49]) as u64;
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(place)), "{error}");
            assert!(error.to_string().starts_with(&format!("'FILE.BIN': {what}")), "{error}");
            let mut host = image.host(Limits::default());
            image.check(&mut host, 0..25_600);
        }
        // A file that begins nowhere.
        let mut image = image;
        for first in [0, 1, end] {
            image.bytes[image.entry + 26..image.entry + 28].copy_from_slice(&(first as u16).to_le_bytes());
            image.bytes[image.entry + 20..image.entry + 22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
            let error = image.error();
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(image.entry as u64)), "{error}");
        }
    }
}

#[test]
fn a_file_may_have_more_clusters_than_it_needs() {
    let mut image = Image::new(16, 8192, "1", 100 * 512 - 100);
    let (last, mask) = (image.chain()[99], image.mask() as usize);
    let mut host = image.host(Limits::default());
    image.check_all(&mut host, 4096);
    image.set(last, last + 1);
    image.set(last + 1, mask);
    let mut host = image.host(Limits::default());
    image.check_all(&mut host, 4096);
}
