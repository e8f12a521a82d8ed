//! All integration tests in one binary.
#![allow(unreachable_pub)]

mod bitmaps;
mod differential;
mod encryption;
mod faults;
mod growth;
mod hostile;
mod model;
mod nbd;
mod power_cut;
mod races;
mod regions;
mod repair;
mod structure;
mod support;
