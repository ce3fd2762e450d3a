//! Commands on namespaces: data, durability, limits, fused pairs, copies.

use block::{Geometry, IoError, Lba as BlockLba, Op, OpKind, OpSet};
use nvme_spec::opcode::nvm;
use nvme_spec::{Cid, CopyRange, DsmRange, Fuse, Lba, Nsid, SglDescriptor, Sqe, Status};
use zerocopy::IntoBytes;

use crate::device::TestDevice;
use crate::loopback::End;
use crate::rig::{
    NQN, Rig, Served, bdev, capsule, dnr, flush, namespace, read, taken, transport, write,
};

fn pattern(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * 512)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

fn served(rig: &mut Rig) -> Served {
    let served = rig.with_device(512, 1024);
    served.device.take_ops();
    served
}

#[test]
fn what_is_written_is_read_in_capsule_or_not() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let small = pattern(8, 1);
    let sqe = capsule(Sqe::write(Cid(1), Nsid(1), Lba(3), 8), small.len());
    assert!(rig.status(&served.io, sqe, &small).is_success());
    let large = pattern(256, 2);
    assert!(
        rig.status(&served.io, write(2, 100, 256), &large)
            .is_success()
    );
    assert_eq!(rig.run(&served.io, read(3, 3, 8), &[]).data, small);
    assert_eq!(rig.run(&served.io, read(4, 100, 256), &[]).data, large);
    rig.assert_all_buffers_back();
}

#[test]
fn a_response_carries_data_only_when_it_reads() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    for cid in 0..4 {
        assert_eq!(
            rig.run(&served.io, write(cid, 0, 8), &pattern(8, 0))
                .data
                .len(),
            0
        );
        assert_eq!(rig.run(&served.io, read(cid, 0, 8), &[]).data.len(), 4096);
        assert_eq!(rig.run(&served.io, read(cid, 5000, 8), &[]).data.len(), 0);
        assert_eq!(rig.run(&served.io, flush(cid), &[]).data.len(), 0);
    }
}

#[test]
fn durability_reaches_the_device() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let data = pattern(1, 0);
    let ops = |rig: &mut Rig, sqe: Sqe, data: &[u8]| {
        assert!(rig.status(&served.io, sqe, data).is_success());
        served.device.take_ops()
    };
    assert_eq!(
        ops(&mut rig, write(1, 0, 1), &data),
        [Op::Write { fua: false }]
    );
    assert_eq!(
        ops(&mut rig, write(1, 0, 1).with_fua(true), &data),
        [Op::Write { fua: true }]
    );
    assert_eq!(ops(&mut rig, flush(1), &[]), [Op::Flush]);
    let zeroes = Sqe::write_zeroes(Cid(1), Nsid(1), Lba(0), 1);
    let zeroed = |unmap, fua| Op::WriteZeroes { unmap, fua };
    assert_eq!(ops(&mut rig, zeroes, &[]), [zeroed(false, false)]);
    assert_eq!(
        ops(&mut rig, zeroes.with_fua(true), &[]),
        [zeroed(false, true)]
    );
    let deac = zeroes.with_cdw12(zeroes.cdw12() | 1 << 25);
    assert_eq!(ops(&mut rig, deac, &[]), [zeroed(true, false)]);
    // A host that turns the write cache off gets every write durable, and no read pays for it.
    let off = Sqe::set_features(Cid(1), nvme_spec::feature::fid::VOLATILE_WRITE_CACHE, 0);
    assert!(rig.status(&served.host.admin, off, &[]).is_success());
    assert_eq!(
        ops(&mut rig, write(1, 0, 1), &data),
        [Op::Write { fua: true }]
    );
    assert_eq!(ops(&mut rig, zeroes, &[]), [zeroed(false, true)]);
    assert_eq!(ops(&mut rig, read(1, 0, 1), &[]), [Op::Read]);
}

#[test]
fn a_flush_of_all_namespaces_reaches_each_that_has_a_cache() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let second = TestDevice::new(512, 64);
    let third = TestDevice::with(Geometry::new(512, 64));
    for (nsid, device) in [(2, &second), (3, &third)] {
        let bdev = bdev(std::sync::Arc::clone(device) as _, rig.now);
        let (_, ticket) = served
            .subsystem
            .add_namespace(namespace(nsid, &bdev))
            .unwrap();
        rig.finish(ticket);
    }
    let all = Sqe::flush(Cid(1), Nsid::ALL);
    assert!(rig.status(&served.io, all, &[]).is_success());
    assert_eq!(served.device.count(OpKind::Flush), 1);
    assert_eq!(second.count(OpKind::Flush), 1);
    assert_eq!(third.count(OpKind::Flush), 0, "it has no volatile cache");
    second.state().failures.push_back(IoError::MediaWrite);
    assert_eq!(rig.status(&served.io, all, &[]), dnr(Status::WRITE_FAULT));
}

