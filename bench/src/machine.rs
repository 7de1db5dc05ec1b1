//! The machine that a run was made on, in a few words.

use std::fs::File;
use std::io::Read;

/// The most that is read of a file of `/proc` or `/sys`.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a reader of figures wants to know about the machine: names and what was found. What
/// cannot be read is left out.
pub fn describe() -> Vec<(&'static str, String)> {
    let info = text("/proc/cpuinfo").unwrap_or_default();
    let memory = text("/proc/meminfo").unwrap_or_default();
    let model = ["model name", "Model", "cpu model"].iter().find_map(|key| value(&info, key));
    let cpus = std::thread::available_parallelism().map(|count| count.to_string()).ok();
    let kilobytes =
        |key| value(&memory, key).and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
    let hugepages = value(&memory, "HugePages_Total").map(|total| {
        let free = value(&memory, "HugePages_Free").unwrap_or("0");
        format!("{total} reserved, {free} free")
    });
    let flags = value(&info, "flags").or_else(|| value(&info, "Features")).unwrap_or_default();
    let guest = flags.split(' ').any(|flag| flag == "hypervisor");
    let rows = [
        ("processor", model.map(str::to_owned)),
        ("CPUs for this process", cpus),
        ("machine", guest.then(|| "virtual: a hypervisor is under it".to_owned())),
        ("governor", text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("isolated CPUs", text("/sys/devices/system/cpu/isolated").filter(|list| !list.is_empty())),
        ("memory", kilobytes("MemTotal").map(|kb| crate::units::format_bytes(kb >> 10 << 20))),
        ("hugepages", hugepages),
        ("kernel", text("/proc/sys/kernel/osrelease").map(|release| format!("Linux {release}"))),
        ("oxblock", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    rows.into_iter().filter_map(|(name, found)| Some((name, found?))).collect()
}

/// What stands behind `key` and a colon.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}

fn text(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}
