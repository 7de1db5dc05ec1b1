//! Nodes as JSON, in the shape of blockdev-add.

use std::sync::Arc;

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::{Access, Graph};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Engine, Error, Node};

use crate::held::hold;

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

/// Opens it, on the engine's first core. `queue_depth` is how many requests a file has in the
/// kernel at once where that is not said, `access` what is done to the node and left to others.
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
