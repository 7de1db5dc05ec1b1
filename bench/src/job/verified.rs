//! What the loop of a verified job does beside moving blocks: it claims places before they are
//! written, fills blocks so that they can be checked, and checks those that were read.
//!
//! A read is checked against what the log said when it was submitted, unless the log says
//! something else once it is back: then it raced with a write of the same place, and may have
//! found either.

use std::ops::Range;
use std::sync::Arc;

use oxblock_engine::{Op, OpKind};

use crate::generate::Piece;
use crate::options::JobOptions;
use crate::report::VerifyReport;
use crate::verify::{Checker, Expected, Place, Verification, Write};

/// The verifying half of one clone's loop.
#[derive(Debug)]
pub(crate) struct Verified {
    shared: Arc<Verification>,
    checker: Checker,
    fatal: bool,
    /// First byte of the clone's range.
    start: u64,
    unit: u64,
    /// By tag and unit of a read: what the log said when it was submitted.
    seen: Box<[Place]>,
    units_per_read: usize,
    /// What is left of the units that this clone took last to read back; `None`: it writes, or
    /// reads in an order of its own.
    reads_back: Option<Range<usize>>,
    backlog: Option<Backlog>,
}

/// Writes that are checked after each so many of them (fio's `verify_backlog`).
#[derive(Debug)]
struct Backlog {
    every: usize,
    batch: usize,
    /// Offsets and lengths of those since the last check.
    written: Vec<(u64, u32)>,
    /// Of this check: how many were read back.
    checked: usize,
}

impl Verified {
    /// The half of a clone whose range begins at `start`. With `reads_back` it reads what the log
    /// knows of; else it does what the job says.
    pub fn new(
        shared: Arc<Verification>,
        options: &JobOptions,
        start: u64,
        reads_back: bool,
    ) -> Verified {
        let unit = shared.identity().unit;
        let units_per_read = (options.block_size / unit).max(1) as usize;
        let places = if shared.log().is_some() { units_per_read } else { 0 };
        let every = options.verify.backlog as usize;
        let batch = options.verify.backlog_batch.map_or(every, |batch| batch as usize);
        let has_backlog = every > 0 && !reads_back && options.writes_checkable();
        Verified {
            checker: shared.checker(),
            fatal: options.verify.fatal,
            start,
            unit: u64::from(unit),
            seen: vec![Place::default(); places * options.io_depth as usize].into(),
            units_per_read,
            reads_back: (reads_back && shared.log().is_some()).then_some(0..0),
            backlog: has_backlog.then(|| Backlog::new(every, batch, options.io_depth)),
            shared,
        }
    }

    /// Does it read what the log knows of, and not what the job says?
    pub fn reads_back(&self) -> bool {
        self.reads_back.is_some()
    }

    /// Is nothing more to be submitted?
    #[inline]
    pub fn is_given_up(&self) -> bool {
        self.shared.is_given_up()
    }

    /// The next piece to read back; `None` once there is no more.
    pub fn next_known(&mut self) -> Option<Piece> {
        let (log, chunk) = (self.shared.log()?, self.reads_back.as_mut()?);
        let units = log.next_known(chunk, self.units_per_read)?;
        let len = units.len() as u64 * self.unit;
        Some(self.piece(log.offset_of(units.start), len as u32))
    }

    /// May writes that come back bring something to check?
    pub fn has_backlog(&self) -> bool {
        self.backlog.is_some()
    }

    /// The next piece of the backlog, if it is its turn.
    #[inline]
    pub fn next_of_backlog(&mut self) -> Option<Piece> {
        let (offset, len) = self.backlog.as_mut()?.next()?;
        Some(self.piece(offset, len))
    }

    fn piece(&self, offset: u64, len: u32) -> Piece {
        Piece { file: 0, way: 0, offset: offset.wrapping_sub(self.start), len }
    }

    /// Takes the place of a write or a trim; `false` while another one is in flight there.
    #[inline]
    pub fn claim(&self, piece: &Piece) -> bool {
        match self.shared.log() {
            Some(log) if piece.way > 0 => {
                let units = log.units(self.start + piece.offset, u64::from(piece.len));
                log.claim(units, piece.way == 2)
            }
            _ => true,
        }
    }

