//! The one error type of the library.
//!
//! A message says what was expected, what came, and whose name it has. [`ErrorKind`] decides the Triton code.

use std::fmt;

/// What went wrong, from the point of view of the one who has to act. Maps one to one to a Triton error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The client or operator gave something invalid: `TRITONSERVER_ERROR_INVALID_ARG` (HTTP 400).
    InvalidArg,
    /// A named thing does not exist: `TRITONSERVER_ERROR_NOT_FOUND` (HTTP 404).
    NotFound,
    /// Try again later (queue full, draining, device failed): `TRITONSERVER_ERROR_UNAVAILABLE` (HTTP 503).
    Unavailable,
    /// Known but not supported here: `TRITONSERVER_ERROR_UNSUPPORTED` (HTTP 501).
    Unsupported,
    /// The client went away: `TRITONSERVER_ERROR_CANCELLED`.
    Cancelled,
    /// Our bug or a failed device: `TRITONSERVER_ERROR_INTERNAL` (HTTP 500).
    Internal,
}

/// An error: a kind and a message that is complete in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArg, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context` in front: `"{context}: {message}"`.
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Puts a context in front of the error of a `Result`.
pub trait ResultExt<T> {
    fn context(self, context: impl fmt::Display) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.context(context))
    }
}
