//! The options of rests and submissions, and of what becomes of errors.

use super::table::{OptionSpec, option, parse_range, parse_time_us, switch};
use super::{errors, shape};
use crate::units::parse_time;

/// How a job goes on, and what it writes as it does.
pub(super) static PACE: &[OptionSpec] = &[
    option!("thinktime_spin"[], "TIME", "Stay awake for so long of each rest (us) [0]", |job, word| {
        parse_time_us(word).map(|time| job.shape.think_spin = time)
    }),
    option!("thinktime_iotime"[], "TIME", "Rest after so long, too [only after thinktime_blocks]", |job, word| {
        parse_time(word).map(|time| job.shape.think_io_time = time)
    }),
    option!("thinktime_blocks_type"[], "WORD", "Rest once those I/Os have completed or are issued: complete, issue [complete]", |job, word| {
        job.shape.think_at_issue = match word {
            "complete" => false,
            "issue" => true,
            _ => return Err(format!("`{word}` is neither complete nor issue")),
        };
        Ok(())
    }),
    option!("iodepth_batch_complete_max"[], "N", "fio's word; a pass takes all that has completed", |_, word| {
        parse_range(word, 0, 65_536).map(|_| ())
    }),
    option!("io_submit_mode"[], "WORD", "inline; offload is refused: under a rate, latency counts from the due time anyway", |_, word| {
        match word {
            "inline" => Ok(()),
            "offload" => Err(
                "a clone submits its I/O itself (inline); under a rate, latency counts from when an I/O was due"
                    .to_owned(),
            ),
            _ => Err(format!("`{word}` is neither inline nor offload")),
        }
    }),
    option!("random_generator"[], "WORD", "fio's word: tausworthe, lfsr, tausworthe64; offsets come from one of ours", |_, word| {
        match word {
            "tausworthe" | "lfsr" | "tausworthe64" => Ok(()),
            _ => Err(format!("`{word}` is none of tausworthe, lfsr, tausworthe64")),
        }
    }),
    switch!("scramble_buffers", "New bytes in each 512 of each write [0]", |job, on| {
        job.shape.scramble = on;
    }),
    option!("dedupe_percentage"[], "PERCENT", "Writes in a hundred with the contents of the one before [0]", |job, word| {
        parse_range(word, 0, 100).map(|percent| job.shape.dedupe_percent = percent as u8)
    }),
    option!("ignore_error"[], "LIST", "Errors that are counted and otherwise ignored: of reads,of writes, such as EIO,ENOSPC:122", |job, word| {
        errors::ignored(word).map(|lists| job.shape.ignored_errors = lists)
    }),
    switch!(
        "exitall_on_error",
        "When this job ends with an error, so do those beside it [0]",
        |job, on| {
            job.exit_all_on_error = on;
        }
    ),
    option!("exit_what"[], "WORD", "What exitall ends: group, stonewall (all that run), all [group]", |job, word| {
        shape::exit_what(word).map(|what| job.exit_what = what)
    }),
];
