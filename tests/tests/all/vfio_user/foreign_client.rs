//! A client that others wrote: that of the `vfio_user` crate, of the rust-vmm project. It is
//! driven from here as a small NVMe driver would: one command at a time, in queues of our own.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oxblock_mem::{Arena, ArenaOptions, Cells, Memory, PagePolicy, Region};
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::regs::{self, Aqa, Cap, Cc, Csts};
use oxblock_nvme::{Command, Completion};
use vfio_user::Client;

use super::server::{PLAIN, Server};

/// Entries of all queues.
const ENTRIES: u32 = 8;
/// Where our memory is for the device.
const IOVA: u64 = 0x20_0000;
/// The region that is configuration space.
const CONFIG: u32 = 7;

/// A controller, behind the client.
struct Controller {
    client: Client,
    arena: Arena,
    doorbells: Cells,
    dstrd: u8,
}

/// A pair of queues.
struct Pair {
    id: u16,
    sq: SubmissionQueue<Cells>,
    cq: CompletionQueue<Cells>,
}

impl Controller {
    /// Connects, lends memory, and maps the doorbells.
    fn connect(server: &Server) -> Controller {
        let mut client = Client::new(&server.path()).expect("a connection");
        let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(1 << 20) };
        let arena = Memory::new().add_arena(&options).expect("memory");
        let region = arena.region();
        let (file, offset) = region.fd().expect("a file");
        client.dma_map(offset, IOVA, 1 << 20, file.as_raw_fd()).expect("a mapping");
        // Memory decoding and bus mastering on.
        client.region_write(CONFIG, 4, &6u16.to_le_bytes()).expect("the command register");

        let bar = client.region(0).expect("BAR 0");
        let area = bar.sparse_areas.first().expect("an area to map");
        assert_eq!((area.offset, area.size), (0x1000, 0x1000));
        let file = bar.file_offset.as_ref().expect("a file to map");
        let window = Region::import(file.file().as_fd(), file.start() + area.offset, area.size);
        let words = window.expect("a mapping").buf(0, area.size as usize).expect("all of it");
        let doorbells = Cells::new(words).expect("words");
        let mut controller = Controller { client, arena, doorbells, dstrd: 0 };
        controller.dstrd = Cap(controller.read64(regs::CAP)).dstrd();
        controller
    }

    fn read32(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(0, offset, &mut bytes).expect("a register");
        u32::from_le_bytes(bytes)
    }

    fn read64(&mut self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.client.region_read(0, offset, &mut bytes).expect("a register");
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.client.region_write(0, offset, bytes).expect("a register");
    }

    fn pair(&self, id: u16) -> Pair {
        let cells = |len: usize| Cells::new(self.arena.alloc(len, 4096).unwrap()).unwrap();
        let sq = SubmissionQueue::new(cells(ENTRIES as usize * Command::BYTES), ENTRIES);
        let cq = CompletionQueue::new(cells(ENTRIES as usize * Completion::BYTES), ENTRIES);
        Pair { id, sq: sq.expect("a queue"), cq: cq.expect("a queue") }
    }

    /// The address of our memory for the device.
    fn iova(&self, addr: *mut u8) -> u64 {
        IOVA + (addr.addr() - self.arena.region().addr().addr()) as u64
    }

    /// EN, and RDY.
    fn enable(&mut self) -> Pair {
        let admin = self.pair(0);
        let (sq, cq) = (admin.sq.words().addr(), admin.cq.words().addr());
        self.write(regs::AQA, &Aqa::new(ENTRIES as u16, ENTRIES as u16).0.to_le_bytes());
        self.write(regs::ASQ, &self.iova(sq).to_le_bytes());
        self.write(regs::ACQ, &self.iova(cq).to_le_bytes());
        let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
        self.write(regs::CC, &cc.0.to_le_bytes());
        let begun = Instant::now();
        while !Csts(self.read32(regs::CSTS)).rdy() {
            assert!(begun.elapsed() < Duration::from_secs(10), "never ready");
        }
        admin
    }

    /// Runs a command by the mapped doorbells.
    fn run(&self, pair: &mut Pair, command: Command) -> Completion {
        assert!(pair.sq.push(&command.with_cid(7)));
        let ring = |is_cq, value: u16| {
            let offset = regs::doorbell_offset(pair.id, is_cq, self.dstrd) - regs::DOORBELLS;
            self.doorbells.u32(offset as usize / 4).store(value.into(), Ordering::Release);
        };
        let (_, tail) = pair.sq.pending().expect("a command");
        ring(false, tail);
        pair.sq.rang();
        let begun = Instant::now();
        let completion = loop {
            match pair.cq.pop() {
                Some(completion) => break completion,
                None => assert!(begun.elapsed() < Duration::from_secs(10), "no completion"),
            }
            std::thread::yield_now();
        };
        pair.sq.fetched(completion.sqhd()).expect("a good head");
        let (_, head) = pair.cq.pending().expect("an entry");
        ring(true, head);
        pair.cq.rang();
        assert!(completion.status().is_success(), "{}", completion.status());
        assert_eq!(completion.cid(), 7);
        completion
    }
}

#[test]
fn a_client_of_others_reads_a_namespace() {
    let server = Server::start(PLAIN);
    let mut controller = Controller::connect(&server);
    let mut class = [0; 4];
    controller.client.region_read(CONFIG, 8, &mut class).expect("configuration space");
    assert_eq!(class[1..], [0x02, 0x08, 0x01]);
    assert_eq!(controller.client.get_irq_info(2).expect("MSI-X").count, 17);

    let mut admin = controller.enable();
    let mut page = controller.arena.alloc(4096, 4096).expect("a page");
    let iova = controller.iova(page.addr());
    controller.run(&mut admin, Command::identify(1, 0, 0).with_prp(iova, 0));
    let identity = page.as_slice().expect("our own memory");
    assert!(identity[24..64].starts_with(b"oxblock software controller"));
    controller.run(&mut admin, Command::identify(0, 1, 0).with_prp(iova, 0));
    let size: [u8; 8] = page.as_slice().expect("our own memory")[..8].try_into().unwrap();
    assert_eq!(u64::from_le_bytes(size), PLAIN.blocks);

    let mut io = controller.pair(1);
    let (sq, cq) = (controller.iova(io.sq.words().addr()), controller.iova(io.cq.words().addr()));
    controller.run(&mut admin, Command::create_cq(1, ENTRIES, cq, None));
    controller.run(&mut admin, Command::create_sq(1, ENTRIES, sq, 1));
    // More commands than entries: every ring goes round.
    for round in 0..3 * u64::from(ENTRIES) {
        page.fill(0, 4096, round as u8 + 1);
        controller.run(&mut io, Command::write(1, round * 8, 8, 0).with_prp(iova, 0));
        page.fill(0, 4096, 0);
        controller.run(&mut io, Command::read(1, round * 8, 8).with_prp(iova, 0));
        assert_eq!(page.as_slice().expect("our own memory"), [round as u8 + 1; 4096]);
    }
    controller.client.dma_unmap(IOVA, 1 << 20).expect("an unmap");
    controller.client.reset().expect("a reset");
    assert_eq!(controller.read32(regs::CC), 0);
    controller.client.shutdown().expect("an end");
}
