//! Requests to an export, and what comes back.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use super::handshake::Export;
use super::wire::{CHUNK_MAGIC, Chunk, Command, MAX_TEXT_BYTES, Request, SIMPLE_MAGIC, SimpleReply, flag, shown};
use super::{Channel, Failure, violation};
use crate::error::{Error, ErrorKind, Result};

/// Most pieces that do not touch each other among the data of a reply.
const MAX_PIECES: usize = 4096;
/// Most errors in one reply.
const MAX_ERRORS: usize = 16;
/// Longest block status in bytes. One extent was asked for; some servers send more.
const MAX_STATUS_BYTES: u32 = 1 << 20;
/// The server is about to end, as an errno value.
const SHUTDOWN: u32 = 108;

/// What a server says about a range: its length and flags whose meaning depends on the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Length in bytes, never 0.
    pub len: u64,
    /// In `base:allocation`, 1 for a hole and 2 for what reads as zeroes.
    pub flags: u32,
}

/// The requests of one connection. They are made one after the other.
#[derive(Debug)]
pub struct Session {
    export: Export,
    cookie: u64,
}

/// The first part of an answer.
enum Head {
    /// It is done. The data of a read follows.
    Simple,
    Chunk(Chunk),
}

impl Session {
    /// A session that begins now.
    pub fn new(export: Export) -> Self {
        Session { export, cookie: 0 }
    }

    /// What the server said about the export on this connection.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Fills `into`, at most [`Export::maximum_block`] bytes, from `offset` on.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn read(&mut self, channel: &mut dyn Channel, offset: u64, into: &mut [u8]) -> Result<(), Failure> {
        self.send(channel, Command::Read, 0, offset, into.len() as u64, &[])?;
        let mut answer = Answer::default();
        let mut covered = Covered::default();
        loop {
            let chunk = match self.head(channel)? {
                Head::Simple if self.export.structured => {
                    return broken("the server answers a read with a simple reply where chunks were agreed on");
                }
                Head::Simple => return channel.receive(into).map_err(Failure::Lost),
                Head::Chunk(chunk) => chunk,
            };
            match chunk.kind {
                Chunk::DATA => {
                    let Some(len @ 1..) = chunk.len.checked_sub(8) else {
                        return broken(format!("a chunk of data is {} bytes long, too short for any", chunk.len));
                    };
                    let at = u64::from_be_bytes(receive_array(channel)?);
                    let piece = covered.place(offset, into, at, len)?;
                    channel.receive(piece).map_err(Failure::Lost)?;
                }
                Chunk::HOLE => {
                    if chunk.len != 12 {
                        return broken(format!("a chunk for a hole is {} bytes long, not 12", chunk.len));
                    }
                    let at = u64::from_be_bytes(receive_array(channel)?);
                    let len = u32::from_be_bytes(receive_array(channel)?);
                    covered.place(offset, into, at, len)?.fill(0);
                }
                _ => answer.take(channel, chunk)?,
            }
            if chunk.flags & Chunk::DONE != 0 {
                break;
            }
        }
        answer.result()?;
        if covered.bytes != into.len() as u64 {
            return broken(format!("the server sent {} of {} bytes", covered.bytes, into.len()));
        }
        Ok(())
    }

    /// A request whose answer is yes or no, with the data of a write.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn command(
        &mut self,
        channel: &mut dyn Channel,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        self.send(channel, command, flags, offset, len, data)?;
        let mut answer = Answer::default();
        loop {
            match self.head(channel)? {
                Head::Simple => return Ok(()),
                Head::Chunk(chunk) => {
                    answer.take(channel, chunk)?;
                    if chunk.flags & Chunk::DONE != 0 {
                        return answer.result();
                    }
                }
            }
        }
    }

    /// What the start of a range holds, in the context that was agreed on.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn status(
        &mut self,
        channel: &mut dyn Channel,
        context: u32,
        offset: u64,
        len: u64,
    ) -> Result<Status, Failure> {
        self.send(channel, Command::BlockStatus, flag::REQUEST_ONE, offset, len, &[])?;
        let mut answer = Answer::default();
        let mut found = None;
        loop {
            let chunk = match self.head(channel)? {
                Head::Simple => return broken("the server answers a question for block status with a simple reply"),
                Head::Chunk(chunk) => chunk,
            };
            if chunk.kind == Chunk::BLOCK_STATUS {
                let status = receive_status(channel, chunk.len, context)?;
                if found.replace(status).is_some() {
                    return broken("the server sent block status twice");
                }
            } else {
                answer.take(channel, chunk)?;
            }
            if chunk.flags & Chunk::DONE != 0 {
                break;
            }
        }
        answer.result()?;
        match found {
            Some(status) => Ok(Status { len: status.len.min(len), ..status }),
            None => broken("the server sent no block status"),
        }
    }

    /// Says goodbye. There is no answer.
    pub fn disconnect(&mut self, channel: &mut dyn Channel) {
        // Who does not hear it sees the connection end.
        let _ = self.send(channel, Command::Disconnect, 0, 0, 0, &[]);
    }

    fn send(
        &mut self,
        channel: &mut dyn Channel,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        let len = u32::try_from(len)
            .map_err(|_| Failure::Refused(Error::invalid(format!("a request for {len} bytes is too long"))))?;
        self.cookie = self.cookie.wrapping_add(1);
        let request = Request { command, flags, cookie: self.cookie, offset, len };
        channel.send(&request.encode()).map_err(Failure::Lost)?;
        if data.is_empty() { Ok(()) } else { channel.send(data).map_err(Failure::Lost) }
    }

    /// The first part of what comes next, which must belong to the last request, unless that is that it failed.
    fn head(&self, channel: &mut dyn Channel) -> Result<Head, Failure> {
        let magic = u32::from_be_bytes(receive_array(channel)?);
        let (head, cookie) = match magic {
            SIMPLE_MAGIC => {
                let reply = SimpleReply::parse(&receive_array(channel)?);
                let head = if reply.error == 0 { Ok(Head::Simple) } else { Err(refused(reply.error, &[])) };
                (head, reply.cookie)
            }
            CHUNK_MAGIC if self.export.structured => {
                let chunk = Chunk::parse(&receive_array(channel)?);
                (Ok(Head::Chunk(chunk)), chunk.cookie)
            }
            CHUNK_MAGIC => return broken("the server answers in chunks, which nobody agreed on"),
            _ => return broken(format!("invalid magic 0x{magic:08x} of a reply")),
        };
        if cookie != self.cookie {
            return broken(format!("the server answers request {cookie} where {} was made", self.cookie));
        }
        head
    }
}

