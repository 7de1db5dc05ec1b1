//! Rows 2, 3 and 5 to 10: what a controller says of itself when it is attached.

use std::time::Duration;

use oxblock_mem::{ArenaOptions, Memory};
use oxblock_nvme::regs::{ACQ, AQA, ASQ, CC, CRTO, Cc};
use oxblock_nvmet::fault::Readiness;

use super::{Rig, Row};

pub const ROWS: &[Row] = &[
    (2, "RDY is awaited, then it is disabled", becoming_ready),
    (3, "the longer of CAP.TO and CRTO, never 0", ready_timeout),
    (5, "queues are no longer, one of a single entry is refused", mqes),
    (6, "refused where doorbells lie outside the BAR", doorbells),
    (7, "refused", pages),
    (8, "no transfer is longer", mdts),
    (9, "refused in words", formats),
    (10, "transfers end at each multiple", boundary),
];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn becoming_ready() {
    let mut rig = Rig::new();
    rig.faults.set_readiness(Readiness::AfterTime(ms(200)));
    oxblock_pci::enable(rig.target.function().config()).expect("a function");
    let bar = rig.target.function().bar(0).expect("BAR 0");
    // Somebody else's queues.
    let (others, at) = (Memory::new(), 1 << 40);
    let arena = others.add_arena(&ArenaOptions::new(8192)).expect("memory");
    rig.target.function().iommu().map(&arena.region(), at).expect("a mapping");
    bar.write32(AQA, 0x0001_0001);
    bar.write64(ASQ, at);
    bar.write64(ACQ, at + 4096);
    bar.write32(CC, Cc::default().with_en(true).with_iosqes(6).with_iocqes(4).0);
    let driven = rig.open();
    assert!(rig.now() >= ms(400), "ready twice, in {:?}", rig.now());
    rig.exercise(&driven);
}

fn ready_timeout() {
    // Zero is half a second, as one is.
    for (to, crwmt, ready_after, is_in_time) in [
        (0, 0, 400, true),
        (0, 0, 1500, false),
        (4, 0, 1900, true),
        (1, 10, 4900, true),
        (1, 10, 6000, false),
    ] {
        let mut rig = Rig::new();
        rig.faults.set_cap(rig.cap().with_to(to).with_crms(u8::from(crwmt > 0)).0);
        rig.faults.set_register(CRTO, Some(crwmt));
        rig.faults.set_readiness(Readiness::AfterTime(ms(ready_after)));
        if is_in_time {
            let driven = rig.open();
            assert!(rig.now() >= ms(ready_after));
            rig.exercise(&driven);
        } else {
            assert!(rig.refusal().contains("took longer"));
            // It is disabled again, which is bounded by the same.
            let most = ms(500) * u32::from(to).max(crwmt).max(1) * 2;
            assert!(rig.now() < most + ms(100), "{:?}", rig.now());
        }
    }
}

fn mqes() {
    for (entries, used) in [(2, 2), (3, 3), (100, 100), (1024, 256)] {
        let mut rig = Rig::with(|options| options.max_queue_entries = entries);
        let driven = rig.open();
        assert_eq!(driven.host.identity().queue_entries, used);
        rig.exercise(&driven);
    }
    let mut rig = Rig::new();
    rig.faults.set_cap(rig.cap().with_mqes(0).0);
    assert!(rig.refusal().contains("MQES 0"));
}

fn doorbells() {
    for dstrd in [1, 4, 8] {
        let mut rig = Rig::with(|options| options.dstrd = dstrd);
        let driven = rig.open();
        rig.exercise_cores(&driven);
    }
    let mut rig = Rig::new();
    rig.faults.set_cap(rig.cap().with_dstrd(15).0);
    let refusal = rig.refusal();
    assert!(refusal.contains("outside its BAR (CAP.DSTRD 15)"), "{refusal}");
}

fn pages() {
    let mut rig = Rig::new();
    rig.faults.set_cap(rig.cap().with_mpsmin(4).with_mpsmax(4).0);
    let refusal = rig.refusal();
    assert!(refusal.contains("65536 bytes, the host's is 4096"), "{refusal}");
}

fn mdts() {
    for (mdts, commands) in [(1, 128), (3, 32), (8, 1)] {
        let mut rig = Rig::with(|options| options.mdts = mdts);
        let driven = rig.open();
        assert_eq!(rig.transfer(&driven, 0, 1 << 20), commands, "MDTS {mdts}");
    }
    // A shift by that much would leave nothing.
    for mdts in [0, 52, 64, 255] {
        let mut rig = Rig::new();
        rig.faults.patch_identify(1, 77, &[mdts]);
        let driven = rig.open();
        assert_eq!(driven.channel.limits().max_transfer, 512 * 4096, "MDTS {mdts}");
        assert_eq!(rig.transfer(&driven, 0, 1 << 20), 1);
    }
}

/// The bytes of LBA format 0: MS, LBADS. Formats that are not in use do not matter.
fn formats() {
    for (ms, lbads, words) in [
        (0, 8, "2^8 bytes"),
        (0, 0, "2^0 bytes"),
        (0, 255, "2^255 bytes"),
        (8, 9, "8 bytes of metadata"),
    ] {
        let mut rig = Rig::new();
        // FLBAS: format 0, metadata behind each block.
        rig.faults.patch_identify(0, 26, &[0x10]);
        rig.faults.patch_identify(0, 128, &[ms, 0, lbads, 0]);
        let host = rig.attach().expect("the controller itself is fine");
        let refusal = host.namespace(1).map(|_| ()).expect_err("a refusal").to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
}

fn boundary() {
    // 24 blocks are 12 KiB.
    let mut rig = Rig::with(|options| options.namespaces[0].noiob = Some(24));
    let driven = rig.open();
    for (offset, len, commands) in
        [(0, 12 << 10, 1), (0, 48 << 10, 4), (8 << 10, 8 << 10, 2), (12 << 10, 12 << 10, 1)]
    {
        assert_eq!(rig.transfer(&driven, offset, len), commands, "{len} bytes at {offset}");
    }
}
