//! `convert` against qemu-img: sources, snapshots, damage, order and rate of writes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Scratch, gallery, text};

fn bytes(scratch: &Scratch, name: &str) -> Vec<u8> {
    std::fs::read(scratch.path().join(name)).unwrap()
}

fn remove(scratch: &Scratch, name: &str) {
    std::fs::remove_file(scratch.path().join(name)).unwrap();
}

/// Both programs make the same disk of the same arguments.
fn assert_same_disk(scratch: &Scratch, options: &[&str]) {
    let mut args = vec!["convert"];
    args.extend(options);
    args.push("ours");
    let ours = scratch.ours(&args);
    args.pop();
    args.push("theirs");
    let theirs = scratch.theirs(&args);
    assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"), "{options:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{options:?}");
    if ours.status.success() {
        let compared = scratch.theirs(&["compare", "-s", "ours", "theirs"]);
        assert!(compared.status.success(), "{options:?}: {}", text(&compared.stdout));
        remove(scratch, "ours");
        remove(scratch, "theirs");
    }
}

#[test]
fn disks_survive_every_cluster_size_in_both_directions() {
    let scratch = gallery();
    for cluster in ["512", "1k", "4k", "64k", "256k", "2M"] {
        for extra in ["", ",compat=0.10", ",extended_l2=on"] {
            if extra.contains("extended") && ["512", "1k", "4k"].contains(&cluster) {
                continue;
            }
            let options = format!("cluster_size={cluster}{extra}");
            assert!(
                scratch.ours(&["convert", "-O", "qcow2", "-o", &options, "a.raw", "x.qcow2"]).status.success(),
                "{options}"
            );
            assert!(scratch.theirs(&["check", "-q", "x.qcow2"]).status.success(), "{options}");
            scratch.make("qemu-img", &["convert", "-O", "qcow2", "-o", &options, "a.raw", "y.qcow2"]);
            for image in ["x.qcow2", "y.qcow2"] {
                assert!(scratch.ours(&["convert", "-O", "raw", image, "x.raw"]).status.success(), "{options}");
                assert!(bytes(&scratch, "x.raw") == bytes(&scratch, "a.raw"), "{options}: {image}");
            }
        }
    }
}

#[test]
fn several_sources_are_joined() {
    let scratch = gallery();
    std::fs::write(scratch.path().join("odd.raw"), vec![7; 1000]).unwrap();
    assert_same_disk(&scratch, &["-O", "raw", "a.qcow2", "odd.raw", "snap.qcow2"]);
    assert_same_disk(&scratch, &["-O", "qcow2", "odd.raw", "a.raw", "zstd.qcow2"]);
}

#[test]
fn snapshots_can_be_read() {
    let scratch = gallery();
    scratch.make("qemu-io", &["-c", "write -q -P 9 512k 1M", "snap.qcow2"]);
    scratch.make("qemu-img", &["snapshot", "-c", "2nd", "snap.qcow2"]);
    scratch.make("qemu-io", &["-c", "write -q -P 8 0 64k", "snap.qcow2"]);
    for snapshot in [
        "first",
        "1",
        "2nd",
        "2",
        "snapshot.id=1",
        "snapshot.name=2nd",
        "snapshot.id=2,snapshot.name=2nd",
        "snapshot.id=1,snapshot.name=2nd",
        "snapshot.id=",
        "snapshot.bogus=1",
        "missing",
        "",
    ] {
        assert_same_disk(&scratch, &["-l", snapshot, "-O", "raw", "snap.qcow2"]);
        assert_same_disk(&scratch, &["-l", snapshot, "-O", "qcow2", "snap.qcow2"]);
    }
    assert_same_disk(&scratch, &["-l", "first", "-O", "raw", "a.raw"]);
    let spelled = ["--snapshot", "first", "--output-format", "qcow2", "--options", "compat=0.10", "snap.qcow2"];
    assert_same_disk(&scratch, &spelled);
    assert_same_disk(&scratch, &["-l", "first", "-O", "raw", "snap.qcow2", "a.raw"]);
    // The disk has grown since: QEMU gives the snapshot its new size.
    scratch.make("qemu-img", &["resize", "-q", "snap.qcow2", "4M"]);
    assert!(scratch.ours(&["convert", "-l", "first", "-O", "raw", "snap.qcow2", "x"]).status.success());
    let disk = bytes(&scratch, "x");
    assert_eq!(disk.len(), 2 << 20);
    assert!(disk[..1 << 20].iter().all(|byte| *byte == 3) && disk[1 << 20..].iter().all(|byte| *byte == 0));
}

/// Makes the first compressed cluster of an image unreadable.
fn damage_first_cluster(scratch: &Scratch, name: &str) {
    let mut image = bytes(scratch, name);
    let word = |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let l2 = word(&image, word(&image, 40) as usize) & 0x00ff_ffff_ffff_fe00;
    let cluster = (word(&image, l2 as usize) & ((1 << 54) - 1)) as usize;
    image[cluster..cluster + 8].fill(0xff);
    std::fs::write(scratch.path().join(name), image).unwrap();
}

#[test]
fn what_cannot_be_read_is_salvaged_as_zeroes() {
    let scratch = gallery();
    damage_first_cluster(&scratch, "zstd.qcow2");
    let failed = scratch.ours(&["convert", "-O", "raw", "zstd.qcow2", "ours"]);
    let message = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1));
    assert!(message.starts_with("diskette: error while reading at byte 0: zstd.qcow2: damaged zstd data"), "{message}");
    for quiet in [&[][..], &["-q"]] {
        let run = |program: &str, target: &str| {
            let args = [&["convert", "--salvage", "-O", "raw", "zstd.qcow2", target], quiet].concat();
            scratch.run(program, &args)
        };
        let (ours, theirs) = (run(env!("CARGO_BIN_EXE_diskette"), "ours"), run("qemu-img", "theirs"));
        assert_eq!(ours.status.code(), theirs.status.code());
        let (ours, theirs) = (text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"));
        assert_eq!(ours.lines().count(), theirs.lines().count());
        for (ours, theirs) in ours.lines().zip(theirs.lines()) {
            let place = theirs.split(": Input").next().unwrap();
            assert!(ours.starts_with(place), "{ours} / {theirs}");
        }
        assert!(bytes(&scratch, "ours") == bytes(&scratch, "theirs"));
    }
}

