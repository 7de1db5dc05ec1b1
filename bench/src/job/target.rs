//! The search for the deepest queue that keeps to a latency.
//!
//! Each depth is tried for a window. One that keeps to the target is doubled, until one does not;
//! then the span between the two is halved until nothing is left of it. What counts is then
//! measured anew at the depth that was found, for one more window; or, where the job goes on, it
//! goes down a step after each window that misses, and up one after each that does not.

use crate::options::LatencyTarget;

#[derive(Debug)]
pub(super) struct Search {
    target_ns: u64,
    window_ns: u64,
    /// The share of I/Os that must keep to the target.
    share: f64,
    goes_on: bool,
    /// What is tried now, what is known to be good, and what may be better.
    depth: u32,
    good: u32,
    high: u32,
    deepest: u32,
    missed: bool,
    found: bool,
    /// I/Os submitted before are of another depth.
    from_ns: u64,
    ios: u64,
    late: u64,
}

/// What a look at the window came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    /// The depth is found: what counts begins.
    Found,
    /// It was measured.
    Over,
    /// Not even one I/O at a time keeps to the target.
    Missed {
        target_ns: u64,
    },
}

impl Search {
    pub fn new(target: &LatencyTarget, deepest: u32) -> Search {
        Search {
            target_ns: target.target_ns,
            window_ns: target.window_ns,
            share: target.percentile / 100.0,
            goes_on: target.run,
            depth: 1,
            good: 0,
            high: deepest,
            deepest,
            missed: false,
            found: false,
            from_ns: 0,
            ios: 0,
            late: 0,
        }
    }

    pub fn depth(&self) -> u32 {
        self.depth
    }

    #[inline]
    pub fn completed(&mut self, submitted_ns: u64, latency_ns: u64) {
        if submitted_ns >= self.from_ns {
            self.ios += 1;
            self.late += u64::from(latency_ns > self.target_ns);
        }
    }

    /// Judges the window if it is over, or cannot be saved.
    #[inline]
    pub fn look(&mut self, now: u64) -> Verdict {
        if self.from_ns == 0 {
            self.from_ns = now;
        }
        let is_lost = self.share >= 1.0 && self.late > 0;
        if !is_lost && (now - self.from_ns < self.window_ns || self.ios == 0) {
            return Verdict::GoOn;
        }
        let is_good = (self.ios - self.late) as f64 >= self.share * self.ios as f64;
        (self.from_ns, self.ios, self.late) = (now, 0, 0);
        match (is_good, self.found) {
            (true, true) if self.goes_on => {
                self.depth = (self.depth + 1).min(self.deepest);
                Verdict::GoOn
            }
            (true, true) => Verdict::Over,
            (true, false) => self.go_up(),
            (false, _) => self.go_down(),
        }
    }

    fn go_up(&mut self) -> Verdict {
        self.good = self.depth;
        if self.good >= self.high {
            self.found = true;
            return Verdict::Found;
        }
        self.depth = match self.missed {
            true => self.good + (self.high - self.good).div_ceil(2),
            false => self.depth.saturating_mul(2).min(self.high),
        };
        Verdict::GoOn
    }

    fn go_down(&mut self) -> Verdict {
        self.missed = true;
        if self.depth == 1 {
            return match self.goes_on {
                true => Verdict::GoOn,
                false => Verdict::Missed { target_ns: self.target_ns },
            };
        }
        self.high = self.depth - 1;
        self.good = self.good.min(self.high);
        let was_found = self.found;
        self.depth = match was_found {
            true => self.high,
            false => self.good + (self.high - self.good).div_ceil(2),
        };
        // What was good before is not tried again, but measured.
        if self.depth == self.good || was_found {
            self.found = true;
            return if was_found && self.goes_on { Verdict::GoOn } else { Verdict::Found };
        }
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search on a device whose latency is `per_depth_ns` for each I/O in flight. The depths
    /// that were tried, and the last verdict.
    fn search(per_depth_ns: u64, percentile: f64, deepest: u32) -> (Vec<u32>, Verdict) {
        let target =
            LatencyTarget { target_ns: 10_000, window_ns: 1_000_000, percentile, run: false };
        let mut search = Search::new(&target, deepest);
        let (mut tried, mut now) = (Vec::new(), 1);
        assert_eq!(search.look(now), Verdict::GoOn);
        loop {
            tried.push(search.depth());
            for _ in 0..100 {
                search.completed(now, per_depth_ns * u64::from(search.depth()));
            }
            now += 1_000_000;
            match search.look(now) {
                Verdict::GoOn | Verdict::Found => assert!(tried.len() < 40, "{tried:?}"),
                verdict => return (tried, verdict),
            }
        }
    }

    #[test]
    fn the_deepest_queue_that_keeps_to_the_target_is_found() {
        for deepest in [1, 2, 3, 7, 8, 64, 1000] {
            for per_depth_ns in [1, 10, 150, 200, 1_000, 1_430, 3_000, 6_000, 10_000] {
                let right = (10_000 / per_depth_ns as u32).min(deepest);
                for percentile in [100.0, 90.0] {
                    let (tried, verdict) = search(per_depth_ns, percentile, deepest);
                    assert_eq!(verdict, Verdict::Over);
                    assert_eq!(tried.last(), Some(&right), "{per_depth_ns} {deepest} {tried:?}");
                }
            }
        }
        let missed = Verdict::Missed { target_ns: 10_000 };
        assert_eq!(search(20_000, 99.0, 64), (vec![1], missed));
    }

    #[test]
    fn a_share_of_late_ones_is_forgiven() {
        let target =
            LatencyTarget { target_ns: 100, window_ns: 1000, percentile: 90.0, run: false };
        let mut search = Search::new(&target, 1);
        assert_eq!(search.look(1), Verdict::GoOn);
        let mut window = |late: u64, now: u64| {
            (0..100u64).for_each(|n| search.completed(now, if n < late { 101 } else { 100 }));
            search.look(now + 1000)
        };
        assert_eq!(window(10, 1), Verdict::Found);
        assert_eq!(window(11, 1001), Verdict::Missed { target_ns: 100 });
    }

    #[test]
    fn a_job_that_goes_on_follows_its_device() {
        let target =
            LatencyTarget { target_ns: 1000, window_ns: 100, percentile: 100.0, run: true };
        let mut search = Search::new(&target, 32);
        let mut now = 1;
        assert_eq!(search.look(now), Verdict::GoOn);
        let mut run = |per_depth_ns: u64| {
            for _ in 0..200 {
                search.completed(now, per_depth_ns * u64::from(search.depth()));
                now += 100;
                search.look(now);
            }
            search.depth()
        };
        assert!((9..=11).contains(&run(100)));
        assert!((4..=6).contains(&run(200)));
        assert_eq!(run(2000), 1);
        assert_eq!(run(1), 32);
    }
}
