//! A program without an operating system that makes a qcow2 image in memory, writes it, and reads it back through
//! callbacks. It is linked, to prove that the library needs nothing but `alloc`.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use core::panic::PanicInfo;

use diskette::drivers::{CreateContext, Drivers, OpenOptions};
use diskette::{Callbacks, Memory, Node, ReadFlags, Result, WriteFlags, block_on};
use linked_list_allocator::LockedHeap;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

const HEAP_BYTES: usize = 16 << 20;
static mut HEAP_SPACE: [u8; HEAP_BYTES] = [0; HEAP_BYTES];

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}

/// The entry point: exits into an endless loop that a debugger can tell apart by `RESULT`.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    // SAFETY: this runs once, before anything allocates, and nothing else uses the space.
    unsafe { HEAP.lock().init((&raw mut HEAP_SPACE).cast(), HEAP_BYTES) };
    let outcome = round_trip();
    // SAFETY: a plain store that the optimiser must keep.
    unsafe { core::ptr::write_volatile(&raw mut RESULT, outcome.is_ok() as u32 + 1) };
    loop {}
}

/// 2 after success, 1 after failure.
#[unsafe(no_mangle)]
static mut RESULT: u32 = 0;

fn round_trip() -> Result<()> {
    let file = Memory::new(vec![]);
    let options = BTreeMap::new();
    let driver = Drivers::all().by_name("qcow2").ok_or_else(|| diskette::Error::invalid("no qcow2"))?;
    let create = driver.create.ok_or_else(|| diskette::Error::invalid("no create"))?;
    block_on(create(CreateContext { file: file.clone(), data_file: None, size: 1 << 20, options: &options, keyring: &diskette::Keyring::default() }))?;
    let image = block_on(diskette::open(file.clone(), &OpenOptions { read_only: false, ..OpenOptions::default() }))?;
    block_on(image.write(4096, &[7; 512], WriteFlags::default()))?;
    block_on(image.close())?;
    let bytes: Box<[u8]> = file.to_vec().into();
    let leaf = Callbacks::new(bytes.len() as u64, move |at, into| {
        let start = at as usize;
        into.copy_from_slice(&bytes[start..start + into.len()]);
        Ok(())
    });
    let image = block_on(diskette::open(alloc::sync::Arc::new(leaf), &OpenOptions::default()))?;
    let mut sector = [0; 512];
    block_on(image.read(4096, &mut sector, ReadFlags::default()))?;
    if sector == [7; 512] { Ok(()) } else { Err(diskette::Error::invalid("the data did not come back")) }
}
