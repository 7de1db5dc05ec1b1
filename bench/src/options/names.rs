//! The names of fio's options, to tell what is not offered here from what is misspelled.

use super::table::{OPTIONS, OptionSpec};

/// Names and aliases of fio 3.33's job options, those of its common engines among them; sorted.
#[rustfmt::skip]
pub static FIO_OPTIONS: &[&str] = &[
    "allow_file_create", "allow_mounted_write", "allrandrepeat", "atomic", "ba", "blktrace",
    "block_error_percentiles", "blockalign", "blocksize", "blocksize_range",
    "blocksize_unaligned", "bs", "bs_is_seq_rand", "bs_unaligned", "bsrange", "bssplit",
    "buffer_compress_chunk", "buffer_compress_percentage", "buffer_pattern", "buffered",
    "bwavgtime", "cgroup", "cgroup_nodelete", "cgroup_weight", "clat_percentiles", "clocksource",
    "cmd_type", "continue_on_error", "cpuchunks", "cpuload", "cpumask", "cpumode", "cpus_allowed",
    "cpus_allowed_policy", "create_fsync", "create_on_open", "create_only", "create_serialize",
    "dedupe_global", "dedupe_mode", "dedupe_percentage", "dedupe_working_set_percentage",
    "description", "direct", "directory", "disable_bw", "disable_bw_measurement", "disable_clat", "disable_lat",
    "disable_slat", "disk_util", "do_verify", "end_fsync", "error_dump", "exec_postrun",
    "exec_prerun", "exit_what", "exitall", "exitall_on_error", "experimental_verify",
    "fadvise_hint", "fallocate", "fdatasync", "file_append", "file_service_type", "filename",
    "filename_format", "filesize", "fill_device", "fixedbufs", "flow", "flow_id", "flow_sleep",
    "force_async", "fsync", "fsync_on_close", "gid", "group_reporting", "gtod_cpu", "gtod_reduce",
    "hipri", "hipri_percentage", "hostname", "hugepage-size", "hugepage_size", "ignore_error",
    "ignore_zone_limits", "include", "invalidate", "io_limit", "io_size", "io_submit_mode",
    "iodepth", "iodepth_batch", "iodepth_batch_complete", "iodepth_batch_complete_max",
    "iodepth_batch_complete_min", "iodepth_batch_submit", "iodepth_low", "ioengine", "iomem",
    "iomem_align", "iopsavgtime", "ioscheduler", "job_max_open_zones", "kb_base",
    "lat_percentiles", "latency_percentile", "latency_run", "latency_target", "latency_window",
    "listen", "lockfile", "lockmem", "log_alternate_epoch", "log_alternate_epoch_clock_id",
    "log_avg_msec", "log_compression", "log_compression_cpus", "log_entries",
    "log_hist_coarseness", "log_hist_msec", "log_max_value", "log_offset", "log_prio",
    "log_store_compressed", "log_unix_epoch", "loops", "max_latency", "max_open_zones", "mem",
    "mem_align", "merge_blktrace_file", "merge_blktrace_iters", "merge_blktrace_scalars", "name",
    "new_group", "nice", "nonvectored", "norandommap", "nowait", "nrfiles", "numa_cpu_nodes",
    "numa_mem_policy", "number_ios", "numjobs", "offset", "offset_align", "offset_increment",
    "opendir", "openfiles", "overwrite", "per_job_logs", "percentage_random", "percentile_list",
    "port", "pre_read", "prio", "prioclass", "profile", "protocol", "ramp_time",
    "random_distribution", "random_generator", "randrepeat", "randseed", "rate", "rate_cycle",
    "rate_ignore_thinktime", "rate_iops", "rate_iops_min", "rate_min", "rate_process", "ratecycle",
    "read_beyond_wp", "read_iolog", "read_iolog_chunked", "readfua", "readwrite",
    "refill_buffers", "registerfiles", "replay_align", "replay_no_stall", "replay_redirect",
    "replay_scale", "replay_skip", "replay_time_scale", "runtime", "rw", "rw_sequencer",
    "rwmixcycle", "rwmixread", "rwmixwrite", "scramble_buffers", "serialize_overlap",
    "significant_figures", "size", "slat_percentiles", "sqthread_poll", "sqthread_poll_cpu", "ss",
    "ss_dur", "ss_ramp", "start_cpu", "start_delay", "startdelay", "stats", "steadystate",
    "steadystate_duration", "steadystate_ramp_time", "stonewall", "sync", "sync_file_range",
    "thinktime", "thinktime_blocks", "thinktime_blocks_type", "thinktime_iotime",
    "thinktime_spin", "thread", "time_based", "timeout", "trim_backlog", "trim_backlog_batch",
    "trim_percentage", "trim_verify_zero", "uid", "unified_rw_reporting", "unique_filename",
    "unit_base", "unlink", "unlink_each_loop", "userspace_reap", "verify", "verify_async",
    "verify_async_cpus", "verify_backlog", "verify_backlog_batch", "verify_dump", "verify_fatal", "verify_interval",
    "verify_offset", "verify_only", "verify_pattern", "verify_state_load", "verify_state_save",
    "wait_for", "wait_for_previous", "write_barrier", "write_bw_log", "write_hint",
    "write_hist_log", "write_iolog", "write_iops_log", "write_lat_log", "writefua",
    "zero_buffers", "zone_append", "zone_reset_frequency", "zone_reset_threshold", "zone_size",
    "zonecapacity", "zonemode", "zonerange", "zonesize", "zoneskip",
];

