//! Log pages (Base 2.0, 5.16.1).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::status::Status;

/// Supported Log Pages: 1024 bytes.
pub const LID_SUPPORTED: u8 = 0x00;
/// Error Information: entries of 64 bytes.
pub const LID_ERROR: u8 = 0x01;
/// SMART / Health Information: 512 bytes.
pub const LID_SMART: u8 = 0x02;
/// Firmware Slot Information: 512 bytes.
pub const LID_FIRMWARE_SLOT: u8 = 0x03;
/// Changed Namespace List: 4096 bytes.
pub const LID_CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects: 4096 bytes.
pub const LID_EFFECTS: u8 = 0x05;
/// Device Self-test.
pub const LID_SELF_TEST: u8 = 0x06;
/// Telemetry Host-Initiated.
pub const LID_TELEMETRY_HOST: u8 = 0x07;
/// Telemetry Controller-Initiated.
pub const LID_TELEMETRY_CONTROLLER: u8 = 0x08;
/// Asymmetric Namespace Access.
pub const LID_ANA: u8 = 0x0c;
/// Feature Identifiers Supported and Effects: 1024 bytes.
pub const LID_FEATURE_EFFECTS: u8 = 0x12;
/// Reservation Notification.
pub const LID_RESERVATION: u8 = 0x80;
/// Sanitize Status.
pub const LID_SANITIZE: u8 = 0x81;

/// The first entry of a changed namespace list with more than 1024 of them.
pub const CHANGED_OVERFLOW: u32 = 0xffff_ffff;

/// Supported Log Pages, LID 00h: one dword for each log page, bit 0 says that it is supported.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Supported {
    /// LID Supported and Effects, by log identifier.
    pub lids: [U32; 256],
}

/// Error Information log entry, LID 01h: 64 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Error Count: a number for the error; 0 is an unused entry.
    pub error_count: U64,
    /// Submission Queue ID.
    pub sqid: U16,
    /// Command ID; FFFFh if the error belongs to no command.
    pub cid: U16,
    /// Status Field, with the phase tag in bit 0.
    pub status: U16,
    /// Parameter Error Location: byte in bits 7:0, bit in 10:8; FFFFh is none.
    pub parameter: U16,
    /// First LBA that had the error.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Vendor Specific Information Available: a log page, or 0.
    pub vendor: u8,
    /// Transport Type; 0 is none.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command Specific Information.
    pub command_specific: U64,
    /// Transport Type Specific Information.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

impl ErrorEntry {
    /// The status, decoded.
    pub fn status(&self) -> Status {
        Status::from_bits(self.status.get())
    }
}

/// SMART / Health Information, LID 02h: 512 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Smart {
    /// Critical Warning bits.
    pub critical_warning: u8,
    /// Composite Temperature, kelvin.
    pub temperature: U16,
    /// Available Spare, percent.
    pub spare: u8,
    /// Available Spare Threshold, percent.
    pub spare_threshold: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data Units Read: thousands of 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written: thousands of 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_reads: U128,
    /// Host Write Commands.
    pub host_writes: U128,
    /// Controller Busy Time, minutes.
    pub busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries over the life of the controller.
    pub error_entries: U128,
    /// Warning Composite Temperature Time, minutes.
    pub warning_temperature_time: U32,
    /// Critical Composite Temperature Time, minutes.
    pub critical_temperature_time: U32,
    /// Temperature Sensors 1 to 8, kelvin; 0 is none.
    pub temperature_sensor: [U16; 8],
    /// Thermal Management Temperature 1 and 2 Transition Count.
    pub thermal_transitions: [U32; 2],
    /// Total Time For Thermal Management Temperature 1 and 2, seconds.
    pub thermal_time: [U32; 2],
    /// Reserved.
    pub reserved232: [u8; 280],
}

/// Firmware Slot Information, LID 03h: 512 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlots {
    /// Active Firmware Info: active slot in bits 2:0, next in bits 6:4.
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware Revision for slots 1 to 7, ASCII.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

