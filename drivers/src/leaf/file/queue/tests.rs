//! The queue, with results that a healthy kernel seldom gives. They are told to the queue by
//! hand; what it has pushed on the ring meanwhile is carried out when the ring is dropped.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicI32;
use std::time::Instant;

use oxblock_engine::Source;
use oxblock_mem::{Arena, ArenaOptions, IoVector, Memory, PagePolicy};

use super::super::probe;
use super::super::syscall::AtOnce;
use super::super::uring::RingKind;
use super::*;

/// A queue on a file of 64 KiB, and memory for its requests, which outlives it.
struct Rig {
    queue: FileQueue,
    pass: Pass,
    arena: Arena,
    _memory: Memory,
}

impl Rig {
    fn new(direct_block: Option<u32>) -> Rig {
        Rig::with(direct_block, None)
    }

    fn with(direct_block: Option<u32>, at_once: Option<AtOnce>) -> Rig {
        Rig::with_ring(direct_block, at_once, RingKind::default())
    }

    fn with_ring(direct_block: Option<u32>, at_once: Option<AtOnce>, kind: RingKind) -> Rig {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64 << 10).expect("its length");
        let failed_sync = AtomicI32::new(0);
        let shared = Shared {
            file,
            direct_block,
            discard_by_ioctl: false,
            zeroes_are_data: false,
            at_once,
            workers: None,
            sqthread_poll: kind.sqthread_poll,
            hipri: kind.polled,
            queue_depth: 4,
            failed_sync,
            lock: None,
        };
        let memory = Memory::new();
        let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(1 << 20) };
        let arena = memory.add_arena(&options).expect("an arena");
        let queue = FileQueue::new(Arc::new(shared), Some(arena.region())).expect("a ring");
        Rig { queue, pass: Pass::new(64), arena, _memory: memory }
    }

    fn list(&self, len: usize) -> IoVector {
        self.arena.alloc(len, 4096).expect("memory").into()
    }

    /// Submits a request on the list, and gives its slot.
    fn submit(&mut self, kind: OpKind, flags: OpFlags, offset: u64, list: &IoVector) -> u16 {
        let len = if kind == OpKind::WriteZeroes { 8192 } else { list.len() as u64 };
        let data = list.view(0, list.len());
        let token = Token(77);
        let request = Request { token, kind, flags, offset, len, data };
        let slot = self.queue.free.last().copied();
        assert_eq!(self.queue.submit(&request, &mut self.pass), Ok(()));
        slot.expect("a free slot")
    }

    fn outcome(&mut self) -> Option<Result<(), Fault>> {
        let all: Vec<_> = self.pass.drain().collect();
        assert!(all.len() <= 1);
        all.first().map(|(_, result)| *result)
    }

    /// Polls until everything has ended.
    fn settle(&mut self) -> Vec<Result<(), Fault>> {
        let mut all = Vec::new();
        while self.queue.in_flight() > 0 {
            self.queue.kick(&mut self.pass);
            self.queue.poll(&mut self.pass);
            all.extend(self.pass.drain().map(|(_, result)| result));
        }
        all
    }
}

const NONE: OpFlags = OpFlags::empty();
const SQTHREAD: RingKind = RingKind { sqthread_poll: true, polled: false };
const POLLED: RingKind = RingKind { sqthread_poll: false, polled: true };

fn kind_of(result: Option<Result<(), Fault>>) -> ErrorKind {
    result.expect("an end").expect_err("a failure").kind
}

#[test]
fn a_short_read_goes_on_and_ends_in_zeroes_at_the_end_of_the_file() {
    let mut rig = Rig::new(None);
    let mut list = rig.list(8192);
    list.fill(0, 8192, 0xee);
    let slot = rig.submit(OpKind::Read, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, 1000), None);
    assert_eq!(rig.queue.entries[usize::from(slot)].done, 1000);
    assert_eq!(rig.queue.result(slot, 3000), None);
    assert_eq!(rig.queue.result(slot, 0), Some(Ok(())));
    let mut bytes = vec![0; 8192];
    list.read_at(0, &mut bytes);
    assert!(bytes[..4000].iter().all(|&byte| byte == 0xee));
    assert!(bytes[4000..].iter().all(|&byte| byte == 0));
    drop(rig);
}

#[test]
fn direct_io_takes_a_broken_block_for_the_end_of_the_file() {
    let mut rig = Rig::new(Some(512));
    let mut list = rig.list(4096);
    list.fill(0, 4096, 0xee);
    let slot = rig.submit(OpKind::Read, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, 1024), None, "two whole blocks: a short read");
    assert_eq!(rig.queue.result(slot, 100), Some(Ok(())));
    let mut bytes = vec![0; 4096];
    list.read_at(0, &mut bytes);
    assert!(bytes[..1124].iter().all(|&byte| byte == 0xee));
    assert!(bytes[1124..].iter().all(|&byte| byte == 0));
    drop(rig);
}

