//! Reopening: nodes get other options while I/O goes on, all of one call or none.
//!
//! What is asked is found out first, for the nodes that are named and for those that inherit
//! options from them. Then each is prepared beside what it is now: the driver as it will be, the
//! book as it will be. What was prepared takes over in one drained section, and what it replaces
//! is closed afterwards; anything that fails before leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver_info::Opening;
use super::live::changed_views;
use super::recipe::{Recipe, check_identity, child_names, take_child};
use super::role::ChildRole;
use super::settings::NodeSettings;
use super::tables::{EdgeId, NodeId};
use super::{ChildSpec, Edge, Graph, Parent, Permissions};
use crate::options::{ChildOptions, NodeOptions, Settings, invalid};
use crate::view::ViewChange;
use crate::{Core, Driver, Error, ErrorKind, Format, Limits, Node, Restrictions, View};

/// A node as it is to be.
struct Queued {
    id: NodeId,
    recipe: Recipe,
    /// Nothing was said of it: what it inherits may be another.
    keeps: bool,
    /// Its children that are to be others, or none.
    children: Vec<(EdgeId, Option<NodeId>)>,
}

/// What was asked, and what follows from it.
struct Queue {
    asked: BTreeMap<NodeId, NodeOptions>,
    /// Each before its children.
    queued: Vec<Queued>,
    /// Also nodes whose options stay the same are made anew.
    anew: bool,
}

/// What is to take over.
#[derive(Default)]
struct Prepared {
    drivers: Vec<(Arc<Node>, Arc<dyn Driver>)>,
    formats: Vec<(Arc<Node>, Arc<dyn Format>)>,
    limits: BTreeMap<NodeId, Arc<Limits>>,
}

impl Graph<Arc<Node>> {
    /// Gives nodes other options, each of which names its node by `node-name` (`blockdev-reopen`).
    ///
    /// An option that is left out goes back to its default, or to what it inherits. A child that
    /// is described (`"file": {...}`) is reopened likewise; one that is named stays, or is
    /// replaced by another node of the graph; `"backing": null` takes it away. Children that are
    /// left out, and inherit options from their parent, go on with their own. I/O goes on: it
    /// waits in its slots while the nodes change.
    ///
    /// # Errors
    /// An option that cannot change while the node is open, with its values; what the drivers say;
    /// permissions that conflict; a flush that fails. Nothing has changed then.
    pub async fn reopen(&mut self, core: &Core, options: Vec<NodeOptions>) -> Result<(), Error> {
        let mut asked = BTreeMap::new();
        for options in options {
            let Some(name) = options.text("node-name") else {
                return Err(invalid("node-name not specified"));
            };
            let Some(id) = self.find(name) else {
                let text = format!("Failed to find node with node-name='{name}'");
                return Err(Error::new(ErrorKind::NotFound, text));
            };
            if asked.insert(id, options).is_some() {
                return Err(invalid("the same node is reopened twice in one call"));
            }
        }
        self.reopen_all(core, Queue { asked, queued: Vec::new(), anew: false }).await
    }

    async fn reopen_all(&mut self, core: &Core, mut queue: Queue) -> Result<(), Error> {
        for id in self.nodes() {
            if let Some(options) = queue.asked.remove(&id) {
                let parent = self.recipe(id)?.heir_of.and_then(|parent| self.recipe(parent).ok());
                let parent = parent.map(|recipe| recipe.common.clone());
                self.queue(&mut queue, id, Some(options), parent.as_ref())?;
            }
        }
        self.flush(core, &queue).await?;
        let prepared = self.prepare(core, &queue).await?;
        self.commit(core, queue, prepared, &[]).await
    }

