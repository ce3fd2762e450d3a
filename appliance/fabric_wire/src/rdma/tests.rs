use nvme_spec::{Cid, Cntlid, Qid, SglDescriptor, Sqe, Status};
use proptest::prelude::*;

use super::*;

#[test]
fn request_has_the_golden_bytes() {
    let request = ConnectRequest {
        qid: Qid(0x0201),
        hrqsize: 0x0403,
        hsqsize: 0x0605,
        cntlid: Cntlid(0x0807),
    };
    let mut golden = [0; REQUEST_LEN];
    golden[2..10].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(request.to_bytes(), golden);
    assert_eq!(ConnectRequest::parse(&golden), Ok(request));
}

#[test]
fn accept_and_reject_have_the_golden_bytes() {
    let mut golden = [0; ACCEPT_LEN];
    golden[2..4].copy_from_slice(&[0x34, 0x12]);
    let accept = ConnectAccept { crqsize: 0x1234 };
    assert_eq!(accept.to_bytes(), golden);
    assert_eq!(ConnectAccept::parse(&golden), Ok(accept));
    let reject = ConnectReject::from(CmStatus::NoResources);
    assert_eq!(reject.to_bytes(), [0, 0, 6, 0]);
    assert_eq!(ConnectReject::parse(&[0, 0, 6, 0]), Ok(reject));
}

#[test]
fn private_data_is_refused_when_it_is_cut_at_any_byte() {
    let request = [0; REQUEST_LEN];
    for len in 0..REQUEST_LEN {
        assert_eq!(
            ConnectRequest::parse(&request[..len]),
            Err(CmStatus::InvalidLength)
        );
        assert!(ConnectAccept::parse(&request[..len]).is_err());
    }
    for len in 0..REJECT_LEN {
        assert!(ConnectReject::parse(&request[..len]).is_err());
    }
}

#[test]
fn padding_behind_private_data_is_ignored() {
    // InfiniBand's messages have private data of a fixed length.
    assert!(ConnectRequest::parse(&[0; 92]).is_ok());
    assert!(ConnectAccept::parse(&[0; 196]).is_ok());
    assert!(ConnectReject::parse(&[0; 148]).is_ok());
}

#[test]
fn another_record_format_is_refused() {
    let mut bytes = [0; REQUEST_LEN];
    bytes[0] = 1;
    assert_eq!(ConnectRequest::parse(&bytes), Err(CmStatus::InvalidRecfmt));
    assert_eq!(ConnectAccept::parse(&bytes), Err(CmStatus::InvalidRecfmt));
    assert_eq!(ConnectReject::parse(&bytes), Err(CmStatus::InvalidRecfmt));
}

#[test]
fn statuses_survive_the_wire() {
    for value in 0..=u16::MAX {
        match CmStatus::from_wire(value) {
            Some(status) => assert_eq!(status.to_wire(), value),
            None => assert!(value == 0 || value > 9),
        }
    }
}

fn command(sgl: SglDescriptor) -> Sqe {
    Sqe::default().with_cid(Cid(1)).with_sgl(sgl)
}

#[test]
fn a_keyed_block_names_memory_and_perhaps_a_key_to_invalidate() {
    for invalidates in [false, true] {
        let sqe = command(SglDescriptor::keyed(0x1000, 4096, 7, invalidates));
        let sgl = KeyedSgl::parse(&sqe, &[]).unwrap();
        let block = KeyedBlock {
            address: 0x1000,
            rkey: 7,
            len: 4096,
        };
        assert_eq!(sgl.blocks(), [block]);
        assert_eq!((sgl.place(), sgl.len()), (DataPlace::Keyed, 4096));
        assert_eq!(sgl.invalidate(), invalidates.then_some(7));
    }
}

fn segment(blocks: &[SglDescriptor]) -> Vec<u8> {
    blocks.iter().flat_map(|block| block.0).collect()
}

fn last_segment(offset: u64, len: u32) -> SglDescriptor {
    let mut sgl = SglDescriptor::last_segment(offset, len);
    sgl.0[15] |= SglDescriptor::SUBTYPE_OFFSET;
    sgl
}

#[test]
fn a_last_segment_names_several_blocks() {
    let blocks: Vec<_> = (0..16)
        .map(|index| SglDescriptor::keyed(u64::from(index) << 20, 512, index, index == 3))
        .collect();
    let capsule = segment(&blocks);
    let sgl = KeyedSgl::parse(&command(last_segment(0, 256)), &capsule).unwrap();
    assert_eq!((sgl.blocks().len(), sgl.len()), (16, 16 * 512));
    assert_eq!((sgl.blocks()[15].rkey, sgl.invalidate()), (15, Some(3)));
    let short = KeyedSgl::parse(&command(last_segment(16, 32)), &capsule).unwrap();
    assert_eq!(short.blocks().len(), 2);
    assert_eq!(short.blocks()[0].rkey, 1);
}

