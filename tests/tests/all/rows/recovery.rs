//! Rows 1, 4, 19 to 27 and 33: what goes wrong later, and how it ends.

use std::time::Duration;

use oxblock_engine::{ErrorKind, Op};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::status::Status;
use oxblock_nvmet::fault::{CommandFault, Match, Readiness};
use oxblock_tests::exercise::Exercise;
use rustix::io::Errno;

use super::{Driven, Rig, Row, every};

pub const ROWS: &[Row] = &[
    (1, "all I/O fails at once, and it is left alone", gone),
    (4, "the controller is reset and all I/O goes on", fatal_status),
    (19, "aborted; where that does not help, reset", late_commands),
    (20, "no more than ACL allows", few_aborts),
    (21, "each I/O ends once, no memory is touched after it", resets_under_io),
    (22, "all I/O fails within the ready timeouts", failed_resets),
    (23, "sent again after its delay, so often and no more", retries),
    (24, "not sent again", not_repeatable),
    (25, "an error", status_types),
    (26, "EIO, ENOSPC and EROFS, with the offset", media_errors),
    (27, "sent again until it passes", not_ready),
    (33, "the function is reset, I/O goes on", function_reset),
];

/// Reads that never complete.
fn hanging_reads(rig: &mut Rig, count: u64) -> Driven {
    let driven = rig.open();
    // One after the other: a command that one rule takes, the next does not count.
    for _ in 0..count {
        rig.faults.command(every(nvm::READ).nth(1), CommandFault::Hang);
    }
    rig.start_reads(&driven, count);
    assert_eq!(rig.faults.hanging(false, nvm::READ), count as usize);
    driven
}

fn kinds(rig: &mut Rig, driven: &Driven) -> Vec<Result<(), ErrorKind>> {
    rig.ends(driven).into_iter().map(|(_, result)| result.map_err(|fault| fault.kind)).collect()
}

fn gone() {
    for pulled in [false, true] {
        let mut rig = Rig::new();
        let driven = hanging_reads(&mut rig, 9);
        let begun = rig.now();
        match pulled {
            true => rig.target.soft_function().set_present(false),
            false => rig.faults.set_gone(true),
        }
        assert_eq!(kinds(&mut rig, &driven), [Err(ErrorKind::Gone); 9]);
        assert!(rig.now() - begun < Duration::from_millis(100), "{:?}", rig.now() - begun);
        // It is back, and nobody speaks to it.
        rig.faults.clear();
        rig.target.soft_function().set_present(true);
        let seen = rig.faults.seen(false, nvm::READ);
        assert_eq!(rig.read(&driven, 0).map_err(|fault| fault.kind), Err(ErrorKind::Gone));
        rig.wait(Duration::from_secs(10));
        assert_eq!((rig.faults.seen(false, nvm::READ), driven.host.stats().resets), (seen, 0));
    }
}

fn fatal_status() {
    let mut rig = Rig::new();
    let driven = hanging_reads(&mut rig, 9);
    rig.faults.fail();
    rig.all_end_well(&driven, 9);
    assert!(rig.now() < Duration::from_secs(1), "before any time is up");
    assert_eq!(driven.host.stats().resets, 1);
    rig.exercise(&driven);
    // While it becomes ready, too.
    let mut rig = Rig::new();
    rig.faults.set_readiness(Readiness::Never);
    rig.faults.set_csts(2, 0);
    let refusal = rig.refusal();
    assert!(refusal.contains("fatal"), "{refusal}");
}

fn late_commands() {
    for abort_works in [true, false] {
        let mut rig = Rig::new();
        rig.options.io_timeout = Duration::from_secs(3);
        rig.options.abort_timeout = Duration::from_secs(1);
        if !abort_works {
            rig.faults.command(Match::admin(admin::ABORT), CommandFault::Hang);
        }
        let driven = hanging_reads(&mut rig, 1);
        rig.wait(Duration::from_millis(2900));
        assert_eq!(rig.faults.seen(true, admin::ABORT), 0, "it has its time");
        rig.all_end_well(&driven, 1);
        let stats = driven.host.stats();
        assert_eq!((stats.timeouts, stats.aborts, stats.retries), (1, 1, 1), "{stats:?}");
        assert_eq!(stats.resets, u64::from(!abort_works));
        rig.exercise(&driven);
    }
}

