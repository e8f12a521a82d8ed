//! `serve`: the inspector's page on images of this machine, for a browser on this machine.
//!
//! What is served is behind a random token in the address, and answered only to who knows it and names this server.
//! Images are given by ranges. With `--writable` the page changes them, too, one page at a time.

mod answer;
mod guard;
mod images;
mod page;
mod range;
mod stream;
mod underway;

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::args::ServeArgs;
use crate::{Failure, Outcome, open, output};
use answer::Site;
use guard::Guard;
use page::Page;
use stream::Patient;
use underway::Underway;

/// Connections beyond these wait until one of them ends.
const MAX_CONNECTIONS: usize = 64;
/// Threads that wait for disks.
const MAX_THREADS: usize = 8;
/// As much of a request is kept in memory, and of an answer before it is sent.
const BUFFER_BYTES: usize = 64 << 10;
/// So long changes that have begun may take when the program is told to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// So long it may take then to send the last answers.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &ServeArgs) -> Outcome {
    if args.follow && open::trusts_nobody() {
        return Err(Failure::new("--follow and --untrusted are mutually exclusive"));
    }
    let page = Page::load(args.page.as_deref())?;
    let images = images::open_all(args)?;
    let failed = |error: std::io::Error| Failure::new(format!("Could not serve: {error}"));
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(MAX_THREADS)
        .build()
        .map_err(failed)?;
    let outcome = runtime.block_on(async {
        let port = args.port.unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|error| Failure::new(format!("Could not listen on port {port} of 127.0.0.1: {error}")))?;
        let guard = Guard::new(listener.local_addr().map_err(failed)?.port())
            .map_err(|error| Failure::new(format!("Could not get random numbers: {error}")))?;
        let address = guard.address();
        let patience = Duration::from_secs(args.timeout);
        let site = Arc::new(Site::new(guard, page, images, patience));
        let mut ends = Ends::new().map_err(failed)?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, places.clone(), site.clone(), patience));
        announce(&address, args.writable);
        ends.next().await;
        if !wait(site.underway(), &mut ends).await {
            return finish(cut_off(&site, &site.underway().images()));
        }
        accepting.abort();
        take_leave(&site, &places, &mut ends).await
    });
    // Whatever has not ended by now has been told of.
    runtime.shutdown_background();
    outcome
}

/// Lets changes that have begun run to their end, for a while. Says whether nobody was tired of waiting.
async fn wait(underway: &Underway, ends: &mut Ends) -> bool {
    underway.end();
    if underway.images().is_empty() {
        return true;
    }
    let seconds = FAREWELL.as_secs();
    eprintln!("Waiting for changes of images, for {seconds} seconds at most; Ctrl-C cuts them off.");
    first(timeout(FAREWELL, underway.idle()), ends.next()).await.is_ok()
}

/// Ends connections and flushes the images. What is cut off is a failure.
async fn take_leave(site: &Site, places: &Semaphore, ends: &mut Ends) -> Outcome {
    let underway = site.underway();
    underway.close();
    let _ = timeout(LAST_ANSWERS, places.acquire_many(MAX_CONNECTIONS as u32)).await;
    let busy = underway.images();
    let mut problems = cut_off(site, &busy);
    let mut flushes = Vec::new();
    // Every image is flushed, whatever becomes of the others. A thread of their own is free, whatever others wait for.
    for (index, image) in site.images().iter().enumerate() {
        if image.writable {
            let (done, flushed) = oneshot::channel();
            let file = image.clone();
            std::thread::spawn(move || done.send(file.flush()));
            flushes.push((index, flushed));
        }
    }
    while let Some((index, flushed)) = flushes.pop() {
        let Ok(flushed) = first(flushed, ends.next()).await else {
            let left = flushes.iter().map(|(index, _)| *index).chain([index]);
            problems.extend(left.map(|index| not_flushed(site.images()[index].name())));
            break;
        };
        let name = site.images()[index].name();
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(open::explain(&error, name)),
            Err(_) => problems.push(not_flushed(name)),
        }
    }
    finish(problems)
}

fn finish(problems: Vec<String>) -> Outcome {
    if problems.is_empty() { Ok(0) } else { Err(Failure::new(problems.join("\n"))) }
}

/// What is said of images whose changes have not ended.
fn cut_off(site: &Site, images: &[usize]) -> Vec<String> {
    let images = images.iter().filter_map(|index| site.images().get(*index));
    let said = images.map(|image| {
        format!(
            "a change of '{}' was cut off before it was done; look at the image with 'diskette check'",
            image.name()
        )
    });
    said.collect()
}

fn not_flushed(name: &str) -> String {
    format!("'{name}' was not flushed; what was written last may not survive a power cut")
}

fn announce(address: &str, writable: bool) {
    let how = if writable { "the page can change the images" } else { "images are only read" };
    output::line(address);
    output::flush();
    eprintln!("Open this address in a browser on this machine; who knows it is let in, and {how}. Ctrl-C ends.");
}

/// Signals by which the program is told to end.
struct Ends([Signal; 2]);

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Ends([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        poll_fn(|cx| {
            if self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// The outcome of the one, unless the other comes before it.
async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> Result<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
        Poll::Pending => other.as_mut().poll(cx).map(Err),
    })
    .await
}

async fn accept(listener: TcpListener, places: Arc<Semaphore>, site: Arc<Site>, patience: Duration) {
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = site.clone();
                tokio::spawn(async move {
                    // A browser that goes away is no reason to say anything.
                    let _ = converse(stream, site, patience).await;
                    drop(place);
                });
            }
            // There are too many open files, say.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers the requests of one connection, which ends with the program.
async fn converse(stream: TcpStream, site: Arc<Site>, patience: Duration) -> hyper::Result<()> {
    // An answer is sent in a few large pieces; none of them waits for more.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(Patient::new(TokioIo::new(stream), patience), service);
    let mut connection = pin!(connection);
    match first(connection.as_mut(), site.underway().closing()).await {
        Ok(ended) => ended,
        Err(()) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
