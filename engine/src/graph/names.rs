//! What nodes are called by those who would open the same again.

use std::sync::Arc;

use super::path::{combine, has_protocol};
use super::role::ChildRole;
use super::{ChildEvent, DriverInfo, DriverKind, Edge, Graph, NodeId, Told};
use crate::options::{NodeOptions, Scalar, invalid};
use crate::{Error, Node};

/// What was said when a node was opened, as far as names follow from it.
#[derive(Clone)]
pub struct Origin {
    /// What drives it.
    pub(super) driver: &'static DriverInfo,
    /// What was given of the options that belong to its name.
    pub(super) strong: NodeOptions,
    /// The format was not given, but guessed from the image.
    pub(super) probed: bool,
    /// The backing file that the image itself names: as it stands there, or the name of the node
    /// that was opened for it.
    pub(super) auto_backing: Option<String>,
}

/// A node's names.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeNames {
    /// The name without options that opens the same, if there is one.
    pub exact: Option<String>,
    /// The options that open the same, those of its children included.
    pub options: NodeOptions,
    /// What stands before the names of files that lie beside it, if that can be said.
    pub directory: Option<String>,
}

impl NodeNames {
    /// The name that opens the same: an exact one, or `json:{...}`.
    ///
    /// # Errors
    /// `Invalid`: options that are no JSON.
    pub fn filename(&self) -> Result<String, Error> {
        self.exact.clone().map_or_else(|| self.json(), Ok)
    }

    /// The name as `json:{...}`, which every node has.
    ///
    /// # Errors
    /// As [`filename`](Self::filename).
    pub fn json(&self) -> Result<String, Error> {
        Ok(format!("json:{}", self.options.to_json()?))
    }

    /// The whole name of a file that an image in this node calls `name`.
    ///
    /// # Errors
    /// `Invalid`: a relative name, where the node lies in no folder.
    pub fn beside(&self, name: &str) -> Result<String, Error> {
        if has_protocol(name) || name.starts_with('/') {
            return Ok(name.into());
        }
        let directory = self.directory.as_deref().ok_or_else(|| {
            let driver = self.options.text("driver").unwrap_or_default();
            invalid(format!("Cannot generate a base directory for {driver} nodes"))
        })?;
        Ok(format!("{directory}{name}"))
    }
}

/// A child as the names of its parent need it.
pub(super) struct ChildNames {
    pub name: &'static str,
    pub role: ChildRole,
    pub is_protocol: bool,
    pub names: NodeNames,
}

impl ChildNames {
    fn is_backing(&self) -> bool {
        self.role.contains(ChildRole::COW)
    }
}

impl Origin {
    /// Keeps what belongs to the name of a node with these options.
    pub(super) fn new(driver: &'static DriverInfo, options: &NodeOptions) -> Self {
        let mut strong = NodeOptions::new();
        for spec in driver.options.iter().filter(|spec| spec.strong) {
            match options.get(spec.name) {
                None | Some(Scalar::Null) => {}
                Some(value) => strong.set(spec.name, value.clone()),
            }
        }
        Self { driver, strong, probed: false, auto_backing: None }
    }

    /// The same after a reopen with other options.
    pub(super) fn reopened(&self, given: &NodeOptions) -> Self {
        let mut strong = self.strong.clone();
        for spec in self.driver.options.iter().filter(|spec| spec.strong && spec.mutable) {
            strong.take(spec.name);
            if let Some(value) = given.get(spec.name).filter(|value| **value != Scalar::Null) {
                strong.set(spec.name, value.clone());
            }
        }
        Self { strong, ..self.clone() }
    }

    pub(super) fn is_protocol(&self) -> bool {
        self.driver.kind == DriverKind::Protocol
    }

    /// Whether the backing file in use is another than the image names.
    fn backing_differs(&self, children: &[ChildNames]) -> Result<bool, Error> {
        let Some(used) = children.iter().find(|child| child.is_backing()) else {
            return Ok(self.auto_backing.is_some());
        };
        Ok(self.auto_backing != Some(used.names.filename()?))
    }