    /// Makes nodes anew with the options that they have, since their images may be others. `set` has
    /// parents before children.
    pub(super) async fn reopen_anew(&mut self, core: &Core, set: &[NodeId]) -> Result<(), Error> {
        let mut queue = Queue { asked: BTreeMap::new(), queued: Vec::new(), anew: true };
        let mut others = Vec::new();
        for &id in set {
            if queue.queued.iter().any(|queued| queued.id == id) {
                continue;
            }
            let Ok(recipe) = self.recipe(id) else {
                others.push(self.node(id)?.body.clone());
                continue;
            };
            let parent = recipe.heir_of.and_then(|parent| self.recipe(parent).ok());
            let parent = parent.map(|recipe| recipe.common.clone());
            self.queue(&mut queue, id, None, parent.as_ref())?;
        }
        let prepared = self.prepare(core, &queue).await?;
        self.commit(core, queue, prepared, &others).await
    }

    fn recipe(&self, id: NodeId) -> Result<&Arc<Recipe>, Error> {
        self.tables().recipes.get(&id).ok_or_else(|| {
            let name = self.node(id).map(|node| node.name.to_string()).unwrap_or_default();
            invalid(format!("Node '{name}' was not opened from options, and cannot be reopened"))
        })
    }

    /// Queues a node and its heirs. `given` is what is said of it now: without, it keeps what was
    /// said, and what it inherits from `parent` may be another.
    fn queue(
        &self,
        queue: &mut Queue,
        id: NodeId,
        given: Option<NodeOptions>,
        parent: Option<&NodeSettings>,
    ) -> Result<(), Error> {
        let (node, old) = (self.node(id)?, self.recipe(id)?);
        let driver = old.driver;
        let given = given.or_else(|| queue.asked.remove(&id));
        let keeps = given.is_none();
        let mut own = given.map_or_else(
            || Ok(old.given.clone()),
            |mut given| check_identity(&mut given, driver, &node.name).map(|()| given),
        )?;
        let said = child_names(driver).into_iter();
        let said: Vec<(&str, ChildOptions)> = said
            .map(|name| Ok((name, take_child(&mut own, name, driver)?)))
            .collect::<Result<_, Error>>()?;
        let mut whole = own.clone();
        if let Some(parent) = parent {
            let role = self.parents(id).next().map_or(ChildRole::empty(), |edge| edge.role);
            parent.inherit(role, &mut whole);
        }
        let common = NodeSettings::take(&mut whole)?;
        let settings = Settings::take(driver.options, &mut whole)?;
        if let Err(error) = driver.refuse_rest(&whole) {
            let key = whole.keys().next().unwrap_or_default();
            return Err(error.context(format!("Cannot change the option '{key}'")));
        }
        let recipe =
            Recipe { heir_of: old.heir_of, ..Recipe::new(driver, own.clone(), settings, common) };
        old.check_change(&recipe, &own)?;
        let common = recipe.common.clone();
        let at = queue.queued.len();
        queue.queued.push(Queued { id, recipe, keeps, children: Vec::new() });
        for (name, child) in said {
            if let Some(changed) = self.queue_child(queue, id, name, child, &common)? {
                queue.queued[at].children.push(changed);
            }
        }
        Ok(())
    }

