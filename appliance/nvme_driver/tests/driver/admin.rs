//! Admin commands of callers, events, logs.

use block::{BlockDevice, Io, IoError, Op};
use nvme_driver::{AdminData, AdminRequest, ControllerOptions, Event, NvmeError};
use nvme_emu::{EmuOptions, Fault, FaultKind, NamespaceOptions};
use nvme_spec::feature::fid;
use nvme_spec::identify::IdentifyNamespace;
use nvme_spec::log::SmartLog;
use nvme_spec::opcode::admin;
use nvme_spec::pcie::{sanitize_action, secure_erase};
use nvme_spec::{Cntlid, Nsid, Status};
use zerocopy::FromBytes;

use crate::rig::{Host, driver_options};

#[test]
fn a_format_gives_a_new_device_and_needs_closed_channels() {
    let mut host = Host::default();
    let old = host.namespace();
    let mut channel = host.open();
    let format = AdminRequest::format(Nsid(1), 1, secure_erase::NONE);
    let refusal = host.admin(&format).unwrap_err();
    assert!(matches!(refusal, NvmeError::InUse { .. }), "{refusal}");
    host.write(&mut *channel, 0, 1, 1);
    drop(channel);
    host.admin(&format).unwrap();
    host.until("the new device is there", |host| {
        host.namespace().geometry().block_size == 4096 && !host.namespace().is_gone()
    });
    assert!(old.is_gone());
    let mut channel = host.open();
    let payload = host.buffer(4096, 3);
    let io = Io::with_payload(Op::Write { fua: false }, 0, 1, payload, 1);
    host.run(&mut *channel, io).0.unwrap();
}

#[test]
fn a_format_that_concerns_all_namespaces_needs_all_of_them_closed() {
    let namespace = NamespaceOptions {
        block_size: 512,
        block_count: 4096,
    };
    let emu = EmuOptions {
        formats_all_namespaces: true,
        namespaces: vec![namespace; 2],
        ..EmuOptions::default()
    };
    let mut host = Host::running(emu, driver_options());
    let channel = host.open();
    // The first is open; it is the second that is to be formatted.
    let format = AdminRequest::format(Nsid(2), 1, secure_erase::NONE);
    let refusal = host.admin(&format).unwrap_err();
    assert!(matches!(refusal, NvmeError::InUse { .. }), "{refusal}");
    drop(channel);
    let all = |host: &Host, block_size: u32| {
        let mut all = host.controller.namespaces();
        all.all(|each| each.geometry().block_size == block_size && !each.is_gone())
    };
    host.until("all are in use again", |host| all(host, 512));
    host.admin(&format).unwrap();
    host.until("both are new devices", |host| all(host, 4096));
}

#[test]
fn a_failed_format_gives_the_namespace_back() {
    let mut host = Host::default();
    let format = AdminRequest::format(Nsid(1), 9, secure_erase::NONE);
    assert!(host.admin(&format).is_err());
    host.until("it is in use again", |host| !host.namespace().is_gone());
    drop(host.open());
}

#[test]
fn namespaces_are_created_attached_detached_and_deleted() {
    let mut host = Host::default();
    let mut wanted = IdentifyNamespace {
        flbas: 1,
        ..IdentifyNamespace::default()
    };
    wanted.nsze.set(500);
    wanted.ncap.set(500);
    let reply = host
        .admin(&AdminRequest::create_namespace(&wanted))
        .unwrap();
    let nsid = Nsid(reply.dw0);
    assert_eq!(nsid, Nsid(2));
    host.admin(&AdminRequest::attach_namespace(nsid, Cntlid(1), true))
        .unwrap();
    host.until("it is there", |host| {
        host.controller.namespaces().count() == 2
    });
    let namespace = host.controller.namespaces().nth(1).unwrap().clone();
    assert_eq!(namespace.geometry().block_count, 500);
    let mut channel = namespace.open_channel(&host.context()).unwrap();
    host.admin(&AdminRequest::attach_namespace(nsid, Cntlid(1), false))
        .unwrap();
    host.until("it is gone", |host| {
        host.controller.namespaces().count() == 1
    });
    let payload = host.buffer(4096, 3);
    let io = Io::with_payload(Op::Read, 0, 1, payload, 1);
    assert_eq!(host.run(&mut *channel, io).0, Err(IoError::Removed));
    host.admin(&AdminRequest::delete_namespace(nsid)).unwrap();
    assert!(host.emu().media(2).is_none());
}

