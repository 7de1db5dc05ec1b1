use serde_json::{Value, json};

use super::*;

/// A document in the common shape.
fn document(iops: f64, p99: u64) -> Value {
    json!({ "fio version": "fio-3.33", "jobs": [{
        "jobname": "a", "error": 0,
        "read": { "total_ios": 1000, "iops": iops, "bw_bytes": iops * 4096.0,
                  "clat_ns": { "mean": 10.5, "max": 99,
                               "percentile": { "50.000000": 10, "99.000000": p99 } } },
        "write": { "total_ios": 0, "iops": 0.0 },
    }] })
}

fn side(name: &str, documents: &[Value]) -> Result<Side, String> {
    let documents: Vec<_> = documents.iter().map(|d| (name.to_owned(), d.to_string())).collect();
    Side::new(name, &documents)
}

fn compare(sides: &[&[Value]]) -> Comparison {
    let sides = sides.iter().enumerate();
    let sides = sides.map(|(n, list)| side(&format!("side{n}"), list).expect("a side")).collect();
    Comparison::new(sides).expect("a comparison")
}

#[test]
fn figures_and_ratios_stand_side_by_side() {
    let both = compare(&[&[document(100_000.0, 500)], &[document(250_000.0, 250)]]);
    let text = both.text();
    assert!(text.contains("A  side0  (fio-3.33)"), "{text}");
    let line = |word: &str| text.lines().find(|l| l.contains(word)).expect("a line").to_owned();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&line("IOPS")), ["read", "IOPS", "100", "k", "250", "k", "2.500"]);
    assert_eq!(words(&line("p99")), ["p99", "500", "ns", "250", "ns", "0.500"]);
    assert!(!text.contains("write") && !text.contains("p95"), "{text}");
    assert!(text.contains("A: one result without enough samples: no interval"), "{text}");
}

#[test]
fn several_files_give_intervals_of_everything() {
    let a = [document(99.0, 500), document(100.0, 510), document(101.0, 490)];
    let b = [document(198.0, 240), document(202.0, 260)];
    let both = compare(&[&a, &b]);
    let json = both.json();
    let job = &json["jobs"][0];
    assert_eq!(job["intervals_from"], json!(["files", "files"]));
    let (a, b) = (&job["read"]["iops"][0], &job["read"]["iops"][1]);
    // s = 1, n = 3: 4.303 / sqrt(3) = 2.484.
    assert!((a["low"].as_f64().unwrap_or(0.0) - 97.516).abs() < 1e-3, "{a}");
    assert!((b["ratio"].as_f64().unwrap_or(0.0) - 2.0).abs() < 1e-9, "{b}");
    assert!(b["ratio_low"].as_f64() < Some(2.0) && b["ratio_high"].as_f64() > Some(2.0), "{b}");
    assert!(job["read"]["p99"][0]["high"].as_f64() > Some(500.0));
    assert!(both.text().contains("A: ± is 95 % confidence from 3 runs"));
}

#[test]
fn one_file_gives_intervals_of_its_rates_only() {
    let mut ours = document(100.0, 500);
    ours["oxblock version"] = json!("0.1.0");
    let series: Vec<f64> = (0..200).map(|n| 100.0 + f64::from(n % 7)).collect();
    ours["jobs"][0]["oxblock"]["series"]["read"] = json!({ "iops": series, "bw_bytes": series });
    let mut fio = document(100.0, 500);
    for (key, value) in [("iops_stddev", 2.0), ("iops_samples", 16.0)] {
        fio["jobs"][0]["read"][key] = json!(value);
    }
    let both = compare(&[&[ours], &[fio]]);
    let json = both.json();
    let job = &json["jobs"][0];
    assert_eq!(job["intervals_from"], json!(["batches", "samples"]));
    // 2 / sqrt(16) * 2.131 = 1.0655.
    let high = job["read"]["iops"][1]["high"].as_f64().unwrap_or(0.0);
    assert!((high - 101.0655).abs() < 1e-3, "{high}");
    assert_eq!(job["read"]["p99"][0]["low"], Value::Null);
    let text = both.text();
    assert!(text.contains("A: ± is 95 % confidence from 20 batches"), "{text}");
    assert!(text.contains("B: ± is 95 % confidence from the samples within one run"), "{text}");
}

