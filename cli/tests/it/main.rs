//! The program against qemu-img: same flags, output and exit codes.

mod bad;
mod bitmap;
mod chains;
mod convert;
mod corpus;
mod descriptions;
mod faults;
mod histories;
mod hostile;
mod io;
mod luks;
mod measures;
mod nbd;
mod options;
mod repair;
#[cfg(feature = "serve")]
mod serve;
mod snapshot;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory that is removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("diskette-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        Command::new(program)
            .args(args)
            .current_dir(&self.0)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn ours(&self, args: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_diskette"), args)
    }

    fn theirs(&self, args: &[&str]) -> Output {
        self.run("qemu-img", args)
    }

    /// Runs a tool of QEMU that must succeed.
    fn make(&self, program: &str, args: &[&str]) {
        let output = self.run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A copy of the program where every user can start it.
fn copied_program(scratch: &Scratch) -> String {
    let copy = scratch.path().join("program");
    std::fs::copy(env!("CARGO_BIN_EXE_diskette"), &copy).unwrap();
    copy.to_str().unwrap().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both programs say the same and end alike.
fn assert_same(scratch: &Scratch, args: &[&str]) {
    let (ours, theirs) = (scratch.ours(args), scratch.theirs(args));
    assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
    assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img", "diskette"), "{args:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
}

/// Images of every kind that the read commands should agree on.
fn gallery() -> Scratch {
    let scratch = Scratch::new();
    let qemu_img = |args: &[&str]| scratch.make("qemu-img", args);
    let qemu_io = |args: &[&str]| scratch.make("qemu-io", args);
    qemu_img(&["create", "-q", "-f", "qcow2", "a.qcow2", "10M"]);
    qemu_io(&["-c", "write -P 1 0 128k", "-c", "write -P 2 1M 64k", "-c", "write -z 2M 1M", "a.qcow2"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2"]);
    qemu_io(&["-c", "write -P 7 9M 64k", "b.qcow2"]);
    qemu_img(&["convert", "-O", "raw", "a.qcow2", "a.raw"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "old.qcow2", "3M"]);
    qemu_img(&["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "a.raw", "zstd.qcow2"]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,lazy_refcounts=on,refcount_bits=64",
        "new.qcow2",
        "1G",
    ]);
    qemu_img(&["create", "-q", "-f", "qcow2", "snap.qcow2", "2M"]);
    qemu_io(&["-c", "write -P 3 0 1M", "snap.qcow2"]);
    qemu_img(&["snapshot", "-c", "first", "snap.qcow2"]);
    qemu_img(&["bitmap", "--add", "snap.qcow2", "dirty"]);
    scratch
}

const GALLERY: [&str; 7] = ["a.qcow2", "b.qcow2", "a.raw", "old.qcow2", "zstd.qcow2", "new.qcow2", "snap.qcow2"];

#[test]
fn info_map_and_check_say_what_qemu_img_says() {
    let scratch = gallery();
    for image in GALLERY {
        for command in [
            "info",
            "info --output=json",
            "info --backing-chain",
            "info --backing-chain --output=json",
            "map --output=json",
            "check",
            "check -q",
        ] {
            let mut args: Vec<&str> = command.split(' ').collect();
            args.push(image);
            assert_same(&scratch, &args);
        }
        // QEMU's order of the keys is that of a hash table.
        let sorted = |output: Output| {
            let mut lines: Vec<String> =
                text(&output.stdout).lines().map(|line| line.trim_end_matches(',').to_string()).collect();
            lines.sort();
            lines
        };
        let args = ["check", "--output=json", image];
        assert_eq!(sorted(scratch.ours(&args)), sorted(scratch.theirs(&args)), "{image}");
    }
    for image in ["a.qcow2", "b.qcow2", "a.raw"] {
        assert_same(&scratch, &["map", image]);
        assert_same(&scratch, &["map", "--output=json", "--start-offset=64k", "--max-length=1M", image]);
    }
    assert_same(&scratch, &["map", "--output=json", "--image-opts", "driver=qcow2,file.filename=a.qcow2"]);
    assert_same(
        &scratch,
        &["map", "--output=json", "--image-opts", "driver=raw,offset=65536,size=131072,file.filename=a.raw"],
    );
}

#[test]
fn damage_is_counted_as_qemu_img_counts_it() {
    let scratch = gallery();
    let original = std::fs::read(scratch.path().join("a.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(original[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    for (entry, value) in [(3usize, 0u16), (4, 2), (7, 0), (2, 3)] {
        let mut bytes = original.clone();
        bytes[block + entry * 2..block + entry * 2 + 2].copy_from_slice(&value.to_be_bytes());
        std::fs::write(scratch.path().join("damaged.qcow2"), bytes).unwrap();
        let (ours, theirs) = (scratch.ours(&["check", "damaged.qcow2"]), scratch.theirs(&["check", "damaged.qcow2"]));
        assert_eq!(
            ours.status.code(),
            theirs.status.code(),
            "refcount {entry} = {value}: {} / {}",
            text(&ours.stderr),
            text(&theirs.stderr)
        );
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "refcount {entry} = {value}");
    }
}

#[test]
fn create_makes_what_qemu_img_makes() {
    for options in [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "extended_l2=on",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "compression_type=zstd",
        "cluster_size=3k",
        "refcount_bits=3",
        "refcount_bits=8,compat=0.10",
        "lazy_refcounts=on,compat=0.10",
        "extended_l2=on,cluster_size=4k",
        "data_file_raw=on",
    ] {
        let (mine, qemus) = (Scratch::new(), Scratch::new());
        let mut args = vec!["create", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend(["image.qcow2", "20M"]);
        let (ours, theirs) = (mine.ours(&args), qemus.theirs(&args));
        assert_eq!(
            ours.status.success(),
            theirs.status.success(),
            "{options}: {}{}",
            text(&ours.stderr),
            text(&theirs.stderr)
        );
        if !theirs.status.success() {
            continue;
        }
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{options}");
        let properties = |scratch: &Scratch| {
            let info = text(&scratch.theirs(&["info", "--output=json", "image.qcow2"]).stdout);
            let start = info.rfind("\"format-specific\"").unwrap();
            (info[start..].to_string(), scratch.theirs(&["check", "image.qcow2"]).status.code())
        };
        assert_eq!(properties(&mine), properties(&qemus), "{options}");
        let map = |scratch: &Scratch| {
            text(&scratch.theirs(&["map", "--output=json", "image.qcow2"]).stdout).matches("\"data\": true").count()
        };
        assert_eq!(map(&mine), map(&qemus), "{options}");
    }
}

#[test]
fn info_map_and_check_agree_over_every_option() {
    let mut every: Vec<String> = Vec::new();
    for bits in 9..=21 {
        every.push(format!("cluster_size={}", 1 << bits));
    }
    every.extend([1, 2, 4, 8, 16, 32, 64].map(|bits| format!("refcount_bits={bits}")));
    for option in [
        "compat=0.10",
        "compat=1.1",
        "compat=v2",
        "compat=v3",
        "lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=2M",
        "compression_type=zlib",
        "compression_type=zstd",
        "preallocation=off",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "extended_l2=on,preallocation=metadata",
        "data_file=image.data",
        "data_file=image.data,data_file_raw=on",
        "data_file=image.data,preallocation=metadata",
        "backing_file=base.qcow2,backing_fmt=qcow2",
        "backing_file=short.raw,backing_fmt=raw",
        "backing_file=base.qcow2,backing_fmt=qcow2,extended_l2=on,preallocation=metadata",
    ] {
        every.push(option.to_string());
    }
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "3M"]);
    scratch.make("qemu-io", &["-c", "write -P 8 0 3M", "base.qcow2"]);
    std::fs::write(scratch.path().join("short.raw"), [9; 5120]).unwrap();
    let ours = env!("CARGO_BIN_EXE_diskette");
    for options in &every {
        let create = ["create", "-q", "-f", "qcow2", "-o", options, "image", "3M"];
        for maker in [ours, "qemu-img"] {
            scratch.make(maker, &create);
            for image in ["fresh", "written"] {
                if image == "written" {
                    scratch.make("qemu-io", &["-c", "write -P 5 100k 70k", "-c", "write -z 1M 512k", "image"]);
                }
                for command in
                    ["info", "info --output=json", "map", "map --output=json", "check", "check --output=json"]
                {
                    let mut args: Vec<&str> = command.split(' ').collect();
                    args.push("image");
                    // Holes of an external data file read as zeroes, which QEMU does not see.
                    if command.starts_with("map") && options.contains("data_file") {
                        continue;
                    }
                    let (ours, theirs) = (scratch.ours(&args), scratch.theirs(&args));
                    let place = format!("{options}, made by {maker}, {image}: {command}");
                    if command.starts_with("check --output") {
                        let sorted = |output: &Output| {
                            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                            json.as_object().unwrap().clone().into_iter().collect::<std::collections::BTreeMap<_, _>>()
                        };
                        assert_eq!(sorted(&ours), sorted(&theirs), "{place}");
                    } else {
                        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{place}");
                    }
                    assert_eq!(text(&ours.stderr), text(&theirs.stderr).replace("qemu-img: ", "diskette: "), "{place}");
                    assert_eq!(ours.status.code(), theirs.status.code(), "{place}");
                }
            }
        }
    }
}

#[test]
fn convert_goes_both_ways_without_loss() {
    let scratch = gallery();
    for (source, options) in [
        ("a.raw", "-O qcow2"),
        ("b.qcow2", "-O qcow2 -o cluster_size=4k"),
        ("zstd.qcow2", "-O qcow2 -o extended_l2=on -m 4 -W"),
        ("b.qcow2", "-O raw"),
        ("zstd.qcow2", "-O raw -S 0 -t none -T none"),
        ("a.raw", "-O qcow2 -o preallocation=metadata"),
        ("b.qcow2", "-O qcow2 -B a.qcow2 -F qcow2"),
        ("a.qcow2", "-f qcow2 -O qcow2 -o data_file=external.raw"),
    ] {
        let mut args: Vec<&str> = vec!["convert"];
        args.extend(options.split(' '));
        args.extend([source, "target"]);
        let output = scratch.ours(&args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        let format = if options.contains("-O raw") { "raw" } else { "qcow2" };
        assert!(scratch.theirs(&["compare", "-F", format, source, "target"]).status.success(), "{args:?}");
        if format == "qcow2" {
            assert!(scratch.theirs(&["check", "-f", "qcow2", "target"]).status.success(), "{args:?}");
        }
        std::fs::remove_file(scratch.path().join("target")).unwrap();
    }
    // A backing image that the source does not have: everything is copied, zeroes too.
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "other.raw", "10M"]);
    scratch.make("qemu-io", &["-f", "raw", "-c", "write -q -P 99 0 10M", "other.raw"]);
    assert!(
        scratch.ours(&["convert", "-O", "qcow2", "-B", "other.raw", "-F", "raw", "b.qcow2", "target"]).status.success()
    );
    assert!(scratch.theirs(&["compare", "b.qcow2", "target"]).status.success());
    std::fs::remove_file(scratch.path().join("target")).unwrap();
    // One that it has: only what is above it is copied.
    assert!(
        scratch.ours(&["convert", "-O", "qcow2", "-B", "a.qcow2", "-F", "qcow2", "b.qcow2", "target"]).status.success()
    );
    assert!(scratch.theirs(&["compare", "b.qcow2", "target"]).status.success());
    let map = text(&scratch.theirs(&["map", "--output=json", "target"]).stdout);
    assert_eq!(map.matches("\"depth\": 0, \"present\": true").count(), 1, "{map}");
    std::fs::remove_file(scratch.path().join("target")).unwrap();
    let output = scratch.ours(&["convert", "-p", "-O", "raw", "a.qcow2", "target"]);
    assert!(
        text(&output.stdout).starts_with("    (0.00/100%)\r")
            && text(&output.stdout).ends_with("    (100.00/100%)\r\n"),
        "{}",
        text(&output.stdout)
    );
    // Into something that exists and is not empty.
    std::fs::write(scratch.path().join("existing"), vec![0xff; 12 << 20]).unwrap();
    assert!(scratch.ours(&["convert", "-n", "-O", "raw", "a.qcow2", "existing"]).status.success());
    let existing = std::fs::read(scratch.path().join("existing")).unwrap();
    assert!(
        existing[..10 << 20] == std::fs::read(scratch.path().join("a.raw")).unwrap(),
        "what was there is overwritten, zeroes too"
    );
}

#[test]
fn compare_agrees_on_differences() {
    let scratch = gallery();
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "short.raw", "512"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "zero.qcow2", "1M"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "raw", "zero.raw", "2M"]);
    for pair in [
        ["a.qcow2", "a.raw"],
        ["a.qcow2", "b.qcow2"],
        ["short.raw", "a.qcow2"],
        ["zero.qcow2", "zero.raw"],
        ["a.qcow2", "missing"],
    ] {
        for extra in [&[][..], &["-q"], &["-p"]] {
            let mut args = vec!["compare"];
            args.extend(extra);
            args.extend(pair);
            let (ours, theirs) = (scratch.ours(&args), scratch.theirs(&args));
            assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
            if !extra.contains(&"-p") {
                assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
            }
        }
    }
    assert_same(&scratch, &["compare", "-s", "zero.qcow2", "zero.raw"]);
    // QEMU's strict mode also compares whether an extent ends with the disk; here only contents and allocation count.
    let strict = scratch.ours(&["compare", "-s", "a.qcow2", "b.qcow2"]);
    assert_eq!(strict.status.code(), Some(1));
    assert_eq!(text(&strict.stdout), "Strict mode: Offset 9437184 block status mismatch!\n");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let scratch = gallery();
    assert_same(&scratch, &["info", "missing"]);
    assert_same(&scratch, &["info", "-f", "nonsense", "a.raw"]);
    std::fs::write(scratch.path().join("empty"), b"").unwrap();
    assert_same(&scratch, &["info", "empty"]);
    let fails = |args: &[&str], says: &str| {
        let output = scratch.ours(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(text(&output.stderr).contains(says), "{args:?}: {}", text(&output.stderr));
    };
    fails(&["info", "."], "a directory");
    assert!(Command::new("mkfifo").arg(scratch.path().join("fifo")).status().unwrap().success());
    fails(&["info", "fifo"], "a FIFO");
    fails(&["info", "-f", "qcow2", "empty"], "expected at least 72");
    fails(&["convert", "-O", "vmdk", "a.raw", "x"], "Unknown file format 'vmdk'");
    fails(&["create", "-f", "qcow2", "-o", "encrypt.format=luks", "x", "1M"], "encrypt");
    fails(&["convert", "-c", "-O", "raw", "a.raw", "x"], "Compression not supported for this file format");
    assert_eq!(scratch.ours(&["check", "a.raw"]).status.code(), Some(63));
    // Nobody may read this; root may read everything, so the program gives up being root first.
    std::fs::write(scratch.path().join("secret"), vec![0; 512]).unwrap();
    let shell = format!(
        "chmod 0 secret; chmod 755 . ; if [ \"$(id -u)\" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups {0} info secret; else exec {0} info secret; fi",
        copied_program(&scratch)
    );
    let output = scratch.run("bash", &["-c", &shell]);
    assert!(text(&output.stderr).contains("Could not open 'secret': Permission denied"), "{}", text(&output.stderr));
    // A file that is cut short while it is used for something.
    let bytes = std::fs::read(scratch.path().join("a.qcow2")).unwrap();
    std::fs::write(scratch.path().join("cut.qcow2"), &bytes[..bytes.len() - 70_000]).unwrap();
    fails(&["convert", "-O", "raw", "cut.qcow2", "x"], "the file ends at");
}

#[test]
fn a_full_disk_is_an_error_and_the_source_stays() {
    let scratch = gallery();
    let shell = format!(
        "trap '' XFSZ; ulimit -f 1000; exec {} convert -S 0 -O qcow2 a.qcow2 target",
        env!("CARGO_BIN_EXE_diskette")
    );
    let output = scratch.run("bash", &["-c", &shell]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("error while writing at byte"), "{}", text(&output.stderr));
    assert!(scratch.theirs(&["check", "a.qcow2"]).status.success());
}

#[test]
fn inspect_opens_nothing_and_judges() {
    let scratch = gallery();
    std::fs::remove_file(scratch.path().join("a.qcow2")).unwrap();
    let output = scratch.ours(&["inspect", "b.qcow2"]);
    assert_eq!(output.status.code(), Some(3), "a backing file is a risk: {}", text(&output.stdout));
    assert!(text(&output.stdout).contains("backing file (not opened): a.qcow2"), "{}", text(&output.stdout));
    assert_eq!(scratch.ours(&["inspect", "old.qcow2"]).status.code(), Some(0));
    let json = text(&scratch.ours(&["inspect", "--output=json", "b.qcow2"]).stdout);
    assert!(json.contains("\"verdict\": \"risky\"") && json.contains("\"opened\": false"), "{json}");
    std::fs::write(scratch.path().join("broken"), b"QFI\xfb\0\0\0\x03").unwrap();
    let output = scratch.ours(&["inspect", "broken"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("Verdict: unusable"), "{}", text(&output.stdout));
}

#[test]
fn completions_and_the_manual_page_are_made() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&scratch.ours(&["completions", shell]).stdout).contains("diskette"));
    }
    assert!(text(&scratch.ours(&["man"]).stdout).contains(".TH"));
}