#[test]
fn without_w_the_layout_is_that_of_the_disk_every_time() {
    let scratch = Scratch::new();
    let disk: Vec<u8> = (0..24u32 << 20).map(|at| (at >> 16) as u8 | 1).collect();
    std::fs::write(scratch.path().join("disk"), disk).unwrap();
    for round in 0..4 {
        let name = format!("{round}.qcow2");
        assert!(scratch.ours(&["convert", "-m", "8", "-O", "qcow2", "disk", &name]).status.success());
        let map = text(&scratch.theirs(&["map", "--output=json", &name]).stdout);
        assert_eq!(map.lines().count(), 1, "one stretch of data: {map}");
        assert!(bytes(&scratch, &name) == bytes(&scratch, "0.qcow2"));
    }
    assert!(scratch.ours(&["convert", "-m", "8", "-W", "-O", "qcow2", "disk", "w.qcow2"]).status.success());
    assert!(scratch.theirs(&["compare", "disk", "w.qcow2"]).status.success());
}

#[test]
fn the_rate_of_writes_is_limited() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("disk"), vec![1; 4 << 20]).unwrap();
    let begin = Instant::now();
    assert!(scratch.ours(&["convert", "-r", "4M", "-O", "raw", "disk", "x"]).status.success());
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(600), "{took:?}");
    assert!(bytes(&scratch, "x") == bytes(&scratch, "disk"));
}

