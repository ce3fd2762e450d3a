//! The file device: opening, locking, sizes, durability calls, full file systems.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Instant;

use block::file::{File, FileOptions};
use block::{BlockDevice, BlockError, Io, IoError, Op, Submit};

use crate::rig::{self, Buffers};

const MIB: u64 = 1 << 20;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(options: FileOptions) -> Arc<File> {
    File::open(options).unwrap().0
}

#[test]
fn a_created_file_is_sparse_and_reopening_finds_the_data() {
    let folder = folder();
    let path = folder.path().join("disk");
    let mut buffers = Buffers::new();
    let data: Vec<u8> = (0..65_536).map(|i| (i / 512 + i) as u8).collect();
    {
        let file = open(FileOptions::create(&path, 64 * MIB));
        assert_eq!(file.geometry().block_count, 64 * MIB / 512);
        assert!(file.geometry().volatile_write_cache);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (64 * MIB, 0));
        let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
        rig::write(&mut channel, &mut buffers, 1000, &data);
        rig::run_ok(&mut channel, Io::new(Op::Flush, 0, 0, 0));
    }
    let file = open(FileOptions::create(&path, 64 * MIB));
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    assert_eq!(rig::read(&mut channel, &mut buffers, 1000, 128), data);
    assert_eq!(rig::read(&mut channel, &mut buffers, 0, 1), [0; 512]);
}

#[test]
fn a_file_in_use_is_refused() {
    let folder = folder();
    let path = folder.path().join("disk");
    let file = open(FileOptions::create(&path, MIB));
    let error = File::open(FileOptions::new(&path)).unwrap_err();
    assert!(matches!(error, BlockError::FileInUse { .. }), "{error}");
    // A channel keeps the lock even when the device is dropped.
    let channel = rig::bdev(file).open(&rig::context()).unwrap();
    assert!(File::open(FileOptions::new(&path)).is_err());
    drop(channel);
    File::open(FileOptions::new(&path)).unwrap();
}

#[test]
fn what_cannot_be_a_device_is_refused_with_a_reason() {
    let folder = folder();
    let missing = File::open(FileOptions::new(folder.path().join("none"))).unwrap_err();
    assert!(matches!(missing, BlockError::FileMissing { .. }));
    assert!(
        missing
            .to_string()
            .ends_with("does not exist: give a size to create it")
    );
    let wrong = File::open(FileOptions::new(folder.path())).unwrap_err();
    assert!(matches!(wrong, BlockError::FileType { .. }));
    let wrong = File::open(FileOptions::new("/dev/null")).unwrap_err();
    assert!(matches!(wrong, BlockError::FileType { .. }));
    let path = folder.path().join("disk");
    fs::write(&path, [0; 300]).unwrap();
    let small = File::open(FileOptions::new(&path)).unwrap_err();
    assert!(matches!(
        small,
        BlockError::FileTooSmall {
            actual_bytes: 300,
            ..
        }
    ));
    let other = File::open(FileOptions::create(&path, MIB)).unwrap_err();
    assert!(matches!(
        other,
        BlockError::FileSize {
            actual_bytes: 300,
            ..
        }
    ));
    let error = File::open(FileOptions::create(folder.path().join("no/such"), MIB)).unwrap_err();
    assert!(matches!(error, BlockError::OpenFile { .. }), "{error}");
    let options = FileOptions {
        block_size: 520,
        ..FileOptions::create(&path, MIB)
    };
    assert!(matches!(
        File::open(options),
        Err(BlockError::BlockSize { .. })
    ));
}

#[test]
fn a_tail_that_fills_no_block_is_told_and_left_alone() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, [7; 1300]).unwrap();
    let (file, notice) = File::open(FileOptions::new(&path)).unwrap();
    assert_eq!(file.geometry().block_count, 2);
    assert!(notice.unwrap().contains("the last 276 do not fill a block"));
}

#[test]
fn a_read_only_device_refuses_writes_and_reads() {
    let folder = folder();
    let path = folder.path().join("disk");
    fs::write(&path, [7; 8192]).unwrap();
    let options = FileOptions {
        read_only: true,
        ..FileOptions::new(&path)
    };
    let also = open(options.clone());
    let bdev = rig::bdev(open(options));
    drop(also);
    let mut buffers = Buffers::new();
    let mut channel = bdev.open(&rig::context()).unwrap();
    assert_eq!(rig::read(&mut channel, &mut buffers, 3, 2), [7; 1024]);
    bdev.set_write_protected(false);
    let result = rig::run(&mut channel, Io::new(Op::Unmap, 0, 1, 0)).result;
    assert_eq!(result, Err(IoError::WriteProtected));
}

