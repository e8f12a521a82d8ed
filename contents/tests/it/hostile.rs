//! Images that lie: whatever they say, calls end, with bounded reads, and without a panic that the host would see.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use diskette_contents::{ErrorKind, Kind, Limits};

use crate::host::{Host, Random, blank, run, text, tool};
use crate::tree::{self, SMALL, Wish};

/// More than this a walk through a hostile image does not look at.
const MAX_ENTRIES: usize = 600;

/// No call may take longer, even where nothing is optimised.
const LONGEST_CALL: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    Limits { reads: 200_000, bytes: 64 << 20, held: 32 << 20, ..Limits::default() }
}

/// Looks at everything in an image; gives how often which kind of error came.
fn explore(bytes: Vec<u8>, outcomes: &mut BTreeMap<&'static str, usize>) {
    let mut host = Host::of_bytes(bytes, limits());
    let mut count = |outcome: Result<(), ErrorKind>, since: Instant| {
        assert!(since.elapsed() < LONGEST_CALL, "a call took {:?}", since.elapsed());
        *outcomes.entry(outcome.map_or_else(ErrorKind::name, |()| "ok")).or_default() += 1;
    };
    let since = Instant::now();
    let layout = host.try_layout();
    count(layout.as_ref().map(|_| ()).map_err(|error| error.kind()), since);
    let Ok(layout) = layout else { return };
    for volume in 0..layout.volumes.len().min(8) {
        let mut waiting = vec![Vec::new()];
        let mut seen = 0;
        while let Some(path) = waiting.pop() {
            let since = Instant::now();
            let page = host.list(volume, &path, 0, 100);
            count(page.as_ref().map(|_| ()).map_err(|error| error.kind()), since);
            let Ok(page) = page else { continue };
            for entry in page.entries {
                seen += 1;
                if seen > MAX_ENTRIES {
                    break;
                }
                let mut full = path.clone();
                full.push(b'/');
                full.extend(&entry.name);
                match entry.kind {
                    Kind::Directory if full.len() < 500 => waiting.push(full),
                    Kind::File => {
                        for offset in [0, entry.size / 2, entry.size.saturating_sub(5)] {
                            let since = Instant::now();
                            let read = host.read(volume, &full, offset, 70_000);
                            count(read.map(|_| ()).map_err(|error| error.kind()), since);
                        }
                    }
                    _ => {
                        let since = Instant::now();
                        count(host.stat(volume, &full).map(|_| ()).map_err(|error| error.kind()), since);
                    }
                }
            }
            if seen > MAX_ENTRIES {
                break;
            }
        }
    }
}

/// Changes an image where it says something, mostly at its beginning, or cuts it.
fn damage(image: &[u8], used: &[usize], random: &mut Random) -> Vec<u8> {
    let mut bytes = image.to_vec();
    if random.below(8) == 0 {
        bytes.truncate(random.below(bytes.len() as u64) as usize);
        return bytes;
    }
    for _ in 0..=random.below(12) {
        let block = used[random.below(used.len() as u64) as usize];
        let at = (block * 64 + random.below(64) as usize).min(bytes.len() - 1);
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = if random.below(2) == 0 { 0xff } else { 0 },
            // A number, of any size, that is extreme.
            _ => {
                let value = [0_u64, 1, u64::MAX, 1 << 31, u64::MAX >> 1, random.next()][random.below(6) as usize];
                let width = [2, 4, 8][random.below(3) as usize].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
    bytes
}

/// Pieces of 64 bytes that are metadata: not empty, and not file contents, which are the letter x throughout.
fn metadata(image: &[u8]) -> Vec<usize> {
    let says = |chunk: &[u8]| chunk.iter().any(|byte| !matches!(byte, 0 | b'x'));
    image.chunks(64).enumerate().filter(|(_, chunk)| says(chunk)).map(|(at, _)| at).collect()
}

fn suffer(image: Vec<u8>, used: &[usize], seeds: u64) {
    let mut outcomes = BTreeMap::new();
    std::panic::set_hook(Box::new(|_| {}));
    let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for seed in 0..seeds {
            let mut random = Random(seed);
            let bytes = damage(&image, used, &mut random);
            let before = outcomes.clone();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| explore(bytes, &mut outcomes)));
            if let Err(payload) = outcome {
                let why = payload.downcast_ref::<String>().cloned();
                return Err(format!("seed {seed}: {why:?} after {before:?}"));
            }
        }
        Ok(())
    }));
    drop(std::panic::take_hook());
    worked.expect("the test itself does not panic").unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{outcomes:?}");
    assert!(outcomes.get("corrupt").is_some_and(|count| *count > 0), "nothing was ever noticed: {outcomes:?}");
    assert!(outcomes.get("ok").is_some_and(|count| *count > 100), "nothing was ever read: {outcomes:?}");
}

