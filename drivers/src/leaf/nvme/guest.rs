//! The queue of a core that shares another core's queue pair, because the controller granted fewer
//! than there are cores.

use std::sync::Arc;

use oxblock_engine::{Busy, Core, Error, ErrorKind, Fault, Pass, Queue, Request, Sleep, Token};

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

/// Commands in flight through another core's queue pair.
pub(super) struct GuestQueue {
    end: Option<GuestEnd>,
    trackers: Trackers,
    commands: Commands,
    /// Nothing is submitted any more.
    refusing: bool,
    /// When what is in flight must have ended, once the queue is being closed.
    until_ns: Option<u64>,
    hardware: Arc<Hardware>,
    memory: DeviceMemory,
    /// Last: it holds the way to memory open.
    _controller: Arc<Controller>,
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
    let end = loop {
        let lender = controller.lender();
        if let Some(end) = lender.and_then(|lender| lender.join(core.waker(), depth)) {
            break end;
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
    let hardware = controller.hardware().clone();
    let mut memory = DeviceMemory::new(core.arena(), Commands::list_bytes(depth), &hardware)?;
    let commands = Commands::new(shape, &mut memory, depth)?;
    memory.expose();
    Ok(Box::new(GuestQueue {
        end: Some(end),
        trackers: Trackers::new(depth),
        commands,
        refusing: false,
        until_ns: None,
        hardware,
        memory,
        _controller: controller,
    }))
}

impl Queue for GuestQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if self.refusing {
            let fault = self.hardware.health().fault(request.offset);
            pass.done(request.token, Err(fault));
            return Ok(());
        }
        let Some((index, end)) = self.trackers.next().zip(self.end.as_mut()) else {
            return Err(Busy);
        };
        match self.commands.of(request, index) {
            Ok(Some(command)) => {
                let (token, offset) = (request.token, request.offset);
                if let Some(cid) = self.trackers.take(token, offset, OWN, &command)
                    && end.asks.push(Ask::Command { command, cid }).is_err()
                {
                    self.trackers.complete(cid);
                    return Err(Busy);
                }
            }
            Ok(None) => pass.done(request.token, Ok(())),
            Err(fault) => pass.done(request.token, Err(fault)),
        }
        Ok(())
    }

    fn kick(&mut self, _pass: &mut Pass) {
        if let Some(end) = &self.end {
            end.wake_owner();
        }
    }

    fn poll(&mut self, pass: &mut Pass) -> usize {
        let Some(end) = &self.end else { return 0 };
        let service = end.service();
        let mut count = self.take_answers(pass);
        // Over a reset the owner keeps what it was asked. What the controller may still work on
        // ends when it is quiet.
        let is_over = match service {
            Service::Open => self.hardware.health().is_over(),
            Service::Ended => true,
            Service::Lost => {
                self.refusing = true;
                self.fail_controller();
                self.hardware.is_quiet()
            }
        };
        if is_over {
            self.refusing = true;
            count += self.fail_all(pass);
        }
        count
    }

    fn cancel(&mut self, token: Token) {
        let depth = self.trackers.len();
        // As many cancellations as there is room for beside all commands.
        let found = self.trackers.find(token, OWN).and_then(|index| self.trackers.cid(index));
        if let Some((cid, end)) = found.zip(self.end.as_mut())
            && end.asks.len() < depth
            && end.asks.push(Ask::Cancel { cid }).is_ok()
        {
            end.wake_owner();
        }
    }

    fn in_flight(&self) -> usize {
        self.trackers.in_flight()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        // The owner wakes this core with every answer, and when it serves no more.
        match self.hardware.health().is_over() && self.trackers.in_flight() > 0 {
            true => Sleep::Never,
            false => Sleep::Woken,
        }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.refusing = true;
        self.poll(pass);
        if self.trackers.in_flight() == 0 {
            self.end = None;
            self.memory.conceal();
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
}

impl GuestQueue {
    fn take_answers(&mut self, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some(Answer { cid, result }) = self.end.as_mut().and_then(|e| e.answers.pop()) {
            let Some((token, offset, _)) = self.trackers.complete(cid) else { continue };
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
    fn fail_all(&mut self, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some((token, offset, _)) =
            self.trackers.any().and_then(|index| self.trackers.end(index))
        {
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