    /// The names of a node over these children.
    pub(super) fn names_over(&self, children: &[ChildNames]) -> Result<NodeNames, Error> {
        let mut options = self.strong.clone();
        options.set("driver", self.driver.name);
        let backing_differs = self.backing_differs(children)?;
        // The name of a file says the same as the option of it.
        let is_plain = !backing_differs && self.strong.keys().all(|key| key == "filename");
        for child in children.iter().filter(|child| backing_differs || !child.is_backing()) {
            options.set_child(child.name, child.names.options.clone());
        }
        if backing_differs && !children.iter().any(ChildNames::is_backing) {
            options.set("backing", Scalar::Null);
        }
        let primary = children.iter().find(|child| child.role.contains(ChildRole::PRIMARY));
        let exact = match (self.driver.filename, primary) {
            (Some(filename), _) => filename(&options),
            (None, None) => self.strong.text("filename").map(str::to_owned),
            (None, Some(child)) => {
                let tells = self.driver.kind == DriverKind::Format && child.is_protocol && is_plain;
                child.names.exact.clone().filter(|_| tells)
            }
        };
        let exact = exact.filter(|name| !name.is_empty());
        let directory = match primary {
            Some(child) => child.names.directory.clone(),
            None => exact.as_deref().map(|name| combine(name, "")),
        };
        Ok(NodeNames { exact, options, directory })
    }
}

impl Graph<Arc<Node>> {
    /// What a node is called.
    ///
    /// # Errors
    /// `NotFound`: it, or a child of it, is gone.
    pub fn names(&self, id: NodeId) -> Result<NodeNames, Error> {
        let node = self.node(id)?;
        if node.implicit
            && let Some(child) = self.children(id).next()
        {
            return self.names(child.child);
        }
        match self.origin(id) {
            Some(origin) => origin.names_over(&self.names_of_children(id)?),
            None => {
                let mut options = NodeOptions::new();
                options.set("driver", node.driver);
                Ok(NodeNames { exact: None, options, directory: None })
            }
        }
    }

    fn names_of_children(&self, id: NodeId) -> Result<Vec<ChildNames>, Error> {
        let names = self.children(id).map(|edge| {
            let is_protocol = self.origin(edge.child).is_some_and(Origin::is_protocol);
            let (name, role, names) = (edge.name, edge.role, self.names(edge.child)?);
            Ok(ChildNames { name, role, is_protocol, names })
        });
        names.collect()
    }

    /// Whether the format of a node was guessed from its image.
    pub fn was_probed(&self, id: NodeId) -> bool {
        self.origin(id).is_some_and(|origin| origin.probed)
    }

    /// The edge to a node's backing file.
    pub fn backing(&self, id: NodeId) -> Option<&Edge> {
        self.children(id).find(|edge| edge.role.contains(ChildRole::COW))
    }

    /// The backing file that the image of a node names, whatever is in use: as it stands there, or
    /// by the name of the node that was opened for it.
    pub fn image_backing(&self, id: NodeId) -> Option<&str> {
        self.origin(id)?.auto_backing.as_deref()
    }

    /// Whether the backing file in use is another than the image names.
    ///
    /// # Errors
    /// As [`names`](Self::names).
    pub fn backing_overridden(&self, id: NodeId) -> Result<bool, Error> {
        match self.origin(id) {
            Some(origin) => origin.backing_differs(&self.names_of_children(id)?),
            None => Ok(self.backing(id).is_some()),
        }
    }

    /// Tells the users of a node that its name is another now, and those above whose names follow
    /// from it.
    pub fn tell_name(&self, id: NodeId) -> Vec<Told> {
        self.tell_parents(id, &ChildEvent::FilenameChanged, |_, _, edge| {
            edge.role.contains(ChildRole::PRIMARY)
        })
    }
}
