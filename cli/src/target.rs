//! What a job runs against: words of the command line, turned into an engine and a node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use oxblock_bench::options::JobOptions;
use oxblock_bench::run::Session;
use oxblock_bench::units::format_bytes;
use oxblock_drivers::file::FileOptions;
use oxblock_drivers::memory::MemoryOptions;
use oxblock_drivers::null::NullOptions;
use oxblock_drivers::{file, memory, null};
use oxblock_engine::graph::Access;
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Driver, Engine, Error, ErrorKind, Node, Options};

use crate::held::{access, hold_alone};
use crate::interrupts;
use crate::node;
use crate::soft::{Soft, SoftOptions};
use crate::tuning::NvmeTuning;

/// The length of a target in memory or in a temporary file, where no size is given.
const DEFAULT_LENGTH: u64 = 256 << 20;
/// The length of a null target, where no size is given: it costs nothing.
const DEFAULT_NULL_LENGTH: u64 = 1 << 40;

/// A target in words.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetSpec {
    /// The software NVMe controller in this process, over another target.
    Soft(Box<TargetSpec>, NvmeTuning),
    /// A device that keeps nothing.
    Null,
    /// A disk in memory.
    Memory,
    /// A file.
    Path(PathBuf),
    /// An empty file of our own, to be made as long as the jobs need.
    Temporary(PathBuf),
    /// Any node, as JSON.
    Node(NodeOptions),
    /// Several files of one job.
    Several(Vec<TargetSpec>),
}

impl TargetSpec {
    /// Reads the value of `--target`.
    ///
    /// Errors: JSON that is no node of ours, or a kind of target that we do not have.
    pub fn parse(word: &str) -> Result<TargetSpec, Error> {
        let invalid =
            |text: &str| Err(Error::new(ErrorKind::Invalid, format!("target `{word}`: {text}")));
        let is_driven = ["soft", "nvme:", "vfio-user:"].iter().any(|begin| word.starts_with(begin));
        let (word, tuning) =
            if is_driven { NvmeTuning::split(word)? } else { (word, NvmeTuning::default()) };
        match word.split_once(':') {
            _ if word.starts_with('{') => node::parse(word).map(TargetSpec::Node),
            _ if word == "soft" => Ok(TargetSpec::Soft(Box::new(TargetSpec::Memory), tuning)),
            _ if word == "null" => Ok(TargetSpec::Null),
            _ if word == "memory" => Ok(TargetSpec::Memory),
            Some(("soft", below)) => match TargetSpec::parse(below)? {
                below if below.is_controller() => {
                    invalid("a controller over a controller is not offered")
                }
                below => Ok(TargetSpec::Soft(Box::new(below), tuning)),
            },
            Some(("nvme", place)) => TargetSpec::parse_nvme(place, tuning)
                .map_err(|error| error.context(format!("target `{word}`"))),
            Some(("vfio-user", place)) => TargetSpec::parse_vfio_user(place, tuning)
                .map_err(|error| error.context(format!("target `{word}`"))),
            _ if word.is_empty() => invalid(
                "give soft, nvme://ADDRESS, vfio-user:SOCKET, null, memory, a path or a node as \
                 JSON",
            ),
            _ => Ok(TargetSpec::Path(PathBuf::from(word))),
        }
    }
}

impl TargetSpec {
    /// The software controller over another target.
    pub fn soft(below: TargetSpec) -> TargetSpec {
        TargetSpec::Soft(Box::new(below), NvmeTuning::default())
    }

    /// What a job runs against that names these targets; `default` if it names none.
    ///
    /// Errors: as [`TargetSpec::parse`]; a controller among several files.
    pub fn of(words: &[String], default: &TargetSpec) -> Result<TargetSpec, Error> {
        let parse = |word: &String| match TargetSpec::parse(word) {
            Ok(spec) if spec.is_controller() => {
                let text = format!("target `{word}`: several files are paths, null or memory");
                Err(Error::new(ErrorKind::Invalid, text))
            }
            other => other,
        };
        match words {
            [] => Ok(default.clone()),
            [word] => TargetSpec::parse(word),
            words => words.iter().map(parse).collect::<Result<_, _>>().map(TargetSpec::Several),
        }
    }

