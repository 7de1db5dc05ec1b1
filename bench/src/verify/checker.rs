//! Checks blocks against what a job must have written, and names what is wrong with them.

use super::block::{HEADER_LEN, Header, Recipe, Write};
use super::finding::{Finding, Holding, Mismatch};
use super::log::Expected;
use super::method::Method;
use crate::report::{Doubts, VerifyReport};

/// Checks the blocks that one clone reads.
#[derive(Debug)]
pub struct Checker {
    recipe: Recipe,
    stamp: Stamp,
    /// What the target writes whole or not at all, bytes.
    atomic: usize,
    checked: u64,
    bad: u64,
    raced: u64,
    doubts: Doubts,
    suspects: Vec<Suspect>,
}

/// The stamp that blocks should carry.
#[derive(Debug)]
enum Stamp {
    Known(u64),
    /// An earlier run wrote them: the stamp that most of them carry is the right one.
    Learning(Vec<Tally>),
}

/// Whole blocks with one stamp.
#[derive(Debug)]
struct Tally {
    stamp: u64,
    blocks: u64,
    /// Where the first of them are, and their lengths.
    first: Vec<(At, usize)>,
}

/// Where a block belongs.
#[derive(Clone, Copy, Debug)]
struct At {
    file: u16,
    offset: u64,
}

/// A block that failed, kept until the stamp is known.
#[derive(Debug)]
struct Suspect {
    at: At,
    expected: Expected,
    block: Box<[u8]>,
}

/// What one block turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Of one whose last write was not seen to end: what it holds.
    Old,
    New,
    Torn,
    Unknown,
    Bad,
}

/// Mismatches that are described in full; the others are counted.
const DESCRIBED: usize = 16;
/// Runs that are told apart while the stamp is learned; a further one counts as none.
const STAMPS: usize = 8;
/// What a torn block is looked at in pieces of, bytes.
const SECTOR: usize = 512;
/// Writes that may have begun unseen and are compared with; there is more than one only where
/// several failed in a row.
const CANDIDATES: u32 = 8;

impl Checker {
    /// A checker for the blocks of `recipe`, from one clone. `stamp` is `None` when an earlier run
    /// wrote them. The target writes `atomic` bytes whole or not at all.
    pub fn new(recipe: Recipe, stamp: Option<u64>, atomic: u32) -> Checker {
        let stamp = stamp.map_or(Stamp::Learning(Vec::with_capacity(STAMPS)), Stamp::Known);
        Checker {
            recipe,
            stamp,
            atomic: atomic.max(1) as usize,
            checked: 0,
            bad: 0,
            raced: 0,
            doubts: Doubts::default(),
            suspects: Vec::with_capacity(DESCRIBED),
        }
    }

    /// Is `block` what was written at `offset` of a file? If not, it is kept for the report. The
    /// header is put at the front of the block.
    pub fn check(&mut self, file: u16, offset: u64, expected: Expected, block: &mut [u8]) -> bool {
        let at = At { file, offset };
        self.checked += 1;
        if self.recipe.method == Method::Null {
            return true;
        }
        self.recipe.swap_header(block);
        let verdict = self.judge(at, expected, block);
        match verdict {
            Verdict::Good => {}
            Verdict::Old => self.doubts.old += 1,
            Verdict::New => self.doubts.new += 1,
            Verdict::Torn => self.doubts.torn += 1,
            Verdict::Unknown => self.doubts.unknown += 1,
            Verdict::Bad => {
                self.bad += 1;
                if self.suspects.len() < DESCRIBED {
                    self.suspects.push(Suspect { at, expected, block: block.into() });
                }
            }
        }
        verdict != Verdict::Bad
    }

    /// Counts a block that was written while it was read.
    pub fn note_race(&mut self) {
        self.raced += 1;
    }

    /// What was found.
    pub fn report(mut self) -> VerifyReport {
        let mut mismatches = self.settle_stamp();
        mismatches.extend(self.suspects.iter().map(|suspect| self.describe(suspect)));
        mismatches.sort_by_key(|mismatch| (mismatch.file, mismatch.offset));
        mismatches.truncate(DESCRIBED);
        VerifyReport {
            checked: self.checked,
            bad: self.bad,
            raced: self.raced,
            doubts: self.doubts,
            mismatches,
        }
    }

