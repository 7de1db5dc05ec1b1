//! Hugepages, the limit on locked memory, transparent hugepages.

use oxblock_bench::units::format_bytes;
use oxblock_pci::host::Root;
use serde_json::json;

use super::finding::{Finding, Purpose};

/// What the memory of one engine with a device asks for, at the least.
const LOCKED_BYTES_WANTED: u64 = 64 << 20;
/// CAP_IPC_LOCK of capability.h: who has it is not limited.
const CAP_IPC_LOCK: u32 = 14;

/// Hugepages: sizes, how many of them, on which node.
pub fn hugepages(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "hugepages",
        "hugepages",
        "one TLB entry covers 2 MiB or 1 GiB of buffers, and their memory is locked from the start",
    );
    let pools = pools_in(root, "sys/kernel/mm/hugepages");
    let nodes: Vec<String> = root.names("sys/devices/system/node");
    let nodes = nodes.iter().filter(|name| is_node(name));
    let per_node: Vec<(&String, Vec<Pool>)> = nodes
        .map(|node| (node, pools_in(root, &format!("sys/devices/system/node/{node}/hugepages"))))
        .collect();
    for pool in &pools {
        finding.found(pool.words());
        if per_node.len() > 1 {
            for (node, pools) in &per_node {
                for pool in pools.iter().filter(|one| one.page_bytes == pool.page_bytes) {
                    finding.found(format!("  {node}: {}", pool.words()));
                }
            }
        }
    }
    finding.details = json!({
        "pools": pools.iter().map(Pool::json).collect::<Vec<_>>(),
        "nodes": per_node.iter().map(|(node, pools)| json!({
            "node": node, "pools": pools.iter().map(Pool::json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    if pools.is_empty() {
        finding.found("none: this kernel has no hugetlbfs");
        finding.lacks("a kernel with CONFIG_HUGETLBFS", &[Purpose::Bench]);
        finding.mend("# boot a kernel with CONFIG_HUGETLBFS=y (every distribution's has it)");
    } else if free_bytes(&pools) == 0 {
        let used = pools.iter().any(|pool| pool.total > 0);
        let what = if used { "all reserved pages are in use" } else { "no page is reserved" };
        finding.lacks(what, &[Purpose::Bench]);
        let more = pools.iter().find(|p| p.page_bytes == 2 << 20).map_or(0, |pool| pool.total);
        finding.mend(format!(
            "echo {} | sudo tee /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            more.saturating_add(512)
        ));
    }
    finding
}

/// How much memory may be locked.
pub fn memlock(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "memlock",
        "locked-memory",
        "memory that a device reaches must stay where it is; all of it counts as locked, hugepages \
         too, up to this limit",
    );
    let limits = root.text("proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| {
        let words = line.strip_prefix("Max locked memory")?;
        words.split_whitespace().next().map(str::to_owned)
    });
    let exempt = has_capability(root, CAP_IPC_LOCK);
    let bytes = match limit.as_deref() {
        Some("unlimited") => Some(u64::MAX),
        Some(word) => word.parse().ok(),
        None => None,
    };
    finding.details = json!({
        "limit_bytes": bytes.filter(|&bytes| bytes < u64::MAX),
        "unlimited": bytes == Some(u64::MAX),
        "cap_ipc_lock": exempt,
    });
    match bytes {
        Some(u64::MAX) => finding.found("unlimited"),
        Some(bytes) => finding.found(format!("{} may be locked", format_bytes(bytes))),
        None => finding.found("the limit cannot be read (/proc/self/limits)"),
    }
    if exempt {
        finding.found("this user has CAP_IPC_LOCK: the limit does not bind");
    } else if bytes.is_some_and(|bytes| bytes < LOCKED_BYTES_WANTED) {
        let least = format_bytes(LOCKED_BYTES_WANTED);
        finding.lacks(format!("less than {least}"), &[Purpose::Nvme]);
        finding.mend(
            "echo \"$USER - memlock unlimited\" | sudo tee /etc/security/limits.d/oxblock.conf",
        );
        finding.mend("# log in again; for a systemd service: LimitMEMLOCK=infinity");
    }
    finding
}

/// Transparent hugepages.
pub fn transparent(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "transparent hugepages",
        "transparent-hugepages",
        "with `always` the kernel collapses and splits pages of any program behind its back, which \
         shows as latency; what the engine wants of it, it asks for itself (madvise)",
    );
    let text = root.text("sys/kernel/mm/transparent_hugepage/enabled");
    let mode = text.as_deref().and_then(chosen);
    finding.details = json!({ "mode": mode });
    match mode {
        None => finding.found("not in this kernel"),
        Some(mode) => finding.found(mode),
    }
    if mode == Some("always") {
        finding.lacks("set to `always`", &[]);
        finding.mend("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
    }
    finding
}

/// The word in brackets of `always [madvise] never`.
pub fn chosen(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Does this process have a capability?
pub fn has_capability(root: &Root, number: u32) -> bool {
    let status = root.text("proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << number != 0)
}

/// The hugepages of one size.
struct Pool {
    page_bytes: u64,
    total: u64,
    free: u64,
}

impl Pool {
    fn words(&self) -> String {
        let size = format_bytes(self.page_bytes);
        format!("{size}: {} reserved, {} free", self.total, self.free)
    }

    fn json(&self) -> serde_json::Value {
        json!({ "page_bytes": self.page_bytes, "total": self.total, "free": self.free })
    }
}

fn pools_in(root: &Root, folder: &str) -> Vec<Pool> {
    let pool = |name: String| {
        let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let count = |file: &str| root.number(&format!("{folder}/{name}/{file}"));
        Some(Pool {
            page_bytes: size.parse::<u64>().ok()?.checked_mul(1024)?,
            total: count("nr_hugepages")?,
            free: count("free_hugepages")?,
        })
    };
    let mut pools: Vec<Pool> = root.names(folder).into_iter().filter_map(pool).collect();
    pools.sort_by_key(|pool| pool.page_bytes);
    pools
}

fn free_bytes(pools: &[Pool]) -> u64 {
    let bytes = pools.iter().map(|pool| pool.free.saturating_mul(pool.page_bytes));
    bytes.fold(0, u64::saturating_add)
}

fn is_node(name: &str) -> bool {
    name.strip_prefix("node")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
