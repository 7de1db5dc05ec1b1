//! Arenas, buffers, pools and words.

mod common;

use std::collections::HashSet;
use std::sync::mpsc;
use std::thread;

use common::{arena, inode, is_mapped};
use oxblock_mem::{
    Arena, ArenaOptions, ArenaSource, Attachment, Buf, Cells, IoVector, Lender, Memory, PagePolicy,
    PageSize, Pool, Region,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn memory_is_zeroed_also_when_it_was_used_before() {
    let (_memory, arena) = arena(64 << 10);
    let mut first = arena.alloc(5000, 4096).unwrap();
    assert_eq!(first.as_slice().unwrap(), [0; 5000]);
    let addr = first.addr();
    first.fill(0, 5000, 7);
    drop(first);
    let again = arena.alloc(5000, 4096).unwrap();
    assert_eq!(again.addr(), addr);
    assert_eq!(again.as_slice().unwrap(), [0; 5000]);

    let pool = Pool::new(&arena, 4096, 1).unwrap();
    pool.take().unwrap().fill(0, 4096, 7);
    assert_eq!(pool.take_zeroed().unwrap().as_slice().unwrap(), [0; 4096]);
}

#[test]
fn alignment_holds_here_and_for_devices() {
    let (memory, arena) = arena(4 << 20);
    let table = common::Table::wide();
    let _attachment = memory.attach(table).unwrap();
    for align in [1, 64, 512, 4096, 65536] {
        let _gap = arena.alloc(1, 1).unwrap();
        let buf = arena.alloc(100, align).unwrap();
        assert!(buf.addr().addr().is_multiple_of(align));
        assert!(buf.iova().unwrap().is_multiple_of(align as u64));
    }
    for (len, align) in [(0, 1), (1, 0), (1, 3), (1, 2 * arena.region().align())] {
        let error = arena.alloc(len, align).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
    }
    let error = arena.alloc(1 << 40, 1).unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    assert_eq!(arena.alloc(usize::MAX, 1).unwrap_err().errno(), libc::ENOMEM);
}

#[test]
fn split_halves_join_again_and_only_then() {
    let (_memory, arena) = arena(64 << 10);
    let mut a = arena.alloc(100, 64).unwrap();
    a.write_at(0, &std::array::from_fn::<u8, 100, _>(|i| i as u8));
    let mut b = a.split_off(60);
    let c = b.split_off(30);
    assert_eq!((a.len(), b.len(), c.len()), (60, 30, 10));
    let c = a.try_join(c).unwrap_err();
    let stranger = arena.alloc(10, 64).unwrap();
    let stranger = a.try_join(stranger).unwrap_err();
    drop(stranger);
    a.try_join(b).unwrap();
    a.try_join(c).unwrap();
    assert_eq!(a.len(), 100);
    assert!(a.as_slice().unwrap().iter().enumerate().all(|(i, &byte)| byte == i as u8));
    let empty = a.split_off(100);
    assert!(empty.is_empty());
    a.try_join(empty).unwrap();
    drop(a);
    assert_eq!(arena.available(), 64 << 10);
}

#[test]
fn neighbouring_blocks_do_not_join() {
    let (_memory, arena) = arena(64 << 10);
    let mut a = arena.alloc(64, 64).unwrap();
    let b = arena.alloc(64, 64).unwrap();
    assert_eq!(a.addr().wrapping_add(64), b.addr());
    a.try_join(b).unwrap_err();
}

#[test]
#[should_panic(expected = "8 bytes at 93 of a buffer of 100")]
fn writes_beyond_the_end_panic() {
    let (_memory, arena) = arena(4096);
    arena.alloc(100, 1).unwrap().write_at(93, &[0; 8]);
}

#[test]
#[should_panic(expected = "of a buffer of 100")]
fn ranges_that_overflow_panic() {
    let (_memory, arena) = arena(4096);
    arena.alloc(100, 1).unwrap().fill(usize::MAX, 2, 0);
}

#[test]
fn an_empty_pool_gives_none_and_refills() {
    let (_memory, arena) = arena(64 << 10);
    let pool = Pool::new(&arena, 4096, 4).unwrap();
    assert_eq!((pool.available(), pool.count(), pool.buf_len()), (4, 4, 4096));
    for _ in 0..3 {
        let bufs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((bufs.len(), pool.available()), (4, 0));
        let addrs: HashSet<_> = bufs.iter().map(Buf::addr).collect();
        assert_eq!(addrs.len(), 4);
        assert!(pool.take().is_none());
        drop(bufs);
        assert_eq!(pool.available(), 4);
    }
    let mut whole = pool.take().unwrap();
    let half = whole.split_off(2048);
    drop(whole);
    assert_eq!(pool.available(), 3);
    drop(half);
    assert_eq!(pool.available(), 4);
}

#[test]
fn a_pool_that_does_not_fit_is_refused() {
    let (_memory, arena) = arena(64 << 10);
    assert_eq!(Pool::new(&arena, 4096, 17).unwrap_err().errno(), libc::ENOMEM);
    for (len, count) in [(0, 1), (1, 0), (usize::MAX, 1), (usize::MAX / 2, 4), (64, 1 << 33)] {
        assert_eq!(Pool::new(&arena, len, count).unwrap_err().errno(), libc::EINVAL);
    }
    assert_eq!(arena.available(), 64 << 10);
}

#[test]
fn buffers_come_home_from_other_threads() {
    let (_memory, arena) = arena(64 << 10);
    let pool = Pool::new(&arena, 64, 32).unwrap();
    let (tx, rx) = mpsc::channel::<Buf>();
    let returner = thread::spawn(move || rx.into_iter().map(drop).count());
    let mut sent = 0;
    while sent < 20_000 {
        match pool.take() {
            Some(mut buf) => {
                buf.fill(0, 64, sent as u8);
                if sent % 3 == 0 {
                    drop(buf);
                } else {
                    tx.send(buf).unwrap();
                }
                sent += 1;
            }
            None => thread::yield_now(),
        }
    }
    drop(tx);
    returner.join().unwrap();
    assert_eq!(pool.available(), 32);
}

#[test]
fn a_pool_may_move_before_its_first_take() {
    let (_memory, arena) = arena(64 << 10);
    let pool = Pool::new(&arena, 4096, 2).unwrap();
    let buf = thread::spawn(move || {
        let first = pool.take().unwrap();
        drop(pool.take());
        assert_eq!(pool.available(), 1);
        first
    });
    let buf = buf.join().unwrap();
    assert!(arena.available() < 64 << 10);
    drop(buf);
    assert_eq!(arena.available(), 64 << 10);
}

#[test]
fn a_pool_belongs_to_the_thread_that_took_first() {
    let (_memory, arena) = arena(64 << 10);
    let pool = Pool::new(&arena, 4096, 2).unwrap();
    let buf = pool.take().unwrap();
    let stranger = thread::spawn(move || drop(pool.take()));
    assert!(stranger.join().is_err());
    // The pool was dropped away from home: its memory stays out, and coming home does no harm.
    drop(buf);
    assert_eq!(arena.available(), (64 << 10) - 8192);
}

#[test]
fn a_pool_waits_for_its_last_buffer() {
    for foreign in [0, 1, 2, 3] {
        let (memory, arena) = arena(64 << 10);
        let (region, file) = (arena.region(), inode(&arena.region()));
        let pool = Pool::new(&arena, 4096, 3).unwrap();
        let mut bufs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        drop(bufs.pop());
        let away: Vec<_> = bufs.drain(..foreign.min(2)).collect();
        let away = thread::spawn(move || drop(away));
        if foreign == 3 {
            away.join().unwrap();
            drop(pool);
        } else {
            drop(pool);
            away.join().unwrap();
        }
        assert!(foreign >= 2 || arena.available() < 64 << 10);
        drop(bufs);
        assert_eq!(arena.available(), 64 << 10);
        drop((region, arena, memory));
        assert!(!is_mapped(file));
    }
}

#[test]
fn an_arena_is_unmapped_after_its_last_buffer() {
    let (memory, arena) = arena(64 << 10);
    let file = inode(&arena.region());
    let pool = Pool::new(&arena, 4096, 2).unwrap();
    let mut taken = pool.take().unwrap();
    let mut block = arena.alloc(4096, 4096).unwrap();
    drop((memory, arena, pool));
    assert!(is_mapped(file));
    block.fill(0, 4096, 1);
    drop(block);
    taken.fill(0, 4096, 2);
    let half = taken.split_off(1);
    drop(taken);
    assert!(is_mapped(file));
    assert_eq!(half.as_slice().unwrap(), [2; 4095]);
    thread::spawn(move || drop(half)).join().unwrap();
    assert!(!is_mapped(file));
}

#[test]
fn page_policies_are_kept_or_refused() {
    let memory = Memory::new();
    let with = |size, pages| memory.add_arena(&ArenaOptions { pages, ..ArenaOptions::new(size) });
    let unlocked = with(5000, PagePolicy::Unlocked).unwrap();
    assert_eq!((unlocked.locked(), unlocked.notice()), (false, None));
    assert_eq!((unlocked.page_size(), unlocked.region().len()), (PageSize::Small4K, 8192));
    assert!(!unlocked.region().dma());

    let size = 4 << 20;
    let best = with(size, PagePolicy::Best).unwrap();
    match with(size, PagePolicy::Exactly(PageSize::Huge2M)) {
        Ok(huge) => {
            assert_eq!((huge.page_size(), huge.locked()), (PageSize::Huge2M, true));
            assert_eq!(huge.alloc(size, 1 << 21).unwrap().as_slice().unwrap(), vec![0; size]);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("no 2 MiB hugepages for 4 MiB"), "{text}");
            assert!(text.contains("nr_hugepages"), "{text}");
            assert_ne!(error.errno(), libc::EINVAL, "{text}");
        }
    }
    if best.page_size() == PageSize::Small4K {
        let notice = best.notice().unwrap();
        assert!(notice.contains("| sudo tee /sys/kernel/mm/hugepages/"), "{notice}");
        assert!(!notice.contains('\n'), "{notice}");
    }

    assert_eq!(with(0, PagePolicy::Best).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(with(usize::MAX, PagePolicy::Unlocked).unwrap_err().errno(), libc::EINVAL);
}

#[test]
fn a_folder_that_is_no_hugetlbfs_is_named() {
    let memory = Memory::new();
    let with = |pages, folder: &str| {
        let source = ArenaSource::HugetlbFs(folder.into());
        memory.add_arena(&ArenaOptions { pages, source, ..ArenaOptions::new(8192) })
    };
    let error = with(PagePolicy::Exactly(PageSize::Huge2M), "/proc").unwrap_err();
    assert!(error.to_string().contains("/proc is not a hugetlbfs"), "{error}");
    let best = with(PagePolicy::Best, "/proc").unwrap();
    assert!(best.notice().unwrap().contains("/proc is not a hugetlbfs"));
    let error = with(PagePolicy::Exactly(PageSize::Huge2M), "/nonexistent").unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT, "{error}");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    assert_eq!(with(PagePolicy::Unlocked, "/proc").unwrap_err().errno(), libc::EINVAL);
}

