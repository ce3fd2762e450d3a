//! The initiator against the real target, over loopback, on one thread.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod served;

use std::time::{Duration, Instant};

use block::delay::{DelayLayer, Delays};
use fabric_wire::Nqn;
use nvme_spec::feature::{fid, parse_number_of_queues};
use nvme_spec::identify::cmic;
use nvme_spec::{Lba, Nsid, Qid, Select, Sqe, Status, opcode};
use nvmf::{AnaState as TargetAna, TargetOptions};
use nvmf_host::check::{Check, Outcome};
use nvmf_host::perf::{PerfEngine, PerfOptions, Workload};
use nvmf_host::{
    AnaState, Buffer, Command, CommandError, Controller, ControllerState, Discovery, Event,
    HostError, HostOptions, IoOp, IoQueue, IoRequest, SglSource, Submit, copy_ranges, dsm_ranges,
};
use nvmf_tcp::TcpOptions;
use served::{Served, host_options, ram_disk, subsystem_nqn};

const NSID: Nsid = Nsid(1);

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ seed)
        .collect()
}

fn read(lba: u64, blocks: u32) -> IoRequest {
    let op = IoOp::Read {
        lba: Lba(lba),
        blocks,
    };
    IoRequest::new(NSID, op, 1).with_buffer(vec![0; blocks as usize * 512])
}

fn write(lba: u64, data: Vec<u8>) -> IoRequest {
    let blocks = (data.len() / 512) as u32;
    let op = IoOp::Write {
        lba: Lba(lba),
        blocks,
        fua: false,
    };
    IoRequest::new(NSID, op, 2).with_buffer(data)
}

fn with_digests(digests: bool) -> HostOptions {
    let mut options = host_options(1);
    options.header_digest = digests;
    options.data_digest = digests;
    options
}

/// A controller with one I/O queue.
fn connected(served: &mut Served, options: HostOptions) -> (Controller, IoQueue) {
    let mut controller = served.connect(options);
    let queue = controller.take_io_queues().pop().unwrap();
    (controller, queue)
}

#[test]
fn connect_tells_what_the_controller_is() {
    let mut served = Served::ram();
    let mut controller = served.connect(host_options(1));
    let info = controller.info().unwrap().clone();
    assert!(info.version.0 >= 0x0002_0000);
    assert_eq!(info.io_queues, 1);
    assert_eq!(info.io_queue_depth, 127);
    assert_eq!(info.in_capsule_data_size, 8192);
    assert_eq!(info.max_transfer_bytes, Some(128 << 10));
    assert_eq!(info.identify.subnqn[..4], *b"nqn.");
    let admin = controller.admin();
    let again = served
        .finish(&mut controller, admin.identify_controller())
        .unwrap();
    assert_eq!(again, info.identify);
    let namespaces = served.finish(&mut controller, admin.namespaces()).unwrap();
    assert_eq!(namespaces.len(), 1);
    assert_eq!(namespaces[0].nsid, NSID);
    assert_eq!(namespaces[0].block_size, 512);
    assert_eq!(namespaces[0].block_count, 32_768);
    assert!(namespaces[0].uuid.is_some());
}

