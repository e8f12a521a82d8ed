//! `bitmap`, and what other commands do with bitmaps, against qemu-img.

use super::{Scratch, assert_same, text};

/// Runs commands of both programs on copies of the same images, and compares what they say and what becomes of the images.
fn assert_alike(scratch: &Scratch, images: &[&str], args: &[&str]) {
    let (mine, qemus) = (Scratch::new(), Scratch::new());
    for place in [&mine, &qemus] {
        for image in images {
            std::fs::copy(scratch.path().join(image), place.path().join(image)).unwrap();
        }
    }
    let (ours, theirs) = (mine.ours(args), qemus.theirs(args));
    // Ours says what is wrong without naming a node.
    let without_node = |line: &str| match (line.find(" in '#block"), line.find(" to #block")) {
        (Some(at), _) | (_, Some(at)) => {
            let rest = line[at + 5..].find(": ").map_or("", |colon| &line[at + 5 + colon..]);
            format!("{}{rest}", &line[..at])
        }
        _ => line.to_string(),
    };
    let said: Vec<String> = text(&theirs.stderr).lines().map(without_node).collect();
    let expected = said.join("\n").replace("qemu-img", "diskette");
    assert_eq!(text(&ours.stderr).trim_end(), expected, "{args:?}");
    assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
    for image in images {
        let info = |place: &Scratch| {
            let info = text(&place.theirs(&["info", image]).stdout);
            // How much space is used is another matter.
            info.lines()
                .filter(|line| !line.contains("disk size") && !line.contains("file length"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(info(&mine), info(&qemus), "{args:?}: {image}");
        let is_raw = info(&qemus).contains("file format: raw");
        assert!(is_raw || mine.theirs(&["check", image]).status.success(), "{args:?}: {image}");
    }
}

#[test]
fn bitmap_says_and_does_what_qemu_img_does() {
    let scratch = Scratch::new();
    for (image, size) in [("image", "10M"), ("other", "10M"), ("large", "20M")] {
        scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", image, size]);
        scratch.make("qemu-img", &["bitmap", "--add", image, "x"]);
        scratch.make("qemu-img", &["bitmap", "--add", "--disable", "-g", "4k", image, "y"]);
        scratch.make("qemu-io", &["-c", "write 1M 64k", image]);
    }
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "10M"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "raw", "10M"]);
    let images = ["image", "other", "large", "old"];
    let long = "n".repeat(1023);
    for args in [
        "bitmap --add image z",
        "bitmap --add -f qcow2 image z",
        "bitmap --add --disable image z",
        "bitmap --disable --enable image x",
        "bitmap --enable --disable image x",
        "bitmap --add -g 1k image z",
        "bitmap --add --granularity 2G image z",
        "bitmap --add -g 1000 image z",
        "bitmap --add -g 256 image z",
        "bitmap --add -g 4G image z",
        "bitmap --add -g x image z",
        "bitmap --add image x",
        "bitmap --add --add image z",
        "bitmap --remove image x",
        "bitmap --remove --add image x",
        "bitmap --remove image z",
        "bitmap --clear image x",
        "bitmap --clear image z",
        "bitmap --enable image y",
        "bitmap --disable image x",
        "bitmap --disable image z",
        "bitmap --enable image z",
        "bitmap --merge x image y",
        "bitmap --merge y image x",
        "bitmap --merge z image x",
        "bitmap --merge x image z",
        "bitmap --add --merge x image z",
        "bitmap --add --merge x --merge y --disable image z",
        "bitmap --merge x -b other image y",
        "bitmap --merge x -b other -F qcow2 image y",
        "bitmap --merge x -b large image y",
        "bitmap --merge x -b missing image y",
        "bitmap --merge x -b other --image-opts driver=qcow2,file.filename=image y",
        "bitmap --remove --image-opts driver=qcow2,file.driver=file,file.filename=image x",
        "bitmap --add --image-opts -f qcow2 image z",
        "bitmap --clear -b other image x",
        "bitmap --clear -F qcow2 image x",
        "bitmap --clear -g 64k image x",
        "bitmap image x",
        "bitmap --add image",
        "bitmap --add",
        "bitmap --add image x y",
        "bitmap --add missing x",
        "bitmap --add old x",
        "bitmap --remove old x",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        assert_alike(&scratch, &images, &args);
    }
    assert_alike(&scratch, &images, &["bitmap", "--add", "image", ""]);
    assert_alike(&scratch, &images, &["bitmap", "--add", "image", &long]);
    assert_alike(&scratch, &["raw"], &["bitmap", "--add", "-f", "raw", "raw", "x"]);
    assert_alike(&scratch, &["raw"], &["bitmap", "--clear", "-f", "raw", "raw", "x"]);
    assert_same(&scratch, &["bitmap", "--nonsense", "image", "x"]);
    assert_same(&scratch, &["check", "image"]);
}

#[test]
fn an_image_that_was_not_closed_has_inconsistent_bitmaps() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "image", "10M"]);
    scratch.make("qemu-img", &["bitmap", "--add", "image", "x"]);
    scratch.make("qemu-img", &["bitmap", "--add", "--disable", "image", "y"]);
    for command in ["write 0 64k", "abort"] {
        for name in ["theirs", "ours"] {
            std::fs::copy(scratch.path().join("image"), scratch.path().join(name)).unwrap();
        }
        scratch.run("qemu-io", &["-c", command, "-c", "abort", "theirs"]);
        scratch.ours(&["io", "-c", command, "-c", "abort", "ours"]);
        let info = |name: &str| text(&scratch.theirs(&["info", name]).stdout);
        let flags = |name| info(name).lines().filter(|line| line.contains("in-use")).count();
        assert_eq!((flags("ours"), flags("theirs")), (2, 2), "{command}");
    }
    let images = ["ours", "image"];
    for args in [
        "bitmap --enable ours x",
        "bitmap --disable ours x",
        "bitmap --clear ours x",
        "bitmap --merge y ours x",
        "bitmap --add --merge y ours z",
        "bitmap --merge x -b ours image y",
        "bitmap --add ours x",
        "bitmap --remove ours x",
        "bitmap --remove --add ours x",
        "bitmap --add ours new",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        assert_alike(&scratch, &images, &args);
    }
    for command in ["info", "check", "info --output=json"] {
        let args: Vec<&str> = command.split(' ').chain(["ours"]).collect();
        assert_same(&scratch, &args);
    }
}

