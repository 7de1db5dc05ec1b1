use oxblock_mem::Cells;
use oxblock_nvme::queue::ShadowDoorbell;
use oxblock_nvme::regs::doorbell_index;
use oxblock_nvme::{Command, Status};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxblock_engine::{Engine, Options};

use super::options;
use crate::host::Host;
use crate::{Controller, ControllerOptions};

struct Shadows {
    pages: [Arc<Cells>; 2],
}

impl Shadows {
    fn new(host: &mut Host) -> Shadows {
        let pages = [(); 2].map(|()| Arc::new(host.cells(4096)));
        let at = |n: usize| pages[n].iova().unwrap();
        host.ok(Command::doorbell_buffer_config(at(0), at(1)));
        Shadows { pages }
    }

    fn bell(&self, qid: u16, is_cq: bool) -> ShadowDoorbell<Arc<Cells>> {
        let index = doorbell_index(qid, is_cq) as usize;
        let [shadow, event_index] = self.pages.clone();
        ShadowDoorbell::new(shadow, event_index, index).unwrap()
    }
}

#[test]
fn a_host_that_writes_memory_is_served_without_doorbells() {
    let mut host = Host::with_io(options().0);
    let cid = host.submit(1, Command::flush(1));
    host.wait(1, cid);
    let shadows = Shadows::new(&mut host);
    host.create_io(2, 4);
    for qid in [1, 2] {
        let (tail, head) = (shadows.bell(qid, false), shadows.bell(qid, true));
        for _ in 0..200 {
            let cid = host.push(qid, Command::flush(1));
            let (old, new) = host.queue(qid).sq.pending().unwrap();
            tail.ring(old, new);
            host.queue(qid).sq.rang();
            for _ in 0..100 {
                host.turns(1);
                if host.queue(qid).cq.is_ready() {
                    break;
                }
            }
            let pair = host.queue(qid);
            let completion = pair.cq.pop().expect("a completion");
            assert_eq!(completion.cid(), cid);
            pair.sq.fetched(completion.sqhd()).unwrap();
            let (old, new) = pair.cq.pending().unwrap();
            head.ring(old, new);
            pair.cq.rang();
        }
    }
}

/// A value in memory is as hostile as one in a register.
#[test]
fn a_shadow_out_of_range_is_ignored() {
    let mut host = Host::with_io(options().0);
    let shadows = Shadows::new(&mut host);
    let index = doorbell_index(1, false) as usize;
    for value in [64, 0xffff, u32::MAX] {
        let word = shadows.pages[0].u32(index);
        word.store(value, std::sync::atomic::Ordering::Relaxed);
        host.turns(10);
    }
    shadows.pages[0].u32(index).store(0, std::sync::atomic::Ordering::Relaxed);
    host.turns(10);
    host.page(Command::identify(1, 0, 0));
}

#[test]
fn pages_are_checked() {
    let mut host = Host::ready(options().0);
    let buf = host.alloc(8192);
    let iova = buf.iova().unwrap();
    let bad = [(iova, iova), (iova + 8, iova + 4096), (iova, iova + 8), (0xdead_0000_0000, iova)];
    for (shadow, event_index) in bad {
        let status = host.status(0, Command::doorbell_buffer_config(shadow, event_index));
        assert_eq!(status, Status::INVALID_FIELD);
    }
    host.ok(Command::doorbell_buffer_config(iova, iova + 4096));
    let (options, ..) = options();
    let mut host = Host::ready(ControllerOptions { shadow_doorbells: false, ..options });
    let status = host.status(0, Command::doorbell_buffer_config(iova, iova + 4096));
    assert_eq!(status, Status::INVALID_OPCODE);
}

/// The controller's core went to sleep between the host's store and its own look, and the
/// command waited for the next one.
#[test]
fn a_sleeping_core_wakes_for_every_command() {
    let engine = Engine::with_cores(1, Options::default()).unwrap();
    let (options, ..) = options();
    let start = move |core| async move { Controller::start(&core, options).await };
    let controller = engine.run(0, start).unwrap().unwrap();
    let idle = crate::host::reactor(8);
    let mut host = Host::over(idle, controller);
    let wait = |host: &mut Host, qid, cid| {
        let begun = Instant::now();
        while host.take(qid, cid).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(5), "a lost wake-up");
        }
    };
    host.set_admin_queues();
    host.reg32(oxblock_nvme::regs::CC).write(Host::cc().0);
    let begun = Instant::now();
    while !host.csts().rdy() {
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    let pair = host.pair(1, 8);
    let (sq, cq) = (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap());
    let pages = [(); 2].map(|()| Arc::new(host.cells(4096)));
    let at = |n: usize| pages[n].iova().unwrap();
    for command in [
        Command::create_cq(1, 8, cq, None),
        Command::create_sq(1, 8, sq, 1),
        Command::doorbell_buffer_config(at(0), at(1)),
    ] {
        let cid = host.submit(0, command);
        wait(&mut host, 0, cid);
    }
    host.pairs.push(Some(pair));
    let shadows = Shadows { pages };
    let (tail, head) = (shadows.bell(1, false), shadows.bell(1, true));
    let mut read = 0;
    for pause_us in [0, 50, 150, 300, 1000] {
        for _ in 0..20 {
            std::thread::sleep(Duration::from_micros(pause_us));
            let cid = host.push(1, Command::flush(1));
            let pair = host.queue(1);
            let (old, new) = pair.sq.pending().unwrap();
            if tail.ring(old, new) {
                pair.tail.write(new.into());
            }
            pair.sq.rang();
            wait(&mut host, 1, cid);
            head.ring(read, (read + 1) % 8);
            read = (read + 1) % 8;
        }
    }
    engine.shutdown().unwrap();
}
