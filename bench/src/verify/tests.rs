//! Every way in which a block can be bad, and what each method makes of it.

use std::sync::Arc;

use super::block::{Recipe, Write};
use super::checker::Checker;
use super::finding::{Finding, Holding};
use super::log::Expected;
use super::method::Method;
use super::pattern::Pattern;
use crate::report::Doubts;

const STAMP: u64 = 99;
const LEN: usize = 4096;

fn recipe(method: Method) -> Recipe {
    let pattern = method.needs_pattern().then(|| Pattern::parse("0x1122%o").expect("a pattern"));
    Recipe { method, seed: 7, pattern: pattern.map(Arc::new), header_at: 0 }
}

/// The methods that find something wrong at all.
fn methods() -> impl Iterator<Item = Method> {
    Method::all().filter(|&method| method != Method::Null)
}

fn with_headers() -> impl Iterator<Item = Method> {
    Method::all().filter(|method| method.has_header())
}

fn made(recipe: &Recipe, offset: u64, stamp: u64, generation: u32) -> Vec<u8> {
    let mut block = vec![0; LEN];
    recipe.fill(Write { file: 0, offset, stamp, generation }, &mut block);
    block
}

/// What one block turns out to be; `None`: it is good.
fn finding(recipe: &Recipe, offset: u64, expected: Expected, block: &[u8]) -> Option<Finding> {
    let mut checker = Checker::new(recipe.clone(), Some(STAMP), 512);
    let good = checker.check(0, offset, expected, &mut block.to_vec());
    let mut report = checker.report();
    assert_eq!((report.checked, report.bad), (1, u64::from(!good)));
    assert_eq!(report.mismatches.len(), usize::from(!good));
    report.mismatches.pop().map(|mismatch| mismatch.finding)
}

#[test]
fn whole_blocks_pass() {
    for method in Method::all() {
        let recipe = recipe(method);
        let block = made(&recipe, 8192, STAMP, 3);
        for expected in [Expected::Any, Expected::Write(3)] {
            assert_eq!(finding(&recipe, 8192, expected, &block), None, "{}", method.word());
        }
        assert_eq!(finding(&recipe, 8192, Expected::Zeroes, &[0; LEN]), None);
    }
}

#[test]
fn a_flipped_bit_is_found_by_every_method_that_covers_its_byte() {
    for method in methods() {
        for header_at in [0, 1000] {
            let recipe = Recipe { header_at, ..recipe(method) };
            let block = made(&recipe, 8192, STAMP, 1);
            for at in [0, 5, 9, 17, 25, 33, 36, 37, 41, 103, 105, 110, 111, 112, 513, 1001, 4095] {
                let in_header = (0..112).contains(&(at - header_at.min(at)));
                if method == Method::Meta && (!in_header || at < header_at) {
                    continue;
                }
                let mut bad = block.clone();
                bad[at] ^= 0x10;
                let (first, expected) = (8192 + at as u64, block[at]);
                let found = expected ^ 0x10;
                let wanted = Finding::Damaged { first, expected, found, differing: 1 };
                let finding = finding(&recipe, 8192, Expected::Write(1), &bad);
                assert_eq!(finding, Some(wanted), "{} byte {at}", method.word());
            }
        }
    }
}

#[test]
fn lost_writes_are_named() {
    for method in with_headers() {
        let recipe = recipe(method);
        let find = |block: &[u8]| finding(&recipe, 0, Expected::Write(3), block);
        // By what was there before: an earlier write, an earlier run, nothing.
        let earlier = Finding::Overwritten { found: 2, wanted: 3 };
        assert_eq!(find(&made(&recipe, 0, STAMP, 2)), Some(earlier), "{}", method.word());
        assert_eq!(find(&made(&recipe, 0, STAMP - 1, 3)), Some(Finding::Stale));
        assert_eq!(find(&[0; LEN]), Some(Finding::Constant { byte: 0 }));
        let other = Recipe { seed: 8, ..recipe.clone() };
        let seed = Finding::OtherSeed { seed: 8, wanted: 7 };
        assert_eq!(find(&made(&other, 0, STAMP, 3)), Some(seed));
        let newer = Finding::Newer { found: 4, known: 3 };
        assert_eq!(find(&made(&recipe, 0, STAMP, 4)), Some(newer));
    }
    let pattern = recipe(Method::Pattern);
    let found = finding(&pattern, 0, Expected::Write(1), &[0xff; LEN]);
    assert_eq!(found, Some(Finding::Constant { byte: 0xff }));
}