    /// Decides on the stamp; whole blocks with another one are stale.
    fn settle_stamp(&mut self) -> Vec<Mismatch> {
        let Stamp::Learning(tallies) = &mut self.stamp else { return Vec::new() };
        tallies.sort_by_key(|tally| std::cmp::Reverse(tally.blocks));
        let mut tallies = std::mem::take(tallies).into_iter();
        if let Some(most) = tallies.next() {
            self.stamp = Stamp::Known(most.stamp);
        }
        let mut stale = Vec::new();
        for tally in tallies {
            self.bad += tally.blocks;
            let mismatch = |&(At { file, offset }, length): &(At, usize)| {
                let finding = Finding::Stale;
                Mismatch { file, offset, length, finding }
            };
            stale.extend(tally.first.iter().map(mismatch));
        }
        stale
    }

    fn judge(&mut self, at: At, expected: Expected, block: &[u8]) -> Verdict {
        match expected {
            Expected::Any => self.judge_whole(at, None, block),
            Expected::Write(generation) => self.judge_whole(at, Some(generation), block),
            Expected::Zeroes => match block.iter().all(|&byte| byte == 0) {
                true => Verdict::Good,
                false => Verdict::Bad,
            },
            Expected::OneOf { known, least, most, zeroes, anything } => {
                let wanted = Doubted { known, least, most, zeroes, anything };
                self.judge_doubted(at, wanted, block)
            }
        }
    }

    fn judge_whole(&mut self, at: At, generation: Option<u32>, block: &[u8]) -> Verdict {
        if self.recipe.method == Method::Pattern {
            let pattern = self.recipe.pattern.as_ref();
            return match pattern.is_some_and(|pattern| pattern.is_in(at.offset, 0, block)) {
                true => Verdict::Good,
                false => Verdict::Bad,
            };
        }
        let header = Header::read(block);
        let good = self.is_own(&header, at, block)
            && generation.is_none_or(|generation| header.generation == generation)
            && (generation.is_none() || header.file == at.file)
            && self.recipe.is_payload_good(&header, block)
            && self.has_stamp(&header, at, block.len());
        if good { Verdict::Good } else { Verdict::Bad }
    }

    /// Does a header say what belongs there, but for which write it is of?
    fn is_own(&self, header: &Header, at: At, block: &[u8]) -> bool {
        header.is_intact()
            && header.length as usize == block.len()
            && header.offset == at.offset
            && header.seed == self.recipe.seed
            && header.method == self.recipe.method.number()
    }

    fn has_stamp(&mut self, header: &Header, place: At, length: usize) -> bool {
        match &mut self.stamp {
            Stamp::Known(stamp) => *stamp == header.stamp,
            Stamp::Learning(tallies) => {
                let at = tallies.iter().position(|tally| tally.stamp == header.stamp);
                let Some(at) = at.or_else(|| {
                    let first = Vec::with_capacity(DESCRIBED);
                    let new = Tally { stamp: header.stamp, blocks: 0, first };
                    (tallies.len() < STAMPS).then(|| tallies.push(new))?;
                    Some(tallies.len() - 1)
                }) else {
                    return false;
                };
                tallies[at].blocks += 1;
                if tallies[at].first.len() < DESCRIBED {
                    tallies[at].first.push((place, length));
                }
                true
            }
        }
    }

    /// A block whose last write was not seen to end may be old or new, or torn between pieces
    /// that the target writes whole.
    fn judge_doubted(&mut self, at: At, wanted: Doubted, block: &[u8]) -> Verdict {
        let is_zero = block.iter().all(|&byte| byte == 0);
        if self.recipe.method == Method::Pattern {
            let good = self.judge_whole(at, None, block) == Verdict::Good;
            match (good, is_zero && wanted.zeroes) {
                // Every write writes the same.
                (true, _) => return Verdict::New,
                (_, true) => return Verdict::New,
                _ => {}
            }
        } else {
            let header = Header::read(block);
            if self.is_own(&header, at, block)
                && header.file == at.file
                && self.recipe.is_payload_good(&header, block)
                && (wanted.known == Some(header.generation) || wanted.is_new(header.generation))
                && self.has_stamp(&header, at, block.len())
            {
                let is_old = wanted.known == Some(header.generation);
                return if is_old { Verdict::Old } else { Verdict::New };
            }
            if is_zero && wanted.zeroes {
                return Verdict::New;
            }
        }
        if wanted.anything {
            return Verdict::Unknown;
        }
        match self.is_mixed(at, wanted, block) {
            true => Verdict::Torn,
            false => Verdict::Bad,
        }
    }

