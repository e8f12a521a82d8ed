//! Files, against what was put into the file systems by the tools of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use diskette_contents::{ErrorKind, Kind, Limits, Table};

use crate::host::{Host, blank, feed, run, smallest, text, tool};
use crate::tree::{self, ALL, Keeps, SMALL, Wish, assert_same};

const UNIX: Keeps = Keeps { times: true, modes: true };
const TIMES: Keeps = Keeps { times: true, modes: false };

/// A tree, and a folder to make images in.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn new(wish: Wish) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        tree::make(&tree, wish);
        Workshop { folder }
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ext(&self, kind: &str, size: u64, more: &[&str]) -> PathBuf {
        let path = self.image(kind);
        blank(&path, size);
        let args = ["-q", "-F", "-t", kind, "-d"];
        tool("mke2fs", &[&args[..], &[text(&self.tree())], more, &[text(&path)]].concat());
        tool("e2fsck", &["-fn", text(&path)]);
        path
    }

    fn fat(&self, bits: &str, size: u64, more: &[&str]) -> PathBuf {
        let path = self.image(&format!("fat{bits}"));
        blank(&path, size);
        tool("mkfs.vfat", &[&["-F", bits][..], more, &[text(&path)]].concat());
        for entry in fs::read_dir(self.tree()).expect("a tree") {
            let from = entry.expect("an entry").path();
            feed("mcopy", &["-s", "-m", "-i", text(&path), text(&from), "::"], "");
        }
        path
    }

    fn iso(&self, more: &[&str]) -> PathBuf {
        let path = self.image("iso");
        tool(
            "genisoimage",
            &[&["-quiet", "-input-charset", "utf-8"][..], more, &["-o", text(&path), text(&self.tree())]].concat(),
        );
        path
    }
}

/// What comes out is what was put in, whatever the size of the cache and of the pieces.
fn same(image: &Path, tree: &Path, keeps: Keeps, limits: Limits, pieces: &[(usize, usize)]) {
    let expected = tree::expected(tree, keeps);
    for (page, piece) in pieces {
        let mut host = Host::of_file(image, limits);
        let mut found = tree::found(&mut host, 0, keeps, *page, *piece);
        found.remove("/lost+found");
        assert_same(&found, &expected);
    }
}

#[test]
fn ext4_gives_what_was_put_in() {
    let shop = Workshop::new(ALL);
    let image = shop.ext("ext4", 64 << 20, &["-b", "4096"]);
    same(&image, &shop.tree(), UNIX, Limits::default(), &[(100, 1 << 20), (10_000, 77_777)]);
    // The same with directories that are looked up by a tree of hashes.
    run("e2fsck", &["-fyD", text(&image)], "");
    same(&image, &shop.tree(), UNIX, Limits::default(), &[(1000, 1 << 20)]);
}

#[test]
fn ext2_and_ext3_give_what_was_put_in() {
    let shop = Workshop::new(ALL);
    for (kind, block) in [("ext2", "1024"), ("ext3", "2048")] {
        let image = shop.ext(kind, 64 << 20, &["-b", block]);
        same(&image, &shop.tree(), UNIX, Limits::default(), &[(1000, 1 << 20)]);
    }
}

/// Runs commands of debugfs on a file system.
fn debugfs(image: &Path, commands: &str) {
    feed("debugfs", &["-w", "-f", "-", text(image)], commands);
}

