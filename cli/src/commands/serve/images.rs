//! The files that are served: what they are called, what they are like now, and who may change them.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diskette::describe::NamedFile;
use diskette::native::{File, FileOptions, beside, identity, resolve};
use diskette::protocols::nbd::parse_name;
use diskette::{Error, ErrorKind, Node, OpenOptions, Preallocation, ReadFlags, Role, WriteFlags, block_on};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde_json::{Value as Json, json};

use super::guard::secret;
use super::underway::Begun;
use crate::args::ServeArgs;
use crate::open::explain;
use crate::{Failure, program};

/// A page that has not been heard of for so long can be succeeded by another one.
const SILENCE: Duration = Duration::from_secs(60);
/// More files than this are no chain that anybody looks at.
const MAX_FILES: usize = 256;

/// Why something is not done, for the page.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    /// The methods that would be answered.
    pub(super) allow: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Refusal { status, kind, message: message.into(), allow: None }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::ReadOnly | ErrorKind::Denied | ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorKind::Invalid | ErrorKind::TooLarge => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, error.kind(), explain(&error, ""))
    }
}

impl Refusal {
    /// It came after a change had begun: the status does not say that nothing was done.
    fn halfway(self) -> Self {
        let status = if self.status.is_server_error() { self.status } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self { status, ..self }
    }
}

/// A change of a file.
pub(super) enum Change {
    Write(u64, Bytes),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Resize(u64),
}

/// A file that is served.
pub(super) struct Served {
    name: String,
    format: Option<String>,
    /// Whether the user named it, rather than another image.
    is_named: bool,
    pub(super) writable: bool,
    file: Arc<File>,
    identity: String,
    /// Counts changes made here, which are more than a clock can tell apart.
    changes: AtomicU64,
    /// Held while the file changes, so that nobody sees its length halfway or becomes the writer meanwhile.
    changing: Mutex<()>,
    writer: Mutex<Option<Writer>>,
    references: Vec<Named>,
}

/// The page that may change a file.
struct Writer {
    id: String,
    heard: Instant,
    /// There while it has changed something and has not flushed that: it may not be done.
    unflushed: Option<Begun>,
}

/// A file that an image names.
struct Named {
    name: String,
    role: Role,
    /// Its place in the list, if it is served.
    image: Option<usize>,
}

/// What a file is like now.
pub(super) struct Now {
    pub(super) length: u64,
    /// Differs after every change.
    pub(super) tag: String,
    /// How many changes were made here.
    pub(super) changes: u64,
}

impl Now {
    /// Fails if a request expects tags and the file has none of them (RFC 9110, 13.1.1).
    pub(super) fn check<'a>(&self, expected: impl IntoIterator<Item = &'a HeaderValue>) -> Result<(), Refusal> {
        let mut expected = expected.into_iter().peekable();
        let is_ours = |tag: &str| tag == self.tag || tag == "*";
        let lists =
            |value: &HeaderValue| value.to_str().is_ok_and(|tags| tags.split(',').any(|tag| is_ours(tag.trim())));
        if expected.peek().is_none() || expected.any(lists) {
            return Ok(());
        }
        let message = "the file has changed since then; open it again";
        Err(Refusal::new(StatusCode::PRECONDITION_FAILED, ErrorKind::Io, message))
    }
}

/// Opens the images, and with `--follow` the files that they name.
pub(super) fn open_all(args: &ServeArgs) -> Result<Vec<Arc<Served>>, Failure> {
    let mut images: Vec<Served> = Vec::new();
    let options = FileOptions { read_only: !args.writable, force_share: args.force_share, ..FileOptions::default() };
    for name in &args.files {
        if known(&images, name).is_some() {
            continue;
        }
        let file = File::open(name, options)
            .map_err(|error| Failure::new(format!("Could not serve '{name}': {}", explain(&error, name))))?;
        images.push(Served::new(name.clone(), args.format.clone(), true, args.writable, file));
    }
    if args.follow {
        let mut next = 0;
        while next < images.len() {
            follow(&mut images, next, args.force_share)?;
            next += 1;
        }
    }
    Ok(images.into_iter().map(Arc::new).collect())
}

