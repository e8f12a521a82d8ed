//! `snapshot` against qemu-img: one makes what the other reads, with histories of writes in between.

use super::{Scratch, assert_same, text};

/// Whatever both programs print about an image is the same, and QEMU finds nothing wrong.
fn assert_sound(scratch: &Scratch, place: &str) {
    let check = scratch.theirs(&["check", "image"]);
    assert!(check.status.success(), "{place}: {}{}", text(&check.stdout), text(&check.stderr));
    assert_same(scratch, &["check", "image"]);
    assert_same(scratch, &["snapshot", "-l", "image"]);
    assert_same(scratch, &["info", "image"]);
}

/// The whole disk, read by QEMU.
fn contents(scratch: &Scratch) -> Vec<u8> {
    scratch.make("qemu-img", &["convert", "-O", "raw", "image", "contents"]);
    std::fs::read(scratch.path().join("contents")).unwrap()
}

#[test]
fn snapshots_keep_and_bring_back_what_was_there() {
    let ours = env!("CARGO_BIN_EXE_diskette");
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10",
        "extended_l2=on",
        "lazy_refcounts=on",
        "refcount_bits=64",
        "refcount_bits=8",
        "compression_type=zstd",
    ] {
        for (maker, applier) in [(ours, ours), (ours, "qemu-img"), ("qemu-img", ours)] {
            if maker != applier && !["cluster_size=64k", "extended_l2=on"].contains(&options) {
                continue;
            }
            let scratch = Scratch::new();
            let io = |commands: &[&str]| {
                let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).chain(["image"]).collect();
                scratch.make("qemu-io", &args);
            };
            let place = format!("{options}, made by {maker}, applied by {applier}");
            scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "image", "5M"]);
            io(&["write -P 1 0 1M", "write -P 2 3000k 100k", "write -z 1500k 64k"]);
            io(&["write -c -P 9 4M 1M"]);
            let first = contents(&scratch);
            scratch.make(maker, &["snapshot", "-c", "first", "image"]);
            assert_sound(&scratch, &place);
            scratch.make(
                ours,
                &["io", "-c", "write -P 3 500k 1M", "-c", "discard 0 256k", "-c", "write -P 4 4M 1k", "image"],
            );
            assert_sound(&scratch, &place);
            let second = contents(&scratch);
            scratch.make(maker, &["snapshot", "-c", "second", "image"]);
            scratch.make(maker, &["snapshot", "-c", "third", "image"]);
            assert_sound(&scratch, &place);
            io(&["write -P 5 0 5M"]);
            scratch.make(applier, &["snapshot", "-a", "first", "image"]);
            assert_sound(&scratch, &place);
            assert!(contents(&scratch) == first, "{place}: first");
            io(&["write -P 6 100k 200k"]);
            scratch.make(maker, &["snapshot", "-d", "first", "image"]);
            assert_sound(&scratch, &place);
            scratch.make(applier, &["snapshot", "-a", "2", "image"]);
            assert_sound(&scratch, &place);
            assert!(contents(&scratch) == second, "{place}: second");
            scratch.make(ours, &["io", "-c", "write -P 7 0 5M", "image"]);
            scratch.make(applier, &["snapshot", "-a", "third", "image"]);
            assert!(contents(&scratch) == second, "{place}: third");
            for name in ["third", "second"] {
                scratch.make(maker, &["snapshot", "-d", name, "image"]);
                assert_sound(&scratch, &place);
            }
            assert!(contents(&scratch) == second, "{place}: after all are gone");
        }
    }
}

