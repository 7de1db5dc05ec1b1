//! Jobs on their targets: opens what they need, and runs them round by round.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oxblock_bench::jobfile::schedule;
use oxblock_bench::options::{ExitWhat, JobOptions};
use oxblock_bench::report::Report;
use oxblock_bench::run::{Session, Snapshot, lay_out, run_on_files};
use oxblock_engine::{Error, ErrorKind};

use super::progress::watched;
use crate::target::{Processors, Target, TargetSpec, Wants};

/// How often a round looks after its jobs.
const LOOK: Duration = Duration::from_millis(50);

/// Jobs in the order in which they run, each with its place.
pub struct Rounds {
    targets: Vec<Planned>,
    rounds: Vec<Vec<Placed>>,
    notices: Vec<String>,
}

/// What a run has to tell.
pub enum News<'a> {
    /// What the user should know about how it was set up.
    Notices(&'a [String]),
    /// A job whose round has ended.
    Report(Box<Report>),
    /// How the jobs stand that run.
    Status(Vec<Arc<Report>>),
}

/// Takes the news.
pub type Tell<'a> = &'a mut dyn FnMut(News<'_>) -> Result<(), Error>;

/// A target and what becomes of it.
struct Planned {
    /// What it is opened by: one, or several namespaces of one controller.
    specs: Vec<TargetSpec>,
    direct: bool,
    jobs: Vec<JobOptions>,
    /// The processor of each of its reactors.
    cpus: Vec<usize>,
}

/// A job with its target and the target's reactors that run its clones.
struct Placed {
    options: JobOptions,
    target: usize,
    /// Which of its specs.
    place: usize,
    cores: Vec<usize>,
    group_id: usize,
    /// No other job of the round runs on the target.
    alone: bool,
}

impl Rounds {
    /// Places jobs: each clone has a reactor, and the clones of a round have processors in turn.
    /// Jobs that name no target run on `default`.
    ///
    /// Errors: a target that is none.
    pub fn plan(jobs: Vec<JobOptions>, default: &TargetSpec) -> Result<Rounds, Error> {
        let specs = jobs.iter().map(|job| TargetSpec::of(&job.targets(), default));
        let specs: Vec<TargetSpec> = specs.collect::<Result<_, _>>()?;
        let processors = Processors::of(specs.iter().any(TargetSpec::is_software));
        let mut plan = Rounds { targets: Vec::new(), rounds: Vec::new(), notices: Vec::new() };
        let mut specs = specs.into_iter();
        let (mut group_id, mut clones) = (0, 0);
        for (number, round) in schedule(jobs).into_iter().enumerate() {
            group_id += usize::from(number > 0);
            let mut placing = Placing { next: 0, taken: Vec::new() };
            let mut placed: Vec<Placed> = Vec::new();
            for (mut options, spec) in round.into_iter().zip(specs.by_ref()) {
                options.first_number = clones + 1;
                clones += options.num_jobs;
                group_id += usize::from(options.new_group && !placed.is_empty());
                let (target, place) = plan.target_for(spec, &options);
                let cores = placing.place(&options, target, &mut plan.targets, &processors);
                placed.push(Placed { options, target, place, cores, group_id, alone: true });
            }
            plan.note_shared(&placed);
            for at in 0..placed.len() {
                let users = placed.iter().filter(|job| job.target == placed[at].target).count();
                placed[at].alone = users == 1;
            }
            plan.rounds.push(placed);
        }
        Ok(plan)
    }

    /// The target of a job, and which of its specs.
    fn target_for(&mut self, spec: TargetSpec, options: &JobOptions) -> (usize, usize) {
        let same = |t: &Planned| {
            let is_same = t.specs.contains(&spec) && t.direct == options.direct;
            is_same || t.specs.iter().any(|other| other.shares_with(&spec))
        };
        let at = self.targets.iter().position(same).unwrap_or_else(|| {
            let (specs, jobs, cpus) = (Vec::new(), Vec::new(), Vec::new());
            self.targets.push(Planned { specs, direct: options.direct, jobs, cpus });
            self.targets.len() - 1
        });
        let target = &mut self.targets[at];
        target.jobs.push(options.clone());
        let place = target.specs.iter().position(|other| *other == spec).unwrap_or_else(|| {
            target.specs.push(spec);
            target.specs.len() - 1
        });
        (at, place)
    }

    /// Says so when reactors of one round have to share processors.
    fn note_shared(&mut self, placed: &[Placed]) {
        let cpus = placed
            .iter()
            .flat_map(|job| job.cores.iter().map(|&core| self.targets[job.target].cpus[core]));
        let mut cpus: Vec<usize> = cpus.collect();
        let reactors = cpus.len();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.len() < reactors {
            let there = cpus.len();
            self.notices.push(format!(
                "{reactors} reactors share {there} processors: they wait for each other"
            ));
        }
    }

    /// Opens the targets, runs the rounds and closes the targets; `tell` takes the news of it. Did
    /// everything go well?
    ///
    /// Errors: a target that cannot be opened, options that do not fit theirs.
    pub fn run(&self, stop: &Arc<AtomicBool>, tell: Tell<'_>) -> Result<bool, Error> {
        let mut targets = Vec::new();
        let mut opened = Ok(());
        for planned in &self.targets {
            let wants = Wants::of(&planned.jobs, planned.cpus.clone());
            match Target::open(&planned.specs, &wants) {
                Ok(target) => targets.push(target),
                Err(error) => {
                    opened = Err(error);
                    break;
                }
            }
        }
        let notices = targets.iter().map(Target::notices).chain([&self.notices[..]]);
        let told = notices.map(|notices| tell(News::Notices(notices))).fold(Ok(()), Result::and);
        let result = opened.and(told).and_then(|()| self.run_on(&targets, stop, tell));
        let closed = targets.into_iter().map(Target::close).fold(Ok(()), Result::and);
        result.and_then(|good| closed.map(|()| good))
    }

    fn run_on(
        &self,
        targets: &[Target],
        stop: &Arc<AtomicBool>,
        tell: Tell<'_>,
    ) -> Result<bool, Error> {
        for target in targets {
            lay_out_new(target, stop)?;
        }
        let mut good = true;
        let rest = AtomicBool::new(false);
        let goes_on = || !stop.load(Relaxed) && !rest.load(Relaxed);
        for round in self.rounds.iter().take_while(|_| goes_on()) {
            let results = match &round[..] {
                [job] => {
                    let mut told = Ok(());
                    let result = watched(&job.options.name, |watch| {
                        run_placed(job, &targets[job.target], stop, &mut |now| {
                            watch(now);
                            if let (Ok(()), Some(status)) = (&told, &now.status) {
                                told = tell(News::Status(vec![status.clone()]));
                            }
                        })
                    });
                    told?;
                    Endings::new(round, &rest).after(0, &result);
                    vec![result]
                }
                jobs => run_side_by_side(jobs, targets, (stop, &rest), tell)?,
            };
            for result in results {
                let report = result?;
                good &= report.is_good();
                tell(News::Report(Box::new(report)))?;
            }
        }
        Ok(good)
    }
}

/// The reactors of one round.
struct Placing {
    /// Clones that had a processor in turn.
    next: usize,
    /// Reactors in use, as target and core.
    taken: Vec<(usize, usize)>,
}

impl Placing {
    /// The cores of `target` for the clones of a job: free ones on the right processors, or new.
    fn place(
        &mut self,
        options: &JobOptions,
        target: usize,
        targets: &mut [Planned],
        processors: &Processors,
    ) -> Vec<usize> {
        let mut cores = Vec::new();
        for clone in 0..options.num_jobs as usize {
            let cpu = match options.cpus.len() {
                0 => processors.jobs[self.next % processors.jobs.len()],
                count => options.cpus[clone % count],
            };
            self.next += usize::from(options.cpus.is_empty());
            let cpus = &mut targets[target].cpus;
            let free = |core: &usize| cpus[*core] == cpu && !self.taken.contains(&(target, *core));
            let core = (0..cpus.len()).find(free).unwrap_or_else(|| {
                cpus.push(cpu);
                cpus.len() - 1
            });
            self.taken.push((target, core));
            cores.push(core);
        }
        cores
    }
}

/// Runs one job where it was placed.
fn run_placed(
    job: &Placed,
    target: &Target,
    stop: &Arc<AtomicBool>,
    watch: &mut dyn FnMut(&Snapshot),
) -> Result<Report, Error> {
    let mut session = target.session(job.place, &job.cores, stop);
    if !job.alone {
        session.serving = &[];
    }
    let mut watch = |now: &Snapshot| {
        let in_group = |status: &Arc<Report>| {
            Arc::new(Report { group_id: job.group_id, ..Report::clone(status) })
        };
        watch(&Snapshot { status: now.status.as_ref().map(in_group), ..now.clone() });
    };
    let nodes = target.nodes(job.place);
    let result = run_on_files(&session, nodes, job.options.clone(), &mut watch);
    let named = |error: Error| error.context(format!("job `{}`", job.options.name));
    result.map(|report| Report { group_id: job.group_id, ..report }).map_err(named)
}

/// What ends the jobs of a round before their time: flags that their clones look at, one for each
/// group.
struct Endings<'a> {
    jobs: &'a [Placed],
    flags: Vec<Arc<AtomicBool>>,
    /// Set to end what comes after the round, too.
    rest: &'a AtomicBool,
}

