//! The server: a function in software for one client in another process.

mod interrupts;
mod memory;
mod session;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::socket::{self, Broken, Receiver, timespec};
use crate::soft::SoftFunction;

pub use session::{Reply, Session, SessionOptions, Step};

/// How often a session looks around when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// How often it looks whether memory that the client wants back is free.
const QUIET_TICK: Duration = Duration::from_micros(50);

/// How long a client that is refused may take to ask.
const REFUSAL_WAIT: Duration = Duration::from_millis(200);

/// Why a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The client closed the connection, or ended.
    Closed,
    /// The client does not speak the protocol.
    Rude(&'static str),
    /// The client took too long.
    Slow(&'static str),
    /// Memory that the client had lent vanished.
    MemoryLost,
    /// The socket failed.
    Io(io::Error),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Closed => f.write_str("the client closed the connection"),
            Ended::Rude(what) => write!(f, "the client sent {what}"),
            Ended::Slow(what) => write!(f, "the client took too long to {what}"),
            Ended::MemoryLost => {
                f.write_str("memory of the client vanished: its file was cut, or has no pages left")
            }
            Ended::Io(error) => write!(f, "the socket failed: {error}"),
        }
    }
}

/// Serves a function to the client at the other end of a socket until either leaves. Blocks: it
/// wants a thread of its own, which the function's core does not wait for. To end it, shut the
/// socket down.
///
/// Whatever the client does, this returns, unless I/O on its memory never ends; then nothing of
/// the client is left: no mapping, no eventfd. The function is as the client left it, and should
/// be stopped or reset.
pub fn serve(
    socket: BorrowedFd<'_>,
    function: Arc<SoftFunction>,
    options: &SessionOptions,
) -> Ended {
    let begun = Instant::now();
    let mut session = Session::new(function, options.clone());
    let mut receiver = Receiver::default();
    loop {
        session.relay_interrupts();
        if session.has_lost_memory() {
            return Ended::MemoryLost;
        }
        let outcome = match session.is_waiting() {
            true => resume(&mut session, socket, options),
            false => advance(&mut session, &mut receiver, socket, options),
        };
        if let Err(ended) = outcome {
            return ended;
        }
        let now = Instant::now();
        let late = |since: Instant| now.duration_since(since) > options.message_timeout;
        if !session.is_open() && late(begun) {
            return Ended::Slow("say its version");
        }
        if receiver.begun().is_some_and(late) {
            return Ended::Slow("finish a message");
        }
    }
}

/// Tells a client that it will not be served, and why: a positive errno. Waits a moment for what it
/// has to say, since its first message is what is replied to.
pub fn refuse(socket: BorrowedFd<'_>, errno: i32) {
    let deadline = Instant::now() + REFUSAL_WAIT;
    if let Ok(message) = socket::receive(&mut Receiver::default(), socket, deadline) {
        let reply = message.header.error(errno);
        let _ = socket::send(socket, reply.as_bytes(), &[], deadline);
    }
}

/// Handles a message, or waits for one.
fn advance(
    session: &mut Session,
    receiver: &mut Receiver,
    socket: BorrowedFd<'_>,
    options: &SessionOptions,
) -> Result<(), Ended> {
    let message = receiver.receive(socket).map_err(|broken| match broken {
        Broken::Closed => Ended::Closed,
        Broken::Rude(what) => Ended::Rude(what),
        Broken::Io(error) => Ended::Io(error),
    })?;
    let Some(message) = message else {
        return wait(session, socket);
    };
    match session.handle(message).map_err(Ended::Rude)? {
        Step::Reply(reply) => send(&reply, socket, options),
        Step::Silent | Step::Wait => Ok(()),
    }
}

/// Replies to a command that had to wait, or waits on.
fn resume(
    session: &mut Session,
    socket: BorrowedFd<'_>,
    options: &SessionOptions,
) -> Result<(), Ended> {
    match session.resume() {
        Step::Reply(reply) => send(&reply, socket, options),
        Step::Silent => Ok(()),
        Step::Wait => {
            thread::sleep(QUIET_TICK);
            Ok(())
        }
    }
}

fn send(reply: &Reply, socket: BorrowedFd<'_>, options: &SessionOptions) -> Result<(), Ended> {
    let fds: Vec<_> = reply.fds.iter().map(AsFd::as_fd).collect();
    let deadline = Instant::now() + options.message_timeout;
    socket::send(socket, &reply.bytes, &fds, deadline).map_err(|error| match error.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => Ended::Closed,
        Some(libc::ETIMEDOUT) => Ended::Slow("take a reply"),
        _ => Ended::Io(error),
    })
}

/// Waits for a message, or for an interrupt to relay.
fn wait(session: &Session, socket: BorrowedFd<'_>) -> Result<(), Ended> {
    let mut fds = vec![PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    fds.extend(session.interrupts().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    match poll(&mut fds, Some(&timespec(TICK))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Ended::Io(errno.into())),
    }
}
