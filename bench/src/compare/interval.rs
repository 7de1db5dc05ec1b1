//! 95 % confidence intervals of means and of their ratios, by Student's t.

/// A mean, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error and degrees of freedom, where there was more than one sample.
    pub error: Option<StandardError>,
}

/// The standard error of a mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StandardError {
    /// In the mean's unit.
    pub size: f64,
    /// Degrees of freedom, 1 or more.
    pub freedom: f64,
}

impl Estimate {
    /// The mean of some samples; `None` of none.
    pub fn of(samples: &[f64]) -> Option<Estimate> {
        if samples.is_empty() {
            return None;
        }
        let count = samples.len() as f64;
        let value = samples.iter().sum::<f64>() / count;
        let square: f64 = samples.iter().map(|sample| (sample - value).powi(2)).sum();
        let error = (samples.len() > 1).then(|| StandardError {
            size: (square / (count - 1.0) / count).sqrt(),
            freedom: count - 1.0,
        });
        Some(Estimate { value, error })
    }

    /// Half of the interval's width: the mean lies within `value` plus or minus this.
    pub fn half_width(&self) -> Option<f64> {
        self.error.map(|error| error.size * t_95(error.freedom))
    }

    /// How many times `other` this is: the ratio, and from where to where it may lie. The interval
    /// is that of the logarithm (delta method), with the fewer degrees of freedom of the two.
    pub fn ratio_to(&self, other: &Estimate) -> Option<(f64, Option<(f64, f64)>)> {
        if self.value <= 0.0 || other.value <= 0.0 {
            return None;
        }
        let ratio = self.value / other.value;
        let interval = self.error.zip(other.error).map(|(mine, theirs)| {
            let relative = (mine.size / self.value).hypot(theirs.size / other.value);
            let reach = (relative * t_95(mine.freedom.min(theirs.freedom))).exp();
            (ratio / reach, ratio * reach)
        });
        Some((ratio, interval))
    }
}

/// Student's t for 95 %, two-sided.
fn t_95(freedom: f64) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let place = freedom.max(1.0) as usize - 1;
    // Beyond the table this is right to three digits.
    TABLE.get(place).copied().unwrap_or(1.96 + 2.42 / freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        // Mean 3, s = sqrt(2.5), n = 5: 2.776 * sqrt(2.5 / 5) = 1.963.
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("an estimate");
        assert_eq!(estimate.value, 3.0);
        assert!((estimate.half_width().expect("a width") - 1.963).abs() < 1e-3);
        assert_eq!(Estimate::of(&[7.0]), Some(Estimate { value: 7.0, error: None }));
        assert_eq!(Estimate::of(&[]), None);
        assert!((t_95(120.0) - 1.980).abs() < 2e-3 && (t_95(40.0) - 2.021).abs() < 2e-3);
    }

    #[test]
    fn ratios_have_intervals_where_both_sides_have() {
        let (a, b) = (Estimate::of(&[99.0, 100.0, 101.0]), Estimate::of(&[198.0, 200.0, 202.0]));
        let (ratio, interval) = b.zip(a).and_then(|(b, a)| b.ratio_to(&a)).expect("a ratio");
        let (low, high) = interval.expect("an interval");
        assert!((ratio - 2.0).abs() < 1e-9 && low < 2.0 && high > 2.0 && low > 1.9 && high < 2.1);
        let single = Estimate { value: 50.0, error: None };
        assert_eq!(a.and_then(|a| a.ratio_to(&single)), Some((2.0, None)));
        assert_eq!(single.ratio_to(&Estimate { value: 0.0, error: None }), None);
    }
}
