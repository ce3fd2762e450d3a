//! Every command of `aditctl` does what its help says. Method: each is run against an `aditd`, its
//! JSON is read, and what it changed is looked at with another.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use api::v1::ListBdevStatsRequest;
use program_tests::{Adit, Host, HostOptions, KilledChild, free_port, patience, program, until};
use serde_json::Value;

const NQN: &str = "nqn.2026-11.io.adit.test:grammar";
const HOSTNQN: &str = "nqn.2026-11.io.adit.test:host1";

/// Names of the objects in a list.
#[track_caller]
fn names(list: &Value, key: &str, path: &[&str]) -> Vec<String> {
    let name = |object: &Value| {
        let found = path.iter().fold(object, |value, field| &value[field]);
        found.as_str().unwrap().to_owned()
    };
    list[key].as_array().unwrap().iter().map(name).collect()
}

#[track_caller]
fn count(adit: &Adit, words: &[&str], key: &str) -> usize {
    let list = adit.ctl_json(words).unwrap();
    list[key].as_array().unwrap_or(&Vec::new()).len()
}

#[test]
fn block_devices_are_created_shown_counted_limited_and_deleted() {
    let adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img").display().to_string();
    let made = adit
        .ctl_json(&[
            "bdev",
            "create",
            "malloc",
            "m0",
            "--size",
            "8MiB",
            "--block-size",
            "4096",
        ])
        .unwrap();
    assert_eq!(made["block_size"], 4096);
    assert_eq!(made["num_blocks"], 2048);
    adit.ctl(&["bdev", "create", "null", "n0", "--size", "1TiB"])
        .unwrap();
    adit.ctl(&["bdev", "create", "file", "f0", &path, "--size", "4MiB"])
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
    adit.ctl(&[
        "bdev",
        "create",
        "error",
        "e0",
        "m0",
        "--rule",
        "io=read,num=1",
    ])
    .unwrap();
    adit.ctl(&["bdev", "create", "delay", "d0", "n0", "--avg-read", "1ms"])
        .unwrap();
    let list = adit.ctl_json(&["bdev", "list"]).unwrap();
    let all = names(&list, "bdevs", &["spec", "name"]);
    assert_eq!(all, ["d0", "e0", "f0", "m0", "n0"]);

    let shown = adit.ctl_json(&["bdev", "show", "m0"]).unwrap();
    assert_eq!(shown["claimed"], true);
    let refused = adit.ctl_fails(&["bdev", "delete", "m0"]);
    assert!(refused.contains("e0"), "it says who uses it: {refused}");

    adit.ctl(&["bdev", "qos", "f0", "--iops", "500"]).unwrap();
    let shown = adit.ctl_json(&["bdev", "show", "f0"]).unwrap();
    assert_eq!(shown["spec"]["qos"]["rw_ios_per_sec"], 500);
    adit.ctl(&["bdev", "error", "e0"]).unwrap();
    adit.ctl(&["bdev", "delay", "d0", "--avg-write", "2ms"])
        .unwrap();
    let shown = adit.ctl_json(&["bdev", "show", "d0"]).unwrap();
    assert_eq!(shown["spec"]["delay"]["avg_write_latency_us"], 2000);
    adit.ctl(&["bdev", "resize", "f0", "--size", "8MiB"])
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
    let stat = adit.ctl_json(&["bdev", "stat", "f0"]).unwrap();
    assert_eq!(stat["bdevs"][0]["name"], "f0");

    for name in ["e0", "d0", "m0", "n0", "f0"] {
        adit.ctl(&["bdev", "delete", name]).unwrap();
    }
    assert_eq!(count(&adit, &["bdev", "list"], "bdevs"), 0);
    assert!(fs::exists(&path).unwrap(), "the file of a device stays");
}