/// Adds the files that an image names.
fn follow(images: &mut Vec<Served>, index: usize, force_share: bool) -> Result<(), Failure> {
    let note = |text: String| eprintln!("{}: {text}", program::name());
    let image = &images[index];
    let (from, format) = (image.name.clone(), image.format.clone());
    let options = OpenOptions { format, structure_only: true, name: Some(from.clone()), ..OpenOptions::default() };
    let opened = block_on(diskette::open(image.file.clone(), &options)).and_then(|image| image.describe());
    let details = match opened {
        Ok(details) => details,
        // The page shows what is wrong with it.
        Err(error) => {
            note(format!("'{from}' cannot be followed: {}", explain(&error, &from)));
            return Ok(());
        }
    };
    for (role, named) in [(Role::Backing, details.backing), (Role::DataFile, details.data_file)] {
        let Some(named) = named else { continue };
        let image = match place_of(images, &named, role, &from, force_share) {
            Ok(place) => Some(place),
            Err(why) => {
                note(format!("'{}', which '{from}' names, is not served: {why}", named.name));
                None
            }
        };
        if images.len() > MAX_FILES {
            return Err(Failure::new(format!("'{from}' is one of more than {MAX_FILES} files that images name")));
        }
        images[index].references.push(Named { name: named.name, role, image });
    }
    Ok(())
}

/// Where in the list the file is that an image names; it is added if it is not there.
fn place_of(
    images: &mut Vec<Served>,
    named: &NamedFile,
    role: Role,
    from: &str,
    force_share: bool,
) -> Result<usize, String> {
    let name = &named.name;
    let path = if role == Role::DataFile {
        // The name of a data file is a path, whatever it looks like.
        beside(name, from)
    } else if parse_name(name).is_some() {
        return Err("it is no file".to_string());
    } else {
        resolve(name, from).map_err(|error| explain(&error, ""))?
    };
    // A file that is open for writing cannot be opened once more.
    if let Some(place) = known(images, &path) {
        return Ok(place);
    }
    let options = FileOptions { read_only: true, force_share, ..FileOptions::default() };
    let file = File::open(&path, options).map_err(|error| explain(&error, name))?;
    let format = if role == Role::DataFile { Some("raw".to_string()) } else { named.format.clone() };
    images.push(Served::new(path, format, false, false, file));
    Ok(images.len() - 1)
}

