//! Many connections, many objects, many commands, and nothing to do at all. Method: counts of
//! connections and memory before and after; hosts with verified I/O beside it; CPU time as the
//! kernel counts it.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::time::{Duration, Instant};

use api::v1::{
    Address, BdevSpec, CreateBdevRequest, CreateListenerRequest, CreateNamespaceRequest,
    CreateSubsystemRequest, DeleteBdevRequest, DeleteSubsystemRequest, GetNodeRequest,
    GetTransportRequest, ListReactorsRequest, ListenerSpec, NamespaceSpec, NullBdev, SubsystemSpec,
    bdev_spec::Kind,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use program_tests::{
    Adit, Grpc, Host, HostOptions, Load, LoadOptions, cpu_time, free_port, resident_bytes,
    thread_cpu_time, until,
};

const NQN: &str = "nqn.2026-11.io.adit.test:scale";
const MIB: u64 = 1 << 20;

/// An `aditd` with a RAM disk at a port.
fn served(reactors: &str, size: &str) -> (Adit, u16) {
    let adit = Adit::builder().reactors(reactors).start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "m0", "--size", size])
        .unwrap();
    let port = adit.export(NQN, "m0").unwrap();
    (adit, port)
}

fn options(number: u32) -> HostOptions {
    HostOptions {
        number,
        ..HostOptions::default()
    }
}

fn connections(grpc: &Grpc) -> u32 {
    let request = GetTransportRequest {
        trtype: "tcp".to_owned(),
    };
    let transport = grpc.wait(grpc.transports().get_transport(request)).unwrap();
    transport.connections
}

fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Goal: 1,000 connections come up, all of them work, and all go. 500 hosts have two each.
#[test]
fn a_thousand_connections_go_up_and_down() {
    raise_file_limit();
    let (adit, port) = served("0x1", "8MiB");
    let grpc = adit.grpc();
    let start = Instant::now();
    let used = cpu_time(adit.pid()).unwrap();
    let mut hosts: Vec<Host> = Vec::new();
    for number in 1..=500 {
        hosts.push(Host::connect(port, NQN, &options(number)).unwrap());
        if number % 100 == 0 {
            let (elapsed, used) = (start.elapsed(), cpu_time(adit.pid()).unwrap() - used);
            println!("{number} hosts connected in {elapsed:?}, {used:?} of aditd's CPU time");
        }
    }
    assert_eq!(connections(&grpc), 1000);
    let node = grpc.wait(grpc.node().get_node(GetNodeRequest {})).unwrap();
    assert_eq!(node.objects.unwrap().qpairs, 1000);
    for (host, lba) in hosts.iter_mut().zip(0..) {
        host.write(lba, vec![lba as u8; 512]).unwrap();
    }
    for (host, lba) in hosts.iter_mut().zip(0..) {
        assert_eq!(host.read(lba, 1).unwrap(), vec![lba as u8; 512]);
        host.probe().unwrap();
    }
    drop(hosts);
    until("every connection to be gone", || {
        (connections(&grpc) == 0).then_some(())
    });
}

/// Goal: memory does not grow with connections that have been.
#[test]
fn memory_does_not_grow_over_connects_and_disconnects() {
    let (adit, port) = served("0x1", "8MiB");
    let grpc = adit.grpc();
    let round = || {
        let hosts: Vec<Host> = (1..=50)
            .map(|number| Host::connect(port, NQN, &options(number)).unwrap())
            .collect();
        for mut host in hosts {
            host.read(0, 8).unwrap();
        }
        until("every connection to be gone", || {
            (connections(&grpc) == 0).then_some(())
        });
    };
    (0..10).for_each(|_| round());
    let before = resident_bytes(adit.pid()).unwrap();
    (0..30).for_each(|_| round());
    let after = resident_bytes(adit.pid()).unwrap();
    println!(
        "resident: {} KiB, after 1,500 hosts more {} KiB",
        before / 1024,
        after / 1024
    );
    assert!(after < before + 4 * MIB, "{before} bytes became {after}");
}

