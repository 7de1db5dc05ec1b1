//! `oxblock bench --peers`: fio, qemu-img and we at the same things, in interleaved runs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use oxblock_bench::options::{JobOptions, Rw};
use oxblock_bench::pattern::Prng;
use oxblock_bench::units::{Size, format_count, format_ns};
use oxblock_engine::{Error, ErrorKind};
use serde_json::Value;

use super::table;

/// How long each run takes, unless --runtime says so, and how many rounds of runs there are.
const RUNTIME: Duration = Duration::from_secs(1);
const ROUNDS: usize = 3;
/// The length of the files.
const LENGTH: u64 = 256 << 20;
/// fio's engines that read and write files.
const ENGINES: [&str; 3] = ["io_uring", "libaio", "psync"];
/// What the harness alone may take for an I/O, ns.
const HARNESS_GOAL_NS: f64 = 40.0;
/// The goals beside fio's fastest engine: so many times its IOPS; or the same, as far as it can be
/// told, at this share of its CPU time.
const FASTER: f64 = 1.1;
const SAME: f64 = 0.95;
const CPU_SHARE: f64 = 0.8;

/// Measures and prints each row; what is not there is said and left out.
///
/// Errors: files that cannot be made, jobs of ours that fail.
pub fn run(given: &JobOptions, stop: &Arc<AtomicBool>) -> Result<ExitCode, Error> {
    let peers = Peers { runtime: given.runtime.unwrap_or(RUNTIME), stop };
    let there = |program: &str, package: &str| {
        let found = Command::new(program).arg("--version").output().is_ok();
        if !found {
            println!("skipped: {program} is not there (apt-get install {package})");
        }
        found
    };
    if !there("fio", "fio") {
        return Ok(ExitCode::SUCCESS);
    }
    let qemu = there("qemu-img", "qemu-utils");
    println!(
        "4 KiB, one core, medians of {ROUNDS} interleaved rounds; load average {}",
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim()
    );
    println!("{}", heading());
    peers.harness()?;
    let disk = given.files.directory.clone().unwrap_or_else(|| ".".to_owned());
    for (what, folder, direct) in
        [("tmpfs", Path::new("/dev/shm"), false), ("disk, O_DIRECT", Path::new(&disk), true)]
    {
        match ready_file(folder, direct) {
            Ok(file) => peers.file(what, file.path(), direct, qemu)?,
            Err(error) => println!("skipped: {what}: {}: {error}", folder.display()),
        }
    }
    Ok(if stop.load(Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A file of random bytes; with `direct`, on the disk, and fit for O_DIRECT.
fn ready_file(folder: &Path, direct: bool) -> Result<tempfile::NamedTempFile, std::io::Error> {
    let mut file = tempfile::Builder::new().prefix("oxblock-peers-").tempfile_in(folder)?;
    let mut random = Prng::new(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..LENGTH >> 20 {
        block.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.next_u64().to_le_bytes()));
        file.write_all(&block)?;
    }
    file.as_file().sync_all()?;
    if direct {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(libc::O_DIRECT).open(file.path())?;
    }
    Ok(file)
}

/// What one run did.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    iops: f64,
    cpu_ns: f64,
}

impl Figures {
    fn median(runs: &[Figures]) -> Figures {
        let of = |get: fn(&Figures) -> f64| median(runs.iter().map(get).collect());
        Figures { iops: of(|run| run.iops), cpu_ns: of(|run| run.cpu_ns) }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The runs of each of fio's engines.
type Theirs = Vec<(&'static str, Vec<Figures>)>;

/// What both programs do in one row.
struct Load<'a> {
    path: Option<&'a Path>,
    direct: bool,
    rw: Rw,
    depth: u32,
}

struct Peers<'a> {
    runtime: Duration,
    stop: &'a Arc<AtomicBool>,
}

impl Peers<'_> {
    fn harness(&self) -> Result<(), Error> {
        for depth in [1, 32] {
            let load = Load { path: None, direct: false, rw: Rw::RandRead, depth };
            let Some((ours, theirs)) = self.rounds(&load, &["null"])? else { return Ok(()) };
            let met = Figures::median(&ours).iops > 1e9 / HARNESS_GOAL_NS;
            println!("{}", line("the harness alone, null", &load, &ours, &theirs, met));
        }
        Ok(())
    }

    fn file(&self, what: &str, path: &Path, direct: bool, qemu: bool) -> Result<(), Error> {
        for rw in [Rw::RandRead, Rw::RandWrite] {
            for depth in [1, 32, 128] {
                let load = Load { path: Some(path), direct, rw, depth };
                let Some((ours, theirs)) = self.rounds(&load, &ENGINES)? else { return Ok(()) };
                let met = is_met(&ours, &theirs);
                println!("{}", line(what, &load, &ours, &theirs, met));
            }
        }
        for depth in [1, 32, 128] {
            let load = Load { path: Some(path), direct, rw: Rw::RandRead, depth };
            if self.stop.load(Relaxed) {
                return Ok(());
            }
            let ours = self.ours(&format!("soft:{}", path.display()), &load)?;
            let text = format!("{what}: software controller");
            println!("{}", line(&text, &load, &[ours], &[], false));
        }
        if qemu && !self.stop.load(Relaxed) {
            let load = Load { path: Some(path), direct, rw: Rw::Read, depth: 32 };
            let ours = self.ours(&path.display().to_string(), &load)?;
            let theirs = qemu_img(path, direct, ours.iops * self.runtime.as_secs_f64());
            println!(
                "{}{}",
                line(&format!("{what}: in order"), &load, &[ours], &[], false),
                theirs.map_or_else(String::new, |iops| format!(
                    "  qemu-img bench: {}",
                    format_count(iops)
                ))
            );
        }
        Ok(())
    }

    /// Runs of ours and of each engine of fio's in turn. `None` if the user wants to stop.
    fn rounds(
        &self,
        load: &Load<'_>,
        engines: &[&'static str],
    ) -> Result<Option<(Vec<Figures>, Theirs)>, Error> {
        let mut ours = Vec::new();
        let mut theirs: Theirs = engines.iter().map(|engine| (*engine, Vec::new())).collect();
        for _ in 0..ROUNDS {
            for (engine, runs) in &mut theirs {
                runs.extend(self.fio(engine, load)?);
            }
            let target = load.path.map_or("null".to_owned(), |path| path.display().to_string());
            ours.push(self.ours(&target, load)?);
            if self.stop.load(Relaxed) {
                return Ok(None);
            }
        }
        theirs.retain(|(engine, runs)| {
            if runs.is_empty() {
                println!("skipped: fio's {engine} does not run here");
            }
            !runs.is_empty()
        });
        Ok(Some((ours, theirs)))
    }

    fn ours(&self, target: &str, load: &Load<'_>) -> Result<Figures, Error> {
        let options = JobOptions {
            name: "oxblock".to_owned(),
            rw: load.rw,
            io_depth: load.depth,
            runtime: Some(self.runtime),
            time_based: Some(true),
            size: load.path.map(|_| Size::Bytes(LENGTH)),
            no_random_map: true,
            direct: load.direct,
            ..JobOptions::default()
        };
        let report = table::run_on(target, options, self.stop)?;
        if let Some(failed) = report.fault {
            return Err(Error::from(failed.fault).context(format!("our job on {target}")));
        }
        let iops = report.ios() as f64 * 1e9 / report.runtime_ns.max(1) as f64;
        Ok(Figures { iops, cpu_ns: report.cpu_ns_per_io() })
    }

    /// One run of fio; `None` if this engine does not run here.
    fn fio(&self, engine: &str, load: &Load<'_>) -> Result<Option<Figures>, Error> {
        let mut fio = Command::new("fio");
        fio.args(["--thread", "--name=fio", "--bs=4k", "--time_based", "--norandommap"])
            .args(["--output-format=json", "--eta=never"])
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--rw={}", load.rw.word()))
            .arg(format!("--iodepth={}", load.depth))
            .arg(format!("--direct={}", u8::from(load.direct)))
            .arg(format!("--runtime={}ms", self.runtime.as_millis()))
            .arg(format!("--size={LENGTH}"));
        if let Some(path) = load.path {
            fio.arg(format!("--filename={}", escaped(path)));
        }
        let output = fio
            .stderr(Stdio::null())
            .output()
            .map_err(|error| Error::from_io("running fio", error))?;
        if !output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let figures = text.find('{').and_then(|at| read_fio(&text[at..]));
        figures.map(Some).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "fio's output is not the JSON of fio 3; update it")
        })
    }
}

