//! The metadata cache: tables of an image in memory, written back in the order that keeps the image whole.
//!
//! Every table has a [`Level`]. A write-back takes one snapshot of everything that has changed and writes it level by
//! level with a flush of the file between two levels, so that nothing reaches the disk before what it relies on: a
//! refcount before the entry that uses the cluster, a table before the pointer to it. Guest data counts as the level
//! before the first: it was written before the entry changed, and the first flush covers it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, announce};
use crate::node::{Node, ReadFlags, WriteFlags};
use crate::sync::Mutex;

/// Position in the order of write-back: lower levels reach the disk first.
pub type Level = u8;

/// What is announced to the file before a table of a level is read or written.
#[derive(Clone, Copy, Debug)]
pub struct LevelEvents {
    /// Before one is read.
    pub load: Event,
    /// Before one, or a part of it, is written.
    pub write: Event,
}

/// Changed bytes are written in whole units of this size, the smallest that a disk writes at once.
const WRITE_UNIT: usize = 512;

struct Table {
    bytes: Box<[u8]>,
    level: Level,
    /// Range of changed bytes.
    dirty: Option<(usize, usize)>,
    /// Changes are on their way to the disk, which may still have the old bytes.
    writing: bool,
    /// About to be changed.
    held: bool,
    recently_used: bool,
}

impl Table {
    fn new(bytes: Box<[u8]>, level: Level, dirty: Option<(usize, usize)>) -> Self {
        Table { bytes, level, dirty, writing: false, held: false, recently_used: true }
    }

    /// Whether the table on disk is the same, so that this one can be dropped.
    fn is_spare(&self) -> bool {
        self.dirty.is_none() && !self.writing && !self.held
    }

    /// Fails if the table is not what the caller takes it for: two tables of different kinds cannot share a place.
    fn check(&self, at: u64, len: usize, level: Level) -> Result<()> {
        if (self.bytes.len(), self.level) == (len, level) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "two entries refer to this place as tables of different kinds")
            .at_offset(at))
    }
}

#[derive(Default)]
struct State {
    tables: BTreeMap<u64, Table>,
    /// Tables in the order in which they are considered for eviction.
    clock: VecDeque<u64>,
    /// Tables that are held.
    held: Vec<u64>,
    bytes: usize,
    dirty_bytes: usize,
    /// Counts removals, so that a table read from disk meanwhile is known to be out of date.
    removals: u64,
}

/// Tables of one image, by their byte offset in its file. Clean tables beyond the budget are dropped.
pub struct Cache {
    state: Mutex<State>,
    budget: usize,
    events: &'static [LevelEvents],
}

impl core::fmt::Debug for Cache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Cache").field("tables", &state.tables.len()).field("bytes", &state.bytes).finish()
    }
}

impl Cache {
    /// An empty cache that keeps about `budget` bytes. `events` has what to announce for each level.
    pub fn new(budget: usize, events: &'static [LevelEvents]) -> Self {
        Cache { state: Mutex::new(State::default()), budget, events }
    }

    /// Looks at a table that is in memory.
    pub fn peek<R>(&self, at: u64, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let mut state = self.state.lock();
        let table = state.tables.get_mut(&at)?;
        table.recently_used = true;
        Some(look(&table.bytes))
    }

