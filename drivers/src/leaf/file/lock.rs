//! Locks by which the processes that use a file keep out of each other's way: those of QEMU.
//!
//! Each permission has two bytes of the file. Who uses the file in that way holds a lock on the
//! first, who does not bear others that do holds one on the second; all are shared locks
//! (F_RDLCK), which never stand against each other. To ask whether somebody holds one is to ask
//! whether an exclusive lock could be had (F_OFD_GETLK). Everybody first locks and then looks: of
//! two that do so at once, one at least sees the other.
//!
//! The locks are of an open file description of their own (OFD), so that they last from the first
//! descriptor of the file to the last, whichever of them is replaced in between.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use oxblock_engine::graph::{Access, Permissions};
use oxblock_engine::{Error, ErrorKind};

use super::{FileOptions, probe};

/// Where the bytes of what is done begin.
const ASKED_BASE: u64 = 100;
/// Where the bytes of what is not borne begin.
const UNSHARED_BASE: u64 = 200;

/// Whether other processes are kept from what does not go with what is done here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Where the kernel has the locks for it.
    #[default]
    Auto,
    /// Or the file is not opened.
    On,
    /// No.
    Off,
}

/// The locks on one file.
pub(super) struct FileLock {
    file: File,
    path: PathBuf,
    state: Mutex<State>,
}

/// Which bytes are locked, and what for.
struct State {
    access: Access,
    asked: Permissions,
    unshared: Permissions,
}

impl FileLock {
    /// The locks on a file that is open, none of which is taken yet; `None` if there shall be none.
    ///
    /// # Errors
    /// What open(2) says; another file has this name now; the kernel has no such locks, and they
    /// were asked for.
    pub(super) fn new(options: &FileOptions, of: &File) -> Result<Option<FileLock>, Error> {
        if options.locking == Locking::Off {
            return Ok(None);
        }
        let path = &options.path;
        let fail =
            |e| Error::from_io(format!("file {}: cannot open it for its locks", path.display()), e);
        let file = open_again(path, of).map_err(fail)?;
        let lock = FileLock {
            file,
            path: path.clone(),
            state: Mutex::new(State {
                access: Access::NONE,
                asked: Permissions::empty(),
                unshared: Permissions::empty(),
            }),
        };
        match probe::is_byte_locked(&lock.file, ASKED_BASE) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => match options.locking {
                Locking::On => {
                    let text = "this kernel has no locks of open file descriptions; open it with \
                                locking=off, and see to it that nobody else writes to it";
                    let text = format!("file {}: {text}", path.display());
                    Err(Error::new(ErrorKind::NotSupported, text))
                }
                Locking::Auto | Locking::Off => Ok(None),
            },
            // Any other failure is told where a lock is taken.
            _ => Ok(Some(lock)),
        }
    }

    /// See [`Driver::check_access`](oxblock_engine::Driver::check_access).
    pub(super) fn check(&self, access: Access) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let gives_up_only = state.access.asked.contains(access.asked)
            && access.shared.contains(state.access.shared);
        if gives_up_only {
            return Ok(());
        }
        let both = state.access.and(access);
        self.lock(&mut state, both)?;
        self.look(access)
    }

    /// See [`Driver::set_access`](oxblock_engine::Driver::set_access). What cannot be unlocked stays
    /// locked: it keeps out too many, never too few.
    pub(super) fn set(&self, access: Access) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { asked, unshared, .. } = &mut *state;
        self.unlock(asked, access.asked, ASKED_BASE);
        self.unlock(unshared, access.shared.complement(), UNSHARED_BASE);
        state.access = access;
    }

    /// Takes what is not locked yet.
    fn lock(&self, state: &mut State, access: Access) -> Result<(), Error> {
        let State { asked, unshared, .. } = state;
        for (held, needed, base) in [
            (asked, access.asked, ASKED_BASE),
            (unshared, access.shared.complement(), UNSHARED_BASE),
        ] {
            for one in (needed - *held).iter() {
                let byte = byte_of(one, base);
                probe::lock_byte(&self.file, byte, true)
                    .map_err(|e| self.error(&format!("Failed to lock byte {byte}"), &e))?;
                *held |= one;
            }
        }
        Ok(())
    }

    fn unlock(&self, held: &mut Permissions, needed: Permissions, base: u64) {
        for one in (*held - needed).iter() {
            if probe::lock_byte(&self.file, byte_of(one, base), false).is_ok() {
                *held -= one;
            }
        }
    }

    /// Whether all other processes bear what is asked for, and do nothing that is not borne here.
    fn look(&self, access: Access) -> Result<(), Error> {
        for (permissions, base, shared) in
            [(access.asked, UNSHARED_BASE, ""), (access.shared.complement(), ASKED_BASE, "shared ")]
        {
            for one in permissions.iter() {
                let what = format!("Failed to get {shared}\"{one}\" lock");
                match probe::is_byte_locked(&self.file, byte_of(one, base)) {
                    Ok(false) => {}
                    Ok(true) => {
                        let hint = "Is another process using the image";
                        let text = format!("{what}\n{hint} [{}]?", self.path.display());
                        return Err(Error::new(ErrorKind::Busy, text));
                    }
                    Err(error) => return Err(self.error(&what, &error)),
                }
            }
        }
        Ok(())
    }

    fn error(&self, what: &str, error: &io::Error) -> Error {
        let text = format!(
            "{what}: {error}\nThe file system of [{}] may have no locks: give locking=off, and see to it that nobody \
             else writes to it",
            self.path.display()
        );
        let kind = error.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        Error::new(kind, text)
    }
}

