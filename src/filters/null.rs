//! `null-co`, `null-aio`: a disk that takes everything and keeps nothing.

use alloc::string::String;
use alloc::sync::Arc;

use crate::error::{Error, Result};
use crate::filters::throttle::Clock;
use crate::node::{
    Extent, Host, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags, check_bounds,
};
use crate::op::Op;
use crate::options::Options;

/// Size of a disk whose options give none.
const DEFAULT_BYTES: u64 = 1 << 30;

/// Longest latency: a minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// A disk without storage. What is read from it is left as it was in the caller's buffer, or is zero.
pub struct Null {
    name: &'static str,
    size: u64,
    read_zeroes: bool,
    latency_ns: u64,
    clock: Option<Arc<dyn Clock>>,
}

impl core::fmt::Debug for Null {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Null").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Null {
    /// A disk with the `size`, `read-zeroes` and `latency-ns` of `options`, taken out of them. `name` is that of the
    /// driver.
    ///
    /// # Errors
    /// An option has a value that is not allowed, or there is no clock for a latency.
    pub fn new(name: &'static str, options: &mut Options, clock: Option<Arc<dyn Clock>>) -> Result<Self> {
        let size = options.take_size("size")?.unwrap_or(DEFAULT_BYTES);
        let read_zeroes = options.take_switch("read-zeroes")?.unwrap_or(false);
        let latency_ns = match options.take("latency-ns") {
            None => 0,
            Some(text) => text.parse().map_err(|_| Error::invalid("latency-ns is invalid"))?,
        };
        if i64::try_from(size).is_err() {
            return Err(Error::invalid("size is beyond 2^63"));
        }
        if latency_ns > MAX_LATENCY_NS {
            return Err(Error::invalid(alloc::format!(
                "latency-ns is {latency_ns}, expected at most {MAX_LATENCY_NS}"
            )));
        }
        if latency_ns > 0 && clock.is_none() {
            return Err(Error::unsupported("latency-ns needs a clock, and the host has none"));
        }
        Ok(Null { name, size, read_zeroes, latency_ns, clock })
    }

    fn late(&self, range: Range) -> Op<'_, ()> {
        if let Err(error) = check_bounds(range.start, range.len, self.size) {
            return Op::err(error);
        }
        match &self.clock {
            Some(clock) if self.latency_ns > 0 => clock.sleep_until(clock.now().saturating_add(self.latency_ns)),
            _ => Op::ok(()),
        }
    }
}

impl Node for Null {
    fn info(&self) -> NodeInfo {
        NodeInfo { fast_zeroes: true, zero_init: self.read_zeroes, ..NodeInfo::plain(self.size) }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        let (state, host) = if self.read_zeroes {
            (State::Zero, None)
        } else {
            (State::Data, Some(Host { role: Role::File, at: range.start }))
        };
        Op::ok(Extent { len: range.len, state, host })
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        if self.read_zeroes {
            into.fill(0);
        }
        self.late(Range::new(at, into.len() as u64))
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], _flags: WriteFlags) -> Op<'a, ()> {
        self.late(Range::new(at, from.len() as u64))
    }

    fn write_zeroes<'a>(&'a self, range: Range, _flags: WriteFlags) -> Op<'a, ()> {
        self.late(range)
    }

    fn resize<'a>(&'a self, _length: u64, _preallocation: Preallocation) -> Op<'a, ()> {
        Op::err(Error::unsupported(alloc::format!("the {} driver does not support resize", self.name)))
    }

    fn name(&self) -> String {
        alloc::format!("{}://", self.name)
    }

    fn identity(&self) -> String {
        // Every one is a disk of its own.
        String::new()
    }

    fn allocated(&self) -> Option<u64> {
        Some(0)
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}
