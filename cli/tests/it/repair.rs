//! `check -r`, `resize` and `amend` against qemu-img: the same words, exit codes and images.

use super::{Scratch, assert_same, text};

/// Runs a command of ours and of qemu-img on an image each, and compares what they say. The images end up alike for QEMU.
fn alike(scratch: &Scratch, args: &[&str]) {
    let with = |name: &'static str| -> Vec<&str> {
        args.iter().map(|word| if *word == "image" { name } else { *word }).collect()
    };
    let (ours, theirs) = (scratch.ours(&with("ours")), scratch.theirs(&with("theirs")));
    // How much of a file is holes is up to the program.
    let calm = |bytes: &[u8]| -> String {
        let text = text(bytes).replace("theirs", "ours").replace("qemu-img", "diskette");
        let lines = text.split_inclusive('\n');
        lines.filter(|line| !["disk size", "file length"].iter().any(|what| line.trim().starts_with(what))).collect()
    };
    assert_eq!(calm(&ours.stdout), calm(&theirs.stdout), "{args:?}");
    assert_eq!(calm(&ours.stderr), calm(&theirs.stderr), "{args:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
}

/// Two copies of an image that qemu-img makes and qemu-io fills.
fn pair(options: &str, commands: &[&str], change: impl Fn(&mut Vec<u8>)) -> Scratch {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "ours", "4M"]);
    let io: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).chain(["ours"]).collect();
    scratch.make("qemu-io", &io);
    let mut bytes = std::fs::read(scratch.path().join("ours")).unwrap();
    change(&mut bytes);
    for name in ["ours", "theirs"] {
        std::fs::write(scratch.path().join(name), &bytes).unwrap();
    }
    scratch
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize & 0x00ff_ffff_ffff_fe00
}

#[test]
fn repairs_say_what_qemu_img_says() {
    type Damage = fn(&mut Vec<u8>);
    let damages: &[(&str, Damage)] = &[
        ("nothing", |_| {}),
        ("a leak", |bytes| {
            let block = number(bytes, number(bytes, 48));
            bytes[block + 1] = 2;
        }),
        ("a cluster that is called free", |bytes| {
            let block = number(bytes, number(bytes, 48));
            bytes[block + 8..block + 12].fill(0);
        }),
        ("no refcounts", |bytes| {
            let table = number(bytes, 48);
            bytes[table..table + 8].fill(0);
        }),
        ("no refcount table", |bytes| bytes[56..60].fill(0)),
        ("two entries for one cluster", |bytes| {
            let l2 = number(bytes, number(bytes, 40));
            bytes.copy_within(l2..l2 + 8, l2 + 80);
        }),
        ("flags", |bytes| {
            let l1 = number(bytes, 40);
            bytes[l1] ^= 0x80;
            let l2 = number(bytes, l1);
            bytes[l2] ^= 0x80;
        }),
        ("a zero cluster with space nowhere", |bytes| {
            let l2 = number(bytes, number(bytes, 40));
            bytes[l2 + 80..l2 + 88].copy_from_slice(&0x8000_0000_0005_2a01u64.to_be_bytes());
        }),
        ("an image that is marked", |bytes| bytes[79] |= 3),
    ];
    for (what, damage) in damages {
        for command in [
            &["check", "-r", "leaks", "image"][..],
            &["check", "-r", "all", "image"],
            &["check", "-r", "all", "--output=json", "image"],
            &["check", "-q", "-r", "all", "image"],
        ] {
            let scratch = pair("cluster_size=64k", &["write -P 1 0 256k", "write -P 2 2M 128k"], damage);
            println!("{what}");
            alike(&scratch, command);
            alike(&scratch, &["check", "image"]);
        }
    }
}

#[test]
fn snapshot_tables_that_are_incomplete_are_repaired_alike() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "ours", "4M"]);
    for name in ["one", "two"] {
        scratch.make("qemu-img", &["snapshot", "-c", name, "ours"]);
    }
    let mut bytes = std::fs::read(scratch.path().join("ours")).unwrap();
    let table = number(&bytes, 64);
    // Without extra data the texts follow at once.
    bytes[table + 36..table + 40].fill(0);
    bytes.copy_within(table + 64..table + 68, table + 40);
    let end = bytes.len();
    bytes.copy_within(table + 72..end, table + 48);
    for name in ["ours", "theirs"] {
        std::fs::write(scratch.path().join(name), &bytes).unwrap();
    }
    alike(&scratch, &["check", "image"]);
    alike(&scratch, &["check", "-r", "all", "image"]);
    alike(&scratch, &["check", "image"]);
    assert_same(&scratch, &["snapshot", "-l", "ours"]);
}

