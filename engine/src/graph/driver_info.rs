//! What drivers declare of themselves, and the table of them that the embedder passes in.

use std::sync::Arc;

use super::role::{ChildRole, ChildRule};
use super::settings::NodeSettings;
use crate::options::{NodeOptions, OptionSpec, Settings, closest, invalid};
use crate::{Body, Core, Error, LocalFuture, Node};

/// What a driver is in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// It gives an image in its children a meaning.
    Format,
    /// It shows a child as it is, and does something about it.
    Filter,
    /// It stands at the bottom: a file, a device, a server.
    Protocol,
}

/// A driver's declaration.
#[derive(Clone, Copy)]
pub struct DriverInfo {
    /// Its name, as blockdev-add has it.
    pub name: &'static str,
    /// What it is in the graph.
    pub kind: DriverKind,
    /// Whether there is nothing to open without a `filename`.
    pub needs_filename: bool,
    /// Whether its nodes may have a backing file.
    pub supports_backing: bool,
    /// What stands before the colon in names that are its own.
    pub protocols: &'static [&'static str],
    /// Turns such a name, whole, into options. Without it the name becomes `filename`.
    pub parse_filename: Option<FilenameParser>,
    /// The name without options that opens the same as these, if there is one; `filename` where the
    /// driver does not say. What a format lies in names it too.
    pub filename: Option<FilenamePrinter>,
    /// How sure it is that an image is its own, from its first bytes.
    pub probe: Option<Probe>,
    /// Whether a name without protocol is its own rather than that of [`Drivers::PLAIN`].
    pub claims: Option<fn(&str) -> bool>,
    /// What it takes to open a node.
    pub options: &'static [OptionSpec],
    /// What it takes to create an image.
    pub create_options: &'static [OptionSpec],
    /// Its children, but for the backing file.
    pub children: &'static [ChildSpec],
    /// What its nodes ask of their children.
    pub child_rule: ChildRule,
    /// Makes a node's body; may wait.
    pub open: Constructor,
}

/// Turns a name with a protocol into options.
pub type FilenameParser = fn(&str, &mut NodeOptions) -> Result<(), Error>;

/// Turns the options that belong to a node's name into a name without options.
pub type FilenamePrinter = fn(&NodeOptions) -> Option<String>;

/// Looks at the first bytes of an image, at most [`PROBE_LEN`], and at its name if it has one. 0 is
/// no, 100 is sure; 1 is what takes anything.
pub type Probe = fn(&[u8], Option<&str>) -> u8;

/// How much of an image is looked at.
pub const PROBE_LEN: usize = 2048;

/// Makes the body of a node.
pub type Constructor = for<'a> fn(&'a Opening<'a>) -> LocalFuture<'a, Result<Body, Error>>;

/// A child that a driver has.
#[derive(Clone, Copy, Debug)]
pub struct ChildSpec {
    /// Its name among the options.
    pub name: &'static str,
    /// What it is to the parent with these settings.
    pub role: fn(&Settings) -> ChildRole,
    /// Whether there is no node without it.
    pub required: bool,
}

/// A node that is being opened.
pub struct Opening<'a> {
    /// Where it is opened; it may become the home of a device.
    pub core: &'a Core,
    /// Its name.
    pub name: &'a Arc<str>,
    /// The driver's own options.
    pub settings: &'a Settings,
    /// The options that every node has.
    pub common: &'a NodeSettings,
    /// Its children, in the order in which the driver declares them; those that are not there
    /// are left out.
    pub children: &'a [(&'static str, Arc<Node>)],
    /// Nobody said that the image is of this format: it was guessed from what it holds.
    pub probed: bool,
}

impl Opening<'_> {
    /// The child of this name.
    pub fn child(&self, name: &str) -> Option<&Arc<Node>> {
        self.children.iter().find(|(known, _)| *known == name).map(|(_, node)| node)
    }
}

/// The drivers that an embedder has.
#[derive(Clone, Copy)]
pub struct Drivers {
    all: &'static [&'static DriverInfo],
}

