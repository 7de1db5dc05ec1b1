//! Admin commands for whoever manages a controller.

use oxblock_engine::{Error, ErrorKind};
use oxblock_nvme::identify::CNS_CONTROLLER;
use oxblock_nvme::opcode::admin;
use oxblock_nvme::status::Status;
use oxblock_nvme::{Command, NSID_ALL};

use super::super::{AdminData, AdminReply};
use super::Rig;

/// What the controller says to a command.
fn ask(rig: &mut Rig, command: Command, data: AdminData) -> Result<AdminReply, Error> {
    let controller = rig.attach();
    rig.run(|core| async move { controller.admin_command(&core, command, data, None).await })
}

#[test]
fn a_status_is_a_reply_until_success_is_asked_for() {
    let mut rig = Rig::new(|state| {
        state.refused.insert(admin::FORMAT_NVM, (Status::FORMAT_IN_PROGRESS, 1));
    });
    let reply = ask(&mut rig, Command::format_nvm(1, 0, 0), AdminData::None).expect("an answer");
    assert_eq!((reply.status, reply.data.len()), (Status::FORMAT_IN_PROGRESS, 0));
    let error = reply.success("format").map(|_| ()).expect_err("a refusal");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("format: generic status: format in progress"), "{error}");
}

#[test]
fn data_goes_both_ways_and_no_further_than_a_page() {
    let mut rig = Rig::new(|_| {});
    let identify = Command::identify(CNS_CONTROLLER, 0, 0);
    let reply = ask(&mut rig, identify, AdminData::FromController(4096)).expect("an answer");
    let page = rig.device.state().controller.clone();
    assert_eq!(reply.data[4..24], page.sn);
    let long = ask(&mut rig, identify, AdminData::ToController(vec![0; 4097]));
    assert_eq!(long.map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::Invalid));
}

/// A tool deleted an I/O queue by hand, and the driver went on ringing its doorbell.
#[test]
fn commands_that_the_queues_hang_on_are_the_drivers_own() {
    let mut rig = Rig::new(|_| {});
    for opcode in [admin::DELETE_SQ, admin::CREATE_CQ, admin::ASYNC_EVENT] {
        let reply = ask(&mut rig, Command::new(opcode, 0), AdminData::None);
        assert_eq!(reply.map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::Denied));
    }
}

#[test]
fn log_pages_are_read_in_pieces() {
    let mut rig = Rig::new(|_| {});
    let controller = rig.attach();
    let before = rig.device.state().admin_count(admin::GET_LOG_PAGE);
    let theirs = controller.clone();
    let page =
        rig.run(|core| async move { theirs.log_page(&core, 2, NSID_ALL, 3 * 4096 + 64).await });
    assert_eq!(page.map(|page| page.len()).ok(), Some(3 * 4096 + 64));
    assert_eq!(rig.device.state().admin_count(admin::GET_LOG_PAGE), before + 4);
    let odd = rig.run(|core| async move { controller.log_page(&core, 2, NSID_ALL, 3).await });
    assert_eq!(odd.map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::Invalid));
}

#[test]
fn a_rescan_finds_what_came_and_what_went() {
    let mut rig = Rig::new(|_| {});
    let controller = rig.attach();
    let mut other = rig.device.state().namespaces[&1].clone();
    other.lbaf[0].lbads = 9;
    rig.device.state().namespaces.insert(7, other);
    rig.device.state().namespaces.remove(&1);
    assert!(controller.namespace(7).is_err());
    let theirs = controller.clone();
    let ids = rig.run(|core| async move { theirs.rescan(&core).await }).expect("a list");
    assert_eq!(ids, [7]);
    assert!(controller.namespace(1).is_err());
    let driver = controller.namespace(7).expect("namespace 7");
    assert_eq!(driver.limits().block_size, 512);
}