    /// Is every atomic piece of a block that of one of the writes that may have been?
    fn is_mixed(&self, place: At, wanted: Doubted, block: &[u8]) -> bool {
        if !self.recipe.method.has_payload() {
            // What else it holds is not known.
            return false;
        }
        let mut contents: Vec<Vec<u8>> = wanted
            .generations()
            .map(|generation| self.content(place, generation, block.len()))
            .collect();
        if wanted.zeroes {
            contents.push(vec![0; block.len()]);
        }
        let mut pieces = block.chunks(self.atomic).enumerate();
        pieces.all(|(at, piece)| {
            let mut same =
                contents.iter().filter_map(|content| content.chunks(self.atomic).nth(at));
            same.any(|expected| expected == piece)
        })
    }

    /// What the write of a place makes of a block, with the header at the front.
    fn content(&self, at: At, generation: u32, length: usize) -> Vec<u8> {
        let stamp = match self.stamp {
            Stamp::Known(stamp) => stamp,
            Stamp::Learning(_) => 0,
        };
        let mut content = vec![0; length];
        let At { file, offset } = at;
        self.recipe.fill(Write { file, offset, stamp, generation }, &mut content);
        self.recipe.swap_header(&mut content);
        content
    }

    fn describe(&self, suspect: &Suspect) -> Mismatch {
        let Suspect { at, expected, block } = suspect;
        let finding = match self.recipe.method.has_header() {
            true => self.displacement(*at, *expected, block),
            false => self.misplaced_pattern(at.offset, block),
        };
        let finding = finding.unwrap_or_else(|| self.damage(*at, *expected, block));
        Mismatch { file: at.file, offset: at.offset, length: block.len(), finding }
    }

    /// A whole block that is not the one wanted: whose is it?
    fn displacement(&self, at: At, expected: Expected, block: &[u8]) -> Option<Finding> {
        let header = Header::read(block);
        if !header.is_intact() {
            return None;
        }
        if header.length as usize != block.len() {
            return Some(Finding::OtherLength { length: header.length });
        }
        if header.method != self.recipe.method.number() {
            let found = Method::of_number(header.method).map_or("", Method::word);
            return Some(Finding::OtherMethod { found, wanted: self.recipe.method.word() });
        }
        if !self.recipe.is_payload_good(&header, block) {
            return None;
        }
        if expected == Expected::Zeroes {
            let first = block.iter().position(|&byte| byte != 0).unwrap_or(0);
            return Some(Finding::Untrimmed { first: at.offset + first as u64 });
        }
        let is_stale = matches!(self.stamp, Stamp::Known(stamp) if stamp != header.stamp);
        let (seed, wanted) = (header.seed, self.recipe.seed);
        Some(if seed != wanted {
            Finding::OtherSeed { seed, wanted }
        } else if header.file != at.file && expected != Expected::Any {
            Finding::OtherFile { file: header.file, from: header.offset }
        } else if header.offset != at.offset {
            Finding::Misplaced { from: header.offset }
        } else if is_stale {
            Finding::Stale
        } else {
            displaced_in_time(header.generation, expected)
        })
    }

    /// A block of the pattern that belongs elsewhere, where the pattern has offsets.
    fn misplaced_pattern(&self, offset: u64, block: &[u8]) -> Option<Finding> {
        let pattern = self.recipe.pattern.as_ref()?;
        let from = pattern.offset_in(block).filter(|&from| from != offset)?;
        pattern.is_in(from, 0, block).then_some(Finding::Misplaced { from })
    }

    /// A block that is not whole: how far from it?
    fn damage(&self, at: At, expected: Expected, block: &[u8]) -> Finding {
        let header = Header::read(block);
        let generation = match expected {
            Expected::Any if header.is_intact() => header.generation,
            Expected::Any => 1,
            Expected::Write(generation) => generation,
            Expected::OneOf { most, .. } => most,
            Expected::Zeroes => {
                return compare(at.offset, &vec![0; block.len()], None, block, self);
            }
        };
        // Which of its own files a job means that only reads is not known.
        let at = match expected {
            Expected::Any if header.is_intact() => At { file: header.file, ..at },
            _ => at,
        };
        let content = self.content(at, generation, block.len());
        let before = (generation > 1).then(|| self.content(at, generation - 1, block.len()));
        compare(at.offset, &content, before.as_deref(), block, self)
    }

    /// Where in the block on the target a byte stands that is at `at` with the header in front.
    fn place_of(&self, at: usize) -> usize {
        let moved = self.recipe.header_at;
        if moved == 0 || !self.recipe.method.has_header() {
            at
        } else if at < HEADER_LEN {
            at + moved
        } else if (moved..moved + HEADER_LEN).contains(&at) {
            at - moved
        } else {
            at
        }
    }
}

