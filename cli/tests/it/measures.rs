//! `measure`, `dd`, `bench` and compressed conversion against qemu-img.

use crate::{assert_same, gallery, text};

#[test]
fn measures_are_qemus() {
    let scratch = gallery();
    std::fs::write(scratch.path().join("short.raw"), [1; 1000]).unwrap();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1M"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]);
    scratch.make("qemu-io", &["-c", "write -q 100k 200k", "over.qcow2"]);
    scratch.make("qemu-img", &["bitmap", "--add", "-g", "512", "over.qcow2", "b0"]);
    scratch.make("qemu-img", &["bitmap", "--add", "over.qcow2", "a longer name"]);
    for output in ["human", "json"] {
        for size in ["0", "1000", "1G", "2T", "7E"] {
            for options in [
                "cluster_size=64k",
                "cluster_size=512",
                "cluster_size=2M,refcount_bits=1",
                "cluster_size=4k,refcount_bits=64",
                "extended_l2=on",
                "compat=0.10",
                "preallocation=full",
                "preallocation=metadata",
            ] {
                assert_same(&scratch, &["measure", "--output", output, "--size", size, "-O", "qcow2", "-o", options]);
            }
            assert_same(&scratch, &["measure", "--output", output, "--size", size]);
        }
        for image in ["a.raw", "a.qcow2", "old.qcow2", "over.qcow2", "zero.qcow2", "short.raw"] {
            assert_same(&scratch, &["measure", "--output", output, image]);
            for options in
                ["cluster_size=64k", "cluster_size=512", "extended_l2=on", "compat=0.10", "preallocation=full"]
            {
                assert_same(&scratch, &["measure", "--output", output, "-O", "qcow2", "-o", options, image]);
            }
        }
    }
    assert_same(&scratch, &["measure", "-O", "qcow2", "-o", "backing_file=a.qcow2,backing_fmt=qcow2", "over.qcow2"]);
    for wrong in [
        &["measure"][..],
        &["measure", "a.raw", "b.raw"],
        &["measure", "--size", "1G", "a.raw"],
        &["measure", "--size", "1Z"],
        &["measure", "-f", "qcow2", "--size", "1G"],
        &["measure", "-l", "snap", "--size", "1G"],
        &["measure", "--image-opts", "--size", "1G"],
        &["measure", "-O", "nonsense", "--size", "1G"],
        &["measure", "-O", "qcow2", "-o", "nonsense=1", "--size", "1G"],
        &["measure", "-O", "qcow2", "-o", "cluster_size=3", "--size", "1G"],
        &["measure", "missing"],
    ] {
        assert_same(&scratch, wrong);
    }
}

#[test]
fn blocks_are_copied_alike() {
    let scratch = gallery();
    for operands in [
        &["if=a.qcow2"][..],
        &["bs=1M", "if=a.qcow2"],
        &["bs=1M", "count=2", "if=a.qcow2"],
        &["bs=333", "count=3000", "if=a.raw"],
        &["bs=64k", "skip=3", "count=20", "if=a.qcow2"],
        &["bs=1M", "skip=1", "if=a.raw"],
        &["skip=100", "bs=1G", "if=a.raw"],
        &["count=0", "if=a.raw"],
        &["-f", "raw", "bs=4096", "if=a.qcow2"],
        &["-O", "qcow2", "bs=100k", "skip=2", "if=a.raw"],
    ] {
        let run = |tool: bool, target: &str| {
            let output = format!("of={target}");
            let mut args = vec!["dd"];
            args.extend(operands);
            args.push(&output);
            let result = if tool { scratch.theirs(&args) } else { scratch.ours(&args) };
            (result.status.code(), text(&result.stderr).replace("qemu-img", "diskette"))
        };
        assert_eq!(run(false, "ours"), run(true, "theirs"), "{operands:?}");
        let format = if operands.contains(&"qcow2") { "qcow2" } else { "raw" };
        let compared = scratch.theirs(&["compare", "-f", format, "-F", format, "ours", "theirs"]);
        assert!(compared.status.success(), "{operands:?}: {}", text(&compared.stdout));
        let size = |name: &str| std::fs::metadata(scratch.path().join(name)).unwrap().len();
        if format == "raw" {
            assert_eq!(size("ours"), size("theirs"), "{operands:?}");
        }
        for name in ["ours", "theirs"] {
            std::fs::remove_file(scratch.path().join(name)).unwrap();
        }
    }
    for wrong in [
        &["dd", "if=a.raw"][..],
        &["dd", "of=x"],
        &["dd", "if=a.raw", "of=x", "bs=0"],
        &["dd", "if=a.raw", "of=x", "bs=x"],
        &["dd", "if=a.raw", "of=x", "count=x"],
        &["dd", "if=a.raw", "of=x", "nonsense=1"],
        &["dd", "if=a.raw", "of=x", "nonsense"],
        &["dd", "if=missing", "of=x"],
    ] {
        assert_same(&scratch, wrong);
    }
}

