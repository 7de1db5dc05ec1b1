//! What children are to their parents, and what a parent therefore asks of them.

use bitflags::bitflags;

use super::{Access, Permissions};

bitflags! {
    /// What a child is to its parent.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ChildRole: u8 {
        /// It stores what users see.
        const DATA = 1;
        /// It stores what the parent needs to find that.
        const METADATA = 2;
        /// The parent shows it as it is: what a filter is over.
        const FILTERED = 4;
        /// The parent shows it where it has nothing of its own: a backing file.
        const COW = 8;
        /// The child that a name of the parent stands for; at most one.
        const PRIMARY = 16;
        /// What `file` is to most formats.
        const IMAGE = Self::DATA.bits() | Self::METADATA.bits() | Self::PRIMARY.bits();
    }
}

/// A parent's question of what to ask of a child.
#[derive(Clone, Copy, Debug)]
pub struct ChildAsk {
    /// What the child is to the parent.
    pub role: ChildRole,
    /// What the parent's own users ask for and leave, together.
    pub parent: Access,
    /// Whether the parent takes writes.
    pub writable: bool,
}

/// How a driver answers that question.
pub type ChildRule = fn(ChildAsk) -> Access;

/// The rule of formats and filters that have no reason for another.
pub fn default_access(ask: ChildAsk) -> Access {
    if ask.role.contains(ChildRole::FILTERED) {
        ask.parent
    } else if ask.role.contains(ChildRole::COW) {
        backing_access(ask)
    } else {
        storage_access(ask)
    }
}

/// A backing file is read, and must not change beneath its overlay unless the overlay's users
/// bear with that.
fn backing_access(ask: ChildAsk) -> Access {
    let changes = Permissions::WRITE | Permissions::RESIZE;
    let bears_writes = ask.parent.shared.contains(Permissions::WRITE);
    let shared = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
    Access {
        asked: ask.parent.asked & Permissions::CONSISTENT_READ,
        shared: if bears_writes { shared | changes } else { shared },
    }
}

/// What a format keeps its image in is the format's alone to write and resize.
fn storage_access(ask: ChildAsk) -> Access {
    let Access { mut asked, mut shared } = ask.parent;
    if ask.role.contains(ChildRole::METADATA) {
        // It is read whatever the users do, and changed even if they write nothing.
        asked |= Permissions::CONSISTENT_READ;
        if ask.writable {
            asked |= Permissions::WRITE | Permissions::RESIZE;
        }
        shared -= Permissions::WRITE | Permissions::RESIZE;
    }
    if ask.role.contains(ChildRole::DATA) {
        // Its length may be part of the format. Copied clusters are new to it.
        shared -= Permissions::RESIZE;
        if asked.contains(Permissions::WRITE_UNCHANGED) {
            asked |= Permissions::WRITE;
        }
        if asked.contains(Permissions::WRITE) {
            asked |= Permissions::RESIZE;
        }
    }
    Access { asked, shared }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Permissions = Permissions::CONSISTENT_READ;
    const WRITE: Permissions = Permissions::WRITE;
    const RESIZE: Permissions = Permissions::RESIZE;
    const UNCHANGED: Permissions = Permissions::WRITE_UNCHANGED;

    fn access(role: ChildRole, parent: Access, writable: bool) -> (Permissions, Permissions) {
        let Access { asked, shared } = default_access(ChildAsk { role, parent, writable });
        (asked, shared)
    }

    #[test]
    fn a_filter_asks_what_its_users_ask() {
        let parent = Access { asked: UNCHANGED, shared: READ | WRITE };
        let role = ChildRole::FILTERED | ChildRole::PRIMARY;
        assert_eq!(access(role, parent, true), (UNCHANGED, READ | WRITE));
    }

    #[test]
    fn an_image_is_the_formats_alone() {
        let all = Permissions::all();
        let image = ChildRole::IMAGE;
        let idle = (READ | WRITE | RESIZE, READ | UNCHANGED);
        assert_eq!(access(image, Access::NONE, true), idle);
        assert_eq!(access(image, Access::NONE, false), (READ, READ | UNCHANGED));
        let copying = Access { asked: READ | UNCHANGED, shared: all };
        assert_eq!(access(image, copying, true), (all, READ | UNCHANGED));
        let data = access(ChildRole::DATA, copying, true);
        assert_eq!(data, (all, all - RESIZE));
    }

    #[test]
    fn a_backing_file_stands_still_unless_nobody_minds() {
        let reading = Access { asked: READ | WRITE, shared: READ };
        assert_eq!(access(ChildRole::COW, reading, true), (READ, READ | UNCHANGED));
        assert_eq!(access(ChildRole::COW, Access::NONE, true).1, Permissions::all());
    }
}