/// A block device over a file of the scratch folder.
struct Device(String);

impl Device {
    /// `None` where this user may not make one.
    fn over(scratch: &Scratch, file: &str, options: &[&str]) -> Option<Device> {
        let output = scratch.run("losetup", &[options, &["--find", "--show", file]].concat());
        let name = text(&output.stdout).trim().to_string();
        if output.status.success() {
            if options.is_empty() {
                // A device that somebody left read-only stays so.
                let _ = Command::new("blockdev").args(["--setrw", &name]).status();
            }
            return Some(Device(name));
        }
        eprintln!("no block device can be made here: {}", text(&output.stderr));
        None
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_devices_are_images_too() {
    let scratch = gallery();
    let old = vec![0xa5; 10 << 20];
    std::fs::write(scratch.path().join("device"), &old).unwrap();
    let Some(device) = Device::over(&scratch, "device", &[]) else { return };
    let name = device.0.as_str();
    assert_same(&scratch, &["info", "-f", "raw", "--output=json", name]);
    for options in [&[][..], &["-t", "none"]] {
        let run = |command: &[&str]| {
            let output = scratch.ours(&[command, options, &["a.qcow2", name]].concat());
            assert!(output.status.success(), "{command:?} {options:?}: {}", text(&output.stderr));
        };
        // An image on the device; what was there before must not show.
        std::fs::write(name, &old).unwrap();
        run(&["convert", "-O", "qcow2"]);
        for command in ["info", "info --output=json", "map --output=json", "check"] {
            let mut args: Vec<&str> = command.split(' ').collect();
            args.push(name);
            assert_same(&scratch, &args);
        }
        scratch.make("qemu-img", &["compare", "a.qcow2", name]);
        // The device is the disk.
        for extra in [&[][..], &["-n"]] {
            std::fs::write(name, &old).unwrap();
            run(&[&["convert", "-O", "raw"], extra].concat());
            scratch.make("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", "a.qcow2", name]);
        }
    }
    // It does not grow.
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "big.qcow2", "32M"]);
    assert_same(&scratch, &["convert", "-O", "raw", "big.qcow2", name]);
    assert_same(&scratch, &["convert", "-n", "-O", "raw", "big.qcow2", name]);
    drop(device);
    let device = Device::over(&scratch, "device", &["--read-only"]).expect("one was made before");
    assert_same(&scratch, &["info", "-f", "raw", &device.0]);
    assert_same(&scratch, &["convert", "-n", "-O", "raw", "a.qcow2", &device.0]);
}
