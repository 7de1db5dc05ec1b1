//! Memory of other processes that vanishes under us.
//!
//! Whoever sent a file descriptor may cut the file short at any time, punch holes into it where
//! no hugepage is left to fill them, or fill up the file system behind it; our next access then
//! raises SIGBUS, which ends the process and with it everybody else's I/O. Seals rule out the
//! first only, and neither files in a hugetlbfs nor other people's memfds have them. So ranges
//! that others may take away are listed here, and the handler puts a page of a common sink in the
//! place of one that has gone: reads of it give anything, writes to it are lost, the access goes
//! on, and the range is marked [lost](Guard::is_lost). Any other SIGBUS goes where it went before.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use crate::{MemError, map};

/// Length of the sink: pages above it are replaced in pieces.
const SINK_LEN: usize = 2 << 20;

/// A range whose pages may vanish; its drop ends the watch.
pub(crate) struct Guard(&'static Range);

/// A listed range. Never freed, but used again, so the list is no longer than the most ranges
/// that there were at a time.
struct Range {
    /// Address of the first byte; 0 while the entry is free.
    start: AtomicUsize,
    len: AtomicUsize,
    page_bytes: AtomicUsize,
    lost: AtomicBool,
    next: AtomicPtr<Range>,
}

/// The list, for the handler: entries are added in front, and stay.
static RANGES: AtomicPtr<Range> = AtomicPtr::new(ptr::null_mut());
/// Held by those who change it.
static CHANGE: Mutex<()> = Mutex::new(());
/// The file of the sink, once there is one.
static SINK: AtomicI32 = AtomicI32::new(-1);
/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Guard {
    /// Watches over a mapped range, made of pages of `page_bytes`.
    pub(crate) fn new(start: usize, len: usize, page_bytes: usize) -> Result<Guard, MemError> {
        install()?;
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let range = entries().find(|range| range.start.load(Ordering::Relaxed) == 0);
        let range = range.unwrap_or_else(|| {
            let range = Box::leak(Box::new(Range {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                page_bytes: AtomicUsize::new(0),
                lost: AtomicBool::new(false),
                next: AtomicPtr::new(RANGES.load(Ordering::Relaxed)),
            }));
            RANGES.store(range, Ordering::Release);
            range
        });
        range.len.store(len, Ordering::Relaxed);
        range.page_bytes.store(page_bytes, Ordering::Relaxed);
        range.lost.store(false, Ordering::Relaxed);
        range.start.store(start, Ordering::Release);
        Ok(Guard(range))
    }

    /// True once a page has vanished.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.start.store(0, Ordering::Release);
    }
}

fn entries() -> impl Iterator<Item = &'static Range> {
    let next = |at: &AtomicPtr<Range>| {
        // SAFETY: entries are leaked, and complete before they are listed.
        unsafe { at.load(Ordering::Acquire).as_ref::<'static>() }
    };
    std::iter::successors(next(&RANGES), move |range| next(&range.next))
}

/// Makes the sink and takes SIGBUS over, once.
fn install() -> Result<(), MemError> {
    static INSTALL: Once = Once::new();
    let mut failed = None;
    INSTALL.call_once_force(|_| failed = try_install().err());
    match failed {
        Some(error) => Err(MemError::os(&error, "guard memory of another process (SIGBUS)")),
        None if SINK.load(Ordering::Acquire) < 0 => {
            Err(MemError::new(libc::EIO, "memory of another process cannot be guarded (SIGBUS)"))
        }
        None => Ok(()),
    }
}

fn try_install() -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    let sink = map::memfd(0, SINK_LEN)?.into_raw_fd();
    // SAFETY: plain structs of integers, for the kernel to read and to fill; the handler stays
    // for as long as the process.
    let before = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        BEFORE.get_or_init(|| before);
        SINK.store(sink, Ordering::Release);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())
    };
    if before == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Async-signal-safe: atomics and system calls, `errno` put back.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo; `errno` is this thread's.
    let (code, address, errno) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, *libc::__errno_location()) };
    // Those that a process sends have no address.
    let replaced = code > 0 && entries().any(|range| range.replace(address));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !replaced {
        pass_on(signal, info, context);
    }
}

impl Range {
    /// Puts the sink in the place of a page, if the address is ours.
    fn replace(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        let page_bytes = self.page_bytes.load(Ordering::Acquire);
        // An entry that changes meanwhile is not the one with the address: that is being used.
        let stable = start != 0 && self.start.load(Ordering::Acquire) == start;
        if !stable || address < start || address - start >= len {
            return false;
        }
        self.lost.store(true, Ordering::Relaxed);
        let page = address & !(page_bytes - 1);
        let sink = SINK.load(Ordering::Acquire);
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        (page..page + page_bytes).step_by(SINK_LEN).all(|at| {
            let (at, piece) = (ptr::without_provenance_mut(at), page_bytes.min(SINK_LEN));
            // SAFETY: replaces a page, gone already, of a mapping that is ours until the guard
            // is dropped; bytes there are SHARED, so nobody minds what they are.
            unsafe { libc::mmap(at, piece, access, flags, sink, 0) != libc::MAP_FAILED }
        })
    }
}

/// What SIGBUS did before us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type WithInfo = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    type Plain = extern "C" fn(libc::c_int);
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: a plain struct; with the default back, the access ends the process when
            // it is tried again.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of this kind.
            let handler: WithInfo = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above.
            let handler: Plain = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
