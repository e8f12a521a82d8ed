//! `throttle`: so many requests and bytes a second, shared by all nodes of a group (QEMU's docs/throttle).

use alloc::sync::Arc;

use crate::error::{Error, Result};
use crate::filters::hand_on;
use crate::node::{Node, NodeInfo, Range, ReadFlags, WriteFlags};
use crate::op::Op;
use crate::options::Options;
use crate::sync::Lock;

/// Tells the time and waits for it. Supplied by the host.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some moment.
    fn now(&self) -> u64;

    /// Waits until [`Clock::now`] is at least `time`.
    fn sleep_until<'a>(&'a self, time: u64) -> Op<'a, ()>;
}

/// Largest rate.
const MAX_RATE: u64 = 1_000_000_000_000_000;
const NANOSECONDS: f64 = 1e9;

/// One limit: a rate, and how far it may be exceeded for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    /// Units a second; 0 is no limit.
    average: u64,
    /// Units a second in a burst; 0 is none.
    burst: u64,
    /// Seconds that a burst may last.
    burst_seconds: u64,
    /// Units used that have not drained yet.
    level: f64,
    /// The same for the rate within a burst.
    burst_level: f64,
}

impl Bucket {
    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - self.average as f64 * seconds).max(0.0);
        if self.burst_seconds > 1 {
            self.burst_level = (self.burst_level - self.burst as f64 * seconds).max(0.0);
        }
    }

    /// Seconds until there is room.
    fn wait(&self) -> f64 {
        if self.average == 0 {
            return 0.0;
        }
        // Without a burst, a tenth of a second may come at once.
        let capacity =
            if self.burst == 0 { self.average as f64 / 10.0 } else { (self.burst * self.burst_seconds) as f64 };
        let mut wait = ((self.level - capacity) / self.average as f64).max(0.0);
        if self.burst_seconds > 1 {
            let burst_capacity = self.burst as f64 / 10.0;
            wait = wait.max((self.burst_level - burst_capacity) / self.burst as f64);
        }
        wait
    }

    fn fill(&mut self, units: f64) {
        self.level += units;
        if self.burst_seconds > 1 {
            self.burst_level += units;
        }
    }
}

/// The limits of a group: bytes and requests, each in total, read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// In the order of [`NAMES`].
    buckets: [Bucket; 6],
    /// A request counts once for each so many bytes; 0: once.
    iops_size: u64,
}

const NAMES: [&str; 6] = ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];

impl Limits {
    /// Takes `PREFIXbps-total`, `…-max`, `…-max-length` and so on out of `options`.
    ///
    /// # Errors
    /// A value is not allowed, or does not fit the others.
    pub fn take(options: &mut Options, prefix: &str) -> Result<Self> {
        let mut limits = Limits::default();
        let mut number = |name: &str| -> Result<u64> {
            match options.take(&alloc::format!("{prefix}{name}")) {
                None => Ok(0),
                Some(text) => text
                    .parse()
                    .ok()
                    .or_else(|| crate::wire::parse_size(&text))
                    .ok_or_else(|| Error::invalid(alloc::format!("Parameter '{prefix}{name}' expects a number"))),
            }
        };
        for (name, bucket) in NAMES.iter().zip(&mut limits.buckets) {
            bucket.average = number(name)?;
            bucket.burst = number(&alloc::format!("{name}-max"))?;
            bucket.burst_seconds = number(&alloc::format!("{name}-max-length"))?;
            if bucket.burst_seconds == 0 {
                bucket.burst_seconds = 1;
            }
            if bucket.average > MAX_RATE || bucket.burst > MAX_RATE {
                return Err(Error::invalid(alloc::format!("bps/iops/max values must be within [0, {MAX_RATE}]")));
            }
            if bucket.burst > 0 && bucket.average == 0 {
                return Err(Error::invalid("bps_max/iops_max require corresponding bps/iops values"));
            }
            if bucket.burst_seconds > 1 && bucket.burst == 0 {
                return Err(Error::invalid("burst length set without burst rate"));
            }
            if bucket.burst > 0 && bucket.burst < bucket.average {
                return Err(Error::invalid("bps_max/iops_max cannot be lower than bps/iops"));
            }
            if bucket.burst.checked_mul(bucket.burst_seconds).is_none_or(|units| units > MAX_RATE) {
                return Err(Error::invalid("burst length too high for this burst rate"));
            }
        }
        limits.iops_size = number("iops-size")?;
        for kind in [0, 3] {
            let [total, read, write] = [0, 1, 2].map(|place| limits.buckets[kind + place].average > 0);
            if total && (read || write) {
                return Err(Error::invalid(
                    "bps/iops/max total values and read/write values cannot be used at the same time",
                ));
            }
        }
        if limits.iops_size > 0 && limits.buckets.iter().skip(3).all(|bucket| bucket.average == 0) {
            return Err(Error::invalid("iops size requires an iops value to be set"));
        }
        Ok(limits)
    }
}

