//! Pauses, removal, visibility, write protection, ANA, access; buffers that run out; tickets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use block::{BlockDevice, OpKind};
use dma::IobufOptions;
use nvme_spec::feature::{Select, fid};
use nvme_spec::{Cid, Fuse, Lba, Nsid, Sqe, Status};
use nvmf::transport::CloseReason;
use nvmf::{
    AnaGroupId, AnaState, SubsystemOptions, SubsystemState, TargetError, TargetEvent, Visibility,
    WriteProtect,
};

use crate::device::TestDevice;
use crate::rig::{
    HOST, NQN, Rig, RigOptions, Served, address, bdev, capsule, closed, dnr, flush, namespace, nqn,
    read, taken, transport, write,
};

const OTHER_HOST: &str = "nqn.2026-11.io.adit:other-host";
const GONE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true);

#[test]
fn commands_wait_while_their_namespace_is_paused_and_then_go_on_in_order() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    assert_eq!(served.subsystem.state(), SubsystemState::Pausing);
    rig.finish(ticket);
    assert_eq!(served.subsystem.state(), SubsystemState::Paused);
    for cid in 0..4 {
        rig.send(&served.io, read(cid, u64::from(cid), 1), &[]);
    }
    rig.send(&served.io, capsule(write(4, 4, 1), 512), &[1; 512]);
    assert!(served.io.wire().replies.is_empty());
    assert!(served.device.state().ops.is_empty());
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    let cids: Vec<u16> = served
        .io
        .wire()
        .replies
        .iter()
        .map(|reply| reply.cqe.cid().0)
        .collect();
    assert_eq!(cids, [0, 1, 2, 3, 4]);
    assert_eq!(served.subsystem.state(), SubsystemState::Active);
    assert!(matches!(
        served.subsystem.resume(Nsid(1)),
        Err(TargetError::WrongState { .. })
    ));
    rig.assert_all_buffers_back();
}

#[test]
fn only_the_namespace_that_is_paused_waits() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let second = bdev(TestDevice::new(512, 64), rig.now);
    let (_, ticket) = served
        .subsystem
        .add_namespace(namespace(2, &second))
        .unwrap();
    rig.finish(ticket);
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    rig.finish(ticket);
    // Also behind a write to the paused one whose data is in its capsule.
    rig.send(&served.io, capsule(write(1, 0, 1), 512), &[1; 512]);
    rig.send(&served.io, read(2, 0, 1), &[]);
    assert!(
        rig.status(&served.io, read(3, 0, 1).with_nsid(Nsid(2)), &[])
            .is_success()
    );
    assert_eq!(served.io.wire().replies.len(), 0);
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(served.io.wire().replies.len(), 2);
}

#[test]
fn a_pause_is_complete_when_the_device_holds_nothing() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 1), &[]);
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    rig.poll();
    assert!(!ticket.is_done());
    served.device.state().holds = false;
    rig.poll();
    assert!(ticket.is_done());
    assert!(taken(&served.io, 1).is_some());
}

#[test]
fn a_host_that_holds_back_its_data_holds_up_no_pause_and_no_removal() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.io.wire().holds_data = true;
    rig.send(&served.io, write(1, 0, 1), &[1; 512]);
    rig.send(&served.io, write(2, 0, 1).with_fuse(Fuse::First), &[1; 512]);
    assert!(!served.io.wire().awaited.is_empty());
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    rig.poll();
    assert!(ticket.is_done());
    served.io.wire().holds_data = false;
    rig.poll();
    assert!(
        served.device.state().ops.is_empty(),
        "its data came, and it waits now"
    );
    let ticket = served.subsystem.remove_namespace(Nsid(1)).unwrap();
    rig.poll();
    assert!(ticket.is_done());
    assert_eq!(served.device.state().channels, 0);
    assert_eq!(taken(&served.io, 1), Some(GONE));
}