#[test]
fn a_flush_of_all_goes_on_past_a_namespace_removed_meanwhile() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let second = TestDevice::new(512, 64);
    let second_bdev = bdev(std::sync::Arc::clone(&second) as _, rig.now);
    let (_, ticket) = served
        .subsystem
        .add_namespace(namespace(2, &second_bdev))
        .unwrap();
    rig.finish(ticket);
    served.device.state().holds = true;
    rig.send(&served.io, Sqe::flush(Cid(1), Nsid::ALL), &[]);
    let ticket = served.subsystem.remove_namespace(Nsid(2)).unwrap();
    rig.finish(ticket);
    served.device.state().holds = false;
    rig.poll();
    assert_eq!(taken(&served.io, 1), Some(Status::SUCCESS));
}

#[test]
fn deallocation_takes_256_ranges_and_checks_all_before_the_first() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    served.device.state().data.fill(1);
    let mut ranges: Vec<DsmRange> = (0..256).map(|i| DsmRange::new(Lba(i * 2), 1)).collect();
    ranges[7] = DsmRange::new(Lba(0), 0);
    let sqe = |count: usize| transport(Sqe::deallocate(Cid(1), Nsid(1), count as u32), count * 16);
    assert!(
        rig.status(&served.io, sqe(256), ranges.as_bytes())
            .is_success()
    );
    assert_eq!(served.device.count(OpKind::Unmap), 255);
    let unmapped = served
        .device
        .state()
        .data
        .chunks(512)
        .filter(|b| b[0] == 0)
        .count();
    assert_eq!(unmapped, 255);
    served.device.take_ops();
    for wrong in [
        DsmRange::new(Lba(1024), 1),
        DsmRange::new(Lba(u64::MAX), u32::MAX),
    ] {
        ranges[255] = wrong;
        let status = rig.status(&served.io, sqe(256), ranges.as_bytes());
        assert_eq!(status, dnr(Status::LBA_OUT_OF_RANGE));
    }
    // Hints without deallocation are taken and nothing happens.
    let hint = sqe(256).with_cdw11(0b011);
    assert!(rig.status(&served.io, hint, ranges.as_bytes()).is_success());
    let short = transport(Sqe::deallocate(Cid(1), Nsid(1), 256), 255 * 16);
    let status = rig.status(&served.io, short, ranges.as_bytes());
    assert_eq!(status, dnr(Status::DATA_SGL_LENGTH_INVALID));
    assert_eq!(served.device.take_ops(), []);
}

#[test]
fn deallocation_on_a_device_that_cannot_is_advice_not_taken() {
    let mut rig = Rig::new();
    let subsystem = rig.subsystem(NQN);
    let geometry = Geometry {
        supports: OpSet::of(&[OpKind::Read, OpKind::Write]),
        ..Geometry::new(512, 64)
    };
    let device = TestDevice::with(geometry);
    let bdev = bdev(std::sync::Arc::clone(&device) as _, rig.now);
    drop(subsystem.add_namespace(namespace(1, &bdev)).unwrap());
    let host = rig.host(NQN);
    let io = rig.io(&host, 1);
    let range = DsmRange::new(Lba(0), 8);
    let sqe = transport(Sqe::deallocate(Cid(1), Nsid(1), 1), 16);
    assert!(rig.status(&io, sqe, range.as_bytes()).is_success());
    let zeroes = Sqe::write_zeroes(Cid(1), Nsid(1), Lba(0), 1);
    assert_eq!(rig.status(&io, zeroes, &[]), dnr(Status::INVALID_OPCODE));
    assert_eq!(device.take_ops(), []);
}

fn compare(cid: u16, lba: u64, blocks: u32) -> Sqe {
    let mut sqe = write(cid, lba, blocks);
    sqe.opcode = nvm::COMPARE;
    sqe
}

#[test]
fn compare_tells_equal_from_different() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let data = pattern(4, 9);
    rig.run(&served.io, write(1, 10, 4), &data);
    assert!(
        rig.status(&served.io, compare(2, 10, 4), &data)
            .is_success()
    );
    let mut other = data.clone();
    other[2047] ^= 1;
    let status = rig.status(&served.io, compare(3, 10, 4), &other);
    assert_eq!(status, dnr(Status::COMPARE_FAILURE));
}

