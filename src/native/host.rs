//! The leaves of this machine for [`crate::graph`]: files, devices, exports of NBD servers, a clock.

use alloc::sync::Arc;
use std::collections::BTreeMap;
use std::format;
use std::os::unix::fs::FileTypeExt;
use std::string::String;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::filters::{Clock, Report, ThrottleGroup};
use crate::graph::{Host, LeafMode};
use crate::native::file::{CacheMode, File, FileOptions, Locking};
use crate::native::nbd::Nbd;
use crate::node::Node;
use crate::op::Op;
use crate::options::Options;
use crate::protocols::nbd;

/// Largest configuration file.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Said about a file without a name.
const NO_FILE_NAME: &str = "The 'file' block driver requires a file name";

/// This machine.
#[derive(Clone, Default)]
pub struct Machine {
    /// How files are opened, unless their options say otherwise.
    pub files: FileOptions,
    /// Groups of throttled nodes by name.
    pub throttle_groups: BTreeMap<String, Arc<ThrottleGroup>>,
    /// Where nodes report what they do, in words.
    pub report: Option<Report>,
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The clock of this machine: time since it was first asked, and a thread that sleeps.
#[derive(Debug)]
pub struct MachineClock(Instant);

impl Default for MachineClock {
    fn default() -> Self {
        MachineClock(Instant::now())
    }
}

impl Clock for MachineClock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep_until<'a>(&'a self, time: u64) -> Op<'a, ()> {
        std::thread::sleep(Duration::from_nanos(time.saturating_sub(self.now())));
        Op::ok(())
    }
}

impl Machine {
    fn file(&self, driver: &str, options: &mut Options, mode: LeafMode) -> Result<Arc<dyn Node>> {
        let name = options.take("filename").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::invalid(NO_FILE_NAME))?;
        let locking = match options.take("locking").as_deref() {
            None => self.files.locking,
            Some("auto") => Locking::Auto,
            Some("on") => Locking::On,
            Some("off") => Locking::Off,
            Some(other) => return Err(Error::invalid(format!("invalid parameter value: {other}"))),
        };
        let direct = mode.direct.unwrap_or(self.files.cache.is_direct());
        match options.take("aio").as_deref() {
            None | Some("threads" | "io_uring") => {}
            Some("native") if direct => {}
            Some("native") => {
                return Err(Error::invalid(
                    "aio=native was specified, but it requires cache.direct=on, which was not specified.",
                ));
            }
            Some(other) => return Err(Error::invalid(format!("invalid parameter value: {other}"))),
        }
        // Hints for other ways to do the same.
        for hint in ["drop-cache", "x-check-cache-dropped"] {
            options.take_switch(hint)?;
        }
        options.take("aio-max-batch");
        let no_flush = mode.no_flush.unwrap_or(self.files.cache == CacheMode::Unsafe);
        let cache = match (direct, no_flush) {
            (true, false) if self.files.cache == CacheMode::Directsync => CacheMode::Directsync,
            (true, _) => CacheMode::None,
            (false, true) => CacheMode::Unsafe,
            (false, false) if self.files.cache == CacheMode::Writethrough => CacheMode::Writethrough,
            (false, false) => CacheMode::Writeback,
        };
        let found = std::fs::metadata(&name).map(|metadata| metadata.file_type());
        if driver != "file"
            && let Ok(kind) = found
            && !kind.is_block_device()
            && !kind.is_char_device()
            && (mode.read_only || !kind.is_dir())
        {
            return Err(Error::invalid(format!(
                "'{driver}' driver requires '{name}' to be either a character or block device"
            )));
        }
        let file = File::open(
            &name,
            FileOptions {
                read_only: mode.read_only,
                cache,
                locking,
                force_share: self.files.force_share || mode.force_share,
                create: false,
                character_device: driver != "file",
            },
        )?;
        Ok(file)
    }
}

/// An export of an NBD server. What nobody understands is told before a connection is made.
fn export(options: &mut Options, mode: LeafMode) -> Result<Arc<dyn Node>> {
    let settings = nbd::Settings::take(options)?;
    match options.iter().next() {
        None => Ok(Nbd::open(&settings, mode.read_only)?),
        Some((name, _)) => Err(Error::invalid(format!("Block protocol 'nbd' doesn't support the option '{name}'"))),
    }
}

impl Host for Machine {
    fn has_leaf(&self, driver: &str) -> bool {
        ["file", "host_device", "host_cdrom", "nbd"].contains(&driver)
    }

    fn leaf<'a>(&'a self, driver: &'a str, options: &'a mut Options, mode: LeafMode) -> Op<'a, Arc<dyn Node>> {
        Op::Ready(match driver {
            "nbd" => export(options, mode),
            _ => self.file(driver, options, mode),
        })
    }

    fn parse_name(&self, name: &str) -> Option<Result<Options>> {
        nbd::parse_name(name)
    }

    fn read_text(&self, name: &str) -> Result<String> {
        let failed = |error: std::io::Error| {
            let error = Error::from(error);
            Error::new(error.kind(), format!("Could not read blkdebug config file: {}", error.problem()))
        };
        let metadata = std::fs::metadata(name).map_err(failed)?;
        if !metadata.is_file() || metadata.len() > MAX_TEXT_BYTES {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "'{name}' is no configuration file: it must be a regular file of at most {MAX_TEXT_BYTES} bytes"
                ),
            ));
        }
        std::fs::read_to_string(name).map_err(failed)
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        Some(Arc::new(MachineClock::default()))
    }

    fn throttle_group(&self, name: &str) -> Option<Arc<ThrottleGroup>> {
        self.throttle_groups.get(name).cloned()
    }

    fn report(&self) -> Option<Report> {
        self.report.clone()
    }
}

/// The path of a plain file name, if that is what the name is: not a description and not a protocol.
pub(super) fn plain_path(name: &str) -> Option<String> {
    let special = name.starts_with("json:") || crate::graph::unknown_protocol(name).is_some();
    (!special).then(|| crate::graph::plain_name(name))
}
