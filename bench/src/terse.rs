//! A run as fio's terse output, version 3: one line for each job, its fields by their place, with
//! `;` between them (fio's HOWTO, "Terse output"). Times are in us and rates in KiB a second. Trims
//! have no place in this version, nor what the disks under a file did, which fio leaves out where
//! `disk_util` is off.

use std::fmt::Display;

use crate::json::{FIO_VERSION, PERCENTILES};
use crate::options::{JobOptions, Unified};
use crate::report::{CloneReport, Report, entries};
use crate::shares::{self, Shares};
use crate::stats::{DirectionStats, Latency, Samples, Summary};

/// Places for percentiles in each direction.
const PLACES: usize = 20;

/// The lines for some jobs, in the order in which they ran. With `group_reporting` the jobs of one
/// group are one line, under the first one's name.
pub fn lines(reports: &[Report]) -> String {
    entries(reports).into_iter().map(|entry| line(entry.report, &entry.clone) + "\n").collect()
}

fn line(report: &Report, clone: &CloneReport) -> String {
    let options = &report.options;
    let mut fields = Fields(Vec::new());
    fields.add(["3", FIO_VERSION, &options.name]);
    fields.add([report.group_id.to_string(), clone.errno().to_string()]);
    let [read, write] = match options.watch.unified {
        Unified::Mixed => [clone.mixed(), DirectionStats::default()],
        Unified::None | Unified::Both => [clone.read.clone(), clone.write.clone()],
    };
    let group = report.group();
    fields.direction(&read, group.read.bandwidth(), options);
    fields.direction(&write, group.write.bandwidth(), options);
    let share = |ns: u64| 100.0 * ns as f64 / clone.runtime_ns.max(1) as f64;
    fields.add([clone.cpu.user_ns, clone.cpu.system_ns].map(|ns| format!("{:.6}%", share(ns))));
    fields.add([clone.cpu.context_switches, clone.cpu.major_faults, clone.cpu.minor_faults]);
    fields.add(shares::levels(&clone.depths).iter().map(|(_, share)| format!("{share:.1}%")));
    let [ns, mut us, ms] = shares::spread(&clone.mixed().latency);
    // The first step is of all that took less than it.
    us[0].1 += ns.iter().map(|(_, share)| share).sum::<f64>();
    let steps = |shares: &Shares| shares.iter().map(|s| format!("{:.2}%", s.1)).collect::<Vec<_>>();
    fields.add(steps(&us));
    fields.add(steps(&ms));
    fields.0.join(";")
}

struct Fields(Vec<String>);

impl Fields {
    fn add<T: Display>(&mut self, fields: impl IntoIterator<Item = T>) {
        self.0.extend(fields.into_iter().map(|field| field.to_string()));
    }

    fn direction(&mut self, stats: &DirectionStats, group_bandwidth: f64, options: &JobOptions) {
        let switches = &options.watch.latencies;
        let bandwidth = stats.bandwidth();
        self.add([stats.bytes / 1024, (bandwidth / 1024.0) as u64, stats.iops() as u64]);
        self.add([stats.runtime_ms()]);
        let [(_, slat, _), (_, clat, has_percentiles), (_, lat, _)] = stats.shown(switches);
        self.latency(slat);
        self.latency(clat);
        self.percentiles(clat.filter(|_| has_percentiles), &options.percentiles);
        self.latency(lat);
        let none = Samples::default();
        let samples = if switches.disable_bw { &none } else { &stats.samples };
        let rates = Summary::of(&samples.bandwidth);
        let share = if group_bandwidth > 0.0 { 100.0 * bandwidth / group_bandwidth } else { 0.0 };
        self.add([rates.min, rates.max].map(|rate| (rate / 1024.0) as u64));
        self.add([format!("{share:.6}%")]);
        self.add([rates.mean, rates.stddev].map(|rate| format!("{:.6}", rate / 1024.0)));
    }

    /// Smallest, largest, mean and deviation; zeroes of what was not measured.
    fn latency(&mut self, latency: Option<&Latency>) {
        let us = |ns: f64| format!("{:.6}", ns / 1000.0);
        match latency.filter(|latency| latency.count() > 0) {
            Some(latency) => {
                self.add([latency.min(), latency.max()].map(|ns| ns / 1000));
                self.add([us(latency.mean()), us(latency.stddev())]);
            }
            None => self.add(["0", "0", "0.000000", "0.000000"]),
        }
    }

    fn percentiles(&mut self, latency: Option<&Latency>, list: &[f64]) {
        let list = if list.is_empty() { &PERCENTILES[..] } else { list };
        let shown = latency.iter().flat_map(|latency| {
            list.iter().map(|&p| format!("{p:.6}%={}", latency.percentile(p) / 1000))
        });
        self.add(shown.chain(std::iter::repeat("0%=0".to_owned())).take(PLACES));
    }
}
