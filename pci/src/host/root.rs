//! Reads `/proc` and `/sys` under a root directory, bounded, and believing nothing of it; and
//! writes the attributes by which a driver is given or taken.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The most that is read of one file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most names that are taken from one directory.
const NAMES_MAX: usize = 1 << 16;

/// Where `/proc`, `/sys`, `/dev` and `/run` are looked for: `/`, or a test's directory.
pub struct Root(PathBuf);

impl Root {
    /// Looks under `path`.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The place of `path`, which is relative to the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// What a file says, trimmed and without control characters but line ends and tabs; `None`
    /// when it is not a readable file. Cut after 1 MiB.
    pub fn text(&self, path: &str) -> Option<String> {
        let path = self.path(path);
        // A pipe would block the opener.
        if !path.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(printable(String::from_utf8_lossy(&bytes).trim()))
    }

    /// The whole number that a file holds.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a directory, sorted; empty when there is none.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let names = entries.flatten().take(NAMES_MAX);
        let mut names: Vec<String> =
            names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| !name.contains(char::is_control));
        names.sort();
        names
    }

    /// The last part of what a symbolic link points to.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(printable(target.file_name()?.to_str()?))
    }

    /// What a symbolic link points to, as it is written there.
    pub fn link(&self, path: &str) -> Option<PathBuf> {
        std::fs::read_link(self.path(path)).ok()
    }

    /// The number of a file or directory in its file system, links followed.
    pub fn inode(&self, path: &str) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        Some(self.path(path).metadata().ok()?.ino())
    }

    /// Writes an attribute of the kernel: the file must be there, and takes it in one call.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
        file.write_all(text.as_bytes())
    }

    /// Is there anything of that name?
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// May this user read and write it?
    pub fn is_accessible(&self, path: &str) -> bool {
        use rustix::fs::{Access, access};
        let path: &Path = &self.path(path);
        access(path, Access::READ_OK | Access::WRITE_OK).is_ok()
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}