#[test]
fn a_subsystem_is_built_shown_and_taken_down() {
    let adit = Adit::builder().start().unwrap();
    let port = free_port().unwrap();
    let address = format!("tcp://127.0.0.1:{port}");
    let words = [
        "transport",
        "create",
        "tcp",
        "--in-capsule-data-size",
        "8KiB",
        "--max-queue-depth",
        "128",
        "--max-io-size",
        "128KiB",
    ];
    adit.ctl(&words).unwrap();
    let list = adit.ctl_json(&["transport", "list"]).unwrap();
    assert_eq!(names(&list, "transports", &["spec", "trtype"]), ["tcp"]);
    adit.ctl(&["transport", "show", "tcp"]).unwrap();

    let words = [
        "subsystem",
        "create",
        NQN,
        "--serial",
        "S1",
        "--model",
        "M1",
    ];
    adit.ctl(&words).unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let namespace = adit
        .ctl_json(&["namespace", "add", NQN, "m0", "--nsid", "1"])
        .unwrap();
    assert_eq!(namespace["spec"]["nsid"], 1);
    adit.ctl(&["listener", "add", NQN, &address, "--wait"])
        .unwrap();
    let refused = Host::connect(port, NQN, &HostOptions::default());
    assert!(refused.is_err(), "a host that is not in the list stays out");
    adit.ctl(&["host", "add", NQN, HOSTNQN]).unwrap();
    let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    host.write(0, vec![7; 512]).unwrap();
    assert_eq!(host.read(0, 1).unwrap(), vec![7; 512]);

    let shown = adit.ctl_json(&["subsystem", "show", NQN]).unwrap();
    assert_eq!(shown["spec"]["serial_number"], "S1");
    assert_eq!(shown["state"], "SUBSYSTEM_STATE_ACTIVE");
    assert_eq!(shown["controllers"], 1);
    assert_eq!(shown["io_qpairs"], 1);
    assert_eq!(shown["hosts"][0]["spec"]["nqn"], HOSTNQN);
    let list = adit.ctl_json(&["subsystem", "list"]).unwrap();
    assert!(names(&list, "subsystems", &["spec", "nqn"]).contains(&NQN.to_owned()));
    for (noun, key) in [
        ("namespace", "namespaces"),
        ("listener", "listeners"),
        ("host", "hosts"),
    ] {
        assert_eq!(count(&adit, &[noun, "list", NQN], key), 1, "{noun}");
    }
    assert_eq!(count(&adit, &["controller", "list"], "controllers"), 1);
    assert_eq!(count(&adit, &["qpair", "list"], "qpairs"), 2);
    adit.ctl(&["ana", "set", NQN, &address, "non-optimized"])
        .unwrap();
    assert!(
        adit.ctl(&["ana", "list", NQN])
            .unwrap()
            .contains("non-optimized")
    );
    adit.ctl(&["subsystem", "set", NQN, "--label", "mine"])
        .unwrap();
    adit.ctl(&["namespace", "set", NQN, "1", "--write-protect", "true"])
        .unwrap();
    assert!(
        host.write(0, vec![8; 512]).is_err(),
        "it is write protected"
    );
    adit.ctl(&["namespace", "set", NQN, "1", "--write-protect", "false"])
        .unwrap();
    host.write(0, vec![9; 512]).unwrap();

    adit.ctl(&["host", "remove", NQN, HOSTNQN]).unwrap();
    program_tests::until("the removed host to be disconnected", || {
        host.probe().is_err().then_some(())
    });
    adit.ctl(&["namespace", "remove", NQN, "1"]).unwrap();
    adit.ctl(&["listener", "remove", NQN, &address]).unwrap();
    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    adit.ctl(&["transport", "delete", "tcp"]).unwrap();
    adit.ctl(&["bdev", "delete", "m0"]).unwrap();
}

