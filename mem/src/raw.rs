//! Copies of bytes by pointer.
//!
//! Private bytes are copied as Rust copies any bytes. Shared bytes may be written by a device,
//! a guest or another core during the copy, which would be a data race if the compiler saw it.
//! It does not: the copy is a call through a function pointer whose value is hidden from it, so
//! the access happens in foreign code, as a device's own access does. Whatever bytes arrive are
//! then private and are judged as such. A torn copy is the answer that a racing writer deserves.

use std::ffi::c_void;
use std::hint::black_box;

type Move = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
type Set = unsafe extern "C" fn(*mut c_void, i32, usize) -> *mut c_void;

/// Copies `len` bytes; the ranges may overlap.
///
/// # Safety
/// Both ranges are mapped (LIVE). Unless `shared`, nobody else accesses them meanwhile.
#[inline]
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize, shared: bool) {
    if shared {
        let memmove: Move = black_box(libc::memmove);
        // SAFETY: LIVE by the caller; races happen in foreign code (SHARED).
        unsafe { memmove(dst.cast(), src.cast(), len) };
    } else {
        // SAFETY: LIVE, and nobody races, by the caller.
        unsafe { std::ptr::copy(src, dst, len) };
    }
}

/// Sets `len` bytes.
///
/// # Safety
/// The range is mapped (LIVE). Unless `shared`, nobody else accesses it meanwhile.
#[inline]
pub(crate) unsafe fn fill(dst: *mut u8, byte: u8, len: usize, shared: bool) {
    if shared {
        let memset: Set = black_box(libc::memset);
        // SAFETY: LIVE by the caller; races happen in foreign code (SHARED).
        unsafe { memset(dst.cast(), i32::from(byte), len) };
    } else {
        // SAFETY: LIVE, and nobody races, by the caller.
        unsafe { std::ptr::write_bytes(dst, byte, len) };
    }
}
