//! Rows 3, 4, 19 to 24, 27 and 33: late commands, failed ones, and resets with I/O in flight.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::{Channel, Completion, Core, ErrorKind, Op};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::status::Status;

use super::device::{Follow, Seen};
use super::{Controller, Rig, kind};

type Waiting = Vec<Rc<Cell<Option<Completion>>>>;

/// Starts `count` reads of a block each that the device keeps.
fn held_reads(rig: &mut Rig, channel: &Rc<Channel>, count: u64) -> Waiting {
    rig.device.state().hold = true;
    let start = |n| {
        let op = Op::read(n * 512, rig.buf(512));
        rig.start(channel, op)
    };
    (0..count).map(start).collect()
}

fn results(waiting: Waiting) -> Vec<Result<(), ErrorKind>> {
    waiting.into_iter().map(|cell| kind(&cell.take().expect("ended by now"))).collect()
}

fn fail_fatally(rig: &Rig) {
    let mut state = rig.device.state();
    state.csts = state.csts.with_cfs(true);
}

/// Row 4: a device that fails at run time is disabled, enabled and set up again, and its I/O is
/// sent again in its order.
#[test]
fn a_fatal_device_is_reset_and_its_io_goes_on() {
    let mut rig = Rig::new(|state| state.unready = Follow::AfterReads(5));
    let (controller, channel) = rig.open();
    let waiting = held_reads(&mut rig, &channel, 5);
    rig.device.state().seen.clear();
    fail_fatally(&rig);
    rig.wait_ms(200);
    let state = rig.device.state();
    assert!(matches!(state.seen[0], Seen::Cc(cc) if !cc.en()), "{:?}", state.seen);
    assert_eq!(state.admin_count(admin::CREATE_SQ), 1, "the queue is made anew");
    let order: Vec<u64> = state.io().iter().map(|command| command.slba()).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    drop(state);
    rig.device.release();
    rig.wait_ms(1);
    assert_eq!(results(waiting), [Ok(()); 5]);
    assert_eq!((controller.stats().resets, controller.stats().retries), (1, 5));
}

/// Rows 3 and 22: a device that does not come back fails all I/O, in bounded time, after the
/// function was reset too.
#[test]
fn a_reset_that_fails_ends_in_a_failed_device() {
    for (ready, unready) in [(Follow::Never, Follow::AtOnce), (Follow::AtOnce, Follow::Never)] {
        let mut rig = Rig::new(|_| {});
        let (controller, channel) = rig.open();
        let waiting = held_reads(&mut rig, &channel, 5);
        let mut state = rig.device.state();
        (state.ready, state.unready) = (ready, unready);
        (state.reset_helps, state.ready_after_reset) = (unready == Follow::AtOnce, Some(ready));
        drop(state);
        fail_fatally(&rig);
        rig.wait_ms(10_000);
        assert_eq!(results(waiting), [Err(ErrorKind::Io); 5]);
        let op = Op::read(0, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Io), "and what comes later");
        let stats = controller.stats();
        assert_eq!((stats.resets, stats.failed_resets), (0, 2), "{stats:?}");
        assert!(rig.device.state().resets > 0, "row 33: the function was reset");
        let reset = rig.run(|core| async move { controller.reset(&core).await });
        assert!(reset.unwrap_err().to_string().contains("took longer"));
    }
}

/// A reset that the user asks for loses nothing, and counts against no command.
#[test]
fn resets_on_request_lose_no_io() {
    let mut rig = Rig::new(|state| state.controller.oacs = 0x100.into());
    let (controller, channel) = rig.open();
    for round in 0..20 {
        let waiting = held_reads(&mut rig, &channel, 9);
        for _ in 0..6 {
            let controller: Arc<Controller> = controller.clone();
            rig.run(|core| async move { controller.reset(&core).await }).expect("a reset");
        }
        rig.turns(50);
        assert_eq!(rig.device.state().held.len(), 9, "round {round}");
        rig.device.release();
        rig.device.state().poll_shadows();
        rig.turns(50);
        assert_eq!(results(waiting), [Ok(()); 9], "round {round}");
    }
    assert_eq!(controller.stats().resets, 120);
    assert_eq!(controller.stats().bad_cid, 0);
}

