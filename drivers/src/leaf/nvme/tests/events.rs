//! Rows 1, 28, 29 and 33: what a device tells of itself, and what is made of it.

use std::rc::Rc;
use std::sync::Arc;

use oxblock_engine::{Channel, ErrorKind, EventKind, Events, Node, Op};
use oxblock_nvme::event::{self, Event};
use oxblock_nvme::identify::write_ascii;
use oxblock_nvme::log::{CHANGED_OVERFLOW, LID_CHANGED_NAMESPACES, LID_ERROR, LID_SMART};
use oxblock_nvme::opcode::admin;
use oxblock_pci::Function;

use super::device::{Seen, namespace};
use super::{Controller, Rig, kind};

const CHANGED: Event = Event {
    kind: event::TYPE_NOTICE,
    information: event::NOTICE_NAMESPACE_CHANGED,
    log_page: LID_CHANGED_NAMESPACES,
};

/// A controller, a node over its first namespace, a channel on it, and all that is told.
fn listening(rig: &mut Rig) -> (Arc<Controller>, Arc<Node>, Rc<Channel>, Events) {
    let (controller, node) = rig.node();
    let opened = node.clone();
    let channel = rig.run(|core| async move { core.open(&opened).await }).expect("a queue");
    let events = rig.sim.core(0).events();
    // The requests are armed.
    rig.turns(200);
    (controller, node, Rc::new(channel), events)
}

fn raise(rig: &mut Rig, event: Event) {
    rig.device.state().raise(event);
    rig.wait_ms(200);
}

/// Raises that these namespaces have changed.
fn change(rig: &mut Rig, ids: &[u32]) {
    let mut page = vec![0; 4096];
    page.chunks_mut(4).zip(ids).for_each(|(to, id)| to.copy_from_slice(&id.to_le_bytes()));
    rig.device.state().logs.insert(LID_CHANGED_NAMESPACES, page);
    raise(rig, CHANGED);
}

fn kinds(events: &mut Events) -> Vec<EventKind> {
    std::iter::from_fn(|| events.try_next()).map(|event| event.kind).collect()
}

fn outcome(rig: &mut Rig, channel: &Rc<Channel>, op: Op) -> Result<(), ErrorKind> {
    kind(&rig.op(channel, op))
}

/// Row 28. A request was armed again before its log was read, and the same event came at once.
#[test]
fn requests_are_armed_as_far_as_aerl_and_again_after_the_log_is_read() {
    for (aerl, armed) in [(0, 1), (2, 3), (255, 4)] {
        let mut rig = Rig::new(|state| state.controller.aerl = aerl);
        let (controller, ..) = listening(&mut rig);
        assert_eq!(rig.device.state().armed.len(), armed, "AERL {aerl}");
        rig.device.state().seen.clear();
        let error = event::ERROR_TRANSIENT_INTERNAL;
        let event = Event { kind: event::TYPE_ERROR, information: error, log_page: LID_ERROR };
        raise(&mut rig, event);
        let state = rig.device.state();
        let order: Vec<_> =
            state.seen.iter().filter(|seen| matches!(seen, Seen::Admin(_))).collect();
        assert_eq!(order, [&Seen::Admin(admin::GET_LOG_PAGE), &Seen::Admin(admin::ASYNC_EVENT)]);
        assert_eq!((state.armed.len(), &state.logs_read[..]), (armed, &[LID_ERROR][..]));
        drop(state);
        assert_eq!((controller.event_counts().errors, controller.stats().resets), (1, 0));
    }
}

/// Row 28. A log page that is refused, and an event that never ends, kept a core busy for good.
#[test]
fn an_event_that_comes_again_and_again_is_heard_now_and_then() {
    let mut rig = Rig::new(|_| {});
    let (controller, _, channel, _) = listening(&mut rig);
    let mut state = rig.device.state();
    state
        .refused
        .insert(admin::GET_LOG_PAGE, (oxblock_nvme::status::Status::INVALID_FIELD, 1 << 30));
    let event = Event { kind: event::TYPE_SMART, information: 1, log_page: LID_SMART };
    state.nagging = Some(event);
    state.raise(event);
    drop(state);
    rig.wait_ms(10_000);
    let counts = controller.event_counts();
    // 32 at once, and ten a second.
    assert!((100..=140).contains(&counts.all), "{counts:?}");
    assert_eq!(counts.unread, counts.all);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(0, buf)), Ok(()));
}

