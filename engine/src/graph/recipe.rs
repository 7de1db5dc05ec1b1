//! How a node was opened: what it needs to be reopened with other options.

use super::driver_info::{DriverInfo, DriverKind};
use super::settings::NodeSettings;
use super::tables::NodeId;
use crate::Error;
use crate::options::{ChildOptions, NodeOptions, OptionSpec, Setting, Settings, invalid};

/// The options that a node has.
#[derive(Clone)]
pub(super) struct Recipe {
    /// What drives it.
    pub driver: &'static DriverInfo,
    /// What was said of it, without its children, and without what it inherits.
    pub given: NodeOptions,
    /// The driver's own, defaults included.
    pub settings: Settings,
    /// Those that every node has, inherited ones included.
    pub common: NodeSettings,
    /// The node among whose options it was described, and whose options it inherits.
    pub heir_of: Option<NodeId>,
}

impl Recipe {
    pub fn new(
        driver: &'static DriverInfo,
        mut given: NodeOptions,
        settings: Settings,
        common: NodeSettings,
    ) -> Self {
        for name in child_names(driver) {
            // What is no child's description was refused before.
            let _ = given.take_child(name);
        }
        given.take("driver");
        given.take("node-name");
        Self { driver, given, settings, common, heir_of: None }
    }

    /// Refuses other values of options that cannot change while the node is open. `given` is what
    /// was said for the change.
    pub fn check_change(&self, new: &Recipe, given: &NodeOptions) -> Result<(), Error> {
        for spec in self.driver.options.iter().filter(|spec| !spec.mutable) {
            let (old, new) = (self.settings.get(spec.name), new.settings.get(spec.name));
            refuse_other(spec, old, new, given)?;
        }
        let force_share = |recipe: &Self| Some(Setting::Bool(recipe.common.force_share));
        let mut common = NodeSettings::OPTIONS.iter();
        match common.find(|spec| spec.name == "force-share") {
            Some(spec) => {
                refuse_other(spec, force_share(self).as_ref(), force_share(new).as_ref(), given)
            }
            None => Ok(()),
        }
    }

    /// Whether it has the same options.
    pub fn is_same(&self, other: &Recipe) -> bool {
        self.settings == other.settings && self.common == other.common
    }
}

fn refuse_other(
    spec: &OptionSpec,
    old: Option<&Setting>,
    new: Option<&Setting>,
    given: &NodeOptions,
) -> Result<(), Error> {
    if old == new {
        return Ok(());
    }
    let name = spec.name;
    let words =
        |value: Option<&Setting>| value.map_or_else(|| "nothing".into(), |v| format!("'{v}'"));
    let from = words(old);
    Err(invalid(match given.get(name) {
        Some(_) => format!("Cannot change the option '{name}' from {from} to {}", words(new)),
        None => format!("Option '{name}' cannot be reset to its default value; it is {from}"),
    }))
}

/// What a driver's children are called.
pub(super) fn child_names(driver: &DriverInfo) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = driver.children.iter().map(|child| child.name).collect();
    if driver.supports_backing && !names.contains(&"backing") {
        names.push("backing");
    }
    names
}

/// Refuses a change of the driver or of the name, and takes both out.
pub(super) fn check_identity(
    options: &mut NodeOptions,
    driver: &DriverInfo,
    name: &str,
) -> Result<(), Error> {
    for (key, is) in [("driver", driver.name), ("node-name", name)] {
        if let Some(given) = options.take(key).map(|given| given.to_string())
            && given != is
        {
            let text = format!("Cannot change the option '{key}' from '{is}' to '{given}'");
            return Err(invalid(text));
        }
    }
    Ok(())
}

/// What is said of a child in a reopen.
pub(super) fn take_child(
    options: &mut NodeOptions,
    name: &str,
    driver: &DriverInfo,
) -> Result<ChildOptions, Error> {
    let child = options.take_child(name)?;
    let is_required = driver.children.iter().any(|spec| spec.name == name && spec.required);
    if child == ChildOptions::None && (is_required || driver.kind == DriverKind::Protocol) {
        return Err(invalid(format!("A block device must be specified for \"{name}\"")));
    }
    Ok(child)
}
