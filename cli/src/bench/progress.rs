//! One line on a terminal that shows where the job stands; nothing where there is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use oxblock_bench::run::Snapshot;
use oxblock_bench::units::{format_bytes, format_count};

/// Steps of the bar.
const STEPS: u64 = 1000;

/// The line. It goes to standard error, and only if that is a terminal.
pub struct Display(ProgressBar);

impl Display {
    /// A line that is not shown yet.
    pub fn new() -> Display {
        let bar = ProgressBar::new(STEPS);
        // A template that cannot be read would leave the default one.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Display(bar)
    }

    /// Shows where the job called `name` stands.
    pub fn show(&self, name: &str, snapshot: &Snapshot) {
        let [read, write] = snapshot.iops;
        let mut parts = vec![name.to_owned(), format!("{:.1} s", snapshot.elapsed.as_secs_f64())];
        if snapshot.checking {
            parts.push("verifying".to_owned());
        }
        for (word, rate) in [("read", read), ("write", write)] {
            if rate > 0.0 {
                parts.push(format!("{word} {} IOPS", format_count(rate)));
            }
        }
        parts.push(format!("{}/s", format_bytes(snapshot.bandwidth as u64)));
        self.0.set_position((snapshot.done * STEPS as f64) as u64);
        self.0.set_message(parts.join("  "));
    }

    /// Takes the line away, so that a report can be printed.
    pub fn clear(&self) {
        self.0.finish_and_clear();
        self.0.reset();
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