#[test]
fn pauses_add_up_and_hold_for_namespaces_used_later() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let second = bdev(TestDevice::new(512, 64), rig.now);
    let (_, ticket) = served
        .subsystem
        .add_namespace(namespace(2, &second))
        .unwrap();
    rig.finish(ticket);
    // Nothing has used either in this group yet.
    for nsid in [Nsid::ALL, Nsid(1), Nsid(1)] {
        let ticket = served.subsystem.pause(nsid).unwrap();
        rig.finish(ticket);
    }
    rig.send(&served.io, read(1, 0, 1), &[]);
    rig.send(&served.io, read(2, 0, 1).with_nsid(Nsid(2)), &[]);
    assert!(served.io.wire().replies.is_empty());
    served.subsystem.resume(Nsid::ALL).unwrap();
    rig.poll();
    assert_eq!(taken(&served.io, 2), Some(Status::SUCCESS));
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert!(taken(&served.io, 1).is_none());
    // Resumed and paused again before the commands could run.
    served.subsystem.resume(Nsid(1)).unwrap();
    drop(served.subsystem.pause(Nsid(1)).unwrap());
    rig.poll();
    assert!(taken(&served.io, 1).is_none());
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(taken(&served.io, 1), Some(Status::SUCCESS));
}

#[test]
fn a_group_that_joins_during_a_pause_is_paused() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    rig.finish(ticket);
    let io = rig.io_in(1, &served.host, 2);
    rig.send(&io, read(1, 0, 1), &[]);
    assert!(io.wire().replies.is_empty());
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(taken(&io, 1), Some(Status::SUCCESS));
}

#[test]
fn a_second_pause_while_paused_is_complete_at_once() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    for _ in 0..2 {
        let ticket = served.subsystem.pause(Nsid(1)).unwrap();
        rig.finish(ticket);
        rig.send(&served.io, read(1, 0, 1), &[]);
    }
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(served.subsystem.state(), SubsystemState::Paused);
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(served.subsystem.state(), SubsystemState::Active);
    assert!(taken(&served.io, 1).is_some());
}

#[test]
fn pauses_are_refused_for_what_is_not_there() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let no_namespace = served.subsystem.pause(Nsid(9));
    assert!(matches!(no_namespace, Err(TargetError::NoNamespace { .. })));
    let ticket = served.subsystem.stop();
    rig.finish(ticket);
    let inactive = served.subsystem.pause(Nsid(1));
    assert!(matches!(inactive, Err(TargetError::WrongState { .. })));
}

#[test]
fn removal_of_a_paused_namespace_fails_what_waits() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let ticket = served.subsystem.pause(Nsid(1)).unwrap();
    rig.finish(ticket);
    rig.send(&served.io, read(1, 0, 1), &[]);
    let ticket = served.subsystem.remove_namespace(Nsid(1)).unwrap();
    rig.finish(ticket);
    assert_eq!(taken(&served.io, 1), Some(GONE));
    served.subsystem.resume(Nsid(1)).unwrap();
    rig.poll();
    assert_eq!(rig.status(&served.io, read(2, 0, 1), &[]), GONE);
}

#[test]
fn removal_is_complete_when_the_device_has_let_go_and_may_be_deleted() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 1), &[]);
    let ticket = served.subsystem.remove_namespace(Nsid(1)).unwrap();
    rig.poll();
    assert!(!ticket.is_done());
    assert_eq!(rig.status(&served.io, read(2, 0, 1), &[]), GONE);
    served.device.state().holds = false;
    rig.poll();
    assert!(ticket.is_done());
    assert_eq!(taken(&served.io, 1), Some(Status::SUCCESS));
    assert_eq!(
        served.bdev.open_channels(),
        0,
        "whoever waited may delete the device"
    );
    // The number can be used again, for another device.
    let next = TestDevice::new(512, 8);
    let next_bdev = bdev(Arc::clone(&next) as _, rig.now);
    let (_, ticket) = served
        .subsystem
        .add_namespace(namespace(1, &next_bdev))
        .unwrap();
    rig.finish(ticket);
    assert!(rig.status(&served.io, read(3, 0, 1), &[]).is_success());
    assert_eq!(next.count(OpKind::Read), 1);
}

