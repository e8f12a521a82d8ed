//! All integration tests in one binary.

mod differential;
mod hostile;
mod model;
mod power_cut;
mod support;
