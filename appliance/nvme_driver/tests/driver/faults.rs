//! What goes wrong, and what the driver makes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use block::{BlockDevice, Channel, Io, IoError, Op};
use nvme_driver::{
    AdminRequest, Controller, ControllerOptions, ControllerState, Event, NvmeError, ResetReason,
};
use nvme_emu::{Emu, EmuOptions, Fault, FaultKind};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::{Nsid, Status, registers};

use crate::rig::{Host, driver_options};

/// A host whose time passes fast enough for deadlines.
fn hasty() -> Host {
    let mut host = Host::default();
    host.tick = Duration::from_millis(20);
    host
}

fn write_survives(host: &mut Host, kind: FaultKind) {
    let mut channel = host.open();
    host.emu().inject(Fault::io(nvm::WRITE, kind));
    host.write(&mut *channel, 7, 8, 0x5a);
    host.emu().clear_faults();
    assert_eq!(host.read(&mut *channel, 7, 8), vec![0x5a; 4096]);
}

#[test]
fn a_late_completion_is_waited_for() {
    let mut host = hasty();
    write_survives(&mut host, FaultKind::Late(100));
    assert_eq!(host.controller.stats().timeouts, 0);
}

#[test]
fn a_stalled_command_is_aborted_and_sent_again() {
    let mut host = hasty();
    write_survives(&mut host, FaultKind::Stall);
    let stats = host.controller.stats();
    assert_eq!((stats.timeouts, stats.aborts), (1, 1));
    assert_eq!((stats.resets, stats.retries), (0, 1));
}

#[test]
fn a_lost_completion_leads_to_a_reset_and_the_command_is_sent_again() {
    for kind in [
        FaultKind::Lost,
        FaultKind::WrongPhase,
        FaultKind::WrongCid(0x123),
    ] {
        let mut host = hasty();
        write_survives(&mut host, kind);
        let stats = host.controller.stats();
        assert_eq!((stats.aborts, stats.resets), (1, 1), "{kind:?}");
        assert!(host.has_event(|event| matches!(event, Event::Reset(ResetReason::IoTimeout))));
    }
}

#[test]
fn a_duplicate_completion_ends_nothing_else() {
    let mut host = hasty();
    let mut channel = host.open();
    host.emu()
        .inject(Fault::io(nvm::VERIFY, FaultKind::Duplicate).times(50));
    let mut ended = 0;
    for round in 0..20 {
        for tag in 0..8 {
            host.submit(&mut *channel, Io::new(Op::Verify, tag, 1, round * 8 + tag));
        }
        let done = host.finish(&mut *channel, 8);
        let mut tags: Vec<u64> = done.iter().map(|completion| completion.io.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, (round * 8..round * 8 + 8).collect::<Vec<_>>());
        ended += done.len();
    }
    assert_eq!(ended, 160);
    assert_eq!(host.controller.stats().spurious, 50);
    assert_eq!(host.controller.stats().resets, 0);
}

#[test]
fn statuses_become_errors_or_retries() {
    let mut host = Host::default();
    let mut channel = host.open();
    let cases = [
        (
            nvm::READ,
            Status::UNRECOVERED_READ_ERROR,
            IoError::MediaRead,
        ),
        (nvm::READ, Status::GUARD_CHECK_ERROR, IoError::MediaRead),
        (
            nvm::READ,
            Status::NAMESPACE_WRITE_PROTECTED,
            IoError::WriteProtected,
        ),
        (nvm::READ, Status::CAPACITY_EXCEEDED, IoError::NoSpace),
        (nvm::READ, Status::INTERNAL_ERROR, IoError::Internal),
        (nvm::READ, Status::LBA_OUT_OF_RANGE, IoError::OutOfRange),
        (
            nvm::READ,
            Status::COMMAND_INTERRUPTED.with_dnr(true),
            IoError::Internal,
        ),
    ];
    for (opcode, status, error) in cases {
        host.emu()
            .inject(Fault::io(opcode, FaultKind::Status(status)));
        let payload = host.buffer(512, 0);
        let io = Io::with_payload(Op::Read, 0, 1, payload, 1);
        assert_eq!(host.run(&mut *channel, io).0, Err(error), "{status}");
    }
    let again = FaultKind::Status(Status::COMMAND_INTERRUPTED);
    host.emu().inject(Fault::io(nvm::READ, again).times(4));
    host.read(&mut *channel, 0, 1);
    assert_eq!(host.controller.stats().retries, 4);
    host.emu().inject(Fault::io(nvm::READ, again).times(5));
    let io = Io::with_payload(Op::Read, 0, 1, host.buffer(512, 0), 1);
    assert_eq!(host.run(&mut *channel, io).0, Err(IoError::Internal));
}

