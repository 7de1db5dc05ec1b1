//! The null driver: a device of any size that keeps nothing and answers at once, or after a
//! set latency. It measures everything above it, and stands in where data does not matter.

use std::collections::VecDeque;

use oxblock_engine::graph::{DriverInfo, DriverKind, Opening, default_access};
use oxblock_engine::options::{NodeOptions, OptionSpec};
use oxblock_engine::{
    Body, Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpKind, Pass, Queue,
    Request, Sleep, Token,
};

/// The declaration of `null-co`.
pub const NULL_CO: DriverInfo = DriverInfo {
    name: "null-co",
    kind: DriverKind::Protocol,
    needs_filename: false,
    supports_backing: false,
    protocols: &["null-co"],
    parse_filename: Some(|name, _| only_name(name, "null-co://")),
    filename: Some(|options| plain_name(options, "null-co")),
    probe: None,
    claims: None,
    options: &[
        OptionSpec::size("size", "how long it is, bytes").default("1G").strong(),
        OptionSpec::number("latency-ns", 0, i64::MAX as u64, "how long a request takes, ns")
            .default("0"),
        OptionSpec::bool("read-zeroes", "fill what is read with zeroes").default("off").strong(),
    ],
    create_options: &[],
    children: &[],
    child_rule: default_access,
    open: |opening| Box::pin(async move { open_node(opening) }),
};

/// The declaration of `null-aio`: here the same.
pub const NULL_AIO: DriverInfo = DriverInfo {
    name: "null-aio",
    protocols: &["null-aio"],
    parse_filename: Some(|name, _| only_name(name, "null-aio://")),
    filename: Some(|options| plain_name(options, "null-aio")),
    ..NULL_CO
};

fn only_name(name: &str, only: &str) -> Result<(), Error> {
    if name == only {
        return Ok(());
    }
    let text = format!("The only allowed filename for this driver is '{only}'");
    Err(Error::new(ErrorKind::Invalid, text))
}

/// What it is called with no other options than its driver.
fn plain_name(options: &NodeOptions, driver: &str) -> Option<String> {
    options.keys().all(|key| key == "driver").then(|| format!("{driver}://"))
}

fn open_node(opening: &Opening<'_>) -> Result<Body, Error> {
    let defaults = NullOptions::default();
    let number = |name| opening.settings.number(name);
    let size = number("size").unwrap_or(defaults.size);
    if size > i64::MAX as u64 {
        let text = format!("null: a size of {size} bytes is too large; the most is 2^63 - 1");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let size = size.next_multiple_of(defaults.block_size.into());
    let read_zeroes = opening.settings.bool("read-zeroes") == Some(true);
    let latency_ns = number("latency-ns").unwrap_or(0);
    let options = NullOptions { size, latency_ns, read_zeroes, ..defaults };
    open(options).map(Body::Leaf)
}

/// How a null device behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// The size of the device in bytes, a multiple of `block_size`.
    pub size: u64,
    /// The granularity of requests in bytes.
    pub block_size: u32,
    /// How long each request takes on the core's clock; 0 completes it in its submission.
    pub latency_ns: u64,
    /// Whether reads fill their buffers with zeroes; otherwise they leave them as they are.
    pub read_zeroes: bool,
}

impl Default for NullOptions {
    /// 1 GiB of 512-byte blocks, no latency, buffers left alone.
    fn default() -> Self {
        Self { size: 1 << 30, block_size: 512, latency_ns: 0, read_zeroes: false }
    }
}

/// How many requests with a latency one queue holds.
pub const QUEUE_DEPTH: usize = 4096;

/// Opens a null device.
///
/// # Errors
/// `Invalid` if the block size is 0 or does not divide the size.
pub fn open(options: NullOptions) -> Result<Box<dyn Driver>, Error> {
    super::check_geometry("null", options.size, options.block_size)?;
    Ok(Box::new(NullDriver { options }))
}

struct NullDriver {
    options: NullOptions,
}

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn limits(&self) -> Limits {
        Limits {
            max_write_zeroes: self.options.size,
            max_discard: self.options.size,
            fua: true,
            compare: true,
            ..Limits::new(self.options.size, self.options.block_size)
        }
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let read_zeroes = self.options.read_zeroes;
        let queue: Box<dyn Queue> = match self.options.latency_ns {
            0 => Box::new(InstantQueue { read_zeroes }),
            latency_ns => Box::new(DelayQueue::new(read_zeroes, latency_ns, QUEUE_DEPTH)),
        };
        Box::pin(async move { Ok(queue) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// Answers within the submission.
struct InstantQueue {
    read_zeroes: bool,
}

impl Queue for InstantQueue {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if self.read_zeroes {
            pass.done(request.token, zeroes(request));
        } else {
            pass.done(request.token, Ok(()));
        }
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, _: &mut Pass) -> usize {
        0
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Woken
    }

    fn quiesce(&mut self, _: &mut Pass) -> bool {
        true
    }
}

/// Answers in order, each request `latency_ns` after its submission.
struct DelayQueue {
    read_zeroes: bool,
    latency_ns: u64,
    depth: usize,
    /// Allocated once for `depth` requests; the earliest is at the front.
    waiting: VecDeque<Waiting>,
    cancelled: usize,
}

struct Waiting {
    due_ns: u64,
    token: Token,
    result: Result<(), Fault>,
    cancelled: bool,
}

impl DelayQueue {
    fn new(read_zeroes: bool, latency_ns: u64, depth: usize) -> Self {
        let waiting = VecDeque::with_capacity(depth);
        Self { read_zeroes, latency_ns, depth, waiting, cancelled: 0 }
    }

    fn reap_cancelled(&mut self, pass: &mut Pass) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|w| {
            if w.cancelled {
                pass.done(w.token, Err(Fault::new(ErrorKind::Cancelled, 0)));
            }
            !w.cancelled
        });
        self.cancelled = 0;
        before - self.waiting.len()
    }
}

