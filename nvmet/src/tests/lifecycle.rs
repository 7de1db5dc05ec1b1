use std::sync::atomic::Ordering;

use oxblock_engine::{ErrorKind, Fault, OpKind};
use oxblock_nvme::regs::{self, Aqa, Cc, SHN_ABRUPT, SHN_NORMAL, SHST_COMPLETE, SHST_OCCURRING};
use oxblock_nvme::{Command, Status};

use super::options;
use crate::host::Host;

#[test]
fn capabilities_say_what_is_there() {
    let host = Host::new(options().0);
    let cap = host.cap();
    assert_eq!((cap.mqes(), cap.cqr(), cap.dstrd(), cap.mpsmin()), (1023, true, 0, 0));
    assert!(cap.css_nvm() && cap.css_io() && cap.crwms());
    assert!(cap.to() > 0);
    assert_eq!(host.reg32(regs::VS).read(), 0x2_0000);
    assert_eq!(host.csts().0, 0);
    let doorbells = regs::DOORBELLS + 2 * 5 * 4;
    assert!(host.bar.len() >= doorbells);
}

#[test]
fn enable_disable_enable() {
    let mut host = Host::ready(options().0);
    for _ in 0..3 {
        host.page(Command::identify(1, 0, 0));
        host.create_io(1, 8);
        host.disable();
        assert_eq!(host.csts().0, 0);
        host.enable();
        assert!(!host.csts().cfs());
    }
    // Queues of the life before are gone.
    assert_eq!(host.status(0, Command::delete_sq(1)), Status::INVALID_QID);
}

/// Admin queues that cannot be served end in CSTS.CFS, and a reset mends it.
#[test]
fn what_cannot_be_served_is_fatal() {
    let mut host = Host::new(options().0);
    host.set_admin_queues();
    let good = (host.reg32(regs::AQA).read(), host.reg64(regs::ASQ).read());
    let bad = [
        (Aqa::new(2, 1).0, good.1, Host::cc()),
        (Aqa::new(1, 2).0, good.1, Host::cc()),
        (good.0, 0xdead_0000_0000, Host::cc()),
        (good.0, u64::MAX, Host::cc()),
        (good.0, good.1, Host::cc().with_mps(15)),
        (good.0, good.1, Host::cc().with_css(1)),
        (good.0, good.1, Host::cc().with_css(regs::CSS_ADMIN)),
        (good.0, good.1, Host::cc().with_ams(1)),
    ];
    for (aqa, asq, cc) in bad {
        host.reg32(regs::AQA).write(aqa);
        host.reg64(regs::ASQ).write(asq);
        host.reg32(regs::CC).write(cc.0);
        host.until("fatal", |host| host.csts().cfs());
        assert!(!host.csts().rdy(), "{cc:?}");
        host.reg32(regs::CC).write(0);
        host.until("mended", |host| host.csts().0 == 0);
    }
    host.enable();
}

#[test]
fn larger_pages_and_all_command_sets_are_served() {
    let mut host = Host::new(options().0);
    host.set_admin_queues();
    // Arena blocks are only 4 KiB aligned, which is all that ASQ and ACQ need.
    let cc = Host::cc().with_mps(2).with_css(regs::CSS_ALL);
    host.reg32(regs::CC).write(cc.0);
    host.until("ready", |host| host.csts().rdy());
    let buf = host.arena.alloc(16384, 16384).unwrap();
    host.ok(Command::identify(0x1c, 0, 0).with_prp(buf.iova().unwrap() + 8192, 0));
    assert_eq!(buf.as_slice().unwrap()[8192], 1);
}

/// EN went 1, 0, 1 without a look at RDY in between: the second life must not have the queues
/// of the first.
#[test]
fn a_pulse_on_enable_is_a_reset() {
    let mut host = Host::ready(options().0);
    host.create_io(1, 8);
    host.reg32(regs::CC).write(0);
    host.set_admin_queues();
    host.reg32(regs::CC).write(Host::cc().0);
    host.turns(5);
    host.until("ready", |host| host.csts().rdy());
    assert_eq!(host.status(0, Command::delete_sq(1)), Status::INVALID_QID);
}

/// RDY=0 came while a read was still in the engine, which then wrote into memory that the host
/// had given to somebody else.
#[test]
fn ready_stays_until_the_last_command_has_ended() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let buf = host.alloc(4096);
    ram.hold.store(true, Ordering::Relaxed);
    host.submit(1, Command::read(1, 0, 8).with_prp(buf.iova().unwrap(), 0));
    host.turns(10);
    host.reg32(regs::CC).write(0);
    host.turns(100);
    assert!(host.csts().rdy());
    ram.hold.store(false, Ordering::Relaxed);
    host.until("disabled", |host| !host.csts().rdy());
    host.enable();
}

