//! An allocator that counts, so that "no heap allocation on the I/O path" is a measured figure.
//!
//! A program installs it with `#[global_allocator]`; each thread then reads its own count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with one count per thread of the calls that take memory.
///
/// ```
/// use oxblock_mem::counting_alloc::{CountingAllocator, allocations};
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
///
/// let before = allocations();
/// drop(std::hint::black_box(Box::new([0u8; 64])));
/// assert_eq!(allocations() - before, 1);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

thread_local! {
    // Const and without a destructor: reaching it allocates nothing and works in any state of
    // the thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Allocations and reallocations of this thread since it started; always 0 where
/// [`CountingAllocator`] is not the program's allocator (see [`is_installed`]).
pub fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

/// Does this program count its allocations? Finds out by allocating a byte.
pub fn is_installed() -> bool {
    let before = allocations();
    drop(std::hint::black_box(Box::new(0u8)));
    allocations() != before
}

fn count() {
    COUNT.with(|count| count.set(count.get().wrapping_add(1)));
}

// SAFETY: every call is passed on unchanged to `System`, which keeps the contract of
// `GlobalAlloc`; the count neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: `ptr` came from this allocator, so from `System`, with `layout`; the caller's
        // promise about `new_size` is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from this allocator, so from `System`, with `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
