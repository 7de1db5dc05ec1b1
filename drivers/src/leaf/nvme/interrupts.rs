//! Interrupts: which vector a queue has, and when a queue pair waits for one rather than poll.
//!
//! A queue pair that waits long between completions has its core sleep on the eventfd of its
//! vector; one that waits briefly, as under load, is polled, with its vector masked. Each decides
//! for itself, by how long its own last waits were.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use oxblock_engine::Sleep;
use oxblock_nvme::{Command, feature};
use oxblock_pci::{EventFd, Function, PciError};

/// How long a wait may be that is polled through, in ns: about what a sleep and its end cost
/// (`bench/README.md` has the measurement).
const POLL_NS: u64 = 20_000;
/// The weight of the last wait in what is typical: one in so many.
const SMOOTHING: u64 = 8;
/// Of so many waits without polling, one is polled, to learn whether they are short again.
const PROBE: u32 = 32;
/// Reaps without a sleep in between after which a vector is masked.
const REAPS_TO_MASK: u32 = 64;
/// How often a sleeping queue pair with commands in flight looks at its controller and their
/// timeouts, in ns. An interrupt that never comes costs no more than this.
const LOOK_NS: u64 = 50_000_000;

/// Whether queue pairs wait for interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptMode {
    /// Never: completions are polled for. Interrupts stay off.
    Poll,
    /// Where waits are long; short ones are polled through, with the queue's vector masked. Where
    /// vectors cannot be masked (vfio-user) it is as `Poll`: interrupts that nobody waits for cost
    /// the controller more than they save.
    #[default]
    Adaptive,
    /// Whenever a queue pair has nothing to do but to wait.
    Interrupt,
}

impl InterruptMode {
    /// All of them, with the names that options have for them.
    pub const NAMES: [(&'static str, InterruptMode); 3] = [
        ("poll", InterruptMode::Poll),
        ("adaptive", InterruptMode::Adaptive),
        ("interrupt", InterruptMode::Interrupt),
    ];
}

/// How many completions a controller gathers for one interrupt (Base 2.0, 5.27.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// Completions that raise an interrupt at the latest, 1 to 256.
    pub completions: u16,
    /// How long it may keep one back for others to join, up to 25.5 ms in units of 100 µs.
    pub time: Duration,
}

impl Coalescing {
    /// The nearest value that the feature has: threshold in bits 7:0, 0-based, and time in bits
    /// 15:8.
    fn to_dword(self) -> u32 {
        let threshold = u32::from(self.completions.clamp(1, 256) - 1);
        let time = self.time.as_micros().div_ceil(100).min(255) as u32;
        time << 8 | threshold
    }

    /// Sets it for a controller.
    pub(super) fn command(self) -> Command {
        Command::set_features(feature::INTERRUPT_COALESCING, 0, self.to_dword())
    }
}

/// The command that has a vector coalesce, whatever it did before. There must be a completion
/// queue that uses it (Base 2.0, 5.27.1.7).
pub(super) fn coalesce_vector(vector: u16) -> Command {
    Command::set_features(feature::INTERRUPT_VECTOR_CONFIGURATION, 0, vector.into())
}

/// The vectors of a controller: the admin queue has the first, I/O queues the others.
pub(super) struct Vectors {
    function: Arc<dyn Function>,
    mode: InterruptMode,
    home: usize,
    /// By their numbers; those of I/O queues are taken from the end.
    all: Vec<Arc<Vector>>,
    counters: Arc<InterruptCounters>,
    notice: Option<String>,
}

/// A vector that is enabled.
struct Vector {
    number: u16,
    event: Arc<EventFd>,
    /// Queues that use it.
    users: AtomicUsize,
}

/// What queue pairs of a controller did instead of polling.
#[derive(Default)]
pub(super) struct InterruptCounters {
    /// Interrupts that ended a wait.
    pub taken: AtomicU64,
    /// Waits for an interrupt.
    pub sleeps: AtomicU64,
    /// Waits that ended by looking: completions were there, and no interrupt had come.
    pub lost: AtomicU64,
}

