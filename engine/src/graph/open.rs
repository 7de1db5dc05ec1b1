//! Opening nodes from their options.

use std::sync::Arc;

use super::Graph;
use super::book::{NewChild, new_edge};
use super::driver_info::{DriverInfo, DriverKind, Drivers, Opening};
use super::image;
use super::names::{ChildNames, NodeNames, Origin};
use super::policy::{Chain, FileId, FoundFile, OpenPolicy};
use super::recipe::Recipe;
use super::role::ChildRole;
use super::settings::NodeSettings;
use super::tables::{NodeEntry, NodeId, Tables, check_name, duplicate};
use crate::options::{ChildOptions, NodeOptions, Settings, invalid};
use crate::{BackingFile, Body, Core, Error, ErrorKind, LocalFuture, Node};

/// A node that is there, and not yet in the book.
pub(super) enum Planned {
    Known { id: NodeId, node: Arc<Node>, is_protocol: bool, names: NodeNames },
    New(Box<New>),
}

pub(super) struct New {
    entry: NodeEntry<Arc<Node>>,
    recipe: Recipe,
    origin: Origin,
    names: NodeNames,
    /// The file that its image lies in.
    file: Option<FileId>,
    children: Vec<PlannedChild>,
}

pub(super) struct PlannedChild {
    name: &'static str,
    role: ChildRole,
    planned: Planned,
}

impl Planned {
    pub(super) fn node(&self) -> &Arc<Node> {
        match self {
            Self::Known { node, .. } => node,
            Self::New(new) => &new.entry.body,
        }
    }

    fn names(&self) -> &NodeNames {
        match self {
            Self::Known { names, .. } => names,
            Self::New(new) => &new.names,
        }
    }

    fn is_protocol(&self) -> bool {
        match self {
            Self::Known { is_protocol, .. } => *is_protocol,
            Self::New(new) => new.origin.is_protocol(),
        }
    }

    fn file(&self) -> Option<FileId> {
        match self {
            Self::Known { .. } => None,
            Self::New(new) => new.file,
        }
    }
}

/// What all nodes of one open have in common.
struct Way<'a> {
    core: &'a Core,
    drivers: &'a Drivers,
    policy: &'a OpenPolicy,
}

/// Where in what is being opened a node stands.
#[derive(Default)]
struct Place {
    /// It is described among the options of another, as what that one lies on.
    is_storage: bool,
    chain: Chain,
    /// The file that its image lies in, where that was looked up by a policy.
    found: Option<FoundFile>,
}

