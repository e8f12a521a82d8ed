//! All integration tests of the contents of disks in one binary, against images made by the tools of others.
#![allow(unreachable_pub)]

mod fat;
mod files;
mod host;
mod hostile;
mod known;
mod tables;
mod tree;
