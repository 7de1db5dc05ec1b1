//! Lives and deaths: servers and clients that are killed, stopped, replaced, rude or hostile, and
//! what becomes of the others.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, Options};
use oxblock_mem::ArenaOptions;
use oxblock_nvme::regs::{self, Aqa, Cc};
use oxblock_pci::vfio_user::{VfioUserFunction, VfioUserOptions};
use oxblock_pci::{Function, Reg32, Reg64, enable};
use oxblock_tests::random::{Random, seed};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use super::server::{CLIENTS, PLAIN, Server, again};

/// Where a client process is told whom to bother.
const ORDER: &str = "OXBLOCK_TEST_CLIENT";
/// What is long enough for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Attaches the driver to namespace 1.
async fn attach(core: &Core, path: &Path, reply: Duration) -> Channel {
    let options = VfioUserOptions { reply_timeout: reply, ..VfioUserOptions::default() };
    let function = VfioUserFunction::connect(path, options).expect("the server");
    let host = Host::attach(core, function, NvmeOptions::default()).await.expect("the driver");
    let node = Node::new("far0n1", host.namespace(1).expect("namespace 1"));
    core.open(&node).await.expect("a queue")
}

/// Runs something over a channel on an engine of its own, which then ends as well as it can.
fn with_channel<T: Send + 'static>(
    path: PathBuf,
    reply: Duration,
    work: impl AsyncFnOnce(Core, Channel) -> T + Send + 'static,
) -> T {
    let options = Options { arena: ArenaOptions::new(8 << 20), ..Options::default() };
    let engine = Engine::with_cores(1, options).expect("an engine");
    let result = engine.run(0, move |core| async move {
        let channel = attach(&core, &path, reply).await;
        work(core, channel).await
    });
    // Fails where the controller is gone; it must end all the same.
    let _ = engine.shutdown();
    result.expect("the work")
}

/// Writes blocks of one byte all over and reads them back.
async fn exercise(core: &Core, channel: &Channel, rounds: u64) {
    let mut random = seed(1).random(0);
    for round in 0..rounds {
        let (byte, offset) = (round as u8, random.within(0..PLAIN.blocks / 8) * 4096);
        let mut data = core.arena().alloc(4096, 4096).expect("memory");
        data.fill(0, 4096, byte);
        let (mut data, result) = channel.write(offset, data).await;
        result.expect("a write");
        data.fill(0, 4096, !byte);
        let (data, result) = channel.read(offset, data).await;
        result.expect("a read");
        assert!(data.view(0, 4096).is_all(byte), "block {offset} of round {round}");
    }
}

/// Keeps reads in flight until one fails, and collects them all; how long from `cut` until the
/// last had ended.
async fn until_all_fail(core: Core, channel: Channel, cut: impl FnOnce()) -> (Duration, ErrorKind) {
    let read = |tag| {
        let buf = core.arena().alloc(4096, 4096).expect("memory");
        Op::read(0, buf).tag(tag)
    };
    let mut cut = Some(cut);
    let (mut ended, mut begun, mut kind) = (0u64, Instant::now(), None);
    for tag in 0..16 {
        channel.submit(read(tag)).expect("room for 16");
    }
    while channel.in_flight() > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} I/Os never ended", channel.in_flight());
        let mut good = 0;
        channel.poll(|completion| match completion.result {
            Ok(()) => good += 1,
            Err(fault) => kind = Some(fault.kind),
        });
        for _ in 0..good {
            ended += 1;
            if kind.is_none() {
                channel.submit(read(ended)).expect("room again");
            }
        }
        if ended > 100
            && let Some(cut) = cut.take()
        {
            cut();
            begun = Instant::now();
        }
        core.yield_now().await;
    }
    (begun.elapsed(), kind.expect("an I/O that failed"))
}

#[test]
fn a_killed_server_fails_io_in_bounded_time() {
    let mut server = Server::start(PLAIN);
    let path = server.path();
    let (time, kind) = with_channel(path, Duration::from_secs(5), async move |core, channel| {
        until_all_fail(core, channel, move || server.kill()).await
    });
    assert_eq!(kind, ErrorKind::Gone);
    assert!(time < Duration::from_secs(10), "{time:?}");
}

