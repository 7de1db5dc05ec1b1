//! Identify (Base 2.0, 5.17; NVM Command Set 1.0, 4.1.5).

use oxblock_nvme::identify::{self as id, Controller, ControllerNvm, Descriptor, IdList};
use oxblock_nvme::identify::{Namespace as NamespacePage, NamespaceIndependent, Oacs, Oncs};
use oxblock_nvme::identify::{push_descriptor, write_ascii};
use oxblock_nvme::{Command, NSID_ALL, PAGE_BYTES, Status};
use zerocopy::IntoBytes;

use super::aer::REQUESTS_MAX;
use super::features::{EVENTS, KEEP_ALIVE_UNIT_MS};
use super::firmware::{FRMW, FWUG};
use super::logs::ERRORS;
use super::power;
use super::sanitize::SANICAP;
use crate::inventory::{Busy, Inventory};
use crate::namespace::{COPY_RANGES, FORMATS, Geometry};
use crate::protection::METADATA;

/// The version of the base specification that is implemented.
pub(crate) const VERSION: u32 = oxblock_nvme::regs::version(2, 0, 0);

/// Composite temperatures at which a host should worry, kelvin.
pub(crate) const TEMPERATURE_WARNING: u16 = 343;
const TEMPERATURE_CRITICAL: u16 = 353;

/// The one controller of its subsystem.
pub(crate) const CONTROLLER_ID: u16 = 1;

/// Aborts that may be outstanding (ACL + 1).
pub(crate) const ABORTS_MAX: u8 = 4;

/// SGLS: supported at any alignment, and an SGL may be longer than the data.
const SGLS: u32 = 1 | 1 << 18;

/// LPA: the effects log, offsets and extended lengths, and the logs of 2.0.
const LPA: u8 = 1 << 1 | 1 << 2 | 1 << 5;

/// NWPC: namespaces can be write protected, until the next power cycle and for ever, too.
const NWPC: u8 = 0b111;

/// VWC: present, and Flush takes NSID FFFFFFFFh for all namespaces; the second half holds
/// without a cache, too.
const VWC_PRESENT: u8 = 1;
const VWC_FLUSH_ALL: u8 = 0b11 << 1;

/// The time that a normal shutdown may take, microseconds.
const SHUTDOWN_US: u32 = 10_000_000;

/// MC: metadata behind its block, or in a buffer of its own. DPC: types 1 to 3, first or last.
const METADATA_EITHER_WAY: u8 = 3;
const PROTECTION_ALL: u8 = 0x1f;

/// An identify page.
pub(crate) type Page = Box<[u8; PAGE_BYTES]>;

/// What a controller says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) vendor: u16,
    pub(crate) subsystem_vendor: u16,
    pub(crate) mdts: u8,
    pub(crate) sgl: bool,
    pub(crate) shadow_doorbells: bool,
    pub(crate) volatile_cache: bool,
    pub(crate) power_transitions: bool,
    pub(crate) keep_alive: bool,
    /// Preferred and least size of a Host Memory Buffer, units of 4 KiB.
    pub(crate) host_memory: (u32, u32),
    /// Command Retry Delay Times, units of 100 ms.
    pub(crate) retry_delays: [u16; 3],
    /// Maximum Time for Firmware Activation, units of 100 ms.
    pub(crate) activation: u16,
}

