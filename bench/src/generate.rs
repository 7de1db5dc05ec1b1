//! The steps of a job whose blocks are not all of one size, or not all alike.

use crate::options::{BlockSizes, Distribution, JobOptions, Plan};
use crate::pattern::{Permutation, Prng, mix64};
use several::Several;

mod several;

/// What to do next: `way` is 0 to read, 1 to write, 2 to trim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which of the job's files.
    pub file: u16,
    pub way: usize,
    pub offset: u64,
    pub len: u32,
}

/// The pieces of a job with one file or several.
#[derive(Clone, Debug)]
pub(crate) enum Pieces {
    One(Box<Generator>),
    Several(Several),
}

impl Pieces {
    /// `files` are the plan of each and where its range starts.
    pub fn new(options: &JobOptions, files: &[(Plan, u64)], seed: u64) -> Pieces {
        match files {
            [(plan, _)] => Pieces::One(Box::new(Generator::new(options, plan, seed))),
            several => Pieces::Several(Several::new(options, several, seed)),
        }
    }

    #[inline]
    pub fn next(&mut self) -> Piece {
        match self {
            Pieces::One(generator) => generator.next(),
            Pieces::Several(several) => several.next(),
        }
    }
}

/// How much a clone is to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    bytes: u64,
    ios: u64,
}

impl Budget {
    pub fn new(options: &JobOptions, plan: &Plan) -> Budget {
        let ios = match options.shape.sizes {
            None => plan.limit,
            Some(_) => options.shape.number_ios.unwrap_or(u64::MAX),
        };
        // What is trimmed is written too: as in fio, both are beyond what was asked for.
        let times = if options.rw.trims_then_writes() { 2 } else { 1 };
        Budget { bytes: plan.bytes.saturating_mul(times), ios: ios.saturating_mul(times) }
    }

    #[inline]
    pub fn is_spent(&self) -> bool {
        self.bytes == 0 || self.ios == 0
    }

    /// Takes one I/O off; what is without end stays so.
    #[inline]
    pub fn spend(&mut self, len: u32) {
        if self.bytes != u64::MAX {
            self.bytes = self.bytes.saturating_sub(u64::from(len));
        }
        if self.ios != u64::MAX {
            self.ios = self.ios.saturating_sub(1);
        }
    }
}

/// Gives pieces without end. Replays from its seed; allocates only when built.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    random: Prng,
    seed: u64,
    pass: u64,
    /// Length of the range, bytes.
    range: u64,
    /// 0 to read, 1 to write, 2 to trim; of a mix, read below the threshold of 2^32.
    way: usize,
    mix: Option<u64>,
    sizes: [Sizes; 3],
    align: [u64; 3],
    /// Random pieces of 2^32, by direction.
    random_share: [u64; 3],
    /// Where sequential pieces go on, by direction.
    next: [u64; 3],
    /// Bytes left out between sequential pieces.
    hole: u64,
    run: Run,
    places: Places,
    /// Each piece is trimmed, and then written.
    pairs: bool,
    /// Offset and length of what was trimmed and is to be written.
    trimmed: Option<(u64, u32)>,
}

/// How many pieces there are for each random place.
#[derive(Clone, Debug)]
struct Run {
    length: u32,
    is_identical: bool,
    /// Pieces until the next place is drawn.
    left: u32,
    /// Where the last piece of each direction was; none before the first.
    last: [Option<u64>; 3],
}

#[derive(Clone, Debug)]
enum Sizes {
    One(u32),
    /// Least size, and how many of its multiples there are.
    Range(u32, u64),
    /// Sizes, each with the end of its share of 2^32.
    Split(Vec<(u32, u64)>),
}

/// How random places are drawn.
#[derive(Clone, Debug)]
enum Places {
    /// Each block once, where all are of one size.
    Once(Permutation),
    Uniform,
    Zipf(Zipf),
    /// The exponent of a uniform number.
    Pareto(f64),
    /// The deviation as a share of the range.
    Normal(f64),
    /// The end of each zone's share of 2^32, and the zone's start and length as shares.
    Zoned(Vec<(u64, f64, f64)>),
}

const WHOLE: f64 = (1u64 << 32) as f64;

