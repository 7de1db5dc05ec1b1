//! Operations that somebody has forbidden on a node, and why.

use std::fmt;

/// An operation of the control plane that can be forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpType {
    /// To be read by a backup.
    BackupSource,
    /// To be written by a backup.
    BackupTarget,
    /// To be changed for another medium.
    Change,
    /// To be emptied into its backing file.
    CommitSource,
    /// To be committed into.
    CommitTarget,
    /// To be deleted.
    DriveDel,
    /// To be ejected.
    Eject,
    /// To become a backing file.
    ExternalSnapshot,
    /// To get a snapshot inside its image.
    InternalSnapshot,
    /// To lose one.
    InternalSnapshotDelete,
    /// To be mirrored.
    MirrorSource,
    /// To be written by a mirror.
    MirrorTarget,
    /// To be resized.
    Resize,
    /// To take over its backing file's data.
    Stream,
    /// To be replaced by another node.
    Replace,
}

/// Why operations are forbidden: the first words of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Blocker {
    pub op: OpType,
    pub reason: String,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