    /// Makes sure that the `len` bytes at `at` are in memory.
    ///
    /// # Errors
    /// The file is too short, or cannot be read, or something else is known to be there.
    pub async fn load(&self, file: &dyn Node, at: u64, len: usize, level: Level) -> Result<()> {
        loop {
            let removals = {
                let state = self.state.lock();
                if let Some(table) = state.tables.get(&at) {
                    return table.check(at, len, level);
                }
                state.removals
            };
            let length = file.info().length;
            if at.checked_add(len as u64).is_none_or(|end| end > length) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    alloc::format!("a table of {len} bytes lies beyond the end of the file, which has {length} bytes"),
                )
                .at_offset(at));
            }
            if let Some(events) = self.events.get(usize::from(level)) {
                announce(file, events.load).await?;
            }
            let mut bytes = vec![0; len].into_boxed_slice();
            file.read(at, &mut bytes, ReadFlags::default()).await?;
            let mut state = self.state.lock();
            if let Some(table) = state.tables.get(&at) {
                return table.check(at, len, level);
            }
            if state.removals == removals {
                state.insert(at, Table::new(bytes, level, None));
                state.evict(self.budget, at);
                return Ok(());
            }
        }
    }

    /// Like [`Cache::load`], and keeps the table in memory until [`Cache::release`], so that it can be changed.
    ///
    /// # Errors
    /// As for [`Cache::load`].
    pub async fn hold(&self, file: &dyn Node, at: u64, len: usize, level: Level) -> Result<()> {
        loop {
            self.load(file, at, len, level).await?;
            let mut state = self.state.lock();
            let state = &mut *state;
            // Others may have dropped it between the two steps.
            if let Some(table) = state.tables.get_mut(&at) {
                if !table.held {
                    table.held = true;
                    state.held.push(at);
                }
                return Ok(());
            }
        }
    }

    /// Lets go of all tables that are held.
    pub fn release(&self) {
        let mut state = self.state.lock();
        for at in core::mem::take(&mut state.held) {
            if let Some(table) = state.tables.get_mut(&at) {
                table.held = false;
            }
        }
    }

    /// Adds a table that does not exist on disk yet. All of it will be written.
    pub fn insert(&self, at: u64, bytes: Box<[u8]>, level: Level) {
        let mut state = self.state.lock();
        state.remove(at);
        let len = bytes.len();
        state.dirty_bytes += len;
        state.insert(at, Table::new(bytes, level, Some((0, len))));
        state.evict(self.budget, at);
    }

    /// Changes bytes `start..start + len` of a table that is in memory. `None` if it is not.
    pub fn modify<R>(&self, at: u64, start: usize, len: usize, edit: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let table = state.tables.get_mut(&at)?;
        let part = table.bytes.get_mut(start..start + len)?;
        let result = edit(part);
        table.recently_used = true;
        let first = start / WRITE_UNIT * WRITE_UNIT;
        let last = (start + len).next_multiple_of(WRITE_UNIT).min(table.bytes.len());
        match &mut table.dirty {
            Some((from, to)) => {
                *from = (*from).min(first);
                *to = (*to).max(last);
            }
            None => {
                table.dirty = Some((first, last));
                state.dirty_bytes += table.bytes.len();
            }
        }
        Some(result)
    }

    /// Drops a table, changed or not: its place on disk is not a table any more.
    pub fn forget(&self, at: u64) {
        self.state.lock().remove(at);
    }

    /// Drops every table, changed or not: the file was changed behind the cache.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        let tables: Vec<u64> = state.tables.keys().copied().collect();
        for at in tables {
            state.remove(at);
        }
        state.held.clear();
    }

    /// Whether so much has changed that it should be written back before more does.
    pub fn is_full(&self) -> bool {
        self.state.lock().dirty_bytes > self.budget / 2
    }

    /// Whether anything has changed since it was last written.
    pub fn is_dirty(&self) -> bool {
        self.state.lock().dirty_bytes > 0
    }

    /// Writes back everything that has changed, in order, and flushes the file. Nothing may be changed meanwhile that
    /// relies on a table of a lower level: the caller holds off whoever allocates.
    ///
    /// `data` is the file with guest data, if that is another one. Levels below `from` are left for another time.
    ///
    /// # Errors
    /// What was not written stays changed and is tried again next time. So it does if the future is dropped.
    pub async fn write_back(&self, file: &dyn Node, data: Option<&dyn Node>, from: Level) -> Result<()> {
        let mut pieces = self.state.lock().take_dirty(from);
        pieces.sort_by_key(|piece| (piece.level, piece.at));
        let mut writing = Writing { cache: self, pieces, done: false };
        self.write_pieces(file, data, &writing.pieces).await?;
        writing.done = true;
        Ok(())
    }

    async fn write_pieces(&self, file: &dyn Node, data: Option<&dyn Node>, pieces: &[Piece]) -> Result<()> {
        if let Some(data) = data {
            data.flush().await?;
        }
        let mut level = None;
        for piece in pieces {
            // The first level relies on nothing; every other on guest data or on the level before.
            if level != Some(piece.level) && piece.level > 0 {
                file.flush().await?;
            }
            level = Some(piece.level);
            if let Some(events) = self.events.get(usize::from(piece.level)) {
                announce(file, events.write).await?;
            }
            file.write(piece.at, &piece.bytes, WriteFlags::default()).await?;
        }
        file.flush().await
    }
}

struct Piece {
    table: u64,
    start: usize,
    at: u64,
    level: Level,
    bytes: Box<[u8]>,
}

/// Pieces on their way to the disk. Dropping it ends that, whether they got there or not.
struct Writing<'a> {
    cache: &'a Cache,
    pieces: Vec<Piece>,
    done: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state.lock();
        for piece in &self.pieces {
            state.settle(piece, self.done);
        }
    }
}

impl State {
    fn insert(&mut self, at: u64, table: Table) {
        self.bytes += table.bytes.len();
        self.clock.push_back(at);
        self.tables.insert(at, table);
    }

    fn remove(&mut self, at: u64) {
        if let Some(table) = self.tables.remove(&at) {
            self.bytes -= table.bytes.len();
            if table.dirty.is_some() {
                self.dirty_bytes -= table.bytes.len();
            }
            self.removals += 1;
            if let Some(position) = self.clock.iter().position(|other| *other == at) {
                self.clock.remove(position);
            }
        }
    }

    /// Drops spare tables that were not used since the last look at them until the budget is met; never the one at
    /// `keep`. What was just used stays, even beyond the budget: a walk needs several tables at once.
    fn evict(&mut self, budget: usize, keep: u64) {
        let mut looks = self.clock.len();
        while self.bytes > budget && looks > 0 {
            looks -= 1;
            let Some(at) = self.clock.pop_front() else { return };
            match self.tables.get_mut(&at) {
                Some(table) if at == keep || !table.is_spare() || table.recently_used => {
                    table.recently_used = false;
                    self.clock.push_back(at);
                }
                Some(table) => {
                    self.bytes -= table.bytes.len();
                    self.tables.remove(&at);
                    self.removals += 1;
                }
                None => {}
            }
        }
    }

    fn take_dirty(&mut self, from: Level) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (at, table) in &mut self.tables {
            if table.level < from {
                continue;
            }
            let Some((start, end)) = table.dirty.take() else { continue };
            table.writing = true;
            self.dirty_bytes -= table.bytes.len();
            let bytes = table.bytes.get(start..end).unwrap_or_default();
            pieces.push(Piece { table: *at, start, at: at + start as u64, level: table.level, bytes: bytes.into() });
        }
        pieces
    }

    /// Notes that a piece was written, or that it has to be written again.
    fn settle(&mut self, piece: &Piece, written: bool) {
        let Some(table) = self.tables.get_mut(&piece.table) else { return };
        table.writing = false;
        if written {
            return;
        }
        let (start, end) = (piece.start, piece.start + piece.bytes.len());
        match &mut table.dirty {
            Some((from, to)) => {
                *from = (*from).min(start);
                *to = (*to).max(end);
            }
            None => {
                table.dirty = Some((start, end));
                self.dirty_bytes += table.bytes.len();
            }
        }
    }
}
