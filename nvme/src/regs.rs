//! Controller registers (Base 2.0, 3.1.3) and doorbells (PCIe Transport 1.0, 3.1.2).

/// Controller Capabilities, 64 bits.
pub const CAP: u64 = 0x00;
/// Version, 32 bits.
pub const VS: u64 = 0x08;
/// Interrupt Mask Set, 32 bits.
pub const INTMS: u64 = 0x0c;
/// Interrupt Mask Clear, 32 bits.
pub const INTMC: u64 = 0x10;
/// Controller Configuration, 32 bits.
pub const CC: u64 = 0x14;
/// Controller Status, 32 bits.
pub const CSTS: u64 = 0x1c;
/// NVM Subsystem Reset, 32 bits.
pub const NSSR: u64 = 0x20;
/// Admin Queue Attributes, 32 bits.
pub const AQA: u64 = 0x24;
/// Admin Submission Queue base address, 64 bits.
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue base address, 64 bits.
pub const ACQ: u64 = 0x30;
/// Controller Memory Buffer Location, 32 bits.
pub const CMBLOC: u64 = 0x38;
/// Controller Memory Buffer Size, 32 bits.
pub const CMBSZ: u64 = 0x3c;
/// Boot Partition Information, 32 bits.
pub const BPINFO: u64 = 0x40;
/// Boot Partition Read Select, 32 bits.
pub const BPRSEL: u64 = 0x44;
/// Boot Partition Memory Buffer Location, 64 bits.
pub const BPMBL: u64 = 0x48;
/// Controller Memory Buffer Memory Space Control, 64 bits.
pub const CMBMSC: u64 = 0x50;
/// Controller Memory Buffer Status, 32 bits.
pub const CMBSTS: u64 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size, 32 bits.
pub const CMBEBS: u64 = 0x5c;
/// Controller Memory Buffer Sustained Write Throughput, 32 bits.
pub const CMBSWTP: u64 = 0x60;
/// NVM Subsystem Shutdown, 32 bits.
pub const NSSD: u64 = 0x64;
/// Controller Ready Timeouts, 32 bits.
pub const CRTO: u64 = 0x68;
/// Persistent Memory Region Capabilities, 32 bits.
pub const PMRCAP: u64 = 0xe00;
/// Persistent Memory Region Control, 32 bits.
pub const PMRCTL: u64 = 0xe04;
/// Persistent Memory Region Status, 32 bits.
pub const PMRSTS: u64 = 0xe08;
/// Persistent Memory Region Elasticity Buffer Size, 32 bits.
pub const PMREBS: u64 = 0xe0c;
/// Persistent Memory Region Sustained Write Throughput, 32 bits.
pub const PMRSWTP: u64 = 0xe10;
/// Persistent Memory Region Memory Space Control, lower 32 bits.
pub const PMRMSCL: u64 = 0xe14;
/// Persistent Memory Region Memory Space Control, upper 32 bits.
pub const PMRMSCU: u64 = 0xe18;
/// Where the doorbells begin.
pub const DOORBELLS: u64 = 0x1000;

/// What `NSSR` must be written with to reset the subsystem: "NVMe".
pub const NSSR_MAGIC: u32 = 0x4e56_4d65;

/// Offset in the register BAR of a queue's doorbell: submission tail, or completion head.
pub const fn doorbell_offset(qid: u16, is_cq: bool, dstrd: u8) -> u64 {
    DOORBELLS + doorbell_index(qid, is_cq) * doorbell_stride(dstrd)
}

/// Place of a queue's doorbell in the sequence of doorbells: SQ0, CQ0, SQ1, CQ1, ...
pub const fn doorbell_index(qid: u16, is_cq: bool) -> u64 {
    qid as u64 * 2 + is_cq as u64
}

/// Bytes between doorbells: 4 << DSTRD.
pub const fn doorbell_stride(dstrd: u8) -> u64 {
    4 << (dstrd & 0xf)
}

/// The queue whose doorbell is at this offset of the BAR: (queue id, is completion queue).
///
/// None below [`DOORBELLS`], between doorbells, or past queue 65,535.
pub const fn doorbell_at(offset: u64, dstrd: u8) -> Option<(u16, bool)> {
    if offset < DOORBELLS {
        return None;
    }
    let at = offset - DOORBELLS;
    let stride = doorbell_stride(dstrd);
    if !at.is_multiple_of(stride) {
        return None;
    }
    let index = at / stride;
    if index / 2 > u16::MAX as u64 {
        return None;
    }
    Some(((index / 2) as u16, index % 2 == 1))
}

const fn bits(value: u64, low: u32, count: u32) -> u64 {
    (value >> low) & ((1 << count) - 1)
}

/// Controller Capabilities (3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cap(pub u64);