#[test]
fn snapshots_of_other_sizes_and_with_machine_state() {
    let ours = env!("CARGO_BIN_EXE_diskette");
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "image", "1M"]);
    scratch.make("qemu-io", &["-c", "write -P 1 0 1M", "-c", "write -b -P 8 0 64k", "image"]);
    scratch.make(ours, &["snapshot", "-c", "small", "image"]);
    assert_sound(&scratch, "small");
    scratch.make("qemu-img", &["resize", "-q", "image", "8M"]);
    scratch.make("qemu-io", &["-c", "write -P 2 0 8M", "image"]);
    scratch.make(ours, &["snapshot", "-c", "large", "image"]);
    for (name, size, byte) in [("small", 1 << 20, 1), ("large", 8 << 20, 2), ("small", 1 << 20, 1)] {
        scratch.make(ours, &["snapshot", "-a", name, "image"]);
        assert_sound(&scratch, name);
        let disk = contents(&scratch);
        assert!(disk.len() == size && disk.iter().all(|found| *found == byte), "{name}");
    }
    scratch.make("qemu-io", &["-c", "read -b -P 8 0 64k", "image"]);
}

#[test]
fn what_cannot_be_done_is_refused_in_qemus_words() {
    let scratch = Scratch::new();
    let create = |name: &str, options: &str| {
        scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "1M"]);
    };
    create("plain", "cluster_size=64k");
    create("external", "data_file=data");
    create("narrow", "refcount_bits=1");
    create("marked", "cluster_size=64k");
    scratch.make("qemu-img", &["bitmap", "--add", "marked", "bitmap"]);
    scratch.make("qemu-img", &["snapshot", "-c", "x", "marked"]);
    scratch.make("qemu-io", &["-c", "write 0 64k", "narrow"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "raw", "1M"]);
    for args in [
        &["snapshot", "-a", "b", "plain"][..],
        &["snapshot", "-d", "b", "plain"],
        &["snapshot", "-c", "x", "external"],
        &["snapshot", "-c", "x", "narrow"],
        &["snapshot", "-c", "x", "missing"],
        &["snapshot", "-a", "x", "marked"],
        &["snapshot", "-l", "plain"],
        &["snapshot", "plain"],
        &["snapshot", "-c", "x", "-d", "y", "plain"],
        &["snapshot", "-f", "raw", "-c", "x", "raw"],
        &["snapshot", "-f", "raw", "-l", "raw"],
        &["snapshot", "-f", "raw", "-a", "x", "raw"],
        &["snapshot", "-f", "raw", "-d", "x", "raw"],
        &["snapshot", "-l", "plain", "raw"],
        &["snapshot"],
    ] {
        let (ours, theirs) = (scratch.ours(args), scratch.theirs(args));
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
        assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"), "{args:?}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
    }
    // Nothing is left behind where QEMU leaves a leak.
    create("narrow", "refcount_bits=1");
    scratch.make("qemu-io", &["-c", "write 0 64k", "narrow"]);
    assert!(!scratch.ours(&["snapshot", "-c", "x", "narrow"]).status.success());
    scratch.make("qemu-img", &["check", "-q", "narrow"]);
}

#[test]
fn an_empty_disk_has_no_table_and_nothing_to_lose() {
    let ours = env!("CARGO_BIN_EXE_diskette");
    for (creator, maker, ender) in [(ours, ours, "qemu-img"), ("qemu-img", "qemu-img", ours), (ours, ours, ours)] {
        let scratch = Scratch::new();
        let place = format!("made by {creator} and {maker}, then {ender}");
        scratch.make(creator, &["create", "-q", "-f", "qcow2", "image", "0"]);
        assert_sound(&scratch, &place);
        scratch.make(maker, &["snapshot", "-c", "first", "image"]);
        assert_sound(&scratch, &place);
        scratch.make(ender, &["snapshot", "-a", "first", "image"]);
        assert_sound(&scratch, &place);
        scratch.make("qemu-img", &["resize", "-q", "image", "1M"]);
        scratch.make("qemu-io", &["-c", "write -P 1 0 1M", "image"]);
        scratch.make(ender, &["snapshot", "-d", "first", "image"]);
        assert_sound(&scratch, &place);
        assert!(contents(&scratch) == vec![1; 1 << 20], "{place}");
    }
}
