//! Runs a job: its clones on their cores, its phases, and the view of it while it runs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::Thread;
use std::time::{Duration, Instant};

use oxblock_engine::{Channel, Core, Engine, Error, ErrorKind, Node};

use crate::job::{
    Outcome, Phase, Progress, ShapedWork, Verified, Watching, Worker, buffers, run_phase,
};
use crate::log::Pipe;
use crate::log::record::Recorder;
use crate::log::write::Writer;
use crate::options::{JobOptions, Plan, Shape};
use crate::pattern::Steps;
use crate::report::{CloneReport, Report};
use crate::series::{Point, Series};
use crate::serving::Serving;
use crate::stats::{DirectionStats, Samples};
use crate::steady::{self, Judge, Steadiness};
use crate::units::Size;
use crate::verify::Verification;

/// How often rates are sampled, as fio does (`bwavgtime`, `iopsavgtime`).
const SAMPLE: Duration = Duration::from_millis(500);
/// How often the caller is shown where the job stands.
const SHOW: Duration = Duration::from_millis(100);

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

/// Where a job stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// Since the start.
    pub elapsed: Duration,
    /// How much of the job is done, 0 to 1.
    pub done: f64,
    /// Reads and writes a second, of late.
    pub iops: [f64; 2],
    /// Bytes a second, of late.
    pub bandwidth: f64,
    /// Reading back and checking.
    pub checking: bool,
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
        watch_clones(job, &progress, &mut |now, snapshot| {
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

/// Waits for the clones; shows where they stand, and samples their rates.
fn watch_clones(
    job: &Job,
    progress: &[Arc<Progress>],
    watch: &mut dyn FnMut(&Mark, &Snapshot),
) -> Watched {
    let begun = Instant::now();
    let mut judged = Judged::new(job, begun);
    let mut samples = vec![<[Samples; 2]>::default(); progress.len()];
    let mut series = Series::default();
    let (mut shown, mut sampled) = (Mark::new(begun, progress), Mark::new(begun, progress));
    while job.running.load(SeqCst) > 0 {
        std::thread::park_timeout(SHOW);
        let now = Mark::new(Instant::now(), progress);
        judged.look(now.at, job, progress);
        if now.at - begun < job.options.ramp_time {
            sampled = now.clone();
        } else if now.at - sampled.at >= SAMPLE {
            for (samples, rate) in samples.iter_mut().zip(now.rates_since(&sampled)) {
                for (samples, rate) in samples.iter_mut().zip(rate) {
                    samples.iops.push(rate);
                    samples.bandwidth.push(rate * job.options.mean_block_size());
                }
            }
            sampled = now.clone();
        }
        if now.at - shown.at >= SHOW {
            watch(&now, &snapshot(job, progress, begun, &now, &shown));
            if shown.at - begun >= job.options.ramp_time {
                series.add(point(job, begun, &now, &shown));
            }
            shown = now;
        }
    }
    Watched { samples, series, steadiness: judged.end() }
}

/// What the watching thread saw.
struct Watched {
    /// Of each clone, reads and writes.
    samples: Vec<[Samples; 2]>,
    series: Series,
    steadiness: Option<Steadiness>,
}

/// Judges how steady the clones are, and ends them when they are.
struct Judged {
    judge: Option<Judge>,
    /// When rates were read last; at first, when that begins.
    read: Instant,
    /// I/Os and bytes up to then.
    done: Option<[u64; 2]>,
}

impl Judged {
    fn new(job: &Job, begun: Instant) -> Judged {
        let begins = begun + job.options.ramp_time + job.options.watch.steady_ramp;
        Judged { judge: Judge::new(&job.options.watch), read: begins, done: None }
    }

    fn look(&mut self, now: Instant, job: &Job, progress: &[Arc<Progress>]) {
        let Some(judge) = &mut self.judge else { return };
        // Once it is steady, or reads back what it wrote, there is nothing to judge.
        if judge.is_attained() || progress.iter().any(|clone| clone.checking.load(Relaxed)) {
            return;
        }
        let since = now.saturating_duration_since(self.read);
        if now < self.read || (self.done.is_some() && since < steady::EACH) {
            return;
        }
        let (size, is_plain) = (job.options.block_size, !job.options.is_shaped());
        let done = progress.iter().map(|clone| clone.done(size, is_plain));
        let done = done.fold([0, 0], |sum, more| [sum[0] + more[0], sum[1] + more[1]]);
        if let Some(before) = self.done {
            let rate = |of: usize| done[of].saturating_sub(before[of]) as f64 / since.as_secs_f64();
            if judge.add(rate(0), rate(1)) {
                progress.iter().for_each(|clone| clone.end.store(true, Relaxed));
            }
        }
        (self.read, self.done) = (now, Some(done));
    }

    fn end(self) -> Option<Steadiness> {
        self.judge.map(Judge::end)
    }
}

/// What was done between two marks, all clones together.
fn point(job: &Job, begun: Instant, now: &Mark, before: &Mark) -> Point {
    let zero = begun + job.options.ramp_time;
    let count = |mark: &Mark, way: usize| mark.ios.iter().map(|ios| ios[way]).sum::<u64>();
    let ios = [0, 1].map(|way| count(now, way).saturating_sub(count(before, way)) as f64);
    Point {
        start: before.at.saturating_duration_since(zero),
        end: now.at.saturating_duration_since(zero),
        ios,
        bytes: ios.map(|ios| ios * f64::from(job.options.block_size)),
    }
}

fn snapshot(
    job: &Job,
    progress: &[Arc<Progress>],
    begun: Instant,
    now: &Mark,
    shown: &Mark,
) -> Snapshot {
    let rates = now.rates_since(shown);
    let iops = [0, 1].map(|way| rates.iter().map(|rate| rate[way]).sum());
    let elapsed = now.at - begun;
    let time = job.options.runtime.map(|time| time + job.options.ramp_time);
    let by_time = time.map_or(0.0, |time| elapsed.as_secs_f64() / time.as_secs_f64());
    let passes = if job.options.reads_back() { 2.0 } else { 1.0 };
    let by_count = now.total() as f64 / (job.plan.limit as f64 * passes * progress.len() as f64);
    Snapshot {
        elapsed,
        done: by_time.max(by_count).min(1.0),
        iops,
        bandwidth: (iops[0] + iops[1]) * job.options.mean_block_size(),
        checking: progress.iter().any(|clone| clone.checking.load(Relaxed)),
    }
}

/// The counts of all clones at one moment.
#[derive(Clone)]
struct Mark {
    at: Instant,
    ios: Vec<[u64; 2]>,
}

impl Mark {
    fn new(at: Instant, progress: &[Arc<Progress>]) -> Mark {
        let counts = |clone: &Arc<Progress>| [0, 1].map(|way: usize| clone.ios[way].load(Relaxed));
        Mark { at, ios: progress.iter().map(counts).collect() }
    }

    /// I/Os of all clones and directions.
    fn total(&self) -> u64 {
        self.ios.iter().flatten().sum()
    }

    /// I/Os a second since `earlier`.
    fn rates_since(&self, earlier: &Mark) -> Vec<[f64; 2]> {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-9);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let clones = self.ios.iter().zip(&earlier.ios);
        clones.map(|(now, then)| [0, 1].map(|way: usize| rate(now[way], then[way]))).collect()
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