#[test]
fn a_short_write_goes_on_and_one_of_nothing_fails() {
    let mut rig = Rig::new(None);
    let list = rig.list(8192);
    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, 8000), None);
    assert_eq!(rig.queue.result(slot, 192), Some(Ok(())));
    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    assert_eq!(kind_of(rig.queue.result(slot, 0)), ErrorKind::Io);
    drop(rig);
}

#[test]
fn a_short_direct_write_goes_on_at_a_whole_block() {
    let mut rig = Rig::new(Some(512));
    let list = rig.list(4096);
    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, 1000), None);
    assert_eq!(rig.queue.entries[usize::from(slot)].done, 512);
    drop(rig);
}

#[test]
fn interrupted_and_put_off_calls_are_made_again_but_not_for_ever() {
    let mut rig = Rig::new(None);
    let list = rig.list(4096);
    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, -libc::EINTR), None);
    assert_eq!(rig.queue.result(slot, -libc::EAGAIN), None);
    assert_eq!(rig.queue.result(slot, 4096), Some(Ok(())));

    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    rig.queue.entries[usize::from(slot)].tries = TRIES_MAX;
    assert_eq!(kind_of(rig.queue.result(slot, -libc::EAGAIN)), ErrorKind::Io);
    drop(rig);
}

#[test]
fn errors_keep_their_errno_and_tell_where() {
    for (errno, kind) in [
        (libc::EIO, ErrorKind::Io),
        (libc::ENOSPC, ErrorKind::NoSpace),
        (libc::EDQUOT, ErrorKind::NoSpace),
        (libc::EROFS, ErrorKind::ReadOnly),
        (libc::ECANCELED, ErrorKind::Cancelled),
    ] {
        let mut rig = Rig::new(None);
        let list = rig.list(8192);
        let slot = rig.submit(OpKind::Write, NONE, 512, &list);
        assert_eq!(rig.queue.result(slot, 4096), None);
        let fault = rig.queue.result(slot, -errno).expect("an end").expect_err("a failure");
        assert_eq!(fault, Fault { kind, source: Source::Errno(errno), offset: 512 + 4096 });
        drop(rig);
    }
}

/// The kernel reports lost writes to one fsync and calls the pages clean: the next fsync
/// succeeds although the bytes are gone.
#[test]
fn a_failed_flush_keeps_failing_on_every_queue_of_the_file() {
    let mut rig = Rig::new(None);
    let nothing = IoVector::new();
    let slot = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(kind_of(rig.queue.result(slot, -libc::EIO)), ErrorKind::Io);

    let _ = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(kind_of(rig.outcome()), ErrorKind::Io);
    let list = rig.list(512);
    let _ = rig.submit(OpKind::Write, OpFlags::FUA, 0, &list);
    assert_eq!(kind_of(rig.outcome()), ErrorKind::Io);
    let other = FileQueue::new(rig.queue.shared.clone(), None).expect("a ring");
    let flush = Request {
        token: Token(1),
        kind: OpKind::Flush,
        flags: NONE,
        offset: 0,
        len: 0,
        data: nothing.view(0, 0),
    };
    assert!(other.first_step(&flush).is_err(), "another core hears of it too");

    let slot = rig.submit(OpKind::Write, NONE, 0, &list);
    assert_eq!(rig.queue.result(slot, 512), Some(Ok(())), "plain writes go on");
    drop(rig);
}

#[test]
fn a_cancelled_flush_is_no_failed_flush() {
    let mut rig = Rig::new(None);
    let nothing = IoVector::new();
    let slot = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(kind_of(rig.queue.result(slot, -libc::ECANCELED)), ErrorKind::Cancelled);
    let slot = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(rig.outcome(), None);
    assert_eq!(rig.queue.result(slot, 0), Some(Ok(())));
    drop(rig);
}

