//! How fast the controller is by itself: a host thread that only fills and empties rings, at
//! several queue depths, against a namespace that does nothing.
//!
//! `cargo run --release -p oxblock-nvmet --example rings [seconds [depth...]]`. Host on
//! processor 1, controller on processor 0.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oxblock_engine::{
    Busy, Core, Driver, Engine, Error, Limits, LocalFuture, Node, Options, Pass, PollMode, Queue,
    Request, Sleep, Token,
};
use oxblock_mem::{ArenaOptions, Cells, Memory};
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::regs::{self, Aqa, Cc, Csts};
use oxblock_nvme::{Command, Completion};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};
use oxblock_pci::{Bar, Function, Reg32, Reg64, enable};

/// Entries of the I/O queues.
const ENTRIES: u32 = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(Ok(2.0), |text| text.parse())?;
    let mut depths = arguments.map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    if depths.is_empty() {
        depths = vec![1, 4, 32, 128];
    }
    let options = Options { poll_mode: PollMode::Pure, ..Options::default() };
    let engine = Engine::new(&[0], options)?;
    let controller = engine.run(0, |core| async move {
        let node = Node::new("null", Box::new(Null));
        let namespaces = vec![NamespaceOptions::new(node, 4096)];
        Controller::start(&core, ControllerOptions { namespaces, ..Default::default() }).await
    })??;
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let mut host = Host::new(&*controller.function())?;
    for depth in depths {
        let (ios, time) = host.read(depth, Duration::from_secs_f64(seconds));
        let ns = time.as_nanos() as f64 / ios as f64;
        println!("QD {depth:>3}: {:>6.2} M IOPS, {ns:>6.1} ns each", 1e3 / ns);
    }
    engine.shutdown()?;
    Ok(())
}

struct Host {
    sq: SubmissionQueue<Cells>,
    cq: CompletionQueue<Cells>,
    tail: Reg32,
    head: Reg32,
    data: u64,
    _memory: (Memory, oxblock_mem::Attachment, oxblock_mem::Arena, oxblock_mem::Buf),
}

impl Host {
    fn new(function: &dyn Function) -> Result<Host, Box<dyn std::error::Error>> {
        let memory = Memory::new();
        let arena = memory.add_arena(&ArenaOptions::new(4 << 20))?;
        let attachment = memory.attach(function.iommu())?;
        enable(function.config())?;
        let bar = function.bar(0)?;
        let cells =
            |bytes| Ok::<_, Box<dyn std::error::Error>>(Cells::new(arena.alloc(bytes, 4096)?)?);
        let at = |cells: &Cells| cells.iova().ok_or("no address for devices");

        let (asq, acq) = (cells(16 * Command::BYTES)?, cells(16 * Completion::BYTES)?);
        Reg32::new(&bar, regs::AQA)?.write(Aqa::new(16, 16).0);
        Reg64::new(&bar, regs::ASQ)?.write(at(&asq)?);
        Reg64::new(&bar, regs::ACQ)?.write(at(&acq)?);
        let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
        Reg32::new(&bar, regs::CC)?.write(cc.0);
        let csts = Reg32::new(&bar, regs::CSTS)?;
        while !Csts(csts.read()).rdy() {}

        let (sq, cq) = (cells(ENTRIES as usize * 64)?, cells(ENTRIES as usize * 16)?);
        let create = [
            Command::create_cq(1, ENTRIES, at(&cq)?, None),
            Command::create_sq(1, ENTRIES, at(&sq)?, 1),
        ];
        let mut admin = SubmissionQueue::new(asq, 16)?;
        let mut done = CompletionQueue::new(acq, 16)?;
        let bell = Reg32::new(&bar, regs::doorbell_offset(0, false, 0))?;
        for command in create {
            admin.push(&command);
            let (_, tail) = admin.pending().ok_or("nothing to ring for")?;
            bell.write(tail.into());
            admin.rang();
            let status = loop {
                if let Some(completion) = done.pop() {
                    break completion.status();
                }
            };
            assert!(status.is_success(), "{status}");
        }
        let buf = arena.alloc(1 << 20, 4096)?;
        let data = buf.iova().ok_or("no address for devices")?;
        Ok(Host {
            sq: SubmissionQueue::new(sq, ENTRIES)?,
            cq: CompletionQueue::new(cq, ENTRIES)?,
            tail: doorbell(&bar, false)?,
            head: doorbell(&bar, true)?,
            data,
            _memory: (memory, attachment, arena, buf),
        })
    }

    fn read(&mut self, depth: u64, time: Duration) -> (u64, Duration) {
        let begun = Instant::now();
        let (mut sent, mut done) = (0u64, 0u64);
        let mut ending = false;
        while !ending || done < sent {
            while !ending && sent - done < depth {
                let prp = self.data + (sent % 256) * 4096;
                let command = Command::read(1, sent % 1024, 1).with_prp(prp, 0);
                if !self.sq.push(&command.with_cid(sent as u16)) {
                    break;
                }
                sent += 1;
            }
            if let Some((_, tail)) = self.sq.pending() {
                self.tail.write(tail.into());
                self.sq.rang();
            }
            let before = done;
            while let Some(completion) = self.cq.pop() {
                assert!(completion.is_success(), "{}", completion.status());
                self.sq.fetched(completion.sqhd()).expect("an honest controller");
                done += 1;
            }
            if let Some((_, head)) = self.cq.pending()
                && self.cq.unrung() > ENTRIES / 4
            {
                self.head.write(head.into());
                self.cq.rang();
            }
            ending = before >> 10 != done >> 10 && begun.elapsed() >= time || ending;
        }
        (done, begun.elapsed())
    }
}

fn doorbell(bar: &Arc<dyn Bar>, is_cq: bool) -> Result<Reg32, oxblock_pci::PciError> {
    Reg32::new(bar, regs::doorbell_offset(1, is_cq, 0))
}

/// A node that does nothing, at once.
struct Null;

impl Driver for Null {
    fn name(&self) -> &'static str {
        "null"
    }
    fn limits(&self) -> Limits {
        Limits::new(1 << 40, 4096)
    }
    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        Box::pin(async { Ok(Box::new(Null) as Box<dyn Queue>) })
    }
    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

impl Queue for Null {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        pass.done(request.token, Ok(()));
        Ok(())
    }
    fn kick(&mut self, _: &mut Pass) {}
    fn poll(&mut self, _: &mut Pass) -> usize {
        0
    }
    fn cancel(&mut self, _: Token) {}
    fn in_flight(&self) -> usize {
        0
    }
    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Woken
    }
    fn quiesce(&mut self, _: &mut Pass) -> bool {
        true
    }
}
