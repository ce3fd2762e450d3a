use super::{assert_golden, assert_truncation_is_rejected, std};
use crate::opcode::{admin, fabrics, nvm};
use crate::{
    Cid, CopyRange, Cqe, DsmRange, Fuse, Lba, Nsid, Qid, Select, SglDescriptor, Sqe, Status,
};
use core::mem::offset_of;

const CID: Cid = Cid(0x1234);
const NSID: Nsid = Nsid(0x0403_0201);

#[test]
fn sqe_fields_are_at_the_offsets_of_the_specification() {
    assert_eq!(offset_of!(Sqe, opcode), 0);
    assert_eq!(offset_of!(Sqe, flags), 1);
    assert_eq!(offset_of!(Sqe, cid), 2);
    assert_eq!(offset_of!(Sqe, nsid), 4);
    assert_eq!(offset_of!(Sqe, cdw2), 8);
    assert_eq!(offset_of!(Sqe, cdw3), 12);
    assert_eq!(offset_of!(Sqe, mptr), 16);
    assert_eq!(offset_of!(Sqe, dptr), 24);
    assert_eq!(offset_of!(Sqe, cdw10), 40);
    assert_eq!(offset_of!(Sqe, cdw11), 44);
    assert_eq!(offset_of!(Sqe, cdw12), 48);
    assert_eq!(offset_of!(Sqe, cdw13), 52);
    assert_eq!(offset_of!(Sqe, cdw14), 56);
    assert_eq!(offset_of!(Sqe, cdw15), 60);
}

#[test]
fn cqe_fields_are_at_the_offsets_of_the_specification() {
    assert_eq!(offset_of!(Cqe, dw0), 0);
    assert_eq!(offset_of!(Cqe, dw1), 4);
    assert_eq!(offset_of!(Cqe, sqhd), 8);
    assert_eq!(offset_of!(Cqe, sqid), 10);
    assert_eq!(offset_of!(Cqe, cid), 12);
    assert_eq!(offset_of!(Cqe, status), 14);
}

#[test]
fn truncated_structures_are_rejected() {
    assert_truncation_is_rejected::<Sqe>();
    assert_truncation_is_rejected::<Cqe>();
    assert_truncation_is_rejected::<SglDescriptor>();
    assert_truncation_is_rejected::<DsmRange>();
    assert_truncation_is_rejected::<CopyRange>();
}

#[test]
fn read_has_the_golden_bytes() {
    let sqe = Sqe::read(CID, NSID, Lba(0x1122_3344_5566_7788), 8)
        .with_sgl(SglDescriptor::transport_data(4096));
    assert_golden(
        &sqe,
        &[
            (0, &[0x02, 0x40, 0x34, 0x12, 0x01, 0x02, 0x03, 0x04]),
            (
                24,
                &[0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x10, 0, 0, 0, 0, 0, 0x5a],
            ),
            (
                40,
                &[
                    0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x07, 0x00, 0, 0,
                ],
            ),
        ],
    );
    assert_eq!(sqe.opcode(), nvm::READ);
    assert_eq!((sqe.cid(), sqe.nsid()), (CID, NSID));
    assert_eq!(
        (sqe.slba(), sqe.block_count()),
        (Lba(0x1122_3344_5566_7788), 8)
    );
    assert!(sqe.sgl().is_transport_data());
    assert_eq!(sqe.psdt(), Sqe::PSDT_SGL);
    assert!(!sqe.fua() && !sqe.is_fabrics());
}

#[test]
fn fused_write_with_fua_in_the_capsule_has_the_golden_bytes() {
    let sqe = Sqe::write(CID, Nsid(1), Lba(2), 65536)
        .with_fua(true)
        .with_fuse(Fuse::Second)
        .with_sgl(SglDescriptor::in_capsule(0x10, 0x200));
    assert_golden(
        &sqe,
        &[
            (0, &[0x01, 0x42, 0x34, 0x12, 0x01]),
            (
                24,
                &[0x10, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x02, 0, 0, 0, 0, 0, 0x01],
            ),
            (40, &[0x02, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0x40]),
        ],
    );
    assert_eq!(sqe.fuse(), Fuse::Second);
    assert_eq!(sqe.block_count(), 65536);
    assert!(sqe.fua());
    assert!(sqe.sgl().is_in_capsule());
}

