//! Asynchronous events, Abort.

use std::sync::Arc;
use std::time::Duration;

use block::IoError;
use nvme_spec::event::{error, kind, notice};
use nvme_spec::feature::fid;
use nvme_spec::log::lid;
use nvme_spec::opcode::nvm;
use nvme_spec::{Cid, Fuse, Nsid, Qid, Sqe, Status};
use nvmf::{AnaGroupId, AnaState, Referral, SubsystemOptions, Visibility, WriteProtect};

use crate::device::TestDevice;
use crate::loopback::End;
use crate::rig::{
    HOST, Host, NQN, Rig, RigOptions, Served, address, bdev, dnr, namespace, nqn, read, take,
    taken, transport, write,
};

const OTHER_HOST: &str = "nqn.2026-11.io.adit:other-host";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

const fn notice_of(info: u8, log: u8) -> u32 {
    kind::NOTICE as u32 | (info as u32) << 8 | (log as u32) << 16
}

const NAMESPACE: u32 = notice_of(notice::NAMESPACE_ATTRIBUTE_CHANGED, lid::CHANGED_NAMESPACES);
const ANA: u32 = notice_of(notice::ANA_CHANGE, lid::ANA);
const DISCOVERED: u32 = notice_of(notice::DISCOVERY_LOG_CHANGE, lid::DISCOVERY);
const ERROR: u32 =
    kind::ERROR as u32 | (error::TRANSIENT_INTERNAL_ERROR as u32) << 8 | (lid::ERROR as u32) << 16;

fn ask(rig: &mut Rig, host: &Host, cid: u16) {
    rig.send(&host.admin, Sqe::async_event_request(Cid(cid)), &[]);
}

fn told(end: &End, cid: u16) -> Option<u32> {
    take(end, Cid(cid)).map(|reply| {
        assert!(reply.cqe.status().is_success());
        reply.cqe.dw0()
    })
}

fn log(rig: &mut Rig, host: &Host, log: u8, len: u32, rae: bool) -> Vec<u8> {
    let sqe = Sqe::get_log_page(Cid(800), Nsid(0), log, len, 0).with_rae(rae);
    let reply = rig.run(&host.admin, transport(sqe, len as usize), &[]);
    assert!(reply.cqe.status().is_success());
    reply.data
}

fn changed(rig: &mut Rig, host: &Host, rae: bool) -> Vec<u32> {
    let data = log(rig, host, lid::CHANGED_NAMESPACES, 4096, rae);
    let ids = data
        .chunks_exact(4)
        .map(|id| u32::from_le_bytes(id.try_into().unwrap()));
    ids.take_while(|id| *id != 0).collect()
}

#[test]
fn namespace_changes_are_told_once_until_the_list_is_read() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let host = &served.host;
    for cid in 1..=4 {
        ask(&mut rig, host, cid);
    }
    let second = bdev(TestDevice::new(512, 64), rig.now);
    drop(
        served
            .subsystem
            .add_namespace(namespace(2, &second))
            .unwrap(),
    );
    drop(served.subsystem.namespace_resized(Nsid(1)).unwrap());
    rig.poll();
    assert_eq!(told(&host.admin, 1), Some(NAMESPACE));
    assert!(host.admin.wire().replies.is_empty(), "one event for both");
    assert_eq!(changed(&mut rig, host, true), [1, 2]);
    drop(served.subsystem.remove_namespace(Nsid(2)).unwrap());
    rig.poll();
    assert!(
        host.admin.wire().replies.is_empty(),
        "masked: the list was kept"
    );
    assert_eq!(changed(&mut rig, host, false), [1, 2]);
    assert_eq!(
        changed(&mut rig, host, false),
        [0; 0],
        "what was read is forgotten"
    );
    drop(
        served
            .subsystem
            .set_write_protect(Nsid(1), WriteProtect::WriteProtect)
            .unwrap(),
    );
    rig.poll();
    assert_eq!(told(&host.admin, 2), Some(NAMESPACE));
    assert_eq!(changed(&mut rig, host, false), [1]);
}

