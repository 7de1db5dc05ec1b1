//! fio's bins of latencies, for its histogram logs and for `json+`.
//!
//! Up to 127 ns each has a bin of its own; above, each power of two has 64 bins of equal width. An
//! HdrHistogram of three figures is finer everywhere, and its bounds are among its own, so that
//! its counts fall into these bins without loss.

use crate::stats::Latency;

/// How many there are.
pub const BINS: usize = 29 * 64;
/// Bits of a latency that tell bins of one power of two apart.
const BITS: u32 = 6;

/// The bin of `ns`; the last takes all that are longer.
pub fn of(ns: u64) -> usize {
    let magnitude = u64::BITS - ns.leading_zeros();
    if magnitude <= BITS + 1 {
        return ns as usize;
    }
    let shift = magnitude - BITS - 1;
    let base = ((shift + 1) << BITS) as usize;
    let within = (ns >> shift) as usize & ((1 << BITS) - 1);
    (base + within).min(BINS - 1)
}

/// The latency that a bin stands for, ns: its middle.
pub fn value(bin: usize) -> u64 {
    if bin < 2 << BITS {
        return bin as u64;
    }
    let shift = (bin >> BITS) - 1;
    let within = (bin & ((1 << BITS) - 1)) as u64;
    (1 << (shift + BITS as usize)) + (within << shift) + (1 << (shift - 1))
}

/// How many I/Os each bin that has any has, in order.
pub fn counts(latency: &Latency) -> Vec<(usize, u64)> {
    let mut counts: Vec<(usize, u64)> = Vec::new();
    for step in latency.histogram().iter_recorded() {
        let bin = of(step.value_iterated_to());
        match counts.last_mut() {
            Some((last, count)) if *last == bin => *count += step.count_since_last_iteration(),
            _ => counts.push((bin, step.count_since_last_iteration())),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_fios() {
        // Bins of fio 3.33's own `json+`, of latencies that it logged beside them.
        for (ns, middle) in [(127, 127), (128, 129), (261, 262), (1_208, 1_208), (9_214, 9_152)] {
            assert_eq!(value(of(ns)), middle, "{ns}");
        }
        assert_eq!((of(0), of(1), of(u64::MAX)), (0, 1, BINS - 1));
        for bin in 0..BINS {
            assert_eq!(of(value(bin)), bin);
        }
    }

    #[test]
    fn counts_are_those_of_the_latencies_themselves() {
        let mut latency = Latency::new();
        let mut apart = vec![0; BINS];
        let mut ns = 1.0f64;
        while ns < 3e12 {
            latency.record(ns as u64);
            apart[of(ns as u64)] += 1;
            ns *= 1.0007;
        }
        let mut together = vec![0; BINS];
        counts(&latency).into_iter().for_each(|(bin, count)| together[bin] += count);
        assert_eq!(together, apart);
    }
}