#[test]
fn what_is_read_in_place_has_nothing_of_the_command_before() {
    let blocks: Vec<_> = (0..16)
        .map(|index| SglDescriptor::keyed(u64::from(index) << 20, 512, index, index == 3))
        .collect();
    let capsule = segment(&blocks);
    let many = command(last_segment(0, 256));
    let one = command(SglDescriptor::keyed(0x1000, 4096, 7, false));
    let in_capsule = command(SglDescriptor::in_capsule(16, 48));
    let wrong = command(SglDescriptor::transport_data(512));
    // What can be seen of it.
    let seen = |sgl: &KeyedSgl| {
        let blocks = sgl.blocks().to_vec();
        (blocks, sgl.place(), sgl.len(), sgl.invalidate())
    };
    let (mut sgl, mut copy) = (KeyedSgl::default(), KeyedSgl::default());
    for sqe in [many, one, in_capsule, Sqe::default(), many, in_capsule, one] {
        sgl.read(&sqe, &capsule).unwrap();
        assert_eq!(seen(&sgl), seen(&KeyedSgl::parse(&sqe, &capsule).unwrap()));
        copy.copy_from(&sgl);
        assert_eq!(seen(&copy), seen(&sgl));
    }
    sgl.read(&many, &capsule).unwrap();
    assert!(sgl.read(&wrong, &capsule).is_err());
    assert_eq!(seen(&sgl), seen(&KeyedSgl::default()));
    // Broken behind its first block.
    assert!(
        sgl.read(&many, &[segment(&blocks[..1]), vec![0; 240]].concat())
            .is_err()
    );
    assert_eq!(seen(&sgl), seen(&KeyedSgl::default()));
}

#[test]
fn a_segment_with_too_many_or_broken_descriptors_is_refused() {
    let capsule = vec![0; 512];
    for (len, status) in [
        (0, Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS),
        (15, Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS),
        (17 * 16, Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS),
        (1024, Status::SGL_OFFSET_INVALID),
        (16, Status::SGL_DESCRIPTOR_TYPE_INVALID),
    ] {
        let error = KeyedSgl::parse(&command(last_segment(0, len)), &capsule).unwrap_err();
        assert!(error.status().is(status), "{len}: {error}");
        assert!(error.status().dnr());
    }
}

#[test]
fn data_in_the_capsule_lies_within_it() {
    let capsule = [0; 64];
    let sgl = KeyedSgl::parse(&command(SglDescriptor::in_capsule(16, 48)), &capsule).unwrap();
    let place = DataPlace::InCapsule {
        offset: 16,
        len: 48,
    };
    assert_eq!((sgl.place(), sgl.len()), (place, 48));
    for (offset, len) in [(17, 48), (0, 65), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let sqe = command(SglDescriptor::in_capsule(offset, len));
        let error = KeyedSgl::parse(&sqe, &capsule).unwrap_err();
        assert!(error.status().is(Status::SGL_OFFSET_INVALID));
    }
}

#[test]
fn other_descriptors_are_refused() {
    for sgl in [
        SglDescriptor::transport_data(512),
        SglDescriptor::data_block(0x1000, 512),
        SglDescriptor::segment(0, 16),
        SglDescriptor::last_segment(0, 16),
        SglDescriptor([0xff; 16]),
    ] {
        let error = KeyedSgl::parse(&command(sgl), &[0; 64]).unwrap_err();
        assert!(error.status().is(Status::SGL_DESCRIPTOR_TYPE_INVALID));
    }
}

#[test]
fn data_that_one_descriptor_could_not_tell_is_refused() {
    let blocks = [SglDescriptor::keyed(0, SglDescriptor::KEYED_LEN_MAX, 1, false); 2];
    let error = KeyedSgl::parse(&command(last_segment(0, 32)), &segment(&blocks)).unwrap_err();
    assert!(error.status().is(Status::DATA_SGL_LENGTH_INVALID));
}

#[test]
fn no_sgl_is_no_data() {
    let sgl = KeyedSgl::parse(&Sqe::default(), &[]).unwrap();
    assert_eq!(
        (sgl.place(), sgl.len(), sgl.is_empty()),
        (DataPlace::None, 0, true)
    );
    let empty = command(SglDescriptor::keyed(0, 0, 0, true));
    let sgl = KeyedSgl::parse(&empty, &[]).unwrap();
    assert_eq!((sgl.blocks().len(), sgl.invalidate()), (0, Some(0)));
}

proptest! {
    #[test]
    fn requests_survive_the_wire(qid: u16, hrqsize: u16, hsqsize: u16, cntlid: u16) {
        let (qid, cntlid) = (Qid(qid), Cntlid(cntlid));
        let request = ConnectRequest { qid, hrqsize, hsqsize, cntlid };
        prop_assert_eq!(ConnectRequest::parse(&request.to_bytes()), Ok(request));
    }

    #[test]
    fn random_private_data_never_panics(bytes: Vec<u8>) {
        let _ = ConnectRequest::parse(&bytes);
        let _ = ConnectAccept::parse(&bytes);
        let _ = ConnectReject::parse(&bytes);
    }

    #[test]
    fn random_sgls_never_panic(sgl: [u8; 16], capsule: Vec<u8>) {
        if let Ok(parsed) = KeyedSgl::parse(&command(SglDescriptor(sgl)), &capsule) {
            prop_assert!(parsed.blocks().len() <= DESCRIPTORS_MAX);
            let is_in_capsule = matches!(parsed.place(), DataPlace::InCapsule { .. });
            prop_assert!(is_in_capsule || parsed.len() <= SglDescriptor::KEYED_LEN_MAX);
        }
    }

    #[test]
    fn random_segments_never_panic(offset in 0u64..64, len in 0u32..300, capsule: Vec<u8>) {
        let _ = KeyedSgl::parse(&command(last_segment(offset, len)), &capsule);
    }
}
