//! `commit` and `rebase` against qemu-img: the same images come out, whoever does it.

use super::{Scratch, text};

const OURS: &str = env!("CARGO_BIN_EXE_diskette");

fn contents(scratch: &Scratch, image: &str) -> Vec<u8> {
    scratch.make("qemu-img", &["convert", "-O", "raw", image, "contents"]);
    std::fs::read(scratch.path().join("contents")).unwrap()
}

/// A chain of three, with data, zeroes and holes in each: base, middle, top; and another image to rebase to.
fn chain(options: &str, sizes: [&str; 3]) -> Scratch {
    let scratch = Scratch::new();
    let io = |image: &str, commands: &[&str]| {
        let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).chain([image]).collect();
        scratch.make("qemu-io", &args);
    };
    let create = |name: &str, backing: Option<&str>, size: &str| {
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        args.extend(backing.iter().flat_map(|backing| ["-F", "qcow2", "-b", backing]));
        args.extend([name, size]);
        scratch.make("qemu-img", &args);
    };
    create("base", None, sizes[0]);
    io("base", &["write -P 1 0 2M"]);
    create("middle", Some("base"), sizes[1]);
    io("middle", &["write -P 2 512k 300k", "write -z 1M 128k"]);
    create("top", Some("middle"), sizes[2]);
    io("top", &["write -P 3 600k 10k", "write -P 4 1100k 1k", "write -z 64k 64k"]);
    create("other", None, "1500k");
    io("other", &["write -P 1 0 1M", "write -P 9 1200k 100k"]);
    scratch
}

const OPTIONS: [&str; 5] =
    ["cluster_size=64k", "cluster_size=512", "extended_l2=on", "compat=0.10", "lazy_refcounts=on"];

#[test]
fn commits_reach_the_base_and_leave_nothing_behind() {
    for (index, options) in OPTIONS.into_iter().enumerate() {
        let sizes = [["2M", "2M", "2M"], ["2M", "3M", "4M"], ["4M", "2M", "2M"]][index % 3];
        for args in [&["commit", "top"][..], &["commit", "-d", "top"], &["commit", "-b", "base", "top"]] {
            let (mine, qemus) = (chain(options, sizes), chain(options, sizes));
            let place = format!("{options} {sizes:?} {args:?}");
            let before = contents(&mine, "top");
            let (ours, theirs) = (mine.ours(args), qemus.theirs(args));
            assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{place}: {}", text(&ours.stderr));
            assert_eq!(ours.status.code(), theirs.status.code(), "{place}: {}", text(&ours.stderr));
            for image in ["base", "middle", "top"] {
                mine.make("qemu-img", &["check", "-q", image]);
                // Version 2 cannot say that a cluster is zero, so with a backing file the two may store it differently.
                assert!(contents(&mine, image) == contents(&qemus, image), "{place}: {image}");
            }
            if !args.contains(&"-b") {
                assert!(contents(&mine, "top")[..] == before[..], "{place}");
            }
            let allocated = |scratch: &Scratch| {
                text(&scratch.theirs(&["map", "--output=json", "top"]).stdout)
                    .contains("\"depth\": 0, \"present\": true")
            };
            assert_eq!(allocated(&mine), allocated(&qemus), "{place}");
        }
    }
}

#[test]
fn rebasing_changes_nothing_that_is_read() {
    for options in OPTIONS {
        for sizes in [["2M", "2M", "2M"], ["2M", "3M", "4M"]] {
            for args in [
                &["rebase", "-F", "qcow2", "-b", "other", "top"][..],
                &["rebase", "-F", "qcow2", "-b", "base", "top"],
                &["rebase", "-b", "", "top"],
                &["rebase", "-c", "-b", "", "top"],
                &["rebase", "-F", "qcow2", "-b", "middle", "top"],
            ] {
                let scratch = chain(options, sizes);
                let before = contents(&scratch, "top");
                scratch.make(OURS, args);
                scratch.make("qemu-img", &["check", "-q", "top"]);
                assert!(contents(&scratch, "top") == before, "{options} {sizes:?} {args:?}");
                let info = text(&scratch.theirs(&["info", "top"]).stdout);
                let backing = args[args.len() - 2];
                assert_eq!(info.contains("backing file: "), !backing.is_empty(), "{info}");
                assert!(
                    backing.is_empty()
                        || info.contains(&format!("backing file: {backing}\nbacking file format: qcow2")),
                    "{info}"
                );
            }
            let scratch = chain(options, sizes);
            scratch
                .make(OURS, &["rebase", "-u", "-F", "raw", "-b", "a name that is longer than the one before", "top"]);
            let renamed = scratch.theirs(&["info", "--output=json", "top"]);
            assert!(text(&renamed.stdout).contains("a name that is longer than the one before"));
            scratch.make(OURS, &["rebase", "-u", "-b", "", "top"]);
            assert!(!text(&scratch.theirs(&["info", "top"]).stdout).contains("backing file"));
            scratch.make("qemu-img", &["check", "-q", "top"]);
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_in_qemus_words() {
    let scratch = chain("cluster_size=64k", ["2M", "2M", "2M"]);
    for args in [
        &["commit", "base"][..],
        &["commit", "-b", "missing", "top"],
        &["commit", "nothing"],
        &["commit"],
        &["rebase", "top"],
        &["rebase", "-F", "foo", "-b", "base", "top"],
        &["rebase", "-u", "-b", "base", "top"],
        &["rebase"],
        &["rebase", "-b", "missing", "-F", "qcow2", "top"],
    ] {
        let (ours, theirs) = (scratch.ours(args), scratch.theirs(args));
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
        assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"), "{args:?}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
    }
}

#[test]
fn what_a_short_image_hides_stays_hidden() {
    let scratch = Scratch::new();
    let make = |name: &str, size: &str, backing: Option<&str>| {
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if let Some(backing) = backing {
            args.extend(["-b", backing, "-F", "qcow2"]);
        }
        args.extend([name, size]);
        scratch.make("qemu-img", &args);
    };
    make("base", "10M", None);
    scratch.make("qemu-io", &["-c", "write -q -P 9 6M 1M", "-c", "write -q -P 8 0 1M", "base"]);
    make("mid", "5M", Some("base"));
    make("top", "10M", Some("mid"));
    scratch.make("qemu-img", &["convert", "-O", "raw", "top", "before.raw"]);
    // A copy over the base reads like its source, and so does the base once everything is in it.
    assert!(scratch.ours(&["convert", "-O", "qcow2", "-B", "base", "-F", "qcow2", "top", "copy"]).status.success());
    scratch.make("qemu-img", &["compare", "copy", "before.raw"]);
    assert!(scratch.ours(&["commit", "-b", "base", "top"]).status.success());
    scratch.make("qemu-img", &["compare", "base", "before.raw"]);
}

#[test]
fn a_snapshot_is_copied_over_the_image_that_has_it() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "disk", "4M"]);
    scratch.make("qemu-io", &["-c", "write -q -P 1 0 1M", "disk"]);
    scratch.make("qemu-img", &["snapshot", "-c", "one", "disk"]);
    scratch.make("qemu-io", &["-c", "write -q -P 2 512k 1M", "disk"]);
    scratch.make("qemu-img", &["convert", "-l", "one", "-O", "raw", "disk", "one.raw"]);
    let args = ["convert", "-l", "one", "-O", "qcow2", "-B", "disk", "-F", "qcow2", "disk", "out"];
    assert!(scratch.ours(&args).status.success());
    scratch.make("qemu-img", &["compare", "out", "one.raw"]);
}

