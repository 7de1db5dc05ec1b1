//! What runs in the guest: the tests, and what starts them one by one.

mod bench;
mod conformance;
mod data;
pub mod disks;
mod doctor;
mod kernel;
mod machine;
mod nvme;
mod pci;
mod runner;
mod vfio;

pub use runner::main;

/// Set in the environment of everything in the guest; a test's process has its name in it.
pub const MARK: &str = "OXBLOCK_IN_GUEST";

/// All tests.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    doctor::add(&mut tests);
    kernel::add(&mut tests);
    pci::add(&mut tests);
    vfio::add(&mut tests);
    nvme::add(&mut tests);
    bench::add(&mut tests);
    data::add(&mut tests);
    conformance::add(&mut tests);
    tests
}

/// One test: a process of its own in the guest.
pub struct Test {
    /// What it is called on the host, too.
    pub name: String,
    /// How it finds the guest.
    pub start: Start,
    /// What it does; it panics when it fails.
    pub body: Box<dyn Fn()>,
}

impl Test {
    /// A test that finds both controllers with the kernel, and hugepages.
    pub fn new(name: &str, body: impl Fn() + 'static) -> Test {
        Test { name: format!("guest_{name}"), start: Start::default(), body: Box::new(body) }
    }

    /// The same with other things to start from.
    pub fn start(self, start: Start) -> Test {
        Test { start, ..self }
    }
}

/// How a test finds the guest.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The kernel's driver of both controllers.
    pub driver: &'static str,
    /// How many pages of 2 MiB are reserved.
    pub hugepages: u32,
}

impl Start {
    /// With both controllers handed over to user space.
    pub fn handed_over() -> Start {
        Start { driver: "vfio-pci", ..Start::default() }
    }

    /// The same without hugepages: memory is locked page by page.
    pub fn handed_over_in_small_pages() -> Start {
        Start { hugepages: 0, ..Start::handed_over() }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self { driver: "nvme", hugepages: 48 }
    }
}
