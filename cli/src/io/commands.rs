//! The commands: what they are called, what they take, what they do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diskette::drivers::Drivers;
use diskette::engine::status::Chain;
use diskette::event::Event;
use diskette::filters::Blkdebug;
use diskette::options::Options;
use diskette::{Error, Image, Node, Preallocation, Range, ReadFlags, Want, WriteFlags, block_on};

use super::discard_mode;
use super::getopt::Given;
use super::shell::Shell;
use super::text::{Report, amount, dump, length, number, pattern, reason};
use crate::image_opts::split_options;
use crate::open::cache_mode;
use crate::{Failure, human, output};

/// What buffers are filled with unless a command says otherwise, as QEMU fills them.
const FILLING: u8 = 0xcd;
const SECTOR: u64 = 512;

/// Why a command did not succeed.
pub(super) enum Problem {
    /// It has been said already.
    Said,
    /// A line for standard output.
    Text(String),
    /// A message for standard error.
    Failure(Failure),
    /// The arguments make no sense.
    Usage,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Problem::Failure(failure)
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Problem::Text(text)
    }
}

pub(super) type Outcome = Result<(), Problem>;

pub(super) struct Command {
    pub(super) name: &'static str,
    short: &'static str,
    /// Letters, with a colon after those that take a value.
    pub(super) options: &'static str,
    /// Fewest and most words that follow the name.
    words: (usize, Option<usize>),
    pub(super) needs_image: bool,
    synopsis: &'static str,
    about: &'static str,
    pub(super) run: fn(&mut Shell, &Given) -> Outcome,
}

impl Command {
    /// The command in one line, by the name that was used for it.
    pub(super) fn one_line(&self, name: &str) -> String {
        let space = if self.synopsis.is_empty() { "" } else { " " };
        format!("{name}{space}{} -- {}", self.synopsis, self.about)
    }

    pub(super) fn wrong_count(&self, name: &str, count: usize) -> Option<String> {
        let (fewest, most) = self.words;
        if count >= fewest && most.is_none_or(|most| count <= most) {
            return None;
        }
        let wanted = match most {
            None => format!("at least {fewest} arguments"),
            Some(most) if most == fewest => format!("{fewest} arguments"),
            Some(most) => format!("between {fewest} and {most} arguments"),
        };
        Some(format!("bad argument count {count} to {name}, expected {wanted}"))
    }
}

macro_rules! commands {
    ($($name:literal $short:literal $options:literal $words:expr, $needs:literal, $synopsis:literal, $about:literal, $run:expr;)*) => {
        const COMMANDS: &[Command] = &[$(Command {
            name: $name, short: $short, options: $options, words: $words, needs_image: $needs,
            synopsis: $synopsis, about: $about, run: $run,
        }),*];
    };
}