#[test]
fn misdirected_writes_are_named() {
    for method in methods() {
        let recipe = recipe(method);
        let block = made(&recipe, 65_536, STAMP, 1);
        let found = finding(&recipe, 0, Expected::Write(1), &block);
        assert_eq!(found, Some(Finding::Misplaced { from: 65_536 }), "{}", method.word());
    }
    // And those that went to another file, where a header says so.
    for method in with_headers() {
        let recipe = recipe(method);
        let mut block = vec![0; LEN];
        let write = Write { file: 3, offset: 8192, stamp: STAMP, generation: 1 };
        recipe.fill(write, &mut block);
        let found = finding(&recipe, 8192, Expected::Write(1), &block);
        assert_eq!(found, Some(Finding::OtherFile { file: 3, from: 8192 }), "{}", method.word());
        // A job that only reads may have another list of files.
        assert_eq!(finding(&recipe, 8192, Expected::Any, &block), None);
    }
    // A pattern without %o is the same everywhere.
    let same = Pattern::parse("0x1122").expect("a pattern");
    let recipe = Recipe { pattern: Some(Arc::new(same)), ..recipe(Method::Pattern) };
    let block = made(&recipe, 65_536, STAMP, 1);
    assert_eq!(finding(&recipe, 0, Expected::Write(1), &block), None);
}

#[test]
fn torn_writes_are_named() {
    for method in with_headers().filter(|&method| method != Method::Meta) {
        for header_at in [0, 600] {
            let recipe = Recipe { header_at, ..recipe(method) };
            let (old, new) = (made(&recipe, 0, STAMP, 1), made(&recipe, 0, STAMP, 2));
            let torn = [&old[..1024], &new[1024..]].concat();
            let wanted = match recipe.pattern.is_some() {
                // The header tells writes apart, and what follows is the same in each.
                true => Finding::Overwritten { found: 1, wanted: 2 },
                false => Finding::Torn { first: 0, wrong: 2, of: 8, holding: Holding::Earlier },
            };
            let found = finding(&recipe, 0, Expected::Write(2), &torn);
            assert_eq!(found, Some(wanted), "{} at {header_at}", method.word());

            let torn = [&new[..2048], &[0; 2048]].concat();
            let wanted = Finding::Torn { first: 2048, wrong: 4, of: 8, holding: Holding::Zeroes };
            let found = finding(&recipe, 0, Expected::Write(2), &torn);
            assert_eq!(found, Some(wanted), "{} at {header_at}", method.word());
        }
    }
    let recipe = recipe(Method::Pattern);
    let torn = [&made(&recipe, 0, STAMP, 1)[..512], &[0xee; LEN - 512]].concat();
    let wanted = Finding::Torn { first: 512, wrong: 7, of: 8, holding: Holding::Other };
    assert_eq!(finding(&recipe, 0, Expected::Write(1), &torn), Some(wanted));
}

#[test]
fn other_jobs_blocks_are_named() {
    let own = recipe(Method::Crc32c);
    let sha = made(&recipe(Method::Sha256), 0, STAMP, 1);
    let method = Finding::OtherMethod { found: "sha256", wanted: "crc32c" };
    assert_eq!(finding(&own, 0, Expected::Write(1), &sha), Some(method));
    let mut long = vec![0; 8192];
    own.fill(Write { file: 0, offset: 0, stamp: STAMP, generation: 1 }, &mut long);
    let length = Finding::OtherLength { length: 8192 };
    assert_eq!(finding(&own, 0, Expected::Write(1), &long[..LEN]), Some(length));
    let noise: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    assert_eq!(finding(&own, 0, Expected::Write(1), &noise), Some(Finding::Foreign));
    let untrimmed = finding(&own, 0, Expected::Zeroes, &made(&own, 0, STAMP, 1));
    assert_eq!(untrimmed, Some(Finding::Untrimmed { first: 0 }));
}

