//! Row 31, and what becomes of memory that a controller may still write.

use oxblock_engine::{ErrorKind, Op, OpFlags, OpKind, Pass, Request, Token};
use oxblock_mem::IoVector;
use oxblock_nvme::opcode::admin;
use oxblock_nvme::regs::SHN_NORMAL;

use super::device::{Follow, Seen};
use super::{Rig, kind};

/// Row 31: queues, then SHN, then SHST=10b, then EN=0, in this order.
#[test]
fn shutdown_is_orderly() {
    let mut rig = Rig::new(|state| state.shutdown = Follow::AfterReads(20));
    let (controller, channel) = rig.open();
    let op = Op::write(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    rig.device.state().seen.clear();
    let ending = controller.clone();
    rig.run(|core| async move { ending.shutdown(&core).await }).expect("a shutdown");
    let state = rig.device.state();
    let mut seen = state.seen.clone();
    seen.retain(|seen| !matches!(seen, Seen::Doorbell(..)));
    let [Seen::Admin(first), .., Seen::Cc(shut), Seen::Cc(off)] = seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(first, admin::DELETE_SQ);
    assert_eq!(state.admin_count(admin::DELETE_CQ), 1);
    assert_eq!((shut.shn(), shut.en()), (SHN_NORMAL, true));
    assert!(!off.en());
    assert!(!seen.contains(&Seen::DisabledTooEarly), "SHST=10b first");
    drop(state);
    rig.run(|core| async move { controller.shutdown(&core).await }).expect("a second is nothing");
    let op = Op::write(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Failed));
}

/// Row 31: 10 s, or RTD3E if that is longer, but not for ever.
#[test]
fn shutdown_has_a_limit() {
    let longest = u32::MAX;
    for (rtd3e_us, expected_ms) in
        [(0, 10_000), (4_000_000, 10_000), (25_000_000, 25_000), (longest, 300_000)]
    {
        let mut rig = Rig::new(|state| {
            state.shutdown = Follow::Never;
            state.controller.rtd3e = rtd3e_us.into();
        });
        let controller = rig.attach();
        let begun = rig.now_ms();
        let error = rig.run(|core| async move { controller.shutdown(&core).await }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("SHST=10b"), "{error}");
        let took = rig.now_ms() - begun;
        assert!((expected_ms..expected_ms + 50).contains(&took), "{took}");
        assert!(!rig.device.state().cc.en(), "disabled all the same");
    }
}

/// Rows 4 and 31.
#[test]
fn shutdown_ends_early_on_a_fatal_status() {
    let mut rig = Rig::new(|state| state.shutdown = Follow::Fatally);
    let controller = rig.attach();
    let error = rig.run(|core| async move { controller.shutdown(&core).await }).unwrap_err();
    assert!(error.to_string().contains("CSTS.CFS"), "{error}");
    assert!(rig.now_ms() < 100);
}

#[test]
fn closing_a_queue_deletes_it_and_its_memory_comes_back() {
    let mut rig = Rig::new(|_| {});
    let (controller, node) = rig.node();
    let free = rig.sim.core(0).arena().available();
    for _ in 0..3 {
        let (opening, closing) = (node.clone(), node.clone());
        let channel = rig.run(|core| async move { core.open(&opening).await }).unwrap();
        assert_eq!(controller.stats().queues, 1);
        drop(channel);
        rig.run(|core| async move { core.close(&closing).await }).expect("closed");
        assert_eq!(controller.stats().queues, 0);
    }
    let bounce = 16 * (128 << 10) + 4096;
    assert!(free - rig.sim.core(0).arena().available() <= bounce, "the engine's own, no more");
    let state = rig.device.state();
    assert_eq!(state.admin_count(admin::DELETE_SQ), 3);
    assert_eq!(state.admin_count(admin::DELETE_CQ), 3);
}

fn read(data: &IoVector) -> Request<'_> {
    Request {
        token: Token(1),
        kind: OpKind::Read,
        flags: OpFlags::empty(),
        offset: 0,
        len: data.len() as u64,
        data: data.view(0, data.len()),
    }
}

/// Submits a read that the device keeps, and drops the queue with it.
fn drop_in_flight(rig: &mut Rig) {
    let (controller, node) = rig.node();
    rig.device.state().hold = true;
    let queue = rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await });
    let (mut queue, mut pass) = (queue.unwrap(), Pass::new(4));
    let data = IoVector::from(rig.buf(512));
    queue.submit(&read(&data), &mut pass).unwrap();
    queue.kick(&mut pass);
    assert_eq!(queue.in_flight(), 1);
    drop(queue);
    drop(controller);
}