#[test]
fn handles_travel_between_threads() {
    fn send<T: Send>() {}
    fn both<T: Send + Sync>() {}
    send::<IoVector>();
    send::<Pool>();
    send::<Lender>();
    both::<Buf>();
    both::<Cells>();
    both::<Arena>();
    both::<Region>();
    both::<Memory>();
    both::<Attachment>();
}

#[test]
fn nodes_are_bound_or_refused() {
    let memory = Memory::new();
    let with = |node| memory.add_arena(&ArenaOptions { node, ..ArenaOptions::new(64 << 10) });
    let here = with(Some(0)).unwrap();
    assert!(here.notice().is_none_or(|notice| notice.contains("NUMA node 0")));
    match with(Some(1000)) {
        // A system that allows no choice says so instead.
        Ok(arena) => assert!(arena.notice().unwrap().contains("NUMA node 1000")),
        Err(error) => assert!(error.to_string().contains("NUMA node 1000"), "{error}"),
    }
}

#[test]
fn words_are_checked_atomics() {
    let (_memory, arena) = arena(4096);
    assert!(Cells::new(arena.alloc(12, 8).unwrap()).is_err());
    let mut odd = arena.alloc(20, 8).unwrap();
    assert!(Cells::new(odd.split_off(4)).is_err());

    let cells = Cells::new(arena.alloc(32, 8).unwrap()).unwrap();
    let order = std::sync::atomic::Ordering::Relaxed;
    cells.u64(1).store(0x1122_3344_5566_7788, order);
    assert_eq!((cells.u32(2).load(order), cells.u32(3).load(order)), (0x5566_7788, 0x1122_3344));
    assert_eq!((cells.len_bytes(), cells.iova()), (32, None));
    let fails =
        |look: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).is_err();
    assert!(fails(&|| _ = cells.u32(8).load(order)));
    assert!(fails(&|| _ = cells.u64(4).load(order)));
    assert!(fails(&|| _ = cells.u64(usize::MAX).load(order)));
    assert_eq!(cells.into_buf().as_slice().unwrap()[8], 0x88);
}

