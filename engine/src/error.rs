//! What can go wrong: [`Fault`] on the data plane, [`Error`] for people.

use std::fmt;
use std::sync::Arc;

use crate::OpKind;

/// What kind of failure this is. Each kind maps to one errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ErrorKind {
    /// The device or the system failed the request (EIO).
    Io,
    /// The request breaks a limit of the node: range, alignment or length (EINVAL).
    Invalid,
    /// No space is left where the bytes should go (ENOSPC).
    NoSpace,
    /// The node, the file or the namespace refuses writes (EROFS).
    ReadOnly,
    /// The node cannot do this operation (ENOTSUP).
    NotSupported,
    /// The medium lost these bytes, or cannot take them (EIO).
    Media,
    /// Protection information or a checksum does not match (EILSEQ).
    Protection,
    /// A compare found other bytes (EILSEQ).
    Mismatch,
    /// The caller cancelled the request before it was carried out (ECANCELED).
    Cancelled,
    /// The device did not answer in time (ETIMEDOUT).
    TimedOut,
    /// The device is no longer there (ENODEV).
    Gone,
    /// Somebody else holds what is asked for (EBUSY).
    Busy,
    /// Memory, slots or identifiers ran out (ENOMEM).
    OutOfMemory,
    /// The caller may not do this (EACCES).
    Denied,
    /// There is no such file, device or node (ENOENT).
    NotFound,
    /// The engine failed or was shut down (ESHUTDOWN).
    Failed,
}

impl ErrorKind {
    /// The errno that stands for this kind.
    pub fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Media => libc::EIO,
            Self::Invalid => libc::EINVAL,
            Self::NoSpace => libc::ENOSPC,
            Self::ReadOnly => libc::EROFS,
            Self::NotSupported => libc::ENOTSUP,
            Self::Protection | Self::Mismatch => libc::EILSEQ,
            Self::Cancelled => libc::ECANCELED,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Gone => libc::ENODEV,
            Self::Busy => libc::EBUSY,
            Self::OutOfMemory => libc::ENOMEM,
            Self::Denied => libc::EACCES,
            Self::NotFound => libc::ENOENT,
            Self::Failed => libc::ESHUTDOWN,
        }
    }

    /// The kind that an errno stands for; an unknown one is [`ErrorKind::Io`].
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EINVAL => Self::Invalid,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EROFS => Self::ReadOnly,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::NotSupported,
            libc::EILSEQ => Self::Protection,
            libc::ECANCELED => Self::Cancelled,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ENODEV | libc::ENXIO => Self::Gone,
            libc::EBUSY => Self::Busy,
            libc::ENOMEM => Self::OutOfMemory,
            libc::EACCES | libc::EPERM => Self::Denied,
            libc::ENOENT => Self::NotFound,
            libc::ESHUTDOWN => Self::Failed,
            _ => Self::Io,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Io => "I/O error",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left",
            Self::ReadOnly => "read-only",
            Self::NotSupported => "not supported",
            Self::Media => "media error",
            Self::Protection => "protection check failed",
            Self::Mismatch => "compare found other data",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed out",
            Self::Gone => "device gone",
            Self::Busy => "busy",
            Self::OutOfMemory => "out of memory",
            Self::Denied => "permission denied",
            Self::NotFound => "not found",
            Self::Failed => "engine failed",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Where a failure came from, as exactly as the data plane knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kind says it all.
    None,
    /// A system call failed.
    Errno(i32),
    /// An NVMe completion's status.
    Nvme {
        /// Status Code Type.
        sct: u8,
        /// Status Code.
        sc: u8,
        /// Do Not Retry.
        dnr: bool,
        /// Log2 of the namespace's block size: the fault's offset in such blocks is the LBA.
        block_shift: u8,
        /// The status in the words of the specification.
        words: &'static str,
    },
    /// A rule of the engine, in words.
    Text(&'static str),
}

/// A failed request on the data plane: no heap, cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of failure this is.
    pub kind: ErrorKind,
    /// Where it came from.
    pub source: Source,
    /// The byte of the node where it happened, or where the request began.
    pub offset: u64,
}

impl Fault {
    /// A fault at `offset` with nothing further known.
    pub const fn new(kind: ErrorKind, offset: u64) -> Self {
        Self { kind, source: Source::None, offset }
    }

    /// A fault that breaks a rule of the engine, in words.
    pub const fn text(kind: ErrorKind, offset: u64, text: &'static str) -> Self {
        Self { kind, source: Source::Text(text), offset }
    }

    /// A failed system call; the kind follows from the errno.
    pub fn errno(errno: i32, offset: u64) -> Self {
        Self { kind: ErrorKind::from_errno(errno), source: Source::Errno(errno), offset }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.kind, self.offset)?;
        if self.source == Source::None {
            return Ok(());
        }
        write!(f, ": {}", FaultSource(*self))
    }
}

