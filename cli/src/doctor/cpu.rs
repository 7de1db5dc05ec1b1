//! CPUs kept for the engine, and how fast they run.

use oxblock_pci::host::Root;
use serde_json::json;

use super::finding::{Finding, Purpose};

/// CPUs that the scheduler leaves alone.
pub fn isolation(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "CPU isolation",
        "cpu-isolation",
        "a polling core that is never interrupted and shares its CPU with nobody has no tail \
         latency of the scheduler's making",
    );
    let online = root.text("sys/devices/system/cpu/online").unwrap_or_default();
    let online = cpu_list(&online);
    let isolated = root.text("sys/devices/system/cpu/isolated").unwrap_or_default();
    let nohz_full = root.text("sys/devices/system/cpu/nohz_full").unwrap_or_default();
    // An empty set is written as `(null)` by some kernels.
    let nohz_full = if cpu_list(&nohz_full).is_empty() { String::new() } else { nohz_full };
    let shown = |list: &str| if list.is_empty() { "none".to_owned() } else { list.to_owned() };
    finding.found(format!(
        "{} CPUs online; isolcpus: {}; nohz_full: {}",
        online.len(),
        shown(&isolated),
        shown(&nohz_full)
    ));
    finding.details =
        json!({ "online": online.len(), "isolated": isolated, "nohz_full": nohz_full });
    if cpu_list(&isolated).is_empty() || nohz_full.is_empty() {
        match candidates(&online) {
            Some(list) => {
                finding.lacks("no CPU is kept for polling alone", &[]);
                finding.mend_command_line(&format!(
                    "isolcpus=managed_irq,domain,{list} nohz_full={list} rcu_nocbs={list}"
                ));
            }
            None => finding.found("with one CPU there is nothing to keep apart"),
        }
    }
    finding
}

/// The upper half of the CPUs, which the kernel needs least.
fn candidates(online: &[u32]) -> Option<String> {
    let half = online.get(online.len().div_ceil(2)..).unwrap_or_default();
    match half {
        [] => None,
        [one] => Some(one.to_string()),
        [first, .., last] if (last - first) as usize == half.len() - 1 => {
            Some(format!("{first}-{last}"))
        }
        _ => Some(half.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
    }
}

/// The frequency governors.
pub fn frequency(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "CPU frequency",
        "cpu-frequency",
        "a governor that slows idle cores down makes the first I/Os after a pause slow, and two \
         runs of the same job differ",
    );
    let names = root.names("sys/devices/system/cpu");
    let cpus = names.iter().filter(|name| {
        name.strip_prefix("cpu").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    });
    let mut governors: Vec<(String, u32)> = Vec::new();
    for cpu in cpus {
        let path = format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor");
        let Some(governor) = root.text(&path) else { continue };
        match governors.iter_mut().find(|(name, _)| *name == governor) {
            Some((_, count)) => *count += 1,
            None => governors.push((governor, 1)),
        }
    }
    finding.details = governors.iter().map(|(name, count)| (name.clone(), *count)).collect();
    for (governor, count) in &governors {
        finding.found(format!("{governor} on {count} CPUs"));
    }
    if governors.is_empty() {
        finding.found("no governor here: firmware or a hypervisor sets the frequency");
    } else if governors.iter().any(|(name, _)| name != "performance") {
        finding.lacks("not every governor is `performance`", &[Purpose::Bench]);
        finding.mend(
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        );
    }
    finding
}

/// The numbers of a kernel CPU list (`0-3,8`), at most as many as a kernel can have.
pub fn cpu_list(text: &str) -> Vec<u32> {
    const CPUS_MAX: u32 = 8192;
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { continue };
        if last < CPUS_MAX {
            cpus.extend(first..=last);
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}
