//! The namespaces of a controller as they come, change and go, and the nodes that are open on
//! them (rows 28 and 29).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind, EventKind, Limits, Node};
use oxblock_nvme::identify::{CSI_NVM, Controller as ControllerPage};
use oxblock_nvme::status::Status;

use super::admin::Admin;
use super::hardware::Hardware;
use super::namespace::{Bounds, NamespaceInfo, Shape};
use super::{identify, status};

/// How often a scan looks whether the one before it has ended.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// The namespaces that were found, and why some of them cannot be used.
pub(super) type Found = BTreeMap<u32, Result<NamespaceInfo, Error>>;

/// What is known of a controller's namespaces.
pub(super) struct Namespaces {
    found: Mutex<Found>,
    open: Mutex<Vec<Weak<OpenNamespace>>>,
    /// SGLs may be used.
    sgl: bool,
    /// All media is read-only, as the controller's health says.
    read_only: AtomicBool,
    /// A scan is under way: an older one must not have the last word.
    scanning: AtomicBool,
}

/// A namespace that was given out as a driver. Its queues keep to `shape`; its limits follow the
/// namespace as far as the shape allows.
pub(super) struct OpenNamespace {
    pub shape: Shape,
    limits: Mutex<Limits>,
    node: OnceLock<Weak<Node>>,
    /// Why nothing is opened on it any more.
    ended: OnceLock<&'static str>,
}

/// What a scan asks the controller for.
pub(super) struct Scan<'a> {
    pub core: &'a Core,
    pub admin: &'a Arc<Admin>,
    pub hardware: &'a Hardware,
}

/// What a namespace has become for a node that is open on it.
enum Fate {
    Stays(Limits),
    /// It cannot go on, for this reason.
    Ends(&'static str),
    /// The controller does not say for now.
    Unknown,
}

impl Namespaces {
    /// Those that a controller has when it is attached.
    pub fn new(found: Found, sgl: bool) -> Self {
        Self {
            found: Mutex::new(found),
            open: Mutex::default(),
            sgl,
            read_only: AtomicBool::new(false),
            scanning: AtomicBool::new(false),
        }
    }

    /// Their IDs, those that cannot be used included.
    pub fn ids(&self) -> Vec<u32> {
        self.found().keys().copied().collect()
    }

    /// A namespace to be opened.
    ///
    /// # Errors
    /// There is no such namespace, or it is formatted in a way that the driver does not support.
    pub fn open(&self, nsid: u32) -> Result<Arc<OpenNamespace>, Error> {
        let found = self.found();
        let Some(info) = found.get(&nsid) else {
            let active: Vec<u32> = found.keys().copied().collect();
            let text = format!("there is none; active are {active:?}");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let info = info.as_ref().map_err(Error::clone)?;
        let open = Arc::new(OpenNamespace {
            shape: info.shape,
            limits: Mutex::new(self.with_health(info.limits.clone())),
            node: OnceLock::new(),
            ended: OnceLock::new(),
        });
        let mut all = self.all_open();
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&open));
        Ok(open)
    }

    /// Looks at these namespaces afresh, or at all of them, has open nodes follow, and tells the
    /// embedder what has come and gone.
    ///
    /// # Errors
    /// The controller refuses to list them, or fails; then all is as it was.
    pub async fn rescan(&self, scan: &Scan<'_>, which: Option<&[u32]>) -> Result<(), Error> {
        let _turn = Turn::take(&self.scanning, scan.core).await;
        let page = identify::controller(scan.core, scan.admin).await?;
        let new = scan.look(&page, self.sgl, which).await?;
        self.take_over(scan.core, scan.hardware, new, which).await;
        Ok(())
    }

    /// All that a controller has after a reset.
    pub async fn renew(&self, core: &Core, hardware: &Hardware, found: Found) {
        let _turn = Turn::take(&self.scanning, core).await;
        self.take_over(core, hardware, found, None).await;
    }

    async fn take_over(&self, core: &Core, hardware: &Hardware, new: Found, which: Option<&[u32]>) {
        let (came, went) = self.replace(new, which);
        self.follow(core).await;
        let name = hardware.address();
        for id in went {
            let text = format!("namespace {id} was deleted, detached, or replaced");
            core.publish(name, EventKind::NamespaceRemoved { id }, text);
        }
        for id in came {
            let text = format!("namespace {id} was attached");
            core.publish(name, EventKind::NamespaceAdded { id }, text);
        }
    }

    /// All media is read-only, or is no more: open nodes follow.
    pub async fn set_read_only(&self, core: &Core, read_only: bool) {
        if self.read_only.swap(read_only, Ordering::SeqCst) != read_only {
            self.follow(core).await;
        }
    }