#[test]
fn the_stamp_of_an_earlier_run_is_the_one_of_most_blocks() {
    // The first block read was once taken for the measure of all: where its own write was lost,
    // every other block of the target was called stale.
    let recipe = recipe(Method::Crc32c);
    let mut checker = Checker::new(recipe.clone(), None, 512);
    assert!(checker.check(0, 0, Expected::Write(1), &mut made(&recipe, 0, 1, 1)));
    let mut damaged = made(&recipe, 4096, 2, 1);
    damaged[24] ^= 1;
    assert!(!checker.check(0, 4096, Expected::Write(1), &mut damaged));
    for at in 2..10 {
        let offset = at * 4096;
        assert!(checker.check(0, offset, Expected::Write(1), &mut made(&recipe, offset, 2, 1)));
    }
    let report = checker.report();
    assert_eq!((report.checked, report.bad), (10, 2));
    assert_eq!((report.mismatches[0].offset, &report.mismatches[0].finding), (0, &Finding::Stale));
    let damaged = &report.mismatches[1].finding;
    assert!(matches!(damaged, Finding::Damaged { first: 4120, differing: 1, .. }), "{damaged:?}");
}

/// What a block in doubt turns out to be.
fn doubts(recipe: &Recipe, expected: Expected, block: &[u8]) -> Option<Doubts> {
    let mut checker = Checker::new(recipe.clone(), Some(STAMP), 512);
    checker.check(0, 0, expected, &mut block.to_vec()).then(|| checker.report().doubts)
}

#[test]
fn a_block_in_flight_is_old_or_new_or_torn_between_blocks_of_the_target() {
    let in_flight = |known: u32| Expected::OneOf {
        known: (known > 0).then_some(known),
        least: known,
        most: known + 1,
        zeroes: false,
        anything: known == 0,
    };
    for method in with_headers() {
        for header_at in [0, 600] {
            let recipe = Recipe { header_at, ..recipe(method) };
            let [older, old, new] = [1, 2, 3].map(|count| made(&recipe, 0, STAMP, count));
            let find = |block: &[u8]| doubts(&recipe, in_flight(2), block);
            let is = |doubts| Some(doubts);
            assert_eq!(find(&old), is(Doubts { old: 1, ..Doubts::default() }));
            assert_eq!(find(&new), is(Doubts { new: 1, ..Doubts::default() }));
            // The write before the last that completed is not among what may be there.
            assert_eq!(find(&older), None, "{}", method.word());
            assert_eq!(find(&[0; LEN]), None);
            let has_payload = method != Method::Meta && recipe.pattern.is_none();
            if has_payload {
                let torn = [&new[..1024], &old[1024..]].concat();
                let found = find(&torn);
                assert_eq!(found, is(Doubts { torn: 1, ..Doubts::default() }));
                // Within a block of the target it must not tear.
                let torn = [&new[..1000], &old[1000..]].concat();
                assert_eq!(find(&torn), None, "{}", method.word());
                let torn = [&new[..1024], &older[1024..]].concat();
                assert_eq!(find(&torn), None, "{}", method.word());
            }
            // Never written before: whatever was there may still be.
            let first = made(&recipe, 0, STAMP, 1);
            let unknown = is(Doubts { unknown: 1, ..Doubts::default() });
            assert_eq!(doubts(&recipe, in_flight(0), &first).map(|doubts| doubts.new), Some(1));
            assert_eq!(doubts(&recipe, in_flight(0), &[0xab; LEN]), unknown);
        }
    }
}

#[test]
fn a_trim_in_flight_may_have_zeroed() {
    let recipe = recipe(Method::Crc32c);
    let trimming =
        Expected::OneOf { known: Some(1), least: 1, most: 2, zeroes: true, anything: false };
    let [old, other] = [1, 3].map(|count| made(&recipe, 0, STAMP, count));
    assert_eq!(doubts(&recipe, trimming, &old).map(|doubts| doubts.old), Some(1));
    assert_eq!(doubts(&recipe, trimming, &[0; LEN]).map(|doubts| doubts.new), Some(1));
    let half = [&[0; 2048][..], &old[2048..]].concat();
    assert_eq!(doubts(&recipe, trimming, &half).map(|doubts| doubts.torn), Some(1));
    assert_eq!(doubts(&recipe, trimming, &other), None);
}

#[test]
fn mismatches_beyond_the_described_are_counted() {
    let mut checker = Checker::new(recipe(Method::Crc32c), Some(STAMP), 512);
    for _ in 0..100 {
        checker.check(0, 0, Expected::Any, &mut [0; 512]);
    }
    let report = checker.report();
    assert_eq!((report.bad, report.mismatches.len()), (100, 16));
}
