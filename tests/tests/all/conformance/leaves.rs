//! The suite over null, memory and file.

use oxblock_drivers::{file, memory, null};
use oxblock_engine::{Core, LocalFuture, Node};

use super::{Contents, Fixture, Subject, conformance};

fn null_with(options: null::NullOptions) -> Fixture {
    Fixture::new(Node::new("null0", null::open(options).expect("a null device")))
}

fn null_of_nothing() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        let options = null::NullOptions { size: 4099 * 512, ..Default::default() };
        Box::pin(async move { null_with(options) })
    }
    Subject { contents: Contents::Nothing, open }
}

fn null_of_zeroes() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        let size = 517 * 4096;
        let options =
            null::NullOptions { size, block_size: 4096, latency_ns: 3000, read_zeroes: true };
        Box::pin(async move { null_with(options) })
    }
    Subject { contents: Contents::Zeroes, open }
}

fn memory_with(size: u64, block_size: u32) -> Fixture {
    let driver = memory::open(memory::MemoryOptions { size, block_size }).expect("a memory disk");
    Fixture::new(Node::new("memory0", driver))
}

fn memory_512() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async { memory_with(10_253 * 512, 512) })
    }
    Subject { contents: Contents::Kept, open }
}

fn memory_4096() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async { memory_with(4999 * 4096, 4096) })
    }
    Subject { contents: Contents::Kept, open }
}

fn file_with(change: impl FnOnce(&mut file::FileOptions)) -> Fixture {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = file::FileOptions::new(directory.path().join("disk"));
    change(&mut options);
    let driver = file::open(options).expect("a file");
    Fixture { node: Node::new("file0", driver), hold: vec![Box::new(directory)] }
}

fn file_of_bytes() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async { file_with(|options| options.size = Some((9 << 20) + 12_345)) })
    }
    Subject { contents: Contents::Kept, open }
}

fn file_of_blocks() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async {
            file_with(|options| {
                options.size = Some(2053 * 512);
                options.block_size = 512;
                options.queue_depth = 3;
            })
        })
    }
    Subject { contents: Contents::Kept, open }
}

fn file_past_the_page_cache() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async {
            file_with(|options| {
                options.size = Some(259 * 4096 - 100);
                options.direct = true;
            })
        })
    }
    Subject { contents: Contents::Kept, open }
}

fn file_by_the_ring_alone() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async {
            file_with(|options| {
                options.size = Some(2053 * 512);
                options.engine = file::FileEngine::Uring;
                options.at_once = false;
            })
        })
    }
    Subject { contents: Contents::Kept, open }
}

fn file_by_workers() -> Subject {
    fn open(_: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async {
            file_with(|options| {
                options.size = Some(2053 * 512);
                options.engine = file::FileEngine::Workers;
                options.at_once = false;
            })
        })
    }
    Subject { contents: Contents::Kept, open }
}

conformance!(null_nothing, null_of_nothing());
conformance!(null_zeroes, null_of_zeroes());
conformance!(memory_blocks_512, memory_512());
conformance!(memory_blocks_4096, memory_4096());
conformance!(file_bytes, file_of_bytes());
conformance!(file_blocks_512, file_of_blocks());
conformance!(file_direct, file_past_the_page_cache());
conformance!(file_ring, file_by_the_ring_alone());
conformance!(file_workers, file_by_workers());
