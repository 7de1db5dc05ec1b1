//! What is known of devices that differ from the specification: tables by PCI identity, and by the
//! name that a controller gives of itself.
//!
//! The facts are those that operating systems have gathered; an entry says in a line what goes
//! wrong without it. A device that is not listed is taken at its word.

use bitflags::bitflags;
use oxblock_pci::Ids;

bitflags! {
    /// What a device needs, or must be spared.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Quirks: u32 {
        /// CSTS.RDY must not be read for 2.3 s after CC.EN was cleared.
        const DELAY_BEFORE_READY = 1 << 0;
        /// Identify works with CNS 00h and 01h only.
        const IDENTIFY_BASIC = 1 << 1;
        /// The list of namespace identification descriptors does not work.
        const NO_DESCRIPTORS = 1 << 2;
        /// EUI-64, NGUID and UUID of namespaces are garbage: nothing is to be recognised by them.
        const BOGUS_IDS = 1 << 3;
        /// Write Zeroes does not work, though it is reported.
        const NO_WRITE_ZEROES = 1 << 4;
        /// Deallocated blocks read as zeroes, though it is not reported; there is no Write Zeroes.
        const DEALLOCATE_ZEROES = 1 << 5;
        /// Transfers that cross a multiple of MDTS are slow, though NOIOB is not reported.
        const STRIPES = 1 << 6;
        /// Autonomous power state transitions must be off.
        const NO_APST = 1 << 7;
        /// The deepest power state must not be entered on its own.
        const NO_DEEPEST_STATE = 1 << 8;
        /// Submission queues are starved unless they have medium priority.
        const MEDIUM_PRIORITY = 1 << 9;
        /// DMA addresses have 48 bits.
        const DMA_48_BITS = 1 << 10;
        /// An I/O queue has two entries, whatever CAP.MQES says.
        const TWO_ENTRIES = 1 << 11;
        /// CAP.MQES reads as 0, and queues of 64 entries work.
        const MQES_IS_64 = 1 << 12;
        /// All queues raise interrupt vector 0.
        const SINGLE_VECTOR = 1 << 13;
        /// Submission queue entries have 128 bytes, and identifiers are shared with the admin queue:
        /// this driver cannot work with it.
        const WIDE_ENTRIES = 1 << 14;
    }
}

impl Quirks {
    /// Of a function, before anything is written to it.
    pub(super) fn of_function(ids: &Ids) -> Quirks {
        let is_it = |known: &&ByFunction| (known.0, known.1) == (ids.vendor, ids.device);
        BY_FUNCTION.iter().filter(is_it).fold(Quirks::empty(), |all, known| all | known.2)
    }

    /// Of a controller that has said who it is: PCI vendor and model number.
    pub(super) fn of_identity(vendor: u16, model: &str) -> Quirks {
        let is_it = |known: &&ByIdentity| (known.0, known.1) == (vendor, model);
        BY_IDENTITY.iter().filter(is_it).fold(Quirks::empty(), |all, known| all | known.2)
    }

    /// The names of those that are set, separated by commas.
    pub fn words(self) -> String {
        let names: Vec<String> =
            self.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-")).collect();
        names.join(", ")
    }
}

/// A device: PCI vendor, PCI device, what it needs.
type ByFunction = (u16, u16, Quirks);

const AMAZON: u16 = 0x1d0f;
const APPLE: u16 = 0x106b;
const INTEL: u16 = 0x8086;
const KINGSTON: u16 = 0x2646;
const PHISON: u16 = 0x1987;
const REALTEK: u16 = 0x10ec;
const SAMSUNG: u16 = 0x144d;
const SANDISK: u16 = 0x15b7;

const STRIPED_INTEL: Quirks = Quirks::STRIPES.union(Quirks::DEALLOCATE_ZEROES);

