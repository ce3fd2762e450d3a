//! What is accepted survives being written again.
#![no_main]

use fabric_wire::fabrics::ConnectData;
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes;

fuzz_target!(|input: &[u8]| {
    if let Ok(parts) = ConnectData::parse(input) {
        assert_eq!(ConnectData::parse(parts.to_data().as_bytes()), Ok(parts));
    }
});
