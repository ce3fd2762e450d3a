//! Connect, properties, Disconnect, flow control, keep-alive.

use std::sync::Arc;
use std::time::Duration;

use fabric_wire::fabrics::{
    ConnectCommand, ConnectData, PropertyGet, PropertySet, PropertySize,
    connect_invalid_parameters_result,
};
use nvme_spec::registers::{self, Cap, Cc, ShutdownNotification, ShutdownStatus};
use nvme_spec::{Cid, Cntlid, Qid, Sqe, Status};
use nvmf::transport::CloseReason;
use nvmf::{AnaState, SubsystemOptions, TargetEvent};

use crate::rig::{
    Connect, HOST, NQN, Rig, address, closed, disconnect, dnr, enabled, nqn, property_set, read,
    take, taken,
};

const OTHER: &str = "nqn.2026-11.io.adit:other";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

fn refusal(rig: &mut Rig, connect: &Connect) -> (Status, u32) {
    let end = rig.dial();
    let reply = rig.connect(&end, connect);
    rig.poll();
    assert_eq!(
        closed(&end),
        Some(CloseReason::Disconnect),
        "a refused connection is closed"
    );
    (reply.cqe.status(), reply.cqe.dw0())
}

fn in_data(offset: u16) -> (Status, u32) {
    let status = dnr(Status::CONNECT_INVALID_PARAMETERS);
    (status, connect_invalid_parameters_result(true, offset))
}

fn in_command(offset: u16) -> (Status, u32) {
    let status = dnr(Status::CONNECT_INVALID_PARAMETERS);
    (status, connect_invalid_parameters_result(false, offset))
}

#[test]
fn each_wrong_field_of_an_admin_connect_is_named() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let good = Connect::admin(NQN);
    let case = |spoil: fn(&mut Connect)| {
        let mut connect = good.clone();
        spoil(&mut connect);
        connect
    };
    let cases = [
        (
            case(|c| c.subnqn = OTHER.into()),
            in_data(ConnectData::SUBNQN_OFFSET),
        ),
        (
            case(|c| c.cntlid = Cntlid(1)),
            in_data(ConnectData::CNTLID_OFFSET),
        ),
        (
            case(|c| c.cntlid = Cntlid::ANY_STATIC),
            in_data(ConnectData::CNTLID_OFFSET),
        ),
        (
            case(|c| c.hostid = [0; 16]),
            in_data(ConnectData::HOSTID_OFFSET),
        ),
        (
            case(|c| c.command.sqsize = 0),
            in_command(ConnectCommand::SQSIZE_OFFSET),
        ),
        (
            case(|c| c.command.sqsize = 32),
            in_command(ConnectCommand::SQSIZE_OFFSET),
        ),
        (
            case(|c| c.command.sqsize = 0xffff),
            in_command(ConnectCommand::SQSIZE_OFFSET),
        ),
    ];
    for (connect, expected) in cases {
        assert_eq!(refusal(&mut rig, &connect), expected);
    }
    let format = ConnectCommand {
        recfmt: 1,
        ..good.command
    };
    let end = rig.dial();
    let (sqe, data) = good.capsule(Cid(3));
    let wrong = format.to_sqe(Cid(3)).with_sgl(sqe.sgl());
    assert_eq!(
        rig.status(&end, wrong, &data),
        dnr(Status::CONNECT_INCOMPATIBLE_FORMAT)
    );
    assert!(
        rig.target
            .subsystem(&nqn(NQN))
            .unwrap()
            .controllers()
            .is_empty()
    );
    rig.assert_all_buffers_back();
}

#[test]
fn a_host_that_is_not_on_the_list_is_refused_until_it_is() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem_with(SubsystemOptions::new(nqn(NQN)));
    let (status, result) = refusal(&mut rig, &Connect::admin(NQN));
    assert_eq!(status, dnr(Status::CONNECT_INVALID_HOST));
    assert_eq!(
        result,
        connect_invalid_parameters_result(true, ConnectData::HOSTNQN_OFFSET)
    );
    drop(subsystem.add_host(nqn(HOST)).unwrap());
    rig.host(NQN);
    let (events, _) = rig.target.take_events(None);
    let TargetEvent::ConnectRefused { status, .. } = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!(status, "connect invalid host (1h/84h, do not retry)");
    assert!(matches!(
        &events[1],
        TargetEvent::ControllerConnected { .. }
    ));
}