impl Identity {
    /// The page that an Identify command asks for. `revision` is that of the active firmware.
    ///
    /// # Errors
    /// There is no such page, namespace or command set.
    pub(crate) fn page(
        &self,
        command: &Command,
        inventory: &Inventory,
        revision: &[u8; 8],
    ) -> Result<Page, Status> {
        let (nsid, csi) = (command.nsid(), (command.cdw11() >> 24) as u8);
        let about = About { nsid, inventory };
        let cns = command.cdw10() as u8;
        if matches!(
            cns,
            id::CNS_NAMESPACE_CSI
                | id::CNS_CONTROLLER_CSI
                | id::CNS_ACTIVE_LIST_CSI
                | id::CNS_ALLOCATED_LIST_CSI
        ) {
            nvm_only(csi)?;
        }
        match cns {
            id::CNS_NAMESPACE if nsid == NSID_ALL => Ok(common_namespace_page(inventory)),
            id::CNS_NAMESPACE => about.active(|g| self.namespace_page(g, inventory)),
            id::CNS_NAMESPACE_ALLOCATED => about.allocated(|g| self.namespace_page(g, inventory)),
            id::CNS_CONTROLLER => Ok(self.controller_page(inventory, revision)),
            id::CNS_ACTIVE_LIST | id::CNS_ACTIVE_LIST_CSI => {
                list_page(nsid, inventory.all_active())
            }
            id::CNS_ALLOCATED_LIST | id::CNS_ALLOCATED_LIST_CSI => {
                list_page(nsid, inventory.all_allocated())
            }
            id::CNS_DESCRIPTORS => {
                about.valid()?;
                let g = inventory.active(nsid).ok_or(Status::INVALID_FIELD)?;
                Ok(self.descriptor_page(g))
            }
            id::CNS_NAMESPACE_CSI => about.active(|_| zeroes()),
            // No limit on Verify, Write Zeroes or Dataset Management is reported.
            id::CNS_CONTROLLER_CSI => Ok(page(ControllerNvm::boxed().as_bytes())),
            id::CNS_NAMESPACE_INDEPENDENT => about.active(|g| independent_page(g, inventory)),
            id::CNS_CONTROLLERS_OF_NAMESPACE => {
                let first = (command.cdw10() >> 16) as u16;
                about.active(|_| controllers_page(first))
            }
            id::CNS_CONTROLLERS => Ok(controllers_page((command.cdw10() >> 16) as u16)),
            id::CNS_COMMAND_SETS => Ok(command_sets_page()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn controller_page(&self, inventory: &Inventory, revision: &[u8; 8]) -> Page {
        let mut c = Controller::boxed();
        c.vid = self.vendor.into();
        c.ssvid = self.subsystem_vendor.into();
        write_ascii(&mut c.sn, &self.serial);
        write_ascii(&mut c.mn, &self.model);
        c.fr = *revision;
        c.mdts = self.mdts;
        c.cntlid = CONTROLLER_ID.into();
        c.ver = VERSION.into();
        c.rtd3e = SHUTDOWN_US.into();
        c.oaes = EVENTS.bits().into();
        c.cntrltype = 1;
        c.acl = ABORTS_MAX - 1;
        c.aerl = (REQUESTS_MAX - 1) as u8;
        (c.frmw, c.fwug) = (FRMW, FWUG);
        c.mtfa = self.activation.into();
        c.lpa = LPA;
        c.elpe = (ERRORS - 1) as u8;
        c.wctemp = TEMPERATURE_WARNING.into();
        c.cctemp = TEMPERATURE_CRITICAL.into();
        c.sanicap = SANICAP.into();
        let (total, free) = inventory.capacity();
        (c.tnvmcap, c.unvmcap) = (total.into(), free.into());
        let states = power::descriptors(self.power_transitions);
        c.npss = c.psd.iter_mut().zip(states).map(|(to, state)| *to = state).count() as u8 - 1;
        c.apsta = self.power_transitions.into();
        c.kas = if self.keep_alive { (KEEP_ALIVE_UNIT_MS / 100) as u16 } else { 0 }.into();
        (c.hmpre, c.hmmin) = (self.host_memory.0.into(), self.host_memory.1.into());
        c.crdt = self.retry_delays.map(Into::into);
        c.nwpc = NWPC;
        let mut oacs = Oacs::FORMAT | Oacs::FIRMWARE | Oacs::NAMESPACE_MANAGEMENT;
        oacs.set(Oacs::DOORBELL_BUFFER, self.shadow_doorbells);
        c.oacs = oacs.bits().into();
        self.command_set(&mut c, inventory);
        let uuid = hyphenated(&self.uuid(0));
        let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}");
        c.subnqn[..nqn.len()].copy_from_slice(nqn.as_bytes());
        page(c.as_bytes())
    }

    /// The half of the page that speaks of queues and I/O commands.
    fn command_set(&self, c: &mut Controller, inventory: &Inventory) {
        c.sqes = 0x66;
        c.cqes = 0x44;
        c.nn = inventory.numbers().into();
        c.mnan = inventory.numbers().into();
        let oncs = Oncs::COMPARE
            | Oncs::WRITE_UNCORRECTABLE
            | Oncs::DATASET_MANAGEMENT
            | Oncs::WRITE_ZEROES
            | Oncs::SAVE
            | Oncs::TIMESTAMP
            | Oncs::VERIFY
            | Oncs::COPY;
        c.oncs = oncs.bits().into();
        c.vwc = VWC_FLUSH_ALL | if self.volatile_cache { VWC_PRESENT } else { 0 };
        let least = |unit: fn(&Geometry) -> u32| {
            let units = inventory.all_allocated().map(|g| g.blocks_of(unit(g)).unwrap_or(0));
            units.min().unwrap_or(0)
        };
        c.awun = least(|g| g.limits.atomic_write).into();
        c.awupf = least(|g| g.limits.atomic_write_power_fail).into();
        // Copy descriptors of format 0h.
        c.cdfs = 1.into();
        c.sgls = if self.sgl { SGLS } else { 0 }.into();
    }

    fn namespace_page(&self, g: &Geometry, inventory: &Inventory) -> Page {
        let mut n = NamespacePage::boxed();
        n.nsze = g.blocks.into();
        n.ncap = g.blocks.into();
        n.nuse = g.blocks.into();
        n.nlbaf = g.formats() - 1;
        n.flbas = g.format_index();
        for (index, format) in (0..g.formats()).zip(n.lbaf.iter_mut()) {
            // Zero says that the format cannot be had.
            format.lbads = g.format(index).unwrap_or(0) as u8;
            format.ms = if g.has_metadata(index) { METADATA as u16 } else { 0 }.into();
        }
        if g.lists_metadata {
            (n.mc, n.dpc) = (METADATA_EITHER_WAY, PROTECTION_ALL);
        }
        if let Some(metadata) = &g.metadata {
            let layout = metadata.layout;
            n.flbas |= u8::from(layout.extended) << 4;
            n.dps = layout.kind | u8::from(layout.first) << 3;
        }
        n.fpi = format_progress(g, inventory);
        n.dlfeat = NamespacePage::DEAC;
        n.nvmcap = u128::from(g.len).into();
        n.noiob = g.noiob.into();
        n.nsattr = u8::from(g.read_only);
        n.mssrl = u16::try_from(g.copy_blocks()).unwrap_or(u16::MAX).into();
        n.mcl = g.copy_blocks().into();
        n.msrc = (COPY_RANGES - 1) as u8;
        n.nguid = self.uuid(g.identifier());
        n.eui64 = self.eui64(g.identifier());
        hints(&mut n, g);
        page(n.as_bytes())
    }

    fn descriptor_page(&self, g: &Geometry) -> Page {
        let mut list = zeroes();
        let (eui64, nguid) = (self.eui64(g.identifier()), self.uuid(g.identifier()));
        let descriptors = [
            (id::NIDT_EUI64, &eui64[..]),
            (id::NIDT_NGUID, &nguid[..]),
            (id::NIDT_UUID, &nguid[..]),
            (id::NIDT_CSI, &[id::CSI_NVM][..]),
        ];
        let mut at = 0;
        for (nidt, nid) in descriptors {
            at += push_descriptor(&mut list[at..], Descriptor { nidt, nid });
        }
        list
    }

    /// An identifier that stays the same for the same serial number: a UUID of version 8,
    /// whose bits are the maker's (RFC 9562, 5.8).
    fn uuid(&self, identifier: u32) -> [u8; 16] {
        let high = hash(self.serial.as_bytes(), 0x6f78_626c, identifier);
        let low = hash(self.serial.as_bytes(), 0x6f63_6b30, identifier);
        let mut uuid = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    /// A locally administered EUI-64.
    fn eui64(&self, identifier: u32) -> [u8; 8] {
        let mut eui64 = hash(self.serial.as_bytes(), 0x6575_6936, identifier).to_be_bytes();
        eui64[0] = eui64[0] & !1 | 2;
        eui64
    }
}

/// The namespace that a page is about.
struct About<'a> {
    nsid: u32,
    inventory: &'a Inventory,
}

impl About<'_> {
    fn valid(&self) -> Result<(), Status> {
        if self.inventory.is_valid(self.nsid) {
            return Ok(());
        }
        Err(Status::INVALID_NAMESPACE)
    }

    /// A page about a namespace that is attached; zeroes if it is not (Base 2.0, 3.2.1.4).
    fn active(&self, of: impl Fn(&Geometry) -> Page) -> Result<Page, Status> {
        self.valid()?;
        Ok(self.inventory.active(self.nsid).map_or_else(zeroes, of))
    }

    /// A page about a namespace that exists, attached or not; zeroes if it does not.
    fn allocated(&self, of: impl Fn(&Geometry) -> Page) -> Result<Page, Status> {
        self.valid()?;
        Ok(self.inventory.allocated(self.nsid).map_or_else(zeroes, of))
    }
}

/// What all namespaces have in common (5.17.2.1 with NSID FFFFFFFFh).
fn common_namespace_page(inventory: &Inventory) -> Page {
    let mut n = NamespacePage::boxed();
    n.nlbaf = FORMATS.len() as u8 - 1;
    for (format, shift) in n.lbaf.iter_mut().zip(FORMATS) {
        format.lbads = if inventory.has_format(shift) { shift as u8 } else { 0 };
    }
    n.dlfeat = NamespacePage::DEAC;
    n.msrc = (COPY_RANGES - 1) as u8;
    page(n.as_bytes())
}

/// Namespaces with numbers above `after`.
fn list_page<'a>(after: u32, all: impl Iterator<Item = &'a Geometry>) -> Result<Page, Status> {
    if after >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE);
    }
    let mut list = IdList::boxed();
    let ids = all.map(|g| g.nsid).filter(|&n| n > after);
    for (slot, nsid) in list.ids.iter_mut().zip(ids) {
        *slot = nsid.into();
    }
    Ok(page(list.as_bytes()))
}