#[test]
fn every_kind_of_io_works_with_and_without_digests() {
    for digests in [false, true] {
        let mut served = Served::ram();
        let (_controller, mut queue) = connected(&mut served, with_digests(digests));
        // In the capsule, at its limit, just beyond, and long.
        for (index, len) in [512, 8192, 8704, 131_072].into_iter().enumerate() {
            let lba = 1000 * index as u64;
            let data = pattern(len, index as u8);
            let done = served.io(&mut queue, write(lba, data.clone()));
            assert_eq!(done.result, Ok(0), "{len} bytes");
            assert_eq!(done.tag, 2);
            let done = served.io(&mut queue, read(lba, (len / 512) as u32));
            assert_eq!(done.result, Ok(0), "{len} bytes");
            assert!(done.buffer.into_vec() == data, "{len} bytes");
        }
        let data = pattern(1024, 9);
        let op = IoOp::Write {
            lba: Lba(0),
            blocks: 2,
            fua: true,
        };
        let fua = IoRequest::new(NSID, op, 3).with_buffer(data.clone());
        assert!(served.io(&mut queue, fua).result.is_ok());
        for nsid in [NSID, Nsid::ALL] {
            let flush = IoRequest::new(nsid, IoOp::Flush, 4);
            assert!(served.io(&mut queue, flush).result.is_ok());
        }
        let compare = |data: Vec<u8>| {
            let op = IoOp::Compare {
                lba: Lba(0),
                blocks: 2,
            };
            IoRequest::new(NSID, op, 5).with_buffer(data)
        };
        assert!(served.io(&mut queue, compare(data.clone())).result.is_ok());
        match served.io(&mut queue, compare(pattern(1024, 8))).result {
            Err(CommandError::Status(status)) => assert!(status.is(Status::COMPARE_FAILURE)),
            other => panic!("{other:?}"),
        }
        let op = IoOp::Verify {
            lba: Lba(0),
            blocks: 2,
        };
        assert!(
            served
                .io(&mut queue, IoRequest::new(NSID, op, 6))
                .result
                .is_ok()
        );
        let sources = copy_ranges(&[(Lba(1), 1), (Lba(0), 1)]);
        let copy = IoRequest::new(NSID, IoOp::Copy { to: Lba(500) }, 7).with_buffer(sources);
        assert!(served.io(&mut queue, copy).result.is_ok());
        let copied = served.io(&mut queue, read(500, 2)).buffer.into_vec();
        assert_eq!(copied[..512], data[512..]);
        assert_eq!(copied[512..], data[..512]);
        let op = IoOp::WriteZeroes {
            lba: Lba(0),
            blocks: 1,
            deallocate: false,
            fua: false,
        };
        assert!(
            served
                .io(&mut queue, IoRequest::new(NSID, op, 8))
                .result
                .is_ok()
        );
        let dsm = IoRequest::new(NSID, IoOp::Deallocate, 9)
            .with_buffer(dsm_ranges(&[(Lba(500), 1), (Lba(501), 1)]));
        assert!(served.io(&mut queue, dsm).result.is_ok());
        for lba in [0, 500, 501] {
            let zeroes = served.io(&mut queue, read(lba, 1)).buffer.into_vec();
            assert!(zeroes.iter().all(|&byte| byte == 0), "block {lba}");
        }
    }
}

#[test]
fn a_fused_pair_is_done_wholly_or_not_at_all() {
    let mut served = Served::ram();
    let (_controller, mut queue) = connected(&mut served, host_options(1));
    let pair = |compare: u8, data: u8| {
        let op = IoOp::Compare {
            lba: Lba(4),
            blocks: 1,
        };
        let compare = IoRequest::new(NSID, op, 10).with_buffer(vec![compare; 512]);
        (compare, write(4, vec![data; 512]))
    };
    for (compare, data, is_done) in [(0, 7, true), (0, 8, false), (7, 9, true)] {
        let submit = queue.submit_fused(pair(compare, data), Instant::now());
        assert!(submit.is_accepted());
        let done = served.completions(&mut queue, 2);
        assert!(
            done.iter()
                .all(|completion| completion.result.is_ok() == is_done)
        );
    }
    assert_eq!(
        served.io(&mut queue, read(4, 1)).buffer.into_vec(),
        [9; 512]
    );
}

#[test]
fn two_hosts_fence_each_other() {
    use nvme_spec::reservation::{ReservationType, acquire, register};
    use nvmf_host::reservation::{self, ReservationReport};
    let mut served = Served::ram();
    let (_first, mut first) = connected(&mut served, host_options(1));
    let (_second, mut second) = connected(&mut served, host_options(2));
    let rtype = ReservationType::ExclusiveAccess;
    for (queue, key) in [(&mut first, 1), (&mut second, 2)] {
        let register = reservation::register(NSID, register::REGISTER, None, key, 0, 20);
        assert_eq!(served.io(queue, register).result, Ok(0));
    }
    let hold = reservation::acquire(NSID, acquire::ACQUIRE, rtype, 1, 0, 21);
    assert_eq!(served.io(&mut first, hold).result, Ok(0));
    let conflict = |result| match result {
        Err(CommandError::Status(status)) => status.is(Status::RESERVATION_CONFLICT),
        _ => false,
    };
    assert!(served.io(&mut first, write(0, vec![7; 512])).result.is_ok());
    assert!(conflict(served.io(&mut second, read(0, 1)).result));
    let fence = reservation::acquire(NSID, acquire::PREEMPT_AND_ABORT, rtype, 2, 1, 22);
    assert_eq!(served.io(&mut second, fence).result, Ok(0));
    assert!(conflict(
        served.io(&mut first, write(0, vec![8; 512])).result
    ));
    let data = served.io(&mut second, read(0, 1)).buffer.into_vec();
    assert_eq!(data, [7; 512]);
    let done = served.io(&mut second, reservation::report(NSID, 8, 23));
    let report = ReservationReport::parse(done.buffer.as_slice().unwrap()).unwrap();
    assert_eq!((report.count, report.rtype), (1, Some(rtype)));
    let holder = report.registrants[0];
    assert_eq!((holder.key, holder.is_holder), (2, true));
    let release = reservation::release(NSID, 0, rtype, 2, 24);
    assert_eq!(served.io(&mut second, release).result, Ok(0));
    assert!(served.io(&mut first, read(0, 1)).result.is_ok());
}

