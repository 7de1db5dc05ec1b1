//! `oxblock nvmet` as a user runs it: the built binary serves, and the built binary is the host.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn oxblock(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    command.args(args).stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    oxblock(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server, which ends with this.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<BufReader<ChildStderr>>,
    directory: TempDir,
}

impl Server {
    /// Starts one with these arguments, and waits until it serves.
    fn start(args: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().expect("a directory"), args)
    }

    fn start_in(directory: TempDir, args: &[&str]) -> Server {
        let path = directory.path().join("nvme.sock");
        let path = path.to_str().expect("plain text");
        let mut command = oxblock(&["nvmet", "--vfio-user", path]);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let stderr = child.stderr.take().map(BufReader::new);
        let mut server = Server { child, stdout, stderr, directory };
        server.line_with("serving at");
        server
    }

    /// Reads its output up to a line with this in it.
    fn line_with(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).expect("its output") > 0 {
            if line.contains(word) {
                return line;
            }
            line.clear();
        }
        panic!("no `{word}` in what the server said");
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("nvme.sock")
    }

    fn target(&self) -> String {
        format!("vfio-user:{}", self.path().display())
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a process");
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn verified_bench_between_two_processes() {
    let mut server = Server::start(&["--target=memory", "--size=16m"]);
    let target = server.target();
    let args = ["bench", "--target", &target, "--rw=randrw", "--iodepth=16", "--bssplit=512/30:4k"];
    let verify = ["--verify=crc32c", "--size=8m", "--output-format=json"];
    let done = output(&[&args[..], &verify].concat());
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(json["jobs"][0]["error"], 0);
    assert!(json["jobs"][0]["write"]["total_ios"].as_u64() > Some(0));
    server.interrupt();
    assert!(!server.path().exists(), "the socket is left over");
    let mut line = String::new();
    let mut stderr = server.stderr.take().expect("its errors");
    while stderr.read_line(&mut line).expect("its errors") > 0 {}
    assert!(line.contains("client 1: connected"), "{line}");
    assert!(line.contains("client 1: over: the client closed the connection"), "{line}");
}

#[test]
fn namespaces_are_as_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![7; 1 << 20]).expect("a file");
    let disk = disk.to_str().expect("plain text").to_owned();
    let null = r#"{"driver":"null-co","size":1073741824,"read-zeroes":true}"#;
    let asked = ["--target", &disk, "--target", null, "--block-size=4096", "--read-only"];
    let server = Server::start(&[&asked[..], &["--serial=S1", "--model=M1"]].concat());
    let target = server.target();
    let id = output(&["nvme", "id-ctrl", &target, "--json"]);
    assert!(id.status.success(), "{}", text(&id.stderr));
    let id: serde_json::Value = serde_json::from_slice(&id.stdout).expect("JSON");
    let word = |name: &str| id[name].as_str().map(str::trim);
    assert_eq!((word("sn"), word("mn")), (Some("S1"), Some("M1")), "{id}");
    let read = |nsid| {
        let target = format!("{target}/{nsid}");
        output(&["bench", "--target", &target, "--rw=read", "--size=1m", "--bs=64k"])
    };
    let first = read(1);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("1.00 MiB") || text(&first.stdout).contains("1 MiB"));
    assert!(read(2).status.success());
    let third = read(3);
    assert!(!third.status.success() && text(&third.stderr).contains("there is none"));
    let write = output(&["bench", "--target", &target, "--rw=write", "--size=1m"]);
    assert!(!write.status.success(), "{}", text(&write.stdout));
}

#[test]
fn a_server_that_is_killed_ends_the_bench_with_an_error() {
    let mut server = Server::start(&["--target=memory", "--size=16m"]);
    let target = server.target();
    let mut bench = oxblock(&["bench", "--target", &target, "--rw=randread", "--iodepth=8"]);
    let bench = bench.args(["--time_based", "--runtime=60"]).stdout(Stdio::piped());
    let bench = bench.stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut line = String::new();
    let mut stderr = server.stderr.take().expect("its errors");
    stderr.read_line(&mut line).expect("its errors");
    assert!(line.contains("connected"), "{line}");
    std::thread::sleep(Duration::from_millis(700));
    server.child.kill().expect("a process to kill");
    let begun = Instant::now();
    let done = bench.wait_with_output().expect("its end");
    assert_eq!(done.status.code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let said = text(&done.stdout) + &text(&done.stderr);
    assert!(said.contains("gone"), "{said}");
}

#[test]
fn sockets_are_taken_with_care() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("nvme.sock");
    let word = path.to_str().expect("plain text").to_owned();
    // One that a server left behind when it was killed.
    drop(UnixListener::bind(&path).expect("a socket"));
    let server = Server::start_in(directory, &["--target=null"]);
    let second = output(&["nvmet", "--vfio-user", &word, "--target=null"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("serves at"), "{}", text(&second.stderr));
    assert!(server.path().exists());

    let other = tempfile::NamedTempFile::new().expect("a file");
    let word = other.path().to_str().expect("plain text");
    let onto_a_file = output(&["nvmet", "--vfio-user", word, "--target=null"]);
    assert_eq!(onto_a_file.status.code(), Some(1));
    assert!(text(&onto_a_file.stderr).contains("cannot listen"), "{}", text(&onto_a_file.stderr));
    let nobody = output(&["bench", "--target=vfio-user:/no/such.sock", "--rw=read"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("oxblock nvmet"), "{}", text(&nobody.stderr));
}
