//! Configuration space, through the kernel, which keeps some of it to itself.

use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use super::device::Device;
use crate::config::offset;
use crate::{Command, ConfigSpace, PciError, PciErrorKind};

pub(super) struct VfioConfig {
    device: Arc<Device>,
    /// Of its first byte in the device's file.
    start: u64,
    len: u16,
}

impl VfioConfig {
    pub(super) fn new(device: &Arc<Device>) -> Result<VfioConfig, PciError> {
        let region = device.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let len = region.len.min(4096) as u16;
        let config = VfioConfig { device: device.clone(), start: region.offset, len };
        let command = config.read16(offset::COMMAND)?;
        config.note(offset::COMMAND, command);
        Ok(config)
    }

    fn read<const N: usize>(&self, offset: u16) -> Result<[u8; N], PciError> {
        let at = self.place(offset, N)?;
        let bytes = self.device.read(at);
        bytes.map_err(|error| self.device.error(&format!("reading config {offset:#x}"), error))
    }

    fn write<const N: usize>(&self, offset: u16, bytes: [u8; N]) -> Result<(), PciError> {
        let at = self.place(offset, N)?;
        let done = self.device.write(at, bytes);
        done.map_err(|error| self.device.error(&format!("writing config {offset:#x}"), error))
    }

    fn place(&self, offset: u16, size: usize) -> Result<u64, PciError> {
        let at = usize::from(offset);
        if at.is_multiple_of(size) && at + size <= usize::from(self.len) {
            return Ok(self.start + u64::from(offset));
        }
        let (address, len) = (self.device.address(), self.len);
        let text = format!("{address}: {size} bytes at {at:#x} of {len:#x} of configuration space");
        Err(PciError::new(PciErrorKind::OutOfRange, text))
    }

    /// Keeps BARs from being touched while the function does not answer in them. Off goes first,
    /// on goes last.
    fn note(&self, at: u16, value: u16) {
        if at == offset::COMMAND {
            self.device.set_decodes(value & Command::MEMORY != 0);
        }
    }

    fn write_command(&self, value: u16) -> Result<(), PciError> {
        if value & Command::MEMORY == 0 {
            self.note(offset::COMMAND, value);
        }
        self.write(offset::COMMAND, value.to_le_bytes())?;
        let now = self.read16(offset::COMMAND)?;
        self.note(offset::COMMAND, if now == 0xffff { 0 } else { now });
        Ok(())
    }
}

impl ConfigSpace for VfioConfig {
    fn len(&self) -> u16 {
        self.len
    }

    fn read8(&self, offset: u16) -> Result<u8, PciError> {
        self.read(offset).map(u8::from_le_bytes)
    }

    fn read16(&self, offset: u16) -> Result<u16, PciError> {
        self.read(offset).map(u16::from_le_bytes)
    }

    fn read32(&self, offset: u16) -> Result<u32, PciError> {
        self.read(offset).map(u32::from_le_bytes)
    }

    fn write8(&self, at: u16, value: u8) -> Result<(), PciError> {
        if at == offset::COMMAND {
            let old = self.read16(at)?;
            return self.write_command(old & 0xff00 | u16::from(value));
        }
        self.write(at, [value])
    }

    fn write16(&self, at: u16, value: u16) -> Result<(), PciError> {
        match at {
            offset::COMMAND => self.write_command(value),
            _ => self.write(at, value.to_le_bytes()),
        }
    }

    fn write32(&self, at: u16, value: u32) -> Result<(), PciError> {
        if at == offset::COMMAND {
            self.write_command(value as u16)?;
            return self.write(offset::STATUS, ((value >> 16) as u16).to_le_bytes());
        }
        self.write(at, value.to_le_bytes())
    }
}
