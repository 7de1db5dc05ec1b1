//! The suite that every leaf passes, over the NVMe driver and controllers that nobody here wrote.

use oxblock_engine::{Core, LocalFuture, Node};
use oxblock_tests::conformance::{Contents, Fixture, Subject, cases, run, run_with_slots};
use oxblock_tests::with_conformance_cases;

use super::disks::SECOND;
use super::machine::attach;
use super::{Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let (huge, small) = (Start::handed_over(), Start::handed_over_in_small_pages());
    for (pages, start) in [("hugepages", huge), ("small_pages", small)] {
        for (blocks, subject) in
            [("512", blocks_of_512 as fn() -> Subject), ("4096", blocks_of_4096)]
        {
            for &(name, case) in CASES {
                let name = format!("conformance::{pages}::blocks_{blocks}::{name}");
                tests.push(Test::new(&name, move || case(subject())).start(start));
            }
        }
    }
}

type Case = fn(Subject);

macro_rules! table {
    (; $($name:ident => $case:expr),+ $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((stringify!($name), $case)),+];
    };
}
with_conformance_cases!([table]);

fn blocks_of_512() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(namespace(core, 1))
    }
    Subject { contents: Contents::Kept, open }
}

fn blocks_of_4096() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(namespace(core, 2))
    }
    Subject { contents: Contents::Kept, open }
}

/// A namespace of the second controller, empty.
async fn namespace(core: Core, nsid: u32) -> Fixture {
    let controller = attach(&core, &SECOND).await;
    let driver = controller.namespace(nsid).expect("the namespace");
    let node = Node::new("nvme0", driver);
    let channel = core.open(&node).await.expect("a channel");
    channel.write_zeroes(0, node.limits().length).await.expect("zeroes");
    Fixture { node, hold: vec![Box::new(controller)] }
}
