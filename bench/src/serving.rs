//! What the cores spend that serve a target rather than run jobs on it: the software controller's.

use oxblock_engine::{Engine, Error};
use oxblock_mem::counting_alloc::{allocations, is_installed};
use oxblock_mem::thread_usage::ThreadUsage;

use crate::report::{Allocations, ServingReport};
use crate::stats::CpuUse;

/// One serving core while a job runs.
pub(crate) struct Serving {
    core: usize,
    /// I/Os of the job that were done before.
    ios: u64,
    start: Sample,
    /// Allocations that taking a sample makes itself.
    own: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    usage: ThreadUsage,
    allocations: u64,
}

impl Sample {
    fn take(engine: &Engine, core: usize) -> Result<Sample, Error> {
        engine.run(core, |_| async {
            Sample { usage: ThreadUsage::now(), allocations: allocations() }
        })
    }
}

impl Serving {
    /// Begins to count on a core, the job having done `ios` I/Os.
    pub fn begin(engine: &Engine, core: usize, ios: u64) -> Result<Serving, Error> {
        let first = Sample::take(engine, core)?;
        let start = Sample::take(engine, core)?;
        let own = start.allocations - first.allocations;
        Ok(Serving { core, ios, start, own })
    }

    /// What the core spent since, the job having done `ios` I/Os now.
    pub fn end(&self, engine: &Engine, ios: u64) -> Result<ServingReport, Error> {
        let end = Sample::take(engine, self.core)?;
        let ios = ios.saturating_sub(self.ios);
        let allocated = end.allocations - self.start.allocations;
        let counted = Allocations { count: allocated.saturating_sub(self.own), ios };
        Ok(ServingReport {
            core: self.core,
            ios,
            cpu: CpuUse::between(self.start.usage, end.usage),
            allocations: is_installed().then_some(counted),
        })
    }
}
