//! The file driver on real file systems: what it makes of files, and of refusals.

use std::fs::{self, File};
use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxblock_drivers::file::{self, FileEngine, FileOptions};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, OpFlags, Options, PollMode};
use oxblock_mem::{ArenaOptions, IoVector};

fn open(options: FileOptions) -> Arc<Node> {
    Node::new("file0", file::open(options).expect("a file"))
}

fn refusal(options: FileOptions) -> (ErrorKind, String) {
    let error = file::open(options).err().expect("a refusal");
    (error.kind(), error.to_string())
}

/// Runs `work` on a channel to the node, on an engine of its own.
pub fn with_node<T, F>(node: Arc<Node>, work: fn(Core, Channel) -> F) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let options = Options { arena: ArenaOptions::new(8 << 20), ..Options::default() };
    let engine = Engine::with_cores(1, options).expect("an engine");
    let run = engine.run(0, move |core| async move {
        let channel = core.open(&node).await.expect("a channel");
        work(core, channel).await
    });
    engine.shutdown().expect("an orderly end");
    run.expect("the work")
}

pub fn list(core: &Core, bytes: &[u8]) -> IoVector {
    let mut list: IoVector = core.arena().alloc(bytes.len(), 4096).expect("memory").into();
    list.write_at(0, bytes);
    list
}

fn new_file(directory: &Path) -> PathBuf {
    directory.join("disk")
}

pub async fn write(core: &Core, channel: &Channel, offset: u64, bytes: &[u8]) {
    channel.write(offset, list(core, bytes)).await.1.expect("a write");
}

pub async fn read(core: &Core, channel: &Channel, offset: u64, len: usize) -> Vec<u8> {
    let (data, result) = channel.read(offset, list(core, &vec![0xee; len])).await;
    result.expect("a read");
    let mut bytes = vec![0; len];
    data.read_at(0, &mut bytes);
    bytes
}

#[test]
fn what_was_written_is_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    let node = open(FileOptions { size: Some(10_000), ..FileOptions::new(&path) });
    with_node(node, |core, channel| async move {
        write(&core, &channel, 9_990, &[7; 10]).await;
        write(&core, &channel, 1, b"abc").await;
        channel.flush().await.expect("a flush");
    });
    let bytes = fs::read(&path).expect("the file");
    assert_eq!(bytes.len(), 10_000);
    assert_eq!(bytes[..5], *b"\0abc\0");
    assert_eq!(bytes[9_990..], [7; 10]);

    let node = open(FileOptions { read_only: true, ..FileOptions::new(&path) });
    assert_eq!(node.limits().length, 10_000);
    let found = with_node(node, |core, channel| async move {
        let done = channel.run(Op::write(0, list(&core, &[1; 10]))).await;
        assert_eq!(done.result.map_err(|fault| fault.kind), Err(ErrorKind::ReadOnly));
        read(&core, &channel, 0, 5).await
    });
    assert_eq!(found, *b"\0abc\0");
}

#[test]
fn a_size_extends_a_file_and_never_cuts_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    fs::write(&path, [3; 1000]).expect("a file");
    let length = |size| open(FileOptions { size, ..FileOptions::new(&path) }).limits().length;
    assert_eq!(length(Some(10)), 1000);
    assert_eq!(length(None), 1000);
    assert_eq!(length(Some(5000)), 5000);
    let bytes = fs::read(&path).expect("the file");
    assert_eq!((bytes.len(), bytes[999], bytes[1000]), (5000, 3, 0));
}

/// The node keeps its length although somebody cuts the file: the rest reads as zeroes, and
/// no read fails or stays short.
#[test]
fn what_lies_past_the_end_of_the_file_reads_as_zeroes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    fs::write(&path, [3; 8192]).expect("a file");
    let node = open(FileOptions::new(&path));
    File::options().write(true).open(&path).and_then(|f| f.set_len(5000)).expect("a cut");
    let bytes = with_node(node, |core, channel| async move {
        let done = channel.run(Op::compare(4096, list(&core, &[3; 4096]))).await;
        let fault = done.result.expect_err("a difference");
        assert_eq!((fault.kind, fault.offset), (ErrorKind::Mismatch, 5000));
        read(&core, &channel, 0, 8192).await
    });
    assert!(bytes[..5000].iter().all(|&byte| byte == 3));
    assert!(bytes[5000..].iter().all(|&byte| byte == 0));
}

/// A length that is no number of blocks is rounded up, and a write there extends the file.
#[test]
fn a_broken_last_block_can_be_read_and_written() {
    for direct in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = new_file(directory.path());
        fs::write(&path, [3; 4096 + 100]).expect("a file");
        let node = open(FileOptions { direct, block_size: 4096, ..FileOptions::new(&path) });
        assert_eq!(node.limits().length, 8192);
        let bytes = with_node(node, |core, channel| async move {
            let before = read(&core, &channel, 4096, 4096).await;
            write(&core, &channel, 4096, &[5; 4096]).await;
            before
        });
        assert!(bytes[..100].iter().all(|&byte| byte == 3));
        assert!(bytes[100..].iter().all(|&byte| byte == 0));
        let bytes = fs::read(&path).expect("the file");
        assert_eq!(bytes.len(), 8192);
        assert!(bytes[4096..].iter().all(|&byte| byte == 5));
    }
}