fn byte_of(permission: Permissions, base: u64) -> u64 {
    base + u64::from(permission.bits().trailing_zeros())
}

/// A descriptor of the same file with a description of its own.
fn open_again(path: &Path, of: &File) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check_is_same(&file, of)?;
    Ok(file)
}

/// Refuses a file that was opened by the name of another.
pub(super) fn check_is_same(file: &File, other: &File) -> io::Result<()> {
    let (one, other) = (file.metadata()?, other.metadata()?);
    if (one.dev(), one.ino()) != (other.dev(), other.ino()) {
        return Err(io::Error::other("another file has its name now; open that instead"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Permissions = Permissions::CONSISTENT_READ;
    const WRITE: Permissions = Permissions::WRITE;
    const ALL: Permissions = Permissions::all();

    fn lock(path: &Path) -> FileLock {
        let file = File::open(path).expect("the file");
        FileLock::new(&FileOptions::new(path), &file).expect("a descriptor").expect("locks")
    }

    fn disk() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().expect("a file")
    }

    const fn access(asked: Permissions, shared: Permissions) -> Access {
        Access { asked, shared }
    }

    #[test]
    fn two_writers_do_not_get_the_lock_whoever_does_not_share_it() {
        let disk = disk();
        let (one, other) = (lock(disk.path()), lock(disk.path()));
        let (shares, alone) = (access(READ | WRITE, ALL), access(READ | WRITE, READ));
        one.check(shares).expect("the first");
        one.set(shares);
        other.check(shares).expect("both share");
        other.set(shares);
        let error = other.check(alone).expect_err("another writes").to_string();
        assert!(error.starts_with("Failed to get shared \"write\" lock\n"), "{error}");
        other.set(Access::NONE);
        one.check(alone).expect("the other went");
        one.set(alone);
        let error = other.check(shares).expect_err("not shared").to_string();
        let hint = format!("Is another process using the image [{}]?", disk.path().display());
        assert_eq!(error, format!("Failed to get \"write\" lock\n{hint}"));
        other.set(Access::NONE);
        other.check(access(READ, ALL)).expect("reads are borne");
    }

    /// Between a check and what follows it, both the old and the new are kept from others.
    #[test]
    fn nothing_is_given_up_before_the_change_is_certain() {
        let disk = disk();
        let (one, other) = (lock(disk.path()), lock(disk.path()));
        let (reads, writes) = (access(READ, READ), access(WRITE, WRITE));
        one.check(reads).expect("the first");
        one.set(reads);
        one.check(writes).expect("its own locks do not stand against it");
        assert!(other.check(access(WRITE, ALL)).is_err(), "not borne by the old");
        other.set(Access::NONE);
        assert!(other.check(access(READ, ALL)).is_err(), "not borne by the new");
        other.set(Access::NONE);
        one.set(reads);
        other.check(access(READ, READ)).expect("the change came to nothing");
    }

    #[test]
    fn a_failed_check_leaves_nothing_locked_once_it_is_taken_back() {
        let disk = disk();
        let (one, other) = (lock(disk.path()), lock(disk.path()));
        one.check(access(WRITE, ALL)).expect("the first");
        one.set(access(WRITE, ALL));
        other.check(access(READ, READ)).expect_err("a writer is there");
        other.set(Access::NONE);
        for byte in (ASKED_BASE..ASKED_BASE + 4).chain(UNSHARED_BASE..UNSHARED_BASE + 4) {
            let locked = probe::is_byte_locked(&other.file, byte).expect("an answer");
            assert_eq!(locked, byte == ASKED_BASE + 1, "byte {byte}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_not_taken_for_the_one_that_is_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        std::fs::write(&path, "one").expect("a file");
        let file = File::open(&path).expect("the file");
        std::fs::write(folder.path().join("new"), "other").expect("another");
        std::fs::rename(folder.path().join("new"), &path).expect("in its place");
        let error = FileLock::new(&FileOptions::new(&path), &file).err().expect("a refusal");
        assert!(error.to_string().contains("another file has its name"), "{error}");
    }
}
