//! Patterns that can be verified: the same bytes from both programs, each of which verifies the
//! other's.

use std::path::Path;
use std::process::Command;

/// Patterns, and block sizes.
const PATTERNS: &[(&str, &str)] = &[
    ("0xdeadbeef", "--bs=4k"),
    ("0xabc", "--bs=4k"),
    ("170", "--bs=4k"),
    ("123456789", "--bs=4k"),
    ("-1", "--bs=4k"),
    ("12-7", "--bs=4k"),
    ("\"abcd\"", "--bs=4k"),
    ("0x0102\"x\"", "--bs=1k"),
    ("%o", "--bs=4k"),
    ("0xff%o\"abcd\"-12", "--bs=16k --verify_interval=4k"),
];

#[test]
fn patterns_are_fios_and_each_program_verifies_the_others() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: fio is not installed (apt-get install fio)");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [theirs, ours] = ["theirs", "ours"].map(|name| folder.path().join(name));
    let run = |program: &str, file: &Path, job: &str, pattern: &str, good: bool| {
        let mut command = Command::new(program);
        if program != "fio" {
            command.arg("bench");
        }
        command.arg("--name=x").arg(format!("--filename={}", file.display()));
        command.args(job.split(' ')).arg(format!("--verify_pattern={pattern}"));
        let output = command.current_dir(folder.path()).output().expect("it runs");
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), good, "{program} {job} {pattern}: {out}");
    };
    let own = env!("CARGO_BIN_EXE_oxblock");
    for (pattern, sizes) in PATTERNS {
        let job = format!("--verify=pattern --size=64k {sizes}");
        for (program, file) in [("fio", &theirs), (own, &ours)] {
            run(program, file, &format!("--rw=write --do_verify=0 {job}"), pattern, true);
        }
        let same = std::fs::read(&theirs).ok() == std::fs::read(&ours).ok();
        assert!(same, "{pattern} {sizes}: not the same bytes");
    }
    // Of the last one each verifies the other's, and both tell of a bad block in the same way.
    let (pattern, sizes) = PATTERNS[PATTERNS.len() - 1];
    let job = format!("--verify=pattern --size=64k --rw=read {sizes}");
    for (program, file) in [(own, &theirs), ("fio", &ours)] {
        run(program, file, &job, pattern, true);
        std::fs::write(file, [0xee; 65_536]).expect("a write");
        run(program, file, &job, pattern, false);
    }
}