#[test]
fn a_fatal_controller_is_reset_and_io_goes_on() {
    let mut host = hasty();
    write_survives(&mut host, FaultKind::Fatal);
    assert!(host.has_event(|event| matches!(event, Event::Reset(ResetReason::Fatal))));
    host.until_state(ControllerState::Running);
    assert_eq!(host.emu().io_queue_count(), 2);
}

#[test]
fn a_reset_under_load_loses_nothing_and_repeats_nothing() {
    let mut host = hasty();
    let mut first = host.open();
    let mut second = host.open();
    let mut done = Vec::new();
    let mut sent = 0;
    host.until("all writes end", |host| {
        for channel in [&mut first, &mut second] {
            while sent < 600 && channel.in_flight() < 40 {
                let payload = host.buffer(512, sent as u8 | 1);
                let op = Op::Write { fua: false };
                host.submit(&mut **channel, Io::with_payload(op, sent, 1, payload, sent));
                sent += 1;
                if sent % 150 == 75 {
                    host.controller.reset();
                }
            }
            channel.poll(host.now, &mut done);
        }
        done.len() >= 600
    });
    assert_eq!(done.len(), 600);
    let failed = done.iter().find(|completion| completion.result.is_err());
    assert!(failed.is_none(), "{failed:?}, {:?}", host.events);
    let mut tags: Vec<u64> = done.iter().map(|completion| completion.io.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..600).collect::<Vec<_>>());
    drop(done);
    for lba in 0..600 {
        assert_eq!(host.read(&mut *first, lba, 1)[0], lba as u8 | 1);
    }
    assert!(host.controller.stats().resets >= 1);
}

#[test]
fn a_reset_asked_for_by_a_channel_ends_when_the_controller_is_back() {
    let mut host = hasty();
    let mut channel = host.open();
    host.command(&mut *channel, Op::Reset).unwrap();
    assert_eq!(host.controller.stats().resets, 1);
    host.write(&mut *channel, 0, 1, 1);
}

/// Until the controller is enabled, and not yet set up.
fn until_enabled(host: &mut Host) {
    host.until("it is enabled", |host| {
        let csts = registers::Csts(host.emu().read32(registers::CSTS));
        let cc = registers::Cc(host.emu().read32(registers::CC));
        cc.en() && csts.rdy()
    });
}

#[test]
fn resets_asked_for_while_it_comes_up_are_no_failures() {
    let mut host = hasty();
    let mut channel = host.open();
    for round in 1..=5 {
        host.controller.reset();
        host.until("the reset begins", |host| {
            host.controller.stats().resets == round
        });
        until_enabled(&mut host);
        assert_eq!(host.controller.state(), ControllerState::Resetting);
    }
    host.until_state(ControllerState::Running);
    assert_eq!(host.controller.stats().resets, 5);
    host.write(&mut *channel, 0, 1, 1);
}

#[test]
fn resets_asked_for_before_it_is_enabled_are_one() {
    let mut host = hasty();
    let mut channel = host.open();
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 1
    });
    for tag in 0..5 {
        host.controller.reset();
        host.submit(&mut *channel, Io::new(Op::Reset, 0, 0, tag));
    }
    let done = host.finish(&mut *channel, 5);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    host.until_state(ControllerState::Running);
    assert_eq!(host.controller.stats().resets, 1);
}

#[test]
fn a_reset_asked_for_is_not_answered_by_one_that_has_ended() {
    let mut host = hasty();
    let mut channel = host.open();
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 1
    });
    channel.poll(host.now, &mut Vec::new());
    host.until_state(ControllerState::Running);
    // Its queue is there again, and the channel has not seen it yet.
    host.submit(&mut *channel, Io::new(Op::Reset, 0, 0, 1));
    let done = host.finish(&mut *channel, 1);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(host.controller.stats().resets, 2);
}

#[test]
fn a_drive_that_fails_is_given_up_whatever_is_asked_for() {
    for asks in [false, true] {
        let mut host = Host::attach(EmuOptions::default(), driver_options());
        let status = FaultKind::Status(Status::INTERNAL_ERROR);
        host.emu()
            .inject(Fault::admin(admin::IDENTIFY, status).times(99));
        for _ in 0..=driver_options().reset_attempts {
            assert_ne!(host.controller.state(), ControllerState::Failed);
            let before = host.controller.stats().resets;
            host.until("it fails", |host| host.controller.stats().resets > before);
            if asks {
                host.controller.reset();
            }
        }
        host.until_state(ControllerState::Failed);
        let attempts = u64::from(driver_options().reset_attempts) + 1;
        assert_eq!(host.controller.stats().resets, attempts);
    }
}

