//! Programs written for fio's output, run on fio's and on ours: they must read both alike.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A mix at a rate that both keep to, with everything written that there is.
const JOB: &[&str] = &[
    "--name=job",
    "--rw=randrw",
    "--bs=4k",
    "--size=64m",
    "--iodepth=4",
    "--rate_iops=2000",
    "--time_based",
    "--runtime=2",
    "--slat_percentiles=1",
    "--lat_percentiles=1",
    "--write_hist_log=log",
    "--log_hist_msec=200",
    "--write_lat_log=log",
    "--write_bw_log=log",
    "--write_iops_log=log",
    "--log_avg_msec=100",
    "--output-format=json+",
    "--output=run.json",
];

/// Runs fio and us on null engines with the same words, each in a folder of its own; `None` where
/// there is no fio, which is said.
fn both(words: &[&str]) -> Option<Folders> {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: fio is not installed (apt-get install fio)");
        return None;
    }
    let run = |program: &str, first: &[&str]| {
        let folder = TempDir::new().expect("a folder");
        let output = Command::new(program)
            .args(first)
            .args(words)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{program}: {}", text_of(&output.stderr));
        folder
    };
    let theirs = run("fio", &["--ioengine=null", "--filesize=1g", "--thread"]);
    let ours = run(env!("CARGO_BIN_EXE_oxblock"), &["bench", "--target=null"]);
    Some([theirs, ours])
}

/// Runs a tool in a folder; `None` where it is not installed, which is said with `how` to get it.
fn tool(folder: &Path, program: &str, args: &[&str], how: &str) -> Option<Output> {
    let output = Command::new(program).args(args).current_dir(folder).stdin(Stdio::null()).output();
    let there = output.ok().filter(|output| !text_of(&output.stderr).contains("No module named"));
    if there.is_none() {
        eprintln!("skipped: {program} is not installed, or not with all it needs ({how})");
    }
    there
}

