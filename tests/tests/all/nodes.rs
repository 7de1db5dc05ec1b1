//! Nodes of the graph that are opened by their options, over a software controller.

use std::sync::Arc;

use oxblock_drivers::nvme::Controllers;
use oxblock_drivers::{DRIVERS, memory};
use oxblock_engine::graph::Graph;
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Core, Engine, Error, ErrorKind, Node, Options};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};
use oxblock_tests::exercise::Exercise;

/// A controller with two namespaces, lent to the engine's nodes as `soft0`.
async fn lend_controller(core: &Core) -> Arc<Controller> {
    let namespace = |size| {
        let driver = memory::open(memory::MemoryOptions { size, block_size: 512 });
        NamespaceOptions::new(Node::new("below", driver.expect("a memory disk")), 512)
    };
    let namespaces = vec![namespace(1 << 20), namespace(2 << 20)];
    let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
    let controller = Controller::start(core, options).await.expect("a controller");
    Controllers::of(core).lend("soft0", controller.function());
    controller
}

async fn open(core: &Core, graph: &mut Graph<Arc<Node>>, json: &str) -> Result<Arc<Node>, Error> {
    let id = graph.open(core, &DRIVERS, NodeOptions::from_json(json)?).await?;
    Ok(graph.node(id)?.body.clone())
}

#[test]
fn namespaces_of_one_controller_share_its_driver() {
    let engine = Engine::with_cores(1, Options::default()).expect("an engine");
    let ran = engine.run(0, |core| async move {
        let soft = lend_controller(&core).await;
        let controllers = Controllers::of(&core);
        let mut graph = Graph::new();
        assert!(controllers.find("soft0").is_none());
        let one = r#"{"driver":"nvme","device":"soft0","namespace":1,"node-name":"one"}"#;
        let first = open(&core, &mut graph, one).await.expect("namespace 1");
        let attached = controllers.find("soft0").expect("the controller is attached");
        let two = r#"{"driver":"raw","offset":4096,"node-name":"two",
                      "file":{"driver":"nvme","device":"soft0","namespace":2}}"#;
        let second = open(&core, &mut graph, two).await.expect("namespace 2");
        assert!(Arc::ptr_eq(&attached, &controllers.find("soft0").expect("it stays")));
        assert_eq!((first.limits().length, second.limits().length), (1 << 20, (2 << 20) - 4096));

        let channels = [core.open(&first).await, core.open(&second).await];
        for (round, channel) in (0..).zip(&channels) {
            let exercise = Exercise { round, ..Exercise::of(100) };
            exercise.run(&core, channel.as_ref().expect("a channel")).await;
        }
        drop(channels);

        let other = r#"{"driver":"nvme","device":"soft0","namespace":2,"queue-entries":8}"#;
        let error = open(&core, &mut graph, other).await.expect_err("other options");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        let error = open(&core, &mut graph, &one.replace(":1", ":3").replace("one", "three")).await;
        assert_eq!(error.expect_err("no namespace 3").kind(), ErrorKind::NotFound);
        drop(soft);
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

#[test]
fn a_device_that_is_none_is_named() {
    let engine = Engine::with_cores(1, Options::default()).expect("an engine");
    let ran = engine.run(0, |core| async move {
        let mut graph = Graph::new();
        for (device, words) in
            [("soft1", "`soft1` is no PCI address"), ("ffff:ff:1f.7", "oxblock pci list")]
        {
            let json = format!(r#"{{"driver":"nvme","device":"{device}","namespace":1}}"#);
            let error = open(&core, &mut graph, &json).await.expect_err(device).to_string();
            assert!(error.contains(words), "{error}");
            // A second time as well: nobody waits for the first.
            assert!(open(&core, &mut graph, &json).await.is_err());
        }
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}
