//! Questions and answers, each within its time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};
use zerocopy::{FromBytes, IntoBytes};

use super::VfioUserOptions;
use crate::vfio_user::capabilities::{Capabilities, FDS_MAX, MAJOR, MINOR};
use crate::vfio_user::message::{DATA_MAX, Request, Version, header_flags};
use crate::vfio_user::socket::{self, Broken, Receiver};
use crate::{Events, PciError, PciErrorKind};

/// How often a server with a full backlog is tried again.
const CONNECT_RETRY: Duration = Duration::from_millis(10);

/// A connection to a server.
pub(super) struct Connection {
    address: String,
    socket: OwnedFd,
    options: VfioUserOptions,
    talk: Mutex<Talk>,
    health: AtomicU8,
    /// Why it is not live any more.
    reason: OnceLock<String>,
    events: Events,
}

const LIVE: u8 = 0;
/// The server closed its end: it has let go of our memory, or has ended.
const CLOSED: u8 = 1;
/// The server is silent or confused. What it does with our memory is not known.
const LOST: u8 = 2;

#[derive(Default)]
struct Talk {
    receiver: Receiver,
    /// What is sent; kept, since registers are read while I/O is in flight.
    message: Vec<u8>,
    next_id: u16,
}

/// What a server answered.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Connection {
    /// Connects, and agrees on the version.
    pub(super) fn open(path: &Path, options: VfioUserOptions) -> Result<Connection, PciError> {
        let address = format!("vfio-user:{}", path.display());
        let deadline = Instant::now() + options.reply_timeout;
        let socket = connect_until(path, deadline).map_err(|errno| {
            let hint = match errno {
                Errno::NOENT | Errno::CONNREFUSED => {
                    "; nobody serves there: start `oxblock nvmet --vfio-user SOCKET`"
                }
                Errno::ACCESS => "; the socket's owner must let you write to it",
                Errno::TIMEDOUT | Errno::AGAIN => "; its server does not take connections",
                _ => "",
            };
            PciError::io(format!("cannot connect to {address}{hint}"), errno.into())
        })?;
        Connection::over(socket, address, options)
    }

    /// Agrees on the version with whoever is at the other end.
    pub(super) fn over(
        socket: OwnedFd,
        address: String,
        options: VfioUserOptions,
    ) -> Result<Connection, PciError> {
        let connection = Connection {
            address,
            socket,
            options,
            talk: Mutex::default(),
            health: AtomicU8::new(LIVE),
            reason: OnceLock::new(),
            events: Events::new()?,
        };
        connection.negotiate()?;
        Ok(connection)
    }

    /// Where the server is, for messages.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What is told of the function; that it is gone, above all.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    pub(super) fn is_live(&self) -> bool {
        self.health.load(Ordering::Acquire) == LIVE
    }

    /// Whether the server has let go of our memory.
    pub(super) fn is_closed(&self) -> bool {
        self.health.load(Ordering::Acquire) == CLOSED
    }

    /// Leaves the server, for good.
    pub(super) fn close(&self) {
        let _ = self.reason.set("it was given back".to_owned());
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        // What the server does with memory that it was not asked to unmap is not known.
        let _ = self.health.compare_exchange(LIVE, LOST, order.0, order.1);
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends a command, with descriptors, and waits for the reply.
    ///
    /// # Errors
    /// The server says so (the connection goes on), or it is gone.
    pub(super) fn call(
        &self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, PciError> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        self.exchange(&mut talk, request, fds)
    }

    /// The same for a reply that is looked at and forgotten. Allocates nothing, once it has.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub(super) fn look<T>(
        &self,
        request: &Request<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, PciError> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = self.exchange(&mut talk, request, &[])?;
        let taken = take(&reply.body);
        talk.receiver.recycle(reply.body);
        Ok(taken)
    }

    fn exchange(
        &self,
        talk: &mut Talk,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, PciError> {
        let time = match request {
            Request::Reset | Request::DmaUnmap(_) => self.options.quiet_timeout,
            _ => self.options.reply_timeout,
        };
        if !self.is_live() {
            return Err(self.gone());
        }
        let deadline = Instant::now() + time;
        let id = talk.next_id;
        talk.next_id = id.wrapping_add(1);
        request.encode_into(id, &mut talk.message);
        if let Err(error) = socket::send(self.socket.as_fd(), &talk.message, fds, deadline) {
            let closed = matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET));
            let broken = if closed { Broken::Closed } else { Broken::Io(error) };
            return Err(self.end(broken, time));
        }
        loop {
            let message = socket::receive(&mut talk.receiver, self.socket.as_fd(), deadline);
            let message = message.map_err(|broken| self.end(broken, time))?;
            if message.header.is_command() {
                self.refuse(&message.header, deadline).map_err(|broken| self.end(broken, time))?;
                continue;
            }
            let (got, asked) = (&message.header, request.command());
            if !got.is_reply() || got.id.get() != id || got.command.get() != asked {
                return Err(self.rude("a reply to nothing that was asked"));
            }
            if got.flags.get() & header_flags::ERROR != 0 {
                return Err(self.refused(asked, got.error.get()));
            }
            return Ok(Reply { body: message.body, fds: message.fds });
        }
    }

    /// Ends the connection with a server that breaks the protocol.
    pub(super) fn rude(&self, what: &'static str) -> PciError {
        self.end(Broken::Rude(what), Duration::ZERO)
    }

    fn negotiate(&self) -> Result<(), PciError> {
        let ours = Capabilities {
            max_msg_fds: FDS_MAX as u64,
            max_data_xfer_size: DATA_MAX.into(),
            ..Capabilities::default()
        };
        let version = Version { major: MAJOR.into(), minor: MINOR.into() };
        let data = ours.encode();
        let reply = self.call(&Request::Version { version, data: &data }, &[])?;
        let theirs = Version::read_from_prefix(&reply.body).ok();
        let agreed = theirs.filter(|(theirs, data)| {
            theirs.major.get() == MAJOR
                && theirs.minor.get() <= MINOR
                && Capabilities::decode(data).is_some()
        });
        match agreed {
            Some(_) => Ok(()),
            None => Err(self.rude("a version other than 0.1")),
        }
    }

    /// A server that wants our memory by messages does not get it: it has the files.
    fn refuse(
        &self,
        command: &crate::vfio_user::message::Header,
        deadline: Instant,
    ) -> Result<(), Broken> {
        let reply = command.error(libc::EOPNOTSUPP);
        socket::send(self.socket.as_fd(), reply.as_bytes(), &[], deadline).map_err(Broken::Io)
    }

    /// Ends the connection for good.
    fn end(&self, broken: Broken, time: Duration) -> PciError {
        let (health, reason) = match broken {
            Broken::Closed => (CLOSED, "the server closed the connection, or ended".to_owned()),
            Broken::Rude(what) => (LOST, format!("the server sent {what}")),
            Broken::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                (LOST, format!("the server did not reply within {time:?}"))
            }
            Broken::Io(error) => (LOST, format!("the socket failed: {error}")),
        };
        let _ = self.reason.set(reason);
        self.health.store(health, Ordering::Release);
        self.events.removal.signal();
        // A server that comes back to its senses sees that we have left.
        let _ = shutdown(&self.socket, Shutdown::Both);
        self.gone()
    }

    fn gone(&self) -> PciError {
        let reason = self.reason.get().map_or("it is closed", String::as_str);
        PciError::new(
            PciErrorKind::Gone,
            format!("{} is gone: {reason}; attach it again", self.address),
        )
    }

    fn refused(&self, command: u16, errno: u32) -> PciError {
        use crate::vfio_user::message::command as name;
        let what = match command {
            name::VERSION => "its connection (it may have as many clients as it takes)",
            name::DMA_MAP => "memory for DMA",
            name::DMA_UNMAP => "to give memory back",
            name::DEVICE_SET_IRQS => "interrupts",
            name::DEVICE_RESET => "a reset",
            name::REGION_READ | name::REGION_WRITE => "access to registers",
            _ => "to describe itself",
        };
        let errno = i32::try_from(errno).ok().filter(|errno| *errno > 0).unwrap_or(libc::EIO);
        let text = format!("{} refused {what}", self.address);
        PciError::io(text, io::Error::from_raw_os_error(errno))
    }
}

/// Connects without waiting for a server that does not accept.
fn connect_until(path: &Path, deadline: Instant) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(CONNECT_RETRY);
            }
            Err(errno) => return Err(errno),
        }
    }
}