/// Commands Supported and Effects, LID 05h: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Effects {
    /// Admin Command Supported, by opcode.
    pub acs: [U32; 256],
    /// I/O Command Supported, by opcode.
    pub iocs: [U32; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

/// Sanitize Status, LID 81h: 512 bytes. Times are seconds, FFFFFFFFh where not reported.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SanitizeStatus {
    /// Sanitize Progress: how much is done, of 65,536; FFFFh while nothing is in progress.
    pub sprog: U16,
    /// Sanitize Status: state in bits 2:0, completed overwrite passes in 7:3, and
    /// [`GLOBAL_DATA_ERASED`](crate::sanitize::GLOBAL_DATA_ERASED).
    pub sstat: U16,
    /// Dword 10 of the command that started the last sanitize.
    pub scdw10: U32,
    /// Estimated Time For Overwrite.
    pub eto: U32,
    /// Estimated Time For Block Erase.
    pub etbe: U32,
    /// Estimated Time For Crypto Erase.
    pub etce: U32,
    /// Estimated Time For Overwrite With No-Deallocate.
    pub etond: U32,
    /// Estimated Time For Block Erase With No-Deallocate.
    pub etbend: U32,
    /// Estimated Time For Crypto Erase With No-Deallocate.
    pub etcend: U32,
    /// Reserved.
    pub reserved32: [u8; 480],
}

/// Effects: Command Supported.
pub const EFFECT_SUPPORTED: u32 = 1 << 0;
/// Effects: Logical Block Content Change.
pub const EFFECT_CONTENT_CHANGE: u32 = 1 << 1;
/// Effects: Namespace Capability Change.
pub const EFFECT_NAMESPACE_CHANGE: u32 = 1 << 2;
/// Effects: Namespace Inventory Change.
pub const EFFECT_INVENTORY_CHANGE: u32 = 1 << 3;
/// Effects: Controller Capability Change.
pub const EFFECT_CONTROLLER_CHANGE: u32 = 1 << 4;
/// Effects: no other command for the same namespace meanwhile.
pub const EFFECT_ALONE_IN_NAMESPACE: u32 = 1 << 16;
/// Effects: no other command for any namespace meanwhile.
pub const EFFECT_ALONE: u32 = 1 << 17;

macro_rules! boxed {
    ($($shape:ident)*) => {$(
        impl $shape {
            /// All zeroes, on the heap.
            pub fn boxed() -> Box<Self> {
                Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
            }
        }
    )*};
}

boxed!(Supported Smart FirmwareSlots Effects SanitizeStatus);

#[cfg(test)]
mod tests {
    use super::*;
    use memoffset::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<Supported>(), 1024);
        assert_eq!(size_of::<ErrorEntry>(), 64);
        assert_eq!(size_of::<Smart>(), 512);
        assert_eq!(size_of::<FirmwareSlots>(), 512);
        assert_eq!(size_of::<SanitizeStatus>(), 512);
        assert_eq!(size_of::<Effects>(), 4096);
        macro_rules! at {
            ($shape:ident $($field:ident $offset:literal)*) => {$(
                assert_eq!(offset_of!($shape, $field), $offset, stringify!($field));
            )*};
        }
        at!(ErrorEntry sqid 8 cid 10 status 12 parameter 14 lba 16 nsid 24 vendor 28 trtype 29
            command_specific 32 transport_specific 40);
        at!(Smart temperature 1 spare 3 spare_threshold 4 percentage_used 5 data_units_read 32
            data_units_written 48 host_reads 64 host_writes 80 busy_time 96 power_cycles 112
            power_on_hours 128 unsafe_shutdowns 144 media_errors 160 error_entries 176
            warning_temperature_time 192 critical_temperature_time 196 temperature_sensor 200
            thermal_transitions 216 thermal_time 224 reserved232 232);
        at!(FirmwareSlots frs 8 reserved64 64);
        at!(Effects iocs 1024 reserved2048 2048);
        at!(SanitizeStatus sstat 2 scdw10 4 eto 8 etbe 12 etce 16 etond 20 etbend 24 etcend 28
            reserved32 32);
    }
}
