use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Optional Admin Command Support.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oacs: u16 {
        /// Security Send and Security Receive.
        const SECURITY = 1 << 0;
        /// Format NVM.
        const FORMAT = 1 << 1;
        /// Firmware Commit and Firmware Image Download.
        const FIRMWARE = 1 << 2;
        /// Namespace Management and Namespace Attachment.
        const NAMESPACE_MANAGEMENT = 1 << 3;
        /// Device Self-test.
        const SELF_TEST = 1 << 4;
        /// Directives.
        const DIRECTIVES = 1 << 5;
        /// NVMe-MI Send and Receive.
        const MI = 1 << 6;
        /// Virtualization Management.
        const VIRTUALIZATION = 1 << 7;
        /// Doorbell Buffer Config.
        const DOORBELL_BUFFER = 1 << 8;
        /// Get LBA Status.
        const LBA_STATUS = 1 << 9;
        /// Command and Feature Lockdown.
        const LOCKDOWN = 1 << 10;
    }

    /// Optional NVM Command Support.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oncs: u16 {
        /// Compare.
        const COMPARE = 1 << 0;
        /// Write Uncorrectable.
        const WRITE_UNCORRECTABLE = 1 << 1;
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 3;
        /// Save field of Set Features, Select field of Get Features.
        const SAVE = 1 << 4;
        /// Reservations.
        const RESERVATIONS = 1 << 5;
        /// Timestamp.
        const TIMESTAMP = 1 << 6;
        /// Verify.
        const VERIFY = 1 << 7;
        /// Copy.
        const COPY = 1 << 8;
    }
}

/// SGL Support, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SglSupport(pub u32);

impl SglSupport {
    /// SGLs are supported for NVM commands.
    pub const fn supported(self) -> bool {
        matches!(self.0 & 3, 1 | 2)
    }
    /// Alignment and granularity that data blocks need, in bytes: 1 or 4.
    pub const fn alignment(self) -> u32 {
        if self.0 & 3 == 2 { 4 } else { 1 }
    }
    /// SGL Descriptor Threshold: the count above which a transfer slows down; 0 says nothing.
    pub const fn threshold(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// SGL Bit Bucket descriptors are supported.
    pub const fn bit_bucket(self) -> bool {
        self.0 & 1 << 16 != 0
    }
    /// An SGL longer than the data is supported.
    pub const fn longer_than_data(self) -> bool {
        self.0 & 1 << 18 != 0
    }
    /// The address of a descriptor may be an offset.
    pub const fn offset_address(self) -> bool {
        self.0 & 1 << 20 != 0
    }
}

/// Power State Descriptor: 32 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerState {
    /// Maximum Power.
    pub mp: U16,
    /// Reserved.
    pub reserved2: u8,
    /// Max Power Scale (bit 0), Non-Operational State (bit 1).
    pub flags: u8,
    /// Entry Latency, microseconds.
    pub enlat: U32,
    /// Exit Latency, microseconds.
    pub exlat: U32,
    /// Relative Read Throughput.
    pub rrt: u8,
    /// Relative Read Latency.
    pub rrl: u8,
    /// Relative Write Throughput.
    pub rwt: u8,
    /// Relative Write Latency.
    pub rwl: u8,
    /// Idle Power.
    pub idlp: U16,
    /// Idle Power Scale (bits 7:6).
    pub ips: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Active Power.
    pub actp: U16,
    /// Active Power Scale (bits 7:6), Workload (bits 2:0).
    pub aps: u8,
    /// Reserved.
    pub reserved23: [u8; 9],
}

impl PowerState {
    /// I/O is done in it; else the first command leaves it (Non-Operational State).
    pub const fn is_operational(&self) -> bool {
        self.flags & 2 == 0
    }
}

