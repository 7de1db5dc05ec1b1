//! Runs a job: its clones on their cores, its phases, and the view of it while it runs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::Thread;
use std::time::Instant;

use oxblock_engine::{Channel, Core, Counter, Engine, Error, ErrorKind, Node};

use crate::job::{
    Outcome, Phase, Progress, ShapedWork, Verified, Watching, Worker, buffers, run_phase,
};
use crate::log::Pipe;
use crate::log::record::Recorder;
use crate::log::write::Writer;
use crate::options::{JobOptions, Plan, Shape};
use crate::pattern::Steps;
use crate::report::{CloneReport, DeviceReport, Report};
use crate::serving::Serving;
use crate::stats::DirectionStats;
use crate::units::Size;
use crate::verify::Verification;

mod view;

pub use view::Snapshot;
use view::{Mark, Watched, watch_clones};

/// Where jobs run.
pub struct Session<'a> {
    /// The engine.
    pub engine: &'a Engine,
    /// The node that is measured.
    pub node: &'a Arc<Node>,
    /// What it is, in words.
    pub target: &'a str,
    /// Cores of the engine for the clones; clone `n` runs on core `n` of these, and over again.
    pub cores: &'a [usize],
    /// Cores that serve the target (a software controller), to be accounted for beside the jobs'.
    pub serving: &'a [usize],
    /// Set to end the job early, with what there is.
    pub stop: &'a Arc<AtomicBool>,
}

/// Runs one job, and shows where it stands ten times a second.
///
/// Errors: options that do not fit the target, a target that cannot be opened, no memory. I/O that
/// fails and blocks that are bad do not make this an error: they end the job and are in the report.
pub fn run(
    session: &Session<'_>,
    options: JobOptions,
    watch: &mut dyn FnMut(&Snapshot),
) -> Result<Report, Error> {
    run_on_files(session, std::slice::from_ref(session.node), options, watch)
}

/// As [`run`], on several files: all clones use them all, unless each has its own
/// ([`Files::are_own`](crate::options::Files::are_own)), in the order of the clones.
///
/// Errors: as [`run`].
pub fn run_on_files(
    session: &Session<'_>,
    nodes: &[Arc<Node>],
    mut options: JobOptions,
    watch: &mut dyn FnMut(&Snapshot),
) -> Result<Report, Error> {
    check_nodes(session, nodes, &options)?;
    let sizes = nodes.iter().map(|node| (node.limits().length, node.limits().block_size));
    let sizes: Vec<(u64, u32)> = sizes.collect();
    let mut plans = Vec::with_capacity(sizes.len());
    for clone in 0..options.num_jobs as usize {
        let files = options.files_of(clone, sizes.len());
        if plans.len() < files.end {
            plans.extend(options.plan_files(&sizes[files]).map_err(invalid)?);
        }
    }
    let plan =
        *plans.first().ok_or_else(|| Error::new(ErrorKind::Invalid, "a job needs a file"))?;
    let stamp = session.engine.run(session.cores[0], |core| async move { core.random() })?;
    if !options.rand_repeat && !options.is_given("randseed") {
        options.seed = stamp;
    }
    let atomic = sizes.iter().map(|size| size.1).min().unwrap_or(1);
    let verification = Verification::new(&options, &plans, stamp, atomic, session.stop)?;
    let mut job = Job {
        plan,
        verification: verification.map(Arc::new),
        writing: AtomicUsize::new(options.num_jobs as usize),
        files: nodes.iter().cloned().zip(plans).collect(),
        counted: nodes.iter().map(|node| node.counters()).collect(),
        stop: session.stop.clone(),
        aborted: AtomicBool::new(false),
        ready: AtomicUsize::new(0),
        running: AtomicUsize::new(options.num_jobs as usize),
        owner: std::thread::current(),
        pipes: Vec::new(),
        options: Arc::new(options),
    };
    // Whatever comes of the clones, the logs are written and their thread is ended.
    let writer = Writer::start(&job.options)?;
    job.pipes = writer.iter().flat_map(Writer::pipes).cloned().collect();
    let result = run_clones(session, &Arc::new(job), watch);
    let lost = writer.map_or(Ok(0), Writer::finish);
    result.and_then(|report| Ok(Report { log_entries_lost: lost?, ..report }))
}

