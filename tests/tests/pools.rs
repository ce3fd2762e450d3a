//! Pools over the programs: volumes are made with `aditctl`, used by a host over NVMe/TCP, and are
//! there after `kill -9`.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::time::{Duration, Instant};

use nvme_spec::Status;
use program_tests::{
    Adit, Dice, Host, HostError, HostOptions, Ledger, Load, LoadOptions, thread_cpu_time, until,
};

const NQN: &str = "nqn.2026-11.io.adit.test:pool";
const BLOCKS: u32 = 128;

fn pattern(byte: u8) -> Vec<u8> {
    vec![byte; BLOCKS as usize * 512]
}

/// An `aditd` with pool `tank` in a file, and volume `tank/v` of 1 GiB.
fn with_pool() -> Adit {
    let adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("pool.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "256MiB"])
        .unwrap();
    adit.ctl(&["pool", "create", "tank", "disk", "--cluster-size", "64KiB"])
        .unwrap();
    adit.ctl(&["volume", "create", "tank/v", "--size", "1GiB"])
        .unwrap();
    adit
}

fn connect(port: u16, nqn: &str) -> Host {
    until("a host", || {
        Host::connect(port, nqn, &HostOptions::default()).ok()
    })
}

fn names(adit: &Adit, kind: &str, list: &str) -> Vec<String> {
    let answer = adit.ctl_json(&[kind, "list"]).unwrap();
    let all = answer[list].as_array().cloned().unwrap_or_default();
    all.iter()
        .map(|item| item["name"].as_str().unwrap().to_owned())
        .collect()
}

fn number(value: &serde_json::Value) -> u64 {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string()).parse().unwrap()
}

fn free_bytes(adit: &Adit) -> u64 {
    number(&adit.ctl_json(&["pool", "show", "tank"]).unwrap()["free_bytes"])
}

/// Goal: issue 3's main job in small. Method: write, flush, snapshot, overwrite, clone, kill, look.
#[test]
fn snapshots_and_clones_survive_kill_9() {
    let mut adit = with_pool();
    let empty = free_bytes(&adit);
    let port = adit.export(NQN, "tank/v").unwrap();
    let mut host = connect(port, NQN);
    assert_eq!(host.read(0, BLOCKS).unwrap(), pattern(0), "never written");
    host.write(0, pattern(1)).unwrap();
    // The far end of a volume that is larger than its pool.
    host.write(2_097_152 - u64::from(BLOCKS), pattern(2))
        .unwrap();
    host.flush().unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@monday"]).unwrap();
    host.write(64, pattern(3)).unwrap();
    host.flush().unwrap();
    adit.ctl(&["volume", "clone", "tank/v@monday", "tank/c"])
        .unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@tuesday"]).unwrap();
    let diff = adit.ctl_json(&["volume", "diff", "tank/v@monday", "tank/v@tuesday"]);
    let diff = diff.unwrap();
    let extents = diff["extents"].as_array().unwrap();
    assert_eq!(extents.len(), 1, "{diff}");
    assert_eq!(number(&extents[0]["offset_bytes"]), 64 * 512);
    assert_eq!(number(&extents[0]["length_bytes"]), u64::from(BLOCKS) * 512);
    adit.ctl(&["snapshot", "delete", "tank/v@tuesday"]).unwrap();
    let identity = |adit: &Adit, name: &str| {
        let shown = adit.ctl_json(&["volume", "show", name]).unwrap();
        (shown["uuid"].clone(), shown["nguid"].clone())
    };
    let before = identity(&adit, "tank/v");
    drop(host);
    adit.kill_9();
    adit.start().unwrap();

    assert_eq!(identity(&adit, "tank/v"), before);
    assert_eq!(names(&adit, "volume", "volumes"), ["tank/c", "tank/v"]);
    assert_eq!(names(&adit, "snapshot", "snapshots"), ["tank/v@monday"]);
    let mut host = connect(port, NQN);
    let end = 2_097_152 - u64::from(BLOCKS);
    let new = [&pattern(1)[..64 * 512], &pattern(3)[..]].concat();
    assert_eq!(host.read(0, BLOCKS + 64).unwrap(), new);
    assert_eq!(host.read(end, BLOCKS).unwrap(), pattern(2));
    let old = [pattern(1), pattern(0)[..64 * 512].to_vec()].concat();
    for (name, nqn) in [("tank/v@monday", "s"), ("tank/c", "c")] {
        let nqn = format!("{NQN}{nqn}");
        let port = adit.export(&nqn, name).unwrap();
        let mut host = connect(port, &nqn);
        assert_eq!(host.read(0, BLOCKS + 64).unwrap(), old, "{name}");
        assert_eq!(host.read(end, BLOCKS).unwrap(), pattern(2), "{name}");
        assert_eq!(
            host.write(0, pattern(9)).is_ok(),
            name == "tank/c",
            "{name}"
        );
    }
    assert_eq!(host.read(0, BLOCKS + 64).unwrap(), new, "a clone is apart");

    // In use: neither it nor its pool goes.
    let refused = adit.ctl_fails(&["volume", "delete", "tank/v"]);
    assert!(refused.contains("in use"), "{refused}");
    let refused = adit.ctl_fails(&["pool", "export", "tank"]);
    assert!(refused.contains("in use"), "{refused}");
    drop(host);
    for nqn in ["", "s", "c"] {
        adit.ctl(&["subsystem", "delete", &format!("{NQN}{nqn}")])
            .unwrap();
    }
    // The snapshot first: what lies on it stays whole.
    adit.ctl(&["snapshot", "delete", "tank/v@monday"]).unwrap();
    let port = adit.export(NQN, "tank/c").unwrap();
    let mut host = connect(port, NQN);
    assert_eq!(host.read(0, BLOCKS).unwrap(), pattern(9));
    assert_eq!(host.read(end, BLOCKS).unwrap(), pattern(2));
    drop(host);
    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    adit.ctl(&["volume", "delete", "tank/v"]).unwrap();
    adit.ctl(&["volume", "delete", "tank/c"]).unwrap();
    until("all space to come back", || {
        (free_bytes(&adit) == empty).then_some(())
    });
    let checked = adit.ctl(&["pool", "check", "tank"]);
    assert!(checked.is_ok(), "{checked:?}");
}

