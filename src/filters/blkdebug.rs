//! `blkdebug`: errors and halts at chosen points (QEMU's docs/devel/testing/blkdebug).
//!
//! Users of the node announce [`Event`]s. Rules answer them: arm an error for the requests that follow, go to another
//! state, or hold the request up until somebody resumes it.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::filters::{contents, hand_on, within};
use crate::node::{Extent, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, Want, WriteFlags};
use crate::op::Op;
use crate::options::Options;
use crate::sync::Mutex;

/// Kinds of requests that a rule can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
    /// Writes of zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Questions about what is allocated.
    BlockStatus,
}

impl IoKind {
    const ALL: [(IoKind, &'static str); 6] = [
        (IoKind::Read, "read"),
        (IoKind::Write, "write"),
        (IoKind::WriteZeroes, "write-zeroes"),
        (IoKind::Discard, "discard"),
        (IoKind::Flush, "flush"),
        (IoKind::BlockStatus, "block-status"),
    ];
}

/// What to do when an event happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The event.
    pub event: Event,
    /// The state in which the rule counts; 0 is every state.
    pub state: u32,
    /// What it does.
    pub action: Action,
}

/// What a [`Rule`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Requests fail from now on.
    Inject {
        /// With this errno value; 0 lets them pass.
        errno: i32,
        /// Only those that touch this byte.
        offset: Option<u64>,
        /// Only those of this kind.
        kind: Option<IoKind>,
        /// Only the first.
        once: bool,
    },
    /// The state is another from now on.
    SetState(u32),
    /// The request is held up under this tag until it is resumed.
    Suspend(String),
}

#[derive(Debug, Default)]
struct State {
    state: u32,
    rules: Vec<(u64, Rule)>,
    next_rule: u64,
    /// Numbers of the rules whose error is armed, the latest first.
    armed: Vec<u64>,
    suspended: Vec<Suspended>,
    next_request: u64,
    waiting: Vec<Waker>,
}

#[derive(Debug)]
struct Suspended {
    tag: String,
    request: u64,
    waker: Option<Waker>,
}

/// Limits are below this.
const NO_LIMIT: u64 = i32::MAX as u64;

/// Told what happens, in words.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// A node over another one that does as its rules say.
pub struct Blkdebug {
    image: Arc<dyn Node>,
    alignment: u32,
    zero_alignment: u64,
    discard_alignment: u64,
    most: Most,
    state: Mutex<State>,
    report: Option<Report>,
}

/// Most bytes of one request.
struct Most {
    transfer: u64,
    zero: u64,
    discard: u64,
}

impl core::fmt::Debug for Blkdebug {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Blkdebug").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Blkdebug {
    /// A node over `image` with the rules and limits of `options` (`inject-error.N.…`, `set-state.N.…`, `align`,
    /// `max-transfer`, `opt-write-zero`, `max-write-zero`, `opt-discard`, `max-discard`), taken out of them.
    ///
    /// # Errors
    /// An option has a value that is not allowed, or limits contradict each other.
    pub fn new(image: Arc<dyn Node>, config: &[Rule], options: &mut Options, report: Option<Report>) -> Result<Self> {
        let mut rules = config.to_vec();
        for (name, parse) in [("inject-error", inject_rule as fn(Options) -> Result<Rule>), ("set-state", state_rule)] {
            for rule in options.take_list(name) {
                rules.push(parse(rule)?);
            }
        }
        let natural = image.info().request_alignment;
        let alignment = match options.take_size("align")?.unwrap_or(0) {
            0 => natural,
            align => u32::try_from(align)
                .ok()
                .filter(|align| align.is_power_of_two() && *align <= i32::MAX as u32)
                .ok_or_else(|| unmet("align", align))?
                .max(natural),
        };
        let mut limit = |name: &str| -> Result<u64> {
            let value = options.take_size(name)?.unwrap_or(0);
            if value.is_multiple_of(alignment.into()) && value < NO_LIMIT { Ok(value) } else { Err(unmet(name, value)) }
        };
        let max_transfer = limit("max-transfer")?;
        let zero_alignment = limit("opt-write-zero")?;
        let max_zero = limit("max-write-zero")?;
        let discard_alignment = limit("opt-discard")?;
        let max_discard = limit("max-discard")?;
        for (name, largest, optimal) in
            [("max-write-zero", max_zero, zero_alignment), ("max-discard", max_discard, discard_alignment)]
        {
            if largest != 0 && largest < optimal.max(alignment.into()) {
                return Err(unmet(name, largest));
            }
        }
        let (zero_alignment, discard_alignment) =
            (zero_alignment.max(alignment.into()), discard_alignment.max(alignment.into()));
        let most = |limit: u64, alignment: u64| if limit == 0 { u64::MAX } else { limit - limit % alignment };
        let most = Most {
            transfer: most(max_transfer, alignment.into()),
            zero: most(max_zero, zero_alignment),
            discard: most(max_discard, discard_alignment),
        };
        let mut state = State { state: 1, ..State::default() };
        for rule in rules {
            state.add(rule);
        }
        Ok(Blkdebug { image, alignment, zero_alignment, discard_alignment, most, state: Mutex::new(state), report })
    }

