//! What is looked at while a job runs: its logs, and the figures that end it.

use std::time::Duration;

use crate::options::OptionError;

/// The options of a job that watch it. [`Default`] watches nothing that is not always counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    /// Files that are written as the job runs.
    pub logs: Logs,
    /// The queue is as deep as this allows.
    pub target: LatencyTarget,
    /// An I/O of reads, writes or trims that takes longer ends the job, ns; 0: no limit.
    pub max_latency_ns: [u64; 3],
    /// Fewer bytes a second of reads, writes or trims end the job; 0: no limit.
    pub rate_min: [u64; 3],
    /// Fewer I/Os a second of reads, writes or trims end the job; 0: no limit.
    pub rate_iops_min: [u64; 3],
    /// Over how long these rates are taken.
    pub rate_cycle: Duration,
    /// The job ends when its rates are steady.
    pub steady: Option<Steady>,
    /// How long `steady` is judged over, and how long it is not judged at the start.
    pub steady_duration: Duration,
    /// See `steady_duration`.
    pub steady_ramp: Duration,
    /// Which latencies are measured and shown.
    pub latencies: Latencies,
    /// Directions apart, together, or both.
    pub unified: Unified,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            logs: Logs::default(),
            target: LatencyTarget::default(),
            max_latency_ns: [0; 3],
            rate_min: [0; 3],
            rate_iops_min: [0; 3],
            rate_cycle: Duration::from_secs(1),
            steady: None,
            steady_duration: Duration::ZERO,
            steady_ramp: Duration::ZERO,
            latencies: Latencies::default(),
            unified: Unified::None,
        }
    }
}

/// Logs, by the beginning of their names; an empty one stands for the job's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logs {
    /// Bytes a second.
    pub bandwidth: Option<String>,
    /// I/Os a second.
    pub iops: Option<String>,
    /// Submission, completion and total latencies.
    pub latency: Option<String>,
    /// Histograms of completion latencies, as fio has them.
    pub histogram: Option<String>,
    /// The same as an HdrHistogram interval log.
    pub hdr: Option<String>,
    /// Clones write to one file.
    pub shared: bool,
    /// An entry for each so many ms; 0: for each I/O.
    pub average_ms: u64,
    /// Such an entry has the largest latency and not the mean.
    pub max: bool,
    /// Entries have the offset.
    pub offset: bool,
    /// Times are those of the Unix epoch.
    pub unix_epoch: bool,
    /// A histogram for each so many ms; 0: none of fio's, and one a second for HdrHistogram.
    pub histogram_ms: u64,
    /// So many times are two neighbours of fio's bins put together.
    pub coarseness: u32,
}

impl Logs {
    /// Is anything logged?
    pub fn is_any(&self) -> bool {
        self.has_entries() || self.histogram.is_some() || self.hdr.is_some()
    }

    /// Is there a log with an entry for each I/O or span?
    pub fn has_entries(&self) -> bool {
        self.bandwidth.is_some() || self.iops.is_some() || self.latency.is_some()
    }

    /// How long one histogram is recorded, ms; `None`: there are none.
    pub fn histogram_span_ms(&self) -> Option<u64> {
        match (&self.hdr, &self.histogram, self.histogram_ms) {
            (Some(_), _, 0) => Some(1000),
            (None, _, 0) | (None, None, _) => None,
            (_, _, ms) => Some(ms),
        }
    }
}

/// fio's `latency_target` and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyTarget {
    /// What I/Os should not take longer than, ns; 0: there is no target.
    pub target_ns: u64,
    /// How long each depth is tried.
    pub window_ns: u64,
    /// I/Os in a hundred that have to meet the target.
    pub percentile: f64,
    /// Go on at the depth that was found, and adjust it.
    pub run: bool,
}

impl Default for LatencyTarget {
    fn default() -> LatencyTarget {
        LatencyTarget { target_ns: 0, window_ns: 0, percentile: 100.0, run: false }
    }
}

/// fio's `steadystate`: what is judged, and the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steady {
    /// The rate of bytes and not of I/Os.
    pub bandwidth: bool,
    /// The slope of a line through the rates and not their largest distance from the mean.
    pub slope: bool,
    /// The limit.
    pub limit: f64,
    /// In hundredths of the mean.
    pub percent: bool,
}

impl Steady {
    /// fio's word for it, such as `iops_slope:0.300000%`.
    pub fn word(&self) -> String {
        let what = if self.bandwidth { "bw" } else { "iops" };
        let slope = if self.slope { "_slope" } else { "" };
        let percent = if self.percent { "%" } else { "" };
        format!("{what}{slope}:{:.6}{percent}", self.limit)
    }
}

