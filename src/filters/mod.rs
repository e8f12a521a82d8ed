//! Nodes that change how another node behaves: faults, checks, limits, several copies.
//!
//! Each is a [`Node`] over one or more others and knows no format. [`crate::graph`] opens them by name.

mod blkdebug;
mod blkverify;
mod compress;
mod concat;
mod copy_on_read;
mod null;
mod preallocate;
mod quorum;
mod throttle;

pub use blkdebug::{Action, Blkdebug, IoKind, Report, Rule, parse_config};
pub use blkverify::Blkverify;
pub use compress::Compress;
pub use concat::Concat;
pub use copy_on_read::CopyOnRead;
pub use null::Null;
pub use preallocate::Preallocate;
pub use quorum::{Quorum, QuorumOptions};
pub use throttle::{Clock, Limits, Throttle, ThrottleGroup};

use crate::engine::status::Chain;
use crate::error::Result;
use crate::node::{Extent, Host, Node, Range, Role, State, Want};
use alloc::sync::Arc;

/// What a range of a node and everything behind it reads as: stored data or zeroes.
pub(crate) async fn contents(node: &Arc<dyn Node>, range: Range, want: Want) -> Result<Extent> {
    if !node.is_disk() {
        return node.map(range, want).await;
    }
    let status = Chain::of(node.clone()).status(range, want).await?;
    let state = if status.zero && !status.data { State::Zero } else { State::Data };
    let host = (state == State::Data).then_some(Host { role: Role::File, at: range.start });
    Ok(Extent { len: status.len, state, host })
}

/// The part of a read that `node` answers, up to the end of its last block. What lies beyond it is zeroed here.
pub(crate) fn within<'a>(node: &dyn Node, at: u64, into: &'a mut [u8]) -> &'a mut [u8] {
    let info = node.info();
    let end = info.length.checked_next_multiple_of(info.request_alignment.max(1).into()).unwrap_or(info.length);
    let inside = end.saturating_sub(at).min(into.len() as u64) as usize;
    let (part, beyond) = into.split_at_mut(inside);
    beyond.fill(0);
    part
}

/// The calls of [`Node`] that a filter hands on unchanged.
macro_rules! hand_on {
    ($field:ident: $($call:ident)*) => { $($crate::filters::hand_on!(@ $field $call);)* };
    (@ $f:ident map) => {
        fn map<'a>(&'a self, range: $crate::Range, want: $crate::Want) -> $crate::Op<'a, $crate::Extent> {
            $crate::Op::future($crate::filters::contents(&self.$f, range, want))
        }
    };
    (@ $f:ident read) => {
        fn read<'a>(&'a self, at: u64, into: &'a mut [u8], flags: $crate::ReadFlags) -> $crate::Op<'a, ()> {
            self.$f.read(at, into, flags)
        }
    };
    (@ $f:ident write) => {
        fn write<'a>(&'a self, at: u64, from: &'a [u8], flags: $crate::WriteFlags) -> $crate::Op<'a, ()> {
            self.$f.write(at, from, flags)
        }
    };
    (@ $f:ident write_zeroes) => {
        fn write_zeroes<'a>(&'a self, range: $crate::Range, flags: $crate::WriteFlags) -> $crate::Op<'a, ()> {
            self.$f.write_zeroes(range, flags)
        }
    };
    (@ $f:ident discard) => {
        fn discard<'a>(&'a self, range: $crate::Range) -> $crate::Op<'a, ()> {
            self.$f.discard(range)
        }
    };
    (@ $f:ident flush) => {
        fn flush<'a>(&'a self) -> $crate::Op<'a, ()> {
            self.$f.flush()
        }
    };
    (@ $f:ident resize) => {
        fn resize<'a>(&'a self, length: u64, preallocation: $crate::Preallocation) -> $crate::Op<'a, ()> {
            self.$f.resize(length, preallocation)
        }
    };
    (@ $f:ident close) => {
        fn close<'a>(&'a self) -> $crate::Op<'a, ()> {
            self.$f.close()
        }
    };
    (@ $f:ident event) => {
        fn event<'a>(&'a self, event: $crate::event::Event) -> $crate::Op<'a, ()> {
            self.$f.event(event)
        }

        fn listens(&self) -> bool {
            self.$f.listens()
        }
    };
    (@ $f:ident names) => {
        fn is_disk(&self) -> bool {
            self.$f.is_disk()
        }

        fn filtered(&self) -> Option<alloc::sync::Arc<dyn $crate::Node>> {
            self.$f.is_disk().then(|| self.$f.clone())
        }

        fn child(&self, role: $crate::Role) -> Option<alloc::sync::Arc<dyn $crate::Node>> {
            (role == $crate::Role::File).then(|| self.$f.clone())
        }

        fn name(&self) -> alloc::string::String {
            self.$f.name()
        }

        fn identity(&self) -> alloc::string::String {
            self.$f.identity()
        }

        fn allocated(&self) -> Option<u64> {
            self.$f.allocated()
        }

        fn as_any(&self) -> Option<&dyn core::any::Any> {
            Some(self)
        }
    };
}
pub(crate) use hand_on;
