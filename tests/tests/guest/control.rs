//! What tests in a guest ask of QEMU: each request is a line of JSON on a serial line of its own,
//! which a thread here hands on over QMP. See docs/interop/qmp-spec.rst of QEMU.
//!
//! A request has an `id`, and `execute` with `arguments` as QMP has them; or `wait` with the name
//! of an event, and `device` with whose event it is. The answer has the same `id`, and `return` or
//! `error`.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Within this QEMU answers a command, and an event comes that a test waits for. Less than the
/// patience of the test, so that it is told.
const PATIENCE: Duration = Duration::from_secs(20);
/// Within this QEMU connects.
const START: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The sockets that QEMU connects to. Their folder has a short name: that of a socket is bounded.
pub struct Control {
    folder: TempDir,
    requests: UnixListener,
    qmp: UnixListener,
}

impl Control {
    /// Sockets that nobody is connected to.
    ///
    /// Errors: they cannot be made.
    pub fn new() -> Result<Control, String> {
        let make = || {
            let folder = tempfile::tempdir()?;
            let requests = UnixListener::bind(folder.path().join("requests"))?;
            let qmp = UnixListener::bind(folder.path().join("qmp"))?;
            Ok(Control { folder, requests, qmp })
        };
        make().map_err(|e: io::Error| format!("sockets for QEMU: {e}"))
    }

    /// What QEMU is started with. The line has an interrupt of its own: the third of a PC shares
    /// one with the first, the console.
    pub fn arguments(&self) -> Vec<String> {
        let socket = |name: &str| {
            let path: PathBuf = self.folder.path().join(name);
            format!("socket,id={name},path={}", path.display())
        };
        let [requests, qmp] = ["requests", "qmp"].map(socket);
        let line = "isa-serial,chardev=requests,index=2,irq=5";
        let pairs = [
            ["-chardev", &requests],
            ["-device", line],
            ["-chardev", &qmp],
            ["-mon", "chardev=qmp,mode=control"],
        ];
        pairs.into_iter().flatten().map(str::to_owned).collect()
    }

    /// Serves requests until QEMU ends.
    pub fn serve(self) {
        thread::spawn(move || {
            if let Err(e) = self.run() {
                eprintln!("guest: what tests ask of QEMU: {e}");
            }
        });
    }

    fn run(&self) -> io::Result<()> {
        let requests = accept(&self.requests)?;
        let mut qmp = Qmp::over(accept(&self.qmp)?)?;
        let mut answers = requests.try_clone()?;
        for line in BufReader::new(requests).lines() {
            // QEMU has ended.
            let Ok(line) = line else { break };
            let Ok(request) = serde_json::from_str::<Value>(&line) else { continue };
            let mut answer = match qmp.serve(&request) {
                Ok(returned) => json!({ "return": returned }),
                Err(e) => json!({ "error": e }),
            };
            answer["id"] = request["id"].clone();
            if writeln!(answers, "{answer}").is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// QEMU's end of a socket.
fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < START => {
                thread::sleep(LOOK_EVERY);
            }
            Err(e) => return Err(e),
        }
    }
}

/// A connection to QEMU's monitor.
struct Qmp {
    lines: BufReader<UnixStream>,
    /// Events that nobody has waited for so far.
    events: Vec<Value>,
}

impl Qmp {
    fn over(stream: UnixStream) -> io::Result<Qmp> {
        let mut qmp = Qmp { lines: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.message(Instant::now() + PATIENCE).and_then(|_| {
            let capabilities = json!({ "execute": "qmp_capabilities" });
            qmp.execute(&capabilities)
        });
        greeting.map(|_| qmp).map_err(io::Error::other)
    }

    fn serve(&mut self, request: &Value) -> Result<Value, String> {
        match request["wait"].as_str() {
            Some(event) => self.wait(event, &request["device"]),
            None => self.execute(request),
        }
    }

    fn execute(&mut self, request: &Value) -> Result<Value, String> {
        let mut command = json!({ "execute": request["execute"] });
        if request["arguments"].is_object() {
            command["arguments"] = request["arguments"].clone();
        }
        writeln!(self.lines.get_mut(), "{command}").map_err(|e| e.to_string())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let mut message = self.message(until)?;
            if message["event"].is_string() {
                self.events.push(message);
            } else if message["error"].is_object() {
                return Err(message["error"]["desc"].as_str().unwrap_or("no reason").to_owned());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    fn wait(&mut self, event: &str, device: &Value) -> Result<Value, String> {
        let until = Instant::now() + PATIENCE;
        let is_it =
            |message: &Value| message["event"] == event && message["data"]["device"] == *device;
        loop {
            if let Some(at) = self.events.iter().position(is_it) {
                return Ok(self.events.remove(at)["data"].take());
            }
            let message = self.message(until)?;
            if message["event"].is_string() {
                self.events.push(message);
            }
        }
    }

    fn message(&mut self, until: Instant) -> Result<Value, String> {
        let left = until.saturating_duration_since(Instant::now()).max(LOOK_EVERY);
        self.lines.get_ref().set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("QEMU has ended".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{e}: {line}")),
            Err(e) => Err(format!("QEMU did not answer within {} s: {e}", PATIENCE.as_secs())),
        }
    }
}
