//! A queue pair in the course of a reset: held, parked, and resumed.
//!
//! While the controller is being disabled nothing is submitted, and what it still completes
//! counts. Once it is disabled, the queue pair decides what becomes of each command, makes its
//! rings as new and parks; the home core waits for that before it enables the controller again.

use oxblock_engine::{ErrorKind, Fault, Pass};

use super::ending::Ending;
use super::guest::Guest;
use super::health::{Health, Pulse};
use super::queue_pair::{Gate, QueuePair};
use super::retry::Verdict;
use super::station::Place;
use super::tracker::{Aside, OWN, Stage};

impl QueuePair {
    /// The word of health has changed since it was last seen.
    #[cold]
    pub fn poll_news(&mut self, pass: &mut Pass) -> usize {
        if let Some(guest) = &mut self.guest {
            return guest.poll(&mut self.trackers, pass);
        }
        if matches!(self.ending, Ending::Ended) {
            return 0;
        }
        let pulse = self.hardware.pulse();
        match pulse.health() {
            Health::Live if pulse.life() == self.seen.life() => {
                self.seen = pulse;
                self.trackers.count_tick();
                // First of all what has completed (row 19).
                let count = self.poll_well(pass);
                count + self.look_after(pass)
            }
            Health::Live => self.resume(pulse, pass),
            Health::Resetting => {
                self.hold();
                let count = self.reap_silently(pass);
                self.guests.wake();
                count
            }
            Health::Down => {
                self.hold();
                self.park(pass)
            }
            Health::Restarting => 0,
            Health::Failed | Health::ShutDown | Health::Gone => {
                self.gate = Gate::Closed;
                let count = self.fail_all(pass);
                self.leave_guests();
                count
            }
        }
    }

    /// Whether the queue pair waits for the controller to come back.
    pub fn is_parked(&self) -> bool {
        matches!(self.station.place(), Place::Parked | Place::Creating)
    }

    fn hold(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Held;
        }
    }

    /// The controller is disabled: decides what becomes of what it had, and parks.
    fn park(&mut self, pass: &mut Pass) -> usize {
        if self.station.place() != Place::Running {
            return 0;
        }
        let mut count = self.reap_silently(pass);
        for index in 0..self.trackers.len() {
            if self.trackers.cid(index).is_none() {
                continue;
            }
            let Some(aside) = self.trackers.aside(index) else { continue };
            match self.after_reset(index, aside) {
                Ok(aside) => self.trackers.set_aside(index, aside),
                Err(fault) => {
                    self.finish(index, Err(fault), pass);
                    count += 1;
                }
            }
        }
        self.guests.wake();
        self.sq.reset();
        self.cq.reset();
        self.sq_doorbell.clear();
        self.cq_doorbell.clear();
        self.station.park();
        self.hardware.wake_home();
        count + 1
    }

    /// What becomes of a command that a reset took from the controller.
    fn after_reset(&self, index: usize, aside: Aside) -> Result<Aside, Fault> {
        let failed = |kind, text| Err(Fault::text(kind, 0, text));
        if aside.cancelled {
            return failed(ErrorKind::Cancelled, "cancelled, and ended by a reset");
        }
        let counts = aside.was_late || !self.controller.recovery().is_asked();
        match self.verdict(index, aside, counts) {
            Verdict::Again { retries } => {
                let stage = Stage::Waiting { due: self.trackers.tick() };
                Ok(Aside { stage, retries, ..aside })
            }
            Verdict::Never => failed(
                ErrorKind::Io,
                "a reset of the controller ended it, and it may not be sent twice: it may have \
                 been carried out",
            ),
            Verdict::Enough if aside.was_late => failed(
                ErrorKind::TimedOut,
                "the controller did not answer in time, nor after resets",
            ),
            Verdict::Enough => failed(ErrorKind::Io, "resets of the controller ended it too often"),
        }
    }

    /// The controller is back: what is due is sent again, in the order in which it was first sent.
    fn resume(&mut self, pulse: Pulse, pass: &mut Pass) -> usize {
        self.seen = pulse;
        match self.station.place() {
            Place::Creating => {}
            Place::Refused => return self.move_out(pulse, pass),
            _ => {
                self.refused = true;
                self.gate = Gate::Closed;
                self.station.close(pulse);
                let count = self.fail_all(pass);
                self.end();
                return count + 1;
            }
        }
        self.station.run();
        self.until_ns = None;
        let shadow = self.controller.shadow();
        self.sq_doorbell.restart(shadow);
        self.cq_doorbell.restart(shadow);
        if self.gate == Gate::Held {
            self.gate = Gate::Open;
        }
        self.send_due();
        self.ring();
        1
    }

    /// The controller did not give the queue pair back: the core becomes a guest of another's, with
    /// all that it has in flight. So do its own guests, each by itself.
    fn move_out(&mut self, pulse: Pulse, pass: &mut Pass) -> usize {
        self.refused = true;
        self.gate = Gate::Closed;
        self.station.close(pulse);
        for index in 0..self.trackers.len() {
            // They have what they asked for, and ask again.
            if self.trackers.seat(index).is_some_and(|seat| seat != OWN) {
                self.trackers.end(index);
            }
        }
        self.end();
        self.controller.forget_qid(self.qid);
        let waker = self.station.waker().clone();
        let Some(mut guest) = Guest::join(&self.controller, waker, self.trackers.len()) else {
            return self.fail_all(pass) + 1;
        };
        // Its lists are what its commands name, wherever they go.
        self.memory.expose();
        guest.ask_again(&mut self.trackers);
        self.guest = Some(Box::new(guest));
        self.seen = Pulse::NEVER;
        1
    }

    /// Fails all commands; nothing may touch their memory any more.
    pub fn fail_all(&mut self, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some(index) = self.trackers.any() {
            let fault = self.ended(0);
            self.finish(index, Err(fault), pass);
            count += 1;
        }
        count
    }

    /// Why nothing goes any more.
    pub fn ended(&self, offset: u64) -> Fault {
        let health = self.hardware.health();
        if self.refused && health == Health::Live {
            let text = "the controller did not give this core its I/O queue back after a reset, or \
                        its namespace is another one; close the node and open it again";
            return Fault::text(ErrorKind::Io, offset, text);
        }
        if health == Health::Live && self.gate == Gate::Closed {
            return Fault::text(ErrorKind::Cancelled, offset, "the I/O queue was deleted");
        }
        health.fault(offset)
    }

    /// Ends a command, for whoever sent it. A fault gets the offset of its request.
    pub fn finish(&mut self, index: usize, result: Result<(), Fault>, pass: &mut Pass) {
        let Some((token, offset, seat)) = self.trackers.end(index) else { return };
        let result = result.map_err(|fault| Fault { offset, ..fault });
        if seat == OWN {
            pass.done(token, result);
        } else {
            self.guests.answer(seat, token, result);
        }
    }
}