#[test]
fn a_subsystem_is_not_there_at_addresses_without_a_listener_of_it() {
    let mut rig = Rig::new();
    let subsystem = rig.target.create_subsystem(SubsystemOptions {
        allow_any_host: true,
        ..SubsystemOptions::new(nqn(NQN))
    });
    let subsystem = subsystem.unwrap();
    rig.target.listen(&address(4421)).unwrap();
    drop(
        subsystem
            .add_listener(Arc::new(address(4421)), AnaState::Optimized)
            .unwrap(),
    );
    subsystem.start();
    assert_eq!(
        refusal(&mut rig, &Connect::admin(NQN)),
        in_data(ConnectData::SUBNQN_OFFSET)
    );
    let end = rig.transport.dial(&address(4421));
    rig.poll();
    assert!(
        rig.connect(&end, &Connect::admin(NQN))
            .cqe
            .status()
            .is_success()
    );
}

#[test]
fn an_inactive_subsystem_refuses_hosts() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let ticket = subsystem.stop();
    rig.finish(ticket);
    assert_eq!(
        refusal(&mut rig, &Connect::admin(NQN)),
        in_data(ConnectData::SUBNQN_OFFSET)
    );
}

#[test]
fn controller_identifiers_come_from_the_range_and_are_used_again() {
    let mut rig = Rig::new();
    rig.subsystem_with(SubsystemOptions {
        allow_any_host: true,
        min_cntlid: 5,
        max_cntlid: 6,
        ..SubsystemOptions::new(nqn(NQN))
    });
    let (first, second) = (rig.host(NQN), rig.host(NQN));
    assert_eq!((first.cntlid, second.cntlid), (Cntlid(5), Cntlid(6)));
    let (status, _) = refusal(&mut rig, &Connect::admin(NQN));
    assert_eq!(
        status,
        Status::CONNECT_CONTROLLER_BUSY,
        "the host may try again"
    );
    first.admin.wire().is_cut = true;
    rig.poll();
    assert_eq!(rig.host(NQN).cntlid, Cntlid(5));
}

#[test]
fn each_wrong_field_of_an_io_connect_is_named() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    rig.subsystem(OTHER);
    let host = rig.host(NQN);
    let good = host.io(1);
    let case = |spoil: fn(&mut Connect)| {
        let mut connect = good.clone();
        spoil(&mut connect);
        connect
    };
    let cases = [
        (
            case(|c| c.cntlid = Cntlid(77)),
            in_data(ConnectData::CNTLID_OFFSET),
        ),
        (
            case(|c| c.cntlid = Cntlid::DYNAMIC),
            in_data(ConnectData::CNTLID_OFFSET),
        ),
        (
            case(|c| c.subnqn = OTHER.into()),
            in_data(ConnectData::CNTLID_OFFSET),
        ),
        (
            case(|c| c.subnqn = DISCOVERY.into()),
            in_data(ConnectData::SUBNQN_OFFSET),
        ),
        (
            case(|c| c.hostnqn = OTHER.into()),
            in_data(ConnectData::HOSTNQN_OFFSET),
        ),
        (
            case(|c| c.hostid = [8; 16]),
            in_data(ConnectData::HOSTID_OFFSET),
        ),
        (
            case(|c| c.command.qid = Qid(5)),
            in_command(ConnectCommand::QID_OFFSET),
        ),
        (
            case(|c| c.command.sqsize = 128),
            in_command(ConnectCommand::SQSIZE_OFFSET),
        ),
    ];
    for (connect, expected) in cases {
        assert_eq!(refusal(&mut rig, &connect), expected);
    }
    assert_eq!(subsystem.controllers()[0].qpairs().len(), 1);
}

#[test]
fn io_queues_are_limited_to_those_granted() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    let set = Sqe::set_features(
        Cid(1),
        nvme_spec::feature::fid::NUMBER_OF_QUEUES,
        0x0001_0001,
    );
    assert_eq!(rig.run(&host.admin, set, &[]).cqe.result(), 0x0001_0001);
    rig.io(&host, 2);
    assert_eq!(
        refusal(&mut rig, &host.io(3)),
        in_command(ConnectCommand::QID_OFFSET)
    );
}

