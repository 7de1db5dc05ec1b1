//! The end of a queue pair: deleted by the controller, or forgotten by it.

use oxblock_engine::Pass;
use oxblock_nvme::Command;

use super::admin::{Kind, Ticket};
use super::health::Health;
use super::queue_pair::{Gate, QueuePair};

/// How long the controller may take to delete a queue, in ns, before it counts as failed.
pub(super) const DELETE_NS: u64 = 3_000_000_000;

/// How far the end of a queue pair has come.
pub(super) enum Ending {
    Open,
    DeletingSq {
        ticket: Ticket,
        until_ns: u64,
    },
    DeletingCq {
        ticket: Ticket,
        until_ns: u64,
    },
    /// The controller would not delete: it is being disabled.
    Disabling,
    Ended,
}

impl QueuePair {
    /// Ends the queue pair, as fast as the controller allows; called again and again until `true`.
    pub fn quiesce(&mut self, pass: &mut Pass) -> bool {
        if self.gate == Gate::Open || self.gate == Gate::Held {
            self.gate = Gate::Closed;
        }
        if let Some(guest) = &mut self.guest {
            let over = guest.quiesce(&mut self.trackers, pass);
            if over {
                self.memory.conceal();
            }
            return over;
        }
        if matches!(self.ending, Ending::Ended) {
            return true;
        }
        let pulse = self.hardware.pulse();
        match pulse.health() {
            Health::Live if pulse.life() == self.seen.life() => self.step_ending(pass),
            // It was made anew meanwhile: that must be noticed first.
            Health::Live => {
                self.poll(pass);
            }
            Health::Resetting => {
                // By rights the home core does it, but that may have ended.
                self.hardware.step();
                self.reap_silently(pass);
            }
            Health::Down | Health::Restarting => {
                let is_closed =
                    (pulse.health().is_quiet() || self.is_parked()) && self.station.close(pulse);
                if is_closed {
                    self.forgotten(pass);
                } else if self.is_overdue(pass) {
                    // Who was to make it anew has ended.
                    self.hardware.fail();
                }
            }
            Health::Failed | Health::ShutDown | Health::Gone => {
                self.station.close(pulse);
                self.forgotten(pass);
            }
        }
        matches!(self.ending, Ending::Ended)
    }

    /// Deletes the submission queue, then the completion queue; if the controller does not, it is
    /// reset, and forgets them.
    fn step_ending(&mut self, pass: &mut Pass) {
        let now_ns = pass.now();
        match &self.ending {
            Ending::Open => {
                let ticket = self.start_delete(Command::delete_sq(self.qid));
                if let Some(ticket) = ticket {
                    let until_ns = now_ns.saturating_add(DELETE_NS);
                    self.ending = Ending::DeletingSq { ticket, until_ns };
                }
            }
            Ending::DeletingSq { ticket, until_ns } => match deleted(ticket) {
                Some(true) => {
                    // What was completed before the deletion is in the queue already.
                    self.reap(pass);
                    self.fail_all(pass);
                    let ticket = self.start_delete(Command::delete_cq(self.qid));
                    if let Some(ticket) = ticket {
                        let until_ns = now_ns.saturating_add(DELETE_NS);
                        self.ending = Ending::DeletingCq { ticket, until_ns };
                    }
                }
                None if now_ns < *until_ns => {}
                _ => self.disable(),
            },
            Ending::DeletingCq { ticket, until_ns } => match deleted(ticket) {
                Some(true) => {
                    self.station.close(self.seen);
                    self.end();
                    self.controller.return_qid(self.qid);
                }
                None if now_ns < *until_ns => {}
                _ => self.disable(),
            },
            Ending::Disabling | Ending::Ended => {}
        }
    }

    /// Starts a deletion. None if there is no room for it now, or no controller.
    fn start_delete(&mut self, command: Command) -> Option<Ticket> {
        match self.controller.admin().start(command, &mut None, Kind::Awaited) {
            Ok(ticket) => ticket,
            Err(_) => {
                self.disable();
                None
            }
        }
    }

    fn disable(&mut self) {
        self.hardware.fail();
        self.ending = Ending::Disabling;
    }

    /// Whether the end has taken longer than a deletion may.
    fn is_overdue(&mut self, pass: &Pass) -> bool {
        let until_ns = pass.now().saturating_add(DELETE_NS);
        pass.now() >= *self.until_ns.get_or_insert(until_ns)
    }

    /// The controller was disabled, or is gone: it knows these queues no more, and has none of
    /// their commands.
    fn forgotten(&mut self, pass: &mut Pass) {
        self.fail_all(pass);
        self.end();
        self.controller.return_qid(self.qid);
    }

    /// The controller knows these queues no more.
    pub fn end(&mut self) {
        self.leave_guests();
        self.controller.stations().remove(&self.station);
        self.sq_doorbell.clear();
        self.cq_doorbell.clear();
        self.memory.conceal();
        self.ending = Ending::Ended;
    }
}

/// The outcome of a deletion, once there is one.
fn deleted(ticket: &Ticket) -> Option<bool> {
    let done = ticket.poll(None)?;
    Some(done.is_ok_and(|done| done.completion.is_success()))
}
