//! Errors of the control plane of PCI functions.

use std::{error, fmt, io};

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciErrorKind {
    /// An offset, index or length that the function does not have.
    OutOfRange,
    /// The function has no such BAR, capability, vector or reset.
    NotSupported,
    /// The operating system or the peer refused.
    Io,
    /// The function no longer answers.
    Gone,
    /// There is no such function.
    NotFound,
    /// Somebody else has the function, or another of its group.
    Busy,
    /// This user may not have it.
    Denied,
}

/// An error of a PCI function: what, where, what to do.
#[derive(Debug)]
pub struct PciError {
    kind: PciErrorKind,
    text: String,
    source: Option<io::Error>,
}

impl PciError {
    /// An error that says what happened, where, and what to do.
    pub fn new(kind: PciErrorKind, text: impl Into<String>) -> PciError {
        PciError { kind, text: text.into(), source: None }
    }

    /// An error of the operating system, with what was tried.
    pub fn io(text: impl Into<String>, source: io::Error) -> PciError {
        PciError { kind: PciErrorKind::Io, text: text.into(), source: Some(source) }
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> PciErrorKind {
        self.kind
    }

    /// The error number that a caller outside this program would see.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let kind = match self.kind {
            PciErrorKind::OutOfRange => libc::EINVAL,
            PciErrorKind::NotSupported => libc::ENOTSUP,
            PciErrorKind::Io => libc::EIO,
            PciErrorKind::Gone => libc::ENODEV,
            PciErrorKind::NotFound => libc::ENOENT,
            PciErrorKind::Busy => libc::EBUSY,
            PciErrorKind::Denied => libc::EACCES,
        };
        let source = self.source.as_ref().and_then(io::Error::raw_os_error);
        source.unwrap_or(kind)
    }
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl error::Error for PciError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
