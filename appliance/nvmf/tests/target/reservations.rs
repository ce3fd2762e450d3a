//! Reservations over the wire: who may what, who is told, what persists, and what has ended when
//! a command is answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvme_spec::event::{io_command_specific, kind};
use nvme_spec::feature::{Select, fid};
use nvme_spec::identify::{IdentifyNamespace, cns, rescap};
use nvme_spec::log::lid;
use nvme_spec::opcode::nvm;
use nvme_spec::reservation::{
    RegisteredControllerExtended, ReservationNotification, ReservationStatusExtended,
    ReservationType as Type, acquire, cptpl, notification, register, release,
};
use nvme_spec::{Cid, CopyRange, Fuse, Lba, Nsid, Sqe, Status};
use nvmf::{
    HostId, Reservation, ReservationKey, ReservationRecord, ReservationStore, SaveDone, Subsystem,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::TestDevice;
use crate::loopback::{End, Reply};
use crate::rig::{
    Connect, NQN, Rig, RigOptions, bdev, dnr, enabled, flush, namespace, read, take, taken,
    transport, write,
};

const NSID: Nsid = Nsid(1);
const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_dnr(true);

/// A host with an admin queue and an I/O queue in a poll group.
struct Node {
    id: HostId,
    admin: End,
    io: End,
}

fn host_id(number: u8) -> HostId {
    [number; 16]
}

fn key(node: &Node) -> u64 {
    0x100 + u64::from(node.id[0])
}

impl Node {
    fn new(rig: &mut Rig, group: usize, number: u8) -> Self {
        let id = host_id(number);
        let admin = rig.dial_in(group);
        let mut connect = Connect::admin(NQN);
        connect.hostid = id;
        let reply = rig.connect(&admin, &connect);
        assert!(reply.cqe.status().is_success());
        rig.set_cc(&admin, enabled());
        connect.cntlid = nvme_spec::Cntlid(reply.cqe.dw0() as u16);
        connect.command.qid = nvme_spec::Qid(1);
        let io = rig.dial_in(group);
        assert!(rig.connect(&io, &connect).cqe.status().is_success());
        Self { id, admin, io }
    }
}

/// Runs a command that may take a few turns of other threads.
fn run(rig: &mut Rig, end: &End, sqe: Sqe, data: &[u8]) -> Reply {
    rig.send(end, sqe, data);
    for _ in 0..10 {
        if let Some(reply) = take(end, sqe.cid()) {
            return reply;
        }
        rig.advance(Duration::from_millis(1));
    }
    panic!("no answer to {sqe:?}");
}

/// Lets the threads hear of each other.
fn settle(rig: &mut Rig) {
    for _ in 0..4 {
        rig.advance(Duration::from_millis(2));
    }
}

fn keys(first: u64, second: u64) -> [u8; 16] {
    let mut data = [0; 16];
    data[..8].copy_from_slice(&first.to_le_bytes());
    data[8..].copy_from_slice(&second.to_le_bytes());
    data
}

fn register_sqe(action: u8, ptpl: u8) -> Sqe {
    transport(
        Sqe::reservation_register(Cid(1), NSID, action, false, ptpl),
        16,
    )
}

fn acquire_sqe(action: u8, rtype: Type) -> Sqe {
    transport(
        Sqe::reservation_acquire(Cid(1), NSID, action, rtype as u8),
        16,
    )
}

fn register_node(rig: &mut Rig, node: &Node, ptpl: u8) -> Status {
    let data = keys(0, key(node));
    let sqe = register_sqe(register::REGISTER, ptpl);
    run(rig, &node.io, sqe, &data).cqe.status()
}

fn acquire_node(rig: &mut Rig, node: &Node, action: u8, rtype: Type, preempted: u64) -> Status {
    let data = keys(key(node), preempted);
    let sqe = acquire_sqe(action, rtype);
    run(rig, &node.io, sqe, &data).cqe.status()
}

fn release_node(rig: &mut Rig, node: &Node, action: u8, rtype: Type) -> Status {
    let sqe = Sqe::reservation_release(Cid(1), NSID, action, rtype as u8);
    let data = key(node).to_le_bytes();
    run(rig, &node.io, transport(sqe, 8), &data).cqe.status()
}

/// Two poll groups, a device, and hosts 1, 2, 3 of which 1 and 2 are registered.
struct Cluster {
    subsystem: Arc<Subsystem>,
    device: Arc<TestDevice>,
    nodes: [Node; 3],
}

fn cluster(rig: &mut Rig) -> Cluster {
    let subsystem = rig.subsystem(NQN);
    let device = TestDevice::new(512, 64);
    let bdev = bdev(Arc::clone(&device) as _, rig.now);
    let (_, ticket) = subsystem.add_namespace(namespace(1, &bdev)).unwrap();
    rig.finish(ticket);
    let nodes = [(0, 1), (1, 2), (0, 3)].map(|(group, number)| Node::new(rig, group, number));
    for node in &nodes[..2] {
        assert!(register_node(rig, node, cptpl::KEEP).is_success());
    }
    Cluster {
        subsystem,
        device,
        nodes,
    }
}

fn two_groups() -> Rig {
    Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    })
}

