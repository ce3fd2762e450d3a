//! Identify, log pages, features: what the controller says is what is so.

use std::sync::Arc;
use std::time::Duration;

use block::{Geometry, IoError};
use nvme_spec::feature::{Select, capability, fid};
use nvme_spec::identify::{
    IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace, IdentifyNvmController,
    IdentifyNvmNamespace, NamespaceList, NsDescriptor, anacap, cmic, cns, cntrltype, fuses,
    ns_descriptors, nsattr, nsfeat, nstat, oaes, ofcs, oncs, trim_ascii, vwc,
};
use nvme_spec::log::{
    AnaGroupDescriptor, AnaHeader, CommandsEffects, ErrorEntry, FeatureEffects, FirmwareSlot,
    SmartLog, SupportedLogPages, effects, lid,
};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::registers::Vs;
use nvme_spec::{Cid, Lba, Nsid, Sqe, Status};
use nvmf::transport::TransportLimits;
use nvmf::{AnaGroupId, AnaState, SubsystemOptions, TargetOptions, WriteProtect};
use zerocopy::FromBytes;

use crate::device::TestDevice;
use crate::rig::{
    HOST_ID, Host, NQN, Rig, RigOptions, address, bdev, dnr, flush, limits, namespace, nqn, read,
    transport, write,
};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const INVALID: Status = Status::INVALID_FIELD.with_dnr(true);
const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true);

fn identify_sqe(nsid: u32, cns: u8) -> Sqe {
    transport(Sqe::identify(Cid(1), Nsid(nsid), cns), 4096)
}

fn identify(rig: &mut Rig, host: &Host, nsid: u32, cns: u8) -> Vec<u8> {
    let reply = rig.run(&host.admin, identify_sqe(nsid, cns), &[]);
    assert!(
        reply.cqe.status().is_success(),
        "cns {cns:#x}: {}",
        reply.cqe.status()
    );
    reply.data
}

fn get_log(rig: &mut Rig, host: &Host, lid: u8, len: u32) -> Vec<u8> {
    let sqe = Sqe::get_log_page(Cid(1), Nsid(0), lid, len, 0);
    let reply = rig.run(&host.admin, transport(sqe, len as usize), &[]);
    assert!(
        reply.cqe.status().is_success(),
        "lid {lid:#x}: {}",
        reply.cqe.status()
    );
    reply.data
}

#[test]
fn identify_controller_tells_the_limits_that_are_enforced() {
    let mut rig = Rig::with(RigOptions {
        target: TargetOptions {
            crdt1_100ms: 7,
            ..RigOptions::default().target
        },
        limits: TransportLimits {
            kas_100ms: 50,
            ..limits()
        },
        ..RigOptions::default()
    });
    let subsystem = rig.subsystem_with(SubsystemOptions {
        serial: "S123".into(),
        model: "M456".into(),
        max_namespaces: 77,
        ..SubsystemOptions {
            allow_any_host: true,
            ..SubsystemOptions::new(nqn(NQN))
        }
    });
    let host = rig.host(NQN);
    let data = identify(&mut rig, &host, 0, cns::CONTROLLER);
    let id = IdentifyController::read_from_bytes(&data).unwrap();
    assert_eq!(
        (trim_ascii(&id.sn), trim_ascii(&id.mn)),
        (Some("S123"), Some("M456"))
    );
    assert_eq!(nvme_spec::identify::nul_terminated(&id.subnqn), Some(NQN));
    assert_eq!(
        (id.cntlid.get(), id.ver.get()),
        (host.cntlid.0, Vs::V2_1.into())
    );
    assert_eq!(
        (4096_u32 << id.mdts, id.cntrltype),
        (limits().max_io_size, cntrltype::IO)
    );
    assert_eq!((id.kas.get(), id.crdt1.get()), (50, 7));
    assert_eq!(
        (id.sqes, id.cqes, id.maxcmd.get()),
        (0x66, 0x44, limits().max_queue_depth)
    );
    assert_eq!((id.nn.get(), id.mnan.get()), (77, 77));
    assert_eq!((id.aerl, id.acl, id.elpe), (3, 3, 63));
    assert_eq!(id.ioccsz.get() * 16, 64 + limits().in_capsule_data_size);
    assert_eq!((id.iorcsz.get(), id.icdoff.get(), id.msdbd), (1, 0, 1));
    assert_eq!(id.ofcs.get() & ofcs::DISCONNECT, ofcs::DISCONNECT);
    assert_eq!(
        (id.fuses.get(), id.acwu.get()),
        (fuses::COMPARE_AND_WRITE, 0)
    );
    let commands = oncs::COMPARE | oncs::WRITE_ZEROES | oncs::COPY | oncs::VERIFY;
    assert_eq!(id.oncs.get() & commands, commands);
    assert_eq!((id.cdfs.get(), id.nwpc & 1), (1, 1));
    assert_eq!(id.cmic & cmic::ANA_REPORTING, 0);
    assert_eq!(id.oaes.get() & oaes::ANA_CHANGE, 0);
    // Limits of single commands.
    let data = identify(&mut rig, &host, 0, cns::CSI_CONTROLLER);
    let nvm = IdentifyNvmController::read_from_bytes(&data).unwrap();
    assert_eq!((nvm.dmrl, 4096_u64 << nvm.wzsl), (0, 256 << 20));
    let geometry = Geometry::new(4096, 65_536);
    let bdev = bdev(TestDevice::with(geometry), rig.now);
    drop(subsystem.add_namespace(namespace(1, &bdev)).unwrap());
    let io = rig.io(&host, 1);
    let verify = |blocks| Sqe {
        opcode: nvm::VERIFY,
        ..Sqe::read(Cid(1), Nsid(1), Lba(0), blocks)
    };
    let most = (1 << nvm.vsl) as u32;
    assert!(rig.status(&io, verify(most), &[]).is_success());
    assert_eq!(rig.status(&io, verify(most + 1), &[]), INVALID);
    let zeroes = Sqe::write_zeroes(Cid(1), Nsid(1), Lba(0), 65_536);
    assert!(rig.status(&io, zeroes, &[]).is_success());
    let most = limits().max_io_size / 4096;
    let read = |blocks: u32| {
        transport(
            Sqe::read(Cid(1), Nsid(1), Lba(0), blocks),
            blocks as usize * 4096,
        )
    };
    assert!(rig.status(&io, read(most), &[]).is_success());
    assert_eq!(rig.status(&io, read(most + 1), &[]), INVALID);
}

