//! Feature identifiers (Base 2.0, figure 317) and the shapes of the values this project uses.

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// LBA Range Type.
pub const LBA_RANGE_TYPE: u8 = 0x03;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing.
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration.
pub const INTERRUPT_VECTOR_CONFIGURATION: u8 = 0x09;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY_NORMAL: u8 = 0x0a;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
/// Autonomous Power State Transition.
pub const AUTONOMOUS_POWER_STATE_TRANSITION: u8 = 0x0c;
/// Host Memory Buffer.
pub const HOST_MEMORY_BUFFER: u8 = 0x0d;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Keep Alive Timer.
pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
/// Host Behavior Support.
pub const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
/// I/O Command Set Profile.
pub const IO_COMMAND_SET_PROFILE: u8 = 0x19;
/// Software Progress Marker.
pub const SOFTWARE_PROGRESS_MARKER: u8 = 0x80;
/// Host Identifier.
pub const HOST_IDENTIFIER: u8 = 0x81;
/// Reservation Notification Mask.
pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
/// Reservation Persistence.
pub const RESERVATION_PERSISTENCE: u8 = 0x83;
/// Namespace Write Protection Config.
pub const NAMESPACE_WRITE_PROTECTION: u8 = 0x84;

/// Get Features, SEL: the current value.
pub const SEL_CURRENT: u8 = 0;
/// Get Features, SEL: the default value.
pub const SEL_DEFAULT: u8 = 1;
/// Get Features, SEL: the saved value.
pub const SEL_SAVED: u8 = 2;
/// Get Features, SEL: what can be done with the feature.
pub const SEL_SUPPORTED: u8 = 3;

/// A value of Number of Queues (5.27.1.5): both counts are 1-based here, 0-based on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// I/O submission queues, 1 to 65,535.
    pub submission: u16,
    /// I/O completion queues, 1 to 65,535.
    pub completion: u16,
}

impl QueueCounts {
    /// The dword on the wire.
    pub const fn to_dword(self) -> u32 {
        (self.completion.saturating_sub(1) as u32) << 16 | self.submission.saturating_sub(1) as u32
    }
    /// From the dword on the wire. FFFFh, which is reserved, is read as 65,535 queues.
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            submission: (dword as u16).saturating_add(1),
            completion: ((dword >> 16) as u16).saturating_add(1),
        }
    }
}

/// Host Memory Buffer, dword 11: Enable Host Memory.
pub const HMB_EHM: u32 = 1;
/// Host Memory Buffer, dword 11: Memory Return, the buffer that it had before, unchanged.
pub const HMB_MR: u32 = 2;

/// A piece of a host memory buffer (5.27.1.10.1): an entry of its descriptor list, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemoryPiece {
    /// Buffer Address, a multiple of the memory page.
    pub badd: u64,
    /// Buffer Size in memory pages.
    pub bsize: u32,
}

impl HostMemoryPiece {
    /// As two words.
    pub const fn to_words(self) -> [u64; 2] {
        [self.badd, self.bsize as u64]
    }
    /// From two words.
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self { badd: words[0], bsize: words[1] as u32 }
    }
}

/// An entry of the Autonomous Power State Transition table (5.27.1.9): when idle for a time, which
/// power state to enter. The table has one for each of 32 power states, 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerTransition {
    /// Idle Transition Power State, 0 to 31, one that is not operational.
    pub itps: u8,
    /// Idle Time Prior to Transition, milliseconds, 24 bits; 0 is no transition.
    pub itpt_ms: u32,
}

impl PowerTransition {
    /// As a word.
    pub const fn to_word(self) -> u64 {
        ((self.itps as u64 & 0x1f) << 3) | ((self.itpt_ms as u64 & 0xff_ffff) << 8)
    }
    /// From a word; `None` if it names no transition.
    pub const fn from_word(word: u64) -> Option<Self> {
        let itpt_ms = (word >> 8) as u32 & 0xff_ffff;
        let itps = (word >> 3) as u8 & 0x1f;
        if itpt_ms == 0 { None } else { Some(Self { itps, itpt_ms }) }
    }
}

/// A state of namespace write protection (5.27.1.28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteProtection {
    /// Writes are allowed.
    None = 0,
    /// They are not.
    Protected = 1,
    /// They are not until the next power cycle.
    UntilPowerCycle = 2,
    /// They never are again.
    Permanent = 3,
}

impl WriteProtection {
    /// From dword 11, or dword 0 of the completion; `None` for a reserved state.
    pub const fn from_dword(dword: u32) -> Option<Self> {
        match dword & 7 {
            0 => Some(Self::None),
            1 => Some(Self::Protected),
            2 => Some(Self::UntilPowerCycle),
            3 => Some(Self::Permanent),
            _ => None,
        }
    }
    /// The dword on the wire.
    pub const fn to_dword(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_zero_based_on_the_wire() {
        let counts = QueueCounts { submission: 4, completion: 2 };
        assert_eq!(counts.to_dword(), 0x0001_0003);
        assert_eq!(QueueCounts::from_dword(0x0001_0003), counts);
        assert_eq!(QueueCounts::from_dword(u32::MAX).submission, u16::MAX);
    }

    #[test]
    fn shapes_are_those_of_the_wire() {
        let piece = HostMemoryPiece { badd: 0x1234_5000, bsize: 0x8000_0001 };
        assert_eq!(piece.to_words(), [0x1234_5000, 0x8000_0001]);
        assert_eq!(HostMemoryPiece::from_words([0x1234_5000, 0xff << 32 | 7]).bsize, 7);
        let transition = PowerTransition { itps: 4, itpt_ms: 0x01_0203 };
        assert_eq!(transition.to_word(), 0x0102_0320);
        assert_eq!(PowerTransition::from_word(0x0102_0320), Some(transition));
        assert_eq!(PowerTransition::from_word(0x20), None);
        for state in [WriteProtection::None, WriteProtection::Permanent] {
            assert_eq!(WriteProtection::from_dword(state.to_dword()), Some(state));
        }
        assert_eq!(WriteProtection::from_dword(4), None);
    }
}