#[test]
fn io_queues_need_an_enabled_controller() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    rig.set_cc(&host.admin, Cc::default());
    let (status, _) = refusal(&mut rig, &host.io(1));
    assert_eq!(status, dnr(Status::COMMAND_SEQUENCE_ERROR));
}

#[test]
fn a_queue_number_in_use_is_waited_for_and_then_refused() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    let old = rig.io(&host, 1);

    let (sqe, data) = host.io(1).capsule(Cid(0));
    let new = rig.dial();
    rig.send(&new, sqe, &data);
    assert!(
        take(&new, Cid(0)).is_none(),
        "it waits for the old one to go"
    );
    old.wire().is_cut = true;
    rig.advance(Duration::from_millis(10));
    assert_eq!(taken(&new, 0), Some(Status::SUCCESS));

    let third = rig.dial();
    rig.send(&third, sqe, &data);
    for _ in 0..3 {
        rig.advance(Duration::from_secs(1));
    }
    let reply = take(&third, Cid(0)).unwrap();
    assert_eq!(
        (reply.cqe.status(), reply.cqe.dw0()),
        in_command(ConnectCommand::QID_OFFSET)
    );
    assert_eq!(closed(&new), None);
}

#[test]
fn a_connection_that_does_not_begin_with_connect_is_closed() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    for sqe in [
        read(1, 0, 1),
        Sqe::keep_alive(Cid(1)),
        disconnect(1),
        property_set(Cid(1), enabled()),
    ] {
        let end = rig.dial();
        assert_eq!(
            rig.status(&end, sqe, &[]),
            dnr(Status::COMMAND_SEQUENCE_ERROR)
        );
        rig.poll();
        assert!(closed(&end).is_some());
    }
}

#[test]
fn a_second_connect_beside_the_first_ends_the_connection_and_leaves_nothing() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let end = rig.dial();
    end.wire().holds_data = true;
    let connect = Connect::admin(NQN);
    for cid in [1, 2] {
        let (sqe, data) = connect.capsule(Cid(cid));
        end.wire().capsules.push_back((sqe, data));
    }
    rig.poll();
    assert_eq!(taken(&end, 2), Some(dnr(Status::COMMAND_SEQUENCE_ERROR)));
    end.wire().holds_data = false;
    rig.poll();
    assert!(closed(&end).is_some());
    assert!(subsystem.controllers().is_empty());
    rig.assert_all_buffers_back();

    let host = rig.host(NQN);
    let (sqe, data) = connect.capsule(Cid(5));
    assert_eq!(
        rig.status(&host.admin, sqe, &data),
        dnr(Status::COMMAND_SEQUENCE_ERROR)
    );
    assert_eq!(subsystem.controllers().len(), 1);
}

#[test]
fn properties_have_one_size_each_and_the_others_are_refused() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    let sizes = [PropertySize::Four, PropertySize::Eight];
    for offset in (0..0x80).step_by(4) {
        for size in sizes {
            let get = PropertyGet { size, offset }.to_sqe(Cid(1));
            let is_known = match offset {
                registers::CAP => size == PropertySize::Eight,
                registers::VS | registers::CC | registers::CSTS | registers::CRTO => {
                    size == PropertySize::Four
                }
                _ => false,
            };
            let expected = if is_known {
                Status::SUCCESS
            } else {
                dnr(Status::INVALID_FIELD)
            };
            assert_eq!(
                rig.status(&host.admin, get, &[]),
                expected,
                "get {offset:#x} {size:?}"
            );
            assert_eq!(rig.status(&io, get, &[]), dnr(Status::INVALID_QUEUE_TYPE));
            let value = u64::from(u32::from(enabled()));
            let set = PropertySet {
                size,
                offset,
                value,
            }
            .to_sqe(Cid(1));
            let is_cc = (offset, size) == (registers::CC, PropertySize::Four);
            let expected = if is_cc {
                Status::SUCCESS
            } else {
                dnr(Status::INVALID_FIELD)
            };
            assert_eq!(
                rig.status(&host.admin, set, &[]),
                expected,
                "set {offset:#x} {size:?}"
            );
            assert_eq!(rig.status(&io, set, &[]), dnr(Status::INVALID_QUEUE_TYPE));
        }
    }
    // Sizes that there are not.
    for attrib in 2..8 {
        let mut get = PropertyGet {
            size: PropertySize::Four,
            offset: registers::CC,
        }
        .to_sqe(Cid(1));
        get = get.with_cdw10(attrib);
        assert_eq!(
            rig.status(&host.admin, get, &[]),
            dnr(Status::INVALID_FIELD)
        );
    }
    let get = PropertyGet {
        size: PropertySize::Eight,
        offset: registers::CAP,
    }
    .to_sqe(Cid(1));
    let cap = Cap::from(rig.run(&host.admin, get, &[]).cqe.result());
    assert_eq!((cap.mqes(), cap.cqr()), (127, true));
    assert_eq!(closed(&host.admin), None);
}