impl Generator {
    pub fn new(options: &JobOptions, plan: &Plan, seed: u64) -> Generator {
        let shape = &options.shape;
        let sizes = [0, 1, 2].map(|way: usize| match &shape.sizes {
            Some(sizes) => Sizes::new(&sizes[way]),
            None => Sizes::One(options.block_size),
        });
        let align = match shape.align {
            Some(align) => align.map(u64::from),
            None => [0, 1, 2].map(|way: usize| u64::from(sizes[way].least())),
        };
        let share = |percent: u8| match options.rw.is_random() {
            true => (u64::from(percent) << 32) / 100,
            false => 0,
        };
        let range = plan.range;
        Generator {
            random: Prng::new(mix64(!seed)),
            seed,
            pass: 0,
            range,
            way: if options.rw.trims() { 2 } else { usize::from(options.rw.writes()) },
            mix: options.rw.is_mixed().then(|| (u64::from(options.read_percent) << 32) / 100),
            places: Places::new(options, range, (range / align[0].max(1)).max(1), seed),
            random_share: shape.random_percent.map(share),
            next: [0; 3],
            hole: shape.hole,
            run: Run {
                length: shape.run,
                is_identical: shape.run_is_identical,
                left: 0,
                last: [None; 3],
            },
            sizes,
            align,
            pairs: options.rw.trims_then_writes(),
            trimmed: None,
        }
    }

    #[inline]
    pub fn next(&mut self) -> Piece {
        if !self.pairs {
            return self.draw();
        }
        match self.trimmed.take() {
            Some((offset, len)) => Piece { file: 0, way: 1, offset, len },
            None => {
                let piece = self.draw();
                self.trimmed = Some((piece.offset, piece.len));
                piece
            }
        }
    }

    #[inline]
    fn draw(&mut self) -> Piece {
        let way = match self.mix {
            None => self.way,
            Some(threshold) => usize::from(self.random.next_u64() >> 32 >= threshold),
        };
        let len = self.sizes[way].draw(&mut self.random);
        let share = self.random_share[way];
        if share < 1 << 32 && self.random.next_u64() >> 32 >= share {
            return self.sequential(way, len);
        }
        let align = self.align[way];
        // The last places are those where the piece still fits.
        let places = (self.range.saturating_sub(u64::from(len))) / align + 1;
        if self.run.length > 1
            && let Some(piece) = self.go_on(way, len, (places - 1) * align)
        {
            return piece;
        }
        let place = self.place(places).min(places - 1);
        let offset = place * align;
        self.run.last[way] = Some(offset);
        self.next[way] = offset + u64::from(len);
        Piece { file: 0, way, offset, len }
    }

    /// The next piece of a run, which begins no later than at `last`; none where a new one begins.
    fn go_on(&mut self, way: usize, len: u32, last: u64) -> Option<Piece> {
        let run = &mut self.run;
        if run.left == 0 {
            run.left = run.length - 1;
            return None;
        }
        run.left -= 1;
        // Both directions of a mix share a run; one that has had no place yet draws its own.
        let offset = run.last[way]?;
        if run.is_identical {
            return Some(Piece { file: 0, way, offset: offset.min(last), len });
        }
        Some(self.sequential(way, len))
    }

    /// Goes on where the last piece of the direction ended; the range's last one may be shorter.
    fn sequential(&mut self, way: usize, len: u32) -> Piece {
        let least = u64::from(self.sizes[way].least());
        let mut offset = self.next[way];
        if offset > 0 && self.hole > 0 {
            offset = offset.saturating_add(self.hole);
        }
        if offset.saturating_add(least) > self.range {
            offset = 0;
        }
        let room = (self.range - offset) / least * least;
        let len = u64::from(len).min(room.max(least));
        self.next[way] = offset + len;
        Piece { file: 0, way, offset, len: len as u32 }
    }

