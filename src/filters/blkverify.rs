//! `blkverify`: every request goes to a raw copy, too, and what is read is compared.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;

use crate::error::{Error, ErrorKind, Result};
use crate::filters::{contents, within};
use crate::node::{Extent, Node, NodeInfo, Range, ReadFlags, Role, Want, WriteFlags};
use crate::op::Op;

/// A node over an image under test and a raw copy that is known to be right.
pub struct Blkverify {
    raw: Arc<dyn Node>,
    test: Arc<dyn Node>,
}

impl core::fmt::Debug for Blkverify {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Blkverify").finish_non_exhaustive()
    }
}

impl Blkverify {
    /// A node that compares `test` with `raw`.
    pub fn new(raw: Arc<dyn Node>, test: Arc<dyn Node>) -> Self {
        Blkverify { raw, test }
    }

    /// The outcome of both, if they agree.
    fn agree(what: &str, at: u64, raw: Result<()>, test: Result<()>) -> Result<()> {
        match (raw, test) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(raw), Err(test)) if raw.kind() == test.kind() => Err(test),
            (raw, test) => {
                let tell = |outcome: Result<()>| match outcome {
                    Ok(()) => "succeeded".into(),
                    Err(error) => alloc::format!("failed ({error})"),
                };
                Err(Error::new(
                    ErrorKind::Io,
                    alloc::format!(
                        "blkverify: {what}: the raw image {}, the image under test {}",
                        tell(raw),
                        tell(test)
                    ),
                )
                .at_offset(at))
            }
        }
    }

    async fn read_both(&self, at: u64, into: &mut [u8], flags: ReadFlags) -> Result<()> {
        let mut expected = vec![0; into.len()];
        let raw = self.raw.read(at, within(&*self.raw, at, &mut expected), flags).await;
        let test = self.test.read(at, within(&*self.test, at, into), flags).await;
        Self::agree("read", at, raw, test)?;
        match into.iter().zip(&expected).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(place) => Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!("blkverify: contents mismatch at offset {}", at + place as u64),
            )
            .at_offset(at + place as u64)),
        }
    }
}

impl Node for Blkverify {
    fn info(&self) -> NodeInfo {
        let (raw, test) = (self.raw.info(), self.test.info());
        NodeInfo {
            request_alignment: raw.request_alignment.max(test.request_alignment),
            read_only: raw.read_only || test.read_only,
            fast_zeroes: false,
            zero_init: false,
            ..test
        }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        Op::future(contents(&self.test, range, want))
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        Op::future(self.read_both(at, into, flags))
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            let raw = self.raw.write(at, from, flags).await;
            let test = self.test.write(at, from, flags).await;
            Self::agree("write", at, raw, test)
        })
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        // The raw copy is there to be compared with, not to last.
        self.test.flush()
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        Op::future(async move {
            let raw = self.raw.close().await;
            self.test.close().await.and(raw)
        })
    }

    fn is_disk(&self) -> bool {
        true
    }

    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        (role == Role::File).then(|| self.test.clone())
    }

    fn name(&self) -> String {
        self.test.name()
    }

    fn identity(&self) -> String {
        self.test.identity()
    }

    fn allocated(&self) -> Option<u64> {
        self.test.allocated()
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::op::block_on;
    use alloc::string::ToString;

    #[test]
    fn a_difference_is_named_by_its_offset() {
        let (raw, test) = (Memory::new(vec![0; 4096]), Memory::new(vec![0; 4096]));
        let both = Blkverify::new(raw.clone(), test.clone());
        let mut buffer = [0; 1024];
        block_on(both.write(512, &[7; 512], WriteFlags::default())).unwrap();
        block_on(both.read(0, &mut buffer, ReadFlags::default())).unwrap();
        assert_eq!(buffer[512..], [7; 512]);
        block_on(test.write(700, &[8], WriteFlags::default())).unwrap();
        let error = block_on(both.read(0, &mut buffer, ReadFlags::default())).unwrap_err();
        assert_eq!(error.problem().to_string(), "blkverify: contents mismatch at offset 700");
        block_on(both.read(0, &mut buffer[..512], ReadFlags::default())).unwrap();
    }
}