/// A path in fio's words, in which `:` stands between files.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(':', "\\:")
}

/// The figures out of fio's JSON.
fn read_fio(json: &str) -> Option<Figures> {
    let document: Value = serde_json::from_str(json).ok()?;
    let job = document.get("jobs")?.get(0)?;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let both = |key: &str| number(&job["read"][key]) + number(&job["write"][key]);
    let (ios, busy) = (both("total_ios"), (number(&job["usr_cpu"]) + number(&job["sys_cpu"])));
    let runtime_ns = number(&job["job_runtime"]) * 1e6;
    (ios > 0.0).then(|| Figures { iops: both("iops"), cpu_ns: busy / 100.0 * runtime_ns / ios })
}

/// IOPS of about `count` reads in order by qemu-img, the only order that it has.
fn qemu_img(path: &Path, direct: bool, count: f64) -> Option<f64> {
    let count = (count as u64).clamp(1000, 10_000_000);
    let cache = if direct { "none" } else { "writeback" };
    let output = Command::new("qemu-img")
        .args(["bench", "-f", "raw", "-i", "io_uring", "-d", "32", "-s", "4096", "-t", cache])
        .args(["-c", &count.to_string()])
        .arg(path)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds: f64 =
        text.split("completed in ").nth(1)?.split_whitespace().next()?.parse().ok()?;
    (seconds > 0.0).then(|| count as f64 / seconds)
}