impl std::error::Error for Fault {}

/// A failure as a person reads it: what, where, why, and what to do.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    op: Option<OpKind>,
    node: Option<Arc<str>>,
    offset: Option<u64>,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind; `message` says what failed and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { kind, op: None, node: None, offset: None, message, source: None }))
    }

    /// An error from a failed system call; `what` says what was tried and on what.
    pub fn from_io(what: impl Into<String>, error: std::io::Error) -> Self {
        let kind = error.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        Self::new(kind, what).caused_by(error)
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno that stands for it.
    pub fn errno(&self) -> i32 {
        self.0.kind.errno()
    }

    /// The byte of the node where it happened, if it is about one.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The name of the node that failed, if it is about one.
    pub fn node_name(&self) -> Option<&str> {
        self.0.node.as_deref()
    }

    /// Names the node.
    #[must_use]
    pub fn node(mut self, name: &Arc<str>) -> Self {
        self.0.node = Some(name.clone());
        self
    }

    /// Names the operation.
    #[must_use]
    pub fn op(mut self, op: OpKind) -> Self {
        self.0.op = Some(op);
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Keeps the error that led to this one.
    #[must_use]
    pub fn caused_by(mut self, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(error));
        self
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let mut error = Self::new(fault.kind, fault.kind.words());
        error.0.offset = Some(fault.offset);
        if fault.source != Source::None {
            error.0.source = Some(Arc::new(FaultSource(fault)));
        }
        error
    }
}

/// The source of a fault as an error of its own, so that chains print evenly.
#[derive(Debug)]
struct FaultSource(Fault);

impl fmt::Display for FaultSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source {
            Source::None => Ok(()),
            Source::Errno(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(errno)),
            Source::Nvme { sct, sc, dnr, block_shift, words } => {
                let lba = self.0.offset.checked_shr(block_shift.into()).unwrap_or(0);
                write!(f, "LBA {lba}: {words} (NVMe status SCT {sct:x}h SC {sc:02x}h")?;
                f.write_str(if dnr { ", do not retry)" } else { ")" })
            }
            Source::Text(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for FaultSource {}

impl From<oxblock_mem::MemError> for Error {
    /// No room to map memory for a device is no full disk: its ENOSPC is never a user's.
    fn from(error: oxblock_mem::MemError) -> Self {
        let kind = match error.errno() {
            libc::ENOSPC => ErrorKind::OutOfMemory,
            errno => ErrorKind::from_errno(errno),
        };
        Self::new(kind, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.0.node {
            write!(f, "{node}: ")?;
        }
        if let Some(op) = self.0.op {
            write!(f, "{op}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(offset) = self.0.offset {
            write!(f, " at offset {offset}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_why() {
        let node: Arc<str> = Arc::from("disk0");
        let fault =
            Fault { kind: ErrorKind::Media, source: Source::Errno(libc::EIO), offset: 4096 };
        let error = Error::from(fault).node(&node).op(OpKind::Read);
        let text = error.to_string();
        assert!(text.starts_with("disk0: read: media error at offset 4096: "), "{text}");
        assert_eq!(error.errno(), libc::EIO);
    }

    #[test]
    fn a_status_of_a_device_is_said_in_words_with_its_block() {
        let words = "unrecovered read error";
        let source = Source::Nvme { sct: 2, sc: 0x81, dnr: true, block_shift: 9, words };
        let fault = Fault { kind: ErrorKind::Media, source, offset: 8192 };
        let text = "media error at offset 8192: LBA 16: unrecovered read error (NVMe status SCT 2h \
                    SC 81h, do not retry)";
        assert_eq!(fault.to_string(), text);
        assert_eq!(Error::from(fault).to_string(), text);
    }

    #[test]
    fn every_errno_of_a_kind_leads_back_to_that_errno() {
        for errno in [libc::EIO, libc::EINVAL, libc::ENOSPC, libc::EROFS, libc::EBUSY] {
            assert_eq!(ErrorKind::from_errno(errno).errno(), errno);
        }
    }

    /// The kernel's limit of DMA mappings was reached, and a guest was told that its disk is full.
    #[test]
    fn a_full_iommu_is_no_full_disk() {
        let error = oxblock_mem::MemError::new(libc::ENOSPC, "the limit of mappings is reached");
        assert_eq!(Error::from(error).errno(), libc::ENOMEM);
    }

    #[test]
    fn a_fault_stays_small() {
        assert!(size_of::<Result<(), Fault>>() <= 40);
        assert_eq!(size_of::<Result<(), Error>>(), 8);
    }
}
