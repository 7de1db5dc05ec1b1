//! The suite that every leaf passes, over the NVMe driver and controllers that nobody here wrote.

use oxblock_engine::{Core, LocalFuture, Node};
use oxblock_tests::conformance::{Contents, Disk, Fixture, Subject, cases, run_on};
use oxblock_tests::with_conformance_cases;

use super::disks::SECOND;
use super::machine::{attach, pages};
use super::{Machine, Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let (huge, small) = (Start::handed_over(), Start::handed_over_in_small_pages());
    for (place, machine, start, subject) in [
        ("hugepages::blocks_512", Machine::Stock, huge, blocks_of_512 as fn() -> Subject),
        ("hugepages::blocks_4096", Machine::Stock, huge, blocks_of_4096),
        ("small_pages::blocks_512", Machine::Stock, small, blocks_of_512),
        ("small_pages::blocks_4096", Machine::Stock, small, blocks_of_4096),
        ("iommufd", Machine::Iommufd, huge, blocks_of_512),
        ("noiommu", Machine::NoIommu, huge, blocks_of_4096),
    ] {
        for &(name, case) in CASES {
            let body = move || case(subject());
            let test = Test::new(&format!("conformance::{place}::{name}"), body);
            tests.push(test.machine(machine).start(start));
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

fn run<F>(subject: Subject, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_with_slots(subject, 64, case);
}

fn run_with_slots<F>(subject: Subject, slots: usize, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_on(pages(), subject, slots, case);
}

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
