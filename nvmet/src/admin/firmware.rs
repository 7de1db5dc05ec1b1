//! Firmware Image Download and Firmware Commit (Base 2.0, 5.12 and 5.13).
//!
//! A controller in software has no firmware to replace. What an image changes is the revision
//! that the controller reports; slots, actions and resets are as a device has them. An image
//! begins with [`MAGIC`], the revision as 8 ASCII characters, and its whole length in bytes as a
//! little-endian 64-bit word; what follows may be anything.

use oxblock_nvme::firmware::{
    ACTIVATE, ACTIVATE_AT_ONCE, FRMW_SLOT_1_READ_ONLY, FRMW_WITHOUT_RESET, REPLACE,
    REPLACE_AND_ACTIVATE, frmw_slots,
};
use oxblock_nvme::log::FirmwareSlots;
use oxblock_nvme::{Command, Status};
use zerocopy::IntoBytes;

use crate::data::DataPath;

/// How an image begins.
const MAGIC: &[u8; 8] = b"OXBLOCK\0";
/// Slots; the first is read-only and holds what the controller was built with.
const SLOTS: u8 = 3;
/// Bytes of the largest image.
const IMAGE_MAX: usize = 1 << 20;
/// What pieces of an image are aligned to, in bytes; only the last may be shorter.
const PIECE: usize = 4096;
/// FWUG: the same in units of 4 KiB.
pub(crate) const FWUG: u8 = 1;
/// FRMW.
pub(crate) const FRMW: u8 = FRMW_SLOT_1_READ_ONLY | frmw_slots(SLOTS) | FRMW_WITHOUT_RESET;
/// The revision that the controller was built with.
const BUILT_WITH: &str = env!("CARGO_PKG_VERSION");

/// A revision as Identify and the log have it: ASCII, padded with spaces.
type Revision = [u8; 8];

/// Slots, and an image on its way.
pub(crate) struct Firmware {
    slots: [Option<Revision>; SLOTS as usize],
    /// The slots that are active now, and after the next reset; from 1.
    active: u8,
    next: Option<u8>,
    image: Vec<u8>,
    /// Which pieces of the image have come.
    pieces: [bool; IMAGE_MAX / PIECE],
}

/// What a commit has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Nothing changes before the next reset.
    Later,
    /// Another image is active now.
    AtOnce,
}

impl Firmware {
    pub(crate) fn new() -> Firmware {
        let mut first = [0; 8];
        oxblock_nvme::identify::write_ascii(&mut first, BUILT_WITH);
        Firmware {
            slots: [Some(first), None, None],
            active: 1,
            next: None,
            image: Vec::new(),
            pieces: [false; IMAGE_MAX / PIECE],
        }
    }

    /// The revision that is active.
    pub(crate) fn revision(&self) -> Revision {
        self.slot(self.active).unwrap_or([b' '; 8])
    }

    /// Takes a piece of an image. One that begins it anew drops what came before.
    ///
    /// # Errors
    /// It is misaligned, too long, or came already.
    pub(crate) fn download<D: DataPath>(
        &mut self,
        command: &Command,
        data: &mut D,
    ) -> Result<(), Status> {
        let len = (u64::from(command.cdw10()) + 1) * 4;
        let offset = u64::from(command.cdw11()) * 4;
        let end = offset + len;
        if !offset.is_multiple_of(PIECE as u64) || end > IMAGE_MAX as u64 {
            return Err(Status::INVALID_FIELD);
        }
        let (start, end) = (offset as usize, end as usize);
        let pieces = start / PIECE..end.div_ceil(PIECE);
        if start == 0 {
            self.forget_image();
        }
        let came = self.pieces.get(pieces.clone()).ok_or(Status::INVALID_FIELD)?;
        if came.contains(&true) {
            return Err(Status::OVERLAPPING_RANGE);
        }
        let from = data.map(command, end - start)?;
        if self.image.len() < end {
            self.image.resize(end, 0);
        }
        let into = self.image.get_mut(start..end).ok_or(Status::INTERNAL_ERROR)?;
        from.read_at(0, into);
        if let Some(came) = self.pieces.get_mut(pieces) {
            came.fill(true);
        }
        Ok(())
    }

    /// Puts the image in a slot, activates a slot, or both.
    ///
    /// # Errors
    /// There is no such slot, it is read-only or empty, or the image is none.
    pub(crate) fn commit(&mut self, command: &Command) -> Result<Committed, Status> {
        let (slot, action) = (command.cdw10() as u8 & 7, (command.cdw10() >> 3) as u8 & 7);
        let replaces = match action {
            REPLACE | REPLACE_AND_ACTIVATE => true,
            ACTIVATE => false,
            ACTIVATE_AT_ONCE => !self.image.is_empty(),
            // Boot partitions: there are none.
            _ => return Err(Status::INVALID_FIELD),
        };
        let slot = match slot {
            0 if replaces => self.choose(),
            0 => return Err(Status::INVALID_FIRMWARE_SLOT),
            slot if slot > SLOTS || (slot == 1 && replaces) => {
                return Err(Status::INVALID_FIRMWARE_SLOT);
            }
            slot => slot,
        };
        if replaces {
            let revision = self.check_image();
            self.forget_image();
            let revision = revision?;
            if let Some(place) = self.slots.get_mut(usize::from(slot) - 1) {
                *place = Some(revision);
            }
        } else if self.slot(slot).is_none() {
            return Err(Status::INVALID_FIRMWARE_IMAGE);
        }
        match action {
            REPLACE => Ok(Committed::Later),
            ACTIVATE_AT_ONCE => {
                (self.active, self.next) = (slot, None);
                Ok(Committed::AtOnce)
            }
            _ => {
                self.next = Some(slot);
                Ok(Committed::Later)
            }
        }
    }

