//! Submission queues in the controller's own memory (Controller Memory Buffer, Base 2.0, 8.5): the
//! controller fetches commands from there, and not across the bus.
//!
//! Nothing that the registers say is trusted: what does not lie inside its BAR is not used.

use std::ops::RangeInclusive;
use std::sync::Arc;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::{Attachment, Cells};
use oxblock_nvme::cmb::{self, CMBSTS_CBAI, Cmbloc, Cmbmsc, Cmbsz};
use oxblock_nvme::regs;
use oxblock_pci::{Bar, Function};

use super::hardware::{Hardware, pci_error};

/// A buffer that the controller has, placed among the addresses that commands name.
pub(super) struct ControllerMemory {
    bar: Arc<dyn Bar>,
    layout: Layout,
    /// Where commands find it.
    address: u64,
    /// Keeps memory of the host away from those addresses.
    _away: Attachment,
}

/// Where a controller says that its buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    location: Cmbloc,
    size: Cmbsz,
    offset: u64,
    len: u64,
}

impl ControllerMemory {
    /// Finds the buffer and places it. None if there is none; else why it is not used.
    pub fn find(
        core: &Core,
        function: &dyn Function,
        hardware: &Hardware,
    ) -> Result<Result<Option<ControllerMemory>, String>, Error> {
        let refuse = |text: String| Ok(Err(format!("no queues in controller memory: {text}")));
        let (location, size) = read_location(hardware)?;
        if size.sz() == 0 {
            return Ok(Ok(None));
        }
        let bar = match function.bar(location.bir()) {
            Ok(bar) => bar,
            Err(error) => return refuse(format!("{error}")),
        };
        let Some((offset, len)) = cmb::place(location, size, bar.len()) else {
            return refuse(format!(
                "it is not inside BAR {} of {:#x} bytes (CMBLOC {:#x}, CMBSZ {:#x})",
                location.bir(),
                bar.len(),
                location.0,
                size.0
            ));
        };
        if !size.sqs() {
            return refuse(format!("it may hold none (CMBSZ {:#x})", size.0));
        }
        let layout = Layout { location, size, offset, len };
        for address in addresses(function, hardware, layout)? {
            let Some(around) = around(address, len) else { continue };
            let Ok(away) = core.memory().attach_within(function.iommu(), &around) else { continue };
            let memory = ControllerMemory { bar: bar.clone(), layout, address, _away: away };
            if memory.place(hardware)? {
                return Ok(Ok(Some(memory)));
            }
        }
        refuse("every address for it is taken, or refused by the controller".into())
    }

    /// Places it again after a reset.
    ///
    /// # Errors
    /// It is another than before: queues are where there may be nothing now.
    pub fn find_again(&self, hardware: &Hardware) -> Result<(), Error> {
        let now = read_location(hardware)?;
        if now == (self.layout.location, self.layout.size) && self.place(hardware)? {
            return Ok(());
        }
        let text = format!(
            "the controller's memory is another after the reset (CMBLOC {:#x}, CMBSZ {:#x})",
            now.0.0, now.1.0
        );
        Err(Error::new(ErrorKind::Io, text))
    }

    /// Room for the submission queue `qid`, and the address that the controller knows it by. Every
    /// ID has a place of its own; none past the end, or where the BAR cannot be mapped.
    pub fn queue(&self, qid: u16, len: u64) -> Option<(Cells, u64)> {
        let at = u64::from(qid.checked_sub(1)?).checked_mul(len)?;
        if at.checked_add(len)? > self.layout.len {
            return None;
        }
        let memory = self.bar.memory(self.layout.offset + at, len).ok()?;
        Some((Cells::new(memory).ok()?, self.address + at))
    }

    /// False if the controller does not take the address.
    fn place(&self, hardware: &Hardware) -> Result<bool, Error> {
        if !hardware.cap().cmbs() {
            return Ok(true);
        }
        let control = Cmbmsc::default().with_cre(true).with_cmse(true).with_cba(self.address);
        hardware.register64(regs::CMBMSC)?.write(control.0);
        Ok(hardware.register(regs::CMBSTS)?.read() & CMBSTS_CBAI == 0)
    }
}

/// CMBLOC and CMBSZ; a controller that has CMBMSC shows them only when told to.
fn read_location(hardware: &Hardware) -> Result<(Cmbloc, Cmbsz), Error> {
    if hardware.cap().cmbs() {
        let control = hardware.register64(regs::CMBMSC)?;
        control.write(Cmbmsc(control.read()).with_cre(true).0);
    }
    let location = Cmbloc(hardware.register(regs::CMBLOC)?.read());
    Ok((location, Cmbsz(hardware.register(regs::CMBSZ)?.read())))
}

/// Addresses that the buffer may have, the best first: that of its BAR on the bus, which older
/// controllers know it by, and one that no memory of the host can have.
fn addresses(
    function: &dyn Function,
    hardware: &Hardware,
    layout: Layout,
) -> Result<Vec<u64>, Error> {
    let bir = layout.location.bir();
    let base = oxblock_pci::bar_address(function.config(), bir).map_err(pci_error)?;
    let mut addresses: Vec<u64> =
        base.and_then(|base| base.checked_add(layout.offset)).into_iter().collect();
    if hardware.cap().cmbs() {
        let windows = function.iommu().windows();
        let end = windows.iter().map(|window| *window.end()).max().unwrap_or(0);
        addresses.extend(end.checked_next_multiple_of(layout.len.next_power_of_two()));
    }
    Ok(addresses)
}

/// All addresses but these; `None` if there are none, or these are no addresses.
fn around(address: u64, len: u64) -> Option<[RangeInclusive<u64>; 2]> {
    let after = address.checked_add(len)?;
    (address > 0 && after < u64::MAX).then(|| [0..=address - 1, after..=u64::MAX - 1])
}
