//! What was acknowledged is there after `kill -9`: management calls, and data that a flush covered.
//! Method: a stream of calls or of checked writes, killed at random points, twenty times, on one
//! state directory.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

use api::v1::{
    BdevSpec, CreateBdevRequest, CreateNamespaceRequest, CreateSubsystemRequest, DeleteBdevRequest,
    DeleteSubsystemRequest, ListBdevsRequest, ListSubsystemsRequest, MallocBdev, NamespaceSpec,
    SubsystemSpec, bdev_spec::Kind,
};
use program_tests::{
    Adit, Dice, Grpc, Host, HostOptions, Ledger, Load, LoadOptions, free_port, until,
};
use tonic::Status;

const NQN: &str = "nqn.2026-11.io.adit.test:durable";
const ROUNDS: u64 = 20;
const CALLERS: u64 = 4;

/// What one call asked for and how it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    There,
    Absent,
    /// The call was not answered: either may be.
    Unknown,
}

/// Objects by name.
type Objects = BTreeMap<String, State>;

fn after(answer: Result<(), Status>, state: State) -> State {
    match answer {
        Ok(()) => state,
        Err(status) if Grpc::is_broken(&status) => State::Unknown,
        Err(status) => panic!("{status}"),
    }
}

fn ram_disk(name: &str) -> BdevSpec {
    BdevSpec {
        name: name.to_owned(),
        kind: Some(Kind::Malloc(MallocBdev {
            size_bytes: 1 << 20,
            block_size: None,
        })),
        ..BdevSpec::default()
    }
}

/// One thing done: a device made, a subsystem with a namespace made, or one of them deleted.
fn call(grpc: &Grpc, number: u64, dice: &mut Dice, objects: &mut Objects) {
    let bdev = format!("b{number}");
    let bdev_state = objects.get(&bdev).copied().unwrap_or(State::Absent);
    let nqn = format!("{NQN}{number}");
    let subsystem_state = objects.get(&nqn).copied().unwrap_or(State::Absent);
    if bdev_state != State::There {
        let bdev = ram_disk(&bdev);
        let name = bdev.name.clone();
        let answer = grpc.wait(
            grpc.bdevs()
                .create_bdev(CreateBdevRequest { bdev: Some(bdev) }),
        );
        objects.insert(name, after(answer.map(drop), State::There));
    } else if subsystem_state != State::There {
        let subsystem = SubsystemSpec {
            nqn: nqn.clone(),
            ..SubsystemSpec::default()
        };
        let request = CreateSubsystemRequest {
            subsystem: Some(subsystem),
        };
        let answer = grpc.wait(grpc.subsystems().create_subsystem(request));
        let state = after(answer.map(drop), State::There);
        objects.insert(nqn.clone(), state);
        if state == State::There {
            let namespace = NamespaceSpec {
                nsid: 1,
                bdev_name: bdev,
                ..NamespaceSpec::default()
            };
            let request = CreateNamespaceRequest {
                nqn: nqn.clone(),
                namespace: Some(namespace),
            };
            let answer = grpc.wait(grpc.namespaces().create_namespace(request));
            objects.insert(format!("{nqn}/1"), after(answer.map(drop), State::There));
        }
    } else if dice.below(2) == 0 {
        let request = DeleteSubsystemRequest {
            nqn: nqn.clone(),
            allow_missing: true,
            ..DeleteSubsystemRequest::default()
        };
        let answer = grpc.wait(grpc.subsystems().delete_subsystem(request));
        let state = after(answer.map(drop), State::Absent);
        let namespace = format!("{nqn}/1");
        // With a subsystem goes what is in it.
        let old = objects.insert(namespace.clone(), state);
        if old == Some(State::Absent) {
            objects.insert(namespace, State::Absent);
        }
        objects.insert(nqn, state);
    }
}

