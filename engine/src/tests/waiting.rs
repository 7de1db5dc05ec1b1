//! A leaf that sleeps in the reactor's stead.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{buf, options};
use crate::{
    Busy, Core, Driver, Engine, Error, Limits, LocalFuture, Node, Pass, Queue, Request, Sleep,
    Token,
};

/// Its requests complete once `open` is set, of which nothing tells a sleeper.
#[derive(Clone, Default)]
struct Gate {
    open: Arc<AtomicBool>,
    waits: Arc<AtomicUsize>,
}

impl Driver for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn limits(&self) -> Limits {
        Limits::new(1 << 20, 512)
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let silent = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let queue = GateQueue { gate: self.clone(), waiting: None, silent };
        Box::pin(async { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct GateQueue {
    gate: Gate,
    waiting: Option<Token>,
    silent: OwnedFd,
}

impl Queue for GateQueue {
    fn submit(&mut self, request: &Request<'_>, _: &mut Pass) -> Result<(), Busy> {
        self.waiting = Some(request.token);
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        if !self.gate.open.load(Ordering::SeqCst) {
            return 0;
        }
        self.waiting.take().map_or(0, |token| {
            pass.done(token, Ok(()));
            1
        })
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        usize::from(self.waiting.is_some())
    }

    fn is_worth_polling(&self, _now_ns: u64) -> bool {
        false
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.waiting.is_some() { Sleep::Fd(self.silent.as_fd()) } else { Sleep::Woken }
    }

    fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        self.gate.waits.fetch_add(1, Ordering::SeqCst);
        let mut event = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
        let timeout = timeout.map(|timeout| Timespec::try_from(timeout).expect("a short time"));
        poll(&mut event, timeout.as_ref()).expect("a wait");
        true
    }

    fn quiesce(&mut self, _: &mut Pass) -> bool {
        self.waiting = None;
        true
    }
}

/// A wake-up that is read too late, or not at all, keeps the core awake: it would wait without
/// end, and without sleep.
#[test]
fn a_core_that_waits_in_its_leaf_hears_messages_and_timers_and_sleeps_between_them() {
    let gate = Gate::default();
    let node = Node::new("gate", Box::new(gate.clone()));
    let engine = Engine::with_cores(1, options(16)).unwrap();
    let reading = engine.remote(0).unwrap().spawn(|core| async move {
        let channel = core.open(&node).await.unwrap();
        channel.read(0, buf(&core, &[0; 512])).await.1.unwrap();
    });
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(engine.run(0, |_| async { 7 }).unwrap(), 7);
    }
    let begun = Instant::now();
    engine.run(0, |core| async move { core.sleep(Duration::from_millis(20)).await }).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(20));
    let waits = gate.waits.load(Ordering::SeqCst);
    // One for each message and timer, and a few for wake-ups that came twice.
    assert!((10..200).contains(&waits), "{waits} waits");
    gate.open.store(true, Ordering::SeqCst);
    engine.run(0, |_| async {}).unwrap();
    reading.wait().unwrap();
    engine.shutdown().unwrap();
}
