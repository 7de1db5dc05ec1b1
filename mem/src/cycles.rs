//! The processor's cycle counter, where it runs at one rate on all cores.

use std::sync::OnceLock;

/// Whether the counter exists and is invariant: it neither stops nor changes its rate.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(detect)
}

/// The counter. Meaningful only where [`available`] says so.
#[inline]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has RDTSC, and Linux lets user mode use it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        0
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> bool {
    use core::arch::x86_64::__cpuid;
    // AMD APM vol. 3, Fn8000_0007 EDX bit 8: the time stamp counter is invariant.
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> bool {
    false
}