#[test]
fn the_volatile_cache_is_told_when_a_visible_namespace_has_one() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let host = rig.host(NQN);
    let get = Sqe::get_features(Cid(1), fid::VOLATILE_WRITE_CACHE, Select::Current);
    let set = |on| Sqe::set_features(Cid(1), fid::VOLATILE_WRITE_CACHE, on);
    let told = |rig: &mut Rig| {
        let data = identify(rig, &host, 0, cns::CONTROLLER);
        let id = IdentifyController::read_from_bytes(&data).unwrap();
        (
            id.vwc & vwc::FLUSH_ALL == vwc::FLUSH_ALL,
            id.vwc & vwc::PRESENT != 0,
        )
    };
    let durable = bdev(TestDevice::with(Geometry::new(512, 64)), rig.now);
    drop(subsystem.add_namespace(namespace(1, &durable)).unwrap());
    rig.poll();
    assert_eq!(told(&mut rig), (true, false));
    assert_eq!(rig.status(&host.admin, get, &[]), INVALID);
    assert_eq!(rig.status(&host.admin, set(0), &[]), INVALID);
    let cached = bdev(TestDevice::new(512, 64), rig.now);
    drop(subsystem.add_namespace(namespace(2, &cached)).unwrap());
    rig.poll();
    assert_eq!(told(&mut rig), (true, true));
    assert_eq!(rig.run(&host.admin, get, &[]).cqe.result(), 1);
    assert!(rig.status(&host.admin, set(0), &[]).is_success());
    assert_eq!(rig.run(&host.admin, get, &[]).cqe.result(), 0);
    for (nsid, has_no_cache) in [(1, true), (2, false)] {
        let data = identify(&mut rig, &host, nsid, cns::INDEPENDENT_NAMESPACE);
        let id = IdentifyIndependentNamespace::read_from_bytes(&data).unwrap();
        assert_eq!(id.nsfeat & nsfeat::NO_VWC != 0, has_no_cache);
    }
}

