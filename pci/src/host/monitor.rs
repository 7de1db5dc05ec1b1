//! PCI functions as they come, go, and change hands.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Root;
use super::function::{folder, hex, is_vfio};
use super::uevent::{Hints, Uevents};
use crate::Address;

/// Between two looks at what the kernel told. A storm of messages costs no more than that.
const REST_NS: u64 = 20_000_000;
/// After a look at all functions.
const LONG_REST_NS: u64 = 1_000_000_000;

/// A function on the bus, as far as one quick look shows. Who uses it, and what shares its group,
/// is in [`HostFunction`](super::HostFunction).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusFunction {
    /// Where it is.
    pub address: Address,
    /// Class, subclass and interface from the top byte down;
    /// [`NVME_CLASS`](super::NVME_CLASS) for one.
    pub class: u32,
    /// Vendor.
    pub vendor: u16,
    /// Device, as the vendor counts.
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
}

impl BusFunction {
    /// Whether it was given to VFIO.
    pub fn is_bound(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio)
    }
}

/// What happened to a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The function as it is now; one that is gone, as it was.
    pub function: BusFunction,
}

/// What can happen to a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is there, and was not before.
    Appeared,
    /// Another driver has it, or none.
    Driver {
        /// The one that had it.
        before: Option<String>,
    },
    /// It is not there any more.
    Gone,
}

/// How functions are watched.
#[derive(Clone, Debug)]
pub struct MonitorOptions {
    /// Only functions of this class; none is all.
    pub class: Option<u32>,
    /// Listen to what the kernel tells. Off for a root that is not this machine's.
    pub uevents: bool,
    /// How often sysfs is looked at where the kernel does not tell.
    pub interval: Duration,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self { class: None, uevents: true, interval: Duration::from_secs(2) }
    }
}

/// What a monitor waits for.
#[derive(Clone, Copy, Debug)]
pub enum Wait<'a> {
    /// This descriptor turns readable when there is news.
    Fd(BorrowedFd<'a>),
    /// The next look is due at this time, in ns of its owner's clock.
    Until(u64),
}

/// Watches the functions of this machine. It is told of changes by the kernel where that is
/// allowed, else it looks at sysfs now and then; what it tells was seen in sysfs in either case.
/// It has no thread: its owner calls [`look`](Self::look), and sleeps in between as
/// [`wait`](Self::wait) says.
pub struct Monitor {
    root: Root,
    class: Option<u32>,
    interval_ns: u64,
    /// None: nobody tells.
    uevents: Option<Uevents>,
    notice: Option<String>,
    hints: Hints,
    /// By address, with the number of its folder: what comes to the same place has another.
    known: BTreeMap<Address, (u64, BusFunction)>,
    /// No look before this time.
    rest_until_ns: Option<u64>,
}

impl Monitor {
    /// Begins to watch. What is there now is [known](Self::functions) from the start, and no change.
    pub fn new(root: Root, options: &MonitorOptions) -> Monitor {
        let MonitorOptions { class, interval, .. } = *options;
        // First: what comes between the two is looked at twice.
        let (uevents, notice) = match options.uevents.then(|| Uevents::listen(&root)) {
            Some(Ok(uevents)) => (Some(uevents), None),
            Some(Err(error)) => {
                let text = "the kernel does not tell of PCI functions that come and go here";
                let text = format!("{text} ({error}); /sys is looked at every {interval:?}");
                (None, Some(text))
            }
            None => (None, None),
        };
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let (hints, known) = (Hints::new(), BTreeMap::new());
        let rest_until_ns = uevents.is_none().then_some(0);
        let mut monitor =
            Monitor { root, class, interval_ns, uevents, notice, hints, known, rest_until_ns };
        monitor.look_at_all(&mut |_| {});
        monitor
    }