/// Goal: memory does not grow over a million commands, all of them verified.
#[test]
fn memory_does_not_grow_over_a_million_commands() {
    let (adit, port) = served("0x1", "8MiB");
    let load = |number: u32| {
        let start = u64::from(number) * 4096;
        let load = LoadOptions {
            blocks_max: 8,
            queue_depth: 32,
            seed: u64::from(number),
            flush_every: 100,
            ..LoadOptions::new(start..start + 4096)
        };
        Load::start(port, NQN, &options(number), load)
    };
    let loads = [load(0), load(1)];
    let done = || loads.iter().map(Load::completed).sum::<u64>();
    let reach = |goal: u64| {
        // The wait of `until` is a minute: it is given again for each step.
        while done() < goal {
            let step = done() + 10_000;
            until("the load to go on", || {
                assert!(!loads.iter().any(Load::has_ended), "a load has ended");
                (done() >= step).then_some(())
            });
        }
    };
    reach(100_000);
    let before = resident_bytes(adit.pid()).unwrap();
    let start = Instant::now();
    reach(1_100_000);
    let after = resident_bytes(adit.pid()).unwrap();
    println!(
        "a million commands in {:?}; resident: {} KiB, then {} KiB",
        start.elapsed(),
        before / 1024,
        after / 1024
    );
    for load in loads {
        let report = load.stop();
        assert!(report.error.is_none(), "{:?}", report.error);
    }
    assert!(after < before + 8 * MIB, "{before} bytes became {after}");
}

const CLIENTS: u32 = 16;
const SUBSYSTEMS: u32 = 1000;

fn create(grpc: &Grpc, number: u32, port: u16) {
    let (name, nqn) = (format!("n{number}"), format!("{NQN}-{number}"));
    let bdev = BdevSpec {
        name: name.clone(),
        kind: Some(Kind::Null(NullBdev {
            size_bytes: 1 << 30,
            block_size: None,
        })),
        ..BdevSpec::default()
    };
    let request = CreateBdevRequest { bdev: Some(bdev) };
    grpc.wait(grpc.bdevs().create_bdev(request)).unwrap();
    let subsystem = SubsystemSpec {
        nqn: nqn.clone(),
        allow_any_host: Some(true),
        ..SubsystemSpec::default()
    };
    let request = CreateSubsystemRequest {
        subsystem: Some(subsystem),
    };
    grpc.wait(grpc.subsystems().create_subsystem(request))
        .unwrap();
    let namespace = NamespaceSpec {
        bdev_name: name,
        ..NamespaceSpec::default()
    };
    let request = CreateNamespaceRequest {
        nqn: nqn.clone(),
        namespace: Some(namespace),
    };
    grpc.wait(grpc.namespaces().create_namespace(request))
        .unwrap();
    let address = Address {
        trtype: "tcp".to_owned(),
        traddr: "127.0.0.1".to_owned(),
        trsvcid: port.to_string(),
        ..Address::default()
    };
    let listener = ListenerSpec {
        address: Some(address),
        ..ListenerSpec::default()
    };
    let request = CreateListenerRequest {
        nqn,
        listener: Some(listener),
    };
    grpc.wait(grpc.listeners().create_listener(request))
        .unwrap();
}

fn delete(grpc: &Grpc, number: u32) {
    let request = DeleteSubsystemRequest {
        nqn: format!("{NQN}-{number}"),
        ..DeleteSubsystemRequest::default()
    };
    grpc.wait(grpc.subsystems().delete_subsystem(request))
        .unwrap();
    let request = DeleteBdevRequest {
        name: format!("n{number}"),
        ..DeleteBdevRequest::default()
    };
    grpc.wait(grpc.bdevs().delete_bdev(request)).unwrap();
}