/// RWF_DSYNC gives one errno for two things: no space for these bytes, or earlier bytes lost.
/// A full disk must not condemn the file for ever, and lost bytes must not pass for a full disk.
#[test]
fn a_durable_write_without_space_is_told_from_a_failed_sync() {
    let mut rig = Rig::new(None);
    let (list, nothing) = (rig.list(512), IoVector::new());
    let slot = rig.submit(OpKind::Write, OpFlags::FUA, 0, &list);
    assert_eq!(rig.queue.result(slot, -libc::ENOSPC), None, "once more, without the sync");
    assert_eq!(kind_of(rig.queue.result(slot, -libc::ENOSPC)), ErrorKind::NoSpace);
    let slot = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(rig.queue.result(slot, 0), Some(Ok(())), "no sync has failed");

    let slot = rig.submit(OpKind::Write, OpFlags::FUA, 0, &list);
    assert_eq!(rig.queue.result(slot, -libc::ENOSPC), None);
    assert_eq!(kind_of(rig.queue.result(slot, 512)), ErrorKind::NoSpace, "it was the sync");
    let _ = rig.submit(OpKind::Flush, NONE, 0, &nothing);
    assert_eq!(kind_of(rig.outcome()), ErrorKind::NoSpace);
    drop(rig);
}

#[test]
fn zeroes_fall_back_from_holes_to_ranges_to_writes() {
    let mut rig = Rig::new(None);
    let nothing = IoVector::new();
    let unsupported = -libc::EOPNOTSUPP;
    let slot = rig.submit(OpKind::WriteZeroes, OpFlags::MAY_UNMAP, 4096, &nothing);
    let step = |rig: &Rig| rig.queue.entries[usize::from(slot)].step;
    assert_eq!(step(&rig), Step::PunchHole);
    assert_eq!(rig.queue.result(slot, unsupported), None);
    assert_eq!(step(&rig), Step::ZeroRange);
    assert_eq!(rig.queue.result(slot, unsupported), None);
    assert_eq!(step(&rig), Step::WriteZeroes);
    assert_eq!(rig.queue.result(slot, 5000), None);
    assert_eq!(rig.queue.result(slot, 3192), Some(Ok(())));

    let flags = OpFlags::NO_FALLBACK | OpFlags::FUA;
    let slot = rig.submit(OpKind::WriteZeroes, flags, 0, &nothing);
    assert_eq!(kind_of(rig.queue.result(slot, unsupported)), ErrorKind::NotSupported);
    let slot = rig.submit(OpKind::WriteZeroes, flags, 0, &nothing);
    assert_eq!(rig.queue.result(slot, 0), None, "durable zeroes are synced");
    assert_eq!(rig.queue.entries[usize::from(slot)].step, Step::Sync);
    assert_eq!(rig.queue.result(slot, 0), Some(Ok(())));
    drop(rig);
}

#[test]
fn a_full_queue_is_busy_and_then_goes_on() {
    let mut rig = Rig::new(None);
    let list = rig.list(512);
    for _ in 0..4 {
        rig.submit(OpKind::Read, NONE, 0, &list);
    }
    let data = list.view(0, 512);
    let request =
        Request { token: Token(1), kind: OpKind::Read, flags: NONE, offset: 0, len: 512, data };
    assert_eq!(rig.queue.submit(&request, &mut rig.pass), Err(Busy));
    assert!(matches!(rig.queue.sleep(), Sleep::Fd(_)));
    assert_eq!(rig.settle(), vec![Ok(()); 4]);
    assert!(matches!(rig.queue.sleep(), Sleep::Woken));
    assert_eq!(rig.queue.submit(&request, &mut rig.pass), Ok(()));
    assert_eq!(rig.settle(), vec![Ok(())]);
    drop(rig);
}

/// The reactor's eventfd is watched by the ring, once and again: a wake-up that found no watch
/// would leave a sleeping core asleep.
#[test]
fn a_wait_ends_with_a_completion_an_event_or_the_time() {
    let mut rig = Rig::new(None);
    let list = rig.list(512);
    let event = probe::event().expect("an eventfd");
    let long = Some(Duration::from_secs(60));
    for _ in 0..3 {
        rig.submit(OpKind::Read, NONE, 0, &list);
        // Whatever was left over may end a wait early; a completion ends one at last.
        while rig.queue.in_flight() > 0 {
            assert!(rig.queue.wait(event.as_fd(), long));
            rig.queue.poll(&mut rig.pass);
        }
        assert_eq!(rig.outcome(), Some(Ok(())));

        probe::give_event(&event);
        assert!(rig.queue.wait(event.as_fd(), long));
        rig.queue.poll(&mut rig.pass);
        probe::take_event(&event);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(5) {
            assert!(rig.queue.wait(event.as_fd(), Some(Duration::from_millis(6))));
            while rig.queue.calls.reap().is_some() {}
        }
    }
    drop(rig);
}

