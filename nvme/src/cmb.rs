//! Controller Memory Buffer: the registers that say where it is (Base 2.0, 3.1.3.11 to 3.1.3.16).

/// Controller Memory Buffer Location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cmbloc(pub u32);

impl Cmbloc {
    /// Base Indicator Register: the BAR that holds the buffer.
    pub const fn bir(self) -> u8 {
        self.0 as u8 & 7
    }
    /// CMB Queue Mixed Memory Support: one queue may lie in it in part.
    pub const fn cqmms(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// CMB Queue Physically Discontiguous Support.
    pub const fn cqpds(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    /// Offset of the buffer in its BAR, in units of [`Cmbsz::unit`].
    pub const fn ofst(self) -> u32 {
        self.0 >> 12
    }

    /// With BIR.
    pub const fn with_bir(self, bir: u8) -> Self {
        Cmbloc(self.0 & !7 | bir as u32 & 7)
    }
    /// With OFST, in units of [`Cmbsz::unit`].
    pub const fn with_ofst(self, ofst: u32) -> Self {
        Cmbloc(self.0 & 0xfff | ofst << 12)
    }
}

/// Controller Memory Buffer Size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cmbsz(pub u32);

impl Cmbsz {
    /// Submission Queue Support.
    pub const fn sqs(self) -> bool {
        self.0 & 1 != 0
    }
    /// Completion Queue Support.
    pub const fn cqs(self) -> bool {
        self.0 & 1 << 1 != 0
    }
    /// PRP SGL List Support.
    pub const fn lists(self) -> bool {
        self.0 & 1 << 2 != 0
    }
    /// Read Data Support.
    pub const fn rds(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// Write Data Support.
    pub const fn wds(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    /// Size Units as they stand: 4 KiB << (4 * SZU); above 6 is reserved.
    pub const fn szu(self) -> u8 {
        (self.0 >> 8) as u8 & 0xf
    }
    /// Size, in units of [`Cmbsz::unit`]; 0 if there is no buffer.
    pub const fn sz(self) -> u32 {
        self.0 >> 12
    }
    /// Bytes of a unit; `None` for a reserved SZU.
    pub const fn unit(self) -> Option<u64> {
        if self.szu() > 6 { None } else { Some(4096 << (4 * self.szu() as u32)) }
    }

    /// With the five abilities: bit 0 SQS, 1 CQS, 2 LISTS, 3 RDS, 4 WDS.
    pub const fn with_abilities(self, bits: u8) -> Self {
        Cmbsz(self.0 & !0x1f | bits as u32 & 0x1f)
    }
    /// With SZU.
    pub const fn with_szu(self, szu: u8) -> Self {
        Cmbsz(self.0 & !(0xf << 8) | (szu as u32 & 0xf) << 8)
    }
    /// With SZ.
    pub const fn with_sz(self, sz: u32) -> Self {
        Cmbsz(self.0 & 0xfff | sz << 12)
    }
}

/// Controller Memory Buffer Memory Space Control. Zero after a controller-level reset that is not
/// a controller reset (CC.EN), which leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cmbmsc(pub u64);

impl Cmbmsc {
    /// Capabilities Registers Enabled: CMBLOC and CMBSZ tell the truth.
    pub const fn cre(self) -> bool {
        self.0 & 1 != 0
    }
    /// Controller Memory Space Enable: addresses from CBA on are the buffer's.
    pub const fn cmse(self) -> bool {
        self.0 & 1 << 1 != 0
    }
    /// Controller Base Address, a multiple of 4 KiB.
    pub const fn cba(self) -> u64 {
        self.0 & !0xfff
    }

    /// With CRE.
    pub const fn with_cre(self, on: bool) -> Self {
        Cmbmsc(self.0 & !1 | on as u64)
    }
    /// With CMSE.
    pub const fn with_cmse(self, on: bool) -> Self {
        Cmbmsc(self.0 & !2 | (on as u64) << 1)
    }
    /// With CBA, a multiple of 4 KiB.
    pub const fn with_cba(self, cba: u64) -> Self {
        Cmbmsc(self.0 & 0xfff | cba & !0xfff)
    }
}

/// Controller Memory Buffer Status, bit 0: Controller Base Address Invalid.
pub const CMBSTS_CBAI: u32 = 1;

/// Where a BAR holds a buffer, if it can be so: its offset and its length in bytes.
///
/// `None` if they have a reserved unit, no size, or an end past the BAR of `bar_len` bytes.
pub fn place(location: Cmbloc, size: Cmbsz, bar_len: u64) -> Option<(u64, u64)> {
    let unit = size.unit()?;
    let len = unit.checked_mul(size.sz().into())?;
    let offset = unit.checked_mul(location.ofst().into())?;
    let end = offset.checked_add(len)?;
    (len > 0 && end <= bar_len).then_some((offset, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let location = Cmbloc(0x0001_2004 | 1 << 3);
        assert_eq!((location.bir(), location.ofst()), (4, 0x12));
        assert!(location.cqmms() && !location.cqpds());
        let size = Cmbsz(0x0040_0101);
        assert!(size.sqs() && !size.cqs() && !size.lists() && !size.rds() && !size.wds());
        assert_eq!((size.szu(), size.sz(), size.unit()), (1, 0x400, Some(65_536)));
        assert_eq!(Cmbsz::default().with_abilities(1).with_szu(1).with_sz(0x400), size);
        assert_eq!(Cmbloc::default().with_bir(4).with_ofst(0x12), Cmbloc(0x0001_2004));
        let control = Cmbmsc::default().with_cba(0x1234_5000).with_cre(true).with_cmse(true);
        assert_eq!(control, Cmbmsc(0x1234_5003));
        assert!(control.cre() && control.cmse() && control.cba() == 0x1234_5000);
    }

    /// A driver shifted by SZU and multiplied without a look at the BAR, and wrote its queues to
    /// whatever lay behind it.
    #[test]
    fn a_buffer_lies_inside_its_bar_or_nowhere() {
        let size = |szu, sz| Cmbsz::default().with_szu(szu).with_sz(sz);
        let at = |ofst| Cmbloc::default().with_ofst(ofst);
        assert_eq!(place(at(2), size(0, 2), 0x4000), Some((0x2000, 0x2000)));
        assert_eq!(place(at(0), size(1, 1), 0x1_0000), Some((0, 0x1_0000)));
        for (location, size) in [
            (at(2), size(0, 3)),
            (at(4), size(0, 1)),
            (at(0), size(0, 0)),
            (at(0), size(7, 1)),
            (at(0), size(15, 1)),
            (at(0xf_ffff), size(6, 0xf_ffff)),
        ] {
            assert_eq!(place(location, size, 0x4000), None, "{location:?} {size:?}");
        }
    }
}