impl<'a> Endings<'a> {
    fn new(jobs: &'a [Placed], rest: &'a AtomicBool) -> Endings<'a> {
        let mut flags: Vec<Arc<AtomicBool>> = Vec::new();
        for (number, job) in jobs.iter().enumerate() {
            let same = jobs[..number].iter().position(|other| other.group_id == job.group_id);
            flags.push(same.map(|at| flags[at].clone()).unwrap_or_default());
        }
        Endings { jobs, flags, rest }
    }

    fn end_all(&self) {
        self.flags.iter().for_each(|flag| flag.store(true, Relaxed));
    }

    /// Ends what has to end with a job.
    fn after(&self, number: usize, result: &Result<Report, Error>) {
        let options = &self.jobs[number].options;
        let failed = result.as_ref().is_ok_and(|report| !report.is_good());
        if result.is_err() {
            // A job that cannot run ends the round: its numbers would be those of another load.
            self.end_all();
        } else if options.exit_all || (options.exit_all_on_error && failed) {
            match options.exit_what {
                ExitWhat::Group => self.flags[number].store(true, Relaxed),
                ExitWhat::Stonewall => self.end_all(),
                ExitWhat::All => {
                    self.end_all();
                    self.rest.store(true, Relaxed);
                }
            }
        }
    }
}

