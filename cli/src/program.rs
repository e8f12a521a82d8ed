//! What the program was called.

use std::path::Path;
use std::sync::OnceLock;

/// The names under which it behaves like QEMU's tool of that name; by any other it is `diskette`.
const TOOLS: [&str; 2] = ["qemu-img", "qemu-io"];

/// Whether the program is called as one of QEMU's tools, and says what that says and no more.
pub(crate) fn is_tool() -> bool {
    name() != "diskette"
}

/// The name that messages begin with.
pub(crate) fn name() -> &'static str {
    static NAME: OnceLock<&'static str> = OnceLock::new();
    NAME.get_or_init(|| {
        let called = std::env::args_os().next().unwrap_or_default();
        let called = Path::new(&called).file_name().unwrap_or_default();
        TOOLS.into_iter().find(|tool| called == *tool).unwrap_or("diskette")
    })
}
