//! Images that are described: `json:{…}`, `blkdebug:…`, filters, options of children.

use crate::{Scratch, assert_same, gallery, text};

#[test]
fn descriptions_name_the_same_disks() {
    let scratch = gallery();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]);
    scratch.make("qemu-img", &["convert", "-O", "raw", "a.qcow2", "within.raw"]);
    scratch.make("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "a.qcow2", "nested.qcow2"]);
    for name in [
        "json:{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'a.qcow2'}}",
        "json:{\"driver\": \"qcow2\", \"file.filename\": \"a.qcow2\"}",
        "json:{'file': {'filename': 'a.qcow2'}}",
        "json:{'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}",
        "json:{'driver': 'qcow2', 'backing': null, 'file.filename': 'over.qcow2'}",
        "json:{'driver': 'qcow2', 'file.filename': 'over.qcow2', 'backing': {'driver': 'raw', 'file.filename': 'within.raw'}}",
        "json:{'driver': 'raw', 'offset': 65536, 'size': 131072, 'file': {'driver': 'file', 'filename': 'a.raw'}}",
        "json:{'driver': 'qcow2', 'file': {'driver': 'qcow2', 'file.filename': 'nested.qcow2'}}",
        "json:{'driver': 'copy-on-read', 'file': {'driver': 'qcow2', 'file.filename': 'a.qcow2'}}",
        "json:{'driver': 'quorum', 'vote-threshold': 1, 'children': [{'driver': 'raw', 'file.filename': 'a.raw'}]}",
        "blkdebug::a.qcow2",
        "blkverify:within.raw:a.qcow2",
        "file:a.qcow2",
    ] {
        let compare = |target: &str| {
            let (ours, theirs) = (
                scratch.ours(&["convert", "-O", "raw", name, "ours"]),
                scratch.theirs(&["convert", "-O", "raw", name, "theirs"]),
            );
            // A copy-on-read filter wants to write, and is opened to be read.
            assert_eq!(ours.status.code(), theirs.status.code(), "{target}: {}", text(&ours.stderr));
            if ours.status.success() {
                let bytes = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
                assert!(bytes("ours") == bytes("theirs"), "{target}");
            }
        };
        compare(name);
    }
    for wrong in [
        "json:{",
        "json:[]",
        "json:{'driver': 'nonsense'}",
        "json:{'driver': 'qcow2'}",
        "json:{'driver': 'qcow2', 'file.filename': 'missing'}",
        "json:{'driver': 'raw', 'file': {'driver': 'blkdebug', 'image.filename': 'a.raw', 'align': 3}}",
        "json:{'driver': 'quorum', 'vote-threshold': 3, 'children': [{'driver': 'raw', 'file.filename': 'a.raw'}]}",
        "blkdebug:a.qcow2",
        "blkdebug:missing.conf:a.qcow2",
        "nonsense:a.qcow2",
    ] {
        let (ours, theirs) = (scratch.ours(&["info", wrong]), scratch.theirs(&["info", wrong]));
        assert_eq!(ours.status.code(), theirs.status.code(), "{wrong}");
        assert!(!text(&ours.stderr).is_empty(), "{wrong}");
    }
    // A description that holds itself, through a backing file.
    let itself = "json:{'driver': 'qcow2', 'file.filename': 'loop.qcow2'}";
    scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", itself, "loop.qcow2", "1M"]);
    let output = scratch.ours(&["map", "loop.qcow2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("longer than"), "{}", text(&output.stderr));
}

/// What the program prints when it is called qemu-io, or what qemu-io prints, without times.
fn io(scratch: &Scratch, program: &str, commands: &[&str], rest: &[&str]) -> (String, Option<i32>) {
    let called = format!("exec -a qemu-io {program} \"$@\"");
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let args: Vec<&str> = ["-c", &called, "x"].into_iter().chain(commands).chain(rest.iter().copied()).collect();
    let output = scratch.run("bash", &args);
    let lines = text(&output.stdout);
    let timeless = lines.lines().filter(|line| !line.contains(" ops; ")).map(|line| format!("{line}\n"));
    (timeless.collect(), output.status.code())
}

/// Both programs print the same.
fn assert_same_io(scratch: &Scratch, commands: &[&str], rest: &[&str]) {
    let ours = io(scratch, env!("CARGO_BIN_EXE_diskette"), commands, rest);
    assert_eq!(ours, io(scratch, "qemu-io", commands, rest), "{commands:?} {rest:?}");
}

#[test]
fn blocks_that_a_short_file_ends_within_are_whole() {
    let scratch = gallery();
    for align in ["4k", "64k"] {
        for (format, create) in [("qcow2", &["-o", "cluster_size=512"][..]), ("raw", &[])] {
            let args = [&["create", "-q", "-f", format], create, &["short", "1000k"]].concat();
            scratch.make("qemu-img", &args);
            let options = format!("open -o driver={format},file.align={align} blkdebug::short");
            let commands =
                [&options, "write -P 1 0 512", "write -P 2 1023488 512", "write -z 3k 70k", "read -vP 0 1k 512"];
            assert_same_io(&scratch, &commands, &[]);
            if format == "qcow2" {
                scratch.make("qemu-img", &["check", "-q", "short"]);
            }
        }
    }
}

/// A request that is longer than the limit fails where its piece fails, and what is in front of that was done.
#[test]
fn long_requests_come_in_pieces() {
    let scratch = gallery();
    let limits = "file.max-transfer=4k,file.opt-write-zero=4k,file.max-write-zero=8k,file.max-discard=16k";
    for (event, commands) in [
        ("write_aio", ["write -P 5 0 64k", "read -P 5 0 32k", "read -v 32k 16"]),
        ("read_aio", ["read 0 32k", "read 0 64k", "read 36k 1k"]),
        ("none,file.inject-error.0.iotype=write-zeroes", ["write -z 0 64k", "read -P 0 0 32k", "read -v 32k 16"]),
        ("none,file.inject-error.0.iotype=discard", ["discard 0 64k", "discard 48k 16k", "discard 0 32k"]),
    ] {
        for image in ["ours", "theirs"] {
            std::fs::write(scratch.path().join(image), vec![9; 1 << 20]).unwrap();
        }
        let run = |program: &str, image: &str| {
            let open = format!(
                "open -o driver=raw,file.driver=blkdebug,file.image.filename={image},{limits},\
                 file.inject-error.0.event={event},file.inject-error.0.sector=64"
            );
            io(&scratch, program, &[&[open.as_str()], &commands[..]].concat(), &[])
        };
        assert_eq!(run(env!("CARGO_BIN_EXE_diskette"), "ours"), run("qemu-io", "theirs"), "{event}");
        let bytes = |image: &str| std::fs::read(scratch.path().join(image)).unwrap();
        assert!(bytes("ours") == bytes("theirs"), "{event}");
    }
}

#[test]
fn faults_come_where_they_were_put() {
    let scratch = gallery();
    std::fs::write(
        scratch.path().join("rules"),
        "[inject-error]\nevent = \"read_aio\"\nerrno = \"28\"\nsector = \"-1\"\nonce = \"on\"\n",
    )
    .unwrap();
    for commands in [
        &["read 0 64k", "read 0 64k"][..],
        &["write 0 64k", "read 0 1k", "read 0 1k"],
        &["aio_read 0 1k", "aio_flush", "read 0 1k"],
    ] {
        assert_same_io(&scratch, commands, &["blkdebug:rules:a.qcow2"]);
    }
}

#[test]
fn options_that_nobody_understands_are_refused() {
    let scratch = gallery();
    for options in [
        "driver=qcow2,file.filename=a.qcow2,bogus=1",
        "driver=qcow2,file.filename=a.qcow2,file.bogus=1",
        "driver=null-co,bogus=1",
        "driver=qcow2,file=node",
    ] {
        assert_same(&scratch, &["info", "--image-opts", options]);
    }
}

#[test]
fn untrusted_images_open_nothing_that_they_name() {
    let scratch = gallery();
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]);
    scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "split.qcow2", "1M"]);
    let within = "json:{'driver': 'raw', 'file.filename': 'a.raw'}";
    scratch.make("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", within, "smuggled.qcow2", "1M"]);
    for image in ["over.qcow2", "split.qcow2", "smuggled.qcow2"] {
        for args in [&["convert", "-O", "raw", image, "x"][..], &["map", image], &["compare", image, "a.raw"]] {
            let mut refused = vec!["--untrusted"];
            refused.extend(args);
            let output = scratch.ours(&refused);
            assert!(!output.status.success(), "{refused:?}");
            assert!(text(&output.stderr).contains("does not allow"), "{refused:?}: {}", text(&output.stderr));
            let trusted = scratch.ours(args);
            assert!(!text(&trusted.stderr).contains("does not allow"), "{args:?}: {}", text(&trusted.stderr));
        }
        assert!(scratch.ours(&["info", "--untrusted", image]).status.success(), "{image}");
    }
    assert!(scratch.ours(&["--untrusted", "convert", "-O", "raw", "a.qcow2", "x"]).status.success());
}

#[test]
fn a_throttled_disk_keeps_to_its_rate() {
    let scratch = gallery();
    let group = "throttle-group,id=slow,x-bps-total=4194304";
    let disk = "driver=throttle,throttle-group=slow,file.driver=raw,file.file.filename=a.raw";
    let begun = std::time::Instant::now();
    let args =
        ["io", "--object", group, "--image-opts", disk, "-c", "read 0 2M", "-c", "read 0 2M", "-c", "read 0 512"];
    let output = scratch.ours(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // Four MiB take a second, but for the tenth of a second that may come at once.
    assert!(begun.elapsed().as_secs_f64() > 0.8, "{:?}", begun.elapsed());
    let missing = scratch.ours(&["io", "--image-opts", disk, "-c", "read 0 512"]);
    assert!(text(&missing.stderr).contains("Throttle group 'slow' does not exist"), "{}", text(&missing.stderr));
}
