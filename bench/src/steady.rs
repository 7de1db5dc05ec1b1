//! Are a job's rates steady? fio's `steadystate`, judged each second by the thread that watches
//! the job, over all of its clones together.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use crate::options::{Steady, Watch};

/// How often rates are read.
pub(crate) const EACH: Duration = Duration::from_secs(1);

/// Judges the rates of the last seconds.
#[derive(Debug)]
pub(crate) struct Judge {
    steadiness: Steadiness,
    seconds: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Steadiness {
    /// What was judged, and the limit.
    pub steady: Steady,
    /// Over how long.
    pub duration: Duration,
    /// The rates kept to it.
    pub attained: bool,
    /// What was compared to the limit, in its unit.
    pub criterion: f64,
    /// The largest distance of a rate from the mean; 0 where the slope is judged.
    pub max_deviation: f64,
    /// What the rates rise by in a second; 0 where the distances are judged.
    pub slope: f64,
    /// The last rates, I/Os a second.
    pub iops: VecDeque<f64>,
    /// The last rates, bytes a second.
    pub bandwidth: VecDeque<f64>,
}

impl Judge {
    /// The judge that a job asks for, if it does.
    pub fn new(watch: &Watch) -> Option<Judge> {
        let steady = watch.steady?;
        let steadiness = Steadiness {
            steady,
            duration: watch.steady_duration,
            attained: false,
            criterion: 0.0,
            max_deviation: 0.0,
            slope: 0.0,
            iops: VecDeque::new(),
            bandwidth: VecDeque::new(),
        };
        Some(Judge { steadiness, seconds: watch.steady_duration.as_secs() as usize })
    }

    /// Takes the rates of another second. Are they steady?
    pub fn add(&mut self, iops: f64, bandwidth: f64) -> bool {
        let found = &mut self.steadiness;
        for (rates, rate) in [(&mut found.iops, iops), (&mut found.bandwidth, bandwidth)] {
            if rates.len() == self.seconds {
                rates.pop_front();
            }
            rates.push_back(rate);
        }
        if found.iops.len() == self.seconds {
            found.judge();
        }
        found.attained
    }

    /// Were they already?
    pub fn is_attained(&self) -> bool {
        self.steadiness.attained
    }

    /// What there is at the end.
    pub fn end(self) -> Steadiness {
        self.steadiness
    }
}

impl Steadiness {
    fn judge(&mut self) {
        let rates = if self.steady.bandwidth { &self.bandwidth } else { &self.iops };
        let mean = mean(rates);
        let figure = match self.steady.slope {
            true => {
                self.slope = slope(rates);
                self.slope.abs()
            }
            false => {
                let distances = rates.iter().map(|rate| (rate - mean).abs());
                self.max_deviation = distances.fold(0.0, f64::max);
                self.max_deviation
            }
        };
        self.criterion = match self.steady.percent {
            true if mean > 0.0 => 100.0 * figure / mean,
            // Nothing was done: that is no steady rate.
            true => f64::INFINITY,
            false => figure,
        };
        self.attained = self.criterion < self.steady.limit;
    }

    /// What fio's normal output says: `attained=yes, bw=..., iops=999, iops mean dev=0.150%`.
    pub(crate) fn words(&self) -> String {
        let what = if self.steady.bandwidth { "bw" } else { "iops" };
        let how = if self.steady.slope { "slope" } else { "mean dev" };
        let percent = if self.steady.percent { "%" } else { "" };
        let bandwidth = mean(&self.bandwidth);
        format!(
            "attained={}, bw={:.0}KiB/s ({:.0}kB/s), iops={:.0}, {what} {how}={:.3}{percent}",
            if self.attained { "yes" } else { "no" },
            bandwidth / 1024.0,
            bandwidth / 1000.0,
            mean(&self.iops),
            self.criterion,
        )
    }

    /// The section of fio's JSON.
    pub(crate) fn json(&self) -> Value {
        let whole =
            |rates: &VecDeque<f64>| -> Vec<u64> { rates.iter().map(|&r| r as u64).collect() };
        let percent = if self.steady.percent { "%" } else { "" };
        let criterion = if self.criterion.is_finite() { self.criterion } else { 0.0 };
        json!({
            "ss": self.steady.word(),
            "duration": self.duration.as_secs(),
            "attained": u8::from(self.attained),
            "criterion": format!("{criterion:.6}{percent}"),
            "max_deviation": self.max_deviation,
            "slope": self.slope,
            "data": {
                "bw_mean": mean(&self.bandwidth) as u64,
                "iops_mean": mean(&self.iops) as u64,
                "iops": whole(&self.iops),
                "bw": whole(&self.bandwidth),
            },
        })
    }
}

fn mean(rates: &VecDeque<f64>) -> f64 {
    rates.iter().sum::<f64>() / rates.len().max(1) as f64
}

/// Of the line through the rates with the least squares, for each step.
fn slope(rates: &VecDeque<f64>) -> f64 {
    let middle = (rates.len().max(1) - 1) as f64 / 2.0;
    let mean = mean(rates);
    let steps = || rates.iter().enumerate().map(|(at, rate)| (at as f64 - middle, rate - mean));
    let square: f64 = steps().map(|(at, _)| at * at).sum();
    if square > 0.0 { steps().map(|(at, rate)| at * rate).sum::<f64>() / square } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(word: &str, rates: &[f64]) -> (Vec<bool>, Steadiness) {
        let mut job = crate::options::JobOptions::default();
        job.set("steadystate", word).expect("a good word");
        job.set("steadystate_duration", "4").expect("a time");
        let mut judge = Judge::new(&job.watch).expect("a judge");
        let attained = rates.iter().map(|&rate| judge.add(rate, rate * 4096.0)).collect();
        (attained, judge.end())
    }

    #[test]
    fn rates_near_their_mean_are_steady() {
        let rates = [50.0, 100.0, 101.0, 99.0, 100.0];
        let (attained, found) = judged("iops:1.5%", &rates);
        assert_eq!(attained, [false, false, false, false, true]);
        assert_eq!((found.max_deviation, found.criterion), (1.0, 1.0));
        assert_eq!(judged("iops:1.5", &rates).0, attained);
        assert_eq!(judged("iops:0.5%", &rates).0, [false; 5]);
        assert_eq!(judged("bw:4097", &rates).0, attained);
        assert_eq!(judged("bw:4096", &rates).0, [false; 5]);
    }

    #[test]
    fn a_slope_is_that_of_the_whole() {
        let (attained, found) = judged("iops_slope:1", &[10.0, 12.0, 14.0, 16.0]);
        assert_eq!((attained[3], found.slope), (false, 2.0));
        let (attained, found) = judged("iops_slope:1%", &[100.0, 50.0, 50.0, 100.0]);
        assert_eq!((attained[3], found.slope), (true, 0.0));
        let (attained, found) = judged("bw_slope:3%", &[104.0, 102.0, 100.0, 98.0]);
        assert_eq!((attained[3], found.slope), (true, -8192.0));
    }

    #[test]
    fn no_rate_is_no_steady_rate() {
        assert_eq!(judged("iops:1%", &[0.0; 6]).0, [false; 6]);
    }

    #[test]
    fn fios_json_has_these_words() {
        let value = judged("iops:50%", &[1001.0, 998.0, 1001.0, 998.0]).1.json();
        assert_eq!((&value["ss"], &value["attained"]), (&"iops:50.000000%".into(), &1.into()));
        assert_eq!((&value["criterion"], &value["duration"]), (&"0.150075%".into(), &4.into()));
        assert_eq!(value["data"]["iops"], json!([1001, 998, 1001, 998]));
    }
}