#[test]
fn a_lost_connection_leaves_its_buffers_with_the_device() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, write(1, 0, 8), &[5; 4096]);
    rig.send(&served.io, read(2, 8, 8), &[]);
    served.io.wire().is_cut = true;
    rig.poll();
    assert_eq!(served.device.state().held, 2);
    let stats = rig.pool.stats();
    assert_eq!(
        stats.small.total - stats.small.free,
        2,
        "the device still has them"
    );
    // The place of the old connection is taken by a new one meanwhile.
    let other = rig.io(&served.host, 2);
    rig.send(&other, read(1, 0, 1), &[]);
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(taken(&other, 1), Some(Status::SUCCESS));
    assert_eq!(
        other.wire().replies.len(),
        0,
        "nothing of the old connection comes out here"
    );
    assert_eq!(served.device.state().data[0], 5);
    rig.assert_all_buffers_back();
}

#[test]
fn commands_wait_for_buffers_in_their_order_and_hosts_still_connect() {
    let mut rig = Rig::with(RigOptions {
        iobuf: IobufOptions {
            small_pool_count: 64 + 4,
            large_pool_count: 1,
            backing: dma::BackingPreference::Plain4K,
            ..IobufOptions::default()
        },
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    for cid in 0..12 {
        rig.send(&served.io, read(cid, u64::from(cid), 1), &[]);
    }
    // Half of what there is: the rest is for other hosts.
    assert_eq!(served.device.state().held, 2);
    let waits = rig.groups[0]
        .handle()
        .counters
        .buffer_waits
        .load(Ordering::Relaxed);
    assert_eq!(waits, 10);
    // The reserve: another host comes in, and asks.
    let other = rig.host(NQN);
    let io = rig.io(&other, 1);
    let identify = transport(Sqe::identify(Cid(1), Nsid(0), 1), 4096);
    assert!(rig.status(&other.admin, identify, &[]).is_success());
    rig.send(&io, read(1, 20, 1), &[]);
    served.device.state().holds = false;
    rig.poll();
    let cids: Vec<u16> = served
        .io
        .wire()
        .replies
        .iter()
        .map(|reply| reply.cqe.cid().0)
        .collect();
    assert_eq!(cids, (0..12).collect::<Vec<_>>());
    assert_eq!(taken(&io, 1), Some(Status::SUCCESS));
    rig.assert_all_buffers_back();
}

#[test]
fn a_connection_that_goes_while_it_waits_for_buffers_leaves_the_queue() {
    let mut rig = Rig::with(RigOptions {
        iobuf: IobufOptions {
            small_pool_count: 64 + 1,
            large_pool_count: 1,
            backing: dma::BackingPreference::Plain4K,
            ..IobufOptions::default()
        },
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    let other = rig.io(&served.host, 2);
    rig.send(&served.io, read(1, 0, 1), &[]);
    rig.send(&other, read(1, 1, 1), &[]);
    rig.send(&served.io, read(2, 2, 1), &[]);
    other.wire().is_cut = true;
    rig.poll();
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(served.io.wire().replies.len(), 2);
    rig.assert_all_buffers_back();
}

#[test]
fn a_host_taken_off_the_list_is_disconnected() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem_with(SubsystemOptions::new(nqn(NQN)));
    drop(subsystem.add_host(nqn(HOST)).unwrap());
    drop(subsystem.add_host(nqn(OTHER_HOST)).unwrap());
    let device = TestDevice::new(512, 64);
    let bdev = bdev(Arc::clone(&device) as _, rig.now);
    drop(subsystem.add_namespace(namespace(1, &bdev)).unwrap());
    let (host, other) = (rig.host(NQN), rig.host_in(0, NQN, OTHER_HOST));
    let (io, other_io) = (rig.io(&host, 1), rig.io(&other, 1));
    device.state().holds = true;
    rig.send(&io, read(1, 0, 1), &[]);
    let ticket = subsystem.remove_host(&nqn(HOST)).unwrap();
    rig.poll();
    assert_eq!(closed(&host.admin), Some(CloseReason::ControllerEnded));
    assert_eq!(closed(&io), Some(CloseReason::ControllerEnded));
    assert!(!ticket.is_done(), "a device still holds I/O of it");
    device.state().holds = false;
    rig.poll();
    assert!(ticket.is_done());
    assert!(rig.status(&other_io, read(1, 0, 1), &[]).is_success());
    rig.finish(subsystem.set_allow_any_host(true).unwrap());
    rig.host(NQN);
    rig.finish(subsystem.set_allow_any_host(false).unwrap());
    assert_eq!(subsystem.controllers().len(), 1);
}

#[test]
fn a_listener_taken_away_disconnects_those_who_came_by_it() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let ticket = served.subsystem.remove_listener(&address(4420)).unwrap();
    rig.finish(ticket);
    assert!(closed(&served.io).is_some());
    assert!(served.subsystem.controllers().is_empty());
}

#[test]
fn a_deleted_subsystem_is_gone_when_its_ticket_is_done_and_its_name_is_free() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 1), &[]);
    let ticket = rig.target.delete_subsystem(&nqn(NQN)).unwrap();
    assert_eq!(served.subsystem.state(), SubsystemState::Deactivating);
    // The same name at once, while the old one's queue pairs are still there.
    let next = TestDevice::new(512, 8);
    let next_bdev = bdev(Arc::clone(&next) as _, rig.now);
    let subsystem = rig.subsystem(NQN);
    drop(subsystem.add_namespace(namespace(1, &next_bdev)).unwrap());
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    assert!(rig.status(&io, read(1, 0, 1), &[]).is_success());
    assert_eq!(
        next.count(OpKind::Read),
        1,
        "the namespace of the new subsystem"
    );
    assert!(!ticket.is_done());
    served.device.state().holds = false;
    rig.poll();
    assert!(ticket.is_done());
    assert_eq!(served.bdev.open_channels(), 0);
    assert_eq!(served.subsystem.state(), SubsystemState::Inactive);
    assert_eq!(closed(&io), None);
    assert!(
        rig.target
            .delete_subsystem(&nqn("nqn.2026-11.io.adit:none"))
            .is_err()
    );
}

