//! The files of a job: which there are, how they come about, and in which order it goes to them.

use super::table::{OptionSpec, option, parse_range, switch};
use super::{Distribution, JobOptions, OptionError, Plan, shape};

/// The files of a job. [`Default`]: the one that the command chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// The targets that `filename` lists, in words; empty: none.
    pub names: Vec<String>,
    /// Where files are.
    pub directory: Option<String>,
    /// How many files each clone has of its own, where `names` lists none.
    pub count: Option<u32>,
    /// How many are said to be open at once; they all are.
    pub open: Option<u32>,
    /// What these are called.
    pub format: Option<String>,
    /// Which file is next.
    pub service: Service,
    /// I/Os before the next file is chosen.
    pub switch_after: u32,
    /// Files that are made get their space at once.
    pub preallocate: bool,
    /// Files that are made are written once before the job.
    pub overwrite: bool,
    /// Files are removed after the run.
    pub unlink: bool,
    /// A thread of the kernel takes the calls.
    pub sqthread_poll: bool,
    /// The device is polled for the ends of reads and writes.
    pub hipri: bool,
}

/// fio's `file_service_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum Service {
    /// One after the other, and around again.
    RoundRobin,
    /// A file is finished before the next is begun.
    Sequential,
    /// As drawn from a distribution over the files in their order.
    Drawn(Distribution),
}

impl Default for Files {
    fn default() -> Files {
        Files {
            names: Vec::new(),
            directory: None,
            count: None,
            open: None,
            format: None,
            service: Service::RoundRobin,
            switch_after: 1,
            preallocate: false,
            overwrite: false,
            unlink: false,
            sqthread_poll: false,
            hipri: false,
        }
    }
}

/// What files are called unless `filename_format` says so.
const FORMAT: &str = "$jobname.$jobnum.$filenum";

impl Files {
    /// How many files each clone does its I/O on.
    pub fn each(&self) -> u32 {
        match self.names.len() {
            0 => self.count.unwrap_or(1),
            count => count as u32,
        }
    }

    /// Does each clone have files of its own, named by the format?
    pub fn are_own(&self) -> bool {
        self.names.is_empty()
            && (self.count.is_some() || self.directory.is_some() || self.format.is_some())
    }

    fn in_directory(&self, name: &str) -> String {
        match &self.directory {
            Some(directory) => format!("{}/{name}", directory.trim_end_matches('/')),
            None => name.to_owned(),
        }
    }

    pub(super) fn check(&self) -> Result<(), OptionError> {
        let wrong =
            |option: &str, message: String| Err(OptionError { option: option.to_owned(), message });
        let listed = self.names.len() as u32;
        if listed > 0 && self.count.is_some_and(|count| count != listed) {
            return wrong("nrfiles", format!("`filename` lists {listed}; leave this out"));
        }
        if self.open.is_some_and(|open| open < self.each()) {
            let text =
                format!("all {} files of the job are open at once; leave this out", self.each());
            return wrong("openfiles", text);
        }
        Ok(())
    }
}

impl JobOptions {
    /// What the job runs against, in words: the files of all clones, in their order. Empty: left
    /// to the command.
    pub fn targets(&self) -> Vec<String> {
        let files = &self.files;
        if self.null_engine {
            return vec!["null".to_owned(); files.each() as usize];
        }
        if !files.are_own() {
            return files.names.iter().map(|name| files.in_directory(name)).collect();
        }
        let format = files.format.as_deref().unwrap_or(FORMAT);
        let name = |clone: u32, number: u32| {
            let name = format
                .replace("$jobname", &self.name)
                .replace("$jobnum", &clone.to_string())
                .replace("$filenum", &number.to_string())
                .replace("$clientuid", "localhost");
            // A plain name that looks like a word for a target is the name of a file all the same.
            let directory = files.directory.as_deref().unwrap_or(".");
            format!("{}/{name}", directory.trim_end_matches('/'))
        };
        let clones = 0..self.num_jobs;
        clones
            .flat_map(|clone| (0..files.each()).map(move |number| (clone, number)))
            .map(|(clone, number)| name(clone, number))
            .collect()
    }