#[test]
fn identify_namespace_tells_what_the_device_says() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let geometry = Geometry {
        optimal_io_blocks: 32,
        write_granularity_blocks: 8,
        unmap_granularity_blocks: 16,
        atomic_write_blocks: 4,
        boundary_blocks: 256,
        ..Geometry::new(4096, 1000)
    };
    let bdev = bdev(TestDevice::with(geometry), rig.now);
    let mut config = namespace(3, &bdev);
    config.nguid = [3; 16];
    config.eui64 = [4; 8];
    config.write_protect = WriteProtect::WriteProtect;
    drop(subsystem.add_namespace(config).unwrap());
    let host = rig.host(NQN);
    let data = identify(&mut rig, &host, 3, cns::NAMESPACE);
    let id = IdentifyNamespace::read_from_bytes(&data).unwrap();
    assert_eq!(
        (id.nsze.get(), id.ncap.get(), id.nuse.get()),
        (1000, 1000, 1000)
    );
    assert_eq!((id.block_size(), id.nlbaf, id.flbas), (Some(4096), 0, 0));
    assert_eq!((id.npwg.get(), id.npwa.get(), id.npdg.get()), (7, 7, 15));
    assert_eq!((id.nows.get(), id.noiob.get()), (31, 256));
    assert_eq!((id.nawun.get(), id.nawupf.get(), id.nacwu.get()), (3, 3, 0));
    assert_ne!(id.nsfeat & nsfeat::ATOMIC, 0);
    assert_eq!(
        (id.mssrl.get(), id.mcl.get(), id.msrc),
        (65_535, 1 << 20, 15)
    );
    assert_eq!((id.nguid, id.eui64), ([3; 16], [4; 8]));
    assert_eq!(id.nsattr & nsattr::WRITE_PROTECTED, nsattr::WRITE_PROTECTED);
    assert_eq!(id.anagrpid.get(), 0, "ANA is not reported");
    let data = identify(&mut rig, &host, 3, cns::NAMESPACE_DESCRIPTORS);
    let descriptors: Vec<_> = ns_descriptors(&data).collect();
    assert_eq!(
        descriptors,
        [
            NsDescriptor::Eui64([4; 8]),
            NsDescriptor::Nguid([3; 16]),
            NsDescriptor::Uuid(*bdev.uuid().as_bytes()),
            NsDescriptor::Csi(0),
        ]
    );
    let data = identify(&mut rig, &host, 3, cns::CSI_NAMESPACE);
    let id = IdentifyNvmNamespace::read_from_bytes(&data).unwrap();
    assert_eq!(id.elbaf[0].get(), 0);
    let data = identify(&mut rig, &host, 3, cns::INDEPENDENT_NAMESPACE);
    let id = IdentifyIndependentNamespace::read_from_bytes(&data).unwrap();
    assert_eq!(
        (id.nstat, id.nsattr),
        (nstat::READY, nsattr::WRITE_PROTECTED)
    );
}

#[test]
fn identify_lists_the_active_namespaces_in_pages() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem_with(SubsystemOptions {
        allow_any_host: true,
        max_namespaces: 3000,
        ..SubsystemOptions::new(nqn(NQN))
    });
    let bdev = bdev(TestDevice::new(512, 8), rig.now);
    let nsids: Vec<u32> = (1..=1100).map(|i| i * 2).collect();
    for nsid in &nsids {
        drop(subsystem.add_namespace(namespace(*nsid, &bdev)).unwrap());
    }
    let host = rig.host(NQN);
    for cns in [cns::ACTIVE_NAMESPACES, cns::CSI_ACTIVE_NAMESPACES] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().copied().unwrap_or(0);
            let data = identify(&mut rig, &host, after, cns);
            let list = NamespaceList::read_from_bytes(&data).unwrap();
            let page: Vec<u32> = list.iter().map(|nsid| nsid.0).collect();
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        assert_eq!(seen, nsids);
        for nsid in [0xffff_fffe, 0xffff_ffff] {
            assert_eq!(
                rig.status(&host.admin, identify_sqe(nsid, cns), &[]),
                NO_NAMESPACE
            );
        }
    }
}

