use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use crate::buf::{Buf, Header, Kind};
use crate::home::Home;
use crate::returns::{END, Returns};
use crate::sync::AtomicU32;
use crate::{Arena, MemError};

/// Buffers of one size for one core: taken and given back without allocating, locking or
/// blocking.
///
/// The thread that takes first owns the pool (HOME); until then it may be moved to another.
/// Buffers travel freely: one that is dropped on the owner's thread goes to a plain list, on any
/// other thread to a lock-free stack from which the owner refills. The pool's memory goes back
/// to the arena after the pool and its last buffer are dropped.
///
/// ```compile_fail
/// fn share<T: Sync>() {}
/// share::<oxblock_mem::Pool>();
/// ```
///
/// A pool that has an owner should be dropped on its thread. Dropped elsewhere, its memory is
/// never given back, because buffers might still be going home to the owner's list.
pub struct Pool {
    shared: NonNull<PoolShared>,
    /// Not Sync.
    _cells: PhantomData<Cell<()>>,
}

// SAFETY: HOME: what the owner alone may touch is checked against the thread's number.
unsafe impl Send for Pool {}

impl Pool {
    /// A pool of `count` buffers of `buf_len` bytes from the arena. Each starts at a multiple of
    /// the largest power of two that divides `buf_len`, up to 4096, and of 64 at least. Control
    /// plane: it locks and allocates.
    ///
    /// # Errors
    /// `EINVAL` if either is 0 or they are too large; `ENOMEM` if the arena has no room.
    pub fn new(arena: &Arena, buf_len: usize, count: usize) -> Result<Pool, MemError> {
        let align = (1 << buf_len.trailing_zeros().min(12)).max(64);
        let stride = buf_len.checked_next_multiple_of(64).unwrap_or(0);
        let bytes = stride.checked_mul(count).unwrap_or(0);
        if buf_len == 0 || bytes == 0 || count > MAX_COUNT {
            let text = format!("pool of {count} buffers of {buf_len} bytes: not a possible size");
            return Err(MemError::new(libc::EINVAL, text));
        }
        let memory = arena
            .alloc_unzeroed(bytes, align)
            .map_err(|error| error.context(format_args!("pool of {count} buffers")))?;
        let shared = Box::leak(Box::<PoolShared>::new_uninit());
        let this = NonNull::from(&mut *shared).cast::<PoolShared>();
        let slot = |index: usize| Slot {
            header: Header {
                bufs: AtomicUsize::new(0),
                region: memory.header().region,
                kind: Kind::Pool,
            },
            next: AtomicU32::new(if index + 1 < count { index as u32 + 1 } else { END }),
            index: index as u32,
            pool: this,
            // SAFETY: index * stride lies within the bytes allocated.
            ptr: unsafe { NonNull::new_unchecked(memory.addr().add(index * stride)) },
        };
        shared.write(PoolShared {
            home: Home::new(),
            local: Cell::new(0),
            free: Cell::new(count),
            buf_len,
            slots: (0..count).map(slot).collect(),
            returns: CachePadded::new(Returns::new(count)),
            _memory: memory,
        });
        Ok(Pool { shared: this, _cells: PhantomData })
    }

    /// A buffer of [`buf_len`](Pool::buf_len) bytes, whatever they hold; `None` if all are out.
    ///
    /// # Panics
    /// If another thread has taken before: the pool is that thread's.
    #[inline]
    pub fn take(&self) -> Option<Buf> {
        let shared = self.shared();
        shared.home.settle_here();
        let mut index = shared.local.get();
        if index == END {
            index = shared.refill();
        }
        let slot = shared.slots.get(index as usize)?;
        shared.local.set(slot.next.load(Ordering::Relaxed));
        shared.free.set(shared.free.get() - 1);
        slot.header.bufs.store(1, Ordering::Relaxed);
        // SAFETY: OWNED: the slot was on the free list; counted above; LIVE: the pool's memory
        // waits for all slots. The header leads the slot.
        Some(unsafe { Buf::from_raw(slot.ptr, shared.buf_len, NonNull::from(slot).cast()) })
    }

