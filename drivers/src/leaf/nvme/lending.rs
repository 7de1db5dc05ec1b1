//! Lending a queue pair to cores that the controller has none left for: the owner's end.
//!
//! A guest builds its commands itself, with lists in memory of its own, and hands them to the
//! owner through a bounded ring; the answers come back through another. Neither waits for the
//! other: the rings have room for all that a guest has in flight, and commands that the queue has
//! no room for stay in their ring, in order.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::{CoreWaker, Fault, Token};
use oxblock_mem::spsc::{Consumer, Producer, ring};
use oxblock_nvme::Command;

/// What a guest asks of the owner.
pub(super) enum Ask {
    /// To send a command, known to the guest by `cid`.
    Command { command: Command, cid: u16 },
    /// To abort it.
    Cancel { cid: u16 },
}

/// How a guest's command ended. The owner does not know its offset.
pub(super) struct Answer {
    pub cid: u16,
    pub result: Result<(), Fault>,
}

/// Whether the owner still serves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It does.
    Open,
    /// It does not, and the controller has nothing of the guest.
    Ended,
    /// It does not, and the controller may still work on what the guest has in flight.
    Lost,
}

/// What the two ends know of each other besides the rings.
#[derive(Default)]
struct Link {
    service: AtomicU8,
    guest_left: AtomicBool,
}

/// The guest's end.
pub(super) struct GuestEnd {
    pub asks: Producer<Ask>,
    pub answers: Consumer<Answer>,
    link: Arc<Link>,
    lender: Arc<Lender>,
}

impl GuestEnd {
    /// Whether the owner still serves. To be asked before the answers are taken: none comes after
    /// it does no more.
    pub fn service(&self) -> Service {
        match self.link.service.load(Ordering::Acquire) {
            0 => Service::Open,
            1 => Service::Ended,
            _ => Service::Lost,
        }
    }

    /// Wakes the owner for what was asked.
    pub fn wake_owner(&self) {
        self.lender.waker.wake();
    }
}

impl Drop for GuestEnd {
    fn drop(&mut self) {
        self.link.guest_left.store(true, Ordering::Release);
        self.lender.guests.fetch_sub(1, Ordering::Relaxed);
        self.lender.waker.wake();
    }
}

/// The owner's end.
struct Seat {
    asks: Consumer<Ask>,
    answers: Producer<Answer>,
    link: Arc<Link>,
    waker: CoreWaker,
    /// Something was answered since the guest was last woken.
    answered: bool,
}

/// Where a queue pair takes guests in.
pub(super) struct Lender {
    waker: CoreWaker,
    guests: AtomicUsize,
    /// Somebody stands at the door.
    news: AtomicBool,
    door: Mutex<Door>,
}

#[derive(Default)]
struct Door {
    closed: bool,
    arrivals: Vec<Seat>,
}

