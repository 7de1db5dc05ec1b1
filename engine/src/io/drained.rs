//! Users whose node is drained: their operations wait in their slots, in order.

use super::{Entry, Io, Standing};
use crate::drain::{Drained, Scope, Stage};
use crate::slot::{Line, State, Step};
use crate::{ErrorKind, Fault};

impl Io {
    /// Keeps back, or lets go on, each user's operations as the drains say.
    pub(crate) fn follow_drains(&mut self) {
        for user in 0..self.users.len() as u16 {
            let is_to_wait = self.is_to_wait(user);
            match (is_to_wait, self.users[user as usize].parked.is_some()) {
                (true, false) => self.keep_back(user),
                (false, true) => self.let_go_on(user),
                _ => {}
            }
        }
    }

    fn is_to_wait(&self, user: u16) -> bool {
        let user = &self.users[user as usize];
        // What tasks do is part of operations under way.
        user.is_used()
            && !matches!(user.standing, Standing::Task(_))
            && self.drains.iter().any(|drain| {
                let stage = if drain.spares(user.standing) { Stage::Still } else { Stage::Parking };
                drain.stage >= stage && drain.scope.touches(&user.node)
            })
    }

    /// New operations find no way in, and so come to where they are [parked](Self::park).
    fn keep_back(&mut self, user: u16) {
        let user = &mut self.users[user as usize];
        user.close_way();
        user.parked = Some(Line::new());
    }

    fn let_go_on(&mut self, user: u16) {
        self.open_way(user);
        let Some(mut line) = self.users[user as usize].parked.take() else { return };
        while let Some(index) = line.pop_front(&self.slots) {
            self.slots[index].waiting = false;
            self.start(index);
        }
    }

    fn open_way(&mut self, user: u16) {
        let (node, route) = (&self.users[user as usize].node, self.users[user as usize].route);
        let entry = if node.is_leaf() {
            self.leaf_of(node).map_or(Entry::Nowhere, Entry::Leaf)
        } else {
            Entry::Route(route)
        };
        self.users[user as usize].enter(entry);
    }

    /// Whether a user's operation was parked instead of being started.
    pub(super) fn park(&mut self, index: u32) -> bool {
        let user = self.slots[index].user as usize;
        if self.failed.is_some() {
            return false;
        }
        let Some(line) = &mut self.users[user].parked else { return false };
        self.slots[index].step = Step::Parked;
        line.push_back(&mut self.slots, index);
        true
    }

    /// Ends a parked operation as cancelled.
    pub(super) fn cancel_parked(&mut self, index: u32) {
        let user = self.slots[index].user as usize;
        if let Some(line) = &mut self.users[user].parked {
            line.remove(&mut self.slots, index);
        }
        let slot = &mut self.slots[index];
        slot.step = Step::Direct;
        slot.fail(Fault::new(ErrorKind::Cancelled, 0));
        self.finish(index);
    }

    /// Whether nothing that a drain waits for at its stage is under way.
    pub(crate) fn is_at_rest(&self, drain: &Drained) -> bool {
        let touched: Vec<bool> = (self.users.iter())
            .map(|user| {
                let is_spared = drain.spares(user.standing) && drain.stage < Stage::Still;
                user.is_used() && !is_spared && drain.scope.touches(&user.node)
            })
            .collect();
        let is_under_way = |slot: &crate::slot::Slot| {
            slot.state == State::Running && slot.step != Step::Parked && touched[slot.user as usize]
        };
        !self.slots.iter().any(is_under_way)
    }
}

impl Drained {
    /// Whether one that others wait for goes on until the users are at rest: where everything is
    /// drained, those others may be among them.
    fn spares(&self, standing: Standing) -> bool {
        !matches!(standing, Standing::User) && matches!(self.scope, Scope::Everything)
    }
}
