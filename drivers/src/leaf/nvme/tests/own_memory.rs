//! Row 37: memory that a controller says it has. That queues and data work in it is tested over
//! the software controller.

use oxblock_engine::{ErrorKind, Op};
use oxblock_nvme::cmb::{CMBSTS_CBAI, Cmbloc, Cmbmsc, Cmbsz};
use oxblock_nvme::pmr::{PMRCTL_EN, Pmrcap, Pmrsts};
use oxblock_nvme::regs;

use super::device::State;
use super::{Rig, kind};

/// Sets CMBLOC and CMBSZ: the buffer begins `offset` pages into BAR `bir`, and has `pages`.
fn has_buffer(state: &mut State, bir: u8, offset: u32, pages: u32) {
    state.cap = state.cap.with_cmbs(true);
    let location = Cmbloc::default().with_bir(bir).with_ofst(offset);
    let size = Cmbsz::default().with_abilities(1).with_sz(pages);
    state.registers.extend([(regs::CMBLOC, location.0), (regs::CMBSZ, size.0)]);
}

fn notice(change: impl FnOnce(&mut State)) -> String {
    let mut rig = Rig::new(change);
    rig.options.controller_memory = true;
    let (controller, channel) = rig.open();
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()), "it works without");
    let [notice] = &controller.notices()[..] else { panic!("{:?}", controller.notices()) };
    notice.clone()
}

/// The BAR has four pages. A driver believed the registers, and wrote its queues past the end.
#[test]
fn a_buffer_that_is_not_in_its_bar_is_not_used() {
    for (offset, pages) in [(4, 1), (3, 2), (0, 5), (0xf_ffff, 0xf_ffff)] {
        let text = notice(|state| has_buffer(state, 0, offset, pages));
        assert!(text.contains("not inside BAR 0 of 0x4000 bytes"), "{text}");
    }
    for bir in [2, 3, 7] {
        let text = notice(|state| has_buffer(state, bir, 0, 1));
        assert!(text.contains(&format!("no BAR {bir}")) || bir > 5, "{text}");
    }
    let text = notice(|state| {
        has_buffer(state, 0, 2, 2);
        state.registers.insert(regs::CMBSZ, Cmbsz::default().with_szu(9).with_sz(1).0);
    });
    assert!(text.contains("not inside BAR 0"), "{text}");
    let text = notice(|state| {
        has_buffer(state, 0, 2, 2);
        state.registers.insert(regs::CMBSZ, Cmbsz::default().with_sz(2).0);
    });
    assert!(text.contains("it may hold none"), "{text}");
    let text = notice(|state| {
        has_buffer(state, 0, 2, 2);
        state.registers.insert(regs::CMBSTS, CMBSTS_CBAI);
    });
    assert!(text.contains("refused by the controller"), "{text}");
}

#[test]
fn a_buffer_is_not_touched_unless_it_is_wanted() {
    let mut rig = Rig::new(|state| has_buffer(state, 0, 9, 9));
    let controller = rig.attach();
    assert!(controller.notices().is_empty());
    assert!(!rig.device.state().registers.contains_key(&regs::CMBMSC));
}

/// The address of the buffer is one that no memory of the host has, and a reset gives it again.
#[test]
fn a_buffer_has_an_address_of_its_own() {
    let mut rig = Rig::new(|state| has_buffer(state, 0, 2, 2));
    rig.options.controller_memory = true;
    let (controller, channel) = rig.open();
    let at = |rig: &Rig| {
        let registers = &rig.device.state().registers;
        let (low, high) = (registers[&regs::CMBMSC], registers[&(regs::CMBMSC + 4)]);
        Cmbmsc(u64::from(high) << 32 | u64::from(low))
    };
    let placed = at(&rig);
    assert!(placed.cre() && placed.cmse() && placed.cba() >= 1 << 48, "{placed:?}");
    rig.device.state().registers.remove(&regs::CMBMSC);
    let reset = controller.clone();
    rig.run(|core| async move { reset.reset(&core).await }).expect("a reset");
    assert_eq!(at(&rig), placed);
    // This BAR cannot be mapped: the queue is in memory of the host.
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    // Another buffer than before: queues could be anywhere.
    has_buffer(&mut rig.device.state(), 0, 3, 1);
    let error = rig.run(|core| async move { controller.reset(&core).await }).unwrap_err();
    assert!(error.to_string().contains("memory is another after the reset"), "{error}");
}

fn persistent(change: impl FnOnce(&mut State)) -> (Rig, ErrorKind, String) {
    let mut rig = Rig::new(|state| {
        state.cap = state.cap.with_pmrs(true);
        let cap = Pmrcap::default().with_bir(2).with_timeout(4).with_barriers(2);
        state.registers.insert(regs::PMRCAP, cap.0);
        change(state);
    });
    let controller = rig.attach();
    let error = rig.run(|core| async move { controller.persistent_memory(&core).await.err() });
    let error = error.expect("a refusal");
    (rig, error.kind(), error.to_string())
}

#[test]
fn persistent_memory_that_cannot_be_is_refused_in_words() {
    let refusal = |change: &dyn Fn(&mut State)| {
        let (_, kind, text) = persistent(change);
        (kind, text)
    };
    let cap = |cap: Pmrcap| {
        move |state: &mut State| {
            state.registers.insert(regs::PMRCAP, cap.0);
        }
    };
    let plain = Pmrcap::default().with_barriers(1);
    let (kind, text) = refusal(&|state| state.cap = state.cap.with_pmrs(false));
    assert!(kind == ErrorKind::NotSupported && text.contains("has none"), "{text}");
    for bir in [0, 1, 6, 7] {
        let (_, text) = refusal(&cap(plain.with_bir(bir)));
        assert!(text.contains("a BAR that cannot hold it"), "{text}");
    }
    let (_, text) = refusal(&cap(plain.with_bir(3)));
    assert!(text.contains("no BAR 3"), "{text}");
    let (rig, ..) = persistent(|_| {});
    assert!(!rig.device.state().registers.contains_key(&regs::PMRCTL), "it was not enabled");
}

/// BAR 4 is there in every software function.
#[test]
fn persistent_memory_that_is_not_well_is_refused_in_words() {
    let with = |status: Pmrsts| {
        persistent(move |state| {
            let cap = Pmrcap::default().with_bir(4).with_timeout(4).with_barriers(2);
            state.registers.insert(regs::PMRCAP, cap.0);
            state.registers.insert(regs::PMRSTS, status.0);
        })
    };
    let (rig, kind, text) = with(Pmrsts::default().with_nrdy(true));
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(text.contains("not ready (PMRSTS 0x100)"), "{text}");
    assert!((2000..2100).contains(&rig.now_ms()), "PMRTO, and no longer: {}", rig.now_ms());
    assert_eq!(rig.device.state().registers[&regs::PMRCTL], PMRCTL_EN);
    for (hsts, expected, word) in [
        (1, ErrorKind::Media, "not restored"),
        (2, ErrorKind::ReadOnly, "read-only"),
        (3, ErrorKind::Media, "unreliable"),
        (7, ErrorKind::Media, "unreliable"),
    ] {
        let (_, kind, text) = with(Pmrsts::default().with_hsts(hsts));
        assert_eq!(kind, expected);
        assert!(text.contains(word), "{text}");
    }
}