commands! {
    "abort" "" "" (0, Some(0)), false, "", "simulate a program crash using abort(3)", |_, _| std::process::abort();
    "aio_flush" "" "" (0, Some(0)), true, "", "completes all outstanding aio requests", |shell, _| { shell.drain(); Ok(()) };
    "aio_read" "" "CiP:qrv" (2, None), true, "[-Ciqrv] [-P pattern] off len [len..]", "asynchronously reads a number of bytes", aio_read;
    "aio_write" "" "CfiP:qruz" (2, None), true, "[-Cfiqruz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes", aio_write;
    "alloc" "a" "" (1, Some(2)), true, "offset [count]", "checks if offset is allocated in the file", alloc;
    "break" "" "" (2, Some(2)), true, "event tag", "sets a breakpoint on event and tags the stopped request as tag", set_break;
    "close" "c" "" (0, Some(0)), false, "", "close the current open file", |shell, _| { shell.close(); Ok(()) };
    "discard" "d" "Cq" (2, None), true, "[-Cq] off len", "discards a number of bytes at a specified offset", discard;
    "flush" "f" "" (0, Some(0)), true, "", "flush all in-core file state to disk", flush;
    "help" "?" "" (0, Some(1)), false, "[command]", "help for one or all commands", help;
    "info" "i" "" (0, Some(0)), true, "", "prints information about the current file", info;
    "length" "l" "" (0, Some(0)), true, "", "gets the length of the current file", print_length;
    "map" "" "" (0, Some(0)), true, "", "prints the allocated areas of a file", map;
    "open" "o" "rsCnkUt:d:o:i:" (1, None), false, "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path", open;
    "quit" "q" "" (0, Some(0)), false, "", "exit the program", |shell, _| { shell.quit(); Ok(()) };
    "read" "r" "bCl:pP:qrs:v" (2, None), true, "[-abCqrv] [-P pattern [-s off] [-l len]] off len", "reads a number of bytes at a specified offset", read;
    "readv" "rv" "CP:qrv" (2, None), true, "[-Cqrv] [-P pattern] off len [len..]", "reads a number of bytes at a specified offset", readv;
    "remove_break" "" "" (1, Some(1)), true, "tag", "remove a breakpoint by tag", remove_break;
    "reopen" "" "c:o:rw" (0, None), true, "[(-r|-w)] [-c cache] [-o options]", "reopens an image with new options", reopen;
    "resume" "" "" (1, Some(1)), true, "tag", "resumes the request tagged as tag", resume;
    "sigraise" "" "" (1, Some(1)), false, "signal", "raises a signal", sigraise;
    "sleep" "" "" (1, Some(1)), false, "", "waits for the given value in milliseconds", sleep;
    "truncate" "t" "m:" (1, Some(3)), true, "[-m prealloc_mode] off", "truncates the current file at the given offset", truncate;
    "wait_break" "" "" (1, Some(1)), true, "tag", "waits for the suspension of a request", wait_break;
    "write" "w" "bcCfnpP:qrs:uz" (2, None), true, "[-bcCfnqruz] [-P pattern | -s source_file] off len", "writes a number of bytes at a specified offset", write;
    "writev" "" "CfP:qr" (2, None), true, "[-Cfqr] [-P pattern] off len [len..]", "writes a number of bytes at a specified offset", writev;
    "zone_append" "zap" "" (3, Some(4)), true, "offset len [len..]", "append write a number of bytes at a specified offset", |_, given| zones(given, "append");
    "zone_close" "zc" "" (2, Some(2)), true, "offset len", "close a range of zones in zone block device", |_, given| zones(given, "close");
    "zone_finish" "zf" "" (2, Some(2)), true, "offset len", "finish a range of zones in zone block device", |_, given| zones(given, "finish");
    "zone_open" "zo" "" (2, Some(2)), true, "offset len", "explicit open a range of zones in zone block device", |_, given| zones(given, "open");
    "zone_report" "zrp" "" (2, Some(2)), true, "offset number", "report zone information", |_, given| zones(given, "report");
    "zone_reset" "zrs" "" (2, Some(2)), true, "offset len", "reset a zone write pointer in zone block device", |_, given| zones(given, "reset");
}

pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || (!command.short.is_empty() && command.short == name))
}

fn help(_: &mut Shell, given: &Given) -> Outcome {
    let Some(name) = given.arguments.first() else {
        for command in COMMANDS {
            output::line(&command.one_line(command.name));
        }
        output::print("\nUse 'help commandname' for extended help.\n");
        return Ok(());
    };
    let command = find(name).ok_or_else(|| format!("command {name} not found"))?;
    output::line(&command.one_line(name));
    Ok(())
}

/// Offset and total length of a request with one or more lengths.
fn lengths(given: &Given) -> Result<(u64, usize), Problem> {
    let (offset, rest) = given.arguments.split_first().ok_or(Problem::Usage)?;
    let offset = number(offset)?;
    if rest.is_empty() {
        return Err(Problem::Usage);
    }
    let mut total = 0usize;
    for text in rest {
        total = total.saturating_add(length(text)?);
    }
    Ok((offset, total))
}

