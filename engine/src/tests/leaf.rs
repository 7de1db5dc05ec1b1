//! A RAM disk that takes few requests at once and completes them late, in odd order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::{
    Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpFlags, OpKind, Pass, Queue,
    Request, Sleep, Token,
};

#[derive(Clone)]
pub struct AwkwardOptions {
    pub limits: Limits,
    /// Requests at once.
    pub depth: usize,
    /// Polls before a request completes.
    pub delay: usize,
    /// Turns that opening a queue takes.
    pub open_turns: usize,
    /// Requests at this byte fail.
    pub bad_byte: Option<u64>,
}

impl AwkwardOptions {
    pub fn new(length: u64, block_size: u32) -> Self {
        let mut limits = Limits::new(length, block_size);
        limits.max_discard = length;
        limits.max_write_zeroes = length;
        limits.compare = true;
        Self { limits, depth: 2, delay: 2, open_turns: 0, bad_byte: None }
    }
}

/// What the leaf was asked, for tests to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: OpKind,
    pub flags: OpFlags,
    pub offset: u64,
    pub len: u64,
    pub pieces: usize,
}

pub struct Awkward {
    options: AwkwardOptions,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Arc<AtomicUsize>,
    /// Other limits than those of the options, once they have changed.
    limits: Mutex<Option<Limits>>,
    bytes: Mutex<Vec<u8>>,
    /// Requests at the device.
    at_device: Arc<AtomicUsize>,
    /// Whether no more queues can be opened.
    is_out_of_queues: Arc<AtomicBool>,
    seen: Mutex<Vec<Seen>>,
}

impl Awkward {
    pub fn new(options: AwkwardOptions) -> Self {
        let shared = Arc::new(Shared::default());
        shared.bytes.lock().unwrap().resize(options.limits.length as usize, 0);
        Self { options, shared }
    }

    /// How many queues were opened.
    pub fn queues(&self) -> Arc<AtomicUsize> {
        self.shared.queues.clone()
    }

    /// How many requests are at the device now, of all cores.
    pub fn at_device(&self) -> Arc<AtomicUsize> {
        self.shared.at_device.clone()
    }

    /// Has queues refused while it is set.
    pub fn out_of_queues(&self) -> Arc<AtomicBool> {
        self.shared.is_out_of_queues.clone()
    }

    /// What looks at the device's bytes.
    pub fn peek(&self) -> impl Fn(u64) -> u8 + Send + Sync + use<> {
        let shared = self.shared.clone();
        move |at| shared.bytes.lock().unwrap()[at as usize]
    }

    /// Another driver of the same device.
    pub fn twin(&self) -> Self {
        Self { options: self.options.clone(), shared: self.shared.clone() }
    }

    /// What changes the device while it is in use.
    pub fn change(&self) -> impl Fn(Limits) + use<> {
        let shared = self.shared.clone();
        move |limits| {
            shared.bytes.lock().unwrap().resize(limits.length as usize, 0);
            *shared.limits.lock().unwrap() = Some(limits);
        }
    }

    pub fn watch(&self) -> impl Fn() -> Vec<Seen> + use<> {
        let shared = self.shared.clone();
        move || std::mem::take(&mut *shared.seen.lock().unwrap())
    }
}

impl Shared {
    fn limits(&self, options: &AwkwardOptions) -> Limits {
        let changed = self.limits.lock().unwrap().clone();
        changed.unwrap_or_else(|| options.limits.clone())
    }
}

impl Driver for Awkward {
    fn name(&self) -> &'static str {
        "awkward"
    }

    fn limits(&self) -> Limits {
        self.shared.limits(&self.options)
    }

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = AwkwardQueue {
            options: self.options.clone(),
            shared: self.shared.clone(),
            waiting: RefCell::default(),
        };
        self.shared.queues.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if self.shared.is_out_of_queues.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::OutOfMemory, "the device has no more queues"));
            }
            for _ in 0..self.options.open_turns {
                core.yield_now().await;
            }
            Ok(Box::new(queue) as Box<dyn Queue>)
        })
    }

    fn close<'a>(&'a self, _core: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// Polls left, and what completes then.