#[test]
fn a_configuration_that_is_not_supported_does_not_enable() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    rig.set_cc(&host.admin, Cc::default());
    let good = enabled();
    let wrong = [
        good.with_css(Cc::CSS_ADMIN_ONLY),
        good.with_css(1),
        good.with_iosqes(5),
        good.with_iocqes(5),
        good.with_mps(1),
        good.with_ams(1),
        good.with_shn(ShutdownNotification::Reserved),
    ];
    for cc in wrong {
        assert_eq!(
            rig.set_cc(&host.admin, cc),
            dnr(Status::INVALID_FIELD),
            "{cc:?}"
        );
        assert!(!rig.csts(&host.admin).rdy());
    }
    assert!(
        rig.set_cc(&host.admin, good.with_css(Cc::CSS_IOCS))
            .is_success()
    );
    assert!(rig.csts(&host.admin).rdy());
}

#[test]
fn commands_before_enable_are_out_of_sequence() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let admin = rig.dial();
    assert!(
        rig.connect(&admin, &Connect::admin(NQN))
            .cqe
            .status()
            .is_success()
    );
    let out_of_sequence = dnr(Status::COMMAND_SEQUENCE_ERROR);
    assert_eq!(
        rig.status(&admin, Sqe::keep_alive(Cid(1)), &[]),
        out_of_sequence
    );
    assert_eq!(
        rig.status(&admin, Sqe::async_event_request(Cid(1)), &[]),
        out_of_sequence
    );
}

#[test]
fn a_reset_closes_the_io_queues_and_is_complete_when_the_device_has_let_go() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 8), &[]);
    assert!(rig.set_cc(&served.host.admin, Cc::default()).is_success());
    assert_eq!(closed(&served.io), Some(CloseReason::ControllerEnded));
    assert!(
        rig.csts(&served.host.admin).rdy(),
        "a device still holds I/O"
    );
    served.device.state().holds = false;
    rig.poll();
    assert!(!rig.csts(&served.host.admin).rdy());
    rig.assert_all_buffers_back();
    assert!(rig.set_cc(&served.host.admin, enabled()).is_success());
    let io = rig.io(&served.host, 1);
    assert!(rig.status(&io, read(1, 0, 8), &[]).is_success());
}

#[test]
fn a_reset_ends_event_requests_without_an_answer_and_forgets_settings() {
    use nvme_spec::feature::{Select, fid};
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let host = rig.host(NQN);
    for cid in 1..=4 {
        rig.send(&host.admin, Sqe::async_event_request(Cid(cid)), &[]);
    }
    rig.run(
        &host.admin,
        Sqe::set_features(Cid(9), fid::ARBITRATION, 5),
        &[],
    );
    assert!(rig.set_cc(&host.admin, Cc::default()).is_success());
    drop(subsystem.add_namespace(crate::rig::namespace(
        1,
        &crate::rig::bdev(crate::device::TestDevice::new(512, 8), rig.now),
    )));
    rig.poll();
    assert!(rig.set_cc(&host.admin, enabled()).is_success());
    assert!(host.admin.wire().replies.is_empty());
    let get = Sqe::get_features(Cid(9), fid::ARBITRATION, Select::Current);
    assert_eq!(rig.run(&host.admin, get, &[]).cqe.result(), 0);
    // The same identifiers and the same places are free again, and no stale event comes.
    for cid in 1..=4 {
        rig.send(&host.admin, Sqe::async_event_request(Cid(cid)), &[]);
    }
    assert!(host.admin.wire().replies.is_empty());
    let outstanding = &subsystem.controllers()[0].qpairs()[0].counters.outstanding;
    assert_eq!(outstanding.load(std::sync::atomic::Ordering::Relaxed), 4);
}

