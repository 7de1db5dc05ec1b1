use std::sync::Arc;

use oxblock_mem::Buf;
use oxblock_nvme::command::{PRACT, PRCHK_APP, PRCHK_GUARD, PRCHK_REF};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::{Command, Status, log};

use crate::host::Host;
use crate::ram::Ram;
use crate::{ControllerOptions, NamespaceOptions};

const ALL: u32 = PRCHK_GUARD | PRCHK_APP | PRCHK_REF;
const EXTENDED: u32 = 1 << 4;
/// The formats with metadata come after the plain ones: 512 + 8 bytes, and 4096 + 8.
const FORMAT: u32 = 2;
const LARGE: u32 = 3;

/// A namespace of 256 blocks of this protection type.
fn formatted(kind: u32, settings: u32) -> (Host, Arc<Ram>) {
    formatted_as(FORMAT, kind, settings)
}

/// The same in a format of one's own; it has as many blocks as fit.
fn formatted_as(index: u32, kind: u32, settings: u32) -> (Host, Arc<Ram>) {
    let ram = Ram::new(256 * 512, 512);
    let namespace =
        NamespaceOptions { metadata: true, ..NamespaceOptions::new(ram.node("ram"), 512) };
    let options = ControllerOptions { namespaces: vec![namespace], ..ControllerOptions::default() };
    let mut host = Host::with_io(options);
    host.ok(format(index | kind << 5 | settings));
    (host, ram)
}

fn format(dword: u32) -> Command {
    Command::new(admin::FORMAT_NVM, 1).with_cdw10_11(dword, 0)
}

/// The guard as the specification has it, one bit after the other.
fn guard(block: &[u8]) -> u16 {
    block.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc: u16, _| {
            crc << 1 ^ if crc & 0x8000 != 0 { 0x8bb7 } else { 0 }
        })
    })
}

fn tuple(block: &[u8], app: u16, reference: u32) -> [u8; 8] {
    let value = u64::from(guard(block)) << 48 | u64::from(app) << 32 | u64::from(reference);
    value.to_be_bytes()
}

fn block(seed: u8) -> Vec<u8> {
    block_of(512, seed)
}

fn block_of(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed ^ (i >> 8) as u8).collect()
}

/// A command on blocks from 5 on, with the application tag 1234h.
fn command(opcode: u8, blocks: u32, prinfo: u32, reference: u32) -> Command {
    Command::nvm(opcode, 1, 5, blocks, prinfo).with_cdw14_15(reference, 0xffff_1234)
}

fn run(host: &mut Host, command: Command, data: &Buf, metadata: &Buf) -> Status {
    let (prp, mptr) = (data.iova().unwrap(), metadata.iova().unwrap());
    let status = host.run(1, command.with_prp(prp, prp + 4096).with_mptr(mptr)).status();
    Status { dnr: false, ..status }
}