    /// Queues a child as far as it inherits, or is described. Gives it if it is to be another.
    fn queue_child(
        &self,
        queue: &mut Queue,
        id: NodeId,
        name: &str,
        said: ChildOptions,
        common: &NodeSettings,
    ) -> Result<Option<(EdgeId, Option<NodeId>)>, Error> {
        let of = &self.node(id)?.name;
        let Some(edge) = self.child(id, name) else {
            return match said {
                ChildOptions::Absent | ChildOptions::None => Ok(None),
                ChildOptions::Reference(_) | ChildOptions::Inline(_) => Err(invalid(format!(
                    "Cannot change the option '{name}': '{of}' has no such child"
                ))),
            };
        };
        let child = self.edge(edge)?.child;
        let is_heir = self.recipe(child).is_ok_and(|recipe| recipe.heir_of == Some(id));
        let given = match said {
            ChildOptions::None => return Ok(Some((edge, None))),
            ChildOptions::Reference(other) if other == *self.node(child)?.name => None,
            ChildOptions::Reference(other) => {
                let Some(other) = self.find(&other) else {
                    let text = format!("Cannot find device='' nor node-name='{other}'");
                    return Err(Error::new(ErrorKind::NotFound, text));
                };
                return Ok(Some((edge, Some(other))));
            }
            ChildOptions::Inline(options) if is_heir => Some(options),
            ChildOptions::Inline(options) => {
                let key = options.keys().next().unwrap_or_default();
                return Err(invalid(format!(
                    "Cannot change the option '{name}.{key}': node '{}' was not opened with '{of}'; \
                     reopen it by its own name",
                    self.node(child)?.name
                )));
            }
            ChildOptions::Absent if name == "backing" => {
                let asked = queue.queued.iter().any(|queued| queued.id == id && !queued.keeps);
                if asked {
                    return Err(invalid(format!("backing is missing for '{of}'")));
                }
                None
            }
            ChildOptions::Absent => None,
        };
        if is_heir {
            self.queue(queue, child, given, Some(common))?;
        }
        Ok(None)
    }

    /// Brings what was written to the media, before somebody else may be responsible for it.
    async fn flush(&self, core: &Core, queue: &Queue) -> Result<(), Error> {
        for Queued { id, .. } in &queue.queued {
            let node = &self.node(*id)?.body;
            let limits = node.limits();
            if !node.is_leaf() || limits.read_only || limits.no_flush {
                continue;
            }
            let flushed = core.flush_once(node).await;
            flushed.map_err(|error| error.context("Error flushing drive"))?;
        }
        Ok(())
    }

