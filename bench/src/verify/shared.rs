//! What the clones of a verified job share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use oxblock_engine::{Error, ErrorKind};

use super::block::Recipe;
use super::checker::Checker;
use super::log::WriteLog;
use super::state;
use crate::generate::{Budget, Pieces};
use crate::options::{JobOptions, Plan};

/// The logs of a verified job, and what its blocks are made from.
#[derive(Debug)]
pub(crate) struct Verification {
    pub recipe: Recipe,
    pub stamp: u64,
    /// Is the stamp that of the run which wrote the blocks?
    knows_stamp: bool,
    /// Bytes for each header.
    pub unit: u32,
    /// Units of the largest log.
    pub most_units: usize,
    /// One for each file of the job; none for a job that only reads and has no state: a block that
    /// reads as one that belongs there is good.
    logs: Vec<WriteLog>,
    /// What the target writes whole or not at all, bytes.
    atomic: u32,
    /// `verify_fatal` and a block that is bad: nothing more is to be done.
    given_up: AtomicBool,
}

impl Verification {
    /// Readies the logs of a job, one for each of `plans`: new ones, those of an earlier run, or
    /// ones made by going through the steps of that run again, until `stop` is set. `None` for a
    /// job that is not verified.
    ///
    /// Errors: no memory, a state that cannot be made or opened, or is another job's.
    pub fn new(
        options: &JobOptions,
        plans: &[Plan],
        stamp: u64,
        atomic: u32,
        stop: &AtomicBool,
    ) -> Result<Option<Verification>, Error> {
        let Some(recipe) = options.recipe() else { return Ok(None) };
        let verify = &options.verify;
        let mut all = Verification {
            recipe,
            stamp,
            knows_stamp: verify.state_load || options.writes_checkable(),
            unit: options.verify_unit_of(plans),
            most_units: 0,
            logs: Vec::with_capacity(plans.len()),
            atomic,
            given_up: AtomicBool::new(false),
        };
        let replays = verify.only && options.rw.writes() && !verify.state_load;
        if !options.writes_checkable() && !verify.state_load && !replays {
            return Ok(Some(all));
        }
        for (file, plan) in plans.iter().enumerate() {
            let log = all.log_for(options, file, plan)?;
            all.most_units = all.most_units.max(log.count());
            all.logs.push(match verify.trims_to_zero {
                true => log,
                false => log.trims_to_anything(),
            });
        }
        if replays {
            all.replay(options, plans, stop);
        }
        Ok(Some(all))
    }

    fn log_for(
        &mut self,
        options: &JobOptions,
        file: usize,
        plan: &Plan,
    ) -> Result<WriteLog, Error> {
        let identity = options
            .identity(&self.recipe, plan, self.unit, self.stamp)
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        let path = options.verify_state_path(file);
        if options.verify.state_load {
            // Of the first state on, all must be of one run.
            let first = file == 0;
            let insists = options.is_given("randseed") || !first;
            let (log, found) = state::load(&path, &identity, insists)?;
            if !first && found.stamp != self.stamp {
                let text = format!("the verify state in {} is that of another run", path.display());
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            (self.recipe, self.stamp) = (found.recipe, found.stamp);
            return Ok(log);
        }
        if options.verify.state_save {
            return state::create(&path, &identity);
        }
        WriteLog::in_memory(identity.start, identity.unit, identity.count)
            .map_err(|error| Error::from(error).context("the log of what is written and verified"))
    }

    /// A checker for one clone.
    pub fn checker(&self) -> Checker {
        Checker::new(self.recipe.clone(), self.knows_stamp.then_some(self.stamp), self.atomic)
    }

    /// Does the job know what was written?
    pub fn has_logs(&self) -> bool {
        !self.logs.is_empty()
    }

    /// The log of one file, if there are any.
    #[inline]
    pub fn log(&self, file: usize) -> Option<&WriteLog> {
        self.logs.get(file)
    }

    /// Ends the job: a block is bad.
    pub fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }

    #[inline]
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Relaxed)
    }

    /// Writes into the logs what the clones of a job write.
    fn replay(&self, options: &JobOptions, plans: &[Plan], stop: &AtomicBool) {
        for clone in 0..options.num_jobs as usize {
            let own = options.files_of(clone, plans.len());
            let plans = options.ranges_of(clone, &plans[own.clone()]);
            let Some(&(first, start)) = plans.first() else { continue };
            let mut pieces = Pieces::new(options, &plans, options.clone_seed(clone as u64));
            let mut budget = Budget::new(options, &first);
            while !budget.is_spent() && !stop.load(Relaxed) {
                let piece = pieces.next();
                budget.spend(piece.len);
                if let (Some(log), 1..) = (self.log(own.start + usize::from(piece.file)), piece.way)
                {
                    let offset = start.wrapping_add(piece.offset);
                    let units = log.units(offset, u64::from(piece.len));
                    log.claim(units.clone(), piece.way == 2);
                    log.settle(units, true, piece.way == 2);
                }
            }
        }
    }
}