#[test]
fn a_stopped_subsystem_starts_again() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let ticket = served.subsystem.stop();
    rig.finish(ticket);
    assert!(closed(&served.host.admin).is_some());
    assert_eq!(served.subsystem.state(), SubsystemState::Inactive);
    served.subsystem.start();
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    assert!(rig.status(&io, read(1, 0, 1), &[]).is_success());
}

#[test]
fn shutting_down_closes_every_queue_pair() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let io = rig.io_in(1, &served.host, 2);
    served.device.state().holds = true;
    rig.send(&io, read(1, 0, 1), &[]);
    // They have sent nothing yet: one is in its group, one on its way there.
    let half_open = rig.dial_in(1);
    let late = rig.transport.dial(&address(4420));
    rig.groups[0].poll(rig.now);
    let ticket = rig.target.shut_down();
    rig.poll();
    assert_eq!(closed(&served.io), Some(CloseReason::Shutdown));
    assert_eq!(closed(&half_open), Some(CloseReason::Shutdown));
    assert!(closed(&late).is_some() || late.is_dropped());
    assert_eq!(rig.groups[1].connection_count(), 0);
    assert!(closed(&io).is_some());
    assert!(!ticket.is_done());
    served.device.state().holds = false;
    rig.poll();
    assert!(ticket.is_done());
    rig.assert_all_buffers_back();
}