#[test]
fn a_stopped_server_fails_io_in_bounded_time() {
    let server = Server::start(PLAIN);
    let pid = Pid::from_raw(server.pid() as i32).expect("a process");
    let path = server.path();
    let (time, kind) = with_channel(path, Duration::from_secs(1), async move |core, channel| {
        let stop = move || kill_process(pid, Signal::STOP).expect("a process to stop");
        until_all_fail(core, channel, stop).await
    });
    assert_eq!(kind, ErrorKind::Gone);
    assert!(time < Duration::from_secs(20), "{time:?}");
}

/// A client in a process of its own, which reads until it is killed.
fn client(path: &Path) -> Child {
    let mut child = again("vfio_user::lives::client_process", ORDER, &path.to_string_lossy());
    let output = child.stdout.take().expect("its output");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("reads"))), "no client");
    child
}

/// What that process does; without an order it is no test of anything.
#[test]
fn client_process() {
    let Some(path) = std::env::var_os(ORDER) else { return };
    with_channel(path.into(), PATIENCE, async |core, channel| {
        println!("reads");
        loop {
            exercise(&core, &channel, 1).await;
        }
    })
}

#[test]
fn killed_clients_leave_their_places_to_others() {
    let mut server = Server::start(PLAIN);
    // More than there are places.
    for _ in 0..2 * CLIENTS {
        let mut child = client(&server.path());
        child.kill().expect("a process to kill");
        child.wait().expect("its end");
    }
    is_served(&server.path());
    assert!(server.is_running());
}

/// A client that comes now is served as if nothing had been.
fn is_served(path: &Path) {
    // A place may take a moment to be free.
    drop(connect(path));
    let path = path.to_owned();
    with_channel(path, PATIENCE, async |core, channel| exercise(&core, &channel, 50).await);
}

#[test]
fn clients_share_the_namespace_and_one_too_many_is_told() {
    let server = Server::start(PLAIN);
    let connect = || VfioUserFunction::connect(&server.path(), VfioUserOptions::default());
    let path = server.path();
    with_channel(server.path(), PATIENCE, async move |core, channel| {
        let mut data = core.arena().alloc(4096, 4096).expect("memory");
        data.write_at(0, b"from one to the other");
        channel.write(8192, data).await.1.expect("a write");
        let other = attach(&core, &path, PATIENCE).await;
        let data = core.arena().alloc(4096, 4096).expect("memory");
        let (data, result) = other.read(8192, data).await;
        result.expect("a read");
        let mut bytes = [0; 21];
        data.read_at(0, &mut bytes);
        assert_eq!(&bytes, b"from one to the other");
    });
    let begun = Instant::now();
    let mut kept = Vec::new();
    let error = loop {
        match connect() {
            Ok(function) => kept.push(function),
            Err(error) => break error,
        }
        assert!(kept.len() <= CLIENTS && begun.elapsed() < PATIENCE);
    };
    assert!(error.to_string().contains("as many clients as it takes"), "{error}");
}

/// Each of these is a client that means harm; another does I/O meanwhile, and never notices.
#[test]
fn hostile_clients_hurt_nobody_else() {
    let mut server = Server::start(PLAIN);
    let path = server.path();
    let bystander = client(&path);
    let seed = seed(1);
    for round in 0..4 {
        noise(&path, seed.random(2 * round));
        half_a_message(&path);
        vanishing_queues(&path);
        mad_doorbells(&path, seed.random(2 * round + 1));
    }
    let mut bystander = bystander;
    assert!(bystander.try_wait().expect("its state").is_none(), "the bystander was hurt");
    bystander.kill().expect("a process to kill");
    bystander.wait().expect("its end");
    assert!(server.is_running());
    is_served(&path);
}

/// Bytes without sense.
fn noise(path: &Path, mut random: Random) {
    let Ok(mut socket) = UnixStream::connect(path) else { return };
    let _ = socket.write_all(&random.bytes(10_000));
}

/// A version that never ends, and an end in the middle.
fn half_a_message(path: &Path) {
    let Ok(mut socket) = UnixStream::connect(path) else { return };
    let _ = socket.write_all(&[0, 0, 1, 0, 255, 0, 0, 0, 0]);
}