impl Drivers {
    /// These drivers.
    pub const fn new(all: &'static [&'static DriverInfo]) -> Self {
        Self { all }
    }

    /// The names of all, in the table's order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().map(|driver| driver.name)
    }

    /// The driver of this name.
    ///
    /// # Errors
    /// `Invalid`: there is none.
    pub fn find(&self, name: &str) -> Result<&'static DriverInfo, Error> {
        self.all.iter().find(|driver| driver.name == name).copied().ok_or_else(|| {
            invalid(format!("Unknown driver '{name}'{}", did_you_mean(name, self.names())))
        })
    }

    /// The driver whose image this is, by its first bytes: the surest, and of equals the first.
    pub fn probe(&self, first: &[u8], filename: Option<&str>) -> Option<&'static DriverInfo> {
        let first = &first[..first.len().min(PROBE_LEN)];
        let score =
            |info: &'static DriverInfo| info.probe.map_or(0, |probe| probe(first, filename));
        let scored = self.all.iter().map(|info| (score(info), *info));
        let best = scored.filter(|(score, _)| *score > 0).rev().max_by_key(|(score, _)| *score);
        best.map(|(_, info)| info)
    }

    /// What to open for a name on a command line: `json:{...}` as it says; any other name is that
    /// of the file beneath a format, which `driver` is to be set to.
    ///
    /// # Errors
    /// `Invalid`: no JSON, or a protocol that no driver has.
    pub fn options_of_name(&self, name: &str) -> Result<NodeOptions, Error> {
        if let Some(json) = name.strip_prefix("json:") {
            return NodeOptions::from_json(json);
        }
        let mut options = NodeOptions::new();
        options.set_child("file", self.protocol_options_of_name(name)?);
        Ok(options)
    }

    /// The options of the protocol node that a name stands for: `file:disk.img`, `null-co://`, a
    /// plain path.
    ///
    /// # Errors
    /// `Invalid`: a protocol that no driver has; what its driver says of the rest.
    pub fn protocol_options_of_name(&self, name: &str) -> Result<NodeOptions, Error> {
        let driver = self.protocol_of_name(name)?;
        let mut options = NodeOptions::new();
        options.set("driver", driver.name);
        match driver.parse_filename {
            Some(parse) => parse(name, &mut options)?,
            None => options.set("filename", name),
        }
        Ok(options)
    }

    fn protocol_of_name(&self, name: &str) -> Result<&'static DriverInfo, Error> {
        match name.split_once(':') {
            Some((protocol, _)) if !protocol.contains('/') => {
                let all = || self.all.iter().flat_map(|driver| driver.protocols).copied();
                let mut owners = self.all.iter().filter(|info| info.protocols.contains(&protocol));
                owners.next().copied().ok_or_else(|| {
                    let hint = did_you_mean(protocol, all());
                    invalid(format!("Unknown protocol '{protocol}'{hint}"))
                })
            }
            _ => {
                let claims = |info: &&&DriverInfo| info.claims.is_some_and(|claims| claims(name));
                let claimed = self.all.iter().find(claims).copied();
                claimed.map_or_else(|| self.find(Self::PLAIN), Ok)
            }
        }
    }

    /// The driver of files, which a node without a driver is of where a file is meant.
    pub const PLAIN: &'static str = "file";
}

impl DriverInfo {
    /// Refuses options that are left when everybody has taken their own.
    pub(super) fn refuse_rest(&self, rest: &NodeOptions) -> Result<(), Error> {
        let Some(key) = rest.keys().next() else { return Ok(()) };
        let own = self.options.iter().chain(NodeSettings::OPTIONS).map(|option| option.name);
        let known = own.chain(self.children.iter().map(|child| child.name));
        let hint = did_you_mean(key, known);
        let name = self.name;
        Err(invalid(match self.kind {
            DriverKind::Protocol => {
                format!("Block protocol '{name}' doesn't support the option '{key}'{hint}")
            }
            DriverKind::Format | DriverKind::Filter => {
                format!("Block format '{name}' does not support the option '{key}'{hint}")
            }
        }))
    }
}

fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(word, known).map_or_else(String::new, |known| format!("; did you mean '{known}'?"))
}