/// Identify Controller, CNS 01h: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Controller {
    /// PCI Vendor ID.
    pub vid: U16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Serial Number, ASCII.
    pub sn: [u8; 20],
    /// Model Number, ASCII.
    pub mn: [u8; 40],
    /// Firmware Revision, ASCII.
    pub fr: [u8; 8],
    /// Recommended Arbitration Burst, as a power of two.
    pub rab: u8,
    /// IEEE OUI Identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size: 2^MDTS units of CAP.MPSMIN pages; 0 is no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: U16,
    /// Version, as in the VS register.
    pub ver: U32,
    /// RTD3 Resume Latency, microseconds.
    pub rtd3r: U32,
    /// RTD3 Entry Latency, microseconds.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported.
    pub oaes: U32,
    /// Controller Attributes.
    pub ctratt: U32,
    /// Read Recovery Levels Supported.
    pub rrls: U16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller Type: 1 I/O, 2 discovery, 3 administrative; 0 not reported.
    pub cntrltype: u8,
    /// FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Command Retry Delay Times 1 to 3, units of 100 ms.
    pub crdt: [U16; 3],
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM Subsystem Report.
    pub nvmsr: u8,
    /// VPD Write Cycle Information.
    pub vwci: u8,
    /// Management Endpoint Capabilities.
    pub mec: u8,
    /// Optional Admin Command Support: see [`Oacs`].
    pub oacs: U16,
    /// Abort Command Limit, 0-based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0-based.
    pub aerl: u8,
    /// Firmware Updates.
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: u8,
    /// Error Log Page Entries, 0-based.
    pub elpe: u8,
    /// Number of Power States Support, 0-based.
    pub npss: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, kelvin.
    pub wctemp: U16,
    /// Critical Composite Temperature Threshold, kelvin.
    pub cctemp: U16,
    /// Maximum Time for Firmware Activation, units of 100 ms.
    pub mtfa: U16,
    /// Host Memory Buffer Preferred Size, 4 KiB units.
    pub hmpre: U32,
    /// Host Memory Buffer Minimum Size, 4 KiB units.
    pub hmmin: U32,
    /// Total NVM Capacity, bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM Capacity, bytes.
    pub unvmcap: U128,
    /// Replay Protected Memory Block Support.
    pub rpmbs: U32,
    /// Extended Device Self-test Time, minutes.
    pub edstt: U16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, 4 KiB units.
    pub fwug: u8,
    /// Keep Alive Support: granularity in units of 100 ms; 0 is none.
    pub kas: U16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: U16,
    /// Minimum Thermal Management Temperature, kelvin.
    pub mntmt: U16,
    /// Maximum Thermal Management Temperature, kelvin.
    pub mxtmt: U16,
    /// Sanitize Capabilities.
    pub sanicap: U32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, 4 KiB units.
    pub hmminds: U32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: U16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: U16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: U16,
    /// ANA Transition Time, seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: U32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: U32,
    /// Persistent Event Log Size, 64 KiB units.
    pub pels: U32,
    /// Domain Identifier.
    pub domain: U16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Max Endurance Group Capacity, bytes.
    pub megcap: U128,
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission Queue Entry Size: required (3:0) and maximum (7:4), powers of two.
    pub sqes: u8,
    /// Completion Queue Entry Size: required (3:0) and maximum (7:4), powers of two.
    pub cqes: u8,
    /// Maximum Outstanding Commands, for fabrics.
    pub maxcmd: U16,
    /// Number of Namespaces: the largest valid namespace ID.
    pub nn: U32,
    /// Optional NVM Command Support: see [`Oncs`].
    pub oncs: U16,
    /// Fused Operation Support: bit 0 compare and write.
    pub fuses: U16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache: bit 0 present, bits 2:1 how Flush treats NSID FFFFFFFFh.
    pub vwc: u8,
    /// Atomic Write Unit Normal, logical blocks, 0-based.
    pub awun: U16,
    /// Atomic Write Unit Power Fail, logical blocks, 0-based.
    pub awupf: U16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare and Write Unit, logical blocks, 0-based.
    pub acwu: U16,
    /// Copy Descriptor Formats Supported, one bit each.
    pub cdfs: U16,
    /// SGL Support: see [`SglSupport`].
    pub sgls: U32,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: U32,
    /// Maximum Domain Namespace Attachments.
    pub maxdna: U128,
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: U32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name, UTF-8, terminated by zero.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size, units of 16 bytes (fabrics).
    pub ioccsz: U32,
    /// I/O Queue Response Capsule Supported Size, units of 16 bytes (fabrics).
    pub iorcsz: U32,
    /// In Capsule Data Offset, units of 16 bytes (fabrics).
    pub icdoff: U16,
    /// Fabrics Controller Attributes.
    pub fcatt: u8,
    /// Maximum SGL Data Block Descriptors (fabrics).
    pub msdbd: u8,
    /// Optional Fabric Commands Support.
    pub ofcs: U16,
    /// Reserved.
    pub reserved1806: [u8; 242],
    /// Power State Descriptors 0 to 31.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

