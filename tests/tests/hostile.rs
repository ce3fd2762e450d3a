//! A hostile, slow or dead peer costs only itself. Method: each kind of peer does its worst while a
//! well-behaved host reads and writes with verification; afterwards that host has lost nothing,
//! `aditd` lives, every buffer is back and no connection is left.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::time::Duration;

use fabric_wire::Nqn;
use fabric_wire::tcp::{self, FES_HEADER_DIGEST_ERROR, FES_SEQUENCE_ERROR, Pdu};
use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe};
use program_tests::{
    Adit, BLOCK_BYTES, Dice, Grpc, Host, HostOptions, Load, LoadOptions, Peer, QueueOptions, until,
};

const NQN: &str = "nqn.2026-11.io.adit.test:hostile";
/// Blocks that the well-behaved host has for itself.
const ITS_BLOCKS: std::ops::Range<u64> = 0..4096;
/// A block that nobody verifies.
const FREE_BLOCK: u64 = 8000;

/// An `aditd` with a well-behaved host at work.
struct Scene {
    adit: Adit,
    port: u16,
    grpc: Grpc,
    load: Option<Load>,
    admins: Vec<Peer>,
    buffers: (u64, u64),
}

/// Buffers that nobody uses: small and large.
fn free_buffers(grpc: &Grpc) -> (u64, u64) {
    let request = api::v1::GetIobufRequest {};
    let iobuf = grpc.wait(grpc.reactors().get_iobuf(request)).unwrap();
    let free = |pool: Option<api::v1::IobufPool>| {
        let pool = pool.unwrap();
        pool.free + pool.cached
    };
    (free(iobuf.small), free(iobuf.large))
}

fn connections(grpc: &Grpc) -> u32 {
    let request = api::v1::GetTransportRequest {
        trtype: "tcp".to_owned(),
    };
    let transport = grpc.wait(grpc.transports().get_transport(request)).unwrap();
    transport.connections
}

impl Scene {
    /// With options of the transport, as `aditctl transport create tcp` takes them.
    fn set(options: &[&str]) -> Self {
        let adit = Adit::builder().start().unwrap();
        adit.ctl(&[&["transport", "create", "tcp"], options].concat())
            .unwrap();
        adit.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"])
            .unwrap();
        let port = adit.export(NQN, "m0").unwrap();
        let grpc = adit.grpc();
        // The first connection has the pools carved, so it is not counted.
        Host::connect(port, NQN, &HostOptions::default())
            .unwrap()
            .read(0, 256)
            .unwrap();
        until("the first host to be gone", || {
            (connections(&grpc) == 0).then_some(())
        });
        let buffers = free_buffers(&grpc);
        let load = LoadOptions::new(ITS_BLOCKS);
        let load = Load::start(port, NQN, &HostOptions::default(), load);
        load.progress(1);
        let load = Some(load);
        Self {
            adit,
            port,
            grpc,
            load,
            admins: Vec::new(),
            buffers,
        }
    }

    /// The well-behaved host gets on.
    #[track_caller]
    fn goes_on(&self) {
        self.load.as_ref().unwrap().progress(200);
    }

    fn peer(&self) -> Peer {
        Peer::connect(self.port).unwrap()
    }

    /// A peer that has exchanged ICReq and ICResp.
    fn initialized(&self, header_digest: bool, data_digest: bool) -> Peer {
        let mut peer = self.peer();
        peer.initialize(header_digest, data_digest).unwrap();
        peer
    }

    /// An I/O queue whose controller stays until the end of the scene.
    fn io_queue(&mut self, header_digest: bool, data_digest: bool) -> Peer {
        let (admin, io) = self.queues(header_digest, data_digest);
        self.admins.push(admin);
        io
    }

