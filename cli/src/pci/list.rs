//! `oxblock pci list`.

use std::process::ExitCode;

use clap::ArgMatches;
use oxblock_engine::{Error, ErrorKind};
use oxblock_pci::host::{HostFunction, Root};

use super::{addresses, document, print};
use oxblock_drivers::nvme::pci_error;

/// Runs `oxblock pci list`.
///
/// Errors: a function that is not there; a class that is no number.
pub fn run(root: &Root, matches: &ArgMatches) -> Result<ExitCode, Error> {
    let named = addresses(matches)?;
    let functions = match named.is_empty() {
        false => {
            let found = named.iter().map(|address| HostFunction::at(root, *address));
            found.collect::<Result<_, _>>().map_err(pci_error)?
        }
        true => {
            let mut all = HostFunction::all(root);
            let class = matches.get_one::<String>("class").map(String::as_str);
            let class = class.or((!matches.get_flag("all")).then_some("010802")).unwrap_or("");
            if class.len() > 6 || !class.bytes().all(|b| b.is_ascii_hexdigit()) {
                let text = format!("`{class}` is no PCI class; give two to six digits, as in 0108");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let class = class.to_ascii_lowercase();
            all.retain(|function| format!("{:06x}", function.class).starts_with(&class));
            all.sort_by_key(|function| (!function.is_nvme(), function.address));
            all
        }
    };
    let text = match matches.get_flag("json") {
        true => format!("{:#}\n", document(&functions)),
        false => table(&functions),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// For a person.
fn table(functions: &[HostFunction]) -> String {
    if functions.is_empty() {
        return "no such PCI function; --all lists every class\n".to_owned();
    }
    let head = ["ADDRESS", "CLASS", "VENDOR:DEVICE", "DRIVER", "GROUP", "NODE", "USE"];
    let mut rows = vec![head.map(str::to_owned)];
    for function in functions {
        rows.push(row(function));
        for other in &function.companions {
            let driver = other.driver.clone().unwrap_or_else(|| "-".to_owned());
            let mut row: [String; 7] = Default::default();
            row[6] = format!("shares its group with {} (driver {driver})", other.address);
            rows.push(row);
        }
    }
    let widths: Vec<usize> =
        (0..head.len()).map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(function: &HostFunction) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let no_iommu = if function.no_iommu { " (no IOMMU)" } else { "" };
    [
        function.address.to_string(),
        format!("{:06x}", function.class),
        format!("{:04x}:{:04x}", function.vendor, function.device),
        or_dash(function.driver.clone()),
        or_dash(function.group.as_ref().map(|group| format!("{group}{no_iommu}"))),
        or_dash(function.numa_node.map(|node| node.to_string())),
        in_use(function),
    ]
}

fn in_use(function: &HostFunction) -> String {
    let names = function.namespaces.join(", ");
    match (function.held_by.is_empty(), names.is_empty(), function.is_nvme()) {
        (false, ..) => format!("IN USE: {}", function.held_by.join(", ")),
        (true, false, _) => format!("{names}: not in use"),
        (true, true, true) if function.is_bound() => "free for user space".to_owned(),
        (true, true, true) => "no namespaces".to_owned(),
        (true, true, false) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use oxblock_pci::host::{Companion, NVME_CLASS};

    use super::*;

    fn function() -> HostFunction {
        HostFunction {
            address: "01:00.0".parse().expect("an address"),
            class: NVME_CLASS,
            vendor: 0x1b36,
            device: 0x10,
            driver: Some("nvme".to_owned()),
            numa_node: None,
            group: Some("7".to_owned()),
            no_iommu: false,
            companions: Vec::new(),
            namespaces: vec!["nvme0n1".to_owned()],
            held_by: Vec::new(),
        }
    }

    #[test]
    fn a_table_says_who_has_what() {
        let held = HostFunction { held_by: vec!["nvme0n1 is swap".to_owned()], ..function() };
        let address = "01:00.1".parse().expect("an address");
        let bound = HostFunction {
            driver: Some("vfio-pci".to_owned()),
            namespaces: Vec::new(),
            companions: vec![Companion { address, driver: Some("igb".to_owned()) }],
            ..function()
        };
        let text = table(&[function(), held, bound]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ADDRESS       CLASS   VENDOR:DEVICE  DRIVER    GROUP  NODE  USE",
                "0000:01:00.0  010802  1b36:0010      nvme      7      -     nvme0n1: not in use",
                "0000:01:00.0  010802  1b36:0010      nvme      7      -     \
                 IN USE: nvme0n1 is swap",
                "0000:01:00.0  010802  1b36:0010      vfio-pci  7      -     free for user space",
                "                                                            \
                 shares its group with 0000:01:00.1 (driver igb)",
            ]
        );
        assert!(table(&[]).contains("--all"));
    }

    #[test]
    fn a_document_has_the_same() {
        let entry = &document(&[function()])[0];
        assert_eq!(entry["address"], "0000:01:00.0");
        assert_eq!(entry["class"], "010802");
        assert_eq!(entry["iommu_group"], "7");
        assert_eq!(entry["bound"], false);
        assert_eq!(entry["namespaces"][0], "nvme0n1");
        assert!(entry["numa_node"].is_null());
    }
}
