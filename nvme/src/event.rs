//! Asynchronous events (Base 2.0, 5.2).

/// Error event: AER type 0.
pub const TYPE_ERROR: u8 = 0;
/// SMART and health status: AER type 1.
pub const TYPE_SMART: u8 = 1;
/// Notice: AER type 2.
pub const TYPE_NOTICE: u8 = 2;
/// Immediate: AER type 3.
pub const TYPE_IMMEDIATE: u8 = 3;
/// I/O command specific: AER type 6.
pub const TYPE_IO: u8 = 6;
/// Vendor specific: AER type 7.
pub const TYPE_VENDOR: u8 = 7;

/// Error information: write to a doorbell of a queue that does not exist.
pub const ERROR_INVALID_DOORBELL_REGISTER: u8 = 0;
/// Error information: a doorbell value that is out of range.
pub const ERROR_INVALID_DOORBELL_VALUE: u8 = 1;
/// Error information: diagnostic failure.
pub const ERROR_DIAGNOSTIC_FAILURE: u8 = 2;
/// Error information: persistent internal error.
pub const ERROR_PERSISTENT_INTERNAL: u8 = 3;
/// Error information: transient internal error.
pub const ERROR_TRANSIENT_INTERNAL: u8 = 4;
/// Error information: firmware image load error.
pub const ERROR_FIRMWARE_IMAGE_LOAD: u8 = 5;

/// Notice information: the attached namespaces have changed.
pub const NOTICE_NAMESPACE_CHANGED: u8 = 0;
/// Notice information: firmware activation is starting.
pub const NOTICE_FIRMWARE_ACTIVATION: u8 = 1;
/// Notice information: telemetry log changed.
pub const NOTICE_TELEMETRY: u8 = 2;
/// Notice information: asymmetric namespace access changed.
pub const NOTICE_ANA: u8 = 3;

/// I/O command specific information: a sanitize operation has ended.
pub const IO_SANITIZE_ENDED: u8 = 1;

bitflags::bitflags! {
    /// Asynchronous Event Configuration (Base 2.0, figure 326), and the matching bits of OAES.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EventMask: u32 {
        /// SMART: available spare below threshold.
        const SPARE = 1 << 0;
        /// SMART: temperature.
        const TEMPERATURE = 1 << 1;
        /// SMART: reliability degraded.
        const RELIABILITY = 1 << 2;
        /// SMART: media is read-only.
        const READ_ONLY = 1 << 3;
        /// SMART: volatile memory backup failed.
        const BACKUP = 1 << 4;
        /// Notice: namespace attributes.
        const NAMESPACE = 1 << 8;
        /// Notice: firmware activation.
        const FIRMWARE = 1 << 9;
        /// Notice: telemetry.
        const TELEMETRY = 1 << 10;
        /// Notice: asymmetric namespace access.
        const ANA = 1 << 11;
    }
}

/// Dword 0 of the completion of an Asynchronous Event Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// [`TYPE_ERROR`] and its neighbours.
    pub kind: u8,
    /// What it is, within its type.
    pub information: u8,
    /// The log page to read, which also clears the event.
    pub log_page: u8,
}

impl Event {
    /// As dword 0.
    pub const fn to_dword(self) -> u32 {
        (self.kind & 7) as u32 | (self.information as u32) << 8 | (self.log_page as u32) << 16
    }
    /// From dword 0.
    pub const fn from_dword(dword: u32) -> Self {
        Self {
            kind: (dword & 7) as u8,
            information: (dword >> 8) as u8,
            log_page: (dword >> 16) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_dword_round_trips() {
        let event = Event { kind: TYPE_NOTICE, information: 0, log_page: 4 };
        assert_eq!(event.to_dword(), 0x0004_0002);
        assert_eq!(Event::from_dword(event.to_dword()), event);
    }
}
