//! Comparison with qemu-img, in the same run: ratio of medians.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use wait4::Wait4;

use crate::process::{cargo, command, output, released, run as run_process};

const FOLDER: &str = "target/bench";
const RUNS: usize = 9;
const NODE_RUNS: usize = 5;
const READS: u64 = 200_000;
const SECRET: &str = "secret,id=s,data=password";
/// Bytes between reads: over the L2 tables.
const STEP: u64 = (64 << 20) + (8 << 10);

struct Case {
    name: &'static str,
    /// Arguments of qemu-img; ours are the same.
    args: Vec<String>,
    /// A file that is removed before every run.
    target: Option<String>,
    /// Images that the command changes: each is copied from the first to the second name before every run.
    copies: Vec<(String, String)>,
}

/// Prints the tables of the README; with a word, only the cases that have it in their name, or those of `wasm`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    run_process(&mut cargo(&["build", "--release", "--locked", "--package", "diskette-cli"]))?;
    let diskette = released("diskette")?;
    std::fs::create_dir_all(FOLDER)?;
    prepare()?;
    let filter = args.first().cloned().unwrap_or_default();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(&filter)).collect();
    if !cases.is_empty() {
        println!("| case | qemu-img 10.0.2 (s) | diskette (s) | ratio | peak memory qemu-img / diskette (MiB) |");
        println!("|---|---|---|---|---|");
    }
    for case in cases {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        // Turn by turn, so that both see the same machine.
        for _ in 0..RUNS {
            theirs.push(measure(Path::new("qemu-img"), &case)?);
            ours.push(measure(&diskette, &case)?);
        }
        let (theirs, ours) = (median(theirs), median(ours));
        println!(
            "| {} | {:.3} | {:.3} | {:.2} | {:.0} / {:.0} |",
            case.name,
            theirs.0,
            ours.0,
            ours.0 / theirs.0,
            theirs.1,
            ours.1
        );
    }
    if filter.is_empty() {
        scattered_reads()?;
    }
    if filter.is_empty() || filter == "wasm" {
        in_node(&diskette)?;
    }
    Ok(())
}

/// Scattered 4 KiB reads: through the library, through `qemu-img bench`, and through qemu-nbd.
fn scattered_reads() -> Result<()> {
    let image = std::fs::canonicalize(path("half.qcow2"))?;
    let image = image.to_string_lossy();
    run_process(command("cat").arg(&*image).stdout(std::process::Stdio::null()))?;
    let rate = |depth: &str| -> Result<f64> {
        let (count, step) = (READS.to_string(), STEP.to_string());
        let args = ["bench", "-c", &count, "-d", depth, "-s", "4096", "-S", &step, "-f", "qcow2", &image];
        let text = output(command("qemu-img").args(args))?;
        let seconds = text.split(' ').rev().nth(1).and_then(|number| number.parse::<f64>().ok());
        Ok(READS as f64 / seconds.context("qemu-img bench says no time")?)
    };
    let rates =
        |depth| -> Result<f64> { Ok(median((0..5).map(|_| Ok((rate(depth)?, 0.0))).collect::<Result<_>>()?).0) };
    let (small, _) = library_reads(&image)?;
    println!();
    println!(
        "scattered 4 KiB reads a second: library {small:.0}; qemu-img bench {:.0}, 64 in flight {:.0};",
        rates("1")?,
        rates("64")?
    );
    println!("qemu-nbd over a socket, 16 in flight: {:.0}", crate::nbd::reads_per_second(&image, READS, STEP)?);
    Ok(())
}

/// The JavaScript package beside the native program, turn by turn.
fn in_node(diskette: &Path) -> Result<()> {
    if !crate::wasm::are_made() {
        println!("run 'cargo xtask wasm --release' first to see the times in Node.js");
        return Ok(());
    }
    let (large, half) = (path("large.qcow2"), path("half.qcow2"));
    let (mut theirs, mut ours) = (<[Vec<_>; 3]>::default(), <[Vec<_>; 3]>::default());
    for _ in 0..NODE_RUNS {
        for (times, args) in theirs.iter_mut().zip([["map", "--output=json", &large].as_slice(), &["check", &large]]) {
            let args = args.iter().map(|arg| (*arg).to_string()).collect();
            times.push(measure(diskette, &Case { name: "", args, target: None, copies: vec![] })?);
        }
        theirs[2].push((1024.0 / library_reads(&half)?.1, 0.0));
        let text = output(command("node").args(["pkg/bench.mjs", &large, &half]))?;
        for (times, seconds) in ours.iter_mut().zip(text.split_whitespace()) {
            times.push((seconds.parse()?, 0.0));
        }
    }
    println!("\n| case | native (s) | WebAssembly in Node.js (s) | ratio |\n|---|---|---|---|");
    let names = ["map 1 TiB, 500,000 clusters", "check 1 TiB, 500,000 clusters", "1 GiB in reads of 1 MiB"];
    for ((name, theirs), ours) in names.into_iter().zip(theirs).zip(ours) {
        let (native, wasm) = (median(theirs).0, median(ours).0);
        println!("| {name} | {native:.3} | {wasm:.3} | {:.2} |", wasm / native);
    }
    Ok(())
}