/// Percentiles of clones that were reported apart have no common percentile: adding or averaging
/// them would name a latency that nobody saw.
#[test]
fn clones_reported_apart_add_up_and_keep_the_worst_latency() {
    let mut two = document(100.0, 500);
    let mut second = document(50.0, 900)["jobs"][0].clone();
    second["error"] = json!(5);
    two["jobs"].as_array_mut().expect("jobs").push(second);
    let both = compare(&[&[document(150.0, 900)], &[two]]);
    let json = both.json();
    let read = &json["jobs"][0]["read"];
    assert_eq!(
        (&read["iops"][1]["value"], &read["p99"][1]["value"]),
        (&150.0.into(), &900.0.into())
    );
    let text = both.text();
    assert!(
        text.contains("worst of its 2 clones") && text.contains("ended with error 5"),
        "{text}"
    );
}

#[test]
fn jobs_are_paired_by_name() {
    let named = |names: &[&str]| {
        let mut document = document(1.0, 1);
        let job = document["jobs"][0].clone();
        let jobs = names.iter().map(|name| {
            let mut job = job.clone();
            job["jobname"] = json!(name);
            job
        });
        document["jobs"] = jobs.collect();
        document
    };
    let both = compare(&[&[named(&["x", "y"])], &[named(&["y", "z"])]]);
    assert_eq!(both.json()["jobs"].as_array().map(Vec::len), Some(1));
    assert!(both.text().contains("job x is not on every side"));
    // One job each: they are compared whatever their names are.
    assert_eq!(compare(&[&[named(&["x"])], &[named(&["y"])]]).rows.len(), 1);
    let sides = [&["a", "b"], &["c", "d"]].map(|names| side("s", &[named(names)]).expect("a side"));
    assert!(Comparison::new(sides.into()).is_err_and(|error| error.contains("s: a, b; s: c, d")));
    let uneven = side("s", &[named(&["x"]), named(&["y"])]);
    assert!(uneven.is_err_and(|error| error.contains("run several times")));
}

#[test]
fn notes_around_the_document_are_passed_over() {
    let text = format!("fio: a note\nnote: {{\n{}\nmore\n", document(1.0, 1));
    assert!(Side::new("a", &[("f".to_owned(), text)]).is_ok());
}

#[test]
fn what_is_no_result_is_named_and_nonsense_is_survived() {
    for text in ["", "x", "{", "{}", "{\"jobs\":3}", "{\"jobs\":[]}", "[1]", &"[".repeat(100_000)] {
        let error = Side::new("s", &[("file.json".to_owned(), text.to_owned())]).err();
        assert!(error.is_some_and(|error| error.starts_with("file.json: ")), "{text:.20}");
    }
    for job in [
        json!(null),
        json!({ "jobname": 3, "read": [] }),
        json!({ "read": { "total_ios": 1e300, "iops": -1, "clat_ns": { "percentile": { "x": 1 } } } }),
        json!({ "read": { "total_ios": 1, "iops": 0, "bw_bytes": 1e308, "iops_stddev": 1e308,
                          "iops_samples": 1e308, "clat_ns": 7 } }),
        json!({ "read": { "total_ios": 1, "iops": 1 }, "oxblock": { "series": { "read": {
                "iops": ["x", null, 1e308, 1e308, 1e308, 1e308] } } } }),
    ] {
        let one = || side("s", &[json!({ "jobs": [job] })]).expect("a side");
        let both = Comparison::new(vec![one(), one()]).expect("a comparison");
        assert!(!both.text().is_empty() && both.json().is_object());
    }
}