#[test]
fn builders_of_dword_12_keep_each_others_bits() {
    let sqe = Sqe::write(CID, NSID, Lba(0), 1)
        .with_cdw12(0xffff_ffff)
        .with_block_count(1)
        .with_fua(false);
    assert_eq!(sqe.cdw12(), 0xbfff_0000);
    assert_eq!(sqe.with_fua(true).cdw12(), 0xffff_0000);
}

#[test]
fn every_bit_of_dword_12_has_its_accessor() {
    let with = |bit: u32| Sqe::default().with_cdw12(1 << bit);
    assert!(with(31).limited_retry());
    assert!(with(30).fua());
    assert_eq!(with(29).prinfo(), 0b1000);
    assert_eq!(with(26).prinfo(), 0b0001);
    assert!(with(25).deac());
    assert!(with(24).stc());
    assert_eq!(with(20).directive_type(), 1);
    assert_eq!(with(23).directive_type(), 8);
    assert_eq!(with(15).block_count(), 0x8001);
    let all_but = Sqe::default().with_cdw12(!(1 << 31 | 1 << 30 | 1 << 25 | 1 << 24));
    assert!(!all_but.limited_retry() && !all_but.fua() && !all_but.deac() && !all_but.stc());
}

#[test]
fn dataset_management_counts_ranges_from_one() {
    let sqe = Sqe::deallocate(CID, NSID, 256);
    assert_golden(
        &sqe,
        &[
            (0, &[0x09, 0, 0x34, 0x12, 1, 2, 3, 4]),
            (40, &[0xff, 0, 0, 0, 0x04]),
        ],
    );
    assert_eq!(sqe.dsm_range_count(), 256);
    assert!(sqe.dsm_deallocate());
    assert_eq!(Sqe::default().dsm_range_count(), 1);
    assert!(!Sqe::default().with_cdw11(0b11).dsm_deallocate());
}

#[test]
fn copy_fields_are_cut_out_of_dword_12() {
    let sqe = Sqe::new(nvm::COPY, CID)
        .with_slba(Lba(9))
        .with_cdw12(0x0000_0203);
    assert_eq!(sqe.copy_range_count(), 4);
    assert_eq!(sqe.copy_format(), 2);
    assert_eq!(sqe.copy_sdlba(), Lba(9));
}

#[test]
fn get_log_page_splits_the_number_of_dwords() {
    let sqe = Sqe::get_log_page(CID, Nsid::ALL, 0x70, 0x0008_0000, 0x1_0000_0004)
        .with_lsp(0x7f)
        .with_rae(true);
    assert_golden(
        &sqe,
        &[
            (0, &[0x02, 0, 0x34, 0x12, 0xff, 0xff, 0xff, 0xff]),
            (
                40,
                &[0x70, 0xff, 0xff, 0xff, 0x01, 0, 0, 0, 0x04, 0, 0, 0, 0x01],
            ),
        ],
    );
    assert_eq!(sqe.log_id(), 0x70);
    assert_eq!(sqe.log_len(), 0x0008_0000);
    assert_eq!(sqe.log_offset(), 0x1_0000_0004);
    assert_eq!(sqe.lsp(), 0x7f);
    assert!(sqe.rae());
    assert_eq!(sqe.with_lsp(0).with_rae(false).cdw10(), 0xffff_0070);
}

#[test]
fn longest_log_page_does_not_overflow() {
    let sqe = Sqe::default().with_cdw10(0xffff_0000).with_cdw11(0xffff);
    assert_eq!(sqe.log_len(), 1 << 34);
    assert_eq!(Sqe::default().log_len(), 4);
}

#[test]
fn get_log_page_specific_fields_are_cut_out() {
    let sqe = Sqe::new(admin::GET_LOG_PAGE, CID)
        .with_cdw11(0xabcd_0000)
        .with_cdw14(0x0280_0085);
    assert_eq!(sqe.lsi(), 0xabcd);
    assert!(sqe.log_uses_index_offset());
    assert_eq!(sqe.csi(), 2);
    assert_eq!(sqe.uuid_index(), 5);
    assert!(!sqe.with_cdw14(!(1 << 23)).log_uses_index_offset());
}

