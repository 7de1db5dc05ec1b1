//! A core that shares another core's queue pair: because the controller granted fewer than there
//! are cores, or did not give the core its own back after a reset.

use std::cmp::Reverse;
use std::sync::Arc;

use oxblock_engine::{
    Busy, Core, CoreWaker, Error, ErrorKind, Fault, Pass, Queue, Request, Sleep, Token,
};

use super::commands::Commands;
use super::controller::Controller;
use super::ending::DELETE_NS;
use super::hardware::Hardware;
use super::health::Health;
use super::lending::{Answer, Ask, GuestEnd, Service};
use super::looks::Looks;
use super::memory::DeviceMemory;
use super::namespace::Shape;
use super::tracker::{OWN, TRACKERS_MAX, Trackers};

/// How long a queue pair to share is looked for while others are being created.
const LOOK_NS: u64 = 5_000_000_000;

/// A core's part of another core's queue pair. What is in flight is in trackers of its own.
pub(super) struct Guest {
    end: Option<GuestEnd>,
    waker: CoreWaker,
    /// Nothing is submitted any more.
    refusing: bool,
    /// When what is in flight must have ended, once the queue is being closed.
    until_ns: Option<u64>,
    hardware: Arc<Hardware>,
    /// Last: it holds the way to memory open.
    controller: Arc<Controller>,
}

impl Guest {
    /// Of the core with this waker, with up to `depth` commands in flight. None if no queue pair
    /// can be shared.
    pub fn join(controller: &Arc<Controller>, waker: CoreWaker, depth: usize) -> Option<Guest> {
        let mut lenders = controller.lenders_by_guests().into_iter();
        let end = lenders.find_map(|lender| lender.join(waker.clone(), depth))?;
        Some(Guest {
            end: Some(end),
            waker,
            refusing: false,
            until_ns: None,
            hardware: controller.hardware().clone(),
            controller: controller.clone(),
        })
    }

    pub fn submit(
        &mut self,
        request: &Request<'_>,
        trackers: &mut Trackers,
        commands: &Commands,
        pass: &mut Pass,
    ) -> Result<(), Busy> {
        if self.refusing {
            pass.done(request.token, Err(self.ended(request.offset)));
            return Ok(());
        }
        let Some((index, end)) = trackers.next().zip(self.end.as_mut()) else {
            return Err(Busy);
        };
        match commands.of(request, index) {
            Ok(Some(command)) => {
                let (token, offset) = (request.token, request.offset);
                if let Some(cid) = trackers.take(token, offset, OWN, &command)
                    && end.asks.push(Ask::Command { command, cid }).is_err()
                {
                    trackers.complete(cid);
                    return Err(Busy);
                }
            }
            Ok(None) => pass.done(request.token, Ok(())),
            Err(fault) => pass.done(request.token, Err(fault)),
        }
        Ok(())
    }

    /// Has the owner look.
    pub fn kick(&self) {
        if let Some(end) = &self.end {
            end.wake_owner();
        }
    }

    pub fn poll(&mut self, trackers: &mut Trackers, pass: &mut Pass) -> usize {
        let Some(end) = &self.end else { return 0 };
        let service = end.service();
        let mut count = self.take_answers(trackers, pass);
        // Over a reset the owner keeps what it was asked. What the controller may still work on
        // ends when it is quiet.
        let is_over = match service {
            Service::Open => self.hardware.health().is_over(),
            Service::Ended => match self.hardware.health() {
                Health::Live => !self.move_on(trackers),
                health => health.is_over(),
            },
            Service::Lost => {
                self.refusing = true;
                self.fail_controller();
                self.hardware.is_quiet()
            }
        };
        if is_over {
            self.refusing = true;
            count += self.fail_all(trackers, pass);
        }
        count
    }

    /// The owner serves no more, and the controller has nothing of ours: asks another one. False
    /// if there is none.
    #[cold]
    fn move_on(&mut self, trackers: &mut Trackers) -> bool {
        let next = match self.refusing {
            true => None,
            false => Guest::join(&self.controller, self.waker.clone(), trackers.len()),
        };
        let Some(next) = next else { return false };
        *self = next;
        self.ask_again(trackers);
        true
    }

    /// Asks for all that is in flight, in the order in which it was first sent. The owner has room
    /// for all of it.
    pub fn ask_again(&mut self, trackers: &mut Trackers) {
        let Some(end) = &mut self.end else { return };
        let last = trackers.last_sent();
        let in_flight = (0..trackers.len()).filter(|index| trackers.aside(*index).is_some());
        let sent = in_flight.filter_map(|index| Some((trackers.first_sent(index)?, index)));
        let mut sent: Vec<_> = sent.map(|(stamp, index)| (last.since(stamp), index)).collect();
        sent.sort_unstable_by_key(|(ago, _)| Reverse(*ago));
        for (_, index) in sent {
            if let Some(command) = trackers.retake(index) {
                let _ = end.asks.push(Ask::Command { cid: command.cid(), command });
            }
        }
        end.wake_owner();
    }