    /// Whether both are namespaces of one controller, which has one driver and one engine.
    pub fn shares_with(&self, other: &TargetSpec) -> bool {
        match (self, other) {
            (TargetSpec::Node(a), TargetSpec::Node(b)) => node::share_a_controller(a, b),
            _ => false,
        }
    }

    /// Whether it is a controller's, in software or behind a PCI function.
    fn is_controller(&self) -> bool {
        match self {
            TargetSpec::Soft(..) => true,
            TargetSpec::Node(options) => node::is_nvme(options),
            _ => false,
        }
    }

    /// Reads `//ADDRESS` or `//ADDRESS/NAMESPACE`.
    fn parse_nvme(place: &str, tuning: NvmeTuning) -> Result<TargetSpec, Error> {
        let place = place.strip_prefix("//").unwrap_or(place);
        let (address, nsid) = place.split_once('/').unwrap_or((place, "1"));
        let nsid = nsid.parse().ok().filter(|nsid| *nsid > 0).ok_or_else(|| {
            let text = format!("`{nsid}` is no namespace; give a number, as in nvme://01:00.0/1");
            Error::new(ErrorKind::Invalid, text)
        })?;
        node::of_namespace(address, nsid, tuning).map(TargetSpec::Node)
    }

    /// Reads `SOCKET` or `SOCKET/NAMESPACE`. What is there by the whole name is the socket: those
    /// of SPDK lie in folders that are called 0, 1 and so on.
    fn parse_vfio_user(place: &str, tuning: NvmeTuning) -> Result<TargetSpec, Error> {
        let number = |nsid: &str| nsid.parse().ok().filter(|nsid| *nsid > 0);
        let (socket, nsid) = match place.rsplit_once('/') {
            Some((socket, nsid)) if !Path::new(place).exists() => match number(nsid) {
                Some(nsid) if !socket.is_empty() => (socket, nsid),
                _ => (place, 1),
            },
            _ => (place, 1),
        };
        node::of_namespace(&format!("vfio-user:{socket}"), nsid, tuning).map(TargetSpec::Node)
    }

    /// Whether its controller is a program, which wants a processor of its own.
    pub fn is_software(&self) -> bool {
        match self {
            TargetSpec::Soft(..) => true,
            TargetSpec::Node(options) => node::functions(options).any(|it| it.is_software()),
            _ => false,
        }
    }
}

/// What the jobs need of their target.
#[derive(Clone, Debug)]
pub struct Wants {
    /// The processor of each reactor that runs jobs.
    cpus: Vec<usize>,
    depth: u32,
    /// Where the furthest job ends, if the jobs say so in bytes.
    end: Option<u64>,
    reads: bool,
    writes: bool,
    /// A file that is not there may be made.
    creates: bool,
    direct: bool,
    /// Files that are made get their space at once; are written before the jobs; are removed.
    preallocates: bool,
    overwrites: bool,
    unlinks: bool,
    sqthread_poll: bool,
    hipri: bool,
    /// Whether others may write meanwhile.
    shares: bool,
}

impl Wants {
    /// What `jobs` need, together or one after the other, whose clones run on `cpus`.
    pub fn of(jobs: &[JobOptions], cpus: Vec<usize>) -> Wants {
        Wants {
            cpus,
            depth: jobs.iter().map(|job| job.io_depth).max().unwrap_or(1),
            end: jobs.iter().filter_map(JobOptions::end_bytes).max(),
            reads: jobs.iter().any(|job| job.reads_in_hundred() > 0),
            writes: jobs.iter().any(|job| job.rw.writes() && !job.verify.only),
            creates: jobs.iter().any(|job| !job.verify.only),
            direct: jobs.iter().any(|job| job.direct),
            preallocates: jobs.iter().any(|job| job.files.preallocate),
            overwrites: jobs.iter().any(|job| job.files.overwrite),
            unlinks: jobs.iter().any(|job| job.files.unlink),
            sqthread_poll: jobs.iter().any(|job| job.files.sqthread_poll),
            hipri: jobs.iter().any(|job| job.files.hipri),
            shares: !jobs.iter().any(|job| job.rw.writes() || job.verify.method.is_some()),
        }
    }

