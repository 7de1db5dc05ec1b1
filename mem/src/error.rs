use std::borrow::Cow;
use std::fmt;
use std::io;

/// A failure of the control plane of memory: what failed, where, and what to do about it.
#[derive(Debug, Clone)]
pub struct MemError {
    errno: i32,
    text: Cow<'static, str>,
}

impl MemError {
    /// An error with a positive `errno` and a text for people.
    pub fn new(errno: i32, text: impl Into<Cow<'static, str>>) -> MemError {
        MemError { errno, text: text.into() }
    }

    /// The error of the system call that just failed; `what` says which and where.
    pub fn last_os(what: impl fmt::Display) -> MemError {
        MemError::os(&io::Error::last_os_error(), what)
    }

    /// An error of the system; `what` says which call and where.
    pub fn os(error: &io::Error, what: impl fmt::Display) -> MemError {
        MemError::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {error}"))
    }

    /// The same error with `what` in front of its text.
    pub fn context(self, what: impl fmt::Display) -> MemError {
        MemError::new(self.errno, format!("{what}: {}", self.text))
    }

    /// The positive error number, one of `libc::E*`.
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for MemError {}
