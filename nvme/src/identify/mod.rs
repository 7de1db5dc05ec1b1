//! Data structures of the Identify command (Base 2.0, 5.17; NVM Command Set 1.0, 4.1.5).
//!
//! All are little-endian, unpadded and readable from any 4096 bytes.

mod controller;
mod lists;
mod namespace;

pub use controller::{Controller, Oacs, Oncs, PowerState, SglSupport};
pub use lists::{ControllerList, Descriptor, DescriptorIter, IdList, push_descriptor};
pub use namespace::{
    ControllerNvm, ExtendedLbaFormat, LbaFormat, Namespace, NamespaceIndependent, NamespaceNvm,
};

/// CNS 00h: Identify Namespace, NVM command set.
pub const CNS_NAMESPACE: u8 = 0x00;
/// CNS 01h: Identify Controller.
pub const CNS_CONTROLLER: u8 = 0x01;
/// CNS 02h: active namespace list.
pub const CNS_ACTIVE_LIST: u8 = 0x02;
/// CNS 03h: namespace identification descriptor list.
pub const CNS_DESCRIPTORS: u8 = 0x03;
/// CNS 04h: NVM set list.
pub const CNS_NVM_SETS: u8 = 0x04;
/// CNS 05h: Identify Namespace of the command set named by CSI.
pub const CNS_NAMESPACE_CSI: u8 = 0x05;
/// CNS 06h: Identify Controller of the command set named by CSI.
pub const CNS_CONTROLLER_CSI: u8 = 0x06;
/// CNS 07h: active namespace list of the command set named by CSI.
pub const CNS_ACTIVE_LIST_CSI: u8 = 0x07;
/// CNS 08h: Identify Namespace, independent of the command set.
pub const CNS_NAMESPACE_INDEPENDENT: u8 = 0x08;
/// CNS 10h: allocated namespace list.
pub const CNS_ALLOCATED_LIST: u8 = 0x10;
/// CNS 11h: Identify Namespace of an allocated namespace.
pub const CNS_NAMESPACE_ALLOCATED: u8 = 0x11;
/// CNS 12h: controllers attached to a namespace.
pub const CNS_CONTROLLERS_OF_NAMESPACE: u8 = 0x12;
/// CNS 13h: controllers of the subsystem.
pub const CNS_CONTROLLERS: u8 = 0x13;
/// CNS 14h: primary controller capabilities.
pub const CNS_PRIMARY_CAPABILITIES: u8 = 0x14;
/// CNS 15h: secondary controller list.
pub const CNS_SECONDARY_CONTROLLERS: u8 = 0x15;
/// CNS 16h: namespace granularity list.
pub const CNS_GRANULARITY: u8 = 0x16;
/// CNS 17h: UUID list.
pub const CNS_UUIDS: u8 = 0x17;
/// CNS 1Ah: allocated namespace list of the command set named by CSI.
pub const CNS_ALLOCATED_LIST_CSI: u8 = 0x1a;
/// CNS 1Ch: I/O command set combinations.
pub const CNS_COMMAND_SETS: u8 = 0x1c;

/// CSI 00h: the NVM command set.
pub const CSI_NVM: u8 = 0;
/// CSI 01h: the key value command set.
pub const CSI_KEY_VALUE: u8 = 1;
/// CSI 02h: the zoned namespace command set.
pub const CSI_ZONED: u8 = 2;

/// Namespace identifier type: EUI-64, 8 bytes.
pub const NIDT_EUI64: u8 = 1;
/// Namespace identifier type: NGUID, 16 bytes.
pub const NIDT_NGUID: u8 = 2;
/// Namespace identifier type: UUID, 16 bytes.
pub const NIDT_UUID: u8 = 3;
/// Namespace identifier type: command set identifier, 1 byte.
pub const NIDT_CSI: u8 = 4;

/// Copies text into a field of ASCII bytes, padded with spaces and cut where it does not fit.
///
/// Bytes outside printable ASCII become `?`, as the specification allows none of them.
pub fn write_ascii(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
}

/// The text of a field of ASCII bytes, without the padding; never a control character.
pub fn read_ascii(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .take_while(|b| **b != 0)
        .map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '?' })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_fields_are_padded_cut_and_cleaned() {
        let mut field = [0; 8];
        write_ascii(&mut field, "ox");
        assert_eq!(&field, b"ox      ");
        write_ascii(&mut field, "0123456789");
        assert_eq!(&field, b"01234567");
        assert_eq!(read_ascii(b"  ab \x1b[2J  \0junk"), "ab ?[2J");
    }
}