/// Goal: 16 clients create and delete 1,000 subsystems with a namespace and a listener each, and no
/// host that does I/O meanwhile notices. A half of the listeners is at the hosts' own address.
#[test]
fn a_thousand_subsystems_come_and_go_and_no_host_notices() {
    let (adit, port) = served("2", "8MiB");
    let loads: Vec<Load> = (0..3)
        .map(|number: u32| {
            let start = u64::from(number) * 4096;
            let seed = u64::from(number);
            let load = LoadOptions {
                seed,
                queue_depth: 2,
                rest: Duration::from_millis(1),
                ..LoadOptions::new(start..start + 4096)
            };
            Load::start(port, NQN, &options(number + 1), load)
        })
        .collect();
    let mut times = Vec::new();
    let clients: Vec<(u32, Grpc, u16)> = (0..CLIENTS)
        .map(|client| {
            let port = if client % 2 == 0 {
                port
            } else {
                free_port().unwrap()
            };
            (client, adit.grpc(), port)
        })
        .collect();
    for is_creating in [true, false] {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (client, grpc, port) in &clients {
                scope.spawn(move || {
                    for number in (*client..SUBSYSTEMS).step_by(CLIENTS as usize) {
                        if is_creating {
                            create(grpc, number, *port);
                        } else {
                            delete(grpc, number);
                        }
                    }
                });
            }
        });
        times.push(start.elapsed());
        if is_creating {
            let grpc = adit.grpc();
            let node = grpc.wait(grpc.node().get_node(GetNodeRequest {})).unwrap();
            let objects = node.objects.unwrap();
            assert_eq!(objects.namespaces, SUBSYSTEMS + 1);
            assert_eq!(objects.listeners, SUBSYSTEMS + 1);
            let resident = resident_bytes(adit.pid()).unwrap();
            println!("resident with 1,000 subsystems: {} KiB", resident / 1024);
            // A new host finds its way.
            let nqn = format!("{NQN}-{}", SUBSYSTEMS - 1);
            let port = clients[(SUBSYSTEMS as usize - 1) % CLIENTS as usize].2;
            Host::connect(port, &nqn, &options(99))
                .unwrap()
                .read(0, 1)
                .unwrap();
        }
    }
    let (created, deleted) = (times[0], times[1]);
    println!("1,000 subsystems: created in {created:?}, deleted in {deleted:?}, 16 clients");
    let log = adit.log();
    let warnings = log.lines().filter(|line| line.contains("WARN"));
    warnings.for_each(|line| println!("{line}"));
    assert!(!log.contains("not in force everywhere"), "{log}");
    for load in loads {
        load.progress(100);
        let report = load.stop();
        assert!(report.error.is_none(), "a host noticed: {:?}", report.error);
        let (completed, gap) = (report.completed, report.longest_gap);
        println!("a host beside it: {completed} commands, longest gap {gap:?}");
        assert!(
            gap < program_tests::patience(5),
            "a host stood still for {gap:?}"
        );
    }
}

/// Goal: two reactors with a listener and 100 connected idle hosts use under 1 % of a core each.
#[test]
fn an_idle_node_sleeps() {
    const SPAN: Duration = Duration::from_secs(5);
    let (adit, port) = served("2", "8MiB");
    let mut hosts: Vec<Host> = (1..=100)
        .map(|number| {
            let options = HostOptions {
                kato_ms: 60_000,
                ..options(number)
            };
            Host::connect(port, NQN, &options).unwrap()
        })
        .collect();
    for host in &mut hosts {
        host.read(0, 8).unwrap();
    }
    let grpc = adit.grpc();
    let reactors = || {
        let request = ListReactorsRequest {};
        grpc.wait(grpc.reactors().list_reactors(request))
            .unwrap()
            .reactors
    };
    until("the reactors to sleep", || {
        reactors()
            .iter()
            .all(|reactor| reactor.in_interrupt)
            .then_some(())
    });
    let tids: Vec<u32> = reactors().iter().map(|reactor| reactor.tid).collect();
    assert_eq!(tids.len(), 2);
    let used = || -> Vec<Duration> {
        let used = |tid: &u32| thread_cpu_time(adit.pid(), *tid).unwrap();
        tids.iter().map(used).collect()
    };
    let (start, before) = (Instant::now(), used());
    std::thread::sleep(SPAN);
    let (span, after) = (start.elapsed(), used());
    for ((tid, before), after) in tids.iter().zip(before).zip(after) {
        let percent = (after - before).as_secs_f64() * 100.0 / span.as_secs_f64();
        println!("reactor {tid}: {percent:.3} % of a core, idle with 100 hosts");
        assert!(percent < 3.0, "reactor {tid} used {percent:.2} %");
    }
    for host in &mut hosts {
        host.read(0, 8).unwrap();
    }
}
