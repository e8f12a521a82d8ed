//! All integration tests in one binary.
#![allow(unreachable_pub)]

mod differential;
mod hostile;
mod model;
mod power_cut;
mod support;
