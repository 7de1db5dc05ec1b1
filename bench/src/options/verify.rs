//! What a job says about checking what it writes.

use std::path::PathBuf;
use std::sync::Arc;

use super::{BlockSizes, Contents, JobOptions, OptionError, Plan, wrong};
use crate::units::common_divisor;
use crate::verify::{HEADER_LEN, Identity, Method, Pattern, Recipe};

/// The options of verification. [`Default`] is fio's default, but for the state: it is saved only
/// when asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How blocks are checked; `None`: not at all.
    pub method: Option<Method>,
    /// What is written behind headers, or instead of them.
    pub pattern: Option<Arc<Pattern>>,
    /// Bytes for each header; `None`: as many as all block sizes have in common.
    pub interval: Option<u32>,
    /// Where in each interval the header stands, bytes.
    pub offset: u32,
    /// Read back and check after writing.
    pub after: bool,
    /// Only read and check what an earlier run wrote with the same options.
    pub only: bool,
    /// Stop at the first mismatch.
    pub fatal: bool,
    /// Check after each so many writes; 0: only at the end.
    pub backlog: u32,
    /// How many blocks are checked then; `None`: as many as were written.
    pub backlog_batch: Option<u32>,
    /// Keep the log of what was written in a file.
    pub state_save: bool,
    /// Take the log from the file that an earlier run left.
    pub state_load: bool,
    /// That file; `None`: named after the job.
    pub state: Option<PathBuf>,
    /// Trimmed blocks must read as zeroes; else they may hold anything.
    pub trims_to_zero: bool,
}

impl Default for VerifyOptions {
    fn default() -> VerifyOptions {
        VerifyOptions {
            method: None,
            pattern: None,
            interval: None,
            offset: 0,
            after: true,
            only: false,
            fatal: false,
            backlog: 0,
            backlog_batch: None,
            state_save: false,
            state_load: false,
            state: None,
            trims_to_zero: true,
        }
    }
}

impl VerifyOptions {
    /// Is anything to be checked?
    pub fn is_on(&self) -> bool {
        self.method.is_some()
    }
}

impl JobOptions {
    /// Does the job write, or trim, blocks that it keeps a log of?
    pub fn writes_checkable(&self) -> bool {
        self.verify.is_on() && self.rw.writes() && !self.verify.only
    }

    /// Does the job, once it has written, read its blocks back to check them?
    pub fn reads_back(&self) -> bool {
        self.verify.after && self.writes_checkable()
    }

    /// The file of the log of one of the job's files, counted from 0: in the current folder and
    /// named as fio's, unless the job says otherwise.
    pub fn verify_state_path(&self, file: usize) -> PathBuf {
        let name = self.name.replace('/', ".");
        match &self.verify.state {
            None => PathBuf::from(format!("local-{name}-{file}-verify.state")),
            Some(path) if file == 0 => path.clone(),
            Some(path) => PathBuf::from(format!("{}.{file}", path.display())),
        }
    }

    /// What the blocks of the job are made from; `None` if it is not verified.
    pub(crate) fn recipe(&self) -> Option<Recipe> {
        let method = self.verify.method?;
        let (pattern, header_at) = (self.verify.pattern.clone(), self.verify.offset as usize);
        Some(Recipe { method, seed: self.seed, pattern, header_at })
    }

    /// Bytes for each header, in all files of the job.
    pub(crate) fn verify_unit_of(&self, plans: &[Plan]) -> u32 {
        let units = plans.iter().map(|plan| self.verify_unit(plan.start));
        units.reduce(common_divisor).unwrap_or(self.block_size)
    }

    /// Whose the log of one file is, in which each header has `unit` bytes.
    ///
    /// Errors: a range of more intervals than fit into memory's addresses.
    pub(crate) fn identity(
        &self,
        recipe: &Recipe,
        plan: &Plan,
        unit: u32,
        stamp: u64,
    ) -> Result<Identity, OptionError> {
        let others = plan.stride.saturating_mul(u64::from(self.num_jobs.max(1)) - 1);
        let count = plan.range.saturating_add(others) / u64::from(unit);
        let count = usize::try_from(count).ok().filter(|&count| count < 1 << 48);
        let count = count.ok_or_else(|| wrong("size", "too large to be verified".to_owned()))?;
        Ok(Identity { recipe: recipe.clone(), stamp, start: plan.start, unit, count })
    }

