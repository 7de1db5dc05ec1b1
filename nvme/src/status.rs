//! Status of a completed command (Base 2.0, 4.2.3; NVM Command Set 1.0, 3.1.2).
//!
//! A status is a status code type (SCT) and a status code (SC) together: SC 00h of another type
//! than generic is an error.

use std::fmt;

/// SCT 0h: generic command status.
pub const SCT_GENERIC: u8 = 0;
/// SCT 1h: command specific status.
pub const SCT_COMMAND: u8 = 1;
/// SCT 2h: media and data integrity errors.
pub const SCT_MEDIA: u8 = 2;
/// SCT 3h: path related status.
pub const SCT_PATH: u8 = 3;
/// SCT 7h: vendor specific.
pub const SCT_VENDOR: u8 = 7;

/// The status of a completion, without its phase tag.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Status Code Type, 3 bits.
    pub sct: u8,
    /// Status Code.
    pub sc: u8,
    /// Command Retry Delay, 2 bits: 0 none, n stands for CRDTn.
    pub crd: u8,
    /// The Error Information log page has more.
    pub more: bool,
    /// Do Not Retry.
    pub dnr: bool,
}

impl Status {
    /// SCT and SC, to be retried as the host likes.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self { sct, sc, crd: 0, more: false, dnr: false }
    }
    /// The same, with Do Not Retry.
    pub const fn dnr(self) -> Self {
        Self { dnr: true, ..self }
    }
    /// The same, with More.
    pub const fn more(self) -> Self {
        Self { more: true, ..self }
    }
    /// The same, with a retry delay class (0 to 3).
    pub const fn crd(self, crd: u8) -> Self {
        Self { crd, ..self }
    }
    /// SCT 0h and SC 00h: both, not one of them.
    pub const fn is_success(self) -> bool {
        self.sct == 0 && self.sc == 0
    }
    /// SCT and SC as one number, to match on.
    pub const fn code(self) -> u16 {
        (self.sct as u16) << 8 | self.sc as u16
    }
    /// Bits 31:16 of completion dword 3, the phase tag left at zero.
    pub const fn to_bits(self) -> u16 {
        (self.sc as u16) << 1
            | ((self.sct & 7) as u16) << 9
            | ((self.crd & 3) as u16) << 12
            | (self.more as u16) << 14
            | (self.dnr as u16) << 15
    }
    /// From bits 31:16 of completion dword 3, whatever the phase tag is.
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            sc: (bits >> 1) as u8,
            sct: (bits >> 9 & 7) as u8,
            crd: (bits >> 12 & 3) as u8,
            more: bits & 1 << 14 != 0,
            dnr: bits & 1 << 15 != 0,
        }
    }
}