#[test]
fn sizes_change_as_with_qemu_img() {
    let commands = ["write -P 1 0 1M", "write -P 2 3M 1M"];
    for options in ["cluster_size=64k", "cluster_size=512", "compat=0.10", "extended_l2=on", "refcount_bits=1"] {
        for steps in [
            &[&["--shrink", "image", "1500k"][..], &["image", "3M"]][..],
            &[&["image", "+1M"], &["--shrink", "image", "-4M"], &["-q", "image", "2M"]],
            &[&["--preallocation=metadata", "image", "9M"]],
            &[&["--preallocation", "falloc", "image", "6M"]],
            &[&["--preallocation=full", "image", "+64k"], &["-f", "qcow2", "--shrink", "image", "4k"]],
        ] {
            let scratch = pair(options, &commands, |_| {});
            for step in steps {
                alike(&scratch, &[&["resize"], *step].concat());
                for name in ["ours", "theirs"] {
                    scratch.make("qemu-img", &["check", "-q", name]);
                }
                let compared = scratch.theirs(&["compare", "ours", "theirs"]);
                assert!(compared.status.success(), "{options} {step:?}: {}", text(&compared.stdout));
            }
        }
    }
    let scratch = pair("cluster_size=64k", &commands, |_| {});
    for words in [
        &["image", "1M"][..],
        &["image", "-5M"],
        &["image", "0"],
        &["image", "x"],
        &["--preallocation=off", "image", "4M"],
        &["--preallocation=full", "--shrink", "image", "1M"],
        &["--preallocation=bogus", "image", "9M"],
        &["image"],
        &["--image-opts", "driver=qcow2,file.filename=image", "9M"],
    ] {
        alike(&scratch, &[&["resize"], words].concat());
    }
}

#[test]
fn raw_disks_change_their_size_too() {
    let scratch = Scratch::new();
    for name in ["ours", "theirs"] {
        std::fs::write(scratch.path().join(name), vec![7; 1 << 20]).unwrap();
    }
    for words in
        [&["-f", "raw", "image", "+1M"][..], &["-f", "raw", "--shrink", "image", "300k"], &["-f", "raw", "image", "1M"]]
    {
        alike(&scratch, &[&["resize"], words].concat());
        let read = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
        assert!(read("ours") == read("theirs"), "{words:?}");
    }
}

#[test]
fn properties_change_as_with_qemu_img() {
    let commands = ["write -P 1 0 1M", "write -z 1M 256k", "write -P 2 3M 1M"];
    for options in ["cluster_size=64k", "cluster_size=4k", "compat=0.10", "lazy_refcounts=on"] {
        let scratch = pair(options, &commands, |_| {});
        scratch.make("qemu-img", &["snapshot", "-c", "one", "ours"]);
        scratch.make("qemu-io", &["-c", "write -P 3 512k 64k", "ours"]);
        std::fs::copy(scratch.path().join("ours"), scratch.path().join("theirs")).unwrap();
        for wanted in [
            "compat=1.1",
            "refcount_bits=64",
            "refcount_bits=1",
            "lazy_refcounts=on",
            "refcount_bits=2",
            "compat=0.10",
            "compat=0.10,refcount_bits=16",
            "lazy_refcounts=on",
            "compat=1.1,lazy_refcounts=on,size=6M",
            "size=4M,compat=0.10",
            "compat=0.42",
            "foo=bar",
            "cluster_size=64k",
            "refcount_bits=3",
            "backing_file=x",
            "data_file=x",
            "data_file_raw=on",
        ] {
            alike(&scratch, &["amend", "-o", wanted, "image"]);
            alike(&scratch, &["info", "image"]);
            for name in ["ours", "theirs"] {
                scratch.make("qemu-img", &["check", "-q", name]);
            }
            let compared = scratch.theirs(&["compare", "ours", "theirs"]);
            assert!(compared.status.success(), "{options} {wanted}: {}", text(&compared.stdout));
        }
    }
    let scratch = pair("cluster_size=64k", &commands, |_| {});
    alike(&scratch, &["amend", "-p", "-o", "compat=0.10", "image"]);
    alike(&scratch, &["amend", "-f", "qcow2", "-o", "help"]);
    alike(&scratch, &["amend", "-o", "help", "image"]);
    alike(&scratch, &["amend", "image"]);
}

#[test]
fn options_of_an_open_image_are_checked_as_by_qemu_io() {
    let scratch = pair("cluster_size=64k", &["write -P 1 0 1M"], |_| {});
    let ours = env!("CARGO_BIN_EXE_diskette");
    for options in [
        "lazy-refcounts=42",
        "cache-size=1M,l2-cache-size=64k,refcount-cache-size=64k",
        "cache-size=1M,l2-cache-size=2M",
        "l2-cache-entry-size=33k",
        "refcount-cache-size=256T",
        "overlap-check=constant,overlap-check.template=all",
        "overlap-check=blubb",
        "cache-clean-interval=-1",
        "cache-size=0,overlap-check=all,discard-no-unref=on,pass-discard-other=on",
    ] {
        let open = format!("reopen -o {options}");
        let words = ["-c", &open, "-c", "read -q -P 1 0 1M", "ours"];
        let said = scratch.run(ours, &[&["io"], &words[..]].concat());
        let expected = scratch.run("qemu-io", &words);
        assert_eq!(text(&said.stderr), text(&expected.stderr).replace("qemu-io", "diskette"), "{options}");
        assert_eq!(text(&said.stdout), text(&expected.stdout), "{options}");
    }
}