impl Cap {
    /// Maximum Queue Entries Supported, 0-based: a value of 0 is not allowed by the specification.
    pub const fn mqes(self) -> u16 {
        bits(self.0, 0, 16) as u16
    }
    /// Contiguous Queues Required.
    pub const fn cqr(self) -> bool {
        bits(self.0, 16, 1) == 1
    }
    /// Arbitration Mechanism Supported: bit 0 weighted round robin, bit 1 vendor specific.
    pub const fn ams(self) -> u8 {
        bits(self.0, 17, 2) as u8
    }
    /// Timeout, in units of 500 ms.
    pub const fn to(self) -> u8 {
        bits(self.0, 24, 8) as u8
    }
    /// Doorbell Stride: 4 << DSTRD bytes.
    pub const fn dstrd(self) -> u8 {
        bits(self.0, 32, 4) as u8
    }
    /// NVM Subsystem Reset Supported.
    pub const fn nssrs(self) -> bool {
        bits(self.0, 36, 1) == 1
    }
    /// Command Sets Supported, as it stands: see [`Cap::css_nvm`] and its neighbours.
    pub const fn css(self) -> u8 {
        bits(self.0, 37, 8) as u8
    }
    /// The NVM command set is supported.
    pub const fn css_nvm(self) -> bool {
        self.css() & 0x01 != 0
    }
    /// One or more I/O command sets are supported, and CNS 1Ch tells which.
    pub const fn css_io(self) -> bool {
        self.css() & 0x40 != 0
    }
    /// No I/O command set is supported: an administrative controller.
    pub const fn css_admin_only(self) -> bool {
        self.css() & 0x80 != 0
    }
    /// Boot Partition Support.
    pub const fn bps(self) -> bool {
        bits(self.0, 45, 1) == 1
    }
    /// Controller Power Scope.
    pub const fn cps(self) -> u8 {
        bits(self.0, 46, 2) as u8
    }
    /// Memory Page Size Minimum: 2^(12 + MPSMIN) bytes.
    pub const fn mpsmin(self) -> u8 {
        bits(self.0, 48, 4) as u8
    }
    /// Memory Page Size Maximum: 2^(12 + MPSMAX) bytes.
    pub const fn mpsmax(self) -> u8 {
        bits(self.0, 52, 4) as u8
    }
    /// Persistent Memory Region Supported.
    pub const fn pmrs(self) -> bool {
        bits(self.0, 56, 1) == 1
    }
    /// Controller Memory Buffer Supported.
    pub const fn cmbs(self) -> bool {
        bits(self.0, 57, 1) == 1
    }
    /// NVM Subsystem Shutdown Supported.
    pub const fn nsss(self) -> bool {
        bits(self.0, 58, 1) == 1
    }
    /// Controller Ready With Media Support.
    pub const fn crwms(self) -> bool {
        bits(self.0, 59, 1) == 1
    }
    /// Controller Ready Independent of Media Support.
    pub const fn crims(self) -> bool {
        bits(self.0, 60, 1) == 1
    }

    /// With MQES (0-based).
    pub const fn with_mqes(self, mqes: u16) -> Self {
        self.put(0, 16, mqes as u64)
    }
    /// With CQR.
    pub const fn with_cqr(self, on: bool) -> Self {
        self.put(16, 1, on as u64)
    }
    /// With TO, in units of 500 ms.
    pub const fn with_to(self, to: u8) -> Self {
        self.put(24, 8, to as u64)
    }
    /// With DSTRD.
    pub const fn with_dstrd(self, dstrd: u8) -> Self {
        self.put(32, 4, dstrd as u64)
    }
    /// With NSSRS.
    pub const fn with_nssrs(self, on: bool) -> Self {
        self.put(36, 1, on as u64)
    }
    /// With CSS, all eight bits.
    pub const fn with_css(self, css: u8) -> Self {
        self.put(37, 8, css as u64)
    }
    /// With MPSMIN.
    pub const fn with_mpsmin(self, mpsmin: u8) -> Self {
        self.put(48, 4, mpsmin as u64)
    }
    /// With MPSMAX.
    pub const fn with_mpsmax(self, mpsmax: u8) -> Self {
        self.put(52, 4, mpsmax as u64)
    }
    /// With PMRS.
    pub const fn with_pmrs(self, on: bool) -> Self {
        self.put(56, 1, on as u64)
    }
    /// With CMBS.
    pub const fn with_cmbs(self, on: bool) -> Self {
        self.put(57, 1, on as u64)
    }
    /// With CRMS: bit 0 ready with media, bit 1 ready independent of media.
    pub const fn with_crms(self, crms: u8) -> Self {
        self.put(59, 2, crms as u64)
    }