    /// Fills what is to be written; remembers of what is to be read what it should be.
    pub fn prepare(&mut self, op: &mut Op) {
        let Some(log) = self.shared.log() else { return };
        let units = log.units(op.offset, op.len);
        match op.kind {
            OpKind::Write => {
                let Some(Some(block)) = op.data.slices_mut().next() else { return };
                let identity = self.shared.identity();
                let blocks = block.chunks_exact_mut(self.unit as usize);
                for (at, block) in units.zip(blocks) {
                    let (offset, generation) = (log.offset_of(at), log.place(at).begun());
                    let write = Write { offset, stamp: identity.stamp, generation };
                    identity.recipe.fill(write, block);
                }
            }
            OpKind::Read => {
                let first = op.tag as usize * self.units_per_read;
                let seen = &mut self.seen[first..first + self.units_per_read];
                seen.iter_mut().zip(units).for_each(|(seen, at)| *seen = log.place(at));
            }
            _ => {}
        }
    }

    /// Notes that an operation is back. Blocks that were read are checked; `false`: the job is to
    /// end.
    pub fn complete(&mut self, op: &mut Op, done: bool) -> bool {
        match (op.kind, self.shared.log()) {
            (OpKind::Read, log) if done => {
                let good = match log {
                    Some(_) => self.check_known(op),
                    None => self.check_unknown(op),
                };
                if !good && self.fatal {
                    self.shared.give_up();
                }
                good || !self.fatal
            }
            (OpKind::Write | OpKind::Discard, Some(log)) => {
                let trim = op.kind == OpKind::Discard;
                log.settle(log.units(op.offset, op.len), done, trim);
                if let (Some(backlog), true, false) = (&mut self.backlog, done, trim) {
                    backlog.add(op.offset, op.len as u32);
                }
                true
            }
            _ => true,
        }
    }

    fn check_known(&mut self, op: &mut Op) -> bool {
        let Verified { shared, checker, seen, unit, units_per_read, .. } = self;
        let (Some(log), Some(Some(block))) = (shared.log(), op.data.slices_mut().next()) else {
            return false;
        };
        let units = log.units(op.offset, op.len);
        let seen = seen.iter().skip(op.tag as usize * *units_per_read);
        let blocks = block.chunks_exact_mut(*unit as usize);
        let mut good = true;
        for ((at, &seen), block) in units.zip(seen).zip(blocks) {
            let now = log.place(at);
            if seen.in_flight() || seen != now {
                if !now.is_untouched() {
                    checker.note_race();
                }
            } else if let Some(expected) = log.expectation(seen) {
                good &= checker.check(log.offset_of(at), expected, block);
            }
        }
        good
    }

    fn check_unknown(&mut self, op: &mut Op) -> bool {
        let Some(Some(block)) = op.data.slices_mut().next() else { return false };
        let len = (op.len as usize).min(block.len());
        let mut good = true;
        let places = (op.offset..).step_by(self.unit as usize);
        let blocks = block[..len].chunks_exact_mut(self.unit as usize);
        for (offset, block) in places.zip(blocks) {
            good &= self.checker.check(offset, Expected::Any, block);
        }
        good
    }

    /// What was found; `None` if this clone had nothing to check.
    pub fn report(self) -> Option<VerifyReport> {
        let checks = self.reads_back.is_some() || self.shared.log().is_none();
        let report = self.checker.report();
        (checks || report.checked > 0 || report.raced > 0).then_some(report)
    }
}

impl Backlog {
    fn new(every: usize, batch: usize, depth: u32) -> Backlog {
        // Those that are in flight when enough are back belong to the next check.
        let written = Vec::with_capacity(every.saturating_add(depth as usize));
        Backlog { every, batch, written, checked: 0 }
    }

    fn add(&mut self, offset: u64, len: u32) {
        self.written.push((offset, len));
    }

    #[inline]
    fn next(&mut self) -> Option<(u64, u32)> {
        let due = self.written.get(..self.every)?;
        if self.checked == self.batch {
            self.checked = 0;
            self.written.drain(..self.every);
            return None;
        }
        let piece = due[self.checked % self.every];
        self.checked += 1;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_checked_as_often_as_asked_for() {
        for (every, batch, wanted) in
            [(3, 3, &[0, 1, 2][..]), (3, 1, &[0]), (2, 5, &[0, 1, 0, 1, 0])]
        {
            let mut backlog = Backlog::new(every, batch, 1);
            for round in 0..2 {
                for at in 0..every as u64 {
                    assert_eq!(backlog.next(), None, "round {round}");
                    backlog.add(at, 1);
                }
                let checked: Vec<u64> =
                    std::iter::from_fn(|| backlog.next()).map(|piece| piece.0).collect();
                assert_eq!(checked, wanted, "round {round}");
            }
        }
    }
}