/// Row 28: a warning is told in words, and media that is read-only makes its nodes so.
#[test]
fn warnings_are_told_and_read_only_media_makes_read_only_nodes() {
    let mut rig = Rig::new(|_| {});
    let (_controller, node, channel, mut events) = listening(&mut rig);
    let mut warn = |rig: &mut Rig, bits: u8| {
        let mut page = vec![0; 512];
        (page[0], page[1], page[2], page[3]) = (bits, 0x5e, 0x01, 4);
        rig.device.state().logs.insert(LID_SMART, page);
        let event = Event { kind: event::TYPE_SMART, information: 0, log_page: LID_SMART };
        raise(rig, event);
        std::iter::from_fn(|| events.try_next()).map(|e| (e.kind, e.text)).collect::<Vec<_>>()
    };
    let told = warn(&mut rig, 0b1011);
    assert_eq!(told[0].0, EventKind::NodeReadOnly);
    assert_eq!(told[1].0, EventKind::HealthWarning);
    for word in ["spare capacity is at 4%", "at 77 C", "read-only"] {
        assert!(told[1].1.contains(word), "{word}: {}", told[1].1);
    }
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::write(0, buf)), Err(ErrorKind::ReadOnly));
    assert_eq!(warn(&mut rig, 0b1011), [], "told once for each change");
    let told: Vec<_> = warn(&mut rig, 0).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(told, [EventKind::NodeWritable, EventKind::HealthWarning]);
    assert!(!node.limits().read_only);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::write(0, buf)), Ok(()));
}

/// Row 28: what only a reset cures is reset, and events are heard after it as before.
#[test]
fn a_persistent_error_is_cured_by_a_reset() {
    let mut rig = Rig::new(|state| state.controller.aerl = 1);
    let (controller, _, channel, mut events) = listening(&mut rig);
    let error = event::ERROR_PERSISTENT_INTERNAL;
    raise(&mut rig, Event { kind: event::TYPE_ERROR, information: error, log_page: LID_ERROR });
    let told = kinds(&mut events);
    assert_eq!(told, [EventKind::DeviceError, EventKind::ResetBegun, EventKind::ResetDone]);
    assert_eq!(controller.stats().resets, 1);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(0, buf)), Ok(()));
    assert_eq!(rig.device.state().armed.len(), 2);
    rig.device.state().namespaces.insert(1, namespace(8192, 9));
    change(&mut rig, &[1]);
    let resized = EventKind::NodeResized { from: 4096 * 512, to: 8192 * 512 };
    assert_eq!(kinds(&mut events), [resized]);
}

/// Row 29: an open node grows and shrinks with its namespace.
#[test]
fn a_node_follows_the_size_of_its_namespace() {
    let mut rig = Rig::new(|state| state.disk = vec![0; 8192 * 512]);
    let (_controller, node, channel, mut events) = listening(&mut rig);
    let last = |blocks: u64| (blocks - 1) * 512;
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(last(8192), buf)), Err(ErrorKind::Invalid));
    rig.device.state().namespaces.insert(1, namespace(8192, 9));
    change(&mut rig, &[1]);
    assert_eq!(node.limits().length, 8192 * 512);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(last(8192), buf)), Ok(()));
    rig.device.state().namespaces.insert(1, namespace(16, 9));
    change(&mut rig, &[1]);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(last(17), buf)), Err(ErrorKind::Invalid));
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(last(16), buf)), Ok(()));
    let resized = |from: u64, to: u64| EventKind::NodeResized { from: from * 512, to: to * 512 };
    assert_eq!(kinds(&mut events), [resized(4096, 8192), resized(8192, 16)]);
}

/// Row 29: what goes fails its node, what comes is told; a list that overflowed means all of them.
#[test]
fn namespaces_that_go_and_come_are_told_also_when_the_list_overflowed() {
    for ids in [vec![1, 2], vec![CHANGED_OVERFLOW]] {
        let mut rig = Rig::new(|_| {});
        let (controller, node, channel, mut events) = listening(&mut rig);
        let mut state = rig.device.state();
        state.namespaces.remove(&1);
        state.namespaces.insert(2, namespace(64, 12));
        drop(state);
        change(&mut rig, &ids);
        assert_eq!(controller.namespaces(), [2]);
        let told = kinds(&mut events);
        let (removed, added) =
            (EventKind::NamespaceRemoved { id: 1 }, EventKind::NamespaceAdded { id: 2 });
        assert_eq!(told, [EventKind::NodeGone, removed, added]);
        let buf = rig.buf(512);
        let completion = rig.op(&channel, Op::read(0, buf));
        assert_eq!(kind(&completion), Err(ErrorKind::Gone));
        let text = completion.result.unwrap_err().to_string();
        assert!(text.contains("deleted, or detached"), "{text}");
        assert!(node.withdrawn().is_some());
        assert!(controller.namespace(2).is_ok());
    }
}