/// Can the nodes do what the job asks of them?
fn check_nodes(
    session: &Session<'_>,
    nodes: &[Arc<Node>],
    options: &JobOptions,
) -> Result<(), Error> {
    if session.cores.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "a job needs at least one core"));
    }
    let writes = options.rw.writes() && !options.verify.only;
    if writes && nodes.iter().any(|node| node.limits().read_only) {
        let text = format!("{} is read-only; use rw=read or randread", session.target);
        return Err(Error::new(ErrorKind::ReadOnly, text));
    }
    if options.rw.trims() && writes && nodes.iter().any(|node| node.limits().max_discard == 0) {
        let text = format!("option `rw`: {} has no discard: it cannot trim", session.target);
        return Err(Error::new(ErrorKind::NotSupported, text));
    }
    Ok(())
}

/// Writes the whole target once, so that reads find data that was written rather than holes.
///
/// Errors: as [`run`], and an I/O that failed.
pub fn lay_out(
    session: &Session<'_>,
    length: u64,
    watch: &mut dyn FnMut(&Snapshot),
) -> Result<(), Error> {
    let unit = u64::from(session.node.limits().block_size.max(1));
    let block_size = [1 << 20, 64 << 10, 4 << 10, unit]
        .into_iter()
        .find(|&size| length.is_multiple_of(size) && size % unit == 0)
        .unwrap_or(unit);
    let options = JobOptions {
        name: "layout".to_owned(),
        rw: crate::options::Rw::Write,
        block_size: block_size as u32,
        io_depth: 4,
        size: Some(Size::Bytes(length)),
        ..JobOptions::default()
    };
    let report = run(session, options, watch)?;
    match report.group().fault {
        Some(failed) => Err(Error::from(failed.fault).context("laying out the target")),
        None => Ok(()),
    }
}

/// What the clones of one job share.
struct Job {
    options: Arc<JobOptions>,
    /// The plan of the first file.
    plan: Plan,
    files: Vec<(Arc<Node>, Plan)>,
    /// What the drivers of the files had counted of their devices before.
    counted: Vec<Vec<Counter>>,
    /// Of a job that is verified.
    verification: Option<Arc<Verification>>,
    /// Clones that have not done yet what the job says; then those that are left read it back.
    writing: AtomicUsize,
    stop: Arc<AtomicBool>,
    /// A clone could not begin: the others need not.
    aborted: AtomicBool,
    ready: AtomicUsize,
    running: AtomicUsize,
    /// Who waits for the clones to end.
    owner: Thread,
    /// What each clone records its logs to; empty where it has none.
    pipes: Vec<Arc<Pipe>>,
}

impl Job {
    /// What the drivers of the files have counted of their devices since the start.
    fn devices(&self) -> Vec<DeviceReport> {
        let files = self.files.iter().zip(&self.counted);
        let device = |((node, _), before): (&(Arc<Node>, Plan), &Vec<Counter>)| DeviceReport {
            node: node.name().to_string(),
            counters: Counter::since(node.counters(), before),
        };
        files.map(device).filter(|device| !device.counters.is_empty()).collect()
    }
}

fn run_clones(
    session: &Session<'_>,
    job: &Arc<Job>,
    watch: &mut dyn FnMut(&Snapshot),
) -> Result<Report, Error> {
    let count = job.options.num_jobs as usize;
    let progress: Vec<Arc<Progress>> = (0..count).map(|_| Arc::default()).collect();
    let mut handles = Vec::with_capacity(count);
    for (number, progress) in progress.iter().enumerate() {
        let id = session.cores[number % session.cores.len()];
        let remote = session.engine.remote(id).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("the engine has no core {id}"))
        })?;
        let (job, progress) = (job.clone(), progress.clone());
        handles.push(remote.spawn(move |core| async move {
            let _ended = Ended(job.clone());
            let result = run_clone(&core, &job, number, &progress).await;
            job.aborted.fetch_or(result.is_err(), SeqCst);
            result
        }));
    }
    let mut serving = Vec::new();
    let Watched { samples, series, steadiness } =
        watch_clones(job, session.target, &progress, &mut |now, snapshot| {
            if serving.is_empty() && now.total() > 0 {
                serving = begin_serving(session, now.total());
            }
            watch(snapshot);
        });
    let all = Mark::new(Instant::now(), &progress).total();
    let serving = serving.iter().filter_map(|core| core.end(session.engine, all).ok()).collect();
    let mut clones = Vec::with_capacity(count);
    let mut interrupted = false;
    let results: Vec<_> = handles.into_iter().map(|handle| handle.wait()).collect();
    session.engine.check()?;
    for (result, samples) in results.into_iter().zip(samples) {
        let (mut clone, stopped) = result??;
        let [read, write] = samples;
        (clone.read.samples, clone.write.samples) = (read, write);
        clones.push(clone);
        interrupted |= stopped;
    }
    let (options, target) = (job.options.clone(), session.target.to_owned());
    Ok(Report {
        options,
        group_id: 0,
        target,
        clones,
        serving,
        devices: job.devices(),
        series,
        steadiness,
        interrupted,
        log_entries_lost: 0,
    })
}

