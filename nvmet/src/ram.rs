//! A node in memory for tests: slow, obedient, and full of switches.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::{
    Busy, Core, Driver, Error, Fault, Limits, LocalFuture, Node, OpFlags, OpKind, Pass, Queue,
    Request, Sleep, Token,
};

/// The bytes, and the switches.
pub(crate) struct Ram {
    bytes: Mutex<Vec<u8>>,
    pub(crate) limits: Limits,
    /// Requests are carried out, but not completed while this is set.
    pub(crate) hold: AtomicBool,
    /// Requests that the queue takes at a time; 0 is any number.
    pub(crate) depth: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) fua_writes: AtomicU64,
    pub(crate) discards: AtomicU64,
    /// What the next request of a kind fails with.
    pub(crate) fail: Mutex<Option<(OpKind, Fault)>>,
}

impl Ram {
    pub(crate) fn new(len: u64, block_size: u32) -> Arc<Ram> {
        let mut limits = Limits::new(len, block_size);
        limits.max_write_zeroes = len;
        limits.max_discard = len;
        limits.volatile_cache = true;
        limits.fua = true;
        limits.compare = false;
        Ram::with(limits)
    }

    pub(crate) fn with(limits: Limits) -> Arc<Ram> {
        Arc::new(Ram {
            bytes: Mutex::new(vec![0; limits.length as usize]),
            limits,
            hold: AtomicBool::new(false),
            depth: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            fua_writes: AtomicU64::new(0),
            discards: AtomicU64::new(0),
            fail: Mutex::new(None),
        })
    }

    pub(crate) fn node(self: &Arc<Ram>, name: &str) -> Arc<Node> {
        Node::new(name, Box::new(RamDriver(Arc::clone(self))))
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, request: &Request<'_>) -> Result<(), Fault> {
        let mut fail = self.fail.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, fault)) = *fail
            && kind == request.kind
        {
            *fail = None;
            return Err(fault);
        }
        let start = request.offset as usize;
        let mut bytes = self.bytes();
        let range = &mut bytes[start..start + request.len as usize];
        match request.kind {
            OpKind::Read => request.data.copy_from(range),
            OpKind::Write => request.data.copy_to(range),
            OpKind::WriteZeroes => range.fill(0),
            OpKind::Discard => {
                self.discards.fetch_add(1, Ordering::Relaxed);
                range.fill(0);
            }
            OpKind::Flush => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
            OpKind::Compare => {}
        }
        if request.flags.contains(OpFlags::FUA) {
            self.fua_writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

struct RamDriver(Arc<Ram>);

impl Driver for RamDriver {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn limits(&self) -> Limits {
        self.0.limits.clone()
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = RamQueue { ram: Arc::clone(&self.0), done: VecDeque::new() };
        Box::pin(async move { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct RamQueue {
    ram: Arc<Ram>,
    done: VecDeque<(Token, Result<(), Fault>)>,
}

impl Queue for RamQueue {
    fn submit(&mut self, request: &Request<'_>, _: &mut Pass) -> Result<(), Busy> {
        let depth = self.ram.depth.load(Ordering::Relaxed) as usize;
        if depth != 0 && self.done.len() >= depth {
            return Err(Busy);
        }
        self.done.push_back((request.token, self.ram.run(request)));
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        if self.ram.hold.load(Ordering::Relaxed) {
            return 0;
        }
        let count = self.done.len();
        self.done.drain(..).for_each(|(token, result)| pass.done(token, result));
        count
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.done.is_empty() { Sleep::Woken } else { Sleep::Never }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.done.drain(..).for_each(|(token, result)| pass.done(token, result));
        true
    }
}
