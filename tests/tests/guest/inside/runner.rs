//! Runs the tests that the host names, each as a process of its own that starts from a known state,
//! and says over the second serial line how each ended.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use super::{MARK, Test, machine};
use crate::report::{BEGIN, END, FAILED, OUTPUT, PASSED};

/// Within this a test ends; most take less than a second.
const LIMIT: Duration = Duration::from_secs(90);
const LINE: &str = "/dev/ttyS1";
const TESTS: &str = "/tests";
const OUTPUT_FILE: &str = "/tmp/output";
/// What the kernel says when a device reached for memory that is not its own, or worse.
const ALARMS: [&str; 6] =
    ["DMAR: [DMA", "DMAR: DRHD: handling fault", "BUG:", "Oops", "WARNING:", "Call Trace"];

/// The runner, or, where the mark names a test, that test.
pub fn main() -> ExitCode {
    let word = env::var(MARK).unwrap_or_default();
    let tests = super::tests();
    if let Some(test) = tests.iter().find(|test| test.name == word) {
        (test.body)();
        return ExitCode::SUCCESS;
    }
    match run(&tests) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("the runner: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Runs those that the host asked for; true if all passed.
fn run(tests: &[Test]) -> io::Result<bool> {
    let wanted = fs::read_to_string(TESTS)?;
    let mut line = OpenOptions::new().write(true).open(LINE)?;
    let mut log = KernelLog::open()?;
    let mut all_passed = true;
    for name in wanted.lines() {
        let Some(test) = tests.iter().find(|test| test.name == name) else { continue };
        writeln!(line, "{BEGIN}{name}")?;
        let begun = Instant::now();
        let mut complaints = attempt(test);
        complaints.extend(log.alarms());
        let said = match complaints.is_empty() && test.told {
            true => vec![output()],
            false => complaints.clone(),
        };
        for text in said.iter().flat_map(|said| said.lines()) {
            writeln!(line, "{OUTPUT}{text}")?;
        }
        let verdict = if complaints.is_empty() { PASSED } else { FAILED };
        writeln!(line, "{verdict}{name}")?;
        println!("{verdict}{name} in {} ms", begun.elapsed().as_millis());
        all_passed &= complaints.is_empty();
    }
    writeln!(line, "{END}")?;
    Ok(all_passed)
}

/// Why it failed, with its output; nothing if it passed.
fn attempt(test: &Test) -> Vec<String> {
    if let Err(e) = machine::prepare(&test.start) {
        return vec![format!("before the test: {e}")];
    }
    let child = File::create(OUTPUT_FILE).and_then(|out| {
        let errors = out.try_clone()?;
        let mut command = Command::new("/proc/self/exe");
        command.env(MARK, &test.name).env("RUST_BACKTRACE", "0").stdout(out).stderr(errors).spawn()
    });
    let ended = child.and_then(wait);
    let failure = match ended {
        Ok(None) => return Vec::new(),
        Ok(Some(failure)) => failure,
        Err(e) => format!("its process: {e}"),
    };
    vec![output(), failure]
}

/// What the last test said.
fn output() -> String {
    String::from_utf8_lossy(&fs::read(OUTPUT_FILE).unwrap_or_default()).into_owned()
}

/// Waits for the end of a test; what was wrong with it, if anything was.
fn wait(mut child: Child) -> io::Result<Option<String>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| format!("it ended with {status}")));
        }
        if begun.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("it did not end within {} s", LIMIT.as_secs())));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The messages of the kernel, read as they come.
struct KernelLog(File);

impl KernelLog {
    fn open() -> io::Result<KernelLog> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").map(KernelLog)
    }

    /// The new ones that should not be. Each read gives one message, or none is left.
    fn alarms(&mut self) -> Vec<String> {
        let mut alarms = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if ALARMS.iter().any(|alarm| text.contains(alarm)) {
                        alarms.push(format!("the kernel said: {}", text.trim_end()));
                    }
                }
                // Older messages were overwritten: go on with the next.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return alarms,
            }
        }
    }
}