/// Runs the jobs of one round, each watched by a thread of its own.
fn run_side_by_side(
    jobs: &[Placed],
    targets: &[Target],
    (stop, rest): (&Arc<AtomicBool>, &AtomicBool),
    tell: Tell<'_>,
) -> Result<Vec<Result<Report, Error>>, Error> {
    let endings = Endings::new(jobs, rest);
    let shown = Mutex::new(Shown::new(jobs.len()));
    let locked = || shown.lock().unwrap_or_else(PoisonError::into_inner);
    let mut told = Ok(());
    let one = |number: usize, job: &Placed| {
        let ending = &endings.flags[number];
        let result = run_placed(job, &targets[job.target], ending, &mut |now| {
            locked().jobs[number].replace_by(now);
        });
        endings.after(number, &result);
        if let (Ok(report), Some(_)) = (&result, job.options.status_interval) {
            locked().ended[number] = Some(Arc::new(report.clone()));
        }
        result.map(|report| Report {
            interrupted: report.interrupted && stop.load(Relaxed),
            ..report
        })
    };
    let results = watched(&format!("{} jobs", jobs.len()), |watch| {
        std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..)
                .zip(jobs)
                .map(|(number, job)| scope.spawn(move || one(number, job)))
                .collect();
            while !threads.iter().all(|thread| thread.is_finished()) {
                std::thread::sleep(LOOK);
                if stop.load(Relaxed) {
                    endings.end_all();
                }
                watch(&together(&locked().jobs));
                let status = locked().take_status();
                if let (Ok(()), Some(status)) = (&told, status) {
                    told = tell(News::Status(status));
                }
            }
            let gone = || Err(Error::new(ErrorKind::Failed, "the thread of a job panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
        })
    });
    told.map(|()| results)
}

