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

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::args::ServeArgs;
use crate::{Failure, Outcome, open, output};
use answer::Site;
use guard::Guard;
use page::Page;
use stream::Patient;

/// Connections beyond these wait until one of them ends.
const MAX_CONNECTIONS: usize = 64;
/// Threads that wait for disks.
const MAX_THREADS: usize = 8;
/// As much of a request is kept in memory, and of an answer before it is sent.
const BUFFER_BYTES: usize = 64 << 10;
/// So long requests that are being answered may take when the program ends.
const FAREWELL: Duration = Duration::from_secs(10);

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
    let served = runtime.block_on(async {
        let port = args.port.unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|error| Failure::new(format!("Could not listen on port {port} of 127.0.0.1: {error}")))?;
        let guard = Guard::new(listener.local_addr().map_err(failed)?.port())
            .map_err(|error| Failure::new(format!("Could not get random numbers: {error}")))?;
        let address = guard.address();
        let patience = Duration::from_secs(args.timeout);
        let site = Arc::new(Site::new(guard, page, images, patience));
        let ended = end_signal().map_err(failed)?;
        tokio::spawn(accept(listener, site.clone(), patience));
        announce(&address, args.writable);
        ended.await;
        Ok::<_, Failure>(site)
    });
    // Changes that have begun run to their end.
    runtime.shutdown_timeout(FAREWELL);
    let mut outcome = Ok(0);
    // Every image is flushed, whatever becomes of the others.
    for image in served?.images().iter().filter(|image| image.writable) {
        if let Err(error) = image.flush() {
            outcome = Err(error.into());
        }
    }
    outcome
}

fn announce(address: &str, writable: bool) {
    let how = if writable { "the page can change the images" } else { "images are only read" };
    output::line(address);
    output::flush();
    eprintln!("Open this address in a browser on this machine; who knows it is let in, and {how}. Ctrl-C ends.");
}

/// Resolves when the program is asked to end.
fn end_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    Ok(std::future::poll_fn(move |cx| {
        if signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    }))
}

async fn accept(listener: TcpListener, site: Arc<Site>, patience: Duration) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, site: Arc<Site>, patience: Duration) -> hyper::Result<()> {
    // An answer is sent in a few large pieces; none of them waits for more.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(Patient::new(TokioIo::new(stream), patience), service)
        .await
}
