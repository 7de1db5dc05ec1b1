//! How an NVMe controller is driven, in the words that follow its name, `?KEY=VALUE&KEY=VALUE`.

use std::time::Duration;

use oxblock_drivers::nvme::{Coalescing, InterruptMode, NvmeOptions};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Error, ErrorKind};

/// What a target may say of its controller's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeTuning {
    /// Whether queue pairs wait for interrupts: `poll`, `adaptive` or `interrupt`.
    interrupt_mode: InterruptMode,
    /// Completions for one interrupt at most.
    aggregation_threshold: Option<u16>,
    /// How long the controller may keep an interrupt back, µs.
    aggregation_time_us: Option<u32>,
}

impl NvmeTuning {
    /// Splits the name of a target from what it says of the driver.
    ///
    /// Errors: an option or value that there is none of.
    pub fn split(word: &str) -> Result<(&str, NvmeTuning), Error> {
        let mut tuning = NvmeTuning::default();
        let Some((name, options)) = word.rsplit_once('?').filter(|(_, said)| said.contains('='))
        else {
            return Ok((word, tuning));
        };
        for option in options.split('&') {
            tuning.set(option).map_err(|error| error.context(format!("target `{word}`")))?;
        }
        Ok((name, tuning))
    }

    fn set(&mut self, option: &str) -> Result<(), Error> {
        self.try_set(option).ok_or_else(|| {
            let text = format!(
                "`{option}`; options are interrupt-mode=poll, =adaptive or =interrupt, \
                 aggregation-threshold=COMPLETIONS (1 to 256) and aggregation-time-us=TIME (0 to \
                 25500)"
            );
            Error::new(ErrorKind::Invalid, text)
        })
    }

    fn try_set(&mut self, option: &str) -> Option<()> {
        let (key, value) = option.split_once('=')?;
        match key {
            "interrupt-mode" => {
                let known = InterruptMode::NAMES.iter().find(|(name, _)| *name == value)?;
                self.interrupt_mode = known.1;
            }
            "aggregation-threshold" => {
                let threshold = value.parse().ok().filter(|count| (1..=256).contains(count))?;
                self.aggregation_threshold = Some(threshold);
            }
            "aggregation-time-us" => {
                let time_us = value.parse().ok().filter(|time_us| *time_us <= 25_500)?;
                self.aggregation_time_us = Some(time_us);
            }
            _ => return None,
        }
        Some(())
    }

    /// Adds what it says to the options of a node.
    pub fn add_to(self, options: &mut NodeOptions) {
        let mode = InterruptMode::NAMES.iter().find(|(_, mode)| *mode == self.interrupt_mode);
        if let Some((name, _)) = mode.filter(|(_, mode)| *mode != InterruptMode::default()) {
            options.set("interrupt-mode", *name);
        }
        if let Some(threshold) = self.aggregation_threshold {
            options.set("aggregation-threshold", u64::from(threshold));
        }
        if let Some(time_us) = self.aggregation_time_us {
            options.set("aggregation-time-us", u64::from(time_us));
        }
    }

    /// Options of the driver that say the same.
    pub fn apply(self, options: NvmeOptions) -> NvmeOptions {
        let (threshold, time_us) = (self.aggregation_threshold, self.aggregation_time_us);
        let asked = threshold.is_some() || time_us.is_some();
        let coalescing = Coalescing {
            completions: threshold.unwrap_or(256),
            time: Duration::from_micros(time_us.unwrap_or(100).into()),
        };
        NvmeOptions {
            interrupt_mode: self.interrupt_mode,
            coalescing: asked.then_some(coalescing),
            ..options
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_behind_a_name_say_how_it_is_driven() {
        let options = |word| {
            let (name, tuning) = NvmeTuning::split(word).expect(word);
            let options = tuning.apply(NvmeOptions::default());
            (name, options.interrupt_mode, options.coalescing)
        };
        assert_eq!(options("soft"), ("soft", InterruptMode::Adaptive, None));
        assert_eq!(options("soft:/a?b"), ("soft:/a?b", InterruptMode::Adaptive, None));
        assert_eq!(options("a?interrupt-mode=poll"), ("a", InterruptMode::Poll, None));
        let gathered = |completions, time_us| {
            Some(Coalescing { completions, time: Duration::from_micros(time_us) })
        };
        let word = "a?aggregation-threshold=8&interrupt-mode=interrupt&aggregation-time-us=300";
        assert_eq!(options(word), ("a", InterruptMode::Interrupt, gathered(8, 300)));
        let word = "a?aggregation-threshold=8";
        assert_eq!(options(word), ("a", InterruptMode::Adaptive, gathered(8, 100)));
        for bad in [
            "a?interrupt-mode=never",
            "a?mode=poll",
            "a?interrupt-mode=poll&",
            "a?aggregation-threshold=0",
            "a?aggregation-time-us=25501",
        ] {
            let error = NvmeTuning::split(bad).expect_err(bad).to_string();
            assert!(error.contains("interrupt-mode=poll, =adaptive"), "{error}");
        }
    }

    #[test]
    fn a_node_says_the_same() {
        let word = "a?interrupt-mode=interrupt&aggregation-time-us=300";
        let (_, tuning) = NvmeTuning::split(word).expect(word);
        let mut options = NodeOptions::new();
        tuning.add_to(&mut options);
        let said = options.to_json().expect("options");
        assert_eq!(said, r#"{"aggregation-time-us": 300, "interrupt-mode": "interrupt"}"#);
    }
}