/// A node with a pool `p` of 256 MiB in a file.
fn with_pool() -> Adit {
    let adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("pool.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "f0", &path, "--size", "256MiB"])
        .unwrap();
    adit.ctl(&["pool", "create", "p", "f0"]).unwrap();
    adit
}

#[test]
fn pools_are_made_shown_grown_checked_exported_and_deleted() {
    let adit = with_pool();
    let made = adit
        .ctl_json(&["pool", "create", "p", "f0", "--cluster-size", "1MiB"])
        .unwrap();
    assert_eq!(made["cluster_size_bytes"], 1 << 20, "the same again");
    let refused = adit.ctl_fails(&["pool", "create", "p", "f0", "--cluster-size", "64KiB"]);
    assert!(
        refused.contains("AlreadyExists") && refused.contains("cluster_size_bytes"),
        "{refused}"
    );
    let refused = adit.ctl_fails(&["bdev", "delete", "f0"]);
    assert!(refused.contains("pool p"), "it says who uses it: {refused}");
    let list = adit.ctl_json(&["pool", "list"]).unwrap();
    assert_eq!(names(&list, "pools", &["spec", "name"]), ["p"]);
    assert!(adit.ctl(&["pool", "list"]).unwrap().contains("f0"));

    let before = adit.ctl_json(&["pool", "show", "p"]).unwrap();
    adit.ctl(&["bdev", "resize", "f0", "--size", "512MiB"])
        .unwrap();
    let grown = adit.ctl_json(&["pool", "grow", "p"]).unwrap();
    assert!(
        grown["size_bytes"].as_u64()
            >= before["size_bytes"].as_u64().map(|size| size + (200 << 20)),
        "{grown}"
    );
    let checked = adit.ctl_json(&["pool", "check", "p"]).unwrap();
    assert_eq!(checked["findings"].as_array().unwrap().len(), 0);
    let repaired = adit.ctl(&["pool", "repair", "p"]).unwrap();
    assert!(repaired.contains("nothing is wrong"), "{repaired}");
    adit.ctl(&["pool", "scrub", "p", "--rate", "100MiB"])
        .unwrap();
    assert_eq!(count(&adit, &["operation", "list", "p"], "operations"), 1);
    let refused = adit.ctl_fails(&["operation", "show", "p/2"]);
    assert!(refused.contains("NotFound"), "{refused}");

    adit.ctl(&["volume", "create", "p/v", "--size", "16MiB"])
        .unwrap();
    adit.ctl(&["pool", "export", "p"]).unwrap();
    assert_eq!(count(&adit, &["pool", "list"], "pools"), 0);
    let refused = adit.ctl_fails(&["pool", "create", "q", "f0"]);
    assert!(
        refused.contains("--force") || refused.contains("force"),
        "{refused}"
    );
    let refused = adit.ctl_fails(&["pool", "import", "f0", "--name", "q"]);
    assert!(refused.contains("\"p\""), "{refused}");
    adit.ctl(&["pool", "import", "f0"]).unwrap();
    adit.ctl(&["volume", "show", "p/v"]).unwrap();
    adit.ctl(&["pool", "delete", "p"]).unwrap();
    let refused = adit.ctl_fails(&["pool", "import", "f0"]);
    assert!(refused.contains("no pool"), "{refused}");
    adit.ctl(&["bdev", "delete", "f0"]).unwrap();
}

#[test]
fn volumes_and_snapshots_are_made_listed_changed_and_deleted() {
    let adit = with_pool();
    let made = adit
        .ctl_json(&["volume", "create", "p/v", "--size", "16MiB"])
        .unwrap();
    assert_eq!(made["size_bytes"], 16 << 20);
    let uuid = made["uuid"].clone();
    adit.ctl(&["volume", "create", "p/t", "--size", "8MiB", "--thick"])
        .unwrap();
    let refused = adit.ctl_fails(&["volume", "create", "p/v", "--size", "8MiB"]);
    assert!(refused.contains("AlreadyExists") && refused.contains("size_bytes"));
    let words = ["snapshot", "create", "p/v@one", "p/t@one"];
    let taken = adit.ctl_json(&words).unwrap();
    assert_eq!(
        names(&taken, "snapshots", &["name"]),
        ["p/v@one", "p/t@one"]
    );
    adit.ctl(&words).unwrap();
    adit.ctl(&["snapshot", "create", "p/v@two"]).unwrap();
    let list = adit.ctl_json(&["snapshot", "list", "p/v"]).unwrap();
    assert_eq!(names(&list, "snapshots", &["name"]), ["p/v@one", "p/v@two"]);
    assert_eq!(count(&adit, &["snapshot", "list"], "snapshots"), 3);
    adit.ctl(&["snapshot", "show", "p/v@one"]).unwrap();
    let clone = adit
        .ctl_json(&["volume", "clone", "p/v@one", "p/c"])
        .unwrap();
    assert_eq!(clone["parent"], "p/v@one");
    let list = adit.ctl_json(&["volume", "list", "p"]).unwrap();
    assert_eq!(names(&list, "volumes", &["name"]), ["p/c", "p/t", "p/v"]);
    let extents = adit
        .ctl_json(&["volume", "diff", "p/v@one", "p/v@two"])
        .unwrap();
    assert!(extents["extents"].is_array());

    adit.ctl(&["volume", "resize", "p/v", "--size", "32MiB"])
        .unwrap();
    let refused = adit.ctl_fails(&["volume", "resize", "p/v", "--size", "8MiB"]);
    assert!(refused.contains("allow_shrink"), "{refused}");
    let words = [
        "volume",
        "resize",
        "p/v",
        "--size",
        "8MiB",
        "--allow-shrink",
    ];
    assert_eq!(adit.ctl_json(&words).unwrap()["size_bytes"], 8 << 20);
    let renamed = adit.ctl_json(&["volume", "rename", "p/v", "p/w"]).unwrap();
    assert_eq!(renamed["uuid"], uuid, "its identity stays");
    // Its snapshots are named after it.
    adit.ctl(&["volume", "rollback", "p/c", "p/w@one"]).unwrap();
    let moved = adit.ctl_json(&["volume", "set-parent", "p/c", "p/t@one"]);
    assert_eq!(moved.unwrap()["parent"], "p/t@one");
    for words in [["volume", "decouple", "p/c"], ["volume", "inflate", "p/w"]] {
        adit.ctl(&[&words[..], &["--wait"]].concat()).unwrap();
    }
    adit.ctl(&["volume", "show", "p/w@two"]).unwrap();
    for name in ["p/w@one", "p/w@two", "p/t@one"] {
        adit.ctl(&["snapshot", "delete", name, "--wait"]).unwrap();
    }
    for name in ["p/c", "p/t", "p/w"] {
        adit.ctl(&["volume", "delete", name, "--wait"]).unwrap();
    }
    assert_eq!(count(&adit, &["volume", "list"], "volumes"), 0);
    for (words, part) in [
        (&["volume", "show", "p/none"][..], "NotFound"),
        (&["volume", "show", "q/none"], "NotFound"),
        (&["volume", "create", "none", "--size", "1MiB"], "POOL/NAME"),
        (&["snapshot", "create", "p/none"], "POOL/NAME@SNAP"),
        (&["operation", "show", "p"], "POOL/ID"),
    ] {
        let refused = adit.ctl_fails(words);
        assert!(refused.contains(part), "{words:?}: {refused}");
    }
}

#[test]
fn a_volume_is_shared_by_one_call_and_keeps_what_is_written() {
    let mut adit = with_pool();
    let port = free_port().unwrap();
    let address = format!("tcp://127.0.0.1:{port}");
    adit.ctl(&["volume", "create", "p/v", "--size", "16MiB"])
        .unwrap();
    let words = [
        "volume", "share", "p/v", "--listen", &address, "--nqn", NQN, "--host", HOSTNQN, "--wait",
    ];
    let revision = |adit: &Adit| adit.ctl_json(&["node", "show"]).unwrap()["revision"].clone();
    let before = revision(&adit).as_u64().unwrap();
    adit.ctl(&words).unwrap();
    assert_eq!(revision(&adit), before + 1, "one transaction");
    adit.ctl(&words).unwrap();
    assert_eq!(revision(&adit), before + 1, "the same again");
    for words in [
        &["volume", "delete", "p/v"][..],
        &["volume", "rename", "p/v", "p/w"],
        &["pool", "export", "p"],
        &["pool", "delete", "p"],
    ] {
        let refused = adit.ctl_fails(words);
        assert!(
            refused.contains(&format!("{NQN}/1")),
            "{words:?}: {refused}"
        );
    }
    let connect = || Host::connect(port, NQN, &HostOptions::default()).unwrap();
    let mut host = connect();
    let block = |byte: u8| vec![byte; 4096];
    // The pool has the block size of its device, 512.
    let blocks = 8;
    host.write(0, block(1)).unwrap();
    adit.ctl(&["snapshot", "create", "p/v@s"]).unwrap();
    host.write(0, block(2)).unwrap();
    host.flush().unwrap();
    adit.ctl(&["namespace", "resize", NQN, "1", "--size", "32MiB"])
        .unwrap();
    let shown = adit.ctl_json(&["volume", "show", "p/v"]).unwrap();
    assert_eq!(shown["size_bytes"], 32 << 20);
    assert_eq!(shown["claimed_by"][0], format!("{NQN}/1"));
    assert_eq!(
        adit.ctl_json(&["bdev", "stat", "p/v"]).unwrap()["bdevs"][0]["name"],
        "p/v"
    );
    drop(host);
    // A clean end and a bad one: the pool comes back and so does what was flushed.
    for clean in [true, false] {
        if clean {
            adit.terminate().unwrap();
        } else {
            adit.kill_9();
        }
        adit.start().unwrap();
        program_tests::until("the volume to be served again", || {
            let node = adit.ctl_json(&["node", "show"]).unwrap();
            (node["state"] == "NODE_STATE_SERVING").then_some(())
        });
        assert_eq!(connect().read(0, blocks).unwrap(), block(2));
    }
    adit.ctl(&["volume", "rollback", "p/v", "p/v@s"]).unwrap();
    assert_eq!(connect().read(0, blocks).unwrap(), block(1));
}

#[test]
fn what_runs_is_listed() {
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    host.read(0, 8).unwrap();
    for (words, key) in [
        (["reactor", "list"], "reactors"),
        (["thread", "list"], "threads"),
        (["poller", "list"], "threads"),
        (["channel", "list"], "threads"),
        (["poll-group", "list"], "poll_groups"),
    ] {
        assert!(count(&adit, &words, key) > 0, "{words:?}");
        assert!(
            !adit.ctl(&words).unwrap().is_empty(),
            "{words:?} as a table"
        );
    }
    let iobuf = adit.ctl_json(&["iobuf", "stat"]).unwrap();
    assert!(iobuf["small"]["count"].as_u64().unwrap() > 0);
    assert!(
        iobuf["modules"]
            .as_array()
            .is_some_and(|modules| !modules.is_empty())
    );
    let stat = adit.ctl_json(&["bdev", "stat", "m0"]).unwrap();
    let io = stat["bdevs"][0]["io"].as_array().unwrap();
    let read = io
        .iter()
        .find(|each| each["io_type"] == "IO_TYPE_READ")
        .unwrap();
    assert_eq!(read["num_ops"], 1);
    assert_eq!(read["bytes"], 4096);
    let node = adit.ctl_json(&["node", "show"]).unwrap();
    assert_eq!(node["state"], "NODE_STATE_SERVING");
    assert_eq!(node["objects"]["qpairs"], 2);
    adit.ctl(&["top", "--count", "1"]).unwrap();
}

#[test]
fn errors_say_what_is_wrong_and_what_would_be_right() {
    let adit = Adit::builder().start().unwrap();
    let says = |words: &[&str], parts: &[&str]| {
        let text = adit.ctl_fails(words);
        for part in parts {
            assert!(
                text.contains(part),
                "{words:?} does not say {part:?}: {text}"
            );
        }
    };
    says(&["bdev", "show", "nobody"], &["nobody", "NotFound"]);
    says(&["bdev", "delete", "nobody"], &["nobody", "NotFound"]);
    says(&["subsystem", "show", NQN], &[NQN, "NotFound"]);
    says(&["namespace", "add", NQN, "nobody"], &[NQN]);
    says(
        &["bdev", "create", "malloc", "m0", "--size", "1000"],
        &["size_bytes", "512"],
    );
    says(
        &[
            "bdev",
            "create",
            "malloc",
            "m0",
            "--size",
            "8MiB",
            "--block-size",
            "7",
        ],
        &["512", "4096"],
    );
    says(
        &["bdev", "create", "file", "f0", "not/absolute"],
        &["absolute"],
    );
    says(&["subsystem", "create", "no-nqn"], &["nqn"]);
    says(
        &["bdev", "create", "malloc", "m0", "--size", "lots"],
        &["lots"],
    );

    let create = ["bdev", "create", "malloc", "m0", "--size", "8MiB"];
    adit.ctl(&create).unwrap();
    let revision = adit.ctl_json(&["node", "show"]).unwrap()["revision"].clone();
    adit.ctl(&create).unwrap();
    let again = adit.ctl_json(&["node", "show"]).unwrap()["revision"].clone();
    assert_eq!(revision, again, "the same request twice is one object");
    let bigger = ["bdev", "create", "malloc", "m0", "--size", "16MiB"];
    says(
        &bigger,
        &["AlreadyExists", "size_bytes", "8388608", "16777216"],
    );
    says(
        &["bdev", "delete", "m0", "--expected-generation", "99"],
        &["Aborted", "99"],
    );

    let nowhere = Command::new(program("aditctl"))
        .args(["--server", "unix:/nonexistent/aditd.sock", "bdev", "list"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    let text = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(text.contains("is it running"), "{text}");
    let wrong = Command::new(program("aditctl"))
        .arg("dance")
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2), "wrong usage");
}

#[test]
fn a_document_is_applied_whole_and_twice_is_once() {
    let adit = Adit::builder().start().unwrap();
    let (port, other) = (free_port().unwrap(), free_port().unwrap());
    let disk = adit.state_dir().join("d.img").display().to_string();
    let file = adit.state_dir().join("node.toml");
    let name = file.display().to_string();
    let document = |port: u16| {
        format!(
            "[[bdevs]]\nname = \"disk\"\nfile = {{ path = \"{disk}\", size_bytes = \"8MiB\" }}\n\
             [[subsystems]]\nsubsystem = {{ nqn = \"{NQN}\", allow_any_host = true }}\n\
             namespaces = [{{ nsid = 1, bdev_name = \"disk\" }}]\n\
             listeners = [{{ address = \"tcp://127.0.0.1:{port}\" }}]\n"
        )
    };
    fs::write(&file, document(port)).unwrap();
    let dry = adit.ctl_json(&["apply", "-f", &name, "--dry-run"]).unwrap();
    assert!(dry["changes"].as_array().unwrap().len() >= 4);
    assert_eq!(
        count(&adit, &["bdev", "list"], "bdevs"),
        0,
        "a dry run changes nothing"
    );
    adit.ctl(&["apply", "-f", &name]).unwrap();
    let again = adit.ctl_json(&["apply", "-f", &name]).unwrap();
    assert_eq!(again["changes"].as_array().unwrap().len(), 0);
    let connect = |port| Host::connect(port, NQN, &HostOptions::default());
    connect(port).unwrap().write(3, vec![5; 512]).unwrap();

    // Another document: the listener moves, the disk and its data stay.
    fs::write(&file, document(other)).unwrap();
    adit.ctl(&["apply", "-f", &name]).unwrap();
    assert_eq!(connect(other).unwrap().read(3, 1).unwrap(), vec![5; 512]);
    assert!(connect(port).is_err(), "the old listener is gone");

    // One error in a document: nothing of it is done.
    let broken = document(port).replace("\"disk\" }", "\"absent\", nsidd = 1 }");
    fs::write(&file, broken).unwrap();
    assert!(adit.ctl_fails(&["apply", "-f", &name]).contains("nsidd"));
    let mut two = document(port);
    two.push_str("[[bdevs]]\nname = \"bad\"\nmalloc = { size_bytes = 1000 }\n");
    fs::write(&file, two).unwrap();
    assert!(
        adit.ctl_fails(&["apply", "-f", &name])
            .contains("size_bytes")
    );
    connect(other).unwrap();

    let exported = adit.ctl(&["export"]).unwrap();
    fs::write(adit.state_dir().join("e.json"), exported).unwrap();
    let name = adit.state_dir().join("e.json").display().to_string();
    let changes = adit.ctl_json(&["apply", "-f", &name]).unwrap();
    assert_eq!(
        changes["changes"].as_array().unwrap().len(),
        0,
        "an export is what is there"
    );
}

#[test]
fn watch_tells_of_changes_and_connections() {
    let adit = Adit::builder().start().unwrap();
    let server = format!("unix:{}", adit.socket().display());
    let aditctl = program("aditctl").display().to_string();
    let mut watch = KilledChild::spawn(&aditctl, |command| {
        command
            .args(["--server", &server, "watch", "-o", "json"])
            .stdout(Stdio::piped());
    })
    .unwrap();
    let (lines, events) = mpsc::channel();
    let stdout = watch.stdout().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).unwrap();
            if lines.send(event).is_err() {
                break;
            }
        }
    });
    let expect = |kind: &str, of: &str, name: &str| loop {
        let event = events.recv_timeout(patience(60));
        let event = event.unwrap_or_else(|_| panic!("no event {kind} {of} {name}"));
        let same_name = event["name"].as_str().unwrap().starts_with(name);
        if event["type"] == kind && event["kind"] == of && same_name {
            break;
        }
    };
    let first = events.recv_timeout(patience(60)).unwrap();
    assert_eq!(first["type"], "EVENT_TYPE_SYNCED");
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    expect("EVENT_TYPE_CREATED", "bdev", "m0");
    let port = adit.export(NQN, "m0").unwrap();
    expect("EVENT_TYPE_CREATED", "subsystem", NQN);
    expect("EVENT_TYPE_CREATED", "namespace", NQN);
    expect("EVENT_TYPE_CREATED", "listener", NQN);
    let host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    expect("EVENT_TYPE_CONNECTED", "controller", NQN);
    drop(host);
    expect("EVENT_TYPE_DISCONNECTED", "controller", NQN);
    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    expect("EVENT_TYPE_DELETED", "subsystem", NQN);
}