/// Goal: a pool that was exported is as it was when it is imported; one that was deleted is gone.
#[test]
fn a_pool_is_exported_and_imported() {
    let adit = with_pool();
    adit.ctl(&["snapshot", "create", "tank/v@s"]).unwrap();
    adit.ctl(&["pool", "export", "tank"]).unwrap();
    assert_eq!(names(&adit, "volume", "volumes"), [""; 0]);
    let refused = adit.ctl_fails(&["pool", "create", "other", "disk"]);
    assert!(refused.contains("the pool \"tank\""), "{refused}");
    adit.ctl(&["pool", "import", "disk"]).unwrap();
    assert_eq!(names(&adit, "volume", "volumes"), ["tank/v"]);
    assert_eq!(names(&adit, "snapshot", "snapshots"), ["tank/v@s"]);
    adit.ctl(&["volume", "rename", "tank/v", "tank/w"]).unwrap();
    assert_eq!(names(&adit, "snapshot", "snapshots"), ["tank/w@s"]);
    let scrubbed = adit.ctl(&["pool", "scrub", "tank"]).unwrap();
    assert!(scrubbed.contains("all is well"), "{scrubbed}");
    adit.ctl(&["pool", "delete", "tank"]).unwrap();
    let refused = adit.ctl_fails(&["pool", "import", "disk"]);
    assert!(refused.contains("holds no pool"), "{refused}");
    adit.ctl(&["pool", "create", "other", "disk"]).unwrap();
}

/// Goal: a clone that was taken off its parent shows the same when the parent is gone.
#[test]
fn a_clone_is_taken_off_its_parent() {
    let adit = with_pool();
    let create = ["volume", "create", "tank/w", "--size", "16MiB"];
    adit.ctl(&create).unwrap();
    let port = adit.export(NQN, "tank/w").unwrap();
    let mut host = connect(port, NQN);
    host.write(0, pattern(7)).unwrap();
    adit.ctl(&["snapshot", "create", "tank/w@s"]).unwrap();
    for (clone, verb) in [("tank/c", "decouple"), ("tank/d", "inflate")] {
        adit.ctl(&["volume", "clone", "tank/w@s", clone]).unwrap();
        adit.ctl(&["volume", verb, clone, "--wait"]).unwrap();
        let shown = adit.ctl_json(&["volume", "show", clone]).unwrap();
        assert_eq!(shown["parent"].as_str().unwrap_or_default(), "", "{shown}");
        assert_eq!(
            shown["thick"].as_bool().unwrap_or_default(),
            verb == "inflate"
        );
    }
    let operations = adit.ctl_json(&["operation", "list"]).unwrap();
    assert_eq!(operations["operations"].as_array().map(Vec::len), Some(2));
    adit.ctl(&["snapshot", "delete", "tank/w@s"]).unwrap();
    let nqn = format!("{NQN}c");
    let port = adit.export(&nqn, "tank/c").unwrap();
    let mut clone = connect(port, &nqn);
    assert_eq!(clone.read(0, BLOCKS).unwrap(), pattern(7));
}