fn halves(first: u16, second: u16) -> (Sqe, Sqe) {
    let first = compare(first, 5, 1).with_fuse(Fuse::First);
    (first, write(second, 5, 1).with_fuse(Fuse::Second))
}

fn pair(rig: &mut Rig, io: &End, expected: &[u8], new: &[u8]) -> (Status, Status) {
    let (first, second) = halves(1, 2);
    rig.send(io, first, expected);
    rig.send(io, second, new);
    (taken(io, 1).unwrap(), taken(io, 2).unwrap())
}

#[test]
fn a_fused_pair_writes_only_what_it_expects() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let (old, new) = (vec![0; 512], pattern(1, 3));
    let success = (Status::SUCCESS, Status::SUCCESS);
    assert_eq!(pair(&mut rig, &served.io, &old, &new), success);
    assert_eq!(rig.run(&served.io, read(3, 5, 1), &[]).data, new);
    let (first, second) = pair(&mut rig, &served.io, &old, &old);
    assert_eq!(
        (first, second),
        (dnr(Status::COMPARE_FAILURE), Status::ABORTED_FAILED_FUSED)
    );
    assert_eq!(rig.run(&served.io, read(3, 5, 1), &[]).data, new);
    assert_eq!(pair(&mut rig, &served.io, &new, &old), success);
    rig.assert_all_buffers_back();
}

#[test]
fn both_halves_may_come_before_their_data_in_any_order() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let new = pattern(1, 3);
    let (first, second) = halves(1, 2);
    // The first half's data late, the second's in its capsule.
    served.io.wire().holds_data = true;
    rig.send(&served.io, first, &[0; 512]);
    rig.send(&served.io, second, &new);
    assert!(served.io.wire().replies.is_empty());
    served.io.wire().holds_data = false;
    rig.poll();
    assert_eq!(taken(&served.io, 1), Some(Status::SUCCESS));
    assert_eq!(taken(&served.io, 2), Some(Status::SUCCESS));
    assert_eq!(served.device.state().data[5 * 512..6 * 512], new);
}

#[test]
fn a_damaged_first_half_fails_the_second_too() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let (first, second) = halves(1, 2);
    served.io.wire().holds_data = true;
    rig.send(&served.io, first, &[0; 512]);
    rig.send(&served.io, second, &[1; 512]);
    {
        let mut wire = served.io.wire();
        wire.holds_data = false;
        wire.damaged.push(Cid(1));
    }
    rig.poll();
    assert_eq!(
        taken(&served.io, 1),
        Some(Status::TRANSIENT_TRANSPORT_ERROR)
    );
    assert!(!taken(&served.io, 2).unwrap().is_success());
    served.io.wire().damaged.clear();
    assert!(rig.status(&served.io, read(3, 5, 1), &[]).is_success());
    assert_eq!(served.device.state().data[5 * 512], 0);
    rig.assert_all_buffers_back();
}

#[test]
fn a_first_half_alone_ends_when_another_command_comes() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let (first, second) = halves(1, 2);
    let zero = [0; 512];
    // A normal command, another first half, and a reserved fuse value.
    rig.send(&served.io, first, &zero);
    assert!(rig.status(&served.io, read(3, 0, 1), &[]).is_success());
    assert_eq!(taken(&served.io, 1), Some(Status::ABORTED_MISSING_FUSED));
    let (again, _) = halves(4, 5);
    rig.send(&served.io, first, &zero);
    rig.send(&served.io, again, &zero);
    assert_eq!(taken(&served.io, 1), Some(Status::ABORTED_MISSING_FUSED));
    let reserved = read(6, 0, 1).with_fuse(Fuse::Reserved);
    assert_eq!(
        rig.status(&served.io, reserved, &[]),
        dnr(Status::INVALID_FIELD)
    );
    assert_eq!(taken(&served.io, 4), Some(Status::ABORTED_MISSING_FUSED));
    // A second half without a first.
    let status = rig.status(&served.io, second, &zero);
    assert_eq!(status, dnr(Status::ABORTED_MISSING_FUSED));
    assert_eq!(served.device.count(OpKind::CompareAndWrite), 0);
    rig.assert_all_buffers_back();
}

