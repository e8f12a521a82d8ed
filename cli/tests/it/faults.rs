//! Commands that change an image while `blkdebug` has its file fail: the error is told, QEMU finds leaks at most, and the
//! disk is what it was or what it should have become.

use std::fs;

use super::{Scratch, text};

/// Steps of a request at which the next access fails.
const EVENTS: [&str; 14] = [
    "l1_update",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_alloc_write",
    "cow_write",
    "write_aio",
    "refblock_load",
    "refblock_alloc_write",
    "refblock_update_part",
    "cluster_alloc",
    "flush_to_disk",
    "pwritev",
];

/// A change, and the images that it needs.
struct Change {
    args: &'static [&'static str],
    images: fn(&Scratch),
}

const IMAGE: &str = "IMAGE";

fn io(scratch: &Scratch, image: &str, commands: &[&str]) {
    let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).chain([image]).collect();
    scratch.make("qemu-io", &args);
}

fn create(scratch: &Scratch, name: &str, backing: Option<&str>) {
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
    args.extend(backing.iter().flat_map(|backing| ["-F", "qcow2", "-b", backing]));
    args.extend([name, "3M"]);
    scratch.make("qemu-img", &args);
}

fn with_snapshot(scratch: &Scratch) {
    create(scratch, "image", None);
    io(scratch, "image", &["write -P 1 0 600k"]);
    scratch.make("qemu-img", &["snapshot", "-c", "one", "image"]);
    io(scratch, "image", &["write -P 2 100k 300k", "write -z 2M 64k"]);
}

fn with_bitmaps(scratch: &Scratch) {
    create(scratch, "image", None);
    for args in [&["--add", "image", "on"][..], &["--add", "--disable", "image", "off"]] {
        scratch.make("qemu-img", &[&["bitmap"], args].concat());
    }
    io(scratch, "image", &["write -P 1 0 600k"]);
}

fn in_chain(scratch: &Scratch) {
    create(scratch, "base", None);
    io(scratch, "base", &["write -P 1 0 2M"]);
    create(scratch, "image", Some("base"));
    io(scratch, "image", &["write -P 2 512k 300k", "write -z 1M 128k"]);
    create(scratch, "other", None);
    io(scratch, "other", &["write -P 1 0 1M", "write -P 9 1200k 100k"]);
}

fn leaky(scratch: &Scratch) {
    with_snapshot(scratch);
    // Refcounts of 200 clusters behind the end, which nothing uses.
    let mut bytes = fs::read(scratch.path().join("image")).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    let used = bytes.len() / 4096;
    (used..used + 200).for_each(|index| bytes[block + 2 * index + 1] = 1);
    fs::write(scratch.path().join("image"), bytes).unwrap();
}

const CHANGES: &[Change] = &[
    Change { args: &["snapshot", "-c", "two", IMAGE], images: with_snapshot },
    Change { args: &["snapshot", "-a", "one", IMAGE], images: with_snapshot },
    Change { args: &["snapshot", "-d", "one", IMAGE], images: with_snapshot },
    Change { args: &["resize", "-q", IMAGE, "+9M"], images: with_snapshot },
    Change { args: &["resize", "-q", "--shrink", IMAGE, "1M"], images: with_snapshot },
    Change { args: &["amend", "-o", "refcount_bits=64", IMAGE], images: with_snapshot },
    Change { args: &["amend", "-o", "compat=0.10", IMAGE], images: with_snapshot },
    Change { args: &["io", "-c", "write -P 5 50k 300k", "-c", "discard 400k 64k", IMAGE], images: with_snapshot },
    Change { args: &["io", "-c", "write -P 5 550k 300k", IMAGE], images: with_bitmaps },
    Change { args: &["bitmap", "--add", IMAGE, "new"], images: with_bitmaps },
    Change { args: &["bitmap", "--clear", "--disable", IMAGE, "on"], images: with_bitmaps },
    Change { args: &["bitmap", "--enable", "--merge", "on", IMAGE, "off"], images: with_bitmaps },
    Change { args: &["bitmap", "--remove", IMAGE, "on"], images: with_bitmaps },
    Change { args: &["rebase", "-b", "other", "-F", "qcow2", IMAGE], images: in_chain },
    Change { args: &["rebase", "-c", "-b", "", IMAGE], images: in_chain },
    Change { args: &["commit", "-q", IMAGE], images: in_chain },
    Change { args: &["convert", "-n", "-O", "qcow2", "other", IMAGE], images: in_chain },
    Change { args: &["convert", "-n", "-c", "-W", "-O", "qcow2", "other", IMAGE], images: in_chain },
    Change { args: &["check", "-r", "leaks", IMAGE], images: leaky },
];

