//! What is answered to whom.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use diskette::ErrorKind;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_RANGE, LOCATION, RANGE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::guard::Guard;
use super::images::{Change, Now, Refusal, Served};
use super::page::Page;
use super::range::{BadRange, asked, changed};
use super::stream::{Answer, Part};
use super::underway::{Begun, Underway};
use crate::number::MAX_OFFSET;

/// Names the page that changes an image.
const WRITER: HeaderName = HeaderName::from_static("diskette-writer");
/// The kind of a failure, by the names of the library.
const ERROR: HeaderName = HeaderName::from_static("diskette-error");
/// The most that one request writes, and how many are taken in at once.
const MAX_BODY_BYTES: u64 = 8 << 20;
const BODIES_AT_ONCE: usize = 4;
/// A number in a request has no more digits.
const MAX_NUMBER_BYTES: u64 = 20;

/// Everything that is served.
pub(super) struct Site {
    guard: Guard,
    page: Page,
    images: Vec<Arc<Served>>,
    patience: Duration,
    bodies: Semaphore,
    underway: Arc<Underway>,
}

type Reply = Result<Response<Answer>, Refusal>;

impl Site {
    pub(super) fn new(guard: Guard, page: Page, images: Vec<Arc<Served>>, patience: Duration) -> Self {
        let underway = Underway::new(images.len());
        Site { guard, page, images, patience, bodies: Semaphore::new(BODIES_AT_ONCE), underway }
    }

    pub(super) fn images(&self) -> &[Arc<Served>] {
        &self.images
    }

    pub(super) fn underway(&self) -> &Underway {
        &self.underway
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let head_only = request.method() == Method::HEAD;
        let path = match self.guard.admit(request.uri(), request.headers()) {
            Ok(path) => path.to_string(),
            Err(status) => return self.finish(plain(status, "")),
        };
        let response = match self.route(&path, request).await {
            Ok(response) => response,
            Err(refusal) => {
                let mut response = plain(refusal.status, &refusal.message);
                response.headers_mut().insert(ERROR, HeaderValue::from_static(refusal.kind.name()));
                if let Some(methods) = refusal.allow {
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
                }
                response
            }
        };
        let mut response = self.finish(response);
        if head_only {
            // What is not sent is not read, and its length is known all the same.
            let length = response.body().size_hint().exact().unwrap_or(0);
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
            *response.body_mut() = Answer::Bytes(Bytes::new());
        }
        response
    }

    /// Adds what every answer says to browsers.
    fn finish(&self, mut response: Response<Answer>) -> Response<Answer> {
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.page.policy.clone());
        for (name, value) in [
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-store"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    async fn route(&self, path: &str, request: Request<Incoming>) -> Reply {
        let Some(name) = path.strip_prefix('/') else {
            // Names in the page count from the folder.
            let mut response = plain(StatusCode::PERMANENT_REDIRECT, "");
            let location = HeaderValue::from_str(&self.guard.path()).map_err(internal)?;
            response.headers_mut().insert(LOCATION, location);
            return Ok(response);
        };
        if name == "images.json" {
            only_reads(&request)?;
            return self.list().await;
        }
        if let Some(rest) = name.strip_prefix("images/") {
            let (number, verb) = rest.split_once('/').unwrap_or((rest, ""));
            // As the list spells it.
            let index =
                number.parse().ok().filter(|index: &usize| index.to_string() == number).ok_or_else(not_found)?;
            let image = self.images.get(index).ok_or_else(not_found)?.clone();
            return self.image(image, index, verb, request).await;
        }
        let (bytes, kind) = self.page.find(name).ok_or_else(not_found)?;
        only_reads(&request)?;
        asset(bytes, kind, request.headers())
    }

    /// What is served, in JSON.
    async fn list(&self) -> Reply {
        let images = self.images.clone();
        let list =
            move || -> Vec<Json> { images.iter().enumerate().map(|(index, image)| image.describe(index)).collect() };
        let writable = self.images.iter().any(|image| image.writable);
        let list = json!({ "writable": writable, "images": blocking(list).await? });
        Ok(typed(list.to_string().into(), "application/json"))
    }

