//! What a guest says of its tests, over a serial line of its own.
//!
//! A line is `begin NAME`, then the test's output with `| ` before each line, then `passed NAME`
//! or `failed NAME`; at last comes `end`. Few tests that pass have output.

use std::collections::BTreeMap;

/// The first words of lines.
pub const BEGIN: &str = "begin ";
pub const OUTPUT: &str = "| ";
pub const PASSED: &str = "passed ";
pub const FAILED: &str = "failed ";
pub const END: &str = "end";

/// What is known of one boot.
#[derive(Debug, Default)]
pub struct Report {
    /// The output of tests that ended; an error is that of one that failed.
    ended: BTreeMap<String, Result<String, String>>,
    /// The test that has begun and not ended, with its output so far.
    running: Option<(String, String)>,
    /// The guest came to its end.
    pub complete: bool,
    /// What became of the guest, where it did not come to its end.
    pub failure: String,
}

impl Report {
    /// Reads what a guest has said so far.
    pub fn read(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines().map(|line| line.trim_end_matches('\r')) {
            report.line(line);
        }
        report
    }

    /// Of a guest that did not come to run.
    pub fn of_nothing(failure: String) -> Report {
        Report { failure, ..Report::default() }
    }

    /// A test came to its end.
    pub fn has_ended(&self, name: &str) -> bool {
        self.ended.contains_key(name)
    }

    /// With what a second boot, for the other tests, came to.
    pub fn and_then(self, second: Report) -> Report {
        Report { ended: self.ended.into_iter().chain(second.ended).collect(), ..second }
    }

    /// The output of a test that passed.
    ///
    /// Errors: that of one that failed, or why there is none.
    pub fn outcome(&self, name: &str) -> Result<String, String> {
        if let Some(outcome) = self.ended.get(name) {
            return outcome.clone();
        }
        match &self.running {
            Some((running, output)) if running == name => {
                Err(format!("{output}the guest ended in this test: {}", self.failure))
            }
            _ => Err(format!("the guest did not come to this test: {}", self.failure)),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(BEGIN) {
            self.running = Some((name.to_owned(), String::new()));
        } else if let Some(text) = line.strip_prefix(OUTPUT) {
            if let Some((_, output)) = &mut self.running {
                output.push_str(text);
                output.push('\n');
            }
        } else if let Some(name) = line.strip_prefix(PASSED) {
            let output = self.take_output();
            self.ended.insert(name.to_owned(), Ok(output));
        } else if let Some(name) = line.strip_prefix(FAILED) {
            let output = self.take_output();
            self.ended.insert(name.to_owned(), Err(output));
        } else if line == END {
            self.complete = true;
        }
    }

    fn take_output(&mut self) -> String {
        self.running.take().map(|(_, output)| output).unwrap_or_default()
    }
}
