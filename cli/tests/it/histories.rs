//! Histories at random on two copies of the same images, one in the hands of QEMU's tools and one in ours, who swap them at
//! every other step. After each step both read alike, and QEMU finds both clean.

use std::fs;

use super::{Scratch, text};

const OURS: &str = env!("CARGO_BIN_EXE_diskette");
const SECRETS: [&str; 4] = ["--object", "secret,id=s,data=open sesame", "--object", "secret,id=t,data=swordfish"];

/// A small deterministic random source (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// An image with what is known of it.
struct History {
    random: Random,
    /// Options of the image when it was made.
    options: &'static str,
    opts: String,
    size: u64,
    backing: &'static str,
    snapshots: Vec<String>,
    bitmaps: Vec<String>,
    old: bool,
    count: u64,
}

/// What is to be done, by either tool: the arguments without the program.
struct Step {
    io: bool,
    args: Vec<String>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(|word| word.replace('~', "")).collect()
}

impl History {
    fn new(seed: u64, options: &'static str) -> Self {
        let key = if options.contains("encrypt") { ",encrypt.key-secret=s" } else { "" };
        History {
            random: Random(seed),
            options,
            opts: format!("driver=qcow2,file.filename=image{key}"),
            size: 1 << 20,
            backing: "base",
            snapshots: Vec::new(),
            bitmaps: Vec::new(),
            old: options.contains("compat=0.10"),
            count: 0,
        }
    }

