//! The `diskette` program.

fn main() {}