    /// What a server needs: all that there is, for hosts with `depth` I/Os in flight. A size makes
    /// what is not there.
    pub fn to_serve(size: Option<u64>, read_only: bool, direct: bool, depth: u32) -> Wants {
        Wants {
            cpus: Vec::new(),
            depth,
            end: size,
            reads: true,
            writes: !read_only,
            creates: !read_only,
            direct,
            preallocates: false,
            overwrites: false,
            unlinks: false,
            sqthread_poll: false,
            hipri: false,
            shares: false,
        }
    }

    /// What it does to the target, and leaves to others.
    fn access(&self) -> Access {
        access(self.writes, self.shares)
    }

    fn queue_depth(&self) -> u16 {
        self.depth.clamp(32, 4096) as u16
    }
}

/// A target that is open, with the engine that it lives in.
pub struct Target {
    engine: Engine,
    /// Mostly one; several namespaces of one controller.
    opened: Vec<Opened>,
    _soft: Option<Soft>,
    serving_cores: Vec<usize>,
    /// Which files of the first to write before anything is read.
    lay_out: Vec<usize>,
    notices: Vec<String>,
    /// What to remove at the end.
    unlink: Vec<PathBuf>,
}

/// What jobs run on.
struct Opened {
    /// One for each file; at least one.
    nodes: Vec<Arc<Node>>,
    words: String,
}

impl Target {
    /// Starts an engine and opens the target on it: a reactor on each of the processors wanted, and
    /// one more, on a processor of its own if there are two, for the software controller. Several
    /// are opened together if [`TargetSpec::shares_with`] says so of each.
    ///
    /// Errors: what the driver says; an engine that cannot start.
    pub fn open(specs: &[TargetSpec], wants: &Wants) -> Result<Target, Error> {
        let Some(spec) = specs.first() else {
            return Err(Error::new(ErrorKind::Invalid, "there is no target"));
        };
        if let [_, _, ..] = specs {
            return Target::open_nodes(specs, wants);
        }
        let (below, soft_tuning) = match spec {
            TargetSpec::Soft(below, tuning) => (&**below, Some(*tuning)),
            other => (other, None),
        };
        let is_soft = soft_tuning.is_some();
        let files = match below {
            TargetSpec::Several(files) => &files[..],
            one => std::slice::from_ref(one),
        };
        let jobs = wants.cpus.len();
        let mut cpus = wants.cpus.clone();
        cpus.extend(is_soft.then(|| Processors::of(true).serving));
        let (engine, mut notices) = start_engine(&cpus, wants, files)?;
        let leaves = files.iter().map(|file| Leaf::open(&engine, file, wants));
        let leaves: Vec<Leaf> = leaves.collect::<Result<_, _>>()?;
        let lays_out = wants.reads || wants.overwrites;
        let fresh = |(at, leaf): (usize, &Leaf)| (leaf.fresh && lays_out).then_some(at);
        let lay_out = leaves.iter().enumerate().filter_map(fresh).collect();
        let unlink =
            if wants.unlinks { files.iter().filter_map(regular).collect() } else { vec![] };
        notices.extend(leaves.iter().zip(files).flat_map(|(leaf, file)| leaf.notices(file)));
        let words = match (&leaves[..], is_soft) {
            ([one], true) => format!("software NVMe controller over {}", one.words),
            ([one], false) => one.words.clone(),
            ([first, .., last], _) => {
                format!("{} files: {} to {}", leaves.len(), first.words, last.words)
            }
            ([], _) => return Err(Error::new(ErrorKind::Invalid, "a target needs a file")),
        };
        let mut nodes: Vec<Arc<Node>> = leaves.into_iter().map(|leaf| leaf.node).collect();
        let mut soft = None;
        if let ([node], Some(tuning)) = (&mut nodes[..], soft_tuning) {
            let options = SoftOptions { home: 0, server: jobs, jobs, depth: wants.depth, tuning };
            let started = Soft::start(&engine, node.clone(), options)?;
            *node = started.node.clone();
            soft = Some(started);
        }
        let serving_cores = soft.iter().map(|_| jobs).collect();
        let opened = vec![Opened { nodes, words }];
        Ok(Target { engine, opened, _soft: soft, serving_cores, lay_out, notices, unlink })
    }