    fn make(&self, scratch: &Scratch) {
        for name in ["base", "other"] {
            scratch.make("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=8k", name, "1M"]);
        }
        scratch.make("qemu-io", &["-c", "write -P 1 0 700k", "-c", "write -z 100k 100k", "base"]);
        scratch.make("qemu-io", &["-c", "write -P 1 0 300k", "-c", "write -P 9 500k 200k", "other"]);
        let create = ["create", "-q", "-f", "qcow2", "-o", self.options, "-b", "base", "-F", "qcow2", "image"];
        scratch.make("qemu-img", &[&create[..1], &SECRETS, &create[1..]].concat());
        if !self.options.contains("encrypt") {
            // QEMU stores compressed clusters only where nothing is yet.
            scratch.make("qemu-io", &["-c", "write -c -P 7 256k 384k", "image"]);
        }
    }

    /// Requests of `qemu-io`.
    fn requests(&mut self) -> Step {
        let mut args = words("-d unmap");
        for _ in 0..1 + self.random.below(4) {
            let at = self.random.below(self.size / 512) * 512;
            let longest = (self.size - at).min(200_000);
            let len = (self.random.below(longest / 512) + 1) * 512;
            let pattern = self.random.below(255) + 1;
            let request = match self.random.below(6) {
                0 => format!("write -z {at} {len}"),
                1 => format!("write -z -u {at} {len}"),
                // In version 2 it does something else with a backing file.
                // Of less than a cluster, what becomes of it is up to the tool.
                2 if !self.old && at + 65536 <= self.size => format!("discard {} 64k", at & !65535),
                _ => format!("write -P {pattern} {at} {len}"),
            };
            args.extend(["-c".into(), request]);
        }
        args.extend(["--image-opts".into(), self.opts.clone()]);
        Step { io: true, args }
    }

    /// A command with its words, in which `@` is the image.
    fn command(&self, line: &str) -> Step {
        let args = words(line).into_iter().flat_map(|word| match word.as_str() {
            "@" => vec!["--image-opts".into(), self.opts.clone()],
            _ => vec![word],
        });
        Step { io: false, args: args.collect() }
    }

    fn any(&mut self, names: fn(&History) -> &Vec<String>) -> String {
        let index = self.random.below(names(self).len() as u64) as usize;
        names(self).get(index).cloned().unwrap_or_else(|| "missing".into())
    }

    fn step(&mut self) -> Step {
        self.count += 1;
        let line = match self.random.below(26) {
            0..=6 => return self.requests(),
            7 | 8 => format!("snapshot -c s{} @", self.count),
            9 | 10 if self.snapshots.is_empty() => return self.requests(),
            9 => format!("snapshot -a {} @", self.any(|history| &history.snapshots)),
            10 => format!("snapshot -d {} @", self.any(|history| &history.snapshots)),
            11 => format!("bitmap --add -g {} @ b{}", 512 << self.random.below(8), self.count),
            12 | 13 if self.bitmaps.is_empty() => return self.requests(),
            12 => {
                let action = self.random.pick(&["--remove", "--clear", "--enable", "--disable"]);
                format!("bitmap {action} @ {}", self.any(|history| &history.bitmaps))
            }
            13 => {
                let (from, to) = (self.any(|history| &history.bitmaps), self.any(|history| &history.bitmaps));
                format!("bitmap --merge {from} @ {to}")
            }
            14 | 15 => format!("resize -q @ +{}", (1 + self.random.below(400)) * 512),
            16 => {
                // Of a cluster that the new end lies within, QEMU may show the old end when the disk grows again.
                let size = self.size.saturating_sub((1 + self.random.below(200)) * 512) & !65535;
                format!("resize -q --shrink @ {}", size.max(65536))
            }
            // QEMU finds no relative name beside an image that it knows by a description.
            17 if self.options.contains("encrypt") => "rebase -b ~ @".into(),
            17 => format!("rebase -b {} -F qcow2 @", self.random.pick(&["base", "other"])),
            18 => "rebase -b ~ @".into(),
            19 => self.random.pick(&["commit -q @", "commit -q -d @"]).into(),
            // QEMU goes to version 2 with bitmaps, and loses them.
            20 if !self.bitmaps.is_empty() => return self.requests(),
            20 => format!("amend -o compat={} @", self.random.pick(&["0.10", "1.1"])),
            // Clusters that share a place with compressed ones are referred to more often than 255 times.
            21 => format!("amend -o refcount_bits={} @", self.random.pick(&["16", "32", "64"])),
            22 => format!("amend -o lazy_refcounts={} @", self.random.pick(&["on", "off"])),
            // A repair by QEMU loses the snapshots of an image that has bitmaps.
            23 if !self.bitmaps.is_empty() && !self.snapshots.is_empty() => return self.requests(),
            23 => format!("check -q -r {} @", self.random.pick(&["leaks", "all"])),
            24 if self.options.contains("encrypt.format=luks") => {
                let slot = 1 + self.random.below(7);
                match self.random.below(2) {
                    0 => format!(
                        "amend -o encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot={slot},encrypt.iter-time=10 @"
                    ),
                    _ => format!("amend -o encrypt.state=inactive,encrypt.keyslot={slot} @"),
                }
            }
            _ => return self.requests(),
        };
        self.command(&line)
    }

    /// Notes what a step that succeeded has changed.
    fn note(&mut self, step: &Step, scratch: &Scratch) {
        let words: Vec<&str> = step.args.iter().map(String::as_str).collect();
        let info = text(&scratch.theirs(&["info", "--output=json", "image"]).stdout);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        self.size = info["virtual-size"].as_u64().unwrap();
        self.old = info["format-specific"]["data"]["compat"] == "0.10";
        match words[..] {
            ["snapshot", "-c", name, ..] => self.snapshots.push(name.into()),
            ["snapshot", "-d", name, ..] => self.snapshots.retain(|other| other != name),
            ["bitmap", "--add", .., name] => self.bitmaps.push(name.into()),
            ["bitmap", "--remove", .., name] => self.bitmaps.retain(|other| other != name),
            ["rebase", "-b", name, ..] => self.backing = if name == "other" { "other" } else { "base" },
            _ => {}
        }
    }
}

fn run(scratch: &Scratch, step: &Step, ours: bool) -> std::process::Output {
    let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
    let (first, rest) = if step.io { (&[][..], &args[..]) } else { args.split_at(1) };
    let program = match (ours, step.io) {
        (true, _) => OURS,
        (false, true) => "qemu-io",
        (false, false) => "qemu-img",
    };
    let prefix: &[&str] = if ours && step.io { &["io"] } else { &[] };
    scratch.run(program, &[prefix, first, &SECRETS, rest].concat())
}

