use std::sync::atomic::Ordering;

use oxblock_mem::Cells;
use oxblock_nvme::cmb::{self, CMBSTS_CBAI, Cmbloc, Cmbmsc, Cmbsz};
use oxblock_nvme::pmr::{PMRCTL_EN, PMRMSCL_CMSE, Pmrcap, Pmrsts};
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::{Command, Status, regs};

use super::options;
use crate::ControllerOptions;
use crate::host::{Host, Pair};

/// Addresses that the host has no memory at.
const CMB_AT: u64 = 0x1234_0000_0000;
const PMR_AT: u64 = 0x2345_0000_0000;

const LEN: u64 = 64 << 10;

fn with(cmb: u64, pmr: u64) -> ControllerOptions {
    ControllerOptions { cmb_bytes: cmb, pmr_bytes: pmr, ..options().0 }
}

/// Where the buffer is, as a driver finds out.
fn find(host: &Host) -> (u8, u64, u64) {
    assert!(host.cap().cmbs());
    assert_eq!(host.reg32(regs::CMBSZ).read(), 0, "nothing is told before CRE");
    host.reg64(regs::CMBMSC).write(Cmbmsc::default().with_cre(true).0);
    let location = Cmbloc(host.reg32(regs::CMBLOC).read());
    let size = Cmbsz(host.reg32(regs::CMBSZ).read());
    assert!(size.sqs() && size.cqs() && size.lists() && size.rds() && size.wds());
    let bar = host.function.bar(location.bir()).unwrap();
    let (offset, len) = cmb::place(location, size, bar.len()).unwrap();
    (location.bir(), offset, len)
}

fn enable_cmb(host: &Host, at: u64) {
    let control = Cmbmsc::default().with_cre(true).with_cmse(true).with_cba(at);
    host.reg64(regs::CMBMSC).write(control.0);
    host.turns(2);
}

#[test]
fn queues_lists_and_data_may_lie_in_controller_memory() {
    let mut host = Host::new(with(LEN, 0));
    let (bir, offset, len) = find(&host);
    assert_eq!((bir, offset, len), (2, 0, LEN));
    let memory = host.function.bar(bir).unwrap().memory(offset, len).unwrap();
    enable_cmb(&host, CMB_AT);
    host.enable();

    // From its start: a submission queue, a completion queue, a list, and five pages of data.
    let mut sq = memory;
    let mut cq = sq.split_off(4096);
    let mut list = cq.split_off(4096);
    let mut data = list.split_off(4096);
    let dstrd = host.cap().dstrd();
    let bell = |is_cq| host.reg32(regs::doorbell_offset(1, is_cq, dstrd));
    let pair = Pair {
        sq: SubmissionQueue::new(Cells::new(sq).unwrap(), 64).unwrap(),
        cq: CompletionQueue::new(Cells::new(cq).unwrap(), 64).unwrap(),
        tail: bell(false),
        head: bell(true),
        stash: Vec::new(),
    };
    host.ok(Command::create_cq(1, 64, CMB_AT + 4096, None));
    host.ok(Command::create_sq(1, 64, CMB_AT, 1));
    host.pairs.push(Some(pair));
    let at = CMB_AT + 3 * 4096;
    for page in 0..4u64 {
        list.write_at(page as usize * 8, &(at + (page + 1) * 4096).to_le_bytes());
        data.write_at(page as usize * 4096, &[page as u8 + 1; 4096]);
    }
    let write = Command::write(2, 8, 4, 0).with_prp(at, CMB_AT + 2 * 4096);
    assert!(host.run(1, write).status().is_success());
    // Back into memory of the host, the list still in the controller's.
    let back = host.alloc(4 * 4096);
    let to = back.iova().unwrap();
    for page in 1..4u64 {
        list.write_at(page as usize * 8 - 8, &(to + page * 4096).to_le_bytes());
    }
    let read = Command::read(2, 8, 4).with_prp(to, CMB_AT + 2 * 4096);
    assert!(host.run(1, read).status().is_success());
    let bytes = back.as_slice().unwrap();
    assert!((0..4).all(|page| bytes[page * 4096..][..4096] == [page as u8 + 1; 4096]));

    // Word by word it is the same memory.
    let bar = host.function.bar(2).unwrap();
    bar.write64(LEN - 8, 0x1122_3344_5566_7788);
    assert_eq!(bar.read32(LEN - 4), 0x1122_3344);
    // Past its end is nothing.
    let past = Command::read(2, 8, 1).with_prp(CMB_AT + LEN, 0);
    assert_eq!(host.status(1, past), Status::DATA_TRANSFER_ERROR);

    // A reset of the controller leaves it where it is; one of the function takes it away.
    host.disable();
    host.enable();
    host.ok(Command::identify(1, 0, 0).with_prp(CMB_AT, 0));
    host.function.reset().unwrap();
    host.until("reset", |host| host.csts().0 == 0);
    assert_eq!(host.reg32(regs::CMBLOC).read(), 0);
    host.enable();
    let lost = Command::identify(1, 0, 0).with_prp(CMB_AT, 0);
    assert_eq!(host.status(0, lost), Status::DATA_TRANSFER_ERROR);
}