    /// An admin queue and an I/O queue of a controller.
    fn queues(&self, header_digest: bool, data_digest: bool) -> (Peer, Peer) {
        let (subnqn, hostnqn) = (Nqn::new(NQN).unwrap(), Nqn::new(HOSTNQN).unwrap());
        let mut queue = QueueOptions {
            qid: 0,
            sqsize: 31,
            cntlid: 0xffff,
            kato_ms: 0,
            hostid: [9; 16],
            subnqn: &subnqn,
            hostnqn: &hostnqn,
        };
        let mut admin = self.initialized(header_digest, data_digest);
        let connect = admin.connect_capsule(&queue);
        admin.send(&connect).unwrap();
        let Pdu::CapsuleResp { cqe } = admin.pdu().unwrap().0 else {
            panic!("no response to connect");
        };
        assert!(cqe.status().is_success(), "{}", cqe.status());
        queue.cntlid = cqe.result() as u16;
        let enable = fabric_wire::fabrics::PropertySet {
            size: fabric_wire::fabrics::PropertySize::Four,
            offset: nvme_spec::registers::CC,
            value: 4 << 20 | 6 << 16 | 1,
        };
        let capsule = admin.capsule(&enable.to_sqe(Cid(1)), &[]);
        admin.send(&capsule).unwrap();
        admin.pdu().unwrap();
        queue.qid = 1;
        let mut io = self.initialized(header_digest, data_digest);
        let connect = io.connect_capsule(&queue);
        io.send(&connect).unwrap();
        let Pdu::CapsuleResp { cqe } = io.pdu().unwrap().0 else {
            panic!("no response to connect");
        };
        assert!(cqe.status().is_success(), "{}", cqe.status());
        (admin, io)
    }

    /// Everything is as it was before the hostile peers came, and the host has noticed nothing.
    #[track_caller]
    fn end(mut self) {
        self.admins.clear();
        self.goes_on();
        let report = self.load.take().unwrap().stop();
        assert!(
            report.error.is_none(),
            "the host noticed: {:?}",
            report.error
        );
        assert!(self.adit.is_running());
        until("every connection to be gone", || {
            (connections(&self.grpc) == 0).then_some(())
        });
        until("every buffer to be back", || {
            (free_buffers(&self.grpc) == self.buffers).then_some(())
        });
        assert!(!self.adit.log().contains("panicked"), "{}", self.adit.log());
        self.adit.terminate().unwrap();
    }
}

const HOSTNQN: &str = "nqn.2026-11.io.adit.test:hostile-host";

fn write_sqe(cid: u16, bytes: u32) -> Sqe {
    Sqe::write(
        Cid(cid),
        Nsid(1),
        Lba(FREE_BLOCK),
        bytes / BLOCK_BYTES as u32,
    )
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let scene = Scene::set(&[]);
    let mut dice = Dice::new(11);
    for round in 0..60 {
        // Before ICReq, after it, and after Connect.
        let mut keep = None;
        let mut peer = match round % 3 {
            0 => scene.peer(),
            1 => scene.initialized(round % 2 == 0, round % 4 == 1),
            _ => {
                let (admin, io) = scene.queues(false, round % 2 == 0);
                keep = Some(admin);
                io
            }
        };
        let mut bytes: Vec<u8> = (0..1 + dice.below(4000))
            .map(|_| dice.below(256) as u8)
            .collect();
        if round % 5 == 0 {
            // The start of a right PDU.
            bytes[..1].copy_from_slice(&[dice.below(10) as u8]);
        }
        // The target may close in the middle of it, and that is right.
        let _ = peer.send(&bytes);
        let _ = peer.finish_sending();
        peer.ending().unwrap();
        drop(keep);
        if round % 20 == 0 {
            scene.goes_on();
        }
    }
    scene.end();
}

