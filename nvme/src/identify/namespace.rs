use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// LBA Format: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size, bytes for each logical block.
    pub ms: U16,
    /// LBA Data Size, as a power of two; below 9 is not allowed, 0 is a format not available.
    pub lbads: u8,
    /// Relative Performance, bits 1:0; 0 is best.
    pub rp: u8,
}

/// Identify Namespace, CNS 00h, NVM command set: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Namespace {
    /// Namespace Size, logical blocks.
    pub nsze: U64,
    /// Namespace Capacity, logical blocks.
    pub ncap: U64,
    /// Namespace Utilization, logical blocks.
    pub nuse: U64,
    /// Namespace Features: bit 0 thin, 1 NAWUN and others, 2 deallocated error, 3 no ID reuse,
    /// 4 NPWG and others.
    pub nsfeat: u8,
    /// Number of LBA Formats, 0-based.
    pub nlbaf: u8,
    /// Formatted LBA Size: index of the format in bits 6:5 and 3:0, metadata inline in bit 4.
    pub flbas: u8,
    /// Metadata Capabilities.
    pub mc: u8,
    /// End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// End-to-end Data Protection Type Settings: type in bits 2:0.
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// Deallocate Logical Block Features: what reads return in bits 2:0, DEAC in bit 3.
    pub dlfeat: u8,
    /// Namespace Atomic Write Unit Normal, logical blocks, 0-based.
    pub nawun: U16,
    /// Namespace Atomic Write Unit Power Fail, logical blocks, 0-based.
    pub nawupf: U16,
    /// Namespace Atomic Compare and Write Unit, logical blocks, 0-based.
    pub nacwu: U16,
    /// Namespace Atomic Boundary Size Normal, logical blocks, 0-based; 0 is none.
    pub nabsn: U16,
    /// Namespace Atomic Boundary Offset, logical blocks.
    pub nabo: U16,
    /// Namespace Atomic Boundary Size Power Fail, logical blocks, 0-based; 0 is none.
    pub nabspf: U16,
    /// Namespace Optimal I/O Boundary, logical blocks; 0 is none.
    pub noiob: U16,
    /// NVM Capacity, bytes.
    pub nvmcap: U128,
    /// Namespace Preferred Write Granularity, logical blocks, 0-based.
    pub npwg: U16,
    /// Namespace Preferred Write Alignment, logical blocks, 0-based.
    pub npwa: U16,
    /// Namespace Preferred Deallocate Granularity, logical blocks, 0-based.
    pub npdg: U16,
    /// Namespace Preferred Deallocate Alignment, logical blocks, 0-based.
    pub npda: U16,
    /// Namespace Optimal Write Size, logical blocks, 0-based.
    pub nows: U16,
    /// Maximum Single Source Range Length of Copy, logical blocks.
    pub mssrl: U16,
    /// Maximum Copy Length, logical blocks.
    pub mcl: U32,
    /// Maximum Source Range Count of Copy, 0-based.
    pub msrc: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA Group Identifier.
    pub anagrpid: U32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Globally Unique Identifier, big-endian.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, big-endian.
    pub eui64: [u8; 8],
    /// LBA Formats 0 to 63.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

impl Namespace {
    /// `nsfeat`: thin provisioning, NSZE may exceed NCAP.
    pub const THIN: u8 = 1 << 0;
    /// `nsfeat`: NAWUN, NAWUPF and NACWU are defined for this namespace.
    pub const ATOMICS: u8 = 1 << 1;
    /// `nsfeat`: reads of deallocated blocks may be errors, if the host asks.
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    /// `nsfeat`: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const OPTIMAL: u8 = 1 << 4;
    /// `dlfeat` bits 2:0: deallocated blocks read as zeroes.
    pub const READ_ZEROES: u8 = 1;
    /// `dlfeat`: Write Zeroes honours DEAC.
    pub const DEAC: u8 = 1 << 3;

    /// All zeroes, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
    /// Index of the LBA format in use: bits 6:5 of FLBAS matter only with more than 16 formats.
    pub const fn format_index(&self) -> usize {
        let low = (self.flbas & 0xf) as usize;
        if self.nlbaf < 16 { low } else { low | ((self.flbas >> 5 & 3) as usize) << 4 }
    }
    /// The LBA format in use; `None` if FLBAS names one past NLBAF.
    pub fn format(&self) -> Option<LbaFormat> {
        let index = self.format_index();
        if index > usize::from(self.nlbaf) {
            return None;
        }
        self.lbaf.get(index).copied()
    }
}

/// Extended LBA Format of CNS 05h: 4 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtendedLbaFormat(pub U32);

