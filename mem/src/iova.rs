use std::ops::RangeInclusive;

/// Addresses below are never used: 0 means "none" in many a command.
const LOWEST: u64 = 1 << 20;

/// The parts that both lists allow.
pub(crate) fn intersect(
    a: &[RangeInclusive<u64>],
    b: &[RangeInclusive<u64>],
) -> Vec<RangeInclusive<u64>> {
    let mut both = Vec::new();
    for x in a {
        for y in b {
            let (start, end) = (*x.start().max(y.start()), *x.end().min(y.end()));
            if start <= end {
                both.push(start..=end);
            }
        }
    }
    both.sort_by_key(|window| *window.start());
    both
}

/// True if `len` bytes at `iova` lie in one of the windows.
pub(crate) fn fits(windows: &[RangeInclusive<u64>], iova: u64, len: u64) -> bool {
    let Some(last) = iova.checked_add(len - 1) else {
        return false;
    };
    windows.iter().any(|window| window.contains(&iova) && window.contains(&last))
}

/// The lowest multiple of `align` (a power of two) from which `len` bytes lie in one window and
/// overlap none of `taken`, which is a list of (start, length).
pub(crate) fn allocate(
    windows: &[RangeInclusive<u64>],
    taken: &[(u64, u64)],
    len: u64,
    align: u64,
) -> Option<u64> {
    let mut taken: Vec<_> = taken.to_vec();
    taken.sort_unstable();
    let mut windows: Vec<_> = windows.to_vec();
    windows.sort_by_key(|window| *window.start());
    windows.iter().find_map(|window| {
        let mut at = (*window.start()).max(LOWEST).checked_next_multiple_of(align)?;
        for &(start, room) in &taken {
            let end = start + (room - 1);
            if at <= end && start <= at.checked_add(len - 1)? {
                at = end.checked_add(1)?.checked_next_multiple_of(align)?;
            }
        }
        fits(std::slice::from_ref(window), at, len).then_some(at)
    })
}

/// The windows for people: `0x100000..=0xfedfffff, ...`.
pub(crate) fn words(windows: &[RangeInclusive<u64>]) -> String {
    let words: Vec<_> =
        windows.iter().map(|w| format!("{:#x}..={:#x}", w.start(), w.end())).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_the_address_space_do_no_harm() {
        let everything = [0..=u64::MAX];
        assert_eq!(allocate(&everything, &[], 4096, 4096), Some(LOWEST));
        assert_eq!(allocate(&everything, &[], u64::MAX - LOWEST, 4096), Some(LOWEST));
        assert_eq!(allocate(&everything, &[(LOWEST, u64::MAX - LOWEST)], 4096, 4096), None);
        let top = u64::MAX - 4095;
        assert_eq!(allocate(&[top..=u64::MAX], &[], 4096, 4096), Some(top));
        assert_eq!(allocate(&[top..=u64::MAX], &[], 4096, 8192), None);
        assert_eq!(allocate(&[top..=u64::MAX], &[(top, 4096)], 4096, 4096), None);
        assert_eq!(allocate(&[0..=LOWEST - 1], &[], 1, 1), None);
        assert_eq!(allocate(&[], &[], 1, 1), None);
        assert!(fits(&everything, u64::MAX, 1) && !fits(&everything, u64::MAX, 2));
    }

    #[test]
    fn a_window_that_overflows_does_not_hide_the_next() {
        let windows = [u64::MAX - 10..=u64::MAX, LOWEST..=LOWEST + 4095];
        assert_eq!(allocate(&windows, &[], 4096, 4096), Some(LOWEST));
        let taken = [(LOWEST, 4096)];
        assert_eq!(allocate(&windows, &taken, 4096, 4096), None);
        let windows = [LOWEST..=LOWEST + 4095, LOWEST + 8192..=LOWEST + 3 * 4096 - 1];
        assert_eq!(allocate(&windows, &taken, 4096, 4096), Some(LOWEST + 8192));
    }

    fn window() -> impl Strategy<Value = RangeInclusive<u64>> {
        (0..96u64, 0..64u64).prop_map(|(start, len)| LOWEST + start..=LOWEST + start + len)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a search of every address.
        #[test]
        fn the_lowest_address_that_fits_all_devices(
            devices in vec(vec(window(), 1..3), 1..4),
            taken in vec((0..128u64, 1..20u64), 0..5),
            len in 1..40u64,
            align in 0..6u32,
        ) {
            let align = 1 << align;
            let taken: Vec<_> = taken.iter().map(|(at, len)| (LOWEST + at, *len)).collect();
            let windows =
                devices.iter().fold(vec![0..=u64::MAX], |all, windows| intersect(&all, windows));
            let free = |at: &u64| {
                devices.iter().all(|windows| fits(windows, *at, len))
                    && taken.iter().all(|(start, room)| at + len <= *start || start + room <= *at)
            };
            let expected = (LOWEST..LOWEST + 256).filter(|at| at % align == 0).find(free);
            prop_assert_eq!(allocate(&windows, &taken, len, align), expected);
        }
    }
}
