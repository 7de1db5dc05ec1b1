//! Model checks of both ends together: `RUSTFLAGS="--cfg loom" cargo test -p oxblock-nvme`.
//!
//! Loom honours fences only if they are SeqCst; the shadow doorbells need no other.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use loom::sync::Arc as LoomArc;
use loom::sync::atomic::AtomicU32;
use loom::thread;
use std::sync::Arc;

use super::test_words::TestWords;
use super::*;
use crate::command::Command;
use crate::completion::Completion;
use crate::status::Status;

fn model(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

fn spin_until(doorbell: &AtomicU32, wanted: impl Fn(u32) -> bool) -> u32 {
    loop {
        let value = doorbell.load(Acquire);
        if wanted(value) {
            return value;
        }
        thread::yield_now();
    }
}

/// Host pushes, rings the tail; controller fetches, returns its head. Two entries, so that every
/// command overwrites the one before the last as soon as the head comes back.
fn submission(commands: u32, entries: u32, ring: std::sync::atomic::Ordering) {
    let words = Arc::new(TestWords::with(entries as usize * 8, 0));
    let tail = LoomArc::new(AtomicU32::new(0));
    let head = LoomArc::new(AtomicU32::new(0));
    let mut source = SubmissionSource::new(words.clone(), entries).unwrap();
    let controller = {
        let (tail, head) = (tail.clone(), head.clone());
        thread::spawn(move || {
            let mut seen = 0;
            while seen < commands {
                let at = source.tail();
                let rung = spin_until(&tail, |v| v != u32::from(at));
                source.set_tail(rung).unwrap();
                while let Some(command) = source.fetch() {
                    seen += 1;
                    assert_eq!(command, Command([u64::from(seen); 8]), "torn or stale");
                }
                head.store(u32::from(source.head()), Release);
            }
        })
    };
    let mut host = SubmissionQueue::new(words, entries).unwrap();
    for n in 1..=commands {
        while !host.push(&Command([u64::from(n); 8])) {
            host.fetched(head.load(Acquire) as u16).unwrap();
            thread::yield_now();
        }
        tail.store(u32::from(host.pending().unwrap().1), ring);
        host.rang();
    }
    controller.join().unwrap();
}

#[test]
fn a_controller_fetches_whole_commands_in_order() {
    model(2, || submission(3, 2, Release));
    model(2, || submission(3, 3, Release));
}

/// The canary: a doorbell that does not order the entries before itself must be caught.
#[test]
#[should_panic(expected = "torn or stale")]
fn a_doorbell_without_its_barrier_is_caught() {
    model(2, || submission(1, 2, Relaxed));
}

/// Controller posts; host pops by phase tag and rings its head.
#[test]
fn a_host_pops_whole_completions_in_order() {
    for entries in [2, 3] {
        model(2, move || {
            let count = 3;
            let words = Arc::new(TestWords::with(entries as usize * 2, 0));
            let head = LoomArc::new(AtomicU32::new(0));
            let mut sink = CompletionSink::new(words.clone(), entries).unwrap();
            let controller = {
                let head = head.clone();
                thread::spawn(move || {
                    for n in 1..=count {
                        let cid = n as u16;
                        while !sink.post(Completion::new(n, 0, 0, cid, Status::SUCCESS)) {
                            sink.set_head(head.load(Acquire)).unwrap();
                            thread::yield_now();
                        }
                    }
                })
            };
            let mut host = CompletionQueue::new(words, entries).unwrap();
            for n in 1..=count {
                let got = loop {
                    if let Some(got) = host.pop() {
                        break got;
                    }
                    thread::yield_now();
                };
                assert_eq!((got.dw0(), u64::from(got.cid())), (n as u32, n), "torn or stale");
                head.store(u32::from(host.pending().unwrap().1), Release);
                host.rang();
            }
            assert_eq!(host.pop(), None);
            controller.join().unwrap();
        });
    }
}

/// The canary: an entry whose phase is published before its result must be caught.
#[test]
#[should_panic(expected = "torn or stale")]
fn a_phase_before_its_entry_is_caught() {
    model(2, || {
        let words = Arc::new(TestWords::with(4, 0));
        let controller = {
            let words = words.clone();
            thread::spawn(move || {
                let entry = Completion::new(7, 0, 0, 7, Status::SUCCESS);
                words.store64(1, entry.0[1] | crate::completion::PHASE, Relaxed);
                words.store64(0, entry.0[0], Relaxed);
            })
        };
        let mut host = CompletionQueue::new(words, 2).unwrap();
        if let Some(got) = host.pop() {
            assert_eq!(got.dw0(), 7, "torn or stale");
        }
        controller.join().unwrap();
    });
}

/// A controller that falls asleep on an armed EventIdx has either seen the last value, or was rung
/// with a later one. `ring` is the host's side: old, new; true to write the register.
fn wake_up(ring: fn(&Arc<TestWords>, &Arc<TestWords>, u16, u16) -> bool) {
    model(3, move || {
        let [shadow, event] = [(); 2].map(|()| Arc::new(TestWords::with(0, 2)));
        // As a controller leaves it while it polls: behind, in a queue of eight.
        event.store32(1, 7, Relaxed);
        let register = LoomArc::new(AtomicU32::new(0));
        let source = ShadowSource::new(shadow.clone(), event.clone(), 1).unwrap();
        let controller = thread::spawn(move || {
            let mut seen = source.value() as u16;
            loop {
                let again = source.arm(seen) as u16;
                if again == seen {
                    return seen;
                }
                seen = again;
            }
        });
        for (old, new) in [(0, 1), (1, 3)] {
            if ring(&shadow, &event, old, new) {
                register.store(u32::from(new), Relaxed);
            }
        }
        let asleep_at = u32::from(controller.join().unwrap());
        let rung = register.load(Relaxed);
        assert!(asleep_at == 3 || rung > asleep_at, "asleep at {asleep_at}, rung {rung}");
    });
}

#[test]
fn shadow_doorbells_lose_no_wake_up() {
    wake_up(|shadow, event, old, new| {
        ShadowDoorbell::new(shadow.clone(), event.clone(), 1).unwrap().ring(old, new)
    });
}

/// The canary: the same without the full barrier loses a wake-up.
#[test]
#[should_panic(expected = "asleep at")]
fn shadow_doorbells_without_the_barrier_are_caught() {
    wake_up(|shadow, event, old, new| {
        shadow.store32(1, u32::from(new), Release);
        need_event(event.load32(1, Relaxed) as u16, new, old)
    });
}
