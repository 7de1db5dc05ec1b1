//! The configuration space of a function in software.

use std::sync::{Mutex, PoisonError};

use super::MSIX_BAR;
use crate::config::offset;
use crate::{Command, ConfigSpace, Ids, PciError, PciErrorKind};

const LEN: usize = 4096;

/// Where the capabilities lie: power management, MSI-X, PCI Express.
const POWER: u16 = 0x40;
const MSIX: u16 = 0x50;
const EXPRESS: u16 = 0x60;

/// Bytes of one MSI-X table entry, and the granularity of the BAR.
const MSIX_ENTRY: u64 = 16;
const PAGE: u64 = 4096;

/// Called with the command register whenever it is written.
type OnCommand = Box<dyn Fn(u16) + Send + Sync>;

/// Configuration space as bytes and a mask of the bits that may be written.
pub(super) struct SoftConfig {
    bytes: Mutex<Bytes>,
    on_command: OnCommand,
}

struct Bytes {
    value: Box<[u8; LEN]>,
    writable: Box<[u8; LEN]>,
    present: bool,
}

impl SoftConfig {
    pub(super) fn new(
        ids: Ids,
        bar_len: &[u64; 6],
        vectors: u32,
        on_command: OnCommand,
    ) -> SoftConfig {
        let mut bytes =
            Bytes { value: Box::new([0; LEN]), writable: Box::new([0; LEN]), present: true };
        bytes.header(&ids);
        bytes.bars(bar_len);
        bytes.capabilities(vectors);
        SoftConfig { bytes: Mutex::new(bytes), on_command }
    }

    /// Makes the whole space read as all ones, or undoes that. What comes back has nothing
    /// enabled.
    pub(super) fn set_present(&self, present: bool) {
        {
            let mut bytes = self.lock();
            bytes.present = present;
            bytes.put(offset::COMMAND, [0; 2]);
        }
        (self.on_command)(0);
    }

    fn read<const N: usize>(&self, at: u16) -> Result<[u8; N], PciError> {
        let range = range::<N>(at)?;
        let bytes = self.lock();
        let mut out = [0xff; N];
        if bytes.present {
            out.copy_from_slice(&bytes.value[range]);
        }
        Ok(out)
    }