/// Every I/O command, with whether it counts with the writes.
fn commands() -> Vec<(Sqe, Vec<u8>, bool)> {
    let of = |opcode| Sqe {
        opcode,
        ..write(1, 0, 1)
    };
    let range = CopyRange::new(Lba(0), 1).as_bytes().to_vec();
    let copy = Sqe::new(nvm::COPY, Cid(1))
        .with_nsid(NSID)
        .with_slba(Lba(8));
    let dsm = transport(Sqe::deallocate(Cid(1), NSID, 1), 16);
    let mut dsm_range = vec![0; 16];
    dsm_range[4] = 1;
    let zeroes = Sqe::write_zeroes(Cid(1), NSID, Lba(0), 1);
    let verify = Sqe {
        opcode: nvm::VERIFY,
        ..zeroes
    };
    vec![
        (read(1, 0, 1), vec![], false),
        (of(nvm::COMPARE), vec![0; 512], false),
        (verify, vec![], false),
        (write(1, 0, 1), vec![0; 512], true),
        (zeroes, vec![], true),
        (flush(1), vec![], true),
        (flush(1).with_nsid(Nsid::ALL), vec![], true),
        (dsm, dsm_range.clone(), true),
        // Without deallocation it changes nothing, and counts with the writes all the same.
        (dsm.with_cdw11(0), dsm_range, true),
        (transport(copy, range.len()), range, true),
    ]
}

#[test]
fn every_command_of_every_host_is_checked_against_every_type() {
    let mut rig = two_groups();
    let Cluster { nodes, device, .. } = cluster(&mut rig);
    for rtype in Type::ALL {
        let status = acquire_node(&mut rig, &nodes[0], acquire::ACQUIRE, rtype, 0);
        assert_eq!(status, Status::SUCCESS);
        for (index, node) in nodes.iter().enumerate() {
            let is_privileged = index == 0 || (index == 1 && rtype.admits_registrants());
            for (sqe, data, is_write) in commands() {
                device.take_ops();
                let may = is_privileged || (!is_write && !rtype.excludes_reads());
                let status = rig.status(&node.io, sqe, &data);
                let expected = if may { Status::SUCCESS } else { CONFLICT };
                assert_eq!(status, expected, "{rtype:?} {index} {sqe:?}");
                assert!(may || device.take_ops().is_empty());
            }
            // Both halves of a fused pair fail if one does.
            let compare = Sqe {
                opcode: nvm::COMPARE,
                ..write(5, 0, 1)
            };
            rig.send(&node.io, compare.with_fuse(Fuse::First), &[0; 512]);
            rig.send(&node.io, write(6, 0, 1).with_fuse(Fuse::Second), &[0; 512]);
            let ended = (taken(&node.io, 5).unwrap(), taken(&node.io, 6).unwrap());
            if is_privileged {
                assert_eq!(ended, (Status::SUCCESS, Status::SUCCESS));
            } else {
                assert!(!ended.0.is_success() && !ended.1.is_success());
                assert!(ended.0.is(Status::RESERVATION_CONFLICT) || ended.1.is(CONFLICT));
            }
        }
        let status = release_node(&mut rig, &nodes[0], release::RELEASE, rtype);
        assert_eq!(status, Status::SUCCESS);
        assert!(
            rig.status(&nodes[2].io, write(1, 0, 1), &[0; 512])
                .is_success()
        );
    }
    rig.assert_all_buffers_back();
}