/// What the chunks of an answer say besides data.
#[derive(Default)]
struct Answer {
    /// The first error.
    error: Option<Failure>,
    errors: usize,
}

impl Answer {
    /// Takes a chunk that is an error or nothing.
    fn take(&mut self, channel: &mut dyn Channel, chunk: Chunk) -> Result<(), Failure> {
        if chunk.kind & Chunk::ERROR != 0 {
            self.errors += 1;
            if self.errors > MAX_ERRORS {
                return broken(format!("more than {MAX_ERRORS} errors for one request"));
            }
            let error = receive_error(channel, chunk)?;
            self.error.get_or_insert(error);
            return Ok(());
        }
        if chunk.kind != Chunk::NONE {
            return broken(format!("Unexpected reply type {} for this request", chunk.kind));
        }
        if chunk.flags & Chunk::DONE == 0 || chunk.len != 0 {
            return broken("an empty chunk is not empty, or not the last one");
        }
        Ok(())
    }

    fn result(self) -> Result<(), Failure> {
        self.error.map_or(Ok(()), Err)
    }
}

/// Which bytes of a read have come.
#[derive(Default)]
struct Covered {
    /// Start and end of what does not touch each other, in order.
    pieces: Vec<(u64, u64)>,
    bytes: u64,
}

impl Covered {
    /// The part of `into`, which begins at `offset`, that a chunk for `at` fills.
    fn place<'a>(&mut self, offset: u64, into: &'a mut [u8], at: u64, len: u32) -> Result<&'a mut [u8], Failure> {
        let whole = into.len() as u64;
        let start = at.checked_sub(offset);
        let end = start.and_then(|start| start.checked_add(len.into()));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= whole && len > 0)) else {
            return broken(format!(
                "the server sent {len} bytes for offset {at} where {whole} bytes of offset {offset} were asked for"
            ));
        };
        let after = self.pieces.partition_point(|(_, known)| *known < start);
        // The first piece that ends at or behind the start, and the one behind it, are all that can touch.
        let overlaps = |piece: Option<&(u64, u64)>| piece.is_some_and(|(from, to)| *from < end && start < *to);
        if overlaps(self.pieces.get(after)) || overlaps(self.pieces.get(after + 1)) {
            return broken(format!("the server sent the data of offset {at} twice"));
        }
        let joins_before = self.pieces.get(after).is_some_and(|(_, to)| *to == start);
        let next = if joins_before { after + 1 } else { after };
        let joins_next = self.pieces.get(next).is_some_and(|(from, _)| *from == end);
        match (joins_before, joins_next) {
            (true, true) => {
                let (_, to) = self.pieces.remove(next);
                if let Some(piece) = self.pieces.get_mut(after) {
                    piece.1 = to;
                }
            }
            (true, false) => {
                if let Some(piece) = self.pieces.get_mut(after) {
                    piece.1 = end;
                }
            }
            (false, true) => {
                if let Some(piece) = self.pieces.get_mut(next) {
                    piece.0 = start;
                }
            }
            (false, false) => self.pieces.insert(after, (start, end)),
        }
        if self.pieces.len() > MAX_PIECES {
            return broken("the server sent data in too many pieces");
        }
        self.bytes += u64::from(len);
        Ok(into.get_mut(start as usize..end as usize).unwrap_or_default())
    }
}