    /// A reset of the controller: what waited for it is active, and an image on its way is lost.
    pub(crate) fn reset(&mut self) {
        self.active = self.next.take().unwrap_or(self.active);
        self.forget_image();
    }

    /// The Firmware Slot Information log page.
    pub(crate) fn page(&self) -> Vec<u8> {
        let mut page = FirmwareSlots::boxed();
        page.afi = self.active | self.next.unwrap_or(0) << 4;
        for (to, revision) in page.frs.iter_mut().zip(&self.slots) {
            *to = revision.unwrap_or([0; 8]);
        }
        page.as_bytes().to_vec()
    }

    fn slot(&self, slot: u8) -> Option<Revision> {
        *self.slots.get(usize::from(slot).checked_sub(1)?)?
    }

    /// A slot for an image that may go anywhere: an empty one, or one that is not active.
    fn choose(&self) -> u8 {
        let empty = (2..=SLOTS).find(|slot| self.slot(*slot).is_none());
        let idle = || (2..=SLOTS).find(|slot| *slot != self.active);
        empty.or_else(idle).unwrap_or(SLOTS)
    }

    /// The revision of the image that has come.
    fn check_image(&self) -> Result<Revision, Status> {
        let invalid = Err(Status::INVALID_FIRMWARE_IMAGE);
        let complete = self.pieces.iter().take(self.image.len().div_ceil(PIECE)).all(|came| *came);
        let Some((head, rest)) = self.image.split_first_chunk::<8>() else { return invalid };
        let Some((revision, rest)) = rest.split_first_chunk::<8>() else { return invalid };
        let Some((len, _)) = rest.split_first_chunk::<8>() else { return invalid };
        let whole = u64::from_le_bytes(*len).div_ceil(4) * 4 == self.image.len() as u64;
        let printable = revision.iter().all(|b| (0x20..0x7f).contains(b));
        if head != MAGIC || !complete || !whole || !printable || revision[0] == b' ' {
            return invalid;
        }
        Ok(*revision)
    }

    fn forget_image(&mut self) {
        self.image = Vec::new();
        self.pieces.fill(false);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::nvm::long::tests::Ram;

    /// An image of `len` bytes.
    pub(crate) fn image(revision: &[u8; 8], len: usize) -> Vec<u8> {
        let mut image = [&MAGIC[..], revision, &(len as u64).to_le_bytes()].concat();
        image.resize(len, 0xa5);
        image
    }

    fn send(firmware: &mut Firmware, image: &[u8], at: usize, len: usize) -> Result<(), Status> {
        let command = Command::firmware_download(len as u32, at as u32);
        firmware.download(&command, &mut Ram::new(&image[at..at + len]))
    }

    fn send_all(firmware: &mut Firmware, image: &[u8]) {
        for at in (0..image.len()).step_by(PIECE) {
            send(firmware, image, at, (image.len() - at).min(PIECE)).unwrap();
        }
    }

    #[test]
    fn an_image_goes_to_its_slot_and_is_active_when_it_should_be() {
        let mut firmware = Firmware::new();
        let commit = Command::firmware_commit;
        assert_eq!(firmware.commit(&commit(2, 1)), Err(Status::INVALID_FIRMWARE_IMAGE));
        send_all(&mut firmware, &image(b"TWO     ", 10_000));
        assert_eq!(firmware.commit(&commit(1, 1)), Err(Status::INVALID_FIRMWARE_SLOT));
        assert_eq!(firmware.commit(&commit(4, 0)), Err(Status::INVALID_FIRMWARE_SLOT));
        assert_eq!(firmware.commit(&commit(2, 1)), Ok(Committed::Later));
        assert_ne!(&firmware.revision(), b"TWO     ");
        assert_eq!(firmware.page()[0], 2 << 4 | 1);
        firmware.reset();
        assert_eq!(&firmware.revision(), b"TWO     ");
        send_all(&mut firmware, &image(b"THREE   ", 8192));
        assert_eq!(firmware.commit(&commit(0, 3)), Ok(Committed::AtOnce));
        assert_eq!((&firmware.revision(), firmware.page()[0]), (b"THREE   ", 3));
        assert_eq!(firmware.commit(&commit(1, 2)), Ok(Committed::Later));
        assert_eq!(firmware.commit(&commit(0, 2)), Err(Status::INVALID_FIRMWARE_SLOT));
        assert_eq!(firmware.commit(&commit(2, 6)), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn pieces_may_come_in_any_order_but_none_twice_and_all_of_them() {
        let mut firmware = Firmware::new();
        let image = image(b"1.2.3   ", 3 * PIECE);
        send(&mut firmware, &image, 2 * PIECE, PIECE).unwrap();
        let twice = send(&mut firmware, &image, 2 * PIECE, PIECE);
        assert_eq!(twice, Err(Status::OVERLAPPING_RANGE));
        assert_eq!(send(&mut firmware, &image, 512, 512), Err(Status::INVALID_FIELD));
        let huge = Command::firmware_download(0, 0);
        assert_eq!(huge.cdw10(), u32::MAX);
        let huge = firmware.download(&huge, &mut Ram::new(&[]));
        assert_eq!(huge, Err(Status::INVALID_FIELD));
        let commit = Command::firmware_commit(2, 0);
        assert_eq!(firmware.commit(&commit), Err(Status::INVALID_FIRMWARE_IMAGE));
        for wrong in [7usize, 12, 16] {
            let mut bad = image.clone();
            bad[wrong] = 0xff;
            send_all(&mut firmware, &bad);
            assert_eq!(firmware.commit(&commit), Err(Status::INVALID_FIRMWARE_IMAGE));
        }
        send_all(&mut firmware, &image);
        assert_eq!(firmware.commit(&commit), Ok(Committed::Later));
    }
}