/// Row 19: the device is asked to abort what is late; what it still does not answer leads to a
/// reset, after which the command is sent again.
#[test]
fn a_late_command_is_aborted_and_then_the_device_is_reset() {
    let mut rig = Rig::new(|_| {});
    rig.options.io_timeout = Duration::from_secs(3);
    rig.options.abort_timeout = Duration::from_secs(1);
    let (controller, channel) = rig.open();
    let waiting = held_reads(&mut rig, &channel, 1);
    rig.wait_ms(2900);
    assert_eq!(rig.device.state().admin_count(admin::ABORT), 0);
    rig.wait_ms(300);
    assert_eq!(rig.device.state().admin_count(admin::ABORT), 1);
    assert_eq!(controller.stats().resets, 0);
    rig.wait_ms(1200);
    assert_eq!(controller.stats().resets, 1);
    rig.device.release();
    rig.wait_ms(10);
    assert_eq!(results(waiting), [Ok(())]);
    let stats = controller.stats();
    assert_eq!((stats.timeouts, stats.aborts, stats.retries), (1, 1, 1), "{stats:?}");
}

/// Row 20: no more aborts at once than ACL + 1. The others are asked for as those end.
#[test]
fn aborts_in_flight_are_bounded_by_acl() {
    for acl in [0, 2] {
        let mut rig = Rig::new(|state| state.controller.acl = acl);
        rig.options.io_timeout = Duration::from_secs(1);
        rig.options.abort_timeout = Duration::from_secs(2);
        let (controller, channel) = rig.open();
        let waiting = held_reads(&mut rig, &channel, 8);
        rig.device.state().deaf = true;
        rig.wait_ms(1500);
        let aborts = rig.device.state().admin_count(admin::ABORT);
        assert_eq!(aborts, usize::from(acl) + 1, "ACL {acl}");
        assert_eq!(controller.stats().timeouts, 8);
        rig.device.state().deaf = false;
        rig.device.release();
        rig.wait_ms(10);
        assert_eq!(results(waiting), [Ok(()); 8]);
        let stats = controller.stats();
        assert_eq!((stats.late_completions, stats.resets), (8, 0), "{stats:?}");
    }
}

/// A command that is aborted for its time is sent again; in the end it has timed out, which is not
/// the same as cancelled.
#[test]
fn what_is_always_late_times_out() {
    let mut rig = Rig::new(|_| {});
    rig.options.io_timeout = Duration::from_secs(1);
    rig.options.retries = 2;
    let (controller, channel) = rig.open();
    let waiting = held_reads(&mut rig, &channel, 1);
    for _ in 0..3 {
        rig.wait_ms(1200);
        let mut state = rig.device.state();
        let Some((sqid, command)) = state.held.pop_front() else { break };
        state.post(sqid, command.cid(), Status::ABORT_REQUESTED, 0);
    }
    rig.wait_ms(10);
    assert_eq!(results(waiting), [Err(ErrorKind::TimedOut)]);
    let stats = controller.stats();
    assert_eq!((stats.timeouts, stats.retries, stats.resets), (3, 2, 0), "{stats:?}");
}

/// Row 23: as often as the options say, and not at all where the status says so.
#[test]
fn failed_commands_are_sent_again_unless_dnr_is_set() {
    let cases = [
        (Status::INTERNAL_ERROR, 3, Ok(()), 4),
        (Status::INTERNAL_ERROR, 9, Err(ErrorKind::Io), 5),
        (Status::INTERNAL_ERROR.dnr(), 1, Err(ErrorKind::Io), 1),
        (Status::UNRECOVERED_READ_ERROR, 1, Ok(()), 2),
        // Nothing that time could mend.
        (Status::LBA_OUT_OF_RANGE, 1, Err(ErrorKind::Invalid), 1),
    ];
    for (status, failures, expected, sent) in cases {
        let mut rig = Rig::new(|state| {
            state.failed = [(nvm::READ, status)].into();
            state.failures_left = Some(failures);
        });
        let (_, channel) = rig.open();
        let op = Op::read(512, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), expected, "{status:?}");
        assert_eq!(rig.device.state().io().len(), sent, "{status:?}");
        assert!(rig.now_ms() < 100, "at once");
    }
}