#[rustfmt::skip]
static BY_FUNCTION: &[ByFunction] = &[
    // P3500, P3600, P3700, 750: twice the time for transfers across 128 KiB.
    (INTEL, 0x0953, STRIPED_INTEL),
    // P3520: the same.
    (INTEL, 0x0a53, STRIPED_INTEL),
    // P4500, P4600: the same.
    (INTEL, 0x0a54, STRIPED_INTEL),
    // P4600 of another brand: the same.
    (INTEL, 0x0a55, STRIPED_INTEL),
    // 600p: does not wake from its deepest state, starves queues, and zeroes the wrong blocks.
    (INTEL, 0xf1a5, Quirks::NO_DEEPEST_STATE.union(Quirks::MEDIUM_PRIORITY).union(Quirks::NO_WRITE_ZEROES)),
    // QEMU's controller before it had an identity of its own: answers CNS 02h with garbage.
    (INTEL, 0x5845, Quirks::IDENTIFY_BASIC.union(Quirks::NO_WRITE_ZEROES).union(Quirks::BOGUS_IDS)),
    // QEMU's controller: identifiers follow from options, and two may have the same.
    (0x1b36, 0x0010, Quirks::BOGUS_IDS),
    // Silicon Motion SM2263: fails the descriptor list, and all units have one identifier.
    (0x126f, 0x2263, Quirks::NO_DESCRIPTORS.union(Quirks::BOGUS_IDS)),
    // Nytro: hangs if it is looked at while it becomes ready.
    (0x1bb1, 0x0100, Quirks::DELAY_BEFORE_READY.union(Quirks::NO_DESCRIPTORS)),
    // HGST SN100: the same.
    (0x1c58, 0x0003, Quirks::DELAY_BEFORE_READY),
    // SN200: the same.
    (0x1c58, 0x0023, Quirks::DELAY_BEFORE_READY),
    // PBlaze4: the same.
    (0x1c5f, 0x0540, Quirks::DELAY_BEFORE_READY),
    // PM1725: the same; some firmware reports queues of one entry.
    (SAMSUNG, 0xa821, Quirks::DELAY_BEFORE_READY.union(Quirks::MQES_IS_64)),
    // PM1725a: the same, and Write Zeroes times out.
    (SAMSUNG, 0xa822, Quirks::DELAY_BEFORE_READY.union(Quirks::MQES_IS_64).union(Quirks::NO_WRITE_ZEROES)),
    // PM9B1: Write Zeroes times out.
    (SAMSUNG, 0xa80b, Quirks::NO_WRITE_ZEROES),
    // PM991: the same.
    (SAMSUNG, 0xa809, Quirks::NO_WRITE_ZEROES),
    // E12: all units have one identifier.
    (PHISON, 0x5012, Quirks::BOGUS_IDS),
    // E16: the same.
    (PHISON, 0x5016, Quirks::BOGUS_IDS),
    // E19: Write Zeroes times out.
    (PHISON, 0x5019, Quirks::NO_WRITE_ZEROES),
    // E21: the same.
    (PHISON, 0x5021, Quirks::NO_WRITE_ZEROES),
    // Lexar 256 GB: fails the descriptor list.
    (0x1b4b, 0x1092, Quirks::NO_DESCRIPTORS),
    // IM2P33F8ABR1: all units have one identifier.
    (0x1cc1, 0x33f8, Quirks::BOGUS_IDS),
    // XPG GAMMIX S50: the same.
    (0x1cc1, 0x5350, Quirks::BOGUS_IDS),
    // SX8200 Pro: is gone after its deepest state.
    (0x1cc1, 0x8201, Quirks::NO_DEEPEST_STATE),
    // SX6000 Lite: all units have one identifier.
    (REALTEK, 0x5762, Quirks::BOGUS_IDS),
    // SX6000 Pro, CARDEA ZERO Z330: the same.
    (REALTEK, 0x5763, Quirks::BOGUS_IDS),
    // MP33: the same.
    (REALTEK, 0x5765, Quirks::BOGUS_IDS),
    // Nitro: the same.
    (0x1344, 0x6001, Quirks::BOGUS_IDS),
    // PC400: Write Zeroes fails with an internal error.
    (0x1c5c, 0x1504, Quirks::NO_WRITE_ZEROES),
    // P31: all units have one identifier.
    (0x1c5c, 0x174a, Quirks::BOGUS_IDS),
    // Skyhawk: Write Zeroes is slow enough to time out.
    (SANDISK, 0x2001, Quirks::NO_WRITE_ZEROES),
    // SN550: is gone after its deepest state.
    (SANDISK, 0x5009, Quirks::NO_DEEPEST_STATE),
    // SPCC and NM610, which share an identity: Write Zeroes times out, identifiers are the same.
    (0x1d97, 0x2263, Quirks::NO_WRITE_ZEROES.union(Quirks::BOGUS_IDS)),
    // NM620: all units have one identifier.
    (0x1d97, 0x1d97, Quirks::BOGUS_IDS),
    // NM760: the same.
    (0x1d97, 0x2269, Quirks::BOGUS_IDS),
    // RPJTJ512MGE1QDY: Write Zeroes times out.
    (0x1cc4, 0x6303, Quirks::NO_WRITE_ZEROES),
    // RPJTJ256MGE1QDY: the same.
    (0x1cc4, 0x6302, Quirks::NO_WRITE_ZEROES),
    // KC2000: is gone after its deepest state.
    (KINGSTON, 0x2262, Quirks::NO_DEEPEST_STATE),
    // A2000: the same.
    (KINGSTON, 0x2263, Quirks::NO_DEEPEST_STATE),
    // OM3PGP4 and OM8 families: Write Zeroes times out.
    (KINGSTON, 0x5016, Quirks::NO_WRITE_ZEROES),
    (KINGSTON, 0x5018, Quirks::NO_WRITE_ZEROES),
    (KINGSTON, 0x501a, Quirks::NO_WRITE_ZEROES),
    (KINGSTON, 0x501b, Quirks::NO_WRITE_ZEROES),
    (KINGSTON, 0x501e, Quirks::NO_WRITE_ZEROES),
    // NV3000: all units have one identifier.
    (0x1f40, 0x1202, Quirks::BOGUS_IDS),
    // NV7000: the same.
    (0x1f40, 0x5236, Quirks::BOGUS_IDS),
    // MAP1001, MAP1002, MAP1202, MAP1602: the same.
    (0x1e4b, 0x1001, Quirks::BOGUS_IDS),
    (0x1e4b, 0x1002, Quirks::BOGUS_IDS),
    (0x1e4b, 0x1202, Quirks::BOGUS_IDS),
    (0x1e4b, 0x1602, Quirks::BOGUS_IDS),
    // XPG GAMMIX S70: the same.
    (0x1dbe, 0x5236, Quirks::BOGUS_IDS),
    // P2: the same.
    (0xc0a9, 0x540a, Quirks::BOGUS_IDS),
    // TiPro5000: is gone after its deepest state.
    (0x1e49, 0x0021, Quirks::NO_DEEPEST_STATE),
    // TiPro7000: the same.
    (0x1e49, 0x0041, Quirks::NO_DEEPEST_STATE),
    // EBS and instance storage: cut addresses above 48 bits, and write elsewhere.
    (AMAZON, 0x0061, Quirks::DMA_48_BITS),
    (AMAZON, 0x0065, Quirks::DMA_48_BITS),
    (AMAZON, 0x8061, Quirks::DMA_48_BITS),
    (AMAZON, 0xcd00, Quirks::DMA_48_BITS),
    (AMAZON, 0xcd01, Quirks::DMA_48_BITS),
    (AMAZON, 0xcd02, Quirks::DMA_48_BITS),
    // MacBook8,1: resets itself and loses data with more than one command in flight.
    (APPLE, 0x2001, Quirks::SINGLE_VECTOR.union(Quirks::TWO_ENTRIES)),
    // T2: entries of another size, whatever CC.IOSQES says.
    (APPLE, 0x2005, Quirks::SINGLE_VECTOR.union(Quirks::WIDE_ENTRIES).union(Quirks::IDENTIFY_BASIC)),
];