#[test]
fn a_dropped_poll_group_leaves_no_ticket_open() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let io = rig.io_in(1, &served.host, 2);
    rig.next_group.store(1, Ordering::Relaxed);
    served.device.state().holds = true;
    rig.send(&io, read(1, 0, 1), &[]);
    let pause = served.subsystem.pause(Nsid(1)).unwrap();
    let stop = served.subsystem.stop();
    drop(rig.groups.pop());
    rig.poll();
    assert!(pause.is_done());
    assert!(stop.is_done());
    assert!(served.subsystem.controllers().is_empty());
    // What is sent to a group that is gone is done, too: here the end of its listener.
    drop(rig.groups.pop());
    assert!(rig.target.stop_listening(&address(4420)).is_done());
}

/// What was open when a ticket was done, not when somebody came to look.
struct OpenAtWake {
    bdev: Arc<block::Bdev>,
    open_channels: std::sync::atomic::AtomicUsize,
}

impl std::task::Wake for OpenAtWake {
    fn wake(self: Arc<Self>) {
        self.open_channels
            .store(self.bdev.open_channels(), Ordering::Relaxed);
    }
}

#[test]
fn whoever_waits_for_an_end_may_delete_the_device_at_once() {
    type End = fn(&Rig, &Served) -> nvmf::Ticket;
    let ends: [End; 4] = [
        |_, served| served.subsystem.remove_namespace(Nsid(1)).unwrap(),
        |_, served| served.subsystem.stop(),
        |rig, _| rig.target.delete_subsystem(&nqn(NQN)).unwrap(),
        |rig, _| rig.target.shut_down(),
    ];
    for end in ends {
        let mut rig = Rig::new();
        let served = rig.with_device(512, 64);
        served.device.state().holds = true;
        rig.send(&served.io, read(1, 0, 1), &[]);
        let mut ticket = std::pin::pin!(end(&rig, &served));
        let seen = Arc::new(OpenAtWake {
            bdev: Arc::clone(&served.bdev),
            open_channels: std::sync::atomic::AtomicUsize::new(usize::MAX),
        });
        let waker = std::task::Waker::from(Arc::clone(&seen));
        let mut context = std::task::Context::from_waker(&waker);
        assert!(ticket.as_mut().poll(&mut context).is_pending());
        rig.poll();
        assert!(ticket.as_mut().poll(&mut context).is_pending());
        served.device.state().holds = false;
        rig.poll();
        assert!(ticket.as_mut().poll(&mut context).is_ready());
        assert_eq!(seen.open_channels.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn write_protection_refuses_what_changes_blocks_and_nothing_else() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let protected = dnr(Status::NAMESPACE_WRITE_PROTECTED);
    // A write whose data is on its way when the protection comes.
    served.io.wire().holds_data = true;
    rig.send(&served.io, write(9, 0, 1), &[1; 512]);
    let ticket = served
        .subsystem
        .set_write_protect(Nsid(1), WriteProtect::WriteProtect)
        .unwrap();
    rig.finish(ticket);
    served.io.wire().holds_data = false;
    rig.poll();
    assert_eq!(taken(&served.io, 9), Some(protected));
    let zeroes = Sqe::write_zeroes(Cid(1), Nsid(1), Lba(0), 1);
    let deallocate = transport(Sqe::deallocate(Cid(1), Nsid(1), 1), 16);
    for sqe in [write(1, 0, 1), zeroes, deallocate] {
        assert_eq!(rig.status(&served.io, sqe, &[0; 512]), protected);
    }
    assert!(rig.status(&served.io, read(1, 0, 1), &[]).is_success());
    assert!(rig.status(&served.io, flush(1), &[]).is_success());
    assert!(served.device.state().data.iter().all(|byte| *byte == 0));
    let ticket = served
        .subsystem
        .set_write_protect(Nsid(1), WriteProtect::None)
        .unwrap();
    rig.finish(ticket);
    assert!(
        rig.status(&served.io, write(1, 0, 1), &[1; 512])
            .is_success()
    );
}

#[test]
fn a_host_sets_write_protection_in_every_group_and_the_owner_hears_of_it() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let io = rig.io_in(1, &served.host, 2);
    assert!(rig.status(&io, write(1, 0, 1), &[1; 512]).is_success());
    let set = |value| {
        Sqe::set_features(Cid(1), fid::NAMESPACE_WRITE_PROTECTION, value).with_nsid(Nsid(1))
    };
    rig.send(&served.host.admin, set(1), &[]);
    rig.advance(Duration::from_millis(1));
    assert_eq!(taken(&served.host.admin, 1), Some(Status::SUCCESS));
    let status = rig.status(&io, write(1, 0, 1), &[2; 512]);
    assert_eq!(status, dnr(Status::NAMESPACE_WRITE_PROTECTED));
    let get = Sqe::get_features(Cid(1), fid::NAMESPACE_WRITE_PROTECTION, Select::Current);
    let reply = rig.run(&served.host.admin, get.with_nsid(Nsid(1)), &[]);
    assert_eq!(reply.cqe.result(), 1);
    let (events, _) = rig.target.take_events(None);
    assert!(events.contains(&TargetEvent::WriteProtectChanged {
        nqn: nqn(NQN),
        nsid: Nsid(1),
        write_protect: WriteProtect::WriteProtect,
    }));
    for wrong in [2, 3, 7] {
        let status = rig.status(&served.host.admin, set(wrong), &[]);
        assert_eq!(status, dnr(Status::INVALID_FIELD));
    }
}

#[test]
fn a_read_only_device_is_a_write_protected_namespace() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let geometry = TestDevice::new(512, 64).geometry();
    let device = TestDevice::with(block::Geometry {
        read_only: true,
        ..geometry
    });
    let bdev = bdev(device, rig.now);
    drop(subsystem.add_namespace(namespace(1, &bdev)).unwrap());
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    let status = rig.status(&io, write(1, 0, 1), &[0; 512]);
    assert_eq!(status, dnr(Status::NAMESPACE_WRITE_PROTECTED));
}