#[test]
fn ext4_gives_zeroes_where_nothing_was_written() {
    let shop = Workshop::new(Wish { links: false, many: 1, ..SMALL });
    fs::write(shop.tree().join("file"), vec![b'x'; 20_480]).expect("a file");
    fs::write(shop.tree().join("gone"), vec![b'!'; 1 << 20]).expect("a file");
    let image = shop.ext("ext4", 16 << 20, &["-b", "1024"]);
    // Room is set aside in the middle of the file and at its end, where something else was before.
    debugfs(&image, "rm gone\npunch file 5 9\nfallocate file 5 9\nfallocate file 20 600\nsif file size 600000\n");
    tool("e2fsck", &["-fn", text(&image)]);
    let mut expected = vec![b'x'; 20_480];
    expected[5 << 10..10 << 10].fill(0);
    expected.resize(600_000, 0);
    let mut host = Host::of_file(&image, Limits::default());
    assert_eq!(tree::hash(&host.read(0, b"file", 0, 1 << 20).expect("it can be read")), tree::hash(&expected));
    for offset in [5 << 10, 9 << 10, 10 << 10, 20_000, 599_999] {
        let bytes = host.read(0, b"file", offset as u64, 3000).expect("it can be read");
        assert!(bytes == expected[offset..expected.len().min(offset + 3000)], "{offset}");
    }
    for offset in [600_000, 1 << 60, u64::MAX] {
        assert_eq!(host.read(0, b"file", offset, 10), Ok(vec![]), "there is nothing behind the end");
    }
}