/// Goal: a volume lies on an image outside its pool, which is kept for it; without the image it serves what
/// it has, and all again once the image is back. Method: the image's file is away over a restart.
#[test]
fn a_volume_lies_on_an_image_outside_its_pool() {
    let mut adit = with_pool();
    let path = adit.state_dir().join("gold.img");
    std::fs::write(&path, vec![5; 8 << 20]).unwrap();
    let name = path.display().to_string();
    adit.ctl(&["bdev", "create", "file", "gold", &name])
        .unwrap();
    let clone = ["volume", "clone", "--from-bdev", "gold", "tank/c"];
    adit.ctl(&clone).unwrap();
    adit.ctl(&clone).unwrap();
    let show = |adit: &Adit| adit.ctl_json(&["volume", "show", "tank/c"]).unwrap();
    assert_eq!(show(&adit)["parent"], "gold");
    let port = adit.export(NQN, "tank/c").unwrap();
    let mut host = connect(port, NQN);
    let at = u64::from(BLOCKS);
    assert_eq!(host.read(at, BLOCKS).unwrap(), pattern(5));
    host.write(at, pattern(6)).unwrap();
    // A part of a granule: the rest comes from the image.
    host.write(2 * at + 1, vec![7; 512]).unwrap();
    host.flush().unwrap();
    let refused = adit.ctl_fails(&["bdev", "delete", "gold"]);
    assert!(refused.contains("volume tank/c"), "{refused}");
    let refused = adit.ctl_fails(&["volume", "clone", "tank/c", "tank/d", "--from-bdev", "gold"]);
    assert!(refused.contains("--from-bdev"), "{refused}");
    drop(host);
    adit.kill_9();
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    adit.start().unwrap();

    let status = show(&adit)["status"].to_string();
    assert!(status.contains("\\\"gold\\\" is not in place"), "{status}");
    let mut host = connect(port, NQN);
    assert_eq!(host.read(at, BLOCKS).unwrap(), pattern(6));
    host.read(4 * at, BLOCKS).unwrap_err();
    host.write(8 * at, pattern(8)).unwrap();
    std::fs::rename(&away, &path).unwrap();
    let read = until("the image", || host.read(4 * at, BLOCKS).ok());
    assert_eq!(read, pattern(5));
    let mut mixed = pattern(5);
    mixed[512..1024].fill(7);
    assert_eq!(host.read(2 * at, BLOCKS).unwrap(), mixed);
    assert_eq!(host.read(8 * at, BLOCKS).unwrap(), pattern(8));
    adit.ctl(&["volume", "decouple", "tank/c", "--wait"])
        .unwrap();
    adit.ctl(&["bdev", "delete", "gold"]).unwrap();
    assert_eq!(host.read(4 * at, BLOCKS).unwrap(), pattern(5));
    assert_eq!(std::fs::read(&path).unwrap(), vec![5; 8 << 20]);
}

/// Goal: what a thick volume is promised, no other volume can take.
#[test]
fn a_thick_volume_is_never_short_of_space() {
    let adit = with_pool();
    let create = ["volume", "create", "tank/t", "--thick", "--size"];
    let refused = adit.ctl_fails(&[&create[..], &["1GiB"]].concat());
    assert!(refused.contains("ResourceExhausted"), "{refused}");
    adit.ctl(&[&create[..], &["64MiB"]].concat()).unwrap();
    let port = adit.export(NQN, "tank/v").unwrap();
    let mut thin = connect(port, NQN);
    let full = (0..).find(|index| thin.write(index * u64::from(BLOCKS), pattern(1)).is_err());
    assert!(full.is_some());
    let nqn = format!("{NQN}t");
    let port = adit.export(&nqn, "tank/t").unwrap();
    let mut thick = connect(port, &nqn);
    for lba in (0..131_072).step_by(BLOCKS as usize) {
        thick.write(lba, pattern(2)).unwrap();
    }
    thick.flush().unwrap();
    assert_eq!(
        thick.read(131_072 - u64::from(BLOCKS), BLOCKS).unwrap(),
        pattern(2)
    );
}

