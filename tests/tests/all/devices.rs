//! The file driver over block devices and full file systems of the host. Loop devices and
//! mounts want root; where they cannot be made, a test says so by name and passes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxblock_drivers::file::{self, FileEngine, FileOptions};
use oxblock_engine::{Channel, Core, Driver, Error, ErrorKind, Node, Op, OpFlags};

use crate::files::{list, read, with_node, write};

/// How long a device that was closed may stay busy.
const SETTLE: Duration = Duration::from_secs(1);
const ENGINES: [FileEngine; 2] = [FileEngine::Uring, FileEngine::Workers];

/// The output of a program that succeeded.
fn run(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device over a file, gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(test: &str, file: &Path, words: &[&str]) -> Option<Loop> {
        let mut all = vec!["--find", "--show"];
        all.extend(words);
        all.push(file.to_str()?);
        let device = run("losetup", &all);
        if device.is_none() {
            eprintln!("{test}: skipped: this host lets us make no loop device");
        }
        device.map(|name| Loop(name.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.0.to_string_lossy()]);
    }
}

/// A small tmpfs of its own, gone when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(test: &str, bytes: &str) -> Option<Small> {
        let directory = tempfile::tempdir().expect("a directory");
        let size = format!("size={bytes}");
        let at = directory.path().to_str()?;
        if run("mount", &["-t", "tmpfs", "-o", &size, "oxblock", at]).is_none() {
            eprintln!("{test}: skipped: this host lets us mount no tmpfs");
            return None;
        }
        Some(Small(directory))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy", &self.0.path().to_string_lossy()]);
    }
}

fn sparse(path: &Path, size: u64) {
    File::create(path).and_then(|file| file.set_len(size)).expect("a sparse file");
}

/// Opens a device that the test before may just have closed: the kernel lets go of a ring's
/// files a moment after the ring, and until then the device is busy. Once a next opening found
/// it so.
fn settled(options: FileOptions) -> Result<Box<dyn Driver>, Error> {
    let begun = Instant::now();
    loop {
        match file::open(options.clone()) {
            Err(e) if e.kind() == ErrorKind::Busy && begun.elapsed() < SETTLE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

fn open(options: FileOptions) -> Arc<Node> {
    Node::new("device0", settled(options).expect("a device"))
}

fn refusal(options: FileOptions) -> (ErrorKind, String) {
    let error = settled(options).err().expect("a refusal");
    (error.kind(), error.to_string())
}

async fn exercise(core: Core, channel: Channel) {
    write(&core, &channel, 4096, &[7; 4096]).await;
    write(&core, &channel, 1 << 20, &vec![9; 1 << 20]).await;
    let done = channel.run(Op::write(8192, list(&core, &[8; 512])).flags(OpFlags::FUA)).await;
    assert_eq!(done.result, Ok(()));
    channel.flush().await.expect("a flush");
    channel.write_zeroes((1 << 20) + 512, 1024).await.expect("zeroes");
    channel.discard((1 << 20) + 8192, 65_536).await.expect("a discard");
    assert_eq!(read(&core, &channel, 4096, 4608).await[4095..4098], [7, 8, 8]);
    let bytes = read(&core, &channel, 1 << 20, 1 << 20).await;
    assert_eq!((bytes[511], bytes[512], bytes[1535], bytes[1536]), (9, 0, 0, 9));
    assert_eq!((bytes[8191], bytes[8192], bytes[8192 + 65_536]), (9, 0, 9));
}

#[test]
fn a_block_device_is_a_disk_of_its_own_size_and_block() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    for (direct, sector) in [(false, 512), (true, 512), (false, 4096), (true, 4096)] {
        sparse(&path, 8 << 20);
        let test = "a_block_device_is_a_disk_of_its_own_size_and_block";
        let sector_word = format!("--sector-size={sector}");
        let Some(device) = Loop::over(test, &path, &[&sector_word]) else {
            return;
        };
        for engine in ENGINES {
            let options = FileOptions { direct, engine, ..FileOptions::new(&device.0) };
            let node = open(options.clone());
            let limits = node.limits().clone();
            assert_eq!((limits.length, limits.block_size), (8 << 20, sector));
            assert!(limits.max_discard > 0 && !limits.read_only, "{limits:?}");
            // 512 is what the exercise is written for.
            match sector {
                512 => with_node(node, exercise),
                _ => drop(node),
            }
            let (kind, text) = refusal(FileOptions { block_size: 100, ..options.clone() });
            assert_eq!(kind, ErrorKind::Invalid, "{text}");
            let (kind, text) = refusal(FileOptions { size: Some(9 << 20), ..options });
            assert_eq!(kind, ErrorKind::NoSpace, "{text}");
            assert!(text.contains("extended"), "{text}");
        }
    }
    let bytes = fs::read(&path).expect("the image");
    assert_eq!(bytes.len(), 8 << 20, "nothing extends it");
}

/// Who writes to a device that is mounted destroys the file system on it.
#[test]
fn a_device_that_is_held_is_opened_for_reading_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    sparse(&path, 1 << 20);
    let test = "a_device_that_is_held_is_opened_for_reading_only";
    let Some(device) = Loop::over(test, &path, &[]) else {
        return;
    };
    let held = open(FileOptions::new(&device.0));
    let (kind, text) = refusal(FileOptions::new(&device.0));
    assert_eq!(kind, ErrorKind::Busy, "{text}");
    assert!(text.contains("read-only"), "{text}");
    open(FileOptions { read_only: true, ..FileOptions::new(&device.0) });
    drop(held);
    open(FileOptions::new(&device.0));
}

#[test]
fn a_read_only_device_refuses_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    sparse(&path, 1 << 20);
    let Some(device) = Loop::over("a_read_only_device_refuses_writes", &path, &["--read-only"])
    else {
        return;
    };
    match file::open(FileOptions::new(&device.0)) {
        Ok(driver) => assert!(driver.limits().read_only),
        Err(error) => assert!(error.to_string().contains("read-only"), "{error}"),
    }
    let node = open(FileOptions { read_only: true, ..FileOptions::new(&device.0) });
    assert!(node.limits().read_only && node.limits().max_discard == 0);
}

