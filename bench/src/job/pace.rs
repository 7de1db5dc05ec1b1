//! When the I/Os of a job are due, and when it rests.

use crate::generate::{Piece, unit};
use crate::options::Shape;
use crate::pattern::{Prng, mix64};

/// When an I/O was due; `None` where its direction has no rate.
pub(super) type Due = Option<u64>;

/// When the next I/O of each direction is due.
#[derive(Debug)]
pub(super) struct Pace {
    due_ns: [f64; 3],
    /// ns for each byte and for each I/O.
    per_byte: [f64; 3],
    per_io: [f64; 3],
    poisson: Option<Prng>,
}

impl Pace {
    /// The pace that a job asks for; `None`: as fast as it goes.
    pub fn new(shape: &Shape, seed: u64) -> Option<Pace> {
        let per = |rate: u64| if rate > 0 { 1e9 / rate as f64 } else { 0.0 };
        shape.has_rate().then(|| Pace {
            due_ns: [0.0; 3],
            per_byte: shape.rate.map(per),
            per_io: shape.rate_iops.map(per),
            poisson: shape.poisson.then(|| Prng::new(mix64(seed ^ 1))),
        })
    }

    /// When the piece was due, if it is; else, as an error, when it will.
    pub fn take(&mut self, piece: &Piece, now: u64) -> Result<Due, u64> {
        let way = piece.way;
        let gap = (self.per_byte[way] * f64::from(piece.len)).max(self.per_io[way]);
        if gap <= 0.0 {
            return Ok(None);
        }
        if self.due_ns[way] == 0.0 {
            self.due_ns[way] = now as f64;
        }
        let due = self.due_ns[way];
        if (now as f64) < due {
            return Err(due.ceil() as u64);
        }
        let spread = self.poisson.as_mut().map_or(1.0, |random| -unit(random).ln());
        self.due_ns[way] = due + gap * spread;
        Ok(Some(due as u64))
    }
}

/// Rests between I/Os.
#[derive(Debug)]
pub(super) struct Think {
    ns: u64,
    /// How much of it is spent awake.
    spin_ns: u64,
    /// After how many I/Os, and after how long.
    blocks: u32,
    io_ns: u64,
    /// Begins while I/Os are in flight.
    at_issue: bool,
    done: u32,
    /// When the I/Os since the last rest began; 0 at first.
    io_from_ns: u64,
    /// When the rest began.
    from_ns: Option<u64>,
}

impl Think {
    /// The rests that a job asks for; `None`: none.
    pub fn new(shape: &Shape) -> Option<Think> {
        (!shape.think.is_zero()).then(|| Think {
            ns: shape.think.as_nanos() as u64,
            spin_ns: shape.think_spin.as_nanos() as u64,
            blocks: shape.think_blocks.unwrap_or(match shape.think_io_time.is_zero() {
                true => 1,
                false => u32::MAX,
            }),
            io_ns: shape.think_io_time.as_nanos() as u64,
            at_issue: shape.think_at_issue,
            done: 0,
            io_from_ns: 0,
            from_ns: None,
        })
    }

    /// An I/O is submitted.
    #[inline]
    pub fn submitted(&mut self) {
        self.done += 1;
    }

    /// Is it no time for a rest, or is it over? Else when to look again; `None`: once something
    /// completes.
    pub fn is_over(&mut self, now: u64, in_flight: u32) -> Result<(), Option<u64>> {
        if self.io_from_ns == 0 {
            self.io_from_ns = now;
        }
        let is_time = self.io_ns > 0 && now - self.io_from_ns >= self.io_ns;
        if self.done < self.blocks && !is_time && self.from_ns.is_none() {
            return Ok(());
        }
        if in_flight > 0 && !self.at_issue {
            return Err(None);
        }
        let from_ns = *self.from_ns.get_or_insert(now);
        if now < from_ns + self.spin_ns.min(self.ns) {
            // Awake all the while.
            return Err(Some(now));
        }
        if now < from_ns + self.ns {
            return Err(Some(from_ns + self.ns));
        }
        (self.done, self.from_ns, self.io_from_ns) = (0, None, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn think(shape: Shape) -> Think {
        let think = Duration::from_nanos(100);
        Think::new(&Shape { think, ..shape }).expect("rests")
    }

    #[test]
    fn rests_come_after_blocks_or_time() {
        let mut rests = think(Shape { think_blocks: Some(2), ..Shape::default() });
        assert_eq!(rests.is_over(10, 0), Ok(()));
        rests.submitted();
        assert_eq!(rests.is_over(20, 1), Ok(()));
        rests.submitted();
        assert_eq!(rests.is_over(30, 1), Err(None));
        assert_eq!(rests.is_over(40, 0), Err(Some(140)));
        assert_eq!(rests.is_over(139, 0), Err(Some(140)));
        assert_eq!(rests.is_over(140, 0), Ok(()));
        let io_time = Duration::from_nanos(50);
        let mut rests = think(Shape { think_io_time: io_time, ..Shape::default() });
        (0..1000).for_each(|_| rests.submitted());
        assert_eq!(rests.is_over(1, 0), Ok(()));
        assert_eq!(rests.is_over(50, 0), Ok(()));
        assert_eq!(rests.is_over(51, 0), Err(Some(151)));
        assert_eq!(rests.is_over(151, 0), Ok(()));
        assert_eq!(rests.is_over(200, 0), Ok(()));
    }

    #[test]
    fn a_rest_may_spin_and_may_begin_with_io_in_flight() {
        let mut rests = think(Shape { think_spin: Duration::from_nanos(30), ..Shape::default() });
        rests.submitted();
        assert_eq!(rests.is_over(10, 0), Err(Some(10)));
        assert_eq!(rests.is_over(39, 0), Err(Some(39)));
        assert_eq!(rests.is_over(40, 0), Err(Some(110)));
        let mut rests = think(Shape { think_at_issue: true, ..Shape::default() });
        rests.submitted();
        assert_eq!(rests.is_over(10, 1), Err(Some(110)));
        assert_eq!(rests.is_over(110, 1), Ok(()));
    }
}