    /// Opens nodes that share an engine, and what else they have in common.
    fn open_nodes(specs: &[TargetSpec], wants: &Wants) -> Result<Target, Error> {
        let (engine, mut notices) = start_engine(&wants.cpus, wants, specs)?;
        let leaves = specs.iter().map(|spec| Leaf::open(&engine, spec, wants));
        let leaves: Vec<Leaf> = leaves.collect::<Result<_, _>>()?;
        notices
            .extend(leaves.iter().zip(specs).take(1).flat_map(|(leaf, spec)| leaf.notices(spec)));
        let opened =
            leaves.into_iter().map(|Leaf { node, words, .. }| Opened { nodes: vec![node], words });
        Ok(Target {
            engine,
            opened: opened.collect(),
            _soft: None,
            serving_cores: Vec::new(),
            lay_out: Vec::new(),
            notices,
            unlink: Vec::new(),
        })
    }

    /// What runs a job on the target that was named at this place, on some of its reactors, until
    /// `stop` is set.
    pub fn session<'a>(
        &'a self,
        place: usize,
        cores: &'a [usize],
        stop: &'a Arc<AtomicBool>,
    ) -> Session<'a> {
        let Opened { nodes, words } = &self.opened[place];
        Session {
            engine: &self.engine,
            node: &nodes[0],
            target: words,
            cores,
            serving: &self.serving_cores,
            stop,
        }
    }

    /// The nodes of the files that were named at this place.
    pub fn nodes(&self, place: usize) -> &[Arc<Node>] {
        &self.opened[place].nodes
    }

    /// The nodes to write before anything is read: those that are new.
    pub fn to_lay_out(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.lay_out.iter().map(|&file| &self.opened[0].nodes[file])
    }

    /// What the user should know about how this was set up.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Closes everything in good order, and removes the files that are to be removed.
    ///
    /// Errors: what the drivers say; a file that cannot be removed.
    pub fn close(self) -> Result<(), Error> {
        let Target { engine, opened, unlink, .. } = self;
        let closed = engine.shutdown();
        drop(opened);
        unlink.iter().fold(closed, |result, path| {
            let removed = std::fs::remove_file(path).map_err(|error| {
                Error::from_io(format!("removing {} after the run", path.display()), error)
            });
            result.and(removed)
        })
    }
}

/// An engine for these targets with a reactor on each of these processors, and what to know of its
/// memory.
fn start_engine(
    cpus: &[usize],
    wants: &Wants,
    specs: &[TargetSpec],
) -> Result<(Engine, Vec<String>), Error> {
    let slots = Options::default().slots.max(wants.depth as usize);
    let nodes = specs.iter().filter_map(|spec| match spec {
        TargetSpec::Node(options) => Some(options),
        _ => None,
    });
    let options = nodes
        .flat_map(node::functions)
        .fold(Options { slots, ..Options::default() }, |options, function| {
            function.engine_options(options)
        });
    let engine = Engine::new(cpus, options)?;
    let notices = engine.arena().notice().map(str::to_owned).into_iter().collect();
    Ok((engine, notices))
}

/// A node that is open, and no controller.
pub struct Leaf {
    /// The node.
    pub node: Arc<Node>,
    /// What it is, for people.
    pub words: String,
    /// Nothing was ever written to it.
    fresh: bool,
}