    /// The plans of a clone's files, each with where its range starts.
    pub(crate) fn ranges_of(&self, clone: usize, plans: &[Plan]) -> Vec<(Plan, u64)> {
        let start = |plan: &Plan| plan.start + plan.stride * clone as u64;
        plans.iter().map(|plan| (*plan, start(plan))).collect()
    }

    /// Which of `count` open targets are those of a clone.
    pub(crate) fn files_of(&self, clone: usize, count: usize) -> std::ops::Range<usize> {
        let each = self.files.each() as usize;
        match self.files.are_own() && !self.null_engine && count == each * self.num_jobs as usize {
            true => clone * each..(clone + 1) * each,
            false => 0..count,
        }
    }
}

/// Which files there are.
pub(super) static FILES: &[OptionSpec] = &[
    option!(
        "filename"["target"],
        "TARGET",
        "What to measure; see below [soft]. Several files: a:b:c",
        |job, word| { parse_targets(word).map(|names| job.files.names = names) }
    ),
    option!("directory"[], "PATH", "Where files are [.]", |job, word| {
        if word.is_empty() || word.replace("\\:", "").contains(':') {
            return Err(format!("`{word}` is not one directory"));
        }
        job.files.directory = Some(word.replace("\\:", ":"));
        Ok(())
    }),
    option!("nrfiles"[], "N", "Files of each clone, which share `size` [1]", |job, word| {
        parse_range(word, 1, 4096).map(|count| job.files.count = Some(count))
    }),
    option!("filename_format"[], "FORMAT", "What they are called [$jobname.$jobnum.$filenum]", |job, word| {
        match word.is_empty() || word.contains('\0') {
            true => Err("a name is needed".to_owned()),
            false => {
                job.files.format = Some(word.to_owned());
                Ok(())
            }
        }
    }),
    option!("file_service_type"[], "WORD[:N]", "The next file, after each N I/Os: roundrobin, sequential, random, zipf:THETA, pareto:H, gauss:DEV [roundrobin]", |job, word| {
        service(word).map(|(service, every)| {
            (job.files.service, job.files.switch_after) = (service, every);
        })
    }),
    option!("openfiles"[], "N", "Accepted: all files of a job are open at once", |job, word| {
        parse_range(word, 1, 1 << 20).map(|count| job.files.open = Some(count))
    }),
    option!("fallocate"[], "WORD", "Files that are made get their space at once: none, native, posix [none]", |job, word| {
        match word {
            "none" | "0" | "truncate" => job.files.preallocate = false,
            "native" | "posix" | "1" => job.files.preallocate = true,
            "keep" => return Err("space past the end of a file is not offered; use native".to_owned()),
            _ => return Err(format!("`{word}` is none of none, native, posix, truncate")),
        }
        Ok(())
    }),
    switch!("overwrite", "Files that are made are written once before the job [0]", |job, on| {
        job.files.overwrite = on;
    }),
    switch!("create_on_open", "Accepted: files are made when they are opened", |_, _| ()),
    switch!("sqthread_poll", "A thread of the kernel takes the calls to a file [0]", |job, on| {
        job.files.sqthread_poll = on;
    }),
    switch!(
        "hipri",
        "Poll the device of a file for the ends of reads and writes; with direct=1 [0]",
        |job, on| {
            job.files.hipri = on;
        }
    ),
    switch!("unlink", "Remove the files after the run [0]", |job, on| job.files.unlink = on),
];

/// The words of targets. Those of kinds with a `:` of their own stand alone; else `:` stands
/// between files, and `\:` is a plain one.
fn parse_targets(word: &str) -> Result<Vec<String>, String> {
    const ALONE: [&str; 4] = ["soft:", "nvme:", "vfio-user:", "{"];
    if ALONE.iter().any(|start| word.starts_with(start)) {
        return Ok(vec![word.to_owned()]);
    }
    let mut names = vec![String::new()];
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, letters.peek()) {
            ('\\', Some(':')) => {
                letters.next();
                push(&mut names, ':');
            }
            (':', _) => names.push(String::new()),
            _ => push(&mut names, letter),
        }
    }
    match names.iter().any(String::is_empty) {
        true => Err(format!(
            "`{word}` has an empty name; give a path, soft, null, memory or a node as JSON"
        )),
        false if names.len() > 4096 => Err("more than 4096 files".to_owned()),
        false => Ok(names),
    }
}