    async fn image(&self, image: Arc<Served>, index: usize, verb: &str, request: Request<Incoming>) -> Reply {
        let id = writer(&request).map(str::to_string);
        let expected: Vec<HeaderValue> = request.headers().get_all(IF_MATCH).iter().cloned().collect();
        // A change counts from here on, also while what it brings along is still to come.
        let begin = || {
            image.check_writer(id.as_deref())?;
            self.underway.begin(index).ok_or_else(ending)
        };
        match (verb, request.method()) {
            ("", &Method::GET | &Method::HEAD) => part(image, request).await,
            ("", &Method::PATCH) => {
                let begun = begin()?;
                let range = span(&request)?;
                let body = self.body(request, MAX_BODY_BYTES).await?;
                if body.len() as u64 != range.end - range.start {
                    let message = format!("{} bytes came where {range:?} were announced", body.len());
                    return Err(bad(message));
                }
                change(begun, image, id, expected, Change::Write(range.start, body)).await
            }
            ("length", &Method::PUT) => {
                let begun = begin()?;
                let body = self.body(request, MAX_NUMBER_BYTES).await?;
                let length = std::str::from_utf8(&body).ok().and_then(|text| text.parse().ok());
                let length = length.filter(|length| *length <= MAX_OFFSET);
                let length = length.ok_or_else(|| bad("a length is a number below 2^63"))?;
                change(begun, image, id, expected, Change::Resize(length)).await
            }
            ("zero" | "discard", &Method::POST) => {
                let begun = begin()?;
                let range = span(&request)?;
                let wish = if verb == "zero" { Change::Zero(range) } else { Change::Discard(range) };
                change(begun, image, id, expected, wish).await
            }
            ("flush", &Method::POST) => {
                let begun = begin()?;
                flush(begun, image).await
            }
            ("writer", &Method::POST) => {
                let id = blocking(move || image.hand_over(id.as_deref())).await??;
                Ok(typed(json!({ "writer": id }).to_string().into(), "application/json"))
            }
            ("writer", &Method::DELETE) => {
                let begun = begin()?;
                let response = flush(begun, image.clone()).await?;
                image.let_go(&id.unwrap_or_default());
                Ok(response)
            }
            ("", _) => Err(not_allowed("GET, HEAD, PATCH")),
            ("length", _) => Err(not_allowed("PUT")),
            ("zero" | "discard" | "flush", _) => Err(not_allowed("POST")),
            ("writer", _) => Err(not_allowed("POST, DELETE")),
            _ => Err(not_found()),
        }
    }

