//! A queue pair as the engine sees it: the leaf of its core, or what others still need of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use oxblock_engine::{Busy, Core, Pass, Poller, PollerId, Queue, Request, Sleep, Token};

use super::queue_pair::QueuePair;

/// A queue pair as the leaf of the core that it was created on. Closed while others share it, it
/// goes on as a poller of that core until they have left.
pub(super) struct Leaf {
    core: Core,
    pair: Option<QueuePair>,
}

impl Leaf {
    pub fn new(core: &Core, pair: QueuePair) -> Leaf {
        Leaf { core: core.clone(), pair: Some(pair) }
    }
}

impl Queue for Leaf {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        match &mut self.pair {
            Some(pair) => pair.submit(request, pass),
            None => Err(Busy),
        }
    }

    #[inline]
    fn kick(&mut self, _pass: &mut Pass) {
        if let Some(pair) = &mut self.pair {
            pair.ring();
        }
    }

    #[inline]
    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.pair.as_mut().map_or(0, |pair| pair.poll(pass))
    }

    fn cancel(&mut self, token: Token) {
        if let Some(pair) = &mut self.pair {
            pair.cancel(token);
        }
    }

    fn in_flight(&self) -> usize {
        self.pair.as_ref().map_or(0, QueuePair::in_flight)
    }

    fn is_worth_polling(&self, now_ns: u64) -> bool {
        self.pair.as_ref().is_none_or(|pair| pair.waiting.is_worth_polling(now_ns))
    }

    fn sleep(&mut self) -> Sleep<'_> {
        match &mut self.pair {
            Some(pair) => pair.sleep(self.core.pass_now()),
            None => Sleep::Woken,
        }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        let Some(pair) = &mut self.pair else { return true };
        if pair.is_only_lent() {
            let pair = self.pair.take();
            Orphan::add(&self.core, pair);
            return true;
        }
        pair.quiesce(pass)
    }
}

/// A queue pair whose own core is done with it, while others still share it.
struct Orphan {
    pair: Option<QueuePair>,
    pass: Pass,
    id: Rc<Cell<Option<PollerId>>>,
}

impl Orphan {
    fn add(core: &Core, pair: Option<QueuePair>) {
        if let Some(pair) = &pair {
            pair.orphans().fetch_add(1, Ordering::SeqCst);
        }
        let id = Rc::new(Cell::new(None));
        let orphan = Orphan { pair, pass: Pass::new(1), id: id.clone() };
        id.set(Some(core.add_poller(Box::new(orphan))));
    }

    fn end(&mut self) {
        if let Some(pair) = self.pair.take() {
            pair.orphans().fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Poller for Orphan {
    fn poll(&mut self, core: &Core) -> usize {
        self.pass.begin(core.pass_now());
        let Some(pair) = &mut self.pair else { return 0 };
        let over = if pair.is_only_lent() {
            pair.poll(&mut self.pass);
            false
        } else {
            pair.quiesce(&mut self.pass)
        };
        // It has no requests of its own.
        self.pass.drain().for_each(drop);
        if over {
            self.end();
            if let Some(id) = self.id.take() {
                core.remove_poller(id);
            }
        }
        usize::from(over)
    }

    fn sleep(&mut self) -> Sleep<'_> {
        match &mut self.pair {
            Some(pair) if pair.is_only_lent() => pair.sleep(self.pass.now()),
            Some(_) => Sleep::Never,
            None => Sleep::Woken,
        }
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.end();
    }
}
