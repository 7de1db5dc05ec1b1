//! Configuration space: identity, command register, capabilities.

use crate::{PciError, PciErrorKind};

/// The configuration space of a function: 256 bytes, or 4096 with PCI Express.
///
/// Each method is one access of just that size at an aligned byte offset.
pub trait ConfigSpace: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u16;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// The offset is out of range, or the back end failed.
    fn read8(&self, offset: u16) -> Result<u8, PciError>;

    /// Reads a little-endian 16-bit word.
    ///
    /// # Errors
    /// The offset is odd or out of range, or the back end failed.
    fn read16(&self, offset: u16) -> Result<u16, PciError>;

    /// Reads a little-endian 32-bit word.
    ///
    /// # Errors
    /// The offset is no multiple of four or out of range, or the back end failed.
    fn read32(&self, offset: u16) -> Result<u32, PciError>;

    /// Writes a byte. Read-only bits keep their value.
    ///
    /// # Errors
    /// The offset is out of range, or the back end failed.
    fn write8(&self, offset: u16, value: u8) -> Result<(), PciError>;

    /// Writes a little-endian 16-bit word. Read-only bits keep their value.
    ///
    /// # Errors
    /// The offset is odd or out of range, or the back end failed.
    fn write16(&self, offset: u16, value: u16) -> Result<(), PciError>;

    /// Writes a little-endian 32-bit word. Read-only bits keep their value.
    ///
    /// # Errors
    /// The offset is no multiple of four or out of range, or the back end failed.
    fn write32(&self, offset: u16, value: u32) -> Result<(), PciError>;
}

/// Byte offsets of the header (PCI 3.0, 6.1) and the bits that a driver touches.
pub(crate) mod offset {
    pub(crate) const VENDOR: u16 = 0x00;
    pub(crate) const DEVICE: u16 = 0x02;
    pub(crate) const COMMAND: u16 = 0x04;
    pub(crate) const STATUS: u16 = 0x06;
    pub(crate) const REVISION: u16 = 0x08;
    pub(crate) const CLASS: u16 = 0x09;
    pub(crate) const BAR0: u16 = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: u16 = 0x2c;
    pub(crate) const SUBSYSTEM: u16 = 0x2e;
    pub(crate) const CAPABILITIES: u16 = 0x34;
    pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register (PCI 3.0, 6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command;

impl Command {
    /// The function answers in its memory BARs.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may reach memory by DMA.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The function must not use its interrupt pin.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Who made a function and what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Vendor.
    pub vendor: u16,
    /// Device, as the vendor counts.
    pub device: u16,
    /// Vendor of the board.
    pub subsystem_vendor: u16,
    /// Board, as its vendor counts.
    pub subsystem: u16,
    /// Class code: class, subclass, interface from the top byte down; NVMe is `0x01_08_02`.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

impl Ids {
    /// Reads the identity of a function.
    ///
    /// # Errors
    /// The back end failed, or the function is gone (it reads as all ones).
    pub fn read(config: &dyn ConfigSpace) -> Result<Ids, PciError> {
        let vendor = config.read16(offset::VENDOR)?;
        if vendor == 0xffff {
            return Err(gone());
        }
        let revision_and_class = config.read32(offset::REVISION)?;
        Ok(Ids {
            vendor,
            device: config.read16(offset::DEVICE)?,
            subsystem_vendor: config.read16(offset::SUBSYSTEM_VENDOR)?,
            subsystem: config.read16(offset::SUBSYSTEM)?,
            class: revision_and_class >> 8,
            revision: revision_and_class as u8,
        })
    }
}

/// Makes a function answer in its BARs and lets it reach memory: memory decoding and bus
/// mastering on, the interrupt pin off.
///
/// # Errors
/// The back end failed, or the function is gone.
pub fn enable(config: &dyn ConfigSpace) -> Result<(), PciError> {
    let want = Command::MEMORY | Command::BUS_MASTER | Command::INTX_DISABLE;
    let command = config.read16(offset::COMMAND)?;
    if command == 0xffff {
        return Err(gone());
    }
    config.write16(offset::COMMAND, command | want)
}

/// Lets a function reach memory no more: bus mastering off. What it has begun may still arrive for
/// a moment.
///
/// # Errors
/// The back end failed, or the function is gone.
pub fn disable(config: &dyn ConfigSpace) -> Result<(), PciError> {
    let command = config.read16(offset::COMMAND)?;
    if command == 0xffff {
        return Err(gone());
    }
    config.write16(offset::COMMAND, command & !Command::BUS_MASTER)
}

/// The bus address of a memory BAR (0 to 5); none for an I/O port BAR, one without an address, and
/// the upper half of another.
///
/// # Errors
/// The back end failed, or there is no such BAR.
pub fn bar_address(config: &dyn ConfigSpace, index: u8) -> Result<Option<u64>, PciError> {
    const IS_PORT: u32 = 1;
    const IS_64_BITS: u32 = 2 << 1;
    if index > 5 {
        let text = format!("there is no BAR {index}; a function has BARs 0 to 5");
        return Err(PciError::new(PciErrorKind::OutOfRange, text));
    }
    let at = |index: u8| offset::BAR0 + u16::from(index) * 4;
    let low = config.read32(at(index))?;
    if low & IS_PORT != 0 {
        return Ok(None);
    }
    let high = match low & IS_64_BITS != 0 && index < 5 {
        true => config.read32(at(index + 1))?,
        false => 0,
    };
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    Ok((address != 0).then_some(address))
}

/// The number of a capability (PCI Code and ID Assignment, 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// Power management.
    pub const POWER: CapabilityId = CapabilityId(0x01);
    /// PCI Express.
    pub const EXPRESS: CapabilityId = CapabilityId(0x10);
    /// MSI-X.
    pub const MSIX: CapabilityId = CapabilityId(0x11);
}

/// One capability in the list of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: CapabilityId,
    /// Byte offset of its first byte (the id) in configuration space.
    pub offset: u16,
}

/// The capabilities of a function, in the order of its list. A list that runs in a circle or
/// out of the header ends there.
///
/// # Errors
/// The back end failed.
pub fn capabilities(config: &dyn ConfigSpace) -> Result<Vec<Capability>, PciError> {
    const LIST: u16 = 1 << 4;
    // 192 bytes after the header, four for the smallest capability.
    const MOST: usize = 48;

    let mut found = Vec::new();
    if config.read16(offset::STATUS)? & LIST == 0 {
        return Ok(found);
    }
    let mut at = u16::from(config.read8(offset::CAPABILITIES)? & !3);
    while at >= 0x40 && found.len() < MOST {
        let header = config.read16(at)?;
        let id = CapabilityId(header as u8);
        if id.0 == 0xff {
            return Err(gone());
        }
        found.push(Capability { id, offset: at });
        at = (header >> 8) & !3;
    }
    Ok(found)
}

fn gone() -> PciError {
    PciError::new(
        PciErrorKind::Gone,
        "configuration space reads as all ones; the function is gone or not powered",
    )
}