/// Offset and length of a request with just these two.
fn two(given: &Given) -> Result<(u64, usize), Problem> {
    let [offset, len] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    Ok((number(offset)?, length(len)?))
}

/// What a finished request says.
fn report(given: &Given, verb: &str, offset: u64, len: usize, begun: Instant) -> String {
    if given.has('q') {
        return String::new();
    }
    let len = len as u64;
    let report =
        Report { verb, offset, asked: len, done: len, requests: 1, took: begun.elapsed(), machine: given.has('C') };
    report.text()
}

fn read(shell: &mut Shell, given: &Given) -> Outcome {
    let expected = given.value('P').map(pattern).transpose()?;
    if expected.is_none() && (given.has('l') || given.has('s')) {
        return Err(Problem::Usage);
    }
    let (offset, len) = two(given)?;
    let start = given.value('s').map_or(Ok(0), length)?;
    let count = given.value('l').map_or(Ok(len.saturating_sub(start)), length)?;
    if start.saturating_add(count) > len {
        return Err("pattern verification range exceeds end of read data".to_string().into());
    }
    if given.has('b') {
        aligned(offset, len)?;
    }
    let image = shell.image()?;
    let mut buffer = vec![0xab; len];
    let begun = Instant::now();
    let result = if given.has('b') {
        block_on(image.read_vm_state(offset, &mut buffer))
    } else {
        block_on(image.read(offset, &mut buffer, ReadFlags::default()))
    };
    result.map_err(|error| format!("read failed: {}", reason(&error)))?;
    finish_read(given, expected, (start, count), offset, &buffer, begun)
}

fn readv(shell: &mut Shell, given: &Given) -> Outcome {
    let expected = given.value('P').map(pattern).transpose()?;
    let (offset, len) = lengths(given)?;
    let image = shell.image()?;
    let mut buffer = vec![0xab; len];
    let begun = Instant::now();
    block_on(image.read(offset, &mut buffer, ReadFlags::default()))
        .map_err(|error| format!("readv failed: {}", reason(&error)))?;
    finish_read(given, expected, (0, len), offset, &buffer, begun)
}

/// Compares, dumps and reports what was read.
fn finish_read(
    given: &Given,
    expected: Option<u8>,
    (start, count): (usize, usize),
    offset: u64,
    buffer: &[u8],
    begun: Instant,
) -> Outcome {
    let (text, matched) = read_text(given, expected, (start, count), offset, buffer, begun);
    output::print(&text);
    if matched { Ok(()) } else { Err(Problem::Said) }
}

fn read_text(
    given: &Given,
    expected: Option<u8>,
    (start, count): (usize, usize),
    offset: u64,
    buffer: &[u8],
    begun: Instant,
) -> (String, bool) {
    let done = report(given, "read", offset, buffer.len(), begun);
    let mut text = String::new();
    let part = buffer.get(start..start + count).unwrap_or_default();
    let matched = expected.is_none_or(|byte| part.iter().all(|found| *found == byte));
    if !matched {
        text.push_str(&format!("Pattern verification failed at offset {}, {count} bytes\n", offset + start as u64));
    }
    if given.has('v') && !given.has('q') {
        text.push_str(&dump(buffer, offset));
    }
    (text + &done, matched)
}

fn aligned(offset: u64, len: usize) -> Outcome {
    for (value, what) in [(offset, "offset"), (len as u64, "count")] {
        if value % SECTOR != 0 {
            return Err(format!("{value} is not a sector-aligned value for '{what}'").into());
        }
    }
    Ok(())
}