/// See [`Expected::OneOf`].
#[derive(Clone, Copy, Debug)]
struct Doubted {
    known: Option<u32>,
    least: u32,
    most: u32,
    zeroes: bool,
    anything: bool,
}

impl Doubted {
    /// Had this write begun, and was not known to be done?
    fn is_new(&self, generation: u32) -> bool {
        if self.least <= self.most {
            (self.least + 1..=self.most).contains(&generation)
        } else {
            // The count wrapped around.
            generation > self.least || (1..=self.most).contains(&generation)
        }
    }

    fn generations(&self) -> impl Iterator<Item = u32> {
        let begun = (0..CANDIDATES).map_while(|back| self.most.checked_sub(back));
        begun.filter(|&generation| self.is_new(generation)).chain(self.known)
    }
}

/// A whole block of its own place, but of the wrong write.
fn displaced_in_time(found: u32, expected: Expected) -> Finding {
    let (least, most) = match expected {
        Expected::Write(wanted) => (wanted, wanted),
        Expected::OneOf { least, most, .. } => (least, most),
        Expected::Any | Expected::Zeroes => (1, 1),
    };
    match found > most {
        true => Finding::Newer { found, known: most },
        false => Finding::Overwritten { found, wanted: least },
    }
}

/// What differs between a block and what it should be; `before` is what it was before that.
fn compare(
    offset: u64,
    expected: &[u8],
    before: Option<&[u8]>,
    block: &[u8],
    checker: &Checker,
) -> Finding {
    // Where the payload is nobody's matter, the header alone is compared.
    let len = match checker.recipe.method.has_payload() {
        true => block.len(),
        false => block.len().min(HEADER_LEN),
    };
    let constant = |bytes: &[u8]| bytes.first().copied().filter(|b| bytes.iter().all(|c| c == b));
    if let Some(byte) = constant(block).filter(|_| constant(expected).is_none_or(|b| b != block[0]))
    {
        return Finding::Constant { byte };
    }
    let differs = |&at: &usize| expected.get(at) != block.get(at);
    let differing = (0..len).filter(differs).count();
    if let Some(torn) = tear(offset, expected, before, block, checker) {
        return torn;
    }
    if differing > len / 2 {
        return Finding::Foreign;
    }
    // The header may stand elsewhere, so the first on the target is not the first here.
    let at = (0..len).filter(differs).min_by_key(|&at| checker.place_of(at)).unwrap_or(0);
    Finding::Damaged {
        first: offset + checker.place_of(at) as u64,
        expected: expected.get(at).copied().unwrap_or(0),
        found: block.get(at).copied().unwrap_or(0),
        differing,
    }
}

/// Are some sectors of a block right and all others something else throughout?
fn tear(
    offset: u64,
    expected: &[u8],
    before: Option<&[u8]>,
    block: &[u8],
    checker: &Checker,
) -> Option<Finding> {
    if !checker.recipe.method.has_payload() {
        return None;
    }
    // As they stand on the target.
    let placed = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        checker.recipe.swap_header(&mut bytes);
        bytes
    };
    let (expected, block, before) = (placed(expected), placed(block), before.map(placed));
    let sectors = block.chunks(SECTOR).zip(expected.chunks(SECTOR)).enumerate();
    let (mut first, mut wrong, mut of) = (None, 0, 0);
    let (mut earlier, mut zeroes) = (true, true);
    for (at, (found, right)) in sectors {
        of += 1;
        if found == right {
            continue;
        }
        let old = before.as_deref().and_then(|before| before.chunks(SECTOR).nth(at));
        let is_old = old == Some(found);
        let is_zero = found.iter().all(|&byte| byte == 0);
        let differing = found.iter().zip(right).filter(|(found, right)| found != right).count();
        if !is_old && !is_zero && differing <= found.len() / 2 {
            return None;
        }
        (earlier, zeroes) = (earlier && is_old, zeroes && is_zero);
        first.get_or_insert(offset + (at * SECTOR) as u64);
        wrong += 1;
    }
    let holding = match (earlier, zeroes) {
        (true, _) => Holding::Earlier,
        (_, true) => Holding::Zeroes,
        _ => Holding::Other,
    };
    let first = first.filter(|_| wrong < of)?;
    Some(Finding::Torn { first, wrong, of, holding })
}