/// The disk, read by QEMU.
fn disk(scratch: &Scratch) -> Vec<u8> {
    scratch.make("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "image", "contents"]);
    fs::read(scratch.path().join("contents")).unwrap()
}

#[test]
fn commands_whose_file_fails_say_so_and_leave_leaks_at_most() {
    let mut failed = 0;
    for (number, Change { args, images }) in CHANGES.iter().enumerate() {
        let original = Scratch::new();
        images(&original);
        let files: Vec<_> = fs::read_dir(original.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        let restore = |scratch: &Scratch| {
            for name in &files {
                fs::copy(original.path().join(name), scratch.path().join(name)).unwrap();
            }
        };
        let scratch = Scratch::new();
        let old = disk(&original);
        restore(&scratch);
        let run = |image: &str| {
            let args: Vec<String> = args.iter().map(|arg| arg.replace(IMAGE, image)).collect();
            scratch.ours(&args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let output = run("image");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        let new = disk(&scratch);
        let image = || fs::read(scratch.path().join("image")).unwrap();
        let done = image();
        for (event, errno) in EVENTS.iter().flat_map(|event| [(event, 28), (event, 5)]) {
            // Either error for every event, over all changes.
            if (number + errno) % 2 == 0 {
                continue;
            }
            let place = format!("{args:?} failing with {errno} after {event}");
            restore(&scratch);
            let rule = format!("[inject-error]\nevent = \"{event}\"\nerrno = \"{errno}\"\nonce = \"on\"\n");
            fs::write(scratch.path().join("rules"), rule).unwrap();
            let output = run("blkdebug:rules:image");
            let message = text(&output.stderr);
            match output.status.code() {
                Some(0) if image() == done => continue,
                Some(0) => {}
                Some(1..=3) => {
                    let reason = if errno == 28 { "No space left on device" } else { "Input/output error" };
                    let told = message.contains(reason) || text(&output.stdout).contains(reason);
                    assert!(told, "{place}: {message}{}", text(&output.stdout));
                    failed += 1;
                }
                code => panic!("{place}: {code:?} {message}"),
            }
            let check = scratch.theirs(&["check", "-f", "qcow2", "image"]);
            let said = format!("{}{}", text(&check.stdout), text(&check.stderr));
            // Flags that say less than they could, or are about to be cleared, are no harm.
            let flags = args[0] == "snapshot";
            let worse = said.lines().find(|line| line.contains("ERROR") && !(flags && line.contains("OFLAG_COPIED")));
            assert!(worse.is_none() && matches!(check.status.code(), Some(0 | 2 | 3)), "{place}: {worse:?}");
            let found = disk(&scratch);
            let possible = |(at, byte): (usize, &u8)| [&old, &new].iter().any(|disk| disk.get(at) == Some(byte));
            let whole = found == old || found == new;
            let wrong = if whole { None } else { found.iter().enumerate().find(|byte| !possible(*byte)) };
            assert!(wrong.is_none(), "{place}: {wrong:x?} of {} bytes", found.len());
            let length = [old.len(), new.len()].contains(&found.len());
            assert!(length, "{place}: {} bytes", found.len());
        }
    }
    assert!(failed > 60, "{failed}");
}
