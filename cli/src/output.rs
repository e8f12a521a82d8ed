//! Standard output that may end early or be full.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;

use crate::program;

/// As shells report a program that a closed pipe ended.
const CLOSED_PIPE: i32 = 141;

/// As much is kept back as the C library keeps for a pipe.
const BUFFER_BYTES: usize = 4096;

/// What was printed and is kept back: QEMU's tools, of which scripts know in which order their messages come, hand on what
/// they print when there is enough of it, or when they end.
static BUFFER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Prints to standard output. If nobody reads it any more the program ends, as usual in a pipeline.
pub(crate) fn print(text: &str) {
    if !program::is_tool() || std::io::stdout().is_terminal() {
        return write(text.as_bytes());
    }
    let mut buffer = BUFFER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    buffer.extend_from_slice(text.as_bytes());
    if buffer.len() >= BUFFER_BYTES {
        write(&std::mem::take(&mut *buffer));
    }
}

/// Hands on what is kept back.
pub(crate) fn flush() {
    let mut buffer = BUFFER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    write(&std::mem::take(&mut *buffer));
}

fn write(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(CLOSED_PIPE);
        }
        eprintln!("{}: could not write to standard output: {error}", program::name());
        std::process::exit(1);
    }
}

/// Prints a line.
pub(crate) fn line(text: &str) {
    print(&format!("{text}\n"));
}