/// Reads a second of 4 KiB, and of 1 MiB, through the library.
fn library_reads(image: &str) -> Result<(f64, f64)> {
    let image = std::fs::canonicalize(image)?;
    let reads = ["bench", "--quiet", "--locked", "--bench", "reads", "--", &image.to_string_lossy()];
    let text = output(&mut cargo(&reads))?;
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<f64>().ok());
    Ok((numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()))
}

/// Seconds and peak memory in MiB.
fn measure(program: &Path, case: &Case) -> Result<(f64, f64)> {
    if let Some(target) = &case.target {
        let _ = std::fs::remove_file(target);
        run_process(&mut command("sync"))?;
    }
    for (from, to) in &case.copies {
        run_process(command("cp").args(["--sparse=always", from, to]))?;
        run_process(command("sync").arg(to))?;
    }
    let begun = Instant::now();
    let mut child = Command::new(program).args(&case.args).stdout(std::process::Stdio::null()).spawn()?;
    let used = child.wait4()?;
    let wall = begun.elapsed().as_secs_f64();
    if !used.status.success() {
        bail!("{} {:?} failed", program.display(), case.args);
    }
    Ok((wall, used.rusage.maxrss as f64 / f64::from(1 << 20)))
}

fn median(mut values: Vec<(f64, f64)>) -> (f64, f64) {
    values.sort_by(|one, other| one.0.total_cmp(&other.0));
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

fn cases() -> Vec<Case> {
    let case = |name, args: &[&str], target: Option<&str>| Case {
        name,
        args: args.iter().map(|arg| (*arg).to_string()).collect(),
        target: target.map(path),
        copies: vec![],
    };
    let changing = |name, args: &[&str], copies: &[(&str, &str)]| Case {
        copies: copies.iter().map(|(from, to)| (path(from), path(to))).collect(),
        ..case(name, args, None)
    };
    let (half, half_qcow2, empty, empty_qcow2) =
        (path("half.raw"), path("half.qcow2"), path("empty.raw"), path("empty.qcow2"));
    let (zlib, zstd, large, chain) =
        (path("zlib.qcow2"), path("zstd.qcow2"), path("large.qcow2"), path("chain200.qcow2"));
    let (text, luks, large_copy) = (path("text.raw"), path("luks"), path("large.copy"));
    let over = path("over.copy");
    let out = path("out");
    let opened = format!("driver=luks,key-secret=s,file.filename={luks}");
    vec![
        case("convert raw to qcow2, 4 GiB half allocated", &["convert", "-O", "qcow2", &half, &out], Some("out")),
        case("convert qcow2 to raw, 4 GiB half allocated", &["convert", "-O", "raw", &half_qcow2, &out], Some("out")),
        case("convert raw to qcow2, 64 GiB almost empty", &["convert", "-O", "qcow2", &empty, &out], Some("out")),
        case("convert qcow2 to raw, 64 GiB almost empty", &["convert", "-O", "raw", &empty_qcow2, &out], Some("out")),
        case("convert zlib qcow2 to raw, 1 GiB", &["convert", "-O", "raw", &zlib, &out], Some("out")),
        case("convert zstd qcow2 to raw, 1 GiB", &["convert", "-O", "raw", &zstd, &out], Some("out")),
        case("compare raw with qcow2, 4 GiB half allocated", &["compare", &half, &half_qcow2], None),
        case("map 1 TiB, 500,000 clusters", &["map", "--output=json", &large], None),
        case("check 1 TiB, 500,000 clusters", &["check", &large], None),
        case("info of a chain of 200", &["info", "--backing-chain", &chain], None),
        case("convert -c raw to zlib qcow2, 1 GiB", &["convert", "-c", "-O", "qcow2", &text, &out], Some("out")),
        case(
            "convert -c raw to zstd qcow2, 1 GiB",
            &["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", &text, &out],
            Some("out"),
        ),
        case(
            "convert LUKS to raw, 1 GiB",
            &["convert", "--object", SECRET, "--image-opts", &opened, "-O", "raw", &out],
            Some("out"),
        ),
        case(
            "convert raw to LUKS, 1 GiB",
            &["convert", "--object", SECRET, "-O", "luks", "-o", "key-secret=s,iter-time=10", &text, &out],
            Some("out"),
        ),
        changing("snapshot -c of 1 TiB", &["snapshot", "-c", "two", &large_copy], &[("snapped.qcow2", "large.copy")]),
        changing("snapshot -a of 1 TiB", &["snapshot", "-a", "one", &large_copy], &[("snapped.qcow2", "large.copy")]),
        changing("snapshot -d of 1 TiB", &["snapshot", "-d", "one", &large_copy], &[("snapped.qcow2", "large.copy")]),
        changing(
            "rebase to an image that differs in a 16th, 1 GiB",
            &["rebase", "-b", "other.qcow2", "-F", "qcow2", &over],
            &[("over.qcow2", "over.copy"), ("base.qcow2", "base.copy")],
        ),
        changing(
            "commit of 512 MiB",
            &["commit", "-q", &over],
            &[("over.qcow2", "over.copy"), ("base.qcow2", "base.copy")],
        ),
        case("measure 1 TiB, 500,000 clusters", &["measure", "-O", "qcow2", &large], None),
        case("measure raw, 4 GiB half allocated", &["measure", "-O", "qcow2", &half], None),
        changing(
            "check -r all, 1 TiB with 50,000 leaks",
            &["check", "-r", "all", &large_copy],
            &[("leaky.qcow2", "large.copy")],
        ),
    ]
}

/// Makes the images that are not there yet, with QEMU's tools.
fn prepare() -> Result<()> {
    let qemu_img = |args: &[&str]| run_process(command("qemu-img").args(args).stdout(std::process::Stdio::null()));
    if !Path::new(&path("half.raw")).exists() {
        fill(&path("half.raw"), 4 << 30, 1 << 20)?;
    }
    if !Path::new(&path("half.qcow2")).exists() {
        qemu_img(&["convert", "-O", "qcow2", &path("half.raw"), &path("half.qcow2")])?;
    }
    if !Path::new(&path("empty.raw")).exists() {
        fill(&path("empty.raw"), 64 << 30, 4 << 30)?;
        qemu_img(&["convert", "-O", "qcow2", &path("empty.raw"), &path("empty.qcow2")])?;
    }
    if !Path::new(&path("zstd.qcow2")).exists() {
        fill(&path("text.raw"), 1 << 30, 1 << 20)?;
        for kind in ["zlib", "zstd"] {
            let (target, options) = (path(&format!("{kind}.qcow2")), format!("compression_type={kind}"));
            qemu_img(&["convert", "-c", "-O", "qcow2", "-o", &options, &path("text.raw"), &target])?;
        }
    }
    if !Path::new(&path("large.qcow2")).exists() {
        make_large(&path("large.qcow2"))?;
    }
    if !Path::new(&path("chain200.qcow2")).exists() {
        qemu_img(&["create", "-q", "-f", "qcow2", &path("chain1.qcow2"), "1G"])?;
        for number in 2..=200 {
            let (base, top) = (format!("chain{}.qcow2", number - 1), path(&format!("chain{number}.qcow2")));
            qemu_img(&["create", "-q", "-f", "qcow2", "-u", "-b", &base, "-F", "qcow2", &top, "1G"])?;
        }
    }
    if !Path::new(&path("leaky.qcow2")).exists() {
        prepare_changing(qemu_img)?;
    }
    let _ = output(command("sync").args::<_, &str>([]));
    Ok(())
}

/// The images of the cases that change one.
fn prepare_changing(qemu_img: impl Fn(&[&str]) -> Result<()>) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let create = ["create", "-q", "-f", "luks", "-o", "key-secret=s,iter-time=10", "--object", SECRET];
    qemu_img(&[&create[..], &[&path("luks"), "1G"]].concat())?;
    let luks = format!("driver=luks,key-secret=s,file.filename={}", path("luks"));
    let target = ["convert", "--object", SECRET, "--target-image-opts", "-n", &path("text.raw"), &luks];
    qemu_img(&target)?;
    run_process(command("cp").args(["--sparse=always", &path("large.qcow2"), &path("snapped.qcow2")]))?;
    qemu_img(&["snapshot", "-c", "one", &path("snapped.qcow2")])?;
    // Of every 2 MiB, the overlay has the first, and both backing images half of each.
    fill(&path("over.raw"), 1 << 30, 2 << 20)?;
    for (raw, image) in [("text.raw", "base.qcow2"), ("text.raw", "other.qcow2"), ("over.raw", "over.qcow2")] {
        qemu_img(&["convert", "-O", "qcow2", &path(raw), &path(image)])?;
    }
    qemu_img(&["rebase", "-u", "-b", "base.copy", "-F", "qcow2", &path("over.qcow2")])?;
    // The other image differs in one cluster of 16.
    let commands: String =
        (0..1024u32).map(|number| format!("write -P {} {number}M 64k\n", number % 255 + 1)).collect();
    let mut io = command("qemu-io");
    feed(io.arg(path("other.qcow2")), &commands)?;
    // The last clusters of the image are counted once more than they are used.
    run_process(command("cp").args(["--sparse=always", &path("large.qcow2"), &path("leaky.qcow2")]))?;
    let file = std::fs::File::options().write(true).open(path("leaky.qcow2"))?;
    file.write_all_at(&[0, 2].repeat(50_000), 2 * 65_536 + 2 * 100_000)?;
    Ok(())
}