#[test]
fn ext4_gives_what_its_journal_has() {
    for features in ["metadata_csum,64bit", "^metadata_csum,64bit", "metadata_csum,^64bit", "^metadata_csum,^64bit"] {
        let shop = Workshop::new(Wish { links: false, many: 1, ..SMALL });
        fs::write(shop.tree().join("file"), vec![b'x'; 20_480]).expect("a file");
        let image = shop.ext("ext4", 16 << 20, &["-b", "1024", "-O", features]);
        let block = |number: u32| tool("debugfs", &["-R", &format!("bmap file {number}"), text(&image)]);
        let (second, fourth, last) = (block(2), block(4), block(19));
        // A block that begins as those of journals do is kept without its beginning.
        let mut bytes = vec![b'y'; 3 << 10];
        bytes[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
        let source = shop.image("blocks");
        fs::write(&source, &bytes).expect("a file");
        let open = if features.starts_with('^') { "jo" } else { "jo -c" };
        let blocks = [second.trim(), fourth.trim(), last.trim()].join(",");
        // The last one is revoked afterwards, and stays as it is.
        let revoked = last.trim();
        debugfs(&image, &format!("{open}\njw -b {blocks} {}\njw -r {revoked}\njc\n", text(&source)));
        let read = |image: &Path| {
            let mut host = Host::of_file(image, smallest());
            host.read(0, b"file", 0, 1 << 20).expect("it can be read")
        };
        let ours = read(&image);
        assert!(ours[2 << 10..3 << 10] == bytes[..1024] && ours[4 << 10..5 << 10] == bytes[1024..2048], "{features}");
        assert!(ours[19 << 10..].iter().all(|byte| *byte == b'x'), "{features}: it was revoked");
        run("e2fsck", &["-fy", text(&image)], "");
        assert!(read(&image) == ours, "{features}: e2fsck brings the same in its place");
    }
}

#[test]
fn ext4_lists_many_links_without_looking_for_each() {
    let shop = Workshop::new(Wish { links: false, many: 1, ..SMALL });
    let links = shop.tree().join("links");
    fs::create_dir(&links).expect("a directory");
    for number in 0..5000 {
        std::os::unix::fs::symlink(format!("target {number}"), links.join(format!("a link with number {number}")))
            .expect("a link");
    }
    let image = shop.ext("ext4", 32 << 20, &["-N", "8000"]);
    let limits = Limits { reads: 100_000, ..Limits::default() };
    let listed = Host::of_file(&image, limits).list_all(0, b"links", 1000).expect("it can be listed");
    assert_eq!(listed.len(), 5000);
    for entry in listed {
        let name = String::from_utf8(entry.name).expect("a name");
        let number = name.rsplit(' ').next().expect("a number");
        assert_eq!(entry.target, Some(format!("target {number}").into_bytes()));
    }
}

#[test]
fn ext4_of_other_features_gives_what_was_put_in() {
    let shop = Workshop::new(Wish { many: 200, ..ALL });
    for features in ["^metadata_csum,^64bit", "metadata_csum_seed", "^has_journal"] {
        let image = shop.ext("ext4", 64 << 20, &["-b", "1024", "-O", features]);
        same(&image, &shop.tree(), UNIX, Limits::default(), &[(1000, 1 << 20)]);
    }
}

#[test]
fn ext4_with_features_that_are_not_known_says_so() {
    let shop = Workshop::new(SMALL);
    let mut host = Host::of_file(&shop.ext("ext4", 8 << 20, &["-O", "inline_data"]), Limits::default());
    let error = host.list(0, b"/", 0, 10).expect_err("inline data");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn fat_gives_what_was_put_in() {
    for (bits, size, more) in [("12", 12, &["-s", "8"][..]), ("16", 24, &["-s", "2"]), ("32", 48, &["-s", "1"])] {
        let shop = Workshop::new(Wish { links: false, astral: false, sparse: false, many: 400, ..ALL });
        let image = shop.fat(bits, size << 20, more);
        same(&image, &shop.tree(), TIMES, Limits::default(), &[(100, 1 << 20), (10_000, 77_777)]);
    }
}

#[test]
fn ntfs_gives_what_was_put_in() {
    let shop = Workshop::new(Wish { many: 600, ..ALL });
    let Some(image) = ntfs(&shop, 96 << 20, &["-c", "4096"]) else { return };
    same(&image, &shop.tree(), TIMES, Limits::default(), &[(100, 1 << 20), (10_000, 77_777)]);
}

/// An NTFS image with the tree, if this machine lets us mount it.
fn ntfs(shop: &Workshop, size: u64, more: &[&str]) -> Option<PathBuf> {
    let path = shop.image("ntfs");
    blank(&path, size);
    tool("mkntfs", &[&["-q", "-F", "-s", "512"][..], more, &[text(&path)]].concat());
    let mounted = Mounted::ntfs(shop, &path)?;
    tool("cp", &["-a", "--sparse=always", &format!("{}/.", text(&shop.tree())), text(&mounted.0)]);
    Some(path)
}

/// A file system that is mounted, and the process that serves it.
struct Mounted(PathBuf, Child);

impl Mounted {
    fn ntfs(shop: &Workshop, image: &Path) -> Option<Self> {
        let place = shop.image("mounted");
        fs::create_dir_all(&place).expect("a directory");
        let options = ["-o", "no_detach,compression,streams_interface=xattr"];
        let mut server = Command::new("ntfs-3g")
            .args(options)
            .args([image, &place])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("ntfs-3g: {error}; cargo xtask test installs what is needed"));
        while !is_mounted(&place) {
            if server.try_wait().expect("a process").is_some() {
                let why = server.wait_with_output().expect("a process").stderr;
                let why = String::from_utf8_lossy(&why);
                eprintln!("left out, since ntfs-3g cannot mount here: {why}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Mounted(place, server))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        tool("umount", &[text(&self.0)]);
        // The last bytes land when the process ends.
        self.1.wait().expect("a process");
    }
}

fn is_mounted(place: &Path) -> bool {
    fs::read_to_string("/proc/mounts").is_ok_and(|mounts| mounts.contains(text(place)))
}

#[test]
fn ntfs_does_not_give_bytes_that_it_cannot_decode() {
    let shop = Workshop::new(Wish { links: false, many: 1, ..SMALL });
    let Some(image) = ntfs(&shop, 16 << 20, &[]) else { return };
    let plain = vec![b'x'; 200_000];
    // With names of these lengths what is looked at comes to lie where the ends of sectors are kept apart.
    let reserved: Vec<String> = [8].into_iter().chain(54..66).map(|length| "r".repeat(length)).collect();
    {
        let mounted = Mounted::ntfs(&shop, &image).expect("it was mounted before");
        let folder = mounted.0.join("compressed");
        fs::create_dir(&folder).expect("a directory");
        tool("setfattr", &["-h", "-v", "0x00000810", "-n", "system.ntfs_attrib_be", text(&folder)]);
        fs::write(folder.join("file"), &plain).expect("a file");
        // Room that was set aside and never written has whatever was on the disk before.
        fs::write(mounted.0.join("gone"), vec![b'!'; 4 << 20]).expect("a file");
        fs::remove_file(mounted.0.join("gone")).expect("a file goes");
        for name in &reserved {
            fs::write(mounted.0.join(name), b"begin").expect("a file");
        }
    }
    let mut host = Host::of_file(&image, Limits::default());
    let error = host.read(0, b"/compressed/file", 0, 100).expect_err("it is compressed");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    for name in &reserved {
        tool("ntfsfallocate", &["-q", "-l", "60000", text(&image), name]);
        let mut host = Host::of_file(&image, Limits::default());
        let bytes = host.read(0, name.as_bytes(), 0, 4 << 20).expect("it can be read");
        let expected = tool("sh", &["-c", &format!("ntfscat -q {} {name} | sha256sum", text(&image))]);
        assert_eq!(tree::hash(&bytes), expected.split(' ').next().expect("a hash"), "{name}");
        assert!(bytes.starts_with(b"begin") && bytes[5..].iter().all(|byte| *byte == 0), "{name}");
    }
}

#[test]
fn iso_gives_what_was_put_in() {
    let shop = Workshop::new(ALL);
    let image = shop.iso(&["-R", "-D"]);
    let expected = tree::expected(&shop.tree(), UNIX);
    let found = tree::found(&mut Host::of_file(&image, Limits::default()), 0, UNIX, 100, 1 << 20);
    assert_same(&found, &expected);
    // Directories that are too deep for the standard are elsewhere, and are found where they belong.
    let image = shop.iso(&["-R", "-relaxed-filenames"]);
    let found = tree::found(&mut Host::of_file(&image, Limits::default()), 0, UNIX, 10_000, 77_777);
    let found: tree::Things = found.into_iter().filter(|(path, _)| !path.starts_with("/rr_moved")).collect();
    assert_same(&found, &expected);
}

#[test]
fn joliet_gives_what_was_put_in() {
    let shop = Workshop::new(Wish { links: false, astral: false, ..SMALL });
    // Joliet has room for 64 letters, with an option for 103.
    let image = shop.iso(&["-J", "-joliet-long", "-allow-lowercase"]);
    let expected = tree::expected(&shop.tree(), TIMES);
    let found = tree::found(&mut Host::of_file(&image, Limits::default()), 0, TIMES, 100, 10_000);
    assert_same(&found, &expected);
}

#[test]
fn nothing_depends_on_the_size_of_the_cache() {
    let shop = Workshop::new(SMALL);
    let small = |image: &Path, keeps| same(image, &shop.tree(), keeps, smallest(), &[(17, 16 << 10)]);
    small(&shop.ext("ext4", 8 << 20, &["-b", "1024"]), UNIX);
    small(&shop.ext("ext2", 8 << 20, &["-b", "1024"]), UNIX);
    small(&shop.iso(&["-R"]), TIMES);
    if let Some(image) = ntfs(&shop, 8 << 20, &[]) {
        small(&image, TIMES);
    }
    let shop = Workshop::new(Wish { links: false, astral: false, ..SMALL });
    same(&shop.fat("16", 8 << 20, &["-s", "1"]), &shop.tree(), TIMES, smallest(), &[(17, 16 << 10)]);
}

#[test]
fn paths_that_lead_nowhere_are_told_from_damage() {
    let shop = Workshop::new(SMALL);
    let mut images = vec![shop.ext("ext4", 8 << 20, &[]), shop.iso(&["-R"])];
    images.extend(ntfs(&shop, 8 << 20, &[]));
    let plain = Workshop::new(Wish { links: false, astral: false, ..SMALL });
    images.push(plain.fat("16", 8 << 20, &["-s", "1"]));
    for image in images {
        let mut host = Host::of_file(&image, Limits::default());
        let kinds = [
            host.list(0, b"/nothing", 0, 1).expect_err("nothing").kind(),
            host.read(0, b"/names/nothing", 0, 1).expect_err("nothing").kind(),
            host.stat(0, b"/names/a/below a file").expect_err("below a file").kind(),
            host.list(0, b"/names/a", 0, 1).expect_err("a file").kind(),
            host.read(0, b"/names", 0, 1).expect_err("a directory").kind(),
            host.read(0, b"/../names/a", 0, 1).expect_err("not from the root").kind(),
        ];
        for (at, kind) in kinds.into_iter().enumerate() {
            assert!(matches!(kind, ErrorKind::NotFound | ErrorKind::Invalid), "{} {at} {kind:?}", image.display());
        }
        assert_eq!(host.stat(0, b"/").expect("the root").kind, Kind::Directory);
        let entry = host.stat(0, "/names/größe ñandú.txt".as_bytes()).expect("a file");
        assert_eq!((entry.kind, entry.size), (Kind::File, 4 * 37));
        assert_eq!(host.read(0, b"/names/a", 5, 10).expect("beyond the end"), b"");
        // Reads in any order, not only onwards.
        let whole = fs::read(shop.tree().join("size-65537.bin")).expect("the file");
        for (offset, length) in [(65_000, 1000), (0, 10), (40_000, 5000), (39_999, 1), (65_536, 1), (65_537, 1)] {
            let end = (offset + length).min(whole.len());
            let read = host.read(0, b"/size-65537.bin", offset as u64, length).expect("part of a file");
            assert_eq!(read, whole[offset..end]);
        }
    }
}

#[test]
fn volumes_are_read_where_the_table_says() {
    let shop = Workshop::new(Wish { links: false, astral: false, ..SMALL });
    let disk = shop.image("disk");
    blank(&disk, 64 << 20);
    feed("sfdisk", &["--quiet", text(&disk)], "label: gpt\nsize=16MiB\nsize=16MiB\nsize=8MiB\n");
    let layout = Host::of_file(&disk, Limits::default()).layout();
    for (image, volume) in [shop.ext("ext4", 16 << 20, &[]), shop.fat("16", 16 << 20, &[])].iter().zip(&layout.volumes)
    {
        let seek = format!("seek={}", volume.start / 512);
        let (from, to) = (format!("if={}", text(image)), format!("of={}", text(&disk)));
        tool("dd", &[&from, &to, &seek, "bs=512", "conv=notrunc", "status=none"]);
    }
    for limits in [Limits::default(), smallest()] {
        let mut host = Host::of_file(&disk, limits);
        let layout = host.layout();
        let names: Vec<_> = layout.volumes.iter().map(|v| v.found.as_ref().map(|found| found.name)).collect();
        assert_eq!(names, [Some("ext4"), Some("FAT16"), None]);
        for (volume, keeps) in [(0, UNIX), (1, TIMES)] {
            let mut found = tree::found(&mut host, volume, keeps, 50, 30_000);
            found.remove("/lost+found");
            assert_same(&found, &tree::expected(&shop.tree(), keeps));
        }
    }
}

#[test]
fn a_disc_that_is_partitioned_too_shows_both() {
    let shop = Workshop::new(SMALL);
    let path = shop.iso(&["-R"]);
    let mut bytes = fs::read(&path).expect("the image");
    bytes[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x17, 0, 0, 0, 64, 0, 0, 0, 100, 0, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut host = Host::of_bytes(bytes, Limits::default());
    let layout = host.layout();
    assert_eq!((layout.table, layout.volumes.len()), (Table::Mbr, 2));
    assert_same(&tree::found(&mut host, 0, TIMES, 50, 30_000), &tree::expected(&shop.tree(), TIMES));
}

#[test]
fn a_large_file_is_read_in_few_rounds_and_little_memory() {
    let shop = Workshop::new(Wish { largest: 24 << 20, sparse: false, ..SMALL });
    let image = shop.ext("ext4", 64 << 20, &["-b", "4096"]);
    let mut host = Host::of_file(&image, Limits::default());
    let path = format!("/size-{}.bin", 24 << 20);
    let mut size = 0;
    loop {
        let bytes = host.read(0, path.as_bytes(), size, 1 << 20).expect("a file");
        size += bytes.len() as u64;
        if bytes.is_empty() {
            break;
        }
    }
    assert_eq!(size, 24 << 20);
    assert!(host.rounds < 40, "{} rounds", host.rounds);
    assert!(host.given < 40 << 20, "{} bytes for a file of 24 MiB", host.given);
}