impl ExtendedLbaFormat {
    /// Storage Tag Size, bits.
    pub const fn sts(&self) -> u8 {
        (self.0.get() & 0x7f) as u8
    }
    /// Protection Information Format: 0 is a 16-bit guard.
    pub const fn pif(&self) -> u8 {
        (self.0.get() >> 7 & 3) as u8
    }
}

/// Identify Namespace, CNS 05h, CSI 00h: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceNvm {
    /// Logical Block Storage Tag Mask.
    pub lbstm: U64,
    /// Protection Information Capabilities.
    pub pic: u8,
    /// Reserved.
    pub reserved9: [u8; 3],
    /// Extended LBA Formats 0 to 63.
    pub elbaf: [ExtendedLbaFormat; 64],
    /// Reserved.
    pub reserved268: [u8; 3828],
}

impl NamespaceNvm {
    /// All zeroes, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
}

/// Identify Controller, CNS 06h, CSI 00h: 4096 bytes. Zero means no limit was reported.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerNvm {
    /// Verify Size Limit: 2^VSL units of CAP.MPSMIN pages.
    pub vsl: u8,
    /// Write Zeroes Size Limit: 2^WZSL units of CAP.MPSMIN pages.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit: 2^WUSL units of CAP.MPSMIN pages.
    pub wusl: u8,
    /// Dataset Management Ranges Limit, ranges in one command.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, logical blocks in one range.
    pub dmrsl: U32,
    /// Dataset Management Size Limit, logical blocks in one command.
    pub dmsl: U64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

impl ControllerNvm {
    /// All zeroes, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
    /// A size limit such as WZSL in bytes; `None` is no limit, or one past 2^63.
    pub const fn size_limit(value: u8, mpsmin: u8) -> Option<u64> {
        if value == 0 {
            return None;
        }
        let shift = 12 + mpsmin as u32 + value as u32;
        if shift < 64 { Some(1 << shift) } else { None }
    }
}

/// Identify Namespace, CNS 08h, independent of the command set: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceIndependent {
    /// Common Namespace Features: bit 3 no ID reuse, bit 4 rotational.
    pub nsfeat: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// ANA Group Identifier.
    pub anagrpid: U32,
    /// Namespace Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Reserved.
    pub reserved9: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Status: bit 0 ready.
    pub nstat: u8,
    /// Reserved.
    pub reserved15: [u8; 4081],
}

impl NamespaceIndependent {
    /// All zeroes, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memoffset::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<LbaFormat>(), 4);
        assert_eq!(size_of::<Namespace>(), 4096);
        assert_eq!(size_of::<NamespaceNvm>(), 4096);
        assert_eq!(size_of::<ControllerNvm>(), 4096);
        assert_eq!(size_of::<NamespaceIndependent>(), 4096);
        macro_rules! at {
            ($shape:ident $($field:ident $offset:literal)*) => {$(
                assert_eq!(offset_of!($shape, $field), $offset, stringify!($field));
            )*};
        }
        at!(Namespace nsze 0 ncap 8 nuse 16 nsfeat 24 nlbaf 25 flbas 26 mc 27 dpc 28 dps 29
            nmic 30 rescap 31 fpi 32 dlfeat 33 nawun 34 nawupf 36 nacwu 38 nabsn 40 nabo 42
            nabspf 44 noiob 46 nvmcap 48 npwg 64 npwa 66 npdg 68 npda 70 nows 72 mssrl 74 mcl 76
            msrc 80 anagrpid 92 nsattr 99 nvmsetid 100 endgid 102 nguid 104 eui64 120 lbaf 128
            vs 384);
        at!(NamespaceNvm lbstm 0 pic 8 elbaf 12 reserved268 268);
        at!(ControllerNvm vsl 0 wzsl 1 wusl 2 dmrl 3 dmrsl 4 dmsl 8 reserved16 16);
        at!(NamespaceIndependent nsfeat 0 nmic 1 rescap 2 fpi 3 anagrpid 4 nsattr 8 nvmsetid 10
            endgid 12 nstat 14);
        assert_eq!(offset_of!(LbaFormat, lbads), 2);
    }

    #[test]
    fn format_index_uses_its_upper_bits_only_past_sixteen_formats() {
        let mut namespace = *Namespace::boxed();
        namespace.lbaf[1].lbads = 12;
        namespace.flbas = 0x61;
        namespace.nlbaf = 1;
        assert_eq!(namespace.format_index(), 1);
        assert_eq!(namespace.format().map(|f| f.lbads), Some(12));
        namespace.nlbaf = 63;
        assert_eq!(namespace.format_index(), 0x31);
        namespace.nlbaf = 20;
        assert_eq!(namespace.format(), None);
    }
}