#[test]
fn oversize_and_malformed_headers_are_answered_with_a_term_req() {
    let mut scene = Scene::set(&[]);
    // (what, type, FLAGS, HLEN, PDO, PLEN)
    let headers: &[(&str, [u8; 8])] = &[
        ("a capsule of 4 GiB", [4, 0, 72, 72, 0xff, 0xff, 0xff, 0xff]),
        ("a capsule of 64 MiB", [4, 0, 72, 72, 0, 0, 0, 4]),
        (
            "a capsule shorter than its header",
            [4, 0, 72, 0, 8, 0, 0, 0],
        ),
        ("a capsule with a wrong HLEN", [4, 0, 71, 0, 72, 0, 0, 0]),
        ("data that nobody asked for", [6, 4, 24, 24, 24, 16, 0, 0]),
        ("a type that is not", [0x55, 0, 72, 0, 72, 0, 0, 0]),
        (
            "a response, which hosts do not send",
            [5, 0, 24, 0, 24, 0, 0, 0],
        ),
        ("a second ICReq", [0, 0, 128, 0, 128, 0, 0, 0]),
    ];
    for (what, header) in headers {
        let mut io = scene.io_queue(false, false);
        let mut bytes = header.to_vec();
        // Enough for the header that it promises.
        bytes.resize(160, 0);
        io.send(&bytes).unwrap();
        let status = io.ending().unwrap();
        assert!(status.is_some(), "{what}: closed without a C2HTermReq");
    }
    let mut peer = scene.peer();
    let mut not_first = scene
        .initialized(false, false)
        .capsule(&Sqe::flush(Cid(0), Nsid(1)), &[]);
    not_first.resize(128, 0);
    peer.send(&not_first).unwrap();
    assert_eq!(
        peer.ending().unwrap(),
        Some(FES_SEQUENCE_ERROR),
        "a capsule before ICReq"
    );
    scene.end();
}

#[test]
fn commands_in_the_wrong_order_cost_only_their_connection() {
    let mut scene = Scene::set(&[]);
    // An I/O command before Connect.
    let mut peer = scene.initialized(false, false);
    let capsule = peer.capsule(&Sqe::flush(Cid(0), Nsid(1)), &[]);
    peer.send(&capsule).unwrap();
    match peer.pdu_or_end().unwrap() {
        None | Some((Pdu::TermReq { .. }, _)) => {}
        Some((Pdu::CapsuleResp { cqe }, _)) => assert!(!cqe.status().is_success()),
        other => panic!("{other:?}"),
    }
    // Connect twice on one queue.
    let mut io = scene.io_queue(false, false);
    let (subnqn, hostnqn) = (Nqn::new(NQN).unwrap(), Nqn::new(HOSTNQN).unwrap());
    let connect = io.connect_capsule(&QueueOptions {
        qid: 1,
        sqsize: 31,
        cntlid: 1,
        kato_ms: 0,
        hostid: [9; 16],
        subnqn: &subnqn,
        hostnqn: &hostnqn,
    });
    io.send(&connect).unwrap();
    let (pdu, _) = io.pdu().unwrap();
    assert!(
        matches!(pdu, Pdu::CapsuleResp { cqe } if !cqe.status().is_success()),
        "{pdu:?}"
    );
    // Data with a transfer tag that was never given, while a write waits for its data.
    let mut io = scene.io_queue(false, false);
    let sqe = write_sqe(1, 16_384).with_sgl(SglDescriptor::transport_data(16_384));
    let capsule = io.capsule(&sqe, &[]);
    io.send(&capsule).unwrap();
    let (Pdu::R2T { ttag, .. }, _) = io.pdu().unwrap() else {
        panic!("no R2T");
    };
    let data = io.h2c_data(Cid(1), ttag ^ 0x5a5a, 0, &[0; 4096], false);
    io.send(&data).unwrap();
    assert!(io.ending().unwrap().is_some());
    // Data beyond what was asked for.
    let mut io = scene.io_queue(false, false);
    io.send(&capsule).unwrap();
    let (Pdu::R2T { ttag, .. }, _) = io.pdu().unwrap() else {
        panic!("no R2T");
    };
    let data = io.h2c_data(Cid(1), ttag, 16_384, &[0; 4096], true);
    io.send(&data).unwrap();
    assert!(io.ending().unwrap().is_some());
    scene.end();
}