fn found(grpc: &Grpc) -> Vec<String> {
    let mut names = Vec::new();
    let request = ListBdevsRequest {
        page_size: 1000,
        ..ListBdevsRequest::default()
    };
    let bdevs = grpc.wait(grpc.bdevs().list_bdevs(request)).unwrap();
    assert!(bdevs.next_page_token.is_empty());
    names.extend(bdevs.bdevs.into_iter().map(|bdev| bdev.spec.unwrap().name));
    let request = ListSubsystemsRequest {
        page_size: 1000,
        ..ListSubsystemsRequest::default()
    };
    let answer = grpc
        .wait(grpc.subsystems().list_subsystems(request))
        .unwrap();
    assert!(answer.next_page_token.is_empty());
    for subsystem in answer.subsystems {
        let nqn = subsystem.spec.unwrap().nqn;
        for namespace in subsystem.namespaces {
            let spec = namespace.spec.unwrap();
            assert!(!spec.bdev_name.is_empty(), "a namespace is there whole");
            names.push(format!("{nqn}/{}", spec.nsid));
        }
        names.push(nqn);
    }
    names.retain(|name| !name.contains("discovery"));
    names
}

/// Goal: an acknowledged call is there after a crash, one without an answer wholly there or absent.
#[test]
fn acknowledged_calls_survive_kill_9() {
    let mut adit = Adit::builder().start().unwrap();
    let mut dice = Dice::new(7);
    let mut known: Vec<Objects> = vec![Objects::new(); CALLERS as usize];
    let mut calls_in_all = 0;
    for round in 0..ROUNDS {
        let calls = AtomicU64::new(0);
        let goal = 5 + dice.below(120);
        let grpcs: Vec<Grpc> = (0..CALLERS).map(|_| adit.grpc()).collect();
        std::thread::scope(|scope| {
            for (caller, (objects, grpc)) in known.iter_mut().zip(grpcs).enumerate() {
                let calls = &calls;
                scope.spawn(move || {
                    let mut dice = Dice::new(round * CALLERS + caller as u64 + 1);
                    // Until a call is not answered: then it was killed.
                    while !objects.values().any(|state| *state == State::Unknown) {
                        let number = caller as u64 * 100 + dice.below(20);
                        call(&grpc, number, &mut dice, objects);
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            until("calls to be made", || {
                (calls.load(Ordering::Relaxed) >= goal).then_some(())
            });
            adit.kill_9();
        });
        calls_in_all += calls.load(Ordering::Relaxed);
        adit.start().unwrap();
        let there = found(&adit.grpc());
        for objects in &mut known {
            for (name, state) in objects.iter_mut() {
                let is_there = there.contains(name);
                match state {
                    State::There => assert!(is_there, "round {round}: {name} was lost"),
                    State::Absent => assert!(!is_there, "round {round}: {name} came back"),
                    State::Unknown if is_there => *state = State::There,
                    State::Unknown => *state = State::Absent,
                }
            }
        }
        for name in &there {
            let is_known = known.iter().any(|objects| objects.contains_key(name));
            assert!(is_known, "round {round}: nobody asked for {name}");
        }
    }
    println!("{calls_in_all} calls, {ROUNDS} kills");
    // What is there can be worked with.
    let grpc = adit.grpc();
    for name in found(&grpc) {
        if name.starts_with("nqn") && !name.ends_with("/1") {
            let request = DeleteSubsystemRequest {
                nqn: name,
                ..DeleteSubsystemRequest::default()
            };
            grpc.wait(grpc.subsystems().delete_subsystem(request))
                .unwrap();
        }
    }
    for name in found(&grpc) {
        let request = DeleteBdevRequest {
            name,
            ..DeleteBdevRequest::default()
        };
        grpc.wait(grpc.bdevs().delete_bdev(request)).unwrap();
    }
}

/// Goal: promises 1 and 2 of a file device: what a flush or FUA covered is there after a crash, and
/// every other block is old or new. Method: two hosts, one with digests, write, flush and verify.
#[test]
fn flushed_data_survives_kill_9_and_other_blocks_are_old_or_new() {
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "16MiB"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    let ranges = [0..8192, 8192..16_384];
    let mut ledgers = ranges.clone().map(|range| Ledger::new(&range));
    let mut dice = Dice::new(3);
    let options = |number: u32| HostOptions {
        number,
        header_digest: number == 1,
        data_digest: number == 1,
        ..HostOptions::default()
    };
    for round in 0..ROUNDS {
        let loads: Vec<Load> = ledgers
            .iter()
            .zip(&ranges)
            .zip(1..)
            .map(|((ledger, range), number)| {
                let load = LoadOptions {
                    read_percent: 30,
                    flush_every: 40,
                    fua_every: 16,
                    seed: round * 2 + u64::from(number),
                    ..LoadOptions::new(range.clone())
                };
                Load::resume(port, NQN, &options(number), load, ledger.clone())
            })
            .collect();
        let goal = 50 + dice.below(1500);
        for load in &loads {
            load.progress(goal);
        }
        adit.kill_9();
        for (load, ledger) in loads.into_iter().zip(&mut ledgers) {
            *ledger = load.wait().ledger;
        }
        adit.start().unwrap();
        for (ledger, number) in ledgers.iter_mut().zip(1..) {
            let mut host = Host::connect(port, NQN, &options(number)).unwrap();
            ledger.check_after_crash(&mut host).unwrap();
        }
    }
}

/// Goal: a restart is a restore. Method: everything that can be made, a clean stop and a kill, and
/// the same document after each; a host connects without a word from anybody.
#[test]
fn a_restart_restores_everything() {
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img").display().to_string();
    adit.ctl(&["transport", "create", "tcp", "--max-queue-depth", "64"])
        .unwrap();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "8MiB"])
        .unwrap();
    adit.ctl(&["bdev", "create", "malloc", "ram", "--size", "8MiB"])
        .unwrap();
    adit.ctl(&[
        "bdev",
        "create",
        "error",
        "bad",
        "ram",
        "--rule",
        "io=read,sc=0x81",
    ])
    .unwrap();
    adit.ctl(&["bdev", "qos", "disk", "--iops", "100000"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    adit.ctl(&["namespace", "add", NQN, "bad", "--nsid", "7"])
        .unwrap();
    adit.ctl(&["host", "add", NQN, "nqn.2026-11.io.adit.test:host9"])
        .unwrap();
    let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    host.write(5, vec![0x5a; 512]).unwrap();
    host.flush().unwrap();
    let before = adit.ctl(&["export"]).unwrap();
    let node = adit.ctl_json(&["node", "show"]).unwrap();
    for how in ["SIGTERM", "SIGKILL"] {
        if how == "SIGTERM" {
            adit.terminate().unwrap();
        } else {
            adit.kill_9();
        }
        adit.start().unwrap();
        assert_eq!(adit.ctl(&["export"]).unwrap(), before, "after {how}");
        let again = adit.ctl_json(&["node", "show"]).unwrap();
        assert_eq!(again["node_id"], node["node_id"], "after {how}");
        assert_eq!(again["revision"], node["revision"], "after {how}");
        let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
        assert_eq!(host.read(5, 1).unwrap(), vec![0x5a; 512], "after {how}");
    }
}

/// Goal: a reservation with persistence on holds from the first command after a restart, and is shown.
#[test]
fn a_reservation_that_persists_survives_kill_9() {
    use nvme_spec::reservation::{ReservationType, acquire, cptpl, register};
    use nvme_spec::{Cid, Nsid, Sqe, Status};
    use program_tests::{HostError, Request};

    let mut adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "ram", "--size", "1MiB"])
        .unwrap();
    let port = adit.export(NQN, "ram").unwrap();
    let connect = |number| {
        let options = HostOptions {
            number,
            ..HostOptions::default()
        };
        until("a host", || Host::connect(port, NQN, &options).ok())
    };
    let (cid, nsid) = (Cid(0), Nsid(1));
    let keys = |first: u64, second: u64| [first.to_le_bytes(), second.to_le_bytes()].concat();
    let rtype = ReservationType::ExclusiveAccess;
    let mut holder = connect(1);
    for (sqe, data) in [
        (
            Sqe::reservation_register(cid, nsid, register::REGISTER, true, cptpl::SET),
            keys(0, 7),
        ),
        (
            Sqe::reservation_acquire(cid, nsid, acquire::ACQUIRE, rtype as u8),
            keys(7, 0),
        ),
    ] {
        holder.run(Request::Send { sqe, data }).unwrap();
    }
    let is_fenced = |host: &mut Host| match host.read(0, 1) {
        Err(HostError::Status { status, .. }) => status.is(Status::RESERVATION_CONFLICT),
        Err(error) => panic!("{error}"),
        Ok(_) => false,
    };
    assert!(is_fenced(&mut connect(2)));
    for _ in 0..2 {
        adit.kill_9();
        adit.start().unwrap();
        // From the first command on, though the holder has not come back.
        assert!(is_fenced(&mut connect(2)));
        let mut holder = connect(1);
        assert!(!is_fenced(&mut holder));
        let shown = adit.ctl_json(&["namespace", "show", NQN, "1"]).unwrap();
        let reservation = &shown["reservation"];
        assert_eq!(reservation["type"], "RESERVATION_TYPE_EXCLUSIVE_ACCESS");
        assert_eq!(reservation["persists_through_power_loss"], true);
        let registrants = reservation["registrants"].as_array().unwrap();
        assert_eq!(registrants.len(), 1, "{shown}");
        assert_eq!(registrants[0]["key"], "0000000000000007");
        assert_eq!(registrants[0]["holder"], true);
        let nqns = registrants[0]["host_nqns"].as_array().unwrap();
        assert_eq!(nqns.len(), 1, "the host is connected: {shown}");
        let text = adit.ctl(&["namespace", "show", NQN, "1"]).unwrap();
        for word in [
            "exclusive",
            "stays over a restart",
            "0000000000000007",
            "yes",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    // What the holder clears is gone, and stays so.
    let sqe = Sqe::reservation_release(cid, nsid, nvme_spec::reservation::release::CLEAR, 0);
    let data = 7_u64.to_le_bytes().to_vec();
    connect(1).run(Request::Send { sqe, data }).unwrap();
    adit.kill_9();
    adit.start().unwrap();
    assert!(!is_fenced(&mut connect(2)));
    let shown = adit.ctl_json(&["namespace", "show", NQN, "1"]).unwrap();
    assert!(shown["reservation"].is_null(), "{shown}");
}

/// Goal: what cannot be restored is pending, shown, and comes up by itself. Method: while `aditd` is
/// down its file is moved away and its port taken.
#[test]
fn what_is_missing_is_pending_and_comes_up_when_it_appears() {
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img");
    let aside = adit.state_dir().join("aside.img");
    let name = path.display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &name, "--size", "8MiB"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    host.write(1, vec![0x77; 512]).unwrap();
    host.flush().unwrap();
    adit.terminate().unwrap();
    drop(host);
    fs::rename(&path, &aside).unwrap();
    // The target's own port lingers no longer than a moment after it has ended.
    let taken = until("the port", || TcpListener::bind(("127.0.0.1", port)).ok());

    adit.start().unwrap();
    let node = adit.ctl_json(&["node", "show"]).unwrap();
    assert_eq!(node["state"], "NODE_STATE_DEGRADED");
    let pending: Vec<&str> = node["pending_objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    for kind in ["bdev", "namespace", "listener"] {
        assert!(pending.contains(&kind), "{pending:?}");
    }
    let shown = adit.ctl_json(&["bdev", "show", "disk"]).unwrap();
    assert_eq!(shown["status"]["state"], "OBJECT_STATE_PENDING");
    let reason = shown["status"]["reason"].as_str().unwrap();
    assert!(reason.contains("disk.img"), "{reason}");
    assert!(
        !fs::exists(&path).unwrap(),
        "an empty file in its place would hide the loss"
    );

    drop(taken);
    fs::rename(&aside, &path).unwrap();
    until("everything to be in place", || {
        let node = adit.ctl_json(&["node", "show"]).unwrap();
        (node["state"] == "NODE_STATE_SERVING").then_some(())
    });
    let mut host = Host::connect(port, NQN, &HostOptions::default()).unwrap();
    assert_eq!(host.read(1, 1).unwrap(), vec![0x77; 512]);
}

/// Goal: a listener whose address this machine does not have is kept and shown as pending.
#[test]
fn an_address_that_is_not_here_is_pending() {
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["subsystem", "create", NQN, "--allow-any-host"])
        .unwrap();
    // TEST-NET-1 of RFC 5737: nobody has it.
    let address = format!("tcp://192.0.2.1:{}", free_port().unwrap());
    let made = adit.ctl_json(&["listener", "add", NQN, &address]).unwrap();
    assert_eq!(made["status"]["state"], "OBJECT_STATE_PENDING");
    let refused = adit.ctl_fails(&["listener", "add", NQN, &address, "--wait=1s"]);
    assert!(refused.contains("pending"), "{refused}");
    adit.ctl(&["listener", "remove", NQN, &address]).unwrap();
    let node = adit.ctl_json(&["node", "show"]).unwrap();
    assert_eq!(node["state"], "NODE_STATE_SERVING");
}
