//! `io`, called by its name and as `qemu-io`, against QEMU's own.

use std::process::{Command, Output};

use super::{Scratch, text};

/// Runs commands on an image with one of the two programs.
fn run(scratch: &Scratch, program: &str, commands: &[&str], image: &str) -> Output {
    let mut args: Vec<&str> = if program == "qemu-io" { vec![] } else { vec!["io"] };
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(image);
    scratch.run(program, &args)
}

/// The output without what depends on the time.
fn timeless(output: &Output) -> String {
    let mut result = String::new();
    for line in text(&output.stdout).lines() {
        let line = match (line.split_once(" ops; "), line.split_once(",0:00:")) {
            (Some((before, _)), _) | (None, Some((before, _))) => before,
            _ => line,
        };
        result.push_str(line);
        result.push('\n');
    }
    result
}

#[test]
fn commands_do_and_say_what_qemu_ios_do_and_say() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("filling"), b"hello, world {~}\x7f\x80").unwrap();
    for format in ["qcow2", "raw"] {
        let histories: &[&[&str]] = &[
            &["write -P 1 0 64k", "read -v 0 32", "read -P 2 0 64k", "read -P 1 0 64k", "length", "info", "map"],
            &["write 0 1k", "read -P 0xcd 0 1k", "write -z 512 1k", "read -P 0 512 1k", "read -P 0 -s 10 -l 5 505 20"],
            &["read", "read 0", "read abc 1", "read 0 abc", "read -x 0 1", "read -P 300 0 1", "read -s 1 0 10"],
            &[
                "read -P 1 -s 5 -l 10 0 10",
                "read 2M 1k",
                "read 0 0",
                "read -1 5",
                "read 0 3G",
                "read 8000000000000000000 10",
            ],
            &[
                "write -z -P 1 0 1k",
                "write -n 0 1k",
                "write -u 0 1k",
                "write -bz 0 1k",
                "write -z 0 64k",
                "write -zu 0 64k",
            ],
            &["writev 0 1k 2k 512", "readv -P 0xcd 0 1k 2k", "readv -v 0 16 16", "readv 0", "readv -P 0xcd 0 1k x"],
            &["discard 0 64k", "discard 0", "discard -q 0 64k", "discard x 1", "discard 0 3G", "discard 2M 1"],
            &["write 64k 64k", "alloc 0 1M", "alloc 64k", "alloc 64k 128k", "alloc 2M", "alloc x", "alloc"],
            &["truncate 2M", "length", "truncate x", "truncate -m foo 3M", "truncate", "length x"],
            &["zone_report 0 1", "zap 0 4k", "zap 0 4k 4k", "zo 0 x", "zc 0 1", "zf 0 1", "zrs 0"],
            &["help zrp", "help zone_reset", "zrs 0 1M"],
            &["foo", "sleep 1", "sleep", "sleep x", "map -x", "help foo", "help read write", "", "  "],
            &[
                "aio_write -P 3 0 64k",
                "aio_flush",
                "aio_read -P 3 0 64k",
                "aio_flush",
                "aio_write -z 0 64k",
                "aio_flush",
            ],
            &[
                "aio_write -u 0 1k",
                "aio_read 3M 1k",
                "aio_flush",
                "aio_read x",
                "aio_read",
                "read -q 0 1",
                "write -q 0 1",
            ],
            &[
                "write -s filling 0 40",
                "read -v 0 40",
                "write -s missing 0 1",
                "write -s filling -P 1 0 1k",
                "write -f 0 1k",
            ],
            &["write -P 0x 0 1", "write -P 0377 0 1", "read -v 0 1", "write -C 0 1k", "read -C 0 1k", "read 0 1 2"],
            &["close", "read 0 1", "length", "quit", "read 0 1"],
            &[
                "sigraise 0",
                "sigraise x",
                "reopen -r",
                "write 0 1",
                "reopen -w",
                "write 0 1",
                "reopen -r -w",
                "reopen foo",
            ],
        ];
        for history in histories {
            let outputs = [env!("CARGO_BIN_EXE_diskette"), "qemu-io"].map(|program| {
                scratch.make("qemu-img", &["create", "-q", "-f", format, "image", "1M"]);
                // Raw is guessed with a warning that only QEMU gives.
                if format == "raw" {
                    let mut args = if program == "qemu-io" { vec![] } else { vec!["io"] };
                    args.extend(["-f", "raw"]);
                    args.extend(history.iter().flat_map(|command| ["-c", command]));
                    args.push("image");
                    return scratch.run(program, &args);
                }
                run(&scratch, program, history, "image")
            });
            let [ours, theirs] = &outputs;
            assert_eq!(timeless(ours), timeless(theirs), "{format} {history:?}");
            assert_eq!(
                text(&ours.stderr),
                text(&theirs.stderr).replace("qemu-io: ", "diskette: "),
                "{format} {history:?}"
            );
            assert_eq!(ours.status.code(), theirs.status.code(), "{format} {history:?}");
        }
    }
}