/// The disk, or what it was at a snapshot, read by QEMU.
fn disk(scratch: &Scratch, opts: &str, snapshot: Option<&String>) -> Vec<u8> {
    let choice = snapshot.map(|name| format!("snapshot.name={name}"));
    let choice: Vec<&str> = choice.iter().flat_map(|choice| ["-l", choice]).collect();
    let args = [&["convert"][..], &SECRETS, &choice, &["-O", "raw", "--image-opts", opts, "contents"]].concat();
    scratch.make("qemu-img", &args);
    fs::read(scratch.path().join("contents")).unwrap()
}

/// What QEMU says of an image, without how it is stored.
fn about(scratch: &Scratch) -> Vec<String> {
    let said = text(&scratch.theirs(&["info", "image"]).stdout);
    let stored = ["disk size", "file length", "uuid", "key offset", "iters", "stripes", "payload offset"];
    let lines = said.lines().filter(|line| !stored.iter().any(|word| line.contains(word)));
    // Of a snapshot the name counts, not the time.
    lines.map(|line| line.split(" 20").next().unwrap_or(line).trim_end().to_string()).collect()
}

fn history(seed: u64, options: &'static str, steps: usize) {
    let mut history = History::new(seed, options);
    let copies = [Scratch::new(), Scratch::new()];
    history.make(&copies[0]);
    for name in ["base", "other", "image"] {
        fs::copy(copies[0].path().join(name), copies[1].path().join(name)).unwrap();
    }
    let mut done = Vec::new();
    for number in 0..steps {
        let step = history.step();
        done.push(step.args.join(" "));
        let place = || format!("{options} seed {seed}: {done:#?}");
        let turn = number % 4 / 2;
        let outcomes = [run(&copies[0], &step, turn == 0), run(&copies[1], &step, turn == 1)];
        let told = outcomes.each_ref().map(|output| format!("{}{}", text(&output.stdout), text(&output.stderr)));
        let succeeded = outcomes.each_ref().map(|output| output.status.success());
        assert_eq!(succeeded[0], succeeded[1], "{}: {told:?}", place());
        for copy in &copies {
            for name in ["image", "base"] {
                let opts = if name == "image" { history.opts.as_str() } else { "driver=qcow2,file.filename=base" };
                let check = copy.theirs(&[&["check"][..], &SECRETS, &["--image-opts", opts]].concat());
                let found = format!("{}{}", text(&check.stdout), text(&check.stderr));
                assert!(check.status.success(), "{}: {name}: {found} {told:?}", place());
            }
        }
        if succeeded[0] {
            history.note(&step, &copies[0]);
        }
        let disks = copies.each_ref().map(|copy| disk(copy, &history.opts, None));
        let differs = disks[0].iter().zip(&disks[1]).position(|(one, other)| one != other);
        assert!(differs.is_none() && disks[0].len() == disks[1].len(), "{}: at {differs:?}", place());
        assert_eq!(about(&copies[0]), about(&copies[1]), "{}: {told:?}", place());
    }
    // We read what QEMU reads, and every snapshot is the same in both.
    for copy in &copies {
        let theirs = disk(copy, &history.opts, None);
        let args = [&["convert"][..], &SECRETS, &["-O", "raw", "--image-opts", &history.opts, "ours"]].concat();
        copy.make(OURS, &args);
        assert!(fs::read(copy.path().join("ours")).unwrap() == theirs, "{options} seed {seed}: {done:#?}");
    }
    for name in &history.snapshots {
        let disks = copies.each_ref().map(|copy| disk(copy, &history.opts, Some(name)));
        assert!(disks[0] == disks[1], "{options} seed {seed}: snapshot {name}: {done:#?}");
    }
}

/// How many histories of each kind, and how long; more with DISKETTE_HISTORIES set.
fn histories(options: &[&'static str]) {
    let seeds = std::env::var("DISKETTE_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for options in options {
        for seed in 0..seeds {
            history(seed, options, 20);
        }
    }
}

#[test]
fn histories_of_plain_images_are_those_of_qemu() {
    histories(&["cluster_size=4k", "compat=0.10", "extended_l2=on,cluster_size=16k", "lazy_refcounts=on"]);
}

#[test]
fn histories_of_encrypted_images_are_those_of_qemu() {
    histories(&[
        "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "encrypt.format=aes,encrypt.key-secret=s",
    ]);
}
