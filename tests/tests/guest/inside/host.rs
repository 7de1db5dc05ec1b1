//! What a test asks of the host: commands of QMP, and what is made of them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// `init.sh` has made it raw.
const LINE: &str = "/dev/ttyS2";
/// More than the host's own patience with QEMU.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has QEMU execute a command, and returns what it returns.
pub fn execute(command: &str, arguments: Value) -> Value {
    try_execute(command, arguments).unwrap_or_else(|e| panic!("{e}"))
}

/// The same for what may fail.
///
/// Errors: the command, and what QEMU says to it.
pub fn try_execute(command: &str, arguments: Value) -> Result<Value, String> {
    ask(json!({ "execute": command, "arguments": arguments }))
}

/// Waits until QEMU tells of an event of a device, unless it has already.
pub fn wait_for(event: &str, device: &str) {
    let waited = ask(json!({ "wait": event, "device": device }));
    waited.unwrap_or_else(|e| panic!("{e}"));
}

/// Requests of this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

fn ask(mut request: Value) -> Result<Value, String> {
    let name = request.to_string();
    let failed = |why: String| format!("the host was asked for {name}: {why}");
    // Answers to who was killed may still be on their way.
    let id = format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    request["id"] = json!(id);
    let line = OpenOptions::new().read(true).write(true).open(LINE);
    let mut line = line.map_err(|e| failed(format!("{LINE}: {e}")))?;
    writeln!(line, "{request}").map_err(|e| failed(e.to_string()))?;
    let until = Instant::now() + PATIENCE;
    loop {
        let mut answer = answer(&mut line, until).map_err(failed)?;
        if answer["id"] != id {
            continue;
        }
        return match answer["error"].as_str() {
            Some(why) => Err(failed(why.to_owned())),
            None => Ok(answer["return"].take()),
        };
    }
}

/// The next line of JSON.
fn answer(line: &mut File, until: Instant) -> Result<Value, String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(&*line, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
        if line.read(&mut byte).map_err(|e| e.to_string())? == 0 {
            return Err("the line was closed".into());
        }
        match byte {
            [b'\n'] => match serde_json::from_slice(&text) {
                Ok(answer) => return Ok(answer),
                // The rest of a line that another process began to read.
                Err(_) => text.clear(),
            },
            [byte] => text.push(byte),
        }
    }
}