impl Queue for DelayQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if self.waiting.len() == self.depth {
            return Err(Busy);
        }
        let result = if self.read_zeroes { zeroes(request) } else { Ok(()) };
        let due_ns = pass.now().saturating_add(self.latency_ns);
        self.waiting.push_back(Waiting { due_ns, token: request.token, result, cancelled: false });
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        let mut reaped = if self.cancelled > 0 { self.reap_cancelled(pass) } else { 0 };
        while let Some(first) = self.waiting.front() {
            if first.due_ns > pass.now() {
                break;
            }
            pass.done(first.token, first.result);
            self.waiting.pop_front();
            reaped += 1;
        }
        reaped
    }

    fn cancel(&mut self, token: Token) {
        // Fragments of one operation share its token.
        for w in self.waiting.iter_mut().filter(|w| w.token == token && !w.cancelled) {
            w.cancelled = true;
            self.cancelled += 1;
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        match self.waiting.front() {
            _ if self.cancelled > 0 => Sleep::Never,
            Some(first) => Sleep::Until(first.due_ns),
            None => Sleep::Woken,
        }
    }

    /// Nothing of a null device touches memory after the submission, so that all that waits
    /// ends now.
    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        for w in self.waiting.drain(..) {
            pass.done(w.token, w.result);
        }
        self.cancelled = 0;
        true
    }
}

/// Behaves as a device full of zeroes. Not inlined: who reads none does not pay for it.
#[inline(never)]
fn zeroes(request: &Request<'_>) -> Result<(), Fault> {
    match request.kind {
        OpKind::Read => request.data.fill(0),
        OpKind::Compare if !request.data.is_all(0) => {
            return Err(Fault::new(ErrorKind::Mismatch, request.offset));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxblock_engine::OpFlags;
    use oxblock_mem::View;

    fn submit(queue: &mut DelayQueue, pass: &mut Pass, token: u64) -> Result<(), Busy> {
        let (kind, flags, data) = (OpKind::Flush, OpFlags::empty(), View::empty());
        let request = Request { token: Token(token), kind, flags, offset: 0, len: 0, data };
        queue.submit(&request, pass)
    }

    fn drain(pass: &mut Pass) -> Vec<(u64, bool)> {
        pass.drain().map(|(token, result)| (token.0, result.is_ok())).collect()
    }

    #[test]
    fn requests_end_in_order_when_their_time_has_come() {
        let (mut queue, mut pass) = (DelayQueue::new(false, 1000, 3), Pass::new(8));
        pass.begin(0);
        submit(&mut queue, &mut pass, 1).unwrap();
        pass.begin(500);
        submit(&mut queue, &mut pass, 2).unwrap();
        submit(&mut queue, &mut pass, 3).unwrap();
        assert_eq!(submit(&mut queue, &mut pass, 4), Err(Busy));
        assert!(matches!(queue.sleep(), Sleep::Until(1000)));
        assert_eq!(queue.poll(&mut pass), 0);
        pass.begin(1000);
        assert_eq!(queue.poll(&mut pass), 1);
        assert_eq!(drain(&mut pass), [(1, true)]);
        pass.begin(1500);
        assert_eq!(queue.poll(&mut pass), 2);
        assert_eq!(drain(&mut pass), [(2, true), (3, true)]);
        assert!(matches!(queue.sleep(), Sleep::Woken));
    }

    #[test]
    fn a_cancelled_request_ends_at_once_with_all_its_fragments() {
        let (mut queue, mut pass) = (DelayQueue::new(false, 1000, 8), Pass::new(8));
        for token in [1, 2, 1] {
            submit(&mut queue, &mut pass, token).unwrap();
        }
        queue.cancel(Token(1));
        queue.cancel(Token(9));
        assert!(matches!(queue.sleep(), Sleep::Never));
        assert_eq!(queue.poll(&mut pass), 2);
        assert_eq!(drain(&mut pass), [(1, false), (1, false)]);
        assert_eq!(queue.in_flight(), 1);
        assert!(queue.quiesce(&mut pass));
        assert_eq!(drain(&mut pass), [(2, true)]);
    }

    #[test]
    fn a_size_that_is_no_number_of_blocks_is_refused() {
        for (size, block_size) in [(1000, 512), (4096, 0)] {
            let options = NullOptions { size, block_size, ..NullOptions::default() };
            let error = open(options).err().expect("a refusal");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}
