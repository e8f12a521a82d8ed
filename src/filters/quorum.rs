//! `quorum`: several copies of one disk that vote on what is read.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::filters::within;
use crate::node::{Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags};
use crate::op::{BoxFuture, Op, join_all};
use crate::options::Options;

/// How copies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadPattern {
    /// All of them, and the majority counts.
    Quorum,
    /// The first that answers.
    Fifo,
}

/// How many copies must agree, and what to do about those that do not.
#[derive(Clone, Copy, Debug)]
pub struct QuorumOptions {
    threshold: usize,
    pattern: ReadPattern,
    must_be_equal: bool,
    rewrite_corrupted: bool,
}

impl QuorumOptions {
    /// Takes `vote-threshold`, `read-pattern`, `blkverify` and `rewrite-corrupted` out of `options`.
    ///
    /// # Errors
    /// A value is not allowed, or does not fit the others.
    pub fn take(options: &mut Options, children: usize) -> Result<Self> {
        if children == 0 {
            return Err(Error::invalid("Number of provided children must be 1 or more"));
        }
        let threshold = match options.take("vote-threshold") {
            None => 0,
            Some(text) => text.parse().map_err(|_| Error::invalid("Parameter 'vote-threshold' expects a number"))?,
        };
        let pattern = match options.take("read-pattern").as_deref() {
            None | Some("quorum") => ReadPattern::Quorum,
            Some("fifo") => ReadPattern::Fifo,
            Some(_) => return Err(Error::invalid("Please set read-pattern as fifo or quorum")),
        };
        let must_be_equal = options.take_switch("blkverify")?.unwrap_or(false);
        let rewrite_corrupted = options.take_switch("rewrite-corrupted")?.unwrap_or(false);
        if threshold == 0 {
            return Err(Error::invalid("Parameter 'vote-threshold' expects a value >= 1"));
        }
        if threshold > children {
            return Err(Error::invalid("threshold may not exceed children count"));
        }
        if must_be_equal && (children != 2 || threshold != 2) {
            return Err(Error::invalid(
                "blkverify=on can only be set if there are exactly two files and vote-threshold is 2",
            ));
        }
        if must_be_equal && rewrite_corrupted {
            return Err(Error::invalid("rewrite-corrupted=on cannot be used with blkverify=on"));
        }
        Ok(QuorumOptions { threshold, pattern, must_be_equal, rewrite_corrupted })
    }
}

/// A node over several copies.
pub struct Quorum {
    children: Vec<Arc<dyn Node>>,
    options: QuorumOptions,
}

