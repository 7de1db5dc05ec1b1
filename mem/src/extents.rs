use std::collections::BTreeMap;

/// The free ranges of an arena, by offset; neighbours are always merged.
#[derive(Debug)]
pub(crate) struct Extents {
    free: BTreeMap<usize, usize>,
}

impl Extents {
    /// One free range of `len` bytes from offset 0.
    pub(crate) fn new(len: usize) -> Extents {
        Extents { free: BTreeMap::from([(0, len)]) }
    }

    /// Takes the first free `len` bytes whose offset is a multiple of `align`, a power of two.
    pub(crate) fn take(&mut self, len: usize, align: usize) -> Option<usize> {
        let (start, room, at) = self.free.iter().find_map(|(&start, &room)| {
            let at = start.checked_next_multiple_of(align)?;
            let end = at.checked_add(len)?;
            (end <= start + room).then_some((start, room, at))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if start + room > at + len {
            self.free.insert(at + len, start + room - at - len);
        }
        Some(at)
    }

    /// Gives back a range that `take` returned.
    pub(crate) fn give(&mut self, mut at: usize, mut len: usize) {
        if let Some((&before, &room)) = self.free.range(..at).next_back() {
            debug_assert!(before + room <= at, "range given back twice");
            if before + room == at {
                self.free.remove(&before);
                (at, len) = (before, room + len);
            }
        }
        if let Some(room) = self.free.remove(&(at + len)) {
            len += room;
        }
        self.free.insert(at, len);
    }

    /// Free bytes in all.
    pub(crate) fn available(&self) -> usize {
        self.free.values().sum()
    }

    /// The longest free range.
    pub(crate) fn longest(&self) -> usize {
        self.free.values().copied().max().unwrap_or(0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_are_aligned_disjoint_and_merge_again(
            steps in vec((any::<bool>(), 1..300usize, 0..8u32, any::<usize>()), 0..200),
        ) {
            const SIZE: usize = 4096;
            let mut extents = Extents::new(SIZE);
            let mut used = [false; SIZE];
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (take, len, align, pick) in steps {
                if take {
                    let align = 1 << align;
                    let fits = |at: &usize| !used[*at..*at + len].contains(&true);
                    let first = (0..=SIZE - len).step_by(align).find(fits);
                    prop_assert_eq!(extents.take(len, align), first);
                    if let Some(at) = first {
                        used[at..at + len].fill(true);
                        taken.push((at, len));
                    }
                } else if !taken.is_empty() {
                    let (at, len) = taken.swap_remove(pick % taken.len());
                    used[at..at + len].fill(false);
                    extents.give(at, len);
                }
                prop_assert_eq!(extents.available(), used.iter().filter(|&&used| !used).count());
                let longest = used.split(|&used| used).map(<[bool]>::len).max();
                prop_assert_eq!(Some(extents.longest()), longest);
            }
        }
    }
}
