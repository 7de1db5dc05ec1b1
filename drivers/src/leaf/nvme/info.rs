//! The declaration of `nvme`.

use std::time::Duration;

use oxblock_engine::graph::{DriverInfo, DriverKind, Opening, default_access};
use oxblock_engine::options::{NodeOptions, OptionSpec, Settings};
use oxblock_engine::{Body, Error, ErrorKind};

use super::{Coalescing, Controllers, InterruptMode, NvmeOptions};

/// What stands before a controller's place in names.
const PREFIX: &str = "nvme://";

/// The declaration of `nvme`: a namespace of a controller that is driven from here. Nodes on one
/// controller agree in all options but `namespace`.
pub const NVME: DriverInfo = DriverInfo {
    name: "nvme",
    kind: DriverKind::Protocol,
    needs_filename: false,
    supports_backing: false,
    protocols: &["nvme"],
    parse_filename: Some(parse_filename),
    filename: Some(print_filename),
    probe: None,
    claims: None,
    options: &[
        OptionSpec::text(
            "device",
            "the controller's PCI address; noiommu:ADDRESS; vfio-user:SOCKET",
        )
        .required()
        .strong(),
        OptionSpec::number("namespace", 1, u32::MAX as u64 - 1, "its namespace")
            .default("1")
            .strong(),
        OptionSpec::choice(
            "interrupt-mode",
            &["poll", "adaptive", "interrupt"],
            "whether queues are polled or wait for interrupts",
        )
        .default("adaptive"),
        OptionSpec::number("aggregation-threshold", 1, 256, "completions for one interrupt"),
        OptionSpec::number("aggregation-time-us", 0, 25_500, "how long an interrupt waits, us"),
        OptionSpec::number("queue-entries", 2, 1024, "entries of an I/O queue").default("256"),
    ],
    create_options: &[],
    children: &[],
    child_rule: default_access,
    open: |opening| Box::pin(open(opening)),
};

/// Reads `nvme://DEVICE`, with `/NAMESPACE` behind it or without.
fn parse_filename(name: &str, options: &mut NodeOptions) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
    let Some(place) = name.strip_prefix(PREFIX).filter(|place| !place.is_empty()) else {
        return invalid(format!("'{name}' names no controller; give {PREFIX}ADDRESS/NAMESPACE"));
    };
    let (device, namespace) = place.split_once('/').unwrap_or((place, ""));
    options.set("device", device);
    if namespace.is_empty() {
        return Ok(());
    }
    match namespace.parse::<u32>() {
        Ok(number) if number > 0 => options.set("namespace", u64::from(number)),
        _ => {
            return invalid(format!("Invalid namespace '{namespace}', positive number expected"));
        }
    }
    Ok(())
}

fn print_filename(options: &NodeOptions) -> Option<String> {
    let nsid = options.get("namespace").map_or("1".into(), |nsid| nsid.to_string());
    // A device in another process is called by the path of its socket, which no name takes.
    let device = options.text("device").filter(|device| !device.contains('/'))?;
    Some(format!("{PREFIX}{device}/{nsid}"))
}

async fn open(opening: &Opening<'_>) -> Result<Body, Error> {
    let settings = opening.settings;
    let device = settings.text("device").unwrap_or_default();
    let nsid = settings.number("namespace").and_then(|nsid| nsid.try_into().ok()).unwrap_or(1);
    let controllers = Controllers::of(opening.core);
    let controller = controllers.attach(opening.core, device, options_of(settings)).await?;
    controller.namespace(nsid).map(Body::Leaf)
}

fn options_of(settings: &Settings) -> NvmeOptions {
    let mode = settings.choice("interrupt-mode").unwrap_or_default();
    let known = InterruptMode::NAMES.iter().find(|(name, _)| *name == mode);
    let completions = settings.number("aggregation-threshold").and_then(|n| n.try_into().ok());
    let time = settings.number("aggregation-time-us").map(Duration::from_micros);
    let coalescing = (completions.is_some() || time.is_some()).then(|| Coalescing {
        completions: completions.unwrap_or(256),
        time: time.unwrap_or(Duration::from_micros(100)),
    });
    let entries = settings.number("queue-entries").and_then(|n| n.try_into().ok());
    NvmeOptions {
        interrupt_mode: known.map(|(_, mode)| *mode).unwrap_or_default(),
        coalescing,
        queue_entries: entries.unwrap_or(256),
        ..NvmeOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_qemu_reads_them() {
        let parse = |name| {
            let mut options = NodeOptions::new();
            parse_filename(name, &mut options)?;
            options.to_json()
        };
        let both = r#"{"device": "0000:01:00.0", "namespace": 7}"#;
        assert_eq!(parse("nvme://0000:01:00.0/7").ok().as_deref(), Some(both));
        for name in ["nvme://01:00.0", "nvme://01:00.0/"] {
            assert_eq!(parse(name).ok().as_deref(), Some(r#"{"device": "01:00.0"}"#), "{name}");
        }
        for name in ["nvme://01:00.0/0", "nvme://01:00.0/x", "nvme://01:00.0/-1"] {
            let error = parse(name).expect_err(name).to_string();
            assert!(error.contains("positive number expected"), "{error}");
        }
        assert!(parse("nvme://").is_err() && parse("nvme:01:00.0").is_err());
    }

    #[test]
    fn options_are_those_of_the_driver() {
        let options = |text: &str| {
            let mut options = NodeOptions::from_key_values(text, None).expect(text);
            options_of(&Settings::take(NVME.options, &mut options).expect(text))
        };
        assert_eq!(options("device=x"), NvmeOptions::default());
        let gathered = Coalescing { completions: 8, time: Duration::from_micros(100) };
        let said = options("device=x,interrupt-mode=poll,aggregation-threshold=8");
        assert_eq!(said.coalescing, Some(gathered));
        assert_eq!(said.interrupt_mode, InterruptMode::Poll);
        assert_eq!(options("device=x,queue-entries=32").queue_entries, 32);
    }
}
