//! What bodies are told of their users: who keeps other processes out has to know what the users of
//! this one do, and leave to others.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tables::{NodeId, Tables};
use super::{Access, Graph, NodeEntry, default_access};
use crate::{Error, Node};

/// What does a node's work, as the book has to do with it.
pub trait NodeBody: Clone {
    /// As [`Driver::check_access`](crate::Driver::check_access).
    ///
    /// # Errors
    /// Somebody outside does not leave, or does, what this takes.
    fn check_access(&self, access: Access) -> Result<(), Error>;

    /// As [`Driver::set_access`](crate::Driver::set_access).
    fn set_access(&self, access: Access);
}

impl NodeBody for Arc<Node> {
    fn check_access(&self, access: Access) -> Result<(), Error> {
        match self.driver() {
            Ok(driver) => driver.check_access(access),
            Err(_) => Ok(()),
        }
    }

    fn set_access(&self, access: Access) {
        if let Ok(driver) = self.driver() {
            driver.set_access(access);
        }
    }
}

impl<B: NodeBody> Tables<B> {
    /// Brings all bodies from what their users do by these tables to what they do by `next`. All
    /// are asked before any gives anything up; when one refuses, all are as before.
    pub(super) fn hand_over_to(&self, next: &Self) -> Result<(), Error> {
        let ids: BTreeSet<NodeId> = self.nodes.keys().chain(next.nodes.keys()).copied().collect();
        let accesses = |id: &NodeId| (self.cumulative(*id), next.cumulative(*id));
        let changed: Vec<(NodeId, Access, Access)> = ids
            .iter()
            .map(|id| (*id, accesses(id)))
            .filter(|(_, (now, then))| now != then)
            .map(|(id, (now, then))| (id, now, then))
            .collect();
        let body = |id: &NodeId| {
            let entry = next.nodes.get(id).or_else(|| self.nodes.get(id));
            entry.map(|entry| &entry.body)
        };
        for (at, (id, _, then)) in changed.iter().enumerate() {
            let Some(Err(error)) = body(id).map(|body| body.check_access(*then)) else { continue };
            for (id, now, _) in &changed[..=at] {
                body(id).inspect(|body| body.set_access(*now));
            }
            return Err(error);
        }
        for (id, _, then) in &changed {
            body(id).inspect(|body| body.set_access(*then));
        }
        Ok(())
    }
}

impl Graph<Arc<Node>> {
    /// Adds a node that was opened by itself, and stands on no others, to stay.
    ///
    /// # Errors
    /// A name that is none, or taken.
    pub fn add_open(&mut self, node: Arc<Node>) -> Result<NodeId, Error> {
        let entry = NodeEntry::new(node, default_access);
        self.add(entry, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{ChildEvent, Permissions, Root};
    use super::*;
    use crate::ErrorKind;

    struct User;

    impl Root for User {
        fn describe(&self) -> String {
            "a user".into()
        }

        fn child_event(&self, _: &ChildEvent) {}
    }

    /// What it was told, in order; it refuses what it is to refuse.
    #[derive(Clone)]
    struct Told(Arc<Mutex<Vec<String>>>, &'static str, Permissions);

    impl NodeBody for Told {
        fn check_access(&self, access: Access) -> Result<(), Error> {
            self.0.lock().unwrap().push(format!("check {}: {}", self.1, access.asked));
            match access.asked.intersects(self.2) {
                true => Err(Error::new(ErrorKind::Busy, "somebody else has it")),
                false => Ok(()),
            }
        }

        fn set_access(&self, access: Access) {
            self.0.lock().unwrap().push(format!("set {}: {}", self.1, access.asked));
        }
    }

    fn entry(body: Told) -> NodeEntry<Told> {
        NodeEntry {
            name: body.1.into(),
            driver: "test",
            read_only: false,
            force_share: false,
            implicit: false,
            inactive: false,
            is_filter: true,
            has_ragged_end: false,
            child_rule: default_access,
            owned: true,
            body,
            children: Vec::new(),
            parents: Vec::new(),
        }
    }

    #[test]
    fn all_are_asked_first_and_all_go_back_if_one_refuses() {
        use super::super::{ChildRole, NewChild};
        let log = Arc::new(Mutex::new(Vec::new()));
        let body = |name, refuses| Told(log.clone(), name, refuses);
        let told = || std::mem::take(&mut *log.lock().unwrap());
        let mut graph = Graph::new();
        let file = graph.add(entry(body("file", Permissions::WRITE)), &[]).unwrap();
        let role = ChildRole::FILTERED | ChildRole::PRIMARY;
        let below = NewChild { name: "file", role, node: file };
        let top = graph.add(entry(body("top", Permissions::empty())), &[below]).unwrap();
        assert_eq!(told(), Vec::<String>::new(), "nobody does anything yet");
        let reads = Access { asked: Permissions::CONSISTENT_READ, shared: Permissions::all() };
        let user = graph.attach_root(top, Arc::new(User), reads).unwrap();
        let read = "consistent read";
        let all = ["check file", "check top", "set file", "set top"];
        assert_eq!(told(), all.map(|words| format!("{words}: {read}")));
        let writes = Access { asked: Permissions::WRITE, ..reads };
        graph.set_root_access(user, writes).unwrap_err();
        assert_eq!(told(), ["check file: write", &format!("set file: {read}")]);
        assert_eq!(graph.cumulative(file), reads);
        graph.set_root_access(user, reads).unwrap();
        assert_eq!(told(), Vec::<String>::new(), "nothing is another");
        graph.detach(user).unwrap();
        graph.release(top).unwrap();
        assert_eq!(told(), ["check file: ", "check top: ", "set file: ", "set top: "]);
    }
}
