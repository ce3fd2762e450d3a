//! Private data of the connection manager, and an entry with what follows it in its capsule.
#![no_main]

use fabric_wire::rdma::{
    CAPSULE_LEN, ConnectAccept, ConnectReject, ConnectRequest, DESCRIPTORS_MAX, KeyedSgl,
};
use libfuzzer_sys::fuzz_target;
use nvme_spec::Sqe;
use zerocopy::FromBytes;

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = ConnectRequest::parse(input) {
        assert_eq!(ConnectRequest::parse(&request.to_bytes()), Ok(request));
    }
    let _ = ConnectAccept::parse(input);
    let _ = ConnectReject::parse(input);
    if let Some((entry, capsule)) = input.split_at_checked(CAPSULE_LEN) {
        let sqe = Sqe::read_from_bytes(entry).expect("an entry has 64 bytes");
        if let Ok(sgl) = KeyedSgl::parse(&sqe, capsule) {
            assert!(sgl.blocks().len() <= DESCRIPTORS_MAX);
        }
    }
});