#[test]
fn identify_fields_are_cut_out() {
    let sqe = Sqe::identify(CID, NSID, 0x05).with_cdw11(0x0200_0007);
    assert_golden(
        &sqe,
        &[
            (0, &[0x06, 0, 0x34, 0x12, 1, 2, 3, 4]),
            (40, &[0x05, 0, 0, 0, 7, 0, 0, 2]),
        ],
    );
    assert_eq!((sqe.cns(), sqe.csi(), sqe.cns_specific()), (5, 2, 7));
    assert_eq!(sqe.with_cdw10(0xbeef_0012).cntid(), 0xbeef);
}

#[test]
fn features_are_selected_and_saved() {
    let get = Sqe::get_features(CID, 0x0b, Select::Supported);
    assert_golden(&get, &[(0, &[0x0a, 0, 0x34, 0x12]), (40, &[0x0b, 0x03])]);
    assert_eq!((get.fid(), get.sel()), (0x0b, Select::Supported));
    let set = Sqe::set_features(CID, 0x07, 0x0003_0003);
    assert_golden(
        &set,
        &[
            (0, &[0x09, 0, 0x34, 0x12]),
            (40, &[0x07, 0, 0, 0, 3, 0, 3, 0]),
        ],
    );
    assert!(!set.save());
    assert!(set.with_cdw10(0x8000_0007).save());
    for bits in 0..8 {
        assert_eq!(Select::from_bits(bits).bits(), bits);
    }
    assert_eq!(Select::from_bits(0b101), Select::Reserved(0b101));
}

#[test]
fn abort_names_queue_and_command() {
    let sqe = Sqe::abort(CID, Qid(3), Cid(0xffee));
    assert_golden(
        &sqe,
        &[(0, &[0x08, 0, 0x34, 0x12]), (40, &[0x03, 0, 0xee, 0xff])],
    );
    assert_eq!((sqe.abort_sqid(), sqe.abort_cid()), (Qid(3), Cid(0xffee)));
}

#[test]
fn fabrics_commands_are_told_by_opcode_and_type() {
    let sqe = Sqe::new(fabrics::OPCODE, CID).with_nsid(Nsid(fabrics::CONNECT.into()));
    assert!(sqe.is_fabrics());
    assert_eq!(sqe.fctype(), fabrics::CONNECT);
    assert!(!Sqe::keep_alive(CID).is_fabrics());
}

#[test]
fn prps_replace_an_sgl() {
    let sqe = Sqe::flush(CID, NSID)
        .with_sgl(SglDescriptor::transport_data(1))
        .with_prp(0x0102_0304_0506_0708, 9);
    assert_eq!(sqe.psdt(), Sqe::PSDT_PRP);
    assert_eq!(sqe.prp(), (0x0102_0304_0506_0708, 9));
}

#[test]
fn fuse_and_psdt_do_not_disturb_each_other() {
    for (bits, fuse) in [Fuse::Normal, Fuse::First, Fuse::Second, Fuse::Reserved]
        .into_iter()
        .enumerate()
    {
        for psdt in 0..4 {
            let sqe = Sqe::default().with_psdt(3).with_fuse(fuse).with_psdt(psdt);
            assert_eq!((sqe.fuse(), sqe.psdt()), (fuse, psdt));
            assert_eq!(sqe.flags, psdt << 6 | bits as u8);
        }
    }
}