/// The kernel's thread takes the calls in its own time, and falls asleep in between.
#[test]
fn a_thread_of_the_kernel_takes_the_calls() {
    if let Err(error) = super::super::uring::try_out(SQTHREAD) {
        eprintln!("skipped: this kernel lets us have no polling thread ({error})");
        return;
    }
    let mut rig = Rig::with_ring(None, None, SQTHREAD);
    let mut list = rig.list(4096);
    let event = probe::event().expect("an eventfd");
    for round in 0..4u8 {
        list.fill(0, 4096, round);
        rig.submit(OpKind::Write, NONE, 4096, &list);
        assert_eq!(rig.settle(), [Ok(())]);
        list.fill(0, 4096, 0xff);
        let slots = [0; 4].map(|_| rig.submit(OpKind::Read, NONE, 4096, &list));
        assert_eq!(slots.len(), 4);
        rig.queue.kick(&mut rig.pass);
        while rig.queue.in_flight() > 0 {
            // It cannot where the thread has taken nothing yet, and the ring is full.
            rig.queue.wait(event.as_fd(), Some(Duration::from_secs(60)));
            rig.queue.poll(&mut rig.pass);
        }
        assert_eq!(rig.pass.drain().filter(|(_, result)| result.is_ok()).count(), 4);
        let mut bytes = vec![0; 4096];
        list.read_at(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == round));
        // Longer than the thread stays awake.
        std::thread::sleep(Duration::from_millis(if round == 1 { 150 } else { 0 }));
    }
    drop(rig);
}

/// A ring that polls takes nothing but reads and writes of direct I/O: a file without has all its
/// reads fail there, by name, while what goes around that ring succeeds.
#[test]
fn what_cannot_be_polled_for_goes_around_the_ring_that_polls() {
    let mut rig = Rig::with_ring(None, None, POLLED);
    let mut list = rig.list(4096);
    list.fill(0, 4096, 0x33);
    let _ = rig.submit(OpKind::Write, OpFlags::FUA, 4096, &list);
    assert!(!matches!(rig.queue.sleep(), Sleep::Never), "the second ring can be slept on");
    assert_eq!(rig.settle(), [Ok(())], "a durable write");
    let _ = rig.submit(OpKind::Flush, NONE, 0, &IoVector::new());
    assert_eq!(rig.settle(), [Ok(())]);
    let mut bytes = [0; 4096];
    rig.queue.shared.file.read_exact_at(&mut bytes, 4096).expect("the file");
    assert_eq!(bytes, [0x33; 4096]);

    for kind in [OpKind::Read, OpKind::Write] {
        let _ = rig.submit(kind, NONE, 0, &list);
        assert!(matches!(rig.queue.sleep(), Sleep::Never) && rig.queue.is_worth_polling(0));
        let [result] = rig.settle()[..] else { panic!("one end") };
        assert_eq!(kind_of(Some(result)), ErrorKind::NotSupported);
    }
    drop(rig);
}

/// The numbers of two rings must not be taken for each other's.
#[test]
fn of_two_rings_each_tells_what_it_has_taken() {
    let mut rig = Rig::with_ring(None, None, POLLED);
    let list = rig.list(512);
    let flush = rig.submit(OpKind::Flush, NONE, 0, &IoVector::new());
    let read = rig.submit(OpKind::Read, NONE, 0, &list);
    let [flush, read] = [flush, read].map(|slot| rig.queue.entries[usize::from(slot)].call);
    let taken = |rig: &mut Rig| [flush, read].map(|call| rig.queue.calls.is_taken(call));
    assert_eq!(taken(&mut rig), [false, false]);
    rig.queue.kick(&mut rig.pass);
    assert_eq!(taken(&mut rig), [true, true]);
    assert_eq!(rig.settle().len(), 2);
    let again = rig.submit(OpKind::Read, NONE, 0, &list);
    let again = rig.queue.entries[usize::from(again)].call;
    assert!(!rig.queue.calls.is_taken(again));
    rig.settle();
    drop(rig);
}

/// A disk that waits for a whole queue's calls before it begins with the first stands still
/// meanwhile.
#[test]
fn the_kernel_has_the_first_calls_before_the_kick() {
    let mut rig = Rig::new(None);
    let list = rig.list(512);
    for call in 1..=4 {
        rig.submit(OpKind::Read, NONE, 0, &list);
        let told = if call < HANDED_ON.into() { 0 } else { call };
        let taken = (0..call).filter(|&number| rig.queue.calls.is_taken(number)).count();
        assert_eq!(taken as u64, told);
    }
    assert_eq!(rig.settle().len() + rig.pass.drain().count(), 4);
    drop(rig);
}

