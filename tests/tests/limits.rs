//! What is not there is told as what it is: no space, media that fails, a limit, a wrong
//! configuration, a state that another process has, an end that was asked for. Method: each is made
//! to happen under a host that reads and writes.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use api::v1::ListBdevStatsRequest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nvme_spec::Status;
use program_tests::{
    Adit, Host, HostError, HostOptions, Load, LoadOptions, Request, patience, program, until,
};

const NQN: &str = "nqn.2026-11.io.adit.test:limits";

fn connect(port: u16) -> Host {
    Host::connect(port, NQN, &HostOptions::default()).unwrap()
}

#[track_caller]
fn status<T: std::fmt::Debug>(result: Result<T, HostError>) -> Status {
    match result {
        Err(HostError::Status { status, .. }) => status,
        other => panic!("{other:?} where an error status was due"),
    }
}

/// A filesystem of 16 MiB in memory, unmounted when dropped.
struct SmallFilesystem {
    folder: tempfile::TempDir,
}

impl SmallFilesystem {
    /// None where this user may not mount.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = Some("size=16m");
        match mount(
            Some("adit-test"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        ) {
            Ok(()) => Some(Self { folder }),
            Err(errno) => {
                println!("skipped: a small filesystem cannot be mounted: {errno}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        // Lazily: a program that is being killed may still have a file there.
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_filesystem_is_capacity_exceeded_until_there_is_space() {
    let Some(filesystem) = SmallFilesystem::mount() else {
        return;
    };
    let adit = Adit::builder().start().unwrap();
    let path = filesystem.path().join("disk.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "64MiB"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    let mut host = connect(port);
    host.write(0, vec![1; 65_536]).unwrap();
    // Its space is taken away.
    let filler = filesystem.path().join("filler");
    let mut space = fs::File::create(&filler).unwrap();
    let chunk = vec![0; 65_536];
    while std::io::Write::write_all(&mut space, &chunk).is_ok() {}
    drop(space);
    let refused = status(host.write(100_000, vec![2; 65_536]));
    assert!(refused.is(Status::CAPACITY_EXCEEDED), "{refused}");
    // What has its space goes on.
    host.write(0, vec![3; 65_536]).unwrap();
    assert_eq!(host.read(0, 128).unwrap(), vec![3; 65_536]);
    host.flush().unwrap();
    fs::remove_file(&filler).unwrap();
    host.write(100_000, vec![2; 65_536]).unwrap();
    assert_eq!(host.read(100_000, 128).unwrap(), vec![2; 65_536]);
}

#[test]
fn a_failing_disk_gives_media_errors_and_only_where_it_fails() {
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let create = [
        "bdev",
        "create",
        "error",
        "bad",
        "m0",
        "--rule",
        "io=read,lba=100-199",
        "--rule",
        "io=write,lba=100-199,dnr",
    ];
    adit.ctl(&create).unwrap();
    let port = adit.export(NQN, "bad").unwrap();
    let mut host = connect(port);
    let read = status(host.read(150, 1));
    assert!(read.is(Status::UNRECOVERED_READ_ERROR), "{read}");
    let write = status(host.write(199, vec![0; 1024]));
    assert!(write.is(Status::WRITE_FAULT) && write.dnr(), "{write}");
    host.write(200, vec![4; 512]).unwrap();
    assert_eq!(host.read(200, 1).unwrap(), vec![4; 512]);
    // The rules change under the host; the third of three errors is the last.
    adit.ctl(&[
        "bdev",
        "error",
        "bad",
        "--rule",
        "io=write,sct=0,sc=0x06,num=3",
    ])
    .unwrap();
    host.read(150, 1).unwrap();
    for _ in 0..3 {
        let write = status(host.write(200, vec![4; 512]));
        assert!(write.is(Status::INTERNAL_ERROR), "{write}");
    }
    host.write(200, vec![4; 512]).unwrap();
    host.flush().unwrap();
    // Damage that the disk does not tell of reaches the host as data.
    adit.ctl(&[
        "bdev",
        "error",
        "bad",
        "--rule",
        "io=read,type=corrupt-data,offset=3,value=1",
    ])
    .unwrap();
    assert_eq!(host.read(200, 1).unwrap()[..5], [4, 4, 4, 5, 4]);
}

/// Reads that end within a span.
fn reads_in(host: &mut Host, span: Duration) -> (u64, Duration) {
    let (start, mut count, mut tag, mut done) = (Instant::now(), 0, 0, Vec::new());
    while start.elapsed() < span {
        while host.in_flight() < 8 {
            tag += 1;
            host.submit(tag, Request::Read { lba: 0, blocks: 1 })
                .unwrap();
        }
        host.poll(Duration::from_millis(50), &mut done).unwrap();
        count += done.drain(..).filter(|each| each.result.is_ok()).count() as u64;
    }
    let span = start.elapsed();
    while host.in_flight() > 0 {
        host.poll(Duration::from_millis(50), &mut done).unwrap();
    }
    (count, span)
}

#[test]
fn a_limit_on_a_device_holds_and_changes_at_once() {
    const IOPS: u64 = 300;
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    let mut host = connect(port);
    adit.ctl(&["bdev", "qos", "m0", "--iops", &IOPS.to_string()])
        .unwrap();
    // What the device saved up while it was idle is spent first.
    reads_in(&mut host, Duration::from_millis(500));
    let (count, span) = reads_in(&mut host, Duration::from_secs(3));
    let allowed = IOPS as f64 * span.as_secs_f64();
    println!("{count} reads in {span:?}, {allowed:.0} allowed");
    assert!(
        (count as f64) < allowed * 1.15 + 8.0,
        "{count} of {allowed:.0}"
    );
    assert!((count as f64) > allowed * 0.5, "{count} of {allowed:.0}");
    adit.ctl(&["bdev", "qos", "m0", "--iops", "0"]).unwrap();
    let (free, span) = reads_in(&mut host, Duration::from_secs(1));
    let limited = IOPS as f64 * span.as_secs_f64();
    assert!(
        free as f64 > limited * 2.0,
        "{free} reads in {span:?} without a limit"
    );
}

/// Goal: SIGTERM drains: I/O in flight ends, what was acknowledged is on the disk, exit code 0.
#[test]
fn sigterm_drains_under_load() {
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    let (mut ledger, host) = (None, HostOptions::default());
    for seed in 0..3 {
        let options = LoadOptions {
            seed,
            queue_depth: 16,
            ..LoadOptions::new(0..8192)
        };
        let load = match ledger {
            None => Load::start(port, NQN, &host, options),
            Some(ledger) => Load::resume(port, NQN, &host, options, ledger),
        };
        load.progress(300);
        let start = Instant::now();
        adit.terminate().unwrap();
        println!("drained in {:?}", start.elapsed());
        let mut report = load.wait();
        adit.start().unwrap();
        report.ledger.check_after_crash(&mut connect(port)).unwrap();
        ledger = Some(report.ledger);
    }
}

/// Goal: one connection more than may be is refused, and harms nobody.
#[test]
fn more_connections_than_the_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("aditd.toml");
    fs::write(&config, "[limits]\nconnections_max = 2\n").unwrap();
    let adit = Adit::builder()
        .argument("--config")
        .argument(&config.display().to_string())
        .start()
        .unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    let options = |number| HostOptions {
        number,
        ..HostOptions::default()
    };
    // An admin queue and an I/O queue.
    let mut first = Host::connect(port, NQN, &options(1)).unwrap();
    assert!(Host::connect(port, NQN, &options(2)).is_err());
    first.write(0, vec![7; 512]).unwrap();
    // The log is written by a thread of its own, some time after the refusal.
    until("the option to raise to be in the log", || {
        adit.log().contains("limits.connections_max").then_some(())
    });
    drop(first);
    let mut second = None;
    until("the second host to be let in", || {
        second = Host::connect(port, NQN, &options(2)).ok();
        second.as_ref().map(|_| ())
    });
    assert_eq!(second.unwrap().read(0, 1).unwrap(), vec![7; 512]);
}

/// Goal: a drain does not wait for a device that never answers longer than its deadline.
#[test]
fn sigterm_ends_in_its_deadline_though_a_device_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("aditd.toml");
    fs::write(&config, "drain_timeout = \"2s\"\n").unwrap();
    let mut adit = Adit::builder()
        .argument("--config")
        .argument(&config.display().to_string())
        .start()
        .unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    adit.ctl(&[
        "bdev",
        "create",
        "delay",
        "hung",
        "m0",
        "--avg-read",
        "600s",
        "--p99-read",
        "600s",
    ])
    .unwrap();
    let port = adit.export(NQN, "hung").unwrap();
    let mut host = connect(port);
    host.submit(1, Request::Read { lba: 0, blocks: 1 }).unwrap();
    let grpc = adit.grpc();
    let in_device = || {
        let request = ListBdevStatsRequest {
            name: "hung".to_owned(),
            ..ListBdevStatsRequest::default()
        };
        let stats = grpc.wait(grpc.bdevs().list_bdev_stats(request)).unwrap();
        stats.bdevs[0].queue_depth
    };
    let mut done = Vec::new();
    until("the read to be in the device", || {
        host.poll(Duration::ZERO, &mut done).unwrap();
        (in_device() == 1).then_some(())
    });
    assert!(done.is_empty(), "the device answered: {done:?}");
    let start = Instant::now();
    // Whether 0 or an error is right is not this test's: that it ends is.
    let ended = adit.terminate();
    assert!(
        start.elapsed() < patience(30),
        "{ended:?} after {:?}",
        start.elapsed()
    );
}

fn aditd(arguments: &[&str]) -> Output {
    // `timeout` ends it should it start after all.
    Command::new("timeout")
        .args(["--kill-after=1", "30"])
        .arg(program("aditd"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state): (PathBuf, PathBuf) = (
        folder.path().join("aditd.toml"),
        folder.path().join("state"),
    );
    for (content, parts) in [
        ("log = {}\nreactorz = 2\n", &["line 2", "reactorz"][..]),
        ("[memory]\nsmall_pool_count = 1\n", &["line 2", "64"]),
        ("[memory]\n\nbacking = \"paper\"\n", &["line 3", "paper"]),
        ("drain_timeout = \"soon\"\n", &["line 1", "soon"]),
        ("reactors = \n", &["line 1"]),
    ] {
        fs::write(&config, content).unwrap();
        let output = aditd(&["--config", text(&config), "--state-dir", text(&state)]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{content}: {stderr}");
        assert!(stderr.contains("aditd.toml"), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
    }
    assert!(!fs::exists(&state).unwrap(), "nothing was made");
    let output = aditd(&["--reactors", "0xg"]);
    assert_eq!(output.status.code(), Some(2));
    let output = aditd(&["--grpc", "tcp:0.0.0.0:1", "--state-dir", text(&state)]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--ca"), "{stderr}");
}

#[test]
fn a_second_aditd_on_the_same_state_is_refused() {
    let mut adit = Adit::builder().start().unwrap();
    let other = adit.state_dir().join("other.sock");
    let grpc = format!("unix:{}", other.display());
    let state = adit.state_dir().display().to_string();
    let output = aditd(&["--state-dir", &state, "--grpc", &grpc]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("state.redb"), "{stderr}");
    assert!(
        stderr.contains("another") || stderr.contains("in use"),
        "{stderr}"
    );
    assert!(adit.is_running());
    // The same socket with another state directory.
    let folder = tempfile::tempdir().unwrap();
    let grpc = format!("unix:{}", adit.socket().display());
    let output = aditd(&["--state-dir", text(folder.path()), "--grpc", &grpc]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another process"), "{stderr}");
    adit.ctl(&["bdev", "list"]).unwrap();
}

#[test]
fn a_file_is_served_by_one_device_only() {
    let first = Adit::builder().start().unwrap();
    let second = Adit::builder().start().unwrap();
    let path = first.state_dir().join("disk.img").display().to_string();
    first
        .ctl(&["bdev", "create", "file", "disk", &path, "--size", "8MiB"])
        .unwrap();
    for adit in [&first, &second] {
        let answer = match adit.ctl_json(&["bdev", "create", "file", "twice", &path]) {
            // In use may pass: it is kept and tried again.
            Ok(made) => {
                assert_eq!(made["status"]["state"], "OBJECT_STATE_PENDING");
                made["status"]["reason"].as_str().unwrap().to_owned()
            }
            Err(error) => error.to_string(),
        };
        assert!(answer.contains("disk.img"), "{answer}");
        assert!(
            answer.contains("in use") || answer.contains("lock"),
            "{answer}"
        );
    }
}

/// Goal: what cannot fit into memory is refused with the sum, and the node goes on.
#[test]
fn a_device_that_does_not_fit_is_refused_and_the_node_goes_on() {
    let adit = Adit::builder().start().unwrap();
    let refused = adit.ctl_fails(&["bdev", "create", "malloc", "huge", "--size", "1048576TiB"]);
    assert!(!refused.contains("panicked"), "{refused}");
    adit.ctl(&["bdev", "create", "malloc", "small", "--size", "1MiB"])
        .unwrap();
    let port = adit.export(NQN, "small").unwrap();
    until("the listener", || {
        Host::connect(port, NQN, &HostOptions::default()).ok()
    });
}

#[test]
fn the_limit_of_objects_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("aditd.toml");
    fs::write(&config, "[limits]\nbdevs_max = 2\n").unwrap();
    let adit = Adit::builder()
        .argument("--config")
        .argument(text(&config))
        .start()
        .unwrap();
    for name in ["a", "b"] {
        adit.ctl(&["bdev", "create", "null", name, "--size", "1GiB"])
            .unwrap();
    }
    let refused = adit.ctl_fails(&["bdev", "create", "null", "c", "--size", "1GiB"]);
    assert!(
        refused.contains('2') && refused.contains("bdevs_max"),
        "{refused}"
    );
    adit.ctl(&["bdev", "delete", "a"]).unwrap();
    adit.ctl(&["bdev", "create", "null", "c", "--size", "1GiB"])
        .unwrap();
}