/// Goal: a new size is the host's without a new connection, and the pool's after its device grew.
#[test]
fn volumes_and_pools_grow() {
    let adit = with_pool();
    let port = adit.export(NQN, "tank/v").unwrap();
    let mut host = connect(port, NQN);
    let beyond = 2_097_152;
    host.write(beyond, pattern(1)).unwrap_err();
    adit.ctl(&["volume", "resize", "tank/v", "--size", "2GiB"])
        .unwrap();
    host.write(beyond, pattern(1)).unwrap();
    assert_eq!(host.read(beyond, BLOCKS).unwrap(), pattern(1));
    let refused = adit.ctl_fails(&["volume", "resize", "tank/v", "--size", "1GiB"]);
    assert!(refused.contains("allow_shrink"), "{refused}");
    adit.ctl(&[
        "volume",
        "resize",
        "tank/v",
        "--size",
        "1GiB",
        "--allow-shrink",
    ])
    .unwrap();
    host.write(beyond, pattern(1)).unwrap_err();
    adit.ctl(&["volume", "resize", "tank/v", "--size", "2GiB"])
        .unwrap();
    assert_eq!(
        host.read(beyond, BLOCKS).unwrap(),
        pattern(0),
        "it was cut off"
    );
    // A rollback brings the size of then.
    adit.ctl(&["snapshot", "create", "tank/v@large"]).unwrap();
    adit.ctl(&["volume", "resize", "tank/v", "--size", "4GiB"])
        .unwrap();
    host.write(2 * beyond, pattern(4)).unwrap();
    adit.ctl(&["volume", "rollback", "tank/v", "tank/v@large"])
        .unwrap();
    host.write(2 * beyond, pattern(4)).unwrap_err();

    let show = || adit.ctl_json(&["pool", "show", "tank"]).unwrap();
    assert_eq!(number(&show()["size_bytes"]), 256 << 20);
    adit.ctl(&["bdev", "resize", "disk", "--size", "512MiB"])
        .unwrap();
    adit.ctl(&["pool", "grow", "tank"]).unwrap();
    assert_eq!(number(&show()["size_bytes"]), 512 << 20);
}

/// Goal: promises 1 and 2 for a volume: what a flush or FUA covered is there after a crash, and every
/// other block is old or new; also in snapshots that are taken meanwhile.
#[test]
fn flushed_data_of_a_volume_survives_kill_9() {
    let mut adit = with_pool();
    let port = adit.export(NQN, "tank/v").unwrap();
    let range = 0..16_384;
    let mut ledger = Ledger::new(&range);
    let mut dice = Dice::new(5);
    for round in 0..6 {
        let options = LoadOptions {
            read_percent: 30,
            flush_every: 40,
            fua_every: 16,
            seed: round,
            ..LoadOptions::new(range.clone())
        };
        let host = HostOptions::default();
        let load = Load::resume(port, NQN, &host, options, ledger.clone());
        load.progress(50 + dice.below(1000));
        adit.ctl(&["snapshot", "create", &format!("tank/v@r{round}")])
            .unwrap();
        if round > 1 {
            adit.ctl(&["snapshot", "delete", &format!("tank/v@r{}", round - 2)])
                .unwrap();
        }
        load.progress(50 + dice.below(1000));
        adit.kill_9();
        ledger = load.wait().ledger;
        adit.start().unwrap();
        let mut host = connect(port, NQN);
        ledger.check_after_crash(&mut host).unwrap();
        assert_eq!(
            names(&adit, "snapshot", "snapshots").len(),
            2.min(round as usize + 1)
        );
    }
    assert!(adit.ctl(&["pool", "check", "tank"]).is_ok());
}

