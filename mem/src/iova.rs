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
