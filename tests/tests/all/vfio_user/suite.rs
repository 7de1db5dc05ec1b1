//! The conformance suite between two processes, on 4 KiB pages, and in part on hugepages.

use std::future::Future;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Core, LocalFuture, Node};
use oxblock_mem::{PagePolicy, PageSize};
use oxblock_pci::vfio_user::{VfioUserFunction, VfioUserOptions};
use oxblock_tests::conformance::{self, Contents, Disk, Fixture, Subject, run_on};

use super::server::{self, Server};

/// A disk of another process.
async fn open(core: Core, disk: server::Disk) -> Fixture {
    let server = Server::start(disk);
    let options = VfioUserOptions::default();
    let function = VfioUserFunction::connect(&server.path(), options).expect("the server");
    let host = Host::attach(&core, function, NvmeOptions::default()).await.expect("the driver");
    let driver = host.namespace(1).expect("namespace 1");
    Fixture { node: Node::new("far0n1", driver), hold: vec![Box::new(server)] }
}

fn blocks_512() -> Subject {
    fn subject(core: Core) -> LocalFuture<'static, Fixture> {
        let disk = server::Disk { blocks: 10_253, block_bytes: 512, mdts: 8 };
        Box::pin(open(core, disk))
    }
    Subject { contents: Contents::Kept, open: subject }
}

fn blocks_4096() -> Subject {
    fn subject(core: Core) -> LocalFuture<'static, Fixture> {
        let disk = server::Disk { blocks: 1031, block_bytes: 4096, mdts: 1 };
        Box::pin(open(core, disk))
    }
    Subject { contents: Contents::Kept, open: subject }
}

fn run_with_slots<F>(subject: Subject, slots: usize, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_on(PagePolicy::Unlocked, subject, slots, case);
}

fn run<F>(subject: Subject, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_with_slots(subject, 64, case);
}

/// The suite's tests with memory of this file's choice.
macro_rules! on_small_pages {
    ($module:ident, $subject:expr; $($name:ident => $case:expr),+ $(,)?) => {
        mod $module {
            use super::conformance::cases;
            use super::*;

            $(
                #[test]
                fn $name() {
                    let case: fn(Subject) = $case;
                    case($subject);
                }
            )+
        }
    };
}

oxblock_tests::with_conformance_cases!([on_small_pages] small_pages_512, blocks_512());
oxblock_tests::with_conformance_cases!([on_small_pages] small_pages_4096, blocks_4096());

#[test]
fn hugepages_work_as_well() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.ok().and_then(|free| free.trim().parse::<usize>().ok()).unwrap_or(0);
    // What the suite's engine takes.
    if free < 16 {
        return println!("skipped: hugepages_work_as_well: 16 free hugepages are needed");
    }
    let pages = PagePolicy::Exactly(PageSize::Huge2M);
    run_on(pages, blocks_512(), 64, conformance::cases::every_kind);
    run_on(pages, blocks_512(), 64, conformance::cases::many_at_once);
    run_on(pages, blocks_4096(), 64, conformance::cases::two_cores);
}
