use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::options::JobOptions;
use crate::series::{Point, Series};

const PLOTS: [&str; 5] = ["latency", "percentiles", "iops", "bandwidth", "cpu"];

/// A report of `count` reads and half as many writes.
fn report(count: u64, steps: u32) -> Report {
    let mut clone = CloneReport { merged: 1, runtime_ns: 2_000_000_000, ..Default::default() };
    for n in 0..count {
        clone.read.latency.record(1_000 + 37 * (n % 1_000));
        if n % 2 == 0 {
            clone.write.latency.record(20_000 + n);
        }
    }
    for (stats, ios) in [(&mut clone.read, count), (&mut clone.write, count / 2)] {
        (stats.ios, stats.bytes, stats.runtime_ns) = (ios, ios * 4096, 2_000_000_000);
    }
    let mut series = Series::default();
    for n in 0..steps {
        let at = |n| Duration::from_millis(100) * n;
        series.add(Point { start: at(n), end: at(n + 1), ios: [9.0, 4.0], bytes: [9e3, 4e3] });
    }
    Report {
        options: Arc::new(JobOptions { name: "mix".to_owned(), ..JobOptions::default() }),
        group_id: 0,
        target: "a disk".to_owned(),
        clones: vec![clone],
        serving: Vec::new(),
        devices: Vec::new(),
        series,
        steadiness: None,
        log_entries_lost: 0,
        interrupted: false,
    }
}

/// The part of a page that is one plot.
fn figure<'a>(page: &'a str, id: &str) -> &'a str {
    let at = page.find(&format!("data-plot=\"{id}\"")).expect("the plot");
    page[at..].split("</figure>").next().expect("its end")
}

#[test]
fn each_plot_has_marks_however_short_the_run() {
    for (count, steps) in [(1, 0), (2, 1), (3, 2), (100_000, 20)] {
        let page = page(&[report(count, steps)], UNIX_EPOCH);
        for id in PLOTS {
            let marks = figure(&page, id).matches("class=\"mark").count();
            assert!(marks > 0, "{count} I/Os, {steps} steps: {id}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf\""));
    }
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = page(&[report(1000, 20), report(10, 3)], UNIX_EPOCH);
    for word in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn a_run_without_io_says_so_and_draws_nothing() {
    let mut report = report(0, 0);
    report.clones[0].read.runtime_ns = 0;
    let page = page(&[report], UNIX_EPOCH);
    assert!(page.contains("Nothing was done.") && !page.contains("<figure"));
}

/// Job names and targets are other people's words: they must not become part of the page.
#[test]
fn names_stay_text() {
    let mut report = report(10, 2);
    let evil = "</title><script>alert('x')</script>\"&\u{7}";
    report.target = evil.to_owned();
    let options = JobOptions { name: evil.to_owned(), ..JobOptions::default() };
    report.options = Arc::new(JobOptions { given: vec![("name", evil.to_owned())], ..options });
    let page = page(&[report], UNIX_EPOCH);
    assert!(!page.contains("<script") && !page.contains('\u{7}'));
    assert_eq!(page.matches("</title>").count(), page.matches("<title>").count());
}

#[test]
fn the_distribution_shows_every_io_but_the_tail() {
    let page = page(&[report(10_000, 2)], UNIX_EPOCH);
    let shares = figure(&page, "latency").split("</title>").filter_map(|bar| {
        let words = bar.rsplit_once(": ")?.1;
        words.strip_suffix(" % of I/Os")?.parse::<f64>().ok()
    });
    let sum: f64 = shares.sum();
    assert!((99.0..100.1).contains(&sum), "{sum}");
}

#[test]
fn axis_labels_are_short() {
    for (value, words) in [(0.0, "0"), (1500.0, "1.5 k"), (2e6, "2 M"), (999_999.0, "1 M")] {
        assert_eq!(short_count(value), words);
    }
    assert_eq!(short_ns(20_000.0), "20 us");
}