/// FPI: the indicator is supported, and this many percent of a format are left.
fn format_progress(g: &Geometry, inventory: &Inventory) -> u8 {
    const SUPPORTED: u8 = 1 << 7;
    match inventory.busy(g.nsid) {
        Some(Busy::Formatting(left)) => SUPPORTED | left,
        _ => SUPPORTED,
    }
}

/// Sizes and alignments that the node below does best.
fn hints(n: &mut NamespacePage, g: &Geometry) {
    let limits = &g.limits;
    if let Some(nawun) = g.blocks_of(limits.atomic_write) {
        n.nsfeat |= NamespacePage::ATOMICS;
        n.nawun = nawun.into();
        n.nawupf = g.blocks_of(limits.atomic_write_power_fail).unwrap_or(0).into();
    }
    let (npdg, nows) =
        (g.blocks_of(limits.discard_alignment), g.blocks_of(limits.optimal_transfer));
    if npdg.is_some() || nows.is_some() {
        n.nsfeat |= NamespacePage::OPTIMAL;
        n.npdg = npdg.unwrap_or(0).into();
        n.npda = npdg.unwrap_or(0).into();
        n.nows = nows.unwrap_or(0).into();
    }
}

fn independent_page(g: &Geometry, inventory: &Inventory) -> Page {
    let mut n = NamespaceIndependent::boxed();
    n.fpi = format_progress(g, inventory);
    n.nsattr = u8::from(g.read_only);
    n.nstat = 1;
    page(n.as_bytes())
}