macro_rules! statuses {
    ($($name:ident $sct:literal $sc:literal $words:literal)*) => {
        impl Status {
            $(
                #[doc = concat!("SCT ", $sct, ", SC ", stringify!($sc), ": ", $words, ".")]
                pub const $name: Status = Status::new($sct, $sc);
            )*

            /// What the status means, in the words of the specification; `None` if it names none.
            pub const fn words(self) -> Option<&'static str> {
                match (self.sct, self.sc) {
                    $(($sct, $sc) => Some($words),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS 0 0x00 "success"
    INVALID_OPCODE 0 0x01 "invalid command opcode"
    INVALID_FIELD 0 0x02 "invalid field in command"
    CID_CONFLICT 0 0x03 "command ID conflict"
    DATA_TRANSFER_ERROR 0 0x04 "data transfer error"
    ABORTED_POWER_LOSS 0 0x05 "aborted: power loss"
    INTERNAL_ERROR 0 0x06 "internal error"
    ABORT_REQUESTED 0 0x07 "aborted on request"
    ABORTED_SQ_DELETION 0 0x08 "aborted: submission queue deleted"
    FAILED_FUSED 0 0x09 "aborted: fused command failed"
    MISSING_FUSED 0 0x0a "aborted: fused command missing"
    INVALID_NAMESPACE 0 0x0b "invalid namespace or format"
    SEQUENCE_ERROR 0 0x0c "command sequence error"
    INVALID_SGL_SEGMENT 0 0x0d "invalid SGL segment descriptor"
    INVALID_SGL_COUNT 0 0x0e "invalid number of SGL descriptors"
    SGL_LENGTH_INVALID 0 0x0f "data SGL length invalid"
    METADATA_SGL_LENGTH_INVALID 0 0x10 "metadata SGL length invalid"
    SGL_TYPE_INVALID 0 0x11 "SGL descriptor type invalid"
    INVALID_CMB_USE 0 0x12 "invalid use of controller memory buffer"
    PRP_OFFSET_INVALID 0 0x13 "PRP offset invalid"
    ATOMIC_WRITE_UNIT_EXCEEDED 0 0x14 "atomic write unit exceeded"
    OPERATION_DENIED 0 0x15 "operation denied"
    SGL_OFFSET_INVALID 0 0x16 "SGL offset invalid"
    HOST_ID_INCONSISTENT 0 0x18 "host identifier inconsistent format"
    KEEP_ALIVE_EXPIRED 0 0x19 "keep alive timer expired"
    KEEP_ALIVE_INVALID 0 0x1a "keep alive timeout invalid"
    PREEMPTED 0 0x1b "aborted: preempt and abort"
    SANITIZE_FAILED 0 0x1c "sanitize failed"
    SANITIZE_IN_PROGRESS 0 0x1d "sanitize in progress"
    SGL_GRANULARITY_INVALID 0 0x1e "SGL data block granularity invalid"
    NOT_SUPPORTED_IN_CMB 0 0x1f "command not supported for queue in CMB"
    NAMESPACE_WRITE_PROTECTED 0 0x20 "namespace is write protected"
    COMMAND_INTERRUPTED 0 0x21 "command interrupted"
    TRANSIENT_TRANSPORT_ERROR 0 0x22 "transient transport error"
    LOCKED_DOWN 0 0x23 "prohibited by command and feature lockdown"
    MEDIA_NOT_READY 0 0x24 "admin command media not ready"
    LBA_OUT_OF_RANGE 0 0x80 "LBA out of range"
    CAPACITY_EXCEEDED 0 0x81 "capacity exceeded"
    NAMESPACE_NOT_READY 0 0x82 "namespace not ready"
    RESERVATION_CONFLICT 0 0x83 "reservation conflict"
    FORMAT_IN_PROGRESS 0 0x84 "format in progress"
    CQ_INVALID 1 0x00 "completion queue invalid"
    INVALID_QID 1 0x01 "invalid queue identifier"
    INVALID_QUEUE_SIZE 1 0x02 "invalid queue size"
    ABORT_LIMIT_EXCEEDED 1 0x03 "abort command limit exceeded"
    AER_LIMIT_EXCEEDED 1 0x05 "asynchronous event request limit exceeded"
    INVALID_FIRMWARE_SLOT 1 0x06 "invalid firmware slot"
    INVALID_FIRMWARE_IMAGE 1 0x07 "invalid firmware image"
    INVALID_INTERRUPT_VECTOR 1 0x08 "invalid interrupt vector"
    INVALID_LOG_PAGE 1 0x09 "invalid log page"
    INVALID_FORMAT 1 0x0a "invalid format"
    FIRMWARE_NEEDS_RESET 1 0x0b "firmware activation requires conventional reset"
    INVALID_QUEUE_DELETION 1 0x0c "invalid queue deletion"
    FEATURE_NOT_SAVEABLE 1 0x0d "feature identifier not saveable"
    FEATURE_NOT_CHANGEABLE 1 0x0e "feature not changeable"
    FEATURE_NOT_NAMESPACE_SPECIFIC 1 0x0f "feature not namespace specific"
    FIRMWARE_NEEDS_SUBSYSTEM_RESET 1 0x10 "firmware activation requires NVM subsystem reset"
    FIRMWARE_NEEDS_CONTROLLER_RESET 1 0x11 "firmware activation requires controller level reset"
    FIRMWARE_NEEDS_TIME 1 0x12 "firmware activation requires maximum time violation"
    FIRMWARE_PROHIBITED 1 0x13 "firmware activation prohibited"
    OVERLAPPING_RANGE 1 0x14 "overlapping range"
    NAMESPACE_INSUFFICIENT_CAPACITY 1 0x15 "namespace insufficient capacity"
    NAMESPACE_ID_UNAVAILABLE 1 0x16 "namespace identifier unavailable"
    NAMESPACE_ALREADY_ATTACHED 1 0x18 "namespace already attached"
    NAMESPACE_IS_PRIVATE 1 0x19 "namespace is private"
    NAMESPACE_NOT_ATTACHED 1 0x1a "namespace not attached"
    THIN_PROVISIONING_NOT_SUPPORTED 1 0x1b "thin provisioning not supported"
    CONTROLLER_LIST_INVALID 1 0x1c "controller list invalid"
    SELF_TEST_IN_PROGRESS 1 0x1d "device self-test in progress"
    BOOT_PARTITION_PROHIBITED 1 0x1e "boot partition write prohibited"
    INVALID_CONTROLLER_ID 1 0x1f "invalid controller identifier"
    SANITIZE_PROHIBITED 1 0x23 "sanitize prohibited while persistent memory region is enabled"
    INVALID_ANA_GROUP 1 0x24 "ANA group identifier invalid"
    ATTACHMENT_LIMIT_EXCEEDED 1 0x27 "namespace attachment limit exceeded"
    COMMAND_SET_NOT_SUPPORTED 1 0x29 "I/O command set not supported"
    COMMAND_SET_NOT_ENABLED 1 0x2a "I/O command set not enabled"
    COMMAND_SET_COMBINATION_REJECTED 1 0x2b "I/O command set combination rejected"
    INVALID_COMMAND_SET 1 0x2c "invalid I/O command set"
    CONFLICTING_ATTRIBUTES 1 0x80 "conflicting attributes"
    INVALID_PROTECTION_INFORMATION 1 0x81 "invalid protection information"
    WRITE_TO_READ_ONLY_RANGE 1 0x82 "attempted write to read only range"
    COMMAND_SIZE_LIMIT_EXCEEDED 1 0x83 "command size limit exceeded"
    WRITE_FAULT 2 0x80 "write fault"
    UNRECOVERED_READ_ERROR 2 0x81 "unrecovered read error"
    GUARD_CHECK_ERROR 2 0x82 "end-to-end guard check error"
    APPLICATION_TAG_ERROR 2 0x83 "end-to-end application tag check error"
    REFERENCE_TAG_ERROR 2 0x84 "end-to-end reference tag check error"
    COMPARE_FAILURE 2 0x85 "compare failure"
    ACCESS_DENIED 2 0x86 "access denied"
    DEALLOCATED_BLOCK 2 0x87 "deallocated or unwritten logical block"
    STORAGE_TAG_ERROR 2 0x88 "end-to-end storage tag check error"
    INTERNAL_PATH_ERROR 3 0x00 "internal path error"
    ANA_PERSISTENT_LOSS 3 0x01 "asymmetric access persistent loss"
    ANA_INACCESSIBLE 3 0x02 "asymmetric access inaccessible"
    ANA_TRANSITION 3 0x03 "asymmetric access transition"
    CONTROLLER_PATHING_ERROR 3 0x60 "controller pathing error"
    HOST_PATHING_ERROR 3 0x70 "host pathing error"
    ABORTED_BY_HOST 3 0x71 "command aborted by host"
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = match self.sct {
            SCT_GENERIC => "generic status",
            SCT_COMMAND => "command error",
            SCT_MEDIA => "media error",
            SCT_PATH => "path error",
            SCT_VENDOR => "vendor specific error",
            _ => "reserved status type",
        };
        match self.words() {
            Some(words) if self.is_success() => f.write_str(words)?,
            Some(words) => write!(f, "{group}: {words}")?,
            None => write!(f, "{group}: code unknown to the specification")?,
        }
        write!(f, " (SCT {:X}h SC {:02X}h", self.sct, self.sc)?;
        if self.dnr {
            f.write_str(", do not retry")?;
        }
        if self.crd != 0 {
            write!(f, ", retry delay {}", self.crd)?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_the_wire() {
        for bits in (0..=u16::MAX).step_by(2) {
            assert_eq!(Status::from_bits(bits).to_bits(), bits);
            assert_eq!(Status::from_bits(bits | 1), Status::from_bits(bits));
        }
    }

    #[test]
    fn positions_follow_the_specification() {
        assert_eq!(Status::UNRECOVERED_READ_ERROR.to_bits(), 0x81 << 1 | 2 << 9);
        assert_eq!(Status::SUCCESS.dnr().to_bits(), 0x8000);
        assert_eq!(Status::SUCCESS.more().to_bits(), 0x4000);
        assert_eq!(Status::SUCCESS.crd(3).to_bits(), 0x3000);
    }

    /// A driver that looked at SC alone took SCT 1h SC 00h (completion queue invalid) for success
    /// and carried on without a queue.
    #[test]
    fn success_needs_both_type_and_code() {
        assert!(Status::SUCCESS.is_success());
        for sct in 1..8 {
            assert!(!Status::new(sct, 0).is_success());
        }
        assert!(!Status::INTERNAL_PATH_ERROR.is_success());
        assert!(!Status::CQ_INVALID.is_success());
    }

    #[test]
    fn words_say_type_meaning_and_numbers() {
        let text = Status::UNRECOVERED_READ_ERROR.dnr().to_string();
        assert_eq!(text, "media error: unrecovered read error (SCT 2h SC 81h, do not retry)");
        assert!(Status::new(7, 0xc5).to_string().contains("SCT 7h SC C5h"));
        assert_eq!(Status::SUCCESS.to_string(), "success (SCT 0h SC 00h)");
    }
}