#[test]
fn a_namespace_is_there_only_for_the_hosts_that_see_it() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let other = rig.host_in(0, NQN, OTHER_HOST);
    let other_io = rig.io(&other, 1);
    assert!(rig.status(&other_io, read(1, 0, 1), &[]).is_success());
    let visibility = Visibility::Hosts([nqn(HOST)].into());
    // A write whose data is on its way when the namespace is hidden.
    other_io.wire().holds_data = true;
    rig.send(&other_io, write(2, 0, 1), &[1; 512]);
    let ticket = served
        .subsystem
        .set_visibility(Nsid(1), visibility)
        .unwrap();
    rig.finish(ticket);
    other_io.wire().holds_data = false;
    rig.poll();
    assert_eq!(taken(&other_io, 2), Some(GONE));
    assert_eq!(rig.status(&other_io, read(1, 0, 1), &[]), GONE);
    assert!(rig.status(&served.io, read(1, 0, 1), &[]).is_success());
    let identify = |nsid, cns| transport(Sqe::identify(Cid(1), Nsid(nsid), cns), 4096);
    let list = rig.run(&other.admin, identify(0, 2), &[]).data;
    assert!(list.iter().all(|byte| *byte == 0));
    let data = rig.run(&other.admin, identify(1, 0), &[]).data;
    assert!(
        data.iter().all(|byte| *byte == 0),
        "as if there were no such namespace"
    );
    assert_eq!(rig.status(&other.admin, identify(1, 3), &[]), GONE);
    let get = Sqe::get_features(Cid(1), fid::NAMESPACE_WRITE_PROTECTION, Select::Current);
    assert_eq!(rig.status(&other.admin, get.with_nsid(Nsid(1)), &[]), GONE);
}