/// Controllers with numbers from `first` on: a count, then the numbers.
fn controllers_page(first: u16) -> Page {
    let mut list = zeroes();
    if first <= CONTROLLER_ID {
        list[..2].copy_from_slice(&1u16.to_le_bytes());
        list[2..4].copy_from_slice(&CONTROLLER_ID.to_le_bytes());
    }
    list
}

/// Combinations of command sets: only one, and only the NVM command set is in it.
fn command_sets_page() -> Page {
    let mut list = zeroes();
    list[0] = 1 << id::CSI_NVM;
    list
}

fn nvm_only(csi: u8) -> Result<(), Status> {
    if csi == id::CSI_NVM {
        return Ok(());
    }
    Err(Status::COMMAND_SET_NOT_SUPPORTED)
}

fn zeroes() -> Page {
    Box::new([0; PAGE_BYTES])
}

fn page(bytes: &[u8]) -> Page {
    let mut page = zeroes();
    for (to, from) in page.iter_mut().zip(bytes) {
        *to = *from;
    }
    page
}

/// FNV-1a over a serial number, finished so that neighbouring numbers differ everywhere.
fn hash(serial: &[u8], salt: u32, nsid: u32) -> u64 {
    let salted = salt.to_le_bytes().into_iter().chain(nsid.to_le_bytes());
    let bytes = serial.iter().copied().chain(salted);
    let mixed = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ mixed >> 29
}

