//! Memory in slots with nothing between them, to catch whoever writes where they must not.

use std::io;
use std::ptr::{self, NonNull};

use crate::{Buf, MemError, Memory, PageSize, Region};

const PAGE: usize = PageSize::Small4K.bytes();

/// A region of slots for devices and others, each between two pages that nobody may touch. A slot
/// that is not lent may not be touched either: whoever does, by a stray copy or by a software
/// controller's late DMA, gets SIGSEGV at that instruction.
///
/// Meant for tests: each loan and each return is a system call. Only what goes through this
/// process's page tables is caught, so no DMA of hardware.
pub struct Guarded {
    region: Option<Region>,
    space: Space,
    slot_bytes: usize,
    /// Slots that are not lent.
    free: Vec<usize>,
}

/// A piece of a [`Guarded`] that may be touched until it is given back.
#[derive(Debug)]
pub struct Loan {
    slot: usize,
    /// How much of the slot, at its end: what runs past it meets the guard at once.
    len: usize,
}

/// Address space of our own, of which some can be touched; dropped, it is unmapped.
struct Space {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: SHARED: the bytes are reached by raw copies alone.
unsafe impl Send for Space {}

impl Guarded {
    /// `slots` slots of `slot_bytes`, registered with `memory`.
    ///
    /// # Errors
    /// `EINVAL` if the bytes are not whole pages; those of [`Memory::register`].
    pub fn new(memory: &Memory, slots: usize, slot_bytes: usize) -> Result<Guarded, MemError> {
        let whole = slots > 0 && slot_bytes > 0 && slot_bytes.is_multiple_of(PAGE);
        let stride = slot_bytes.checked_add(PAGE).filter(|_| whole);
        let len = stride.and_then(|stride| stride.checked_mul(slots)?.checked_add(PAGE));
        let Some(len) = len else {
            let text = format!("{slots} guarded slots of {slot_bytes} bytes: whole pages only");
            return Err(MemError::new(libc::EINVAL, text));
        };
        let space = Space::reserve(len)
            .map_err(|error| MemError::os(&error, format_args!("map {len} guarded bytes")))?;
        // SAFETY: the space outlives the region, which is unregistered before it is unmapped; no
        // reference to its bytes is made.
        let region = unsafe { memory.register(space.base, len) }?;
        Ok(Guarded { region: Some(region), space, slot_bytes, free: (0..slots).rev().collect() })
    }

    /// How many slots are not lent.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Lends `len` bytes that end where a guard begins; what the bytes hold is left from before.
    ///
    /// # Errors
    /// `ENOMEM` if all slots are lent, `EINVAL` if none is so long, and what the system says.
    pub fn lend(&mut self, len: usize) -> Result<(Loan, Buf), MemError> {
        if len == 0 || len > self.slot_bytes {
            let text = format!("{len} bytes of guarded slots of {}", self.slot_bytes);
            return Err(MemError::new(libc::EINVAL, text));
        }
        let Some(&slot) = self.free.last() else {
            return Err(MemError::new(libc::ENOMEM, "all guarded slots are lent"));
        };
        self.protect(slot, libc::PROT_READ | libc::PROT_WRITE)?;
        let loan = Loan { slot, len };
        let buf = self.alias(&loan)?;
        self.free.pop();
        Ok((loan, buf))
    }

    /// Another `Buf` of what is lent.
    ///
    /// # Errors
    /// None while the loan lasts.
    pub fn alias(&self, loan: &Loan) -> Result<Buf, MemError> {
        let at = self.offset(loan.slot) + self.slot_bytes - loan.len;
        let unregistered = || MemError::new(libc::ENODEV, "guarded memory that is no more");
        self.region.as_ref().ok_or_else(unregistered)?.buf(at, loan.len)
    }

    /// Takes a slot back: from now on whoever touches it faults. That is so for a `Buf` of it that
    /// somebody kept, too.
    ///
    /// # Errors
    /// What the system says; the slot is then not lent again.
    pub fn give_back(&mut self, loan: Loan) -> Result<(), MemError> {
        self.protect(loan.slot, libc::PROT_NONE)?;
        // The slots take turns, so that each stays out of reach for long.
        self.free.insert(0, loan.slot);
        Ok(())
    }

    fn offset(&self, slot: usize) -> usize {
        PAGE + slot * (self.slot_bytes + PAGE)
    }

    fn protect(&self, slot: usize, protection: libc::c_int) -> Result<(), MemError> {
        let at = self.space.base.as_ptr().wrapping_add(self.offset(slot));
        // SAFETY: pages of our own mapping, which are reached by raw copies alone.
        match unsafe { libc::mprotect(at.cast(), self.slot_bytes, protection) } {
            0 => Ok(()),
            _ => Err(MemError::last_os(format_args!("guard {} bytes", self.slot_bytes))),
        }
    }
}

impl Drop for Guarded {
    /// Memory that somebody still names is never unmapped.
    fn drop(&mut self) {
        if self.region.take().is_some_and(|region| region.try_unregister().is_err()) {
            self.space.len = 0;
        }
    }
}

impl Space {
    fn reserve(len: usize) -> io::Result<Space> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at an address of the system's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Space { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: LIVE: no region names these bytes any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the kernel can read a byte of ours, which it says in words instead of a signal.
    fn can_touch(at: *const u8) -> bool {
        let mut pipe = [0; 2];
        // SAFETY: system calls on descriptors of our own; the kernel checks the address.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let count = libc::write(pipe[1], at.cast(), 1);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            count == 1
        }
    }

    #[test]
    fn only_what_is_lent_can_be_touched() {
        let memory = Memory::new();
        let mut guarded = Guarded::new(&memory, 3, 4096).unwrap();
        let (loan, mut buf) = guarded.lend(512).unwrap();
        buf.write_at(0, &[7; 512]);
        let first = buf.addr().cast_const();
        assert!(can_touch(first) && can_touch(first.wrapping_add(511)));
        assert!(!can_touch(first.wrapping_add(512)), "the guard after it");
        assert!(!can_touch(first.wrapping_sub(4096)), "the guard before it");
        let mut byte = [0];
        guarded.alias(&loan).unwrap().read_at(511, &mut byte);
        assert_eq!(byte, [7]);
        guarded.give_back(loan).unwrap();
        assert!(!can_touch(first), "given back");
        drop(buf);
        // Two others have their turn before it.
        let (loans, bufs): (Vec<_>, Vec<_>) = (0..3).map(|_| guarded.lend(512).unwrap()).unzip();
        assert_eq!(bufs[2].addr().cast_const(), first);
        assert_eq!(guarded.lend(512).unwrap_err().errno(), libc::ENOMEM);
        assert_eq!(guarded.lend(4097).unwrap_err().errno(), libc::EINVAL);
        drop(bufs);
        loans.into_iter().for_each(|loan| guarded.give_back(loan).unwrap());
        assert_eq!(guarded.free(), 3);
    }
}