#[test]
fn the_host_makes_and_checks_it_in_a_buffer_of_its_own() {
    let (mut host, ram) = formatted(1, 0);
    let (mut data, mut metadata) = (host.alloc(4096), host.alloc(4096));
    for at in 0..2 {
        data.write_at(at * 512, &block(at as u8));
        metadata.write_at(at * 8, &tuple(&block(at as u8), 0x1234, 5 + at as u32));
    }
    assert!(run(&mut host, command(nvm::WRITE, 2, ALL, 5), &data, &metadata).is_success());
    data.fill(0, 4096, 0);
    metadata.fill(0, 4096, 0);
    assert!(run(&mut host, command(nvm::READ, 2, ALL, 5), &data, &metadata).is_success());
    assert_eq!(data.as_slice().unwrap()[512..1024], block(1));
    assert_eq!(metadata.as_slice().unwrap()[8..16], tuple(&block(1), 0x1234, 6));

    let other_app = command(nvm::READ, 2, ALL, 5).with_cdw14_15(5, 0xffff_1235);
    let app = run(&mut host, other_app, &data, &metadata);
    assert_eq!(app, Status::APPLICATION_TAG_ERROR);
    let masked = command(nvm::READ, 2, ALL, 5).with_cdw14_15(5, 0xfffe_1235);
    assert!(run(&mut host, masked, &data, &metadata).is_success());
    let reference = run(&mut host, command(nvm::READ, 2, ALL, 6), &data, &metadata);
    assert_eq!(reference, Status::INVALID_PROTECTION_INFORMATION);

    // The second block changes below: the error log names it.
    ram.bytes()[6 * 512] ^= 1;
    for opcode in [nvm::READ, nvm::VERIFY] {
        let status = run(&mut host, command(opcode, 2, ALL, 5), &data, &metadata);
        assert_eq!(status, Status::GUARD_CHECK_ERROR);
    }
    let entry = host.page(Command::log_page(log::LID_ERROR, u32::MAX, 64, 0, true));
    assert_eq!(entry[16..24], 6u64.to_le_bytes());
    let unchecked = command(nvm::READ, 2, 0, 5);
    assert!(run(&mut host, unchecked, &data, &metadata).is_success());
}

#[test]
fn a_write_whose_guard_or_tag_is_wrong_changes_nothing() {
    let (mut host, ram) = formatted(2, EXTENDED);
    let (mut data, none) = (host.alloc(4096), host.alloc(4096));
    data.write_at(0, &block(1));
    data.write_at(512, &tuple(&block(1), 0x1234, 77));
    assert!(run(&mut host, command(nvm::WRITE, 1, ALL, 77), &data, &none).is_success());
    let reference = run(&mut host, command(nvm::WRITE, 1, ALL, 78), &data, &none);
    assert_eq!(reference, Status::REFERENCE_TAG_ERROR);
    data.write_at(0, &block(2));
    let guard = run(&mut host, command(nvm::WRITE, 1, ALL, 77), &data, &none);
    assert_eq!(guard, Status::GUARD_CHECK_ERROR);
    assert_eq!(ram.bytes()[5 * 512..6 * 512], block(1));
    data.fill(0, 4096, 0);
    assert!(run(&mut host, command(nvm::READ, 1, ALL, 77), &data, &none).is_success());
    assert_eq!(data.as_slice().unwrap()[..512], block(1));
    assert_eq!(data.as_slice().unwrap()[512..520], tuple(&block(1), 0x1234, 77));
}

#[test]
fn the_controller_inserts_and_strips_it() {
    for (kind, second) in [(1, 6), (2, 6), (3, 5)] {
        let (mut host, ram) = formatted(kind, EXTENDED);
        let (mut data, none) = (host.alloc(4096), host.alloc(4096));
        data.write_at(0, &block(1));
        data.write_at(512, &block(2));
        assert!(run(&mut host, command(nvm::WRITE, 2, PRACT, 5), &data, &none).is_success());
        data.fill(0, 4096, 0);
        let checks = PRACT | PRCHK_GUARD | if kind == 3 { 0 } else { PRCHK_REF };
        let read = command(nvm::READ, 2, checks, 5);
        assert!(run(&mut host, read, &data, &none).is_success());
        assert_eq!(data.as_slice().unwrap()[512..1024], block(2));
        // The host sees what the controller made.
        assert!(run(&mut host, command(nvm::READ, 2, 0, 5), &data, &none).is_success());
        let expected = tuple(&block(2), 0x1234, second);
        assert_eq!(data.as_slice().unwrap()[1032..1040], expected);
        ram.bytes()[6 * 512] ^= 1;
        assert_eq!(run(&mut host, read, &data, &none), Status::GUARD_CHECK_ERROR);
    }
}