    /// The nodes over namespaces of the controller.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let open: Vec<_> = self.all_open().iter().filter_map(Weak::upgrade).collect();
        open.iter().filter_map(|open| open.node.get()?.upgrade()).collect()
    }

    /// Takes over what a scan found; gives the namespaces that came by it, and those that went.
    fn replace(&self, new: Found, which: Option<&[u32]>) -> (Vec<u32>, Vec<u32>) {
        let mut found = self.found();
        let looked_at = |nsid: &u32| which.is_none_or(|which| which.contains(nsid));
        let stays = |nsid: &u32| match (found.get(nsid), new.get(nsid)) {
            (Some(Ok(old)), Some(Ok(new))) => old.shape.identifiers == new.shape.identifiers,
            (old, new) => old.is_some() && new.is_some(),
        };
        let came = new.keys().copied().filter(|nsid| !stays(nsid)).collect();
        let went = found.keys().copied().filter(|nsid| looked_at(nsid) && !stays(nsid)).collect();
        found.retain(|nsid, _| !looked_at(nsid));
        found.extend(new);
        (came, went)
    }

    /// Lets open nodes be what their namespaces are now.
    async fn follow(&self, core: &Core) {
        let open: Vec<_> = self.all_open().iter().filter_map(Weak::upgrade).collect();
        for open in open {
            let node = open.node.get().and_then(Weak::upgrade);
            // An engine that ends meanwhile has no node left to change.
            match (self.fate(&open), node) {
                (Fate::Stays(limits), node) => {
                    *open.lock() = limits;
                    if let Some(node) = node {
                        let _ = core.refresh(&node).await;
                    }
                }
                (Fate::Ends(text), node) => {
                    let _ = open.ended.set(text);
                    if let Some(node) = node {
                        let _ = core.withdraw(&node, ErrorKind::Gone, text).await;
                    }
                }
                (Fate::Unknown, _) => {}
            }
        }
    }

    fn fate(&self, open: &OpenNamespace) -> Fate {
        let found = self.found();
        let info = match found.get(&open.shape.nsid) {
            None => {
                return Fate::Ends("its namespace was deleted, or detached from the controller");
            }
            Some(Err(error)) if error.kind() == ErrorKind::NotSupported => {
                return Fate::Ends("its namespace was formatted in a way that is not supported");
            }
            Some(Err(_)) => return Fate::Unknown,
            Some(Ok(info)) => info,
        };
        if info.shape.identifiers != open.shape.identifiers {
            return Fate::Ends("another namespace has taken the place of its own; open that anew");
        }
        if !info.shape.is_of(&open.shape) {
            return Fate::Ends("its namespace was formatted with other blocks; open it anew");
        }
        let mut limits = self.with_health(info.limits.clone());
        if info.shape != open.shape {
            // Its queues build commands as they did: what only the new shape allows stays unused.
            let old = open.limits();
            limits.max_discard = limits.max_discard.min(old.max_discard);
            limits.volatile_cache |= old.volatile_cache;
            (limits.memory, limits.max_segments) = (old.memory, old.max_segments);
        }
        Fate::Stays(limits)
    }

    fn with_health(&self, limits: Limits) -> Limits {
        let read_only = limits.read_only || self.read_only.load(Ordering::SeqCst);
        Limits { read_only, ..limits }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_open(&self) -> MutexGuard<'_, Vec<Weak<OpenNamespace>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenNamespace {
    /// What one request may ask, as of now.
    pub fn limits(&self) -> Limits {
        self.lock().clone()
    }

    /// The namespace is that of this node.
    pub fn join(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    /// No queue is opened on what cannot go on.
    ///
    /// # Errors
    /// It cannot, in words.
    pub fn check(&self) -> Result<(), Error> {
        match self.ended.get() {
            Some(text) => Err(Error::new(ErrorKind::Gone, *text)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scan<'_> {
    /// The active ones of these, or all that are active.
    ///
    /// # Errors
    /// The controller refuses to list them, or fails.
    pub async fn look(
        &self,
        page: &ControllerPage,
        sgl: bool,
        which: Option<&[u32]>,
    ) -> Result<Found, Error> {
        let Scan { core, admin, hardware } = *self;
        let (nvm, has_nvm) = identify::controller_nvm(core, admin, hardware).await?;
        let (mpsmin, quirks) = (hardware.cap().mpsmin(), hardware.quirks());
        let bounds = Bounds { page, nvm: &nvm, has_nvm, mpsmin, sgl, quirks };
        let ids = match which {
            Some(ids) => ids.to_vec(),
            None => identify::namespace_ids(core, admin, page, hardware).await?,
        };
        let mut found = BTreeMap::new();
        for nsid in ids {
            if let Some(info) = self.look_at(nsid, &bounds).await? {
                found.insert(nsid, info);
            }
        }
        Ok(found)
    }

    /// One namespace; none if it is not active.
    async fn look_at(
        &self,
        nsid: u32,
        bounds: &Bounds<'_>,
    ) -> Result<Option<Result<NamespaceInfo, Error>>, Error> {
        let Scan { core, admin, hardware } = *self;
        let csi = identify::command_set(core, admin, hardware, nsid).await?;
        if csi != CSI_NVM {
            let text = format!("command set {csi} is not supported, the NVM command set is");
            return Ok(Some(Err(Error::new(ErrorKind::NotSupported, text))));
        }
        Ok(match identify::namespace(core, admin, nsid).await? {
            // Inactive: it went away since the list was read, or the controller has no list.
            Ok(namespace) if namespace.nsze.get() == 0 => None,
            Ok(namespace) => Some(NamespaceInfo::new(nsid, &namespace, bounds)),
            Err(status) if status.code() == Status::INVALID_NAMESPACE.code() => None,
            Err(status) => Some(Err(status::error("identify namespace", status))),
        })
    }
}

/// The right to scan, for as long as it lives.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    async fn take(scanning: &'a AtomicBool, core: &Core) -> Turn<'a> {
        while scanning.swap(true, Ordering::Acquire) {
            core.sleep(LOOK_INTERVAL).await;
        }
        Turn(scanning)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