/// The bytes to write: of a file, over and over, or one byte.
fn filling(given: &Given, len: usize) -> Result<Vec<u8>, Problem> {
    let Some(path) = given.value('s') else {
        return Ok(vec![given.value('P').map_or(Ok(FILLING), pattern)?; len]);
    };
    let bytes = std::fs::read(path).map_err(|error| {
        let text = error.to_string();
        eprintln!("{path}: {}", text.split(" (os error").next().unwrap_or_default());
        Problem::Said
    })?;
    if bytes.is_empty() {
        eprintln!("{path}: file is empty");
        return Err(Problem::Said);
    }
    Ok(bytes.iter().copied().cycle().take(len).collect())
}

fn write(shell: &mut Shell, given: &Given) -> Outcome {
    let (state, compressed, zero) = (given.has('b'), given.has('c'), given.has('z'));
    if given.has('P') && given.value('P').map(pattern).transpose().is_err() {
        pattern(given.value('P').unwrap_or_default())?;
    }
    if state && zero {
        return Err("-b and -z cannot be specified at the same time".to_string().into());
    }
    if given.has('f') && (state || compressed) {
        return Err("-f and -b or -c cannot be specified at the same time".to_string().into());
    }
    for (letter, name) in [('n', "-n"), ('u', "-u")] {
        if given.has(letter) && !zero {
            return Err(format!("{name} requires -z to be specified").into());
        }
    }
    if usize::from(zero) + usize::from(given.has('P')) + usize::from(given.has('s')) > 1 {
        return Err("Only one of -z, -P, and -s can be specified at the same time".to_string().into());
    }
    let (offset, len) = two(given)?;
    if state || compressed {
        aligned(offset, len)?;
    }
    let image = shell.image()?;
    refuse_read_only(&image)?;
    let bytes = if zero { Vec::new() } else { filling(given, len)? };
    let flags = WriteFlags {
        force_unit_access: given.has('f'),
        may_unmap: given.has('u'),
        no_fallback: given.has('n'),
        compressed: compressed && !zero,
        ..WriteFlags::default()
    };
    let begun = Instant::now();
    let result = if zero {
        block_on(image.write_zeroes(Range::new(offset, len as u64), flags))
    } else if state {
        block_on(image.write_vm_state(offset, &bytes))
    } else {
        block_on(image.write(offset, &bytes, flags))
    };
    result.map_err(|error| format!("write failed: {}", reason(&error)))?;
    output::print(&report(given, "wrote", offset, len, begun));
    Ok(())
}

fn writev(shell: &mut Shell, given: &Given) -> Outcome {
    let byte = given.value('P').map_or(Ok(FILLING), pattern)?;
    let (offset, len) = lengths(given)?;
    let image = shell.image()?;
    refuse_read_only(&image)?;
    let flags = WriteFlags { force_unit_access: given.has('f'), ..WriteFlags::default() };
    let begun = Instant::now();
    block_on(image.write(offset, &vec![byte; len], flags))
        .map_err(|error| format!("writev failed: {}", reason(&error)))?;
    output::print(&report(given, "wrote", offset, len, begun));
    Ok(())
}

fn refuse_read_only(image: &Arc<Image>) -> Outcome {
    if image.info().read_only {
        return Err(Failure::new("Block node is read-only").into());
    }
    Ok(())
}

fn aio_read(shell: &mut Shell, given: &Given) -> Outcome {
    let expected = given.value('P').map(pattern).transpose()?;
    let (offset, len) = lengths(given)?;
    let image = shell.image()?;
    let given = given.flags();
    shell.in_background(async move {
        let mut buffer = vec![0xab; len];
        let begun = Instant::now();
        match image.read(offset, &mut buffer, ReadFlags::default()).await {
            Ok(()) => read_text(&given, expected, (0, len), offset, &buffer, begun).0,
            Err(error) => format!("readv failed: {}\n", reason(&error)),
        }
    });
    Ok(())
}