    /// What is worth telling a person once: that the kernel does not tell, and why.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// The functions that are there, as of the last look, in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = &BusFunction> {
        self.known.values().map(|(_, function)| function)
    }

    /// Looks at what may have changed, and tells of it; `now_ns` is the time by the owner's clock.
    /// Returns how much there was to do. Costs a system call, or none, when nothing happened.
    pub fn look(&mut self, now_ns: u64, mut tell: impl FnMut(Change)) -> usize {
        if self.rest_until_ns.is_some_and(|until_ns| now_ns < until_ns) {
            return 0;
        }
        let heard = match &mut self.uevents {
            Some(uevents) => uevents.take(&mut self.hints),
            None => {
                self.hints.add_all();
                0
            }
        };
        let is_all = self.hints.is_all();
        let changes = match is_all {
            true => self.look_at_all(&mut tell),
            false => self.look_at_hints(&mut tell),
        };
        self.hints.clear();
        let rest_ns = match (&self.uevents, heard) {
            (None, _) => Some(self.interval_ns),
            (Some(_), 0) => None,
            (Some(_), _) => Some(if is_all { LONG_REST_NS } else { REST_NS }),
        };
        self.rest_until_ns = rest_ns.map(|rest_ns| now_ns.saturating_add(rest_ns));
        heard + changes
    }

    /// What wakes the owner for the next look.
    pub fn wait(&self) -> Wait<'_> {
        match (&self.uevents, self.rest_until_ns) {
            (Some(uevents), None) => Wait::Fd(uevents.as_fd()),
            (_, until_ns) => Wait::Until(until_ns.unwrap_or(0)),
        }
    }

    fn look_at_hints(&mut self, tell: &mut dyn FnMut(Change)) -> usize {
        let mut changes = 0;
        for index in 0..self.hints.addresses().len() {
            changes += self.look_at(self.hints.addresses()[index], tell);
        }
        changes
    }

    fn look_at_all(&mut self, tell: &mut dyn FnMut(Change)) -> usize {
        let names = self.root.names("sys/bus/pci/devices");
        let mut addresses: Vec<Address> = names.iter().filter_map(|n| n.parse().ok()).collect();
        addresses.extend(self.known.keys());
        addresses.sort_unstable();
        addresses.dedup();
        addresses.into_iter().map(|address| self.look_at(address, tell)).sum()
    }

    /// Compares what is at an address with what was.
    fn look_at(&mut self, address: Address, tell: &mut dyn FnMut(Change)) -> usize {
        let before = self.known.remove(&address);
        let now = self.see(address);
        if let Some((node, function)) = &now {
            self.known.insert(address, (*node, function.clone()));
        }
        let mut changes = 0;
        let mut change = |kind, function| {
            changes += 1;
            tell(Change { kind, function });
        };
        match (before, now) {
            (Some((old_node, old)), Some((node, function))) if old_node == node => {
                if old.driver != function.driver {
                    change(ChangeKind::Driver { before: old.driver }, function);
                }
            }
            (before, now) => {
                if let Some((_, function)) = before {
                    change(ChangeKind::Gone, function);
                }
                if let Some((_, function)) = now {
                    change(ChangeKind::Appeared, function);
                }
            }
        }
        changes
    }

    /// What is at an address, if it is of the class that is watched.
    fn see(&self, address: Address) -> Option<(u64, BusFunction)> {
        let (root, folder) = (&self.root, folder(address));
        let node = root.inode(&folder)?;
        let class = hex(root, &format!("{folder}/class"))?;
        if self.class.is_some_and(|wanted| wanted != class) {
            return None;
        }
        let number = |name| hex(root, &format!("{folder}/{name}")).unwrap_or(0) as u16;
        let driver = root.link_name(&format!("{folder}/driver"));
        let (vendor, device) = (number("vendor"), number("device"));
        Some((node, BusFunction { address, class, vendor, device, driver }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::super::NVME_CLASS;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A bus in a folder.
    struct Bus(tempfile::TempDir);

    impl Bus {
        fn new() -> Bus {
            let bus = Bus(tempfile::tempdir().unwrap());
            bus.plug("0000:01:00.0", "0x010802");
            bus.plug("0000:02:00.0", "0x020000");
            bus
        }

        fn folder(&self, address: &str) -> PathBuf {
            self.0.path().join("sys/bus/pci/devices").join(address)
        }

        fn plug(&self, address: &str, class: &str) {
            let folder = self.folder(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("vendor"), "0x1b36\n").unwrap();
            fs::write(folder.join("device"), "0x0010\n").unwrap();
            fs::write(folder.join("class"), format!("{class}\n")).unwrap();
        }

        /// Takes the one that is there, and puts another in its place, at once.
        fn swap(&self, address: &str, class: &str) {
            fs::rename(self.folder(address), self.0.path().join("old")).unwrap();
            self.plug(address, class);
        }

        fn pull(&self, address: &str) {
            fs::remove_dir_all(self.folder(address)).unwrap();
        }

        fn drive(&self, address: &str, driver: Option<&str>) {
            let link = self.folder(address).join("driver");
            let _ = fs::remove_file(&link);
            if let Some(driver) = driver {
                symlink(format!("../../../drivers/{driver}"), link).unwrap();
            }
        }

        fn monitor(&self, class: Option<u32>) -> Monitor {
            let options = MonitorOptions { class, uevents: false, ..MonitorOptions::default() };
            Monitor::new(Root::new(self.0.path()), &options)
        }
    }

    fn changes(monitor: &mut Monitor, now_ns: u64) -> Vec<String> {
        let mut told = Vec::new();
        let count = monitor.look(now_ns, |Change { kind, function }| {
            let BusFunction { address, class, driver, .. } = function;
            let driver = driver.unwrap_or_default();
            told.push(match kind {
                ChangeKind::Appeared => format!("+{address} {class:06x} {driver}"),
                ChangeKind::Driver { before } => {
                    format!("{address} {}>{driver}", before.unwrap_or_default())
                }
                ChangeKind::Gone => format!("-{address}"),
            });
        });
        assert_eq!(count, told.len());
        told
    }

    #[test]
    fn functions_come_change_hands_and_go() {
        let bus = Bus::new();
        let mut monitor = bus.monitor(None);
        let known: Vec<_> = monitor.functions().map(|known| (known.class, known.vendor)).collect();
        assert_eq!(known, [(NVME_CLASS, 0x1b36), (0x02_00_00, 0x1b36)]);
        assert!(changes(&mut monitor, 0).is_empty());
        bus.plug("0000:03:00.0", "0x010802");
        bus.drive("0000:01:00.0", Some("nvme"));
        assert_eq!(
            changes(&mut monitor, 2 * SECOND),
            ["0000:01:00.0 >nvme", "+0000:03:00.0 010802 "]
        );
        bus.drive("0000:01:00.0", Some("vfio-pci"));
        bus.pull("0000:02:00.0");
        assert_eq!(
            changes(&mut monitor, 4 * SECOND),
            ["0000:01:00.0 nvme>vfio-pci", "-0000:02:00.0"]
        );
        assert!(monitor.functions().next().is_some_and(BusFunction::is_bound));
        bus.swap("0000:03:00.0", "0x010802");
        assert_eq!(changes(&mut monitor, 6 * SECOND), ["-0000:03:00.0", "+0000:03:00.0 010802 "]);
        bus.drive("0000:01:00.0", None);
        assert_eq!(changes(&mut monitor, 8 * SECOND), ["0000:01:00.0 vfio-pci>"]);
        assert!(changes(&mut monitor, 10 * SECOND).is_empty());
    }

    #[test]
    fn only_functions_of_the_class_are_told_of() {
        let bus = Bus::new();
        let mut monitor = bus.monitor(Some(NVME_CLASS));
        assert_eq!(monitor.functions().count(), 1);
        bus.plug("0000:04:00.0", "0x030000");
        bus.pull("0000:02:00.0");
        assert!(changes(&mut monitor, 2 * SECOND).is_empty());
        // Another kind of device in the same place.
        bus.swap("0000:01:00.0", "0x020000");
        assert_eq!(changes(&mut monitor, 4 * SECOND), ["-0000:01:00.0"]);
    }

    #[test]
    fn sysfs_is_looked_at_now_and_then() {
        let bus = Bus::new();
        let mut monitor = bus.monitor(None);
        assert!(changes(&mut monitor, SECOND).is_empty());
        bus.pull("0000:01:00.0");
        assert!(changes(&mut monitor, 3 * SECOND - 1).is_empty());
        assert!(matches!(monitor.wait(), Wait::Until(at_ns) if at_ns == 3 * SECOND));
        assert_eq!(changes(&mut monitor, 3 * SECOND), ["-0000:01:00.0"]);
    }

    #[test]
    fn what_is_half_there_is_not_there() {
        let bus = Bus::new();
        fs::create_dir_all(bus.folder("0000:05:00.0")).unwrap();
        fs::create_dir_all(bus.folder("no address")).unwrap();
        bus.plug("0000:06:00.0", "nonsense");
        let mut monitor = bus.monitor(None);
        assert_eq!(monitor.functions().count(), 2);
        bus.plug("0000:05:00.0", "0x010802");
        assert_eq!(changes(&mut monitor, 2 * SECOND), ["+0000:05:00.0 010802 "]);
        assert_eq!(
            Monitor::new(Root::new("/nowhere"), &MonitorOptions::default()).functions().count(),
            0
        );
    }

    /// Messages are a hint where to look, and after some of them comes a rest.
    #[test]
    fn hints_lead_to_a_look() {
        let bus = Bus::new();
        let mut monitor = bus.monitor(None);
        bus.plug("0000:03:00.0", "0x010802");
        bus.pull("0000:01:00.0");
        let told = std::cell::RefCell::new(Vec::new());
        let look = |monitor: &mut Monitor, message: &[u8]| {
            monitor.hints.add_message(message);
            monitor.look_at_hints(&mut |change| told.borrow_mut().push(change.kind));
            monitor.hints.clear();
        };
        // It says that the function went, and of one that never was; sysfs knows better.
        look(&mut monitor, b"remove@/devices/x/0000:03:00.0\0SUBSYSTEM=pci\0");
        look(&mut monitor, b"add@/devices/x/0000:09:00.0\0SUBSYSTEM=pci\0");
        look(&mut monitor, b"add@/devices/x/0000:01:00.0\0SUBSYSTEM=pci\0");
        assert_eq!(*told.borrow(), [ChangeKind::Appeared, ChangeKind::Gone]);
    }

    /// The kernel of this machine: nothing is plugged in, and nobody is kept awake.
    #[test]
    fn this_machine_can_be_watched() {
        let mut monitor = Monitor::new(Root::new("/"), &MonitorOptions::default());
        let listens = monitor.notice().is_none();
        for now_ns in [0, SECOND, 4 * SECOND] {
            monitor.look(now_ns, |_| {});
        }
        match monitor.wait() {
            Wait::Fd(_) => assert!(listens),
            Wait::Until(at_ns) => assert!(at_ns > 4 * SECOND),
        }
    }
}
