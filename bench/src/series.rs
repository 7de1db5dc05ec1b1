//! Rates over a run, from counters that the watching thread reads; no core that does I/O knows.

use std::time::Duration;

use serde_json::{Value, json};

/// More points than this are put together two by two.
const POINTS_MAX: usize = 600;

/// What was done over the run, step by step, without the ramp.
///
/// A step is a tenth of a second at first, and twice as long each time that there are too many:
/// a run of any length has between 300 and 600 points in the end.
#[derive(Clone, Debug)]
pub struct Series {
    points: Vec<Point>,
    /// How many readings make a point.
    readings_per_point: u32,
    /// How many the last point has.
    readings_of_last: u32,
}

/// One step: I/Os and bytes done in it, reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Since the end of the ramp.
    pub start: Duration,
    /// Where the next begins.
    pub end: Duration,
    /// I/Os.
    pub ios: [f64; 2],
    /// Bytes.
    pub bytes: [f64; 2],
}

impl Default for Series {
    fn default() -> Series {
        Series { points: Vec::new(), readings_per_point: 1, readings_of_last: 0 }
    }
}

impl Series {
    /// Adds what was done since the reading before.
    pub fn add(&mut self, reading: Point) {
        match self.points.last_mut() {
            Some(last) if self.readings_of_last < self.readings_per_point => {
                last.absorb(&reading);
                self.readings_of_last += 1;
            }
            _ => {
                self.points.push(reading);
                self.readings_of_last = 1;
            }
        }
        let is_whole = self.readings_of_last == self.readings_per_point;
        if self.points.len() == POINTS_MAX && is_whole {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let pairs = self.points.chunks_exact(2).map(|pair| {
            let mut sum = pair[0];
            sum.absorb(&pair[1]);
            sum
        });
        self.points = pairs.collect();
        self.readings_per_point = self.readings_per_point.saturating_mul(2);
        self.readings_of_last = self.readings_per_point;
    }

    /// The steps in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Ends of the steps in ms, and the rates of each, for scripts.
    pub fn json(&self) -> Value {
        let list = |rate: &dyn Fn(&Point) -> f64| -> Vec<f64> {
            self.points.iter().map(|point| rate(point).round()).collect()
        };
        let way = |way: usize| {
            json!({
                "iops": list(&|point| point.iops()[way]),
                "bw_bytes": list(&|point| point.bandwidth()[way]),
            })
        };
        json!({
            "end_ms": list(&|point| point.end.as_secs_f64() * 1e3),
            "read": way(0),
            "write": way(1),
        })
    }
}

impl Point {
    /// I/Os a second.
    pub fn iops(&self) -> [f64; 2] {
        self.ios.map(|count| count / self.seconds())
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> [f64; 2] {
        self.bytes.map(|count| count / self.seconds())
    }

    fn seconds(&self) -> f64 {
        self.end.saturating_sub(self.start).as_secs_f64().max(1e-9)
    }

    fn absorb(&mut self, next: &Point) {
        self.end = next.end;
        for way in [0, 1] {
            self.ios[way] += next.ios[way];
            self.bytes[way] += next.bytes[way];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_fits_and_nothing_is_lost() {
        for count in [0u32, 1, 599, 600, 601, 1199, 1200, 50_001] {
            let mut series = Series::default();
            let at = |n: u32| Duration::from_millis(100) * n;
            for n in 0..count {
                series.add(Point {
                    start: at(n),
                    end: at(n + 1),
                    ios: [1.0, 2.0],
                    bytes: [4.0; 2],
                });
            }
            let points = series.points();
            assert!(points.len() <= POINTS_MAX && points.len() >= (count as usize).min(300));
            let total: f64 = points.iter().map(|point| point.ios[1]).sum();
            assert_eq!(total, 2.0 * f64::from(count));
            assert!(points.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(points.iter().all(|point| (point.iops()[0] - 10.0).abs() < 1e-6));
            assert_eq!(points.last().map_or(at(0), |point| point.end), at(count));
        }
    }
}
