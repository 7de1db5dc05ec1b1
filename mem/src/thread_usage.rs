//! What the calling thread has used of the machine, from `getrusage(RUSAGE_THREAD)`.

use std::mem::MaybeUninit;

/// CPU time, switches and faults of one thread since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadUsage {
    /// CPU time in user space, ns (the kernel counts in us).
    pub user_ns: u64,
    /// CPU time in the kernel, ns (the kernel counts in us).
    pub system_ns: u64,
    /// Context switches: waits and preemptions.
    pub context_switches: u64,
    /// Page faults that read from a disk.
    pub major_faults: u64,
    /// Page faults that did not.
    pub minor_faults: u64,
}

impl ThreadUsage {
    /// The figures of the calling thread up to now.
    pub fn now() -> ThreadUsage {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is writable and of the type that the call fills.
        let status = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
        debug_assert_eq!(status, 0, "RUSAGE_THREAD is always valid on Linux");
        // SAFETY: all zeroes is a valid `rusage`, and so is what the kernel wrote over it.
        let usage = unsafe { usage.assume_init() };
        ThreadUsage {
            user_ns: nanoseconds(usage.ru_utime),
            system_ns: nanoseconds(usage.ru_stime),
            context_switches: (usage.ru_nvcsw + usage.ru_nivcsw) as u64,
            major_faults: usage.ru_majflt as u64,
            minor_faults: usage.ru_minflt as u64,
        }
    }
}

fn nanoseconds(time: libc::timeval) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn work_of_this_thread_is_counted_and_sleep_is_not() {
        let start = ThreadUsage::now();
        let clock = Instant::now();
        while clock.elapsed() < Duration::from_millis(20) {
            std::hint::black_box(0);
        }
        let busy = ThreadUsage::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = ThreadUsage::now();
        let used = |from: ThreadUsage, to: ThreadUsage| {
            to.user_ns + to.system_ns - from.user_ns - from.system_ns
        };
        assert!(used(start, busy) > 0);
        assert!(used(busy, slept) < 15_000_000, "{}", used(busy, slept));
        assert!(slept.context_switches > start.context_switches);
    }
}