#[test]
fn errors_of_commands_leave_the_queue_ready() {
    let mut served = Served::ram();
    let (_controller, mut queue) = connected(&mut served, host_options(1));
    match served.io(&mut queue, read(32_768, 1)).result {
        Err(CommandError::Status(status)) => assert!(status.is(Status::LBA_OUT_OF_RANGE)),
        other => panic!("{other:?}"),
    }
    match served.io(&mut queue, read(0, 1024)).result {
        Err(CommandError::Status(status)) => assert!(status.is(Status::INVALID_FIELD)),
        other => panic!("{other:?}"),
    }
    let long = served.io(&mut queue, write(32_700, vec![0; 128 << 10]));
    assert!(matches!(long.result, Err(CommandError::Status(_))));
    assert_eq!(long.buffer.len(), 128 << 10);
    let tag = IoRequest {
        tag: u64::MAX,
        ..read(0, 1)
    };
    assert!(!queue.submit(tag, Instant::now()).is_accepted());
    assert!(served.io(&mut queue, read(0, 1)).result.is_ok());
}

#[test]
fn a_full_queue_keeps_its_depth() {
    let mut served = Served::ram();
    let mut options = host_options(1);
    options.io_queue_depth = 5;
    let (_controller, mut queue) = connected(&mut served, options);
    let now = Instant::now();
    let taken = (0..9)
        .filter(|_| queue.submit(read(0, 1), now).is_accepted())
        .count();
    assert_eq!(taken, 5);
    assert_eq!(queue.in_flight(), 5);
    assert_eq!(served.completions(&mut queue, 5).len(), 5);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn raw_commands_carry_any_data_description() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    // A write whose data does not come in the capsule although it fits.
    let sqe = Sqe::write(nvme_spec::Cid(0), NSID, Lba(9), 1);
    let mut command = Command::new(sqe, 1).sending(pattern(512, 3));
    command.sgl = SglSource::Transport;
    assert!(queue.submit_raw(command, Instant::now()).is_accepted());
    assert!(served.completions(&mut queue, 1)[0].result.is_ok());
    let data = served.io(&mut queue, read(9, 1)).buffer.into_vec();
    assert_eq!(data, pattern(512, 3));
    // A description of the wrong length.
    let sqe = sqe.with_sgl(nvme_spec::SglDescriptor::in_capsule(0, 100));
    let mut command = Command::new(sqe, 2).sending(pattern(100, 3));
    command.sgl = SglSource::EntryInCapsule;
    assert!(queue.submit_raw(command, Instant::now()).is_accepted());
    assert!(matches!(
        served.completions(&mut queue, 1)[0].result,
        Err(CommandError::Status(_))
    ));
    // An admin opcode that is none.
    let sqe = Sqe::new(0xC7, nvme_spec::Cid(0));
    let admin = controller.admin();
    let done = served
        .finish(&mut controller, admin.raw(Command::new(sqe, 0)))
        .unwrap();
    match done.result {
        Err(CommandError::Status(status)) => assert!(status.is(Status::INVALID_OPCODE)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn features_and_logs_are_read() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    let admin = controller.admin();
    let finish = &mut |operation| served.finish(&mut controller, operation);
    let kato = finish(admin.get_feature(fid::KEEP_ALIVE_TIMER, Select::Current)).unwrap();
    assert_eq!(kato, 10_000);
    let queues = finish(admin.get_feature(fid::NUMBER_OF_QUEUES, Select::Current)).unwrap();
    assert_eq!(parse_number_of_queues(queues), (1, 1));
    let error = finish(admin.get_feature(0xBF, Select::Current)).unwrap_err();
    assert!(error.status().unwrap().is(Status::INVALID_FIELD));
    assert!(served.io(&mut queue, read(0, 1)).result.is_ok());
    let operation = admin.smart_log(Nsid::ALL);
    let smart = served.finish(&mut controller, operation).unwrap();
    assert!(smart.host_read_commands() >= 1);
    let operation = admin.error_log(4);
    served.finish(&mut controller, operation).unwrap();
    let operation = admin.namespace(Nsid(77));
    assert!(served.finish(&mut controller, operation).is_err());
}

#[test]
fn keep_alive_holds_the_association_and_its_absence_ends_it() {
    let mut served = Served::ram();
    let mut options = host_options(1);
    options.keep_alive = Duration::from_secs(10);
    let mut controller = served.connect(options);
    // The time is the caller's: 100 seconds pass in steps of one.
    let begun = Instant::now();
    for second in 1..=100 {
        let now = begun + Duration::from_secs(second);
        for _ in 0..4 {
            controller.poll(now);
            served.group.poll(now);
            controller.poll(now);
        }
        assert!(
            controller.is_ready(),
            "after {second} s: {:?}",
            controller.failure()
        );
    }
    // The target hears nothing for longer than the time-out.
    let later = begun + Duration::from_secs(200);
    for _ in 0..10 {
        served.group.poll(later);
    }
    let until = Instant::now() + Duration::from_secs(20);
    while controller.failure().is_none() {
        served.group.poll(later);
        controller.poll(later);
        assert!(Instant::now() < until);
    }
    let error = controller.failure().unwrap();
    assert!(error.is_retryable(), "{error:?}");
}

#[test]
fn an_unanswered_keep_alive_fails_the_controller() {
    let mut served = Served::ram();
    let mut controller = served.connect(host_options(1));
    let begun = Instant::now();
    let mut seconds = 0;
    while controller.failure().is_none() {
        seconds += 1;
        assert!(seconds < 60);
        controller.poll(begun + Duration::from_secs(seconds));
    }
    assert!(matches!(
        controller.failure(),
        Some(HostError::KeepAlive { timeout_ms: 10_000 })
    ));
    assert!((10..=20).contains(&seconds), "after {seconds} s");
}

#[test]
fn a_namespace_that_comes_is_an_event() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    served.add_namespace(2, ram_disk(100));
    let event = wait_event(&mut served, &mut controller);
    assert_eq!(event, Event::NamespaceAttributeChanged);
    let admin = controller.admin();
    let changed = served
        .finish(&mut controller, admin.changed_namespaces())
        .unwrap();
    assert_eq!(changed, Some(vec![Nsid(2)]));
    let nsids = served
        .finish(&mut controller, admin.active_namespaces())
        .unwrap();
    assert_eq!(nsids, [Nsid(1), Nsid(2)]);
    let mut request = read(0, 1);
    request.nsid = Nsid(2);
    assert!(served.io(&mut queue, request).result.is_ok());
    // The event comes again, now that its log was read.
    drop(served.subsystem.remove_namespace(Nsid(2)).unwrap());
    let event = wait_event(&mut served, &mut controller);
    assert_eq!(event, Event::NamespaceAttributeChanged);
}

fn wait_event(served: &mut Served, controller: &mut Controller) -> Event {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        served.poll();
        controller.poll(Instant::now());
        if let Some(event) = controller.take_event() {
            return event;
        }
        assert!(Instant::now() < until, "no event");
    }
}