/// Begins to count on the serving cores. A core that does not answer is left out: the engine
/// failed, which the job reports.
fn begin_serving(session: &Session<'_>, ios: u64) -> Vec<Serving> {
    let cores = session.serving.iter();
    cores.filter_map(|&core| Serving::begin(session.engine, core, ios).ok()).collect()
}

/// Counts a clone out, however it ends.
struct Ended(Arc<Job>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
        self.0.owner.unpark();
    }
}

/// Counts a clone out that has done what the job says, or cannot.
struct Writing<'a>(&'a Job);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, SeqCst);
    }
}

async fn run_clone(
    core: &Core,
    job: &Job,
    number: usize,
    progress: &Arc<Progress>,
) -> Result<(CloneReport, bool), Error> {
    let options = &job.options;
    let writing = Writing(job);
    let files = &job.files[options.files_of(number, job.files.len())];
    let mut channels = open(core, files).await?.into_iter();
    let Some(channel) = channels.next() else {
        return Err(Error::new(ErrorKind::Invalid, "a job needs a file"));
    };
    let buffers = buffers(core, options.io_depth, options.block_size, &options.contents)?;
    // All clones begin together.
    job.ready.fetch_add(1, SeqCst);
    while job.ready.load(SeqCst) < options.num_jobs as usize && !job.aborted.load(SeqCst) {
        core.yield_now().await;
    }
    let phases = Phases { job, number };
    let start = |phase: Phase, shaped: Option<ShapedWork>, buffers, channel, others| {
        let worker = Worker::new(channel, phase, buffers, job.stop.clone(), progress.clone());
        match shaped {
            Some(shaped) => worker.shaped(shaped, others),
            None => worker,
        }
    };
    progress.checking.store(options.verify.is_on() && !options.writes_checkable(), Relaxed);
    let shaped = phases.shaped().map(|shaped| shaped.watched(phases.watching()));
    let first =
        run_phase(core, start(phases.first(), shaped, buffers, channel, channels.collect())).await;
    drop(writing);
    let Outcome { mut report, buffers, interrupted, failed } = first;
    report.core = core.id();
    if !options.reads_back() || interrupted || failed {
        return Ok((report, interrupted));
    }
    // Another clone may still write what this one would check.
    while job.writing.load(SeqCst) > 0 && !job.aborted.load(SeqCst) {
        core.yield_now().await;
    }
    progress.checking.store(true, Relaxed);
    let mut channels = open(core, files).await?.into_iter();
    let Some(channel) = channels.next() else { return Ok((report, interrupted)) };
    let shaped = phases.shaped_second();
    let worker = start(phases.second(), shaped, buffers, channel, channels.collect());
    let second = run_phase(core, worker).await;
    report.append(second.report);
    Ok((report, second.interrupted))
}

/// Opens a clone's files.
async fn open(core: &Core, files: &[(Arc<Node>, Plan)]) -> Result<Vec<Channel>, Error> {
    let mut channels = Vec::with_capacity(files.len());
    for (node, _) in files {
        channels.push(core.open(node).await?);
    }
    Ok(channels)
}

/// The phases of one clone: the job itself and, where it wrote blocks that can be checked,
/// reading them back.
struct Phases<'a> {
    job: &'a Job,
    number: usize,
}

