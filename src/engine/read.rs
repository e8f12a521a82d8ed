//! Reading: map, then fetch each extent from where it is.

use alloc::vec::Vec;

use crate::engine::image::Image;
use crate::engine::requests::RequestKind;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::node::{Extent, Node, Range, ReadFlags, State, Want, check_bounds};
use crate::op::{BoxFuture, Op, join_all};

impl Image {
    /// A read on behalf of a host: checked, tracked, and held off by serialising requests.
    pub(crate) fn read_tracked<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        let range = Range::new(at, into.len() as u64);
        if let Err(error) = check_bounds(at, range.len, self.format.info().length) {
            return Op::err(self.explain(error));
        }
        if cfg!(feature = "write")
            && self.options.copy_on_read
            && !self.options.read_only
            && !flags.no_wait
            && range.len > 0
        {
            return Op::future(async move {
                self.pull(range).await?;
                let request = self.requests.begin(RequestKind::Read, range);
                request.wait().await;
                self.read_mapped(at, into).await.map_err(|error| self.explain(error))
            });
        }
        let request = self.requests.begin(RequestKind::Read, range);
        if request.undisturbed() {
            // Everything known already and in one piece: no allocation, no task.
            if let Op::Ready(extent) = self.format.map(range, Want::Allocation) {
                let extent = match extent {
                    Ok(extent) => extent,
                    Err(error) => return Op::err(self.explain(error)),
                };
                if extent.len == range.len {
                    return match self.fetch(at, extent, into) {
                        Op::Ready(result) => Op::Ready(result.map_err(|error| self.explain(error))),
                        Op::Pending(future) => Op::future(async move {
                            let result = future.await;
                            drop(request);
                            result.map_err(|error| self.explain(error))
                        }),
                    };
                }
            }
        }
        Op::future(async move {
            if !flags.no_wait {
                request.wait().await;
            }
            self.read_mapped(at, into).await.map_err(|error| self.explain(error))
        })
    }

    /// Reads through the current mapping without tracking: the caller's own request covers the range.
    pub(crate) async fn read_mapped(&self, mut at: u64, mut into: &mut [u8]) -> Result<()> {
        let mut pending: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        let mut outcome = Ok(());
        while !into.is_empty() {
            let extent = match self.format.map(Range::new(at, into.len() as u64), Want::Allocation).await {
                Ok(extent) => extent,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            let len = extent.len.min(into.len() as u64) as usize;
            let (part, rest) = into.split_at_mut(len);
            match self.fetch(at, extent, part) {
                Op::Ready(Ok(())) => {}
                Op::Ready(Err(error)) => {
                    outcome = Err(error);
                    break;
                }
                Op::Pending(future) => pending.push(future),
            }
            into = rest;
            at += len as u64;
        }
        for result in join_all(pending).await {
            outcome = outcome.and(result);
        }
        outcome
    }

    /// Reads from one extent, which starts at guest offset `at`.
    fn fetch<'a>(&'a self, at: u64, extent: Extent, into: &'a mut [u8]) -> Op<'a, ()> {
        match (extent.state, extent.host) {
            (State::Data, Some(host)) => match self.storage(host.role) {
                Ok(storage) if self.is_listened() => Op::future(async move {
                    self.announce(Event::ReadAio).await?;
                    self.read_stored(storage, host.at, into).await
                }),
                Ok(storage) => self.read_stored(storage, host.at, into),
                Err(error) => Op::err(error),
            },
            (State::Compressed { stored }, Some(host)) => {
                let cluster = u64::from(self.format.info().cluster_size.unwrap_or(1));
                let skip = (at % cluster) as usize;
                if self.is_listened() {
                    return Op::future(async move {
                        self.announce(Event::ReadCompressed).await?;
                        self.format.expand(host, stored, skip, into).await
                    });
                }
                self.format.expand(host, stored, skip, into)
            }
            (State::Zero, _) => {
                into.fill(0);
                Op::ok(())
            }
            (State::Unallocated, _) if self.is_listened() && self.backing.is_some() => Op::future(async move {
                self.announce(Event::ReadBackingAio).await?;
                self.read_backing(at, into).await
            }),
            (State::Unallocated, _) => self.read_backing(at, into),
            (State::Encrypted, Some(_)) if cfg!(not(feature = "crypto")) => Op::err(crate::crypto::locked()),
            (State::Encrypted, Some(host)) => self.read_encrypted(at, host, into),
            (State::Data | State::Encrypted | State::Compressed { .. }, None) => {
                Op::err(Error::new(ErrorKind::Corrupt, "the format names no place for stored data"))
            }
        }
    }

    /// Reads stored data. The last cluster of a file need not be all there: what nobody has written reads as zeroes. A
    /// cluster that begins beyond the end is missing, and reading it fails.
    pub(super) fn read_stored<'a>(&'a self, storage: &'a dyn Node, at: u64, into: &'a mut [u8]) -> Op<'a, ()> {
        let length = storage.info().length;
        let end = at.saturating_add(into.len() as u64);
        let whole = u64::from(self.format.info().cluster_size.unwrap_or(1)).max(self.sector());
        let reached = || length.next_multiple_of(whole);
        if end <= length || end > reached() {
            return storage.read(at, into, ReadFlags::default());
        }
        let (part, rest) = into.split_at_mut(length.saturating_sub(at) as usize);
        rest.fill(0);
        if part.is_empty() { Op::ok(()) } else { storage.read(at, part, ReadFlags::default()) }
    }

    /// Reads from the backing image, with zeroes beyond its end.
    fn read_backing<'a>(&'a self, at: u64, into: &'a mut [u8]) -> Op<'a, ()> {
        let Some(backing) = &self.backing else {
            if let Some(name) = self.missing_backing() {
                return Op::err(Error::new(
                    ErrorKind::Denied,
                    alloc::format!("these bytes are in the backing file '{name}', which was not opened"),
                ));
            }
            into.fill(0);
            return Op::ok(());
        };
        let available = backing.info().length.saturating_sub(at).min(into.len() as u64) as usize;
        let (part, rest) = into.split_at_mut(available);
        rest.fill(0);
        if part.is_empty() { Op::ok(()) } else { backing.read(at, part, ReadFlags::default()) }
    }
}
