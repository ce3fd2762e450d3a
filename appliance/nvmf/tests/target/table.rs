//! Every command with every field invalid in turn: the right status, and nothing has changed.

use nvme_spec::feature::{Select, fid};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::{Cid, Fuse, Lba, Nsid, SglDescriptor, Sqe, Status};

use crate::rig::{NQN, Rig, Served, capsule, disconnect, dnr, read, transport, write};

const INVALID: Status = Status::INVALID_FIELD.with_dnr(true);
const OPCODE: Status = Status::INVALID_OPCODE.with_dnr(true);
const NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true);
const RANGE: Status = Status::LBA_OUT_OF_RANGE.with_dnr(true);
const LENGTH: Status = Status::DATA_SGL_LENGTH_INVALID.with_dnr(true);
const SGL_TYPE: Status = Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(true);

/// What must not change.
fn state(rig: &mut Rig, served: &Served) -> (Vec<u8>, u64, Vec<u64>) {
    let features = [
        fid::ARBITRATION,
        fid::TEMPERATURE_THRESHOLD,
        fid::ERROR_RECOVERY,
        fid::VOLATILE_WRITE_CACHE,
        fid::NUMBER_OF_QUEUES,
        fid::INTERRUPT_COALESCING,
        fid::INTERRUPT_VECTOR,
        fid::WRITE_ATOMICITY,
        fid::ASYNC_EVENT_CONFIG,
        fid::KEEP_ALIVE_TIMER,
    ];
    let values = features
        .iter()
        .map(|fid| {
            let get = Sqe::get_features(Cid(900), *fid, Select::Current);
            rig.run(&served.host.admin, get, &[]).cqe.result()
        })
        .collect();
    let data = served.device.state().data.clone();
    (data, served.subsystem.config().version, values)
}

#[test]
fn io_commands_with_one_field_wrong() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 1024);
    served.device.state().data.fill(0x5a);
    let before = state(&mut rig, &served);
    served.device.take_ops();
    let data = vec![1; 300 * 512];

    let mut cases: Vec<(Sqe, Status)> = Vec::new();
    let zeroes = Sqe::write_zeroes(Cid(1), Nsid(1), Lba(0), 8);
    let verify = Sqe {
        opcode: nvm::VERIFY,
        ..zeroes
    };
    let compare = Sqe {
        opcode: nvm::COMPARE,
        ..write(1, 0, 8)
    };
    let ranged = [read(1, 0, 8), write(1, 0, 8), compare, zeroes, verify];
    for sqe in ranged {
        for nsid in [0, 2, 32, 33, 0xffff_fffe, 0xffff_ffff] {
            cases.push((sqe.with_nsid(Nsid(nsid)), NAMESPACE));
        }
        for lba in [1017, 1024, u64::MAX, u64::MAX - 7] {
            cases.push((sqe.with_slba(Lba(lba)), RANGE));
        }
        // PRINFO, STC.
        for bit in [24, 26, 27, 28, 29] {
            cases.push((sqe.with_cdw12(sqe.cdw12() | 1 << bit), INVALID));
        }
        cases.push((sqe.with_fuse(Fuse::Reserved), INVALID));
    }
    for sqe in [read(1, 0, 8), write(1, 0, 8), compare] {
        cases.push((sqe.with_psdt(Sqe::PSDT_PRP), INVALID));
        for len in [0, 512, 4095] {
            cases.push((transport(sqe, len), LENGTH));
        }
        let wrong = [
            SglDescriptor::data_block(0, 4096),
            SglDescriptor::segment(0, 4096),
            SglDescriptor::last_segment(0, 4096),
        ];
        for sgl in wrong {
            cases.push((sqe.with_sgl(sgl), SGL_TYPE));
        }
        cases.push((transport(sqe.with_block_count(257), 257 * 512), INVALID));
    }
    cases.extend(reservation_cases());
    let deallocate = transport(Sqe::deallocate(Cid(1), Nsid(1), 1), 16);
    cases.extend([
        (deallocate.with_nsid(Nsid(2)), NAMESPACE),
        (transport(deallocate, 15), LENGTH),
        (deallocate.with_psdt(0), INVALID),
        (Sqe::flush(Cid(1), Nsid(0)), NAMESPACE),
        (Sqe::flush(Cid(1), Nsid(2)), NAMESPACE),
    ]);
    let known = [
        0x00,
        0x01,
        0x02,
        0x05,
        0x08,
        0x09,
        0x0c,
        nvm::RESERVATION_REGISTER,
        nvm::RESERVATION_REPORT,
        nvm::RESERVATION_ACQUIRE,
        nvm::RESERVATION_RELEASE,
        0x19,
        nvme_spec::opcode::fabrics::OPCODE,
    ];
    for opcode in (0..=255).filter(|opcode| !known.contains(opcode)) {
        cases.push((
            Sqe {
                opcode,
                ..read(1, 0, 8)
            },
            OPCODE,
        ));
    }
    // Admin commands on an I/O queue are I/O opcodes, or none.
    for opcode in [
        admin::IDENTIFY,
        admin::GET_FEATURES,
        admin::ABORT + 0x10,
        admin::KEEP_ALIVE,
    ] {
        cases.push((
            Sqe {
                opcode,
                ..read(1, 0, 8)
            },
            OPCODE,
        ));
    }
    let count = cases.len();
    for (sqe, expected) in cases {
        let reply = rig.run(&served.io, sqe, &data);
        assert_eq!(reply.cqe.status(), expected, "{sqe:?}");
        assert!(reply.data.is_empty());
    }
    assert!(count > 300, "{count}");
    assert_eq!(served.device.take_ops(), []);
    assert_eq!(state(&mut rig, &served), before);
    rig.assert_all_buffers_back();
}

