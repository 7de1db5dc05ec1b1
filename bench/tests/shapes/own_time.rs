//! Jobs on a time of their own: what a second brings does not depend on how busy the machine is.

use oxblock_engine::{ClockSource, SimulatedClock};

use super::*;

/// How long a request takes that is ended at once, and how long a poll, which ends all others.
const AT_ONCE_NS: u64 = 1_000;
const POLL_NS: u64 = 10_000;

/// The target, on whose time a job runs.
#[derive(Clone, Default)]
struct OwnTime {
    clock: SimulatedClock,
    /// Requests below this byte are ended within their submission, where their number is even.
    prompt_below: u64,
    /// Requests at this byte fail.
    bad_byte: Option<u64>,
}

impl Driver for OwnTime {
    fn name(&self) -> &'static str {
        "own-time"
    }

    fn limits(&self) -> Limits {
        Limits::new(1 << 20, 512)
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = OwnTimeQueue { target: self.clone(), waiting: Vec::with_capacity(64) };
        Box::pin(async { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct OwnTimeQueue {
    target: OwnTime,
    waiting: Vec<(Token, Result<(), Fault>)>,
}

impl Queue for OwnTimeQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let offset = request.offset;
        let is_bad = self.target.bad_byte == Some(offset);
        let result = if is_bad { Err(Fault::new(ErrorKind::Media, offset)) } else { Ok(()) };
        if offset < self.target.prompt_below && (offset / 4096).is_multiple_of(2) {
            self.target.clock.advance(AT_ONCE_NS);
            pass.done(request.token, result);
        } else {
            self.waiting.push((request.token, result));
        }
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.target.clock.advance(POLL_NS);
        let done = self.waiting.len();
        self.waiting.drain(..).for_each(|(token, result)| pass.done(token, result));
        done
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Never
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.poll(pass);
        true
    }
}

fn run_on(target: OwnTime, words: &str) -> Report {
    let clock = ClockSource::Simulated(target.clock.clone());
    let engine = Options { clock, ..Options::default() };
    try_run_on(engine, Box::new(target), words).expect("a run")
}

pub fn on_own_time(words: &str) -> CloneReport {
    let report = run_on(OwnTime::default(), words);
    assert!(report.is_good(), "{words}");
    report.group()
}

/// A single I/O in flight, of which some are done at once and some take their time: each has its
/// own latency, whichever way it went.
#[test]
fn a_single_io_may_be_done_at_once_or_not() {
    for (below, prompt) in [(0, 0), (1 << 19, 64), (1 << 20, 128)] {
        let target = OwnTime { prompt_below: below, ..OwnTime::default() };
        let report = run_on(target, "rw=read");
        assert!(report.is_good());
        let group = report.group();
        assert_eq!((group.read.ios, group.read.latency.count()), (256, 256));
        let latency = &group.read.latency;
        assert_eq!(latency.count_between(AT_ONCE_NS, AT_ONCE_NS + 1), prompt, "below {below}");
        assert_eq!(latency.count_between(POLL_NS, POLL_NS + 5), 256 - prompt, "below {below}");
        let depths = [group.depths, group.submitted, group.completed].map(|depths| depths.total());
        assert_eq!(depths, [256; 3]);
        assert_eq!(group.depths.count_between(1, 1), 256);
        assert_eq!(group.allocations.expect("this test counts").count, 0);
    }
}

#[test]
fn a_single_io_that_fails_at_once_ends_the_job() {
    for bad_byte in [8 * 4096, 9 * 4096] {
        let target =
            OwnTime { prompt_below: 1 << 20, bad_byte: Some(bad_byte), ..OwnTime::default() };
        let report = run_on(target, "rw=read");
        let group = report.group();
        let fault = group.fault.expect("a fault").fault;
        assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, bad_byte));
        assert!(!report.is_good());
        assert_eq!(group.read.ios, bad_byte / 4096, "what was done before counts");
        assert!(group.runtime_ns > 0);
    }
}
