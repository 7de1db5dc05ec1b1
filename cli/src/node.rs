//! Nodes as JSON, in the shape of blockdev-add.

use std::sync::Arc;

use oxblock_drivers::DRIVERS;
use oxblock_drivers::nvme::{Controllers, FunctionSpec};
use oxblock_engine::graph::{Access, Graph};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Engine, Error, Node};

use crate::held::hold;
use crate::tuning::NvmeTuning;

/// Entries of an NVMe queue: enough for any depth that is usual, and the most of the driver.
const QUEUE_ENTRIES: (u64, u64) = (256, 1024);

/// Reads a node.
///
/// Errors: text that is no JSON object, or one without a driver of ours; what, and where.
pub fn parse(json: &str) -> Result<NodeOptions, Error> {
    let options = NodeOptions::from_json(json).map_err(explain)?;
    DRIVERS.find(options.text("driver").unwrap_or_default()).map_err(explain)?;
    Ok(options)
}

fn explain(error: Error) -> Error {
    let drivers: Vec<&str> = DRIVERS.names().collect();
    error.context(format!(
        "the target's JSON (expected a node such as {{\"driver\":\"null-co\",\"size\":1073741824}} \
         or {{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"disk.img\"}}}}; \
         drivers: {})",
        drivers.join(", ")
    ))
}

/// A namespace of the controller behind a function, driven so.
///
/// Errors: a name of a function that is none.
pub fn of_namespace(device: &str, nsid: u32, tuning: NvmeTuning) -> Result<NodeOptions, Error> {
    let mut options = NodeOptions::new();
    options.set("driver", "nvme");
    options.set("device", FunctionSpec::parse(device)?.to_string());
    options.set("namespace", u64::from(nsid));
    tuning.add_to(&mut options);
    Ok(options)
}

/// Whether it is a namespace of an NVMe controller.
pub fn is_nvme(options: &NodeOptions) -> bool {
    options.text("driver") == Some("nvme")
}

/// Whether both are namespaces of one controller that is driven in one way.
pub fn share_a_controller(a: &NodeOptions, b: &NodeOptions) -> bool {
    let controller = |options: &NodeOptions| {
        let mut options = options.clone();
        for key in ["namespace", "node-name", "read-only"] {
            options.take(key);
        }
        if let Some(Ok(device)) = options.text("device").map(FunctionSpec::parse) {
            options.set("device", device.to_string());
        }
        options
    };
    is_nvme(a) && controller(a) == controller(b)
}

/// The functions that its nodes drive.
pub fn functions(options: &NodeOptions) -> impl Iterator<Item = FunctionSpec> {
    let devices = nodes_of(options, "nvme").into_iter();
    devices.filter_map(|before| FunctionSpec::parse(options.text(&format!("{before}device"))?).ok())
}

/// What it is, for people.
///
/// Errors: the engine failed.
pub fn words(engine: &Engine, node: &Node, options: &NodeOptions) -> Result<String, Error> {
    if let (true, Some(device)) = (is_nvme(options), options.text("device").map(str::to_owned)) {
        let of = device.clone();
        let find = move |core| async move { Controllers::of(&core).find(&of) };
        if let Some(controller) = engine.run(0, find)? {
            let nsid = options.get("namespace").map_or("1".into(), |nsid| nsid.to_string());
            let (model, serial) = (&controller.identity().model, &controller.identity().serial);
            let (model, serial) = (model.trim(), serial.trim());
            return Ok(format!("namespace {nsid} of {model} ({serial}) at {device}"));
        }
    }
    Ok(format!("{} node `{}`", node.driver_name(), node.name()))
}

/// Opens it, on the engine's first core. `queue_depth` is how many requests a file has in the
/// kernel at once, and a core with an NVMe controller, where that is not said; `access` is what is
/// done to the node and left to others.
///
/// Errors: what the drivers say; others who stand against that access.
pub fn open(
    engine: &Engine,
    options: &NodeOptions,
    queue_depth: u16,
    access: Access,
) -> Result<Arc<Node>, Error> {
    let mut options = options.clone();
    options.set_default("node-name", "target");
    for file in nodes_of(&options, "file") {
        options.set_default(&format!("{file}queue-depth"), u64::from(queue_depth));
    }
    let entries = (u64::from(queue_depth) + 1).clamp(QUEUE_ENTRIES.0, QUEUE_ENTRIES.1);
    for namespace in nodes_of(&options, "nvme") {
        options.set_default(&format!("{namespace}queue-entries"), entries);
    }
    engine.run(0, move |core| async move {
        let mut graph = Graph::new();
        let id = graph.open(&core, &DRIVERS, options).await?;
        hold(graph, id, access)
    })?
}

/// Whether nothing was ever written to it: its bytes are those of a disk in memory.
pub fn is_fresh(options: &NodeOptions) -> bool {
    !nodes_of(options, "memory").is_empty()
}

/// What stands before the options of each node of this driver.
fn nodes_of(options: &NodeOptions, driver: &str) -> Vec<String> {
    let of_driver = options.keys().filter(|key| options.text(key) == Some(driver));
    let before = of_driver.filter_map(|key| key.strip_suffix("driver"));
    before.filter(|before| before.is_empty() || before.ends_with('.')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_named() {
        for (json, hint) in [
            ("{", "premature EOI"),
            (r#"{"driver":"qcow3"}"#, "qcow3"),
            (r#"{"size":1}"#, "Unknown driver ''"),
        ] {
            let error = parse(json).expect_err(json).to_string();
            assert!(error.contains(hint) && error.contains("expected a node"), "{error}");
        }
    }

    #[test]
    fn drivers_are_found_at_every_depth() {
        let json = r#"{"driver":"raw","file":{"driver":"raw","file":{"driver":"memory"}}}"#;
        let options = parse(json).expect("a node");
        assert!(is_fresh(&options));
        assert_eq!(nodes_of(&options, "raw"), ["", "file."]);
        assert!(!is_fresh(&parse(r#"{"driver":"null-co","node-name":"memory"}"#).expect("a node")));
    }
}
