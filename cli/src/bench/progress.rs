//! One line on a terminal that shows where the job stands; nothing where there is no terminal,
//! unless it is asked for.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use oxblock_bench::run::Snapshot;
use oxblock_bench::units::{format_bytes, format_count};

/// Steps of the bar.
const STEPS: u64 = 1000;
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(1);

/// When progress is shown; fio's `--eta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eta {
    Auto,
    Always,
    Never,
}

static ETA: OnceLock<Eta> = OnceLock::new();

/// Says when progress is shown: `auto`, `always` or `never`.
pub fn show(word: &str) {
    let eta = match word {
        "always" => Eta::Always,
        "never" => Eta::Never,
        _ => Eta::Auto,
    };
    let _ = ETA.set(eta);
}

/// Does some work, and shows on a line of its own where it stands, under `name`. The line goes to
/// standard error, only if that is a terminal, and is gone afterwards.
pub fn watched<T>(name: &str, work: impl FnOnce(&mut dyn FnMut(&Snapshot)) -> T) -> T {
    let eta = ETA.get().copied().unwrap_or(Eta::Auto);
    if eta == Eta::Always && !std::io::stderr().is_terminal() {
        let mut shown = Instant::now();
        return work(&mut |snapshot| {
            if shown.elapsed() >= LINE {
                shown = Instant::now();
                eprintln!("{:3.0} %  {}", snapshot.done * 100.0, words(name, snapshot));
            }
        });
    }
    let bar = if eta == Eta::Never { ProgressBar::hidden() } else { ProgressBar::new(STEPS) };
    // A template that cannot be read would leave the default one.
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let result = work(&mut |snapshot| {
        bar.set_position((snapshot.done * STEPS as f64) as u64);
        bar.set_message(words(name, snapshot));
    });
    bar.finish_and_clear();
    result
}

fn words(name: &str, snapshot: &Snapshot) -> String {
    let mut parts = vec![name.to_owned(), format!("{:.1} s", snapshot.elapsed.as_secs_f64())];
    if snapshot.checking {
        parts.push("verifying".to_owned());
    }
    for (word, rate) in ["read", "write"].into_iter().zip(snapshot.iops) {
        if rate > 0.0 {
            parts.push(format!("{word} {} IOPS", format_count(rate)));
        }
    }
    parts.push(format!("{}/s", format_bytes(snapshot.bandwidth as u64)));
    parts.join("  ")
}
