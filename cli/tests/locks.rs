//! Who has a file open as a writer keeps others out: the built binary and the installed qemu-io
//! against each other.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How often the two race where nothing else is asked for.
const RACES: u32 = 60;

/// A process that opens a file to write to it, and keeps it until it is told to end.
struct Writer {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stdin: Option<ChildStdin>,
    /// What it says once it has the file.
    ready: &'static [u8],
}

impl Writer {
    fn spawn(mut command: Command, ready: &'static [u8]) -> Writer {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let stdin = child.stdin.take();
        Writer { child, stdout, stdin, ready }
    }

    /// Whether it got the file; what it says if not.
    fn opened(&mut self) -> Result<(), String> {
        let mut said = Vec::new();
        loop {
            let more = self.stdout.fill_buf().expect("its output");
            let len = more.len();
            said.extend_from_slice(more);
            self.stdout.consume(len);
            if said.windows(self.ready.len()).any(|bytes| bytes == self.ready) {
                return Ok(());
            }
            if len == 0 {
                break;
            }
        }
        let mut words = String::new();
        let stderr = self.child.stderr.as_mut().expect("its errors");
        stderr.read_to_string(&mut words).expect("its errors");
        Err(words)
    }

    fn end(mut self) {
        drop(self.stdin.take());
        let pid = rustix::process::Pid::from_child(&self.child);
        // qemu-io ends with its input, if it was not over already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        self.child.wait().expect("its end");
    }
}

/// A disk and room for sockets.
struct Place {
    folder: tempfile::TempDir,
    disk: PathBuf,
}

impl Place {
    /// `None` where there is no qemu-io, which is said.
    fn new() -> Option<Place> {
        if Command::new("qemu-io").arg("--version").output().is_err() {
            eprintln!("skipped: qemu-io is not installed (apt-get install qemu-utils)");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk");
        std::fs::write(&disk, vec![0; 1 << 20]).expect("a disk");
        Some(Place { folder, disk })
    }

    fn ours(&self, target: &str) -> Writer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
        let socket = self.folder.path().join("nvme.sock");
        let _ = std::fs::remove_file(&socket);
        command.arg("nvmet").arg("--vfio-user").arg(socket).args(["--target", target]);
        Writer::spawn(command, b"serving at")
    }

    fn theirs(&self) -> Writer {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).arg(&self.disk);
        Writer::spawn(command, b"qemu-io> ")
    }

    fn node(&self, locking: &str) -> String {
        let disk = self.disk.display();
        format!(
            r#"{{"driver":"raw","file":{{"driver":"file","filename":"{disk}","locking":"{locking}"}}}}"#
        )
    }
}

/// What came of races.
#[derive(Debug, Default)]
struct Outcome {
    ours: u32,
    theirs: u32,
    neither: u32,
    both: u32,
}

fn race(place: &Place, target: &str, count: u32, outcome: &mut Outcome) {
    // How much later the second begins: up to twice as long as we take to get to the file, so that
    // either may be first.
    let begun = Instant::now();
    let mut alone = place.ours(target);
    alone.opened().expect("nobody else is there");
    let ours_take = begun.elapsed();
    alone.end();
    for at in 0..count {
        let later = ours_take * (at % 16) / 8;
        let (mut ours, mut theirs) = if at % 2 == 0 {
            let ours = place.ours(target);
            std::thread::sleep(later);
            (ours, place.theirs())
        } else {
            let theirs = place.theirs();
            std::thread::sleep(later);
            (place.ours(target), theirs)
        };
        match (ours.opened(), theirs.opened()) {
            (Ok(()), Ok(())) => outcome.both += 1,
            (Ok(()), Err(words)) => {
                assert_refused(&words, &place.disk);
                outcome.ours += 1;
            }
            (Err(words), Ok(())) => {
                assert_refused(&words, &place.disk);
                outcome.theirs += 1;
            }
            (Err(_), Err(_)) => outcome.neither += 1,
        }
        ours.end();
        theirs.end();
    }
}

fn assert_refused(words: &str, disk: &Path) {
    let hint = format!("Is another process using the image [{}]?", disk.display());
    assert!(words.contains("\"write\" lock\n"), "{words}");
    assert!(words.contains(&hint), "{words}");
}

#[test]
fn of_two_processes_that_race_for_a_file_two_never_write() {
    let Some(place) = Place::new() else { return };
    let asked = std::env::var("OXBLOCK_RACES").ok().and_then(|text| text.parse().ok());
    let path = place.disk.display().to_string();
    let mut outcome = Outcome::default();
    for target in [place.node("auto"), place.node("on"), path] {
        race(&place, &target, asked.unwrap_or(RACES) / 3 + 1, &mut outcome);
    }
    eprintln!("{outcome:?}");
    assert_eq!(outcome.both, 0, "{outcome:?}");
    assert!(outcome.ours > 0 && outcome.theirs > 0, "one of them never wins: {outcome:?}");
}

/// The race can be lost: so it goes where nobody locks.
#[test]
fn without_locks_two_write() {
    let Some(place) = Place::new() else { return };
    let mut outcome = Outcome::default();
    race(&place, &place.node("off"), 2, &mut outcome);
    assert_eq!(outcome.both, 2, "{outcome:?}");
}

#[test]
fn the_lock_goes_with_the_process_and_readers_are_let_in() {
    let Some(place) = Place::new() else { return };
    let ours = || {
        let mut ours = place.ours(&place.disk.display().to_string());
        ours.opened().map(|()| ours)
    };
    let qemu_io = |args: &[&str], command: &str| {
        let mut run = Command::new("qemu-io");
        run.args(args).args(["-f", "raw", "-c", command]).arg(&place.disk);
        let output = run.output().expect("qemu-io runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let first = ours().expect("nobody has it");
    let second = ours().err().expect("the first has it");
    assert_refused(&second, &place.disk);
    assert_eq!(qemu_io(&["-r"], "read 0 4k"), (true, String::new()));
    let (good, words) = qemu_io(&[], "write 0 4k");
    assert!(!good);
    assert_refused(&words, &place.disk);
    first.end();
    assert_eq!(qemu_io(&[], "write 0 4k"), (true, String::new()));
    let begun = Instant::now();
    ours().expect("qemu-io has ended").end();
    assert!(begun.elapsed() < Duration::from_secs(60), "it hangs");
}
