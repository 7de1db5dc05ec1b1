//! io_uring, kernel lockdown, and what stands between this process and the machine.

use oxblock_pci::host::Root;
use serde_json::json;

use super::finding::{Finding, Purpose};
use super::memory::chosen;

/// Makes a small ring and closes it again: 0, or the errno.
pub fn try_io_uring() -> i32 {
    match io_uring::IoUring::new(2) {
        Ok(_) => 0,
        // An error without a number is none of the kernel's.
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Does io_uring work here? `errno` is what [`try_io_uring`] said.
pub fn uring(root: &Root, errno: i32) -> Finding {
    let mut finding = Finding::new(
        "io_uring",
        "io_uring",
        "files are driven through it, many I/Os for one system call; without it by worker threads",
    );
    let disabled = root.number("proc/sys/kernel/io_uring_disabled");
    let status = root.text("proc/self/status").unwrap_or_default();
    let filtered = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .is_some_and(|mode| mode.trim() == "2");
    finding.details = json!({
        "works": errno == 0,
        "errno": errno,
        "io_uring_disabled": disabled,
        "seccomp_filter": filtered,
    });
    if errno == 0 {
        finding.found("works (a ring was made)");
        return finding;
    }
    let reason = std::io::Error::from_raw_os_error(errno);
    finding.found(format!("no ring can be made: {reason}"));
    let needed = [Purpose::Bench];
    match disabled {
        Some(mode @ 1..) => {
            finding.lacks(format!("kernel.io_uring_disabled is {mode}"), &needed);
            finding.mend("sudo sysctl -w kernel.io_uring_disabled=0");
        }
        _ if filtered => {
            finding.lacks("a seccomp filter forbids it, as container runtimes do", &needed);
            finding.mend(
                "# start the container with a profile that allows io_uring_setup, \
                 io_uring_enter and io_uring_register:",
            );
            finding.mend("docker run --security-opt seccomp=profile.json ...");
        }
        _ if errno == libc::ENOSYS => {
            finding.lacks("this kernel has no io_uring", &needed);
            finding.mend("# boot Linux 5.15 or later with CONFIG_IO_URING=y");
        }
        _ if errno == libc::ENOMEM => {
            finding.lacks(
                "older kernels count rings as locked memory, and the limit is used up",
                &needed,
            );
            finding.mend("# raise the limit: see `memlock`");
        }
        _ => {
            finding.lacks("the kernel refuses it; a security module may forbid it", &needed);
            finding.mend("sudo dmesg | grep -i -e denied -e io_uring");
        }
    }
    finding
}

/// Kernel lockdown.
pub fn lockdown(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "kernel lockdown",
        "kernel-lockdown",
        "under lockdown (Secure Boot turns it on) VFIO works only behind an IOMMU, and profiling \
         with perf may be shut",
    );
    let text = root.text("sys/kernel/security/lockdown");
    let mode = text.as_deref().and_then(chosen).unwrap_or("none");
    finding.details = json!({ "mode": mode });
    finding.found(mode);
    if mode != "none" {
        finding.lacks(format!("the kernel is locked down ({mode})"), &[]);
        finding.mend("# only if you need what it forbids: turn Secure Boot off in the firmware");
    }
    finding
}

/// Is this a container, a virtual machine, or the machine itself?
pub fn surroundings(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "surroundings",
        "containers-and-virtual-machines",
        "in a virtual machine the host may take the CPU away at any time, and devices have an \
         IOMMU only if the host gives one; in a container limits, devices and system calls are \
         what its runtime allows",
    );
    let (machine, container) = (virtual_machine(root), container(root));
    finding.details = json!({ "virtual_machine": machine, "container": container });
    match &machine {
        Some(name) => finding.found(format!("a virtual machine ({name})")),
        None => finding.found("no hypervisor is seen"),
    }
    if let Some(name) = &container {
        finding.found(format!("in a container ({name})"));
        finding.mend("# hugepages, modules and governors are set on the host, not in here");
    }
    finding
}

fn virtual_machine(root: &Root) -> Option<String> {
    let info = root.text("proc/cpuinfo").unwrap_or_default();
    let flagged = info.lines().any(|line| {
        line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor")
    });
    let product = ["sys_vendor", "product_name"]
        .iter()
        .filter_map(|file| root.text(&format!("sys/class/dmi/id/{file}")))
        .collect::<Vec<_>>()
        .join(" ");
    let known = ["QEMU", "KVM", "VMware", "VirtualBox", "Xen", "Amazon EC2", "Google Compute"];
    let named = known.iter().any(|name| product.contains(name));
    match (flagged || named, product.is_empty()) {
        (false, _) => None,
        (true, true) => Some("unnamed".to_owned()),
        (true, false) => Some(product),
    }
}

fn container(root: &Root) -> Option<String> {
    if let Some(name) = root.text("run/systemd/container").filter(|name| !name.is_empty()) {
        return Some(name);
    }
    for (path, name) in [("run/.containerenv", "podman"), (".dockerenv", "docker")] {
        if root.exists(path) {
            return Some(name.to_owned());
        }
    }
    let groups = root.text("proc/1/cgroup").unwrap_or_default();
    let known = ["kubepods", "docker", "lxc", "containerd"];
    known.iter().find(|name| groups.contains(**name)).map(|name| (*name).to_owned())
}
