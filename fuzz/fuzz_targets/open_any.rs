//! Any bytes as an image: described, mapped, checked and read without a panic or runaway memory.
#![no_main]

use diskette::drivers::OpenOptions;
use diskette::engine::status::Chain;
use diskette::{Budgets, Memory, Node, Range, ReadFlags, Want, block_on};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let budgets = Budgets { metadata_bytes: 1 << 20, check_bytes: 16 << 20, ..Budgets::default() };
    let options = OpenOptions { structure_only: true, budgets, ..OpenOptions::default() };
    let file = Memory::read_only(bytes, "fuzz");
    let Ok(image) = block_on(diskette::open(file, &options)) else { return };
    let _ = image.describe();
    let length = image.info().length;
    let mut buffer = vec![0; length.min(1 << 16) as usize];
    for at in [0, length / 2, length - buffer.len() as u64] {
        let len = buffer.len().min((length - at) as usize);
        let _ = block_on(image.read(at, &mut buffer[..len], ReadFlags::default()));
    }
    let chain = Chain::of(image.clone());
    let mut at = 0;
    for _ in 0..1000 {
        if at >= length {
            break;
        }
        match block_on(chain.status(Range::new(at, length - at), Want::Precise)) {
            Ok(status) => at += status.len,
            Err(_) => break,
        }
    }
    let _ = block_on(image.check());
});