#[test]
fn identify_of_what_is_not_there_is_zeroes_or_an_error() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let admin = &served.host.admin;
    let unused = identify(&mut rig, &served.host, 2, cns::NAMESPACE);
    assert!(unused.iter().all(|byte| *byte == 0));
    for nsid in [0, 33, 0xffff_fffe] {
        assert_eq!(
            rig.status(admin, identify_sqe(nsid, cns::NAMESPACE), &[]),
            NO_NAMESPACE
        );
    }
    for cns in [cns::CSI_NAMESPACE, cns::INDEPENDENT_NAMESPACE] {
        let inactive = identify(&mut rig, &served.host, 2, cns);
        assert!(inactive.iter().all(|byte| *byte == 0));
    }
    for cns in [
        cns::NAMESPACE_DESCRIPTORS,
        cns::CSI_NAMESPACE,
        cns::INDEPENDENT_NAMESPACE,
    ] {
        for nsid in [0, 33, 0xffff_fffe, 0xffff_ffff] {
            assert_eq!(
                rig.status(admin, identify_sqe(nsid, cns), &[]),
                NO_NAMESPACE
            );
        }
    }
    let inactive = identify_sqe(2, cns::NAMESPACE_DESCRIPTORS);
    assert_eq!(rig.status(admin, inactive, &[]), NO_NAMESPACE);
    // The command set's part of the controller is of no namespace: NSID is not looked at.
    let of_controller = identify(&mut rig, &served.host, 0, cns::CSI_CONTROLLER);
    for nsid in [1, 2, 33, 0xffff_ffff] {
        let same = identify(&mut rig, &served.host, nsid, cns::CSI_CONTROLLER);
        assert_eq!(same, of_controller);
    }
    let known = [0, 1, 2, 3, 5, 6, 7, 8, 0x1c];
    for cns in (0..=255).filter(|cns| !known.contains(cns)) {
        assert_eq!(
            rig.status(admin, identify_sqe(1, cns), &[]),
            INVALID,
            "cns {cns:#x}"
        );
    }
    for cns in [5, 6, 7] {
        let other_set = identify_sqe(1, cns).with_cdw11(1 << 24);
        assert_eq!(rig.status(admin, other_set, &[]), INVALID);
    }
    let sets = identify(&mut rig, &served.host, 0, cns::IO_COMMAND_SETS);
    assert_eq!(
        (sets[0], sets[1..].iter().any(|byte| *byte != 0)),
        (1, false)
    );
    let short = transport(identify_sqe(0, 1), 4095);
    assert_eq!(
        rig.status(admin, short, &[]),
        dnr(Status::DATA_SGL_LENGTH_INVALID)
    );
}

#[test]
fn a_discovery_controller_identifies_itself_and_has_no_namespaces() {
    let mut rig = Rig::new();
    let host = rig.host(DISCOVERY);
    let data = identify(&mut rig, &host, 0, cns::CONTROLLER);
    let id = IdentifyController::read_from_bytes(&data).unwrap();
    assert_eq!(
        (id.cntrltype, id.oaes.get()),
        (cntrltype::DISCOVERY, oaes::DISCOVERY_LOG_CHANGE)
    );
    assert_eq!(
        nvme_spec::identify::nul_terminated(&id.subnqn),
        Some(DISCOVERY)
    );
    for cns in [0, 2, 3, 5, 6, 7, 8, 0x1c] {
        assert_eq!(rig.status(&host.admin, identify_sqe(1, cns), &[]), INVALID);
    }
}

#[test]
fn the_supported_log_pages_are_those_that_can_be_read() {
    for (name, known) in [
        (NQN, &[0, 1, 2, 3, 4, 5, 0x12, 0x80][..]),
        (DISCOVERY, &[0, 1, 0x70]),
    ] {
        let mut rig = Rig::new();
        rig.subsystem(NQN);
        let host = rig.host(name);
        let data = get_log(&mut rig, &host, lid::SUPPORTED_LOG_PAGES, 1024);
        let log = SupportedLogPages::read_from_bytes(&data).unwrap();
        for lid in 0..=255_u8 {
            let is_known = known.contains(&lid);
            assert_eq!(log.lids[usize::from(lid)].get() & 1 == 1, is_known);
            let sqe = transport(Sqe::get_log_page(Cid(1), Nsid(0), lid, 64, 0), 64);
            let expected = if is_known {
                Status::SUCCESS
            } else {
                dnr(Status::INVALID_LOG_PAGE)
            };
            assert_eq!(rig.status(&host.admin, sqe, &[]), expected, "{lid:#x}");
        }
    }
}