#[test]
fn a_host_hears_only_of_namespaces_that_it_sees_or_saw() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let other = rig.host_in(0, NQN, OTHER_HOST);
    ask(&mut rig, &other, 1);
    let hidden = bdev(TestDevice::new(512, 64), rig.now);
    let mut config = namespace(2, &hidden);
    config.visibility = Visibility::Hosts([nqn(HOST)].into());
    drop(served.subsystem.add_namespace(config).unwrap());
    drop(served.subsystem.namespace_resized(Nsid(2)).unwrap());
    drop(served.subsystem.remove_namespace(Nsid(2)).unwrap());
    rig.poll();
    assert!(other.admin.wire().replies.is_empty());
    let mine = Visibility::Hosts([nqn(HOST)].into());
    drop(served.subsystem.set_visibility(Nsid(1), mine).unwrap());
    rig.poll();
    assert_eq!(
        told(&other.admin, 1),
        Some(NAMESPACE),
        "it lost sight of it"
    );
    assert_eq!(changed(&mut rig, &other, false), [1]);
}

#[test]
fn a_list_that_overflows_says_all() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem_with(SubsystemOptions {
        allow_any_host: true,
        max_namespaces: 2000,
        ..SubsystemOptions::new(nqn(NQN))
    });
    let host = rig.host(NQN);
    let device = bdev(TestDevice::new(512, 64), rig.now);
    for nsid in 1..=1024 {
        drop(subsystem.add_namespace(namespace(nsid, &device)).unwrap());
    }
    rig.poll();
    assert_eq!(changed(&mut rig, &host, true).len(), 1024);
    drop(subsystem.add_namespace(namespace(1025, &device)).unwrap());
    rig.poll();
    assert_eq!(changed(&mut rig, &host, false), [0xffff_ffff]);
    assert_eq!(changed(&mut rig, &host, false), [0; 0]);
}

fn with_ana(rig: &mut Rig) -> (Arc<nvmf::Subsystem>, Host) {
    let subsystem = rig.subsystem_with(SubsystemOptions {
        allow_any_host: true,
        ana_reporting: true,
        ..SubsystemOptions::new(nqn(NQN))
    });
    let device = bdev(TestDevice::new(512, 64), rig.now);
    drop(subsystem.add_namespace(namespace(1, &device)).unwrap());
    let host = rig.host(NQN);
    (subsystem, host)
}

#[test]
fn ana_changes_are_told_and_joining_namespaces_are_not_ana_changes() {
    let mut rig = Rig::new();
    let (subsystem, host) = with_ana(&mut rig);
    for cid in 1..=4 {
        ask(&mut rig, &host, cid);
    }
    let inaccessible = AnaState::Inaccessible;
    drop(
        subsystem
            .set_ana_state(&address(4420), None, inaccessible)
            .unwrap(),
    );
    rig.poll();
    assert_eq!(told(&host.admin, 1), Some(ANA));
    drop(
        subsystem
            .set_ana_state(&address(4420), None, AnaState::Optimized)
            .unwrap(),
    );
    rig.poll();
    assert!(
        host.admin.wire().replies.is_empty(),
        "masked until the log is read"
    );
    log(&mut rig, &host, lid::ANA, 52, true);
    log(&mut rig, &host, lid::ANA, 52, false);
    drop(subsystem.set_ana_group(Nsid(1), AnaGroupId(3)).unwrap());
    rig.poll();
    assert_eq!(told(&host.admin, 2), Some(ANA));
    log(&mut rig, &host, lid::ANA, 52, false);
    let device = bdev(TestDevice::new(512, 64), rig.now);
    drop(subsystem.add_namespace(namespace(2, &device)).unwrap());
    rig.poll();
    assert_eq!(told(&host.admin, 3), Some(NAMESPACE));
    assert!(host.admin.wire().replies.is_empty());
}