#[test]
fn blocks_without_data_are_not_checked() {
    let (mut host, _) = formatted(1, 0);
    let (data, metadata) = (host.alloc(4096), host.alloc(4096));
    assert!(run(&mut host, command(nvm::READ, 1, ALL, 5), &data, &metadata).is_success());
    assert_eq!(metadata.as_slice().unwrap()[..8], [0xff; 8]);
    let zeroes = command(nvm::WRITE_ZEROES, 1, PRACT, 5);
    assert!(run(&mut host, zeroes, &data, &metadata).is_success());
    assert!(run(&mut host, command(nvm::READ, 1, ALL, 5), &data, &metadata).is_success());
    assert_eq!(metadata.as_slice().unwrap()[..8], tuple(&[0; 512], 0x1234, 5));
    // Copying blocks with metadata is not offered.
    let refused = run(&mut host, command(nvm::COPY, 1, 0, 5), &data, &metadata);
    assert_eq!(refused, Status::INVALID_FIELD);
}

/// What the medium has is checked as by a read, then compared, but for the protection information
/// itself: the host need not know it.
#[test]
fn blocks_are_compared_and_their_protection_checked() {
    for (kind, settings) in [(1, 0), (1, EXTENDED), (2, EXTENDED), (3, 0)] {
        let (mut host, ram) = formatted(kind, settings);
        let (mut data, metadata) = (host.alloc(4096), host.alloc(4096));
        let stride = if settings == EXTENDED { 520 } else { 512 };
        let checks = PRCHK_GUARD | PRCHK_APP | if kind == 3 { 0 } else { PRCHK_REF };
        for at in 0..2 {
            data.write_at(at * 512, &block(at as u8));
        }
        assert!(run(&mut host, command(nvm::WRITE, 2, PRACT, 5), &data, &metadata).is_success());
        for at in 0..2 {
            data.write_at(at * stride, &block(at as u8));
        }
        let compare = command(nvm::COMPARE, 2, checks, 5);
        assert!(run(&mut host, compare, &data, &metadata).is_success(), "type {kind}");
        data.write_at(stride, &block(7));
        assert_eq!(run(&mut host, compare, &data, &metadata), Status::COMPARE_FAILURE);
        data.write_at(stride, &block(1));
        let other_app = compare.with_cdw14_15(5, 0xffff_1235);
        let app = run(&mut host, other_app, &data, &metadata);
        assert_eq!(app, Status::APPLICATION_TAG_ERROR);
        let strip = command(nvm::COMPARE, 2, PRACT, 5);
        let stripped = run(&mut host, strip, &data, &metadata);
        assert_eq!(stripped, Status::INVALID_PROTECTION_INFORMATION);
        ram.bytes()[6 * 512] ^= 1;
        assert_eq!(run(&mut host, compare, &data, &metadata), Status::GUARD_CHECK_ERROR);
    }
}

/// Metadata that protects nothing is data.
#[test]
fn metadata_of_the_hosts_own_is_compared() {
    let (mut host, _) = formatted(0, 0);
    let (mut data, mut metadata) = (host.alloc(4096), host.alloc(4096));
    data.write_at(0, &block(1));
    metadata.write_at(0, b"whatever");
    assert!(run(&mut host, command(nvm::WRITE, 1, 0, 5), &data, &metadata).is_success());
    let compare = command(nvm::COMPARE, 1, 0, 5);
    assert!(run(&mut host, compare, &data, &metadata).is_success());
    metadata.write_at(7, b"!");
    assert_eq!(run(&mut host, compare, &data, &metadata), Status::COMPARE_FAILURE);
}

