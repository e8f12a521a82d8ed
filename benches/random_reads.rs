//! Random 4 KiB reads of a qcow2 image through the library, on one thread: `cargo bench --bench random_reads -- IMAGE`.
//! Prints reads per second.

use std::time::Instant;

use diskette::drivers::OpenOptions;
use diskette::native::{File, FileOptions};
use diskette::{Node, ReadFlags, block_on, open};

const READS: u64 = 200_000;

fn main() {
    let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        println!("usage: cargo bench --bench random_reads -- IMAGE");
        return;
    };
    let file =
        File::open(&path, FileOptions { read_only: true, ..FileOptions::default() }).expect("the image can be opened");
    let image = block_on(open(file, &OpenOptions::default())).expect("the image opens");
    let blocks = image.info().length / 4096;
    let mut buffer = [0; 4096];
    let mut state = 1u64;
    let begun = Instant::now();
    for _ in 0..READS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 20) % blocks * 4096;
        block_on(image.read(at, &mut buffer, ReadFlags::default())).expect("the read succeeds");
    }
    println!("{:.0} reads/s", READS as f64 / begun.elapsed().as_secs_f64());
}