#[test]
fn two_events_at_once_are_two_answers_and_no_more() {
    let mut rig = Rig::new();
    let (subsystem, host) = with_ana(&mut rig);
    for cid in 1..=4 {
        ask(&mut rig, &host, cid);
    }
    drop(subsystem.namespace_resized(Nsid(1)).unwrap());
    drop(
        subsystem
            .set_ana_state(&address(4420), None, AnaState::NonOptimized)
            .unwrap(),
    );
    rig.poll();
    assert_eq!(host.admin.wire().replies.len(), 2);
    assert_eq!(
        (told(&host.admin, 1), told(&host.admin, 2)),
        (Some(NAMESPACE), Some(ANA))
    );
    // The two answered have their places back.
    ask(&mut rig, &host, 1);
    ask(&mut rig, &host, 2);
    let fifth = Sqe::async_event_request(Cid(5));
    let status = rig.status(&host.admin, fifth, &[]);
    assert_eq!(status, dnr(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED));
}

#[test]
fn events_wait_for_a_request_and_reading_the_log_first_takes_them_back() {
    let mut rig = Rig::new();
    let (subsystem, host) = with_ana(&mut rig);
    drop(subsystem.namespace_resized(Nsid(1)).unwrap());
    drop(
        subsystem
            .set_ana_state(&address(4420), None, AnaState::NonOptimized)
            .unwrap(),
    );
    rig.poll();
    assert_eq!(changed(&mut rig, &host, false), [1]);
    ask(&mut rig, &host, 1);
    assert_eq!(
        told(&host.admin, 1),
        Some(ANA),
        "of the list the host knows already"
    );
    ask(&mut rig, &host, 2);
    assert!(host.admin.wire().replies.is_empty());
}

#[test]
fn events_that_the_host_does_not_want_are_not_told() {
    let mut rig = Rig::new();
    let (subsystem, host) = with_ana(&mut rig);
    let none = Sqe::set_features(Cid(9), fid::ASYNC_EVENT_CONFIG, 0);
    assert!(rig.status(&host.admin, none, &[]).is_success());
    ask(&mut rig, &host, 1);
    drop(subsystem.namespace_resized(Nsid(1)).unwrap());
    drop(
        subsystem
            .set_ana_state(&address(4420), None, AnaState::NonOptimized)
            .unwrap(),
    );
    rig.poll();
    assert!(host.admin.wire().replies.is_empty());
    assert_eq!(
        changed(&mut rig, &host, false),
        [1],
        "the list is kept all the same"
    );
}

#[test]
fn a_devices_failure_is_an_error_event_and_a_hosts_mistake_is_not() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    ask(&mut rig, &served.host, 1);
    assert!(!rig.status(&served.io, read(1, 999, 1), &[]).is_success());
    assert!(told(&served.host.admin, 1).is_none());
    for _ in 0..2 {
        served.device.state().failures.push_back(IoError::MediaRead);
        assert!(!rig.status(&served.io, read(1, 0, 1), &[]).is_success());
    }
    assert_eq!(told(&served.host.admin, 1), Some(ERROR));
    ask(&mut rig, &served.host, 2);
    assert!(told(&served.host.admin, 2).is_none(), "masked");
    log(&mut rig, &served.host, lid::ERROR, 64, false);
    served.device.state().failures.push_back(IoError::Internal);
    assert!(!rig.status(&served.io, read(1, 0, 1), &[]).is_success());
    assert_eq!(told(&served.host.admin, 2), Some(ERROR));
}