impl Leaf {
    /// What its user should know of it, and of which one that is.
    fn notices(&self, spec: &TargetSpec) -> Vec<String> {
        let device = match spec {
            TargetSpec::Node(options) if node::is_nvme(options) => options.text("device"),
            _ => None,
        };
        let notices = self.node.notices().into_iter();
        notices.map(|text| device.map_or(text.clone(), |at| format!("{at}: {text}"))).collect()
    }

    /// Opens it.
    ///
    /// Errors: what the driver says; a controller, which is no leaf.
    pub fn open(engine: &Engine, spec: &TargetSpec, wants: &Wants) -> Result<Leaf, Error> {
        let with_node = |node: Arc<Node>, fresh, words: &str| {
            let words = format!("{words}, {}", format_bytes(node.limits().length));
            Leaf { node, words, fresh }
        };
        let leaf = |name: &str, driver: Box<dyn Driver>, fresh, words: &str| {
            with_node(Node::new(name, driver), fresh, words)
        };
        match spec {
            TargetSpec::Null => {
                let size = wants.end.unwrap_or(0).max(DEFAULT_NULL_LENGTH).next_multiple_of(512);
                let driver = null::open(NullOptions { size, ..NullOptions::default() })?;
                Ok(leaf("null", driver, false, "null"))
            }
            TargetSpec::Memory => {
                let size = wants.end.unwrap_or(DEFAULT_LENGTH).next_multiple_of(512);
                let driver = memory::open(MemoryOptions { size, ..MemoryOptions::default() })?;
                Ok(leaf("memory", driver, true, "memory"))
            }
            TargetSpec::Path(path) => {
                let is_new = !path.exists() || is_empty(path);
                let driver = file::open(file_options(path, wants, is_new)?)?;
                let node = hold_alone(Node::new("file", driver), wants.access())?;
                Ok(with_node(node, is_new, &path.display().to_string()))
            }
            TargetSpec::Temporary(path) => {
                let end = Some(wants.end.unwrap_or(DEFAULT_LENGTH));
                let driver =
                    file::open(file_options(path, &Wants { end, ..wants.clone() }, true)?)?;
                Ok(leaf("file", driver, true, &path.display().to_string()))
            }
            TargetSpec::Node(options) => {
                let node = node::open(engine, options, wants.queue_depth(), wants.access())?;
                let words = node::words(engine, &node, options)?;
                Ok(with_node(node, node::is_fresh(options), &words))
            }
            TargetSpec::Soft(..) | TargetSpec::Several(_) => {
                Err(Error::new(ErrorKind::Invalid, "a controller over a controller is not offered"))
            }
        }
    }
}

/// The processors that take the interrupts of the disks under a target's files.
fn interrupted(spec: &TargetSpec) -> Vec<usize> {
    match spec {
        TargetSpec::Path(path) | TargetSpec::Temporary(path) => interrupts::processors(path),
        TargetSpec::Several(files) => files.iter().flat_map(interrupted).collect(),
        _ => Vec::new(),
    }
}

/// The path of a regular file.
fn regular(spec: &TargetSpec) -> Option<PathBuf> {
    match spec {
        TargetSpec::Path(path) if path.is_file() => Some(path.clone()),
        _ => None,
    }
}