    /// Bytes for each header: what the places and lengths of all blocks are multiples of.
    fn verify_unit(&self, start: u64) -> u32 {
        let sizes = self.shape.sizes.iter().flatten();
        let common = sizes.map(BlockSizes::common).fold(self.block_size, common_divisor);
        let aligned = self.shape.align.iter().flatten().copied().fold(common, common_divisor);
        // A place is a multiple of the unit as what it leaves over is.
        let places = [start, self.offset_increment].map(|place| place % u64::from(aligned.max(1)));
        let unit = places.into_iter().fold(aligned, |all, rest| common_divisor(rest as u32, all));
        // It parts headers: what has none is checked by whole blocks, as fio does it.
        let has_headers = self.verify.method.is_none_or(Method::has_header);
        let interval = self.verify.interval.filter(|_| has_headers);
        interval.map_or(unit, |interval| interval.min(unit))
    }

    pub(super) fn check_verify(&self) -> Result<(), OptionError> {
        let Some(method) = self.verify.method else { return self.check_unverified() };
        let start = match self.offset {
            crate::units::Size::Bytes(bytes) => bytes,
            crate::units::Size::Percent(_) => 0,
        };
        self.check_interval(start)?;
        if method.needs_pattern() && self.verify.pattern.is_none() {
            let text = format!("verify={} needs one, such as 0xdeadbeef or %o", method.word());
            return Err(wrong("verify_pattern", text));
        }
        if self.contents != Contents::Random {
            let text = "a verified job writes contents of its own: leave zero_buffers and \
                        buffer_* out, and use verify_pattern";
            return Err(wrong("verify", text.to_owned()));
        }
        self.check_state()
    }

