//! What the kernel says of devices that come and go, over netlink (`NETLINK_KOBJECT_UEVENT`).
//!
//! A message is `ACTION@DEVPATH` and then words `KEY=value`, each ended by a zero byte. Nothing of
//! it is believed: it is a hint where to look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

use super::Root;
use crate::Address;

/// The multicast group of the kernel's own messages; those of udev have another.
const KERNEL_GROUP: u32 = 1;
/// The kernel's messages are no longer than 2 KiB and the path.
const MESSAGE_BYTES: usize = 8 << 10;
/// Messages of one look; others wait for the next, and when they do not fit are lost.
const MESSAGES_MAX: usize = 256;
/// Addresses of one look; where more changed, all are looked at.
const ADDRESSES_MAX: usize = 64;

/// A socket to which the kernel tells of devices.
pub(super) struct Uevents {
    socket: OwnedFd,
    message: Box<[u8]>,
}

/// Where to look.
pub(super) struct Hints {
    addresses: Vec<Address>,
    /// Everywhere: something was lost.
    all: bool,
}

impl Uevents {
    /// Listens to the kernel.
    ///
    /// # Errors
    /// The kernel tells nobody here: no netlink, or a user namespace that uevents do not enter.
    pub fn listen(root: &Root) -> io::Result<Uevents> {
        if !is_first_user_namespace(root) {
            return Err(io::Error::other("the kernel tells no user namespace but the first"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = (AddressFamily::NETLINK, SocketType::DGRAM);
        let socket = socket_with(kind.0, kind.1, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Uevents { socket, message: vec![0; MESSAGE_BYTES].into() })
    }

    /// Takes what the kernel said, and returns how many messages that were; the loss of others
    /// counts as one.
    pub fn take(&mut self, hints: &mut Hints) -> usize {
        for count in 0..MESSAGES_MAX {
            match recvfrom(&self.socket, &mut self.message[..], RecvFlags::TRUNC) {
                Ok((_, len, sender)) => {
                    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
                    let is_kernel = sender.is_some_and(|sender| sender.pid() == 0);
                    match self.message.get(..len) {
                        Some(message) if is_kernel => hints.add_message(message),
                        Some(_) => {}
                        None => hints.all = true,
                    }
                }
                Err(Errno::AGAIN) => return count,
                Err(Errno::INTR) => {}
                // Messages were lost (ENOBUFS), or something is wrong with the socket.
                Err(_) => {
                    hints.all = true;
                    return count + 1;
                }
            }
        }
        MESSAGES_MAX
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Hints {
    /// None.
    pub fn new() -> Hints {
        Hints { addresses: Vec::with_capacity(ADDRESSES_MAX), all: false }
    }

    /// Look everywhere.
    pub fn add_all(&mut self) {
        self.all = true;
    }

    /// Look where a message says.
    pub fn add_message(&mut self, message: &[u8]) {
        let Some(address) = address_of(message) else { return };
        if self.addresses.contains(&address) {
            return;
        }
        match self.addresses.len() < ADDRESSES_MAX {
            true => self.addresses.push(address),
            false => self.all = true,
        }
    }

    /// Everywhere?
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Where to look.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.addresses.clear();
        self.all = false;
    }
}

/// The PCI function that a message is about, if it is about one.
fn address_of(message: &[u8]) -> Option<Address> {
    let mut words = message.split(|byte| *byte == 0);
    let (_, path) = str::from_utf8(words.next()?).ok()?.split_once('@')?;
    let is_pci = words.any(|word| word == b"SUBSYSTEM=pci");
    let (_, name) = path.rsplit_once('/')?;
    if is_pci { name.parse().ok() } else { None }
}

/// Whether the users of this process are those of the machine: uevents go to no other namespace.
fn is_first_user_namespace(root: &Root) -> bool {
    // Older kernels have no user namespaces.
    root.text("proc/self/uid_map")
        .is_none_or(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDED: &[u8] = b"add@/devices/pci0000:00/0000:00:03.0/0000:03:00.0\0ACTION=add\0\
        DEVPATH=/devices/pci0000:00/0000:00:03.0/0000:03:00.0\0SUBSYSTEM=pci\0\
        PCI_CLASS=10802\0PCI_ID=1B36:0010\0PCI_SLOT_NAME=0000:03:00.0\0SEQNUM=1747\0";

    #[test]
    fn a_message_names_its_function() {
        assert_eq!(address_of(ADDED), "0000:03:00.0".parse().ok());
        for other in [
            &b"add@/devices/pci0000:00/0000:03:00.0/nvme/nvme0\0ACTION=add\0SUBSYSTEM=nvme\0"[..],
            b"add@/devices/virtual/0000:03:00.0\0ACTION=add\0SUBSYSTEM=pciback\0",
            b"add@0000:03:00.0\0SUBSYSTEM=pci\0",
            b"bind@/devices/pci0000:00/0000:00:03.0:pcie004\0SUBSYSTEM=pci\0",
            b"libudev\0\xfe\xed\xca\xfe\0SUBSYSTEM=pci\0",
            b"",
            b"\0",
            b"@/\0SUBSYSTEM=pci",
            b"\xff@/0000:03:00.0\0SUBSYSTEM=pci\0",
        ] {
            assert_eq!(address_of(other), None, "{}", other.escape_ascii());
        }
    }

    /// What is cut, overwritten or repeated is a hint elsewhere, or none.
    #[test]
    fn messages_may_be_anything() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut hints = Hints::new();
        let mut others = 0;
        for _ in 0..100_000 {
            let mut message = ADDED.to_vec();
            for _ in 0..draw(4) {
                let at = draw(message.len());
                match draw(5) {
                    0 => message[at] = draw(256) as u8,
                    4 => message[at] = b"0123456789abcdef"[draw(16)],
                    1 => message.truncate(at.max(1)),
                    2 => message.insert(at, b"@/:.=\0"[draw(6)]),
                    _ => message.extend_from_within(at..),
                }
            }
            others += usize::from(address_of(&message) != address_of(ADDED));
            hints.add_message(&message);
        }
        assert!(others > 10_000, "{others}");
        assert!(hints.is_all() && hints.addresses().len() == ADDRESSES_MAX);
        assert_eq!(hints.addresses.capacity(), ADDRESSES_MAX, "it grew");
        hints.clear();
        assert!(!hints.is_all() && hints.addresses().is_empty());
    }

    #[test]
    fn a_function_is_looked_at_once() {
        let mut hints = Hints::new();
        (0..1000).for_each(|_| hints.add_message(ADDED));
        assert_eq!(hints.addresses().len(), 1);
        assert!(!hints.is_all());
    }

    #[test]
    fn other_user_namespaces_are_told_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert!(is_first_user_namespace(&root));
        std::fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        for (map, is_first) in [
            ("         0          0 4294967295\n", true),
            ("         0     100000      65536\n", false),
            ("0 0 1\n1 100000 65536\n", false),
        ] {
            std::fs::write(folder.path().join("proc/self/uid_map"), map).unwrap();
            assert_eq!(is_first_user_namespace(&root), is_first, "{map}");
        }
    }
}