/// A chain of `count` images, c0001 on top; the last is raw and full of sevens.
fn deep_chain(count: usize) -> Scratch {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name);
    scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", "cNEXT", "-F", "qcow2", "template", "1M"]);
    let template = std::fs::read(path("template")).unwrap();
    let place = |wanted: &[u8]| template.windows(wanted.len()).position(|bytes| bytes == wanted).unwrap();
    let (name, format) = (place(b"cNEXT"), place(b"qcow2"));
    for number in 1..count {
        let mut bytes = template.clone();
        bytes[name..name + 5].copy_from_slice(format!("c{:04}", number + 1).as_bytes());
        if number + 1 == count {
            // The extension that names the format of the backing image.
            bytes[format - 1] = 3;
            bytes[format..format + 8].copy_from_slice(b"raw\0\0\0\0\0");
        }
        std::fs::write(path(&format!("c{number:04}")), bytes).unwrap();
    }
    std::fs::write(path(&format!("c{count:04}")), vec![7; 1 << 20]).unwrap();
    scratch
}

/// Of a thousand images, QEMU's tools read through some hundreds before their stack ends.
#[test]
fn a_chain_of_a_thousand_is_read_and_written_through_and_a_longer_one_is_refused() {
    let scratch = deep_chain(1000);
    for args in [
        &["convert", "-O", "raw", "c0001", "out"][..],
        &["bench", "-c", "3", "-d", "3", "-w", "-s", "1000", "c0001"],
        &["compare", "c0002", "c1000"],
        &["map", "c0001"],
    ] {
        let output = scratch.ours(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
    assert!(std::fs::read(scratch.path().join("out")).unwrap() == vec![7; 1 << 20]);
    let scratch = deep_chain(1001);
    let output = scratch.ours(&["map", "c0001"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("the backing chain is longer than 1000 images"), "{}", text(&output.stderr));
}

#[test]
fn an_image_is_committed_to_the_backing_image_that_its_description_says() {
    let secrets = ["--object", "secret,id=s0,data=below", "--object", "secret,id=s1,data=above"];
    let described = "driver=qcow2,file.filename=top,encrypt.key-secret=s1,backing.driver=qcow2,\
                     backing.file.filename=base,backing.encrypt.key-secret=s0";
    let make = |program: &str| {
        let scratch = Scratch::new();
        let create = |secret: &str, rest: &[&str]| {
            let options = format!("encrypt.format=luks,encrypt.key-secret={secret},encrypt.iter-time=10");
            scratch
                .make("qemu-img", &[&["create", "-q"], &secrets[..], &["-f", "qcow2", "-o", &options], rest].concat());
        };
        create("s0", &["base", "1M"]);
        create("s1", &["-u", "-b", "base", "-F", "qcow2", "top", "2M"]);
        let write = ["-c", "write -P 5 64k 1500k", "--image-opts", described];
        scratch.make("qemu-io", &[&secrets[..], &write].concat());
        // A rate that is no limit here.
        let commit = [&["commit"], &secrets[..], &["-r", "1G", "--image-opts", described]].concat();
        let output = scratch.run(program, &commit);
        let base = ["--image-opts", "driver=qcow2,file.filename=base,encrypt.key-secret=s0"];
        scratch.make("qemu-img", &[&["convert"], &secrets[..2], &base, &["-O", "raw", "raw"]].concat());
        scratch.make("qemu-img", &[&["check", "-q"], &secrets[..2], &base].concat());
        let bytes = std::fs::read(scratch.path().join("raw")).unwrap();
        (text(&output.stdout), text(&output.stderr), bytes)
    };
    let (ours, theirs) = (make(OURS), make("qemu-img"));
    assert!(ours == theirs, "{} {} {} {}", ours.0, ours.1, theirs.0, theirs.1);
    assert_eq!(ours.2[64 << 10..][..1500 << 10], vec![5; 1500 << 10]);
}
