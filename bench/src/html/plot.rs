//! A frame with axes, and marks in it, as inline SVG.

use std::fmt::Write;

use super::escape;

/// The size of every plot in its own units; the page scales it to its column.
pub const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Labels on an axis, at the most.
const TICKS_MAX: usize = 6;

/// One axis: a range of values, linear or logarithmic, and where it is labelled.
pub struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    ticks: Vec<(f64, String)>,
    title: &'static str,
}

impl Axis {
    /// From 0 to somewhat above `high`.
    pub fn linear(title: &'static str, high: f64, label: fn(f64) -> String) -> Axis {
        let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
        let step = nice_step(high / 4.0);
        let count = (high / step).ceil();
        let ticks = (0..=count as usize).map(|n| n as f64 * step);
        let ticks = ticks.map(|value| (value, label(value))).collect();
        Axis { low: 0.0, high: count * step, is_log: false, ticks, title }
    }

    /// From 0 to `high` exactly.
    pub fn exact(title: &'static str, high: f64, label: fn(f64) -> String) -> Axis {
        let mut axis = Axis::linear(title, high, label);
        axis.high = if high > 0.0 { high } else { 1.0 };
        axis.ticks.retain(|(value, _)| *value <= axis.high * 1.001);
        axis
    }

    /// Logarithmic, from `low` to `high`, both above 0.
    pub fn log(title: &'static str, low: f64, high: f64, label: fn(f64) -> String) -> Axis {
        let low = low.max(1e-9);
        // A range of nothing would have no place for marks.
        let (low, high) = if high < low * 1.2 { (low / 1.2, low * 1.2) } else { (low, high) };
        let ticks = log_ticks(low, high).into_iter().map(|value| (value, label(value))).collect();
        Axis { low, high, is_log: true, ticks, title }
    }

    /// From 0 to `high`, labelled where the caller says.
    pub fn labelled(title: &'static str, high: f64, ticks: Vec<(f64, String)>) -> Axis {
        Axis { low: 0.0, high: high.max(1e-9), is_log: false, ticks, title }
    }

    /// Where `value` lies, 0 to 1; what is outside lies on the edge.
    fn place(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// A plot: axes, and marks that lie in them.
pub struct Plot {
    x: Axis,
    y: Axis,
    marks: String,
}

impl Plot {
    /// An empty frame.
    pub fn new(x: Axis, y: Axis) -> Plot {
        Plot { x, y, marks: String::new() }
    }

    /// A line through `points` in the colour of `class`, and a tint below it if `filled`.
    pub fn line(&mut self, class: &str, points: &[(f64, f64)], filled: bool) {
        let Some((first, last)) = points.first().zip(points.last()) else { return };
        let mut path = String::new();
        for (n, &(x, y)) in points.iter().enumerate() {
            let word = if n == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{word}{:.1} {:.1}", self.x_at(x), self.y_at(y));
        }
        if filled {
            let (bottom, from, to) = (HEIGHT - BOTTOM, self.x_at(first.0), self.x_at(last.0));
            let _ = write!(
                self.marks,
                "<path class=\"tint {class}\" d=\"{path}L{to:.1} {bottom}L{from:.1} {bottom}Z\"/>"
            );
        }
        let _ = write!(self.marks, "<path class=\"mark line {class}\" d=\"{path}\"/>");
    }

    /// A bar from the x-axis up, with words that a pointer resting on it brings up.
    pub fn bar(&mut self, class: &str, from: f64, to: f64, height: f64, words: &str) {
        let (left, right, top) = (self.x_at(from), self.x_at(to), self.y_at(height));
        let _ = write!(
            self.marks,
            "<rect class=\"mark bar {class}\" x=\"{left:.2}\" y=\"{top:.2}\" width=\"{:.2}\" \
             height=\"{:.2}\"><title>{}</title></rect>",
            (right - left - 0.4).max(0.6),
            (HEIGHT - BOTTOM - top).max(0.0),
            escape(words),
        );
    }

    /// A dot with words beside it, to the left.
    pub fn dot(&mut self, class: &str, x: f64, y: f64, words: &str) {
        let (x, y) = (self.x_at(x), self.y_at(y));
        let _ = write!(
            self.marks,
            "<circle class=\"mark dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\
             <text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            x - 6.0,
            (y - 5.0).max(TOP + 8.0),
            escape(words),
        );
    }

    /// The whole as SVG; `name` is what it shows, for those who do not see it.
    pub fn svg(&self, name: &str) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(name)
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in &self.y.ticks {
            let y = self.y_at(*value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                escape(label),
            );
        }
        for (value, label) in &self.x.ticks {
            let x = self.x_at(*value);
            // A label at the right edge would hang over it.
            let anchor = if x > right - 16.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<line class=\"tick\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{}\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 4.0,
                bottom + 17.0,
                escape(label),
            );
        }
        svg.push_str(&self.marks);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>\
             <text class=\"title\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text></svg>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(self.x.title),
        );
        svg
    }

    fn x_at(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y_at(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    power * steps.into_iter().find(|step| power * step >= rough * 0.999).unwrap_or(10.0)
}

/// Labels of a logarithmic axis: powers of ten; between them 2 and 5 where there is room; evenly
/// spaced where the range is short.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let within = |factors: &[f64], every: i32| -> Vec<f64> {
        let powers = (first..=last).filter(|power| power % every == 0);
        let values = powers.flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p)));
        values.filter(|v| (low * 0.999..=high * 1.001).contains(v)).collect()
    };
    let fine = within(&[1.0, 2.0, 5.0], 1);
    if fine.len() < 3 {
        let step = nice_step((high - low) / 4.0);
        let from = (low / step).ceil() as u64;
        return (from..).map(|n| n as f64 * step).take_while(|v| *v <= high).take(8).collect();
    }
    for candidate in [fine, within(&[1.0], 1), within(&[1.0], 2)] {
        if candidate.len() <= TICKS_MAX {
            return candidate;
        }
    }
    within(&[1.0], 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_labelled_within_their_range() {
        for (low, high) in [(20.0, 90.0), (1.0, 1e9), (1000.0, 1001.0), (5.0, 5.0), (30.0, 45.0)] {
            let axis = Axis::log("t", low, high, |v| v.to_string());
            assert!((2..=8).contains(&axis.ticks.len()), "{low} {high}: {:?}", axis.ticks);
            for (value, _) in &axis.ticks {
                assert!(*value >= axis.low * 0.99 && *value <= axis.high * 1.01, "{value}");
            }
        }
        for high in [0.0, 1e-12, 3.0, 999.0, 1.7e7, f64::NAN, f64::INFINITY] {
            let axis = Axis::linear("t", high, |v| v.to_string());
            assert!((3..=7).contains(&axis.ticks.len()), "{high}: {:?}", axis.ticks);
        }
    }

    #[test]
    fn marks_stay_inside_the_frame() {
        let axis = || Axis::linear("t", 10.0, |v| v.to_string());
        let mut plot = Plot::new(axis(), axis());
        plot.line("read", &[(-5.0, -5.0), (f64::NAN, 3.0), (1e300, 1e300)], true);
        assert!(!plot.marks.contains("NaN") && !plot.marks.contains("inf"), "{}", plot.marks);
        assert!(plot.marks.contains(&format!("L{:.1} {TOP:.1}", WIDTH - RIGHT)), "{}", plot.marks);
    }
}