#[test]
fn each_ana_state_answers_with_its_status() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let cases = [
        (AnaState::Optimized, Status::SUCCESS),
        (AnaState::NonOptimized, Status::SUCCESS),
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
        (AnaState::Optimized, Status::SUCCESS),
    ];
    for (state, expected) in cases {
        let group = Some(AnaGroupId(1));
        let ticket = served
            .subsystem
            .set_ana_state(&address(4420), group, state)
            .unwrap();
        rig.finish(ticket);
        assert_eq!(rig.status(&served.io, read(1, 0, 1), &[]), expected);
        assert_eq!(rig.status(&served.io, write(1, 0, 1), &[0; 512]), expected);
        assert_eq!(rig.status(&served.io, flush(1), &[]), expected);
    }
    // Another group's state is another's.
    let group = Some(AnaGroupId(2));
    let inaccessible = AnaState::Inaccessible;
    drop(
        served
            .subsystem
            .set_ana_state(&address(4420), group, inaccessible)
            .unwrap(),
    );
    rig.poll();
    assert!(rig.status(&served.io, read(1, 0, 1), &[]).is_success());
    drop(
        served
            .subsystem
            .set_ana_group(Nsid(1), AnaGroupId(2))
            .unwrap(),
    );
    rig.poll();
    assert_eq!(
        rig.status(&served.io, read(1, 0, 1), &[]),
        Status::ANA_INACCESSIBLE
    );
    for group in [0, 1025] {
        let refused = served.subsystem.set_ana_group(Nsid(1), AnaGroupId(group));
        assert!(matches!(refused, Err(TargetError::BadAnaGroup { .. })));
    }
}

#[test]
fn a_resize_is_in_force_for_the_next_command() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    assert_eq!(
        rig.status(&served.io, read(1, 64, 1), &[]),
        dnr(Status::LBA_OUT_OF_RANGE)
    );
    served.bdev.resize(128).unwrap();
    rig.finish(served.subsystem.namespace_resized(Nsid(1)).unwrap());
    assert!(rig.status(&served.io, read(1, 64, 1), &[]).is_success());
    served.bdev.resize(32).unwrap();
    assert_eq!(
        rig.status(&served.io, read(1, 32, 1), &[]),
        dnr(Status::LBA_OUT_OF_RANGE)
    );
}

#[test]
fn reading_state_changes_nothing() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 1), &[]);
    let version = served.subsystem.config().version;
    for _ in 0..10 {
        for subsystem in rig.target.subsystems() {
            subsystem.state();
            for controller in subsystem.controllers() {
                assert_eq!(controller.qpairs().len(), 2);
            }
        }
        assert!(rig.groups[0].may_sleep(), "nobody was sent a message");
    }
    assert_eq!(served.subsystem.config().version, version);
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(taken(&served.io, 1), Some(Status::SUCCESS));
}

#[test]
fn two_groups_share_a_controller_and_end_together() {
    let mut rig = Rig::with(RigOptions {
        groups: 2,
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    let far = rig.io_in(1, &served.host, 2);
    let groups: Vec<usize> = served.subsystem.controllers()[0]
        .qpairs()
        .iter()
        .map(|qpair| qpair.group.0)
        .collect();
    assert_eq!(groups, [0, 0, 1]);
    assert!(rig.status(&far, read(1, 0, 1), &[]).is_success());
    assert_eq!(
        served.bdev.open_channels(),
        1,
        "only the far queue has done I/O"
    );
    served.host.admin.wire().is_cut = true;
    rig.poll();
    assert!(closed(&served.io).is_some());
    assert!(closed(&far).is_some());
    assert_eq!(served.bdev.open_channels(), 0);
}