#[test]
fn halves_that_do_not_match_both_fail() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let (first, second) = halves(1, 2);
    let wrong = [
        second.with_slba(Lba(6)),
        second.with_nsid(Nsid(2)),
        transport(second.with_block_count(2), 1024),
        read(2, 5, 1).with_fuse(Fuse::Second),
        compare(2, 5, 1).with_fuse(Fuse::Second),
    ];
    for second in wrong {
        rig.send(&served.io, first, &[0; 512]);
        let status = rig.status(&served.io, second, &[1; 1024]);
        assert_eq!(status, dnr(Status::INVALID_FIELD));
        assert_eq!(taken(&served.io, 1), Some(dnr(Status::INVALID_FIELD)));
    }
    // The first half fails at once: the second has nothing to go with.
    let (beyond, over) = (first.with_slba(Lba(5000)), second.with_slba(Lba(5000)));
    assert_eq!(
        rig.status(&served.io, beyond, &[0; 512]),
        dnr(Status::LBA_OUT_OF_RANGE)
    );
    assert!(!rig.status(&served.io, over, &[1; 512]).is_success());
    let two = transport(first.with_block_count(2), 1024);
    assert_eq!(
        rig.status(&served.io, two, &[0; 1024]),
        dnr(Status::INVALID_FIELD)
    );
    let not_compare = write(1, 5, 1).with_fuse(Fuse::First);
    assert_eq!(
        rig.status(&served.io, not_compare, &[0; 512]),
        dnr(Status::INVALID_FIELD)
    );
    assert!(rig.status(&served.io, read(3, 5, 1), &[]).is_success());
    assert!(served.device.state().data.iter().all(|byte| *byte == 0));
    rig.assert_all_buffers_back();
}

fn copy(cid: u16, to: u64, ranges: usize) -> Sqe {
    let sqe = Sqe::new(nvm::COPY, Cid(cid))
        .with_nsid(Nsid(1))
        .with_slba(Lba(to));
    transport(sqe.with_cdw12(ranges as u32 - 1), ranges * 32)
}

#[test]
fn copy_puts_the_ranges_one_behind_the_other() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let data = pattern(300, 5);
    served.device.state().data[..300 * 512].copy_from_slice(&data);
    let ranges = [CopyRange::new(Lba(0), 280), CopyRange::new(Lba(290), 10)];
    assert!(
        rig.status(&served.io, copy(1, 500, 2), ranges.as_bytes())
            .is_success()
    );
    let state = served.device.state();
    assert_eq!(state.data[500 * 512..780 * 512], data[..280 * 512]);
    assert_eq!(state.data[780 * 512..790 * 512], data[290 * 512..]);
    assert_eq!(state.data[790 * 512], 0);
    drop(state);
    rig.assert_all_buffers_back();
}

#[test]
fn a_copy_that_is_wrong_anywhere_writes_nothing() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let good = CopyRange::new(Lba(0), 8);
    let size = dnr(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    let range = dnr(Status::LBA_OUT_OF_RANGE);
    let invalid = dnr(Status::INVALID_FIELD);
    let cases = [
        (
            copy(1, 500, 2),
            vec![good, CopyRange::new(Lba(1020), 8)],
            range,
        ),
        (
            copy(1, 500, 2),
            vec![good, CopyRange::new(Lba(u64::MAX), 8)],
            range,
        ),
        (copy(1, 1020, 1), vec![good], range),
        (copy(1, u64::MAX, 1), vec![good], range),
        (copy(1, 500, 1), vec![CopyRange::new(Lba(0), 65_536)], size),
        (copy(1, 500, 17), vec![good; 17], size),
        (
            transport(copy(1, 500, 2), 32),
            vec![good],
            dnr(Status::DATA_SGL_LENGTH_INVALID),
        ),
        (copy(1, 500, 1).with_cdw12(1 << 8), vec![good], invalid),
        (copy(1, 500, 1).with_cdw12(1 << 12), vec![good], invalid),
        (copy(1, 500, 1).with_cdw12(1 << 26), vec![good], invalid),
        (
            copy(1, 500, 1).with_nsid(Nsid(9)),
            vec![good],
            dnr(Status::INVALID_NAMESPACE_OR_FORMAT),
        ),
    ];
    for (sqe, ranges, expected) in cases {
        assert_eq!(
            rig.status(&served.io, sqe, ranges.as_bytes()),
            expected,
            "{sqe:?}"
        );
    }
    assert_eq!(served.device.take_ops(), []);
    rig.assert_all_buffers_back();
}

#[test]
fn verify_reads_and_moves_nothing() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let verify = |lba, blocks| {
        let sqe = Sqe::read(Cid(1), Nsid(1), Lba(lba), blocks);
        Sqe {
            opcode: nvm::VERIFY,
            ..sqe
        }
    };
    assert!(rig.status(&served.io, verify(0, 1024), &[]).is_success());
    assert_eq!(served.device.take_ops(), [Op::Verify]);
    assert_eq!(
        rig.status(&served.io, verify(1, 1024), &[]),
        dnr(Status::LBA_OUT_OF_RANGE)
    );
}