    fn check_interval(&self, start: u64) -> Result<(), OptionError> {
        let unit = self.verify_unit(start);
        let option = if self.verify.interval == Some(unit) { "verify_interval" } else { "bs" };
        if unit < 512 {
            let text = format!(
                "what is verified has at least 512 bytes; the sizes and places of this job's \
                 blocks have {unit} in common"
            );
            return Err(wrong(option, text));
        }
        let whole = JobOptions {
            verify: VerifyOptions { interval: None, ..self.verify.clone() },
            ..self.clone()
        };
        let blocks = whole.verify_unit(start);
        if !blocks.is_multiple_of(unit) {
            let text = format!("{unit} does not divide the job's blocks, multiples of {blocks}");
            return Err(wrong("verify_interval", text));
        }
        let header = HEADER_LEN as u32;
        let last = unit - header;
        if self.verify.offset != 0 && !(header..=last).contains(&self.verify.offset) {
            let text =
                format!("a header of {header} bytes stands at 0, or from {header} to {last}");
            return Err(wrong("verify_offset", text));
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), OptionError> {
        let verify = &self.verify;
        if verify.state_load && self.writes_checkable() {
            let text = "goes with verify_only, or with a job that reads: this one would write";
            return Err(wrong("verify_state_load", text.to_owned()));
        }
        if verify.state_save && !self.writes_checkable() {
            return Err(wrong("verify_state_save", "this job writes nothing".to_owned()));
        }
        let replays = verify.only && self.rw.writes() && !verify.state_load;
        if replays && self.is_time_based() {
            let text = "how far a run by time got is only in its state: let it save one \
                        (verify_state_save), and give verify_state_load here";
            return Err(wrong("verify_only", text.to_owned()));
        }
        if replays && !self.rand_repeat && !self.is_given("randseed") {
            let text = "randrepeat=0 gives each run another seed: give the randseed of the run";
            return Err(wrong("verify_only", text.to_owned()));
        }
        Ok(())
    }

    fn check_unverified(&self) -> Result<(), OptionError> {
        let needs = |option: &str| Err(wrong(option, "needs verify, such as crc32c".to_owned()));
        match &self.verify {
            verify if verify.only => needs("verify_only"),
            verify if verify.state_save => needs("verify_state_save"),
            verify if verify.state_load => needs("verify_state_load"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(words: &[(&str, &str)]) -> JobOptions {
        let mut job = JobOptions::default();
        for (name, value) in words {
            job.set(name, value).expect("a good word");
        }
        job
    }

    #[test]
    fn units_are_what_all_blocks_are_multiples_of() {
        for (words, unit) in [
            (&[("bs", "8k")][..], 8192),
            (&[("bs", "4k,64k")], 4096),
            (&[("bsrange", "1k-64k")], 1024),
            (&[("bssplit", "4k/50:6k/50")], 2048),
            (&[("bs", "8k"), ("blockalign", "512")], 512),
            (&[("bs", "64k"), ("verify_interval", "4k")], 4096),
            (&[("bs", "4k"), ("verify_interval", "64k")], 4096),
            (&[("bs", "64k"), ("numjobs", "2"), ("offset_increment", "1028k")], 4096),
        ] {
            assert_eq!(job(words).verify_unit(0), unit, "{words:?}");
        }
        assert_eq!(job(&[("bs", "64k")]).verify_unit(1 << 15), 1 << 15);
    }

    #[test]
    fn what_cannot_be_verified_is_refused_with_the_option() {
        let checked = |words: &[(&str, &str)]| {
            let all = [&[("verify", "crc32c"), ("rw", "randwrite")][..], words].concat();
            job(&all).check_verify().map_err(|error| error.to_string())
        };
        for good in [
            &[][..],
            &[("verify", "pattern"), ("verify_pattern", "%o")],
            &[("norandommap", "1"), ("loops", "3"), ("random_distribution", "zipf:1.1")],
            &[("time_based", "1"), ("runtime", "1")],
            &[("verify_only", "1"), ("runtime", "1")],
            &[("verify_only", "1"), ("verify_state_load", "1"), ("time_based", "1")],
            &[("verify_offset", "3984")],
        ] {
            assert_eq!(checked(good), Ok(()), "{good:?}");
        }
        for (bad, option) in [
            (&[("bs", "256")][..], "bs"),
            (&[("bssplit", "4k/50:4352/50")], "bs"),
            (&[("verify_interval", "3k")], "verify_interval"),
            (&[("verify_interval", "256")], "verify_interval"),
            (&[("verify_offset", "100")], "verify_offset"),
            (&[("verify_offset", "3985")], "verify_offset"),
            (&[("verify", "pattern")], "verify_pattern"),
            (&[("zero_buffers", "1")], "verify"),
            (&[("verify_state_load", "1")], "verify_state_load"),
            (&[("verify_only", "1"), ("verify_state_save", "1")], "verify_state_save"),
            (&[("verify_only", "1"), ("time_based", "1")], "verify_only"),
            (&[("verify_only", "1"), ("randrepeat", "0")], "verify_only"),
            (&[("verify", "0"), ("verify_only", "1")], "verify_only"),
            (&[("verify", "0"), ("verify_state_save", "1")], "verify_state_save"),
        ] {
            let error = checked(bad).expect_err("refused");
            assert!(error.starts_with(&format!("option `{option}`")), "{bad:?}: {error}");
        }
    }

    #[test]
    fn the_state_is_named_as_fios() {
        let path = |words, file| job(words).verify_state_path(file);
        assert_eq!(path(&[("name", "a/b")], 0), PathBuf::from("local-a.b-0-verify.state"));
        assert_eq!(path(&[("name", "a/b")], 2), PathBuf::from("local-a.b-2-verify.state"));
        assert_eq!(path(&[("verify_state", "/x/y")], 0), PathBuf::from("/x/y"));
        assert_eq!(path(&[("verify_state", "/x/y")], 1), PathBuf::from("/x/y.1"));
    }
}