/// Row 23: CRD n waits CRDT n, in units of 100 ms.
#[test]
fn retries_wait_as_long_as_the_device_asks_for() {
    for (crd, units) in [(1, 3), (2, 20), (3, 0)] {
        let mut rig = Rig::new(|state| {
            state.controller.crdt = [3.into(), 20.into(), 0.into()];
            state.failed = [(nvm::READ, Status::INTERNAL_ERROR.crd(crd))].into();
            state.failures_left = Some(2);
        });
        let (_, channel) = rig.open();
        let begun = rig.now_ms();
        let op = Op::read(512, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
        let took = rig.now_ms() - begun;
        let least = 2 * units * 100;
        assert!((least..least + 250).contains(&took), "CRD {crd}: {took} ms");
    }
}

/// Row 24: a compare may have been carried out, and its outcome may be another the second time.
#[test]
fn compare_is_never_sent_again() {
    let mut rig = Rig::new(|state| state.failed = [(nvm::COMPARE, Status::INTERNAL_ERROR)].into());
    let (controller, channel) = rig.open();
    let op = Op::compare(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Io));
    rig.device.state().hold = true;
    let op = Op::compare(0, rig.buf(512));
    let cell = rig.start(&channel, op);
    rig.run(|core| async move { controller.reset(&core).await }).expect("a reset");
    let error = cell.take().expect("ended").result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.to_string().contains("may not be sent twice"), "{error}");
    assert_eq!(rig.device.state().io().len(), 2);
}

/// Row 26: what a caller can act on: a kind with its errno, the block, the status in words.
#[test]
fn errors_say_what_where_and_why() {
    let cases = [
        (Status::UNRECOVERED_READ_ERROR.dnr(), libc::EIO, "unrecovered read error"),
        (Status::CAPACITY_EXCEEDED, libc::ENOSPC, "capacity exceeded"),
        (Status::NAMESPACE_WRITE_PROTECTED, libc::EROFS, "namespace is write protected"),
    ];
    let mut rig = Rig::new(|_| {});
    let (_, channel) = rig.open();
    for (status, errno, words) in cases {
        rig.device.state().failed = [(nvm::WRITE, status)].into();
        let op = Op::write(8192, rig.buf(512));
        let fault = rig.op(&channel, op).result.unwrap_err();
        assert_eq!((fault.kind.errno(), fault.offset), (errno, 8192));
        let text = fault.to_string();
        assert!(text.contains("LBA 16") && text.contains(words), "{text}");
    }
}

/// Row 27: what is busy with a format, a sanitize or its start is asked again, later and later, for
/// as long as a command may take.
#[test]
fn a_busy_namespace_is_asked_again_later() {
    let busy =
        [Status::FORMAT_IN_PROGRESS, Status::SANITIZE_IN_PROGRESS, Status::NAMESPACE_NOT_READY];
    for status in busy {
        let mut rig = Rig::new(|state| {
            state.failed = [(nvm::READ, status)].into();
            state.failures_left = Some(6);
        });
        let (_, channel) = rig.open();
        let op = Op::read(0, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Ok(()), "{status:?}");
        assert!((6000..10_000).contains(&rig.now_ms()), "{}", rig.now_ms());
        rig.device.state().failures_left = None;
        let begun = rig.now_ms();
        let op = Op::read(0, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Busy));
        assert!((30_000..35_000).contains(&(rig.now_ms() - begun)), "{}", rig.now_ms() - begun);
    }
}

