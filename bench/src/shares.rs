//! What share of I/Os fell into which step, in fio's steps: depths, batches, latencies.

use crate::stats::{Depths, Latency};

/// Steps by their names, each with its I/Os in a hundred.
pub type Shares = Vec<(String, f64)>;

/// How deep the queue was.
pub fn levels(depths: &Depths) -> Shares {
    let last = usize::MAX;
    let steps = [(0, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, last)];
    named(depths, &["1", "2", "4", "8", "16", "32", ">=64"], &steps)
}

/// How large batches were, which are counted less one. A batch falls under the next step that it
/// does not exceed: 5 to 8 under `8`.
pub fn batches(depths: &Depths) -> Shares {
    let last = usize::MAX;
    let steps = [(0, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, last)];
    let mut shares = vec![("0".to_owned(), 0.0)];
    shares.extend(named(depths, &["4", "8", "16", "32", "64", ">=64"], &steps));
    shares
}

fn named(depths: &Depths, names: &[&str], steps: &[(usize, usize)]) -> Shares {
    let total = depths.total().max(1) as f64;
    let share =
        |&(low, high): &(usize, usize)| 100.0 * depths.count_between(low, high) as f64 / total;
    names.iter().map(|name| (*name).to_owned()).zip(steps.iter().map(share)).collect()
}

const STEPS: [u64; 11] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];

/// How long I/Os took, in steps of ns, us and ms: below each step and not below the one before.
pub fn spread(all: &Latency) -> [Shares; 3] {
    let named = |steps: &[u64]| steps.iter().map(|step| (step.to_string(), 0.0)).collect();
    let mut shares: [Shares; 3] = [named(&STEPS[..10]), named(&STEPS[..10]), named(&STEPS)];
    shares[2].push((">=2000".to_owned(), 0.0));
    let share = 100.0 / all.count().max(1) as f64;
    for counted in all.histogram().iter_recorded() {
        // A bucket of the histogram that lies across the end of a step counts above it, whole.
        let ns = counted.value_iterated_to();
        let (unit, value) = match ns {
            0..1_000 => (0, ns),
            1_000..1_000_000 => (1, ns / 1_000),
            _ => (2, ns / 1_000_000),
        };
        let step = STEPS.iter().position(|&step| value < step).unwrap_or(STEPS.len());
        shares[unit][step].1 += share * counted.count_since_last_iteration() as f64;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_io_falls_into_one_step() {
        let mut latency = Latency::new();
        let times =
            [1, 2, 999, 1_000, 1_999, 2_000, 999_000, 1_000_000, 1_990_000_000, 2_010_000_000];
        times.into_iter().for_each(|ns| latency.record(ns));
        let shares = spread(&latency);
        let sum: f64 = shares.iter().flatten().map(|(_, share)| share).sum();
        assert!((sum - 100.0).abs() < 1e-9, "{shares:?}");
        let step = |unit: usize, name: &str| {
            shares[unit].iter().find(|(step, _)| step == name).map(|s| s.1)
        };
        assert_eq!(
            (step(0, "2"), step(0, "4"), step(0, "1000")),
            (Some(10.0), Some(10.0), Some(10.0))
        );
        assert_eq!(
            (step(1, "2"), step(1, "4"), step(1, "1000")),
            (Some(20.0), Some(10.0), Some(10.0))
        );
        assert_eq!(
            (step(2, "2"), step(2, "2000"), step(2, ">=2000")),
            (Some(10.0), Some(10.0), Some(10.0))
        );
    }

    #[test]
    fn batches_and_depths_are_in_fios_steps() {
        let mut depths = Depths::default();
        for depth in [1, 2, 4, 64] {
            depths.record(depth, 1);
        }
        let names: Vec<_> =
            levels(&depths).into_iter().filter(|s| s.1 > 0.0).map(|s| s.0).collect();
        assert_eq!(names, ["1", "2", "4", ">=64"]);
        let mut sizes = Depths::default();
        for size in [4, 5, 8, 64, 65] {
            sizes.record(size - 1, 1);
        }
        let names: Vec<_> = batches(&sizes).into_iter().filter(|s| s.1 > 0.0).collect();
        let expected = [("4", 20.0), ("8", 40.0), ("64", 20.0), (">=64", 20.0)];
        assert_eq!(names, expected.map(|(name, share)| (name.to_owned(), share)));
    }
}