/// A queue that was dropped with its commands in flight gave its pages back, and the controller
/// wrote completions into what had become somebody's data.
#[test]
fn memory_of_a_queue_that_is_not_deleted_is_never_given_back() {
    let mut rig = Rig::new(|_| {});
    let free = rig.sim.core(0).arena().available();
    drop_in_flight(&mut rig);
    let lost = free - rig.sim.core(0).arena().available();
    assert!(lost >= 255 * 4096 + 256 * 80, "{lost} bytes are kept, for the lists and the rings");
}

/// The controller that is known to be quiet gets nothing any more, so all comes back.
#[test]
fn memory_comes_back_once_the_controller_is_quiet() {
    let mut rig = Rig::new(|_| {});
    let free = rig.sim.core(0).arena().available();
    let (controller, channel) = rig.open();
    rig.device.state().hold = true;
    let op = Op::read(0, rig.buf(512));
    let cell = rig.start(&channel, op);
    rig.device.state().gone = true;
    rig.wait_ms(300);
    assert_eq!(kind(&cell.take().expect("failed")), Err(ErrorKind::Gone));
    let node = channel.node().clone();
    rig.run(|core| async move { core.close(&node).await }).expect("closed");
    drop((channel, controller));
    let bounce = 16 * (128 << 10) + 4096;
    let lost = free - rig.sim.core(0).arena().available();
    // The event tasks still hold the admin queue's two pages.
    assert!(lost <= bounce + 4 * 4096, "{lost}");
}

/// A controller that does not answer is disabled, so that the engine's shutdown does not hang and
/// frees nothing too early.
#[test]
fn a_queue_that_is_not_deleted_in_time_has_its_controller_disabled() {
    let mut rig = Rig::new(|_| {});
    let (_controller, node) = rig.node();
    let queue = rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await });
    let (mut queue, mut pass, mut now_ns) = (queue.unwrap(), Pass::new(4), 0);
    {
        let mut state = rig.device.state();
        (state.hold, state.deaf) = (true, true);
        state.unready = Follow::AfterReads(3);
    }
    let data = IoVector::from(rig.buf(512));
    queue.submit(&read(&data), &mut pass).unwrap();
    queue.kick(&mut pass);
    while !queue.quiesce(&mut pass) {
        assert_eq!(pass.drain().count(), 0, "while the device may still write");
        now_ns += 100_000_000;
        pass.begin(now_ns);
    }
    assert!((3_000_000_000..4_000_000_000).contains(&now_ns), "{now_ns}");
    assert_eq!(pass.drain().filter(|(_, result)| result.is_err()).count(), 1);
    assert_eq!(queue.in_flight(), 0);
    let state = rig.device.state();
    assert!(!state.cc.en() && !state.csts.rdy());
}

/// An admin command without an answer: in time, in words, and the controller is disabled.
#[test]
fn a_deaf_controller_is_given_up() {
    let mut rig = Rig::new(|state| state.deaf = true);
    rig.options.admin_timeout = std::time::Duration::from_millis(50);
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("admin command 06h got no answer in 50ms"), "{error}");
    // Twice: its function was reset, and it was tried again.
    assert!((100..150).contains(&rig.now_ms()), "{}", rig.now_ms());
    assert!(!rig.device.state().cc.en());
}

/// Two controllers in one engine, and the engine's own order of ending.
#[test]
fn two_controllers_live_side_by_side() {
    let mut rig = Rig::new(|_| {});
    let (first, channel) = rig.open();
    let (device, function) = super::device::Script::new(0x4000);
    device.state().disk[0] = 0xab;
    let options = rig.options.clone();
    let second = rig.run(|core| async move {
        super::Controller::attach(&core, function, options).await.expect("attach")
    });
    let node = oxblock_engine::Node::new("nvme1n1", second.namespace(1).unwrap());
    let other = rig.run(|core| async move { core.open(&node).await }).unwrap();
    let other = std::rc::Rc::new(other);
    let mut found = [[0; 1]; 2];
    for (channel, found) in [&channel, &other].into_iter().zip(&mut found) {
        let op = Op::read(0, rig.buf(512));
        let done = rig.op(channel, op);
        done.op.data.read_at(0, found);
    }
    assert_eq!(found, [[0], [0xab]]);
    drop((first, second));
}
