//! A tree of files that is put into a file system, and compared with what comes out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use diskette_contents::{Entry, Kind};
use sha2::{Digest, Sha256};

use crate::host::{Host, Random};

/// What a tree is to have.
#[derive(Clone, Copy)]
pub struct Wish {
    pub links: bool,
    /// Names with letters that take two units of UTF-16, which some tools cannot make.
    pub astral: bool,
    pub sparse: bool,
    /// Files in one directory.
    pub many: usize,
    pub largest: usize,
    pub depth: usize,
}

pub const ALL: Wish = Wish { links: true, astral: true, sparse: true, many: 1500, largest: 3 << 20, depth: 30 };

/// Few and small files, for a host that is asked for each sector.
pub const SMALL: Wish = Wish { links: true, astral: true, sparse: false, many: 70, largest: 90_000, depth: 6 };

/// Makes the tree in a directory.
pub fn make(root: &Path, wish: Wish) {
    let mut random = Random(7);
    let mut write = |path: &Path, size: usize| {
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.next() as u8).take(size).collect();
        fs::write(path, bytes).expect("a file can be written");
    };
    for size in
        [0, 1, 60, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, wish.largest]
    {
        if size <= wish.largest {
            write(&root.join(format!("size-{size}.bin")), size);
        }
    }
    let names = [
        "a",
        "UPPER.TXT",
        "lower.txt",
        "Mixed Case.Text",
        "größe ñandú.txt",
        "日本語のファイル名.dat",
        "Ελληνικά",
        "😀 and 🚀.png",
        "with space at the middle",
        "many.dots.in.a.name.tar.gz",
        "percent%20&amp'quote'",
    ];
    let named = root.join("names");
    fs::create_dir(&named).expect("a directory can be made");
    for (number, name) in names.iter().enumerate() {
        if !wish.astral && name.chars().any(|letter| letter.len_utf16() > 1) {
            continue;
        }
        write(&named.join(name), number * 37);
    }
    write(&named.join("long ".repeat(20).trim_end()), 99);
    let many = root.join("many");
    fs::create_dir(&many).expect("a directory can be made");
    for number in 0..wish.many {
        write(&many.join(format!("file number {number:05}")), number % 50);
    }
    fs::create_dir(root.join("empty")).expect("a directory can be made");
    let mut deep = root.to_path_buf();
    for level in 0..wish.depth {
        deep.push(format!("d{level}"));
        fs::create_dir(&deep).expect("a directory can be made");
    }
    write(&deep.join("at the bottom"), 12_345.min(wish.largest));
    if wish.sparse {
        use std::os::unix::fs::FileExt;
        let sparse = fs::File::create(root.join("sparse")).expect("a file can be made");
        sparse.set_len(20 << 20).expect("a file can grow");
        sparse.write_all_at(b"an island", 5 << 20).expect("a file can be written");
        sparse.write_all_at(b"the end", (20 << 20) - 7).expect("a file can be written");
    }
    if wish.links {
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.join(name)).expect("a link can be made");
        };
        link("a", "short link");
        link("names/größe ñandú.txt", "link to a file");
        link("names", "link to a directory");
        link(&("x/".repeat(100) + "y"), "long link to nowhere");
        link("/etc/passwd", "link out");
    }
    let mut when = 1_000_000_000;
    age(root, &mut when);
}

/// Gives everything a time of its own, an even number of seconds as FAT has them, and files a mode.
fn age(directory: &Path, when: &mut u64) {
    for entry in fs::read_dir(directory).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        let kind = path.symlink_metadata().expect("there is a file").file_type();
        if kind.is_dir() {
            age(&path, when);
        } else if kind.is_file() {
            *when += 7200;
            let mode = if when.is_multiple_of(14_400) { 0o640 } else { 0o755 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode can be set");
            let file = fs::File::options().write(true).open(&path).expect("a file can be opened");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(*when)).expect("a time can be set");
        }
    }
}

/// What is compared of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    pub kind: Kind,
    pub size: u64,
    pub hash: String,
    pub target: Option<Vec<u8>>,
    pub modified: Option<i64>,
    pub mode: Option<u16>,
}

/// What a file system keeps of a tree.
#[derive(Clone, Copy)]
pub struct Keeps {
    pub times: bool,
    pub modes: bool,
}

pub type Things = BTreeMap<String, Thing>;

/// What is in a directory of this machine.
pub fn expected(root: &Path, keeps: Keeps) -> Things {
    let mut things = Things::new();
    fill(root, "", keeps, &mut things);
    things
}

fn fill(directory: &Path, prefix: &str, keeps: Keeps, things: &mut Things) {
    for entry in fs::read_dir(directory).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("names of tests are text");
        let full = format!("{prefix}/{name}");
        let metadata = path.symlink_metadata().expect("there is a file");
        let (kind, size, hash, target) = if metadata.is_dir() {
            fill(&path, &full, keeps, things);
            (Kind::Directory, 0, String::new(), None)
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).expect("a link can be read");
            (Kind::Link, 0, String::new(), Some(target.to_str().expect("links are text").as_bytes().to_vec()))
        } else {
            let bytes = fs::read(&path).expect("a file can be read");
            (Kind::File, bytes.len() as u64, hash(&bytes), None)
        };
        let modified = (keeps.times && kind == Kind::File).then(|| metadata.mtime());
        let mode = (keeps.modes && kind == Kind::File).then_some((metadata.mode() & 0o7777) as u16);
        things.insert(full, Thing { kind, size, hash, target, modified, mode });
    }
}

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the host sees in a volume, everything read piece by piece.
pub fn found(host: &mut Host, volume: usize, keeps: Keeps, page: usize, piece: usize) -> Things {
    let mut things = Things::new();
    walk(host, volume, String::new(), keeps, page, piece, &mut things);
    things
}

fn walk(host: &mut Host, volume: usize, path: String, keeps: Keeps, page: usize, piece: usize, things: &mut Things) {
    for entry in host.list_all(volume, path.as_bytes(), page).unwrap_or_else(|error| panic!("{path}: {error}")) {
        let name = String::from_utf8(entry.name.clone()).expect("names of tests are text");
        let full = format!("{path}/{name}");
        let thing = thing(host, volume, &full, &entry, keeps, piece);
        assert!(things.insert(full.clone(), thing).is_none(), "{full} is listed twice");
        if entry.kind == Kind::Directory {
            walk(host, volume, full, keeps, page, piece, things);
        }
    }
}

fn thing(host: &mut Host, volume: usize, path: &str, entry: &Entry, keeps: Keeps, piece: usize) -> Thing {
    let mut digest = Sha256::new();
    let mut size = 0;
    if entry.kind == Kind::File {
        loop {
            let bytes =
                host.read(volume, path.as_bytes(), size, piece).unwrap_or_else(|error| panic!("{path}: {error}"));
            size += bytes.len() as u64;
            digest.update(&bytes);
            if bytes.len() < piece {
                break;
            }
        }
        assert_eq!(size, entry.size, "{path}: what was read, and what is listed");
    }
    let hash = if entry.kind == Kind::File {
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        String::new()
    };
    let is_file = entry.kind == Kind::File;
    Thing {
        kind: entry.kind,
        size,
        hash,
        target: entry.target.clone(),
        modified: entry.modified.filter(|_| keeps.times && is_file),
        mode: entry.mode.filter(|_| keeps.modes && is_file),
    }
}

/// Fails with the difference alone.
pub fn assert_same(found: &Things, expected: &Things) {
    for (path, thing) in expected {
        assert_eq!(found.get(path), Some(thing), "{path}");
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{path} is listed and was never put there");
    }
}