#[test]
fn missing_and_short_data_is_an_error_for_every_action() {
    let mut rig = two_groups();
    let Cluster { nodes, .. } = cluster(&mut rig);
    let status = acquire_node(
        &mut rig,
        &nodes[0],
        acquire::ACQUIRE,
        Type::WriteExclusive,
        0,
    );
    assert_eq!(status, Status::SUCCESS);
    let length = dnr(Status::DATA_SGL_LENGTH_INVALID);
    for node in &nodes {
        for action in 0..8 {
            let sqes = [
                (Sqe::reservation_register(Cid(1), NSID, action, true, 0), 16),
                (Sqe::reservation_acquire(Cid(1), NSID, action, 1), 16),
                (Sqe::reservation_release(Cid(1), NSID, action, 1), 8),
            ];
            for (sqe, len) in sqes {
                for short in 0..len {
                    let bytes = vec![0; short];
                    let reply = run(&mut rig, &node.io, transport(sqe, short), &bytes);
                    assert_eq!(reply.cqe.status(), length);
                    let reply = run(&mut rig, &node.io, crate::rig::capsule(sqe, short), &bytes);
                    assert_eq!(reply.cqe.status(), length);
                }
                // No SGL at all, and data that comes damaged.
                let reply = run(&mut rig, &node.io, sqe, &[]);
                assert!(!reply.cqe.status().is_success());
                node.io.wire().damaged.push(Cid(1));
                let reply = run(&mut rig, &node.io, transport(sqe, len), &[1; 16]);
                node.io.wire().damaged.clear();
                assert_eq!(reply.cqe.status(), Status::TRANSIENT_TRANSPORT_ERROR);
            }
        }
    }
    let held = rig.target.subsystem(&crate::rig::nqn(NQN)).unwrap();
    let record = held.reservations(NSID).unwrap();
    assert_eq!((record.registrants.len(), record.generation), (2, 2));
    rig.assert_all_buffers_back();
}

fn report(rig: &mut Rig, node: &Node, len: u32) -> Vec<u8> {
    let sqe = Sqe::reservation_report(Cid(1), NSID, len, true);
    let reply = run(rig, &node.io, transport(sqe, len as usize), &[]);
    assert!(reply.cqe.status().is_success());
    reply.data
}

#[test]
fn a_report_names_registrants_that_are_gone_too() {
    let mut rig = two_groups();
    let Cluster { nodes, .. } = cluster(&mut rig);
    let rtype = Type::ExclusiveAccessRegistrantsOnly;
    acquire_node(&mut rig, &nodes[1], acquire::ACQUIRE, rtype, 0);
    for end in [&nodes[1].admin, &nodes[1].io] {
        end.wire().is_cut = true;
    }
    rig.poll();
    // Whoever asks: also a host that may do nothing else.
    let data = report(&mut rig, &nodes[2], 64 + 3 * 64);
    let (head, rest) = ReservationStatusExtended::read_from_prefix(&data).unwrap();
    let head = head.head;
    assert_eq!((head.generation.get(), head.rtype), (2, rtype as u8));
    assert_eq!((head.registrants.get(), head.ptpls), (2, 0));
    for (index, entry) in rest.chunks_exact(64).enumerate() {
        let entry = RegisteredControllerExtended::read_from_bytes(entry).unwrap();
        if index == 2 {
            assert_eq!(entry, RegisteredControllerExtended::default());
            continue;
        }
        assert_eq!(entry.hostid, nodes[index].id);
        assert_eq!(entry.rkey.get(), key(&nodes[index]));
        assert_eq!((entry.cntlid.get(), entry.rcsts), (0xffff, index as u8));
    }
    // The beginning, for who has less room.
    assert_eq!(report(&mut rig, &nodes[2], 8), data[..8]);
    // It comes back, from another poll group, and is what it was.
    let again = Node::new(&mut rig, 0, 2);
    assert!(
        rig.status(&again.io, write(1, 0, 1), &[0; 512])
            .is_success()
    );
    assert_eq!(rig.status(&nodes[2].io, read(1, 0, 1), &[]), CONFLICT);
}

