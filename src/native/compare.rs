//! Comparing two disks on several threads.

use alloc::sync::Arc;
use core::ops::ControlFlow;

use crate::engine::is_zero;
use crate::engine::status::{Chain, Status};
use crate::error::{Error, Result};
use crate::native::Buffer;
use crate::native::segments::{PIECE, Progress, Run};
use crate::node::{Node, Range, ReadFlags, Want};
use crate::op::block_on;
use crate::sync::Mutex;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Different contents from this offset on.
    Content(u64),
    /// Different allocation from this offset on; only with `strict`.
    Allocation(u64),
}

/// Why a comparison could not be ended.
#[derive(Debug)]
pub struct CompareError {
    /// The side, 0 or 1, and the offset that could not be read. `None` if it could not be told what is stored at all.
    pub reading: Option<(usize, u64)>,
    /// What went wrong.
    pub error: Error,
}

impl From<Error> for CompareError {
    fn from(error: Error) -> Self {
        CompareError { reading: None, error }
    }
}

/// Compares the common length of two disks and gives the first difference.
///
/// # Errors
/// A failure of either side where no difference was found in front of it, or [`Cancelled`](crate::ErrorKind::Cancelled).
pub fn compare(
    first: &Arc<dyn Node>,
    second: &Arc<dyn Node>,
    workers: usize,
    strict: bool,
    progress: &Progress<'_>,
) -> Result<Option<Difference>, CompareError> {
    let sides = [first, second].map(|node| Side { chain: Chain::of(node.clone()), node: &**node });
    let length = first.info().length.min(second.info().length);
    let job = Compare { sides, length, strict };
    let found: Mutex<Option<(u64, Difference)>> = Mutex::new(None);
    let result = Run::new(length, progress).over_segments(workers, |range, buffers| {
        let (at, difference) = match job.segment(range, buffers)? {
            Found::Nothing { until } => return Ok(ControlFlow::Continue(until)),
            Found::Difference { at, difference } => (at, difference),
        };
        let mut found = found.lock();
        if found.is_none_or(|(before, _)| at < before) {
            *found = Some((at, difference));
        }
        // Segments are begun in order: nothing behind a difference matters.
        Ok(ControlFlow::Break(()))
    });
    let found = found.lock().take();
    match (result, found) {
        (_, Some((_, difference))) => Ok(Some(difference)),
        (result, None) => result.map(|()| None),
    }
}

struct Side<'a> {
    chain: Chain,
    node: &'a dyn Node,
}

/// What a worker found from the start of its segment on.
enum Found {
    Nothing { until: u64 },
    Difference { at: u64, difference: Difference },
}

struct Compare<'a> {
    sides: [Side<'a>; 2],
    length: u64,
    strict: bool,
}

impl Compare<'_> {
    fn segment(&self, range: Range, buffers: &mut [Buffer; 2]) -> Result<Found, CompareError> {
        let mut at = range.start;
        while at < range.end() {
            let [one, other] = self.status(Range::new(at, range.end() - at))?;
            let len = one.len.min(other.len);
            if self.strict && recorded(&one) != recorded(&other) {
                return Ok(Found::Difference { at, difference: Difference::Allocation(at) });
            }
            if one.zero && other.zero {
                if at + len == range.end() {
                    let [beyond, other_beyond] = self.status(Range::new(at, self.length - at))?;
                    let alike = beyond.zero
                        && other_beyond.zero
                        && (!self.strict || recorded(&beyond) == recorded(&other_beyond));
                    let len = if alike { beyond.len.min(other_beyond.len) } else { 0 };
                    return Ok(Found::Nothing { until: range.end().max(at + len) });
                }
            } else if let Some(place) = self.contents(Range::new(at, len), [one.zero, other.zero], buffers)? {
                return Ok(Found::Difference { at: place, difference: Difference::Content(place) });
            }
            at += len;
        }
        Ok(Found::Nothing { until: at })
    }

    /// What both sides hold at the start of a range.
    fn status(&self, range: Range) -> Result<[Status; 2]> {
        let want = if self.strict { Want::Recorded } else { Want::Precise };
        let [first, second] = &self.sides;
        Ok([block_on(first.chain.status(range, want))?, block_on(second.chain.status(range, want))?])
    }

    /// Where the contents of a range first differ. A side that is known to read as zeroes is not read.
    fn contents(
        &self,
        range: Range,
        zero: [bool; 2],
        [buffer, other_buffer]: &mut [Buffer; 2],
    ) -> Result<Option<u64>, CompareError> {
        let [first, second] = &self.sides;
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end() - at).min(PIECE as u64);
            let reading = |side| move |error| CompareError { reading: Some((side, at)), error };
            let different = match zero {
                [true, _] => non_zero(fetch(second.node, at, len, other_buffer).map_err(reading(1))?),
                [_, true] => non_zero(fetch(first.node, at, len, buffer).map_err(reading(0))?),
                [false, false] => {
                    let one = fetch(first.node, at, len, buffer).map_err(reading(0))?;
                    let other = fetch(second.node, at, len, other_buffer).map_err(reading(1))?;
                    if one == other { None } else { one.iter().zip(other).position(|(a, b)| a != b) }
                }
            };
            if let Some(position) = different {
                return Ok(Some(at + position as u64));
            }
            at += len;
        }
        Ok(None)
    }
}

/// What a strict comparison compares.
fn recorded(status: &Status) -> (bool, bool, bool, bool) {
    (status.present, status.data, status.zero, status.compressed)
}

fn fetch<'a>(node: &dyn Node, at: u64, len: u64, buffer: &'a mut Buffer) -> Result<&'a [u8]> {
    let bytes = buffer.first(len as usize);
    block_on(node.read(at, bytes, ReadFlags::default()))?;
    Ok(bytes)
}

fn non_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) { None } else { bytes.iter().position(|byte| *byte != 0) }
}