/// Runs a program that reads commands from its standard input.
fn feed(program: &mut Command, commands: &str) -> Result<()> {
    use std::io::Write;
    let piped = std::process::Stdio::piped;
    let mut child = program.stdin(piped()).stdout(std::process::Stdio::null()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(commands.as_bytes())?;
    if !child.wait()?.success() {
        bail!("{program:?} failed");
    }
    Ok(())
}

/// A qcow2 image of 1 TiB with 2048 L2 tables and 499,712 allocated clusters in runs of 16, whose data is a hole.
fn make_large(name: &str) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const CLUSTER: u64 = 65_536;
    const TABLES: u64 = 2048;
    const PER_TABLE: u64 = 244;
    const BLOCKS: u64 = 16;
    let (table, blocks, l1) = (CLUSTER, 2 * CLUSTER, (2 + BLOCKS) * CLUSTER);
    let l2 = l1 + CLUSTER;
    let data = l2 + TABLES * CLUSTER;
    let end = data + TABLES * PER_TABLE * CLUSTER;
    let file = std::fs::File::create(name)?;
    file.set_len(end)?;
    let mut header = vec![];
    for word in [0x5146_49fbu32, 3, 0, 0, 0, 16] {
        header.extend(word.to_be_bytes());
    }
    header.extend((1u64 << 40).to_be_bytes());
    header.extend(0u32.to_be_bytes());
    header.extend((TABLES as u32).to_be_bytes());
    for word in [l1, table] {
        header.extend(word.to_be_bytes());
    }
    header.extend(1u32.to_be_bytes());
    header.resize(96, 0);
    header.extend(4u32.to_be_bytes());
    header.extend(104u32.to_be_bytes());
    file.write_all_at(&header, 0)?;
    let words = |words: Vec<u64>| words.into_iter().flat_map(u64::to_be_bytes).collect::<Vec<u8>>();
    file.write_all_at(&words((0..BLOCKS).map(|block| blocks + block * CLUSTER).collect()), table)?;
    file.write_all_at(&[0, 1].repeat((end / CLUSTER) as usize), blocks)?;
    let copied = 1u64 << 63;
    file.write_all_at(&words((0..TABLES).map(|number| (l2 + number * CLUSTER) | copied).collect()), l1)?;
    let mut next = data;
    for number in 0..TABLES {
        let mut entries = vec![0u64; 8192];
        for cluster in 0..PER_TABLE {
            if let Some(entry) = entries.get_mut((cluster / 16 * 500 + cluster % 16) as usize) {
                *entry = next | copied;
            }
            next += CLUSTER;
        }
        file.write_all_at(&words(entries), l2 + number * CLUSTER)?;
    }
    Ok(())
}

/// A raw file with the first half of every `period` bytes filled, but never more than 64 KiB at once for long periods.
fn fill(name: &str, size: u64, period: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(name)?;
    file.set_len(size)?;
    let len = if period > 1 << 20 { 64 << 10 } else { period / 2 };
    let mut state = 1u64;
    let mut bytes = vec![0u8; len as usize];
    for start in (0..size).step_by(period as usize) {
        for chunk in bytes.chunks_mut(16) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Compressible to about half, like text.
            chunk.fill((state >> 60) as u8 | b'a');
            for (place, byte) in chunk.iter_mut().zip(state.to_le_bytes()) {
                *place = byte;
            }
        }
        file.write_all_at(&bytes, start)?;
    }
    Ok(())
}