    #[inline]
    fn place(&mut self, places: u64) -> u64 {
        let random = &mut self.random;
        match &mut self.places {
            Places::Once(order) => match order.next_block() {
                Some(place) => place,
                None => {
                    self.pass += 1;
                    *order = Permutation::new(places, mix64(self.seed.wrapping_add(self.pass)));
                    order.next_block().unwrap_or(0)
                }
            },
            Places::Uniform => random.below(places),
            Places::Zipf(zipf) => scatter(zipf.draw(random), self.seed, places),
            Places::Pareto(power) => {
                let rank = unit(random).powf(*power) * (places - 1) as f64;
                scatter(rank as u64, self.seed, places)
            }
            Places::Normal(deviation) => loop {
                let at = 0.5 + *deviation * gauss(random);
                if (0.0..1.0).contains(&at) {
                    break (at * places as f64) as u64;
                }
            },
            Places::Zoned(zones) => {
                let drawn = random.next_u64() >> 32;
                let zone = zones.iter().find(|zone| drawn < zone.0).or(zones.last());
                let (_, start, share) = zone.copied().unwrap_or((0, 0.0, 1.0));
                ((start + share * unit(random)) * places as f64) as u64
            }
        }
    }
}

impl Sizes {
    fn new(sizes: &BlockSizes) -> Sizes {
        match sizes {
            BlockSizes::Range(low, high) if low == high => Sizes::One(*low),
            BlockSizes::Range(low, high) => Sizes::Range(*low, u64::from(high / low)),
            BlockSizes::Split(list) => {
                let mut end = 0.0;
                let mut add = |&(size, share): &(u32, f64)| {
                    end += share;
                    (size, (end / 100.0 * WHOLE).round() as u64)
                };
                Sizes::Split(list.iter().map(&mut add).collect())
            }
        }
    }

    fn least(&self) -> u32 {
        match self {
            Sizes::One(size) | Sizes::Range(size, _) => *size,
            Sizes::Split(list) => list.iter().map(|&(size, _)| size).min().unwrap_or(1),
        }
    }

    #[inline]
    fn draw(&self, random: &mut Prng) -> u32 {
        match self {
            Sizes::One(size) => *size,
            Sizes::Range(low, count) => low * (1 + random.below(*count) as u32),
            Sizes::Split(list) => {
                let drawn = random.next_u64() >> 32;
                list.iter().find(|part| drawn < part.1).or(list.last()).map_or(1, |part| part.0)
            }
        }
    }
}

impl Places {
    fn new(options: &JobOptions, range: u64, count: u64, seed: u64) -> Places {
        let shape = &options.shape;
        let one_size = shape.sizes.is_none() && shape.align.is_none();
        match &shape.distribution {
            Distribution::Random if one_size && !options.no_random_map => {
                Places::Once(Permutation::new(count, seed))
            }
            Distribution::Random => Places::Uniform,
            Distribution::Zipf(theta) => Places::Zipf(Zipf::new(count, *theta)),
            Distribution::Pareto(h) => Places::Pareto(h.ln() / (1.0 - h).ln()),
            Distribution::Normal(percent) => Places::Normal(percent / 100.0),
            Distribution::Zoned(zones) => {
                let shares = zones.iter().map(|&(percent, share)| (percent, share / 100.0));
                Places::zoned(shares)
            }
            Distribution::ZonedAbs(zones) => {
                let mut left = range;
                let shares = zones.iter().map_while(|&(percent, size)| {
                    let size = size.min(left);
                    left -= size;
                    (size > 0).then_some((percent, size as f64 / range as f64))
                });
                Places::zoned(shares)
            }
        }
    }

    /// Zones one after the other, each with its I/Os in a hundred and its share of the range.
    fn zoned(zones: impl Iterator<Item = (f64, f64)>) -> Places {
        let (mut ios, mut start) = (0.0, 0.0);
        let mut all: Vec<(f64, f64, f64)> = Vec::new();
        for (percent, share) in zones {
            ios += percent;
            all.push((ios, start, share));
            start += share;
        }
        // Where zones past the end were left out, the others have their I/Os.
        let end = |upto: f64| (upto / ios * WHOLE).round() as u64;
        Places::Zoned(all.into_iter().map(|(upto, at, share)| (end(upto), at, share)).collect())
    }
}

/// Puts ranks in places that have nothing to do with each other, always the same.
fn scatter(rank: u64, seed: u64, places: u64) -> u64 {
    let word = mix64(rank.wrapping_add(mix64(seed)));
    ((u128::from(word) * u128::from(places)) >> 64) as u64
}