fn aio_write(shell: &mut Shell, given: &Given) -> Outcome {
    let zero = given.has('z');
    if given.has('u') && !zero {
        return Err("-u requires -z to be specified".to_string().into());
    }
    if zero && given.has('P') && given.arguments.len() > 2 {
        return Err("-z supports only a single length parameter".to_string().into());
    }
    let byte = given.value('P').map_or(Ok(FILLING), pattern)?;
    let (offset, len) = lengths(given)?;
    let image = shell.image()?;
    refuse_read_only(&image)?;
    let flags = WriteFlags { force_unit_access: given.has('f'), may_unmap: given.has('u'), ..WriteFlags::default() };
    let given = given.flags();
    shell.in_background(async move {
        let begun = Instant::now();
        let result = if zero {
            image.write_zeroes(Range::new(offset, len as u64), flags).await
        } else {
            image.write(offset, &vec![byte; len], flags).await
        };
        match result {
            Ok(()) => report(&given, "wrote", offset, len, begun),
            Err(error) => format!("aio_write failed: {}\n", reason(&error)),
        }
    });
    Ok(())
}

fn discard(shell: &mut Shell, given: &Given) -> Outcome {
    let (offset, len) = two(given)?;
    let image = shell.image()?;
    refuse_read_only(&image)?;
    let begun = Instant::now();
    block_on(image.discard(Range::new(offset, len as u64)))
        .map_err(|error| format!("discard failed: {}", reason(&error)))?;
    output::print(&report(given, "discard", offset, len, begun));
    Ok(())
}

/// Zones belong to devices that are read and written through another interface; no disk here has any.
fn zones(given: &Given, operation: &str) -> Outcome {
    for text in &given.arguments {
        number(text)?;
    }
    Err(format!("zone {operation} failed: Operation not supported").into())
}

fn flush(shell: &mut Shell, _: &Given) -> Outcome {
    block_on(shell.image()?.flush()).map_err(|error| Failure::new(reason(&error)))?;
    Ok(())
}

fn truncate(shell: &mut Shell, given: &Given) -> Outcome {
    let mode = match given.value('m') {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(Failure::new(format!("Invalid preallocation mode '{other}'")).into()),
    };
    let [length] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    let length = number(length)?;
    block_on(shell.image()?.resize(length, mode)).map_err(Failure::from)?;
    Ok(())
}

fn print_length(shell: &mut Shell, _: &Given) -> Outcome {
    output::line(&amount(shell.image()?.info().length as f64));
    Ok(())
}

fn info(shell: &mut Shell, _: &Given) -> Outcome {
    let image = shell.image()?;
    let name = format!("format name: {}\n", image.format_name());
    let mut text = name.clone();
    if Drivers::all().by_name(image.format_name()).is_none() {
        // What is no format is named as the protocol, too, and has none of these.
        text.push_str(&name);
    } else {
        text.push_str(&format!(
            "cluster size: {}\nvm state offset: {}\n",
            amount(f64::from(image.info().cluster_size.unwrap_or(0))),
            amount(image.vm_state_offset().unwrap_or(0) as f64)
        ));
    }
    let details = image.describe().map_err(Failure::from)?;
    if !details.specific.is_empty() {
        text.push_str("Format specific information:\n");
        human::properties(&details.specific, 1, &mut text);
    }
    output::print(&text);
    Ok(())
}

/// Whether the start of a range is allocated in the image itself, and how far that goes.
fn allocation(chain: &Chain, range: Range) -> Result<(bool, u64), Error> {
    let status = block_on(chain.status(range, Want::Allocation))?;
    Ok((status.depth == 0 && status.present, status.len))
}

fn alloc(shell: &mut Shell, given: &Given) -> Outcome {
    let [offset, rest @ ..] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    let start = number(offset)?;
    let count = rest.first().map_or(Ok(SECTOR), |text| number(text))?;
    let image = shell.image()?;
    let length = image.info().length;
    let end = start.saturating_add(count).min(length).max(start);
    let chain = Chain::of(image);
    let (mut at, mut allocated) = (start, 0);
    while at < end {
        let (is_allocated, len) = allocation(&chain, Range::new(at, end - at))
            .map_err(|error| format!("is_allocated failed: {}", reason(&error)))?;
        allocated += if is_allocated { len } else { 0 };
        at += len;
    }
    let asked = count.min(length.saturating_sub(start));
    output::line(&format!("{allocated}/{asked} bytes allocated at offset {}", amount(start as f64)));
    Ok(())
}