#[test]
fn cqe_has_the_golden_bytes() {
    let status = Status::LBA_OUT_OF_RANGE.with_dnr(true);
    let cqe = Cqe::new(CID, status)
        .with_result(0x1122_3344_5566_7788)
        .with_sqhd(0x0a0b)
        .with_sqid(Qid(0x0c0d));
    assert_golden(
        &cqe,
        &[
            (0, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
            (8, &[0x0b, 0x0a, 0x0d, 0x0c, 0x34, 0x12, 0x00, 0x81]),
        ],
    );
    assert_eq!(cqe.status(), status);
    assert_eq!(cqe.result(), 0x1122_3344_5566_7788);
    assert_eq!(
        (cqe.dw0(), cqe.sqhd(), cqe.sqid()),
        (0x5566_7788, 0x0a0b, Qid(0x0c0d))
    );
    assert!(!cqe.phase());
    assert!(cqe.with_phase(true).phase());
    assert_eq!(cqe.with_phase(true).status(), status);
    assert_eq!(cqe.with_phase(true).with_phase(false), cqe);
}

#[test]
fn keyed_descriptor_has_the_golden_bytes() {
    let sgl = SglDescriptor::keyed(0x8877_6655_4433_2211, 0x0003_0201, 0x0d0c_0b0a, true);
    let golden = [
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x01, 0x02, 0x03, 0x0a, 0x0b, 0x0c, 0x0d,
        0x4f,
    ];
    assert_golden(&sgl, &[(0, &golden)]);
    assert!(sgl.is_keyed() && sgl.invalidates_key());
    assert_eq!(sgl.address(), 0x8877_6655_4433_2211);
    assert_eq!((sgl.len(), sgl.key()), (0x0003_0201, 0x0d0c_0b0a));
    assert!(!SglDescriptor::keyed(0, 1, 0, false).invalidates_key());
}

#[test]
fn descriptors_of_one_type_are_not_taken_for_another() {
    let address = SglDescriptor::data_block(0x1000, 0xffff_ffff);
    assert!(!address.is_in_capsule() && !address.is_keyed() && !address.is_transport_data());
    assert_eq!((address.offset(), address.len()), (0x1000, 0xffff_ffff));
    let capsule = SglDescriptor::in_capsule(0, 0);
    assert!(capsule.is_in_capsule() && capsule.is_empty());
    for (sgl, id) in [
        (SglDescriptor::segment(1, 16), 0x20),
        (SglDescriptor::last_segment(1, 16), 0x30),
        (SglDescriptor::data_block(1, 16), 0x00),
        (SglDescriptor::keyed(1, 16, 0, false), 0x40),
    ] {
        assert_eq!(sgl.0[15], id);
        assert_eq!(sgl.type_() << 4 | sgl.subtype(), id);
    }
}

#[test]
fn ranges_have_the_golden_bytes() {
    let dsm = DsmRange::new(Lba(0x0102_0304_0506_0708), 0x1112_1314);
    assert_golden(
        &dsm,
        &[(
            4,
            &[
                0x14, 0x13, 0x12, 0x11, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
            ],
        )],
    );
    assert_eq!(
        (dsm.slba(), dsm.block_count()),
        (Lba(0x0102_0304_0506_0708), 0x1112_1314)
    );
    let copy = CopyRange::new(Lba(0x0102_0304_0506_0708), 0x1_0000);
    assert_golden(
        &copy,
        &[(
            8,
            &[0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 0xff, 0xff],
        )],
    );
    assert_eq!(
        (copy.slba(), copy.block_count()),
        (Lba(0x0102_0304_0506_0708), 0x1_0000)
    );
    assert_eq!(offset_of!(CopyRange, elbt), 24);
    assert_eq!(offset_of!(CopyRange, elbat), 28);
    assert_eq!(offset_of!(CopyRange, elbatm), 30);
}

#[test]
fn directions_follow_from_the_opcodes() {
    use crate::opcode::data_direction;
    assert_eq!(data_direction(nvm::FLUSH), 0b00);
    assert_eq!(data_direction(nvm::WRITE), 0b01);
    assert_eq!(data_direction(nvm::READ), 0b10);
    assert_eq!(data_direction(nvm::WRITE_ZEROES), 0b00);
    assert_eq!(data_direction(nvm::DATASET_MANAGEMENT), 0b01);
    assert_eq!(data_direction(nvm::COPY), 0b01);
    assert_eq!(data_direction(admin::IDENTIFY), 0b10);
    assert_eq!(data_direction(admin::KEEP_ALIVE), 0b00);
}

#[test]
fn identifiers_know_their_special_values() {
    assert_eq!(Nsid::ALL, Nsid(0xffff_ffff));
    assert!(Nsid::ALL.is_all() && !Nsid::ALL.is_valid() && !Nsid::NONE.is_valid());
    assert!(Nsid(1).is_valid());
    assert!(Qid::ADMIN.is_admin() && !Qid(1).is_admin());
    assert_eq!(std::format!("{} {:?}", Nsid(7), Cid(8)), "7 Cid(8)");
    assert_eq!(u64::from(Lba::from(5)), 5);
}