#[test]
fn many_hosts_register() {
    let mut rig = two_groups();
    let Cluster { nodes, .. } = cluster(&mut rig);
    for number in 10..80 {
        let node = Node::new(&mut rig, usize::from(number) % 2, number);
        assert!(register_node(&mut rig, &node, cptpl::KEEP).is_success());
        for end in [&node.admin, &node.io] {
            end.wire().is_cut = true;
        }
        rig.poll();
    }
    let data = report(&mut rig, &nodes[0], 64 + 72 * 64);
    let (head, rest) = ReservationStatusExtended::read_from_prefix(&data).unwrap();
    assert_eq!(head.head.registrants.get(), 72);
    let last = RegisteredControllerExtended::read_from_bytes(&rest[71 * 64..]).unwrap();
    assert_eq!(last.hostid, host_id(79));
}

#[test]
fn preempt_and_abort_ends_what_waits_and_waits_for_what_is_in_the_device() {
    let mut rig = two_groups();
    let Cluster { nodes, device, .. } = cluster(&mut rig);
    let rtype = Type::ExclusiveAccessRegistrantsOnly;
    acquire_node(&mut rig, &nodes[1], acquire::ACQUIRE, rtype, 0);
    let victim = &nodes[1].io;
    device.state().holds = true;
    rig.send(victim, write(10, 0, 1), &[1; 512]);
    victim.wire().holds_data = true;
    rig.send(victim, write(11, 1, 1), &[2; 512]);
    // A large number of commands that wait for the host's share of the buffers.
    for cid in 12..30 {
        rig.send(victim, write(cid, 0, 64), &[3; 32_768]);
    }
    let sqe = acquire_sqe(acquire::PREEMPT_AND_ABORT, rtype);
    let data = keys(key(&nodes[0]), key(&nodes[1]));
    rig.send(&nodes[0].io, sqe, &data);
    settle(&mut rig);
    // One write is in the device: until that has ended nothing is sure.
    assert_eq!(taken(&nodes[0].io, 1), None);
    let aborted = Some(Status::ABORTED_PREEMPT_AND_ABORT);
    assert_eq!(taken(victim, 29), aborted);
    // What comes now is refused, or waits.
    rig.send(victim, read(40, 0, 1), &[]);
    assert_eq!(taken(victim, 40), Some(CONFLICT));
    rig.send(&nodes[0].io, read(41, 0, 1), &[]);
    device.state().holds = false;
    settle(&mut rig);
    assert_eq!(taken(&nodes[0].io, 1), Some(Status::SUCCESS));
    assert_eq!(taken(&nodes[0].io, 41), Some(Status::SUCCESS));
    assert_eq!(taken(victim, 10), Some(Status::SUCCESS));
    // Its data comes too late.
    victim.wire().holds_data = false;
    rig.poll();
    assert_eq!(taken(victim, 11), Some(CONFLICT));
    assert_eq!(device.state().data[512], 0);
    rig.assert_all_buffers_back();
}

#[test]
fn a_preempted_host_that_is_gone_writes_nothing_afterwards() {
    let mut rig = two_groups();
    let Cluster { nodes, device, .. } = cluster(&mut rig);
    acquire_node(
        &mut rig,
        &nodes[1],
        acquire::ACQUIRE,
        Type::WriteExclusive,
        0,
    );
    device.state().holds = true;
    rig.send(&nodes[1].io, write(10, 0, 1), &[1; 512]);
    for end in [&nodes[1].admin, &nodes[1].io] {
        end.wire().is_cut = true;
    }
    rig.poll();
    let sqe = acquire_sqe(acquire::PREEMPT, Type::WriteExclusive);
    rig.send(&nodes[0].io, sqe, &keys(key(&nodes[0]), key(&nodes[1])));
    settle(&mut rig);
    assert_eq!(
        taken(&nodes[0].io, 1),
        None,
        "the device still has its write"
    );
    device.state().holds = false;
    settle(&mut rig);
    assert_eq!(taken(&nodes[0].io, 1), Some(Status::SUCCESS));
}

