//! Arenas of a user who may not lock memory. Alone in its process, because it gives that right
//! away.

use oxblock_mem::{ArenaOptions, Memory, PagePolicy, PageSize};

/// Lowers the limit to 64 KiB, and makes this thread a plain user if it is root, whom the limit
/// does not bind.
fn give_up_locking() {
    const NOBODY: libc::c_long = 65534;
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: system calls on plain values. The raw call changes this thread alone.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
        }
    }
}

#[test]
fn memory_that_can_not_be_locked_says_so_and_how_to_get_it() {
    give_up_locking();
    let memory = Memory::new();
    let with = |pages, size| memory.add_arena(&ArenaOptions { pages, ..ArenaOptions::new(size) });

    let error = with(PagePolicy::Exactly(PageSize::Small4K), 1 << 20).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("mlock") && text.contains("ulimit -l 1024"), "{text}");
    assert!(text.contains("RLIMIT_MEMLOCK is 64 KiB"), "{text}");

    let arena = with(PagePolicy::Best, 1 << 20).unwrap();
    assert!(!arena.locked());
    let notice = arena.notice().unwrap();
    assert!(notice.contains("no hardware device can use it"), "{notice}");
    assert!(notice.contains("ulimit -l 1024") && !notice.contains('\n'), "{notice}");
    let mut buf = arena.alloc(1 << 20, 4096).unwrap();
    buf.fill(0, 1 << 20, 1);
    assert_eq!(buf.as_slice().unwrap()[(1 << 20) - 1], 1);

    let small = with(PagePolicy::Best, 16 << 10).unwrap();
    assert_eq!((small.locked(), small.notice()), (true, None));
}
