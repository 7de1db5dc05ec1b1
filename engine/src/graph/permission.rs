//! What users of a node may do with it, and let others do.

use std::fmt;

use bitflags::bitflags;

bitflags! {
    /// Ways to use a node.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// Reads see consistent data: not those of an image that something is being made of.
        const CONSISTENT_READ = 1;
        /// Writes may change what is read.
        const WRITE = 2;
        /// Writes that do not change what is read: copying from a backing file, for one.
        const WRITE_UNCHANGED = 4;
        /// The length may change.
        const RESIZE = 8;
    }
}

impl Permissions {
    /// What needs a node that takes writes.
    pub const ANY_WRITE: Self = Self::WRITE.union(Self::WRITE_UNCHANGED);
}

impl fmt::Display for Permissions {
    /// In the words of the reference: `consistent read, write`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::CONSISTENT_READ, "consistent read"),
            (Self::WRITE, "write"),
            (Self::WRITE_UNCHANGED, "write unchanged"),
            (Self::RESIZE, "resize"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(permission, _)| self.contains(*permission)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What one user asks for, and what it leaves to the node's other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What it does.
    pub asked: Permissions,
    /// What others may do meanwhile.
    pub shared: Permissions,
}

impl Access {
    /// Of a node that nobody uses.
    pub const NONE: Self = Self { asked: Permissions::empty(), shared: Permissions::all() };

    /// Of several users together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { asked: self.asked | other.asked, shared: self.shared & other.shared }
    }
}