/// Row 29: blocks of another size would be other places under the same numbers.
#[test]
fn a_namespace_of_other_blocks_or_of_another_identity_withdraws_its_node() {
    let mut changed = namespace(4096, 9);
    changed.nguid = [7; 16];
    for (page, word) in [(namespace(512, 12), "formatted with other blocks"), (changed, "another")]
    {
        let mut rig = Rig::new(|_| {});
        let (_controller, _, channel, _) = listening(&mut rig);
        rig.device.state().namespaces.insert(1, page);
        rig.device.state().seen.clear();
        change(&mut rig, &[1]);
        let completion = rig.op(&channel, Op::write(0, rig.buf(512)));
        assert_eq!(kind(&completion), Err(ErrorKind::Gone));
        let text = completion.result.unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
        assert!(rig.device.state().io().is_empty());
    }
}

/// Row 28: I/O waits while a controller begins to run other firmware, and goes on after.
#[test]
fn io_waits_for_an_activation_of_firmware() {
    const ACTIVATION: Event = Event {
        kind: event::TYPE_NOTICE,
        information: event::NOTICE_FIRMWARE_ACTIVATION,
        log_page: 3,
    };
    for ends in [true, false] {
        let mut rig = Rig::new(|state| state.controller.mtfa = 20.into());
        let (controller, _, channel, mut events) = listening(&mut rig);
        let mut state = rig.device.state();
        state.csts = state.csts.with_pp(true);
        drop(state);
        raise(&mut rig, ACTIVATION);
        rig.device.state().seen.clear();
        let waiting = rig.start(&channel, Op::read(0, rig.buf(512)));
        rig.wait_ms(1000);
        assert!(rig.device.state().io().is_empty(), "it pauses");
        let mut state = rig.device.state();
        write_ascii(&mut state.controller.fr, "2.0");
        if ends {
            state.csts = state.csts.with_pp(false);
        }
        drop(state);
        rig.wait_ms(2000);
        assert_eq!(kind(&waiting.take().expect("it went on")), Ok(()));
        assert_eq!(controller.stats().resets, u64::from(!ends), "two seconds are its limit");
        let told = kinds(&mut events);
        assert_eq!(told[0], EventKind::FirmwareActivation);
        assert!(told.contains(&EventKind::FirmwareActivated), "{told:?}");
        // The firmware stayed that of the attach.
        assert_eq!(controller.identity().firmware, "2.0");
    }
}

/// Row 33: an error of the way to the function is cured by a reset.
#[test]
fn a_bus_error_is_cured_by_a_reset() {
    let mut rig = Rig::new(|_| {});
    let (controller, _, channel, mut events) = listening(&mut rig);
    rig.function.events().error.signal();
    rig.wait_ms(200);
    assert_eq!(controller.stats().resets, 1);
    let told = kinds(&mut events);
    assert_eq!(told, [EventKind::DeviceError, EventKind::ResetBegun, EventKind::ResetDone]);
    let buf = rig.buf(512);
    assert_eq!(outcome(&mut rig, &channel, Op::read(0, buf)), Ok(()));
}

/// Rows 1 and 33: a function that is asked for back is shut down in order and let go of; one that
/// is gone is let go of as it is. What comes back is attached anew in the same engine.
#[test]
fn a_function_that_goes_is_let_go_of_and_can_come_back() {
    for asked in [true, false] {
        let mut rig = Rig::new(|_| {});
        let (_controller, _, channel, mut events) = listening(&mut rig);
        rig.device.state().hold = !asked;
        let waiting = rig.start(&channel, Op::read(0, rig.buf(512)));
        rig.device.state().seen.clear();
        match asked {
            true => rig.function.events().removal.signal(),
            false => rig.device.state().gone = true,
        }
        rig.wait_ms(500);
        let expected = if asked { Ok(()) } else { Err(ErrorKind::Gone) };
        assert_eq!(kind(&waiting.take().expect("it ended")), expected);
        let shut_down = |seen: &Seen| matches!(seen, Seen::Cc(cc) if cc.shn() != 0);
        assert_eq!(rig.device.state().seen.iter().any(shut_down), asked);
        let told = kinds(&mut events);
        assert_eq!(told.contains(&EventKind::DeviceLeaving), asked, "{told:?}");
        assert_eq!(told.last(), Some(&EventKind::DeviceGone), "{told:?}");
        assert!(told.contains(&EventKind::NodeGone), "{told:?}");
        let buf = rig.buf(512);
        assert_eq!(outcome(&mut rig, &channel, Op::read(0, buf)), Err(ErrorKind::Gone));
        let mut state = rig.device.state();
        (state.gone, state.hold) = (false, false);
        drop(state);
        let (_controller, channel) = rig.open();
        let buf = rig.buf(512);
        assert_eq!(outcome(&mut rig, &channel, Op::read(0, buf)), Ok(()));
    }
}