#[test]
fn compressed_clusters_and_vm_state_are_written_as_qemu_reads_them() {
    let scratch = Scratch::new();
    let ours = env!("CARGO_BIN_EXE_diskette");
    for options in [
        "compat=1.1",
        "compression_type=zstd",
        "cluster_size=4k",
        "cluster_size=2M",
        "refcount_bits=1",
        "extended_l2=on",
        "compat=0.10",
    ] {
        scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "image", "8000000"]);
        let commands = [
            "write -P 1 -c 0 2M",
            "write -c -s image 2M 2M",
            "write -P 7 1000k 8k",
            "write -c -P 3 4M 3805696",
            "write -b -P 9 1M 64k",
            "discard 2M 64k",
        ];
        let output = run(&scratch, ours, &commands, "image");
        assert!(output.status.success(), "{options}: {}{}", text(&output.stdout), text(&output.stderr));
        scratch.make("qemu-img", &["check", "-q", "image"]);
        let reads = [
            "read -P 1 0 1000k",
            "read -P 7 1000k 8k",
            "read -P 1 1008k 1040k",
            "read -P 3 4M 3805696",
            "read -b -P 9 1M 64k",
            "read -b -P 0 0 1M",
        ];
        for program in [ours, "qemu-io"] {
            let output = run(&scratch, program, &reads, "image");
            assert!(output.status.success(), "{options} {program}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        scratch.make("qemu-img", &["convert", "-O", "raw", "image", "theirs"]);
        scratch.make(ours, &["convert", "-O", "raw", "image", "ours"]);
        let [one, other] = ["ours", "theirs"].map(|name| std::fs::read(scratch.path().join(name)).unwrap());
        assert!(one == other, "{options}: contents");
        // Part of a cluster cannot be stored compressed.
        let output = run(&scratch, ours, &["write -c 0 512"], "image");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), "write failed: Invalid argument\n".into()));
    }
}

#[test]
fn called_by_qemus_name_it_is_qemus_tool() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "image", "1M"]);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_diskette"), scratch.path().join("qemu-io")).unwrap();
    let link = scratch.path().join("qemu-io");
    let ask =
        |program: &str, args: &[&str]| Command::new(program).args(args).current_dir(scratch.path()).output().unwrap();
    for args in [
        &["-c", "length", "missing"][..],
        &["-c", "length", "image"],
        &["-t", "foo", "image"],
        &["-d", "foo", "image"],
        &["-i", "foo", "image"],
        &["-f", "foo", "-c", "length", "image"],
        &["--image-opts", "-c", "length", "driver=qcow2,file.filename=image"],
        &["--image-opts", "-f", "qcow2", "-c", "length", "driver=qcow2,file.filename=image"],
        &["-c", "open image", "-c", "length", "-c", "open image"],
        &["-c", "open -o driver=qcow2,file.filename=image", "-c", "length"],
        &["-c", "open -o driver=qcow2 image", "-c", "length"],
        &["-c", "open missing"],
        &["-c", "open"],
        &["-r", "-c", "write 0 1k", "image"],
    ] {
        let (ours, theirs) = (ask(link.to_str().unwrap(), args), ask("qemu-io", args));
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
        assert_eq!(text(&ours.stderr), text(&theirs.stderr), "{args:?}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
    }
}

#[test]
fn a_raw_disk_whose_format_was_guessed_does_not_become_another_format() {
    let scratch = Scratch::new();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "other", "1M"]);
    let head = std::fs::read(scratch.path().join("other")).unwrap();
    std::fs::write(scratch.path().join("head"), &head[..512]).unwrap();
    std::fs::write(scratch.path().join("magic"), &head[..8]).unwrap();
    let histories: &[&[&str]] = &[
        &["write -s head 0 512", "read -P 0 0 512"],
        &["write -P 0x51 0 512", "write 512 512", "write -s head 0 512", "read -P 0x51 0 512", "write -z 0 512"],
        &["write -s magic 0 8", "read -P 0 0 8", "write -P 3 4k 60k", "writev -P 7 0 512 512"],
    ];
    for format in [&[][..], &["-f", "raw"]] {
        for history in histories {
            let outputs = ["qemu-io", env!("CARGO_BIN_EXE_diskette")].map(|program| {
                std::fs::write(scratch.path().join("disk"), vec![0; 1 << 16]).unwrap();
                let mut args: Vec<&str> = if program == "qemu-io" { vec![] } else { vec!["io"] };
                args.extend(format);
                args.extend(history.iter().flat_map(|command| ["-c", command]));
                args.push("disk");
                let output = scratch.run(program, &args);
                let disk = std::fs::read(scratch.path().join("disk")).unwrap();
                (timeless(&output), text(&output.stderr), output.status.code(), disk)
            });
            let [theirs, ours] = outputs;
            assert_eq!((&ours.0, &ours.1, ours.2), (&theirs.0, &theirs.1, theirs.2), "{format:?} {history:?}");
            assert!(ours.3 == theirs.3, "{format:?} {history:?}");
        }
    }
}
