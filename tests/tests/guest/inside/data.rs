//! What one driver writes the other reads: ours over VFIO, and the kernel's.

use oxblock_engine::Node;
use oxblock_mem::IoVector;
use oxblock_tests::random::seed;

use super::disks::{Controller, FIRST, SECOND};
use super::machine::{attach, disk, engine, give, read_at, write_at};
use super::{Machine, Start, Test};

const PIECES: u64 = 24;

pub fn add(tests: &mut Vec<Test>) {
    let (huge, small) = (Start::default(), Start { hugepages: 0, ..Start::default() });
    for (place, machine, start) in [
        ("hugepages", Machine::Stock, huge),
        ("small_pages", Machine::Stock, small),
        ("iommufd", Machine::Iommufd, huge),
        ("noiommu", Machine::NoIommu, huge),
    ] {
        let mut add = |name: String, body: Box<dyn Fn()>| {
            let test = Test::new(&format!("data::{place}::{name}"), body);
            tests.push(test.machine(machine).start(start));
        };
        for nsid in [1, 2] {
            add(
                format!("written_by_us_read_by_the_kernel::nsid_{nsid}"),
                Box::new(move || ours_to_kernel(&FIRST, nsid)),
            );
            add(
                format!("written_by_the_kernel_read_by_us::nsid_{nsid}"),
                Box::new(move || kernel_to_ours(&SECOND, nsid)),
            );
        }
    }
}

fn ours_to_kernel(controller: &'static Controller, nsid: u32) {
    let pieces = pieces(controller, nsid);
    hand_over(controller, "vfio-pci");
    through_vfio(controller, nsid, pieces.clone(), true);
    hand_over(controller, "nvme");
    for (offset, bytes) in pieces {
        assert!(read_at(&disk(controller, nsid), offset, bytes.len()) == bytes, "at {offset}");
    }
}

fn kernel_to_ours(controller: &'static Controller, nsid: u32) {
    let pieces = pieces(controller, nsid);
    for (offset, bytes) in &pieces {
        write_at(&disk(controller, nsid), *offset, bytes);
    }
    hand_over(controller, "vfio-pci");
    through_vfio(controller, nsid, pieces, false);
}

fn hand_over(controller: &Controller, driver: &str) {
    give(controller.address, driver).unwrap_or_else(|e| panic!("{e}"));
}

/// Pieces of random bytes all over a namespace, which do not overlap: one in each part of it.
fn pieces(controller: &Controller, nsid: u32) -> Vec<(u64, Vec<u8>)> {
    let seed = seed(0xda7a);
    let mut random = seed.random(u64::from(nsid));
    let namespace = controller.namespaces.iter().find(|one| one.nsid == nsid).expect("it");
    let block = u64::from(namespace.block_size);
    let part = namespace.length / block / PIECES;
    let piece = |number: u64| {
        let length = random.within(1..part.min((256 << 10) / block) + 1);
        let first = number * part + random.within(0..part - length + 1);
        (first * block, random.bytes((length * block) as usize))
    };
    (0..PIECES).map(piece).collect()
}

/// Writes the pieces by our driver, or reads them and compares.
fn through_vfio(
    controller: &'static Controller,
    nsid: u32,
    pieces: Vec<(u64, Vec<u8>)>,
    writes: bool,
) {
    let engine = engine(1);
    let done = engine.run(0, move |core| async move {
        let attached = attach(&core, controller).await;
        let node = Node::new("nvme0", attached.namespace(nsid).expect("the namespace"));
        let channel = core.open(&node).await.expect("a channel");
        for (offset, bytes) in pieces {
            let mut data = IoVector::from(core.arena().alloc(bytes.len(), 4096).expect("memory"));
            if writes {
                data.write_at(0, &bytes);
                channel.write(offset, data).await.1.expect("a write");
            } else {
                let mut found = vec![0; bytes.len()];
                let (data, done) = channel.read(offset, data).await;
                done.expect("a read");
                data.read_at(0, &mut found);
                assert!(found == bytes, "at {offset}");
            }
        }
        channel.flush().await.expect("a flush");
    });
    done.expect("the engine");
    engine.shutdown().expect("an orderly shutdown");
}
