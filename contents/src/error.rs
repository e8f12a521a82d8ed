//! Why a call has no answer: it needs bytes first, or there is none.

use std::fmt;

/// Bytes of the disk that the host has to supply with [`Contents::give`](crate::Contents::give).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Byte offset on the disk.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// Why a call came back without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// These bytes are needed, in any order. Then the same call is to be made again.
    Need(Vec<Need>),
    /// There is no answer.
    Failed(Error),
}

/// The kind of an [`Error`], for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such volume, or no file of that name.
    NotFound,
    /// What is on the disk contradicts itself.
    Corrupt,
    /// What is on the disk may be right, and is not understood here.
    Unsupported,
    /// It would take more memory or work than is allowed.
    OverBudget,
    /// The caller asked for something that makes no sense.
    Invalid,
}

impl ErrorKind {
    /// The name that programs see.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not-found",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::OverBudget => "over-budget",
            ErrorKind::Invalid => "invalid",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    offset: Option<u64>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), offset: None }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn over_budget(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::OverBudget, message)
    }

    pub(crate) fn no_file(name: &[u8]) -> Self {
        let name = String::from_utf8_lossy(name);
        Error::new(ErrorKind::NotFound, format!("there is no file '{name}'"))
    }

    pub(crate) fn not_a_directory(name: &[u8]) -> Self {
        Error::invalid(format!("'{}' is not a directory", String::from_utf8_lossy(name)))
    }

    pub(crate) fn not_a_file(name: &[u8]) -> Self {
        Error::invalid(format!("'{}' is not a file that can be read", String::from_utf8_lossy(name)))
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same, saying first which file it is about.
    pub(crate) fn within(mut self, name: &[u8]) -> Self {
        self.message = format!("'{}': {}", String::from_utf8_lossy(name), self.message);
        self
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Byte offset on the disk, if one is to blame.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at offset {offset:#x})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