/// Limits that several nodes share.
pub struct ThrottleGroup {
    clock: Arc<dyn Clock>,
    state: Lock<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    /// When the buckets were leaked last.
    leaked: u64,
}

impl core::fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ThrottleGroup").finish_non_exhaustive()
    }
}

impl ThrottleGroup {
    /// A group with these limits.
    pub fn new(limits: Limits, clock: Arc<dyn Clock>) -> Arc<Self> {
        let leaked = clock.now();
        Arc::new(ThrottleGroup { clock, state: Lock::new(State { limits, leaked }) })
    }

    /// Other limits from now on.
    pub async fn set_limits(&self, limits: Limits) {
        self.state.lock().await.limits = limits;
    }

    /// Waits for the turn of a request. Requests take turns in the order in which they get the lock.
    async fn admit(&self, bytes: u64, is_write: bool) -> Result<()> {
        let mut state = self.state.lock().await;
        let kind = if is_write { 2 } else { 1 };
        loop {
            let now = self.clock.now();
            let seconds = now.saturating_sub(state.leaked) as f64 / NANOSECONDS;
            state.leaked = now;
            let mut wait: f64 = 0.0;
            for (index, bucket) in state.limits.buckets.iter_mut().enumerate() {
                bucket.leak(seconds);
                if index % 3 == 0 || index % 3 == kind {
                    wait = wait.max(bucket.wait());
                }
            }
            if wait <= 0.0 {
                break;
            }
            let time = now.saturating_add((wait * NANOSECONDS) as u64).saturating_add(1);
            self.clock.sleep_until(time).await?;
        }
        let size = state.limits.iops_size;
        let requests = if size > 0 && bytes > size { bytes as f64 / size as f64 } else { 1.0 };
        for (index, bucket) in state.limits.buckets.iter_mut().enumerate() {
            if index % 3 == 0 || index % 3 == kind {
                bucket.fill(if index < 3 { bytes as f64 } else { requests });
            }
        }
        Ok(())
    }
}

/// A node whose requests take their turn in a group.
pub struct Throttle {
    image: Arc<dyn Node>,
    group: Arc<ThrottleGroup>,
}

impl core::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Throttle").finish_non_exhaustive()
    }
}

impl Throttle {
    /// A node over `image` in `group`.
    pub fn new(image: Arc<dyn Node>, group: Arc<ThrottleGroup>) -> Self {
        Throttle { image, group }
    }
}

impl Node for Throttle {
    fn info(&self) -> NodeInfo {
        self.image.info()
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.group.admit(into.len() as u64, false).await?;
            self.image.read(at, into, flags).await
        })
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.group.admit(from.len() as u64, true).await?;
            self.image.write(at, from, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        Op::future(async move {
            self.group.admit(range.len, true).await?;
            self.image.write_zeroes(range, flags).await
        })
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        Op::future(async move {
            self.group.admit(range.len, true).await?;
            self.image.discard(range).await
        })
    }

    hand_on!(image: map flush resize close event names);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::op::block_on;
    use core::sync::atomic::{AtomicU64, Ordering};

    /// A clock that goes on only while somebody sleeps.
    #[derive(Default)]
    struct Tame(AtomicU64);

    impl Clock for Tame {
        fn now(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn sleep_until<'a>(&'a self, time: u64) -> Op<'a, ()> {
            self.0.fetch_max(time, Ordering::Relaxed);
            Op::ok(())
        }
    }

    fn seconds_for(limits: &str, requests: usize, bytes: usize) -> f64 {
        let clock = Arc::new(Tame::default());
        let limits = Limits::take(&mut Options::parse(limits).unwrap(), "").unwrap();
        let node = Throttle::new(Memory::new(alloc::vec![0; bytes]), ThrottleGroup::new(limits, clock.clone()));
        for _ in 0..requests {
            block_on(node.write(0, &alloc::vec![0; bytes], WriteFlags::default())).unwrap();
        }
        clock.now() as f64 / NANOSECONDS
    }

    #[test]
    fn rates_are_kept_in_the_long_run() {
        assert!((seconds_for("iops-total=100", 1000, 512) - 10.0).abs() < 0.2);
        assert!((seconds_for("bps-write=51200", 1000, 512) - 10.0).abs() < 0.2);
        assert!((seconds_for("iops-total=100,iops-size=256", 500, 512) - 10.0).abs() < 0.2);
        assert!(seconds_for("bps-read=1", 100, 512) < 0.001, "writes are not reads");
        // A burst of 1000 at once, then 100 a second.
        assert!((seconds_for("iops-total=100,iops-total-max=1000", 2000, 512) - 10.0).abs() < 0.2);
    }

    #[test]
    fn limits_must_fit_each_other() {
        for text in [
            "iops-total=1,iops-read=1",
            "bps-total-max=1",
            "bps-total=1,bps-total-max-length=2",
            "bps-total=10,bps-total-max=5",
            "iops-size=1",
            "bps-total=2000000000000000",
            "bps-total=-1",
        ] {
            assert!(Limits::take(&mut Options::parse(text).unwrap(), "").is_err(), "{text}");
        }
    }
}