#[test]
fn log_pages_are_read_in_pieces_and_are_zero_beyond_their_end() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let pages = [
        (0, 1024),
        (1, 4096),
        (2, 512),
        (3, 512),
        (4, 4096),
        (5, 4096),
        (0x12, 1024),
    ];
    for (lid, size) in pages {
        let whole = get_log(&mut rig, &served.host, lid, size + 8);
        assert_eq!(whole.len(), size as usize + 8);
        assert_eq!(whole[size as usize..], [0; 8]);
        let mut get = |len: u32, offset: u64| {
            let sqe = Sqe::get_log_page(Cid(1), Nsid(0), lid, len, offset);
            let reply = rig.run(&served.host.admin, transport(sqe, len as usize), &[]);
            (reply.cqe.status(), reply.data)
        };
        let (status, piece) = get(64, u64::from(size) - 32);
        assert!(status.is_success());
        assert_eq!(piece[..32], whole[size as usize - 32..size as usize]);
        assert_eq!(piece[32..], [0; 32]);
        assert!(get(4, u64::from(size)).0.is_success());
        for offset in [u64::from(size) + 4, 1 << 32, u64::MAX - 3, 2] {
            assert_eq!(get(4, offset).0, INVALID, "{lid:#x} at {offset}");
        }
        assert_eq!(get(limits().max_io_size + 4, 0).0, INVALID);
        let index = transport(Sqe::get_log_page(Cid(1), Nsid(0), lid, 4, 0), 4);
        assert_eq!(
            rig.status(&served.host.admin, index.with_cdw14(1 << 23), &[]),
            INVALID
        );
        let short = transport(Sqe::get_log_page(Cid(1), Nsid(0), lid, 64, 0), 60);
        let status = rig.status(&served.host.admin, short, &[]);
        assert_eq!(status, dnr(Status::DATA_SGL_LENGTH_INVALID));
    }
    // No namespace has another I/O command set than NVM: its part of the effects log is zeroes.
    let other_set = Sqe::get_log_page(Cid(1), Nsid(0), 5, 1024, 1024).with_cdw14(2 << 24);
    let reply = rig.run(&served.host.admin, transport(other_set, 1024), &[]);
    assert!(reply.cqe.status().is_success());
    assert_eq!(reply.data, [0; 1024]);
    rig.assert_all_buffers_back();
}

#[test]
fn a_log_page_asked_for_wrongly_is_not_taken_as_read() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    drop(served.subsystem.namespace_resized(Nsid(1)).unwrap());
    let wrong = Sqe::get_log_page(Cid(1), Nsid(0), lid::CHANGED_NAMESPACES, 4, 8192);
    assert_eq!(
        rig.status(&served.host.admin, transport(wrong, 4), &[]),
        INVALID
    );
    let list = get_log(&mut rig, &served.host, lid::CHANGED_NAMESPACES, 4);
    assert_eq!(list, [1, 0, 0, 0]);
}

#[test]
fn the_error_log_holds_what_failed_newest_first() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    assert!(
        !rig.status(&served.host.admin, identify_sqe(1, 0x44), &[])
            .is_success()
    );
    assert!(!rig.status(&served.io, read(9, 0x1234, 1), &[]).is_success());
    let data = get_log(&mut rig, &served.host, lid::ERROR, 192);
    let entry = |index: usize| ErrorEntry::read_from_bytes(&data[index * 64..][..64]).unwrap();
    let newest = entry(0);
    assert_eq!(
        (
            newest.error_count.get(),
            newest.sqid.get(),
            newest.cid.get()
        ),
        (2, 1, 9)
    );
    assert_eq!((newest.lba.get(), newest.nsid.get()), (0x1234, 1));
    assert!(newest.status().is(Status::LBA_OUT_OF_RANGE));
    assert!(entry(1).status().is(Status::INVALID_FIELD));
    assert_eq!((entry(1).sqid.get(), entry(2).error_count.get()), (0, 0));
    for _ in 0..100 {
        assert!(!rig.status(&served.io, read(9, 0x1234, 1), &[]).is_success());
    }
    let data = get_log(&mut rig, &served.host, lid::ERROR, 4096);
    let counts: Vec<u64> = data
        .chunks(64)
        .map(|entry| {
            ErrorEntry::read_from_bytes(entry)
                .unwrap()
                .error_count
                .get()
        })
        .collect();
    assert_eq!(counts, (39..=102).rev().collect::<Vec<_>>());
}

