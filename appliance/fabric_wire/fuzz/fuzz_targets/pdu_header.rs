//! The first byte chooses receiver, digests and alignment; the rest is what the socket gives.
#![no_main]

use fabric_wire::tcp::{self, DecodeLimits, Receiver};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let receiver = if choice & 1 == 0 {
        Receiver::Controller
    } else {
        Receiver::Host
    };
    let limits = DecodeLimits {
        header_digest: choice & 2 != 0,
        data_digest: choice & 4 != 0,
        pda: tcp::data_alignment_bytes(choice >> 3).expect("five bits are at most 31"),
        ..DecodeLimits::default()
    };
    let Ok(layout) = tcp::decode_common(bytes, receiver, &limits) else {
        return;
    };
    let tail = if layout.data_digest { 4 } else { 0 };
    let end = layout.data_offset as u64 + u64::from(layout.data_len) + tail;
    assert_eq!(end, u64::from(layout.plen));
    assert!(layout.header_len_with_digest() <= layout.data_offset);
    if let Err(error) = layout.decode(bytes) {
        assert_eq!(
            error.fes().is_none(),
            bytes.len() < layout.header_len_with_digest()
        );
    }
});
