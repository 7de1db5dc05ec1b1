//! The options that every node has, and what children inherit.

use super::role::ChildRole;
use crate::options::{NodeOptions, OptionSpec, Settings, invalid};
use crate::{Error, Restrictions};

/// The options that every node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Writes are refused.
    pub read_only: bool,
    /// Where writing is not possible, the node is opened for reading instead of not at all.
    pub auto_read_only: bool,
    /// All that other users do is borne with.
    pub force_share: bool,
    /// Discards reach the driver; otherwise they do nothing.
    pub discard: bool,
    /// What becomes of writes of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Past the page cache.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
}

/// What becomes of writes of nothing but zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are written.
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may free the space.
    Unmap,
}

impl NodeSettings {
    /// How they are declared.
    pub const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::text("driver", "the driver's name"),
        OptionSpec::text("node-name", "the node's name; made up if left out"),
        OptionSpec::bool("read-only", "refuse writes").default("off").mutable(),
        OptionSpec::bool("auto-read-only", "refuse writes where there is no other way")
            .default("off")
            .mutable(),
        OptionSpec::bool("force-share", "bear with other users").default("off"),
        OptionSpec::choice("discard", &["ignore", "off", "unmap", "on"], "what discards do")
            .default("ignore")
            .mutable(),
        OptionSpec::choice("detect-zeroes", &["off", "on", "unmap"], "what zeroes become")
            .default("off")
            .mutable(),
        OptionSpec::bool("cache.direct", "past the page cache").default("off").mutable(),
        OptionSpec::bool("cache.no-flush", "ignore flushes").default("off").mutable(),
    ];

    /// Takes them out of a node's options, but for `driver` and `node-name`, which are gone
    /// already.
    pub(super) fn take(options: &mut NodeOptions) -> Result<Self, Error> {
        let given = Settings::take(Self::OPTIONS, options)?;
        let is_on = |name| given.bool(name) == Some(true);
        let settings = Self {
            read_only: is_on("read-only"),
            auto_read_only: is_on("auto-read-only"),
            force_share: is_on("force-share"),
            discard: matches!(given.choice("discard"), Some("unmap" | "on")),
            detect_zeroes: match given.choice("detect-zeroes") {
                Some("on") => DetectZeroes::On,
                Some("unmap") => DetectZeroes::Unmap,
                _ => DetectZeroes::Off,
            },
            direct: is_on("cache.direct"),
            no_flush: is_on("cache.no-flush"),
        };
        if settings.force_share && !settings.read_only {
            return Err(invalid("force-share=on can only be used with read-only images"));
        }
        if settings.detect_zeroes == DetectZeroes::Unmap && !settings.discard {
            return Err(invalid(
                "setting detect-zeroes to unmap is not allowed without setting discard operation \
                 to unmap",
            ));
        }
        Ok(settings)
    }

    /// What the node does not let through.
    pub fn restrictions(&self) -> Restrictions {
        let Self { read_only, discard, no_flush, .. } = *self;
        Restrictions { read_only, no_discard: !discard, no_flush }
    }

    /// Gives a child what it inherits and was not told otherwise.
    pub(super) fn inherit(&self, role: ChildRole, child: &mut NodeOptions) {
        child.set_default("cache.direct", self.direct);
        child.set_default("cache.no-flush", self.no_flush);
        child.set_default("force-share", self.force_share);
        // The parent drops the discards that its own settings do not let through.
        child.set_default("discard", "unmap");
        if role.contains(ChildRole::COW) {
            child.set_default("read-only", true);
            child.set_default("auto-read-only", false);
            return;
        }
        child.set_default("read-only", self.read_only);
        child.set_default("auto-read-only", self.auto_read_only);
    }
}
