//! Memory of devices is not inherited by fork. Alone in its process, because it forks.

mod common;

use std::ptr::NonNull;

use common::{Pages, arena};
use oxblock_mem::Memory;

/// True in the child if the page at `addr` is mapped there.
fn mapped_in_child(addr: *const u8) -> bool {
    // SAFETY: the child makes two system calls, touches nothing else, and exits.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let mut residency = 0;
            let rc = libc::mincore(addr.cast_mut().cast(), 4096, &mut residency);
            libc::_exit(if rc == 0 { 1 } else { 0 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFEXITED(status));
        libc::WEXITSTATUS(status) == 1
    }
}

#[test]
fn children_do_not_see_it() {
    let (memory, arena) = arena(1 << 20);
    let buf = arena.alloc(4096, 4096).unwrap();
    assert!(!mapped_in_child(buf.addr()));
    assert!(!mapped_in_child(arena.region().addr().wrapping_add((1 << 20) - 4096)));

    let pages = Pages::new(3 * 4096);
    let addr = |page: usize| pages.ptr.as_ptr().wrapping_add(page * 4096);
    assert!(mapped_in_child(addr(1)));
    // SAFETY: unregistered below, before the pages go.
    let region = unsafe { memory.register(NonNull::new(addr(1)).unwrap(), 4096) }.unwrap();
    assert!(!mapped_in_child(addr(1)));
    assert!(mapped_in_child(addr(0)) && mapped_in_child(addr(2)));
    region.try_unregister().unwrap();
    assert!(mapped_in_child(addr(1)));

    // A registration that fails takes nothing away.
    let other = Memory::new();
    let _attachment = other.attach(common::Table::wide()).unwrap();
    let narrow = std::sync::Arc::new(common::Table::new(vec![0..=0xfff]));
    let _narrow = other.attach(narrow).unwrap();
    assert_eq!(pages.register(&other).unwrap_err().errno(), libc::ENOSPC);
    assert!((0..3).all(|page| mapped_in_child(addr(page))));
}