    const fn put(self, low: u32, count: u32, value: u64) -> Self {
        let mask = ((1 << count) - 1) << low;
        Cap((self.0 & !mask) | ((value << low) & mask))
    }
}

/// Version (3.1.3.2): major, minor, tertiary.
pub const fn version(major: u16, minor: u8, tertiary: u8) -> u32 {
    (major as u32) << 16 | (minor as u32) << 8 | tertiary as u32
}

/// `CC.SHN`: no notification.
pub const SHN_NONE: u8 = 0;
/// `CC.SHN`: normal shutdown.
pub const SHN_NORMAL: u8 = 1;
/// `CC.SHN`: abrupt shutdown.
pub const SHN_ABRUPT: u8 = 2;
/// `CC.CSS`: the NVM command set.
pub const CSS_NVM: u8 = 0;
/// `CC.CSS`: all supported I/O command sets.
pub const CSS_ALL: u8 = 6;
/// `CC.CSS`: admin commands only.
pub const CSS_ADMIN: u8 = 7;

/// Controller Configuration (3.1.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cc(pub u32);

impl Cc {
    /// Enable.
    pub const fn en(self) -> bool {
        self.0 & 1 != 0
    }
    /// I/O Command Set Selected: [`CSS_NVM`], [`CSS_ALL`] or [`CSS_ADMIN`].
    pub const fn css(self) -> u8 {
        bits(self.0 as u64, 4, 3) as u8
    }
    /// Memory Page Size: 2^(12 + MPS) bytes.
    pub const fn mps(self) -> u8 {
        bits(self.0 as u64, 7, 4) as u8
    }
    /// Arbitration Mechanism Selected.
    pub const fn ams(self) -> u8 {
        bits(self.0 as u64, 11, 3) as u8
    }
    /// Shutdown Notification.
    pub const fn shn(self) -> u8 {
        bits(self.0 as u64, 14, 2) as u8
    }
    /// I/O Submission Queue Entry Size, as a power of two: 6.
    pub const fn iosqes(self) -> u8 {
        bits(self.0 as u64, 16, 4) as u8
    }
    /// I/O Completion Queue Entry Size, as a power of two: 4.
    pub const fn iocqes(self) -> u8 {
        bits(self.0 as u64, 20, 4) as u8
    }
    /// Controller Ready Independent of Media Enable.
    pub const fn crime(self) -> bool {
        bits(self.0 as u64, 24, 1) == 1
    }

    /// With EN.
    pub const fn with_en(self, on: bool) -> Self {
        self.put(0, 1, on as u32)
    }
    /// With CSS.
    pub const fn with_css(self, css: u8) -> Self {
        self.put(4, 3, css as u32)
    }
    /// With MPS.
    pub const fn with_mps(self, mps: u8) -> Self {
        self.put(7, 4, mps as u32)
    }
    /// With AMS.
    pub const fn with_ams(self, ams: u8) -> Self {
        self.put(11, 3, ams as u32)
    }
    /// With SHN.
    pub const fn with_shn(self, shn: u8) -> Self {
        self.put(14, 2, shn as u32)
    }
    /// With IOSQES.
    pub const fn with_iosqes(self, log2: u8) -> Self {
        self.put(16, 4, log2 as u32)
    }
    /// With IOCQES.
    pub const fn with_iocqes(self, log2: u8) -> Self {
        self.put(20, 4, log2 as u32)
    }
    /// With CRIME.
    pub const fn with_crime(self, on: bool) -> Self {
        self.put(24, 1, on as u32)
    }

    const fn put(self, low: u32, count: u32, value: u32) -> Self {
        let mask = ((1u32 << count) - 1) << low;
        Cc((self.0 & !mask) | ((value << low) & mask))
    }
}

/// `CSTS.SHST`: normal operation.
pub const SHST_NORMAL: u8 = 0;
/// `CSTS.SHST`: shutdown processing occurs.
pub const SHST_OCCURRING: u8 = 1;
/// `CSTS.SHST`: shutdown processing is complete.
pub const SHST_COMPLETE: u8 = 2;

/// Controller Status (3.1.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Csts(pub u32);

impl Csts {
    /// What a register of a device that is gone reads as.
    pub const GONE: Csts = Csts(u32::MAX);