fn push(names: &mut [String], letter: char) {
    if let Some(last) = names.last_mut() {
        last.push(letter);
    }
}

fn service(word: &str) -> Result<(Service, u32), String> {
    let mut parts = word.split(':');
    let kind = parts.next().unwrap_or("");
    let drawn = matches!(kind, "zipf" | "pareto" | "normal" | "gauss");
    let service = match kind {
        "roundrobin" => Service::RoundRobin,
        "sequential" => Service::Sequential,
        "random" => Service::Drawn(Distribution::Random),
        _ if drawn => {
            let value = parts.next().unwrap_or("");
            Service::Drawn(shape::distribution(&format!("{kind}:{value}"))?)
        }
        _ => {
            let text = "is none of roundrobin, sequential, random, zipf:, pareto:, gauss:";
            return Err(format!("`{word}` {text}"));
        }
    };
    let every = parts.next().map_or(Ok(1), |every| parse_range(every, 1, u32::MAX))?;
    match parts.next() {
        None => Ok((service, every)),
        Some(_) => Err(format!("`{word}` has too many parts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(words: &[(&str, &str)]) -> JobOptions {
        let mut job = JobOptions { name: "job".to_owned(), ..JobOptions::default() };
        words.iter().for_each(|(name, value)| job.set(name, value).expect(name));
        job
    }

    #[test]
    fn names_come_from_the_list_or_the_format() {
        let targets = |words: &[(&str, &str)]| job(words).targets();
        assert_eq!(targets(&[]), [""; 0]);
        assert_eq!(targets(&[("filename", "a")]), ["a"]);
        assert_eq!(targets(&[("filename", "a:b\\:c:/d")]), ["a", "b:c", "/d"]);
        assert_eq!(targets(&[("filename", "soft:a:b")]), ["soft:a:b"]);
        assert_eq!(targets(&[("filename", "a:b"), ("directory", "/x/")]), ["/x/a", "/x/b"]);
        assert_eq!(
            targets(&[("directory", "/x"), ("nrfiles", "2"), ("numjobs", "2")]),
            ["/x/job.0.0", "/x/job.0.1", "/x/job.1.0", "/x/job.1.1"]
        );
        assert_eq!(
            targets(&[("nrfiles", "2"), ("filename_format", "f.$filenum")]),
            ["./f.0", "./f.1"]
        );
        let null = [("ioengine", "null"), ("directory", "/x"), ("nrfiles", "3"), ("numjobs", "2")];
        assert_eq!(targets(&null), ["null"; 3]);
    }

    #[test]
    fn clones_have_their_own_files_or_share_the_named_ones() {
        let own = job(&[("nrfiles", "2"), ("numjobs", "2")]);
        assert_eq!((own.files_of(0, 4), own.files_of(1, 4)), (0..2, 2..4));
        let shared = job(&[("filename", "a:b"), ("numjobs", "2")]);
        assert_eq!((shared.files_of(0, 2), shared.files_of(1, 2)), (0..2, 0..2));
    }

    #[test]
    fn services_are_read() {
        assert_eq!(service("roundrobin"), Ok((Service::RoundRobin, 1)));
        assert_eq!(service("sequential"), Ok((Service::Sequential, 1)));
        assert_eq!(service("random:8"), Ok((Service::Drawn(Distribution::Random), 8)));
        assert_eq!(service("zipf:1.2:4"), Ok((Service::Drawn(Distribution::Zipf(1.2)), 4)));
        for bad in ["", "zipf", "zipf:x", "random:0", "random:1:2", "round", "gauss:"] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |words: &[(&str, &str)]| job(words).plan(1 << 20, 512).map(|_| ());
        for bad in
            [&[("filename", "a:b"), ("nrfiles", "3")][..], &[("openfiles", "2"), ("nrfiles", "4")]]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(JobOptions::default().set("filename", "a::b").is_err());
    }
}