#[test]
fn a_channel_that_is_never_polled_does_not_keep_the_others_from_going_on() {
    let mut host = hasty();
    let mut asleep = host.open();
    let mut awake = host.open();
    host.submit(&mut *asleep, Io::new(Op::Verify, 0, 1, 1));
    asleep.poll(host.now, &mut Vec::new());
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 1
    });
    host.write(&mut *awake, 0, 1, 1);
    assert_eq!(host.emu().io_queue_count(), 1);
    let done = host.finish(&mut *asleep, 1);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(host.emu().io_queue_count(), 2);
}

#[test]
fn a_pulled_drive_fails_all_io_and_its_namespaces_go() {
    for kind in [FaultKind::Remove, FaultKind::Stall] {
        let mut host = hasty();
        let mut channel = host.open();
        host.emu().inject(Fault::io(nvm::READ, kind).after(3));
        for tag in 0..40 {
            let payload = host.buffer(512, 0);
            host.submit(
                &mut *channel,
                Io::with_payload(Op::Read, tag, 1, payload, tag),
            );
        }
        if kind == FaultKind::Stall {
            host.turn();
            host.emu().remove();
        }
        let done = host.finish(&mut *channel, 40);
        let failed = done
            .iter()
            .filter(|c| c.result == Err(IoError::Removed))
            .count();
        assert!(failed >= 36, "{failed}");
        assert_eq!(host.controller.state(), ControllerState::Removed);
        assert_eq!(host.controller.namespaces().count(), 0);
        assert!(host.has_event(|event| matches!(event, Event::NamespaceRemoved(_))));
        let payload = host.buffer(512, 0);
        let io = Io::with_payload(Op::Read, 0, 1, payload, 1);
        assert_eq!(host.run(&mut *channel, io).0, Err(IoError::Removed));
    }
}

#[test]
fn a_controller_that_does_not_let_go_is_reset_by_its_function() {
    let mut host = hasty();
    let mut channel = host.open();
    // CSTS says ready whatever is asked.
    host.emu().stick_register(registers::CSTS, 1, false);
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 1
    });
    host.write(&mut *channel, 0, 1, 1);
    host.until_state(ControllerState::Running);
    assert!(host.has_event(|event| {
        matches!(
            event,
            Event::Error(NvmeError::ReadyTimeout {
                wanted: "disabled",
                ..
            })
        )
    }));
}

#[test]
fn a_controller_that_cannot_be_stopped_is_kept_from_memory_and_given_up() {
    let mut host = hasty();
    let mut channel = host.open();
    host.emu().inject(Fault::io(nvm::READ, FaultKind::Stall));
    let payload = host.buffer(512, 0);
    host.submit(&mut *channel, Io::with_payload(Op::Read, 0, 1, payload, 1));
    channel.poll(host.now, &mut Vec::new());
    host.function.reset_fails.store(true, SeqCst);
    host.emu().stick_register(registers::CSTS, 1, true);
    host.controller.reset();
    let done = host.finish(&mut *channel, 1);
    assert_eq!(done[0].result, Err(IoError::Internal));
    assert_eq!(host.controller.state(), ControllerState::Failed);
    assert!(!host.emu().is_bus_master());
}

#[test]
fn a_controller_that_never_gets_ready_is_given_up_after_some_attempts() {
    let mut host = Host::attach(
        EmuOptions {
            ready_steps: u64::MAX / 2,
            ..EmuOptions::default()
        },
        driver_options(),
    );
    host.tick = Duration::from_millis(20);
    host.until_state(ControllerState::Failed);
    assert!(host.has_event(|event| {
        matches!(
            event,
            Event::Error(NvmeError::ReadyTimeout {
                wanted: "ready",
                ..
            })
        )
    }));
}