    /// Makes drivers for the new options, children first.
    async fn prepare(&self, core: &Core, queue: &Queue) -> Result<Prepared, Error> {
        let mut prepared = Prepared::default();
        for queued in queue.queued.iter().rev() {
            let entry = self.node(queued.id)?;
            let (node, recipe) = (&entry.body, &queued.recipe);
            let children = self.children_after(queued)?;
            let nodes: Vec<(&'static str, Arc<Node>)> = children
                .iter()
                .map(|(name, child)| Ok((*name, self.node(*child)?.body.clone())))
                .collect::<Result<_, Error>>()?;
            let opening = Opening {
                core,
                name: &entry.name,
                settings: &recipe.settings,
                common: &recipe.common,
                children: &nodes,
                probed: self.was_probed(queued.id),
            };
            let limits_of = |child: &NodeId| {
                let limits = prepared.limits.get(child).cloned();
                limits.map_or_else(|| self.node(*child).map(|child| child.body.limits()), Ok)
            };
            let beneath: Vec<Arc<Limits>> =
                children.iter().map(|(_, child)| limits_of(child)).collect::<Result<_, _>>()?;
            let is_another = queue.anew || !self.recipe(queued.id)?.is_same(recipe);
            let in_node = |error: Error| error.node(&entry.name);
            let limits = if let Ok(driver) = node.driver() {
                let new = match is_another {
                    true => driver.reopen(&opening).await.map_err(in_node)?.map(Arc::from),
                    false => None,
                };
                let limits = new.as_ref().unwrap_or(&driver).limits();
                prepared.drivers.extend(new.map(|new| (node.clone(), new)));
                limits
            } else {
                let Some(format) = node.format() else { continue };
                let is_another = is_another || !queued.children.is_empty();
                let new = match is_another {
                    true => format.reopen(&opening).await.map_err(in_node)?,
                    false => None,
                };
                let limits = new.as_ref().unwrap_or(&format).limits(&beneath);
                prepared.formats.extend(new.map(|new| (node.clone(), new)));
                limits
            };
            let limits = recipe.common.restrictions().apply(limits);
            prepared.limits.insert(queued.id, Arc::new(limits));
        }
        Ok(prepared)
    }

    /// The children that a node is to have.
    fn children_after(&self, queued: &Queued) -> Result<Vec<(&'static str, NodeId)>, Error> {
        let mut children: Vec<(&'static str, NodeId)> =
            self.children(queued.id).map(|edge| (edge.name, edge.child)).collect();
        for (edge, to) in &queued.children {
            let name = self.edge(*edge)?.name;
            match to {
                Some(to) => children
                    .iter_mut()
                    .filter(|(known, _)| *known == name)
                    .for_each(|(_, child)| *child = *to),
                None => children.retain(|(known, _)| *known != name),
            }
        }
        Ok(children)
    }

    /// Refuses to make nodes read-only that somebody writes to.
    fn refuse_writers(
        &self,
        queue: &Queue,
        limits: &BTreeMap<NodeId, Arc<Limits>>,
    ) -> Result<(), Error> {
        for Queued { id, .. } in &queue.queued {
            let (id, node) = (*id, self.node(*id)?);
            let turns = !node.read_only && limits.get(&id).is_some_and(|limits| limits.read_only);
            // Nodes that are reopened as well may ask for less afterwards.
            let stays = |parent: &Parent| match parent {
                Parent::Root(_) => true,
                Parent::Node(parent) => !queue.queued.iter().any(|queued| queued.id == *parent),
            };
            let writes = |edge: &Edge| edge.access.asked.intersects(Permissions::ANY_WRITE);
            if turns && self.parents(id).any(|edge| stays(&edge.parent) && writes(edge)) {
                let text =
                    format!("Read-only block node '{}' cannot support read-write users", node.name);
                return Err(Error::new(ErrorKind::Denied, text));
            }
        }
        Ok(())
    }

    /// Has what was prepared take over; the limits of `others` are read anew with it.
    async fn commit(
        &mut self,
        core: &Core,
        queue: Queue,
        prepared: Prepared,
        others: &[Arc<Node>],
    ) -> Result<(), Error> {
        let mut restrictions: Vec<(Arc<Node>, Restrictions)> =
            others.iter().map(|node| (node.clone(), node.restrictions())).collect();
        for queued in &queue.queued {
            let node = self.node(queued.id)?.body.clone();
            restrictions.push((node, queued.recipe.common.restrictions()));
        }
        let Prepared { drivers, formats, limits } = prepared;
        self.refuse_writers(&queue, &limits)?;
        let (tables, ()) = self.try_change(|tables| {
            for queued in queue.queued {
                let Queued { id, recipe, children, .. } = queued;
                for (edge, to) in children {
                    match to {
                        Some(to) => tables.replace_child(edge, to)?,
                        None => tables.remove_edge(edge)?,
                    }
                }
                for edge in tables.node(id)?.children.clone() {
                    let Some(edge) = tables.edges.get_mut(&edge) else { continue };
                    let role = role_of(recipe.driver.children, &recipe.settings, edge.name);
                    edge.role = role.unwrap_or(edge.role);
                }
                if let (Some(node), Some(limits)) = (tables.nodes.get_mut(&id), limits.get(&id)) {
                    node.read_only = limits.read_only;
                }
                if let Some(origin) = tables.origins.get_mut(&id) {
                    *origin = Arc::new(origin.reopened(&recipe.given));
                }
                tables.recipes.insert(id, Arc::new(recipe));
            }
            Ok(())
        })?;
        let mut views = changed_views(self.tables(), &tables)?;
        for (node, format) in formats {
            match views.iter_mut().find(|(changed, _)| Arc::ptr_eq(changed, &node)) {
                Some((_, view)) => view.format = format,
                None => {
                    let children = node.children();
                    views.push((node, View { format, children }));
                }
            }
        }
        let change = ViewChange { views, drivers, restrictions, ..ViewChange::default() };
        core.change_views(change, || self.keep(tables)).await
    }
}

fn role_of(children: &[ChildSpec], settings: &Settings, name: &str) -> Option<ChildRole> {
    children.iter().find(|spec| spec.name == name).map(|spec| (spec.role)(settings))
}