    /// As [`take`](Pool::take), with all bytes 0.
    ///
    /// # Panics
    /// As [`take`](Pool::take).
    #[inline]
    pub fn take_zeroed(&self) -> Option<Buf> {
        let mut buf = self.take()?;
        buf.fill(0, buf.len(), 0);
        Some(buf)
    }

    /// How many buffers can be taken now.
    ///
    /// # Panics
    /// As [`take`](Pool::take).
    pub fn available(&self) -> usize {
        let shared = self.shared();
        if !shared.home.is_open() {
            shared.home.settle_here();
            shared.refill();
        }
        shared.free.get()
    }

    /// The length of its buffers in bytes.
    #[inline]
    pub fn buf_len(&self) -> usize {
        self.shared().buf_len
    }

    /// How many buffers it has in all.
    pub fn count(&self) -> usize {
        self.shared().slots.len()
    }

    #[inline]
    fn shared(&self) -> &PoolShared {
        // SAFETY: freed only after this handle has settled its part, in `drop`.
        unsafe { self.shared.as_ref() }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let shared = self.shared();
        if !shared.home.is_here() && !shared.home.is_open() {
            return;
        }
        // From here on buffers come back through `returns` even on this thread.
        shared.home.leave();
        if shared.returns.close(shared.free.get(), |first| shared.chain(first).0) {
            // SAFETY: all slots and the handle are home.
            unsafe { free(self.shared) };
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Pool");
        out.field("buf_len", &self.buf_len()).field("count", &self.count()).finish()
    }
}

/// Slot numbers fit the links, and the two numbers beyond are signs of `Returns`.
const MAX_COUNT: usize = u32::MAX as usize - 2;

/// A pool and its slots; freed when the pool is dropped and all buffers are home.
struct PoolShared {
    /// Whose `local` and `free` are.
    home: Home,
    local: Cell<u32>,
    /// The length of the local list.
    free: Cell<usize>,
    buf_len: usize,
    slots: Box<[Slot]>,
    returns: CachePadded<Returns>,
    _memory: Buf,
}

/// One buffer, led by the header of its `Buf`s. A cache line of its own: cores that hold
/// neighbouring buffers do not meet.
#[repr(C, align(64))]
pub(crate) struct Slot {
    header: Header,
    /// The link of whichever list it is on.
    next: AtomicU32,
    index: u32,
    pool: NonNull<PoolShared>,
    ptr: NonNull<u8>,
}

impl PoolShared {
    /// Puts what other threads returned before the local list; its first slot or `END`.
    #[cold]
    fn refill(&self) -> u32 {
        let first = self.returns.take_all();
        let (count, last) = self.chain(first);
        if let Some(last) = self.slots.get(last as usize) {
            last.next.store(self.local.get(), Ordering::Relaxed);
            self.local.set(first);
            self.free.set(self.free.get() + count);
        }
        self.local.get()
    }

    /// The length of a chain and its last slot.
    fn chain(&self, first: u32) -> (usize, u32) {
        let (mut count, mut last, mut at) = (0, END, first);
        while let Some(slot) = self.slots.get(at as usize) {
            (count, last, at) = (count + 1, at, slot.next.load(Ordering::Relaxed));
        }
        (count, last)
    }
}

/// Takes a slot home.
///
/// # Safety
/// COUNT: the slot's last `Buf` is gone.
#[inline]
pub(crate) unsafe fn give_back(slot: NonNull<Slot>) {
    // SAFETY: the pool waits for this slot.
    let (slot, pool) = unsafe { (slot.as_ref(), slot.as_ref().pool) };
    // SAFETY: as above.
    let shared = unsafe { pool.as_ref() };
    if shared.home.is_here() {
        slot.next.store(shared.local.get(), Ordering::Relaxed);
        shared.local.set(slot.index);
        shared.free.set(shared.free.get() + 1);
    } else if shared.returns.push(slot.index, &slot.next) {
        // SAFETY: all slots and the handle are home.
        unsafe { free(pool) };
    }
}

/// # Safety
/// `Returns` said that all are home.
#[cold]
unsafe fn free(pool: NonNull<PoolShared>) {
    // SAFETY: leaked by `Pool::new`, and nobody else knows it.
    drop(unsafe { Box::from_raw(pool.as_ptr()) });
}