/// Reservation commands with a field wrong, of a host that is not registered.
fn reservation_cases() -> Vec<(Sqe, Status)> {
    let (cid, nsid) = (Cid(1), Nsid(1));
    let register = transport(Sqe::reservation_register(cid, nsid, 0, false, 0), 16);
    let acquire = transport(Sqe::reservation_acquire(cid, nsid, 0, 1), 16);
    let release = transport(Sqe::reservation_release(cid, nsid, 0, 1), 8);
    let report = transport(Sqe::reservation_report(cid, nsid, 4096, true), 4096);
    let mut cases = Vec::new();
    for sqe in [register, acquire, release, report] {
        for nsid in [0, 2, 32, 33, 0xffff_fffe, 0xffff_ffff] {
            cases.push((sqe.with_nsid(Nsid(nsid)), NAMESPACE));
        }
        cases.push((sqe.with_psdt(Sqe::PSDT_PRP), INVALID));
        cases.push((sqe.with_sgl(SglDescriptor::data_block(0, 4096)), SGL_TYPE));
        cases.push((sqe.with_fuse(Fuse::Reserved), INVALID));
        for len in [0, 1, 7] {
            cases.push((transport(sqe, len), LENGTH));
        }
    }
    for sqe in [register, acquire] {
        cases.extend([8, 15, 4097].map(|len| (transport(sqe, len), LENGTH)));
        cases.push((capsule(sqe, 16), LENGTH));
    }
    for action in 3..8 {
        cases.push((register.with_cdw10(action), INVALID));
        cases.push((acquire.with_cdw10(action | 1 << 8), INVALID));
        cases.push((release.with_cdw10(action | 1 << 8), INVALID));
    }
    // CPTPL 01b is reserved, 11b cannot be had without a store.
    cases.push((register.with_cdw10(0b01 << 30), INVALID));
    cases.push((register.with_cdw10(0b11 << 30), INVALID));
    for sqe in [acquire, release] {
        cases.push((sqe.with_cdw10(sqe.cdw10() | 1 << 3), INVALID));
    }
    for rtype in [0, 7, 0xff] {
        cases.push((acquire.with_cdw10(rtype << 8), INVALID));
    }
    let conflict = dnr(Status::RESERVATION_CONFLICT);
    for action in 0..3 {
        cases.push((acquire.with_cdw10(action | 1 << 8), conflict));
    }
    for action in 0..2 {
        cases.push((release.with_cdw10(action | 1 << 8), conflict));
    }
    for (action, iekey) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        cases.push((register.with_cdw10(action | iekey << 3), conflict));
    }
    let short_ids = report.with_cdw11(0);
    cases.push((short_ids, dnr(Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT)));
    cases.push((report.with_cdw10(u32::MAX), INVALID));
    cases
}

