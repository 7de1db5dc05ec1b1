//! What the clones of a verified job share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use oxblock_engine::Error;

use super::checker::Checker;
use super::log::WriteLog;
use super::state::{self, Identity};
use crate::generate::{Budget, Generator};
use crate::options::{JobOptions, OptionError, Plan};

/// The log of a verified job, and what its blocks are made from.
#[derive(Debug)]
pub(crate) struct Verification {
    identity: Identity,
    /// Is the stamp that of the run which wrote the blocks?
    knows_stamp: bool,
    /// `None` for a job that only reads and has no state: a block that reads as one that belongs
    /// there is good.
    log: Option<WriteLog>,
    /// What the target writes whole or not at all, bytes.
    atomic: u32,
    /// `verify_fatal` and a block that is bad: nothing more is to be done.
    given_up: AtomicBool,
}

impl Verification {
    /// Readies the log of a job: a new one, that of an earlier run, or one made by going through
    /// the steps of that run again, until `stop` is set. `None` for a job that is not verified.
    ///
    /// Errors: no memory, a state that cannot be made or opened, or is another job's.
    pub fn new(
        options: &JobOptions,
        plan: &Plan,
        stamp: u64,
        atomic: u32,
        stop: &AtomicBool,
    ) -> Result<Option<Verification>, Error> {
        let refused =
            |error: OptionError| Error::new(oxblock_engine::ErrorKind::Invalid, error.to_string());
        let Some(mut identity) = options.identity(plan, stamp).map_err(refused)? else {
            return Ok(None);
        };
        let verify = &options.verify;
        let in_memory = |identity: &Identity| {
            WriteLog::in_memory(identity.start, identity.unit, identity.count).map_err(|error| {
                Error::from(error).context("the log of what is written and verified")
            })
        };
        let replays = verify.only && options.rw.writes();
        let log = if verify.state_load {
            let insists = options.is_given("randseed");
            let (log, found) = state::load(&options.verify_state_path(), &identity, insists)?;
            identity = found;
            Some(log)
        } else if replays {
            let log = in_memory(&identity)?;
            replay(&log, options, plan, stop);
            Some(log)
        } else if !options.writes_checkable() {
            None
        } else if verify.state_save {
            Some(state::create(&options.verify_state_path(), &identity)?)
        } else {
            Some(in_memory(&identity)?)
        };
        let log = log.map(|log| match verify.trims_to_zero {
            true => log,
            false => log.trims_to_anything(),
        });
        let knows_stamp = verify.state_load || options.writes_checkable();
        let given_up = AtomicBool::new(false);
        Ok(Some(Verification { identity, knows_stamp, log, atomic, given_up }))
    }

    /// A checker for one clone.
    pub fn checker(&self) -> Checker {
        let stamp = self.knows_stamp.then_some(self.identity.stamp);
        Checker::new(self.identity.recipe.clone(), stamp, self.atomic)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn log(&self) -> Option<&WriteLog> {
        self.log.as_ref()
    }

    /// Ends the job: a block is bad.
    pub fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }

    #[inline]
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Relaxed)
    }
}

/// Writes into the log what the clones of a job write.
fn replay(log: &WriteLog, options: &JobOptions, plan: &Plan, stop: &AtomicBool) {
    for clone in 0..u64::from(options.num_jobs) {
        let start = plan.start + plan.stride * clone;
        let mut generator = Generator::new(options, plan, options.clone_seed(clone));
        let mut budget = Budget::new(options, plan);
        while !budget.is_spent() && !stop.load(Relaxed) {
            let piece = generator.next();
            budget.spend(piece.len);
            if piece.way > 0 {
                let units = log.units(start + piece.offset, u64::from(piece.len));
                log.claim(units.clone(), piece.way == 2);
                log.settle(units, true, piece.way == 2);
            }
        }
    }
}