/// What to say of a name that no option of ours has.
pub(super) fn unknown(name: &str) -> String {
    if name.starts_with("verify_async") {
        return "the core that reads a block checks it, there are no threads for that; leave it \
                out, and use numjobs where one core is too slow"
            .to_owned();
    }
    if FIO_OPTIONS.binary_search(&name).is_ok() {
        return "fio has this option, oxblock bench does not offer it; leave it out".to_owned();
    }
    match nearest(name) {
        Some(near) => format!("no such option; did you mean `{near}`?"),
        None => "no such option; `oxblock bench --help` lists them".to_owned(),
    }
}

/// The option of ours or of fio's whose name is nearest to `name`; `None` if none is near.
pub fn nearest(name: &str) -> Option<&'static str> {
    let ours = OPTIONS.iter().copied();
    let ours = ours.flat_map(|spec: &OptionSpec| spec.aliases.iter().chain([&spec.name]));
    // The first of equals is taken: ours before fio's.
    let (near, steps) = ours
        .chain(FIO_OPTIONS)
        .map(|&candidate| (candidate, distance(name, candidate)))
        .min_by_key(|&(_, steps)| steps)?;
    (steps <= 1 + name.len() / 4 && steps < near.len()).then_some(near)
}

/// How many bytes to insert, leave out, change or swap with a neighbour to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // No name is this long: what is longer is near to none.
    if a.len() > 64 {
        return a.len();
    }
    let mut rows = [vec![0; b.len() + 1], (0..=b.len()).collect(), vec![0; b.len() + 1]];
    for i in 1..=a.len() {
        rows.rotate_left(1);
        // Now rows[0] is of a[..i-1]; its predecessor, of a[..i-2], stands in rows[2].
        let before = rows[2].clone();
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[0][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut steps = change.min(rows[0][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                steps = steps.min(before[j - 2] + 1);
            }
            row.push(steps);
        }
        rows[1] = row;
    }
    rows[1][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_ours_are_fios() {
        assert!(FIO_OPTIONS.is_sorted());
        let own = ["target", "verify_state", "write_hdr_log"];
        for name in OPTIONS.iter().flat_map(|spec| spec.aliases.iter().chain([&spec.name])) {
            assert!(own.contains(name) || FIO_OPTIONS.contains(name), "{name}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, steps) in [("", "", 0), ("", "ab", 2), ("rw", "rw", 0), ("wr", "rw", 1)] {
            assert_eq!((distance(a, b), distance(b, a)), (steps, steps), "{a} {b}");
        }
        assert_eq!(distance("iodpeth", "iodepth"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn typos_name_the_nearest() {
        assert_eq!(nearest("iodpeth"), Some("iodepth"));
        assert_eq!(nearest("rwmixred"), Some("rwmixread"));
        assert_eq!(nearest("stonewal"), Some("stonewall"));
        assert_eq!(nearest("qqqqqqqq"), None);
        assert!(unknown("verify_async").contains("numjobs"));
        assert!(unknown("cgroup_weight").contains("does not offer"));
    }
}
