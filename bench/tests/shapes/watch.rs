//! Jobs that are watched: their logs, and the figures that end them.

use std::path::Path;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use oxblock_bench::bins;
use oxblock_bench::report::Ending;
use oxblock_bench::text;
use tempfile::TempDir;

use super::own_time::on_own_time;
use super::*;

/// The numbers of a log's lines.
fn lines(folder: &TempDir, name: &str) -> Vec<Vec<u64>> {
    let text = std::fs::read_to_string(folder.path().join(name)).expect(name);
    let numbers = |line: &str| line.split(", ").map(|n| n.parse().expect(line)).collect();
    text.lines().map(numbers).collect()
}

/// Words for a job whose logs of the given kinds are `x_...` in a folder.
fn logged(folder: &TempDir, kinds: &[&str], words: &str) -> String {
    let prefix = folder.path().join("x");
    let kinds = kinds.iter().map(|kind| format!("write_{kind}_log={} ", prefix.display()));
    kinds.collect::<String>() + words
}

#[test]
fn each_io_has_its_line() {
    let folder = TempDir::new().expect("a folder");
    let words = "rw=randrw bs=4k,8k io_size=1g number_ios=10000 iodepth=8 log_offset=1";
    let group = on_memory(&logged(&folder, &["bw", "iops", "lat"], words));
    let names = ["x_bw.1.log", "x_iops.1.log", "x_slat.1.log", "x_clat.1.log", "x_lat.1.log"];
    let [bw, iops, slat, clat, lat] = names.map(|name| lines(&folder, name));
    assert_eq!(group.ios(), 10_000);
    for (way, stats, len) in [(0, &group.read, 4096), (1, &group.write, 8192)] {
        let of_way = lat.iter().filter(|line| line[2] == way);
        assert_eq!(of_way.clone().count() as u64, stats.ios);
        assert!(of_way.clone().all(|line| line[3] == len && line[4].is_multiple_of(len)));
        assert!(of_way.map(|line| line[1]).max() <= Some(stats.total().max()));
    }
    for n in 0..10_000 {
        assert_eq!(slat[n][1] + clat[n][1], lat[n][1], "line {n}");
        assert_eq!(bw[n][1], (bw[n][3] * 1_000_000).checked_div(clat[n][1]).unwrap_or(0));
        assert_eq!((iops[n][1], iops[n].len(), iops[n][5]), (1, 6, 0));
        assert_eq!([&bw, &iops, &slat, &clat].map(|log| log[n][4]), [lat[n][4]; 4]);
    }
    assert!(lat.is_sorted_by_key(|line| line[0]));
    let allocations = group.allocations.expect("this test counts");
    assert_eq!(allocations.count, 0, "in {} I/Os", allocations.ios);
}

#[test]
fn averaged_lines_add_up_to_the_whole() {
    let folder = TempDir::new().expect("a folder");
    let words = "rw=randwrite bs=4k rate_iops=2000 runtime=1 log_avg_msec=100";
    let group = on_own_time(&logged(&folder, &["bw", "iops", "lat"], words));
    let [bw, iops, clat] =
        ["bw", "iops", "clat"].map(|kind| lines(&folder, &format!("x_{kind}.1.log")));
    assert!((1900..=2001).contains(&group.write.ios), "{}", group.write.ios);
    assert!((10..=11).contains(&iops.len()), "{iops:?}");
    assert_eq!((bw.len(), clat.len()), (iops.len(), iops.len()));
    let mut before = 0;
    let mut ios = 0.0;
    for (line, bw) in iops.iter().zip(&bw) {
        ios += line[1] as f64 * (line[0] - before) as f64 / 1000.0;
        before = line[0];
        assert!(line[1].abs_diff(bw[1] / 4) <= 1 && line[2..] == [1, 0, 0], "{line:?} {bw:?}");
    }
    assert!((ios / group.write.ios as f64 - 1.0).abs() < 0.05, "{ios} of {}", group.write.ios);
    let worst = TempDir::new().expect("a folder");
    let group = on_own_time(&logged(&worst, &["lat"], &format!("{words} log_max_value=1")));
    let lines = lines(&worst, "x_lat.1.log");
    let largest = lines.iter().map(|line| line[1]).max().expect("lines") as f64;
    assert!((largest / group.write.total().max() as f64 - 1.0).abs() < 0.002);
}

