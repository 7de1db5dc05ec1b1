//! When queue pairs wait for interrupts, and which vectors they have.

use std::sync::Arc;

use oxblock_engine::Sleep;
use oxblock_pci::soft::SoftFunction;
use oxblock_pci::{EventFd, Function};

use super::super::InterruptMode;
use super::super::interrupts::{Vectors, Waiting};
use super::device::Script;

const HOME: usize = 3;
const US: u64 = 1000;

fn vectors(mode: InterruptMode, count: u32, io_queues: u16) -> (Arc<SoftFunction>, Vectors) {
    let (_, function) = Script::with_vectors(0x4000, count);
    let shared: Arc<dyn Function> = function.clone();
    let mut vectors = Vectors::new(&shared, HOME, mode);
    vectors.enable_io(io_queues);
    (function, vectors)
}

/// A queue pair whose commands end after `latency_ns`, `count` of them: how many waits it polled
/// through, by its reactor's rules.
fn run(waiting: &mut Waiting, now_ns: &mut u64, latency_ns: u64, count: u32) -> u32 {
    let mut polled = 0;
    for _ in 0..count {
        let ends_ns = *now_ns + latency_ns;
        let mut slept = false;
        while *now_ns < ends_ns {
            if waiting.is_worth_polling(*now_ns) {
                *now_ns += 300;
            } else {
                slept = matches!(waiting.sleep(*now_ns, || false), Sleep::FdUntil(..));
                *now_ns = ends_ns;
            }
        }
        polled += u32::from(!slept);
        if waiting.wants_to_know() {
            waiting.reaped(*now_ns);
        }
    }
    polled
}

/// A device of 80 us had its core poll for all of them at depth 1.
#[test]
fn slow_waits_are_slept_through_and_short_ones_polled() {
    let (_, vectors) = vectors(InterruptMode::Adaptive, 3, 2);
    let (mut slow, mut fast) = (vectors.waiting(0), vectors.waiting(0));
    let (mut now_ns, mut other_ns) = (0, 0);
    let polled = run(&mut slow, &mut now_ns, 80 * US, 1000);
    assert!(polled < 20, "{polled} of 1000");
    // Each for itself.
    assert_eq!(run(&mut fast, &mut other_ns, 5 * US, 1000), 1000);
    // One that has become fast is found out, and one that becomes slow.
    let begun_ns = now_ns;
    run(&mut slow, &mut now_ns, 5 * US, 2000);
    assert_eq!(run(&mut slow, &mut now_ns, 5 * US, 1000), 1000);
    assert!(now_ns > begun_ns);
    let polled = run(&mut fast, &mut other_ns, 80 * US, 1000);
    assert!(polled < 20, "{polled} of 1000");
}

#[test]
fn the_extremes_are_what_they_say() {
    let mut now_ns = 0;
    let (_, always) = vectors(InterruptMode::Interrupt, 3, 2);
    assert_eq!(run(&mut always.waiting(0), &mut now_ns, 5 * US, 100), 0);
    let (_, never) = vectors(InterruptMode::Poll, 3, 2);
    let mut waiting = never.waiting(0);
    assert_eq!(waiting.vector(), None);
    assert!(never.admin_event().is_none() && never.notice().is_none());
    assert!(waiting.is_worth_polling(0) && waiting.is_worth_polling(1 << 40));
    assert!(matches!(waiting.sleep(0, || false), Sleep::Never) && !waiting.wants_to_know());
}

/// While it polls, a queue pair is told nothing; what came meanwhile is looked for before it sleeps.
#[test]
fn a_vector_is_masked_while_it_is_polled() {
    let (function, vectors) = vectors(InterruptMode::Adaptive, 2, 1);
    let mut signals = function.soft_interrupts().signals();
    let mut waiting = vectors.waiting(0);
    let number = waiting.vector().expect("a vector");
    let event = match waiting.sleep(0, || false) {
        Sleep::FdUntil(fd, _) => EventFd::from(fd.try_clone_to_owned().expect("a descriptor")),
        other => panic!("{other:?}"),
    };
    signals.signal(number);
    assert_eq!(event.take(), 1);
    // A reap after a sleep does not make it load; many without a sleep do.
    waiting.reaped(1);
    signals.signal(number);
    assert_eq!(event.take(), 1);
    let reaps = (0..1000).take_while(|_| {
        let wants = waiting.wants_to_know();
        waiting.reaped(1);
        wants
    });
    assert!((2..1000).contains(&reaps.count()));
    signals.signal(number);
    assert_eq!(event.take(), 0);
    let mut looked = false;
    let sleep = waiting.sleep(2, || {
        looked = true;
        true
    });
    assert!(matches!(sleep, Sleep::Never) && looked);
    signals.signal(number);
    assert_eq!(event.take(), 1);
}

#[test]
fn queue_pairs_without_a_vector_share_the_home_cores_or_are_polled() {
    let (_, all) = vectors(InterruptMode::Adaptive, 3, 4);
    assert!(all.notice().is_some_and(|text| text.contains("2 of 4")), "{:?}", all.notice());
    let (first, second) = (all.waiting(0), all.waiting(HOME));
    assert_eq!((first.vector(), second.vector()), (Some(1), Some(2)));
    assert_eq!((all.waiting(HOME).vector(), all.waiting(1).vector()), (None, None));
    assert!(matches!(all.waiting(1).sleep(0, || false), Sleep::Never));
    drop(first);
    assert_eq!(all.waiting(1).vector(), Some(1), "what was given back");
    let (_, one) = vectors(InterruptMode::Interrupt, 1, 4);
    assert_eq!((one.waiting(HOME).vector(), one.waiting(1).vector()), (Some(0), None));
    let (_, none) = vectors(InterruptMode::Adaptive, 0, 4);
    assert!(none.notice().is_some_and(|text| text.contains("polled")), "{:?}", none.notice());
    assert_eq!(none.waiting(HOME).vector(), None);
}