const AVAILABLE: u32 = kind::IO_COMMAND_SPECIFIC as u32
    | (io_command_specific::RESERVATION_LOG_AVAILABLE as u32) << 8
    | (lid::RESERVATION_NOTIFICATION as u32) << 16;

fn read_log(rig: &mut Rig, node: &Node, rae: bool) -> ReservationNotification {
    let sqe = Sqe::get_log_page(Cid(800), Nsid(0), lid::RESERVATION_NOTIFICATION, 64, 0);
    let sqe = transport(sqe.with_rae(rae), 64);
    let reply = rig.run(&node.admin, sqe, &[]);
    ReservationNotification::read_from_bytes(&reply.data).unwrap()
}

#[test]
fn registrants_are_told_what_happens_to_them() {
    let mut rig = two_groups();
    let Cluster { nodes, .. } = cluster(&mut rig);
    let [first, second, _] = &nodes;
    let ask = |rig: &mut Rig, cid| rig.send(&first.admin, Sqe::async_event_request(Cid(cid)), &[]);
    ask(&mut rig, 500);
    assert_eq!(
        read_log(&mut rig, first, false),
        ReservationNotification::default()
    );
    let rtype = Type::WriteExclusiveRegistrantsOnly;
    for _ in 0..2 {
        acquire_node(&mut rig, second, acquire::ACQUIRE, rtype, 0);
        release_node(&mut rig, second, release::RELEASE, rtype);
    }
    let told = take(&first.admin, Cid(500)).unwrap();
    assert_eq!(told.cqe.dw0(), AVAILABLE);
    for rae in [true, false] {
        let log = read_log(&mut rig, first, rae);
        assert_eq!((log.count.get(), log.available), (1, 1));
        assert_eq!(
            (log.kind, log.nsid.get()),
            (notification::RESERVATION_RELEASED, 1)
        );
    }
    // There is another: the host is told again.
    ask(&mut rig, 501);
    assert_eq!(take(&first.admin, Cid(501)).unwrap().cqe.dw0(), AVAILABLE);
    assert_eq!(read_log(&mut rig, first, false).count.get(), 2);
    assert_eq!(
        read_log(&mut rig, first, false),
        ReservationNotification::default()
    );
    // What it does not want it is not told.
    let mask = |value, nsid| {
        Sqe::set_features(Cid(801), fid::RESERVATION_MASK, value).with_nsid(Nsid(nsid))
    };
    assert!(rig.status(&first.admin, mask(1 << 1, 1), &[]).is_success());
    let get = Sqe::get_features(Cid(802), fid::RESERVATION_MASK, Select::Current).with_nsid(NSID);
    assert_eq!(rig.run(&first.admin, get, &[]).cqe.result(), 1 << 1);
    let status = acquire_node(&mut rig, second, acquire::PREEMPT, rtype, key(first));
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(
        read_log(&mut rig, first, false),
        ReservationNotification::default()
    );
    assert!(
        rig.status(&first.admin, mask(0, 0xffff_ffff), &[])
            .is_success()
    );
    assert!(register_node(&mut rig, first, cptpl::KEEP).is_success());
    let status = release_node(&mut rig, second, release::CLEAR, rtype);
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(
        read_log(&mut rig, first, false).kind,
        notification::RESERVATION_PREEMPTED
    );
    let wrong = dnr(Status::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(rig.status(&first.admin, mask(0, 2), &[]), wrong);
    // Many more than anybody reads: the oldest are lost, and the counts tell.
    for _ in 0..80 {
        register_node(&mut rig, first, cptpl::KEEP);
        register_node(&mut rig, second, cptpl::KEEP);
        release_node(&mut rig, second, release::CLEAR, rtype);
    }
    let log = read_log(&mut rig, first, true);
    assert_eq!((log.count.get(), log.available), (3 + 80 - 63, 63));
}

/// A store that answers when the test says.
#[derive(Debug, Default)]
struct Store {
    saved: Mutex<Vec<(ReservationKey, Option<ReservationRecord>)>>,
    waiting: Mutex<Vec<SaveDone>>,
}

impl ReservationStore for Store {
    fn save(&self, key: &ReservationKey, record: Option<&ReservationRecord>, done: SaveDone) {
        let saved = (key.clone(), record.cloned());
        self.saved.lock().unwrap().push(saved);
        self.waiting.lock().unwrap().push(done);
    }
}

impl Store {
    fn last(&self) -> Option<ReservationRecord> {
        self.saved.lock().unwrap().last().unwrap().1.clone()
    }

    fn answer(&self, result: Result<(), String>) {
        self.waiting.lock().unwrap().remove(0).done(result);
    }
}

#[test]
fn what_persists_is_answered_only_when_it_is_durable() {
    let mut rig = two_groups();
    let store = Arc::<Store>::default();
    assert!(rig.target.set_reservation_store(Arc::clone(&store) as _));
    assert!(!rig.target.set_reservation_store(Arc::clone(&store) as _));
    let Cluster {
        nodes, subsystem, ..
    } = cluster(&mut rig);
    assert!(
        store.saved.lock().unwrap().is_empty(),
        "nothing persists yet"
    );
    let identify = transport(Sqe::identify(Cid(1), NSID, cns::NAMESPACE), 4096);
    let data = rig.run(&nodes[0].admin, identify, &[]).data;
    let id = IdentifyNamespace::read_from_bytes(&data).unwrap();
    assert_eq!(id.rescap, 0xff);
    assert_eq!(id.rescap & rescap::PERSIST_THROUGH_POWER_LOSS, 1);

    let [first, second, third] = &nodes;
    let sqe = register_sqe(register::REGISTER, cptpl::SET);
    rig.send(&third.io, sqe, &keys(0, key(third)));
    // Another change waits for it, without an answer of its own.
    let acquire = acquire_sqe(acquire::ACQUIRE, Type::WriteExclusive);
    rig.send(&first.io, acquire, &keys(key(first), 0));
    settle(&mut rig);
    assert_eq!((taken(&third.io, 1), taken(&first.io, 1)), (None, None));
    assert_eq!(store.waiting.lock().unwrap().len(), 1);
    assert_eq!(store.last().unwrap().registrants.len(), 3);
    assert_eq!(subsystem.reservations(NSID).unwrap().registrants.len(), 2);
    store.answer(Ok(()));
    settle(&mut rig);
    assert_eq!(taken(&third.io, 1), Some(Status::SUCCESS));
    assert_eq!(taken(&first.io, 1), None);
    // Not yet in force: others may still write.
    assert!(
        rig.status(&second.io, write(2, 0, 1), &[0; 512])
            .is_success()
    );
    store.answer(Ok(()));
    settle(&mut rig);
    assert_eq!(taken(&first.io, 1), Some(Status::SUCCESS));
    assert_eq!(rig.status(&second.io, write(2, 0, 1), &[0; 512]), CONFLICT);

    // What cannot be saved has not happened; a store that forgets to answer has failed.
    for fails in [true, false] {
        let sqe = Sqe::reservation_release(Cid(3), NSID, release::CLEAR, 0);
        rig.send(&second.io, transport(sqe, 8), &key(second).to_le_bytes());
        if fails {
            store.answer(Err("no room".into()));
        } else {
            store.waiting.lock().unwrap().clear();
        }
        settle(&mut rig);
        assert!(taken(&second.io, 3).unwrap().is(Status::INTERNAL_ERROR));
        assert_eq!(subsystem.reservations(NSID).unwrap().registrants.len(), 3);
    }

    // The connection goes while the store works: the change comes to its end.
    rig.send(
        &third.io,
        register_sqe(register::UNREGISTER, 0),
        &keys(key(third), 0),
    );
    for end in [&third.admin, &third.io] {
        end.wire().is_cut = true;
    }
    rig.poll();
    store.answer(Ok(()));
    rig.poll();
    let kept = subsystem.reservations(NSID).unwrap();
    assert_eq!(
        (kept.registrants.len(), Some(&kept)),
        (2, store.last().as_ref())
    );

    // Feature 83h tells, and turns it off: then nothing is kept.
    let get = Sqe::get_features(Cid(4), fid::RESERVATION_PERSISTENCE, Select::Current);
    let get = get.with_nsid(NSID);
    assert_eq!(rig.run(&first.admin, get, &[]).cqe.result(), 1);
    let off = Sqe::set_features(Cid(5), fid::RESERVATION_PERSISTENCE, 0).with_nsid(NSID);
    rig.send(&first.admin, off, &[]);
    assert_eq!(taken(&first.admin, 5), None);
    store.answer(Ok(()));
    settle(&mut rig);
    assert_eq!(taken(&first.admin, 5), Some(Status::SUCCESS));
    assert_eq!(store.last(), None);
    assert_eq!(rig.run(&first.admin, get, &[]).cqe.result(), 0);
    let count = store.saved.lock().unwrap().len();
    let status = release_node(&mut rig, first, release::CLEAR, Type::WriteExclusive);
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(store.saved.lock().unwrap().len(), count);
    rig.assert_all_buffers_back();
}

#[test]
fn what_was_kept_is_in_force_from_the_first_command_on() {
    let mut rig = two_groups();
    let subsystem = rig.subsystem(NQN);
    let bdev = bdev(TestDevice::new(512, 64), rig.now);
    let record = ReservationRecord {
        ptpl: true,
        generation: 9,
        registrants: [(host_id(1), 0x101)].into(),
        reservation: Some(Reservation {
            rtype: Type::ExclusiveAccess,
            holder: Some(host_id(1)),
        }),
    };
    let (_, ticket) = subsystem
        .add_namespace_with_reservations(namespace(1, &bdev), record.clone())
        .unwrap();
    rig.finish(ticket);
    assert_eq!(subsystem.reservations(NSID), Some(record));
    let holder = Node::new(&mut rig, 0, 1);
    let other = Node::new(&mut rig, 1, 2);
    assert!(
        rig.status(&holder.io, write(1, 0, 1), &[0; 512])
            .is_success()
    );
    assert_eq!(rig.status(&other.io, read(1, 0, 1), &[]), CONFLICT);
    // A namespace that is removed takes its reservations along.
    let ticket = subsystem.remove_namespace(NSID).unwrap();
    rig.finish(ticket);
    assert_eq!(subsystem.reservations(NSID), None);
    let (_, ticket) = subsystem.add_namespace(namespace(1, &bdev)).unwrap();
    rig.finish(ticket);
    assert!(rig.status(&other.io, read(1, 0, 1), &[]).is_success());
    let persist = Sqe::set_features(Cid(5), fid::RESERVATION_PERSISTENCE, 1).with_nsid(NSID);
    let status = rig.status(&other.admin, persist, &[]);
    assert_eq!(status, dnr(Status::INVALID_FIELD), "there is no store");
}

#[test]
fn a_drain_ends_with_a_pause_still_in_force() {
    let mut rig = two_groups();
    let Cluster {
        nodes,
        device,
        subsystem,
    } = cluster(&mut rig);
    device.state().holds = true;
    rig.send(&nodes[1].io, write(10, 0, 1), &[1; 512]);
    let sqe = acquire_sqe(acquire::ACQUIRE, Type::WriteExclusive);
    rig.send(&nodes[0].io, sqe, &keys(key(&nodes[0]), 0));
    let pause = subsystem.pause(NSID).unwrap();
    rig.send(&nodes[0].io, write(11, 0, 1), &[2; 512]);
    settle(&mut rig);
    assert!(!pause.is_done());
    device.state().holds = false;
    settle(&mut rig);
    assert!(pause.is_done());
    assert_eq!(taken(&nodes[0].io, 1), Some(Status::SUCCESS));
    assert_eq!(taken(&nodes[0].io, 11), None, "the pause holds");
    subsystem.resume(NSID).unwrap();
    rig.poll();
    assert_eq!(taken(&nodes[0].io, 11), Some(Status::SUCCESS));
}