#[derive(Debug, Clone)]
enum Step {
    Alloc { len: usize, align: u32 },
    Take,
    Split { buf: usize, at: usize },
    Join { buf: usize, next: usize },
    Drop { buf: usize },
    DropAway { buf: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5000usize, 0..13u32).prop_map(|(len, align)| Step::Alloc { len, align }),
        Just(Step::Take),
        (any::<usize>(), any::<usize>()).prop_map(|(buf, at)| Step::Split { buf, at }),
        (any::<usize>(), any::<usize>()).prop_map(|(buf, next)| Step::Join { buf, next }),
        any::<usize>().prop_map(|buf| Step::Drop { buf }),
        any::<usize>().prop_map(|buf| Step::DropAway { buf }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Every byte of every live buffer holds the buffer's mark, so an overlap shows at once.
    #[test]
    fn live_buffers_never_overlap(steps in vec(step(), 1..120)) {
        const SIZE: usize = 64 << 10;
        let (_memory, arena) = arena(SIZE);
        let pool = Pool::new(&arena, 1000, 8).unwrap();
        let room = arena.available();
        let mut live: Vec<(Buf, u8)> = Vec::new();
        let mut mark = 0u8;
        for step in steps {
            mark = mark.wrapping_add(1);
            let count = live.len();
            match step {
                Step::Alloc { len, align } => {
                    if let Ok(buf) = arena.alloc(len, 1 << align) {
                        prop_assert!(buf.as_slice().unwrap().iter().all(|&byte| byte == 0));
                        live.push((buf, mark));
                    }
                }
                Step::Take => live.extend(pool.take().map(|buf| (buf, mark))),
                Step::Split { buf, at } if count > 0 => {
                    let (buf, old) = &mut live[buf % count];
                    let tail = (buf.split_off(at % (buf.len() + 1)), *old);
                    live.push(tail);
                }
                Step::Join { buf, next } if count > 1 => {
                    let (next, _) = live.swap_remove(next % count);
                    let (buf, _) = &mut live[buf % (count - 1)];
                    let len = buf.len();
                    if let Err(next) = buf.try_join(next) {
                        prop_assert_eq!(buf.len(), len);
                        live.push((next, mark));
                    }
                }
                Step::Drop { buf } if count > 0 => drop(live.swap_remove(buf % count)),
                Step::DropAway { buf } if count > 0 => {
                    let buf = live.swap_remove(buf % count);
                    thread::scope(|scope| { scope.spawn(|| drop(buf)); });
                }
                _ => {}
            }
            // Joins and splits make buffers of several marks: mark all anew.
            for (index, (buf, mark)) in live.iter_mut().enumerate() {
                *mark = index as u8;
                buf.fill(0, buf.len(), *mark);
            }
            for (buf, mark) in &live {
                prop_assert!(buf.as_slice().unwrap().iter().all(|byte| byte == mark));
            }
        }
        live.clear();
        prop_assert_eq!(arena.available(), room);
        prop_assert_eq!(pool.available(), 8);
        drop(pool);
        prop_assert_eq!(arena.available(), SIZE);
    }
}

/// A hugepage mapping that the system refused left a hole in the address space, which another
/// thread's new arena filled; cleaning up after the refusal then unmapped that arena.
#[test]
fn refused_hugepages_do_not_unmap_other_arenas() {
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                for _ in 0..100 {
                    let memory = Memory::new();
                    let arena = memory.add_arena(&ArenaOptions::new(4 << 20)).expect("an arena");
                    let mut buf = arena.alloc(1 << 20, 4096).expect("a buffer");
                    buf.fill(0, 1 << 20, thread);
                    assert!(buf.as_slice().is_some_and(|b| b.iter().all(|&byte| byte == thread)));
                }
            });
        }
    });
}