#[test]
fn a_shutdown_flushes_and_needs_a_reset_afterwards() {
    for (shn, flushes) in [(SHN_NORMAL, 1), (SHN_ABRUPT, 0)] {
        let (options, ram, _) = options();
        let mut host = Host::with_io(options);
        ram.hold.store(true, Ordering::Relaxed);
        let buf = host.alloc(4096);
        let cid = host.submit(1, Command::write(1, 0, 8, 0).with_prp(buf.iova().unwrap(), 0));
        host.turns(3);
        host.reg32(regs::CC).write(Host::cc().with_shn(shn).0);
        host.turns(20);
        assert_eq!(host.csts().shst(), SHST_OCCURRING);
        ram.hold.store(false, Ordering::Relaxed);
        host.until("shut down", |host| host.csts().shst() == SHST_COMPLETE);
        assert!(host.csts().rdy() && !host.csts().cfs());
        assert!(host.wait(1, cid).status().is_success());
        assert_eq!(ram.flushes.load(Ordering::Relaxed), flushes);
        // Commands are not served any more.
        let late = host.submit(0, Command::identify(1, 0, 0));
        host.turns(50);
        assert!(host.take(0, late).is_none());
        host.disable();
        assert_eq!(host.csts().0, 0);
        host.enable();
        host.page(Command::identify(1, 0, 0));
    }
}

#[test]
fn a_shutdown_while_disabled_is_complete_at_once() {
    let mut host = Host::new(options().0);
    host.reg32(regs::CC).write(Cc::default().with_shn(SHN_NORMAL).0);
    host.until("shut down", |host| host.csts().shst() == SHST_COMPLETE);
    host.enable();
    assert_eq!(host.csts().shst(), 0);
}

/// A flush that failed on the way down must not look like a clean shutdown.
#[test]
fn a_shutdown_that_cannot_flush_is_fatal() {
    let (options, ram, _) = options();
    let host = Host::ready(options);
    *ram.fail.lock().unwrap() = Some((OpKind::Flush, Fault::new(ErrorKind::Io, 0)));
    host.reg32(regs::CC).write(Host::cc().with_shn(SHN_NORMAL).0);
    host.until("shut down", |host| host.csts().shst() == SHST_COMPLETE);
    assert!(host.csts().cfs());
}

#[test]
fn a_function_reset_clears_everything() {
    let mut host = Host::ready(options().0);
    host.create_io(1, 8);
    host.function.reset().unwrap();
    host.until("reset", |host| host.csts().0 == 0);
    assert_eq!(host.reg32(regs::AQA).read(), 0);
    assert_eq!(host.reg64(regs::ASQ).read(), 0);
    assert_eq!(host.reg32(regs::CC).read(), 0);
    host.enable();
}

/// The host unmapped the queues of a controller that it had not disabled.
#[test]
fn a_queue_that_loses_its_memory_is_fatal() {
    let mut host = Host::with_io(options().0);
    drop(host.attachment.take());
    host.until("fatal", |host| host.csts().cfs());
    let attachment = host.memory.attach(host.function.iommu()).unwrap();
    host.attachment = Some(attachment);
    host.disable();
    host.enable();
}

/// Other memory came to lie where the queues had been, before the controller looked; it went on
/// to serve the old.
#[test]
fn a_queue_that_gets_other_memory_is_fatal() {
    let mut host = Host::with_io(options().0);
    let queue = host.arena.region().iova();
    drop(host.attachment.take());
    let (memory, len) = (oxblock_mem::Memory::new(), host.arena.region().len());
    let pages = oxblock_mem::PagePolicy::Unlocked;
    let arena = memory
        .add_arena(&oxblock_mem::ArenaOptions { pages, ..oxblock_mem::ArenaOptions::new(len) });
    let _other = memory.attach(host.function.iommu()).unwrap();
    assert_eq!(arena.unwrap().region().iova(), queue);
    host.until("fatal", |host| host.csts().cfs());
}

#[test]
fn a_stopped_controller_is_gone() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.hold.store(true, Ordering::Relaxed);
    host.submit(1, Command::flush(1));
    host.turns(5);
    host.controller.stop();
    host.turns(20);
    assert!(!host.controller.is_stopped());
    ram.hold.store(false, Ordering::Relaxed);
    host.until("stopped", |host| host.controller.is_stopped());
    assert!(host.csts().is_gone());
    assert_eq!(host.cap().0, u64::MAX);
    host.function.reset().unwrap();
}

#[test]
fn an_orderly_end_of_the_engine_stops_the_controller() {
    let Host { reactor, controller, .. } = Host::with_io(options().0);
    reactor.shutdown().unwrap();
    assert!(controller.is_stopped());
}
