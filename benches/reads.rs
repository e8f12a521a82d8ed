//! Reads of a qcow2 image through the library, on one thread: `cargo bench --bench reads -- IMAGE`. Prints the rate of
//! scattered reads of 4 KiB, and of reads of 1 MiB in order.

use std::time::Instant;

use diskette::drivers::OpenOptions;
use diskette::native::{Buffer, File, FileOptions};
use diskette::{Node, ReadFlags, block_on, open};

const READS: u64 = 200_000;
/// Steps over the L2 tables, as `qemu-img bench -S` does.
const STEP_BYTES: u64 = (64 << 20) + (8 << 10);
const LARGE_BYTES: u64 = 1 << 20;
const LARGE_READS: u64 = 1024;

fn main() {
    let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        println!("usage: cargo bench --bench reads -- IMAGE");
        return;
    };
    let file =
        File::open(&path, FileOptions { read_only: true, ..FileOptions::default() }).expect("the image can be opened");
    let image = block_on(open(file, &OpenOptions::default())).expect("the image opens");
    let length = image.info().length;
    let run = |reads: u64, len: u64, step: u64| {
        let mut buffer = Buffer::default();
        let bytes = buffer.first(len as usize);
        let begun = Instant::now();
        for number in 0..reads {
            let at = (number * step % length).min(length - len);
            block_on(image.read(at, bytes, ReadFlags::default())).expect("the read succeeds");
        }
        reads as f64 / begun.elapsed().as_secs_f64()
    };
    let median = |reads, len, step| {
        let mut rates: Vec<f64> = (0..5).map(|_| run(reads, len, step)).collect();
        rates.sort_by(f64::total_cmp);
        rates[2]
    };
    println!("{:.0} {:.0}", median(READS, 4096, STEP_BYTES), median(LARGE_READS, LARGE_BYTES, LARGE_BYTES));
}
