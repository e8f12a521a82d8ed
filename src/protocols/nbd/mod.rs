//! The client side of NBD, the network block device protocol (the protocol document of the NetworkBlockDevice project).
//!
//! [`name`] knows what exports are called, [`handshake`] finds one, [`transfer`] reads and writes it, [`wire`] has the
//! bytes. All of it speaks through a [`Channel`] that the host supplies. Nothing that a server says is believed before it
//! is checked, and no memory is set aside by a length it names.

pub mod handshake;
pub mod name;
pub mod transfer;
pub mod wire;

use crate::error::{Error, ErrorKind, Result};

pub use handshake::{Export, negotiate};
pub use name::{Address, Settings, parse_name};
pub use transfer::Session;

/// A connection to a server: bytes both ways, in order.
pub trait Channel {
    /// Fills `into`.
    ///
    /// # Errors
    /// The connection has ended or is taking too long.
    fn receive(&mut self, into: &mut [u8]) -> Result<()>;

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// As for [`Channel::receive`].
    fn send(&mut self, bytes: &[u8]) -> Result<()>;
}

/// Why a request came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// The connection has ended. The request may be made again on another one.
    Lost(Error),
    /// The server broke the protocol: what else comes from it means nothing.
    Violation(Error),
    /// The server says that it failed. The connection is good.
    Refused(Error),
}

impl Failure {
    /// The error, whatever it means for the connection.
    pub fn into_error(self) -> Error {
        match self {
            Failure::Lost(error) | Failure::Violation(error) | Failure::Refused(error) => error,
        }
    }
}

/// The server broke the protocol.
fn violation(text: impl core::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, alloc::format!("Protocol error: {text}"))
}