fn is_empty(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

fn file_options(path: &Path, wants: &Wants, is_new: bool) -> Result<FileOptions, Error> {
    let fail = |text: &str| Error::new(ErrorKind::NotFound, format!("{}: {text}", path.display()));
    if is_new && !wants.creates {
        return Err(fail(
            "there is no such file to verify; run the job without --verify_only first",
        ));
    }
    if is_new && wants.end.is_none() {
        return Err(fail("there is no such file; give --size (such as --size=1g) to make it"));
    }
    let size = wants.end.filter(|_| is_new || wants.writes);
    Ok(FileOptions {
        size,
        preallocate: wants.preallocates,
        sqthread_poll: wants.sqthread_poll,
        hipri: wants.hipri,
        direct: wants.direct,
        read_only: !wants.writes && !is_new,
        queue_depth: wants.queue_depth(),
        ..FileOptions::new(path)
    })
}

/// The processors of this machine that reactors may have.
pub struct Processors {
    /// For jobs, in turn.
    pub jobs: Vec<usize>,
    /// For a software controller: the last, which no job then uses unless it is the only one.
    pub serving: usize,
}

impl Processors {
    /// Those for jobs on these targets. Where files lie on a disk, the ones that take its
    /// interrupts come first.
    pub fn for_targets(specs: &[TargetSpec]) -> Processors {
        let mut processors = Processors::of(specs.iter().any(TargetSpec::is_software));
        let near: Vec<usize> = specs.iter().flat_map(interrupted).collect();
        processors.jobs.sort_by_key(|cpu| !near.contains(cpu));
        processors
    }

    /// Those there are; one is set apart if there is a controller.
    pub fn of(controller: bool) -> Processors {
        let known = core_affinity::get_core_ids().unwrap_or_default();
        let mut jobs: Vec<usize> = known.iter().map(|core| core.id).collect();
        let serving = jobs.last().copied().unwrap_or(0);
        if controller && jobs.len() > 1 {
            jobs.pop();
        }
        if jobs.is_empty() {
            jobs.push(0);
        }
        Processors { jobs, serving }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_targets() {
        let soft = |below| Some(TargetSpec::soft(below));
        let parse = |word| TargetSpec::parse(word).ok();
        assert_eq!(parse("soft"), soft(TargetSpec::Memory));
        assert_eq!(parse("soft:null"), soft(TargetSpec::Null));
        assert_eq!(parse("soft:/a:b"), soft(TargetSpec::Path("/a:b".into())));
        assert_eq!(parse("null"), Some(TargetSpec::Null));
        assert_eq!(parse("./null"), Some(TargetSpec::Path("./null".into())));
        let null = node::parse(r#"{"driver":"null-co"}"#).ok().map(TargetSpec::Node);
        assert_eq!(parse(r#"{"driver":"null-co"}"#), null);
        assert_eq!(parse(r#"soft:{"driver":"null-co"}"#), null.and_then(soft));
        let nvme = |nsid| {
            let options = node::of_namespace("01:00.0", nsid, NvmeTuning::default());
            options.ok().map(TargetSpec::Node)
        };
        assert_eq!(parse("nvme://0000:01:00.0/1"), nvme(1));
        assert_eq!(parse("nvme:01:00.0"), nvme(1));
        assert_eq!(parse("nvme://01:00.0/7"), nvme(7));
        let json = r#"{"driver":"nvme","device":"0000:01:00.0","namespace":7}"#;
        assert_eq!(parse(json), nvme(7));
        let other = parse(r#"{"driver":"nvme","device":"01:00.0","namespace":1,"node-name":"a"}"#);
        assert!(nvme(7).zip(other).is_some_and(|(a, b)| a.shares_with(&b)));
        let slow = parse("nvme://01:00.0/7?interrupt-mode=poll");
        assert!(slow.is_some() && slow != nvme(7));
        assert_eq!(slow, parse("nvme:01:00.0/7?interrupt-mode=poll"));
        assert!(slow.zip(nvme(7)).is_some_and(|(a, b)| !a.shares_with(&b)));
        for bad in ["", "soft:", "soft:soft", "soft:nvme:01:00.0", "{}"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        for bad in ["nvme:", "nvme://x/1", "nvme://01:00.0/0", "nvme://01:00.0/", "nvme:/dev/x"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_controller_has_a_processor_to_itself_if_there_are_two() {
        let (alone, beside) = (Processors::of(false), Processors::of(true));
        assert!(!alone.jobs.is_empty() && !beside.jobs.is_empty());
        assert!(alone.jobs.len() == 1 || !beside.jobs.contains(&beside.serving));
    }
}
