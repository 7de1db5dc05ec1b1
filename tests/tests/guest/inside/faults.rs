//! Faults that the host puts below a disk while it is in use, and takes away again.

use serde_json::{Value, json};

use super::disks::file_node;
use super::host::{execute, try_execute};

/// What QEMU calls the node between a disk and its file.
fn between(disk: &str) -> String {
    format!("{disk}-between")
}

/// A node between a disk and its file, gone when dropped.
pub struct Between {
    disk: String,
}

impl Between {
    /// Errors by blkdebug: `rules` is its list `inject-error`.
    pub fn errors(disk: &str, rules: Value) -> Between {
        let node = json!({ "driver": "blkdebug", "image": file_node(disk), "inject-error": rules });
        Between::put(disk, node)
    }

    /// A throttle group with these limits.
    pub fn throttle(disk: &str, limits: Value) -> Between {
        let group = format!("{disk}-group");
        let object = json!({ "qom-type": "throttle-group", "id": group, "limits": limits });
        execute("object-add", object);
        let node =
            json!({ "driver": "throttle", "file": file_node(disk), "throttle-group": group });
        Between::put(disk, node)
    }

    fn put(disk: &str, mut node: Value) -> Between {
        node["node-name"] = json!(between(disk));
        execute("blockdev-add", node);
        let put = Between { disk: disk.to_owned() };
        execute("blockdev-reopen", over(disk, &between(disk)));
        put
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        remove(&self.disk);
    }
}

/// Takes away what is between a disk and its file, if anything is.
pub fn remove(disk: &str) {
    // None of it is there after a test that ended well.
    let _ = try_execute("blockdev-reopen", over(disk, &file_node(disk)));
    let _ = try_execute("blockdev-del", json!({ "node-name": between(disk) }));
    let _ = try_execute("object-del", json!({ "id": format!("{disk}-group") }));
}

/// A disk is to stand on this node.
fn over(disk: &str, below: &str) -> Value {
    json!({ "options": [{ "driver": "raw", "node-name": disk, "file": below }] })
}