#[test]
fn a_shutdown_without_io_queues_is_complete_at_once() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    for shn in [ShutdownNotification::Normal, ShutdownNotification::Abrupt] {
        assert!(
            rig.set_cc(&host.admin, enabled().with_shn(shn))
                .is_success()
        );
        let csts = rig.csts(&host.admin);
        assert_eq!((csts.shst(), csts.rdy()), (ShutdownStatus::Complete, true));
        rig.set_cc(&host.admin, Cc::default());
        assert!(!rig.csts(&host.admin).rdy());
        rig.set_cc(&host.admin, enabled());
        let csts = rig.csts(&host.admin);
        assert_eq!((csts.shst(), csts.rdy()), (ShutdownStatus::Normal, true));
    }
}

#[test]
fn a_shutdown_goes_on_while_a_device_holds_io() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(1, 0, 8), &[]);
    rig.set_cc(
        &served.host.admin,
        enabled().with_shn(ShutdownNotification::Normal),
    );
    assert!(closed(&served.io).is_some());
    assert_eq!(
        rig.csts(&served.host.admin).shst(),
        ShutdownStatus::Occurring
    );
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(
        rig.csts(&served.host.admin).shst(),
        ShutdownStatus::Complete
    );
}

#[test]
fn disconnect_is_answered_and_then_the_io_queue_is_gone() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    assert_eq!(
        rig.status(&host.admin, disconnect(4), &[]),
        dnr(Status::INVALID_QUEUE_TYPE)
    );
    assert_eq!(closed(&host.admin), None);
    assert!(rig.status(&io, disconnect(4), &[]).is_success());
    rig.poll();
    assert_eq!(closed(&io), Some(CloseReason::Disconnect));
    assert_eq!(subsystem.controllers()[0].qpairs().len(), 1);
    rig.io(&host, 1);
}

#[test]
fn the_end_of_the_admin_queue_ends_the_controller() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    host.admin.wire().is_cut = true;
    rig.poll();
    assert_eq!(closed(&io), Some(CloseReason::ControllerEnded));
    assert!(subsystem.controllers().is_empty());
    let (events, _) = rig.target.take_events(None);
    let is_end = |event: &TargetEvent| matches!(event, TargetEvent::ControllerDisconnected { .. });
    assert_eq!(events.iter().filter(|event| is_end(event)).count(), 1);
}

#[test]
fn sqhd_counts_the_commands_taken_unless_flow_control_is_off() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let mut heads = Vec::new();
    for cid in 0..40 {
        let head = rig.run(&served.io, read(cid, 0, 1), &[]).cqe.sqhd();
        heads.push(head);
    }
    // Connect was the first of a queue of 32 entries.
    let expected: Vec<u16> = (2..42).map(|count| count % 32).collect();
    assert_eq!(heads, expected);
    let end = rig.dial();
    let reply = rig.connect(&end, &served.host.io(2).without_flow_control());
    assert_eq!(reply.cqe.sqhd(), 0xffff);
    assert_eq!(rig.run(&end, read(1, 0, 1), &[]).cqe.sqhd(), 0xffff);
}

#[test]
fn more_commands_than_entries_close_the_connection() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    let mut connect = served.host.io(2);
    connect.command.sqsize = 3;
    let end = rig.dial();
    assert!(rig.connect(&end, &connect).cqe.status().is_success());
    for cid in 0..4 {
        rig.send(&end, read(cid, 0, 1), &[]);
    }
    assert_eq!(closed(&end), None);
    rig.send(&end, read(4, 0, 1), &[]);
    assert_eq!(closed(&end), Some(CloseReason::ProtocolError));
    served.device.state().holds = false;
    rig.poll();
    rig.assert_all_buffers_back();
    assert_eq!(closed(&served.io), None);
}