impl Phases<'_> {
    fn first(&self) -> Phase {
        let options = &self.job.options;
        Phase {
            limit: self.job.plan.limit,
            runtime_ns: options.runtime.map(|time| time.as_nanos() as u64),
            ramp_ns: options.ramp_time.as_nanos() as u64,
            ..self.second()
        }
    }

    fn second(&self) -> Phase {
        let Job { options, plan, .. } = self.job;
        let seed = options.clone_seed(self.number as u64);
        let reads = options.reads_in_hundred();
        Phase {
            steps: Steps::new(options.order(), plan.blocks, reads, seed),
            start: self.start(),
            block_size: options.block_size,
            limit: u64::MAX,
            runtime_ns: None,
            ramp_ns: 0,
        }
    }

    /// The clone's files among those of the job.
    fn files(&self) -> Range<usize> {
        self.job.options.files_of(self.number, self.job.files.len())
    }

    /// The plans of its files, each with where its range starts.
    fn ranges(&self) -> Vec<(Plan, u64)> {
        let plans: Vec<Plan> = self.job.files[self.files()].iter().map(|(_, plan)| *plan).collect();
        self.job.options.ranges_of(self.number, &plans)
    }

    /// First byte of the clone's range, in the first of its files.
    fn start(&self) -> u64 {
        self.ranges().first().map_or(0, |(_, start)| *start)
    }

    /// What the first phase needs beyond the plain loop.
    fn shaped(&self) -> Option<ShapedWork> {
        let options = &self.job.options;
        let has_logs = self.job.verification.as_ref().is_some_and(|shared| shared.has_logs());
        if options.verify.only && has_logs {
            return self.shaped_second();
        }
        let seed = options.clone_seed(self.number as u64);
        let shaped = || ShapedWork::new(options, &self.ranges(), seed);
        options.is_shaped().then(|| shaped().verified(self.verified(false)))
    }

    /// Reading back goes as fast as it can, whatever shape the job has.
    fn shaped_second(&self) -> Option<ShapedWork> {
        let options = &self.job.options;
        let continue_on_error = options.shape.continue_on_error;
        let shape = Shape { continue_on_error, ..Shape::default() };
        let plain = JobOptions { shape, ..JobOptions::clone(options) };
        let plan = Plan { limit: u64::MAX, bytes: u64::MAX, ..self.job.plan };
        let verified = self.verified(true)?;
        Some(ShapedWork::new(&plain, &[(plan, self.start())], 0).verified(Some(verified)))
    }

    /// What is looked at in the first phase as its I/Os complete.
    fn watching(&self) -> Option<Watching> {
        let pipe = self.job.pipes.get(self.number).cloned();
        let options = &self.job.options;
        Watching::new(options, pipe.map(|pipe| Recorder::new(&options.watch.logs, pipe)))
    }

    fn verified(&self, reads_back: bool) -> Option<Verified> {
        let shared = self.job.verification.clone()?;
        let (options, files) = (&self.job.options, self.files());
        Some(Verified::new(shared, options, files, self.start(), reads_back))
    }
}

fn invalid(error: crate::options::OptionError) -> Error {
    Error::new(ErrorKind::Invalid, error.to_string())
}

impl CloneReport {
    /// Adds the phase that followed on the same core.
    fn append(&mut self, next: CloneReport) {
        self.runtime_ns += next.runtime_ns;
        self.read.append(next.read);
        self.write.append(next.write);
        self.trim.append(next.trim);
        self.sync.merge(&next.sync);
        self.errors += next.errors;
        self.cpu.merge(&next.cpu);
        self.depths.merge(&next.depths);
        self.submitted.merge(&next.submitted);
        self.completed.merge(&next.completed);
        if let (Some(mine), Some(more)) = (&mut self.allocations, next.allocations) {
            mine.count += more.count;
            mine.ios += more.ios;
        }
        self.fault = self.fault.or(next.fault);
        if let Some(next) = &next.verify {
            self.verify.get_or_insert_default().merge(next);
        }
    }
}

impl DirectionStats {
    fn append(&mut self, next: DirectionStats) {
        self.runtime_ns += next.runtime_ns;
        self.ios += next.ios;
        self.bytes += next.bytes;
        self.merge_latency(&next);
    }
}