#[test]
fn unmap_gives_space_back_and_reads_as_zeroes() {
    let folder = folder();
    let path = folder.path().join("disk");
    let file = open(FileOptions::create(&path, MIB));
    let mut buffers = Buffers::new();
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    for lba in (0..2048).step_by(128) {
        rig::write(&mut channel, &mut buffers, lba, &[5; 65_536]);
    }
    rig::run_ok(&mut channel, Io::new(Op::Flush, 0, 0, 0));
    let before = fs::metadata(&path).unwrap().blocks();
    rig::run_ok(&mut channel, Io::new(Op::Unmap, 0, 1024, 0));
    rig::run_ok(
        &mut channel,
        Io::new(
            Op::WriteZeroes {
                unmap: true,
                fua: true,
            },
            1024,
            512,
            0,
        ),
    );
    rig::run_ok(
        &mut channel,
        Io::new(
            Op::WriteZeroes {
                unmap: false,
                fua: true,
            },
            1536,
            7,
            0,
        ),
    );
    let after = fs::metadata(&path).unwrap();
    assert!(
        after.blocks() * 2 < before,
        "{before} -> {}",
        after.blocks()
    );
    assert_eq!(after.len(), MIB);
    for (lba, expected) in [
        (0, 0),
        (1023, 0),
        (1024, 0),
        (1535, 0),
        (1542, 0),
        (1543, 5),
    ] {
        let read = rig::read(&mut channel, &mut buffers, lba, 1);
        assert_eq!(read, [expected; 512], "{lba}");
    }
}

#[test]
fn a_device_grows_and_does_not_shrink() {
    let folder = folder();
    let path = folder.path().join("disk");
    let bdev = rig::bdev(open(FileOptions::create(&path, MIB)));
    let mut buffers = Buffers::new();
    let mut channel = bdev.open(&rig::context()).unwrap();
    let last = 2 * MIB / 512 - 1;
    let out = rig::run(&mut channel, Io::new(Op::Verify, last, 1, 0)).result;
    assert_eq!(out, Err(IoError::OutOfRange));
    bdev.resize(2 * MIB / 512).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * MIB);
    rig::write(&mut channel, &mut buffers, last, &[4; 512]);
    rig::run_ok(&mut channel, Io::new(Op::Verify, last, 1, 0));
    let error = bdev.resize(8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a file device of 4096 blocks cannot shrink to 8"
    );
    assert_eq!(bdev.geometry().block_count, 4096);
    assert_eq!(rig::read(&mut channel, &mut buffers, last, 1), [4; 512]);
}

#[test]
fn a_file_that_was_cut_gives_media_errors() {
    let folder = folder();
    let path = folder.path().join("disk");
    let file = open(FileOptions::create(&path, MIB));
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let mut buffers = Buffers::new();
    let payload = buffers.empty(512);
    let completion = rig::run(&mut channel, Io::with_payload(Op::Read, 100, 1, payload, 0));
    assert_eq!(completion.result, Err(IoError::MediaRead));
    let completion = rig::run(&mut channel, Io::new(Op::Verify, 7, 8, 0));
    assert_eq!(completion.result, Err(IoError::MediaRead));
}

#[test]
fn many_files_share_the_ring_of_their_thread() {
    let folder = folder();
    let context = rig::context();
    let mut buffers = Buffers::new();
    let mut channels = Vec::new();
    for index in 0..8 {
        let path = folder.path().join(index.to_string());
        channels.push(
            rig::bdev(open(FileOptions::create(path, MIB)))
                .open(&context)
                .unwrap(),
        );
    }
    let fds: std::collections::BTreeSet<i32> = channels
        .iter()
        .map(|channel| channel.wake_fd().unwrap().as_raw_fd())
        .collect();
    assert_eq!(fds.len(), 8, "each can be put into an epoll set of its own");
    let now = Instant::now();
    for (index, channel) in channels.iter_mut().enumerate() {
        for lba in 0..24 {
            let payload = buffers.filled(&[index as u8; 512]);
            let io = Io::with_payload(Op::Write { fua: false }, lba, 1, payload, lba);
            assert!(matches!(channel.submit(io, now), Submit::Pending));
        }
    }
    let mut done = Vec::new();
    for channel in &mut channels {
        while channel.in_flight() > 0 {
            channel.poll(now, &mut done);
        }
    }
    assert_eq!(done.len(), 8 * 24);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    drop(done);
    for (index, channel) in channels.iter_mut().enumerate().rev() {
        assert_eq!(rig::read(channel, &mut buffers, 23, 1), [index as u8; 512]);
    }
    // One channel after the other goes; the rest still work.
    while let Some(mut channel) = channels.pop() {
        rig::run_ok(&mut channel, Io::new(Op::Flush, 0, 0, 0));
        drop(channel);
    }
}

