//! `oxblock bench --table`: what the project promises, measured, beside what others reach.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use oxblock_bench::options::{JobOptions, Rw};
use oxblock_bench::peers::{self, PEERS, Peer};
use oxblock_bench::report::CloneReport;
use oxblock_bench::run::run as run_job;
use oxblock_engine::{Engine, Error, Options};
use oxblock_mem::thread_usage::ThreadUsage;

use super::progress::watched;
use super::rounds::lay_out_new;
use crate::target::{Processors, Target, TargetSpec, Wants};

/// How long each row is measured, and how long before that it runs uncounted.
const RUNTIME: Duration = Duration::from_secs(3);
const RAMP: Duration = Duration::from_millis(200);
/// How long the idle engine is watched.
const IDLE: Duration = Duration::from_secs(2);

/// Measures and prints each row. `given` may set the runtime.
///
/// Errors: a target that cannot be opened, I/O that fails.
pub fn run(given: &JobOptions, stop: &Arc<AtomicBool>) -> Result<ExitCode, Error> {
    println!("{}", peers::heading());
    let mut good = true;
    for peer in &PEERS {
        if stop.load(Relaxed) {
            return Ok(ExitCode::FAILURE);
        }
        let clone = measure(peer, given.runtime.unwrap_or(RUNTIME), stop)?;
        good &= clone.errno() == 0;
        println!("{}", peers::line(peer, &clone));
    }
    let share = idle_share()?;
    println!("idle engine: {share:.3} % of a core (goal: below 1 %; SPDK: 100 %)");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(peer: &Peer, runtime: Duration, stop: &Arc<AtomicBool>) -> Result<CloneReport, Error> {
    let options = JobOptions {
        name: peer.what.to_owned(),
        rw: Rw::RandRead,
        io_depth: peer.io_depth,
        runtime: Some(runtime),
        ramp_time: RAMP,
        ..JobOptions::default()
    };
    let jobs = [options.clone()];
    let is_soft = peer.target.starts_with("soft");
    let target = Target::open(
        &TargetSpec::parse(peer.target)?,
        &Wants::of(&jobs, Processors::of(is_soft).jobs[..1].to_vec()),
    )?;
    let result = lay_out_new(&target, stop).and_then(|()| {
        let session = target.session(&[0], stop);
        watched(peer.what, |watch| run_job(&session, options, watch))
    });
    let closed = target.close();
    Ok(result.and_then(|report| closed.map(|()| report))?.group())
}

/// The CPU time that one reactor with nothing to do takes, in hundredths of a core.
fn idle_share() -> Result<f64, Error> {
    let engine = Engine::with_cores(1, Options::default())?;
    let used = || engine.run(0, |_| async { ThreadUsage::now() });
    let before = used()?;
    std::thread::sleep(IDLE);
    let after = used()?;
    engine.shutdown()?;
    let ns = (after.user_ns + after.system_ns) - (before.user_ns + before.system_ns);
    Ok(100.0 * ns as f64 / IDLE.as_nanos() as f64)
}