#[test]
fn benchmarks_say_what_they_send() {
    let scratch = gallery();
    for args in [
        &["-c", "10", "a.qcow2"][..],
        &["-c", "10", "-s", "1M", "-S", "64k", "-o", "1M", "a.raw"],
        &["-c", "100", "-w", "--pattern", "7", "--flush-interval", "10", "-d", "4", "-f", "qcow2", "a.qcow2"],
    ] {
        let mut full = vec!["bench"];
        full.extend(args);
        let first = |bytes: &[u8]| text(bytes).lines().take_while(|line| !line.starts_with("Run")).collect::<String>();
        let (ours, theirs) = (scratch.ours(&full), scratch.theirs(&full));
        assert_eq!(first(&ours.stdout), first(&theirs.stdout), "{args:?}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
        assert!(text(&ours.stdout).contains("Run completed in "), "{args:?}");
    }
    scratch.make("qemu-io", &["-c", "read -q -P 7 0 400k", "a.qcow2"]);
    for wrong in [
        &["bench", "-c", "0", "a.raw"][..],
        &["bench", "-d", "0", "a.raw"],
        &["bench", "-s", "0", "a.raw"],
        &["bench", "--pattern", "300", "a.raw"],
        &["bench", "--flush-interval", "3", "a.raw"],
        &["bench", "--flush-interval", "3", "-d", "4", "-w", "a.raw"],
        &["bench", "-i", "nonsense", "a.raw"],
    ] {
        assert_same(&scratch, wrong);
    }
}

#[test]
fn compressed_conversion_reads_alike_and_takes_no_more_space() {
    let scratch = gallery();
    std::fs::write(scratch.path().join("short.raw"), [1; 1000]).unwrap();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]);
    scratch.make("qemu-io", &["-c", "write -q -P 9 100k 200k", "over.qcow2"]);
    for options in
        ["cluster_size=64k", "compression_type=zstd", "cluster_size=512", "cluster_size=2M", "extended_l2=on"]
    {
        for sources in [&["a.raw"][..], &["a.qcow2"], &["short.raw", "a.qcow2"]] {
            for extra in [&[][..], &["-W", "-m", "4"], &["-S", "0"]] {
                let convert = |tool: bool, target: &str| {
                    let mut args = vec!["convert", "-c", "-O", "qcow2", "-o", options];
                    args.extend(extra);
                    args.extend(sources);
                    args.push(target);
                    let output = if tool { scratch.theirs(&args) } else { scratch.ours(&args) };
                    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
                };
                convert(false, "ours");
                convert(true, "theirs");
                let what = format!("{options} {sources:?} {extra:?}");
                assert!(scratch.theirs(&["compare", "-s", "ours", "theirs"]).status.success(), "{what}");
                let checked = scratch.theirs(&["check", "ours"]);
                assert!(checked.status.success(), "{what}: {}", text(&checked.stdout));
                let clusters = |name: &str| {
                    let report = text(&scratch.theirs(&["check", name]).stdout);
                    report
                        .lines()
                        .find(|line| line.contains("allocated"))
                        .map(|line| line.split(' ').next().map(str::to_string))
                };
                assert_eq!(clusters("ours"), clusters("theirs"), "{what}");
            }
        }
    }
    let args = ["convert", "-c", "-O", "qcow2", "-B", "a.qcow2", "-F", "qcow2", "over.qcow2", "ours"];
    assert!(scratch.ours(&args).status.success());
    assert!(scratch.theirs(&["compare", "ours", "over.qcow2"]).status.success());
    assert!(scratch.theirs(&["check", "ours"]).status.success());
}
