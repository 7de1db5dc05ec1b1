//! What is known of a controller: one word that every poll of every queue reads.

use std::sync::atomic::{AtomicU64, Ordering};

use oxblock_engine::{ErrorKind, Fault};

/// Where a controller stands.
///
/// `Live -> Resetting -> Down -> Restarting -> Live` is a reset. Any core may find that one is
/// needed; only the home core leads through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    /// It works, as far as is known.
    Live,
    /// It is being disabled, and may still reach memory.
    Resetting,
    /// It is disabled.
    Down,
    /// It is enabled again and takes admin commands; its I/O queues are not there yet.
    Restarting,
    /// It could not be reset, and is disabled or cut off from memory. The end.
    Failed,
    /// It was shut down in good order. The end.
    ShutDown,
    /// Its registers read as all ones. The end.
    Gone,
}

impl Health {
    /// It reaches memory no more, until it is enabled again.
    pub fn is_quiet(self) -> bool {
        self == Self::Down || self.is_over()
    }

    /// It will not work again.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::ShutDown | Self::Gone)
    }

    /// It takes admin commands.
    pub fn takes_admin(self) -> bool {
        matches!(self, Self::Live | Self::Restarting)
    }

    /// What an I/O gets that finds it so.
    pub fn fault(self, offset: u64) -> Fault {
        let (kind, text) = match self {
            Self::Live => (ErrorKind::Failed, "the I/O queue is being closed"),
            Self::Resetting | Self::Down | Self::Restarting => {
                (ErrorKind::Io, "the NVMe controller is being reset")
            }
            Self::Failed => (
                ErrorKind::Io,
                "the NVMe controller failed and could not be reset; attach it again",
            ),
            Self::ShutDown => (ErrorKind::Failed, "the NVMe controller was shut down"),
            Self::Gone => {
                (ErrorKind::Gone, "the NVMe controller is gone: its registers read as all ones")
            }
        };
        Fault::text(kind, offset, text)
    }

    fn from_bits(bits: u8) -> Health {
        match bits {
            0 => Self::Live,
            1 => Self::Resetting,
            2 => Self::Down,
            3 => Self::Restarting,
            4 => Self::Failed,
            5 => Self::ShutDown,
            _ => Self::Gone,
        }
    }
}

/// A reading of the word: health in bits 7:0, life in 31:8, ticks in 63:32.
///
/// A *life* begins each time that the controller is enabled again. A *tick* is a look of the home
/// core at the controller that found it well. A queue compares the word with the one that it saw
/// last; whatever there is to do besides I/O changes it, so that the comparison is all that the
/// I/O path pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pulse(u64);

impl Pulse {
    /// No reading is like this.
    pub const NEVER: Pulse = Pulse(u64::MAX);

    pub fn health(self) -> Health {
        Health::from_bits(self.0 as u8)
    }

    /// Counts modulo 2^24.
    pub fn life(self) -> u32 {
        (self.0 as u32) >> 8
    }

    fn with_health(self, health: Health) -> Pulse {
        Pulse(self.0 & !0xff | health as u64)
    }

    fn with_next_life(self) -> Pulse {
        Pulse(self.0 & !0xffff_ff00 | u64::from((self.life() + 1) & 0xff_ffff) << 8)
    }
}

/// The word. Read by every poll of every queue, written some twenty times a second.
pub(super) struct Heart(AtomicU64);

impl Heart {
    pub fn new() -> Heart {
        Heart(AtomicU64::new(Health::Live as u64))
    }

    #[inline]
    pub fn pulse(&self) -> Pulse {
        Pulse(self.0.load(Ordering::Acquire))
    }

    /// The controller was looked at, and is well.
    pub fn tick(&self) {
        self.0.fetch_add(1 << 32, Ordering::AcqRel);
    }

    /// From one of these states to another; false if it was in none of them.
    pub fn advance(&self, from: &[Health], to: Health) -> bool {
        let change = |word| {
            let pulse = Pulse(word);
            if !from.contains(&pulse.health()) {
                return None;
            }
            let next = pulse.with_health(to);
            let next = if to == Health::Restarting { next.with_next_life() } else { next };
            Some(next.0)
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// The end, unless it has come already.
    pub fn end(&self, to: Health) {
        use Health::{Down, Live, Resetting, Restarting};
        self.advance(&[Live, Resetting, Down, Restarting], to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Down, Failed, Gone, Live, Resetting, Restarting};

    #[test]
    fn a_reset_is_a_new_life_and_an_end_is_an_end() {
        let heart = Heart::new();
        let seen = heart.pulse();
        heart.tick();
        assert_ne!(heart.pulse(), seen, "a tick is news");
        assert!(!heart.advance(&[Down], Restarting), "one step at a time");
        for (from, to) in [(Live, Resetting), (Resetting, Down), (Down, Restarting)] {
            assert!(heart.advance(&[from], to));
            assert_eq!(heart.pulse().health(), to);
        }
        assert!(heart.advance(&[Restarting], Live));
        assert_eq!((heart.pulse().health(), heart.pulse().life()), (Live, seen.life() + 1));
        heart.end(Gone);
        heart.end(Failed);
        assert_eq!(heart.pulse().health(), Gone);
    }

    #[test]
    fn lives_wrap_without_touching_their_neighbours() {
        let heart = Heart(AtomicU64::new(7 << 32 | 0xffff_ff00 | Down as u64));
        assert!(heart.advance(&[Down], Restarting));
        assert_eq!(heart.pulse(), Pulse(7 << 32 | Restarting as u64));
    }

    #[test]
    fn only_what_cannot_reach_memory_is_quiet() {
        for health in [Live, Resetting, Restarting] {
            assert!(!health.is_quiet());
        }
        for health in [Down, Failed, Health::ShutDown, Gone] {
            assert!(health.is_quiet());
        }
    }
}