#[test]
fn the_ana_log_follows_the_states() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    let info = controller.info().unwrap();
    assert_ne!(info.identify.cmic & cmic::ANA_REPORTING, 0);
    let admin = controller.admin();
    let log = served.finish(&mut controller, admin.ana_log()).unwrap();
    assert_eq!(log.state_of(NSID), Some(AnaState::Optimized));
    let any = "tcp://127.0.0.1:0".parse().unwrap();
    let ticket = served
        .subsystem
        .set_ana_state(&any, None, TargetAna::Inaccessible);
    drop(ticket.unwrap());
    let event = wait_event(&mut served, &mut controller);
    assert_eq!(event, Event::AnaChange);
    let log = served.finish(&mut controller, admin.ana_log()).unwrap();
    assert_eq!(log.state_of(NSID), Some(AnaState::Inaccessible));
    match served.io(&mut queue, read(0, 1)).result {
        Err(CommandError::Status(status)) => assert!(status.is(Status::ANA_INACCESSIBLE)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_takes_too_long_is_aborted() {
    let now = Instant::now();
    let hour = Duration::from_secs(3600);
    let delays = Delays {
        avg_read: hour,
        p99_read: hour,
        ..Delays::default()
    };
    let mut served = Served::new(
        TcpOptions::default(),
        DelayLayer::new(ram_disk(1000), delays),
    );
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    let mut request = read(0, 1);
    request.timeout = Some(Duration::from_secs(1));
    assert!(queue.submit(request, now).is_accepted());
    let mut done = Vec::new();
    for step in 0..2000 {
        let now = now + Duration::from_millis(step);
        queue.poll(now, &mut done);
        controller.poll(now);
        served.poll();
        if !done.is_empty() {
            break;
        }
    }
    match done[0].result {
        Err(CommandError::Status(status)) => {
            assert!(status.is(Status::COMMAND_ABORT_REQUESTED), "{status}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(done[0].buffer.len(), 512);
    assert!(queue.is_ready() && controller.is_ready());
}

#[test]
fn a_reset_makes_the_controller_ready_again() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    let before = controller.info().unwrap().cntlid;
    assert!(
        served
            .io(&mut queue, write(3, pattern(512, 1)))
            .result
            .is_ok()
    );
    assert!(queue.submit(read(0, 1), Instant::now()).is_accepted());
    controller.reset(Instant::now());
    assert!(matches!(controller.state(), ControllerState::Resetting));
    let mut done = Vec::new();
    queue.poll(Instant::now(), &mut done);
    assert_eq!(done[0].result, Err(CommandError::ConnectionLost));
    assert!(matches!(
        queue.failure(),
        Some(HostError::AssociationEnded { .. })
    ));
    served.until_ready(&mut controller);
    let mut queue = controller.take_io_queues().pop().unwrap();
    assert_eq!(
        served.io(&mut queue, read(3, 1)).buffer.into_vec(),
        pattern(512, 1)
    );
    assert_ne!(controller.info().unwrap().cntlid, before);
}

#[test]
fn shutdown_leaves_no_controller_behind() {
    let mut served = Served::ram();
    let (mut controller, queue) = connected(&mut served, host_options(1));
    assert!(controller.can_disconnect_queues());
    assert_eq!(served.subsystem.controllers().len(), 1);
    controller.shut_down(vec![queue], Instant::now());
    let until = Instant::now() + Duration::from_secs(20);
    while !matches!(controller.state(), ControllerState::ShutDown) {
        controller.poll(Instant::now());
        served.poll();
        assert!(Instant::now() < until, "stuck at {}", controller.step());
    }
    while !served.subsystem.controllers().is_empty() {
        served.poll();
        assert!(Instant::now() < until);
    }
    let mut late = controller.admin().identify_controller();
    assert!(late.poll().unwrap().is_err());
}

#[test]
fn a_failed_controller_can_be_connected_anew() {
    let mut served = Served::ram();
    let mut controller = served.begin(host_options(1));
    // The target is not polled: nobody answers.
    let mut later = Instant::now();
    for _ in 0..10 {
        later += Duration::from_secs(6);
        controller.poll(later);
    }
    assert!(matches!(
        controller.failure(),
        Some(HostError::ConnectTimeout { .. })
    ));
    controller.reconnect(Instant::now()).unwrap();
    served.until_ready(&mut controller);
}

#[test]
fn an_io_queue_can_be_replaced() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    queue.close(&mut Vec::new());
    drop(queue);
    assert!(controller.is_ready());
    let mut queue = controller.connect_io_queue(Qid(1), Instant::now()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !queue.is_ready() {
        served.poll();
        controller.poll(Instant::now());
        queue.poll(Instant::now(), &mut Vec::new());
        assert!(queue.failure().is_none(), "{:?}", queue.failure());
        assert!(Instant::now() < until);
    }
    assert!(served.io(&mut queue, read(0, 1)).result.is_ok());
}

#[test]
fn refusals_say_what_to_do() {
    let mut served = Served::ram();
    let nobody = Nqn::new("nqn.2026-01.io.adit:nobody").unwrap();
    let now = Instant::now();
    let context = served.context.clone();
    let mut controller =
        Controller::connect(&served.address, &nobody, host_options(1), &context, now).unwrap();
    match served.until_failed(&mut controller) {
        HostError::Refused { status, advice, .. } => {
            assert!(status.is(Status::CONNECT_INVALID_PARAMETERS));
            assert!(advice.contains("no subsystem"), "{advice}");
        }
        other => panic!("{other:?}"),
    }
    drop(served.subsystem.set_allow_any_host(false).unwrap());
    let mut controller = served.begin(host_options(1));
    match served.until_failed(&mut controller) {
        error @ HostError::Refused { .. } => {
            assert!(error.status().unwrap().is(Status::CONNECT_INVALID_HOST));
            assert!(error.to_string().contains("allow list"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let mut options = host_options(1);
    options.max_r2t = 0;
    let refused = Controller::connect(&served.address, &nobody, options, &context, now);
    assert!(matches!(
        refused,
        Err(HostError::Option {
            option: "max_r2t",
            ..
        })
    ));
}

#[test]
fn discovery_reads_the_log_and_again_when_it_changes() {
    let mut served = Served::ram();
    let now = Instant::now();
    let context = served.context.clone();
    let mut discovery =
        Discovery::connect(&served.address, host_options(1), &context, now).unwrap();
    let log = wait_log(&mut served, &mut discovery);
    let listed = |log: &nvmf_host::DiscoveryLog| {
        log.records
            .iter()
            .filter(|record| record.subnqn == subsystem_nqn())
            .map(|record| record.address.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&log), [served.address.clone()]);
    assert!(log.skipped.is_empty());
    // More subsystems than one piece of the log holds.
    for number in 0..10 {
        let nqn = Nqn::new(&format!("nqn.2026-01.io.adit:other-{number}")).unwrap();
        let options = nvmf::SubsystemOptions {
            allow_any_host: true,
            ..nvmf::SubsystemOptions::new(nqn)
        };
        let subsystem = served.target.create_subsystem(options).unwrap();
        let any = std::sync::Arc::new("tcp://127.0.0.1:0".parse().unwrap());
        drop(subsystem.add_listener(any, TargetAna::Optimized).unwrap());
        subsystem.start();
    }
    let mut last = wait_log(&mut served, &mut discovery);
    while last.records.len() < 12 {
        last = wait_log(&mut served, &mut discovery);
    }
    assert!(last.generation > log.generation);
    discovery.shut_down(Instant::now());
    let until = Instant::now() + Duration::from_secs(20);
    while !matches!(discovery.state(), ControllerState::ShutDown) {
        served.poll();
        discovery.poll(Instant::now());
        assert!(Instant::now() < until);
    }
}

fn wait_log(served: &mut Served, discovery: &mut Discovery) -> nvmf_host::DiscoveryLog {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        served.poll();
        discovery.poll(Instant::now());
        if let Some(log) = discovery.take_log() {
            return log;
        }
        assert!(discovery.failure().is_none(), "{:?}", discovery.failure());
        assert!(Instant::now() < until, "no log");
    }
}

#[test]
fn a_hundred_connections_do_io_at_once() {
    let options = TargetOptions::default();
    let mut served = Served::with(options, TcpOptions::default(), ram_disk(32_768));
    let mut hosts = Vec::new();
    for number in 0..25 {
        let mut options = host_options(number);
        options.io_queues = 3;
        options.io_queue_depth = 4;
        hosts.push(served.begin(options));
    }
    for host in &mut hosts {
        served.until_ready(host);
    }
    let mut queues: Vec<_> = hosts
        .iter_mut()
        .flat_map(Controller::take_io_queues)
        .collect();
    assert_eq!(queues.len(), 75);
    assert_eq!(served.group.connection_count(), 100);
    let now = Instant::now();
    for (index, queue) in queues.iter_mut().enumerate() {
        let data = pattern(4096, index as u8);
        assert!(
            queue
                .submit(write(index as u64 * 8, data), now)
                .is_accepted()
        );
    }
    for queue in &mut queues {
        assert!(served.completions(queue, 1)[0].result.is_ok());
    }
    for (index, queue) in queues.iter_mut().enumerate() {
        let done = served.io(queue, read(index as u64 * 8, 8));
        assert!(done.buffer.into_vec() == pattern(4096, index as u8));
    }
    drop(queues);
    drop(hosts);
    let until = Instant::now() + Duration::from_secs(20);
    while served.group.connection_count() > 0 {
        served.poll();
        assert!(Instant::now() < until);
    }
}

#[test]
fn a_target_that_goes_away_loses_everything_with_its_reason() {
    let mut served = Served::ram();
    let (mut controller, mut queue) = connected(&mut served, host_options(1));
    assert!(queue.submit(read(0, 1), Instant::now()).is_accepted());
    drop(served);
    let mut done = Vec::new();
    let until = Instant::now() + Duration::from_secs(20);
    while queue.failure().is_none() || controller.failure().is_none() {
        queue.poll(Instant::now(), &mut done);
        controller.poll(Instant::now());
        assert!(Instant::now() < until);
    }
    assert_eq!(done[0].result, Err(CommandError::ConnectionLost));
    assert_eq!(done[0].buffer.len(), 512);
    let error = controller.failure().unwrap();
    assert!(
        matches!(error, HostError::Closed { .. } | HostError::Socket { .. }),
        "{error:?}"
    );
    assert!(error.is_retryable());
}

#[test]
fn check_climbs_to_the_top_of_a_healthy_target() {
    let mut served = Served::ram();
    let check = climb(&mut served, &subsystem_nqn());
    let names: Vec<_> = check.rungs().iter().map(|rung| rung.name).collect();
    assert_eq!(
        names,
        [
            "address",
            "transport",
            "discovery",
            "host",
            "controller",
            "namespaces",
            "ana",
            "read"
        ]
    );
    for rung in check.rungs() {
        assert!(matches!(rung.outcome, Outcome::Ok(_)), "{rung}");
    }
    assert!(check.is_well());
}

#[test]
fn check_names_the_rung_that_fails() {
    let mut served = Served::ram();
    let nobody = Nqn::new("nqn.2026-01.io.adit:nobody").unwrap();
    let check = climb(&mut served, &nobody);
    assert_eq!(failed(&check), "subsystem");
    let any = "tcp://127.0.0.1:0".parse().unwrap();
    let ticket = served
        .subsystem
        .set_ana_state(&any, None, TargetAna::Inaccessible);
    drop(ticket.unwrap());
    assert_eq!(failed(&climb(&mut served, &subsystem_nqn())), "ana");
    drop(served.subsystem.remove_namespace(NSID).unwrap());
    assert_eq!(failed(&climb(&mut served, &subsystem_nqn())), "namespaces");
    drop(served.subsystem.set_allow_any_host(false).unwrap());
    assert_eq!(failed(&climb(&mut served, &subsystem_nqn())), "host");
    let address = "tcp://127.0.0.1:1".parse().unwrap();
    let mut check =
        Check::new(&address, &subsystem_nqn(), host_options(1), Instant::now()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !check.finished() {
        check.poll(Instant::now());
        assert!(Instant::now() < until);
    }
    assert_eq!(failed(&check), "address");
}

fn climb(served: &mut Served, nqn: &Nqn) -> Check {
    let mut check = Check::new(&served.address, nqn, host_options(1), Instant::now()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !check.finished() {
        served.poll();
        check.poll(Instant::now());
        assert!(Instant::now() < until, "{:?}", check.rungs());
    }
    check
}

fn failed(check: &Check) -> &'static str {
    let failed = check.rungs().iter().find(|rung| rung.is_failed());
    failed.map_or("none", |rung| rung.name)
}

fn run_perf(served: &mut Served, change: impl FnOnce(&mut PerfOptions)) -> PerfEngine {
    let mut options = PerfOptions::new(served.address.clone(), subsystem_nqn(), host_options(1));
    options.queue_depth = 16;
    options.count = Some(2000);
    change(&mut options);
    let mut engine = PerfEngine::new(options, Instant::now()).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !engine.finished() {
        served.poll();
        engine.poll(Instant::now());
        assert!(Instant::now() < until, "stuck in {:?}", engine.phase());
    }
    engine
}

#[test]
fn every_workload_runs_and_verifies() {
    let mut served = Served::ram();
    for workload in Workload::ALL {
        for verify in [false, true] {
            let engine = run_perf(&mut served, |options| {
                options.workload = workload;
                options.verify = verify;
                options.connections = 2;
                options.region_bytes = Some(4 << 20);
            });
            let name = workload.name();
            assert!(engine.failure().is_none(), "{name}: {:?}", engine.failure());
            let report = engine.report(Instant::now());
            assert!(report.total.ios >= 2000, "{name}: {}", report.total.ios);
            assert_eq!(report.errors, 0);
            assert_eq!(report.verified > 0, verify, "{name}");
            let (reads, writes) = (report.reads.ios > 0, report.writes.ios > 0);
            let percent = workload.read_percent(50);
            assert_eq!((reads, writes), (percent > 0, percent < 100), "{name}");
            assert!(report.total.latency.max >= report.total.latency.p50);
            assert!(report.to_string().contains("total"));
        }
    }
}

#[test]
fn perf_finds_a_block_that_somebody_else_wrote() {
    let mut served = Served::ram();
    let (_controller, mut queue) = connected(&mut served, host_options(2));
    let mut options = PerfOptions::new(served.address.clone(), subsystem_nqn(), host_options(1));
    options.workload = Workload::RandRead;
    options.verify = true;
    options.queue_depth = 1;
    options.count = Some(1_000_000);
    options.region_bytes = Some(64 << 10);
    let mut engine = PerfEngine::new(options, Instant::now()).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let mut is_spoilt = false;
    while !engine.finished() {
        served.poll();
        engine.poll(Instant::now());
        let report = engine.report(Instant::now());
        if report.reads.ios > 10 && !is_spoilt {
            is_spoilt = true;
            assert!(
                served
                    .io(&mut queue, write(13, vec![0xEE; 512]))
                    .result
                    .is_ok()
            );
        }
        assert!(Instant::now() < until);
    }
    match engine.failure() {
        Some(HostError::Miscompare(mismatch)) => {
            assert_eq!(mismatch.lba, Lba(13));
            assert_eq!(mismatch.offset, 0);
            assert_eq!(mismatch.io_lba, Lba(8));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn perf_tells_why_it_cannot_run() {
    let mut served = Served::ram();
    let engine = run_perf(&mut served, |options| options.io_size = 1 << 20);
    assert!(matches!(
        engine.failure(),
        Some(HostError::Option {
            option: "io_size",
            ..
        })
    ));
    let engine = run_perf(&mut served, |options| options.nsid = Some(Nsid(9)));
    assert!(engine.failure().is_some());
    let engine = run_perf(&mut served, |options| {
        options.workload = Workload::RandWrite;
        options.nsid = None;
        options.connections = 1024;
    });
    assert!(engine.failure().is_some());
}

#[test]
fn buffers_of_a_pool_are_sent_and_filled() {
    let mut served = Served::ram();
    let (_controller, mut queue) = connected(&mut served, host_options(1));
    let options = dma::ChannelOptions {
        small_cache: 8,
        large_cache: 4,
        waker: std::task::Waker::noop().clone(),
    };
    let channel = served.iobuf.channel("host_test", options).unwrap();
    let mut buf = channel.get(16 << 10).unwrap();
    buf.as_mut_slice().copy_from_slice(&pattern(16 << 10, 5));
    let op = IoOp::Write {
        lba: Lba(64),
        blocks: 32,
        fua: false,
    };
    let done = served.io(&mut queue, IoRequest::new(NSID, op, 1).with_buffer(buf));
    assert!(done.result.is_ok());
    let mut buffer = done.buffer;
    if let Buffer::Payload(dma::Payload::Buf(buf)) = &mut buffer {
        buf.as_mut_slice().fill(0);
    }
    let op = IoOp::Read {
        lba: Lba(64),
        blocks: 32,
    };
    let done = served.io(&mut queue, IoRequest::new(NSID, op, 1).with_buffer(buffer));
    assert_eq!(done.buffer.as_slice().unwrap(), pattern(16 << 10, 5));
    assert_eq!(opcode::nvm::READ, 2);
    let _: Submit<IoRequest> = queue.submit(read(0, 1), Instant::now());
}
