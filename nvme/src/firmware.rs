//! Firmware Commit (Base 2.0, 5.12): its actions, and what FRMW says of the slots.

/// CA: the downloaded image replaces that of the slot, which is not activated.
pub const REPLACE: u8 = 0;
/// CA: the downloaded image replaces that of the slot, which is active after the next reset.
pub const REPLACE_AND_ACTIVATE: u8 = 1;
/// CA: the image of the slot is active after the next reset.
pub const ACTIVATE: u8 = 2;
/// CA: the downloaded image, if there is one, replaces that of the slot, which is active at once.
pub const ACTIVATE_AT_ONCE: u8 = 3;

/// FRMW: slot 1 is read-only.
pub const FRMW_SLOT_1_READ_ONLY: u8 = 1 << 0;
/// FRMW: images can be activated without a reset.
pub const FRMW_WITHOUT_RESET: u8 = 1 << 4;

/// FRMW bits 3:1: how many slots there are, 1 to 7.
pub const fn frmw_slots(slots: u8) -> u8 {
    (slots & 7) << 1
}
