//! fio's terse output: as many fields, in the same form, each in the same place.

use std::process::Command;

/// The only line that a program prints.
fn line(program: &str, first: &[&str], job: &str) -> Vec<String> {
    let words = job.split(' ').map(|word| format!("--{word}"));
    let output = Command::new(program).args(first).args(words).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{program}: {text}");
    let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{program}: {text}") };
    line.split(';').map(str::to_owned).collect()
}

/// A field without its digits: `1.000000%=27` and `1.000000%=3` have the same form.
fn form(field: &str) -> String {
    let (name, value) = field.rsplit_once('=').map_or(("", field), |(name, value)| (name, value));
    let value: String = value.chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{name}={value}")
}

#[test]
fn fields_have_their_places_and_forms() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: fio is not installed (apt-get install fio)");
        return;
    }
    // Which places hold what does not depend on the clock: KiB, errors, places of percentiles,
    // and depths.
    let facts = [2, 3, 4, 5, 46, 92, 93, 94, 95, 96, 97, 98];
    for (job, facts) in [
        ("name=job rw=read bs=4k size=1m", &facts[..]),
        ("name=job rw=write bs=64k size=4m numjobs=2 group_reporting=1", &facts[..]),
        ("name=job rw=randrw bs=4k size=1m percentile_list=50:90:99.9", &facts[..3]),
    ] {
        let theirs = ["--ioengine=null", "--filesize=1g", "--thread", "--minimal"];
        let theirs = line("fio", &theirs, job);
        for words in [["--minimal", "--terse-version=3"], ["--output-format=terse", "--eta=never"]]
        {
            let ours = [&["bench", "--target=null"], &words[..]].concat();
            let ours = line(env!("CARGO_BIN_EXE_oxblock"), &ours, job);
            assert_eq!(ours.len(), theirs.len(), "{job}: {ours:?}\n{theirs:?}");
            for (place, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                if facts.contains(&place) {
                    assert_eq!(ours, theirs, "{job}: field {place}");
                }
                let is_name = [1, 2].contains(&place);
                assert!(is_name || form(ours) == form(theirs), "{job}: {place}: {ours} {theirs}");
            }
            assert!(ours[1].starts_with("fio-3."), "readers look there for fio's version");
        }
    }
}
