//! A disk in memory that takes its time, and fails where it is told to: for what memory is too
//! quick and too good for. It lives in simulated time too.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use oxblock_engine::{
    Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpKind, Pass, Queue, Request,
    Sleep, Token,
};

use crate::random::Random;

/// The disk; a clone is the same one.
#[derive(Clone)]
pub struct LateDisk {
    shared: Arc<Shared>,
}

struct Shared {
    bytes: Mutex<Vec<u8>>,
    bad: Mutex<Range<u64>>,
    latency_ns: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl LateDisk {
    /// A disk of these bytes, in blocks of 512, that takes up to so long for a request.
    pub fn new(bytes: Vec<u8>, latency_ns: u64) -> Self {
        let shared = Shared {
            bytes: Mutex::new(bytes),
            bad: Mutex::new(0..0),
            latency_ns: AtomicU64::new(latency_ns),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// From now on requests to these bytes fail, and no others.
    pub fn break_at(&self, bad: Range<u64>) {
        *self.shared.bad.lock().unwrap_or_else(PoisonError::into_inner) = bad;
    }

    /// From now on requests take up to so long.
    pub fn set_latency_ns(&self, latency_ns: u64) {
        self.shared.latency_ns.store(latency_ns, Ordering::Relaxed);
    }

    /// How many reads it has seen.
    pub fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// How many requests that change it.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// What it holds.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Driver for LateDisk {
    fn name(&self) -> &'static str {
        "late"
    }

    fn limits(&self) -> Limits {
        Limits::new(self.bytes().len() as u64, 512)
    }

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let (shared, random) = (self.shared.clone(), Random::new(core.random()));
        let queue = LateQueue { shared, random, waiting: Vec::new() };
        Box::pin(async move { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct LateQueue {
    shared: Arc<Shared>,
    random: Random,
    /// When each request ends, and how.
    waiting: Vec<(u64, Token, Result<(), Fault>)>,
}

impl LateQueue {
    fn carry_out(&self, request: &Request<'_>) -> Result<(), Fault> {
        let range = request.offset..request.offset + request.len;
        let bad = self.shared.bad.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if range.start < bad.end && bad.start < range.end && request.kind != OpKind::Flush {
            return Err(Fault::new(ErrorKind::Media, bad.start.max(range.start)));
        }
        let counter =
            if request.kind == OpKind::Read { &self.shared.reads } else { &self.shared.writes };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &mut bytes[range.start as usize..range.end as usize];
        match request.kind {
            OpKind::Read => request.data.copy_from(bytes),
            OpKind::Write => request.data.copy_to(bytes),
            OpKind::WriteZeroes | OpKind::Discard => bytes.fill(0),
            OpKind::Compare => {
                if let Some(at) = request.data.compare(bytes) {
                    return Err(Fault::new(ErrorKind::Mismatch, range.start + at as u64));
                }
            }
            OpKind::Flush => {}
        }
        Ok(())
    }
}

impl Queue for LateQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let most_ns = self.shared.latency_ns.load(Ordering::Relaxed);
        let at_ns = pass.now() + self.random.within(0..most_ns + 1);
        let result = self.carry_out(request);
        self.waiting.push((at_ns, request.token, result));
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let (now_ns, before) = (pass.now(), self.waiting.len());
        self.waiting.retain(|&(at_ns, token, result)| {
            if at_ns <= now_ns {
                pass.done(token, result);
            }
            at_ns > now_ns
        });
        before - self.waiting.len()
    }

    fn cancel(&mut self, token: Token) {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.1 == token) {
            *waiting = (0, token, Err(Fault::new(ErrorKind::Cancelled, 0)));
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        let next = self.waiting.iter().map(|waiting| waiting.0).min();
        next.map_or(Sleep::Woken, Sleep::Until)
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.waiting.drain(..).for_each(|(_, token, result)| pass.done(token, result));
        true
    }
}
