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
use crate::verify::{Checker, Expected, Place, Verification, Write, WriteLog};

/// The verifying half of one clone's loop.
#[derive(Debug)]
pub(crate) struct Verified {
    shared: Arc<Verification>,
    checker: Checker,
    fatal: bool,
    /// The clone's files among those of the job.
    files: Range<usize>,
    /// First byte of the clone's range in the first of them.
    start: u64,
    unit: u64,
    /// By tag and unit of a read: what the log said when it was submitted.
    seen: Box<[Place]>,
    units_per_read: usize,
    /// `None`: it writes, or reads in an order of its own.
    reads_back: Option<ReadBack>,
    backlog: Option<Backlog>,
}

/// Where reading back has come to.
#[derive(Debug, Default)]
struct ReadBack {
    /// Which of the clone's files.
    file: usize,
    /// What is left of the units that it took last.
    units: Range<usize>,
}

/// Writes that are checked after each so many of them (fio's `verify_backlog`).
#[derive(Debug)]
struct Backlog {
    every: usize,
    batch: usize,
    /// Those since the last check.
    written: Vec<Written>,
    /// Of this check: how many were read back.
    checked: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Written {
    file: u16,
    offset: u64,
    len: u32,
}

impl Verified {
    /// The half of a clone with these files of the job, whose range begins at `start`. With
    /// `reads_back` it reads what the logs know of; else it does what the job says.
    pub fn new(
        shared: Arc<Verification>,
        options: &JobOptions,
        files: Range<usize>,
        start: u64,
        reads_back: bool,
    ) -> Verified {
        let unit = shared.unit;
        let units_per_read = (options.block_size / unit).max(1) as usize;
        let places = if shared.has_logs() { units_per_read } else { 0 };
        let every = options.verify.backlog as usize;
        let batch = options.verify.backlog_batch.map_or(every, |batch| batch as usize);
        let has_backlog = every > 0 && !reads_back && options.writes_checkable();
        Verified {
            checker: shared.checker(),
            fatal: options.verify.fatal,
            files,
            start,
            unit: u64::from(unit),
            seen: vec![Place::default(); places * options.io_depth as usize].into(),
            units_per_read,
            reads_back: (reads_back && shared.has_logs()).then(ReadBack::default),
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
        let ReadBack { file, units } = self.reads_back.as_mut()?;
        loop {
            let number = self.files.start + *file;
            let log = self.shared.log(number).filter(|_| self.files.contains(&number))?;
            if let Some(units) = log.next_known(units, self.units_per_read) {
                let (offset, len) = (log.offset_of(units.start), units.len() as u64 * self.unit);
                let written = Written { file: *file as u16, offset, len: len as u32 };
                return Some(self.piece(written));
            }
            (*file, *units) = (*file + 1, 0..0);
        }
    }

    /// May writes that come back bring something to check?
    pub fn has_backlog(&self) -> bool {
        self.backlog.is_some()
    }

    /// The next piece of the backlog, if it is its turn.
    #[inline]
    pub fn next_of_backlog(&mut self) -> Option<Piece> {
        let written = self.backlog.as_mut()?.next()?;
        Some(self.piece(written))
    }

    fn piece(&self, Written { file, offset, len }: Written) -> Piece {
        Piece { file, way: 0, offset: offset.wrapping_sub(self.start), len }
    }

    /// Takes the place of a write or a trim; `false` while another one is in flight there.
    #[inline]
    pub fn claim(&self, piece: &Piece) -> bool {
        match self.log(piece.file) {
            Some(log) if piece.way > 0 => {
                let offset = self.start.wrapping_add(piece.offset);
                log.claim(log.units(offset, u64::from(piece.len)), piece.way == 2)
            }
            _ => true,
        }
    }

    /// The log of one of the clone's files.
    #[inline]
    fn log(&self, file: u16) -> Option<&WriteLog> {
        self.shared.log(self.files.start + usize::from(file))
    }

    /// Which of the job's files one of the clone's is, as headers have it.
    #[inline]
    fn number_of(&self, file: u16) -> u16 {
        (self.files.start as u16).wrapping_add(file)
    }

    /// Fills what is to be written to one of the clone's files; remembers of what is to be read
    /// what it should be.
    pub fn prepare(&mut self, op: &mut Op, file: u16) {
        let number = self.number_of(file);
        let Some(log) = self.shared.log(usize::from(number)) else { return };
        let units = log.units(op.offset, op.len);
        match op.kind {
            OpKind::Write => {
                let Some(Some(block)) = op.data.slices_mut().next() else { return };
                let stamp = self.shared.stamp;
                let blocks = block.chunks_exact_mut(self.unit as usize);
                for (at, block) in units.zip(blocks) {
                    let (offset, generation) = (log.offset_of(at), log.place(at).begun());
                    let write = Write { file: number, offset, stamp, generation };
                    self.shared.recipe.fill(write, block);
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

    /// Notes that an operation on one of the clone's files is back. Blocks that were read are
    /// checked; `false`: the job is to end.
    pub fn complete(&mut self, op: &mut Op, file: u16, done: bool) -> bool {
        match op.kind {
            OpKind::Read if done => {
                let good = match self.shared.has_logs() {
                    true => self.check_known(op, file),
                    false => self.check_unknown(op, file),
                };
                if !good && self.fatal {
                    self.shared.give_up();
                }
                good || !self.fatal
            }
            OpKind::Write | OpKind::Discard => {
                let trim = op.kind == OpKind::Discard;
                if let Some(log) = self.log(file) {
                    log.settle(log.units(op.offset, op.len), done, trim);
                }
                if let (Some(backlog), true, false) = (&mut self.backlog, done, trim) {
                    backlog.add(Written { file, offset: op.offset, len: op.len as u32 });
                }
                true
            }
            _ => true,
        }
    }

    fn check_known(&mut self, op: &mut Op, file: u16) -> bool {
        let number = self.number_of(file);
        let Verified { shared, checker, seen, unit, units_per_read, .. } = self;
        let log = shared.log(usize::from(number));
        let (Some(log), Some(Some(block))) = (log, op.data.slices_mut().next()) else {
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
                good &= checker.check(number, log.offset_of(at), expected, block);
            }
        }
        good
    }

    fn check_unknown(&mut self, op: &mut Op, file: u16) -> bool {
        let number = self.number_of(file);
        let Some(Some(block)) = op.data.slices_mut().next() else { return false };
        let len = (op.len as usize).min(block.len());
        let mut good = true;
        let places = (op.offset..).step_by(self.unit as usize);
        let blocks = block[..len].chunks_exact_mut(self.unit as usize);
        for (offset, block) in places.zip(blocks) {
            good &= self.checker.check(number, offset, Expected::Any, block);
        }
        good
    }

    /// What was found; `None` if this clone had nothing to check.
    pub fn report(self) -> Option<VerifyReport> {
        let checks = self.reads_back.is_some() || !self.shared.has_logs();
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

    fn add(&mut self, written: Written) {
        self.written.push(written);
    }

    #[inline]
    fn next(&mut self) -> Option<Written> {
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
                    backlog.add(Written { file: 0, offset: at, len: 1 });
                }
                let checked: Vec<u64> =
                    std::iter::from_fn(|| backlog.next()).map(|piece| piece.offset).collect();
                assert_eq!(checked, wanted, "round {round}");
            }
        }
    }
}