fn map(shell: &mut Shell, _: &Given) -> Outcome {
    let image = shell.image()?;
    let length = image.info().length;
    let chain = Chain::of(image);
    let mut at = 0;
    while at < length {
        let (is_allocated, mut len) = allocation(&chain, Range::new(at, length - at)).map_err(stopped)?;
        while at + len < length {
            let (next, more) = allocation(&chain, Range::new(at + len, length - at - len)).map_err(stopped)?;
            if next != is_allocated {
                break;
            }
            len += more;
        }
        let what = if is_allocated { "    allocated" } else { "not allocated" };
        output::line(&format!(
            "{} ({len:#x}) bytes {what} at offset {} ({at:#x})",
            amount(len as f64),
            amount(at as f64)
        ));
        at += len;
    }
    Ok(())
}

fn stopped(error: Error) -> Problem {
    Failure::new(format!("Failed to get allocation status: {}", reason(&error))).into()
}

fn open(shell: &mut Shell, given: &Given) -> Outcome {
    let mut how = shell.defaults();
    how.read_only |= given.has('r');
    how.snapshot |= given.has('s');
    how.copy_on_read |= given.has('C');
    how.force_share |= given.has('U');
    if given.has('n') {
        how.cache = Some(cache_mode("none", "")?);
    }
    if let Some(cache) = given.value('t') {
        how.cache = Some(cache_mode(cache, "")?);
    }
    if let Some(mode) = given.value('d') {
        how.discard = discard_mode(mode)?;
    }
    match (given.value('o'), given.arguments.as_slice()) {
        (None, [name]) => {
            let image_opts = how.image_opts;
            shell.open(name, None, image_opts, Options::new(), how)?;
        }
        (Some(options), []) => shell.open(options, None, true, Options::new(), how)?,
        (Some(options), [name]) => {
            let options = Options::parse(options).map_err(Failure::from)?;
            shell.open(name, None, false, options, how)?;
        }
        _ => return Err(Problem::Usage),
    }
    Ok(())
}

/// Whether an open image can get another value of the option: it says how the image is used, not which it is.
fn changeable(name: &str, format: &str) -> bool {
    let known = Drivers::all().by_name(format).is_some_and(|driver| driver.open_options.contains(&name));
    known && name != "data-file" && !name.starts_with("data-file.")
}

fn reopen(shell: &mut Shell, given: &Given) -> Outcome {
    if !given.arguments.is_empty() {
        return Err(Problem::Usage);
    }
    if given.has('r') && given.has('w') {
        return Err(Failure::new("Only one -r/-w option may be given").into());
    }
    let cache = given.value('c').map(|name| cache_mode(name, "")).transpose()?;
    let options = given.value('o').map(split_options).transpose()?.unwrap_or_default();
    let mut options = Options::from(options);
    if options.value("read-only").is_some() && (given.has('r') || given.has('w')) {
        return Err(Failure::new("Cannot set both -r/-w and 'read-only'").into());
    }
    if cache.is_some() && options.iter().any(|(name, _)| name.starts_with("cache.")) {
        return Err(Failure::new("Cannot set both -c and the cache options").into());
    }
    for name in ["auto-read-only", "cache.direct", "cache.no-flush"] {
        // Looked at here, and taken when the image is opened.
        options.clone().take_switch(name).map_err(Failure::from)?;
    }
    let read_only = options.take_switch("read-only").map_err(Failure::from)?;
    let image = shell.image()?;
    let mut unchanged = Vec::new();
    for (name, value) in options.iter() {
        if shell.option(name).is_some_and(|now| now == value) {
            unchanged.push(name.to_string());
        } else if !changeable(name, image.format_name())
            && !["auto-read-only", "cache.direct", "cache.no-flush"].contains(&name)
        {
            let own = name.rsplit('.').next().unwrap_or(name);
            return Err(Failure::new(format!("Cannot change the option '{own}'")).into());
        }
    }
    for name in unchanged {
        options.take(&name);
    }
    drop(image);
    let asked = if given.has('w') { Some(true) } else { given.has('r').then_some(false) };
    let writable = asked.or(read_only.map(|read_only| !read_only));
    shell.reopen(|wish| {
        wish.writable = writable.unwrap_or(wish.writable);
        wish.cache = cache.unwrap_or(wish.cache);
        for (name, value) in options.iter() {
            wish.options.set(name, value);
        }
    })?;
    Ok(())
}