impl Vectors {
    /// Enables the admin queue's vector. Where that cannot be had, all queues are polled.
    pub fn new(function: &Arc<dyn Function>, home: usize, mode: InterruptMode) -> Vectors {
        let mut vectors = Vectors {
            function: function.clone(),
            mode,
            home,
            all: Vec::new(),
            counters: Arc::default(),
            notice: None,
        };
        if mode == InterruptMode::Poll {
            return vectors;
        }
        if function.interrupts().count() == 0 {
            vectors.notice = Some("it has no interrupts (MSI-X or MSI); it is polled".into());
        } else if let Err(error) = vectors.enable(0).map(|vector| vectors.all.push(vector)) {
            vectors.notice = Some(format!("its interrupts stay off, it is polled: {error}"));
        }
        vectors
    }

    /// Enables a vector for each of `io_queues`, or for as many as there are.
    pub fn enable_io(&mut self, io_queues: u16) {
        let mut last = match self.all.len() {
            0 => return,
            _ => self.function.interrupts().count().saturating_sub(1).min(io_queues.into()) as u16,
        };
        // The last one first: the kernel then sets up all at once.
        let mut top = None;
        while last > 0 && top.is_none() {
            match self.enable(last) {
                Ok(vector) => top = Some(vector),
                Err(_) => last /= 2,
            }
        }
        let is_adaptive = self.mode == InterruptMode::Adaptive && top.is_some();
        if is_adaptive && !self.function.interrupts().mask(last.into(), true) {
            let _ = self.function.interrupts().disable(last.into());
            let text = "its interrupts cannot be masked, its I/O queues are polled; ask for \
                        interrupt-mode=interrupt to sleep all the same";
            self.notice = Some(text.into());
            return;
        }
        let below = (1..last).map_while(|number| self.enable(number).ok());
        let below: Vec<_> = below.collect();
        self.all.extend(below);
        if self.all.len() == usize::from(last) {
            self.all.extend(top);
        }
        let enabled = self.all.len() - 1;
        if enabled < usize::from(io_queues) {
            let text = format!(
                "it has interrupts for {enabled} of {io_queues} I/O queues; the others are polled"
            );
            self.notice = Some(text);
        }
    }

    fn enable(&self, number: u16) -> Result<Arc<Vector>, PciError> {
        let event = Arc::new(EventFd::new()?);
        self.function.interrupts().enable(number.into(), event.clone())?;
        Ok(Arc::new(Vector { number, event, users: AtomicUsize::new(0) }))
    }

    /// The event of the admin queue, if it has one.
    pub fn admin_event(&self) -> Option<Arc<EventFd>> {
        self.all.first().map(|vector| vector.event.clone())
    }

    /// What its user should know about them.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    pub fn counters(&self) -> &InterruptCounters {
        &self.counters
    }

    /// How a queue pair of a core is to wait: with a vector of its own if one is left. Else it is
    /// polled, unless it must not be: on the home core it then shares the admin queue's, which is
    /// never masked.
    pub fn waiting(&self, core: usize) -> Waiting {
        let take = |vector: &&Arc<Vector>| {
            let (free, taken) = (Ordering::AcqRel, Ordering::Relaxed);
            vector.users.compare_exchange(0, 1, free, taken).is_ok()
        };
        let own = self.all.iter().skip(1).find(take);
        let is_own = own.is_some();
        let shares = core == self.home && self.mode == InterruptMode::Interrupt;
        let vector = own.or_else(|| self.all.first().filter(|_| shares)).cloned();
        let mut waiting = Waiting {
            attention: Cell::new(false),
            mode: self.mode,
            vector,
            is_own,
            function: self.function.clone(),
            counters: self.counters.clone(),
            is_masked: false,
            reaps: 0,
            until_ns: None,
            since_ns: Cell::new(None),
            polls: Cell::new(true),
            waits: Cell::new(0),
            typical_ns: Cell::new(0),
        };
        if self.mode == InterruptMode::Adaptive {
            waiting.mask();
        }
        waiting
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        for vector in &self.all {
            let _ = self.function.interrupts().disable(vector.number.into());
        }
    }
}

/// How one queue pair waits for completions.
pub(super) struct Waiting {
    /// Set while a reap has to tell: during a wait, and while the vector is not masked.
    attention: Cell<bool>,
    mode: InterruptMode,
    vector: Option<Arc<Vector>>,
    /// The vector is no other queue's.
    is_own: bool,
    function: Arc<dyn Function>,
    counters: Arc<InterruptCounters>,
    is_masked: bool,
    /// Reaps since the last sleep.
    reaps: u32,
    /// When the sleep that nothing was reaped after ends by itself.
    until_ns: Option<u64>,
    /// When this wait began, in ns of the core's clock.
    since_ns: Cell<Option<u64>>,
    /// This wait is polled, for its first [`POLL_NS`] at least.
    polls: Cell<bool>,
    waits: Cell<u32>,
    /// How long polled waits are, lately; longer ones than [`POLL_NS`] count twice that.
    typical_ns: Cell<u64>,
}