/// Row 21: until RDY=0 the device may still write into the buffers, so nothing ends before.
#[test]
fn nothing_in_flight_ends_before_the_device_is_quiet() {
    let mut rig = Rig::new(|state| state.unready = Follow::AfterReads(50));
    let (_, channel) = rig.open();
    rig.device.state().hold = true;
    rig.device.state().ready = Follow::Never;
    let op = Op::compare(0, rig.buf(512));
    let cell = rig.start(&channel, op);
    fail_fatally(&rig);
    for _ in 0..200 {
        rig.wait_ms(1);
        let ended = cell.take();
        let quiet = !rig.device.state().csts.rdy();
        assert!(ended.is_none() || quiet, "ended while the device may still write");
        if ended.is_some() {
            return;
        }
    }
    panic!("never ended");
}

/// What a device completes while it is being disabled counts: it is not sent again.
#[test]
fn completions_of_the_last_moment_count() {
    let mut rig = Rig::new(|state| state.unready = Follow::AfterReads(200));
    let (controller, channel) = rig.open();
    rig.device.state().hold = true;
    let op = Op::write(0, rig.buf(512));
    let cell = rig.start(&channel, op);
    let (sqid, command) = rig.device.state().held[0];
    rig.device.state().post(sqid, command.cid(), Status::SUCCESS, 0);
    rig.run(|core| async move { controller.reset(&core).await }).expect("a reset");
    assert_eq!(kind(&cell.take().expect("ended")), Ok(()));
    assert_eq!(rig.device.state().io().len(), 1);
}

/// Row 36, after a reset: the I/O of a core whose queue pair is granted no more failed until its
/// node was opened again. It goes through another core's, what was in flight included; so does that
/// of the cores that shared it.
#[test]
fn fewer_queues_after_a_reset_are_shared_by_all_cores() {
    let mut rig = Rig::with(4, 0x4000, |state| state.queues_granted = 2);
    let (controller, node) = rig.node();
    let channels: Vec<Rc<Channel>> = (0..4)
        .map(|core| {
            let node = node.clone();
            let open = async move |core: Core| core.open(&node).await;
            Rc::new(rig.run_on(core, open).expect("a queue"))
        })
        .collect();
    assert_eq!((controller.stats().queues, controller.stats().sharing), (2, 2));
    rig.device.state().hold = true;
    let mut waiting: Waiting = Vec::new();
    for (core, channel) in channels.iter().enumerate() {
        for n in 0..3 {
            let (channel, cell) = (channel.clone(), Rc::new(Cell::new(None)));
            let (buf, result) = (rig.buf(512), cell.clone());
            drop(rig.sim.core(core).spawn(async move {
                result.set(Some(channel.run(Op::read((core as u64 * 8 + n) * 512, buf)).await));
            }));
            waiting.push(cell);
        }
    }
    rig.turns(1000);
    assert_eq!(rig.device.state().held.len(), 12);
    let mut state = rig.device.state();
    state.queues_granted = 1;
    state.seen.clear();
    drop(state);
    let resetting = controller.clone();
    rig.run(|core| async move { resetting.reset(&core).await }).expect("a reset");
    rig.turns(1000);
    let sent: Vec<u64> = rig.device.state().io().iter().map(|command| command.slba()).collect();
    let of_core = |core: u64| sent.iter().filter(move |lba| **lba / 8 == core).copied();
    for core in 0..4 {
        let expected: Vec<u64> = (core * 8..core * 8 + 3).collect();
        assert_eq!(of_core(core).collect::<Vec<u64>>(), expected, "once each, in their order");
    }
    rig.device.release();
    rig.wait_ms(1);
    assert_eq!(results(waiting), [Ok(()); 12]);
    assert_eq!((controller.stats().queues, controller.stats().sharing), (1, 3));
    for (core, channel) in channels.iter().enumerate() {
        let (channel, buf) = (channel.clone(), rig.buf(512));
        let run = async move |_| channel.run(Op::write(0, buf)).await.result;
        assert_eq!(rig.run_on(core, run), Ok(()));
    }
    // Also over a further reset, and until they are closed.
    let resetting = controller.clone();
    rig.run(|core| async move { resetting.reset(&core).await }).expect("a reset");
    let Rig { sim, .. } = rig;
    drop(channels);
    sim.shutdown().expect("an orderly end");
}