#[test]
fn wrong_digests_are_caught() {
    let mut scene = Scene::set(&[]);
    let mut io = scene.io_queue(true, true);
    let mut capsule = io.capsule(&Sqe::flush(Cid(0), Nsid(1)), &[]);
    *capsule.last_mut().unwrap() ^= 1;
    io.send(&capsule).unwrap();
    assert_eq!(io.ending().unwrap(), Some(FES_HEADER_DIGEST_ERROR));

    // A wrong data digest fails the command, not the connection.
    let mut io = scene.io_queue(true, true);
    let sqe = write_sqe(0, 512).with_sgl(SglDescriptor::in_capsule(0, 512));
    let mut capsule = io.capsule(&sqe, &[1; 512]);
    *capsule.last_mut().unwrap() ^= 1;
    io.send(&capsule).unwrap();
    let (pdu, _) = io.pdu().unwrap();
    let Pdu::CapsuleResp { cqe } = pdu else {
        panic!("{pdu:?}");
    };
    assert!(
        cqe.status()
            .is(nvme_spec::Status::TRANSIENT_TRANSPORT_ERROR),
        "{}",
        cqe.status()
    );
    let read = Sqe::read(Cid(2), Nsid(1), Lba(FREE_BLOCK), 1);
    let capsule = io.capsule(&read.with_sgl(SglDescriptor::transport_data(512)), &[]);
    io.send(&capsule).unwrap();
    let (_, data) = io.pdu().unwrap();
    assert_eq!(data, [0; 512], "damaged data was not written");
    scene.end();
}

#[test]
fn a_connection_may_end_after_any_byte() {
    let mut scene = Scene::set(&[]);
    // The whole conversation of a write with R2T, and where its PDUs begin and end.
    let mut io = scene.io_queue(false, true);
    let sqe = write_sqe(1, 16_384).with_sgl(SglDescriptor::transport_data(16_384));
    let capsule = io.capsule(&sqe, &[]);
    io.send(&capsule).unwrap();
    let (Pdu::R2T { ttag, .. }, _) = io.pdu().unwrap() else {
        panic!("no R2T");
    };
    let h2c = io.h2c_data(Cid(1), ttag, 0, &[3; 16_384], true);
    drop(io);

    let cuts: Vec<usize> = [0, 1, 7, 8, 9, 71, 72]
        .into_iter()
        .chain([1, 8, 24, 25, 28, 4096, 16_408, 16_411, 16_412].map(|at| capsule.len() + at))
        .collect();
    for (number, cut) in cuts.into_iter().enumerate() {
        for is_reset in [false, true] {
            let (admin, mut io) = scene.queues(false, true);
            io.send(&capsule[..cut.min(capsule.len())]).unwrap();
            if cut > capsule.len() {
                let (Pdu::R2T { ttag: again, .. }, _) = io.pdu().unwrap() else {
                    panic!("no R2T");
                };
                let mut bytes = h2c.clone();
                bytes[10..12].copy_from_slice(&again.to_le_bytes());
                io.send(&bytes[..(cut - capsule.len()).min(bytes.len())])
                    .unwrap();
            }
            if is_reset {
                io.reset();
            } else if number % 2 == 0 {
                // Half-close: the target has to close its half by itself.
                io.finish_sending().unwrap();
                io.ending().unwrap();
            } else {
                drop(io);
            }
            drop(admin);
        }
    }
    // The same for the first PDUs of a connection.
    for cut in [0, 1, 8, 127, 128] {
        let mut peer = scene.peer();
        peer.send(&Peer::ic_req(true, true)[..cut]).unwrap();
        if cut % 2 == 0 {
            peer.reset();
        }
    }
    scene.end();
}