impl Graph<Arc<Node>> {
    /// Opens a node, with the children that are described in its options, on this core. It stays
    /// until it is [released](Graph::release); children of its own go with it. Names in images are
    /// not followed, and formats not guessed.
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
        self.open_with(core, drivers, options, &OpenPolicy::default()).await
    }

    /// The same by a policy of the caller's.
    ///
    /// # Errors
    /// As [`open`](Self::open); a name in an image that the policy does not allow.
    pub async fn open_with(
        &mut self,
        core: &Core,
        drivers: &Drivers,
        options: NodeOptions,
        policy: &OpenPolicy,
    ) -> Result<NodeId, Error> {
        let planned = self.plan_owned(core, drivers, options, policy).await?;
        self.change(|tables| tables.insert_planned(planned))
    }

    /// Opens a node that is to stay, and what it has for children of its own. It is not in the book
    /// yet.
    pub(super) async fn plan_owned(
        &mut self,
        core: &Core,
        drivers: &Drivers,
        options: NodeOptions,
        policy: &OpenPolicy,
    ) -> Result<Planned, Error> {
        let way = Way { core, drivers, policy };
        let given = options.clone();
        let mut planned = self.plan(&way, options, given, Place::default()).await?;
        if let Planned::New(new) = &mut planned {
            new.entry.owned = true;
        }
        Ok(planned)
    }

    /// Opens a node with its children. `given` is what was said of it, `options` also what it
    /// inherits.
    fn plan<'a>(
        &'a mut self,
        way: &'a Way<'a>,
        mut options: NodeOptions,
        given: NodeOptions,
        place: Place,
    ) -> LocalFuture<'a, Result<Planned, Error>> {
        Box::pin(async move {
            let driver = driver_of(way, &mut options, place.is_storage)?;
            let name = self.name_of(&mut options)?;
            let common = NodeSettings::take(&mut options)?;
            let mut described = Described { common, options, given, place };
            let (driver, mut children, probed) = match driver {
                Some(driver) => (driver, Vec::new(), false),
                None => {
                    let (driver, file) = self.guess(way, &mut described).await?;
                    (driver, vec![file], true)
                }
            };
            let (origin, settings, file) = described.own(driver, probed)?;
            let backing = described.backing(driver)?;
            self.plan_children(way, driver, &settings, &mut described, &mut children).await?;
            driver.refuse_rest(&described.options)?;
            let nodes: Vec<(&'static str, Arc<Node>)> =
                children.iter().map(|child| (child.name, child.planned.node().clone())).collect();
            let opening = Opening {
                core: way.core,
                name: &name,
                settings: &settings,
                common: &described.common,
                children: &nodes,
                probed,
            };
            let body = (driver.open)(&opening).await?;
            let file = file.or_else(|| primary(&children).and_then(Planned::file));
            let mut new = Unjoined { name, driver, origin, body, children, file };
            self.plan_backing(way, backing, &described, &mut new).await?;
            let recipe = Recipe::new(driver, described.given, settings, described.common);
            new.join(recipe).map(|new| Planned::New(Box::new(new)))
        })
    }

    /// Opens what an image without a known format lies in, and looks what it is.
    async fn guess(
        &mut self,
        way: &Way<'_>,
        described: &mut Described,
    ) -> Result<(&'static DriverInfo, PlannedChild), Error> {
        let child = described.options.take_child("file")?;
        let role = ChildRole::IMAGE;
        let Some(planned) = self.plan_child(way, child, role, described).await? else {
            return Err(invalid("A block device must be specified for \"file\""));
        };
        let filename = planned.names().exact.as_deref();
        let driver = image::guess(way.core, way.drivers, planned.node(), filename).await?;
        if !described.common.read_only && driver.probe.is_some_and(|probe| probe(&[], None) > 0) {
            self.warn(image::warning(&planned.names().filename()?));
        }
        let name = driver.children.iter().find(|spec| spec.name == "file");
        let name = name.ok_or_else(|| invalid("the format that was guessed lies in no file"))?.name;
        Ok((driver, PlannedChild { name, role, planned }))
    }

    /// Opens the children that the driver has and that are not there yet.
    async fn plan_children(
        &mut self,
        way: &Way<'_>,
        driver: &'static DriverInfo,
        settings: &Settings,
        described: &mut Described,
        children: &mut Vec<PlannedChild>,
    ) -> Result<(), Error> {
        // What is said of all of them is looked at before any is opened.
        let mut said = Vec::new();
        for spec in driver.children {
            let role = (spec.role)(settings);
            if let Some(known) = children.iter_mut().find(|child| child.name == spec.name) {
                known.role = role;
                continue;
            }
            let child = described.options.take_child(spec.name)?;
            if spec.required && matches!(child, ChildOptions::Absent | ChildOptions::None) {
                let text = format!("A block device must be specified for \"{}\"", spec.name);
                return Err(invalid(text));
            }
            said.push((spec.name, role, child));
        }
        driver.refuse_rest(&described.options)?;
        for (name, role, child) in said {
            if let Some(planned) = self.plan_child(way, child, role, described).await? {
                children.push(PlannedChild { name, role, planned });
            }
        }
        Ok(())
    }

    async fn plan_child(
        &mut self,
        way: &Way<'_>,
        child: ChildOptions,
        role: ChildRole,
        described: &mut Described,
    ) -> Result<Option<Planned>, Error> {
        match child {
            ChildOptions::Reference(name) => self.known(&name).map(Some),
            ChildOptions::Inline(mut inline) => {
                let given = inline.clone();
                described.common.inherit(role, &mut inline);
                let found = described.place.found.take();
                let chain = described.place.chain.clone();
                let place = Place { is_storage: true, chain, found };
                self.plan(way, inline, given, place).await.map(Some)
            }
            ChildOptions::Absent | ChildOptions::None => Ok(None),
        }
    }

    /// Opens the backing file of an image: the one that was given, or the one that it names.
    async fn plan_backing(
        &mut self,
        way: &Way<'_>,
        given: ChildOptions,
        described: &Described,
        new: &mut Unjoined,
    ) -> Result<(), Error> {
        let named = match &new.body {
            Body::Over(format, _) => format.backing_file(),
            Body::Leaf(_) => None,
        };
        new.origin.auto_backing = named.as_ref().map(|backing| backing.name.clone());
        let planned = match (given, named) {
            (ChildOptions::Reference(name), _) => self.known(&name)?,
            (ChildOptions::Inline(mut inline), _) => {
                let given = inline.clone();
                described.common.inherit(ChildRole::COW, &mut inline);
                self.plan(way, inline, given, Place::default()).await?
            }
            (ChildOptions::None, _) | (ChildOptions::Absent, None) => return Ok(()),
            (ChildOptions::Absent, Some(backing)) => {
                let opened = self.plan_named(way, &backing, described, new).await;
                let planned = opened.map_err(|e| e.context("Could not open backing file"))?;
                new.origin.auto_backing = Some(planned.names().filename()?);
                planned
            }
        };
        if let Body::Over(_, children) = &mut new.body {
            children.push(planned.node().clone());
        }
        new.children.push(PlannedChild { name: "backing", role: ChildRole::COW, planned });
        Ok(())
    }

    /// Opens the backing file that an image names, as far as the policy goes.
    async fn plan_named(
        &mut self,
        way: &Way<'_>,
        backing: &BackingFile,
        described: &Described,
        new: &Unjoined,
    ) -> Result<Planned, Error> {
        let chain = described.place.chain.beneath(new.file, way.policy)?;
        let name = match primary(&new.children) {
            Some(file) => file.names().beside(&backing.name)?,
            None => backing.name.clone(),
        };
        let resolved = way.policy.resolve(&name, way.drivers)?;
        let mut options = resolved.options;
        match &backing.format {
            Some(format) => options.set("driver", format.as_str()),
            None if way.policy.probes || options.get("driver").is_some() => {}
            None => {
                return Err(invalid(format!(
                    "the image does not say what format '{name}' has, and it is not guessed; give \
                     'backing' with its driver"
                )));
            }
        }
        let given = options.clone();
        described.common.inherit(ChildRole::COW, &mut options);
        let place = Place { is_storage: false, chain, found: resolved.file };
        self.plan(way, options, given, place).await
    }

    fn known(&self, name: &str) -> Result<Planned, Error> {
        let Some(id) = self.find(name) else {
            let text = format!("Cannot find device='{name}' nor node-name='{name}'");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let is_protocol = self.origin(id).is_some_and(Origin::is_protocol);
        let (node, names) = (self.node(id)?.body.clone(), self.names(id)?);
        Ok(Planned::Known { id, node, is_protocol, names })
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

/// What is said of a node, and not taken yet.
struct Described {
    common: NodeSettings,
    options: NodeOptions,
    given: NodeOptions,
    place: Place,
}

impl Described {
    /// Takes the driver's own options. Gives what names follow from, and the file that is named.
    fn own(
        &mut self,
        driver: &'static DriverInfo,
        probed: bool,
    ) -> Result<(Origin, Settings, Option<FileId>), Error> {
        let filename = self.options.text("filename").unwrap_or_default().to_owned();
        if driver.needs_filename && filename.is_empty() {
            let text = format!("The '{}' block driver requires a file name", driver.name);
            return Err(invalid(text));
        }
        let origin = Origin { probed, ..Origin::new(driver, &self.options) };
        if !driver.needs_filename {
            let settings = Settings::take(driver.options, &mut self.options)?;
            return Ok((origin, settings, None));
        }
        let found = self.place.found.as_ref().map(FoundFile::path);
        let path = found.unwrap_or_else(|| filename.clone());
        let file = self.place.chain.file(&path, &filename)?;
        if self.given.get("filename").is_some() {
            self.given.set("filename", path.clone());
        }
        self.options.set("filename", path);
        let settings = Settings::take(driver.options, &mut self.options)?;
        Ok((origin, settings, file))
    }

    /// What is said of the backing file, where the driver leaves that to us.
    fn backing(&mut self, driver: &DriverInfo) -> Result<ChildOptions, Error> {
        let is_own = driver.children.iter().any(|spec| spec.name == "backing");
        match driver.supports_backing && !is_own {
            true => self.options.take_child("backing"),
            false => Ok(ChildOptions::Absent),
        }
    }
}

/// A node with its children that has no names yet.
struct Unjoined {
    name: Arc<str>,
    driver: &'static DriverInfo,
    origin: Origin,
    body: Body,
    children: Vec<PlannedChild>,
    file: Option<FileId>,
}

impl Unjoined {
    fn join(self, recipe: Recipe) -> Result<New, Error> {
        let Self { name, driver, origin, body, children, file } = self;
        let of_children: Vec<ChildNames> = children.iter().map(PlannedChild::names).collect();
        let names = origin.names_over(&of_children)?;
        let node = Node::restricted(name, body, recipe.common.restrictions());
        let entry = entry_of(driver, &recipe.common, node);
        Ok(New { entry, recipe, origin, names, file, children })
    }
}

impl PlannedChild {
    fn names(&self) -> ChildNames {
        let (name, role, is_protocol) = (self.name, self.role, self.planned.is_protocol());
        ChildNames { name, role, is_protocol, names: self.planned.names().clone() }
    }
}

fn primary(children: &[PlannedChild]) -> Option<&Planned> {
    let is_primary = |child: &&PlannedChild| child.role.contains(ChildRole::PRIMARY);
    children.iter().find(is_primary).map(|child| &child.planned)
}

/// The driver that is given, or follows from where the node stands; `None`: it is to be guessed.
fn driver_of(
    way: &Way<'_>,
    options: &mut NodeOptions,
    is_storage: bool,
) -> Result<Option<&'static DriverInfo>, Error> {
    let given = options.text("driver").map(str::to_owned);
    options.take("driver");
    let has_file = options.keys().any(|key| key == "file" || key.starts_with("file."));
    match given {
        Some(name) => way.drivers.find(&name).map(Some),
        // Where a format is not told what it lies on, that is a file.
        None if is_storage && options.get("filename").is_some() => {
            way.drivers.find(Drivers::PLAIN).map(Some)
        }
        None if !is_storage && has_file && way.policy.probes => Ok(None),
        None if !is_storage && has_file => Err(invalid(
            "Parameter 'driver' is missing: the format is not guessed from the image; for an \
             image without one give 'driver=raw'",
        )),
        None => Err(invalid("Must specify either driver or file")),
    }
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
        let New { entry, recipe, origin, children, .. } = match planned {
            Planned::Known { id, .. } => return Ok(id),
            Planned::New(new) => *new,
        };
        let id = self.insert_node(entry)?;
        self.recipes.insert(id, Arc::new(Recipe { heir_of, ..recipe }));
        self.origins.insert(id, Arc::new(origin));
        for PlannedChild { name, role, planned } in children {
            let node = self.insert_heir(planned, Some(id))?;
            self.insert_edge(new_edge(id, NewChild { name, role, node }))?;
        }
        Ok(id)
    }
}