    /// Holds up the first request that announces `event`, under `tag`.
    pub fn add_breakpoint(&self, event: Event, tag: &str) {
        self.state.lock().add(Rule { event, state: 0, action: Action::Suspend(tag.to_string()) });
    }

    /// Forgets the breakpoints with that tag, and resumes what they hold up. Says whether there were any.
    pub fn remove_breakpoint(&self, tag: &str) -> bool {
        let mut state = self.state.lock();
        let before = state.rules.len();
        state.rules.retain(|(_, rule)| !matches!(&rule.action, Action::Suspend(other) if other == tag));
        let found = state.rules.len() != before;
        drop(state);
        let mut resumed = false;
        while self.resume(tag) {
            resumed = true;
        }
        found || resumed
    }

    /// Lets a request go on that is held up under `tag`. Says whether there was one.
    pub fn resume(&self, tag: &str) -> bool {
        let found = {
            let mut state = self.state.lock();
            let position = state.suspended.iter().position(|suspended| suspended.tag == tag);
            position.map(|position| state.suspended.remove(position))
        };
        let Some(suspended) = found else { return false };
        self.tell(&alloc::format!("blkdebug: Resuming request '{tag}'"));
        if let Some(waker) = suspended.waker {
            waker.wake();
        }
        true
    }

