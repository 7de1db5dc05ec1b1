//! The rows of docs/nvme-errors.md that QEMU can bring about: `nvme_error_rows` in the guest.

mod limits;
mod namespaces;
mod recovery;
mod statuses;

use std::rc::Rc;
use std::sync::Arc;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Completion, Core, ErrorKind, Node, Op};
use oxblock_mem::Buf;
use oxblock_pci::vfio::VfioFunction;
use oxblock_tests::rows::condition;

use super::disks::Controller;
use super::machine::{engine, function_of};
use super::{Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let mut rows = Rows(tests);
    limits::add(&mut rows);
    namespaces::add(&mut rows);
    recovery::add(&mut rows);
    statuses::add(&mut rows);
}

/// The tests of rows.
struct Rows<'a>(&'a mut Vec<Test>);

impl Rows<'_> {
    /// A row: the name of a test of it, what the driver did when it passes, what brought the
    /// condition about, and the test.
    fn add(
        &mut self,
        row: u32,
        name: &str,
        outcome: &'static str,
        by: &'static str,
        body: impl Fn() + 'static,
    ) {
        let told = move || {
            body();
            println!("row {row}: {}: {outcome}, {by}: pass", condition(row));
        };
        let test = Test::new(&format!("nvme_error_rows::row_{row}_{name}"), told);
        self.0.push(test.start(Start::handed_over()).told());
    }
}

/// A controller that our driver drives, and a channel to a namespace of it.
pub struct Driven {
    /// Its home core.
    pub core: Core,
    /// What it is to the kernel.
    pub function: Arc<VfioFunction>,
    /// The driver.
    pub host: Arc<Host>,
    /// To the namespace, from the home core.
    pub channel: Rc<Channel>,
}

impl Driven {
    /// Attaches the driver and opens a namespace.
    pub async fn new(
        core: Core,
        controller: &Controller,
        nsid: u32,
        options: NvmeOptions,
    ) -> Driven {
        let function = function_of(controller);
        let host = Host::attach(&core, function.clone(), options).await;
        let host = host.unwrap_or_else(|e| panic!("{e}"));
        let driver = host.namespace(nsid).unwrap_or_else(|e| panic!("{e}"));
        let node = Node::new(format!("nvme0n{nsid}"), driver);
        let channel = Rc::new(core.open(&node).await.unwrap_or_else(|e| panic!("{e}")));
        Driven { core, function, host, channel }
    }

    fn buf(&self, len: usize) -> Buf {
        self.core.arena().alloc(len, 4096).expect("memory")
    }

    async fn read(&self, offset: u64, len: usize) -> Completion {
        self.channel.run(Op::read(offset, self.buf(len))).await
    }

    async fn write(&self, offset: u64, len: usize) -> Completion {
        self.channel.run(Op::write(offset, self.buf(len))).await
    }
}

/// Runs a test on the first core of an engine of so many, and shuts it down in good order.
pub fn on_engine<T, F>(cores: usize, test: impl FnOnce(Core) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let engine = engine(cores);
    let done = engine.run(0, test).unwrap_or_else(|e| panic!("{e}"));
    engine.shutdown().unwrap_or_else(|e| panic!("{e}"));
    done
}

/// What an operation failed with, and where.
fn failure(completion: &Completion) -> (ErrorKind, u64) {
    let fault = completion.result.expect_err("a failure");
    (fault.kind, fault.offset)
}
