//! `oxblock bench --table`: what the project promises, measured, beside what others reach.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use oxblock_bench::options::{JobOptions, Rw};
use oxblock_bench::peers::{self, PEERS, Peer};
use oxblock_bench::report::CloneReport;
use oxblock_bench::run::run as run_job;
use oxblock_engine::{Engine, Error, Options};
use oxblock_mem::spsc;
use oxblock_mem::thread_usage::ThreadUsage;

use super::progress::watched;
use super::rounds::lay_out_new;
use crate::target::{Processors, Target, TargetSpec, Wants};

/// How long each row is measured, and how long before that it runs uncounted.
const RUNTIME: Duration = Duration::from_secs(3);
const RAMP: Duration = Duration::from_millis(200);
/// How long each part of the comparison of two cores with one is measured.
const SCALING: Duration = Duration::from_secs(1);
/// Rounds of the word between two cores, and words of each.
const ROUNDS: u32 = 20;
const ROUND: u32 = 5000;
/// Messages to a sleeping core.
const WAKES: usize = 300;
/// How long the idle engine is watched.
const IDLE: Duration = Duration::from_secs(2);

/// Measures and prints each row. `given` may set the runtime.
///
/// Errors: a target that cannot be opened, I/O that fails.
pub fn run(given: &JobOptions, stop: &Arc<AtomicBool>) -> Result<ExitCode, Error> {
    println!("two cores of this machine pass a word to and fro in {:.0} ns", round_trip_ns()?);
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
    println!("a second core on the null leaf: {:.2} times one (goal: 1.9)", scaling(stop)?);
    let share = idle_share()?;
    println!("idle engine: {share:.3} % of a core (goal: below 1 %; SPDK: 100 %)");
    println!("a sleeping core runs a message after {:.1} us, median (goal: below 50)", wake_us()?);
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
    run_on(peer.target, options, stop)
}

/// How many times the I/O of one core two cores do.
fn scaling(stop: &Arc<AtomicBool>) -> Result<f64, Error> {
    let iops = |jobs| {
        let options = JobOptions {
            name: format!("null leaf, cores: {jobs}"),
            rw: Rw::RandRead,
            io_depth: 32,
            num_jobs: jobs,
            runtime: Some(SCALING),
            ramp_time: RAMP,
            ..JobOptions::default()
        };
        let report = run_on("null", options, stop)?;
        Ok::<f64, Error>(report.ios() as f64 / report.runtime_ns.max(1) as f64)
    };
    Ok(iops(2)? / iops(1)?)
}

/// Runs one job on a target of its own.
///
/// Errors: a target that cannot be opened.
pub fn run_on(
    target: &str,
    options: JobOptions,
    stop: &Arc<AtomicBool>,
) -> Result<CloneReport, Error> {
    let (jobs, name) = ([options.clone()], options.name.clone());
    let spec = TargetSpec::parse(target)?;
    let processors = Processors::of(matches!(spec, TargetSpec::Soft(_))).jobs;
    let cores: Vec<usize> = (0..options.num_jobs as usize).collect();
    let cpus = cores.iter().map(|core| processors[core % processors.len()]).collect();
    let target = Target::open(&[spec], &Wants::of(&jobs, cpus))?;
    let result = lay_out_new(&target, stop).and_then(|()| {
        let session = target.session(0, &cores, stop);
        watched(&name, |watch| run_job(&session, options, watch))
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

/// How long a word takes from one core to another and back, in ns: the best of many. What
/// two cores do together, such as a driver and its controller, hangs on it, and a virtual
/// machine's processors move.
fn round_trip_ns() -> Result<f64, Error> {
    let engine = Engine::with_cores(2, Options::default())?;
    let (mut there, mut from_there) = spsc::ring::<u32>(1);
    let (mut back, mut from_back) = spsc::ring::<u32>(1);
    let echo = engine.remote(1).map(|remote| {
        remote.spawn(move |_| async move {
            for _ in 0..ROUNDS * ROUND {
                let word = pop(&mut from_there);
                let _ = back.push(word);
            }
        })
    });
    let best = engine.run(0, move |_| async move {
        let mut best_ns = f64::MAX;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for word in 0..ROUND {
                let _ = there.push(word);
                pop(&mut from_back);
            }
            best_ns = best_ns.min(begun.elapsed().as_nanos() as f64 / f64::from(ROUND));
        }
        best_ns
    })?;
    echo.map_or(Ok(()), |handle| handle.wait())?;
    engine.shutdown()?;
    Ok(best)
}

fn pop(ring: &mut spsc::Consumer<u32>) -> u32 {
    loop {
        if let Some(word) = ring.pop() {
            return word;
        }
        std::hint::spin_loop();
    }
}

/// The median time from sending a message to a sleeping core until it runs there, in us.
fn wake_us() -> Result<f64, Error> {
    let engine = Engine::with_cores(1, Options::default())?;
    let mut times = Vec::new();
    for _ in 0..WAKES {
        std::thread::sleep(Duration::from_millis(2));
        let sent = Instant::now();
        times.push(engine.run(0, move |_| async move { sent.elapsed() })?);
    }
    engine.shutdown()?;
    times.sort_unstable();
    Ok(times[times.len() / 2].as_nanos() as f64 / 1000.0)
}