/// A file system that is full says NoSpace for what does not fit, keeps the rest, and does not
/// take the file for broken: what fits can be written and flushed afterwards.
#[test]
fn a_full_file_system_says_so_and_nothing_else_breaks() {
    let test = "a_full_file_system_says_so_and_nothing_else_breaks";
    for engine in ENGINES {
        for at_once in [false, true] {
            let Some(small) = Small::mount(test, "1m") else {
                return;
            };
            sparse(&small.file(), 4 << 20);
            let node = open(FileOptions { engine, at_once, ..FileOptions::new(small.file()) });
            with_node(node, |core, channel| async move {
                write(&core, &channel, 0, &vec![1; 512 << 10]).await;
                for flags in [OpFlags::empty(), OpFlags::FUA] {
                    let op = Op::write(1 << 20, list(&core, &vec![2; 1 << 20])).flags(flags);
                    let fault = channel.run(op).await.result.expect_err("no space");
                    assert_eq!(fault.kind, ErrorKind::NoSpace);
                    assert!((1 << 20..2 << 20).contains(&fault.offset), "{fault:?}");
                }
                channel.discard(1 << 20, 1 << 20).await.expect("a discard");
                write(&core, &channel, 1 << 20, &[3; 4096]).await;
                channel.flush().await.expect("a flush");
                assert_eq!(read(&core, &channel, 1 << 20, 4096).await, [3; 4096]);
                assert_eq!(read(&core, &channel, 0, 4096).await, [1; 4096]);
            });
        }
    }
}

/// The page cache takes writes that the device then cannot keep. The kernel tells of that once:
/// the second flush would succeed, and the user would believe in bytes that are gone.
#[test]
fn a_flush_that_failed_stays_failed() {
    let test = "a_flush_that_failed_stays_failed";
    for engine in ENGINES {
        let Some(small) = Small::mount(test, "1m") else {
            return;
        };
        sparse(&small.file(), 8 << 20);
        let Some(device) = Loop::over(test, &small.file(), &[]) else {
            return;
        };
        let options = FileOptions { engine, ..FileOptions::new(&device.0) };
        with_node(open(options.clone()), |core, channel| async move {
            write(&core, &channel, 0, &vec![5; 4 << 20]).await;
            let first = channel.flush().await.expect_err("a failed flush");
            assert!(matches!(first.kind(), ErrorKind::Io | ErrorKind::NoSpace), "{first:?}");
            let second = channel.flush().await.expect_err("a flush that fails again");
            assert_eq!(second.kind(), first.kind());
            let op = Op::write(0, list(&core, &[5; 512])).flags(OpFlags::FUA);
            assert_eq!(channel.run(op).await.result.map_err(|f| f.kind), Err(first.kind()));
        });
        let direct = FileOptions { direct: true, ..options };
        with_node(open(direct), |core, channel| async move {
            let op = Op::write(6 << 20, list(&core, &vec![5; 1 << 20]));
            let fault = channel.run(op).await.result.expect_err("a write that cannot be kept");
            assert!(matches!(fault.kind, ErrorKind::Io | ErrorKind::NoSpace), "{fault:?}");
            channel.flush().await.expect("no sync has failed on this one");
        });
    }
}