fn few_aborts() {
    for acl in [0, 1, 3] {
        let mut rig = Rig::new();
        rig.options.io_timeout = Duration::from_secs(1);
        rig.options.abort_timeout = Duration::from_secs(5);
        rig.faults.patch_identify(1, 258, &[acl]);
        rig.faults.command(Match::admin(admin::ABORT), CommandFault::Hang);
        let driven = hanging_reads(&mut rig, 20);
        rig.wait(Duration::from_secs(4));
        assert_eq!(rig.faults.hanging(true, admin::ABORT), usize::from(acl) + 1);
        assert_eq!(rig.faults.seen(true, admin::ABORT), u64::from(acl) + 1);
        rig.all_end_well(&driven, 20);
    }
}

fn resets_under_io() {
    let mut rig = Rig::new();
    let driven = rig.open();
    let (host, node, channel) =
        (driven.host.clone(), driven.channel.node().clone(), driven.channel.clone());
    rig.run(|core| async move {
        let other = core.call(1, move |core: oxblock_engine::Core| async move {
            let channel = core.open(&node).await.expect("a queue");
            for round in 0..10 {
                Exercise { first: 256, round, ..Exercise::of(256) }.run(&core, &channel).await;
            }
        });
        let resets = core.spawn({
            let core = core.clone();
            async move {
                for _ in 0..20 {
                    core.sleep(Duration::from_micros(20 + core.random() % 100)).await;
                    host.reset(&core).await.expect("a reset");
                }
            }
        });
        for round in 0..10 {
            Exercise { round, ..Exercise::of(256) }.run(&core, &channel).await;
        }
        other.await.expect("the other core");
        resets.await.expect("the resets");
    });
    assert_eq!(driven.host.stats().resets, 20);
    assert_eq!(rig.target.iommu().faults(), 0);
}

fn failed_resets() {
    for (ready, disabling) in
        [(Readiness::Never, Readiness::AtOnce), (Readiness::AtOnce, Readiness::Never)]
    {
        let mut rig = Rig::new();
        let driven = hanging_reads(&mut rig, 9);
        rig.faults.set_readiness(ready);
        rig.faults.set_disabling(disabling);
        rig.target.soft_function().set_reset_works(false);
        let begun = rig.now();
        rig.faults.fail();
        assert_eq!(kinds(&mut rig, &driven), [Err(ErrorKind::Io); 9]);
        let ready_timeout = Duration::from_millis(500) * u32::from(rig.cap().to().max(1));
        // Twice: without the function and with it, and each may wait for both changes.
        assert!(rig.now() - begun < ready_timeout * 4 + Duration::from_secs(1));
        let begun = rig.now();
        assert_eq!(rig.read(&driven, 0).map_err(|fault| fault.kind), Err(ErrorKind::Io));
        assert!(rig.now() - begun < Duration::from_millis(1), "what comes later, at once");
        assert_eq!(driven.host.stats().resets, 0);
    }
}

fn retries() {
    // Three delays of 100 ms each, and none.
    for (crd, delay) in [(0, 0), (1, 200), (2, 500), (3, 700)] {
        let mut rig = Rig::with(|options| options.retry_delays = [2, 5, 7]);
        let driven = rig.open();
        rig.faults.answer(every(nvm::READ).nth(1), 0, Status::COMMAND_INTERRUPTED.crd(crd));
        let begun = rig.now();
        rig.read(&driven, 0).expect("the second time");
        let took = (rig.now() - begun).as_millis() as u64;
        assert!((delay..delay + 110).contains(&took), "CRD {crd}: {took} ms");
        assert_eq!(rig.faults.seen(false, nvm::READ), 2);
    }
    let mut rig = Rig::new();
    let driven = rig.open();
    rig.faults.answer(every(nvm::READ), 0, Status::INTERNAL_ERROR);
    rig.faults.answer(every(nvm::WRITE), 0, Status::INTERNAL_ERROR.dnr());
    rig.read(&driven, 0).expect_err("it was tried often enough");
    rig.write(&driven, 0).expect_err("it is not to be tried");
    let tried = [nvm::READ, nvm::WRITE].map(|opcode| rig.faults.seen(false, opcode));
    assert_eq!(tried, [1 + u64::from(rig.options.retries), 1]);
}

