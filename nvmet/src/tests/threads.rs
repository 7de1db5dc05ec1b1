use std::time::{Duration, Instant};

use oxblock_engine::{Engine, Options};
use oxblock_nvme::regs;
use oxblock_nvme::{Command, opcode};

use super::options;
use crate::Controller;
use crate::host::{self, Host};

/// Patience with another thread on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

#[track_caller]
fn spin(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        std::hint::spin_loop();
    }
}

fn run(host: &mut Host, qid: u16, command: Command) {
    let cid = host.submit(qid, command);
    let mut done = None;
    spin("a completion", || {
        done = host.take(qid, cid);
        done.is_some()
    });
    assert!(done.is_some_and(|c| c.status().is_success()));
}

/// A host on one thread resets the controller on another while reads are on their way: once RDY
/// is gone, so is everything that writes to its memory.
#[test]
fn resets_under_load_from_another_thread() {
    let engine = Engine::with_cores(1, Options::default()).unwrap();
    let (options, ram, _) = options();
    ram.bytes().fill(0x11);
    let start = move |core| async move { Controller::start(&core, options).await };
    let controller = engine.run(0, start).unwrap().unwrap();
    let mut host = Host::over(host::reactor(8), controller);
    let mut buf = host.alloc(64 * 4096);
    let data = buf.iova().unwrap();
    for round in 0..60u64 {
        host.set_admin_queues();
        host.reg32(regs::CC).write(Host::cc().0);
        spin("ready", || host.csts().rdy());
        let pair = host.pair(1, 32);
        let (sq, cq) = (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap());
        run(&mut host, 0, Command::create_cq(1, 32, cq, None));
        run(&mut host, 0, Command::create_sq(1, 32, sq, 1));
        host.pairs.push(Some(pair));
        for n in 0..round {
            if host.queue(1).sq.is_full() {
                host.reap(1);
            }
            if !host.queue(1).sq.is_full() {
                host.submit(1, Command::read(1, n % 16, 8).with_prp(data + n * 4096, 0));
            }
        }
        if round % 2 == 0 {
            host.reg32(regs::CC).write(0);
            spin("disabled", || !host.csts().rdy());
        } else {
            // From this thread, which is not the controller's, it returns when all is quiet.
            host.function.reset().unwrap();
            assert_eq!(host.csts().0, 0);
        }
        buf.fill(0, 64 * 4096, 0xee);
        std::thread::sleep(Duration::from_micros(200));
        assert!(buf.as_slice().unwrap().iter().all(|&b| b == 0xee), "round {round}");
    }
    assert!(ram.bytes().iter().all(|&b| b == 0x11));
    engine.shutdown().unwrap();
    assert!(host.csts().is_gone());
}

/// Four queues from one thread, thousands of commands: each completes once, with the data of its
/// block.
#[test]
fn many_queues_from_another_thread() {
    let engine = Engine::with_cores(1, Options::default()).unwrap();
    let (options, ram, _) = options();
    ram.bytes().chunks_mut(512).enumerate().for_each(|(n, block)| block.fill(n as u8));
    let start = move |core| async move { Controller::start(&core, options).await };
    let controller = engine.run(0, start).unwrap().unwrap();
    let mut host = Host::over(host::reactor(8), controller);
    host.set_admin_queues();
    host.reg32(regs::CC).write(Host::cc().0);
    spin("ready", || host.csts().rdy());
    for qid in 1..=4 {
        let pair = host.pair(qid, 16);
        let (sq, cq) = (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap());
        run(&mut host, 0, Command::create_cq(qid, 16, cq, Some(qid)));
        run(&mut host, 0, Command::create_sq(qid, 16, sq, qid));
        host.pairs.push(Some(pair));
    }
    let buf = host.alloc(4 * 16 * 512);
    let place = |qid: u16, n: u64| (u64::from(qid - 1) * 16 + n % 16) * 512;
    for lap in 0..300u64 {
        for qid in 1..=4 {
            for n in 0..15 {
                let lba = (lap * 15 + n + u64::from(qid)) % 256;
                let prp = buf.iova().unwrap() + place(qid, n);
                host.push(qid, Command::nvm(opcode::nvm::READ, 1, lba, 1, 0).with_prp(prp, 0));
            }
            host.ring(qid);
        }
        for qid in 1..=4 {
            spin("fifteen completions", || {
                host.reap(qid);
                host.queue(qid).stash.len() == 15
            });
            assert!(host.queue(qid).stash.drain(..).all(|c| c.status().is_success()));
            for n in 0..15 {
                let lba = (lap * 15 + n + u64::from(qid)) % 256;
                let at = place(qid, n) as usize;
                let block = &buf.as_slice().unwrap()[at..at + 512];
                assert!(block.iter().all(|&b| b == lba as u8), "lap {lap} queue {qid} {n}");
            }
        }
    }
    engine.shutdown().unwrap();
}