#[test]
fn closing_a_channel_with_io_in_flight_returns_its_buffers() {
    let folder = folder();
    let file = open(FileOptions::create(folder.path().join("disk"), MIB));
    let bdev = rig::bdev(file);
    let mut buffers = Buffers::new();
    let context = rig::context();
    let mut channel = bdev.open(&context).unwrap();
    let mut other = bdev.open(&context).unwrap();
    let now = Instant::now();
    for lba in 0..64 {
        let payload = buffers.filled(&[3; 4096]);
        let io = Io::with_payload(Op::Write { fua: true }, lba * 8, 8, payload, lba);
        assert!(matches!(channel.submit(io, now), Submit::Pending));
    }
    drop(channel);
    rig::run_ok(&mut other, Io::new(Op::Flush, 0, 0, 0));
    // The last channel of the ring waits for what is left.
    drop(other);
    let all: Vec<_> = (0..200).map(|_| buffers.get(4096)).collect();
    assert_eq!(all.len(), 200);
}

#[test]
fn more_ios_than_the_ring_has_room_for_all_end() {
    let folder = folder();
    let file = open(FileOptions::create(folder.path().join("disk"), MIB));
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    let now = Instant::now();
    for tag in 0..1500 {
        let io = Io::new(
            Op::WriteZeroes {
                unmap: true,
                fua: false,
            },
            tag,
            1,
            tag,
        );
        assert!(matches!(channel.submit(io, now), Submit::Pending));
    }
    let mut done = Vec::new();
    while channel.in_flight() > 0 {
        channel.poll(now, &mut done);
    }
    assert_eq!(done.len(), 1500);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
}

/// What a thread relies on that goes to sleep after its last poll.
#[test]
fn the_wake_descriptor_is_readable_once_a_completion_waits() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let folder = folder();
    let file = open(FileOptions::create(folder.path().join("disk"), MIB));
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    let now = Instant::now();
    let mut done = Vec::new();
    let mut buffers = Buffers::new();
    let readable = |channel: &block::BdevChannel, timeout_ms: u16| {
        let mut fds = [PollFd::new(channel.wake_fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() == 1
    };
    assert!(!readable(&channel, 0), "nothing is in flight");
    for round in 0..50 {
        let payload = buffers.filled(&[round; 4096]);
        let io = Io::with_payload(Op::Write { fua: true }, 0, 8, payload, 0);
        assert!(matches!(channel.submit(io, now), Submit::Pending));
        assert!(
            channel.next_deadline().is_some(),
            "not yet with the kernel: poll first"
        );
        if channel.poll(now, &mut done) == 0 {
            assert!(readable(&channel, 10_000), "asleep for ever");
            while channel.poll(now, &mut done) == 0 {}
        }
        assert_eq!(channel.next_deadline(), None);
    }
    assert!(!readable(&channel, 0), "all is reaped");
}

/// Compares and verifies need scratch buffers, of which there are few: the others wait.
#[test]
fn more_compares_than_scratch_buffers_all_end() {
    let folder = folder();
    let file = open(FileOptions::create(folder.path().join("disk"), MIB));
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    let now = Instant::now();
    for tag in 0..100 {
        assert!(matches!(
            channel.submit(Io::new(Op::Verify, 0, 2048, tag), now),
            Submit::Pending
        ));
    }
    assert!(channel.abort(99), "it still waits in software");
    let mut done = Vec::new();
    while channel.in_flight() > 0 {
        channel.poll(now, &mut done);
    }
    let aborted = done
        .iter()
        .filter(|completion| completion.result == Err(IoError::Aborted));
    assert_eq!((done.len(), aborted.count()), (100, 1));
}

/// A tmpfs of 1 MiB, unmounted when dropped.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount() -> Result<Self, String> {
        let folder = folder();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "adit-block-test"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_full_file_system_gives_no_space() {
    let mounted = match SmallFileSystem::mount() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("skipped: a small tmpfs cannot be mounted here: {reason}");
            return;
        }
    };
    let path = mounted.0.path().join("disk");
    let (file, notice) = File::open(FileOptions::create(path, 4 * MIB)).unwrap();
    assert_eq!(file.is_direct(), notice.is_none());
    let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
    let mut buffers = Buffers::new();
    let mut results = Vec::new();
    for lba in (0..8192).step_by(128) {
        let payload = buffers.filled(&[1; 65_536]);
        let io = Io::with_payload(Op::Write { fua: false }, lba, 128, payload, 0);
        results.push(rig::run(&mut channel, io).result);
    }
    let written = results.iter().filter(|result| result.is_ok()).count();
    assert!((8..=16).contains(&written), "{written}");
    assert!(
        results
            .iter()
            .skip(17)
            .all(|result| *result == Err(IoError::NoSpace)),
        "{results:?}"
    );
    // Unmapping makes room again. (tmpfs knows no zeroed ranges: zeroes are written out.)
    rig::run_ok(&mut channel, Io::new(Op::Unmap, 0, 512, 0));
    rig::write(&mut channel, &mut buffers, 0, &[2; 65_536]);
    rig::run_ok(
        &mut channel,
        Io::new(
            Op::WriteZeroes {
                unmap: false,
                fua: true,
            },
            0,
            512,
            0,
        ),
    );
    assert_eq!(rig::read(&mut channel, &mut buffers, 0, 128), [0; 65_536]);
}
