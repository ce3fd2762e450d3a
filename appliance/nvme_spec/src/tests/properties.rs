use proptest::array::uniform32;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

use super::std;
use crate::identify::{
    ControllerList, IdentifyNamespace, LEN, NamespaceList, NsDescriptor, encode_ns_descriptors,
    nidt, ns_descriptors, nul_terminated, put_ascii, put_nul_terminated, trim_ascii,
};
use crate::log::{ChangedNamespaces, SmartLog};
use crate::{Cid, Cntlid, Cqe, Lba, Nsid, Select, SglDescriptor, Sqe, Status, event};

proptest! {
    #[test]
    fn any_sqe_can_be_read_and_written_back(
        head in uniform32(any::<u8>()), tail in uniform32(any::<u8>()),
    ) {
        let bytes = [head, tail].concat();
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(sqe.as_bytes(), &bytes[..]);
        // Every accessor, and Debug, of every bit pattern.
        let again = Sqe::new(sqe.opcode(), sqe.cid())
            .with_nsid(sqe.nsid())
            .with_sgl(sqe.sgl())
            .with_psdt(sqe.psdt())
            .with_fuse(sqe.fuse());
        prop_assert_eq!(again.flags, sqe.flags & 0xc3);
        prop_assert!((1..=65536).contains(&sqe.block_count()));
        prop_assert!((1..=256).contains(&sqe.dsm_range_count()));
        prop_assert!((1..=256).contains(&sqe.copy_range_count()));
        prop_assert!(sqe.log_len() % 4 == 0 && sqe.log_len() <= 1 << 34);
        prop_assert_eq!(sqe.slba(), sqe.copy_sdlba());
        prop_assert_eq!(Select::from_bits(sqe.sel().bits()), sqe.sel());
        let _ = (sqe.csi(), sqe.lsi(), sqe.lsp(), sqe.uuid_index(), sqe.prp(), sqe.cntid());
        let _ = std::format!("{sqe:?} {:?}", sqe.sgl());
    }

    #[test]
    fn any_cqe_can_be_read_and_written_back(bytes in any::<[u8; 16]>()) {
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(cqe.as_bytes(), &bytes[..]);
        let again = Cqe::new(cqe.cid(), cqe.status())
            .with_result(cqe.result())
            .with_sqhd(cqe.sqhd())
            .with_sqid(cqe.sqid())
            .with_phase(cqe.phase());
        prop_assert_eq!(again, cqe);
        let _ = std::format!("{cqe:?} {}", cqe.status());
    }

    #[test]
    fn status_fields_round_trip(sct in 0..8u8, sc: u8, crd in 0..4u8, more: bool, dnr: bool) {
        let status = Status::new(sct, sc).with_crd(crd).with_more(more).with_dnr(dnr);
        prop_assert_eq!(status.0 >> 15, 0);
        prop_assert_eq!(
            (status.sct(), status.sc(), status.crd(), status.more(), status.dnr()),
            (sct, sc, crd, more, dnr)
        );
        prop_assert_eq!(Cqe::new(Cid(0), status).status(), status);
    }

    #[test]
    fn descriptors_round_trip(address: u64, len: u32, key: u32, invalidate: bool) {
        let keyed_len = len & SglDescriptor::KEYED_LEN_MAX;
        let keyed = SglDescriptor::keyed(address, keyed_len, key, invalidate);
        prop_assert_eq!((keyed.address(), keyed.len(), keyed.key()), (address, keyed_len, key));
        prop_assert_eq!(keyed.invalidates_key(), invalidate);
        let capsule = SglDescriptor::in_capsule(address, len);
        prop_assert_eq!((capsule.offset(), capsule.len()), (address, len));
        prop_assert_eq!(SglDescriptor::transport_data(len).len(), len);
    }

    #[test]
    fn reads_and_writes_round_trip(nsid: u32, lba: u64, blocks in 1..=65536u32, fua: bool) {
        let sqe = Sqe::write(Cid(1), Nsid(nsid), Lba(lba), blocks).with_fua(fua);
        prop_assert_eq!(
            (sqe.nsid(), sqe.slba(), sqe.block_count(), sqe.fua()),
            (Nsid(nsid), Lba(lba), blocks, fua)
        );
    }

    #[test]
    fn log_requests_round_trip(
        lid: u8, dwords in 1..0x4000_0000u32, offset: u64, lsp in 0..0x80u8,
    ) {
        let sqe = Sqe::get_log_page(Cid(1), Nsid::ALL, lid, dwords * 4, offset).with_lsp(lsp);
        prop_assert_eq!(
            (sqe.log_id(), sqe.log_len(), sqe.log_offset(), sqe.lsp(), sqe.rae()),
            (lid, u64::from(dwords) * 4, offset, lsp, false)
        );
    }

    #[test]
    fn events_round_trip(kind in 0..8u8, info: u8, log_id: u8) {
        let dw0 = event::event_dw0(kind, info, log_id);
        prop_assert_eq!(event::parse_event_dw0(dw0), (kind, info, log_id));
    }

    #[test]
    fn any_descriptor_list_ends(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let total: usize = ns_descriptors(&bytes).map(|d| d.nid().len() + 4).sum();
        prop_assert!(total <= bytes.len());
    }

    #[test]
    fn descriptor_lists_round_trip(
        eui64: [u8; 8], nguid: [u8; 16], uuid: [u8; 16], csi: u8,
        other in proptest::collection::vec(any::<u8>(), 1..=255), kind in 5..=255u8,
    ) {
        let list = [
            NsDescriptor::Eui64(eui64),
            NsDescriptor::Other { nidt: kind, nid: &other },
            NsDescriptor::Nguid(nguid),
            // A CSI of another length than 1 stays what it is.
            NsDescriptor::Other { nidt: nidt::CSI, nid: &nguid },
            NsDescriptor::Uuid(uuid),
            NsDescriptor::Csi(csi),
        ];
        let mut buf = [0xff; LEN];
        let used = encode_ns_descriptors(&mut buf, &list).unwrap();
        prop_assert!(buf[used..].iter().all(|b| *b == 0));
        prop_assert_eq!(ns_descriptors(&buf).collect::<Vec<_>>(), list);
        // Cut short anywhere, it is a prefix of the list.
        for len in 0..used {
            let cut: Vec<_> = ns_descriptors(&buf[..len]).collect();
            prop_assert!(cut.len() < list.len() && list.starts_with(&cut));
        }
    }

    #[test]
    fn lists_hold_what_was_asked_for(
        ids in proptest::collection::btree_set(1..3000u32, 0..2500), after in 0..3000u32,
    ) {
        let above: Vec<_> = ids.iter().copied().filter(|id| *id > after).map(Nsid).collect();
        let list = NamespaceList::after(Nsid(after), ids.iter().copied().map(Nsid));
        prop_assert_eq!(list.iter().collect::<Vec<_>>(), &above[..above.len().min(1024)]);

        let from: Vec<_> =
            ids.iter().copied().filter(|id| *id >= after).map(|id| Cntlid(id as u16)).collect();
        let controllers = ControllerList::from(
            Cntlid(after as u16), ids.iter().map(|id| Cntlid(*id as u16)),
        );
        prop_assert_eq!(controllers.iter().collect::<Vec<_>>(), &from[..from.len().min(2047)]);

        let changed = ChangedNamespaces::new(ids.iter().copied().map(Nsid));
        prop_assert_eq!(changed.is_overflow(), ids.len() > 1024);
        if !changed.is_overflow() {
            let all: Vec<_> = ids.iter().copied().map(Nsid).collect();
            prop_assert_eq!(changed.iter().collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn any_list_can_be_iterated(numid: u16, fill: u8) {
        let mut bytes = [fill; LEN];
        bytes[..2].copy_from_slice(&numid.to_le_bytes());
        let list = ControllerList::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(list.iter().count(), usize::from(numid).min(2047));
        prop_assert!(NamespaceList::read_from_bytes(&bytes).unwrap().iter().count() <= 1024);
    }

    #[test]
    fn any_namespace_has_a_format(flbas: u8, lbads: u8) {
        let mut id = IdentifyNamespace { flbas, ..Default::default() };
        let index = id.format_index();
        prop_assert_eq!(index, usize::from(flbas & 0xf | (flbas & 0x60) >> 1));
        id.lbaf[index].lbads = lbads;
        prop_assert_eq!(id.block_size(), (9..32).contains(&lbads).then(|| 1 << lbads));
    }

    #[test]
    fn ascii_fields_are_printable_and_padded(text: std::string::String, len in 0..64usize) {
        let mut field = std::vec![0xee; len];
        put_ascii(&mut field, &text);
        prop_assert!(field.iter().all(|b| (0x20..=0x7e).contains(b)));
        prop_assert!(trim_ascii(&field).is_some());
    }

    #[test]
    fn any_text_field_can_be_read(field in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = (trim_ascii(&field), nul_terminated(&field));
    }

    #[test]
    fn names_round_trip(name in "[^\0]{0,80}") {
        let mut field = [0xff; 64];
        let fits = put_nul_terminated(&mut field, &name);
        prop_assert_eq!(fits, name.len() < 64);
        prop_assert_eq!(nul_terminated(&field), Some(if fits { &*name } else { "" }));
    }

    #[test]
    fn data_units_are_rounded_up(bytes: u64) {
        let units = SmartLog::data_units(bytes.into());
        prop_assert!(units * 512_000 >= bytes.into());
        prop_assert!(units == 0 || (units - 1) * 512_000 < bytes.into());
    }
}
