//! Controllers for hosts in other processes, over vfio-user.
//!
//! Each client of the socket gets a controller of its own, fresh as after power-on, over the same
//! namespaces; it goes with the client. Registers, DMA maps and interrupts of a client are the
//! business of one thread, which no core waits for; its queues are polled by the core that has
//! its controller, through doorbells that the client maps.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use oxblock_engine::{Core, Engine, Error, ErrorKind, Remote};
use oxblock_pci::vfio_user::{self, Ended, SessionOptions};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use crate::hooks::NoHooks;
use crate::{Controller, ControllerOptions};

/// How often a thread looks whether a controller has stopped.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How long the end of a server waits for its controllers.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// What is served, and where.
#[derive(Clone)]
pub struct VfioUserOptions {
    /// The socket, made by the server; or a folder, for a socket `cntrl` in it.
    pub path: PathBuf,
    /// What each controller is like. Its doorbells are mapped, and if it does not say how many
    /// commands it has in work, its share of the core's slots is what is left when there are as
    /// many clients as there may be.
    pub controller: ControllerOptions,
    /// The cores of the engine that have the controllers, in turn.
    pub cores: Vec<usize>,
    /// Clients at a time. Further ones are refused, with EBUSY.
    pub clients_max: usize,
    /// What one client may take.
    pub session: SessionOptions,
    /// Called with each event, from threads of the server.
    pub report: Arc<dyn Fn(&ClientEvent) + Send + Sync>,
}

impl VfioUserOptions {
    /// Serves controllers like this one at a socket, on core 0, to 16 clients, quietly.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, controller: ControllerOptions) -> VfioUserOptions {
        VfioUserOptions {
            path: path.into(),
            controller,
            cores: vec![0],
            clients_max: 16,
            session: SessionOptions::default(),
            report: Arc::new(|_| {}),
        }
    }
}

/// Something that happened to a client, by its number from 1.
#[derive(Debug)]
pub enum ClientEvent {
    /// It has a controller.
    Connected(u64),
    /// It was refused: there are as many as there may be.
    Refused(u64),
    /// It could not be given a controller.
    Failed(u64, Error),
    /// It has left, or was thrown out.
    Left(u64, Ended),
}

impl fmt::Display for ClientEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientEvent::Connected(id) => write!(f, "client {id}: connected"),
            ClientEvent::Refused(id) => write!(f, "client {id}: refused: too many clients"),
            ClientEvent::Failed(id, error) => write!(f, "client {id}: no controller: {error}"),
            ClientEvent::Left(id, why) => write!(f, "client {id}: over: {why}"),
        }
    }
}

/// A socket that controllers are served at. Dropping the handle stops it.
pub struct VfioUserServer {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// The file that we made of it.
    inode: u64,
    listener: UnixListener,
    options: VfioUserOptions,
    cores: Vec<Remote>,
    stopping: AtomicBool,
    clients: Mutex<Vec<Client>>,
    next_id: AtomicU64,
}

/// A client that holds one of the places.
struct Client {
    id: u64,
    socket: UnixStream,
    controller: Option<Arc<Controller>>,
}

impl VfioUserServer {
    /// Opens the namespaces' nodes on the cores that serve, makes the socket and serves. The
    /// threads of the server run where the calling thread may run, which must not be a core's.
    ///
    /// # Errors
    /// The options make no sense, a node cannot be opened, or the socket cannot be made.
    pub fn start(engine: &Engine, options: VfioUserOptions) -> Result<VfioUserServer, Error> {
        let mut options = options;
        options.controller.mapped_doorbells = true;
        options.controller.check()?;
        let (mut cores, mut slots) = (Vec::new(), usize::MAX);
        for &at in &options.cores {
            let no_core = || Error::new(ErrorKind::Invalid, format!("there is no core {at}"));
            cores.push(engine.remote(at).ok_or_else(no_core)?);
            let nodes: Vec<_> = options.controller.nodes().cloned().collect();
            // The core's queues stay open, so that they are closed after the controllers.
            let open = move |core: Core| async move {
                for node in nodes {
                    drop(core.open_to_serve(&node).await?);
                }
                Ok::<usize, Error>(core.stats().slots)
            };
            slots = slots.min(engine.run(at, open)??);
        }
        // Clients take turns on the cores.
        let sharing = options.clients_max.div_ceil(cores.len().max(1)).max(1);
        options.controller.max_in_work.get_or_insert((slots / sharing).max(1));
        let home = *options.cores.first().ok_or_else(no_cores)?;
        let path = vfio_user::socket_path(&options.path);
        let listener = listen(&path)?;
        let failed = |error| Error::from_io(format!("the socket {}", path.display()), error);
        let inode = fs::symlink_metadata(&path).map_err(failed)?.ino();
        let shared = Arc::new(Shared {
            path: path.clone(),
            inode,
            listener,
            options,
            cores,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            next_id: AtomicU64::new(1),
        });
        let server = VfioUserServer { shared: Arc::clone(&shared) };
        let stopping = Arc::clone(&shared);
        engine.run(home, move |core| async move {
            core.at_shutdown(move |core| Box::pin(async move { stopping.finish(&core).await }));
        })?;
        let accept = thread::Builder::new().name("vfio-user".into());
        accept.spawn(move || shared.accept()).map_err(failed)?;
        Ok(server)
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// How many clients there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.clients().len()
    }

