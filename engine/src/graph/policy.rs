//! What may be opened by names that stand in images, and whether formats are guessed.
//!
//! Whoever wrote an image chose the names in it. A library that opens it for somebody else follows
//! none unless it was told which (CVE-2024-32498, CVE-2022-47951, CVE-2026-27211).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::Drivers;
use super::path::has_protocol;
use crate::options::{NodeOptions, invalid};
use crate::{Error, ErrorKind};

/// Which names in images are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageNames {
    /// None. A node whose image names a backing file is opened with its `backing` given.
    #[default]
    Deny,
    /// Regular files beneath a folder that are reached through no symbolic link.
    Beneath(PathBuf),
    /// Of those, the ones in this list, relative to the folder.
    Listed(PathBuf, Vec<String>),
    /// Any name that a user could give, protocols and `json:` among them. For tools, whose users
    /// expect it.
    Any,
}

/// What an open goes by where its options say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPolicy {
    /// Which names in images are opened.
    pub image_names: ImageNames,
    /// How many images a chain may have that are reached through names in images.
    pub max_depth: usize,
    /// Whether a format that is not given is guessed from the image. A guest that writes to a raw
    /// image can make it look like any other: this is for tools, whose users expect it.
    pub probes: bool,
}

impl Default for OpenPolicy {
    /// The library's: no names, no guesses.
    fn default() -> Self {
        Self { image_names: ImageNames::Deny, max_depth: 64, probes: false }
    }
}

/// What a name stands for.
pub(super) struct Resolved {
    /// The options of the node: of a format, or of none yet and with a `file`.
    pub options: NodeOptions,
    /// The very file that was found, where it may not be looked up again.
    pub file: Option<FoundFile>,
}

/// A file that was found by the rules, opened for nothing.
pub(super) struct FoundFile(OwnedFd);

impl FoundFile {
    /// A path to just this file, whatever became of its name.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl OpenPolicy {
    /// What QEMU's tools go by.
    pub fn of_tools() -> Self {
        Self { image_names: ImageNames::Any, max_depth: 200, probes: true }
    }

    /// What a name from an image stands for, made whole already.
    ///
    /// Errors: `Denied`, in words that say what to do; what openat2(2) says.
    pub(super) fn resolve(&self, name: &str, drivers: &Drivers) -> Result<Resolved, Error> {
        let (folder, list) = match &self.image_names {
            ImageNames::Any => {
                let options = drivers.options_of_name(name)?;
                return Ok(Resolved { options, file: None });
            }
            ImageNames::Deny => {
                let text = format!(
                    "the image names the file '{name}', and names in images are not followed; \
                     give 'backing' (null for none), or open with a policy that allows it"
                );
                return Err(Error::new(ErrorKind::Denied, text));
            }
            ImageNames::Beneath(folder) => (folder, None),
            ImageNames::Listed(folder, list) => (folder, Some(list)),
        };
        let beneath = beneath(folder, name)?;
        let is_listed = |list: &Vec<String>| list.iter().any(|known| Path::new(known) == beneath);
        if list.is_some_and(|list| !is_listed(list)) {
            return Err(denied(name, folder, "it is none of the files that may be opened"));
        }
        let file = open_beneath(folder, &beneath, name)?;
        let mut child = NodeOptions::new();
        child.set("driver", Drivers::PLAIN);
        child.set("filename", name);
        let mut options = NodeOptions::new();
        options.set_child("file", child);
        Ok(Resolved { options, file: Some(FoundFile(file)) })
    }
}

/// A plain name, seen from the folder.
fn beneath(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    if has_protocol(name) {
        return Err(denied(name, folder, "only plain file names may be opened"));
    }
    let whole = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Error::from_io(format!("'{}'", path.display()), error))
    };
    let (folder_path, path) = (whole(folder)?, whole(Path::new(name))?);
    let beneath = path.strip_prefix(&folder_path).map(Path::to_path_buf);
    beneath.map_err(|_| denied(name, folder, "it does not lie there"))
}

fn open_beneath(folder: &Path, beneath: &Path, name: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| Error::from_io(format!("'{}'", folder.display()), error.into()))?;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&root, beneath, flags, Mode::empty(), how);
    let file = opened.map_err(|error| match error {
        rustix::io::Errno::XDEV => denied(name, folder, "it does not lie there"),
        rustix::io::Errno::LOOP => denied(name, folder, "a symbolic link leads there"),
        other => Error::from_io(format!("Could not open '{name}'"), io::Error::from(other)),
    })?;
    let stat = rustix::fs::fstat(&file)
        .map_err(|error| Error::from_io(format!("'{name}'"), io::Error::from(error)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(denied(name, folder, "it is no regular file"));
    }
    Ok(file)
}

fn denied(name: &str, folder: &Path, why: &str) -> Error {
    let text = format!(
        "the image names the file '{name}', and only names beneath '{}' are followed: {why}",
        folder.display()
    );
    Error::new(ErrorKind::Denied, text)
}

/// The images that led to one that is being opened, through the names in them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    images: Vec<FileId>,
    depth: usize,
}

/// Which file it is, whatever it is called: device and inode.
pub(super) type FileId = (u64, u64);

impl Chain {
    /// The chain one further, beneath an image that lies in `file`.
    ///
    /// Errors: `Invalid`, it is too long.
    pub fn beneath(&self, file: Option<FileId>, policy: &OpenPolicy) -> Result<Self, Error> {
        if self.depth >= policy.max_depth {
            let most = policy.max_depth;
            return Err(invalid(format!("the chain of backing files has more than {most} images")));
        }
        let mut images = self.images.clone();
        images.extend(file);
        Ok(Self { images, depth: self.depth + 1 })
    }

    /// Which file lies at a path, unless it closes the chain to a circle.
    ///
    /// Errors: `Invalid`, it does.
    pub fn file(&self, path: &str, name: &str) -> Result<Option<FileId>, Error> {
        let Ok(stat) = rustix::fs::stat(path) else { return Ok(None) };
        let id = (stat.st_dev, stat.st_ino);
        if self.images.contains(&id) {
            return Err(invalid(format!("Backing file '{name}' creates an infinite loop.")));
        }
        Ok(Some(id))
    }
}