#[test]
fn discovery_controllers_hear_of_every_change_of_the_log() {
    let mut rig = Rig::new();
    let host = rig.host(DISCOVERY);
    ask(&mut rig, &host, 1);
    rig.subsystem(NQN);
    rig.poll();
    assert_eq!(told(&host.admin, 1), Some(DISCOVERED));
    ask(&mut rig, &host, 2);
    log(&mut rig, &host, lid::DISCOVERY, 1024, false);
    assert!(told(&host.admin, 2).is_none());
    rig.target.add_referral(Referral {
        address: address(8009),
        nqn: nqn(DISCOVERY),
    });
    rig.poll();
    assert_eq!(told(&host.admin, 2), Some(DISCOVERED));
}

#[test]
fn what_happens_while_a_controller_is_disabled_is_no_event() {
    let mut rig = Rig::new();
    let host = rig.host(DISCOVERY);
    rig.set_cc(&host.admin, nvme_spec::registers::Cc::default());
    rig.subsystem(NQN);
    rig.set_cc(&host.admin, crate::rig::enabled());
    ask(&mut rig, &host, 1);
    assert!(host.admin.wire().replies.is_empty());
    rig.target.add_referral(Referral {
        address: address(8009),
        nqn: nqn(DISCOVERY),
    });
    rig.poll();
    assert_eq!(told(&host.admin, 1), Some(DISCOVERED));
}

// Abort.

fn abort(rig: &mut Rig, host: &Host, qid: u16, cid: u16) -> bool {
    rig.send(&host.admin, Sqe::abort(Cid(700), Qid(qid), Cid(cid)), &[]);
    for _ in 0..3 {
        rig.advance(Duration::from_millis(1));
    }
    let reply = take(&host.admin, Cid(700)).unwrap();
    assert!(reply.cqe.status().is_success());
    reply.cqe.dw0() & 1 == 0
}

fn in_each_group(test: impl Fn(&mut Rig, &Served, &End)) {
    for group in [0, 1] {
        let mut rig = Rig::with(RigOptions {
            groups: 2,
            ..RigOptions::default()
        });
        let served = rig.with_device(512, 64);
        let io = rig.io_in(group, &served.host, 2);
        test(&mut rig, &served, &io);
        served.device.state().holds = false;
        rig.poll();
        assert!(rig.status(&io, read(99, 0, 1), &[]).is_success());
        rig.assert_all_buffers_back();
    }
}

const ABORTED: Option<Status> = Some(Status::COMMAND_ABORT_REQUESTED);

#[test]
fn a_command_in_a_paused_namespace_is_aborted() {
    in_each_group(|rig, served, io| {
        let ticket = served.subsystem.pause(Nsid(1)).unwrap();
        rig.finish(ticket);
        rig.send(io, read(1, 0, 1), &[]);
        rig.send(io, read(2, 1, 1), &[]);
        assert!(abort(rig, &served.host, 2, 1));
        assert_eq!(taken(io, 1), ABORTED);
        served.subsystem.resume(Nsid(1)).unwrap();
        rig.poll();
        assert_eq!(taken(io, 2), Some(Status::SUCCESS));
        assert_eq!(served.device.state().ops.len(), 1);
    });
}

#[test]
fn a_command_that_waits_for_a_buffer_is_aborted_and_leaves_the_queue() {
    for group in [0, 1] {
        let mut rig = Rig::with(RigOptions {
            groups: 2,
            iobuf: dma::IobufOptions {
                small_pool_count: 65,
                large_pool_count: 1,
                backing: dma::BackingPreference::Plain4K,
                ..dma::IobufOptions::default()
            },
            ..RigOptions::default()
        });
        let served = rig.with_device(512, 64);
        let io = rig.io_in(group, &served.host, 2);
        served.device.state().holds = true;
        for cid in 1..=3 {
            rig.send(&io, read(cid, 0, 1), &[]);
        }
        assert!(abort(&mut rig, &served.host, 2, 2));
        assert_eq!(taken(&io, 2), ABORTED);
        served.device.state().holds = false;
        rig.poll();
        assert_eq!(taken(&io, 1), Some(Status::SUCCESS));
        assert_eq!(taken(&io, 3), Some(Status::SUCCESS));
        rig.assert_all_buffers_back();
    }
}

