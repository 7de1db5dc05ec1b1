//! Persistent Memory Region: its registers (Base 2.0, 3.1.3.22 to 3.1.3.28). It is all of the BAR
//! that PMRCAP names.

use std::time::Duration;

/// Persistent Memory Region Capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pmrcap(pub u32);

impl Pmrcap {
    /// Read Data Support: commands may have it as a source of data for the host.
    pub const fn rds(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// Write Data Support.
    pub const fn wds(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    /// Base Indicator Register: the BAR that is the region.
    pub const fn bir(self) -> u8 {
        (self.0 >> 5) as u8 & 7
    }
    /// How long the region may take to become ready, or not ready: PMRTO in units of PMRTU, 500 ms
    /// or minutes; reserved units count as minutes.
    pub const fn timeout(self) -> Duration {
        let count = (self.0 >> 16) as u64 & 0xff;
        let unit_ms = if self.0 >> 8 & 3 == 0 { 500 } else { 60_000 };
        Duration::from_millis(count * unit_ms)
    }
    /// Write Barrier Mechanisms, bit 0: a read of the region finishes all writes before it.
    pub const fn barrier_by_read(self) -> bool {
        self.0 & 1 << 10 != 0
    }
    /// Write Barrier Mechanisms, bit 1: a read of PMRSTS finishes all writes before it.
    pub const fn barrier_by_status(self) -> bool {
        self.0 & 1 << 11 != 0
    }
    /// Controller Memory Space Supported: commands may name the region by an address of the host's
    /// choice.
    pub const fn cmss(self) -> bool {
        self.0 & 1 << 24 != 0
    }

    /// With RDS and WDS.
    pub const fn with_data(self, rds: bool, wds: bool) -> Self {
        Pmrcap(self.0 & !(3 << 3) | (rds as u32) << 3 | (wds as u32) << 4)
    }
    /// With BIR.
    pub const fn with_bir(self, bir: u8) -> Self {
        Pmrcap(self.0 & !(7 << 5) | (bir as u32 & 7) << 5)
    }
    /// With PMRTO, in units of 500 ms.
    pub const fn with_timeout(self, units: u8) -> Self {
        Pmrcap(self.0 & !(0xff << 16 | 3 << 8) | (units as u32) << 16)
    }
    /// With PMRWBM: bit 0 a read of the region, bit 1 a read of PMRSTS.
    pub const fn with_barriers(self, bits: u8) -> Self {
        Pmrcap(self.0 & !(0xf << 10) | (bits as u32 & 0xf) << 10)
    }
    /// With CMSS.
    pub const fn with_cmss(self, on: bool) -> Self {
        Pmrcap(self.0 & !(1 << 24) | (on as u32) << 24)
    }
}

/// Persistent Memory Region Control, bit 0: Enable.
pub const PMRCTL_EN: u32 = 1;

/// Persistent Memory Region Memory Space Control, lower half, bit 1: Controller Memory Space
/// Enable.
pub const PMRMSCL_CMSE: u32 = 2;

/// Persistent Memory Region Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pmrsts(pub u32);

impl Pmrsts {
    /// Error: what the vendor means by it; 0 is none.
    pub const fn err(self) -> u8 {
        self.0 as u8
    }
    /// Not Ready.
    pub const fn nrdy(self) -> bool {
        self.0 & 1 << 8 != 0
    }
    /// Health Status: 0 normal, 1 restore error, 2 read only, 3 unreliable.
    pub const fn hsts(self) -> u8 {
        (self.0 >> 9) as u8 & 7
    }
    /// Controller Base Address Invalid.
    pub const fn cbai(self) -> bool {
        self.0 & 1 << 12 != 0
    }

    /// With NRDY.
    pub const fn with_nrdy(self, on: bool) -> Self {
        Pmrsts(self.0 & !(1 << 8) | (on as u32) << 8)
    }
    /// With CBAI.
    pub const fn with_cbai(self, on: bool) -> Self {
        Pmrsts(self.0 & !(1 << 12) | (on as u32) << 12)
    }
    /// With HSTS.
    pub const fn with_hsts(self, hsts: u8) -> Self {
        Pmrsts(self.0 & !(7 << 9) | (hsts as u32 & 7) << 9)
    }
}

/// Persistent Memory Region Elasticity Buffer Size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pmrebs(pub u32);

impl Pmrebs {
    /// Bytes that the region takes at the speed of its bus; 0 is not reported.
    pub const fn bytes(self) -> u64 {
        let unit = match self.0 & 0xf {
            1 => 1 << 10,
            2 => 1 << 20,
            3 => 1 << 30,
            _ => 1,
        };
        (self.0 >> 8) as u64 * unit
    }
    /// Read Bypass Behavior: a read may overtake writes to other addresses.
    pub const fn rbb(self) -> bool {
        self.0 & 1 << 4 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let cap = Pmrcap(1 << 24 | 2 << 16 | 2 << 10 | 4 << 5 | 1 << 4);
        assert!(cap.cmss() && cap.wds() && !cap.rds());
        assert!(cap.barrier_by_status() && !cap.barrier_by_read());
        assert_eq!((cap.bir(), cap.timeout()), (4, Duration::from_secs(1)));
        assert_eq!(Pmrcap(cap.0 | 1 << 8).timeout(), Duration::from_secs(120));
        let built = Pmrcap::default().with_bir(4).with_timeout(2).with_barriers(2);
        assert_eq!(built.with_data(false, true).with_cmss(true), cap);
        let status = Pmrsts(1 << 12 | 3 << 9 | 1 << 8 | 7);
        assert_eq!((status.err(), status.hsts()), (7, 3));
        assert!(status.nrdy() && status.cbai());
        assert!(!status.with_cbai(false).cbai() && Pmrsts::default().with_cbai(true).cbai());
        assert_eq!(Pmrsts::default().with_nrdy(true).with_hsts(3), Pmrsts(3 << 9 | 1 << 8));
        assert_eq!((Pmrebs(3 << 8 | 2).bytes(), Pmrebs(3 << 8).bytes()), (3 << 20, 3));
        assert!(Pmrebs(1 << 4).rbb());
    }
}