/// A controller by what it says of itself: PCI vendor, model number, what it needs.
type ByIdentity = (u16, &'static str, Quirks);

#[rustfmt::skip]
static BY_IDENTITY: &[ByIdentity] = &[
    // Is gone after any power state that it enters on its own.
    (0x1179, "THNSF5256GPUK TOSHIBA", Quirks::NO_APST),
    // CD6-V: times out under load, and then does not even turn it off.
    (0x1e0f, "KCD6XVUL6T40", Quirks::NO_APST),
    // Shares its PCI identity with the 970 EVO Plus, which needs none of this.
    (SAMSUNG, "Samsung Portable SSD X5", Quirks::DELAY_BEFORE_READY.union(Quirks::NO_DEEPEST_STATE)),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_device_is_known_by_its_function() {
        let of = |vendor, device| Quirks::of_function(&Ids { vendor, device, ..Ids::default() });
        assert_eq!(of(INTEL, 0x0953), STRIPED_INTEL);
        assert_eq!(of(AMAZON, 0x8061), Quirks::DMA_48_BITS);
        assert_eq!(of(INTEL, 0x8061), Quirks::empty(), "another vendor's device");
        assert_eq!(of(INTEL, 0x0953).words(), "deallocate-zeroes, stripes");
    }

    #[test]
    fn a_controller_is_known_by_its_name() {
        let x5 = "Samsung Portable SSD X5";
        assert!(Quirks::of_identity(SAMSUNG, x5).contains(Quirks::DELAY_BEFORE_READY));
        assert_eq!(Quirks::of_identity(SAMSUNG, "Samsung SSD 970 EVO Plus"), Quirks::empty());
        assert_eq!(Quirks::of_identity(0x1179, x5), Quirks::empty());
    }

    #[test]
    fn every_device_is_listed_once() {
        let ids: BTreeSet<_> = BY_FUNCTION.iter().map(|known| (known.0, known.1)).collect();
        assert_eq!(ids.len(), BY_FUNCTION.len());
        assert!(BY_FUNCTION.iter().all(|known| !known.2.is_empty()));
    }
}