    /// Whether a request is held up under `tag`.
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.state.lock().suspended.iter().any(|suspended| suspended.tag == tag)
    }

    /// Waits until a request is held up under `tag`.
    pub async fn wait_for(&self, tag: &str) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.suspended.iter().any(|suspended| suspended.tag == tag) {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn tell(&self, text: &str) {
        if let Some(report) = &self.report {
            report(text);
        }
    }

    /// Fails if an error is armed for such a request.
    fn check(&self, kind: IoKind, range: Option<Range>) -> Result<()> {
        let mut state = self.state.lock();
        let found = state.armed.iter().copied().find_map(|number| {
            let (_, rule) = state.rules.iter().find(|(other, _)| *other == number)?;
            match &rule.action {
                Action::Inject { errno, offset, kind: wanted, once } => {
                    let hit = wanted.is_none_or(|wanted| wanted == kind)
                        && offset.is_none_or(|offset| {
                            range.is_some_and(|range| range.start <= offset && offset < range.end())
                        });
                    hit.then_some((number, *errno, *once))
                }
                _ => None,
            }
        });
        let Some((number, errno, once)) = found else { return Ok(()) };
        if once {
            state.armed.retain(|other| *other != number);
            state.rules.retain(|(other, _)| *other != number);
        }
        if errno == 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::from_errno(errno), reason(errno)))
    }

    /// Answers an event with what the rules say. Gives the number of a request that is held up.
    fn react(&self, event: Event) -> Option<u64> {
        let mut held = None;
        let mut tag_held = String::new();
        let wakers = {
            let mut state = self.state.lock();
            let now = state.state;
            let mut next = now;
            let mut armed: Vec<u64> = Vec::new();
            let mut injects = false;
            let mut spent = None;
            for (number, rule) in &state.rules {
                if rule.event != event || (rule.state != 0 && rule.state != now) {
                    continue;
                }
                match &rule.action {
                    Action::Inject { .. } => {
                        injects = true;
                        armed.insert(0, *number);
                    }
                    Action::SetState(new) => next = *new,
                    Action::Suspend(tag) if held.is_none() => {
                        spent = Some(*number);
                        tag_held.clone_from(tag);
                        held = Some(state.next_request);
                    }
                    Action::Suspend(_) => {}
                }
            }
            if injects {
                state.armed = armed;
            }
            state.state = next;
            if let (Some(spent), Some(request)) = (spent, held) {
                // A breakpoint stops one request.
                state.rules.retain(|(number, _)| *number != spent);
                state.next_request += 1;
                state.suspended.push(Suspended { tag: tag_held.clone(), request, waker: None });
                core::mem::take(&mut state.waiting)
            } else {
                Vec::new()
            }
        };
        if held.is_some() {
            self.tell(&alloc::format!("blkdebug: Suspended request '{tag_held}'"));
        }
        for waker in wakers {
            waker.wake();
        }
        held
    }

    async fn until_resumed(&self, request: u64) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match state.suspended.iter_mut().find(|suspended| suspended.request == request) {
                Some(suspended) => {
                    suspended.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl State {
    fn add(&mut self, rule: Rule) {
        // Rules about nothing in particular count from the start.
        if let (Event::None, Action::Inject { .. }) = (rule.event, &rule.action) {
            self.armed.insert(0, self.next_rule);
        }
        self.rules.push((self.next_rule, rule));
        self.next_rule += 1;
    }
}

/// The part of a range that consists of whole units, if there is one. Units need not be powers of two.
fn aligned_part(range: Range, unit: u64) -> Option<Range> {
    let unit = unit.max(1);
    let start = range.start.checked_next_multiple_of(unit)?;
    let end = range.end() - range.end() % unit;
    (start < end).then(|| Range::new(start, end - start))
}

fn unmet(name: &str, value: u64) -> Error {
    Error::invalid(alloc::format!("Cannot meet constraints with {name} {value}"))
}

/// What Linux calls an errno value.
fn reason(errno: i32) -> String {
    #[cfg(feature = "std")]
    {
        let text = std::io::Error::from_raw_os_error(errno).to_string();
        text.split(" (os error").next().unwrap_or(&text).to_string()
    }
    #[cfg(not(feature = "std"))]
    alloc::format!("injected error {errno}")
}

fn number<T: core::str::FromStr>(options: &mut Options, name: &str, default: T) -> Result<T> {
    match options.take(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Error::invalid(alloc::format!("Parameter '{name}' expects a number"))),
    }
}

fn event(options: &mut Options) -> Result<Event> {
    match options.take("event") {
        None => Err(Error::invalid("Missing event name for rule")),
        Some(name) => {
            Event::by_name(&name).ok_or_else(|| Error::invalid(alloc::format!("Invalid event name \"{name}\"")))
        }
    }
}

fn inject_rule(mut options: Options) -> Result<Rule> {
    let event = event(&mut options)?;
    let state = number(&mut options, "state", 0)?;
    let errno = number(&mut options, "errno", 5)?;
    let offset = match number(&mut options, "sector", -1i64)? {
        sector @ 0.. => Some((sector as u64).saturating_mul(512)),
        _ => None,
    };
    let kind = match options.take("iotype") {
        None => None,
        Some(name) => match IoKind::ALL.iter().find(|(_, known)| *known == name) {
            Some((kind, _)) => Some(*kind),
            None => return Err(Error::invalid(alloc::format!("Invalid iotype '{name}'"))),
        },
    };
    let once = options.take_switch("once")?.unwrap_or(false);
    options.take_switch("immediately")?;
    options.finish("blkdebug")?;
    Ok(Rule { event, state, action: Action::Inject { errno, offset, kind, once } })
}

fn state_rule(mut options: Options) -> Result<Rule> {
    let event = event(&mut options)?;
    let state = number(&mut options, "state", 0)?;
    let fallback = number(&mut options, "new-state", 0)?;
    let next = number(&mut options, "new_state", fallback)?;
    options.finish("blkdebug")?;
    Ok(Rule { event, state, action: Action::SetState(next) })
}

/// Reads a configuration file: sections `[inject-error]` and `[set-state]` with lines `name = "value"`.
///
/// # Errors
/// A line is none of these, or a value is not allowed.
pub fn parse_config(text: &str, name: &str) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    let mut section: Option<(&str, Options)> = None;
    let mut finish = |section: Option<(&str, Options)>| -> Result<()> {
        match section {
            Some(("inject-error", options)) => rules.push(inject_rule(options)?),
            Some((_, options)) => rules.push(state_rule(options)?),
            None => {}
        }
        Ok(())
    };
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = || Error::invalid(alloc::format!("{name}:{}: parse error", index + 1));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            // A section may have a name of its own, in quotes.
            let title = title.split_whitespace().next().unwrap_or_default();
            if !["inject-error", "set-state"].contains(&title) {
                return Err(Error::invalid(alloc::format!("There is no option group '{title}'")));
            }
            finish(section.replace((title, Options::new())))?;
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(wrong)?;
        let value = value.trim().strip_prefix('"').and_then(|value| value.strip_suffix('"')).ok_or_else(wrong)?;
        section.as_mut().ok_or_else(|| Error::invalid("no group defined"))?.1.set(name.trim(), value);
    }
    finish(section)?;
    Ok(rules)
}