fn hyphenated(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::inventory;

    fn identity() -> Identity {
        Identity {
            serial: "S1".into(),
            model: "M".into(),
            vendor: 0x1234,
            subsystem_vendor: 0x5678,
            mdts: 5,
            sgl: true,
            shadow_doorbells: true,
            volatile_cache: true,
            power_transitions: false,
            keep_alive: false,
            host_memory: (0, 0),
            retry_delays: [0; 3],
            activation: 1,
        }
    }

    fn ask(cns: u8, nsid: u32, csi: u8) -> Result<Page, Status> {
        let inventory = inventory(&[9, 12, 12], 4);
        identity().page(&Command::identify(cns, nsid, csi), &inventory, b"1.0     ")
    }

    #[test]
    fn lists_begin_after_the_number_given() {
        let ids = |cns, after| -> Vec<u32> {
            let page = ask(cns, after, 0).unwrap();
            let words = page.as_chunks::<4>().0.iter();
            words.map(|w| u32::from_le_bytes(*w)).take_while(|&n| n != 0).collect()
        };
        for cns in [0x02, 0x10, 0x07, 0x1a] {
            assert_eq!(ids(cns, 0), [1, 2, 3]);
            assert_eq!(ids(cns, 2), [3]);
            assert!(ids(cns, 3).is_empty());
        }
        assert_eq!(ask(0x02, NSID_ALL, 0), Err(Status::INVALID_NAMESPACE));
        assert_eq!(ask(0x02, NSID_ALL - 1, 0), Err(Status::INVALID_NAMESPACE));
    }

    #[test]
    fn pages_about_namespaces_need_one() {
        for cns in [0x00, 0x03, 0x05, 0x08, 0x11, 0x12] {
            assert!(ask(cns, 3, 0).is_ok(), "{cns:#x}");
            assert_eq!(ask(cns, 0, 0), Err(Status::INVALID_NAMESPACE), "{cns:#x}");
            assert_eq!(ask(cns, 5, 0), Err(Status::INVALID_NAMESPACE), "{cns:#x}");
            // A number that no namespace has, but could have.
            let expected = if cns == 0x03 { Err(Status::INVALID_FIELD) } else { Ok(zeroes()) };
            assert_eq!(ask(cns, 4, 0), expected, "{cns:#x}");
        }
        assert!(ask(0x00, NSID_ALL, 0).is_ok());
        for cns in [0x05, 0x06, 0x07] {
            assert_eq!(ask(cns, 1, 1), Err(Status::COMMAND_SET_NOT_SUPPORTED));
        }
        for cns in [0x04, 0x09, 0x14, 0x15, 0x16, 0x17, 0xff] {
            assert_eq!(ask(cns, 1, 0), Err(Status::INVALID_FIELD), "{cns:#x}");
        }
    }

    #[test]
    fn identifiers_are_stable_and_different() {
        let identity = identity();
        let mut seen = std::collections::HashSet::new();
        for nsid in 0..1000 {
            assert!(seen.insert(identity.uuid(nsid)));
            assert_eq!(identity.uuid(nsid), identity.uuid(nsid));
        }
        let page = ask(0x03, 1, 0).unwrap();
        let found: Vec<_> = id::DescriptorIter::new(&page[..]).map(|d| d.nidt).collect();
        assert_eq!(found, [1, 2, 3, 4]);
        let text = hyphenated(&identity.uuid(0));
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "8");
    }

    #[test]
    fn the_controller_says_what_it_can() {
        let page = ask(0x01, 0, 0).unwrap();
        assert_eq!(page[77], 5);
        assert_eq!(page[78..80], [1, 0]);
        assert_eq!(page[512..514], [0x66, 0x44]);
        assert_eq!(page[516..520], [4, 0, 0, 0]);
        assert_eq!(&page[64..72], b"1.0     ");
        assert_eq!(page[256] & 0b1110, 0b1110);
        assert_eq!(page[525] & 1, 1);
        assert_eq!(&page[4..24], b"S1                  ");
        assert!(page[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
        let page = ask(0x1c, 0, 0).unwrap();
        assert_eq!(page[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
