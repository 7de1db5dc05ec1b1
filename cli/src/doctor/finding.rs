//! What one look found.

use serde_json::{Value, json};

/// What a machine is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The software controller, files, memory: always asked for.
    Base,
    /// Figures that can be compared.
    Bench,
    /// Driving an NVMe device from user space.
    Nvme,
}

impl Purpose {
    /// All, in the order of reports.
    pub const ALL: [Purpose; 3] = [Purpose::Base, Purpose::Bench, Purpose::Nvme];

    /// As `--for` and the JSON name it.
    pub fn word(self) -> &'static str {
        match self {
            Purpose::Base => "base",
            Purpose::Bench => "bench",
            Purpose::Nvme => "nvme",
        }
    }

    /// As a person reads it.
    pub fn describe(self) -> &'static str {
        match self {
            Purpose::Base => "the software controller and files",
            Purpose::Bench => "figures that can be compared (--for=bench)",
            Purpose::Nvme => "NVMe devices in user space (--for=nvme)",
        }
    }
}

/// One subject: what is there, what is missing, what mends it, why it matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The subject: `hugepages`.
    pub name: &'static str,
    /// Its section of `hugepages.md`.
    pub anchor: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// What is there, a line for each thing.
    pub found: Vec<String>,
    /// What could be better; none when all is well.
    pub missing: Option<String>,
    /// Commands that mend it, in order; a line that begins with `#` is for the reader.
    pub mend: Vec<String>,
    /// Purposes that what is missing stands in the way of; without any it is advice.
    pub missing_for: Vec<Purpose>,
    /// More for scripts, if there is more.
    pub details: Value,
}

impl Finding {
    /// A subject of which nothing is known yet.
    pub fn new(name: &'static str, anchor: &'static str, why: &'static str) -> Finding {
        let (found, mend, missing_for) = (Vec::new(), Vec::new(), Vec::new());
        Finding { name, anchor, why, found, missing: None, mend, missing_for, details: Value::Null }
    }

    /// Adds what is there.
    pub fn found(&mut self, line: impl Into<String>) {
        self.found.push(line.into());
    }

    /// Says what is missing, and for what it is needed.
    pub fn lacks(&mut self, what: impl Into<String>, purposes: &[Purpose]) {
        self.missing.get_or_insert_with(|| what.into());
        for purpose in purposes {
            if !self.missing_for.contains(purpose) {
                self.missing_for.push(*purpose);
            }
        }
    }

    /// Adds a command that mends it.
    pub fn mend(&mut self, line: impl Into<String>) {
        self.mend.push(line.into());
    }

    /// Adds commands that put `words` on the kernel's command line where GRUB reads
    /// `/etc/default/grub.d`.
    pub fn mend_command_line(&mut self, words: &str) {
        self.mend(format!(
            "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {words}\"' | \
             sudo tee -a /etc/default/grub.d/oxblock.cfg"
        ));
        self.mend("sudo update-grub && sudo reboot");
    }

    /// `ok`, `advice` or `missing`.
    pub fn state(&self) -> &'static str {
        match (&self.missing, self.missing_for.is_empty()) {
            (None, _) => "ok",
            (Some(_), true) => "advice",
            (Some(_), false) => "missing",
        }
    }

    /// Does it stand in the way of `purpose`?
    pub fn blocks(&self, purpose: Purpose) -> bool {
        self.missing.is_some() && self.missing_for.contains(&purpose)
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let missing_for: Vec<&str> = self.missing_for.iter().map(|p| p.word()).collect();
        json!({
            "name": self.name,
            "state": self.state(),
            "found": self.found,
            "missing": self.missing,
            "missing_for": missing_for,
            "mend": self.mend,
            "why": self.why,
            "more": self.more(),
            "details": self.details,
        })
    }

    /// Where the long form stands.
    pub fn more(&self) -> String {
        format!("hugepages.md#{}", self.anchor)
    }
}