/// A range in pieces of at most `most` bytes.
fn pieces(range: Range, most: u64) -> impl Iterator<Item = Range> {
    let count = range.len.div_ceil(most);
    (0..count).map(move |index| {
        let start = range.start + index * most;
        Range::new(start, most.min(range.end() - start))
    })
}

impl Node for Blkdebug {
    fn info(&self) -> NodeInfo {
        NodeInfo { request_alignment: self.alignment, ..self.image.info() }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        match self.check(IoKind::BlockStatus, Some(range)) {
            Ok(()) => Op::future(contents(&self.image, range, want)),
            Err(error) => Op::err(error),
        }
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: ReadFlags) -> Op<'a, ()> {
        let most = self.most.transfer;
        if into.len() as u64 > most {
            return Op::future(async move {
                for (place, part) in pieces(Range::new(at, into.len() as u64), most).zip(into.chunks_mut(most as usize))
                {
                    self.read(place.start, part, flags).await?;
                }
                Ok(())
            });
        }
        match self.check(IoKind::Read, Some(Range::new(at, into.len() as u64))) {
            Ok(()) => self.image.read(at, within(&*self.image, at, into), flags),
            Err(error) => Op::err(error),
        }
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        let most = self.most.transfer;
        if from.len() as u64 > most {
            return Op::future(async move {
                for (place, part) in pieces(Range::new(at, from.len() as u64), most).zip(from.chunks(most as usize)) {
                    self.write(place.start, part, flags).await?;
                }
                Ok(())
            });
        }
        match self.check(IoKind::Write, Some(Range::new(at, from.len() as u64))) {
            Ok(()) => self.image.write(at, from, flags),
            Err(error) => Op::err(error),
        }
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        // What is not a multiple of the optimal length is a write.
        let Some(middle) = aligned_part(range, self.zero_alignment) else {
            return Op::err(Error::unsupported("zeroing less than the optimal length is a write"));
        };
        if middle == range && range.len > self.most.zero {
            return Op::future(async move {
                for piece in pieces(range, self.most.zero) {
                    self.write_zeroes(piece, flags).await?;
                }
                Ok(())
            });
        }
        if middle == range {
            return match self.check(IoKind::WriteZeroes, Some(range)) {
                Ok(()) => self.image.write_zeroes(range, flags),
                Err(error) => Op::err(error),
            };
        }
        Op::future(async move {
            let head = Range::new(range.start, middle.start - range.start);
            let tail = Range::new(middle.end(), range.end() - middle.end());
            self.write_zeroes(middle, flags).await?;
            for part in [head, tail] {
                if part.len > 0 {
                    self.write(part.start, &alloc::vec![0; part.len as usize], flags).await?;
                }
            }
            Ok(())
        })
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        // The optimal length is a hint; what is not made of whole blocks is left out.
        let Some(middle) = aligned_part(range, self.alignment.into()) else { return Op::ok(()) };
        if middle.len > self.most.discard {
            // Pieces end where the optimal length says, from the first on.
            let to_boundary = middle.start.next_multiple_of(self.discard_alignment) - middle.start;
            let head = Range::new(middle.start, to_boundary.min(middle.len));
            let rest = Range::new(head.end(), middle.len - head.len);
            return Op::future(async move {
                for piece in [head].into_iter().chain(pieces(rest, self.most.discard)).filter(|piece| piece.len > 0) {
                    self.discard(piece).await?;
                }
                Ok(())
            });
        }
        match self.check(IoKind::Discard, Some(middle)) {
            Ok(()) => self.image.discard(middle),
            Err(error) => Op::err(error),
        }
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        match self.check(IoKind::Flush, None) {
            Ok(()) => self.image.flush(),
            Err(error) => Op::err(error),
        }
    }

    fn event<'a>(&'a self, event: Event) -> Op<'a, ()> {
        match self.react(event) {
            None => Op::ok(()),
            Some(request) => Op::future(async move {
                self.until_resumed(request).await;
                Ok(())
            }),
        }
    }

    fn listens(&self) -> bool {
        true
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        self.image.resize(length, preallocation)
    }

    fn child(&self, role: Role) -> Option<Arc<dyn Node>> {
        (role == Role::File).then(|| self.image.clone())
    }

    hand_on!(image: close);

    fn is_disk(&self) -> bool {
        self.image.is_disk()
    }

    fn filtered(&self) -> Option<Arc<dyn Node>> {
        self.image.is_disk().then(|| self.image.clone())
    }

    fn name(&self) -> String {
        self.image.name()
    }

    fn identity(&self) -> String {
        self.image.identity()
    }

    fn allocated(&self) -> Option<u64> {
        self.image.allocated()
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
    use alloc::vec;

    fn over_memory(options: &str, config: &str) -> Blkdebug {
        let rules = parse_config(config, "test.conf").unwrap();
        let mut options = Options::parse(options).unwrap();
        let node = Blkdebug::new(Memory::new(vec![0; 4096]), &rules, &mut options, None).unwrap();
        assert!(options.is_empty());
        node
    }

    fn read(node: &Blkdebug, at: u64) -> Result<()> {
        block_on(node.read(at, &mut [0; 512], ReadFlags::default()))
    }

    #[test]
    fn an_error_is_armed_by_its_event_and_fires_once() {
        let node = over_memory(
            "inject-error.0.event=read_aio,inject-error.0.errno=28,inject-error.0.sector=2,inject-error.0.once=on",
            "",
        );
        read(&node, 1024).unwrap();
        block_on(node.event(Event::ReadAio)).unwrap();
        read(&node, 0).unwrap();
        assert_eq!(read(&node, 1024).unwrap_err().kind(), ErrorKind::NoSpace);
        block_on(node.event(Event::ReadAio)).unwrap();
        read(&node, 1024).unwrap();
    }

    #[test]
    fn states_decide_which_rules_count() {
        let config = "[inject-error]\nevent = \"l2_load\"\nstate = \"2\"\n\n[set-state]\nstate = \"1\"\nevent = \"l1_update\"\nnew_state = \"2\"\n";
        let node = over_memory("", config);
        block_on(node.event(Event::L2Load)).unwrap();
        read(&node, 0).unwrap();
        block_on(node.event(Event::L1Update)).unwrap();
        block_on(node.event(Event::L2Load)).unwrap();
        assert_eq!(read(&node, 0).unwrap_err().kind(), ErrorKind::Io);
        assert!(read(&node, 0).is_err(), "it stays armed");
    }

    #[test]
    fn a_breakpoint_holds_one_request_up() {
        let node = over_memory("", "");
        node.add_breakpoint(Event::WriteAio, "A");
        let mut held = node.event(Event::WriteAio).into_future();
        let mut cx = core::task::Context::from_waker(Waker::noop());
        use core::future::{Future, IntoFuture};
        assert!(core::pin::Pin::new(&mut held).poll(&mut cx).is_pending());
        assert!(node.is_suspended("A") && !node.is_suspended("B"));
        block_on(node.event(Event::WriteAio)).unwrap();
        assert!(node.resume("A"));
        assert!(core::pin::Pin::new(&mut held).poll(&mut cx).is_ready());
        assert!(!node.resume("A"));
    }

    #[test]
    fn limits_must_fit_each_other() {
        for (text, name) in [
            ("align=3", "align 3"),
            ("align=512,max-transfer=100", "max-transfer 100"),
            ("opt-write-zero=64k,max-write-zero=32k", "max-write-zero 32768"),
            ("opt-discard=64k,max-discard=4k", "max-discard 4096"),
        ] {
            let mut options = Options::parse(text).unwrap();
            let error = Blkdebug::new(Memory::new(vec![]), &[], &mut options, None).unwrap_err();
            assert_eq!(error.problem().to_string(), alloc::format!("Cannot meet constraints with {name}"));
        }
    }

    #[test]
    fn a_configuration_that_makes_no_sense_is_refused() {
        for (text, message) in [
            ("[bogus]", "There is no option group 'bogus'"),
            ("event = \"read_aio\"", "no group defined"),
            ("[inject-error]\nnonsense", "c:2: parse error"),
            ("[inject-error]\nevent = \"bogus\"", "Invalid event name \"bogus\""),
            ("[inject-error]\nerrno = \"5\"", "Missing event name for rule"),
        ] {
            assert_eq!(parse_config(text, "c").unwrap_err().problem().to_string(), message);
        }
    }
}