impl Lender {
    /// Of the core with this waker.
    pub fn new(waker: CoreWaker) -> Arc<Lender> {
        let (guests, news) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Lender { waker, guests, news, door: Mutex::default() })
    }

    /// How many share it.
    pub fn guests(&self) -> usize {
        self.guests.load(Ordering::Relaxed)
    }

    /// Takes in a guest of the core with this waker, that has up to `depth` commands in flight.
    /// None if the queue pair has ended.
    pub fn join(self: &Arc<Self>, waker: CoreWaker, depth: usize) -> Option<GuestEnd> {
        let mut door = self.door();
        if door.closed {
            return None;
        }
        // Room for as many cancellations as commands.
        let (ask, asks) = ring(2 * depth);
        let (answer, answers) = ring(depth);
        let link = Arc::new(Link::default());
        let seat = Seat { asks, answers: answer, link: link.clone(), waker, answered: false };
        door.arrivals.push(seat);
        drop(door);
        self.guests.fetch_add(1, Ordering::Relaxed);
        self.news.store(true, Ordering::Release);
        self.waker.wake();
        Some(GuestEnd { asks: ask, answers, link, lender: self.clone() })
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guests of a queue pair.
pub(super) struct Guests {
    /// Numbered from 1 on: 0 is the owner itself.
    seats: Vec<Option<Seat>>,
    count: usize,
    /// The seat that is asked first.
    first: usize,
    /// The own core found no room, and comes first this time.
    own_core_waits: bool,
    own_core_had_its_turn: bool,
    lender: Arc<Lender>,
}

impl Guests {
    pub fn new(lender: Arc<Lender>) -> Guests {
        Guests {
            seats: Vec::new(),
            count: 0,
            first: 0,
            own_core_waits: false,
            own_core_had_its_turn: false,
            lender,
        }
    }

    pub fn lender(&self) -> &Arc<Lender> {
        &self.lender
    }

    /// Whether there are guests, at the door or inside.
    #[inline]
    pub fn has_any(&self) -> bool {
        self.count > 0 || self.lender.news.load(Ordering::Relaxed)
    }

    /// Whether a guest waits for something.
    pub fn wait(&self) -> bool {
        let left = |seat: &Seat| seat.link.guest_left.load(Ordering::Acquire);
        self.lender.news.load(Ordering::Acquire)
            || self.seats.iter().flatten().any(|seat| !seat.asks.is_empty() || left(seat))
    }

    /// The own core found no room.
    pub fn own_core_waits(&mut self) {
        self.own_core_waits = true;
    }

    /// Whether it is the guests' turn for what room there is.
    pub fn take_turn(&mut self) -> bool {
        let own = std::mem::take(&mut self.own_core_waits) && !self.own_core_had_its_turn;
        self.own_core_had_its_turn = own;
        !own
    }

    /// Lets in who stands at the door, and sees out who has left.
    pub fn admit(&mut self) {
        for seat in &mut self.seats {
            if seat.take_if(|seat| seat.link.guest_left.load(Ordering::Acquire)).is_some() {
                self.count -= 1;
            }
        }
        if self.lender.news.swap(false, Ordering::Acquire) {
            let arrivals = std::mem::take(&mut self.lender.door().arrivals);
            for seat in arrivals {
                self.count += 1;
                match self.seats.iter_mut().find(|seat| seat.is_none()) {
                    Some(empty) => *empty = Some(seat),
                    None => self.seats.push(Some(seat)),
                }
            }
        }
        self.first = self.first.wrapping_add(1);
    }

    /// The next thing that a guest asks, and its seat. The one that is asked first changes with
    /// every turn.
    pub fn next(&mut self) -> Option<(u16, Ask)> {
        let seats = self.seats.len();
        for at in 0..seats {
            let index = self.first.wrapping_add(at) % seats;
            let seat = self.seats.get_mut(index)?;
            if let Some(ask) = seat.as_mut().and_then(|seat| seat.asks.pop()) {
                return Some((index as u16 + 1, ask));
            }
        }
        None
    }

    /// Tells a guest that its command has ended.
    pub fn answer(&mut self, seat: u16, token: Token, result: Result<(), Fault>) {
        let seat = self.seats.get_mut(usize::from(seat).wrapping_sub(1));
        if let Some(seat) = seat.and_then(Option::as_mut) {
            // There is room for all that the guest has in flight.
            let _ = seat.answers.push(Answer { cid: token.0 as u16, result });
            seat.answered = true;
        }
    }

    /// Wakes those who were answered.
    pub fn wake(&mut self) {
        for seat in self.seats.iter_mut().flatten() {
            if std::mem::take(&mut seat.answered) {
                seat.waker.wake();
            }
        }
    }

    /// Serves nobody any more. `is_quiet` says that the controller has nothing of the guests.
    pub fn end(&mut self, is_quiet: bool) {
        let mut door = self.lender.door();
        door.closed = true;
        let arrivals = std::mem::take(&mut door.arrivals);
        drop(door);
        let service = if is_quiet { Service::Ended } else { Service::Lost } as u8;
        for seat in self.seats.drain(..).flatten().chain(arrivals) {
            seat.link.service.store(service, Ordering::Release);
            seat.waker.wake();
        }
        self.count = 0;
        self.lender.news.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxblock_engine::{ErrorKind, Options, Simulation};
    use oxblock_mem::ArenaOptions;

    fn waker() -> CoreWaker {
        let options = Options { arena: ArenaOptions::new(2 << 20), ..Options::default() };
        Simulation::new(1, 1, options).expect("an engine").core(0).waker()
    }

    fn guests(count: usize) -> (Guests, Vec<GuestEnd>) {
        let mut guests = Guests::new(Lender::new(waker()));
        let join = |_| guests.lender().join(waker(), 4).expect("an open door");
        let ends = (0..count).map(join).collect();
        guests.admit();
        (guests, ends)
    }

    fn ask(end: &mut GuestEnd, cid: u16) {
        let command = Command::flush(1);
        assert!(end.asks.push(Ask::Command { command, cid }).is_ok());
    }

    #[test]
    fn what_a_guest_asks_comes_in_order_and_every_guest_has_its_turn() {
        let (mut guests, mut ends) = guests(2);
        for cid in 0..3 {
            ends.iter_mut().for_each(|end| ask(end, cid));
        }
        let mut seen = [0, 0];
        for _ in 0..6 {
            let (seat, asked) = guests.next().expect("something asked");
            let Ask::Command { cid, .. } = asked else { panic!("no command") };
            let at = usize::from(seat) - 1;
            assert_eq!(cid, seen[at]);
            seen[at] += 1;
            guests.admit();
            if seen == [1, 1] {
                // Neither had to wait for all of the other.
                break;
            }
        }
        assert_eq!(seen, [1, 1]);
    }

    /// Guests took every tracker as soon as it was free, and the core that owns the queue waited
    /// for as long as they had something to ask.
    #[test]
    fn a_core_that_waits_takes_turns_with_its_guests() {
        let (mut guests, _ends) = guests(1);
        assert!(guests.take_turn() && guests.take_turn());
        for _ in 0..3 {
            guests.own_core_waits();
            assert!(!guests.take_turn());
            guests.own_core_waits();
            assert!(guests.take_turn());
        }
    }

    #[test]
    fn guests_are_answered_until_they_leave_or_the_queue_ends() {
        let (mut guests, mut ends) = guests(2);
        let fault = Fault::new(ErrorKind::Media, 0);
        guests.answer(1, Token(7), Ok(()));
        guests.answer(2, Token(8), Err(fault));
        guests.answer(9, Token(9), Ok(()));
        let answer = |end: &mut GuestEnd| end.answers.pop().map(|a| (a.cid, a.result));
        assert_eq!(answer(&mut ends[0]), Some((7, Ok(()))));
        assert_eq!(answer(&mut ends[1]), Some((8, Err(fault))));
        drop(ends.remove(0));
        assert!(guests.wait());
        guests.admit();
        assert_eq!((guests.lender().guests(), guests.has_any()), (1, true));
        assert_eq!(ends[0].service(), Service::Open);
        guests.end(false);
        assert_eq!(ends[0].service(), Service::Lost);
        assert!(guests.lender().join(waker(), 4).is_none());
    }
}