    /// Ready.
    pub const fn rdy(self) -> bool {
        self.0 & 1 != 0
    }
    /// Controller Fatal Status.
    pub const fn cfs(self) -> bool {
        self.0 & 2 != 0
    }
    /// Shutdown Status: [`SHST_NORMAL`], [`SHST_OCCURRING`], [`SHST_COMPLETE`].
    pub const fn shst(self) -> u8 {
        bits(self.0 as u64, 2, 2) as u8
    }
    /// NVM Subsystem Reset Occurred.
    pub const fn nssro(self) -> bool {
        self.0 & 0x10 != 0
    }
    /// Processing Paused.
    pub const fn pp(self) -> bool {
        self.0 & 0x20 != 0
    }
    /// All ones: the device no longer answers.
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// With RDY.
    pub const fn with_rdy(self, on: bool) -> Self {
        Csts(self.0 & !1 | on as u32)
    }
    /// With CFS.
    pub const fn with_cfs(self, on: bool) -> Self {
        Csts(self.0 & !2 | (on as u32) << 1)
    }
    /// With SHST.
    pub const fn with_shst(self, shst: u8) -> Self {
        Csts(self.0 & !0xc | (shst as u32 & 3) << 2)
    }
    /// With PP.
    pub const fn with_pp(self, on: bool) -> Self {
        Csts(self.0 & !0x20 | (on as u32) << 5)
    }
}

/// Admin Queue Attributes (3.1.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Aqa(pub u32);

impl Aqa {
    /// From the numbers of entries (1-based, 2 to 4096 each).
    pub const fn new(sq_entries: u16, cq_entries: u16) -> Self {
        let asqs = sq_entries.wrapping_sub(1) as u32 & 0xfff;
        let acqs = cq_entries.wrapping_sub(1) as u32 & 0xfff;
        Aqa(acqs << 16 | asqs)
    }
    /// Admin Submission Queue Size, 0-based.
    pub const fn asqs(self) -> u16 {
        bits(self.0 as u64, 0, 12) as u16
    }
    /// Admin Completion Queue Size, 0-based.
    pub const fn acqs(self) -> u16 {
        bits(self.0 as u64, 16, 12) as u16
    }
}

/// Controller Ready Timeouts (3.1.3.21), in units of 500 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Crto(pub u32);

impl Crto {
    /// Controller Ready With Media Timeout.
    pub const fn crwmt(self) -> u16 {
        self.0 as u16
    }
    /// Controller Ready Independent of Media Timeout.
    pub const fn crimt(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_fields_sit_where_the_specification_puts_them() {
        let cap = Cap(0x0070_0020_3c01_03ff);
        assert_eq!(cap.mqes(), 1023);
        assert!(cap.cqr());
        assert_eq!(cap.to(), 60);
        assert!(cap.css_nvm() && !cap.css_io() && !cap.css_admin_only());
        assert_eq!((cap.mpsmin(), cap.mpsmax()), (0, 7));
        assert_eq!(Cap(1 << 43).css(), 0x40);
        assert!(Cap(1 << 44).css_admin_only());
        assert_eq!(Cap(0xf << 32).dstrd(), 15);
        let built =
            Cap::default().with_mqes(1023).with_cqr(true).with_to(60).with_css(1).with_mpsmax(7);
        assert_eq!(built, cap);
        assert_eq!(Cap::default().with_crms(3), Cap(3 << 59));
    }

    #[test]
    fn cc_and_csts_round_trip() {
        let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
        assert_eq!(cc.0, 0x0046_0001);
        assert_eq!(cc.with_shn(SHN_NORMAL).0, 0x0046_4001);
        assert_eq!(cc.with_css(CSS_ALL).css(), 6);
        assert_eq!(cc.with_mps(15).mps(), 15);
        assert_eq!(Csts::default().with_rdy(true).with_shst(2).0, 0b1001);
        assert!(Csts(2).cfs() && Csts::GONE.is_gone());
        assert_eq!(Aqa::new(32, 64).0, 63 << 16 | 31);
        assert_eq!((Aqa(63 << 16 | 31).asqs(), Aqa(63 << 16 | 31).acqs()), (31, 63));
        assert_eq!((Crto(0x0002_0001).crwmt(), Crto(0x0002_0001).crimt()), (1, 2));
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(doorbell_offset(0, false, 0), 0x1000);
        assert_eq!(doorbell_offset(0, true, 0), 0x1004);
        assert_eq!(doorbell_offset(3, true, 0), 0x101c);
        assert_eq!(doorbell_offset(1, false, 4), 0x1080);
        assert_eq!(doorbell_offset(u16::MAX, true, 15), 0x1000 + 131_071 * 131_072);
        for dstrd in [0, 1, 15] {
            for (qid, cq) in [(0, false), (0, true), (1, false), (7, true), (u16::MAX, true)] {
                let at = doorbell_offset(qid, cq, dstrd);
                assert_eq!(doorbell_at(at, dstrd), Some((qid, cq)));
                assert_eq!(doorbell_at(at + 1, dstrd), None);
            }
        }
        assert_eq!(doorbell_at(0xffc, 0), None);
        assert_eq!(doorbell_at(0x1000 + 131_072 * 4, 0), None);
    }
}