/// The node of the image that has breakpoints, if there is one.
fn with_debug<R>(image: &Arc<Image>, run: impl FnOnce(&Blkdebug) -> R) -> Option<R> {
    let mut node = image.child(diskette::Role::File)?;
    loop {
        if let Some(found) = node.as_any().and_then(|any| any.downcast_ref::<Blkdebug>()) {
            return Some(run(found));
        }
        node = node.child(diskette::Role::File)?;
    }
}

fn set_break(shell: &mut Shell, given: &Given) -> Outcome {
    let [name, tag] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    let image = shell.image()?;
    let event = Event::by_name(name);
    match event.and_then(|event| with_debug(&image, |node| node.add_breakpoint(event, tag))) {
        Some(()) => Ok(()),
        None => Err(Failure::new("Could not set a breakpoint: No such file or directory").into()),
    }
}

fn remove_break(shell: &mut Shell, given: &Given) -> Outcome {
    let [tag] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    match with_debug(&shell.image()?, |node| node.remove_breakpoint(tag)) {
        Some(true) => Ok(()),
        _ => Err(Failure::new(format!("Could not remove breakpoint {tag}: No such file or directory")).into()),
    }
}

fn resume(shell: &mut Shell, given: &Given) -> Outcome {
    let [tag] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    match with_debug(&shell.image()?, |node| node.resume(tag)) {
        Some(true) => Ok(()),
        _ => Err(Failure::new("Could not resume request: No such file or directory").into()),
    }
}

fn wait_break(shell: &mut Shell, given: &Given) -> Outcome {
    let [tag] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    shell.step();
    match with_debug(&shell.image()?, |node| node.is_suspended(tag)) {
        Some(true) => Ok(()),
        _ => Err(Failure::new(format!("no request is going to be held up under '{tag}'")).into()),
    }
}

fn sleep(_: &mut Shell, given: &Given) -> Outcome {
    let [text] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    let milliseconds = text.parse().map_err(|_| format!("{text} is not a valid number"))?;
    std::thread::sleep(Duration::from_millis(milliseconds));
    Ok(())
}

fn sigraise(_: &mut Shell, given: &Given) -> Outcome {
    let [text] = given.arguments.as_slice() else { return Err(Problem::Usage) };
    let signal = i32::try_from(number(text)?).map_err(|_| format!("signal argument '{text}' is out of range"))?;
    // What was printed comes first, whatever the signal does.
    output::flush();
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("could not raise signal {signal}: {error}"));
    if signal == 0 {
        return Ok(());
    }
    let signal = nix::sys::signal::Signal::try_from(signal).map_err(|error| failed(&error))?;
    nix::sys::signal::raise(signal).map_err(|error| Problem::Failure(failed(&error)))
}

#[cfg(test)]
mod tests {
    use diskette::ErrorKind;

    use super::*;

    #[test]
    fn an_error_of_every_kind_has_a_reason() {
        assert_eq!(reason(&Error::new(ErrorKind::Io, "x")), "Input/output error");
        assert_eq!(reason(&Error::new(ErrorKind::NoSpace, "x")), "No space left on device");
    }
}
