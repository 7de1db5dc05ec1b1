//! Opening nodes from their options.

use std::sync::Arc;

use super::Graph;
use super::book::{NewChild, new_edge};
use super::driver_info::{DriverInfo, DriverKind, Drivers, Opening};
use super::recipe::Recipe;
use super::role::ChildRole;
use super::settings::NodeSettings;
use super::tables::{NodeEntry, NodeId, Tables, check_name, duplicate};
use crate::options::{ChildOptions, NodeOptions, Settings, invalid};
use crate::{Core, Error, ErrorKind, LocalFuture, Node};

/// A node that is there, and not yet in the book.
pub(super) enum Planned {
    Known(NodeId, Arc<Node>),
    New(Box<New>),
}

pub(super) struct New {
    entry: NodeEntry<Arc<Node>>,
    recipe: Recipe,
    children: Vec<(&'static str, ChildRole, Planned)>,
}

impl Planned {
    pub(super) fn node(&self) -> &Arc<Node> {
        match self {
            Self::Known(_, node) => node,
            Self::New(new) => &new.entry.body,
        }
    }
}

impl Graph<Arc<Node>> {
    /// Opens a node, with the children that are described in its options, on this core. It stays
    /// until it is [released](Graph::release); children of its own go with it.
    ///
    /// # Errors
    /// An option that its driver does not have, or a value that the option does not; what the
    /// drivers say; permissions that conflict with other users of a child. Nothing is left of it.
    pub async fn open(
        &mut self,
        core: &Core,
        drivers: &Drivers,
        options: NodeOptions,
    ) -> Result<NodeId, Error> {
        let planned = self.plan_owned(core, drivers, options).await?;
        self.change(|tables| tables.insert_planned(planned))
    }

    /// Opens a node that is to stay, and what it has for children of its own. It is not in the book
    /// yet.
    pub(super) async fn plan_owned(
        &mut self,
        core: &Core,
        drivers: &Drivers,
        options: NodeOptions,
    ) -> Result<Planned, Error> {
        let given = options.clone();
        let mut planned = self.plan(core, drivers, options, given, false).await?;
        if let Planned::New(new) = &mut planned {
            new.entry.owned = true;
        }
        Ok(planned)
    }

    fn plan<'a>(
        &'a mut self,
        core: &'a Core,
        drivers: &'a Drivers,
        mut options: NodeOptions,
        given: NodeOptions,
        is_child: bool,
    ) -> LocalFuture<'a, Result<Planned, Error>> {
        Box::pin(async move {
            let driver = driver_of(drivers, &mut options, is_child)?;
            let name = self.name_of(&mut options)?;
            let common = NodeSettings::take(&mut options)?;
            if driver.needs_filename && options.text("filename").is_none_or(str::is_empty) {
                let text = format!("The '{}' block driver requires a file name", driver.name);
                return Err(invalid(text));
            }
            let settings = Settings::take(driver.options, &mut options)?;
            let described = children_of(driver, &mut options)?;
            driver.refuse_rest(&options)?;
            let mut children = Vec::new();
            for (spec, described) in described {
                let role = (spec.role)(&settings);
                let child = match described {
                    ChildOptions::Reference(name) => self.known(&name)?,
                    ChildOptions::Inline(mut inline) => {
                        let given = inline.clone();
                        common.inherit(role, &mut inline);
                        self.plan(core, drivers, inline, given, true).await?
                    }
                    ChildOptions::Absent | ChildOptions::None => continue,
                };
                children.push((spec.name, role, child));
            }
            let nodes: Vec<(&'static str, Arc<Node>)> =
                children.iter().map(|(name, _, child)| (*name, child.node().clone())).collect();
            let opening = Opening {
                core,
                name: &name,
                settings: &settings,
                common: &common,
                children: &nodes,
            };
            let body = (driver.open)(&opening).await?;
            let node = Node::restricted(name.clone(), body, common.restrictions());
            let entry = entry_of(driver, &common, node);
            let recipe = Recipe::new(driver, given, settings, common);
            Ok(Planned::New(Box::new(New { entry, recipe, children })))
        })
    }

    fn known(&self, name: &str) -> Result<Planned, Error> {
        let known = self.find(name).and_then(|id| Some((id, self.node(id).ok()?.body.clone())));
        known.map(|(id, node)| Planned::Known(id, node)).ok_or_else(|| {
            let text = format!("Cannot find device='{name}' nor node-name='{name}'");
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// The name that a node was given, or one made up.
    fn name_of(&mut self, options: &mut NodeOptions) -> Result<Arc<str>, Error> {
        let Some(given) = options.take("node-name") else { return Ok(self.make_up_name().into()) };
        let name = given.to_string();
        check_name(&name)?;
        if name.starts_with('#') {
            return Err(invalid(format!("Invalid node-name: '{name}'")));
        }
        if self.find(&name).is_some() {
            return Err(duplicate(&name));
        }
        Ok(name.into())
    }
}

fn driver_of(
    drivers: &Drivers,
    options: &mut NodeOptions,
    is_child: bool,
) -> Result<&'static DriverInfo, Error> {
    let given = options.text("driver").map(str::to_owned);
    options.take("driver");
    match given {
        Some(name) => drivers.find(&name),
        // Where a format is not told what it lies on, that is a file.
        None if is_child && options.get("filename").is_some() => drivers.find(Drivers::PLAIN),
        None if !is_child
            && options.keys().any(|key| key == "file" || key.starts_with("file.")) =>
        {
            Err(invalid(
                "Parameter 'driver' is missing: the format is not guessed from the image; for an \
                 image without one give 'driver=raw'",
            ))
        }
        None => Err(invalid("Must specify either driver or file")),
    }
}

type Described = Vec<(&'static super::ChildSpec, ChildOptions)>;

/// What is said of each child that the driver has.
fn children_of(driver: &'static DriverInfo, options: &mut NodeOptions) -> Result<Described, Error> {
    let mut described = Vec::new();
    for spec in driver.children {
        let child = options.take_child(spec.name)?;
        if spec.required && matches!(child, ChildOptions::Absent | ChildOptions::None) {
            return Err(invalid(format!("A block device must be specified for \"{}\"", spec.name)));
        }
        described.push((spec, child));
    }
    Ok(described)
}

fn entry_of(
    driver: &'static DriverInfo,
    common: &NodeSettings,
    node: Arc<Node>,
) -> NodeEntry<Arc<Node>> {
    NodeEntry {
        driver: driver.name,
        force_share: common.force_share,
        is_filter: driver.kind == DriverKind::Filter,
        owned: false,
        ..NodeEntry::new(node, driver.child_rule)
    }
}

impl Tables<Arc<Node>> {
    pub(super) fn insert_planned(&mut self, planned: Planned) -> Result<NodeId, Error> {
        self.insert_heir(planned, None)
    }

    /// Inserts a node that inherits options from `heir_of`.
    fn insert_heir(&mut self, planned: Planned, heir_of: Option<NodeId>) -> Result<NodeId, Error> {
        let New { entry, recipe, children } = match planned {
            Planned::Known(id, _) => return Ok(id),
            Planned::New(new) => *new,
        };
        let id = self.insert_node(entry)?;
        self.recipes.insert(id, Arc::new(Recipe { heir_of, ..recipe }));
        for (name, role, child) in children {
            let node = self.insert_heir(child, Some(id))?;
            self.insert_edge(new_edge(id, NewChild { name, role, node }))?;
        }
        Ok(id)
    }
}
