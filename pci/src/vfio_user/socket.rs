//! Messages and file descriptors over a socket. Nothing waits longer than it was told to.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::FromBytes;

use super::capabilities::FDS_MAX;
use super::message::{HEADER_LEN, Header};

/// A body is read, and room made for it, in pieces of this many bytes: a peer that promises much
/// and sends nothing costs little.
const PIECE: usize = 64 << 10;

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header, whose size is that of the body.
    pub header: Header,
    /// What follows the header.
    pub body: Vec<u8>,
    /// What came beside it.
    pub fds: Vec<OwnedFd>,
}

/// Why no message will come any more.
#[derive(Debug)]
pub enum Broken {
    /// The peer closed the connection.
    Closed,
    /// The system says so.
    Io(io::Error),
    /// The peer does not speak the protocol.
    Rude(&'static str),
}

/// Puts messages together from what the socket gives.
///
/// Reads never go beyond the message, so descriptors belong to the message that they came with.
#[derive(Default)]
pub struct Receiver {
    head: [u8; HEADER_LEN],
    /// Bytes that have come of the header.
    head_len: usize,
    body: Vec<u8>,
    /// Bytes that have come of the body.
    body_len: usize,
    fds: Vec<OwnedFd>,
    begun: Option<Instant>,
}

impl Receiver {
    /// Takes what is there; `None` if that is no whole message yet. Does not block.
    ///
    /// # Errors
    /// No message will come any more.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, Broken> {
        while self.head_len < HEADER_LEN {
            let into = &mut self.head[self.head_len..];
            match receive_some(socket, into, &mut self.fds)? {
                0 => return Ok(None),
                n => self.head_len += n,
            }
            self.begun.get_or_insert_with(Instant::now);
        }
        let header = Header::read_from_bytes(&self.head).unwrap_or_default();
        let Some(len) = header.body_len() else {
            return Err(Broken::Rude("a message of an impossible size"));
        };
        while self.body_len < len {
            let room = len.min(self.body_len + PIECE);
            self.body.resize(room, 0);
            match receive_some(socket, &mut self.body[self.body_len..], &mut self.fds)? {
                0 => return Ok(None),
                n => self.body_len += n,
            }
        }
        let mut whole = std::mem::take(self);
        whole.body.truncate(len);
        Ok(Some(Message { header, body: whole.body, fds: whole.fds }))
    }

    /// Takes the body of a message that is done with, to use its memory again.
    pub fn recycle(&mut self, body: Vec<u8>) {
        if self.head_len == 0 {
            self.body = body;
        }
    }

    /// When the first byte came of a message that is not whole yet.
    #[must_use]
    pub fn begun(&self) -> Option<Instant> {
        self.begun
    }
}

/// Bytes that came, and descriptors beside them; 0 if there are none now.
fn receive_some(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Broken> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::CONNRESET | Errno::PIPE) => return Err(Broken::Closed),
            Err(errno) => return Err(Broken::Io(errno.into())),
            Ok(received) => break received,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
        return Err(Broken::Rude("more file descriptors than a message may bring"));
    }
    match received.bytes {
        0 => Err(Broken::Closed),
        n => Ok(n),
    }
}

/// Sends a message, with descriptors beside its first byte.
///
/// # Errors
/// The peer is gone, or did not take it until the deadline (`ETIMEDOUT`).
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(&bytes[sent..])], &mut control, flags) {
            Ok(n) => sent += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits for the next message.
///
/// # Errors
/// No message will come any more, or none came until the deadline (`ETIMEDOUT`).
pub fn receive(
    receiver: &mut Receiver,
    socket: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<Message, Broken> {
    loop {
        if let Some(message) = receiver.receive(socket)? {
            return Ok(message);
        }
        wait(socket, PollFlags::IN, deadline).map_err(Broken::Io)?;
    }
}

fn wait(socket: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT.into());
        }
        let mut fds = [PollFd::from_borrowed_fd(socket, what)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().min(1 << 30) as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::EventFd;
    use crate::vfio_user::message::{Request, command};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn messages_come_in_pieces_with_their_descriptors() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let event = EventFd::new().unwrap();
        let mut receiver = Receiver::default();
        let bytes = Request::Reset.encode(1);
        assert!(receiver.receive(b.as_fd()).unwrap().is_none());
        for byte in &bytes[..15] {
            a.write_all(&[*byte]).unwrap();
            assert!(receiver.receive(b.as_fd()).unwrap().is_none());
        }
        assert!(receiver.begun().is_some());
        a.write_all(&bytes[15..]).unwrap();
        // The next one waits right behind it, with a descriptor that is not the first's.
        send(a.as_fd(), &Request::Reset.encode(2), &[event.as_fd()], soon()).unwrap();
        let first = receiver.receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((first.header.id.get(), first.fds.len()), (1, 0));
        let second = receiver.receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((second.header.id.get(), second.fds.len()), (2, 1));
        drop(a);
        assert!(matches!(receiver.receive(b.as_fd()), Err(Broken::Closed)));
    }

    #[test]
    fn a_large_message_arrives_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        let data = vec![7; 1 << 20];
        let access = crate::vfio_user::message::RegionAccess {
            count: (data.len() as u32).into(),
            ..Default::default()
        };
        let bytes = Request::RegionWrite { access, data: &data }.encode(3);
        let sender = std::thread::spawn(move || send(a.as_fd(), &bytes, &[], soon()));
        let message = receive(&mut Receiver::default(), b.as_fd(), soon()).unwrap();
        assert_eq!(message.header.command.get(), command::REGION_WRITE);
        assert!(message.body.ends_with(&data));
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(Header { size: 15.into(), ..Header::default() }.as_bytes()).unwrap();
        assert!(matches!(Receiver::default().receive(b.as_fd()), Err(Broken::Rude(_))));

        let (a, b) = UnixStream::pair().unwrap();
        let event = EventFd::new().unwrap();
        let many = vec![event.as_fd(); FDS_MAX];
        let bytes = Request::Reset.encode(0);
        send(a.as_fd(), &bytes[..8], &many, soon()).unwrap();
        send(a.as_fd(), &bytes[8..], &[event.as_fd()], soon()).unwrap();
        assert!(matches!(Receiver::default().receive(b.as_fd()), Err(Broken::Rude(_))));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (a, b) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        let soon = || Instant::now() + Duration::from_millis(20);
        let broken = receive(&mut Receiver::default(), b.as_fd(), soon()).unwrap_err();
        assert!(matches!(broken, Broken::Io(error) if error.kind() == io::ErrorKind::TimedOut));
        let error = send(a.as_fd(), &vec![0; 64 << 20], &[], soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}