#[test]
fn a_set_up_command_that_fails_once_is_tried_again_after_a_reset() {
    let status = FaultKind::Status(Status::INTERNAL_ERROR);
    for opcode in [admin::IDENTIFY, admin::CREATE_IO_CQ, admin::CREATE_IO_SQ] {
        let mut host = Host::attach(EmuOptions::default(), driver_options());
        host.emu().inject(Fault::admin(opcode, status));
        host.until_state(ControllerState::Running);
        assert_eq!(host.controller.stats().resets, 1);
    }
    let mut host = Host::attach(EmuOptions::default(), driver_options());
    host.emu()
        .inject(Fault::admin(admin::IDENTIFY, status).times(99));
    host.until_state(ControllerState::Failed);
    let is_named = |event: &Event| {
        matches!(event, Event::Error(error)
        if error.to_string().contains("Identify Controller ended with internal error"))
    };
    assert!(host.has_event(is_named), "{:?}", host.events);
}

#[test]
fn an_admin_command_without_end_leads_to_a_reset() {
    let mut host = Host::attach(EmuOptions::default(), driver_options());
    host.tick = Duration::from_millis(100);
    host.emu()
        .inject(Fault::admin(admin::CREATE_IO_SQ, FaultKind::Lost));
    host.until_state(ControllerState::Running);
    assert!(host.has_event(|event| matches!(event, Event::Reset(ResetReason::AdminTimeout))));
}

#[test]
fn a_shutdown_is_orderly_and_has_a_deadline() {
    let mut host = hasty();
    let mut channel = host.open();
    host.write(&mut *channel, 0, 1, 9);
    drop(channel);
    host.controller.shutdown(host.now);
    host.until_state(ControllerState::Stopped);
    assert!(host.has_event(|event| matches!(event, Event::Shutdown { clean: true })));
    assert_eq!(host.emu().media(1).unwrap().durable_block(0)[0], 9);
    assert!(!host.emu().is_bus_master());
    let refusal = host.namespace().open_channel(&host.context());
    assert!(refusal.err().unwrap().to_string().contains("is stopped"));

    let mut host = hasty();
    host.emu().stick_register(registers::CSTS, 1, false);
    host.controller.shutdown(host.now);
    let begun = host.now;
    host.until_state(ControllerState::Stopped);
    assert!(host.has_event(|event| matches!(event, Event::Shutdown { clean: false })));
    assert!(host.now - begun >= driver_options().shutdown_timeout);
}

#[test]
fn a_function_that_is_gone_or_odd_is_refused() {
    let host = Host::default();
    let attach = |change: &dyn Fn(&mut Emu)| {
        change(&mut host.emu());
        let device = crate::rig::device(&host.function);
        let error = Controller::attach(device, driver_options(), Instant::now());
        error.err().unwrap().to_string()
    };
    let small_pages = attach(&|emu| emu.stick_register(4, 1 << 16 | 1 << 5, true));
    assert!(small_pages.contains("CAP.MPSMIN"), "{small_pages}");
    let gone = attach(&Emu::remove);
    assert!(gone.contains("is gone"), "{gone}");
    let device = crate::rig::device(&host.function);
    let options = ControllerOptions {
        queue_entries: 1,
        ..driver_options()
    };
    let error = Controller::attach(device, options, Instant::now())
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "option queue_entries is 1: give 2 to 4096"
    );
}

#[test]
fn a_controller_that_is_dropped_reaches_no_memory() {
    let host = Host::default();
    let function = Arc::clone(&host.function);
    drop(host);
    assert!(!function.emu().is_bus_master());
}

#[test]
fn interrupts_are_looked_for_a_while_after_completions() {
    let mut host = Host::default();
    let mut channel = host.open();
    let polls = |host: &mut Host, channel: &mut dyn Channel, count| {
        host.function.clears.lock().unwrap().clear();
        for _ in 0..count {
            channel.poll(host.now, &mut Vec::new());
        }
        let clears = std::mem::take(&mut *host.function.clears.lock().unwrap());
        clears.into_iter().filter(|vector| *vector != 0).count()
    };
    // At the first poll that finds nothing, and ever more rarely after.
    assert_eq!(polls(&mut host, &mut *channel, 1), 1);
    assert!(!channel.is_quiet());
    assert_eq!(polls(&mut host, &mut *channel, 63), 6);
    assert!(channel.is_quiet());
    assert_eq!(polls(&mut host, &mut *channel, 100), 0);
    host.write(&mut *channel, 0, 1, 1);
    assert!(!channel.is_quiet());
    assert_eq!(polls(&mut host, &mut *channel, 100), 7);
    assert!(channel.is_quiet());
}

