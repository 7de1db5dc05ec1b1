//! A table of words that outlives the process, or is as lazily made as if it did.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use crate::MemError;

/// 64-bit words in a mapping of their own: of a file, so that what was stored is there after the
/// process was killed at any instruction (though not after the power went), or of memory.
///
/// All access is atomic. A word that was never stored is 0 and takes no memory. Not inherited by
/// `fork`. The file must not be made shorter meanwhile: a touch past its end is a SIGBUS. It is
/// locked (flock) against other tables of ours.
#[derive(Debug)]
pub struct MappedWords {
    base: NonNull<AtomicU64>,
    count: usize,
    /// Keeps the lock.
    _file: Option<File>,
}

// SAFETY: SHARED: the bytes are reached as atomics alone.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// `count` words of memory, all 0.
    ///
    /// # Errors
    /// `EINVAL` for no words, `ENOMEM` for more than the system can map.
    pub fn anonymous(count: usize) -> Result<MappedWords, MemError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        MappedWords::map(count, flags, None)
            .map_err(|error| MemError::os(&error, format_args!("map a table of {count} words")))
    }

    /// `count` words of the file at `path`, all 0. The file is made, or emptied if it is there;
    /// its blocks are reserved.
    ///
    /// # Errors
    /// Those of the system's; `EWOULDBLOCK` while another process has it as its table.
    pub fn create(path: &Path, count: usize) -> Result<MappedWords, MemError> {
        let made = || {
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
            lock(&file, libc::LOCK_EX)?;
            file.set_len(0)?;
            reserve(&file, bytes(count)?)?;
            MappedWords::map(count, libc::MAP_SHARED, Some(file))
        };
        made().map_err(|error| failed(&error, "make", path))
    }

    /// A private copy of a file's words, as many as it has whole: what is stored is not kept.
    ///
    /// # Errors
    /// Those of the system's; `EINVAL` if the file holds no word, `EWOULDBLOCK` while a process
    /// has it as its table.
    pub fn open_copy(path: &Path) -> Result<MappedWords, MemError> {
        let opened = || {
            let file = File::open(path)?;
            lock(&file, libc::LOCK_SH)?;
            let count = usize::try_from(file.metadata()?.len() / 8).unwrap_or(usize::MAX);
            MappedWords::map(count, libc::MAP_PRIVATE | libc::MAP_NORESERVE, Some(file))
        };
        opened().map_err(|error| failed(&error, "open", path))
    }

    fn map(count: usize, flags: libc::c_int, file: Option<File>) -> io::Result<MappedWords> {
        let len = bytes(count)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_ref().map_or(-1, |file| file.as_raw_fd());
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice on our own mapping, which may fail without harm.
        unsafe { libc::madvise(base, len, libc::MADV_DONTFORK) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(MappedWords { base, count, _file: file })
    }
}

impl Deref for MappedWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: LIVE: so many words are mapped until the drop, on a page's boundary. SHARED:
        // nothing but atomics reaches them, neither here nor in another process.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: LIVE: nothing borrows the words any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * 8) };
    }
}

/// The length of `count` words; `mmap` and `fallocate` take no length of 0.
fn bytes(count: usize) -> io::Result<usize> {
    let len = count.checked_mul(8).filter(|&len| len > 0 && isize::try_from(len).is_ok());
    len.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn lock(file: &File, how: libc::c_int) -> io::Result<()> {
    // SAFETY: a system call on our own file.
    let rc = unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a file its blocks, so that a store into a hole of a full disk raises no SIGBUS.
fn reserve(file: &File, len: usize) -> io::Result<()> {
    // SAFETY: a system call on our own file.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as libc::off_t) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn failed(error: &io::Error, what: &str, path: &Path) -> MemError {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::EWOULDBLOCK) => MemError::new(
            libc::EWOULDBLOCK,
            format!("{what} the table in {path}: another process uses it; give another name"),
        ),
        _ => MemError::os(error, format_args!("{what} the table in {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::atomic::Ordering::Relaxed;

    /// A path of a test's own, gone when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("oxblock-mapped-words-{}-{name}", std::process::id());
            Scratch(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn memory_begins_as_zeroes_and_takes_only_what_is_touched() {
        // 8 TiB: more than any machine has.
        let words = MappedWords::anonymous(1 << 40).expect("address space");
        assert_eq!(words.len(), 1 << 40);
        words[1 << 39].store(7, Relaxed);
        let read = |at: usize| words[at].load(Relaxed);
        assert_eq!((read(0), read(1 << 39), read((1 << 40) - 1)), (0, 7, 0));
        assert!(MappedWords::anonymous(0).is_err() && MappedWords::anonymous(1 << 61).is_err());
    }

    #[test]
    fn a_file_has_what_was_stored_without_any_call() {
        let scratch = Scratch::new("stored");
        let words = MappedWords::create(&scratch.0, 1000).expect("a table");
        words[999].store(0x0102_0304_0506_0708, Relaxed);
        let bytes = std::fs::read(&scratch.0).expect("the file");
        assert_eq!(bytes.len(), 8000);
        assert_eq!(bytes[7992..], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        assert!(bytes[..7992].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_copy_keeps_nothing_and_waits_for_the_owner() {
        let scratch = Scratch::new("copy");
        let words = MappedWords::create(&scratch.0, 3).expect("a table");
        words[1].store(5, Relaxed);
        for error in [
            MappedWords::open_copy(&scratch.0).expect_err("in use"),
            MappedWords::create(&scratch.0, 3).expect_err("in use"),
        ] {
            assert_eq!(error.errno(), libc::EWOULDBLOCK, "{error}");
        }
        drop(words);
        let copy = MappedWords::open_copy(&scratch.0).expect("a copy");
        assert_eq!((copy.len(), copy[1].load(Relaxed)), (3, 5));
        copy[1].store(6, Relaxed);
        drop(copy);
        let again = MappedWords::open_copy(&scratch.0).expect("a copy");
        assert_eq!(again[1].load(Relaxed), 5);
    }

    #[test]
    fn making_it_again_empties_it() {
        let scratch = Scratch::new("again");
        let words = MappedWords::create(&scratch.0, 600).expect("a table");
        words.iter().for_each(|word| word.store(u64::MAX, Relaxed));
        drop(words);
        let words = MappedWords::create(&scratch.0, 700).expect("a table");
        assert!(words.len() == 700 && words.iter().all(|word| word.load(Relaxed) == 0));
    }

    #[test]
    fn what_cannot_be_a_table_says_which_file() {
        let scratch = Scratch::new("empty");
        std::fs::write(&scratch.0, b"1234567").expect("a file");
        let error = MappedWords::open_copy(&scratch.0).expect_err("less than a word");
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("empty"), "{error}");
        let error = MappedWords::create(Path::new("/no/such/folder/x"), 1).expect_err("no folder");
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
    }
}