    pub fn cancel(&mut self, token: Token, trackers: &Trackers) {
        // As many cancellations as there is room for beside all commands.
        let found = trackers.find(token, OWN).and_then(|index| trackers.cid(index));
        if let Some((cid, end)) = found.zip(self.end.as_mut())
            && end.asks.len() < trackers.len()
            && end.asks.push(Ask::Cancel { cid }).is_ok()
        {
            end.wake_owner();
        }
    }

    /// The owner wakes this core with every answer, and when it serves no more.
    pub fn sleep(&self, in_flight: usize) -> Sleep<'static> {
        let serves = self.end.as_ref().is_none_or(|end| end.service() == Service::Open);
        match in_flight > 0 && (self.hardware.health().is_over() || !serves) {
            true => Sleep::Never,
            false => Sleep::Woken,
        }
    }

    /// Takes nothing more, and waits for what is in flight; called again and again until `true`.
    pub fn quiesce(&mut self, trackers: &mut Trackers, pass: &mut Pass) -> bool {
        self.refusing = true;
        self.poll(trackers, pass);
        if trackers.in_flight() == 0 {
            self.end = None;
            return true;
        }
        let now_ns = pass.now();
        match self.until_ns {
            None => self.until_ns = Some(now_ns.saturating_add(DELETE_NS)),
            Some(until_ns) if now_ns >= until_ns => self.fail_controller(),
            Some(_) => {}
        }
        false
    }

    fn take_answers(&mut self, trackers: &mut Trackers, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some(Answer { cid, result }) = self.end.as_mut().and_then(|e| e.answers.pop()) {
            let Some((token, offset, _)) = trackers.complete(cid) else { continue };
            pass.done(token, result.map_err(|fault| Fault { offset, ..fault }));
            count += 1;
        }
        count
    }

    /// The controller has what it should have given back: only a reset makes sure of it. One that
    /// is under way is left to go on.
    fn fail_controller(&self) {
        match self.hardware.health() {
            Health::Live => self.hardware.fail(),
            _ => self.hardware.step(),
        }
    }

    /// Fails all commands in flight; the controller has none of them.
    fn fail_all(&mut self, trackers: &mut Trackers, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some((token, offset, _)) = trackers.any().and_then(|index| trackers.end(index)) {
            pass.done(token, Err(self.ended(offset)));
            count += 1;
        }
        count
    }

    #[cold]
    fn ended(&self, offset: u64) -> Fault {
        match self.hardware.health() {
            Health::Live => {
                let text = "the I/O queue that this core shares was deleted";
                Fault::text(ErrorKind::Cancelled, offset, text)
            }
            health => health.fault(offset),
        }
    }
}

/// The queue of a core that has been a guest from the beginning.
struct GuestQueue {
    trackers: Trackers,
    commands: Commands,
    memory: DeviceMemory,
    guest: Guest,
}

/// Opens a queue for a namespace on the core that calls, through a queue pair that is there, or
/// that is being created.
///
/// # Errors
/// There is none, or no memory.
pub(super) async fn open(
    core: &Core,
    controller: Arc<Controller>,
    shape: Shape,
) -> Result<Box<dyn Queue>, Error> {
    let depth = (usize::from(controller.queue_entries()) - 1).min(TRACKERS_MAX);
    let begun = core.now();
    let mut looks = Looks::new();
    let guest = loop {
        if let Some(guest) = Guest::join(&controller, core.waker(), depth) {
            break guest;
        }
        // One may have become free meanwhile.
        if let Some(qid) = controller.take_qid()? {
            let leaf = super::queue_pair::open(core, controller, shape, qid).await?;
            return Ok(Box::new(leaf));
        }
        if core.now() - begun > LOOK_NS {
            let text = "all I/O queue pairs that the controller grants are in use, and none can \
                        be shared; open its namespaces on fewer cores";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        looks.pause(core).await;
    };
    let hardware = controller.hardware();
    let mut memory = DeviceMemory::new(core.arena(), Commands::list_bytes(depth), hardware)?;
    let commands = Commands::new(shape, &mut memory, depth)?;
    memory.expose();
    Ok(Box::new(GuestQueue { trackers: Trackers::new(depth), commands, memory, guest }))
}

impl Queue for GuestQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        self.guest.submit(request, &mut self.trackers, &self.commands, pass)
    }

    fn kick(&mut self, _pass: &mut Pass) {
        self.guest.kick();
    }

    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.guest.poll(&mut self.trackers, pass)
    }

    fn cancel(&mut self, token: Token) {
        self.guest.cancel(token, &self.trackers);
    }

    fn in_flight(&self) -> usize {
        self.trackers.in_flight()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        self.guest.sleep(self.trackers.in_flight())
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        let over = self.guest.quiesce(&mut self.trackers, pass);
        if over {
            self.memory.conceal();
        }
        over
    }
}
