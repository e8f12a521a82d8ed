//! Standard output that may end early or be full.

use std::io::{ErrorKind, Write};

/// As shells report a program that a closed pipe ended.
const CLOSED_PIPE: i32 = 141;

/// Prints to standard output. If nobody reads it any more the program ends, as usual in a pipeline.
pub(crate) fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(CLOSED_PIPE);
        }
        eprintln!("{}: could not write to standard output: {error}", crate::program::name());
        std::process::exit(1);
    }
}

/// Prints a line.
pub(crate) fn line(text: &str) {
    print(&format!("{text}\n"));
}