type Waiting = (usize, Token, Result<(), Fault>);

struct AwkwardQueue {
    options: AwkwardOptions,
    shared: Arc<Shared>,
    waiting: RefCell<VecDeque<Waiting>>,
}

impl AwkwardQueue {
    fn check(&self, request: &Request<'_>) {
        let limits = &self.shared.limits(&self.options);
        let block = u64::from(limits.block_size);
        assert_eq!(request.offset % block, 0);
        assert_eq!(request.len % block, 0);
        assert!(request.offset + request.len <= limits.length);
        if request.kind.has_data() {
            assert_eq!(request.data.len() as u64, request.len);
            assert!(limits.max_transfer == 0 || request.len <= limits.max_transfer.into());
            let pieces = request.data.pieces().count();
            assert!(limits.max_segments == 0 || pieces <= limits.max_segments as usize);
            let boundary = u64::from(limits.boundary);
            if boundary >= block && boundary % block == 0 {
                assert_eq!(
                    request.offset / boundary,
                    (request.offset + request.len - 1) / boundary
                );
            }
        }
    }

    fn carry_out(&self, request: &Request<'_>) -> Result<(), Fault> {
        let range = request.offset..request.offset + request.len;
        if let Some(bad) = self.options.bad_byte.filter(|bad| range.contains(bad)) {
            return Err(Fault::new(ErrorKind::Media, bad));
        }
        let mut bytes = self.shared.bytes.lock().unwrap();
        let bytes = &mut bytes[range.start as usize..range.end as usize];
        match request.kind {
            OpKind::Read => request.data.copy_from(bytes),
            OpKind::Write => request.data.copy_to(bytes),
            OpKind::WriteZeroes | OpKind::Discard => bytes.fill(0),
            OpKind::Compare if request.data.compare(bytes).is_some() => {
                return Err(Fault::new(ErrorKind::Mismatch, request.offset));
            }
            OpKind::Compare | OpKind::Flush => {}
        }
        Ok(())
    }
}

impl Queue for AwkwardQueue {
    fn submit(&mut self, request: &Request<'_>, _pass: &mut Pass) -> Result<(), Busy> {
        if self.waiting.get_mut().len() >= self.options.depth {
            return Err(Busy);
        }
        self.check(request);
        self.shared.seen.lock().unwrap().push(Seen {
            kind: request.kind,
            flags: request.flags,
            offset: request.offset,
            len: request.len,
            pieces: request.data.pieces().count(),
        });
        let result = self.carry_out(request);
        self.waiting.get_mut().push_back((self.options.delay, request.token, result));
        self.shared.at_device.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn kick(&mut self, _pass: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        let waiting = self.waiting.get_mut();
        waiting.iter_mut().for_each(|entry| entry.0 = entry.0.saturating_sub(1));
        let mut count = 0;
        // The youngest first.
        while waiting.back().is_some_and(|entry| entry.0 == 0) {
            if let Some((_, token, result)) = waiting.pop_back() {
                self.shared.at_device.fetch_sub(1, Ordering::SeqCst);
                pass.done(token, result);
                // A completion nobody asked for is counted, and hurts nobody.
                pass.done(Token(token.0 ^ (1 << 40)), Ok(()));
                count += 1;
            }
        }
        count
    }

    fn cancel(&mut self, token: Token) {
        for entry in self.waiting.get_mut().iter_mut().filter(|entry| entry.1 == token) {
            entry.2 = Err(Fault::new(ErrorKind::Cancelled, 0));
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.waiting.get_mut().is_empty() { Sleep::Woken } else { Sleep::Never }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        for (_, token, result) in self.waiting.get_mut().drain(..) {
            self.shared.at_device.fetch_sub(1, Ordering::SeqCst);
            pass.done(token, result);
        }
        true
    }
}