#[test]
fn a_discard_gives_space_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    fs::write(&path, vec![3; 1 << 20]).expect("a file");
    let allocated = || fs::metadata(&path).expect("the file").blocks() * 512;
    let node = open(FileOptions::new(&path));
    assert!(node.limits().max_discard > 0, "this test wants a file system with holes");
    let before = allocated();
    with_node(node, |core, channel| async move {
        channel.flush().await.expect("a flush");
        channel.discard(4096, (1 << 20) - 8192).await.expect("a discard");
        let bytes = read(&core, &channel, 0, 1 << 20).await;
        assert!(bytes[..4096].iter().all(|&byte| byte == 3));
        assert!(bytes[4096..(1 << 20) - 4096].iter().all(|&byte| byte == 0));
        assert!(bytes[(1 << 20) - 4096..].iter().all(|&byte| byte == 3));
    });
    assert!(allocated() <= before - (1 << 19), "{} bytes of {before} are left", allocated());
}

/// tmpfs punches holes but cannot zero a range: the driver writes zeroes there, unless that
/// is forbidden.
#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memfd = File::from(rustix::fs::memfd_create("disk", flags).expect("a memfd"));
    memfd.write_all_at(&vec![3; 9 << 20], 0).expect("bytes");
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    with_node(open(FileOptions::new(path)), |_, channel| async move {
        let op = Op::write_zeroes(5, (9 << 20) - 10);
        let done = channel.run(op.flags(OpFlags::NO_FALLBACK)).await;
        assert_eq!(done.result.map_err(|fault| fault.kind), Err(ErrorKind::NotSupported));
        let done = channel.run(Op::write_zeroes(5, (9 << 20) - 10)).await;
        assert_eq!(done.result, Ok(()));
    });
    let mut bytes = vec![0; 9 << 20];
    memfd.read_exact_at(&mut bytes, 0).expect("bytes");
    let wrong = |at: &usize| (bytes[*at] == 0) != (5..(9 << 20) - 5).contains(at);
    assert_eq!((0..bytes.len()).find(wrong), None);
}

#[test]
fn refusals_say_what_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    let (kind, text) = refusal(FileOptions::new(&path));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("disk") && text.contains("size"), "{text}");

    let (kind, text) = refusal(FileOptions::new(directory.path()));
    assert_ne!(kind, ErrorKind::NotFound, "{text}");
    let read_only = FileOptions { read_only: true, ..FileOptions::new(directory.path()) };
    let (kind, text) = refusal(read_only);
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("regular file") && text.contains("block device"), "{text}");

    let (kind, text) = refusal(FileOptions::new("/dev/null"));
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("regular file") && text.contains("block device"), "{text}");

    fs::write(&path, [0; 4096]).expect("a file");
    let odd = FileOptions { direct: true, block_size: 100, ..FileOptions::new(&path) };
    let (kind, text) = refusal(odd);
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(text.contains("multiples"), "{text}");
    let (kind, _) = refusal(FileOptions { queue_depth: 0, ..FileOptions::new(&path) });
    assert_eq!(kind, ErrorKind::Invalid);
}

/// A pipe's open must not block, nor a file be made for a name that was mistyped.
#[test]
fn opening_has_no_side_effects() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .expect("a pipe");
    let (kind, _) = refusal(FileOptions { read_only: true, ..FileOptions::new(&pipe) });
    assert_eq!(kind, ErrorKind::Invalid);
    let path = new_file(directory.path());
    refusal(FileOptions::new(&path));
    refusal(FileOptions { read_only: true, size: Some(4096), ..FileOptions::new(&path) });
    assert!(!path.exists());
}

/// Where io_uring is allowed nothing is said; threads that were asked for are no news either.
#[test]
fn a_notice_is_given_only_for_what_was_not_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    fs::write(&path, [3; 4096]).expect("a file");
    for engine in [FileEngine::Uring, FileEngine::Workers] {
        let driver = file::open(FileOptions { engine, ..FileOptions::new(&path) });
        assert_eq!(driver.expect("a file").notice(), None);
    }
}

/// Sleep must not lose a result that a thread has just when the reactor falls asleep.
#[test]
fn a_sleeping_reactor_hears_of_workers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = new_file(directory.path());
    fs::write(&path, vec![3; 1 << 20]).expect("a file");
    let file =
        FileOptions { engine: FileEngine::Workers, at_once: false, ..FileOptions::new(path) };
    let node = open(file);
    let poll_mode = PollMode::Adaptive { spin_us: 0 };
    let options = Options { arena: ArenaOptions::new(8 << 20), poll_mode, ..Options::default() };
    let engine = Engine::with_cores(1, options).expect("an engine");
    let run = engine.run(0, move |core| async move {
        let channel = core.open(&node).await.expect("a channel");
        for n in 0..2000u64 {
            assert_eq!(read(&core, &channel, n * 512, 512).await, [3; 512]);
        }
    });
    engine.shutdown().expect("an orderly end");
    run.expect("the work");
}