/// The first extent of a block status, of which the rest is left out.
fn receive_status(channel: &mut dyn Channel, len: u32, context: u32) -> Result<Status, Failure> {
    let extents = len.checked_sub(4).filter(|rest| *rest >= 8 && rest.is_multiple_of(8));
    let Some(extents) = extents.filter(|_| len <= MAX_STATUS_BYTES) else {
        return broken(format!("block status of {len} bytes cannot be"));
    };
    let number = u32::from_be_bytes(receive_array(channel)?);
    if number != context {
        return broken(format!("block status of context {number} where {context} was agreed on"));
    }
    let extent: [u8; 8] = receive_array(channel)?;
    let status = Status { len: BigEndian::read_u32(&extent[..4]).into(), flags: BigEndian::read_u32(&extent[4..]) };
    if status.len == 0 {
        return broken("block status of an empty extent");
    }
    let mut rest = (extents - 8) as usize;
    let mut ignored = [0; 4096];
    while rest > 0 {
        let count = rest.min(ignored.len());
        channel.receive(ignored.get_mut(..count).unwrap_or_default()).map_err(Failure::Lost)?;
        rest -= count;
    }
    Ok(status)
}

fn receive_error(channel: &mut dyn Channel, chunk: Chunk) -> Result<Failure, Failure> {
    let has_offset = chunk.kind == Chunk::ERROR_OFFSET;
    let tail = if has_offset { 8 } else { 0 };
    if chunk.len < 6 + tail || chunk.len > 6 + MAX_TEXT_BYTES as u32 + tail {
        return broken(format!("an error of {} bytes cannot be", chunk.len));
    }
    let mut buffer = alloc::vec![0; chunk.len as usize];
    channel.receive(&mut buffer).map_err(Failure::Lost)?;
    let (Some((head, rest)), true) = (buffer.split_at_checked(6), !buffer.is_empty()) else {
        return broken("an error without a number");
    };
    let (number, count) = (BigEndian::read_u32(&head[..4]), usize::from(BigEndian::read_u16(&head[4..6])));
    let known = [Chunk::ERROR | 1, Chunk::ERROR_OFFSET].contains(&chunk.kind);
    let fits = if known { rest.len() == count + tail as usize } else { count <= rest.len() };
    if number == 0 || !fits {
        return broken(format!("error {number} with a message of {count} bytes does not fit in {}", chunk.len));
    }
    Ok(refused(number, rest.get(..count).unwrap_or_default()))
}

/// What the server says went wrong.
fn refused(number: u32, message: &[u8]) -> Failure {
    let kind = i32::try_from(number).map_or(ErrorKind::Io, ErrorKind::from_errno);
    let said = if message.is_empty() { String::new() } else { format!(": {}", shown(message)) };
    let error = Error::new(kind, format!("the server reports error {number}{said}"));
    if number == SHUTDOWN { Failure::Lost(error) } else { Failure::Refused(error) }
}

fn broken<T>(text: impl core::fmt::Display) -> Result<T, Failure> {
    Err(Failure::Violation(violation(text)))
}

fn receive_array<const N: usize>(channel: &mut dyn Channel) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    channel.receive(&mut bytes).map_err(Failure::Lost)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_may_come_in_any_order_but_only_once() {
        let mut buffer = [0; 16];
        let mut covered = Covered::default();
        for (at, len, fits) in [
            (104, 4, true),
            (100, 2, true),
            (100, 1, false),
            (103, 2, false),
            (110, 6, true),
            (102, 2, true),
            (108, 2, true),
            (99, 1, false),
            (115, 2, false),
            (116, 1, false),
            (100, 0, false),
            (u64::MAX, u32::MAX, false),
        ] {
            assert_eq!(covered.place(100, &mut buffer, at, len).is_ok(), fits, "{at} {len}");
        }
        assert_eq!((covered.bytes, covered.pieces.as_slice()), (16, [(0, 16)].as_slice()));
    }
}