impl PowerState {
    /// All zeroes.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl Controller {
    /// All zeroes, on the heap: 4 KiB are too much for a polled stack.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
    /// OACS, decoded; bits of later specifications are dropped.
    pub fn oacs(&self) -> Oacs {
        Oacs::from_bits_truncate(self.oacs.get())
    }
    /// ONCS, decoded; bits of later specifications are dropped.
    pub fn oncs(&self) -> Oncs {
        Oncs::from_bits_truncate(self.oncs.get())
    }
    /// SGLS, decoded.
    pub fn sgls(&self) -> SglSupport {
        SglSupport(self.sgls.get())
    }
    /// A volatile write cache is present.
    pub fn has_volatile_cache(&self) -> bool {
        self.vwc & 1 != 0
    }
    /// MDTS in bytes, with the unit given as CAP.MPSMIN; `None` is no limit, or one past 2^63.
    pub fn max_transfer(&self, mpsmin: u8) -> Option<u64> {
        if self.mdts == 0 {
            return None;
        }
        let shift = 12 + u32::from(mpsmin) + u32::from(self.mdts);
        (shift < 64).then(|| 1 << shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memoffset::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<PowerState>(), 32);
        assert_eq!(size_of::<Controller>(), 4096);
        assert_eq!(offset_of!(PowerState, idlp), 16);
        assert_eq!(offset_of!(PowerState, actp), 20);
        macro_rules! at {
            ($($field:ident $offset:literal)*) => {$(
                assert_eq!(offset_of!(Controller, $field), $offset, stringify!($field));
            )*};
        }
        at!(vid 0 ssvid 2 sn 4 mn 24 fr 64 rab 72 ieee 73 cmic 76 mdts 77 cntlid 78 ver 80
            rtd3r 84 rtd3e 88 oaes 92 ctratt 96 rrls 100 cntrltype 111 fguid 112 crdt 128
            nvmsr 253 vwci 254 mec 255 oacs 256 acl 258 aerl 259 frmw 260 lpa 261 elpe 262
            npss 263 avscc 264 apsta 265 wctemp 266 cctemp 268 mtfa 270 hmpre 272 hmmin 276
            tnvmcap 280 unvmcap 296 rpmbs 312 edstt 316 dsto 318 fwug 319 kas 320 hctma 322
            mntmt 324 mxtmt 326 sanicap 328 hmminds 332 hmmaxd 336 nsetidmax 338 endgidmax 340
            anatt 342 anacap 343 anagrpmax 344 nanagrpid 348 pels 352 domain 356 megcap 368
            sqes 512 cqes 513 maxcmd 514 nn 516 oncs 520 fuses 522 fna 524 vwc 525 awun 526
            awupf 528 icsvscc 530 nwpc 531 acwu 532 cdfs 534 sgls 536 mnan 540 maxdna 544
            maxcna 560 subnqn 768 ioccsz 1792 iorcsz 1796 icdoff 1800 fcatt 1802 msdbd 1803
            ofcs 1804 psd 2048 vs 3072);
    }

    /// MDTS is an exponent that the device chose: 255 shifted a 32-bit one into nothing and left a
    /// driver with transfers of zero bytes.
    #[test]
    fn mdts_is_a_checked_shift() {
        let mut controller = *Controller::boxed();
        for (mdts, mpsmin, expected) in [
            (0, 0, None),
            (1, 0, Some(8192)),
            (5, 0, Some(131_072)),
            (5, 4, Some(2_097_152)),
            (51, 0, Some(1 << 63)),
            (52, 0, None),
            (255, 15, None),
        ] {
            controller.mdts = mdts;
            assert_eq!(controller.max_transfer(mpsmin), expected, "{mdts} {mpsmin}");
        }
    }

    #[test]
    fn sgl_support_decodes() {
        assert!(!SglSupport(0).supported() && !SglSupport(3).supported());
        assert_eq!(SglSupport(1).alignment(), 1);
        assert_eq!(SglSupport(2).alignment(), 4);
        assert!(SglSupport(1 << 16).bit_bucket());
        assert_eq!(SglSupport(7 << 8).threshold(), 7);
    }
}