/// What the kernel never took must end too, or its buffers are never seen again.
#[test]
fn a_ring_that_cannot_be_entered_fails_what_it_has_not_taken() {
    let mut rig = Rig::new(None);
    let list = rig.list(512);
    rig.submit(OpKind::Read, NONE, 1024, &list);
    rig.queue.broken = Some(libc::EPERM);
    rig.queue.fail_untaken(libc::EPERM, &mut rig.pass);
    assert_eq!(kind_of(rig.outcome()), ErrorKind::Denied);
    assert_eq!(rig.queue.in_flight(), 0);
    rig.submit(OpKind::Read, NONE, 1024, &list);
    assert_eq!(kind_of(rig.outcome()), ErrorKind::Denied, "nothing starts any more");
    drop(rig);
}

#[test]
fn quiesce_ends_everything() {
    let mut rig = Rig::new(None);
    let list = rig.list(4096);
    for slot in 0..4 {
        let kind = if slot % 2 == 0 { OpKind::Write } else { OpKind::Flush };
        let list = if slot % 2 == 0 { &list } else { &IoVector::new() };
        rig.submit(kind, NONE, 0, list);
    }
    while !rig.queue.quiesce(&mut rig.pass) {
        std::thread::yield_now();
    }
    assert_eq!(rig.pass.drain().count(), 4);
    assert_eq!(rig.queue.in_flight(), 0);
    drop(rig);
}

#[test]
fn what_is_in_memory_is_moved_within_the_submit() {
    for how in [AtOnce::InMemory, AtOnce::NoWait] {
        let mut rig = Rig::with(None, Some(how));
        let mut list = rig.list(4096);
        list.fill(0, 4096, 0x5a);
        // A file system may have no writes that do not wait: then the ring makes it.
        let _ = rig.submit(OpKind::Write, NONE, 4096, &list);
        assert!(rig.outcome() == Some(Ok(())) || rig.settle() == [Ok(())]);
        list.fill(0, 4096, 0);
        rig.queue.at_once.skip = 0;
        let _ = rig.submit(OpKind::Read, NONE, 4096, &list);
        assert_eq!((rig.outcome(), rig.queue.in_flight()), (Some(Ok(())), 0));
        let mut bytes = vec![0; 4096];
        list.read_at(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0x5a));
    }
}

/// A turn of the reactor must stay short, however deep the queue and long the requests.
#[test]
fn what_is_moved_at_once_between_two_polls_is_bounded() {
    let mut rig = Rig::with(None, Some(AtOnce::InMemory));
    let list = rig.list(32 << 10);
    let many = AT_ONCE_BYTES_MAX / (32 << 10);
    for _ in 0..many {
        let _ = rig.submit(OpKind::Read, NONE, 0, &list);
        assert_eq!(rig.outcome(), Some(Ok(())));
    }
    let _ = rig.submit(OpKind::Read, NONE, 0, &list);
    assert_eq!((rig.outcome(), rig.queue.in_flight()), (None, 1), "the ring has it");
    assert_eq!(rig.settle(), [Ok(())]);
    let _ = rig.submit(OpKind::Read, NONE, 0, &list);
    assert_eq!(rig.outcome(), Some(Ok(())), "after a poll");
}

/// An attempt that would wait costs a system call: a cold file must not pay two for each read.
#[test]
fn vain_attempts_grow_rare() {
    let mut rig = Rig::with(None, Some(AtOnce::InMemory));
    let list = rig.list(4096);
    // Past the end of the file nothing can be read at once.
    let mut attempts = 0;
    for _ in 0..1000 {
        attempts += u32::from(rig.queue.at_once.skip == 0);
        let _ = rig.submit(OpKind::Read, NONE, 64 << 10, &list);
        assert_eq!(rig.settle(), [Ok(())], "zeroes, by the ring");
    }
    assert!((2..30).contains(&attempts), "{attempts} attempts");
}

/// A piece outside the registered memory, or across its end, must not name it.
#[test]
fn registered_memory_and_any_other_are_both_read_into() {
    let mut rig = Rig::new(Some(512));
    let other_memory = Memory::new();
    let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(1 << 20) };
    let other = other_memory.add_arena(&options).expect("an arena");
    let mut inside = rig.list(4096);
    let mut outside: IoVector = other.alloc(4096, 4096).expect("memory").into();
    inside.fill(0, 4096, 0x77);
    let _ = rig.submit(OpKind::Write, NONE, 8192, &inside);
    assert_eq!(rig.settle(), [Ok(())]);
    for list in [&mut inside, &mut outside] {
        list.fill(0, 4096, 0);
        let _ = rig.submit(OpKind::Read, NONE, 8192, list);
        assert_eq!(rig.settle(), [Ok(())]);
        let mut bytes = vec![0; 4096];
        list.read_at(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0x77));
    }
    drop(rig);
}