/// A number above 0 and up to 1.
pub(crate) fn unit(random: &mut Prng) -> f64 {
    ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// A number of the normal distribution around 0 with deviation 1 (Box and Muller).
fn gauss(random: &mut Prng) -> f64 {
    let (radius, angle) = (unit(random), unit(random));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// Ranks 0, 1, ... drawn as often as (rank + 1) to the power of minus theta, by
/// rejection-inversion (Hörmann and Derflinger 1996): constant time and memory for any count.
#[derive(Clone, Debug)]
struct Zipf {
    count: f64,
    theta: f64,
    low: f64,
    high: f64,
    squeeze: f64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Zipf {
        let mut zipf = Zipf { count: count as f64, theta, low: 0.0, high: 0.0, squeeze: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(zipf.count + 0.5);
        zipf.squeeze = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    /// The integral of the weight from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < 1e-9 { x.ln() } else { (power * x.ln()).exp_m1() / power }
    }

    fn inverse(&self, area: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < 1e-9 {
            return area.exp();
        }
        ((area * power).max(-1.0).ln_1p() / power).exp()
    }

    fn draw(&self, random: &mut Prng) -> u64 {
        loop {
            let area = self.high + (1.0 - unit(random)) * (self.low - self.high);
            let x = self.inverse(area);
            let rank = x.round().clamp(1.0, self.count);
            if rank - x <= self.squeeze || area >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(words: &[(&str, &str)]) -> Generator {
        let mut options = JobOptions::default();
        for (name, value) in words {
            options.set(name, value).expect("a good word");
        }
        let plan = options.plan(1 << 20, 512).expect("a job that fits");
        Generator::new(&options, &plan, 7)
    }

    fn pieces(words: &[(&str, &str)], count: usize) -> Vec<Piece> {
        let mut generator = generator(words);
        let pieces: Vec<Piece> = (0..count).map(|_| generator.next()).collect();
        for piece in &pieces {
            assert!(piece.offset + u64::from(piece.len) <= 1 << 20, "{words:?}: {piece:?}");
            assert!(piece.offset.is_multiple_of(512) && piece.len.is_multiple_of(512));
            assert!(piece.len > 0);
        }
        pieces
    }

    #[test]
    fn splits_are_drawn_by_their_shares() {
        let words = [("rw", "randread"), ("bssplit", "4k/10:64k/50:32k/40")];
        let pieces = pieces(&words, 100_000);
        for (size, share) in [(4096, 10_000), (65_536, 50_000), (32_768, 40_000)] {
            let count = pieces.iter().filter(|piece| piece.len == size).count() as i64;
            assert!((count - share).abs() < 900, "{size}: {count}");
        }
    }

    #[test]
    fn ranges_and_triples_hold_for_their_direction() {
        let words = [("rw", "randrw"), ("bsrange", "512-4k,8k-16k")];
        let pieces = pieces(&words, 20_000);
        for way in [0, 1] {
            let lens = || pieces.iter().filter(|p| p.way == way).map(|p| p.len);
            let (low, high) = if way == 0 { (512, 4096) } else { (8192, 16_384) };
            assert_eq!((lens().min(), lens().max()), (Some(low), Some(high)));
        }
    }

    #[test]
    fn sequential_pieces_join_and_end_at_the_end() {
        for sizes in [("bsrange", "512-9k"), ("bssplit", "1k/50:64k/50"), ("bs", "8k,4k")] {
            let mut next = 0;
            let mut passes = 0;
            for piece in pieces(&[("rw", "write"), sizes], 5000) {
                if piece.offset == 0 {
                    assert!(next == 0 || next > (1 << 20) - 4096, "{next}");
                    passes += 1;
                } else {
                    assert_eq!(piece.offset, next);
                }
                next = piece.offset + u64::from(piece.len);
            }
            assert!(passes > 1);
        }
    }

    #[test]
    fn a_random_place_has_a_run_of_pieces() {
        for (order, step) in [("sequential", 4096), ("identical", 0)] {
            let words = [("rw", "randread:8"), ("rw_sequencer", order), ("norandommap", "1")];
            let pieces = pieces(&words, 8000);
            let mut starts = Vec::new();
            for run in pieces.chunks(8) {
                starts.push(run[0].offset);
                for pair in run.windows(2) {
                    // At the end of the range a run goes on at its beginning.
                    let next = pair[0].offset + step;
                    assert_eq!(pair[1].offset, if next < 1 << 20 { next } else { 0 }, "{order}");
                }
            }
            starts.sort_unstable();
            starts.dedup();
            assert!(starts.len() > 200, "{order}: {} of 256 blocks begin a run", starts.len());
        }
        // Reads and writes of a mix go on each where it was itself.
        let mixed = pieces(&[("rw", "randrw:4"), ("bs", "4k,8k"), ("norandommap", "1")], 8000);
        for way in [0, 1] {
            let own: Vec<Piece> = mixed.iter().copied().filter(|piece| piece.way == way).collect();
            let joins = own.windows(2).filter(|w| w[0].offset + u64::from(w[0].len) == w[1].offset);
            assert!((2500..3500).contains(&joins.count()), "three of four go on");
        }
    }

    #[test]
    fn sequential_pieces_leave_holes() {
        let offsets = |mode| pieces(&[("rw", mode), ("number_ios", "9")], 70);
        for (number, piece) in offsets("write:12k").iter().enumerate() {
            assert_eq!(piece.offset, (number as u64 * 16_384) % (1 << 20));
        }
    }

    #[test]
    fn one_size_at_random_touches_each_block_once() {
        let mut offsets: Vec<u64> = pieces(&[("rw", "randwrite"), ("number_ios", "9")], 256)
            .iter()
            .map(|piece| piece.offset / 4096)
            .collect();
        offsets.sort_unstable();
        assert!(offsets.into_iter().eq(0..256));
    }

    /// How often the blocks were drawn, the most frequent first.
    fn frequencies(word: &str) -> Vec<usize> {
        let words = [("rw", "randread"), ("bs", "512"), ("random_distribution", word)];
        let mut counts = vec![0; 2048];
        for piece in pieces(&words, 200_000) {
            counts[(piece.offset / 512) as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn zipf_falls_off_as_it_should() {
        // Of 2048 ranks with theta 1 the first has 1 / H(2048) = 12.2 % of the draws and the
        // second half of that; places that collide may add a little.
        let counts = frequencies("zipf:1.0");
        assert!((22_500..30_000).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[1] < counts[0] * 2 / 3, "{} {}", counts[0], counts[1]);
        for theta in ["zipf:0.3", "zipf:1.2", "zipf:3", "zipf:90"] {
            assert!(frequencies(theta)[0] > 100, "{theta}");
        }
    }

    #[test]
    fn pareto_gives_the_share_to_the_few() {
        let counts = frequencies("pareto:0.2");
        let top: usize = counts[..2048 / 5].iter().sum();
        assert!((140_000..185_000).contains(&top), "{top}");
    }

    #[test]
    fn normal_and_zones_stay_where_they_belong() {
        let words = |word| [("rw", "randread"), ("bs", "512"), ("random_distribution", word)];
        let middle = (1 << 18)..(3 << 18);
        let normal = pieces(&words("normal:10"), 50_000);
        let inside = normal.iter().filter(|piece| middle.contains(&piece.offset)).count();
        assert!(inside > 49_000, "{inside}");
        let zoned = pieces(&words("zoned:60/10:30/20:10/70"), 100_000);
        let first = zoned.iter().filter(|piece| piece.offset < (1 << 20) / 10).count();
        assert!((59_000..61_000).contains(&first), "{first}");
    }

    /// Sequential pieces went on where the last sequential one had ended, and not where the random
    /// one between them had, as fio's do (7639 of 10240).
    #[test]
    fn percentage_random_mixes_orders() {
        let words = [("rw", "randread"), ("percentage_random", "25"), ("norandommap", "1")];
        let pieces = pieces(&words, 10_000);
        let follows = |w: &[Piece]| w[1].offset == w[0].offset + 4096;
        let sequential = pieces.windows(2).filter(|w| follows(w)).count();
        assert!((7_000..8_000).contains(&sequential), "{sequential}");
    }
}
