//! One error type: what kind of failure, what exactly is wrong, and where.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// The class of a failure. Each maps to one errno value, the one QEMU would return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or a field has a value that is not allowed (`EINVAL`).
    Invalid,
    /// The image contradicts itself (`EIO`).
    Corrupt,
    /// The host could not read or write (`EIO`).
    Io,
    /// The image or the host does not support what was asked (`ENOTSUP`).
    Unsupported,
    /// No space is left (`ENOSPC`).
    NoSpace,
    /// The image, file or policy does not permit this (`EPERM`).
    Denied,
    /// The operating system does not permit this (`EACCES`).
    PermissionDenied,
    /// The image was opened without write access (`EROFS`).
    ReadOnly,
    /// There is no such file (`ENOENT`).
    NotFound,
    /// The file exists already (`EEXIST`).
    Exists,
    /// Somebody else uses the image (`EAGAIN`).
    Busy,
    /// A size is beyond a limit (`EFBIG`).
    TooLarge,
    /// A budget of the caller was used up (`ENOMEM`).
    OverBudget,
    /// The caller asked to stop (`ECANCELED`).
    Cancelled,
    /// There is no medium: the node was closed (`ENOMEDIUM`).
    Closed,
}

impl ErrorKind {
    /// The Linux errno value that QEMU reports for this kind.
    pub const fn errno(self) -> i32 {
        match self {
            ErrorKind::Invalid => 22,
            ErrorKind::Corrupt | ErrorKind::Io => 5,
            ErrorKind::Unsupported => 95,
            ErrorKind::NoSpace => 28,
            ErrorKind::Denied => 1,
            ErrorKind::PermissionDenied => 13,
            ErrorKind::ReadOnly => 30,
            ErrorKind::NotFound => 2,
            ErrorKind::Exists => 17,
            ErrorKind::Busy => 11,
            ErrorKind::TooLarge => 27,
            ErrorKind::OverBudget => 12,
            ErrorKind::Cancelled => 125,
            ErrorKind::Closed => 123,
        }
    }

    /// The kind that a Linux errno value means: the inverse of [`ErrorKind::errno`], and [`ErrorKind::Io`] for values that
    /// no kind has.
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            22 => ErrorKind::Invalid,
            95 | 25 | 38 => ErrorKind::Unsupported,
            28 | 122 => ErrorKind::NoSpace,
            1 => ErrorKind::Denied,
            13 => ErrorKind::PermissionDenied,
            30 => ErrorKind::ReadOnly,
            2 => ErrorKind::NotFound,
            17 => ErrorKind::Exists,
            11 => ErrorKind::Busy,
            27 => ErrorKind::TooLarge,
            12 => ErrorKind::OverBudget,
            125 => ErrorKind::Cancelled,
            123 => ErrorKind::Closed,
            _ => ErrorKind::Io,
        }
    }

    /// What the Linux C library calls the errno value.
    pub const fn reason(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "Invalid argument",
            ErrorKind::Corrupt | ErrorKind::Io => "Input/output error",
            ErrorKind::Unsupported => "Operation not supported",
            ErrorKind::NoSpace => "No space left on device",
            ErrorKind::Denied => "Operation not permitted",
            ErrorKind::PermissionDenied => "Permission denied",
            ErrorKind::ReadOnly => "Read-only file system",
            ErrorKind::NotFound => "No such file or directory",
            ErrorKind::Exists => "File exists",
            ErrorKind::Busy => "Resource temporarily unavailable",
            ErrorKind::TooLarge => "File too large",
            ErrorKind::OverBudget => "Cannot allocate memory",
            ErrorKind::Cancelled => "Operation canceled",
            ErrorKind::Closed => "No medium found",
        }
    }

    /// A stable name for programs, such as `corrupt`.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "invalid",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Io => "io",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::NoSpace => "no-space",
            ErrorKind::Denied => "denied",
            ErrorKind::PermissionDenied => "permission-denied",
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::NotFound => "not-found",
            ErrorKind::Exists => "exists",
            ErrorKind::Busy => "busy",
            ErrorKind::TooLarge => "too-large",
            ErrorKind::OverBudget => "over-budget",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Closed => "closed",
        }
    }
}

