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
}