/// A namespace that is formatted otherwise after a reset is not written with the old shape.
#[test]
fn a_namespace_that_changed_is_not_taken_for_the_old_one() {
    let mut rig = Rig::new(|_| {});
    let (controller, channel) = rig.open();
    rig.device.state().namespaces.insert(1, super::device::namespace(512, 12));
    rig.run(|core| async move { controller.reset(&core).await }).expect("a reset");
    let early = Op::write(0, rig.buf(512));
    assert!(kind(&rig.op(&channel, early)).is_err());
    rig.wait_ms(1);
    let op = Op::write(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Gone), "the node was told by then");
    assert_eq!(rig.device.state().io().len(), 0);
}

/// Closing a node, and shutting the controller down, while a reset is under way that never ends
/// well: both end, and the queue's memory comes back.
#[test]
fn closing_and_shutting_down_amid_a_reset_end() {
    for ready in [Follow::AfterReads(3000), Follow::Never] {
        let mut rig = Rig::new(|_| {});
        let (controller, channel) = rig.open();
        let waiting = held_reads(&mut rig, &channel, 3);
        let mut state = rig.device.state();
        (state.ready, state.unready) = (ready, Follow::AfterReads(100));
        drop(state);
        fail_fatally(&rig);
        rig.wait_ms(70);
        let node = channel.node().clone();
        let closing = rig.sim.core(0).clone();
        let closed = rig.sim.core(0).spawn(async move { closing.close(&node).await });
        rig.wait_ms(20);
        let ending = controller.clone();
        let ended = rig.run(|core| async move { ending.shutdown(&core).await });
        rig.run(|_| closed).expect("a task").expect("closed");
        if ready == Follow::Never {
            assert_eq!(results(waiting), [Err(ErrorKind::Io); 3]);
        } else {
            ended.expect("shut down in good order");
            let failed = results(waiting);
            assert!(failed.iter().all(Result::is_err), "the device kept them to the end");
        }
        assert!(rig.now_ms() < 100_000);
        assert!(!rig.device.state().cc.en(), "disabled");
    }
}

/// Row 1: eight queue pairs with 128 commands each fail within 100 ms of the moment that the device
/// is gone, and no register is touched once that was found.
#[test]
fn removal_fails_all_io_within_100_ms() {
    let mut rig = Rig::sized(8, 256, |state| state.hold = true);
    rig.options.queue_entries = 129;
    let (_controller, node) = rig.node();
    let mut waiting: Waiting = Vec::new();
    let failed = Rc::new(Cell::new(0));
    for core in 0..8 {
        let node = node.clone();
        let channel = rig.run_on(core, |core| async move { core.open(&node).await });
        let channel = Rc::new(channel.expect("a queue"));
        for n in 0..128 {
            let (channel, cell) = (channel.clone(), Rc::new(Cell::new(None)));
            let (result, op) = (cell.clone(), Op::read(n * 512, rig.buf(512)));
            let failed = failed.clone();
            drop(rig.sim.core(core).spawn(async move {
                result.set(Some(channel.run(op).await));
                failed.set(failed.get() + 1);
            }));
            waiting.push(cell);
        }
    }
    rig.turns(2000);
    assert_eq!(rig.device.state().held.len(), 8 * 128);
    rig.device.state().gone = true;
    let (begun, mmio) = (rig.now_ms(), rig.device.state().mmio);
    while failed.get() < 8 * 128 && rig.now_ms() - begun < 100 {
        rig.wait_ms(1);
    }
    println!("all failed {} ms after the removal", rig.now_ms() - begun);
    assert_eq!(results(waiting), [Err(ErrorKind::Gone); 8 * 128]);
    assert_eq!(rig.device.state().mmio, mmio + 1, "the one read that found it gone");
    rig.wait_ms(1000);
    assert_eq!(rig.device.state().mmio, mmio + 1);
}
