use oxblock_engine::graph::{Access, ChildEvent, Graph, Permissions, Root};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Options, Reactor};
use oxblock_mem::{ArenaOptions, PagePolicy};

use super::*;
use crate::DRIVERS;

fn reactor() -> Reactor {
    let arena = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(2 << 20) };
    Reactor::new(Options { arena, ..Options::default() }).expect("a reactor")
}

/// Opens a node; its length and its block size, or what was said.
fn open_json(json: &str) -> Result<(u64, u32), String> {
    let reactor = reactor();
    let core = reactor.core().clone();
    let options = NodeOptions::from_json(json).expect("JSON");
    let opened = reactor.block_on(async move {
        let mut graph = Graph::new();
        let id = graph.open(&core, &DRIVERS, options).await.map_err(|error| error.to_string())?;
        let limits = graph.node(id).map_err(|error| error.to_string())?.body.limits();
        Ok((limits.length, limits.block_size))
    });
    opened.expect("an engine")
}

#[test]
fn options_that_do_not_go_together_are_refused_and_say_why() {
    let null = r#""backing":{"driver":"null-co","size":1048576}"#;
    let blocks = r#""backing":{"driver":"memory","size":1048576,"block-size":4096}"#;
    for (options, words) in [
        ("", "needs a size: give 'size' or 'backing'"),
        (r#""backing":{"driver":"null-co"},"cluster-size":"3k""#, "power of two between 512 and"),
        (r#""backing":{"driver":"null-co"},"cluster-size":"4M""#, "power of two between 512 and"),
        (&format!(r#"{blocks},"cluster-size":512"#), "cluster-size (512) must be a multiple of"),
        (&format!(r#"{blocks},"size":512"#), "size (512) must be a multiple of the block size"),
        (&format!(r#"{null},"max-memry":1"#), "did you mean 'max-memory'?"),
        (r#""size":"7E","cluster-size":512"#, "give a larger cluster-size"),
    ] {
        let comma = if options.is_empty() { "" } else { "," };
        let error =
            open_json(&format!(r#"{{"driver":"cow"{comma}{options}}}"#)).expect_err(options);
        assert!(error.contains(words), "{options}: {error}");
    }
    assert_eq!(open_json(&format!(r#"{{"driver":"cow",{null}}}"#)), Ok((1 << 20, 512)));
    assert_eq!(
        open_json(&format!(r#"{{"driver":"cow",{blocks},"size":"2M"}}"#)),
        Ok((2 << 20, 4096))
    );
    assert_eq!(open_json(r#"{"driver":"cow","size":4096}"#), Ok((4096, 1)));
}

#[test]
fn a_cluster_is_asked_about_as_often_as_its_state_changes() {
    let reactor = reactor();
    let options = CowOptions { size: Some(5 << 12), cluster_size: 1 << 12, max_memory: None };
    let Body::Over(format, _) = open(reactor.core(), "cow", None, options).expect("one") else {
        panic!("no format")
    };
    // Nothing below, so what is absent reads as zeroes, and zeroes need no work.
    let zero = |len| Extent::Zero { len };
    assert_eq!(format.map(512, 1 << 20, Intent::Read), zero((5 << 12) - 512));
    assert_eq!(format.map(512, 8192, Intent::Zero), zero(8192));
    assert_eq!(format.map(512, 512, Intent::Write), Extent::Slow);
    assert_eq!(format.map(5 << 12, 512, Intent::Read), Extent::End);
}

#[test]
fn several_overlays_share_what_lies_below_and_nobody_else_may_write_it() {
    let reactor = reactor();
    let core = reactor.core().clone();
    let test = async move {
        let mut graph = Graph::new();
        let mut overlays = Vec::new();
        for json in [
            r#"{"driver":"memory","size":65536,"node-name":"base"}"#,
            r#"{"driver":"cow","node-name":"one","backing":"base"}"#,
            r#"{"driver":"cow","node-name":"two","backing":"base"}"#,
        ] {
            let options = NodeOptions::from_json(json).expect("JSON");
            overlays.push(graph.open(&core, &DRIVERS, options).await.expect("a node"));
        }
        overlays.remove(0);
        let reading = Access {
            asked: Permissions::CONSISTENT_READ | Permissions::WRITE,
            shared: Permissions::CONSISTENT_READ,
        };
        for overlay in &overlays {
            graph.attach_root(*overlay, Arc::new(Drive), reading).expect("both may be used");
        }
        let base = graph.find("base").expect("the base");
        let writing = Access { asked: Permissions::WRITE, shared: Permissions::all() };
        let error = graph.attach_root(base, Arc::new(Drive), writing).unwrap_err().to_string();
        assert!(error.contains("node 'base'") && error.contains("'backing' child"), "{error}");
    };
    reactor.block_on(test).expect("an engine");
}

struct Drive;

impl Root for Drive {
    fn describe(&self) -> String {
        "block device 'drive0'".into()
    }

    fn child_event(&self, _: &ChildEvent) {}
}
