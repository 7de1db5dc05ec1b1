//! Rows 3, 4, 19 to 24, 27 and 33: late commands, failed ones, and resets with I/O in flight.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::{Channel, Completion, ErrorKind, Op};
use oxblock_nvme::opcode::admin;

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