/// A function, if there is a place for it.
fn connect(path: &Path) -> std::sync::Arc<VfioUserFunction> {
    let begun = Instant::now();
    loop {
        match VfioUserFunction::connect(path, VfioUserOptions::default()) {
            Ok(function) => return function,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "no place ever: {error}"),
        }
    }
}

/// Queues in memory that is cut off while the controller polls them.
fn vanishing_queues(path: &Path) {
    use oxblock_pci::vfio_user::message::{DmaMap, Header, Request, Version, header_flags};
    use zerocopy::FromBytes;
    let socket = loop {
        match UnixStream::connect(path) {
            Ok(socket) => break socket,
            Err(_) => std::thread::yield_now(),
        }
    };
    let file = memfd_create("mine", MemfdFlags::CLOEXEC).expect("a file");
    ftruncate(&file, 1 << 20).expect("its length");
    let ask = |request: Request<'_>, with_file: bool| {
        use std::io::Read;
        let fds = if with_file { vec![file.as_fd()] } else { Vec::new() };
        let bytes = request.encode(1);
        let iov = [std::io::IoSlice::new(&bytes)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        if with_file {
            control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        }
        rustix::net::sendmsg(&socket, &iov, &mut control, rustix::net::SendFlags::NOSIGNAL).ok()?;
        let mut head = [0; 16];
        (&socket).read_exact(&mut head).ok()?;
        let header = Header::read_from_bytes(&head).ok()?;
        let mut body = vec![0; header.body_len()?];
        (&socket).read_exact(&mut body).ok()?;
        (header.flags.get() & header_flags::ERROR == 0).then_some(())
    };
    let write = |region: u32, offset: u64, data: &[u8]| {
        let access = oxblock_pci::vfio_user::message::RegionAccess {
            offset: offset.into(),
            region: region.into(),
            count: (data.len() as u32).into(),
        };
        ask(Request::RegionWrite { access, data }, false)
    };
    // Refused for want of a place: then there is nothing to do here.
    if ask(Request::Version { version: Version::default(), data: &[] }, false).is_none() {
        return;
    }
    let map =
        DmaMap { argsz: 32.into(), flags: 3.into(), size: (1 << 20).into(), ..DmaMap::default() };
    ask(Request::DmaMap(map), true).expect("a mapping");
    write(7, 4, &6u16.to_le_bytes()).expect("the command register");
    write(0, regs::AQA, &Aqa::new(32, 32).0.to_le_bytes()).expect("AQA");
    write(0, regs::ASQ, &0u64.to_le_bytes()).expect("ASQ");
    write(0, regs::ACQ, &0x1_0000u64.to_le_bytes()).expect("ACQ");
    let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
    write(0, regs::CC, &cc.0.to_le_bytes()).expect("CC");
    ftruncate(&file, 0).expect("a cut");
    // All entries are fetched from nothing.
    let _ = write(0, regs::DOORBELLS, &31u32.to_le_bytes());
    std::thread::sleep(Duration::from_millis(20));
}

/// Doorbells that say anything, at any time.
fn mad_doorbells(path: &Path, mut random: Random) {
    let function = connect(path);
    enable(function.config()).expect("a command register");
    let bar = function.bar(0).expect("BAR 0");
    let arena = oxblock_mem::Memory::new().add_arena(&ArenaOptions::new(1 << 20)).expect("memory");
    function.iommu().map(&arena.region(), 0).expect("a mapping");
    let reg64 = |offset| Reg64::new(&bar, offset).expect("a register");
    let reg32 = |offset| Reg32::new(&bar, offset).expect("a register");
    reg32(regs::AQA).write(Aqa::new(32, 32).0);
    reg64(regs::ASQ).write(0);
    reg64(regs::ACQ).write(0x1_0000);
    reg32(regs::CC).write(Cc::default().with_en(true).with_iosqes(6).with_iocqes(4).0);
    for _ in 0..20_000 {
        let at = regs::DOORBELLS + random.within(0..1024) * 4;
        let value = if random.one_in(4) { random.bits() as u32 } else { random.bits() as u32 % 40 };
        bar.write32(at, value);
    }
    let _ = function.iommu().unmap(0, arena.region().len() as u64);
}