    /// What a request brings along, of a length that it says before.
    async fn body(&self, request: Request<Incoming>, limit: u64) -> Result<Bytes, Refusal> {
        let mut incoming = request.into_body();
        let refuse = |status, message: String| Refusal::new(status, ErrorKind::Invalid, message);
        let length = incoming.size_hint().exact();
        let length = length
            .ok_or_else(|| refuse(StatusCode::LENGTH_REQUIRED, "the request does not say how long it is".into()))?;
        if length > limit {
            let message = format!("the request brings {length} bytes where at most {limit} are taken");
            return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let _place = self.bodies.acquire().await.map_err(internal)?;
        let receive = async {
            let mut bytes = Vec::with_capacity(length as usize);
            while let Some(frame) =
                std::future::poll_fn(|cx| std::pin::Pin::new(&mut incoming).poll_frame(cx)).await.transpose()?
            {
                bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
            Ok::<_, hyper::Error>(Bytes::from(bytes))
        };
        match tokio::time::timeout(self.patience, receive).await {
            Ok(received) => received.map_err(|error| bad(error.to_string())),
            Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the request took too long".into())),
        }
    }
}

/// A part of an image, or what there is to know of it.
async fn part(image: Arc<Served>, request: Request<Incoming>) -> Reply {
    let headers = request.headers();
    let file = image.clone();
    let now = blocking(move || file.now()).await??;
    let tag = HeaderValue::from_str(&now.tag).map_err(internal)?;
    now.check(headers.get_all(IF_MATCH))?;
    now.check(headers.get_all(IF_RANGE))?;
    let mut response = match ranged(headers, now.length) {
        Ok(Some(range)) => {
            let mut response = Response::new(Answer::Part(Part::new(image, now.changes, range.clone())));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(CONTENT_RANGE, content_range(&range, now.length)?);
            response
        }
        // Of what is not sent only the length is told.
        Ok(None) if request.method() == Method::HEAD => {
            Response::new(Answer::Part(Part::new(image, now.changes, 0..now.length)))
        }
        Ok(None) => return Err(bad("an image is not given as a whole; ask for a range of its bytes")),
        Err(why) => out_of_range(why, now.length)?,
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// A file of the page, or a part of it.
fn asset(bytes: Bytes, kind: &'static str, headers: &HeaderMap) -> Reply {
    let length = bytes.len() as u64;
    let mut response = match ranged(headers, length) {
        Ok(Some(range)) => {
            let part = bytes.slice(range.start as usize..range.end as usize);
            let mut response = typed(part, kind);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(CONTENT_RANGE, content_range(&range, length)?);
            response
        }
        Ok(None) => typed(bytes, kind),
        Err(why) => out_of_range(why, length)?,
    };
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

/// The change counts as under way until it is done, even if nobody waits for it any more.
async fn change(
    begun: Begun,
    image: Arc<Served>,
    writer: Option<String>,
    expected: Vec<HeaderValue>,
    change: Change,
) -> Reply {
    done(&blocking(move || image.change(begun, writer.as_deref(), &expected, &change)).await??)
}

/// Others need not wait for it.
async fn flush(begun: Begun, image: Arc<Served>) -> Reply {
    let flush = move || {
        let _begun = begun;
        image.flush()?;
        image.now()
    };
    done(&blocking(flush).await??)
}

/// A change has been made, and this is what the file is like now.
fn done(now: &Now) -> Reply {
    let mut response = plain(StatusCode::NO_CONTENT, "");
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().insert(ETAG, HeaderValue::from_str(&now.tag).map_err(internal)?);
    Ok(response)
}

/// Runs what may wait for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(work).await.map_err(internal)
}

/// The range that a request asks for, if it asks for one.
fn ranged(headers: &HeaderMap, length: u64) -> Result<Option<Range<u64>>, BadRange> {
    let mut values = headers.get_all(RANGE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadRange::Several);
    }
    asked(value.to_str().map_err(|_| BadRange::Malformed)?, length).map(Some)
}

fn out_of_range(why: BadRange, length: u64) -> Reply {
    let message = match why {
        BadRange::Malformed => return Err(bad("this is no range of bytes; one is 'bytes=FIRST-LAST'")),
        BadRange::Several => "one range at a time".to_string(),
        BadRange::Beyond => format!("the range begins behind the end; the file has {length} bytes"),
    };
    let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, &message);
    let range = HeaderValue::from_str(&format!("bytes */{length}")).map_err(internal)?;
    response.headers_mut().insert(CONTENT_RANGE, range);
    Ok(response)
}

fn content_range(range: &Range<u64>, length: u64) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(&format!("bytes {}-{}/{length}", range.start, range.end - 1)).map_err(internal)
}

/// The bytes that a change names.
fn span(request: &Request<Incoming>) -> Result<Range<u64>, Refusal> {
    let value = request.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    value.and_then(changed).ok_or_else(|| bad("a change names its bytes: 'Content-Range: bytes FIRST-LAST/*'"))
}

fn writer(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(WRITER).and_then(|value| value.to_str().ok())
}

fn only_reads(request: &Request<Incoming>) -> Result<(), Refusal> {
    match request.method() {
        &Method::GET | &Method::HEAD => Ok(()),
        _ => Err(not_allowed("GET, HEAD")),
    }
}

fn typed(bytes: Bytes, kind: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::Bytes(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Answer> {
    let mut response = typed(text.to_string().into(), "text/plain; charset=utf-8");
    *response.status_mut() = status;
    response
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, ErrorKind::Invalid, message)
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "there is nothing of that name here")
}

fn ending() -> Refusal {
    let message = "'diskette serve' has been told to end, and changes nothing more";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, message)
}

fn not_allowed(methods: &'static str) -> Refusal {
    Refusal { allow: Some(methods), ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Unsupported, methods) }
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Io, error.to_string())
}