/// Which latencies are measured and shown: submission, completion and total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latencies {
    /// Percentiles of submission latencies; they are measured for it.
    pub slat_percentiles: bool,
    /// Percentiles of completion latencies.
    pub clat_percentiles: bool,
    /// Percentiles of total latencies.
    pub lat_percentiles: bool,
    /// `Some(false)`: submission latencies are measured; `Some(true)`: whatever else is asked for,
    /// they are not.
    pub disable_slat: Option<bool>,
    /// Completion latencies are left out.
    pub disable_clat: bool,
    /// Total latencies are left out.
    pub disable_lat: bool,
    /// Samples of rates are left out.
    pub disable_bw: bool,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            slat_percentiles: false,
            clat_percentiles: true,
            lat_percentiles: false,
            disable_slat: None,
            disable_clat: false,
            disable_lat: false,
            disable_bw: false,
        }
    }
}

/// fio's `unified_rw_reporting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unified {
    /// Each direction apart.
    None,
    /// All directions together.
    Mixed,
    /// Each apart, then together.
    Both,
}

impl Watch {
    /// Must the loop of the job look at each I/O for it?
    pub fn needs_each_io(&self) -> bool {
        self.logs.is_any()
            || self.measures_submission()
            || self.target.target_ns > 0
            || self.limits_latency()
            || self.has_min_rate()
    }

    /// Is submission timed apart from completion?
    pub fn measures_submission(&self) -> bool {
        let asked = self.latencies.slat_percentiles || self.logs.latency.is_some();
        self.latencies.disable_slat.map_or(asked, |disabled| !disabled)
    }

    /// Does an I/O end the job that takes too long?
    pub fn limits_latency(&self) -> bool {
        self.max_latency_ns.iter().any(|&ns| ns > 0)
    }

    /// Does a rate end the job that is too low?
    pub fn has_min_rate(&self) -> bool {
        self.rate_min.iter().chain(&self.rate_iops_min).any(|&rate| rate > 0)
    }

    /// Do options contradict each other?
    pub(super) fn check(&self, rate: &[u64; 3], rate_iops: &[u64; 3]) -> Result<(), OptionError> {
        let wrong = |option: &str, message: &str| {
            Err(OptionError { option: option.to_owned(), message: message.to_owned() })
        };
        let above = |least: &[u64; 3], rate: &[u64; 3]| {
            least.iter().zip(rate).any(|(&least, &rate)| rate > 0 && least > rate)
        };
        if above(&self.rate_min, rate) {
            return wrong("rate_min", "is above rate");
        }
        if above(&self.rate_iops_min, rate_iops) {
            return wrong("rate_iops_min", "is above rate_iops");
        }
        if self.rate_cycle.is_zero() {
            return wrong("rate_cycle", "must be above 0");
        }
        if self.target.target_ns > 0 && self.target.window_ns == 0 {
            return wrong("latency_target", "needs latency_window, such as latency_window=100ms");
        }
        if self.steady.is_some() && self.steady_duration < Duration::from_secs(2) {
            let what =
                "needs steadystate_duration of at least 2 seconds: rates are read each second";
            return wrong("steadystate", what);
        }
        if self.logs.histogram.is_some() && self.logs.histogram_ms == 0 {
            return wrong("write_hist_log", "needs log_hist_msec, such as log_hist_msec=1000");
        }
        Ok(())
    }
}

/// A limit such as `iops:0.3%` or `bw_slope:100`.
pub(super) fn steady(word: &str) -> Result<Steady, String> {
    let wrong =
        || format!("`{word}` is not one of iops, iops_slope, bw, bw_slope with a limit: iops:0.3%");
    let (what, limit) = word.split_once(':').ok_or_else(wrong)?;
    let (bandwidth, slope) = match what.trim() {
        "iops" => (false, false),
        "iops_slope" => (false, true),
        "bw" => (true, false),
        "bw_slope" => (true, true),
        _ => return Err(wrong()),
    };
    let percent = limit.trim().ends_with('%');
    match limit.trim().trim_end_matches('%').parse::<f64>() {
        Ok(limit) if limit.is_finite() && limit >= 0.0 => {
            Ok(Steady { bandwidth, slope, limit, percent })
        }
        _ => Err(wrong()),
    }
}

pub(super) fn unified(word: &str) -> Result<Unified, String> {
    match word {
        "none" | "0" => Ok(Unified::None),
        "mixed" | "1" => Ok(Unified::Mixed),
        "both" | "2" => Ok(Unified::Both),
        _ => Err(format!("`{word}` is none of none, mixed, both")),
    }
}