/// Where a failure happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorContext {
    /// The image or file, as the host named it.
    pub path: Option<String>,
    /// The node or format that failed, such as `qcow2`.
    pub node: Option<Cow<'static, str>>,
    /// Byte offset in the file named by `path`.
    pub offset: Option<u64>,
    /// What was being done, such as `read`.
    pub operation: Option<&'static str>,
}

/// A failure, with its cause and its place.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    problem: Box<dyn core::error::Error + Send + Sync>,
    headline: Option<Cow<'static, str>>,
    context: ErrorContext,
}

impl Error {
    /// A failure of a kind, explained by `problem` (a text, or one of the formats' problem types).
    pub fn new(kind: ErrorKind, problem: impl Into<Box<dyn core::error::Error + Send + Sync>>) -> Self {
        Error(Box::new(Inner { kind, problem: problem.into(), headline: None, context: ErrorContext::default() }))
    }

    /// [`ErrorKind::Invalid`] with a text.
    pub fn invalid(text: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, text.into())
    }

    /// [`ErrorKind::Unsupported`] with a text.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, text.into())
    }

    /// Adds what QEMU says of the same failure, for programs that match on it.
    #[must_use]
    pub fn with_headline(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.0.headline.get_or_insert_with(|| text.into());
        self
    }

    /// What QEMU says of the failure where that is known, and what is wrong otherwise: without place, found and expected.
    pub fn brief(&self) -> String {
        match &self.0.headline {
            Some(text) => text.to_string(),
            None => self.0.problem.to_string(),
        }
    }

    /// Adds the file's name, unless one is known already.
    #[must_use]
    pub fn at_path(mut self, path: &str) -> Self {
        self.0.context.path.get_or_insert_with(|| path.to_string());
        self
    }

    /// Adds the node's name, unless one is known already.
    #[must_use]
    pub fn in_node(mut self, node: impl Into<Cow<'static, str>>) -> Self {
        self.0.context.node.get_or_insert_with(|| node.into());
        self
    }

    /// Adds the byte offset in the file, unless one is known already.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.context.offset.get_or_insert(offset);
        self
    }

    /// Adds what was being done, unless it is known already.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.context.operation.get_or_insert(operation);
        self
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where it happened.
    pub fn context(&self) -> &ErrorContext {
        &self.0.context
    }

    /// What is wrong, without the place.
    pub fn problem(&self) -> &(dyn core::error::Error + Send + Sync + 'static) {
        &*self.0.problem
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = &self.0.context;
        if let Some(path) = &context.path {
            write!(f, "{path}: ")?;
        }
        if let Some(node) = &context.node {
            write!(f, "{node}: ")?;
        }
        write!(f, "{}", self.0.problem)?;
        match (context.operation, context.offset) {
            (Some(operation), Some(offset)) => write!(f, " ({operation} at offset {offset:#x})"),
            (None, Some(offset)) => write!(f, " (at offset {offset:#x})"),
            (Some(operation), None) => write!(f, " ({operation})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&*self.0.problem)
    }
}

#[cfg(feature = "std")]
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match error.raw_os_error() {
            Some(28 | 122) => ErrorKind::NoSpace,
            Some(27) => ErrorKind::TooLarge,
            Some(95 | 25 | 38) => ErrorKind::Unsupported,
            Some(30) => ErrorKind::ReadOnly,
            Some(1) => ErrorKind::Denied,
            Some(22) => ErrorKind::Invalid,
            _ => match error.kind() {
                Os::NotFound => ErrorKind::NotFound,
                Os::PermissionDenied => ErrorKind::PermissionDenied,
                Os::AlreadyExists => ErrorKind::Exists,
                Os::WouldBlock => ErrorKind::Busy,
                Os::InvalidInput => ErrorKind::Invalid,
                Os::Unsupported => ErrorKind::Unsupported,
                _ => ErrorKind::Io,
            },
        };
        // The number says nothing that the text does not.
        let text = error.to_string();
        Error::new(kind, text.split(" (os error").next().unwrap_or(&text).to_string())
    }
}