/// The reference tag of a type 3 block is the host's: a check of it is refused.
#[test]
fn the_reference_tag_is_checked_as_its_type_says() {
    let (mut host, _) = formatted(3, EXTENDED);
    let (data, none) = (host.alloc(4096), host.alloc(4096));
    for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::VERIFY] {
        let status = run(&mut host, command(opcode, 1, PRCHK_REF, 5), &data, &none);
        assert_eq!(status, Status::INVALID_PROTECTION_INFORMATION, "opcode {opcode:#x}");
    }
    // The reference tag of a type 2 block need not be its address; one all of ones is no escape.
    let (mut host, _) = formatted(2, EXTENDED);
    let (mut data, none) = (host.alloc(4096), host.alloc(4096));
    data.write_at(0, &block(1));
    let write = command(nvm::WRITE, 1, PRACT, u32::MAX);
    assert!(run(&mut host, write, &data, &none).is_success());
    let read = command(nvm::READ, 1, ALL, u32::MAX);
    assert!(run(&mut host, read, &data, &none).is_success());
    let other = command(nvm::READ, 1, ALL, 5);
    assert_eq!(run(&mut host, other, &data, &none), Status::REFERENCE_TAG_ERROR);
    // An application tag all of ones is.
    let escape = command(nvm::WRITE, 1, PRACT, 9).with_cdw14_15(9, 0xffff_ffff);
    assert!(run(&mut host, escape, &data, &none).is_success());
    assert!(run(&mut host, other, &data, &none).is_success());
}

#[test]
fn blocks_of_4096_bytes_are_protected_alike() {
    for (kind, settings) in [(1, 0), (1, EXTENDED), (2, 0), (3, EXTENDED)] {
        let (mut host, ram) = formatted_as(LARGE, kind, settings);
        let page = host.page(Command::identify(0, 1, 0));
        assert_eq!(page[0..8], 32u64.to_le_bytes());
        assert_eq!(page[128 + 3 * 4..128 + 4 * 4], [8, 0, 12, 0]);
        let (mut data, mut metadata) = (host.alloc(8192), host.alloc(4096));
        let checks = PRCHK_GUARD | PRCHK_APP | if kind == 3 { 0 } else { PRCHK_REF };
        let (large, value) = (block_of(4096, 3), tuple(&block_of(4096, 3), 0x1234, 5));
        data.write_at(0, &large);
        data.write_at(4096, &value);
        metadata.write_at(0, &value);
        assert!(run(&mut host, command(nvm::WRITE, 1, checks, 5), &data, &metadata).is_success());
        assert_eq!(ram.bytes()[5 * 4096..6 * 4096], large);
        let compare = command(nvm::COMPARE, 1, checks, 5);
        assert!(run(&mut host, compare, &data, &metadata).is_success());
        data.fill(0, 8192, 0);
        metadata.fill(0, 4096, 0);
        assert!(run(&mut host, command(nvm::READ, 1, checks, 5), &data, &metadata).is_success());
        assert_eq!(data.as_slice().unwrap()[..4096], large);
        let found = if settings == EXTENDED {
            &data.as_slice().unwrap()[4096..4104]
        } else {
            &metadata.as_slice().unwrap()[..8]
        };
        assert_eq!(found, value);
        ram.bytes()[5 * 4096 + 4095] ^= 1;
        for opcode in [nvm::READ, nvm::VERIFY, nvm::COMPARE] {
            let status = run(&mut host, command(opcode, 1, checks, 5), &data, &metadata);
            assert_eq!(status, Status::GUARD_CHECK_ERROR);
        }
    }
}

#[test]
fn formats_are_listed_and_left_again() {
    let (mut host, _) = formatted(1, EXTENDED);
    let page = host.page(Command::identify(0, 1, 0));
    // NLBAF, FLBAS, MC, DPC, DPS.
    assert_eq!(page[25..30], [3, 0x12, 3, 0x1f, 1]);
    assert_eq!(page[128 + 2 * 4..128 + 3 * 4], [8, 0, 9, 0]);
    let plain = Status { dnr: false, ..host.status(0, format(1 << 5)) };
    assert_eq!(plain, Status::INVALID_FORMAT, "protection needs metadata");
    host.ok(format(0));
    let page = host.page(Command::identify(0, 1, 0));
    assert_eq!((page[26], page[29]), (0, 0));
    let data = host.alloc(4096);
    let compare = command(nvm::COMPARE, 1, 0, 0);
    assert!(run(&mut host, compare, &data, &data).is_success());
}
