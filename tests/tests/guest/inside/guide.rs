//! hugepages.md, followed to the letter by a user who may use sudo, on a machine with nothing set
//! up.

use std::fs;

use super::machine::{Said, run, sh};
use super::{Start, Test};

const PAGE: &str = "/hugepages.md";
const SECTION: &str = "## From a bare server to a device in user space\n";
/// What logging in reads the limit from.
const LIMITS: &str = "/etc/security/limits.d";

pub fn add(tests: &mut Vec<Test>) {
    let bare = Start { hugepages: 0, ..Start::default() };
    tests.push(Test::new("guide::hugepages_md_leads_to_a_bench_on_a_device", follow).start(bare));
}

fn follow() {
    run(&format!("mkdir -p {LIMITS}"));
    // A test before this one may have loaded them.
    sh("rmmod vfio-pci vfio-pci-core vfio_iommu_type1 vfio");
    let page = fs::read_to_string(PAGE).expect("the page");
    let steps = steps(&page);
    assert!(steps.len() > 12, "{steps:?}");
    for step in steps {
        let said = step.run().success();
        println!("$ {}\n{said}", step.line);
        if let Some((state, name)) = step.finding {
            let wanted = format!("{state:<8} {name}: ");
            assert!(said.lines().any(|line| line.starts_with(&wanted)), "no `{wanted}`");
        }
    }
}

/// A line of the page.
#[derive(Debug)]
struct Step<'a> {
    line: &'a str,
    /// The state and the name of what doctor finds.
    finding: Option<(&'a str, &'a str)>,
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let (_, section) = page.split_once(SECTION).expect("the section");
    let section = section.split("\n## ").next().unwrap_or(section);
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(Step::read).collect()
}

impl<'a> Step<'a> {
    fn read(line: &'a str) -> Step<'a> {
        match line.split_once("# ") {
            Some((line, finding)) => Step { line: line.trim(), finding: finding.split_once(": ") },
            None => Step { line, finding: None },
        }
    }

    /// As root what says sudo, the rest as alice, who has logged in since the last one.
    fn run(&self) -> Said {
        let limit = match fs::read_to_string(format!("{LIMITS}/oxblock.conf")) {
            Ok(text) if text.trim() == "alice - memlock unlimited" => "unlimited",
            _ => "8192",
        };
        let line = self.line;
        match line.contains("sudo ") {
            true => sh(&format!("export USER=alice; {line}")),
            false => sh(&format!("ulimit -l {limit}; su alice -c '{line}'")),
        }
    }
}