/// A small tree whose files are all alike, so that damage to them says nothing.
fn plain_tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    tree::make(&tree, Wish { links: false, astral: false, many: 20, largest: 9000, ..SMALL });
    let files = tool("find", &[text(&tree), "-type", "f"]);
    for file in files.lines() {
        let size = fs::metadata(file).expect("a file").len() as usize;
        fs::write(file, vec![b'x'; size]).expect("a file can be written");
    }
    std::os::unix::fs::symlink("names/a", tree.join("link")).expect("a link");
    folder
}

#[test]
fn ext4_may_lie() {
    let folder = plain_tree();
    let (tree, path) = (folder.path().join("tree"), folder.path().join("image"));
    for (features, seeds) in
        [("^metadata_csum,^64bit", 150), ("metadata_csum", 60), ("^extents,^64bit,^metadata_csum", 60)]
    {
        blank(&path, 2 << 20);
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features, "-d", text(&tree), text(&path)]);
        let image = fs::read(&path).expect("the image");
        suffer(image.clone(), &metadata(&image), seeds);
    }
}

#[test]
fn a_link_may_lie_about_its_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tree, path) = (folder.path().join("tree"), folder.path().join("image"));
    fs::create_dir(&tree).expect("a directory");
    std::os::unix::fs::symlink("x".repeat(100), tree.join("link")).expect("a link");
    for length in ["4097", "1073741824", "2199023255552", "9223372036854775807"] {
        blank(&path, 2 << 20);
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d", text(&tree), text(&path)]);
        let high = length.parse::<u64>().expect("a number") >> 32;
        let low = length.parse::<u64>().expect("a number") & 0xffff_ffff;
        let commands = format!("sif link size {low}\nsif link size_high {high}\n");
        crate::host::feed("debugfs", &["-w", "-f", "-", text(&path)], &commands);
        let mut host = Host::of_file(&path, limits());
        for error in [
            host.list(0, b"/", 0, 10).expect_err("a link of that length"),
            host.read(0, b"link", 0, 10).expect_err("a link of that length"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
        }
    }
}

#[test]
fn fat_may_lie() {
    let folder = plain_tree();
    let (tree, path) = (folder.path().join("tree"), folder.path().join("image"));
    fs::remove_file(tree.join("link")).expect("the link");
    for (bits, size, cluster) in [("12", 1440, "1"), ("16", 4096, "1"), ("32", 40_000, "1")] {
        blank(&path, size << 10);
        tool("mkfs.vfat", &["-F", bits, "-s", cluster, text(&path)]);
        tool("sh", &["-c", &format!("mcopy -s -i {} {}/* ::", text(&path), text(&tree))]);
        let image = fs::read(&path).expect("the image");
        suffer(image.clone(), &metadata(&image), if bits == "32" { 20 } else { 60 });
    }
}

#[test]
fn iso_may_lie() {
    let folder = plain_tree();
    let (tree, path) = (folder.path().join("tree"), folder.path().join("image"));
    tool(
        "genisoimage",
        &["-quiet", "-input-charset", "utf-8", "-R", "-J", "-joliet-long", "-o", text(&path), text(&tree)],
    );
    let image = fs::read(&path).expect("the image");
    suffer(image.clone(), &metadata(&image), 250);
}

#[test]
fn ntfs_may_lie() {
    let folder = plain_tree();
    let (tree, path) = (folder.path().join("tree"), folder.path().join("image"));
    blank(&path, 4 << 20);
    tool("mkntfs", &["-q", "-F", "-s", "512", text(&path)]);
    for file in ["size-0.bin", "size-1.bin", "size-513.bin", "size-4097.bin", "names/a", "names/lower.txt"] {
        let name = file.rsplit('/').next().expect("a name");
        // A warning about the number of sectors per track is none of our business.
        let output = run("ntfscp", &["-q", "-f", text(&path), text(&tree.join(file)), name], "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let image = fs::read(&path).expect("the image");
    // The boot sector, and what is in records; the rest is tables that nothing is read from.
    let in_record = |at: &usize| {
        let record = |size: usize| image.get(at * 64 / size * size..).unwrap_or_default();
        *at < 2 || record(1024).starts_with(b"FILE") || record(4096).starts_with(b"INDX")
    };
    let used: Vec<usize> = metadata(&image).into_iter().filter(in_record).collect();
    suffer(image.clone(), &used, 400);
}

#[test]
fn tables_may_lie() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    for script in [
        "label: gpt\nsize=64KiB, name=\"one\"\nsize=64KiB\nsize=128KiB\n",
        "label: dos\nsize=64KiB\nsize=1MiB, type=5\nsize=64KiB\nsize=64KiB\nsize=64KiB\n",
    ] {
        blank(&path, 4 << 20);
        crate::host::feed("sfdisk", &["--quiet", text(&path)], script);
        let image = fs::read(&path).expect("the image");
        let used = metadata(&image);
        for seed in 0..3000 {
            let bytes = damage(&image, &used, &mut Random(seed));
            let layout = Host::of_bytes(bytes, limits()).try_layout().unwrap_or_else(|error| panic!("{seed}: {error}"));
            assert!(layout.volumes.len() < 600, "{seed}");
        }
    }
}
