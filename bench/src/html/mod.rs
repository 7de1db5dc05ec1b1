//! A run as one page: plots, tables, the machine. It needs nothing but itself: no script, no font,
//! no picture from elsewhere.

mod charts;
mod plot;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::time::SystemTime;

use crate::machine;
use crate::report::{CloneReport, Report};
use crate::stats::Direction;
use crate::text::describe;
use crate::units::{format_bytes, format_count, format_ns};

const STYLE: &str = include_str!("style.css");

/// The page for some jobs that ran one after the other, and ended at `ended`.
pub fn page(reports: &[Report], ended: SystemTime) -> String {
    let title = match reports {
        [one] => format!("{}: {}", one.options.name, one.target),
        _ => format!("{} jobs", reports.len()),
    };
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>oxblock bench, {0}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n\
         <h1>oxblock bench</h1>\n<p class=\"soft\">{1} UTC</p>\n",
        escape(&title),
        escape(&crate::json::calendar_time(
            ended.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
        )),
    );
    for report in reports {
        job(&mut page, report);
    }
    page.push_str("<h2>Machine</h2>\n<div class=\"tables\"><div class=\"box\"><table>");
    for (name, found) in machine::describe() {
        row(&mut page, name, &found);
    }
    page.push_str("</table></div></div>\n</main></body></html>\n");
    page
}

fn job(page: &mut String, report: &Report) {
    let group = report.group();
    let _ = write!(
        page,
        "<section>\n<h2>{}</h2>\n<p class=\"soft\">{}{}; {}</p>\n",
        escape(&report.options.name),
        escape(&describe(&report.options)),
        if group.merged > 1 { format!(" in each of {} jobs", group.merged) } else { String::new() },
        escape(&report.target),
    );
    troubles(page, report, &group);
    if group.ios() > 0 {
        cards(page, &group);
        page.push_str("<div class=\"plots\">\n");
        page.push_str(&charts::distribution(&group));
        page.push_str(&charts::percentiles(&group));
        page.push_str(&charts::iops(report, &group));
        page.push_str(&charts::bandwidth(report, &group));
        page.push_str("</div>\n");
    }
    page.push_str("<div class=\"tables\">\n");
    if group.ios() > 0 {
        percentile_table(page, &group);
    }
    page.push_str("<div class=\"stack\">\n");
    if group.ios() > 0 {
        page.push_str(&charts::cpu(report, &group));
    }
    page.push_str("<div class=\"box\"><h3>Options</h3><table>");
    row(page, "target", &report.target);
    for (name, value) in &report.options.given {
        row(page, name, value);
    }
    row(page, "clock of latencies", crate::job::CLOCK);
    page.push_str("</table></div>\n</div>\n</div>\n</section>\n");
}

/// What a reader must know before the figures.
fn troubles(page: &mut String, report: &Report, group: &CloneReport) {
    let mut say = |text: &str| {
        let _ = writeln!(page, "<p class=\"bad\">{}</p>", escape(text));
    };
    if report.interrupted {
        say("Ended early by the user.");
    }
    if let Some(failed) = &group.fault {
        say(&format!("A {} failed: {}", failed.direction.word(), failed.fault));
    } else if group.ios() == 0 {
        say("Nothing was done.");
    }
    if let Some(verify) = &group.verify {
        match verify.bad {
            0 => {
                let _ = writeln!(page, "<p>{} blocks checked, all good.</p>", verify.checked);
            }
            bad => {
                say(&format!("{bad} of {} blocks that were checked are bad.", verify.checked));
                verify.mismatches.iter().for_each(|bad| say(&bad.to_string()));
            }
        }
        for words in verify.notes() {
            let _ = writeln!(page, "<p>{words}.</p>");
        }
    }
}

fn cards(page: &mut String, group: &CloneReport) {
    page.push_str("<div class=\"cards\">");
    let mut card = |class: &str, value: String, what: &str| {
        let (value, what) = (escape(&value), escape(what));
        let _ = write!(page, "<div class=\"card {class}\"><b>{value}</b><span>{what}</span></div>");
    };
    for way in directions(group) {
        let (stats, word) = (group.direction(way), way.word());
        let rate = format!("{}/s", format_bytes(stats.bandwidth() as u64));
        let at = |percent| format_ns(stats.latency.percentile(percent) as f64);
        card(word, format_count(stats.iops()), &format!("{word} IOPS"));
        card(word, rate, &format!("{word} bandwidth"));
        card(word, at(50.0), &format!("{word} p50 latency"));
        card(word, at(99.0), &format!("{word} p99 latency"));
    }
    page.push_str("</div>\n<p>");
    for way in directions(group) {
        let _ = write!(page, "<span class=\"key {0}\">{0}</span>&ensp;", way.word());
    }
    page.push_str("</p>\n");
}

fn percentile_table(page: &mut String, group: &CloneReport) {
    page.push_str("<div class=\"box\"><h3>Completion latency</h3><table><tr><th>percentile</th>");
    for way in directions(group) {
        let _ = write!(page, "<th class=\"n\">{}</th>", way.word());
    }
    page.push_str("</tr>");
    let mut line = |name: &str, of: &dyn Fn(Direction) -> String| {
        let _ = write!(page, "<tr><th>{}</th>", escape(name));
        for way in directions(group) {
            let _ = write!(page, "<td class=\"n\">{}</td>", escape(&of(way)));
        }
        page.push_str("</tr>");
    };
    let latency = |way| &group.direction(way).latency;
    line("least", &|way| format_ns(latency(way).min() as f64));
    for percent in [1.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999] {
        let name = format!("{percent}");
        line(&name, &|way| format_ns(latency(way).percentile(percent) as f64));
    }
    line("most", &|way| format_ns(latency(way).max() as f64));
    line("mean", &|way| format_ns(latency(way).mean()));
    line("I/Os", &|way| group.direction(way).ios.to_string());
    page.push_str("</table></div>\n");
}

fn row(page: &mut String, name: &str, value: &str) {
    let _ = write!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
}

fn directions(group: &CloneReport) -> impl Iterator<Item = Direction> + '_ {
    Direction::BOTH.into_iter().filter(|way| group.direction(*way).ios > 0)
}

/// Text that stays text in HTML, in attributes too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A time on an axis: `20 us`.
fn short_ns(ns: f64) -> String {
    short(ns, &[" ns", " us", " ms", " s"])
}

/// A count on an axis: `1.5 M`.
fn short_count(count: f64) -> String {
    short(count, &["", " k", " M", " G", " T"])
}

fn short(value: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while unit + 1 < units.len() && value >= 999.95 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = format!("{value:.3}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{}", units[unit])
}