fn text(output: &Output) -> String {
    let out = text_of(&output.stdout);
    assert!(output.status.success(), "{out}{}", text_of(&output.stderr));
    out
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(folder: &TempDir, name: &str) -> String {
    std::fs::read_to_string(folder.path().join(name)).expect(name)
}

#[test]
fn what_reads_fios_output_reads_ours() {
    // One run of each program for all tools: it takes its time.
    let Some(folders) = both(JOB) else { return };
    bins_are_read(&folders);
    histogram_logs_are_read(&folders);
    logs_are_plotted(&folders);
    averaged_logs_are_as_long(&folders);
}

/// `[fio's, ours]`.
type Folders = [TempDir; 2];

fn bins_are_read(folders: &Folders) {
    let tables = folders.each_ref().map(|folder| {
        let args = ["run.json", "bins.csv"];
        text(&tool(folder.path(), "fio_jsonplus_clat2csv", &args, "apt-get install fio")?);
        Some(read(folder, "bins_job0.csv"))
    });
    let [Some(theirs), Some(ours)] = &tables else { return };
    assert_eq!(theirs.lines().next(), ours.lines().next());
    // The counts of a column sum up to the I/Os of the report.
    let columns: Vec<&str> = ours.lines().next().unwrap_or("").split(", ").collect();
    let at = columns.iter().position(|name| *name == "write_clat_ns_count").expect("the column");
    let counts =
        ours.lines().skip(1).filter_map(|line| line.split(", ").nth(at)?.parse::<u64>().ok());
    let report: Value = serde_json::from_str(&read(&folders[1], "run.json")).expect("JSON");
    assert_eq!(Some(counts.sum()), report["jobs"][0]["write"]["total_ios"].as_u64());
}

fn histogram_logs_are_read(folders: &Folders) {
    let packed = "/usr/share/doc/fio/fio-histo-log-pctiles.py.gz";
    let Ok(script) = Command::new("gzip").args(["-dc", packed]).output() else {
        eprintln!("skipped: gzip is not installed");
        return;
    };
    if !script.status.success() {
        eprintln!("skipped: fio's documents are not installed ({packed})");
        return;
    }
    for folder in folders {
        std::fs::write(folder.path().join("pctiles.py"), &script.stdout).expect("a write");
    }
    let tables = folders.each_ref().map(|folder| {
        let args = ["pctiles.py", "--time-quantum", "1", "log_clat_hist.1.log"];
        tool(folder.path(), "python3", &args, "apt-get install python3").map(|out| text(&out))
    });
    let [Some(theirs), Some(ours)] = tables else { return };
    let heads = [&theirs, &ours].map(|table| table.lines().take(9).collect::<Vec<_>>().join("\n"));
    assert_eq!(heads[0], heads[1]);
    // In the second second: about 4000 samples, and percentiles in order.
    for table in [&theirs, &ours] {
        let row = table.lines().find(|line| line.trim_start().starts_with("1000,")).expect(table);
        let numbers = row.split(',').filter_map(|n| n.trim().parse().ok()).collect::<Vec<f64>>();
        assert!((3_400.0..=4_600.0).contains(&numbers[1]), "{row}");
        assert!(numbers[2..].is_sorted(), "{row}");
    }
}

fn logs_are_plotted(folders: &Folders) {
    for folder in folders {
        let args = ["-p", "log_bw*", "-b"];
        let Some(out) = tool(folder.path(), "fio2gnuplot", &args, "apt-get install fio") else {
            return;
        };
        assert!(text(&out).contains("log_bw.1.log"));
        let average = read(folder, "_bw.average");
        let bandwidth: Option<f64> = average.split_whitespace().last().and_then(|n| n.parse().ok());
        // Both directions are averaged: 2000 times 4 KiB a second each.
        assert!(bandwidth.is_some_and(|kib| (7_000.0..9_000.0).contains(&kib)), "{average}");
    }
}

fn averaged_logs_are_as_long([theirs, ours]: &Folders) {
    for kind in ["bw", "iops", "slat", "clat", "lat"] {
        let name = format!("log_{kind}.1.log");
        let [theirs, ours] = [theirs, ours].map(|folder| read(folder, &name).lines().count());
        // 2 s in steps of 100 ms, two directions; fio leaves out what its last step has not ended.
        assert!((30..=42).contains(&theirs) && (36..=42).contains(&ours), "{name} {theirs} {ours}");
    }
}

#[test]
fn what_charts_fios_results_charts_ours() {
    let names = "randread-iodepth-4-numjobs-1";
    let logs = ["lat", "bw", "iops"].map(|kind| format!("--write_{kind}_log={names}"));
    let mut words =
        vec!["--name=job", "--rw=randread", "--iodepth=4", "--rate_iops=2000", "--size=64m"];
    words.extend(["--runtime=1", "--time_based", "--numjobs=1", "--bs=4k", "--log_avg_msec=100"]);
    words.extend(["--output-format=json", "--output=randread-4-1.json"]);
    words.extend(logs.iter().map(String::as_str));
    let Some(folders) = both(&words) else { return };
    for folder in &folders {
        for chart in [&["-g", "-t", "iops", "lat"][..], &["-l"]] {
            let always =
                ["-i", ".", "-T", "x", "-r", "randread", "-d", "4", "-n", "1", "-o", "x.png"];
            let args = [&always[..], chart].concat();
            let how = "pip install fio-plot";
            let Some(out) = tool(folder.path(), "fio-plot", &args, how) else { return };
            text(&out);
            let path = folder.path().join("x.png");
            assert!(std::fs::metadata(&path).expect("a chart").len() > 10_000);
            std::fs::remove_file(path).expect("it is removed");
        }
    }
}

#[test]
fn logs_are_as_long_as_fios() {
    let each = ["--name=a", "--rw=randrw", "--size=4m", "--number_ios=500", "--iodepth=8"];
    let logs =
        ["--write_bw_log=log", "--write_iops_log=log", "--write_lat_log=log", "--log_offset=1"];
    let Some([theirs, ours]) = both(&[&each[..], &logs].concat()) else { return };
    for kind in ["bw", "iops", "slat", "clat", "lat"] {
        let name = format!("log_{kind}.1.log");
        let lines = [&theirs, &ours].map(|folder| read(folder, &name).lines().count());
        assert_eq!(lines, [500; 2], "{name}");
        let columns = [&theirs, &ours]
            .map(|folder| read(folder, &name).lines().next().map(|line| line.split(", ").count()));
        assert_eq!(columns, [Some(6); 2], "{name}");
    }
}

#[test]
fn hdr_histograms_own_reader_reads_our_logs() {
    let folder = TempDir::new().expect("a folder");
    let words = "bench --target=null --name=x --rw=randrw --rate_iops=2000 --runtime=1 \
                 --write_hdr_log=log --log_hist_msec=100 --output-format=json --output=run.json";
    let mut run = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    assert!(
        run.args(words.split_whitespace())
            .current_dir(folder.path())
            .status()
            .expect("it runs")
            .success()
    );
    let script = "import sys\ntry:\n    from hdrh.log import HistogramLogReader\n    from hdrh.histogram import HdrHistogram\n\
        except ImportError:\n    sys.exit(77)\n\
        log = HistogramLogReader('log_clat.1.hlog', HdrHistogram(1, 3600000000000, 3))\n\
        sums = {}\nwhile True:\n    span = log.get_next_interval_histogram()\n    if span is None: break\n\
        \x20   sums[span.get_tag()] = sums.get(span.get_tag(), 0) + span.get_total_count()\n\
        print(sums['read'], sums['write'])";
    let Some(output) = tool(folder.path(), "python3", &["-c", script], "apt-get install python3")
    else {
        return;
    };
    if output.status.code() == Some(77) {
        eprintln!("skipped: Python has no hdrh (pip install hdrhistogram)");
        return;
    }
    let report: Value = serde_json::from_str(&read(&folder, "run.json")).expect("JSON");
    let ios = |way: &str| report["jobs"][0][way]["total_ios"].as_u64().unwrap_or(0);
    assert_eq!(text(&output).trim(), format!("{} {}", ios("read"), ios("write")));
}