/// A queue whose memory the host takes away is fatal, as one in memory that it unmaps.
#[test]
fn a_queue_in_controller_memory_that_goes_is_fatal() {
    let mut host = Host::new(with(LEN, 0));
    enable_cmb(&host, CMB_AT);
    host.enable();
    host.ok(Command::create_cq(1, 64, CMB_AT, None));
    host.reg64(regs::CMBMSC).write(Cmbmsc::default().with_cre(true).0);
    host.until("fatal", |host| host.csts().cfs());
}

#[test]
fn addresses_that_cannot_be_are_told() {
    let host = Host::new(with(LEN, LEN));
    enable_cmb(&host, u64::MAX - 0xfff);
    assert_eq!(host.reg32(regs::CMBSTS).read(), CMBSTS_CBAI);
    enable_cmb(&host, CMB_AT);
    assert_eq!(host.reg32(regs::CMBSTS).read(), 0);
    // The two must not overlap.
    host.reg32(regs::PMRCTL).write(PMRCTL_EN);
    host.reg32(regs::PMRMSCU).write((CMB_AT >> 32) as u32);
    host.reg32(regs::PMRMSCL).write(0x8000 | PMRMSCL_CMSE);
    host.turns(2);
    assert!(Pmrsts(host.reg32(regs::PMRSTS).read()).cbai());
    host.reg32(regs::PMRMSCU).write((PMR_AT >> 32) as u32);
    host.turns(2);
    assert_eq!(host.reg32(regs::PMRSTS).read(), 0);
}

#[test]
fn a_persistent_region_survives_resets() {
    let mut host = Host::new(with(LEN, 2 * LEN));
    // The buffer makes room for it.
    let (bir, offset, len) = find(&host);
    assert!(bir == 0 && offset >= 0x1000 && len == LEN);
    assert!(host.function.bar(0).unwrap().memory(offset, len).is_ok());
    let cap = Pmrcap(host.reg32(regs::PMRCAP).read());
    let bar = host.function.bar(cap.bir()).unwrap();
    assert_eq!((cap.bir(), bar.len()), (2, 2 * LEN));
    assert!(cap.cmss() && cap.rds() && cap.wds() && cap.barrier_by_status());
    assert!(Pmrsts(host.reg32(regs::PMRSTS).read()).nrdy());
    host.reg32(regs::PMRCTL).write(PMRCTL_EN);
    host.until("ready", |host| !Pmrsts(host.reg32(regs::PMRSTS).read()).nrdy());
    let words = Cells::new(bar.memory(0, bar.len()).unwrap()).unwrap();
    words.u64(77).store(0xfeed, Ordering::Relaxed);
    host.enable();
    let sanitize = Command::sanitize(oxblock_nvme::sanitize::BLOCK_ERASE, 0);
    assert_eq!(host.status(0, sanitize), Status::SANITIZE_PROHIBITED);
    host.disable();
    host.function.reset().unwrap();
    host.until("reset", |host| Pmrsts(host.reg32(regs::PMRSTS).read()).nrdy());
    assert_eq!(words.u64(77).load(Ordering::Relaxed), 0xfeed);
    assert_eq!(bar.read64(77 * 8), 0xfeed);
    // Commands reach it at an address of the host's choice, once it is enabled again.
    host.reg32(regs::PMRMSCU).write((PMR_AT >> 32) as u32);
    host.reg32(regs::PMRMSCL).write(PMR_AT as u32 | PMRMSCL_CMSE);
    host.enable();
    let page = Command::identify(1, 0, 0).with_prp(PMR_AT + LEN, 0);
    assert_eq!(host.status(0, page), Status::DATA_TRANSFER_ERROR);
    host.reg32(regs::PMRCTL).write(PMRCTL_EN);
    host.turns(2);
    host.ok(page);
    assert_ne!(words.u64(LEN as usize / 8).load(Ordering::Relaxed), 0);
}