#[test]
fn histograms_have_each_io_once() {
    let folder = TempDir::new().expect("a folder");
    let words = "rw=randrw bs=4k rate_iops=4000 runtime=1 log_hist_msec=200 log_hist_coarseness=1";
    let group = on_own_time(&logged(&folder, &["hist", "hdr"], words));
    let mut counts = [0; 2];
    let rows = lines(&folder, "x_clat_hist.1.log");
    for row in &rows {
        assert_eq!((row.len(), row[2]), (3 + bins::BINS / 2, 4096));
        counts[row[1] as usize] += row[3..].iter().sum::<u64>();
    }
    assert_eq!(counts, [group.read.ios, group.write.ios]);
    // Of each direction five spans, and what came after the last.
    assert!((10..=12).contains(&rows.len()), "{} lines", rows.len());
    let [read, write] = hdr_intervals(&folder.path().join("x_clat.1.hlog"));
    for (histogram, stats) in [(read, &group.read), (write, &group.write)] {
        assert_eq!(&histogram, stats.latency.histogram());
    }
}

/// The histograms of a log, put together for each direction.
fn hdr_intervals(path: &Path) -> [Histogram<u64>; 2] {
    let text = std::fs::read(path).expect("the log");
    let mut sums =
        [(); 2].map(|()| Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("good"));
    let mut deserializer = Deserializer::new();
    let mut has_base = false;
    for entry in IntervalLogIterator::new(&text) {
        match entry.expect("a good line") {
            LogEntry::BaseTime(_) => has_base = true,
            LogEntry::Interval(interval) => {
                let way = usize::from(interval.tag().expect("a tag").as_str() == "write");
                // Spans are of 200 ms, and the poll that ends one.
                assert!(interval.duration().as_millis() < 205, "{:?}", interval.duration());
                let bytes = base64(interval.encoded_histogram());
                let histogram: Histogram<u64> =
                    deserializer.deserialize(&mut bytes.as_slice()).expect("V2");
                sums[way].add(histogram).expect("the same bounds");
            }
            _ => {}
        }
    }
    assert!(has_base);
    sums
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').map(value).collect();
    let group = |four: &[u8]| {
        let bits = four.iter().fold(0u32, |bits, &digit| bits << 6 | u32::from(digit));
        let bits = bits << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

#[test]
fn clones_and_jobs_have_logs_of_their_own_or_share_one() {
    let folder = TempDir::new().expect("a folder");
    on_memory(&logged(&folder, &["iops"], "rw=read number_ios=3 numjobs=2"));
    assert_eq!(["x_iops.1.log", "x_iops.2.log"].map(|name| lines(&folder, name).len()), [3, 3]);
    on_memory(&logged(&folder, &["iops"], "rw=read number_ios=3 numjobs=2 per_job_logs=0"));
    assert_eq!(lines(&folder, "x_iops.log").len(), 6);
    // Times since the Unix epoch.
    on_memory(&logged(&folder, &["bw"], "rw=read number_ios=1 log_unix_epoch=1"));
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
    let at = lines(&folder, "x_bw.1.log")[0][0];
    assert!(now - at < 60_000, "{at} {now}");
    let missing = try_run(memory_driver(), "rw=read write_bw_log=/no/such/folder/x");
    let error = missing.map(|_| ()).expect_err("no folder").to_string();
    assert!(error.contains("/no/such/folder/x_bw.1.log"), "{error}");
}

#[test]
fn what_happens_in_the_ramp_is_not_logged() {
    let folder = TempDir::new().expect("a folder");
    let words = "rw=read bs=4k rate_iops=1000 ramp_time=300ms runtime=300ms";
    let group = on_memory(&logged(&folder, &["lat"], words));
    let lines = lines(&folder, "x_lat.1.log");
    assert_eq!(lines.len() as u64, group.read.ios);
    assert!(lines.iter().all(|line| line[0] <= 400), "{:?}", lines.last());
}

fn ended(latency_ns: u64, words: &str) -> (CloneReport, Option<Ending>) {
    let null = null::open(NullOptions { latency_ns, ..NullOptions::default() });
    let report = try_run(null.expect("a null driver"), words).expect("a run");
    let group = report.group();
    assert_eq!(report.is_good(), group.ending.is_none());
    (group.clone(), group.ending)
}

#[test]
fn an_io_that_takes_too_long_ends_the_job() {
    let (group, ending) = ended(3_000_000, "rw=randread runtime=30 max_latency=2ms");
    assert!(matches!(ending, Some(Ending::MaxLatency { limit_ns: 2_000_000, .. })), "{ending:?}");
    assert_eq!((group.errno(), group.read.ios), (110, 1));
    // The limit of another direction is none of its business.
    let words = "rw=randread number_ios=10 max_latency=0,2ms";
    assert_eq!(ended(3_000_000, words).1, None);
}

#[test]
fn a_rate_that_is_too_low_ends_the_job() {
    let words = "rw=randread runtime=30 rate_cycle=100 rate_iops_min=5000";
    let (group, ending) = ended(1_000_000, words);
    assert!(matches!(ending, Some(Ending::RateTooLow { option: "rate_iops_min", .. })));
    assert_eq!(group.errno(), 5);
    let (_, ending) = ended(1_000_000, "rw=randwrite runtime=30 rate_min=0,100m");
    assert!(
        matches!(ending, Some(Ending::RateTooLow { direction, .. }) if direction.word() == "write")
    );
    let words = "rw=randread runtime=300ms rate_cycle=100 rate_iops_min=10 rate_min=4k";
    assert_eq!(ended(1_000_000, words).1, None);
}

#[test]
fn the_queue_is_as_deep_as_the_latency_allows() {
    // Each I/O takes 1 ms however many there are: all depths keep to 50 ms, none to 10 us.
    let words = "rw=randread iodepth=16 runtime=30 latency_window=50ms latency_percentile=90";
    let (group, ending) = ended(1_000_000, &format!("{words} latency_target=50ms"));
    assert_eq!((ending, group.found_depth), (None, Some(16)));
    // The figures are those of the last window, at that depth.
    assert!(group.runtime_ns < 500_000_000, "{}", group.runtime_ns);
    let (group, ending) = ended(1_000_000, &format!("{words} latency_target=10us"));
    assert_eq!(ending, Some(Ending::TargetMissed { target_ns: 10_000 }));
    assert_eq!((group.errno(), group.found_depth), (110, Some(1)));
    let words = "rw=randread iodepth=4 latency_window=10ms latency_run=1 runtime=300ms";
    let (group, ending) = ended(1_000_000, &format!("{words} latency_target=10us"));
    assert_eq!((ending, group.found_depth), (None, Some(1)));
}

#[test]
fn submission_is_timed_apart_where_asked() {
    let group = on_memory("rw=randrw number_ios=1000 iodepth=4 slat_percentiles=1");
    for stats in [&group.read, &group.write] {
        let apart = stats.apart.as_ref().expect("slat");
        assert_eq!((apart.submission.count(), apart.total.count()), (stats.ios, stats.ios));
        let sum = apart.submission.mean() + stats.latency.mean();
        assert!((sum / apart.total.mean() - 1.0).abs() < 0.01, "{sum} {}", apart.total.mean());
    }
    for words in ["", "slat_percentiles=1 disable_slat=1"] {
        assert!(on_memory(&format!("rw=read number_ios=9 {words}")).read.apart.is_none());
    }
    assert!(on_memory("rw=read number_ios=9 disable_slat=0").read.apart.is_some());
}

#[test]
fn ignored_errors_are_counted_and_no_failure() {
    let run = |words: &str| {
        let report = try_run(Box::new(Broken), words).expect("a run");
        (report.is_good(), report.group().errors, report.group().write.ios)
    };
    let (good, errors, ios) = run("rw=write bs=4k ignore_error=,EIO:28");
    assert_eq!((good, errors, ios), (true, 128, 128));
    let (good, errors, _) = run("rw=write bs=4k ignore_error=EIO");
    assert!(!good && errors == 1);
}

fn json_of(words: &str) -> serde_json::Value {
    let report = try_run(memory_driver(), words).expect("a run");
    json::document_plus(&[report], SystemTime::UNIX_EPOCH)["jobs"][0].take()
}

#[test]
fn switches_choose_the_latencies_of_a_report() {
    let job = json_of("rw=randrw number_ios=100 slat_percentiles=1 lat_percentiles=1");
    for name in ["slat_ns", "clat_ns", "lat_ns"] {
        let latency = &job["read"][name];
        let sum = |key: &str| {
            latency[key].as_object().map(|bins| bins.values().flat_map(|n| n.as_u64()).sum())
        };
        assert_eq!(
            (sum("bins"), &latency["N"]),
            (latency["N"].as_u64(), &job["read"]["total_ios"])
        );
        assert_eq!(latency["percentile"].as_object().map(|list| list.len()), Some(17), "{name}");
    }
    let job = json_of("rw=randrw number_ios=100 clat_percentiles=0");
    assert!(job["read"]["clat_ns"]["percentile"].is_null() && job["read"]["clat_ns"]["N"] != 0);
    assert_eq!(job["read"]["slat_ns"]["N"], 0);
    let job = json_of("rw=read number_ios=100 gtod_reduce=1");
    for name in ["slat_ns", "clat_ns", "lat_ns"] {
        assert_eq!(job["read"][name]["N"], 0, "{name}");
    }
    assert_eq!((&job["read"]["total_ios"], &job["read"]["bw_samples"]), (&100.into(), &0.into()));
    let job = json_of("rw=read number_ios=100 disable_lat=1");
    assert_eq!(
        (&job["read"]["lat_ns"]["N"], &job["read"]["clat_ns"]["N"]),
        (&0.into(), &100.into())
    );
}

#[test]
fn directions_are_told_apart_or_together() {
    let mixed = json_of("rw=randrw number_ios=100 unified_rw_reporting=mixed");
    assert!(mixed["read"].is_null() && mixed["write"].is_null() && mixed["sync"].is_null());
    assert_eq!(
        (&mixed["mixed"]["total_ios"], &mixed["mixed"]["clat_ns"]["N"]),
        (&100.into(), &100.into())
    );
    let both = json_of("rw=randrw number_ios=100 unified_rw_reporting=both");
    let ios = |way: &str| both[way]["total_ios"].as_u64().expect(way);
    assert_eq!((ios("read") + ios("write"), ios("mixed")), (100, 100));
    let report = try_run(memory_driver(), "rw=randrw number_ios=100 unified_rw_reporting=mixed");
    let report = report.expect("a run");
    let (text, summary) = (text::report(&report), text::summary(&[report]));
    assert!(text.contains("  mixed: IOPS=") && !text.contains("  read: "), "{text}");
    assert!(summary.contains("  MIXED: bw=") && !summary.contains("READ"), "{summary}");
}

#[test]
fn a_job_ends_when_its_rate_is_steady() {
    let begun = Instant::now();
    let words = "rw=randread bs=4k,4k rate_iops=500 runtime=30 ss=iops:50% ss_dur=2 ss_ramp=1";
    let report = try_run(memory_driver(), words).expect("a run");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let found = report.steadiness.as_ref().expect("it was judged");
    assert!(found.attained && found.criterion < 50.0 && report.is_good(), "{found:?}");
    assert!(report.group().runtime_ns >= 2_900_000_000);
    for (iops, bandwidth) in found.iops.iter().zip(&found.bandwidth) {
        assert!((iops * 4096.0 / bandwidth - 1.0).abs() < 0.01, "{found:?}");
    }
    assert!(text::report(&report).contains("  steadystate  : attained=yes, bw="));
    let job = json::document(&[report], SystemTime::UNIX_EPOCH)["jobs"][0].take();
    assert_eq!(job["steadystate"]["data"]["iops"].as_array().map(Vec::len), Some(2));
    // A limit that no machine keeps to.
    let report =
        try_run(memory_driver(), "rw=randread runtime=3 ss=iops:0 ss_dur=2").expect("a run");
    assert!(report.steadiness.is_some_and(|found| !found.attained && found.iops.len() == 2));
}
