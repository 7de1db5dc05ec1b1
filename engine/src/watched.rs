//! The descriptors that a sleeping reactor watches.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Descriptors that are watched without a list on the heap.
const FEW: usize = 32;

/// The core's own event and what else ends a sleep: gathered anew for each, which costs less than
/// telling the kernel of every queue that begins and ends to wait.
pub(crate) struct Watched<'a> {
    few: [PollFd<'a>; FEW],
    count: usize,
    /// All of them, once they are more than a few.
    many: Vec<PollFd<'a>>,
}

impl<'a> Watched<'a> {
    /// The core's own event alone.
    pub fn new(event: BorrowedFd<'a>) -> Self {
        let event = PollFd::from_borrowed_fd(event, PollFlags::IN);
        Self { few: std::array::from_fn(|_| event.clone()), count: 1, many: Vec::new() }
    }

    /// One more.
    pub fn add(&mut self, fd: BorrowedFd<'a>) {
        let fd = PollFd::from_borrowed_fd(fd, PollFlags::IN);
        match self.few.get_mut(self.count) {
            Some(place) => *place = fd,
            None => {
                if self.many.is_empty() {
                    self.many.extend_from_slice(&self.few);
                }
                self.many.push(fd);
            }
        }
        self.count += 1;
    }

    /// Whether there is one beside the core's own.
    pub fn is_one(&self) -> bool {
        self.count == 2
    }

    /// Blocks until one is readable, and then says so, or the time is up. An interrupted or
    /// failed wait ends too early, no more.
    pub fn wait(mut self, timeout: Option<Duration>) -> bool {
        let all = match self.many.is_empty() {
            true => &mut self.few[..self.count],
            false => &mut self.many[..],
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        poll(all, timeout.as_ref()).is_ok_and(|readable| readable > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::{AsFd, OwnedFd};

    /// A core with more descriptors than had a place polled for ever.
    #[test]
    fn any_of_many_ends_the_wait() {
        let new = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        let fds: Vec<OwnedFd> = (0..100).map(new).collect();
        for count in [1, FEW - 1, FEW, FEW + 1, 100] {
            for (at, news) in fds[..count].iter().enumerate() {
                let watch = || {
                    let mut watched = Watched::new(fds[0].as_fd());
                    fds[1..count].iter().for_each(|fd| watched.add(fd.as_fd()));
                    assert_eq!(watched.is_one(), count == 2);
                    watched
                };
                rustix::io::write(news, &1u64.to_ne_bytes()).expect("a signal");
                assert!(watch().wait(Some(Duration::from_secs(60))), "{at} of {count}");
                rustix::io::read(news, &mut [0; 8]).expect("the signal");
                assert!(!watch().wait(Some(Duration::ZERO)));
            }
        }
    }
}