impl core::fmt::Debug for Quorum {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Quorum")
            .field("children", &self.children.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Quorum {
    /// A node over `children`.
    ///
    /// # Errors
    /// They are not of one size.
    pub fn new(children: Vec<Arc<dyn Node>>, options: QuorumOptions) -> Result<Self> {
        let mut lengths = children.iter().map(|child| child.info().length);
        let first = lengths.next().unwrap_or(0);
        match lengths.find(|length| *length != first) {
            None => Ok(Quorum { children, options }),
            Some(other) => Err(Error::new(
                ErrorKind::Io,
                alloc::format!("the copies differ in size: {first} bytes and {other} bytes"),
            )),
        }
    }

    /// Fails unless enough succeeded; with the most frequent failure.
    fn settle(&self, outcomes: Vec<Result<()>>) -> Result<()> {
        let succeeded = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        if succeeded >= self.options.threshold {
            return Ok(());
        }
        let errors: Vec<Error> = outcomes.into_iter().filter_map(Result::err).collect();
        let votes = |error: &Error| errors.iter().filter(|other| other.kind() == error.kind()).count();
        let most = errors.iter().map(votes).max().unwrap_or(0);
        let position = errors.iter().position(|error| votes(error) == most);
        match position.and_then(|position| errors.into_iter().nth(position)) {
            Some(error) => Err(error),
            None => Err(Error::new(ErrorKind::Io, "not enough copies could be used")),
        }
    }

    async fn all<'a>(&'a self, call: impl Fn(&'a Arc<dyn Node>) -> Op<'a, ()>) -> Result<()> {
        let mut pending: Vec<BoxFuture<'a, Result<()>>> = Vec::new();
        for child in &self.children {
            let op = call(child);
            pending.push(alloc::boxed::Box::pin(async move { op.await }));
        }
        let mut outcomes = join_all(pending).await;
        // What one copy cannot do has to be done otherwise on all.
        let refused =
            |outcome: &Result<()>| outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported);
        match outcomes.iter().position(refused) {
            Some(place) => outcomes.swap_remove(place),
            None => self.settle(outcomes),
        }
    }

    async fn read_first(&self, at: u64, into: &mut [u8], flags: ReadFlags) -> Result<()> {
        let mut outcome = Err(Error::new(ErrorKind::Io, "no copy could be read"));
        for child in &self.children {
            outcome = child.read(at, within(&**child, at, into), flags).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn read_vote(&self, at: u64, into: &mut [u8], flags: ReadFlags) -> Result<()> {
        let mut copies = vec![Vec::new(); self.children.len()];
        let mut outcomes = Vec::new();
        for (child, copy) in self.children.iter().zip(&mut copies) {
            copy.resize(into.len(), 0);
            outcomes.push(child.read(at, within(&**child, at, copy), flags).await);
        }
        let good: Vec<usize> = outcomes.iter().enumerate().filter(|(_, o)| o.is_ok()).map(|(index, _)| index).collect();
        self.settle(outcomes)?;
        let copy = |index: usize| copies.get(index).map_or(&[][..], Vec::as_slice);
        let votes = |index: usize| good.iter().filter(|other| copy(**other) == copy(index)).count();
        let winner = good.iter().copied().max_by_key(|index| (votes(*index), core::cmp::Reverse(*index)));
        let Some(winner) = winner else { return Err(Error::new(ErrorKind::Io, "no copy could be read")) };
        if self.options.must_be_equal && votes(winner) < good.len() {
            let place = copy(0).iter().zip(copy(1)).position(|(one, other)| one != other).unwrap_or(0) as u64;
            return Err(Error::new(
                ErrorKind::Corrupt,
                alloc::format!("quorum: contents mismatch at offset {}", at + place),
            )
            .at_offset(at + place));
        }
        if votes(winner) < self.options.threshold {
            return Err(Error::new(
                ErrorKind::Io,
                alloc::format!(
                    "the copies disagree: at most {} of them are alike, expected at least {}",
                    votes(winner),
                    self.options.threshold
                ),
            )
            .at_offset(at));
        }
        if self.options.rewrite_corrupted {
            for loser in good.iter().copied().filter(|index| copy(*index) != copy(winner)) {
                if let Some(child) = self.children.get(loser).filter(|child| !child.info().read_only) {
                    // What is wrong stays outvoted if this fails.
                    let _ = child.write(at, copy(winner), WriteFlags::default()).await;
                }
            }
        }
        into.copy_from_slice(copy(winner));
        Ok(())
    }

    async fn status(&self, range: Range, want: Want) -> Result<Extent> {
        // A stretch is zero only if enough copies say so for all of it.
        let mut shortest = range.len;
        let mut zero = 0;
        for child in &self.children {
            // A copy that cannot tell does not vote; the range is read then.
            let Ok(extent) = crate::filters::contents(child, range, want).await else { continue };
            shortest = shortest.min(extent.len);
            zero += usize::from(extent.state == State::Zero);
        }
        let state = if zero >= self.options.threshold { State::Zero } else { State::Data };
        Ok(Extent { len: shortest, state, host: None })
    }
}

impl Node for Quorum {
    fn info(&self) -> NodeInfo {
        let infos = || self.children.iter().map(|child| child.info());
        NodeInfo {
            request_alignment: infos().map(|info| info.request_alignment).max().unwrap_or(1),
            memory_alignment: infos().map(|info| info.memory_alignment).max().unwrap_or(1),
            read_only: infos().any(|info| info.read_only),
            fast_zeroes: infos().all(|info| info.fast_zeroes),
            zero_init: infos().all(|info| info.zero_init),
            ..NodeInfo::plain(infos().map(|info| info.length).next().unwrap_or(0))
        }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        Op::future(self.status(range, want))
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        match self.options.pattern {
            ReadPattern::Fifo => Op::future(self.read_first(at, into, flags)),
            ReadPattern::Quorum => Op::future(self.read_vote(at, into, flags)),
        }
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::future(self.all(move |child| child.write(at, from, flags)))
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        Op::future(self.all(move |child| child.write_zeroes(range, flags)))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::future(self.all(|child| child.flush()))
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        Op::future(self.all(move |child| child.resize(length, preallocation)))
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        Op::future(self.all(|child| child.close()))
    }

    fn is_disk(&self) -> bool {
        true
    }

    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        if role == Role::File { self.children.first().cloned() } else { None }
    }

    fn name(&self) -> String {
        String::new()
    }

    fn allocated(&self) -> Option<u64> {
        self.children.iter().map(|child| child.allocated()).sum()
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

    fn quorum(options: &str, bytes: &[u8]) -> (Quorum, Vec<Arc<Memory>>) {
        let copies: Vec<_> = bytes.iter().map(|byte| Memory::new(vec![*byte; 1024])).collect();
        let options = QuorumOptions::take(&mut Options::parse(options).unwrap(), copies.len()).unwrap();
        (Quorum::new(copies.iter().map(|copy| copy.clone() as Arc<dyn Node>).collect(), options).unwrap(), copies)
    }

    fn read(quorum: &Quorum) -> Result<u8> {
        let mut buffer = [0; 512];
        block_on(quorum.read(0, &mut buffer, ReadFlags::default()))?;
        assert!(buffer.iter().all(|byte| *byte == buffer[0]));
        Ok(buffer[0])
    }

    #[test]
    fn the_majority_counts_and_mends_the_rest() {
        let (node, copies) = quorum("vote-threshold=2,rewrite-corrupted=on", &[9, 5, 5]);
        assert_eq!(read(&node).unwrap(), 5);
        assert_eq!(copies[0].to_vec()[..512], [5; 512]);
        assert_eq!(copies[0].to_vec()[512..], [9; 512]);
    }

    #[test]
    fn no_majority_is_an_error() {
        let (node, _) = quorum("vote-threshold=2", &[1, 2, 3]);
        assert_eq!(read(&node).unwrap_err().kind(), ErrorKind::Io);
        let (node, _) = quorum("vote-threshold=2,blkverify=on", &[1, 2]);
        assert_eq!(read(&node).unwrap_err().kind(), ErrorKind::Corrupt);
        let (node, _) = quorum("vote-threshold=2,read-pattern=fifo", &[1, 2, 3]);
        assert_eq!(read(&node).unwrap(), 1);
    }

    #[test]
    fn options_must_fit_each_other() {
        for (text, children, message) in [
            ("vote-threshold=1", 0, "Number of provided children must be 1 or more"),
            ("vote-threshold=0", 2, "Parameter 'vote-threshold' expects a value >= 1"),
            ("vote-threshold=3", 2, "threshold may not exceed children count"),
            ("vote-threshold=1,read-pattern=x", 2, "Please set read-pattern as fifo or quorum"),
        ] {
            let error = QuorumOptions::take(&mut Options::parse(text).unwrap(), children).unwrap_err();
            assert_eq!(alloc::string::ToString::to_string(error.problem()), message);
        }
    }
}