#[test]
fn a_slow_loris_is_cut_off_at_the_connect_time_out() {
    let scene = Scene::set(&["--connect-timeout", "2s"]);
    let request = Peer::ic_req(false, false);
    let mut silent = scene.peer();
    let mut between = scene.initialized(false, false);
    let mut slow = scene.peer();
    let mut sent = 0;
    until("the slow peer to be cut off", || {
        // One byte at each look.
        if sent < request.len() - 1 {
            sent += slow.send_some(&request[sent..=sent]).unwrap_or(0);
        }
        let _ = slow.poll(Duration::ZERO);
        slow.is_closed().then_some(())
    });
    silent.ending().unwrap();
    between.ending().unwrap();
    scene.end();
}

#[test]
fn a_peer_that_never_reads_holds_up_nobody() {
    let scene = Scene::set(&[]);
    let peers: Vec<(Peer, Peer)> = (0..4)
        .map(|_| {
            let (admin, mut io) = scene.queues(false, false);
            // As many reads as a queue takes, 128 KiB each, and no look at what comes.
            for cid in 0..31 {
                let sqe = Sqe::read(Cid(cid), Nsid(1), Lba(0), 256)
                    .with_sgl(SglDescriptor::transport_data(256 * BLOCK_BYTES as u32));
                let capsule = io.capsule(&sqe, &[]);
                let mut at = 0;
                until("the target to take a command", || {
                    at += io.send_some(&capsule[at..]).unwrap();
                    (at == capsule.len()).then_some(())
                });
            }
            (admin, io)
        })
        .collect();
    for _ in 0..5 {
        scene.goes_on();
    }
    drop(peers);
    scene.end();
}

#[test]
fn a_flood_of_connections_stops_at_the_limit_and_leaves_those_that_are() {
    let scene = Scene::set(&["--max-connections", "40"]);
    let mut peers: Vec<Peer> = Vec::new();
    let mut refused = 0;
    for _ in 0..300 {
        // A refused connection is closed, or does not come to be at all.
        match Peer::connect(scene.port) {
            Ok(mut peer) => match peer.initialize(false, false) {
                Ok(()) => peers.push(peer),
                Err(_) => refused += 1,
            },
            Err(_) => refused += 1,
        }
    }
    // Two are the well-behaved host's.
    assert_eq!(peers.len(), 38);
    assert_eq!(refused, 262);
    scene.goes_on();
    let request = api::v1::GetTransportRequest {
        trtype: "tcp".to_owned(),
    };
    let transport = scene
        .grpc
        .wait(scene.grpc.transports().get_transport(request))
        .unwrap();
    assert_eq!(transport.connections_refused, 262);
    drop(peers);
    until("room for a host", || {
        Host::connect(scene.port, NQN, &HostOptions::default()).ok()
    });
    scene.end();
}

#[test]
fn a_host_that_ends_with_commands_in_flight_leaves_nothing_behind() {
    let scene = Scene::set(&[]);
    for round in 0..20 {
        let (admin, mut io) = scene.queues(round % 2 == 0, round % 3 == 0);
        for cid in 0..31 {
            // Writes whose data never comes, reads whose answer nobody takes.
            let sqe = if cid % 2 == 0 {
                write_sqe(cid, 131_072)
            } else {
                Sqe::read(Cid(cid), Nsid(1), Lba(0), 256)
            };
            let capsule = io.capsule(&sqe.with_sgl(SglDescriptor::transport_data(131_072)), &[]);
            io.send(&capsule).unwrap();
        }
        if round % 2 == 0 {
            io.reset();
        } else {
            drop(admin);
        }
    }
    scene.end();
}

#[test]
fn a_host_may_say_that_the_target_broke_the_protocol() {
    let mut scene = Scene::set(&[]);
    let mut io = scene.io_queue(false, false);
    let mut bytes = vec![0; 256];
    let len = tcp::encode_term_req(
        &mut bytes,
        tcp::Receiver::Controller,
        FES_SEQUENCE_ERROR,
        0,
        &[],
    )
    .unwrap();
    io.send(&bytes[..len]).unwrap();
    assert_eq!(
        io.ending().unwrap(),
        None,
        "a TermReq is not answered with one"
    );
    scene.end();
}
