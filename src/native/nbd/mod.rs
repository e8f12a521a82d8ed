//! [`Nbd`]: an export of an NBD server as a leaf node.

mod pool;
mod socket;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use std::format;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::node::{
    Extent, Host, Node, NodeInfo, Preallocation, Range, ReadFlags, Role, State, Want, WriteFlags, check_bounds,
};
use crate::op::Op;
use crate::protocols::nbd::wire::{Command, flag};
use crate::protocols::nbd::{Export, Settings};
use pool::Pool;

/// Time that a server may take between two signs of life, unless the caller says otherwise: long enough for a flush of
/// all memory of a large machine.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Largest range that is zeroed or forgotten by one request.
const EFFECT_BYTES: u64 = 1 << 30;
/// Flags of `base:allocation`: a hole, zeroes.
const HOLE: u32 = 1;
const ZERO: u32 = 2;

/// An export of an NBD server.
///
/// Calls wait for the server's answer. Requests of several threads are made side by side if the server allows more than
/// one connection.
pub struct Nbd {
    pool: Pool,
    name: String,
    read_only: bool,
    /// The context that block status is of, if not `base:allocation`.
    context: Option<String>,
}

impl core::fmt::Debug for Nbd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Nbd").field("name", &self.name).field("export", self.pool.export()).finish_non_exhaustive()
    }
}

impl Nbd {
    /// Connects to the server and asks for the export.
    ///
    /// # Errors
    /// The server cannot be reached, has no such export or does not speak the protocol, or the export can only be read
    /// and `read_only` is not set.
    pub fn open(settings: &Settings, read_only: bool) -> Result<Arc<Self>> {
        Self::open_patiently(settings, read_only, DEFAULT_PATIENCE)
    }

    /// As [`Nbd::open`], with another time that the server may take for an answer.
    ///
    /// # Errors
    /// As for [`Nbd::open`].
    pub fn open_patiently(settings: &Settings, read_only: bool, patience: Duration) -> Result<Arc<Self>> {
        let name = settings.name();
        let pool = Pool::open(settings, patience)?;
        if pool.export().flags.read_only() && !read_only {
            let error = Error::new(ErrorKind::PermissionDenied, "the server allows the export to be read only");
            return Err(error.with_headline("Could not open image: Permission denied"));
        }
        Ok(Arc::new(Nbd { pool, name, read_only, context: settings.context.clone() }))
    }

    fn export(&self) -> &Export {
        self.pool.export()
    }

    fn failed(&self, error: Error, operation: &'static str, at: u64) -> Error {
        error.at_path(&self.name).at_offset(at).during(operation)
    }

