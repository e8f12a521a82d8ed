//! Bytes on their way: answers that are read from a file piece by piece, and connections that do not wait for ever.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Sleep, sleep};

use super::images::Served;
use crate::open::explain;
use crate::program;

/// As much of a file is in memory for an answer.
const PIECE_BYTES: u64 = 256 << 10;

/// What an answer holds.
pub(super) enum Answer {
    /// Bytes that are there.
    Bytes(Bytes),
    /// A part of a file.
    Part(Part),
}

/// A part of a file that is read as it is sent, all of it as it was after so many changes.
pub(super) struct Part {
    file: Arc<Served>,
    changes: u64,
    left: Range<u64>,
    piece: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Part {
    pub(super) fn new(file: Arc<Served>, changes: u64, range: Range<u64>) -> Self {
        Part { file, changes, left: range, piece: None }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.piece.get_or_insert_with(|| {
            let (file, changes, at) = (self.file.clone(), self.changes, self.left.start);
            let len = (self.left.end - at).min(PIECE_BYTES) as usize;
            spawn_blocking(move || {
                file.read(at, len, changes).map_err(|error| {
                    // An answer that has begun can only break off, which says nothing.
                    eprintln!("{}: {}", program::name(), explain(&error, ""));
                    io::Error::other(error)
                })
            })
        });
        let read = ready!(Pin::new(piece).poll(cx)).unwrap_or_else(|error| Err(io::Error::other(error)));
        self.piece = None;
        match &read {
            Ok(bytes) => self.left.start += bytes.len() as u64,
            Err(_) => self.left.start = self.left.end,
        }
        Poll::Ready(Some(read))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match &mut *self {
            Answer::Bytes(bytes) if bytes.is_empty() => None,
            Answer::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Answer::Part(part) => ready!(part.poll_piece(cx)),
        };
        Poll::Ready(piece.map(|read| read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Bytes(bytes) => bytes.is_empty(),
            Answer::Part(part) => part.left.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Answer::Bytes(bytes) => bytes.len() as u64,
            Answer::Part(part) => part.left.end - part.left.start,
        })
    }
}

/// A connection that fails when for some time the other side takes nothing of what is sent.
pub(super) struct Patient<I> {
    connection: I,
    patience: Duration,
    /// Runs while nothing moves.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<I> Patient<I> {
    pub(super) fn new(connection: I, patience: Duration) -> Self {
        Patient { connection, patience, timer: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.timer = None;
            return polled;
        }
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: Read + Unpin> Read for Patient<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, into)
    }
}

impl<I: Write + Unpin> Write for Patient<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.connection).poll_write(cx, from);
        self.watch(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.connection).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.connection).poll_shutdown(cx);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.connection).poll_write_vectored(cx, from);
        self.watch(cx, polled)
    }
}
