//! What the home core knows of a queue pair: enough to make it anew after a reset.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::CoreWaker;

use super::health::Pulse;
use super::namespace::Shape;

/// Where a queue pair stands in the course of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Place {
    /// It is being opened by its core.
    Opening,
    /// The controller has it, or had it before it was disabled.
    Running,
    /// The controller is disabled, and the rings are as new.
    Parked,
    /// The home core makes it anew.
    Creating,
    /// It could not be made anew.
    Refused,
    /// Its namespace is not what its node takes it for.
    Stranded,
    /// It has ended.
    Closed,
}

/// The part of a queue pair that its own core and the home core share.
pub(super) struct Station {
    pub qid: u16,
    pub entries: u32,
    /// IOVAs of the completion queue and of the submission queue.
    pub cq: u64,
    pub sq: u64,
    /// The interrupt vector of the completion queue; none if it raises none.
    pub vector: Option<u16>,
    pub shape: Shape,
    /// Place in bits 7:0, the life that it is being made for in those above.
    word: AtomicU64,
    waker: CoreWaker,
}

impl Station {
    /// Of a queue pair that is being opened.
    pub fn new(
        qid: u16,
        entries: u32,
        cq: u64,
        sq: u64,
        vector: Option<u16>,
        shape: Shape,
        waker: CoreWaker,
    ) -> Self {
        let word = AtomicU64::new(word(Place::Opening, 0));
        Self { qid, entries, cq, sq, vector, shape, word, waker }
    }

    pub fn place(&self) -> Place {
        match self.word.load(Ordering::Acquire) as u8 {
            0 => Place::Opening,
            1 => Place::Running,
            2 => Place::Parked,
            3 => Place::Creating,
            4 => Place::Refused,
            5 => Place::Stranded,
            _ => Place::Closed,
        }
    }

    /// By its own core: the controller took the queues.
    pub fn run(&self) {
        self.word.store(word(Place::Running, 0), Ordering::Release);
    }

    /// By its own core: the rings are as new, and the controller is disabled.
    pub fn park(&self) {
        self.word.store(word(Place::Parked, 0), Ordering::Release);
    }

    /// By its own core: the queue pair ends, unless the home core is making it. `pulse` was read
    /// before: what was being made for a life that is over by then, nobody makes any more.
    pub fn close(&self, pulse: Pulse) -> bool {
        let closed = word(Place::Closed, 0);
        let change = |now| {
            let over = pulse.health().is_quiet() && now == word(Place::Creating, pulse.life());
            (now as u8 != Place::Creating as u8 || over).then_some(closed)
        };
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// By the home core: from parked to creating; false if it has ended.
    pub fn create(&self, life: u32) -> bool {
        self.change(word(Place::Parked, 0), word(Place::Creating, life))
    }

    /// By the home core: the life that it was being made for is over before it began.
    pub fn park_again(&self, life: u32) {
        self.change(word(Place::Creating, life), word(Place::Parked, 0));
    }

    /// By the home core: the controller did not take it.
    pub fn refuse(&self, life: u32) {
        self.change(word(Place::Creating, life), word(Place::Refused, 0));
    }

    /// By the home core: the namespace that it was for is no more.
    pub fn strand(&self, life: u32) {
        self.change(word(Place::Creating, life), word(Place::Stranded, 0));
    }

    /// Wakes its core.
    pub fn waker(&self) -> &CoreWaker {
        &self.waker
    }

    /// Lets its core look.
    pub fn wake(&self) {
        self.waker.wake();
    }

    fn change(&self, from: u64, to: u64) -> bool {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.word.compare_exchange(from, to, order.0, order.1).is_ok()
    }
}

const fn word(place: Place, life: u32) -> u64 {
    (life as u64) << 8 | place as u64
}

/// The queue pairs of a controller.
#[derive(Default)]
pub(super) struct Stations(Mutex<Vec<Arc<Station>>>);

impl Stations {
    pub fn add(&self, station: &Arc<Station>) {
        self.lock().push(station.clone());
    }

    pub fn remove(&self, station: &Arc<Station>) {
        self.lock().retain(|known| !Arc::ptr_eq(known, station));
    }

    /// All of them, by queue ID.
    pub fn all(&self) -> Vec<Arc<Station>> {
        let mut all = self.lock().clone();
        all.sort_unstable_by_key(|station| station.qid);
        all
    }

    /// Lets all cores look.
    pub fn wake(&self) {
        self.lock().iter().for_each(|station| station.wake());
    }

    /// Whether none is of use to the controller or knows it: each is parked, refused or ended.
    pub fn are_parked(&self) -> bool {
        let parked = |station: &Arc<Station>| {
            use Place::{Closed, Parked, Refused, Stranded};
            matches!(station.place(), Parked | Refused | Stranded | Closed)
        };
        self.lock().iter().all(parked)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Station>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