    /// Takes no more clients, sends those away that there are, and removes the socket. Returns at
    /// once; the engine's shutdown waits for the controllers.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl Drop for VfioUserServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn report(&self, event: &ClientEvent) {
        (self.options.report)(event);
    }

    fn stop(&self) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
        // Ends the wait of the thread that accepts.
        let _ = shutdown(&self.listener, Shutdown::Both);
        for client in self.clients().iter() {
            client.end();
        }
    }

    /// Before the engine closes the nodes, the controllers let go of them.
    async fn finish(&self, core: &Core) -> Result<(), Error> {
        self.stop();
        let begun = Instant::now();
        while self.clients().iter().any(|client| !client.is_quiet()) {
            if begun.elapsed() > STOP_WAIT {
                let text = "controllers of vfio-user clients do not stop: their I/O does not end";
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
            core.sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Takes clients until the server stops.
    fn accept(self: Arc<Self>) {
        while !self.is_stopping() {
            match self.listener.accept() {
                Ok((socket, _)) if !self.is_stopping() => self.admit(socket),
                Ok(_) => {}
                // Out of descriptors, perhaps: others may leave.
                Err(_) if !self.is_stopping() => thread::sleep(Duration::from_millis(100)),
                Err(_) => {}
            }
        }
    }

    /// Gives a client a thread, if there is a place.
    fn admit(self: &Arc<Self>, socket: UnixStream) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let failed =
            |error| ClientEvent::Failed(id, Error::from_io("making a thread for a client", error));
        let kept = match socket.try_clone() {
            Ok(kept) => kept,
            Err(error) => return self.report(&failed(error)),
        };
        {
            let mut clients = self.clients();
            if clients.len() >= self.options.clients_max {
                drop(clients);
                vfio_user::refuse(socket.as_fd(), Errno::BUSY.raw_os_error());
                return self.report(&ClientEvent::Refused(id));
            }
            clients.push(Client { id, socket: kept, controller: None });
        }
        let serving = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("vfio-user-{id}"));
        if let Err(error) = thread.spawn(move || serving.serve(id, &socket)) {
            self.forget(id);
            self.report(&failed(error));
        }
    }

    /// A client's thread.
    fn serve(&self, id: u64, socket: &UnixStream) {
        match self.controller(id) {
            Ok(controller) => {
                self.report(&ClientEvent::Connected(id));
                let function = Arc::clone(controller.soft_function());
                let ended = vfio_user::serve(socket.as_fd(), function, &self.options.session);
                // The client sees the end at once, not when the controller has ended.
                let _ = socket.shutdown(std::net::Shutdown::Both);
                controller.stop();
                while !controller.is_stopped() {
                    thread::sleep(LOOK_INTERVAL);
                }
                self.report(&ClientEvent::Left(id, ended));
            }
            Err(error) => self.report(&ClientEvent::Failed(id, error)),
        }
        self.forget(id);
    }

    /// A controller for a client, on the core whose turn it is.
    fn controller(&self, id: u64) -> Result<Arc<Controller>, Error> {
        let turn = (id % self.cores.len().max(1) as u64) as usize;
        let core = self.cores.get(turn).ok_or_else(no_cores)?;
        let options = ControllerOptions {
            address: format!("vfio-user:{}#{id}", self.path.display()),
            ..self.options.controller.clone()
        };
        let start = move |core: Core| async move {
            Controller::build(&core, options, NoHooks, |device| device).await.map(Arc::new)
        };
        let controller = core.spawn(start).wait()??;
        let mut clients = self.clients();
        if let Some(client) = clients.iter_mut().find(|client| client.id == id) {
            client.controller = Some(Arc::clone(&controller));
            if self.is_stopping() {
                client.end();
            }
        }
        Ok(controller)
    }

    fn forget(&self, id: u64) {
        self.clients().retain(|client| client.id != id);
    }
}

impl Client {
    fn end(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(controller) = &self.controller {
            controller.stop();
        }
    }

    /// Whether no controller of it is at work.
    fn is_quiet(&self) -> bool {
        self.controller.as_ref().is_none_or(|controller| controller.is_stopped())
    }
}

fn no_cores() -> Error {
    Error::new(ErrorKind::Invalid, "a server needs a core at least")
}

/// Makes the socket; one that a server left behind which is no more is replaced.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |error: io::Error| {
        let what = format!("cannot listen at {}", path.display());
        Error::from_io(what, error)
    };
    let file = fs::symlink_metadata(path);
    if file.is_ok_and(|file| file.file_type().is_socket()) {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            _ => {
                let text = format!(
                    "somebody serves at {} already; stop that, or take another path",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Busy, text));
            }
        }
    }
    UnixListener::bind(path).map_err(failed)
}