/// Goal: a full pool refuses the write that needs space, and nothing else; what is deleted is space.
#[test]
fn a_full_pool_refuses_writes_and_goes_on_when_space_comes_back() {
    let adit = with_pool();
    adit.ctl(&["volume", "create", "tank/w", "--size", "1GiB"])
        .unwrap();
    let port = adit.export(NQN, "tank/v").unwrap();
    let other_nqn = format!("{NQN}w");
    let other_port = adit.export(&other_nqn, "tank/w").unwrap();
    let (mut host, mut other) = (connect(port, NQN), connect(other_port, &other_nqn));
    other.write(0, pattern(7)).unwrap();
    let level = || {
        let pool = adit.ctl_json(&["pool", "show", "tank"]).unwrap();
        pool["space_level"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(level(), "POOL_SPACE_LEVEL_OK");
    // The first cluster that cannot be had, and only that: Capacity Exceeded, a status of commands (NVM
    // Command Set, Write).
    let is_full =
        |host: &mut Host, index: u64| match host.write(index * u64::from(BLOCKS), pattern(1)) {
            Ok(()) => false,
            Err(HostError::Status { status, .. }) => {
                assert!(status.is(Status::CAPACITY_EXCEEDED), "{status}");
                true
            }
            Err(error) => panic!("{error}"),
        };
    let written = (0..).find(|index| is_full(&mut host, *index)).unwrap();
    host.flush().unwrap();
    until("the level of the pool", || {
        (level() == "POOL_SPACE_LEVEL_FULL").then_some(())
    });
    until("the events", || {
        let log = adit.log();
        let told = |level: &str| log.contains(&format!("{level}: "));
        told("full").then_some(())
    });
    // What is mapped goes on, on this volume and the other.
    host.write((written - 1) * u64::from(BLOCKS), pattern(2))
        .unwrap();
    other.write(0, pattern(8)).unwrap();
    assert_eq!(host.read(0, BLOCKS).unwrap(), pattern(1));
    assert_eq!(other.read(0, BLOCKS).unwrap(), pattern(8));
    drop(other);
    adit.ctl(&["subsystem", "delete", &other_nqn]).unwrap();
    adit.ctl(&["volume", "delete", "tank/w"]).unwrap();
    until("space", || {
        host.write(written * u64::from(BLOCKS), pattern(3)).ok()
    });

    // Full again, with a snapshot below: overwriting needs a cluster, until the snapshot has gone.
    let full = (written..)
        .find(|index| is_full(&mut host, *index))
        .unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@s"]).unwrap();
    assert!(is_full(&mut host, 0));
    assert_eq!(host.read(0, BLOCKS).unwrap(), pattern(1));
    host.flush().unwrap();
    adit.ctl(&["snapshot", "delete", "tank/v@s"]).unwrap();
    until("what the snapshot had", || host.write(0, pattern(4)).ok());
    assert!(is_full(&mut host, full));

    // The pool grows under it.
    adit.ctl(&["bdev", "resize", "disk", "--size", "512MiB"])
        .unwrap();
    adit.ctl(&["pool", "grow", "tank"]).unwrap();
    until("the new clusters", || {
        host.write(full * u64::from(BLOCKS), pattern(5)).ok()
    });
    until("the level to fall", || {
        (level() == "POOL_SPACE_LEVEL_OK").then_some(())
    });
    host.flush().unwrap();
    for (index, byte) in [(0, 4), (1, 1), (full, 5)] {
        let read = host.read(index * u64::from(BLOCKS), BLOCKS).unwrap();
        assert_eq!(read, pattern(byte), "cluster {index}");
    }
}

/// Goal: limits, labels and thresholds are the pool's: they are there after `kill -9` and on another node.
#[test]
fn what_is_said_of_volumes_and_pools_goes_with_them_to_another_node() {
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("pool.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "256MiB"])
        .unwrap();
    let run = |adit: &Adit, line: &str| adit.ctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    run(
        &adit,
        "pool create tank disk --warn-percent 40 --critical-percent 60 --label rack=7",
    );
    run(
        &adit,
        "volume create tank/v --size 1GiB --qos-iops 5000 --qos-write-bandwidth 8MiB --label tier=1",
    );
    run(&adit, "volume create tank/w --size 1GiB --label tier=2");
    run(&adit, "bdev qos tank/w --iops 70");
    run(&adit, "volume qos tank/w --burst 20ms");
    run(&adit, "snapshot create tank/v@s tank/w@s --label why=test");
    run(&adit, "volume clone tank/v@s tank/c --label tier=3");
    run(&adit, "pool set tank --warn-percent 50");
    run(&adit, "pool label tank rack=8 row=b");
    run(&adit, "pool label tank row-");
    let refused = adit.ctl_fails(&["volume", "label", "tank/v", "adit.qos.burst_ms=5"]);
    assert!(refused.contains("not for its owner"), "{refused}");
    let check = |adit: &Adit, pool: &str| {
        let name = |rest: &str| format!("{pool}/{rest}");
        let show = |rest: &str| adit.ctl_json(&["volume", "show", &name(rest)]).unwrap();
        let v = show("v");
        assert_eq!(number(&v["qos"]["rw_ios_per_sec"]), 5000, "{v}");
        assert_eq!(number(&v["qos"]["w_bytes_per_sec"]), 8 << 20, "{v}");
        assert_eq!(v["labels"], serde_json::json!({"tier": "1"}));
        let w = show("w");
        assert_eq!(number(&w["qos"]["rw_ios_per_sec"]), 70, "{w}");
        assert_eq!(number(&w["qos"]["burst_ms"]), 20, "{w}");
        assert!(show("c")["qos"].is_null(), "a clone has its own");
        let bdev = adit.ctl_json(&["bdev", "show", &name("w")]).unwrap();
        assert_eq!(bdev["spec"]["qos"], w["qos"]);
        let listed = |words: &[&str], list: &str| -> Vec<String> {
            let answer = adit.ctl_json(words).unwrap();
            let all = answer[list].as_array().cloned().unwrap_or_default();
            let names = all.iter().map(|item| item["name"].as_str().unwrap());
            names.map(str::to_owned).collect()
        };
        let volumes = ["volume", "list", "--label", "tier=3"];
        assert_eq!(listed(&volumes, "volumes"), [name("c")]);
        let snapshots = ["snapshot", "list", "--label", "why=test"];
        assert_eq!(listed(&snapshots, "snapshots"), [name("v@s"), name("w@s")]);
        let shown = adit.ctl_json(&["pool", "show", pool]).unwrap();
        assert_eq!(shown["labels"], serde_json::json!({"rack": "8"}));
        assert_eq!(number(&shown["warning_percent"]), 50);
        assert_eq!(number(&shown["critical_percent"]), 60);
        let text = adit.ctl(&["pool", "show", pool]).unwrap();
        for word in ["rack=8", "warning at 50 %", "pieces in memory"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        // Counters of all devices are also those of volumes and snapshots.
        let stats = listed(&["bdev", "stat"], "bdevs");
        for rest in ["c", "v", "v@s", "w", "w@s"] {
            assert!(stats.contains(&name(rest)), "{rest}: {stats:?}");
        }
    };
    check(&adit, "tank");
    adit.kill_9();
    adit.start().unwrap();
    check(&adit, "tank");
    run(&adit, "pool export tank");
    run(&adit, "bdev delete disk");

    let other = Adit::builder().start().unwrap();
    other
        .ctl(&["bdev", "create", "file", "moved", &path])
        .unwrap();
    run(&other, "pool import moved");
    check(&other, "tank");
    // The limit holds, not only the text: with a burst of 20 ms 70 a second is 50 in 700 ms.
    let port = other.export(NQN, "tank/w").unwrap();
    let mut host = connect(port, NQN);
    let start = Instant::now();
    for index in 0..50 {
        host.write(index * 8, vec![1; 512]).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(500));
    let refused = other.ctl_fails(&["pool", "rename", "tank", "lake"]);
    assert!(refused.contains(&format!("namespace {NQN}/1")), "{refused}");
    drop(host);
    run(&other, &format!("subsystem delete {NQN}"));
    run(&other, "pool rename tank lake");
    check(&other, "lake");
}

/// Goal: a pool is renamed wholly or not at all, wherever the program is killed; a namespace finds it.
#[test]
fn a_renamed_pool_keeps_its_name_over_kill_9() {
    let mut adit = with_pool();
    let mut name = "tank".to_owned();
    for round in 0..6_u32 {
        let new_name = format!("lake{round}");
        let socket = format!("unix:{}", adit.socket().display());
        let mut call = std::process::Command::new(program_tests::program("aditctl"))
            .args(["--server", &socket, "pool", "rename", &name, &new_name])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Somewhere in the middle, or after the end; meanwhile others are answered.
        for _ in 0..round {
            adit.ctl(&["node", "show"]).unwrap();
        }
        let is_done = call
            .try_wait()
            .unwrap()
            .is_some_and(|status| status.success());
        adit.kill_9();
        let acknowledged = call.wait().unwrap().success();
        adit.start().unwrap();
        let pool = until("the pool", || {
            let pools = adit.ctl_json(&["pool", "list"]).ok()?;
            let pool = pools["pools"][0].clone();
            number(&pool["volumes"]).eq(&1).then_some(pool)
        });
        let found = pool["spec"]["name"].as_str().unwrap().to_owned();
        if is_done || acknowledged {
            assert_eq!(found, new_name, "it was acknowledged");
        }
        assert!(found == name || found == new_name, "{found}");
        let shown = adit.ctl(&["volume", "show", &format!("{found}/v")]);
        assert!(shown.is_ok(), "{shown:?}");
        name = found;
    }
}

/// Goal: the thread of a pool sleeps while there is nothing to do.
#[test]
fn the_thread_of_an_idle_pool_sleeps() {
    let adit = with_pool();
    let pid = adit.pid();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tid = tasks
        .map(|task| task.unwrap().path())
        .find(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == "pool_tank")
        .unwrap();
    let tid = tid.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let cpu = || thread_cpu_time(pid, tid).unwrap();
    // Whatever it still had to do is done once it has used no time for a while.
    let mut last = (cpu(), Instant::now());
    until("the thread to rest", || {
        let now = cpu();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
}

/// Goal: a record that its device has damaged costs one volume, until a repair brings its data back.
#[test]
fn a_damaged_record_costs_one_volume_until_it_is_repaired() {
    let mut adit = with_pool();
    adit.ctl(&["volume", "create", "tank/w", "--size", "1GiB"])
        .unwrap();
    let other_nqn = format!("{NQN}w");
    let write = |nqn: &str, volume: &str, byte: u8| {
        let port = adit.export(nqn, volume).unwrap();
        let mut host = connect(port, nqn);
        host.write(0, pattern(byte)).unwrap();
        host.flush().unwrap();
        port
    };
    write(NQN, "tank/v", 7);
    let port = write(&other_nqn, "tank/w", 8);
    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    let show = |adit: &Adit| adit.ctl_json(&["volume", "show", "tank/v"]).unwrap();
    let uuid = show(&adit)["uuid"].as_str().unwrap().to_owned();
    adit.terminate().unwrap();

    // The record of the name holds the UUID. Nothing else in the file does.
    let hex = uuid.replace('-', "");
    let bytes: Vec<u8> = (0..16)
        .map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap())
        .collect();
    let path = adit.state_dir().join("pool.img");
    let mut image = std::fs::read(&path).unwrap();
    let is_at = |at: &usize| image[*at..].starts_with(&bytes);
    let found: Vec<usize> = (0..image.len()).filter(is_at).collect();
    assert!(!found.is_empty());
    found.iter().for_each(|at| image[at + 15] ^= 1);
    std::fs::write(&path, &image).unwrap();

    adit.start().unwrap();
    let mut host = connect(port, &other_nqn);
    assert_eq!(host.read(0, BLOCKS).unwrap(), pattern(8));
    let refused = adit.ctl_fails(&["volume", "show", "tank/v"]);
    assert!(
        refused.contains("run pool check and pool repair"),
        "{refused}"
    );
    let refused = adit.ctl_fails(&["volume", "create", "tank/v", "--size", "1GiB"]);
    assert!(refused.contains("cannot be read"), "{refused}");
    let findings = adit.ctl_fails(&["pool", "check", "tank"]);
    assert!(findings.contains("1 things are wrong"), "{findings}");
    adit.ctl(&["pool", "repair", "tank"]).unwrap();
    adit.ctl(&["pool", "check", "tank"]).unwrap();
    host.write(0, pattern(9)).unwrap();
    let repaired = show(&adit);
    assert_ne!(repaired["uuid"].as_str().unwrap(), uuid, "{repaired}");
    let port = adit.export(NQN, "tank/v").unwrap();
    assert_eq!(connect(port, NQN).read(0, BLOCKS).unwrap(), pattern(7));
}