/// Where in the list the file is that a path leads to.
fn known(images: &[Served], path: &str) -> Option<usize> {
    let identity = std::fs::metadata(path).ok().map(|metadata| identity(&metadata))?;
    images.iter().position(|image| image.identity == identity)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Served {
    fn new(name: String, format: Option<String>, is_named: bool, writable: bool, file: Arc<File>) -> Self {
        let identity = file.identity();
        let (changes, changing, writer) = (AtomicU64::new(0), Mutex::new(()), Mutex::new(None));
        let references = Vec::new();
        Served { name, format, is_named, writable, file, identity, changes, changing, writer, references }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the page is told about the file.
    pub(super) fn describe(&self, index: usize) -> Json {
        let (size, problem) = match self.now() {
            Ok(now) => (Some(now.length), None),
            Err(refusal) => (None, Some(refusal.message)),
        };
        let references: Vec<Json> = self
            .references
            .iter()
            .map(|named| json!({ "name": named.name, "role": named.role.name(), "image": named.image }))
            .collect();
        json!({
            "name": self.name,
            "size": size,
            "problem": problem,
            "url": format!("images/{index}"),
            "format": self.format,
            "writable": self.writable,
            "named": self.is_named,
            "references": references,
        })
    }

    /// What the file is like now, if it is still the one that was opened.
    pub(super) fn now(&self) -> Result<Now, Refusal> {
        let _still = self.writable.then(|| lock(&self.changing));
        self.look()
    }

    fn look(&self) -> Result<Now, Refusal> {
        let gone = |what: String| {
            let message = format!("'{}' {what} since it was opened; start 'diskette serve' again", self.name);
            Refusal::new(StatusCode::GONE, ErrorKind::NotFound, message)
        };
        let metadata = std::fs::metadata(&self.name).map_err(|error| gone(format!("has gone ({error})")))?;
        if identity(&metadata) != self.identity {
            return Err(gone("has been replaced by another file".to_string()));
        }
        let opened = self.file.info().length;
        let length = if self.file.is_device() { opened } else { metadata.len() };
        if self.writable && length != opened {
            let message = format!(
                "'{}' has {length} bytes and should have {opened}: another program has changed it; close that program, look \
                 at the image with 'diskette check', and start 'diskette serve' again",
                self.name
            );
            return Err(Refusal::new(StatusCode::CONFLICT, ErrorKind::Busy, message));
        }
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let changes = self.changes.load(Ordering::Acquire);
        let tag = format!("\"{:x}-{length:x}-{seconds:x}.{nanoseconds:x}-{changes:x}\"", metadata.ino());
        Ok(Now { length, tag, changes })
    }

    /// Bytes of the file as it was after so many changes made here; fails if there are more by now.
    pub(super) fn read(&self, at: u64, len: usize, changes: u64) -> Result<Bytes, Error> {
        let mut bytes = vec![0; len];
        block_on(self.file.read(at, &mut bytes, ReadFlags::default()))?;
        // A change is counted before it is made.
        if self.changes.load(Ordering::Acquire) != changes {
            let text = format!("'{}' was changed while a part of it was sent", self.name);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(bytes.into())
    }

    /// Changes the file for the page that is its writer, if it still has the tags that the page expects; the answer is
    /// what it is like then.
    pub(super) fn change(
        &self,
        begun: Begun,
        writer: Option<&str>,
        expected: &[HeaderValue],
        change: &Change,
    ) -> Result<Now, Refusal> {
        let _alone = lock(&self.changing);
        // What was announced by the writer may have come when another page was.
        self.check_writer(writer)?;
        self.look()?.check(expected)?;
        self.changes.fetch_add(1, Ordering::AcqRel);
        let outcome = self.apply(change).map_err(Refusal::from).and_then(|()| self.look());
        if let Some(now) = lock(&self.writer).as_mut().filter(|now| Some(now.id.as_str()) == writer) {
            // While a change takes its time, its page is silent for a good reason.
            now.heard = Instant::now();
            now.unflushed.get_or_insert(begun);
        }
        outcome.map_err(Refusal::halfway)
    }

    fn apply(&self, change: &Change) -> Result<(), Error> {
        let span = |range: &Range<u64>| diskette::Range::new(range.start, range.end - range.start);
        match change {
            Change::Write(at, bytes) => block_on(self.file.write(*at, bytes, WriteFlags::default())),
            Change::Zero(range) => {
                let flags = WriteFlags { may_unmap: true, ..WriteFlags::default() };
                block_on(self.file.write_zeroes(span(range), flags))
            }
            Change::Discard(range) => block_on(self.file.discard(span(range))),
            Change::Resize(length) => block_on(self.file.resize(*length, Preallocation::Off)),
        }
    }

    /// Makes a page the writer of this file, unless another one is. `own` is what it was called before. A change that
    /// has begun is waited for.
    pub(super) fn hand_over(&self, own: Option<&str>) -> Result<String, Refusal> {
        if !self.writable {
            return Err(self.only_read());
        }
        let _still = lock(&self.changing);
        let mut writer = lock(&self.writer);
        if let Some(now) = writer.as_mut() {
            if own == Some(now.id.as_str()) {
                now.heard = Instant::now();
                return Ok(now.id.clone());
            }
            if let Some(left) = SILENCE.checked_sub(now.heard.elapsed()) {
                let message = format!(
                    "another page changes '{}'; close it, or wait for {} seconds",
                    self.name,
                    left.as_secs() + 1
                );
                return Err(Refusal::new(StatusCode::CONFLICT, ErrorKind::Busy, message));
            }
        }
        let id = secret().map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
        *writer = Some(Writer { id: id.clone(), heard: Instant::now(), unflushed: None });
        Ok(id)
    }

    /// Fails unless the page is the writer of this file.
    pub(super) fn check_writer(&self, id: Option<&str>) -> Result<(), Refusal> {
        let mut writer = lock(&self.writer);
        match (writer.as_mut(), id) {
            (Some(now), Some(id)) if now.id == id => {
                now.heard = Instant::now();
                Ok(())
            }
            _ if !self.writable => Err(self.only_read()),
            (_, Some(_)) => {
                let message = format!("another page has taken over '{}'; open it again", self.name);
                Err(Refusal::new(StatusCode::CONFLICT, ErrorKind::Busy, message))
            }
            (_, None) => {
                let message = "a change names its writer; a POST to 'writer' makes a page the writer";
                Err(Refusal::new(StatusCode::PRECONDITION_REQUIRED, ErrorKind::Busy, message))
            }
        }
    }

    fn only_read(&self) -> Refusal {
        let why = if self.is_named {
            "'diskette serve --writable' lets the page change images"
        } else {
            "only images that are named on the command line can be changed"
        };
        Refusal::new(StatusCode::FORBIDDEN, ErrorKind::ReadOnly, format!("'{}' is only read; {why}", self.name))
    }

    /// The page will not change the file any more.
    pub(super) fn let_go(&self, id: &str) {
        let mut writer = lock(&self.writer);
        if writer.as_ref().is_some_and(|now| now.id == id) {
            *writer = None;
        }
    }

    /// Everything written is where a power cut does not reach it.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let changes = self.changes.load(Ordering::Acquire);
        block_on(self.file.flush())?;
        if let Some(writer) = lock(&self.writer).as_mut().filter(|_| self.changes.load(Ordering::Acquire) == changes) {
            writer.unflushed = None;
        }
        Ok(())
    }
}