#[test]
fn the_health_log_counts() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 1024);
    for cid in 0..3 {
        rig.run(&served.io, read(cid, 0, 256), &[]);
    }
    rig.run(&served.io, write(1, 0, 1), &[0; 512]);
    rig.run(&served.io, flush(1), &[]);
    served.device.state().failures.push_back(IoError::MediaRead);
    rig.run(&served.io, read(1, 0, 1), &[]);
    served.io.wire().is_cut = true;
    rig.advance(Duration::from_secs(7200));
    let data = get_log(&mut rig, &served.host, lid::SMART, 512);
    let log = SmartLog::read_from_bytes(&data).unwrap();
    assert_eq!(
        (log.host_read_commands(), log.host_write_commands()),
        (3, 1)
    );
    assert_eq!((log.data_units_read(), log.data_units_written()), (1, 1));
    assert_eq!((log.media_errors(), log.error_log_entries()), (1, 1));
    assert_eq!((log.power_on_hours(), log.critical_warning), (2, 0));
    let of_namespace = Sqe::get_log_page(Cid(1), Nsid(1), lid::SMART, 512, 0);
    assert_eq!(
        rig.status(&served.host.admin, transport(of_namespace, 512), &[]),
        INVALID
    );
}

#[test]
fn the_effects_logs_name_what_is_supported() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let data = get_log(&mut rig, &served.host, lid::COMMANDS_EFFECTS, 4096);
    let log = CommandsEffects::read_from_bytes(&data).unwrap();
    let is_supported = |entry: u32| entry & effects::CSUPP != 0;
    for opcode in 0..=255_u8 {
        let told = is_supported(log.io[usize::from(opcode)].get());
        let sqe = Sqe::new(opcode, Cid(1)).with_nsid(Nsid(1));
        if opcode != nvme_spec::opcode::fabrics::OPCODE {
            let status = rig.status(&served.io, sqe, &[]);
            assert_eq!(!status.is(Status::INVALID_OPCODE), told, "i/o {opcode:#x}");
        }
        let told = is_supported(log.admin[usize::from(opcode)].get());
        if opcode == admin::ASYNC_EVENT_REQUEST {
            assert!(told);
            continue;
        }
        if opcode != nvme_spec::opcode::fabrics::OPCODE {
            let status = rig.status(&served.host.admin, sqe, &[]);
            assert_eq!(
                !status.is(Status::INVALID_OPCODE),
                told,
                "admin {opcode:#x}"
            );
        }
    }
    let data = get_log(&mut rig, &served.host, lid::FEATURE_EFFECTS, 1024);
    let log = FeatureEffects::read_from_bytes(&data).unwrap();
    for fid in 0..=255_u8 {
        let told = log.fid[usize::from(fid)].get() & 1 == 1;
        let get = Sqe::get_features(Cid(1), fid, Select::Supported);
        let status = rig.status(&served.host.admin, get, &[]);
        assert_eq!(status.is_success(), told, "feature {fid:#x}");
    }
    let data = get_log(&mut rig, &served.host, lid::FIRMWARE_SLOT, 512);
    let log = FirmwareSlot::read_from_bytes(&data).unwrap();
    assert_eq!(
        (log.afi, trim_ascii(&log.frs[0])),
        (1, Some(env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn the_ana_log_tells_the_states_at_this_address() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem_with(SubsystemOptions {
        allow_any_host: true,
        ana_reporting: true,
        ..SubsystemOptions::new(nqn(NQN))
    });
    drop(
        subsystem
            .add_listener(Arc::new(address(4421)), AnaState::Inaccessible)
            .unwrap(),
    );
    let bdev = bdev(TestDevice::new(512, 8), rig.now);
    for (nsid, group) in [(1, 7), (2, 3), (3, 7)] {
        let mut config = namespace(nsid, &bdev);
        config.ana_group = AnaGroupId(group);
        drop(subsystem.add_namespace(config).unwrap());
    }
    let host = rig.host(NQN);
    let data = identify(&mut rig, &host, 0, cns::CONTROLLER);
    let id = IdentifyController::read_from_bytes(&data).unwrap();
    assert_ne!(id.cmic & cmic::ANA_REPORTING, 0);
    assert_eq!(
        (id.anagrpmax.get(), id.nanagrpid.get(), id.anatt),
        (1024, 1024, 10)
    );
    assert_ne!(id.anacap & anacap::PERSISTENT_LOSS, 0);
    let data = identify(&mut rig, &host, 2, cns::NAMESPACE);
    assert_eq!(
        IdentifyNamespace::read_from_bytes(&data)
            .unwrap()
            .anagrpid
            .get(),
        3
    );

    let before = get_log(&mut rig, &host, lid::ANA, 16);
    let group = Some(AnaGroupId(7));
    drop(
        subsystem
            .set_ana_state(&address(4420), group, AnaState::NonOptimized)
            .unwrap(),
    );
    rig.poll();
    let data = get_log(&mut rig, &host, lid::ANA, 16 + 2 * 32 + 3 * 4);
    let count = |data: &[u8]| {
        AnaHeader::read_from_prefix(data)
            .unwrap()
            .0
            .change_count
            .get()
    };
    assert_eq!(count(&data), count(&before) + 1);
    assert_eq!(
        AnaHeader::read_from_prefix(&data).unwrap().0.groups.get(),
        2
    );
    let (first, rest) = AnaGroupDescriptor::read_from_prefix(&data[16..]).unwrap();
    assert_eq!(
        (first.group_id.get(), first.namespaces.get(), first.state),
        (3, 1, 1)
    );
    assert_eq!(rest[..4], [2, 0, 0, 0]);
    let (second, rest) = AnaGroupDescriptor::read_from_prefix(&rest[4..]).unwrap();
    assert_eq!(
        (second.group_id.get(), second.namespaces.get(), second.state),
        (7, 2, 2)
    );
    assert_eq!(rest, [1, 0, 0, 0, 3, 0, 0, 0]);
    let short = Sqe::get_log_page(Cid(1), Nsid(0), lid::ANA, 80, 0).with_lsp(1);
    let data = rig.run(&host.admin, transport(short, 80), &[]).data;
    let (second, _) = AnaGroupDescriptor::read_from_prefix(&data[48..]).unwrap();
    assert_eq!((second.group_id.get(), second.namespaces.get()), (7, 0));
}

/// A feature, a value other than its default, and one that is refused.
const FEATURES: [(u8, u32, Option<u32>); 9] = [
    (fid::ARBITRATION, 0x0102_0304, None),
    (fid::TEMPERATURE_THRESHOLD, 300, Some(0x20_0000)),
    (fid::TEMPERATURE_THRESHOLD, 300, Some(0x1_0000)),
    (fid::ERROR_RECOVERY, 5, Some(1 << 16)),
    (fid::INTERRUPT_COALESCING, 0x0102, None),
    (fid::INTERRUPT_VECTOR, 0x1_0001, None),
    (fid::WRITE_ATOMICITY, 1, None),
    (fid::ASYNC_EVENT_CONFIG, 1 << 8, None),
    (fid::KEEP_ALIVE_TIMER, 20_000, None),
];

#[test]
fn features_are_set_got_and_have_defaults() {
    for (fid, value, refused) in FEATURES {
        let mut rig = Rig::new();
        let served = rig.with_device(512, 64);
        let admin = &served.host.admin;
        let get = |select| Sqe::get_features(Cid(1), fid, select);
        let default = rig.run(admin, get(Select::Default), &[]).cqe.result();
        assert_eq!(
            rig.run(admin, get(Select::Current), &[]).cqe.result(),
            default
        );
        if let Some(refused) = refused {
            let set = Sqe::set_features(Cid(1), fid, refused);
            assert_eq!(rig.status(admin, set, &[]), INVALID, "{fid:#x}");
        }
        let set = Sqe::set_features(Cid(1), fid, value);
        let saved = set.with_cdw10(set.cdw10() | 1 << 31);
        assert_eq!(
            rig.status(admin, saved, &[]),
            dnr(Status::FEATURE_NOT_SAVEABLE)
        );
        let of_namespace = set.with_nsid(Nsid(1));
        let status = rig.status(admin, of_namespace, &[]);
        assert_eq!(status, dnr(Status::FEATURE_NOT_NAMESPACE_SPECIFIC));
        assert_eq!(
            rig.run(admin, get(Select::Current), &[]).cqe.result(),
            default
        );
        assert!(rig.status(admin, set, &[]).is_success(), "{fid:#x}");
        assert_eq!(
            rig.run(admin, get(Select::Current), &[]).cqe.result(),
            u64::from(value)
        );
        assert_eq!(
            rig.run(admin, get(Select::Default), &[]).cqe.result(),
            default
        );
        assert_eq!(
            rig.run(admin, get(Select::Saved), &[]).cqe.result(),
            default
        );
        let supported = rig.run(admin, get(Select::Supported), &[]).cqe.result() as u32;
        assert_eq!(supported, capability::CHANGEABLE);
        for reserved in 4..8 {
            let get = get(Select::Current).with_cdw10(u32::from(fid) | reserved << 8);
            assert_eq!(rig.status(admin, get, &[]), INVALID);
        }
    }
}

#[test]
fn features_with_data_or_a_rule_of_their_own() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let admin = &served.host.admin;
    // Host behavior.
    let mut behavior = [0_u8; 512];
    behavior[0] = 1;
    let set = transport(Sqe::set_features(Cid(1), fid::HOST_BEHAVIOR, 0), 512);
    let get = |select| transport(Sqe::get_features(Cid(1), fid::HOST_BEHAVIOR, select), 512);
    assert!(rig.status(admin, set, &behavior).is_success());
    assert_eq!(rig.run(admin, get(Select::Current), &[]).data, behavior);
    assert_eq!(rig.run(admin, get(Select::Default), &[]).data, [0; 512]);
    let mut wrong = behavior;
    wrong[2] = 2;
    assert_eq!(rig.status(admin, set, &wrong), INVALID);
    let short = transport(set, 256);
    let status = rig.status(admin, short, &behavior);
    assert_eq!(status, dnr(Status::DATA_SGL_LENGTH_INVALID));
    assert_eq!(rig.run(admin, get(Select::Current), &[]).data, behavior);
    // Host identifier.
    let get = transport(
        Sqe::get_features(Cid(1), fid::HOST_IDENTIFIER, Select::Current),
        16,
    );
    assert_eq!(rig.run(admin, get.with_cdw11(1), &[]).data, HOST_ID);
    assert_eq!(rig.status(admin, get, &[]), INVALID);
    let set = transport(Sqe::set_features(Cid(1), fid::HOST_IDENTIFIER, 1), 16);
    assert_eq!(
        rig.status(admin, set, &[1; 16]),
        dnr(Status::COMMAND_SEQUENCE_ERROR)
    );
    // Number of queues.
    let set = |value| Sqe::set_features(Cid(1), fid::NUMBER_OF_QUEUES, value);
    assert_eq!(
        rig.status(admin, set(0), &[]),
        dnr(Status::COMMAND_SEQUENCE_ERROR)
    );
    served.io.wire().is_cut = true;
    rig.poll();
    for wrong in [0xffff, 0xffff_0000, u32::MAX] {
        assert_eq!(rig.status(admin, set(wrong), &[]), INVALID);
    }
    assert_eq!(
        rig.run(admin, set(0x00ff_00ff), &[]).cqe.result(),
        0x0003_0003
    );
    assert_eq!(
        rig.run(admin, set(0x0001_0002), &[]).cqe.result(),
        0x0001_0001
    );
    // Power: one state.
    let set = |value| Sqe::set_features(Cid(1), fid::POWER_MANAGEMENT, value);
    assert!(rig.status(admin, set(0), &[]).is_success());
    assert_eq!(rig.status(admin, set(1), &[]), INVALID);
    // What there is not.
    for unknown in [0, 3, 0x0c, 0x10, 0x7f, 0x80, 0xff] {
        let get = Sqe::get_features(Cid(1), unknown, Select::Current);
        assert_eq!(rig.status(admin, get, &[]), INVALID);
        let set = Sqe::set_features(Cid(1), unknown, 1);
        assert_eq!(rig.status(admin, set, &[]), INVALID);
    }
    let discovery = rig.host(DISCOVERY);
    let get = Sqe::get_features(Cid(1), fid::ARBITRATION, Select::Current);
    assert_eq!(rig.status(&discovery.admin, get, &[]), INVALID);
    let no_timeout = Sqe::set_features(Cid(1), fid::KEEP_ALIVE_TIMER, 0);
    let status = rig.status(&discovery.admin, no_timeout, &[]);
    assert_eq!(status, dnr(Status::KEEP_ALIVE_TIMEOUT_INVALID));
}

#[test]
fn a_retry_delay_is_told_only_to_hosts_that_take_it() {
    let mut rig = Rig::with(RigOptions {
        target: TargetOptions {
            crdt1_100ms: 5,
            ..RigOptions::default().target
        },
        ..RigOptions::default()
    });
    let served = rig.with_device(512, 64);
    served
        .device
        .state()
        .failures
        .extend([IoError::Busy, IoError::Busy]);
    let status = rig.status(&served.io, read(1, 0, 1), &[]);
    assert_eq!(status, Status::NAMESPACE_NOT_READY);
    let mut behavior = [0_u8; 512];
    behavior[0] = 1;
    let set = transport(Sqe::set_features(Cid(1), fid::HOST_BEHAVIOR, 0), 512);
    assert!(rig.status(&served.host.admin, set, &behavior).is_success());
    let status = rig.status(&served.io, read(1, 0, 1), &[]);
    assert_eq!(status, Status::NAMESPACE_NOT_READY.with_crd(1));
}