impl Waiting {
    /// The vector for the completion queue; none if it is to raise no interrupts.
    pub fn vector(&self) -> Option<u16> {
        self.vector.as_ref().map(|vector| vector.number)
    }

    /// Nothing was reaped at `now_ns`, and commands are in flight: whether to go on polling.
    pub fn is_worth_polling(&self, now_ns: u64) -> bool {
        if self.vector.is_none() || self.mode == InterruptMode::Poll {
            return true;
        }
        if self.mode == InterruptMode::Interrupt {
            return false;
        }
        let Some(since_ns) = self.since_ns.get() else {
            self.begin(now_ns);
            return self.polls.get();
        };
        self.polls.get() && now_ns.saturating_sub(since_ns) < POLL_NS
    }

    /// A wait begins.
    fn begin(&self, now_ns: u64) {
        self.since_ns.set(Some(now_ns));
        self.attention.set(true);
        self.waits.set(self.waits.get().wrapping_add(1));
        let probes = self.waits.get().is_multiple_of(PROBE);
        self.polls.set(self.typical_ns.get() < POLL_NS || probes);
    }

    /// Whether [`Waiting::reaped`] must be called after a reap that took something.
    #[inline]
    pub fn wants_to_know(&self) -> bool {
        self.attention.get()
    }

    /// Completions were reaped at `now_ns`: a wait is over, or there was none.
    #[cold]
    pub fn reaped(&mut self, now_ns: u64) {
        if let Some(since_ns) = self.since_ns.take()
            && self.polls.get()
        {
            let waited_ns = now_ns.saturating_sub(since_ns).min(2 * POLL_NS);
            let typical_ns = self.typical_ns.get();
            let sum_ns = typical_ns * (SMOOTHING - 1) + waited_ns;
            self.typical_ns.set(sum_ns / SMOOTHING);
        }
        self.reaps = self.reaps.saturating_add(1);
        if let Some(until_ns) = self.until_ns.take()
            && let Some(vector) = self.vector.as_ref().filter(|_| self.is_own)
        {
            if vector.event.take() > 0 {
                self.counters.taken.fetch_add(1, Ordering::Relaxed);
            } else if now_ns >= until_ns {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.reaps > REAPS_TO_MASK && self.mode == InterruptMode::Adaptive {
            self.mask();
        }
        let masks_later = !self.is_masked && self.reaps <= REAPS_TO_MASK;
        self.attention.set(masks_later && self.mode == InterruptMode::Adaptive);
    }

    /// Goes to sleep at `now_ns`, with commands in flight. `is_ready` looks whether something
    /// was completed already: what comes after it makes the descriptor readable.
    pub fn sleep(&mut self, now_ns: u64, is_ready: impl FnOnce() -> bool) -> Sleep<'_> {
        if self.vector.is_none() {
            return Sleep::Never;
        }
        self.arm();
        if is_ready() {
            return Sleep::Never;
        }
        self.counters.sleeps.fetch_add(1, Ordering::Relaxed);
        let until_ns = now_ns.saturating_add(LOOK_NS);
        self.until_ns = Some(until_ns);
        self.fd().map_or(Sleep::Never, |fd| Sleep::FdUntil(fd, until_ns))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.vector.as_ref().map(|vector| vector.event.as_fd())
    }

    /// From here on an interrupt makes the descriptor readable, and nothing before does.
    fn arm(&mut self) {
        let Some(vector) = self.vector.as_ref().filter(|_| self.is_own) else {
            // The home core's poller takes the admin queue's, before any queue is asked.
            return;
        };
        if self.is_masked {
            self.is_masked = !self.function.interrupts().mask(vector.number.into(), false);
        }
        let _ = vector.event.take();
        self.reaps = 0;
        self.attention.set(true);
    }

    fn mask(&mut self) {
        if let Some(vector) = self.vector.as_ref().filter(|_| self.is_own && !self.is_masked) {
            self.is_masked = self.function.interrupts().mask(vector.number.into(), true);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(vector) = self.vector.as_ref().filter(|_| self.is_own) {
            // Whoever takes it next finds it as it was at first.
            self.function.interrupts().mask(vector.number.into(), false);
            vector.users.store(0, Ordering::Release);
        }
    }
}
