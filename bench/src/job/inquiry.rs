//! How a clone stands while it runs, for who asks: a report that it is given, and fills in.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;

use crate::report::CloneReport;

/// The question and the answer; each has room for one.
#[derive(Debug)]
pub(crate) struct Inquiry {
    asked: AtomicBool,
    blank: ArrayQueue<Box<CloneReport>>,
    filled: ArrayQueue<Box<CloneReport>>,
}

impl Default for Inquiry {
    fn default() -> Inquiry {
        let (blank, filled) = (ArrayQueue::new(1), ArrayQueue::new(1));
        Inquiry { asked: AtomicBool::new(false), blank, filled }
    }
}

impl Inquiry {
    /// Asks; an answer that nobody took is replaced.
    pub fn ask(&self, times_submission: bool) {
        let mut report = Box::<CloneReport>::default();
        if times_submission {
            for stats in [&mut report.read, &mut report.write, &mut report.trim] {
                stats.apart = Some(Box::default());
            }
        }
        self.blank.force_push(report);
        self.asked.store(true, Relaxed);
    }

    /// Takes the answer, if there is one.
    pub fn answered(&self) -> Option<Box<CloneReport>> {
        self.filled.pop()
    }

    /// Is there a question?
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Takes the report to fill in.
    pub fn taken(&self) -> Option<Box<CloneReport>> {
        self.asked.store(false, Relaxed);
        self.blank.pop()
    }

    /// Gives it back. What was not taken in time is replaced; its memory is freed here, once.
    pub fn answer(&self, report: Box<CloneReport>) {
        self.filled.force_push(report);
    }
}