#[test]
fn convert_copies_bitmaps_as_qemu_img_does() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "image", "10M"]);
    for (name, more) in [("x", &[] as &[&str]), ("y", &["--disable", "-g", "4k"]), ("z", &["-g", "1M"])] {
        let args: Vec<&str> = ["bitmap", "--add"].iter().chain(more).copied().chain(["image", name]).collect();
        scratch.make("qemu-img", &args);
        scratch.make("qemu-io", &["-c", "write 1M 100k", "-c", "write -z 5M 1k", "image"]);
    }
    std::fs::copy(scratch.path().join("image"), scratch.path().join("broken")).unwrap();
    scratch.run("qemu-io", &["-c", "write 0 64k", "-c", "abort", "broken"]);
    scratch.make("qemu-img", &["bitmap", "--add", "broken", "sound"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "10M"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "raw", "10M"]);
    let images = ["image", "broken", "old", "raw"];
    for args in [
        "convert --bitmaps -O qcow2 broken copy",
        "convert --bitmaps -O raw image copy",
        "convert --bitmaps -f raw -O qcow2 raw copy",
        "convert --bitmaps -O qcow2 old copy",
        "convert --bitmaps -O qcow2 image image copy",
        "convert --skip-broken-bitmaps -O qcow2 image copy",
        "convert --bitmaps -n -O qcow2 image broken",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        assert_alike(&scratch, &images, &args);
    }
    for (source, more) in [("image", &[] as &[&str]), ("broken", &["--skip-broken-bitmaps"])] {
        for options in ["cluster_size=64k", "cluster_size=512"] {
            let args = |target: &'static str| {
                let all = ["convert", "--bitmaps", "-O", "qcow2", "-o", options];
                all.iter().chain(more).copied().chain([source, target]).collect::<Vec<_>>()
            };
            let (ours, theirs) = (scratch.ours(&args("ours")), scratch.theirs(&args("theirs")));
            assert!(ours.status.success(), "{}", text(&ours.stderr));
            assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"));
            let bitmaps = |image: &str| {
                let info = text(&scratch.theirs(&["info", image]).stdout);
                let lines = info.lines().skip_while(|line| !line.contains("bitmaps:"));
                lines.take_while(|line| !line.contains("refcount")).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(bitmaps("ours"), bitmaps("theirs"), "{source} {options}");
            assert_same(&scratch, &["check", "theirs"]);
            assert!(scratch.theirs(&["check", "ours"]).status.success());
            // QEMU copies the bitmaps of our copy, so it can read them; what it makes of both is the same.
            scratch.make("qemu-img", &["convert", "--bitmaps", "-O", "qcow2", "ours", "again"]);
            scratch.make("qemu-img", &["convert", "--bitmaps", "-O", "qcow2", "theirs", "reference"]);
            let bytes = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
            assert!(bytes("again") == bytes("reference"), "{source} {options}");
        }
    }
}

#[test]
fn bitmaps_that_somebody_has_missed_are_told_once() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "image", "1M"]);
    scratch.make("qemu-img", &["bitmap", "--add", "image", "x"]);
    let path = scratch.path().join("image");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[88..96].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let lines = |output: &std::process::Output| -> Vec<String> {
        text(&output.stderr).replace("qemu-img: ", "diskette: ").lines().map(str::to_string).collect()
    };
    let (ours, theirs) = (scratch.ours(&["info", "image"]), scratch.theirs(&["info", "image"]));
    assert_eq!(lines(&ours), lines(&theirs));
    assert!(lines(&ours)[0].contains("a program lacking bitmap support modified this file"));
    scratch.make(env!("CARGO_BIN_EXE_diskette"), &["io", "-c", "write 0 512", "image"]);
    assert_same(&scratch, &["info", "image"]);
    assert!(scratch.ours(&["info", "image"]).stderr.is_empty());
}

#[test]
fn a_bitmap_that_does_not_fit_is_lost_and_told() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "image", "1G"]);
    scratch.make("qemu-img", &["bitmap", "--add", "image", "x"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "source", "1G"]);
    scratch.make("qemu-img", &["bitmap", "--add", "source", "x"]);
    scratch.make("qemu-io", &["-c", "write 0 64k", "source"]);
    let length = std::fs::metadata(scratch.path().join("image")).unwrap().len().next_multiple_of(65536);
    std::fs::OpenOptions::new().write(true).open(scratch.path().join("image")).unwrap().set_len(length).unwrap();
    let full =
        format!("driver=qcow2,file.driver=raw,file.size={length},file.file.driver=file,file.file.filename=image");
    let output = scratch.ours(&["bitmap", "--merge", "x", "-b", "source", "--image-opts", &full, "x"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("diskette: Lost persistent bitmaps during inactivation of node '"), "{said}");
    assert!(lines[0].contains("Failed to write bitmap 'x' to file: "), "{said}");
    assert_eq!(lines[1], "diskette: Error while closing the image: Invalid argument", "{said}");
    assert!(text(&scratch.theirs(&["info", "image"]).stdout).contains("in-use"));
    assert!(scratch.theirs(&["check", "image"]).status.success());
}
