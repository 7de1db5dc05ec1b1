use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A list of namespace IDs, CNS 02h, 07h, 10h: 1024 of them, ascending, zero past the end.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdList {
    /// The namespace IDs.
    pub ids: [U32; 1024],
}

impl IdList {
    /// Empty, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
    /// The IDs up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().map(|id| id.get()).take_while(|id| *id != 0)
    }
}

/// A list of controllers, CNS 12h and 13h, and the data of Namespace Attachment: 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerList {
    /// Number of Identifiers, at most 2047.
    pub count: U16,
    /// Controller IDs, ascending.
    pub ids: [U16; 2047],
}

impl ControllerList {
    /// Empty, on the heap.
    pub fn boxed() -> Box<Self> {
        Self::new_box_zeroed().unwrap_or_else(|_| Box::new(Self::new_zeroed()))
    }
    /// A list of `ids`, of which those past the 2047th are left out.
    pub fn of(ids: &[u16]) -> Box<Self> {
        let mut list = Self::boxed();
        list.count = U16::new(ids.len().min(list.ids.len()) as u16);
        for (slot, id) in list.ids.iter_mut().zip(ids) {
            *slot = U16::new(*id);
        }
        list
    }
    /// The IDs; `None` for a count that no list has.
    pub fn ids(&self) -> Option<impl Iterator<Item = u16> + '_> {
        let ids = self.ids.get(..usize::from(self.count.get()))?;
        Some(ids.iter().map(|id| id.get()))
    }
}

/// A namespace identification descriptor, CNS 03h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Namespace Identifier Type: [`super::NIDT_UUID`] and its neighbours.
    pub nidt: u8,
    /// The identifier; its length is the descriptor's.
    pub nid: &'a [u8],
}

/// The descriptors of a list of namespace identification descriptors, up to its end or to the
/// first that does not fit.
#[derive(Clone, Debug)]
pub struct DescriptorIter<'a> {
    rest: &'a [u8],
}

impl<'a> DescriptorIter<'a> {
    /// Over the bytes of a list.
    pub const fn new(list: &'a [u8]) -> Self {
        Self { rest: list }
    }
}

impl<'a> Iterator for DescriptorIter<'a> {
    type Item = Descriptor<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, tail) = self.rest.split_at_checked(4)?;
        let (nidt, nidl) = (head[0], usize::from(head[1]));
        if nidt == 0 || nidl == 0 {
            return None;
        }
        let (nid, rest) = tail.split_at_checked(nidl)?;
        self.rest = rest;
        Some(Descriptor { nidt, nid })
    }
}

/// Writes a descriptor at the start of `list`; returns the bytes taken, or 0 if it does not fit.
pub fn push_descriptor(list: &mut [u8], descriptor: Descriptor<'_>) -> usize {
    let len = descriptor.nid.len();
    let Ok(nidl) = u8::try_from(len) else {
        return 0;
    };
    let Some(place) = list.get_mut(..4 + len) else {
        return 0;
    };
    place[..4].copy_from_slice(&[descriptor.nidt, nidl, 0, 0]);
    place[4..].copy_from_slice(descriptor.nid);
    place.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_list_is_as_long_as_it_says_but_no_longer_than_it_is() {
        let mut list = ControllerList::of(&[1, 7]);
        assert_eq!(list.ids().map(Iterator::collect), Some(vec![1, 7]));
        assert_eq!(size_of::<ControllerList>(), 4096);
        list.count = 2048.into();
        assert!(list.ids().is_none());
    }
    use crate::identify::{NIDT_CSI, NIDT_UUID};

    #[test]
    fn descriptors_round_trip_and_stop_where_they_do_not_fit() {
        let mut list = [0; 64];
        let uuid = Descriptor { nidt: NIDT_UUID, nid: &[7; 16] };
        let csi = Descriptor { nidt: NIDT_CSI, nid: &[0] };
        let at = push_descriptor(&mut list, uuid);
        assert_eq!(at, 20);
        assert_eq!(push_descriptor(&mut list[at..], csi), 5);
        assert_eq!(DescriptorIter::new(&list).collect::<Vec<_>>(), [uuid, csi]);
        assert_eq!(DescriptorIter::new(&list[..19]).count(), 0);
        assert_eq!(DescriptorIter::new(&[3, 0, 0, 0]).count(), 0);
        assert_eq!(push_descriptor(&mut [0; 19], uuid), 0);
    }

    #[test]
    fn id_lists_end_at_zero() {
        assert_eq!(size_of::<IdList>(), 4096);
        let mut list = IdList::boxed();
        list.ids[0] = 1.into();
        list.ids[1] = 5.into();
        list.ids[3] = 9.into();
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 5]);
    }
}