#[test]
fn firmware_is_downloaded_in_pieces_and_committed() {
    let mut host = Host::default();
    let mut image = vec![0x55; 8192];
    image[..8].copy_from_slice(b"2.0     ");
    for (index, piece) in image.chunks(4096).enumerate() {
        let request = AdminRequest::firmware_download(index as u32 * 4096, piece);
        host.admin(&request).unwrap();
    }
    host.admin(&AdminRequest::firmware_commit(1, 3)).unwrap();
    host.controller.reset();
    host.until("it says so", |host| {
        host.controller
            .identify()
            .is_some_and(|id| id.fr.starts_with(b"2.0"))
    });
}

#[test]
fn sanitize_and_features_are_sent() {
    let mut host = Host::default();
    host.admin(&AdminRequest::sanitize(sanitize_action::BLOCK_ERASE))
        .unwrap();
    assert!(host.emu().is_sanitized());
    host.admin(&AdminRequest::set_features(fid::VOLATILE_WRITE_CACHE, 0))
        .unwrap();
    let reply = host.admin(&AdminRequest::get_features(fid::VOLATILE_WRITE_CACHE));
    assert_eq!(reply.unwrap().dw0, 0);
    let refusal = host.admin(&AdminRequest::get_features(0x7f)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "admin command 0x0a ended with invalid field in command (0h/02h, do not retry)"
    );
}

#[test]
fn settings_reach_the_drive_at_set_up() {
    let options = ControllerOptions {
        write_cache: Some(false),
        arbitration: Some(0x0403_0203),
        ..driver_options()
    };
    let mut host = Host::running(EmuOptions::default(), options);
    let mut channel = host.open();
    host.write(&mut *channel, 0, 1, 1);
    assert_eq!(host.emu().media(1).unwrap().cached_blocks(), 0);
    let reply = host.admin(&AdminRequest::get_features(fid::ARBITRATION));
    assert_eq!(reply.unwrap().dw0, 0x0403_0203);
}

#[test]
fn smart_and_error_log_are_read() {
    let mut host = Host::default();
    let mut channel = host.open();
    let bad = Io::new(Op::Verify, 1 << 40, 1, 1);
    assert_eq!(host.run(&mut *channel, bad).0, Err(IoError::OutOfRange));
    host.controller.refresh_health();
    host.until("both were read", |host| {
        host.has_event(|event| matches!(event, Event::ErrorLog(_)))
    });
    let of_error = |event: &Event| match event {
        Event::ErrorLog(entries) => {
            entries.len() == 1 && entries[0].status().is(Status::LBA_OUT_OF_RANGE)
        }
        _ => false,
    };
    assert!(host.has_event(of_error), "{:?}", host.events);
    let reply = host.admin(&AdminRequest::smart_log()).unwrap();
    let smart = SmartLog::read_from_bytes(&reply.data).unwrap();
    assert_eq!(smart.composite_temperature.get(), 310);
    assert_eq!(smart.error_log_entries(), 1);
}

#[test]
fn events_come_again_and_again() {
    let mut host = Host::default();
    for round in 1..=6u8 {
        host.emu().set_critical_warning(round & 1);
        host.until("the event and its log page", |host| {
            let smart = |event: &&Event| matches!(event, Event::Smart(_));
            host.events.iter().filter(smart).count() == usize::from(round)
        });
    }
    let asynchronous = |event: &&Event| matches!(event, Event::Async { kind: 1, .. });
    assert_eq!(host.events.iter().filter(asynchronous).count(), 6);
}

#[test]
fn a_reset_ends_what_callers_wait_for() {
    let mut host = Host::default();
    host.emu()
        .inject(Fault::admin(admin::GET_LOG_PAGE, FaultKind::Lost));
    host.controller
        .admin(&AdminRequest::smart_log(), host.now)
        .unwrap();
    host.controller.reset();
    host.until("it ends", |host| {
        host.has_event(|event| {
            matches!(
                event,
                Event::AdminDone {
                    result: Err(NvmeError::AdminReset { .. }),
                    ..
                }
            )
        })
    });
}

#[test]
fn admin_commands_have_bounds() {
    let mut host = Host::default();
    let mut request = AdminRequest::smart_log();
    request.data = AdminData::ToHost(4097);
    let error = host.controller.admin(&request, host.now).unwrap_err();
    assert!(matches!(error, NvmeError::AdminData { .. }));
    let request = AdminRequest::smart_log();
    let accepted = (0..100)
        .take_while(|_| host.controller.admin(&request, host.now).is_ok())
        .count();
    assert!((8..=20).contains(&accepted), "{accepted}");
    host.until("all end", |host| {
        let ended = |event: &&Event| matches!(event, Event::AdminDone { result: Ok(_), .. });
        host.events.iter().filter(ended).count() == accepted
    });
    host.admin(&request).unwrap();
}