fn not_repeatable() {
    let mut rig = Rig::new();
    let driven = rig.open();
    rig.write(&driven, 0).expect("a write");
    let compare = |rig: &Rig| Op::compare(0, rig.buf(512));
    rig.faults.answer(every(nvm::COMPARE).nth(1), 0, Status::INTERNAL_ERROR);
    let op = compare(&rig);
    rig.op(&driven, op).expect_err("a compare that failed");
    assert_eq!(rig.faults.seen(false, nvm::COMPARE), 1);
    // The controller fails while it has one.
    rig.faults.command(every(nvm::COMPARE).nth(1), CommandFault::Hang);
    let op = compare(&rig);
    rig.start(&driven, op);
    rig.faults.fail();
    let [(_, Err(_))] = rig.ends(&driven)[..] else { panic!("it was lost") };
    assert_eq!((rig.faults.seen(false, nvm::COMPARE), driven.host.stats().resets), (2, 1));
}

fn status_types() {
    let mut rig = Rig::new();
    let driven = rig.open();
    for (sct, sc) in [(1, 0), (2, 0), (3, 0), (7, 0), (0, 0x7f), (7, 0xff)] {
        rig.faults.answer(every(nvm::READ).nth(1), 0, Status::new(sct, sc).dnr());
        let fault = rig.read(&driven, 0).expect_err("an error");
        let text = fault.to_string();
        assert!(text.contains(&format!("SCT {sct}h SC {sc:02x}h")), "{text}");
        rig.faults.clear();
    }
}

fn media_errors() {
    let mut rig = Rig::new();
    let driven = rig.open();
    for (opcode, status, errno) in [
        (nvm::READ, Status::UNRECOVERED_READ_ERROR, Errno::IO),
        (nvm::WRITE, Status::WRITE_FAULT, Errno::IO),
        (nvm::WRITE, Status::CAPACITY_EXCEEDED, Errno::NOSPC),
        (nvm::WRITE, Status::NAMESPACE_WRITE_PROTECTED, Errno::ROFS),
    ] {
        rig.faults.answer(every(opcode).nth(1), 0, status.dnr());
        let result = match opcode {
            nvm::READ => rig.read(&driven, 5 << 10),
            _ => rig.write(&driven, 5 << 10),
        };
        let fault = result.expect_err("an error");
        assert_eq!((fault.kind.errno(), fault.offset), (errno.raw_os_error(), 5 << 10), "{fault}");
        rig.faults.clear();
    }
    rig.exercise(&driven);
}

fn not_ready() {
    let busy =
        [Status::FORMAT_IN_PROGRESS, Status::SANITIZE_IN_PROGRESS, Status::NAMESPACE_NOT_READY];
    for status in busy {
        let mut rig = Rig::new();
        let driven = rig.open();
        // More often than a failed command is tried.
        for _ in 0..6 {
            rig.faults.answer(every(nvm::WRITE).nth(1), 0, status);
        }
        rig.write(&driven, 0).expect("at last");
        assert_eq!(rig.faults.seen(false, nvm::WRITE), 7);
        assert!(rig.now() >= Duration::from_millis(300), "not without a pause");
        rig.exercise(&driven);
    }
}

fn function_reset() {
    let mut rig = Rig::new();
    let driven = hanging_reads(&mut rig, 9);
    // It can be disabled only by a reset of its function.
    rig.faults.set_disabling(Readiness::Never);
    rig.faults.fail();
    rig.all_end_well(&driven, 9);
    rig.faults.set_disabling(Readiness::AtOnce);
    // An error of its bus.
    let begun = driven.host.stats().resets;
    rig.target.function().events().error.signal();
    rig.wait(Duration::from_millis(500));
    assert_eq!(driven.host.stats().resets, begun + 1);
    rig.exercise(&driven);
}
