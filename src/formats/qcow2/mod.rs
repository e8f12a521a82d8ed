//! qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2).

use alloc::boxed::Box;

use crate::drivers::{Driver, Evidence, OpenContext, OpenedFormat, Probe};
use crate::error::{Error, Result};
use crate::op::BoxFuture;

/// The driver.
pub static DRIVER: Driver = Driver { name: "qcow2", probe, open, create: None, create_options: &[] };

fn probe(probe: &Probe<'_>) -> Option<Evidence> {
    let version = probe.head.get(4..8)?;
    (probe.head.starts_with(b"QFI\xfb") && matches!(version, [0, 0, 0, 2 | 3])).then(|| Evidence {
        score: 100,
        text: alloc::format!("magic 'QFI\\xfb' at offset 0 and version {} at offset 4", version[3]),
    })
}

fn open(_context: OpenContext<'_>) -> BoxFuture<'_, Result<OpenedFormat>> {
    Box::pin(async move { Err(Error::unsupported("not yet")) })
}