/// The engine with the most IOPS.
fn best<'a>(theirs: &'a [(&'static str, Vec<Figures>)]) -> Option<(&'static str, &'a [Figures])> {
    let iops = |runs: &[Figures]| Figures::median(runs).iops;
    let best = theirs.iter().max_by(|a, b| iops(&a.1).total_cmp(&iops(&b.1)));
    best.map(|(engine, runs)| (*engine, &runs[..]))
}

/// The median over the rounds of ours to theirs.
fn ratio(ours: &[Figures], theirs: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| of(ours) / of(theirs)).collect())
}

fn is_met(ours: &[Figures], theirs: &[(&'static str, Vec<Figures>)]) -> bool {
    let Some((_, theirs)) = best(theirs) else { return false };
    let iops = ratio(ours, theirs, |run| run.iops);
    iops >= FASTER || (iops >= SAME && ratio(ours, theirs, |run| run.cpu_ns) <= CPU_SHARE)
}

fn heading() -> String {
    format!(
        "{:<36} {:<10} {:>3} {:>9} {:>8} {:>9} {:>8} {:>9} {:>6} {:>6}  goal",
        "", "", "QD", "IOPS", "CPU/IO", "fio IOPS", "CPU/IO", "engine", "IOPS", "CPU"
    )
}

fn line(
    what: &str,
    load: &Load<'_>,
    ours: &[Figures],
    theirs: &[(&'static str, Vec<Figures>)],
    met: bool,
) -> String {
    let own = Figures::median(ours);
    let start = format!(
        "{what:<36} {:<10} {:>3} {:>9} {:>8}",
        load.rw.word(),
        load.depth,
        format_count(own.iops),
        format_ns(own.cpu_ns)
    );
    let Some((engine, runs)) = best(theirs) else { return start };
    let fio = Figures::median(runs);
    format!(
        "{start} {:>9} {:>8} {engine:>9} {:>5.2}x {:>5.2}x  {}",
        format_count(fio.iops),
        format_ns(fio.cpu_ns),
        ratio(ours, runs, |run| run.iops),
        ratio(ours, runs, |run| run.cpu_ns),
        if met { "met" } else { "missed" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(f64, f64)]) -> Vec<Figures> {
        of.iter().map(|&(iops, cpu_ns)| Figures { iops, cpu_ns }).collect()
    }

    #[test]
    fn goals_are_judged_beside_the_fastest_engine() {
        let theirs = |iops| vec![("slow", runs(&[(1.0, 1.0)])), ("fast", runs(&[(iops, 10.0)]))];
        for (ours, met) in [
            ((111.0, 20.0), true),
            ((105.0, 20.0), false),
            ((100.0, 7.9), true),
            ((90.0, 1.0), false),
        ] {
            assert_eq!(is_met(&runs(&[ours]), &theirs(100.0)), met, "{ours:?}");
        }
        assert_eq!(best(&theirs(100.0)).map(|best| best.0), Some("fast"));
        assert!(!is_met(&runs(&[(1.0, 1.0)]), &[]));
    }

    #[test]
    fn ratios_are_of_pairs() {
        // A machine that is slow for one round is so for both.
        let (ours, theirs) = (
            runs(&[(10.0, 1.0), (2.0, 1.0), (9.0, 1.0)]),
            runs(&[(5.0, 1.0), (1.0, 1.0), (9.0, 1.0)]),
        );
        assert_eq!(ratio(&ours, &theirs, |run| run.iops), 2.0);
    }

    #[test]
    fn fios_json_is_read() {
        let json = r#"{"jobs":[{"usr_cpu":10.0,"sys_cpu":40.0,"job_runtime":1000,
            "read":{"iops":500.0,"total_ios":500},"write":{"iops":0.0,"total_ios":0}}]}"#;
        assert_eq!(read_fio(json), Some(Figures { iops: 500.0, cpu_ns: 1e6 }));
        assert_eq!((read_fio("{}"), read_fio("x"), read_fio(r#"{"jobs":[]}"#)), (None, None, None));
    }

    #[test]
    fn a_file_is_made_where_direct_io_goes() {
        assert!(ready_file(Path::new("/no/such/folder"), true).is_err());
        assert_eq!(escaped(Path::new("/a:b")), "/a\\:b");
    }
}
