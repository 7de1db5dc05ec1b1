//! What this process's commands do to a node, told to whoever else has to know: the other users of
//! its graph, and by locks on files other processes.

use std::sync::Arc;

use oxblock_engine::graph::{Access, ChildEvent, Graph, NodeId, Permissions, Root};
use oxblock_engine::{Error, Node};

/// The command as a user of a node.
struct Command;

impl Root for Command {
    fn describe(&self) -> String {
        "the command".into()
    }

    fn child_event(&self, _: &ChildEvent) {}
}

/// What a command does that `writes`, and what it leaves to others: to read, and all of it if it
/// `shares`.
pub fn access(writes: bool, shares: bool) -> Access {
    let (reads, others) = (Permissions::CONSISTENT_READ, Permissions::WRITE_UNCHANGED);
    Access {
        asked: if writes { reads | Permissions::WRITE } else { reads },
        shared: if shares { Permissions::all() } else { reads | others },
    }
}

/// Holds a node of a graph. What its files' drivers take for it they keep as long as their nodes
/// live, which is longer than the graph.
///
/// Errors: others do not leave that access, or use the node in a way that it does not leave.
pub fn hold(mut graph: Graph<Arc<Node>>, id: NodeId, access: Access) -> Result<Arc<Node>, Error> {
    graph.attach_root(id, Arc::new(Command), access)?;
    graph.node(id).map(|node| node.body.clone())
}

/// Holds a node that is in no graph.
///
/// Errors: as [`hold`].
pub fn hold_alone(node: Arc<Node>, access: Access) -> Result<Arc<Node>, Error> {
    let mut graph = Graph::new();
    let id = graph.add_open(node)?;
    hold(graph, id, access)
}