    fn write<const N: usize>(&self, at: u16, new: [u8; N]) -> Result<(), PciError> {
        let range = range::<N>(at)?;
        let command = {
            let mut guard = self.lock();
            let bytes = &mut *guard;
            if !bytes.present {
                return Ok(());
            }
            for (at, new) in range.clone().zip(new) {
                let mask = bytes.writable[at];
                bytes.value[at] = bytes.value[at] & !mask | new & mask;
            }
            bytes.command()
        };
        let touched = usize::from(offset::COMMAND)..usize::from(offset::COMMAND) + 2;
        if range.start < touched.end && touched.start < range.end {
            (self.on_command)(command);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConfigSpace for SoftConfig {
    fn len(&self) -> u16 {
        LEN as u16
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

    fn write8(&self, offset: u16, value: u8) -> Result<(), PciError> {
        self.write(offset, value.to_le_bytes())
    }

    fn write16(&self, offset: u16, value: u16) -> Result<(), PciError> {
        self.write(offset, value.to_le_bytes())
    }

    fn write32(&self, offset: u16, value: u32) -> Result<(), PciError> {
        self.write(offset, value.to_le_bytes())
    }
}

impl Bytes {
    fn header(&mut self, ids: &Ids) {
        const HAS_CAPABILITIES: u16 = 1 << 4;
        self.put(offset::VENDOR, ids.vendor.to_le_bytes());
        self.put(offset::DEVICE, ids.device.to_le_bytes());
        self.put(offset::STATUS, HAS_CAPABILITIES.to_le_bytes());
        self.put(offset::REVISION, [ids.revision]);
        let [class0, class1, class2, _] = ids.class.to_le_bytes();
        self.put(offset::CLASS, [class0, class1, class2]);
        self.put(offset::SUBSYSTEM_VENDOR, ids.subsystem_vendor.to_le_bytes());
        self.put(offset::SUBSYSTEM, ids.subsystem.to_le_bytes());
        self.put(offset::CAPABILITIES, [POWER as u8]);
        self.put(offset::INTERRUPT_PIN, [0]);
        let command = Command::MEMORY | Command::BUS_MASTER | Command::INTX_DISABLE;
        self.allow(offset::COMMAND, command.to_le_bytes());
    }

    /// 64-bit BARs take two registers each, so only those with an even index exist. The low
    /// bits of a size stay zero when a host writes all ones to learn it (PCI 3.0, 6.2.5.1).
    fn bars(&mut self, bar_len: &[u64; 6]) {
        const MEMORY_64: u32 = 0b100;
        for (index, &len) in (0u16..).zip(bar_len).step_by(2) {
            if len == 0 {
                continue;
            }
            let size = len.next_power_of_two().max(PAGE);
            let at = offset::BAR0 + 4 * index;
            self.put(at, MEMORY_64.to_le_bytes());
            self.allow(at, (!(size - 1)).to_le_bytes());
        }
    }

    fn capabilities(&mut self, vectors: u32) {
        // Power management 1.2, states D0 and D3hot; no power event.
        self.put(POWER, [0x01, MSIX as u8, 0x03, 0x00, 0x08, 0x00]);
        self.allow(POWER + 4, [0x03]);
        // MSI-X: table at the start of its BAR, pending bits on the page after it.
        let last = vectors.saturating_sub(1).min(2047) as u16;
        let bir = u32::from(MSIX_BAR);
        let pending = msix_pending_offset(vectors) as u32;
        self.put(MSIX, [0x11, EXPRESS as u8]);
        self.put(MSIX + 2, last.to_le_bytes());
        self.put(MSIX + 4, bir.to_le_bytes());
        self.put(MSIX + 8, (pending | bir).to_le_bytes());
        self.allow(MSIX + 2, 0xc000u16.to_le_bytes());
        // PCI Express 2.0 endpoint that can be reset by function (FLR).
        self.put(EXPRESS, [0x10, 0x00, 0x02, 0x00]);
        self.put(EXPRESS + 4, (1u32 << 28 | 1 << 15).to_le_bytes());
        // x1 at 2.5 GT/s: what a driver reads here must not be zero.
        self.put(EXPRESS + 12, 0x11u32.to_le_bytes());
        self.put(EXPRESS + 18, 0x11u16.to_le_bytes());
    }

    fn put<const N: usize>(&mut self, at: u16, value: [u8; N]) {
        let at = usize::from(at);
        self.value[at..at + N].copy_from_slice(&value);
    }

    fn allow<const N: usize>(&mut self, at: u16, mask: [u8; N]) {
        let at = usize::from(at);
        self.writable[at..at + N].copy_from_slice(&mask);
    }

    fn command(&self) -> u16 {
        let at = usize::from(offset::COMMAND);
        u16::from_le_bytes([self.value[at], self.value[at + 1]])
    }
}

/// Length of the BAR with the table and the pending bits.
pub(super) fn msix_bar_len(vectors: u32) -> u64 {
    let pending = u64::from(vectors.div_ceil(64)) * 8;
    (msix_pending_offset(vectors) + pending.max(8)).next_multiple_of(PAGE)
}

fn msix_pending_offset(vectors: u32) -> u64 {
    (u64::from(vectors.max(1)) * MSIX_ENTRY).next_multiple_of(PAGE)
}

fn range<const N: usize>(at: u16) -> Result<std::ops::Range<usize>, PciError> {
    let start = usize::from(at);
    if start % N == 0 && start + N <= LEN {
        return Ok(start..start + N);
    }
    Err(PciError::new(
        PciErrorKind::OutOfRange,
        format!(
            "{N} bytes at {at:#x} of a configuration space of {LEN} bytes: misaligned or past its end"
        ),
    ))
}