    /// Fails unless the range may be written.
    fn writable(&self, range: Range) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the export was opened read-only"));
        }
        let length = self.export().length;
        if range.start.checked_add(range.len).is_none_or(|end| end > length) {
            let text = format!("the export cannot grow: it has {length} bytes");
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        Ok(())
    }

    /// The flag that asks for stable storage. Without it, a flush follows.
    fn stable(&self, flags: WriteFlags) -> u16 {
        let asked = flags.force_unit_access && self.export().flags.force_unit_access();
        if asked { flag::FORCE_UNIT_ACCESS } else { 0 }
    }

    fn finish(&self, flags: WriteFlags) -> Result<()> {
        if flags.force_unit_access && !self.export().flags.force_unit_access() { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<()> {
        if !self.export().flags.flush() || self.read_only {
            return Ok(());
        }
        self.pool
            .run(|connection| {
                let (socket, session) = (&mut connection.socket, &mut connection.session);
                session.command(socket, Command::Flush, 0, 0, 0, &[])
            })
            .map_err(|error| error.at_path(&self.name).during("flush"))
    }

    fn read_all(&self, at: u64, into: &mut [u8]) -> Result<()> {
        check_bounds(at, into.len() as u64, self.export().length)?;
        let mut offset = at;
        for piece in into.chunks_mut(self.export().maximum_block as usize) {
            self.pool.run(|connection| connection.session.read(&mut connection.socket, offset, piece))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_all(&self, at: u64, from: &[u8], flags: WriteFlags) -> Result<()> {
        self.writable(Range::new(at, from.len() as u64))?;
        let mut offset = at;
        for piece in from.chunks(self.export().maximum_block as usize) {
            let stable = self.stable(flags);
            self.pool.run(|connection| {
                let (socket, session) = (&mut connection.socket, &mut connection.session);
                session.command(socket, Command::Write, stable, offset, piece.len() as u64, piece)
            })?;
            offset += piece.len() as u64;
        }
        self.finish(flags)
    }

    /// A request without data, in pieces.
    fn effect(&self, command: Command, flags: u16, range: Range) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let len = (range.end() - at).min(EFFECT_BYTES);
            self.pool.run(|connection| {
                let (socket, session) = (&mut connection.socket, &mut connection.session);
                session.command(socket, command, flags, at, len, &[])
            })?;
            at += len;
        }
        Ok(())
    }

    fn zero(&self, range: Range, flags: WriteFlags) -> Result<()> {
        self.writable(range)?;
        let can = self.export().flags;
        if !can.write_zeroes() || (flags.no_fallback && !can.fast_zero()) {
            return Err(Error::unsupported("the server has no efficient way to write zeroes"));
        }
        let mut modifiers = self.stable(flags);
        if !flags.may_unmap {
            modifiers |= flag::NO_HOLE;
        }
        if flags.no_fallback {
            modifiers |= flag::FAST_ZERO;
        }
        self.effect(Command::WriteZeroes, modifiers, range)?;
        self.finish(flags)
    }

    fn status(&self, range: Range) -> Result<Extent> {
        check_bounds(range.start, range.len, self.export().length)?;
        let block = u64::from(self.export().minimum_block);
        let host = Some(Host { role: Role::File, at: range.start });
        let data = Extent { len: range.len, state: State::Data, host };
        if self.export().context.is_none() || range.len == 0 {
            return Ok(data);
        }
        // The question is about whole blocks.
        let wide = range.widen(block);
        let asked = wide.len.min(u64::from(u32::MAX) / block * block);
        let status = self.pool.run(|connection| {
            let (socket, session) = (&mut connection.socket, &mut connection.session);
            // Another connection may have lost it.
            match session.export().context {
                Some(context) => session.status(socket, context, wide.start, asked).map(Some),
                None => Ok(None),
            }
        })?;
        let Some(status) = status else { return Ok(data) };
        // An extent may end within a block only where the export does; elsewhere the rest of that block is not known.
        let end = wide.start + status.len;
        let whole = if end == self.export().length { end } else { end / block * block };
        let Some(len @ 1..) = whole.checked_sub(range.start).map(|len| len.min(range.len)) else {
            return Ok(Extent { len: range.len.min(block - (range.start - wide.start)), ..data });
        };
        // All depths from 2 on are the same.
        let is_depth = self.context.as_deref() == Some("qemu:allocation-depth");
        let flags = if is_depth { status.flags.min(2) } else { status.flags };
        // Zeroes that have a place take up space. Nothing is known of what is in a hole that is not zero.
        let (state, host) = match flags & (HOLE | ZERO) {
            HOLE if self.context.is_some() => (State::Unallocated, None),
            0 | HOLE => (State::Data, host),
            ZERO => (State::Zero, host),
            _ => (State::Zero, None),
        };
        Ok(Extent { len, state, host })
    }
}

impl Node for Nbd {
    fn info(&self) -> NodeInfo {
        let export = self.export();
        NodeInfo {
            request_alignment: export.minimum_block,
            read_only: self.read_only,
            fast_zeroes: export.flags.fast_zero(),
            ..NodeInfo::plain(export.length)
        }
    }

    fn map<'a>(&'a self, range: Range, want: Want) -> Op<'a, Extent> {
        if want != Want::Precise {
            let host = Some(Host { role: Role::File, at: range.start });
            return Op::ok(Extent { len: range.len, state: State::Data, host });
        }
        Op::Ready(self.status(range).map_err(|error| self.failed(error, "block status", range.start)))
    }

    fn read<'a>(&'a self, at: u64, into: &'a mut [u8], _flags: ReadFlags) -> Op<'a, ()> {
        Op::Ready(self.read_all(at, into).map_err(|error| self.failed(error, "read", at)))
    }

    fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: WriteFlags) -> Op<'a, ()> {
        Op::Ready(self.write_all(at, from, flags).map_err(|error| self.failed(error, "write", at)))
    }

    fn write_zeroes<'a>(&'a self, range: Range, flags: WriteFlags) -> Op<'a, ()> {
        Op::Ready(self.zero(range, flags).map_err(|error| self.failed(error, "zero", range.start)))
    }

    fn discard<'a>(&'a self, range: Range) -> Op<'a, ()> {
        let discard = || -> Result<()> {
            self.writable(range)?;
            // Advice that cannot be followed is no failure.
            if self.export().flags.trim() { self.effect(Command::Trim, 0, range) } else { Ok(()) }
        };
        Op::Ready(discard().map_err(|error| self.failed(error, "discard", range.start)))
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        Op::Ready(self.sync())
    }

    /// An export has the size it has: it cannot grow, and stays as it is when asked to shrink.
    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        let refuse = || -> Result<()> {
            self.writable(Range::default())?;
            if length > self.export().length {
                return Err(Error::unsupported("Cannot grow NBD nodes"));
            }
            if preallocation != Preallocation::Off && length != self.export().length {
                return Err(Error::unsupported("Cannot resize NBD nodes"));
            }
            Ok(())
        };
        Op::Ready(refuse())
    }

    fn close<'a>(&'a self) -> Op<'a, ()> {
        self.pool.close();
        Op::ok(())
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn as_any(&self) -> Option<&dyn core::any::Any> {
        Some(self)
    }
}