#[test]
fn completion_and_manual_pages_are_made_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(program("aditctl"))
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("aditctl"),
            "{shell}"
        );
    }
    let output = Command::new(program("aditctl"))
        .arg("man")
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let page = fs::read_to_string(folder.path().join("aditctl.1")).unwrap();
    assert!(page.contains(".TH"), "{page}");
    assert!(fs::exists(folder.path().join("aditctl-bdev.1")).unwrap());
}

#[test]
fn check_says_which_rung_fails() {
    let adit = Adit::builder().start().unwrap();
    let missing = adit.ctl(&["check", NQN]).unwrap_err().to_string();
    assert!(missing.contains("subsystem create"), "{missing}");
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    adit.export(NQN, "m0").unwrap();
    let ladder = adit.ctl_json(&["check", NQN]).unwrap();
    let rungs = names(&ladder, "rungs", &["rung"]);
    assert_eq!(
        rungs,
        [
            "node",
            "transport",
            "subsystem",
            "listener",
            "namespace",
            "host",
            "connection"
        ]
    );
    let rungs = ladder["rungs"].as_array().unwrap();
    assert!(rungs.iter().all(|rung| rung["ok"] == true), "{ladder}");
}

#[test]
fn perf_verifies_what_it_wrote_under_every_workload() {
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    let url = format!("tcp://127.0.0.1:{port}/{NQN}");
    for workload in ["randread", "randwrite", "read", "write", "randrw"] {
        let mut words = vec!["perf", &url, "--workload", workload, "--time", "100ms"];
        words.extend(["--io-size", "4KiB", "--queue-depth", "4", "--verify"]);
        words.extend(["--connections", "2", "--header-digest", "--data-digest"]);
        if workload == "randrw" {
            words.extend(["--read-percent", "70"]);
        }
        let report = adit.ctl_json(&words).unwrap();
        assert_eq!(report["errors"], 0, "{report}");
        assert!(report["total"]["ios"].as_u64().unwrap() > 0, "{report}");
        assert!(report["total"]["latency_ns"]["p99"].as_u64().unwrap() > 0);
        let is_reading = matches!(workload, "read" | "randread" | "randrw");
        assert_eq!(report["reads"]["ios"].as_u64().unwrap_or(0) > 0, is_reading);
    }
}

#[test]
fn perf_that_is_interrupted_reports_what_it_measured() {
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    let url = format!("tcp://127.0.0.1:{port}/{NQN}");
    let mut perf = Command::new(program("aditctl"))
        .args(["-o", "json", "perf", &url, "--workload", "randread"])
        .args(["--time", "60s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let grpc = adit.grpc();
    until("the workload to run", || {
        let request = ListBdevStatsRequest::default();
        let stats = grpc.wait(grpc.bdevs().list_bdev_stats(request)).unwrap();
        let ops: u64 = stats.bdevs[0].io.iter().map(|io| io.num_ops).sum();
        (ops > 100).then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(perf.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut report = String::new();
    perf.stdout
        .take()
        .unwrap()
        .read_to_string(&mut report)
        .unwrap();
    assert!(perf.wait().unwrap().success());
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(report["total"]["ios"].as_u64().unwrap() > 100, "{report}");
}