#[test]
fn a_command_identifier_in_use_is_a_conflict_and_the_first_command_goes_on() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    served.device.state().holds = true;
    rig.send(&served.io, read(7, 0, 1), &[]);
    assert_eq!(
        rig.status(&served.io, read(7, 1, 1), &[]),
        dnr(Status::COMMAND_ID_CONFLICT)
    );
    // The first still has it.
    assert_eq!(
        rig.status(&served.io, read(7, 1, 1), &[]),
        dnr(Status::COMMAND_ID_CONFLICT)
    );
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(taken(&served.io, 7), Some(Status::SUCCESS));
    assert!(rig.status(&served.io, read(7, 1, 1), &[]).is_success());
}

#[test]
fn silence_beyond_the_keep_alive_timeout_ends_the_controller() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let end = rig.dial();
    let mut connect = Connect::admin(NQN);
    connect.command.kato_ms = 15_000;
    assert!(rig.connect(&end, &connect).cqe.status().is_success());
    rig.set_cc(&end, enabled());
    let subsystem = rig.target.subsystem(&nqn(NQN)).unwrap();
    assert_eq!(
        subsystem.controllers()[0].kato_ms(),
        20_000,
        "rounded up to the granularity"
    );
    for _ in 0..5 {
        rig.advance(Duration::from_millis(19_999));
        assert!(rig.status(&end, Sqe::keep_alive(Cid(1)), &[]).is_success());
    }
    let deadline = rig.groups[0].next_deadline().unwrap();
    assert!(
        deadline <= rig.now + Duration::from_secs(20),
        "the group wakes up for it"
    );
    rig.advance(Duration::from_secs(20));
    rig.poll();
    assert_eq!(closed(&end), Some(CloseReason::ControllerEnded));
    assert!(subsystem.controllers().is_empty());
    let (events, _) = rig.target.take_events(None);
    assert!(matches!(
        events.last(),
        Some(TargetEvent::ControllerDisconnected { reason, .. }) if reason == "keep-alive timeout"
    ));
}

#[test]
fn without_a_timeout_silence_is_no_reason_and_keep_alive_is_wrong() {
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    assert_eq!(
        rig.status(&host.admin, Sqe::keep_alive(Cid(1)), &[]),
        dnr(Status::KEEP_ALIVE_TIMEOUT_INVALID)
    );
    rig.advance(Duration::from_secs(1_000_000));
    assert_eq!(closed(&host.admin), None);
    // A discovery controller has one always.
    let discovery = rig.host(DISCOVERY);
    rig.advance(Duration::from_secs(130));
    rig.poll();
    assert!(closed(&discovery.admin).is_some());
    assert!(rig.target.discovery_controllers().is_empty());
}

#[test]
fn a_keep_alive_timeout_set_later_holds_from_then_on() {
    use nvme_spec::feature::fid;
    let mut rig = Rig::new();
    rig.subsystem(NQN);
    let host = rig.host(NQN);
    let set = Sqe::set_features(Cid(1), fid::KEEP_ALIVE_TIMER, 1);
    assert!(rig.status(&host.admin, set, &[]).is_success());
    rig.advance(Duration::from_secs(9));
    assert_eq!(closed(&host.admin), None);
    rig.advance(Duration::from_secs(1));
    rig.poll();
    assert!(closed(&host.admin).is_some());
}

#[test]
fn a_connect_whose_data_is_damaged_or_short_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let end = rig.dial();
    end.wire().damaged.push(Cid(0));
    let reply = rig.connect(&end, &Connect::admin(NQN));
    assert_eq!(reply.cqe.status(), Status::TRANSIENT_TRANSPORT_ERROR);
    let end = rig.dial();
    let (sqe, data) = Connect::admin(NQN).capsule(Cid(1));
    let short = crate::rig::capsule(sqe, 1000);
    assert_eq!(
        rig.status(&end, short, &data[..1000]),
        dnr(Status::DATA_SGL_LENGTH_INVALID)
    );
    assert!(subsystem.controllers().is_empty());
    rig.assert_all_buffers_back();
}