#[test]
fn ranges_beyond_the_end_are_refused_without_overflow() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let ranges = [
        (1024, 1),
        (1023, 2),
        (u64::MAX, 1),
        (u64::MAX - 7, 8),
        (u64::MAX, 256),
        (1 << 63, 1),
    ];
    for (lba, blocks) in ranges {
        for opcode in [
            nvm::READ,
            nvm::WRITE,
            nvm::COMPARE,
            nvm::WRITE_ZEROES,
            nvm::VERIFY,
        ] {
            let mut sqe = read(1, lba, blocks);
            sqe.opcode = opcode;
            let status = rig.status(&served.io, sqe, &vec![0; blocks as usize * 512]);
            assert_eq!(
                status,
                dnr(Status::LBA_OUT_OF_RANGE),
                "{opcode:#x} {lba}+{blocks}"
            );
        }
    }
    assert_eq!(served.device.take_ops(), []);
}

#[test]
fn a_transfer_above_mdts_or_with_another_length_is_refused() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let long = vec![0; 257 * 512];
    for sqe in [read(1, 0, 257), write(1, 0, 257), compare(1, 0, 257)] {
        assert_eq!(
            rig.status(&served.io, sqe, &long),
            dnr(Status::INVALID_FIELD)
        );
    }
    let wrong_length = dnr(Status::DATA_SGL_LENGTH_INVALID);
    for len in [0, 4095, 4097, 8192] {
        for sqe in [write(1, 0, 8), compare(1, 0, 8)] {
            let sqe = transport(sqe, len);
            assert_eq!(rig.status(&served.io, sqe, &long), wrong_length, "{len}");
        }
    }
    assert_eq!(
        rig.status(&served.io, transport(read(1, 0, 8), 4095), &[]),
        wrong_length
    );
    let longer = rig.run(&served.io, transport(read(1, 0, 8), 8192), &[]);
    assert_eq!(
        (longer.cqe.status(), longer.data.len()),
        (Status::SUCCESS, 4096)
    );
    served.device.take_ops();
    let sgls = [
        (
            SglDescriptor::in_capsule(4, 4096),
            dnr(Status::SGL_OFFSET_INVALID),
        ),
        (SglDescriptor::in_capsule(0, 4095), wrong_length),
        (
            SglDescriptor::data_block(0, 4096),
            dnr(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ),
        (
            SglDescriptor::last_segment(0, 4096),
            dnr(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ),
    ];
    for (sgl, expected) in sgls {
        let sqe = write(1, 0, 8).with_sgl(sgl);
        assert_eq!(
            rig.status(&served.io, sqe, &long[..4096]),
            expected,
            "{sgl:?}"
        );
    }
    let in_capsule = capsule(read(1, 0, 8), 4096);
    let status = rig.status(&served.io, in_capsule, &long[..4096]);
    assert_eq!(
        status,
        dnr(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        "a read has no capsule data"
    );
    for sqe in [write(1, 0, 8).with_psdt(0), read(1, 0, 8).with_psdt(0)] {
        assert_eq!(
            rig.status(&served.io, sqe, &long),
            dnr(Status::INVALID_FIELD),
            "no PRPs"
        );
    }
    assert_eq!(served.device.take_ops(), []);
    rig.assert_all_buffers_back();
}

#[test]
fn a_devices_error_becomes_its_status_and_is_logged() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    let cases = [
        (IoError::MediaRead, dnr(Status::UNRECOVERED_READ_ERROR)),
        (IoError::MediaWrite, dnr(Status::WRITE_FAULT)),
        (IoError::NoSpace, Status::CAPACITY_EXCEEDED),
        (IoError::Busy, Status::NAMESPACE_NOT_READY),
        (IoError::Removed, Status::NAMESPACE_NOT_READY),
        (IoError::Internal, Status::INTERNAL_ERROR),
        (
            IoError::WriteProtected,
            dnr(Status::NAMESPACE_WRITE_PROTECTED),
        ),
        (
            IoError::Injected {
                sct: 2,
                sc: 0x86,
                dnr: false,
            },
            Status::ACCESS_DENIED,
        ),
    ];
    for (error, expected) in cases {
        served.device.state().failures.push_back(error);
        assert_eq!(
            rig.status(&served.io, read(1, 0, 1), &[]),
            expected,
            "{error:?}"
        );
    }
}

#[test]
fn the_tests_device_sees_what_the_host_sent() {
    let mut rig = Rig::new();
    let served = served(&mut rig);
    rig.run(&served.io, write(1, 17, 3), &pattern(3, 0));
    assert_eq!(
        served.device.state().ops,
        [(Op::Write { fua: false }, BlockLba(17), 3)]
    );
}
