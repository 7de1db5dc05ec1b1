//! What runs in the guest: the tests, and what starts them one by one.

mod bench;
mod conformance;
mod data;
pub mod disks;
mod doctor;
mod faults;
mod guide;
mod hipri;
mod host;
mod kernel;
mod machine;
mod noiommu;
mod nvme;
mod pci;
mod plugged;
mod rows;
mod runner;
mod vfio;

pub use runner::main;

/// Set in the environment of everything in the guest; a test's process has its name in it.
pub const MARK: &str = "OXBLOCK_IN_GUEST";

/// All tests.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    guide::add(&mut tests);
    doctor::add(&mut tests);
    kernel::add(&mut tests);
    hipri::add(&mut tests);
    pci::add(&mut tests);
    vfio::add(&mut tests);
    noiommu::add(&mut tests);
    nvme::add(&mut tests);
    bench::add(&mut tests);
    data::add(&mut tests);
    conformance::add(&mut tests);
    rows::add(&mut tests);
    tests
}

/// One test: a process of its own in the guest.
pub struct Test {
    /// What it is called on the host, too.
    pub name: String,
    /// Where it runs.
    pub machine: Machine,
    /// How it finds the guest.
    pub start: Start,
    /// What it does; it panics when it fails.
    pub body: Box<dyn Fn()>,
    /// Its output is shown when it passes, too.
    pub told: bool,
}

impl Test {
    /// A test that finds both controllers with the kernel, and hugepages.
    pub fn new(name: &str, body: impl Fn() + 'static) -> Test {
        let (machine, start) = (Machine::Stock, Start::default());
        Test { name: format!("guest_{name}"), machine, start, body: Box::new(body), told: false }
    }

    /// The same on another machine.
    pub fn machine(self, machine: Machine) -> Test {
        Test { machine, ..self }
    }

    /// The same, and what it says is shown.
    pub fn told(self) -> Test {
        Test { told: true, ..self }
    }

    /// The same with other things to start from.
    pub fn start(self, start: Start) -> Test {
        Test { start, ..self }
    }
}

/// The kinds of guests; each that is asked for is booted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// With an IOMMU, and Debian's kernel as it is.
    Stock,
    /// With an IOMMU, and VFIO modules that have iommufd and a character device for each function.
    Iommufd,
    /// Without an IOMMU; its VFIO modules have the mode for that.
    NoIommu,
}

impl Machine {
    /// All of them.
    pub const ALL: [Machine; 3] = [Machine::Stock, Machine::Iommufd, Machine::NoIommu];

    /// Its modules are not Debian's.
    pub fn is_rebuilt(self) -> bool {
        self != Machine::Stock
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