#[test]
fn io_on_a_queue_that_the_drive_grants_no_more_fails() {
    let mut host = hasty();
    let mut first = host.open();
    let mut second = host.open();
    // The second channel's command is in flight, another waits.
    let payload = host.buffer(512, 1);
    host.emu()
        .inject(Fault::io(nvm::READ, FaultKind::Stall).times(9));
    host.submit(&mut *second, Io::with_payload(Op::Read, 0, 1, payload, 1));
    second.poll(host.now, &mut Vec::new());
    host.turn();
    let fewer = FaultKind::Result(0);
    host.emu()
        .inject(Fault::admin(admin::SET_FEATURES, fewer).times(2));
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 1
    });
    host.submit(&mut *second, Io::new(Op::Verify, 0, 1, 2));
    let done = host.finish(&mut *second, 2);
    for completion in done {
        assert_eq!(completion.result, Err(IoError::Internal));
    }
    host.emu().clear_faults();
    host.write(&mut *first, 0, 1, 1);
    // The next time there are two again.
    host.controller.reset();
    host.until("the reset begins", |host| {
        host.controller.stats().resets == 2
    });
    host.until_state(ControllerState::Running);
    host.write(&mut *second, 1, 1, 1);
}

#[test]
fn io_that_waits_for_a_reset_is_not_sent_to_another_namespace() {
    let mut host = hasty();
    let mut channel = host.open();
    host.emu().inject(Fault::io(nvm::WRITE, FaultKind::Stall));
    let payload = host.buffer(512, 7);
    let op = Op::Write { fua: false };
    host.submit(&mut *channel, Io::with_payload(op, 0, 1, payload, 1));
    channel.poll(host.now, &mut Vec::new());
    host.turn();
    // Controller, command set, list, namespace: that has another EUI-64 afterwards.
    let eui64 = FaultKind::Garbled(120, [1; 8]);
    host.emu()
        .inject(Fault::admin(admin::IDENTIFY, eui64).after(3));
    host.controller.reset();
    let done = host.finish(&mut *channel, 1);
    assert_eq!(done[0].result, Err(IoError::Removed));
    host.until_state(ControllerState::Running);
    assert_eq!(host.namespace().eui64(), [1; 8]);
    assert_eq!(host.emu().media(1).unwrap().block(0)[0], 0);
}

#[test]
fn a_namespace_is_not_in_use_before_its_format_has_ended() {
    let mut host = Host::default();
    host.emu()
        .inject(Fault::admin(admin::FORMAT_NVM, FaultKind::Slow(50)));
    let request = AdminRequest::format(Nsid(1), 1, 0);
    let id = host.controller.admin(&request, host.now).unwrap();
    host.controller.rescan();
    let ended = |event: &Event| matches!(event, Event::AdminDone { id: done, .. } if *done == id);
    host.until("the format ends", |host| {
        let ended = host.has_event(ended);
        let mut namespaces = host.controller.namespaces();
        assert!(ended || namespaces.all(|namespace| namespace.is_gone()));
        ended
    });
    host.until("the namespace is back", |host| {
        let mut namespaces = host.controller.namespaces();
        namespaces.any(|namespace| namespace.geometry().block_size == 4096)
    });
}

#[test]
fn a_format_that_cannot_be_sent_leaves_the_namespace_in_use() {
    let mut host = Host::default();
    host.emu()
        .inject(Fault::admin(admin::GET_FEATURES, FaultKind::Stall).times(99));
    while host
        .controller
        .admin(&AdminRequest::get_features(1), host.now)
        .is_ok()
    {}
    let request = AdminRequest::format(Nsid(1), 1, 0);
    let refused = host.controller.admin(&request, host.now);
    assert!(matches!(refused, Err(NvmeError::AdminBusy { .. })));
    host.until("the namespace is back", |host| {
        let mut namespaces = host.controller.namespaces();
        namespaces.any(|namespace| !namespace.is_gone())
    });
    host.open();
}

#[test]
fn a_namespace_that_is_not_identified_is_asked_again_and_in_the_end_told_of() {
    let retries = u32::from(driver_options().retries);
    for (failures, is_there) in [(retries, true), (retries + 1, false)] {
        let mut host = Host::attach(EmuOptions::default(), driver_options());
        let status = FaultKind::Status(Status::INTERNAL_ERROR);
        // The controller, its command set and the list of namespaces come first.
        let fault = Fault::admin(admin::IDENTIFY, status).after(3);
        host.emu().inject(fault.times(failures));
        host.until_state(ControllerState::Running);
        assert_eq!(host.controller.namespaces().count() == 1, is_there);
        let told = host.has_event(|event| matches!(event, Event::NamespaceUnusable { .. }));
        assert_eq!(told, !is_there);
    }
}