/// What the jobs of a round show of themselves.
struct Shown {
    jobs: Vec<Snapshot>,
    /// The reports of those that have ended, where a status is asked for.
    ended: Vec<Option<Arc<Report>>>,
}

impl Shown {
    fn new(count: usize) -> Shown {
        Shown { jobs: vec![Snapshot::default(); count], ended: vec![None; count] }
    }

    /// How all jobs stand, once each that runs has told of itself since the last time.
    fn take_status(&mut self) -> Option<Vec<Arc<Report>>> {
        let runs = |(job, ended): (&Snapshot, &Option<Arc<Report>>)| {
            ended.is_none().then_some(job.status.is_some())
        };
        let running: Vec<bool> = self.jobs.iter().zip(&self.ended).filter_map(runs).collect();
        if running.is_empty() || running.contains(&false) {
            return None;
        }
        let jobs = self.jobs.iter_mut().zip(&self.ended);
        Some(jobs.filter_map(|(job, ended)| ended.clone().or(job.status.take())).collect())
    }
}

/// Where several jobs stand, as one: the slowest's progress, all their rates.
fn together(jobs: &[Snapshot]) -> Snapshot {
    let sum = |rate: fn(&Snapshot) -> f64| jobs.iter().map(rate).sum();
    Snapshot {
        elapsed: jobs.iter().map(|job| job.elapsed).max().unwrap_or_default(),
        done: jobs.iter().map(|job| job.done).fold(1.0, f64::min),
        iops: [sum(|job| job.iops[0]), sum(|job| job.iops[1])],
        bandwidth: sum(|job| job.bandwidth),
        checking: jobs.iter().any(|job| job.checking),
        status: None,
    }
}

/// Writes a target that is new and will be read.
///
/// Errors: an I/O that failed.
pub fn lay_out_new(target: &Target, stop: &Arc<AtomicBool>) -> Result<(), Error> {
    for node in target.to_lay_out() {
        let session = Session { node, ..target.session(0, &[0], stop) };
        let length = node.limits().length;
        watched("laying out", |watch| lay_out(&session, length, watch))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Rounds {
        let jobs = oxblock_bench::jobfile::parse(text, &JobOptions::default(), &|_| None);
        Rounds::plan(jobs.expect("a good file"), &TargetSpec::Memory).expect("good targets")
    }

    #[test]
    fn clones_of_a_round_have_reactors_of_their_own() {
        let plan = plan("[a]\nnumjobs=2\n[b]\ncpus_allowed=0\n[c]\nstonewall\nnumjobs=3\n");
        assert_eq!((plan.targets.len(), plan.rounds.len()), (1, 2));
        let mut cores: Vec<usize> = plan.rounds[0].iter().flat_map(|j| j.cores.clone()).collect();
        cores.sort_unstable();
        cores.dedup();
        assert_eq!(cores.len(), 3);
        assert!(!plan.rounds[0][0].alone && plan.rounds[1][0].alone);
        assert_eq!(plan.targets[0].cpus[plan.rounds[0][1].cores[0]], 0);
        assert_eq!(plan.rounds[1][0].group_id, 1);
    }

    /// A second driver on the same controller would be refused: it has one.
    #[test]
    fn namespaces_of_one_controller_are_opened_together() {
        let plan = plan(
            "[a]\nfilename=nvme\\://01\\:00.0/1\n[b]\nfilename=nvme\\://01\\:00.0/2\ndirect=1\n\
             [c]\nfilename=nvme\\://02\\:00.0/1\n[d]\nfilename=nvme\\://01\\:00.0/1\n",
        );
        let used = plan.rounds[0].iter().map(|job| (job.target, job.place));
        assert_eq!(used.collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0), (0, 0)]);
        assert_eq!(plan.targets[0].specs.len(), 2);
    }

    #[test]
    fn jobs_that_name_one_target_share_it() {
        let plan = plan("[a]\nfilename=null\n[b]\nfilename=null\nnew_group\n[c]\n[d]\ndirect=1\n");
        let used: Vec<usize> = plan.rounds[0].iter().map(|job| job.target).collect();
        assert_eq!(used, [0, 0, 1, 2]);
        let groups: Vec<usize> = plan.rounds[0].iter().map(|job| job.group_id).collect();
        assert_eq!(groups, [0, 1, 1, 1]);
    }
}