#[test]
fn what_a_device_has_begun_is_not_aborted() {
    in_each_group(|rig, served, io| {
        served.device.state().holds = true;
        rig.send(io, read(1, 0, 1), &[]);
        assert!(!abort(rig, &served.host, 2, 1));
        assert!(io.wire().replies.is_empty());
        served.device.state().holds = false;
        rig.poll();
        assert_eq!(taken(io, 1), Some(Status::SUCCESS));
    });
}

#[test]
fn what_a_device_has_only_queued_is_aborted() {
    in_each_group(|rig, served, io| {
        {
            let mut device = served.device.state();
            device.holds = true;
            device.can_abort = true;
        }
        rig.send(io, read(1, 0, 1), &[]);
        rig.send(io, write(2, 0, 1), &[1; 512]);
        assert!(abort(rig, &served.host, 2, 2));
        assert_eq!(taken(io, 2), ABORTED);
        served.device.state().holds = false;
        rig.poll();
        assert_eq!(taken(io, 1), Some(Status::SUCCESS));
        assert_eq!(served.device.state().data[0], 0);
    });
}

#[test]
fn a_first_half_that_waits_is_aborted_and_one_that_runs_is_not() {
    in_each_group(|rig, served, io| {
        let mut first = write(1, 5, 1).with_fuse(Fuse::First);
        first.opcode = nvm::COMPARE;
        let second = write(2, 5, 1).with_fuse(Fuse::Second);
        rig.send(io, first, &[0; 512]);
        assert!(abort(rig, &served.host, 2, 1));
        assert_eq!(taken(io, 1), ABORTED);
        rig.send(io, second, &[1; 512]);
        assert!(!taken(io, 2).unwrap().is_success());
        served.device.state().holds = true;
        rig.send(io, first, &[0; 512]);
        rig.send(io, second, &[1; 512]);
        assert!(!abort(rig, &served.host, 2, 1), "the device has the pair");
        served.device.state().holds = false;
        rig.poll();
        assert_eq!(taken(io, 1), Some(Status::SUCCESS));
        assert_eq!(taken(io, 2), Some(Status::SUCCESS));
    });
}

#[test]
fn event_requests_are_aborted_and_unknown_commands_are_not() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    ask(&mut rig, &served.host, 1);
    ask(&mut rig, &served.host, 2);
    assert!(abort(&mut rig, &served.host, 0, 1));
    assert_eq!(taken(&served.host.admin, 1), ABORTED);
    drop(served.subsystem.namespace_resized(Nsid(1)).unwrap());
    rig.poll();
    assert_eq!(
        told(&served.host.admin, 2),
        Some(NAMESPACE),
        "the next in turn gets the event"
    );
    for (qid, cid) in [(0, 33), (0, 700), (1, 33)] {
        assert!(!abort(&mut rig, &served.host, qid, cid));
    }
    let no_queue = Sqe::abort(Cid(1), Qid(9), Cid(1));
    assert_eq!(
        rig.status(&served.host.admin, no_queue, &[]),
        dnr(Status::INVALID_FIELD)
    );
}

#[test]
fn no_more_aborts_wait_for_other_threads_than_identify_tells() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let _far = rig.io_in(1, &served.host, 2);
    // The other thread does not answer: only this one is polled.
    for cid in 1..=5 {
        let sqe = Sqe::abort(Cid(cid), Qid(2), Cid(9));
        served
            .host
            .admin
            .wire()
            .capsules
            .push_back((sqe, Vec::new()));
    }
    rig.groups[0].poll(rig.now);
    assert_eq!(
        taken(&served.host.admin, 5),
        Some(Status::ABORT_COMMAND_LIMIT_EXCEEDED)
    );
    rig.poll();
    rig.advance(Duration::from_millis(1));
    assert_eq!(served.host.admin.wire().replies.len(), 4);
}
