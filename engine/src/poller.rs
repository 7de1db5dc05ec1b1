//! Pollers: work that every turn of a reactor does.

use std::cell::{Cell, RefCell, RefMut};

use crate::{Core, Sleep};

/// Work for every turn of a reactor, such as serving the queues of a controller.
pub trait Poller {
    /// Does what there is to do, without blocking, and returns how much that was; 0 lets
    /// the reactor think of sleep.
    fn poll(&mut self, core: &Core) -> usize;

    /// Asked when the reactor has nothing to do: may it sleep, and what wakes it?
    fn sleep(&mut self) -> Sleep<'_>;
}

/// Names a poller of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollerId(u64);

#[derive(Default)]
pub(crate) struct Pollers {
    list: RefCell<Vec<(PollerId, Box<dyn Poller>)>>,
    added: RefCell<Vec<(PollerId, Box<dyn Poller>)>>,
    removed: RefCell<Vec<PollerId>>,
    next: Cell<u64>,
}

impl Pollers {
    pub fn add(&self, poller: Box<dyn Poller>) -> PollerId {
        let id = PollerId(self.next.get());
        self.next.set(id.0 + 1);
        self.added.borrow_mut().push((id, poller));
        id
    }

    pub fn remove(&self, id: PollerId) {
        self.removed.borrow_mut().push(id);
    }

    /// Polls each once.
    #[inline]
    pub fn run(&self, core: &Core) -> usize {
        let mut work = 0;
        for (_, poller) in self.list.borrow_mut().iter_mut() {
            work += poller.poll(core);
        }
        if !self.added.borrow().is_empty() || !self.removed.borrow().is_empty() {
            work += self.change();
        }
        work
    }

    #[cold]
    fn change(&self) -> usize {
        let mut list = self.list.borrow_mut();
        list.append(&mut self.added.borrow_mut());
        let removed = self.removed.take();
        let gone: Vec<_> = list.extract_if(.., |(id, _)| removed.contains(id)).collect();
        // A poller's end may add or remove others.
        drop(list);
        drop(gone);
        1
    }

    /// The pollers of the next turn.
    pub fn borrow_mut(&self) -> RefMut<'_, Vec<(PollerId, Box<dyn Poller>)>> {
        self.list.borrow_mut()
    }

    pub fn clear(&self) {
        drop((self.list.take(), self.added.take()));
    }
}