#[test]
fn admin_commands_with_one_field_wrong() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let before = state(&mut rig, &served);
    let data = vec![0xff; 4096];
    let identify = transport(Sqe::identify(Cid(1), Nsid(1), 0), 4096);
    let log = transport(Sqe::get_log_page(Cid(1), Nsid(0), 2, 512, 0), 512);
    let behavior = transport(Sqe::set_features(Cid(1), fid::HOST_BEHAVIOR, 0), 512);
    let host_id = transport(
        Sqe::get_features(Cid(1), fid::HOST_IDENTIFIER, Select::Current),
        16,
    );
    let host_id = host_id.with_cdw11(1);
    let mut cases: Vec<(Sqe, Status)> = Vec::new();
    for sqe in [identify, log, behavior, host_id] {
        cases.extend([
            (sqe.with_psdt(0), INVALID),
            (sqe.with_fuse(Fuse::First), INVALID),
            (sqe.with_fuse(Fuse::Second), INVALID),
            (sqe.with_fuse(Fuse::Reserved), INVALID),
            (sqe.with_sgl(SglDescriptor::data_block(0, 4096)), SGL_TYPE),
            (transport(sqe, 0), LENGTH),
            (transport(sqe, 15), LENGTH),
        ]);
    }
    for sqe in [identify, log, host_id] {
        cases.push((capsule(sqe, 4096), SGL_TYPE));
    }
    cases.extend([
        (behavior, INVALID),
        (transport(behavior, 513), LENGTH),
        (log.with_cdw12(513), INVALID),
        (log.with_cdw12(516), INVALID),
        (log.with_cdw13(1), INVALID),
        (log.with_cdw14(1 << 23), INVALID),
        (log.with_nsid(Nsid(1)), INVALID),
        (
            log.with_cdw10(log.cdw10() | 0xff),
            dnr(Status::INVALID_LOG_PAGE),
        ),
        (Sqe::set_features(Cid(1), fid::POWER_MANAGEMENT, 1), INVALID),
        (
            Sqe::set_features(Cid(1), fid::ERROR_RECOVERY, 1 << 16),
            INVALID,
        ),
        (
            Sqe::set_features(Cid(1), fid::TEMPERATURE_THRESHOLD, 1 << 16),
            INVALID,
        ),
        (
            Sqe::set_features(Cid(1), fid::NUMBER_OF_QUEUES, 0xffff),
            INVALID,
        ),
        (
            Sqe::set_features(Cid(1), fid::NAMESPACE_WRITE_PROTECTION, 1),
            NAMESPACE,
        ),
        (
            Sqe::set_features(Cid(1), fid::NAMESPACE_WRITE_PROTECTION, 4).with_nsid(Nsid(1)),
            INVALID,
        ),
        (disconnect(1), dnr(Status::INVALID_QUEUE_TYPE)),
    ]);
    let known = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f];
    for opcode in (0..=255).filter(|opcode| !known.contains(opcode)) {
        cases.push((Sqe { opcode, ..identify }, OPCODE));
    }
    for fctype in (0..=255).filter(|fctype| ![0, 1, 4, 8].contains(fctype)) {
        let sqe = Sqe::new(nvme_spec::opcode::fabrics::OPCODE, Cid(1)).with_nsid(Nsid(fctype));
        cases.push((sqe, OPCODE));
    }
    for (sqe, expected) in cases {
        let reply = rig.run(&served.host.admin, sqe, &data);
        assert_eq!(reply.cqe.status(), expected, "{sqe:?}");
        assert!(reply.data.is_empty());
    }
    assert_eq!(state(&mut rig, &served), before);
    assert_eq!(
        rig.target
            .subsystem(&crate::rig::nqn(NQN))
            .unwrap()
            .controllers()
            .len(),
        1
    );
    rig.assert_all_buffers_back();
}
