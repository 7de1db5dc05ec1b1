//! The steps of a job with several files: each has places of its own, and a service says whose
//! turn it is.

use super::{Generator, Piece, Zipf, gauss, unit};
use crate::options::{Distribution, JobOptions, Plan, Service};
use crate::pattern::{Prng, mix64};

/// Gives pieces of several files without end. Replays from its seed; allocates only when built.
#[derive(Clone, Debug)]
pub(crate) struct Several {
    files: Vec<File>,
    turn: Turn,
    random: Prng,
    at: usize,
    /// I/Os before the next file is chosen, and how many of them are left.
    every: u32,
    left: u32,
    /// A piece that is trimmed is also written, and done with only then.
    pairs: bool,
}

#[derive(Clone, Debug)]
struct File {
    generator: Generator,
    /// From the start of the first file's range to that of its own.
    shift: u64,
    /// Length of its range, and how much of it this pass has still to do, bytes.
    range: u64,
    left: u64,
}

/// How the next file is chosen.
#[derive(Clone, Debug)]
enum Turn {
    RoundRobin,
    Sequential,
    Uniform,
    Zipf(Zipf),
    /// The exponent of a uniform number.
    Pareto(f64),
    /// The deviation as a share of the files.
    Normal(f64),
}

impl Several {
    /// `plans` and `starts` are those of the files, one each; at least one.
    pub fn new(options: &JobOptions, plans: &[(Plan, u64)], seed: u64) -> Several {
        let step = u64::from(options.least_block_size());
        let first = plans.first().map_or(0, |(_, start)| *start);
        let file = |(number, (plan, start)): (u64, &(Plan, u64))| {
            let generator = Generator::new(options, plan, mix64(seed ^ number));
            let range = plan.range - plan.range % step;
            File { generator, shift: start.wrapping_sub(first), range, left: range }
        };
        let files: Vec<File> = (0..).zip(plans).map(file).collect();
        let (every, last) = (options.files.switch_after, files.len() - 1);
        let (turn, at) = match &options.files.service {
            Service::RoundRobin => (Turn::RoundRobin, last),
            Service::Sequential => (Turn::Sequential, 0),
            Service::Drawn(Distribution::Zipf(theta)) => {
                (Turn::Zipf(Zipf::new(files.len() as u64, *theta)), 0)
            }
            Service::Drawn(Distribution::Pareto(h)) => (Turn::Pareto(h.ln() / (1.0 - h).ln()), 0),
            Service::Drawn(Distribution::Normal(percent)) => (Turn::Normal(percent / 100.0), 0),
            Service::Drawn(_) => (Turn::Uniform, 0),
        };
        Several {
            files,
            turn,
            random: Prng::new(mix64(seed ^ 3)),
            at,
            every,
            left: 0,
            pairs: options.rw.trims_then_writes(),
        }
    }

    pub fn next(&mut self) -> Piece {
        if self.left == 0 {
            self.left = self.every;
            self.at = self.choose();
        }
        self.left -= 1;
        if self.files[self.at].left == 0 {
            self.at = self.unfinished();
        }
        let file = &mut self.files[self.at];
        let piece = file.generator.next();
        if !(self.pairs && piece.way == 2) {
            file.left = file.left.saturating_sub(u64::from(piece.len));
        }
        let offset = piece.offset.wrapping_add(file.shift);
        Piece { file: self.at as u16, offset, ..piece }
    }

    fn choose(&mut self) -> usize {
        let (count, random) = (self.files.len(), &mut self.random);
        let drawn = match &self.turn {
            Turn::Sequential => return self.at,
            Turn::RoundRobin => return (self.at + 1) % count,
            Turn::Uniform => random.below(count as u64) as usize,
            Turn::Zipf(zipf) => zipf.draw(random) as usize,
            Turn::Pareto(power) => (unit(random).powf(*power) * count as f64) as usize,
            Turn::Normal(deviation) => {
                // What falls off an end counts to it.
                ((0.5 + deviation * gauss(random)).max(0.0) * count as f64) as usize
            }
        };
        drawn.min(count - 1)
    }

    /// The next file with something left to do; once there is none, all begin anew.
    fn unfinished(&mut self) -> usize {
        let count = self.files.len();
        let next = (1..count).map(|step| (self.at + step) % count);
        let found = next.into_iter().find(|&file| self.files[file].left > 0);
        found.unwrap_or_else(|| {
            self.files.iter_mut().for_each(|file| file.left = file.range);
            (self.at + 1) % count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of four files of 64 KiB each, as file and offset.
    fn pieces(words: &[(&str, &str)], count: usize) -> Vec<(u16, u64)> {
        let mut options = JobOptions::default();
        for (name, value) in [("ioengine", "null"), ("nrfiles", "4")].iter().chain(words) {
            options.set(name, value).expect("a good word");
        }
        let plans = options.plan_files(&[(64 << 10, 512); 4]).expect("a plan");
        let plans: Vec<(Plan, u64)> = plans.into_iter().map(|plan| (plan, 0)).collect();
        let mut several = Several::new(&options, &plans, 7);
        let next = |_| {
            let piece = several.next();
            assert!(piece.offset + u64::from(piece.len) <= 64 << 10);
            (piece.file, piece.offset)
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn a_pass_does_each_block_of_each_file_once_whatever_the_service() {
        for service in ["roundrobin", "roundrobin:3", "sequential", "random", "zipf:1.1", "gauss:9"]
        {
            for rw in ["read", "randwrite"] {
                let mut all = pieces(&[("file_service_type", service), ("rw", rw)], 128);
                let second = all.split_off(64);
                for mut pass in [all, second] {
                    pass.sort_unstable();
                    pass.dedup();
                    assert_eq!(pass.len(), 64, "{service} {rw}");
                }
            }
        }
    }

    #[test]
    fn services_order_the_files() {
        let files = |service, count| -> Vec<u16> {
            pieces(&[("file_service_type", service)], count).iter().map(|p| p.0).collect()
        };
        assert_eq!(files("roundrobin", 6), [0, 1, 2, 3, 0, 1]);
        assert_eq!(files("roundrobin:2", 6), [0, 0, 1, 1, 2, 2]);
        let sequential = files("sequential", 64);
        assert!(sequential.is_sorted() && sequential.ends_with(&[3]));
        let random = files("random", 32);
        assert!(!random.is_sorted() && (0..4).all(|file| random.contains(&file)));
        let zipf = files("zipf:2", 16);
        let of = |file| zipf.iter().filter(|&&f| f == file).count();
        assert!(of(0) > of(3), "{zipf:?}");
    }
}