#[test]
fn targets_that_exist_are_filled() {
    let scratch = gallery();
    let target = |name: &str, fill: &str| {
        scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", name, "12M"]);
        scratch.make("qemu-io", &["-c", fill, name]);
    };
    for options in [
        &["-n", "-O", "qcow2", "a.qcow2", "t"][..],
        &["-n", "--target-image-opts", "a.qcow2", "driver=qcow2,file.filename=t"],
        &["-n", "-C", "-O", "qcow2", "a.raw", "t"],
        &["-n", "--target-image-opts", "a.raw", "driver=qcow2,discard=unmap,detect-zeroes=unmap,file.filename=t"],
    ] {
        target("t", "write -q -P 99 0 12M");
        let args = [&["convert"], options].concat();
        let output = scratch.ours(&args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        scratch.make("qemu-img", &["resize", "-q", "--shrink", "t", "10M"]);
        let compared = scratch.theirs(&["compare", "a.raw", "t"]);
        assert!(compared.status.success(), "{args:?}: {}", text(&compared.stdout));
        assert!(scratch.theirs(&["check", "-q", "t"]).status.success(), "{args:?}");
    }
    // The caller says that nothing is there, so zeroes are not written.
    target("t", "write -q -P 99 0 12M");
    assert!(scratch.ours(&["convert", "-n", "--target-is-zero", "-O", "qcow2", "a.raw", "t"]).status.success());
    let kept = scratch.theirs(&["compare", "a.raw", "t"]);
    assert!(text(&kept.stdout).contains("Content mismatch"), "{}", text(&kept.stdout));
}

#[test]
fn a_copy_that_is_interrupted_leaves_the_source_and_a_target_that_can_be_made_again() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("disk"), vec![1; 8 << 20]).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_diskette"))
        .args(["convert", "-p", "-r", "1M", "-O", "qcow2", "disk", "x"])
        .current_dir(scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let target = scratch.path().join("x");
    let begin = Instant::now();
    while !target.exists() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success());
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(bytes(&scratch, "disk").iter().all(|byte| *byte == 1));
    // The locks are gone and what is there can be replaced.
    assert!(scratch.ours(&["convert", "-O", "qcow2", "disk", "x"]).status.success());
    assert!(scratch.theirs(&["compare", "disk", "x"]).status.success());
}

#[test]
fn the_progress_is_told_when_a_signal_asks() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("disk"), vec![1; 4 << 20]).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_diskette"))
        .args(["convert", "-m", "1", "-r", "4M", "-O", "raw", "disk", "x"])
        .current_dir(scratch.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // By now the program runs, and has most of its work to do.
    std::thread::sleep(Duration::from_millis(300));
    assert!(Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stderr).contains(".00/100%)\n"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

/// A tiny file system, if this user may mount one.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(at).ok()?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"]).arg(at).output().ok()?;
        mount.status.success().then_some(Tiny(at))
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_file_system_without_space_is_named_with_the_offset() {
    let scratch = gallery();
    let directory = scratch.path().join("tiny");
    let Some(_mounted) = Tiny::mount(&directory) else { return };
    std::fs::write(scratch.path().join("disk"), vec![1; 4 << 20]).unwrap();
    let output = scratch.ours(&["convert", "-O", "qcow2", "disk", "tiny/x"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("error while writing at byte "), "{message}");
    assert!(message.contains("tiny/x") && message.contains("No space left on device"), "{message}");
    let leaks = scratch.theirs(&["check", "-q", "tiny/x"]).status.code();
    assert!(matches!(leaks, Some(0 | 3)), "no more than leaks: {leaks:?}");
    let output = scratch.ours(&["create", "-f", "raw", "-o", "preallocation=full", "tiny/y", "4M"]);
    assert!(text(&output.stderr).contains("No space left on device"), "{}", text(&output.stderr));
    assert!(!directory.join("y").exists(), "what was made for nothing is removed");
}

#[test]
fn a_shared_backing_image_is_recognised_under_any_name() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "base", "4M"]);
    scratch.make("qemu-io", &["-c", "write -P 1 0 3M", "base"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"]);
    scratch.make("qemu-io", &["-c", "write -P 2 1M 64k", "-c", "write -z 2M 64k", "top"]);
    std::os::unix::fs::symlink("base", scratch.path().join("link")).unwrap();
    let absolute = scratch.path().join("base");
    for base in ["base", "./base", "link", absolute.to_str().unwrap()] {
        let map = |program: &str, target: &str| {
            scratch.make(program, &["convert", "-O", "qcow2", "-B", base, "-F", "qcow2", "top", target]);
            text(&scratch.theirs(&["map", "--output=json", target]).stdout)
        };
        assert_eq!(map(env!("CARGO_BIN_EXE_diskette"), "ours"), map("qemu-img", "theirs"), "{base}");
        scratch.make("qemu-img", &["compare", "top", "ours"]);
    }
}
